"""What `check` costs beyond reading the files: its time over a bare read of the same files.

    python benchmarks/check_speed.py                            # 100 cases of 512 x 512 x 100, made once
    python benchmarks/check_speed.py --cases 12 --repeats 2 --data FOLDER --workers 1

A case is a CT (int16, .nii.gz) and a label map (uint8, .nii.gz) with four organs. Three ways to go through all of
them, one after the other in each repetition, with the same number of processes:

    check       `labelwise.quality.check.check`
    formats     `formats.read_image` and `formats.read_labels`: what training reads
    nibabel     the voxels as stored, and nothing else: the fastest bare read

The files are in the page cache. Time by the clock and of the processors: the latter does not depend on what else the
machine does. The start of the worker processes is subtracted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from metadata import write_result
from scipy import ndimage

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.engine import available_cpus, run_jobs
from labelwise.formats import read_image, read_labels
from labelwise.quality.check import check
from labelwise.types import Array, Case, LabelSpace

SPACE = LabelSpace(("background", "liver", "spleen", "left kidney", "right kidney"))
SPACING_MM = (0.8, 0.8, 3.0)
TARGET = 1.3
# Centre and half axes in parts of the field of view; x to the right, y to the front, z to the top.
BODIES = {
    1: ((0.68, 0.52, 0.62), (0.15, 0.16, 0.22)),
    2: ((0.26, 0.42, 0.66), (0.07, 0.09, 0.16)),
    3: ((0.32, 0.38, 0.34), (0.06, 0.07, 0.18)),
    4: ((0.64, 0.36, 0.30), (0.06, 0.07, 0.16)),
}


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        manifest = make_cohort(folder, options.cases, tuple(options.shape))
        times = measure(manifest, options.repeats, options.workers)
        payload = {
            "cases": options.cases,
            "shape": options.shape,
            "repeats": options.repeats,
            "workers": options.workers,
            "bytes": sum(file.stat().st_size for file in folder.glob("*.nii.gz")),
            "note": "seconds for all cases, median of the repeats; ratios are medians over the repeats",
            "wall_seconds": {name: round(float(np.median(way[:, 0])), 2) for name, way in times.items()},
            "cpu_seconds": {name: round(float(np.median(way[:, 1])), 2) for name, way in times.items()},
            "check_over_nibabel": {"wall": ratio(times, "nibabel", 0), "cpu": ratio(times, "nibabel", 1)},
            "check_over_formats": {"wall": ratio(times, "formats", 0), "cpu": ratio(times, "formats", 1)},
            "target": TARGET,
        }
    print(write_result("check_speed", payload).read_text())


def measure(manifest: Manifest, repeats: int, workers: int) -> dict[str, Array]:
    """(repeats, 2) seconds of each way, by the clock and of the processors.

    A first repetition, which also fills the page cache, does not count; nor does the start of worker processes.
    """
    ways: dict[str, Callable[[Manifest], Any]] = {
        "check": partial(checked, workers=workers),
        "formats": partial(read_all, read_with_formats, workers=workers),
        "nibabel": partial(read_all, read_with_nibabel, workers=workers),
    }
    start = {name: start_of_workers(way) if workers > 1 else np.zeros(2) for name, way in ways.items()}
    rounds = [
        {name: seconds_of(way, manifest) - start[name] for name, way in ways.items()}
        for _ in range(repeats + 1)
    ]
    return {name: np.array([times[name] for times in rounds[1:]]) for name in ways}


def seconds_of(way: Callable[[Manifest], Any], manifest: Manifest) -> Array:
    """By the clock, and of the processors in this process and in those that it started."""
    before = os.times()
    way(manifest)
    after = os.times()
    return np.array([after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])])


def start_of_workers(way: Callable[[Manifest], Any]) -> Array:
    """Seconds until processes that do next to nothing are started and gone."""
    with tempfile.TemporaryDirectory() as temporary:
        small = make_cohort(Path(temporary), 2, (16, 16, 16))
        way(small)
        return seconds_of(way, small)


def checked(manifest: Manifest, workers: int) -> None:
    problems = check(manifest, workers=workers)
    if errors := [problem for problem in problems if problem.severity == "error"]:
        raise SystemExit(f"the cohort should be sound: {errors[0]}")


def read_all(read: Callable[[Manifest], int], manifest: Manifest, workers: int) -> None:
    single = [manifest.replace_cases([case]) for case in manifest.cases]
    for outcome in run_jobs(read, single, workers=workers):
        if outcome.error:
            raise outcome.error


def read_with_formats(single: Manifest) -> int:
    case = single.cases[0]
    assert case.labels
    return read_image(case.images).data.size + read_labels(case.labels).data.size


def read_with_nibabel(single: Manifest) -> int:
    case = single.cases[0]
    return sum(np.asarray(nibabel.load(file).dataobj).size for file in (*case.images, case.labels))


def ratio(times: dict[str, Array], other: str, clock: int) -> float:
    """Median over the repetitions, in which the ways ran one after the other."""
    return round(float(np.median(times["check"][:, clock] / times[other][:, clock])), 3)


def make_cohort(folder: Path, cases: int, shape: tuple[int, int, int]) -> Manifest:
    """Files that are there already, of this size, are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "x".join(map(str, shape))
    made = [make_case(folder, f"{name}_{number:03d}", shape, number) for number in range(cases)]
    data_set = DataSet("made", dict(enumerate(SPACE.names)), "ct")
    return Manifest(SPACE, {"made": data_set}, tuple(made))


def make_case(folder: Path, name: str, shape: tuple[int, int, int], seed: int) -> Case:
    image, labels = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
    case = Case(name, (image,), labels, frozenset(SPACE.structures), data_set="made", split="train")
    if image.exists() and labels.exists():
        return case
    random = np.random.default_rng(seed)
    # Stored left to right reversed and back to front, as scanners and dcm2niix do.
    affine = np.diag([-SPACING_MM[0], SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = SPACING_MM[0] * shape[0] / 2, -200.0, 100.0
    x, y, z = np.meshgrid(*((np.arange(size) + 0.5) / size for size in shape), indexing="ij", sparse=True)
    x = 1 - x
    hu = np.full(shape, -1000.0, np.float32)
    hu[np.broadcast_to(((x - 0.5) / 0.42) ** 2 + ((y - 0.5) / 0.34) ** 2 < 1, shape)] = -90
    voxels = np.zeros(shape, np.uint8)
    for value, (centre, half) in BODIES.items():
        moved = np.add(centre, random.normal(0, 0.01, 3))
        distance = sum(((axis - c) / h) ** 2 for axis, c, h in zip((x, y, z), moved, half, strict=True))
        voxels[distance < 1] = value
    hu[voxels > 0] = 110
    texture = ndimage.zoom(
        random.normal(0, 12, [max(2, size // 4) for size in shape]).astype(np.float32), 4, order=1
    )
    hu[tuple(slice(size) for size in texture.shape)] += texture[tuple(map(slice, shape))]
    hu += random.normal(0, 8, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(hu.round().astype(np.int16), affine), image)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), labels)
    return case


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--shape", type=int, nargs=3, default=[512, 512, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument(
        "--data", type=Path, help="folder to keep the files in; files that are there are used"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
