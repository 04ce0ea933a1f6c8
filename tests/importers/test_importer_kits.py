"""KiTS19, KiTS21 and KiTS23 as they are downloaded: releases, value tables, axis order of the first release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import (
    Manifest,
    check_same_grid,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.formats import Geometry
from labelwise.importers import detect, kits
from labelwise.types import IGNORE, Case
from tiny_cohort import write_map, write_nifti, write_scan

STORED = (4, 6, 6)  # slices, rows, columns
# The header of current files: slices run downwards, rows backwards, columns to the left.
CURRENT = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1.0]])
FIRST = np.diag([3.0, 0.8, 0.8, 1.0])


def make_case(
    folder: Path, number: int, *values: int, label: str = "segmentation", affine: np.ndarray = CURRENT
) -> None:
    case = folder / f"case_{number:05d}"
    write_scan(case / "imaging.nii.gz", seed=number, shape=STORED, affine=affine)
    if values:
        write_map(case / f"{label}.nii.gz", *values, shape=STORED, affine=affine)


def make_kits(folder: Path) -> Path:
    for number in (0, 1, 12):
        make_case(folder / "data", number, 1, 2, 2)
    make_case(folder / "data", 210)
    (folder / "data" / "kits.json").write_text("[]")
    (folder / "LICENSE").write_text("MIT")
    for junk in ("._imaging.nii.gz", ".DS_Store"):
        (folder / "data" / "case_00000" / junk).write_bytes(b"junk")
    (folder / "__MACOSX" / "case_00099").mkdir(parents=True)
    (folder / "__MACOSX" / "case_00099" / "imaging.nii.gz").write_bytes(b"junk")
    write_map(folder / "data" / "case_00000" / "instances" / "segmentation_1.nii.gz", 1)
    return folder


def by_id(manifest: Manifest) -> dict[str, Case]:
    return {case.id: case for case in manifest.cases}


def classes(manifest: Manifest, name: str) -> list[int]:
    labels = read_case_labels(by_id(manifest)[name], manifest)
    return sorted(labels.data[labels.data > 0].tolist())


def test_kits19_is_read_with_tumours_as_background(tmp_path: Path, caplog):
    manifest = kits.scan(make_kits(tmp_path))
    assert [case.id for case in manifest.cases] == ["case_00000", "case_00001", "case_00012", "case_00210"]
    assert manifest.label_space.names == ("background", "kidneys")
    assert list(manifest.data_sets) == ["kits"]
    assert classes(manifest, "case_00000") == [1]
    test = by_id(manifest)["case_00210"]
    assert (test.labels, test.annotated, test.split) == (None, frozenset(), "")
    assert "cases without labels take no part: 1 (case_00210)" in caplog.text
    assert by_id(kits.scan(tmp_path, unlabelled="train"))["case_00210"].split == "train"


def test_the_layout_is_recognised_and_survives_writing(tmp_path: Path):
    assert detect(make_kits(tmp_path / "data set")) == "kits"
    manifest = kits.scan(tmp_path / "data set")
    assert read_manifest(write_manifest(manifest, tmp_path / "project")) == manifest


def test_kits21_labels_are_the_majority_of_the_annotators(tmp_path: Path):
    make_case(tmp_path / "kits21" / "data", 0, 1, 2, 3, label="aggregated_MAJ_seg")
    write_map(tmp_path / "kits21" / "data" / "case_00000" / "aggregated_OR_seg.nii.gz", 1, shape=STORED)
    case = kits.scan(tmp_path).cases[0]
    assert case.labels is not None
    assert case.labels.name == "aggregated_MAJ_seg.nii.gz"


def test_kits23_lies_in_another_folder(tmp_path: Path):
    make_case(tmp_path / "kits23" / "dataset", 588, 1, 3)
    manifest = kits.scan(tmp_path)
    assert classes(manifest, "case_00588") == [1, 1]  # a cyst is part of the kidney


@pytest.mark.parametrize(
    ("options", "names", "expected"),
    [
        ({}, ("kidneys",), [1, 1]),
        ({"tumour": "organ"}, ("kidneys",), [1, 1, 1]),
        ({"tumour": "ignore", "cyst": "background"}, ("kidneys",), [1, IGNORE]),
        ({"tumour": "class"}, ("kidneys", "kidney tumour"), [1, 1, 2]),
        ({"tumour": "class", "cyst": "class"}, ("kidneys", "kidney tumour", "kidney cyst"), [1, 2, 3]),
    ],
    ids=str,
)
def test_tumours_and_cysts_count_as_the_options_say(tmp_path: Path, options, names, expected):
    make_case(tmp_path, 300, 1, 2, 3)
    manifest = kits.scan(tmp_path, **options)
    assert manifest.label_space.structures == names
    assert classes(manifest, "case_00300") == expected


def test_slices_of_the_first_release_become_the_body_axis(tmp_path: Path, caplog):
    for number in (0, 1):
        make_case(tmp_path, number, 1)
    make_case(tmp_path, 7, affine=FIRST)
    mask = np.zeros(STORED, np.uint8)
    mask[0, 1, 2] = 1
    write_nifti(tmp_path / "case_00007" / "segmentation.nii.gz", mask, FIRST)
    manifest = kits.scan(tmp_path)
    assert list(manifest.data_sets) == ["kits", "kits_first_release"]
    assert [case.data_set for case in manifest.cases] == ["kits", "kits", "kits_first_release"]
    assert "read as slices first: 1 (case_00007)" in caplog.text
    case = by_id(manifest)["case_00007"]
    image, labels = read_case_image(case, manifest), read_case_labels(case, manifest)
    check_same_grid(case, image, labels)
    assert image.shape == (6, 6, 4)
    assert image.spacing_mm == pytest.approx((0.8, 0.8, 3.0), abs=1e-6)
    # first slice on top, second row from the front, third column from the right
    assert np.argwhere(labels.data).tolist() == [[6 - 1 - 2, 6 - 1 - 1, 4 - 1]]


def test_files_of_both_releases_come_to_the_same_voxels(tmp_path: Path):
    for release, affine in (("first", FIRST), ("current", CURRENT)):
        make_case(tmp_path / release, 0, 1, 1, 1, affine=affine)
    first, current = kits.scan(tmp_path / "first"), kits.scan(tmp_path / "current")
    assert list(first.data_sets) == ["kits"]  # a whole copy of one release has the plain name
    for read in (read_case_image, read_case_labels):
        np.testing.assert_array_equal(read(first.cases[0], first).data, read(current.cases[0], current).data)


def test_newer_labels_beside_older_images_lie_on_the_image(tmp_path: Path, caplog):
    make_case(tmp_path, 0, 1, affine=FIRST)
    write_map(tmp_path / "case_00000" / "segmentation.nii.gz", 1, shape=STORED, affine=CURRENT)
    manifest = kits.scan(tmp_path)
    case = manifest.cases[0]
    check_same_grid(case, read_case_image(case, manifest), read_case_labels(case, manifest))
    assert "headers of labels disagree with their image, whose grid counts: 1 (case_00000)" in caplog.text


@pytest.mark.parametrize(
    ("shape", "affine", "first"),
    [
        ((60, 512, 512), FIRST, True),
        ((60, 512, 796), FIRST, True),  # case_00160
        ((60, 512, 512), np.diag([0.8, 0.8, 0.8, 1]), True),
        ((60, 512, 512), CURRENT, False),
        ((512, 512, 60), np.diag([0.8, 0.8, 3, 1]), False),  # somebody has turned it already
        ((512, 512, 60), np.diag([0.8, 0.8, 0.8, 1]), False),
        ((512, 512, 60), np.diag([-0.8, -0.8, 3, 1]), False),
    ],
)
def test_the_first_release_is_known_by_its_header(shape, affine: np.ndarray, first: bool):
    assert kits.is_first_release(Geometry(shape, affine.astype(float))) is first


def test_a_clone_without_images_is_refused_with_the_way_to_get_them(tmp_path: Path):
    make_kits(tmp_path)
    for image in tmp_path.rglob("imaging.nii.gz"):
        image.unlink()
    assert detect(tmp_path) == "kits"
    with pytest.raises(DataError, match="the images are not") as caught:
        kits.scan(tmp_path)
    assert "get_imaging" in str(caught.value)


def test_a_missing_image_or_label_is_reported(tmp_path: Path, caplog):
    make_kits(tmp_path)
    (tmp_path / "data" / "case_00000" / "imaging.nii.gz").unlink()
    (tmp_path / "data" / "case_00012" / "segmentation.nii.gz").unlink()
    assert list(by_id(kits.scan(tmp_path))) == ["case_00001", "case_00012", "case_00210"]
    assert "labels without imaging.nii.gz are left out: 1 (case_00000)" in caplog.text
    assert "cases without labels take no part: 2 (case_00012, case_00210)" in caplog.text


def test_two_copies_of_a_case_and_other_faults_are_refused(tmp_path: Path):
    make_kits(tmp_path / "both")
    make_case(tmp_path / "both" / "copy", 1, 1)
    with pytest.raises(DataError, match="two files hold the same scan"):
        kits.scan(tmp_path / "both")
    with pytest.raises(ConfigError, match="cyst = 'kidney'"):
        kits.scan(tmp_path / "both", cyst="kidney")
    write_scan(tmp_path / "other" / "case_1" / "imaging.nii.gz")
    assert not kits.matches(tmp_path / "other")
    with pytest.raises(DataError, match="no case of KiTS"):
        kits.scan(tmp_path / "other")


def test_an_unexpected_label_value_is_named_with_its_file(tmp_path: Path):
    make_case(tmp_path, 3, 1, 4)
    manifest = kits.scan(tmp_path)
    with pytest.raises(DataError, match="value 4") as caught:
        read_case_labels(manifest.cases[0], manifest)
    assert "case_00003" in str(caught.value)
