"""Drawings of a comparison, as SVG: values of each run, differences of each patient, Dice against size."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from labelwise.report.comparison import Comparison
from labelwise.report.figures import COLOURS, INK, Picture, finished_svg, svg_panels
from labelwise.report.measures import Measure
from labelwise.types import Array

_MOST_PAIRED = 12  # runs with a dot for each case
_MOST_SIZED = 4  # runs in one panel
_MARKERS = "os^D"


def value_plot(comparison: Comparison, m: Measure) -> Picture | None:
    """Boxes of the cases' values in the main row, one for each run; None without a value."""
    runs = [
        run
        for run in comparison.runs
        if np.isfinite(comparison.per_case[run, comparison.main_row, m.name]).any()
    ]
    if not runs:
        return None
    scale = 100 if m.unit == "%" else 1
    values = [scale * _finite(comparison.per_case[run, comparison.main_row, m.name]) for run in runs]
    with svg_panels((5.6, 0.7 + 0.26 * len(runs))) as (figure, (axes,)):
        places = np.arange(len(runs))[::-1]
        boxes = axes.boxplot(
            values, positions=places, orientation="horizontal", widths=0.55, patch_artist=True,
            flierprops={"marker": "o", "ms": 2.5, "mec": INK, "alpha": 0.6},
            medianprops={"color": INK}, whiskerprops={"color": INK}, capprops={"color": INK},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=COLOURS[0], alpha=0.35, edgecolor=INK)
        for place, run in zip(places, runs, strict=True):
            mean = comparison.cells[run, comparison.main_row, m.name].mean
            axes.plot(scale * mean, place, marker="D", ms=3.5, color=COLOURS[1], zorder=3)
        axes.set_yticks(places, [_short(run) for run in runs])
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=m.heading, ylim=(-0.6, len(runs) - 0.4))
        axes.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
        data = finished_svg(figure)
    medians = "; ".join(f"{run} median {np.median(v):.1f}" for run, v in zip(runs, values, strict=True))
    caption = (
        "Each case's value: box of the middle half, line at the median, diamond at the mean of the table."
    )
    caption += _other_structures(comparison, m)
    return Picture(data, "svg", f"{m.heading} of the cases. {medians}.", caption)


def paired_plot(comparison: Comparison, m: Measure) -> Picture | None:
    """Differences to the reference run, a dot for each case; None for a single run."""
    base = comparison.per_case[comparison.reference, comparison.main_row, m.name]
    scale = 100 if m.unit == "%" else 1
    differences = {
        run: scale * _finite(comparison.per_case[run, comparison.main_row, m.name] - base)
        for run in comparison.others
    }
    runs = [run for run in _best_first(comparison, m) if run in differences and len(differences[run])][
        :_MOST_PAIRED
    ]
    if not runs:
        return None
    chance = np.random.default_rng(0)
    with svg_panels((5.6, 0.75 + 0.34 * len(runs))) as (figure, (axes,)):
        axes.axvline(0, color=INK, lw=0.8)
        for place, run in enumerate(reversed(runs)):
            found = differences[run]
            axes.plot(
                found, place + chance.uniform(-0.22, 0.22, len(found)), ls="", marker="o", ms=2.6,
                color=COLOURS[0], alpha=0.55,
            )  # fmt: skip
            told = comparison.differences[run, comparison.main_row, m.name]
            if math.isfinite(told.low):
                axes.plot([scale * told.low, scale * told.high], [place, place], color=COLOURS[1], lw=2.2)
            axes.plot(scale * told.mean, place, marker="D", ms=5, color=COLOURS[1])
        axes.set_yticks(range(len(runs)), [_short(run) for run in reversed(runs)])
        axes.tick_params(axis="y", length=0)
        axes.set(
            xlabel=f"{m.title} minus {_short(comparison.reference)} [{m.difference_unit}]",
            ylim=(-0.6, len(runs) - 0.4),
        )
        axes.grid(axis="x", color=INK, alpha=0.15, lw=0.6)
        data = finished_svg(figure)
    words = "; ".join(
        f"{run} {m.number(comparison.differences[run, comparison.main_row, m.name].mean, signed=True)}"
        for run in runs
    )
    more = f" The {len(runs)} best of {len(differences)} runs." if len(runs) < len(differences) else ""
    caption = (
        f"Case by case against {comparison.reference}: dots are cases, the diamond is the difference of the "
        f"table, the bar its 95 % interval.{_other_structures(comparison, m)}{more}"
    )
    return Picture(data, "svg", f"Differences in {m.title}: {words}.", caption)


