"""One made-up CT in a few boxes: air, a body, and structures on their sides. 8 mm voxels, 320 mm in each direction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np

from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.formats import Layout
from labelwise.types import Case, LabelSpace

VALUES = {0: "background", 1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney", 5: "gallbladder"}
SPACE = LabelSpace(tuple(VALUES.values()))
SIZE, MM = 40, 8.0
AFFINE = np.array([[MM, 0, 0, -160.0], [0, MM, 0, -160.0], [0, 0, MM, 20.0], [0, 0, 0, 1.0]])
BOXES = {  # x to the right, y to the front, z to the top
    1: (slice(24, 34), slice(15, 28), slice(20, 34)),
    2: (slice(6, 13), slice(10, 18), slice(22, 32)),
    3: (slice(9, 14), slice(9, 15), slice(8, 18)),
    4: (slice(26, 31), slice(9, 15), slice(8, 18)),
    5: (slice(24, 27), slice(28, 31), slice(20, 23)),
}


def paint(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and labels (uint8)."""
    random = np.random.default_rng(seed)
    hu = random.normal(-1000, 8, (SIZE,) * 3)
    body = (slice(4, 36), slice(6, 34), slice(None))
    hu[body] = random.normal(-90, 15, hu[body].shape)
    labels = np.zeros(hu.shape, np.uint8)
    for value, box in BOXES.items():
        hu[box] = random.normal(110, 15, hu[box].shape)
        labels[box] = value
    hu[19:22, 8:11] = random.normal(600, 80, hu[19:22, 8:11].shape)
    return hu.round().astype(np.int16), labels


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def painted(
    folder: Path,
    name: str = "a",
    hu: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    affine: np.ndarray = AFFINE,
    label_affine: np.ndarray | None = None,
    **fields: object,
) -> Case:
    """A case with its files; what is not given is as painted."""
    own_hu, own_labels = paint(seed=int.from_bytes(name.encode(), "little") % 2**32)
    image = save(folder / f"{name}.nii.gz", own_hu if hu is None else hu, affine)
    shown = own_labels if labels is None else labels
    file = save(folder / f"{name}_labels.nii.gz", shown, affine if label_affine is None else label_affine)
    defaults = {"annotated": frozenset(SPACE.structures), "data_set": "site", "split": "train"}
    return Case(name, (image,), file, **{**defaults, **fields})


def painted_manifest(
    *cases: Case, modality: str = "ct", layout: Layout | None = None, values: Mapping[int, str] = VALUES
) -> Manifest:
    names = sorted({case.data_set for case in cases})
    data_sets = {name: DataSet(name, values, modality, layout or Layout()) for name in names}
    return Manifest(SPACE, data_sets, cases)
