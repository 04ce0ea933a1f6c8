"""What a training will cost, before it starts: a few of its steps on made-up patches, timed.

The steps go through the same loop, augmentation and optimiser as the training. What they are computed from is noise
with a box for each structure: the numbers of a voxel do not change the time that it takes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Generator, Tensor

from labelwise.config import RunConfig
from labelwise.console import duration
from labelwise.devices import SafeConvolutions, use_fast_layout
from labelwise.errors import ResourceError, TrainingError
from labelwise.infer.sliding_window import predict_labels
from labelwise.infer.windows import WindowGrid
from labelwise.loading.augment import Views, augment
from labelwise.methods import find_method, stages_of
from labelwise.methods.base import Method
from labelwise.nets.recompute import recompute_stages
from labelwise.plan.facts import Facts
from labelwise.run.stages import settings_of
from labelwise.train.loop import Stage, fit
from labelwise.types import IGNORE, Batch, LabelSpace, Progress

if sys.platform != "win32":
    import resource

WARM_UP = 2  # steps that are not timed: memory is allowed for, kernels are chosen
MOST_STEPS, MOST_SECONDS = 12, 15.0  # of a trial
STORED = 0.8  # size of a prepared scan after compression, as a part of its voxels
VOXEL_BYTES = 3  # float16 and a label
PRECISION_SECONDS = 10.0  # in which both precisions take turns, after a step of each that is not timed
PRECISION_ROUNDS = 5  # at most
GIB = 2**30


@dataclass(frozen=True)
class Forecast:
    """What a training costs, as a trial of a few steps says."""

    step_seconds: tuple[float, ...]  # of each stage
    validation_seconds: float  # of one validation; 0 without validation cases
    training_hours: float  # steps and validations; scans are prepared before
    ram_gib: float
    gpu_gib: float | None  # None on a CPU
    disk_gib: float  # checkpoints, model, and the scans that are not prepared yet
    store_gib: float = 0.0  # these scans alone

    def to_text(self) -> str:
        """One line."""
        gpu = "" if self.gpu_gib is None else f", GPU memory {self.gpu_gib:.1f} GiB"
        steps = " and ".join(f"{1000 * seconds:.0f} ms" for seconds in self.step_seconds)
        return (
            f"{duration(3600 * self.training_hours)} ({steps} a step), memory {self.ram_gib:.1f} GiB{gpu}, "
            f"disk {self.disk_gib:.2f} GiB"
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**asdict(self), "step_seconds": list(self.step_seconds)}


@dataclass(frozen=True)
class Cohort:
    """What a forecast has to know of the data."""

    facts: Facts
    label_space: LabelSpace
    validation_cases: int
    cases_to_prepare: int


class _EnoughError(Exception):
    """Ends a trial."""


def measure(config: RunConfig, cohort: Cohort, fabric: Fabric) -> Forecast | None:
    """Try every stage of a training for some steps. None if a loss was not finite before anything could be timed.

    Random numbers of the process are left as they were.

    Errors
        ResourceError   a step does not fit into the memory of the device
    """
    nets = config.nets(in_channels=cohort.facts.channels, num_classes=cohort.label_space.num_classes)
    kinds = stages_of(find_method(config.method.name))
    kinds = kinds[-1:] if config.start_from else kinds
    times, validation, state, weights = [], 0.0, 0, 0
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    with torch.random.fork_rng(devices=[]):
        for kind in kinds:
            torch.manual_seed(config.seed)
            method = kind(nets, settings_of(kind, config))
            if config.device.recompute:
                recompute_stages(method)
            seconds = _step_seconds(method, config, cohort, fabric)
            if seconds is None:
                return None
            times.append(seconds)
            validation = _validation_seconds(method, config, cohort, fabric) if cohort.validation_cases else 0
            weights = sum(t.numel() * t.element_size() for t in method.state_dict().values())
            averages = {"sgd": int(config.train.optimizer.momentum > 0)}.get(config.train.optimizer.name, 2)
            state = max(state, weights * (1 + averages))
    return Forecast(
        step_seconds=tuple(times),
        validation_seconds=validation,
        training_hours=_hours(times, validation, config),
        ram_gib=(peak_memory_bytes() + _scan_bytes(cohort, config)) / GIB,
        gpu_gib=torch.cuda.max_memory_reserved(fabric.device) / GIB if fabric.device.type == "cuda" else None,
        disk_gib=(_run_bytes(state, weights, cohort) + _store_bytes(cohort)) / GIB,
        store_gib=_store_bytes(cohort) / GIB,
    )


def precision_seconds(config: RunConfig, cohort: Cohort, fabric: Fabric) -> dict[str, float]:
    """Precision -> the shortest time of a step, forward and backward, of the last stage of a training.

    Both take turns on the same network and batch, so that other work on the machine disturbs both.

    Errors
        ResourceError   a step does not fit into the memory
    """
    nets = config.nets(in_channels=cohort.facts.channels, num_classes=cohort.label_space.num_classes)
    kind = find_method(config.method.name)
    seconds: dict[str, list[float]] = {"float32": [], "bf16": []}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        method = kind(nets, settings_of(kind, config)).to(fabric.device)
        use_fast_layout(method)
        batch = next(_batches(method, config, cohort, fabric.device, []))
        started = time.perf_counter()
        for turn in range(1 + PRECISION_ROUNDS):
            if turn > 1 and time.perf_counter() - started > PRECISION_SECONDS:
                break
            for name, times in seconds.items():
                start = time.perf_counter()
                _bare_step(method, batch, config.train.steps[-1], bf16=name == "bf16")
                times.append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def _bare_step(method: Method, batch: Batch, total: int, *, bf16: bool) -> None:
    """What of a step depends on the precision; weights stay as they are."""
    kind = batch.images.device.type
    with SafeConvolutions():
        for part in range(method.steps_per_batch):
            with torch.autocast(kind, torch.bfloat16, enabled=bf16):
                terms = method(batch, Progress(0, total, part))
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            method.zero_grad(set_to_none=True)


def with_steps(forecast: Forecast, config: RunConfig) -> Forecast:
    """The same for another number of steps."""
    return replace(
        forecast, training_hours=_hours(forecast.step_seconds, forecast.validation_seconds, config)
    )


def steps_within(forecast: Forecast, config: RunConfig, minutes: float) -> tuple[int, ...]:
    """Steps of each stage, equally many, that fit into a time with their validations.

    With `train.validate_every` a validation is due every so many steps, else once, at the end of each stage.
    """
    every = config.train.validate_every
    stages = len(forecast.step_seconds)
    left = 60 * minutes - (0 if every else stages * forecast.validation_seconds)
    each = sum(forecast.step_seconds) + (stages * forecast.validation_seconds / every if every else 0)
    return (max(int(left / each), 0),) * stages


def peak_memory_bytes() -> int:
    """The most memory that this process has had; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _hours(times: list[float] | tuple[float, ...], validation: float, config: RunConfig) -> float:
    every = config.train.validate_every
    seconds = 0.0
    for each, steps in zip(times, config.train.steps, strict=True):
        validations = steps // every + bool(steps % every) if every else 1
        seconds += steps * each + validations * validation
    return seconds / 3600


