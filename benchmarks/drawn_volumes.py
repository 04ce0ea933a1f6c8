"""How large networks draw structures in the scans that they learn from without labels, and why.

    python benchmarks/drawn_volumes.py --work runs/acdc_long

Takes the trained networks of `acdc_long.py` (seed 0) and every fourth volume of the unlabelled training patients,
whose labels are on disk to compare with. Beside the volume of what is drawn it gives the sum of the scores: what a
network takes the volume for on average, and what pseudo-labels pull towards. `size` is how large the structures are
in the few labelled patients, as multiples of the others: what the labels teach.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from metadata import write_result
from numpy.typing import NDArray

import labelwise
from labelwise.cohort.manifest import Manifest, read_case_image, read_case_labels, read_manifest
from labelwise.types import Case

NUMBERS = (3, 7)
METHODS = ("supervised", "self_training")
EACH = 4  # volumes apart

Volumes = NDArray[np.float64]


def volumes(labels: NDArray[Any], classes: int) -> Volumes:
    """Voxels of each structure."""
    counts: Volumes = np.bincount(labels.ravel(), minlength=classes)[1:].astype(float)
    return counts


def measured(trained: Path, cases: Sequence[Case], complete: Manifest) -> dict[str, list[float]]:
    """What a network draws and scores, as multiples of the truth, and its Dice; one number a structure."""
    model = labelwise.load_model(trained)
    classes = len(complete.label_space.names)
    true, drawn, scored = (np.zeros(classes - 1) for _ in range(3))
    overlap = []
    for case in cases:
        scores = model.predict_scores(read_case_image(case, complete)).data
        labels = read_case_labels(case, complete).data
        found = scores.argmax(axis=0)
        mine, theirs = volumes(found, classes), volumes(labels, classes)
        overlap.append(
            2 * volumes(np.where(found == labels, labels, 0), classes) / np.maximum(mine + theirs, 1)
        )
        true, drawn = true + theirs, drawn + mine
        scored = scored + scores[1:].sum(axis=(1, 2, 3), dtype=np.float64)
    return {
        "drawn": (drawn / true).tolist(),
        "scored": (scored / true).tolist(),
        "dice": np.mean(overlap, axis=0).tolist(),
    }


def rows_of(work: Path, number: int) -> dict[str, Any]:
    """The rows of one number of labelled patients."""
    complete = read_manifest(work / "complete")
    annotated = {
        case.id for case in read_manifest(work / f"labelled_{number}").split("train") if case.annotated
    }
    classes = len(complete.label_space.names)

    def mean_volumes(cases: Sequence[Case]) -> Volumes:
        found: Volumes = np.mean(
            [volumes(read_case_labels(case, complete).data, classes) for case in cases], axis=0
        )
        return found

    training = complete.split("train")
    labelled = [case for case in training if case.id in annotated]
    others = [case for case in training if case.id not in annotated]
    rows = {
        f"{method}_of_{number}": measured(work / f"{method}_of_{number}_seed0", others[::EACH], complete)
        for method in METHODS
    }
    size = mean_volumes(labelled) / mean_volumes(others)
    return {f"labelled_{number}": {"size": size.tolist()}, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="that of acdc_long.py")
    work: Path = parser.parse_args().work
    rows = {name: row for number in NUMBERS for name, row in rows_of(work, number).items()}
    facts = {
        "data": f"ACDC, every {EACH}th volume of the unlabelled training patients; seed 0",
        "structures": list(read_manifest(work / "complete").label_space.names[1:]),
        "rows": rows,
    }
    print(write_result("drawn_volumes", facts))


if __name__ == "__main__":
    main()
