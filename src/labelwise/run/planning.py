"""What a recipe leaves open, decided from the data and the machine; what the training will cost, and what it did."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric

from labelwise.atomic import write_json
from labelwise.cohort.manifest import Manifest
from labelwise.config import AUTO, RunConfig, load_config, setting, with_settings
from labelwise.console import ShowProgress, duration
from labelwise.devices import choose_device
from labelwise.engine import available_cpus
from labelwise.errors import ConfigError
from labelwise.infer.model import ModelInfo
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.loading.prepare import Jobs, Prepared, training_statistics
from labelwise.plan.choose import PLANNED, Line, Plan, make_plan
from labelwise.plan.facts import Facts, Hardware, gather
from labelwise.preprocess import fingerprint
from labelwise.run.circumstances import PLAN
from labelwise.run.forecast import (
    GIB,
    Cohort,
    Forecast,
    measure,
    peak_memory_bytes,
    precision_seconds,
    steps_within,
    with_steps,
)
from labelwise.run.prepare import fingerprint_file, store_folder
from labelwise.run.stages import plan_stages
from labelwise.run.warm_start import find_source, kept_model
from labelwise.settings import build_settings
from labelwise.train.distributed import precision_of, use_precision

WORTH_MEASURING = 100  # steps of a training; about ten are measured
FASTER = 0.95  # of the time in float32: less of a gain is not worth the coarser numbers

logger = logging.getLogger("labelwise")


@dataclass(frozen=True)
class Planned:
    """A recipe with nothing left open, why, and what it costs."""

    config: RunConfig
    plan: Plan
    facts_of_data: Facts
    forecast: Forecast | None  # None if no step could be measured

    def to_text(self) -> str:
        """What was found, one line for each decision, and the forecast."""
        data = self.facts_of_data
        size, spacing = " x ".join(map(str, data.shape)), " x ".join(f"{mm:.3g}" for mm in data.spacing_mm)
        found = (
            f"{data.cases} training cases ({', '.join(data.intensities)}), {data.labelled} labelled, "
            f"{data.complete} of them completely; a typical scan has {size} voxels of {spacing} mm"
        )
        cost = self.forecast.to_text() if self.forecast else "no step of this training could be measured"
        return f"{found}\n\n{self.plan.to_text()}\n\nforecast: {cost}"

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "plan": self.plan.facts(),
            "forecast": self.forecast.facts() if self.forecast else None,
            "structures_mm": {name: list(size) for name, size in self.facts_of_data.structures_mm.items()},
        }


@dataclass(frozen=True)
class Settled:
    """The recipe of a run with nothing left open, and its plan if it was made now."""

    config: RunConfig
    planned: Planned | None = None

    def write(self, folder: Path) -> None:
        """Keep the plan in the folder of the run."""
        if self.planned is not None:
            write_json(folder / PLAN, self.planned.facts())

    def compare(self, folder: Path, seconds: float, prepared: Prepared, *, finished: bool) -> None:
        """Add to the kept plan what a part of the training took, and say at the end how good the forecast was."""
        if not (folder / PLAN).exists():
            return
        kept = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not kept.get("forecast"):
            return
        before = kept.get("truth", {"training_hours": 0.0, "store_gib": 0.0})
        on_gpu = kept["forecast"]["gpu_gib"] is not None and torch.cuda.is_available()
        store = {prepared.store.case_folder(prepared.keys[name]) for name in prepared.written}
        truth = {
            "training_hours": before["training_hours"] + seconds / 3600,
            "ram_gib": peak_memory_bytes() / GIB,
            "gpu_gib": torch.cuda.max_memory_reserved() / GIB if on_gpu else None,
            "store_gib": before["store_gib"] + sum(map(_num_bytes, store)) / GIB,
        }
        truth["disk_gib"] = truth["store_gib"] + _num_bytes(folder) / GIB
        write_json(folder / PLAN, {**kept, "truth": truth})
        if finished:
            hours = [duration(3600 * facts["training_hours"]) for facts in (kept["forecast"], truth)]
            told = [
                f"training {' -> '.join(hours)}",
                *(
                    f"{name} {kept['forecast'][key]:.2f} -> {truth[key]:.2f} GiB"
                    for name, key in (("memory", "ram_gib"), ("GPU memory", "gpu_gib"), ("disk", "disk_gib"))
                    if truth[key] is not None
                ),
            ]
            logger.info("forecast -> truth: %s", ", ".join(told))


def settle_run(
    config: RunConfig,
    manifest: Manifest,
    fabric: Fabric,
    begun: Path | None,
    budget_minutes: float | None,
    progress: ShowProgress,
) -> Settled:
    """What a training begins with, or goes on with if the record `begun` (run.toml) exists.

    Errors
        ConfigError, DataError      as `settle`
    """
    is_planned = bool(config.planned) or budget_minutes is not None
    if not is_planned and config.device.precision != AUTO:
        return Settled(config)
    if begun is not None and begun.exists():
        known = resumed(config, load_config(begun), with_budget=budget_minutes is not None)
        if known is not None:
            return Settled(known)
    jobs = Jobs(progress=progress)
    if not is_planned:
        config, lines = _with_precision(
            config, lambda: _cohort(config, manifest, _facts(config, manifest, jobs)), fabric
        )
        for made in lines:
            logger.info("%s = %s: %s", made.setting, made.value, made.why)
        return Settled(config)
    planned = settle(config, manifest, fabric, budget_minutes=budget_minutes, jobs=jobs)
    if fabric.is_global_zero:
        for line in planned.to_text().splitlines():
            logger.info("%s", line)
    return Settled(planned.config, planned)


def settle(
    config: RunConfig,
    manifest: Manifest,
    fabric: Fabric,
    *,
    budget_minutes: float | None,
    jobs: Jobs,
) -> Planned:
    """Decide what a recipe leaves open and forecast its training, by some steps on the device of `fabric`.

    The training scans are read for their fingerprint, which is kept in the store. With several processes there is
    no forecast, and no budget.

    Errors
        ConfigError     the budget is too short for a step; a budget for several processes; another number of
                        steps than of stages
        DataError       no training scan can be read
    """
    facts = _facts(config, manifest, jobs)
    hardware = hardware_of(config.device.device)
    config, taken = _of_source(config)
    made = make_plan(facts, hardware, current(config), config.planned)
    made = Plan([*taken, *made.lines])
    if kept := kept_model(config):
        made = with_clean_up_of(kept, made)
    chosen = with_settings(config, made.settings)
    plan_stages(chosen)  # refuses a wrong number of steps, by which a trial cannot be counted
    if chosen.prepare.spacing_mm:
        facts = facts.at_spacing(chosen.prepare.spacing_mm)
    cohort = _cohort(chosen, manifest, facts)
    chosen, lines = _with_precision(chosen, lambda: cohort, fabric)
    made = Plan([*made.lines, *lines])
    if fabric.world_size > 1:
        _refuse_budget(budget_minutes)
        return Planned(chosen, made, facts, None)
    expected = measure(chosen, cohort, fabric)
    if budget_minutes is not None:
        if expected is None:
            raise ConfigError(
                "no step could be measured, so no number of steps follows from the budget",
                do="set train.steps",
            )
        chosen, made = _within(budget_minutes, config, chosen, facts, hardware, made, expected)
        expected = with_steps(expected, chosen)
    return Planned(chosen, made, facts, expected)


def _facts(config: RunConfig, manifest: Manifest, jobs: Jobs) -> Facts:
    """What the training scans say, at the spacing of the recipe or at that of their fingerprint."""
    statistics = training_statistics(manifest, jobs, memo=fingerprint_file(config))
    shape = _per_axis(config.prepare.shape)
    typical = fingerprint.make_plan(statistics, spacing_mm=config.prepare.spacing_mm, shape=shape)
    return gather(
        statistics, manifest.split("train"), manifest.label_space,
        spacing_mm=typical.spacing_mm, shape=typical.shape,
    )  # fmt: skip


def _cohort(config: RunConfig, manifest: Manifest, facts: Facts) -> Cohort:
    """What a forecast has to know of the data."""
    scored = sum(bool(manifest.label_space.told_apart(c.annotated)) for c in manifest.split("validation"))
    return Cohort(facts, manifest.label_space, scored, _cases_to_prepare(manifest, config))


def _with_precision(
    config: RunConfig, cohort: Callable[[], Cohort], fabric: Fabric
) -> tuple[RunConfig, list[Line]]:
    """The recipe with its precision, if it was left to the hardware, and why; `fabric` computes in it from now on.

    Of several processes the first one decides.
    """
    if config.device.precision != AUTO or not fabric.is_global_zero:
        return config, []
    precision, why = precision_of(fabric), "what this device computes natively"
    if fabric.device.type == "cpu" and precision == "bf16":
        precision = "float32"
        if (steps := sum(config.train.steps)) < WORTH_MEASURING:
            why = f"{steps} steps are too few to measure whether bf16 is faster here"
        else:
            seconds = precision_seconds(config, cohort(), fabric)
            precision = "bf16" if seconds["bf16"] < FASTER * seconds["float32"] else "float32"
            told = " and ".join(f"{1000 * value:.0f} ms in {name}" for name, value in seconds.items())
            why = f"a step takes {told} on this processor, measured"
    use_precision(fabric, precision)
    line = Line("device.precision", precision, why)
    return with_settings(config, {line.setting: line.value}), [line]


def _of_source(config: RunConfig) -> tuple[RunConfig, list[Line]]:
    """The recipe with what it must have in common with the weights that it starts from."""
    if config.warm_start is None or "net.name" not in config.planned:
        return config, []
    source = find_source(config.warm_start)
    settings = {name: value for name, value in source.settings.items() if name in config.planned}
    lines = [Line(name, value, "as in what the training starts from") for name, value in settings.items()]
    return with_settings(config, settings), lines


def with_clean_up_of(kept: ModelInfo, made: Plan) -> Plan:
    """The plan in which the structures of a model that keeps them are cleaned up as it did.

    The scans of the training say nothing of them. Its classes are the first of the training, in the same order.
    """
    before = build_settings(InferenceConfig, kept.inference, "inference").postprocess
    old = range(1, len(kept.classes))
    largest = {*(before.classes or old)} if before.largest_component else set()
    lines = []
    for line in made.lines:
        if line.setting == "inference.postprocess":
            new = {
                name: [index for index in line.value[name] if index not in old]
                for name in ("classes", "pairs")
            }
            classes = sorted(largest.union(new["classes"]))
            value = {
                "largest_component": bool(classes),
                "fill_holes": before.fill_holes,
                "classes": tuple(classes),
                "pairs": (*before.pairs, *new["pairs"]),
            }
            line = replace(line, value=value, why=f"{line.why}; the model's own structures as it did")
        lines.append(line)
    return Plan(lines)


def _within(
    minutes: float,
    config: RunConfig,
    chosen: RunConfig,
    facts: Facts,
    hardware: Hardware,
    made: Plan,
    expected: Forecast,
) -> tuple[RunConfig, Plan]:
    """The plan again, for the number of steps that fit into the budget."""
    steps = steps_within(expected, chosen, minutes)
    if not min(steps):
        raise ConfigError(
            "the budget is too short for a single step and the validation",
            found=f"{duration(60 * minutes)}; a step takes {sum(expected.step_seconds):.1f} s, "
            f"a validation {expected.validation_seconds:.0f} s",
            do="allow more time, or choose a smaller sampling.patch_size",
        )
    chosen = with_settings(chosen, {"train.steps": steps})
    again = make_plan(
        facts,
        hardware,
        current(chosen),
        [name for name in config.planned if name.startswith("train.schedule")],
    )
    told = " and ".join(f"{1000 * seconds:.0f} ms" for seconds in expected.step_seconds)
    why = f"{duration(60 * minutes)} at {told} a step, measured, and {expected.validation_seconds:.0f} s a validation"
    new = {line.setting: line for line in again.lines} | {
        "train.steps": Line("train.steps", chosen.train.steps, why)
    }
    lines = [new.pop(line.setting, line) for line in made.lines] + list(new.values())
    return with_settings(chosen, again.settings), Plan(lines)


def resumed(config: RunConfig, earlier: RunConfig, *, with_budget: bool) -> RunConfig | None:
    """The recipe with what was planned when the run began; None if that was the run of another method."""
    if "method.name" not in config.planned and earlier.method.name != config.method.name:
        return None
    names = {*config.planned, *(("train.steps",) if with_budget else ())}
    values = {name: setting(earlier, name) for name in PLANNED if name in names}
    if config.device.precision == AUTO:
        values["device.precision"] = earlier.device.precision
    return with_settings(config, values)


def current(config: RunConfig) -> dict[str, Any]:
    """The values of all settings that a plan can decide, and of what it asks for."""
    return {name: setting(config, name) for name in (*PLANNED, "start_from")}


def hardware_of(name: str) -> Hardware:
    """The device that a training would use, and its memory."""
    device = choose_device(name)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        pages = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", {}))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if pages else 8 * 2**30
    return Hardware(cast(Any, device.type), memory, available_cpus())


def _num_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _refuse_budget(minutes: float | None) -> None:
    if minutes is not None:
        raise ConfigError(
            "a budget is measured by one process",
            found="a training of several processes",
            do="find the steps by `labelwise plan --budget` on one device, and set train.steps",
        )


def _per_axis(
    shape: tuple[int, int, int] | None,
) -> tuple[int | None, int | None, int | None] | None:
    if shape is None:
        return None
    x, y, z = shape
    return x or None, y or None, z or None


def _cases_to_prepare(manifest: Manifest, config: RunConfig) -> int:
    index = store_folder(config) / "index.json"
    return 0 if index.exists() else sum(bool(case.split) for case in manifest.cases)
