"""SASSNet against the official code's arrays, and its critic: what it is asked, and who learns from the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import make_batch, make_method
from labelwise.components.dual_task import Answers
from labelwise.errors import ConfigError
from labelwise.methods.sassnet.critic import Critic, two_kinds
from labelwise.methods.sassnet.method import choose_pairs
from labelwise.train.schedule import OptimizerConfig, ScheduleConfig, build_optimizers, set_rate
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(3000, 6000)


class Replay(nn.Module):
    """Stands in for the network: returns the given answers."""

    def __init__(self, logits, before_tanh):
        super().__init__()
        self.answers = Answers(logits, before_tanh.tanh())

    def forward(self, images):
        return self.answers


class ReplayCritic(nn.Module):
    """Stands in for the critic: has an opinion on each case."""

    def __init__(self, opinions):
        super().__init__()
        self.opinions = opinions

    def forward(self, maps, images, cases, structures):
        assert maps.shape == (len(cases), 1, *images.shape[2:])
        return self.opinions[list(cases)]

    frozen = forward


def with_targets(method, batch):
    labels = batch.labels.numpy()
    arguments = labels, batch.annotated.numpy(), np.ones((len(labels), labels.ndim - 1))
    extra = {
        name: torch.from_numpy(function(*arguments)) for name, function in method.extra_targets().items()
    }
    return batch._replace(extra=extra)


def terms_of(method, *kinds, **settings):
    return method(with_targets(method, make_batch(*kinds, **settings)), HALFWAY)


def gradients(term, module):
    return torch.autograd.grad(term, list(module.parameters()), retain_graph=True, allow_unused=True)


def test_it_agrees_with_the_official_code(golden):
    arrays = golden("sassnet")
    method = make_method("sassnet")
    logits, before_tanh, opinions = (
        torch.from_numpy(arrays[name]).requires_grad_()
        for name in ("seg_logits", "sdm_pre_tanh", "disc_logits")
    )
    method.network, method.critic = Replay(logits, before_tanh), ReplayCritic(opinions)
    labels = torch.from_numpy(arrays["batch_label"]).long()
    labels[2:] = IGNORE
    annotated = torch.tensor([[True, True]] * 2 + [[False, False]] * 2)
    batch = with_targets(method, Batch(torch.zeros(4, 1, *labels.shape[1:]), labels, annotated))
    terms = method(batch, HALFWAY)

    assert (method.config.adversarial_weight * method.config.ramp(HALFWAY)) == pytest.approx(
        float(arrays["lambda_t"]), rel=1e-5
    )
    adversarial = terms["adversarial"] / (method.config.adversarial_weight * method.config.ramp(HALFWAY))
    total = terms["supervised"] + terms["adversarial"]
    values = {"sup": terms["supervised"], "adv": adversarial, "disc": terms["critic"], "total": total}
    for key, value in values.items():
        torch.testing.assert_close(value, torch.tensor(arrays[f"loss_{key}"]), **CLOSE)
    found = torch.autograd.grad(terms["supervised"], (before_tanh, logits))
    for gradient, key in zip(found, ("sdm_pre_tanh", "seg_logits"), strict=True):
        torch.testing.assert_close(gradient, torch.from_numpy(arrays[f"grad_sup_wrt_{key}"]), **CLOSE)
    (gradient,) = torch.autograd.grad(adversarial, opinions)
    expected = torch.from_numpy(arrays["grad_adv_wrt_disc_logits_unlab"])
    torch.testing.assert_close(gradient[2:], expected, **CLOSE)
    assert gradient[:2].abs().max() == 0, "labelled cases need not deceive"


# the critic


def test_the_critic_has_the_published_number_of_weights():
    with torch.device("meta"):
        critic = Critic(3, 1, 1)
    assert sum(parameter.numel() for parameter in critic.parameters()) == 11_020_290


def test_with_one_structure_the_critic_is_the_published_one():
    torch.manual_seed(0)
    critic = Critic(3, 1, 1, width=4).eval()
    maps, images = torch.randn(2, 3, 1, 32, 16, 16)
    x = F.conv3d(maps, critic.of_map.weight, critic.of_map.bias, 2, 1)
    x = x + F.conv3d(images, critic.of_image.weight, critic.of_image.bias, 2, 1)
    for convolution in critic.further:
        x = F.conv3d(F.leaky_relu(x, 0.2), convolution.weight, convolution.bias, 2, 1)
    x = F.avg_pool3d(F.leaky_relu(x, 0.2), (2, 1, 1)).flatten(1)
    torch.testing.assert_close(critic(maps, images, [0, 1, 2], [0, 0, 0]), critic.verdict(x))


def test_the_critic_can_be_told_the_structure_and_starts_without_a_preference():
    critic = Critic(2, 1, 3, width=4).eval()
    maps = torch.randn(1, 1, 16, 16).repeat(2, 1, 1, 1)
    images = torch.randn(1, 1, 16, 16)
    first, second = critic(maps, images, [0, 0], [0, 2])
    assert torch.equal(first, second)
    nn.init.normal_(critic.of_organ)
    first, second = critic(maps, images, [0, 0], [0, 2])
    assert not torch.equal(first, second)


def test_dropout_is_active_only_while_the_critic_learns():
    torch.manual_seed(0)
    critic = Critic(2, 1, 1, width=4)
    question = torch.randn(1, 1, 16, 16), torch.randn(1, 1, 16, 16), [0], [0]
    assert not torch.equal(critic(*question), critic(*question))
    assert torch.equal(critic.frozen(*question), critic.frozen(*question))
    assert torch.equal(critic.frozen(*question), critic.eval()(*question))


def test_a_patch_that_is_too_small_for_the_critic_is_refused():
    with pytest.raises(ConfigError, match="critic cannot look"):
        Critic(3, 1, 1, width=4)(torch.zeros(1, 1, 32, 32, 8), torch.zeros(1, 1, 32, 32, 8), [0], [0])


def test_the_cross_entropy_of_two_kinds_is_the_ordinary_one():
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, torch.tensor([1, 1, 0, 0, 0]))
    torch.testing.assert_close(two_kinds(logits, real=2), expected)


# who learns from what


def test_one_backward_pass_serves_both_and_neither_disturbs_the_other():
    method = make_method("sassnet")
    terms = terms_of(method, "full", "none")
    assert all(gradient is None for gradient in gradients(terms["adversarial"], method.critic))
    assert all(gradient is None for gradient in gradients(terms["critic"], method.network))
    assert any(gradient is not None for gradient in gradients(terms["adversarial"], method.network))
    assert all(gradient is not None for gradient in gradients(terms["critic"], method.critic))
    reached = gradients(terms["adversarial"], method.network.segmentation.head)
    assert all(gradient is None for gradient in reached), "the critic sees the distances only"


def test_only_open_pairs_deceive():
    method = make_method("sassnet")
    batch = with_targets(method, make_batch("full", "partial", "none"))
    distances = torch.zeros(3, 3, 32, 32, 32, requires_grad=True)
    method.network = Replay(torch.zeros_like(distances), distances)
    (gradient,) = torch.autograd.grad(method(batch, HALFWAY)["adversarial"], distances)
    reached = (gradient.abs().amax((2, 3, 4)) > 0).tolist()
    assert reached == [[False, False, False], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("kinds", [("full", "full"), ("none", "none")])
def test_the_critic_makes_no_step_on_one_kind_of_pairs(kinds):
    method = make_method("sassnet")
    optimizers = build_optimizers(method.parameter_groups(), OptimizerConfig())
    for batch_kinds in (("full", "none"), kinds):
        before = [parameter.detach().clone() for parameter in method.critic.parameters()]
        torch.stack(list(terms_of(method, *batch_kinds).values())).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        pairs = zip(before, method.critic.parameters(), strict=True)
        moved = any(not torch.equal(old, new) for old, new in pairs)
        assert moved == (batch_kinds != kinds)


def test_without_open_pairs_nobody_need_be_deceived():
    terms = terms_of(make_method("sassnet"), "full", "full")
    assert terms["adversarial"].item() == terms["critic"].item() == 0
    assert terms["adversarial"].requires_grad
    assert terms["critic"].requires_grad


def test_without_known_pairs_the_network_still_deceives():
    terms = terms_of(make_method("sassnet"), "none", "none")
    assert terms["adversarial"].item() > 0
    assert terms["critic"].item() == 0


def test_the_critic_learns_to_tell_both_kinds_apart_if_the_network_stands_still():
    torch.manual_seed(0)
    method = make_method("sassnet", dims=2, settings={"critic_width": 8, "critic_rate": 1e-3})
    batch = make_batch("full", "none", dims=2)
    distances = batch.images.repeat(1, 3, 1, 1) * 0
    distances[0] = 0.5
    method.network = Replay(torch.zeros_like(distances), distances)
    method.critic.requires_grad_()
    optimizer = torch.optim.Adam(method.critic.parameters(), 1e-3)
    batch = with_targets(method, batch)
    for _ in range(60):
        loss = method(batch, HALFWAY)["critic"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_the_critic_has_its_own_adam_of_constant_rate():
    method = make_method("sassnet")
    shared, own = build_optimizers(method.parameter_groups(), OptimizerConfig())
    set_rate([shared, own], ScheduleConfig(name="step"), step=5500, total=6000)
    assert isinstance(own, torch.optim.Adam)
    settings = own.param_groups[0]
    assert settings["lr"] == pytest.approx(1e-4)
    assert tuple(settings["betas"]) == (0.9, 0.99)
    assert settings["weight_decay"] == 0
    assert shared.param_groups[0]["lr"] == pytest.approx(1e-4), "two drops of the shared rate 0.01"
    assert {id(p) for p in settings["params"]} == {id(p) for p in method.critic.parameters()}


# pairs


def test_a_case_shows_at_most_so_many_structures_as_many_of_one_kind_as_of_the_other():
    torch.manual_seed(0)
    rows = [
        [False, *[True] * 5, *[False] * 5],
        [False, True, *[False] * 9],
        [True] * 11,
        [False] * 11,
    ]
    known, open_ = choose_pairs(rows, limit=4)
    counts = [[sum(pair.case == case for pair in kind) for kind in (known, open_)] for case in range(4)]
    assert counts == [[2, 2], [1, 3], [4, 0], [0, 4]]
    assert all(rows[case][structure + 1] for case, structure in known)
    assert not any(rows[case][structure + 1] for case, structure in open_)
    assert not choose_pairs(rows, 4, sparse=[True] * 4)[0], (
        "of a case annotated in parts, every structure is open"
    )
    drawn = {pair.structure for _ in range(30) for pair in choose_pairs(rows, 4)[0] if pair.case == 2}
    assert drawn == set(range(10))


def test_the_weight_rises_in_stairs_to_its_end():
    method = make_method("sassnet")
    weights = [
        (method.config.adversarial_weight * method.config.ramp(Progress(step, 6000)))
        for step in (0, 149, 150, 5999)
    ]
    assert weights[0] == weights[1] < weights[2]
    assert weights[3] == pytest.approx(0.00997, abs=1e-5)
