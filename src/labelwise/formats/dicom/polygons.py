"""Contours and masks of one slice. Pixel (row, column) is the point (column, row); its centre decides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from labelwise.types import Array

Points = NDArray[np.float64]  # (N, 2): column, row


def fill(polygons: Sequence[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns): the pixels whose centre lies inside an odd number of the closed polygons.

    Each row is crossed by the edges at exact places; a pixel is inside if an odd number of them lies to its left. So
    holes may be polygons of their own or be joined by a keyhole, whose two coincident edges cancel. A centre exactly on
    an edge belongs to one side only: neighbouring polygons neither overlap nor leave gaps.
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int64)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        # Always from the lower to the upper end: an edge that is run twice crosses at the same place twice.
        swap = (start[:, 1] > end[:, 1])[:, None]
        low, high = np.where(swap, end, start), np.where(swap, start, end)
        first = np.clip(np.ceil(low[:, 1]), 0, rows).astype(int)
        last = np.clip(np.ceil(high[:, 1]), 0, rows).astype(int)  # one behind
        counts = last - first
        edge = np.repeat(np.arange(len(polygon)), counts)
        row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
        part = (row - low[edge, 1]) / (high[edge, 1] - low[edge, 1])
        x = low[edge, 0] + part * (high[edge, 0] - low[edge, 0])
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, columns).astype(int)), 1)
    filled: NDArray[np.bool_] = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return filled


def trace(mask: Array) -> list[Points]:
    """One closed polygon for each connected part of a mask (rows, columns), with holes joined by keyholes.

    Marching squares halfway between the centres of pixels inside and outside: `fill` gives back the same mask.
    """
    padded = np.pad(np.asarray(mask, np.float32), 1)
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    # For each part the points of all its rings, and where each ring begins; the outer ring is the first.
    found: Any = generator.filled(0.5, 2.0)
    polygons = []
    for part, bounds in zip(*found, strict=True):
        rings = [_corners(part[begin : end - 1]) - 1 for begin, end in pairwise(bounds)]
        polygons.append(_with_keyholes(rings[0], rings[1:]))
    return polygons


def _corners(ring: Points) -> Points:
    """The ring without points on straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[turns])


def _with_keyholes(outer: Points, holes: Sequence[Points]) -> Points:
    """One ring that runs into each hole and back on a line of no width (PS3.3 C.8.8.6.3)."""
    for hole in holes:
        apart, nearest = cKDTree(outer).query(hole)
        there = int(apart.argmin())
        here = int(nearest[there])
        turned = np.roll(hole, -there, axis=0)
        outer = np.concatenate([outer[: here + 1], turned, turned[:1], outer[here:]])
    return outer
