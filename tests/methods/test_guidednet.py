"""GuidedNet against the official code's arrays, on every kind of case, and its class weights by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import SMALL_NETS, make_batch, make_method
from labelwise.components.teachers import TwoNetworks
from labelwise.errors import ConfigError
from labelwise.methods.guidednet.gaussian_mixture import mean_over_known
from labelwise.methods.guidednet.method import (
    MIXTURE_TERMS,
    GuidedNet,
    GuidedNetConfig,
    View,
    agreement,
    rarity_weights,
    voxels_right,
)
from labelwise.nets.factory import NetFactory
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WEIGHTS = {"rtol": 0, "atol": 1e-6}
GRADIENT = {"rtol": 1e-4, "atol": 1e-8}
HALFWAY = Progress(50, 100)
CLASSES = 5


@pytest.fixture
def arrays(golden):
    found = {name: torch.from_numpy(np.asarray(array)) for name, array in golden("guidednet").items()}
    for name, array in found.items():
        array.requires_grad_(name.startswith(("rep_", "logit_")))
    return found


def five_classes(**settings):
    """A method of the golden arrays' five classes, which looks at every voxel."""
    nets = NetFactory("vnet", SMALL_NETS["vnet"], dims=3, in_channels=1, num_classes=CLASSES)
    return GuidedNet(nets, replace(GuidedNetConfig(voxel_step=1), **settings))


def golden_batch(arrays, *, unlabelled=True, labels="label_l", annotated=None):
    """The two labelled cases, then two unlabelled ones."""
    labels = arrays[labels].long()
    annotated = torch.ones(2, CLASSES, dtype=torch.bool) if annotated is None else annotated.bool()
    if unlabelled:
        labels = torch.cat([labels, torch.full_like(labels, IGNORE)])
        annotated = torch.cat([annotated, torch.zeros_like(annotated)])
    return Batch(torch.zeros(len(labels), 1, *labels.shape[1:]), labels, annotated)


def golden_logits(arrays, network, *, unlabelled=True):
    parts = [arrays[f"logit_{network}_l"], arrays[f"logit_{network}_u"]]
    return torch.cat(parts if unlabelled else parts[:1])


def terms_of_first(arrays, **settings):
    """The mixture's terms of network A on two labelled and two unlabelled cases, and its responses."""
    method, batch = five_classes(**settings), golden_batch(arrays)
    features = torch.cat([arrays["rep_A_l"], arrays["rep_A_u"]])
    answers = method.answers(batch, [True, True, False, False])
    return method.mixture_of_network(View(golden_logits(arrays, "A"), features), answers)


# the mixture


def test_the_terms_of_a_network_agree_with_the_official_code(arrays):
    terms, _ = terms_of_first(arrays, means_over="image")
    for name, expected in (("self", "self"), ("label", "gt"), ("rectify", "rect"), ("apart", "max")):
        torch.testing.assert_close(terms[name], arrays[f"loss_{expected}"], **CLOSE)


def test_the_gradients_of_the_labelled_terms_agree_with_the_official_code(arrays):
    terms, _ = terms_of_first(arrays, means_over="image")
    inputs = (arrays["rep_A_l"], arrays["logit_A_l"])
    found = torch.autograd.grad(terms["self"] + terms["label"] + terms["apart"], inputs)
    for gradient, name in zip(found, ("rep_A_l", "logit_A_l"), strict=True):
        torch.testing.assert_close(gradient, arrays[f"grad_{name}"], **GRADIENT)


def test_the_gradients_of_the_rectification_agree_with_the_official_code(arrays):
    terms, _ = terms_of_first(arrays, means_over="image")
    inputs = (arrays["rep_A_u"], arrays["logit_A_u"], arrays["rep_A_l"])
    found = torch.autograd.grad(terms["rectify"], inputs)
    for gradient, name in zip(found, ("rep_A_u", "logit_A_u", "rep_A_l"), strict=True):
        torch.testing.assert_close(gradient, arrays[f"grad_rect_{name}"], **GRADIENT)


