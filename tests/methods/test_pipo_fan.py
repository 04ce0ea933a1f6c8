"""PIPO-FAN: weights of the scales against the arrays of a public implementation, sizes, terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import make_batch, make_method
from labelwise.losses.partial import annotated_dice, marginal_cross_entropy
from labelwise.methods import find_method
from labelwise.methods.pipo_fan.method import ScaleWeighting
from labelwise.nets.factory import NetFactory
from labelwise.types import IGNORE, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def golden_weighting(arrays):
    """The attention of the public implementation."""
    weighting = ScaleWeighting(dims=3, num_classes=5)
    names = {
        "0.weight": "att_bn_in_gamma",
        "0.bias": "att_bn_in_beta",
        "0.running_mean": "att_bn_in_mean",
        "0.running_var": "att_bn_in_var",
        "2.weight": "att_conv1_w",
        "2.bias": "att_conv1_b",
        "3.weight": "att_bn_mid_gamma",
        "3.bias": "att_bn_mid_beta",
        "3.running_mean": "att_bn_mid_mean",
        "3.running_var": "att_bn_mid_var",
        "5.weight": "att_conv3_w",
        "5.bias": "att_conv3_b",
    }
    state = {f"attention.{mine}": tensor(arrays[theirs]) for mine, theirs in names.items()}
    missing = weighting.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    return weighting


def test_scores_weights_and_fused_logits_agree_with_the_public_implementation(golden):
    arrays = golden("pipofan")
    weighting = golden_weighting(arrays).eval()
    maps = tensor(arrays["fan_scale_logits"])
    scores = weighting.scores(maps.flatten(0, 1)).view(4, 2)
    torch.testing.assert_close(scores.T, tensor(arrays["fan_scores"]), **CLOSE)
    torch.testing.assert_close(scores.softmax(dim=0).T, tensor(arrays["fan_weights"]), **CLOSE)
    torch.testing.assert_close(weighting(list(maps)), tensor(arrays["fan_fused"]), **CLOSE)


def test_the_attention_sees_all_scales_as_one_batch():
    weighting = ScaleWeighting(dims=2, num_classes=3)
    maps = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 2
    weighting(list(maps))
    # One update of the running mean with momentum 0.1, by the mean over all scales and cases.
    expected = 0.1 * maps.mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(weighting.attention[0].running_mean, expected)
    assert weighting.attention[0].num_batches_tracked.item() == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_sum_to_one_in_every_case(dims):
    """Equal maps at all scales come back as they are, whatever the attention says."""
    weighting = ScaleWeighting(dims, num_classes=3)
    one = torch.randn(2, 3, *[4] * dims, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weighting([one, one, one]), one)


def test_each_case_has_its_own_weights(golden):
    arrays = golden("pipofan")
    weighting = golden_weighting(arrays).eval()
    maps = tensor(arrays["fan_scale_logits"]).clone()
    maps[:, 1] *= torch.tensor([1.0, 2, 3, 4])[:, None, None, None, None]
    fused = weighting(list(maps))
    torch.testing.assert_close(fused[0], tensor(arrays["fan_fused"])[0], **CLOSE)
    weights = weighting.scores(maps.flatten(0, 1)).view(4, 2).softmax(dim=0)
    assert (weights[:, 0] - weights[:, 1]).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(8, 16, 24), (40, 8, 16), (24, 32), (8, 16)])
def test_every_size_that_is_divisible_by_eight_is_taken(shape):
    method = make_method("pipo_fan", dims=len(shape)).eval()
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    maps = method.network.maps(images)
    assert [logits.shape for logits in maps] == [(2, 4, *shape)] * 4
    assert all(logits.dtype == torch.float32 for logits in maps)
    probabilities = method.predictor()(images)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2, *shape))
    torch.testing.assert_close(probabilities, method.network(images).softmax(dim=1))


def test_predictions_are_enlarged_with_aligned_corners():
    network = make_method("pipo_fan", dims=2).eval().network
    generator = torch.Generator().manual_seed(0)
    for output, level in zip(network.outputs, (3, 2, 1, 0), strict=True):
        blocks, head, *enlarge = output
        assert len(enlarge) == level
        channels = head[0].num_features if level == 0 else next(blocks.parameters()).numel()
        features = torch.randn(1, channels, 4, 4, generator=generator)
        small, large = head(blocks(features)), output(features)
        assert large.shape[2:] == (4 * 2**level, 4 * 2**level)
        torch.testing.assert_close(
            large[..., :: large.shape[2] - 1, :: large.shape[3] - 1], small[..., ::3, ::3]
        )


def test_deep_supervision_is_the_mean_loss_of_the_single_scales():
    method, batch = (
        make_method("pipo_fan", settings={"dice_weight": 0.3}),
        make_batch("full", "partial", "none"),
    )
    maps = method.network.maps(batch.images)
    arguments = (batch.labels, batch.annotated)
    losses = [
        marginal_cross_entropy(logits, *arguments) + 0.3 * annotated_dice(logits, *arguments)
        for logits in maps
    ]
    torch.testing.assert_close(method.loss_of_scales(maps, batch), sum(losses) / 4)
    terms = method(batch, HALFWAY)
    torch.testing.assert_close(terms["deep_supervision"], 0.5 * sum(losses) / 4)


def test_the_supervised_term_is_the_target_adaptive_loss_of_the_fused_logits():
    method, batch = make_method("pipo_fan"), make_batch("full", "partial", "none")
    expected = marginal_cross_entropy(method.network(batch.images), batch.labels, batch.annotated)
    torch.testing.assert_close(method(batch, HALFWAY)["supervised"], expected)


def test_without_deep_supervision_its_term_is_zero_and_stays_in_the_graph():
    method = make_method("pipo_fan", dims=2, settings={"deep_supervision": 0.0})
    terms = method(make_batch("full", "partial", dims=2), HALFWAY)
    assert tuple(terms) == ("supervised", "deep_supervision")
    assert terms["deep_supervision"].item() == 0
    assert terms["deep_supervision"].requires_grad


@pytest.mark.parametrize("settings", [{}, {"dice_weight": 1.0}, {"deep_supervision": 0.0}])
def test_every_weight_of_the_network_is_trained(settings):
    method = make_method("pipo_fan", dims=2, settings=settings)
    torch.stack(list(method(make_batch("full", "partial", dims=2), HALFWAY).values())).sum().backward()
    silent = [name for name, p in method.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A constant added to all scores changes no softmax.
    assert silent in ([], ["network.weighting.attention.5.bias"])


def test_ignored_voxels_do_not_change_the_loss_whatever_stands_there():
    method, batch = make_method("pipo_fan", dims=2).eval(), make_batch("full", "partial", dims=2)
    labels = batch.labels.clone()
    labels[:, :16] = IGNORE
    maps = method.network.maps(batch.images)
    changed = [torch.cat([-logits[:, :, :16], logits[:, :, 16:]], dim=2) for logits in maps]
    batch = batch._replace(labels=labels)
    torch.testing.assert_close(method.loss_of_scales(changed, batch), method.loss_of_scales(maps, batch))


def test_the_five_scales_of_the_2d_paper_can_be_had():
    kind = find_method("pipo_fan")
    nets = NetFactory("pipofan", {"width": 2, "depth": 5}, dims=2, in_channels=3, num_classes=4)
    method = kind(nets, kind.Config())
    assert method.network(torch.randn(1, 3, 32, 48)).shape == (1, 4, 32, 48)
    assert len(method.network.outputs) == 5
