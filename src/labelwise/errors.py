"""The ways in which labelwise refuses to go on.

    LabelwiseError
    ├── ConfigError       a setting, an option or a name is wrong                    exit code 2
    ├── DataError         a scan, a label file, a manifest or a case is wrong        exit code 3
    ├── TrainingError     the training cannot go on: the loss is not finite         exit code 1
    ├── CheckpointError   a checkpoint or a model folder is wrong                    exit code 1
    └── ResourceError     the machine cannot do it: disk, memory, device, extra      exit code 1

Every message says what was wrong, in which case and file, what was expected, and what to do. Texts may change; programs
ask `code`, whose words are listed in docs/reference/errors.md.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

logger = logging.getLogger("labelwise")


class LabelwiseError(Exception):
    """An error whose message is meant for the user; shown without a traceback.

    Arguments
        what        went wrong, in a few words
        case        its id
        file        in which it was found
        found, expected     what stood there, and what was to stand there
        do          what helps
        code        a stable word for programs; default: that of the kind of error
    """

    exit_code = 1
    code = "error"

    def __init__(
        self,
        what: str,
        *,
        case: str | None = None,
        file: object = None,
        found: object = None,
        expected: object = None,
        do: str | None = None,
        code: str | None = None,
    ):
        self.what = what
        self.case = case
        self.file = file
        self.found = found
        self.expected = expected
        self.do = do
        self.code = code or type(self).code
        lines = [f"case '{case}': {what}" if case else what]
        rows = {"file": file, "found": found, "expected": expected, "do": do}
        lines += [f"  {name:<9} {value}" for name, value in rows.items() if value is not None]
        super().__init__("\n".join(lines))

    def but(self, **changes: Any) -> Self:
        """The same error with other facts, for example with the case that the place which raised it did not know."""
        names = ("case", "file", "found", "expected", "do", "code")
        return type(self)(self.what, **{name: getattr(self, name) for name in names} | changes)


class ConfigError(LabelwiseError):
    """A setting, an option or a name is wrong."""

    exit_code = 2
    code = "config"


class DataError(LabelwiseError):
    """A scan, a label file, a manifest or a case is wrong."""

    exit_code = 3
    code = "data"


class TrainingError(LabelwiseError):
    """The training cannot go on: the loss is not finite."""

    exit_code = 1
    code = "training"


class CheckpointError(LabelwiseError):
    """A checkpoint or a model folder is wrong."""

    exit_code = 1
    code = "checkpoint"


class ResourceError(LabelwiseError):
    """The machine cannot do it: disk, memory, device, or an extra that is not installed."""

    exit_code = 1
    code = "resource"

    @classmethod
    def from_os_error(cls, error: OSError) -> ResourceError:
        """What the operating system refused, as a message."""
        return cls(f"{type(error).__name__}: {error.strerror or error}", file=error.filename)


class ScanWarning(UserWarning):
    """A scan that a model in memory was asked to segment is not as it should be, or not as those of its training."""


@contextmanager
def naming(case: str, file: object) -> Iterator[None]:
    """Errors of rooms that know voxels but no cases get the name of the case, and of its file if they have none."""
    try:
        yield
    except LabelwiseError as error:
        if error.case is not None:
            raise
        raise error.but(case=case, file=error.file or file) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or an empty string.

    Example
        >>> did_you_mean("ema_deacy", ["ema_decay", "noise_std"])
        "; did you mean 'ema_decay'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def warn_about(what: str, names: Sequence[str]) -> None:
    """Log a warning that counts the names and shows the first of them."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        logger.warning("%s: %d (%s%s)", what, len(names), ", ".join(names[:5]), more)
