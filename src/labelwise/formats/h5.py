"""HDF5 files of the research benchmarks: one file per scan or slice, data sets `image` and `label`.

The layouts in use (left atrium and pancreas: axes x, y, z; ACDC: z, y, x; ACDC slices: y, x) store no spacing
and no orientation; `Layout` says what the files do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from labelwise.errors import DataError, did_you_mean
from labelwise.formats.geometry import Geometry, as_geometry, check_inside, check_size
from labelwise.formats.layout import Layout
from labelwise.types import Array


def read_geometry(path: Path, layout: Layout) -> Geometry:
    """The grid of the image, or of the labels in a file without an image; reads no voxels."""
    with _open(path) as file:
        has_labels_only = layout.image_key not in file and layout.label_key in file
        data_set = _data_set(path, file, layout.label_key if has_labels_only else layout.image_key)
        return _geometry(path, data_set, layout)


def read(path: Path, layout: Layout, key: str) -> tuple[Array, Geometry]:
    """Voxels (X, Y, Z) of the data set `key` and their grid.

    Errors
        DataError   damaged file, no such data set, neither 2D nor 3D, not numbers
    """
    with _open(path) as file:
        data_set = _data_set(path, file, key)
        geometry = _geometry(path, data_set, layout)
        stored = data_set[()]
    voxels = stored if layout.axes == "xyz" else stored.T
    return voxels.reshape(geometry.shape), geometry


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    """The open file; h5py finds damage at any access, and reports it as any of these errors."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the HDF5 file cannot be read: truncated or damaged",
            file=path,
            found=error,
            do="copy the file again",
            code="unreadable",
        ) from error


def _check_inside(path: Path, file: h5py.File, key: str) -> None:
    """Refuse voxels that lie in files elsewhere."""
    link = file.get(key, getlink=True) if key in file.keys() else None  # noqa: SIM118 - membership follows links
    named = [link.filename] if isinstance(link, h5py.ExternalLink) else []
    if not named and isinstance(found := file.get(key), h5py.Dataset):
        named += [str(name) for name, _, _ in found.external or []]
        named += [source.file_name for source in found.virtual_sources()] if found.is_virtual else []
    check_inside(path, (name for name in named if name != "."))


def _data_set(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    _check_inside(path, file, key)
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        keys = sorted(str(name) for name in file)
        near = "" if key in keys else did_you_mean(key, keys)  # there, but a group
        raise DataError(
            f"no data set '{key}' in the file{near}",
            file=path,
            found=", ".join(keys) or "nothing",
            do="name the data sets by image_key and label_key of the source's layout",
        )
    if found.dtype.kind not in "iufb" or found.ndim not in (2, 3):
        raise DataError(
            f"data set '{key}' is not an image",
            file=path,
            found=f"shape {found.shape}, type {found.dtype}",
            expected="2D or 3D, numbers",
            do="name the data sets by image_key and label_key of the source's layout",
        )
    return found


def _geometry(path: Path, data_set: h5py.Dataset, layout: Layout) -> Geometry:
    shape = data_set.shape if layout.axes == "xyz" else data_set.shape[::-1]
    check_size(path, data_set.nbytes, compressed=True)
    return as_geometry(path, shape, layout.affine)
