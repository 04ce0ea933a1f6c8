"""Recipes, options and their order: one RunConfig, and back to run.toml."""

from __future__ import annotations

import tomllib
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from conftest import tiny_config
from labelwise import load_config
from labelwise.config import RunConfig, to_toml
from labelwise.errors import ConfigError
from labelwise.methods import find_method
from labelwise.methods.base import Card
from labelwise.methods.naive import Naive

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refused(*arguments: object, **values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*arguments, **values)
    return str(caught.value)


# order


def test_without_anything_every_setting_has_its_default():
    config = load_config()
    assert (config.net.name, config.method.name) == ("unet", "supervised")
    assert config.method.settings["dice_pooling"] == "case"  # written out, not left to later versions
    assert config.net.settings["width"] == 16


def test_later_words_win(tmp_path):
    recipe(tmp_path, "seed = 1\nselect = 'best'\n[train]\nsteps = 10\nlog_every = 3\n", "base.toml")
    top = recipe(tmp_path, "extends = 'base.toml'\nseed = 2\n[train]\nsteps = [20]\n")
    config = load_config(top, {"train.steps": 30, "seed": 4}, seed=3)
    assert (config.seed, config.select, config.train.steps, config.train.log_every) == (4, "best", (30,), 3)


def test_a_recipe_extends_from_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    recipe(tmp_path / "recipes", "seed = 5", "base.toml")
    recipe(tmp_path / "recipes", "extends = 'base.toml'")
    monkeypatch.chdir(tmp_path)
    assert load_config("recipes/recipe.toml").seed == 5


def test_another_method_drops_the_settings_of_the_first(tmp_path):
    file = recipe(tmp_path, "[method]\nname = 'mean_teacher'\n[method.settings]\nconsistency_on = 'all'\n")
    assert load_config(file, method={"name": "mean_teacher"}).method.settings["consistency_on"] == "all"
    assert "consistency_on" not in load_config(file, method={"name": "ua_mt"}).method.settings
    assert "consistency_on" not in load_config(file, {"method.name": "ua_mt"}).method.settings


def test_settings_for_the_new_method_are_kept_whatever_their_order(tmp_path):
    file = recipe(tmp_path, "[method]\nname = 'mean_teacher'\n[method.settings]\nconsistency_on = 'all'\n")
    for changes in (
        {"method.name": "ua_mt", "method.settings.passes": 2},
        {"method.settings.passes": 2, "method.name": "ua_mt"},
    ):
        assert load_config(file, changes).method.settings["passes"] == 2
    config = load_config(file, {"method.settings.passes": 2}, method={"name": "ua_mt"})
    assert (config.method.name, config.method.settings["passes"]) == ("ua_mt", 2)


def test_settings_of_the_default_method_and_network_need_no_name(tmp_path):
    file = recipe(tmp_path, "[method.settings]\nsquared_dice = true\n")
    config = load_config(file, {"net.settings.width": 8}, method={"name": "supervised"})
    assert config.method.settings["squared_dice"] is True
    assert config.net.settings["width"] == 8


def test_another_optimizer_keeps_the_rate():
    config = load_config(None, {"train.optimizer.rate": 0.5, "train.optimizer.name": "adamw"})
    assert (config.train.optimizer.name, config.train.optimizer.rate) == ("adamw", 0.5)


def test_a_whole_table_may_be_given(tmp_path):
    config = load_config(None, {"net": {"name": "vnet", "settings": {"width": 4}}, "net.settings.width": 8})
    assert (config.net.name, config.net.settings["width"]) == ("vnet", 8)


# run.toml


def test_run_toml_gives_the_same_settings(tmp_path):
    config = tiny_config(tmp_path, "ua_mt", seed=3, augment__preset="la", inference__stride=[16, 16, 8])
    file = recipe(tmp_path, config.to_toml(), "run.toml")
    assert load_config(file) == config
    assert load_config(file).to_toml() == config.to_toml()


