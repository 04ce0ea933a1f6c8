"""Progress of long work, for a person at a terminal, for a log file, or for a program.

Work reports ``progress(task, done, total, message)``; how that is shown is decided once, by the command line.
Everything goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TextIO

import rich.console
import rich.progress


class ShowProgress(Protocol):
    """Told how far a task is: `done` of `total` items or steps, and what is worth knowing now."""

    def __call__(self, task: str, done: int, total: int, message: str = "") -> None: ...


def silent(task: str, done: int, total: int, message: str = "") -> None:
    """Shows nothing: the default of the Python functions."""


@dataclass
class _Clock:
    """Time left of a task, from the pace since its first report."""

    started: float = field(default_factory=time.monotonic)
    first: int | None = None

    def seconds_left(self, done: int, total: int) -> float | None:
        if self.first is None:
            self.first = done
            return None
        return (
            (time.monotonic() - self.started) / (done - self.first) * (total - done)
            if done > self.first
            else None
        )


class Lines:
    """One plain line now and then: for log files, pipes and dumb terminals; JSON objects if asked for."""

    def __init__(self, stream: TextIO | None = None, *, every_seconds: float = 30.0, as_json: bool = False):
        self.stream, self.every, self.as_json = stream or sys.stderr, every_seconds, as_json
        self.clocks: dict[str, _Clock] = {}
        self.shown: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.flush()

    def __call__(self, task: str, done: int, total: int, message: str = "") -> None:
        left = self.clocks.setdefault(task, _Clock()).seconds_left(done, total)
        now = time.monotonic()
        if done < total and now - self.shown.get(task, -self.every) < self.every:
            return
        self.shown[task] = now
        if self.as_json:
            facts = {"task": task, "done": done, "total": total, "seconds_left": left, "message": message}
            line = json.dumps(facts)
        else:
            line = f"{task}  {done}/{total}  {message}" + (f"  {duration(left)} left" if left else "")
        self.stream.write(line.rstrip() + "\n")
        self.stream.flush()


class Bars:
    """Live bars with the time left, for a terminal."""

    def __init__(self) -> None:
        self.clocks: dict[str, _Clock] = {}
        self.rows: dict[str, rich.progress.TaskID] = {}
        self.progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            rich.progress.TextColumn("{task.fields[message]}", style="dim"),
            console=rich.console.Console(stderr=True),
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, task: str, done: int, total: int, message: str = "") -> None:
        if task not in self.rows:
            self.rows[task] = self.progress.add_task(task, total=total, left="", message="")
        left = self.clocks.setdefault(task, _Clock()).seconds_left(done, total)
        shown = f"{duration(left)} left" if left and done < total else ""
        self.progress.update(self.rows[task], completed=done, total=total, message=message, left=shown)


def watch(*, quiet: bool = False, as_json: bool = False) -> Bars | Lines:
    """The display for this terminal: bars, or plain lines if stderr is a file, a pipe, a CI log or a dumb terminal."""
    if quiet:
        return Lines(io.StringIO(), every_seconds=float("inf"))
    plain = not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" or "CI" in os.environ
    return Lines(as_json=as_json) if plain or as_json else Bars()


def is_first_process() -> bool:
    """False in the other processes of a training: torchrun, and a training that starts them itself, number them."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def duration(seconds: float) -> str:
    """A time span for people.

    Example
        >>> duration(42), duration(754), duration(7500)
        ('42 s', '12 min 34 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
