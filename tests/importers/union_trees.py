"""The four data sets of LTUDA's union, and its toy set, as downloaded: every published case, 64 voxels each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tiny_cohort import write_nifti

SHAPE = (4, 4, 4)
SCANNER = np.diag([-0.8, -0.8, 2.5, 1.0])
KITS = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1.0]])
KITS_FIRST_RELEASE = np.diag([3.0, 0.8, 0.8, 1.0])
SPLEEN = (
    2, 3, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 31, 32, 33, 38, 40, 41, 44,
    45, 46, 47, 49, 52, 53, 56, 59, 60, 61, 62, 63,
)  # fmt: skip


def copier(
    folder: Path, suffix: str, values: Iterable[int], affine: np.ndarray
) -> Callable[[str, str], None]:
    """Writes an image and labels with these values once, and copies them to the names that it is given."""
    labels = np.zeros(SHAPE, np.uint8)
    labels.ravel()[: len(list(values))] = list(values)
    image = write_nifti(folder / f"template{suffix}", np.full(SHAPE, 100, np.int16), affine)
    contents = [image.read_bytes(), write_nifti(image, labels, affine).read_bytes()]
    image.unlink()

    def copy(*names: str) -> None:
        for name, content in zip(names, contents, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return copy


def make_lits(folder: Path, numbers: Iterable[int] = range(131)) -> Path:
    copy = copier(folder, ".nii", (1, 2), SCANNER)
    for number in numbers:
        batch = f"Training Batch {1 if number < 28 else 2}"
        copy(f"{batch}/volume-{number}.nii", f"{batch}/segmentation-{number}.nii")
    return folder


def make_spleen(folder: Path, numbers: Iterable[int] = SPLEEN) -> Path:
    copy, training = copier(folder, ".nii.gz", (1,), SCANNER), []
    for number in numbers:
        names = [f"{part}Tr/spleen_{number}.nii.gz" for part in ("images", "labels")]
        copy(*names)
        training.append(dict(zip(("image", "label"), names, strict=True)))
    labels = {"0": "background", "1": "spleen"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": training, "test": []}))
    return folder


def make_kits(
    folder: Path, numbers: Iterable[int] = range(210), first_release: Iterable[int] = (3, 10)
) -> Path:
    current = copier(folder, ".nii.gz", (1, 2), KITS)
    first = copier(folder, ".nii.gz", (1, 2), KITS_FIRST_RELEASE)
    for number in numbers:
        case = f"data/case_{number:05d}"
        copy = first if number in first_release else current
        copy(f"{case}/imaging.nii.gz", f"{case}/segmentation.nii.gz")
    return folder


def make_nih(folder: Path, numbers: Iterable[int] = range(1, 83)) -> Path:
    copy = copier(folder, ".nii.gz", (1,), SCANNER)
    for number in numbers:
        labels = f"TCIA_pancreas_labels-02-05-2017/label{number:04d}.nii.gz"
        copy(f"images/PANCREAS_{number:04d}.nii.gz", labels)
    return folder


def make_organ12(folder: Path, numbers: Iterable[int] = range(1, 51)) -> Path:
    copy = copier(folder, ".nii.gz", range(13), SCANNER)
    for number in numbers:
        name = f"Organ12_{number:04d}"
        copy(f"images/{name}_0000.nii.gz", f"labels/{name}.nii.gz")
    return folder


def make_union(folder: Path) -> dict[str, Path]:
    """Name of the data set -> its folder."""
    makers = {"lits": make_lits, "msd_spleen": make_spleen, "kits": make_kits, "nih": make_nih}
    return {name: make(folder / name) for name, make in makers.items()}
