"""Splits never cut through a patient, and unlabelled scans cannot validate."""

from __future__ import annotations

import pytest
from tiny_cohort import manifest_of, paper_case

from labelwise.data.hide import hide
from labelwise.data.manifest import Manifest
from labelwise.data.split import hold_out, split_cases
from labelwise.errors import ConfigError, DataError


def patients(number: int = 10, **fields: object) -> Manifest:
    """Two frames of each patient."""
    return manifest_of(*(paper_case(i, group=f"p{i // 2}", **fields) for i in range(2 * number)))


def groups(manifest: Manifest, split: str) -> list[str]:
    return list(dict.fromkeys(case.group for case in manifest.split(split)))


@pytest.mark.parametrize("shares", [(2, 3), (0.2, 0.3)])
def test_splits_have_the_asked_size_and_keep_patients_together(shares: tuple[float, float]):
    after = split_cases(patients(), validation=shares[0], test=shares[1], seed=4)
    parts = [groups(after, name) for name in ("validation", "test", "train")]
    assert [len(part) for part in parts] == [2, 3, 5]
    assert len({name for part in parts for name in part}) == 10


def test_a_fraction_of_few_patients_is_at_least_one():
    after = split_cases(patients(4), validation=0.1, test=0.0)
    assert [len(groups(after, name)) for name in ("validation", "test")] == [1, 0]


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    manifest = patients()
    backwards = manifest.replace_cases(manifest.cases[::-1])
    draw = sorted(groups(split_cases(manifest, validation=3, seed=1), "validation"))
    assert draw == sorted(groups(split_cases(backwards, validation=3, seed=1), "validation"))
    assert draw != sorted(groups(split_cases(manifest, validation=3, seed=2), "validation"))


def test_a_split_that_exists_stays_and_unlabelled_scans_stay_in_training():
    unlabelled = [paper_case(100 + i, labels=None, annotated=frozenset()) for i in range(20)]
    manifest = manifest_of(*patients(4).cases, *unlabelled, paper_case(999, split="test"))
    after = split_cases(manifest, validation=2, test=1)
    assert "case_999" in {case.id for case in after.split("test")}
    assert len(after.split("test")) == 3
    assert all(case.annotated for case in after.split("validation"))


def test_the_last_training_patients_are_held_out_in_the_order_of_the_manifest():
    after = hold_out(patients(), 2)
    assert groups(after, "validation") == ["p8", "p9"]
    assert len(after.split("train")) == 16
    assert hold_out(patients(), 0) == patients()


def test_scans_that_never_had_labels_are_passed_over():
    manifest = manifest_of(*patients(3).cases, paper_case(100, labels=None, annotated=frozenset()))
    assert groups(hold_out(manifest, 1), "validation") == ["p2"]


def test_holding_out_after_hiding_is_refused_with_the_right_order():
    with pytest.raises(DataError, match="hold out first, then hide"):
        hold_out(hide(patients(), "keep_labelled", n=2), 2)


@pytest.mark.parametrize("number", [-1, 10, 11])
def test_too_many_or_too_few_are_refused(number: int):
    with pytest.raises(ConfigError):
        hold_out(patients(), number)


@pytest.mark.parametrize(
    "shares", [{"validation": 10}, {"test": -1}, {"validation": 1.0}, {"validation": 0.5, "test": 0.5}]
)
def test_a_split_that_leaves_nothing_to_learn_from_is_refused(shares: dict[str, float]):
    with pytest.raises(ConfigError):
        split_cases(patients(), **shares)
