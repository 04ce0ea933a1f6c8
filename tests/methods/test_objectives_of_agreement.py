"""Assembled objectives of methods whose answers must agree with each other or with a memory: each from its paper."""

from __future__ import annotations

import copy
import math
from itertools import pairwise, permutations

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
    completed,
    dice_and_background,
    float64,
    is_open,
    marginal_entropy,
    mean,
    overlap,
    possible,
    require_objective,
    rise,
    rows,
    structure_dice,
    supervision,
    surprise,
    unlabelled,
)
from scipy import ndimage
from torch.nn import functional as F

from labelwise.components.batches import cut_boxes
from labelwise.components.dual_task import TARGET
from labelwise.methods.arco.pretraining import perturbed
from labelwise.methods.arco.stratified import Raster, draw
from labelwise.methods.caml.case_memory import Entries, case_numbers
from labelwise.types import IGNORE, Progress

BATCH = a_batch(FULL, LIVER, LIVER_AND_SPLEEN, NONE)


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


# networks that teach each other


def test_cps_is_both_supervised_terms_and_each_network_against_the_other_ones_classes():
    """sum of 1/2 (CE + Dice) + 0.1 G (CE(z_1, y_2) + CE(z_2, y_1)), over open voxels of unlabelled cases."""

    def expected(method, batch):
        answers, chosen = [method.first(batch.images), method.second(batch.images)], unlabelled(batch)
        labels, annotated = rows(batch.labels, chosen), rows(batch.annotated, chosen)
        where = is_open(labels, annotated)
        supervised, crossed = 0.0, 0.0
        for mine, theirs in (answers, answers[::-1]):
            dice = dice_and_background(mine, batch.labels, batch.annotated, squared=True, pooled=True)
            supervised = supervised + (marginal_entropy(mine, batch.labels, batch.annotated) + dice) / 2
            opinion = rows(theirs, chosen).detach()
            target = opinion.masked_fill(~possible(labels, annotated), -torch.inf).argmax(dim=1)
            crossed = crossed + surprise(rows(mine, chosen), target)[where].mean()
        return {"supervised": supervised, "cross_pseudo": 0.1 * rise(31, 100) * crossed}

    require_objective(a_method("cps"), BATCH, expected)


def mutual(answers, batch, weight):
    """Sum over ordered pairs of mean (p^a - s^b)^2, per voxel half the sum over the classes; gradient through both."""
    sets = possible(batch.labels, batch.annotated)
    everywhere = batch.annotated[:, 1:].all(dim=1)[:, None, None]
    where = is_open(batch.labels, batch.annotated) | everywhere
    sets = sets | everywhere[:, None]
    total = 0.0
    for one, other in permutations(answers, 2):
        sharp = (other.softmax(dim=1) * sets) ** 10
        sharp = sharp / sharp.sum(dim=1, keepdim=True)
        total = total + (((one.softmax(dim=1) - sharp) ** 2).sum(dim=1) / 2)[where].mean()
    return weight * total


def summed_supervision(answers, batch):
    return sum(
        structure_dice(z, batch.labels, batch.annotated, squared=False, pooled=True, smooth=1e-8)
        + marginal_entropy(z, batch.labels, batch.annotated)
        for z in answers
    )


@pytest.mark.parametrize(("name", "decoders"), [("mc_net", 2), ("mc_net_plus", 3)])
def test_mc_net_is_half_of_all_supervision_and_every_ordered_pair_of_decoders(name, decoders):
    """1/2 sum (Dice + CE) + G((i + 1) / 40) sum over a != b; the ramp is 0.4 of the training."""

    def expected(method, batch):
        features = method.network.encoder(batch.images)
        answers = [
            head(decoder(features)[-1])
            for head, decoder in zip(method.network.heads, method.network.decoders, strict=True)
        ]
        assert len(answers) == decoders
        return {
            "supervised": 0.5 * summed_supervision(answers, batch),
            "consistency": mutual(answers, batch, rise(32, 40)),
        }

    require_objective(a_method(name), BATCH, expected)


