"""Scans that other processes predict, one for each device or the workers of a cluster, get the same labels."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from labelwise import run
from labelwise.cohort.manifest import read_manifest
from labelwise.errors import ConfigError


@pytest.fixture(scope="module")
def scans(tiny_cohort, tmp_path_factory):
    """Four scans, and a file that is none."""
    folder = tmp_path_factory.mktemp("scans")
    cases = read_manifest(tiny_cohort).cases
    for number, case in enumerate(cases[:4]):
        shutil.copy(case.images[0], folder / f"scan_{number}.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    return folder


@pytest.fixture(scope="module")
def alone(tiny_run, scans, tmp_path_factory):
    """What this process predicts."""
    folder = tmp_path_factory.mktemp("alone")
    run.predict(tiny_run, scans, folder, device="cpu", maps=["entropy"])
    return folder


def contents(folder):
    """Every file of a folder of predictions; of records all but the time that they took."""
    found = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(file.relative_to(folder))
        found[name] = file.read_bytes()
        if file.suffix == ".json":
            found[name] = {key: value for key, value in json.loads(found[name]).items() if key != "seconds"}
    return found


def test_a_process_for_each_device_writes_what_one_would(tiny_run, scans, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run.predict(tiny_run, scans, "there", device="cpu,cpu", maps=["entropy"])
    assert sorted(result.written) == [f"scan_{number}" for number in range(4)]
    assert "broken" in result.failed["broken"]
    assert contents(tmp_path / "there") == contents(alone)
    again = run.predict(tiny_run, scans, "there", device="cpu,cpu", maps=["entropy"])
    assert again.written == result.written


def test_a_cluster_of_which_a_worker_is_killed_writes_what_one_process_would(
    tiny_run, scans, alone, tmp_path
):
    distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")
    killed = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        workers = [worker.process.pid for worker in cluster.workers.values()]

        def kill_one(stage, done, total):
            if done and not killed:
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

        engine = cluster.scheduler_address.replace("tcp://", "dask://")
        result = run.predict(
            tiny_run, scans, tmp_path, device="cpu", engine=engine, maps=["entropy"], progress=kill_one
        )
    assert killed
    assert sorted(result.failed) == ["broken"]
    assert contents(tmp_path) == contents(alone)


def test_what_cannot_be_is_refused_before_the_work(tiny_run, scans, tmp_path, command):
    with pytest.raises(ConfigError, match="unknown engine 'slurm'"):
        run.predict(tiny_run, scans, tmp_path / "x", engine="slurm")
    with pytest.raises(ConfigError, match="takes one device"):
        run.predict(tiny_run, scans, tmp_path / "x", engine="dask://host:1", device="cpu,cpu")
    answer = command("predict", tiny_run, scans, "-o", tmp_path / "x", "--devices", "cpu,cuda:7")
    assert (answer.code, "device 'cuda:7' is not available" in answer.err) == (1, True)
    assert not (tmp_path / "x").exists()