def _step_seconds(method: Method, config: RunConfig, cohort: Cohort, fabric: Fabric) -> float | None:
    """Median time of a step, with its batch."""
    ends: list[float] = []
    started = time.perf_counter()

    def report(task: str, done: int, total: int, message: str = "") -> None:
        ends.append(time.perf_counter())
        if len(ends) > WARM_UP + 2 and ends[-1] - started > MOST_SECONDS:
            raise _EnoughError

    loading: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(
            method=method,
            batches=lambda _: _batches(method, config, cohort, fabric.device, loading),
            steps=MOST_STEPS,
            folder=Path(folder),
            settings={},
            seed=config.seed,
        )
        try:
            fit(stage, replace(config.train, log_every=1, checkpoint_minutes=inf, loggers=()), fabric, report)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                "the memory of the device is too small for a step of this training",
                found=str(error).partition("\n")[0],
                do="set a smaller sampling.patch_size, or fewer sampling.labelled_cases and unlabelled_cases",
            ) from error
        except (_EnoughError, TrainingError):
            pass
    steps = np.diff(ends)[WARM_UP - 1 :]
    if not len(steps):
        return None
    whole = float(statistics.median(steps))
    if not config.workers:
        return whole
    batch = config.train.accumulate * float(
        statistics.median(loading)
    )  # other processes make batches while the device computes
    return max(whole - batch, batch / config.workers)