def test_caml_adds_a_twentieth_of_the_cross_entropy_of_similarities_to_remembered_voxels():
    """Memory: what both networks get right where it is certain; rows: open voxels on which they agree; T = 0.1."""

    def expected(method, batch):
        networks = [method.network, method.auxiliary]
        features = [network.decoder(network.encoder(batch.images))[-1] for network in networks]
        answers = [network.head(f) for network, f in zip(networks, features, strict=True)]
        said = [z.argmax(dim=1) for z in answers]
        pixels = [f.movedim(1, -1) for f in features]
        # a. the memory
        complete_case = batch.annotated[:, 1:].all(dim=1)[:, None, None]
        sure = (batch.labels != IGNORE) & ((batch.labels > 0) | complete_case)
        right = sure & (said[0] == batch.labels) & (said[1] == batch.labels)
        room = method.memory.vectors.shape[2]
        vectors, counts = torch.zeros(4, CLASSES, room, 32), torch.zeros(4, CLASSES, dtype=torch.int64)
        torch.rand(4, 1, 16 * 16)  # the order of what a case offers, which has room for all of it
        with torch.no_grad():
            for case in range(4):
                for name in range(CLASSES):
                    here = right[case] & (batch.labels[case] == name)
                    counts[case, name] = count = int(here.sum())
                    projected = [
                        embedding.projection(f[case][here])
                        for embedding, f in zip(method.embeddings, pixels, strict=True)
                    ]
                    vectors[case, name, :count] = sum(projected) / 2
        assert counts.sum() > 20
        labelled = batch.annotated[:, 1:].any(dim=1)
        method.memory.write(Entries(case_numbers(batch.case_ids, counts.device), vectors, counts, labelled))
        columns = method.memory.draw(1024, 1)
        columns = columns.vectors[columns.filled]
        # c. the rows
        best = [completed(z.softmax(dim=1), batch.labels, batch.annotated) for z in answers]
        agree = (best[0].argmax(dim=1) == best[1].argmax(dim=1)) & is_open(batch.labels, batch.annotated)
        agree[0] = False  # the complete case
        for name in range(CLASSES):
            if (agree & (best[0].argmax(dim=1) == name)).sum() == 1:
                agree &= best[0].argmax(dim=1) != name
        # d. to f.
        profiles = []
        for embedding, f in zip(method.embeddings, pixels, strict=True):
            chosen = f[agree]
            everyone = torch.ones(len(chosen), dtype=torch.bool)
            projected = embedding.prediction(embedding.projection(chosen, everyone), everyone)
            profiles.append((projected @ columns.T / 0.1).softmax(dim=1))
        crossed = -(profiles[1] * (profiles[0] + 1e-8).log()).sum(dim=1).mean()
        return {
            "supervised": 0.5 * summed_supervision(answers, batch),
            "consistency": mutual(answers, batch, rise(32, 40)),
            "correlation": 0.05 * rise(32, 40) * crossed,
        }

    settings = {"memory_cases": 4, "memory_per_case": 256, "memory_columns": 1024, "memory_min": 1}
    batch = a_batch(FULL, LIVER, LIVER_AND_SPLEEN, NONE, size=16)
    method = a_method("caml", **settings)
    for network in (method.network, method.auxiliary):  # both are often right, and agree, from the start
        network.head.convolution.bias.data[:2] += 1
    require_objective(method, batch, expected, rtol=1e-6)


# one network with several answers


def test_urpc_pulls_every_scale_to_their_mean_less_where_it_deviates():
    """1/S sum of 1/2 (CE + Dice) + 0.1 G (1/S) sum of [mean w (m - p)^2 / mean w + mean D]; nothing is detached."""

    def expected(method, batch):
        scales, chosen = method.network.scales(batch.images), unlabelled(batch)
        supervised = [
            marginal_entropy(z, batch.labels, batch.annotated)
            + dice_and_background(z, batch.labels, batch.annotated, squared=True, pooled=True)
            for z in scales
        ]
        labels, annotated = rows(batch.labels, chosen), rows(batch.annotated, chosen)
        where, sets = is_open(labels, annotated), possible(labels, annotated)
        p = [rows(z, chosen).softmax(dim=1) for z in scales]
        m = sum(p) / len(p) * sets
        m = m / m.sum(dim=1, keepdim=True)
        losses = []
        for one in p:
            divergence = (m * (m.where(sets, 1) / one).log()).sum(dim=1)[where]
            weight = (-divergence).exp()
            apart = ((m - one) ** 2).mean(dim=1)[where]
            losses.append((apart * weight).mean() / (weight.mean() + 1e-8) + divergence.mean())
        return {
            "supervised": mean(supervised) / 2,
            "consistency": 0.1 * rise(31, 100) * mean(losses),
        }

    require_objective(a_method("urpc"), BATCH, expected)


