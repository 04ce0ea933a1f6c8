"""A scan as the network sees it, and its label map back on the grid of the scan.

    apply    crop -> normalise intensities -> resample        files' RAS+ grid -> prepared grid
    undo     resample -> paste into background                prepared grid -> files' RAS+ grid

Training and prediction share one `Plan`; everything that belongs to one scan is in its `Undo`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError, DataError
from labelwise.preprocess.crop import Box, Crop, find_box
from labelwise.preprocess.intensity import IntensityRule, normalise
from labelwise.preprocess.resample import (
    resample_image,
    resample_labels,
    restore_labels,
    restore_scores,
    shape_at_spacing,
)
from labelwise.settings import build_settings
from labelwise.types import Array, Volume

__all__ = ["IntensityRule", "Plan", "Prepared", "Undo", "apply", "undo", "undo_scores"]

_MOST_VOXELS = 2**31  # 8 GiB per channel: beyond it the spacing of the file is wrong
_Row = tuple[float, float, float, float]
_Sizes = tuple[int, int, int]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Plan:
    """How the scans of a project are prepared; made from a fingerprint by `make_plan`, or by hand."""

    spacing_mm: tuple[float, float, float] | None = (
        None  # voxel size along x, y, z; None keeps that of the scan
    )
    shape: tuple[int | None, int | None, int | None] | None = (
        None  # voxels per axis; overrides spacing_mm there
    )
    crop: Crop = "none"  # none, nonzero (MR) or body (CT)
    intensity: dict[str, IntensityRule] = field(
        default_factory=dict
    )  # by what the intensities are: ct, mr, normalised

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and not all(0 < size < float("inf") for size in self.spacing_mm):
            raise ConfigError("spacing_mm must be three positive numbers", found=self.spacing_mm)
        if self.shape is not None and not all(size is None or size > 0 for size in self.shape):
            raise ConfigError("shape must be three positive numbers; None keeps an axis", found=self.shape)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; `from_json` gives an equal plan."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """A plan from the values of `to_json`, also after a way through a JSON file.

        Errors
            ConfigError     unknown, missing or wrong entries
        """
        return build_settings(cls, values, "preprocessing plan")

    def rule(self, intensity: str) -> IntensityRule:
        """The rule for such intensities; ConfigError if the plan was made without such scans."""
        if intensity not in self.intensity:
            raise ConfigError(
                f"the preprocessing plan knows no intensities of the kind '{intensity}'",
                expected=", ".join(self.intensity) or "a plan with intensity rules",
                do="correct the modality of the data set, or its line 'normalised'; or make the plan from such scans",
            )
        return self.intensity[intensity]

    def target_shape(self, scan: Volume) -> _Sizes:
        """Number of voxels that a (cropped) scan gets.

        Errors
            DataError   more voxels than any scan has
        """
        shape = shape_at_spacing(scan.shape, scan.spacing_mm, self.spacing_mm or scan.spacing_mm)
        x, y, z = (fixed or size for fixed, size in zip(self.shape or (None,) * 3, shape, strict=True))
        if prod((x, y, z)) > _MOST_VOXELS:
            raise DataError(
                "the scan would become too large",
                found=f"{scan} -> {x} x {y} x {z} voxels",
                do="correct the voxel size in the header of the scan, or choose a larger spacing_mm",
            )
        return x, y, z


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Undo:
    """Everything that brings a label map of one scan back to the RAS+ grid of its file."""

    shape: _Sizes  # voxels of the scan
    affine: tuple[_Row, _Row, _Row, _Row]  # of the scan, voxel index -> mm
    start: _Sizes  # box that was cut out: first voxel
    stop: _Sizes  # box that was cut out: last voxel + 1
    prepared_shape: _Sizes  # voxels that the network sees

    def to_json(self) -> dict[str, Any]:
        """The fields as plain values; `from_json` gives an equal Undo, bit by bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Undo:
        """An Undo from the values of `to_json`; ConfigError if they are damaged."""
        return build_settings(cls, values, "undo of the preprocessing")


class Prepared(NamedTuple):
    """A scan as the network sees it."""

    image: Volume  # (M, X, Y, Z) float32
    labels: Volume | None  # (X, Y, Z) in the type of the input
    undo: Undo


