"""Files that were written before words changed are read as those of today."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.config import load_config, with_settings
from labelwise.errors import CheckpointError, DataError
from labelwise.infer.model import ModelInfo, model_info
from labelwise.train.checkpoint import check_continues, save_checkpoint
from tiny_cohort import make_case, manifest_of

OLDER = """
data = "data"
base = "fixed"
[method]
name = "dodnet"
[method.settings]
organs_per_case = 1
organ_chunk = 2
[sampling]
incomplete_cases = 3
[inference.tidy]
fill_holes = true
"""


@pytest.mark.parametrize(
    ("file", "present", "other"),
    [("manifest.csv", ",data_set,", ",source,"), ("dataset.toml", "[sources.", "[data_sets.")],
)
def test_a_manifest_with_another_word_for_data_sets_is_the_same_manifest(
    tmp_path: Path, file: str, present: str, other: str
):
    manifest = manifest_of(make_case(tmp_path, "a", 1), make_case(tmp_path, "b"))
    write_manifest(manifest, tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert present in text
    (tmp_path / file).write_text(text.replace(present, other), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest


def test_convention_other_programs_find_the_data_sets_of_a_manifest_under_sources(tmp_path: Path):
    manifest = manifest_of(make_case(tmp_path, "a", 1))
    write_manifest(manifest, tmp_path)
    (data_set,) = manifest.data_sets.values()
    table = tomllib.loads((tmp_path / "dataset.toml").read_text(encoding="utf-8"))["sources"][data_set.name]
    assert table["modality"] == "ct"
    assert {value: name for name, values in table["values"].items() for value in values} == data_set.values


def test_a_class_table_with_data_sets_under_two_keys_is_refused(tmp_path: Path):
    write_manifest(manifest_of(make_case(tmp_path, "a", 1)), tmp_path)
    file = tmp_path / "dataset.toml"
    tables = file.read_text(encoding="utf-8")
    more = tables[tables.index("[sources.") :].replace("[sources.", "[data_sets.")
    file.write_text(tables + more, encoding="utf-8")
    with pytest.raises(DataError, match=r"two keys.*\n.*dataset\.toml"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("older", "present", "settings"),
    [
        ("by_source", "by_data_set", {"keep": {"site": ["liver"]}}),
        ("one_organ_per_case", "one_structure_per_case", {}),
        ("organs_per_case", "structures_per_case", {"k": 1}),
    ],
)
def test_ways_to_hide_labels_keep_their_older_names(tmp_path: Path, older, present, settings):
    manifest = manifest_of(*(make_case(tmp_path, name, 1, 2, 3) for name in "abc"))
    assert hide(manifest, older, **settings) == hide(manifest, present, **settings)


def test_a_manifest_of_before_whose_modality_is_normalised_is_of_no_known_modality_and_normalised(
    tmp_path: Path,
):
    manifest = manifest_of(make_case(tmp_path, "a", 1))
    write_manifest(manifest, tmp_path / "m")
    table = tmp_path / "m" / "dataset.toml"
    table.write_text(table.read_text().replace('"ct"', '"normalised"'))
    (data_set,) = read_manifest(tmp_path / "m").data_sets.values()
    assert (data_set.modality, data_set.normalised, data_set.intensity) == ("other", True, "normalised")
    write_manifest(read_manifest(tmp_path / "m"), tmp_path / "again")
    assert read_manifest(tmp_path / "again").data_sets == {data_set.name: data_set}


def test_a_model_whose_intensities_are_called_modalities_is_read(tiny_run: Path, tmp_path: Path):
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["modalities"] = values.pop("intensities")
    file.write_text(json.dumps(values), encoding="utf-8")
    assert model_info(tmp_path / "model") == model_info(tiny_run)


def test_a_model_whose_data_sets_are_called_sources_names_them():
    info = ModelInfo(
        name="first", classes=("background", "liver"), intensities=("ct",), plan={}, net={}, method="supervised",
        method_settings={}, predictor="softmax", patch_size=(8, 8, 8), inference={}, training={"sources": {"north": 3}},
    )  # fmt: skip
    assert info.training == {"data_sets": {"north": 3}}


@pytest.fixture
def older_recipe(tmp_path: Path) -> Path:
    file = tmp_path / "older.toml"
    file.write_text(OLDER, encoding="utf-8")
    return file


def test_a_recipe_of_before_means_what_it_meant(older_recipe: Path):
    config = load_config(older_recipe)
    assert config.sampling.unlabelled_cases == 3
    assert config.inference.postprocess.fill_holes
    assert config.method.settings["structures_per_case"] == 1
    assert config.method.settings["structure_chunk"] == 2


def test_what_is_set_on_top_of_a_recipe_counts_under_either_name(older_recipe: Path, tmp_path: Path):
    present = tmp_path / "present.toml"
    present.write_text(load_config(older_recipe).to_toml(), encoding="utf-8")
    for recipe in (older_recipe, present):
        for name in ("incomplete_cases", "unlabelled_cases"):
            assert load_config(recipe, {f"sampling.{name}": 1}).sampling.unlabelled_cases == 1
            config = with_settings(load_config(recipe), {f"sampling.{name}": 1})
            assert config.sampling.unlabelled_cases == 1


def test_settings_that_were_to_be_planned_are_known_by_their_older_names():
    config = load_config(None, {"planned": ["sampling.incomplete_cases"]})
    assert config.planned == ("sampling.unlabelled_cases",)


def test_a_checkpoint_of_before_goes_on_where_nothing_but_names_changed(tmp_path: Path):
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {
        "run": {
            "sampling": {"incomplete_cases": 2},
            "method": {"settings": {"cut_among": "incomplete", "organ_prior": 0.1}},
        }
    }
    save_checkpoint(tmp_path / "last.safetensors", net, [optimizer], {"settings": before})

    def settings(**changes):
        method = {"cut_among": "unlabelled", "structure_prior": 0.1}
        sampling = {"unlabelled_cases": 2, "slices": changes.pop("slices", "all")}
        schedule = {"patience": changes.pop("patience", 4), "floor": 0.01}
        tables = {"sampling": sampling, "train": {"schedule": schedule}}
        return {"run": {**tables, "method": {"settings": method | changes}}}

    check_continues(tmp_path / "last.safetensors", settings())
    with pytest.raises(CheckpointError, match="structure_prior"):
        check_continues(tmp_path / "last.safetensors", settings(structure_prior=0.2))
    with pytest.raises(CheckpointError, match="patience"):
        check_continues(tmp_path / "last.safetensors", settings(patience=2))
    with pytest.raises(CheckpointError, match="slices"):
        check_continues(tmp_path / "last.safetensors", settings(slices="annotated"))
