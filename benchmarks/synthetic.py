"""Synthetic CT with one annotated organ per training scan: every partially supervised method, and the ceiling.

    python benchmarks/synthetic.py --work runs/synthetic

The last rows spend the same number of organ masks in another way: a quarter of the scans annotated completely and the
others not at all, for semi-supervised methods.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sweep import Row, Sweep

from labelwise.data.synthetic import SyntheticConfig, make_cohort

RECIPE = Path(__file__).parents[1] / "recipes" / "synthetic" / "one_organ.toml"
CLASSIFIERS = ("linear", "labelled_prototype", "unlabelled_prototype")
SITES = {f"site_{letter}": ("liver", "spleen", "kidneys", "pancreas") for letter in "abcd"}


def one_organ(method: str, **changes: Any) -> Row:
    """A method on the scans with one organ each; ``a__b=1`` changes a.b."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return Row(RECIPE, "one_organ", {"method.name": method, **dotted})


SWEEP = Sweep(
    name="synthetic_one_organ",
    rows={
        "naive": one_organ("naive"),
        "supervised": one_organ("supervised"),
        "full_supervision": Row(RECIPE, "complete", {"method.name": "supervised"}),
    },
    variants={"scores": {"unit": "mm", "variant": "default"}},
    protocol={
        "data": "16 synthetic training CT of four sites, 8 completely annotated test scans; the same for all seeds",
        "labels": "each site annotates one of four organs",
        "checkpoint": "last iteration; nothing selected on test scans",
        "scores": "per scan in 3D, distances in mm",
    },
    scarce={
        "one_organ": (
            "by_source",
            {"keep": {f"site_{site}": [organ] for site, organ in zip("abcd", SITES["site_a"], strict=True)}},
        ),
    },
    make_complete=partial(make_cohort, config=SyntheticConfig(sites=SITES, unlabelled=0)),
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
