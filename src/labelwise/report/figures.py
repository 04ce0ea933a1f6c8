"""Drawings for a report, as SVG: learning curves, and which structures are annotated in which data set.

Each is drawn on a `Figure` of its own, without pyplot, so nothing stays alive.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from labelwise.types import Array

# Colours of Okabe and Ito, which colour-blind readers can tell apart; those that stand out from any page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")
INK = "#010203"  # stands for the text colour of the page
# A page may be light or dark: what the drawing takes over from its style sheet.
_THEMED = {INK: "currentColor", COLOURS[0]: f"var(--blue, {COLOURS[0]})"}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it scales, and it can be searched
    "svg.hashsalt": "labelwise",  # equal data give equal bytes
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """An encoded picture, with the words that explain it and those that replace it."""

    data: bytes
    kind: Literal["svg", "webp", "png"]
    alt: str
    caption: str = ""


def learning_curves(records: Iterable[Mapping[str, Any]]) -> tuple[Picture, ...]:
    """Loss terms and validation score over the steps: one picture each, or none where nothing was logged.

    `records` are the lines of log.jsonl: ``{"step": 10, "event": "train", "loss": 1.2, "terms": {...}}`` and
    ``{"step": 100, "event": "validation", "score": 0.8}``. Steps of a later stage (``"stage": 1``) are
    counted on from the end of the one before, and a dotted line stands between.
    """
    timeline, starts = _timeline(
        [record for record in records if record.get("event") in ("train", "validation")]
    )
    train = [(step, record) for step, record in timeline if record["event"] == "train"]
    scores = [(step, record) for step, record in timeline if record["event"] == "validation"]
    pictures = []
    if train:
        pictures.append(_loss_picture(train, starts))
    if scores:
        pictures.append(_score_picture(scores, starts))
    return tuple(pictures)


def seed_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Picture, ...]:
    """Curves of the trainings of one run, each with the records of its log: together, then the terms of each.

    A single training has its `learning_curves`.
    """
    if len(logs) < 2:
        return tuple(picture for records in logs.values() for picture in learning_curves(records))
    pictures = []
    for event, value, what in (("train", "loss", "loss"), ("validation", "score", "validation score")):
        lines = {}
        starts: list[int] = []
        for name, records in logs.items():
            timeline, ends = _timeline([r for r in records if r.get("event") in ("train", "validation")])
            found = [(step, record[value]) for step, record in timeline if record["event"] == event]
            if found:
                lines[name], starts = np.array(found, dtype=float).T, ends
        if lines:
            pictures.append(_together(lines, what, starts))
    for name, records in logs.items():
        terms = learning_curves([record for record in records if len(record.get("terms", ())) > 1])
        pictures += [
            replace(shown, alt=f"{name}: {shown.alt}", caption=f"{shown.caption}, {name}") for shown in terms
        ]
    return tuple(pictures)


def _together(lines: Mapping[str, Array], what: str, starts: Sequence[int]) -> Picture:
    """One line for each training, from its (2, N) steps and values."""
    with svg_panels() as (figure, (axes,)):
        for n, (name, (steps, values)) in enumerate(lines.items()):
            (line,) = axes.plot(*_thinned(steps, values), label=name, **_line(n))
            if what != "loss":  # there may be one score only
                line.set(marker="o", markersize=3)
        if what == "loss":
            _scale(axes)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
        _finish(axes, what, starts)
        data = finished_svg(figure)
    last = ", ".join(f"{name} {values[-1]:.3g}" for name, (_, values) in lines.items())
    caption = f"{what[0].upper()}{what[1:]} of every seed"
    return Picture(data, "svg", f"{caption}; at the end: {last}.", caption)


def _timeline(records: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, Mapping[str, Any]]], list[int]]:
    """Records with steps counted through all stages, and the steps at which later stages start."""
    last: dict[int, int] = {}
    for record in records:
        stage = record.get("stage", 0)
        last[stage] = max(last.get(stage, 0), record["step"])
    lengths = [last[stage] for stage in sorted(last)]
    starts = dict(zip(sorted(last), np.cumsum([0, *lengths]).tolist(), strict=False))
    steps = [(starts[record.get("stage", 0)] + record["step"], record) for record in records]
    return sorted(steps, key=lambda pair: pair[0]), list(starts.values())[1:]


def _loss_picture(train: Sequence[tuple[int, Mapping[str, Any]]], starts: Sequence[int]) -> Picture:
    names = list(dict.fromkeys(name for _, record in train for name in record.get("terms", {})))
    total = np.array([record["loss"] for _, record in train], dtype=float)
    terms = {name: [record.get("terms", {}).get(name) for _, record in train] for name in names}
    steps = np.array([step for step, _ in train], dtype=float)
    with svg_panels() as (figure, (axes,)):
        if len(terms) > 1:  # the sum is broad and pale, because the largest term lies upon it
            axes.plot(*_thinned(steps, total), label="loss", color=INK, alpha=0.3, lw=3)
        for n, (name, values) in enumerate(terms.items() if len(terms) > 1 else [("loss", total)]):
            axes.plot(*_thinned(steps, np.array(values, dtype=float)), label=name, **_line(n))
        _scale(axes)
        if len(terms) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
        _finish(axes, "loss", starts)
        data = finished_svg(figure)
    alt = f"Loss over {steps[-1]:.0f} steps: {total[0]:.3g} at first, {total[-1]:.3g} at the end."
    return Picture(data, "svg", alt, "Loss and its terms" if len(terms) > 1 else "Loss")


def _scale(axes: Axes) -> None:
    """Logarithmic if no term is negative and they span more than a factor of ten; a 0 leaves a gap."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    drawn = drawn[np.isfinite(drawn) & (drawn != 0)]
    if len(drawn) and drawn.min() > 0 and drawn.max() > 10 * drawn.min():
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _line(n: int) -> dict[str, Any]:
    """Style of the n-th line."""
    dash = _DASHES[n // len(COLOURS) % len(_DASHES)]
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": dash, "lw": 1.3}


def _score_picture(scores: Sequence[tuple[int, Mapping[str, Any]]], starts: Sequence[int]) -> Picture:
    steps = np.array([step for step, _ in scores])
    values = np.array([record["score"] for _, record in scores], dtype=float)
    with svg_panels() as (figure, (axes,)):
        axes.plot(steps, values, lw=1.3, color=COLOURS[0], marker="o", ms=3)
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axes.plot(steps[best], values[best], marker="o", ms=7, mfc="none", mec=COLOURS[1], mew=1.3)
            alt = f"Validation score: best {values[best]:.3f} at step {steps[best]} of {steps[-1]}."
        else:
            alt = "Validation score: never defined."
        _finish(axes, "validation score", starts)
        data = finished_svg(figure)
    return Picture(data, "svg", alt, alt.removesuffix("."))


def _thinned(steps: Array, values: Array, points: int = 300) -> tuple[Array, Array]:
    """At most `points` points: means of neighbours, so that a curve of any length stays small and calm."""
    group = np.arange(len(steps)) * min(points, len(steps)) // len(steps)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    sizes = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(values, starts) / sizes


def coverage_picture(annotated: Mapping[str, Mapping[str, int]], cases: Mapping[str, int]) -> Picture:
    """What is annotated where: data set -> structure -> number of annotated cases, of `cases` per data set."""
    data_sets = list(cases)
    structures = list(
        dict.fromkeys(structure for data_set in data_sets for structure in annotated.get(data_set, {}))
    )
    size = (1.7 + 1.2 * len(data_sets), 0.5 + 0.27 * len(structures))
    with svg_panels(size) as (figure, (axes,)):
        for (column, data_set), (row, structure) in (
            (c, r) for c in enumerate(data_sets) for r in enumerate(structures)
        ):
            count = annotated.get(data_set, {}).get(structure, 0)
            shade = 0.4 * count / max(cases[data_set], 1)
            axes.add_patch(
                Rectangle((column + 0.03, row + 0.06), 0.94, 0.88, fc=COLOURS[0], alpha=shade, lw=0)
            )
            axes.text(column + 0.5, row + 0.5, str(count) if count else "–", ha="center", va="center")
        headings = [
            f"{textwrap.fill(data_set, 14)}\n{cases[data_set]} case{'' if cases[data_set] == 1 else 's'}"
            for data_set in data_sets
        ]
        axes.set_xticks(np.arange(len(data_sets)) + 0.5, headings)
        axes.set_yticks(np.arange(len(structures)) + 0.5, structures)
        axes.set(xlim=(0, len(data_sets)), ylim=(len(structures), 0))
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        data = finished_svg(figure)
    parts = [
        f"{data_set}: {', '.join(f'{structure} {count}' for structure, count in annotated.get(data_set, {}).items())}"
        for data_set in data_sets
    ]
    caption = "Number of cases in which a structure is annotated"
    return Picture(data, "svg", f"{caption}. {'; '.join(parts)}.", caption)


@contextmanager
def svg_panels(
    size: tuple[float, float] = (4.7, 2.6), rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of this size in inches with its panels, row by row; `finished_svg` ends it."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Text is left to the browser, which has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        yield figure, [figure.add_subplot(rows, columns, n + 1) for n in range(rows * columns)]


def _finish(axes: Axes, name: str, stage_starts: Sequence[int]) -> None:
    axes.set(xlabel="step", ylabel=name)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y", color=INK, alpha=0.15, lw=0.6)
    for start in stage_starts:
        axes.axvline(start, color=INK, alpha=0.5, lw=0.6, ls=":")


def finished_svg(figure: Figure) -> bytes:
    """The figure as an SVG element that fits into a page: its colours, its font, and ids of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r" ?font-family: [^;\"]*;", "", text)
    for drawn, themed in _THEMED.items():
        text = text.replace(drawn, themed)
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", text).encode()
