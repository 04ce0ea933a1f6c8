"""A small cohort of NIfTI files with every kind of annotation, and the store prepared from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.formats import write_image, write_labels
from labelwise.loading.prepare import Prepared, prepare
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import Array, Case, LabelSpace, Volume

SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
DATA_SETS = {
    "site": DataSet(
        "site", {0: "background", 10: "liver", 20: "spleen", 30: "pancreas"}, "mr", normalised=True
    )
}
UNCHANGED = Plan(intensity={"normalised": IntensityRule("none")})
ANNOTATED = {  # case id -> structures that are annotated; "bare" has no label file, "hidden" has one
    "full_1": SPACE.structures,
    "full_2": SPACE.structures,
    "partial": ("liver",),
    "hidden": (),
    "bare": (),
}


def scan(number: int) -> Array:
    """(X, Y, Z) float32 with values that float16 holds exactly."""
    shape = (20 + number, 18, 14 + 2 * number)
    return np.random.default_rng(number).integers(-1000, 1000, shape).astype(np.float32) / 256


def label_map(number: int) -> Array:
    """(X, Y, Z) uint8 class indices: a box of each structure."""
    labels = np.zeros(scan(number).shape, np.uint8)
    for structure in range(1, SPACE.num_classes):
        labels[4 * structure : 4 * structure + 4, 3:12, 2:9] = structure
    return labels


def make_manifest(folder: Path) -> Manifest:
    """Writes the files of all cases and returns their manifest, all in the split 'train'."""
    return Manifest(SPACE, DATA_SETS, tuple(make_case(folder, name, i) for i, name in enumerate(ANNOTATED)))


def make_case(folder: Path, name: str, number: int) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    image, labels = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
    write_image(image, Volume(scan(number)[None], np.eye(4)))
    if name == "bare":
        return Case(name, (image,), data_set="site", split="train")
    write_labels(labels, Volume(label_map(number) * np.uint8(10), np.eye(4)))
    return Case(name, (image,), labels, frozenset(ANNOTATED[name]), data_set="site", split="train")


def make_store(folder: Path) -> tuple[Manifest, Prepared]:
    """The cohort, prepared without any change of its voxels."""
    manifest = make_manifest(folder / "files")
    prepared = prepare(manifest, folder / "store", UNCHANGED, workers=1)
    prepared.require_all()
    return manifest, prepared
