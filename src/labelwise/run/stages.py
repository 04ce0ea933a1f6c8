"""Methods that train in stages: which stages a run has, where each is kept, and how the first one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.config import RunConfig, load_config
from labelwise.errors import CheckpointError, ConfigError
from labelwise.formats.tensors import load_header
from labelwise.methods import find_method, name_of, stages_of
from labelwise.methods.base import Method
from labelwise.settings import build_settings
from labelwise.train.loop import BEST, LAST

RECORD = "run.toml"


@dataclass(frozen=True)
class Stages:
    """The methods that a run trains one after the other; the last is the one that was asked for."""

    kinds: tuple[type[Method], ...]
    start: Path | None = None  # checkpoint of the stage before the first of `kinds`

    def folder(self, output: Path, number: int) -> Path:
        """Where a stage keeps its checkpoints: a folder of its own only if there are several."""
        return output if len(self.kinds) == 1 else output / f"stage_{number + 1}"

    @property
    def offset(self) -> int:
        """Number of stages that were trained by another run: each stage draws other random numbers."""
        return 1 if self.start else 0


def plan_stages(config: RunConfig) -> Stages:
    """The stages of a run, whose settings are checked against their number.

    Errors
        ConfigError         `train.steps` has another length; `start_from` for a method of one stage; a running
                            average that so many steps do not renew
        CheckpointError     `start_from` holds no trained first stage
    """
    kinds = stages_of(find_method(config.method.name))
    start = None
    if config.start_from is not None:
        start = _trained_stage(Path(config.start_from), config, kinds)
        kinds = kinds[-1:]
    if len(config.train.steps) != len(kinds):
        several = len(kinds) > 1
        raise ConfigError(
            f"{config.method.name} trains in {len(kinds)} {'stages' if several else 'stage'}"
            + (" here, because start_from names the one before" if start else ""),
            found=f"train.steps = {list(config.train.steps)}",
            expected=f"{len(kinds)} numbers" if several else "1 number",
            do="or train the last stage only: start_from = the folder of a run of "
            f"'{name_of(kinds[-2])}', and one number"
            if several
            else "",
        )
    for kind, steps in zip(kinds, config.train.steps, strict=True):
        for name, decay in kind.decays(settings_of(kind, config)).items():
            decay.require_forgets(f"method.settings.{name}", steps)
    return Stages(kinds, start)


def settings_of(kind: type[Method], config: RunConfig) -> Any:
    """The settings of a stage: those of the last one, or of its paper if it is of another kind."""
    same = kind.Config is find_method(config.method.name).Config
    settings = config.method.settings if same else {}
    return build_settings(kind.Config, settings, f"[method.settings] of {kind.__name__}")


def _trained_stage(folder: Path, config: RunConfig, kinds: Sequence[type[Method]]) -> Path:
    """The checkpoint of the stage before the last, from the run that trained it."""
    name = config.method.name
    if len(kinds) < 2:
        raise ConfigError(
            f"{name} trains in one stage, so it starts from no other run", found=f"start_from = {folder}"
        )
    before = name_of(kinds[-2])
    checkpoint = folder / (BEST if config.select == "best" else LAST)
    advice = f"labelwise train --method {before} --data {config.data} -o {folder}"
    if not checkpoint.exists() or not (folder / RECORD).exists():
        raise CheckpointError(
            f"the last stage of {name} starts from a trained '{before}', and there is none",
            file=checkpoint,
            do=f"train it: {advice}; or leave start_from out and give train.steps two numbers: then both are trained",
        )
    earlier = load_config(folder / RECORD)
    if find_method(earlier.method.name) is not kinds[-2]:
        raise CheckpointError(
            f"the last stage of {name} starts from a trained '{before}'",
            file=folder / RECORD,
            found=f"a run of '{earlier.method.name}'",
            do=advice,
        )
    step, steps = load_header(checkpoint)["facts"]["step"], earlier.train.steps[-1]
    if config.select == "last" and step < steps:
        raise CheckpointError(
            "the run that start_from names is not finished",
            file=checkpoint,
            found=f"step {step} of {steps}",
            do=f"resume it: labelwise train {folder / RECORD} -o {folder}",
        )
    return checkpoint
