"""BTCV: names img and label, in the folders of Synapse or of re-packed copies, and the splits of papers."""

from __future__ import annotations

from pathlib import Path

import pytest
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import btcv, detect
from tiny_cohort import write_map, write_scan


def make_all(folder: Path) -> Path:
    """The 50 scans as Synapse gives them out, empty."""
    for number in btcv.LABELLED:
        touch(folder, f"RawData/Training/img/img{number:04d}.nii.gz")
        touch(folder, f"RawData/Training/label/label{number:04d}.nii.gz")
    for number in range(61, 81):
        touch(folder, f"RawData/Testing/img/img{number:04d}.nii.gz")
    touch(folder, "RegData/Training-Training/img/0001/img0001-0002.nii.gz", "RegData/img/img0001.nii.gz")
    return folder


def test_the_official_parts_are_the_splits_and_registered_copies_are_not_read(tmp_path: Path):
    manifest = btcv.scan(make_all(tmp_path))
    assert detect(tmp_path) == "btcv"
    assert sizes(manifest) == (30, 0, 20, 0)
    assert not any(case.annotated for case in manifest.split("test"))
    assert by_id(manifest)["img0001"].images[0].parent.parent.name == "Training"
    assert (manifest.data_sets["btcv"].modality, len(manifest.label_space.structures)) == ("ct", 13)
    assert reads_back(manifest, tmp_path / "project")


@pytest.mark.parametrize(
    "folders", [("RawData/Training/img", "RawData/Training/label"), ("imagesTr", "labelsTr")]
)
def test_values_mean_the_documented_structures_and_a_structure_may_be_absent(
    tmp_path: Path, folders: tuple[str, str]
):
    images, labels = folders
    for number in (1, 2):
        write_scan(tmp_path / images / f"img000{number}.nii.gz", seed=number)
    write_map(tmp_path / labels / "label0001.nii.gz", *range(14))
    write_map(tmp_path / labels / "label0002.nii.gz", 6)
    add_junk(tmp_path, f"{images}/img0001.nii.gz", f"{labels}/label0001.nii.gz")
    manifest = btcv.scan(tmp_path)
    first, second = (read_case_labels(case, manifest).data.ravel() for case in manifest.cases)
    names = [manifest.label_space.names[value] for value in first[:14]]
    assert names == [
        "background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland",
        "left adrenal gland",
    ]  # fmt: skip
    assert set(second) == {0, 6}
    assert "gallbladder" in manifest.cases[1].annotated


def test_what_has_no_partner_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    touch(tmp_path, "img/img0001.nii.gz", "img/img0002.nii.gz", "img/scan.nii.gz")
    touch(tmp_path, "label/label0002.nii.gz", "label/label0003.nii.gz")
    manifest = btcv.scan(tmp_path)
    assert [(case.id, bool(case.annotated), case.split) for case in manifest.cases] == [
        ("img0001", False, "train"),
        ("img0002", True, "train"),
    ]
    assert "label files without an image are left out: 1 (img0003)" in caplog.text
    assert "train images without labels are unlabelled cases: 1 (img0001)" in caplog.text


def test_the_split_of_transunet_has_18_and_12_scans(tmp_path: Path):
    manifest = btcv.scan(make_all(tmp_path), split="transunet")
    assert sizes(manifest) == (18, 0, 12, 20)
    assert {1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38} == {
        int(case.id[3:]) for case in manifest.split("test")
    }


@pytest.mark.parametrize(
    ("split", "first"),
    [("dhc_10", [23, 28]), ("dhc_20", [2, 23, 34, 39]), ("dhc_40", [2, 9, 21, 23, 27, 31, 32, 37])],
)
def test_the_splits_of_dhc_begin_with_the_labelled_scans(tmp_path: Path, split: str, first: list[int]):
    manifest = btcv.scan(make_all(tmp_path), split=split)
    assert sizes(manifest) == (20, 4, 6, 20)
    kept = hide(manifest, "keep_labelled", n=len(first)).split("train")
    assert [int(case.id[3:]) for case in kept if case.annotated] == first
    assert ids(manifest.split("validation")) == ["img0006", "img0025", "img0026", "img0040"]


def test_missing_scans_of_a_published_split_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_all(tmp_path)
    (tmp_path / "RawData/Training/img/img0006.nii.gz").unlink()
    btcv.scan(tmp_path, split="dhc_20")
    assert "cases of the published validation list are missing: 1 (img0006)" in caplog.text


def test_wrong_options_and_folders_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'transunet'"):
        btcv.scan(make_all(tmp_path / "all"), split="transunett")
    touch(tmp_path, "other/scan.nii.gz", "two/a/img0001.nii.gz", "two/b/img0001.nii")
    with pytest.raises(DataError, match="no scan of BTCV"):
        btcv.scan(tmp_path / "other")
    with pytest.raises(DataError, match="two files hold the same scan"):
        btcv.scan(tmp_path / "two")
    touch(tmp_path, "tests/img0061.nii.gz")
    with pytest.raises(DataError, match="none of the cases of the published lists"):
        btcv.scan(tmp_path / "tests", split="dhc_20").cases[0]


@pytest.mark.parametrize(
    "names", [("img0001.nii.gz",), ("img0001_0000.nii.gz", "label0001.nii.gz"), ("a.nii.gz",)]
)
def test_other_layouts_are_not_taken_for_it(tmp_path: Path, names: tuple[str, ...]):
    touch(tmp_path, *names)
    assert not btcv.matches(tmp_path)
