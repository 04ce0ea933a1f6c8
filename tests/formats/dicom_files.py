"""DICOM series of a few voxels, written with pydicom: classic slices, or one enhanced multi-frame file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}
LPS = np.diag((-1.0, -1.0, 1.0))

# Words that must never be seen outside the files.
PERSON = {
    "PatientName": "Zweistein^Quirinella",
    "PatientID": "PID4711SECRET",
    "PatientBirthDate": "19010203",
    "InstitutionName": "Saint Nowhere Hospital",
}


def dataset(tags: dict[str, Any], syntax: str = ExplicitVRLittleEndian) -> FileDataset:
    """An empty data set with file meta information; `tags` are set last, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in ({"SOPInstanceUID": meta.MediaStorageSOPInstanceUID} | PERSON | tags).items():
        if value is None:
            if name in found:
                delattr(found, name)
        else:
            setattr(found, name, value)
    meta.MediaStorageSOPClassUID = found.get("SOPClassUID") or RAW_DATA
    return found


def save(path: Path, data: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def slice_tags(voxels: np.ndarray, affine: np.ndarray) -> dict[str, Any]:
    """What all slices of a series share: (I, J, K) voxels of 16 bits, affine in RAS mm."""
    lps, spacing = LPS @ affine[:3, :3], np.linalg.norm(affine[:3, :3], axis=0)
    return {
        "SOPClassUID": CT,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "StudyInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.2.3.4",
        "ImageOrientationPatient": numbers(np.concatenate([lps[:, 0] / spacing[0], lps[:, 1] / spacing[1]])),
        "PixelSpacing": numbers([spacing[1], spacing[0]]),
        "SliceThickness": number(spacing[2]),
        "Rows": voxels.shape[1],
        "Columns": voxels.shape[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(voxels.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
    }


def write_series(
    folder: Path, voxels: np.ndarray, affine: np.ndarray, *, names: str = "IM{:04d}", **tags: Any
) -> list[Path]:
    """One file for each slice of (I, J, K) int16 or uint16 voxels; returns them in the order of the slices.

    Names and instance numbers run against the positions, so that a reader who trusts them fails.
    """
    uid, count = generate_uid(), voxels.shape[2]
    common = {"SeriesInstanceUID": uid} | slice_tags(voxels, affine) | tags
    files = []
    for k in range(count):
        position = LPS @ (affine @ (0, 0, k, 1))[:3]
        own = {"ImagePositionPatient": numbers(position), "InstanceNumber": count - k}
        data = dataset(common | {name: value for name, value in own.items() if name not in tags})
        data.PixelData = np.ascontiguousarray(voxels[:, :, k].T).tobytes()
        files.append(save(folder / names.format(count - k), data))
    return files


def write_enhanced(path: Path, voxels: np.ndarray, affine: np.ndarray, **tags: Any) -> Path:
    """One multi-frame file whose frames stand in reverse order."""
    common = slice_tags(voxels, affine)
    shared, frames = Dataset(), []
    orientation, measures, scale = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = common.pop("ImageOrientationPatient")
    measures.PixelSpacing, measures.SliceThickness = common.pop("PixelSpacing"), common.pop("SliceThickness")
    scale.RescaleSlope, scale.RescaleIntercept = common.pop("RescaleSlope"), common.pop("RescaleIntercept")
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([scale])
    for k in reversed(range(voxels.shape[2])):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = numbers(LPS @ (affine @ (0, 0, k, 1))[:3])
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    common |= {
        "SOPClassUID": ENHANCED[tags.get("Modality", "CT")],
        "SeriesInstanceUID": generate_uid(),
        "NumberOfFrames": voxels.shape[2],
        "SharedFunctionalGroupsSequence": Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": Sequence(frames),
    }
    data = dataset(common | tags)
    data.PixelData = np.ascontiguousarray(voxels[:, :, ::-1].T).tobytes()
    return save(path, data)


def number(value: float) -> str:
    """A decimal string of at most 16 characters, as exact as they allow."""
    for digits in range(16, 0, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError("no room")


def numbers(values: Any) -> list[str]:
    return [number(value) for value in values]
