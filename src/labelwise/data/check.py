"""Look at every case once and list every problem, so that they can be mended together.

An error is what training would stumble over, or what would make its scores wrong; a warning is what a person
should have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from labelwise.data.coverage import Coverage, coverage, never_annotated
from labelwise.data.manifest import Manifest, check_same_grid, read_case_image, read_case_labels
from labelwise.data.split import groups_of
from labelwise.engine import Outcome, run_jobs
from labelwise.errors import DataError, LabelwiseError
from labelwise.preprocess.crop import body_mask
from labelwise.types import Array, Case, Volume

__all__ = ["CaseFacts", "Coverage", "Problem", "check", "coverage", "inspect_case"]

SPACING_MM = (0.1, 20.0)  # beyond, a header is more often wrong than right
SPACING_RATIO = 3.0  # from the median of the source


@dataclass(frozen=True)
class Problem:
    """Something wrong with the cohort; plain strings, so that it can be written as JSON."""

    severity: Literal["error", "warning"]
    case: str  # id, or empty if it concerns the cohort
    file: str  # path, or empty
    what: str
    remedy: str

    def __str__(self) -> str:
        lines = [f"{self.severity}: " + (f"case '{self.case}': " if self.case else "") + self.what]
        lines += [f"  file      {self.file}"] if self.file else []
        lines += [f"  do        {self.remedy}"] if self.remedy else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, str]:
        """The problem as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class CaseFacts:
    """What reading one case brought to light."""

    case: str
    problems: tuple[Problem, ...]
    digest: str = ""  # of the image's voxels; empty if it could not be read
    channels: int = 0
    spacing_mm: tuple[float, float, float] | None = None
    present: frozenset[str] = field(default_factory=frozenset)  # annotated organs that have a voxel


Progressed = Callable[[int, int], None]


def check(
    manifest: Manifest,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: Progressed | None = None,
) -> list[Problem]:
    """Every problem of a cohort: of single cases in manifest order, then of the cohort.

    Parameters
        engine      where cases are read, see `labelwise.engine`
        workers     number of processes; None uses all CPUs
        progress    called with (cases done, cases) after each case
    """
    # A manifest of one case each, so that a worker process receives no more than it needs.
    single = [manifest.replace_cases([case]) for case in manifest.cases]
    facts: dict[str, CaseFacts] = {}
    for done, outcome in enumerate(run_jobs(inspect_case, single, engine=engine, workers=workers), start=1):
        found = _facts(outcome)
        facts[found.case] = found
        if progress:
            progress(done, len(single))
    ordered = [facts[case.id] for case in manifest.cases]
    problems = [problem for found in ordered for problem in found.problems]
    for inspect in (_duplicates, _channels, _spacings, _classes_without_voxels):
        problems += inspect(manifest, ordered)
    return [*problems, *_groups(manifest), *_annotations(manifest)]


def _facts(outcome: Outcome[Manifest, CaseFacts]) -> CaseFacts:
    case = outcome.item.cases[0]
    return outcome.result or CaseFacts(
        case.id, (_from_error(case, outcome.error or DataError("cannot be read")),)
    )


# one case


def inspect_case(single: Manifest) -> CaseFacts:
    """Read image and labels of a manifest's only case once and report on them."""
    case = single.cases[0]
    problems: list[Problem] = []
    image = _read(read_case_image, single, problems)
    # The whole file, also of a case without annotation: that is what `prepare` stores.
    labels = _read(partial(read_case_labels, erase=False), single, problems) if case.labels else None
    if image is not None:
        problems += list(_constant_channels(case, image)) or _no_body(case, image, single)
        problems += _suspect_spacing(case, image.spacing_mm)
    if image is not None and labels is not None:
        try:
            check_same_grid(case, image, labels)
        except DataError as error:
            problems.append(_from_error(case, error))
    counts = _class_counts(labels.data) if labels is not None else np.zeros(256, dtype=np.int64)
    if case.annotated and labels is not None and not counts[:-1].any():
        problems.append(
            _error(case, "no voxel has a label: all are marked to be ignored", "leave 'annotated' empty")
        )
    return CaseFacts(
        case.id,
        tuple(problems),
        digest=_digest(image.data) if image is not None else "",
        channels=len(image.data) if image is not None else 0,
        spacing_mm=image.spacing_mm if image is not None else None,
        present=frozenset(name for name in case.annotated if counts[single.label_space.index(name)]),
    )


def _read(
    reader: Callable[[Case, Manifest], Volume], single: Manifest, problems: list[Problem]
) -> Volume | None:
    case = single.cases[0]
    try:
        return reader(case, single)
    except LabelwiseError as error:
        problems.append(_from_error(case, error))
    return None


def _from_error(case: Case, error: LabelwiseError) -> Problem:
    details = [f"found {error.found}" if error.found is not None else ""]
    details += [f"expected {error.expected}" if error.expected is not None else ""]
    what = "; ".join([error.what, *filter(None, details)])
    file = error.file if error.file is not None else case.images[0]
    return Problem(
        "error", case.id, str(file), what, error.do or "repair or replace the file, or remove the case"
    )


