"""A result to look at, without a reference: three planes of the scan, the structures in space, and their volumes.

Shown as radiologists look at it: the patient's right is on the left of the picture. Colours are those of 3D Slicer;
of two that look alike the second is tinted.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from labelwise.report.figures import Picture
from labelwise.report.overlays import CT_WINDOW
from labelwise.types import Array, Volume

_SIZE, _DOTS_PER_INCH = (12.0, 8.0), 110  # inches
_OPACITY = 0.45
_AIR_HU = -500.0  # a scan that is darker somewhere is a CT
_STEP_MM = 1.5  # of the picture in space
_MOST_STEPS = 320
_LIGHT = np.array((-0.35, 0.4, 0.85))  # to the left, above, towards the reader
_ROWS_OF_LEGEND = 26
_PLACES = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04))  # of the letters
_PANEL, _PANEL_DOTS = 3.4, 180  # inches


class Structure(NamedTuple):
    """What a label value is called, and how it is painted."""

    name: str
    colour: Colour


class _Plane(NamedTuple):
    title: str
    across: int  # axis that is not seen
    sides: tuple[str, str, str, str]  # left, right, top, bottom of the picture


_PLANES = (
    _Plane("axial", 2, ("R", "L", "A", "P")),
    _Plane("coronal", 1, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, ("A", "P", "S", "I")),
)


def millilitres(volume: float) -> str:
    """A volume for people: four digits, and all of those before the point.

    Example
        >>> millilitres(12346.7), millilitres(0.12345), millilitres(857.93)
        ('12,347 ml', '0.1235 ml', '857.9 ml')
    """
    return f"{volume:,.0f} ml" if volume >= 1000 else f"{volume:.4g} ml"


@dataclass(frozen=True)
class Result:
    """A label map that is ready to be drawn.

    Shapes
        labels      (X, Y, Z)  label values; 0 where no structure is named
        grey        (X, Y, Z)  0 to 1
        table       (V, 3)     red, green, blue by label value, 0 to 1
    """

    labels: Array
    grey: Array
    table: Array
    spacing_mm: tuple[float, float, float]
    oriented: bool  # whether the file tells the sides of the patient
    volumes_ml: Mapping[int, float]  # of all structures by value, 0 for those without a voxel
    structures: Mapping[int, Structure]

    @property
    def shown(self) -> dict[int, Structure]:
        """Structures that have a voxel."""
        return {value: found for value, found in self.structures.items() if self.volumes_ml[value]}

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of structures that have none."""
        return tuple(found.name for value, found in self.structures.items() if not self.volumes_ml[value])


def ready_result(
    labels: Volume, structures: Mapping[int, Structure], image: Volume | None = None, *, oriented: bool = True
) -> Result:
    """Check a label map, and measure what it holds.

    Shapes
        labels      (X, Y, Z) integers, RAS+
        image       (M, X, Y, Z) on the same grid; its first channel is shown. None: black

    Errors
        DataError   no structure has a voxel; image and labels lie on different grids
    """
    named = {value: found for value, found in structures.items() if value}
    counts = np.bincount(labels.data.ravel(), minlength=max(named, default=0) + 1)
    if not any(counts[value] for value in named):
        raise DataError(
            "there is nothing to show: no structure has a voxel",
            expected=", ".join(found.name for found in named.values()) or "labels above 0",
        )
    grid = Geometry(labels.shape, labels.affine)
    if image is not None and not grid.matches(Geometry(image.shape, image.affine)):
        raise DataError(
            "image and labels are not on one grid",
            found=grid,
            expected=Geometry(image.shape, image.affine),
            code="grids-differ",
        )
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    table = np.zeros((len(counts), 3))
    for value, found in named.items():
        table[value] = np.array(found.colour) / 255
    return Result(
        labels=np.where(np.isin(labels.data, list(named)), labels.data, 0),
        grey=_brightness(None if image is None else image.data[0], labels.shape),
        table=table,
        spacing_mm=labels.spacing_mm,
        oriented=oriented,
        volumes_ml={value: float(counts[value]) * voxel_ml for value in named},
        structures=named,
    )


def result_picture(result: Result, title: str = "") -> bytes:
    """One PNG: three planes, the structures from the front and from behind, and a legend with their volumes."""
    figure = Figure(figsize=_SIZE, facecolor="black")
    axes = figure.subplots(2, 3)
    for place, plane in zip(axes[0], _PLANES, strict=True):
        place.set_title(_draw_plane(place, plane, result), color="white", fontsize=9)
    for place, from_behind in zip(axes[1], (False, True), strict=False):
        place.set_title(_draw_space(place, result, from_behind=from_behind), color="white", fontsize=9)
    _draw_legend(axes[1][2], result)
    figure.suptitle(title, color="white", fontsize=11)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.93, 0.03, 0.1)
    return _encoded(figure, _DOTS_PER_INCH)


