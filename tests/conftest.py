"""What several test files share: small batches, small networks, a small cohort and a trained run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from labelwise import load_config, run, testing
from labelwise.cli.main import main
from labelwise.config import RunConfig
from labelwise.methods import find_method
from labelwise.methods.base import Method
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.testing import SMALL_NETS as SMALL_NETS
from labelwise.testing import SPACE as SPACE
from labelwise.testing import make_batch as make_batch
from labelwise.testing import net_of as net_of

# Starting processes costs seconds each; the tests of the engine ask for them.
os.environ.setdefault("LABELWISE_WORKERS", "1")

GOLDEN = Path(__file__).parent / "golden"


def make_method(name: str, *, dims: int = 3, seed: int = 0, settings: dict[str, Any] | None = None) -> Method:
    """A registered method with a network of a few thousand weights, without dropout."""
    return testing.make_method(find_method(name), dims=dims, seed=seed, settings=settings)


def clock_of(moments: Iterator[float]) -> SimpleNamespace:
    """What stands for the module `time` in one module of ours.

    The clock of the whole process is left alone: servers of other tests run beside, and their loops sleep by it.
    """
    return SimpleNamespace(monotonic=lambda: float(next(moments)))


@pytest.fixture
def golden():
    """Arrays of an official implementation: ``golden("mean_teacher")["mask"]``."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the public data sets, unpacked; tests that need it are skipped where it is absent."""
    folder = os.environ.get("LABELWISE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LABELWISE_TEST_DATA does not name a folder with la2018/ and acdc/")
    return Path(folder)


# a cohort and a run of seconds

TINY_SITES = {"north": ("liver", "pancreas"), "south": ("spleen", "kidneys")}
TINY_SETTINGS: dict[str, Any] = {
    "base": "fixed",
    "prepare.spacing_mm": [14.0, 14.0, 14.0],
    "net.settings.width": 2,
    "sampling.patch_size": [32, 32, 16],
    "sampling.labelled_cases": 1,
    "sampling.unlabelled_cases": 1,
    "train.steps": [4],
    "train.log_every": 1,
    "inference.overlap": 0.0,
    "device.device": "cpu",
    "device.precision": "float32",
}


def tiny_config(data: Path, method: str = "supervised", **changes: Any) -> RunConfig:
    """Four steps with a network of two channels; ``train__steps=[2]`` changes train.steps."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    settings = {key: value for key, value in TINY_SETTINGS.items() if key.rpartition(".")[0] not in dotted}
    return load_config(None, settings | dotted, data=str(data), method={"name": method})


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohort jobs run here: the start of worker processes takes seconds."""
    monkeypatch.setenv("LABELWISE_WORKERS", "1")


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 2 partly annotated, 1 unlabelled, 1 validation and 2 test scans, prepared. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny_cohort")
    scans = SyntheticConfig(
        TINY_SITES, cases_per_site=1, unlabelled=1, validation=1, test=2, shape=(24, 24, 16)
    )
    make_cohort(folder, scans)
    run.prepare(tiny_config(folder), workers=1).require_all()
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `tiny_cohort` with predictions and scores. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run.train(tiny_config(tiny_cohort), folder)
    run.predict(folder, tiny_cohort, folder / "predictions", device="cpu")
    run.evaluate(folder, tiny_cohort, workers=1)
    return folder


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(one_process: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command line in this process: ``command("train", recipe, "-o", folder)``."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(int(caught.value.code or 0), out, err)

    return call
