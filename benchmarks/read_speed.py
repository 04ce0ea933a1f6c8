"""What a training patch costs: from the store, from nnU-Net's files, or by unpacking the whole scan as the LA codes do.

    python benchmarks/read_speed.py --work runs/versus_nnunet                  # volumes of the shape of the LA scans
    python benchmarks/read_speed.py --work runs/versus_nnunet --source LA2018_FOLDER

`--work` is where nnU-Net's virtual environment lies, or is made. Ways to the same voxels, image and label map, in
turns, one thread, the files in the page cache:

    store       labelwise's chunked store, only the patch (image stored as float16)
    limit       the same blocks unpacked by blosc2 into memory, and nothing else
    nnunet      nnU-Net's files as its own preprocessing writes them (blosc2, float32, blocks that fit the patch), read
                by the lines of its loader: open the case, cut the patch, to float32 and int16
    whole h5    read both arrays of the gzip-compressed h5 file, then cut: what the published codes do
    h5 patch    let h5py read only the patch from the same file
"""

from __future__ import annotations

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import h5py
import numpy as np
import torch
from clocks import Seconds, summary, timed
from metadata import write_result
from nnunet_peer import NNUNET, module
from scipy import ndimage

from labelwise.cohort.manifest import Manifest
from labelwise.devices import keep_freed_memory
from labelwise.importers.la2018 import FILE_NAME, scan
from labelwise.loading.prepare import prepare
from labelwise.loading.store import IMAGE, LABELS, Store, annotated_table
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import Array