def result_panels(result: Result, case: str) -> tuple[Picture, ...]:
    """The same planes and views as pictures of their own, which a narrow screen shows one below the other."""
    panels = []
    for plane in _PLANES:
        figure, axes = _panel()
        caption = _draw_plane(axes, plane, result)
        panels.append(Picture(_encoded(figure, _PANEL_DOTS), "png", f"{case}, {caption}", caption))
    for from_behind in (False, True):
        figure, axes = _panel()
        caption = _draw_space(axes, result, from_behind=from_behind)
        alt = f"{case}, structures in space, seen {caption}"
        panels.append(Picture(_encoded(figure, _PANEL_DOTS), "png", alt, f"in space, {caption}"))
    return tuple(panels)


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_PANEL, _PANEL), facecolor="black")
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def _encoded(figure: Figure, dots_per_inch: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def _brightness(image: Array | None, shape: tuple[int, ...]) -> Array:
    """(X, Y, Z) from 0 to 1."""
    if image is None:
        return np.zeros(shape, np.float32)
    low, high = CT_WINDOW if float(image.min()) < _AIR_HU else np.percentile(image, (0.5, 99.5)).tolist()
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def _draw_plane(axes: Axes, plane: _Plane, result: Result) -> str:
    """The slice with most labelled voxels, and which one it is."""
    others = tuple(axis for axis in range(3) if axis != plane.across)
    index = int(np.count_nonzero(result.labels, axis=others).argmax())
    here = np.moveaxis(result.labels, plane.across, 0)[index].T
    colours = np.repeat(np.moveaxis(result.grey, plane.across, 0)[index].T[..., None], 3, axis=-1)
    inside = here > 0
    colours[inside] = (1 - _OPACITY) * colours[inside] + _OPACITY * result.table[here[inside]]
    edge = inside & (_shifted(here, 0) | _shifted(here, 1))
    colours[edge] = result.table[here[edge]]
    across, up = (result.spacing_mm[axis] for axis in others)
    axes.imshow(colours, origin="lower", aspect=up / across, interpolation="nearest")
    axes.invert_xaxis()
    _finish(axes, plane.sides if result.oriented else ())
    name = plane.title if result.oriented else "XYZ"[plane.across]
    return f"{name} {index + 1} of {result.labels.shape[plane.across]}"


def _shifted(labels: Array, axis: int) -> Array:
    """Where the neighbour along an axis is another structure."""
    before = np.diff(labels, axis=axis, prepend=0) != 0
    behind = np.diff(labels, axis=axis, append=0) != 0
    return np.asarray(before | behind)


def _draw_space(axes: Axes, result: Result, *, from_behind: bool) -> str:
    """The structures in space, seen from the front or from behind, lit from above."""
    labels, table, spacing = result.labels, result.table, result.spacing_mm
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
    _finish(axes, sides if result.oriented else ())
    return "from behind" if from_behind else "from the front"


def _draw_legend(axes: Axes, result: Result) -> None:
    axes.set_axis_off()
    shown = result.shown
    rows = [
        Patch(color=result.table[value], label=f"{found.name}  {millilitres(result.volumes_ml[value])}")
        for value, found in list(shown.items())[:_ROWS_OF_LEGEND]
    ]
    if len(shown) > len(rows):
        rows.append(Patch(color="black", label=f"and {len(shown) - len(rows)} more"))
    if result.absent:
        named = textwrap.fill(", ".join(result.absent), 40, max_lines=6, placeholder=" ...")
        rows.append(Patch(color="black", label=f"without a voxel:\n{named}"))
    legend = axes.legend(handles=rows, loc="center left", frameon=False, fontsize=9 if len(rows) < 14 else 6)
    for text in legend.get_texts():
        text.set_color("white")


def _finish(axes: Axes, sides: Sequence[str]) -> None:
    """Leave out the axes, and write the letters of the sides: left, right, top, bottom."""
    axes.set_axis_off()
    for letter, (across, up) in zip(sides, _PLACES, strict=False):
        text = axes.text(
            across, up, letter, transform=axes.transAxes, ha="center", va="center", color="white"
        )
        text.set(fontsize=9, path_effects=[withStroke(linewidth=2, foreground="black")])
