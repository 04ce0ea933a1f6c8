"""ACDC in 2D on one strong base: 3 and 7 labelled patients, one structure per patient, and the ceiling.

python benchmarks/acdc_long.py --source ACDC_FOLDER --work runs/acdc_long
"""

from __future__ import annotations

from pathlib import Path

from long_rows import LABELLED_ONLY, ONE_COMPONENT, THEIR_DICE, few_rows, row
from sweep import Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "long_128.toml"
STEPS = 2000
ALL_LABELLED = LABELLED_ONLY | {"sampling.labelled_cases": 8}
NOT_TURNED = {"augment.on_side": 0.0}
PARTIAL = ("pl_seg", "ltuda", "multi_talent", "mean_teacher")

SWEEP = Sweep(
    name="acdc_long",
    rows={
        "full_supervision": row(RECIPE, "supervised", "complete", STEPS, **ALL_LABELLED, **THEIR_DICE),
        **{
            f"{name}_of_{number}": one
            for number in (3, 7)
            for name, one in few_rows(RECIPE, f"labelled_{number}", STEPS, labelled_only=ALL_LABELLED).items()
        },
        # Seven other patients, drawn at random, whose structures are about as large as those of the others.
        "supervised_of_7_alike": row(
            RECIPE, "supervised", "labelled_7_alike", STEPS, **ALL_LABELLED, **THEIR_DICE
        ),
        "self_training_of_7_alike": row(RECIPE, "self_training", "labelled_7_alike", STEPS),
        # What it costs to believe that every patient lies like the three that are labelled.
        "supervised_of_3_not_turned": row(
            RECIPE, "supervised", "labelled_3", STEPS, **ALL_LABELLED, **THEIR_DICE, **NOT_TURNED
        ),
        "self_training_of_3_not_turned": row(RECIPE, "self_training", "labelled_3", STEPS, **NOT_TURNED),
        **{
            f"{method}_of_one": row(RECIPE, method, "one_structure", STEPS, **ALL_LABELLED, **changes)
            for method, changes in {
                "naive": {},
                "supervised": THEIR_DICE,
                "self_training": {},
                **{method: {} for method in PARTIAL},
            }.items()
        },
    },
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "of_3, of_7: the first patients in the published order are labelled, the others not; of_one: each "
        "patient is annotated with one of three structures, each structure equally often",
        "base": "residual U-Net with instance norm (3.4 million weights), preset 'strong' with slices on their side, "
        "AdamW, averaged weights",
        "budget": f"{STEPS} optimiser steps of 8 slices: 4 labelled and 4 unlabelled ones, or 8 labelled ones; "
        "methods of two stages: a third of the steps in the first",
        "resolution": "slices of 128x128, predictions evaluated on the original grid",
        "prediction": "the largest component of each structure, as a plan has it for organs",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
    },
    scarce={
        **{f"labelled_{number}": ("keep_labelled", {"n": number}) for number in (3, 7)},
        "labelled_7_alike": ("keep_labelled", {"n": 7, "order": "random", "seed": 3}),
        "one_structure": ("one_structure_per_case", {"seed": 0}),
    },
    import_options={"split": "ssl4mis"},
    prediction=ONE_COMPONENT,
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
