"""Which cases train, validate and test. Splits never cut through a group (patient or centre)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from labelwise.cohort.manifest import Manifest
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.types import Case


def groups_of(cases: tuple[Case, ...]) -> dict[str, tuple[Case, ...]]:
    """Cases by group, groups in the order of their first case."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    return {name: tuple(members) for name, members in groups.items()}


def split_cases(
    manifest: Manifest, *, validation: int | float = 0, test: int | float = 0, seed: int = 0
) -> Manifest:
    """Move training groups, drawn at random, to validation and test.

    Only groups with at least one annotated case are drawn: unlabelled scans cannot be scored and stay in
    training. Cases that are in another split already stay there. The draw depends on the seed and on the
    names of the groups, not on the order of the manifest.

    Parameters
        validation, test    number of groups (int), or fraction of the annotated training groups (float below
                            1; at least one group)

    Errors
        ConfigError   a negative number or a fraction of 1 or more, or nothing would remain to learn from
    """
    groups = groups_of(manifest.split("train"))
    names = sorted(name for name, cases in groups.items() if any(case.annotated for case in cases))
    num_validation = _number("validation", validation, len(names))
    num_test = _number("test", test, len(names))
    if num_validation + num_test and num_validation + num_test >= len(names):
        raise ConfigError(
            "no annotated training group would remain",
            found=f"{num_validation} for validation, {num_test} for test, of {len(names)} annotated groups",
        )
    drawn = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    target = dict.fromkeys(drawn[:num_test], "test")
    target |= dict.fromkeys(drawn[num_test : num_test + num_validation], "validation")
    return _move(manifest, target)


def hold_out(manifest: Manifest, number: int) -> Manifest:
    """The last `number` training groups, in the order of the manifest, become validation.

    Groups without any label file are passed over.

    Errors
        ConfigError   a negative number, or no training group would remain
        DataError     the annotation of a group was hidden before: hold out first, then hide
    """
    groups = groups_of(manifest.split("train"))
    names = [name for name, cases in groups.items() if any(case.labels for case in cases)]
    if number < 0 or (number and number >= len(names)):
        raise ConfigError(
            "no training group would remain" if number > 0 else "a number of groups cannot be negative",
            found=number,
            expected=f"0 to {max(len(names) - 1, 0)}",
        )
    chosen = names[len(names) - number :]
    for name in chosen:
        if not any(case.annotated for case in groups[name]):
            raise DataError(
                f"group '{name}' cannot validate: its annotation was hidden", do="hold out first, then hide"
            )
    return _move(manifest, dict.fromkeys(chosen, "validation"))


def leave_data_set_out(
    manifest: Manifest, data_sets: Iterable[str], *, others_test: bool = False
) -> Manifest:
    """Some data sets test, the others train: how well does a model do on a data set that it has never seen?

    Annotated cases of these data sets become the test cases, and no others are. Unlabelled scans of these data sets,
    test cases of the other data sets, and whoever shares a group with a new test case take no part.
    Validation cases of the other data sets stay. Cases that took no part before take none.

    Parameters
        data_sets         names of data sets in the manifest, e.g. those that one importer made
        others_test     test cases of the other data sets stay test cases

    Errors
        ConfigError   an unknown data set, or all data sets
        DataError     no case of the data sets is annotated and takes part, or no training case would remain
    """
    left_out = set(data_sets)
    for name in sorted(left_out - set(manifest.data_sets)):
        raise ConfigError(
            f"unknown data set '{name}'{did_you_mean(name, manifest.data_sets)}",
            expected=", ".join(manifest.data_sets),
            code="unknown-name",
        )
    if left_out == set(manifest.data_sets):
        raise ConfigError("no data set would remain to learn from", found=", ".join(manifest.data_sets))
    tests = {
        case.id for case in manifest.cases if case.data_set in left_out and case.annotated and case.split
    }
    if not tests:
        raise DataError(
            "no case of the data set can test", found=f"nothing annotated in {', '.join(left_out)}"
        )
    groups = {case.group for case in manifest.cases if case.id in tests}

    def split_of(case: Case) -> str:
        if case.id in tests:
            return "test"
        leaves = (
            case.data_set in left_out or case.group in groups or (case.split == "test" and not others_test)
        )
        return "" if leaves else case.split

    after = manifest.replace_cases(replace(case, split=split_of(case)) for case in manifest.cases)
    if not after.split("train"):
        raise DataError("no training case would remain", found=f"test cases: {', '.join(sorted(left_out))}")
    return after


def cut_groups(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Groups whose cases are in several splits -> those splits; whoever takes no part does not count."""
    found = {
        group: tuple(dict.fromkeys(case.split for case in cases if case.split))
        for group, cases in groups_of(manifest.cases).items()
    }
    return {group: splits for group, splits in found.items() if len(splits) > 1}


def _number(name: str, share: int | float, total: int) -> int:
    if not share >= 0 or (isinstance(share, float) and share >= 1):  # NaN is no number of anything
        raise ConfigError(
            f"'{name}' is a number of groups or a fraction",
            found=share,
            expected="0, 1, 2, ... or 0.0 to 0.99",
        )
    # A share that is asked for is never nobody, however few there are.
    return max(1, round(share * total)) if isinstance(share, float) and share else int(share)


def _move(manifest: Manifest, target: dict[str, str]) -> Manifest:
    return manifest.replace_cases(
        replace(case, split=target.get(case.group, "train")) if case.split == "train" else case
        for case in manifest.cases
    )
