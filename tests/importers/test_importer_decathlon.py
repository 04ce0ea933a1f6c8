"""Lists of scans in JSON: the Decathlon's words and MONAI's."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import read_case_image, read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.importers import decathlon, detect
from tiny_cohort import write_map, write_nifti, write_scan

BASE = {"labels": {"0": "background", "1": "liver", "2": "spleen"}, "modality": {"0": "CT"}}


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="labelwise")
    return caplog


def make(folder: Path, **changes: object) -> Path:
    for number, name in enumerate("abcd"):
        write_scan(folder / "scans" / f"{name}.nii.gz", seed=number)
        write_map(folder / "masks" / f"{name}.nii.gz", 1, 2)
    training = [
        {"image": f"./scans/{n}.nii.gz", "label": f"masks/{n}.nii.gz", "fold": i} for i, n in enumerate("ab")
    ]
    lists = {"training": training, "validation": [{"image": "scans/c.nii.gz", "label": "masks/c.nii.gz"}]}
    document = {**BASE, **lists, "test": ["./scans/d.nii.gz"], **changes}
    (folder / "task.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return folder


def test_a_list_of_scans_is_recognised_by_folder_and_by_file(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "._task.json").write_bytes(b"junk")
    (tmp_path / "notes.json").write_text('{"training": "tomorrow"}')
    assert detect(tmp_path) == detect(tmp_path / "task.json") == "decathlon"
    with pytest.raises(DataError, match="no list of scans"):
        detect(tmp_path / "notes.json")


def test_lists_become_splits_and_a_plain_string_is_a_scan_without_labels(tmp_path: Path):
    manifest = decathlon.scan(make(tmp_path / "mine"))
    assert {case.id: (case.split, bool(case.annotated)) for case in manifest.cases} == {
        "a": ("train", True),
        "b": ("train", True),
        "c": ("validation", True),
        "d": ("test", False),
    }
    assert manifest.data_sets["mine"].modality == "ct"
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, 2, 0]
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest
    assert decathlon.scan(tmp_path / "mine" / "task.json") == manifest


def test_a_fold_of_the_training_list_validates(tmp_path: Path, heard):
    make(tmp_path)
    assert [case.split for case in decathlon.scan(tmp_path, fold=1).cases] == [
        "train",
        "validation",
        "validation",
        "test",
    ]
    with pytest.raises(ConfigError, match=r"no fold 2[\s\S]*0, 1"):
        decathlon.scan(tmp_path, fold=2)
    decathlon.scan(tmp_path)
    assert "without --fold all of them train" in heard.text


def test_an_image_may_be_a_list_of_channels(tmp_path: Path):
    both = {"image": ["scans/a.nii.gz", "scans/b.nii.gz"], "label": ["masks/a.nii.gz"]}
    manifest = decathlon.scan(make(tmp_path, training=[both], validation=[], test=[]))
    assert read_case_image(manifest.cases[0], manifest).data.shape == (2, 6, 5, 4)


def test_several_names_of_channels_and_single_files_mean_files_with_several_channels(tmp_path: Path):
    make(
        tmp_path,
        modality={"0": "T2", "1": "ADC"},
        training=[{"image": "four.nii.gz"}],
        validation=[],
        test=[],
    )
    write_nifti(tmp_path / "four.nii.gz", np.zeros((6, 5, 4, 2), np.float32))
    manifest = decathlon.scan(tmp_path)
    assert manifest.data_sets[tmp_path.name].modality == "mr"
    assert read_case_image(manifest.cases[0], manifest).data.shape == (2, 6, 5, 4)


def test_what_the_file_does_not_say_the_user_does(tmp_path: Path):
    make(tmp_path, labels=None, modality=None)
    with pytest.raises(ConfigError, match="classes are missing"):
        decathlon.scan(tmp_path, modality="ct")
    with pytest.raises(ConfigError, match="modality is missing"):
        decathlon.scan(tmp_path, classes={"liver": 1})
    manifest = decathlon.scan(
        tmp_path, classes={"organs": [1, 2]}, modality="mr", annotated=["organs"], data_set="s"
    )
    assert manifest.label_space.structures == ("organs",)
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, 1, 0]


def test_files_that_are_not_there_are_counted_and_left_out(tmp_path: Path, heard):
    make(tmp_path)
    (tmp_path / "scans" / "b.nii.gz").unlink()
    (tmp_path / "masks" / "a.nii.gz").unlink()
    manifest = decathlon.scan(tmp_path)
    assert [(case.id, bool(case.labels)) for case in manifest.cases] == [
        ("a", False),
        ("c", True),
        ("d", False),
    ]
    assert "without an image file are left out: 1 (training[1])" in heard.text
    assert "label files that are not there: unlabelled cases: 1 (training[0])" in heard.text


def test_paths_may_begin_in_another_folder(tmp_path: Path):
    make(tmp_path / "data")
    (tmp_path / "data" / "task.json").rename(tmp_path / "task.json")
    with pytest.raises(DataError, match=r"none of the listed images[\s\S]*--set root=FOLDER"):
        decathlon.scan(tmp_path)
    assert len(decathlon.scan(tmp_path, root=tmp_path / "data").cases) == 4


def test_scans_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    for patient in ("p1", "p2"):
        write_scan(tmp_path / patient / "t1_0000.nii.gz")
    manifest = decathlon.scan(
        make(tmp_path, training=["p1/t1_0000.nii.gz", "p2/t1_0000.nii.gz"], validation=[], test=[])
    )
    assert [case.id for case in manifest.cases] == ["p1_t1", "p2_t1"]


def test_a_bare_list_is_training_data(tmp_path: Path):
    write_scan(tmp_path / "a.nii.gz")
    (tmp_path / "list.json").write_text('[{"image": "a.nii.gz"}]')
    manifest = decathlon.scan(tmp_path / "list.json", classes={"liver": 1}, modality="ct")
    assert [case.split for case in manifest.cases] == ["train"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (3, "not a list"),
        ([3], "names no image"),
        ([{"img": "a"}], "names no image"),
        ([{"image": 3}], "image is not a path"),
        ([{"image": []}], "image is not a path"),
        ([{"image": "scans/\x00"}], "image is not a path"),
        ([{"image": "scans/a.nii.gz", "label": 1}], "label is not a path"),
        ([{"image": "scans/a.nii.gz", "label": ["a", "b"]}], "label is not a path"),
        ([{"image": "scans/a.nii.gz", "fold": "0"}], "fold is not an integer"),
        (["x" * 5000], "none of the listed images"),
        (["scans/a.nii.gz", "scans/a.nii.gz"], "same id"),
    ],
)
def test_a_garbled_list_is_refused_with_its_file(tmp_path: Path, training: object, message: str):
    make(tmp_path, training=training, validation=[], test=[])
    with pytest.raises(DataError, match=message) as caught:
        decathlon.scan(tmp_path / "task.json")
    assert "task.json" in str(caught.value)


def test_two_lists_in_a_folder_are_not_guessed_at(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "other.json").write_text((tmp_path / "task.json").read_text())
    assert not decathlon.matches(tmp_path)
    with pytest.raises(DataError, match=r"several JSON files[\s\S]*other\.json, task\.json"):
        decathlon.scan(tmp_path)
