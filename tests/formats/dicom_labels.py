"""A label map on a DICOM series of a few voxels, for the tests of DICOM labels."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
from dicom_files import write_series
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from labelwise.formats import read_geometry
from labelwise.types import Volume

NAMES = ("background", "liver", "left kidney", "thing of the clinic")
SPACINGS = st.floats(0.3, 6).map(lambda mm: round(mm, 4))


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Axes in any order and direction, upright or oblique, any spacing and origin: stored voxel -> mm in RAS."""
    order = draw(st.sampled_from(list(permutations(range(3)))))
    signs = draw(st.sampled_from(list(product((-1, 1), repeat=3))))
    angles = draw(st.tuples(*[st.sampled_from([0.0, 0.0, 7.3, -31.0])] * 3))
    turn = np.eye(3)[:, order] * signs
    if np.linalg.det(turn) < 0:  # slices are counted along the normal of their rows and columns
        turn[:, 2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, True).as_matrix() @ turn
    affine[:3, :3] *= [draw(SPACINGS) for _ in range(3)]
    affine[:3, 3] = [round(draw(st.floats(-300, 300)), 3) for _ in range(3)]
    return affine


def blobs(shape: tuple[int, int, int], seed: int = 0, classes: int = 3) -> np.ndarray:
    """(I, J, K) uint8 labels: smooth parts with holes and islands; some slices are empty."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    labels = np.digitize(noise, np.quantile(noise, np.linspace(0.4, 1, classes + 1)[:-1])).astype(np.uint8)
    labels[:, :, -1] = 0
    return labels


def series(
    folder: Path, shape: tuple[int, int, int] = (12, 9, 6), affine: np.ndarray | None = None, **tags
) -> Path:
    """A CT series in a folder of its own; returns the folder."""
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_series(folder, voxels, np.diag((-1.5, -1.25, 2.5, 1)) if affine is None else affine, **tags)
    return folder


def labels_on(scan: Path, seed: int = 0) -> Volume:
    """Blobs on the grid of a scan, RAS+."""
    grid = read_geometry(scan)
    return Volume(blobs(grid.shape, seed), grid.affine)
