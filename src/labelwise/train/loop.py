"""The training loop: ignorant of every method and every data set.

    for step in range(start, total):
        terms = method(next batch, progress)
        minimise their sum; method.after_step(progress)

Every random number of step t is drawn from generators seeded by (seed, rank, t). Together with the
stateless sampler this makes a resumed run equal to an uninterrupted one, bit by bit on the CPU.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import torch
from lightning_fabric import Fabric
from pydantic import ConfigDict, Field
from pydantic import dataclasses as pydantic_dataclasses
from torch import Tensor, nn

from labelwise.atomic import discard_leftovers
from labelwise.components.teachers import renew_teachers
from labelwise.console import ShowProgress
from labelwise.devices import SafeConvolutions
from labelwise.errors import TrainingError
from labelwise.methods.base import Method
from labelwise.train.average import AveragedWeights
from labelwise.train.checkpoint import check_continues, load_checkpoint, save_checkpoint
from labelwise.train.distributed import Agreement, lost_rank_explained, mean_over_ranks, precision_of, set_up
from labelwise.train.loggers import open_loggers
from labelwise.train.record import PICTURES, Record
from labelwise.train.schedule import OptimizerConfig, ScheduleConfig, build_optimizers, set_rate
from labelwise.types import Batch, Progress

STATISTICS_BATCHES = 16  # of which an averaged network takes its statistics of batch norm
logger = logging.getLogger("labelwise")

LAST, BEST = "last.safetensors", "best.safetensors"
GENTLER = "lower train.optimizer.rate, set train.clip_gradient = 12, or device.precision = 'float32'"
TAMER = "run `labelwise check`: most often a scan has intensities far from all others; or " + GENTLER


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LoopConfig:
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (
        6000,
    )  # optimiser steps, one number for each stage of the method
    # batches whose gradients are averaged for one step: a large batch in the memory of a small one
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    # largest norm of all gradients of an optimiser
    clip_gradient: Annotated[float, Field(gt=0)] | None = None
    # half-life of the running average of weights that is validated and kept, as a part of the training; 0: none,
    # the weights of the last step are kept
    average: Annotated[float, Field(ge=0, lt=0.1)] = 0.0
    log_every: Annotated[int, Field(ge=1)] = 10  # steps between two lines of the log
    validate_every: Annotated[int, Field(ge=0)] = 0  # steps between two validations; 0: only at the end
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 1.0  # at most this much work is lost to a kill
    # validation cases of which every validation leaves a picture, as a file and with the loggers
    pictures: Annotated[int, Field(ge=0)] = 0
    # where the training is shown besides log.jsonl: tensorboard, mlflow, or a logger of another package
    loggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One training: what is trained, on what, for how long, and where its checkpoints go."""

    method: Method
    batches: Callable[
        [int], Iterable[Batch]
    ]  # from that of a given number on; a step takes `accumulate` of them
    steps: int
    folder: Path
    settings: Mapping[str, Any]  # plain values that a checkpoint must agree with to be continued
    seed: int = 0
    number: int = 0
    task: str = "train"  # what its progress is called
    steps_before: int = 0  # of the stages before
    run: Path | None = None  # folder of the run, for loggers; None: that of the stage
    validate: Callable[[nn.Module], float] | None = None  # predictor -> score, higher is better
    pictures: Callable[[], Mapping[str, bytes]] | None = None  # case -> WebP, of the last validation


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    step: int
    interrupted: bool
    best_score: float | None
    best_step: int | None


def fit(stage: Stage, config: LoopConfig, fabric: Fabric, progress: ShowProgress) -> Result:
    """Train until the last step, a signal, or a loss that is not finite.

    Writes ``last.safetensors`` (every `checkpoint_minutes`, at the end and when stopped by SIGINT or SIGTERM),
    ``best.safetensors`` (if there is a validation) and ``log.jsonl`` into the folder of the stage. An existing
    ``last.safetensors`` with the same settings is continued.
    """
    return _Training(stage, config, fabric, progress).run()


