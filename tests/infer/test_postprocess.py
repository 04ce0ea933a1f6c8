"""Largest component and holes: hand-made volumes, SciPy and cc3d side by side."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from labelwise.components import connected as module
from labelwise.infer.postprocess import PostprocessConfig, postprocess
from labelwise.types import Array

LARGEST, HOLES = PostprocessConfig(largest_component=True), PostprocessConfig(fill_holes=True)


@pytest.fixture(params=["scipy", "cc3d"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file runs with both libraries."""
    function: Callable[[Array, Any], tuple[Array, int]] = module._scipy_parts
    if request.param == "cc3d":
        cc3d: Any = pytest.importorskip("cc3d", reason="the extra 'fast' is not installed")
        function = functools.partial(module._cc3d_parts, cc3d)
    monkeypatch.setattr(module, "_parts", lambda: function)


def shell(outer: int, inner: int, size: int = 12) -> Array:
    """Class 1: a cube with a cavity in its middle."""
    labels = np.zeros((size,) * 3, np.uint8)
    middle = size // 2
    labels[(slice(middle - outer, middle + outer),) * 3] = 1
    labels[(slice(middle - inner, middle + inner),) * 3] = 0
    return labels


def test_only_the_largest_part_of_each_class_stays() -> None:
    labels = np.zeros((20, 6, 6), np.uint8)
    labels[:5, :3], labels[8:10, :2] = 1, 1
    labels[12:14], labels[17:18] = 2, 2
    expected = labels.copy()
    expected[8:10], expected[17:18] = 0, 0
    np.testing.assert_array_equal(postprocess(labels, LARGEST), expected, strict=True)


def test_of_a_pair_the_two_largest_parts_stay() -> None:
    labels = np.zeros((20, 6, 6), np.uint8)
    labels[:5, :3], labels[8:10, :2], labels[12, 0, 0] = 1, 1, 1
    labels[14:16], labels[18:19] = 2, 2
    expected = labels.copy()
    expected[12], expected[18] = 0, 0
    both = PostprocessConfig(largest_component=True, pairs=(1,))
    np.testing.assert_array_equal(postprocess(labels, both), expected, strict=True)
    labels[labels == 1] = 0  # of equal parts the first ones stay
    labels[1:8:2, 0, 0] = 1
    assert np.flatnonzero(postprocess(labels, both)[:, 0, 0] == 1).tolist() == [1, 3]


def test_convention_parts_that_touch_at_a_corner_are_one_part() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2, :2, :2], labels[2:, 2:, 2:] = 1, 1
    np.testing.assert_array_equal(postprocess(labels, LARGEST), labels)


def test_of_equal_parts_the_first_in_the_array_stays() -> None:
    labels = np.zeros((9, 3, 3), np.uint8)
    labels[0, 2, 2], labels[4, 0, 0], labels[8, 1, 1] = 1, 1, 1
    assert np.flatnonzero(postprocess(labels, LARGEST)).tolist() == [8]


def test_an_enclosed_cavity_is_filled_and_an_open_one_is_not() -> None:
    closed = shell(4, 2)
    assert postprocess(closed, HOLES).sum() == 8**3
    opened = closed.copy()
    opened[6, 6, 8:] = 0
    np.testing.assert_array_equal(postprocess(opened, HOLES), opened)


def test_a_cavity_at_the_border_of_the_scan_is_open() -> None:
    labels = np.ones((5, 5, 5), np.uint8)
    labels[0, 2, 2] = 0
    np.testing.assert_array_equal(postprocess(labels, HOLES), labels)


def test_filling_never_replaces_another_structure() -> None:
    labels = shell(4, 2)
    labels[6, 6, 6] = 2
    filled = postprocess(labels, HOLES)
    assert (filled == 2).sum() == 1
    assert (filled == 1).sum() == 8**3 - 1


def test_only_the_named_classes_are_touched() -> None:
    labels = np.zeros((6, 2, 2), np.uint8)
    labels[0], labels[3:] = 1, 1
    assert (postprocess(labels, PostprocessConfig(largest_component=True, classes=(2,))) == labels).all()
    assert (postprocess(labels, PostprocessConfig(largest_component=True, classes=(1,)))[0] == 0).all()


def test_switched_off_it_returns_its_input_and_switched_on_it_does_not_change_it() -> None:
    labels = shell(4, 2).astype(np.uint16)
    before = labels.copy()
    assert postprocess(labels, PostprocessConfig()) is labels
    result = postprocess(labels, PostprocessConfig(largest_component=True, fill_holes=True))
    np.testing.assert_array_equal(labels, before)
    assert result.dtype == np.uint16


def test_an_empty_map_stays_empty() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert not postprocess(empty, PostprocessConfig(largest_component=True, fill_holes=True)).any()


def test_both_libraries_agree_on_random_maps() -> None:
    rng = np.random.default_rng(3)
    config = PostprocessConfig(largest_component=True, fill_holes=True)
    for _ in range(5):
        labels = (rng.random((14, 13, 12)) < 0.45).astype(np.uint8) * rng.integers(
            1, 3, (14, 13, 12), np.uint8
        )
        module_result, reference = postprocess(labels, config), _with_scipy(labels, config)
        np.testing.assert_array_equal(module_result, reference)


def _with_scipy(labels: Array, config: PostprocessConfig) -> Array:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_parts", lambda: module._scipy_parts)
        return postprocess(labels, config)


def test_scipy_stands_in_when_cc3d_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise ImportError(name)

    monkeypatch.undo()
    module._parts.cache_clear()
    monkeypatch.setattr(importlib, "import_module", not_installed)
    assert module._parts() is module._scipy_parts
    module._parts.cache_clear()
