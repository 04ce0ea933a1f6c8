"""Trainings of every kind go from scans to scores: slices, several modalities, other networks and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import pytest

from conftest import TINY_SETTINGS, tiny_config
from labelwise import load_config, load_model, read_manifest, run, write_manifest
from labelwise.config import RunConfig
from labelwise.types import LabelSpace

pytestmark = pytest.mark.usefixtures("one_process")

KINDS = {
    "slices": {"sampling__patch_size": [32, 48, 1]},
    "fixed shape": {"prepare__shape": [40, 40, 0], "prepare__spacing_mm": None},
    "bf16": {"device__precision": "bf16"},
    "mirrored, in batches": {"inference__mirror_axes": [0, 1], "inference__batch_size": 3},
    "only unlabelled batches": {"sampling__labelled_cases": 0},
    "validated, clipped, warmed up": {
        "train__validate_every": 1, "train__clip_gradient": 1.0, "train__schedule__warmup_steps": 2, "select": "best",
    },
}  # fmt: skip


def scored(config: RunConfig, folder: Path) -> set[str]:
    """Train, predict and evaluate; the cases that have scores."""
    run.train(config, folder)
    assert not run.predict(folder, config.data, folder / "predictions", device="cpu").failed
    return {score.case for score in run.evaluate(folder, config.data).scores}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_with_other_settings(tiny_cohort, tmp_path, kind):
    config = tiny_config(tiny_cohort, "mean_teacher", train__steps=[2], **KINDS[kind])
    assert scored(config, tmp_path) == {"test_000", "test_001"}
    assert load_config(tmp_path / "run.toml") == config


def test_a_network_of_another_kind(tiny_cohort, tmp_path):
    settings = {**TINY_SETTINGS, "net.name": "vnet", "train.steps": [2]}
    config = load_config(None, settings, data=str(tiny_cohort), method={"name": "ua_mt"})
    assert scored(config, tmp_path) == {"test_000", "test_001"}
    assert load_model(tmp_path).info.net["name"] == "vnet"


def test_labelled_and_unlabelled_cases_may_be_normalised_apart(tiny_cohort, tmp_path):
    weights = {}
    for cases in (0, 1):
        settings = {**TINY_SETTINGS, "net.name": "vnet", "net.batch_norm_cases": cases, "train.steps": [2]}
        config = load_config(None, settings, data=str(tiny_cohort), method={"name": "mean_teacher"})
        assert scored(config, tmp_path / str(cases)) == {"test_000", "test_001"}
        assert load_config(tmp_path / str(cases) / "run.toml") == config
        weights[cases] = load_model(tmp_path / str(cases)).predictor.state_dict()
    assert weights[0].keys() == weights[1].keys()
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])


def test_a_training_on_two_modalities(tiny_cohort, tmp_path):
    manifest = read_manifest(tiny_cohort)
    both = [replace(case, images=case.images * 2) for case in manifest.cases]
    write_manifest(manifest.replace_cases(both), tmp_path / "data")
    config = tiny_config(tmp_path / "data", train__steps=[2])
    assert scored(config, tmp_path / "run") == {"test_000", "test_001"}
    assert load_model(tmp_path / "run").info.net["in_channels"] == 2


def test_predictions_carry_the_names_of_the_classes(tiny_run, tiny_cohort):
    space = read_manifest(tiny_cohort).label_space
    assert load_model(tiny_run).label_space == LabelSpace(space.names)
    header = nibabel.load(tiny_run / "predictions" / "test_000.nii.gz").header
    assert all(structure.encode() in header.extensions[0].get_content() for structure in space.structures)


def test_the_same_settings_give_the_same_weights_and_another_seed_others(tiny_cohort, tiny_run, tmp_path):
    run.train(load_config(tiny_run / "run.toml"), tmp_path / "again")
    run.train(load_config(tiny_run / "run.toml", seed=1), tmp_path / "other")
    first, again, other = (
        (folder / "model" / "weights.safetensors").read_bytes()
        for folder in (tiny_run, tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


def test_the_model_says_how_it_was_made_but_not_where(tiny_run, tiny_cohort):
    text = (tiny_run / "model" / "model.json").read_text()
    training = load_model(tiny_run).info.training
    assert training["annotated_cases"] == {"liver": 1, "spleen": 1, "kidneys": 1, "pancreas": 1}
    assert (training["cases"], training["steps"], training["selected"]) == (3, 4, "last")
    assert str(tiny_cohort) not in text
    assert str(tiny_run.parent) not in text


def test_a_training_that_computes_its_stages_twice_is_the_same(tiny_cohort, tmp_path):
    net = {"net.name": "residual_unet", "net.settings": {"width": 2, "blocks": [1, 1, 2]}, "train.steps": [2]}
    weights = []
    for recompute in (False, True):
        folder = tmp_path / str(recompute)
        run.train(tiny_config(tiny_cohort, "mean_teacher", **net, device__recompute=recompute), folder)
        weights.append((folder / "model" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]
