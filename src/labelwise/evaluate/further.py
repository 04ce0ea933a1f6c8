"""Metrics on request, ours and those of other packages, by name.

A metric is a function of two masks of bool, the prediction and the reference, and of the size of a voxel along each
axis; it returns a number, or several by name. Other packages bring theirs through entry points:

    [project.entry-points."labelwise.metrics"]
    my_metric = "my_package.my_metric:my_metric"

    def my_metric(prediction, reference, *, spacing):
        return float(...)

NaN says that the metric is not defined for these masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from labelwise.errors import ConfigError, LabelwiseError
from labelwise.evaluate.lesions import detect
from labelwise.plugins import Parts
from labelwise.types import Array

Metric = Callable[..., float | Mapping[str, float]]

METRICS: dict[str, str] = {
    "boundary_iou": "labelwise.evaluate.boundary:boundary_iou",
    "lesions": "labelwise.evaluate.further:lesions",
    "slice_hd": "labelwise.evaluate.slices:slice_hd",
}
parts: Parts[Metric] = Parts(
    "metric", "labelwise.metrics", METRICS, "a function of prediction, reference and spacing", callable
)


def lesions(prediction: Array, reference: Array, *, spacing: Sequence[float]) -> dict[str, float]:
    """What became of the lesions of a scan, see `labelwise.evaluate.lesions`."""
    found = detect(prediction, reference)
    return {
        "lesion_recall": found.recall,
        "lesion_precision": found.precision,
        "lesion_f1": found.f1,
        "false_lesions": float(found.false),
        "panoptic_quality": found.quality,
    }


def measure_further(
    name: str, prediction: Array, reference: Array, spacing: Sequence[float]
) -> dict[str, float]:
    """The values of a metric by name: its own, if it is one number.

    Errors
        ConfigError     no metric has this name; one of another package fails, or gives something else than numbers
    """
    metric = parts.find(name)
    try:
        found = metric(prediction, reference, spacing=spacing)
        values = found if isinstance(found, Mapping) else {name: found}
        return {str(key): float(value) for key, value in values.items()}
    except Exception as error:
        if name in METRICS or isinstance(error, LabelwiseError):
            raise
        raise ConfigError(
            f"the metric '{name}' of another package fails: {type(error).__name__}: {error}",
            expected="a number, or numbers by name",
            do="repair its package, or leave it out of --metrics",
        ) from error
