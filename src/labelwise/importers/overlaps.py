"""Structures that overlap, kept: each combination that occurs becomes a class, each structure a region of them.

    segments    liver, tumour in it       values 1 (liver), 3 (both)
    classes     liver without tumour = 1, tumour = 3
    regions     liver = liver without tumour, tumour

A structure that overlaps no other stays a class. Where a file shows some of the structures that overlap each other, but
not all, those that it shows are annotated as regions, for nobody knows which of their classes a voxel has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from labelwise.cohort.data_set import DataSet
from labelwise.cohort.manifest import Manifest
from labelwise.errors import warn_about
from labelwise.types import Case, LabelSpace

Combination = frozenset[str]


def with_overlaps(manifest: Manifest, data_set: DataSet, seen: Collection[Sequence[str]]) -> Manifest:
    """The manifest with the combinations of a data set as classes, and its structures that overlap as regions.

    Parameters
        data_set    how its files are read (``overlap = "kept"``); its table names the segments by number
        seen        the combinations of segments that its label files show
    """
    class_of = classes_of_segments(data_set)
    names = [*class_of.values()]
    bit = {segment: 1 << number for number, segment in enumerate(class_of)}
    known = [[segment for segment in segments if segment in class_of] for segments in seen]
    combinations = {
        sum(bit[segment] for segment in segments): frozenset(class_of[segment] for segment in segments)
        for segments in known
        if segments
    }
    # Every segment by itself, too: what no file shows is a class that is never drawn.
    shown = frozenset[str]().union(*combinations.values())
    combinations |= {
        bit[segment]: frozenset({name}) for segment, name in class_of.items() if name not in shown
    }
    order = {name: n for n, name in enumerate(manifest.label_space.structures)}
    named = _named(set(combinations.values()), order)
    classes = sorted(named, key=lambda each: sorted(order[name] for name in each))
    regions = {
        name: tuple(named[each] for each in classes if name in each)
        for name in order
        if name in {*names} and [each for each in classes if name in each] != [frozenset({name})]
    }
    others = [name for name in order if name not in {*names}]
    space = LabelSpace(
        (manifest.label_space.names[0], *others, *(named[each] for each in classes)),
        tuple((name, parts) for name, parts in regions.items() if name not in named.values()),
    )
    values = {0: data_set.values[0], **{value: named[each] for value, each in sorted(combinations.items())}}
    groups = _groups(combinations.values())
    cases, untold = [], []
    for case in manifest.cases:
        if case.data_set == data_set.name and case.annotated:
            annotated, lost = _annotated(case, groups, named, space)
            untold += [f"{case.id}: {name}" for name in lost]
            case = replace(case, annotated=annotated)
        cases.append(case)
    warn_about(
        "structures that overlap another one that the file shows too, but not a third that overlaps both: they are not "
        "annotated there",
        untold,
    )
    data_sets = {**manifest.data_sets, data_set.name: replace(data_set, values=values)}
    return Manifest(space, data_sets, tuple(cases))


def classes_of_segments(data_set: DataSet) -> dict[str, str]:
    """Segment -> class, in the order of the layout, whose table numbers the segments from 1."""
    return {segment: data_set.values[n] for n, segment in enumerate(data_set.layout.segments, start=1)}


def _named(combinations: Collection[Combination], order: Mapping[str, int]) -> dict[Combination, str]:
    """A name for each combination: that of a structure which is nowhere else; else what it has and what it lacks."""
    found = {}
    for each in combinations:
        own = [
            name for name in sorted(each, key=order.__getitem__) if sum(name in c for c in combinations) == 1
        ]
        beside = {name for other in combinations if each < other for name in other - each}
        without = f" without {' and '.join(sorted(beside, key=order.__getitem__))}" if beside else ""
        found[each] = own[0] if own else " and ".join(sorted(each, key=order.__getitem__)) + without
    return found


def _groups(combinations: Collection[Combination]) -> list[frozenset[str]]:
    """Structures that overlap each other, directly or through others, together."""
    groups: list[frozenset[str]] = []
    for each in combinations:
        joined = each.union(*(group for group in groups if group & each))
        groups = [group for group in groups if not group & each] + [joined]
    return groups


def _annotated(
    case: Case, groups: Sequence[frozenset[str]], named: Mapping[Combination, str], space: LabelSpace
) -> tuple[frozenset[str], list[str]]:
    """What a case is annotated for, in classes and regions; and the structures for which there are no words."""
    annotated: set[str] = set()
    lost: list[str] = []
    for group in groups:
        shown = group & case.annotated
        if shown == group:
            annotated |= {name for each, name in named.items() if each <= group}
            continue
        for name in sorted(shown, key=[*space.names, *space.region_names].index):
            if any(space.classes_of(name) & space.classes_of(other) for other in annotated):
                lost.append(name)
            else:
                annotated.add(name)
    return frozenset(annotated), lost
