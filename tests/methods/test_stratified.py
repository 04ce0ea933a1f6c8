"""Stratified and antithetic drawing: layout, shares, bias and variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.methods.arco.stratified import Raster, Space, allocate, draw, voxel_of

SIZES = (1, 3, 10, 29, 90, 100, 110)


def raster(*sizes, grid=4):
    return Raster(torch.tensor(sizes).unsqueeze(1), grid)


def cell_of(layout, candidate):
    """Numbers in the order (G, n) -> their cells (G, n)."""
    side, per_side = layout.side, layout.per_side
    row = (candidate // side // (side // per_side)).minimum(per_side - 1)
    column = (candidate % side // (side // per_side)).minimum(per_side - 1)
    return row * per_side + column


def means(values, *, grid=4, **options):
    """Means of 64 drawn values, 2000 times: each time is a group of its own."""
    torch.manual_seed(0)
    layout = raster(*[len(values)] * 2000, grid=grid)
    return values[draw(layout, 64, **options)].mean(dim=1)


@pytest.mark.parametrize("size", SIZES)
def test_cells_shares_and_mirror_images_agree_with_the_definition(golden, size):
    arrays, layout = golden("arco"), raster(size)
    candidate = torch.arange(size).unsqueeze(0)
    cell = cell_of(layout, candidate)
    assert cell[0].tolist() == arrays[f"sg_cell_{size}"].tolist()
    expected = arrays[f"sg_alloc64_{size}"].tolist()
    assert allocate(layout.counts, 64)[0].tolist() == expected + [0] * (16 - len(expected))
    mirrored, inside = layout.mirror(cell, candidate)
    assert mirrored.where(inside, -1)[0].tolist() == arrays[f"sag_reflect_{size}"].tolist()


def test_all_groups_at_once_give_what_each_gives_alone():
    together = raster(*SIZES)
    assert together.counts.tolist() == [raster(size).counts[0].tolist() for size in SIZES]
    assert together.counts.sum(dim=1).tolist() == list(SIZES)


def test_the_side_is_exact_for_millions_of_candidates():
    sizes = [root**2 + more for root in (2900, 4000) for more in (-1, 0, 1)]
    assert raster(*sizes).side.flatten().tolist() == [int(np.ceil(np.sqrt(size))) for size in sizes]


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("size", [1, 2, 17, 29, 100, 1000])
def test_every_draw_is_a_candidate_and_every_cell_gets_its_share(size, antithetic):
    layout = raster(size)
    torch.manual_seed(0)
    chosen = draw(layout, 500, antithetic=antithetic)
    assert chosen.min() >= 0
    assert chosen.max() < size
    drawn = torch.bincount(cell_of(layout, chosen)[0], minlength=16)
    assert drawn.tolist() == allocate(layout.counts, 500)[0].tolist()


def test_every_candidate_is_drawn_about_equally_often():
    # The official code never draws candidates above 15 of 29.
    torch.manual_seed(0)
    counts = torch.bincount(draw(raster(29), 29_000)[0], minlength=29)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_half_of_the_antithetic_draws_are_mirror_images():
    layout = raster(1024)
    torch.manual_seed(0)
    chosen = draw(layout, 64, antithetic=True)
    cells = cell_of(layout, chosen)
    mirrored, inside = layout.mirror(cells, chosen)
    assert inside.all()
    first, second = chosen.view(16, 2, 2).unbind(1)
    assert torch.equal(mirrored.view(16, 2, 2)[:, 0], second)
    assert (first != second).any()


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_mean_is_unbiased_and_varies_less_than_that_of_uniform_draws(antithetic):
    generator = torch.Generator().manual_seed(1)
    cell = cell_of(raster(1024), torch.arange(1024).unsqueeze(0))[0]
    values = cell.float() + torch.randn(1024, generator=generator)
    plain = means(values, grid=1)
    strata = means(values, antithetic=antithetic)
    for found in (plain, strata):
        assert abs(found.mean() - values.mean()) < 4 * found.std() / 2000**0.5
    assert strata.var() < plain.var() * (0.5 if antithetic else 0.1)


def test_antithetic_draws_vary_at_most_twice_as_much():
    values = torch.randn(1024, generator=torch.Generator().manual_seed(2))
    stratified, antithetic = means(values), means(values, antithetic=True)
    assert antithetic.var() < 2.2 * stratified.var()


def test_a_random_remainder_is_fair():
    torch.manual_seed(0)
    counts = torch.tensor([[5, 3, 2]])
    shares = torch.stack([allocate(counts, 4, "random") for _ in range(4000)]).float()
    assert (shares.sum(dim=2) == 4).all()
    torch.testing.assert_close(shares.mean(dim=0), counts * 0.4, rtol=0, atol=0.04)


def test_a_group_without_candidates_breaks_nothing():
    chosen = draw(raster(0, 5), 8, antithetic=True)
    assert chosen[1].max() < 5
    found = torch.zeros(1, 6, dtype=torch.int32)
    assert 0 <= voxel_of(found, torch.tensor([[0]])).item() < 6


def test_ranks_become_the_voxels_of_a_mask():
    mask = torch.tensor([[False, True, False, True, True]])
    assert voxel_of(mask.cumsum(1, dtype=torch.int32), torch.tensor([[0, 1, 2]])).tolist() == [[1, 3, 4]]


@pytest.mark.parametrize("shape", [(8, 12), (5, 6, 7)])
def test_cells_in_space_hold_every_candidate_once_and_mirror_within_their_case(shape):
    torch.manual_seed(0)
    voxels = int(np.prod(shape))
    masks = torch.rand(3, 2 * voxels) < 0.3
    layout = Space(masks, shape, 4)
    assert layout.counts.sum(dim=1).tolist() == masks.sum(dim=1).tolist()
    for antithetic in (False, True):
        chosen = draw(layout, 200, antithetic=antithetic)
        assert masks.gather(1, chosen).all()
    place = np.unravel_index(np.arange(2 * voxels), (2, *shape))
    cell = place[0]
    for axis, length in enumerate(shape, start=1):
        cell = cell * min(4, length) + place[axis] * min(4, length) // length
    counts = [np.bincount(cell, weights=mask, minlength=layout.counts.shape[1]) for mask in masks.numpy()]
    assert layout.counts.tolist() == np.stack(counts).astype(int).tolist()
    everything = torch.arange(2 * voxels).expand(3, -1)
    cells = torch.from_numpy(cell).expand(3, -1)
    mirrored, _ = layout.mirror(cells, everything)
    assert torch.equal(cells.gather(1, mirrored), cells)
    assert torch.equal(layout.mirror(cells, mirrored)[0], everything)
