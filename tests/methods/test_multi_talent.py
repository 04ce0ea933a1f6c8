"""MultiTalent against the official loss, against a calculation in plain loops, and what follows from its regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import SMALL_NETS, make_batch, make_method
from labelwise.errors import ConfigError
from labelwise.losses.binary import binary_cross_entropy
from labelwise.methods import multi_talent
from labelwise.methods.base import NetFactory, Sigmoid
from labelwise.methods.multi_talent import MultiTalent, MultiTalentConfig, Painted, scale_weights
from labelwise.types import IGNORE, Batch, Progress

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HALFWAY = Progress(50, 100)
NESTED = ((1, 2), (2,), (3,))


def method_for(num_classes, dims=3, **settings):
    """As published, without known negatives, unless they are asked for."""
    torch.manual_seed(0)
    settings = {"known_negatives": False, **settings}
    nets = NetFactory("vnet", SMALL_NETS["vnet"], dims=dims, in_channels=1, num_classes=num_classes)
    return MultiTalent(nets, MultiTalentConfig(**settings))


def supervised(method, batch, *logits):
    """The term if these are the logits of the heads, fine to coarse."""
    method.logits = lambda images: list(logits)
    return method(batch, HALFWAY)["supervised"]


def by_loops(batch, regions, *scales):
    """The loss of the paper with 1 - Dice of the regions that have a voxel, one pair after the other."""
    total = torch.zeros(())
    for level, logits in enumerate(scales):
        step = [2**level] * (logits.ndim - 2)
        labels = batch.labels[(slice(None), *(slice(None, None, s) for s in step))]
        weight = 2.0**-level / sum(2.0**-i for i in range(len(scales)))
        for number, region in enumerate(regions):
            valid = [
                b for b in range(len(labels)) if all(batch.annotated[b, structure] for structure in region)
            ]
            common = sizes = true = torch.zeros(())
            for b in valid:
                known = labels[b] != IGNORE
                z = logits[b, number][known]
                y = sum((labels[b][known] == structure).float() for structure in region)
                if len(z):
                    total = total + weight * F.binary_cross_entropy_with_logits(z, y)
                p = z.sigmoid()
                common, sizes, true = common + (p * y).sum(), sizes + p.sum() + y.sum(), true + y.sum()
            if true > 0:
                total = total + weight * (1 - 2 * common / sizes)
    return total


def scales_of(batch, maps, count):
    generator = torch.Generator().manual_seed(7)
    sizes = [[length // 2**level for length in batch.labels.shape[1:]] for level in range(count)]
    return [
        torch.randn(len(batch.labels), maps, *size, generator=generator).requires_grad_() for size in sizes
    ]


def ragged(batch):
    """With a stripe of unknown voxels in every case."""
    labels = batch.labels.clone()
    labels[:, 4:7] = IGNORE
    return batch._replace(labels=labels)


# the loss


def test_loss_and_gradient_agree_with_the_official_code(golden):
    arrays = {key.removeprefix("psup_"): value for key, value in golden("marginal_exclusion").items()}
    labels = torch.from_numpy(arrays["sigmoid_labels"].astype(np.int64))
    annotated = torch.cat(
        [torch.zeros(3, 1, dtype=torch.bool), torch.from_numpy(arrays["sigmoid_annotated"])], 1
    )
    logits = torch.from_numpy(arrays["sigmoid_logits"]).requires_grad_()
    term = supervised(method_for(5), Batch(torch.zeros(3, 1, 4, 5, 6), labels, annotated), logits)
    # The official loss has -Dice where this one has 1 - Dice, for each of the 4 structures that have a voxel.
    present = len(set(labels.unique().tolist()) - {0})
    assert term.item() == pytest.approx(float(arrays["multitalent_loss"]) + present, rel=1e-5)
    (gradient,) = torch.autograd.grad(term, logits)
    torch.testing.assert_close(gradient, torch.from_numpy(arrays["multitalent_grad"]), **CLOSE)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("regions", [((1,), (2,), (3,)), NESTED])
def test_all_scales_together_agree_with_a_calculation_in_loops(dims, regions):
    batch = ragged(make_batch("full", "partial", "none", "full", dims=dims, size=16, absent="pancreas"))
    scales = scales_of(batch, 3, count=3)
    term = supervised(method_for(4, dims, regions=regions), batch, *scales)
    expected = by_loops(batch, regions, *scales)
    torch.testing.assert_close(term, expected, **CLOSE)
    ours, theirs = torch.autograd.grad(term, scales), torch.autograd.grad(expected, scales)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_map_learns_only_from_the_cases_that_annotate_its_structure():
    batch = make_batch("full", "partial", "none", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    supervised(method_for(4, 2), batch, logits).backward()
    reached = logits.grad.flatten(2).abs().amax(dim=2) > 0
    assert reached.tolist() == [[True, True, True], [True, False, False], [False, False, False]]


def test_a_map_that_is_not_annotated_learns_where_another_structure_is():
    """The second case annotates the liver: its other two maps get the mean of -log(1 - s) over the liver."""
    batch = make_batch("full", "partial", "none", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    plain, more = (supervised(method_for(4, 2, known_negatives=on), batch, logits) for on in (False, True))
    liver = batch.labels[1] == 1
    expected = F.softplus(logits[1, 1][liver]).mean() + F.softplus(logits[1, 2][liver]).mean()
    torch.testing.assert_close(more - plain, expected, **CLOSE)
    (gradient,) = torch.autograd.grad(more - plain, logits)
    assert gradient[0].abs().max() == gradient[2].abs().max() == gradient[1, 0].abs().max() == 0


def test_within_nested_regions_nothing_is_denied_that_may_be_hidden():
    batch = make_batch("partial", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    regions = {"regions": ((1, 2), (2,), (3,)), "known_negatives": True}
    more = supervised(method_for(4, 2, **regions), batch, logits)
    (gradient,) = torch.autograd.grad(more, logits)
    assert gradient[0, 1].abs().max() == 0
    assert (gradient[0, 2] != 0).equal(batch.labels[0] == 1)


def test_unknown_voxels_teach_nothing():
    batch = ragged(make_batch("full", "partial", dims=2, size=16))
    (logits,) = scales_of(batch, 3, count=1)
    supervised(method_for(4, 2), batch, logits).backward()
    assert logits.grad[:, :, 4:7].abs().max() == 0
    assert logits.grad[:, 0, :4].abs().min() > 0


def test_an_annotated_case_of_which_no_voxel_is_known_costs_nothing():
    batch = make_batch("full", dims=2, size=16)
    batch = batch._replace(labels=torch.full_like(batch.labels, IGNORE))
    (logits,) = scales_of(batch, 3, count=1)
    term = supervised(method_for(4, 2), batch, logits)
    term.backward()
    assert term.item() == 0
    assert logits.grad.abs().max() == 0


def test_an_absent_structure_is_taught_by_the_cross_entropy_alone():
    batch = make_batch("full", dims=2, size=16, absent="pancreas")
    (logits,) = scales_of(batch, 3, count=1)
    term = supervised(method_for(4, 2), batch, logits)
    (gradient,) = torch.autograd.grad(term, logits)
    alone = logits[:, 2:].sigmoid() / logits[0, 0].numel()
    torch.testing.assert_close(gradient[:, 2:], alone, **CLOSE)


def test_a_perfect_answer_costs_nothing():
    batch = make_batch("full", "partial", dims=2, size=16)
    truth = torch.stack([batch.labels == structure for structure in (1, 2, 3)], dim=1)
    assert supervised(method_for(4, 2), batch, truth * 200.0 - 100.0).item() == pytest.approx(0, abs=1e-5)


def test_the_dice_of_two_ranks_is_that_of_one_batch(monkeypatch):
    batch = make_batch("full", "partial", "full", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    method = method_for(4, 2)
    pairs = [method.valid_pairs(part) for part in (_cases(batch, 0, 2), _cases(batch, 2, 3))]
    _, elsewhere = method.answer(logits[2:], _cases(batch, 2, 3), pairs[1])
    monkeypatch.setattr(multi_talent, "as_if_one_batch", lambda sums: sums + elsewhere.detach())
    here = supervised(method, _cases(batch, 0, 2), logits[:2])
    other_entropy, _ = method.answer(logits[2:], _cases(batch, 2, 3), pairs[1])
    monkeypatch.undo()
    whole = supervised(method, batch, logits)
    torch.testing.assert_close(here + other_entropy, whole, **CLOSE)
    ours, theirs = (torch.autograd.grad(term, logits)[0][:2] for term in (here, whole))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def _cases(batch, first, last):
    rows = slice(first, last)
    return batch._replace(
        images=batch.images[rows],
        labels=batch.labels[rows],
        annotated=batch.annotated[rows],
        annotated_on_host=batch.annotated_on_host[rows],
    )


def test_the_step_is_the_same_without_the_copy_of_the_annotations_on_the_host():
    batch = make_batch("full", "partial", "none", dims=2)
    method = make_method("multi_talent", dims=2)
    terms = [method(b, HALFWAY)["supervised"].item() for b in (batch, batch._replace(annotated_on_host=()))]
    assert terms[0] == terms[1]


# scales


def test_every_scale_but_the_coarsest_has_a_head():
    method = make_method("multi_talent", dims=2)
    sizes = [tuple(logits.shape) for logits in method.logits(torch.zeros(1, 1, 32, 32))]
    assert sizes == [(1, 3, 32, 32), (1, 3, 16, 16), (1, 3, 8, 8)]  # the V-Net decodes on four scales
    assert scale_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_without_deep_supervision_there_is_one_head():
    method = make_method("multi_talent", dims=2, settings={"deep_supervision": False})
    assert len(method.logits(torch.zeros(1, 1, 32, 32))) == 1
    assert len(method.coarser_heads) == 0


@pytest.mark.parametrize("net", SMALL_NETS)
def test_any_network_can_be_supervised_deeply(net):
    torch.manual_seed(0)
    nets = NetFactory(net, SMALL_NETS[net], dims=2, in_channels=1, num_classes=4)
    method = MultiTalent(nets, MultiTalentConfig())
    method(make_batch("full", "partial", dims=2, size=64), HALFWAY)["supervised"].backward()
    heads = [method.network.head, *method.coarser_heads]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for head in heads for p in head.parameters())


# regions and prediction


def test_one_region_per_structure_is_the_default():
    batch = make_batch("full", "partial", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    terms = [supervised(method_for(4, 2, regions=r), batch, logits) for r in ((), ((1,), (2,), (3,)))]
    assert terms[0].item() == terms[1].item()


def test_a_region_is_valid_where_all_its_classes_are_annotated():
    method = method_for(4, 2, regions=NESTED)
    annotated = torch.tensor([[True] * 4, [False, True, False, True], [False, False, True, False]])
    batch = Batch(torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.int64), annotated)
    assert method.valid_pairs(batch).tolist() == [0, 1, 2, 3 + 2, 6 + 1]


def test_regions_can_be_written_in_a_recipe():
    method = make_method("multi_talent", settings={"regions": [[1, 2], [2], [3]]})
    assert method.regions == NESTED
    assert isinstance(method.predictor(), Painted)
    assert isinstance(make_method("multi_talent").predictor(), Sigmoid)


@pytest.mark.parametrize(
    "regions", [[[1, 2], [2]], [[1, 2], [1], [3]], [[1, 0], [2], [3]], [[1, 4], [2], [3]]]
)
def test_regions_that_paint_no_label_map_are_refused(regions):
    with pytest.raises(ConfigError, match="region"):
        make_method("multi_talent", settings={"regions": regions})


def painting(logits, regions):
    """The label map of the official inference: each region above one half paints, in the order of the regions."""
    labels = torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number, region in enumerate(regions):
        labels[logits[:, number].sigmoid() > 0.5] = region[0]
    return labels


@pytest.mark.parametrize("regions", [NESTED, ((3, 1, 2), (1, 2), (2,)), ((2,), (3,), (1,))])
def test_the_strongest_class_is_the_one_that_was_painted_last(regions):
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    scores = Painted(nn.Identity(), regions)(logits)
    assert scores.argmax(dim=1).equal(painting(logits, regions))
    assert len(scores.argmax(dim=1).unique()) == 4
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_the_mean_of_two_windows_is_painted_as_the_mean_of_their_regions():
    # A structure (0.9, 0.9) with a tumour in one window (0.6) and none in the other (0.3): the structure stays.
    logits = torch.tensor([[0.9, 0.6], [0.9, 0.3]]).logit().unsqueeze(-1)
    scores = Painted(nn.Identity(), ((1, 2), (2,)))(logits).mean(dim=0)
    torch.testing.assert_close(scores[:, 0], torch.tensor([0.1, 0.55, 0.45]))


def test_cross_entropies_are_added_up_and_not_averaged():
    # A case counts as much beside another one as alone: no structure is diluted by the company that it is in.
    batch = make_batch("full", "partial", dims=2, size=16)
    (logits,) = scales_of(batch, 3, count=1)
    method = method_for(4, 2)
    entropy, _ = method.answer(logits, batch, method.valid_pairs(batch))
    expected, asked = binary_cross_entropy(logits, *_answers(batch))
    assert int(asked.sum()) == 4
    torch.testing.assert_close(entropy, expected.sum(), **CLOSE)


def _answers(batch):
    known = batch.annotated[:, 1:, None, None] & (batch.labels != IGNORE).unsqueeze(1)
    return torch.stack([batch.labels == structure for structure in (1, 2, 3)], dim=1) & known, known
