"""ACDC in 2D at its full resolution, on the base that is planned for a processor: 3 labelled patients, and the ceiling.

python benchmarks/acdc_full.py --source ACDC_FOLDER --work runs/acdc_full
"""

from __future__ import annotations

from pathlib import Path

from acdc_long import SWEEP as HALF
from long_rows import ONE_COMPONENT, THEIR_DICE, row
from sweep import Sweep

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "full_resolution.toml"
STEPS = 2000
ALL_LABELLED = {"sampling.labelled_cases": 5, "sampling.unlabelled_cases": 0}

SWEEP = Sweep(
    name="acdc_full",
    rows={
        "full_supervision": row(RECIPE, "supervised", "complete", STEPS, **ALL_LABELLED, **THEIR_DICE),
        **{
            name: one
            for number in (3, 7)
            for name, one in {
                f"supervised_of_{number}": row(
                    RECIPE, "supervised", f"labelled_{number}", STEPS, **ALL_LABELLED, **THEIR_DICE
                ),
                f"self_training_of_{number}": row(RECIPE, "self_training", f"labelled_{number}", STEPS),
            }.items()
        },
    },
    variants=HALF.variants,
    protocol={
        **HALF.protocol,
        "base": "what is planned for a processor: residual U-Net with six scales, instance norm and deep supervision, "
        "preset 'default' with slices on their side, AdamW, averaged weights",
        "budget": f"{STEPS} optimiser steps of patches of 192x192: 2 labelled and 2 unlabelled, or 5 labelled",
        "resolution": "that of the scans",
    },
    scarce={name: HALF.scarce[name] for name in ("labelled_3", "labelled_7")},
    import_options=HALF.import_options,
    prediction=ONE_COMPONENT,
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
