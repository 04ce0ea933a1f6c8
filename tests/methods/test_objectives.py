"""Assembled objectives: every view, every network and every weight of the specification is in the sum.

Those of the other methods stand in `test_objectives_of_*.py`, written out by hand in float64.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SPACE, make_batch, make_method
from labelwise.methods import METHODS
from labelwise.methods.dkuxnet.view_contrast import channel_contrast
from labelwise.methods.ltuda import cda
from labelwise.methods.ltuda.prototypes import as_pixels
from labelwise.methods.pl_seg.method import DifficultyHistory
from labelwise.types import Progress

HALFWAY = Progress(50, 100)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def bce(logits, truth, known):
    """Sum over the cases of the mean over all voxels, mean over the structures that are known anywhere: section 4."""
    per_voxel = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none") * known
    asked = known.flatten(2).any(dim=2).any(dim=0)
    return per_voxel.flatten(2).mean(dim=2).sum(dim=0)[asked].mean()


def one_hot(completed):
    return torch.stack([completed == structure for structure in range(1, SPACE.num_classes)], dim=1)


def seen_views(method, batch, seed=0):
    torch.manual_seed(seed)
    return cda.views(batch, method.teacher, method.config)


@pytest.fixture
def partial_batch():
    return make_batch("full", "partial", "partial", dims=2, size=16)


def test_ltuda_first_stage_is_one_weak_and_two_strong_views_with_weight_one(partial_batch):
    method = make_method("ltuda_cda", dims=2, settings={"known_negatives": False})
    method.student = nn.Conv2d(1, 3, 1)
    weak, *strong = seen_views(method, partial_batch)
    assert len(strong) == 2
    supervised = bce(method.student(weak.images), weak.targets.truth, weak.targets.known)
    pseudo = torch.zeros(())
    for view in strong:
        logits = method.student(view.images)
        supervised = supervised + bce(logits, view.targets.truth, view.targets.known)
        truth = one_hot(view.targets.completed)
        pseudo = pseudo + bce(logits, truth, torch.ones_like(truth))
    torch.manual_seed(0)
    terms = method(partial_batch, HALFWAY)
    assert list(terms) == ["supervised", "pseudo"]
    torch.testing.assert_close(terms["supervised"], supervised, **CLOSE)
    torch.testing.assert_close(terms["pseudo"], pseudo, **CLOSE)


def test_ltuda_second_stage_adds_both_banks_on_both_strong_views(partial_batch):
    """L_proto = CE + 0.01 contrast + 0.001 distance, for each bank and view; the second view sees moved banks."""
    method = make_method("ltuda", dims=2, settings={"known_negatives": False, "prototype_momentum": 0.5})
    weak, *strong = seen_views(method, partial_batch)
    student, prototypes = method.student, method.student.prototypes
    images = torch.cat([weak.images, *(view.images for view in strong)])
    first, *parts = student.features(images).chunk(3)
    supervised = bce(student.head(first), weak.targets.truth, weak.targets.known)
    pseudo, per_bank, banks = torch.zeros(()), torch.zeros(2), prototypes.banks.clone()
    for part, view in zip(parts, strong, strict=True):
        truth = one_hot(view.targets.completed)
        pseudo = pseudo + bce(student.head(part), truth, torch.ones_like(truth))
        labels = view.targets.completed.flatten()
        embeddings, owners = prototypes.embed(as_pixels(part)), _owners(view.targets)
        losses, banks = prototypes.learn(embeddings, banks, labels, owners, 0.5, "argmax")
        per_bank = per_bank + losses.cross_entropy + 0.01 * losses.contrast + 0.001 * losses.distance
    torch.manual_seed(0)
    terms = method(partial_batch, HALFWAY)
    torch.testing.assert_close(terms["supervised"], supervised, **CLOSE)
    torch.testing.assert_close(terms["pseudo"], pseudo, **CLOSE)
    torch.testing.assert_close(terms["labelled_prototype"], per_bank[0], **CLOSE)
    torch.testing.assert_close(terms["unlabelled_prototype"], per_bank[1], **CLOSE)
    assert per_bank.min() > 1


def _owners(targets):
    """Section 3: annotated structures feed the labelled bank, guessed ones the other, background both."""
    completed, guessed = targets.completed.flatten(), targets.guessed.flatten()
    annotated = (completed > 0) & (completed != guessed)
    labelled = torch.where(annotated | (completed == 0), completed, 255)
    return torch.stack([labelled, torch.where(annotated, 255, completed)], dim=1)


def test_pl_seg_has_no_upper_bound_on_the_weight_of_a_hard_class():
    """Mean losses 0.9, 0.1, 0.05 and 0.05, their mean 0.275: weights 3.27, then the floor."""
    history = DifficultyHistory(1, 4, 5)
    history.rows[0, 0] = torch.tensor([0, 0.9, 0.1, 0.05, 0.05])
    assert history.weights(0.5)[0].tolist() == pytest.approx([0.5, 0.9 / 0.275, 0.5, 0.5, 0.5])


def test_guidednet_weighs_its_mixture_by_three_tenths_and_sums_both_networks():
    method = make_method("guidednet", settings={"voxel_step": 1})
    batch = make_batch("full", "partial", "none")
    views = method.views(batch.images)
    ramp = 0.1 * HALFWAY.ramp(1.5)
    mixture = method.mixture(views, batch, ramp)
    terms = method(batch, HALFWAY)
    for name, term in mixture.items():
        torch.testing.assert_close(terms[f"mixture_{name}"], 0.3 * term, **CLOSE)
    assert min(term.item() for term in mixture.values()) > 0
    supervised = sum(method.supervised(view.logits, batch) for view in views)
    torch.testing.assert_close(terms["supervised"], supervised, **CLOSE)
    twin = make_method("guidednet", settings={"voxel_step": 1})
    crossed = twin.cross_pseudo(views, batch, HALFWAY)
    torch.testing.assert_close(terms["cross_pseudo"], ramp * crossed, **CLOSE)


def test_dkuxnet_is_segmentation_queries_and_two_consistencies():
    """L_seg + L_qd + r(t) (0.1 L_segc + 0.1 L_qdc), r = exp(-5 (1 - 40 / 40)^2) = 1 in the middle of the training."""
    settings = {"queries": 8, "layers_per_level": 1}
    method, batch = make_method("dkuxnet", settings=settings), make_batch("full", "none")
    torch.manual_seed(0)
    seen = method.look(batch)
    torch.manual_seed(0)
    terms = method(batch, HALFWAY)
    labels, annotated = batch.labels.repeat(2, 1, 1, 1), batch.annotated.repeat(2, 1)
    expected = {
        "supervised": method.segmentation_loss(seen.logits[0], labels, annotated),
        "query": method.query_loss(seen.groups, labels, annotated),
        "segmentation_consistency": 0.1
        * channel_contrast(*seen.logits[0].softmax(dim=1).chunk(2), temperature=0.5),
        "query_consistency": 0.1 * channel_contrast(*seen.groups[0].chunk(2), temperature=0.5),
    }
    assert len(seen.logits) == 1
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, **CLOSE)
        assert term.item() > 0


def test_every_registered_method_has_a_test_of_its_whole_objective():
    tests = "".join(
        file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_objectives*.py")
    )
    assert [name for name in METHODS if f'"{name}"' not in tests] == []
