"""Assembled objectives of methods with a teacher, and of those that teach themselves, from their specifications."""

from __future__ import annotations

import pytest
import torch
from by_hand import (
    CLASSES,
    FULL,
    LIVER,
    LIVER_AND_SPLEEN,
    NONE,
    STEP,
    STRUCTURES,
    a_batch,
    a_method,
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
    supervision,
    surprise,
    unlabelled,
)
from scipy import ndimage

from labelwise.components.batches import cut_boxes, sometimes_blurred, strong_view
from labelwise.components.teachers import EmaTeacher
from labelwise.types import IGNORE

BATCH = a_batch(FULL, LIVER, LIVER_AND_SPLEEN, NONE)


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


def noisy(images):
    return images + (torch.randn_like(images) * 0.1).clamp(-0.2, 0.2)


# mean teachers


def test_mean_teacher_follows_the_completed_answer_to_a_noisier_image():
    """L_sup + 0.1 G(stairs) mean over open voxels of the mean over classes of (p - q~)^2; stairs of 2.5 steps."""

    def expected(method, batch):
        logits, chosen = method.student(batch.images), unlabelled(batch)
        labels, annotated = rows(batch.labels, chosen), rows(batch.annotated, chosen)
        with torch.no_grad():
            q = method.teacher.network(noisy(rows(batch.images, chosen))).softmax(dim=1)
        apart = (rows(logits, chosen).softmax(dim=1) - completed(q, labels, annotated)) ** 2
        distance = apart.mean(dim=1)[is_open(labels, annotated)].mean()
        return {
            "supervised": supervision(logits, batch.labels, batch.annotated, squared=True, pooled=True),
            "consistency": 0.1 * rise(30, 100) * distance,
        }

    require_objective(a_method("mean_teacher"), BATCH, expected)


def test_ua_mt_counts_only_voxels_whose_repeated_answer_is_certain():
    """u = entropy of the completed mean of 8 further passes; certain below (3/4 + 1/4 G) ln of the open classes."""

    def expected(method, batch):
        logits, chosen = method.student(batch.images), unlabelled(batch)
        images, labels, annotated = (
            rows(part, chosen) for part in (batch.images, batch.labels, batch.annotated)
        )
        with torch.no_grad():
            q, *passes = (method.teacher.network(noisy(images)).softmax(dim=1) for _ in range(1 + 8))
        mu = completed(torch.stack(passes).mean(dim=0), labels, annotated)
        entropy = -torch.special.xlogy(mu, mu).sum(dim=1)
        largest = possible(labels, annotated).sum(dim=1).log()
        certain = entropy < (0.75 + 0.25 * rise(31, 100)) * largest
        where = certain & is_open(labels, annotated)
        assert where.any()
        assert not where[is_open(labels, annotated)].all()
        apart = (rows(logits, chosen).softmax(dim=1) - completed(q, labels, annotated)) ** 2
        return {
            "supervised": supervision(logits, batch.labels, batch.annotated, squared=True, pooled=True),
            "consistency": 0.1 * rise(30, 100) * apart.mean(dim=1)[where].mean(),
        }

    require_objective(a_method("ua_mt"), BATCH, expected)


