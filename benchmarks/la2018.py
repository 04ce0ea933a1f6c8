"""LA 2018 at half resolution, 8 of 80 scans labelled: semi-supervised methods on the 20 test scans.

    python benchmarks/la2018.py --source LA2018_FOLDER --work runs/la2018

About ten minutes a run on one core with bf16. Run it twice side by side with --only to use two cores.
"""

from __future__ import annotations

from pathlib import Path

from semi_rows import SEMI, semi_rows
from sweep import Row, Sweep

RECIPES = Path(__file__).parents[1] / "recipes" / "la2018_half"
HALF = RECIPES / "half_resolution.toml"
STEPS = 2000
SUPERVISED, MEAN_TEACHER = RECIPES / "supervised_8_of_80.toml", RECIPES / "mean_teacher_8_of_80.toml"

# With one organ the published class weights are 0 (background) and 2: see the method's page.
SETTINGS = {"guidednet": {"smallest_background_weight": 1.0}}
OTHERS = semi_rows(HALF, "labelled_8", steps=STEPS, settings=SETTINGS)

# This row tells what the consistency adds: it sees the same batches, so the batch norm of its network sees the
# unlabelled scans too, but nothing else is learnt from them.
WITHOUT_CONSISTENCY = Row(MEAN_TEACHER, "labelled_8", {"method.settings.consistency_weight": 0.0})

# DKUXNet's network, narrow (published width: 48, queries: 32), with its recipe's optimiser at a rate for fewer steps.
# It sees every case in two views, so its batches have half the cases: as many patches a step as in other rows. A step
# takes so much longer than in those that there are half as many; "supervised_for_dkuxnet" has the same training.
UXNET = {
    "train.steps": [STEPS // 2],
    "net": {"name": "uxnet", "settings": {"width": 4}},
    "train.optimizer": {"name": "adamw", "rate": 1e-3, "weight_decay": 0.01},
    "train.schedule": {"name": "poly", "warmup_steps": 100},
    "train.clip_gradient": 12.0,
}


def dkuxnet(**weights: float) -> Row:
    """DKUXNet, or a row of its ablation."""
    settings = {f"method.settings.{name}_consistency_weight": weight for name, weight in weights.items()}
    cases = {"sampling.labelled_cases": 1, "sampling.unlabelled_cases": 1}
    own = {"method.name": "dkuxnet", "method.settings.queries": 16}
    return Row(HALF, "labelled_8", {**own, **settings, **cases, **UXNET})


SWEEP = Sweep(
    name="la2018_half_resolution",
    rows={
        "supervised": Row(SUPERVISED, "labelled_8"),
        "mean_teacher": Row(MEAN_TEACHER, "labelled_8"),
        "mean_teacher_without_consistency": WITHOUT_CONSISTENCY,
        "mean_teacher_without_consistency_apart": WITHOUT_CONSISTENCY.with_changes(
            {"net.batch_norm_cases": 2}
        ),
        # As many patches in the batch norm as in the rows with unlabelled scans, but labelled ones only.
        "supervised_with_four_patches": Row(SUPERVISED, "labelled_8", {"sampling.labelled_cases": 4}),
        **{name: row for name, row in OTHERS.items() if name in SEMI and name != "mean_teacher"},
        # Published: batches twice as large as those of other methods, an eighth of the steps in the first stage. A pair
        # of scans makes one mixed patch, so these are as many patches a step as in other rows; "bcp" has half as many.
        "bcp_with_published_batch": OTHERS["bcp"].with_changes(
            {"sampling.labelled_cases": 4, "sampling.unlabelled_cases": 4, "train.steps": [250, 1750]}
        ),
        "guidednet_without_mixture": OTHERS["guidednet"].with_changes(
            {"method.settings.mixture_weight": 0.0}
        ),
        # The network's dropout of whole channels is in the features that the mixture compares.
        "guidednet_without_dropout": OTHERS["guidednet"].with_changes({"net.settings.dropout": 0.0}),
        "guidednet_without_mixture_and_dropout": OTHERS["guidednet"].with_changes(
            {"method.settings.mixture_weight": 0.0, "net.settings.dropout": 0.0}
        ),
        "supervised_for_dkuxnet": Row(
            HALF, "labelled_8", {"method.name": "supervised", "sampling.unlabelled_cases": 0, **UXNET}
        ),
        "dkuxnet": dkuxnet(),
        "dkuxnet_with_equal_steps": dkuxnet().with_changes({"train.steps": [STEPS]}),  # twice their patches
        "dkuxnet_without_consistency": dkuxnet(segmentation=0.0, query=0.0),
        "dkuxnet_without_segmentation_consistency": dkuxnet(segmentation=0.0),
        "dkuxnet_without_query_consistency": dkuxnet(query=0.0),
        "full_supervision": Row(SUPERVISED, "complete"),
    },
    variants={
        "scores": {"unit": "mm", "variant": "default"},
        "scores_la_official": {"unit": "voxels", "variant": "la_official"},
    },
    protocol={
        "data": "LA 2018, published pre-processed scans (cropped around the label), 80 training and 20 test scans",
        "labelled": "the first 8 scans of train.list; the other 72 without labels",
        "resolution": "trained at 1.25 mm (half), predictions evaluated on the original grid of 0.625 mm",
        "checkpoint": "last iteration; no validation set, no component filter, nothing selected on test scans",
        "scores": "distances in mm, undefined for an empty prediction",
        "scores_la_official": "distances in voxels of 0.625 mm, asd from prediction to reference, empty = 0",
    },
    scarce={"labelled_8": ("keep_labelled", {"n": 8})},
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
