"""How sure a model is: calibrated on validation cases, as maps on the grid of the scan, and in the record."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelwise import run
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import read_geometry, read_image, read_labels
from labelwise.infer.calibration import Calibration
from labelwise.infer.model import load_model
from labelwise.run.calibrate import CalibrationResult


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))


def test_a_calibrated_model_gives_the_same_labels_and_other_chances(own_run, tiny_cohort, tmp_path):
    before = run.predict(own_run, tiny_cohort, tmp_path / "before", device="cpu")
    result = run.calibrate(own_run, tiny_cohort, device="cpu")
    assert result.calibration.loss_after < result.calibration.loss_before
    assert result.calibration.cases == 1
    assert load_model(own_run, "cpu").temperature == pytest.approx(result.calibration.temperature)
    after = run.predict(own_run, tiny_cohort, tmp_path / "after", device="cpu")
    for case, file in before.written.items():
        assert np.array_equal(read_labels(file).data, read_labels(after.written[case]).data)
        old, new = (
            json.loads(folder.joinpath(f"{case}.json").read_text())
            for folder in (before.folder, after.folder)
        )
        assert (old["temperature"], new["temperature"]) == (1, result.calibration.temperature)
        assert old["certainty"] != new["certainty"]


def test_maps_lie_on_the_grid_of_the_scan_and_are_chances(own_run, tiny_cohort, tmp_path):
    scan = next((tiny_cohort / "images").glob("test_*.nii.gz"))
    # Axes in another order and direction than RAS+: maps have to follow.
    turned = tmp_path / "scans" / "turned.nii.gz"
    turned.parent.mkdir()
    image = nibabel.load(scan)
    data = np.asarray(image.dataobj)[::-1].transpose(1, 0, 2)
    flip = np.array([[0, -1, 0, data.shape[1] - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(data, image.affine @ flip), turned)
    out = tmp_path / "out"
    run.predict(own_run, turned, out, device="cpu", maps=["probabilities", "entropy"])
    model = load_model(own_run, "cpu")
    names = model.label_space.names
    maps = [read_image([out / "probabilities/turned" / f"{name}.nii.gz"]).data[0] for name in names]
    assert read_geometry(out / "entropy/turned.nii.gz").matches(read_geometry(turned))
    assert nibabel.load(out / "entropy/turned.nii.gz").affine == pytest.approx(nibabel.load(turned).affine)
    assert np.allclose(np.sum(maps, axis=0), 1, atol=len(names) / 4096)
    expected = model.predict_scores(turned).data  # of a softmax, which nobody calibrated
    assert np.allclose(np.stack(maps), expected, atol=1 / 4096)
    entropy = read_image([out / "entropy/turned.nii.gz"]).data[0]
    by_hand = -np.sum([each * np.log(np.clip(each, 1e-12, 1)) for each in maps], axis=0) / np.log(len(names))
    assert np.allclose(entropy, by_hand, atol=0.01)


def test_maps_that_are_asked_for_later_are_written_then(own_run, tiny_cohort, tmp_path):
    run.predict(own_run, tiny_cohort, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out/entropy").exists()
    result = run.predict(own_run, tiny_cohort, tmp_path / "out", device="cpu", maps=["entropy"])
    assert {file.name for file in (tmp_path / "out/entropy").iterdir()} == {
        f"{case}.nii.gz" for case in result.written
    }
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.nii.gz")}
    run.predict(own_run, tiny_cohort, tmp_path / "out", device="cpu", maps=["entropy"])
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_what_is_usual_is_kept_with_the_model_and_what_is_not_is_flagged(own_run, tiny_cohort, tmp_path):
    habits = run.calibrate(own_run, tiny_cohort, device="cpu").calibration.habits
    assert {name: habit.cases for name, habit in habits.structures.items()} == dict.fromkeys(
        ("liver", "spleen", "kidneys", "pancreas"), 2
    )  # a training case and the validation case
    assert len(habits.scans) == 3
    assert all(np.linalg.norm(scan) == pytest.approx(1) for scan in habits.scans)
    assert habits.unfamiliar_from is None, "one case gives no threshold"
    assert not run.predict(own_run, tiny_cohort, tmp_path / "usual", device="cpu").warned

    kept = json.loads((own_run / "calibration.json").read_text())
    nothing_is = {"cases": 9, "present": 1.0, "single": 1.0, "reaches": {}, "doubtful_below": 2.0}
    kept["habits"]["structures"] = dict.fromkeys(kept["habits"]["structures"], nothing_is)
    kept["habits"]["unfamiliar_from"] = -1.0
    (own_run / "calibration.json").write_text(json.dumps(kept))
    result = run.predict(own_run, tiny_cohort, tmp_path / "flagged", device="cpu")
    assert "2 scans segmented, 0 failed, 2 segmented with warnings" in result.to_text()
    for case, file in result.written.items():
        record = json.loads((result.folder / f"{case}.json").read_text())
        found = load_model(own_run, "cpu").examine(tiny_cohort / "images" / f"{case}.nii.gz")
        assert [flag.what for flag in found.flags] == [each["what"] for each in record["warnings"]]
        assert [flag.what for flag in found.flags] == list(result.facts()["warnings"][case])
        assert found.flags[-1].code == "unfamiliar"
        assert {flag.structure for flag in found.flags[:-1]} == set(kept["habits"]["structures"])
        assert np.array_equal(found.labels.data, read_labels(file).data)


def test_threads_that_share_a_model_hear_each_of_its_own_scan(own_run, tiny_cohort):
    run.calibrate(own_run, tiny_cohort, device="cpu")
    kept = json.loads((own_run / "calibration.json").read_text())
    kept["habits"]["unfamiliar_from"] = -1.0  # so that the distance of each scan is told
    (own_run / "calibration.json").write_text(json.dumps(kept))
    model = load_model(own_run, "cpu")
    scans = sorted((tiny_cohort / "images").iterdir())
    alone = [model.examine(scan).flags for scan in scans]
    assert len({flags[-1].what for flags in alone}) > 1
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda scan: model.examine(scan).flags, scans)) == alone


def test_cases_with_a_flag_on_the_scan_or_a_proposed_structure_come_first_in_the_work_list(
    own_run, tiny_cohort, tmp_path
):
    data = tmp_path / "data"
    write_manifest(read_manifest(tiny_cohort), data)
    run.propose(own_run, data, device="cpu")
    plain = run.review(data, tmp_path / "plain").cases
    flagged = next(case for case in reversed(plain) if not case.startswith("north"))
    for file, structure in (("north_000", "liver"), (flagged, "")):  # people drew the liver of north_000
        record = next((data / "proposals").rglob(f"{file}.json"))
        said = [{"code": "some", "class": structure, "what": "this is strange", "do": "look"}]
        record.write_text(json.dumps({**json.loads(record.read_text()), "warnings": said}))
    found = run.review(data, tmp_path / "review")
    assert found.cases == (flagged, *(case for case in plain if case != flagged))
    rows = (tmp_path / "review" / "worklist.csv").read_text().splitlines()[1:]
    assert [row.endswith(",this is strange") for row in rows] == [True, False, False]
    assert (tmp_path / "review" / "index.html").read_text().count("this is strange") == 1


def test_an_unknown_map_is_refused(tiny_run, tiny_cohort, tmp_path):
    with pytest.raises(ConfigError, match="unknown map 'entropie'; did you mean 'entropy'"):
        run.predict(tiny_run, tiny_cohort, tmp_path / "out", device="cpu", maps=["entropie"])


def test_cases_without_annotation_cannot_calibrate(own_run, tiny_cohort):
    with pytest.raises(DataError, match="no case of the split ''"):
        run.calibrate(own_run, tiny_cohort, split="", device="cpu")


def test_the_commands(command, own_run, tiny_cohort, tmp_path):
    answer = command("calibrate", own_run, tiny_cohort, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert "temperature" in answer.out
    assert "expected - true Dice" in answer.out
    answer = command(
        "predict", own_run, tiny_cohort, "-o", tmp_path / "out", "--maps", "entropy", "--device", "cpu"
    )
    assert answer.code == 0, answer.err
    assert len(list((tmp_path / "out/entropy").iterdir())) == 2


@pytest.mark.parametrize(("temperature", "told"), [(19.99, True), (0.2001, True), (1.4, False)])
def test_a_temperature_at_the_end_of_the_search_is_said_to_be_one(tmp_path, temperature, told):
    found = Calibration("model", temperature, 1, 9, 2.0, 1.0, {})
    text = CalibrationResult(tmp_path, found).to_text()
    assert ("lies at the end of what is looked at" in text) == told
    assert "(1 case)" in text
