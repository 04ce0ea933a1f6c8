"""The page of a review: the most doubtful cases first, what each proposes, and how to open it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from labelwise.atomic import write_text
from labelwise.report.overlays import CasePicture
from labelwise.report.page import image_of, resource

_READING = (
    "Colour is what is known or proposed now, the line is what people drew. The patient's right (R) is on the left of "
    "the picture. The expected Dice is what the model's own scores promise of a proposed class; nobody has measured it."
)


@dataclass(frozen=True)
class Entry:
    """One case of the list."""

    case: str
    doubt: str  # why it stands here, in words
    states: Sequence[tuple[str, str]]  # organ, state and what is known of it
    commands: Sequence[str]  # how to open it
    picture: CasePicture | None


def write_worklist(path: Path, *, title: str, lead: str, entries: Sequence[Entry]) -> None:
    """Write the page, atomically, in the order of the entries.

    Errors
        ResourceError   the file cannot be written
    """
    section = "\n".join(
        [
            "<section>",
            "<h2>Cases</h2>",
            f'<p class="quiet">{escape(_READING)}</p>',
            '<div class="cases">',
            *(_entry(number, entry) for number, entry in enumerate(entries, start=1)),
            "</div>",
            "</section>",
        ]
    )
    page = Template(resource("page.html")).substitute(
        title=escape(title),
        style=resource("page.css").strip(),
        lead=f'<p class="answer">{escape(lead)}</p>',
        sections=section,
    )
    write_text(path, page)


def _entry(number: int, entry: Entry) -> str:
    colours = entry.picture.colours if entry.picture else {}
    organs = "".join(
        f'<li><i style="background:{escape(colours.get(organ, "transparent"))}"></i>{escape(organ)} {escape(said)}</li>'
        for organ, said in entry.states
    )
    commands = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in entry.commands)
    place = entry.picture.picture.caption if entry.picture else ""
    return (
        f"<figure>{image_of(entry.picture.picture) if entry.picture else ''}<figcaption>"
        f"<strong>{number}. {escape(entry.case)}</strong> {escape(', '.join(filter(None, [entry.doubt, place])))}"
        f'<ul class="organs">{organs}</ul>{commands}</figcaption></figure>'
    )
