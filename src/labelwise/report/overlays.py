"""One case on one axial slice: the scan in grey, the prediction as colour, the reference as line (PNG).

Shown as radiologists look at it: the patient's right is on the left of the picture, the front is on top. The
sides are written into the picture unless the file says nothing about them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from labelwise.errors import DataError
from labelwise.report.figures import Picture
from labelwise.report.statistics import defined_mean
from labelwise.types import IGNORE, Array, LabelSpace, Volume

CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue, level 40, width 400

# Colours of Okabe and Ito, which colour-blind readers can tell apart; those first that shine on grey.
_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
_SIZE = (4.8, 3.6)  # inches; all pictures have one shape, so that they stand in rows
_DOTS_PER_INCH = 120
_MARGIN_MM = 15.0
_SIDES = {"R": (0.025, 0.5), "L": (0.975, 0.5), "A": (0.5, 0.96), "P": (0.5, 0.04)}  # places in the picture


@dataclass(frozen=True)
class CasePicture:
    """The overlay of one case, with its Dice per organ (0..1, NaN = undefined)."""

    case: str
    picture: Picture
    dice: Mapping[str, float] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)  # organ -> "#rrggbb"
    run: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean of the defined values; NaN if there are none."""
        return float(defined_mean(np.array([*self.dice.values()], dtype=float), axis=0))


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """One colour for each organ; after the seventh the colours come again, lighter."""
    return {organ: _tinted(_COLOURS[n % len(_COLOURS)], n // len(_COLOURS)) for n, organ in enumerate(organs)}


def choose_slice(reference: Array, prediction: Array) -> int:
    """Index along Z of the slice with the most wrong voxels; if none is wrong, with the most organ voxels.

    Shapes
        reference   (X, Y, Z)  integer: class index or IGNORE, which is never wrong
        prediction  (X, Y, Z)  integer
    """
    if reference.shape != prediction.shape or reference.ndim != 3:
        raise DataError(
            "reference and prediction are not on one grid",
            found=f"prediction {prediction.shape}",
            expected=f"reference {reference.shape}, (X, Y, Z)",
            code="grids-differ",
        )
    known = reference != IGNORE
    per_slice = np.count_nonzero((reference != prediction) & known, axis=(0, 1))
    if not per_slice.any():
        per_slice = np.count_nonzero((reference > 0) & known, axis=(0, 1))
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
) -> CasePicture:
    """Draw a slice, cut out around the organs.

    Args
        image       (M, X, Y, Z); the first modality is shown
        reference   (X, Y, Z) class index or IGNORE
        prediction  (X, Y, Z) class index
        dice        organ -> Dice of this case, 0..1 or NaN
        annotated   organs of which the reference knows; predictions of others are not drawn. None: all
        window      lowest and highest grey value, such as CT_WINDOW; None fits the slice (0.5 and 99.5 %)
        oriented    False if the file (h5, say) does not tell the sides of the patient: none is written then
        z           which slice; None: that of `choose_slice`
    """
    if image.shape != reference.shape:
        raise DataError(
            "image and labels are not on one grid",
            case=case,
            found=image.shape,
            expected=reference.shape,
            code="grids-differ",
        )
    shown = label_space.organs if annotated is None else tuple(annotated)
    prediction = _only(prediction, [label_space.index(organ) for organ in shown])
    z = choose_slice(reference, prediction) if z is None else z
    grey = np.asarray(image.data[0, :, :, z], dtype=np.float32)
    colours = organ_colours(label_space.organs)
    low, high = window or np.percentile(grey, (0.5, 99.5)).tolist()
    brightness = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    sides = _SIDES if oriented else {}
    data = _draw(brightness, reference[:, :, z], prediction[:, :, z], image.spacing_mm[:2], colours, sides)
    place = f"{'axial ' if oriented else ''}slice {z + 1} of {image.shape[2]}"
    picture = Picture(data, "png", _alt(case, run, place, dice), place)
    return CasePicture(case, picture, dict(dice), {organ: colours[organ] for organ in shown}, run)


def _only(labels: Array, classes: Sequence[int]) -> Array:
    """The label map with all classes but these set to 0."""
    kept = np.zeros(IGNORE + 1, dtype=np.uint8)
    kept[classes] = classes
    return kept[labels]


def _alt(case: str, run: str, place: str, dice: Mapping[str, float]) -> str:
    values = ", ".join(f"{organ} {100 * value:.1f} %" for organ, value in dice.items() if np.isfinite(value))
    prediction = f"prediction of {run}" if run else "prediction"
    return f"Case {case}, {place}: {prediction} as colour, reference as line. Dice: {values or 'undefined'}."


def _tinted(colour: str, rounds: int) -> str:
    rgb = 1 - (1 - np.array(to_rgb(colour))) * 0.55**rounds
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb.tolist())


