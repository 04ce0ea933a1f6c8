"""Other views of a batch with known geometry: the image changes, its labels do not."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(images: Tensor, std: float, clip: float) -> Tensor:
    """images + clamp(N(0, std), -clip, clip), drawn per voxel. Images are normalised to unit variance."""
    return images + (torch.randn_like(images) * std).clamp_(-clip, clip)


def strong_view(
    images: Tensor, *, gamma: float = 0.5, contrast: float = 0.3, noise_std: float = 0.1
) -> Tensor:
    """A strongly changed view of each image: gamma, contrast, brightness and noise; geometry untouched.

    Each case and channel is brought to [0, 1] by its own range, raised to exp(U(-gamma, gamma)), scaled by
    1 + U(-contrast, contrast), shifted by U(-contrast, contrast) / 2, brought back, and given noise of
    `noise_std` times its standard deviation.

    Shapes
        images      (B, M, *S) float
        returns     (B, M, *S) float

    Source
        The weak-to-strong views that the leaders of the LA benchmark have in common (gamma exponent of CrossMatch).
    """
    spatial = tuple(range(2, images.ndim))
    low, high = images.amin(spatial, keepdim=True), images.amax(spatial, keepdim=True)
    extent = (high - low).clamp_min(1e-6)

    def uniform(limit: float) -> Tensor:
        return (torch.rand_like(low) * 2 - 1) * limit

    unit = ((images - low) / extent).clamp(0, 1) ** uniform(gamma).exp()
    middle = unit.mean(spatial, keepdim=True)
    unit = (unit - middle) * (1 + uniform(contrast)) + middle + uniform(contrast) / 2
    deviation = images.std(spatial, keepdim=True)
    return unit * extent + low + torch.randn_like(images) * deviation * noise_std
