"""What a method is: a module whose forward turns a batch into the loss terms of its paper.

Shapes follow the legend of `labelwise.types`. A method holds everything it trains and remembers (networks,
teachers, critics, memories as buffers), and knows nothing of devices, ranks, precision or files.
Random numbers come from torch's generator only: the loop seeds it anew at every step, which makes a
resumed run equal to an uninterrupted one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from labelwise.components.teachers import Decay
from labelwise.errors import CheckpointError, ConfigError
from labelwise.methods.card import Card, LearnsFrom
from labelwise.nets.factory import NetFactory
from labelwise.nets.transfer import Transfer
from labelwise.types import Array, Batch, Progress

__all__ = [
    "Card",
    "CheckpointError",
    "ConfigError",
    "IndependentMaps",
    "LearnsFrom",
    "Method",
    "NetFactory",
    "Presets",
    "Sigmoid",
    "Softmax",
    "TargetFunction",
    "threshold_scores",
]

Presets = Mapping[str, Mapping[str, Any]]  # data set -> settings as published for it
# labels (B, *S) with IGNORE also beyond the scan, annotated (B, C), spacing in mm (B, dims) -> targets (B, K, *S)
# float32. Runs in the loader's workers, before the augmentation, which then moves targets like images: they must
# be local (a distance is, a distance divided by the largest one of the patch is not). Must be picklable.
TargetFunction = Callable[[Array, Array, Array], Array]


class Method(nn.Module, ABC):
    """A segmentation method, built as ``Kind(nets, config)``: a NetFactory and its own `Config`.

    Subclasses are final: nobody inherits from a concrete method.

    `Config` is the frozen settings dataclass whose defaults are the paper's. `follows` names the method that
    trains the stage before this one. `presets` are the settings that were published for a data set, where they
    differ from the defaults: the setting `preset` of a run puts them below those that it sets itself. `classifiers`
    names the ways in which a trained model can decide, where there are several: the setting `classifier` chooses one,
    and `predict --classifier` another without a new training, so the predictor holds the weights of all of them.

    With `needs_weak_view` a batch also brings ``weak_images``: the patches before their intensities were changed.

    With `steps_per_batch` above 1 the loop asks `forward` and `after_step` so often for each batch, with an optimiser
    step between them; ``progress.part`` counts from 0. What a part leaves for the next one may be a plain attribute: no
    training stops between them.

    With `keeps_classes` it begins with a trained model (`train --from`), whose classes belong to those of the training
    although no case needs to annotate them.

    Memories are buffers: they are saved, resumed and moved with the method. A memory that the loss of a step reads
    changes in `after_step`, or is read as a ``.clone()``: autograd refuses what was changed in between.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[Any]]
    follows: ClassVar[type[Method] | None] = None
    classifiers: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Presets] = {}
    needs_weak_view: ClassVar[bool] = False
    steps_per_batch: int = 1
    keeps_classes: ClassVar[bool] = False

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The weighted terms of the loss. The loop minimises their sum and records each."""

    @abstractmethod
    def predictor(self) -> nn.Module:
        """The module that is kept: images (B, M, *S) -> scores (B, C, *S) in [0, 1]; the label is the argmax."""

    @classmethod
    def decays(cls, config: Any) -> Mapping[str, Decay]:
        """Running averages of these settings, by the setting that fixes their decay. Default: none.

        A training is refused that is too short for one of them to forget what it started with.
        """
        return {}

    def after_step(self, progress: Progress) -> None:
        """Move what has no gradient (averages, memories) after the optimiser's step. Default: nothing."""

    def begin_with(self, transfer: Transfer, known: Tensor) -> None:
        """Learn what a trained model has given to the networks, once, before the first step. Default: nothing.

        Shapes
            known       (C,) bool: the classes that the model knows, background included

        Errors
            CheckpointError     that is too little for this method
        """

    def extra_targets(self) -> Mapping[str, TargetFunction]:
        """What the loader computes from the labels; it arrives in ``batch.extra`` by these names. Default: nothing."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser.

        A group may scale the rate (``lr_scale``), have its own ``schedule``, or ask for an own ``optimizer``; the
        last two are tables of settings, as in a recipe.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def start_from(self, previous: Method) -> tuple[str, ...]:
        """Take over the weights of the method of the stage before; returns the names that found no partner.

        Errors
            CheckpointError     no weight has a partner, or partners differ in shape
        """
        mine, theirs = self.state_dict(), previous.state_dict()
        partners = {name: theirs[name] for name in mine if name in theirs}
        what = f"{type(previous).__name__} does not fit into {type(self).__name__}"
        do = "train both stages with the same network, image channels and classes"
        if not partners:
            raise CheckpointError(what, found="no weight of the same name", do=do)
        for name, weights in partners.items():
            if weights.shape != mine[name].shape:
                found, expected = f"{name} of shape {tuple(weights.shape)}", f"{tuple(mine[name].shape)}"
                raise CheckpointError(what, found=found, expected=expected, do=do)
        self.load_state_dict(partners, strict=False)
        return tuple(name for name in mine if name not in partners)


class Softmax(nn.Module):
    """Scores of a network whose classes exclude each other."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) probabilities in float32."""
        return torch.softmax(self.network(images).float(), dim=1)


class IndependentMaps(nn.Module):
    """A predictor that asks for each structure by itself: the label is the strongest structure above its threshold.

    A map that was trained on few voxels of its structure may say 0.1 where the structure is. The training therefore
    chooses `thresholds` at its end (`labelwise.infer.thresholds`), unless they are `fixed`; the model keeps them.

    Attributes
        thresholds  one for each structure in (0, 1); none: 0.5 for all
        fixed       they were set by the user, or do not decide
    """

    thresholds: tuple[float, ...]
    fixed: bool

    def __init__(self, thresholds: tuple[float, ...] = (), *, fixed: bool = False):
        super().__init__()
        self.thresholds = thresholds
        self.fixed = fixed


class Sigmoid(IndependentMaps):
    """Scores of a network with one independent map per structure."""

    def __init__(self, network: nn.Module, thresholds: tuple[float, ...] = (), *, fixed: bool = False):
        super().__init__(thresholds, fixed=fixed)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, M, *S) -> (B, C, *S) as `threshold_scores` has them."""
        return threshold_scores(self.network(images), self.thresholds)


def threshold_scores(logits: Tensor, thresholds: tuple[float, ...] = ()) -> Tensor:
    """Scores whose argmax is the strongest structure above its threshold, or background.

    The background has 0.5; the probability of each structure is stretched so that its threshold comes to lie there.

    Shapes
        logits      (B, C - 1, *S), before the sigmoid
        thresholds  one for each structure; none: 0.5 for all, which stretches nothing
        returns     (B, C, *S) float32 in [0, 1]
    """
    structures = torch.sigmoid(logits.float())
    if thresholds:
        stretched = [
            torch.where(p < tau, p / (2 * tau), 1 - (1 - p) / (2 * (1 - tau)))
            for p, tau in zip(structures.unbind(1), thresholds, strict=True)
        ]
        structures = torch.stack(stretched, dim=1)
    return torch.cat([torch.full_like(structures[:, :1], 0.5), structures], dim=1)
