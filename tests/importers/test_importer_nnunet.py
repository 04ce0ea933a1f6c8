"""nnU-Net beyond the plain case: regions that become classes, files named in dataset.json, folds kept elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from labelwise.cohort.manifest import read_case_labels, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, nnunet
from labelwise.types import IGNORE
from tiny_cohort import write_map, write_scan

BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}


def make(folder: Path, labels: object, *values: int, **changes: object) -> Path:
    write_scan(folder / "imagesTr" / "a_0000.nii.gz")
    write_map(folder / "labelsTr" / "a.nii.gz", *values)
    dataset = {"channel_names": {"0": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz", **changes}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def test_regions_that_lie_in_each_other_become_disjoint_classes_by_their_differences(tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING, logger="labelwise")
    make(tmp_path, BRATS, 1, 2, 3, 4, regions_class_order=[1, 2, 3])
    manifest = nnunet.scan(tmp_path, regions="differences")
    assert manifest.label_space.structures == ("whole without core", "core without enhancing", "enhancing")
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:5].tolist() == [1, 2, 3, IGNORE, 0]
    assert "whole without core = [1]; core without enhancing = [2]; enhancing = [3]" in caplog.text
    assert manifest.label_space.regions == (
        ("whole", ("whole without core", "core without enhancing", "enhancing")),
        ("core", ("core without enhancing", "enhancing")),
    )
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest


def test_classes_with_names_of_their_own_stay_and_their_unions_are_reported(tmp_path: Path, caplog):
    labels = {
        "background": 0,
        "kidney": [1, 2, 3],
        "masses": [2, 3],
        "tumour": 2,
        "cyst": 3,
        "spleen": [4, 5],
    }
    manifest = nnunet.scan(make(tmp_path, labels, 1, 2, 3, 4, 5), regions="differences")
    assert manifest.label_space.structures == ("kidney without masses", "tumour", "cyst", "spleen")
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:5].tolist() == [1, 2, 3, 4, 4]
    assert "no classes of their own: 1 (masses)" in caplog.text
    assert manifest.label_space.classes_of("masses") == {"tumour", "cyst"}


def test_regions_side_by_side_in_one_are_both_taken_out_of_it(tmp_path: Path):
    labels = {"background": 0, "body": [1, 2, 3, 4], "left": [2], "right": [3]}
    manifest = nnunet.scan(make(tmp_path, labels, 4), regions="differences")
    assert manifest.label_space.structures == ("body without left and right", "left", "right")


@pytest.mark.parametrize("overlap", [{"a": [1, 2], "b": [2, 3]}, {"a": [1, 2], "b": [2, 1]}])
def test_regions_that_only_overlap_make_no_classes(tmp_path: Path, overlap: dict[str, list[int]]):
    make(tmp_path, {"background": 0, **overlap}, 1)
    with pytest.raises(DataError, match="neither lies in the other"):
        nnunet.scan(tmp_path, regions="differences")
    with pytest.raises(DataError, match="--set regions=differences"):
        nnunet.scan(tmp_path)
    with pytest.raises(ConfigError, match="skip or differences"):
        nnunet.scan(tmp_path, regions="union")


def test_files_that_the_json_lists_may_lie_anywhere(tmp_path: Path):
    write_scan(tmp_path / "far" / "x.nii.gz")
    write_map(tmp_path / "far" / "y.nii.gz", 1)
    listed = {
        "one": {"images": ["../far/x.nii.gz"], "label": str(tmp_path / "far" / "y.nii.gz")},
        "two": {"images": ["../far/x.nii.gz"]},
    }
    folder = make(tmp_path / "Dataset1", {"background": 0, "liver": 1}, dataset=listed)
    manifest = nnunet.scan(folder)
    assert [(case.id, bool(case.annotated)) for case in manifest.cases] == [("one", True), ("two", False)]
    assert manifest.cases[0].images == (tmp_path / "far" / "x.nii.gz",)
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[0] == 1


@pytest.mark.parametrize(
    "listed", [["a"], {"a": []}, {"a": {"images": "x"}}, {"a": {"images": ["x"], "label": 3}}]
)
def test_a_garbled_list_of_files_is_refused(tmp_path: Path, listed: object):
    with pytest.raises(DataError, match="does not name the files of a case"):
        nnunet.scan(make(tmp_path, {"background": 0, "liver": 1}, dataset=listed))


def test_folds_are_also_found_where_nnunet_keeps_them(tmp_path: Path):
    folder = make(tmp_path / "nnUNet_raw" / "Dataset1", {"background": 0, "liver": 1}, 1)
    splits = tmp_path / "nnUNet_preprocessed" / "Dataset1" / "splits_final.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps([{"train": [], "val": ["a"]}]))
    assert nnunet.scan(folder, fold=0).cases[0].split == "validation"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"labels": ' + "9" * 5000 + "}", "\ufeff{", '"labels"', "3"]
)
def test_a_json_that_no_parser_likes_is_refused_with_its_name(tmp_path: Path, text: str):
    make(tmp_path, {"background": 0, "liver": 1})
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset\.json"):
        nnunet.scan(tmp_path)


@pytest.mark.parametrize("name", ["a;b", "", " x", "\ud800", "all", "line\nbreak"])
def test_a_name_that_cannot_be_a_class_is_refused_with_the_file(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=r"dataset\.json"):
        nnunet.scan(make(tmp_path, {"background": 0, name: 1}))


def test_junk_of_other_systems_is_no_scan(tmp_path: Path):
    folder = make(tmp_path, {"background": 0, "liver": 1}, 1)
    for junk in ("._a_0000.nii.gz", ".DS_Store", "__MACOSX/b_0000.nii.gz"):
        (folder / "imagesTr" / junk).parent.mkdir(exist_ok=True)
        (folder / "imagesTr" / junk).write_bytes(b"junk")
    assert [case.id for case in nnunet.scan(folder).cases] == ["a"]
    assert detect(folder) == "nnunet"
