"""MC-Net and MC-Net+ against the official code's arrays: the logits of every decoder are given, the rest is ours."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import nn

from conftest import SMALL_NETS, make_batch, make_method
from labelwise.errors import ConfigError
from labelwise.losses.agreement import mutual_consistency, mutual_region, sharpen
from labelwise.methods import find_method
from labelwise.methods.base import NetFactory
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
OFFICIAL = Progress(2999, 15000)  # iteration 3000, counted from 1
PUBLISHED = (("mc_net", "v1"), ("mc_net_plus", "v2"))


class Replay(nn.Module):
    """Stands in for a network: returns the given logits."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images):
        return self.outputs


def official_batch(arrays, version):
    """2 labelled, 2 unlabelled cases."""
    labels = torch.from_numpy(arrays[f"{version}_label"]).long()
    labels[2:] = IGNORE
    annotated = torch.zeros(4, 2, dtype=torch.bool)
    annotated[:2] = True
    return Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated)


def replayed(name, arrays, version, **settings):
    method = make_method(name, settings={"use_ce": False, **settings})
    logits = torch.from_numpy(arrays[f"{version}_logits"]).requires_grad_()
    method.network = Replay(list(logits))
    return method, logits


def gradient(term, logits):
    return torch.autograd.grad(term, logits, retain_graph=True)[0]


@pytest.mark.parametrize(("name", "version"), PUBLISHED)
def test_terms_and_gradients_agree_with_the_official_code(golden, name, version):
    arrays = golden("mcnet")
    method, logits = replayed(name, arrays, version)
    terms = method(official_batch(arrays, version), OFFICIAL)
    weight = method.config.weight(OFFICIAL)
    assert weight == pytest.approx(float(arrays[f"{version}_cons_weight"]), rel=1e-6)
    assert terms["supervised"].item() == pytest.approx(0.5 * float(arrays[f"{version}_sum_dice"]), rel=1e-5)
    assert terms["consistency"].item() / weight == pytest.approx(float(arrays[f"{version}_cons"]), rel=1e-5)
    total = terms["supervised"] + terms["consistency"]
    assert total.item() == pytest.approx(float(arrays[f"{version}_total"]), rel=1e-5)
    for term, key in ((terms["consistency"] / weight, "cons"), (total, "total")):
        expected = torch.from_numpy(arrays[f"{version}_grad_{key}_fullgrad"])
        torch.testing.assert_close(gradient(term, logits), expected, **CLOSE)


@pytest.mark.parametrize(("name", "version"), PUBLISHED)
def test_detached_targets_change_the_gradient_and_not_the_value(golden, name, version):
    arrays = golden("mcnet")
    method, logits = replayed(name, arrays, version, detach_targets=True)
    batch = official_batch(arrays, version)
    distance = method.consistency(method.network(batch.images), batch)
    assert distance.item() == pytest.approx(float(arrays[f"{version}_cons"]), rel=1e-5)
    expected = torch.from_numpy(arrays[f"{version}_grad_cons_stopgrad"])
    torch.testing.assert_close(gradient(distance, logits), expected, **CLOSE)


def test_sharpening_is_the_published_formula_for_two_classes(golden):
    arrays = golden("mcnet")
    p = torch.from_numpy(arrays["sharpen_p"]).double()
    logits = torch.stack([(1 - p).log(), p.log()], dim=1)
    expected = torch.from_numpy(arrays["sharpen_out"]).double()
    torch.testing.assert_close(sharpen(logits, float(arrays["sharpen_T"]))[:, 1], expected, **CLOSE)


def test_four_classes_agree_with_the_calculation(golden):
    arrays = golden("mcnet")
    logits = torch.from_numpy(arrays["mcls_logits"])
    sharpened = torch.stack([sharpen(each, 0.1) for each in logits])
    torch.testing.assert_close(sharpened, torch.from_numpy(arrays["mcls_sharp"]), **CLOSE)
    torch.testing.assert_close(sharpened.sum(dim=2), torch.ones(3, 2, 5, 4, 3))
    distance = mutual_consistency(list(logits), channel_reduction="mean")
    assert distance.item() == pytest.approx(float(arrays["mcls_cons"]), rel=1e-5)
    assert mutual_consistency(list(logits)).item() == pytest.approx(2 * distance.item(), rel=1e-5)


def test_the_pairs_can_be_summed_in_one_pass():
    outputs = torch.randn(4, 2, 3, 5, 4)
    p, s = outputs.softmax(dim=2), (outputs / 0.1).softmax(dim=2)
    loop = sum((p[a] - s[b]).square().mean() for a, b in permutations(range(4), 2))
    squares = 4 * (p.square().sum() + s.square().sum()) - 2 * (p.sum(dim=0) * s.sum(dim=0)).sum()
    once = (squares - (p - s).square().sum()) / p[0].numel()
    distance = mutual_consistency(list(outputs), channel_reduction="mean")
    torch.testing.assert_close(distance, loop)
    torch.testing.assert_close(distance, once)
    mean = mutual_consistency(list(outputs), channel_reduction="mean", pair_reduction="mean")
    torch.testing.assert_close(mean, distance / 12)


