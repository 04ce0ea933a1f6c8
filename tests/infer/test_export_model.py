"""A model for other programs answers like the model, and brings all that a program must do around it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from labelwise import run
from labelwise.errors import CheckpointError, ConfigError, ResourceError
from labelwise.formats.tensors import save_tensors
from labelwise.infer import onnx_file
from labelwise.infer.model import load_model
from labelwise.infer.onnx_file import scores_of_file, write_onnx
from labelwise.infer.portable import (
    DESCRIPTION,
    STEPS,
    compare,
    describe,
    make_program,
    steps_source,
)

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_onnx.py"
# Runs a program as if this package were not installed.
ALONE = "import runpy, sys; sys.modules['labelwise'] = None; sys.argv = sys.argv[1:]\n"


def spread_out(predictor: nn.Module) -> nn.Module:
    """The network after a few steps knows one class; with these weights each class is somewhere the strongest."""
    with torch.no_grad():
        for weight in predictor.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return predictor


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A model folder whose labels are no single class, with overlapping windows and a clean-up."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    model = load_model(tiny_run, "cpu")
    spread_out(model.predictor)
    folder.mkdir()
    told = json.loads((tiny_run / "model" / "model.json").read_text())
    told["inference"] |= {"overlap": 0.4, "precision": "float32", "blending": "gaussian"}
    told["inference"]["postprocess"] = {"largest_component": True, "fill_holes": True, "pairs": [2]}
    (folder / "model.json").write_text(json.dumps(told))
    network = model.predictor.network
    save_tensors(folder / "weights.safetensors", network.state_dict(), {"format": 1})
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {name: run.export_model(trained, folder / name) for name in ("model.onnx", "model.pt2", "bundle")}


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A scan whose axes run otherwise, of other voxels than the plan's."""
    file = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    rough = np.random.default_rng(0).normal(0, 300, (13, 11, 9))
    voxels = np.kron(rough, np.ones((3, 3, 3)))[:37, :31, :25].round().astype(np.int16)
    affine = np.array([[0, 0, 10.0, -80], [-9, 0, 0, 70], [0, 21, 0, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), file)
    return file


@pytest.fixture(scope="module")
def labels(trained, scan, tmp_path_factory):
    """What `predict` writes for it."""
    folder = tmp_path_factory.mktemp("predictions")
    run.predict(trained, scan, folder, device="cpu")
    found = nib.load(folder / "scan.nii.gz")
    assert len(np.unique(found.dataobj)) > 2
    return found


def require_same(file, labels):
    found = nib.load(file)
    np.testing.assert_allclose(found.affine, labels.affine, atol=1e-4)
    ours, theirs = np.asarray(labels.dataobj), np.asarray(found.dataobj)
    assert ours.shape == theirs.shape
    assert (ours != theirs).mean() < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_program_without_this_package_and_without_torch_writes_the_same_labels(
    exported, scan, labels, runtime, tmp_path
):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    alone = f"{ALONE}sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    written = tmp_path / "labels.nii.gz"
    model = tmp_path / "model.onnx"
    model.write_bytes(exported["model.onnx"].file.read_bytes())
    subprocess.run(
        [sys.executable, "-c", alone, EXAMPLE, model, scan, written, runtime], check=True, timeout=300
    )
    require_same(written, labels)


MONAI = """
import os
from pathlib import Path
from monai.bundle import create_workflow, load, verify_net_in_out

root, scans, output = map(Path, sys.argv)
config = str(root / "configs" / "inference.json")
flow = create_workflow(
    config_file=config, workflow_type="infer", bundle_root=str(root), dataset_dir=str(scans), output_dir=str(output)
)
flow.run()
assert not flow.check_properties(), flow.check_properties()
verify_net_in_out("network_def", str(root / "configs" / "metadata.json"), config, device="cpu", bundle_root=str(root))
os.chdir(root)
network = load(name=root.name, bundle_dir=str(root.parent), workflow_type="inference", device="cpu")
assert sum(weight.numel() for weight in network.parameters()) > 0
"""


def test_a_bundle_is_found_sound_and_run_by_monai_without_this_package(exported, scan, labels, tmp_path):
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    bundle = exported["bundle"].file
    assert "Licence of the weights" in (bundle / "LICENSE").read_text()
    subprocess.run(
        [sys.executable, "-c", ALONE + MONAI, bundle, scan.parent, tmp_path], check=True, timeout=600
    )
    require_same(tmp_path / "scan.nii.gz", labels)


def test_what_travels_is_the_same_in_each_of_them(trained, exported):
    model = load_model(trained, "cpu")
    told = json.loads(json.dumps(describe(model)))
    graph = onnx.load(str(exported["model.onnx"].file))
    of_onnx = {entry.key: entry.value for entry in graph.metadata_props}
    of_torch = {DESCRIPTION: "", STEPS: ""}
    torch.export.load(exported["model.pt2"].file, extra_files=of_torch)
    bundle = exported["bundle"].file
    for description, steps in (
        (of_onnx[DESCRIPTION], of_onnx[STEPS]),
        (of_torch[DESCRIPTION], of_torch[STEPS]),
        ((bundle / "configs" / "labelwise.json").read_text(), (bundle / "scripts" / "steps.py").read_text()),
    ):
        assert json.loads(description) == told
        assert steps == steps_source()
    assert told["output"]["classes"] == list(model.label_space.names)
    assert told["plan"]["spacing_mm"] == list(model.plan.spacing_mm)
    (entry,) = graph.graph.input
    sizes = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    assert (entry.name, sizes[1:]) == (told["input"]["name"], told["input"]["shape"][1:])


def test_each_is_compared_with_the_model_on_another_number_of_windows(exported):
    for written in exported.values():
        assert written.difference.classes <= 1e-4
        assert written.difference.scores < 1e-3
        assert str(written.file) in written.to_text()


def test_a_graph_averages_over_the_mirror_images_of_its_model(trained):
    model = load_model(trained, "cpu")
    mirrored = replace(model, config=replace(model.config, mirror_axes=(1, 2)))
    program = make_program(mirrored).module()
    windows = torch.randn(3, 1, *model.info.patch_size)
    with torch.inference_mode():
        views = [model.predictor(windows.flip(axes)).flip(axes) for axes in ((), (3,), (4,), (3, 4))]
        torch.testing.assert_close(program(windows), sum(views) / 4)


def test_what_answers_otherwise_is_not_kept(trained, tmp_path, monkeypatch):
    def turned(file, windows):
        return scores_of_file(file, windows)[:, ::-1]

    monkeypatch.setattr(onnx_file, "scores_of_file", turned)
    with pytest.raises(CheckpointError, match="answers otherwise"):
        run.export_model(trained, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="answers otherwise"):
        compare(load_model(trained, "cpu"), lambda windows: np.zeros((3, 5, *windows.shape[2:]), np.float32))


def test_what_is_there_or_has_another_name_is_refused(trained, exported, tmp_path, command):
    with pytest.raises(ConfigError, match="there is such a file"):
        run.export_model(trained, exported["model.onnx"].file)
    with pytest.raises(ConfigError, match="there is such a folder"):
        run.export_model(trained, exported["bundle"].file)
    (tmp_path / "scans").mkdir()
    with pytest.raises(ConfigError, match="no MONAI bundle"):
        run.export_model(trained, tmp_path / "scans", overwrite=True)
    answer = command("export", trained, "-o", tmp_path / "model.pt")
    assert (answer.code, "NAME.onnx" in answer.err) == (2, True)
    answer = command("export", trained, "-o", tmp_path / "model.onnx", "--id", 3)
    assert (answer.code, "about data sets" in answer.err) == (2, True)


def test_several_models_are_refused(trained, tmp_path):
    model = load_model(trained, "cpu")
    with pytest.raises(ConfigError, match="one by one"):
        write_onnx(replace(model, members=(("a", "b", model.plan),) * 2), tmp_path / "model.onnx")


def test_without_the_extra_it_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it could not be imported
    with pytest.raises(ResourceError, match=r"labelwise\[onnx\]"):
        run.export_model(trained, tmp_path / "model.onnx")
