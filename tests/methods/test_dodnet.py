"""DoDNet against the arrays of the official modules, and what makes one trunk pass enough for all structures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import SMALL_NETS, SPACE, make_batch, make_method
from labelwise.methods.base import NetFactory
from labelwise.methods.dodnet.dynamic_head import Controller, dynamic_head, head_parameters
from labelwise.methods.dodnet.method import (
    Dodnet,
    DodnetConfig,
    answers,
    as_table,
    denial,
    drawn_others,
    drawn_structures,
    mean_over_pairs,
    pair_loss,
)
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
# (case, structure) pairs of the golden loss that are not annotated.
HIDDEN = ((1, 0), (2, 1))


def tensors(arrays) -> dict[str, Tensor]:
    return {key: torch.as_tensor(array) for key, array in arrays.items()}


def dodnet(net: str = "unet", dims: int = 3, seed: int = 0, **settings: Any) -> Dodnet:
    torch.manual_seed(seed)
    nets = NetFactory(net, SMALL_NETS[net], dims=dims, in_channels=1, num_classes=SPACE.num_classes)
    return Dodnet(nets, DodnetConfig(**settings))


def loss_of(method: Dodnet, batch: Batch) -> Tensor:
    return method(batch, HALFWAY)["supervised"]


def small_questions() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two cases, two structures, four voxels: logits 0, so that every sigmoid is 1/2 and every voxel costs ln 2."""
    truth = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 1]]], dtype=torch.bool)
    structures = torch.tensor([[1, 2], [1, 0]])
    known = (structures > 0).unsqueeze(2).expand(2, 2, 4)
    return torch.zeros(2, 2, 4), truth & known, known, structures


# golden


def test_the_dynamic_head_agrees_with_the_official_one(golden):
    arrays = tensors(golden("dodnet"))
    features = arrays["head1_features"].requires_grad_()
    parameters = arrays["head1_params"].requires_grad_()
    logits = dynamic_head(features, parameters.unsqueeze(1))[:, 0]
    torch.testing.assert_close(logits, arrays["head1_logits"], **CLOSE)
    gradients = torch.autograd.grad(logits.square().mean(), (features, parameters))
    torch.testing.assert_close(gradients[0], arrays["head1_grad_features"], **CLOSE)
    torch.testing.assert_close(gradients[1], arrays["head1_grad_params"], **CLOSE)


def test_a_dynamic_head_with_two_outputs_agrees_with_the_official_one(golden):
    arrays = tensors(golden("dodnet"))
    logits = dynamic_head(arrays["head1_features"], arrays["head2_params"].unsqueeze(1), outputs=2)
    torch.testing.assert_close(logits[:, 0], arrays["head2_logits"], **CLOSE)


def test_the_controller_agrees_with_the_official_one(golden):
    arrays = tensors(golden("dodnet"))
    controller = Controller(3, 256, 16, head_parameters(8))
    controller.linear.weight.data = arrays["ctrl_weight"]
    controller.linear.bias.data = arrays["ctrl_bias"]
    structures = arrays["ctrl_task_onehot"].argmax(dim=1, keepdim=True) + 1
    written = controller(arrays["ctrl_bottleneck"], structures)
    torch.testing.assert_close(written[:, 0], arrays["ctrl_params"], **CLOSE)


def test_the_loss_over_classes_agrees_with_the_official_one(golden):
    arrays = tensors(golden("dodnet"))
    logits = arrays["loss_logits"].requires_grad_()
    structures = torch.tensor([[1, 2]] * 3)
    for pair in HIDDEN:
        structures[pair] = 0
    known = (structures > 0)[..., None, None, None].expand_as(logits)
    truth = (arrays["loss_target"] > 0) & known
    loss = pair_loss(logits, truth, known, structures, reduction="class_mean", absent_dice="include")
    expected = arrays["loss_dice"] + arrays["loss_bce"]
    torch.testing.assert_close(loss, expected.float(), **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, arrays["loss_grad"], rtol=1e-5, atol=1e-8)
    assert all(gradient[pair].abs().max() == 0 for pair in HIDDEN)


def test_convention_the_network_has_the_published_size():
    nets = NetFactory("dodnet_unet", {}, dims=3, in_channels=1, num_classes=17)
    method = Dodnet(nets, DodnetConfig())
    assert sum(parameter.numel() for parameter in method.parameters()) == 17_328_529


