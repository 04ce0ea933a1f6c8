"""One case in three planes: the reference, the prediction and what differs (WebP).

Shown as radiologists look at it: the patient's right is on the left of the picture, the front or the head is on top,
and seen from the side the patient looks to the left. The sides are written into the picture unless the file says
nothing about them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from labelwise.anatomy import colours_of
from labelwise.errors import DataError
from labelwise.report.figures import Picture
from labelwise.report.statistics import defined_mean
from labelwise.types import IGNORE, Array, LabelSpace, Volume

CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue, level 40, width 400

# What differs: too much, too little, another structure. Colours of Okabe and Ito, which colour-blind readers can tell
# apart; the three differ in lightness too.
DIFFERENCES = {"too much": "#e69f00", "missing": "#56b4e9", "another structure": "#cc79a7"}
_WIDTH = 2.2  # inches of a panel; its height follows from what it shows
_HEIGHTS = (0.55, 1.9)  # least and largest
_DOTS_PER_INCH = 110
_MARGIN_MM = 12.0
_OPACITY = 0.42


class _Plane(NamedTuple):
    """How one plane of (X, Y, Z) is looked at."""

    name: str
    through: int  # axis along which the slices are counted
    across: int  # axis from left to right, shown reversed
    up: int
    sides: tuple[str, str, str, str]  # left, right, top, bottom


_PLANES = (
    _Plane("axial", 2, 0, 1, ("R", "L", "A", "P")),
    _Plane("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, 1, 2, ("A", "P", "S", "I")),
)
_PLACES = ((0.05, 0.5), (0.95, 0.5), (0.5, 0.93), (0.5, 0.07))


@dataclass(frozen=True)
class CasePicture:
    """The overlays of one case, with its Dice per structure (0..1, NaN = undefined)."""

    case: str
    picture: Picture
    dice: Mapping[str, float] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)  # structure -> "#rrggbb"
    run: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean of the defined values; NaN if there are none."""
        return float(defined_mean(np.array([*self.dice.values()], dtype=float), axis=0))


def structure_colours(structures: Sequence[str]) -> dict[str, str]:
    """The colour of each structure, by class index: that of 3D Slicer, or a tint of it where another one has it."""
    named = dict(enumerate(structures, start=1))
    return {
        named[value]: "#" + bytes(colour).hex() for value, colour in colours_of(named, apart=True).items()
    }


def choose_slice(reference: Array, *predictions: Array, axis: int = 2) -> int:
    """Index along an axis of the slice with the most wrong voxels; if none is wrong, with the most structure voxels.

    The wrong voxels of all predictions are added up, so that all are shown where they err.

    Shapes
        reference   (X, Y, Z)  integer: class index or IGNORE, which is never wrong
        predictions (X, Y, Z)  integer, each
    """
    for prediction in predictions:
        if reference.shape != prediction.shape or reference.ndim != 3:
            raise DataError(
                "reference and prediction are not on one grid",
                found=f"prediction {prediction.shape}",
                expected=f"reference {reference.shape}, (X, Y, Z)",
                code="grids-differ",
            )
    known = reference != IGNORE
    others = tuple(other for other in range(3) if other != axis)
    per_slice = np.zeros(reference.shape[axis], dtype=np.int64)
    for prediction in predictions:
        per_slice += np.count_nonzero((reference != prediction) & known, axis=others)
    if not per_slice.any():
        per_slice = np.count_nonzero((reference > 0) & known, axis=others)
    return int(per_slice.argmax())


def case_picture(
    case: str,
    image: Volume,
    reference: Array,
    prediction: Array,
    *,
    label_space: LabelSpace,
    dice: Mapping[str, float],
    annotated: Iterable[str] | None = None,
    window: tuple[float, float] | None = None,
    run: str = "",
    oriented: bool = True,
    z: int | None = None,
    titles: tuple[str, str] = ("reference", "prediction"),
) -> CasePicture:
    """Draw slices of one prediction in three planes, cut out around the structures.

    Args
        image       (M, X, Y, Z); the first modality is shown
        reference   (X, Y, Z) class index or IGNORE
        prediction  (X, Y, Z) class index
        dice        structure -> Dice of this case, 0..1 or NaN
        run         what the prediction is of
        annotated   structures of which the reference knows; predictions of others are not drawn. None: all
        window      lowest and highest grey value, such as CT_WINDOW; None fits the scan (0.5 and 99.5 %)
        oriented    False if the file (h5, say) does not tell the sides of the patient: none is written then
        z           which axial slice; None: that of `choose_slice`, as in the other planes
        titles      what the first two columns are called
    """
    (picture,) = case_pictures(
        case, image, reference, {run: prediction}, label_space=label_space, dice={run: dice}, annotated=annotated,
        window=window, oriented=oriented, z=z, titles=titles,
    )  # fmt: skip
    return picture


