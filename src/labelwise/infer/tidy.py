"""Optional clean-up of a label map: the largest part of each organ, and no holes inside an organ.

Off by default: both help an organ that is one massive piece (a liver), and harm one that is not (two kidneys
under one name, lesions). connected-components-3d is used where it is installed; SciPy gives the same result.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from scipy import ndimage

from labelwise.types import Array


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TidyConfig:
    largest_component: bool = False  # keep only the largest 26-connected part of each class
    fill_holes: bool = False  # background that a class encloses becomes that class
    classes: tuple[PositiveInt, ...] = ()  # class indices to tidy; none named: every organ


def tidy(labels: Array, config: TidyConfig) -> Array:
    """A cleaned copy of a label map, or the map itself if nothing is switched on.

    Shapes
        labels      (X, Y, Z)  unsigned integer class indices
        returns     (X, Y, Z)  same type

    Source
        "nms" of the LA benchmark codes: `skimage.measure.label` with its default (full) connectivity.
    """
    if not (config.largest_component or config.fill_holes):
        return labels
    labels = labels.copy()
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or (config.classes and index not in config.classes):
            continue
        if config.largest_component:
            _keep_largest(labels[box], index)
        if config.fill_holes:
            _fill_holes(labels[box], index)
    return labels


def _keep_largest(labels: Array, index: int) -> None:
    """Erase, in place, all parts of a class but the largest; of equal parts the first in the array stays."""
    mask = labels == index
    components, count = _components()(mask, 26)
    if count < 2:
        return
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept = int(sizes.argmax())
    largest = sizes == sizes[kept]
    if largest.sum() > 1:  # the numbers of the parts depend on the library, their places do not
        kept = components.flat[largest[components].argmax()]
    labels[mask & (components != kept)] = 0


def _fill_holes(labels: Array, index: int) -> None:
    """Give, in place, to class `index` the background that no path of face neighbours leads out of."""
    elsewhere = np.pad(labels != index, 1, constant_values=True)
    components, count = _components()(elsewhere, 6)
    if count < 2:
        return
    enclosed = (elsewhere & (components != components[0, 0, 0]))[1:-1, 1:-1, 1:-1]
    labels[enclosed & (labels == 0)] = index


@functools.cache
def _components() -> Callable[[Array, int], tuple[Array, int]]:
    """The fastest function here that numbers the connected parts of a mask, with 6 or 26 neighbours."""
    try:
        cc3d: Any = importlib.import_module("cc3d")
    except ImportError:
        return _scipy_components
    return functools.partial(_cc3d_components, cc3d)


def _cc3d_components(cc3d: Any, mask: Array, neighbours: int) -> tuple[Array, int]:
    components, count = cc3d.connected_components(mask, connectivity=neighbours, return_N=True)
    return components, int(count)


def _scipy_components(mask: Array, neighbours: int) -> tuple[Array, int]:
    structure = ndimage.generate_binary_structure(3, 3 if neighbours == 26 else 1)
    components, count = ndimage.label(mask, structure)
    return components, int(count)
