"""FLARE22: labelled, unlabelled and tuning scans under the names of several mirrors."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, flare22
from tiny_cohort import write_map, write_scan


def make_official(folder: Path) -> Path:
    for number in (1, 2):
        write_scan(folder / f"FLARE22_LabeledCase50/images/FLARE22_Tr_{number:04d}_0000.nii.gz", seed=number)
        write_scan(folder / f"Tuning/images/FLARETs_{number:04d}_0000.nii.gz", seed=number + 5)
    write_map(folder / "FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz", *range(14))
    write_map(folder / "FLARE22_LabeledCase50/labels/FLARE22_Tr_0002.nii.gz", 1)
    write_map(folder / "Tuning/labels/FLARETs_0001.nii.gz", 13)
    write_map(folder / "Tuning/labels/FLARETs_0002.nii.gz")
    write_scan(folder / "FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz", seed=9)
    write_scan(folder / "FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz", seed=10)
    add_junk(folder, "FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz")
    return folder


def test_labelled_scans_train_first_then_unlabelled_ones_and_the_tuning_scans_validate(tmp_path: Path):
    manifest = flare22.scan(make_official(tmp_path / "data"))
    assert detect(tmp_path / "data") == "flare22"
    assert [(case.id, case.split, bool(case.annotated)) for case in manifest.cases] == [
        ("FLARE22_Tr_0001", "train", True),
        ("FLARE22_Tr_0002", "train", True),
        ("Case_00001", "train", False),
        ("Case_01001", "train", False),
        ("FLARETs_0001", "validation", True),
        ("FLARETs_0002", "validation", True),
    ]
    assert manifest.data_sets["flare22"].modality == "ct"
    assert reads_back(manifest, tmp_path / "project")


def test_values_mean_the_documented_structures_with_13_the_left_kidney(tmp_path: Path):
    manifest = flare22.scan(make_official(tmp_path))
    values = read_case_labels(manifest.cases[0], manifest).data.ravel()[:14]
    assert [manifest.label_space.names[value] for value in values] == [
        "background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava",
        "right adrenal gland", "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum",
        "left kidney",
    ]  # fmt: skip
    absent = by_id(manifest)["FLARETs_0002"]
    assert not read_case_labels(absent, manifest).data.any()
    assert absent.annotated == frozenset(flare22.STRUCTURES)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("FLARE22Train/images/FLARE22_Tr_0001_0000.nii.gz", "FLARE22Train/labels/FLARE22_Tr_0001.nii.gz"),
        ("labeled_image/FLARE22_Tr_0001.nii.gz", "labels/FLARE22_Tr_0001.nii.gz"),
        ("all/FLARE22_Tr_0001_0000.nii.gz", "all/FLARE22_Tr_0001.nii.gz"),
        (
            "FLARE22_LabeledCase50/FLARE22_Tr_0001_0000.nii/FLARE22_Tr_0001_0000.nii",
            "mask/FLARE22_Tr_0001.nii",
        ),
    ],
)
def test_folders_may_have_the_names_of_mirrors(tmp_path: Path, image: str, label: str):
    touch(tmp_path, image, label)
    case = flare22.scan(tmp_path).cases[0]
    assert (case.id, case.images[0], case.labels) == ("FLARE22_Tr_0001", tmp_path / image, tmp_path / label)


def test_unlabelled_scans_may_have_lost_their_ending_and_pseudo_labels_are_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    touch(tmp_path, *(f"FLARE22_unlabeled_image/Case_0000{n}.nii.gz" for n in (1, 2)))
    touch(tmp_path, "pseudo_labels/Case_00001.nii.gz")
    manifest = flare22.scan(tmp_path)
    assert [(case.id, case.labels) for case in manifest.cases] == [("Case_00001", None), ("Case_00002", None)]
    assert "label files of unlabelled scans are left out: nobody drew them: 1 (Case_00001)" in caplog.text


def test_a_number_of_unlabelled_scans_can_be_taken(tmp_path: Path):
    touch(tmp_path, *(f"FLARE22_Unlabeled/Case_{n:05d}_0000.nii.gz" for n in range(1, 31)))
    touch(tmp_path, "images/FLARE22_Tr_0001_0000.nii.gz", "labels/FLARE22_Tr_0001.nii.gz")
    assert sizes(flare22.scan(tmp_path)) == (31, 0, 0, 0)
    assert ids(flare22.scan(tmp_path, num_unlabelled=2).cases) == [
        "FLARE22_Tr_0001",
        "Case_00001",
        "Case_00002",
    ]
    assert len(flare22.scan(tmp_path, num_unlabelled=0).cases) == 1
    for wrong in (-1, 0.5):
        with pytest.raises(ConfigError, match="a number of scans"):
            flare22.scan(tmp_path, num_unlabelled=wrong)


def test_missing_labels_and_images_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_official(tmp_path)
    (tmp_path / "FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz").unlink()
    (tmp_path / "Tuning/labels/FLARETs_0001.nii.gz").unlink()
    cases = by_id(flare22.scan(tmp_path))
    assert "FLARE22_Tr_0001" not in cases
    assert cases["FLARETs_0001"].split == ""
    assert "label files without an image are left out: 1 (FLARE22_Tr_0001)" in caplog.text
    assert "validation images without labels take no part: 1 (FLARETs_0001)" in caplog.text


def test_other_folders_are_not_taken_for_it(tmp_path: Path):
    touch(tmp_path, "x/Case_00001_0000.nii.gz", "x/Case_00001.nii.gz")
    assert not flare22.matches(tmp_path / "x")
    touch(tmp_path, "nn/imagesTr/FLARE22_Tr_0001_0000.nii.gz", "nn/dataset.json", "other/a.nii.gz")
    assert detect(tmp_path / "nn") == "nnunet"
    with pytest.raises(DataError, match="no scan of FLARE22"):
        flare22.scan(tmp_path / "other")
