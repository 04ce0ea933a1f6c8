"""PL-Seg: the whole objective against the official code's arrays, the history of difficulty, and partial labels."""

from __future__ import annotations

import pytest
import torch

from conftest import SMALL_NETS, SPACE, make_batch, make_method
from labelwise.losses.partial import marginal_cross_entropy
from labelwise.methods.pl_seg.losses import PairLosses
from labelwise.methods.pl_seg.method import DifficultyHistory, PLSeg, PLSegConfig, annotated_pairs
from labelwise.nets.factory import NetFactory
from labelwise.nets.parts import SegmentationNet
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)


def batch_of(labels, annotated=None, num_classes=5):
    labels = torch.as_tensor(labels).long()
    if annotated is None:
        annotated = torch.ones(len(labels), num_classes, dtype=torch.bool)
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, torch.as_tensor(annotated))


def with_scales(scales, num_classes=5, **settings):
    """A method whose outputs come from the test."""
    method = make_method("pl_seg", settings=settings)
    method.history = DifficultyHistory(scales, method.config.window, num_classes)
    return method


def supervised_of(method, batch):
    """The supervised loss, and its gradient at the finest logits."""
    logits = method.outputs(batch.images)
    logits[0].retain_grad()
    loss = method.foreground([part.softmax(dim=1) for part in logits], batch)
    loss.backward()
    return loss, logits[0].grad


def pairs_of(*structures, dice=0.5, scales=1):
    """Losses of pairs that are present: with them a history is written."""
    values = torch.as_tensor(dice).float().expand(scales, len(structures))
    pairs = PairLosses(values, values, torch.ones(scales, len(structures), dtype=torch.bool))
    return pairs, torch.tensor(structures, dtype=torch.int64)


# the official code


