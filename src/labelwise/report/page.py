"""One report, one HTML file: no request, no script, light and dark, readable on paper and aloud."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from labelwise.atomic import write_text
from labelwise.report.comparison import MEAN, Comparison
from labelwise.report.figures import Picture
from labelwise.report.measures import measure
from labelwise.report.overlays import CasePicture
from labelwise.report.tables import Entry, Table

_READING = (
    "Colour is the prediction, the line is the reference: colour outside a line is too much, a line without "
    "colour too little. The patient's right (R) is on the left of the picture; no letters are written where the "
    "file does not tell the sides. Slices are counted from below. Numbers: Dice of the whole case in percent."
)


def write_page(
    path: Path | str,
    *,
    title: str,
    facts: Mapping[str, object],
    comparison: Comparison,
    curves: Mapping[str, Sequence[Picture]],
    pictures: Sequence[CasePicture],
    coverage: Picture | None = None,
    measured_on: str = "",
) -> None:
    """Write the report, atomically. The answer comes first, then what it rests on.

    Args
        facts           settings and environment: name -> value, or heading -> {name -> value}, however deep
        curves          run -> pictures of `figures.learning_curves`
        pictures        overlays, in any order; they are shown with the lowest mean Dice first
        coverage        picture of `figures.coverage_picture`
        measured_on     on which data the runs were scored, such as "test split of LA 2018"

    Errors
        ResourceError   the file cannot be written
    """
    sections = [
        _results(comparison),
        _classes(comparison),
        _training(curves),
        _cases(pictures),
        _section("Annotations in the data", _figure(coverage, "coverage")) if coverage else "",
        _facts(facts),
    ]
    page = Template(resource("page.html")).substitute(
        title=escape(title),
        style=resource("page.css").strip(),
        lead=_lead(comparison, measured_on),
        sections="\n".join(filter(None, sections)),
    )
    write_text(path, page)


def resource(name: str) -> str:
    """A text file of this room."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(heading: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{escape(heading)}</h2>", *parts, "</section>"])


def _lead(comparison: Comparison, measured_on: str) -> str:
    source = f"Measured on {measured_on}: " if measured_on else "Measured on "
    return (
        f'<p class="answer">{escape(comparison.answer())}</p>\n'
        f'<p class="quiet">{escape(source + comparison.description())}</p>'
    )


def _results(comparison: Comparison) -> str:
    difference = comparison.difference_table()
    definitions = [
        f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in comparison.definitions()
    ]
    excluded = [f"<li>{escape(line)}</li>" for line in comparison.exclusions()]
    return _section(
        "Result",
        _table(comparison.run_table(), "stacked"),
        _table(difference, "stacked") if difference else "",
        f'<dl class="definitions">{"".join(definitions)}</dl>' if definitions else "",
        f'<ul class="left-out">{"".join(excluded)}</ul>'
        if excluded
        else '<p class="left-out">No value was undefined.</p>',
    )


def _classes(comparison: Comparison) -> str:
    tables = [_table(table) for table in comparison.class_tables()]
    return _section("Organ by organ", '<div class="tables">', *tables, "</div>") if tables else ""


def _table(table: Table, style: str = "") -> str:
    legend = f"<span>{escape(table.legend)}</span>" if table.legend else ""
    head = "".join(f'<th scope="col">{_name(text)}</th>' for text in table.header)
    return "\n".join(
        [
            f'<div class="scroll {style}" tabindex="0" role="region" aria-label="{escape(table.title)}">',
            "<table>",
            f"<caption>{escape(table.title)}{legend}</caption>",
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *map(_row, table.rows),
            "</tbody>",
            "</table>",
            "</div>",
        ]
    )


def _row(entries: Sequence[Entry]) -> str:
    total = ' class="total"' if entries[0].text == MEAN else ""
    cells = "".join(map(_cell, entries[1:]))
    return f'<tr{total}><th scope="row">{_name(entries[0].text)}</th>{cells}</tr>'


def _name(text: str) -> str:
    """A name that may be long: its lines break after an underscore."""
    return f"<span>{escape(text).replace('_', '_<wbr>')}</span>"


def _cell(entry: Entry) -> str:
    parts = escape(entry.detail).replace(", ", ",\n").replace(" ", "&nbsp;")  # lines break at commas only
    detail = f" <small>{parts}</small>" if entry.detail else ""
    if entry.best:
        value = f'<strong>{escape(entry.text)}</strong><span class="unseen"> best</span>'
        return f'<td class="best">{value}{detail}</td>'
    return f"<td>{escape(entry.text)}{detail}</td>"


def _training(curves: Mapping[str, Sequence[Picture]]) -> str:
    parts = []
    for run, pictures in curves.items():
        if pictures:
            figures = "\n".join(_figure(picture) for picture in pictures)
            parts.append(f'<h3>{escape(run)}</h3>\n<div class="curves">\n{figures}\n</div>')
    return _section("Training", *parts) if parts else ""


def _figure(picture: Picture, style: str = "") -> str:
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return f'<figure class="{style}">{image_of(picture)}{caption}</figure>'


def image_of(picture: Picture) -> str:
    """The HTML element that shows a picture."""
    if picture.kind == "svg":  # inline, so that it takes over the colours and the font of the page
        return f'<div role="img" aria-label="{escape(picture.alt)}">{picture.data.decode()}</div>'
    data = base64.b64encode(picture.data).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}">'


def _cases(pictures: Sequence[CasePicture]) -> str:
    if not pictures:
        return ""
    ordered = sorted(pictures, key=lambda shown: (math.isnan(shown.mean_dice), shown.mean_dice))
    figures = ['<div class="cases">', *map(_case, ordered), "</div>"]
    return _section("Cases, worst first", f'<p class="quiet">{_READING}</p>', *figures)


def _case(shown: CasePicture) -> str:
    number = measure("dice").number
    organs = "".join(
        f'<li><i style="background:{escape(shown.colours.get(organ, "transparent"))}"></i>'
        f"{escape(organ)} {number(value)}</li>"
        for organ, value in shown.dice.items()
    )
    place = ", ".join(filter(None, [shown.run, shown.picture.caption]))
    return (
        f"<figure>{image_of(shown.picture)}<figcaption><strong>{escape(shown.case)}</strong> {escape(place)}"
        f'<ul class="organs">{organs}</ul></figcaption></figure>'
    )


def _facts(facts: Mapping[str, object]) -> str:
    blocks = {name: value for name, value in facts.items() if isinstance(value, Mapping)}
    single = {name: value for name, value in facts.items() if name not in blocks}
    parts = [_fact_list("", single)] if single else []
    parts += [_fact_list(name, block) for name, block in blocks.items() if block]
    return _section("Settings and environment", '<div class="facts">', *parts, "</div>") if parts else ""


def _fact_list(heading: str, facts: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _flat(facts))
    return f"<section>{f'<h3>{escape(heading)}</h3>' if heading else ''}<dl>{rows}</dl></section>"


def _flat(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as dotted names; lists are joined, nothing set is a dash."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{prefix}{name}", "–" if value in (None, "") else str(value)
