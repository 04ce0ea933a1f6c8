"""DKUXNet: the head against reference values, what each setting changes, and what the queries are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from conftest import make_batch, make_method
from labelwise import load_config
from labelwise.errors import ConfigError
from labelwise.methods.dkuxnet.method import DKUXNet
from labelwise.methods.dkuxnet.network import KMaxUXNet, membership, mixture, query_groups
from labelwise.methods.dkuxnet.view_contrast import channel_contrast
from labelwise.nets.factory import NetFactory
from labelwise.types import IGNORE, Batch, Progress

BEFORE, HALFWAY = Progress(5, 100), Progress(50, 100)
FEW = {"queries": 8, "layers_per_level": 1, "voxels_per_class": 8}
QUIET = {"strong_gamma": 0.0, "strong_contrast": 0.0, "strong_noise_std": 0.0}
TERMS = ["supervised", "query", "segmentation_consistency", "query_consistency"]


def method_of(**settings: object) -> DKUXNet:
    return make_method("dkuxnet", settings={**FEW, **settings})


def terms_of(method: DKUXNet, batch: Batch, progress: Progress = HALFWAY) -> dict[str, float]:
    torch.manual_seed(0)
    return {name: term.item() for name, term in method(batch, progress).items()}


def awake(module: nn.Module) -> nn.Module:
    """With every scale away from 0, so that nothing is silent."""
    torch.manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module


def test_the_mixture_of_queries_agrees_with_the_reference(golden):
    arrays = {key: torch.as_tensor(values) for key, values in golden("dkuxnet").items()}
    assignment = arrays["head_mask_logits"].softmax(dim=1)
    torch.testing.assert_close(assignment, arrays["head_assign"])
    segmentation = mixture(arrays["head_cluster_class"].transpose(1, 2), assignment)
    torch.testing.assert_close(segmentation, arrays["head_seg_logits"])
    sizes = arrays["head_group_sizes"].tolist()
    members = membership([group for group, size in enumerate(sizes) for _ in range(size)])
    torch.testing.assert_close(mixture(members, assignment), arrays["head_group_prob"])


@pytest.mark.parametrize("queries", [6, 7, 8, 32])
def test_half_of_the_queries_are_the_backgrounds_and_the_others_share(queries: int):
    counts = [query_groups(queries, 4).count(group) for group in range(4)]
    assert counts[0] == (queries + 1) // 2
    assert min(counts) >= 1
    assert max(counts[1:]) - min(counts[1:]) <= 1


def test_the_query_masses_are_a_distribution_on_every_map():
    seen = method_of(levels=4).network.look(make_batch("full").images)
    assert [groups.shape[2] for groups in seen.groups] == [32, 2, 4, 8, 16]
    for groups in seen.groups:
        torch.testing.assert_close(groups.sum(dim=1), torch.ones_like(groups[:, 0]))


def test_queries_of_one_group_are_interchangeable():
    network = awake(method_of().network)
    images = make_batch("full").images
    before = network.look(images)
    order = torch.tensor([3, 1, 0, 2, *range(4, 8)])  # the first four are the background's
    network.kmax.centres.data = network.kmax.centres.data[:, order]
    after = network.look(images)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(after.logits[0], before.logits[0], **close)
    torch.testing.assert_close(after.groups[0], before.groups[0], **close)


@pytest.mark.parametrize(
    ("weights", "silent"),
    [
        ((0.0, 0.0), {"segmentation_consistency", "query_consistency"}),
        ((0.0, 0.1), {"segmentation_consistency"}),
        ((0.1, 0.0), {"query_consistency"}),
        ((0.1, 0.1), set()),
    ],
    ids=["L_seg", "L_seg + L_qdc", "L_seg + L_segc", "all"],
)
def test_the_rows_of_the_published_ablation_are_settings(weights, silent):
    names = ("segmentation_consistency_weight", "query_consistency_weight")
    terms = terms_of(method_of(**dict(zip(names, weights, strict=True))), make_batch("full", "none"))
    assert list(terms) == TERMS
    assert {name for name, term in terms.items() if term == 0} == silent


def test_the_query_loss_can_be_switched_off():
    assert terms_of(method_of(query_weight=0.0), make_batch("full"))["query"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"branches": "independent"},
        {"norm": "batch"},
        {"update": "mean"},
        {"cluster_head": "joint"},
        {"head": "cnn"},
        {"head": "both"},
        {"contrast": "mse"},
        {"contrast": "voxel"},
        {"contrast": "voxel", "negatives": "cross_group"},
        {"query_space": "queries", "consistency_on": "open"},
        {"stop_gradient": "weak"},
        {"groups": (0, 1, 1, 2)},
        {"absent_dice": "skip"},
    ],
    ids=str,
)
def test_every_setting_trains(settings):
    method = method_of(**settings)
    torch.manual_seed(0)
    terms = method(make_batch("none", "partial", "full"), HALFWAY)
    assert list(terms) == TERMS
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() and term > 0 for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    with torch.inference_mode():
        scores = method.predictor().eval()(make_batch("full").images)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones_like(scores[:, 0]))


@pytest.mark.parametrize("head", ["query", "cnn", "both"])
def test_every_weight_is_trained_once_the_silent_scales_have_moved(head):
    method = method_of(head=head)
    awake(method)
    torch.manual_seed(0)
    torch.stack(list(method(make_batch("full", "none"), HALFWAY).values())).sum().backward()
    silent = {
        name for name, weight in method.named_parameters() if weight.grad is None or not weight.grad.any()
    }
    # A constant for all queries changes no assignment: the offset of the masks is published, and idle.
    assert all(name.endswith("mask_head.norm.bias") for name in silent), silent


def test_the_masks_of_a_layer_learn_from_the_query_loss_only():
    method = method_of()
    torch.manual_seed(0)
    terms = method(make_batch("full"), HALFWAY)
    weight = method.network.kmax.levels[0][0].mask_head.key[0].weight
    for name in ("supervised", "query"):
        (gradient,) = torch.autograd.grad(terms[name], weight, retain_graph=True, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == (name == "query")


class Watch(nn.Module):
    """Counts the images that a network sees."""

    def __init__(self, network: KMaxUXNet):
        super().__init__()
        self.network = network
        self.images: list[int] = []

    def look(self, images: Tensor):
        self.images.append(len(images))
        return self.network.look(images)


@pytest.mark.parametrize(
    ("progress", "settings", "seen"),
    [
        (BEFORE, {}, [2]),
        (HALFWAY, {}, [6]),
        (HALFWAY, {"segmentation_consistency_weight": 0.0, "query_consistency_weight": 0.0}, [2]),
        (HALFWAY, {"norm": "batch"}, [4, 2]),
    ],
)
def test_unlabelled_cases_are_seen_only_if_something_learns_from_them(progress, settings, seen):
    method = method_of(**settings)
    method.network = Watch(method.network)
    method(make_batch("none", "full", "none"), progress)
    assert method.network.images == seen


def test_with_batch_norm_unlabelled_cases_do_not_change_the_supervised_part():
    batch = make_batch("full", "none")
    alone = Batch(*(part[:1] for part in batch[:3]))
    together = terms_of(method_of(norm="batch", **QUIET), batch)
    apart = terms_of(method_of(norm="batch", **QUIET), alone)
    for name in ("supervised", "query"):
        assert together[name] == pytest.approx(apart[name], rel=1e-4)


def test_equal_views_agree_and_the_weak_view_is_the_image():
    method = method_of(contrast="mse", **QUIET)
    terms = terms_of(method, make_batch("none", "full"))
    assert terms["segmentation_consistency"] == pytest.approx(0, abs=1e-6)
    assert terms["query_consistency"] == pytest.approx(0, abs=1e-6)


def test_on_open_voxels_a_complete_case_has_nothing_to_agree_on():
    terms = terms_of(method_of(consistency_on="open"), make_batch("full"))
    assert terms["segmentation_consistency"] == terms["query_consistency"] == 0


def test_a_stopped_gradient_leaves_the_weak_view_alone():
    strong = torch.rand(2, 3, 4, 4, 4).softmax(dim=1).requires_grad_()
    weak = torch.rand(2, 3, 4, 4, 4).softmax(dim=1).requires_grad_()
    loss = method_of(stop_gradient="weak").agreement(strong, weak, None, None)
    gradients = torch.autograd.grad(loss, (strong, weak), allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_sampled_voxels_are_those_of_the_labels_and_of_certain_answers():
    method = method_of(contrast="voxel", negatives="cross_group", voxels_per_class=4)
    batch = make_batch("full", "partial", "none", size=8)
    certain = torch.full((3, 4, 8, 8, 8), 0.01)
    certain[:, 2] = 0.97
    unsure = torch.full((3, 4, 8, 8, 8), 0.25)
    for probabilities, expected in ((certain, {2}), (unsure, set())):
        sample = method.sample_voxels(probabilities, probabilities, batch, None)
        case, voxel = sample.voxels // 512, sample.voxels % 512
        for row, kind in enumerate(("full", "partial", "none")):
            mine = sample.where & (case == row)
            drawn = set(sample.classes[mine].tolist())
            known = {"full": {0, 1, 2, 3}, "partial": {1}, "none": set()}[kind]
            assert drawn == known | (expected if kind != "full" else set())
            labels = batch.labels[row].flatten()[voxel[mine]]
            told = (labels != IGNORE) & (labels > 0)
            assert torch.equal(labels[told], sample.classes[mine][told])


def test_merged_groups_read_a_label_of_a_group_that_is_annotated_in_part():
    method = method_of(groups=(0, 1, 1, 2))
    batch = make_batch("partial")  # liver; the spleen is in its group
    mass = torch.full((1, 3, 32, 32, 32), 1 / 3)
    loss = method.query_loss([mass, mass], batch.labels, batch.annotated)
    liver = (batch.labels == 1).float().mean()
    # Label 0 leaves all groups open and costs nothing; the liver is surely of its group.
    torch.testing.assert_close(loss, 2 * liver * torch.tensor(3.0).log())


def test_the_weight_is_silent_then_rises_to_one():
    method = method_of()
    assert [method.ramp(Progress(step, 100)) for step in (0, 9)] == [0, 0]
    assert 0 < method.ramp(Progress(10, 100)) < method.ramp(Progress(30, 100)) < 1
    assert method.ramp(Progress(50, 100)) == method.ramp(Progress(99, 100)) == 1


def test_norms_biases_and_queries_do_not_decay():
    decaying, free = method_of().parameter_groups()
    assert free["weight_decay"] == 0
    assert "weight_decay" not in decaying
    assert all(weight.ndim > 1 for weight in decaying["params"])
    assert [tuple(weight.shape) for weight in free["params"] if weight.ndim > 1] == [(16, 8)]


def test_the_width_of_the_queries_follows_that_of_the_network():
    config = load_config(None, {"net.settings.width": 48}, method={"name": "dkuxnet"})
    assert config.net.name == "uxnet"
    with torch.device("meta"):
        published = make_network(48)
    assert published.kmax.centres.shape == (256, 32)
    assert method_of().network.kmax.centres.shape == (16, 8)
    assert method_of(query_width=32).network.kmax.centres.shape == (32, 8)


def make_network(width: int) -> KMaxUXNet:
    nets = NetFactory("uxnet", {"width": width}, dims=3, in_channels=1, num_classes=2)
    return KMaxUXNet(nets, queries=32, width=None, groups=2)


def test_slices_are_refused_by_name():
    with pytest.raises(ConfigError, match="dkuxnet works in 3D only"):
        load_config(None, {"sampling.patch_size": [32, 32, 1]}, method={"name": "dkuxnet"})


def test_another_network_is_refused_with_the_one_that_fits():
    with pytest.raises(ConfigError, match=r"dkuxnet cannot use the network 'vnet'\n.*uxnet"):
        load_config(None, {"net.name": "vnet"}, method={"name": "dkuxnet"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 4}, "at least 6"),
        ({"groups": (0, 1, 2)}, "a group for each class"),
        ({"groups": (0, 1, 3, 3)}, "without a gap"),
        ({"groups": (0, 0, 1, 2)}, "0 for the background only"),
        ({"query_width": 24}, "query_width"),
        ({"query_space": "queries", "branches": "independent"}, "query_space = groups"),
    ],
)
def test_settings_that_make_no_method_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        method_of(**settings)


def test_the_order_of_the_cases_does_not_matter():
    batch = make_batch("full", "partial")
    back = Batch(*(part.flip(0) for part in batch[:3]))
    forth = terms_of(method_of(**QUIET), batch)
    assert terms_of(method_of(**QUIET), back) == pytest.approx(forth, rel=1e-4)


def test_by_default_the_consistency_has_a_share_of_the_gradient_however_sure_the_network_is():
    """A term with less than a hundredth of the cross-entropy's gradient could not be seen in any training."""
    config = DKUXNet.Config()
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(1000) < 100).long().view(1, 10, 10, 10)
    for sharpness in (1.0, 4.0):
        sure = sharpness * one_hot(labels, 2).movedim(-1, 1).double()
        weak = sure + torch.randn(sure.shape, generator=generator, dtype=torch.float64)
        strong = weak + 0.3 * torch.randn(sure.shape, generator=generator, dtype=torch.float64)
        logits = torch.cat([strong, weak]).requires_grad_()
        contrast = channel_contrast(*logits.softmax(dim=1).chunk(2), temperature=config.temperature)
        supervised = cross_entropy(logits, labels.repeat(2, 1, 1, 1))
        terms = (config.segmentation_consistency_weight * contrast, supervised)
        ours, theirs = (torch.autograd.grad(term, logits, retain_graph=True)[0].norm() for term in terms)
        assert 0.03 < ours / theirs < 0.3
