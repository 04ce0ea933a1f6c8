"""Who asked what of which model, and how it ended: one JSON object a line, and nothing of a patient.

No names of people or files, no UIDs, no texts of errors: these may repeat what stands in a file.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from labelwise.atomic import explained


class Audit:
    """Appends lines to a stream; several threads may write."""

    def __init__(self, stream: TextIO):
        self._stream, self._turn = stream, threading.Lock()

    def write(self, event: str, **facts: object) -> None:
        """One line: the time (UTC), the event, and its facts; facts that are None are left out."""
        said = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line = json.dumps(said | {name: fact for name, fact in facts.items() if fact is not None})
        with self._turn:
            self._stream.write(line + "\n")
            self._stream.flush()


@contextmanager
def open_audit(file: Path | None) -> Iterator[Audit]:
    """The audit log in a file, which is continued; without one on stderr.

    Errors
        ResourceError   the file cannot be written
    """
    if file is None:
        yield Audit(sys.stderr)
        return
    with explained(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a", encoding="utf-8")
    with stream:
        yield Audit(stream)