def relative_distance(structure):
    """Distance to the other side over the largest one, negative inside; 0 on the outermost voxels of the structure."""
    inside = structure.numpy()
    outward = ndimage.distance_transform_edt(~inside)
    inward = ndimage.distance_transform_edt(inside)
    inward[inside & ~ndimage.binary_erosion(inside, border_value=1)] = 0
    return torch.from_numpy(outward / outward.max() - inward / inward.max())


def dual_task_supervision(answers, batch):
    """Dice with squares over the batch + 0.3 (z - S)^2 + cross-entropy of absence where another one is labelled."""
    labelled = batch.labels != IGNORE
    dice, apart, denied = [], [], []
    for structure in STRUCTURES:
        said, true = [], []
        for case in range(4):
            where, logits = labelled[case], answers.logits[case, structure - 1]
            if batch.annotated[case, structure]:
                said.append(logits[where].sigmoid())
                true.append((batch.labels[case] == structure)[where].double())
                inner = where.all(dim=0)  # the strip of IGNORE lies beyond the last column
                target = relative_distance((batch.labels[case] == structure)[:, inner])
                apart.append(((answers.distances[case, structure - 1][:, inner] - target) ** 2).flatten())
            elif batch.annotated[case, 1:].any():
                another = where & (batch.labels[case] > 0)
                denied.append(
                    binary_entropy(logits[another], torch.zeros(int(another.sum()), dtype=torch.bool)).mean()
                )
        dice.append(overlap(torch.cat(said), torch.cat(true), above=1e-5, below=1e-5, squared=True))
    return mean(dice) + 0.3 * torch.cat(apart).mean() + mean(denied)


def with_distances(method, batch):
    spacing = torch.ones(4, 2).numpy()
    (function,) = method.extra_targets().values()
    target = function(batch.labels.numpy(), batch.annotated.numpy(), spacing)
    return batch._replace(extra={TARGET: torch.from_numpy(target).double()})


def test_dtc_compares_both_answers_everywhere_with_a_gradient_through_both():
    """L_sup + G mean over all cases, structures and voxels of (sigmoid(-1500 z) - p)^2; stairs of 2 steps."""

    def expected(method, batch):
        answers = method.network(batch.images)
        apart = ((-1500 * answers.distances).sigmoid() - answers.logits.sigmoid()) ** 2
        return {
            "supervised": dual_task_supervision(answers, batch),
            "consistency": rise(30, 100) * apart.mean(),
        }

    method = a_method("dtc")
    require_objective(method, with_distances(method, BATCH), expected, rtol=1e-6)


def test_sassnet_deceives_a_fixed_critic_and_the_critic_learns_from_fixed_distances():
    """L_sup + 0.01 G CE(critic, "known" over open); critic: CE over all pairs, known 1 and open 0, with dropout."""

    def expected(method, batch):
        answers = method.network(batch.images)
        known = [
            (case, structure)
            for case in range(4)
            for structure in STRUCTURES
            if batch.annotated[case, structure]
        ]
        others = [
            (case, structure)
            for case in range(4)
            for structure in STRUCTURES
            if not batch.annotated[case, structure]
        ]

        def entropy(critic, distances, pairs, is_known):
            maps = torch.stack([distances[case, structure - 1] for case, structure in pairs]).unsqueeze(1)
            logits = critic(
                maps, batch.images, *zip(*((case, structure - 1) for case, structure in pairs), strict=True)
            )
            return -logits.log_softmax(dim=1)[range(len(pairs)), [int(known) for known in is_known]].mean()

        fixed = copy.deepcopy(method.critic).eval().requires_grad_(False)
        deceit = entropy(fixed, answers.distances, others, [True] * len(others))
        kinds = [True] * len(known) + [False] * len(others)
        judgement = entropy(method.critic, answers.distances.detach(), [*known, *others], kinds)
        return {
            "supervised": dual_task_supervision(answers, batch),
            "adversarial": 0.01 * rise(30, 100) * deceit,
            "critic": judgement,
        }

    method = a_method("sassnet")
    require_objective(method, with_distances(method, BATCH), expected, rtol=1e-6)


