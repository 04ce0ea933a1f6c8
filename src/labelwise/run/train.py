"""`train`: a manifest and a config become a run folder with a model."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from labelwise.atomic import discard_leftovers, write_json, write_text
from labelwise.cohort.coverage import never_annotated, never_taken
from labelwise.cohort.data_set import not_commercial
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.parts import part_key
from labelwise.cohort.split import cut_groups
from labelwise.config import AUTO, RunConfig
from labelwise.console import ShowProgress, silent
from labelwise.devices import keep_freed_memory, memory_explained, use_allowed_cpus
from labelwise.errors import ConfigError, DataError, ResourceError, TrainingError, warn_about
from labelwise.infer.model import save_model
from labelwise.infer.sliding_window import check_mirroring
from labelwise.loading.loader import batches
from labelwise.loading.prepare import Prepared
from labelwise.lock import only_writer
from labelwise.methods import find_method, name_of, stages_of
from labelwise.methods.base import Method
from labelwise.nets.recompute import recompute_stages
from labelwise.preprocess.fingerprint import scan_ranges
from labelwise.run import warm_start
from labelwise.run.circumstances import COST, PLAN, add_cost
from labelwise.run.environment import environment
from labelwise.run.forecast import GIB, peak_memory_bytes
from labelwise.run.pairing import PREDICTIONS
from labelwise.run.patients import PATIENTS, record_patients, seen_scans
from labelwise.run.planning import settle_run
from labelwise.run.prepare import prepare_manifest, read_data
from labelwise.run.stages import RECORD, Stages, plan_stages, settings_of
from labelwise.run.thresholds import Thresholds
from labelwise.run.train_job import train_as_job
from labelwise.run.validation import Validation
from labelwise.train.checkpoint import check_continues, load_method
from labelwise.train.distributed import connect, use_precision
from labelwise.train.loggers import MLFLOW, TENSORBOARD, TRACKIO, check_loggers
from labelwise.train.loop import BEST, LAST, Result, Stage, fit
from labelwise.train.record import PICTURES
from labelwise.types import Batch, Case

__all__ = ["TrainingResult", "train"]

logger = logging.getLogger("labelwise")

# Settings that may differ between the parts of a resumed run without changing its result.
NOT_DECISIVE = (
    "data",
    "base",
    "planned",
    "learn_from",
    "device",
    "inference",
    "workers",
    "select",
    "thresholds",
    "start_from",
    "licence",
)
WARM_START = "warm_start.json"
# All that is written into the folder of a run.
WRITTEN = (
    RECORD,
    PLAN,
    WARM_START,
    "environment.json",
    PATIENTS,
    COST,
    "log.jsonl",
    TENSORBOARD,
    MLFLOW,
    TRACKIO,
    PICTURES,
    "*.safetensors",
    "stage_[0-9]",
    "model",
    "predictions",
    "scores.csv",
    "scores.json",
)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    folder: Path
    steps: int
    interrupted: bool
    best_score: float | None  # mean Dice over structures of the validation cases

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "folder": str(self.folder)}


@memory_explained(
    "the memory is too small for this training",
    do="lower sampling.patch_size, sampling.labelled_cases and sampling.unlabelled_cases (train.accumulate takes "
    "several batches for a step), or the width of the network (net.settings), or set device.recompute; the last "
    "checkpoint is kept",
)
def train(
    config: RunConfig,
    output: Path | str,
    *,
    budget_minutes: float | None = None,
    overwrite: bool = False,
    engine: str = "local",
    slurm: Mapping[str, Any] | None = None,
    progress: ShowProgress = silent,
) -> TrainingResult:
    """Train a method on the training cases of a manifest; repeating the call resumes an interrupted run.

    What the recipe leaves open (`RunConfig.planned`) is planned first, from the data and the machine. Writes to
    `output`: run.toml (resolved settings), plan.json (why, and what was expected), environment.json, log.jsonl,
    last.safetensors and, with validation cases, best.safetensors; at the end the folder model/.

    With `budget_minutes` the number of steps is what fits into this time, as a few measured steps say. A run that is
    continued keeps the plan with which it began.

    A folder with a run is continued, or with `overwrite` begun anew: what a run and `predict` and `evaluate`
    wrote there is removed, and nothing else.

    With the `engine` slurm it is a job of SLURM, with the settings `slurm` in the words of submitit, which this call
    waits for; its progress stands in the log of the job.

    Errors
        ConfigError         settings that do not fit each other or the data
        DataError           nothing to learn from, a class that no training case annotates, broken scans
        TrainingError       the loss is not finite
        CheckpointError     the folder holds a run with other settings
        ResourceError       the folder cannot be written to, or another program is writing into it
    """
    folder = Path(output)
    if engine != "local":
        return train_as_job(
            train, config, folder, engine=engine, slurm=slurm or {}, overwrite=overwrite,
            budget_minutes=budget_minutes,
        )  # fmt: skip
    fabric = connect(config.device, idle_weights=_has_idle_weights(config))
    if fabric.device.type == "cpu":
        use_allowed_cpus()
        keep_freed_memory()
    speaking = progress if fabric.is_global_zero else silent
    with fabric.rank_zero_first():  # the other ranks find labels and fingerprint
        manifest = read_data(config)
        begun = None if overwrite else folder / RECORD
        settled = settle_run(config, manifest, fabric, begun, budget_minutes, speaking)
    # The first process decides what depends on a measurement.
    precision = fabric.broadcast(settled.config.device.precision)
    config = replace(settled.config, device=replace(settled.config.device, precision=precision))
    if precision != AUTO:  # as in runs that an older version began
        use_precision(fabric, precision)
    warm_start.check_alone(config.warm_start, config.start_from)
    stages = plan_stages(config)
    check_loggers(config.train.loggers)
    _check_trainable(manifest, config)
    with only_writer(folder) if fabric.is_global_zero else nullcontext():
        with fabric.rank_zero_first():  # the other ranks find the store filled
            prepared = prepare_manifest(manifest, config, progress=speaking)
            prepared.require_all()
        _check_drawn(manifest, prepared, config)
        trainer = _Trainer(config, manifest, prepared, fabric, speaking)
        if not overwrite:
            for begun in (folder, folder / "stage_1"):  # by a method of one stage, or of several
                check_continues(begun / LAST, trainer.settings)
        fabric.barrier()  # nobody looks any more at what rank 0 now replaces
        if fabric.is_global_zero:
            _begin(folder, config, manifest, prepared, overwrite=overwrite)
            settled.write(folder)
        fabric.barrier()
        started = time.monotonic()
        try:
            method, result = trainer.run(stages, folder)
        finally:
            if fabric.is_global_zero:
                peaks = {"ram_gib": peak_memory_bytes() / GIB, "gpu_gib": _peak_gpu_gib(fabric)}
                with suppress(ResourceError):  # a full disk is told by what failed, not by this note
                    write_json(folder / COST, add_cost(folder, time.monotonic() - started, peaks))
        if fabric.is_global_zero:
            settled.compare(folder, time.monotonic() - started, prepared, finished=not result.interrupted)
        if not result.interrupted and fabric.is_global_zero:
            trainer.save(method, result, folder)
        fabric.barrier()
    return TrainingResult(folder, result.step, result.interrupted, result.best_score)


def _has_idle_weights(config: RunConfig) -> bool:
    """Whether some trainable weights may have no gradient in a step."""
    unasked = bool(config.net.settings.get("deep_supervision"))  # heads of coarser scales
    kinds = stages_of(find_method(config.method.name))
    return any(kind.card.idle_weights or (unasked and not kind.card.deep_supervision) for kind in kinds)


def _peak_gpu_gib(fabric: Fabric) -> float | None:
    return torch.cuda.max_memory_reserved() / GIB if fabric.device.type == "cuda" else None


def _begin(
    folder: Path, config: RunConfig, manifest: Manifest, prepared: Prepared, *, overwrite: bool
) -> None:
    """Say in the folder what is trained there."""
    if overwrite and (folder / RECORD).exists():
        predictions = folder / PREDICTIONS
        # Not beneath a program that writes there.
        with only_writer(predictions) if predictions.is_dir() else nullcontext():
            for path in [path for pattern in WRITTEN for path in folder.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Absolute: a report of this run may be made in another folder, and the run resumed from there.
    start, warm = (
        None if path is None else str(Path(path).absolute())
        for path in (config.start_from, config.warm_start)
    )
    resolved = replace(config, data=str(Path(config.data).absolute()), start_from=start, warm_start=warm)
    write_text(folder / RECORD, resolved.to_toml())
    write_json(folder / "environment.json", {"date": datetime.now(UTC).date().isoformat(), **environment()})
    record_patients(folder, manifest, prepared.hashes, [path for path in (start, warm) if path])


def _check_drawn(manifest: Manifest, prepared: Prepared, config: RunConfig) -> None:
    """Say which annotated structures no training case shows a voxel of: nothing but their absence is learnt.

    Errors
        DataError   that is so for all of them
    """
    learnt = 0
    absent = []
    for index, structure in enumerate(manifest.label_space.structures, start=1):
        cases = [case for case in manifest.split("train") if structure in case.annotated]
        # What proposals say of a case stands in other files than its labels.
        shown = any(case.parts or len(prepared.store.case(case.id).points.get(index, ())) for case in cases)
        learnt += shown
        absent += [structure] if cases and not shown else []
    if absent and not learnt:
        raise DataError(
            "no training case shows a voxel of any structure that it is said to annotate",
            file=config.data,
            found=", ".join(absent),
            do="see what `labelwise check` says of the label files, or correct the column 'annotated'",
            code="nothing-annotated",
        )
    warn_about("structures that are annotated, but absent from every training case, cannot be learnt", absent)


def _check_trainable(manifest: Manifest, config: RunConfig) -> None:
    cases = manifest.split("train")
    if not cases:
        raise DataError(
            "no case is in the split 'train'",
            file=config.data,
            do="fill the column 'split' of manifest.csv",
            code="no-case",
        )
    for case in (*cases, *_scored(manifest)):
        if case.channels != cases[0].channels:
            raise DataError(
                "the cases of a training must have the same modalities",
                case=case.id,
                file=case.images[0],
                found=f"{case.channels} image(s)",
                expected=f"{cases[0].channels}, as in case '{cases[0].id}'; '-' for one that was not taken",
            )
    if unseen := never_taken(manifest):
        raise DataError(
            f"no training case has image {' and '.join(map(str, unseen))} of {cases[0].channels}",
            file=config.data,
            do="take its place out of the column 'images' in every case, or add a case that has it",
        )
    if config.augment.drop_channels and cases[0].channels == 1:
        raise ConfigError(
            "the only channel of a scan cannot be left out",
            found=f"augment.drop_channels = {config.augment.drop_channels:g}",
            do="set it to 0",
        )
    if cut := cut_groups(manifest):
        group, splits = next(iter(cut.items()))
        raise DataError(
            f"patient '{group}' is in {' and '.join(splits)}: scores would be those of scans that were seen",
            file=config.data,
            found=f"{len(cut)} such patient{'' if len(cut) == 1 else 's'} (column 'group')",
            do="put all cases of a patient into one split; see what `labelwise check` says",
            code="patients-cut",
        )
    taught = {case.data_set: manifest.data_set_of(case) for case in cases}
    warn_about(
        "data sets whose terms forbid commercial use, also of what is learnt from them",
        not_commercial(taught.values()),
    )
    kept = warm_start.kept_model(config)
    if kept and set(manifest.label_space.names) <= set(kept.classes):
        raise ConfigError(
            f"{config.method.name} adds structures to a model, and this one knows all of them already",
            file=config.warm_start,
            found=", ".join(manifest.label_space.structures),
            do="name data that annotate another structure; or train on by another method: --method self_training",
        )
    if missing := [name for name in never_annotated(manifest) if not kept or name not in kept.classes]:
        raise DataError(
            f"no training case annotates {', '.join(missing)}, so it cannot be learnt",
            file=config.data,
            do="annotate it in at least one training case, or take it out of the classes in dataset.toml",
            code="nothing-annotated",
        )
    config.augment.check_sides(manifest.label_space)
    if config.augment.sides != "keep":
        check_mirroring(manifest.label_space, config.inference)
    if config.select == "best" and not _scored(manifest):
        raise ConfigError(
            "select = 'best' needs a validation",
            do="set cases aside (split 'validation' in manifest.csv), or choose select = 'last'",
        )
    if config.train.schedule.name == "plateau" and not (config.train.validate_every and _scored(manifest)):
        raise ConfigError(
            "the schedule 'plateau' follows the validations, and there is none",
            do="set cases aside (split 'validation' in manifest.csv) and set train.validate_every",
        )
    for kind in plan_stages(config).kinds:
        if config.train.accumulate > 1 and not kind.card.accumulates:
            raise ConfigError(
                f"{name_of(kind)} keeps something of the batch of each step, so a step cannot take several",
                found=f"train.accumulate = {config.train.accumulate}",
                do="set it to 1, and sampling.labelled_cases and unlabelled_cases to what the memory allows",
            )
    learns_from = find_method(config.method.name).card.learns_from
    if "none" not in learns_from and not config.sampling.labelled_cases:
        raise ConfigError(
            f"{config.method.name} learns from labelled cases only", found="sampling.labelled_cases = 0"
        )
    if "none" not in learns_from and (silent_cases := sum(not case.annotated for case in cases)):
        logger.info(
            "%d of %d training cases are not annotated; %s does not learn from them",
            silent_cases, len(cases), config.method.name,
        )  # fmt: skip


def _scored(manifest: Manifest) -> tuple[Case, ...]:
    told_apart = manifest.label_space.told_apart
    return tuple(case for case in manifest.split("validation") if told_apart(case.annotated))


class _Trainer:
    """One run: builds the stages, gives each its batches and its validation, saves the model."""

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        prepared: Prepared,
        fabric: Fabric,
        progress: ShowProgress,
    ):
        self.config, self.manifest, self.prepared = config, manifest, prepared
        self.fabric, self.progress = fabric, progress
        first = prepared.store.case(manifest.split("train")[0].id)
        self.nets = config.nets(in_channels=first.modalities, num_classes=manifest.label_space.num_classes)
        decisive = {key: value for key, value in asdict(config).items() if key not in NOT_DECISIVE}
        del decisive["prepare"]["store"]  # the same scans may lie elsewhere
        for shown in ("loggers", "pictures"):  # who is told does not change what is learnt
            del decisive["train"][shown]
        if config.warm_start is not None:  # by whatever name
            decisive["warm_start"] = str(Path(config.warm_start).absolute())
        self.settings = {
            "run": replace_tuples(decisive),
            "device": {"precision": config.device.precision},
            "cases": self._digest(manifest.split("train")),
            # Scores of other scans cannot be compared: the best one would be of the easier scans.
            "validation": self._digest(_scored(manifest)),
        }

    def run(self, stages: Stages, folder: Path) -> tuple[Method, Result]:
        """Train every stage, each from where the one before ended."""
        method = self._before(stages)
        for number, kind in enumerate(stages.kinds):
            previous, method = method, self._method(kind)
            target = stages.folder(folder, number)
            if previous is not None:
                method.start_from(previous)
            elif self.config.warm_start is not None and not (target / LAST).exists():
                self._warm_start(method, folder)
            result = self._fit(method, number, stages.offset, target, folder)
            if result.interrupted:
                break
            load_method(self._selected(target, result), method)
        assert method is not None
        return method, result

    def _warm_start(self, method: Method, folder: Path) -> None:
        """Give the first stage the weights that it begins with; say what was taken and what was not."""
        assert self.config.warm_start is not None
        transfer = warm_start.begin(method, self.config.warm_start, self.manifest.label_space)
        if self.fabric.is_global_zero:
            if transfer.lost_classes:
                logger.warning(
                    "the model knows %s, and this training does not: it is forgotten; --method add_class keeps it",
                    ", ".join(transfer.lost_classes),
                )
            write_json(folder / WARM_START, {"from": self.config.warm_start, **transfer.facts()})
            for line in transfer.to_text().splitlines():
                logger.info("%s", line)

    def _before(self, stages: Stages) -> Method | None:
        """The stage that another run trained, if this one starts from it."""
        if stages.start is None:
            return None
        kind = stages.kinds[0].follows
        assert kind is not None
        method = self._method(kind)
        load_method(stages.start, method)
        return method

    def _method(self, kind: type[Method]) -> Method:
        torch.manual_seed(self.config.seed)  # the same first weights on every rank and in every resumed run
        return kind(self.nets, settings_of(kind, self.config))

    def _fit(self, method: Method, place: int, offset: int, folder: Path, run: Path) -> Result:
        """Train the stage at a place of those of this run; `offset` were trained by another one."""
        number, steps = place + offset, self.config.train.steps[place]
        validation = self._validation()
        if self.config.device.recompute:
            recompute_stages(method)
        stage = Stage(
            method=method,
            batches=self._batches(method, number, steps),
            steps=steps,
            folder=folder,
            settings=self.settings,
            seed=self.config.seed,
            number=number,
            task=f"train {self.config.method.name}" + (f" stage {number + 1}" if number else ""),
            steps_before=sum(self.config.train.steps[:place]),
            run=run,
            validate=validation,
            pictures=validation.pictures if validation and validation.shown else None,
        )
        return fit(stage, self.config.train, self.fabric, self.progress)

    def _may_lack(self) -> tuple[int, ...]:
        """The channels without which the network has seen a scan."""
        if self.config.augment.drop_channels:
            return tuple(range(self.nets.in_channels))
        return tuple(sorted({number for case in self.manifest.split("train") for number in case.missing}))

    def _digest(self, cases: Sequence[Case]) -> list[list[Any]]:
        """What the run learns from, or is judged by: a resumed run must see the same scans with the same annotation."""
        return [
            [self.prepared.keys[case.id], sorted(case.annotated), *map(part_key, case.parts)]
            for case in cases
        ]

    def _batches(self, method: Method, number: int, total: int) -> Callable[[int], Iterable[Batch]]:
        sampling = self.config.sampling
        if "none" not in method.card.learns_from:
            sampling = replace(sampling, unlabelled_cases=0)

        def from_step(start: int) -> Iterable[Batch]:
            return batches(
                self.prepared.store,
                self.manifest.split("train"),
                self.manifest.label_space,
                sampling,
                self.config.augment,
                seed=self.config.seed + number,
                start=start,
                total=total * self.config.train.accumulate,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
                workers=self.config.workers,
                extra_targets=method.extra_targets(),
                weak_view=method.needs_weak_view,
                device=self.fabric.device,
            )

        return from_step

    def _validation(self) -> Validation | None:
        scored = _scored(self.manifest)
        if not scored:
            return None
        return Validation(
            self.prepared.store, scored, self.manifest.label_space, self.config.sampling.patch_size,
            self.config.inference, self.fabric.device, self.config.train.pictures,
        )  # fmt: skip

    def _selected(self, folder: Path, result: Result) -> Path:
        if self.config.select == "best" and result.best_step is None:
            raise TrainingError(
                "no validation had a score: no annotated class has a voxel in any validation case",
                file=folder / BEST,
                do="choose select = 'last' and repeat the command: the training is kept",
            )
        return folder / (BEST if self.config.select == "best" else LAST)

    def _thresholds(self, method: Method) -> tuple[dict[str, float], dict[str, Any]]:
        """From which score on a structure counts, and how that was found; nothing where classes exclude each other."""
        if self.config.thresholds == "half":
            return {}, {}
        search = Thresholds(
            self.prepared.store, self.manifest.label_space, self.config.sampling.patch_size,
            self.config.inference, self.fabric.device,
        )  # fmt: skip
        predictor = method.to(self.fabric.device).predictor()
        return search.choose(predictor, _scored(self.manifest), self.manifest.split("train"))

    def save(self, method: Method, result: Result, folder: Path) -> None:
        """Write the model folder: what `predict` needs."""
        cases = self.manifest.split("train")
        annotated = {
            structure: sum(structure in case.annotated for case in cases)
            for structure in self.manifest.label_space.structures
        }
        if kept := warm_start.kept_model(self.config):  # what it knew before is not little known
            annotated = {
                structure: n for structure, n in annotated.items() if n or structure not in kept.classes
            }
        thresholds, how = self._thresholds(method)
        training = {
            "date": datetime.now(UTC).date().isoformat(),
            "steps": result.best_step if self.config.select == "best" else result.step,
            "seed": self.config.seed,
            "selected": self.config.select,
            "best_validation_dice": result.best_score,
            **({"licence": terms} if (terms := self.config.licence) else {}),
            "cases": len(cases),
            "data_sets": dict(Counter(case.data_set for case in cases)),
            "licences": {
                **warm_start.licences_of(self.config.warm_start),
                **{case.data_set: self.manifest.data_set_of(case).licence for case in cases},
            },
            "annotated_cases": annotated,
            **({"kept_classes": kept.classes[1:]} if kept else {}),
            **({"thresholds": how} if how else {}),
            "seen": seen_scans(folder),
            "scans": scan_ranges([self.prepared.store.case(case.id).undo for case in cases]),
            **({"began_with": Path(start).name} if (start := self.config.warm_start) else {}),
            "environment": environment(),
        }
        info = {
            "name": folder.resolve().name,
            "classes": self.manifest.label_space.names,
            "intensities": tuple(self.prepared.plan.intensity),
            "plan": self.prepared.plan.to_json(),
            "method": self.config.method.name,
            "method_settings": self.config.method.settings,
            "patch_size": self.config.sampling.patch_size,
            "inference": asdict(self.config.inference),
            "training": training,
            "thresholds": thresholds,
            "may_lack": self._may_lack(),
        }
        discard_leftovers(folder / "model")
        save_model(folder / "model", info, method, self.nets)


def replace_tuples(value: Any) -> Any:
    """Plain JSON values compare equal to their copy in a checkpoint; tuples would not."""
    if isinstance(value, dict):
        return {key: replace_tuples(item) for key, item in value.items()}
    return [replace_tuples(item) for item in value] if isinstance(value, list | tuple) else value
