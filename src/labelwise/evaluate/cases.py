"""Two label maps of one case become its scores.

    not annotated in the case       no value, but counted; the volume of      status not_annotated
                                    the prediction tells whether there is one
    in neither map                  no value: a correct absence               status both_empty
    in one map only                 Dice, Jaccard and NSD 0; distances        status prediction_empty
                                    undefined, and the diagonal of the        or reference_empty
                                    image in the metrics *_penalised
    reference partly IGNORE         overlap over the known voxels; no         status reference_incomplete
                                    surface metric, for the surface of a      (surface metrics only)
                                    scribble is not that of the structure

The volume difference is prediction minus reference and always defined. The variant "la_official" repeats
the evaluation of the published left-atrium codes: four metrics, in voxels, and an empty prediction scores 0
in all of them, which is the perfect value of a distance. It is for comparisons with published numbers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelwise.errors import ConfigError, DataError, did_you_mean
from labelwise.evaluate.further import measure_further
from labelwise.evaluate.overlap import VoxelCounts, count_voxels, dice, jaccard
from labelwise.evaluate.scores import NOT_ANNOTATED, Score, Summary, read_scores, summarise, write_scores
from labelwise.evaluate.surface import SurfaceDistances, asd, assd, hd95, nsd, surface_distances
from labelwise.types import Array, LabelSpace

__all__ = [
    "METRICS",
    "NSD_TOLERANCE",
    "VARIANTS",
    "Score",
    "Summary",
    "Variant",
    "evaluate_case",
    "read_scores",
    "summarise",
    "write_scores",
]

Variant = Literal["default", "la_official"]
Values = NDArray[np.floating]  # (C,) one metric of every class

VARIANTS = ("default", "la_official")
OVERLAP_METRICS = ("dice", "jaccard", "volume_difference", "reference_volume", "prediction_volume")
VOLUME_METRICS = ("volume_difference", "reference_volume", "prediction_volume")
DISTANCE_METRICS = ("hd95", "assd", "asd", "hd95_penalised", "assd_penalised")
METRICS = (*OVERLAP_METRICS, "nsd", *DISTANCE_METRICS)
LA_METRICS = ("dice", "jaccard", "hd95", "asd")
NSD_TOLERANCE = (
    1.0  # mm, of the order of a voxel; pass the agreement of human readers per structure if it is known
)


class _Scale(NamedTuple):
    """What lengths and volumes are measured in."""

    spacing: tuple[float, ...]  # size of a voxel along each axis
    length: str
    volume: str
    voxel_volume: float


def evaluate_case(
    case_id: str,
    reference: Array,
    prediction: Array,
    *,
    label_space: LabelSpace,
    annotated: Iterable[str],
    spacing_mm: Sequence[float] | None,
    metrics: Sequence[str] = METRICS,
    nsd_tolerance: float | Mapping[str, float] = NSD_TOLERANCE,
    variant: Variant = "default",
    group: str = "",
    further: Sequence[str] = (),
) -> list[Score]:
    """Score every structure of the label space in one case, by the rules at the top of this module.

    A prediction of structure A where the reference says 0 counts against A alone, and against nobody if A is
    not annotated in this case.

    Shapes
        reference       (*S)    class indices or IGNORE, 2D or 3D
        prediction      (*S)    class indices
        annotated       names of the structures that are delineated in this case
        spacing_mm      size of a voxel along each axis; None: lengths and tolerances are in voxels
        nsd_tolerance   one for all structures, or by class name
        variant         "la_official" always gives its four metrics, in voxels
        group           patient or centre of the case; cases of one group count as one sample in a comparison
        further         metrics on request (`labelwise.evaluate.further`), ours or of other packages
        returns         one score per structure and metric, structures in the order of the label space

    Errors
        DataError       shapes differ, a value lies outside the label space, nothing is known about an
                        annotated structure, or the spacing does not fit the image
        ConfigError     unknown metric, class or variant, or a structure without tolerance
    """
    official = _known("variant", variant, VARIANTS) == "la_official"
    chosen = LA_METRICS if official else tuple(_known("metric", name, METRICS) for name in metrics)
    delineated = label_space.annotated_row(annotated)
    counts = count_voxels(reference, prediction, label_space.num_classes, case=case_id)
    if delineated.any() and counts.ignored == np.size(reference):
        raise DataError(
            "structures are said to be annotated, but the reference is IGNORE everywhere", case=case_id
        )
    scale = _scale(None if official else spacing_mm, np.ndim(reference), case_id)
    tolerances = _tolerances(nsd_tolerance if "nsd" in chosen else NSD_TOLERANCE, label_space)

    values = _overlap_values(counts, scale)
    if not set(chosen) <= set(OVERLAP_METRICS) and not counts.ignored:
        structures = np.flatnonzero(delineated[1:]) + 1
        distances = surface_distances(reference, prediction, structures.tolist(), scale.spacing)
        diagonal = float(np.linalg.norm(np.multiply(np.shape(reference), scale.spacing)))
        values |= _surface_values(counts, distances, tolerances, diagonal)
    if official:
        values = {name: np.where(counts.prediction == 0, 0.0, row) for name, row in values.items()}
    for name in further:
        shown = [] if counts.ignored else (np.flatnonzero(delineated[1:]) + 1).tolist()
        found = _further_values(name, prediction, reference, shown, len(counts.reference), scale.spacing)
        if taken := sorted(set(found) & set(METRICS)):
            raise ConfigError(f"the metric '{name}' gives '{taken[0]}', which is the name of one of ours")
        values |= {} if counts.ignored else found
        chosen = (*chosen, *found)
    scores = []
    for c, structure in enumerate(label_space.structures, start=1):
        for metric in chosen:
            value, status = _entry(values.get(metric), counts, c, bool(delineated[c]))
            if status == NOT_ANNOTATED and metric == "prediction_volume":
                value = float(values[metric][c])
            unit = _unit(metric, scale, tolerances[c])
            scores.append(Score(case_id, structure, metric, value, status, unit, variant, group))
    return scores


def _further_values(
    name: str,
    prediction: Array,
    reference: Array,
    structures: Iterable[int],
    classes: int,
    spacing: Sequence[float],
) -> dict[str, Values]:
    """The values (C,) of a metric on request, by name, for these classes; its names even if there are no classes."""
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    found: dict[str, Values] = {}
    for c in structures:
        for key, value in measure_further(name, prediction == c, reference == c, spacing).items():
            found.setdefault(key, np.full(classes, np.nan))[c] = value
    if not found:
        nothing = np.zeros(reference.shape, bool)
        found = {key: np.full(classes, np.nan) for key in measure_further(name, nothing, nothing, spacing)}
    return found


def _overlap_values(counts: VoxelCounts, scale: _Scale) -> dict[str, Values]:
    return {
        "dice": dice(counts),
        "jaccard": jaccard(counts),
        "volume_difference": (counts.prediction - counts.reference) * scale.voxel_volume,
        "reference_volume": counts.reference * scale.voxel_volume,
        "prediction_volume": counts.prediction * scale.voxel_volume,
    }


def _surface_values(
    counts: VoxelCounts, distances: Mapping[int, SurfaceDistances], tolerances: Values, diagonal: float
) -> dict[str, Values]:
    one_empty = (counts.reference == 0) != (counts.prediction == 0)
    values = {name: np.full(one_empty.shape, np.nan) for name in ("nsd", "hd95", "assd", "asd")}
    for c, found in distances.items():
        values["nsd"][c] = nsd(found, tolerances[c])
        values["hd95"][c], values["assd"][c], values["asd"][c] = hd95(found), assd(found), asd(found)
    values["nsd"][one_empty] = 0
    for name in ("hd95", "assd"):
        values[f"{name}_penalised"] = np.where(one_empty, diagonal, values[name])
    return values


def _entry(values: Values | None, counts: VoxelCounts, c: int, annotated: bool) -> tuple[float, str]:
    """Value and status of class `c`; `values` is None for a surface metric of an unlabelled reference."""
    if not annotated:
        return np.nan, NOT_ANNOTATED
    if values is None:
        return np.nan, "reference_incomplete"
    in_reference, in_prediction = counts.reference[c] > 0, counts.prediction[c] > 0
    if in_reference and in_prediction:
        status = "ok"
    elif in_reference:
        status = "prediction_empty"
    else:
        status = "reference_empty" if in_prediction else "both_empty"
    return float(values[c]), status


def _scale(spacing_mm: Sequence[float] | None, dims: int, case: str) -> _Scale:
    if spacing_mm is None:
        return _Scale((1.0,) * dims, "voxels", "voxels", 1.0)
    if len(spacing_mm) != dims or not all(np.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError(
            "the spacing does not fit the image",
            case=case,
            found=spacing_mm,
            expected=f"{dims} lengths above 0",
        )
    spacing = tuple(float(size) for size in spacing_mm)
    return _Scale(spacing, "mm", "ml", float(np.prod(spacing)) / 1000)


def _tolerances(nsd_tolerance: float | Mapping[str, float], label_space: LabelSpace) -> Values:
    """(C,) tolerance of each class; the background has none."""
    if not isinstance(nsd_tolerance, Mapping):
        nsd_tolerance = dict.fromkeys(label_space.structures, nsd_tolerance)
    for name in nsd_tolerance:
        label_space.index(name)
    if missing := [name for name in label_space.structures if name not in nsd_tolerance]:
        raise ConfigError(
            f"no tolerance of the NSD for {', '.join(missing)}", do="give one for every structure"
        )
    tolerances = np.array([np.nan, *(nsd_tolerance[name] for name in label_space.structures)])
    if not (tolerances[1:] >= 0).all():
        raise ConfigError("a tolerance of the NSD is a length", found=nsd_tolerance, expected="0 or more")
    return tolerances


def _unit(metric: str, scale: _Scale, tolerance: float) -> str:
    if metric == "nsd":
        return f"at {tolerance:g} {scale.length}"
    if metric in VOLUME_METRICS:
        return scale.volume
    return scale.length if metric in (*DISTANCE_METRICS, "slice_hd") else ""


def _known(what: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ConfigError(
            f"unknown {what} '{name}'{did_you_mean(name, names)}",
            expected=", ".join(names),
            code="unknown-name",
        )
    return name
