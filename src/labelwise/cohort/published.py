"""Published partial-label settings: which cases learn which structure, and which cases test.

    ltuda_toy       50 scans of AbdomenCT-1K with four structures: each training scan keeps one, 10 scans test
    ltuda_union     LiTS, MSD Spleen, KiTS19 and NIH Pancreas-CT: each data set teaches its own structure

The lists decide the splits: listed cases train or test, all others take no part. A case is known by the last
whole number in its id: 12 in `Organ12_0012`, `volume-12` and `PANCREAS_0012`. What the lists name must be there
and annotated. Only the four structures stay classes. In the value tables LiTS tumours become liver and cysts of
later KiTS releases become kidney, as both are in the published labels; whatever else becomes background, as
KiTS tumours are there. Label files are never rewritten. Classes are known by any spelling of their name. One data set
may be several data sets, which the importers make where files need different reading: `kits`, `kits_first_release`.

Sources
    Jiang et al., "Labeled-to-unlabeled distribution alignment for partially-supervised multi-structure medical image
    segmentation", Medical Image Analysis 2025, arXiv 2409.03228; the lists are those of its code.
    NIH 25 and 70 show the scan of case 2 again and were withdrawn from Pancreas-CT in 2020.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.types import BACKGROUND, Case, LabelSpace

_STRICT = ConfigDict(extra="forbid")

TOY_TEST = (1, 6, 11, 16, 21, 26, 31, 36, 41, 46)
TOY_TRAIN: Mapping[str, tuple[int, ...]] = {  # in published order: n = 3 and n = 5 are the first of each
    "liver": (5, 35, 37, 17, 27, 18, 25, 7, 28, 44),
    "spleen": (40, 30, 19, 3, 24, 32, 4, 42, 23, 15),
    "kidney": (12, 29, 39, 50, 33, 45, 8, 34, 14, 20),
    "pancreas": (49, 13, 47, 9, 48, 2, 43, 22, 38, 10),
}


@dataclass(frozen=True)
class Part:
    """One data set of the union: what it teaches, and the numbers of its cases."""

    structure: str
    train: tuple[int, ...]
    test: tuple[int, ...]
    belongs: tuple[str, ...] = ()  # words in the names of other classes that are part of the structure


def _without(numbers: Iterable[int], *left_out: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers).difference(*left_out)))


_LITS_TEST = (0, 4, 9, 13, 17, 21, 26, 53, 58, 62, 67, 71, 76, 80, 85, 99, 102, 107, 111, 116, 120, 125)
_LITS_UNUSED = (*range(28, 53), 94)
_SPLEEN_TEST = (8, 9, 10, 28, 32, 52, 60, 62)
_SPLEEN = (2, 3, 6, 8, 9, 10, 12, 13, 14, *range(16, 23), *range(24, 30), *range(31, 34), 38, 40, 41,
           *range(44, 48), 49, 52, 53, 56, *range(59, 64))  # fmt: skip
_KITS_TEST = (0, 10, 15, 20, 25, 31, 35, 45, 50, 54, 60, 62, 65, 72, 75, 80, 85, 91, 95, 100, 106, 110, 115, 120,
              125, 130, 132, 140, 142, 150, 155, 164, 170, 175, 180, 185, 190, 195, 201, 205)  # fmt: skip
_KITS_UNUSED = (1, 27, 53, 59, 71, 165)
_NIH_TEST = (8, 18, 24, 48, 54, 64, 65, 67, 68, 70, 71, 72, 74, 77, 79, 81)

UNION: Mapping[str, Part] = {
    "lits": Part("liver", _without(range(131), _LITS_TEST, _LITS_UNUSED), _LITS_TEST, ("tumo", "lesion")),
    "msd_spleen": Part("spleen", _without(_SPLEEN, _SPLEEN_TEST), _SPLEEN_TEST),
    "kits": Part("kidney", _without(range(210), _KITS_TEST, _KITS_UNUSED), _KITS_TEST, ("cyst",)),
    "nih": Part("pancreas", _without(range(1, 83), _NIH_TEST), _NIH_TEST),
}
NIH_LEAKS = (25, 70)  # the scan of case 2 once more: 25 would train with it, 70 would test on it


@checked_dataclass(frozen=True, config=_STRICT)
class LtudaToy:
    """The first n cases of each structure's list train on this structure alone; the 10 test cases keep all four."""

    n: Literal[3, 5, 10] = 10  # training cases per structure
    validation: int = Field(
        default=0, ge=0
    )  # per structure: the last of the n validate instead, on their structure
    data_set: str = ""  # the data set that holds the scans; needed only if it cannot be told

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest of the published setting."""
        data_sets = _data_sets(manifest, self.data_set or _toy_data_set(manifest), "data_set")
        names = {structure: _class_of(data_sets, structure) for structure in TOY_TRAIN}
        roles = {number: _Role("test", frozenset(names.values())) for number in TOY_TEST}
        for structure, numbers in TOY_TRAIN.items():
            roles |= _train_roles(numbers[: self.n], names[structure], self.validation)
        return _dealt(manifest, [_Share(data_sets, roles)], names.values())


@checked_dataclass(frozen=True, config=_STRICT)
class LtudaUnion:
    """Four data sets, each annotated for its own structure, with their published training and test cases."""

    lits: str = "lits"  # name of the data set in the manifest, for each of the four
    msd_spleen: str = "msd_spleen"
    kits: str = "kits"
    nih: str = "nih"
    drop_leaks: bool = True  # leave out NIH 25 and 70, which repeat case 2
    validation: int = Field(default=0, ge=0)  # per data set: the last training cases validate instead

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest of the published setting."""
        data_sets = {role: _data_sets(manifest, getattr(self, role), role) for role in UNION}
        taken = [data_set.name for members in data_sets.values() for data_set in members]
        if len(set(taken)) < len(taken):
            raise ConfigError(
                "two of the four roles have the same data set",
                found=", ".join(
                    f"{role} = {data_set.name}" for role, members in data_sets.items() for data_set in members
                ),
            )
        names = {role: _class_of(members, UNION[role].structure) for role, members in data_sets.items()}
        shares = []
        for role, members in data_sets.items():
            part, left_out = UNION[role], NIH_LEAKS if role == "nih" and self.drop_leaks else ()
            roles = _train_roles(_without(part.train, left_out), names[role], self.validation)
            roles |= {
                number: _Role("test", frozenset({names[role]})) for number in _without(part.test, left_out)
            }
            shares.append(_Share(members, roles, names[role], part.belongs))
        return _dealt(manifest, shares, names.values())


