"""Both stages of BCP against the official code's arrays, on every kind of case, and from one stage to the next."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import SPACE, make_batch, make_method
from labelwise.components.connected import keep_largest_component
from labelwise.errors import CheckpointError
from labelwise.losses.partial import dice_with_background
from labelwise.methods import stages_of
from labelwise.methods.bcp import method as bcp
from labelwise.methods.bcp import pretraining as bcp_pretraining
from labelwise.methods.bcp.largest import LabelsOnHost
from labelwise.methods.bcp.method import Bcp, pair_up
from labelwise.methods.bcp.pretraining import BcpConfig, BcpPretraining, halves, outside_of_box, region_loss
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
FULL, LIVER, NOTHING = ((False, True, True), (False, True, False), (False, False, False))


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(np.asarray(array)) for name, array in golden("bcp").items()}


class Replay(nn.Module):
    """Stands in for a network: returns the given logits, one after the other, and keeps the images it saw."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = list(outputs)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.outputs.pop(0)


def all_known(cases, num_classes=2):
    return torch.ones(cases, num_classes, dtype=torch.bool)


# against the official code


@pytest.mark.parametrize("absent", ["skip", "include"])
def test_the_loss_of_the_first_stage_agrees_with_the_official_code(arrays, absent):
    logits = arrays["pre_logits"].clone().requires_grad_()
    loss = region_loss(logits, arrays["pre_lab"].long(), all_known(2), BcpConfig(absent_dice=absent)) / 2
    torch.testing.assert_close(loss, arrays["pre_loss"], **CLOSE)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, arrays["pre_grad"], rtol=1e-5, atol=1e-9)


def test_a_step_of_the_second_stage_agrees_with_the_official_code(arrays, monkeypatch):
    monkeypatch.setattr(bcp, "outside_of_box", lambda *_: arrays["mask"].bool())
    logits_in, logits_out = (arrays[f"logits_{part}"].clone().requires_grad_() for part in "lu")
    images = torch.cat([arrays[name] for name in ("img_a", "img_b", "unimg_a", "unimg_b")])
    labels = torch.cat([arrays["lab_a"], arrays["lab_b"]]).long()
    labels = torch.cat([labels, torch.full_like(labels, IGNORE)])
    annotated = torch.arange(8).unsqueeze(1).expand(-1, 2) < 4
    method = make_method("bcp")
    method.student = Replay(logits_in, logits_out)
    method.teacher = Replay(arrays["teacher_logits_a"], arrays["teacher_logits_b"])
    terms = method(Batch(images, labels, annotated), HALFWAY)

    torch.testing.assert_close(method.student.seen[0], arrays["mixl_img"])
    torch.testing.assert_close(method.student.seen[1], arrays["mixu_img"])
    torch.testing.assert_close(torch.cat(method.teacher.seen), images[4:])
    total = terms["supervised"] + terms["pseudo"]
    torch.testing.assert_close(total, arrays["loss_total"], **CLOSE)
    for part, found in zip("lu", torch.autograd.grad(total, (logits_in, logits_out)), strict=True):
        torch.testing.assert_close(found, arrays[f"grad_{part}"], rtol=1e-5, atol=1e-8)


def test_each_direction_agrees_with_the_official_code(arrays):
    weight, outside = float(arrays["u_weight"]), arrays["mask"].bool().expand(2, -1, -1, -1)
    for part, truth, guessed, of_anchor in (
        ("l", "lab_a", "plab_a", outside),
        ("u", "lab_b", "plab_b", ~outside),
    ):
        known = region_loss(
            arrays[f"logits_{part}"],
            arrays[truth].long().where(of_anchor, IGNORE),
            all_known(2),
            BcpConfig(),
        )
        guess = region_loss(
            arrays[f"logits_{part}"],
            arrays[guessed].long().where(~of_anchor, IGNORE),
            all_known(2),
            BcpConfig(),
        )
        torch.testing.assert_close((known + weight * guess) / 2, arrays[f"loss_{part}"], **CLOSE)


