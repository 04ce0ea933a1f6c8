"""Labels of a case as reviewers see and change them: what people drew, what models propose, and what comes back.

    shown       what people drew, and where that is background what models propose of the other classes
    corrected   what people drew, with the judged classes replaced voxel by voxel, and nothing else

The labels of a corrected case are a new file. It belongs to a data set of its own, ``NAME_reviewed``, because it may
show more classes than the files of NAME do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from labelwise.anatomy import canonical
from labelwise.cohort.data_set import IGNORE_NAME, DataSet
from labelwise.cohort.manifest import Manifest, read_case_labels
from labelwise.errors import DataError, did_you_mean
from labelwise.formats import (
    Geometry,
    Tally,
    placed_on,
    read_geometry,
    read_labels,
    record_of,
    segment_names,
    value_names,
    write_labels,
)
from labelwise.types import BACKGROUND, IGNORE, Array, Case, LabelSpace, Proposal, Volume

_SUFFIX = "_reviewed"


@dataclass(frozen=True)
class Drawn:
    """What a label file says, on the grid of its scan."""

    labels: Array  # (X, Y, Z) uint8 class indices
    structures: frozenset[str]  # named by the file, with or without a voxel


def class_of(name: str, label_space: LabelSpace) -> str | None:
    """The class that a name means, also in another spelling or by a synonym; None if there is none."""
    if name in label_space.names:
        return name
    return next((each for each in label_space.names if canonical(each) == canonical(name)), None)


class Noted(NamedTuple):
    """What the record of a proposal says of a class."""

    voxels: int | None  # None: nothing is noted
    expected_dice: float  # 1 for a class that is surely absent; NaN: nothing is noted


def noted(case: Case, label_space: LabelSpace) -> dict[str, Noted]:
    """Proposed class -> what the records of the proposals say of it."""
    found: dict[str, Noted] = {}
    for proposal in case.proposals:
        try:
            facts = json.loads(record_of(proposal.file).read_text(encoding="utf-8"))["certainty"]
        except (OSError, ValueError, KeyError):
            facts = {}
        known = (
            {class_of(name, label_space): fact for name, fact in facts.items()}
            if isinstance(facts, dict)
            else {}
        )
        for name in proposal.structures:
            fact = known.get(name)
            if not isinstance(fact, dict):
                found[name] = Noted(None, math.nan)
                continue
            value = fact.get("expected_dice", math.nan)
            found[name] = Noted(fact.get("voxels"), 1.0 if value is None else float(value))
    return found


def read_drawn(
    file: Path,
    case: Case,
    manifest: Manifest,
    classes: Mapping[int, str] | None = None,
    *,
    others: bool = False,
) -> Drawn:
    """Read a label file of a case: NIfTI, NRRD, .seg.nrrd, DICOM-SEG or RTSTRUCT.

    Parameters
        classes     label value -> name, for files that do not name their values
        others      classes that the manifest does not know are background; else they are refused

    Errors
        DataError   a damaged file, an unknown class, values without a name, structures that overlap, another grid
    """
    layout = manifest.data_set_of(case).layout
    own = replace(layout, segments=segment_names(file), label_grid="own", label_flip="")
    named = (
        dict(enumerate(own.segments, start=1)) if own.segments else value_names(file) or dict(classes or {})
    )
    if not named:
        raise DataError(
            "no file says what the label values mean",
            file=file,
            do="name them (--classes liver=1,spleen=2), or keep the .json that `labelwise review` wrote beside it",
        )
    table = _table(file, named, manifest.label_space, others=others)
    tally, grid = Tally(), read_geometry(case.images[0], layout)
    volume = placed_on(read_labels(file, own, case.images[0], tally), grid)
    _check_grid(file, grid, volume)
    _refuse_lost(file, named, tally)
    labels = table[np.where((volume.data >= 0) & (volume.data < len(table)), volume.data, len(table) - 1)]
    if (labels == IGNORE).any():
        strange = np.unique(volume.data[labels == IGNORE]).tolist()
        raise DataError(
            "the label file holds values without a name",
            file=file,
            found=", ".join(map(str, strange[:8])),
            expected=", ".join(f"{value} {name}" for value, name in sorted(named.items())),
        )
    structures = {class_of(name, manifest.label_space) for name in named.values()} - {None, BACKGROUND}
    return Drawn(labels, frozenset(filter(None, structures)))


def read_proposal(proposal: Proposal, case: Case, manifest: Manifest) -> Array:
    """(X, Y, Z) uint8 class indices of what a model proposes for a case.

    Errors
        DataError   the file is missing or damaged
    """
    labels = read_drawn(proposal.file, case, manifest, others=True).labels
    labels[~np.isin(labels, _indices(proposal.structures, manifest))] = 0
    return labels


def drawn_by_people(case: Case, manifest: Manifest) -> Volume:
    """(X, Y, Z) uint8 of what people drew; IGNORE only where they said so, parts aside. Without annotation all is 0."""
    labels = read_case_labels(replace(case, parts=()), manifest)
    return labels if case.annotated else Volume(np.zeros_like(labels.data), labels.affine)


def learnt(case: Case, manifest: Manifest) -> Volume:
    """(X, Y, Z) uint8: what people drew, and where that is background what models propose; IGNORE stays."""
    people = drawn_by_people(case, manifest)
    labels = people.data.copy()
    for proposal in case.proposals:
        np.copyto(labels, read_proposal(proposal, case, manifest), where=labels == 0)
    return Volume(labels, people.affine)


def shown(case: Case, manifest: Manifest) -> Volume:
    """The same as reviewers see it: where nothing is known, nothing is drawn."""
    labels = learnt(case, manifest)
    labels.data[labels.data == IGNORE] = 0
    return labels


def changes(
    before: Array, after: Array, structures: Iterable[str], label_space: LabelSpace
) -> dict[str, int]:
    """Structure -> number of voxels that belong to it in one of the label maps only."""
    differs = before != after
    old = np.bincount(before[differs], minlength=IGNORE + 1)
    new = np.bincount(after[differs], minlength=IGNORE + 1)
    return {structure: int((old + new)[label_space.index(structure)]) for structure in structures}


def corrected(case: Case, manifest: Manifest, drawn: Drawn, judged: Collection[str]) -> Volume:
    """(X, Y, Z) uint8: what people drew, with the judged structures as they are drawn now.

    Where people said that nothing is known, that stays, until reviewers have judged every annotated structure.

    Errors
        DataError   a judged structure covers voxels of an annotated one that is not judged
    """
    people = drawn_by_people(case, manifest)
    labels, space = people.data.copy(), manifest.label_space
    labels[np.isin(labels, _indices(judged, manifest))] = 0
    taken = np.isin(drawn.labels, _indices(judged, manifest))
    _refuse_overlap(labels, drawn.labels, taken, space)
    np.copyto(labels, drawn.labels, where=taken)
    if case.annotated <= case.corrected | case.verified | frozenset(judged):
        labels[labels == IGNORE] = 0
    return Volume(labels, people.affine)


def reviewed_data_set(manifest: Manifest, case: Case) -> DataSet:
    """The data set of the corrected labels of a case: it can show every class, with values that never change."""
    data_set = manifest.data_set_of(case)
    name = data_set.name if data_set.name.endswith(_SUFFIX) else data_set.name + _SUFFIX
    known = manifest.data_sets.get(name)
    values = dict(known.values) if known else {0: BACKGROUND, IGNORE: IGNORE_NAME}
    free = (value for value in range(1, 2 * IGNORE) if value not in values)
    for structure in manifest.label_space.structures:
        if structure not in values.values():
            values[next(free)] = structure
    layout = replace(data_set.layout, segments=(), label_grid="own", label_flip="")
    return replace(data_set, name=name, values=values, layout=layout, others="")


def write_reviewed(
    file: Path, labels: Volume, case: Case, data_set: DataSet, label_space: LabelSpace
) -> None:
    """Write class indices (X, Y, Z) as a label file of a `reviewed_data_set`, on the grid of the scan."""
    table = np.full(IGNORE + 1, IGNORE, np.uint16)
    names = [""] * (max(data_set.values) + 1)
    for value, name in data_set.values.items():
        if name in label_space.names:
            table[label_space.index(name)] = value
            names[value] = name
    names = names[: 1 + max(value for value, name in enumerate(names) if name)]
    write_labels(
        file,
        Volume(table[labels.data], labels.affine),
        like=case.images[0],
        layout=data_set.layout,
        names=names,
    )


def _indices(structures: Iterable[str], manifest: Manifest) -> list[int]:
    return [manifest.label_space.index(structure) for structure in structures]


def _table(file: Path, named: Mapping[int, str], space: LabelSpace, *, others: bool) -> Array:
    """Label value -> class index; IGNORE for values without a name, and at the end."""
    table = np.full(max(named) + 2, IGNORE, np.uint8)
    table[0] = 0
    for value, name in named.items():
        found = class_of(name, space)
        if found is None and not others:
            raise DataError(
                f"unknown class '{name}'{did_you_mean(name, space.structures)}",
                file=file,
                expected=", ".join(space.structures),
                do="rename the structure, or add the class to dataset.toml",
                code="unknown-name",
            )
        table[value] = space.index(found) if found else 0
    return table


def _check_grid(file: Path, grid: Geometry, labels: Volume) -> None:
    found = Geometry(labels.shape, labels.affine)
    if not grid.matches(found):
        raise DataError(
            "the labels do not lie on the grid of the scan",
            file=file,
            found=found,
            expected=grid,
            do="export them on the grid of the scan: in 3D Slicer choose the scan as the reference volume",
            code="grids-differ",
        )


def _refuse_lost(file: Path, named: Mapping[int, str], tally: Tally) -> None:
    """A label map has one class for each voxel: structures that overlap, or are half there, cannot be believed."""
    if overlaps := tally.losses(named):
        raise DataError(
            "structures overlap",
            file=file,
            found="; ".join(overlaps),
            do="let each voxel belong to one structure",
        )
    if tally.dropped:
        value, what = next(iter(tally.dropped.items()))
        raise DataError(
            f"'{named[value]}' cannot be read completely", file=file, found=what, do="draw it again"
        )


def _refuse_overlap(kept: Array, drawn: Array, taken: Array, space: LabelSpace) -> None:
    both = taken & (kept > 0) & (kept < IGNORE)
    if not both.any():
        return
    counts = np.bincount(kept[both], minlength=space.num_classes)
    covered = ", ".join(
        f"{space.names[index]} ({counts[index]:,} voxels)" for index in np.flatnonzero(counts).tolist()
    )
    correcting = ", ".join(space.names[index] for index in np.unique(drawn[both]).tolist())
    raise DataError(
        f"the correction of {correcting} covers what people drew as {covered}",
        expected="classes that do not overlap",
        do="give both classes in one file, so that both are corrected",
    )
