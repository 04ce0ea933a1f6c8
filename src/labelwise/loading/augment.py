"""Random changes of patches, on whole batches, on the CPU and on the GPU by the same code.

    images, labels, extra targets --geometry--> one resampling: turned, scaled, sheared, shifted, bent; then
                                                mirrored and turned by quarters, which copies voxels exactly
    images --intensity--> brought to one range (on request); noise, blur, brightness, contrast, low resolution, gamma

What happens to which case is drawn on the CPU from one generator, so the decisions are the same on every
device and cost no synchronisation; only the voxels of the noise come from the device's own generator.

Orientation. Mirroring along x exchanges left and right structures, and a mirrored abdomen has its liver on the wrong
side. The presets "light" and "default" therefore never mirror; set `mirror_axes` where anatomy allows it. Where
classes are named by their side, what brings one side to the place of the other is refused, unless `sides` says how it
is meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Generator, Tensor

from labelwise.anatomy import other_sides
from labelwise.errors import ConfigError
from labelwise.loading import intensity, warp
from labelwise.loading.store import Corner
from labelwise.types import LabelSpace

Axis = Literal[0, 1, 2]
LEFT_RIGHT = 0  # the axis from left to right
Part = Annotated[float, Field(ge=0, le=1)]
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Chance:
    """With this probability per case, a strength drawn uniformly from [low, high]."""

    probability: Part
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError("low is larger than high", found=f"low = {self.low}, high = {self.high}")

    def draw(self, count: int, generator: Generator, otherwise: float) -> Tensor:
        """(count,) strengths, `otherwise` where chance says no. Always uses two numbers per case."""
        decision, strength = torch.rand(2, count, generator=generator, dtype=torch.float64)
        return torch.where(
            decision < self.probability, self.low + (self.high - self.low) * strength, otherwise
        )


NEVER = Chance(0.0, 0.0, 0.0)
_OFF: Mapping[str, Any] = {
    "mirror_axes": (),
    "mirror_once": False,
    "quarter_turns": False,
    "on_side": 0.0,
    "rotation_degrees": NEVER,
    "tilt_degrees": NEVER,
    "scale": NEVER,
    "shear": NEVER,
    "shift": NEVER,
    "elastic": NEVER,
    "elastic_grid": 24,
    "margin": 0.0,
    "noise": NEVER,
    "blur": NEVER,
    "brightness": NEVER,
    "contrast": NEVER,
    "low_resolution": NEVER,
    "gamma": NEVER,
    "drop_channels": 0.0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": _OFF,
    "flip": {**_OFF, "mirror_axes": (0, 1, 2)},
    "light": {
        **_OFF,
        "rotation_degrees": Chance(0.3, -15, 15),
        "tilt_degrees": Chance(0.1, -10, 10),
        "scale": Chance(0.3, 0.9, 1.1),
        "margin": 0.1,
        "noise": Chance(0.15, 0, 0.1),
        "brightness": Chance(0.15, 0.9, 1.1),
        "contrast": Chance(0.15, 0.9, 1.1),
        "gamma": Chance(0.15, 0.8, 1.25),
    },
    # Strengths and probabilities of nnU-Net's standard augmentation, plus bending, without mirroring.
    "default": {
        **_OFF,
        "rotation_degrees": Chance(0.2, -30, 30),
        "tilt_degrees": Chance(0.2, -30, 30),
        "scale": Chance(0.2, 0.7, 1.4),
        "elastic": Chance(0.1, 0.05, 0.25),
        "margin": 0.15,
        "noise": Chance(0.1, 0, 0.3),
        "blur": Chance(0.2, 0.5, 1.0),
        "brightness": Chance(0.15, 0.75, 1.25),
        "contrast": Chance(0.15, 0.75, 1.25),
        "low_resolution": Chance(0.25, 0.5, 1.0),
        "gamma": Chance(0.3, 0.7, 1.5),
    },
    # Every case is turned, scaled or changed in several ways: for trainings with few labels.
    "strong": {
        **_OFF,
        "rotation_degrees": Chance(0.5, -45, 45),
        "tilt_degrees": Chance(0.3, -30, 30),
        "scale": Chance(0.5, 0.7, 1.4),
        "elastic": Chance(0.2, 0.05, 0.3),
        "margin": 0.15,
        "noise": Chance(0.2, 0, 0.3),
        "blur": Chance(0.3, 0.5, 1.0),
        "brightness": Chance(0.5, 0.7, 1.3),
        "contrast": Chance(0.5, 0.65, 1.5),
        "low_resolution": Chance(0.25, 0.5, 1.0),
        "gamma": Chance(0.5, 0.6, 1.7),
    },
    "la": {**_OFF, "quarter_turns": True, "mirror_axes": (0, 1)},
    "la_official": {**_OFF, "quarter_turns": True, "mirror_axes": (0, 1), "mirror_once": True},
}
_FROM_PRESET: Any = None


@dataclass(frozen=True, config=STRICT)
class AugmentConfig:
    """How training patches are changed. What is not given is taken from the preset.

    none          nothing
    flip          mirrored along every axis with p = 0.5; only for structures without a side
    light         small turns and scalings, slight changes of intensity
    default       wide turns and scalings, some bending, all changes of intensity
    strong        as default, but wider and more often: for few labels
    la            quarter turns in the x-y plane, then mirrored along x and y with p = 0.5 each
    la_official   quarter turns, then mirrored along exactly one of x and y, so that every patch is mirrored:
                  what the published codes of the LA benchmark do, for exact comparisons

    Source
        "default": Isensee et al., Nature Methods 2021 (nnU-Net), supplementary note 4, without mirroring.
        "la_official": code of Yu et al., MICCAI 2019 (UA-MT), copied by most later ones.
    """

    preset: Literal["none", "flip", "light", "default", "strong", "la", "la_official"] = "light"
    mirror_axes: tuple[Axis, ...] = _FROM_PRESET  # 0, 1, 2 = x (left-right), y, z; each with p = 0.5
    mirror_once: bool = _FROM_PRESET  # exactly one of the mirror axes instead, always
    quarter_turns: bool = _FROM_PRESET  # 0 to 3 turns by 90 degrees in the x-y plane
    # chance of a turn by 90 degrees to the left or right
    on_side: Annotated[float, Field(ge=0, le=1)] = _FROM_PRESET
    rotation_degrees: Chance = _FROM_PRESET  # about z, in mm: voxels of any shape turn rigidly
    tilt_degrees: Chance = _FROM_PRESET  # about x and y, 3D only
    scale: Chance = _FROM_PRESET  # larger than 1 enlarges
    shear: Chance = _FROM_PRESET  # shift in mm per mm of the next axis
    shift: Chance = _FROM_PRESET  # per axis, as a part of the patch
    elastic: Chance = _FROM_PRESET  # largest displacement / elastic_grid; below 0.4 nothing folds
    elastic_grid: Annotated[int, Field(ge=2)] = _FROM_PRESET  # voxels between control points
    margin: Part = _FROM_PRESET  # read beyond each side of the patch, as a part of it: fills corners
    noise: Chance = _FROM_PRESET  # standard deviation of Gaussian noise
    blur: Chance = _FROM_PRESET  # standard deviation of a Gaussian, voxels
    brightness: Chance = _FROM_PRESET  # factor
    contrast: Chance = _FROM_PRESET  # factor about the mean of the patch, range kept
    low_resolution: Chance = _FROM_PRESET  # factor on the number of voxels per axis, and back
    gamma: Chance = _FROM_PRESET  # exponent on the range of the patch, mean and deviation kept
    # chance of each channel to be missing from a patch, as in a case that lacks it; one always stays
    drop_channels: Part = _FROM_PRESET
    # For classes that are named by a side, where patches are mirrored along x or turned by quarters: refuse; swap
    # exchanges the labels of left and right in a mirrored patch; keep leaves them, as some published protocols do.
    sides: Literal["refuse", "swap", "keep"] = "refuse"
    unit_range: bool = (
        False  # each patch from its own lowest and highest intensity to 0..1, before other changes
    )

    def __post_init__(self) -> None:
        preset = PRESETS[self.preset]
        for field in fields(self):
            if getattr(self, field.name) is _FROM_PRESET:
                object.__setattr__(self, field.name, preset[field.name])
        for name in ("scale", "blur", "low_resolution", "gamma"):
            chance: Chance = getattr(self, name)
            if chance.probability and chance.low <= 0:
                raise ConfigError(f"augment.{name} must be larger than 0", found=f"low = {chance.low}")
        if len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise ConfigError("augment.mirror_axes names an axis twice", found=list(self.mirror_axes))
        if self.mirror_once and not self.mirror_axes:
            raise ConfigError("augment.mirror_once needs augment.mirror_axes")

    def read_size(self, patch_size: Corner) -> Corner:
        """How many voxels to read for a patch of `patch_size`: with the margin, and in the same middle."""
        x, y, z = (size + 2 * round(self.margin * size) if size > 1 else 1 for size in patch_size)
        return x, y, z

    def check(self, patch_size: Corner) -> None:
        """Raise a ConfigError if patches of this size cannot be augmented like this."""
        if (self.quarter_turns or self.on_side) and patch_size[0] != patch_size[1]:
            raise ConfigError(
                f"augment.preset = '{self.preset}' turns patches by 90 degrees in the x-y plane",
                found=f"sampling.patch_size = {list(patch_size)}",
                expected="as many voxels along x as along y, or augment.quarter_turns = false and on_side = 0",
            )

    @property
    def turns_sides(self) -> str:
        """The settings that bring the left of a patient to the right, or into another direction; empty if none does."""
        axes = [f"augment.mirror_axes = {list(self.mirror_axes)}"] if LEFT_RIGHT in self.mirror_axes else []
        turns = ["augment.quarter_turns = true"] * self.quarter_turns
        turns += [f"augment.on_side = {self.on_side:g}"] * (self.on_side > 0)
        return ", ".join(axes + turns)

    def check_sides(self, label_space: LabelSpace) -> None:
        """Raise a ConfigError if patches are mirrored or turned so that classes named by a side become wrong."""
        other = other_sides(label_space.structures)
        if not other or not self.turns_sides or self.sides == "keep":
            return
        alone = sorted(name for name in other if not other[name])
        if self.sides == "swap" and (self.quarter_turns or self.on_side or alone):
            why = (
                f"'{alone[0]}' has no partner" if alone else "after a quarter turn, sides are front and back"
            )
            raise ConfigError(
                f"left and right cannot be swapped: {why}",
                found=self.turns_sides,
                do="set augment.quarter_turns = false and augment.on_side = 0, and take 0 out of augment.mirror_axes"
                if alone
                else "set augment.quarter_turns = false and augment.on_side = 0",
            )
        if self.sides == "refuse":
            raise ConfigError(
                "mirroring along x and quarter turns change the side of classes that are named by it: "
                f"{', '.join(other)}",
                found=f"augment.preset = '{self.preset}': {self.turns_sides}",
                do="set augment.mirror_axes without 0, augment.quarter_turns = false and on_side = 0; "
                "or augment.sides = 'swap': mirrored patches get the labels of the other side; "
                "or 'keep', if a published protocol does so",
            )

    def swapped_classes(self, label_space: LabelSpace) -> tuple[int, ...] | None:
        """Class index -> index of the class that it becomes in a mirrored patch; None if labels stay."""
        if self.sides != "swap" or LEFT_RIGHT not in self.mirror_axes:
            return None
        self.check_sides(label_space)
        other = other_sides(label_space.structures)
        return tuple(label_space.index(other.get(name, name)) for name in label_space.names)


class Views(NamedTuple):
    """A batch of patches: everything that has to move together."""

    images: Tensor  # (B, M, *S) float32
    labels: Tensor  # (B, *S) uint8: class index or IGNORE
    targets: Mapping[str, Tensor]  # (B, K, *S) float32 each
    # (B, M, *S): the images before their intensities were changed, where somebody asked for them
    weak: Tensor | None = None
    # (B, *S) bool: voxels of the scan; false beyond it, and where nothing was read
    valid: Tensor | None = None
    swapped: tuple[int, ...] = ()  # rows that were mirrored along x and have the labels of the other side


def augment(
    views: Views,
    config: AugmentConfig,
    generator: Generator,
    *,
    patch_size: Corner,
    spacing_mm: Tensor,
    weak_view: bool = False,
    other_side: Sequence[int] | None = None,
    taken: Tensor | None = None,
) -> Views:
    """Change every case of a batch at random. The images may be overwritten.

    With `weak_view` the result also holds the images that were moved, but whose intensities chance has not changed.

    Shapes
        views       patches of `config.read_size(patch_size)` voxels; without the last axis if that is 1 (2D)
        generator   on the CPU, whatever the device of the patches
        spacing_mm  (B, 3) on the CPU, of the patches
        other_side  C class indices: what each class becomes where a patch is mirrored along x; None: itself
        taken       (B, M) bool on the CPU: the channels that are not missing; the others stay 0; None: all
        returns     patches of `patch_size` voxels
    """
    views = _move(views, config, generator, patch_size, spacing_mm)
    views = _turn_and_mirror(views, config, generator, other_side)
    if config.unit_range:
        inside = torch.ones_like(views.labels, dtype=torch.bool) if views.valid is None else views.valid
        intensity.to_unit_range(views.images, inside)
    weak = views.images.clone() if weak_view else None
    _change_intensity(views.images, config, generator)
    there = torch.ones(views.images.shape[:2], dtype=torch.bool) if taken is None else taken
    if config.drop_channels:
        there = _drop_channels(there, config.drop_channels, generator)
    if not bool(there.all()):
        kept = there.to(views.images).view(*there.shape, *(1 for _ in views.images.shape[2:]))
        for images in (views.images, *([] if weak is None else [weak])):
            images.mul_(kept)
    return views._replace(weak=weak)


def _drop_channels(there: Tensor, chance: float, generator: Generator) -> Tensor:
    """(B, M) bool: each channel goes with this chance, but for one of those that are there."""
    draws = torch.rand(there.shape, generator=generator)
    last = (draws * there).argmax(dim=1, keepdim=True)
    return (there & (draws >= chance)).scatter(1, last, True)


def _move(
    views: Views, config: AugmentConfig, generator: Generator, patch_size: Corner, spacing_mm: Tensor
) -> Views:
    """Turn, scale, shear, shift and bend the cases that chance picks in one resampling; cut the margin."""
    dims = views.labels.dim() - 1
    size, read, device = patch_size[:dims], views.labels.shape[1:], views.images.device
    spacing = spacing_mm[:, :dims].double()
    matrix, shift = _draw_motion(spacing, size, config, generator)
    points = _draw_bending(spacing, size, config, generator)
    changes = torch.cat([(matrix - torch.eye(dims)).flatten(1), shift, points.flatten(1)], dim=1)
    rows = (changes != 0).any(1).nonzero().flatten()

    result = _each(views, lambda patches: warp.centre(patches, size).contiguous())
    if len(rows) == 0:
        return result
    bending = None
    if bool(points.any()):
        bending = warp.bend(points[rows].float().to(device), size, config.elastic_grid)
    grid = warp.sampling_grid(matrix[rows], shift[rows], size, read, device=device, bending=bending)
    result.images[rows] = warp.resample(views.images[rows], grid)
    result.labels[rows] = warp.resample_labels(views.labels[rows], grid)
    if result.valid is not None and views.valid is not None:
        result.valid[rows] = warp.resample_mask(views.valid[rows], grid)
    for name, targets in views.targets.items():
        result.targets[name][rows] = warp.resample_targets(targets[rows], grid)
    return result


def _draw_motion(
    spacing: Tensor, size: Sequence[int], config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Matrix (B, dims, dims) and shift (B, dims), in voxels, from the result to where it is read."""
    count, dims = spacing.shape
    draws = [config.tilt_degrees, config.tilt_degrees, config.rotation_degrees]
    degrees = torch.stack([chance.draw(count, generator, 0) for chance in draws], dim=1)
    if dims == 2:
        degrees[:, :2] = 0
    motion = warp.rotations(torch.deg2rad(degrees))
    shear = torch.eye(3, dtype=motion.dtype).repeat(count, 1, 1)
    for row, column in ((0, 1), (0, 2), (1, 2)):
        shear[:, row, column] = config.shear.draw(count, generator, 0)
    motion = motion @ shear * config.scale.draw(count, generator, 1)[:, None, None]
    shift = torch.stack([config.shift.draw(count, generator, 0) * length for length in size], dim=1)
    # The motion is one of mm, and says where a voxel goes; resampling asks where it comes from.
    motion = motion[:, :dims, :dims] * spacing[:, None, :] / spacing[:, :, None]
    matrix: Tensor = torch.linalg.inv(motion)
    return matrix, -(matrix @ shift[..., None])[..., 0]


