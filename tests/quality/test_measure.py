"""What is measured agrees with the plainest arithmetic on the same voxels."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from painted_ct import AFFINE, VALUES, paint, painted, painted_manifest, save
from scipy import ndimage

from labelwise import run
from labelwise.cohort.manifest import write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.quality.measure import measure_case

HU, LABELS = paint()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "AIR"])
def test_measures_are_those_of_brute_force_in_every_axis_order(tmp_path: Path, axes: str):
    labels = LABELS.copy()
    labels[3, 5, 7] = labels[39, 39, 39] = 1
    oblique = AFFINE @ np.array([[0.9, 0.1, 0, 0], [-0.1, 0.9, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]])
    image, mask = (
        nib.Nifti1Image(voxels, oblique).as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
            )
        )
        for voxels in (HU, labels)
    )
    case = painted(tmp_path, "a", np.asarray(image.dataobj), np.asarray(mask.dataobj), affine=image.affine)
    rows = measure_case(painted_manifest(case))
    assert [row.structure for row in rows] == list(VALUES.values())[1:]
    spacing = np.linalg.norm(oblique[:3, :3], axis=0)
    for value, row in enumerate(rows, start=1):
        there = labels == value
        places = np.argwhere(there)
        assert row.voxels == there.sum()
        assert row.volume_ml == pytest.approx(there.sum() * abs(np.linalg.det(oblique[:3, :3])) / 1000)
        hu = HU[there].astype(float)
        expected = (hu.mean(), hu.std(), *np.percentile(hu, (50, 5, 95)))
        assert row.intensities == pytest.approx(expected)
        assert row.extent_mm == pytest.approx((np.ptp(places, axis=0) + 1) * spacing)
        assert row.centroid_mm == pytest.approx(
            nib.affines.apply_affine(oblique, places.mean(axis=0)), abs=1e-3
        )
        assert row.components == ndimage.label(there, np.ones((3, 3, 3)))[1]
    assert rows[0].faces == ("right", "front", "top")
    assert rows[0].components == 3
    assert rows[1].faces == ()


def test_only_annotated_structures_are_measured_and_an_absent_one_has_volume_0(tmp_path: Path):
    case = painted(
        tmp_path, labels=np.where(LABELS == 2, 0, LABELS), annotated=frozenset({"liver", "spleen"})
    )
    liver, spleen = measure_case(painted_manifest(case))
    assert liver.voxels == (LABELS == 1).sum()
    assert (spleen.volume_ml, spleen.intensities, spleen.extent_mm) == (0, None, None)
    assert measure_case(painted_manifest(replace(case, annotated=frozenset()))) == []


def test_several_values_of_one_class_are_one_structure(tmp_path: Path):
    case = painted(tmp_path, annotated=frozenset({"liver"}))
    joined = painted_manifest(case, values={**VALUES, 5: "liver"})
    assert measure_case(joined)[0].voxels == np.isin(LABELS, (1, 5)).sum()


def test_labels_on_another_grid_are_refused_with_case_and_file(tmp_path: Path):
    case = painted(tmp_path, label_affine=np.diag([8.0, 8, 8, 1]))
    with pytest.raises(DataError, match="different grids") as caught:
        measure_case(painted_manifest(case))
    assert caught.value.case == "a"
    assert caught.value.file == case.labels


# the verb


def test_a_manifest_is_measured_into_csv_and_json(tmp_path: Path):
    cases = [painted(tmp_path / "scans", "a"), painted(tmp_path / "scans", "b", split="test")]
    write_manifest(painted_manifest(*cases), tmp_path)
    measured = run.measure(tmp_path, tmp_path / "out", workers=1)
    rows = list(csv.DictReader((tmp_path / "out" / "measures.csv").read_text().splitlines()))
    assert [(row["case"], row["class"]) for row in rows][:2] == [("a", "liver"), ("a", "spleen")]
    assert len(rows) == 10
    assert float(rows[0]["volume_ml"]) == pytest.approx((LABELS == 1).sum() * 0.512, rel=1e-5)
    assert float(rows[0]["mean"]) == pytest.approx(110, abs=2)
    assert rows[0]["touches_border"] == "no"
    facts = json.loads((tmp_path / "out" / "measures.json").read_text())
    assert facts == json.loads(json.dumps(measured.facts()))
    assert "liver" in measured.to_text()
    assert {row.case for row in run.measure(tmp_path, split="test", workers=1).rows} == {"b"}
    with pytest.raises(DataError, match="no annotated case"):
        run.measure(tmp_path, split="validation", workers=1)


def test_a_case_that_cannot_be_measured_does_not_stop_the_others(tmp_path: Path):
    cases = [painted(tmp_path / "scans", name) for name in "ab"]
    write_manifest(painted_manifest(*cases), tmp_path)
    cases[0].labels.write_bytes(b"damaged")
    measured = run.measure(tmp_path, workers=1)
    assert {row.case for row in measured.rows} == {"b"}
    assert [error.case for error in measured.failures] == ["a"]
    assert str(cases[0].labels) in measured.to_text()


def test_a_folder_of_masks_is_measured_with_classes_and_scans(tmp_path: Path):
    save(tmp_path / "masks" / "a.nii.gz", LABELS)
    save(tmp_path / "scans" / "a_0000.nii.gz", HU)
    classes = {"liver": 1, "other": [2, 3, 4, 5]}
    rows = run.measure(tmp_path / "masks", classes=classes, workers=1).rows
    assert [(row.structure, row.intensities) for row in rows] == [("liver", None), ("other", None)]
    with_scans = run.measure(tmp_path / "masks", classes=classes, images=tmp_path / "scans", workers=1).rows
    assert with_scans[0].intensities.median == pytest.approx(np.median(HU[LABELS == 1]))
    save(tmp_path / "others" / "b.nii.gz", HU)
    with pytest.raises(DataError, match="no scan of this name"):
        run.measure(tmp_path / "masks", classes=classes, images=tmp_path / "others", workers=1)


def test_predictions_are_known_by_their_records(tmp_path: Path):
    save(tmp_path / "p" / "a.nii.gz", LABELS)
    with pytest.raises(DataError, match="classes of these label files are not known"):
        run.measure(tmp_path / "p", workers=1)
    (tmp_path / "p" / "a.json").write_text(json.dumps({"classes": {str(k): v for k, v in VALUES.items()}}))
    assert [row.structure for row in run.measure(tmp_path / "p", workers=1).rows] == list(VALUES.values())[1:]


def test_wrong_places_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no label file to measure"):
        run.measure(tmp_path / "nowhere")
    write_manifest(painted_manifest(painted(tmp_path / "scans")), tmp_path)
    with pytest.raises(ConfigError, match="in the manifest"):
        run.measure(tmp_path, classes={"liver": 1})
