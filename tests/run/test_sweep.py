"""A sweep goes on where it was stopped, lists what failed, and ends with the tables of an uninterrupted one."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from labelwise import run
from labelwise.atomic import write_json
from labelwise.config import load_config
from labelwise.errors import ConfigError, DataError, ResourceError, TrainingError
from labelwise.evaluate.scores import Score, write_scores
from labelwise.run import sweep as verb
from labelwise.run.forecast import Forecast
from labelwise.run.sweep import SweepPlan, read_plan
from labelwise.run.train import TrainingResult

pytestmark = pytest.mark.usefixtures("one_process")

PLAN = """
data = "cohort"
methods = ["naive", "mean_teacher", "cps"]
seeds = [0, 1]

[settings]
"train.steps" = 4

[settings_of.cps]
"train.steps" = 2

[budgets.one]
mode = "keep_labelled"
n = 1

[budgets.two]
mode = "keep_labelled"
n = 2
"""


@pytest.fixture
def plan(tmp_path, tiny_cohort):
    (tmp_path / "plan.toml").write_text(PLAN.replace("cohort", str(tiny_cohort)))
    return tmp_path / "plan.toml"


class Stopped(KeyboardInterrupt):
    """Somebody stops the sweep."""


@pytest.fixture
def steps(monkeypatch):
    """The verbs of a sweep without their work: the scores follow from method, budget and seed."""
    done = []
    fails = {}

    def train(config, folder, *, progress):
        name = f"{folder.parent.name}/{folder.name}"
        if name in fails:
            raise fails[name]
        done.append(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.toml").write_text(config.to_toml())
        return TrainingResult(folder, 1, False, None)

    class Predicted:
        failed = ()

    def evaluate(predictions, data, output, *, split, progress):
        folder = output.parent
        value = (len(folder.name) + 7 * int(folder.name[-1]) + len(folder.parent.name)) / 40
        scores = [Score(f"case{n}", "liver", "dice", value + 0.01 * n, "ok") for n in range(4)]
        write_scores(
            output, [*scores, *(Score(f"case{n}", "liver", "hd95", 1 - value, "ok", "mm") for n in range(4))]
        )
        return SimpleNamespace(scores=())

    trial = __import__("labelwise.run.trial", fromlist=["trial"])
    for name, stub in (("train", train), ("predict", lambda *_, **__: Predicted()), ("evaluate", evaluate)):
        monkeypatch.setattr(trial, name, stub)
    module = __import__("labelwise.run.sweep", fromlist=["sweep"])
    monkeypatch.setattr(
        module,
        "simulate",
        lambda data, target, mode, **_: (
            target.mkdir(parents=True),
            (target / "manifest.csv").write_text(""),
        ),
    )
    monkeypatch.setattr(module, "report", lambda *_, **__: None)
    monkeypatch.setattr(module, "forecast", lambda *_: None)
    monkeypatch.setattr(module, "cost", lambda *_: None)
    return done, fails


def tables(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("compare.*"))}


def test_every_method_meets_every_budget_and_seed_and_gets_its_control(plan, steps, tmp_path):
    result = verb(plan, tmp_path / "out")
    assert len(result.done) == 2 * 2 * 4
    assert result.done[:4] == (
        "one/supervised_seed0",
        "one/naive_seed0",
        "one/mean_teacher_seed0",
        "one/cps_seed0",
    )
    assert not result.left
    rows = (tmp_path / "out" / "two" / "compare.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1::2]] == ["supervised", "naive", "mean_teacher", "cps"]


def test_every_method_but_the_baselines_gets_labels_alone_beside_it(plan):
    assert SweepPlan("x", ("naive",)).rows == ("naive",)
    assert SweepPlan("x", ("supervised", "naive")).rows == ("supervised", "naive")
    partial = SweepPlan("x", ("dodnet", "naive"))
    assert partial.rows == ("supervised", "dodnet", "naive")
    assert partial.settings_by_row["supervised"] == {"method.name": "supervised"}
    assert SweepPlan("x", ("cps", "supervised")).rows == ("cps", "supervised")
    assert SweepPlan("x", ("cps",), controls=False).rows == ("cps",)


def test_a_sweep_that_is_stopped_twice_ends_with_the_same_tables(plan, steps, tmp_path):
    done, fails = steps
    verb(plan, tmp_path / "whole")
    done.clear()
    for name in ("one/cps_seed0", "two/naive_seed1"):
        fails[name] = Stopped()
        stopped = verb(plan, tmp_path / "parts")
        assert stopped.interrupted
        assert name in stopped.left
        del fails[name]
    assert len(verb(plan, tmp_path / "parts").done) == 16
    assert len(done) == len(set(done)) == 16, "a finished run was repeated"
    assert tables(tmp_path / "parts") == tables(tmp_path / "whole")


def test_a_run_that_fails_stops_no_other_and_is_tried_again(plan, steps, tmp_path):
    _, fails = steps
    fails["one/naive_seed0"] = TrainingError("the loss is not finite")
    result = verb(plan, tmp_path / "out")
    assert len(result.done) == 15
    assert "failed: one/naive_seed0\nthe loss is not finite" in result.to_text()
    fails.clear()
    again = verb(plan, tmp_path / "out")
    assert len(again.done) == 16
    assert not again.failed


def test_a_dry_run_says_what_is_to_do_and_does_nothing(plan, steps, tmp_path):
    done, fails = steps
    assert len(verb(plan, tmp_path / "out", dry_run=True).left) == 16
    assert not (tmp_path / "out").exists()
    fails["one/mean_teacher_seed0"] = Stopped()
    verb(plan, tmp_path / "out")
    for record in (tmp_path / "out").rglob("done.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 60}))
    done.clear()
    told = verb(plan, tmp_path / "out", dry_run=True)
    assert not done
    assert told.seconds_left == pytest.approx(14 * 60)
    assert "2 runs done, 14 to do, about 14 min 0 s by those that are done" in told.to_text()


def test_runs_and_budgets_of_another_plan_are_refused_not_mixed(plan, steps, tmp_path):
    verb(plan, tmp_path / "out")
    plan.write_text(plan.read_text().replace('"train.steps" = 2', '"train.steps" = 3'))
    result = verb(plan, tmp_path / "out")
    assert sorted(result.failed) == [
        f"{budget}/cps_seed{seed}" for budget in ("one", "two") for seed in (0, 1)
    ]
    assert "other settings" in result.failed["one/cps_seed0"]
    plan.write_text(plan.read_text().replace("n = 1", 'n = 1\norder = "random"'))
    with pytest.raises(ConfigError, match="budget 'one' was made otherwise"):
        verb(plan, tmp_path / "out")


def test_a_budget_that_could_not_be_made_may_be_named_anew(plan, steps, tmp_path, monkeypatch):
    """What is left of a sweep that was stopped before the manifest stood does not bind the next plan."""
    module = __import__("labelwise.run.sweep", fromlist=["sweep"])
    makes = module.simulate

    def full_disk(*_, **__):
        raise ResourceError("no space left")

    monkeypatch.setattr(module, "simulate", full_disk)
    with pytest.raises(ResourceError):
        verb(plan, tmp_path / "out")
    monkeypatch.setattr(module, "simulate", makes)
    plan.write_text(plan.read_text().replace("n = 1", 'n = 1\norder = "random"'))
    assert len(verb(plan, tmp_path / "out").done) == 16
    assert json.loads((tmp_path / "out" / "one" / "budget.json").read_text())["order"] == "random"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('["naive", "mean_teacher", "cps"]', '["naive", "mean_techer"]', "did you mean 'mean_teacher'"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "names something twice"),
        ("seeds = [0, 1]", "seed = [0]", "seed"),
        ("[settings_of.cps]", "[settings_of.bcp]", "does not train: bcp"),
        ('mode = "keep_labelled"\nn = 1', "n = 1", "'one' has no mode"),
        ("[budgets.one]", '[budgets."../one"]', "becomes a folder"),
        ('mode = "keep_labelled"\nn = 2', 'mode = "keep_labeled"\nn = 2', "did you mean 'keep_labelled'"),
        ('mode = "keep_labelled"\nn = 2', 'mode = "keep_labelled"\nn = 99', "99"),
        ('mode = "keep_labelled"\nn = 2', 'mode = "equal_cost"\nk = 1', "completely annotated"),
        ("[budgets.one]", "[budgets.one", "is no TOML"),
        ('"train.steps" = 4', '"train.stepps" = 4', "stepps"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_work(plan, steps, tmp_path, before, after, message):
    assert before in plan.read_text()
    plan.write_text(plan.read_text().replace(before, after, 1))
    with pytest.raises(ConfigError, match=message):
        verb(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_without_a_manifest_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_text('data = "nothing"\nmethods = ["naive"]\n')
    with pytest.raises(DataError, match="no manifest"):
        verb(tmp_path / "plan.toml", tmp_path / "out")


def test_paths_of_a_plan_are_relative_to_it(tmp_path):
    (tmp_path / "plan.toml").write_text('data = "cohort"\nmethods = ["naive"]\n')
    assert read_plan(tmp_path / "plan.toml").data == str(tmp_path / "cohort")


def test_the_command_trains_scores_and_compares(command, tiny_run, tiny_cohort, tmp_path):
    """Nothing is replaced here: two trainings of two steps."""
    tree = load_config(tiny_run / "run.toml")
    (tmp_path / "recipe.toml").write_text(tree.to_toml())
    (tmp_path / "plan.toml").write_text(
        f'data = "{tiny_cohort}"\nrecipe = "recipe.toml"\nmethods = ["supervised", "naive"]\n'
        '[settings]\n"train.steps" = [2]\n'
    )
    answer = command("sweep", tmp_path / "plan.toml", "-o", tmp_path / "out", "--quiet")
    assert answer.code == 0, answer.err
    assert "2 runs done, 0 to do" in answer.out
    assert (tmp_path / "out" / "all" / "report.html").exists()
    assert run.compare(sorted((tmp_path / "out" / "all").glob("*_seed0"))).runs == ("naive", "supervised")
    assert "2 runs done" in command("sweep", tmp_path / "plan.toml", "-o", tmp_path / "out", "--dry-run").out


# folds, controls, defects


def test_every_fold_of_a_plan_is_trained_and_the_folds_are_one_row(plan, steps, tmp_path, monkeypatch):
    text = plan.read_text().replace("seeds = [0, 1]", "seeds = [0]\nfolds = 2\nvalidation = 1")
    plan.write_text(text.partition("[budgets.two]")[0].replace('"naive", "mean_teacher", ', ""))
    made = []
    module = __import__("labelwise.run.sweep", fromlist=["sweep"])
    monkeypatch.setattr(module, "simulate", lambda data, target, mode, **_: made.append((data, target)))
    monkeypatch.setattr(
        module,
        "split",
        lambda data, output, **asked: write_json(output / "folds.json", {"folds": asked["folds"]}),
    )
    compared = []
    monkeypatch.setattr(module, "_tell", lambda budget, runs, **_: compared.extend(runs))
    result = verb(plan, tmp_path / "out")
    names = [f"one/{row}_seed0_fold{fold}" for fold in range(2) for row in ("supervised", "cps")]
    assert list(result.done) == names
    assert [f"one/{run.name}" for run in compared] == names
    out = tmp_path / "out"
    assert made == [(out / "folds" / f"fold_{n}", out / "one" / "data" / f"fold_{n}") for n in range(2)]
    assert json.loads((out / "one" / "data" / "folds.json").read_text()) == {"folds": 2}


def test_a_network_with_batch_norm_gets_the_control_of_equal_batches():
    learns = SweepPlan("x", ("cps",), settings={"net.name": "vnet", "sampling.patch_size": [32, 32, 32]})
    assert learns.rows == ("supervised", "same_batches", "cps")
    control = learns.settings_by_row["same_batches"]
    assert control["method.name"] == "mean_teacher"
    assert control["method.settings.consistency_weight"] == 0.0
    assert learns.settings_by_row["supervised"]["method.settings.squared_dice"] is True
    instance = replace(learns, settings={"net.name": "unet", "sampling.patch_size": [32, 32, 32]})
    assert instance.rows == ("supervised", "cps")
    own = replace(learns, methods=("supervised", "cps"))
    assert "method.settings.squared_dice" not in own.settings_by_row["supervised"]


def test_a_defect_of_a_method_is_listed_with_its_traceback_and_stops_no_other(plan, steps, tmp_path):
    _, fails = steps
    fails["one/naive_seed0"] = ZeroDivisionError("division by zero")
    result = verb(plan, tmp_path / "out")
    assert len(result.done) == 15
    assert "defect: ZeroDivisionError: division by zero" in result.failed["one/naive_seed0"]
    note = tmp_path / "out" / "one" / "naive_seed0" / "failed.txt"
    assert "in train" in note.read_text()
    fails.clear()
    assert len(verb(plan, tmp_path / "out").done) == 16
    assert not note.exists()


def test_a_dry_run_forecasts_what_is_left(plan, tmp_path, monkeypatch):
    found = Forecast((0.5,), 0.0, 2.0, 3.0, None, disk_gib=0.6, store_gib=0.5)
    tried = []
    module = __import__("labelwise.run.sweep_plan", fromlist=["forecast"])

    def tell(config):
        tried.append(config.method.name)
        assert "out" not in str(config.prepare.store)
        return SimpleNamespace(forecast=None if config.method.name == "naive" else found)

    monkeypatch.setattr(module, "plan_training", tell)
    result = verb(plan, tmp_path / "out", dry_run=True, workers=4)
    assert tried == ["supervised", "naive", "mean_teacher", "cps"], "each row is tried once"
    assert result.cost.seconds == pytest.approx(12 * 2 * 3600)
    assert result.cost.disk_gib == pytest.approx(12 * 0.1 + 2 * 0.5), (
        "runs, and the scans of each budget once"
    )
    assert "24 h 0 min of training, 4 at a time about 6 h 0 min, memory 12.0 GiB" in result.to_text()
    assert "unknown for naive" in result.to_text()
    assert not (tmp_path / "out").exists()


# side by side


SIDE_BY_SIDE = """
data = "cohort"
recipe = "recipe.toml"
methods = ["supervised", "naive"]
seeds = [0]

[settings]
"train.steps" = [2]
"""


@pytest.fixture
def small(tmp_path, tiny_run, tiny_cohort):
    (tmp_path / "recipe.toml").write_text(load_config(tiny_run / "run.toml").to_toml())
    (tmp_path / "small.toml").write_text(SIDE_BY_SIDE.replace("cohort", str(tiny_cohort)))
    return tmp_path / "small.toml"


def all_tables(folder):
    return tables(folder) | {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("scores.csv")
    }


def test_a_real_sweep_that_is_killed_in_a_training_and_in_a_prediction_ends_with_the_same_tables(
    small, tmp_path, monkeypatch
):
    verb(small, tmp_path / "whole", workers=1)
    for stop_at in ("1/2 all/supervised_seed0: train", "2/2 all/naive_seed0: predict"):

        def kill(task, done, total, message="", stop_at=stop_at):
            if task.startswith(stop_at):
                raise Stopped

        assert verb(small, tmp_path / "parts", workers=1, progress=kill).interrupted
    assert len(verb(small, tmp_path / "parts", workers=1).done) == 2
    assert all_tables(tmp_path / "parts") == all_tables(tmp_path / "whole")
