"""Do data sets draw the same structures? What models that have not learnt from a data set make of its cases.

A model draws as it was taught. Where it has never seen how a data set draws, its prediction tells how the others would
have drawn the same scan; the ratio of the volumes tells in which direction they differ.

    row         trained without this data set
    column      the cases of this data set
    diagonal    the others' way of drawing against the data set's own
    elsewhere   the control: the data set is learnt from, its cases are not
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from labelwise.documents import cells
from labelwise.report.measures import UNDEFINED, or_none
from labelwise.report.statistics import FEWEST_PATIENTS, Clusters, defined_mean, draw_patients, estimate
from labelwise.report.tables import Entry, Table

RESAMPLES = 2000
APART = 0.05  # volumes that differ by less are called alike
FOUND_FROM = 0.5  # Dice; of a structure that is found worse, volumes say nothing about how it is drawn
COLUMNS = ("structure", "trained_without", "data_set", "dice", "volume", "low", "high", "cases", "patients")


class Reading(NamedTuple):
    """One structure of one case, drawn by its data set and predicted by a model."""

    left_out: tuple[str, ...]  # of the training of the model: data sets
    data_set: str  # of the case
    unseen: bool  # the model has never seen how this data set draws
    case: str
    patient: str
    structure: str
    dice: float
    volume: float  # predicted / drawn; NaN where one of them is empty


@dataclass(frozen=True)
class Cell:
    """One structure of the cases of one data set, by the models without another (or the same) one."""

    dice: float  # mean over the cases
    volume: float  # predicted / drawn, geometric mean over the cases that have both; NaN without any
    low: float  # 95 % interval of `volume` over patients; NaN for fewer than FEWEST_PATIENTS
    high: float
    cases: int
    patients: int
    unseen: bool  # the models have never seen how this data set draws

    def entry(self) -> Entry:
        """Dice, and how much of the drawn volume is predicted."""
        details = [f"volume {_change(self.volume)}"] if math.isfinite(self.volume) else []
        details += [f"[{_change(self.low)}, {_change(self.high)}]"] if math.isfinite(self.low) else []
        return Entry(f"{100 * self.dice:.1f}", ", ".join([*details, f"n {self.cases}"]))


@dataclass(frozen=True)
class DataSets:
    """How far data sets agree, by the models of one run."""

    run: str
    structures: tuple[str, ...]
    data_sets: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # the data sets left out of the trainings
    cells: Mapping[tuple[str, tuple[str, ...], str], Cell]  # structure, row, data set
    worst: tuple[Reading, ...]  # of data sets that were not learnt from, the lowest Dice first
    seen: int  # scores of patients that a model had seen, which do not count

    def sentences(self) -> tuple[str, ...]:
        """For each structure the data set that is farthest from the others."""
        return tuple(filter(None, map(self._farthest, self.structures)))

    def _farthest(self, structure: str) -> str:
        found: dict[str, Cell] = {}
        # The row of a data set alone comes last, and counts where a data set that nobody learnt from is in several.
        for (name, _, data_set), cell in sorted(
            self.cells.items(), key=lambda item: item[0][1] == (item[0][2],)
        ):
            if name == structure and cell.unseen:
                found[data_set] = cell
        lost = [name for name, cell in found.items() if not cell.dice >= FOUND_FROM]
        found = {
            name: cell for name, cell in found.items() if name not in lost and math.isfinite(cell.volume)
        }
        if not found and lost:
            return (
                f"{structure}: models that have not learnt from {', '.join(lost)} hardly find it there (Dice below "
                f"{100 * FOUND_FROM:.0f}), so nothing follows about how it is drawn."
            )
        if not found:
            return ""
        data_set = max(found, key=lambda name: abs(math.log(found[name].volume)))
        cell = found[data_set]
        if abs(cell.volume - 1) < APART:
            where = "where it is found" if lost else "in every data set"
            return f"{structure}: predicted and drawn volumes agree to within {100 * APART:.0f} % {where}."
        way, by = ("larger", "less") if cell.volume < 1 else ("smaller", "more")
        change = f"{100 * abs(cell.volume - 1):.0f} % {by}"
        return (
            f"{structure}: {data_set} draws it {way} than the others would: models that have not learnt from it "
            f"predict {change} than is drawn there, Dice {100 * cell.dice:.1f} (n {cell.cases})."
        )

    def tables(self, cases: int) -> tuple[Table, ...]:
        """A table for each structure, then the cases that disagree most."""
        legend = (
            "Dice [%] of models trained without the data set of the row, on cases of the data set of the column; "
            "volume: predicted against drawn, geometric mean"
        )
        few = all(math.isnan(cell.low) for cell in self.cells.values())
        legend += "" if few else ", [95 % interval over patients]"
        legend += (
            ". On the diagonal the models do not know how the data set draws; elsewhere they do, but not these "
            "patients. Scans that look otherwise cost Dice too: look at the cases."
        )
        shown = [self._table(structure, legend) for structure in self.structures]
        return (*shown, self._worst(cases)) if self.worst and cases else tuple(shown)

    def _table(self, structure: str, legend: str) -> Table:
        rows = [
            (
                Entry(", ".join(row)),
                *(
                    cell.entry() if (cell := self.cells.get((structure, row, name))) else Entry(UNDEFINED)
                    for name in self.data_sets
                ),
            )
            for row in self.rows
        ]
        title = f"Do the data sets draw the same {structure}? ({self.run})"
        return Table(title, ("trained without", *self.data_sets), tuple(rows), legend)

    def _worst(self, cases: int) -> Table:
        rows = [
            (
                Entry(one.case),
                Entry(one.data_set),
                Entry(one.structure),
                Entry(f"{100 * one.dice:.1f}"),
                Entry(_change(one.volume) if math.isfinite(one.volume) else UNDEFINED),
            )
            for one in self.worst[:cases]
        ]
        legend = "Of models that have not learnt from the data set. Volume: predicted against drawn."
        header = ("case", "data set", "structure", "Dice [%]", "volume")
        return Table(f"The cases that disagree most ({self.run})", header, tuple(rows), legend)

    def notes(self) -> tuple[str, ...]:
        """What a reader must know besides the tables."""
        seen = f"{self.seen} scores of patients that a model had seen do not count."
        gaps = (
            "No case of a data set was kept from training where there is a dash: set test cases aside first."
        )
        empty = any(
            (structure, row, name) not in self.cells
            for structure in self.structures
            for row in self.rows
            for name in self.data_sets
        )
        return (*([seen] if self.seen else []), *([gaps] if empty else []))

    def to_text(self, cases: int) -> str:
        """Sentences, tables and notes."""
        parts = [
            "\n".join(self.sentences()),
            *(table.to_text() for table in self.tables(cases)),
            *self.notes(),
        ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """The cells as plain values; None stands for a number that is not defined."""
        return [
            {
                "structure": structure,
                "trained_without": list(row),
                "data_set": name,
                "dice": or_none(cell.dice),
                "volume": or_none(cell.volume),
                "low": or_none(cell.low),
                "high": or_none(cell.high),
                "cases": cell.cases,
                "patients": cell.patients,
            }
            for (structure, row, name), cell in self.cells.items()
        ]

    def facts(self, cases: int) -> dict[str, Any]:
        """Everything as plain values."""
        worst = [
            {**one._asdict(), "left_out": list(one.left_out), "volume": or_none(one.volume)}
            for one in self.worst[:cases]
        ]
        about = {"run": self.run, "data_sets": list(self.data_sets), "sentences": list(self.sentences())}
        return {
            **about,
            "cells": self.records(),
            "cases_that_disagree_most": worst,
            "scores_of_seen_patients": self.seen,
        }


def to_csv(found: Sequence[DataSets]) -> str:
    """One row for each run, structure, data set left out and data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", *COLUMNS))
    for one in found:
        for record in one.records():
            row = record | {"trained_without": ";".join(record["trained_without"])}
            writer.writerow(cells((one.run, *("" if value is None else value for value in row.values()))))
    return text.getvalue()


