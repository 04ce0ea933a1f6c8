"""A model as one ONNX file: the graph, its description and its steps in the metadata (`labelwise.infer.portable`)."""

from __future__ import annotations

import io
import json
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from labelwise.atomic import atomic_path
from labelwise.infer.model import Model
from labelwise.infer.portable import (
    DESCRIPTION,
    INPUT,
    OUTPUT,
    STEPS,
    Difference,
    compare,
    describe,
    make_program,
    not_portable,
    steps_source,
)
from labelwise.plugins import import_extra
from labelwise.types import Array

__all__ = ["scores_of_file", "write_onnx"]


def write_onnx(model: Model, file: Path) -> Difference:
    """Write a model as ONNX, run it by ONNX Runtime, and compare.

    Errors
        ConfigError         an ensemble
        CheckpointError     a part of the network has no counterpart in ONNX; the written file answers otherwise
        ResourceError       the extra `onnx` is not installed, or the file cannot be written
    """
    onnx = _extra("onnx")
    graph = _translated(model).model_proto
    onnx.helper.set_model_props(graph, {DESCRIPTION: json.dumps(describe(model)), STEPS: steps_source()})
    onnx.checker.check_model(graph)
    with atomic_path(file) as temporary:
        onnx.save(graph, str(temporary))
        return compare(model, lambda windows: scores_of_file(temporary, windows))


def scores_of_file(file: Path, windows: Array) -> Array:
    """The scores (B, C, *S) that ONNX Runtime gives for windows (B, M, *S) float32.

    Errors
        ResourceError   the extra `onnx` is not installed
    """
    session = _extra("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    scores: Array = session.run([OUTPUT], {INPUT: windows})[0]
    return scores


def _translated(model: Model) -> Any:
    _extra("onnxscript")
    program = make_program(model)
    try:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which other packages are not there
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it prints its progress
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as problem:
        raise not_portable(model, problem) from problem


def _extra(name: str) -> Any:
    return import_extra(name, "onnx", f"the package '{name}' is not installed")
