"""Whether a network answers better on labelled training scans than on those that were in its batches without labels.

    python benchmarks/labelled_or_not.py --work runs/synthetic_few_labels

Takes the trained networks of `synthetic_few_labels.py` (seed 0), whose batch norm sees labelled and unlabelled scans
together, except that of `supervised`. All training scans of that cohort have labels on disk to compare with.
"""

from __future__ import annotations

import argparse
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

from metadata import write_result

from labelwise import run
from labelwise.cohort.manifest import read_manifest

ROWS = ("supervised", "unlabelled_in_batch_norm_only", "cps", "guidednet")


def dice_of(work: Path, row: str) -> dict[str, float]:
    """Mean Dice over organs and scans, of the training scans with labels and of those without."""
    trained, target = work / f"{row}_seed0", work / "labelled_or_not" / row
    run.predict(trained, work / "labelled", target, split="train")
    scores = run.evaluate(target, work / "complete", target / "scores.csv", split="train", workers=1).scores
    labelled = {case.id for case in read_manifest(work / "labelled").split("train") if case.annotated}
    found = {True: list[float](), False: list[float]()}
    for score in scores:
        if score.metric == "dice" and not isnan(score.value):
            found[score.case in labelled].append(score.value)
    return {"labelled": mean(found[True]), "unlabelled": mean(found[False])}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="that of synthetic_few_labels.py")
    work: Path = parser.parse_args().work
    present = [row for row in ROWS if (work / f"{row}_seed0" / "result.json").exists()]
    rows: dict[str, Any] = {row: dice_of(work, row) for row in present}
    print(write_result("labelled_or_not", {"data": "20 training scans, 2 of them with labels", "rows": rows}))


if __name__ == "__main__":
    main()
