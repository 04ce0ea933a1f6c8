"""What a run says about the place where it was made."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from labelwise.run import environment

COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "-m", "first")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with one commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    for arguments in (("init", "--quiet"), COMMIT):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def commit_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The commit that a package in this folder would name."""
    (package / "run").mkdir(parents=True)
    monkeypatch.setattr(environment, "__file__", str(package / "run" / "environment.py"))
    return environment.environment()["commit"]


def test_a_package_in_its_own_checkout_names_the_commit(checkout, monkeypatch):
    ended = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True)
    assert commit_of(checkout / "src" / "labelwise", monkeypatch) == ended.stdout.strip()


@pytest.mark.parametrize("place", [".venv/lib/site-packages/labelwise", "vendor/src/labelwise", "labelwise"])
def test_a_package_within_the_checkout_of_another_project_names_none(checkout, monkeypatch, place):
    assert commit_of(checkout / place, monkeypatch) is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout / "src" / "labelwise", monkeypatch) is None


def test_the_environment_is_plain_values_without_the_name_of_a_folder():
    text = json.dumps(environment.environment())
    assert json.loads(text)["versions"]["torch"]
    assert str(Path.home()) not in text