class _Training:
    def __init__(self, stage: Stage, config: LoopConfig, fabric: Fabric, progress: ShowProgress):
        self.stage, self.config, self.fabric, self.progress = stage, config, fabric, progress
        stage.folder.mkdir(parents=True, exist_ok=True)
        self.last, self.best = stage.folder / LAST, stage.folder / BEST
        self.optimizers = build_optimizers(
            stage.method.parameter_groups(), config.optimizer, fused=fabric.device.type == "cuda"
        )
        self.wrapped, self.steppers = set_up(fabric, stage.method, self.optimizers)
        # Every call of torch passes through SafeConvolutions: only where they are needed.
        needed = fabric.device.type == "cpu" and precision_of(fabric) == "bf16"
        self.convolutions = SafeConvolutions if needed else nullcontext
        self.average: AveragedWeights | None = None
        if config.average:
            self.average = AveragedWeights(stage.method, stage.method.predictor(), half_life=config.average)
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.scores: list[float] = []  # of all validations
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        self.step = self._resume()
        if fabric.is_global_zero:
            discard_leftovers(self.last)
            discard_leftovers(self.best)
        log = stage.folder / "log.jsonl" if fabric.is_global_zero else None
        loggers = []
        if fabric.is_global_zero:
            loggers = open_loggers(
                config.loggers, stage.run or stage.folder, step=stage.steps_before + self.step,
                settings=stage.settings.get("run", {}),
            )  # fmt: skip
        self.record = Record(
            log, keep_until=(stage.number, self.step), loggers=loggers, steps_before=stage.steps_before
        )
        self.saved_at = time.monotonic()
        self.agreement = Agreement(fabric)

    def run(self) -> Result:
        """Train; loggers are told how it ended."""
        status = "failed"
        try:
            with lost_rank_explained(self.fabric, self.last):
                result = self._run()
            status = "interrupted" if result.interrupted else "success"
            return result
        finally:
            self.record.end(status)

    def _run(self) -> Result:
        total, accumulate = self.stage.steps, self.config.accumulate
        batches = iter(self.stage.batches(self.step * accumulate))
        self.wrapped.train()
        with stop_signal() as stopped:
            (stop,) = self.agreement.any(stopped.is_set())
            while self.step < total and not stop:
                taken = tuple(islice(batches, accumulate))
                self._optimise(taken, Progress(self.step, total))
                self.step += 1
                if self.step % self.config.log_every == 0 or self.step == total:
                    self._log()
                if self._validation_is_due() or self.step == total:
                    self._renew_statistics()
                if self._validation_is_due():
                    self._validate()
                is_late = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
                stop, save = self.agreement.any(stopped.is_set(), is_late)
                if save:
                    self._require_finite()
                    self._save(self.last)
            interrupted = self.step < total
            self._require_finite()
            self._save(self.last)
        self.fabric.barrier()  # all ranks may read the checkpoint now
        return Result(self.step, interrupted, self.best_score, self.best_step)

    def _optimise(self, batches: Sequence[Batch], progress: Progress) -> None:
        torch.manual_seed(
            step_seed(self.stage.seed, self.stage.number, progress.step, self.fabric.global_rank)
        )
        set_rate(self.optimizers, self.config.schedule, progress.step, progress.total, self.scores)
        for part in range(self.stage.method.steps_per_batch):
            self._step(batches, progress._replace(part=part))
        if self.average is not None:
            self.average.follow(progress)
        self.counted += 1

    def _step(self, batches: Sequence[Batch], progress: Progress) -> None:
        """One step of the optimisers, down the mean gradient of some batches."""
        for number, batch in enumerate(batches, start=1):
            waits = self.fabric.no_backward_sync(cast(Any, self.wrapped), enabled=number < len(batches))
            # The convolutions also in the backward pass, which may compute again what the forward pass did not keep.
            with waits, self.convolutions():
                terms: dict[str, Tensor] = self.wrapped(batch, progress)
                self.fabric.backward(torch.stack(list(terms.values())).sum() / len(batches))
            for name, term in terms.items():  # summed on the device; read once per log line
                here = term.detach() / len(batches)
                self.sums[name] = self.sums[name] + here if name in self.sums else here
        if self.config.clip_gradient is not None:
            for optimizer in self.optimizers:  # each for itself: a critic must not throttle what it judges
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_gradient)
        for optimizer in self.steppers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.stage.method.after_step(progress)

    def _log(self) -> None:
        if not self.counted:
            return
        terms = {name: value / self.counted for name, value in self._finite_sums().items()}
        self.sums, self.counted = {}, 0
        loss = sum(terms.values())
        rate = self.optimizers[0].param_groups[0]["lr"]
        facts = {"stage": self.stage.number, "loss": loss, "terms": terms, "rate": rate}
        self.record.write("train", self.step, **facts)
        shown = "  ".join(f"{name} {value:z.4f}" for name, value in terms.items())
        self.progress(self.stage.task, self.step, self.stage.steps, f"loss {loss:.4f}  ({shown})")

    def _finite_sums(self) -> dict[str, float]:
        """The terms, summed over the steps since the last line of the log: the mean over all ranks.

        Errors
            TrainingError   a term is not finite; on every rank, because all see the mean
        """
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = mean_over_ranks(self.fabric, torch.stack([self.sums[name].float() for name in names]))
        sums = dict(zip(names, means.tolist(), strict=True))
        if guilty := ", ".join(name for name, value in sums.items() if not math.isfinite(value)):
            raise self._not_finite("the loss is", f"term {guilty}", GENTLER)
        return sums

    def _require_finite(self) -> None:
        """Refuse a loss, weights and running statistics that are not finite: they must not reach a checkpoint.

        A finite loss may have a gradient that is not; then the next loss would tell, but after the checkpoint. Running
        statistics have no gradient: a loss may stay finite while they make every prediction the background.
        """
        self._finite_sums()
        method = self.stage.method
        parts: dict[str, dict[str, Tensor]] = {
            "weights": dict(method.named_parameters()),
            "buffers": dict(method.named_buffers()),
        }
        for kind, tensors in parts.items():
            numbers = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
            if not numbers or torch.stack([tensor.isfinite().all() for tensor in numbers.values()]).all():
                continue
            guilty = next(name for name, tensor in numbers.items() if not tensor.isfinite().all())
            do = GENTLER if kind == "weights" else TAMER
            raise self._not_finite(f"the {kind} are", f"{kind.removesuffix('s')} {guilty}", do)

    def _not_finite(self, subject: str, found: str, do: str) -> TrainingError:
        kept = "; the last checkpoint before this is kept" if self.last.exists() else ""
        return TrainingError(
            f"{subject} not finite within the steps up to {self.step}",
            found=found,
            file=self.last if kept else None,
            do=do + kept,
            code="loss-not-finite",
        )

    def _validation_is_due(self) -> bool:
        if self.stage.validate is None:
            return False
        every = self.config.validate_every
        return self.step == self.stage.steps or (every > 0 and self.step % every == 0)

    def _renew_statistics(self) -> None:
        """Averaged networks that are now validated or kept get the batch norm statistics of their own weights."""

        def images() -> Iterator[Tensor]:
            with self.fabric.autocast():
                for batch in islice(self.stage.batches(0), STATISTICS_BATCHES):
                    yield batch.images

        with torch.random.fork_rng(devices=[]):
            renew_teachers(self.stage.method, images)
            if self.average is not None:
                self.average.renew_statistics(images)

    def _validate(self) -> None:
        assert self.stage.validate is not None
        self._require_finite()
        # Every rank validates, so none waits for long; the score and the checkpoint of rank 0 count.
        predictor = self.stage.method.predictor()
        predictor.eval()
        kept = self.average.in_place() if self.average is not None else nullcontext()
        with kept, torch.random.fork_rng(devices=[]):
            score = self.fabric.broadcast(self.stage.validate(predictor))
        self.scores.append(score)
        predictor.train()
        self.wrapped.train()
        self.record.write("validation", self.step, stage=self.stage.number, score=score)
        if self.stage.pictures is not None and self.fabric.is_global_zero:
            self.record.show(
                self.stage.pictures(), self.step, (self.stage.run or self.stage.folder) / PICTURES
            )
        if not math.isnan(score) and (self.best_score is None or score > self.best_score):
            self.best_score, self.best_step = score, self.step
            self._save(self.best)

    def _save(self, path: Path) -> None:
        sums = self._finite_sums()
        if self.fabric.is_global_zero:
            facts = {
                "stage": self.stage.number,
                "step": self.step,
                "best_score": self.best_score,
                "best_step": self.best_step,
                "scores": self.scores,
                "settings": self.stage.settings,
                "ranks": self.fabric.world_size,
                # So that the log of a resumed run is that of an uninterrupted one.
                "sums": sums,
                "counted": self.counted,
            }
            average = self.average.tensors() if self.average is not None else {}
            save_checkpoint(path, self.stage.method, self.optimizers, facts, average)
        if path == self.last:  # a run goes on from this one only
            self.saved_at = time.monotonic()

    def _resume(self) -> int:
        if not self.last.exists():
            return 0
        check_continues(self.last, self.stage.settings)
        facts = load_checkpoint(self.last, self.stage.method, self.optimizers, self.average)
        self.best_score, self.best_step = facts["best_score"], facts["best_step"]
        self.scores = list(facts.get("scores", ()))  # checkpoints of before have none
        device = self.fabric.device
        self.sums = {name: torch.tensor(value, device=device) for name, value in facts["sums"].items()}
        self.counted = int(facts["counted"])
        if facts["ranks"] != self.fabric.world_size and self.fabric.is_global_zero:
            logger.warning(
                "the run was begun by %d processes and is continued by %d: its batches are composed in another way, so "
                "the result is not that of one training without a break",
                facts["ranks"], self.fabric.world_size,
            )  # fmt: skip
        return int(facts["step"])


def step_seed(seed: int, stage: int, step: int, rank: int) -> int:
    """A seed of 63 bits, unlike that of any other (seed, stage, step, rank)."""
    value = 0
    for part in (seed, stage, step, rank):
        # One round of splitmix64 per part: neighbouring steps must not get correlated generators.
        value = (value + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second SIGINT interrupts at once. Main thread only."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, cast(Any, handler))
