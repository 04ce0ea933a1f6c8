"""A training as a job of SLURM; in a process of this machine where there is none."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from conftest import tiny_config
from labelwise import ConfigError, run
from labelwise.run.train_job import _begin

SHORT = {"train.steps": [2]}


@pytest.mark.parametrize("engine", ["slurm:local", "slurm"])
def test_a_job_trains_what_this_process_would(tiny_cohort, tmp_path, monkeypatch, engine):
    pytest.importorskip("submitit")
    if engine == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        pytest.skip("needs a machine with SLURM")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = tiny_config(tiny_cohort, **SHORT)
    here = run.train(config, tmp_path / "here")
    there = run.train(config, tmp_path / "there", engine=engine)
    assert (there.steps, there.interrupted) == (here.steps, False)
    weights = [load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("here", "there")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert list((tmp_path / "there" / "slurm").glob("*.out"))


def test_an_error_of_the_job_is_that_of_the_training(tiny_cohort, tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="trains in 1 stage"):
        run.train(tiny_config(tiny_cohort, train__steps=[2, 2]), tmp_path, engine="slurm:local")


@pytest.mark.parametrize(
    ("engine", "slurm", "message"),
    [
        ("dask://host:8786", {}, "does not run on the engine"),
        ("slurm:local", {}, "has one process"),
        ("slurm", {"tasks_per_node": 4}, "expected  2, as device.processes says"),
        ("slurm", {"partition": "gpu"}, "submitit refuses"),
    ],
)
def test_a_job_that_cannot_be_made_is_refused_before_anything_is_written(
    tiny_cohort, tmp_path, engine, slurm, message
):
    pytest.importorskip("submitit")
    config = tiny_config(tiny_cohort, device__processes=2)
    with pytest.raises(ConfigError, match=message):
        run.train(config, tmp_path / "run", engine=engine, slurm=slurm)
    assert not (tmp_path / "run" / "run.toml").exists()


@pytest.mark.parametrize(("restarts", "overwrites"), [(None, True), ("0", True), ("2", False)])
def test_a_job_that_goes_on_after_its_time_keeps_what_it_has_trained(
    monkeypatch, tmp_path, restarts, overwrites
):
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    asked = []
    _begin(
        lambda config, folder, **options: asked.append(options["overwrite"]), (None, tmp_path),
        overwrite=True, budget_minutes=None,
    )  # fmt: skip
    assert asked == [overwrites]


def test_settings_of_a_job_without_a_job_are_refused(command, tiny_cohort, tmp_path):
    answer = command("train", "--data", tiny_cohort, "-o", tmp_path / "x", "--slurm", "slurm_partition=gpu")
    assert answer.code == 2
    assert "--slurm belongs to --engine slurm" in answer.err
    assert not list(tmp_path.iterdir())
