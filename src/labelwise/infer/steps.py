"""What surrounds the network of a model, for programs without this package: NumPy and SciPy, nothing else.

This file travels with every exported model. `told` is the description that travels with it (the JSON `labelwise`).

    scan in RAS+ order --prepare--> image for the network --label--> labels --restore--> labels of the scan

The package itself prepares, sums and restores by other code, made for speed and little memory; the tests hold both to
the same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]
_SLAB = 32  # planes of labels that are restored at a time: bounds the memory


class Undo(NamedTuple):
    """What `restore` must know of one scan: its size, and the first and last + 1 voxel of the box that was cut out."""

    shape: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]


def prepare(scan: Array, affine: Array, told: Mapping[str, Any], intensity: str = "") -> tuple[Array, Undo]:
    """Crop, normalise and resample a scan.

    Arguments
        scan        (M, X, Y, Z) in RAS+ order: x grows to the right, y to the front, z to the head of the patient
        affine      (4, 4) voxel index -> mm, of which the voxel size counts
        intensity   what the intensities are; needed only if the model knows several

    Returns the image (M, X', Y', Z') float32, and what brings its labels back.
    """
    plan = told["plan"]
    spacing = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    start, stop = _box(scan, plan["crop"], spacing)
    cut = np.array(scan[(slice(None), *map(slice, start, stop))], np.float32)
    wanted = plan["spacing_mm"] or spacing
    fixed = plan["shape"] or (None, None, None)
    shape = tuple(
        number or max(1, round(size * old / new))
        for number, size, old, new in zip(fixed, cut.shape[1:], spacing, wanted, strict=True)
    )
    rule = plan["intensity"][intensity or told["intensities"][0]]
    image = np.stack([_resampled(_normalised(channel, rule), shape) for channel in cut])
    return image, Undo(scan.shape[1:], start, stop)


def label(image: Array, told: Mapping[str, Any], scores_of: Callable[[Array], Array]) -> Array:
    """The labels (X, Y, Z) of a prepared image: windows, their scores by `scores_of`, the strongest weighted sum.

    `scores_of` takes windows (B, M, *window) float32 to scores (B, C, *window).
    """
    windows = told["windows"]
    size = windows["size"]
    gaps = [max(length - have, 0) for length, have in zip(size, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *((gap // 2, gap - gap // 2) for gap in gaps)])
    strides = windows["stride"] or [max(int(length * (1 - windows["overlap"])), 1) for length in size]
    starts = [
        sorted({min(first, whole - length) for first in range(0, whole - length + stride, stride)})
        for whole, length, stride in zip(padded.shape[1:], size, strides, strict=True)
    ]
    weight = _weight(size, windows["blending"])
    sums = np.zeros((len(told["output"]["classes"]), *padded.shape[1:]), np.float32)
    for first in product(*starts):
        place = (slice(None), *(slice(at, at + length) for at, length in zip(first, size, strict=True)))
        window = padded[place][None]
        flat = size[2] == 1  # a network of slices
        scores = scores_of(window[..., 0] if flat else window)[0]
        sums[place] += weight * (scores[..., None] if flat else scores)
    inside = tuple(slice(gap // 2, gap // 2 + have) for gap, have in zip(gaps, image.shape[1:], strict=True))
    strongest: Array = sums.argmax(0)[inside]
    return strongest.astype(np.uint8 if len(sums) <= 256 else np.uint16)


def restore(labels: Array, undo: Undo, told: Mapping[str, Any]) -> Array:
    """Labels of a prepared image -> labels (X, Y, Z) of the scan in RAS+ order, cleaned up."""
    whole = np.zeros(undo.shape, labels.dtype)
    box = tuple(map(slice, undo.start, undo.stop))
    whole[box] = _restored(labels, tuple(np.subtract(undo.stop, undo.start)))
    _clean_up(whole, told["postprocess"])
    return whole


class Prepared:
    """`prepare` as a transform of MONAI: the image of a case, in RAS+ order with its channels first."""

    def __init__(self, told: Mapping[str, Any], key: str = "image") -> None:
        self.told, self.key = told, key

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """The case with its prepared image, and with what brings labels back as integers (3, 3)."""
        scan = case[self.key]
        image, undo = prepare(np.asarray(scan), np.asarray(scan.affine), self.told)
        kept = scan.__class__(image, meta=scan.meta, applied_operations=scan.applied_operations)
        return {**case, self.key: kept, "undo": np.array(undo)}


class Restored:
    """`restore` as a transform of MONAI: the labels (1, X, Y, Z) of a case, back on the grid of its scan."""

    def __init__(self, told: Mapping[str, Any], key: str = "pred") -> None:
        self.told, self.key = told, key

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """The case with its labels in RAS+ order."""
        pred = case[self.key]
        undo = Undo(*(tuple(map(int, row)) for row in np.asarray(case["undo"])))
        labels = restore(np.asarray(pred)[0].astype(np.int32), undo, self.told)
        return {**case, self.key: pred.__class__(labels[None], meta=pred.meta)}


def _box(scan: Array, crop: str, spacing: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel, and last voxel + 1, of the part that is kept."""
    if crop == "none":
        return (0, 0, 0), scan.shape[1:]
    if crop == "nonzero":
        lowest = scan.min(axis=(1, 2, 3), keepdims=True)
        return _ends(((scan != 0) & (scan != lowest)).any(axis=0))
    x, y, z = steps = [max(1, round(4.0 / size)) for size in spacing]  # body: on a grid of about 4 mm
    parts, _ = ndimage.label(scan[0, ::x, ::y, ::z] > -300)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    first, last = _ends((sizes >= max(0.1 * sizes.max(), 1))[parts])
    start = [max(0, (at - 1) * step) for at, step in zip(first, steps, strict=True)]
    stop = [min(size, (at + 1) * step) for size, at, step in zip(scan.shape[1:], last, steps, strict=True)]
    return tuple(start), tuple(stop)


def _ends(mask: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    inside = np.nonzero(mask)
    return tuple(int(at.min()) for at in inside), tuple(int(at.max()) + 1 for at in inside)


def _normalised(channel: Array, rule: Mapping[str, Any]) -> Array:
    if rule["scheme"] == "none":
        return channel
    values = np.unique(channel)
    if 2 <= len(values) <= 32 and values[0] >= 0 and channel.size >= 50 * len(values):  # a mask
        return channel / np.float32(values[-1] if values[-1] > 10 else 1)
    if rule["scheme"] == "ct":
        (low, high), mean, std = rule["clip"], rule["mean"], rule["std"]
    else:
        own = channel[channel != 0]
        low, high = np.percentile(own, (0.5, 99.5)) if own.size else (0.0, 0.0)
        own = np.clip(own, np.float32(low), np.float32(high)) if own.size else np.zeros(1, np.float32)
        mean, std = own.mean(dtype=np.float64), own.std(dtype=np.float64)
        std = std if std > 1e-6 * max(abs(low), abs(high)) else 1.0
    return (np.clip(channel, np.float32(low), np.float32(high)) - np.float32(mean)) / np.float32(std)


def _resampled(channel: Array, shape: tuple[int, ...]) -> Array:
    """By cubic convolution (a = -1/2), along one axis after the other; no value leaves the range of the channel."""
    low, high = channel.min(), channel.max()
    for axis, (old, new) in enumerate(zip(channel.shape, shape, strict=True)):
        if old != new:
            moved = np.moveaxis(channel, axis, -1) @ _cubic(old, new).T
            channel = np.moveaxis(moved, -1, axis)
    return np.clip(channel, low, high)


def _cubic(old: int, new: int) -> Array:
    """(new, old) weights. Where voxels become larger the kernel widens by the same factor."""
    scale = old / new
    wide = max(scale, 1.0)
    centre = (np.arange(new)[:, None] + 0.5) * scale
    first = np.maximum(np.trunc(centre - 2 * wide + 0.5), 0)
    last = np.minimum(np.trunc(centre + 2 * wide + 0.5), old)
    place = np.arange(old)[None]
    far = np.abs(place - centre + 0.5) / wide
    near = (1.5 * far - 2.5) * far * far + 1
    outer = ((-0.5 * far + 2.5) * far - 4) * far + 2
    weights = np.where(far < 1, near, np.where(far < 2, outer, 0)) * ((place >= first) & (place < last))
    shares: Array = weights / weights.sum(1, keepdims=True)
    return shares.astype(np.float32)


def _weight(size: list[int], blending: str) -> Array:
    weight = np.ones(size, np.float32)
    if blending == "gaussian":
        for axis, length in enumerate(size):
            place = np.arange(length, dtype=np.float32) - (length - 1) / 2
            bell = np.exp(place**2 / (-2 * (length / 8) ** 2))
            weight = weight * bell.reshape([-1 if other == axis else 1 for other in range(3)])
    return np.maximum(weight, 1e-3).astype(np.float32)


def _restored(labels: Array, shape: tuple[int, ...]) -> Array:
    """Where voxels become smaller the label of most trilinear weight, else the voxel that a centre lies in."""
    labels = _nearest(labels, tuple(map(min, labels.shape, shape)))
    if labels.shape == shape:
        return labels
    restored = np.empty(shape, labels.dtype)
    ways = list(map(_neighbours, labels.shape, shape))
    padded = np.pad(labels, (0, 1), mode="edge")
    for start in range(0, shape[0], _SLAB):
        here = [(ways[0][0][start : start + _SLAB], ways[0][1][start : start + _SLAB]), *ways[1:]]
        restored[start : start + _SLAB] = _most_weight(padded, here)
    return restored


def _most_weight(padded: Array, ways: list[tuple[Array, Array]]) -> Array:
    """Of the eight neighbours the label of most weight, the first of equals."""
    corners = list(product((0, 1), repeat=3))
    votes = [padded[np.ix_(*(low + step for (low, _), step in zip(ways, at, strict=True)))] for at in corners]
    weights = []
    for at in corners:
        x, y, z = (part if step else 1 - part for (_, part), step in zip(ways, at, strict=True))
        weights.append(x[:, None, None] * y[None, :, None] * z[None, None, :])
    won: Array = votes[0]
    most = np.full(won.shape, -1, np.float32)
    for vote in votes:
        support: Array = np.sum(np.where(np.equal(votes, vote), weights, 0), axis=0)
        won, most = np.where(support > most, vote, won), np.maximum(support, most)
    return won


def _nearest(labels: Array, shape: tuple[int, ...]) -> Array:
    for axis, (old, new) in enumerate(zip(labels.shape, shape, strict=True)):
        labels = labels.take((2 * np.arange(new) + 1) * old // (2 * new), axis=axis)
    return labels


def _neighbours(old: int, new: int) -> tuple[Array, Array]:
    """For each new voxel of an axis: the old voxel before its centre, and the weight of the one after it."""
    centre = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    before = np.floor(centre).astype(np.int64)
    return before, (centre - before).astype(np.float32)


def _clean_up(labels: Array, rules: Mapping[str, Any]) -> None:
    """In place, class by class: the largest part (of `pairs` the two largest), and no enclosed background."""
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or (rules.get("classes") and index not in rules["classes"]):
            continue
        part = labels[box]
        if rules.get("largest_component"):
            mask = part == index
            numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
            sizes = np.bincount(numbers.ravel())[1:]
            largest = np.argsort(-sizes, kind="stable")[: 2 if index in rules.get("pairs", ()) else 1] + 1
            part[mask & ~np.isin(numbers, largest)] = 0
        if rules.get("fill_holes"):
            part[ndimage.binary_fill_holes(part == index) & (part == 0)] = index
