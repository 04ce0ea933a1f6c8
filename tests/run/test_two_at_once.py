"""Two programs that do the same at the same time: one result, whole, and whoever was too late is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from conftest import tiny_config
from labelwise import run
from labelwise.errors import ResourceError

pytestmark = pytest.mark.usefixtures("one_process")
TOGETHER = 3

VERBS: dict[str, Callable[[Path, Path, Path], object]] = {
    "import": lambda data, _, out: run.import_data([data / "images"], out, modality="ct"),
    "check": lambda data, _, out: run.check(data, out, workers=1),
    "prepare": lambda data, _, out: run.prepare(tiny_config(data, prepare__store=str(out)), workers=1),
    "train": lambda data, _, out: run.train(tiny_config(data), out),
    "predict": lambda data, trained, out: run.predict(trained, data, out, device="cpu"),
    "evaluate": lambda data, trained, out: run.evaluate(trained, data, out / "scores.csv", workers=1),
    "convert": lambda data, _, out: run.convert(data / "labels" / "test_000.nii.gz", out / "a.seg.nrrd"),
    "report": lambda _, trained, out: run.report([trained], out / "page.html"),
}


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder; of those that hold times or paths, that they are there."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    untimed = {"nii.gz", "csv", "safetensors", "nrrd", "b2nd"}
    return {
        name: file.read_bytes() if name.split(".", 1)[-1] in untimed else b"" for name, file in files.items()
    }


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("before", ["nothing", "its result"])
def test_of_programs_that_do_the_same_at_once_the_result_is_that_of_one(
    tiny_cohort, tiny_run, tmp_path, verb, before
):
    act, alone, shared = VERBS[verb], tmp_path / "alone", tmp_path / "shared"
    act(tiny_cohort, tiny_run, alone)
    if before == "its result":
        shutil.copytree(alone, shared)
    start = Barrier(TOGETHER)

    def program(_: int) -> str:
        start.wait()
        try:
            act(tiny_cohort, tiny_run, shared)
        except ResourceError as error:
            return error.code
        return "done"

    with ThreadPoolExecutor(TOGETHER) as pool:
        ends = list(pool.map(program, range(TOGETHER)))
    assert set(ends) <= {"done", "locked"}
    assert "done" in ends
    assert content(shared) == content(alone)
