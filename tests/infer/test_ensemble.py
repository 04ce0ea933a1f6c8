"""Several models answer as one: the mean of their scores, in the memory of one, or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import SPACE
from labelwise.errors import ConfigError
from labelwise.infer import sliding_window
from labelwise.infer.ensemble import common_patch, common_plan, common_postprocess
from labelwise.infer.model import _ensemble, load_model, save_model
from labelwise.infer.postprocess import PostprocessConfig
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.methods import find_method
from labelwise.methods.base import NetFactory, Sigmoid
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import Volume

CT = IntensityRule("ct", clip=(-100.0, 200.0), mean=20.0, std=50.0)
OTHER_CT = IntensityRule("ct", clip=(-150.0, 150.0), mean=0.0, std=80.0)


def saved(folder, *, seed=0, rule=CT, spacing=(2.0, 2.0, 3.0), patch=(32, 16, 16), width=2, **info):
    """An untrained model of the four classes of the tests."""
    torch.manual_seed(seed)
    nets = NetFactory("unet", {"width": width}, dims=3, in_channels=1, num_classes=SPACE.num_classes)
    kind = find_method("supervised")
    described = {
        "name": folder.name, "classes": SPACE.names, "intensities": ("ct",),
        "plan": Plan(spacing_mm=spacing, intensity={"ct": rule}).to_json(), "method": "supervised",
        "method_settings": asdict(kind.Config()), "patch_size": patch, "inference": asdict(InferenceConfig()),
        "training": {"scans": {
            "spacing_mm": {"low": [1.0, 1, seed + 1], "high": [2.0, 2, seed + 2]},
            "extent_mm": {"low": [50.0, 40, 30], "high": [60.0, 50, 40]},
        }},
    }  # fmt: skip
    save_model(folder, described | info, kind(nets, kind.Config()), nets)
    return folder


@pytest.fixture
def scan():
    voxels = np.random.default_rng(0).normal(0, 150, (26, 22, 30)).astype(np.float32)
    return Volume(voxels, np.diag((2.0, 2.0, 2.0, 1.0)))


@pytest.mark.parametrize("rule", [CT, OTHER_CT], ids=["same intensities", "other intensities"])
def test_the_scores_are_the_mean_of_those_of_the_models(tmp_path, scan, rule):
    folders = [
        saved(tmp_path / "a"),
        saved(tmp_path / "b", seed=1, rule=rule, width=3),
        saved(tmp_path / "c", seed=2),
    ]
    alone = [load_model(folder, "cpu").predict_scores(scan).data for folder in folders]
    together = load_model(folders, "cpu")
    np.testing.assert_allclose(together.predict_scores(scan).data, np.mean(alone, axis=0), atol=1e-5)
    assert together.own_images == (rule is OTHER_CT)
    assert together.predict(scan).data.shape == scan.shape


def test_the_order_of_the_models_does_not_matter_and_the_id_is_of_all(tmp_path, scan):
    folders = [saved(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    one, other = load_model(folders, "cpu"), load_model(folders[::-1], "cpu")
    assert one.id == other.id != load_model(folders[:2], "cpu").id
    np.testing.assert_array_equal(one.predict_scores(scan).data, other.predict_scores(scan).data)
    assert load_model(folders[:1], "cpu").id == load_model(folders[0], "cpu").id


def test_a_sweep_holds_one_slab_of_scores_however_many_models_answer(tmp_path, scan, monkeypatch):
    slabs = []
    real = sliding_window._empty_slab

    def noted(scores, grid, thickness):
        slabs.append((tuple(scores.shape), thickness))
        return real(scores, grid, thickness)

    monkeypatch.setattr(sliding_window, "_empty_slab", noted)
    folders = [saved(tmp_path / name, seed=seed) for seed, name in enumerate("abcd")]
    load_model(folders[0], "cpu").predict(scan)
    load_model(folders, "cpu").predict(scan)
    assert len(slabs) == 2
    assert slabs[0] == slabs[1]


def test_what_any_of_the_models_has_seen_is_known(tmp_path):
    folders = [saved(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    scans = load_model(folders, "cpu").info.training["scans"]["spacing_mm"]
    assert scans == {"low": [1, 1, 1], "high": [2, 2, 3]}


def test_grids_that_were_planned_from_parts_of_one_cohort_are_joined():
    plans = {"a": Plan(spacing_mm=(1.0, 1.0, 2.0)), "b": Plan(spacing_mm=(1.08, 1.0, 2.0))}
    joined = common_plan(plans).spacing_mm
    assert joined == (pytest.approx(1.08**0.5, abs=1e-6), 1.0, 2.0)
    assert common_patch({"a": (64, 64, 32), "b": (64, 48, 48)}, [(16, 16, 8), (8, 8, 12)]) == (64, 64, 48)
    assert common_patch({"a": (64, 64, 1), "b": (96, 64, 1)}, [(16, 16), (16, 16)]) == (96, 64, 1)


def test_an_ensemble_cleans_up_only_what_every_model_cleans_up(tmp_path, caplog):
    def cleaning(name, seed, **settings):
        inference = {**asdict(InferenceConfig()), "postprocess": settings}
        return saved(tmp_path / name, seed=seed, inference=inference)

    first = cleaning("a", 0, largest_component=True, classes=(1, 2))
    second = cleaning("b", 1, largest_component=True, classes=(2, 3))
    seldom = cleaning("c", 2)
    everything = cleaning("d", 3, largest_component=True)
    with caplog.at_level("INFO"):
        assert load_model([first, second], "cpu").config.postprocess == PostprocessConfig(True, False, (2,))
    assert f"of {SPACE.names[1]}, {SPACE.names[3]}; together they keep all components" in caplog.text
    assert load_model([first, seldom], "cpu").config.postprocess == PostprocessConfig()
    assert load_model([first, everything], "cpu").config.postprocess == PostprocessConfig(True, False, (1, 2))
    holes = {"a": PostprocessConfig(fill_holes=True), "b": PostprocessConfig()}
    with pytest.raises(ConfigError, match="differ in the clean-up of their results"):
        common_postprocess(holes, SPACE.structures)


def test_scores_of_different_scales_have_no_mean(tmp_path):
    plain, independent = (
        load_model(saved(tmp_path / name, seed=seed), "cpu") for seed, name in enumerate("ab")
    )
    stretched = replace(independent, predictor=Sigmoid(independent.predictor.network))
    assert _ensemble([independent, plain]).members
    with pytest.raises(ConfigError, match="differ in how they score"):
        _ensemble([stretched, plain])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("background", "heart", *SPACE.names[2:])}, "differ in their classes"),
        ({"spacing": (3.0, 2.0, 3.0)}, r"differ in the voxel size \[mm\] of prepared scans"),
        ({"spacing": None}, r"differ in the voxel size"),
        ({"patch": (32, 16, 32)}, "differ in the size of the patches"),
        ({"inference": asdict(InferenceConfig(overlap=0.25))}, "differ in the settings of their prediction"),
        (
            {"plan": Plan(spacing_mm=(2.0, 2.0, 3.0), crop="body", intensity={"ct": CT}).to_json()},
            "how scans are cropped",
        ),
        (
            {
                "intensities": ("ct", "mr"),
                "plan": Plan(spacing_mm=(2.0, 2.0, 3.0), intensity={"ct": CT, "mr": IntensityRule("mr")}).to_json(),
            },
            "differ in the intensity rules",
        ),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused_with_the_difference(tmp_path, changes, message):
    folders = [saved(tmp_path / "a"), saved(tmp_path / "b", seed=1, **changes)]
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(folders, "cpu")
    assert "of 'a (" in str(caught.value)
    assert "of 'b (" in str(caught.value)


def test_one_model_twice_is_refused_for_it_would_count_double(tmp_path):
    folder = saved(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(ConfigError, match="named twice"):
        load_model([folder, tmp_path / "copy"], "cpu")
    with pytest.raises(ConfigError, match="no model named"):
        load_model([], "cpu")
    for nothing in (3, None, [3], [None], b"model"):
        with pytest.raises(ConfigError, match="named by its folder"):
            load_model(nothing, "cpu")


def test_the_command_writes_what_the_ensemble_in_memory_says_and_names_all_models(
    command, tiny_run, tiny_cohort, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    weights = other / "model" / "weights.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    answer = command(
        "predict", tiny_run, other, tiny_cohort, "-o", tmp_path / "out" / "predictions", "-d", "cpu"
    )
    assert answer.code == 0, answer.err
    record = json.loads((tmp_path / "out" / "predictions" / "test_000.json").read_text())
    together = load_model([tiny_run, other], "cpu")
    assert record["model"] == together.id
    assert record["models"] == {load_model(run, "cpu").id: "first" for run in (tiny_run, other)}
    assert not (tmp_path / "out" / "patients.json").exists()
    assert command("evaluate", tmp_path / "out", tiny_cohort).code == 0
    assert command("compare", tmp_path / "out", tiny_run).code == 0
    seen = command(
        "predict", tiny_run, other, tiny_cohort, "--split", "validation", "-o", tmp_path / "seen", "-d", "cpu"
    )
    assert seen.code == 0
    assert command("evaluate", tmp_path / "seen", tiny_cohort, "--split", "validation").code == 0
    assert "(has seen test patients)" in command("compare", tmp_path / "seen").out


def test_a_model_in_the_place_of_the_scans_is_not_taken_for_scans(command, tiny_run, tiny_cohort, tmp_path):
    answer = command("predict", tiny_run, tiny_run, "-o", tmp_path / "out")
    assert answer.code == 2
    assert "a model stands in the place of the scans" in answer.err
    assert "no scans named" in command("predict", tiny_run).err
    assert "name a folder: --output" in command("predict", tiny_run, tiny_run, tiny_cohort).err
