"""ACDC in 2D with one annotated structure per patient: every partially supervised method, and the ceiling.

python benchmarks/acdc.py --source ACDC_FOLDER --work runs/acdc
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from partial_rows import LTUDA, LTUDA_BANKS, longer, partial_rows
from sweep import Row, Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "slices_128.toml"
STEPS = 800

# Chosen by --tune: the last ten patients of the training list are scored, and not trained on.
CHOSEN: dict[str, dict[str, Any]] = {
    "conemos": {"pairs_per_batch": 8},  # one for each slice of a batch
    "ltuda_cda": LTUDA,
    "ltuda": LTUDA_BANKS,
}

ROWS = {
    "naive": Row(RECIPE, "one_structure", {"method.name": "naive"}),
    "supervised": Row(RECIPE, "one_structure", {"method.name": "supervised"}),
    "mean_teacher": Row(RECIPE, "one_structure", {"method.name": "mean_teacher"}),
    **partial_rows(RECIPE, "one_structure", steps=STEPS, settings=CHOSEN),
    "full_supervision": Row(RECIPE, "complete", {"method.name": "supervised"}),
}
LONG = ("supervised", "pl_seg", "ltuda_cda", "ltuda", "full_supervision")

SWEEP = Sweep(
    name="acdc_one_structure",
    rows=ROWS | longer(ROWS, LONG, times=2, steps=STEPS),
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "each training patient is annotated with one of three structures, each structure equally often",
        "budget": f"{STEPS} optimiser steps of 8 slices (mean_teacher: 8 more); ltuda: half of them in each stage",
        "budget of rows long_*": f"{2 * STEPS} steps",
        "resolution": "slices of 128x128, predictions evaluated on the original grid",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
    },
    scarce={"one_structure": ("one_structure_per_case", {"seed": 0})},
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
