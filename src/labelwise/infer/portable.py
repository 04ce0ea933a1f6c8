"""A model for programs without this package: the network as a graph, and a description of all that surrounds it.

The graph takes windows of a prepared scan to scores. What turns a scan into windows, and scores into a label map,
stands in the description in words, and in `labelwise.infer.steps` as a program. Both travel with the graph, whatever
kind of file holds it: `onnx_file`, `program_file` or `bundle`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labelwise.errors import CheckpointError, ConfigError
from labelwise.infer import steps
from labelwise.infer.model import Model
from labelwise.infer.sliding_window import mean_over_views, mirror_images
from labelwise.types import Array

__all__ = [
    "DESCRIPTION",
    "INPUT",
    "OUTPUT",
    "STEPS",
    "Difference",
    "answer_of_program",
    "compare",
    "describe",
    "make_program",
    "not_portable",
    "steps_source",
    "window_size",
]

INPUT, OUTPUT = "windows", "scores"
DESCRIPTION, STEPS = "labelwise", "labelwise_steps"  # the names under which they travel
MOST_OTHER = 1e-4  # share of voxels that may get another class: ties, which rounding decides


class Difference(NamedTuple):
    """How far the written file is from the model, on windows of noise."""

    scores: float  # largest difference of a score
    classes: float  # share of the voxels with another strongest class


class _Answer(nn.Module):
    """Scores of windows, averaged over the mirror images that the model was made for."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        # Files hold weights in the usual order of memory, without channels last.
        self.predictor: nn.Module = deepcopy(model.predictor)
        for parameter in self.predictor.parameters():
            parameter.data = parameter.data.contiguous()
        self.flips = mirror_images(model.config, model.info.patch_size)

    def forward(self, windows: Tensor) -> Tensor:
        return mean_over_views(self.predictor, windows, self.flips)


def make_program(model: Model) -> torch.export.ExportedProgram:
    """The network of a model as a graph of torch, for any number of windows.

    Errors
        ConfigError         an ensemble: its members differ in more than weights
        CheckpointError     a part of the network cannot be drawn as a graph
    """
    if model.members:
        raise ConfigError(
            "an ensemble cannot become one graph", found=model, do="export its models one by one"
        )
    windows = _noise(model, number=2).to(model.device)
    shapes = ({0: torch.export.Dim("number")},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own parts
            program = torch.export.export(_Answer(model).eval(), (windows,), dynamic_shapes=shapes)
    except RuntimeError as problem:
        raise not_portable(model, problem) from problem
    program.example_inputs = None  # noise that no file needs
    return program


def not_portable(model: Model, problem: Exception) -> CheckpointError:
    """The error that a part of the network has no counterpart in a graph."""
    return CheckpointError(
        f"this model cannot be written as a graph: {str(problem).splitlines()[0]}",
        found=f"{model.info.method} on {model.info.net['name']}",
        do="use the model folder, which holds all of it",
    )


def compare(model: Model, answer: Callable[[Array], Array]) -> Difference:
    """How far scores of another program are from those of the model, for windows of noise.

    Errors
        CheckpointError     more than MOST_OTHER of the voxels get another class
    """
    windows = _noise(model, number=3)  # another number of windows than the graph was made from
    with torch.inference_mode():
        ours = _Answer(model)(windows.to(model.device)).float().cpu().numpy()
    theirs = answer(windows.numpy())
    found = Difference(float(np.abs(ours - theirs).max()), float((ours.argmax(1) != theirs.argmax(1)).mean()))
    if not found.classes <= MOST_OTHER:
        raise CheckpointError(
            "the written file answers otherwise than the model, and is not kept",
            found=f"{100 * found.classes:.2f} % of the voxels of a window of noise get another class",
            expected=f"at most {100 * MOST_OTHER:g} %",
            do="use the model folder",
        )
    return found


def answer_of_program(file: Path) -> Callable[[Array], Array]:
    """What an exported program in a file answers: windows (B, M, *S) float32 -> scores (B, C, *S)."""
    loaded = torch.export.load(file).module()

    def answer(windows: Array) -> Array:
        with torch.inference_mode():
            scores: Array = loaded(torch.from_numpy(windows)).numpy()
        return scores

    return answer


def describe(model: Model) -> dict[str, Any]:
    """What a program must know to use the graph: its input and output, and the steps before and after it."""
    info, config = model.info, model.config
    return {
        "format": 1,
        "id": model.id,
        "input": {
            "name": INPUT,
            "shape": ["any number", model.channels, *window_size(model)],
            "axes": "windows, images of one scan, then x, y and z of RAS+ (a model of slices: x and y)",
            "type": "float32",
        },
        "output": {
            "name": OUTPUT,
            "shape": ["any number", len(model.label_space.names), *window_size(model)],
            "classes": list(model.label_space.names),
            "meaning": "score of each class in [0, 1], averaged over the mirror images of windows.mirror_axes; the "
            "largest weighted sum over all windows decides, of equal ones the first class",
            "temperature": model.temperature,
        },
        "before": [
            "bring the axes of the scan to RAS+: x grows to the right, y to the front, z to the head of the patient",
            f"crop by the rule '{model.plan.crop}': none, the box of voxels that are neither 0 nor the minimum "
            "(nonzero), or the box of the body in a CT (body)",
            "normalise the intensities by their rule: ct clips, then subtracts mean and divides by std; "
            "mr does so with percentiles 0.5 and 99.5, mean and deviation of the nonzero voxels of each channel",
            "resample by cubic convolution (a = -1/2, wider where voxels become larger, edges of the grid stay, no "
            "value leaves its range) to spacing_mm, or to shape where it names a number of voxels",
            "pad with zeros on both sides to at least one window",
            "cut windows at steps of stride, or of (1 - overlap) of a window; the last one is flush with the end",
        ],
        "after": [
            "weight each score by its place in the window (gaussian: deviation of an eighth of the window, at least "
            "0.001; constant: 1), and sum the windows",
            "take the strongest class of each voxel, and cut off the padding",
            "resample the label map to the grid of the crop (label of the largest trilinear weight where voxels become "
            "smaller, else the voxel in which the centre lies), and put it into a background of the size of the scan",
            "clean it up by the rules of postprocess",
        ],
        "plan": model.plan.to_json(),
        "windows": {"size": list(config.window_for(info.patch_size)), "stride": config.stride,
                    "overlap": config.overlap, "blending": config.blending, "mirror_axes": list(config.mirror_axes)},
        "postprocess": info.inference.get("postprocess", {}),
        "intensities": list(info.intensities),
        "method": info.method,
        "training": info.training,
    }  # fmt: skip


def steps_source() -> str:
    """The source of `labelwise.infer.steps`."""
    return Path(steps.__file__).read_text(encoding="utf-8")


def window_size(model: Model) -> tuple[int, ...]:
    """The window along the axes that the network has: two if it is a slice."""
    x, y, z = model.config.window_for(model.info.patch_size)
    return (x, y) if z == 1 else (x, y, z)


def _noise(model: Model, number: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(number, model.channels, *window_size(model), generator=random)
