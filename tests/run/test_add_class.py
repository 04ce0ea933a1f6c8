"""A structure that is added to a trained model: from scans that annotate it alone, beside all that the model knew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_method, tiny_config
from labelwise import CheckpointError, ConfigError, load_model, read_manifest, run
from labelwise.cohort.manifest import Manifest, write_manifest
from labelwise.infer.model import model_info
from labelwise.nets.transfer import Transfer
from labelwise.plan.choose import Line, Plan
from labelwise.run.planning import with_clean_up_of
from labelwise.types import LabelSpace

pytestmark = pytest.mark.usefixtures("one_process")
SLOW = {"train__optimizer__rate": 1e-9, "augment__preset": "none"}


@pytest.fixture(scope="module")
def new_scans(tiny_cohort, tmp_path_factory) -> Path:
    """The scans of one site as somebody else would bring them: its first structure alone, by a name of their own."""
    cohort = read_manifest(tiny_cohort)
    north = cohort.data_sets["north"]
    # The files name their values otherwise.
    layout = replace(north.layout, file_names="ignored")
    data_set = replace(north, values={0: "background", 1: "aorta", 2: "background"}, layout=layout)
    cases = [
        replace(case, annotated=frozenset({"aorta"}))
        for case in cohort.split("train")
        if case.data_set == "north"
    ]
    folder = tmp_path_factory.mktemp("new_scans")
    write_manifest(Manifest(LabelSpace(("background", "aorta")), {"north": data_set}, tuple(cases)), folder)
    return folder


def config_of(data: Path, data_set: Path, **changes):
    return tiny_config(data, "add_class", warm_start=str(data_set), **changes)


def test_the_new_model_knows_the_old_classes_and_the_new_one_and_says_of_the_old_ones_what_it_said(
    new_scans, tiny_run, tmp_path
):
    run.train(config_of(new_scans, tiny_run, **SLOW), tmp_path / "second")
    old, new = load_model(tiny_run, "cpu"), load_model(tmp_path / "second", "cpu")
    assert new.info.classes == (*old.info.classes, "aorta")
    assert new.info.plan == old.info.plan
    before, after = (
        load_file(folder / "model" / "weights.safetensors") for folder in (tiny_run, tmp_path / "second")
    )
    for name, tensor in before.items():
        kept = after[name][: len(tensor)] if after[name].shape != tensor.shape else after[name]
        torch.testing.assert_close(kept, tensor, atol=1e-6, rtol=0)
    facts = json.loads((tmp_path / "second" / "model" / "model.json").read_text())["training"]
    assert facts["annotated_cases"] == {"aorta": 1}
    assert facts["kept_classes"] == list(old.info.classes[1:])
    card = (tmp_path / "second" / "model" / "card.md").read_text()
    assert "| kept from it | liver, spleen, kidneys, pancreas |" in card
    assert "| liver | – |" in card
    state = load_file(tmp_path / "second" / "last.safetensors")
    known = next(tensor for name, tensor in state.items() if name.endswith("known"))
    assert known.bool().tolist() == [True] * 5 + [False]
    assert run.train(config_of(new_scans, tiny_run, **SLOW), tmp_path / "second").steps == 4


@pytest.mark.parametrize(
    ("before", "classes", "pairs"),
    [
        ({"largest_component": True, "classes": (1, 3), "pairs": (3,)}, (1, 3, 5), (3,)),
        ({"largest_component": True}, (1, 2, 3, 4, 5), ()),
        ({}, (5,), ()),
    ],
)
def test_old_structures_are_cleaned_up_as_the_model_did_and_the_new_one_as_its_scans_say(
    tiny_run, before, classes, pairs
):
    info = replace(model_info(tiny_run), inference={"postprocess": before})
    planned = {
        "largest_component": True,
        "classes": (2, 5),
        "pairs": (),
    }  # of the spleen only the model knows
    (line,) = with_clean_up_of(info, Plan([Line("inference.postprocess", planned, "aorta")])).lines
    assert line.value == {
        "largest_component": True, "fill_holes": False, "classes": classes, "pairs": pairs
    }  # fmt: skip


def test_without_a_model_it_is_refused(new_scans, tmp_path):
    with pytest.raises(ConfigError, match=r"begins with a trained model(?s:.*)--from FOLDER"):
        run.train(tiny_config(new_scans, "add_class"), tmp_path / "second")
    (tmp_path / "encoder.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="begins with a trained model, and this is none"):
        run.train(config_of(new_scans, tmp_path / "encoder.pth"), tmp_path / "second")
    with pytest.raises(CheckpointError, match="no run and no model"):
        run.train(config_of(new_scans, new_scans), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_scans_that_the_model_would_not_know_again_are_refused(new_scans, tiny_run, tmp_path):
    config = config_of(new_scans, tiny_run, prepare__spacing_mm=[7.0, 7.0, 7.0])
    with pytest.raises(
        ConfigError, match=r"prepare.spacing_mm = \(7(?s:.*)\(14(?s:.*)leave prepare.spacing_mm out"
    ):
        run.train(config, tmp_path / "second")


def test_a_model_that_is_taken_over_in_part_is_refused():
    transfer = Transfer(taken=["old.encoder.a"], left={"old.head.weight": "shape (3, 2), in the file (2, 2)"})
    with pytest.raises(CheckpointError, match=r"as a whole(?s:.*)old\.head\.weight: shape"):
        make_method("add_class", dims=2).begin_with(transfer, torch.ones(4, dtype=torch.bool))


def test_a_training_that_would_forget_classes_says_so(new_scans, tiny_run, tmp_path, caplog):
    run.train(tiny_config(new_scans, "supervised", warm_start=str(tiny_run)), tmp_path / "second")
    assert "the model knows liver, spleen, kidneys, pancreas, and this training does not" in caplog.text
    assert "--method add_class" in caplog.text


@pytest.mark.parametrize("known", ["liver", "Liver", "SPLEEN"])
def test_a_model_that_knows_all_structures_already_has_nothing_to_add(new_scans, tiny_run, tmp_path, known):
    manifest = read_manifest(new_scans)
    data_set = manifest.data_sets["north"]
    values = {value: known if name == "aorta" else name for value, name in data_set.values.items()}
    cases = [replace(case, annotated=frozenset({known})) for case in manifest.cases]
    data = Manifest(
        LabelSpace(("background", known)), {"north": replace(data_set, values=values)}, tuple(cases)
    )
    write_manifest(data, tmp_path / "known")
    with pytest.raises(ConfigError, match="knows all of them already"):
        run.train(config_of(tmp_path / "known", tiny_run), tmp_path / "second")
    assert not (tmp_path / "second" / "model").exists()