def _error(case: Case, what: str, remedy: str) -> Problem:
    return Problem("error", case.id, str(case.labels or case.images[0]), what, remedy)


def _constant_channels(case: Case, image: Volume) -> Iterator[Problem]:
    for file, channel in zip(case.images, image.data, strict=False):
        low, high = channel.min(), channel.max()
        if low == high:
            what = f"the image is empty: every voxel is {low:g}"
            yield Problem("error", case.id, str(file), what, "replace the file, or remove the case")


def _no_body(case: Case, image: Volume, single: Manifest) -> list[Problem]:
    """What `prepare` cannot crop: a CT whose intensities are no Hounsfield units."""
    try:
        if single.source_of(case).modality == "ct":
            body_mask(image)
    except DataError as error:
        return [_from_error(case, error)]
    return []


def _suspect_spacing(case: Case, spacing_mm: tuple[float, float, float]) -> Iterator[Problem]:
    low, high = SPACING_MM
    if not all(low <= size <= high for size in spacing_mm):
        what = f"unlikely voxel size {_size(spacing_mm)}"
        yield Problem(
            "warning", case.id, str(case.images[0]), what, "compare the header with the original scan"
        )


def _class_counts(labels: Array) -> Array:
    """(256,) voxels per class index. By slices, because bincount copies its input to 64-bit integers."""
    counts = np.zeros(256, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=256)
    return counts


def _digest(voxels: Array) -> str:
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


# all cases together


def _duplicates(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    by_digest: dict[str, list[Case]] = {}
    for case, found in zip(manifest.cases, facts, strict=True):
        if found.digest:
            by_digest.setdefault(found.digest, []).append(case)
    for first, *others in by_digest.values():
        for other in others:
            leaks = other.split != first.split and first.split and other.split
            yield Problem(
                "error" if leaks else "warning",
                other.id,
                str(other.images[0]),
                f"the image is the same as that of case '{first.id}'"
                + (f": one is in {first.split}, the other in {other.split}" if leaks else ""),
                "remove one of them, or give both the same group and split",
            )


def _channels(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    counts = [found.channels for found in facts if found.channels]
    usual = max(sorted(set(counts)), key=counts.count, default=0)
    for case, found in zip(manifest.cases, facts, strict=True):
        if found.channels not in (0, usual):
            what = f"the case has {found.channels} images, most cases have {usual}"
            yield Problem(
                "error", case.id, str(case.images[0]), what, "give every case the same channels, in order"
            )


def _spacings(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    for source in manifest.sources:
        pairs = zip(manifest.cases, facts, strict=True)
        members = [
            (case, found.spacing_mm) for case, found in pairs if case.source == source and found.spacing_mm
        ]
        usual = np.median([spacing for _, spacing in members] or [(1.0,) * 3], axis=0)
        for case, spacing in members:
            ratio = np.asarray(spacing) / usual
            if bool((np.maximum(ratio, 1 / ratio) > SPACING_RATIO).any()):
                what = f"voxel size {_size(spacing)}, but {_size(usual)} is usual in source '{source}'"
                yield Problem(
                    "warning", case.id, str(case.images[0]), what, "compare the header with the original scan"
                )


def _classes_without_voxels(manifest: Manifest, facts: Sequence[CaseFacts]) -> Iterator[Problem]:
    present = frozenset[str]().union(*(found.present for found in facts))
    for organ in manifest.label_space.organs:
        if organ not in present and any(organ in case.annotated for case in manifest.cases):
            what = f"class '{organ}' is said to be annotated, but no case has a voxel of it"
            yield Problem(
                "warning",
                "",
                "",
                what,
                "correct the values of the class in dataset.toml, or remove the class",
            )


def _groups(manifest: Manifest) -> Iterator[Problem]:
    taking_part = tuple(case for case in manifest.cases if case.split)
    for name, cases in groups_of(taking_part).items():
        if len(splits := sorted({case.split for case in cases})) > 1:
            what = f"group '{name}' is in {' and '.join(splits)}: {_some(case.id for case in cases)}"
            yield Problem("error", "", "", what, "put all cases of a patient into one split")


def _annotations(manifest: Manifest) -> Iterator[Problem]:
    train = manifest.split("train")
    if not train:
        yield Problem("warning", "", "", "no case is in the split 'train'", "fill the column 'split'")
    elif not any(case.annotated for case in train):
        what = "no training case is annotated: there is nothing to learn the classes from"
        yield Problem(
            "error", "", "", what, "annotate some cases and name their classes in the column 'annotated'"
        )
    else:
        for organ in never_annotated(manifest):
            what = f"class '{organ}' is annotated in no training case"
            yield Problem("error", "", "", what, "annotate it in some training cases, or remove the class")


def _size(spacing_mm: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing_mm) + " mm"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
