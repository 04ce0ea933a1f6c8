"""CoNeMOS: which pairs it draws, what they cost, and that FiLM is really trained."""

from __future__ import annotations

import pytest
import torch

from conftest import make_batch, make_method
from labelwise.methods.conemos.method import Pairs, regression
from labelwise.train.schedule import OptimizerConfig, build_optimizers
from labelwise.types import IGNORE, Batch, Progress

HALFWAY = Progress(50, 100)


def batch_of(labels, annotated) -> Batch:
    labels, annotated = torch.as_tensor(labels), torch.as_tensor(annotated)
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


def pairs_of(truth, known=None) -> Pairs:
    truth = torch.as_tensor(truth)
    rows = torch.zeros(len(truth), dtype=torch.int64)
    return Pairs(rows, rows, truth, torch.ones_like(truth) if known is None else torch.as_tensor(known))


def drawn(method, batch) -> list[tuple[int, int]]:
    pairs = method.draw_pairs(batch)
    return sorted(zip(pairs.cases.tolist(), pairs.structures.tolist(), strict=True))


def total(method, batch) -> torch.Tensor:
    return torch.stack(list(method(batch, HALFWAY).values())).sum()


# loss


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_squared_dice_agrees_with_the_golden_values(golden, case: int):
    arrays = golden("conemos")
    logits = torch.from_numpy(arrays["dice_prob"]).double().logit()[case, None]
    truth = torch.from_numpy(arrays["dice_target"]).bool()[case, None]
    method = make_method("conemos", settings={"bce_weight": 0.0, "absent_dice": "include"})
    loss = method.segmentation(logits, pairs_of(truth))
    assert loss.item() == pytest.approx(arrays["dice_per_case_f64"][case], rel=1e-5)


def test_the_loss_of_a_hand_computed_case():
    truth = torch.tensor([[[True, False, False, True]], [[False] * 4]])
    pairs = pairs_of(truth, [[[True, True, True, False]], [[True] * 4]])._replace(
        truth=truth & torch.tensor([[[True, True, True, False]], [[True] * 4]])
    )
    logits = torch.zeros(2, 1, 4)  # probability 1/2, cross-entropy ln 2
    ln2 = 0.693147
    squared = 1 - 2 * 0.5 / (3 * 0.25 + 1)  # the second pair has no structure and no Dice
    linear = 1 - 2 * 0.5 / (3 * 0.5 + 1 + 1)
    for dice, expected in (("squared", squared), ("linear", linear)):
        method = make_method("conemos", settings={"dice": dice, "bce_weight": 2.0})
        assert method.segmentation(logits, pairs).item() == pytest.approx(expected + 2 * ln2, rel=1e-5)
    included = make_method("conemos", settings={"absent_dice": "include", "bce_weight": 0.0})
    assert included.segmentation(logits, pairs).item() == pytest.approx((squared + 1) / 2, rel=1e-5)


def test_the_warm_up_pulls_the_logits_to_plus_and_minus_five():
    truth = torch.tensor([[[True, False, False]]])
    known = torch.tensor([[[True, True, False]]])
    assert regression(torch.tensor([[[5.0, -5.0, 99.0]]]), pairs_of(truth, known)).item() == 0
    assert regression(torch.zeros(1, 1, 3), pairs_of(truth, known)).item() == 25


def test_the_warm_up_ends_after_its_part_of_the_training():
    method = make_method("conemos", settings={"warm_up_fraction": 0.1})
    batch = make_batch("full", "partial")
    during, after = (method(batch, Progress(step, 100)) for step in (9, 10))
    assert during["supervised"].item() > 10 > after["supervised"].item()
    assert tuple(during) == tuple(after)


