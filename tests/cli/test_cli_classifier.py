"""A model with several classifiers: `predict --classifier` chooses one of them, without a new training."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from conftest import SMALL_NETS, tiny_config
from labelwise import run


@pytest.fixture(scope="module")
def ltuda_run(tiny_cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ltuda") / "run"
    changes = {"net.name": "ltuda_unet", "net.settings": SMALL_NETS["ltuda_unet"]}
    run.train(tiny_config(tiny_cohort, "ltuda", train__steps=[2, 2], **changes), folder)
    return folder


def model_id(folder):
    return json.loads((folder / "test_000.json").read_text())["model"]


def test_another_classifier_is_another_model_and_needs_no_training(command, ltuda_run, tiny_cohort, tmp_path):
    words = ("predict", ltuda_run, tiny_cohort, "--device", "cpu")
    kinds = ("", "linear", "labelled_prototype", "unlabelled_prototype")
    for kind in kinds:
        chosen = ("--classifier", kind) if kind else ()
        answer = command(*words, "-o", tmp_path / (kind or "trained"), *chosen)
        assert answer.code == 0, answer.err
    ids = {kind: model_id(tmp_path / (kind or "trained")) for kind in kinds}
    assert len({ids[kind] for kind in kinds[1:]}) == 3
    labels = {
        kind: np.asarray(nibabel.load(tmp_path / (kind or "trained") / "test_000.nii.gz").dataobj)
        for kind in kinds
    }
    assert np.array_equal(labels[""], labels["unlabelled_prototype"])  # the setting it was trained with


def test_results_of_another_classifier_are_not_overwritten_unasked(command, ltuda_run, tiny_cohort, tmp_path):
    words = ("predict", ltuda_run, tiny_cohort, "--device", "cpu", "-o", tmp_path)
    assert command(*words).code == 0
    kept = model_id(tmp_path)
    assert command(*words, "--classifier", "labelled_prototype").code != 0
    assert model_id(tmp_path) == kept


def test_an_unknown_classifier_is_refused_with_the_list(command, ltuda_run, tiny_cohort, tmp_path):
    words = ("predict", ltuda_run, tiny_cohort, "-o", tmp_path / "out", "--device", "cpu")
    answer = command(*words, "--classifier", "labeled_prototype")
    assert answer.code == 2
    assert "did you mean 'labelled_prototype'?" in answer.err
    assert "linear, labelled_prototype, unlabelled_prototype" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_model_with_one_way_to_decide_says_so(command, tiny_run, tiny_cohort, tmp_path):
    words = ("predict", tiny_run, tiny_cohort, "-o", tmp_path / "out", "--device", "cpu")
    answer = command(*words, "--classifier", "linear")
    assert answer.code == 2
    assert "the model has no classifier 'linear'" in answer.err
    assert "one way to decide only" in answer.err
