"""Several data sets in one label space: spellings, left and right, tumours."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelwise.cohort.join import join, side_conflicts, with_classes
from labelwise.cohort.manifest import DataSet, Manifest, merge, read_case_labels
from labelwise.errors import ConfigError
from labelwise.types import IGNORE, Case, LabelSpace
from tiny_cohort import write_map, write_scan

LEFT, RIGHT = "left kidney", "right kidney"


def site(
    name: str, *classes: str, annotated: tuple[str, ...] | None = None, folder: str = "/scans"
) -> Manifest:
    """A data set whose n-th class has the value n, with one case that is annotated for all of them."""
    image, labels = (Path(folder) / f"{name}_{part}.nii.gz" for part in ("i", "l"))
    known = frozenset(classes if annotated is None else annotated)
    case = Case(f"{name}_1", (image,), labels, known, data_set=name, split="train")
    table = DataSet(name, dict(enumerate(("background", *classes))), "ct")
    return Manifest(LabelSpace(("background", *classes)), {name: table}, (case,))


def annotated(manifest: Manifest) -> dict[str, set[str]]:
    return {case.data_set: set(case.annotated) for case in manifest.cases}


# names


def test_spellings_of_one_structure_become_one_class_and_unknown_names_stay():
    joined = join([site("a", "Liver", "kidney", "my lesion"), site("b", "liver", "Kidneys", "postcava")])
    assert joined.label_space.structures == ("liver", "kidneys", "my lesion", "inferior vena cava")
    assert joined.data_sets["b"].values == {
        0: "background",
        1: "liver",
        2: "kidneys",
        3: "inferior vena cava",
    }
    assert annotated(joined)["a"] == {"liver", "kidneys", "my lesion"}


def test_a_single_data_set_keeps_the_names_that_it_has():
    single = site("a", "Kidney", "oesophagus")
    assert join([single]) is single


def test_two_classes_of_one_data_set_never_become_one(caplog):
    joined = join([site("a", "kidney", "kidneys"), site("b", "kidneys")])
    assert joined.data_sets["a"].values == {0: "background", 1: "kidney", 2: "kidneys"}
    assert "data set a has two classes that mean kidneys: 'kidney' keeps its name" in caplog.text


# left and right


def test_a_conflict_about_sides_names_data_sets_classes_and_choices():
    with pytest.raises(ConfigError) as caught:
        join([site("kits", "kidney"), site("btcv", RIGHT, LEFT, "liver"), site("lits", "liver")])
    message = str(caught.value)
    assert "kidneys in kits; left kidney and right kidney in btcv" in message
    assert "--sides join: left and right become one class everywhere (kidneys)" in message
    assert "--sides split: the cases of kits are no longer annotated for kidneys" in message


@pytest.mark.parametrize(
    ("whole", "left"),
    [
        ("adrenal glands", "left adrenal gland"),
        ("lungs", "left lung"),
        ("femoral heads", "left femoral head"),
    ],
)
def test_every_pair_of_the_table_may_be_in_conflict(whole: str, left: str):
    (conflict,) = side_conflicts(merge([site("a", whole), site("b", left)]))
    assert (conflict.whole, conflict.joint, conflict.apart) == (whole, ("a",), {"b": (left,)})


def test_data_sets_that_agree_are_in_no_conflict():
    joined = join([site("a", LEFT, RIGHT), site("b", RIGHT, LEFT), site("c", "lungs")])
    assert joined.label_space.structures == (LEFT, RIGHT, "lungs")


def test_join_makes_one_class_of_both_sides_in_every_data_set():
    joined = join([site("kits", "kidneys"), site("btcv", RIGHT, LEFT, "liver")], "join")
    assert joined.label_space.structures == ("kidneys", "liver")
    assert joined.data_sets["btcv"].values == {0: "background", 1: "kidneys", 2: "kidneys", 3: "liver"}
    assert annotated(joined) == {"kits": {"kidneys"}, "btcv": {"kidneys", "liver"}}


def test_a_word_settles_conflicts_only_and_a_name_joins_any_pair():
    data_sets = [site("kits", "kidneys"), site("btcv", LEFT, RIGHT, "left lung", "right lung")]
    assert join(data_sets, "join").label_space.structures == ("kidneys", "left lung", "right lung")
    both = {"kidney": "join", "lungs": "join"}
    assert join(data_sets, both).label_space.structures == ("kidneys", "lungs")
    assert join([site("btcv", "kidney_left", "kidney_right")], {"kidneys": "join"}).data_sets["btcv"].values == {
        0: "background", 1: "kidneys", 2: "kidneys",
    }  # fmt: skip


def test_a_case_annotated_for_one_side_is_not_annotated_for_both(caplog):
    one = site("clinic", LEFT, RIGHT, "liver", annotated=(LEFT, "liver"))
    joined = join([site("kits", "kidneys"), one], "join")
    assert annotated(joined)["clinic"] == {"liver"}
    assert "annotated for one side only are not annotated for kidneys: 1 (clinic_1)" in caplog.text


def test_split_drops_the_joint_class_and_its_annotation(caplog):
    joined = join([site("a", "liver", "kidneys"), site("btcv", LEFT, RIGHT)], "split")
    assert joined.label_space.structures == ("liver", LEFT, RIGHT)
    assert joined.data_sets["a"].values == {0: "background", 1: "liver", 2: "background"}
    assert annotated(joined) == {"a": {"liver"}, "btcv": {LEFT, RIGHT}}
    assert "cases that are no longer annotated for kidneys: 1 (a_1)" in caplog.text


def test_split_leaves_voxels_unknown_where_a_data_set_has_both(tmp_path: Path):
    both = site("both", "kidneys", LEFT, RIGHT, folder=str(tmp_path))
    write_scan(both.cases[0].images[0])
    write_map(tmp_path / "both_l.nii.gz", 1, 2, 3)
    joined = join([both, site("btcv", LEFT, RIGHT)], "split")
    labels = read_case_labels(joined.cases[0], joined)
    assert labels.data.ravel()[:4].tolist() == [IGNORE, 1, 2, 0]


def test_a_data_set_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(ConfigError, match=r"nothing would be left of data set kits(.|\n)*--sides join"):
        join([site("kits", "kidneys"), site("btcv", LEFT, RIGHT)], "split")


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ("jion", "did you mean 'join'"),
        ({"kidneys": "merge"}, "join or split"),
        ({"kidnees": "join"}, "did you mean 'kidneys'"),
        ({"liver": "join"}, "no class that joins left and right"),
        ({"kidneys": "join", "lungs": "join"}, "no data set has the class 'lungs'"),
    ],
)
def test_a_wrong_choice_of_sides_is_refused(sides: object, message: str):
    with pytest.raises(ConfigError, match=message):
        join([site("kits", "kidneys"), site("btcv", LEFT, RIGHT, "liver")], sides)


def test_a_class_of_which_no_data_set_has_the_sides_cannot_be_split():
    with pytest.raises(ConfigError, match="no data set has left and right of 'kidneys' apart"):
        join([site("kits", "kidneys", "liver")], {"kidneys": "split"})


def test_a_choice_without_a_conflict_says_that_it_changes_nothing(caplog):
    assert join([site("a", "liver"), site("b", LEFT, RIGHT)], "join").label_space.structures == (
        "liver",
        LEFT,
        RIGHT,
    )
    assert "sides = join changes nothing" in caplog.text


# tumours


def test_a_tumour_that_is_a_class_in_one_data_set_only_is_warned_about(caplog):
    join([site("msd", "liver", "liver tumour"), site("lits", "liver"), site("nih", "pancreas")])
    assert "'liver tumour' is a class of its own in msd; lits annotates the liver without it" in caplog.text
    assert "option 'tumour'" in caplog.text
    assert "nih" not in caplog.text


def test_cysts_are_compared_with_kidneys_of_either_side(caplog):
    join([site("kits", LEFT, RIGHT, "kidney cyst"), site("btcv", RIGHT, LEFT)])
    assert "'kidney cyst' is a class of its own in kits; btcv annotates the kidneys" in caplog.text


def test_data_sets_that_agree_about_tumours_are_not_warned_about(caplog):
    join([site("a", "liver", "liver tumour"), site("b", "liver lesion", "liver"), site("c", "spleen")])
    assert caplog.text == ""


# the classes of a model


def test_a_manifest_takes_the_classes_of_a_model_as_it_spells_them_and_adds_its_own():
    found = with_classes(site("a", "aorta", "Kidneys"), ("background", "liver", "kidney"))
    assert found.label_space.names == ("background", "liver", "kidney", "aorta")
    assert found.data_sets["a"].values == {0: "background", 1: "aorta", 2: "kidney"}
    assert annotated(found)["a"] == {"aorta", "kidney"}


def test_classes_that_contradict_those_of_a_model_are_refused():
    with pytest.raises(ConfigError, match="one class in the model or in the data, and two in the other"):
        with_classes(site("a", LEFT), ("background", "kidneys"))
    with pytest.raises(ConfigError, match="one class in the model or in the data, and two in the other"):
        with_classes(site("a", "kidneys"), ("background", LEFT, RIGHT))
    with pytest.raises(ConfigError, match="two classes of the data mean the same class"):
        with_classes(site("a", "kidney", "kidneys"), ("background", "kidneys"))
