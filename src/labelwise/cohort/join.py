"""Several data sets in one label space: classes are joined by what their names mean.

    names      known spellings of a structure become its canonical name (`labelwise.anatomy`); others stay
    sides      where one data set has left and right in one class and another has them apart, the caller chooses
    lesions    where one data set has a tumour as a class and another counts it as something else, the user is told

Only the value tables of the data sets and the lists of annotated classes change; label files are never rewritten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from labelwise.anatomy import canonical, find, structures
from labelwise.cohort.data_set import IGNORE_NAME
from labelwise.cohort.manifest import DataSet, Manifest, merge
from labelwise.cohort.parts import by_part
from labelwise.errors import ConfigError, did_you_mean, warn_about
from labelwise.types import BACKGROUND, Case, LabelSpace

logger = logging.getLogger("labelwise")

Side = Literal["join", "split"]
Sides = Side | Mapping[str, Side] | None
"""What becomes of left and right: a choice for every conflict, or for the named joint classes ("kidneys")."""

CHOICES: tuple[Side, ...] = ("join", "split")
LESIONS = ("tumour", "cyst")


@dataclass(frozen=True)
class SideConflict:
    """One data set has both of a pair in one class, another has them apart."""

    whole: str  # the joint class
    joint: tuple[str, ...]  # data sets that have it
    apart: Mapping[str, tuple[str, ...]]  # data set -> its classes with a side

    def __str__(self) -> str:
        apart = ", ".join(f"{' and '.join(names)} in {data_set}" for data_set, names in self.apart.items())
        return f"{self.whole} in {', '.join(self.joint)}; {apart}"


def join(manifests: Sequence[Manifest], sides: Sides = None) -> Manifest:
    """One manifest of several; a single one keeps its names, and only what `sides` names is changed in it.

    Parameters
        sides   join: left and right become one class in every data set; a case is annotated for it if it was for
                both. split: the joint class goes, and the cases that have it are no longer annotated for it. A
                plain word settles conflicts only, a mapping also joins pairs about which data sets agree

    Errors
        ConfigError     data sets disagree about sides and nothing is chosen; a data set would be left without a class;
                        `sides` has another value, or names a class that joins no pair
        DataError       two different data sets have the same name
    """
    wanted = _choices(sides)
    if len(manifests) == 1:
        manifest = manifests[0]
    else:
        manifest = merge([_with_canonical_names(manifest) for manifest in manifests])
    conflicts = side_conflicts(manifest) if len(manifests) > 1 else []
    if isinstance(wanted, str):
        if not conflicts:
            logger.warning(
                "no data sets disagree about left and right: sides = %s changes nothing; name the class to join a "
                "pair all the same, as in kidneys=join",
                wanted,
            )
        wanted = {conflict.whole: wanted for conflict in conflicts}
    if open_ := [conflict for conflict in conflicts if conflict.whole not in wanted]:
        raise _undecided(open_)
    for whole, choice in wanted.items():
        manifest = _joined(manifest, whole) if choice == "join" else _split(manifest, whole)
    if len(manifests) > 1:
        _warn_of_lesions(manifest)
    return manifest


def with_classes(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The manifest in the label space of a model: its classes as it spells them, then those that it does not know.

    Proposals are left out, because they are in the words of the manifest.

    Parameters
        names   of the model's classes, background first

    Errors
        ConfigError     left and right are one class in one of them and two in the other; two classes of the manifest
                        mean the same class of the model
    """
    spelt = {canonical(name): name for name in names}
    meaning = {name: spelt.get(canonical(name), name) for name in manifest.label_space.names}
    if len(set(meaning.values())) < len(meaning):
        raise ConfigError(
            "two classes of the data mean the same class of the model",
            found=", ".join(manifest.label_space.structures),
            expected=", ".join(names[1:]),
            do="import the data again with one of them",
        )
    classes = tuple(dict.fromkeys((*names, *meaning.values())))
    for whole, parts in _pairs().items():
        theirs, ours = ({canonical(name) for name in each} for each in (names, meaning))
        if (whole in theirs and ours & {*parts}) or (whole in ours and theirs & {*parts}):
            raise ConfigError(
                f"left and right of {whole} are one class in the model or in the data, and two in the other",
                found=", ".join(manifest.label_space.structures),
                expected=", ".join(names[1:]),
                do="give both the same classes: see the option --sides of `labelwise import`",
            )
    bare = manifest.replace_cases(replace(case, proposals=()) for case in manifest.cases)
    return _mapped(
        bare,
        classes,
        lambda _, name: meaning.get(name, name),
        lambda structures: frozenset(meaning.get(name, name) for name in structures),
        meaning,
    )


# names


