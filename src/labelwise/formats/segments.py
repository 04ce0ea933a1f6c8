"""Labels that are known by names: the n-th name that is asked for becomes the label value n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from labelwise.errors import DataError
from labelwise.formats.geometry import Geometry
from labelwise.types import Array


def values_of(path: Path, wanted: Sequence[str], known: Mapping[int, str]) -> dict[int, int]:
    """Number of a segment in the file -> label value, of the segments that are wanted; `known` are their names.

    Errors
        DataError   none of the names is there
    """
    values = {name: value for value, name in enumerate(wanted, start=1)}
    found = {number: values[name] for number, name in known.items() if name in values}
    if not found:
        raise DataError(
            "none of the segments is there",
            file=path,
            found=", ".join([*known.values()][:8]) or "no segments",
            expected=", ".join(wanted[:8]),
        )
    return found


def empty(grid: Geometry, wanted: Sequence[str]) -> Array:
    """(I, J, K) zeros of the smallest type that holds a value for each name."""
    return np.zeros(grid.shape, np.uint8 if len(wanted) < 256 else np.uint16)
