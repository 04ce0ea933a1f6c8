"""Finding scans: files, folders with junk, lists, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelwise.errors import DataError
from labelwise.formats import Layout
from labelwise.infer.scans import Scan, find_scans


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def ids(scans: list[Scan]) -> list[str]:
    return [scan.id for scan in scans]


def test_a_file_is_one_scan_named_like_the_file(tmp_path: Path) -> None:
    layout = Layout(axes="zyx")
    touch(tmp_path, "liver.nii.gz")
    (scan,) = find_scans(tmp_path / "liver.nii.gz", modality="ct", layout=layout)
    assert scan == Scan("liver", (tmp_path / "liver.nii.gz",), "ct", layout)


def test_a_folder_gives_its_images_sorted_and_passes_over_junk(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.nii.gz",
        "a.nrrd",
        "c.h5",
        "._b.nii.gz",
        ".DS_Store",
        "notes.txt",
        "b.json",
        "old/d.nii.gz",
    )
    assert ids(find_scans(tmp_path, modality="mr")) == ["a", "b", "c"]


def test_nnunet_channels_are_one_scan(tmp_path: Path) -> None:
    touch(tmp_path, *(f"brats_{case}_{channel:04d}.nii.gz" for case in (1, 2) for channel in range(3)))
    scans = find_scans(tmp_path, modality="mr", channels=3)
    assert ids(scans) == ["brats_1", "brats_2"]
    assert [image.name[-11:-7] for image in scans[0].images] == ["0000", "0001", "0002"]


def test_a_single_nnunet_channel_loses_its_number(tmp_path: Path) -> None:
    touch(tmp_path, "liver_001_0000.nii.gz", "liver_002_0000.nii.gz")
    assert ids(find_scans(tmp_path, modality="ct")) == ["liver_001", "liver_002"]
    assert ids(find_scans(tmp_path / "liver_001_0000.nii.gz", modality="ct")) == ["liver_001"]


def test_numbered_patients_are_not_taken_for_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"patient_{number:04d}.nii.gz" for number in range(4)))
    assert len(find_scans(tmp_path, modality="ct")) == 4


def test_a_missing_channel_is_refused_with_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    with pytest.raises(DataError, match=r"case 'b_0000'.*\n.*\n  found +1 \(1 of 2"):
        find_scans(tmp_path, modality="mr", channels=2)


def test_a_text_list_is_relative_to_itself_and_may_hold_comments(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "# two scans\nct/a.nii.gz\n\n/data/b_0000.nii.gz\n", encoding="utf-8-sig"
    )
    scans = find_scans(tmp_path / "list.txt", modality="ct")
    assert [(scan.id, scan.images) for scan in scans] == [
        ("a", (tmp_path / "ct/a.nii.gz",)),
        ("b", (Path("/data/b_0000.nii.gz"),)),
    ]


def test_a_manifest_will_do_as_list(tmp_path: Path) -> None:
    rows = (
        "id,images,labels,annotated",
        "first,t1.nii.gz;t2.nii.gz,l.nii.gz,all",
        ",x_0000.nii.gz; x_0001.nii.gz,,",
    )
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    scans = find_scans(tmp_path / "manifest.csv", modality="mr", channels=2)
    assert ids(scans) == ["first", "x"]
    assert scans[0].images == (tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "id,path\na,b.nii.gz\n", "no column 'images'"),
        ("list.csv", "id,images\na,\n", "names no image"),
        ("list.txt", "", "no scan here"),
        ("list.txt", "ct/a.nii.gz\nmr/a.nii.gz\n", "two scans have the same id"),
        ("list.txt", "a.nii.gz\nA.nii.gz\n", "two scans have the same id"),
        ("list.csv", "id,images\n../escape,a.nii.gz\n", "becomes a file name"),
        ("scan.dcm", "", "neither a scan nor a list"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        find_scans(tmp_path / name, modality="ct")


def test_an_empty_folder_and_an_unreadable_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scan here"):
        find_scans(tmp_path, modality="ct")
    with pytest.raises(DataError, match="no such file"):
        find_scans(tmp_path / "missing.txt", modality="ct")
    (tmp_path / "latin.txt").write_bytes(b"h\xfcfte.nii.gz\n")
    with pytest.raises(DataError, match="cannot be read"):
        find_scans(tmp_path / "latin.txt", modality="ct")
