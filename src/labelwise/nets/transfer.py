"""Weights of a trained network in another one: by the names of its parts, and for the last layer by class.

    encoder, decoder    a tensor of the same name and shape is taken
    heads               the rows of classes that both know, by canonical name; rows of new classes stay as they are
    everything else     (memories, critics, dynamic heads) stays: its meaning may depend on the order of the classes

Whatever is not taken is reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from labelwise.anatomy import canonical

PARTS = ("encoder", "decoder", "head", "coarse_heads")
HEAD = re.compile(r"(head|coarse_heads\.\d+)\.")


@dataclass
class Transfer:
    """What became of every tensor of the network that is trained, and of the file."""

    taken: list[str] = field(default_factory=list)  # tensors of the network
    classes: list[str] = field(default_factory=list)  # that the head knows from before
    new_classes: list[str] = field(default_factory=list)
    lost_classes: list[str] = field(default_factory=list)  # of the file, that the network has no place for
    left: dict[str, str] = field(default_factory=dict)  # tensor of the network -> why it begins anew
    unused: list[str] = field(default_factory=list)  # tensors of the file

    def to_text(self) -> str:
        """A few lines: numbers, and every tensor that was not taken."""
        lines = [
            f"{len(self.taken)} tensors taken, {len(self.left)} begin anew, {len(self.unused)} of the file unused"
        ]
        if self.classes or self.new_classes:
            lines.append(
                f"classes kept: {', '.join(self.classes) or 'none'}; new: {', '.join(self.new_classes) or 'none'}"
            )
        lines += [f"begins anew: {name} ({why})" for name, why in self.left.items()]
        lines += [f"unused: {name}" for name in self.unused]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return dict(vars(self))


def take_over(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    known_classes: Sequence[str] = (),
) -> Transfer:
    """Put weights into every network of a method that has tensors of their names.

    Arguments
        module          a method: networks, teachers and what else it holds
        weights         of the trained network, by names that hold ``encoder.``, ``decoder.`` or ``head.``
        classes         of the method, background first
        known_classes   of the trained network; none: its head is not taken
    """
    by_part = {part: name for name in weights if (part := _part(name))}
    last = _last_layers(by_part)
    report, used = Transfer(), set()
    rows = _rows(classes, known_classes)
    report.classes = [classes[new] for new in rows if new]
    report.new_classes = [name for index, name in enumerate(classes) if index and index not in rows]
    report.lost_classes = [name for index, name in enumerate(known_classes) if index not in rows.values()]
    if not known_classes:
        report.new_classes = []
    with torch.no_grad():
        for name, own in module.state_dict().items():
            part = _part(name)
            source = by_part.get(part) if part else None
            if source is None:
                report.left[name] = "no tensor of this name" if part else "no part of a network"
                continue
            given = weights[source]
            by_class = part.rpartition(".")[0] in last
            why = (
                _take_rows(own, given, rows, len(classes), len(known_classes))
                if by_class
                else _take_whole(own, given)
            )
            if why:
                report.left[name] = why
            else:
                report.taken.append(name)
                used.add(source)
    report.unused = sorted(set(weights) - used)
    return report


def _part(name: str) -> str:
    """``student.encoder.stages.0.weight`` -> ``encoder.stages.0.weight``; empty for what is in no part of a network."""
    words = name.split(".")
    place = next((number for number, word in enumerate(words) if word in PARTS), None)
    return "" if place is None else ".".join(words[place:])


def _last_layers(parts: Mapping[str, str]) -> set[str]:
    """The module of each head whose outputs are the classes."""
    heads = {match[1]: part.rpartition(".")[0] for part in parts if (match := HEAD.match(part))}
    return set(heads.values())


def _rows(classes: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Class index of the new network -> that of the old one, for classes that both know."""
    places = {canonical(name): index for index, name in enumerate(known)}
    return {index: places[canonical(name)] for index, name in enumerate(classes) if canonical(name) in places}


def _take_whole(own: Tensor, given: Tensor) -> str:
    if own.shape != given.shape:
        return f"shape {tuple(own.shape)}, in the file {tuple(given.shape)}"
    own.copy_(given)
    return ""