def test_pseudo_labels_agree_with_the_official_code(arrays):
    for logits, expected in (
        ("teacher_logits_a", "plab_a"),
        ("teacher_logits_b", "plab_b"),
        ("cc_logits", "cc_mask_official"),
    ):
        found = LabelsOnHost(arrays[logits].argmax(dim=1)).largest_parts([[1], [1]])
        assert torch.equal(found, arrays[expected].long()), expected


def test_the_box_agrees_with_the_official_one(arrays, monkeypatch):
    shape, corner = arrays["mask_patch_size"].tolist(), arrays["mask_offsets"]
    free = arrays["mask_offset_range_exclusive"][:, 1]
    monkeypatch.setattr(torch, "rand", lambda *_: (corner + 0.5) / free)
    keep = outside_of_box(shape, float(arrays["mask_ratio"]), torch.device("cpu"))
    assert (~keep).sum() == arrays["mask_zero_count"]
    low, high = arrays["mask_zero_box"].tolist()
    inside = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    assert not keep[inside].any()


def test_the_teacher_moves_as_in_the_official_code(arrays):
    method = make_method("bcp", settings={"ema_decay": 0.99})
    method.student = nn.Linear(4, 1, bias=False)
    method.teacher.network = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        method.student.weight.copy_(arrays["ema_student"])
        method.teacher.network.weight.copy_(arrays["ema_teacher0"])
    for step in range(3):
        method.after_step(Progress(step, 100))
    torch.testing.assert_close(method.teacher.network.weight[0], arrays["ema_teacher_after3"])


# the box


def test_the_box_may_begin_anywhere_but_at_the_last_place():
    torch.manual_seed(0)
    boxes = [outside_of_box((6, 3), 2 / 3, torch.device("cpu")) for _ in range(60)]
    assert {int((~box).sum()) for box in boxes} == {4 * 2}
    corners = {tuple((~box).nonzero()[0].tolist()) for box in boxes}
    assert corners == {(0, 0), (1, 0)}


# the largest part


def test_touching_corners_connect_and_equal_parts_leave_the_first():
    labels = np.zeros((6, 6), np.uint8)
    labels[[0, 1, 2], [0, 1, 2]] = 1  # a diagonal of three
    labels[4:6, 0] = 1
    labels[0, 4:6] = labels[5, 4:6] = 2  # two pairs
    labels[3, 3] = 3
    keep_largest_component(labels, 1)
    keep_largest_component(labels, 2)
    assert labels.tolist()[0] == [1, 0, 0, 0, 2, 2]
    assert (labels == 1).sum() == 3
    assert (labels == 2).sum() == 2
    assert labels[3, 3] == 3


def test_classes_that_are_not_named_keep_their_parts_and_nothing_is_changed_in_place():
    labels = torch.tensor([[[1, 0, 1, 1, 2, 0, 2]], [[1, 0, 1, 1, 2, 0, 2]]], dtype=torch.uint8)
    found = LabelsOnHost(labels).largest_parts([[1], [2]])
    assert found.tolist() == [[[0, 0, 1, 1, 2, 0, 2]], [[1, 0, 1, 1, 2, 0, 0]]]
    assert labels[0, 0, 0] == 1


def test_structures_that_somebody_annotated_are_never_filtered():
    method = make_method("bcp")
    rows = [SPACE.annotated(structures).tolist() for structures in (("liver",), ())]
    assert method.structures_in_one_part(rows, [0, 1, 0]) == [[2, 3], [1, 2, 3], [2, 3]]
    chosen = make_method("bcp", settings={"component_classes": [1, 3]})
    assert chosen.structures_in_one_part(rows, [0, 1]) == [[3], [1, 3]]


# pairs


