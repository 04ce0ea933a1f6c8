"""Cohorts of a few small NIfTI files, made in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.types import Case, LabelSpace

SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
VALUES = {0: "background", 1: "liver", 2: "liver", 3: "spleen", 7: "pancreas", 255: "ignore"}
SHAPE = (6, 5, 4)


def write_scan(
    path: Path, *, seed: int = 0, shape: tuple[int, ...] = SHAPE, affine: np.ndarray | None = None
) -> Path:
    voxels = np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)
    return write_nifti(path, voxels, affine)


def write_map(
    path: Path, *values: int, shape: tuple[int, ...] = SHAPE, affine: np.ndarray | None = None
) -> Path:
    """A label map of zeros whose first voxels hold the given values."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels.ravel()[: len(values)] = values
    return write_nifti(path, labels, affine)


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def make_case(
    folder: Path, name: str, *values: int, annotated: Iterable[str] = SPACE.structures, **fields: str
) -> Case:
    """A case with its files; without values it has no label file."""
    seed = int.from_bytes(name.encode(), "little") % 2**32
    image = write_scan(folder / f"{name}.nii.gz", seed=seed)
    labels = write_map(folder / f"{name}_labels.nii.gz", *values) if values else None
    structures = frozenset(annotated) if values else frozenset()
    return Case(name, (image,), labels, structures, **{"data_set": "site", "split": "train", **fields})


def manifest_of(*cases: Case) -> Manifest:
    names = sorted({case.data_set for case in cases})
    return Manifest(SPACE, {name: DataSet(name, VALUES, "ct") for name in names}, cases)


def paper_case(number: int, **fields: object) -> Case:
    """A fully annotated case whose files do not exist."""
    name = f"case_{number:03d}"
    defaults = {
        "labels": Path(f"/scans/{name}_l.nii.gz"),
        "annotated": frozenset(SPACE.structures),
        "data_set": "site",
        "split": "train",
    }
    return Case(**{"id": name, "images": (Path(f"/scans/{name}.nii.gz"),), **defaults, **fields})
