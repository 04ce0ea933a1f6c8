"""The contract of methods and networks, as checks for the tests of your own package.

    from labelwise.testing import check_method, check_network

    def test_my_method_keeps_the_contract():
        check_method(MyMethod)

    def test_my_network_keeps_the_contract():
        check_network(MyNet, settings={"width": 4})

Every registered method is held to the same checks (tests/contract). Networks and images are tiny: seconds on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from labelwise.components.teachers import EmaTeacher, batch_norms, renew_statistics, renew_teachers
from labelwise.losses.partial import per_voxel
from labelwise.methods.base import Method, NetFactory
from labelwise.nets.parts import Head
from labelwise.settings import build_settings
from labelwise.testing.checks import by_name, require, run_checks
from labelwise.testing.networks import NETWORK_CHECKS, check_network
from labelwise.types import IGNORE, Batch, LabelSpace, Progress, check_batch

__all__ = [
    "METHOD_CHECKS",
    "NETWORK_CHECKS",
    "SPACE",
    "check_method",
    "check_network",
    "make_batch",
    "make_method",
]

Kind = Literal["full", "partial", "none"]

SPACE = LabelSpace(("background", "liver", "spleen", "pancreas"))
"""The classes of `make_batch`."""

KNOWN: Mapping[Kind, tuple[str, ...]] = {"full": SPACE.structures, "partial": ("liver",), "none": ()}
HALFWAY = Progress(50, 100)
PADDED = 8  # voxels beyond the scan
MIXES: tuple[tuple[Kind, ...], ...] = (
    ("full", "full"),
    ("full", "none"),
    ("partial", "none"),
    ("full", "partial", "none"),
    ("partial",),
    ("none", "none"),
)
# Networks of a few thousand weights, without dropout.
SMALL_NETS: Mapping[str, Mapping[str, Any]] = {
    "vnet": {"width": 4, "dropout": 0.0},
    "unet": {"width": 4, "dropout_scale": 0.0},
    "residual_unet": {"width": 4, "blocks": (1, 1, 2)},
    "dynunet": {"width": 4, "depth": 4},
    "dodnet_unet": {"width": 4},
    "film_unet": {"width": 4, "depth": 3},
    "pipofan": {"width": 4},
    "plseg_unet": {"width": 4, "dropout_scale": 0.0},
    "ltuda_unet": {"width": 4},
    "urpc_unet": {"width": 4, "dropout_scale": 0.0},
    "uxnet": {"width": 4},
}


def make_batch(*kinds: Kind, dims: int = 3, size: int = 32, seed: int = 0, absent: str = "") -> Batch:
    """Cases of the given kinds: bright boxes in noise, one for each structure of `SPACE`.

    Arguments
        kinds       full (every structure is annotated), partial (the liver only), none
        size        voxels along each axis
        absent      a structure that no case has

    Example
        >>> make_batch("full", "none", dims=2).annotated
        tensor([[ True,  True,  True,  True],
                [False, False, False, False]])
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(len(kinds), *[size] * dims, dtype=torch.int64)
    images = torch.randn(len(kinds), 1, *[size] * dims, generator=generator) * 0.3
    for number in range(1, SPACE.num_classes):
        if SPACE.names[number] == absent:
            continue
        low = (number - 1) * size // 4
        box = (slice(None), *[slice(low, low + size // 4)] * dims)
        labels[box] = number
        images[:, 0][box] += number
    annotated = torch.stack([SPACE.annotated(KNOWN[kind]) for kind in kinds])
    for row, kind in enumerate(kinds):
        known = annotated[row].clone()
        known[0] = True
        labels[row] = labels[row] * known[labels[row]] if kind != "none" else IGNORE
    rows = tuple(tuple(row) for row in annotated.tolist())
    batch = Batch(images, labels, annotated, tuple(f"case_{i}" for i in range(len(kinds))), {}, rows)
    check_batch(batch)
    return batch


def net_of(kind: type[Method]) -> str:
    """The network that the checks give a method: a V-Net, or the first one that it can use."""
    return "vnet" if kind.card.nets is None or "vnet" in kind.card.nets else min(kind.card.nets)


def make_method(
    kind: type[Method],
    *,
    dims: int = 3,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    net: str | None = None,
    net_settings: Mapping[str, Any] | None = None,
) -> Method:
    """A method for one channel and the classes of `SPACE`, with a network of a few thousand weights.

    Arguments
        settings        of the method, in place of its defaults
        net             name of the network; default: a V-Net, or the first one that the method can use
        net_settings    of the network; default: small ones for ours, the defaults of another package's

    Errors
        ConfigError     a setting that method or network do not have
    """
    torch.manual_seed(seed)
    name = net or net_of(kind)
    chosen = SMALL_NETS.get(name, {}) if net_settings is None else net_settings
    nets = NetFactory(name, chosen, dims=dims, in_channels=1, num_classes=SPACE.num_classes)
    return kind(nets, build_settings(kind.Config, settings or {}, kind.__name__))


def check_method(
    kind: type[Method],
    *,
    settings: Mapping[str, Any] | None = None,
    net: str | None = None,
    net_settings: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Hold a method to the contract that the training, the loader and several ranks rely on.

    Arguments
        settings, net, net_settings     as in `make_method`
        only        names of METHOD_CHECKS; default: all

    Errors
        AssertionError  every check that failed, and what it found
        ConfigError     unknown check or setting
    """
    build_settings(kind.Config, settings or {}, kind.__name__)  # a wrong one is no broken check
    candidate = Candidate(kind, settings or {}, net, net_settings)
    run_checks(
        {name: partial(check, candidate) for name, check in METHOD_CHECKS.items()}, only, kind.__name__
    )


# methods


@dataclass(frozen=True)
class Candidate:
    """A method under test, and how it is built."""

    kind: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    net: str | None = None
    net_settings: Mapping[str, Any] | None = None

    @property
    def dims(self) -> list[int]:
        """The numbers of axes that it works with, in order."""
        return sorted(self.kind.card.dims)

    def make(self, *, dims: int = 3, seed: int = 0) -> Method:
        """A new one; in another number of axes if it does not have these."""
        return make_method(
            self.kind, dims=dims if dims in self.dims else self.dims[0], seed=seed,
            settings=self.settings, net=self.net, net_settings=self.net_settings,
        )  # fmt: skip

    def batch(self, *kinds: Kind, dims: int = 3, absent: str = "") -> Batch:
        """A batch for `make` with the same arguments."""
        return make_batch(*kinds, dims=dims if dims in self.dims else self.dims[0], absent=absent)


def terms_of(method: Method, batch: Batch, progress: Progress = HALFWAY, seed: int = 3) -> dict[str, Tensor]:
    """The loss terms of one step as the loop sees them: extra targets computed, the generator seeded.

    Targets are made of labels; a voxel at which less is annotated than in its case is IGNORE for them.
    """
    annotated = torch.tensor(batch.annotated_rows)
    less = (per_voxel(batch.annotated, batch.labels) != per_voxel(annotated, batch.labels)).any(dim=1)
    labels = batch.labels.masked_fill(less, IGNORE).numpy()
    spacing_mm = np.ones((len(labels), labels.ndim - 1))
    extra = {
        name: torch.from_numpy(function(labels, annotated.numpy(), spacing_mm))
        for name, function in method.extra_targets().items()
    }
    torch.manual_seed(seed)
    terms: dict[str, Tensor] = method(batch._replace(extra=extra), progress)
    return terms


def _values(terms: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def terms_are_finite_for_every_mix_of_cases(candidate: Candidate) -> None:
    """Scalars without NaN, and gradients without NaN, whatever is annotated in the batch."""
    for kinds in MIXES:
        for dims in candidate.dims:
            method = candidate.make(dims=dims)
            terms = terms_of(method, candidate.batch(*kinds, dims=dims))
            require(bool(terms), "a method without a loss term")
            for name, term in terms.items():
                require(term.shape == (), f"term '{name}' has the shape {tuple(term.shape)}, not ()")
                require(bool(term.isfinite()), f"term '{name}' is {term.item()} for cases {kinds}")
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            gradients = [p.grad for p in method.parameters() if p.grad is not None]
            require(bool(gradients), f"no weight has a gradient for cases {kinds}")
            finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
            require(finite, f"a gradient is not finite for cases {kinds}")


def terms_have_the_same_names_for_every_mix_of_cases(candidate: Candidate) -> None:
    """Ranks add up their terms one by one, and each rank has other cases."""
    names = {kinds: tuple(terms_of(candidate.make(), candidate.batch(*kinds))) for kinds in MIXES}
    require(len(set(names.values())) == 1, f"names differ: {names}")


def every_term_teaches(candidate: Candidate) -> None:
    """Each term has a gradient that is not 0 in some trainable weight."""
    method, batch = candidate.make(), candidate.batch("full", "partial", "none")
    terms_of(method, batch)  # memories are filled by the first step
    method.after_step(HALFWAY)
    parameters = [p for p in method.parameters() if p.requires_grad]
    for name, term in terms_of(method, batch).items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        reached = any(g is not None and bool(g.abs().sum() > 0) for g in gradients)
        require(reached, f"term '{name}' reaches no trainable weight")


def labels_of_unlabelled_cases_are_never_read(candidate: Candidate) -> None:
    """Other voxels in the label map of a case without annotation change nothing."""
    batch = candidate.batch("full", "none")
    changed = batch.labels.clone()
    generator = torch.Generator().manual_seed(0)
    changed[1] = torch.where(torch.rand(changed[1].shape, generator=generator) < 0.5, 0, IGNORE)
    before = _values(terms_of(candidate.make(), batch))
    after = _values(terms_of(candidate.make(), batch._replace(labels=changed)))
    require(before == after, f"terms {before} became {after}")


def cases_annotated_in_parts_are_learnt_from(candidate: Candidate) -> None:
    """Three of four planes that nobody annotated are open: the others still supervise."""
    method = candidate.make(dims=candidate.dims[0])
    batch = annotated_in_parts(candidate.dims[0])
    supervision = _finite_terms_of_a_second_step(method, batch)["supervised"]
    require(supervision.item() > 0, "the annotated planes do not supervise")


def a_class_is_learnt_only_where_it_is_annotated(candidate: Candidate) -> None:
    """What is annotated may differ from voxel to voxel (B, C, *S): where nothing is, a 0 says as little as IGNORE."""
    dims = candidate.dims[0]
    batch = candidate.batch("full", "partial", "none", dims=dims)._replace(sparse=(True, True, False))
    labels, annotated = batch.labels.clone(), per_voxel(batch.annotated, batch.labels).clone()
    labels[..., 1::4] = IGNORE
    zeros, fewer = labels.clone(), annotated.clone()
    zeros[:2, ..., 1::4], fewer[..., 1::4] = 0, False
    plain, alike, unknown = (
        _values(terms_of(candidate.make(dims=dims), batch._replace(labels=given, annotated=known)))
        for given, known in ((labels, batch.annotated), (labels, annotated), (zeros, fewer))
    )
    for name, value in plain.items():
        for told, other in (("the same at each voxel", alike[name]), ("nothing there", unknown[name])):
            close = abs(value - other) <= 1e-4 * max(1, abs(value))
            require(close, f"term '{name}' is {value} with IGNORE, {other} with annotated {told}")


def cases_annotated_for_a_region_are_learnt_from(candidate: Candidate) -> None:
    """A voxel may be known to be one of two structures, nobody knows which: terms stay finite, the others supervise."""
    dims = candidate.dims[0]
    batch = candidate.batch("full", "full", "full", "none", dims=dims)._replace(
        sparse=(True, True, True, False)
    )
    labels, annotated = batch.labels.clone(), per_voxel(batch.annotated, batch.labels).clone()
    within = (labels[1] == 1) | (labels[1] == 2)
    annotated[1, 1:3] &= ~within
    labels[1][within] = IGNORE
    method = candidate.make(dims=dims)
    told = batch._replace(labels=labels, annotated=annotated)
    supervision = _finite_terms_of_a_second_step(method, told)["supervised"]
    for name, value in method.named_parameters():
        finite = value.grad is None or bool(value.grad.isfinite().all())
        require(finite, f"the gradient of {name} is not finite")
    require(supervision.item() > 0, "the labelled voxels do not supervise")


def _finite_terms_of_a_second_step(method: Method, batch: Batch) -> dict[str, Tensor]:
    """The terms, all finite, with their gradients taken; the first step has filled the memories."""
    terms_of(method, batch)
    method.after_step(HALFWAY)
    terms = terms_of(method, batch)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    for name, term in terms.items():
        require(bool(term.isfinite()), f"term '{name}' is {term.item()}")
    return terms


def what_lies_beyond_the_scan_is_not_learnt_from(candidate: Candidate) -> None:
    """Padding asks no voxel for an answer: no term has a gradient there in the logits of a network."""
    if "none" not in candidate.kind.card.learns_from:
        return  # nothing but labels asks for an answer
    dims = candidate.dims[0]
    batch, method = beyond_the_scan(dims), candidate.make(dims=dims)
    terms_of(method, batch)  # memories are filled by the first step
    method.after_step(HALFWAY)
    logits: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad and output.shape[2:] == batch.labels.shape[1:]:
            output.retain_grad()
            logits.append(output)

    hooks = [part.register_forward_hook(keep) for part in method.modules() if isinstance(part, Head)]
    terms = terms_of(method, batch)
    for hook in hooks:
        hook.remove()
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    for output in logits:
        if output.grad is not None:
            largest = output.grad[..., -PADDED:].abs().max().item()
            require(largest == 0, f"a gradient of {largest} in padding: act where batch.inside is true")


def beyond_the_scan(dims: int) -> Batch:
    """Cases of all kinds, whose last `PADDED` voxels along the last axis are padding."""
    batch = make_batch("full", "partial", "none", "none", dims=dims)
    images, labels, valid = batch.images.clone(), batch.labels.clone(), torch.ones_like(batch.labels).bool()
    images[..., -PADDED:], labels[..., -PADDED:], valid[..., -PADDED:] = 0, IGNORE, False
    padded = batch._replace(images=images, labels=labels, valid=valid)
    check_batch(padded)
    return padded


def annotated_in_parts(dims: int) -> Batch:
    """Four cases of all structures, of which every fourth plane is annotated."""
    batch = make_batch("full", "full", "full", "full", dims=dims)
    labels = batch.labels.clone()
    labels[..., 1::4] = labels[..., 2::4] = labels[..., 3::4] = IGNORE
    return batch._replace(labels=labels, sparse=(True,) * 4)


def without_supervision_the_supervised_term_is_silent(candidate: Candidate) -> None:
    """The term ``supervised`` exists, and is exactly 0 where nothing is annotated."""
    terms = terms_of(candidate.make(), candidate.batch("none", "none"))
    require("supervised" in terms, f"no term is called 'supervised', only {', '.join(terms)}")
    value = terms["supervised"].item()
    require(value == 0, f"supervised is {value} without any annotation")


def a_class_without_a_voxel_is_no_problem(candidate: Candidate) -> None:
    """Terms stay finite if an annotated structure is in no case."""
    for name, term in terms_of(candidate.make(), candidate.batch("full", "none", absent="pancreas")).items():
        require(bool(term.isfinite()), f"term '{name}' is {term.item()}")


def bf16_gives_nearly_the_same_terms_in_float32(candidate: Candidate) -> None:
    """Under autocast, terms are float32 and close to those of full precision."""
    batch = candidate.batch("full", "partial", "none")
    exact = _values(terms_of(candidate.make(), batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = terms_of(candidate.make(), batch)
    for name, term in rough.items():
        require(term.dtype == torch.float32, f"term '{name}' is {term.dtype}")
        close = abs(term.item() - exact[name]) <= max(0.02, 0.1 * abs(exact[name]))
        require(close, f"term '{name}' is {term.item()} in bf16 and {exact[name]} in float32")


class _Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations for which a host would wait for its GPU."""

    WAITING = (
        *("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default"),
        *("bincount", "repeat_interleave.Tensor"),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        by_mask = str(function).startswith(("aten.index.", "aten.index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or any(name in str(function) for name in self.WAITING):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def a_step_never_waits_for_the_device(candidate: Candidate) -> None:
    """No ``.item()``, mask as an index, ``nonzero`` and the like in forward, backward and `after_step`."""
    method, batch = candidate.make(), candidate.batch("full", "partial", "none")
    with _Waits() as waits:
        torch.autograd.backward(torch.stack(list(terms_of(method, batch).values())).sum())
        method.after_step(HALFWAY)
    require(not waits.seen, f"a GPU would be waited for: {', '.join(dict.fromkeys(waits.seen))}")


def the_same_seed_gives_the_same_step(candidate: Candidate) -> None:
    """Random numbers come from torch's generator only."""
    first, second = (
        _values(terms_of(candidate.make(seed=5), candidate.batch("full", "none"))) for _ in range(2)
    )
    require(first == second, f"{first} became {second}")


def the_predictor_gives_one_score_per_class_in_the_unit_interval(candidate: Candidate) -> None:
    """Scores (B, C, *S) float32 in [0, 1]."""
    for dims in candidate.dims:
        predictor = candidate.make(dims=dims).predictor().eval()
        images = candidate.batch("full", "none", dims=dims).images
        with torch.inference_mode():
            scores = predictor(images)
        expected = (len(images), SPACE.num_classes, *images.shape[2:])
        require(scores.shape == expected, f"scores have the shape {tuple(scores.shape)}, not {expected}")
        require(scores.dtype == torch.float32, f"scores are {scores.dtype}")
        low, high = scores.min().item(), scores.max().item()
        require(low >= 0 and high <= 1, f"scores lie in {low}..{high}, not in 0..1")


def two_cases_can_be_learnt_by_heart(candidate: Candidate) -> None:
    """Forty steps halve the supervised term."""
    dims = candidate.dims[0]
    method = candidate.make(dims=dims)
    second: Kind = "partial" if "partial" in method.card.learns_from else "full"
    batch = candidate.batch("full", second, dims=dims)
    shared = [group for group in method.parameter_groups() if "optimizer" not in group]
    optimizer = torch.optim.Adam([p for group in shared for p in group["params"]], 0.01)
    first = last = 0.0
    for step in range(40):
        progress = Progress(step, 40)
        torch.manual_seed(step)
        term = terms_of(method, batch, progress, seed=step)["supervised"]
        last = term.item()
        first = first or last
        optimizer.zero_grad()
        torch.autograd.backward(term)
        optimizer.step()
        method.after_step(progress)
    require(last < 0.5 * first, f"supervised fell from {first} to {last} only")


def state_survives_a_save_and_a_load(candidate: Candidate) -> None:
    """Weights and buffers are all that a method remembers."""
    method, twin = candidate.make(seed=1), candidate.make(seed=2)
    method.after_step(HALFWAY)
    twin.load_state_dict(method.state_dict())
    batch = candidate.batch("full", "none")
    mine, theirs = _values(terms_of(method, batch)), _values(terms_of(twin, batch))
    require(mine == theirs, f"terms {mine}, and {theirs} after loading")


def averaged_networks_are_declared_and_their_statistics_can_be_renewed(candidate: Candidate) -> None:
    """`decays` names the decay of each averaged network, and batch norm of all that predicts counts its batches."""
    for dims in candidate.dims:
        method = candidate.make(dims=dims)
        images = candidate.batch("full", "none", dims=dims).images
        teachers = [part for part in method.modules() if isinstance(part, EmaTeacher)]
        settings = build_settings(candidate.kind.Config, candidate.settings, candidate.kind.__name__)
        declared = candidate.kind.decays(settings).values()
        require(all(teacher.decay in declared for teacher in teachers), "decays() leaves out a decay")
        renew_teachers(method, partial(list, [images]))
        predictor = method.predictor()
        renew_statistics(predictor, [images])
        for network in (predictor, *(teacher.network for teacher in teachers)):
            counted = [int(norm.num_batches_tracked or 0) for norm in batch_norms(network)]
            require(all(counted), "a batch norm takes no statistics; see components.batch_statistics")


def the_defaults_suit_every_length_of_training(candidate: Candidate) -> None:
    """No decay of the defaults keeps the start of a training, however short."""
    for setting, decay in candidate.kind.decays(candidate.kind.Config()).items():
        for steps in (10, 400, 100_000):
            decay.require_forgets(setting, steps)


def parameter_groups_cover_every_trainable_weight_once(candidate: Candidate) -> None:
    """No weight is left out or trained twice."""
    method = candidate.make()
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    wanted = [id(p) for p in method.parameters() if p.requires_grad]
    require(sorted(grouped) == sorted(wanted), f"{len(grouped)} weights in groups, {len(wanted)} to train")


def a_weight_without_a_gradient_is_declared(candidate: Candidate) -> None:
    """Several ranks wait for the gradient of every weight, unless the card says that some may have none."""
    idle = set()
    for kinds in (("full", "full"), ("partial", "none")):
        method = candidate.make()
        for step in range(2):
            for part in range(method.steps_per_batch):
                progress = Progress(50 * step, 100, part)
                method.zero_grad(set_to_none=True)
                terms = terms_of(method, candidate.batch(*kinds), progress)
                torch.autograd.backward(torch.stack(list(terms.values())).sum())
                idle |= {name for name, w in method.named_parameters() if w.requires_grad and w.grad is None}
                method.after_step(progress)
    require(candidate.kind.card.idle_weights or not idle, f"without a gradient: {', '.join(sorted(idle))}")


def what_a_batch_leaves_for_after_step_is_declared(candidate: Candidate) -> None:
    """With ``accumulates`` a step takes several batches, and `after_step` would see what the last of them left."""
    method = candidate.make()
    before = _attributes(method)
    for part in range(method.steps_per_batch):
        terms_of(method, candidate.batch("full", "partial", "none"), HALFWAY._replace(part=part))
    left = [
        name for name, value in _attributes(method).items() if name not in before or before[name] is not value
    ]
    require(not candidate.kind.card.accumulates or not left, f"left by a batch: {', '.join(left)}")
    parts = method.steps_per_batch
    require(
        not candidate.kind.card.accumulates or parts == 1, f"a batch takes {parts} steps of the optimiser"
    )


def _attributes(method: Method) -> dict[str, Any]:
    """The plain attributes of a method and its parts, but for whether they train."""
    return {
        f"{place}.{name}": value
        for place, module in method.named_modules()
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_")
    }


def the_card_says_what_the_method_is(candidate: Candidate) -> None:
    """A title, one sentence, known kinds of cases, 2 or 3 axes."""
    card = candidate.kind.card
    require(bool(card.title), "the card has no title")
    require(card.idea.endswith("."), f"the idea is no sentence: {card.idea!r}")
    require(
        bool(card.learns_from) and card.learns_from <= {"full", "partial", "none"}, "learns_from is wrong"
    )
    require(bool(card.dims) and card.dims <= {2, 3}, f"dims are {set(card.dims)}, not some of 2 and 3")


METHOD_CHECKS: Mapping[str, Callable[[Candidate], None]] = by_name(
    the_card_says_what_the_method_is,
    terms_are_finite_for_every_mix_of_cases,
    terms_have_the_same_names_for_every_mix_of_cases,
    every_term_teaches,
    labels_of_unlabelled_cases_are_never_read,
    cases_annotated_in_parts_are_learnt_from,
    cases_annotated_for_a_region_are_learnt_from,
    a_class_is_learnt_only_where_it_is_annotated,
    what_lies_beyond_the_scan_is_not_learnt_from,
    without_supervision_the_supervised_term_is_silent,
    a_class_without_a_voxel_is_no_problem,
    bf16_gives_nearly_the_same_terms_in_float32,
    a_step_never_waits_for_the_device,
    the_same_seed_gives_the_same_step,
    the_predictor_gives_one_score_per_class_in_the_unit_interval,
    two_cases_can_be_learnt_by_heart,
    state_survives_a_save_and_a_load,
    averaged_networks_are_declared_and_their_statistics_can_be_renewed,
    the_defaults_suit_every_length_of_training,
    parameter_groups_cover_every_trainable_weight_once,
    a_weight_without_a_gradient_is_declared,
    what_a_batch_leaves_for_after_step_is_declared,
)
"""What `check_method` checks, by name."""
