"""The whole promise of a sweep, with real trainings: killed twice it ends with the tables of an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import TINY_SETTINGS
from labelwise.config import load_config
from labelwise.run import sweep as verb
from labelwise.run.trial import Trial, perform_all
from labelwise.settings import put, to_toml
from labelwise.synthetic.generate import SyntheticConfig, make_cohort

pytestmark = pytest.mark.slow

STRUCTURES = ("liver", "pancreas", "spleen", "kidneys")
PLAN = """
data = "data"
recipe = "recipe.toml"
methods = ["supervised", "naive", "mean_teacher"]
seeds = [0, 1]
controls = false

[budgets.one]
mode = "keep_labelled"
n = 1

[budgets.two]
mode = "keep_labelled"
n = 2
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    make_cohort(
        folder / "data", SyntheticConfig({"all": STRUCTURES}, 4, unlabelled=0, test=2, shape=(24, 24, 16))
    )
    tree: dict = {}
    for key, value in TINY_SETTINGS.items():
        put(tree, key, value)
    (folder / "recipe.toml").write_text(to_toml(tree))
    (folder / "plan.toml").write_text(PLAN)
    return folder / "plan.toml"


@pytest.fixture(scope="module")
def whole(plan):
    """The tables of a sweep that nothing interrupts."""
    assert _begin(plan, plan.parent / "whole").wait(timeout=1200) == 0
    return tables(plan.parent / "whole")


def tables(folder: Path) -> dict[str, bytes]:
    files = [*folder.rglob("compare.*"), *folder.rglob("scores.csv"), *folder.glob("cost.csv")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _begin(plan: Path, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, with one thread for each run wherever it is trained."""
    command = [
        sys.executable,
        "-m",
        "labelwise",
        "sweep",
        str(plan),
        "-o",
        str(folder),
        "-j",
        "1",
        "-q",
        *options,
    ]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "LABELWISE_WORKERS": "1"})


def _wait_for(condition, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, "the sweep ended before it was killed"
        assert time.monotonic() < end, "the sweep makes no progress"
        time.sleep(0.02)


def test_a_sweep_that_is_killed_twice_ends_with_the_tables_of_an_uninterrupted_one(plan, whole):
    folder = plan.parent / "killed"
    assert len(whole) == 2 * 2 + 12 + 1
    for done in (3, 7):
        process = _begin(plan, folder)
        _wait_for(lambda done=done: len(list(folder.rglob("done.json"))) >= done, process)
        begun = set(folder.rglob("log.jsonl"))
        _wait_for(lambda begun=begun: set(folder.rglob("log.jsonl")) - begun, process)  # in a training
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert len(list(folder.rglob("done.json"))) < 12
    assert _begin(plan, folder).wait(timeout=1200) == 0
    assert tables(folder) == whole


def test_a_sweep_on_a_dask_cluster_ends_with_the_same_tables(plan, whole):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        engine = "dask://" + cluster.scheduler_address.removeprefix("tcp://")
        result = verb(plan, plan.parent / "dask", engine=engine)
    assert not result.failed, result.failed
    assert len(result.done) == 12
    assert tables(plan.parent / "dask") == whole


def test_runs_side_by_side_end_with_the_same_tables(plan, whole):
    assert _begin(plan, plan.parent / "two", "-j", "2").wait(timeout=1200) == 0
    assert tables(plan.parent / "two") == whole


@pytest.mark.parametrize("engine", ["slurm:local", "slurm"])
def test_a_sweep_of_jobs_of_slurm_has_the_same_scores(plan, whole, monkeypatch, engine):
    if engine == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        pytest.skip("needs a machine with SLURM")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = plan.with_name("small.toml")
    small.write_text(PLAN.partition("[budgets.two]")[0].replace("seeds = [0, 1]", "seeds = [0]"))
    folder = plan.parent / engine.replace(":", "_")
    result = verb(small, folder, engine=engine)
    assert len(result.done) == 3, result.failed
    found = {name: text for name, text in tables(folder).items() if "scores" in name}
    assert len(found) == 3
    assert found.items() <= whole.items()


def end(trial, *, progress):
    """A run over which its process dies; and one that says in which process it is."""
    if trial.name == "dies":
        os._exit(9)
    (trial.folder / "pid").write_text(f"{os.getpid()} {os.environ['LABELWISE_WORKERS']}")
    return True


def test_a_run_whose_process_dies_is_listed_and_the_others_are_done(tmp_path):
    config = load_config(None, {}, data="x")
    trials = [Trial(name, config, tmp_path / name, tmp_path) for name in ("one", "dies", "two")]
    for trial in trials:
        trial.folder.mkdir()
    outcomes = {o.item.name: o for o in perform_all(trials, end, folder=tmp_path, workers=2)}
    assert outcomes["dies"].error is not None
    assert "a worker process has died" in str(outcomes["dies"].error)
    assert outcomes["one"].result
    assert outcomes["two"].result
    pid, workers = (tmp_path / "two" / "pid").read_text().split()
    assert int(pid) != os.getpid()
    assert int(workers) >= 1
