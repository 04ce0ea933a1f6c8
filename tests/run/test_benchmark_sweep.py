"""The sweeps of `benchmarks` are made of the parts of the verb, and go on with run folders that they find."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from labelwise.config import load_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("sweep")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    written = {}
    monkeypatch.setattr(module, "write_result", lambda name, facts: written.update({name: facts}))
    return module, written


@pytest.mark.usefixtures("one_process")
def test_a_table_is_trained_once_and_collected_from_its_run_folders(
    sweep, tiny_run, tiny_cohort, tmp_path, monkeypatch
):
    module, written = sweep
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(load_config(tiny_run / "run.toml").to_toml())
    rows = {
        "good": module.Row(recipe, "complete", {"train.steps": [2]}),
        "bad": module.Row(recipe, "complete", {"train.steps": [2, 2]}),  # two stages, of a method of one
    }
    table = module.Sweep(
        "table", rows, {"scores": {"unit": "voxels", "variant": "default"}}, {"data": "tiny"}, {},
        make_complete=lambda folder: None,
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "complete").symlink_to(tiny_cohort)
    monkeypatch.setattr(sys, "argv", ["table", "--work", str(tmp_path / "work"), "--seeds", "0"])
    with pytest.raises(SystemExit, match="failed: bad_seed0"):
        table.main("A table.")
    result = tmp_path / "work" / "good_seed0" / "result.json"
    found = json.loads(result.read_text())
    assert found["scores"]["scores"]["dice"].keys() == {"liver", "spleen", "pancreas", "kidneys", module.MEAN}
    assert [one["name"] for one in written["table"]["runs"]] == ["good"]
    assert written["table"]["rows"]["good"]["scores"]["dice"]["seeds"] == 1
    before = result.stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "good"])
    table.main("A table.")
    assert result.stat().st_mtime_ns == before, "a finished run was repeated"
