"""What a comparison holds, and how it is told: in sentences, tables, CSV and JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelwise.evaluate.agreement import Agreement
from labelwise.report.measures import UNDEFINED, VARIANTS, Measure, p_text
from labelwise.report.ranks import Rank
from labelwise.report.records import csv_text, json_text
from labelwise.report.sizes import SizeCell, Strata
from labelwise.report.statistics import FEWEST_PATIENTS, defined_sd
from labelwise.report.tables import Entry, Table
from labelwise.report.tabulate import Presence
from labelwise.types import Array

MEAN = "mean over structures"
SIGNIFICANT = 0.05
SEEN_MARK = "(has seen test patients)"
NEVER = "not annotated in any case"
_NAN = float("nan")
Key = tuple[str, str, str]  # run, row, metric


@dataclass(frozen=True)
class Cell:
    """One run, one row, one metric. Values are as scored, not in percent."""

    mean: float  # over cases, then over structures
    sd: float  # over cases, n - 1
    n: int  # cases with a defined value
    seed_means: tuple[float, ...]  # one mean for each seed
    excluded: Mapping[str, int]  # undefined values by status
    low: float = _NAN  # 95 % interval over patients and seeds; NaN for fewer than FEWEST_PATIENTS
    high: float = _NAN
    patients: int = 0  # with a defined value; of several classes the fewest

    @property
    def never_annotated(self) -> bool:
        """No case of the comparison says where this structure is, so nothing can be scored."""
        return not self.n and set(self.excluded) == {"not_annotated"}

    @property
    def seed_sd(self) -> float:
        """Spread of the means of the seeds (n - 1); NaN for a single seed."""
        return defined_sd(np.asarray(self.seed_means))


@dataclass(frozen=True)
class Difference:
    """A run minus the reference run, on the cases that both have."""

    mean: float
    low: float  # 95 % interval over patients and seeds; NaN for fewer than FEWEST_PATIENTS
    high: float
    p: float  # two-sided, over patients (and seeds), see compare.compare
    n: int  # cases
    patients: int = 0  # of several classes the fewest
    p_holm: float = _NAN  # corrected within its family, see compare.compare


NO_DIFFERENCE = Difference(_NAN, _NAN, _NAN, _NAN, n=0)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `rows` are the classes, then the mean over structures if there are several."""

    runs: tuple[str, ...]
    rows: tuple[str, ...]
    cases: tuple[str, ...]
    patients: tuple[str, ...]  # whom each case belongs to
    measures: tuple[Measure, ...]
    seeds: Mapping[str, int]
    reference: str
    variant: str
    cells: Mapping[Key, Cell]
    best: frozenset[Key]
    differences: Mapping[Key, Difference]  # every run but the reference
    ranks: Mapping[str, tuple[Rank, ...]]  # metric -> runs, the best first
    sizes: Strata | None  # the first metric by the size of the structures
    volumes: Mapping[tuple[str, str], Agreement]  # run and class; empty without volumes in the scores
    volume_measure: Measure
    seen: Mapping[str, tuple[str, ...]]  # run -> patients of these cases that its training has seen
    notes: tuple[str, ...]  # further cautions, as sentences
    splits: Mapping[str, tuple[str, ...]]  # run -> splits that its cases were scored as; none if nobody said
    averaged: tuple[str, ...]  # the classes that a reference has: those of the mean over structures
    lacking: Mapping[
        tuple[str, str], tuple[str, ...]
    ]  # run and metric -> those of them without value in a seed
    per_case: Mapping[Key, Array]  # (N,) values of the cases, seeds averaged; NaN = undefined
    per_seed: Mapping[Key, Array]  # (S, N) the same of each seed
    presence: Mapping[tuple[str, str], Presence]  # run and class

    @property
    def classes(self) -> tuple[str, ...]:
        """The structures, without the row of their mean."""
        return tuple(row for row in self.rows if row != MEAN)

    @property
    def main_row(self) -> str:
        """The row that stands for the whole: the mean over structures, or the only structure."""
        return self.rows[-1]

    @property
    def others(self) -> tuple[str, ...]:
        """All runs but the reference."""
        return tuple(run for run in self.runs if run != self.reference)

    def difference(self, key: Key) -> Difference:
        """A run minus the reference; of the reference itself there is none."""
        return self.differences.get(key, NO_DIFFERENCE)

    def answer(self) -> str:
        """The result of the first metric in one or two plain sentences."""
        first = self.measures[0]
        structures = len(self.averaged) or len(self.classes)
        what = first.title if structures == 1 else f"mean {first.title} over {structures} structures"
        cells = {run: self.cells[run, self.main_row, first.name] for run in self.runs}
        values = [
            f"{self.name(run)} {first.with_unit(cell.mean)} ({_cases(cell.n)})" for run, cell in cells.items()
        ]
        best = [run for run in self.runs if (run, self.main_row, first.name) in self.best]
        if len(self.runs) == 1:
            return f"{what[0].upper()}{what[1:]}: {values[0]}."
        if not best:
            numbers = {first.number(cell.mean) for cell in cells.values()}
            equal = len(numbers) == 1 and UNDEFINED not in numbers
            why = "all runs have the same" if equal else "the means cannot be ranked"
            return f"No run is called best in {what}, for {why}: {', '.join(values)}."
        value = first.with_unit(cells[best[0]].mean)
        if len(best) > 1:
            return f"{_listed([*map(self.name, best)])} share the best {what}: {value}."
        return f"{self.name(best[0])} has the best {what}: {value}. {self._against_reference(best[0], first)}"

    def _against_reference(self, run: str, first: Measure) -> str:
        if run == self.reference:
            return "It is the run that the others are compared with."
        found = self.differences[run, self.main_row, first.name]
        interval = f"95 % interval {_interval(found, first)}" if math.isfinite(found.low) else ""
        numbers = "; ".join(filter(None, (interval, p_text(found.p_holm))))
        return (
            f"Against {self.name(self.reference)}, on the same {_cases(found.n)}: "
            f"{first.number(found.mean, signed=True)} {first.difference_unit}{f' ({numbers})' if numbers else ''}."
            f"{self._doubt(run, found)}"
        )

    def _doubt(self, run: str, found: Difference) -> str:
        if not found.p_holm < SIGNIFICANT:
            return " This may be chance."
        return (
            "" if self._repeated(run) else " Another seed may turn it: not both are trained more than once."
        )

    def _repeated(self, run: str) -> bool:
        return min(self.seeds[run], self.seeds[self.reference]) > 1

    @property
    def num_patients(self) -> int:
        """Number of patients that the cases belong to: the size of the sample."""
        return len(set(self.patients))

    def cautions(self) -> tuple[str, ...]:
        """What a reader must know before any number: few patients, seen patients, what has no reference or value."""
        lines = []
        if self.num_patients < FEWEST_PATIENTS:
            lines.append(
                f"{self.num_patients} patients are too few for an interval: with fewer than {FEWEST_PATIENTS}, a "
                "failure in one of ten patients is easily missed altogether."
            )
        for run, patients in self.seen.items():
            lines.append(
                f"{run} has seen {len(patients)} of the {self.num_patients} patients in its training or in the choice "
                f"of its checkpoint ({', '.join(patients[:3])}{' ...' if len(patients) > 3 else ''}): its scores are "
                "no test."
            )
        lines += self.notes
        first = self.measures[0].name
        never = [row for row in self.classes if self.cells[self.runs[0], row, first].never_annotated]
        if never:
            lines.append(f"Annotated in no case, so without a score: {', '.join(never)}.")
        if len(self.classes) > 1:
            absent = [row for row in self.classes if row not in (*self.averaged, *never)]
            lines += (
                [f"In no reference, so in no mean over structures: {', '.join(absent)}."] if absent else []
            )
            lines += self._means_not_given()
        if len(set(self.splits.values())) > 1:
            told = "; ".join(f"{run} {' and '.join(s) or 'not known'}" for run, s in self.splits.items())
            lines.append(f"The cases were scored as parts of different splits: {told}.")
        return tuple(lines)

    def _means_not_given(self) -> list[str]:
        """A line for each metric in which runs have no mean over structures: one over fewer would mislead."""
        lines = []
        for m in self.measures:
            told = [
                f"{run} has no mean {m.title}: no value of {', '.join(lacking)}"
                f"{' in one of the seeds' if self.seeds[run] > 1 else ''}"
                for run in self.runs
                if (lacking := self.lacking[run, m.name])
            ]
            lines += [f"{'; '.join(told)}."] if told else []
        return lines

    def name(self, run: str) -> str:
        """The run as tables call it: marked if it has seen a patient of the comparison."""
        return f"{run} {SEEN_MARK}" if run in self.seen else run

    def description(self) -> str:
        """What the numbers are: on how many cases, mean over what, which definitions."""
        several = len(self.classes) > 1
        structures = f"{len(self.classes)} structures" if several else f"{self.classes[0]} only"
        splits = self.all_splits
        of_split = f" ({'split' if len(splits) == 1 else 'splits'} {', '.join(splits)})" if splits else ""
        sentences = [
            f"{_cases(len(self.cases))}{of_split} of {_patients(self.num_patients)}, {structures}.",
            f"Computed per case, then averaged over the cases{', then over the structures' if several else ''}.",
            "A mean over structures is one over the same structures in every run and seed, or is not given."
            if several
            else "",
            "The values of a case are first averaged over the seeds." if max(self.seeds.values()) > 1 else "",
            VARIANTS.get(self.variant, f"Variant of the metrics: {self.variant}."),
        ]
        return " ".join(filter(None, sentences))

    @property
    def all_splits(self) -> tuple[str, ...]:
        """The splits that the cases were scored as; none if nobody said."""
        return tuple(sorted({split for splits in self.splits.values() for split in splits}))

    def definitions(self) -> tuple[tuple[str, str], ...]:
        """Heading and definition of each metric that has one."""
        return tuple((m.heading, m.definition) for m in self.measures if m.definition)

    def tests(self) -> str:
        """How the differences were tested."""
        repeated = [run for run in self.others if self._repeated(run)]
        seeds = (
            "Patients and seeds are both samples: interval and p count the spread of repeated trainings, too."
            if repeated
            else "The spread of repeated trainings is not part of interval and p."
        )
        return (
            "Difference of the means over the cases that both runs have; 95 % studentised bootstrap interval over "
            f"patients, from {FEWEST_PATIENTS} patients on; Wilcoxon signed-rank p over patients, Holm-corrected. "
            + seeds
        )

    def exclusions(self) -> tuple[str, ...]:
        """One line for each run and metric in which values are undefined and were left out."""
        lines = []
        for run in self.runs:
            for m in self.measures:
                counts = Counter(self.cells[run, self.main_row, m.name].excluded)
                if counts:
                    total = self.seeds[run] * len(self.cases) * len(self.classes)
                    reasons = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in counts.most_common())
                    lines.append(f"{run}, {m.title}: {counts.total()} of {total} values left out ({reasons})")
        return tuple(lines)

    def run_table(self) -> Table:
        """The answer: one row per run, one column per metric."""
        several = max(self.seeds.values()) > 1
        rows = []
        for run in self.runs:
            cells = [self.cells[run, self.main_row, m.name] for m in self.measures]
            entries = [self._entry(run, self.main_row, m, cells, seeds=True) for m in self.measures]
            seeds = [Entry(str(self.seeds[run]))] if several else []
            rows.append((Entry(self.name(run)), *entries, Entry(_range([cell.n for cell in cells])), *seeds))
        header = ("run", *(m.heading for m in self.measures), "cases", *(["seeds"] if several else []))
        return Table(f"Runs: {self.main_row}", header, tuple(rows), self._legend(several))

    def difference_table(self) -> Table | None:
        """Each run minus the reference in the main row; None for a single run."""
        if not self.others:
            return None
        rows = []
        for run in self.others:
            found = [self.differences[run, self.main_row, m.name] for m in self.measures]
            entries = [_difference_entry(d, m, found) for d, m in zip(found, self.measures, strict=True)]
            rows.append((Entry(self.name(run)), *entries, Entry(_range([d.n for d in found]))))
        header = ("run", *(f"{m.title} [{m.difference_unit}]" for m in self.measures), "cases")
        title = f"Difference to {self.name(self.reference)}: {self.main_row}"
        return Table(title, header, tuple(rows), self.tests())

    def class_tables(self) -> tuple[Table, ...]:
        """For each metric the structures by run; empty if there is one structure only."""
        if len(self.rows) == 1:
            return ()
        return tuple(self._class_table(m) for m in self.measures)

    def _class_table(self, m: Measure) -> Table:
        """Structures by run, or runs by structure if there are more runs than structures."""
        if len(self.runs) > len(self.rows):
            return self._transposed_class_table(m)
        rows = []
        for row in self.rows:
            cells = [self.cells[run, row, m.name] for run in self.runs]
            entries = [self._entry(run, row, m, cells) for run in self.runs]
            rows.append((Entry(row), *entries, Entry(_range([cell.n for cell in cells]))))
        header = ("structure", *map(self.name, self.runs), "cases")
        return Table(m.heading, header, tuple(rows), self._legend(several_seeds=False))

    def _transposed_class_table(self, m: Measure) -> Table:
        by_row = {row: [self.cells[run, row, m.name] for run in self.runs] for row in self.rows}
        rows = [
            (Entry(self.name(run)), *(self._entry(run, row, m, by_row[row]) for row in self.rows))
            for run in self.runs
        ]
        cases = (Entry("cases"), *(Entry(_range([cell.n for cell in cells])) for cells in by_row.values()))
        return Table(m.heading, ("run", *self.rows), (*rows, cases), self._legend(several_seeds=False))

    def class_difference_tables(self) -> tuple[Table, ...]:
        """For each metric each run minus the reference, structure by structure; empty if there is one only."""
        if len(self.rows) == 1 or not self.others:
            return ()
        return tuple(self._class_difference_table(m) for m in self.measures)

    def _class_difference_table(self, m: Measure) -> Table:
        """Structures by run, or runs by structure, as in the table of the means."""
        found = {
            (run, name): self.differences[run, name, m.name] for run in self.others for name in self.classes
        }
        title = f"{m.title} minus {self.name(self.reference)} [{m.difference_unit}]"
        legend = "Intervals and p as for the mean; p is Holm-corrected over all runs and structures together."
        if len(self.runs) > len(self.rows):
            by_name = {name: [found[run, name] for run in self.others] for name in self.classes}
            rows = [
                (
                    Entry(self.name(run)),
                    *(_difference_entry(found[run, name], m, by_name[name]) for name in self.classes),
                )
                for run in self.others
            ]
            return Table(title, ("run", *self.classes), tuple(rows), legend)
        rows = []
        for name in self.classes:
            beside = [found[run, name] for run in self.others]
            rows.append((Entry(name), *(_difference_entry(one, m, beside) for one in beside)))
        return Table(title, ("structure", *map(self.name, self.others)), tuple(rows), legend)

    def _entry(self, run: str, row: str, m: Measure, beside: Sequence[Cell], *, seeds: bool = False) -> Entry:
        """Mean and spread; with its own n where a cell beside it has more cases."""
        cell = self.cells[run, row, m.name]
        if cell.never_annotated:
            return Entry(UNDEFINED, NEVER)
        if not math.isfinite(cell.mean):  # without a mean there is nothing that a spread could be around
            return Entry(UNDEFINED, f"n {cell.n}" if cell.n else "")
        details = [f"± {m.number(cell.sd)}"] if math.isfinite(cell.sd) else []
        if math.isfinite(cell.low):
            details.append(f"[{m.number(cell.low)}, {m.number(cell.high)}]")
        if seeds and math.isfinite(cell.seed_sd):
            details.append(f"seeds ± {m.number(cell.seed_sd)}")
        if cell.n < max(other.n for other in beside):
            details.append(f"n {cell.n}")
        return Entry(m.number(cell.mean), ", ".join(details), (run, row, m.name) in self.best)

    def _legend(self, several_seeds: bool) -> str:
        legend = "Mean ± standard deviation over the cases"
        if any(math.isfinite(cell.low) for cell in self.cells.values()):
            levels = "patients and seeds" if several_seeds else "patients"
            legend += f", [95 % interval of the mean over {levels}]"
        legend += "; seeds ±: standard deviation of the means of the seeds." if several_seeds else "."
        if len(self.runs) > 1:
            legend += " A best value is marked only where all runs have values for the same cases."
        return legend

    def rank_table(self) -> Table | None:
        """Place of each run, and how often it is first when other patients and seeds are drawn."""
        if not self.ranks:
            return None
        judged = [m for m in self.measures if m.name in self.ranks]
        by_run = {m.name: {one.run: one for one in self.ranks[m.name]} for m in judged}
        order = [one.run for one in self.ranks[judged[0].name]]
        rows = []
        for run in order:
            found = [by_run[m.name][run] for m in judged]
            rows.append((Entry(self.name(run)), *(Entry(f"{one.rank:g}", _stability(one)) for one in found)))
        legend = (
            "Rank of the mean; [middle 95 % of the ranks] and how often first, in resamples of patients"
            f"{' and seeds' if max(self.seeds.values()) > 1 else ''}. A place that changes often is no result."
            if self.num_patients >= FEWEST_PATIENTS
            else f"Rank of the mean. With fewer than {FEWEST_PATIENTS} patients nobody can say how firm a place is."
        )
        return Table(f"Ranks: {self.main_row}", ("run", *(m.title for m in judged)), tuple(rows), legend)

    def presence_table(self) -> Table:
        """In how many scans each structure is, by the reference and by each run: does one vanish?"""
        truth = []
        for name in self.classes:
            there, absent = self._in_reference(name)
            known = Entry(f"{there} of {there + absent}") if there + absent else Entry(UNDEFINED, NEVER)
            truth.append(known)
        rows = [
            (Entry(self.name(run)), *(_presence_entry(self.presence[run, name]) for name in self.classes))
            for run in self.runs
        ]
        seeds = " Scans count once for each seed." if max(self.seeds.values()) > 1 else ""
        legend = (
            "Reference: scans that have the structure, of those that are annotated. Runs: scans in which it was found, "
            f"of those that have it; then scans of which no reference says whether they have it.{seeds}"
        )
        return Table(
            "Structures found", ("found by", *self.classes), ((Entry("reference"), *truth), *rows), legend
        )

    def _in_reference(self, name: str) -> tuple[int, int]:
        """Scans that have a structure, and annotated ones that have none, by the run that says most."""
        found = {run: self.presence[run, name] for run in self.runs}
        counts = [(one.there // self.seeds[run], one.absent // self.seeds[run]) for run, one in found.items()]
        return max(counts, key=sum)

    def size_table(self) -> Table | None:
        """The first metric for small, middle and large structures."""
        if self.sizes is None:
            return None
        m = self.measures[0]
        rows = []
        for one in self.sizes.strata:
            name = f"{one.class_name}, {one.name} ({_size(one.low)} to {_size(one.high)} {self.sizes.unit})"
            entries = [_size_entry(one.runs[run], m, one.cases) for run in self.runs]
            rows.append((Entry(name), *entries, Entry(str(one.cases))))
        legend = "The cases of each structure in thirds by the volume of the reference"
        legend += (
            ", [95 % interval over patients]."
            if any(math.isfinite(cell.low) for one in self.sizes.strata for cell in one.runs.values())
            else f"; no interval with fewer than {FEWEST_PATIENTS} patients in a third."
        )
        return Table(
            f"{m.heading} by size", ("structure", *map(self.name, self.runs), "cases"), tuple(rows), legend
        )

    def volume_table(self) -> Table | None:
        """Bias and limits of agreement of the volume of each structure; None without volumes in the scores."""
        if not self.volumes:
            return None
        m = self.volume_measure
        rows = []
        for run in self.runs:
            found = [self.volumes[run, name] for name in self.classes]
            entries = [
                Entry(
                    m.number(one.bias, signed=True),
                    f"[{m.number(one.low, signed=True)}, {m.number(one.high, signed=True)}]"
                    if one.n > 1
                    else "",
                )
                for one in found
            ]
            rows.append((Entry(self.name(run)), *entries, Entry(_range([one.n for one in found]))))
        legend = (
            "Mean over the cases, [limits of agreement after Bland and Altman: mean ± 1.96 standard deviations, "
            "between which 95 % of cases lie]."
        )
        title = f"Volume, prediction minus reference [{m.unit}]"
        return Table(title, ("run", *self.classes, "cases"), tuple(rows), legend)

    def tables(self) -> tuple[Table, ...]:
        """All tables, the answer first."""
        extra = (self.difference_table(), self.rank_table())
        more = (self.volume_table(), self.size_table())
        return (
            self.run_table(),
            *filter(None, extra),
            *self.class_tables(),
            *self.class_difference_tables(),
            self.presence_table(),
            *filter(None, more),
        )

    def to_text(self) -> str:
        """Aligned plain tables; the best value carries a star."""
        parts = [self._opening(), *(table.to_text() for table in self.tables())]
        return "\n\n".join([*parts, "\n".join(self._notes())]) + "\n"

    def _opening(self) -> str:
        return "\n\n".join([self.answer(), *self.cautions(), self.description()])

    def to_markdown(self) -> str:
        """The same as Markdown; the best value is bold."""
        parts = [self._opening(), *(table.to_markdown() for table in self.tables())]
        return "\n\n".join([*parts, "\n".join(f"- {line}" for line in self._notes())]) + "\n"

    def to_latex(self) -> str:
        """All tables for a paper (LaTeX with booktabs), the best value bold; above them the sentences, as comments."""
        told = [self.answer(), *self.cautions(), self.description(), *self._notes()]
        comments = "\n".join(f"% {' '.join(line.split())}" for line in told)
        return "\n\n".join([comments, *(table.to_latex() for table in self.tables())]) + "\n"

    def _notes(self) -> list[str]:
        return [*(f"{heading}: {text}" for heading, text in self.definitions()), *self.exclusions()]

    def to_csv(self) -> str:
        """One line for each run, row and metric, then for each size. Values are as scored: Dice in 0..1, mm, ml."""
        return csv_text(self)

    def to_json(self) -> str:
        """Everything that the other tables say, and what it is about; an undefined value is null."""
        return json_text(self)


def _difference_entry(found: Difference, m: Measure, beside: Sequence[Difference]) -> Entry:
    own_n = f"n {found.n}" if found.n < max(other.n for other in beside) else ""
    details = [part for part in (_interval(found, m), p_text(found.p_holm), own_n) if part]
    return Entry(m.number(found.mean, signed=True), ", ".join(details))


def _interval(found: Difference, m: Measure) -> str:
    if not math.isfinite(found.low):
        return ""
    return f"[{m.number(found.low, signed=True)}, {m.number(found.high, signed=True)}]"


def _presence_entry(one: Presence) -> Entry:
    details = [f"{one.there - one.found - one.without} missed"] if one.found + one.without < one.there else []
    details += [f"{one.without} without prediction"] if one.without else []
    details += [f"invented in {one.invented} of {one.absent}"] if one.invented else []
    details += [f"in {one.predicted} of {one.unknown} not annotated"] if one.unknown else []
    return Entry(f"{one.found} of {one.there}" if one.there + one.absent else UNDEFINED, ", ".join(details))


def _size_entry(one: SizeCell, m: Measure, cases: int) -> Entry:
    details = [f"[{m.number(one.low)}, {m.number(one.high)}]"] if math.isfinite(one.low) else []
    details += [f"n {one.n}"] if one.n < cases else []
    return Entry(m.number(one.mean), ", ".join(details))


def _size(volume: float) -> str:
    return f"{volume:,.0f}" if volume >= 1000 else f"{volume:.3g}"


def _cases(n: int) -> str:
    return f"{n} case" if n == 1 else f"{n} cases"


def _patients(n: int) -> str:
    return f"{n} patient" if n == 1 else f"{n} patients"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _stability(one: Rank) -> str:
    """How firm the place of a run is; nothing of too few patients."""
    if one.low is None or one.high is None or one.first is None:
        return ""
    return f"[{one.low:g}, {one.high:g}], first in {100 * one.first:.0f} %"
