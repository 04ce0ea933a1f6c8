"""LA 2018 at half resolution on one strong base: 4 and 8 of 80 scans labelled, and the ceiling.

python benchmarks/la2018_long.py --source LA2018_FOLDER --work runs/la2018_long
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from long_rows import LABELLED_ONLY, ONE_COMPONENT, THEIR_DICE, few_rows, row
from sweep import Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "la2018_half" / "long.toml"
STEPS = 1500
ALL_LABELLED = LABELLED_ONLY | {"sampling.labelled_cases": 4}
# With one structure the published class weights are 0 (background) and 2: see the method's page.
SETTINGS: dict[str, dict[str, Any]] = {"guidednet": {"method.settings.smallest_background_weight": 1.0}}

SWEEP = Sweep(
    name="la2018_long",
    rows={
        "full_supervision": row(RECIPE, "supervised", "complete", STEPS, **ALL_LABELLED, **THEIR_DICE),
        **{
            f"{name}_of_{number}": one
            for number in (8, 4)
            for name, one in few_rows(
                RECIPE, f"labelled_{number}", STEPS, labelled_only=ALL_LABELLED, settings=SETTINGS
            ).items()
        },
    },
    variants={
        "scores": {"unit": "mm", "variant": "default"},
        "scores_la_official": {"unit": "voxels", "variant": "la_official"},
    },
    protocol={
        "data": "LA 2018, published pre-processed scans (cropped around the label), 80 training and 20 test scans",
        "labelled": "of_4, of_8: the first scans of train.list; the others without labels",
        "base": "residual U-Net of width 8 with instance norm, preset 'strong', AdamW, averaged weights",
        "budget": f"{STEPS} optimiser steps of 4 patches of 64x64x48: 2 labelled and 2 unlabelled ones, or 4 labelled "
        "ones; methods of two stages: a third of the steps in the first",
        "resolution": "trained at 1.25 mm (half), predictions evaluated on the original grid of 0.625 mm",
        "prediction": "the largest component of each structure, as a plan has it for organs",
        "checkpoint": "last iteration; no validation set, nothing selected on test scans; "
        "settings chosen on held-out training patients of ACDC",
        "scores": "distances in mm, undefined for an empty prediction",
        "scores_la_official": "distances in voxels of 0.625 mm, asd from prediction to reference, empty = 0",
    },
    scarce={f"labelled_{number}": ("keep_labelled", {"n": number}) for number in (4, 8)},
    prediction=ONE_COMPONENT,
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
