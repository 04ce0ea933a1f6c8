"""ACDC in 2D with 3 and 7 of 70 patients labelled: every semi-supervised method, and the ceiling.

python benchmarks/acdc_few_labels.py --source ACDC_FOLDER --work runs/acdc_few_labels
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from semi_rows import apart, semi_rows, with_batch
from sweep import Row, Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "slices_128.toml"
RECIPE_STEPS = 800
STEPS = {3: 400, 7: RECIPE_STEPS}  # by the number of labelled patients
CASES = 4  # slices of each kind in a batch; the recipe has 8, which doubles the time of the sweep

# Chosen by --tune: the last ten patients of the training list are scored, and not trained on.
CHOSEN: dict[str, dict[str, Any]] = {}


def named(number: int) -> dict[str, Row]:
    """The rows of one number of labelled patients."""
    rows = semi_rows(RECIPE, f"labelled_{number}", steps=STEPS[number], settings=CHOSEN)
    fewer = {} if STEPS[number] == RECIPE_STEPS else {"train.steps": [STEPS[number]]}
    return {
        f"{name}_of_{number}": with_batch(row, CASES).with_changes({**fewer, **row.changes})
        for name, row in rows.items()
    }


ROWS = {name: row for number in STEPS for name, row in named(number).items()}
GROUP_NORM = ("supervised", "mean_teacher")
APART = ("unlabelled_in_batch_norm_only", "mean_teacher", "cps", "guidednet")

SWEEP = Sweep(
    name="acdc_few_labels",
    rows={
        **ROWS,
        **{
            f"{name}_apart_of_{number}": apart(ROWS[f"{name}_of_{number}"])
            for number in STEPS
            for name in APART
        },
        **{
            f"{name}_with_group_norm_of_{number}": ROWS[f"{name}_of_{number}"].with_changes(
                {"net.settings.norm": "group"}
            )
            for number in STEPS
            for name in GROUP_NORM
        },
        "full_supervision": with_batch(
            Row(RECIPE, "complete", {"method.name": "supervised", "sampling.unlabelled_cases": 0}), CASES
        ),
    },
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "the first 3 or 7 patients in the published order; the others without labels",
        "budget": f"{STEPS[7]} optimiser steps of {CASES} labelled and {CASES} unlabelled slices (supervised: the "
        f"labelled ones), {STEPS[3]} with 3 patients; methods of two stages: half of them in each",
        "resolution": "slices of 128x128, predictions evaluated on the original grid",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
    },
    # Volumes, two for each patient, which form a group.
    scarce={f"labelled_{number}": ("keep_labelled", {"n": number}) for number in STEPS},
    import_options={"split": "ssl4mis"},
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
