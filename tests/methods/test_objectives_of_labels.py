"""Assembled objectives of the methods that learn from labels alone, each written out from its specification."""

from __future__ import annotations

import pytest
import torch
from by_hand import (
    CLASSES,
    FULL,
    LIVER,
    LIVER_AND_SPLEEN,
    NONE,
    STRUCTURES,
    a_batch,
    a_method,
    binary_entropy,
    dice_and_background,
    float64,
    marginal_entropy,
    mean,
    overlap,
    possible,
    require_objective,
    structure_dice,
    supervision,
)
from torch.nn import functional as F

from labelwise.types import IGNORE

BATCH = a_batch(FULL, LIVER, LIVER_AND_SPLEEN)


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


def test_naive_reads_everything_that_is_not_labelled_as_background():
    def expected(method, batch):
        everything = torch.ones_like(batch.annotated)
        logits = method.network(batch.images)
        return {"supervised": supervision(logits, batch.labels, everything, squared=False, pooled=False)}

    require_objective(a_method("naive"), BATCH, expected)


def test_supervised_is_half_of_cross_entropy_and_dice_at_every_scale():
    """Scales weigh 1, 1/2, ..., divided by their sum; labels are read at the voxels of the coarser grid."""
    settings = {"width": 4, "blocks": (1, 1, 2), "deep_supervision": True}

    def expected(method, batch):
        scales = method.network.at_all_scales(batch.images)
        assert len(scales) == 2
        losses = [
            supervision(logits, batch.labels[:, ::step, ::step], batch.annotated, squared=False, pooled=False)
            for logits, step in zip(scales, (1, 2), strict=True)
        ]
        return {"supervised": (losses[0] + losses[1] / 2) / 1.5}

    require_objective(a_method("supervised", net="residual_unet", net_settings=settings), BATCH, expected)


@pytest.mark.parametrize(("form", "squared"), [("case", True), ("batch", False)])
def test_supervised_reads_its_settings_of_the_dice(form, squared):
    def expected(method, batch):
        logits = method.network(batch.images)
        pooled = form == "batch"
        return {
            "supervised": supervision(logits, batch.labels, batch.annotated, squared=squared, pooled=pooled)
        }

    require_objective(a_method("supervised", squared_dice=squared, dice_pooling=form), BATCH, expected)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_target_adaptive_is_the_marginal_cross_entropy_and_the_dice_that_is_asked_for(weight):
    def expected(method, batch):
        logits = method.network(batch.images)
        dice = structure_dice(logits, batch.labels, batch.annotated, squared=False, pooled=False)
        return {"supervised": marginal_entropy(logits, batch.labels, batch.annotated) + weight * dice}

    require_objective(a_method("target_adaptive", dice_weight=weight), BATCH, expected)


def test_marginal_exclusion_lowers_twice_the_overlap_with_what_excludes_a_structure():
    """L = MCE + MD + 2 ExDice; the last one of partly annotated cases, over all classes; complete cases count as 0."""

    def expected(method, batch):
        logits = method.network(batch.images)
        half = supervision(logits, batch.labels, batch.annotated, squared=False, pooled=False)
        excluded = []
        for p, labels, annotated in zip(logits.softmax(dim=1), batch.labels, batch.annotated, strict=True):
            known = labels != IGNORE
            per_structure = []
            for structure in STRUCTURES:
                wrong = (labels != structure) if annotated[structure] else (labels != 0)
                inside, said = (wrong & known)[known].double(), p[structure][known]
                per_structure.append(1 - overlap(said, inside, above=1e-5, below=1e-5))
            excluded.append(mean(per_structure) * (not annotated[1:].all()))
        return {"supervised": 2 * half, "exclusion": 2 * mean(excluded)}

    require_objective(a_method("marginal_exclusion"), BATCH, expected)


def test_leaf_dice_counts_only_voxels_of_one_possible_class_and_adds_the_cross_entropy():
    """1 - mean over all classes of 2 sum p y / (sum p^2 + sum y + s), over the voxels where the class is decided."""

    def expected(method, batch):
        logits = method.network(batch.images)
        sets = possible(batch.labels, batch.annotated)
        cases = []
        for p, allowed in zip(logits.softmax(dim=1), sets, strict=True):
            alone = allowed.sum(dim=0) == 1
            losses = []
            for name in range(CLASSES):
                decided = ~allowed[name] | alone
                true = (allowed[name] & alone)[decided].double()
                losses.append(overlap(p[name][decided], true, above=0, below=1e-5, squared=True))
            cases.append(mean(losses))
        return {"supervised": mean(cases) + marginal_entropy(logits, batch.labels, batch.annotated)}

    require_objective(a_method("leaf_dice"), BATCH, expected)


