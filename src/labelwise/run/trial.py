"""A trial: one run of a comparison, trained, predicted and scored; and many of them, side by side."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from labelwise.atomic import write_text
from labelwise.config import RunConfig
from labelwise.console import ShowProgress, silent
from labelwise.engine import Outcome, available_cpus, run_jobs
from labelwise.errors import DataError, LabelwiseError, ResourceError, TrainingError
from labelwise.evaluate.scores import Score
from labelwise.lock import only_writer
from labelwise.run.evaluate import evaluate
from labelwise.run.predict import predict
from labelwise.run.train import train

FAILED = "failed.txt"  # what a defect said, in the folder of its run
CPUS_OF_A_RUN = 4  # more make a training of patches hardly faster
_ALONE = threading.Lock()  # random numbers belong to the process: two trainings in it would mix theirs


@dataclass(frozen=True)
class Trial:
    """What is trained, where, and what it is scored on."""

    name: str
    config: RunConfig
    folder: Path
    data: Path  # manifest, as `config.data`
    split: str = "test"


Kind = TypeVar("Kind", bound=Trial)


def train_trial(trial: Trial, progress: ShowProgress = silent) -> float | None:
    """Train, or go on with it; the seconds that it took, None if it was interrupted."""
    start = time.perf_counter()
    interrupted = train(trial.config, trial.folder, progress=progress).interrupted
    return None if interrupted else time.perf_counter() - start


def score_trial(
    trial: Trial,
    predictions: Path,
    evaluations: Mapping[Path, Mapping[str, Any]],
    *,
    classifier: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: ShowProgress = silent,
) -> dict[Path, tuple[Score, ...]]:
    """Predict the scans of the trial's split, and score them by each evaluation: table -> arguments of `evaluate`.

    Classifier, settings and overwrite are those of `predict`.

    Errors
        DataError   a scan that could not be segmented
    """
    predicted = predict(
        trial.folder, trial.data, predictions, split=trial.split, classifier=classifier, settings=settings,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip
    if predicted.failed:
        raise DataError(f"{len(predicted.failed)} scans could not be segmented\n{predicted.to_text()}")
    return {
        table: evaluate(predictions, trial.data, table, split=trial.split, progress=progress, **rules).scores
        for table, rules in evaluations.items()
    }


def side_by_side() -> int:
    """How many runs this machine trains at a time: one for each GPU, else one for every four CPUs."""
    return torch.cuda.device_count() or max(1, available_cpus() // CPUS_OF_A_RUN)


def perform_all(
    trials: Sequence[Kind],
    perform: Callable[..., bool],
    *,
    folder: Path,
    engine: str = "local",
    workers: int | None = None,
    slurm: Mapping[str, Any] | None = None,
    progress: Callable[[str], ShowProgress] = lambda name: silent,
) -> Generator[Outcome[Kind, bool], None, None]:
    """Do all trials, as many at a time as `workers` says or the machine allows, and yield what became of each.

    Whatever ends a trial is its outcome and stops no other one, also a defect of a method or a process that is killed
    because memory ran out. Local runs get their part of the processors, and a GPU of their own if there are several.

    Arguments
        perform     does what is left of a trial, and returns False if it was interrupted: a function of the trial and
                    its `progress`, in a module, because other processes are sent it
        folder      that holds all that is written; workers on other machines must see it
        workers     runs at a time, of the engine local
        progress    name of a trial -> its progress, which trials in other processes do not show
    """
    if engine == "local":
        yield from _locally(trials, perform, folder, min(workers or side_by_side(), len(trials)), progress)
        return
    job = partial(_apart, perform=perform, folder=folder, threads=None, gpus=0)
    yield from run_jobs(job, trials, engine=engine, shared=[folder.absolute()], slurm=slurm or {})


def _locally(
    trials: Sequence[Kind],
    perform: Callable[..., bool],
    folder: Path,
    workers: int,
    progress: Callable[[str], ShowProgress],
) -> Iterator[Outcome[Kind, bool]]:
    if workers <= 1:
        yield from run_jobs(partial(_here, perform=perform, progress=progress), trials, workers=1)
        return
    threads = max(1, min(torch.get_num_threads(), available_cpus() // workers))
    job = partial(_apart, perform=perform, folder=folder, threads=threads, gpus=torch.cuda.device_count())
    waiting = list(trials)
    try:
        for outcome in run_jobs(job, trials, workers=workers):
            waiting.remove(outcome.item)
            yield outcome
    except ResourceError as error:  # a process died, and nobody knows over which of the trials
        if error.code != "out-of-memory":
            raise
        for trial in waiting:
            try:
                yield from run_jobs(job, [trial], workers=1, apart=True)
            except ResourceError as alone:
                yield Outcome(trial, error=alone)


def _here(trial: Kind, *, perform: Callable[..., bool], progress: Callable[[str], ShowProgress]) -> bool:
    return _guarded(trial, perform=perform, progress=progress(trial.name))


def _apart(
    trial: Kind, *, perform: Callable[..., bool], folder: Path, threads: int | None, gpus: int
) -> bool:
    """A trial in a process beside others."""
    # Its own jobs (scans to prepare and to score) must not start as many processes as the machine has processors.
    os.environ["LABELWISE_WORKERS"] = str(threads or 1)
    if threads:
        torch.set_num_threads(threads)
    with _ALONE, _gpu(trial, folder, gpus) as placed:
        return _guarded(placed, perform=perform, progress=silent)


def _guarded(trial: Kind, *, perform: Callable[..., bool], progress: ShowProgress) -> bool:
    """A trial whose defects, of a method from another package perhaps, are its error and not the end of all."""
    note = trial.folder / FAILED
    try:
        done = perform(trial, progress=progress)
    except (LabelwiseError, OSError, MemoryError):
        raise
    except Exception as error:
        write_text(note, traceback.format_exc())
        raise TrainingError(
            f"the run ended with a defect: {type(error).__name__}: {error}".partition("\n")[0], file=note
        ) from error
    note.unlink(missing_ok=True)
    return done


@contextmanager
def _gpu(trial: Kind, folder: Path, gpus: int) -> Iterator[Kind]:
    """The trial on a GPU that no other process of this folder uses, if there are several and it may choose."""
    with ExitStack() as held:
        for number in range(gpus if gpus > 1 and trial.config.device.device == "auto" else 0):
            try:
                held.enter_context(only_writer(folder / "gpus" / str(number)))
            except ResourceError:
                continue
            device = replace(trial.config.device, device=f"cuda:{number}")
            trial = replace(trial, config=replace(trial.config, device=device))
            break
        yield trial
