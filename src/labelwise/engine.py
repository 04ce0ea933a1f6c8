"""Where independent jobs run: in this process, in local processes, on a Dask cluster, or as jobs of SLURM.

Every cohort job (check, prepare, predict, evaluate) is a list of independent items. They are handed to a
`concurrent.futures.Executor`, results come back in the order in which they finish, and an item that
fails is an outcome, not the end of the job.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from math import ceil, inf
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import labelwise
from labelwise.atomic import explained
from labelwise.errors import ConfigError, LabelwiseError, ResourceError
from labelwise.plugins import import_extra

logger = logging.getLogger("labelwise")

_SCHEDULER_SECONDS = 10  # to find a scheduler, and between two words about missing workers
_WATCH_SECONDS = 1.0
# Looks at a job of SLURM that is neither queued nor running, until it is given up: a result may be seen late on a file
# system that several machines share.
_LOOKS = 12
_LOST = (
    "KilledWorker",
    "CancelledError",
    "FutureCancelledError",
    "CommClosedError",
    # of the package submitit
    "FailedJobError",
    "UncompletedJobError",
)
SLURM = "slurm"
_DAY = 24 * 60  # minutes that a job of SLURM may take where nobody says; submitit's own five are for tests
_TIMES = 20  # times that a job whose time is over goes into the queue again
_NOTHING: Mapping[str, Any] = {}
_place: str | None = None  # of a worker process: which of the places of its engine it got

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """One finished item: either a result or the error that a user should read."""

    item: Item
    result: Result | None = None
    error: LabelwiseError | None = None


class InThisProcess(Executor):
    """An executor that runs each job at once, here: for one worker, for tests, for a debugger."""

    def submit(self, fn: Callable[..., Result], /, *args: object, **kwargs: object) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor hands every exception to its future
            future.set_exception(error)
        return future


def available_cpus() -> int:
    """CPUs this process may use: by its affinity and by the time that its container or job allows, not the host's."""
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, ceil(min(given, _allowed_cpus())))


