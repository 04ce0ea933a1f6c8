"""A package outside of this tree: one method, one network and one loss, typed, trained and held to the contract."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import labelwise
from conftest import TINY_SETTINGS
from labelwise import load_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "own-package.md"
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
    names: tuple[str, ...] = read_manifest(folder).label_space.structures
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
    """The package as the page writes it, and a module that uses all that is public."""
    folder = tmp_path_factory.mktemp("sharp-labels")
    written = r"^`([\w./]+)`(?:(?!```).)*?```\w+\n(.*?)```"  # a file, words about it, and its text
    blocks = re.findall(written, PAGE.read_text("utf-8"), re.M | re.S)
    files = dict(blocks) | {f"sharp_labels/{name}": "" for name in ("__init__.py", "py.typed")}
    assert {"pyproject.toml", "tests/test_contract.py", "sharp_labels/method.py"} < set(files)
    for name, text in (files | {"sharp_labels/use.py": USE}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
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


def commands() -> list[list[str]]:
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return [shlex.split(line) for line in block[1].splitlines()]


def test_the_page_is_followed_from_installing_the_package_to_scores(
    on_the_path, tiny_cohort, tmp_path, command, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("my_data").symlink_to(tiny_cohort)
    small = [
        word
        for name, value in TINY_SETTINGS.items() if not name.startswith("net.")
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]  # fmt: skip
    walked = []
    for program, verb, *words in commands():
        walked.append(f"{program} {verb}")
        if program == "labelwise":  # the wheel is on the path already; its tests are run below
            answer = command(verb, *words, *(small if verb == "train" else ()))
            assert answer.code == 0, answer.err
            if verb == "methods":
                assert "sharp" in answer.out
    assert walked == [
        "pip install", "pytest sharp-labels/tests",
        *(f"labelwise {verb}" for verb in ("methods", "train", "predict", "evaluate")),
    ]  # fmt: skip
    log = [json.loads(line) for line in Path("runs/sharp/log.jsonl").read_text().splitlines()]
    assert {"supervised", "undecided"} <= set(log[0]["terms"])
    assert len([*Path("runs/sharp/predictions").glob("*.nii.gz")]) == 2
    assert Path("runs/sharp/scores.csv").is_file()
    model = load_model(Path("runs/sharp"), "cpu")
    assert (model.info.method, model.info.net["name"]) == ("sharp", "two_scales")
    refused = command(
        "train", "--data", "my_data", "--method", "sharp", "-o", "runs/b", "--set", "method.settings.wieght=1"
    )
    assert refused.code == 2
    assert "weight" in refused.err


def test_its_own_tests_pass(on_the_path, source):
    module = runpy.run_path(str(source / "tests" / "test_contract.py"))
    tests = [test for name, test in module.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


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
