"""A model as one ONNX file, for programs without this package: the network, and in words all that surrounds it.

The graph takes windows of a prepared scan to scores. What turns a scan into windows, and scores into a label map, is no
part of the graph: it stands in the metadata of the file, as JSON under the key ``labelwise``.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from labelwise.atomic import atomic_path
from labelwise.errors import CheckpointError, ConfigError
from labelwise.infer.model import Model
from labelwise.plugins import import_extra
from labelwise.types import Array

__all__ = ["INPUT", "METADATA", "OUTPUT", "Difference", "description", "scores_of_file", "write_onnx"]

INPUT, OUTPUT, METADATA = "windows", "scores", "labelwise"
MOST_OTHER = 1e-4  # share of voxels that may get another class: ties, which rounding decides


class Difference(NamedTuple):
    """How far the written file is from the model, on windows of noise."""

    scores: float  # largest difference of a score
    classes: float  # share of the voxels with another strongest class


def write_onnx(model: Model, file: Path) -> Difference:
    """Write the network of a model as ONNX, run it by ONNX Runtime, and compare.

    Errors
        ConfigError         an ensemble: its members differ in more than weights
        CheckpointError     a part of the network has no counterpart in ONNX; the written file answers otherwise
        ResourceError       the extra `onnx` is not installed, or the file cannot be written
    """
    if model.members:
        raise ConfigError(
            "an ensemble cannot be one ONNX file", found=model, do="export its models one by one"
        )
    onnx = _extra("onnx")
    windows = _noise(model, number=2)
    graph = _translated(model, windows).model_proto
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(description(model))})
    onnx.checker.check_model(graph)
    with atomic_path(file) as temporary:
        onnx.save(graph, str(temporary))
        return _compared(model, temporary)


def description(model: Model) -> dict[str, Any]:
    """What a program must know to use the graph: its input and output, and the steps before and after it."""
    info, config = model.info, model.config
    return {
        "format": 1,
        "id": model.id,
        "input": {
            "name": INPUT,
            "shape": ["any number", model.channels, *_window(model)],
            "axes": "windows, images of one scan, then x, y and z of RAS+ (a model of slices: x and y)",
            "type": "float32",
        },
        "output": {
            "name": OUTPUT,
            "shape": ["any number", len(model.label_space.names), *_window(model)],
            "classes": list(model.label_space.names),
            "meaning": "score of each class in [0, 1]; the largest sum over all windows decides, else the first",
            "temperature": model.temperature,
        },
        "before": [
            "bring the axes of the scan to RAS+: x grows to the right, y to the front, z to the head of the patient",
            f"crop by the rule '{model.plan.crop}'",
            "normalise the intensities by the rule of the modality",
            "resample by cubic convolution to spacing_mm, or to shape where it names a number of voxels",
            "pad with zeros on both sides to at least one window",
            "cut windows at steps of (1 - overlap) of a window, the last one flush with the end",
        ],
        "after": [
            "weight each score by its place in the window (blending), and sum the windows",
            "take the strongest class of each voxel, and cut off the padding",
            "resample the label map to the grid of the crop, and put it into a background of the size of the scan",
            "clean it up by the rules of postprocess",
        ],
        "plan": model.plan.to_json(),
        "windows": {"size": list(config.window_for(info.patch_size)), "stride": config.stride,
                    "overlap": config.overlap, "blending": config.blending, "mirror_axes": list(config.mirror_axes)},
        "postprocess": info.inference.get("postprocess", {}),
        "modalities": list(info.modalities),
        "method": info.method,
        "training": info.training,
    }  # fmt: skip


def scores_of_file(file: Path, windows: Array) -> Array:
    """The scores (B, C, *S) that ONNX Runtime gives for windows (B, M, *S) float32.

    Errors
        ResourceError   the extra `onnx` is not installed
    """
    session = _extra("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    scores: Array = session.run([OUTPUT], {INPUT: windows})[0]
    return scores


def _translated(model: Model, windows: torch.Tensor) -> Any:
    """The graph, for any number of windows."""
    _extra("onnxscript")
    predictor = model.predictor
    shapes = ({0: torch.export.Dim("number")},)
    try:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which other packages are not there
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it prints its progress
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                predictor, (windows.to(model.device),), dynamo=True, dynamic_shapes=shapes,
                input_names=[INPUT], output_names=[OUTPUT], verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, RuntimeError) as problem:
        raise CheckpointError(
            f"this model cannot be written as ONNX: {str(problem).splitlines()[0]}",
            found=f"{model.info.method} on {model.info.net['name']}",
            do="use the model folder, which holds all of it",
        ) from problem


def _compared(model: Model, file: Path) -> Difference:
    windows = _noise(model, number=3)  # another number of windows than the graph was made from
    with torch.inference_mode():
        ours = model.predictor(windows.to(model.device)).float().cpu().numpy()
    theirs = scores_of_file(file, windows.numpy())
    found = Difference(float(np.abs(ours - theirs).max()), float((ours.argmax(1) != theirs.argmax(1)).mean()))
    if not found.classes <= MOST_OTHER:
        raise CheckpointError(
            "the ONNX file answers otherwise than the model, and is not kept",
            found=f"{100 * found.classes:.2f} % of the voxels of a window of noise get another class",
            expected=f"at most {100 * MOST_OTHER:g} %",
            do="use the model folder",
        )
    return found


def _noise(model: Model, number: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(number, model.channels, *_window(model), generator=random)


def _window(model: Model) -> tuple[int, ...]:
    """The window along the axes that the network has: two if it is a slice."""
    x, y, z = model.config.window_for(model.info.patch_size)
    return (x, y) if z == 1 else (x, y, z)


def _extra(name: str) -> Any:
    return import_extra(name, "onnx", f"the package '{name}' is not installed")
