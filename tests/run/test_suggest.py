"""`suggest` from the manifest and the proposals in it to a table."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from labelwise import run
from labelwise.cohort.manifest import read_manifest, write_manifest
from labelwise.errors import DataError


@pytest.fixture
def data(tiny_cohort: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cohort, tmp_path / "data"))


def test_without_a_model_masks_are_counted_and_it_says_so(data, tmp_path, command):
    answer = command("suggest", data, "-n", 4, "-o", tmp_path / "next.csv")
    assert answer.code == 0, answer.err
    assert "no model was asked" in answer.out
    with (tmp_path / "next.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    manifest = read_manifest(data)
    annotated = {case.id: case.annotated for case in manifest.split("train")}
    assert len(rows) == 4
    assert all(row["class"] not in annotated[row["case"]] for row in rows)
    # Each structure is annotated in one case; each gets one more.
    assert {row["class"] for row in rows} == set(manifest.label_space.structures)


def test_what_a_model_sees_decides(data, tiny_run, command):
    run.propose(tiny_run, data, device="cpu")
    found = run.suggest(data, number=100)
    by_case = {}
    for case in read_manifest(data).split("train"):
        for proposal in case.proposals:
            record = json.loads(proposal.file.with_name(f"{case.id}.json").read_text(encoding="utf-8"))
            by_case[case.id] = {name: fact["voxels"] for name, fact in record["certainty"].items()}
    assert found.asked
    assert len(found.masks) > 0
    for one in found.masks:
        assert one.voxels == by_case[one.case][one.class_name]
        seen_somewhere = any(facts.get(one.class_name) for facts in by_case.values())
        assert one.voxels > 0 or not seen_somewhere
    facts = json.loads(command("suggest", data, "-n", 100, "--json").out)
    assert [row["case"] for row in facts["masks"]] == [one.case for one in found.masks]
    assert command("suggest", data, "--by", "doubt").code == 0


def test_a_complete_cohort_has_nothing_left(data):
    manifest = read_manifest(data)
    complete = [case for case in manifest.cases if case.split in ("validation", "test")]
    write_manifest(manifest.replace_cases(complete), data)
    with pytest.raises(DataError, match="nothing is left"):
        run.suggest(data, split="test")
    with pytest.raises(DataError, match="no case is in the split"):
        run.suggest(data)


def test_bad_options_are_refused(data, command):
    answer = command("suggest", data, "--by", "entropy")
    assert (answer.code, "random, doubt" in answer.err) == (2, True)
    answer = command("suggest", data, "--by", "doubt")
    assert (answer.code, "--into DATA" in answer.err) == (2, True)
