"""A third structure added to a trained model, from patients that annotate nothing else; ACDC in 2D.

python benchmarks/add_a_class.py --source ACDC_FOLDER --work runs/add_a_class
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from long_rows import ONE_COMPONENT, THEIR_DICE, row
from sweep import Sweep

from labelwise.cohort.manifest import Manifest
from labelwise.cohort.split import groups_of
from labelwise.types import BACKGROUND, Case, LabelSpace

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "long_128.toml"
STEPS = 600
SMALL = {"net.settings.width": 8, "sampling.labelled_cases": 8, "sampling.unlabelled_cases": 0}
FIRST, ADDED = ("right ventricle", "myocardium"), ("left ventricle",)


@dataclass(frozen=True)
class Rounds:
    """The first half of the training patients annotates FIRST, the second half ADDED.

    A half that is not among `halves` takes no part. Without the second one nobody knows of ADDED: it is background,
    and no class.
    """

    halves: tuple[int, ...]

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest of these halves."""
        patients = list(groups_of(manifest.split("train")))
        half = {name: int(number >= len(patients) // 2) for number, name in enumerate(patients)}

        def scarce(case: Case) -> Case:
            if case.split != "train":
                return case
            taken = half[case.group] in self.halves
            return replace(
                case,
                annotated=case.annotated & {*(FIRST, ADDED)[half[case.group]]},
                split="train" if taken else "",
            )

        manifest = manifest.replace_cases(map(scarce, manifest.cases))
        return manifest if 1 in self.halves else without_added(manifest)


def without_added(manifest: Manifest) -> Manifest:
    """The manifest as it was before anybody thought of ADDED."""
    return Manifest(
        LabelSpace(tuple(name for name in manifest.label_space.names if name not in ADDED)),
        {
            name: replace(
                data_set,
                values={value: BACKGROUND if of in ADDED else of for value, of in data_set.values.items()},
            )
            for name, data_set in manifest.data_sets.items()
        },
        tuple(replace(case, annotated=case.annotated - {*ADDED}) for case in manifest.cases),
    )


SWEEP = Sweep(
    name="add_a_class",
    rows={
        "first": row(RECIPE, "supervised", "first", STEPS, **SMALL, **THEIR_DICE),
        "add_class": replace(row(RECIPE, "add_class", "second", STEPS, **SMALL), after="first"),
        "without_distillation": replace(
            row(
                RECIPE, "add_class", "second", STEPS, **SMALL, **{"method.settings.distillation_weight": 0.0}
            ),
            after="first",
        ),
        "at_once": row(RECIPE, "supervised", "at_once", 2 * STEPS, **SMALL, **THEIR_DICE),
    },
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "the first 35 patients annotate right ventricle and myocardium, the other 35 the left ventricle",
        "rows": "first: the first half; add_class and without_distillation start from it and see the second half "
        "alone; at_once: both halves",
        "base": "residual U-Net of width 8 with instance norm, preset 'strong', AdamW, averaged weights",
        "budget": f"{STEPS} optimiser steps of 8 slices for each round, {2 * STEPS} at once",
        "resolution": "slices of 128x128, predictions evaluated on the original grid",
        "prediction": "the largest component of each structure, as a plan has it for organs",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing); first: of its two structures",
    },
    scarce={
        "first": (Rounds((0,)), {}),
        "second": (Rounds((1,)), {}),
        "at_once": (Rounds((0, 1)), {}),
    },
    import_options={"split": "ssl4mis"},
    prediction=ONE_COMPONENT,
    held_out=10,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
