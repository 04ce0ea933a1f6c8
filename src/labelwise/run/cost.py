"""`cost`: what labels are worth, from runs that were trained with more and with fewer of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.atomic import atomic_path, write_text
from labelwise.cohort.manifest import Manifest
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.scores import PRESENT, Score
from labelwise.report.cost import UNITS, Budget, Cost, Unit, annotation_cost
from labelwise.run.compare import learnt_from, repetitions_of, runs_by_name
from labelwise.run.pairing import SCORES
from labelwise.types import Array

__all__ = ["CostResult", "cost"]

DICE = (0.8, 0.9)


@dataclass(frozen=True)
class CostResult:
    """What labels are worth, and the files that say so."""

    cost: Cost
    files: tuple[Path, ...]

    def to_text(self) -> str:
        """One table for each method, and where it was written."""
        return self.cost.to_text() + "".join(f"written: {file}\n" for file in self.files)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**self.cost.facts(), "files": [str(file) for file in self.files]}


def cost(
    runs: Sequence[Path | str],
    output: Path | str | None = None,
    *,
    dice: Sequence[float] = DICE,
    by: Unit = "masks",
) -> CostResult:
    """Fit how Dice grows with the labels, and say how many more a wanted Dice needs, for each structure.

    A run whose training or validation cases hold a patient of the scores is marked, and a structure that no reference
    has is left out.

    Arguments
        runs        folders of sweeps with budgets; or folders of evaluated runs, those of one budget in one folder
        output      folder for cost.csv, cost.txt and cost.png
        dice        Dice values that are wanted, between 0 and 1
        by          what is counted: masks (training scans in which the structure is annotated; for the mean over
                    structures, all masks), or scans (in which any structure is annotated)

    Errors
        ConfigError     no run, a Dice that is none, or an unknown way to count
        DataError       a run without scores or whose manifest is gone; one budget only; budgets that were scored on
                        other cases or classes
    """
    if by not in UNITS:
        raise ConfigError(
            f"unknown way to count labels '{by}'", expected=" or ".join(UNITS), code="unknown-name"
        )
    if not dice or not all(0 < value < 1 for value in dice):
        found = ", ".join(map(str, dice))
        raise ConfigError("a wanted Dice lies between 0 and 1", found=found, expected="such as 0.85")
    budgets: dict[Path, list[Path]] = {}
    for folder in (each for run in runs for each in _expanded(Path(run))):
        budgets.setdefault(folder.resolve().parent, []).append(folder)
    tables: dict[str, dict[str, list[list[Score]]]] = {}
    manifests: dict[tuple[str, str], list[Manifest]] = {}
    seen: dict[str, set[str]] = {}
    for place, folders in budgets.items():
        for row, repetitions in runs_by_name(folders).items():
            lists, known = repetitions_of(row, repetitions, {"dice"})
            tables.setdefault(row, {})[str(place)] = lists
            seen.setdefault(row, set()).update(known)
            manifests[row, str(place)] = [learnt_from(folder) for folds in repetitions for folder in folds]
    cases = _common_cases(tables)
    classes, structures = _structures(tables)
    absent = [name for name in classes if name not in structures]
    rows = {
        row: [
            _budget(Path(place).name, manifests[row, place], lists, list(cases), structures)
            for place, lists in found.items()
        ]
        for row, found in tables.items()
    }
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(cases.values()))}
    patients = np.array([numbers[patient] for patient in cases.values()])
    result = annotation_cost(
        rows, structures, patients, tuple(dice), unit=by,
        seen={row: len(known) for row, known in seen.items() if known},
        notes=[f"In no reference, so without a curve: {', '.join(absent)}."] if absent else (),
    )  # fmt: skip
    return CostResult(result, _written(result, output))


def _written(result: Cost, output: Path | str | None) -> tuple[Path, ...]:
    if output is None:
        return ()
    folder = Path(output)
    write_text(folder / "cost.csv", result.to_csv())
    write_text(folder / "cost.txt", result.to_text())
    with atomic_path(folder / "cost.png") as temporary:
        temporary.write_bytes(result.to_png())
    return tuple(folder / f"cost.{kind}" for kind in ("csv", "txt", "png"))


def _expanded(folder: Path) -> list[Path]:
    """The runs in the folder of a sweep or of a budget; a run is itself."""
    if (folder / SCORES).exists():
        return [folder]
    found = sorted(
        file.parent for pattern in (f"*/{SCORES}", f"*/*/{SCORES}") for file in folder.glob(pattern)
    )
    if not found:
        raise DataError(
            "there is no evaluated run here", file=folder, expected=f"a sweep, or runs with {SCORES}",
            do="run `labelwise sweep`, or `labelwise evaluate`", code="not-found",
        )  # fmt: skip
    return found


def _common_cases(tables: dict[str, dict[str, list[list[Score]]]]) -> dict[str, str]:
    """Case -> patient; the same in all runs.

    Errors
        DataError   a run that was scored on other cases
    """
    first: dict[str, str] = {}
    owner = ""
    for row, budgets in tables.items():
        for place, lists in budgets.items():
            for scores in lists:
                cases = {score.case: score.patient for score in scores}
                if not first:
                    first, owner = cases, f"'{row}' in {place}"
                elif cases.keys() != first.keys():
                    apart = sorted(cases.keys() ^ first.keys())
                    raise DataError(
                        f"'{row}' in {place} was scored on other cases than {owner}",
                        case=apart[0],
                        found=f"{len(apart)} cases that only one of them has",
                        do="evaluate all runs on the same cases; name finished sweeps only",
                    )
    return first


def _structures(tables: Mapping[str, Mapping[str, Sequence[Sequence[Score]]]]) -> tuple[list[str], list[str]]:
    """The classes of all runs, which must be the same, and those of them that a reference has.

    Errors
        DataError   a run that was scored on other classes; no reference has any structure
    """
    first: dict[str, None] = {}
    owner = ""
    present: set[str] = set()
    for row, budgets in tables.items():
        for place, lists in budgets.items():
            for scores in lists:
                classes = dict.fromkeys(score.class_name for score in scores)
                present |= {score.class_name for score in scores if score.status in PRESENT}
                if not first:
                    first, owner = classes, f"'{row}' in {place}"
                elif classes.keys() != first.keys():
                    raise DataError(
                        f"'{row}' in {place} has other classes than {owner}",
                        found=", ".join(sorted(classes.keys() ^ first.keys())),
                        expected=", ".join(first),
                        do="evaluate all runs with manifests of one label space",
                    )
    if not present:
        raise DataError("no reference has any structure, so labels are worth nothing", found=", ".join(first))
    return list(first), [name for name in first if name in present]


def _budget(
    name: str,
    manifests: Sequence[Manifest],
    lists: Sequence[Sequence[Score]],
    cases: Sequence[str],
    structures: Sequence[str],
) -> Budget:
    """Masks are the mean over the trainings: folds learn from different patients."""
    trains = [manifest.split("train") for manifest in manifests]
    masks = {
        structure: float(np.mean([sum(structure in case.annotated for case in train) for train in trains]))
        for structure in structures
    }
    dice: Array = np.full((len(lists), len(cases), len(structures)), np.nan)
    places = {case: number for number, case in enumerate(cases)}
    columns = {structure: number for number, structure in enumerate(structures)}
    for repetition, scores in enumerate(lists):
        for score in scores:
            if score.metric == "dice" and score.class_name in columns:
                dice[repetition, places[score.case], columns[score.class_name]] = score.value
    scans = float(np.mean([sum(bool(case.annotated) for case in train) for train in trains]))
    return Budget(name, masks, scans, dice)
