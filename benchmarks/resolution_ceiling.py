"""What a coarser grid costs: the Dice of a perfect network whose labels were sampled there, on the grid of the scan.

    python benchmarks/resolution_ceiling.py --work runs/acdc_long

Takes the labels of the training patients in the complete manifest of `acdc_long.py`. `labels` are those a network
learns from and gives: each voxel of the slices has the label at its centre, and restoring looks at the neighbours'
labels. `shares` is what the same grid could carry: how much of a voxel each class fills, restored as scores are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from metadata import write_result

from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.preprocess.resample import resample_labels, restore_labels, restore_scores
from labelwise.types import Array

SIDES = (96, 128, 160, 192)  # of the slices, in voxels


def restored(labels: Array, side: int, classes: int) -> Mapping[str, Array]:
    """Labels (X, Y, Z) after a way through slices of side x side, as labels and as shares."""
    small = (side, side, labels.shape[2])
    one_hot = np.stack([labels == value for value in range(classes)]).astype(np.float32)
    return {
        "labels": restore_labels(resample_labels(labels, small), labels.shape),
        "shares": restore_scores(restore_scores(one_hot, small), labels.shape).argmax(axis=0),
    }


def dice(found: Array, labels: Array, classes: int) -> list[float]:
    """Of each structure; NaN where there is none."""
    common = np.bincount(labels[found == labels], minlength=classes)[1:]
    both = sum(np.bincount(each.ravel(), minlength=classes)[1:] for each in (found, labels))
    return list(np.divide(2 * common, both, out=np.full(classes - 1, np.nan), where=both > 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="that of acdc_long.py")
    complete = read_manifest(parser.parse_args().work / "complete")
    names = complete.label_space.names
    found: dict[tuple[int, str], list[list[float]]] = {}
    for case in complete.split("train"):
        labels = np.ascontiguousarray(read_case_labels(case, complete).data)
        for side in SIDES:
            for way, back in restored(labels, side, len(names)).items():
                found.setdefault((side, way), []).append(dice(back, labels, len(names)))
    rows: dict[str, dict[str, Any]] = {}
    for (side, way), each in found.items():
        rows.setdefault(str(side), {})[way] = dict(
            zip(names[1:], np.nanmean(each, axis=0).tolist(), strict=True)
        )
    facts = {
        "data": f"ACDC, labels of the {len(complete.split('train'))} training volumes",
        "structures": list(names[1:]),
        "rows": rows,
    }
    print(write_result("resolution_ceiling", facts))


if __name__ == "__main__":
    main()
