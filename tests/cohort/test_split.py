"""Splits never cut through a patient, and unlabelled scans cannot validate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.split import cut_groups, hold_out, leave_data_set_out, split_cases
from labelwise.errors import ConfigError, DataError
from tiny_cohort import manifest_of, paper_case


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


# one data set out


def sites() -> Manifest:
    """Three cases each of a, b and b_other; b_other and the last case of each are unlabelled."""
    cases = []
    for place, name in enumerate(("a", "b", "b_other")):
        for number in range(3):
            known = {} if name != "b_other" and number < 2 else {"labels": None, "annotated": frozenset()}
            cases.append(paper_case(10 * place + number, data_set=name, **known))
    return manifest_of(*cases)


def splits(manifest: Manifest) -> dict[str, str]:
    return {case.id: case.split for case in manifest.cases}


def test_a_data_set_that_is_left_out_tests_and_nothing_of_it_trains():
    after = leave_data_set_out(sites(), ["b", "b_other"])
    assert splits(after) == {
        **dict.fromkeys(("case_000", "case_001", "case_002"), "train"),
        **dict.fromkeys(("case_010", "case_011"), "test"),
        **dict.fromkeys(("case_012", "case_020", "case_021", "case_022"), ""),
    }


def test_no_other_case_tests_and_twins_of_test_cases_take_no_part():
    manifest = sites()
    new = {"case_000": {"group": "case_010"}, "case_001": {"split": "test"}, "case_011": {"split": ""}}
    changed = manifest.replace_cases(replace(case, **new.get(case.id, {})) for case in manifest.cases)
    after = splits(leave_data_set_out(changed, ["b"]))
    assert (after["case_000"], after["case_001"], after["case_002"]) == ("", "", "train")
    assert (after["case_010"], after["case_011"]) == ("test", "")
    assert cut_groups(leave_data_set_out(changed, ["b"])) == {}


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["bb"], ConfigError, "did you mean 'b'"),
        (["a", "b", "b_other"], ConfigError, "no data set would remain"),
        (["b_other"], DataError, "no case of the data set can test"),
    ],
)
def test_a_data_set_that_cannot_test_is_refused(names: list[str], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        leave_data_set_out(sites(), names)


def test_groups_in_several_splits_are_named():
    manifest = manifest_of(
        *(paper_case(i, group=f"p{i // 2}", split=("train", "test", "train", "")[i]) for i in range(4))
    )
    assert cut_groups(manifest) == {"p0": ("train", "test")}
