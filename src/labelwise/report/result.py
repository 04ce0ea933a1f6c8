"""A result to look at, without a reference: three planes of the scan, the structures in space, and their volumes (PNG).

Shown as radiologists look at it: the patient's right is on the left of the picture. Colours are those of 3D Slicer;
of two that look alike the second is tinted.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy import ndimage

from labelwise.anatomy import Colour
from labelwise.errors import DataError
from labelwise.formats import Geometry
from labelwise.report.overlays import CT_WINDOW
from labelwise.types import Array, Volume

_SIZE, _DOTS_PER_INCH = (12.0, 8.0), 110  # inches
_OPACITY = 0.45
_AIR_HU = -500.0  # a scan that is darker somewhere is a CT
_STEP_MM = 1.5  # of the picture in space
_MOST_STEPS = 320
_LIGHT = np.array((-0.35, 0.4, 0.85))  # to the left, above, towards the reader
_ROWS_OF_LEGEND = 26


class Structure(NamedTuple):
    """What a label value is called, and how it is painted."""

    name: str
    colour: Colour


class _Plane(NamedTuple):
    title: str
    across: int  # axis that is not seen
    turned: bool  # whether the horizontal axis runs to the left: the patient's right is left
    sides: tuple[str, str, str, str]  # left, right, top, bottom of the picture


_PLANES = (
    _Plane("axial", 2, True, ("R", "L", "A", "P")),
    _Plane("coronal", 1, True, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, True, ("A", "P", "S", "I")),
)


def result_picture(
    labels: Volume, structures: Mapping[int, Structure], image: Volume | None = None, title: str = ""
) -> bytes:
    """Draw a label map as a PNG.

    Shapes
        labels      (X, Y, Z) integers, RAS+
        image       (M, X, Y, Z) on the same grid; its first channel is shown. None: black

    Errors
        DataError   no structure has a voxel; image and labels lie on different grids
    """
    shown = {
        value: found for value, found in structures.items() if value and bool((labels.data == value).any())
    }
    if not shown:
        raise DataError(
            "there is nothing to show: no structure has a voxel",
            expected=", ".join(found.name for value, found in structures.items() if value)
            or "labels above 0",
        )
    grid = Geometry(labels.shape, labels.affine)
    if image is not None and not grid.matches(Geometry(image.shape, image.affine)):
        raise DataError(
            "image and labels are not on one grid",
            found=grid,
            expected=Geometry(image.shape, image.affine),
            code="grids-differ",
        )
    grey = _brightness(None if image is None else image.data[0], labels.shape)
    table = np.zeros((int(max(labels.data.max(), *shown)) + 1, 3))
    for value, found in shown.items():
        table[value] = np.array(found.colour) / 255
    kept = np.where(np.isin(labels.data, list(shown)), labels.data, 0)
    figure = Figure(figsize=_SIZE, facecolor="black")
    axes = figure.subplots(2, 3)
    for place, plane in zip(axes[0], _PLANES, strict=True):
        _draw_plane(place, plane, grey, kept, table, labels.spacing_mm)
    _draw_space(axes[1][0], kept, table, labels.spacing_mm, from_behind=False)
    _draw_space(axes[1][1], kept, table, labels.spacing_mm, from_behind=True)
    _draw_legend(axes[1][2], kept, shown, grid)
    figure.suptitle(title, color="white", fontsize=11)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.93, 0.03, 0.1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def _brightness(image: Array | None, shape: tuple[int, ...]) -> Array:
    """(X, Y, Z) from 0 to 1."""
    if image is None:
        return np.zeros(shape, np.float32)
    low, high = CT_WINDOW if float(image.min()) < _AIR_HU else np.percentile(image, (0.5, 99.5)).tolist()
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def _draw_plane(
    axes: Axes, plane: _Plane, grey: Array, labels: Array, table: Array, spacing: tuple[float, float, float]
) -> None:
    """The slice with most labelled voxels."""
    others = tuple(axis for axis in range(3) if axis != plane.across)
    index = int(np.count_nonzero(labels, axis=others).argmax())
    here = np.moveaxis(labels, plane.across, 0)[index].T
    colours = np.repeat(np.moveaxis(grey, plane.across, 0)[index].T[..., None], 3, axis=-1)
    inside = here > 0
    colours[inside] = (1 - _OPACITY) * colours[inside] + _OPACITY * table[here[inside]]
    edge = inside & (_shifted(here, 0) | _shifted(here, 1))
    colours[edge] = table[here[edge]]
    across, up = (spacing[axis] for axis in others)
    axes.imshow(colours, origin="lower", aspect=up / across, interpolation="nearest")
    if plane.turned:
        axes.invert_xaxis()
    _finish(axes, f"{plane.title} {index + 1} of {labels.shape[plane.across]}", plane.sides)


def _shifted(labels: Array, axis: int) -> Array:
    """Where the neighbour along an axis is another structure."""
    before = np.diff(labels, axis=axis, prepend=0) != 0
    behind = np.diff(labels, axis=axis, append=0) != 0
    return np.asarray(before | behind)


def _draw_space(
    axes: Axes, labels: Array, table: Array, spacing: tuple[float, float, float], *, from_behind: bool
) -> None:
    """The structures in space, seen from the front or from behind, lit from above."""
    seen = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    box = labels[seen]
    extent = np.array(box.shape) * spacing
    step = max(_STEP_MM, float(extent.max()) / _MOST_STEPS)
    places = [
        np.minimum((np.arange(max(1, round(length / step))) * step / size).astype(int), count - 1)
        for length, size, count in zip(extent, spacing, box.shape, strict=True)
    ]
    even = box[np.ix_(*places)]  # voxels of one length along all axes
    towards = even if from_behind else even[:, ::-1]  # the first along y is the nearest
    hit = (towards > 0).any(axis=1)
    depth = (towards > 0).argmax(axis=1)
    value = np.take_along_axis(towards, depth[:, None], axis=1)[:, 0]
    smooth = ndimage.gaussian_filter(np.where(hit, depth, depth[hit].max()).astype(float), 1.0)
    right, up = np.gradient(smooth) if min(smooth.shape) > 1 else (np.zeros_like(smooth),) * 2
    normal = np.stack([right, up, np.ones_like(smooth)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = _LIGHT * ((1, 1, 1) if from_behind else (-1, 1, 1))
    shade = 0.35 + 0.65 * np.clip(normal @ (light / np.linalg.norm(light)), 0, 1)
    far = 1 - 0.35 * smooth / max(float(smooth.max()), 1.0)
    colours = np.where(hit[..., None], table[value] * (shade * far)[..., None], 0)
    axes.imshow(np.clip(colours, 0, 1).transpose(1, 0, 2), origin="lower", interpolation="bilinear")
    if not from_behind:
        axes.invert_xaxis()
    sides = ("L", "R", "S", "I") if from_behind else ("R", "L", "S", "I")
    _finish(axes, "from behind" if from_behind else "from the front", sides)


def _draw_legend(axes: Axes, labels: Array, shown: Mapping[int, Structure], grid: Geometry) -> None:
    axes.set_axis_off()
    millilitres = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    rows = [
        Patch(
            color=np.array(found.colour) / 255,
            label=f"{found.name}  {np.count_nonzero(labels == value) * millilitres:.4g} ml",
        )
        for value, found in list(shown.items())[:_ROWS_OF_LEGEND]
    ]
    if len(shown) > len(rows):
        rows.append(Patch(color="black", label=f"and {len(shown) - len(rows)} more"))
    legend = axes.legend(handles=rows, loc="center left", frameon=False, fontsize=9 if len(rows) < 14 else 6)
    for text in legend.get_texts():
        text.set_color("white")


def _finish(axes: Axes, title: str, sides: tuple[str, str, str, str]) -> None:
    axes.set_axis_off()
    axes.set_title(title, color="white", fontsize=9)
    places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))
    for letter, (across, up) in zip(sides, places, strict=True):
        text = axes.text(
            across, up, letter, transform=axes.transAxes, ha="center", va="center", color="white"
        )
        text.set(fontsize=9, path_effects=[withStroke(linewidth=2, foreground="black")])
