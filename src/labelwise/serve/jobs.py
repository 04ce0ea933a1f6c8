"""Jobs: a scan each, segmented one after the other by the worker that holds the device.

All that belongs to a job lies in one folder. The scan is removed when the job ends, the folder when nobody wants the
result, or has not asked for it in time.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from labelwise.errors import DataError, LabelwiseError, ResourceError
from labelwise.serve.audit import Audit
from labelwise.serve.limits import Limits
from labelwise.serve.scans import Scans
from labelwise.serve.worker import Facts, Worker, WorkerDiedError, told

State = Literal["arriving", "waiting", "running", "done", "failed", "cancelled"]
SCAN, RESULT = "scan", "result"  # folders of a job
PAGE = "page.html"  # of a result, in its folder

_TICK_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # for which a cancelled job may go on before the worker is replaced
_MOST_DEATHS = 2  # of the worker over one job


@dataclass
class Job:
    """One scan, from the first byte of its request to its result."""

    id: str  # that nobody can guess
    folder: Path
    model: Facts = field(default_factory=dict)
    request: Facts = field(default_factory=dict)
    state: State = "arriving"
    done: int = 0  # windows
    total: int = 0
    deaths: int = 0  # of the worker over this job
    facts: Facts = field(default_factory=dict)  # of the result
    error: Facts | None = None
    unwanted: bool = False
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has its last state."""
        return self.ended is not None


class Jobs:
    """All jobs of a server, and the thread that hands them to the worker."""

    def __init__(self, root: Path, worker: Worker, models: list[Facts], limits: Limits, audit: Audit):
        self.models = {model["name"]: model for model in models}
        self.limits, self.root = limits, root
        self.scans = Scans(root, limits)
        self._worker, self._audit = worker, audit
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="device queue")
        self._thread.start()

    def arrive(self) -> Job:
        """A job whose scan is being sent.

        Errors
            ResourceError   as many scans as are allowed are being sent or wait
        """
        with self._change:
            queued = sum(job.state in ("arriving", "waiting") for job in self._jobs.values())
            if queued >= self.limits.waiting:
                raise ResourceError(
                    "the server has enough to do",
                    found=f"{queued} scans that wait",
                    do="send this scan again later",
                    code="busy",
                )
            name = secrets.token_urlsafe(16)
            job = Job(name, self.root / name)
            job.folder.mkdir(mode=0o700)
            self._jobs[job.id] = job
        return job

    def submit(self, job: Job, model: Facts, **request: Any) -> None:
        """The scan of a job lies in its folder: it waits for the device now."""
        with self._change:
            job.model = model
            job.request = {"job": job.id, "model": model.get("name"), "folder": str(job.folder), **request}
            job.state = "waiting"
            self._waiting.append(job)
            self._change.notify()

    def discard(self, job: Job) -> None:
        """A job whose scan did not arrive, or whose result nobody wants: nothing is left of it."""
        with self._change:
            self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)

    def find(self, name: str) -> Job:
        """The job of an id.

        Errors
            DataError   there is none, or its result was kept long enough
        """
        with self._change:
            job = self._jobs.get(name)
        if job is None or job.state == "arriving":
            raise DataError("there is no such job, or its result has expired", code="not-found")
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs the device does before this one."""
        with self._change:
            if job not in self._waiting:
                return 0
            running = sum(other.state == "running" for other in self._jobs.values())
            return self._waiting.index(job) + running

    def cancel(self, job: Job) -> None:
        """Stop a job that waits or runs; forget one that has ended."""
        with self._change:
            job.unwanted = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, {"cancelled": job.id})
        if job.state in ("done", "failed"):
            self.discard(job)

    def close(self) -> None:
        """Stop at once: what runs is given up."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()
        self._worker.kill()

    def _run(self) -> None:
        while not self._closing:
            self._expire()
            with self._change:
                if not self._waiting:
                    self._change.wait(1.0)
                    continue
                job = self._waiting.popleft()
                job.state = "running"
            outcome = self._outcome(job)
            with self._change:
                self._end(job, outcome)

    def _outcome(self, job: Job) -> Facts:
        """What the worker says at the end; it is replaced where it dies, and is given the scan once more."""
        while job.deaths < _MOST_DEATHS:
            try:
                if not self._worker.is_alive():
                    self._worker.start()
                self._worker.send(job.request)
                return self._followed(job)
            except LabelwiseError as error:  # the models cannot be loaded any more
                return {"failed": told(error)}
            except WorkerDiedError:
                job.deaths += 1
                job.done = 0
                self._worker.kill()
                self._audit.write("worker died", job=job.id)
        too_often = ResourceError(
            f"the process with the models died {job.deaths} times over this scan",
            do="send a smaller scan, or look into the memory of the server",
            code="worker-died",
        )
        return {"failed": told(too_often)}

    def _followed(self, job: Job) -> Facts:
        limit, stop = time.monotonic() + self.limits.seconds, None
        while True:
            message = self._worker.receive(_TICK_SECONDS)
            now = time.monotonic()
            if message is not None and "progress" in message:
                job.done, job.total = message["progress"]
            elif message is not None:
                return message
            self._expire()
            if job.unwanted and stop is None:
                self._worker.send({"cancel": job.id})
                stop = now + _GRACE_SECONDS
            if self._closing or (stop is not None and now > stop):
                self._worker.kill()
                return {"cancelled": job.id}
            if now > limit:
                self._worker.kill()
                error = ResourceError(
                    f"the scan took longer than {self.limits.seconds:g} seconds",
                    do="send a smaller scan, or ask for a higher limit",
                    code="too-slow",
                )
                return {"failed": told(error)}

    def _end(self, job: Job, outcome: Facts) -> None:
        shutil.rmtree(job.folder / SCAN, ignore_errors=True)
        job.facts, job.error = outcome.get("done", {}), outcome.get("failed")
        job.ended = time.monotonic()
        job.state = "done" if "done" in outcome else "failed" if "failed" in outcome else "cancelled"
        if job.unwanted:
            job.state = "cancelled"
        if job.state != "done":
            shutil.rmtree(job.folder, ignore_errors=True)
        self._audit.write(
            "job",
            job=job.id,
            model=job.model.get("name"),
            model_id=job.model.get("id"),
            seconds=round(job.ended - job.begun, 3),
            outcome=job.state,
            code=job.error["code"] if job.error else None,
            worker_deaths=job.deaths or None,
        )

    def _expire(self) -> None:
        self.scans.expire()
        now = time.monotonic()
        with self._change:
            old = [
                job
                for job in self._jobs.values()
                if job.ended is not None and now - job.ended > self.limits.keep_seconds
            ]
        for job in old:
            self.discard(job)
