"""A model as ONNX answers like the model, and says all that a program must do around it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from labelwise import run
from labelwise.errors import CheckpointError, ConfigError, ResourceError
from labelwise.infer import onnx_file
from labelwise.infer.model import load_model
from labelwise.infer.onnx_file import METADATA, description, scores_of_file, write_onnx
from labelwise.types import Volume

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


class FromFile(nn.Module):
    """A predictor that asks ONNX Runtime."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def forward(self, windows):
        return torch.from_numpy(scores_of_file(self.file, windows.numpy()))


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    return file, run.export_model(tiny_run, file)


def test_a_whole_scan_gets_the_same_labels(tiny_run, exported):
    model = load_model(tiny_run, "cpu")
    model = replace(model, config=replace(model.config, precision="float32"))
    voxels = np.random.default_rng(0).normal(0, 200, (30, 26, 20)).astype(np.float32)
    scan = Volume(voxels, np.diag((14.0, 14.0, 14.0, 1.0)))
    ours = model.predict(scan).data
    theirs = replace(model, predictor=FromFile(exported[0])).predict(scan).data
    assert len(np.unique(ours)) > 1
    assert (ours != theirs).mean() < 1e-4


def test_the_file_says_what_surrounds_the_network(tiny_run, exported):
    model = load_model(tiny_run, "cpu")
    graph = onnx.load(str(exported[0]))
    (told,) = (json.loads(entry.value) for entry in graph.metadata_props if entry.key == METADATA)
    assert told == json.loads(json.dumps(description(model)))
    assert told["output"]["classes"] == list(model.label_space.names)
    assert told["plan"]["spacing_mm"] == list(model.plan.spacing_mm)
    assert told["windows"]["size"] == list(model.info.patch_size)
    (entry,) = graph.graph.input
    sizes = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    assert (entry.name, sizes[1:]) == (told["input"]["name"], told["input"]["shape"][1:])


def test_it_is_compared_with_the_model_on_another_number_of_windows(exported):
    assert exported[1].difference.classes <= 1e-4
    assert exported[1].difference.scores < 1e-3
    assert str(exported[0]) in exported[1].to_text()


def test_a_file_that_answers_otherwise_is_not_kept(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_file, "scores_of_file", lambda file, windows: scores_of_file(file, windows)[:, ::-1]
    )
    with pytest.raises(CheckpointError, match="answers otherwise"):
        run.export_model(tiny_run, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_or_has_another_name_is_refused(tiny_run, exported, tmp_path, command):
    with pytest.raises(ConfigError, match="there is such a file"):
        run.export_model(tiny_run, exported[0])
    answer = command("export", tiny_run, "-o", tmp_path / "model.pt")
    assert (answer.code, "NAME.onnx" in answer.err) == (2, True)
    answer = command("export", tiny_run, "-o", tmp_path / "model.onnx", "--id", 3)
    assert (answer.code, "about data sets" in answer.err) == (2, True)


def test_several_models_are_refused(tiny_run, tmp_path):
    model = load_model(tiny_run, "cpu")
    with pytest.raises(ConfigError, match="one by one"):
        write_onnx(replace(model, members=(("a", "b", model.plan),) * 2), tmp_path / "model.onnx")


def test_without_the_extra_it_says_what_to_install(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it could not be imported
    with pytest.raises(ResourceError, match=r"labelwise\[onnx\]"):
        run.export_model(tiny_run, tmp_path / "model.onnx")
