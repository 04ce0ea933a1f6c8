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

from labelwise import DataError, run
from labelwise.errors import ConfigError
from labelwise.formats import (
    read_geometry,
    read_labels,
    segment_names,
    value_names,
    write_image,
    write_labels,
)
from labelwise.report.result import Structure, result_picture
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, BOXES, label_map
from dicom_labels import series

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clinic.md"
VALUES = {"liver": 1, "spleen": 2, "aorta": 3}
NAMES = ("background", *VALUES)


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
    trimesh = pytest.importorskip("trimesh", reason="needs the extra mesh")
    bodies = trimesh.load("meshes/series.glb").geometry
    assert {*bodies} == {name for value, name in names.items() if value and (found.data == value).any()}
    for value, name in names.items():
        if name in bodies:
            told = int((found.data == value).sum()) * voxel_ml * 1000
            assert bodies[name].is_watertight
            assert bodies[name].volume == pytest.approx(told, rel=0.03)


def colours_in(png: bytes | Path, tmp_path: Path) -> np.ndarray:
    file = tmp_path / "seen.png"
    file.write_bytes(png if isinstance(png, bytes) else png.read_bytes())
    return np.round(pictures.imread(file)[..., :3] * 255).astype(int)


def has(colours: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    return bool((np.abs(colours - wanted).max(axis=-1) <= 2).any())


@pytest.mark.parametrize("hidden", [*BOXES])
def test_the_picture_shows_each_structure_in_its_colour_and_no_other(tmp_path, hidden):
    colours = {"liver": (221, 130, 101), "spleen": (157, 108, 162), "aorta": (224, 97, 76)}
    labels = label_map({name: value for name, value in VALUES.items() if name != hidden})
    structures = {value: Structure(name, colours[name]) for name, value in VALUES.items()}
    seen = colours_in(result_picture(Volume(labels, AFFINE), structures), tmp_path)
    assert {name: has(seen, colour) for name, colour in colours.items()} == {n: n != hidden for n in colours}


def test_a_folder_of_results_becomes_a_folder_of_pictures(tmp_path):
    for number in range(2):
        labels = Volume(label_map(VALUES), AFFINE)
        write_labels(tmp_path / "p" / f"c{number}.nii.gz", labels, names=NAMES)
        scan = np.random.default_rng(number).integers(-1000, 900, (1, *labels.shape)).astype(np.int16)
        write_image(tmp_path / "scans" / f"c{number}_0000.nii.gz", Volume(scan, AFFINE))
    made = run.show(tmp_path / "p", tmp_path / "out", image=tmp_path / "scans")
    assert sorted(made.files) == ["c0", "c1"]
    for file in made.files.values():
        assert has(colours_in(file, tmp_path), (221, 130, 101))  # the liver, as 3D Slicer paints it


def test_what_cannot_be_shown_is_refused(tmp_path):
    empty = Volume(np.zeros((5, 6, 7), np.uint8), AFFINE)
    write_labels(tmp_path / "empty.nii.gz", empty, names=NAMES)
    with pytest.raises(DataError, match="nothing to show"):
        run.show(tmp_path / "empty.nii.gz", tmp_path / "a.png")
    write_labels(tmp_path / "plain.nii.gz", Volume(label_map(VALUES), AFFINE))
    with pytest.raises(DataError, match="--classes"):
        run.show(tmp_path / "plain.nii.gz", tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"is a \.png file"):
        run.show(tmp_path / "plain.nii.gz", tmp_path / "a.jpg")
    write_image(tmp_path / "other.nii.gz", Volume(np.zeros((1, 9, 9, 9), np.int16), np.eye(4)))
    with pytest.raises(DataError, match="not on one grid"):
        run.show(
            tmp_path / "plain.nii.gz", tmp_path / "a.png", image=tmp_path / "other.nii.gz", classes=VALUES
        )
    assert not (tmp_path / "a.png").exists()