PATCH_SIZES = ((112, 112, 80), (56, 56, 40), (112, 112, 1))
NUM_SCANS, NUM_READS = 10, 100
UNCHANGED = Plan(intensity={"normalised": IntensityRule("none")})
GOALS = {"whole_h5": 20, "nnunet": 1}  # times faster
Corner = tuple[int, int, int]
Read = Callable[[str, Corner], tuple[Array, Array]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Reading of a training patch.")
    parser.add_argument("--work", type=Path, required=True, help="folder of nnU-Net's environment (venv)")
    parser.add_argument("--source", type=Path, help="folder of LA 2018; made-up scans otherwise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as processes do that load the batches of a training
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = scan(options.source or make_scans(folder / "scans"))
        manifest = manifest.replace_cases(manifest.cases[:NUM_SCANS])
        prepared, seconds = timed(lambda: prepare(manifest, folder / "store", UNCHANGED, workers=1))
        payload = {
            "scans": "LA2018" if options.source else "synthetic, shape of LA2018",
            "num_scans": NUM_SCANS,
            "num_reads": NUM_READS,
            "unit": "milliseconds of one thread",
            "peer": NNUNET,
            "goals": GOALS,
            "prepare_seconds_per_scan": round(seconds.elapsed / NUM_SCANS, 3),
            "patches": [
                measure(manifest, prepared.store, size, options.work, folder) for size in PATCH_SIZES
            ],
        }
    print(write_result("read_speed", payload).read_text())


def measure(manifest: Manifest, store: Store, size: Corner, work: Path, folder: Path) -> dict[str, Any]:
    """Milliseconds of each of the ways, over the same random places; and how large their files are."""
    files = {case.id: case.images[0] for case in manifest.cases}
    theirs = folder / f"nnunet_{'x'.join(map(str, size))}"
    write_as_nnunet(files, theirs, size, work)
    loading, cutting = (
        module(work, name)
        for name in (
            "nnunetv2.training.dataloading.nnunet_dataset",
            "acvl_utils.cropping_and_padding.bounding_boxes",
        )
    )
    table = annotated_table(np.array([True, True]))
    ways: dict[str, Read] = {
        "store": lambda case, corner: from_store(store, case, corner, size, table),
        "limit": partial(
            from_blocks, {case.id: open_blocks(store.case(case.id).folder) for case in manifest.cases}, size
        ),
        "nnunet": partial(
            from_nnunet, loading.nnUNetDatasetBlosc2(str(theirs)), cutting.crop_and_pad_nd, size=size
        ),
        "whole_h5": lambda case, corner: from_whole_h5(files[case], corner, size),
        "h5_patch": lambda case, corner: from_h5_patch(files[case], corner, size),
    }
    random = np.random.default_rng(0)
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    for number in range(NUM_READS + NUM_SCANS):
        case = manifest.cases[number % NUM_SCANS].id
        free = np.subtract(store.case(case).shape, size)
        x, y, z = (int(random.integers(0, n + 1)) for n in free)
        order = deque(ways)
        order.rotate(number)  # what was read before has emptied the processor's caches
        patches = {}
        for name in order:
            patches[name], seconds = timed(partial(ways[name], case, (x, y, z)))
            times[name].append(seconds)
        for image, labels in patches.values() if number < NUM_SCANS else ():
            np.testing.assert_allclose(patches["store"][0], image, rtol=1e-3, atol=1e-6)
            np.testing.assert_array_equal(patches["store"][1], labels)
    found = {
        name: summary(each[NUM_SCANS:], per_second=1000) for name, each in times.items()
    }  # the first warm up
    ours = found["store"]["processor"]["median"]
    return {
        "patch": list(size),
        "ways": found,
        "bytes": {
            "store": size_of(store.case(case.id).folder for case in manifest.cases),
            "nnunet": size_of([theirs]),
            "whole_h5": sum(file.stat().st_size for file in files.values()),
        },
        "store_times_faster_than": {
            name: round(each["processor"]["median"] / ours, 1)
            for name, each in found.items()
            if name != "store"
        },
    }


def write_as_nnunet(files: Mapping[str, Path], folder: Path, patch: Corner, work: Path) -> None:
    """The scans as nnU-Net's preprocessing writes them for this patch: its blocks, its places of the structure."""
    loading = module(work, "nnunetv2.training.dataloading.nnunet_dataset")
    kind = module(work, "nnunetv2.preprocessing.preprocessors.default_preprocessor").DefaultPreprocessor
    folder.mkdir()
    for case, file in files.items():
        with h5py.File(file, "r") as scan_file:
            image = scan_file["image"][:][None].astype(np.float32)
            labels = scan_file["label"][:][None].astype(np.int16)
        blocks, chunks = loading.comp_blosc2_params(image.shape, patch, image.itemsize)
        blocks_seg, chunks_seg = loading.comp_blosc2_params(labels.shape, patch, labels.itemsize)
        loading.nnUNetDatasetBlosc2.save_case(
            image,
            labels,
            {"class_locations": kind._sample_foreground_locations(labels, [1])},
            str(folder / case),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )


def from_nnunet(
    files: Any, crop_and_pad: Callable[..., Array], case: str, corner: Corner, *, size: Corner
) -> tuple[Array, Array]:
    """As `generate_train_batch` of nnU-Net's loader reads a patch."""
    data, seg, _, _ = files.load_case(case)
    box = [[begin, begin + length] for begin, length in zip(corner, size, strict=True)]
    image = torch.from_numpy(crop_and_pad(data, box, 0)).float()
    labels = torch.from_numpy(crop_and_pad(seg, box, -1, cast_cropped_to=np.int16)).to(torch.int16)
    return image.numpy()[0], labels.numpy()[0]


def from_store(store: Store, case: str, corner: Corner, size: Corner, table: Array) -> tuple[Array, Array]:
    image, labels = np.empty((1, *size), np.float32), np.empty(size, np.uint8)
    stored = store.case(case)
    stored.read_image(corner, image)
    stored.read_labels(corner, labels, table)
    return image[0], labels


def open_blocks(folder: Path) -> tuple[Any, Any]:
    """Image and label map of a prepared scan, as blosc2 opens them."""
    reading = {"mode": "r", "mmap_mode": "r", "dparams": {"nthreads": 1}}
    return blosc2.open(str(folder / IMAGE), **reading), blosc2.open(str(folder / LABELS), **reading)


def from_blocks(
    files: Mapping[str, tuple[Any, Any]], size: Corner, case: str, corner: Corner
) -> tuple[Array, Array]:
    """Image as float16 and labels, as blosc2 unpacks them, without the Python around its `[]`."""
    image, labels = files[case]
    end = [begin + length for begin, length in zip(corner, size, strict=True)]
    patch, classes = np.empty(size, image.dtype), np.empty(size, labels.dtype)
    image.get_slice_numpy(patch[None], ([0, *corner], [1, *end]))
    labels.get_slice_numpy(classes, ([*corner], end))
    return patch, classes


def from_whole_h5(file: Path, corner: Corner, size: Corner) -> tuple[Array, Array]:
    with h5py.File(file, "r") as scan_file:
        image, labels = scan_file["image"][:], scan_file["label"][:]
    box = tuple(slice(begin, begin + length) for begin, length in zip(corner, size, strict=True))
    return np.ascontiguousarray(image[box]), np.ascontiguousarray(labels[box])


def from_h5_patch(file: Path, corner: Corner, size: Corner) -> tuple[Array, Array]:
    box = tuple(slice(begin, begin + length) for begin, length in zip(corner, size, strict=True))
    with h5py.File(file, "r") as scan_file:
        return scan_file["image"][box], scan_file["label"][box]


def size_of(folders: Iterable[Path]) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir())


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