def test_the_penalty_is_the_size_of_the_projections():
    method = make_method("conemos", settings={"film_decay": 0.5})
    torch.nn.init.constant_(method.network.film.projections.bias, 2.0)
    torch.nn.init.zeros_(method.network.film.projections.weight)
    channels = sum(method.network.film.channels)
    assert method(make_batch("full"), HALFWAY)["film_decay"].item() == 0.5 * 4 * 2 * channels


# pairs


def test_pairs_are_annotated_and_all_different():
    method = make_method("conemos", settings={"pairs_per_batch": 3})
    batch = make_batch("full", "partial", "none", dims=2)
    for seed in range(10):
        torch.manual_seed(seed)
        found = drawn(method, batch)
        assert len(set(found)) == 3
        assert set(found) <= {(0, 0), (0, 1), (0, 2), (1, 0)}


def test_a_batch_with_fewer_pairs_gives_them_all():
    method = make_method("conemos", settings={"pairs_per_batch": 9})
    assert drawn(method, make_batch("full", "partial", "none", dims=2)) == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_a_structure_that_is_not_annotated_is_denied_where_another_one_is_labelled():
    method = make_method("conemos", settings={"bce_weight": 2.0})
    batch = batch_of([[[0, 1, 1, IGNORE]]], [[False, True, False, True]])
    others = method.draw_others(batch)
    assert (others.cases.tolist(), others.structures.tolist()) == ([0], [1])
    assert others.known.int().tolist() == [[[[0, 1, 1, 0]]]]
    assert not others.truth.any()
    logits = torch.zeros(1, 1, 1, 4, requires_grad=True)
    loss = method.denial(logits, others)
    assert loss.item() == pytest.approx(2 * 0.693147)
    for kinds in (("full",), ("none",), ("full", "none")):
        assert len(method.draw_others(make_batch(*kinds, dims=2)).cases) == 0
    silent = make_method("conemos", settings={"known_negatives": False})
    assert len(silent.draw_others(batch).cases) == 0


def test_known_negatives_are_part_of_the_supervised_term():
    losses = []
    for on in (True, False):
        method = make_method("conemos", dims=2, settings={"known_negatives": on, "pairs_per_batch": 9})
        losses.append(method(make_batch("partial", dims=2), Progress(50, 100))["supervised"].item())
    assert losses[0] > losses[1] + 0.05


def test_the_answer_to_a_pair_is_the_structure_where_the_labels_know_it():
    method = make_method("conemos", settings={"pairs_per_batch": 9})
    batch = batch_of([[[0, 1, 2, IGNORE]]], [[False, True, False, True]])
    pairs = method.draw_pairs(batch)
    order = pairs.structures.argsort()
    assert pairs.structures[order].tolist() == [0, 2]
    assert pairs.truth[order].int().tolist() == [[[[0, 1, 0, 0]]], [[[0, 0, 0, 0]]]]
    assert pairs.known.int().tolist() == [[[[1, 1, 1, 0]]]] * 2


def rare_part(method, draws: int = 600) -> float:
    """How often the rare structure of two is drawn, in a batch that has both once."""
    batch = batch_of(torch.zeros(1, 1, 1, dtype=torch.int64), [[False, True, True, False]])
    torch.manual_seed(0)
    hits = 0
    for _ in range(draws):
        method.annotated_cases.copy_(torch.tensor([899, 99, 0]))  # 900 and 100 with this batch
        hits += drawn(method, batch) == [(0, 1)]
    return hits / draws


@pytest.mark.parametrize(("balance", "expected"), [(0.0, 1 / 2), (0.5, 3 / 4), (1.0, 9 / 10)])
def test_rare_structures_are_drawn_more_often(balance: float, expected: float):
    method = make_method("conemos", settings={"pairs_per_batch": 1, "class_balance": balance})
    assert rare_part(method) == pytest.approx(expected, abs=0.05)


def test_the_cases_of_each_structure_are_counted_and_kept():
    method = make_method("conemos", dims=2)
    for _ in range(2):
        method(make_batch("full", "partial", "none", dims=2), HALFWAY)
    assert method.state_dict()["annotated_cases"].tolist() == [4, 2, 2]


