"""Workers of a cluster stand in other folders: relative paths of a command mean the same to them."""

from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from conftest import tiny_config
from labelwise import engine, run

pytestmark = pytest.mark.usefixtures("one_process")


class Elsewhere(Executor):
    """Stands in for the client of Dask: jobs travel as bytes, and are done in another folder."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, 0

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        return None

    def get_executor(self):
        return self

    def submit(self, function, *arguments):
        future: Future = Future()
        try:
            future.set_result(self.there(function, *arguments))
        except Exception as error:  # noqa: BLE001 - an executor hands every exception to its future
            future.set_exception(error)
        self.done += 1
        return future

    def there(self, function, *arguments):
        job, items = pickle.loads(pickle.dumps((function, arguments)))
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return job(*items)
        finally:
            os.chdir(before)

    def run(self, question, on_error):
        return {"tcp://worker": self.there(question)}

    def run_on_scheduler(self, question):
        return self.there(question)


@pytest.fixture
def cluster(monkeypatch, tmp_path) -> Elsewhere:
    """The only worker of a cluster, in an empty folder; the command stands beside the data."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    cluster = Elsewhere(tmp_path / "elsewhere")
    monkeypatch.setattr(engine, "import_extra", lambda *names: None)
    monkeypatch.setattr(engine, "_client", lambda distributed, address: cluster)
    monkeypatch.chdir(tmp_path / "here")
    return cluster


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


VERBS = {
    "check": lambda out, **where: run.check("data", out, **where),
    "check --fix": lambda out, **where: run.check("data", fix=out, **where),
    "measure": lambda out, **where: run.measure("data", out, **where),
    "measure FOLDER": lambda out, **where: run.measure("run/predictions", out, **where),
    "evaluate": lambda out, **where: run.evaluate("run", "data", out / "scores.csv", **where),
    "evaluate FOLDER FOLDER": lambda out, **where: run.evaluate(
        "run/predictions", "run/predictions", out / "scores.csv", **where
    ),
    "export": lambda out, **where: run.export("data", out, **where),
}


@pytest.mark.parametrize("verb", VERBS)
def test_relative_paths_mean_the_same_to_workers_in_other_folders(cluster, tiny_cohort, tiny_run, verb):
    shutil.copytree(tiny_cohort, "data", ignore=shutil.ignore_patterns("store"))
    shutil.copytree(tiny_run, "run")
    VERBS[verb](Path("alone"), workers=1)
    VERBS[verb](Path("there"), engine="dask://host:1")
    assert cluster.done
    assert contents(cluster.folder) == {}
    assert contents(Path("there")) == contents(Path("alone"))


def test_a_relative_store_is_filled_where_the_command_stands(cluster, tiny_cohort):
    shutil.copytree(tiny_cohort, "data", ignore=shutil.ignore_patterns("store"))
    config = tiny_config("data", prepare={"store": "store"})
    prepared = run.prepare(config, engine="dask://host:1")
    assert cluster.done
    assert contents(cluster.folder) == {}
    assert contents(Path("store"))
    assert prepared