def apply(
    image: Volume,
    plan: Plan,
    *,
    intensity: str,
    labels: Volume | None = None,
    missing: Sequence[int] = (),
) -> Prepared:
    """Prepare one scan, and its labels if there are any. Channels that are `missing` become 0, the mean.

    Shapes
        image       (M, X, Y, Z); not changed; without the channels whose numbers, from 0, are `missing`
        labels      (X, Y, Z) on the same grid; resampled by nearest neighbour

    Errors
        ConfigError     the plan does not fit the intensities
        DataError       labels on another grid; nothing is left by the crop; absurd voxel size
    """
    rule = plan.rule(intensity)
    if plan.crop == "body" and intensity != "ct":
        raise ConfigError(
            "crop 'body' reads Hounsfield units",
            found=f"intensities of the kind '{intensity}'",
            expected="crop 'nonzero' or 'none'",
        )
    if labels is not None and labels.shape != image.shape:
        raise DataError(
            "labels and image have different shapes",
            found=labels.shape,
            expected=image.shape,
            code="shapes-differ",
        )
    box = find_box(image, plan.crop)
    cropped = box.cut(image)
    shape = plan.target_shape(cropped)
    # Before resampling, so that the nonzero voxels of MR are those of the scan, not smeared ones.
    normalised = Volume(normalise(cropped.data, rule), cropped.affine)
    prepared = _with_missing(resample_image(normalised, shape), missing)
    if labels is not None:
        labels = Volume(np.ascontiguousarray(resample_labels(box.cut(labels).data, shape)), prepared.affine)
    return Prepared(prepared, labels, _undo_of(image, box, shape))


def _with_missing(image: Volume, missing: Sequence[int]) -> Volume:
    """An image with channels of 0 at these numbers.

    Errors
        DataError   there are not so many channels
    """
    if not missing:
        return image
    channels = len(image.data) + len(missing)
    if max(missing) >= channels:
        raise DataError(
            "the missing channels do not fit the scan",
            found=list(missing),
            expected=f"numbers below {channels}",
        )
    whole = np.zeros((channels, *image.shape), image.data.dtype)
    whole[[number for number in range(channels) if number not in missing]] = image.data
    return Volume(whole, image.affine)


def undo(labels: Array, undo: Undo) -> Volume:
    """Bring labels (X, Y, Z) of a prepared scan back to the RAS+ grid of its file.

    Outside the crop is background 0. Without resampling this is exact; otherwise see `restore_labels`.
    """
    if labels.shape != undo.prepared_shape:
        raise DataError(
            "these labels belong to another scan", found=labels.shape, expected=undo.prepared_shape
        )
    box, affine = Box(undo.start, undo.stop), np.array(undo.affine)
    inside = restore_labels(labels, box.shape)
    if box.shape == undo.shape:
        return Volume(inside, affine)
    whole = np.zeros(undo.shape, dtype=labels.dtype)
    whole[box.slices] = inside
    return Volume(whole, affine)


def undo_scores(scores: Array, undo: Undo) -> Volume:
    """Bring scores (C, X, Y, Z) of a prepared scan back to the RAS+ grid of its file, trilinearly.

    Outside the crop the background scores 1.

    Errors
        DataError   scores of another scan
    """
    if scores.shape[1:] != undo.prepared_shape:
        raise DataError(
            "these scores belong to another scan", found=scores.shape[1:], expected=undo.prepared_shape
        )
    box, affine = Box(undo.start, undo.stop), np.array(undo.affine)
    inside = restore_scores(scores, box.shape)
    if box.shape == undo.shape:
        return Volume(inside, affine)
    whole = np.zeros((len(scores), *undo.shape), np.float32)
    whole[0] = 1
    whole[:, *box.slices] = inside
    return Volume(whole, affine)


def _undo_of(image: Volume, box: Box, prepared_shape: _Sizes) -> Undo:
    first, second, third, fourth = (
        (float(x), float(y), float(z), float(origin)) for x, y, z, origin in image.affine
    )
    return Undo(image.shape, (first, second, third, fourth), box.start, box.stop, prepared_shape)
