"""What the labels of a stored case say to someone who knows only some classes, and some of them in a part of the scan.

While patches are read and moved, a voxel is one number: a class, IGNORE, or a *code* behind the classes. A code is a
background voxel at which other classes are known than elsewhere in its case, or a voxel of a region that is annotated
as one: its class is one of those that are not known there. When a batch is made, codes become `Batch.labels`, and
`Batch.annotated` for each voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labelwise.cohort.data_set import numbers_in
from labelwise.cohort.parts import by_part, inside, known_in, require_within
from labelwise.errors import DataError
from labelwise.loading.store import AS_STORED, POINTS_PER_CLASS, Corner, Store, StoredCase, annotated_table
from labelwise.types import IGNORE, Array, Case, LabelSpace


class Meaning(NamedTuple):
    """What the numbers of each case of a batch mean."""

    labels: Tensor  # (B, 256) uint8: class index or IGNORE
    annotated: Tensor  # (B, 256, C) bool: the classes that are known there

    def swap(self, rows: Sequence[int], other_side: Sequence[int]) -> Meaning:
        """The same for patches of these rows whose classes of left and right were exchanged."""
        annotated = self.annotated.clone()
        annotated[list(rows)] = annotated[list(rows)][:, :, list(other_side)]
        return self._replace(annotated=annotated)

    def decode(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (B, *S) -> labels (B, *S) uint8 and annotated (B, C, *S)."""
        device, rows = numbers.device, torch.arange(len(numbers), device=numbers.device)
        row, index = rows.view(-1, *(1 for _ in numbers.shape[1:])), numbers.long()
        labels = self.labels.to(device, non_blocking=True)[row, index]
        return labels, self.annotated.to(device, non_blocking=True)[row, index].movedim(-1, 1)