def test_run_toml_keeps_signs_of_text(tmp_path):
    config = load_config(data='C:\\scans\\"mine"\nMünchen\u2028')
    assert load_config(recipe(tmp_path, config.to_toml())) == config


def test_run_toml_can_hold_every_plain_value():
    tree = {"left kidney": {"a.b": 1, "ü": 1e-05}, "limit": float("inf"), "many": [[1.5, True], ["x"], []]}
    assert tomllib.loads(to_toml(tree)) == tree


def test_run_toml_keeps_a_limit_that_is_none(tmp_path):
    config = load_config(None, {"train.checkpoint_minutes": float("inf")})
    assert load_config(recipe(tmp_path, config.to_toml())) == config


def test_training_from_run_toml_repeats_the_run(tiny_run):
    config = load_config(tiny_run / "run.toml")
    assert isinstance(config, RunConfig)
    assert config.to_toml() == (tiny_run / "run.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_of_the_project_loads(file):
    config = load_config(file)
    assert tomllib.loads(config.to_toml())["method"]["name"] == config.method.name


@pytest.mark.parametrize(
    "name",
    ["ua_mt", "sassnet", "dtc", "mc_net", "urpc", "ss_net", "mc_net_plus", "caml", "dkuxnet", "supervised"],
)
def test_every_row_of_the_la_benchmark_has_a_recipe_for_4_8_and_16_labels(name):
    file = RECIPES / "la2018" / f"{name}.toml"
    assert "4, 8 or 16 of 80 training scans labelled" in file.read_text(encoding="utf-8").splitlines()[0]
    config = load_config(file)
    assert config.method.name == name
    assert config.sampling.patch_size == (112, 112, 80)
    assert (config.inference.stride, config.inference.blending) == ((18, 18, 4), "constant")
    assert (config.select, config.inference.postprocess.largest_component) == ("last", False)


@pytest.mark.parametrize(
    "file",
    sorted(
        (
            *RECIPES.glob("la2018/*.toml"),
            *RECIPES.glob("acdc/*_of_70.toml"),
            *RECIPES.glob("ltuda_union/*.toml"),
        )
    ),
    ids=lambda file: file.stem,
)
def test_a_recipe_of_a_benchmark_has_what_was_published_of_its_method_for_that_data_set(file):
    config = load_config(file)
    published = find_method(config.method.name).presets.get(file.parent.name.removeprefix("ltuda_"), {})
    assert {name: config.method.settings[name] for name in published} == dict(published)


def test_published_settings_of_the_four_systems_are_in_their_recipes():
    """LTUDA: slices of the abdomen; PL-Seg: ranges of patch and scan, k of 16; GuidedNet: windows of 160x160x64."""
    ltuda, pl_seg, guidednet = (
        load_config(RECIPES / name)
        for name in ("abdomenct1k/ltuda.toml", "word/pl_seg.toml", "flare22/guidednet.toml")
    )
    assert ltuda.sampling.slices == "annotated"
    assert ltuda.inference.postprocess.pairs == (2,)
    assert pl_seg.augment.unit_range
    assert pl_seg.prepare.intensity is not None
    assert pl_seg.prepare.intensity["ct"].scheme == "range"
    assert (pl_seg.train.schedule.name, pl_seg.train.schedule.factor) == ("plateau", 0.95)
    assert guidednet.inference.window == (160, 160, 64)
    assert guidednet.sampling.patch_size == (128, 128, 64)
    flare, partner = (load_config(RECIPES / name) for name in ("flare22/pl_seg.toml", "word/equal_cost.toml"))
    assert (flare.sampling.patch_size, flare.inference.stride) == ((128, 128, 64), (32, 32, 32))
    assert partner.train == pl_seg.train
    assert partner.sampling.batch_size == pl_seg.sampling.batch_size
    assert load_config(RECIPES / "la2018" / "ucmt.toml").method.settings["two_steps"]


# what is refused


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tran.steps", [1], ["unknown setting 'tran'", "did you mean 'train'?"]),
        ("train.step", [1], ["unknown setting 'train.step'", "did you mean 'steps'?"]),
        ("train.optimizer.rat", 1, ["unknown setting 'train.optimizer.rat'", "did you mean 'rate'?"]),
        ("method.settings.ema_deacy", 0.9, ["[method.settings] of supervised", "unknown setting"]),
        ("net.settings.widht", 8, ["[net.settings] of unet", "did you mean 'width'?"]),
        ("method.name", "mean_techer", ["unknown method 'mean_techer'; did you mean 'mean_teacher'?"]),
        ("net.name", "vnett", ["unknown network 'vnett'; did you mean 'vnet'?"]),
        ("train.steps", "many", ["setting 'train.steps'", "'many'"]),
        ("train.steps", [0], ["setting 'train.steps", "greater than or equal to 1"]),
        ("train.steps", True, ["setting 'train.steps", "integer"]),
        ("seed", -1, ["setting 'seed'", "greater than or equal to 0"]),
        ("seed", "1", ["setting 'seed'", "'1'", "integer"]),
        ("seed", 2**63, ["setting 'seed'", "less than"]),
        ("net", "vnet", ["setting 'net'", "'vnet'", "a table of name, settings"]),
        ("train.optimizer", 0.1, ["setting 'train.optimizer'", "a table of name, rate, momentum"]),
        ("train.optimizer", {"nesterov": True, "momentum": 0}, ["nesterov needs a momentum"]),
        ("data.folder", "x", ["'data.folder': 'data' is a value, not a table"]),
        ("train", 5, ["setting 'train'"]),
        ("device.precision", "half", ["'auto', 'float32' or 'bf16'"]),
        ("sampling.patch_size", [64, 64], ["sampling.patch_size"]),
        ("sampling.patch_size", [64, 64, 0], ["at least one voxel along each axis"]),
        ("sampling.patch_size", [64, 60, 64], ["divisible by 16", "'unet'", "[64, 60, 64]"]),
        ("sampling.patch_size", [100, 96, 1], ["divisible by 16"]),
        ("sampling.patch_size", [16, 16, 16], ["a single voxel on its coarsest scale", "at least 32"]),
        ("sampling.patch_size", [64, 96, 32], ["turns patches by 90 degrees", "augment.quarter_turns"]),
        ("inference.stride", [97, 96, 96], ["the stride leaves gaps"]),
        ("inference.overlap", 1.0, ["inference.overlap"]),
        ("inference.window", [160, 160, 60], ["cannot take such a window", "16 x 16 x 16"]),
        ("inference.window", [160, 160, 1], ["both be slices", "[160, 160, 1]", "[96, 96, 96]"]),
        ("prepare.crop", "head", ["'none', 'nonzero' or 'body'"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(tmp_path, key, value, expected):
    text = refused(None, {"augment.preset": "la"} | {key: value}, data="here")
    for words in expected:
        assert words in text


def test_a_setting_is_a_value_or_a_table_but_not_both():
    assert "'train.steps': 'train' is a value" in refused(None, {"train": 5, "train.steps": [1]})


def test_the_recipe_is_named_if_one_of_its_settings_is_wrong(tmp_path):
    file = recipe(tmp_path, "sed = 1")
    assert f"{file}: unknown setting 'sed'; did you mean 'seed'?" in refused(file)


@pytest.mark.parametrize("method", ["mean_teacher", "ua_mt"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 1.1), ("ramp_interval", 150), ("ramp_fraction", -1.0), ("noise_clip", -0.2)],
)
def test_settings_that_no_mean_teacher_can_have_are_refused(method, name, value):
    assert f"setting '{name}'" in refused(None, {f"method.settings.{name}": value}, method={"name": method})


def test_a_preset_stands_below_the_settings_that_are_given():
    method = {"name": "mc_net"}
    config = load_config(None, {"preset": "acdc", "method.settings.temperature": 0.5}, method=method)
    assert config.method.settings["consistency_weight"] == 0.1
    assert config.method.settings["channel_reduction"] == "mean"
    assert config.method.settings["temperature"] == 0.5
    given = {"preset": "acdc", "method.settings.consistency_weight": 0.3}
    assert load_config(None, given, method=method).method.settings["consistency_weight"] == 0.3
    assert load_config(None, method=method).method.settings["consistency_weight"] == 1.0


def test_an_unknown_preset_is_refused_with_the_known_ones():
    text = refused(None, {"preset": "acdx"}, method={"name": "mc_net"})
    assert "no preset 'acdx'; did you mean 'acdc'?" in text
    assert "its defaults are what was published" in refused(None, {"preset": "acdc"}, method={"name": "dtc"})


def test_a_method_without_settings_says_so(monkeypatch):
    monkeypatch.setattr(Naive, "Config", make_dataclass("NaiveConfig", [], frozen=True))
    text = refused(None, {"method.settings.rate": 1}, method={"name": "naive"})
    assert "unknown setting 'rate'" in text
    assert "no settings" in text


def test_a_method_that_cannot_do_2d_is_refused(monkeypatch):
    monkeypatch.setattr(Naive, "card", Card("N", "", "", frozenset({"full"}), dims=frozenset({3})))
    text = refused(None, {"sampling.patch_size": [32, 32, 1]}, method={"name": "naive"})
    assert "naive works in 3D only" in text
    assert "[32, 32, 1]" in text


def test_a_network_that_the_method_cannot_use_is_refused(monkeypatch):
    monkeypatch.setattr(Naive, "card", Card("N", "", "", frozenset({"full"}), nets=frozenset({"vnet"})))
    assert "naive cannot use the network 'unet'" in refused(method={"name": "naive"}, net={"name": "unet"})
    assert load_config(method={"name": "naive"}, net={"name": "vnet"}).net.name == "vnet"
    assert load_config(method={"name": "naive"}).net.name == "vnet"  # what is not named is what fits


def test_cases_of_a_batch_norm_need_one():
    net = {"name": "vnet", "batch_norm_cases": 2}
    assert load_config(net=net).net.batch_norm_cases == 2
    assert "'vnet' has no batch norm" in refused(net={**net, "settings": {"norm": "group"}})
    assert "batch_norm_cases" in refused(net={**net, "batch_norm_cases": -1})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed = ", "the recipe cannot be read"),
        (b"[method\nname='x'", "the recipe cannot be read"),
        (b"seed = 1\nseed = 2", "the recipe cannot be read"),
        (b"\xff\xfeseed", "the recipe cannot be read"),
    ],
)
def test_a_garbled_recipe_is_named(tmp_path, content, expected):
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    text = refused(file)
    assert expected in text
    assert str(file) in text


def test_a_recipe_that_is_not_there_or_a_folder(tmp_path):
    assert "the recipe does not exist" in refused(tmp_path / "none.toml")
    assert f"--data {tmp_path}" in refused(tmp_path)


def test_a_missing_or_longer_chain_of_recipes_is_refused(tmp_path):
    top = recipe(tmp_path, "extends = 'base.toml'")
    assert "base.toml" in refused(top)
    recipe(tmp_path, "extends = 'recipe.toml'", "base.toml")
    assert "may not extend another one" in refused(top)


def test_every_stage_has_the_default_number_of_steps():
    steps = load_config(method={"name": "naive"}).train.steps
    assert len(steps) == 1
    assert load_config(method={"name": "ltuda"}).train.steps == steps * 2
    assert load_config(method={"name": "ltuda"}, start_from="runs/cda").train.steps == steps
    assert load_config(None, {"train.steps": 5}, method={"name": "ltuda"}).train.steps == (5,)


def test_a_recipe_of_older_names_still_loads(tmp_path):
    (tmp_path / "old.toml").write_text("[inference.tidy]\nlargest_component = true\n")
    assert load_config(tmp_path / "old.toml").inference.postprocess.largest_component
