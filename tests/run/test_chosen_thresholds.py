"""Thresholds of independent maps: chosen at the end of a training, kept in the model, used and told by `predict`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import make_method, tiny_config
from labelwise import load_model, run
from labelwise.documents import read_json
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.methods import METHODS
from labelwise.methods.base import IndependentMaps, Sigmoid
from labelwise.run.prepare import prepare_manifest, read_data
from labelwise.run.thresholds import Thresholds


class Faint(nn.Module):
    """Knows the liver, but says 0.155 of it and 0.045 of everything else."""

    def __init__(self, store, case):
        super().__init__()
        stored = store.case(case.id)
        table = torch.arange(256, dtype=torch.uint8).numpy()
        self.truth = torch.from_numpy(stored.labels(table)) == 1

    def forward(self, images):
        said = torch.full((len(images), 4, *images.shape[2:]), 0.045)
        low = [(full - own) // 2 for full, own in zip(images.shape[2:], self.truth.shape, strict=True)]
        inside = tuple(slice(at, at + own) for at, own in zip(low, self.truth.shape, strict=True))
        said[:, 0][:, *inside][:, self.truth] = 0.155
        return torch.logit(said)


def prepared(folder):
    """The search of a cohort in one window for each scan, its store, and the validation case with the liver alone."""
    config = tiny_config(folder)
    manifest = read_data(config)
    (case,) = manifest.split("validation")
    store = prepare_manifest(manifest, config).store
    size = tuple(-(-length // 16) * 16 for length in store.case(case.id).shape)
    search = Thresholds(store, manifest.label_space, size, InferenceConfig(overlap=0.0), torch.device("cpu"))
    return search, store, replace(case, annotated=frozenset({"liver"}))


def test_the_structure_that_a_network_whispers_is_heard_at_a_tenth(tiny_cohort):
    search, store, known = prepared(tiny_cohort)
    found, facts = search.choose(Sigmoid(Faint(store, known)), [known], [])
    assert found == {"liver": pytest.approx(0.1)}
    assert facts["liver"]["split"] == "validation"
    assert facts["liver"]["dice"] == 1
    assert facts["liver"]["dice_at_half"] == 0


def test_structures_that_no_validation_case_has_are_chosen_on_training_cases(tiny_cohort):
    search, store, known = prepared(tiny_cohort)
    _, facts = search.choose(Sigmoid(Faint(store, known)), [], [known])
    assert facts["liver"]["split"] == "train"


def test_a_trained_model_keeps_its_thresholds_and_predict_says_them(tiny_cohort, tmp_path):
    run.train(tiny_config(tiny_cohort, "multi_talent", train__steps=[2]), tmp_path / "run")
    model = load_model(tmp_path / "run", "cpu")
    assert set(model.info.thresholds) == set(model.label_space.structures)
    assert model.predictor.thresholds == tuple(model.info.thresholds.values())
    assert set(model.info.training["thresholds"]) == set(model.label_space.structures)
    run.predict(tmp_path / "run", tiny_cohort, tmp_path / "labels", device="cpu")
    record = read_json(min((tmp_path / "labels").glob("*.json")))
    assert record["thresholds"] == model.info.thresholds
    run.train(
        tiny_config(tiny_cohort, "multi_talent", train__steps=[2], thresholds="half"), tmp_path / "half"
    )
    half = load_model(tmp_path / "half", "cpu")
    assert half.info.thresholds == {}
    assert half.predictor.thresholds == ()
    assert half.id != model.id


@pytest.mark.parametrize("name", list(METHODS))
def test_the_card_says_which_methods_have_a_map_for_each_structure(name):
    method = make_method(name, dims=3 if name == "dkuxnet" else 2)
    assert isinstance(method.predictor(), IndependentMaps) == type(method).card.independent_maps


def test_thresholds_that_the_user_gave_are_left_alone():
    given = make_method("ltuda_cda", settings={"prediction_thresholds": [0.5, 0.5, 0.3]}).predictor()
    assert given.fixed
    assert given.thresholds[2] == 0.3
    assert not make_method("ltuda_cda").predictor().fixed
    assert make_method("ltuda").predictor().fixed, "prototypes have no thresholds"
    assert not make_method("ltuda", settings={"classifier": "linear"}).predictor().fixed
