"""Intensities of different scanners made comparable."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError, DataError
from labelwise.types import Array

PERCENTILES = (0.5, 99.5)
"""Intensities beyond these percentiles are artefacts, metal or noise, and are clipped.

Source: nnU-Net (Isensee et al., Nature Methods 2021)."""

Intensity = Literal["ct", "mr", "normalised"]
"""What the intensities of a scan are: Hounsfield units, numbers of its own, or normalised by whoever made the files."""

FEW_VALUES = 32  # a scan has more; a mask, a label map or a binarised scan has fewer
LARGEST_LABEL = 10  # masks with larger values (0 and 255) are scaled to 0..1
LARGEST_NORMALISED = 1e6  # beyond it float32 cannot hold the squares of a scan's sums
_CONSTANT_BELOW = 1e-6  # of the largest magnitude: less variation than this is rounding
_SAMPLES_PER_AXIS = 64
_VOXELS_PER_VALUE = 50  # fewer say nothing about how many values there are


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class IntensityRule:
    """How intensities of one kind are normalised.

    ct      (clip(x) - mean) / std with the numbers below, the same for every scan
    mr      each channel of each scan by its own numbers: clip to the 0.5 and 99.5 percentiles of its nonzero
            voxels, then subtract the mean of these voxels and divide by their standard deviation
    range   each channel of each scan from its own lowest and highest value to 0..1
    none    unchanged: already normalised by whoever made the files

    A channel that is a mask (see `is_mask`) has no intensities: under ct, mr and range it keeps its values, divided by
    the largest if that is above LARGEST_LABEL.
    """

    scheme: Literal["ct", "mr", "range", "none"] = "none"
    clip: tuple[float, float] | None = None  # HU, lowest and highest; ct only
    mean: float | None = None  # HU; ct only
    std: float | None = None  # HU, above 0; ct only

    def __post_init__(self) -> None:
        numbers = (self.clip, self.mean, self.std)
        if self.scheme != "ct" and numbers != (None, None, None):
            raise ConfigError(f"the intensity rule '{self.scheme}' takes no clip, mean or std", found=numbers)
        if self.scheme == "ct" and None in numbers:
            raise ConfigError("the intensity rule 'ct' needs clip, mean and std", found=numbers)
        if self.clip is not None and not self.clip[0] <= self.clip[1]:
            raise ConfigError("clip must be (lowest, highest)", found=self.clip)
        if self.std is not None and not self.std > 0:
            raise ConfigError("std must be above 0", found=self.std)


def normalise(image: Array, rule: IntensityRule) -> NDArray[np.float32]:
    """Apply a rule to an image (M, X, Y, Z), which is not changed; the result is contiguous float32.

    Errors
        DataError   intensities that are said to be normalised are beyond LARGEST_NORMALISED
    """
    if rule.scheme == "none":
        _check_normalised(image)
        return np.ascontiguousarray(image, dtype=np.float32)
    normalised = np.array(image, dtype=np.float32, order="C")
    for channel in normalised:
        if is_mask(channel):
            top = float(channel.max())
            channel /= np.float32(top if top > LARGEST_LABEL else 1.0)
        elif rule.scheme == "mr":
            _standardise(channel, *_own_numbers(channel))
        elif rule.scheme == "range":
            low, high = float(channel.min()), float(channel.max())
            _standardise(channel, (low, high), low, (high - low) or 1.0)
        elif rule.clip is not None and rule.mean is not None and rule.std is not None:
            _standardise(channel, rule.clip, rule.mean, rule.std)
    return normalised


def is_mask(channel: Array) -> bool:
    """Whether a channel (X, Y, Z) is a mask, a label map or a binarised scan: few values, 0 and above."""
    x, y, z = (max(1, size // _SAMPLES_PER_AXIS) for size in channel.shape)
    some = np.unique(channel[::x, ::y, ::z])
    if len(some) > FEW_VALUES or some[0] < 0:
        return False
    values = np.unique(channel)
    return bool(
        2 <= len(values) <= FEW_VALUES and values[0] >= 0 and channel.size >= _VOXELS_PER_VALUE * len(values)
    )


def _check_normalised(image: Array) -> None:
    far = max(abs(float(image.min())), abs(float(image.max())))
    if far > LARGEST_NORMALISED:
        raise DataError(
            "the intensities of this scan are not normalised",
            found=f"{int((np.abs(image) > LARGEST_NORMALISED).sum()):,} voxels beyond {LARGEST_NORMALISED:g}, "
            f"the farthest {far:g}",
            expected="values near 0, because the data set is said to be normalised",
            do="correct these voxels, or take the line 'normalised' out: the rules of ct and mr clip what is far off",
        )


def _standardise(voxels: NDArray[np.float32], clip: tuple[float, float], mean: float, std: float) -> None:
    np.clip(voxels, *clip, out=voxels)
    voxels -= np.float32(mean)
    voxels /= np.float32(std)


def _own_numbers(channel: NDArray[np.float32]) -> tuple[tuple[float, float], float, float]:
    """Clip limits, mean and standard deviation of the nonzero voxels of one channel."""
    values = channel[channel != 0]
    if not values.size:
        return (0.0, 0.0), 0.0, 1.0
    low, high = (float(limit) for limit in np.percentile(values, PERCENTILES))
    np.clip(values, low, high, out=values)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    is_constant = std <= _CONSTANT_BELOW * max(abs(low), abs(high))
    return (low, high), mean, 1.0 if is_constant else std