def _with_canonical_names(manifest: Manifest) -> Manifest:
    """Two classes of one manifest never become one: the second keeps the name that it has."""
    name_of: dict[str, str] = {}
    structures = sorted(manifest.label_space.structures, key=lambda name: name != canonical(name))
    for structure in structures:
        name = canonical(structure)
        if name in name_of.values():
            logger.warning(
                "data set %s has two classes that mean %s: '%s' keeps its name",
                ", ".join(manifest.data_sets), name, structure,
            )  # fmt: skip
            name = structure
        name_of[structure] = name
    return _mapped(
        manifest,
        [name_of.get(name, name) for name in manifest.label_space.names],
        lambda _, name: name_of.get(name, name),
        lambda names: frozenset(name_of.get(name, name) for name in names),
        name_of,
    )


# left and right


def side_conflicts(manifest: Manifest) -> list[SideConflict]:
    """Pairs that some data sets have in one class and other data sets apart."""
    conflicts = []
    for whole, parts in _pairs().items():
        joint = tuple(
            data_set.name for data_set in manifest.data_sets.values() if whole in data_set.structures
        )
        apart = {
            data_set.name: names
            for data_set in manifest.data_sets.values()
            if (names := tuple(name for name in parts if name in data_set.structures))
        }
        if joint and apart and {*joint} != {*apart}:
            conflicts.append(SideConflict(whole, joint, apart))
    return conflicts


def _pairs() -> dict[str, tuple[str, ...]]:
    """Joint class -> the classes with a side that it takes in."""
    pairs: dict[str, tuple[str, ...]] = {}
    for structure in structures().values():
        if structure.whole:
            pairs[structure.whole] = (*pairs.get(structure.whole, ()), structure.name)
    return pairs


def _choices(sides: Sides) -> Side | dict[str, Side]:
    """The choice for all conflicts, or for each joint class."""
    if sides is None:
        return {}
    for choice in sides.values() if isinstance(sides, Mapping) else [sides]:
        if choice not in CHOICES:
            raise ConfigError(
                f"sides = '{choice}' is no choice{did_you_mean(str(choice), CHOICES)}",
                expected="join or split, or such as kidneys=join",
            )
    if not isinstance(sides, Mapping):
        return sides
    pairs = _pairs()
    for name in sides:
        if canonical(name) not in pairs:
            raise ConfigError(
                f"'{name}' is no class that joins left and right{did_you_mean(name, pairs)}",
                expected=", ".join(pairs),
            )
    return {canonical(name): choice for name, choice in sides.items()}


def _undecided(conflicts: Sequence[SideConflict]) -> ConfigError:
    wholes = ", ".join(conflict.whole for conflict in conflicts)
    data_sets = ", ".join(dict.fromkeys(name for conflict in conflicts for name in conflict.joint))
    return ConfigError(
        "a data set has left and right in one class, another has them apart",
        found="\n            ".join(map(str, conflicts)),
        expected="the same classes in all data sets",
        do=f"--sides join: left and right become one class everywhere ({wholes}); or\n"
        f"            --sides split: the cases of {data_sets} are no longer annotated for {wholes}",
    )


def _joined(manifest: Manifest, whole: str) -> Manifest:
    """Left and right become one class; a case for which one of them was annotated is not annotated for it."""
    joint, apart = _classes_of(manifest, whole)

    def meaning(_: DataSet, name: str) -> str:
        return whole if name in joint | apart else name

    def annotated(structures: frozenset[str]) -> frozenset[str]:
        known = {canonical(structure) for structure in structures}
        complete = whole in known or known.issuperset(_pairs()[whole])
        return structures - joint - apart | ({whole} if complete else frozenset())

    names = dict.fromkeys(whole if name in joint | apart else name for name in manifest.label_space.names)
    after = _mapped(manifest, names, meaning, annotated, dict.fromkeys(joint | apart, whole))
    one_side = [
        before.id
        for before, case in zip(manifest.cases, after.cases, strict=True)
        if before.annotated & apart and whole not in case.annotated
    ]
    warn_about(f"cases annotated for one side only are not annotated for {whole}", one_side)
    return after


def _split(manifest: Manifest, whole: str) -> Manifest:
    """The joint class goes. Where a data set has the sides too, its voxels of the joint class are unknown."""
    joint, apart = _classes_of(manifest, whole)
    if not apart:
        raise ConfigError(f"no data set has left and right of '{whole}' apart", do=f"leave {whole}=split out")
    if bare := [
        data_set.name
        for data_set in manifest.data_sets.values()
        if data_set.structures and data_set.structures <= joint
    ]:
        raise ConfigError(
            f"nothing would be left of data set {', '.join(bare)}: {whole} is its only class",
            do="choose --sides join, or leave the data set out",
        )

    def meaning(data_set: DataSet, name: str) -> str:
        if name not in joint:
            return name
        return IGNORE_NAME if data_set.structures & apart else BACKGROUND

    affected = [case.id for case in manifest.cases if case.annotated & joint]
    warn_about(f"cases that are no longer annotated for {whole}", affected)
    names = [name for name in manifest.label_space.names if name not in joint]
    return _mapped(manifest, names, meaning, lambda structures: structures - joint)


