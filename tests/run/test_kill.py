"""A run that is killed in the middle of a checkpoint goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from conftest import tiny_config
from labelwise import run
from labelwise.formats.tensors import load_header, load_tensors
from labelwise.train.record import read_log

KILLED_IN_ITS_SECOND_CHECKPOINT = """
import os, signal, sys
from labelwise import load_config, run
from labelwise.formats import tensors

save_file, count = tensors.save_file, 0

def killed_half_way(values, path, metadata):
    global count
    count += 1
    save_file(values, path, metadata)
    if count == 2:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

tensors.save_file = killed_half_way
if __name__ == "__main__":
    run.train(load_config(sys.argv[1]), sys.argv[2])
"""


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_log(folder / "log.jsonl") if "loss" in event]


def test_a_run_killed_while_it_saves_resumes_bit_equal(tiny_cohort, tmp_path):
    config = tiny_config(tiny_cohort, "mean_teacher", train__checkpoint_minutes=1e-9)
    (tmp_path / "recipe.toml").write_text(config.to_toml(), encoding="utf-8")
    (tmp_path / "driver.py").write_text(KILLED_IN_ITS_SECOND_CHECKPOINT)
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    ended = subprocess.run([sys.executable, tmp_path / "driver.py", tmp_path / "recipe.toml", killed])
    assert ended.returncode == -signal.SIGKILL
    assert load_header(killed / "last.safetensors")["facts"]["step"] == 1
    assert [step for step, _ in losses(killed)] == [1, 2]  # the log is ahead of the checkpoint
    assert [path.name[13:] for path in killed.glob(".?*.?*")] == [".last.safetensors"]

    assert run.train(config, killed).steps == 4
    run.train(config, whole)
    assert losses(killed) == losses(whole)
    for name in ("last.safetensors", "model/weights.safetensors"):
        first, second = (load_tensors(folder / name)[0] for folder in (killed, whole))
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first)
    assert not list(killed.glob(".*"))