def _draw(
    brightness: Array,
    reference: Array,
    prediction: Array,
    spacing_mm: Sequence[float],
    organ_colour: Mapping[str, str],
    sides: Mapping[str, tuple[float, float]],
) -> bytes:
    colours = list(organ_colour.values())
    figure = Figure(figsize=_SIZE, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    organs = np.where(reference == IGNORE, 0, reference)
    # One voxel of nothing around: it closes the line of an organ that touches the border of the scan.
    x, y = (np.arange(-1, n + 1) * spacing for n, spacing in zip(organs.shape, spacing_mm, strict=True))
    left, right, back, front = (float(axis[0] + axis[1]) / 2 for axis in (x, x[::-1], y, y[::-1]))
    edges = (left, right, back, front)
    axes.imshow(
        brightness.T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=edges, interpolation="bilinear"
    )
    axes.imshow(_filled(prediction, colours), origin="lower", extent=edges, interpolation="nearest")
    for index in np.unique(organs[organs > 0]).tolist():
        mask = np.pad((organs == index).astype(float), 1).T
        outline = axes.contour(x, y, mask, levels=[0.5], colors=[colours[index - 1]], linewidths=1.4)
        outline.set_path_effects([withStroke(linewidth=2.6, foreground="black", alpha=0.6)])
    _frame(axes, (organs > 0) | (prediction > 0), spacing_mm)
    for side, (across, up) in sides.items():
        _write(axes, side, across, up)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _filled(prediction: Array, colours: Sequence[str]) -> Array:
    """(X, Y) labels -> (Y, X, 4) colour and opacity."""
    table = np.zeros((IGNORE + 1, 4))
    table[1 : len(colours) + 1, :3] = [to_rgb(colour) for colour in colours]
    table[1 : len(colours) + 1, 3] = 0.38
    return np.asarray(table[prediction.T])


def _frame(axes: Axes, organs: Array, spacing_mm: Sequence[float]) -> None:
    """Set the limits, in mm, to a box of the picture's shape around the organs, and draw a scale."""
    seen = organs if organs.any() else np.ones_like(organs)
    places = np.argwhere(seen) * spacing_mm
    centre, half = (places.max(0) + places.min(0)) / 2, (places.max(0) - places.min(0)) / 2 + _MARGIN_MM
    width = max(half[0], half[1] * _SIZE[0] / _SIZE[1])
    height = width * _SIZE[1] / _SIZE[0]
    axes.set(xlim=(centre[0] + width, centre[0] - width), ylim=(centre[1] - height, centre[1] + height))
    axes.set_aspect("auto")  # figure and limits have one shape, so a mm is as long across as upwards
    length = max(n for n in (5, 10, 20, 50, 100) if n <= width)
    ends = [0.03, 0.03 + length / (2 * width)]
    axes.plot(ends, [0.05, 0.05], lw=2, color="white", transform=axes.transAxes)
    _write(axes, f"{length} mm", 0.09, 0.1)


def _write(axes: Axes, text: str, across: float, up: float) -> None:
    written = axes.text(across, up, text, ha="center", va="center", transform=axes.transAxes, color="white")
    written.set(fontsize=9, path_effects=[withStroke(linewidth=2, foreground="black")])
