"""A training that is planned: begun, resumed, within a budget, and compared with its forecast."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import TINY_SETTINGS
from labelwise import CheckpointError, ConfigError, ResourceError, load_config, read_manifest, run
from labelwise.cli.options import minutes
from labelwise.config import RunConfig
from labelwise.formats.tensors import load_header
from labelwise.loading.prepare import Jobs, training_statistics
from labelwise.run import forecast as forecasting
from labelwise.run import planning
from labelwise.run.forecast import Forecast, steps_within
from labelwise.train.distributed import connect

pytestmark = pytest.mark.usefixtures("one_process")

# A step of the planned network takes long enough to be seen, and short enough to be waited for.
SMALL = {"net.settings.width": 2, "device.device": "cpu", "device.precision": "float32", "train.log_every": 1}


def open_config(data: Path, **settings: Any) -> RunConfig:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return load_config(None, SMALL | {"train.steps": [3]} | dotted, data=str(data))


@pytest.fixture
def quick_trials(monkeypatch):
    """Trials of the fewest steps."""
    monkeypatch.setattr(forecasting, "MOST_STEPS", 4)


@pytest.fixture
def measured(monkeypatch) -> None:
    """A machine on which every step takes 2 s and a validation 10 s."""

    def measure(config, cohort, fabric):
        first = Forecast((2.0,) * len(config.train.steps), 10.0, 1.0, 1.0, None, 1.0)
        return forecasting.with_steps(first, config)

    monkeypatch.setattr("labelwise.run.planning.measure", measure)


def test_a_planned_run_writes_its_plan_and_resumes_with_it(tiny_cohort, tmp_path, quick_trials, monkeypatch):
    config = open_config(tiny_cohort)
    assert "sampling.patch_size" in config.planned
    straight = run.train(config, tmp_path / "straight")
    written = tomllib.loads((tmp_path / "straight" / "run.toml").read_text(encoding="utf-8"))
    assert (written["base"], written["planned"]) == ("plan", [])
    assert load_config(tmp_path / "straight" / "run.toml").planned == ()

    kept = json.loads((tmp_path / "straight" / "plan.json").read_text(encoding="utf-8"))
    assert {line["setting"] for line in kept["plan"]} == set(config.planned)
    assert kept["truth"]["training_hours"] > 0
    assert kept["truth"]["disk_gib"] > 0
    assert kept["forecast"]["ram_gib"] > 0

    run.train(replace_steps(config, 2), tmp_path / "parts")
    monkeypatch.setattr("labelwise.run.planning.settle", lambda *_, **__: pytest.fail("planned again"))
    with pytest.raises(CheckpointError, match="other settings"):  # the steps were set, not planned
        run.train(config, tmp_path / "parts")
    assert run.train(config, tmp_path / "straight").steps == straight.steps == 3


def replace_steps(config: RunConfig, steps: int) -> RunConfig:
    return replace(config, train=replace(config.train, steps=(steps,)))


def test_a_budget_decides_the_steps_once(tiny_cohort, tmp_path, measured):
    config = open_config(tiny_cohort, net__settings__width=2)
    free = replace(config, planned=(*config.planned, "train.steps"))
    result = run.train(
        free, tmp_path / "run", budget_minutes=0.3
    )  # 18 s: a validation of 10 s, 4 steps of 2 s
    assert result.steps == 4
    assert load_config(tmp_path / "run" / "run.toml").train.steps == (4,)
    again = run.train(free, tmp_path / "run", budget_minutes=5.0)
    assert again.steps == 4
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    (line,) = [line for line in plan["plan"] if line["setting"] == "train.steps"]
    assert line["value"] == [4]
    assert "18 s at 2000 ms a step" in line["why"]
    assert plan["forecast"]["training_hours"] == pytest.approx(18 / 3600)


def test_a_budget_that_is_too_short_is_refused(tiny_cohort, tmp_path, measured):
    with pytest.raises(ConfigError, match="too short for a single step"):
        run.train(open_config(tiny_cohort), tmp_path / "run", budget_minutes=0.15)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("every", "stages", "budget", "steps"),
    [(0, 1, 1.0, 25), (10, 1, 1.0, 20), (0, 2, 1.0, 10), (1000, 1, 1.0, 29)],
)
def test_steps_and_their_validations_fill_the_budget(every, stages, budget, steps):
    config = load_config(None, {"train.validate_every": every, "train.steps": [1] * stages})
    expected = Forecast((2.0,) * stages, 10.0, 0.0, 0.0, None, 0.0)
    assert steps_within(expected, config, budget) == (steps,) * stages


@pytest.mark.parametrize(
    ("text", "expected"), [("40m", 40), ("2h", 120), ("1h30m", 90), ("90s", 1.5), ("0.5 h", 30), (None, None)]
)
def test_a_budget_is_a_time(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["40", "", "m", "1.2.3h", "-5m", "0m", "forty"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="such as 40m"):
        minutes(text)


def test_steps_are_not_given_twice(command, tiny_cohort):
    answer = command("train", "--data", tiny_cohort, "--budget", "1m", "--set", "train.steps=3", "--dry-run")
    assert answer.code == 2
    assert "both --budget and train.steps" in answer.err


def test_a_forecast_leaves_random_numbers_and_folders_alone(tiny_cohort, tmp_path, quick_trials, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    planned = run.plan(open_config(tiny_cohort))
    assert torch.equal(torch.rand(3), expected)
    assert planned.forecast is not None
    assert planned.forecast.step_seconds[0] > 0
    assert planned.forecast.gpu_gib is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["mean_teacher", "dtc", "ltuda"])
def test_methods_with_teachers_targets_and_stages_can_be_forecast(tiny_cohort, quick_trials, method):
    settings = {key: value for key, value in TINY_SETTINGS.items() if key != "train.steps"}
    config = load_config(
        None,
        settings | {"train.steps": [2, 2] if method == "ltuda" else [2]},
        data=str(tiny_cohort),
        method={"name": method},
    )
    planned = run.plan(config)
    assert planned.forecast is not None
    assert len(planned.forecast.step_seconds) == len(config.train.steps)
    assert planned.plan.lines == []


@pytest.mark.parametrize(("method", "steps"), [("supervised", [2, 2]), ("arco", [2])])
def test_a_number_of_steps_for_each_stage_is_needed_also_by_a_plan(tiny_cohort, tmp_path, method, steps):
    config = open_config(tiny_cohort, train__steps=steps, method={"name": method})
    with pytest.raises(ConfigError, match=r"trains in \d stage"):
        run.plan(config)
    with pytest.raises(ConfigError, match=r"trains in \d stage"):
        run.train(config, tmp_path / "run", budget_minutes=1)
    assert not (tmp_path / "run").exists()


def test_dry_run_prints_plan_forecast_and_a_recipe(command, tiny_cohort, tmp_path, quick_trials):
    options = ["--set", "net.settings.width=2", "--set", "train.steps=[2]", "--device", "cpu"]
    answer = command("train", "--data", tiny_cohort, "-o", tmp_path / "x", "--dry-run", *options)
    assert answer.code == 0
    assert "# forecast: " in answer.out
    assert "# sampling.patch_size" in answer.out
    (tmp_path / "recipe.toml").write_text(answer.out, encoding="utf-8")
    assert load_config(tmp_path / "recipe.toml").planned == ()
    assert not (tmp_path / "x").exists()
    facts = json.loads(command("plan", tiny_cohort, *options, "--json").out)
    assert {"plan", "forecast", "structures_mm"} <= set(facts)
    assert facts["forecast"]["training_hours"] > 0


def test_a_step_that_does_not_fit_into_memory_is_told_before_the_training(tiny_cohort, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(forecasting, "fit", full)
    with pytest.raises(ResourceError, match=r"too small for a step(?s:.*)Tried to allocate(?s:.*)patch_size"):
        run.plan(open_config(tiny_cohort))


def test_the_fingerprint_is_read_once(tiny_cohort, tmp_path, monkeypatch):
    from_files = training_statistics(read_manifest(tiny_cohort), memo=tmp_path / "fingerprint.json")
    monkeypatch.setattr(
        "labelwise.loading.prepare._scan_statistics", lambda *_, **__: pytest.fail("read again")
    )
    kept = training_statistics(read_manifest(tiny_cohort), memo=tmp_path / "fingerprint.json")
    assert kept == from_files


def test_a_fingerprint_is_made_anew_where_the_annotation_changed(tiny_cohort, tmp_path):
    manifest = read_manifest(tiny_cohort)
    memo = tmp_path / "fingerprint.json"
    before = training_statistics(manifest, memo=memo)
    bare = manifest.replace_cases(replace(case, annotated=frozenset()) for case in manifest.cases)
    after = training_statistics(bare, memo=memo)
    assert any(one.structures_mm for one in before)
    assert not any(one.structures_mm for one in after)


def precision_in(folder: Path) -> str:
    return tomllib.loads((folder / "run.toml").read_text(encoding="utf-8"))["device"]["precision"]


@pytest.fixture
def times(monkeypatch) -> dict[str, float]:
    """A processor with native bf16 on which a step takes these seconds; how often it was measured is counted."""
    seconds = {"float32": 0.4, "bf16": 0.3, "asked": 0}

    def measured(config, cohort, fabric):
        seconds["asked"] += 1
        return {name: seconds[name] for name in ("float32", "bf16")}

    monkeypatch.setattr(planning, "precision_seconds", measured)
    monkeypatch.setattr("labelwise.train.distributed.has_bf16", lambda kind: True)
    monkeypatch.setattr(planning, "WORTH_MEASURING", 3)
    return seconds


AUTOMATIC = {"device.precision": "auto", "train.steps": [3]}


@pytest.mark.parametrize(("bf16", "chosen"), [(0.3, "bf16"), (0.39, "float32"), (0.9, "float32")])
def test_a_processor_computes_in_bf16_only_where_a_step_is_measured_to_be_faster(
    tiny_cohort, tmp_path, times, caplog, bf16, chosen
):
    times["bf16"] = bf16
    caplog.set_level("INFO", "labelwise")
    config = load_config(None, TINY_SETTINGS | AUTOMATIC, data=str(tiny_cohort))
    run.train(config, tmp_path)
    assert precision_in(tmp_path) == chosen
    told = f"device.precision = {chosen}: a step takes 400 ms in float32 and {1000 * bf16:.0f} ms in bf16"
    assert told in caplog.text
    header = load_header(tmp_path / "last.safetensors")
    assert header["facts"]["settings"]["device"]["precision"] == chosen


def test_a_resumed_run_goes_on_in_the_precision_with_which_it_began(tiny_cohort, tmp_path, times):
    straight = load_config(None, TINY_SETTINGS | AUTOMATIC, data=str(tiny_cohort))
    run.train(straight, tmp_path)
    times["bf16"] = 0.9  # as on another machine, or on a busy one
    assert run.train(straight, tmp_path).steps == 3
    assert precision_in(tmp_path) == "bf16"
    assert times["asked"] == 1


def test_a_run_of_a_version_that_did_not_measure_goes_on_as_it_began(
    tiny_cohort, tmp_path, times, monkeypatch
):
    config = load_config(None, TINY_SETTINGS | AUTOMATIC, data=str(tiny_cohort))
    module = import_module("labelwise.run.train")
    with monkeypatch.context() as older:
        older.setattr(module, "settle_run", lambda config, *_: planning.Settled(config))
        run.train(config, tmp_path)
    assert precision_in(tmp_path) == "auto"
    assert run.train(config, tmp_path).steps == 3
    assert times["asked"] == 0


def test_what_was_planned_has_a_line_for_the_precision(tiny_cohort, times, quick_trials):
    settings = {name: value for name, value in SMALL.items() if name != "device.precision"}
    planned = run.plan(load_config(None, settings | {"train.steps": [3]}, data=str(tiny_cohort)))
    assert planned.plan.settings["device.precision"] == planned.config.device.precision == "bf16"


def test_a_short_training_is_not_worth_a_measurement(tiny_cohort, tmp_path, times, monkeypatch):
    monkeypatch.setattr(planning, "WORTH_MEASURING", 4)
    run.train(load_config(None, TINY_SETTINGS | AUTOMATIC, data=str(tiny_cohort)), tmp_path)
    assert (precision_in(tmp_path), times["asked"]) == ("float32", 0)


@pytest.mark.parametrize("method", ["mean_teacher", "dtc", "ltuda", "ucmt", "multi_talent"])
def test_a_step_of_every_kind_of_method_is_timed_in_both_precisions(tiny_cohort, method, monkeypatch):
    monkeypatch.setattr(forecasting, "PRECISION_ROUNDS", 1)
    settings = {key: value for key, value in TINY_SETTINGS.items() if key != "train.steps"}
    config = load_config(None, settings, data=str(tiny_cohort), method={"name": method})
    manifest = read_manifest(tiny_cohort)
    cohort = planning._cohort(config, manifest, planning._facts(config, manifest, Jobs()))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    seconds = forecasting.precision_seconds(config, cohort, connect(config.device))
    assert torch.equal(torch.rand(3), expected)
    assert set(seconds) == {"float32", "bf16"}
    assert min(seconds.values()) > 0


def test_a_training_of_several_processes_has_no_budget(tiny_cohort):
    fabric = SimpleNamespace(world_size=2, is_global_zero=False)
    config, manifest = open_config(tiny_cohort), read_manifest(tiny_cohort)
    assert planning.settle(config, manifest, fabric, budget_minutes=None, jobs=Jobs()).forecast is None
    with pytest.raises(ConfigError, match="measured by one process"):
        planning.settle(config, manifest, fabric, budget_minutes=1.0, jobs=Jobs())
