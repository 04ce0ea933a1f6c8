"""ACDC in 2D with one annotated structure per patient: three methods, and full supervision as the ceiling.

python benchmarks/acdc.py --source ACDC_FOLDER --work runs/acdc
"""

from __future__ import annotations

from pathlib import Path

from sweep import Job, collect, parse, perform

from labelwise import run

RECIPE = Path(__file__).parents[1] / "recipes" / "acdc" / "slices_128.toml"
# row of the table -> method, manifest
ROWS = {
    "naive": ("naive", "one_structure"),
    "supervised": ("supervised", "one_structure"),
    "mean_teacher": ("mean_teacher", "one_structure"),
    "full_supervision": ("supervised", "complete"),
}
VARIANTS = {"scores": {"unit": "voxels", "variant": "default"}}
PROTOCOL = {
    "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
    "labels": "each training patient is annotated with one of three structures, each structure equally often",
    "resolution": "slices of 128x128, predictions evaluated on the original grid",
    "checkpoint": "last iteration; nothing selected on test patients",
    "scores": "per volume in 3D; distances in voxels (the files store no spacing)",
}


def main() -> None:
    options = parse(str(__doc__).splitlines()[0], list(ROWS))
    complete, one = options.work / "complete", options.work / "one_structure"
    if not (one / "manifest.csv").exists():
        run.import_data([options.source], complete)
        run.simulate(complete, one, "one_organ_per_case", seed=0)
    jobs = [
        Job(row, RECIPE, options.work / manifest, seed, {"method.name": method})
        for seed in options.seeds
        for row, (method, manifest) in ROWS.items()
    ]
    for job in jobs:
        if job.name in options.only and not options.collect:
            perform(job, options.work, variants=VARIANTS)
    collect("acdc_one_structure", jobs, options.work, PROTOCOL)


if __name__ == "__main__":
    main()
