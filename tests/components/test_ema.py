"""Averaged networks: how fast they follow, and the statistics of batch norm that belong to their weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from labelwise.components.teachers import (
    Decay,
    EmaTeacher,
    batch_norms,
    follow_statistics,
    renew_statistics,
    renew_teachers,
)
from labelwise.errors import ConfigError
from labelwise.nets.ghost_norm import over_cases
from labelwise.types import Progress

# how fast


def test_the_average_agrees_with_the_official_code(golden):
    arrays = golden("mean_teacher")
    student = nn.Linear(3, 1, bias=False)
    decay = Decay(0.1, fixed=float(arrays["ema_decay"]), warm_up=True)
    teacher = EmaTeacher(student, decay)
    teacher.network.weight.data.copy_(torch.from_numpy(arrays["ema_teacher_init"]))
    for step, (weights, expected) in enumerate(
        zip(arrays["ema_student"], arrays["ema_teacher"], strict=True)
    ):
        student.weight.data.copy_(torch.from_numpy(weights))
        teacher.follow(student, Progress(step, 100))
        torch.testing.assert_close(
            teacher.network.weight[0], torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6
        )


def test_half_of_an_average_is_new_after_its_half_life_whatever_the_length():
    for steps in (50, 400, 6000):
        assert Decay(half_life=0.1).start_left(steps) == pytest.approx(2**-10)
        moved_twice = Decay(half_life=0.1, moves=2)
        assert moved_twice.start_left(steps) == pytest.approx(2**-10)
        assert moved_twice.keep(Progress(0, steps)) ** 2 == pytest.approx(
            Decay(half_life=0.1).keep(Progress(0, steps))
        )
    assert Decay(half_life=0.0).keep(Progress(5, 100)) == 0


def test_the_published_decay_comes_out_at_the_published_length():
    assert Decay(half_life=0.0115).keep(Progress(3000, 6000)) == pytest.approx(0.99, abs=1e-4)
    assert Decay(half_life=0.0074).keep(Progress(0, 93600)) == pytest.approx(0.999, abs=1e-5)
    assert Decay(half_life=0.0037, moves=2).keep(Progress(0, 93600)) == pytest.approx(0.999, abs=1e-5)


def test_after_a_warm_up_nothing_is_left_of_the_start():
    decay = Decay(0.1, fixed=0.999, warm_up=True)
    assert [decay.keep(Progress(step, 100)) for step in (0, 1, 3)] == [0, 0.5, 0.75]
    assert decay.start_left(1) == 0


def test_a_decay_that_keeps_the_start_is_refused_with_the_number():
    slow = Decay(0.1, fixed=0.999)
    with pytest.raises(ConfigError, match=r"0\.999 leaves 67% of its start after 400 steps") as caught:
        slow.require_forgets("ema_decay", 400)
    assert "at most 0.9925" in str(caught.value)
    Decay(0.1, fixed=0.9925).require_forgets("ema_decay", 400)
    slow.require_forgets("ema_decay", 3000)
    with pytest.raises(ConfigError, match="45% of its start after 400"):  # two moves in each step
        Decay(0.1, fixed=0.999, moves=2).require_forgets("prototype_momentum", 400)


# what follows


def test_after_the_first_step_the_weights_of_the_teacher_are_those_of_the_student():
    student = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    teacher = EmaTeacher(student, Decay(0.1, warm_up=True))
    student[0].weight.data += 1
    student(torch.randn(2, 1, 4, 4, 4))
    teacher.follow(student, Progress(0, 100))
    for mine, theirs in zip(teacher.network.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_memories_are_averaged_or_copied_and_statistics_are_neither():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    student.register_buffer("memory", torch.ones(2))
    student.register_buffer("counted", torch.ones(2))
    teacher = EmaTeacher(student, Decay(0.1, fixed=0.75), averaged_buffers=["memory"])
    teacher.network.memory.zero_()
    teacher.network.counted.zero_()
    student[1].running_mean += 5
    teacher.follow(student, Progress(0, 100))
    assert teacher.network.memory.tolist() == [0.25, 0.25]
    assert teacher.network.counted.tolist() == [1, 1]
    assert teacher.network[1].running_mean.tolist() == [0, 0]


def test_the_teacher_takes_part_in_no_gradient():
    student = nn.Conv3d(1, 2, 1)
    teacher = EmaTeacher(student, Decay(0.1))
    assert not teacher(torch.randn(1, 1, 2, 2, 2)).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())


# statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Dropout2d(0.5), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    ).double()


def test_renewed_statistics_are_the_mean_over_the_batches():
    averaged = network()
    batches = [torch.randn(2, 1, 5, 5).double() + number for number in range(3)]
    expected = torch.stack([averaged[0](batch).mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    averaged[1].running_mean += 100
    renew_statistics(averaged, batches)
    torch.testing.assert_close(averaged[1].running_mean, expected.detach())
    assert averaged.training
    assert averaged[1].momentum == 0.1


def test_renewed_statistics_make_evaluation_agree_with_the_training_mode():
    averaged, images = network(), torch.randn(8, 1, 5, 5).double()
    averaged[2].p = 0.0
    renew_statistics(averaged, [images])
    in_training = averaged(images)
    # The running variance is the unbiased one, by the factor n / (n - 1), n = 200 values of a channel, of both norms.
    torch.testing.assert_close(averaged.eval()(images), in_training, rtol=0.01, atol=0.02)


def test_renewing_leaves_out_the_dropout_and_draws_no_random_number():
    averaged, images = network(), torch.randn(2, 1, 5, 5).double()
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        renew_statistics(averaged, [images])
        results.append(averaged[4].running_mean.clone())
    assert torch.equal(*results)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_batch_norm_asks_for_no_batch():
    def nothing():
        raise AssertionError("asked for a batch")
        yield

    renew_statistics(nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2)), nothing())
    renew_teachers(nn.Linear(1, 1), nothing)


def test_batch_norm_over_some_cases_is_renewed_too():
    ghost, images = over_cases(network().float(), 1), torch.randn(4, 1, 5, 5)
    plain = network().float()
    renew_statistics(ghost, [images])
    renew_statistics(plain, [images[row : row + 1] for row in range(4)])
    torch.testing.assert_close(ghost[1].running_mean, plain[1].running_mean)


def test_followed_statistics_move_by_the_momentum():
    averaged, images = network(), torch.randn(2, 1, 5, 5).double()
    follow_statistics(averaged, images)
    torch.testing.assert_close(
        averaged[1].running_mean, 0.1 * averaged[0](images).mean(dim=(0, 2, 3)).detach()
    )


def test_a_teacher_asked_in_evaluation_mode_has_statistics_of_its_own():
    """The weights of the student moved away; what the teacher says must not depend on the student's statistics."""
    torch.manual_seed(1)
    student = network()
    teacher = EmaTeacher(student, Decay(0.1, fixed=1.0), statistics="eval")
    images = torch.randn(4, 1, 5, 5).double() + 3
    for step in range(200):
        student[0].weight.data += 1
        student(images)
        teacher(images)
        teacher.follow(student, Progress(step, 200))
    expected = copy.deepcopy(teacher.network)
    renew_statistics(expected, [images])
    torch.testing.assert_close(teacher(images), expected.eval()(images), rtol=1e-3, atol=1e-3)
    assert teacher.training


def test_every_teacher_within_a_method_is_renewed():
    method = nn.Module()
    method.teacher = EmaTeacher(network(), Decay(0.1))
    method.student = network()
    images = torch.randn(2, 1, 5, 5).double() + 4
    renew_teachers(method, lambda: [images])
    assert all(norm.num_batches_tracked == 1 for norm in batch_norms(method.teacher))
    assert all(norm.num_batches_tracked == 0 for norm in batch_norms(method.student))
