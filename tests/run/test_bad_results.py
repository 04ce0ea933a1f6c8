"""Models, predictions and scores that are wrong: a message, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from conftest import tiny_config
from labelwise import (
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    read_manifest,
    run,
    write_manifest,
)

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def finished(tiny_run, tmp_path) -> Path:
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(tiny_run, tmp_path / "first")


# models


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model: shutil.rmtree(model), ["this is not a model folder", "model.json"]),
        (lambda model: (model / "model.json").write_text("{"), ["this is not a model folder"]),
        (lambda model: (model / "model.json").write_text("[]"), ["description of the model is wrong"]),
        (lambda model: (model / "weights.safetensors").unlink(), ["cannot be read", "weights.safetensors"]),
        (lambda model: (model / "weights.safetensors").write_bytes(b"x" * 99), ["cannot be read"]),
        (lambda model: edit(model, format=2), ["written by a newer version of labelwise"]),
        (lambda model: edit(model, format="two"), ["description of the model is wrong", "format"]),
        (lambda model: edit(model, surprise=1), ["unknown setting 'surprise'", "model.json"]),
        (lambda model: edit(model, classes=None), ["setting 'classes' is missing"]),
        (lambda model: edit(model, classes=["liver"]), ["starts with 'background'", "model.json"]),
        (lambda model: edit(model, plan={"spacing": 1}), ["preprocessing plan"]),
        (lambda model: edit(model, net={"name": "unet"}), ["a network cannot be built"]),
        (lambda model: edit(model, predictor="method", method="x"), ["unknown method 'x'", "model.json"]),
        (lambda model: edit_net(model, width=4), ["belong to another network"]),
    ],
)
def test_a_model_that_is_wrong_is_refused(finished, tiny_cohort, tmp_path, spoil, words):
    spoil(finished / "model")
    with pytest.raises(CheckpointError) as caught:
        run.predict(finished, tiny_cohort, tmp_path / "out", device="cpu")
    for expected in words:
        assert expected in str(caught.value)
    assert str(finished) in str(caught.value)
    assert not (tmp_path / "out").exists()


def edit(model: Path, **changes: object) -> None:
    """Change or (None) take out entries of model.json."""
    values = json.loads((model / "model.json").read_text()) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    (model / "model.json").write_text(json.dumps(kept))


def edit_net(model: Path, **changes: object) -> None:
    net = json.loads((model / "model.json").read_text())["net"]
    edit(model, net={**net, "settings": net["settings"] | changes})


def test_a_model_moves_without_its_run(finished, tiny_cohort, tmp_path):
    model = shutil.move(finished / "model", tmp_path / "elsewhere")
    result = run.predict(model, tiny_cohort, tmp_path / "out", device="cpu")
    assert sorted(result.written) == ["test_000", "test_001"]


# predicting


def test_results_of_another_model_are_not_taken_for_this_ones(finished, tiny_cohort, tmp_path):
    run.train(tiny_config(tiny_cohort, seed=1), tmp_path / "second")
    result = run.predict(tmp_path / "second", tiny_cohort, finished / "predictions", device="cpu")
    assert not result.written
    assert all("not written by this model" in message for message in result.failed.values())
    again = run.predict(
        tmp_path / "second", tiny_cohort, finished / "predictions", device="cpu", overwrite=True
    )
    assert not again.failed


def test_an_empty_split_an_empty_folder_and_no_scan_are_refused(tiny_run, tiny_cohort, tmp_path):
    with pytest.raises(DataError, match=r"in the split 'tst'(?s:.*)--split test"):
        run.predict(tiny_run, tiny_cohort, tmp_path / "out", split="tst", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no scan here"):
        run.predict(tiny_run, tmp_path / "empty", tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="no such file or folder"):
        run.predict(tiny_run, tmp_path / "nothing", tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match="no such file or folder"):
        run.predict(tiny_run, tmp_path / "nothing.nii.gz", tmp_path / "out", device="cpu")


def test_scans_with_another_number_of_channels_are_refused(tiny_run, tiny_cohort, tmp_path):
    manifest = read_manifest(tiny_cohort)
    write_manifest(manifest.replace_cases(replace(c, images=c.images * 2) for c in manifest.cases), tmp_path)
    with pytest.raises(DataError, match="another number of images per scan") as caught:
        run.predict(tiny_run, tmp_path, tmp_path / "out", device="cpu")
    assert caught.value.case == "test_000"


def test_unknown_settings_devices_and_modalities_are_refused(tiny_run, tiny_cohort, tmp_path):
    scan = tiny_cohort / "images" / "test_000.nii.gz"
    shutil.copytree(tiny_run, tmp_path / "other")
    weights = tmp_path / "other" / "model" / "weights.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ConfigError, match="did you mean 'overlap'"):
        run.predict(tiny_run, scan, tmp_path / "out", device="cpu", settings={"inference.overlapp": 0.5})
    with pytest.raises(ConfigError, match=r"'overlap\.postprocess': 'overlap' is a value"):
        run.predict(tiny_run, scan, tmp_path / "out", device="cpu", settings={"overlap.postprocess": 1})
    with pytest.raises(ConfigError, match="the stride leaves gaps"):
        run.predict(tiny_run, scan, tmp_path / "out", device="cpu", settings={"stride": [32, 32, 17]})
    with pytest.raises(ConfigError, match="cannot take such a window"):
        run.predict(tiny_run, scan, tmp_path / "out", device="cpu", settings={"window": [32, 32, 17]})
    with pytest.raises(ConfigError, match="cannot take such a window"):  # nor can an ensemble with it
        run.predict(
            [tiny_run, tmp_path / "other"],
            scan,
            tmp_path / "out",
            device="cpu",
            settings={"window": [32, 32, 17]},
        )
    with pytest.raises(ResourceError, match="device 'tpu' is not available"):
        run.predict(tiny_run, scan, tmp_path / "out", device="tpu")
    with pytest.raises(ConfigError, match=r"knows no intensities 'mr'(.|\n)*ct"):
        run.predict(tiny_run, scan, tmp_path / "out", device="cpu", intensity="mr")


def test_results_of_a_model_that_was_changed_are_another_models(finished, tiny_cohort):
    assert not run.predict(finished, tiny_cohort, finished / "predictions", device="cpu").failed
    edit(finished / "model", method_settings={"squared_dice": True})
    failed = run.predict(finished, tiny_cohort, finished / "predictions", device="cpu").failed
    assert set(failed) == {"test_000", "test_001"}
    assert "not written by this model" in failed["test_000"]


def test_a_model_of_several_modalities_asks_which(finished, tiny_cohort, tmp_path):
    plan = json.loads((finished / "model" / "model.json").read_text())["plan"]
    rules = plan["intensity"] | {"normalised": {"scheme": "none", "clip": None, "mean": None, "std": None}}
    edit(finished / "model", intensities=["ct", "normalised"], plan=plan | {"intensity": rules})
    scan = tiny_cohort / "images" / "test_000.nii.gz"
    with pytest.raises(ConfigError, match="the model knows several kinds"):
        run.predict(finished, scan, tmp_path / "out", device="cpu")
    assert run.predict(finished, scan, tmp_path / "out", device="cpu", intensity="ct").written


# evaluating


def test_a_missing_prediction_is_refused_before_anything_is_scored(finished, tiny_cohort):
    (finished / "scores.csv").unlink()
    (finished / "predictions" / "test_001.nii.gz").unlink()
    with pytest.raises(DataError, match="1 of 2 cases have no prediction") as caught:
        run.evaluate(finished, tiny_cohort)
    assert "test_001" in str(caught.value)
    assert not (finished / "scores.csv").exists()


def changed(file: Path, *, shift: float = 0.0, add: int = 0) -> None:
    image = nibabel.load(file)
    affine = image.affine.copy()
    affine[0, 3] += shift
    voxels = np.asanyarray(image.dataobj) + np.uint8(add)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shift": 5.0}, "different grids"),
        ({"add": 17}, "outside"),
    ],
)
def test_a_prediction_that_does_not_fit_is_named(finished, tiny_cohort, change, words):
    (finished / "scores.csv").unlink()
    changed(finished / "predictions" / "test_001.nii.gz", **change)
    with pytest.raises(DataError, match="1 of 2 cases cannot be scored") as caught:
        run.evaluate(finished, tiny_cohort)
    assert "case 'test_001'" in str(caught.value)
    assert words in str(caught.value)
    assert not (finished / "scores.csv").exists()


def test_evaluation_of_nothing_is_refused(tiny_run, tiny_cohort, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no label file to evaluate"):
        run.evaluate(tmp_path / "empty", tiny_cohort)
    for folder, reference in (("nowhere", tiny_cohort), ("empty", tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"no such file or folder(?s:.*)nowhere"):
            run.evaluate(tmp_path / folder, reference)
    with pytest.raises(DataError, match="no reference found"):
        run.evaluate(tiny_run, tmp_path / "empty")
    with pytest.raises(DataError, match="no annotated case is in the split 'tst'"):
        run.evaluate(tiny_run, tiny_cohort, split="tst")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "what the values of these label files mean is not known"),
        ("{", "what the values of these label files mean is not known"),
        ("{}", "what the values of these label files mean is not known"),
        ('{"classes": {"0": "liver"}}', "outside the label space"),
        ('{"classes": ["liver"]}', "what the values of these label files mean is not known"),
    ],
)
def test_a_reference_folder_needs_the_classes(finished, record, words):
    for file in finished.glob("predictions/*.nii.gz"):
        changed(file)  # without the names in its header
    for file in finished.glob("predictions/*.json"):
        file.unlink() if record is None else file.write_text(record)
    with pytest.raises(DataError, match=words):
        run.evaluate(finished, finished / "predictions")


# comparing


def test_runs_without_scores_or_without_a_name_are_refused(finished):
    with pytest.raises(ConfigError, match="no run named"):
        run.compare([])
    (finished / "scores.csv").unlink()
    with pytest.raises(DataError, match="the run has no scores"):
        run.compare([finished])


@pytest.mark.parametrize("cell", ["much", "inf"])
def test_a_score_that_is_no_number_is_named(finished, cell):
    lines = (finished / "scores.csv").read_text().splitlines()
    column = lines[0].split(",").index("value")
    row = next(number for number, line in enumerate(lines) if ",dice," in line)
    cells = lines[row].split(",")
    cells[column] = cell
    lines[row] = ",".join(cells)
    (finished / "scores.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"scores\.csv, row {row + 1}") as caught:
        run.compare([finished])
    assert cell in str(caught.value)


def test_two_runs_of_one_name_are_not_taken_for_repetitions(finished, tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="two runs are called 'first'"):
        run.compare([finished, tiny_run])
    with pytest.raises(ConfigError, match="two runs are called 'first'"):
        run.report([finished, finished], tmp_path / "page.html")


def test_seeds_of_one_method_count_as_one_run(finished, tmp_path):
    for seed in (0, 1):
        shutil.copytree(finished, tmp_path / f"first_seed{seed}")
    comparison = run.compare([tmp_path / "first_seed0", tmp_path / "first_seed1"])
    assert "first_seed" not in comparison.to_text()


def test_a_garbled_run_toml_is_named_by_the_report(finished, tmp_path):
    (finished / "run.toml").write_text("seed =")
    with pytest.raises(ConfigError, match=r"run\.toml"):
        run.report([finished], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_report_needs_neither_settings_nor_logs(finished, tmp_path):
    (finished / "run.toml").unlink()
    (finished / "log.jsonl").unlink()
    assert run.report([finished], tmp_path / "page.html").exists()


def test_a_report_lives_without_the_data(finished, tmp_path):
    text = (finished / "run.toml").read_text().splitlines()
    (finished / "run.toml").write_text("\n".join([f'data = "{tmp_path / "moved"}"', *text[1:]]))
    assert run.report([finished], tmp_path / "page.html").exists()
