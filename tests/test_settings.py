"""Settings are refused with the setting's name, what was found, and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError
from labelwise.settings import build_settings, by_present_names

FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=FORBID)
class Inner:
    decay: float = 0.99


@dataclass(frozen=True, config=FORBID)
class Outer:
    folder: Path
    width: Annotated[int, Field(ge=1)] = 16
    norm: Literal["batch", "group"] = "batch"
    stride: tuple[int, int, int] | None = None
    inner: Inner | None = None
    precision: Literal["full", "mixed"] | int = "full"

    def __post_init__(self) -> None:
        if self.norm == "group" and self.width < 4:
            raise ValueError("group norm needs a width of at least 4")


def message(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build_settings(Outer, values, "[net]")
    return str(caught.value)


def test_plain_values_become_the_types_of_the_fields():
    values = {"folder": "a/b", "stride": [1, 2, 3], "inner": {"decay": 1}}
    assert build_settings(Outer, values, "[net]") == Outer(Path("a/b"), stride=(1, 2, 3), inner=Inner(1.0))


def test_an_instance_is_returned_as_it_is():
    settings = Outer(Path("a"))
    assert build_settings(Outer, settings, "[net]") is settings


def test_unknown_setting_is_refused_with_the_nearest_known_one():
    text = message({"folder": "a", "widht": 3})
    assert "[net]: unknown setting 'widht'; did you mean 'width'?" in text
    assert "folder, width, norm, stride, inner" in text


def test_unknown_nested_setting_lists_the_settings_of_its_own_table():
    text = message({"folder": "a", "inner": {"deacy": 1.0}})
    assert "did you mean 'decay'?" in text
    assert "a table of decay" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 3}, ["setting 'folder' is missing"]),
        ({"folder": "a", "width": 0}, ["setting 'width'", "found     0", "greater than or equal to 1"]),
        ({"folder": "a", "width": True}, ["setting 'width'", "found     True", "integer"]),
        ({"folder": "a", "width": "16"}, ["setting 'width'", "found     '16'", "integer"]),
        ({"folder": "a", "norm": "layer"}, ["setting 'norm'", "'layer'", "'batch' or 'group'"]),
        ({"folder": "a", "stride": [1, 2]}, ["setting 'stride"]),
        ({"folder": "a", "stride": [1, 2, "3"]}, ["setting 'stride.2'", "'3'", "expected  an integer"]),
        ({"folder": "a", "stride": "1"}, ["setting 'stride'", "expected  a list in square brackets"]),
        ({"folder": "a", "inner": {"decay": "1"}}, ["setting 'inner.decay'", "expected  a number"]),
        ({"folder": "a", "precision": "half"}, ["setting 'precision' is wrong", "'full' or 'mixed'"]),
        ({"folder": "a", "norm": "group", "width": 2}, ["group norm needs a width of at least 4"]),
        ({"folder": object()}, ["not a plain value"]),
        ([1, 2], ["must be a table"]),
    ],
)
def test_a_wrong_value_names_setting_found_and_expected(values: object, words: list[str]):
    text = message(values)
    for word in words:
        assert word in text


@dataclass(frozen=True, config=FORBID)
class Renamed:
    unlabelled_cases: int = 2
    postprocess: Inner = Inner()
    cut_among: str = "all"


@dataclass(frozen=True, config=FORBID)
class Around:
    part: Renamed = Renamed()


def test_older_names_and_values_of_settings_are_understood_also_in_nested_tables():
    assert build_settings(Renamed, {"incomplete_cases": 1}, "[part]") == Renamed(unlabelled_cases=1)
    assert build_settings(Around, {"part": {"incomplete_cases": 1}}, "[]") == Around(
        Renamed(unlabelled_cases=1)
    )
    assert build_settings(Renamed, {"cut_among": "incomplete"}, "[part]") == Renamed(cut_among="unlabelled")
    both = build_settings(Renamed, {"postprocess": {"decay": 0.1}, "tidy": {"decay": 0.2}}, "[part]")
    assert both.postprocess.decay == 0.2  # what somebody adds under the older name counts


def test_a_setting_under_both_of_its_names_is_refused():
    with pytest.raises(ConfigError, match="'incomplete_cases' is the older name of 'unlabelled_cases'"):
        build_settings(Renamed, {"incomplete_cases": 1, "unlabelled_cases": 2}, "[part]")


def test_an_older_name_that_means_something_else_in_a_package_of_its_own_stays():
    @dataclass(frozen=True, config=FORBID)
    class Theirs:
        source: str = ""

    assert build_settings(Theirs, {"source": "here"}, "[part]") == Theirs("here")
    tree = {"method": {"name": "theirs", "settings": {"source": "here"}}, "sampling": {"incomplete_cases": 1}}
    assert by_present_names(tree) == {**tree, "sampling": {"unlabelled_cases": 1}}


def test_a_name_that_is_neither_new_nor_old_is_refused():
    with pytest.raises(ConfigError, match="unknown setting 'forgot'"):
        build_settings(Renamed, {"forgot": 0.1}, "[part]")