def _allowed_cpus(root: Path = Path("/")) -> float:
    """CPUs that the time of this process's control groups allows, which Docker and Kubernetes limit; inf: all.

    A group is limited by those above it, too. See "cgroup-v2" and "sched-bwc" of the kernel's documentation.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return inf
    allowed = inf
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            mounts = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"]
            names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        elif not controllers:  # version 2
            mounts, names = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], ["cpu.max"]
        else:
            continue
        for mount, above in product(mounts, (PurePosixPath(path), *PurePosixPath(path).parents)):
            # In a container the group may be mounted as the root: what is not there limits nothing.
            folder = root / mount / above.relative_to("/")
            with suppress(OSError, ValueError):  # "max", or a limit of -1: none
                quota, period = " ".join(
                    (folder / name).read_text(encoding="utf-8") for name in names
                ).split()
                allowed = min(allowed, int(quota) / int(period) if int(quota) > 0 else inf)
    return allowed


def default_workers() -> int:
    """Number of processes where none is asked for: LABELWISE_WORKERS, else all CPUs.

    Errors
        ConfigError     LABELWISE_WORKERS is not a number above 0
    """
    text = os.environ.get("LABELWISE_WORKERS", "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise ConfigError("LABELWISE_WORKERS must be a number of processes", found=text, expected="1 or more")
    return int(text) if text else available_cpus()


@contextmanager
def executor(
    engine: str = "local",
    workers: int | None = None,
    shared: Sequence[Path] = (),
    *,
    apart: bool = False,
    places: Sequence[str] = (),
    slurm: Mapping[str, Any] = _NOTHING,
) -> Iterator[Executor]:
    """The executor for `engine`.

    local               processes; this process if workers is 1, unless they must be `apart`. With `places` one process
                        for each of them, whose jobs ask `own_place` for its name
    dask://host:port    the workers of a running Dask scheduler
    slurm               a job of SLURM each, with the settings `slurm` of submitit; ``slurm:local`` does the same in
                        processes of this machine, to try it

    `shared` are folders that workers on other machines must see under the same paths; logs of SLURM go to the first.

    Errors
        ConfigError     no such engine, or settings that submitit does not know
        ResourceError   no package or no scheduler; a worker that does not see a shared folder, or runs other code
    """
    if engine.partition(":")[0] == SLURM:
        with _on_slurm(engine.partition(":")[2] or SLURM, shared, slurm) as jobs:
            yield jobs
        return
    if engine.startswith("dask://"):
        distributed = import_extra("distributed", "cluster", "the Dask engine needs the extra 'cluster'")
        with _client(distributed, "tcp://" + engine.removeprefix("dask://")) as client:
            cluster = OnDask(client, tuple(str(path) for path in shared))
            cluster.check_cluster()
            yield cluster
        return
    if engine != "local":
        raise ConfigError(
            f"unknown engine '{engine}'", expected="local, slurm or dask://host:port", code="unknown-name"
        )
    workers = len(places) or workers or default_workers()
    if workers == 1 and not apart:
        yield InThisProcess()
        return
    # Spawned, not forked: torch's and blosc2's threads do not survive a fork.
    # Ctrl-C reaches all processes at once: this one decides what it means.
    context = get_context("spawn")
    free = context.SimpleQueue()
    for place in places or [""] * workers:
        free.put(place)
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(free,)) as pool:
        try:
            yield pool
        except BaseException:  # nobody waits for the rest any more: only what has begun is finished
            pool.shutdown(cancel_futures=True)
            raise


def run_jobs(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    engine: str = "local",
    workers: int | None = None,
    shared: Sequence[Path] = (),
    apart: bool = False,
    places: Sequence[str] = (),
    slurm: Mapping[str, Any] = _NOTHING,
) -> Iterator[Outcome[Item, Result]]:
    """Apply `function` to every item and yield outcomes as they finish.

    `function` must be picklable (a module-level function or a `functools.partial` of one).
    LabelwiseError, OSError and MemoryError become outcomes; anything else is a defect of the program and is
    raised.
    """
    if not items:
        return
    workers = min(workers or default_workers(), len(items))
    with executor(engine, workers, shared, apart=apart, places=places[: len(items)], slurm=slurm) as pool:
        if isinstance(pool, InThisProcess):  # one by one, so that progress is seen while it is made
            for item in items:
                yield _outcome(item, pool.submit(function, item))
            return
        futures = {pool.submit(function, item): item for item in items}
        for future in _as_completed(futures, pool.client if isinstance(pool, OnDask) else None):
            yield _outcome(futures[future], future)


def _outcome(item: Item, future: Future[Result]) -> Outcome[Item, Result]:
    try:
        return Outcome(item, result=future.result())
    except LabelwiseError as error:
        return Outcome(item, error=error)
    except MemoryError as error:
        what = f"memory ran out: {error}" if str(error) else "memory ran out"
        return Outcome(item, error=ResourceError(what, do="repeat the command with fewer --workers"))
    except BrokenExecutor as error:
        raise ResourceError(
            "a worker process has died, most often because memory ran out",
            do="repeat the command with fewer --workers or devices, finished work is kept; a script of your own must "
            "call labelwise below `if __name__ == '__main__':`, because each worker imports it",
            code="out-of-memory",
        ) from error
    except OSError as error:
        return Outcome(item, error=ResourceError.from_os_error(error))
    except Exception as error:  # of a package that is not always there
        if type(error).__name__ not in _LOST:
            raise
        return Outcome(
            item,
            error=ResourceError(
                "the workers of the cluster died over this item, most often because memory ran out",
                found=f"{type(error).__name__}: {error}".partition("\n")[0],
                do="give the workers more memory (dask worker --memory-limit) and repeat the command",
            ),
        )


def follow_parent(parent: int) -> None:
    """End this process as soon as the one that started it is gone, however it ended: else it would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def own_place() -> str | None:
    """Of the `places` of a local engine the one of this process; None if it has none."""
    return _place


