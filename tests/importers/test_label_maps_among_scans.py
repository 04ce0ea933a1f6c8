"""A label map among the scans never becomes a scan without labels, and no scan vanishes without a word."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from labelwise import run
from labelwise.errors import DataError
from labelwise.formats import write_image, write_labels
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "run"))
from clinic import AFFINE, SHAPE, label_map, write_scan

PLACES = {
    "a name with something added": ("{}.nii.gz", "{}_contour.nii.gz"),
    "added after a hyphen": ("{}.nii.gz", "{}-reader2.nii.gz"),
    "a structure beside the scan": ("{}/ct.nii.gz", "{}/liver.nii.gz"),
    "a synonym beside the scan": ("{}/scan.nii.gz", "{}/Left Kidney.nii.gz"),
    "among the images": ("images/{}.nii.gz", "images/{}_liver.nii.gz"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("values", [{"liver": 1}, {"liver": 1, "spleen": 117}])
def test_a_label_map_among_the_scans_is_refused(tmp_path, place, values):
    scan, labels = PLACES[place]
    for name in ("p1", "p2"):
        write_scan(tmp_path / "data" / scan.format(name))
        write_labels(tmp_path / "data" / labels.format(name), Volume(label_map(values), AFFINE))
    with pytest.raises(DataError, match="label file seems to lie among the images") as caught:
        run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct")
    assert "segmentations/liver.nii.gz" in str(caught.value)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["8 bits", "floats", "mask of a channel"])
def test_a_second_scan_of_a_name_stays_a_scan(tmp_path, kind):
    chance = np.random.default_rng(0)
    voxels = {
        "8 bits": chance.integers(0, 256, SHAPE),
        "floats": chance.normal(size=SHAPE).clip(0),
        "mask of a channel": chance.integers(-3, 3, SHAPE),
    }[kind]
    write_scan(tmp_path / "data" / "p1.nii.gz")
    write_image(tmp_path / "data" / "p1_late.nii.gz", Volume(voxels[None].astype(np.float32), AFFINE))
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", modality="mr")
    assert [case.id for case in manifest.cases] == ["p1", "p1_late"]


def test_scans_beside_the_folder_of_images_are_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / "data" / "images" / "a.nii.gz")
    write_scan(tmp_path / "data" / "more" / "b.nii.gz")
    write_scan(tmp_path / "data" / "c.nii.gz")
    assert len(run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct").cases) == 1
    assert "files in other folders than images and labels are passed over" in caplog.text
    for name in ("more/b.nii.gz", "c.nii.gz"):
        assert name in caplog.text


@pytest.mark.parametrize("first", ["\u00e9", "e\u0301"])
def test_an_image_and_its_labels_are_paired_however_their_accents_are_written(tmp_path, first):
    second = "e\u0301" if first == "\u00e9" else "\u00e9"
    write_scan(tmp_path / "data" / "images" / f"Ren{first}.nii.gz")
    (tmp_path / "data" / "labels").mkdir()
    file = tmp_path / "data" / "labels" / f"Ren{second}.nii.gz"
    write_labels(file, Volume(label_map({"liver": 1}), AFFINE))
    manifest = run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct", classes={"liver": 1})
    assert [(case.id, case.annotated) for case in manifest.cases] == [("Ren\u00e9", {"liver"})]


@pytest.mark.parametrize("name", ["more.zip", "more/b.tar.gz", "b.mnc", "b.img", "b.nii.bz2"])
def test_what_may_hold_scans_and_is_not_read_is_named(tmp_path, caplog, name):
    caplog.set_level(logging.WARNING, logger="labelwise")
    write_scan(tmp_path / "data" / "a.nii.gz")
    (tmp_path / "data" / "more").mkdir()
    (tmp_path / "data" / name).touch()
    assert len(run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct").cases) == 1
    assert "formats that are not read" in caplog.text
    assert Path(name).name in caplog.text
