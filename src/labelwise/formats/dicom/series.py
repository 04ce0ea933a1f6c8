"""Frames -> series: which belong together, in which order they lie, and on which grid.

Frames form one series if they share its UID (without UIDs: folder, study, series number), size, orientation and
spacing. Where several lie at one place, the series is split by what tells them apart: phase, time, echo, diffusion
weight. Frames are ordered along the normal of their planes, never by file name or instance number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from math import acos, degrees
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelwise.formats.dicom.header import Frame, Header, fingerprint
from labelwise.formats.geometry import Geometry

_SAME_DIRECTION = 1e-3  # cosine
_SAME_SPACING = 1e-3  # relative
_SAME_PLACE_VOXELS = 0.01
_ON_GRID_VOXELS = 0.1  # as far as two grids may differ and still be one
_MISSING_WITHIN = 0.2  # a distance is n slices if it misses n by less than this part of a slice
_SHOWN = 5
_LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Slices that make up one volume, in order, and no word about the patient."""

    files: tuple[Path, ...]  # in the order of the slices, each file once
    modality: str  # of DICOM: CT, MR, PT ...
    size: tuple[int, int, int]  # columns, rows, slices
    spacing_mm: tuple[float, float, float]  # between columns, rows, slices
    key: str  # stands for the series; the same in every listing of the same files
    problem: str = ""  # why it cannot be read
    do: str = ""  # what helps against the problem
    passed_over: str = ""  # why it is not chosen where there is another: a localiser, a single image ...
    notes: tuple[str, ...] = ()  # what was corrected or is unusual
    # Fingerprints: series of one patient, study, series UID or frame of reference have the same.
    patient: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    uid: str = field(default="", repr=False)
    frame_of_reference: str = field(default="", repr=False)
    grid: Geometry | None = field(default=None, repr=False, compare=False)
    frames: tuple[Frame, ...] = field(default=(), repr=False, compare=False)

    @property
    def num_slices(self) -> int:
        """Number of planes."""
        return self.size[2]

    @property
    def usable(self) -> bool:
        """Whether it can be read."""
        return not self.problem

    @property
    def why_not(self) -> str:
        """Why it cannot be read, or is not chosen; empty for most."""
        return self.problem or self.passed_over

    def __str__(self) -> str:
        size, spacing = (" x ".join(f"{each:.4g}" for each in row) for row in (self.size, self.spacing_mm))
        reason = f" ({self.why_not})" if self.why_not else ""
        return f"{self.modality}, {size} voxels of {spacing} mm, key {self.key}{reason}"


def series_of(headers: Iterable[Header], same_pixels: Callable[[Frame, Frame], bool]) -> list[Series]:
    """The series that files hold, in the order of their first paths.

    Arguments
        same_pixels     whether two frames at one place hold the same image
    """
    found = [
        series
        for group in _grouped(sorted(headers, key=lambda header: header.file))
        for series in _volumes(group, same_pixels)
    ]
    found = sorted(found, key=lambda series: (min(series.files), series.key))
    keys = [series.key for series in found]
    # Without identifiers, series of equal folders have one key: they are counted.
    return [
        replace(series, key=f"{series.key}-{before + 1}")
        if (before := keys[:number].count(series.key))
        else series
        for number, series in enumerate(found)
    ]


def _grouped(headers: Sequence[Header]) -> list[list[Header]]:
    """Files of one series UID, size, orientation and spacing. A multi-frame file is never torn apart."""
    groups: dict[tuple[object, ...], list[list[Header]]] = {}
    for header in headers:
        if header.pixels is None:
            continue
        where = (header.series,) if header.series else (header.file.parent, header.number)
        size = (header.pixels.rows, header.pixels.columns, bool(header.problem))
        kind = (header.patient, header.study, header.modality, *size, header.passed_over, *where)
        alike = groups.setdefault(kind, [])
        for group in alike:
            if _parallel(group[0], header):
                group.append(header)
                break
        else:
            alike.append([header])
    return [group for alike in groups.values() for group in alike]


def _parallel(one: Header, other: Header) -> bool:
    if not (one.frames and other.frames):
        return not (one.frames or other.frames)
    a, b = one.frames[0], other.frames[0]
    return bool(
        np.abs(np.subtract(a.orientation, b.orientation)).max() <= _SAME_DIRECTION
        and np.abs(np.subtract(a.spacing, b.spacing)).max() <= _SAME_SPACING * max(a.spacing)
    )