def test_pipo_fan_weighs_its_scales_by_case_and_trains_each_of_them_by_half():
    """TAL of the weighted sum + 0.5 mean over the scales of TAL; g = mean + max of the attention."""

    def expected(method, batch):
        maps = method.network.maps(batch.images)
        attention = method.network.weighting.attention(torch.cat(maps)).chunk(len(maps))
        scores = torch.stack([a.flatten(1).mean(dim=1) + a.flatten(1).amax(dim=1) for a in attention])
        weights = scores.exp() / scores.exp().sum(dim=0)
        fused = sum(w.view(-1, 1, 1, 1) * a for w, a in zip(weights, maps, strict=True))
        losses = [marginal_entropy(logits, batch.labels, batch.annotated) for logits in [fused, *maps]]
        return {"supervised": losses[0], "deep_supervision": 0.5 * mean(losses[1:])}

    require_objective(a_method("pipo_fan"), BATCH, expected, rtol=1e-6)


def asked_pairs(batch):
    return [
        (case, structure)
        for case, row in enumerate(batch.annotated.tolist())
        for structure in STRUCTURES
        if row[structure]
    ]


def pair_terms(answer, pairs, batch, *, above, below, squared):
    """Of pairs of a case and a structure: mean Dice of those with a voxel, and mean cross-entropy of all."""
    dice, entropy = [], []
    for case, structure in pairs:
        known = batch.labels[case] != IGNORE
        logits, true = answer(case, structure)[known], (batch.labels[case] == structure)[known]
        entropy.append(binary_entropy(logits, true).mean())
        if true.any():
            dice.append(overlap(logits.sigmoid(), true.double(), above=above, below=below, squared=squared))
    return mean(dice), mean(entropy)


def absence(answer, pairs, batch):
    """Of structures that a case does not annotate: mean cross-entropy of "no" where another structure is labelled."""
    losses = []
    for case, structure in pairs:
        labelled = (batch.labels[case] > 0) & (batch.labels[case] != IGNORE)
        logits = answer(case, structure)[labelled]
        losses.append(binary_entropy(logits, torch.zeros_like(logits, dtype=torch.bool)).mean())
    return mean(losses)


def test_dodnet_asks_each_annotated_structure_and_denies_as_many_others():
    """Dice (1 below the line) and cross-entropy, means over the pairs; then the mean over the denied pairs."""

    def expected(method, batch):
        drawn = []
        for case, row in enumerate(batch.annotated.tolist()):
            others = [structure for structure in STRUCTURES if not row[structure]]
            order = torch.randperm(len(others))[: sum(row[1:])].tolist()
            drawn += [(case, others[place]) for place in order]
        every = method.network(batch.images)

        def answer(case, structure):
            return every[case, structure - 1]

        dice, entropy = pair_terms(answer, asked_pairs(batch), batch, above=0, below=1, squared=False)
        return {"supervised": dice + entropy + absence(answer, drawn, batch)}

    require_objective(a_method("dodnet"), BATCH, expected)


@pytest.mark.parametrize("warm_up", [False, True])
def test_conemos_asks_pairs_denies_one_and_keeps_its_modulation_small(warm_up):
    """Dice with squares + cross-entropy + denial + 1e-5 ||projections||^2; in the warm-up (z -+ 5)^2 instead."""
    batch = a_batch(FULL, LIVER_AND_SPLEEN)  # one pair only can be denied: the pancreas of the second case

    def expected(method, batch):
        every = method.network(batch.images)

        def answer(case, structure):
            return every[case, structure - 1]

        projections = method.network.film.projections
        size = (projections.weight**2).sum() + (projections.bias**2).sum()
        if warm_up:
            told = [
                ((answer(case, structure) - torch.where(batch.labels[case] == structure, 5.0, -5.0)) ** 2)[
                    batch.labels[case] != IGNORE
                ].mean()
                for case, structure in asked_pairs(batch)
            ]
            labelled = (batch.labels[1] > 0) & (batch.labels[1] != IGNORE)
            supervised = mean(told) + ((answer(1, 3) + 5) ** 2)[labelled].mean()
        else:
            dice, entropy = pair_terms(
                answer, asked_pairs(batch), batch, above=1e-7, below=1e-7, squared=True
            )
            supervised = dice + entropy + absence(answer, [(1, 3)], batch)
        return {"supervised": supervised, "film_decay": 1e-5 * size}

    settings = {"pairs_per_batch": 9, "warm_up_fraction": 0.5 * warm_up}
    require_objective(a_method("conemos", **settings), batch, expected, rtol=1e-5)


