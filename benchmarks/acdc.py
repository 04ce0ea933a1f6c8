"""ACDC in 2D with one annotated structure per patient: three methods, and full supervision as the ceiling.

python benchmarks/acdc.py --source ACDC_FOLDER --work runs/acdc
"""

from __future__ import annotations

from pathlib import Path

from sweep import Row, Sweep

from labelwise import run

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "slices_128.toml"


def make_manifests(source: Path, work: Path) -> None:
    if not (work / "one_structure" / "manifest.csv").exists():
        run.import_data([source], work / "complete")
        run.simulate(work / "complete", work / "one_structure", "one_organ_per_case", seed=0)


SWEEP = Sweep(
    name="acdc_one_structure",
    rows={
        "naive": Row(RECIPE, "one_structure", {"method.name": "naive"}),
        "supervised": Row(RECIPE, "one_structure", {"method.name": "supervised"}),
        "mean_teacher": Row(RECIPE, "one_structure", {"method.name": "mean_teacher"}),
        "full_supervision": Row(RECIPE, "complete", {"method.name": "supervised"}),
    },
    variants={"scores": {"unit": "voxels", "variant": "default"}},
    protocol={
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "labels": "each training patient is annotated with one of three structures, each structure equally often",
        "resolution": "slices of 128x128, predictions evaluated on the original grid",
        "checkpoint": "last iteration; nothing selected on test patients",
        "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
    },
    make_manifests=make_manifests,
)

if __name__ == "__main__":
    SWEEP.main(str(__doc__).splitlines()[0])
