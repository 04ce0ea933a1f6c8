"""A scan that somebody hands over, by its path or in memory: its voxels in RAS+ order, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from labelwise.errors import ConfigError, DataError
from labelwise.formats import Geometry, Layout, read_image
from labelwise.formats.geometry import Orientation, as_geometry, orientation_of
from labelwise.types import Array, Volume

Given: TypeAlias = Path | str | Sequence[Path | str | None] | Volume | Array
"""A file or the folder of a DICOM series, one for each channel (None: it is missing), a Volume, or an array (X, Y, Z)
or (M, X, Y, Z)."""

_AS_READ = Orientation((0, 1, 2), (False, False, False))


@dataclass(frozen=True)
class Image:
    """A scan in RAS+ order, and how its axes ran when it was given."""

    volume: Volume  # (M, X, Y, Z) float32, without missing channels
    files: tuple[Path, ...] = ()  # of the channels, if they were read
    given: Geometry | None = None  # of a scan in memory; of files RAS+ order is kept
    orientation: Orientation = _AS_READ
    missing: tuple[int, ...] = ()  # numbers of channels that were not taken

    def back(self, result: Volume) -> Volume:
        """Labels (X, Y, Z) or scores (C, X, Y, Z) in RAS+ order -> on the grid as it was given."""
        if self.given is None:
            return result
        turned = self.orientation.from_ras
        data = (
            turned(result.data) if result.data.ndim == 3 else np.stack([turned(part) for part in result.data])
        )
        return Volume(np.ascontiguousarray(data), self.given.affine)

    def check_channels(self, expected: int, may_lack: Sequence[int] = ()) -> None:
        """Refuse another number of channels than a model has learnt from, and a missing one that it always had.

        Arguments
            may_lack    channels, from 0, without which the model has seen scans

        Errors
            DataError   found and expected number, or the channel
        """
        channels = len(self.volume.data) + len(self.missing)
        if channels != expected:
            raise DataError(
                "the model needs another number of channels",
                file=self.files[0] if self.files else None,
                found=channels,
                expected=f"{expected}, in the order of the training",
            )
        if unseen := sorted(set(self.missing) - set(may_lack)):
            allowed = ", ".join(str(number + 1) for number in may_lack) or "none"
            raise DataError(
                f"the model has never seen a scan without channel {unseen[0] + 1}",
                file=self.files[0] if self.files else None,
                found=f"channel {', '.join(str(number + 1) for number in self.missing)} is missing",
                expected=f"all channels; of these may be missing: {allowed}",
                do="train with cases that lack it, or with augment.drop_channels above 0",
            )


def as_image(
    scan: Given,
    *,
    affine: Array | None = None,
    spacing_mm: Sequence[float] | None = None,
    layout: Layout | None = None,
) -> Image:
    """What `Model.predict` is given, as a scan.

    Errors
        ConfigError     an array without its place in the world, a place for what has one, or another kind of object
        DataError       a file that cannot be read, an array of another shape, voxels that are not numbers
    """
    if isinstance(scan, np.ndarray):
        return _of_array(scan, _affine(affine, spacing_mm))
    parts = scan if isinstance(scan, list | tuple) else () if isinstance(scan, Volume) else (scan,)
    kinds = Path | str | None if len(parts) > 1 else Path | str  # one of several channels may be missing
    if wrong := [part for part in parts if not isinstance(part, kinds)]:
        raise ConfigError(
            "this is no scan",
            found=f"an object of the type {type(wrong[0]).__module__}.{type(wrong[0]).__qualname__}",
            expected="the path of a file or of a DICOM series, paths of channels, a Volume, or a NumPy array",
            do="take its voxels as a NumPy array, and say affine or spacing_mm",
        )
    if affine is not None or spacing_mm is not None:
        raise ConfigError("affine and spacing_mm belong to an array; a file and a Volume have their own")
    if isinstance(scan, Volume):
        return _of_array(scan.data, scan.affine)
    paths = [Path(part) for part in parts if part is not None]
    if not paths:
        raise DataError("a scan needs at least one image")
    missing = tuple(number for number, part in enumerate(parts) if part is None)
    return Image(read_image(paths, layout or Layout()), tuple(paths), missing=missing)


def _affine(affine: Array | None, spacing_mm: Sequence[float] | None) -> Array:
    if (affine is None) == (spacing_mm is None):
        raise ConfigError(
            "an array does not say where its voxels lie",
            found="neither affine nor spacing_mm" if affine is None else "affine and spacing_mm",
            expected="affine=(4, 4) from voxel index to mm, or spacing_mm=(x, y, z) for axes in RAS+ order",
        )
    if affine is not None:
        return np.asarray(affine, np.float64)
    sizes = np.asarray(spacing_mm, np.float64)
    if sizes.shape != (3,) or not bool(np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ConfigError("spacing_mm must be three positive numbers", found=spacing_mm)
    return np.diag((*sizes, 1.0))


def _of_array(voxels: Array, affine: Array) -> Image:
    if voxels.ndim not in (3, 4):
        raise DataError(
            "this is no scan", found=f"shape {voxels.shape}", expected="an array (X, Y, Z) or (M, X, Y, Z)"
        )
    if voxels.dtype.kind not in "biuf":
        raise DataError(
            "the voxels of the scan are not numbers", found=f"type {voxels.dtype}", code="not-finite"
        )
    if affine.shape != (4, 4):
        raise ConfigError("an affine has the shape (4, 4)", found=affine.shape)
    channels = voxels if voxels.ndim == 4 else voxels[None]
    given = as_geometry(None, channels.shape[1:], affine)
    orientation = orientation_of(given.affine)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        turned = np.stack([orientation.to_ras(channel) for channel in channels]).astype(
            np.float32, copy=False
        )
    if not bool(np.isfinite(turned.min()) and np.isfinite(turned.max())):  # NaN wins both
        raise DataError(
            "the scan holds voxels that are not finite numbers",
            found=f"{(~np.isfinite(turned)).sum():,} of {turned.size:,} voxels",
            do="replace them by the background intensity",
        )
    volume = Volume(turned, orientation.geometry_to_ras(given).affine)
    return Image(volume, (), given, orientation)
