"""All metrics of one 14-organ case beside MedPy and MONAI: seconds, and largest difference of the values.

    python benchmarks/evaluation_speed.py            # a few minutes on two cores
    python benchmarks/evaluation_speed.py --quick    # seconds; a small image, writes nothing

Ours starts from the two label maps, checks them, and gives nine metrics. MedPy is called per class for its
five (Dice, Jaccard, HD95, ASD, ASSD; it has no surface Dice), MONAI for its six (these and the surface Dice).
The masks and one-hot maps that they need are made outside the measured time. The sides take turns in one
process, on one thread each, and processor time is counted: other programs on the machine disturb it least.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import scipy
import torch
from metadata import write_result
from scipy import ndimage

from labelwise.evaluate.cases import evaluate_case
from labelwise.types import Array, LabelSpace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from medpy.metric import binary as medpy
    from monai import metrics as monai

# Place in the trunk as fractions of the image (left, front, top), half axes in mm, roughly of an adult.
ORGANS = {
    "liver": ((0.68, 0.60, 0.55), (75, 65, 75)),
    "spleen": ((0.22, 0.35, 0.58), (28, 38, 50)),
    "right kidney": ((0.66, 0.28, 0.30), (26, 28, 55)),
    "left kidney": ((0.32, 0.27, 0.34), (26, 28, 55)),
    "stomach": ((0.33, 0.68, 0.66), (45, 50, 45)),
    "pancreas": ((0.45, 0.52, 0.46), (55, 12, 14)),
    "gallbladder": ((0.63, 0.75, 0.36), (15, 25, 18)),
    "aorta": ((0.48, 0.35, 0.50), (11, 11, 160)),
    "vena cava": ((0.54, 0.36, 0.50), (11, 13, 150)),
    "portal vein": ((0.53, 0.50, 0.50), (35, 8, 10)),
    "oesophagus": ((0.46, 0.42, 0.88), (9, 9, 45)),
    "duodenum": ((0.56, 0.52, 0.32), (25, 20, 40)),
    "right adrenal": ((0.62, 0.36, 0.52), (5, 12, 10)),
    "left adrenal": ((0.40, 0.36, 0.53), (5, 12, 10)),
}
SPACE = LabelSpace(("background", *ORGANS))
SHAPE, SPACING_MM = (244, 202, 112), (1.5, 1.5, 3.0)
QUICK_SHAPE, QUICK_SPACING_MM = (61, 51, 56), (6.0, 6.0, 6.0)
PREDICTIONS = {"good": 1.0, "poor": 5.0}  # standard deviation of the displacement along each axis in mm
TOLERANCE_MM = 1.0
COARSE = (9, 8, 8)  # points between which a displacement is interpolated
REPETITIONS = {"labelwise": 9, "monai": 3, "medpy": 3}
GOALS = {"times_faster_than_medpy": 25, "times_faster_than_monai": 5}

Values = dict[str, list[float]]  # metric -> one value per organ


def deformed(labels: Array, error_mm: float, spacing_mm: tuple[float, ...], seed: int) -> Array:
    """The label map seen through a smooth random displacement, of `error_mm` (sd) along each axis."""
    generator = np.random.default_rng(seed)
    coordinates = []
    for axis, size in enumerate(labels.shape):
        zoom = np.divide(labels.shape, COARSE)
        displacement = ndimage.zoom(generator.normal(size=COARSE), zoom)
        displacement *= error_mm / spacing_mm[axis] / displacement.std()
        along = np.arange(size).reshape([-1 if other == axis else 1 for other in range(3)])
        coordinates.append(along + displacement)
    moved: Array = ndimage.map_coordinates(labels, coordinates, order=0)
    return moved


def phantom(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Array:
    """A trunk with 14 bent ellipsoids of the size of real organs."""
    labels = np.zeros(shape, np.uint8)
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
    for index, (place, half_axes) in enumerate(ORGANS.values(), start=1):
        terms = zip(grid, shape, spacing_mm, place, half_axes, strict=True)
        labels[sum(((x - p * n) * size / half) ** 2 for x, n, size, p, half in terms) < 1] = index
    return deformed(labels, 6.0, spacing_mm, seed=0)


def by_labelwise(reference: Array, prediction: Array, spacing_mm: tuple[float, ...]) -> Callable[[], Values]:
    def run() -> Values:
        scores = evaluate_case(
            "phantom",
            reference,
            prediction,
            label_space=SPACE,
            annotated=SPACE.structures,
            spacing_mm=spacing_mm,
            nsd_tolerance=TOLERANCE_MM,
        )
        values: Values = {}
        for score in scores:
            values.setdefault(score.metric, []).append(score.value)
        return values

    return run


def by_medpy(reference: Array, prediction: Array, spacing_mm: tuple[float, ...]) -> Callable[[], Values]:
    masks = [(prediction == c, reference == c) for c in range(1, SPACE.num_classes)]

    def run() -> Values:
        return {
            "dice": [medpy.dc(*pair) for pair in masks],
            "jaccard": [medpy.jc(*pair) for pair in masks],
            "hd95": [medpy.hd95(*pair, spacing_mm) for pair in masks],
            "asd": [medpy.asd(*pair, spacing_mm) for pair in masks],
            "assd": [medpy.assd(*pair, spacing_mm) for pair in masks],
        }

    return run


def by_monai(reference: Array, prediction: Array, spacing_mm: tuple[float, ...]) -> Callable[[], Values]:
    pair = [  # float32: a third faster than bool or uint8
        torch.from_numpy(np.stack([labels == c for c in range(SPACE.num_classes)])[None]).float()
        for labels in (prediction, reference)
    ]
    plain: dict[str, Any] = {"include_background": False}
    spaced = plain | {"spacing": spacing_mm}
    tolerances = [TOLERANCE_MM] * len(ORGANS)

    def run() -> Values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI 1.6 uses arguments that it has deprecated
            found = {
                "dice": monai.compute_dice(*pair, **plain),
                "jaccard": monai.compute_iou(*pair, **plain),
                "hd95_larger_direction": monai.compute_hausdorff_distance(*pair, percentile=95, **spaced),
                "asd": monai.compute_average_surface_distance(*pair, **spaced),
                "assd": monai.compute_average_surface_distance(*pair, symmetric=True, **spaced),
                "nsd": monai.compute_surface_dice(*pair, class_thresholds=tolerances, **spaced),
            }
        return {name: values[0].tolist() for name, values in found.items()}

    return run


def measure(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], error_mm: float, quick: bool
) -> dict[str, Any]:
    """One row of the result: medians and ranges of all sides, measured in turns."""
    reference = phantom(shape, spacing_mm)
    prediction = deformed(reference, error_mm, spacing_mm, seed=1)
    maps = (reference, prediction, spacing_mm)
    sides = {"labelwise": by_labelwise(*maps), "monai": by_monai(*maps), "medpy": by_medpy(*maps)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Values] = {}
    for turn in range(1 if quick else max(REPETITIONS.values())):
        for name, run in sides.items():
            if turn < REPETITIONS[name]:
                start = time.process_time()
                values[name] = run()
                times[name].append(time.process_time() - start)
    seconds = {name: median(found) for name, found in times.items()}
    return {
        "error_mm": error_mm,
        "mean_dice": round(float(np.mean(values["labelwise"]["dice"])), 4),
        "mean_hd95_mm": round(float(np.mean(values["labelwise"]["hd95"])), 3),
        "processor_seconds": {name: float(f"{value:.4g}") for name, value in seconds.items()},
        "processor_seconds_range": {
            name: [float(f"{pick(t):.4g}") for pick in (min, max)] for name, t in times.items()
        },
        "runs": {name: len(found) for name, found in times.items()},
        "times_faster_than_medpy": round(seconds["medpy"] / seconds["labelwise"], 1),
        "times_faster_than_monai": round(seconds["monai"] / seconds["labelwise"], 1),
        "largest_difference": {
            name: difference(values["labelwise"], values[name]) for name in ("medpy", "monai")
        },
    }


def difference(ours: Values, theirs: Values) -> dict[str, float]:
    """Largest absolute difference of each metric that both sides have."""
    return {
        name: float(f"{np.abs(np.subtract(ours[name], theirs[name])).max():.2g}")
        for name in ours
        if name in theirs
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    shape, spacing_mm = (QUICK_SHAPE, QUICK_SPACING_MM) if quick else (SHAPE, SPACING_MM)
    rows = {}
    for name, error_mm in PREDICTIONS.items():
        rows[name] = measure(shape, spacing_mm, error_mm, quick)
        print(name, json.dumps(rows[name]), flush=True)
    if not quick:
        payload = {
            "goals": GOALS,
            "case": {"shape": shape, "spacing_mm": spacing_mm, "organs": len(ORGANS)},
            "scipy": scipy.__version__,
            "monai_hd95": "the larger of the two directed percentiles, therefore not compared",
            "rows": rows,
        }
        print(write_result("evaluation_speed", payload))


if __name__ == "__main__":
    main()
