"""Results to look at without a reference: pictures, one page, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as pictures

from labelwise import DataError, run
from labelwise.errors import ConfigError
from labelwise.formats import write_image, write_labels
from labelwise.report.result import Structure, ready_result, result_picture
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, BOXES, label_map

VALUES = {"liver": 1, "spleen": 2, "aorta": 3}
NAMES = ("background", *VALUES)
VOXEL_ML = 2 * 2 * 3 / 1000


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
    seen = colours_in(result_picture(ready_result(Volume(labels, AFFINE), structures)), tmp_path)
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
    with pytest.raises(ConfigError, match=r"a \.png or \.html file"):
        run.show(tmp_path / "plain.nii.gz", tmp_path / "a.jpg")
    write_image(tmp_path / "other.nii.gz", Volume(np.zeros((1, 9, 9, 9), np.int16), np.eye(4)))
    with pytest.raises(DataError, match="not on one grid"):
        run.show(
            tmp_path / "plain.nii.gz", tmp_path / "a.png", image=tmp_path / "other.nii.gz", classes=VALUES
        )
    assert not (tmp_path / "a.png").exists()


def write_case(folder: Path, case: str, names=NAMES, values=VALUES) -> Path:
    write_labels(folder / f"{case}.nii.gz", Volume(label_map(values), AFFINE), names=names)
    return folder / f"{case}.nii.gz"


def test_volumes_and_what_was_not_found_are_said(tmp_path, command):
    write_case(tmp_path, "a", (*NAMES, "pancreas"))
    answer = command("show", tmp_path / "a.nii.gz", "-o", tmp_path / "a.png")
    assert answer.code == 0
    liver = np.count_nonzero(label_map(VALUES) == 1) * VOXEL_ML
    assert f"a.png: liver {liver:.4g} ml, " in answer.out
    assert "without a voxel: pancreas" in answer.out
    told = json.loads(command("show", tmp_path / "a.nii.gz", "-o", tmp_path / "a.png", "--json").out)
    assert told["volumes_ml"]["a"]["pancreas"] == 0
    assert told["volumes_ml"]["a"]["liver"] == pytest.approx(liver)


def test_a_page_holds_each_case_with_volumes_warnings_and_the_scan_itself(tmp_path, command):
    for case in ("a", "b"):
        write_case(tmp_path / "p", case, (*NAMES, "a <b>thing</b>"))
        scan = np.random.default_rng(1).integers(-1000, 900, (1, *label_map(VALUES).shape)).astype(np.int16)
        write_image(tmp_path / "scans" / f"{case}.nii.gz", Volume(scan, AFFINE))
    record = {
        "classes": dict(enumerate((*NAMES, "a <b>thing</b>"))),
        "warnings": [{"what": "the scan is not in HU"}],
    }
    (tmp_path / "p" / "b.json").write_text(json.dumps(record))
    answer = command("show", tmp_path / "p", "--image", tmp_path / "scans", "-o", tmp_path / "out.html")
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == str(tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["a", "b", "Look into the scans"]
    assert page.count('<p class="caution">the scan is not in HU</p>') == 1
    liver = np.count_nonzero(label_map(VALUES) == 1) * VOXEL_ML
    assert page.count(f"<span>liver</span></th><td>{liver:.4g} ml</td>") == 2
    assert page.count("Without a voxel: a &lt;b&gt;thing&lt;/b&gt;.") == 2
    assert page.count("data:image/png;base64,") == 10
    about = json.loads(re.search(r'id="viewer-cases">(.*?)</script>', page)[1])
    assert [one["names"] for one in about] == [["result"], ["result"]]
    assert dict(about[0]["colours"])["liver"] == "#dd8265"
    assert str(tmp_path) not in page


def test_sides_are_not_written_where_the_file_does_not_tell_them(tmp_path):
    structures = {value: Structure(name, (255, 0, 0)) for name, value in VALUES.items()}
    labels = Volume(label_map(VALUES), AFFINE)
    told, untold = (
        colours_in(result_picture(ready_result(labels, structures, oriented=oriented)), tmp_path)
        for oriented in (True, False)
    )
    assert (told.min(axis=-1) > 250).sum() > (untold.min(axis=-1) > 250).sum() + 100


def test_classes_that_contradict_the_file_are_refused(tmp_path):
    file = write_case(tmp_path, "a")
    with pytest.raises(ConfigError, match="contradict the names in the file"):
        run.show(file, tmp_path / "a.png", classes={"spleen": 1})
    assert run.show(file, tmp_path / "a.png", classes={"liver": 1}).volumes_ml["a"]["spleen"] > 0


def test_a_page_of_too_many_cases_is_refused_before_any_is_drawn(tmp_path):
    for number in range(41):
        write_case(tmp_path / "p", f"c{number}")
    with pytest.raises(ConfigError, match="too many cases for one page"):
        run.show(tmp_path / "p", tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
