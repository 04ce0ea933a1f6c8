"""The contract that every registered method keeps, without being asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import SPACE, make_batch, make_method
from labelwise.components.batch_statistics import batch_norms, renew_statistics
from labelwise.components.ema import EmaTeacher, renew_teachers
from labelwise.methods import METHODS, find_method
from labelwise.types import IGNORE, Progress

ROOT = Path(__file__).parents[2]
HALFWAY = Progress(50, 100)
MIXES = [
    ("full", "full"),
    ("full", "none"),
    ("partial", "none"),
    ("full", "partial", "none"),
    ("partial",),
    ("none", "none"),
]


NEED_A_CASE_WITHOUT_GAPS = ("sassnet",)  # to compare the others with


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def dims_of(name):
    return sorted(find_method(name).card.dims)


def terms_of(method, batch, progress=HALFWAY, seed=3):
    labels = batch.labels.numpy()
    spacing_mm = np.ones((len(labels), labels.ndim - 1))
    extra = {
        key: torch.from_numpy(function(labels, batch.annotated.numpy(), spacing_mm))
        for key, function in method.extra_targets().items()
    }
    torch.manual_seed(seed)
    return method(batch._replace(extra=extra), progress)


@pytest.mark.parametrize("kinds", MIXES, ids="+".join)
def test_terms_are_finite_for_every_mix_of_cases(name, kinds):
    for dims in dims_of(name):
        method = make_method(name, dims=dims)
        terms = terms_of(method, make_batch(*kinds, dims=dims))
        assert terms, "a method without a loss term"
        torch.stack(list(terms.values())).sum().backward()
        for key, term in terms.items():
            assert term.shape == (), key
            assert term.isfinite(), key
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)


def test_the_terms_have_the_same_names_for_every_mix_of_cases(name):
    # Ranks add up their terms one by one, and each rank has other cases.
    names = [tuple(terms_of(make_method(name), make_batch(*kinds))) for kinds in MIXES]
    assert names == [names[0]] * len(MIXES)


def test_every_term_teaches(name):
    method = make_method(name)
    terms_of(method, make_batch("full", "partial", "none"))  # memories are filled by the first step
    method.after_step(HALFWAY)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for key, term in terms_of(method, make_batch("full", "partial", "none")).items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        reached = any(g is not None and g.abs().sum() > 0 for g in gradients)
        assert reached, f"term '{key}' reaches no trainable weight"


def test_labels_of_unlabelled_cases_are_never_read(name):
    batch = make_batch("full", "none")
    changed = batch.labels.clone()
    changed[1] = torch.where(torch.rand(changed[1].shape) < 0.5, 0, IGNORE)
    before = terms_of(make_method(name), batch)
    after = terms_of(make_method(name), batch._replace(labels=changed))
    assert {key: term.item() for key, term in before.items()} == {
        key: term.item() for key, term in after.items()
    }


def test_cases_that_are_annotated_in_parts_are_learnt_from_with_and_without_labels(name):
    if "none" not in find_method(name).card.learns_from:
        pytest.skip("learns from labels only")
    dims = dims_of(name)[0]
    batch = make_batch("full", "full", "full", "full", dims=dims)
    batch.labels[..., 1::4] = batch.labels[..., 2::4] = batch.labels[..., 3::4] = IGNORE
    method = make_method(name, dims=dims)
    terms_of(method, batch._replace(sparse=(True,) * 4))  # memories are filled by the first step
    method.after_step(HALFWAY)
    terms = terms_of(method, batch._replace(sparse=(True,) * 4))
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.isfinite() for term in terms.values())
    assert terms["supervised"].item() > 0
    if name not in NEED_A_CASE_WITHOUT_GAPS:
        assert any(term.item() != 0 for key, term in terms.items() if key != "supervised")


def test_without_supervision_the_supervised_part_is_silent(name):
    method = make_method(name)
    terms = terms_of(method, make_batch("none", "none"))
    assert terms["supervised"].item() == 0


def test_a_class_without_a_voxel_is_no_problem(name):
    terms = terms_of(make_method(name), make_batch("full", "none", absent="pancreas"))
    assert all(term.isfinite() for term in terms.values())


def test_bf16_gives_nearly_the_same_terms_in_float32(name):
    batch = make_batch("full", "partial", "none")
    exact = terms_of(make_method(name), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = terms_of(make_method(name), batch)
    for key, term in rough.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(exact[key].item(), rel=0.1, abs=0.02), key


class Waits(TorchDispatchMode):
    """Writes down the operations for which a host would wait for its GPU."""

    WAITING = (
        *("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default"),
        *("bincount", "repeat_interleave.Tensor"),
    )

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        by_mask = str(function).startswith(("aten.index.", "aten.index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(name in str(function) for name in self.WAITING):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(name):
    method, batch = make_method(name), make_batch("full", "partial", "none")
    with Waits() as waits:
        torch.stack(list(terms_of(method, batch).values())).sum().backward()
        method.after_step(HALFWAY)
    assert not waits.seen


def test_the_same_seed_gives_the_same_step(name):
    losses = []
    for _ in range(2):
        method = make_method(name, seed=5)
        losses.append([term.item() for term in terms_of(method, make_batch("full", "none")).values()])
    assert losses[0] == losses[1]


def test_the_predictor_gives_one_score_per_class_in_the_unit_interval(name):
    for dims in dims_of(name):
        predictor = make_method(name, dims=dims).predictor().eval()
        with torch.inference_mode():
            scores = predictor(make_batch("full", "none", dims=dims).images)
        assert scores.shape == (2, SPACE.num_classes, *[32] * dims)
        assert scores.dtype == torch.float32
        assert scores.min() >= 0
        assert scores.max() <= 1


def test_overfits_two_cases(name):
    method = make_method(name, dims=dims_of(name)[0])
    batch = make_batch(
        "full", "partial" if "partial" in method.card.learns_from else "full", dims=dims_of(name)[0]
    )
    shared = [group for group in method.parameter_groups() if "optimizer" not in group]
    optimizer = torch.optim.Adam([p for group in shared for p in group["params"]], 0.01)
    first = last = 0.0
    for step in range(40):
        progress = Progress(step, 40)
        torch.manual_seed(step)
        last = terms_of(method, batch, progress, seed=step)["supervised"]
        first = first or last.item()
        optimizer.zero_grad()
        last.backward()
        optimizer.step()
        method.after_step(progress)
    assert last.item() < 0.5 * first


def test_state_survives_a_save_and_a_load(name):
    method, twin = make_method(name, seed=1), make_method(name, seed=2)
    method.after_step(HALFWAY)
    twin.load_state_dict(method.state_dict())
    batch = make_batch("full", "none")
    mine, theirs = terms_of(method, batch), terms_of(twin, batch)
    assert {k: t.item() for k, t in mine.items()} == {k: t.item() for k, t in theirs.items()}


def test_averaged_networks_are_declared_and_their_statistics_can_be_renewed(name):
    for dims in dims_of(name):
        method = make_method(name, dims=dims)
        teachers = [part for part in method.modules() if isinstance(part, EmaTeacher)]
        assert all(teacher.decay in method.decays(method.config).values() for teacher in teachers)
        renew_teachers(method, lambda dims=dims: [make_batch("full", "none", dims=dims).images])
        predictor = method.predictor()
        renew_statistics(predictor, [make_batch("full", "none", dims=dims).images])
        for network in (predictor, *(teacher.network for teacher in teachers)):
            assert all(norm.num_batches_tracked > 0 for norm in batch_norms(network))


def test_the_defaults_suit_every_length_of_training(name):
    kind = find_method(name)
    for setting, decay in kind.decays(kind.Config()).items():
        for steps in (10, 400, 100_000):
            decay.require_forgets(setting, steps)


def test_parameter_groups_cover_every_trainable_weight_once(name):
    method = make_method(name)
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)


def test_the_card_and_the_page_of_documentation_exist(name):
    card = find_method(name).card
    assert card.title
    assert card.idea.endswith(".")
    assert card.dims <= {2, 3}
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for heading in (
        "Idea",
        "Algorithm",
        "What is logged",
        "Differences from the paper and from the official code",
        "Results",
    ):
        assert f"## {heading}" in page, f"docs/methods/{name}.md has no section '{heading}'"


def test_the_defaults_of_the_settings_are_documented(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for setting in find_method(name).Config.__dataclass_fields__:
        assert f"`{setting}`" in page, f"docs/methods/{name}.md does not explain '{setting}'"
