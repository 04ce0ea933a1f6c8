"""Overlaps that are kept: what comes in as layers is known as layers, and what nobody drew is not invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelwise import run
from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.cohort.regions import as_one
from labelwise.errors import DataError
from labelwise.formats import write_image, write_labels
from labelwise.types import Volume

LIVER, TUMOUR, VESSEL = slice(0, 6), slice(2, 4), slice(3, 8)  # the vessel leaves liver and tumour


def write_masks(folder: Path, name: str, **masks: slice | None) -> None:
    """A scan of ten voxels in TotalSegmentator's layout, with a mask of each structure; None: an empty one."""
    place = folder / name
    (place / "segmentations").mkdir(parents=True)
    write_image(place / "ct.nii.gz", Volume(np.zeros((1, 10, 1, 1), np.float32), np.eye(4)))
    for structure, voxels in masks.items():
        mask = np.zeros((10, 1, 1), np.uint8)
        if voxels is not None:
            mask[voxels] = 1
        write_labels(place / "segmentations" / f"{structure}.nii.gz", Volume(mask, np.eye(4)))


def imported(folder: Path, **options: object):
    data = folder.with_name("data")
    run.import_data([folder], data, importer="totalsegmentator", overlap="kept", **options)
    return read_manifest(data)


def shown(manifest, case: str) -> dict[str, list[int]]:
    """Name of a class or region -> the voxels that are known to be it."""
    single = manifest.replace_cases([c for c in manifest.cases if c.id == case])
    (one,) = single.cases
    labels = read_case_labels(one, single).data.ravel()
    found = {
        name: np.flatnonzero(labels == single.label_space.index(name)).tolist()
        for name in single.label_space.structures
        if name in one.annotated
    }
    for name in single.label_space.region_names:
        if (whole := as_one(single, name)) is not None:
            found[name] = np.flatnonzero(read_case_labels(whole.cases[0], whole).data == 1).tolist()
    return found


def test_every_structure_comes_back_as_it_was_drawn(tmp_path: Path):
    write_masks(
        tmp_path / "scans", "s1", liver=LIVER, liver_tumour=TUMOUR, vessel=VESSEL, spleen=slice(9, 10)
    )
    manifest = imported(tmp_path / "scans", classes=["liver", "liver_tumour", "vessel", "spleen"])
    found = shown(manifest, "s1")
    assert found["liver"] == [0, 1, 2, 3, 4, 5]
    assert found["vessel"] == [3, 4, 5, 6, 7]
    assert found["spleen"] == [9]
    assert "spleen" in manifest.label_space.structures, "what overlaps nothing stays a class"
    assert manifest.cases[0].annotated == {*manifest.label_space.structures}


def test_a_tumour_in_its_liver_makes_two_classes(tmp_path: Path):
    write_masks(tmp_path / "scans", "s1", liver=LIVER, liver_tumour=TUMOUR)
    write_masks(tmp_path / "scans", "s2", liver=LIVER, liver_tumour=None)
    manifest = imported(tmp_path / "scans", classes=["liver", "liver_tumour"])
    rest, tumour = manifest.label_space.structures
    assert rest == f"liver without {tumour}"
    assert manifest.label_space.regions == (("liver", (rest, tumour)),)
    assert shown(manifest, "s1") == {rest: [0, 1, 4, 5], tumour: [2, 3], "liver": [0, 1, 2, 3, 4, 5]}
    assert shown(manifest, "s2") == {rest: [0, 1, 2, 3, 4, 5], tumour: [], "liver": [0, 1, 2, 3, 4, 5]}


def test_where_nobody_drew_the_tumour_the_liver_is_known_as_one(tmp_path: Path):
    write_masks(tmp_path / "scans", "s1", liver=LIVER, liver_tumour=TUMOUR)
    write_masks(tmp_path / "scans", "s2", liver=LIVER)
    manifest = imported(tmp_path / "scans", classes=["liver", "liver_tumour"])
    assert manifest.cases[1].annotated == {"liver"}
    assert shown(manifest, "s2") == {"liver": [0, 1, 2, 3, 4, 5]}


def test_two_structures_that_share_a_class_cannot_both_be_known_as_one(tmp_path: Path, caplog):
    write_masks(tmp_path / "scans", "s1", liver=LIVER, liver_tumour=TUMOUR, vessel=VESSEL)
    write_masks(tmp_path / "scans", "s2", liver=LIVER, vessel=VESSEL)
    manifest = imported(tmp_path / "scans", classes=["liver", "liver_tumour", "vessel"])
    assert shown(manifest, "s2") == {"liver": [0, 1, 2, 3, 4, 5]}
    assert "not annotated there: 1 (s2: vessel)" in caplog.text


def test_more_structures_than_can_be_kept_are_refused(tmp_path: Path):
    write_masks(tmp_path / "scans", "s1", **{f"rib_{n}": LIVER for n in range(17)})
    with pytest.raises(DataError, match="overlaps are kept among 16 structures at most"):
        imported(tmp_path / "scans")
    assert not (tmp_path / "data").exists()


def test_a_combination_that_the_import_has_not_seen_is_an_error(tmp_path: Path):
    write_masks(tmp_path / "scans", "s1", liver=LIVER, liver_tumour=TUMOUR)
    manifest = imported(tmp_path / "scans", classes=["liver", "liver_tumour"])
    tumour = tmp_path / "scans" / "s1" / "segmentations" / "liver_tumour.nii.gz"
    write_labels(tumour, Volume(np.ones((10, 1, 1), np.uint8), np.eye(4)))
    with pytest.raises(DataError, match="label map contains value 2"):
        read_case_labels(manifest.cases[0], manifest)
