"""The published settings: the right cases train, validate and test, and nothing is guessed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from labelwise import run
from labelwise.cohort.coverage import annotation_cost, never_annotated
from labelwise.cohort.hide import hide
from labelwise.cohort.manifest import (
    DataSet,
    Manifest,
    merge,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.cohort.published import TOY_TEST, TOY_TRAIN, UNION, number_of, ranges
from labelwise.errors import ConfigError, DataError
from labelwise.types import Case, LabelSpace
from tiny_cohort import write_map

STRUCTURES = ("liver", "spleen", "kidney", "pancreas")
NAMES = {"lits": "volume-{}", "msd_spleen": "spleen_{}", "kits": "case_{:05d}", "nih": "PANCREAS_{:04d}"}
CLASSES = {
    "lits": ("liver", "tumour"),
    "msd_spleen": ("spleen",),
    "kits": ("kidney", "tumour", "cyst"),
    "nih": ("pancreas",),
}
SPLEEN = UNION["msd_spleen"].train + UNION["msd_spleen"].test
NUMBERS = {"lits": range(131), "msd_spleen": sorted(SPLEEN), "kits": range(210), "nih": range(1, 83)}


def scan(name: str, data_set: str, structures: Iterable[str], **fields: object) -> Case:
    labels = Path(f"/scans/{name}_l.nii.gz") if structures else None
    return Case(
        name, (Path(f"/scans/{name}.nii.gz"),), labels, frozenset(structures), data_set=data_set, **fields
    )


def data_set(data_set: str, classes: tuple[str, ...], names: Iterable[str], split: str = "train") -> Manifest:
    table = DataSet(data_set, dict(enumerate(("background", *classes))), "ct")
    cases = tuple(scan(name, data_set, classes, split=split) for name in names)
    return Manifest(LabelSpace(("background", *classes)), {data_set: table}, cases)


def toy(
    classes: tuple[str, ...] = ("liver", "kidney", "spleen", "pancreas", "aorta"),
    numbers: Iterable[int] = range(1, 51),
) -> Manifest:
    return data_set("organ12", classes, [f"Organ12_{number:04d}" for number in numbers])


def union(**numbers: Iterable[int]) -> Manifest:
    parts = [
        data_set(name, CLASSES[name], [NAMES[name].format(i) for i in numbers.get(name, NUMBERS[name])])
        for name in CLASSES
    ]
    return merge(parts)


def numbers_of(manifest: Manifest, split: str, data_set: str) -> set[int]:
    return {number_of(case.id) for case in manifest.split(split) if case.data_set == data_set}


def changed(manifest: Manifest, name: str, *new: Case) -> Manifest:
    """The manifest with other cases in the place of one."""
    cases = [case for case in manifest.cases if case.id != name]
    return manifest.replace_cases([*cases, *new])


# toy


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_first_n_of_each_list_keep_one_structure_and_ten_cases_test(n: int):
    after = hide(toy(), "ltuda_toy", n=n)
    trained = {structure: set() for structure in STRUCTURES}
    for case in after.split("train"):
        (structure,) = case.annotated
        trained[structure].add(number_of(case.id))
    assert trained == {structure: set(numbers[:n]) for structure, numbers in TOY_TRAIN.items()}
    assert {number_of(case.id) for case in after.split("test")} == set(TOY_TEST)
    assert all(case.annotated == set(STRUCTURES) for case in after.split("test"))
    assert (len(after.split("")), len(after.split("validation"))) == (40 - 4 * n, 0)
    assert annotation_cost(after) == 4 * n


def test_every_scan_of_the_toy_set_has_one_role():
    count = Counter([*TOY_TEST, *(number for numbers in TOY_TRAIN.values() for number in numbers)])
    assert count == Counter(range(1, 51))


def test_the_splits_of_the_manifest_do_not_matter_and_other_scans_take_no_part():
    names = [f"Organ12_{number:04d}" for number in range(1, 51)]
    classes = ("liver", "kidney", "spleen", "pancreas", "aorta")
    for split in ("", "test", "validation"):
        assert hide(data_set("organ12", classes, names, split), "ltuda_toy") == hide(toy(), "ltuda_toy")
    more = hide(toy(numbers=range(1, 54)), "ltuda_toy")
    assert [case.id for case in more.split("")] == ["Organ12_0051", "Organ12_0052", "Organ12_0053"]


def test_only_the_four_structures_stay_classes_in_the_order_of_the_manifest():
    after = hide(toy(), "ltuda_toy")
    assert after.label_space.names == ("background", "liver", "kidney", "spleen", "pancreas")
    assert after.data_sets["organ12"].values == {
        0: "background", 1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas", 5: "background",
    }  # fmt: skip
    assert never_annotated(after) == ()


def test_kidneys_may_be_called_kidneys():
    after = hide(toy(("liver", "kidneys", "spleen", "pancreas")), "ltuda_toy", n=3)
    assert after.label_space.names == ("background", "liver", "kidneys", "spleen", "pancreas")
    assert sum(case.annotated == {"kidneys"} for case in after.split("train")) == 3


def test_classes_are_known_by_any_spelling():
    after = hide(toy(("Liver", "Both_Kidneys", "lien", "Pancreas")), "ltuda_toy", n=3)
    assert after.label_space.structures == ("Liver", "Both_Kidneys", "lien", "Pancreas")


def test_the_data_set_with_twelve_structures_need_not_be_named():
    other = data_set("abdomenct1k", ("liver", "kidneys"), ["Case_00001"])
    table = replace(toy().data_sets["organ12"], name="abdomenct1k_organ12")
    cases = (replace(case, data_set=table.name) for case in toy().cases)
    both = merge([other, Manifest(toy().label_space, {table.name: table}, tuple(cases))])
    assert list(hide(both, "ltuda_toy").data_sets) == ["abdomenct1k_organ12"]


def test_the_last_of_each_list_may_validate_on_their_structure():
    after = hide(toy(), "ltuda_toy", n=5, validation=2)
    validation = {number_of(case.id): set(case.annotated) for case in after.split("validation")}
    assert validation == {
        number: {structure} for structure, numbers in TOY_TRAIN.items() for number in numbers[3:5]
    }
    assert len(after.split("train")) == 12
    with pytest.raises(ConfigError, match="no training case would remain"):
        hide(toy(), "ltuda_toy", n=3, validation=3)


def test_missing_cases_are_listed():
    with pytest.raises(DataError, match=r"organ12' has no annotated case 1, 2, 10-12, 50\b"):
        hide(toy(numbers=[*range(3, 10), *range(13, 50)]), "ltuda_toy")
    # What takes no part need not be there.
    assert len(hide(toy(numbers=set(range(1, 51)) - {18}), "ltuda_toy", n=5).split("train")) == 20


def test_a_case_without_the_annotation_that_it_should_teach_is_refused():
    unlabelled = changed(toy(), "Organ12_0005", scan("Organ12_0005", "organ12", []))
    with pytest.raises(DataError, match="no annotated case 5\n"):
        hide(unlabelled, "ltuda_toy")
    partial = changed(toy(), "Organ12_0001", scan("Organ12_0001", "organ12", ["liver", "spleen"]))
    with pytest.raises(DataError, match="'Organ12_0001' is not annotated for kidney, pancreas"):
        hide(partial, "ltuda_toy")


def test_two_cases_with_one_number_are_refused():
    twice = changed(toy(), "Organ12_0005", *(scan(name, "organ12", STRUCTURES) for name in ("a5", "b_005")))
    with pytest.raises(DataError, match="several cases 5: a5, b_005"):
        hide(twice, "ltuda_toy")


def test_a_missing_class_is_refused_with_what_is_expected():
    with pytest.raises(
        ConfigError, match=r"no class for the kidney(.|\n)*kidney or kidneys(.|\n)*both kidneys"
    ):
        hide(toy(("liver", "right kidney", "left kidney", "spleen", "pancreas")), "ltuda_toy")
    with pytest.raises(ConfigError, match="no class for the spleen"):
        hide(toy(("liver", "kidney", "pancreas")), "ltuda_toy")


def test_of_several_data_sets_one_must_be_named_and_the_others_are_left_out():
    both = merge([toy(), data_set("nih", ("pancreas",), ["PANCREAS_0001"])])
    with pytest.raises(ConfigError, match="several data sets"):
        hide(both, "ltuda_toy")
    with pytest.raises(ConfigError, match="did you mean 'organ12'"):
        hide(both, "ltuda_toy", data_set="organ_12")
    assert hide(both, "ltuda_toy", data_set="organ12") == hide(toy(), "ltuda_toy")


def test_another_n_is_not_published():
    with pytest.raises(ConfigError, match="'n' is wrong"):
        hide(toy(), "ltuda_toy", n=4)


# union


def test_the_union_has_the_published_numbers_of_cases():
    after = hide(union(), "ltuda_union", drop_leaks=False)
    assert [(len(part.train), len(part.test)) for part in UNION.values()] == [
        (83, 22), (33, 8), (164, 40), (66, 16),
    ]  # fmt: skip
    for name, part in UNION.items():
        assert numbers_of(after, "train", name) == set(part.train)
        assert numbers_of(after, "test", name) == set(part.test)
    assert numbers_of(after, "", "lits") == {*range(28, 53), 94}
    assert numbers_of(after, "", "kits") == {1, 27, 53, 59, 71, 165}
    assert (len(after.split("train")), len(after.split("test"))) == (346, 86)


def test_every_data_set_teaches_its_own_structure():
    after = hide(union(), "ltuda_union")
    assert after.label_space.names == ("background", *STRUCTURES)
    for case in after.split("train") + after.split("test"):
        assert case.annotated == {UNION[case.data_set].structure}


def test_the_repeated_scan_of_nih_is_left_out_unless_it_is_asked_for():
    after = hide(union(), "ltuda_union")
    assert numbers_of(after, "", "nih") == {25, 70}
    assert (len(numbers_of(after, "train", "nih")), len(numbers_of(after, "test", "nih"))) == (65, 15)
    withdrawn = union(nih=set(range(1, 83)) - {25, 70})
    assert hide(withdrawn, "ltuda_union").split("train") == after.split("train")
    with pytest.raises(DataError, match="'nih' has no annotated case 25, 70"):
        hide(withdrawn, "ltuda_union", drop_leaks=False)


def test_tumours_and_cysts_are_read_as_in_the_published_labels():
    after = hide(union(), "ltuda_union")
    assert after.data_sets["lits"].values == {0: "background", 1: "liver", 2: "liver"}
    assert after.data_sets["kits"].values == {0: "background", 1: "kidney", 2: "background", 3: "kidney"}


def test_label_files_are_read_so(tmp_path: Path):
    after = hide(union(), "ltuda_union")
    labels = write_map(tmp_path / "l.nii.gz", 1, 2, 3)
    case = Case("case_00002", (labels,), labels, frozenset({"kidney"}), data_set="kits", split="train")
    only = after.replace_cases([case])
    kidney = after.label_space.index("kidney")
    assert read_case_labels(case, only).data.ravel()[:4].tolist() == [kidney, 0, kidney, 0]


def test_cases_beyond_the_lists_and_without_labels_take_no_part():
    later = union(kits=range(300))
    unlabelled = [scan(f"test-volume-{i}", "lits", []) for i in range(3)]
    after = hide(later.replace_cases([*later.cases, *unlabelled]), "ltuda_union")
    assert after.split("train") == hide(union(), "ltuda_union").split("train")
    assert {case.id for case in after.split("")} >= {"case_00299", "test-volume-0"}


def test_missing_cases_of_all_data_sets_are_listed_at_once():
    with pytest.raises(
        DataError, match=r"'lits' has no annotated case 0-3; .*'kits' has no annotated case 209"
    ):
        hide(union(lits=range(4, 131), kits=range(209)), "ltuda_union")


def test_data_sets_may_have_other_names_and_other_data_sets_are_left_out():
    parts = [
        data_set(name.upper(), CLASSES[name], [NAMES[name].format(i) for i in NUMBERS[name]])
        for name in CLASSES
    ]
    manifest = merge([*parts, data_set("btcv", ("aorta",), ["img0001"])])
    names = {name: name.upper() for name in CLASSES}
    after = hide(manifest, "ltuda_union", **names)
    assert list(after.data_sets) == list(names.values())
    assert [case.id for case in after.split("train")] == [
        case.id for case in hide(union(), "ltuda_union").split("train")
    ]
    with pytest.raises(ConfigError, match=r"unknown data set 'lits'(.|\n)*--set lits=NAME"):
        hide(manifest, "ltuda_union")
    with pytest.raises(ConfigError, match="two of the four roles have the same data set"):
        hide(manifest, "ltuda_union", **names | {"nih": "KITS"})


def test_data_sets_of_one_data_set_with_one_value_table_share_a_role():
    whole = union()
    first = replace(whole.data_sets["kits"], name="kits_first_release")
    own = data_set("kits_of_ours", ("kidney",), ["case_00000"])
    early = {f"case_{number:05d}" for number in range(2, 210, 10)}
    moved = [replace(case, data_set=first.name) if case.id in early else case for case in whole.cases]
    manifest = merge(
        [replace(whole, data_sets=whole.data_sets | {first.name: first}, cases=tuple(moved)), own]
    )
    after = hide(manifest, "ltuda_union")
    assert "kits_of_ours" not in after.data_sets
    assert after.data_sets["kits_first_release"].values == after.data_sets["kits"].values
    assert [case.id for case in after.split("train")] == [
        case.id.replace("kits_case", "case") for case in hide(whole, "ltuda_union").split("train")
    ]


def test_case_zero_is_not_taken_for_a_case_without_a_number():
    lits = union()
    named = lits.replace_cases([*lits.cases, scan("phantom", "lits", ["liver"], split="train")])
    after = hide(named, "ltuda_union")
    assert "phantom" in {case.id for case in after.split("")}


def test_the_last_cases_of_each_data_set_may_validate():
    after = hide(union(), "ltuda_union", validation=4)
    assert numbers_of(after, "validation", "lits") == {127, 128, 129, 130}
    assert Counter(case.data_set for case in after.split("validation")) == dict.fromkeys(UNION, 4)
    assert len(after.split("train")) == 345 - 16


def test_no_case_is_in_two_lists():
    for part in UNION.values():
        assert not set(part.train) & set(part.test)


# both


@pytest.mark.parametrize(("manifest", "mode"), [(toy(), "ltuda_toy"), (union(), "ltuda_union")])
def test_the_result_does_not_depend_on_the_order_of_cases_and_is_the_same_when_repeated(
    manifest: Manifest, mode: str, tmp_path: Path
):
    after = hide(manifest, mode)
    backwards = hide(manifest.replace_cases(manifest.cases[::-1]), mode)
    assert backwards.cases[::-1] == after.cases
    assert read_manifest(write_manifest(after, tmp_path)) == after


def test_simulate_writes_a_published_setting_and_holds_nothing_out_of_it(tmp_path: Path):
    write_manifest(toy(), tmp_path / "toy")
    scarce = run.simulate(tmp_path / "toy", tmp_path / "toy3", "ltuda_toy", n=3)
    assert read_manifest(tmp_path / "toy3") == scarce
    with pytest.raises(ConfigError, match="'validation' of the mode"):
        run.simulate(tmp_path / "toy", tmp_path / "held", "ltuda_toy", held_out=3)
    assert not (tmp_path / "held").exists()


def test_the_command_line_prints_masks_and_splits(command, tmp_path: Path):
    write_manifest(toy(), tmp_path / "toy")
    words = ("simulate", tmp_path / "toy", "--mode", "ltuda_toy", "--set", "n=3", "--set", "validation=1")
    answer = command(*words, "-o", tmp_path / "out")
    assert "8 of 8 training cases annotated, 8 masks; 4 validation and 10 test cases" in answer.out
    assert "liver 2, kidney 2, spleen 2, pancreas 2" in answer.out
    facts = json.loads(command(*words, "-o", tmp_path / "out", "--json").out)
    assert (facts["train"], facts["test"], facts["structure_masks_by_class"]["liver"]) == (8, 10, 2)
    refused = command(*words, "-o", tmp_path / "held", "--hold-out", 2)
    assert (refused.code, "'validation' of the mode" in refused.err) == (2, True)


def test_simulate_names_classes_that_nothing_can_learn(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_manifest(toy(), tmp_path / "toy")
    run.simulate(tmp_path / "toy", tmp_path / "some", "by_data_set", keep={"organ12": ["liver", "kidney"]})
    assert "no training case annotates spleen, pancreas, aorta" in caplog.text


@pytest.mark.parametrize(
    ("name", "number"),
    [("Organ12_0031", 31), ("volume-0", 0), ("kits_case_00160", 160), ("7_ct", 7), ("phantom", -1)],
)
def test_the_number_of_a_case_is_the_last_in_its_id(name: str, number: int):
    assert number_of(name) == number


def test_numbers_in_a_row_are_written_as_ranges():
    assert [ranges(x) for x in ([5, 1, 2, 3, 9], [1, 2], [4], [])] == ["1-3, 5, 9", "1, 2", "4", ""]
