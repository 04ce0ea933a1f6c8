"""Labels of a whole scan from a network that sees patches, without an array of classes times volume.

Overlapping windows sweep the scan along the axis on which it is longest, measured in patches. Their weighted
scores are summed in a slab one patch thick; planes that no later window can reach become labels at once, and
the slab moves on. Memory therefore does not grow with the length of the scan. The sums need not be divided
by the sum of the weights, because all classes of a voxel share it.

    for each row of windows along the sweep axis:
        slab[window] += weight * scores(window)                       for every window of the row
        labels[finished planes] = argmax over the classes of slab[finished planes]
        move the unfinished planes to the front of the slab, zero the rest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, PositiveInt
from pydantic import dataclasses as pydantic_dataclasses
from torch import Tensor, nn

from labelwise.anatomy import named_side
from labelwise.console import ShowProgress, silent
from labelwise.devices import has_bf16, memory_explained, use_allowed_cpus
from labelwise.errors import CheckpointError, ConfigError
from labelwise.infer.doubt import Doubt
from labelwise.infer.postprocess import PostprocessConfig
from labelwise.infer.windows import Blending, Size, WindowGrid, blending_weight, pad_to_patch
from labelwise.types import Array, LabelSpace

LEFT_RIGHT = 0  # the axis from left to right
Score = Callable[[Tensor], Tensor]  # windows (B, M, *patch) -> scores (B, C, *patch) float32


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class InferenceConfig:
    window: tuple[PositiveInt, PositiveInt, PositiveInt] | None = (
        None  # voxels; None: the patch of the training
    )
    stride: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None  # voxels; None: from the overlap
    overlap: float = Field(default=0.5, ge=0, lt=1)  # part of a window that the next one sees again
    blending: Blending = "gaussian"  # weight of a score by its place in the window
    batch_size: int = Field(default=1, ge=1)  # windows per forward pass
    mirror_axes: tuple[Literal[0, 1, 2], ...] = ()  # average over all flips of these axes (X, Y, Z)
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    postprocess: PostprocessConfig = PostprocessConfig()  # clean-up of the finished label map

    def window_for(self, patch_size: Size) -> Size:
        """The window of a network that was trained with patches of `patch_size`."""
        return self.window or patch_size


def check_windows(config: InferenceConfig, patch_size: Size, strides: Sequence[int]) -> None:
    """Raise a ConfigError if a network cannot take the windows, or they leave gaps.

    Arguments
        patch_size  of its training
        strides     what the sides of a window must be divisible by, along each axis of the network
    """
    window = config.window_for(patch_size)
    if (window[2] == 1) != (patch_size[2] == 1):
        raise ConfigError(
            "windows and patches must both be slices, or both be volumes",
            found=f"inference.window = {list(window)} for patches of {list(patch_size)}",
        )
    if any(size % stride for size, stride in zip(window, strides, strict=False)):
        raise ConfigError(
            "the network cannot take such a window",
            found=f"inference.window = {list(window)}",
            expected=f"sides divisible by {' x '.join(map(str, strides))}",
        )
    WindowGrid.of(window, window, config.stride, config.overlap)


def check_mirroring(label_space: LabelSpace, config: InferenceConfig) -> None:
    """Raise a ConfigError if scores were averaged over mirror images in which left and right change places."""
    sided = [name for name in label_space.structures if named_side(name)]
    if sided and LEFT_RIGHT in config.mirror_axes:
        raise ConfigError(
            f"classes are named by their side ({', '.join(sided)}), which mirroring along x changes",
            found=f"inference.mirror_axes = {list(config.mirror_axes)}",
            do="take 0 out of inference.mirror_axes",
        )


def predict_labels(
    predictor: nn.Module,
    image: Tensor,
    patch_size: Size,
    *,
    num_classes: int,
    config: InferenceConfig,
    device: torch.device | str,
    progress: ShowProgress = silent,
    doubt: Doubt | None = None,
) -> Array:
    """Label every voxel of a prepared scan; of equal scores the lowest class wins. `doubt` is told all scores.

    A scan smaller than the window is padded with zeros on both sides, and the padding is cut off again. With a
    window of depth 1 the predictor is two-dimensional: windows lie in the slices, batches run across them.

    Shapes
        predictor   (B, M, *window) -> scores (B, C, *window) in [0, 1], on `device`; it is put into
                    evaluation mode and back
        patch_size  of its training; the window, unless the config names another
        image       (M, X, Y, Z)  float32, on any device
        returns     (X, Y, Z)     uint8, or uint16 for more than 256 classes

    Errors
        ConfigError         the stride leaves gaps between the windows
        CheckpointError     the scores have the wrong shape or are not finite
        ResourceError       the memory of the device is too small

    Source
        Window starts and padding of the LA benchmark codes (UA-MT and followers); Gaussian weight of MONAI.
    """
    window = config.window_for(patch_size)
    padded, inside = pad_to_patch(image, window)
    grid = WindowGrid.of(padded.shape[1:], window, config.stride, config.overlap)
    labels = np.empty(grid.size, dtype=np.uint8 if num_classes <= 256 else np.uint16)
    score = _scorer(predictor, grid, num_classes, config, device)
    with torch.inference_mode(), _evaluation_mode(predictor), explained_out_of_memory():
        for planes, sums in _finished_planes(score, padded.to(device), grid, config, progress):
            labels[grid.planes(planes)] = _strongest(sums)
            if doubt is not None and (seen := _inside(sums, planes, grid, inside)).numel():
                doubt.add(seen)
    return np.ascontiguousarray(labels[inside])


def predict_scores(
    predictor: nn.Module,
    image: Tensor,
    patch_size: Size,
    *,
    num_classes: int,
    config: InferenceConfig,
    device: torch.device | str,
) -> Tensor:
    """The averaged scores of which `predict_labels` takes the argmax: (C, X, Y, Z) float32 on `device`.

    For a look at small scans: unlike the labels, they take C times the memory of the volume.
    """
    window = config.window_for(patch_size)
    padded, inside = pad_to_patch(image, window)
    grid = WindowGrid.of(padded.shape[1:], window, config.stride, config.overlap)
    score = _scorer(predictor, grid, num_classes, config, device)

    def sums(score: Score) -> Tensor:
        parts = _finished_planes(score, padded.to(device), grid, config, silent)
        return torch.cat([part.clone() for _, part in parts], dim=grid.axis + 1)

    with torch.inference_mode(), _evaluation_mode(predictor), explained_out_of_memory():
        return (sums(score) / sums(_one_everywhere))[:, *inside]


def explained_out_of_memory() -> AbstractContextManager[None]:
    """The memory that runs out over a scan becomes a ResourceError that says what to do."""
    return memory_explained(
        "the memory is too small for this scan", do="lower batch_size, or predict with --device cpu"
    )


def _inside(sums: Tensor, planes: slice, grid: WindowGrid, inside: tuple[slice, ...]) -> Tensor:
    """The part of finished planes (C, ...) that belongs to the scan, without its padding."""
    cuts = list(inside)
    along = cuts[grid.axis]
    first, last = max(along.start, planes.start), min(along.stop, planes.stop)
    cuts[grid.axis] = slice(first - planes.start, max(last, first) - planes.start)
    return sums[:, *cuts]


@dataclass(frozen=True)
class _Scorer:
    """The predictor and what surrounds a forward pass: slices, flips, precision, a check of the shape."""

    predictor: nn.Module
    shape: tuple[int, ...]  # (C, *patch)
    flips: tuple[tuple[int, ...], ...]  # dimensions of (B, C, *patch), one entry per extra view
    device_type: str
    bf16: bool

    def __call__(self, windows: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16):
            return mean_over_views(self._one_view, windows, self.flips)

    def _one_view(self, windows: Tensor) -> Tensor:
        is_slice = windows.shape[-1] == 1
        scores: Tensor = self.predictor(windows.squeeze(-1) if is_slice else windows)
        scores = scores.unsqueeze(-1) if is_slice else scores
        if scores.shape != (len(windows), *self.shape):
            raise CheckpointError(
                "the predictor's scores have the wrong shape",
                found=tuple(scores.shape),
                expected=f"{(len(windows), *self.shape)} for windows {tuple(windows.shape)}",
                do="check the number of classes and the patch size of the model",
            )
        return scores.float()


def _scorer(
    predictor: nn.Module,
    grid: WindowGrid,
    num_classes: int,
    config: InferenceConfig,
    device: torch.device | str,
) -> _Scorer:
    use_allowed_cpus()
    device_type = torch.device(device).type
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device_type))
    flips = mirror_images(config, grid.patch)
    return _Scorer(predictor, (num_classes, *grid.patch), flips, device_type, bf16)


def mean_over_views(
    scores_of: Callable[[Tensor], Tensor], windows: Tensor, flips: Sequence[tuple[int, ...]]
) -> Tensor:
    """Scores of windows, averaged over these and their mirror images `flips`."""
    scores = scores_of(windows)
    for flip in flips:
        scores = scores + scores_of(windows.flip(flip)).flip(flip)
    return scores / (len(flips) + 1) if flips else scores


def mirror_images(config: InferenceConfig, patch_size: Size) -> tuple[tuple[int, ...], ...]:
    """The mirror images over which scores are averaged: of each, the dimensions of (B, C, *patch) that are flipped."""
    axes = sorted({axis + 2 for axis in config.mirror_axes if patch_size[axis] > 1})
    return tuple(flip for count in range(1, len(axes) + 1) for flip in combinations(axes, count))


def _one_everywhere(windows: Tensor) -> Tensor:
    """A stand-in for the predictor: what it sums up to are the sums of the weights."""
    return torch.ones_like(windows[:, :1])


def _finished_planes(
    score: Score, image: Tensor, grid: WindowGrid, config: InferenceConfig, progress: ShowProgress
) -> Iterator[tuple[slice, Tensor]]:
    """Sweep the scan; yield which planes are finished and their sums (C, ...), valid until the next step."""
    weight = blending_weight(grid.patch, config.blending).to(image.device)
    rows = grid.rows(config.batch_size)
    thickness = max(group[-1] - group[0] for group in rows) + grid.patch[grid.axis]
    slab: Tensor | None = None
    done = 0
    for group, following in zip(rows, [*rows[1:], (grid.size[grid.axis],)], strict=True):
        windows = grid.windows(group)
        for first in range(0, len(windows), config.batch_size):
            batch = windows[first : first + config.batch_size]
            scores = score(torch.stack([grid.cut(image, window) for window in batch]))
            slab = _empty_slab(scores, grid, thickness) if slab is None else slab
            for window, window_scores in zip(batch, scores.unbind(), strict=True):
                grid.cut(slab, window, group[0]).addcmul_(window_scores, weight)
            del scores, window_scores  # else they would lie in memory beside the next ones
            done += len(batch)
            progress("windows", done, grid.num_windows)
        assert slab is not None, "every row has a window"
        finished = following[0] - group[0]
        yield slice(group[0], following[0]), slab.narrow(grid.axis + 1, 0, finished)
        _advance(slab, grid.axis + 1, finished)


def _empty_slab(scores: Tensor, grid: WindowGrid, thickness: int) -> Tensor:
    """Zeros (C, ...) in the memory order of the scores, because adding across orders is ten times slower."""
    size = [thickness if axis == grid.axis else length for axis, length in enumerate(grid.size)]
    if scores.stride(1) == 1:  # channels last
        return scores.new_zeros(*size, scores.shape[1]).movedim(-1, 0)
    return scores.new_zeros(scores.shape[1], *size)


def _advance(slab: Tensor, dim: int, planes: int) -> None:
    """Drop the first planes of the slab, move the others to the front, zero the rest; all in place."""
    kept = slab.shape[dim] - planes
    for first in range(0, kept, planes):  # in pieces, because source and target must not overlap
        length = min(planes, kept - first)
        slab.narrow(dim, first, length).copy_(slab.narrow(dim, first + planes, length))
    slab.narrow(dim, kept, planes).zero_()


def _strongest(sums: Tensor) -> Array:
    """(C, ...) -> (...): the class with the largest sum, the lowest one of equals."""
    best, labels = sums.max(dim=0)
    if not bool(best.isfinite().all()):  # NaN wins every comparison, so one look at the winners is enough
        raise CheckpointError(
            "the network gave scores that are not finite numbers",
            do='predict with precision = "float32"; if it happens again, the weights are broken',
            code="scores-not-finite",
        )
    narrow: Array = labels.to(torch.uint8 if len(sums) <= 256 else torch.int16).cpu().numpy()
    return narrow


@contextmanager
def _evaluation_mode(predictor: nn.Module) -> Iterator[None]:
    """Dropout and batch statistics off; afterwards every part is as it was."""
    training = [module for module in predictor.modules() if module.training]
    predictor.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
