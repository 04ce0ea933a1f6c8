"""Several models that answer as one: the mean of their scores, window by window.

Each window passes through one network after the other, and only the mean is kept, so that a sweep over a scan takes the
memory of one model, and the weights of all. The scan is prepared once. Only where models of CT have learnt other
intensities (the folds of a cross-validation have) it is normalised for each of them.

The models must speak of the same classes and intensity rules, and see scans alike. Voxel sizes and patches that were
planned from parts of one cohort differ a little: then all models see voxels of the mean size, in windows of the largest
patch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from labelwise.errors import ConfigError
from labelwise.infer.postprocess import PostprocessConfig
from labelwise.infer.windows import Size
from labelwise.preprocess.pipeline import Plan

logger = logging.getLogger("labelwise")

MOST_APART = 1.1  # ratio of voxel sizes: less than what augmentation changes
LARGEST_PATCH = 1.5  # ratio of patch sizes along an axis


class Member(NamedTuple):
    """One model of an ensemble."""

    name: str
    id: str
    plan: Plan  # its intensities
    strides: tuple[int, ...]  # what the sides of a window must be divisible by


class Average(nn.Module):
    """The mean of the scores (B, C, *S) of several predictors.

    Shapes
        images      (B, M, *S) for all of them; or (B, K M, *S), the channels of the first one first, if each of the K
                    predictors has `own_images`
    """

    def __init__(self, predictors: Sequence[nn.Module], *, own_images: bool):
        super().__init__()
        self.predictors = nn.ModuleList(predictors)
        self.own_images = own_images

    def forward(self, images: Tensor) -> Tensor:
        parts = images.chunk(len(self.predictors), dim=1) if self.own_images else None
        total: Tensor | None = None
        for number, predictor in enumerate(self.predictors):
            scores = predictor(images if parts is None else parts[number]).float()
            total = scores.clone() if total is None else total.add_(scores)
            del scores  # else it would lie in memory beside those of the next one
        assert total is not None
        return total.div_(len(self.predictors))


def require_equal(what: str, values: Mapping[str, Any]) -> None:
    """Refuse models (by name) that differ in something.

    Errors
        ConfigError     the first two values that differ
    """
    (first, expected), *others = values.items()
    for name, value in others:
        if value != expected:
            raise ConfigError(
                f"the models cannot answer together: they differ in {what}",
                found=f"{value} of '{name}'",
                expected=f"{expected} as of '{first}'",
                do="combine models that were trained on one cohort with the same settings",
            )


def common_plan(plans: Mapping[str, Plan]) -> Plan:
    """How a scan is brought to the grid of all models; intensities are those of the first.

    Errors
        ConfigError     grids that cannot be joined
    """
    require_equal("how scans are cropped", {name: plan.crop for name, plan in plans.items()})
    require_equal("the number of voxels of a scan", {name: plan.shape for name, plan in plans.items()})
    first = next(iter(plans.values()))
    spacings = {name: plan.spacing_mm for name, plan in plans.items()}
    sizes = np.array([size for size in spacings.values() if size is not None])
    if len(sizes) < len(spacings) or (sizes.max(axis=0) > MOST_APART * sizes.min(axis=0)).any():
        require_equal("the voxel size [mm] of prepared scans", spacings)
        return first
    if (sizes == sizes[0]).all():
        return first
    x, y, z = np.exp(np.log(sizes).mean(axis=0)).round(6).tolist()
    return replace(first, spacing_mm=(x, y, z))


def common_patch(patches: Mapping[str, Size], strides: Sequence[Sequence[int]]) -> Size:
    """The size of a window for all networks: the largest along each axis, divisible by the `strides` of each.

    Errors
        ConfigError     sizes that are too far apart, or slices beside volumes
    """
    sizes = np.array(list(patches.values()))
    flat = sizes[:, 2] == 1
    if flat.any() != flat.all() or (sizes.max(axis=0) > LARGEST_PATCH * sizes.min(axis=0)).any():
        require_equal("the size of the patches", patches)
    x, y, z = (
        -(-int(size) // by) * by for size, by in zip(sizes.max(axis=0), common_strides(strides), strict=True)
    )
    return x, y, z


def common_strides(strides: Sequence[Sequence[int]]) -> Size:
    """What the sides of a window must be divisible by for all networks; 1 along z where they take slices."""
    x, y, z = (lcm(*(each[axis] if axis < len(each) else 1 for each in strides)) for axis in range(3))
    return x, y, z


def common_postprocess(
    configs: Mapping[str, PostprocessConfig], structures: Sequence[str]
) -> PostprocessConfig:
    """The clean-up that all models ask for: the largest component of the structures of which each of them keeps it.

    It is planned from the training scans. One fold may have seen a structure in two pieces, or too seldom to judge,
    where another has not: then all pieces stay, because a model that knows better asks for them.

    Errors
        ConfigError     clean-ups that differ and fill holes, which nothing plans
    """
    first = next(iter(configs.values()))
    if all(config == first for config in configs.values()):
        return first
    if any(config.fill_holes for config in configs.values()):
        require_equal("the clean-up of their results", configs)
    every = range(1, len(structures) + 1)
    cleaned = [
        set(config.classes or every) if config.largest_component else set() for config in configs.values()
    ]
    shared = tuple(sorted(set.intersection(*cleaned)))
    if left := sorted(set.union(*cleaned).difference(shared)):
        logger.info(
            "only some of the models keep the largest component of %s; together they keep all components",
            ", ".join(structures[index - 1] for index in left),
        )
    pairs = {index for config in configs.values() for index in config.pairs}
    return PostprocessConfig(
        largest_component=bool(shared), classes=shared, pairs=tuple(sorted(pairs.intersection(shared)))
    )


def joined_training(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of the scans that any of the models has seen."""
    scans = [training["scans"] for training in trainings if training.get("scans")]
    if len(scans) < len(trainings):
        return {}
    return {
        "scans": {
            name: {
                "low": np.min([each[name]["low"] for each in scans], axis=0).tolist(),
                "high": np.max([each[name]["high"] for each in scans], axis=0).tolist(),
            }
            for name in scans[0]
        }
    }
