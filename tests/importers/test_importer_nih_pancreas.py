"""NIH Pancreas-CT: labels in raster order beside DICOM series, flipped labels beside NIfTI, repeated scans."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.alignment import Alignment, align, on_soft_tissue
from labelwise.cohort.manifest import (
    Manifest,
    check_same_grid,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.importers import detect, nih_pancreas
from labelwise.types import Case
from tiny_cohort import write_nifti, write_scan

needs_dicom = pytest.mark.skipif(importlib.util.find_spec("pydicom") is None, reason="pydicom is an extra")

SHAPE = (10, 9, 8)  # columns, rows, slices
STRUCTURE = (slice(2, 5), slice(1, 4), slice(5, 7))  # off centre along every axis
LABELS = "TCIA_pancreas_labels-02-05-2017"
CONVERTED = np.array(
    [[-0.8, 0, 0, 90], [0, 0.8, 0, -120], [0, 0, 1.0, -300], [0, 0, 0, 1]]
)  # as dcm2niix writes


def body(seed: int = 0) -> np.ndarray:
    """(columns, rows, slices) fat with bone and lung in it, and one uniform organ."""
    random = np.random.default_rng(seed)
    hu = random.choice([-700.0, -120.0, 60.0, 700.0], SHAPE).astype(np.float32)
    hu[STRUCTURE] = random.normal(100, 20, hu[STRUCTURE].shape)
    return np.round(hu)


def mask() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[STRUCTURE] = 1
    return label


def flipped(array: np.ndarray, axes: str) -> np.ndarray:
    return np.flip(array, tuple("xyz".index(axis) for axis in axes))


def write_label(folder: Path, number: int, label: np.ndarray, affine: np.ndarray | None = None) -> Path:
    return write_nifti(folder / LABELS / f"label{number:04d}.nii.gz", label, affine)


def make_nifti(folder: Path, flips: dict[int, str], affine: np.ndarray | None = None) -> Path:
    for number, axes in flips.items():
        write_nifti(folder / "images" / f"PANCREAS_{number:04d}.nii.gz", body(number), CONVERTED)
        write_label(folder, number, flipped(mask(), axes), affine)
    for junk in ("._PANCREAS_0001.nii.gz", ".DS_Store"):
        (folder / "images" / junk).write_bytes(b"junk")
    return folder


def write_series(folder: Path, hu: np.ndarray, *, downwards: bool = False) -> Path:
    """One slice per file; `hu` is (columns, rows, k-th file by name), and names may run against positions."""
    dicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True)
    series, study = dicom.uid.generate_uid(), dicom.uid.generate_uid()
    count = hu.shape[2]
    for number in range(count):
        data = dicom.Dataset()
        data.file_meta = dicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = dicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = dicom.uid.generate_uid()
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", series, study
        data.Rows, data.Columns = hu.shape[1], hu.shape[0]
        data.PixelSpacing, data.SliceThickness = [0.8, 0.8], 1.0
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [-90, -120, -300 + (count - 1 - number if downwards else number)]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (hu[:, :, number].T + 1024).astype("<i2").tobytes()
        data.save_as(folder / f"1-{number + 1:03d}.dcm", enforce_file_format=True)
    (folder / "._1-001.dcm").write_bytes(b"junk")
    return folder


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def structure_hu(manifest: Manifest, names: Iterable[str] = ()) -> list[float]:
    """Mean HU under the label of each case: 100 where image and label lie on each other."""
    means = []
    for name in names or by_id(manifest):
        case = by_id(manifest)[name]
        image, labels = read_case_image(case, manifest), read_case_labels(case, manifest)
        check_same_grid(case, image, labels)
        means.append(float(image.data[0][labels.data == 1].mean()))
    return means


# DICOM


@needs_dicom
@pytest.mark.parametrize("inner", [Path("study") / "series", Path()], ids=["as downloaded", "flattened"])
def test_labels_of_dicom_series_follow_the_names_of_the_files(tmp_path: Path, inner: Path, caplog):
    for number, downwards in ((1, False), (2, True), (3, False)):
        write_series(
            tmp_path / "Pancreas-CT" / f"PANCREAS_{number:04d}" / inner, body(number), downwards=downwards
        )
        write_label(tmp_path, number, mask(), np.diag([0.8, 0.8, 1, 1]))
    manifest = nih_pancreas.scan(tmp_path)
    assert [case.id for case in manifest.cases] == ["PANCREAS_0001", "PANCREAS_0002", "PANCREAS_0003"]
    assert list(manifest.data_sets) == ["nih", "nih_flipped_z"]
    assert structure_hu(manifest) == pytest.approx([100, 100, 100], abs=15)
    assert "labels read in the raster order of the image: 2 (PANCREAS_0001, PANCREAS_0003)" in caplog.text
    assert "labels read in the raster order of the image, z backwards: 1 (PANCREAS_0002)" in caplog.text
    assert read_manifest(write_manifest(manifest, tmp_path / "project")) == manifest


@needs_dicom
def test_a_copy_that_needs_one_rule_for_all_cases_has_one_data_set(tmp_path: Path):
    write_series(tmp_path / "PANCREAS_0009", body(), downwards=True)
    write_label(tmp_path, 9, mask())
    manifest = nih_pancreas.scan(tmp_path)
    assert [(name, data_set.layout.label_flip) for name, data_set in manifest.data_sets.items()] == [
        ("nih", "z")
    ]
    assert structure_hu(manifest) == pytest.approx([100], abs=15)
    assert detect(tmp_path) == "nih_pancreas"


@needs_dicom
def test_of_several_series_the_longest_is_taken(tmp_path: Path, caplog):
    write_series(tmp_path / "PANCREAS_0001" / "study" / "scout", body()[:, :, :2])
    scan = write_series(tmp_path / "PANCREAS_0001" / "study" / "abdomen", body())
    write_label(tmp_path, 1, mask())
    assert nih_pancreas.scan(tmp_path).cases[0].images == (scan,)
    assert "PANCREAS_0001 has 2 series" in caplog.text


@needs_dicom
def test_dicom_without_its_packages_is_refused_unless_there_is_nifti(tmp_path: Path, monkeypatch):
    write_series(tmp_path / "PANCREAS_0001", body())
    write_label(tmp_path, 1, mask())
    monkeypatch.setattr(nih_pancreas.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="packages to read DICOM") as caught:
        nih_pancreas.scan(tmp_path)
    assert "labelwise[dicom]" in str(caught.value)
    make_nifti(tmp_path, {1: "y"})
    assert nih_pancreas.scan(tmp_path).cases[0].images[0].name == "PANCREAS_0001.nii.gz"


# NIfTI


@pytest.mark.parametrize("axes", ["", "y", "z", "yz"])
def test_a_flip_of_nifti_labels_is_found_by_their_voxels(tmp_path: Path, axes: str, caplog):
    manifest = nih_pancreas.scan(make_nifti(tmp_path, {1: axes, 2: axes}))
    assert manifest.data_sets["nih"].layout.label_flip == axes
    assert structure_hu(manifest) == pytest.approx([100, 100], abs=15)
    assert "labels read in the raster order of the image" in caplog.text


def test_headers_that_agree_are_believed_if_the_voxels_do_not_object(tmp_path: Path, caplog):
    make_nifti(tmp_path, {1: "", 2: "y"}, affine=CONVERTED)
    # The third label is stored bottom up and front to back, and its header says so.
    turned = CONVERTED @ np.array(
        [[1, 0, 0, 0], [0, -1, 0, SHAPE[1] - 1], [0, 0, -1, SHAPE[2] - 1], [0, 0, 0, 1]]
    )
    make_nifti(tmp_path, {3: "yz"}, affine=turned)
    manifest = nih_pancreas.scan(tmp_path)
    assert {case.id: case.data_set for case in manifest.cases} == {
        "PANCREAS_0001": "nih",
        "PANCREAS_0002": "nih_flipped_y",
        "PANCREAS_0003": "nih",
    }
    assert manifest.data_sets["nih"].layout.label_grid == "own"
    assert structure_hu(manifest) == pytest.approx([100] * 3, abs=15)
    assert "labels read by their own headers: 2" in caplog.text


def test_a_rule_of_the_user_is_followed_without_reading_voxels(tmp_path: Path):
    make_nifti(tmp_path, {1: "y"})
    (tmp_path / "images" / "PANCREAS_0001.nii.gz").write_bytes(b"not read")
    for flip, expected in (("y", "y"), ("none", ""), ("headers", "")):
        layout = nih_pancreas.scan(tmp_path, flip=flip).data_sets["nih"].layout
        assert (layout.label_flip, layout.label_grid) == (expected, "own" if flip == "headers" else "image")


def test_labels_that_fit_nowhere_and_files_that_cannot_be_read_take_no_part(tmp_path: Path, caplog):
    make_nifti(tmp_path, {1: "", 2: "", 3: ""})
    write_nifti(tmp_path / "images" / "PANCREAS_0002.nii.gz", np.full(SHAPE, -800, np.int16), CONVERTED)
    (tmp_path / "images" / "PANCREAS_0003.nii.gz").write_bytes(b"damaged")
    cases = by_id(nih_pancreas.scan(tmp_path))
    assert cases["PANCREAS_0001"].annotated == {"pancreas"}
    for name in ("PANCREAS_0002", "PANCREAS_0003"):
        assert (cases[name].split, cases[name].annotated) == ("", frozenset())
    assert "take no part: 2 (PANCREAS_0002, PANCREAS_0003)" in caplog.text


def test_of_several_flips_that_pass_the_most_uniform_counts(tmp_path: Path, caplog):
    make_nifti(tmp_path, {1: "y"})
    image = np.clip(body(1), -60, 200)  # everything is soft tissue, more or less
    path = write_nifti(tmp_path / "images" / "PANCREAS_0001.nii.gz", image, CONVERTED)
    label = tmp_path / LABELS / "label0001.nii.gz"
    assert align(path, label) == Alignment(flip="y", certain=True)
    write_nifti(path, np.full(SHAPE, 60, np.int16), CONVERTED)
    assert align(path, label) == Alignment(flip="", certain=False)
    nih_pancreas.scan(tmp_path)
    assert "another flip; look at them: 1 (PANCREAS_0001)" in caplog.text


@pytest.mark.parametrize(
    ("hu", "soft"),
    [
        ([100] * 10, True),
        ([-20] * 10, True),
        ([280] * 10, True),
        ([-40] * 10, False),  # median
        ([300] * 10, False),
        ([100] * 8 + [-500, 900], True),  # 80 % within -100..350
        ([100] * 7 + [-500, 900, 900], False),
    ],
)
def test_soft_tissue_is_known_by_median_and_range(hu: list[int], soft: bool):
    assert on_soft_tissue(np.array(hu)) is soft


def test_an_empty_label_lies_everywhere(tmp_path: Path):
    make_nifti(tmp_path, {1: ""})
    write_label(tmp_path, 1, np.zeros(SHAPE, np.uint8))
    case = nih_pancreas.scan(tmp_path).cases[0]
    assert (case.split, case.annotated) == ("train", {"pancreas"})


# files


def test_the_repeated_scans_form_one_group_and_are_reported(tmp_path: Path, caplog):
    cases = by_id(nih_pancreas.scan(make_nifti(tmp_path, {2: "y", 3: "y", 25: "y", 70: "y"})))
    groups = {name: case.group for name, case in cases.items()}
    assert len({groups[f"PANCREAS_{number:04d}"] for number in (2, 25, 70)}) == 1
    assert groups["PANCREAS_0003"] == "PANCREAS_0003"
    assert "they form one group: 3 (PANCREAS_0002, PANCREAS_0025, PANCREAS_0070)" in caplog.text


def test_labels_of_the_withdrawn_scans_have_no_image(tmp_path: Path, caplog):
    make_nifti(tmp_path, {2: "y"})
    for number in (25, 70, 81):
        write_label(tmp_path, number, mask())
    assert list(by_id(nih_pancreas.scan(tmp_path))) == ["PANCREAS_0002"]
    assert "labels of withdrawn scans are left out: 2 (label0025, label0070)" in caplog.text
    assert "labels without a scan are left out: 1 (label0081)" in caplog.text


def test_scans_without_a_label_take_no_part_or_train(tmp_path: Path):
    make_nifti(tmp_path, {1: "y"})
    write_nifti(tmp_path / "PANCREAS_0005_0000.nii.gz", body(5), CONVERTED)  # nnU-Net's name
    (tmp_path / "PANCREAS_0006").mkdir()
    case = by_id(nih_pancreas.scan(tmp_path))["PANCREAS_0005"]
    assert (case.split, case.labels, case.annotated) == ("", None, frozenset())
    assert by_id(nih_pancreas.scan(tmp_path, unlabelled="train"))["PANCREAS_0005"].split == "train"


def test_labels_may_lie_beside_the_scans_or_anywhere(tmp_path: Path):
    make_nifti(tmp_path / "all", {1: "y"})
    scans = tmp_path / "all" / "images"
    assert nih_pancreas.scan(scans).cases[0].annotated == {"pancreas"}
    (tmp_path / "all" / LABELS).rename(tmp_path / "elsewhere")
    assert nih_pancreas.scan(scans, labels=tmp_path / "elsewhere").cases[0].annotated == {"pancreas"}
    with pytest.raises(DataError, match="no label files") as caught:
        nih_pancreas.scan(scans)
    assert "--labels" in str(caught.value)


def test_the_layout_is_recognised_by_the_names_of_the_scans(tmp_path: Path):
    assert detect(make_nifti(tmp_path / "nih", {1: "y"})) == "nih_pancreas"
    write_scan(tmp_path / "btcv" / "img" / "img0001.nii.gz")
    write_label(tmp_path / "btcv", 1, mask())
    assert not nih_pancreas.matches(tmp_path / "btcv")
    manifest = nih_pancreas.scan(tmp_path / "nih")
    assert read_manifest(write_manifest(manifest, tmp_path / "project")) == manifest


def test_wrong_folders_and_options_are_refused(tmp_path: Path):
    make_nifti(tmp_path / "data", {1: "y"})
    with pytest.raises(ConfigError, match="flip = 'x'"):
        nih_pancreas.scan(tmp_path / "data", flip="x")
    write_scan(tmp_path / "other" / "scan.nii.gz")
    with pytest.raises(DataError, match="no scan of NIH"):
        nih_pancreas.scan(tmp_path / "other")
    (tmp_path / "data" / LABELS / "label0001.nii.gz").rename(tmp_path / "data" / LABELS / "label0002.nii.gz")
    with pytest.raises(DataError, match="no label belongs to a scan"):
        nih_pancreas.scan(tmp_path / "data")


def test_an_unexpected_label_value_is_named_with_its_file(tmp_path: Path):
    make_nifti(tmp_path, {1: "y"})
    write_label(tmp_path, 1, flipped(mask() * 3, "y"))
    manifest = nih_pancreas.scan(tmp_path)
    with pytest.raises(DataError, match="value 3") as caught:
        read_case_labels(manifest.cases[0], manifest)
    assert "label0001.nii.gz" in str(caught.value)
