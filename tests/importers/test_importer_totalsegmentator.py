"""TotalSegmentator: a mask that is not there was not drawn, a mask without a voxel says that the organ is absent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import masks, nifti
from labelwise.importers import detect, totalsegmentator
from labelwise.importers.totalsegmentator import STRUCTURES
from tiny_cohort import write_map, write_nifti, write_scan

META = "image_id;age;gender;split\ns0000;60;m;train\ns0001;50;f;val\ns0002;40;f;test\ns0003;30;m;train\ns9;1;m;train\n"


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="labelwise")
    return caplog


def mask(folder: Path, case: str, name: str, *places: int) -> None:
    """A mask with 1 at the given places."""
    found = np.zeros((6, 5, 4), np.uint8)
    found.ravel()[list(places)] = 1
    write_nifti(folder / case / "segmentations" / f"{name}.nii.gz", found)


def make(folder: Path) -> Path:
    """Four cases: three masks; one mask missing and one empty; none; a folder that is empty."""
    for number in range(4):
        write_scan(folder / f"s000{number}" / "ct.nii.gz", seed=number)
    mask(folder, "s0000", "spleen", 0)
    mask(folder, "s0000", "liver", 1)
    mask(folder, "s0000", "kidney_left", 2)
    mask(folder, "s0001", "spleen")
    mask(folder, "s0001", "liver", 1)
    (folder / "s0002" / "segmentations").mkdir()
    (folder / "s0003" / "segmentations").mkdir()
    for junk in ("._liver.nii.gz", ".DS_Store", "notes.txt"):
        (folder / "s0003" / "segmentations" / junk).write_bytes(b"junk")
    (folder / "__MACOSX" / "s0000" / "segmentations").mkdir(parents=True)
    (folder / "meta.csv").write_text(META)
    return folder


def values(manifest: Manifest, number: int) -> list[int]:
    return read_case_labels(manifest.cases[number], manifest).data.ravel()[:4].tolist()


def test_the_files_of_a_case_say_what_is_annotated_in_it(tmp_path: Path, heard):
    manifest = totalsegmentator.scan(make(tmp_path))
    assert manifest.label_space.structures == ("spleen", "left kidney", "liver")  # by the number of version 2
    assert [sorted(case.annotated) for case in manifest.cases] == [
        ["left kidney", "liver", "spleen"],
        ["liver", "spleen"],
        [],
        [],
    ]
    assert values(manifest, 0) == [1, 3, 2, 0]
    assert values(manifest, 1) == [0, 3, 0, 0]
    assert "cases without labels are unlabelled: 2 (s0002, s0003)" in heard.text
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest


def test_splits_are_those_of_meta_csv_and_differences_are_reported(tmp_path: Path, heard):
    make(tmp_path)
    assert [case.split for case in totalsegmentator.scan(tmp_path).cases] == [
        "train",
        "validation",
        "test",
        "train",
    ]
    assert "not there: 1 (s9)" in heard.text
    (tmp_path / "meta.csv").write_text(META.replace("s0003", "s8").replace(";", ","))
    assert [case.split for case in totalsegmentator.scan(tmp_path).cases] == [
        "train",
        "validation",
        "test",
        "",
    ]
    assert "take no part: 1 (s0003)" in heard.text
    (tmp_path / "meta.csv").unlink()
    assert {case.split for case in totalsegmentator.scan(tmp_path).cases} == {"train"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no columns image_id and split"),
        ("image_id;age\ns0000;1\n", "no columns image_id and split"),
        (META.replace("val", "vla"), r"case 's0001': unknown split 'vla'[\s\S]*row 3"),
        (META + '"s0', "cannot be read"),
    ],
)
def test_a_garbled_meta_csv_is_refused_with_its_name(tmp_path: Path, text: str, message: str):
    (make(tmp_path) / "meta.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        totalsegmentator.scan(tmp_path)
    assert "meta.csv" in str(caught.value)


def test_the_layout_is_recognised_also_one_folder_deeper(tmp_path: Path):
    make(tmp_path / "archive" / "Totalsegmentator_dataset_v201")
    assert detect(tmp_path / "archive") == "totalsegmentator"
    assert detect(tmp_path / "archive" / "Totalsegmentator_dataset_v201") == "totalsegmentator"
    assert [case.split for case in totalsegmentator.scan(tmp_path / "archive").cases][1] == "validation"


def test_a_folder_of_scans_is_something_else(tmp_path: Path):
    write_scan(tmp_path / "s1" / "ct.nii.gz")
    assert not totalsegmentator.matches(tmp_path)


@pytest.mark.parametrize("chosen", ["liver, kidney_left", ["liver", "left kidney"]])
def test_chosen_classes_leave_the_other_masks_unopened(
    tmp_path: Path, chosen: object, monkeypatch: pytest.MonkeyPatch
):
    opened: list[str] = []
    read: Callable[..., object] = nifti.read
    monkeypatch.setattr(masks.nifti, "read", lambda path: opened.append(path.name) or read(path))
    manifest = totalsegmentator.scan(make(tmp_path), classes=chosen)
    assert manifest.label_space.structures == ("liver", "left kidney")
    assert values(manifest, 0) == [0, 1, 2, 0]
    assert opened == ["kidney_left.nii.gz", "liver.nii.gz"]


def test_a_class_of_several_masks_is_annotated_where_all_of_them_are_there(tmp_path: Path):
    classes = {"upper abdomen": ["liver", "kidney_left"], "spleen": "spleen"}
    manifest = totalsegmentator.scan(make(tmp_path), classes=classes)
    assert [sorted(case.annotated) for case in manifest.cases[:2]] == [
        ["spleen", "upper abdomen"],
        ["spleen"],
    ]
    assert values(manifest, 0) == [2, 1, 1, 0]
    assert values(manifest, 1) == [0, 0, 0, 0]


def test_a_case_without_any_of_the_chosen_masks_is_unlabelled(tmp_path: Path):
    manifest = totalsegmentator.scan(make(tmp_path), classes=["left kidney"])
    assert [bool(case.labels) for case in manifest.cases] == [True, False, False, False]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["livre"], "no masks of 'livre'; did you mean 'liver'"),
        ({"a": ["liver"], "b": ["liver", "spleen"]}, "'liver' is in two classes"),
        ({"liver": 1}, "must be names"),
    ],
)
def test_wrong_classes_are_refused(tmp_path: Path, classes: object, message: str):
    with pytest.raises(ConfigError, match=message):
        totalsegmentator.scan(make(tmp_path), classes=classes)


def test_masks_are_believed_only_for_what_the_user_says(tmp_path: Path):
    manifest = totalsegmentator.scan(make(tmp_path), annotated=["liver"])
    assert [sorted(case.annotated) for case in manifest.cases[:2]] == [["liver"], ["liver"]]
    with pytest.raises(ConfigError, match="did you mean 'liver'"):
        totalsegmentator.scan(tmp_path, annotated=["lver"])


def test_one_file_without_names_has_the_numbers_of_the_task_that_is_stated(tmp_path: Path):
    make(tmp_path)
    write_scan(tmp_path / "s0004" / "ct.nii.gz")
    write_map(tmp_path / "s0004" / "segmentations.nii.gz", 5, 117, 3)
    with pytest.raises(ConfigError, match="does not say what its values mean"):
        totalsegmentator.scan(tmp_path)
    manifest = totalsegmentator.scan(tmp_path, task="total")
    assert (len(STRUCTURES), len(set(STRUCTURES)), len(manifest.label_space.structures)) == (117, 117, 117)
    found = [manifest.label_space.names[value] for value in values(manifest, 4)]
    assert found == ["liver", "costal cartilages", "left kidney", "background"]
    assert len(manifest.cases[4].annotated) == 117
    assert {case.data_set for case in manifest.cases} == {"totalsegmentator", "totalsegmentator_together"}
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest
    few = totalsegmentator.scan(tmp_path, classes=["liver"], task="total")
    assert values(few, 4) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("scan", "task", "found"),
    [
        ("mri", "total_mr", ["colon", "heart", "brain"]),
        ("ct", "total_mr", ["colon", "heart", "brain"]),
        ("ct", "total", ["esophagus", "prostate", "vertebra C1"]),
        ("ct", "total_v1", ["upper lobe of right lung", "vertebra L1", "brain"]),
        ("mri", "total", None),
        ("mri", "total_v1", None),
    ],
)
def test_mr_has_numbers_of_its_own(tmp_path: Path, scan: str, task: str, found: list[str] | None):
    """15 is the colon in MR and the oesophagus in CT: with the table of CT one would be taken for the other."""
    write_scan(tmp_path / "s0000" / f"{scan}.nii.gz")
    write_map(tmp_path / "s0000" / "segmentations.nii.gz", 15, 22, 50)
    if found is None:
        with pytest.raises(ConfigError, match=r"label file of an MR scan(?s:.*)task=total_mr"):
            totalsegmentator.scan(tmp_path, task=task)
        return
    manifest = totalsegmentator.scan(tmp_path, task=task)
    assert [manifest.label_space.names[value] for value in values(manifest, 0)[:3]] == found


def test_mr_is_a_data_set_of_its_own(tmp_path: Path):
    make(tmp_path)
    write_scan(tmp_path / "s0004" / "mri.nii.gz")
    mask(tmp_path, "s0004", "face", 0)
    manifest = totalsegmentator.scan(tmp_path)
    assert {name: data_set.modality for name, data_set in manifest.data_sets.items()} == {
        "totalsegmentator": "ct",
        "totalsegmentator_mr": "mr",
    }
    assert manifest.label_space.structures[-1] == "face"  # after the structures of version 2


def test_folders_whose_cases_have_the_same_names_are_imported_one_by_one(tmp_path: Path):
    make(tmp_path / "ct")
    make(tmp_path / "more")
    with pytest.raises(DataError, match=r"same name[\s\S]*one by one"):
        totalsegmentator.scan(tmp_path)


# reading masks


def test_of_masks_that_overlap_the_later_name_counts(tmp_path: Path):
    for name in ("a", "b"):
        write_map(tmp_path / f"{name}.nii.gz", 1)
    for segments, value in ((("a", "b"), 2), (("b", "a"), 2), (("b",), 1), (("x", "b"), 2)):
        labels, _ = masks.read(tmp_path, segments)
        assert labels.ravel()[0] == value
    assert labels.dtype == np.uint8


def test_masks_named_after_bids_are_known_by_their_label():
    names = {
        "sub-1_label-L_mask.nii.gz": "L",
        "sub-1_ses-2_label-liver_desc-x_mask.nii": "liver",
        "sub-1_desc-brain_mask.nii.gz": "sub-1_desc-brain_mask",
        "liver.nii.gz": "liver",
        "._liver.nii.gz": "",
        "liver.txt": "",
    }
    assert {file: masks.name_of(Path(file)) for file in names} == names


def test_masks_that_cannot_be_read_together_are_refused_with_the_file(tmp_path: Path):
    write_map(tmp_path / "a.nii.gz", 1)
    write_map(tmp_path / "b.nii.gz", 1, affine=np.diag((2, 1, 1, 1)))
    write_nifti(tmp_path / "c.nii.gz", np.full((6, 5, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"different grids[\s\S]*b\.nii\.gz"):
        masks.read(tmp_path, ("a", "b"))
    with pytest.raises(DataError, match=r"not numbers[\s\S]*c\.nii\.gz"):
        masks.read(tmp_path, ("c",))
    with pytest.raises(DataError, match="none of the masks is there"):
        masks.read(tmp_path, ("x",))
    with pytest.raises(DataError, match="cannot be read"):
        masks.names(tmp_path / "nowhere")
