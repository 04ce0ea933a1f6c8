"""Scans without any labels: a data set that names no structure. It is checked, predicted and joined, not trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from labelwise import LabelSpace, merge, run
from labelwise.cohort.manifest import Manifest, read_case_labels, read_manifest
from labelwise.errors import CheckpointError, ConfigError, DataError
from labelwise.infer.model import load_model
from labelwise.types import BACKGROUND, IGNORE

sys.path.append(str(Path(__file__).parents[1] / "formats"))
sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, SHAPE, label_map, write_scan
from dicom_files import write_series

from conftest import tiny_config
from labelwise.formats import write_labels
from labelwise.types import Volume

pytestmark = pytest.mark.usefixtures("one_process")
ALONE = LabelSpace((BACKGROUND,))


def plain(folder: Path) -> None:
    for number in range(3):
        write_scan(folder / f"c{number}.nii.gz", number)


def by_patient(folder: Path) -> None:
    for number in range(3):
        write_scan(folder / f"p{number}" / "ct.nii.gz", number)


def listed(folder: Path) -> None:
    plain(folder)
    (folder / "list.csv").write_text("image,label\n" + "".join(f"c{number}.nii.gz,\n" for number in range(3)))


def archive(folder: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 900, SHAPE).astype(np.int16)
    for number in range(3):
        write_series(
            folder / f"p{number}", voxels + number, np.diag((-2.0, -2.0, 3.0, 1)), PatientID=str(number)
        )


KINDS = {"plain": plain, "by_patient": by_patient, "listed": listed, "archive": archive}


def without_labels(kind: str, folder: Path, output: Path) -> Manifest:
    KINDS[kind](folder)
    return run.import_data([folder], output, **({} if kind == "archive" else {"modality": "ct"}))


@pytest.mark.parametrize("kind", KINDS)
def test_scans_alone_are_imported_without_an_invented_class(tmp_path, kind):
    manifest = without_labels(kind, tmp_path / "data", tmp_path / "m")
    assert manifest.label_space == ALONE
    assert len(manifest.cases) == 3
    assert read_manifest(tmp_path / "m") == manifest
    for case in manifest.cases:
        assert case.labels is None
        assert not manifest.annotated(case).any(), "not even the background is annotated"
        assert (read_case_labels(case, manifest).data == IGNORE).all()


def test_nothing_is_refused_that_needs_no_structure(tmp_path, tiny_run, command):
    manifest = without_labels("plain", tmp_path / "data", tmp_path / "m")
    assert [problem.code for problem in run.check(tmp_path / "m").problems] == ["nothing-labelled"]
    result = run.predict(tiny_run, tmp_path / "m", tmp_path / "out", split="train")
    assert set(result.written) == {case.id for case in manifest.cases}
    answer = command("import", tmp_path / "data", "-o", tmp_path / "again", "--modality", "ct")
    assert "3 train; classes none" in answer.out


def test_training_on_it_alone_is_refused_by_one_sentence_and_leaves_nothing(tmp_path):
    without_labels("plain", tmp_path / "data", tmp_path / "m")
    for verb in (lambda config: run.train(config, tmp_path / "run"), run.prepare, run.plan):
        with pytest.raises(DataError, match="nothing can be learnt from this data set alone") as caught:
            verb(tiny_config(tmp_path / "m"))
        assert "labelwise import LABELLED UNLABELLED" in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "m" / "store").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
def test_joined_with_labelled_scans_it_is_the_unlabelled_part(tmp_path, kind, first):
    KINDS[kind](tmp_path / "more")
    write_scan(tmp_path / "seen" / "images" / "a.nii.gz")
    labels = tmp_path / "seen" / "labels" / "a.nii.gz"
    labels.parent.mkdir()
    write_labels(labels, Volume(label_map({"liver": 1, "spleen": 2}), AFFINE))
    sources = {name: tmp_path / name for name in (("more", "seen") if first else ("seen", "more"))}
    options = {"modality": "ct", "seen.classes": {"liver": 1, "spleen": 2}}
    manifest = run.import_data(sources, tmp_path / "m", **options)
    assert manifest.label_space.structures == ("liver", "spleen")
    assert [case.id for case in manifest.cases if case.annotated] == ["a"]
    assert len(manifest.cases) == 4
    known = {"seen": {"classes": {"liver": 1, "spleen": 2}}}
    apart = [
        run.import_data([tmp_path / name], tmp_path / f"m_{name}", modality="ct", **known.get(name, {}))
        for name in ("more", "seen")
    ]
    assert merge(apart).label_space == manifest.label_space
    run.import_data(sources, tmp_path / "sides", sides="join", **options)


def test_what_is_labelled_still_needs_its_classes(tmp_path):
    write_scan(tmp_path / "data" / "images" / "a.nii.gz")
    (tmp_path / "data" / "labels").mkdir()
    write_labels(tmp_path / "data" / "labels" / "a.nii.gz", Volume(label_map({"liver": 1}), AFFINE))
    with pytest.raises(ConfigError, match="--classes"):
        run.import_data([tmp_path / "data"], tmp_path / "m", modality="ct")


def test_a_model_always_knows_a_structure(tiny_run, tmp_path):
    model = tiny_run / "model"
    facts = json.loads((model / "model.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps({**facts, "classes": ["background"]}))
    with pytest.raises(CheckpointError, match="knows no structure"):
        load_model(tmp_path)


def test_check_names_every_data_set_in_which_nothing_is_labelled(tmp_path):
    for name in ("a", "b"):
        write_scan(tmp_path / name / "scan.nii.gz")
    run.import_data([tmp_path / "a", tmp_path / "b"], tmp_path / "m", modality="ct")
    (problem,) = [
        each for each in run.check(tmp_path / "m", workers=1).problems if each.code == "nothing-labelled"
    ]
    assert "nothing is labelled in a, b" in problem.what
