"""The page for clinics, walked: a DICOM series, a model, DICOM-SEG, 3D Slicer, volumes, and a picture."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as pictures

from labelwise.formats import read_geometry, read_labels, segment_names, value_names

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_labels import series

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clinic.md"


def commands() -> list[list[str]]:
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def test_the_page_for_clinics_does_what_it_says(tiny_run, tmp_path, command, monkeypatch):
    series(tmp_path / "series", (40, 36, 12), np.diag((-9.0, -9.0, 14.0, 1)))
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    for words in commands():
        answer = command(*words)
        assert answer.code == 0, answer.err
    found = read_labels(Path("nifti/series.nii.gz"))
    assert read_geometry(Path("nifti/series.nii.gz")).matches(read_geometry(Path("series")))
    names = value_names(Path("nifti/series.nii.gz"))
    assert tuple(names[value] for value in sorted(names) if value) == segment_names(
        Path("slicer/series.seg.nrrd")
    )
    assert np.array_equal(read_labels(Path("slicer/series.seg.nrrd")).data, found.data)
    rows = list(csv.DictReader(Path("volumes/measures.csv").read_text(encoding="utf-8").splitlines()))
    voxel_ml = 9 * 9 * 14 / 1000
    for value, name in names.items():
        if value:
            row = next(row for row in rows if row["class"] == name)
            assert float(row["volume_ml"]) == pytest.approx(
                int((found.data == value).sum()) * voxel_ml, rel=1e-4
            )
    assert "classes" in json.loads(Path("segmentations/series.json").read_text(encoding="utf-8"))
    assert pictures.imread("series.png").shape[2] >= 3
    page = Path("series.html").read_text(encoding="utf-8")
    absent = page.partition("Without a voxel:")[2].partition("</p>")[0]
    for value, name in names.items():
        if value:
            assert (
                (f"<span>{name}</span>" in page) == bool((found.data == value).any()) == (name not in absent)
            )
    trimesh = pytest.importorskip("trimesh", reason="needs the extra mesh")
    bodies = trimesh.load("meshes/series.glb").geometry
    assert {*bodies} == {name for value, name in names.items() if value and (found.data == value).any()}
    for value, name in names.items():
        if name in bodies:
            told = int((found.data == value).sum()) * voxel_ml * 1000
            assert bodies[name].is_watertight
            assert bodies[name].volume == pytest.approx(told, rel=0.03)