def test_the_agreement_of_the_responses_agrees_with_the_official_code(arrays):
    responses = [arrays[f"resp_{network}_l"].flatten(2).transpose(1, 2) for network in "AB"]
    torch.testing.assert_close(agreement(*responses), arrays["loss_cons"], rtol=1e-5, atol=1e-8)


def test_the_terms_agree_with_the_calculation_for_partial_labels(arrays):
    method = five_classes()
    batch = golden_batch(arrays, unlabelled=False, labels="pl_label", annotated=arrays["pl_annot"])
    view = View(golden_logits(arrays, "A", unlabelled=False), arrays["rep_A_l"])
    terms, responses = method.mixture_of_network(view, method.answers(batch, [True, True]))
    for name, expected in (("self", "self"), ("label", "gt"), ("rectify", "rect")):
        torch.testing.assert_close(terms[name], arrays[f"pl_loss_{expected}"].float(), **CLOSE)
    expected = arrays["pl_resp"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(responses, expected, **CLOSE)


def test_posteriors_can_take_the_place_of_the_responses(arrays):
    _, responses = terms_of_first(arrays, mixture="bayes")
    expected = torch.cat([arrays["bayes_post_l"], arrays["bayes_post_u"]]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(responses, expected, **CLOSE)


@pytest.mark.parametrize(
    "choice", [{"mixture": "bayes"}, {"means_over": "image"}, {"agree_on": "unlabelled"}]
)
def test_every_choice_works_on_every_mix_of_cases(choice):
    method = make_method("guidednet", settings=choice)
    for kinds in (("none", "full", "partial"), ("partial",), ("full", "full"), ("none",)):
        terms = method(make_batch(*kinds, size=32), HALFWAY)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        assert total.isfinite(), kinds
        assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters()), kinds


def test_a_batch_without_labels_has_no_mixture_and_remembers_nothing():
    method = make_method("guidednet")
    before = method.class_weights.clone()
    terms = method(make_batch("none", "none"), HALFWAY)
    assert all(terms[f"mixture_{name}"].item() == 0 for name in MIXTURE_TERMS)
    assert terms["cross_pseudo"].item() > 0
    method.after_step(HALFWAY)
    assert torch.equal(method.class_weights, before)
    assert not method.started.any()


def test_a_complete_batch_has_nothing_to_rectify():
    terms = make_method("guidednet")(make_batch("full", "full"), HALFWAY)
    assert terms["mixture_rectify"].item() == 0
    assert terms["mixture_label"].item() > 0


def test_every_part_can_be_switched_off():
    batch = make_batch("full", "none")
    whole = make_method("guidednet")(batch, HALFWAY)
    for settings, silent in (
        ({"supervised_weight": 0.0}, {"supervised"}),
        ({"cross_weight": 0.0}, {"cross_pseudo"}),
        ({"mixture_weight": 0.0}, {f"mixture_{name}" for name in MIXTURE_TERMS}),
        ({"mixture_terms": ["label", "self"]}, {"mixture_rectify", "mixture_apart", "mixture_agree"}),
    ):
        torch.manual_seed(0)
        terms = make_method("guidednet", settings=settings)(batch, HALFWAY)
        assert {name for name, term in terms.items() if term.item() == 0} == silent
        assert list(terms) == list(whole)


def test_looking_at_fewer_voxels_gives_the_same_mixture_on_average():
    """Over all eight starts of a grid with step 2, the counted voxels are those of the whole image."""
    torch.manual_seed(0)
    batch = make_batch("full", "none", size=8)
    method = make_method("guidednet", settings={"voxel_step": 2})
    everything = make_method("guidednet", settings={"voxel_step": 1}).answers(batch, [True, False])
    values = torch.rand(2, 8**3, 4)
    grids = {}
    for _ in range(100):
        answers = method.answers(batch, [True, False])
        starts = tuple(part.start for part in answers.place[1:])
        picked = values.view(2, 8, 8, 8, 4).movedim(-1, 1)[answers.place].movedim(1, -1).flatten(1, -2)
        grids[starts] = mean_over_known(picked, answers.known)
    assert len(grids) == 8
    expected = mean_over_known(values, everything.known)
    torch.testing.assert_close(torch.stack(list(grids.values())).mean(), expected)


def test_a_coarser_scale_of_the_decoder_can_be_compared():
    method = make_method("guidednet", settings={"feature_level": 1})
    batch = make_batch("full", "none")
    view = method.views(batch.images)[0]
    assert view.features.shape == (2, 8, 32, 32, 32)
    assert method(batch, HALFWAY)["mixture_label"].item() > 0
    with pytest.raises(ConfigError, match="no such scale"):
        make_method("guidednet", settings={"feature_level": 9})


# class weights


def test_the_first_class_weights_agree_with_the_official_code(arrays):
    weights, known = rarity_weights(arrays["kt_count_init"].float())
    torch.testing.assert_close(weights, arrays["kt_w_init"], **WEIGHTS)
    assert known.all()


def test_rightly_predicted_voxels_agree_with_the_official_code(arrays):
    labels, annotated = arrays["label_l"].long(), torch.ones(2, CLASSES, dtype=torch.bool)
    counts = voxels_right(arrays["logit_A_l"].argmax(dim=1), labels, annotated)
    assert torch.equal(counts.double(), arrays["kt_count_A"])


def trained_weights(arrays, **settings):
    """A method that has learnt the golden arrays' first class weights, and the loss of one step."""
    method = five_classes(class_weight_decay=0.99, **settings)
    method.class_weights.copy_(arrays["kt_w_init"])
    method.started.fill_(True)
    views = [View(golden_logits(arrays, network), torch.empty(0)) for network in "AB"]
    return method, method.cross_pseudo(views, golden_batch(arrays), HALFWAY)


def test_each_network_keeps_its_own_class_weights(arrays):
    method, _ = trained_weights(arrays)
    method.after_step(HALFWAY)
    torch.testing.assert_close(method.class_weights[0], arrays["kt_w_A"], **WEIGHTS)
    torch.testing.assert_close(method.class_weights[1], arrays["kt_w_B"], **WEIGHTS)


def test_cross_pseudo_supervision_agrees_with_the_official_code(arrays):
    _, loss = trained_weights(arrays)
    torch.testing.assert_close(loss, arrays["loss_kt_all"], **CLOSE)
    inputs = (arrays["logit_A_l"], arrays["logit_A_u"])
    found = torch.autograd.grad(loss, inputs)
    for gradient, name in zip(found, ("l", "u"), strict=True):
        torch.testing.assert_close(gradient, arrays[f"grad_kt_logit_A_{name}"], **GRADIENT)


def test_cross_pseudo_supervision_of_open_voxels_agrees_with_the_official_code(arrays):
    _, loss = trained_weights(arrays, consistency_on="open")
    torch.testing.assert_close(loss, arrays["loss_kt_unl"], **CLOSE)


def test_a_class_that_is_never_right_does_not_dwarf_the_others(arrays):
    """The official weights of that step collapse; here they are those of the other classes alone."""
    counts = arrays["kt_count_zero"].float()
    weights, known = rarity_weights(counts)
    assert known.tolist() == [True, True, True, False, True]
    assert weights.max().item() == weights[4].item() == CLASSES
    assert weights[1] > 3 * arrays["kt_w_zero"][1]
    method = five_classes()
    method.class_weights.copy_(arrays["kt_w_init"])
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    labels[0, 0], labels[0, 1, 0] = 1, 2
    wrong = labels.where(labels != 2, 0)
    full = Batch(labels.float().unsqueeze(1), labels, torch.ones(1, CLASSES, dtype=torch.bool))
    method.started.fill_(True)
    after = method.learn_class_weights([wrong, wrong], full, HALFWAY)
    assert torch.equal(after[:, 2:], method.class_weights[:, 2:])
    assert (after[:, 1] != method.class_weights[:, 1]).all()


def test_a_class_begins_with_the_weight_by_its_labelled_voxels():
    """64 voxels, 8 of the first structure, 2 of the second; the networks find none of them."""
    method = make_method("guidednet", settings={"class_weight_decay": 0.99})
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    labels[0, 0, :2], labels[0, 1, 0, :2] = 1, 2
    batch = Batch(torch.zeros(1, 1, 4, 4, 4), labels, torch.ones(1, 4, dtype=torch.bool))
    nothing = torch.zeros_like(labels)
    weights = method.learn_class_weights([nothing, nothing], batch, HALFWAY)[0]
    assert weights.tolist() == pytest.approx([0, 4 * np.log(54 / 8) / np.log(54 / 2), 4, 1], rel=1e-5)


def test_a_partly_annotated_case_says_nothing_about_the_background():
    labels = torch.tensor([[1, 1, 0, 0, IGNORE]])
    prediction = torch.tensor([[1, 0, 0, 2, 1]])
    full, liver = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[False, True, False]])
    assert voxels_right(prediction, labels, full).tolist() == [3, 1, 0]
    assert voxels_right(prediction, labels, liver).tolist() == [0, 1, 0]


