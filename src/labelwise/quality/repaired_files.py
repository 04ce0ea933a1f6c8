"""Repaired copies of the files of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from labelwise.cohort.data_set import IGNORE_NAME, DataSet
from labelwise.cohort.manifest import Manifest, resolved
from labelwise.errors import DataError
from labelwise.formats import Layout, read_geometry, stored, write_image, write_labels
from labelwise.formats.geometry import orientation_of
from labelwise.quality.stored_case import StoredLabels, read_stored_labels
from labelwise.quality.structures import find_structure, left_right_pairs, unlabelled_slices
from labelwise.types import Array, Case, Volume

_PLAIN = Layout()


@dataclass(frozen=True)
class Repair:
    """One thing that was mended."""

    code: str
    case: str
    file: str  # the copy, or empty if only the manifest changed
    what: str

    def __str__(self) -> str:
        return f"case '{self.case}': {self.what}" + (f"  {self.file}" if self.file else "")

    def to_json(self) -> dict[str, str]:
        """The repair as a JSON object."""
        return asdict(self)


def write_copies(
    single: Manifest, codes: Sequence[str], folder: Path
) -> tuple[list[Path], Path | None, list[Repair]]:
    """Write the repaired files of a manifest's only case; returns its images and labels, and what was done.

    Under the plain layout only the wrong files are written, else all of them.

    Errors
        DataError       it cannot be repaired after all
        ResourceError   the folder cannot be written
    """
    case, data_set = single.cases[0], single.data_set_of(single.cases[0])
    anew = data_set.layout != _PLAIN
    images, repairs = list(case.images), list[Repair]()
    if anew or "not-finite" in codes:
        images, repairs = _write_images(case, data_set, folder, only_wrong=not anew)
    labels = case.labels
    of_labels = [code for code in codes if code != "not-finite"]
    if case.labels is not None and (anew or of_labels):
        labels = folder / "labels" / f"{case.id}.nii.gz"
        own = resolved(single)
        volume, did = _mended_labels(case, own, of_labels)
        like = None if anew else case.images[0]
        write_labels(labels, volume, like=like, names=_names(own.data_set_of(case), data_set))
        repairs += [Repair(code, case.id, str(labels), what) for code, what in did.items()]
    return images, labels, repairs


def _write_images(
    case: Case, data_set: DataSet, folder: Path, *, only_wrong: bool
) -> tuple[list[Path], list[Repair]]:
    paths: list[Path] = []
    repairs: list[Repair] = []
    files = [(path, *stored.image(path, data_set.layout)) for path in case.images]
    several = len(files) > 1 or any(len(voxels) > 1 for _, voxels, _ in files)
    for path, voxels, grid in files:
        if only_wrong and bool(np.isfinite(voxels).all()):
            paths.append(path)
            continue
        orientation = orientation_of(grid.affine)
        for channel in voxels:
            name = f"{case.id}_{len(paths):04d}" if several else case.id
            target = folder / "images" / f"{name}.nii.gz"
            filled, count = _finite(path, channel)
            affine = orientation.geometry_to_ras(grid).affine
            write_image(target, Volume(np.ascontiguousarray(orientation.to_ras(filled))[None], affine))
            if count:
                what = f"{count:,} voxels that are not numbers got the lowest value, {filled.min():g}"
                repairs.append(Repair("not-finite", case.id, str(target), what))
            paths.append(target)
    return paths, repairs


def _finite(path: Path, channel: Array) -> tuple[Array, int]:
    """The voxels with the lowest finite value where there was none that float32 can hold, and their number."""
    with np.errstate(over="ignore"):
        single = channel.astype(np.float32)
    wrong = ~np.isfinite(single)
    if not wrong.any():
        return channel, 0
    if wrong.all():
        raise DataError(
            "no voxel is a number", file=path, do="replace the file, or remove the case", code="not-finite"
        )
    single[wrong] = single[~wrong].min()
    return single, int(wrong.sum())


def _mended_labels(case: Case, single: Manifest, codes: Sequence[str]) -> tuple[Volume, dict[str, str]]:
    """The label map in RAS+ after all repairs, and the words for each."""
    data_set = single.data_set_of(case)
    labels = read_stored_labels(case, single)
    values, grid = labels.values, labels.grid
    did: dict[str, str] = {}
    if "label-header" in codes:
        on_image = stored.geometry(case.images[0], data_set.layout)
        values = orientation_of(on_image.affine).to_ras(labels.stored)
        grid = read_geometry(case.images[0], data_set.layout)
        did["label-header"] = "the labels got the header of the image"
    if "label-cropped" in codes:
        on_image = read_geometry(case.images[0], data_set.layout)
        place = on_image.place_of(grid)
        assert place is not None
        whole = np.zeros(on_image.shape, values.dtype)
        whole[place] = values
        values, grid = whole, on_image
        did["label-cropped"] = "the labels were put in their place on the grid of the image"
    if "unlabelled-slices" in codes:
        values, number = _with_unknown_slices(values, labels, case, single)
        did["unlabelled-slices"] = f"{number} slices without a label are marked as unknown"
    if "float-labels" in codes:
        did["float-labels"] = "the labels are stored as integers"
    if "left-right-names" in codes:
        values, names = _exchanged(values, case, data_set)
        did["left-right-names"] = f"exchanged {names}"
    return Volume(np.ascontiguousarray(values), grid.affine), did


def _with_unknown_slices(
    values: Array, labels: StoredLabels, case: Case, single: Manifest
) -> tuple[Array, int]:
    """Where a structure was drawn in some slices only, what is not labelled in the others is unknown."""
    data_set = single.data_set_of(case)
    ignore = next((value for value, name in data_set.values.items() if name == IGNORE_NAME), None)
    if ignore is None:
        raise DataError("the data set has no value for what is unknown", case=case.id)
    marked, slices = values.copy(), set[tuple[int, int]]()
    for name in sorted(case.annotated):
        structure = find_structure(name, single, case, labels)
        gaps = unlabelled_slices(labels, structure) if structure else None
        if gaps is not None:
            for index in gaps.empty:
                plane = np.moveaxis(marked, gaps.axis, 0)[index]
                plane[plane == 0] = ignore
                slices.add((gaps.axis, index))
    return marked, len(slices)


def _names(own: DataSet, data_set: DataSet) -> tuple[str, ...]:
    """Names by value for the copy of a file whose own names decide what its values mean; none for other files."""
    if own.values == data_set.values:
        return ()
    named = {value: name for value, name in own.values.items() if name != IGNORE_NAME}
    return tuple(named.get(value, "") for value in range(max(named) + 1))


def _exchanged(values: Array, case: Case, data_set: DataSet) -> tuple[Array, str]:
    pairs = left_right_pairs(case.annotated)
    exchanged, names = values.copy(), []
    for left, right in pairs:
        lefts = [value for value, name in data_set.values.items() if name == left]
        rights = [value for value, name in data_set.values.items() if name == right]
        if len(lefts) != 1 or len(rights) != 1:
            raise DataError(
                f"'{left}' or '{right}' has several values: which stands for which is not known", case=case.id
            )
        exchanged[values == lefts[0]] = rights[0]
        exchanged[values == rights[0]] = lefts[0]
        names.append(f"'{left}' and '{right}'")
    return exchanged, "; ".join(names)
