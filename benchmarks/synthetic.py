"""Synthetic CT with one annotated organ per training scan: every partially supervised method, and the ceiling.

    python benchmarks/synthetic.py --work runs/synthetic

The last rows spend the same number of organ masks in other ways. "quarter": a quarter of the scans annotated completely
and the others not at all, for semi-supervised methods. "mixed": one organ in each scan, but drawn without regard to the
site, so that the style of a scan does not tell what is annotated in it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from partial_rows import LTUDA, LTUDA_BANKS, partial_rows
from sweep import Row, Sweep

from labelwise.synthetic.generate import SyntheticConfig, make_cohort

RECIPE = Path(__file__).parents[1] / "recipes" / "synthetic" / "one_organ.toml"
STEPS = 500
ORGANS = ("liver", "spleen", "kidneys", "pancreas")
SITES = ("site_a", "site_b", "site_c", "site_d")

# As chosen on the held-out patients of ACDC.
CHOSEN: dict[str, dict[str, Any]] = {
    "ltuda_cda": LTUDA,
    "ltuda": {**LTUDA_BANKS, "max_pixels": 20_000},  # of 294,912 in a view: bounds time and memory
}


def quarter(method: str, **sampling: int) -> Row:
    """A method on the completely annotated quarter of the scans, and on the others without labels."""
    changes = {f"sampling.{name}": cases for name, cases in sampling.items()}
    return Row(RECIPE, "complete_quarter", {"method.name": method, **changes})


def mixed(method: str) -> Row:
    """A method on scans with one annotated organ each, every organ in scans of several sites."""
    return Row(RECIPE, "mixed_sites", {"method.name": method, "sampling.unlabelled_cases": 0})


SWEEP = Sweep(
    name="synthetic_one_organ",
    rows={
        "naive": Row(RECIPE, "one_organ", {"method.name": "naive"}),
        "supervised": Row(RECIPE, "one_organ", {"method.name": "supervised"}),
        **partial_rows(RECIPE, "one_organ", steps=STEPS, settings=CHOSEN),
        "self_training": Row(RECIPE, "one_organ", {"method.name": "self_training"}),
        # Its teacher is believed from the first steps on, also in what it does not know yet.
        "self_training_without_reliability": Row(
            RECIPE, "one_organ", {"method.name": "self_training", "method.settings.reliability": False}
        ),
        "full_supervision": Row(RECIPE, "complete", {"method.name": "supervised"}),
        "quarter_supervised": quarter("supervised"),
        "quarter_mean_teacher": quarter("mean_teacher", labelled_cases=2, unlabelled_cases=2),
        "quarter_ua_mt": quarter("ua_mt", labelled_cases=2, unlabelled_cases=2),
        **{f"mixed_{method}": mixed(method) for method in ("supervised", "pl_seg", "multi_talent", "dodnet")},
    },
    variants={"scores": {"unit": "mm", "variant": "default"}},
    protocol={
        "data": "16 synthetic training CT of four sites, 8 completely annotated test scans; the same for all seeds",
        "labels": "each site annotates one of four organs: 16 organ masks",
        "labels of rows quarter_*": "4 scans annotated completely, 12 not at all: 16 organ masks too",
        "labels of rows mixed_*": "one organ per scan, drawn without regard to the site: 16 organ masks too",
        "budget": f"{STEPS} optimiser steps of 4 scans; ltuda: half of them in each stage",
        "checkpoint": "last iteration; nothing selected on test scans",
        "scores": "per scan in 3D, distances in mm",
    },
    scarce={
        "one_organ": (
            "by_data_set",
            {"keep": {site: [organ] for site, organ in zip(SITES, ORGANS, strict=True)}},
        ),
        "mixed_sites": ("one_structure_per_case", {"seed": 0}),
        "complete_quarter": ("equal_cost", {"k": 1, "order": "random"}),
    },
    make_complete=partial(
        make_cohort, config=SyntheticConfig(sites=dict.fromkeys(SITES, ORGANS), unlabelled=0)
    ),
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
