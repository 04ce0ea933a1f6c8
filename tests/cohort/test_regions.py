"""Regions: names for several classes together, declared by people, annotated as one, refused where they contradict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.coverage import coverage
from labelwise.cohort.join import join, with_classes, without_structures
from labelwise.cohort.manifest import (
    DataSet,
    Manifest,
    merge,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.cohort.regions import as_one, with_regions
from labelwise.errors import ConfigError, DataError
from labelwise.formats import write_image, write_labels
from labelwise.quality.check_case import inspect_case
from labelwise.quality.measure import measure_case
from labelwise.types import Case, LabelSpace, Volume

PARTS = ("background", "edema", "core", "enhancing")
TREE = (("whole", ("edema", "tumour")), ("tumour", ("core", "enhancing")))
SPACE = LabelSpace(PARTS, TREE)
VALUES = {0: "background", 1: "edema", 2: "core", 3: "enhancing", 4: "tumour", 5: "whole"}


def make_case(folder: Path, name: str, *annotated: str, values: tuple[int, ...] = (0, 1, 2, 3)) -> Case:
    """A scan of one row of voxels with these label values."""
    shape = (len(values), 1, 1)
    image, labels = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
    write_image(image, Volume(np.zeros((1, *shape), np.float32), np.eye(4)))
    write_labels(labels, Volume(np.array(values, np.uint8).reshape(shape), np.eye(4)))
    return Case(name, (image,), labels, frozenset(annotated), data_set="brats", split="train")


def one(case: Case) -> Manifest:
    return Manifest(SPACE, {"brats": DataSet("brats", VALUES, "mr")}, (case,))


def shown(manifest: Manifest) -> list[int]:
    found: list[int] = read_case_labels(manifest.cases[0], manifest).data.ravel().tolist()
    return found


def test_a_region_is_all_of_its_classes_through_other_regions():
    assert SPACE.classes_of("whole") == {"edema", "core", "enhancing"}
    assert SPACE.classes_of("edema") == {"edema"}


@pytest.mark.parametrize(
    ("regions", "sentence"),
    [
        ((("a", ("b",)), ("b", ("c",)), ("c", ("a",))), "regions go round in a circle: a > b > c > a"),
        ((("a", ("a", "core")),), "regions go round in a circle: a > a"),
        ((("a", ("kore",)),), "the region 'a' holds the unknown class 'kore'; did you mean 'core'?"),
        ((("core", ("edema",)),), "the region 'core' has the name of a class or of another region"),
        ((("a", ()),), "the region 'a' has no class"),
    ],
)
def test_a_tree_that_cannot_be_is_refused_in_one_sentence(regions, sentence: str):
    with pytest.raises(ConfigError) as caught:
        LabelSpace(PARTS, regions)
    assert caught.value.what == sentence


def test_a_tree_with_a_circle_in_the_class_table_is_refused_with_its_file(tmp_path: Path):
    write_manifest(one(make_case(tmp_path, "a", "whole")), tmp_path)
    table = tmp_path / "dataset.toml"
    table.write_text(table.read_text().replace('tumour = ["core"', 'tumour = ["whole", "core"'))
    with pytest.raises(DataError, match="regions go round in a circle: whole > tumour > whole") as caught:
        read_manifest(tmp_path)
    assert str(caught.value.file) == str(table)


def test_regions_and_what_is_annotated_as_one_survive_the_round_trip(tmp_path: Path):
    manifest = one(make_case(tmp_path, "a", "edema", "tumour", values=(0, 1, 4, 4)))
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert ",edema;tumour," in (tmp_path / "manifest.csv").read_text()
    assert '[regions]\nwhole = ["edema", "tumour"]' in (tmp_path / "dataset.toml").read_text()


def test_a_region_beside_a_class_of_it_is_refused_in_a_row(tmp_path: Path):
    write_manifest(one(make_case(tmp_path, "a", "whole")), tmp_path)
    table = tmp_path / "manifest.csv"
    table.write_text(table.read_text().replace(",whole,", ",core;whole,"))
    with pytest.raises(DataError, match="'core' and 'whole' are annotated in one case, but both hold 'core'"):
        read_manifest(tmp_path)


def test_a_region_that_no_value_shows_cannot_be_annotated(tmp_path: Path):
    case = make_case(tmp_path, "a", "whole")
    data_set = DataSet("brats", {0: "background", 2: "core"}, "mr")
    with pytest.raises(DataError, match="cannot show whole"):
        Manifest(SPACE, {"brats": data_set}, (case,))


def test_convention_a_region_annotated_as_one_says_nothing_of_its_classes_one_by_one(tmp_path: Path):
    case = make_case(tmp_path, "a", "edema", "tumour", values=(0, 1, 4, 2))
    assert SPACE.annotated_row(case.annotated).tolist() == [False, True, False, False]
    assert shown(one(case)) == [0, 1, 0, 0]


def test_a_case_that_annotates_all_parts_of_a_region_knows_the_region(tmp_path: Path):
    whole = as_one(one(make_case(tmp_path, "a", "edema", "tumour", values=(0, 1, 4, 2))), "whole")
    assert whole is not None
    assert shown(whole) == [0, 1, 1, 1]
    core = as_one(one(make_case(tmp_path, "b", "core", "enhancing")), "tumour")
    assert core is not None
    assert shown(core) == [0, 0, 1, 1]


@pytest.mark.parametrize("annotated", [("core",), ("edema", "core"), ("whole",)])
def test_a_case_that_annotates_less_or_more_than_a_region_does_not_know_it(tmp_path: Path, annotated):
    assert as_one(one(make_case(tmp_path, "a", *annotated)), "tumour") is None


def test_check_and_measure_see_a_region_as_one_structure(tmp_path: Path):
    """The file tells two of its classes apart, the manifest does not believe it."""
    manifest = one(make_case(tmp_path, "a", "edema", "tumour", values=(0, 1, 4, 2, 3)))
    assert [(row.structure, row.voxels) for row in measure_case(manifest)] == [("edema", 1), ("tumour", 3)]
    facts = inspect_case(manifest)
    assert facts.voxels == {"edema": 1, "tumour": 3}
    assert not [problem for problem in facts.problems if problem.code == "annotated-but-not-drawn"]
    assert "tumour" in coverage(manifest).text()
    assert "whole" not in coverage(manifest).text()


def test_a_class_of_the_name_of_a_region_becomes_a_region_that_is_annotated_as_one(tmp_path: Path):
    """One site draws the liver, another its tumour and the rest of it."""
    case = make_case(tmp_path, "a", "liver", values=(0, 1))
    liver = Manifest(
        LabelSpace(("background", "liver")),
        {"brats": DataSet("brats", {0: "background", 1: "liver"}, "ct")},
        (case,),
    )
    other = Manifest(
        LabelSpace(("background", "rest of liver", "liver tumour")),
        {"lits": DataSet("lits", {0: "background", 1: "rest of liver", 2: "liver tumour"}, "ct")},
        (replace(make_case(tmp_path, "b", "rest of liver", "liver tumour"), data_set="lits"),),
    )
    found = with_regions(join([liver, other]), {"liver": ["rest of liver", "liver_tumor"]})
    assert found.label_space.names == ("background", "rest of liver", "liver tumour")
    assert found.label_space.regions == (("liver", ("rest of liver", "liver tumour")),)
    assert found.cases[0].annotated == {"liver"}
    assert found.label_space.annotated_row(found.cases[0].annotated).tolist() == [False] * 3
    write_manifest(found, tmp_path)
    assert read_manifest(tmp_path) == found


def test_an_unknown_class_of_a_region_is_refused_by_name(tmp_path: Path):
    manifest = one(make_case(tmp_path, "a", "edema"))
    with pytest.raises(ConfigError, match="the region 'r' holds the unknown class 'liver'"):
        with_regions(manifest, {"r": ["liver"]})


def test_merging_keeps_regions_and_refuses_two_meanings(tmp_path: Path):
    first = one(make_case(tmp_path, "a", "edema"))
    again = Manifest(
        SPACE, {"x": DataSet("x", VALUES, "mr")}, (replace(first.cases[0], data_set="x", id="b"),)
    )
    assert merge([first, again]).label_space == SPACE
    other = replace(
        again, label_space=LabelSpace(PARTS, (("whole", ("edema", "core")), ("tumour", ("core",))))
    )
    with pytest.raises(DataError, match="the region 'whole' means two things"):
        merge([first, other])


def test_a_region_follows_its_classes_into_other_names_and_goes_when_one_goes(tmp_path: Path):
    manifest = one(make_case(tmp_path, "a", "edema", "tumour", values=(0, 1, 4, 4)))
    moved = with_classes(manifest, ("background", "enhancing", "core", "edema"))
    assert moved.label_space.classes_of("whole") == {"edema", "core", "enhancing"}
    assert moved.cases[0].annotated == {"edema", "tumour"}
    left = without_structures(manifest, {"enhancing"})
    assert left.label_space.regions == ()
    assert left.cases[0].annotated == {"edema"}
    assert shown(left) == [0, 1, 255, 255]  # nobody knows what of the tumour is core