def _classes_of(manifest: Manifest, whole: str) -> tuple[frozenset[str], frozenset[str]]:
    """The classes of a manifest that mean both of a pair, and those that mean one of it."""
    structures, parts = manifest.label_space.structures, _pairs()[whole]
    joint = frozenset(name for name in structures if canonical(name) == whole)
    apart = frozenset(name for name in structures if canonical(name) in parts)
    if not joint | apart:
        raise ConfigError(
            f"no data set has the class '{whole}', or left and right of it",
            found=", ".join(structures),
            do=f"leave it out of the choice of sides: {whole}",
        )
    return joint, apart


def _mapped(
    manifest: Manifest,
    names: Iterable[str],
    meaning: Callable[[DataSet, str], str],
    annotated: Callable[[frozenset[str]], frozenset[str]],
    renamed: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest with other classes, with `meaning` in the place of each name in the value tables.

    `renamed` says what became of the classes of regions. A region of which a class is gone goes too, and what was
    annotated as that region is unknown.
    """
    names = tuple(names)
    regions = _renamed_regions(manifest.label_space, names, renamed or {})
    gone = {*manifest.label_space.region_names}.difference(names, dict(regions))
    data_sets = {
        data_set.name: replace(
            data_set,
            values={
                value: IGNORE_NAME if name in gone else meaning(data_set, name)
                for value, name in data_set.values.items()
            },
        )
        for data_set in manifest.data_sets.values()
    }

    def mapped(case: Case) -> Case:
        # By part: left and right make a whole only where both are known.
        known = [(annotated(structures - gone), part) for structures, part in by_part(case)]
        parts = tuple(replace(part, structures=structures) for structures, part in known if part)
        return replace(
            case, annotated=frozenset().union(*(structures for structures, _ in known)), parts=parts
        )

    return Manifest(LabelSpace(names, regions), data_sets, tuple(map(mapped, manifest.cases)))


def _renamed_regions(
    space: LabelSpace, names: Sequence[str], renamed: Mapping[str, str]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The regions of a label space over its classes after a change, without those that lost one or became a class."""
    found = []
    for region in space.region_names:
        classes = {renamed.get(name, name) for name in space.classes_of(region)}
        if region not in names and classes <= {*names}:
            found.append((region, tuple(name for name in names if name in classes)))
    return tuple(found)


def without_structures(manifest: Manifest, gone: Collection[str]) -> Manifest:
    """The manifest without these classes, whose voxels become background; a data set that has no other leaves it."""
    taken = frozenset(gone)

    def kept(case: Case) -> Case:
        proposals = tuple(replace(each, structures=each.structures - taken) for each in case.proposals)
        return replace(case, proposals=proposals)

    data_sets = {
        name: data_set for name, data_set in manifest.data_sets.items() if data_set.structures - taken
    }
    cases = tuple(kept(case) for case in manifest.cases if case.data_set in data_sets)
    names = [name for name in manifest.label_space.names if name not in taken]
    return _mapped(
        replace(manifest, data_sets=data_sets, cases=cases),
        names,
        lambda _, name: BACKGROUND if name in taken else name,
        lambda structures: structures - taken,
    )


# tumours


def _warn_of_lesions(manifest: Manifest) -> None:
    """Say where a tumour is a class of its own, and another data set that annotates the structure has no such class."""
    for lesion in manifest.label_space.structures:
        structure, _, kind = lesion.rpartition(" ")
        if kind not in LESIONS:
            continue
        structures = _with_sides(canonical(structure))
        own = _data_sets_with(manifest.data_sets.values(), {lesion})
        others = [
            name for name in _data_sets_with(manifest.data_sets.values(), structures) if name not in own
        ]
        if own and others:
            logger.warning(
                "'%s' is a class of its own in %s; %s annotates the %s without it, where it may count as structure or "
                "as background: the importers' option '%s' makes data sets agree",
                lesion, ", ".join(own), ", ".join(others), canonical(structure), kind,
            )  # fmt: skip


def _with_sides(structure: str) -> set[str]:
    found = find(structure)
    whole = found.whole if found and found.whole else structure
    return {structure, whole, *_pairs().get(whole, ())}


def _data_sets_with(data_sets: Iterable[DataSet], classes: set[str]) -> list[str]:
    return [data_set.name for data_set in data_sets if data_set.structures & classes]
