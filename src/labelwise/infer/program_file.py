"""A model as one file of `torch.export`: the graph, its description and its steps (`labelwise.infer.portable`)."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from labelwise.atomic import atomic_path
from labelwise.infer.model import Model
from labelwise.infer.portable import (
    DESCRIPTION,
    STEPS,
    Difference,
    answer_of_program,
    compare,
    describe,
    make_program,
    steps_source,
)

__all__ = ["write_program"]


def write_program(model: Model, file: Path) -> Difference:
    """Write a model as an exported program, load it again, and compare.

    Errors
        ConfigError         an ensemble
        CheckpointError     a part of the network cannot be drawn as a graph; the written file answers otherwise
        ResourceError       the file cannot be written
    """
    program = make_program(model)
    told = {DESCRIPTION: json.dumps(describe(model)), STEPS: steps_source()}
    with atomic_path(file) as temporary:
        torch.export.save(program, temporary, extra_files=told)
        return compare(model, answer_of_program(temporary))
