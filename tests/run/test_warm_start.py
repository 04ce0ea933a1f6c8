"""`train --from`: what a training begins with, what it says of it, and that it resumes without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, tiny_config
from labelwise import CheckpointError, ConfigError, load_config, run
from labelwise.nets.factory import NetFactory
from labelwise.run import forecast as forecasting
from labelwise.run.warm_start import find_source

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory) -> Path:
    """A checkpoint in the layout of nnssl."""
    with np.load(GOLDEN / "nnssl_encoder.npz", allow_pickle=False) as file:
        weights = {
            f"module.{name.removeprefix('weights/')}": torch.from_numpy(file[name])
            for name in file.files
            if name.startswith("weights/")
        }
    path = tmp_path_factory.mktemp("encoders") / "checkpoint_final.pth"
    plan = {
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "pretrain_num_input_channels": 1,
    }
    torch.save({"network_weights": weights, "nnssl_adaptation_plan": plan, "current_epoch": 1000}, path)
    return path


def first_loss(folder: Path) -> float:
    return json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"]


def test_a_training_goes_on_from_the_weights_of_an_earlier_run(tiny_cohort, tiny_run, tmp_path):
    slow = {"train__optimizer__rate": 1e-9, "augment__preset": "none", "seed": 0}
    run.train(tiny_config(tiny_cohort, warm_start=str(tiny_run), **slow), tmp_path / "warm")
    kept = json.loads((tmp_path / "warm" / "warm_start.json").read_text())
    assert (kept["left"], kept["unused"]) == ({}, [])
    trained = load_file(tiny_run / "model" / "weights.safetensors")
    found = load_file(tmp_path / "warm" / "model" / "weights.safetensors")
    for name, tensor in trained.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)
    assert load_config(tmp_path / "warm" / "run.toml").warm_start == str(tiny_run.absolute())


def test_an_interrupted_run_resumes_without_what_it_began_with(tiny_cohort, tiny_run, tmp_path):
    source = shutil.copytree(tiny_run, tmp_path / "source")
    config = tiny_config(tiny_cohort, warm_start=str(source))
    run.train(config, tmp_path / "warm")
    shutil.rmtree(source)
    assert run.train(config, tmp_path / "warm").steps == 4
    with pytest.raises(CheckpointError, match="other settings"):
        run.train(tiny_config(tiny_cohort), tmp_path / "warm")


def test_a_model_of_other_classes_gives_the_rows_that_both_know(tiny_cohort, tiny_run, tmp_path, caplog):
    other = shutil.copytree(tiny_run / "model", tmp_path / "model")
    text = (other / "model.json").read_text()
    (other / "model.json").write_text(text.replace('"liver"', '"heart"'))
    with caplog.at_level("INFO", logger="labelwise"):
        run.train(tiny_config(tiny_cohort, "mean_teacher", warm_start=str(other)), tmp_path / "warm")
    kept = json.loads((tmp_path / "warm" / "warm_start.json").read_text())
    assert (kept["new_classes"], kept["lost_classes"]) == (["liver"], ["heart"])
    assert "spleen" in kept["classes"]
    assert "new: liver" in caplog.text


def test_an_encoder_plans_the_network_that_fits_it(tiny_cohort, encoder_file, tmp_path, monkeypatch):
    monkeypatch.setattr(forecasting, "MOST_STEPS", 4)
    settings = {"device.device": "cpu", "train.steps": [2], "train.log_every": 1}
    config = load_config(
        None, settings, data=str(tiny_cohort), method={"name": "supervised"}, warm_start=str(encoder_file)
    )
    planned = run.plan(config)
    assert planned.config.net.name == "residual_unet"
    assert planned.config.net.settings["stem"] is True
    run.train(config, tmp_path / "warm")
    kept = json.loads((tmp_path / "warm" / "warm_start.json").read_text())
    taken = [name for name in kept["taken"] if ".encoder." in name]
    assert taken
    assert not [name for name in kept["left"] if "encoder." in name]
    assert any(name.endswith("conv1.conv.bias") for name in kept["unused"])


def test_an_encoder_may_be_a_safetensors_file(encoder_file, tmp_path):
    weights = find_source(encoder_file)
    content = torch.load(encoder_file, weights_only=True)["network_weights"]
    plain = {name.removeprefix("module."): tensor.clone() for name, tensor in content.items()}
    save_file(plain, tmp_path / "encoder.safetensors")
    again = find_source(tmp_path / "encoder.safetensors")
    assert again.weights.keys() == weights.weights.keys()
    assert again.settings == weights.settings


# what is refused


class Code:
    """Something that a file must not bring."""


def test_a_file_that_could_run_code_is_refused(tmp_path):
    torch.save({"network_weights": {}, "trainer": Code()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read(?s:.*)cannot run code"):
        find_source(tmp_path / "evil.pth")


def test_what_is_no_source_is_refused_with_what_is(tmp_path, tiny_run):
    with pytest.raises(CheckpointError, match="nothing to start from"):
        find_source(tmp_path / "nowhere.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no run and no model"):
        find_source(tmp_path / "empty")
    unfinished = shutil.copytree(tiny_run, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    with pytest.raises(CheckpointError, match="the run is not finished"):
        find_source(unfinished)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no residual encoder in the layout of nnssl"):
        find_source(tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="cannot be read"):
        find_source(tmp_path / "cut.pth")


def test_another_network_is_refused_before_the_training(tiny_cohort, tiny_run, tmp_path):
    config = tiny_config(
        tiny_cohort, net={"name": "dynunet", "settings": {"width": 2, "depth": 3}}, warm_start=str(tiny_run)
    )
    with pytest.raises(CheckpointError, match="no tensor fits into the encoders"):
        run.train(config, tmp_path / "warm")


def test_a_last_stage_does_not_begin_twice(tiny_cohort, tiny_run, tmp_path):
    config = tiny_config(tiny_cohort, "ltuda", start_from=str(tiny_run), warm_start=str(tiny_run))
    with pytest.raises(ConfigError, match="leave one of them out"):
        run.train(config, tmp_path / "warm")


def test_the_stem_is_a_part_of_the_first_level():
    with_stem, without = (
        NetFactory(
            "residual_unet",
            {"width": 2, "blocks": (1, 1), "stem": stem},
            dims=2,
            in_channels=3,
            num_classes=2,
        )
        for stem in (True, False)
    )
    image = torch.zeros(1, 3, 16, 16)
    assert [f.shape for f in with_stem.encoder()(image)] == [f.shape for f in without.encoder()(image)]
    assert sum(p.numel() for p in with_stem.encoder().parameters()) > sum(
        p.numel() for p in without.encoder().parameters()
    )
