"""Draw the pictures of README and quick start from what the demo made of the built-in scans: docs/assets/*.png.

    labelwise demo -o runs/demo && python website/pictures.py runs/demo

The scan of the first picture is the test scan whose mean Dice is the median one: neither the best nor the worst.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from labelwise import run
from labelwise.cohort.manifest import (
    Manifest,
    read_case_image,
    read_case_labels,
    read_manifest,
)
from labelwise.formats import read_labels
from labelwise.metrics import read_scores
from labelwise.report.overlays import CT_WINDOW
from labelwise.types import Array, Case, Volume

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
METHOD = "self_training"  # the last of the demo's methods
BLACK, WHITE, GREY = "#000000", "#f0f3f6", "#9ea7b3"  # legible in light and dark pages alike
COLOURS = ("#e69f00", "#56b4e9", "#2fd39a", "#f0e442")  # of Okabe and Ito, one of them lighter
BODY_HU = -300.0
FINER = 4  # the scans are small: voxels are interpolated to look at


def median_case(scores: Path) -> tuple[str, dict[str, float]]:
    """The case whose mean Dice is the median one, and its Dice by structure."""
    by_case: dict[str, dict[str, float]] = {}
    for score in read_scores(scores):
        if score.metric == "dice":
            by_case.setdefault(score.case, {})[score.class_name] = score.value
    order = sorted(by_case, key=lambda case: float(np.nanmean([*by_case[case].values()])))
    case = order[len(order) // 2]
    return case, by_case[case]


def slice_of(labels: Volume) -> int:
    """The axial slice that shows most structures, and of those most voxels."""
    values = [value for value in np.unique(labels.data) if 0 < value < 255]
    sizes = np.array([(labels.data == value).sum(axis=(0, 1)) for value in values])
    return int(((sizes > 5).sum(axis=0) * 1e6 + sizes.sum(axis=0)).argmax())


def panel(axes: Axes, image: Volume, labels: Volume | None, colours: Mapping[int, str], height: int) -> None:
    """An axial slice of a body with its structures, the patient's right on the left."""
    body = np.argwhere(image.data[0, :, :, height] > BODY_HU)
    (left, bottom), (right, top) = body.min(axis=0), body.max(axis=0) + 1
    plane = (slice(left, right), slice(bottom, top), height)
    low, high = CT_WINDOW
    axes.imshow(_fine(image.data[0][plane]), cmap="gray", vmin=low, vmax=high, origin="lower")
    for value, colour in colours.items() if labels is not None else ():
        assert labels is not None
        mask = _fine((labels.data[plane] == value).astype(float))
        if mask.max() > 0.5:
            axes.contourf(mask, [0.5, 2], colors=[colour], alpha=0.45)
            axes.contour(mask, [0.5], colors=[colour], linewidths=2.5)
    axes.set_axis_off()


def _fine(plane: Array) -> Array:
    return np.asarray(ndimage.zoom(plane[::-1].T, FINER, order=1))


def first_picture(folder: Path, manifest: Manifest) -> Figure:
    """What the labels of each site say, and what the model finds in a new scan."""
    space = manifest.label_space
    colours = dict(zip(range(1, len(space.names)), COLOURS, strict=True))
    figure = Figure(figsize=(16, 6.6), facecolor=BLACK)
    firsts: dict[str, Case] = {}
    for case in manifest.split("train"):
        firsts.setdefault(case.data_set, case)
    labelled = [case for case in firsts.values() if case.annotated]
    unlabelled = [case for case in manifest.split("train") if not case.annotated]
    for number, case in enumerate([*labelled, *unlabelled[:2]]):
        axes = figure.add_axes((0.01 + 0.165 * (number % 3), 0.46 - 0.44 * (number // 3), 0.155, 0.34))
        labels = read_case_labels(case, manifest) if case.annotated else None
        image = read_case_image(case, manifest)
        panel(axes, image, labels, colours, slice_of(labels) if labels is not None else image.shape[2] // 2)
        organ = next(iter(case.annotated), None)
        colour = colours[space.index(organ)] if organ else GREY
        place = axes.get_position()
        _write(figure, (place.x0 + place.x1) / 2, place.y1 + 0.035, organ or "no labels", colour, 25)
    name, dice = median_case(folder / METHOD / "scores.csv")
    case = next(case for case in manifest.cases if case.id == name)
    reference = read_case_labels(case, manifest)
    prediction = read_labels(folder / METHOD / "predictions" / f"{name}.nii.gz")
    axes = figure.add_axes((0.53, 0.12, 0.46, 0.73))
    panel(axes, read_case_image(case, manifest), prediction, colours, slice_of(reference))
    for number, (organ, value) in enumerate(dice.items()):
        _write(
            figure,
            0.575 + 0.118 * number,
            0.06,
            f"{organ} {100 * value:.0f}",
            colours[space.index(organ)],
            19,
        )
    _write(figure, 0.25, 0.94, "each training scan: one organ, or none", WHITE, 27)
    _write(figure, 0.765, 0.94, "a new scan: all organs, Dice [%]", WHITE, 27)
    return figure


def _write(figure: Figure, x: float, y: float, words: str, colour: str, size: int) -> None:
    figure.text(x, y, words, color=colour, fontsize=size, ha="center", va="center")


def main(folder: Path) -> None:
    """Write the pictures."""
    manifest = read_manifest(folder / "data")
    ASSETS.mkdir(parents=True, exist_ok=True)
    plain = {"Software": None}  # no version in the file: the same picture is the same bytes
    first_picture(folder, manifest).savefig(ASSETS / "first.png", dpi=100, facecolor=BLACK, metadata=plain)
    name, _ = median_case(folder / METHOD / "scores.csv")
    case = next(case for case in manifest.cases if case.id == name)
    run.show(folder / METHOD / "predictions" / f"{name}.nii.gz", ASSETS / "result.png", image=case.images[0])
    with TemporaryDirectory() as checked:
        run.check(folder / "data", checked, workers=1)
        (ASSETS / "coverage.png").write_bytes((Path(checked) / "coverage.png").read_bytes())


# The guard lets worker processes import this file without running it again.
if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
