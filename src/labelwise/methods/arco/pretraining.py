"""ARCO, first stage: images and their windows must relate to a memory of images as a teacher says.

Paper      You et al., NeurIPS 2023, https://arxiv.org/abs/2302.01735
           (relational semi-supervised pre-training, section 3 and appendix)
Spec       docs/methods/arco_pretraining.md: where paper and official code differ, and what we follow

    for every batch (x, y, A):
        x' = x with other brightness and contrast, blurred
        z, g, l_1 .. l_P = student(x');   g^t, l^t_1 .. l^t_P = teacher(x)         whole image, windows of the logits
        u(v, Q; T) = softmax over the memory Q of cos(v, Q) / T
        minimise  supervised(z, y, A) + KL(u(g^t, Q; T_t) || u(g, Q; T_s))
                                      + mean over p of KL(u(l^t_p, Q_p; T_t) || u(l_p, Q_p; T_s))
        student: one optimiser step;   teacher <- a * teacher + (1 - a) * student
        Q, Q_p: the oldest entries give way to g^t and l^t_p
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, ClassVar, Literal, NamedTuple, cast

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labelwise.components.batches import labels_at, sometimes_blurred
from labelwise.components.teachers import Decay, EmaTeacher, Part, StudentAndTeacher
from labelwise.losses.partial import AbsentDice, DiceForm, supervised
from labelwise.methods.arco.contrastive import relation_divergence, unit
from labelwise.methods.arco.ring_memory import RingMemory
from labelwise.methods.base import Card, ConfigError, Method, NetFactory, Presets, Softmax
from labelwise.nets.parts import brick
from labelwise.types import Batch, Progress

Temperature = Annotated[float, Field(gt=0)]

IMAGE_FEATURES = 512  # of the embedding of a whole image
BINS = 8  # of a window, along every axis
BLUR = (0.15, 1.15)  # standard deviation, voxels

# The published training in 2D.
ACDC = {"jitter": 0.2, "augmented_view": "teacher", "perturb_mixed": True}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ArcoConfig(StudentAndTeacher, DiceForm, AbsentDice):
    """Settings of both stages, which share one table."""

    jitter: Part = 0.02  # of brightness and contrast; 0.2 in the published 2D training
    # ---- first stage only
    augmented_view: Literal["student", "teacher"] = "student"  # teacher: the published 2D training
    image_weight: NonNegativeFloat = 1.0  # of the relations of whole images
    window_weight: NonNegativeFloat = 1.0  # of the relations of windows
    student_temperature: Temperature = 0.1  # T_s
    teacher_temperature: Temperature = 0.01  # T_t
    windows: tuple[PositiveInt, ...] = (7,)  # along each axis, or one number for all
    # ---- both: images that a memory holds
    memory_size: PositiveInt = 36
    # ---- second stage only
    contrast_weight: NonNegativeFloat = 0.01
    unsupervised_weight: NonNegativeFloat = 1.0
    neighbour_weight: NonNegativeFloat = 1.0
    warm_up: Part = (
        0.0  # part of the stage before which those three are off; for a stage without pre-training
    )
    sampler: Literal["stratified", "antithetic", "uniform"] = "stratified"  # ARCO-SG, ARCO-SAG, neither
    strata: Literal["order", "space"] = "order"  # cells of the candidates in their order, or of the image
    grid: PositiveInt = 4  # cells along each side
    remainder: Literal["largest", "random"] = "largest"  # draws that no cell has a whole share of
    queries: PositiveInt = 256  # of each class
    negatives: PositiveInt = 512  # of each query
    temperature: Temperature = 0.5  # of the contrast
    query_threshold: Part = 0.3  # least probability of the class at a query
    key_threshold: Part = 0.97  # greatest probability of the class at one of its negatives
    entropy_percent: Annotated[float, Field(ge=0, le=100)] = 20.0  # alpha at the start; falls to 0
    key_memory: PositiveInt = 30_000  # negatives that are remembered for each structure
    background_key_memory: PositiveInt = 50_000
    keys_per_step: PositiveInt = 2048  # of each class
    representation: PositiveInt = 16  # features
    confidence_threshold: Part = 0.97  # of a pseudo-label
    mix_area: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the box, in the x-y plane
    mix_depth: Part = 0.125  # of the box, along z; 10 of 80 slices
    perturb_mixed: bool = False  # jitter and blur of the spliced images; true in the published 2D training
    neighbours: PositiveInt = 5
    neighbour_bins: PositiveInt = 8  # along each axis, of the representation that is compared


class Entries(NamedTuple):
    """What the memories take in after a step."""

    images: Tensor  # (1, B, IMAGE_FEATURES)
    windows: Tensor  # (1, B, P * F)
    wanted: Tensor  # (1, B) bool


class ArcoPretraining(Method):
    card = Card(
        title="ARCO, first stage",
        paper="https://arxiv.org/abs/2302.01735",
        idea="Student and teacher must find an image, and its windows, similar to the same images of a memory.",
        learns_from=frozenset({"full", "partial", "none"}),
        accumulates=False,
    )
    Config = ArcoConfig
    presets: ClassVar[Presets] = {"acdc": ACDC}

    def __init__(self, nets: NetFactory, config: ArcoConfig):
        super().__init__()
        self.config = config
        self.student = RelationNet(nets, windows_of(config, nets.dims))
        self.teacher = EmaTeacher(self.student, self.decays(config)["ema_decay"])
        window_features = nets.num_classes * BINS**nets.dims
        self.image_predictor = two_layers(IMAGE_FEATURES, IMAGE_FEATURES, IMAGE_FEATURES)
        self.window_predictor = two_convolutions(nets.dims, nets.num_classes, nets.num_classes)
        self.images = RingMemory((config.memory_size,), IMAGE_FEATURES)
        count = prod(self.student.windows)
        self.windows = RingMemory((config.memory_size,), count * window_features, dtype=torch.float16)
        self.entries: Entries | None = None

    @classmethod
    def decays(cls, config: ArcoConfig) -> dict[str, Decay]:
        return {"ema_decay": config.decay(warm_up=True)}

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        config = self.config
        plain, changed = batch.images, perturbed(batch.images, config.jitter)
        views = (changed, plain) if config.augmented_view == "student" else (plain, changed)
        logits, image, window_maps = self.student(views[0], batch.inside)
        told_image, told_maps = self.teacher_view(views[1], batch.inside)
        windows = as_windows(self.window_predictor(window_maps))
        told_windows = as_windows(told_maps)
        self.entries = self.remembered(told_image, told_windows, batch)
        return {
            "supervised": supervised(
                logits,
                batch.labels,
                batch.annotated,
                squared=config.squared_dice,
                pooling=config.dice_pooling,
                absent=config.absent_dice,
            ),
            "image_relation": config.image_weight
            * self.relation(self.image_predictor(image).unsqueeze(1), told_image.unsqueeze(1), self.images),
            "window_relation": config.window_weight * self.relation(windows, told_windows, self.windows),
        }

    def teacher_view(self, images: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of the images and maps of their windows, without a gradient."""
        _, image, maps = cast(tuple[Tensor, Tensor, Tensor], self.teacher(images, inside))
        return image, maps

    def relation(self, student: Tensor, teacher: Tensor, memory: RingMemory) -> Tensor:
        """KL(teacher || student) of the relations of (B, P, F) embeddings to a memory."""
        return relation_divergence(
            student,
            teacher,
            memory.rows[0].view(-1, *student.shape[1:]),
            memory.is_filled[0],
            student_temperature=self.config.student_temperature,
            teacher_temperature=self.config.teacher_temperature,
        )

    def remembered(self, image: Tensor, windows: Tensor, batch: Batch) -> Entries:
        """The teacher's embeddings of all cases, of length one; none of a batch without labels."""
        labelled = any(any(row[1:]) for row in batch.annotated_rows)
        wanted = torch.full((1, len(image)), labelled, device=image.device)
        return Entries(unit(image).unsqueeze(0), unit(windows).flatten(1).unsqueeze(0), wanted)

    def after_step(self, progress: Progress) -> None:
        self.teacher.follow(self.student, progress)
        if self.entries is not None:
            self.images.put(self.entries.images, self.entries.wanted)
            self.windows.put(self.entries.windows, self.entries.wanted)
            self.entries = None

    def predictor(self) -> nn.Module:
        network = self.config.predicting(self.student, self.teacher)
        return Softmax(cast(RelationNet, network).network)