# training


@pytest.mark.parametrize("warm_up", [0.0, 1.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_film_parameter_receives_a_gradient_and_is_moved_by_the_optimiser(dims: int, warm_up: float):
    method = make_method("conemos", dims=dims, settings={"film_decay": 0.0, "warm_up_fraction": warm_up})
    film = dict(method.network.film.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in film.items()}
    (optimizer,) = build_optimizers(method.parameter_groups(), OptimizerConfig(weight_decay=0.0))
    total(method, make_batch("full", "full", dims=dims)).backward()
    optimizer.step()
    for name, parameter in film.items():
        assert parameter.grad.abs().sum() > 0, name
        assert not torch.equal(parameter, before[name]), name


def test_the_weight_decay_of_the_optimiser_leaves_the_projections_alone():
    method = make_method("conemos")
    (optimizer,) = build_optimizers(method.parameter_groups(), OptimizerConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        assert decay[id(parameter)] == (0.0 if "projections" in name else 0.1), name


def test_a_batch_without_a_pair_costs_nothing_and_moves_nothing():
    method = make_method("conemos")
    loss = method(make_batch("none", "none"), HALFWAY)["supervised"]
    assert loss.item() == 0
    loss.backward()
    gradients = [parameter.grad for parameter in method.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert max(gradient.abs().max().item() for gradient in gradients) == 0


@pytest.mark.parametrize("warm_up", [0.0, 1.0])
def test_ignored_voxels_take_no_part(warm_up: float):
    method = make_method("conemos", settings={"pairs_per_batch": 9, "warm_up_fraction": warm_up})
    batch = make_batch("full", "partial", size=16)
    labels = batch.labels.clone()
    labels[:, :8] = IGNORE
    logits = method.network.answer(batch.images, torch.tensor([0]), torch.tensor([0]))
    pairs = method.draw_pairs(batch._replace(labels=labels))
    loss = regression if warm_up else method.segmentation
    changed = logits.detach().repeat(len(pairs.cases), 1, 1, 1, 1)
    same = changed.clone()
    changed[:, :, :8] += 3
    assert loss(changed, pairs).item() == loss(same, pairs).item()


def test_a_patch_of_ignored_voxels_costs_nothing():
    batch = make_batch("full", "partial", size=16)
    method = make_method("conemos")
    terms = method(batch._replace(labels=torch.full_like(batch.labels, IGNORE)), HALFWAY)
    assert terms["supervised"].item() == 0


def test_an_absent_structure_still_teaches_its_absence():
    method = make_method("conemos", settings={"pairs_per_batch": 9, "film_decay": 0.0})
    batch = batch_of(torch.zeros(1, 16, 16, 16, dtype=torch.int64), [[False, True, False, False]])
    loss = total(method, batch._replace(images=torch.randn(1, 1, 16, 16, 16)))
    loss.backward()
    assert loss.item() > 0
    assert method.network.head.convolution.bias.grad.item() > 0  # less of the structure


def test_the_background_wins_where_no_structure_is_more_likely_than_not():
    method = make_method("conemos")
    torch.nn.init.constant_(method.network.head.convolution.bias, -20.0)
    scores = method.predictor().eval()(make_batch("full", size=16).images)
    assert scores.shape == (1, 4, 16, 16, 16)
    assert scores.argmax(dim=1).max().item() == 0


def test_the_condition_is_the_structure_that_is_asked_for():
    method = make_method("conemos", dims=2)
    told = []
    method.network.film.register_forward_hook(lambda module, inputs, output: told.append(inputs[0]))
    images = make_batch("full", dims=2).images
    method.network.answer(images, torch.tensor([0, 0]), torch.tensor([2, 0]))
    assert told[0].int().tolist() == [[0, 0, 1], [1, 0, 0]]
