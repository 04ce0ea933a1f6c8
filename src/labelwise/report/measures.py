"""How each metric is named, scaled, rounded and judged in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

UNDEFINED = "–"


@dataclass(frozen=True)
class Measure:
    """One metric as a reader sees it. Values stay as scored; only the printed number is scaled."""

    name: str  # as in scores.csv
    title: str
    unit: str = ""  # "%" prints 100 times the value
    higher_is_better: bool | None = None  # None: neither, so no best is marked
    definition: str = ""  # what exactly was computed

    @property
    def heading(self) -> str:
        """Title with unit, for the head of a column."""
        return f"{self.title} [{self.unit}]" if self.unit else self.title

    @property
    def difference_unit(self) -> str:
        """Unit of a difference of two values: a difference of percentages is counted in points."""
        return "points" if self.unit == "%" else self.unit

    def number(self, value: float, *, signed: bool = False) -> str:
        """The printed number without unit: one decimal for percentages, two for everything else.

        Example
            >>> measure("dice").number(0.8714), measure("hd95").number(-1.5, signed=True)
            ('87.1', '−1.50')
        """
        if not math.isfinite(value):
            return UNDEFINED
        scale, decimals = (100, 1) if self.unit == "%" else (1, 2)
        rounded = round(scale * value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
        return format(rounded, f"{'+' if signed and rounded else ''}.{decimals}f").replace("-", "−")

    def with_unit(self, value: float) -> str:
        """The printed number with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip() if math.isfinite(value) else UNDEFINED


_MEASURES = (
    Measure("dice", "Dice", "%", True, "twice the overlap over the sum of both volumes"),
    Measure("jaccard", "Jaccard", "%", True, "overlap over union"),
    Measure("nsd", "NSD", "%", True, "part of both surfaces that lies within the tolerance of the other"),
    Measure(
        "hd95",
        "HD95",
        "mm",
        False,
        "95th percentile of the distances between surface voxels, both directions pooled (as MedPy)",
    ),
    Measure("assd", "ASSD", "mm", False, "mean distance between surface voxels, both directions pooled"),
    Measure("asd", "ASD", "mm", False, "mean distance from the predicted to the reference surface, one way"),
    Measure(
        "hd95_penalised", "HD95 penalised", "mm", False, "HD95; image diagonal if one surface does not exist"
    ),
    Measure(
        "assd_penalised", "ASSD penalised", "mm", False, "ASSD; image diagonal if one surface does not exist"
    ),
    Measure(
        "boundary_iou",
        "Boundary IoU",
        "%",
        True,
        "overlap over union of the voxels within 2 mm of either border",
    ),
    Measure(
        "slice_hd", "HD of slices", "mm", False, "mean over slices of the largest distance within the slice"
    ),
    Measure(
        "lesion_recall",
        "Lesions found",
        "%",
        True,
        "part of the reference's connected parts that is matched at an IoU of 0.1",
    ),
    Measure(
        "lesion_precision",
        "Lesion precision",
        "%",
        True,
        "part of the predicted connected parts that is matched at an IoU of 0.1",
    ),
    Measure("lesion_f1", "Lesion F1", "%", True, "twice the matched parts over all parts of both"),
    Measure("false_lesions", "False lesions a scan", "", False, "predicted connected parts that match none"),
    Measure(
        "panoptic_quality",
        "Panoptic quality",
        "%",
        True,
        "IoU of parts matched above 0.5, over matched parts and half of the others",
    ),
    Measure(
        "calibration_error",
        "Calibration error",
        "%",
        False,
        "how far chances are from how often the structure is there, over 15 bins",
    ),
    Measure("volume_difference", "Volume difference", "ml", None, "prediction minus reference"),
    Measure("reference_volume", "Reference volume", "ml", None, "volume of the structure in the reference"),
    Measure("prediction_volume", "Predicted volume", "ml", None, "volume of the structure in the prediction"),
)
_BY_NAME = {known.name: known for known in _MEASURES}

# What a variant of the evaluation does differently, and the metrics shown unless others are asked for.
VARIANTS = {
    "default": "",
    "la_official": "Variant la_official, the protocol of the left-atrium benchmark: distances in voxels, "
    "and an empty prediction scores 0 in every metric, which is perfect for a distance.",
}
SHOWN = {"default": ("dice", "nsd", "hd95", "assd"), "la_official": ("dice", "jaccard", "hd95", "asd")}


def measure(name: str, units: Mapping[str, str] | None = None) -> Measure:
    """The measure of a metric name, with the units of the scores by class.

    The unit "at 1 mm" is the tolerance of the NSD: it joins the title if it is the same for all classes, else
    the definition. An unknown metric is printed under its own name, and no value of it is called best.

    Example
        >>> measure("nsd", {"liver": "at 2 mm", "spleen": "at 2 mm"}).heading
        'NSD at 2 mm [%]'
    """
    known = _BY_NAME.get(name, Measure(name, name))
    different = set((units or {}).values())
    if known.unit != "%":
        return replace(known, unit=" / ".join(sorted(different))) if different else known
    if len(different) > 1:
        listed = ", ".join(f"{structure} {unit}" for structure, unit in (units or {}).items())
        return replace(known, definition=f"{known.definition}: {listed}")
    return replace(known, title=" ".join([known.title, *different]).rstrip())


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Metric names in the order of this table, unknown ones last."""
    found = set(names)
    known = [known.name for known in _MEASURES if known.name in found]
    return (*known, *sorted(found - set(known)))


def or_none(value: float) -> float | None:
    """A number as JSON has it, which knows no NaN and no infinity."""
    return value if math.isfinite(value) else None


def p_text(p: float) -> str:
    """A p value as it is printed."""
    if not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
