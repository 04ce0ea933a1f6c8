"""UCMT against the arrays of the official formulas, and what it does with partly annotated cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import make_batch, make_method
from labelwise.losses.partial import dice_with_background
from labelwise.methods.ucmt.method import follow_two, uncertainty
from labelwise.methods.ucmt.u_mix import rearrange
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-7}
END = Progress(99, 100)


class Replay(nn.Module):
    """Stands in for a network: returns the given logits, one after the other, and keeps what it saw."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.outputs.pop(0)


def replayed(first, second, teacher, **settings):
    method = make_method("ucmt", dims=2, settings=settings)
    method.first, method.second, method.teacher = Replay(*first), Replay(*second), Replay(*teacher)
    return method


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in golden("ucmt").items()}


def batch_of(arrays, complete):
    """The two cases with three classes, both completely annotated or both not at all."""
    labels = arrays["label"][:, 0].long() if complete else torch.full((2, 16, 16), IGNORE)
    return Batch(arrays["image"], labels, torch.full((2, 3), complete))


def test_the_dice_of_labels_agrees_with_the_official_code(arrays):
    batch = batch_of(arrays, complete=True)
    logits = [arrays[f"logit_s{n}"].requires_grad_() for n in (1, 2)]
    loss = dice_with_background(logits[0], batch.labels, batch.annotated, absent="include")
    torch.testing.assert_close(loss, arrays["loss_dice_s1"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits[0], retain_graph=True)
    torch.testing.assert_close(gradient, arrays["grad_dice_s1"], **CLOSE)
    with_cross_entropy = (loss + F.cross_entropy(logits[0], batch.labels)) / 2
    torch.testing.assert_close(with_cross_entropy, arrays["loss_dice_ce_half_s1"], **CLOSE)
    terms = replayed(logits[:1], logits[1:], [arrays["logit_t"]], u_mix=False)(batch, END)
    torch.testing.assert_close(terms["supervised"] * 2, arrays["loss_sup_sum"], **CLOSE)
    assert terms["cross_pseudo"].item() == terms["teacher_pseudo"].item() == 0


def test_the_dice_of_pseudo_labels_agrees_with_the_official_code(arrays):
    logits = [arrays[f"logit_s{n}"].requires_grad_() for n in (1, 2)]
    method = replayed(logits[:1], logits[1:], [arrays["logit_t"]], u_mix=False)
    terms = method(batch_of(arrays, complete=False), END)
    torch.testing.assert_close(terms["cross_pseudo"], 0.1 * arrays["loss_cps"], **CLOSE)
    torch.testing.assert_close(terms["teacher_pseudo"], 0.1 * arrays["loss_cmt"], **CLOSE)
    gradients = torch.autograd.grad(terms["cross_pseudo"] + terms["teacher_pseudo"], logits)
    for number, gradient in zip((1, 2), gradients, strict=True):
        torch.testing.assert_close(gradient, arrays[f"grad_u_s{number}"], **CLOSE)


def test_the_uncertainty_agrees_with_the_official_code(arrays):
    for number in (1, 2):
        mine = uncertainty(arrays[f"logit_s{number}"], arrays["logit_t"])
        torch.testing.assert_close(mine, arrays[f"unc_{number}"][:, 0], rtol=1e-5, atol=1e-6)


def test_the_mixed_images_agree_with_the_official_code(arrays):
    logits = [(arrays[f"logit_s{n}"], torch.randn(2, 3, 16, 16)) for n in (1, 2)]
    method = replayed(*logits, [arrays["logit_t"]], view="none", cuts=4)
    method(batch_of(arrays, complete=True), END)
    for student in (method.first, method.second):
        assert student.seen[1].equal(arrays["image_mix"])


def test_labels_and_pseudo_labels_follow_the_mixed_image(arrays):
    again = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    source = arrays["patch_src"].long()
    logits = [(arrays[f"logit_s{n}"], z) for n, z in zip((1, 2), again, strict=True)]
    settings = {"view": "none", "cuts": 4, "consistency_weight": 1.0}
    complete, unlabelled = batch_of(arrays, complete=True), batch_of(arrays, complete=False)

    supervised = replayed(*logits, [arrays["logit_t"]], **settings)(complete, END)["supervised"]
    labels = rearrange(complete.labels, source, (4, 4))
    expected = [dice_with_background(z, labels, complete.annotated, absent="include") for z in again]
    torch.testing.assert_close(supervised, (arrays["loss_sup_sum"] + sum(expected)) / 2)

    taught = replayed(*logits, [arrays["logit_t"]], **settings)(unlabelled, END)["teacher_pseudo"]
    guess = rearrange(arrays["logit_t"].argmax(dim=1), source, (4, 4))
    expected = [dice_with_background(z, guess, complete.annotated, absent="include") for z in again]
    torch.testing.assert_close(taught, arrays["loss_cmt"] + sum(expected) / 2)


def test_with_two_steps_the_second_has_the_mixed_scan_and_what_the_students_say_of_it_by_then(arrays):
    again = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    logits = [(arrays[f"logit_s{n}"], z) for n, z in zip((1, 2), again, strict=True)]
    settings = {"view": "none", "cuts": 4, "consistency_weight": 1.0}
    for complete in (True, False):
        batch = batch_of(arrays, complete)
        together = replayed(*logits, [arrays["logit_t"]], **settings)(batch, END)
        apart = replayed(*logits, [arrays["logit_t"]], two_steps=True, **settings)
        assert apart.steps_per_batch == 2
        first, second = apart(batch, END), apart(batch, END._replace(part=1))
        alone = replayed(*logits, [arrays["logit_t"]], u_mix=False, **settings)(batch, END)
        assert list(first) == list(second) == list(together)
        for name, term in together.items():
            torch.testing.assert_close(first[name], alone[name])
            torch.testing.assert_close(first[name] + second[name], term)
        assert apart.first.seen[1].equal(arrays["image_mix"])


def test_with_two_steps_the_teacher_moves_twice_and_its_half_life_stays_what_it_is():
    once, twice = (
        make_method("ucmt", dims=2, settings={"two_steps": two}).teacher.decay for two in (False, True)
    )
    late = Progress(5999, 6000)
    assert twice.keep(late) ** 2 == pytest.approx(once.keep(late))
    assert make_method("ucmt", dims=2, settings={"two_steps": True, "u_mix": False}).steps_per_batch == 1


def test_the_teacher_agrees_with_the_official_code(arrays):
    for step, expected in zip(arrays["ema_step"].tolist(), arrays["ema_out"], strict=True):
        teacher = arrays["ema_t"].clone()
        keep = min(1 - 1 / (step + 1), 0.99)
        follow_two([teacher], [arrays["ema_s1"]], [arrays["ema_s2"]], keep=keep, second_share=0.01)
        torch.testing.assert_close(teacher, expected, **CLOSE)


def test_the_weight_agrees_with_the_official_code(arrays):
    method = make_method("ucmt", settings={"ramp_fraction": 0.005})
    weights = [method.config.weight(Progress(step, 10_000)) for step in arrays["ramp_iter"].tolist()]
    assert weights == pytest.approx((0.1 * arrays["ramp_lambda"]).tolist(), rel=1e-6)


def test_the_teacher_follows_the_students_but_keeps_its_own_statistics():
    method = make_method("ucmt", dims=2)
    method(make_batch("full", "none", dims=2), END)
    statistics = {name: buffer.clone() for name, buffer in method.teacher.named_buffers()}
    method.after_step(Progress(0, 100))
    for teacher, first, second in zip(
        method.teacher.parameters(), method.first.parameters(), method.second.parameters(), strict=True
    ):
        torch.testing.assert_close(teacher.data, (0.99 * first + 0.01 * second).detach())
    assert all(buffer.equal(statistics[name]) for name, buffer in method.teacher.named_buffers())
    assert any(buffer.float().abs().sum() > 0 for name, buffer in statistics.items() if "mean" in name)


def test_a_pseudo_label_never_names_a_structure_that_is_annotated_elsewhere():
    batch = make_batch("partial", dims=2)
    liver_everywhere = torch.zeros(1, 4, 32, 32)
    liver_everywhere[:, 1] = 9.0
    perfect = torch.zeros(1, 4, 32, 32)
    perfect[:, 0] = 50.0 * (batch.labels == 0)
    perfect[:, 1] = 50.0 * (batch.labels == 1)
    settings = {"u_mix": False, "absent_dice": "skip", "consistency_weight": 1.0}
    terms = replayed([perfect], [perfect], [liver_everywhere], **settings)(batch, END)
    # Where the label says "no liver" the teacher's next choice is the first of the equal others: the background.
    assert terms["teacher_pseudo"].item() == pytest.approx(0, abs=1e-4)


def test_complete_cases_can_take_part_in_the_pseudo_labels():
    batch = make_batch("full", "full", dims=2)
    terms = make_method("ucmt", dims=2, settings={"consistency_on": "all"})(batch, END)
    assert terms["cross_pseudo"].item() > 0
    terms = make_method("ucmt", dims=2)(batch, END)
    assert terms["cross_pseudo"].item() == 0
    assert terms["cross_pseudo"].requires_grad


@pytest.mark.parametrize("view", ["blur", "strong", "none"])
def test_each_student_sees_a_view_of_its_own(view):
    outputs = [[torch.randn(2, 4, 32, 32)] for _ in range(3)]
    method = replayed(*outputs, view=view, u_mix=False)
    batch = make_batch("full", "none", dims=2)
    method(batch, END)
    assert method.teacher.seen[0] is batch.images
    assert method.first.seen[0].equal(method.second.seen[0]) == (view == "none")


def test_teacher_or_either_student_can_be_kept():
    for choice in ("teacher", "first", "second"):
        method = make_method("ucmt", settings={"eval_model": choice})
        expected = {"teacher": method.teacher.network, "first": method.first, "second": method.second}
        assert method.predictor().network is expected[choice]
