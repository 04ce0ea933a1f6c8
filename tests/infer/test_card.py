"""The card of a model says what it is for, what it has learnt from, and how well it does; what people add stays."""

from __future__ import annotations

import shutil

import pytest

from conftest import tiny_config
from labelwise import run
from labelwise.evaluate.scores import Score
from labelwise.infer.card import CARD, add_scores, card_text

INFO = {
    "name": "first",
    "classes": ("background", "liver", "tumour"),
    "intensities": ("ct",),
    "patch_size": (64, 64, 32),
    "method": "self_training",
    "net": {"name": "residual_unet"},
    "training": {
        "cases": 30,
        "data_sets": {"north": 20, "south": 10},
        "annotated_cases": {"liver": 30, "tumour": 4},
        "steps": 2000,
        "seed": 1,
        "selected": "best",
        "best_validation_dice": 0.812,
        "scans": {
            "spacing_mm": {"low": [0.7, 0.7, 1.0], "high": [0.9, 0.9, 5.0]},
            "extent_mm": {"low": [300.0, 300.0, 200.0], "high": [300.0, 450.0, 900.0]},
        },
        "environment": {"versions": {"labelwise": "0.1.0"}},
    },
}


def test_a_card_tells_use_data_training_and_limits():
    text = card_text(INFO)
    for heading in ("Intended use", "Data", "Training", "Scores", "Limits"):
        assert f"## {heading}" in text
    assert "Segments liver and tumour in scans of the kind CT, in 3D." in text
    assert "30 training cases of the data sets north (20) and south (10)." in text
    assert "| tumour | 4 |" in text
    assert "Little is known of tumour (4)" in text
    assert (
        "voxels of 0.7 to 0.9 x 0.7 to 0.9 x 1 to 5 mm and scans of 300 x 300 to 450 x 200 to 900 mm" in text
    )
    assert "Best mean Dice of the validation while training: 81.2 %" in text
    assert "Not evaluated on test cases yet." in text
    assert "not a medical device" in text


def test_a_card_of_little_knowledge_claims_nothing():
    text = card_text({**INFO, "patch_size": (64, 64, 1), "training": {}})
    assert "slice by slice (2D)" in text
    assert "| liver | – |" in text
    assert "It has seen" not in text


def card_with(licences):
    return card_text({**INFO, "training": {**INFO["training"], "licences": licences}})


def test_a_card_states_the_licence_of_each_data_set_and_what_follows():
    text = card_with({"north": "CC BY-NC-SA 4.0", "south": "CC BY 4.0"})
    assert "| north | CC BY-NC-SA 4.0 |" in text
    assert "**The terms of north forbid commercial use" in text
    assert "not stated" not in text
    unknown = card_with({"north": "CC0", "south": ""})
    assert "| south | not stated |" in unknown
    assert "forbid commercial use" not in unknown
    assert "Where no licence is stated, find it out" in unknown
    assert "Where no licence is stated, find it out" in card_text(INFO), "a model of before says nothing"


def test_a_card_states_the_licence_of_the_weights_or_asks_for_it():
    assert "Licence of the weights: decided by whoever trained them" in card_text(INFO)
    stated = card_text({**INFO, "training": {**INFO["training"], "licence": "CC BY 4.0"}})
    assert "Licence of the weights: CC BY 4.0\n" in stated
    assert "State it here" not in stated


@pytest.fixture
def model(tmp_path):
    (tmp_path / CARD).write_text(
        card_text(INFO).replace("State it here, or", "Ours: CC BY 4.0. Not"), encoding="utf-8"
    )
    return tmp_path


def scores(seen=""):
    return [
        Score(f"c{n}", "liver", metric, value, "ok", unit, group=f"p{n // 2}", seen=seen if n == 0 else "")
        for n in range(4)
        for metric, value, unit in (
            ("dice", 0.8 + 0.02 * n, ""),
            ("hd95", 4.0, "mm"),
            ("nsd", 0.5, "at 1 mm"),
        )
    ] + [Score("c0", "tumour", "dice", 0.0, "prediction_empty", group="p0")]


def test_scores_take_their_place_and_what_people_wrote_stays(model):
    assert add_scores(model, scores(), "test")
    text = (model / CARD).read_text(encoding="utf-8")
    assert "4 cases of 2 patients, split 'test'." in text
    assert "| liver | 83.0 ± 2.6 (n 4) | 4.00 ± 0.00 (n 4) |" in text
    assert "| tumour | 0.0 (n 1, 1 missed or invented) | – |" in text
    assert "Ours: CC BY 4.0." in text
    assert "Not evaluated" not in text
    assert add_scores(model, scores("train"), "validation")
    again = (model / CARD).read_text(encoding="utf-8")
    assert "split 'test'" not in again
    assert "1 of these cases, or their patients, were part of the training" in again
    assert again.count("## Scores") == 1


def test_a_card_without_its_marks_or_none_at_all_is_left_alone(model, tmp_path):
    (model / CARD).write_text("# Ours\n", encoding="utf-8")
    assert not add_scores(model, scores(), "test")
    assert (model / CARD).read_text(encoding="utf-8") == "# Ours\n"
    assert not add_scores(tmp_path / "nothing", scores(), "test")


def test_a_training_that_is_repeated_keeps_the_card_and_a_new_one_writes_its_own(
    tiny_run, tmp_path, tiny_cohort
):
    run_folder = tmp_path / "first"
    shutil.copytree(tiny_run, run_folder)
    card = run_folder / "model" / CARD
    card.write_text(card.read_text(encoding="utf-8") + "Ours.\n", encoding="utf-8")
    run.train(tiny_config(tiny_cohort), run_folder)
    assert card.read_text(encoding="utf-8").endswith("Ours.\n")
    run.train(tiny_config(tiny_cohort, licence="CC0"), run_folder)
    stated = card.read_text(encoding="utf-8")
    assert "Licence of the weights: CC0\n" in stated, "stated after the training"
    assert stated.endswith("Ours.\n")
    run.train(tiny_config(tiny_cohort, train__steps=[2]), run_folder, overwrite=True)
    assert "Ours." not in card.read_text(encoding="utf-8")
    assert "Not evaluated" in card.read_text(encoding="utf-8")


def test_a_run_has_a_card_with_its_scores(tiny_run):
    text = (tiny_run / "model" / CARD).read_text(encoding="utf-8")
    assert text.startswith("# Model card: first")
    assert "2 cases of 2 patients, split 'test'." in text
    assert "| pancreas |" in text
