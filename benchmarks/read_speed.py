"""What it costs to read a training patch: from the store, or by unpacking the whole scan as the LA codes do.

    python benchmarks/read_speed.py             # needs nothing: volumes of the shape of the LA scans
    LABELWISE_TEST_DATA=folder python ...       # the LA scans under folder/la2018

Three ways to the same voxels, image and label map. Milliseconds of CPU time in one thread, the files in the
page cache: that is what a loader pays, and it does not depend on what else the machine does.

    store       labelwise's chunked store, only the patch (image stored as float16)
    whole h5    read both arrays of the gzip-compressed h5 file, then cut: what the published codes do
    h5 patch    let h5py read only the patch from the same file
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import h5py
import numpy as np
from metadata import write_result
from scipy import ndimage

from labelwise.cohort.manifest import Manifest
from labelwise.importers.la2018 import FILE_NAME, scan
from labelwise.loading.prepare import prepare
from labelwise.loading.store import Store, annotated_table
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import Array

PATCH_SIZES = ((112, 112, 80), (56, 56, 40), (112, 112, 1))
NUM_SCANS, NUM_READS = 10, 60
UNCHANGED = Plan(intensity={"normalised": IntensityRule("none")})
Corner = tuple[int, int, int]


def main() -> None:
    data = os.environ.get("LABELWISE_TEST_DATA")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(data) / "la2018" if data else make_scans(Path(temporary) / "scans")
        manifest = scan(folder)
        manifest = manifest.replace_cases(manifest.cases[:NUM_SCANS])
        start = perf_counter()
        prepared = prepare(manifest, Path(temporary) / "store", UNCHANGED, workers=1)
        seconds = perf_counter() - start
        payload = {
            "scans": "LA2018" if data else "synthetic, shape of LA2018",
            "num_scans": NUM_SCANS,
            "num_reads": NUM_READS,
            "clock": "CPU time of one thread",
            "prepare_seconds_per_scan": round(seconds / NUM_SCANS, 3),
            "bytes": sizes(manifest, prepared.store),
            "patches": [measure(manifest, prepared.store, size) for size in PATCH_SIZES],
        }
    print(write_result("read_speed", payload).read_text())


def measure(manifest: Manifest, store: Store, size: Corner) -> dict[str, Any]:
    """Milliseconds per patch for each of the three ways, over the same random places."""
    table = annotated_table(np.array([True, True]))
    random = np.random.default_rng(0)
    ways: dict[str, Callable[[str, Path, Corner], tuple[Array, Array]]] = {
        "store": lambda case, _, corner: from_store(store, case, corner, size, table),
        "whole_h5": lambda _, file, corner: from_whole_h5(file, corner, size),
        "h5_patch": lambda _, file, corner: from_h5_patch(file, corner, size),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(NUM_READS + NUM_SCANS):
        case = manifest.cases[number % NUM_SCANS]
        free = np.subtract(store.case(case.id).shape, size)
        x, y, z = (int(random.integers(0, n + 1)) for n in free)
        patches = []
        for name, read in ways.items():
            start = process_time()
            patches.append(read(case.id, case.images[0], (x, y, z)))
            times[name].append(1000 * (process_time() - start))
        for image, labels in patches[1:]:
            np.testing.assert_allclose(patches[0][0], image, rtol=1e-3, atol=1e-6)
            np.testing.assert_array_equal(patches[0][1], labels)
    summary = {name: summarise(values[NUM_SCANS:]) for name, values in times.items()}  # the first warm up
    faster = summary["whole_h5"]["median_ms"] / summary["store"]["median_ms"]
    return {"patch": list(size), **summary, "times_faster_than_whole_h5": round(faster, 1)}


def from_store(store: Store, case: str, corner: Corner, size: Corner, table: Array) -> tuple[Array, Array]:
    image, labels = np.empty((1, *size), np.float32), np.empty(size, np.uint8)
    stored = store.case(case)
    stored.read_image(corner, image)
    stored.read_labels(corner, labels, table)
    return image[0], labels


def from_whole_h5(file: Path, corner: Corner, size: Corner) -> tuple[Array, Array]:
    with h5py.File(file, "r") as scan_file:
        image, labels = scan_file["image"][:], scan_file["label"][:]
    box = tuple(slice(begin, begin + length) for begin, length in zip(corner, size, strict=True))
    return np.ascontiguousarray(image[box]), np.ascontiguousarray(labels[box])


def from_h5_patch(file: Path, corner: Corner, size: Corner) -> tuple[Array, Array]:
    box = tuple(slice(begin, begin + length) for begin, length in zip(corner, size, strict=True))
    with h5py.File(file, "r") as scan_file:
        return scan_file["image"][box], scan_file["label"][box]


def summarise(milliseconds: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(milliseconds, [25, 50, 75])
    return {"median_ms": round(float(median), 2), "iqr_ms": round(float(high - low), 2)}


def sizes(manifest: Manifest, store: Store) -> dict[str, int]:
    """Bytes on disk of the same scans."""
    folders = [store.case(case.id).folder for case in manifest.cases]
    return {
        "store": sum(file.stat().st_size for folder in folders for file in folder.iterdir()),
        "h5": sum(case.images[0].stat().st_size for case in manifest.cases),
    }


def make_scans(folder: Path) -> Path:
    """h5 files like those of LA2018: smooth intensities with noise, a blob as the atrium."""
    names = [f"scan_{number:02d}" for number in range(NUM_SCANS)]
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        shape = (int(random.integers(150, 240)), int(random.integers(132, 160)), 88)
        smooth = ndimage.gaussian_filter(random.normal(size=shape), 6)
        image = 0.9 + smooth / smooth.std() + 0.2 * random.normal(size=shape)
        (folder / name).mkdir(parents=True)
        with h5py.File(folder / name / FILE_NAME, "w") as file:
            file.create_dataset("image", data=image.astype(np.float32), compression="gzip")
            file.create_dataset("label", data=(smooth > smooth.std()).astype(np.uint8), compression="gzip")
    (folder / "train.list").write_text("".join(f"{name}\n" for name in names))
    (folder / "test.list").write_text("")
    return folder


if __name__ == "__main__":
    main()