def size_plot(comparison: Comparison) -> Picture | None:
    """The first metric against the volume of the structure, one panel for each class; None if no volume is known."""
    if comparison.sizes is None:
        return None
    m, sizes = comparison.measures[0], comparison.sizes
    scale = 100 if m.unit == "%" else 1
    classes = list(dict.fromkeys(one.class_name for one in sizes.strata))
    runs = _best_first(comparison, m)[:_MOST_SIZED]
    columns = min(3, len(classes))
    rows = -(-len(classes) // columns)
    with svg_panels((max(5.6, 2.5 * columns + 0.4), 1.9 * rows + 0.5), rows, columns) as (figure, panels):
        for axes, name in zip(panels, classes, strict=False):
            volumes = sizes.volumes[name]
            for n, run in enumerate(runs):
                values = scale * sizes.values[run, name]
                shown = np.isfinite(values) & (volumes > 0)
                axes.plot(
                    volumes[shown], values[shown], ls="", marker=_MARKERS[n], ms=3, color=COLOURS[n], alpha=0.7,
                    label=_short(run),
                )  # fmt: skip
            axes.set_title(name, fontsize=9)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda volume, _: _volume(volume)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(color=INK, alpha=0.15, lw=0.6)
        for axes in panels[len(classes) :]:
            axes.set_axis_off()
        figure.supxlabel(f"volume of the reference [{sizes.unit}]", fontsize=9)
        figure.supylabel(m.heading, fontsize=9)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=2,
            frameon=False,
            fontsize=8,
        )
        data = finished_svg(figure)
    more = (
        f" The {len(runs)} best of {len(comparison.runs)} runs." if len(runs) < len(comparison.runs) else ""
    )
    return Picture(
        data,
        "svg",
        f"{m.heading} against the volume of {', '.join(classes)}.",
        f"{m.title} against size.{more}",
    )


def _other_structures(comparison: Comparison, m: Measure) -> str:
    """A sentence for cases that annotate different structures, where the mean of the table is not that of the cases."""
    row = comparison.main_row
    for run in comparison.runs:
        values, mean = _finite(comparison.per_case[run, row, m.name]), comparison.cells[run, row, m.name].mean
        if len(values) and math.isfinite(mean) and not math.isclose(values.mean(), mean, rel_tol=1e-6):
            return (
                " Cases have values of different structures: a case's value is a mean over its own, the mean of the "
                "table one over all structures alike."
            )
    return ""


def _best_first(comparison: Comparison, m: Measure) -> list[str]:
    sign = -1.0 if m.higher_is_better is not False else 1.0
    means = {run: comparison.cells[run, comparison.main_row, m.name].mean for run in comparison.runs}
    return sorted(
        comparison.runs, key=lambda run: sign * means[run] if math.isfinite(means[run]) else math.inf
    )


def best_runs(comparison: Comparison, count: int) -> tuple[str, ...]:
    """The `count` best runs of the first metric, in the order of the comparison."""
    chosen = set(_best_first(comparison, comparison.measures[0])[:count])
    return tuple(run for run in comparison.runs if run in chosen)


def _finite(values: Array) -> Array:
    return np.asarray(values[np.isfinite(values)])


def _volume(volume: float) -> str:
    """A number that finds room below a narrow panel."""
    return f"{volume / 1000:g}k" if volume >= 1000 else f"{volume:g}"


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
