"""`review`: a work list of proposals for people, with files that 3D Slicer and ITK-SNAP open."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from labelwise.atomic import atomic_path, write_json, write_text
from labelwise.cohort.manifest import Manifest, manifest_file, read_case_image, read_manifest
from labelwise.cohort.review import class_of, drawn_by_people, noted, shown
from labelwise.console import ShowProgress, silent
from labelwise.errors import ConfigError, DataError, LabelwiseError, did_you_mean, naming
from labelwise.evaluate.scores import read_scores
from labelwise.formats import LABEL_FORMATS, Layout, is_dicom, suffix, write_image, write_labels
from labelwise.formats.stored import tells_sides
from labelwise.infer.record import said_of
from labelwise.report.overlays import CT_WINDOW, CasePicture, case_picture, structure_colours
from labelwise.report.worklist import Entry, write_worklist
from labelwise.types import IGNORE, PREDICTED, Array, Case, LabelSpace, Volume

__all__ = ["ReviewResult", "review"]

LABELS, IMAGES, TABLE, PAGE, LEGEND = "labels", "images", "worklist.csv", "index.html", "itksnap_labels.txt"
COLUMNS = (
    "rank",
    "case",
    "split",
    "structure",
    "expected_dice",
    "dice",
    "states",
    "image",
    "labels",
    "flags",
)
_VIEWED = (".nii.gz", ".nii", ".nrrd", ".mha")  # what the programs open as it is


@dataclass(frozen=True)
class ReviewResult:
    """The list that was written."""

    folder: Path
    cases: tuple[str, ...]  # in the order of the list
    failed: Mapping[str, str]  # case -> why it is not in the list

    def to_text(self) -> str:
        """One line, and the message of each failure."""
        first = f", first {self.cases[0]}" if self.cases else ""
        head = f"{self.folder / PAGE}: {len(self.cases)} cases to review{first}"
        return "\n".join([head, *self.failed.values()])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"folder": str(self.folder), "cases": list(self.cases), "failed": dict(self.failed)}


@dataclass(frozen=True)
class _Row:
    """A case, and the class that puts it where it stands."""

    case: Case
    structure: str  # the most doubtful, or the worst
    expected: Mapping[str, float]  # proposed structure -> expected Dice; NaN: nobody noted it
    dice: Mapping[str, float]  # structure -> measured Dice
    flags: Sequence[str] = ()  # what is unusual about the scan, or about a proposed structure

    @property
    def order(self) -> tuple[bool, float]:
        """What the list is sorted by: flagged cases first, then the lowest; what is not known comes last."""
        value = self.dice.get(self.structure, self.expected.get(self.structure, math.nan))
        return not self.flags, math.inf if math.isnan(value) else value


def review(
    data: Path | str,
    output: Path | str,
    *,
    split: str | None = None,
    scores: Path | str | None = None,
    top: int | None = None,
    label_format: str | None = None,
    progress: ShowProgress = silent,
) -> ReviewResult:
    """Write a folder for the people who judge proposals: what to look at first, and files to look at and to correct.

    The list holds the cases with predicted classes: first those of which something was flagged (see
    `labelwise.infer.habits`), then that of the lowest expected Dice (see `labelwise.infer.doubt`). With `scores` it
    holds the cases of that table instead, that of the lowest Dice first: there the model or the reference is wrong.

    Writes to `output`: index.html with overlays, worklist.csv, labels/CASE.seg.nrrd for 3D Slicer, labels/CASE.nii.gz
    with itksnap_labels.txt for ITK-SNAP, and images/CASE.nii.gz where these programs cannot open the scan as it is. The
    labels are what people drew and what models propose of the other classes. `labelwise import OUTPUT --into DATA`
    takes back what was changed in them.

    Arguments
        data            folder of the manifest
        output          folder that does not exist yet: nobody's corrections are replaced
        split           only these cases; None: all
        scores          table of `labelwise evaluate`
        top             so many cases only
        label_format    a further file for each case: dicom-seg or rtstruct, of DICOM series

    Errors
        ConfigError     `output` exists; unknown format; DICOM labels of a scan that is not DICOM
        DataError       nothing to review
    """
    target = Path(output)
    if label_format not in (None, "dicom-seg", "rtstruct"):
        raise ConfigError(
            f"unknown format '{label_format}'",
            expected="dicom-seg or rtstruct; NRRD and NIfTI are always written",
        )
    if target.exists():
        raise ConfigError(
            "the output exists: it may hold corrections",
            file=target,
            do="choose a folder that does not exist yet",
            code="would-overwrite",
        )
    file = manifest_file(data)
    manifest = read_manifest(file)
    space = manifest.label_space
    cases = [case for case in manifest.cases if split is None or case.split == split]
    rows = sorted(
        _by_scores(cases, Path(scores), space) if scores else _by_doubt(cases, space),
        key=lambda row: row.order,
    )[:top]
    if not rows:
        raise DataError(
            "there is nothing to review: no class of any case is predicted"
            if not scores
            else "no case has a score",
            file=file,
            do="labelwise predict MODEL --into DATA"
            if not scores
            else "name the scores of a run on these cases",
        )
    failed: dict[str, str] = {}
    entries: list[Entry] = []
    written: list[_Row] = []
    with atomic_path(target) as temporary:
        for folder in (temporary, temporary / LABELS):
            folder.mkdir()
        write_text(temporary / LEGEND, _legend(manifest.label_space))
        for done, row in enumerate(rows, start=1):
            try:
                with naming(row.case.id, row.case.images[0]):
                    entries.append(_written(row, manifest, temporary, target, label_format))
                written.append(row)
            except LabelwiseError as error:
                if isinstance(error, ConfigError):
                    raise
                failed[row.case.id] = str(error)
            progress("review", done, len(rows))
        write_text(temporary / TABLE, _table(written, manifest))
        write_worklist(
            temporary / PAGE,
            title="Review",
            lead=f"{len(written)} cases to review. Correct the files in {LABELS}, then take them back:",
            command=f"labelwise import {shlex.quote(str(target))} --into {shlex.quote(str(data))}",
            entries=entries,
        )
    return ReviewResult(target, tuple(row.case.id for row in written), failed)


def _by_doubt(cases: Sequence[Case], space: LabelSpace) -> list[_Row]:
    rows = []
    for case in cases:
        if expected := _expected(case, space):
            structure = min(
                sorted(expected), key=lambda name: math.inf if math.isnan(expected[name]) else expected[name]
            )
            rows.append(_Row(case, structure, expected, {}, _flags(case, space)))
    return rows


def _flags(case: Case, space: LabelSpace) -> list[str]:
    """What was said of the scan and of the proposed structures when they were predicted; each once."""
    said = [
        str(each.get("what", ""))
        for proposal in case.proposals
        for each in said_of(proposal.file)
        if not each.get("class") or class_of(str(each["class"]), space) in proposal.structures
    ]
    return list(dict.fromkeys(said))


def _by_scores(cases: Sequence[Case], file: Path, space: LabelSpace) -> list[_Row]:
    dice: dict[str, dict[str, float]] = defaultdict(dict)
    for score in read_scores(file):
        if score.metric == "dice" and math.isfinite(score.value):
            dice[score.case][score.class_name] = score.value
    by_id = {case.id: case for case in cases}
    if dice and not dice.keys() & by_id.keys():
        name = next(iter(dice))
        raise DataError(f"the scores are of other cases{did_you_mean(name, by_id)}", file=file, found=name)
    return [
        _Row(
            by_id[name],
            min(found, key=lambda structure: found[structure]),
            _expected(by_id[name], space),
            found,
        )
        for name, found in dice.items()
        if name in by_id
    ]


def _expected(case: Case, space: LabelSpace) -> dict[str, float]:
    """Proposed structure -> expected Dice, as the records of the proposals say; a class surely absent counts as 1."""
    return {name: fact.expected_dice for name, fact in noted(case, space).items()}


def _written(row: _Row, manifest: Manifest, folder: Path, target: Path, label_format: str | None) -> Entry:
    """Write the files of one case; what the page says of it."""
    case, space, layout = row.case, manifest.label_space, manifest.data_set_of(row.case).layout
    image, labels = read_case_image(case, manifest), shown(case, manifest)
    endings = [LABEL_FORMATS["nifti"], LABEL_FORMATS["nrrd"]]
    if label_format is not None:
        if not case.images[0].is_dir() and not is_dicom(case.images[0]):
            raise ConfigError(
                "DICOM labels are written for a DICOM series",
                case=case.id,
                file=case.images[0],
                do="leave out --format",
            )
        endings.append(LABEL_FORMATS[label_format])
    like = case.images[0]
    for ending in endings:
        write_labels(
            folder / LABELS / f"{case.id}{ending}", labels, like=like, layout=layout, names=space.names
        )
    write_json(
        folder / LABELS / f"{case.id}.json", {"case": case.id, "classes": dict(enumerate(space.names))}
    )
    scan = _viewed(case, layout)
    if scan is None:
        (folder / IMAGES).mkdir(exist_ok=True)
        write_image(folder / IMAGES / f"{case.id}.nii.gz", Volume(image.data[:1], image.affine))
    place = target.absolute()
    seen = place / IMAGES / f"{case.id}.nii.gz" if scan is None else scan
    ready = place / LABELS / case.id
    quoted = [
        shlex.quote(str(path)) for path in (seen, f"{ready}.seg.nrrd", f"{ready}.nii.gz", place / LEGEND)
    ]
    commands = [f"Slicer {quoted[0]} {quoted[1]}", f"itksnap -g {quoted[0]} -s {quoted[2]} -l {quoted[3]}"]
    return Entry(
        case.id, _reason(row), _said(row, space), commands, _picture(row, manifest, image, labels.data)
    )


def _viewed(case: Case, layout: Layout) -> Path | None:
    """The scan itself, if viewers show it as it is; headers that the data set corrects would mislead them."""
    file = case.images[0]
    plain = suffix(file) in _VIEWED and not layout.slices_first and not layout.channels
    return file if plain else None


def _reason(row: _Row) -> str:
    if row.structure in row.dice:
        return f"Dice of {row.structure} {100 * row.dice[row.structure]:.1f} %"
    value = row.expected.get(row.structure, math.nan)
    return "; ".join(row.flags) or (
        f"expected Dice of {row.structure} {100 * value:.1f} %"
        if math.isfinite(value)
        else "nothing known of the doubt"
    )


def _said(row: _Row, space: LabelSpace) -> list[tuple[str, str]]:
    states = row.case.states
    said = []
    for structure in space.structures:
        if structure in states:
            value = row.expected.get(structure, math.nan)
            more = (
                f", {100 * value:.1f} % expected"
                if states[structure] == PREDICTED and math.isfinite(value)
                else ""
            )
            said.append((structure, states[structure] + more))
    return said


def _picture(row: _Row, manifest: Manifest, image: Volume, labels: Array) -> CasePicture:
    """The slice with most of the class that is doubted; of the others, if nothing of it was found."""
    of_organ = labels == manifest.label_space.index(row.structure)
    per_slice = np.count_nonzero(of_organ if of_organ.any() else labels > 0, axis=(0, 1))
    data_set = manifest.data_set_of(row.case)
    people = drawn_by_people(row.case, manifest).data
    return case_picture(
        row.case.id, image, np.where(people == IGNORE, 0, people), labels, label_space=manifest.label_space, dice={},
        window=CT_WINDOW if data_set.intensity == "ct" else None,
        oriented=tells_sides(row.case.images[0]), z=int(per_slice.argmax()),
        titles=("drawn", "proposed"),
    )  # fmt: skip


def _legend(space: LabelSpace) -> str:
    """The label descriptions of ITK-SNAP: index, red, green, blue, opacity, visible, in the mesh, name."""
    lines = ['    0     0    0    0        0  0  0    "Clear Label"']
    for value, (structure, colour) in enumerate(structure_colours(space.structures).items(), start=1):
        red, green, blue = (round(255 * part) for part in to_rgb(colour))
        lines.append(f'{value:5d} {red:5d}{green:5d}{blue:5d}        1  1  1    "{structure}"')
    return "# ITK-SnAP Label Description File\n" + "\n".join(lines) + "\n"


def _table(rows: Sequence[_Row], manifest: Manifest) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows, start=1):
        states, scan = row.case.states, _viewed(row.case, manifest.data_set_of(row.case).layout)
        value, dice = row.expected.get(row.structure, math.nan), row.dice.get(row.structure, math.nan)
        writer.writerow(
            (
                number,
                row.case.id,
                row.case.split,
                row.structure,
                f"{value:.4f}" if math.isfinite(value) else "",
                f"{dice:.4f}" if math.isfinite(dice) else "",
                ";".join(
                    f"{structure}={states[structure]}"
                    for structure in manifest.label_space.structures
                    if structure in states
                ),
                scan or f"{IMAGES}/{row.case.id}.nii.gz",
                f"{LABELS}/{row.case.id}.seg.nrrd",
                "; ".join(row.flags),
            )
        )
    return text.getvalue()
