"""AMOS22: CT and MR by id, official parts and the splits of papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from layouts import add_junk, by_id, ids, reads_back, sizes, touch

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_case_labels
from labelwise.errors import ConfigError, DataError
from labelwise.importers import amos22, detect
from labelwise.importers.amos22 import GUIDEDNET_LISTS
from tiny_cohort import write_map, write_scan


def make_amos(folder: Path) -> Path:
    for part, number in (("Tr", 1), ("Tr", 4), ("Tr", 507), ("Va", 8), ("Va", 544), ("Ts", 2), ("Ts", 600)):
        write_scan(folder / f"images{part}" / f"amos_{number:04d}.nii.gz", seed=number)
        if part != "Ts":
            write_map(folder / f"labels{part}" / f"amos_{number:04d}.nii.gz", *range(16))
    write_map(folder / "labelsTr" / "amos_0004.nii.gz", 6)
    labels = {"0": "background", "1": "spleen", "8": "arota", "9": "postcava"}
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels}))
    (folder / "readme.md").write_text("8: arota")
    add_junk(folder, "imagesTr/amos_0001.nii.gz", "labelsVa/amos_0008.nii.gz")
    return folder


def make_lists(folder: Path) -> Path:
    """Empty files for every case that the lists of papers name."""
    validated = set(GUIDEDNET_LISTS["test"]) - set(amos22.DHC_VALIDATION)
    named = {number for numbers in GUIDEDNET_LISTS.values() for number in numbers}
    named |= {*amos22.DHC_VALIDATION, *(n for numbers in amos22.DHC_LABELLED.values() for n in numbers)}
    for number in named:
        is_labelled_of_dhc = any(number in numbers for numbers in amos22.DHC_LABELLED.values())
        part = "Va" if number in validated and not is_labelled_of_dhc else "Tr"
        touch(folder, f"images{part}/amos_{number:04d}.nii.gz", f"labels{part}/amos_{number:04d}.nii.gz")
    touch(folder, "imagesTs/amos_0003.nii.gz")
    return folder


def test_ct_and_mr_are_two_data_sets_and_the_official_parts_are_the_splits(tmp_path: Path):
    manifest = amos22.scan(make_amos(tmp_path))
    assert detect(tmp_path) == "amos22"
    assert {name: data_set.modality for name, data_set in manifest.data_sets.items()} == {
        "amos22_ct": "ct",
        "amos22_mr": "mr",
    }
    assert {case.id: (case.data_set[-2:], case.split) for case in manifest.cases} == {
        "amos_0001": ("ct", "train"),
        "amos_0004": ("ct", "train"),
        "amos_0507": ("mr", "train"),
        "amos_0008": ("ct", "validation"),
        "amos_0544": ("mr", "validation"),
        "amos_0002": ("ct", "test"),
        "amos_0600": ("mr", "test"),
    }
    assert [bool(case.annotated) for case in manifest.split("test")] == [False, False]
    assert reads_back(manifest, tmp_path / "project")


def test_values_mean_the_documented_structures_whatever_the_readme_calls_them(tmp_path: Path):
    manifest = amos22.scan(make_amos(tmp_path))
    cases = by_id(manifest)
    values = read_case_labels(cases["amos_0507"], manifest).data.ravel()[:16]
    assert [manifest.label_space.names[value] for value in values] == [
        "background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach",
        "aorta", "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
        "bladder", "prostate or uterus",
    ]  # fmt: skip
    few = read_case_labels(cases["amos_0004"], manifest).data
    assert set(few.ravel()) == {0, 6}
    assert cases["amos_0004"].annotated == frozenset(amos22.STRUCTURES)


@pytest.mark.parametrize(("modality", "counts"), [("ct", (2, 1, 1, 0)), ("mr", (1, 1, 1, 0))])
def test_one_modality_can_be_taken(tmp_path: Path, modality: str, counts: tuple[int, ...]):
    manifest = amos22.scan(make_amos(tmp_path), modality=modality)
    assert sizes(manifest) == counts
    assert list(manifest.data_sets) == [f"amos22_{modality}"]


def test_guidednet_splits_the_labelled_ct_in_published_order(tmp_path: Path):
    manifest = amos22.scan(make_lists(tmp_path), split="guidednet")
    assert sizes(manifest)[:3] == (180, 60, 60)
    assert by_id(manifest)["amos_0003"].split == ""
    assert list(manifest.data_sets) == ["amos22_ct"]
    kept = hide(manifest, "keep_labelled", n=18).split("train")
    first = [int(case.id[5:]) for case in kept if case.annotated]
    assert (first[:3], len(first)) == ([24, 367, 326], 18)


@pytest.mark.parametrize(("split", "n"), [("dhc_2", 4), ("dhc_5", 10), ("dhc_10", 21)])
def test_dhc_holds_out_24_scans_and_begins_with_the_labelled_ones(tmp_path: Path, split: str, n: int):
    manifest = amos22.scan(make_lists(tmp_path), split=split)
    official = amos22.scan(tmp_path)
    assert len(manifest.split("validation")) == 24
    assert len(manifest.split("train")) == len(official.split("train")) - 24
    assert sorted(ids(manifest.split("test"))) == ids(official.split("validation"))
    kept = hide(manifest, "keep_labelled", n=n).split("train")
    labelled = tuple(int(case.id[5:]) for case in kept if case.annotated)
    assert labelled == amos22.DHC_LABELLED[split]


def test_published_lists_name_no_case_twice():
    assert [len(set(numbers)) for numbers in GUIDEDNET_LISTS.values()] == [180, 60, 60]
    assert len(set().union(*GUIDEDNET_LISTS.values())) == 300
    for labelled in amos22.DHC_LABELLED.values():
        assert not set(labelled) & set(amos22.DHC_VALIDATION)


def test_missing_labels_and_images_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_amos(tmp_path)
    (tmp_path / "labelsVa" / "amos_0008.nii.gz").unlink()
    (tmp_path / "imagesTr" / "amos_0001.nii.gz").unlink()
    manifest = amos22.scan(tmp_path)
    assert by_id(manifest)["amos_0008"].split == ""
    assert "validation images without labels take no part: 1 (amos_0008)" in caplog.text
    assert "label files without an image are left out: 1 (amos_0001)" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "mri"}, "did you mean 'mr'"),
        ({"split": "dhc"}, "is no choice"),
        ({"split": "dhc_2", "modality": "ct"}, "mixes CT and MR"),
        ({"split": "guidednet", "modality": "mr"}, "holds CT only"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        amos22.scan(make_amos(tmp_path), **options)


def test_other_folders_are_refused(tmp_path: Path):
    touch(tmp_path, "imagesTr/amos_0001_0000.nii.gz", "amos_0001.nii.gz")
    assert not amos22.matches(tmp_path)
    with pytest.raises(DataError, match="no scan of AMOS22"):
        amos22.scan(tmp_path)
