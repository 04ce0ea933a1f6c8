"""A package outside of this tree: one method, one network and one loss, typed, trained and held to the contract."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import labelwise
from conftest import TINY_SETTINGS
from labelwise import load_config, load_model, run
from labelwise.testing import check_method, check_network

ROOT = Path(__file__).parents[1]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sharp-labels"
version = "2.3"
dependencies = ["labelwise"]

[project.entry-points."labelwise.methods"]
sharp = "sharp_labels.method:Sharp"

[project.entry-points."labelwise.networks"]
two_scales = "sharp_labels.network:TwoScales"

[tool.hatch.build.targets.wheel]
packages = ["sharp_labels"]
"""
LOSS = '''
"""One loss: how undecided the network is where the labels leave something open."""

from torch import Tensor

from labelwise.losses import masked_mean, open_voxels


def gini_impurity(probabilities: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """1 - sum of the squared probabilities (B, C, *S), mean over open voxels."""
    return masked_mean(1 - probabilities.square().sum(dim=1), open_voxels(labels, annotated))
'''
METHOD = '''
"""One method: labels, and decided answers elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from labelwise import Batch, Card, Method, NetFactory, Progress, Softmax
from labelwise.components import Decay, EmaTeacher
from labelwise.losses import supervised
from sharp_labels.loss import gini_impurity


@dataclass(frozen=True)
class SharpConfig:
    weight: float = 0.1


class Sharp(Method):
    card = Card("Sharp labels", "", "Answers must be decided.", frozenset({"full", "partial", "none"}))
    Config = SharpConfig

    def __init__(self, nets: NetFactory, config: SharpConfig) -> None:
        super().__init__()
        self.config = config
        self.network = nets.network()
        self.average = EmaTeacher(self.network, self.decays(config)["decay"])

    @classmethod
    def decays(cls, config: Any) -> Mapping[str, Decay]:
        return {"decay": Decay(half_life=0.01, warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        logits = self.network(batch.images)
        undecided = gini_impurity(logits.softmax(dim=1), batch.labels, batch.annotated)
        return {
            "supervised": supervised(logits, batch.labels, batch.annotated),
            "undecided": self.config.weight * undecided,
        }

    def after_step(self, progress: Progress) -> None:
        self.average.follow(self.network, progress)

    def predictor(self) -> nn.Module:
        return Softmax(self.average.network)
'''
NETWORK = '''
"""One network: two scales and a skip."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labelwise.nets import Blueprint, Decoder, Encoder, Head, Upsampling, brick, normalisation


@dataclass(frozen=True)
class TwoScalesSettings:
    width: int = 8


def block(dims: int, before: int, after: int, stride: int = 1) -> nn.Module:
    convolution: nn.Module = brick("convolution", dims)(before, after, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, normalisation("group", dims, after), nn.LeakyReLU())


class TwoScales(Blueprint):
    Settings = TwoScalesSettings

    def __init__(self, settings: TwoScalesSettings, dims: int, in_channels: int) -> None:
        self.dims, self.width, self.in_channels = dims, settings.width, in_channels

    @property
    def stride(self) -> int:
        return 2

    def encoder(self) -> Encoder:
        fine = block(self.dims, self.in_channels, self.width)
        coarse = block(self.dims, self.width, 2 * self.width, stride=2)
        return Encoder([fine, coarse], (self.width, 2 * self.width))

    def decoder(self, upsampling: Upsampling | None = None) -> Decoder:
        return Up(self.dims, self.width)

    def head(self, in_channels: int, out_channels: int) -> nn.Module:
        return Head(self.dims, in_channels, out_channels)


class Up(Decoder):
    def __init__(self, dims: int, width: int) -> None:
        super().__init__([], (2 * width, width))
        self.up: nn.Module = brick("transposed", dims)(2 * width, width, 2, stride=2)
        self.join = block(dims, 2 * width, width)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        fine, coarse = features
        joined: Tensor = self.join(torch.cat([fine, self.up(coarse)], dim=1))
        return [coarse, joined]
'''
USE = '''
"""What a user of the package writes: everything public has a type."""

from pathlib import Path

import numpy as np
from sharp_labels.method import Sharp
from sharp_labels.network import TwoScales

from labelwise import Model, Volume, load_config, load_model, metrics, read_manifest, run
from labelwise.formats import read_image, read_labels, write_labels
from labelwise.testing import check_method, check_network


def segment(folder: Path, scan: Path) -> float:
    model: Model = load_model(folder)
    labels: Volume = model.predict(scan)
    scores: Volume = model.predict_scores(np.zeros((8, 8, 8)), spacing_mm=(1.0, 1.0, 1.0))
    write_labels(Path("labels.nii.gz"), labels, like=scan, names=model.label_space.names)
    reference = read_labels(scan)
    liver = model.label_space.index("liver")
    names: tuple[str, ...] = read_manifest(folder).label_space.organs
    print(scores.spacing_mm, names, read_image([scan]).shape)
    return metrics.dice(labels.data == liver, reference.data == liver)


def train(data: str) -> int:
    check_method(Sharp, settings={"weight": 0.2}, net="two_scales")
    check_network(TwoScales)
    return run.train(load_config("recipe.toml", data=data), "runs/first").steps
'''
MISUSE = {
    'run.train("recipe.toml", "runs/first")': "arg-type",
    "load_model(3)": "arg-type",
    "load_model('x').predict('scan.nii.gz').dat": "attr-defined",
    "metrics.dice(1)": "call-arg",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The package as its author has it."""
    folder = tmp_path_factory.mktemp("sharp-labels")
    (folder / "pyproject.toml").write_text(PROJECT)
    package = folder / "sharp_labels"
    package.mkdir()
    modules = {"__init__": "", "loss": LOSS, "method": METHOD, "network": NETWORK, "use": USE, "py": ""}
    for name, text in modules.items():
        (package / (f"{name}.py" if name != "py" else "py.typed")).write_text(text)
    return folder


def build(folder: Path, target: Path) -> Path:
    """The wheel of a project, built as pip would, without asking anybody for anything."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    """The package in a folder on the path, with its metadata."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(build(source, tmp_path_factory.mktemp("wheel"))) as wheel:
        wheel.extractall(target)
    return target


@pytest.fixture
def on_the_path(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    assert distribution("sharp-labels").version == "2.3"
    yield
    for name in [name for name in sys.modules if name.startswith("sharp_labels")]:
        del sys.modules[name]


def test_its_method_with_its_network_and_its_loss_is_trained_and_predicts(on_the_path, tiny_cohort, tmp_path):
    settings = {key: value for key, value in TINY_SETTINGS.items() if not key.startswith("net.")}
    config = load_config(
        None, settings, data=str(tiny_cohort),
        method={"name": "sharp", "settings": {"weight": 0.5}}, net={"name": "two_scales", "settings": {"width": 4}},
    )  # fmt: skip
    assert run.train(config, tmp_path / "run").steps == 4
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {"supervised", "undecided"} <= set(log[0]["terms"])
    predicted = run.predict(tmp_path / "run", tiny_cohort, tmp_path / "out", device="cpu")
    assert len(predicted.written) == 2
    model = load_model(tmp_path / "run", "cpu")
    assert (model.info.method, model.info.net["name"]) == ("sharp", "two_scales")
    assert "sharp" in {row["name"] for row in run.methods()}


def test_it_keeps_the_contract(on_the_path):
    method = importlib.import_module("sharp_labels.method").Sharp
    check_method(method, net="two_scales", net_settings={"width": 4})
    check_network(importlib.import_module("sharp_labels.network").TwoScales, settings={"width": 4})


def typed(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """mypy as strict as it can be, with this package as an installed one: typed, and its own lines not judged."""
    config = path.parent / "mypy.ini"
    home = Path(labelwise.__file__).parents[1]
    config.write_text(
        f"[mypy]\nstrict = true\nmypy_path = {home}:{path}\nexplicit_package_bases = true\n"
        "[mypy-labelwise.*]\nfollow_imports = silent\n"
    )
    cache = ROOT / ".mypy_cache_of_tests"
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(cache), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_it_is_typed_under_mypy_strict_and_wrong_use_is_found(installed, tmp_path):
    right = typed("-p", "sharp_labels", path=installed)
    assert right.returncode == 0, right.stdout
    lines = ["from labelwise import load_model, metrics, run", *MISUSE]
    (tmp_path / "misuse.py").write_text("\n".join(lines) + "\n")
    wrong = typed(str(tmp_path / "misuse.py"), path=installed)
    for number, code in enumerate(MISUSE.values(), start=2):
        assert f"misuse.py:{number}: error" in wrong.stdout, wrong.stdout
        assert f"[{code}]" in wrong.stdout


def test_the_wheel_holds_types_stubs_recipes_and_the_command(tmp_path):
    with zipfile.ZipFile(build(ROOT, tmp_path)) as wheel:
        names = set(wheel.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "labelwise = labelwise.cli.main:main" in wheel.read(points).decode()
    package = Path(labelwise.__file__).parent
    for file in package.rglob("*"):
        if file.suffix in (".py", ".pyi", ".csv", ".typed") or file.name == "py.typed":
            assert f"labelwise/{file.relative_to(package).as_posix()}" in names
    for recipe in (ROOT / "recipes").rglob("*.toml"):
        assert f"labelwise/recipes/{recipe.relative_to(ROOT / 'recipes').as_posix()}" in names
