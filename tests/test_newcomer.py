"""CONTRIBUTING.md, followed to the letter: a method of one's own in five steps, and the gallery of examples."""

from __future__ import annotations

import importlib
import re
import signal
from dataclasses import fields
from pathlib import Path

import pytest

from labelwise import load_config, load_model, run
from labelwise.config import RunConfig
from labelwise.methods import METHODS, PARTS, find_method
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.testing import METHOD_CHECKS, check_method

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAME, TARGET = "my_method", "my_method:MyMethod"
TINY = SyntheticConfig(cases_per_site=2, unlabelled=2, validation=0, test=2, shape=(32, 26, 20))
SMALL = {
    "net": {"name": "unet", "settings": {"width": 4}},
    "sampling.patch_size": [32, 32, 16],
    "train.steps": [4],
    "train.log_every": 1,
    "device.device": "cpu",
    "device.precision": "float32",
}


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def registered(monkeypatch):
    """The method behind one more line in the registry."""
    monkeypatch.setitem(METHODS, NAME, TARGET)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four sites that annotate one structure each; every scan prepared once."""
    folder = tmp_path_factory.mktemp("cohort")
    make_cohort(folder, TINY)
    run.prepare(load_config(None, SMALL, data=str(folder)), workers=1)
    return folder


def configured(cohort: Path) -> RunConfig:
    return load_config(EXAMPLES / "my_method.toml", SMALL, data=str(cohort))


# the five steps


def test_step_1_the_method_is_one_short_file():
    assert len((EXAMPLES / "my_method.py").read_text(encoding="utf-8").splitlines()) <= 60


def test_step_2_one_line_makes_the_method_known(registered):
    assert NAME in PARTS.names()
    assert find_method(NAME).card.title in {row["title"] for row in run.methods()}


def test_step_3_the_page_is_complete(registered):
    page = (EXAMPLES / "my_method.md").read_text(encoding="utf-8")
    ours = (ROOT / "docs" / "methods" / "mean_teacher.md").read_text(encoding="utf-8")
    assert re.findall(r"^## .+$", page, re.MULTILINE) == re.findall(r"^## .+$", ours, re.MULTILINE)
    assert all(f"`{field.name}`" in page for field in fields(find_method(NAME).Config))


def test_step_4_the_recipe_loads(registered):
    assert load_config(EXAMPLES / "my_method.toml", data="my_data").method.name == NAME


@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_step_5_the_method_keeps_the_contract(registered, check):
    check_method(find_method(NAME), only=[check])


# what the method can do then, without another line


def stop_after(steps: int):
    """Watches a training and stops it as a job scheduler would."""

    def watch(task: str, done: int, total: int, message: str = "") -> None:
        if task.startswith("train") and done == steps:
            signal.raise_signal(signal.SIGTERM)

    return watch


def test_it_trains_resumes_and_predicts(registered, cohort, tmp_path):
    config = configured(cohort)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run.train(config, whole)

    stopped = run.train(config, parts, progress=stop_after(2))
    assert (stopped.steps, stopped.interrupted) == (2, True)
    resumed = run.train(config, parts)
    assert (resumed.steps, resumed.interrupted) == (4, False)
    weights = [folder / "model" / "weights.safetensors" for folder in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    predicted = run.predict(parts, cohort, parts / "predictions", device="cpu")
    assert sorted(predicted.written) == ["test_000", "test_001"]
    assert not predicted.failed
    evaluation = run.evaluate(parts, cohort, workers=1)
    assert {score.case for score in evaluation.scores} == set(predicted.written)


def test_its_model_loads_without_its_code(registered, cohort, tmp_path, monkeypatch):
    run.train(configured(cohort), tmp_path)
    monkeypatch.delitem(METHODS, NAME)
    model = load_model(tmp_path)
    assert model.info.method == NAME
    assert model.info.predictor == "softmax"


def test_another_package_registers_it_by_an_entry_point(cohort, tmp_path, monkeypatch):
    package = tmp_path / "somewhere" / "my_package-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[labelwise.methods]\n{NAME} = {TARGET}\n")
    monkeypatch.syspath_prepend(str(package.parent))
    assert PARTS.names()[-1] == NAME
    assert run.train(configured(cohort), tmp_path / "run").steps == 4


# the gallery


def test_every_example_is_short():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(lines) == {"my_method.py", "python_api.py", "own_data.py", "partial_labels.py", "run_onnx.py"}
    assert max(lines.values()) < 60


def test_example_python_api(tmp_path, capsys):
    scans = SyntheticConfig(**{**vars(TINY), "unlabelled": 0, "full": True})
    dice = importlib.import_module("python_api").main(tmp_path, scans, SMALL)
    assert 0 <= dice <= 1
    assert "4 steps" in capsys.readouterr().out


def test_example_own_data(tmp_path, capsys):
    manifest = importlib.import_module("own_data").main(tmp_path, shape=(32, 26, 20))
    assert manifest.label_space.structures == ("liver", "spleen")
    assert "total" in capsys.readouterr().out


def test_example_partial_labels(capsys):
    known = importlib.import_module("partial_labels").main()
    assert known["possible"].sum(1).tolist() == [[1, 2, 2, 3]]
    assert known["pseudo_label"][0, 1, 1] == 0  # the label says that this voxel is not the liver
    assert "background or spleen" in capsys.readouterr().out
