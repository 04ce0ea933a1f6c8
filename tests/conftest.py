"""What several test files share: small batches, small networks, a small cohort and a trained run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from labelwise import load_config, run
from labelwise.cli.main import main
from labelwise.config import RunConfig
from labelwise.methods import find_method
from labelwise.methods.base import Method, NetFactory
from labelwise.settings import build_settings
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.types import IGNORE, Batch, LabelSpace, check_batch

# Starting processes costs seconds each; the tests of the engine ask for them.
os.environ.setdefault("LABELWISE_WORKERS", "1")

GOLDEN = Path(__file__).parent / "golden"
SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
KNOWN = {"full": SPACE.organs, "partial": ("liver",), "none": ()}


def make_batch(*kinds: str, dims: int = 3, size: int = 32, seed: int = 0, absent: str = "") -> Batch:
    """Cases of the given kinds (full, partial, none): bright boxes, one per organ, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(len(kinds), *[size] * dims, dtype=torch.int64)
    images = torch.randn(len(kinds), 1, *[size] * dims, generator=generator) * 0.3
    for number in range(1, SPACE.num_classes):
        if SPACE.names[number] == absent:
            continue
        low = (number - 1) * size // 4
        box = (slice(None), *[slice(low, low + size // 4)] * dims)
        labels[box] = number
        images[:, 0][box] += number
    annotated = torch.stack([SPACE.annotated(KNOWN[kind]) for kind in kinds])
    for row, kind in enumerate(kinds):
        known = annotated[row].clone()
        known[0] = True
        labels[row] = labels[row] * known[labels[row]] if kind != "none" else IGNORE
    rows = tuple(tuple(row) for row in annotated.tolist())
    batch = Batch(images, labels, annotated, tuple(f"case_{i}" for i in range(len(kinds))), {}, rows)
    check_batch(batch)
    return batch


# Networks of a few thousand weights, without dropout.
SMALL_NETS: dict[str, dict[str, Any]] = {
    "vnet": {"width": 4, "dropout": 0.0},
    "unet": {"width": 4, "dropout_scale": 0.0},
    "dynunet": {"width": 4, "depth": 4},
    "dodnet_unet": {"width": 4},
    "film_unet": {"width": 4, "depth": 3},
    "pipofan": {"width": 4},
    "plseg_unet": {"width": 4, "dropout_scale": 0.0},
    "ltuda_unet": {"width": 4},
    "urpc_unet": {"width": 4, "dropout_scale": 0.0},
    "uxnet": {"width": 4},
}


def net_of(kind: type[Method]) -> str:
    """The network that the tests give a method: a V-Net, or the first one that it can use."""
    return "vnet" if kind.card.nets is None or "vnet" in kind.card.nets else min(kind.card.nets)


def make_method(name: str, *, dims: int = 3, seed: int = 0, settings: dict[str, Any] | None = None) -> Method:
    """A registered method with a network of a few thousand weights, without dropout."""
    kind = find_method(name)
    torch.manual_seed(seed)
    net = net_of(kind)
    nets = NetFactory(net, SMALL_NETS[net], dims=dims, in_channels=1, num_classes=SPACE.num_classes)
    return kind(nets, build_settings(kind.Config, settings or {}, name))


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
    "prepare.spacing_mm": [14.0, 14.0, 14.0],
    "net.settings.width": 2,
    "sampling.patch_size": [32, 32, 16],
    "sampling.labelled_cases": 1,
    "sampling.incomplete_cases": 1,
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
