"""What labels are worth: the curve through several budgets, and how many more masks a wanted Dice needs."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from labelwise import run
from labelwise.atomic import write_json
from labelwise.cohort.manifest import write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.scores import Score, read_scores, write_scores
from labelwise.report.comparison import MEAN
from labelwise.report.cost import UNITS, Budget, annotation_cost, fit_curves
from tiny_cohort import SPACE, manifest_of, paper_case


def dice_of(masks, a=0.9, b=0.6, c=0.5):
    return a - b * masks**-c


def budgets(numbers, *, cases=40, spread=0.05, seeds=1, law=dice_of):
    """The Dice of two structures, of which the second needs four times the masks of the first."""
    chance = np.random.default_rng(0)
    of_case = chance.normal(0, spread, (1, cases, 1))
    return [
        Budget(
            f"n{n}",
            {"liver": n, "spleen": n},
            n,
            np.stack([law(n), law(n / 4)])[None, None] + of_case + chance.normal(0, 0.002, (seeds, cases, 2)),
        )
        for n in numbers
    ]


def worth(rows, *, targets=(0.8,), cases=40):
    return annotation_cost(rows, ("liver", "spleen"), np.arange(cases), targets)


def test_a_curve_is_found_again_from_its_points():
    masks = np.array([4.0, 8, 16, 32, 64])
    found = fit_curves(masks, dice_of(masks)[None])
    assert found.values(masks)[0] == pytest.approx(dice_of(masks), abs=1e-3)
    assert found.masks_for(0.85)[0] == pytest.approx((0.6 / 0.05) ** 2, rel=0.1)
    assert math.isinf(found.masks_for(0.97)[0])


def test_dice_that_does_not_grow_needs_nothing_or_is_never_reached():
    masks = np.array([4.0, 8, 16])
    flat = fit_curves(masks, np.array([[0.7, 0.7, 0.7], [0.8, 0.75, 0.7]]))
    assert (flat.b == 0).all()
    assert flat.masks_for(0.6).tolist() == [0, 0]
    assert np.isinf(flat.masks_for(0.8)).all()


def test_a_curve_never_promises_more_than_a_dice_of_one():
    masks = np.array([2.0, 4, 8])
    steep = fit_curves(masks, np.array([[0.2, 0.5, 0.8]]))
    assert steep.a[0] <= 1
    assert steep.b[0] > 0


def test_needs_are_told_for_each_structure_and_for_their_mean_with_intervals():
    found = worth({"method": budgets((8, 16, 32, 64), seeds=3)}, targets=(0.8, 0.85))
    courses = {course.structure: course for course in found.courses}
    assert courses["liver"].needs[0].masks == pytest.approx(36, rel=0.25)
    assert courses["spleen"].needs[0].masks == pytest.approx(4 * 36, rel=0.4)
    assert courses["mean over structures"].masks == (16, 32, 64, 128)
    for course in courses.values():
        assert course.needs[0].low < course.needs[0].masks < course.needs[0].high
    text = found.to_text()
    assert "masks for 80 %" in text
    assert "more)" in text
    assert found.to_png().startswith(b"\x89PNG")


def test_few_patients_get_no_interval_and_few_budgets_no_curve():
    few = worth({"m": budgets((8, 16, 32), cases=10)}, cases=10)
    assert math.isnan(few.courses[0].needs[0].low)
    assert "too few patients (10) for intervals" in few.to_text()
    two = worth({"m": budgets((8, 16))})
    assert two.courses[0].curve is None
    assert "no curve with fewer than 3 budgets" in two.to_text()
    assert json.dumps(two.facts())
    with pytest.raises(DataError, match="one budget of labels only"):
        worth({"m": budgets((8,))})


def test_far_beyond_the_largest_budget_nothing_is_told():
    found = worth({"m": budgets((2, 4, 8), spread=0)}, targets=(0.89, 0.95))
    told = [found.courses[0].told(need)[0] for need in found.courses[0].needs]
    assert told == ["> 80", "never"]


@pytest.fixture
def finished(tmp_path):
    """A sweep of three budgets, as it lies on the disk."""
    for number in (2, 4, 8):
        cases = [
            paper_case(n, annotated=frozenset(SPACE.structures if n < number else ()), split="train")
            for n in range(8)
        ]
        write_manifest(manifest_of(*cases), tmp_path / "out" / f"n{number}" / "data")
        for seed in range(2):
            folder = tmp_path / "out" / f"n{number}" / f"cps_seed{seed}"
            folder.mkdir()
            (folder / "run.toml").write_text(f'data = "{folder.parent / "data"}"\n')
            value = dice_of(number) + 0.001 * seed
            scores = [
                Score(f"t{n}", structure, "dice", value, "ok")
                for n in range(4)
                for structure in SPACE.structures
            ]
            write_scores(folder / "scores.csv", scores)
    return tmp_path / "out"


def test_the_command_reads_a_sweep_and_writes_table_and_picture(command, finished, tmp_path):
    answer = command("cost", finished, "-o", tmp_path / "cost", "--dice", "0.7,0.8")
    assert answer.code == 0, answer.err
    assert "What labels are worth: cps" in answer.out
    rows = list(csv.DictReader((tmp_path / "cost" / "cost.csv").read_text().splitlines()))
    measured = [row for row in rows if row["kind"] == "measured" and row["structure"] == "liver"]
    assert [float(row["masks"]) for row in measured] == [2, 4, 8]
    assert [float(row["dice"]) for row in measured] == pytest.approx([dice_of(n) + 0.0005 for n in (2, 4, 8)])
    assert (tmp_path / "cost" / "cost.png").stat().st_size > 5000
    assert command("cost", finished, "--dice", "80").code == 2
    assert command("cost", tmp_path / "cost").code != 0


def test_a_report_shows_the_curves_of_a_sweep_beside_the_runs(command, finished, tmp_path):
    runs = sorted((finished / "n8").glob("cps_*"))
    page = tmp_path / "page.html"
    answer = command("report", *runs, "-o", page, "--metrics", "dice", "--budgets", finished)
    assert answer.code == 0, answer.err
    text = page.read_text(encoding="utf-8")
    assert "<h2>What labels are worth</h2>" in text
    for name in (*SPACE.structures, "mean over structures"):
        assert f'aria-label="Dice of {name} by masks: cps ' in text
    assert "bands" not in text, "four patients got an interval"
    assert "What labels are worth" not in run.report(runs, page, metrics=["dice"]).read_text(encoding="utf-8")


def test_the_picture_of_a_page_has_bands_only_with_patients_enough():
    many, few = (worth({"m": budgets((8, 16, 32), cases=n)}, cases=n).pictures()[0].data for n in (40, 10))
    assert b"opacity: 0.15" in many
    assert b"opacity: 0.15" not in few


def test_scans_are_counted_beside_masks_and_both_have_intervals():
    """Two structures in each scan: the mean needs half as many scans as masks."""
    rows = {"m": budgets((8, 16, 32, 64), seeds=3)}
    by = {
        unit: annotation_cost(rows, ("liver", "spleen"), np.arange(40), (0.8,), unit=unit) for unit in UNITS
    }
    (masks,), (scans,) = ([c for c in found.courses if c.structure == MEAN] for found in by.values())
    assert (masks.masks, scans.masks) == ((16, 32, 64, 128), (8, 16, 32, 64))
    assert scans.needs[0].masks == pytest.approx(masks.needs[0].masks / 2)
    assert scans.needs[0].low == pytest.approx(masks.needs[0].low / 2)
    assert "scans for 80 %" in by["scans"].to_text()
    assert "masks" not in by["scans"].to_csv()


def test_the_command_counts_scans_and_refuses_what_it_cannot_count(command, finished, tmp_path):
    answer = command("cost", finished, "-o", tmp_path / "cost", "--by", "scans")
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "cost" / "cost.csv").read_text().splitlines()))
    mean = [row for row in rows if (row["structure"], row["kind"]) == (MEAN, "measured")]
    assert [float(row["scans"]) for row in mean] == [2, 4, 8]
    assert command("cost", finished, "--by", "voxels").code == 2


def test_a_method_that_has_seen_a_test_patient_is_marked_in_every_table_of_cost(finished, tmp_path):
    write_json(finished / "n2" / "cps_seed1" / "patients.json", {"train": ["t0"], "validation": []})
    found = run.cost([finished], tmp_path / "cost")
    assert "What labels are worth: cps (has seen test patients)" in found.to_text()
    assert "cps has seen 1 of the 4 patients" in found.to_text()
    rows = list(csv.DictReader((tmp_path / "cost" / "cost.csv").read_text().splitlines()))
    assert {row["saw_test_patients"] for row in rows} == {"1"}
    assert found.facts()["saw_test_patients"] == {"cps": 1}
    page = run.report(sorted((finished / "n8").glob("cps_*")), tmp_path / "page.html", metrics=["dice"],
                      budgets=[finished]).read_text(encoding="utf-8")  # fmt: skip
    assert re.search(r'<p class="caution">cps has seen 1 of the 4 patients', page)


def test_a_structure_of_no_reference_is_in_no_mean_and_other_classes_are_refused(finished):
    structures = SPACE.structures
    before = {c.structure: c.dice for c in run.cost([finished]).cost.courses}
    for file in finished.rglob("scores.csv"):
        found = read_scores(file)
        write_scores(file, [replace(s, value=0.0, status="reference_empty") if s.class_name == structures[0] else s
                            for s in found])  # fmt: skip
    told = run.cost([finished])
    assert {c.structure: c.dice for c in told.cost.courses} == {
        name: dice for name, dice in before.items() if name != structures[0]
    }, "a structure that is nowhere lowered the mean"
    assert f"In no reference, so without a curve: {structures[0]}." in told.to_text()
    file = finished / "n8" / "cps_seed0" / "scores.csv"
    write_scores(
        file, [replace(s, class_name=s.class_name.replace("spleen", "kidney")) for s in read_scores(file)]
    )
    with pytest.raises(DataError, match=r"(?s)other classes.*kidney, spleen"):
        run.cost([finished])


def test_budgets_on_other_cases_and_manifests_that_are_gone_are_refused(finished):
    file = finished / "n8" / "cps_seed0" / "scores.csv"
    text = file.read_text()
    file.write_text(text.replace("t3", "t9"))
    with pytest.raises(DataError, match="was scored on other cases"):
        run.cost([finished])
    file.write_text(text)
    (finished / "n8" / "data" / "manifest.csv").unlink()
    with pytest.raises(DataError, match="not there any more"):
        run.cost([finished])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        run.cost([finished], dice=[1.0])
