"""Folds of a cross-validation: every annotated patient tests once, and the folds are alike."""

from __future__ import annotations

from collections import Counter

import pytest

from labelwise.cohort.coverage import never_annotated
from labelwise.cohort.folds import make_folds
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.split import cut_groups
from labelwise.errors import ConfigError, DataError
from tiny_cohort import SPACE, manifest_of, paper_case

STRUCTURES = SPACE.structures


def cohort() -> Manifest:
    """Three data sets of two frames per patient, one class each; ten unlabelled scans, one of a labelled patient."""
    cases = []
    for data_set, structures, patients in (
        ("a", STRUCTURES[:1], 10),
        ("b", STRUCTURES[1:2], 5),
        ("c", STRUCTURES, 15),
    ):
        cases += [
            paper_case(
                100 * ord(data_set) + 2 * patient + frame, group=f"{data_set}{patient}", data_set=data_set,
                annotated=frozenset(structures),
            )
            for patient in range(patients)
            for frame in range(2)
        ]  # fmt: skip
    blank = {"labels": None, "annotated": frozenset(), "data_set": "c"}
    cases += [paper_case(n, group=f"nobody{n}", **blank) for n in range(9)]
    return manifest_of(*cases, paper_case(99, group="c0", **blank))


def patients(manifest: Manifest, split: str) -> set[str]:
    return {case.group for case in manifest.split(split)}


def test_every_annotated_patient_tests_exactly_once_and_no_patient_is_cut():
    folds = make_folds(cohort(), 5, validation=4)
    tested = Counter(name for fold in folds for name in patients(fold, "test"))
    assert tested == Counter({case.group: 1 for case in cohort().cases if case.annotated})
    for fold in folds:
        assert not cut_groups(fold)
        assert len(patients(fold, "validation")) == 4
        assert not never_annotated(fold)


def test_folds_have_their_share_of_each_class_and_of_each_data_set():
    for fold in make_folds(cohort(), 5, validation=5):
        tests = fold.split("test")
        assert Counter(case.data_set for case in tests if case.annotated) == {"a": 4, "b": 2, "c": 6}
        assert [sum(structure in case.annotated for case in tests) for structure in STRUCTURES] == [10, 8, 6]
        validation = {case.group for case in fold.split("validation")}
        assert {name[0] for name in validation} == {"a", "b", "c"}


def test_scans_of_nobody_train_in_every_fold_but_not_beside_their_own_patient():
    for fold in make_folds(cohort(), 3):
        split = {case.id: case.split for case in fold.cases}
        assert {split[f"case_{n:03d}"] for n in range(9)} == {"train"}
        assert split["case_099"] == next(case.split for case in fold.cases if case.group == "c0")


def test_test_cases_of_the_manifest_stay_out_of_all_folds_and_validation_is_drawn_anew():
    manifest = manifest_of(
        *(paper_case(n, split="validation" if n < 2 else "train") for n in range(9)),
        paper_case(50, split="test"),
        paper_case(51, split=""),
    )
    folds = make_folds(manifest, 3)
    for fold in folds:
        assert {case.id for case in fold.cases if not case.split} == {"case_050", "case_051"}
        assert [len(fold.split(name)) for name in ("train", "validation", "test")] == [4, 2, 3]
    assert len(make_folds(manifest, 3, validation=0)[0].split("validation")) == 0
    assert len(make_folds(manifest, 3, validation=0.5)[0].split("validation")) == 3


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    manifest = cohort()
    backwards = manifest.replace_cases(manifest.cases[::-1])
    drawn = [patients(fold, "test") for fold in make_folds(manifest, 4, seed=1)]
    assert drawn == [patients(fold, "test") for fold in make_folds(backwards, 4, seed=1)]
    assert drawn != [patients(fold, "test") for fold in make_folds(manifest, 4, seed=2)]


def test_a_class_of_two_patients_is_learnt_in_every_fold_and_one_of_one_patient_is_refused():
    two = manifest_of(
        *(paper_case(n, annotated=frozenset(STRUCTURES if n < 2 else STRUCTURES[:1])) for n in range(10))
    )
    assert not any(never_annotated(fold) for fold in make_folds(two, 5))
    one = manifest_of(
        *(paper_case(n, annotated=frozenset(STRUCTURES if n < 1 else STRUCTURES[:1])) for n in range(10))
    )
    with pytest.raises(DataError, match=r"to learn pancreas, spleen from in fold \d[\s\S]*in 1 patient"):
        make_folds(one, 5)


@pytest.mark.parametrize(
    ("number", "validation", "message"),
    [
        (1, None, "2 to 30"),
        (31, None, "31 folds, 30 annotated patients"),
        (3, -1, "'validation' is a number"),
        (3, 1.0, "'validation' is a number"),
        (2, 15, "15 validate, of 15"),
    ],
)
def test_numbers_that_do_not_fit_the_patients_are_refused(number, validation, message):
    with pytest.raises(ConfigError, match=message):
        make_folds(cohort(), number, validation=validation)


def test_a_patient_who_tests_already_cannot_be_dealt():
    manifest = manifest_of(*(paper_case(n) for n in range(4)), paper_case(7, group="case_000", split="test"))
    with pytest.raises(DataError, match="'case_000' tests already"):
        make_folds(manifest, 2)
