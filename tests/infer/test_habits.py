"""What is flagged: structures and scans that are not as the annotated ones were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelwise.infer.doubt import Certainty
from labelwise.infer.habits import (
    Features,
    Habits,
    Sighting,
    StructureHabit,
    distance,
    flags_of,
    habit_of,
    lower_threshold,
    sightings,
    upper_threshold,
)
from labelwise.methods.base import Softmax
from labelwise.nets.factory import NetFactory

NAMES = ("background", "liver", "spleen")
USUAL = StructureHabit(20, present=1.0, single=1.0, reaches={"top": 0.5})


def label_map(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    labels = np.zeros((20, 20, 10), np.uint8)
    for box in boxes:
        labels[box] = 1
    return labels


INSIDE = (slice(4, 10), slice(4, 10), slice(3, 7))
SECOND = (slice(14, 17), slice(14, 17), slice(3, 7))
SPECK = (slice(14, 15), slice(14, 15), slice(3, 4))


def codes(before: np.ndarray, after: np.ndarray | None = None, habit=USUAL, expected: float | None = 0.9):
    certainty = {name: Certainty(1, expected, 0.1) for name in NAMES}
    found = flags_of(Habits({"liver": habit}), before, before if after is None else after, certainty, [])
    assert all(flag.structure == "liver" and "liver" in flag.what for flag in found)
    return [flag.code for flag in found]


def test_a_structure_in_one_part_is_seen_with_the_ends_of_the_scan_that_it_reaches():
    found = sightings(label_map((slice(0, 5), slice(3, 9), slice(6, 10))), NAMES)
    assert found == {"liver": Sighting(True, ("left", "top"))}


def test_a_part_a_tenth_as_large_counts_and_a_speck_does_not():
    assert sightings(label_map(INSIDE, SPECK), NAMES)["liver"].single
    assert not sightings(label_map(INSIDE, SECOND), NAMES)["liver"].single


def test_a_habit_is_counted_over_the_cases_that_annotate_the_structure():
    found = habit_of([Sighting(True, ("top",)), Sighting(False, ("top", "left")), None, Sighting(True, ())])
    assert (found.cases, found.present, found.single) == (4, 0.75, pytest.approx(2 / 3))
    assert found.reaches == {"left": pytest.approx(1 / 3), "top": pytest.approx(2 / 3)}


def test_what_is_usual_is_not_flagged():
    assert codes(label_map(INSIDE)) == []
    assert codes(label_map((slice(4, 10), slice(4, 10), slice(5, 10)))) == [], "half of them reach the top"


def test_a_structure_is_flagged_that_is_missing_cut_off_doubled_or_doubtful():
    assert codes(label_map()) == ["missing"]
    assert codes(label_map((slice(0, 6), slice(4, 10), slice(3, 7)))) == ["cut-off"]
    assert codes(label_map(INSIDE, SECOND)) == ["doubled"]
    assert codes(label_map(INSIDE), habit=StructureHabit(20, 1.0, 1.0, {}, 0.8), expected=0.7) == ["doubtful"]
    assert codes(label_map(INSIDE), habit=StructureHabit(20, 1.0, 1.0, {}, 0.8), expected=0.8) == []


def test_a_second_part_is_flagged_although_the_clean_up_took_it_away():
    assert codes(label_map(INSIDE, SECOND), label_map(INSIDE)) == ["doubled"]


def test_what_varies_or_is_little_known_is_not_flagged():
    rare = StructureHabit(20, present=0.6, single=0.6, reaches={"left": 0.2})
    assert codes(label_map(), habit=rare) == []
    assert codes(label_map((slice(0, 6), slice(4, 10), slice(3, 7)), SECOND), habit=rare) == []
    assert codes(label_map(), habit=StructureHabit(4, 1.0, 1.0)) == []


def test_a_scan_farther_from_the_training_than_nine_in_ten_is_unfamiliar():
    habits = Habits({}, [[1.0, 0.0], [0.0, 1.0]], unfamiliar_from=0.5, checked=20)
    certainty = {name: Certainty(1, 0.9, 0.1) for name in NAMES}

    def found(*vector: float) -> list[str]:
        return [flag.code for flag in flags_of(habits, label_map(), label_map(), certainty, vector)]

    assert found(0.28, 0.96) == [], "0.28 from the second"
    assert found(-0.6, -0.8) == ["unfamiliar"]
    assert found() == []


def test_the_distance_is_that_to_the_nearest_scan():
    assert distance([0.6, 0.8], [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(np.hypot(0.6, 0.2))
    assert distance([], [[1.0]]) is None
    assert distance([1.0], []) is None


def test_thresholds_leave_one_in_ten_right_cases_beyond_them():
    values = [float(value) for value in range(20)]
    above = upper_threshold(values)
    assert sum(value > above for value in values) == 1
    wrong = [(0.0, 0.1)] * 50
    below = lower_threshold([*((value / 20, 0.9) for value in values), *wrong])
    assert sum(value / 20 < below for value in values) == 1
    assert upper_threshold(values[:9]) is None
    assert lower_threshold([*wrong, (0.5, 0.9)]) is None


def test_features_are_the_direction_of_the_mean_of_the_coarsest_scale_over_all_windows():
    nets = NetFactory("unet", {"width": 2}, dims=2, in_channels=1, num_classes=3)
    torch.manual_seed(0)
    predictor = Softmax(nets.network()).eval()
    windows = torch.randn(3, 1, 32, 32)
    features = Features()
    with torch.no_grad(), features.watch(predictor):
        predictor(windows[:2])
        predictor(windows[2:])
    with torch.no_grad():
        mean = predictor.network.encoder(windows)[-1].double().mean(dim=(0, 2, 3))
        predictor(windows)  # nobody listens any more
    assert features.vector() == pytest.approx((mean / mean.norm()).tolist(), rel=1e-4)


def test_nothing_is_heard_of_several_networks():
    nets = NetFactory("unet", {"width": 2}, dims=2, in_channels=1, num_classes=3)
    features = Features()
    two = torch.nn.Sequential(nets.network(), torch.nn.Identity())
    two.append(nets.network())
    with features.watch(two), torch.no_grad():
        two[0](torch.zeros(1, 1, 32, 32))
    assert features.vector() == []
