"""The contract that every registered method keeps, without being asked: `labelwise.testing`, and its page."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from conftest import make_batch, make_method
from labelwise import testing
from labelwise.losses.partial import per_voxel
from labelwise.methods import METHODS, find_method
from labelwise.nets.parts import SegmentationNet
from labelwise.settings import build_settings
from labelwise.testing import HALFWAY, METHOD_CHECKS, annotated_in_parts, check_method, terms_of
from labelwise.types import IGNORE, Progress

# A random network is sure of nothing and finds nothing, and these learn only from what is sure and found elsewhere.
BELIEVING = {"confidence": 0.0, "reliability": False}
SURE_OF_ANYTHING = {"self_training": BELIEVING, "noisy_student": BELIEVING}
# Which of its classes a voxel of a region has, these do not ask: docs/how-to/classes-that-overlap.md.
DEAF_TO_REGIONS = {
    "conemos", "dodnet", "dtc", "ltuda", "ltuda_cda", "multi_talent", "naive", "pl_seg", "sassnet", "ss_net", "ucmt",
}  # fmt: skip
NEED_A_CASE_WITHOUT_GAPS = ("sassnet",)  # to compare the others with
ROOT = Path(__file__).parents[2]
HEADINGS = (
    "Idea",
    "Algorithm",
    "What is logged",
    "Differences from the paper and from the official code",
    "Results",
)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_a_method_keeps_the_contract(check, name):
    check_method(find_method(name), only=[check])


@pytest.mark.parametrize(
    ("name", "settings"), [("sassnet", {}), ("caml", {}), ("dkuxnet", {"query_weight": 0.0})]
)
def test_ranks_look_for_weights_without_a_gradient_where_there_are_some(name, settings):
    method = make_method(name, settings=settings)
    terms = terms_of(method, make_batch("full", "full"))
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert any(weight.requires_grad and weight.grad is None for weight in method.parameters())
    assert find_method(name).card.idle_weights


@pytest.mark.parametrize("name", METHODS)
def test_what_is_open_in_cases_annotated_in_parts_is_learnt_from_as_without_labels(name):
    card = find_method(name).card
    if "none" not in card.learns_from or name in NEED_A_CASE_WITHOUT_GAPS:
        pytest.skip("learns from labels only, or compares with cases that have no gaps")
    dims = min(card.dims)
    method = make_method(name, dims=dims, settings=SURE_OF_ANYTHING.get(name))
    batch = annotated_in_parts(dims)
    terms_of(method, batch)  # memories are filled by the first step
    method.after_step(HALFWAY)
    terms = terms_of(method, batch)
    assert any(term.item() != 0 for key, term in terms.items() if key != "supervised")


@pytest.mark.parametrize("name", METHODS)
def test_what_terms_weigh_follows_the_part_of_the_training_and_not_its_length(name):
    """Ramps and warm-ups at a third and at the end, of 600 and of 60000 steps; stairs differ by one of a hundred."""
    dims = min(find_method(name).card.dims)
    batch = make_batch("full", "partial", "none", dims=dims)
    for part in (1 / 3, 1 - 1 / 300):
        short, long = (
            terms_of(make_method(name, dims=dims), batch, Progress(round(part * total), total))
            for total in (600, 60_000)
        )
        for term in short:
            assert short[term].item() == pytest.approx(long[term].item(), rel=0.08, abs=1e-6), (
                f"{term} at {part:.2f}"
            )


@pytest.mark.parametrize("name", [name for name in METHODS if find_method(name).card.nets is None])
def test_heads_at_coarser_scales_learn_in_the_methods_whose_card_says_so(name):
    kind = find_method(name)
    net_settings = {"width": 4, "blocks": (1, 1, 2), "deep_supervision": True}
    method = testing.make_method(
        kind, dims=min(kind.card.dims), net="residual_unet", net_settings=net_settings
    )
    terms = terms_of(method, make_batch("full", "full", dims=min(kind.card.dims)))
    networks = [part for part in method.modules() if isinstance(part, SegmentationNet)]
    heads = [weight for net in networks for weight in net.coarse_heads.parameters() if weight.requires_grad]
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert any(weight.grad is not None for weight in heads) == kind.card.deep_supervision


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_documentation_is_complete(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for heading in HEADINGS:
        assert f"## {heading}" in page, f"docs/methods/{name}.md has no section '{heading}'"


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_of_the_settings_are_documented(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for setting in (field.name for field in fields(find_method(name).Config)):
        assert f"`{setting}`" in page, f"docs/methods/{name}.md does not explain '{setting}'"


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_changes_settings_and_is_documented(name):
    kind = find_method(name)
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    for preset, settings in kind.presets.items():
        defaults, published = kind.Config(), build_settings(kind.Config, settings, preset)
        assert all(getattr(published, key) != getattr(defaults, key) for key in settings)
        assert f'`preset = "{preset}"`' in page


@pytest.mark.parametrize("name", METHODS)
def test_the_inside_of_a_region_supervises_the_methods_that_say_so(name):
    """Against the same voxels of which nothing is known."""
    dims = min(find_method(name).card.dims)
    batch = make_batch("full", "full", "none", dims=dims)._replace(sparse=(True, True, False))
    labels, annotated = batch.labels.clone(), per_voxel(batch.annotated, batch.labels).clone()
    within = (labels[1] == 1) | (labels[1] == 2)
    labels[1][within] = IGNORE
    told = annotated.clone()
    told[1, 1:3] &= ~within
    with_region, without = (
        terms_of(make_method(name, dims=dims), batch._replace(labels=labels, annotated=known))[
            "supervised"
        ].item()
        for known in (told, annotated)
    )
    assert (with_region == pytest.approx(without, abs=1e-7)) == (name in DEAF_TO_REGIONS)
    page = (ROOT / "docs/how-to/classes-that-overlap.md").read_text()
    assert (
        name in DEAF_TO_REGIONS or name.endswith("_pretraining") or f"`{name}`" in page.split("The others")[0]
    )
