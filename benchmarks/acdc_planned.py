"""ACDC in 2D with everything planned from the data: what unlabelled patients add there.

python benchmarks/acdc_planned.py --source ACDC_FOLDER --work runs/acdc_planned --tune --held-out 30
"""

from __future__ import annotations

from pathlib import Path

from long_rows import ONE_COMPONENT, row
from sweep import Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "planned.toml"
STEPS = 1200

SWEEP = Sweep(
    name="acdc_planned",
    rows={
        "full_supervision": row(RECIPE, "supervised", "complete", STEPS),
        **{
            f"{method}_of_{number}": row(RECIPE, method, f"labelled_{number}", STEPS)
            for number in (3, 7)
            for method in ("supervised", "self_training")
        },
    },
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "of_3, of_7: the first patients in the published order are labelled, the others not",
        "base": "planned from the data: spacing, patch, network, batch, augmentation",
        "budget": f"{STEPS} optimiser steps",
        "prediction": "the largest component of each structure, as a plan has it for organs",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
    },
    scarce={f"labelled_{number}": ("keep_labelled", {"n": number}) for number in (3, 7)},
    import_options={"split": "ssl4mis"},
    prediction=ONE_COMPONENT,
    held_out=30,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
