"""Intensities of different scanners made comparable."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError
from labelwise.types import Array

PERCENTILES = (0.5, 99.5)
"""Intensities beyond these percentiles are artefacts, metal or noise, and are clipped.

Source: nnU-Net (Isensee et al., Nature Methods 2021)."""

_CONSTANT_BELOW = 1e-6  # of the largest magnitude: less variation than this is rounding


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class IntensityRule:
    """How the intensities of one modality are normalised.

    ct      (clip(x) - mean) / std with the numbers below, the same for every scan
    mr      each channel of each scan by its own numbers: clip to the 0.5 and 99.5 percentiles of its nonzero
            voxels, then subtract the mean of these voxels and divide by their standard deviation
    none    unchanged: already normalised by whoever made the files
    """

    scheme: Literal["ct", "mr", "none"] = "none"
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
    """Apply a rule to an image (M, X, Y, Z), which is not changed; the result is contiguous float32."""
    if rule.scheme == "none":
        return np.ascontiguousarray(image, dtype=np.float32)
    normalised = np.array(image, dtype=np.float32, order="C")
    if rule.scheme == "mr":
        for channel in normalised:
            _standardise(channel, *_own_numbers(channel))
    elif rule.clip is not None and rule.mean is not None and rule.std is not None:
        _standardise(normalised, rule.clip, rule.mean, rule.std)
    return normalised


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