# one trunk for all structures


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("net", ["vnet", "unet", "dodnet_unet"])
@pytest.mark.parametrize("training", [True, False])
def test_asking_for_several_structures_at_once_equals_asking_for_one_after_the_other(net, dims, training):
    network = dodnet(net, dims).network.train(training)
    images = make_batch("full", "full", dims=dims).images
    with torch.no_grad():
        together = network(images, torch.tensor([[1, 2, 3], [3, 1, 1]]))
        apart = [network(images, torch.tensor(column)) for column in ([[1], [3]], [[2], [1]], [[3], [1]])]
        every = network(images)
    torch.testing.assert_close(together, torch.cat(apart, dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(every[0], together[0], rtol=1e-5, atol=1e-5)


def test_the_head_of_each_case_is_its_own():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 5, 3, generator=generator)
    parameters = torch.randn(2, 3, head_parameters(4, 2), generator=generator)
    logits = dynamic_head(features, parameters, layers=2)
    for case in range(2):
        for structure in range(3):
            first, last, offsets, offset = parameters[case, structure].split([16, 4, 4, 1])
            hidden = torch.einsum("of,fxy->oxy", first.view(4, 4), features[case]) + offsets.view(4, 1, 1)
            expected = torch.einsum("f,fxy->xy", last, hidden.relu()) + offset
            torch.testing.assert_close(logits[case, structure, 0], expected)


def test_one_pass_of_the_trunk_serves_all_structures():
    method, batch = dodnet(structure_chunk=1), make_batch("full", "partial")
    calls = {"encoder": 0, "decoder": 0}

    def count(part: str):
        def hook(*_: Any) -> None:
            calls[part] += 1

        return hook

    method.network.encoder.register_forward_hook(count("encoder"))
    method.network.decoder.register_forward_hook(count("decoder"))
    loss_of(method, batch)
    assert calls == {"encoder": 1, "decoder": 1}
    method.predictor()(batch.images)
    assert calls == {"encoder": 2, "decoder": 2}


def test_the_number_of_heads_at_once_does_not_change_the_prediction():
    images = make_batch("full").images
    with torch.no_grad():
        scores = [dodnet(structure_chunk=chunk).predictor()(images) for chunk in (1, 2, 16)]
    torch.testing.assert_close(scores[0], scores[2], **CLOSE)
    torch.testing.assert_close(scores[1], scores[2], **CLOSE)


def test_the_head_depends_on_the_image_and_on_the_structure():
    method, images = dodnet(), make_batch("full", "full", seed=1).images
    images[1] += 3 * torch.rand(images[1].shape, generator=torch.Generator().manual_seed(2))
    written = method.network.controller(method.network.encoder(images)[-1], torch.tensor([[1, 2], [1, 2]]))
    assert (written[0, 0] - written[1, 0]).abs().max() > 1e-4
    assert (written[0, 0] - written[0, 1]).abs().max() > 1e-4


def test_width_and_depth_of_the_head_can_be_chosen():
    for width, layers in ((4, 1), (6, 2), (8, 4)):
        method = dodnet(dims=2, head_width=width, head_layers=layers)
        assert method.network.controller.linear.out_features == head_parameters(width, layers)
        assert loss_of(method, make_batch("full", "partial", dims=2)).isfinite()


# which pairs


def test_all_annotated_structures_are_asked_for_and_no_others():
    batch = make_batch("full", "partial", "none", absent="pancreas")
    assert drawn_structures(batch, 0) == [[1, 2, 3], [1], []]
    assert drawn_structures(batch._replace(annotated_on_host=()), 0) == [[1, 2, 3], [1], []]


def test_structures_per_case_draws_different_annotated_structures():
    torch.manual_seed(0)
    batch = make_batch("full", "partial", "none")
    draws = [drawn_structures(batch, 2) for _ in range(30)]
    assert all(draw[1:] == [[1], []] for draw in draws)
    assert all(len(set(draw[0])) == 2 for draw in draws)
    assert {structure for draw in draws for structure in draw[0]} == {1, 2, 3}


def test_as_many_other_structures_are_denied_where_one_is_labelled():
    torch.manual_seed(0)
    batch = make_batch("full", "partial", "none", dims=2)
    drawn = [drawn_others(batch, drawn_structures(batch, 0)) for _ in range(30)]
    assert all(draw[0] == draw[2] == [] and len(draw[1]) == 1 for draw in drawn)
    assert {draw[1][0] for draw in drawn} == {2, 3}
    labels = torch.tensor([[0, 1, 1, IGNORE]])
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss = denial(logits, labels, torch.tensor([[2]]))
    assert loss.item() == pytest.approx(0.693147)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == [[[0, 0.25, 0.25, 0]]]
    assert denial(logits, labels, torch.tensor([[0]])).item() == 0


def test_known_negatives_are_part_of_the_supervised_term():
    batch = make_batch("partial", dims=2)
    with_them, without = (loss_of(dodnet(dims=2, known_negatives=on), batch) for on in (True, False))
    assert with_them.item() > without.item() + 0.05
    complete = make_batch("full", dims=2)
    same = [loss_of(dodnet(dims=2, known_negatives=on), complete).item() for on in (True, False)]
    assert same[0] == pytest.approx(same[1], rel=1e-5)


def test_a_table_of_structures_is_filled_with_zeros_and_never_empty():
    device = torch.device("cpu")
    assert as_table([[1, 2, 3], [2], []], device).tolist() == [[1, 2, 3], [2, 0, 0], [0, 0, 0]]
    assert as_table([[], []], device).tolist() == [[0], [0]]


def test_answers_are_known_where_labels_are_and_a_structure_was_asked_for():
    truth, known = answers(torch.tensor([[0, 1, 2, IGNORE]]), torch.tensor([[2, 0]]))
    assert truth.int().tolist() == [[[0, 0, 1, 0], [0, 0, 0, 0]]]
    assert known.int().tolist() == [[[1, 1, 1, 0], [0, 0, 0, 0]]]


def test_only_the_one_hots_of_annotated_structures_are_trained():
    method = dodnet(known_negatives=False)
    loss_of(method, make_batch("partial", "none")).backward()
    columns = method.network.controller.linear.weight.grad[:, -3:].abs().sum(dim=0)
    assert columns[0] > 0
    assert columns[1:].max() == 0


def test_pairs_that_only_fill_the_table_do_not_count():
    method = dodnet(
        absent_dice="include", known_negatives=False
    )  # instance norm: cases do not see each other
    full, partial = make_batch("full"), make_batch("partial", seed=1)
    both = Batch(
        torch.cat([full.images, partial.images]),
        torch.cat([full.labels, partial.labels]),
        torch.cat([full.annotated, partial.annotated]),
    )
    expected = (3 * loss_of(method, full) + loss_of(method, partial)) / 4
    torch.testing.assert_close(loss_of(method, both), expected)


@pytest.mark.parametrize("reduction", ["pairs", "class_mean"])
@pytest.mark.parametrize("net", ["vnet", "dodnet_unet"])
def test_a_batch_without_a_pair_gives_zero_with_a_zero_gradient(net, reduction):
    method = dodnet(net, reduction=reduction)
    loss = loss_of(method, make_batch("none", "none"))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(parameter.grad.abs().max() == 0 for parameter in method.parameters())


# the loss


def test_the_loss_of_a_small_case_is_the_one_computed_by_hand():
    # Dice: 1 - 2 * 1 / (2 + 2 + 1) = 3/5 for case 0, structure 1; structure 2 is absent (1); 1 - 1 / (2 + 1 + 1) = 3/4.
    log_2 = torch.tensor(2.0).log()
    for reduction, absent, dice in (
        ("pairs", "skip", (3 / 5 + 3 / 4) / 2),
        ("pairs", "include", (3 / 5 + 1 + 3 / 4) / 3),
        ("class_mean", "skip", (3 / 5 + 3 / 4) / 2),
        ("class_mean", "include", ((3 / 5 + 3 / 4) / 2 + 1) / 2),
    ):
        loss = pair_loss(*small_questions(), reduction=reduction, absent_dice=absent)
        torch.testing.assert_close(loss, log_2 + dice)


def test_class_mean_gives_every_structure_the_same_weight():
    values, valid = torch.tensor([[1.0, 5.0], [3.0, 7.0]]), torch.tensor([[True, True], [True, False]])
    structures = torch.tensor([[1, 2], [1, 2]])
    assert mean_over_pairs(values, valid, structures, "pairs").item() == pytest.approx(3)
    assert mean_over_pairs(values, valid, structures, "class_mean").item() == pytest.approx(3.5)


def test_an_absent_structure_is_pushed_down_by_the_cross_entropy_only():
    logits, truth, known, structures = small_questions()
    logits.requires_grad_()
    gradients = [
        torch.autograd.grad(
            pair_loss(logits, truth, known, structures, reduction="pairs", absent_dice=absent), logits
        )[0]
        for absent in ("skip", "include")
    ]
    expected = torch.full((4,), 0.5 / 4 / 3)  # sigmoid / voxels / pairs
    for gradient in gradients:
        torch.testing.assert_close(gradient[0, 1], expected)


def test_ignored_voxels_take_no_part():
    batch = make_batch("full", "partial", dims=2)
    labels = batch.labels.clone()
    labels[:, :16] = IGNORE
    structures = as_table(drawn_structures(batch, 0), labels.device)
    logits = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = pair_loss(logits, *answers(labels, structures), structures, reduction="pairs", absent_dice="skip")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, :, :16].abs().max() == 0
    assert gradient[0, :, 16:].abs().min() > 0
    elsewhere = logits.detach().clone()
    elsewhere[:, :, :16] = 7.0
    torch.testing.assert_close(
        pair_loss(elsewhere, *answers(labels, structures), structures, reduction="pairs", absent_dice="skip"),
        loss,
    )


# the prediction


def test_the_prediction_is_the_strongest_sigmoid_above_one_half():
    method, images = dodnet(dims=2), make_batch("full", dims=2).images
    with torch.no_grad():
        scores, logits = method.predictor()(images), method.network(images)
    assert (scores[:, 0] == 0.5).all()
    torch.testing.assert_close(scores[:, 1:], logits.sigmoid())


def test_the_published_trunk_learns_two_cases_by_heart():
    method, batch = dodnet("dodnet_unet", dims=2), make_batch("full", "partial", dims=2)
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    first = last = loss_of(method, batch)
    for _ in range(25):
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
        last = loss_of(method, batch)
    assert last.item() < 0.5 * first.item()


def test_the_method_is_registered_with_the_settings_of_the_paper():
    method = make_method("dodnet")
    assert isinstance(method, Dodnet)
    assert method.network.controller.linear.out_features == 153
