"""`suggest`: which structure of which scan to annotate next."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.atomic import write_text
from labelwise.cohort.manifest import manifest_file, read_manifest
from labelwise.cohort.suggest import By, Candidate, open_masks, suggest_masks
from labelwise.documents import cells
from labelwise.errors import ConfigError, DataError

__all__ = ["Suggestion", "suggest"]

COLUMNS = ("rank", "case", "class", "data set", "patient", "voxels", "expected_dice")


@dataclass(frozen=True)
class Suggestion:
    """The masks to draw, in order, and what there was to choose from."""

    masks: tuple[Candidate, ...]
    candidates: int
    asked: bool  # whether a model had been asked about any of them

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each mask."""
        return [
            {
                "rank": rank,
                "case": one.case,
                "class": one.class_name,
                "data set": one.data_set,
                "patient": one.group,
                "voxels": one.voxels,
                "expected_dice": None if math.isnan(one.expected_dice) else round(one.expected_dice, 4),
            }
            for rank, one in enumerate(self.masks, start=1)
        ]

    def to_text(self) -> str:
        """A table, and the sum of the cost."""
        cells = [COLUMNS, *(tuple("" if v is None else str(v) for v in row.values()) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
        lines = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        counts = Counter(one.class_name for one in self.masks)
        voxels = sum(one.voxels or 0 for one in self.masks)
        cost = f"{len(self.masks)} of {self.candidates} masks: " + ", ".join(
            f"{number} {name}" for name, number in counts.items()
        )
        told = (
            f"about {voxels} voxels to draw"
            if self.asked
            else ("no model was asked where the structures are: labelwise predict MODEL --into DATA")
        )
        return "\n".join([*lines, "", f"{cost}; {told}"])

    def to_csv(self) -> str:
        """The rows as a table for spreadsheets."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(cells("" if value is None else value for value in row.values()) for row in self.rows)
        return text.getvalue()

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"masks": self.rows, "candidates": self.candidates, "asked": self.asked}


def suggest(
    data: Path | str,
    *,
    number: int = 10,
    by: By = "random",
    seed: int = 0,
    split: str = "train",
    output: Path | str | None = None,
) -> Suggestion:
    """Say which structures of which cases to annotate next; the rules stand in `labelwise.cohort.suggest`.

    What a model sees is taken from its proposals in the manifest (``labelwise predict MODEL --into DATA``). A structure
    that it does not see in a case is not suggested there. Without proposals only the counts of masks decide.

    Arguments
        number      of masks
        by          random, or doubt: the lowest expected Dice first
        seed        of the draw
        split       whose cases are annotated
        output      a table (.csv) to write

    Errors
        ConfigError     unknown strategy; `number` below 1; "doubt" where no model was asked
        DataError       every class is annotated in every case of the split
    """
    if number < 1:
        raise ConfigError("at least one mask is to be suggested", found=f"number = {number}")
    file = manifest_file(data)
    manifest = read_manifest(file)
    cases = manifest.split(split)
    candidates = open_masks(cases, manifest.label_space)
    if not candidates:
        raise DataError(
            f"nothing is left to annotate: every class is annotated in every case of the split '{split}'"
            if cases
            else f"no case is in the split '{split}'",
            file=file,
        )
    annotated = Counter(name for case in cases for name in case.annotated)
    masks = suggest_masks(candidates, annotated, number, by=by, seed=seed)
    asked = any(one.voxels is not None for one in candidates)
    found = Suggestion(tuple(masks), len(candidates), asked)
    if output is not None:
        write_text(Path(output), found.to_csv())
    return found