def _take_rows(own: Tensor, given: Tensor, rows: Mapping[int, int], classes: int, known: int) -> str:
    """Copy the rows of known classes; a head of independent structure maps has none for the background."""
    if not known:
        return "its classes are not known"
    missing = classes - own.shape[0] if own.ndim else -1
    if missing not in (0, 1) or known - given.shape[0] != missing or own.shape[1:] != given.shape[1:]:
        return f"shape {tuple(own.shape)}, in the file {tuple(given.shape)}"
    pairs = [(new - missing, old - missing) for new, old in rows.items() if new >= missing and old >= missing]
    if not pairs:
        return "no class in common"
    new, old = (list(column) for column in zip(*pairs, strict=True))
    own[new] = given[old].to(own)
    return ""


# public encoders


@dataclass(frozen=True)
class PublicEncoder:
    """A residual encoder in the layout of nnU-Net and nnssl, under the names of `residual_unet`."""

    weights: dict[str, Tensor]
    settings: dict[str, Any]  # of a residual_unet that has such an encoder
    dims: int
    without_effect: list[str]  # biases in front of an instance norm, which takes them away


def is_nnssl(weights: Mapping[str, Tensor], *, encoder: str = "encoder.stages") -> bool:
    """Whether these are weights of a residual encoder of nnU-Net."""
    return any(
        re.fullmatch(rf"{re.escape(encoder)}\.0\.blocks\.0\.conv1\.conv\.weight", name) for name in weights
    )


def from_nnssl(
    weights: Mapping[str, Tensor], *, encoder: str = "encoder.stages", stem: str = "encoder.stem"
) -> PublicEncoder:
    """The encoder among the weights of a checkpoint of nnssl, for a `residual_unet` with ``stem = true``.

    Its layers are a convolution, an instance norm with scale and offset and a leaky ReLU of slope 0.01, in a stem and
    in residual blocks; the same tensors occur twice there, under ``all_modules`` too. The bias of a convolution is
    taken away by the norm behind it, so leaving it out changes nothing.

    Arguments
        encoder, stem   where the checkpoint's adaptation plan says that they are

    Source
        nnssl (https://github.com/MIC-DKFZ/nnssl), adaptation plan and `ResEncL`; BasicBlockD of
        dynamic-network-architectures.
    """
    taken: dict[str, Tensor] = {}
    dropped = []
    layers = (
        rf"{re.escape(encoder)}\.(\d+)\.blocks\.(\d+)\.(conv1|conv2|skip\.(\d+))\.(conv|norm)\.(weight|bias)"
    )
    first = rf"{re.escape(stem)}\.convs\.0\.(conv|norm)\.(weight|bias)"
    blocks: dict[int, int] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(layers, name):
            level, block, place, skip, kind, what = match.groups()
            blocks[int(level)] = max(blocks.get(int(level), 0), int(block) + 1)
            position = int(block) + (level == "0")  # the stem is the first part of the first level
            inner = {"conv1": "convolutions.0", "conv2": "convolutions.1"}.get(place, "shortcut")
            offset = int(skip) if skip else 0
            target = f"encoder.stages.{level}.{position}.{inner}.{offset + (kind == 'norm')}.{what}"
        elif match := re.fullmatch(first, name):
            kind, what = match.groups()
            target = f"encoder.stages.0.0.{int(kind == 'norm')}.{what}"
        else:
            continue
        if kind == "conv" and what == "bias":
            dropped.append(name)
        else:
            taken[target] = tensor
    widths = [
        taken[f"encoder.stages.{level}.{int(level == 0)}.convolutions.0.0.weight"] for level in sorted(blocks)
    ]
    settings = {
        "width": len(widths[0]),
        "max_width": max(len(weight) for weight in widths),
        "blocks": tuple(blocks[level] for level in sorted(blocks)),
        "kernels": tuple(tuple(weight.shape[2:]) for weight in widths),
        "stem": True,
    }
    return PublicEncoder(taken, settings, widths[0].ndim - 2, sorted(dropped))