def test_pl_seg_is_weighted_structures_at_every_scale_orthogonal_maps_and_distillation_downwards():
    """Mean over scales of sum w (CE + Dice) + 0.1 orthogonality + 0.1 G distillation at T = 10; w at least 1/2."""

    def expected(method, batch):
        features = method.network.encoder(batch.images)
        scales = [*method.network.decoder(features)[::-1], features[-1]]
        outputs = [
            head(scale)
            for head, scale in zip([method.network.head, *method.coarse_heads], scales, strict=True)
        ]
        per_scale = []
        for z in outputs:
            step = 32 // z.shape[2]
            labels, p = batch.labels[:, ::step, ::step], z.softmax(dim=1)
            costs = {structure: [] for structure in STRUCTURES}
            for case in range(4):
                known = labels[case] != IGNORE
                for structure in STRUCTURES:
                    true = (labels[case] == structure)[known].double()
                    if not true.any():
                        continue
                    said = p[case, structure][known]
                    entropy = -(true * said.log() + (1 - true) * (1 - said).log()).mean()
                    both = [
                        overlap(*pair, above=0, below=1e-5) for pair in ((said, true), (1 - said, 1 - true))
                    ]
                    costs[structure].append((entropy, mean(both)))
            hard = {
                structure: mean([dice for _, dice in pairs]).item()
                for structure, pairs in costs.items()
                if pairs
            }
            average = sum(hard.values()) / max(len(hard), 1)
            per_scale.append(
                sum(
                    max(hard[structure] / average, 0.5) * (entropy + dice)
                    for structure, pairs in costs.items()
                    for entropy, dice in pairs
                )
            )
        maps = unit(outputs[0].softmax(dim=1).flatten(2))
        affinity = maps @ maps.mT
        orthogonal = (affinity.exp().sum(dim=1).log() - 1).mean()
        imitation = []
        for fine, coarse in pairwise(outputs):
            told = F.interpolate(fine.detach(), coarse.shape[2:], mode="bilinear", align_corners=True)
            imitation.append(
                -((told / 10).softmax(dim=1) * (coarse / 10).log_softmax(dim=1)).sum(dim=1).mean()
            )
        return {
            "supervised": mean([torch.as_tensor(cost) for cost in per_scale]),
            "contrast": 0.1 * orthogonal,
            "distillation": 0.1 * rise(31, 100) * mean(imitation),
        }

    require_objective(a_method("pl_seg"), BATCH, expected)


# contrast with a memory

LIKE_EACH_OTHER = a_batch(FULL, LIVER, LIVER, NONE, NONE)


def after_a_step(method, batch):
    """The same method, whose memories hold what one step wrote."""
    torch.manual_seed(3)
    method(batch, Progress(0, 100))
    method.after_step(Progress(0, 100))
    return method


