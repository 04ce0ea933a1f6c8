"""The numbers of every method: defaults as its page lists them, presets derived from what was published."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from labelwise.methods import METHODS, find_method
from labelwise.nets.factory import NETS, find_net

DOCS = Path(__file__).parents[2] / "docs"
WORDS = {"true": True, "false": False, "none": None}
# Defaults that a page tells in words: what they come to with a network or a number of classes.
IN_WORDS = {"mixture_terms", "query_width", "groups"}


def value_of(text: str) -> Any:
    """`0.1`, `"open"`, (7,), `true`, none -> the value."""
    text = text.strip().strip("`")
    return WORDS[text] if text in WORDS else ast.literal_eval(text)


def documented(name: str) -> dict[str, str]:
    """Setting -> default, of the pages of a method and of the stages that share its settings."""
    found: dict[str, str] = {}
    for other in METHODS:
        if find_method(other).Config is find_method(name).Config:
            page = (DOCS / "methods" / f"{other}.md").read_text(encoding="utf-8")
            for block in re.findall(r"^\| setting \| default .*\n((?:\|.*\n)+)", page, re.MULTILINE):
                found |= re.findall(r"^\| `(\w+)` \| (.+?) \|", block, re.MULTILINE)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_default_of_each_setting_is_that_of_its_page(name):
    defaults, pages = find_method(name).Config(), documented(name)
    for field in fields(defaults):
        if field.name not in IN_WORDS:
            default, told = getattr(defaults, field.name), value_of(pages[field.name])
            told = tuple(told) if isinstance(told, list) else told
            expected = pytest.approx(told, abs=5e-5) if isinstance(told, float) and told > 0.1 else told
            assert default == expected, f"{field.name} of {name}"


@pytest.mark.parametrize("name", NETS)
def test_the_default_of_each_setting_of_a_network_is_that_of_the_reference(name):
    page = (DOCS / "reference" / "recipe.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", page, re.MULTILINE)
    told = dict(re.findall(r"`(\w+)` (\([^)]*\)|[\w.]+)", row))
    for field in fields(find_net(name).Settings):
        if field.name in told:
            text = told[field.name]
            default = field.default
            assert str(default).lower() == text or default is None, f"{field.name} of {name}"
        else:
            assert f"`{field.name}`" in row, f"{field.name} of {name} is not in the reference"


def share(decay: float, steps: int, moves: int = 1) -> float:
    """The half-life of a published decay, as a part of the published number of steps."""
    return math.log(0.5) / math.log(decay) / (steps * moves)


STAIRS = 150 / 30000  # weights change every 150 steps
MC_NET = {
    "consistency_weight": 0.1, "ramp_fraction": 200 * 150 / 30000, "ramp_interval": STAIRS,
    "channel_reduction": "mean", "use_ce": False,
}  # fmt: skip
TEACHER = {"ema_half_life": share(0.99, 30000), "ramp_interval": STAIRS}
UNION = {"ema_half_life": share(0.999, 447900), "prototype_half_life": share(0.999, 447900, moves=2)}
ARCO = {"jitter": 0.2, "augmented_view": "teacher", "perturb_mixed": True}
SS_NET = {
    "consistency_weight": 0.1, "ramp_fraction": 200 * 150 / 30000, "ramp_interval": STAIRS,
    "magnitude": 6.0, "magnitude_mode": "l2",
}  # fmt: skip
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mean_teacher": {"acdc": TEACHER},
    "ua_mt": {"acdc": TEACHER},
    "mc_net": {"acdc": MC_NET},
    "mc_net_plus": {"acdc": MC_NET},
    "caml": {"acdc": {**MC_NET, "correlation_weight": 0.1 / 20}},
    "ss_net": {"acdc": SS_NET},
    "urpc": {"acdc": {"ramp_interval": STAIRS}, "la2018": {"ramp_fraction": 40 * 150 / 15000}},
    "ucmt": {
        "la2018": {"ramp_fraction": 5 / 1000, "two_steps": True, "ema_half_life": share(0.99, 20000, moves=2)}
    },
    "bcp_pretraining": {"acdc": {"ema_half_life": share(0.99, 30000)}},
    "bcp": {"acdc": {"ema_half_life": share(0.99, 30000)}},
    "arco_pretraining": {"acdc": ARCO},
    "arco": {"acdc": ARCO},
    "ltuda_cda": {"union": UNION},
    "ltuda": {"union": UNION},
}


@pytest.mark.parametrize("name", METHODS)
def test_presets_are_what_was_published_for_the_data_set(name):
    presets = find_method(name).presets
    assert presets.keys() == PRESETS.get(name, {}).keys()
    for data_set, settings in presets.items():
        assert dict(settings) == {
            setting: pytest.approx(value, rel=0.01) if isinstance(value, float) else value
            for setting, value in PRESETS[name][data_set].items()
        }
