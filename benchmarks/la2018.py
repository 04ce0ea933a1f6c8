"""LA 2018 at half resolution, 8 of 80 scans labelled: `supervised` against `mean_teacher` on the 20 test scans.

    python benchmarks/la2018.py --source LA2018_FOLDER --work runs/la2018

About ten minutes a run on one core with bf16. Run it twice side by side with --only to use two cores.
"""

from __future__ import annotations

from pathlib import Path

from sweep import Job, collect, parse, perform

from labelwise import run

RECIPES = Path(__file__).parents[1] / "recipes" / "la2018"
SILENT = {"method.settings.consistency_weight": 0.0}
# row of the table -> recipe, changes. The third row tells what the consistency adds: it sees the same batches,
# so the batch norm of its network sees the unlabelled scans too, but nothing else is learnt from them.
ROWS = {
    "supervised": ("supervised_8_of_80.toml", {}),
    "mean_teacher": ("mean_teacher_8_of_80.toml", {}),
    "mean_teacher_without_consistency": ("mean_teacher_8_of_80.toml", SILENT),
}
VARIANTS = {
    "scores": {"unit": "mm", "variant": "default"},
    "scores_la_official": {"unit": "voxels", "variant": "la_official"},
}
PROTOCOL = {
    "data": "LA 2018, published pre-processed scans (cropped around the label), 80 training and 20 test scans",
    "labelled": "the first 8 scans of train.list; the other 72 without labels",
    "resolution": "trained at 1.25 mm (half), predictions evaluated on the original grid of 0.625 mm",
    "checkpoint": "last iteration; no validation set, no component filter, nothing selected on test scans",
    "scores": "distances in mm, undefined for an empty prediction",
    "scores_la_official": "distances in voxels of 0.625 mm, asd from prediction to reference, empty = 0",
}


def main() -> None:
    options = parse(str(__doc__).splitlines()[0], list(ROWS))
    complete, data = options.work / "complete", options.work / "labelled_8"
    if not (data / "manifest.csv").exists():
        run.import_data([options.source], complete)
        run.simulate(complete, data, "keep_labelled", n=8)
    jobs = [
        Job(name, RECIPES / recipe, data, seed, changes)
        for seed in options.seeds
        for name, (recipe, changes) in ROWS.items()
    ]
    for job in jobs:
        if job.name in options.only and not options.collect:
            perform(job, options.work, variants=VARIANTS)
    collect("la2018_half_resolution", jobs, options.work, PROTOCOL)


if __name__ == "__main__":
    main()
