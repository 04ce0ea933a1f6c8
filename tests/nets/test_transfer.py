"""Weights of one network in another: by the names of parts, by classes, and from public encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_method
from labelwise.nets.factory import NetFactory
from labelwise.nets.transfer import from_nnssl, is_nnssl, take_over

OLD = ("background", "liver", "left kidney")
NEW = ("background", "kidney_left", "pancreas", "liver")


def net(classes: int, *, seed: int, name: str = "unet", **settings: object) -> nn.Module:
    torch.manual_seed(seed)
    factory = NetFactory(name, {"width": 2, **settings}, dims=2, in_channels=1, num_classes=classes)
    return factory.network()


def test_encoder_and_decoder_are_taken_and_heads_go_by_class_under_any_spelling():
    old, new = net(3, seed=0), net(4, seed=1)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    transfer = take_over(new, old.state_dict(), classes=NEW, known_classes=OLD)
    theirs, ours = old.state_dict(), new.state_dict()
    for name in ours:
        if not name.startswith("head."):
            assert torch.equal(ours[name], theirs[name]), name
    for name in ("head.convolution.weight", "head.convolution.bias"):
        assert torch.equal(ours[name][0], theirs[name][0])  # background
        assert torch.equal(ours[name][1], theirs[name][2])  # left kidney
        assert torch.equal(ours[name][2], before[name][2])  # pancreas is new
        assert torch.equal(ours[name][3], theirs[name][1])  # liver
    assert (transfer.classes, transfer.new_classes) == (["kidney_left", "liver"], ["pancreas"])
    assert set(transfer.taken) == set(ours)
    assert (transfer.left, transfer.unused) == ({}, [])


def test_as_many_classes_in_another_order_are_not_mixed_up():
    old, new = net(3, seed=0), net(3, seed=1)
    take_over(new, old.state_dict(), classes=(OLD[0], OLD[2], OLD[1]), known_classes=OLD)
    assert torch.equal(new.head.convolution.weight, old.head.convolution.weight[[0, 2, 1]])


def test_heads_of_coarser_scales_go_by_class_too():
    settings = {"name": "residual_unet", "blocks": (1, 1, 1), "deep_supervision": True}
    old, new = net(3, seed=0, **settings), net(4, seed=1, **settings)
    take_over(new, old.state_dict(), classes=NEW, known_classes=OLD)
    for mine, theirs in zip(new.coarse_heads, old.coarse_heads, strict=True):
        assert torch.equal(mine.convolution.weight[[0, 1, 3]], theirs.convolution.weight[[0, 2, 1]])


def test_every_tensor_that_is_not_taken_is_reported():
    old, new = net(3, seed=0), net(3, seed=1)
    weights = {
        name: torch.zeros(5) if name == "encoder.stages.0.0.bias" else tensor
        for name, tensor in old.state_dict().items()
        if not name.startswith("decoder.")
    } | {"critic.weight": torch.zeros(2)}
    transfer = take_over(new, weights, classes=OLD, known_classes=())
    own = set(new.state_dict())
    assert set(transfer.taken) | set(transfer.left) == own
    assert not set(transfer.taken) & set(transfer.left)
    assert "shape (2,), in the file (5,)" in transfer.left["encoder.stages.0.0.bias"]
    assert transfer.left["head.convolution.weight"] == "its classes are not known"
    assert all(
        "no tensor of this name" in why for name, why in transfer.left.items() if name.startswith("decoder.")
    )
    assert "critic.weight" in transfer.unused
    for name in (*transfer.left, *transfer.unused):
        assert name in transfer.to_text()


def test_students_and_teachers_of_a_method_get_the_same_weights():
    method = make_method("mean_teacher", seed=1)
    source = make_method("supervised", seed=0).network
    classes = ("background", "liver", "spleen", "pancreas")
    transfer = take_over(method, source.state_dict(), classes=classes, known_classes=classes)
    for network in (method.student, method.teacher.network):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, source.state_dict()[name]), name
    assert transfer.unused == []


def test_independent_maps_have_no_row_for_the_background():
    method = make_method("multi_talent", seed=1)
    twin = make_method("multi_talent", seed=0)
    classes = ("background", "liver", "spleen", "pancreas")
    take_over(method, twin.state_dict(), classes=classes, known_classes=(*classes[:1], *classes[:0:-1]))
    mine, theirs = method.state_dict(), twin.state_dict()
    name = next(name for name in mine if name.endswith("head.convolution.weight"))
    assert torch.equal(mine[name], theirs[name].flip(0))


# public encoders


def test_an_encoder_of_nnssl_gives_the_features_of_its_own_code(golden):
    arrays = golden("nnssl_encoder")
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith("weights/")
    }
    assert is_nnssl(weights)
    encoder = from_nnssl(weights)
    assert (encoder.dims, encoder.settings["width"], encoder.settings["max_width"]) == (3, 2, 4)
    assert encoder.settings["blocks"] == (1, 2, 2)
    network = NetFactory("residual_unet", encoder.settings, dims=3, in_channels=1, num_classes=2).network()
    transfer = take_over(network, encoder.weights, classes=("background", "liver"))
    own = {name for name in network.state_dict() if name.startswith("encoder.")}
    assert set(transfer.taken) == own
    assert transfer.unused == []
    # Everything of the file is accounted for: taken, a bias without effect, or the same tensor under its second name.
    assert len(weights) == 2 * (len(own) + len(encoder.without_effect))
    with torch.no_grad():
        features = network.encoder(torch.from_numpy(arrays["image"]))
    for number, feature in enumerate(features):
        np.testing.assert_allclose(feature.numpy(), arrays[f"features/{number}"], atol=2e-5)


@pytest.mark.parametrize("names", [(), ("encoder.layer.weight",), ("stages.0.blocks.0.conv1.conv.weight",)])
def test_other_weights_are_no_encoder_of_nnssl(names):
    assert not is_nnssl({name: torch.zeros(1) for name in names})
