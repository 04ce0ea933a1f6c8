"""The memory of vectors by case, and the batch norm of tables that are not full."""

from __future__ import annotations

import torch
from torch import nn

from labelwise.components.masked_norm import MaskedBatchNorm
from labelwise.methods.caml.case_memory import CaseMemory, Entries, case_numbers

CPU = torch.device("cpu")


def entry(case, value, counts, valid=True):
    """One case whose vectors all are `value`; 2 classes, room for 4 vectors of 3 features."""
    return Entries(
        case_numbers([case], CPU),
        torch.full((1, 2, 4, 3), float(value)),
        torch.tensor([counts]),
        torch.tensor([valid]),
    )


def both(*entries):
    return Entries(*(torch.cat(part) for part in zip(*entries, strict=True)))


def small_memory(cases=2):
    return CaseMemory(cases, 2, 4, 3)


def test_an_empty_memory_gives_nothing():
    drawn = small_memory().draw(5, 1)
    assert drawn.vectors.shape == (10, 3)
    assert not drawn.filled.any()


def test_a_case_replaces_what_it_wrote_before():
    memory = small_memory()
    memory.write(both(entry("a", 1, (4, 2)), entry("b", 2, (0, 0)), entry("a", 3, (3, 0))))
    drawn = memory.draw(8, 1)
    assert drawn.filled.tolist() == [True] * 3 + [False] * 13
    assert (drawn.vectors[:3] == 3).all()


def test_a_full_memory_forgets_the_case_that_was_written_first():
    memory = small_memory()
    for number, case in enumerate("abac"):
        memory.write(entry(case, number, (1, 1)))
    drawn = memory.draw(8, 1)
    assert sorted(drawn.vectors[drawn.filled][:, 0].tolist()) == [2, 2, 3, 3]


def test_entries_that_are_not_valid_change_nothing():
    memory = small_memory()
    memory.write(entry("a", 1, (4, 4)))
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    memory.write(both(entry("a", 5, (2, 2), valid=False), entry("b", 6, (2, 2), valid=False)))
    for name, value in memory.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_vectors_are_drawn_without_replacement():
    memory = small_memory()
    memory.write(entry("a", 0, (4, 4))._replace(vectors=torch.arange(24.0).view(1, 2, 4, 3)))
    drawn = memory.draw(4, 1)
    assert sorted(drawn.vectors[:, 0].tolist()) == [0, 3, 6, 9, 12, 15, 18, 21]


def test_a_class_with_too_few_vectors_is_left_out():
    memory = small_memory()
    memory.write(entry("a", 1, (4, 3)))
    assert memory.draw(2, 4).filled.tolist() == [True, True, False, False]


def test_a_case_that_offered_more_is_drawn_more_often():
    torch.manual_seed(0)
    memory = small_memory()
    memory.write(both(entry("a", 0, (400, 4)), entry("b", 1, (4, 4))))
    drawn = torch.stack([memory.draw(1, 1).vectors[:, 0] for _ in range(300)])
    assert drawn[:, 0].mean() < 0.05  # one of 101
    assert 0.4 < drawn[:, 1].mean() < 0.6


def test_case_numbers_do_not_depend_on_the_run():
    numbers = case_numbers(["case_1", "case_2"], CPU)
    assert numbers.tolist() == [1126525123471743060, 2953994217755171107]


def test_masked_batch_norm_equals_the_batch_norm_of_the_rows_that_count():
    torch.manual_seed(0)
    rows, where = torch.randn(9, 4), torch.arange(9) % 3 > 0
    masked, plain = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    torch.testing.assert_close(masked(rows, where)[where], plain(rows[where]))
    torch.testing.assert_close(masked.running_mean, plain.running_mean)
    torch.testing.assert_close(masked.running_var, plain.running_var)
    torch.testing.assert_close(masked(rows), plain.eval()(rows))
    torch.testing.assert_close(masked.eval()(rows, where), plain(rows))


def test_masked_batch_norm_learns_nothing_from_fewer_than_two_rows():
    norm = MaskedBatchNorm(2)
    for count in (0, 1):
        result = norm(torch.randn(3, 2) + 5, torch.arange(3) < count)
        assert result.isfinite().all()
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]


def test_a_case_that_offered_more_is_drawn_as_often_as_if_all_had_been_kept():
    """Four vectors stand for eight, two for two: 8 of 10 draws; within four standard errors of 1500 draws."""
    memory = small_memory()
    memory.write(both(entry("a", 1, (8, 0)), entry("b", 2, (2, 0))))
    torch.manual_seed(0)
    first = torch.stack([memory.draw(1, 1).vectors[0, 0] for _ in range(1500)])
    assert abs((first == 1).double().mean().item() - 0.8) < 4 * (0.8 * 0.2 / 1500) ** 0.5
