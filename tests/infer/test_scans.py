"""Finding scans: files, folders with junk and label maps, lists, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from labelwise.errors import DataError
from labelwise.formats import Layout, write_labels
from labelwise.infer.scans import Scan, find_scans
from labelwise.types import Volume
from tiny_cohort import write_map, write_scan


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def ids(scans: list[Scan]) -> list[str]:
    return [scan.id for scan in scans]


def test_a_file_is_one_scan_named_like_the_file(tmp_path: Path) -> None:
    layout = Layout(axes="zyx")
    touch(tmp_path, "liver.nii.gz")
    (scan,) = find_scans(tmp_path / "liver.nii.gz", intensity="ct", layout=layout)
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
    assert ids(find_scans(tmp_path, intensity="mr")) == ["a", "b", "c"]


def test_nnunet_channels_are_one_scan(tmp_path: Path) -> None:
    touch(tmp_path, *(f"brats_{case}_{channel:04d}.nii.gz" for case in (1, 2) for channel in range(3)))
    scans = find_scans(tmp_path, intensity="mr", channels=3)
    assert ids(scans) == ["brats_1", "brats_2"]
    assert [image.name[-11:-7] for image in scans[0].images] == ["0000", "0001", "0002"]


def test_a_single_nnunet_channel_loses_its_number(tmp_path: Path) -> None:
    touch(tmp_path, "liver_001_0000.nii.gz", "liver_002_0000.nii.gz")
    assert ids(find_scans(tmp_path, intensity="ct")) == ["liver_001", "liver_002"]
    assert ids(find_scans(tmp_path / "liver_001_0000.nii.gz", intensity="ct")) == ["liver_001"]


def test_numbered_patients_are_not_taken_for_channels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"patient_{number:04d}.nii.gz" for number in range(4)))
    assert len(find_scans(tmp_path, intensity="ct")) == 4


def test_a_missing_channel_is_refused_with_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    with pytest.raises(DataError, match=r"case 'b_0000'.*\n.*\n  found +1 \(1 of 2"):
        find_scans(tmp_path, intensity="mr", channels=2)


def test_a_text_list_is_relative_to_itself_and_may_hold_comments(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "# two scans\nct/a.nii.gz\n\n/data/b_0000.nii.gz\n", encoding="utf-8-sig"
    )
    scans = find_scans(tmp_path / "list.txt", intensity="ct")
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
    scans = find_scans(tmp_path / "manifest.csv", intensity="mr", channels=2)
    assert ids(scans) == ["first", "x"]
    assert scans[0].images == (tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "id,path\na,b.nii.gz\n", "no column 'images'"),
        ("list.csv", "id,images\na,\n", "names no image"),
        ("list.csv", "id,images\na,t1.nii.gz;;flair.nii.gz\n", "case 'a': one of the images has no name"),
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
        find_scans(tmp_path / name, intensity="ct")


def test_an_empty_folder_and_an_unreadable_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scan here"):
        find_scans(tmp_path, intensity="ct")
    with pytest.raises(DataError, match="no such file"):
        find_scans(tmp_path / "missing.txt", intensity="ct")
    (tmp_path / "latin.txt").write_bytes(b"h\xfcfte.nii.gz\n")
    with pytest.raises(DataError, match="cannot be read"):
        find_scans(tmp_path / "latin.txt", intensity="ct")


MAPS = {
    "p1.nii.gz": ("p1_liver.nii.gz", "p1-reader2.nii.gz", "SEG_001.nii.gz", "mask.nii.gz", "spleen.nii.gz"),
    "p1/ct.nii.gz": ("p1/liver.nii.gz", "p1/seg.nii.gz", "p1/ct_auto.nii.gz", "p1/masks/x.nii.gz", "labels/p1.nii.gz"),
    "imagesTr/p1.nii.gz": ("labelsTr/p1.nii.gz", "imagesTr/p1_gt.nii.gz", "segmentations/p1/x.nii.gz"),
}  # fmt: skip


@pytest.mark.parametrize(("scan", "labels"), [(scan, each) for scan, maps in MAPS.items() for each in maps])
def test_a_label_map_beside_scans_is_named_and_no_scan(tmp_path, caplog, scan, labels):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / scan)
    write_map(tmp_path / labels, 1, 2)
    assert [each.images for each in find_scans(tmp_path, intensity="ct")] == [(tmp_path / scan,)]
    assert "passed over" in caplog.text
    assert labels in caplog.text or f"{labels.partition('/')[0]}/" in caplog.text


def test_a_label_map_that_names_its_values_is_no_scan_whatever_it_is_called(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "b.nii.gz", Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4)), names=("", "liver"))
    assert ids(find_scans(tmp_path, intensity="ct")) == ["a"]
    assert "b.nii.gz" in caplog.text
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(DataError, match="no scan here"):
        find_scans(tmp_path, intensity="ct")


@pytest.mark.parametrize("name", ["p1_late", "liver", "seg_1"])
def test_what_is_only_called_like_labels_stays_a_scan(tmp_path, name):
    write_scan(tmp_path / "p1.nii.gz")
    write_scan(tmp_path / f"{name}.nii.gz", seed=1)
    assert ids(find_scans(tmp_path, intensity="ct")) == sorted(["p1", name])


def test_results_below_the_scans_are_no_scans(tmp_path):
    write_scan(tmp_path / "p1" / "ct.nii.gz")
    write_scan(tmp_path / "out" / "entropy" / "p1.nii.gz")
    assert ids(find_scans(tmp_path, intensity="ct", results=tmp_path / "out")) == ["p1"]


@pytest.mark.parametrize("name", ["more.zip", "more.tar.gz", "p2.nrrd.gz", "p2.mnc", "p2.img", "p2.npz"])
@pytest.mark.parametrize("scan", ["p1.nii.gz", "p1/ct.nii.gz"])
def test_what_may_hold_scans_and_is_not_read_is_named(tmp_path, caplog, name, scan):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / scan)
    (tmp_path / scan).with_name(name).touch()
    assert ids(find_scans(tmp_path, intensity="ct")) == ["p1"]
    assert name in caplog.text
