"""What the command line says about itself: version, help, completion, recipes, extras."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import labelwise
from labelwise import load_config
from labelwise.cli.main import app
from labelwise.config import shipped_recipes
from labelwise.errors import ConfigError
from labelwise.run import doctor as doctor_verb
from labelwise.run.doctor import DEVELOPMENT, extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERBS = sorted(info.name for info in app.registered_commands)


def test_the_version_is_said_and_nothing_else(command):
    answer = command("--version")
    assert (answer.code, answer.out) == (0, f"labelwise {labelwise.__version__}\n")


def test_the_package_can_be_run_as_a_module():
    answer = subprocess.run(
        [sys.executable, "-m", "labelwise", "--version"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout) == (0, f"labelwise {labelwise.__version__}\n")


def test_h_is_help_everywhere(command):
    assert command("-h").out == command("--help").out
    for verb in VERBS:
        short, long = command(verb, "-h"), command(verb, "--help")
        assert short.code == 0
        assert short.out == long.out


def test_the_help_lists_every_verb_once_under_a_heading(command):
    text = command("--help").out
    sections = re.split(r"^(\w+):\n", text, flags=re.MULTILINE)
    listed = dict(zip(sections[1::2], sections[2::2], strict=True))
    verbs = {
        heading: re.findall(r"^  (\w+) ", body, re.MULTILINE)
        for heading, body in listed.items()
        if heading not in ("Options", "Usage")
    }
    assert list(verbs) == ["Data", "Training", "Results", "About"]
    assert sorted(verb for names in verbs.values() for verb in names) == VERBS
    assert "import" in verbs["Data"]
    assert "train" in verbs["Training"]
    assert "predict" in verbs["Results"]
    assert "doctor" in verbs["About"]
    assert not any("..." in listed[heading] for heading in verbs)  # each verb is told by a whole sentence


def test_the_list_of_recipes_tells_each_by_a_whole_sentence(command):
    for row in json.loads(command("recipes", "--json").out):
        assert row["title"].endswith((".", ":")), row
        assert "labelwise train" not in row["title"], row


@pytest.mark.parametrize(
    ("verb", "example"),
    [
        ("train", "train.steps"),
        ("predict", "overlap"),
        ("simulate", "n=8"),
        ("prepare", "prepare.spacing_mm"),
    ],
)
def test_the_help_of_set_speaks_of_the_verb(command, verb, example):
    words = " ".join(command(verb, "--help").out.split())
    assert example in words[words.index("--set") :]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("labelwise pre", ["predict", "prepare"]), ("labelwise predict --over", ["--overwrite"])],
)
def test_a_shell_can_complete_verbs_and_options(typed, offered):
    asked = {"_LABELWISE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    answer = subprocess.run(
        [sys.executable, "-m", "labelwise"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(answer.stdout.split()) == offered


# recipes


def test_every_recipe_is_listed_with_its_title(command):
    rows = json.loads(command("recipes", "--json").out)
    names = {
        path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
        for path in ROOT.glob("recipes/**/*.toml")
    }
    assert {row["name"] for row in rows} == names
    assert all(row["title"] for row in rows)
    assert "la2018/bcp" in command("recipes").out


@pytest.mark.parametrize(
    "name", ["la2018/bcp", "la2018/bcp.toml", "recipes/la2018/bcp", "recipes/la2018/bcp.toml"]
)
def test_a_recipe_is_reached_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base in ("fixed", "plan"):
        file = ROOT / "recipes" / "la2018" / "bcp.toml"
        assert load_config(name, data="x", base=base) == load_config(file, data="x", base=base)


def test_a_file_of_ones_own_is_stronger_than_a_recipe_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "la2018").mkdir()
    (tmp_path / "la2018" / "bcp.toml").write_text("seed = 77")
    assert load_config("la2018/bcp.toml").seed == 77


def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'la2018/bcp'"):
        load_config("la2018/bpc")
    assert len(shipped_recipes()) > 30


# doctor


def test_doctor_knows_every_extra_and_what_is_missing(monkeypatch):
    wanted = set(PROJECT["optional-dependencies"]) - set(DEVELOPMENT)
    assert set(extras()) == wanted
    module = sys.modules[doctor_verb.__module__]
    monkeypatch.setattr(module, "extras", lambda: {"mine": ("numpy", "no-such-package"), "fast": ("numpy",)})
    for slow in ("_convolution_ms", "_matrices_gflops", "_step_ms"):
        monkeypatch.setattr(module, slow, lambda *_: 1.0)
    monkeypatch.setattr(module, "_disk", lambda: (100.0, 2.0))
    facts = doctor_verb()
    assert facts["limit"].startswith("the disk")  # two patches take 4 ms, a step 1 ms
    assert facts["extra mine"] == "missing: no-such-package"
    assert facts["extra fast"] is True
