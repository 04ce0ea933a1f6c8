"""Which checkpoints a training goes on from."""

from __future__ import annotations

import pytest
import torch

from labelwise.errors import CheckpointError
from labelwise.train.checkpoint import check_continues, save_checkpoint

BEFORE = {"augment": {"preset": "light", "noise": 0.1}, "steps": [4]}


@pytest.fixture
def checkpoint(tmp_path):
    network = torch.nn.Linear(1, 1)
    save_checkpoint(tmp_path / "last.safetensors", network, [], {"settings": BEFORE})
    return tmp_path / "last.safetensors"


@pytest.mark.parametrize("off", [0.0, False, None, "", []])
def test_a_setting_that_is_new_and_off_changes_nothing(checkpoint, off):
    check_continues(checkpoint, {**BEFORE, "augment": {**BEFORE["augment"], "on_side": off}})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"on_side": 0.2}, "augment.on_side = 0.2"),  # new and on
        ({"noise": 0.0}, "augment.noise = 0.1"),  # known, and off now
    ],
)
def test_what_changes_the_training_is_refused(checkpoint, changed, named):
    with pytest.raises(CheckpointError, match=named):
        check_continues(checkpoint, {**BEFORE, "augment": {**BEFORE["augment"], **changed}})


def test_a_setting_that_is_gone_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match=r"augment\.noise = 0\.1"):
        check_continues(checkpoint, {"augment": {"preset": "light"}, "steps": [4]})
