"""Gaussian blur of a batch, each case with a width of its own, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NO_WIDTH = 1e-3  # voxels: the kernel of this width is 1 in the middle and 0 beside it


def gaussian_blur(images: Tensor, widths: Tensor, *, radius: int) -> Tensor:
    """Convolve every axis with a Gaussian; beyond the border the image goes on with its last value.

    Shapes
        images      (B, M, *S)  float
        widths      (B,)        standard deviations in voxels; 0 leaves a case as it is
        radius      voxels on each side at which the kernel is cut off
        returns     (B, M, *S)  float32
    """
    dims = images.ndim - 2
    distances = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-0.5 * (distances / widths.float().clamp_min(NO_WIDTH).unsqueeze(1)).square()).exp()
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    kernels = kernels.unsqueeze(1).expand(-1, images.shape[1], -1).flatten(0, 1)
    convolve = F.conv2d if dims == 2 else F.conv3d
    # Every channel of every case is a group with a kernel of its own.
    blurred = images.float().reshape(1, -1, *images.shape[2:])
    with torch.autocast(device_type=images.device.type, enabled=False):
        for axis in range(dims):
            padding = [radius * (dims - 1 - place // 2 == axis) for place in range(2 * dims)]
            shape = [2 * radius + 1 if other == axis else 1 for other in range(dims)]
            kernel = kernels.view(-1, 1, *shape)
            blurred = convolve(F.pad(blurred, padding, mode="replicate"), kernel, groups=len(kernels))
    return blurred.view(images.shape)


def sometimes_blurred(
    images: Tensor, *, chance: float = 0.8, widths: tuple[float, float] = (0.1, 2.0)
) -> Tensor:
    """Blur each case with the given chance, by a width in voxels that is uniform within the bounds.

    Shapes
        images      (B, M, *S) float
        returns     (B, M, *S) float32

    Source
        The views of Shen et al., IJCAI 2023 (UCMT), on 3D scans.
    """
    chosen, place = torch.rand(2, len(images), device=images.device)
    drawn = widths[0] + (widths[1] - widths[0]) * place
    return gaussian_blur(images, drawn * (chosen < chance), radius=math.ceil(3 * widths[1]))
