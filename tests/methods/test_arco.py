"""ARCO against the arrays of its official code (selection, losses) and of the corrected definition of its sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import make_batch, make_method
from labelwise.errors import ConfigError
from labelwise.losses.partial import members
from labelwise.methods.arco.method import (
    class_means,
    confident_cross_entropy,
    equal_partners,
    select,
    slab_boxes,
)
from labelwise.methods.arco.pretraining import as_windows, perturbed, pool_windows
from labelwise.types import IGNORE, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
FAST = {"queries": 16, "negatives": 8, "key_memory": 64, "background_key_memory": 96, "keys_per_step": 16}


@pytest.fixture
def arrays(golden):
    return {key: torch.from_numpy(np.asarray(array)) for key, array in golden("arco").items()}


def arco(**settings):
    return make_method("arco", dims=2, settings=FAST | settings)


def step(method, *kinds, progress=HALFWAY, seed=3):
    torch.manual_seed(seed)
    return method(make_batch(*kinds, dims=2), progress)


def warmed(method, *kinds):
    step(method, *kinds)
    method.after_step(HALFWAY)
    return method


# against the official code


def test_the_selection_of_voxels_agrees_with_the_corrected_definition(arrays):
    label = arrays["sel_label"].long()
    is_open = torch.zeros(label.shape, dtype=torch.bool)
    is_open[1] = True  # the second image is unlabelled
    possible = members(label, 4)
    possible[1] = True
    uncertainty = torch.cat([torch.zeros(1, 4, 4, 4), arrays["sel_entropy_u"]])
    found = select(arrays["sel_prob_t"], label, possible, is_open, uncertainty, percent=20)
    for mask, key in zip(found, ("sel_anchor", "sel_posmask", "sel_neg"), strict=True):
        expected = arrays[key].bool()
        if expected.shape != mask.shape:
            expected = expected.transpose(0, 1)
        assert torch.equal(mask, expected), key
    means, present = class_means(arrays["sel_rep_t"], found.positives)
    torch.testing.assert_close(means, arrays["sel_proto"], **CLOSE)
    assert present.all()


def test_the_unsupervised_loss_agrees_with_the_official_code(arrays):
    logits = arrays["un_logit"].clone().requires_grad_()
    target = arrays["un_target"].long()
    target = target.where(target >= 0, IGNORE)
    loss = confident_cross_entropy(logits, target, target != IGNORE, arrays["un_conf"], 0.9)
    torch.testing.assert_close(loss, arrays["un_loss"], **CLOSE)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], arrays["un_grad"], **CLOSE)


# what takes part


def test_an_annotated_structure_is_surely_absent_where_a_partly_annotated_case_does_not_show_it():
    probabilities = torch.tensor([0.3, 0.4, 0.2, 0.1]).view(1, 4, 1).expand(1, 4, 2)
    possible = torch.tensor([[[1, 1], [0, 0], [1, 1], [1, 1]]]).bool()  # structure 1 is annotated and absent
    target, is_open = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
    found = select(probabilities, target, possible, is_open, torch.tensor([[0.1, 0.9]]), percent=20)
    assert found.negatives[0, 1].all(), "sure at every voxel, certain or not"
    assert found.negatives[0, 3].tolist() == [False, True], "guessed only where the student is uncertain"
    assert found.positives[0, 2].tolist() == [False, False]
    assert found.positives[0, 0].tolist() == [True, False]


def test_ignored_voxels_of_complete_cases_take_part_in_nothing():
    method = arco()
    batch = make_batch("full", "none", dims=2)
    labels = batch.labels.clone()
    labels[0, :16] = IGNORE
    torch.manual_seed(0)
    view = method.view(batch._replace(labels=labels), [0], [1])
    torch.manual_seed(1)
    logits = torch.randn(2, 4, 32, 32)
    found = method.selection(view, batch.annotated, logits, logits, HALFWAY)
    assert not any(mask[0, :, :16].any() for mask in found)
    assert not view.open[0].any()


def test_labels_are_spliced_with_their_images_and_only_among_cases_of_equal_annotation():
    method, batch = arco(), make_batch("partial", "full", "partial", "none", dims=2)
    torch.manual_seed(0)
    view = method.view(batch, [1], [0, 2, 3])
    assert torch.equal(view.images[0], batch.images[1])
    assert torch.equal(view.images[3], batch.images[3]), "an unlabelled case has no partner here"
    for row, (mine, other) in enumerate([(0, 2), (2, 0)], start=1):
        kept = (view.images[row] == batch.images[mine]).squeeze(0)
        assert 0.3 < kept.float().mean() < 0.7
        expected = torch.where(kept, batch.images[mine, 0], batch.images[other, 0])
        torch.testing.assert_close(view.images[row, 0], expected)
        assert torch.equal(view.labels[row], torch.where(kept, batch.labels[mine], batch.labels[other]))


def test_partners_have_the_same_structures():
    liver, spleen = (False, True, False), (False, False, True)
    assert equal_partners([liver, spleen, liver, liver]) == [2, 1, 3, 0]


def test_a_box_covers_half_of_the_plane_and_an_eighth_of_the_slices():
    torch.manual_seed(0)
    keep = slab_boxes(5, (40, 40, 16), 0.5, 0.125, torch.device("cpu"))
    assert keep.shape == (5, 40, 40, 16)
    slices = (~keep).any(dim=1).any(dim=1).sum(dim=1)
    assert slices.tolist() == [2] * 5
    torch.testing.assert_close((~keep).float().mean((1, 2, 3)), torch.full((5,), 1 / 16), rtol=0.1, atol=0)


# the terms


@pytest.mark.parametrize("sampler", ["stratified", "antithetic", "uniform"])
@pytest.mark.parametrize("strata", ["order", "space"])
def test_every_way_of_drawing_gives_a_contrast_near_that_of_random_directions(sampler, strata):
    method = warmed(arco(sampler=sampler, strata=strata, contrast_weight=1.0), "full", "none")
    contrast = step(method, "full", "none")["contrast"]
    contrast.backward()
    assert 0 < contrast.item() < 2 * np.log(1 + FAST["negatives"]) + 4
    assert all(p.grad.abs().sum() > 0 for p in method.student_predictor.parameters())


def test_without_memories_there_is_no_contrast_and_no_neighbour():
    terms = step(arco(), "full", "none")
    assert terms["contrast"].item() == terms["neighbours"].item() == 0
    assert terms["contrast"].requires_grad
    assert terms["neighbours"].requires_grad


def test_without_an_incomplete_case_only_supervision_and_contrast_are_left():
    terms = step(warmed(arco(), "full", "none"), "full", "full")
    assert terms["unsupervised"].item() == terms["neighbours"].item() == 0
    assert terms["contrast"].item() > 0


def test_a_batch_without_labels_reads_the_memories_and_does_not_write_them():
    method = warmed(arco(), "full", "none")
    before = {name: buffer.clone() for name, buffer in method.named_buffers() if "written" in name}
    terms = step(method, "none", "none")
    method.after_step(HALFWAY)
    assert terms["supervised"].item() == 0
    assert terms["neighbours"].item() > 0
    assert len(before) == 2
    assert all(torch.equal(buffer, dict(method.named_buffers())[name]) for name, buffer in before.items())


def test_the_neighbours_teach_the_student():
    # In the official code the distance is that of the teacher, which has no gradient.
    method = warmed(arco(), "full", "none")
    step(method, "full", "none")["neighbours"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(
        p.grad.abs().sum() > 0 for p in method.student.network.encoder.parameters() if p.grad is not None
    )


def test_keys_are_unit_vectors_of_voxels_of_other_classes():
    method = arco()
    step(method, "full", "none")
    entries = method.entries
    lengths = entries.keys.norm(dim=2)
    torch.testing.assert_close(lengths[entries.keys_wanted], torch.ones(int(entries.keys_wanted.sum())))
    method.after_step(HALFWAY)
    assert method.keys.filled.tolist() == entries.keys_wanted.sum(dim=1).tolist()
    assert method.maps.filled.tolist() == [1]
    assert method.entries is None


def test_during_the_warm_up_only_labels_teach():
    method = warmed(arco(warm_up=0.1), "full", "partial", "none")
    terms = step(method, "full", "partial", "none", progress=Progress(9, 100))
    assert all(term.item() == 0 for key, term in terms.items() if key != "supervised")
    terms = step(method, "full", "partial", "none", progress=Progress(10, 100))
    assert all(term.item() > 0 for term in terms.values())


def test_the_uncertain_tail_shrinks_to_nothing_until_the_end():
    method = arco()
    torch.manual_seed(0)
    batch = make_batch("none", "none", dims=2)
    view = method.view(batch, [], [0, 1])
    logits = torch.randn(2, 4, 32, 32)
    certain = [
        method.selection(view, batch.annotated, logits, logits, Progress(now, 100)).positives.sum().item()
        for now in (0, 50, 99)
    ]
    assert certain == [pytest.approx(part * 2 * 32 * 32, abs=2) for part in (0.2, 0.1, 0.002)]


# the stages


def test_the_second_stage_starts_with_student_and_teacher_equal_to_the_student_of_the_first():
    first = make_method("arco_pretraining", dims=2, seed=1, settings=FAST)
    step(first, "full", "none")
    with torch.no_grad():
        next(first.student.parameters()).add_(1)  # the teacher is another one now
    second = arco()
    missing = second.start_from(first)
    theirs = first.student.network.state_dict()
    for network in (second.student.network, second.teacher.network.network):
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    mine, copy = second.student.representation_head, second.teacher.network.representation_head
    assert torch.equal(mine.last.weight, copy.last.weight)
    assert "keys.rows" in missing


def test_windows_are_averaged_as_by_adaptive_pooling():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 40, 32)
    found = as_windows(pool_windows(maps, (3, 7)))
    assert found.shape == (2, 21, 3 * 64)
    corners = [(x, y) for x in (0, 10, 20) for y in range(0, 28, 4)]  # windows of 20 x 8
    for number, (x, y) in enumerate(corners):
        window = F.adaptive_avg_pool2d(maps[:, :, x : x + 20, y : y + 8], 8).flatten(1)
        torch.testing.assert_close(found[:, number], window)


def test_the_published_windows_are_those_of_the_official_code():
    # 2D: 64 x 64 every 32 voxels of 256; 3D: 20 voxels every 10 of 80 along z.
    for length, windows, size in ((256, 7, 64), (80, 7, 20)):
        ramp = torch.arange(length).float().view(1, 1, length, 1).expand(-1, -1, -1, 8)
        means = as_windows(pool_windows(ramp, (windows, 1))).mean(dim=2).flatten()
        torch.testing.assert_close(means, torch.arange(windows) * size / 2 + (size - 1) / 2)


def test_a_memory_of_images_relates_student_and_teacher():
    settings = {"memory_size": 4, "windows": (2,)}
    method = make_method("arco_pretraining", dims=2, settings=settings)
    assert step(method, "full", "none")["image_relation"].item() == 0
    method.after_step(HALFWAY)
    terms = step(method, "full", "none")
    assert terms["image_relation"].item() > 0
    assert terms["window_relation"].item() > 0
    method.after_step(HALFWAY)
    assert method.images.filled.tolist() == method.windows.filled.tolist() == [4]


def test_the_augmented_view_is_a_copy():
    # In the official 3D code both views are one tensor, changed in place.
    images = torch.randn(6, 1, 16, 16)
    before = images.clone()
    torch.manual_seed(0)
    changed = perturbed(images, 0.2)
    assert torch.equal(images, before)
    differs = (changed - images).abs().amax((1, 2, 3)) > 1e-5
    assert differs.any()
    assert not differs.all(), "each change happens in every second case"


def test_brightness_is_a_factor_within_the_bounds_and_even_between_them():
    """Contrast and blur leave a constant image alone; U(0.8, 1.2) has the mean 1, its inverse 1.014."""
    torch.manual_seed(0)
    factors = perturbed(torch.ones(4000, 1, 4, 4), 0.2).mean(dim=(1, 2, 3))
    changed = factors[(factors - 1).abs() > 1e-6]
    assert len(changed) > 1500
    assert 0.8 - 1e-5 < changed.min() < 0.81
    assert 1.19 < changed.max() < 1.2 + 1e-5
    assert abs(changed.double().mean().item() - 1) < 4 * 0.4 / (12 * len(changed)) ** 0.5


def test_a_wrong_number_of_windows_is_refused():
    with pytest.raises(ConfigError, match="windows"):
        make_method("arco_pretraining", dims=2, settings={"windows": (2, 2, 2)})


def test_student_or_teacher_can_be_kept():
    for choice in ("student", "teacher"):
        method = arco(eval_model=choice)
        kept = method.student if choice == "student" else method.teacher.network
        assert method.predictor().network is kept.network