def _draw_bending(
    spacing: Tensor, size: Sequence[int], config: AugmentConfig, generator: Generator
) -> Tensor:
    """(B, dims, *control_points) displacements in voxels: equally far in mm along every axis."""
    count, dims = spacing.shape
    strength = config.elastic.draw(count, generator, 0) * config.elastic_grid
    largest = strength[:, None] * spacing.amin(1, keepdim=True) / spacing
    points = warp.control_points(size, config.elastic_grid)
    random = torch.rand((count, dims, *points), generator=generator, dtype=torch.float64) * 2 - 1
    return random * largest.view(count, dims, *[1] * dims)


def _turn_and_mirror(
    views: Views, config: AugmentConfig, generator: Generator, other_side: Sequence[int] | None
) -> Views:
    count, dims = len(views.labels), views.labels.dim() - 1
    axes = [axis for axis in config.mirror_axes if axis < dims]
    turns = [0] * count
    if config.quarter_turns:
        turns = torch.randint(4, (count,), generator=generator).tolist()
    if config.on_side:
        lying = torch.rand(count, generator=generator) < config.on_side
        turned = lying * (2 * torch.randint(2, (count,), generator=generator) + 1)
        turns = [(turn + more) % 4 for turn, more in zip(turns, turned.tolist(), strict=True)]
    mirrored: list[list[int]] = [[] for _ in range(count)]
    if axes and config.mirror_once:
        mirrored = [[axes[i]] for i in torch.randint(len(axes), (count,), generator=generator).tolist()]
    elif axes:
        chosen = (torch.rand(count, len(axes), generator=generator) < 0.5).tolist()
        mirrored = [[axis for axis, yes in zip(axes, row, strict=True) if yes] for row in chosen]
    if not any(turns) and not any(mirrored):
        return views

    def moved(patches: Tensor) -> Tensor:
        each = zip(patches, turns, mirrored, strict=True)
        return torch.stack([warp.turn_and_mirror(patch, k, axes, dims) for patch, k, axes in each])

    result = _each(views, moved)
    if other_side is None:
        return result
    swapped = tuple(row for row, axes in enumerate(mirrored) if LEFT_RIGHT in axes)
    table = torch.arange(256, dtype=torch.uint8)
    table[: len(other_side)] = torch.tensor(other_side, dtype=torch.uint8)
    rows = list(swapped)
    result.labels[rows] = table.to(result.labels.device)[result.labels[rows].int()]
    return result._replace(swapped=swapped)


def _each(views: Views, function: Callable[[Tensor], Tensor]) -> Views:
    targets = {name: function(values) for name, values in views.targets.items()}
    valid = None if views.valid is None else function(views.valid)
    return Views(function(views.images), function(views.labels), targets, valid=valid)


def _change_intensity(images: Tensor, config: AugmentConfig, generator: Generator) -> None:
    """Change the intensities of (B, M, *S) images in place, each case with its own chances."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    noise_generator = Generator(images.device).manual_seed(seed)
    changes: Sequence[tuple[Chance, Callable[[Tensor, float], None]]] = (
        (config.noise, partial(intensity.add_noise, generator=noise_generator)),
        (config.blur, intensity.blur),
        (config.brightness, intensity.change_brightness),
        (config.contrast, intensity.change_contrast),
        (config.low_resolution, intensity.lower_resolution),
        (config.gamma, intensity.change_gamma),
    )
    for chance, change in changes:
        strengths = chance.draw(len(images), generator, math.nan)
        for image, strength in zip(images, strengths.tolist(), strict=True):
            if not math.isnan(strength):
                change(image, strength)