@pytest.mark.parametrize(("key", "settings"), [("hadfl", {}), ("hadfl_ext", {"absent_weight": 0.5})])
def test_three_steps_of_the_foreground_loss_agree_with_the_calculation(golden, key, settings):
    arrays = golden("plseg")
    losses = arrays["hadfl_loss"] if key == "hadfl" else arrays["hadfl_ext_loss_f64"]
    method = with_scales(1, **settings)
    for step in range(3):
        annotated = None if key == "hadfl" else arrays["hadfl_ext_annotated"][step]
        logits = torch.from_numpy(arrays["hadfl_logits"][step]).requires_grad_()
        batch = batch_of(arrays["hadfl_labels"][step], annotated)
        loss = method.foreground([logits.softmax(dim=1)], batch)
        assert loss.item() == pytest.approx(float(losses[step]), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(gradient, torch.from_numpy(arrays[f"{key}_grad"][step]), **CLOSE)
        if key == "hadfl":
            row, weights = method.history.rows[0, step], method.history.weights(0.5)[0]
            expected = torch.from_numpy(arrays["hadfl_batch_class_dice_loss"][step])
            torch.testing.assert_close(row, expected, **CLOSE)
            expected = torch.from_numpy(arrays["hadfl_class_weight"][step])
            torch.testing.assert_close(weights[1:], expected[1:], **CLOSE)


def test_without_hardness_every_structure_counts_alike_and_nothing_is_remembered(golden):
    arrays = golden("plseg")
    method = with_scales(1, hardness=False)
    for step in range(3):
        p = torch.from_numpy(arrays["hadfl_logits"][step]).softmax(dim=1)
        loss = method.foreground([p], batch_of(arrays["hadfl_labels"][step]))
        assert loss.item() == pytest.approx(float(arrays["dfl_loss"][step]), rel=1e-5)
    assert method.history.calls.item() == 0


def test_the_whole_objective_agrees_with_the_official_code(golden):
    arrays = golden("plseg")
    method = with_scales(4, num_classes=4)
    outputs = [torch.from_numpy(arrays[f"full_logits{s}"]).requires_grad_() for s in (1, 2, 3, 4)]
    method.outputs = lambda images: outputs
    terms = method(batch_of(arrays["full_labels"], num_classes=4), Progress(int(arrays["full_epoch"]), 500))
    assert terms["supervised"].item() == pytest.approx(float(arrays["full_sup"].mean()), rel=1e-5)
    assert terms["contrast"].item() == pytest.approx(0.1 * float(arrays["full_cocl"]), rel=1e-5)
    ramp = float(arrays["ramp_value"][4])
    assert terms["distillation"].item() == pytest.approx(0.1 * ramp * float(arrays["full_psd"]), rel=1e-5)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(float(arrays["full_total"]), rel=1e-5)
    for s, gradient in zip((1, 2, 3, 4), torch.autograd.grad(total, outputs), strict=True):
        torch.testing.assert_close(gradient, torch.from_numpy(arrays[f"full_grad{s}"]), **CLOSE)


def test_the_weight_of_the_distillation_rises_during_the_whole_training(golden):
    arrays = golden("plseg")
    method = make_method("pl_seg")
    for epoch, expected in zip(arrays["ramp_epochs"], arrays["ramp_value"], strict=True):
        weight = method.distillation_weight(Progress(int(epoch), 500))
        assert weight == pytest.approx(0.1 * float(expected), rel=1e-5)


def test_the_published_network_has_the_published_size_and_outputs(golden):
    arrays = golden("plseg")
    nets = NetFactory("plseg_unet", {}, dims=3, in_channels=1, num_classes=17)
    method = PLSeg(nets, PLSegConfig()).eval()
    assert sum(p.numel() for p in method.parameters()) == int(arrays["net_num_params"])
    with torch.inference_mode():
        outputs = method.outputs(torch.zeros(1, 1, 16, 16, 16))
    assert [list(output.shape) for output in outputs] == arrays["net_out_shapes"].tolist()


# outputs


@pytest.mark.parametrize("net", ["vnet", "unet", "dynunet", "plseg_unet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_any_network_gets_an_output_for_every_scale(net, dims):
    nets = NetFactory(net, SMALL_NETS[net], dims=dims, in_channels=1, num_classes=SPACE.num_classes)
    method = PLSeg(nets, PLSegConfig()).eval()
    images = torch.randn(1, 1, *[32] * dims)
    outputs = method.outputs(images)
    assert len(outputs) == 1 + len(method.network.decoder.channels)
    assert [output.shape[2] for output in outputs] == [32 // 2**s for s in range(len(outputs))]
    assert {output.shape[1] for output in outputs} == {SPACE.num_classes}
    torch.testing.assert_close(outputs[0], method.network(images))


def test_the_plain_network_is_kept():
    method = make_method("pl_seg")
    assert isinstance(method.predictor().network, SegmentationNet)
    assert method.predictor().network is method.network


# history


def test_the_oldest_row_leaves_when_the_window_is_full():
    history = DifficultyHistory(1, window=50, num_classes=3)
    history.push(*pairs_of(1, 2, dice=[[0.9, 0.3]]))
    for _ in range(49):
        history.push(*pairs_of(2, dice=0.3))
    expected = torch.tensor([0.5, 1.5, 0.5])  # 0.9 and 0.3 over their mean
    torch.testing.assert_close(history.weights(0.5)[0], expected)
    history.push(*pairs_of(2, dice=0.3))
    torch.testing.assert_close(history.weights(0.5)[0], torch.tensor([0.5, 0.5, 1.0]))
    assert history.calls.item() == 51


def test_a_row_holds_the_mean_over_the_pairs_of_a_class():
    history = DifficultyHistory(1, window=3, num_classes=4)
    history.push(*pairs_of(1, 1, 2, dice=[[0.2, 0.6, 0.5]]))
    torch.testing.assert_close(history.rows[0, 0], torch.tensor([0.0, 0.4, 0.5, 0.0]))


def test_absent_structures_leave_no_trace_in_the_history():
    history = DifficultyHistory(1, window=3, num_classes=3)
    losses, structures = pairs_of(1, 2)
    history.push(losses._replace(present=torch.tensor([[True, False]])), structures)
    assert history.rows[0, 0].tolist() == [0, 0.5, 0]


def test_each_scale_has_its_own_history_and_skips_what_it_does_not_see():
    history = DifficultyHistory(2, window=3, num_classes=3)
    losses, structures = pairs_of(1, 2, scales=2)
    history.push(losses._replace(present=torch.tensor([[True, True], [False, False]])), structures)
    assert history.calls.tolist() == [1, 0]
    assert history.rows[1].abs().max() == 0


def test_the_history_is_that_of_the_batches_of_all_ranks(monkeypatch):
    here, there = pairs_of(1, 2, dice=[[0.2, 0.5]]), pairs_of(1, 3, dice=[[0.8, 0.1]])
    sent = []
    monkeypatch.setattr(
        "labelwise.methods.pl_seg.method.sum_over_ranks", lambda sums: sent.append(sums) or sums
    )
    DifficultyHistory(1, window=3, num_classes=4).push(*there)
    monkeypatch.setattr("labelwise.methods.pl_seg.method.sum_over_ranks", lambda sums: sums + sent[0])
    history = DifficultyHistory(1, window=3, num_classes=4)
    history.push(*here)
    torch.testing.assert_close(history.rows[0, 0], torch.tensor([0.0, 0.5, 0.5, 0.1]))


def test_a_batch_without_a_pair_is_not_remembered():
    method = make_method("pl_seg")
    method(make_batch("full", "none"), HALFWAY)
    before = method.history.rows.clone()
    method(make_batch("none", "none"), HALFWAY)
    assert torch.equal(method.history.rows, before)
    assert method.history.calls.tolist() == [1] * len(method.history.calls)


def test_two_steps_can_be_taken_before_the_first_gradient():
    method = make_method("pl_seg")
    first = method(make_batch("full", "partial"), HALFWAY)["supervised"]
    second = method(make_batch("partial", "full"), HALFWAY)["supervised"]
    (first + second).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


# partial labels


def test_pairs_are_the_annotated_structures_of_each_case():
    batch = make_batch("partial", "none", "full")
    for known_on_host in (batch, batch._replace(annotated_on_host=())):
        cases, structures = annotated_pairs(known_on_host)
        assert list(zip(cases.tolist(), structures.tolist(), strict=True)) == [(0, 1), (2, 1), (2, 2), (2, 3)]


def test_unlabelled_cases_have_no_supervised_gradient_but_teach_the_other_terms():
    method, batch = make_method("pl_seg"), make_batch("none", "none")
    loss, gradient = supervised_of(method, batch)
    assert loss.item() == 0
    assert gradient.abs().max() == 0
    terms = method(batch, HALFWAY)
    assert terms["contrast"].item() > 0
    assert terms["distillation"].item() > 0


def test_the_probability_of_a_structure_that_nobody_annotated_is_not_supervised():
    batch = make_batch("partial", seed=1)
    method = with_scales(1, num_classes=4)
    p = torch.rand(1, 4, *batch.labels.shape[1:], requires_grad=True)
    (gradient,) = torch.autograd.grad(method.foreground([p], batch), p)
    assert gradient[:, 1].abs().min() > 0
    assert gradient[:, [0, 2, 3]].abs().max() == 0


def test_ignored_voxels_have_no_supervised_gradient():
    method, batch = make_method("pl_seg"), make_batch("full", "partial")
    batch.labels[..., 16:] = IGNORE
    _, gradient = supervised_of(method, batch)
    assert gradient[..., 16:].abs().max() == 0
    assert gradient[..., :16].abs().max() > 0


def test_an_absent_structure_is_silent_unless_its_cross_entropy_is_wanted():
    batch = make_batch("full", absent="pancreas")
    p = torch.rand(1, 4, *batch.labels.shape[1:], requires_grad=True)
    for weight, silent in ((0.0, True), (0.5, False)):
        method = with_scales(1, num_classes=4, absent_weight=weight)
        (gradient,) = torch.autograd.grad(method.foreground([p], batch), p)
        assert (gradient[:, 3].abs().max() == 0) == silent


def test_the_order_of_the_cases_does_not_matter():
    batch = make_batch("full", "partial", "none", seed=2)
    turned = Batch(*(part.flip(0) for part in batch[:3]))
    values = [make_method("pl_seg").eval()(kind, HALFWAY)["supervised"].item() for kind in (batch, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_mean_divides_by_the_pairs_that_count():
    batch = make_batch("full", "partial", absent="spleen")  # liver, pancreas; liver; and one absent structure
    p = torch.rand(2, 4, *batch.labels.shape[1:]).softmax(dim=1)
    for absent_weight, pairs in ((0.0, 3), (0.5, 4)):
        total, mean = (
            with_scales(1, num_classes=4, reduction=reduction, absent_weight=absent_weight)
            .foreground([p], batch)
            .item()
            for reduction in ("sum", "mean")
        )
        assert mean == pytest.approx(total / pairs, rel=1e-5)


def test_the_marginal_cross_entropy_of_the_finest_output_can_be_added():
    batch = make_batch("full", "partial")
    plain, extra = make_method("pl_seg"), make_method("pl_seg", settings={"extra_marginal_ce": 0.5})
    expected = marginal_cross_entropy(plain.outputs(batch.images)[0], batch.labels, batch.annotated)
    difference = extra(batch, HALFWAY)["supervised"] - plain(batch, HALFWAY)["supervised"]
    assert difference.item() == pytest.approx(0.5 * expected.item(), rel=1e-3)


def test_every_part_can_be_switched_off():
    batch = make_batch("full", "none")
    terms = make_method("pl_seg", settings={"contrast_weight": 0, "distillation_weight": 0})(batch, HALFWAY)
    assert terms["contrast"].item() == terms["distillation"].item() == 0
    assert terms["supervised"].item() > 0