def _volumes(group: Sequence[Header], same_pixels: Callable[[Frame, Frame], bool]) -> Iterator[Series]:
    """The volumes of files that share a series."""
    first = group[0]
    if not first.frames:
        do = "choose a series of slices, or export the scan again with its geometry"
        yield _series(group, (), 1, first.problem, do)
        return
    header_of = {header.file: header for header in group}
    frames = [frame for header in group for frame in header.frames]
    parts, dropped = _told_apart(frames, header_of, same_pixels)
    for number, part in enumerate(parts, start=1):
        members = [header_of[file] for file in dict.fromkeys(frame.file for frame in part)]
        several = any(len(header.frames) > 1 for header in members) and len(parts) > 1
        if several:
            part = [frame for header in members for frame in header.frames]
        notes = (f"{dropped} repeated slices were left out",) if dropped else ()
        yield _placed(members, part, number, notes)
        if several:
            return


def _placed(
    members: Sequence[Header], frames: Sequence[Frame], number: int, notes: tuple[str, ...]
) -> Series:
    """One volume: its frames in order on a grid, or what is wrong with them."""
    frames, header_of = sorted(frames, key=_height), {header.file: header for header in members}
    members = [header_of[file] for file in dict.fromkeys(frame.file for frame in frames)]
    first = frames[0]
    directions = np.reshape(first.orientation, (2, 3))
    if abs(np.linalg.norm(directions, axis=1) - 1).max() > 0.01 or abs(directions[0] @ directions[1]) > 0.01:
        return _series(members, frames, number, "the directions of rows and columns are not at right angles")
    if any(
        np.abs(np.subtract(frame.orientation, first.orientation)).max() > _SAME_DIRECTION for frame in frames
    ):
        return _series(members, frames, number, "planes of different orientations in one file")
    if len({(h.pixels.bits_allocated, h.pixels.signed) for h in members if h.pixels}) > 1:
        return _series(members, frames, number, "slices that are stored with different numbers of bits")
    problem, do = _problem(frames)
    if problem:
        return _series(members, frames, number, problem, do)
    step = _step(frames)
    tilt = degrees(acos(min(1.0, abs(float(_normal(first) @ step)) / float(np.linalg.norm(step)))))
    if tilt > 0.1:
        notes = (*notes, f"the slices are sheared by {tilt:.1f} degrees (gantry tilt), and stay so")
    return _series(members, frames, number, notes=notes)


def _series(
    members: Sequence[Header],
    frames: Sequence[Frame],
    number: int,
    problem: str = "",
    do: str = "",
    notes: tuple[str, ...] = (),
) -> Series:
    first, pixels = members[0], members[0].pixels
    assert pixels is not None
    passed_over = first.passed_over or ("" if len(frames) > 1 else "a single image")
    size = (pixels.columns, pixels.rows, max(len(frames), 1))
    between = frames[0].spacing if frames else (0.0, 0.0)
    grid = Geometry(size, _affine(frames)) if frames and not problem else None
    apart = float(np.median(np.diff([_height(frame) for frame in frames]))) if len(frames) > 1 else 0.0
    name = first.series or fingerprint(f"{first.study} {first.number} {first.file.parent.name}")
    return Series(
        tuple(dict.fromkeys(frame.file for frame in frames)) or tuple(header.file for header in members),
        first.modality,
        size,
        grid.spacing_mm if grid else (between[0], between[1], apart),
        fingerprint(
            f"{name} {number} {size} {[round(each, 2) for each in frames[0].orientation] if frames else 0}"
        )[:8],
        problem,
        do,
        passed_over,
        notes,
        first.patient,
        first.study,
        first.series,
        first.frame_of_reference,
        grid,
        tuple(frames),
    )


# several images at one place


def _told_apart(
    frames: Sequence[Frame], header_of: dict[Path, Header], same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[list[Frame]], int]:
    """The volumes among frames that share a series, and the number of repeated slices that were dropped."""
    once, dropped = _without_repetition(frames, header_of, same_pixels)
    if not _most_at_one_place(once):
        return _by_acquisition(once), dropped
    wanted = _most_at_one_place(frames)
    columns = range(len(frames[0].telling))
    for chosen in (*((column,) for column in columns), *combinations(columns, 2)):
        parts: dict[tuple[str, ...], list[Frame]] = {}
        for frame in frames:
            parts.setdefault(tuple(frame.telling[column] for column in chosen), []).append(frame)
        if len(parts) < 2 or len(parts) > wanted:
            continue
        singles = [_without_repetition(part, header_of, same_pixels) for part in parts.values()]
        if not any(_most_at_one_place(part) for part, _ in singles):
            return [part for part, _ in singles], sum(count for _, count in singles)
    return [list(frames)], 0


