"""What to annotate next: no class falls behind, no patient is drawn twice while others wait."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from labelwise.cohort.suggest import Candidate, suggest_masks
from labelwise.errors import ConfigError


def candidates(cases=12, classes=("liver", "spleen", "pancreas"), voxels=100, dice=math.nan):
    return [
        Candidate(f"c{case:02}", f"p{case // 2}", f"site{case % 3}", name, voxels, dice)
        for case in range(cases)
        for name in classes
    ]


def test_the_class_with_the_fewest_masks_comes_first_and_all_end_alike():
    annotated = {"liver": 5, "spleen": 2}
    chosen = suggest_masks(candidates(), annotated, 8)
    assert Counter(one.class_name for one in chosen) == {"pancreas": 5, "spleen": 3}
    assert [one.class_name for one in chosen[:2]] == ["pancreas", "pancreas"]


def test_of_one_class_every_patient_and_data_set_is_drawn_once_before_any_is_drawn_twice():
    chosen = suggest_masks(candidates(classes=("liver",)), {}, 6)
    assert len({one.group for one in chosen}) == 6
    assert Counter(one.data_set for one in chosen) == {"site0": 2, "site1": 2, "site2": 2}


def test_a_structure_that_the_model_does_not_see_in_a_case_is_not_suggested_there():
    seen = candidates(cases=3)
    absent = [
        Candidate(f"a{n}", f"a{n}", "site0", name, 0, 1.0) for n in range(5) for name in ("liver", "spleen")
    ]
    chosen = suggest_masks([*absent, *seen], {}, 100)
    assert {one.case for one in chosen} == {"c00", "c01", "c02"}


def test_a_structure_that_the_model_sees_nowhere_is_suggested_anywhere():
    unknown = [Candidate(f"c{n}", f"p{n}", "site0", "oesophagus", 0, 1.0) for n in range(4)]
    assert len(suggest_masks(unknown, {}, 2)) == 2


def test_more_masks_begin_with_the_fewer_and_a_seed_repeats_itself():
    ten, twenty = (suggest_masks(candidates(), {}, number, seed=3) for number in (10, 20))
    assert twenty[:10] == ten
    assert suggest_masks(candidates(), {}, 20, seed=4) != twenty
    assert suggest_masks(candidates(cases=2), {}, 100) == suggest_masks(candidates(cases=2), {}, 6)


def test_by_doubt_the_lowest_expected_dice_comes_first():
    sure = [Candidate(f"c{n}", f"p{n}", "site0", "liver", 10, n / 10) for n in (7, 2, 9, 4)]
    chosen = suggest_masks(sure, {}, 4, by="doubt")
    assert [one.expected_dice for one in chosen] == [0.2, 0.4, 0.7, 0.9]
    unknown = Candidate("c0", "p0", "site0", "liver", None, math.nan)
    assert suggest_masks([unknown, *sure], {}, 5, by="doubt")[-1] == unknown


def test_doubt_without_a_model_and_unknown_strategies_are_refused():
    with pytest.raises(ConfigError, match="--into DATA"):
        suggest_masks(candidates(), {}, 1, by="doubt")
    with pytest.raises(ConfigError, match="random, doubt"):
        suggest_masks(candidates(), {}, 1, by="entropy")
