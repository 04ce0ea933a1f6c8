"""How many processes there are, and who says so."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from labelwise.errors import ConfigError, ResourceError, TrainingError
from labelwise.train.distributed import (
    DeviceConfig,
    connect,
    lost_rank_explained,
    mean_over_ranks,
    precision_of,
    use_precision,
)

# What srun and torchrun set for four processes on two machines.
SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "2"}
TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}


@pytest.fixture
def asked(monkeypatch):
    """What Fabric is asked for; nothing is started."""
    arguments = {}

    class Asked:
        global_rank = 0

        def __init__(self, **given):
            arguments.update(given)

        def launch(self):
            pass

    monkeypatch.setattr("labelwise.train.distributed.Fabric", Asked)
    return arguments


def test_one_process_needs_no_strategy(asked):
    connect(DeviceConfig(device="cpu", precision="bf16"))
    assert asked == {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed",
    }  # fmt: skip


def test_several_processes_are_started(asked):
    connect(DeviceConfig(device="cpu", processes=3, precision="float32"))
    assert (asked["devices"], asked["num_nodes"], asked["precision"]) == (3, 1, "32-true")
    assert asked["strategy"] != "auto"


@pytest.mark.parametrize("idle", [False, True])
def test_ranks_look_for_weights_without_a_gradient_only_where_there_are_some(asked, idle):
    connect(DeviceConfig(device="cpu", processes=2, precision="float32"), idle_weights=idle)
    assert asked["strategy"]._ddp_kwargs["find_unused_parameters"] is idle


def test_a_weight_without_a_gradient_that_nobody_declared_is_explained(tmp_path):
    fabric = SimpleNamespace(world_size=2, global_rank=0)
    with (
        pytest.raises(TrainingError, match=r"some weights had no gradient(?s:.*)idle_weights=True"),
        lost_rank_explained(fabric, tmp_path / "last.safetensors"),
    ):
        raise RuntimeError("Expected to have finished reduction in the prior iteration before ...")


def test_torchrun_says_how_many(asked, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    connect(DeviceConfig(device="cpu"))
    assert (asked["devices"], asked["num_nodes"]) == (2, 2)


def test_slurm_says_on_how_many_machines(asked, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    connect(DeviceConfig(device="cpu", processes=2))
    assert (asked["devices"], asked["num_nodes"]) == (2, 2)


def test_a_numbered_device_is_for_one_process(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    connect(DeviceConfig(device="cuda:1", precision="float32"))
    assert asked["devices"] == [1]
    with pytest.raises(ConfigError, match="2 processes cannot share the device"):
        connect(DeviceConfig(device="cuda:1", processes=2, precision="float32"))


def test_all_processes_share_the_numbered_cpu(asked):
    connect(DeviceConfig(device="cpu:0", processes=2))
    assert (asked["accelerator"], asked["devices"]) == ("cpu", 2)


def test_more_processes_than_gpus_are_refused(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ResourceError, match="3 processes need a device each"):
        connect(DeviceConfig(device="cuda", processes=3, precision="float32"))
    connect(DeviceConfig(device="cuda", processes=2, precision="float32"))
    assert asked["devices"] == 2


def test_a_device_that_is_not_there_is_refused(asked):
    with pytest.raises(ResourceError, match="device 'npu' is not available"):
        connect(DeviceConfig(device="npu"))


def test_the_precision_can_follow_from_what_was_measured_after_the_start():
    fabric = connect(DeviceConfig(device="cpu", precision="float32"))
    layer = torch.nn.Linear(3, 3)
    for precision, inside in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        use_precision(fabric, precision)
        assert precision_of(fabric) == precision
        with fabric.autocast():
            assert layer(torch.ones(1, 3)).dtype == inside
        told = Told()
        fabric.setup(torch.nn.Sequential(layer, told))(torch.ones(1, 3))
        assert told.dtype == inside


class Told(torch.nn.Module):
    """Remembers in which type it was given something."""

    def forward(self, images):
        self.dtype = images.dtype
        return images


def test_the_mean_over_one_rank_is_the_value():
    fabric = connect(DeviceConfig(device="cpu", precision="float32"))
    value = torch.tensor(3.0)
    assert mean_over_ranks(fabric, value) is value


def test_a_machine_on_which_srun_is_installed_is_like_any_other(asked, monkeypatch, tmp_path):
    """The hint of Lightning there would be an error here."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    connect(DeviceConfig(device="cpu"))
    assert asked["devices"] == 1
