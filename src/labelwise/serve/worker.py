"""The process that holds models and device. Only there is read what strangers send: if it dies, the server lives.

Server and worker exchange JSON; a request is an object with the `job` it belongs to, answered by any number of
``{"progress": [done, total]}`` and one of ``{"done": facts}``, ``{"failed": error}`` and ``{"cancelled": job}``.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from labelwise import errors
from labelwise.console import ShowProgress
from labelwise.errors import LabelwiseError, ResourceError

Facts = dict[str, Any]
Answer = Callable[[Mapping[str, Any], ShowProgress], Facts]
"""From a request, and a function that is told windows done and in all, to what is said of the result."""
Load = Callable[[], tuple[list[Facts], Answer]]
"""Loads the models in the worker: what is said of each, and the function that answers."""

_PATIENCE_SECONDS = 10.0  # for a process to end after it was asked to


class WorkerDiedError(Exception):
    """The worker ended while it was needed."""


class _CancelledError(Exception):
    """Nobody waits for this job any more."""


class Worker:
    """The worker process, seen from the server. Used by one thread at a time."""

    def __init__(self, load: Load, root: Path):
        """`root` holds all that requests have sent; the worker removes it if the server ends without doing so."""
        self._load, self._root = load, root
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The number of the process; None if there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> list[Facts]:
        """Start a process unless one runs; returns what is said of its models.

        Errors
            LabelwiseError  of the kind that loading the models raised
            ResourceError   the process ended while it loaded them
        """
        self.kill()
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._load, self._root), daemon=True)
        self._process.start()
        other.close()
        try:
            message = self._receive()
        except WorkerDiedError as error:
            raise ResourceError(
                "the process with the models ended while it loaded them",
                do="serve fewer models, or free memory",
                code="worker-died",
            ) from error
        if "failed" in message:
            self.kill()
            raise raised(message["failed"])
        models: list[Facts] = message["ready"]
        return models

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.is_alive()

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand a request, or ``{"cancel": job}``, to the process; WorkerDiedError if it has ended."""
        try:
            assert self._connection is not None
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise WorkerDiedError from error

    def receive(self, seconds: float) -> Facts | None:
        """What the process says within some seconds; WorkerDiedError if it has ended."""
        try:
            assert self._connection is not None
            return self._receive() if self._connection.poll(seconds) else None
        except OSError as error:
            raise WorkerDiedError from error

    def _receive(self) -> Facts:
        try:
            assert self._connection is not None
            message: Facts = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerDiedError from error
        return message

    def kill(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join(_PATIENCE_SECONDS)
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def told(error: LabelwiseError, folder: Path | None = None) -> Facts:
    """An error as plain values, without the names of folders of this machine."""
    hidden = f"{folder}{os.sep}" if folder is not None else ""
    names = ("what", "file", "found", "expected", "do")
    parts = {name: getattr(error, name) for name in names if getattr(error, name) is not None}
    return {
        "error": type(error).__name__,
        "code": error.code,
        **{name: str(part).replace(hidden, "") if hidden else str(part) for name, part in parts.items()},
    }


def raised(facts: Mapping[str, str]) -> LabelwiseError:
    """The error that `told` told of."""
    kind: type[LabelwiseError] = getattr(errors, facts["error"], LabelwiseError)
    return kind(**{name: value for name, value in facts.items() if name != "error"})


def _work(connection: Connection, load: Load, root: Path) -> None:
    """The life of the worker: it ends with the server, whose files it removes if that could not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the server decides
    _keep_patients_out_of_notes()
    try:
        models, answer = load()
    except LabelwiseError as error:
        _say(connection, {"failed": told(error)})
        return
    try:
        _say(connection, {"ready": models})
        while True:
            request = json.loads(connection.recv_bytes())
            if "job" in request:
                _say(connection, _answered(connection, answer, request))
    except (EOFError, OSError):  # the server has ended
        shutil.rmtree(root, ignore_errors=True)


def _keep_patients_out_of_notes() -> None:
    """Libraries warn of files by repeating what stands in them: nothing of that reaches the log of a server."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)


def _answered(connection: Connection, answer: Answer, request: Mapping[str, Any]) -> Facts:
    job, folder = request["job"], Path(request["folder"])

    def progress(task: str, done: int, total: int, message: str = "") -> None:
        while connection.poll():
            if json.loads(connection.recv_bytes()).get("cancel") == job:
                raise _CancelledError
        _say(connection, {"progress": [done, total]})

    try:
        return {"done": answer(request, progress)}
    except _CancelledError:
        return {"cancelled": job}
    except LabelwiseError as error:
        return {"failed": told(error, folder)}
    except MemoryError:
        return {"failed": told(ResourceError("the memory is too small for this scan", code="out-of-memory"))}
    except OSError as error:
        return {"failed": told(ResourceError.from_os_error(error), folder)}
    except Exception as error:  # noqa: BLE001 - a defect, met by one scan, costs that scan
        # Its message may repeat what stands in the file: only where it came from is noted.
        lines = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__)).format()
        sys.stderr.write(f"{type(error).__name__} in the worker\n{''.join(lines)}")
        what = f"a defect of the program met this scan: {type(error).__name__}"
        return {"failed": told(LabelwiseError(what, do="tell those who run the server", code="defect"))}


def _say(connection: Connection, message: Facts) -> None:
    connection.send_bytes(json.dumps(message).encode())