def _by_acquisition(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Two acquisitions of one series, such as chest and abdomen, if only apart they lie on grids."""
    ordered = sorted(frames, key=_height)
    parts: dict[str, list[Frame]] = {}
    for frame in ordered:
        parts.setdefault(frame.telling[0], []).append(frame)
    if len(parts) < 2 or not any(_problem(ordered)):
        return [ordered]
    if any(len(part) < 2 or any(_problem(part)) for part in parts.values()):
        return [ordered]
    return list(parts.values())


def _without_repetition(
    frames: Sequence[Frame], header_of: dict[Path, Header], same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], int]:
    """One frame for each place if all frames at a place are the same image, else all frames."""
    kept: list[Frame] = []
    for frame in sorted(frames, key=_height):
        if not (kept and _same_place(kept[-1], frame)):
            kept.append(frame)
            continue
        names = header_of[kept[-1].file].instance, header_of[frame.file].instance
        copied = bool(names[0]) and names[0] == names[1] and frame.file != kept[-1].file
        if not (copied or same_pixels(kept[-1], frame)):
            return list(frames), 0
    return kept, len(frames) - len(kept)


def _most_at_one_place(frames: Sequence[Frame]) -> int:
    """The largest number of frames at one place, or 0 if each has a place of its own."""
    ordered = sorted(frames, key=_height)
    run = most = 1
    for before, frame in pairwise(ordered):
        run = run + 1 if _same_place(before, frame) else 1
        most = max(most, run)
    return most if most > 1 else 0


def _same_place(one: Frame, other: Frame) -> bool:
    return abs(_height(one) - _height(other)) <= _SAME_PLACE_VOXELS * min(one.spacing)


# the grid


def _normal(frame: Frame) -> Vectors:
    (x1, y1, z1), (x2, y2, z2) = frame.orientation[:3], frame.orientation[3:]
    return np.array((y1 * z2 - z1 * y2, z1 * x2 - x1 * z2, x1 * y2 - y1 * x2))


def _height(frame: Frame) -> float:
    """Position along the normal in mm."""
    return float(_normal(frame) @ frame.position)


def _step(frames: Sequence[Frame]) -> Vectors:
    """From one slice to the next, LPS mm."""
    if len(frames) == 1:
        return _normal(frames[0]) * (frames[0].thickness or 1.0)
    return np.subtract(frames[-1].position, frames[0].position) / (len(frames) - 1)


def _affine(frames: Sequence[Frame]) -> Vectors:
    """(column, row, slice) -> mm in RAS, of the ordered frames."""
    first, affine = frames[0], np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], first.spacing[0])
    affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing[1])
    affine[:3, 2] = _step(frames)
    affine[:3, 3] = first.position
    return np.asarray(_LPS_TO_RAS @ affine)


def _problem(frames: Sequence[Frame]) -> tuple[str, str]:
    """Why ordered frames do not form a grid, and what helps; two empty texts if they do."""
    if len(frames) < 2:
        return "", ""
    if most := _most_at_one_place(frames):
        return (
            f"up to {most} different images at one place, and no tag tells them apart",
            "keep one phase or time point of the scan in a folder of its own",
        )
    heights = np.array([_height(frame) for frame in frames])
    apart = np.diff(heights)
    usual = float(np.median(apart[apart < 1.3 * apart.min()]))
    places = np.array([frame.position for frame in frames])
    on_line = places[0] + np.arange(len(frames))[:, None] * _step(frames)
    off = np.abs(places - on_line).max()
    if off <= _ON_GRID_VOXELS * min(usual, *frames[0].spacing):
        return "", ""
    return _gap(heights, apart, usual) or (
        (
            f"slices at unequal distances, {apart.min():.4g} to {apart.max():.4g} mm",
            "resample the scan to equal distances and write it as NIfTI, for example with dcm2niix",
        )
        if apart.max() - apart.min() > _ON_GRID_VOXELS * usual
        else ("slices that do not lie on one straight line", "export the scan again")
    )


def _gap(heights: Vectors, apart: Vectors, usual: float) -> tuple[str, str] | None:
    """What to say if some slices are missing and the others lie on a grid."""
    counts = np.rint(apart / usual)
    if counts.max() < 2 or (np.abs(apart / usual - counts) > _MISSING_WITHIN).any() or counts.min() < 1:
        return None
    gaps = [int(gap) for gap in np.flatnonzero(counts > 1)]
    places = [
        f"{heights[gap]:.6g} and {heights[gap + 1]:.6g} mm (slices {gap + 1} and {gap + 2})" for gap in gaps
    ]
    missing = int(sum(counts[gaps] - 1))
    more = f" and {len(places) - _SHOWN} more places" if len(places) > _SHOWN else ""
    return (
        f"{missing} slice{'s are' if missing > 1 else ' is'} missing between {', '.join(places[:_SHOWN])}{more}",
        "copy or export the whole series again",
    )
