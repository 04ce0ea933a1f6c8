"""Connected parts are those of SciPy, whatever library numbers them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from labelwise.components.connected import connected_parts

SHAPES = [(1, 9), (9, 1), (3, 9), (7, 9), (1, 9, 5), (9, 1, 5), (9, 5, 1), (1, 1, 9), (3, 2, 9), (7, 5, 4)]


@pytest.mark.parametrize("neighbours", ["faces", "corners"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parts_cover_the_mask_and_are_those_of_scipy(shape, neighbours):
    structure = ndimage.generate_binary_structure(len(shape), len(shape) if neighbours == "corners" else 1)
    for seed in range(40):
        mask = np.random.default_rng(seed).random(shape) < 0.6
        parts, count = connected_parts(mask, neighbours)
        expected, number = ndimage.label(mask, structure)
        assert count == number
        pairs = set(zip(parts.ravel().tolist(), expected.ravel().tolist(), strict=True))
        assert len(pairs) == number + (not mask.all()), "a part was cut, joined or reached out of the mask"
        assert ((parts > 0) == mask).all()