def data_sets(run: str, readings: Iterable[Reading], *, seen: int = 0, seed: int = 0) -> DataSets:
    """What the models of a run say about its data sets; several readings of a case (seeds) are averaged first.

    Arguments
        readings    of patients that the model has not seen
        seen        scores that were left out for that
    """
    once = _averaged(readings, lambda one: (one.left_out, one.case, one.structure))
    unseen = _averaged((one for one in once if one.unseen), lambda one: (one.case, one.structure))
    groups: dict[tuple[str, tuple[str, ...], str], list[Reading]] = defaultdict(list)
    for one in once:
        groups[one.structure, one.left_out, one.data_set].append(one)
    names = tuple(sorted({one.data_set for one in once}))
    return DataSets(
        run=run,
        structures=tuple(dict.fromkeys(one.structure for one in once)),
        data_sets=names,
        rows=tuple(sorted({one.left_out for one in once})),
        cells={key: _cell(found, seed) for key, found in groups.items()},
        worst=tuple(sorted(unseen, key=lambda one: (one.dice, one.case))),
        seen=seen,
    )


def _averaged(readings: Iterable[Reading], key: Callable[[Reading], Hashable]) -> list[Reading]:
    """One reading for each key: mean Dice, geometric mean of the volumes."""
    same: dict[Hashable, list[Reading]] = defaultdict(list)
    for one in readings:
        same[key(one)].append(one)
    return [
        found[0]._replace(
            dice=float(np.mean([one.dice for one in found])),
            volume=float(np.exp(defined_mean(np.log([one.volume for one in found]), axis=0))),
        )
        for found in same.values()
    ]


def _cell(found: Sequence[Reading], seed: int) -> Cell:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(one.patient for one in found))}
    patients = np.array([numbers[one.patient] for one in found])
    logs = np.log([one.volume for one in found])[:, None]
    draws = draw_patients(len(numbers), RESAMPLES if len(numbers) >= FEWEST_PATIENTS else 1, seed)
    (volume,) = estimate(Clusters.of(logs, patients), np.ones((1, 1)), draws)
    return Cell(
        dice=float(np.mean([one.dice for one in found])),
        volume=math.exp(volume.mean),
        low=math.exp(volume.interval.low),
        high=math.exp(volume.interval.high),
        cases=len(found),
        patients=len(numbers),
        unseen=found[0].unseen,
    )


def _change(volume: float) -> str:
    """A ratio of volumes as a difference."""
    return f"{100 * (volume - 1):+.0f} %"
