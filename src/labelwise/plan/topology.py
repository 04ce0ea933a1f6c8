"""How large a patch is, and how often and along which axes a network halves it.

Axes are coarse or fine in mm, not in voxels: an axis is halved only while its voxels are less than twice as long as
the shortest ones, and kernels have the length 1 along an axis until the others have caught up with it. So slices that
lie far apart are neither mixed early nor blurred away.

Source
    Isensee et al., Nature Methods 2021 (nnU-Net), supplementary note 2: rules of the patch size and of the topology.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

LEAST_FEATURES = 4  # voxels along an axis on the coarsest scale
FACTOR = 2  # spacings that differ by less count as equal
LARGEST_START = {2: 2048**2, 3: 256**3}  # voxels with which the search for a patch begins

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """The scales of a network, fine to coarse; one number per axis each."""

    patch: Sizes  # voxels; divisible by the product of the strides
    strides: tuple[Sizes, ...]  # at the entrance of each scale; 1 everywhere for the first
    kernels: tuple[Sizes, ...]  # of the convolutions of each scale

    @property
    def divisor(self) -> Sizes:
        """What the patch must be divisible by, per axis."""
        return tuple(prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def isotropic_depth(self) -> int:
        """Scales of a network that halves all axes together and fits into the patch."""
        return 1 + min(
            (sum(stride > 1 for stride in axis) for axis in zip(*self.strides, strict=True)), default=0
        )


def find_topology(patch: Sequence[int], spacing_mm: Sequence[float], *, exact: bool = False) -> Topology:
    """The scales for a patch, which is enlarged until every axis can be halved as often as it is.

    An `exact` patch keeps its size: an axis is halved only as often as that leaves no rest.

    Example
        >>> find_topology((64, 64, 8), (1.0, 1.0, 5.0)).strides
        ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1))
    """
    size, spacing = list(patch), list(spacing_mm)
    axes = range(len(size))
    strides, kernels = [tuple(1 for _ in axes)], []
    kernel = [1 for _ in axes]
    while True:
        kernel = [
            3 if old == 3 or spacing[axis] < FACTOR * min(spacing) else 1 for axis, old in enumerate(kernel)
        ]
        halved = _axes_to_halve(size, spacing, exact=exact)
        if not halved:
            break
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            size[axis], spacing[axis] = ceil(size[axis] / 2), spacing[axis] * 2
    kernels.append(tuple(3 if length > 1 else 1 for length in patch))
    divisors = [prod(axis) for axis in zip(*strides, strict=True)]
    whole = tuple(ceil(length / part) * part for length, part in zip(patch, divisors, strict=True))
    return Topology(whole, tuple(strides), tuple(kernels))


def _axes_to_halve(size: Sequence[int], spacing: Sequence[float], *, exact: bool) -> set[int]:
    long = [
        axis
        for axis, length in enumerate(size)
        if length >= 2 * LEAST_FEATURES and not (exact and length % 2)
    ]
    if not long:
        return set()
    shortest = min(spacing[axis] for axis in long)
    halved = {axis for axis in long if spacing[axis] < FACTOR * shortest}
    # One axis alone is halved only if much of it is left: else the image gets flat for little.
    if len(halved) == 1 and size[next(iter(halved))] < 3 * LEAST_FEATURES:
        return set()
    return halved


def find_patch(shape: Sequence[int], spacing_mm: Sequence[float], most_voxels: int) -> Topology:
    """The largest patch of at most so many voxels, in the proportions of the typical scan, with its scales.

    It begins as a cube in mm, no longer than the scan; what covers most of the scan is shortened first.

    Arguments
        shape       voxels of the typical scan; 2 or 3 axes
        most_voxels as many as the network can be trained with
    """
    dims = len(shape)
    side_mm = (LARGEST_START[dims] * prod(spacing_mm)) ** (1 / dims)
    patch = [
        max(1, min(round(side_mm / spacing), length))
        for spacing, length in zip(spacing_mm, shape, strict=True)
    ]
    found = find_topology(patch, spacing_mm)
    while prod(found.patch) > most_voxels:
        covered = [
            size / length if size > divisor else 0.0  # at least once the divisor
            for size, length, divisor in zip(found.patch, shape, found.divisor, strict=True)
        ]
        axis = max(range(dims), key=covered.__getitem__)
        if not covered[axis]:
            break
        shorter = list(found.patch)
        shorter[axis] -= found.divisor[axis]
        found = find_topology(shorter, spacing_mm)
        if found.patch[axis] > shorter[axis]:  # fewer halvings would do, but rounding brings it back
            shorter[axis] = max(1, shorter[axis] - found.divisor[axis])
            found = find_topology(shorter, spacing_mm)
    return found
