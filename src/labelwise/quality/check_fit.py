"""Is this a scan for this model? What `check` knows of scans, and how a scan differs from those of the training."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.cohort.data_set import DataSet, Modality
from labelwise.formats import Geometry, Layout, is_dicom, stored, suffix
from labelwise.quality.check_cohort import SPACING_RATIO
from labelwise.quality.check_scan import inspect_scan, size_text
from labelwise.quality.problem import Problem, of_image
from labelwise.quality.stored_case import StoredImage
from labelwise.types import Case, Volume

EXTENT_RATIO = 2.0  # beyond the smallest and the largest scan of the training
_DICOM = {"CT": "ct", "MR": "mr"}


def inspect_for_model(
    case: Case,
    image: Volume,
    *,
    intensity: str,
    layout: Layout,
    training: Mapping[str, Any],
    as_given: Geometry | None = None,
) -> list[Problem]:
    """Problems of a scan that a model is asked to segment.

    Parameters
        image       (M, X, Y, Z) as it was read, RAS+
        intensity   what its intensities are: ct, mr or normalised
        training    what the model says of its training; ``scans`` holds the ranges of its voxel sizes and extents
        as_given    grid of a scan that lies in memory and in no file
    """
    as_stored = as_given or stored.geometry(case.images[0], layout)
    grid = Geometry(image.shape, image.affine)
    whole = StoredImage(image.data[0], as_stored, tuple(image.data), grid)
    modality: Modality = "ct" if intensity == "ct" else "mr" if intensity == "mr" else "other"
    data_set = DataSet(case.data_set, {}, modality, layout, normalised=intensity == "normalised")
    return [
        *_other_modality(case, modality),
        *inspect_scan(case, whole, data_set).problems,
        *_unlike_training(case, grid, training.get("scans", {})),
    ]


def _other_modality(case: Case, intensity: str) -> Iterator[Problem]:
    """A DICOM series says itself what it is."""
    for path in case.images:
        first = next((file for file in _files(path) if is_dicom(file)), None)
        if first is None:
            continue
        said = importlib.import_module("labelwise.formats.dicom.image").modality(first)
        if intensity in _DICOM.values() and _DICOM.get(said, intensity) != intensity:
            what = f"the series is of modality {said}, the model was trained on {intensity.upper()}"
            yield of_image("error", "other-modality", case, what, "choose a series that fits the model")


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in sorted(path.rglob("*")) if file.is_file())
    elif not suffix(path):
        yield path


def _unlike_training(case: Case, grid: Geometry, scans: Mapping[str, Any]) -> Iterator[Problem]:
    spacing = np.array(grid.spacing_mm)
    extent = spacing * grid.shape
    remedy = "results may be wrong: look at them, or train with such scans"
    for name, found, ratio, code in (
        ("voxel size", spacing, SPACING_RATIO, "spacing-unlike-training"),
        ("field of view", extent, EXTENT_RATIO, "view-unlike-training"),
    ):
        known = scans.get("spacing_mm" if name == "voxel size" else "extent_mm")
        if known is None:
            continue
        low, high = np.array(known["low"]), np.array(known["high"])
        if bool(((found * ratio < low) | (found > high * ratio)).any()):
            usual = (
                size_text(low)
                if np.allclose(low, high, rtol=0.01)
                else f"{size_text(low)} to {size_text(high)}"
            )
            what = f"{name} {size_text(found)}, but the training had {usual}"
            yield of_image("warning", code, case, what, remedy)
