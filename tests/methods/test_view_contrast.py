"""Contrast of channels and of voxels against reference values, and their invariances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from labelwise.methods.dkuxnet.view_contrast import channel_contrast, channel_rows, voxel_contrast, voxel_rows


def tensors(golden, prefix: str) -> dict[str, Tensor]:
    arrays = golden("dkuxnet")
    return {
        key.removeprefix(prefix): torch.as_tensor(arrays[key]) for key in arrays if key.startswith(prefix)
    }


def test_channel_contrast_and_its_gradients_agree_with_the_reference(golden):
    given = tensors(golden, "cnce_")
    strong, weak = given["strong"].requires_grad_(), given["weak"].requires_grad_()
    where = given["valid"].bool()
    rows, anchors = channel_rows(strong, weak, where, temperature=0.1, smallest_mass=float(given["mass_min"]))
    torch.testing.assert_close(torch.where(anchors, rows, -1.0), given["rows"])
    loss = channel_contrast(strong, weak, where)
    torch.testing.assert_close(loss, given["loss"])
    dstrong, dweak = torch.autograd.grad(loss, (strong, weak))
    torch.testing.assert_close(dstrong, given["dstrong"])
    torch.testing.assert_close(dweak, given["dweak"])


@pytest.mark.parametrize("kind", ["segc", "qdc"])
@pytest.mark.parametrize(("name", "literal"), [("all", True), ("cross", False)])
def test_voxel_contrast_and_its_gradients_agree_with_the_reference(golden, kind, name, literal):
    given = tensors(golden, f"nce_{kind}_")
    strong, weak = given["strong"].requires_grad_(), given["weak"].requires_grad_()
    groups = given["group"].long()
    where = torch.ones_like(groups, dtype=torch.bool)
    rows, _ = voxel_rows(strong, weak, groups, where, temperature=0.1, same_group_repels=literal)
    torch.testing.assert_close(rows, given[f"rows_{name}"])
    loss = voxel_contrast(strong, weak, groups, where, same_group_repels=literal)
    torch.testing.assert_close(loss, given[f"loss_{name}"])
    dstrong, dweak = torch.autograd.grad(loss, (strong, weak))
    torch.testing.assert_close(dstrong, given[f"dstrong_{name}"])
    torch.testing.assert_close(dweak, given[f"dweak_{name}"])


def views(cases: int = 2, channels: int = 3, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, cases, channels, size, size, generator=generator) * 3
    strong, weak = logits.softmax(dim=2)
    return strong, weak


def test_two_equal_views_of_two_disjoint_channels_by_hand():
    maps = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # Each row: cosine 1 with its partner, 0 with the two others.
    expected = math.log(math.exp(10) + 2) - 10
    assert channel_contrast(maps, maps).item() == pytest.approx(expected, abs=1e-6)


def test_channels_may_be_permuted_and_scaled():
    strong, weak = views()
    loss = channel_contrast(strong, weak)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(channel_contrast(strong[:, order], weak[:, order]), loss)
    scale = torch.tensor([0.5, 2.0, 3.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(channel_contrast(strong * scale, weak), loss)


def test_voxels_outside_the_mask_change_nothing():
    strong, weak = views()
    longer = [torch.cat([view, torch.rand(2, 3, 3, 4)], dim=2) for view in (strong, weak)]
    where = torch.zeros(2, 7, 4, dtype=torch.bool)
    where[:, :4] = True
    torch.testing.assert_close(channel_contrast(*longer, where), channel_contrast(strong, weak))


def test_a_channel_that_is_absent_takes_no_part():
    strong, weak = views()
    empty = torch.zeros(2, 1, 4, 4)
    with_empty = channel_contrast(torch.cat([strong, empty], dim=1), torch.cat([weak, empty], dim=1))
    torch.testing.assert_close(with_empty, channel_contrast(strong, weak))


def test_contrast_is_never_negative_and_finite_for_a_single_voxel():
    for size in (1, 4):
        strong, weak = views(size=size)
        assert 0 <= channel_contrast(strong, weak) < math.inf
        rows = [view.movedim(1, -1).flatten(0, -2) for view in (strong, weak)]
        groups, where = torch.arange(len(rows[0])) % 2, torch.ones(len(rows[0]), dtype=torch.bool)
        for literal in (True, False):
            assert 0 <= voxel_contrast(*rows, groups, where, same_group_repels=literal) < math.inf


def test_nothing_to_compare_costs_nothing():
    strong, weak = views()
    strong.requires_grad_()
    loss = channel_contrast(strong, weak, torch.zeros(2, 4, 4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, strong)
    assert loss == 0
    assert gradient.abs().max() == 0
    rows = torch.rand(4, 3, requires_grad=True)
    loss = voxel_contrast(rows, rows, torch.zeros(4).long(), torch.zeros(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, rows)
    assert loss == 0
    assert gradient.abs().max() == 0


def test_voxels_of_one_group_do_not_push():
    rows = torch.rand(4, 3, requires_grad=True)
    loss = voxel_contrast(rows, torch.rand(4, 3), torch.ones(4).long(), torch.ones(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, rows)
    assert loss == 0
    assert gradient.abs().max() == 0


def test_half_precision_is_computed_in_float32():
    strong, weak = views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = channel_contrast(strong.bfloat16(), weak.bfloat16())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, channel_contrast(strong, weak), rtol=0.02, atol=0.02)
