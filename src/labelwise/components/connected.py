"""Connected parts of a mask. connected-components-3d is used where it is installed; SciPy gives the same result.

In flat masks (of two axes, or one voxel thick) connected-components-3d 4.1 numbers parts that touch by corners wrongly:
it gives numbers to voxels outside of the mask, or ends with an error. SciPy does those.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from labelwise.types import Array

Neighbours = Literal["faces", "corners"]  # 6 or 26 in 3D, 4 or 8 in 2D


def connected_parts(mask: Array, neighbours: Neighbours) -> tuple[Array, int]:
    """The parts of a mask, numbered from 1 in an order that depends on the library, and how many there are.

    Shapes
        mask        (*S)  bool, two or three axes
        returns     (*S)  integers, 0 outside the mask
    """
    flat = mask.ndim < 3 or min(mask.shape) < 2
    return (_scipy_parts if flat and neighbours == "corners" else _parts())(mask, neighbours)


def keep_largest_component(labels: Array, index: int, count: int = 1) -> None:
    """Turn into background, in place, all parts of a class but the `count` largest; of equal parts the first stays.

    Voxels that touch by a corner are connected.

    Shapes
        labels      (*S)  unsigned integers, two or three axes
    """
    mask = labels == index
    parts, found = connected_parts(mask, "corners")
    if found <= count:
        return
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = np.zeros(len(sizes), bool)
    for _ in range(count):
        one = int(sizes.argmax())
        largest = sizes == sizes[one]
        if largest.sum() > 1:  # the numbers of the parts depend on the library, their places do not
            one = parts.flat[largest[parts].argmax()]
        kept[one], sizes[one] = True, 0
    labels[mask & ~kept[parts]] = 0


@functools.cache
def _parts() -> Callable[[Array, Neighbours], tuple[Array, int]]:
    """The fastest function here that numbers the connected parts of a mask."""
    try:
        cc3d: Any = importlib.import_module("cc3d")
    except ImportError:
        return _scipy_parts
    return functools.partial(_cc3d_parts, cc3d)


def _cc3d_parts(cc3d: Any, mask: Array, neighbours: Neighbours) -> tuple[Array, int]:
    connectivity = {"faces": 2 * mask.ndim, "corners": 3**mask.ndim - 1}[neighbours]
    parts, count = cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    return parts, int(count)


def _scipy_parts(mask: Array, neighbours: Neighbours) -> tuple[Array, int]:
    structure = ndimage.generate_binary_structure(mask.ndim, mask.ndim if neighbours == "corners" else 1)
    parts, count = ndimage.label(mask, structure)
    return parts, int(count)
