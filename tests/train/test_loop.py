"""The loop with a toy method: resuming, stopping, diverging, and what is written."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import make_batch
from labelwise.devices import choose_device
from labelwise.errors import CheckpointError, ResourceError, TrainingError
from labelwise.formats.tensors import load_tensors
from labelwise.losses.partial import supervised
from labelwise.methods.base import Card, Method, Softmax
from labelwise.train.distribute import DeviceConfig, connect
from labelwise.train.loop import LoopConfig, Stage, fit, step_seed
from labelwise.train.record import read_log
from labelwise.train.schedule import OptimizerConfig


class Toy(Method):
    """One convolution with dropout (so that random numbers matter) and a counter that only after_step moves."""

    card = Card("Toy", "", "A toy.", frozenset({"full"}))
    Config = dict

    def __init__(self, blow_up_at: int = 10**9):
        super().__init__()
        torch.manual_seed(7)
        self.network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Dropout3d(0.5), nn.Conv3d(8, 4, 1))
        self.blow_up_at = blow_up_at
        self.register_buffer("moved", torch.zeros(()))

    def forward(self, batch, progress):
        loss = supervised(self.network(batch.images), batch.labels, batch.annotated)
        return {"supervised": loss / (0 if progress.step >= self.blow_up_at else 1)}

    def after_step(self, progress):
        self.moved += 1

    def predictor(self):
        return Softmax(self.network)


def forever(start):
    return (make_batch("full", "partial", seed=step, size=8) for step in itertools.count(start))


CONFIG = LoopConfig(steps=(6,), log_every=2, optimizer=OptimizerConfig(rate=0.05))
PRECISE = DeviceConfig(device="cpu", precision="float32")


def quiet(done, total, message):
    pass


def stage(folder, **changes):
    return replace(
        Stage(method=Toy(), batches=forever, steps=6, folder=folder, settings={"rate": 0.05}, seed=3),
        **changes,
    )


def state(method):
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_is_equal_to_an_uninterrupted_one(tmp_path, optimizer, precision):
    config = replace(CONFIG, optimizer=OptimizerConfig(name=optimizer, rate=0.01))
    fabric = connect(replace(PRECISE, precision=precision))
    whole = stage(tmp_path / "whole")
    fit(whole, config, fabric, quiet)

    first = stage(tmp_path / "parts")
    calls = []

    def stop_soon(done, total, message):
        calls.append(done)
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    result = fit(first, config, fabric, stop_soon)
    assert result.interrupted
    assert result.step == 2
    second = stage(tmp_path / "parts")
    result = fit(second, config, fabric, quiet)
    assert not result.interrupted
    assert_equal_states(state(whole.method), state(second.method))
    assert second.method.moved == 6
    whole_log, parts_log = (
        [(event["step"], event["loss"]) for event in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "parts")
    )
    assert whole_log == parts_log


def test_a_finished_run_is_not_trained_again(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    before = (tmp_path / "log.jsonl").read_bytes()
    result = fit(stage(tmp_path, batches=lambda start: iter(())), CONFIG, fabric, quiet)
    assert result.step == 6
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_named(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    with pytest.raises(CheckpointError, match=r"rate = 0\.05"):
        fit(stage(tmp_path, settings={"rate": 0.1}), CONFIG, fabric, quiet)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    fabric = connect(PRECISE)
    config = replace(CONFIG, steps=(20,), checkpoint_minutes=1e-9)
    with pytest.raises(TrainingError, match="term supervised") as caught:
        fit(stage(tmp_path, method=Toy(blow_up_at=9), steps=20), config, fabric, quiet)
    assert "clip_gradient" in str(caught.value)
    tensors, header = load_tensors(tmp_path / "last.safetensors")
    assert header["facts"]["step"] <= 9
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_best_validation_is_kept(tmp_path):
    scores = iter([0.2, 0.7, 0.4])
    result = fit(
        stage(tmp_path, validate=lambda predictor: next(scores)),
        replace(CONFIG, validate_every=2),
        connect(PRECISE),
        quiet,
    )
    assert (result.best_score, result.best_step) == (0.7, 4)
    _, header = load_tensors(tmp_path / "best.safetensors")
    assert header["facts"]["step"] == 4
    assert [e["score"] for e in read_log(tmp_path / "log.jsonl") if e["event"] == "validation"] == [
        0.2,
        0.7,
        0.4,
    ]


def test_validation_does_not_change_the_training(tmp_path):
    def validate(predictor):
        torch.rand(100)
        with torch.no_grad():
            return float(predictor(make_batch("full", size=8).images).mean())

    fabric = connect(PRECISE)
    plain, validated = stage(tmp_path / "a"), stage(tmp_path / "b", validate=validate)
    fit(plain, CONFIG, fabric, quiet)
    fit(validated, replace(CONFIG, validate_every=1), fabric, quiet)
    assert_equal_states(state(plain.method), state(validated.method))


def test_a_damaged_checkpoint_is_named(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    file = tmp_path / "last.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        fit(stage(tmp_path), CONFIG, fabric, quiet)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    fabric = connect(PRECISE)
    fit(stage(tmp_path, steps=2), replace(CONFIG, steps=(2,)), fabric, quiet)
    before = (tmp_path / "last.safetensors").read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelwise.formats.tensors.save_file", full)
    with pytest.raises(ResourceError, match="disk is full"):
        fit(stage(tmp_path), CONFIG, fabric, quiet)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors", "log.jsonl"]


def test_a_log_line_cut_off_by_a_kill_is_dropped(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 2, "event": "train"}\n{"step": 4, "ev')
    assert read_log(file) == [{"step": 2, "event": "train"}]


def test_gradient_clipping_changes_the_result(tmp_path):
    fabric = connect(PRECISE)
    plain, clipped = stage(tmp_path / "a"), stage(tmp_path / "b")
    fit(plain, CONFIG, fabric, quiet)
    fit(clipped, replace(CONFIG, clip_gradient=1e-4), fabric, quiet)
    assert not torch.equal(plain.method.network[0].weight, clipped.method.network[0].weight)


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="auto"):
            choose_device("cuda")
    with pytest.raises(ResourceError):
        choose_device("tpu")


def test_step_seeds_differ_in_every_argument():
    seeds = {step_seed(s, g, t, r) for s in range(3) for g in range(2) for t in range(50) for r in range(4)}
    assert len(seeds) == 3 * 2 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
