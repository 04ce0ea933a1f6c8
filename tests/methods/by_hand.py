"""Losses written out case by case and class by class, and how the whole objective of a method is held to them.

Nothing here comes from `labelwise.losses` or `labelwise.components`: what a method computes is computed a second time,
in float64, by the plainest way that its specification allows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from conftest import SPACE, make_method
from labelwise import testing
from labelwise.components.teachers import EmaTeacher
from labelwise.methods import find_method
from labelwise.methods.base import Method
from labelwise.types import IGNORE, Batch, Progress

CLASSES = SPACE.num_classes
STRUCTURES = range(1, CLASSES)
STEP = Progress(31, 100)
FULL, LIVER, LIVER_AND_SPLEEN, NONE = (1, 2, 3), (1,), (1, 2), ()

Objective = Callable[[Any, Batch], Mapping[str, Tensor]]


# methods and batches


@contextmanager
def float64() -> Iterator[None]:
    """Everything is computed in float64, also what a method brings to float32: rounding hides no difference."""
    usual, single = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = single
        torch.set_default_dtype(usual)


def a_batch(*annotated: tuple[int, ...], size: int = 32, seed: int = 0) -> Batch:
    """A case for each set of annotated structures: boxes of each in noise, and a strip of IGNORE at the border."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(annotated), size, size)
    images = torch.randn(len(annotated), 1, size, size, generator=generator, dtype=torch.float64)
    labels = torch.zeros(shape, dtype=torch.int64)
    known = torch.zeros(len(annotated), CLASSES, dtype=torch.bool)
    for case, structures in enumerate(annotated):
        for structure in STRUCTURES:
            low = (structure - 1) * size // 4 + case
            box = (slice(low, low + size // 3), slice(low, low + size // 4))
            images[case, 0][box] += structure
            if structure in structures:
                labels[case][box] = structure
        labels[case, :, size - 3 :] = IGNORE
        if not structures:
            labels[case] = IGNORE
        known[case, list(structures)] = True
        known[case, 0] = structures == FULL
    rows = tuple(tuple(row) for row in known.tolist())
    names = tuple(f"case_{case}" for case in range(len(annotated)))
    return Batch(images, labels, known, names, {}, rows)


def a_method(name: str, *, net: str | None = None, net_settings: Any = None, **settings: Any) -> Any:
    """A method in float64 whose averaged networks differ from what they average."""
    kind = find_method(name)
    if net is None:
        method = make_method(name, dims=2, settings=settings)
    else:
        method = testing.make_method(kind, dims=2, settings=settings, net=net, net_settings=net_settings)
    generator = torch.Generator().manual_seed(11)
    for teacher in (part for part in method.modules() if isinstance(part, EmaTeacher)):
        for weight in teacher.network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(0.3 * weight.std(correction=0) * noise)
    return method.double()


def require_objective(method: Method, batch: Batch, expected: Objective, *, rtol: float = 1e-7) -> None:
    """The terms, and their gradients in every weight that is trained, are those of the specification.

    `expected` gets a twin of the method, whose networks it may ask; both begin with the same random numbers. Weights,
    views and detached targets that differ show in a value or in a gradient.
    """
    twin = copy.deepcopy(method)
    torch.manual_seed(5)
    found = method(batch, STEP)
    torch.manual_seed(5)
    wanted = expected(twin, batch)
    assert list(found) == list(wanted)
    mine = [weight for weight in method.parameters() if weight.requires_grad]
    theirs = [weight for weight in twin.parameters() if weight.requires_grad]
    for name, term in wanted.items():
        assert term.item() > 0, f"{name} is {term.item()}: it would prove nothing"
        assert_close(found[name].double(), term.double(), rtol=rtol, atol=0, msg=f"value of {name}")
        gradients = [
            torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
            for value, weights in ((found[name], mine), (term, theirs))
        ]
        largest = max(float(gradient.abs().max()) for gradient in gradients[1])
        assert largest > 0, f"{name} teaches nothing"
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, rtol=1e-5, atol=10 * rtol * largest, msg=f"gradient of {name}")


# weights


def rise(step: float, length: float) -> float:
    """exp(-5 (1 - t)^2)."""
    return math.exp(-5 * (1 - min(step / length, 1)) ** 2)


# what labels say


def possible(labels: Tensor, annotated: Tensor) -> Tensor:
    """(B, C, *S) bool: the classes that a voxel may have."""
    sets = torch.zeros(len(labels), CLASSES, *labels.shape[1:], dtype=torch.bool)
    for case, label in enumerate(labels):
        for name in range(CLASSES):
            hides = name == 0 or not annotated[case, name]
            sets[case, name] = (label == IGNORE) | ((label == 0) if hides else (label == name))
    return sets


def is_open(labels: Tensor, annotated: Tensor) -> Tensor:
    """(B, *S) bool: more than one class is possible."""
    return possible(labels, annotated).sum(dim=1) > 1


def completed(probabilities: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """Probabilities among the possible classes, without a gradient."""
    kept = probabilities.detach() * possible(labels, annotated)
    return kept / kept.sum(dim=1, keepdim=True)


def unlabelled(batch: Batch) -> list[int]:
    """Cases in which a structure is not annotated."""
    return [case for case, row in enumerate(batch.annotated[:, 1:]) if not bool(row.all())]


def rows(values: Tensor, chosen: list[int]) -> Tensor:
    return values[torch.tensor(chosen, dtype=torch.int64)]


# losses


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def marginal_entropy(logits: Tensor, labels: Tensor, annotated: Tensor) -> Tensor:
    """-log of the probability of all classes that the label leaves possible: mean over voxels, then over cases."""
    likely = (logits.softmax(dim=1) * possible(labels, annotated)).sum(dim=1)
    per_case = [
        -likely[case][labels[case] != IGNORE].log().mean()
        for case in range(len(labels))
        if annotated[case, 1:].any() and (labels[case] != IGNORE).any()
    ]
    return mean(per_case)


def overlap(
    p: Tensor, y: Tensor, *, above: float, below: float, squared: bool = False, weights: Tensor | None = None
) -> Tensor:
    """1 - (2 sum p y + above) / (sum p^n + sum y + below)."""
    weights = torch.ones_like(p) if weights is None else weights
    size = (weights * (p**2 if squared else p)).sum() + (weights * y).sum()
    return 1 - (2 * (weights * p * y).sum() + above) / (size + below)


def structure_dice(
    logits: Tensor, labels: Tensor, annotated: Tensor, *, squared: bool, pooled: bool, smooth: float = 1e-5
) -> Tensor:
    """Dice of the annotated structures that have a voxel: by case and then over the cases, or pooled over the batch."""
    p = logits.softmax(dim=1)
    by_case = [[case] for case in range(len(labels))]
    means = []
    for cases in [[case for group in by_case for case in group]] if pooled else by_case:
        losses = []
        for structure in STRUCTURES:
            asked = [case for case in cases if annotated[case, structure]]
            inside = [(labels[case] != IGNORE) for case in asked]
            if any(bool((labels[case] == structure).any()) for case in asked):
                said = torch.cat(
                    [p[case, structure][where] for case, where in zip(asked, inside, strict=True)]
                )
                true = torch.cat(
                    [(labels[case][where] == structure) for case, where in zip(asked, inside, strict=True)]
                )
                losses.append(overlap(said, true.double(), above=smooth, below=smooth, squared=squared))
        if losses:
            means.append(mean(losses))
    return mean(means)


def dice_and_background(
    logits: Tensor, labels: Tensor, annotated: Tensor, *, squared: bool, pooled: bool, absent: bool = False
) -> Tensor:
    """Dice of the annotated structures, and of all else as one class; `absent`: also of those without a voxel."""
    p, smooth = logits.softmax(dim=1), 1e-5
    all_cases = [case for case in range(len(labels)) if annotated[case, 1:].any()]
    means = []
    for cases in [all_cases] if pooled else [[case] for case in all_cases]:
        losses = []
        for name in range(CLASSES):
            said, true = [], []
            for case in cases:
                where = labels[case] != IGNORE
                if name == 0:
                    others = [0, *(structure for structure in STRUCTURES if not annotated[case, structure])]
                    said.append(p[case, others].sum(dim=0)[where])
                    true.append(labels[case][where] == 0)
                elif annotated[case, name]:
                    said.append(p[case, name][where])
                    true.append(labels[case][where] == name)
            if said and (absent or torch.cat(true).any()):
                losses.append(
                    overlap(
                        torch.cat(said), torch.cat(true).double(), above=smooth, below=smooth, squared=squared
                    )
                )
        if losses:
            means.append(mean(losses))
    return mean(means)


def supervision(logits: Tensor, labels: Tensor, annotated: Tensor, *, squared: bool, pooled: bool) -> Tensor:
    """Half of the marginal cross-entropy and of the Dice of the structures."""
    entropy = marginal_entropy(logits, labels, annotated)
    return (entropy + structure_dice(logits, labels, annotated, squared=squared, pooled=pooled)) / 2


def surprise(logits: Tensor, target: Tensor) -> Tensor:
    """(B, *S): -log of the probability of each voxel's target."""
    return -logits.log_softmax(dim=1).gather(1, target.unsqueeze(1)).squeeze(1)


def binary_entropy(logits: Tensor, true: Tensor) -> Tensor:
    """Per voxel, of one map."""
    p = logits.sigmoid()
    return -torch.where(true, p, 1 - p).log()
