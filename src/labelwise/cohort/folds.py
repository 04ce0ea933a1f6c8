"""Cross-validation: every annotated patient tests once, and chooses nothing in the fold in which it tests.

Folds are parts of the patients, or one data set each.

Patients (groups) are dealt to the folds one after the other, those that annotate the rarest class first, each to the
fold that lacks most of that class. Data sets count as classes do. So every fold has its share of each class and of
each data set, and folds differ by one patient at most.

Source
    Iterative stratification: Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from labelwise.cohort.coverage import never_annotated
from labelwise.cohort.join import without_structures
from labelwise.cohort.manifest import FOLDS as FOLDS
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.split import groups_of, leave_data_set_out
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.types import Array, Case


def fold_name(number: int) -> str:
    """The folder of a fold, counted from 0."""
    return f"fold_{number}"


def make_folds(
    manifest: Manifest, number: int, *, validation: int | float | None = None, seed: int = 0
) -> tuple[Manifest, ...]:
    """One manifest for each fold, in which the annotated patients of the fold test.

    Dealt are the patients of training and validation of whom a case is annotated. Of those that do not test in a fold
    some validate, drawn in the same way; all others train, and so do scans that nobody annotated, unless their patient
    tests or validates. Test cases of the manifest take no part in any fold: they are for the ensemble of the folds.
    The draw depends on the seed and on the names of the patients, not on the order of the manifest.

    Parameters
        number          of folds, from 2 to the number of annotated patients
        validation      patients that validate in each fold: a number, or a part (below 1) of those that do not test;
                        None: as many as validate in the manifest

    Errors
        ConfigError     a number that does not fit the patients
        DataError       a patient that also tests; a class that in some fold nobody would be left to learn from
    """
    members = groups_of(tuple(case for case in manifest.cases if case.split in ("train", "validation")))
    names = sorted(name for name, cases in members.items() if any(case.annotated for case in cases))
    _require_whole(manifest, names)
    if not 2 <= number <= len(names):
        raise ConfigError(
            "this number of folds does not fit the patients",
            found=f"{number} folds, {len(names)} annotated patients",
            expected=f"2 to {len(names)}",
        )
    annotated = {name: members[name] for name in names}
    rng = np.random.default_rng(seed)
    fold_of = dict(
        zip(names, _deal(_traits(manifest, annotated), _sizes(len(names), number), rng), strict=True)
    )
    found = []
    for fold in range(number):
        rest = [name for name in names if fold_of[name] != fold]
        count = _validating(manifest, validation, rest)
        traits = _traits(manifest, {name: members[name] for name in rest})
        dealt = _deal(traits, (count, len(rest) - count), np.random.default_rng((seed, fold)))
        splits = {name: "test" for name in names if fold_of[name] == fold}
        splits |= {name: "validation" for name, part in zip(rest, dealt, strict=True) if part == 0 and count}
        after = manifest.replace_cases(_moved(case, splits) for case in manifest.cases)
        _require_annotated(manifest, after, fold, annotated)
        found.append(after)
    return tuple(found)


def leave_each_data_set_out(manifest: Manifest) -> dict[str, Manifest]:
    """Data set -> the manifest in which it tests and the others train: do the data sets draw the same structures?

    Test cases of the other data sets stay, so that it is seen how well these do when they are learnt from. Structures
    that training cases of one data set alone annotate cannot be asked about: they leave all manifests, and so do data
    sets without any other structure.

    Errors
        DataError       no structure is annotated in training cases of two data sets
    """
    owners: dict[str, set[str]] = {structure: set() for structure in manifest.label_space.structures}
    for case in manifest.split("train"):
        for structure in manifest.label_space.told_apart(case.annotated):
            owners[structure].add(case.data_set)
    alone = [structure for structure, names in owners.items() if len(names) < 2]
    if len(alone) == len(owners):
        raise DataError(
            "no structure is annotated in training cases of two data sets, so none can be left out",
            found="; ".join(
                f"{structure}: {', '.join(sorted(owners[structure])) or 'nowhere'}" for structure in alone
            ),
            do="import data sets that annotate the same structure: labelwise import first=FOLDER second=FOLDER",
            code="nothing-annotated",
        )
    warn_about("structures that fewer than two data sets annotate for training are left out", alone)
    shared = without_structures(manifest, alone)
    if gone := sorted(set(manifest.data_sets) - set(shared.data_sets)):
        warn_about("data sets that share no structure with another are left out", gone)
    names = [
        name
        for name in shared.data_sets
        if any(c.annotated and c.split for c in shared.cases if c.data_set == name)
    ]
    return {name: leave_data_set_out(shared, [name], others_test=True) for name in names}


def _moved(case: Case, splits: Mapping[str, str]) -> Case:
    if case.split not in ("train", "validation"):
        return replace(case, split="")
    return replace(case, split=splits.get(case.group, "train"))


def _require_whole(manifest: Manifest, names: Sequence[str]) -> None:
    tested = {case.group for case in manifest.split("test")}
    if cut := [name for name in names if name in tested]:
        raise DataError(
            f"patient '{cut[0]}' tests already, and also trains or validates",
            found=f"{len(cut)} such patient{'' if len(cut) == 1 else 's'} (column 'group')",
            do="put all cases of a patient into one split; see what `labelwise check` says",
            code="patients-cut",
        )


def _require_annotated(
    before: Manifest, after: Manifest, fold: int, members: Mapping[str, Sequence[Case]]
) -> None:
    everybody = before.replace_cases(
        replace(case, split="train") if case.split == "validation" else case for case in before.cases
    )
    if missing := sorted(set(never_annotated(after)) - set(never_annotated(everybody))):
        by = sum(any(missing[0] in case.annotated for case in cases) for cases in members.values())
        raise DataError(
            f"nobody would be left to learn {', '.join(missing)} from in fold {fold}",
            found=f"'{missing[0]}' is annotated in {by} patient{'' if by == 1 else 's'}",
            expected="at least two, and one more if some validate",
            do="annotate it in more patients, take it out of the classes in dataset.toml, or let fewer validate",
            code="nothing-annotated",
        )


def _validating(manifest: Manifest, asked: int | float | None, rest: Sequence[str]) -> int:
    if asked is None:
        cases = manifest.split("validation")
        count = len({case.group for case in cases if case.annotated})
    elif not asked >= 0 or (isinstance(asked, float) and asked >= 1):
        raise ConfigError(
            "'validation' is a number of patients or a part",
            found=asked,
            expected="0, 1, 2, ... or 0.0 to 0.99",
        )
    else:
        count = max(1, round(asked * len(rest))) if isinstance(asked, float) and asked else int(asked)
    if count >= len(rest):
        raise ConfigError(
            "no annotated patient would be left to learn from",
            found=f"{count} validate, of {len(rest)} that do not test",
            do="let fewer validate, or make more folds",
        )
    return count


def _sizes(total: int, parts: int) -> tuple[int, ...]:
    return tuple(total // parts + (part < total % parts) for part in range(parts))


def _traits(manifest: Manifest, members: Mapping[str, Sequence[Case]]) -> Array:
    """(G, J) how many cases of each group annotate each class, then how many are of each data set."""
    columns = [
        [sum(structure in case.annotated for case in cases) for cases in members.values()]
        for structure in manifest.label_space.structures
    ]
    columns += [
        [sum(case.data_set == data_set for case in cases if case.annotated) for cases in members.values()]
        for data_set in manifest.data_sets
    ]
    return np.array(columns, dtype=float).T


def _deal(traits: Array, sizes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """(G,) the part of each group, so that parts of these sizes have their share of each of the (G, J) traits."""
    groups = len(traits)
    order = rng.permutation(groups)
    left = np.array(sizes)
    wanted = traits.sum(axis=0) * left[:, None] / groups  # (K, J)
    part_of = np.full(groups, -1)
    while (waiting := order[part_of[order] < 0]).size:
        rest = traits[waiting].sum(axis=0)
        if rest.any():
            trait = int(np.where(rest > 0, rest, np.inf).argmin())  # the rarest
            waiting = waiting[traits[waiting, trait] > 0]
            waiting = waiting[np.argsort(-traits[waiting, trait], kind="stable")]
        else:
            trait = 0
        for group in waiting.tolist():
            free = np.flatnonzero(left > 0)
            needs = np.lexsort(
                (rng.random(free.size), -left[free], -wanted[free].sum(axis=1), -wanted[free, trait])
            )
            part = free[needs[0]]
            part_of[group], left[part] = part, left[part] - 1
            wanted[part] -= traits[group]
    return [int(part) for part in part_of]