def _batches(
    method: Method, config: RunConfig, cohort: Cohort, device: torch.device, seconds: list[float]
) -> Iterator[Batch]:
    """Endless batches like those of the training, without reading a scan; notes how long each took."""
    sampling, space = config.sampling, cohort.label_space
    unlabelled = sampling.unlabelled_cases if "none" in method.card.learns_from else 0
    count, dims = sampling.labelled_cases + unlabelled, sampling.dims
    known = space.structures if cohort.facts.complete else space.structures[:1]
    rows = [space.annotated(known if row < sampling.labelled_cases else ()) for row in range(count)]
    annotated = torch.stack(rows)
    on_host = tuple(tuple(row) for row in annotated.tolist())
    size = config.augment.read_size(sampling.patch_size)[:dims]
    generator = Generator().manual_seed(config.seed)
    spacing_mm = torch.tensor([cohort.facts.spacing_mm] * count)
    functions = method.extra_targets()
    while True:
        start = time.perf_counter()
        images = torch.randn(count, cohort.facts.channels, *size, generator=generator)
        labels = _boxes(annotated, size)
        targets = {
            name: torch.as_tensor(
                function(labels.numpy(), annotated.numpy(), spacing_mm[:, :dims].double().numpy())
            ).float()
            for name, function in functions.items()
        }
        views = augment(
            Views(images, labels, targets), config.augment, generator,
            patch_size=sampling.patch_size, spacing_mm=spacing_mm,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        yield Batch(
            views.images.to(device),
            views.labels.long().to(device),
            annotated.to(device),
            tuple(f"case {row}" for row in range(count)),
            {name: target.to(device) for name, target in views.targets.items()},
            on_host,
        )


def _boxes(annotated: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, *size) uint8: each annotated structure is a box in another place; IGNORE where nothing is annotated."""
    labels = torch.full((len(annotated), *size), IGNORE, dtype=torch.uint8)
    for case, row in zip(labels, annotated.tolist(), strict=True):
        structures = [index for index, known in enumerate(row) if known and index]
        if structures:
            case.zero_()
        for place, index in enumerate(structures):
            low = [length * place // len(structures) for length in size]
            high = [
                max(a + 1, length * (place + 1) // len(structures))
                for a, length in zip(low, size, strict=True)
            ]
            case[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = index
    return labels


def _validation_seconds(method: Method, config: RunConfig, cohort: Cohort, fabric: Fabric) -> float:
    """Time of one validation: a timed window, times the windows of all validation cases."""
    inference = config.inference
    window = inference.window_for(config.sampling.patch_size)
    image = torch.zeros(cohort.facts.channels, *window)

    def one() -> float:
        start = time.perf_counter()
        predict_labels(
            method.predictor(), image, config.sampling.patch_size,
            num_classes=cohort.label_space.num_classes, config=inference, device=fabric.device,
        )  # fmt: skip
        return time.perf_counter() - start

    one()
    windows = WindowGrid.of(
        [max(a, b) for a, b in zip(cohort.facts.shape, window, strict=True)],
        window, inference.stride, inference.overlap,
    ).num_windows  # fmt: skip
    return min(one(), one()) * windows * cohort.validation_cases


def _scan_bytes(cohort: Cohort, config: RunConfig) -> float:
    """Memory of the validation of the largest scan beside the training: image, scores of a slab, labels."""
    if not cohort.validation_cases:
        return 0.0
    x, y, z = cohort.facts.largest
    voxels = x * y * z
    window = config.inference.window_for(config.sampling.patch_size)
    slab = min(1.0, max(p / n for p, n in zip(window, cohort.facts.largest, strict=True)))
    return voxels * (8.0 * cohort.facts.channels + 4 * slab * cohort.label_space.num_classes + 4)


def _store_bytes(cohort: Cohort) -> float:
    x, y, z = cohort.facts.shape
    return cohort.cases_to_prepare * x * y * z * VOXEL_BYTES * STORED * cohort.facts.channels


def _run_bytes(state: int, weights: int, cohort: Cohort) -> float:
    checkpoints = 2 if cohort.validation_cases else 1
    return checkpoints * state + weights