def _begin_worker(free: SimpleQueue[str]) -> None:
    global _place
    _place = free.get() or None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one decides
    follow_parent(os.getppid())


@dataclass(frozen=True)
class _Again:
    """A function as a job of SLURM: begun again after its time limit, and its errors handed back as they are."""

    function: Callable[..., Any]

    def __call__(self, *args: object) -> tuple[Any, BaseException | None]:
        try:
            return self.function(*args), None
        except (LabelwiseError, OSError, MemoryError) as error:  # submitit would keep their text only
            return None, error

    def checkpoint(self, *args: object) -> Any:
        """Asked by submitit when the time of the job is over: the same once more, which goes on where it was."""
        return importlib.import_module("submitit.helpers").DelayedSubmission(self, *args)


@dataclass
class OnSlurm(Executor):
    """Jobs of submitit as an executor; a thread looks when they are done."""

    executor: Any
    seconds: float = 5.0  # between two looks
    _waiting: list[tuple[Any, Future[Any]]] = field(default_factory=list)
    _missing: dict[str, int] = field(
        default_factory=dict
    )  # job -> looks in a row in which SLURM did not know it
    _watcher: threading.Thread | None = None

    def submit(self, fn: Callable[..., Result], /, *args: object, **kwargs: object) -> Future[Result]:
        future: Future[Result] = Future()
        job = self.executor.submit(_Again(fn), *args)
        logger.info("job %s of SLURM, with its log in %s", job.job_id, job.paths.folder)
        self._waiting.append((job, future))
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return future

    def cancel(self) -> None:
        """End what is not done."""
        for job, future in self._waiting:
            if not future.done():
                job.cancel()

    def _watch(self) -> None:
        while True:
            for job, future in [pair for pair in self._waiting if not pair[1].done()]:
                if not job.done():
                    if self._is_gone(job):
                        future.set_exception(
                            ResourceError(
                                "a job of SLURM ended without a result: cancelled, or over its memory",
                                found=f"job {job.job_id}",
                                file=job.paths.stderr,
                                do="read its log, give jobs more under [slurm], and repeat the command",
                            )
                        )
                    continue
                try:
                    # Of each task, as the ranks of a training are; what one of them could not do, none has done.
                    answers = job.results()
                    result, error = next((one for one in answers if one[1] is not None), answers[0])
                except Exception as failure:  # noqa: BLE001 - an executor hands every exception to its future
                    result, error = None, failure
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            time.sleep(self.seconds)

    def _is_gone(self, job: Any) -> bool:
        """Whether a job ended otherwise than by a result, where no accounting (sacct) tells its state."""
        if job.state.upper() != "UNKNOWN":
            return False
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job.job_id], capture_output=True, check=False
        )
        unknown = b"Invalid job id" in asked.stderr or (not asked.returncode and not asked.stdout.strip())
        self._missing[job.job_id] = self._missing.get(job.job_id, 0) + 1 if unknown else 0
        return self._missing[job.job_id] >= _LOOKS


@contextmanager
def _on_slurm(cluster: str, shared: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[OnSlurm]:
    submitit = import_extra("submitit", "slurm", "jobs of SLURM need the extra 'slurm'")
    if cluster not in (SLURM, "local"):
        raise ConfigError(
            f"unknown engine 'slurm:{cluster}'", expected="slurm or slurm:local", code="unknown-name"
        )
    logs = (shared[0] if shared else Path()) / SLURM
    try:
        given = {"timeout_min": _DAY, "slurm_max_num_timeout": _TIMES, **settings}
        again = given.pop("slurm_max_num_timeout")  # the only one that is not told later
        submitter = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=again)
        submitter.update_parameters(**given)
    except (RuntimeError, TypeError, NameError, ValueError) as error:
        what = "submitit refuses to make jobs of SLURM"
        raise ConfigError(
            what,
            found=str(error).partition("\n")[0],
            do="run on a machine with sbatch, and correct the settings",
        ) from error
    jobs = OnSlurm(submitter, 5.0 if cluster == SLURM else 0.2)
    try:
        yield jobs
    except BaseException:
        jobs.cancel()
        raise


