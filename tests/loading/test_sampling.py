"""Which patches a step gets: a pure function of (seed, rank, step)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from labelwise.errors import ConfigError, DataError
from labelwise.loading.sampling import Draw, Sampler, SamplingConfig, patch_corner
from labelwise.loading.store import label_points
from labelwise.settings import build_settings
from labelwise.types import IGNORE, Case, LabelSpace

SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
FULL, PARTIAL, NONE = SPACE.structures, ("liver",), ()


def make_cases(*annotated: tuple[str, ...]) -> list[Case]:
    return [
        Case(f"case_{number}", (Path("scan.nii"),), Path("labels.nii"), frozenset(structures))
        for number, structures in enumerate(annotated)
    ]


MIXED = make_cases(FULL, FULL, FULL, PARTIAL, PARTIAL, NONE, NONE, NONE, NONE)


def make_sampler(labelled: int = 2, unlabelled: int = 2, seed: int = 0, cases: list[Case] = MIXED) -> Sampler:
    config = SamplingConfig(labelled_cases=labelled, unlabelled_cases=unlabelled)
    return Sampler(cases, SPACE, config, seed)


def rows(sampler: Sampler, steps: range, rank: int = 0, world: int = 1) -> list[list[int]]:
    return [[draw.case for draw in sampler.draws(step, rank, world)] for step in steps]


def test_a_partly_annotated_case_is_in_both_streams():
    sampler = make_sampler()
    assert sampler.labelled == (0, 1, 2, 3, 4)
    assert sampler.unlabelled == (3, 4, 5, 6, 7, 8)


def test_labelled_patches_come_first_and_every_batch_has_the_same_composition():
    sampler = make_sampler(labelled=2, unlabelled=3)
    for step in range(20):
        for rank in range(2):
            draws = list(sampler.draws(step, rank, world=2))
            assert [draw.labelled for draw in draws] == [True, True, False, False, False]
            assert {draw.case for draw in draws[:2]} <= set(sampler.labelled)
            assert {draw.case for draw in draws[2:]} <= set(sampler.unlabelled)


def test_every_case_is_seen_once_per_epoch_and_the_order_changes():
    sampler = make_sampler(labelled=1, unlabelled=0)
    drawn = [row[0] for row in rows(sampler, range(20))]
    epochs = [drawn[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_is_a_pure_function_of_seed_and_step():
    once, again, other = make_sampler(seed=1), make_sampler(seed=1), make_sampler(seed=2)
    forwards, backwards = rows(once, range(30)), rows(again, range(29, -1, -1))
    assert forwards == backwards[::-1]
    assert forwards != rows(other, range(30))
    numbers = [draw.randomness.random() for draw in once.draws(7)]
    assert numbers == [draw.randomness.random() for draw in again.draws(7)]
    assert len(set(numbers)) == 4


def test_ranks_take_disjoint_positions_of_the_streams():
    """Two ranks together see the same patches as one rank with batches of twice the size."""
    halves, whole = make_sampler(labelled=1, unlabelled=2), make_sampler(labelled=2, unlabelled=4)
    for step in range(12):
        ranks = [draw for rank in range(2) for draw in halves.draws(step, rank, world=2)]
        together = [(draw.case, draw.randomness.random()) for draw in ranks]
        alone = [(draw.case, draw.randomness.random()) for draw in whole.draws(step)]
        assert Counter(together) == Counter(alone)


def test_a_stream_without_cases_is_refused_with_the_way_out():
    with pytest.raises(DataError, match="completely annotated") as caught:
        make_sampler(cases=make_cases(FULL, FULL))
    assert "unlabelled_cases = 0" in str(caught.value)
    with pytest.raises(DataError, match="none of the 2 training cases is annotated") as caught:
        make_sampler(cases=make_cases(NONE, NONE))
    assert "annotate a case" in str(caught.value)
    assert make_sampler(unlabelled=0, cases=make_cases(FULL)).unlabelled == ()
    assert make_sampler(labelled=0, cases=make_cases(NONE)).labelled == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labelled_cases": 0, "unlabelled_cases": 0}, "cannot both be 0"),
        ({"patch_size": [0, 8, 8]}, "at least one voxel"),
        ({"foreground": 1.5}, "foreground"),
        ({"labeled_cases": 1}, "labelled_cases"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_settings(SamplingConfig, settings, "[sampling]")


def test_a_patch_of_one_slice_is_2d():
    assert SamplingConfig(patch_size=(64, 64, 1)).dims == 2
    assert SamplingConfig(patch_size=(64, 64, 2)).dims == 3


# where patches lie

SHAPE = (30, 25, 20)
SLICES = {1: (4, 14), 2: (0, 2), 3: (17, 18)}
POINTS = {1: np.array([[5, 6, 7]], np.int32), 2: np.array([[29, 24, 0]], np.int32)}
EVERYTHING, LIVER = np.ones(4, bool), np.array([False, True, False, False])


def corners(count: int = 200, *, labelled: bool = True, annotated=EVERYTHING, shape=SHAPE, **settings):
    config = SamplingConfig(**{"patch_size": (8, 8, 8), **settings})
    draws = (Draw(0, labelled, np.random.default_rng(number)) for number in range(count))
    return [patch_corner(draw, shape, POINTS, annotated, config) for draw in draws]


def test_patches_are_centred_on_annotated_structures_and_stay_inside():
    found = Counter(corners(foreground=1.0))
    assert set(found) == {(1, 2, 3), (22, 17, 0)}  # the second is at the border and moved inwards
    assert min(found.values()) > 70


def test_a_structure_that_is_not_annotated_does_not_attract_patches():
    assert set(corners(foreground=1.0, annotated=LIVER)) == {(1, 2, 3)}


def corners_in_slices(annotated, **settings):
    config = SamplingConfig(**{"patch_size": (8, 8, 8), "slices": "annotated", **settings})
    draws = (Draw(0, number % 2 == 0, np.random.default_rng(number)) for number in range(400))
    return {patch_corner(draw, SHAPE, POINTS, annotated, config, SLICES)[2] for draw in draws}


def test_patches_can_be_kept_to_the_slices_that_hold_what_is_annotated():
    liver_and_third = np.array([False, True, False, True])
    for foreground in (0.0, 1.0):
        found = corners_in_slices(LIVER, foreground=foreground)
        assert min(found) >= 4
        assert max(found) <= 14 + 1 - 8
    assert corners_in_slices(LIVER, foreground=0.0) == {4, 5, 6, 7}
    assert corners_in_slices(liver_and_third, foreground=0.0) == set(range(4, 12))
    assert corners_in_slices(LIVER, patch_size=(8, 8, 1), foreground=0.0) == set(range(4, 15))


def test_where_annotated_slices_are_fewer_than_those_of_a_patch_the_patch_holds_them_all():
    third = np.array([False, False, False, True])
    assert corners_in_slices(third, foreground=0.0) == {11, 12}  # up to slice 20, the last one
    assert corners_in_slices(np.array([False, False, True, False]), foreground=0.0) == {0}


def test_a_scan_without_an_annotated_structure_is_seen_in_all_its_slices():
    assert corners_in_slices(np.zeros(4, bool), foreground=0.0) == set(range(13))


def test_the_foreground_probability_is_kept():
    part = sum(corner == (1, 2, 3) for corner in corners(1000, foreground=0.3, annotated=LIVER)) / 1000
    assert part == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("case", [{"labelled": False, "foreground": 1.0}, {"foreground": 0.0}])
def test_otherwise_every_position_is_equally_likely_also_the_last(case):
    found = np.array(corners(4000, **case))
    for axis, free in enumerate(np.subtract(SHAPE, 8)):
        counts = np.bincount(found[:, axis], minlength=free + 1)
        assert len(counts) == free + 1
        assert counts.min() > 0.6 * 4000 / (free + 1)


@pytest.mark.parametrize("seed", range(12))
def test_labelled_patches_of_a_scan_that_is_annotated_in_parts_hold_labels(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(3, 40, 3))
    labels = np.full(shape, IGNORE, np.uint8)
    if seed % 3 == 0:  # slices
        step = int(rng.integers(2, 8))
        labels[:, :, ::step] = rng.integers(0, 3, labels[:, :, ::step].shape)
    elif seed % 3 == 1:  # scribbles
        for value in (0, 0, 1, 2):
            labels[rng.integers(shape[0]), rng.integers(shape[1])] = value
    else:  # a box
        labels[: shape[0] // 2 + 1, :1] = rng.integers(0, 3)
    size = (*tuple(int(rng.integers(1, 12)) for _ in shape[:2]), 1 if seed % 2 else 8)
    config = SamplingConfig(patch_size=size, foreground=rng.random())
    points = label_points(labels, seed=seed, in_parts=True)
    for number in range(50):
        draw = Draw(0, True, np.random.default_rng((seed, number)))
        corner = patch_corner(draw, shape, points, np.ones(3, bool), config)
        box = tuple(slice(max(low, 0), low + n) for low, n in zip(corner, size, strict=True))
        assert (labels[box] != IGNORE).any()


def test_scans_that_are_annotated_in_parts_belong_to_both_streams():
    cases, config = make_cases(FULL, FULL, PARTIAL), SamplingConfig()
    sampler = Sampler(cases, SPACE, config, 0, sparse={"case_1"})
    assert (sampler.labelled, sampler.unlabelled) == ((0, 1, 2), (1, 2))


def test_convention_a_scan_smaller_than_the_patch_lies_in_its_middle():
    """Missing voxels are padded on both sides, the odd one behind, as the sliding window does."""
    found = corners(50, shape=(5, 8, 30), patch_size=(8, 8, 8))
    assert {(x, y) for x, y, _ in found} == {(-1, 0)}
    assert {z for *_, z in found} <= set(range(23))
