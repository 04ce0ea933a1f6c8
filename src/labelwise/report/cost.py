"""What a label is worth: Dice against the masks or scans that were annotated, and how many more a wanted Dice needs.

    Dice(n) = a - b n^(-c),   b >= 0,  a <= 1,  0.05 <= c <= 2

n counts the training scans in which the structure is annotated; for the mean over structures, all masks together. Or n
counts the training scans in which anything is annotated, for each structure and for the mean. The curve is the
least-squares fit to the means of the budgets, c from a grid. Its interval comes from the same fit to resamples:
patients are drawn with replacement, the same for all budgets, and in each budget its trainings. Beyond ten times the
largest budget nothing is told.

Source
    Inverse power law as a learning curve: Cortes et al., NIPS 1993; Figueroa et al., BMC Medical Informatics and
    Decision Making 2012.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.axes import Axes

from labelwise.documents import cells
from labelwise.errors import DataError
from labelwise.report.comparison import MEAN, SEEN_MARK
from labelwise.report.figures import COLOURS, Picture, finished_svg, svg_panels
from labelwise.report.measures import UNDEFINED, or_none
from labelwise.report.statistics import FEWEST_PATIENTS, draw_patients
from labelwise.report.tables import Entry, Table
from labelwise.types import Array

FEWEST_BUDGETS = 3  # as many as the curve has numbers
FARTHEST = 10  # times the largest budget
RESAMPLES = 500
Unit = Literal["masks", "scans"]
UNITS: tuple[str, ...] = get_args(Unit)
_MARKERS = "os^Dv"
_EXPONENTS = np.geomspace(0.05, 2, 60)


class Curves(NamedTuple):
    """Dice(n) = a - b (n / scale)^(-c), for R samples at once."""

    a: Array  # (R,)
    b: Array  # (R,)
    c: Array  # (R,)
    scale: float  # the largest n

    def values(self, masks: Array) -> Array:
        """(R, N) Dice at (N,) numbers of masks."""
        return np.asarray(self.a[:, None] - self.b[:, None] * (masks / self.scale) ** -self.c[:, None])

    def masks_for(self, dice: float) -> Array:
        """(R,) masks that reach a Dice; infinite where the curve never does."""
        gap = self.a - dice
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = self.scale * (self.b / gap) ** (1 / self.c)
        return np.where(gap > 0, np.where(self.b > 0, found, 0.0), math.inf)


@dataclass(frozen=True)
class Budget:
    """The runs of one method with equally many labels."""

    name: str
    masks: Mapping[str, float]  # structure -> training scans in which it is annotated
    scans: float  # training scans in which any structure is annotated
    # (S, N, C) Dice of each training, case and structure
    dice: Array

    def number(self, structure: str, unit: Unit) -> float:
        """How much was annotated for a structure, or for the mean of all."""
        if unit == "scans":
            return self.scans
        return sum(self.masks.values()) if structure == MEAN else self.masks[structure]


@dataclass(frozen=True)
class Need:
    """How many masks a Dice needs by the curve."""

    dice: float
    masks: float  # infinite: never
    low: float  # 95 %; NaN for fewer than FEWEST_PATIENTS patients
    high: float


@dataclass(frozen=True)
class Course:
    """One structure (or their mean) of one method."""

    row: str
    structure: str
    masks: tuple[float, ...]
    dice: tuple[float, ...]  # means over cases and trainings
    curve: tuple[float, float, float] | None  # a, b, c as at the top; None for fewer than FEWEST_BUDGETS
    needs: tuple[Need, ...]
    drawn: Curves | None  # the curve, then its resamples; for a picture

    @property
    def most(self) -> float:
        """The largest number of masks that was tried."""
        return max(self.masks)

    def told(self, need: Need) -> tuple[str, str]:
        """A need in words, and its interval."""
        far = FARTHEST * self.most
        interval = f"[{_masks(need.low, far)}, {_masks(need.high, far)}]" if not math.isnan(need.low) else ""
        if math.isnan(need.masks):
            return UNDEFINED, ""
        if need.masks <= self.most:
            return _masks(need.masks, far), interval
        if not math.isfinite(need.masks) or need.masks > far:
            return f"> {far:.0f}" if math.isfinite(need.masks) else "never", interval
        return f"{math.ceil(need.masks)} ({math.ceil(need.masks - self.most)} more)", interval


@dataclass(frozen=True)
class Cost:
    """All courses of a sweep."""

    courses: tuple[Course, ...]
    patients: int
    targets: tuple[float, ...]
    unit: Unit = "masks"
    seen: Mapping[str, int] = field(
        default_factory=dict
    )  # row -> patients of the scores that its trainings have seen
    notes: tuple[str, ...] = ()

    @property
    def has_intervals(self) -> bool:
        """Whether there are patients enough for intervals."""
        return self.patients >= FEWEST_PATIENTS

    def tables(self) -> tuple[Table, ...]:
        """One table for each method: what was measured, and what a wanted Dice needs."""
        return tuple(self._table(row) for row in dict.fromkeys(course.row for course in self.courses))

    def _table(self, row: str) -> Table:
        rows = []
        for course in (course for course in self.courses if course.row == row):
            measured = ", ".join(
                f"{masks:g}: {100 * dice:.1f}" for masks, dice in zip(course.masks, course.dice, strict=True)
            )
            needs = [Entry(*course.told(need)) for need in course.needs]
            rows.append((Entry(course.structure), Entry(measured), *needs))
        unit = self.unit
        header = (
            "structure",
            f"{unit}: Dice [%]",
            *(f"{unit} for {100 * dice:g} %" for dice in self.targets),
        )
        few = "" if self.has_intervals else f"too few patients ({self.patients}) for intervals"
        short = any(course.curve is None for course in self.courses)
        counted = (
            "Training scans in which the structure is annotated, and the Dice with them; for the mean all masks."
            if unit == "masks"
            else "Training scans in which any structure is annotated, and the Dice with them."
        )
        legend = f"{counted} Needs by the curve a - b n^(-c), [95 % interval over patients and trainings]"
        legend += f"; {few}" if few else ""
        legend += f"; no curve with fewer than {FEWEST_BUDGETS} budgets" if short else ""
        return Table(f"What labels are worth: {self.name(row)}", header, tuple(rows), legend + ".")

    def name(self, row: str) -> str:
        """The method as tables call it: marked if it has seen a patient of the scores."""
        return f"{row} {SEEN_MARK}" if row in self.seen else row

    def cautions(self) -> tuple[str, ...]:
        """What a reader must know besides the tables."""
        seen = (
            f"{row} has seen {number} of the {self.patients} patients in its training or in the choice of its "
            "checkpoint: its scores are no test."
            for row, number in self.seen.items()
        )
        return (*seen, *self.notes)

    def to_text(self) -> str:
        """The cautions and the tables."""
        return "\n\n".join([*self.cautions(), *(table.to_text() for table in self.tables())]) + "\n"

    def to_csv(self) -> str:
        """One row for each method, structure and budget, and one for each need."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("row", "structure", "kind", "dice", self.unit, "low", "high", "saw_test_patients"))
        for course in self.courses:
            seen = str(self.seen.get(course.row, 0))
            for masks, dice in zip(course.masks, course.dice, strict=True):
                writer.writerow(
                    cells((course.row, course.structure, "measured", repr(dice), repr(masks), "", "", seen))
                )
            for need in course.needs:
                numbers = map(repr, (need.dice, need.masks, need.low, need.high))
                writer.writerow(cells((course.row, course.structure, "needed", *numbers, seen)))
        return text.getvalue()

    def facts(self) -> dict[str, Any]:
        """The same as plain values; null stands for a number that is not finite."""
        return {
            "patients": self.patients,
            "unit": self.unit,
            "cautions": list(self.cautions()),
            "saw_test_patients": dict(self.seen),
            "courses": [
                {
                    "row": course.row,
                    "structure": course.structure,
                    "numbers": list(course.masks),
                    "dice": list(course.dice),
                    "curve": None if course.curve is None else dict(zip("abc", course.curve, strict=True)),
                    "needs": [
                        {key: or_none(value) for key, value in vars(need).items()} for need in course.needs
                    ],
                }
                for course in self.courses
            ],
        }

    def to_png(self) -> bytes:
        """Measured Dice and fitted curves with their bands, one panel for each structure."""
        across = min(3, len(self.structures))
        down = math.ceil(len(self.structures) / across)
        with svg_panels((3.2 * across + 0.6, 2.7 * down + 0.5), down, across) as (figure, panels):
            for axes, name in zip(panels, self.structures, strict=False):
                self._draw_structure(axes, name)
                axes.set_title(name)
            for axes in panels[len(self.structures) :]:
                axes.set_axis_off()
            panels[0].legend(fontsize=8, frameon=False)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
        return buffer.getvalue()

    def pictures(self) -> tuple[Picture, ...]:
        """The panels of `to_png` for a page, each with its words."""
        return tuple(self._picture(name) for name in self.structures)

    def _picture(self, name: str) -> Picture:
        with svg_panels() as (figure, (axes,)):
            self._draw_structure(axes, name)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
            data = finished_svg(figure)
        told = "; ".join(
            f"{course.row} {100 * course.dice[0]:.1f} with {course.masks[0]:g} {self.unit}, "
            f"{100 * course.dice[-1]:.1f} with {course.masks[-1]:g}"
            for course in self.courses
            if course.structure == name and course.masks
        )
        return Picture(data, "svg", f"Dice of {name} by {self.unit}: {told or 'nothing was scored'}.", name)

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures, then their mean if there are several."""
        return tuple(dict.fromkeys(course.structure for course in self.courses))

    def _draw_structure(self, axes: Axes, name: str) -> None:
        """One line, marker and band for each method."""
        rows = list(dict.fromkeys(course.row for course in self.courses))
        for course in (course for course in self.courses if course.structure == name):
            number = rows.index(course.row)
            self._draw(axes, course, COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)])
        axes.set(xlabel=self.unit, ylabel="Dice [%]")
        axes.grid(alpha=0.25, lw=0.6)

    def _draw(self, axes: Axes, course: Course, colour: str, marker: str) -> None:
        axes.plot(
            course.masks, 100 * np.array(course.dice), marker, color=colour, ms=5, label=self.name(course.row)
        )
        if course.drawn is None:
            return
        masks = np.linspace(min(course.masks), 2 * course.most, 80)
        values = 100 * course.drawn.values(masks)
        axes.plot(masks, values[0], color=colour, lw=1.3)
        if self.has_intervals:
            low, high = np.percentile(values[1:], (2.5, 97.5), axis=0)
            axes.fill_between(masks, low, high, color=colour, alpha=0.15, lw=0)


def annotation_cost(
    rows: Mapping[str, Sequence[Budget]],
    structures: Sequence[str],
    patients: Array,
    targets: Sequence[float],
    *,
    unit: Unit = "masks",
    seen: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Cost:
    """Fit the curves of several methods.

    Arguments
        rows        method -> its budgets, all scored on the same N cases
        patients    (N,) number of the patient of each case
        targets     Dice values that are wanted
        unit        what is counted: masks, or scans with any of them
        seen        method -> how many patients of the scores its trainings have seen, if any
        notes       further cautions, as sentences

    Errors
        DataError   a method with one budget only
    """
    draws = draw_patients(int(patients.max()) + 1, resamples, seed)
    courses = []
    for row, budgets in rows.items():
        if len(budgets) < 2:
            raise DataError(
                f"'{row}' was trained with one budget of labels only",
                found=", ".join(budget.name for budget in budgets),
                do="name runs of several budgets, such as the folder of a sweep with [budgets]",
            )
        chance = np.random.default_rng(seed)
        means = [_means(budget.dice, patients, draws, chance) for budget in budgets]  # (1 + R, C) each
        for number, structure in enumerate((*structures, MEAN) if len(structures) > 1 else structures):
            whole = structure == MEAN
            masks = [budget.number(structure, unit) for budget in budgets]
            # Of the same structures everywhere: a resample without one of them tells no mean.
            values = np.stack([m.mean(axis=1) if whole else m[:, number] for m in means], axis=1)
            courses.append(_course(row, structure, masks, values, patients, targets))
    return Cost(tuple(courses), int(patients.max()) + 1, tuple(targets), unit, dict(seen or {}), tuple(notes))


def _course(
    row: str, structure: str, masks: Sequence[float], values: Array, patients: Array, targets: Sequence[float]
) -> Course:
    order = np.argsort(masks, kind="stable")
    known = [n for n in order if masks[n] > 0 and np.isfinite(values[0, n])]
    n, found = np.array([masks[k] for k in known], float), values[:, known]
    found = found[np.isfinite(found).all(axis=1)]
    if len(set(n.tolist())) < FEWEST_BUDGETS:
        unknown = tuple(Need(dice, math.nan, math.nan, math.nan) for dice in targets)
        return Course(
            row, structure, tuple(n.tolist()), tuple(values[0, known].tolist()), None, unknown, None
        )
    curves = fit_curves(n, found)
    needs = []
    for dice in targets:
        needed = curves.masks_for(dice)
        low, high = math.nan, math.nan
        if int(patients.max()) + 1 >= FEWEST_PATIENTS:
            low, high = np.quantile(needed[1:], (0.025, 0.975), method="nearest").tolist()
        needs.append(Need(dice, float(needed[0]), low, high))
    a, b, c = (float(part[0]) for part in curves[:3])
    first = (a, b * curves.scale**c, c)
    return Course(row, structure, tuple(n.tolist()), tuple(found[0].tolist()), first, tuple(needs), curves)


def fit_curves(masks: Array, values: Array) -> Curves:
    """Least-squares curves through (R, K) Dice values at (K,) numbers of masks."""
    scale = float(masks.max())
    best = [np.full(len(values), math.inf), *(np.zeros(len(values)) for _ in range(3))]
    for c in _EXPONENTS:
        z = (masks / scale) ** -c
        centred = z - z.mean()
        b = np.maximum(-(values @ centred) / (centred @ centred), 0)
        a = values.mean(axis=1) + b * z.mean()
        over = a > 1
        b = np.where(over, np.maximum((1 - values) @ z / (z @ z), 0), b)
        a = np.minimum(a, 1)
        error = np.square(values - (a[:, None] - b[:, None] * z)).sum(axis=1)
        better = error < best[0] - 1e-15
        best = [
            np.where(better, new, old)
            for new, old in zip((error, a, b, np.full_like(a, c)), best, strict=True)
        ]
    return Curves(best[1], best[2], best[3], scale)


def _means(dice: Array, patients: Array, draws: Array, chance: np.random.Generator) -> Array:
    """(1 + R, C) means over cases and trainings: as measured, and of resampled patients and trainings."""
    member = np.zeros((int(patients.max()) + 1, len(patients)))
    member[patients, np.arange(len(patients))] = 1
    finite = np.isfinite(dice)
    sums, counts = member @ np.where(finite, dice, 0.0), (member @ finite).astype(float)  # (S, G, C)
    trainings = chance.multinomial(len(dice), np.full(len(dice), 1 / len(dice)), size=len(draws)).astype(
        float
    )
    measured = sums.sum(axis=1), counts.sum(axis=1)  # (S, C)
    drawn = [np.einsum("rs,rg,sgc->rc", trainings, draws, part) for part in (sums, counts)]
    first = [part.sum(axis=0, keepdims=True) for part in measured]
    total, number = (np.concatenate([one, more]) for one, more in zip(first, drawn, strict=True))
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _masks(value: float, far: float) -> str:
    return f"> {far:.0f}" if value > far else str(math.ceil(value))
