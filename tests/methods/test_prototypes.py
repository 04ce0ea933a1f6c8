"""Prototypes against the official code's arrays, by hand, and by what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from labelwise.components.batches import as_pixels
from labelwise.methods.ltuda.prototypes import Clusters, PrototypeLosses, Prototypes, share_evenly, unit
from labelwise.types import IGNORE

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
BANKS = ("labeled", "unlabeled")


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in golden("ltuda").items()}


def labels_of(array):
    array = array.long().flatten()
    return array.masked_fill(array < 0, IGNORE)


@pytest.fixture
def published(arrays):
    """The prototypes of the golden arrays, in training mode."""
    module = Prototypes(64, 5)
    weights = {
        "first": "head_conv1", "norm": "head_bn", "second": "head_conv2", "embedding_norm": "feat_norm",
        "score_norm": "mask_norm",
    }  # fmt: skip
    for mine, theirs in weights.items():
        for kind in ("weight", "bias"):
            getattr(getattr(module, mine), kind).data.copy_(arrays[f"proto_{theirs}_{kind}"])
    module.remember(torch.stack([arrays[f"proto_init_{bank}"].flatten(0, 1) for bank in BANKS]))
    return module


def learn(module, arrays, features):
    owners = torch.stack([labels_of(arrays[f"proto_mask_{bank}"]) for bank in BANKS], dim=1)
    labels = labels_of(arrays["proto_pixel_target"])
    embeddings = module.embed(as_pixels(features))
    losses, moved = module.learn(embeddings, module.banks, labels, owners, 0.999, "argmax")
    return embeddings, owners, losses, moved


def test_embeddings_scores_and_contrast_agree_with_the_official_code(published, arrays):
    embeddings, owners, _, _ = learn(published, arrays, arrays["proto_feat"])
    torch.testing.assert_close(embeddings, arrays["proto_embed"], **CLOSE)
    similarities = published.similarities(embeddings, published.banks)
    clusters = published.cluster(similarities, owners)
    target = clusters.owners * 5 + clusters.shares.argmax(dim=2)
    scores = published.scores(similarities)
    for number, bank in enumerate(BANKS):
        torch.testing.assert_close(similarities[:, number], arrays[f"proto_contrast_logits_{bank}"], **CLOSE)
        expected = as_pixels(arrays[f"proto_seg_{bank}"])
        torch.testing.assert_close(scores[:, number], expected, rtol=1e-4, atol=1e-5)
        found = torch.where(clusters.owned[:, number], target[:, number], -1)
        assert torch.equal(found, arrays[f"proto_contrast_target_{bank}"].long())


def test_the_banks_move_as_in_the_official_code(published, arrays):
    before = published.banks.clone()
    _, _, _, moved = learn(published, arrays, arrays["proto_feat"])
    expected = torch.stack([arrays[f"proto_updated_{bank}"].flatten(0, 1) for bank in BANKS])
    torch.testing.assert_close(moved, expected, rtol=0, atol=2e-7)
    assert torch.equal(published.banks, before), "banks change by `remember` only"
    torch.testing.assert_close(moved[0, 10:15], before[0, 10:15])  # class 2 is absent in this bank


def test_the_losses_and_their_gradient_agree_with_the_official_code(published, arrays):
    features = arrays["proto_feat"].clone().requires_grad_()
    _, _, losses, _ = learn(published, arrays, features)
    for number, bank in enumerate(BANKS):
        for mine, theirs in (("cross_entropy", "ce"), ("contrast", "ppc"), ("distance", "ppd")):
            found = getattr(losses, mine)[number]
            torch.testing.assert_close(found, arrays[f"proto_{theirs}_{bank}"], **CLOSE)
    per_bank = losses.cross_entropy + 0.01 * losses.contrast + 0.001 * losses.distance
    torch.testing.assert_close(per_bank, torch.stack([arrays[f"proto_loss_{b}"] for b in BANKS]), **CLOSE)
    (gradient,) = torch.autograd.grad(per_bank.sum(), features)
    torch.testing.assert_close(gradient, arrays["proto_loss_sum_grad_feat"], rtol=1e-4, atol=1e-7)


def test_contrast_and_distance_agree_with_the_official_code_for_given_targets(arrays):
    logits = arrays["ppc_logits"].clone().requires_grad_()
    target = arrays["ppc_target"].long()
    module = Prototypes(4, 5)
    owned = (target >= 0).unsqueeze(1)
    classes = (target.clamp_min(0) // 5).unsqueeze(1)
    rows = logits.unflatten(1, (5, 5)).gather(1, classes.unsqueeze(2).expand(-1, 1, 5))
    shares = F.one_hot(target.clamp_min(0) % 5, 5).float().unsqueeze(1)
    clusters = Clusters(rows, classes, owned, shares)
    scores = torch.zeros(50, 1, 5)
    losses = module._losses(logits.unsqueeze(1), scores, torch.zeros(50).long(), clusters)
    torch.testing.assert_close(losses.contrast[0], arrays["ppc_value"], **CLOSE)
    torch.testing.assert_close(losses.distance[0], arrays["ppd_value"], **CLOSE)
    (gradient,) = torch.autograd.grad((0.01 * losses.contrast + 0.001 * losses.distance).sum(), logits)
    torch.testing.assert_close(gradient, arrays["ppc001_ppd0001_grad"], rtol=1e-4, atol=1e-8)


def test_the_clustering_agrees_with_the_official_code(arrays):
    similarities = arrays["sink_sim"].unsqueeze(1)
    classes = torch.zeros(37, 1, dtype=torch.int64)
    shares = share_evenly(similarities, classes, torch.ones(1, 1, 37))[:, 0]
    torch.testing.assert_close(shares, arrays["sink_assign"], rtol=1e-4, atol=1e-6)
    assert torch.equal(shares.argmax(dim=1), arrays["sink_index"].long())


def test_classes_are_clustered_as_if_each_were_alone():
    torch.manual_seed(0)
    module = Prototypes(8, 3, banks=1, per_class=4)
    embeddings = F.normalize(torch.randn(60, 8), dim=1)
    owners = torch.arange(60).remainder(4).masked_fill(torch.arange(60) % 4 == 3, IGNORE).unsqueeze(1)
    similarities = module.similarities(embeddings, module.banks)
    together = module.cluster(similarities, owners).shares[:, 0]
    torch.testing.assert_close(together.sum(dim=1), torch.ones(60))
    for number in range(3):
        rows = owners[:, 0] == number
        own = similarities[rows, :, number * 4 : number * 4 + 4]
        alone = share_evenly(own, torch.zeros(15, 1, dtype=torch.int64), torch.ones(1, 1, 15))
        torch.testing.assert_close(together[rows], alone[:, 0])


def test_pixels_without_an_owner_move_nothing_and_cost_nothing():
    torch.manual_seed(0)
    module = Prototypes(4, 3)
    features = torch.randn(20, 4, requires_grad=True)
    nobody = torch.full((20, 2), IGNORE)
    losses, moved = module.learn(
        module.embed(features), module.banks, torch.full((20,), IGNORE), nobody, 0.5, "argmax"
    )
    torch.testing.assert_close(moved, module.banks)
    assert all(part.tolist() == [0, 0] for part in losses)
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in losses), features)
    assert gradient.abs().max() == 0


def test_only_rightly_classified_pixels_move_a_prototype():
    module = Prototypes(2, 2, banks=1, per_class=1)
    module.remember(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    near_first, near_second = [0.8, 0.6], [0.6, 0.8]
    embeddings = torch.tensor([near_first, near_second, near_first])
    owners = torch.tensor([0, 0, 1]).unsqueeze(1)  # the second and the third pixel are classified wrongly
    _, moved = module.learn(embeddings, module.banks, torch.zeros(3).long(), owners, 0.5, "argmax")
    expected = F.normalize(torch.tensor([[0.9, 0.3], [0.0, 1.0]]), dim=1)
    torch.testing.assert_close(moved[0], expected)


def test_a_random_assignment_keeps_the_nearest_prototype_in_two_of_five_cases():
    """exp(1) / (exp(1) + 4) = 0.40 for a certain share among five."""
    torch.manual_seed(0)
    shares = F.one_hot(torch.zeros(4000, 1).long(), 5).float()
    chosen = Prototypes(2, 2)._assigned(shares, "gumbel_prob")
    assert (chosen == 0).float().mean().item() == pytest.approx(0.40, abs=0.03)
    assert Prototypes(2, 2)._assigned(shares, "argmax").max() == 0


def test_classifying_an_image_takes_the_best_prototype_of_each_class():
    torch.manual_seed(0)
    module = Prototypes(6, 3).eval()
    features = torch.randn(2, 6, 4, 5)
    logits = module.classify(features, 1)
    embeddings = module.embed(as_pixels(features))
    best = (embeddings @ module.banks[1].T).view(2, 4, 5, 3, 5).amax(dim=4)
    torch.testing.assert_close(logits, module.score_norm(best).movedim(-1, 1))


def test_banks_are_unit_vectors_without_a_gradient():
    module = Prototypes(6, 3)
    torch.testing.assert_close(module.banks.norm(dim=2), torch.ones(2, 15))
    module.remember(3 * module.banks)
    torch.testing.assert_close(module.banks.norm(dim=2), torch.ones(2, 15))
    assert "banks" in dict(module.named_buffers())
    assert PrototypeLosses._fields == ("cross_entropy", "contrast", "distance")


def test_under_bf16_the_losses_and_the_banks_are_float32():
    torch.manual_seed(0)
    module = Prototypes(16, 3)
    features, labels = torch.randn(200, 16), torch.randint(0, 3, (200,))
    owners = labels.unsqueeze(1).expand(-1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = module.embed(features)
        losses, moved = module.learn(embeddings, module.banks, labels, owners, 0.9, "argmax")
    assert {part.dtype for part in (*losses, moved, embeddings)} == {torch.float32}
    exact, _ = module.learn(module.embed(features), module.banks, labels, owners, 0.9, "argmax")
    torch.testing.assert_close(losses.contrast, exact.contrast, rtol=0.02, atol=0.02)


def test_unit_rows_and_their_gradient_are_those_of_a_division_by_the_length():
    torch.manual_seed(0)
    rows = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit(rows), F.normalize(rows, dim=1))
    assert torch.autograd.gradcheck(unit, (rows,))
    assert unit(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
