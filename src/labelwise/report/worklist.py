"""The page of a review: the most doubtful cases first, what each proposes, and how to open it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labelwise.atomic import write_text
from labelwise.report.overlays import CasePicture
from labelwise.report.page import style, template

_READING = (
    "In three planes, from left to right: what people drew, what is known or proposed now, and what differs. The "
    "patient's right (R) is on the left of the picture. The expected Dice is what the model's own scores promise of a "
    "proposed class; nobody has measured it."
)


@dataclass(frozen=True)
class Entry:
    """One case of the list."""

    case: str
    doubt: str  # why it stands here, in words
    states: Sequence[tuple[str, str]]  # structure, state and what is known of it
    commands: Sequence[str]  # how to open it
    picture: CasePicture | None


def write_worklist(path: Path, *, title: str, lead: str, command: str, entries: Sequence[Entry]) -> None:
    """Write the page, atomically, in the order of the entries; `command` takes back what was corrected.

    Errors
        ResourceError   the file cannot be written
    """
    page = template("worklist.html").render(
        title=title,
        lead=lead,
        command=command,
        reading=_READING,
        entries=entries,
        style=style(),
        script_sources="'none'",
    )
    write_text(path, page)
