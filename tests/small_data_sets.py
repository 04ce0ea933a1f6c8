"""A small data set in each layout and format that an importer knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SHAPE = (6, 5, 4)
CT = {"classes": {"liver": 1, "spleen": [2, 3]}, "modality": "ct"}


class Tree(NamedTuple):
    """A small data set: how it is made, and what the user says about it."""

    make: Callable[[Path], None]
    importer: str | None
    options: dict[str, Any] = {}  # noqa: RUF012 - a default that nobody changes


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(50, 100, SHAPE).astype(np.int16)


def labels(*values: int) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found.ravel()[: len(values)] = values
    return found


def nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag((-0.8, -0.8, 2.5, 1))), path)


def itk(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(voxels.T), str(path), useCompression=path.suffix == ".mha"
    )


def h5(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


def dicom(folder: Path, voxels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for place in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{place + 1}"
        found = Dataset()
        found.file_meta = meta
        found.SOPClassUID, found.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        found.Modality, found.SeriesInstanceUID, found.StudyInstanceUID = "CT", "1.2.4", "1.2.5"
        found.PatientName, found.PatientID = "Nobody^Secret", "SECRET"
        found.Rows, found.Columns, found.InstanceNumber = voxels.shape[1], voxels.shape[0], place + 1
        found.PixelSpacing, found.ImageOrientationPatient = [0.8, 0.8], [1, 0, 0, 0, 1, 0]
        found.ImagePositionPatient, found.SliceThickness = [0, 0, 2.5 * place], 2.5
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 1
        found.RescaleSlope, found.RescaleIntercept = 1, 0
        found.PixelData = voxels[..., place].T.tobytes()
        found.save_as(folder / f"{place:03d}.dcm", enforce_file_format=True)


def make_folders(suffix: str, write: Callable[[Path, np.ndarray], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number, name in enumerate("ab"):
            write(folder / "images" / f"{name}{suffix}", image(number))
            write(folder / "labels" / f"{name}{suffix}", labels(1, 2, 3))

    return make


def make_nnunet(folder: Path) -> None:
    for number, name in enumerate("abc"):
        nifti(folder / "imagesTr" / f"{name}_0000.nii.gz", image(number))
        nifti(folder / "labelsTr" / f"{name}.nii.gz", labels(1, 2))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "both": [1, 2], "spleen": 2},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))


def make_decathlon(folder: Path) -> None:
    make_folders(".nii.gz", nifti)(folder)
    entry = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "fold": 0}
    lists = {
        "training": [entry, {**entry, "image": ["images/b.nii.gz"], "fold": 1}],
        "test": ["./images/b.nii.gz"],
    }
    names = {
        "labels": {"0": "background", "1": "liver", "2": "spleen", "3": "spleen"},
        "modality": {"0": "CT"},
    }
    (folder / "task.json").write_text(json.dumps(names | lists | {"test": []}))


def make_table(folder: Path) -> None:
    make_folders(".nii", nifti)(folder)
    rows = [
        "id;image;label;patient;split;annotated",
        "x;images/a.nii;labels/a.nii;p;train;liver",
        "y;images/b.nii;;q;;",
    ]
    (folder / "cases.csv").write_text("\n".join(rows))


def make_dicom(folder: Path) -> None:
    dicom(folder / "series", image(0))
    nifti(folder / "labels.nii.gz", labels(1, 2))
    (folder / "cases.csv").write_text("id,image,label\nx,series,labels.nii.gz\n")


def make_bids(folder: Path) -> None:
    for number in range(2):
        nifti(folder / f"sub-0{number}" / "anat" / f"sub-0{number}_T1w.nii.gz", image(number))
        nifti(
            folder / "derivatives" / "x" / f"sub-0{number}" / "anat" / f"sub-0{number}_dseg.nii.gz",
            labels(1, 2),
        )
    (folder / "derivatives" / "x" / "dseg.tsv").write_text(
        "index\tname\n0\tbackground\n1\tliver\n2\tspleen\n"
    )


def make_bids_masks(folder: Path) -> None:
    nifti(folder / "sub-01" / "anat" / "sub-01_CT.nii.gz", image(1))
    for place, name in enumerate(("liver", "spleen")):
        file = folder / "derivatives" / "x" / "sub-01" / "anat" / f"sub-01_label-{name}_mask.nii.gz"
        nifti(file, labels(*[0] * place, 1))


def make_totalsegmentator(folder: Path) -> None:
    for number, case in enumerate(("s0000", "s0001")):
        nifti(folder / case / "ct.nii.gz", image(number))
        for place, name in enumerate(("liver", "kidney_left", "spleen")):
            nifti(folder / case / "segmentations" / f"{name}.nii.gz", labels(*[0] * place, 1))
    (folder / "meta.csv").write_text("image_id;age;split\ns0000;60;train\ns0001;50;val\n")


def make_la2018(folder: Path) -> None:
    for number, name in enumerate("ab"):
        h5(folder / "x" / name / "mri_norm2.h5", image=image(number).astype(np.float32), label=labels(1))
    (folder / "train.list").write_text("a\n")
    (folder / "test.list").write_text("b\n")


def make_acdc(folder: Path) -> None:
    for number in (1, 2):
        arrays = {
            "image": image(number).astype(np.float32).T,
            "label": labels(1, 2, 3).T,
            "scribble": labels(4).T,
        }
        h5(folder / f"patient00{number}_frame01.h5", **arrays)
    (folder / "train.list").write_text("patient001\n")
    (folder / "val.list").write_text("patient002\n")


def make_lits(folder: Path) -> None:
    for number in range(2):
        nifti(folder / f"volume-{number}.nii", image(number))
        nifti(folder / f"segmentation-{number}.nii", labels(1, 2))


def make_msd(folder: Path) -> None:
    for number in (2, 3):
        nifti(folder / "imagesTr" / f"spleen_{number}.nii.gz", image(number))
        nifti(folder / "labelsTr" / f"spleen_{number}.nii.gz", labels(1))
    listed = [
        {"image": f"./imagesTr/spleen_{n}.nii.gz", "label": f"./labelsTr/spleen_{n}.nii.gz"} for n in (2, 3)
    ]
    names = {"name": "Spleen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    (folder / "dataset.json").write_text(
        json.dumps({**names, "training": listed, "test": [], "numTraining": 2})
    )


def make_kits(folder: Path) -> None:
    for number in range(2):
        nifti(folder / "data" / f"case_0000{number}" / "imaging.nii.gz", image(number))
        nifti(folder / "data" / f"case_0000{number}" / "segmentation.nii.gz", labels(1, 2))


def make_nih(folder: Path) -> None:
    dicom(folder / "Pancreas-CT" / "PANCREAS_0001" / "study" / "series", image(0))
    nifti(folder / "labels" / "label0001.nii.gz", labels(1))


def make_pairs(pattern: str, label: str, *names: str) -> Callable[[Path], None]:
    """Images and labels of the challenges, which differ in their names only."""

    def make(folder: Path) -> None:
        for number, name in enumerate(names):
            nifti(folder / pattern.format(name), image(number))
            nifti(folder / label.format(name), labels(1, 2))

    return make


TREES: dict[str, Tree] = {
    "nifti": Tree(make_folders(".nii.gz", nifti), "folders", CT),
    "nrrd": Tree(make_folders(".nrrd", itk), "folders", CT),
    "mha": Tree(make_folders(".mha", itk), "folders", CT),
    "mhd": Tree(make_folders(".mhd", itk), "folders", CT),
    "nhdr": Tree(make_folders(".nhdr", itk), "folders", CT),
    "nnunet": Tree(make_nnunet, "nnunet", {"fold": 0}),
    "nnunet_regions": Tree(make_nnunet, "nnunet", {"regions": "differences"}),
    "decathlon": Tree(make_decathlon, "decathlon", {"fold": 1}),
    "csv": Tree(make_table, "csv", CT),
    "bids": Tree(make_bids, "bids"),
    "bids_masks": Tree(make_bids_masks, "bids"),
    "la2018": Tree(make_la2018, "la2018"),
    "acdc": Tree(make_acdc, "acdc", {"labels": "scribble"}),
    "totalsegmentator": Tree(make_totalsegmentator, "totalsegmentator"),
    "lits": Tree(make_lits, "lits"),
    "msd": Tree(make_msd, "msd"),
    "kits": Tree(make_kits, "kits"),
    "dicom": Tree(make_dicom, "csv", CT),
    "nih_pancreas": Tree(make_nih, "nih_pancreas"),
    "amos22": Tree(
        make_pairs("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz", "amos_0001", "amos_0507"), "amos22"
    ),
    "word": Tree(make_pairs("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz", "word_0002"), "word"),
    "btcv": Tree(make_pairs("img/img{}.nii.gz", "label/label{}.nii.gz", "0001", "0002"), "btcv"),
    "flare22": Tree(make_pairs("images/{}_0000.nii.gz", "labels/{}.nii.gz", "FLARE22_Tr_0001"), "flare22"),
    "abdomenct1k": Tree(make_pairs("images/{}_0000.nii.gz", "Mask/{}.nii.gz", "Case_00001"), "abdomenct1k"),
}