def test_arco_pretraining_compares_images_and_windows_with_the_same_ones_of_a_memory():
    """L_sup + KL(teacher || student) of images and of windows; T_t = 0.01, T_s = 0.1; student sees the changed view."""

    def divergence(student, teacher, memory):
        told, said = ((unit(v) @ memory.T / t) for v, t in ((teacher.detach(), 0.01), (student, 0.1)))
        told, said = told.log_softmax(dim=-1), said.log_softmax(dim=-1)
        return (told.exp() * (told - said)).sum(dim=-1)

    def windows(logits):
        """7 x 7 windows of an eighth plus an eighth of 32 voxels, 4 apart, of 8 x 8 means each."""
        parts = [logits[:, :, 4 * y : 4 * y + 8, 4 * x : 4 * x + 8] for y in range(7) for x in range(7)]
        return [F.adaptive_avg_pool2d(part, 8) for part in parts]

    def expected(method, batch):
        def look(network, images):
            scales = network.network.decoder(network.network.encoder(images))
            logits = network.network.head(scales[-1])
            return (
                logits,
                network.image_head(scales[0].mean(dim=(2, 3))),
                [network.window_head(part) for part in windows(logits)],
            )

        logits, image, parts = look(method.student, perturbed(batch.images, 0.02))
        with torch.no_grad():
            _, told_image, told_parts = look(method.teacher.network, batch.images)
        filled = int(method.images.filled)
        assert filled == 4
        remembered = method.windows.rows[0, :filled].view(filled, 49, -1)
        by_window = [
            divergence(method.window_predictor(part).flatten(1), told.flatten(1), remembered[:, number])
            for number, (part, told) in enumerate(zip(parts, told_parts, strict=True))
        ]
        of_images = divergence(method.image_predictor(image), told_image, method.images.rows[0, :filled])
        return {
            "supervised": supervision(logits, batch.labels, batch.annotated, squared=True, pooled=True),
            "image_relation": of_images.mean(),
            "window_relation": torch.stack(by_window).mean(),
        }

    require_objective(after_a_step(a_method("arco_pretraining"), BATCH), BATCH, expected, rtol=1e-6)


def test_arco_contrasts_certain_voxels_with_their_class_and_the_remembered_voxels_of_others():
    """L_sup + L_unsup + 0.01 L_contrast + L_nn, as in sections 4 and 5 of the specification."""
    settings = {"confidence_threshold": 0.35, "queries": 24, "negatives": 8, "keys_per_step": 64}

    def expected(method, batch):
        order, chosen, partner = [0, 1, 2, 3, 4], [1, 2, 3, 4], [1, 0, 3, 2]
        with torch.no_grad():
            q = method.teacher.network(rows(batch.images, chosen))[0].softmax(dim=1)
        mine = rows(batch.labels, chosen), rows(batch.annotated, chosen)
        confidence, named = completed(q, *mine).max(dim=1)
        keep = cut_boxes(4, (32, 32), area=(0.5, 0.5))

        def mixed(values):
            return torch.where(keep[:, None] if values.ndim == 4 else keep, values, values[partner])

        images = torch.cat([batch.images[:1], mixed(rows(batch.images, chosen))])
        labels = torch.cat([batch.labels[:1], mixed(mine[0])])
        target = torch.cat([batch.labels[:1], mixed(named)])
        certainty = torch.cat([torch.ones(1, 32, 32), mixed(confidence)])
        guessed = is_open(labels, batch.annotated[order])
        guessed[0] = False
        z, r = method.student(images)
        with torch.no_grad():
            z_t, r_t = method.teacher.network(images)
        # L_unsup
        share = torch.stack(
            [(c[t != IGNORE] >= 0.35).double().mean() for c, t in zip(certainty, target, strict=True)]
        )
        assert 0 < share[1:].min() < share[1:].max() <= 1
        costs = share[:, None, None] * surprise(z, target.where(target != IGNORE, 0))
        # which voxels take part
        p_t = z_t.softmax(dim=1)
        p = z.softmax(dim=1).detach()
        entropy = -torch.special.xlogy(p, p).sum(dim=1)
        percent = 0.2 * (1 - 0.31)
        low, high = torch.quantile(entropy[guessed], torch.tensor([percent, 1 - percent]))
        certain = ~guessed | (entropy <= low)
        torch.rand(CLASSES, 64)  # what the memory takes in after the step
        # L_contrast
        found = [(target == name) & certain for name in range(CLASSES)]
        asked = [where & (p_t[:, name] > 0.3) for name, where in enumerate(found)]
        counts = torch.tensor([[int(where.sum())] for where in asked])
        places = draw(Raster(counts, 4), 24)
        filled = method.keys.filled
        keys = draw(Raster(filled[:, None], 4), 24 * 8).view(CLASSES, 8, 24)
        losses = []
        for name in range(CLASSES):
            if not (asked[name].any() and filled[name]):
                continue
            query = method.student_predictor(r.movedim(1, -1)[asked[name]][places[name]])
            positive = unit(r_t.movedim(1, -1)[found[name]].mean(dim=0))
            negative = method.keys.rows[name][keys[name].T]  # (24, 8, features)
            near = (unit(query) * positive).sum(dim=1) / 0.5
            far = (unit(query)[:, None] * negative).sum(dim=2) / 0.5
            losses.append(-(near.exp() / (near.exp() + far.exp().sum(dim=1))).log().mean())
        assert len(losses) >= 2
        assert high > low

        # L_nn
        def pooled(maps):
            return F.adaptive_avg_pool2d(maps[1:], 8).flatten(2).mT

        student = unit(method.student_predictor(pooled(r)).flatten(1))
        memory = method.maps.rows[0, : int(method.maps.filled)]
        nearest = (unit(pooled(r_t).flatten(1)) @ memory.T).topk(min(5, len(memory)), dim=1).indices
        distances = (2 - 2 * student @ memory.T).gather(1, nearest)
        supervised = marginal_entropy(z, labels, batch.annotated)
        return {
            "supervised": supervised
            + dice_and_background(z, labels, batch.annotated, squared=True, pooled=True),
            "unsupervised": costs[guessed].mean(),
            "contrast": 0.01 * mean(losses),
            "neighbours": distances.mean(),
        }

    method = after_a_step(a_method("arco", **settings), LIKE_EACH_OTHER)
    require_objective(method, LIKE_EACH_OTHER, expected, rtol=1e-6)


