"""What labelled cases are annotated for, by what their label files show; and how their files are to be read.

A structure that a program lists but nobody drew, or of which something could not be read, is not "annotated and
absent": training would learn that the organ is not there. It is not annotated in that case, unless the user believes
the list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from labelwise.cohort.data_set import DataSet, Others
from labelwise.cohort.manifest import Manifest
from labelwise.cohort.meaning import data_set_of_file, losses, refuse_hidden, shown_structures
from labelwise.errors import DataError, LabelwiseError, naming, warn_about
from labelwise.formats import Tally, read_labels
from labelwise.formats.layout import Overlap
from labelwise.formats.segments import combined
from labelwise.formats.stored import ITK, suffix
from labelwise.importers.listing import chosen
from labelwise.importers.overlaps import classes_of_segments, with_overlaps
from labelwise.types import Case, LabelSpace

Undrawn = Literal["unknown", "absent"]
FileNames = Literal["believed", "ignored"]


@dataclass(frozen=True)
class Reading:
    """How label files are read and believed; what is not given stays as the importer has it."""

    others: Others | None = None  # what values without a class are: background or ignore
    overlap: Overlap | None = None  # which structure counts where two overlap: later or smaller; kept: both
    undrawn: Undrawn = (
        "unknown"  # what a listed structure is that nobody drew: unknown (not annotated), or absent
    )
    file_names: FileNames | None = None  # whether names in label files decide what their values mean

    def __post_init__(self) -> None:
        """Refuse words that are no choice, with ConfigError."""
        if self.others is not None:
            chosen("others", self.others, ("background", "ignore"))
        if self.overlap is not None:
            chosen("overlap", self.overlap, ("later", "smaller", "kept"))
        chosen("undrawn", self.undrawn, ("unknown", "absent"))
        if self.file_names is not None:
            chosen("file-names", self.file_names, ("believed", "ignored"))


def believed(manifest: Manifest, reading: Reading) -> Manifest:
    """The manifest with what its label files show; what is not believed, or lost, is reported.

    Read are the headers of label files that name their values, and the voxels of clinical label files (DICOM-SEG,
    RTSTRUCT, .seg.nrrd), of which there are few. Files that cannot be read are left to `check`.

    Errors
        DataError   the names in a file contradict the classes; an annotated structure lies wholly beneath others
    """
    data_sets = {name: _read_so(data_set, reading) for name, data_set in manifest.data_sets.items()}
    manifest = replace(manifest, data_sets=data_sets)
    cases, undrawn, overlaps = [], [], []
    combinations: dict[str, set[tuple[str, ...]]] = {}  # of segments, by data set whose overlaps are kept
    for case in manifest.cases:
        if case.labels is None or not case.annotated:
            cases.append(case)
            continue
        data_set = manifest.data_set_of(case)
        if data_set.layout.segments and data_set.layout.overlap == "kept":
            own = _combinations(case, data_set)
            combinations.setdefault(data_set.name, set()).update(own)
            class_of = classes_of_segments(data_set)
            drawn = frozenset(class_of[segment] for segments in own for segment in segments)
            shown = data_set.structures if case.labels.is_dir() else drawn
        else:
            shown, lost = _shown(case, data_set)
            overlaps += [f"{case.id}: {loss}" for loss in lost]
        known = case.annotated if reading.undrawn == "absent" else case.annotated & shown
        undrawn += [f"{case.id}: {structure}" for structure in sorted(case.annotated - known)]
        cases.append(replace(case, annotated=known))
    warn_about(
        "structures of which their label file shows nothing are not annotated there (--undrawn absent believes that "
        "they are absent)",
        undrawn,
    )
    warn_about(
        "structures overlap, and the later one counts (--overlap smaller: the smaller; kept: both)", overlaps
    )
    found = _without_unseen(manifest.replace_cases(cases), manifest)
    for name, seen in combinations.items():
        found = with_overlaps(found, found.data_sets[name], seen)
    return found


def _combinations(case: Case, data_set: DataSet) -> set[tuple[str, ...]]:
    """The combinations of segments that a label file shows; none if it cannot be read, which `check` tells."""
    assert case.labels is not None
    tally = Tally()
    try:
        read_labels(case.labels, data_set.layout, case.images[0], tally)
    except LabelwiseError as error:
        if error.code == "too-many-structures":
            raise
    return {combined(value, data_set.layout.segments) for value in tally.drawn}


def _without_unseen(manifest: Manifest, before: Manifest) -> Manifest:
    """Without the classes that files only list, such as the isocentre of a template: no case has anything of them."""
    stated = {
        name
        for data_set in before.data_sets.values()
        if not data_set.layout.segments
        for name in data_set.structures
    }
    seen = {structure for case in manifest.cases for structure in case.annotated} | stated
    for data_set in manifest.data_sets.values():  # a data set names an organ, even if its files show none
        seen |= data_set.structures if not data_set.structures & seen else set()
    unseen = [structure for structure in manifest.label_space.structures if structure not in seen]
    if not unseen or not seen:
        return manifest
    warn_about("classes that no file shows are left out", unseen)
    names = tuple(name for name in manifest.label_space.names if name not in unseen)
    data_sets = {name: _without(data_set, unseen) for name, data_set in manifest.data_sets.items()}
    return replace(manifest, label_space=LabelSpace(names), data_sets=data_sets)


def _without(data_set: DataSet, unseen: Sequence[str]) -> DataSet:
    if not data_set.layout.segments:
        return data_set
    kept = [
        (segment, data_set.values[value])
        for value, segment in enumerate(data_set.layout.segments, start=1)
        if data_set.values[value] not in unseen
    ]
    values = {0: data_set.values[0], **{value: name for value, (_, name) in enumerate(kept, start=1)}}
    return replace(
        data_set, values=values, layout=replace(data_set.layout, segments=tuple(s for s, _ in kept))
    )


def _read_so(data_set: DataSet, reading: Reading) -> DataSet:
    layout = data_set.layout
    if reading.overlap is not None:
        layout = replace(layout, overlap=reading.overlap)
    if reading.file_names is not None:
        layout = replace(layout, file_names=reading.file_names)
    return replace(
        data_set, layout=layout, others=data_set.others if reading.others is None else reading.others
    )


def _shown(case: Case, data_set: DataSet) -> tuple[frozenset[str], list[str]]:
    """The organs that a label file shows, and what its structures lost to each other."""
    assert case.labels is not None
    with naming(case.id, case.labels):
        try:
            own = data_set_of_file(data_set, case.labels)
        except DataError as error:
            if error.code in ("names-contradict", "record-contradicts"):
                raise
            return data_set.structures, []
        if case.labels.is_dir() or not (data_set.layout.segments or suffix(case.labels) in ITK):
            return shown_structures(own, case.labels, Tally()), []
        tally = Tally()
        try:
            read_labels(case.labels, data_set.layout, case.images[0], tally)
        except LabelwiseError:
            return data_set.structures, []
        refuse_hidden(own, tally, case.annotated)
        return shown_structures(own, case.labels, tally), losses(own, tally)