def _client(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=_SCHEDULER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise ResourceError(
            "there is no Dask scheduler at this address",
            found=address,
            expected="dask://HOST:PORT of a running `dask scheduler`",
            do="start one, or leave out --engine",
        ) from error


@cache
def own_code() -> str:
    """The code that this process runs: version and a digest of the source, as they were when it was first asked."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return f"labelwise {labelwise.__version__} (source {digest.hexdigest()[:8]})"


@dataclass(frozen=True)
class _Alike:
    """A function that a worker does only if it sees the shared folders and runs the code of who asks for it."""

    function: Callable[..., Any]
    shared: tuple[str, ...]
    code: str

    def __call__(self, *args: object) -> Any:
        if (error := self.unlike()) is not None:
            raise error
        return self.function(*args)

    def unlike(self) -> ResourceError | None:
        """What speaks against doing it in this process: it would write beneath itself, or compute something else."""
        host = f"on {platform.node()}"
        for path in self.shared:
            if not Path(path).is_dir():
                return ResourceError(
                    "a worker of the cluster does not see a folder that all must share",
                    file=path,
                    found=host,
                    do="mount the folder on every machine under the same path, or move the data to where all see it",
                )
        return None if own_code() == self.code else _other_code(f"{own_code()} {host}", self.code)


def _other_code(found: str, expected: str) -> ResourceError:
    return ResourceError(
        "the cluster runs other code than this command",
        found=found,
        expected=expected,
        do="install this version where the scheduler and the workers run, and start them anew",
    )


@dataclass
class OnDask(Executor):
    """The workers of a Dask cluster. They are asked before the first job; one that comes later, at its first job."""

    client: Any
    shared: tuple[str, ...]

    def __post_init__(self) -> None:
        self._jobs: Executor = self.client.get_executor()

    def submit(self, fn: Callable[..., Result], /, *args: object, **kwargs: object) -> Future[Result]:
        return self._jobs.submit(_Alike(fn, self.shared, own_code()), *args)

    def check_cluster(self) -> None:
        """Refuse a worker that does not see what the others see, and whoever does not run the same code."""
        for path in self.shared:
            with explained(Path(path)):
                Path(path).mkdir(parents=True, exist_ok=True)
        question = _Alike(len, self.shared, own_code())
        answers = self.client.run(question.unlike, on_error="return")
        try:  # the scheduler unpacks jobs, but opens no folder
            answers["the scheduler"] = self.client.run_on_scheduler(replace(question, shared=()).unlike)
        except Exception as error:  # noqa: BLE001 - whatever happened there comes as it is
            answers["the scheduler"] = error
        for place, answer in answers.items():
            if isinstance(answer, LabelwiseError):
                raise answer.but(found=f"{answer.found}: {place}")
            if isinstance(answer, Exception):  # it has no labelwise, or one without this question
                raise _other_code(f"{place}: {answer}", own_code())


def _as_completed(futures: Iterable[Future[Result]], client: Any) -> Iterator[Future[Result]]:
    """As `as_completed`; while a cluster has no worker, it says so instead of waiting in silence."""
    waiting, patience = set(futures), _SCHEDULER_SECONDS if client is not None else None
    while waiting:
        done, waiting = wait(waiting, timeout=patience, return_when=FIRST_COMPLETED)
        yield from done
        if not done and client is not None and not client.scheduler_info()["workers"]:
            logger.warning(
                "waiting: no worker is connected to the Dask scheduler; start one: dask worker ADDRESS"
            )