def test_the_published_batch_is_paired_as_published():
    assert halves([FULL] * 4) == ([0, 1], [2, 3])
    assert pair_up([FULL] * 4 + [NOTHING] * 4, [4, 5, 6, 7]) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_every_case_takes_part_in_any_order_and_number():
    for rows in (
        [NOTHING, FULL],
        [FULL, NOTHING, NOTHING, NOTHING],
        [NOTHING, FULL, FULL, LIVER, FULL],
        [LIVER] * 4,
        [LIVER, NOTHING],
        [NOTHING] * 3,
        [LIVER],
    ):
        open_cases = {number for number, row in enumerate(rows) if not all(row[1:])}
        anchors, guests = pair_up(rows, sorted(open_cases))
        labelled = {number for number, row in enumerate(rows) if any(row)}
        assert set(anchors) == (labelled or open_cases)
        lonely = labelled if len(labelled) == 1 and len(open_cases) > 1 else set()
        assert set(guests) == open_cases - lonely
        assert len(anchors) == len(guests) >= 2
        if len(open_cases) > 1:
            assert all(anchor != guest for anchor, guest in zip(anchors, guests, strict=True))


def test_halves_pair_every_annotated_case_and_no_other():
    assert halves([NOTHING, LIVER, FULL, NOTHING, FULL]) == ([1, 2], [4, 1])
    assert halves([NOTHING, FULL]) == ([1], [1])
    assert halves([NOTHING, NOTHING]) == ([0], [1])


# kinds of cases


def test_where_everything_is_annotated_a_step_is_one_of_the_first_stage():
    batch, first, second = make_batch("full", "full"), make_method("bcp_pretraining"), make_method("bcp")
    first.student.load_state_dict(second.student.state_dict())
    losses = []
    for method in (first, second):
        torch.manual_seed(1)
        losses.append(method(batch, HALFWAY))
    assert losses[0]["supervised"].item() == losses[1]["supervised"].item() > 0
    assert losses[1]["pseudo"].item() == 0


def test_a_single_labelled_case_is_pasted_with_itself_in_the_first_stage():
    method, batch = make_method("bcp_pretraining"), make_batch("full")
    logits = method.student(batch.images)
    expected = region_loss(logits, batch.labels, batch.annotated, method.config) / 2
    torch.testing.assert_close(method(batch, HALFWAY)["supervised"], expected)


def test_voxels_of_cases_with_different_annotated_structures_are_judged_by_their_own():
    """The liver of a scan without it costs nothing where only the other scan knows the liver."""
    method = make_method("bcp_pretraining")
    labels = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    annotated = torch.stack([SPACE.annotated(["liver"]), SPACE.annotated(["spleen"])])
    logits = torch.zeros(1, 4, 16, 16, 16)
    keep = outside_of_box((16, 16, 16), 2 / 3, torch.device("cpu"))
    logits[:, 1] = 20.0 * ~keep  # liver inside the box, which is of the second scan
    logits[:, 2] = 20.0 * keep
    method.student = Replay(logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bcp_pretraining, "outside_of_box", lambda *_: keep)
        loss = method(Batch(torch.zeros(2, 1, 16, 16, 16), labels, annotated), HALFWAY)["supervised"]
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_a_guest_keeps_its_own_labels_and_annotated_structures_are_never_guessed():
    method, batch = make_method("bcp"), make_batch("partial", "full")
    logits = torch.zeros(1, 4, 32, 32, 32)
    logits[:, 1] = 9.0  # liver everywhere, which this case annotates
    logits[:, 2] = 5.0
    method.teacher = Replay(logits)
    guess = method.guess(batch, [0], 1)
    assert torch.equal(guess == 1, batch.labels[:1] == 1)
    assert torch.equal(guess == 2, batch.labels[:1] != 1)


def test_ignored_voxels_of_an_anchor_teach_nothing():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 6, 6, requires_grad=True)
    labels = torch.zeros(1, 6, 6, dtype=torch.int64)
    labels[:, 2:4] = 1
    labels[:, :, 3:] = IGNORE
    region_loss(logits, labels, all_known(1), BcpConfig()).backward()
    assert logits.grad[..., 3:].abs().max() == 0
    assert logits.grad[..., :3].abs().min() > 0


