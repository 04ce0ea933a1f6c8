"""The coverage matrix as a picture: cases by data set as rows, classes as columns."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# State -> colour and words. Blue and orange are of Okabe and Ito; with the greys they differ in lightness too, so that
# neither colour blindness nor a black-and-white printer makes two of them alike.
STATES: Mapping[str, tuple[str, str]] = {
    "present": ("#0072b2", "annotated, present"),
    "absent": ("#e69f00", "annotated, absent"),
    "not annotated": ("#e3e3e3", "not annotated"),
    "unlabelled": ("#ffffff", "unlabelled case"),
    "unreadable": ("#202020", "labels cannot be read"),
}
_HATCHED = "unlabelled"
_INK = "#404040"
_NAMED_CASES = 60  # with more, names of cases are too small to read
_CELL_INCHES = (0.34, 0.17)
_TALLEST_INCHES = 11.0
_LONGEST_NAME = 32  # letters
_GAP = 0.6  # rows between two data sets, for few cases
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "labelwise", "text.parse_math": False, "font.size": 8}


def coverage_matrix(
    structures: Sequence[str],
    states: Mapping[str, Mapping[str, Sequence[str]]],
    kinds: Sequence[str] = ("png", "svg"),
) -> dict[str, bytes]:
    """Draw data set -> case -> one state (a key of `STATES`) for each structure; returns kind -> encoded picture."""
    num_cases = sum(len(cases) for cases in states.values())
    width = 1.9 + max(_CELL_INCHES[0] * len(structures), 2.6)
    rows = num_cases + _gap(num_cases) * (len(states) - 1)
    height = min(_TALLEST_INCHES, max(0.9, _CELL_INCHES[1] * rows)) + 0.7 + 0.06 * max(map(len, structures))
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        _draw(axes, structures, states, num_cases)
        used = {state for cases in states.values() for row in cases.values() for state in row}
        _legend(figure, [state for state in STATES if state in used])
        return {kind: _encoded(figure, kind) for kind in kinds}


def _gap(num_cases: int) -> float:
    """Rows between data sets: the same distance on paper, however many cases there are."""
    return max(_GAP, _GAP * num_cases * _CELL_INCHES[1] / _TALLEST_INCHES)


def _draw(
    axes: Axes, structures: Sequence[str], states: Mapping[str, Mapping[str, Sequence[str]]], num_cases: int
) -> None:
    order = list(STATES)
    colours = ListedColormap([colour for colour, _ in STATES.values()])
    named = num_cases <= _NAMED_CASES
    top, ticks, names = 0.0, [], []
    for data_set, cases in states.items():
        codes = np.array([[order.index(state) for state in row] for row in cases.values()])
        bottom = top + len(cases)
        extent = (0.0, float(len(structures)), bottom, top)
        axes.imshow(
            codes, cmap=colours, vmin=-0.5, vmax=len(order) - 0.5, extent=extent, aspect="auto",
            interpolation="none", zorder=1,
        )  # fmt: skip
        _hatch(axes, codes == order.index(_HATCHED), top)
        edges: dict[str, Any] = {"color": "white", "lw": 0.8 if named else 0.5, "zorder": 3}
        axes.vlines(np.arange(1, len(structures)), top, bottom, **edges)
        if named:
            axes.hlines(np.arange(top + 1, bottom), 0, len(structures), **edges)
            ticks += [top + row + 0.5 for row in range(len(cases))]
            names += [case[:_LONGEST_NAME] for case in cases]
        axes.add_patch(_frame(top, bottom, len(structures)))
        label = f"{data_set} ({len(cases)})"
        axes.text(
            len(structures) + 0.25,
            (top + bottom) / 2,
            label,
            va="center",
            ha="left",
            color=_INK,
            clip_on=False,
        )
        top = bottom + _gap(num_cases)
    axes.set(xlim=(0, len(structures)), ylim=(top - _gap(num_cases), 0))
    axes.set_yticks(ticks, names)
    upright = len(structures) > 4 or max(map(len, structures)) > 6
    axes.set_xticks(np.arange(len(structures)) + 0.5, structures, rotation=90 if upright else 0)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False, colors=_INK)
    axes.spines[:].set_visible(False)


def _hatch(axes: Axes, unlabelled: np.ndarray, top: float) -> None:
    """Strokes over runs of unlabelled cases: white alone could be a hole in the picture."""
    rows = np.flatnonzero(np.diff(np.concatenate([[0], unlabelled.all(axis=1), [0]])))
    for first, last in rows.reshape(-1, 2):
        axes.fill_between(
            [0, unlabelled.shape[1]], top + first, top + last, facecolor="none", edgecolor="#b0b0b0",
            hatch="////", lw=0, zorder=2,
        )  # fmt: skip


def _frame(top: float, bottom: float, width: int) -> Patch:
    return matplotlib.patches.Rectangle(
        (0, top), width, bottom - top, fill=False, ec=_INK, lw=0.6, zorder=4, clip_on=False
    )


def _legend(figure: Figure, states: Sequence[str]) -> None:
    handles = [
        Patch(
            facecolor=STATES[state][0], edgecolor="#b0b0b0" if state == _HATCHED else _INK, lw=0.4,
            hatch="/////" if state == _HATCHED else None, label=STATES[state][1],
        )
        for state in states
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower left", ncols=2, frameon=False, handlelength=1.2, labelcolor=_INK
    )


def _encoded(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
