"""The steps that travel with an exported model give the labels of the package, by other code."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import nn

from labelwise.infer import steps
from labelwise.infer.bundle import inferer_of
from labelwise.infer.postprocess import PostprocessConfig, postprocess
from labelwise.infer.sliding_window import InferenceConfig, predict_labels
from labelwise.preprocess.pipeline import Plan, apply, undo
from labelwise.types import Volume

CT = {"scheme": "ct", "clip": (-200.0, 250.0), "mean": 12.0, "std": 90.0}


def told_of(plan: Plan, intensity: str, **windows):
    size = {"size": [8, 8, 8], "stride": None, "overlap": 0.5, "blending": "gaussian", "mirror_axes": []}
    classes = ["background", "liver", "spleen"]
    return {"plan": plan.to_json(), "intensities": [intensity], "windows": size | windows,
            "postprocess": {}, "output": {"classes": classes}}  # fmt: skip


def body(shape=(26, 22, 17), channels=1):
    """A CT with a body that does not fill it."""
    random = np.random.default_rng(3)
    scan = np.full((channels, *shape), -1000, np.float32)
    scan[:, 4:-7, 6:-3, 1:] = random.normal(0, 150, (channels, shape[0] - 11, shape[1] - 9, shape[2] - 1))
    return Volume(scan.round(), np.diag((2.0, 1.5, 4.0, 1.0)))


PLANS = {
    "coarser": (Plan((3.0, 4.0, 4.5), None, "none", {"ct": CT}), "ct"),
    "finer": (Plan((1.1, 1.5, 2.3), None, "body", {"ct": CT}), "ct"),
    "as it is": (Plan(None, None, "nonzero", {"mr": {"scheme": "mr"}}), "mr"),
    "of one shape": (Plan((2.5, 2.5, 2.5), (20, None, 9), "nonzero", {"normalised": {}}), "normalised"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_scan_is_prepared_and_its_labels_are_restored_alike(name):
    plan, intensity = PLANS[name]
    scan = body(channels=2)
    scan.data[1] = scan.data[1] > 0  # a mask, which has no intensities
    ours = apply(scan, plan, intensity=intensity)
    theirs, back = steps.prepare(scan.data, scan.affine, told_of(plan, intensity))
    np.testing.assert_allclose(theirs, ours.image.data, atol=2e-4)
    labels = np.random.default_rng(0).integers(0, 3, ours.image.shape).astype(np.uint8)
    restored = steps.restore(labels, back, told_of(plan, intensity))
    assert (restored != undo(labels, ours.undo).data).mean() < 1e-4


class Rule(nn.Module):
    """Scores of windows that depend on place and value, of slices or volumes."""

    def forward(self, windows):
        x = windows[:, :1]
        return torch.cat([x.sin().abs(), x.cos().abs(), (x * 0.7).sigmoid()], 1)


WINDOWS = {
    "volumes": ((8, 8, 8), None, "gaussian"),
    "uneven strides": ((8, 6, 5), (3, 6, 2), "constant"),
    "slices": ((8, 12, 1), None, "gaussian"),
    "larger than the scan": ((40, 8, 24), None, "gaussian"),
}


@pytest.fixture(params=WINDOWS)
def windowed(request):
    """An image, the way in which windows lie, and its labels."""
    size, stride, blending = WINDOWS[request.param]
    config = InferenceConfig(stride=stride, overlap=0.4, blending=blending, precision="float32")
    image = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (1, 21, 14, 11)).astype(np.float32))
    labels = predict_labels(Rule(), image, size, num_classes=3, config=config, device="cpu")
    return image, size, config, labels


def test_windows_lie_and_weigh_alike(windowed):
    image, size, config, labels = windowed
    told = told_of(Plan(), "ct", size=list(size), overlap=config.overlap, blending=config.blending)
    told["windows"]["stride"] = config.stride
    found = steps.label(image.numpy(), told, lambda part: Rule()(torch.from_numpy(part)).numpy())
    assert (found != labels).mean() < 1e-4


def test_windows_of_monai_lie_and_weigh_alike(windowed):
    image, size, config, labels = windowed
    kinds = {"SlidingWindowInferer": SlidingWindowInferer, "SliceInferer": SliceInferer}
    settings = inferer_of(config, size)
    infer = kinds[settings.pop("_target_").rpartition(".")[2]](**settings)
    found = infer(image[None], Rule())[0].argmax(0).numpy()
    assert (found != labels).mean() < 1e-4


@pytest.mark.parametrize("rules", [{"pairs": (2,)}, {"classes": (1,)}, {"fill_holes": True}])
def test_labels_are_cleaned_up_alike(rules):
    labels = (np.random.default_rng(5).random((14, 13, 12)) > 0.6).astype(np.uint8)
    labels[labels > 0] += np.random.default_rng(6).random((14, 13, 12))[labels > 0] > 0.8
    config = PostprocessConfig(largest_component=True, **rules)
    found = labels.copy()
    steps._clean_up(found, vars(config))
    np.testing.assert_array_equal(found, postprocess(labels, config))
    assert (found != labels).any()


def test_the_steps_need_numpy_and_scipy_alone():
    nodes = list(ast.walk(ast.parse(Path(steps.__file__).read_text())))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    assert names == {"__future__", "collections.abc", "itertools", "typing", "numpy", "numpy.typing", "scipy"}
