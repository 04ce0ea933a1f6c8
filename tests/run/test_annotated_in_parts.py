"""Slices as annotation, from the manifest to the scores: nothing is learnt or scored where nobody looked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_config
from labelwise import run
from labelwise.cohort.manifest import read_case_labels, read_manifest, write_manifest
from labelwise.evaluate.scores import read_scores
from labelwise.formats import write_labels
from labelwise.types import Part, Volume

pytestmark = pytest.mark.usefixtures("one_process")
SLICES = Part(frozenset({"liver"}), ((None, None, (4, 7)),))


@pytest.fixture
def data(tiny_cohort: Path, tmp_path: Path) -> Path:
    """The cohort; the liver is annotated in four slices of each scan that annotates it."""
    folder = Path(shutil.copytree(tiny_cohort, tmp_path / "data"))
    manifest = read_manifest(folder)
    write_manifest(manifest.replace_cases(replace(case, parts=(SLICES,)) for case in manifest.cases), folder)
    return folder


@pytest.mark.parametrize("method", ["supervised", "self_training"])
def test_a_model_learns_from_slices_and_is_scored_in_them(command, data, tmp_path, method):
    out = tmp_path / "run"
    run.train(tiny_config(data, method), out)
    assert not run.predict(out, data, out / "predictions", device="cpu").failed
    answer = command("evaluate", out, data)
    assert answer.code == 0, answer.err
    assert "test_000: scored only where it is annotated: liver=slices 4-7" in answer.out
    scores = {(s.class_name, s.metric): s for s in read_scores(out / "scores.csv") if s.case == "test_000"}
    assert scores["liver", "hd95"].status == "reference_incomplete"
    assert scores["spleen", "hd95"].status != "reference_incomplete"
    manifest = read_manifest(data)
    case = next(case for case in manifest.cases if case.id == "test_000")
    whole = read_case_labels(replace(case, parts=()), manifest)
    ml = np.prod(whole.spacing_mm) / 1000
    for structure, slices in (("liver", slice(4, 8)), ("spleen", slice(None))):
        drawn = (whole.data[:, :, slices] == manifest.label_space.index(structure)).sum() * ml
        assert scores[structure, "reference_volume"].value == pytest.approx(drawn)


@pytest.mark.parametrize("beyond", [True, False])
def test_a_correction_is_known_all_over_the_scan_if_it_is_drawn_beyond_the_part(data, tmp_path, beyond):
    manifest = read_manifest(data)
    case = next(case for case in manifest.cases if case.id == "north_000")
    labels = read_case_labels(replace(case, parts=()), manifest)
    drawn = (labels.data == manifest.label_space.index("liver")).astype(np.uint8)
    drawn[:, :, 5] = 0  # what the correction is about
    if not beyond:
        drawn[:, :, :4], drawn[:, :, 8:] = 0, 0
    file = tmp_path / "north_000.nii.gz"
    write_labels(file, Volume(drawn, labels.affine), like=case.images[0], names=("background", "liver"))
    run.correct(data, [file])
    after = next(case for case in read_manifest(data).cases if case.id == "north_000")
    assert after.parts == (() if beyond else (SLICES,))
    assert after.states["liver"] == "corrected"
    # The others are what they were: what lies beyond the slices of the liver is not overwritten by "unknown".
    for structure in sorted(case.annotated - {"liver"}):
        index = manifest.label_space.index(structure)
        assert np.array_equal(
            read_case_labels(after, read_manifest(data)).data == index, labels.data == index
        )