def test_labels_complete_the_pseudo_labels_of_partly_annotated_cases_only():
    method = five_classes()
    labels = torch.tensor([[2, 0], [2, 0], [IGNORE, IGNORE]]).view(3, 2, 1, 1)
    annotated = torch.zeros(3, CLASSES, dtype=torch.bool)
    annotated[0], annotated[1, 2] = True, True
    logits = torch.tensor([0.0, 1.0, 3.0, 0.0, 2.0]).view(1, -1, 1, 1, 1).expand(3, -1, 2, 1, 1).clone()
    logits[:, :, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0]).view(1, -1, 1, 1)
    predictions = [logits.argmax(dim=1)]
    batch = Batch(torch.zeros(3, 1, 2, 1, 1), labels, annotated)
    (found,) = method.pseudo_labels([logits], predictions, batch)
    assert found.flatten(1).tolist() == [[4, 2], [2, 4], [4, 2]]


def test_pseudo_labels_of_background_alone_weigh_nothing():
    method = five_classes()
    method.class_weights[:, 0] = 0
    logits = torch.zeros(2, CLASSES, 2, 2, 2, requires_grad=True)
    views = [View(logits + torch.eye(CLASSES)[0].view(1, -1, 1, 1, 1), torch.empty(0)) for _ in range(2)]
    batch = make_batch("none", "none", size=2)._replace(
        annotated=torch.zeros(2, CLASSES, dtype=torch.bool), annotated_on_host=()
    )
    loss = method.cross_pseudo(views, batch, HALFWAY)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == gradient.abs().max() == 0
    method = five_classes(smallest_background_weight=0.5)
    method.class_weights[:, 0] = 0
    assert method.cross_pseudo(views, batch, HALFWAY).item() > 0


# the whole


def test_the_supervised_loss_agrees_with_the_official_code(arrays):
    loss = five_classes().supervised(golden_logits(arrays, "A"), golden_batch(arrays))
    torch.testing.assert_close(loss, arrays["loss_sup_A"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, arrays["logit_A_l"])
    torch.testing.assert_close(gradient, arrays["grad_sup_logit_A_l"], **GRADIENT)


def test_the_ramp_is_the_published_one(arrays):
    method = five_classes()
    found = [method.config.weight(Progress(int(step), 20000)) for step in arrays["ramp_iter"]]
    assert found == pytest.approx(arrays["ramp_lambda_u"].tolist(), rel=1e-6)


def test_both_networks_of_a_model_can_predict():
    for choice in GuidedNet.classifiers:
        predictor = make_method("guidednet", settings={"classifier": choice}).predictor()
        assert isinstance(predictor, TwoNetworks)
        assert predictor.classifier == choice


def test_the_networks_start_differently():
    method = make_method("guidednet")
    first, second = (next(network.parameters()) for network in (method.first, method.second))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
