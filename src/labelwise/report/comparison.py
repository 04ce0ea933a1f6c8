"""What a comparison holds, and how it is told: in sentences, tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from labelwise.documents import cells
from labelwise.evaluate.agreement import Agreement
from labelwise.report.measures import UNDEFINED, VARIANTS, Measure, p_text
from labelwise.report.ranks import Rank
from labelwise.report.sizes import Strata
from labelwise.report.statistics import FEWEST_PATIENTS, defined_sd
from labelwise.report.tables import Entry, Table
from labelwise.types import Array

MEAN = "mean over organs"
SIGNIFICANT = 0.05
SEEN_MARK = "(has seen test patients)"
_NAN = float("nan")
Key = tuple[str, str, str]  # run, row, metric


@dataclass(frozen=True)
class Cell:
    """One run, one row, one metric. Values are as scored, not in percent."""

    mean: float  # over cases, then over organs
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


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `rows` are the classes, then the mean over organs if there are several."""

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
    averaged: tuple[str, ...]  # the classes that a reference has: those of the mean over organs
    lacking: Mapping[
        tuple[str, str], tuple[str, ...]
    ]  # run and metric -> those of them without value in a seed
    per_case: Mapping[Key, Array]  # (N,) values of the cases, seeds averaged; NaN = undefined
    per_seed: Mapping[Key, Array]  # (S, N) the same of each seed
    presence: Mapping[tuple[str, str], Mapping[str, int]]  # run and class -> number of scores by status

    @property
    def classes(self) -> tuple[str, ...]:
        """The organs, without the row of their mean."""
        return tuple(row for row in self.rows if row != MEAN)

    @property
    def main_row(self) -> str:
        """The row that stands for the whole: the mean over organs, or the only organ."""
        return self.rows[-1]

    @property
    def others(self) -> tuple[str, ...]:
        """All runs but the reference."""
        return tuple(run for run in self.runs if run != self.reference)

    def answer(self) -> str:
        """The result of the first metric in one or two plain sentences."""
        first = self.measures[0]
        organs = len(self.averaged) or len(self.classes)
        what = first.title if organs == 1 else f"mean {first.title} over {organs} organs"
        cells = {run: self.cells[run, self.main_row, first.name] for run in self.runs}
        values = [f"{run} {first.with_unit(cell.mean)} ({_cases(cell.n)})" for run, cell in cells.items()]
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
            return f"{_listed(best)} share the best {what}: {value}."
        return f"{best[0]} has the best {what}: {value}. {self._against_reference(best[0], first)}"

    def _against_reference(self, run: str, first: Measure) -> str:
        if run == self.reference:
            return "It is the run that the others are compared with."
        found = self.differences[run, self.main_row, first.name]
        interval = f"95 % interval {_interval(found, first)}" if math.isfinite(found.low) else ""
        numbers = "; ".join(filter(None, (interval, p_text(found.p_holm))))
        return (
            f"Against {self.reference}, on the same {_cases(found.n)}: "
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
            lines += [f"In no reference, so in no mean over organs: {', '.join(absent)}."] if absent else []
            lines += self._means_not_given()
        if len(set(self.splits.values())) > 1:
            told = "; ".join(f"{run} {' and '.join(s) or 'not known'}" for run, s in self.splits.items())
            lines.append(f"The cases were scored as parts of different splits: {told}.")
        return tuple(lines)

    def _means_not_given(self) -> list[str]:
        """A line for each metric in which runs have no mean over organs: a mean over fewer organs would mislead."""
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
        organs = f"{len(self.classes)} organs" if several else f"{self.classes[0]} only"
        splits = self.all_splits
        of_split = f" ({'split' if len(splits) == 1 else 'splits'} {', '.join(splits)})" if splits else ""
        sentences = [
            f"{_cases(len(self.cases))}{of_split} of {_patients(self.num_patients)}, {organs}.",
            f"Computed per case, then averaged over the cases{', then over the organs' if several else ''}.",
            "A mean over organs is one over the same organs in every run and seed, or is not given."
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
        return Table(f"Difference to {self.reference}: {self.main_row}", header, tuple(rows), self.tests())

    def class_tables(self) -> tuple[Table, ...]:
        """For each metric the organs by run; empty if there is one organ only."""
        if len(self.rows) == 1:
            return ()
        return tuple(self._class_table(m) for m in self.measures)

    def _class_table(self, m: Measure) -> Table:
        """Organs by run, or runs by organ if there are more runs than organs."""
        if len(self.runs) > len(self.rows):
            return self._transposed_class_table(m)
        rows = []
        for row in self.rows:
            cells = [self.cells[run, row, m.name] for run in self.runs]
            entries = [self._entry(run, row, m, cells) for run in self.runs]
            rows.append((Entry(row), *entries, Entry(_range([cell.n for cell in cells]))))
        return Table(m.heading, ("organ", *map(self.name, self.runs), "cases"), tuple(rows))

    def _transposed_class_table(self, m: Measure) -> Table:
        by_row = {row: [self.cells[run, row, m.name] for run in self.runs] for row in self.rows}
        rows = [
            (Entry(self.name(run)), *(self._entry(run, row, m, by_row[row]) for row in self.rows))
            for run in self.runs
        ]
        cases = (Entry("cases"), *(Entry(_range([cell.n for cell in cells])) for cells in by_row.values()))
        return Table(m.heading, ("run", *self.rows), (*rows, cases))

    def _entry(self, run: str, row: str, m: Measure, beside: Sequence[Cell], *, seeds: bool = False) -> Entry:
        """Mean and spread; with its own n where a cell beside it has more cases."""
        cell = self.cells[run, row, m.name]
        if cell.never_annotated:
            return Entry(UNDEFINED, "not annotated in any case")
        details = [f"± {m.number(cell.sd)}"] if math.isfinite(cell.sd) else []
        if seeds and math.isfinite(cell.low):
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
        """In how many scans each structure is, and in how many of them each run found it."""
        rows = []
        for run in self.runs:
            entries = []
            for name in self.classes:
                counts = self.presence[run, name]
                inside = counts.get("ok", 0) + counts.get("prediction_empty", 0)
                outside = counts.get("reference_empty", 0)
                absent = outside + counts.get("both_empty", 0)
                missed = counts.get("prediction_empty", 0)
                details = [f"{missed} missed"] if missed else []
                details += [f"invented in {outside} of {absent}"] if outside else []
                text = f"{inside - missed} of {inside}" if inside + absent else UNDEFINED
                entries.append(
                    Entry(
                        text, ", ".join(details) or ("" if inside + absent else "not annotated in any case")
                    )
                )
            rows.append((Entry(self.name(run)), *entries))
        seeds = " Scans count once for each seed." if max(self.seeds.values()) > 1 else ""
        legend = f"Scans in which the structure was found, of those whose reference has it.{seeds}"
        return Table("Structures found", ("run", *self.classes), tuple(rows), legend)

    def size_table(self) -> Table | None:
        """The first metric for small, middle and large structures."""
        if self.sizes is None:
            return None
        m = self.measures[0]
        rows = [
            (
                Entry(f"{one.class_name}, {one.name} ({one.low_ml:.3g} to {one.high_ml:.3g} ml)"),
                *(Entry(m.number(one.means[run])) for run in self.runs),
                Entry(str(one.cases)),
            )
            for one in self.sizes.strata
        ]
        legend = "The cases of each structure in thirds by the volume of the reference."
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
        """All tables for a paper (LaTeX with the package booktabs); the best value is bold."""
        return "\n\n".join(table.to_latex() for table in self.tables()) + "\n"

    def _notes(self) -> list[str]:
        return [*(f"{heading}: {text}" for heading, text in self.definitions()), *self.exclusions()]

    def to_csv(self) -> str:
        """One line for each run, row and metric. Values are as scored: Dice in 0..1, distances with unit."""
        text = io.StringIO()
        records = [
            dict(zip(record, cells(map(_csv_field, record.values())), strict=True))
            for record in self._records()
        ]
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue()

    def to_json(self) -> str:
        """Everything that the CSV says, and what it is about; an undefined value is null."""
        about = {
            "answer": self.answer(),
            "description": self.description(),
            "definitions": dict(self.definitions()),
            "variant": self.variant,
            "reference": self.reference,
            "seeds": dict(self.seeds),
            "cases": list(self.cases),
            "patients": list(self.patients),
            "cautions": list(self.cautions()),
            "splits": {run: list(splits) for run, splits in self.splits.items()},
            "ranks": {metric: [one._asdict() for one in ranks] for metric, ranks in self.ranks.items()},
        }
        return (
            json.dumps(
                {**about, "values": list(self._records())}, indent=2, ensure_ascii=False, allow_nan=False
            )
            + "\n"
        )

    def _records(self) -> Iterator[dict[str, object]]:
        nothing = Difference(mean=_NAN, low=_NAN, high=_NAN, p=_NAN, n=0)
        for (run, row, name), cell in self.cells.items():
            found = self.differences.get((run, row, name), nothing)
            unit = next(m.unit for m in self.measures if m.name == name)
            yield {
                "run": run,
                "class": row,
                "metric": name,
                "unit": "" if unit == "%" else unit,
                "mean": _or_none(cell.mean),
                "sd": _or_none(cell.sd),
                "n": cell.n,
                "seed_means": [_or_none(value) for value in cell.seed_means],
                "seed_sd": _or_none(cell.seed_sd),
                "low": _or_none(cell.low),
                "high": _or_none(cell.high),
                "patients": cell.patients,
                "best": (run, row, name) in self.best,
                "excluded": dict(cell.excluded),
                "difference": _or_none(found.mean),
                "difference_low": _or_none(found.low),
                "difference_high": _or_none(found.high),
                "p": _or_none(found.p),
                "p_holm": _or_none(found.p_holm),
                "n_paired": found.n,
                "patients_paired": found.patients,
                "split": ",".join(self.splits[run]),
                "saw_test_patients": len(self.seen.get(run, ())),
            }


def _difference_entry(found: Difference, m: Measure, beside: Sequence[Difference]) -> Entry:
    own_n = f"n {found.n}" if found.n < max(other.n for other in beside) else ""
    details = [part for part in (_interval(found, m), p_text(found.p_holm), own_n) if part]
    return Entry(m.number(found.mean, signed=True), ", ".join(details))


def _interval(found: Difference, m: Measure) -> str:
    if not math.isfinite(found.low):
        return ""
    return f"[{m.number(found.low, signed=True)}, {m.number(found.high, signed=True)}]"


def _cases(n: int) -> str:
    return f"{n} case" if n == 1 else f"{n} cases"


def _patients(n: int) -> str:
    return f"{n} patient" if n == 1 else f"{n} patients"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv_field(value: object) -> object:
    if isinstance(value, dict):
        return ";".join(f"{status}={n}" for status, n in value.items())
    if isinstance(value, list):
        return ";".join("" if item is None else repr(item) for item in value)
    return value


def _stability(one: Rank) -> str:
    """How firm the place of a run is; nothing of too few patients."""
    if one.low is None or one.high is None or one.first is None:
        return ""
    return f"[{one.low:g}, {one.high:g}], first in {100 * one.first:.0f} %"
