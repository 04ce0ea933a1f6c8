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
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import labelwise
from labelwise.cli import about, cohort, converting, results, serving, training
from labelwise.console import is_first_process
from labelwise.errors import LabelwiseError, ResourceError


class _Verbs(typer.core.TyperGroup):
    """Lists the verbs in the order of the work, under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        panels = {name: getattr(verb, "rich_help_panel", "") for name, verb in self.commands.items()}
        for heading in dict.fromkeys(panels.values()):
            verbs = {name: verb for name, verb in self.commands.items() if panels[name] == heading}
            with formatter.section(heading):
                formatter.write_dl(
                    (name.ljust(width), verb.get_short_help_str(formatter.width))
                    for name, verb in verbs.items()
                )


app = typer.Typer(
    name="labelwise",
    cls=_Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _heading, _groups in {
    "Data": (cohort,),
    "Training": (training,),
    "Results": (results, converting, serving),
    "About": (about,),
}.items():
    for _group in _groups:
        _others = len(app.registered_commands)
        _group.add_commands(app)
        for _verb in app.registered_commands[_others:]:
            _verb.rich_help_panel = _heading


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"labelwise {labelwise.__version__}")
        raise typer.Exit


@app.callback()
def _labelwise(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and stop."),
    ] = False,
) -> None:
    """Train medical image segmentation when only some cases, or only some structures, are annotated."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code; an error of the user's is a message, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _make_streams_safe()
    try:
        with _notes_on_stderr():
            app(arguments, prog_name="labelwise")  # also as a module
    except LabelwiseError as error:
        _refuse(error, as_json="--json" in arguments)
    except OSError as error:
        _refuse(ResourceError.from_os_error(error), as_json="--json" in arguments)
    except MemoryError as error:
        what = ResourceError(
            "memory ran out", found=str(error) or None, do="close other programs, or take less at once"
        )
        _refuse(what, as_json="--json" in arguments)


def _refuse(error: LabelwiseError, *, as_json: bool) -> NoReturn:
    first = is_first_process()
    try:
        sys.stderr.write(
            f"{type(error).__name__}: {error}\n" if first else f"another process: {error.what}\n"
        )
        if as_json and first:
            typer.echo(json.dumps({"error": type(error).__name__, "code": error.code, "message": str(error)}))
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