def case_pictures(
    case: str,
    image: Volume,
    reference: Array,
    predictions: Mapping[str, Array],
    *,
    label_space: LabelSpace,
    dice: Mapping[str, Mapping[str, float]],
    annotated: Iterable[str] | None = None,
    window: tuple[float, float] | None = None,
    oriented: bool = True,
    z: int | None = None,
    titles: tuple[str, str] = ("reference", "prediction"),
) -> tuple[CasePicture, ...]:
    """Draw several predictions of a case: all in the same slices, cut out in the same way, so that they compare.

    Args
        predictions     run -> (X, Y, Z) class index
        dice            run -> structure -> Dice of this case
        The others are those of `case_picture`.
    """
    if image.shape != reference.shape:
        raise DataError(
            "image and labels are not on one grid",
            case=case,
            found=image.shape,
            expected=reference.shape,
            code="grids-differ",
        )
    shown = label_space.structures if annotated is None else tuple(annotated)
    indices = [label_space.index(structure) for structure in shown]
    found = {run: only_classes(prediction, indices) for run, prediction in predictions.items()}
    colours = structure_colours(label_space.structures)
    grey = grey_values(image, window)
    slices = {plane.name: choose_slice(reference, *found.values(), axis=plane.through) for plane in _PLANES}
    if z is not None:
        slices["axial"] = z
    structures = np.where(reference == IGNORE, 0, reference)
    seen = np.logical_or.reduce([labels > 0 for labels in (structures, *found.values())])
    views = [_View.of(plane, slices[plane.name], seen, image.spacing_mm) for plane in _PLANES]
    place = ", ".join(
        f"{plane.name if oriented else 'XYZ'[plane.through]} slice {slices[plane.name] + 1} of "
        f"{image.shape[plane.through]}"
        for plane in _PLANES
    )
    shades = list(colours.values())
    pictures = []
    for run, prediction in found.items():
        data = _draw(grey, reference, structures, prediction, views, shades, oriented, titles)
        picture = Picture(data, "webp", _alt(case, run, place, dice[run]), place)
        shown_colours = {structure: colours[structure] for structure in shown}
        pictures.append(CasePicture(case, picture, dict(dice[run]), shown_colours, run))
    return tuple(pictures)


def grey_values(image: Volume, window: tuple[float, float] | None) -> Array:
    """(X, Y, Z) float32 brightness of the first modality, 0 to 1 between the limits of the window."""
    values = np.asarray(image.data[0], dtype=np.float32)
    low, high = window or np.percentile(values, (0.5, 99.5)).tolist()
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0, 1))


def only_classes(labels: Array, classes: Sequence[int]) -> Array:
    """The label map with all classes but these set to 0."""
    kept = np.zeros(IGNORE + 1, dtype=np.uint8)
    kept[list(classes)] = list(classes)
    return np.asarray(kept[labels])


def what_differs(reference: Array, prediction: Array) -> Array:
    """0 where both agree or nothing is known, else 1 too much, 2 missing, 3 another structure."""
    wrong = (reference != prediction) & (reference != IGNORE)
    kind = np.where(reference == 0, 1, np.where(prediction == 0, 2, 3))
    return np.asarray(np.where(wrong, kind, 0), dtype=np.uint8)


def _alt(case: str, run: str, place: str, dice: Mapping[str, float]) -> str:
    values = ", ".join(
        f"{structure} {100 * value:.1f} %" for structure, value in dice.items() if np.isfinite(value)
    )
    prediction = f"prediction of {run}" if run else "prediction"
    return f"Case {case}, {place}: reference, {prediction}, and what differs. Dice: {values or 'undefined'}."


