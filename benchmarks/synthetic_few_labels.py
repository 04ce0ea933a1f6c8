"""Synthetic CT with 10 % of the training scans labelled: GuidedNet on small organs, against CPS and labels alone.

python benchmarks/synthetic_few_labels.py --work runs/synthetic_few_labels

The mean volumes of the organs stand in the result file too, so that Dice can be read against size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from semi_rows import apart, semi_rows, with_batch
from sweep import Row, Sweep

from labelwise import run
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from synthetic import ORGANS, RECIPE, SITES

STEPS = 500
CASES_PER_SITE, LABELLED = 5, 2  # 2 of 20
COHORT = SyntheticConfig(
    sites=dict.fromkeys(SITES, ORGANS), cases_per_site=CASES_PER_SITE, unlabelled=0, test=16
)


def organ_volumes(complete: Path) -> Mapping[str, Any]:
    """Mean volume of each organ in the test scans."""
    rows = run.measure(complete, split="test", workers=1).rows
    return {
        "organ_volumes_ml": {
            organ: round(mean(row.volume_ml for row in rows if row.structure == organ), 1) for organ in ORGANS
        }
    }


# The terms of GuidedNet, and how each is left out.
TERMS: Mapping[str, Mapping[str, Any]] = {
    "mixture": {"mixture_weight": 0.0},
    "class_weights": {"class_weighted": False},
    "mixture_and_class_weights": {"mixture_weight": 0.0, "class_weighted": False},
    "cross_supervision": {"cross_weight": 0.0},
    "supervision": {"supervised_weight": 0.0},
}
METHODS = ("cps", "guidednet", "mean_teacher")
SEMI = semi_rows(RECIPE, "labelled", steps=STEPS, methods=METHODS)


def guidednet_without(settings: Mapping[str, Any]) -> Row:
    """A row of GuidedNet's ablation."""
    return SEMI["guidednet"].with_changes(
        {f"method.settings.{name}": value for name, value in settings.items()}
    )


def with_batches(rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows, with the batches of this sweep."""
    return {name: with_batch(row, 2) for name, row in rows.items()}


ROWS = with_batches(
    {
        **SEMI,
        **{f"guidednet_without_{term}": guidednet_without(settings) for term, settings in TERMS.items()},
    }
)
FULL = Row(RECIPE, "complete", {"method.name": "supervised", "sampling.unlabelled_cases": 0})
APART = ("unlabelled_in_batch_norm_only", *METHODS)

SWEEP = Sweep(
    name="synthetic_few_labels",
    rows={
        **ROWS,
        **{f"{name}_apart": apart(ROWS[name]) for name in APART},
        **with_batches({"full_supervision": FULL}),
    },
    variants={"scores": {"unit": "mm", "variant": "default"}},
    protocol={
        "data": f"{CASES_PER_SITE * len(SITES)} synthetic training CT of four sites, {COHORT.test} test scans; "
        "the same for all seeds",
        "labels": f"{LABELLED} scans annotated completely, drawn at random; the others not at all",
        "budget": f"{STEPS} optimiser steps of 2 labelled and 2 unlabelled scans (supervised: the labelled ones)",
        "checkpoint": "last iteration; nothing selected on test scans",
        "scores": "per scan in 3D, distances in mm",
    },
    scarce={"labelled": ("keep_labelled", {"n": LABELLED, "order": "random"})},
    make_complete=partial(make_cohort, config=COHORT),
    describe=organ_volumes,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