def test_ucmt_learns_from_the_original_and_from_the_mixed_scan_with_fresh_labels_of_the_students():
    """L + L'; each 1/2 sum over students of D(labels) + 0.1 G ((crossed) / 2 + (taught) / 2)."""

    def dice_of_all(logits, target):
        per_case = [
            mean(
                [
                    overlap(p[name], (label == name).double(), above=1e-5, below=1e-5)
                    for name in range(CLASSES)
                ]
            )
            for p, label in zip(logits.softmax(dim=1), target, strict=True)
        ]
        return mean(per_case)

    def guesses(logits, labels, annotated):
        return logits.detach().masked_fill(~possible(labels, annotated), -torch.inf).argmax(dim=1)

    def expected(method, batch):
        chosen, weight = unlabelled(batch), 0.1 * rise(31, 20)
        views = [sometimes_blurred(batch.images) for _ in range(2)]
        answers = [method.first(views[0]), method.second(views[1])]
        with torch.no_grad():
            opinion = method.teacher.network(batch.images)
        taught = guesses(opinion, batch.labels, batch.annotated)

        def objective(answers, labels, taught):
            supervised = mean(
                [
                    dice_and_background(z, labels, batch.annotated, squared=False, pooled=False, absent=True)
                    for z in answers
                ]
            )
            known = rows(labels, chosen), rows(batch.annotated, chosen)
            first, second = (rows(z, chosen) for z in answers)
            crossed = dice_of_all(first, guesses(second, *known)) + dice_of_all(
                second, guesses(first, *known)
            )
            of_teacher = dice_of_all(first, rows(taught, chosen)) + dice_of_all(second, rows(taught, chosen))
            return torch.stack([supervised, crossed / 2, of_teacher / 2])

        total = objective(answers, batch.labels, taught)
        # A grid of 16 x 16 patches of 2 x 2; in each case two patches are covered for either student.
        doubt = []
        for z in answers:
            m = (z.softmax(dim=1) + opinion.softmax(dim=1)) / 2
            entropy = -(m * (m + 1e-6).log()).sum(dim=1).detach()
            doubt.append(entropy.unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(3, 4)))
        mixed = [views[0][:, 0].clone(), batch.labels.clone(), taught.clone()]
        before = [part.clone() for part in mixed]
        for case in range(len(taught)):
            orders = [d[case].flatten().argsort(descending=True, stable=True).tolist() for d in doubt]
            for mine, theirs in (orders, orders[::-1]):
                for place in range(2):
                    to, source = (
                        (2 * (patch // 16), 2 * (patch % 16)) for patch in (mine[place], theirs[place - 2])
                    )
                    for part, old in zip(mixed, before, strict=True):
                        part[case, to[0] : to[0] + 2, to[1] : to[1] + 2] = old[
                            case, source[0] : source[0] + 2, source[1] : source[1] + 2
                        ]
        image, labels, taught = mixed
        answers = [method.first(image.unsqueeze(1)), method.second(image.unsqueeze(1))]
        total = total + objective(answers, labels, taught)
        return {
            "supervised": total[0],
            "cross_pseudo": weight * total[1],
            "teacher_pseudo": weight * total[2],
        }

    require_objective(a_method("ucmt"), BATCH, expected)


# pasted scans


def test_bcp_adds_the_truth_around_the_box_and_half_of_the_guess_inside_both_ways():
    """L = mean over the pairs of l(truth) + 1/2 l(guess); each region by its own size; the largest part."""
    pairs, inward = [(0, 1), (1, 2), (2, 3)], 2

    def expected(method, batch):
        low = [int(place * (32 - 21)) for place in torch.rand(2).tolist()]
        box = torch.zeros(32, 32, dtype=torch.bool)
        box[low[0] : low[0] + 21, low[1] : low[1] + 21] = True
        own = [~box if number < inward else box for number in range(3)]
        guests = batch.images[[guest for _, guest in pairs]]
        with torch.no_grad():
            opinion = torch.cat([method.teacher.network(part) for part in guests.split(inward)])
        images = torch.stack(
            [
                torch.where(mine, batch.images[anchor], batch.images[guest])
                for (anchor, guest), mine in zip(pairs, own, strict=True)
            ]
        )
        logits = torch.cat([method.student(part) for part in images.split(inward)])
        truths, guesses = [], []
        for z, mine, (anchor, guest), q in zip(logits, own, pairs, opinion, strict=True):
            labels, annotated = batch.labels[[guest]], batch.annotated[[guest]]
            guess = completed(q.softmax(dim=0)[None], labels, annotated)[0].argmax(dim=0)
            for structure in STRUCTURES:
                if not annotated[0, structure] and (guess == structure).any():
                    parts, count = ndimage.label(
                        (guess == structure).numpy(), ndimage.generate_binary_structure(2, 2)
                    )
                    sizes = [int((parts == part).sum()) for part in range(1, count + 1)]
                    kept = torch.from_numpy(parts == 1 + sizes.index(max(sizes)))
                    guess[(guess == structure) & ~kept] = 0
            truths.append((z, batch.labels[anchor].where(mine, IGNORE), batch.annotated[anchor]))
            guesses.append((z, guess.where(~mine, IGNORE), torch.ones(CLASSES, dtype=torch.bool)))
        terms = []
        for region in (truths, guesses):
            z, labels, annotated = (torch.stack(part) for part in zip(*region, strict=True))
            terms.append(
                marginal_entropy(z, labels, annotated)
                + dice_and_background(z, labels, annotated, squared=False, pooled=False)
            )
        return {"supervised": terms[0], "pseudo": 0.5 * terms[1]}

    require_objective(a_method("bcp"), BATCH, expected)


# one network that teaches itself


def test_unimatch_is_labels_and_half_of_the_strong_views_and_half_of_dropped_features():
    """l(z, t) = 1/2 (CE over all voxels + Dice where t is kept); targets of the weak view, without a gradient."""
    threshold = 0.4

    def loss(logits, target):
        sure = target != IGNORE
        surprises = surprise(logits, target.where(sure, 0)) * sure
        cross_entropy = mean([case.mean() for case in surprises])
        p = logits.softmax(dim=1)
        dices = [
            overlap(
                p[:, structure][sure],
                (target == structure)[sure].double(),
                above=1e-5,
                below=1e-5,
                squared=True,
            )
            for structure in STRUCTURES
            if (target == structure).any()
        ]
        return (cross_entropy + mean(dices)) / 2

    def expected(method, batch):
        chosen, student = unlabelled(batch), method.student
        features = student.encoder(batch.images)
        both = [
            torch.cat([scale, torch.feature_dropout(rows(scale, chosen), 0.5, True)]) for scale in features
        ]
        logits = student.head(student.decoder(both)[-1])
        weak, dropped = logits[:4], logits[4:]
        q = completed(
            rows(weak, chosen).softmax(dim=1), rows(batch.labels, chosen), rows(batch.annotated, chosen)
        )
        certainty, target = q.max(dim=1)
        target = target.where(certainty >= threshold, IGNORE)
        assert (target == IGNORE).any()
        images, views, targets = rows(batch.images, chosen), [], []
        for _ in range(2):
            changed = strong_view(images)
            keep = cut_boxes(3, (32, 32)) | (torch.rand(3) >= 0.5).view(3, 1, 1)
            views.append(torch.where(keep[:, None], changed, changed[[1, 2, 0]]))
            targets.append(torch.where(keep, target, target[[1, 2, 0]]))
        strong = student(torch.cat(views)).chunk(2)
        return {
            "supervised": supervision(weak, batch.labels, batch.annotated, squared=True, pooled=True),
            "strong_views": 0.5 * mean([loss(*pair) for pair in zip(strong, targets, strict=True)]),
            "feature_dropout": 0.5 * loss(dropped, target),
        }

    require_objective(a_method("unimatch", threshold=threshold), BATCH, expected)


# self-training and its second round

DEEP = {"width": 4, "blocks": (1, 1, 2), "deep_supervision": True}
WEAK = BATCH._replace(weak_images=BATCH.images + 0.1)


def at_both_scales(loss, scales, *targets):
    """1 and 1/2 of the losses at full and at half resolution, over 3/2."""
    fine, coarse = scales
    halves = [target[..., ::2, ::2] for target in targets]
    return (loss(fine, *targets) + loss(coarse, *halves) / 2) / 1.5


def self_training_terms(method, batch, opinion, weight, factors):
    """From the teacher's probabilities of the unlabelled cases; `factors`: trust in each class that a case names."""
    chosen = unlabelled(batch)
    labels, annotated = rows(batch.labels, chosen), rows(batch.annotated, chosen)
    certainty, named = completed(opinion, labels, annotated).max(dim=1)
    trust = ((certainty - 0.3) / 0.7).clamp(0) * is_open(labels, annotated)
    for case in range(len(chosen)):
        open_here = possible(labels[[case]], annotated[[case]])[0]
        for name in range(CLASSES):
            of_case, of_none = factors(annotated[case])[name], factors(torch.zeros(CLASSES))[name]
            believed = torch.where(open_here.all(dim=0), of_none, of_case)
            trust[case] = torch.where(named[case] == name, trust[case] * believed, trust[case])
    classes, trusts = torch.zeros_like(batch.labels), torch.zeros_like(batch.images[:, 0])
    classes[chosen], trusts[chosen] = named, trust
    (turn,) = torch.randint(1, 4, (1,)).tolist()
    lender = [(case + turn) % 4 for case in range(4)]
    whole = torch.rand(4) >= 0.5
    keep = cut_boxes(4, (32, 32), area=(0.05, 0.5)) | whole.view(4, 1, 1)
    assert not keep.all()

    def cut(values):
        mask = keep[:, None] if values.ndim == 4 else keep
        return torch.where(mask, values, values[lender])

    known = batch.annotated[:, :, None, None].expand(-1, -1, 32, 32)
    images, labels, known, classes, trusts = map(cut, (batch.images, batch.labels, known, classes, trusts))
    scales = method.student.at_all_scales(images)

    def possible_here(labels, known):
        hides = ~known
        hides[:, 0] = True
        sets = torch.stack([labels == name for name in range(CLASSES)], dim=1)
        return sets | (hides & (labels == 0)[:, None]) | (labels == IGNORE)[:, None]

    def supervised(logits, labels, known):
        p, sets = logits.softmax(dim=1), possible_here(labels, known)
        asked = (labels != IGNORE) & known[:, 1:].any(dim=1)
        per_case = [
            -(p[case] * sets[case]).sum(dim=0)[asked[case]].log().mean()
            for case in range(4)
            if asked[case].any()
        ]
        dices = []
        for structure in STRUCTURES:
            where = known[:, structure] & (labels != IGNORE)
            true = (labels == structure)[where].double()
            dices.append(overlap(p[:, structure][where], true, above=1e-5, below=1e-5, squared=True))
        return (mean(per_case) + mean(dices)) / 2

    def pseudo(logits, classes, trusts):
        entropy = (trusts * surprise(logits, classes)).sum() / trusts.sum()
        p = logits.softmax(dim=1)
        dices = []
        for structure in STRUCTURES:
            true = (classes == structure).double()
            if (trusts * true).sum() > 0:
                dices.append(
                    overlap(p[:, structure], true, above=1e-5, below=1e-5, squared=True, weights=trusts)
                )
        return (entropy + mean(dices)) / 2

    still_open = possible_here(labels, known).sum(dim=1) > 1
    share = trusts.sum() / still_open.sum()
    return {
        "supervised": at_both_scales(supervised, scales, labels, known),
        "pseudo": weight * share * at_both_scales(pseudo, scales, classes, trusts),
    }


def test_self_training_trusts_the_teacher_as_far_as_its_classes_are_found_where_they_are_annotated():
    """w = pseudo_weight here: 0.31 of the training is past the ramp of 0.5, so 0.62 of it."""
    found, labelled, named = [0, 30, 10, 8], [0, 40, 40, 10], [0, 50, 20, 10]
    recall, precision = [0, 0.75, 0.25, 0.8], [0, 0.6, 0.5, 0.8]

    def factors(annotated):
        left_out = [recall[structure] for structure in STRUCTURES if not annotated[structure]]
        return torch.tensor([sum(left_out) / max(len(left_out), 1), *precision[1:]])

    def expected(method, batch):
        with torch.no_grad():
            opinion = method.teacher.network(rows(batch.weak_images, unlabelled(batch))).softmax(dim=1)
        return self_training_terms(method, batch, opinion, 0.8 * STEP.fraction / 0.5, factors)

    settings = {"confidence": 0.3, "ramp": 0.5, "pseudo_weight": 0.8}
    method = a_method("self_training", net="residual_unet", net_settings=DEEP, **settings)
    for memory, values in zip(("found", "labelled", "named"), (found, labelled, named), strict=True):
        getattr(method.reliability, memory).copy_(torch.tensor(values))
    require_objective(method, WEAK, expected)


def test_noisy_student_learns_at_full_weight_from_a_labeller_in_evaluation_mode():
    def factors(annotated):
        return torch.ones(CLASSES)

    def expected(method, batch):
        with torch.no_grad():
            opinion = method.labeller.eval()(rows(batch.weak_images, unlabelled(batch))).softmax(dim=1)
        return self_training_terms(method, batch, opinion, 1.0, factors)

    method = a_method(
        "noisy_student", net="residual_unet", net_settings={**DEEP, "norm": "batch"}, confidence=0.3
    )
    require_objective(method, WEAK, expected)


def test_adding_a_class_repeats_the_old_model_where_labels_leave_classes_open_with_new_ones_in_its_background():
    """The old model does not know the spleen (2), for which it says background."""
    known, spleen = [0, 1, 3], 2

    def divergence(old, new, sets):
        """At each voxel; what is impossible has no part in either distribution."""
        q, p = old * sets, new * sets
        said = {0: p[0] + p[spleen], 1: p[1], 3: p[3]}
        total = torch.zeros(q.shape[1])
        for name in known:
            here = sets[name]
            truth = (q[name] / sum(q[other] for other in known))[here]
            answer = (said[name] / sum(said.values()))[here]
            total = total.masked_scatter(here, total[here] + truth * (truth / answer).log())
        return total

    def expected(method, batch):
        chosen, scales = unlabelled(batch), method.student.at_all_scales(batch.images)
        with torch.no_grad():
            old = method.old.eval()(rows(batch.weak_images, chosen)).softmax(dim=1)
        sets, where = possible(batch.labels, batch.annotated), is_open(batch.labels, batch.annotated)
        per_case = [
            divergence(
                old[place][:, where[case]],
                scales[0][case].softmax(dim=0)[:, where[case]],
                sets[case][:, where[case]],
            ).mean()
            for place, case in enumerate(chosen)
        ]

        def supervised(logits, labels):
            return supervision(logits, labels, batch.annotated, squared=True, pooled=True)

        return {
            "supervised": at_both_scales(supervised, scales, batch.labels),
            "distillation": 0.7 * mean(per_case),
        }

    settings = {"net_settings": {**DEEP, "norm": "batch"}, "distillation_weight": 0.7}
    method = a_method("add_class", net="residual_unet", **settings)
    method.known[spleen] = False
    require_objective(method, WEAK, expected)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("mean_teacher", 0.5 ** (1 / (0.0115 * 100))),
        ("ua_mt", 0.5 ** (1 / (0.0115 * 100))),
        ("ucmt", 0.5 ** (1 / (0.0115 * 100))),
        ("self_training", 0.5 ** (1 / (0.01 * 100))),
        ("noisy_student", 0.5 ** (1 / (0.01 * 100))),
        ("bcp", 0.5 ** (1 / (0.0046 * 100))),
        ("arco_pretraining", 0.5 ** (1 / (0.0115 * 100))),
        ("arco", 0.5 ** (1 / (0.0115 * 100))),
        ("ltuda_cda", 0.5 ** (1 / (0.0074 * 100))),
        ("ltuda", 0.5 ** (1 / (0.0074 * 100))),
    ],
)
def test_every_teacher_moves_by_its_share_of_the_student(name, kept):
    """teacher <- a teacher + (1 - a) student; UCMT's follows 0.99 of the first student and 0.01 of the second."""
    method = a_method(name)
    (teacher,) = (part for part in method.modules() if isinstance(part, EmaTeacher))
    before = [weight.clone() for weight in teacher.network.parameters()]
    student = method.first if name == "ucmt" else method.student
    followed = [weight.detach() for weight in student.parameters()]
    if name == "ucmt":
        followed = [
            0.99 * one + 0.01 * two.detach()
            for one, two in zip(followed, method.second.parameters(), strict=True)
        ]
    method.after_step(STEP)
    for old, new, target in zip(before, teacher.network.parameters(), followed, strict=True):
        torch.testing.assert_close(new, kept * old + (1 - kept) * target)