class RelationNet(nn.Module):
    """A network with an embedding of the whole image and one for each window of its logits."""

    def __init__(self, nets: NetFactory, windows: Sequence[int]):
        super().__init__()
        self.windows = tuple(windows)
        self.network = nets.network()
        width = self.network.decoder.channels[0]
        self.image_head = two_layers(width, width, IMAGE_FEATURES)
        self.window_head = two_convolutions(nets.dims, nets.num_classes, 2 * nets.num_classes)

    def forward(self, images: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, M, *S) -> logits (B, C, *S), embeddings (B, IMAGE_FEATURES), maps (B, C, *windows * BINS).

        `inside` (B, *S) bool tells the scan from padding, which has no part in embeddings and maps; None: no padding.
        """
        inside = (images[:, 0] == images[:, 0]) if inside is None else inside
        scales = self.network.decoder(self.network.encoder(images))
        logits = self.network.head(scales[-1])
        coarse = labels_at(inside, scales[0].shape[2:]).flatten(1).unsqueeze(1)
        image = (scales[0].flatten(2) * coarse).sum(dim=2) / coarse.sum(dim=2).clamp_min(1)
        maps = self.window_head(pool_windows(logits * inside.unsqueeze(1), self.windows))
        return logits, self.image_head(image), maps


def two_layers(before: int, hidden: int, after: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(before, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, after))


def two_convolutions(dims: int, channels: int, hidden: int) -> nn.Sequential:
    """The same for every place of a map, which keeps its number of channels."""
    convolution = brick("convolution", dims)
    return nn.Sequential(
        convolution(channels, hidden, 1), nn.ReLU(inplace=True), convolution(hidden, channels, 1)
    )


def windows_of(config: ArcoConfig, dims: int) -> tuple[int, ...]:
    """The number of windows along each axis.

    Errors
        ConfigError     `windows` has another length
    """
    given = config.windows * dims if len(config.windows) == 1 else config.windows
    if len(given) != dims:
        raise ConfigError(
            "method.settings.windows has the wrong length",
            found=f"{len(given)} numbers",
            expected=f"{dims}, one for each axis, or one for all",
        )
    return given


def pool_windows(maps: Tensor, windows: Sequence[int]) -> Tensor:
    """Half overlapping windows of a map, each averaged to `BINS` values along every axis.

    A mean over a box is a mean along each axis in turn, so no window is ever copied.

    Shapes
        maps        (B, K, *S)
        windows     one number for each axis
        returns     (B, K, *windows * BINS), in float32: the bins of a window stand side by side
    """
    with torch.autocast(maps.device.type, enabled=False):
        pooled = maps.float()
        for axis, count in enumerate(windows, start=2):
            means = _window_means(pooled.shape[axis], count, pooled.device)
            pooled = (pooled.movedim(axis, -1) @ means.T).movedim(-1, axis)
    return pooled


def _window_means(length: int, count: int, device: torch.device) -> Tensor:
    """(count * BINS, length) averaging matrix; bins as in adaptive pooling, windows evenly from end to end."""
    size = max(2 * length // (count + 1), 1)
    number = torch.arange(count * BINS, device=device)
    window, place = number // BINS, number % BINS
    gaps = max(count - 1, 1)
    corner = (2 * window * (length - size) + gaps) // (2 * gaps)  # rounded
    low, high = corner + place * size // BINS, corner - (-(place + 1) * size // BINS)
    voxel = torch.arange(length, device=device)
    inside = ((voxel >= low.unsqueeze(1)) & (voxel < high.unsqueeze(1))).float()
    return inside / inside.sum(dim=1, keepdim=True)


def as_windows(maps: Tensor) -> Tensor:
    """Maps (B, K, *windows * BINS) -> embeddings (B, P, K * BINS ** axes), one for each window."""
    axes = maps.ndim - 2
    split = maps.reshape(*maps.shape[:2], *(part for n in maps.shape[2:] for part in (n // BINS, BINS)))
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return split.permute(order).flatten(1 + axes).flatten(1, axes)


def perturbed(images: Tensor, jitter: float) -> Tensor:
    """Other brightness and contrast, by factors 1 + U(-jitter, jitter), and a blur: each in every second case.

    Shapes
        images, returns     (B, M, *S) float
    """
    drawn = torch.rand(3, len(images), *(1 for _ in images.shape[1:]), device=images.device)
    chosen = drawn[0] < 0.5
    brightness, contrast = torch.where(chosen, 1 + (2 * drawn[1:] - 1) * jitter, 1)
    bright = images * brightness
    middle = bright.mean(dim=tuple(range(2, images.ndim)), keepdim=True)
    return sometimes_blurred((bright - middle) * contrast + middle, chance=0.5, widths=BLUR)
