"""How far a model may be believed when it says how sure it is: fitted and checked on cases that people annotated.

calibration.json, in the model folder
    model           id of the model that was measured; of another one the file is refused
    temperature     scores are raised to the power 1 / temperature, and made to sum to one
    cases, voxels   that it was fitted on
    loss            negative log-likelihood per voxel, before and after
    classes         class -> cases, rank correlation of expected and true Dice, mean error, mean absolute error
    habits          what is usual, so that what is not can be flagged: see `labelwise.infer.habits`

A voxel that no annotated class covers is the background or a class that the case does not annotate: its likelihood is
the sum of those scores, so that partly annotated cases count too.

Source
    Temperature scaling: Guo et al., ICML 2017. Spearman's rank correlation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor

from labelwise.atomic import write_json
from labelwise.errors import CheckpointError, ConfigError, DataError
from labelwise.infer.doubt import as_chances
from labelwise.infer.habits import Habits
from labelwise.settings import build_settings
from labelwise.types import IGNORE, Array

CALIBRATION = "calibration.json"
LOWEST, HIGHEST = 0.2, 20.0  # temperatures that are looked at
_SMALLEST = 1e-12
_FEWEST = 3  # cases of a rank correlation


@dataclass(frozen=True)
class ClassCheck:
    """Expected Dice beside true Dice, over the cases in which both are defined."""

    cases: int
    rank_correlation: float | None  # Spearman; None below three cases, or if all are alike
    mean_error: float | None  # expected - true
    mean_absolute_error: float | None


@dataclass(frozen=True)
class Calibration:
    """The contents of calibration.json."""

    model: str
    temperature: float
    cases: int
    voxels: int
    loss_before: float
    loss_after: float
    classes: dict[str, ClassCheck]
    habits: Habits | None = None  # None: written before there were flags

    @property
    def id(self) -> str:
        """A digest of all that decides what is said of a result: certainty and flags, never labels."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sample:
    """Voxels of one case: scores, and what people say of them."""

    scores: Tensor  # (C, N) float32
    allowed: Tensor  # (C, N) bool: the classes that the annotation leaves open


def sample_voxels(scores: Tensor, labels: Array, annotated: Array, *, limit: int, seed: int) -> Sample:
    """At most `limit` voxels of a case, drawn evenly from those about which people said something.

    Shapes
        scores      (C, X, Y, Z)
        labels      (X, Y, Z)  class indices, 0, or IGNORE
        annotated   (C,) bool, background included
    """
    known = np.flatnonzero(labels.ravel() != IGNORE)
    if len(known) > limit:
        known = np.sort(np.random.default_rng(seed).choice(known, limit, replace=False))
    where = torch.from_numpy(known)
    chosen = torch.from_numpy(labels.ravel()[known].astype(np.int64))
    allowed = torch.nn.functional.one_hot(chosen, len(scores)).T.bool()
    open_classes = torch.from_numpy(~np.asarray(annotated, bool))
    open_classes[0] = True
    allowed |= open_classes[:, None] & (chosen == 0)
    return Sample(scores.flatten(1)[:, where].float().cpu(), allowed)


def fit_temperature(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Temperature of the largest likelihood; and the loss per voxel at 1 and there.

    Errors
        DataError   no voxel to fit on
    """
    if not sum(sample.scores.shape[1] for sample in samples):
        raise DataError("no voxel of the cases is annotated", do="choose annotated cases by --split")

    def loss(temperature: float) -> float:
        total, count = 0.0, 0
        for sample in samples:
            likelihood = (as_chances(sample.scores, temperature) * sample.allowed).sum(dim=0)
            total -= float(likelihood.clamp_min(_SMALLEST).log().sum(dtype=torch.float64))
            count += likelihood.numel()
        return total / count

    found = minimize_scalar(
        lambda log: loss(math.exp(log)), bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded"
    )
    before, after = loss(1.0), float(found.fun)
    return (math.exp(found.x), before, after) if after < before else (1.0, before, before)


def check_class(expected: Sequence[float], true: Sequence[float]) -> ClassCheck:
    """Expected beside true Dice of one class, case by case."""
    if not expected:
        return ClassCheck(0, None, None, None)
    first, second = np.asarray(expected), np.asarray(true)
    errors = first - second
    ranks = rankdata(first), rankdata(second)
    varied = len(first) >= _FEWEST and all(np.ptp(each) > 0 for each in ranks)
    correlation = float(np.corrcoef(*ranks)[0, 1]) if varied else None
    return ClassCheck(len(first), correlation, float(errors.mean()), float(np.abs(errors).mean()))


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json into a model folder, whole or not at all."""
    write_json(folder / CALIBRATION, asdict(calibration))


def read_calibration(folder: Path, model: str) -> Calibration | None:
    """The calibration in a model folder; None if it has none.

    Errors
        CheckpointError     the file is damaged, or belongs to another model
    """
    file = folder / CALIBRATION
    if not file.exists():
        return None
    try:
        values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = build_settings(Calibration, values, CALIBRATION)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            "the calibration cannot be read", file=file, found=str(error), do="delete it, or calibrate again"
        ) from error
    if found.model != model:
        raise CheckpointError(
            "the calibration belongs to another model",
            file=file,
            found=found.model,
            expected=model,
            do="delete it, or calibrate again",
        )
    return found
