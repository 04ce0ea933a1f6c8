"""One case: read once, and everything said about it that can be said without the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from labelwise.cohort.data_set import IGNORE_NAME, DataSet
from labelwise.cohort.manifest import Manifest, check_same_grid, read_case_image, resolved
from labelwise.cohort.meaning import losses, shown_structures
from labelwise.cohort.parts import annotated_everywhere, inside, part_text, require_within
from labelwise.errors import DataError, LabelwiseError
from labelwise.formats import nifti, read_geometry, suffix
from labelwise.formats.stored import NIFTI
from labelwise.quality.check_labels import inspect_labels
from labelwise.quality.check_scan import BodyIntensities, ScanFacts, inspect_scan
from labelwise.quality.problem import Problem, from_error, of_labels, some
from labelwise.quality.stored_case import StoredImage, StoredLabels, read_stored_image, read_stored_labels
from labelwise.types import Case, Volume

_SAMPLES_PER_AXIS = 32
# Errors of reading a case that are problems of their own; all others are "unreadable".
_TOLD = ("not-finite", "unknown-label-value", "names-contradict", "structure-hidden")
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class CaseFacts:
    """What reading one case brought to light."""

    case: str
    problems: tuple[Problem, ...]
    fingerprint: str = (
        ""  # of a sample of the image; equal images have equal ones; empty if it could not be read
    )
    channels: int = 0
    spacing_mm: tuple[float, float, float] | None = None
    intensities: BodyIntensities | None = None
    # Voxels of each annotated structure; empty if the labels could not be read.
    voxels: Mapping[str, int] = field(default_factory=dict)

    @property
    def present(self) -> frozenset[str]:
        """Annotated structures that have a voxel."""
        return frozenset(name for name, voxels in self.voxels.items() if voxels)


def inspect_case(single: Manifest) -> CaseFacts:
    """Read image and labels of a manifest's only case once and report on them."""
    case = single.cases[0]
    problems: list[Problem] = []
    image = _read(read_stored_image, single, problems)
    # The whole file, also of a case without annotation: that is what `prepare` stores.
    labels = _read(read_stored_labels, single, problems) if case.labels else None
    scan = inspect_scan(case, image, single.data_set_of(case)) if image else ScanFacts(())
    problems += scan.problems
    problems += _two_places(case)
    if labels is not None:
        single = resolved(single)
        problems += _unfit_for_use(case, single, labels)
        problems += _not_shown(case, single.data_set_of(case), labels)
    if image is not None and labels is not None:
        if image.grid.shape != labels.grid.shape:
            problems.append(_other_shape(case, image, labels))
        elif not any(problem.code in ("constant-image", "no-body") for problem in scan.problems):
            problems += _parts(case, single, labels)
            # What is drawn of a structure in a part of the scan looks like a broken structure.
            whole = replace(case, annotated=annotated_everywhere(case))
            problems += inspect_labels(whole, single, image, labels, scan)
    return CaseFacts(
        case.id,
        tuple(problems),
        fingerprint=_fingerprint(image) if image else "",
        channels=len(image.channels) + len(case.missing) if image else 0,
        spacing_mm=image.grid.spacing_mm if image else None,
        intensities=scan.intensities,
        voxels=_voxels(case, single, labels) if labels is not None else {},
    )


def image_digest(single: Manifest) -> tuple[str, str]:
    """Id and hash of all voxels of a case's image, as training reads them; the hash is empty if it is unreadable."""
    case = single.cases[0]
    try:
        image = read_case_image(case, single)
    except LabelwiseError:
        return case.id, ""
    digest = hashlib.blake2b(repr(image.data.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image.data).data)
    return case.id, digest.hexdigest()


def _read(reader: Callable[[Case, Manifest], Kind], single: Manifest, problems: list[Problem]) -> Kind | None:
    case = single.cases[0]
    try:
        return reader(case, single)
    except LabelwiseError as error:
        problems.append(from_error(case, error, error.code if error.code in _TOLD else "unreadable"))
    return None


def _unfit_for_use(case: Case, single: Manifest, labels: StoredLabels) -> list[Problem]:
    problems = []
    values = single.data_set_of(case).values
    rest = single.data_set_of(case).others
    ignored = sum(
        region.voxels for value, region in labels.regions.items() if values.get(value, rest) == IGNORE_NAME
    )
    if 0 in values and values[0] == IGNORE_NAME:
        ignored += labels.values.size - sum(region.voxels for region in labels.regions.values())
    if case.annotated and ignored == labels.values.size:
        what = "no voxel has a label: all are marked to be ignored"
        problems.append(of_labels("error", "all-ignored", case, what, "leave 'annotated' empty"))
    if labels.was_float:
        what = "the label map is stored as floating-point numbers"
        remedy = "it is read as whole numbers; `labelwise check --fix FOLDER` writes a copy with integers"
        problems.append(of_labels("warning", "float-labels", case, what, remedy))
    return problems


