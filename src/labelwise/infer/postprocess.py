"""Optional clean-up of a label map: the largest part of each structure, and no holes inside a structure.

Off by default: both help a structure that is one massive piece (a liver), or two (both kidneys under one name, named in
`pairs`), and harm what is not (lesions).
"""

from __future__ import annotations

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from scipy import ndimage

from labelwise.components.connected import connected_parts, keep_largest_component
from labelwise.types import Array


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PostprocessConfig:
    largest_component: bool = False  # keep only the largest 26-connected part of each class
    fill_holes: bool = False  # background that a class encloses becomes that class
    classes: tuple[PositiveInt, ...] = ()  # class indices that it concerns; none named: every structure
    pairs: tuple[PositiveInt, ...] = ()  # class indices of which the two largest are kept: both kidneys


def postprocess(labels: Array, config: PostprocessConfig) -> Array:
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
            keep_largest_component(labels[box], index, 2 if index in config.pairs else 1)
        if config.fill_holes:
            _fill_holes(labels[box], index)
    return labels


def _fill_holes(labels: Array, index: int) -> None:
    """Give, in place, to class `index` the background that no path of face neighbours leads out of."""
    elsewhere = np.pad(labels != index, 1, constant_values=True)
    components, count = connected_parts(elsewhere, "faces")
    if count < 2:
        return
    enclosed = (elsewhere & (components != components[0, 0, 0]))[1:-1, 1:-1, 1:-1]
    labels[enclosed & (labels == 0)] = index
