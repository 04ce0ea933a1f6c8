"""Loggers on request: what a training says reaches TensorBoard and MLflow, and their own readers find it."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from lightning_fabric.loggers.logger import Logger
from PIL import Image

from conftest import tiny_config
from labelwise import run
from labelwise.errors import ConfigError, ResourceError
from labelwise.train import loggers
from labelwise.train.record import read_log

told: list[tuple[str, dict, int | None]] = []


class Telling(Logger):
    """A logger of another package."""

    name, version = "telling", "0"

    def __init__(self, folder, *, step):
        told.append(("begin", {"folder": folder.name}, step))

    def log_metrics(self, metrics, step=None):
        told.append(("metrics", dict(metrics), step))

    def log_image(self, key, images, step):
        told.append(("picture", {key: images[0].shape}, step))

    def log_hyperparams(self, params, *args, **kwargs):
        told.append(("settings", dict(params), None))

    def finalize(self, status):
        told.append((status, {}, None))


@pytest.fixture
def telling(monkeypatch):
    told.clear()
    point = EntryPoint("telling", f"{__name__}:Telling", "labelwise.loggers")
    monkeypatch.setattr(
        "labelwise.plugins.entry_points", lambda group: [point] if group == "labelwise.loggers" else []
    )


def test_a_logger_of_another_package_is_told_what_the_log_says(telling, tiny_cohort, tmp_path):
    run.train(tiny_config(tiny_cohort, train__loggers=["telling"]), tmp_path / "one")
    assert told[0] == ("begin", {"folder": "one"}, 0)
    settings = told[1][1]
    assert settings["train.steps"] == "[4]"
    assert settings["method.name"] == "supervised"
    assert not any(key.startswith(("cases", "validation")) for key in settings), "scans are no settings"
    events = [event for event in read_log(tmp_path / "one" / "log.jsonl") if event["event"] == "train"]
    losses = [(step, facts["loss"]) for kind, facts, step in told if kind == "metrics" and "loss" in facts]
    assert losses == [(event["step"], event["loss"]) for event in events]
    assert any("validation/dice" in facts for _, facts, _ in told)
    assert any("term/supervised" in facts for _, facts, _ in told)
    assert told[-1][0] == "success"


def test_what_a_logger_prints_does_not_stand_in_the_result(
    telling, tiny_cohort, tmp_path, monkeypatch, capfd
):
    """MLflow says at the end of a training where its server shows it; with --json that was no JSON any more."""
    for name in ("__init__", "log_metrics", "log_hyperparams", "finalize"):
        kept = getattr(Telling, name)
        monkeypatch.setattr(Telling, name, lambda *a, kept=kept, **k: (print("look here"), kept(*a, **k))[1])
    run.train(tiny_config(tiny_cohort, train__loggers=["telling"]), tmp_path / "one")
    said = capfd.readouterr()
    assert not said.out
    assert "look here" in said.err
    assert ("success", {}, None) in told


def test_another_logger_does_not_make_another_training(telling, tiny_cohort, tmp_path):
    run.train(tiny_config(tiny_cohort), tmp_path / "one")
    again = run.train(tiny_config(tiny_cohort, train__loggers=["telling"]), tmp_path / "one")
    assert again.steps == 4
    assert [kind for kind, *_ in told] == ["begin", "settings", "success"]


def test_steps_of_a_second_stage_go_on_after_those_of_the_first(telling, tiny_cohort, tmp_path):
    config = tiny_config(tiny_cohort, "bcp", train__steps=[2, 2], train__loggers=["telling"])
    run.train(config, tmp_path / "two")
    steps = [step for kind, facts, step in told if kind == "metrics" and "loss" in facts]
    assert steps == [1, 2, 3, 4]
    assert {facts["folder"] for kind, facts, _ in told if kind == "begin"} == {"two"}


def test_pictures_are_drawn_at_validations_only_as_files_and_for_loggers_that_take_them(
    telling, tiny_cohort, tmp_path
):
    config = tiny_config(
        tiny_cohort,
        train__loggers=["telling"],
        train__pictures=3,
        train__validate_every=2,
        train__log_every=1,
    )
    run.train(config, tmp_path / "one")
    files = sorted((tmp_path / "one" / "pictures").rglob("*.webp"))
    assert [str(file.relative_to(tmp_path / "one" / "pictures")) for file in files] == [
        "validation_000/step_000002.webp",
        "validation_000/step_000004.webp",
    ]
    found = [(facts, step) for kind, facts, step in told if kind == "picture"]
    with Image.open(files[0]) as drawn:
        shape = (drawn.height, drawn.width, 3)
    assert found == [({"validation/validation_000": shape}, step) for step in (2, 4)]
    again = run.train(config, tmp_path / "one", overwrite=True)
    assert again.steps == 4


def test_asking_for_pictures_changes_no_training_and_can_begin_late(telling, tiny_cohort, tmp_path):
    run.train(tiny_config(tiny_cohort), tmp_path / "one")
    assert not (tmp_path / "one" / "pictures").exists()
    pictured = tiny_config(tiny_cohort, train__pictures=1, train__validate_every=2)
    run.train(tiny_config(tiny_cohort, train__validate_every=2), tmp_path / "plain")
    run.train(pictured, tmp_path / "drawn")
    weights = [
        (tmp_path / name / "model" / "weights.safetensors").read_bytes() for name in ("plain", "drawn")
    ]
    assert weights[0] == weights[1]
    assert run.train(tiny_config(tiny_cohort, train__pictures=1), tmp_path / "one").steps == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(tiny_cohort, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run.train(tiny_config(tiny_cohort, train__loggers=["tensorboard"], train__pictures=1), tmp_path / "one")
    events = accumulator.EventAccumulator(str(tmp_path / "one" / "tensorboard"))
    events.Reload()
    log = [event for event in read_log(tmp_path / "one" / "log.jsonl") if event["event"] == "train"]
    found = [(point.step, point.value) for point in events.Scalars("loss")]
    assert found == [(event["step"], pytest.approx(event["loss"], rel=1e-6)) for event in log]
    (shown,) = events.Images("validation/validation_000")
    (file,) = (tmp_path / "one" / "pictures" / "validation_000").iterdir()
    with Image.open(file) as drawn, Image.open(io.BytesIO(shown.encoded_image_string)) as read:
        assert (np.asarray(read) == np.asarray(drawn.convert("RGB"))).all()
    assert shown.step == 4


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_logged_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(mlflow.tracking, "is_tracking_uri_set", lambda: True)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: (tmp_path / "store").as_uri())
    (tmp_path / "one").mkdir()
    (logger,) = loggers.open_loggers(["mlflow"], tmp_path / "one", step=0, settings={"train": {"steps": [4]}})
    logger.log_metrics({"loss": 2.0, "term/a": 2.0}, 10)
    logger.log_metrics({"loss": 1.5, "term/a": 1.5}, 20)
    logger.finalize("interrupted")
    (again,) = loggers.open_loggers(["mlflow"], tmp_path / "one", step=10, settings={"train": {"steps": [4]}})
    again.log_metrics({"loss": 1.5, "term/a": 1.5}, 20)
    again.log_metrics({"loss": 1.0, "term/a": 1.0}, 30)
    again.log_metrics({"validation/dice": 0.5}, 30)
    rows = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    again.log_image("validation/c1", [rows], 30)
    again.finalize("success")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    name = json.loads((tmp_path / "one" / "mlflow.json").read_text())["run"]
    found = client.get_run(name)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "one")
    assert found.data.params == {"train.steps": "[4]"}
    assert [(m.step, m.value) for m in client.get_metric_history(name, "loss")] == [
        (10, 2.0),
        (20, 1.5),
        (30, 1.0),
    ]
    assert found.data.metrics["validation/dice"] == 0.5
    with Image.open(client.download_artifacts(name, "validation/c1/step_000030.png")) as read:
        assert (np.asarray(read) == rows).all()


@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_what_was_logged_and_a_resumed_run_goes_on(tiny_cohort, tmp_path):
    """In a process of its own: Trackio asks once where its data lie, and keeps threads."""
    pytest.importorskip("trackio")
    program = """if True:
        import contextlib, sys
        from pathlib import Path
        import numpy as np
        from labelwise.train.loggers import open_loggers
        folder = Path(sys.argv[1])
        (logger,) = open_loggers(["trackio"], folder, step=0, settings={"train": {"steps": [4]}})
        logger.log_metrics({"loss": 2.0, "term/a": 2.0}, 10)
        logger.log_metrics({"loss": 1.5, "term/a": 1.5}, 20)
        with contextlib.redirect_stdout(sys.stderr):
            logger.finalize("interrupted")
        (again,) = open_loggers(["trackio"], folder, step=10, settings={"train": {"steps": [4]}})
        again.log_metrics({"loss": 1.5, "term/a": 1.5}, 20)
        again.log_metrics({"loss": 1.0, "term/a": 1.0}, 30)
        again.log_metrics({"validation/dice": 0.5}, 30)
        again.log_image("validation/c1", [np.arange(60, dtype=np.uint8).reshape(4, 5, 3)], 30)
        with contextlib.redirect_stdout(sys.stderr):
            again.finalize("success")
    """
    for name in ("one", "two"):
        (tmp_path / name / "run").mkdir(parents=True)
        environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "store")}
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / name / "run"], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    assert "Trackio" in done.stderr
    assert not done.stdout, "a result as JSON would not be JSON any more"
    names = [
        json.loads((tmp_path / name / "run" / "trackio.json").read_text())["run"] for name in ("one", "two")
    ]
    with sqlite3.connect(tmp_path / "store" / "labelwise.db") as store:
        rows = store.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {row[0] for row in rows} == set(names), "two folders of the same name became one run"
    found = [(step, json.loads(metrics)) for name, step, metrics in rows if name == names[0]]
    assert [(step, told["loss"]) for step, told in found if "loss" in told] == [
        (10, 2.0),
        (20, 1.5),
        (30, 1.0),
    ]
    assert [told["validation/dice"] for _, told in found if "validation/dice" in told] == [0.5]
    (shown,) = (told["validation/c1"]["file_path"] for _, told in found if "validation/c1" in told)
    with Image.open(tmp_path / "store" / "media" / shown) as read:
        rows_of_picture = np.asarray(read.convert("RGB"))
    assert (rows_of_picture == np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).all()


def test_unknown_loggers_and_missing_packages_are_refused_before_the_training(
    tiny_cohort, tmp_path, monkeypatch
):
    with pytest.raises(ConfigError, match=r"unknown logger 'tensorbord'.*did you mean 'tensorboard'"):
        run.train(tiny_config(tiny_cohort, train__loggers=["tensorbord"]), tmp_path / "one")
    assert not (tmp_path / "one").exists()
    with pytest.raises(ConfigError, match="stands twice"):
        loggers.check_loggers(["tensorboard", "tensorboard"])

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ResourceError, match=r"labelwise\[loggers\]"):
        loggers._package("mlflow")


@pytest.mark.parametrize("place", ["log_metrics", "log_image", "finalize"])
@pytest.mark.parametrize(
    "error", [RuntimeError("server gone"), ConnectionError("refused"), KeyError("x"), OSError(28, "full")]
)
def test_a_logger_that_fails_costs_no_training(
    telling, tiny_cohort, tmp_path, monkeypatch, caplog, place, error
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Telling, place, fail)
    settings = {"train__validate_every": 2, "train__pictures": 1} if place == "log_image" else {}
    result = run.train(tiny_config(tiny_cohort, train__loggers=["telling"], **settings), tmp_path / "one")
    assert result.steps == 4
    assert len([each for each in read_log(tmp_path / "one" / "log.jsonl") if each["event"] == "train"]) == 4
    assert len([each for each in caplog.messages if "the training goes on without it" in each]) == 1


@pytest.mark.parametrize("place", ["__init__", "log_hyperparams"])
def test_a_logger_that_cannot_begin_is_named_before_the_training(
    telling, tiny_cohort, tmp_path, monkeypatch, place
):
    def fail(*arguments, **options):
        raise ConnectionError("refused")

    monkeypatch.setattr(Telling, place, fail)
    with pytest.raises(ConfigError, match="logger 'telling' cannot begin: ConnectionError: refused"):
        run.train(tiny_config(tiny_cohort, train__loggers=["telling"]), tmp_path / "one")
