"""A table of paths becomes a manifest; what is wrong is told with row and column."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from labelwise.cohort.manifest import (
    Manifest,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.importers import detect, load, table
from tiny_cohort import write_map, write_scan

CLASSES = {"liver": 1, "spleen": [2, 3]}
TEXT = "image,label,patient,split\nscans/a.nii.gz,masks/a.nii.gz,p1,train\nscans/b.nii.gz,,p1,val\n"


def make(folder: Path, text: str = TEXT, name: str = "cases.csv") -> Path:
    for number, scan in enumerate("ab"):
        write_scan(folder / "scans" / f"{scan}.nii.gz", seed=number)
        write_map(folder / "masks" / f"{scan}.nii.gz", 1, 3)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def scan(folder: Path, **options: object) -> Manifest:
    return table.scan(folder, **{"classes": CLASSES, "modality": "ct", **options})


def test_a_table_is_recognised_by_folder_and_by_file(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "._cases.csv").write_bytes(b"junk")
    (tmp_path / "people.csv").write_text("name,age\nx,3\n")
    assert detect(tmp_path) == detect(tmp_path / "cases.csv") == "csv"
    assert load("csv") is table


def test_a_manifest_is_no_table_to_import(tmp_path: Path):
    write_manifest(scan(make(tmp_path / "data")), tmp_path / "manifest")
    assert not table.matches(tmp_path / "manifest")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_the_separator_is_found_out(tmp_path: Path, separator: str, start: str):
    text = start + TEXT.replace(",", separator).replace("\n", "\r\n")
    manifest = scan(make(tmp_path / "mine", text))
    assert [(case.id, case.group, case.split) for case in manifest.cases] == [
        ("a", "p1", "train"),
        ("b", "p1", "validation"),
    ]
    assert [bool(case.annotated) for case in manifest.cases] == [True, False]
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:3].tolist() == [1, 2, 0]
    assert read_manifest(write_manifest(manifest, tmp_path / "out")) == manifest


def test_several_images_stand_in_one_cell_or_in_columns(tmp_path: Path):
    one = scan(make(tmp_path / "one", "id,images\nx,scans/a.nii.gz;scans/b.nii.gz\n"))
    two = scan(make(tmp_path / "two", "case,image_0,image_1\nx,scans/a.nii.gz,scans/b.nii.gz\n"))
    three = scan(
        make(tmp_path / "three", "case,t1,flair\nx,scans/a.nii.gz,scans/b.nii.gz\n"), images="t1, flair"
    )
    for manifest in (one, two, three):
        assert read_case_image(manifest.cases[0], manifest).data.shape == (2, 6, 5, 4)


def test_a_row_says_what_it_is_annotated_for(tmp_path: Path):
    text = (
        "id,image,label,annotated\n1,scans/a.nii.gz,masks/a.nii.gz,spleen\n2,scans/b.nii.gz,masks/b.nii.gz,\n"
    )
    text += "3,scans/a.nii.gz,masks/a.nii.gz,none\n4,scans/a.nii.gz,masks/a.nii.gz,ALL\n"
    cases = scan(make(tmp_path, text), annotated=["liver"]).cases
    assert [sorted(case.annotated) for case in cases] == [["spleen"], ["liver"], [], ["liver", "spleen"]]


def test_columns_of_other_names_are_chosen(tmp_path: Path):
    text = "ct path,truth\nscans/a.nii.gz,masks/a.nii.gz\n"
    manifest = scan(make(tmp_path, text), images="ct path", labels="truth", group="[ab]")
    assert manifest.cases[0].labels.parent.name == "masks"
    with pytest.raises(ConfigError, match="no column 'trut'; did you mean 'truth'"):
        scan(tmp_path, images="ct path", labels="trut")


def test_of_two_columns_that_mean_the_same_the_first_is_said_to_count(tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING, logger="labelwise")
    scan(make(tmp_path, "image,label,mask\nscans/a.nii.gz,masks/a.nii.gz,\n"))
    assert "the column 'label' counts, 'mask' does not" in caplog.text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TEXT.replace("scans/b", "scans/x"), ("row 3, column 'image'", "no such file")),
        (TEXT.replace("masks/a", "masks/x"), ("row 2, column 'label'", "no such file")),
        (TEXT.replace("val\n", "vall\n"), ("row 3, column 'split'", "did you mean 'val'")),
        ("image,annotated,label\nscans/a.nii.gz,livr,masks/a.nii.gz\n", ("row 2", "did you mean 'liver'")),
        (TEXT + "scans/a.nii.gz\n", ("row 4", "1 cells, but the table has 4 columns")),
        (TEXT + ",masks/a.nii.gz,p,train\n", ("row 4, column 'image'", "a case needs an image")),
        (TEXT + "sc\x07,,,\n", ("row 4, column 'image'", "cannot be printed")),
        (TEXT + '"open,,,\n', ("row 4", "cannot be read")),
        (TEXT + "scans/a.nii.gz,,,\n", ("two cases have the same id", "case 'a'")),
        ("image,image\na,b\n", ("row 1", "stands twice")),
        ("name,label\na,b\n", ("row 1", "no column names the images")),
        ("image,label\n", ("no rows",)),
        ("", ("no rows",)),
        (f"image\n{'x' * 5000}\n", ("row 2, column 'image'",)),
    ],
)
def test_what_is_wrong_is_told_with_file_row_and_column(tmp_path: Path, text: str, parts: tuple[str, ...]):
    make(tmp_path, text)
    with pytest.raises(DataError) as caught:
        scan(tmp_path / "cases.csv")
    for part in ("cases.csv", *parts):
        assert part in str(caught.value)


def test_all_wrong_rows_are_told_at_once_with_their_cases(tmp_path: Path):
    make(tmp_path, "case,image\nfirst,no\nsecond,nowhere\n")
    with pytest.raises(
        DataError, match=r"2 rows of the table are wrong[\s\S]*case 'first'[\s\S]*case 'second'"
    ):
        scan(tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_the_row(tmp_path: Path):
    make(tmp_path)
    (tmp_path / "cases.csv").write_bytes(TEXT.encode() + b"\xff,,,\n")
    with pytest.raises(DataError, match=r"not UTF-8[\s\S]*row 4"):
        scan(tmp_path / "cases.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": None}, "classes are missing"), ({"modality": "us"}, "unknown modality")],
)
def test_without_the_necessary_words_a_table_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        scan(make(tmp_path), **options)


def test_two_tables_in_a_folder_are_not_guessed_at(tmp_path: Path):
    make(tmp_path)
    make(tmp_path, name="more.tsv")
    with pytest.raises(DataError, match=r"several tables[\s\S]*name one of them"):
        scan(tmp_path)
