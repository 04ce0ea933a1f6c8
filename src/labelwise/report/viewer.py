"""Cases for the viewer of a report: scan and label maps, small enough to travel inside of a page.

The page holds NiiVue (BSD-2, assets/NIIVUE_LICENSE.txt), which draws gzipped NIfTI files with WebGL.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import nibabel
import numpy as np

from labelwise.errors import ConfigError
from labelwise.report.overlays import grey_values, structure_colours
from labelwise.report.result import Structure
from labelwise.types import IGNORE, Array, LabelSpace, Volume

# Bytes of all scans of a page together, before base64; one voxel of a scan takes about 0.7 bytes compressed.
SCAN_BYTES = 6_000_000
_BYTES_A_VOXEL = 0.7
_MOST_VOXELS = 3_000_000
_MARGIN_MM = 25.0
_GREY_STEPS = 4  # of 256: what no eye sees is not stored


@dataclass(frozen=True)
class ViewerCase:
    """A scan and its label maps, as gzipped NIfTI files on one grid."""

    case: str
    scan: bytes  # uint8, 0 to 255 over the grey window
    # "reference" first, then the runs; or a result alone. uint8 class indices, 255 where nothing is known
    maps: Mapping[str, bytes]
    colours: Mapping[str, str]  # class -> "#rrggbb", in the order of the indices, from 1
    annotated: tuple[str, ...]  # classes of which the reference knows
    note: str  # how the grid differs from that of the scan
    centre: tuple[float, float, float]  # where to look first, 0 to 1 along X, Y, Z


def viewer_case(
    case: str,
    image: Volume,
    reference: Array,
    predictions: Mapping[str, Array],
    *,
    label_space: LabelSpace,
    annotated: Iterable[str],
    window: tuple[float, float] | None = None,
    share: int = 1,
) -> ViewerCase:
    """Cut out the surroundings of the structures, and thin what is still too large.

    Shapes
        image           (M, X, Y, Z); the first modality is shown
        reference       (X, Y, Z) class index or IGNORE
        predictions     run -> (X, Y, Z) class index
        share           how many cases share the space of one page
    """
    known = set(annotated)
    return _viewer_case(
        case,
        image,
        {"reference": reference, **predictions},
        colours=structure_colours(label_space.structures),
        annotated=tuple(structure for structure in label_space.structures if structure in known),
        window=window,
        share=share,
    )


def result_case(
    case: str,
    image: Volume,
    labels: Array,
    structures: Mapping[int, Structure],
    *,
    window: tuple[float, float] | None = None,
    share: int = 1,
) -> ViewerCase:
    """The same for a result without a reference.

    Shapes
        image       (M, X, Y, Z); the first modality is shown
        labels      (X, Y, Z) label values

    Errors
        ConfigError     more structures than a map of the viewer can hold
    """
    if len(structures) >= IGNORE:
        raise ConfigError(
            "a page shows fewer structures", case=case, found=len(structures), expected=f"at most {IGNORE - 1}",
            do="draw a .png file",
        )  # fmt: skip
    index_of = np.zeros(int(max(labels.max(), *structures)) + 1, np.uint8)
    index_of[list(structures)] = np.arange(1, len(structures) + 1)
    colours = {found.name: "#" + bytes(found.colour).hex() for found in structures.values()}
    maps = {"result": index_of[labels]}
    return _viewer_case(case, image, maps, colours=colours, annotated=(), window=window, share=share)


def _viewer_case(
    case: str,
    image: Volume,
    maps: Mapping[str, Array],
    *,
    colours: Mapping[str, str],
    annotated: tuple[str, ...],
    window: tuple[float, float] | None,
    share: int,
) -> ViewerCase:
    box = _box(list(maps.values()), image.spacing_mm)
    most = min(_MOST_VOXELS, int(SCAN_BYTES / _BYTES_A_VOXEL / max(share, 1)))
    step = _steps([side.stop - side.start for side in box], image.spacing_mm, most)
    grey = (255 * _block_mean(grey_values(image, window)[box], step)).astype(np.uint8)
    thinned = {
        name: np.ascontiguousarray(labels[box][tuple(slice(n // 2, None, n) for n in step)])
        for name, labels in maps.items()
    }
    shape = tuple(min(a, b) for a, b in zip(grey.shape, next(iter(thinned.values())).shape, strict=True))
    cut = tuple(slice(0, n) for n in shape)
    affine = image.affine @ _placed(box, step)
    size = " x ".join(f"{n * spacing:.3g}" for n, spacing in zip(step, image.spacing_mm, strict=True))
    whole = tuple(side.stop - side.start for side in box) == image.shape
    note = f"Voxels of {size} mm" + ("" if max(step) == 1 else ", thinned") + ("" if whole else ", cut out")
    return ViewerCase(
        case,
        _packed(grey[cut] // _GREY_STEPS * _GREY_STEPS, affine),
        {name: _packed(labels[cut].astype(np.uint8), affine) for name, labels in thinned.items()},
        colours,
        annotated,
        note + ".",
        _middle([labels[cut] for labels in thinned.values()]),
    )


def _box(maps: list[Array], spacing_mm: tuple[float, ...]) -> tuple[slice, ...]:
    """The surroundings of all structures; everything if there are none."""
    seen = np.logical_or.reduce([(labels > 0) & (labels != IGNORE) for labels in maps])
    if not seen.any():
        return tuple(slice(0, n) for n in seen.shape)
    found = []
    for axis, (length, spacing) in enumerate(zip(seen.shape, spacing_mm, strict=True)):
        places = np.flatnonzero(seen.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = round(_MARGIN_MM / spacing)
        found.append(slice(max(0, int(places[0]) - margin), min(length, int(places[-1]) + 1 + margin)))
    return tuple(found)


def _middle(maps: list[Array]) -> tuple[float, float, float]:
    """The middle of all structures, as a part of each axis."""
    seen = np.logical_or.reduce([(labels > 0) & (labels != IGNORE) for labels in maps])
    places = np.argwhere(seen if seen.any() else np.ones_like(seen)).mean(axis=0)
    x, y, z = ((places + 0.5) / seen.shape).tolist()
    return x, y, z


def _steps(shape: list[int], spacing_mm: tuple[float, ...], most: int) -> tuple[int, ...]:
    """Every how many voxels along each axis: the finest axis is thinned first."""
    step = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(shape, step, strict=True)]) > most:
        finest = min(range(3), key=lambda axis: (spacing_mm[axis] * step[axis], -shape[axis]))
        step[finest] += 1
    return tuple(step)


def _block_mean(values: Array, step: tuple[int, ...]) -> Array:
    """Means of blocks of `step` voxels; a rest at the end that fills no block is left out, if there is any block."""
    for axis, n in enumerate(step):
        if n > 1 and values.shape[axis] >= n:
            blocks = values.shape[axis] // n
            values = np.take(values, range(blocks * n), axis=axis)
            shape = (*values.shape[:axis], blocks, n, *values.shape[axis + 1 :])
            values = values.reshape(shape).mean(axis=axis + 1)
    return values


def _placed(box: tuple[slice, ...], step: tuple[int, ...]) -> Array:
    """Index of a block -> index of its middle in the scan."""
    placed = np.diag([*map(float, step), 1.0])
    placed[:3, 3] = [side.start + (n - 1) / 2 for side, n in zip(box, step, strict=True)]
    return placed


def _packed(data: Array, affine: Array) -> bytes:
    image = nibabel.Nifti1Image(np.ascontiguousarray(data), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=9, mtime=0)
