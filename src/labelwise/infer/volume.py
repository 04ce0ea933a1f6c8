"""One scan, from the grid of its file to a label map on the same grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from labelwise.infer.sliding_window import InferenceConfig, WindowProgress, predict_labels
from labelwise.infer.tidy import tidy
from labelwise.infer.windows import Size
from labelwise.preprocess.pipeline import Plan, Prepared, apply, undo
from labelwise.types import Volume


def predict_volume(
    predictor: nn.Module,
    image: Volume,
    *,
    plan: Plan,
    modality: str,
    patch_size: Size,
    num_classes: int,
    config: InferenceConfig,
    device: torch.device | str,
    progress: WindowProgress | None = None,
) -> Volume:
    """Label a scan: prepare it, slide the window, bring the labels back, tidy them if asked to.

    Shapes
        image       (M, X, Y, Z)  in the units of its file (HU, or arbitrary for MR)
        returns     (X, Y, Z)     uint8 or uint16 class indices, on the grid of `image`

    Errors
        ConfigError, DataError                          the scan does not fit the plan
        ConfigError, CheckpointError, ResourceError     see `predict_labels`
    """
    prepared = apply(image, plan, modality=modality)
    return predict_prepared(
        predictor,
        prepared,
        patch_size=patch_size,
        num_classes=num_classes,
        config=config,
        device=device,
        progress=progress,
    )


def predict_prepared(
    predictor: nn.Module,
    prepared: Prepared,
    *,
    patch_size: Size,
    num_classes: int,
    config: InferenceConfig,
    device: torch.device | str,
    progress: WindowProgress | None = None,
) -> Volume:
    """The second half of `predict_volume`, for a scan that was prepared elsewhere."""
    image = torch.from_numpy(np.require(prepared.image.data, np.float32, ["C", "W"]))
    labels = predict_labels(
        predictor, image, patch_size, num_classes=num_classes, config=config, device=device, progress=progress
    )
    restored = undo(labels, prepared.undo)
    return Volume(tidy(restored.data, config.tidy), restored.affine)
