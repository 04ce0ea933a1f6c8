"""Repaired copies lie beside the originals, cure what they say they cure, and touch nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from painted_ct import AFFINE, VALUES, paint, painted, painted_manifest, save

from labelwise.cohort.manifest import Manifest, read_case_image, read_case_labels, read_manifest
from labelwise.errors import ConfigError
from labelwise.formats import Layout
from labelwise.quality.check import check, inspect_cohort
from labelwise.quality.repair import Mended, repair
from labelwise.quality.repaired_files import write_copies
from labelwise.types import Case

HU, LABELS = paint()


def mend(manifest: Manifest, folder: Path) -> Mended:
    return repair(manifest, inspect_cohort(manifest, workers=1), folder, workers=1)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def cured(manifest: Manifest, folder: Path, *codes: str) -> Manifest:
    """The repaired manifest, after the check that it is sound and the originals are as before."""
    before = {path: digests(path.parent) for case in manifest.cases for path in case.images}
    assert {problem.code for problem in check(manifest, workers=1)} == set(codes)
    result = mend(manifest, folder)
    assert result.left == ()
    assert {path: digests(path.parent) for path in before} == before
    fixed = read_manifest(folder)
    assert fixed == result.manifest
    assert check(fixed, workers=1) == []
    return fixed


def test_a_sound_cohort_is_passed_on_as_it_is(tmp_path: Path):
    manifest = painted_manifest(painted(tmp_path / "scans"))
    assert cured(manifest, tmp_path / "fixed") == manifest
    assert json.loads((tmp_path / "fixed" / "repairs.json").read_text()) == {"repairs": [], "left": []}


def test_voxels_that_are_not_numbers_get_the_lowest_value(tmp_path: Path):
    spoilt = HU.astype(np.float32)
    spoilt[0, 0, :3] = np.nan, np.inf, -np.inf
    fixed = cured(painted_manifest(painted(tmp_path / "scans", hu=spoilt)), tmp_path / "fixed", "not-finite")
    voxels = read_case_image(fixed.cases[0], fixed).data[0]
    assert (voxels[0, 0, :3] == HU[np.isfinite(spoilt)].min()).all()
    assert np.array_equal(voxels[1:], HU[1:])
    assert fixed.cases[0].labels == tmp_path / "scans" / "a_labels.nii.gz"


def test_labels_get_the_header_of_the_image(tmp_path: Path):
    turned = np.diag([-8.0, -8, 8, 1])
    case = painted(tmp_path / "scans", label_affine=turned)
    fixed = cured(painted_manifest(case), tmp_path / "fixed", "label-header")
    labels = nib.load(fixed.cases[0].labels)
    assert np.array_equal(np.asarray(labels.dataobj), LABELS)
    assert np.allclose(labels.affine, AFFINE)


def test_labels_that_are_floating_point_numbers_become_integers(tmp_path: Path):
    case = painted(tmp_path / "scans", labels=LABELS.astype(np.float64))
    fixed = cured(painted_manifest(case), tmp_path / "fixed", "float-labels")
    labels = nib.load(fixed.cases[0].labels)
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(labels.dataobj), LABELS)


def test_swapped_names_are_exchanged(tmp_path: Path):
    swapped = np.array([0, 1, 2, 4, 3, 5], np.uint8)[LABELS]
    case = painted(tmp_path / "scans", labels=swapped)
    fixed = cured(painted_manifest(case), tmp_path / "fixed", "left-right-names")
    assert np.array_equal(np.asarray(nib.load(fixed.cases[0].labels).dataobj), LABELS)


def test_names_that_stand_for_several_values_are_left_to_a_person(tmp_path: Path):
    swapped = np.array([0, 1, 2, 4, 3, 5], np.uint8)[LABELS]
    manifest = painted_manifest(
        painted(tmp_path / "scans", labels=swapped), values={**VALUES, 6: "left kidney"}
    )
    result = mend(manifest, tmp_path / "fixed")
    assert [problem.code for problem in result.left] == ["left-right-names"]
    assert result.repairs == ()
    assert result.manifest == manifest


def test_cases_with_one_image_get_one_group_and_the_split_that_is_held_out(tmp_path: Path):
    cases = [
        painted(tmp_path / "scans", "a", HU, group="p1"),
        painted(tmp_path / "scans", "b", group="p1"),
        painted(tmp_path / "scans", "c", HU, group="p2", split="test"),
        painted(tmp_path / "scans", "dd", group="p3"),
        painted(tmp_path / "scans", "e", group="p2", split=""),
    ]
    fixed = cured(painted_manifest(*cases), tmp_path / "fixed", "duplicate-across-splits")
    assert [(case.group, case.split) for case in fixed.cases] == [
        ("p1", "test"), ("p1", "test"), ("p1", "test"), ("p3", "train"), ("p1", ""),
    ]  # fmt: skip


def test_a_data_set_that_needs_a_layout_gets_a_data_set_without_one(tmp_path: Path):
    case = painted(tmp_path / "scans", hu=HU, labels=LABELS[:, ::-1].astype(np.float32).copy())
    layout = Layout(label_grid="image", label_flip="y")
    fixed = cured(painted_manifest(case, layout=layout), tmp_path / "fixed", "float-labels")
    assert fixed.cases[0].data_set == "site_repaired"
    assert fixed.data_sets["site_repaired"].layout == Layout()
    assert np.array_equal(read_case_labels(fixed.cases[0], fixed).data, LABELS)
    assert np.array_equal(read_case_image(fixed.cases[0], fixed).data[0], HU)


def test_two_channels_stay_two(tmp_path: Path):
    spoilt = HU.astype(np.float32)
    spoilt[3, 3, 3] = np.nan
    case = painted(tmp_path / "scans")
    second = save(tmp_path / "scans" / "second.nii.gz", spoilt)
    manifest = painted_manifest(replace(case, images=(*case.images, second)), modality="mr")
    fixed = cured(manifest, tmp_path / "fixed", "not-finite")
    assert fixed.cases[0].images[0] == case.images[0]
    assert fixed.cases[0].images[1].parent == tmp_path / "fixed" / "images"


def test_what_a_repair_brings_to_light_is_listed(tmp_path: Path):
    spoilt = HU.astype(np.float32)
    spoilt[0, 0, 0] = np.nan
    labels = LABELS.copy()
    labels[10, 28, 30] = 1
    result = mend(painted_manifest(painted(tmp_path / "scans", hu=spoilt, labels=labels)), tmp_path / "fixed")
    assert [problem.code for problem in result.left] == ["label-islands"]


def test_what_cannot_be_repaired_stays_in_the_list(tmp_path: Path):
    broken = painted(tmp_path / "scans", "b")
    broken.images[0].write_bytes(b"damaged")
    nothing = painted(tmp_path / "scans", "c", np.full(HU.shape, np.nan, np.float32))
    result = mend(painted_manifest(painted(tmp_path / "scans", "a"), broken, nothing), tmp_path / "fixed")
    assert [(problem.case, problem.code) for problem in result.left] == [
        ("b", "unreadable"),
        ("c", "not-finite"),
    ]
    assert len(result.manifest.cases) == 3


def test_repeated_it_does_only_what_is_missing(tmp_path: Path, monkeypatch):
    cases = [
        painted(tmp_path / "scans", name, labels=LABELS.astype(np.float32), hu=paint(number)[0])
        for number, name in enumerate("abc")
    ]
    manifest = painted_manifest(*cases)
    first = mend(manifest, tmp_path / "fixed")
    (tmp_path / "fixed" / "labels" / "b.nii.gz").unlink()
    written: list[str] = []
    monkeypatch.setattr("labelwise.quality.repair.write_copies", counting(written))
    assert mend(manifest, tmp_path / "fixed") == first
    assert written == ["b"]
    save(cases[2].labels, LABELS.astype(np.float64))  # the original changed
    mend(manifest, tmp_path / "fixed")
    assert written == ["b", "c"]


def counting(names: list[str]) -> object:
    def write(single: Manifest, *rest: object) -> object:
        names.append(single.cases[0].id)
        return write_copies(single, *rest)

    return write


def test_it_is_not_written_over_another_manifest_or_among_the_originals(tmp_path: Path):
    manifest = painted_manifest(painted(tmp_path / "data" / "images"))
    with pytest.raises(ConfigError, match="among the originals"):
        mend(manifest, tmp_path / "data")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.csv").write_text("mine")
    with pytest.raises(ConfigError, match="another manifest"):
        mend(manifest, tmp_path / "other")
    assert (tmp_path / "other" / "manifest.csv").read_text() == "mine"


def test_a_disk_that_is_full_is_an_error_and_leaves_no_half_file(tmp_path: Path, monkeypatch):
    case: Case = painted(tmp_path / "scans", labels=LABELS.astype(np.float32))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelwise.quality.repaired_files.write_labels", full)
    with pytest.raises(Exception, match="No space"):
        mend(painted_manifest(case), tmp_path / "fixed")
    assert not (tmp_path / "fixed" / "manifest.csv").exists()