def _not_shown(case: Case, data_set: DataSet, labels: StoredLabels) -> Iterator[Problem]:
    """Structures that overlap, and structures that are said to be annotated though the file shows nothing of them."""
    assert case.labels is not None
    if found := losses(data_set, labels.tally):
        what = f"structures overlap: {some(found)}"
        remedy = (
            "look at both; the smaller counts with overlap = 'smaller' in the layout of the data set "
            "(--overlap smaller at import)"
        )
        yield of_labels("warning", "overlapping-structures", case, what, remedy)
    empty = case.annotated - shown_structures(data_set, case.labels, labels.tally)
    if empty:
        names = ", ".join(f"'{name}'" for name in sorted(empty))
        what = f"nothing is drawn of {names}: learnt as absent, if it is not merely undrawn"
        remedy = "take it out of the column 'annotated', unless somebody has seen that it is absent"
        yield of_labels("warning", "annotated-but-not-drawn", case, what, remedy)


def _parts(case: Case, single: Manifest, labels: StoredLabels) -> Iterator[Problem]:
    """Parts beyond the scan, classes drawn beyond their part, and classes of which nothing is drawn in it."""
    for part in case.parts:
        try:
            require_within(case, part, labels.values.shape)
        except DataError as error:
            yield from_error(case, error, "part-beyond-scan")
            continue
        if not part.boxes:
            continue
        mask = inside(part, [np.arange(size) for size in labels.values.shape])
        for structure in sorted(part.structures):
            own = [value for value, name in single.data_set_of(case).values.items() if name == structure]
            drawn = np.isin(labels.values, own)
            beyond = int((drawn & ~mask).sum())
            where = f"'{structure}' is annotated in a part of the scan: {part_text(part)}"
            if beyond:
                what = f"{where}; {beyond:,} voxels of it are drawn elsewhere"
                remedy = "they are not read; correct the column 'parts' if the part is larger"
                yield of_labels("warning", "drawn-beyond-part", case, what, remedy)
            elif not drawn.any():
                what = f"{where}; nothing of it is drawn there: learnt as absent in this part"
                remedy = (
                    "count the first slice as 0, from the feet; correct the column 'parts' if it means others"
                )
                yield of_labels("warning", "nothing-in-part", case, what, remedy)


def _two_places(case: Case) -> Iterator[Problem]:
    """Files whose header states two places."""
    for file in (*case.images, *([case.labels] if case.labels else [])):
        if suffix(file) not in NIFTI or not file.is_file():
            continue
        try:
            grid, other = read_geometry(file), nifti.other_place(file)
        except LabelwiseError:
            continue  # said elsewhere
        if other is not None:
            what = f"the header states two places: sform, which is read, {grid}; qform {other}"
            remedy = "write the right one into both: programs differ in which they read"
            yield Problem("warning", "qform-and-sform-differ", case.id, str(file), what, remedy)


def _other_shape(case: Case, image: StoredImage, labels: StoredLabels) -> Problem:
    if image.grid.place_of(labels.grid) is not None:
        what = f"the labels cover a part of the image, voxel on voxel: found {labels.grid}; expected {image.grid}"
        remedy = "`labelwise check --fix FOLDER` writes a copy on the grid of the image, background around it"
        return of_labels("error", "label-cropped", case, what, remedy)
    try:
        check_same_grid(case, image.volume(), Volume(labels.values, labels.grid.affine))
    except DataError as error:
        return from_error(case, error, "shapes-differ")
    raise AssertionError("grids of different shapes cannot match")


def _voxels(case: Case, single: Manifest, labels: StoredLabels) -> dict[str, int]:
    values = single.data_set_of(case).values
    counts = dict.fromkeys(sorted(case.annotated), 0)
    zeros = labels.values.size - sum(region.voxels for region in labels.regions.values())
    for value, voxels in [(0, zeros), *((value, region.voxels) for value, region in labels.regions.items())]:
        if (name := values.get(value, "")) in counts:
            counts[name] += voxels
    return counts


def _fingerprint(image: StoredImage) -> str:
    """A hash of some voxels in RAS+ order as float32, so that neither axis order nor number type changes it."""
    digest = hashlib.blake2b(repr((len(image.channels), image.grid.shape)).encode(), digest_size=16)
    for channel in image.channels:
        places = [
            np.linspace(0, size - 1, min(size, _SAMPLES_PER_AXIS)).round().astype(int)
            for size in channel.shape
        ]
        digest.update(np.ascontiguousarray(channel[np.ix_(*places)], dtype=np.float32).data)
    return digest.hexdigest()
