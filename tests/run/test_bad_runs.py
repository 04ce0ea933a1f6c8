"""Trainings that must not go on as they were asked to, and disks that are full: a message, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from conftest import tiny_config
from labelwise import (
    CheckpointError,
    ConfigError,
    ResourceError,
    TrainingError,
    atomic,
    load_config,
    load_model,
    read_manifest,
    run,
    write_manifest,
)
from labelwise.lock import only_writer
from labelwise.methods.naive import Naive
from labelwise.methods.supervised import Supervised

pytestmark = pytest.mark.usefixtures("one_process")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(tiny_run, tmp_path) -> Path:
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(tiny_run, tmp_path / "first")


# the folder of a run


def test_a_folder_in_which_another_program_writes_is_refused(tiny_cohort, finished):
    before = content(finished)
    with only_writer(finished):
        for work in (
            lambda: run.train(tiny_config(tiny_cohort), finished),
            lambda: run.predict(finished, tiny_cohort, finished),
        ):
            with pytest.raises(ResourceError, match="another program is writing into this folder"):
                work()
    assert content(finished) == before


def test_a_folder_that_cannot_be_written_to_shows_before_the_work(tiny_cohort, finished, tmp_path):
    (tmp_path / "file").touch()
    steps = []
    with pytest.raises(ResourceError, match="file"):
        run.train(tiny_config(tiny_cohort), tmp_path / "file", progress=lambda *step: steps.append(step))
    with pytest.raises(ConfigError, match="the scores are one CSV file"):
        run.evaluate(finished, tiny_cohort, tmp_path, progress=lambda *step: steps.append(step))
    assert steps == []


def test_others_may_read_what_a_run_writes(finished):
    mode = (finished / "run.toml").stat().st_mode
    assert {file.stat().st_mode for file in finished.rglob("*") if file.is_file()} == {mode}


def test_other_settings_are_refused_by_name_and_the_run_stays_as_it_is(tiny_cohort, finished):
    before = content(finished)
    changed = tiny_config(
        tiny_cohort, train__optimizer__rate=0.5, method__settings__dice_pooling="batch", workers=0
    )
    with pytest.raises(CheckpointError, match="this run was begun with other settings") as caught:
        run.train(changed, finished)
    text = str(caught.value)
    assert "run.method.settings.dice_pooling = case" in text
    assert "run.method.settings.dice_pooling = batch" in text
    assert "run.train.optimizer.rate = 0.5" in text
    assert "run.seed" not in text
    assert content(finished) == before


def test_another_method_or_another_annotation_is_refused(tiny_cohort, finished, tmp_path):
    before = content(finished)
    with pytest.raises(CheckpointError, match=r"run\.method\.name = supervised"):
        run.train(tiny_config(tiny_cohort, "naive"), finished)
    run.simulate(tiny_cohort, tmp_path / "scarce", "structures_per_case", k=2)
    manifest = read_manifest(tiny_cohort)
    cases = [replace(case, split="train") for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), tmp_path / "more")
    with pytest.raises(CheckpointError, match="cases = "):
        run.train(tiny_config(tmp_path / "more", prepare__store=str(tiny_cohort / "store")), finished)
    assert content(finished) == before


def test_what_does_not_decide_the_result_may_change(tiny_cohort, finished):
    result = run.train(tiny_config(tiny_cohort, select="best", inference__overlap=0.25), finished)
    assert (result.steps, result.interrupted) == (4, False)
    assert 'select = "best"' in (finished / "run.toml").read_text()
    assert load_model(finished).info.training["selected"] == "best"


def test_a_run_goes_on_with_a_store_that_was_moved(tiny_cohort, finished, tmp_path):
    elsewhere = shutil.copytree(tiny_cohort / "store", tmp_path / "elsewhere")
    weights = (finished / "model" / "weights.safetensors").read_bytes()
    assert run.train(tiny_config(tiny_cohort, prepare__store=str(elsewhere)), finished).steps == 4
    assert (finished / "model" / "weights.safetensors").read_bytes() == weights


def test_a_run_goes_on_with_the_file_of_the_manifest_in_place_of_its_folder(tiny_cohort, finished):
    before = set(tiny_cohort.rglob("*"))
    assert run.train(tiny_config(tiny_cohort / "manifest.csv"), finished).steps == 4
    assert set(tiny_cohort.rglob("*")) == before


def test_a_damaged_checkpoint_is_named(tiny_cohort, finished):
    file = finished / "last.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        run.train(tiny_config(tiny_cohort), finished)


def test_a_file_of_another_program_is_not_taken_for_a_checkpoint(tiny_cohort, finished):
    save_file({"weight": torch.zeros(1)}, finished / "last.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of labelwise"):
        run.train(tiny_config(tiny_cohort), finished)


def test_a_method_that_needs_labels_is_not_trained_without(tiny_cohort, tmp_path):
    with pytest.raises(ConfigError, match="supervised learns from labelled cases only"):
        run.train(tiny_config(tiny_cohort, sampling__labelled_cases=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def sided_cohort(tiny_cohort, tmp_path) -> Path:
    """The cohort with names of left and right structures; nothing of it is prepared."""
    shutil.copytree(tiny_cohort, tmp_path / "sided", ignore=shutil.ignore_patterns("store"))
    for name in ("dataset.toml", "manifest.csv"):
        file = tmp_path / "sided" / name
        text = file.read_text(encoding="utf-8")
        file.write_text(
            text.replace("liver", "kidney_right").replace("spleen", "kidney_left"), encoding="utf-8"
        )
    return tmp_path / "sided"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"augment__preset": "flip"}, "augment.sides = 'swap'"),
        ({"augment__preset": "la", "augment__sides": "swap"}, "after a quarter turn"),
        ({"inference__mirror_axes": [0]}, "take 0 out of inference.mirror_axes"),
        ({"augment__mirror_axes": [0], "augment__sides": "swap", "inference__mirror_axes": [0]}, "inference"),
    ],
)
def test_a_run_that_would_exchange_left_and_right_is_refused_before_any_work(
    sided_cohort, tmp_path, changes, words
):
    with pytest.raises(ConfigError, match=words) as caught:
        run.train(tiny_config(sided_cohort, **changes), tmp_path / "run")
    assert "kidney_left" in str(caught.value) or "quarter turn" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_predictions_are_not_averaged_over_mirror_images_of_left_and_right(finished, tiny_cohort, tmp_path):
    description = finished / "model" / "model.json"
    text = description.read_text(encoding="utf-8")
    description.write_text(text.replace("liver", "right kidney"), encoding="utf-8")
    with pytest.raises(ConfigError, match="right kidney"):
        run.predict(finished, tiny_cohort, tmp_path / "out", device="cpu", settings={"mirror_axes": [0]})


def test_what_a_killed_run_left_half_written_is_removed(tiny_cohort, finished):
    for name in ("last.safetensors", "best.safetensors", "model/weights.safetensors"):
        leftover = finished / f".3fffff00{atomic._HERE}.{name}"  # no system has so high a process number
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_bytes(b"half")
    run.train(tiny_config(tiny_cohort), finished)
    assert not list(finished.glob(".*"))


def test_a_number_of_steps_for_each_stage_is_needed(tiny_cohort, tmp_path):
    with pytest.raises(ConfigError, match="trains in 1 stage"):
        run.train(tiny_config(tiny_cohort, train__steps=[2, 2]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["ltuda", "ucmt"])
def test_a_method_that_remembers_something_of_each_batch_takes_no_several_for_a_step(
    tiny_cohort, tmp_path, method
):
    steps = {"ltuda": [4, 4]}.get(method, [4])
    config = tiny_config(tiny_cohort, method, train__steps=steps, train__accumulate=2)
    with pytest.raises(ConfigError, match=rf"{method} keeps something(?s:.*)train\.accumulate = 2"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_average_that_would_keep_its_random_start_is_refused_before_anything_is_written(
    tiny_cohort, tmp_path
):
    config = tiny_config(
        tiny_cohort, "ltuda", train__steps=[4000, 400], method__settings={"prototype_momentum": 0.999}
    )
    with pytest.raises(ConfigError, match=r"prototype_momentum = 0\.999 leaves 45% of its start after 400"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_method_that_follows_another_is_trained_in_two_stages_and_resumed(
    tiny_cohort, tmp_path, monkeypatch
):
    monkeypatch.setattr(Naive, "follows", Supervised)
    config = tiny_config(tiny_cohort, "naive", train__steps=[2, 3])
    result = run.train(config, tmp_path / "run")
    assert result.steps == 3
    assert {"stage_1", "stage_2", "model"} < {path.name for path in (tmp_path / "run").iterdir()}
    shutil.rmtree(tmp_path / "run" / "stage_2")
    before = (tmp_path / "run" / "model" / "weights.safetensors").read_bytes()
    run.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "weights.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match=r"run\.train\.log_every = 1"):
        run.train(
            tiny_config(tiny_cohort, "naive", train__steps=[2, 3], train__log_every=2), tmp_path / "run"
        )


def test_the_last_stage_alone_equals_both_stages_of_one_run(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(Naive, "follows", Supervised)
    run.train(tiny_config(tiny_cohort, "naive", train__steps=[2, 3]), tmp_path / "both")
    run.train(tiny_config(tiny_cohort, "supervised", train__steps=[2]), tmp_path / "first")
    config = tiny_config(tiny_cohort, "naive", train__steps=[3], start_from=str(tmp_path / "first"))
    run.train(config, tmp_path / "last")
    both, last = (tmp_path / name / "model" / "weights.safetensors" for name in ("both", "last"))
    assert both.read_bytes() == last.read_bytes()
    assert load_config(tmp_path / "last" / "run.toml").start_from == str(tmp_path / "first")


def test_a_last_stage_without_a_first_one_says_what_to_run(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(Naive, "follows", Supervised)

    def refused(start_from, steps=(3,), method="naive"):
        changes = {"train__steps": list(steps), "start_from": str(start_from)}
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            run.train(tiny_config(tiny_cohort, method, **changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    absent = refused(tmp_path / "absent")
    assert "starts from a trained 'supervised', and there is none" in absent
    assert "labelwise train --method supervised" in absent
    run.train(tiny_config(tiny_cohort, "mean_teacher", train__steps=[1]), tmp_path / "other")
    assert "a run of 'mean_teacher'" in refused(tmp_path / "other")
    assert "trains in one stage" in refused(tmp_path / "other", method="supervised")
    assert "because start_from names the one before" in refused_steps(tiny_cohort, tmp_path)


def refused_steps(cohort: Path, folder: Path) -> str:
    run.train(tiny_config(cohort, "supervised", train__steps=[1]), folder / "first")
    with pytest.raises(ConfigError) as caught:
        run.train(
            tiny_config(cohort, "naive", train__steps=[1, 1], start_from=str(folder / "first")),
            folder / "run",
        )
    return str(caught.value)


def test_a_first_stage_that_was_interrupted_is_refused(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(Naive, "follows", Supervised)
    run.train(tiny_config(tiny_cohort, "supervised", train__steps=[1]), tmp_path / "first")
    record = tmp_path / "first" / "run.toml"
    record.write_text(record.read_text().replace("steps = [1]", "steps = [2]"))
    config = tiny_config(tiny_cohort, "naive", train__steps=[3], start_from=str(tmp_path / "first"))
    with pytest.raises(CheckpointError, match="not finished") as caught:
        run.train(config, tmp_path / "run")
    assert "step 1 of 2" in str(caught.value)


def test_runs_of_one_stage_and_of_two_do_not_replace_each_other(tiny_cohort, finished, tmp_path, monkeypatch):
    two = tmp_path / "two"
    with monkeypatch.context() as patch:
        patch.setattr(Naive, "follows", Supervised)
        run.train(tiny_config(tiny_cohort, "naive", train__steps=[1, 1]), two)
        before = content(finished)
        with pytest.raises(CheckpointError, match="other settings"):
            run.train(tiny_config(tiny_cohort, "naive", train__steps=[1, 1]), finished)
        assert content(finished) == before
    before = content(two)
    with pytest.raises(CheckpointError, match="other settings"):
        run.train(tiny_config(tiny_cohort), two)
    assert content(two) == before


def test_best_weights_without_a_single_score_are_refused(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("labelwise.run.validation.Validation.__call__", lambda self, predictor: float("nan"))
    with pytest.raises(TrainingError, match="no validation had a score"):
        run.train(tiny_config(tiny_cohort, select="best"), tmp_path / "run")
    assert run.train(tiny_config(tiny_cohort), tmp_path / "run").best_score is None


# disks


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


def test_a_folder_below_a_file_cannot_be_written(tiny_cohort, tiny_run, tmp_path):
    folder = below_a_file(tmp_path)
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        run.train(tiny_config(tiny_cohort), folder)
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        run.predict(tiny_run, tiny_cohort, folder, device="cpu")
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        run.evaluate(tiny_run, tiny_cohort, folder / "scores.csv")
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        run.report([tiny_run], folder / "page.html")
    with pytest.raises(ResourceError, match="a part of the path is a file"):
        run.simulate(tiny_cohort, folder, "keep_labelled", n=1)


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def test_a_full_disk_ends_the_commands_with_a_message(tiny_cohort, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("labelwise.atomic.os.fsync", full_disk)
    for write in (
        lambda: run.train(tiny_config(tiny_cohort), tmp_path / "run"),
        lambda: run.simulate(tiny_cohort, tmp_path / "scarce", "keep_labelled", n=1),
        lambda: run.evaluate(tiny_run, tiny_cohort, tmp_path / "scores.csv"),
        lambda: run.report([tiny_run], tmp_path / "page.html"),
        lambda: run.predict(tiny_run, tiny_cohort, tmp_path / "predictions", device="cpu"),
    ):
        with pytest.raises(ResourceError, match="the disk is full"):
            write()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_while_a_log_is_written(tiny_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("labelwise.train.record.os", SimpleNamespace(fsync=full_disk))
    with pytest.raises(ResourceError, match="cannot write: the disk is full") as caught:
        run.train(tiny_config(tiny_cohort), tmp_path / "run")
    assert caught.value.file == tmp_path / "run" / "log.jsonl"


def test_a_disk_that_fills_up_while_scans_are_prepared(tiny_cohort, tmp_path, monkeypatch):
    data = shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store"))
    monkeypatch.setattr("labelwise.loading.store.save", full_disk)
    prepared = run.prepare(tiny_config(data))
    assert len(prepared.failures) == 6
    assert all("the disk is full" in str(error) for error in prepared.failures.values())
    assert not list((prepared.store.folder / "cases").iterdir())