def test_multi_talent_sums_over_cases_and_structures_at_every_scale():
    """Scales weigh 2^-i over their sum; cross-entropies are sums over pairs, the Dice a sum of batch Dices."""

    def expected(method, batch):
        features = method.network.decoder(method.network.encoder(batch.images))[::-1]
        heads = [method.network.head, *method.coarser_heads]
        total, weights = 0.0, [2.0**-level for level in range(len(heads))]
        assert len(heads) == len(features) - 1
        for weight, head, scale in zip(weights, heads, features, strict=False):
            logits, step = head(scale), batch.labels.shape[1] // scale.shape[2]
            labels = batch.labels[:, ::step, ::step]
            cost = 0.0
            for structure in STRUCTURES:
                said, true = [], []
                for case in range(len(labels)):
                    known = labels[case] != IGNORE
                    z, y = logits[case, structure - 1], labels[case] == structure
                    if batch.annotated[case, structure]:
                        cost = cost + binary_entropy(z[known], y[known]).mean()
                        said.append(z[known].sigmoid())
                        true.append(y[known].double())
                    else:
                        another = known & (labels[case] > 0)
                        cost = cost + binary_entropy(z[another], y[another]).mean()
                if torch.cat(true).any():
                    cost = cost + overlap(torch.cat(said), torch.cat(true), above=0, below=1e-7)
            total = total + weight / sum(weights) * cost
        return {"supervised": total}

    require_objective(a_method("multi_talent"), BATCH, expected)


def test_bcp_pretraining_pastes_a_box_of_one_annotated_case_into_another():
    """Box of two thirds of every side; half of cross-entropy and Dice by case, background included."""
    batch = a_batch(FULL, LIVER, NONE, LIVER_AND_SPLEEN, FULL)

    def expected(method, batch):
        outer, inner = [0, 1], [3, 4]
        low = [int(place * (32 - 21)) for place in torch.rand(2).tolist()]
        box = torch.zeros(32, 32, dtype=torch.bool)
        box[low[0] : low[0] + 21, low[1] : low[1] + 21] = True
        images = torch.where(box, batch.images[inner], batch.images[outer])
        logits = method.student(images)
        # A voxel is annotated as the case it came from, so inside and outside are two cases with the same logits ...
        p = logits.softmax(dim=1)
        entropies, dices = [], []
        for place, (out, inn) in enumerate(zip(outer, inner, strict=True)):
            labels = torch.where(box, batch.labels[inn], batch.labels[out])
            sets = torch.where(
                box, *(possible(batch.labels[[one]], batch.annotated[[one]])[0] for one in (inn, out))
            )
            known = labels != IGNORE
            entropies.append(-(p[place] * sets).sum(dim=0)[known].log().mean())
            # ... whose sums are added up for the Dice of each class.
            losses = []
            for name in range(CLASSES):
                asked = torch.where(box, batch.annotated[inn, name], batch.annotated[out, name]) & known
                said, true = p[place, name], labels == name
                if name == 0:
                    hidden = torch.stack(
                        [
                            ~torch.where(
                                box, batch.annotated[inn, structure], batch.annotated[out, structure]
                            )
                            for structure in STRUCTURES
                        ]
                    )
                    said, asked = said + (p[place, 1:] * hidden).sum(dim=0), known
                if (true & asked).any():
                    losses.append(overlap(said[asked], true[asked].double(), above=1e-5, below=1e-5))
            dices.append(mean(losses))
        return {"supervised": (mean(entropies) + mean(dices)) / 2}

    require_objective(a_method("bcp_pretraining"), batch, expected)


def test_dice_with_background_by_hand_is_that_of_the_goldens(golden):
    """The plain losses of these tests, against the official BCP code: they are not just our own said twice."""
    arrays = golden("bcp")
    logits = torch.from_numpy(arrays["pre_logits"]).double()
    labels = torch.from_numpy(arrays["pre_lab"]).long()
    two = F.pad(logits, (0, 0, 0, 0, 0, 0, 0, CLASSES - 2), value=-200.0)  # the other classes have no share
    everything = torch.ones(len(labels), CLASSES, dtype=torch.bool)
    loss = marginal_entropy(two, labels, everything)
    loss = loss + dice_and_background(two, labels, everything, squared=False, pooled=False)
    assert loss.item() / 2 == pytest.approx(float(arrays["pre_loss"]), rel=1e-5)