def test_ss_net_resists_the_worst_change_and_pulls_voxels_to_the_best_ones_of_their_class():
    """Dice + G (S + 0.1 (C of settled voxels + C of the others)); ramp of 0.4, counted from 1."""

    def expected(method, batch):
        network = method.network
        with torch.no_grad():
            p = network(batch.images).softmax(dim=1)

        def moved(change):
            return (1 - (network(batch.images + change).softmax(dim=1) * p).sum(dim=1)).mean()

        scale = math.sqrt(32 * 32 / (112 * 112 * 80))

        def of_length_one(values):
            return values / values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

        start = of_length_one(torch.rand(batch.images.shape) - 0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(moved(10 * scale * start), start)
        smoothness = moved(10 * scale * of_length_one(gradient))
        # separation
        features = network.decoder(network.encoder(batch.images))[-1]
        logits = network.head(features)
        pixels = features.movedim(1, -1)
        sets = possible(batch.labels, batch.annotated)
        named = logits.detach().masked_fill(~sets, -torch.inf).argmax(dim=1)
        others = is_open(batch.labels, batch.annotated)

        def scores(structure, vectors):
            s, k = method.selectors, structure - 1
            hidden = vectors @ s.first[k] + s.first_bias[k]
            centred = hidden - hidden.mean(dim=0)
            hidden = centred / (centred**2).mean(dim=0).add(1e-5).sqrt() * s.scale[k] + s.shift[k]
            return (F.leaky_relu(hidden, 0.2) @ s.second[k] + s.second_bias[k]).squeeze(1)

        centres = {}
        for structure in STRUCTURES:
            settled = (named == structure) & ~others
            with torch.no_grad():
                vectors = method.projection(pixels[settled])
                right = logits.argmax(dim=1)[settled] == structure
                best = scores(structure, vectors).masked_fill(~right, -torch.inf).argsort(descending=True)
                kept = best[: min(32, int(right.sum()))]
                if len(kept) > 1:
                    centres[structure] = unit(vectors[kept]).mean(dim=0)
        assert len(centres) > 1
        total = 0.0
        for where in (~others, others):
            everyone = torch.ones(int(where.sum()), dtype=torch.bool)
            vectors = method.prediction(method.projection(pixels[where], everyone), everyone)
            losses = []
            for structure, centre in centres.items():
                mine = vectors[named[where] == structure]
                if len(mine) > 1:
                    weights = scores(structure, mine.detach()).sigmoid()
                    losses.append((weights * (1 - unit(mine) @ centre)).sum() / weights.sum())
            total = total + mean(losses)
        weight = rise(32, 40)
        dice = structure_dice(logits, batch.labels, batch.annotated, squared=False, pooled=True, smooth=1e-8)
        return {
            "supervised": dice,
            "smoothness": weight * smoothness,
            "separation": weight * 0.1 * total,
        }

    require_objective(a_method("ss_net"), BATCH, expected, rtol=1e-6)