PUBLISHED: Mapping[str, type[LtudaToy | LtudaUnion]] = {"ltuda_toy": LtudaToy, "ltuda_union": LtudaUnion}


# what a list says about a case


@dataclass(frozen=True)
class _Role:
    split: str
    structures: frozenset[str]  # that stay annotated


@dataclass(frozen=True)
class _Share:
    """What the lists say about one data set."""

    data_sets: tuple[DataSet, ...]
    roles: Mapping[int, _Role]
    whole: str = ""  # the class that takes in the classes whose names hold one of the words `belongs`
    belongs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the data set: that of its first data set."""
        return self.data_sets[0].name

    @property
    def members(self) -> frozenset[str]:
        """Names of the data sets."""
        return frozenset(data_set.name for data_set in self.data_sets)


def _train_roles(numbers: Sequence[int], name: str, validation: int) -> dict[int, _Role]:
    if validation >= len(numbers):
        raise ConfigError(
            f"no training case would remain for '{name}'",
            found=f"validation = {validation} of {len(numbers)} cases",
            expected=f"0 to {len(numbers) - 1}",
        )
    train = len(numbers) - validation
    return {
        number: _Role("train" if place < train else "validation", frozenset({name}))
        for place, number in enumerate(numbers)
    }


def _dealt(manifest: Manifest, shares: Sequence[_Share], structures: Iterable[str]) -> Manifest:
    """The cases of the shares in the roles that the lists give them; of other classes and data sets nothing."""
    classes = frozenset(structures)
    share_of = {name: share for share in shares for name in share.members}
    cases = [case for case in manifest.cases if case.data_set in share_of]
    _refuse_unfit(cases, shares)
    dealt = []
    for case in cases:
        role = share_of[case.data_set].roles.get(number_of(case.id)) if case.annotated else None
        dealt.append(
            replace(case, split=role.split, annotated=role.structures)
            if role
            else replace(case, split="", annotated=case.annotated & classes)
        )
    names = tuple(name for name in manifest.label_space.names if name in {BACKGROUND, *classes})
    tables = {
        data_set.name: _reduced(data_set, share, classes) for share in shares for data_set in share.data_sets
    }
    return Manifest(LabelSpace(names), tables, tuple(dealt))


def number_of(name: str) -> int:
    """The last whole number in the id of a case; -1 if there is none.

    Example
        >>> number_of("Organ12_0031"), number_of("volume-7_ct"), number_of("phantom")
        (31, 7, -1)
    """
    return int((re.findall(r"\d+", name) or [-1])[-1])


def _refuse_unfit(cases: Sequence[Case], shares: Sequence[_Share]) -> None:
    """Every number of the lists must stand for one case, and that case must be annotated for what it teaches."""
    problems: list[str] = []
    for share in shares:
        found: dict[int, list[Case]] = {number: [] for number in share.roles}
        for case in cases:
            if case.data_set in share.members and case.annotated:
                found.get(number_of(case.id), []).append(case)
        problems += _problems(share, found)
    if problems:
        raise DataError(
            "the published lists do not fit the manifest",
            found="; ".join(problems),
            expected="every case of the lists once, known by the last number in its id, and annotated",
            do="import the whole data set with its own case names, or correct the columns 'id' and 'annotated'",
        )


def _problems(share: _Share, found: Mapping[int, Sequence[Case]]) -> Iterator[str]:
    name = share.name
    if missing := [number for number, cases in found.items() if not cases]:
        yield f"data set '{name}' has no annotated case {ranges(missing)}"
    for number, cases in found.items():
        if len(cases) > 1:
            yield f"data set '{name}' has several cases {number}: {', '.join(case.id for case in cases)}"
    for number, role in share.roles.items():
        for case in found[number]:
            if lacking := role.structures - case.annotated:
                yield f"case '{case.id}' is not annotated for {', '.join(sorted(lacking))}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order, three or more in a row as a range.

    Example
        >>> ranges([5, 1, 2, 3, 9])
        '1-3, 5, 9'
    """
    ordered = sorted(numbers)
    starts = [0, *(place for place, (a, b) in enumerate(pairwise(ordered), start=1) if b != a + 1)]
    runs = [ordered[first:end] for first, end in pairwise([*starts, len(ordered)])]
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs if run
    )