class KnownLabels:
    """How the labels of one case are read. Holds no file, so worker processes can have it.

    Errors
        DataError   a part in which classes are annotated lies beyond the scan, or there are more parts than the
                    numbers of a byte can tell apart
    """

    def __init__(self, case: Case, label_space: LabelSpace, store: Store):
        named = [name for name in label_space.region_names if name in case.annotated]
        # Of the regions that are annotated as one: their classes (C,) bool, and the stored numbers that lie in them.
        self.regions = [
            (np.isin(label_space.names, [*label_space.classes_of(name)]), numbers_in(label_space, name))
            for name in named
        ]
        self._annotated = label_space.told_apart(case.annotated)
        self._denied = frozenset[str]().union(*map(label_space.classes_of, named))  # beyond the regions
        self.annotated = label_space.annotated_row(self._annotated | self._denied)
        # Code -> label, and (C,) bool, the classes that are known there.
        self.codes: dict[int, tuple[int, Array]] = {}
        self._boxes = [part for part in case.parts if part.boxes]
        if label_space.num_classes + 2 ** len(self._boxes) + len(self.regions) > IGNORE:
            raise DataError(
                "the classes of a case are annotated in too many different parts",
                case=case.id,
                found=f"{len(self._boxes)} parts and {len(label_space.structures)} classes",
                do="let classes share parts in the column 'parts', or train on fewer classes",
            )
        self._places: tuple[Array, ...] = ()
        if self._boxes:
            stored = store.case(case.id)
            self._places = stored.places
            for part in self._boxes:
                require_within(case, part, stored.undo.shape)
        drawn = {structure for part in case.parts if not part.boxes for structure in part.structures}
        # One table for each set of parts that a voxel may lie in: bit n of its number is part n.
        self._tables = np.stack(
            [self._table(case, label_space, drawn, number) for number in range(2 ** len(self._boxes))]
        )

    def read(self, stored: StoredCase, corner: Corner, out: Array) -> None:
        """Fill `out` (*size) uint8 with the numbers of the patch that begins at `corner`; IGNORE beyond the scan."""
        if not self._boxes:
            stored.read_labels(corner, out, self._tables[0])
            return
        stored.read_labels(corner, out, AS_STORED)
        patch = zip(self._places, corner, out.shape, strict=True)
        places = [along[np.clip(np.arange(low, low + size), 0, len(along) - 1)] for along, low, size in patch]
        tables = np.zeros(out.shape, np.uint8)
        for bit, part in enumerate(self._boxes):
            tables |= inside(part, places).view(np.uint8) << bit
        out[...] = self._tables[tables, out]

    def points(self, stored: StoredCase) -> dict[int, Array]:
        """`StoredCase.points` where they are known; 0 names known voxels of a case that is annotated in parts only.

        The voxels of a region stand under its first class.
        """
        whole = np.empty(stored.shape, np.uint8)
        self.read(stored, (0, 0, 0), whole)
        found = {
            index: known
            for index, voxels in stored.points.items()
            if index and len(known := voxels[whole[tuple(voxels.T)] == index])
        }
        for classes, numbers in self.regions:
            if shown := [stored.points[number] for number in numbers if number in stored.points]:
                found[int(classes.argmax())] = np.concatenate(shown)
        known = np.flatnonzero(whole != IGNORE)
        if len(known) < whole.size and len(known):
            chosen = np.random.default_rng(0).choice(known, min(POINTS_PER_CLASS, len(known)), replace=False)
            found[0] = np.stack(np.unravel_index(chosen, whole.shape), axis=1).astype(np.int32)
        return found

    def slices(self, stored: StoredCase) -> dict[int, tuple[int, int]]:
        """`StoredCase.slices` of the classes; those of a region stand under its first class."""
        found = {index: ends for index, ends in stored.slices.items() if index < len(self.annotated)}
        for classes, numbers in self.regions:
            if shown := [stored.slices[number] for number in numbers if number in stored.slices]:
                firsts, lasts = zip(*shown, strict=True)
                found[int(classes.argmax())] = min(firsts), max(lasts)
        return found

    def _table(self, case: Case, label_space: LabelSpace, drawn: set[str], inside: int) -> Array:
        """(256,) stored label -> number, where a voxel lies in the parts of the bits of `inside`."""
        outside = {
            structure
            for bit, part in enumerate(self._boxes)
            if not inside >> bit & 1
            for structure in part.structures
        }
        known = self._annotated - outside
        table = annotated_table(label_space.annotated_row(known | self._denied))
        table[table == 0] = self._background(label_space.annotated_row(known - drawn | self._denied))
        for classes, numbers in self.regions:
            table[numbers] = self._code(IGNORE, ~classes)
        return table

    def _background(self, known: Array) -> int:
        """The number of a background voxel at which these classes (C,) are known."""
        if (known == self.annotated).all():
            return 0
        return self._code(0, known) if known.any() else IGNORE

    def _code(self, label: int, known: Array) -> int:
        """The number of voxels of this label at which these classes (C,) are known."""
        same = (code for code, (other, row) in self.codes.items() if other == label and (row == known).all())
        code = next(same, len(known) + len(self.codes))
        self.codes[code] = label, known
        return code


def references(case: Case, label_space: LabelSpace, stored: StoredCase) -> Iterator[tuple[Array, Array]]:
    """What predictions of a whole stored case are compared with, for each part in which classes are annotated.

    Yields (C,) bool, the classes, and (X, Y, Z) uint8 labels, IGNORE beyond their part.

    Errors
        DataError   a part lies beyond the scan
    """
    labels = stored.labels(annotated_table(label_space.annotated_row(case.annotated)))
    for structures, part in by_part(case):
        if part is not None:
            require_within(case, part, stored.undo.shape)
        yield label_space.annotated_row(structures), known_in(labels, part, stored.places)


def without_codes(numbers: Array, num_classes: int) -> Array:
    """Numbers (*S) as labels of which codes are IGNORE: what is known there depends on the class."""
    return np.where((numbers >= num_classes) & (numbers < IGNORE), IGNORE, numbers).astype(np.uint8)


def meaning_of(known: Sequence[KnownLabels]) -> Meaning | None:
    """What the numbers of a batch of these cases mean; None if no number of theirs is a code."""
    if not any(each.codes for each in known):
        return None
    labels = np.tile(AS_STORED, (len(known), 1))
    annotated = np.repeat(np.stack([each.annotated for each in known])[:, None], 256, axis=1)
    for row, each in enumerate(known):
        for code, (label, there) in each.codes.items():
            labels[row, code], annotated[row, code] = label, there
    return Meaning(torch.from_numpy(labels), torch.from_numpy(annotated))