def _draw(
    grey: Array,
    reference: Array,
    structures: Array,
    prediction: Array,
    views: Sequence[_View],
    colours: Sequence[str],
    oriented: bool,
    titles: tuple[str, str],
) -> bytes:
    height = sum(view.height for view in views)
    figure = Figure(figsize=(3 * _WIDTH, height), facecolor="black")
    top = height
    for row in views:
        top -= row.height
        brightness, truth, known, found = (
            row.cut(volume) for volume in (grey, reference, structures, prediction)
        )
        columns = (
            (titles[0], known, colours),
            (titles[1], found, colours),
            ("what differs", what_differs(truth, found), list(DIFFERENCES.values())),
        )
        for column, (title, labels, palette) in enumerate(columns):
            axes = figure.add_axes((column / 3, top / height, 1 / 3, row.height / height))
            _panel(axes, brightness, labels, palette, row)
            if column == 0:
                _scale(axes, row)
            if oriented and column == 0:
                for side, place in zip(row.plane.sides, _PLACES, strict=True):
                    _write(axes, side, *place)
            if row is views[0]:
                _write(axes, title, 0.98, 0.93, align="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=_DOTS_PER_INCH, pil_kwargs={"quality": 80, "method": 4})
    return buffer.getvalue()


class _View(NamedTuple):
    """One slice of a case, and the part of it that is shown."""

    plane: _Plane
    at: int
    spacing_mm: tuple[float, float]
    centre_mm: tuple[float, float]
    half_mm: tuple[float, float]  # of what is shown, across and up
    height: float  # inches

    @classmethod
    def of(cls, plane: _Plane, at: int, structures: Array, spacing_mm: Sequence[float]) -> _View:
        """Around the `structures` (X, Y, Z) of a slice; the whole slice if there are none."""
        spacing = (spacing_mm[plane.across], spacing_mm[plane.up])
        seen = np.take(structures, at, axis=plane.through)
        places = np.argwhere(seen if seen.any() else np.ones_like(seen)) * spacing
        centre = (places.max(0) + places.min(0)) / 2
        size = np.multiply(seen.shape, spacing)
        # No wider than the scan, so that a scan of few slices is no stripe on black.
        half = np.minimum((places.max(0) - places.min(0)) / 2 + _MARGIN_MM, np.maximum(size / 2, 1e-6))
        height = float(np.clip(_WIDTH * half[1] / half[0], *_HEIGHTS))
        across = max(half[0], half[1] * _WIDTH / height)
        half_mm = (float(across), float(across * height / _WIDTH))
        return cls(plane, at, spacing, (float(centre[0]), float(centre[1])), half_mm, height)

    def cut(self, volume: Array) -> Array:
        """The slice of a volume."""
        return np.asarray(np.take(volume, self.at, axis=self.plane.through))


def _panel(axes: Axes, brightness: Array, labels: Array, colours: Sequence[str], row: _View) -> None:
    axes.set_axis_off()
    ends = [n * size - size / 2 for n, size in zip(labels.shape, row.spacing_mm, strict=True)]
    edges = (-row.spacing_mm[0] / 2, ends[0], -row.spacing_mm[1] / 2, ends[1])
    axes.imshow(
        brightness.T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=edges, interpolation="bilinear"
    )
    axes.imshow(_filled(labels, colours), origin="lower", extent=edges, interpolation="nearest")
    (x, y), (across, up) = row.centre_mm, row.half_mm
    axes.set(xlim=(x + across, x - across), ylim=(y - up, y + up))
    axes.set_aspect("auto")  # panel and limits have one shape, so a mm is as long across as upwards


def _scale(axes: Axes, row: _View) -> None:
    """A line of a round number of mm."""
    length = max((n for n in (5, 10, 20, 50, 100) if n <= row.half_mm[0]), default=1)
    low = 0.06 / row.height
    axes.plot(
        [0.04, 0.04 + length / (2 * row.half_mm[0])],
        [low, low],
        lw=2,
        color="white",
        transform=axes.transAxes,
    )
    _write(axes, f"{length} mm", 0.04, low + 0.11 / row.height, align="left")


def _filled(labels: Array, colours: Sequence[str]) -> Array:
    """(A, B) labels -> (B, A, 4) colour and opacity."""
    table = np.zeros((IGNORE + 1, 4))
    table[1 : len(colours) + 1, :3] = [to_rgb(colour) for colour in colours]
    table[1 : len(colours) + 1, 3] = _OPACITY
    return np.asarray(table[labels.T])


def _write(axes: Axes, text: str, across: float, up: float, *, align: str = "center") -> None:
    written = axes.text(across, up, text, ha=align, va="center", transform=axes.transAxes, color="white")
    written.set(fontsize=7, path_effects=[withStroke(linewidth=1.6, foreground="black")])