# data sets and classes


def _toy_data_set(manifest: Manifest) -> str:
    """The only data set, or the only one that the importer of AbdomenCT-1K has for the scans with 12 structures."""
    names = list(manifest.data_sets)
    twelve = [name for name in names if name.endswith("_organ12")]
    if len(names) > 1 and len(twelve) != 1:
        raise ConfigError(
            "the manifest has several data sets", expected=f"data_set = one of {', '.join(names)}"
        )
    return twelve[0] if len(names) > 1 else names[0]


def _data_sets(manifest: Manifest, name: str, setting: str) -> tuple[DataSet, ...]:
    """The data sets of one data set: `name`, and those that begin with `name` and '_' and have its value table."""
    kin = [data_set for other, data_set in manifest.data_sets.items() if other.startswith(f"{name}_")]
    if name in manifest.data_sets:
        usual = manifest.data_sets[name]
        return (usual, *(data_set for data_set in kin if data_set.values == usual.values))
    if not kin:
        raise ConfigError(
            f"unknown data set '{name}'{did_you_mean(name, manifest.data_sets)}",
            expected=", ".join(manifest.data_sets),
            do=f"name the data set of the manifest: --set {setting}=NAME",
            code="unknown-name",
        )
    return tuple(kin)


def _class_of(data_sets: Sequence[DataSet], structure: str) -> str:
    """The class of the manifest that means a structure, in any spelling; both kidneys are one class."""
    known = sorted(frozenset.union(*(data_set.structures for data_set in data_sets)))
    meant = [name for name in known if canonical(name) == canonical(structure)]
    for name in (structure, canonical(structure), *meant):
        if name in known:
            return name
    raise ConfigError(
        f"data set '{data_sets[0].name}' has no class for the {structure}",
        found=", ".join(known),
        expected=" or ".join(dict.fromkeys((structure, canonical(structure)))),
        do="name the class so in dataset.toml"
        + (
            ", with the values of both kidneys, or import with --sides kidneys=join"
            if structure == "kidney"
            else ""
        ),
    )


def _reduced(data_set: DataSet, share: _Share, classes: frozenset[str]) -> DataSet:
    """The same data set with no classes but these."""

    def meaning(name: str) -> str:
        if name in {*classes, BACKGROUND, IGNORE_NAME}:
            return name
        return share.whole if any(word in name.lower() for word in share.belongs) else BACKGROUND

    return replace(data_set, values={value: meaning(name) for value, name in data_set.values.items()})