def test_equal_and_certain_decoders_agree():
    certain = torch.eye(3)[torch.randint(3, (2, 4, 4))].movedim(-1, 1) * 100
    assert mutual_consistency([certain, certain.clone()]).item() == pytest.approx(0, abs=1e-12)


def test_in_partly_annotated_cases_targets_keep_to_what_labels_leave_open():
    batch = make_batch("partial", "full", "none")  # liver is annotated in the first case
    where, possible = mutual_region(batch.labels, batch.annotated, "all")
    assert (where[0] == (batch.labels[0] == 0)).all()
    assert where[1].all()
    assert where[2].all()
    target = sharpen(torch.zeros(3, 4, 32, 32, 32), 0.1, possible)
    outside = target[0][:, batch.labels[0] == 0]
    torch.testing.assert_close(outside[:, 0], torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]))
    assert (target[1] == 0.25).all(), "complete cases keep the raw target, as published"
    open_where, _ = mutual_region(batch.labels, batch.annotated, "open")
    assert (open_where[0] == where[0]).all()
    assert not open_where[1].any()
    assert open_where[2].all()


def test_open_leaves_complete_batches_without_consistency():
    for settings, silent in (({}, False), ({"consistency_on": "open"}, True)):
        term = make_method("mc_net", settings=settings)(make_batch("full", "full"), OFFICIAL)["consistency"]
        assert (term.item() == 0) == silent
        assert term.requires_grad


def test_without_labels_both_terms_are_part_of_the_graph():
    method = make_method("mc_net_plus")
    terms = method(make_batch("none", "none"), OFFICIAL)
    gradients = torch.autograd.grad(terms["supervised"], list(method.parameters()), allow_unused=True)
    assert all(g is None or g.abs().max() == 0 for g in gradients)
    assert terms["consistency"].item() > 0


def test_cross_entropy_joins_with_more_than_one_structure():
    batch = make_batch("full", "partial")
    without = make_method("mc_net", settings={"use_ce": False})(batch, OFFICIAL)["supervised"]
    default = make_method("mc_net")(batch, OFFICIAL)["supervised"]
    assert default.item() > without.item()
    nets = NetFactory("vnet", SMALL_NETS["vnet"], dims=3, in_channels=1, num_classes=2)
    kind = find_method("mc_net")
    assert not kind(nets, kind.Config()).use_ce


def test_the_weight_rises_in_stairs_to_two_fifths_of_the_training():
    method = make_method("mc_net")
    weights = [method.config.weight(Progress(step, 15000)) for step in (0, 148, 149, 5999, 14999)]
    assert weights[0] == weights[1] < weights[2]
    assert weights[3:] == [1.0, 1.0]


@pytest.mark.parametrize(("name", "count"), [("mc_net", 12_347_716), ("mc_net_plus", 15_246_566)])
def test_the_networks_have_the_published_number_of_parameters(name, count):
    nets = NetFactory("vnet", {}, dims=3, in_channels=1, num_classes=2)
    kind = find_method(name)
    method = kind(nets, kind.Config())
    assert sum(p.numel() for p in method.parameters()) == count
    assert sum(p.numel() for p in method.predictor().parameters()) == 9_448_866


def test_the_model_is_an_ordinary_network():
    nets = NetFactory("vnet", SMALL_NETS["vnet"], dims=3, in_channels=1, num_classes=4)
    kept = make_method("mc_net").predictor().network
    nets.network().load_state_dict(kept.state_dict(), strict=True)


def test_the_mean_of_the_decoders_can_be_kept():
    method = make_method("mc_net_plus", settings={"inference_head": "mean"}).eval()
    images = make_batch("full").images
    with torch.no_grad():
        expected = sum(logits.softmax(dim=1) for logits in method.network(images)) / 3
        torch.testing.assert_close(method.predictor()(images), expected)


def test_one_decoder_has_nobody_to_agree_with():
    with pytest.raises(ConfigError, match="upsamplings"):
        make_method("mc_net", settings={"upsamplings": ("transposed",)})


def test_dynunet_says_that_it_has_no_choice_of_upsampling():
    nets = NetFactory("dynunet", SMALL_NETS["dynunet"], dims=3, in_channels=1, num_classes=2)
    kind = find_method("mc_net")
    with pytest.raises(ConfigError, match="transposed"):
        kind(nets, kind.Config())


@pytest.mark.parametrize("net", ["unet", "film_unet", "pipofan", "plseg_unet", "ltuda_unet", "dodnet_unet"])
def test_other_networks_work_too(net):
    nets = NetFactory(net, SMALL_NETS[net], dims=2, in_channels=1, num_classes=4)
    kind = find_method("mc_net_plus")
    terms = kind(nets, kind.Config())(make_batch("full", "partial", dims=2), OFFICIAL)
    torch.stack(list(terms.values())).sum().backward()
