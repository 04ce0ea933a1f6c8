"""``labelwise VERB``: results to stdout, everything else to stderr.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 the data check failed, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from labelwise.cli import about, cohort, converting, results, training
from labelwise.errors import LabelwiseError, ResourceError

app = typer.Typer(
    name="labelwise",
    help="Train medical image segmentation when only some cases, or only some organs, are annotated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for group in (about, cohort, training, results, converting):
    group.add_commands(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; an error of the user's is a message, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _make_streams_safe()
    try:
        with _notes_on_stderr():
            app(arguments)
    except LabelwiseError as error:
        _refuse(error, as_json="--json" in arguments)
    except OSError as error:
        _refuse(ResourceError.from_os_error(error), as_json="--json" in arguments)


def _refuse(error: LabelwiseError, *, as_json: bool) -> NoReturn:
    try:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        if as_json:
            typer.echo(json.dumps({"error": type(error).__name__, "message": str(error)}))
    except OSError:  # nobody reads any more: what is left must not be flushed at the end either
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(error.exit_code) from None


def _make_streams_safe() -> None:
    """A sign that the code page lacks is printed as its escape; what is printed to a closed stream is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Notes(logging.Handler):
    """What the work wants a person to know, one line each. Looks stderr up when it writes: bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")


@contextmanager
def _notes_on_stderr() -> Iterator[None]:
    logger, handler = logging.getLogger("labelwise"), _Notes()
    handler.addFilter(lambda record: record.name == "labelwise")  # not the small repairs of headers
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
