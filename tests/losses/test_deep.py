"""Deep supervision: which voxels a coarser scale learns from, and how much it weighs."""

from __future__ import annotations

import pytest
import torch

from labelwise.losses.deep import at_all_scales
from labelwise.nets.factory import NetFactory


def test_a_single_scale_is_the_plain_loss():
    logits, labels = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4)
    found = at_all_scales([logits], (labels,), lambda z, y: (z.mean() - y.mean()) ** 2)
    assert found.item() == pytest.approx(logits.mean().item() ** 2)


def test_each_coarser_scale_weighs_half_of_the_one_before():
    scales = [torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 4, 4), torch.full((1, 2, 2, 2), 2.0)]
    found = at_all_scales(scales, (), lambda z: z.mean())
    assert found.item() == pytest.approx((0.5 * 1 + 0.25 * 2) / 1.75)


def test_targets_are_read_at_the_voxels_of_the_coarser_grid_whatever_the_stride_of_an_axis():
    seen = []
    labels = torch.arange(32).view(1, 4, 4, 2)
    known = torch.stack([labels, -labels], dim=1)
    row = torch.tensor([[True, False]])
    scales = [torch.zeros(1, 2, 4, 4, 2), torch.zeros(1, 2, 2, 2, 2)]
    at_all_scales(scales, (labels, known, row), lambda z, *targets: seen.append(targets) or z.sum())
    assert torch.equal(seen[1][0], labels[:, ::2, ::2])
    assert torch.equal(seen[1][1], known[:, :, ::2, ::2])
    assert torch.equal(seen[1][2], row)


def test_a_network_with_deep_supervision_gives_logits_at_every_scale_of_its_decoder():
    settings = {"width": 2, "blocks": (1, 1, 1), "deep_supervision": True}
    network = NetFactory("residual_unet", settings, dims=2, in_channels=1, num_classes=3).network()
    images = torch.randn(1, 1, 16, 8)
    scales = network.at_all_scales(images)
    assert [tuple(scale.shape) for scale in scales] == [(1, 3, 16, 8), (1, 3, 8, 4)]
    assert torch.equal(scales[0], network(images))
