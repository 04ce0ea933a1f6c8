"""Label files as other programs write them: boxes of voxels, named in headers, records, segments and contours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from labelwise.formats import write_image, write_labels
from labelwise.types import Volume

SHAPE = (12, 10, 8)
AFFINE = np.diag((2.0, 2.0, 3.0, 1.0))
BOXES = {
    "liver": (slice(1, 6), slice(1, 6), slice(1, 7)),
    "spleen": (slice(7, 11), slice(2, 5), slice(2, 6)),
    "aorta": (slice(6, 7), slice(6, 9), slice(0, 8)),
}
WAYS = ("nifti", "caret", "slicer", "record")
"""How a label file may say what its values mean."""


def box(name: str) -> np.ndarray:
    """(I, J, K) bool: the voxels of a structure."""
    mask = np.zeros(SHAPE, bool)
    mask[BOXES[name]] = True
    return mask


def label_map(values: Mapping[str, int]) -> np.ndarray:
    """(I, J, K) uint8: each structure with its value."""
    labels = np.zeros(SHAPE, np.uint8)
    for name, value in values.items():
        labels[box(name)] = value
    return labels


def write_scan(path: Path, seed: int = 0) -> Path:
    """A scan of noise, as 16 bit integers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(-1000, 900, SHAPE).astype(np.int16)
    write_image(path, Volume(voxels[None], AFFINE))
    return path


def write_named(
    folder: Path, case: str, way: str, values: Mapping[str, int], names: Mapping[int, str]
) -> Path:
    """Labels of a case that say what their values mean in one of `WAYS`; `names` may say more or less than is there."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = Volume(label_map(values), AFFINE)
    file = folder / f"{case}.nii.gz"
    if way == "nifti":
        row = ["", *("" for _ in range(max(names)))]
        for value, name in names.items():
            row[value] = name
        write_labels(file, labels, names=row)
    elif way == "caret":
        entries = "".join(f'<Label Key="{v}" Red="1"><![CDATA[{name}]]></Label>' for v, name in names.items())
        image = nibabel.Nifti1Image(labels.data, AFFINE)
        table = f"<VolumeInformation><LabelTable>{entries}</LabelTable></VolumeInformation>"
        text = f"<CaretExtension>{table}</CaretExtension>"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, text.encode()))
        nibabel.save(image, file)
    elif way == "slicer":
        file = write_segments(
            folder / f"{case}.seg.nrrd", [labels.data], [(n, v, 0) for v, n in names.items()]
        )
    else:
        write_labels(file, labels)
        (folder / f"{case}.json").write_text(json.dumps({"classes": {str(v): n for v, n in names.items()}}))
    return file


def write_segments(
    path: Path,
    layers: Sequence[np.ndarray],
    segments: Sequence[tuple[str, int, int]],
    start: Sequence[int] = (0, 0, 0),
) -> Path:
    """A segmentation as 3D Slicer saves it: (name, value, layer) of each segment; `start`: its first voxel."""
    parts = [np.ascontiguousarray(layer.T) for layer in layers]
    stacked = np.stack(parts, -1) if len(parts) > 1 else parts[0]
    image = SimpleITK.GetImageFromArray(stacked, isVector=len(parts) > 1)
    image.SetSpacing(np.diag(AFFINE)[:3].tolist())
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    corner = (AFFINE @ (*start, 1))[:3]
    image.SetOrigin((-corner[0], -corner[1], corner[2]))
    for number, (name, value, layer) in enumerate(segments):
        facts = {"ID": f"Segment_{number}", "Name": name, "LabelValue": str(value), "Layer": str(layer)}
        for key, text in facts.items():
            image.SetMetaData(f"Segment{number}_{key}", text)
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def history_of(data: Path) -> list[dict[str, Any]]:
    """The events of a manifest's history, the oldest first."""
    lines = (data / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
