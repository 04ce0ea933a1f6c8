"""Hiding labels: seeded, balanced, and never beyond the training cases."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.coverage import annotation_cost, never_annotated
from labelwise.cohort.hide import MODES, ByDataSet, KeepLabelled, hide
from labelwise.cohort.manifest import DataSet, Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.cohort.published import PUBLISHED
from labelwise.errors import ConfigError
from labelwise.types import IGNORE, Case, LabelSpace
from tiny_cohort import SPACE, VALUES, make_case, manifest_of, paper_case

SETTINGS = {
    "keep_labelled": {"n": 3},
    "one_structure_per_case": {},
    "structures_per_case": {"k": 2},
    "equal_cost": {"k": 2},
    "by_data_set": {"keep": {"site": ["liver"]}},
}


def cohort(number: int = 20, frames: int = 1, **fields: object) -> Manifest:
    cases = [
        paper_case(i, id=f"p{i // frames:02d}_{i % frames}", group=f"p{i // frames:02d}", **fields)
        for i in range(number * frames)
    ]
    others = [paper_case(900, split="validation"), paper_case(901, split="test"), paper_case(902, split="")]
    return manifest_of(*cases, *others)


def kept(manifest: Manifest) -> dict[str, frozenset[str]]:
    return {case.id: case.annotated for case in manifest.split("train")}


def counts(manifest: Manifest) -> Counter[str]:
    return Counter(structure for case in manifest.split("train") for structure in case.annotated)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in PUBLISHED])
def test_only_training_cases_lose_anything_and_nothing_but_annotation(mode: str):
    before = cohort()
    after = hide(before, mode, **SETTINGS[mode])
    assert after.split("validation") + after.split("test") + after.split("") == (
        before.split("validation") + before.split("test") + before.split("")
    )
    assert [replace(case, annotated=frozenset()) for case in after.cases] == [
        replace(case, annotated=frozenset()) for case in before.cases
    ]
    assert all(case.annotated <= old.annotated for case, old in zip(after.cases, before.cases, strict=True))
    assert kept(after) != kept(before)


@pytest.mark.parametrize(
    "mode", ["keep_labelled", "one_structure_per_case", "structures_per_case", "equal_cost"]
)
def test_draws_depend_on_the_seed_and_not_on_the_order_of_the_cases(mode: str):
    ordered = mode in ("keep_labelled", "equal_cost")
    settings = {**SETTINGS[mode], **({"order": "random"} if ordered else {})}
    manifest = cohort(frames=2)
    reversed_ = manifest.replace_cases(manifest.cases[::-1])
    first = kept(hide(manifest, mode, seed=1, **settings))
    assert (
        first
        == kept(hide(manifest, mode, seed=1, **settings))
        == kept(hide(reversed_, mode, seed=1, **settings))
    )
    assert first != kept(hide(manifest, mode, seed=2, **settings))


def test_the_first_of_the_list_stay_labelled_as_in_the_papers():
    after = hide(cohort(), "keep_labelled", n=4)
    assert [name for name, structures in kept(after).items() if structures] == [
        "p00_0",
        "p01_0",
        "p02_0",
        "p03_0",
    ]


@pytest.mark.parametrize(("unit", "expected"), [("group", 6), ("case", 3)])
def test_labelled_patients_or_labelled_cases_are_counted(unit: str, expected: int):
    after = hide(cohort(frames=2), "keep_labelled", n=3, unit=unit)
    assert sum(bool(structures) for structures in kept(after).values()) == expected


def test_half_of_guidednets_scans_of_flare22_are_labelled():
    """50 labelled scans of the challenge and its first 34 unlabelled ones: 42 keep their labels, 42 have none."""
    spare = [paper_case(number, id=f"case_{number}", annotated=frozenset()) for number in range(50, 84)]
    labelled = [paper_case(number) for number in range(50)]
    found = kept(hide(manifest_of(*labelled, *spare), "keep_labelled", n=42))
    assert Counter(bool(organs) for organs in found.values()) == {True: 42, False: 42}


def test_cases_that_were_unlabelled_before_do_not_count_as_labelled():
    manifest = manifest_of(paper_case(0, labels=None, annotated=frozenset()), paper_case(1), paper_case(2))
    assert [bool(structures) for structures in kept(hide(manifest, "keep_labelled", n=1)).values()] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("mode", "settings"), [("one_structure_per_case", {}), ("structures_per_case", {"k": 2})]
)
@pytest.mark.parametrize("number", [7, 20, 21])
@pytest.mark.parametrize("seed", range(5))
def test_balanced_modes_keep_each_structure_equally_often(
    mode: str, settings: dict[str, int], number: int, seed: int
):
    after = hide(cohort(number), mode, seed=seed, **settings)
    k = settings.get("k", 1)
    assert {len(structures) for structures in kept(after).values()} == {k}
    assert sum(counts(after).values()) == k * number
    assert max(counts(after).values()) - min(counts(after).values()) <= 1


def test_frames_of_one_patient_keep_the_same_structures():
    structures = kept(hide(cohort(frames=2), "one_structure_per_case", seed=3))
    assert all(structures[f"p{i:02d}_0"] == structures[f"p{i:02d}_1"] for i in range(20))
    apart = kept(hide(cohort(frames=2), "one_structure_per_case", seed=3, unit="case"))
    assert any(apart[f"p{i:02d}_0"] != apart[f"p{i:02d}_1"] for i in range(20))


def test_drawing_per_case_is_uniform_over_the_structures():
    after = hide(cohort(600), "structures_per_case", k=1, draw="per_case", seed=0)
    assert np.allclose([counts(after)[structure] for structure in SPACE.structures], 200, atol=40)
    assert max(counts(after).values()) - min(counts(after).values()) > 1


def test_who_has_little_choice_chooses_first():
    few = [paper_case(i, annotated=frozenset({"liver"})) for i in range(4)]
    many = [paper_case(10 + i) for i in range(8)]
    for seed in range(10):
        assert set(counts(hide(manifest_of(*few, *many), "one_structure_per_case", seed=seed)).values()) == {
            4
        }


def test_a_case_with_fewer_structures_keeps_those_it_has():
    after = hide(manifest_of(paper_case(1, annotated=frozenset({"liver"}))), "structures_per_case", k=2)
    assert kept(after) == {"case_001": frozenset({"liver"})}


def many_structures(number: int, structures: int = 16) -> Manifest:
    """A completely annotated manifest of `structures` classes, like WORD."""
    names = tuple(f"structure{i:02d}" for i in range(structures))
    values = dict(enumerate(("background", *names)))
    cases = tuple(paper_case(i, annotated=frozenset(names)) for i in range(number))
    return Manifest(LabelSpace(("background", *names)), {"site": DataSet("site", values, "ct")}, cases)


@pytest.mark.parametrize(("k", "complete"), [(2, 13), (4, 25), (6, 38)])
@pytest.mark.parametrize("draw", ["per_case", "balanced"])
def test_the_ratios_of_word_keep_the_same_number_in_every_volume_and_have_a_partner_of_equal_cost(
    k: int, complete: int, draw: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, logger="labelwise")
    word = many_structures(100)
    partial = hide(word, "structures_per_case", k=k, draw=draw)
    assert {len(structures) for structures in kept(partial).values()} == {k}
    assert annotation_cost(partial) == 100 * k
    assert not caplog.text
    partner = hide(word, "equal_cost", k=k)
    assert [len(structures) for structures in kept(partner).values()] == [16] * complete + [0] * (
        100 - complete
    )
    assert abs(annotation_cost(partner) - annotation_cost(partial)) <= 8
    assert f"cost {16 * complete} masks; structures_per_case with k = {k} costs {100 * k}" in caplog.text


def test_equal_cost_is_exact_where_it_can_be():
    for k, complete in ((1, 4), (2, 8), (3, 12)):
        partner = hide(cohort(12), "equal_cost", k=k, order="random", seed=3)
        assert sum(bool(structures) for structures in kept(partner).values()) == complete
        assert (
            annotation_cost(partner)
            == annotation_cost(hide(cohort(12), "structures_per_case", k=k))
            == 12 * k
        )


@pytest.mark.parametrize("unit", ["group", "case"])
def test_equal_cost_keeps_as_many_frames_as_its_partner_pays_for(unit: str):
    partner = hide(cohort(6, frames=2), "equal_cost", k=1, unit=unit)
    assert [name for name, structures in kept(partner).items() if structures] == [
        "p00_0",
        "p00_1",
        "p01_0",
        "p01_1",
    ]
    assert annotation_cost(partner) == 6 * 2


def test_equal_cost_needs_complete_annotation_and_at_least_one_case():
    some = cohort().replace_cases([paper_case(1), paper_case(2, annotated=frozenset({"liver"}))])
    with pytest.raises(ConfigError, match=r"completely annotated(.|\n)*case_002"):
        hide(some, "equal_cost", k=1)
    with pytest.raises(ConfigError, match="cannot keep even one"):
        hide(many_structures(3), "equal_cost", k=2)


@pytest.mark.parametrize("draw", ["per_case", "balanced"])
def test_a_draw_that_loses_a_structure_is_refused_by_its_name(draw: str):
    with pytest.raises(ConfigError, match=r"no training case would keep (liver|spleen|pancreas)"):
        hide(manifest_of(paper_case(1), paper_case(2)), "structures_per_case", k=1, draw=draw)
    only_liver = manifest_of(paper_case(1, annotated=frozenset({"liver"})))
    assert never_annotated(hide(only_liver, "one_structure_per_case")) == ("spleen", "pancreas")


def test_cases_that_keep_fewer_structures_than_the_others_are_reported(caplog: pytest.LogCaptureFixture):
    few = paper_case(7, annotated=frozenset({"liver"}))
    hide(manifest_of(few, *(paper_case(i) for i in range(4))), "structures_per_case", k=2)
    assert "1 of 5 annotated cases keep fewer than 2 structures" in caplog.text
    assert "case_007" in caplog.text


def test_data_sets_keep_their_own_structures():
    cases = paper_case(1, data_set="a"), paper_case(2, data_set="b"), paper_case(3, data_set="c")
    after = hide(manifest_of(*cases), "by_data_set", keep={"a": ["liver"], "b": []})
    assert [case.annotated for case in after.cases] == [{"liver"}, frozenset(), frozenset(SPACE.structures)]


def test_settings_may_be_given_as_an_object():
    assert hide(cohort(), KeepLabelled(n=2)) == hide(cohort(), "keep_labelled", n=2)


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("keep_labeled", {"n": 1}, "did you mean 'keep_labelled'"),
        ("keep_labelled", {}, "'n' is missing"),
        ("keep_labelled", {"n": -1}, "'n' is wrong"),
        ("keep_labelled", {"n": 1, "sed": 1}, "did you mean 'seed'"),
        ("keep_labelled", {"n": 21}, "not so many"),
        ("keep_labelled", {"n": 1, "order": "seeded"}, "'order' is wrong"),
        ("structures_per_case", {"k": 4}, "cannot keep 4 structures"),
        ("structures_per_case", {"k": 0}, "'k' is wrong"),
        ("equal_cost", {"k": 4}, "cannot keep 4 structures"),
        ("equal_cost", {}, "'k' is missing"),
        ("by_data_set", {"keep": {"sight": ["liver"]}}, "did you mean 'site'"),
        ("by_data_set", {"keep": {"site": ["livre"]}}, "did you mean 'liver'"),
    ],
)
def test_wrong_settings_are_refused(mode: str, settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        hide(cohort(), mode, **settings)


def test_a_data_set_cannot_keep_what_it_does_not_annotate():
    cases = paper_case(1, data_set="a", annotated=frozenset({"liver"})), paper_case(2, data_set="b")
    with pytest.raises(ConfigError, match=r"data set 'a' cannot keep 'spleen'(.|\n)*liver"):
        hide(manifest_of(*cases), "by_data_set", keep={"a": ["spleen"]})


def test_label_files_are_not_touched_and_hidden_structures_are_erased_when_read(tmp_path: Path):
    case = make_case(tmp_path, "a", 1, 3, 7)
    assert case.labels is not None
    before = case.labels.read_bytes()
    manifest = hide(manifest_of(case), ByDataSet(keep={"site": ["spleen"]}))
    assert case.labels.read_bytes() == before
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:4].tolist() == [0, 2, 0, 0]
    nothing = hide(manifest, "keep_labelled", n=0)
    assert (read_case_labels(nothing.cases[0], nothing).data == IGNORE).all()


def test_a_hidden_manifest_is_written_and_read_like_any_other(tmp_path: Path):
    after = hide(cohort(), "structures_per_case", k=2, seed=5)
    assert read_manifest(write_manifest(after, tmp_path)) == after


def test_the_order_of_dictionaries_does_not_matter():
    cases: tuple[Case, ...] = tuple(paper_case(i, data_set="ab"[i % 2]) for i in range(9))
    data_sets = {name: DataSet(name, VALUES, "ct") for name in "ab"}
    backwards = {name: DataSet(name, dict(reversed(VALUES.items())), "ct") for name in "ba"}
    results = [
        hide(Manifest(SPACE, table, cases), "one_structure_per_case", seed=1).cases
        for table in (data_sets, backwards)
    ]
    assert results[0] == results[1]