def test_without_largest_component_all_parts_are_learnt(arrays):
    method = make_method("bcp", settings={"largest_component": False})
    terms = method(make_batch("full", "none"), HALFWAY)
    assert terms["pseudo"].item() > 0


def test_joint_forward_shows_the_student_both_directions_at_once():
    sizes = {}
    for joint in (False, True):
        method, batch = make_method("bcp", settings={"joint_forward": joint}), make_batch("full", "none")
        network, seen = method.student, []
        network.register_forward_hook(lambda _, images, __, seen=seen: seen.append(len(images[0])))
        method(batch, HALFWAY)
        sizes[joint] = seen
    assert sizes == {False: [1, 1], True: [2]}


def test_teacher_bn_eval_asks_the_teacher_in_evaluation_mode():
    method = make_method("bcp", settings={"teacher_bn": "eval"})
    method(make_batch("full", "none"), HALFWAY)
    assert not method.teacher.network.training
    assert method.student.training


# the Dice


def test_the_dice_with_background_of_a_partly_annotated_case_joins_what_is_not_annotated():
    """p = 1/4 each on 4 voxels, 1 liver. Everything else: p = 3/4, 3 voxels: 4.5 / 6. Liver: 0.5 / 2."""
    labels, liver = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[False, True, False, False]])
    loss = dice_with_background(torch.zeros(1, 4, 4), labels, liver)
    assert loss.item() == pytest.approx(1 - (0.75 + 0.25) / 2, abs=1e-4)


def test_absent_classes_are_left_out_of_the_dice_or_counted():
    """p = 1/2, no structure: background 4 / 6; the structure's 1 - Dice is nearly 1."""
    labels = torch.zeros(1, 4, dtype=torch.int64)
    found = [
        dice_with_background(torch.zeros(1, 2, 4), labels, all_known(1), absent=absent).item()
        for absent in ("skip", "include")
    ]
    assert found == pytest.approx([1 / 3, (1 / 3 + 1) / 2], abs=1e-4)


def test_the_dice_is_zero_with_a_zero_gradient_where_nothing_is_annotated():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.tensor([[0] * 5, [IGNORE] * 5])
    annotated = torch.tensor([[False] * 3, [True] * 3])
    for absent in ("skip", "include"):
        loss = dice_with_background(logits, labels, annotated, absent=absent)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == gradient.abs().max() == 0


def test_the_background_can_be_left_out():
    batch = make_batch("full", "none")
    losses = []
    for background in (True, False):
        torch.manual_seed(0)
        method = make_method("bcp", settings={"include_background": background})
        losses.append(method(batch, HALFWAY)["supervised"].item())
    assert losses[0] != losses[1]


# stages


def test_the_second_stage_starts_with_the_student_of_the_first_and_a_teacher_like_it():
    assert stages_of(Bcp) == (BcpPretraining, Bcp)
    first, second = make_method("bcp_pretraining", seed=1), make_method("bcp", seed=2)
    second.start_from(first)
    expected = first.student.state_dict()
    for network in (second.student, second.teacher.network):
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_a_first_stage_with_another_network_is_refused_and_changes_nothing():
    second = make_method("bcp")
    before = {name: weights.clone() for name, weights in second.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        second.start_from(make_method("bcp_pretraining", dims=2))
    assert "same network" in str(caught.value)
    assert all(torch.equal(weights, before[name]) for name, weights in second.state_dict().items())


def test_the_rate_of_the_first_stage_is_constant_unless_switched_off():
    (group,) = make_method("bcp_pretraining").parameter_groups()
    assert group["schedule"] == {"name": "constant"}
    (group,) = make_method("bcp_pretraining", settings={"constant_rate": False}).parameter_groups()
    assert "schedule" not in group
    (group,) = make_method("bcp").parameter_groups()
    assert "schedule" not in group


def test_student_or_teacher_can_be_kept():
    for choice in ("student", "teacher"):
        method = make_method("bcp", settings={"eval_model": choice})
        expected = method.student if choice == "student" else method.teacher.network
        assert method.predictor().network is expected
