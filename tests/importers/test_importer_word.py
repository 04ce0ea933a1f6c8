"""WORD: three official parts and 16 organs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import DataError
from labelwise.importers import detect, word
from tiny_cohort import write_map, write_scan


def make_word(folder: Path) -> Path:
    for part, number in (("Tr", 2), ("Tr", 3), ("Val", 1), ("Ts", 14)):
        write_scan(folder / f"images{part}" / f"word_{number:04d}.nii.gz", seed=number)
        write_map(folder / f"labels{part}" / f"word_{number:04d}.nii.gz", *range(17))
    add_junk(folder, "imagesTr/word_0002.nii.gz", "labelsTs/word_0014.nii.gz")
    return folder


def test_the_official_parts_are_the_splits(tmp_path: Path):
    manifest = word.scan(make_word(tmp_path))
    assert detect(tmp_path) == "word"
    assert [(case.id, case.split) for case in manifest.cases] == [
        ("word_0002", "train"),
        ("word_0003", "train"),
        ("word_0001", "validation"),
        ("word_0014", "test"),
    ]
    assert all(case.annotated == frozenset(word.STRUCTURES) for case in manifest.cases)
    assert reads_back(manifest, tmp_path)


def test_all_150_scans_find_their_place(tmp_path: Path):
    for part, numbers in (("Tr", range(100)), ("Val", range(100, 120)), ("Ts", range(120, 150))):
        touch(
            tmp_path, *(f"{kind}{part}/word_{n:04d}.nii.gz" for kind in ("images", "labels") for n in numbers)
        )
    assert sizes(word.scan(tmp_path)) == (100, 20, 30, 0)


def test_values_mean_the_documented_structures(tmp_path: Path):
    manifest = word.scan(make_word(tmp_path))
    values = read_case_labels(manifest.cases[0], manifest).data.ravel()[:17]
    assert [manifest.label_space.names[value] for value in values] == [
        "background", "liver", "spleen", "left kidney", "right kidney", "stomach", "gallbladder", "esophagus",
        "pancreas", "duodenum", "colon", "intestine", "adrenal glands", "rectum", "bladder", "left femoral head",
        "right femoral head",
    ]  # fmt: skip
    assert manifest.data_sets["word"].modality == "ct"


def test_missing_labels_make_test_scans_unscored_and_leave_validation_scans_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_word(tmp_path)
    for part, number in (("Val", 1), ("Ts", 14), ("Tr", 3)):
        (tmp_path / f"labels{part}" / f"word_{number:04d}.nii.gz").unlink()
    (tmp_path / "imagesTr" / "word_0002.nii.gz").rename(tmp_path / "imagesTr" / "scan.nii.gz")
    cases = by_id(word.scan(tmp_path))
    assert {name: (case.split, bool(case.annotated)) for name, case in cases.items()} == {
        "word_0003": ("train", False),
        "word_0001": ("", False),
        "word_0014": ("test", False),
    }
    assert "label files without an image are left out: 1 (word_0002)" in caplog.text
    assert "validation images without labels take no part: 1 (word_0001)" in caplog.text
    assert "test images without labels can be predicted, not scored" in caplog.text


def test_it_is_found_below_the_named_folder_and_beside_a_dataset_json(tmp_path: Path):
    folder = make_word(tmp_path / "WORD-V0.1.0")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "liver"}}))
    assert detect(folder) == detect(tmp_path) == "word"
    assert ids(word.scan(tmp_path).cases) == ids(word.scan(folder).cases)


def test_other_folders_are_refused(tmp_path: Path):
    touch(tmp_path, "imagesTr/word_0001_0000.nii.gz", "word_0001.nii.gz")
    assert not word.matches(tmp_path)
    with pytest.raises(DataError, match="no scan of WORD"):
        word.scan(tmp_path)
    touch(tmp_path / "two", "a/imagesTr/word_0001.nii.gz", "b/imagesTr/word_0001.nii.gz")
    with pytest.raises(DataError, match="two files hold the same scan"):
        word.scan(tmp_path / "two")
