"""Changes of intensity with a given strength, in place, on the image (M, *S) of one case.

Every function takes (image, strength) and changes each modality by itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def to_unit_range(images: Tensor, inside: Tensor) -> None:
    """Bring each modality of each case from its lowest and highest value inside the scan to 0..1; 0 beyond it.

    Unlike the other functions for a whole batch: images (B, M, *S), inside (B, *S) bool.
    """
    where, axes = inside.unsqueeze(1), tuple(range(2, images.dim()))
    low = images.where(where, math.inf).amin(axes, keepdim=True)
    high = images.where(where, -math.inf).amax(axes, keepdim=True)
    images.copy_(((images - low) / (high - low + 1e-8)).where(where, 0))


def change_brightness(image: Tensor, factor: float) -> None:
    """Multiply; after normalisation 0 is the mean, so bright gets brighter and dark darker."""
    image.mul_(factor)


def change_contrast(image: Tensor, factor: float) -> None:
    """Stretch about the mean; what would leave the range of the patch is clipped."""
    low, high = _range(image)
    mean = _mean(image)
    image.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def change_gamma(image: Tensor, exponent: float) -> None:
    """Bend the intensities by ``t ** exponent`` on the range of the patch; mean and deviation are kept."""
    mean, deviation = _mean(image), _deviation(image)
    low, high = _range(image)
    width = (high - low).clamp_min(1e-6)
    image.sub_(low).div_(width).pow_(exponent)
    image.sub_(_mean(image)).mul_(deviation / _deviation(image).clamp_min(1e-6)).add_(mean)


def add_noise(image: Tensor, deviation: float, generator: Generator) -> None:
    """Add Gaussian noise. `generator` belongs to the device of the image."""
    noise = torch.empty_like(image).normal_(0, deviation, generator=generator)
    image.add_(noise)


def blur(image: Tensor, deviation_voxels: float) -> None:
    """Convolve with a Gaussian, one axis after the other; the border is continued."""
    radius = max(1, math.ceil(3 * deviation_voxels))
    offsets = range(-radius, radius + 1)
    weights = [math.exp(-((offset / deviation_voxels) ** 2) / 2) for offset in offsets]
    for axis in range(1, image.dim()):
        size = image.shape[axis]
        padded = _continued(image, axis, radius)
        image.zero_()
        for start, weight in enumerate(weights):
            image.add_(padded.narrow(axis, start, size), alpha=weight / sum(weights))


def lower_resolution(image: Tensor, factor: float) -> None:
    """Keep only `factor` times as many voxels along each axis (the nearest ones), then interpolate back."""
    size = image.shape[1:]
    small = [max(1, round(length * factor)) for length in size]
    mode = "trilinear" if len(size) == 3 else "bilinear"
    coarse = F.interpolate(image[None], small, mode="nearest-exact")
    image.copy_(F.interpolate(coarse, size, mode=mode, align_corners=False)[0])


def _continued(image: Tensor, axis: int, width: int) -> Tensor:
    first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
    repeat = [width if other == axis else 1 for other in range(image.dim())]
    return torch.cat([first.repeat(repeat), image, last.repeat(repeat)], dim=axis)


def _spatial(image: Tensor) -> tuple[int, ...]:
    return tuple(range(1, image.dim()))


def _range(image: Tensor) -> tuple[Tensor, Tensor]:
    axes = _spatial(image)
    return image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)


def _mean(image: Tensor) -> Tensor:
    return image.mean(_spatial(image), keepdim=True)


def _deviation(image: Tensor) -> Tensor:
    return image.std(_spatial(image), correction=0, keepdim=True)
