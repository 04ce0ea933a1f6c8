"""The manifest: what is written is read back, what is garbled is refused, labels say what is known."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.manifest import (
    DataSet,
    Manifest,
    merge,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.errors import ConfigError, DataError
from labelwise.formats import Layout
from labelwise.types import IGNORE, Case, LabelSpace
from tiny_cohort import SHAPE, SPACE, VALUES, make_case, manifest_of, paper_case, write_map, write_nifti

HEADER = "id,images,labels,annotated,group,data_set,split\n"
TOML = """schema = 1
classes = ["background", "liver", "spleen"]
[sources.lits]
modality = "ct"
[sources.lits.values]
background = [0]
liver = [1, 2]
spleen = [3]
"""


def write(
    folder: Path, rows: str, *, header: str = HEADER, toml: str = TOML, encoding: str = "utf-8"
) -> Path:
    (folder / "dataset.toml").write_text(toml, encoding="utf-8")
    (folder / "manifest.csv").write_bytes((header + rows).encode(encoding))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    return str(caught.value)


# writing and reading


@pytest.mark.parametrize("place", ["data", "data/sub", "elsewhere/far"])
def test_what_is_written_next_to_or_far_from_the_scans_is_read_back_equal(tmp_path: Path, place: str):
    manifest = manifest_of(
        make_case(tmp_path / "data", "a", 1, 3, group="patient 1", split="test"),
        make_case(tmp_path / "data", "ä b", 1, annotated=["liver", "spleen"], data_set="site, two"),
        make_case(tmp_path / "data", "c"),
    )
    file = write_manifest(manifest, tmp_path / place)
    assert read_manifest(file) == manifest
    assert read_manifest(tmp_path / place) == manifest


def test_paths_given_relative_to_the_working_folder_are_found_again_from_anywhere(
    tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    case = make_case(Path("scans"), "a", 1)
    write_manifest(manifest_of(case), Path("project"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert read_manifest("../project").cases[0].images == (tmp_path / "scans" / "a.nii.gz",)


def test_a_folder_with_manifest_and_scans_can_be_moved(tmp_path: Path):
    write_manifest(manifest_of(make_case(tmp_path / "old", "a", 1)), tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    case = read_manifest(tmp_path / "new").cases[0]
    assert case.images[0].is_file()
    assert case.labels == tmp_path / "new" / "a_labels.nii.gz"


def test_layout_and_class_names_with_spaces_survive_the_round_trip(tmp_path: Path):
    layout = Layout(axes="zyx", spacing_mm=(0.7, 0.7, 5.0), label_key="scribble")
    values = {0: "background", 1: 'left "big" atrium', -1: "ignore", 300: "Ünal's node"}
    names = ("background", 'left "big" atrium', "Ünal's node")
    data_set = DataSet("a.b c", values, "mr", layout)
    manifest = Manifest(
        LabelSpace(names),
        {"a.b c": data_set},
        (paper_case(1, annotated=frozenset(names[1:]), data_set="a.b c"),),
    )
    assert read_manifest(write_manifest(manifest, tmp_path)) == manifest


def test_the_table_is_what_a_person_would_write(tmp_path: Path):
    cases = (
        make_case(tmp_path, "a", 1, group="p1"),
        make_case(tmp_path, "b", 1, annotated=["spleen", "liver"]),
        make_case(tmp_path, "c"),
    )
    text = write_manifest(manifest_of(*cases), tmp_path).read_text()
    assert text == (
        HEADER
        + "a,a.nii.gz,a_labels.nii.gz,all,p1,site,train\n"
        + "b,b.nii.gz,b_labels.nii.gz,liver;spleen,,site,train\n"
        + "c,c.nii.gz,,,,site,train\n"
    )


@pytest.mark.parametrize(
    ("first", "second"), [("Case1", "case1"), ("a", "A"), ("Ärzte", "ärzte"), ("a", "a")]
)
def test_ids_that_would_share_a_file_on_some_machines_are_refused(tmp_path: Path, first: str, second: str):
    with pytest.raises(DataError, match="same id"):
        manifest_of(paper_case(1, id=first), paper_case(2, id=second))
    write(
        tmp_path,
        "".join(f"{name},{number}.nii.gz,,,,lits,train\n" for number, name in enumerate((first, second))),
    )
    with pytest.raises(DataError, match="stands twice: first in row 2"):
        read_manifest(tmp_path)


def test_cases_of_two_data_sets_whose_ids_differ_in_capitals_only_are_told_apart():
    both = merge(
        [manifest_of(paper_case(1, id=id, data_set=name)) for name, id in (("x", "Case1"), ("y", "case1"))]
    )
    assert [case.id for case in both.cases] == ["x_Case1", "y_case1"]


def test_a_path_that_holds_the_separator_is_refused(tmp_path: Path):
    manifest = manifest_of(paper_case(1, images=(Path("/scans/a;b.nii.gz"),)))
    with pytest.raises(DataError, match="cannot stand in a table"):
        write_manifest(manifest, tmp_path)


def test_several_images_of_a_case_are_joined_by_semicolons(tmp_path: Path):
    write(tmp_path, "a,t1.nii.gz; t2.nii.gz,l.nii.gz,all,,lits,train\n")
    assert read_manifest(tmp_path).cases[0].images == (tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz")


def test_marks_that_spreadsheets_leave_are_accepted(tmp_path: Path):
    rows = "a,a.nii.gz,l.nii.gz, liver ; spleen ,,lits,train,,\r\n,,,,,,,,\r\n\r\n"
    write(tmp_path, rows, header=HEADER.replace("\n", ",,\r\n"), encoding="utf-8-sig")
    case = read_manifest(tmp_path).cases[0]
    assert case.annotated == {"liver", "spleen"}
    assert case.group == "a"


def test_columns_may_stand_in_any_order(tmp_path: Path):
    write(tmp_path, "test,lits,a,a.nii.gz,,,\n", header="split,data_set,id,images,labels,annotated,group\n")
    assert read_manifest(tmp_path).cases[0].split == "test"


# refusals


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("", ["no rows"]),
        (
            "a,a.nii.gz,l.nii.gz,liver;splen,,lits,train\n",
            ["row 2", "'annotated'", "did you mean 'spleen'", "case 'a'"],
        ),
        ("a,a.nii.gz,l.nii.gz,all;liver,,lits,train\n", ["'all' stands beside"]),
        ("a,a.nii.gz,,liver,,lits,train\n", ["row 2", "no label file"]),
        ("a,a.nii.gz,,,,lits,trian\n", ["'split'", "did you mean 'train'"]),
        ("a,a.nii.gz,,,,list,train\n", ["'data_set'", "did you mean 'lits'"]),
        ("a,,,,,lits,train\n", ["'images'", "at least one image"]),
        (
            "a,t1.nii.gz;;flair.nii.gz,,,,lits,train\n",
            ["row 2", "'images'", "has no name", "with - for an image"],
        ),
        ("a,t1.nii.gz;,,,,lits,train\n", ["'images'", "has no name"]),
        ("a,x,,,,lits,\nb,x,,,,lits,\na,y,,,,lits,\n", ["row 4", "'id'", "first in row 2"]),
        (",a.nii.gz,,,,lits,train\n", ["row 2", "no id"]),
        ("x/y,a.nii.gz,,,,lits,train\n", ["'id'", "file name"]),
        ("a,a.nii.gz,,lits,train\n", ["row 2", "5 cells", "7 columns"]),
        ("a,a.nii.gz,,,,lits,train,more\n", ["row 2", "8 cells"]),
        ("a,a\x00.nii.gz,,,,lits,train\n", ["row 2", "not UTF-8 text"]),
        ('a,"a.nii.gz,,,,lits,train\n', ["row 2", "cannot be read"]),
    ],
)
def test_a_wrong_row_is_refused_with_its_place(tmp_path: Path, rows: str, parts: list[str]):
    message = refusal(write(tmp_path, rows))
    assert "manifest.csv" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("id,images,labels,annotated,group,data_set\n", ["missing column split", "row 1"]),
        ("id,image,labels,annotated,group,data_set,split\n", ["'image' is unknown", "did you mean 'images'"]),
        ("id,id,images,labels,annotated,group,data_set,split\n", ["'id' stands twice"]),
        ("id;images;labels;annotated;group;data_set;split\n", ["not separated by commas", "comma delimited"]),
    ],
)
def test_a_wrong_first_row_is_refused(tmp_path: Path, header: str, parts: list[str]):
    message = refusal(write(tmp_path, "a,x,,,,lits,train\n", header=header))
    for part in parts:
        assert part in message


def test_a_table_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path):
    message = refusal(write(tmp_path, "a,x,,,,lits,\nfußgänger,x,,,,lits,\n", encoding="latin-1"))
    assert "not UTF-8" in message
    assert "comma delimited" in message
    assert "row 3" in message


def test_an_empty_file_and_a_missing_file_are_refused(tmp_path: Path):
    assert "no such table" in refusal(tmp_path)
    assert "empty" in refusal(write(tmp_path, "", header=""))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("schema = 1", "schema = 2"), ["newer version", "schema = 2"]),
        (("liver = [1, 2]", "livre = [1, 2]"), ["unknown class 'livre'", "did you mean 'liver'"]),
        (("liver = [1, 2]", 'liver = [1, "x2"]'), ["liver", "x2"]),
        (("liver = [1, 2]", "liver = [1, 3]"), ["the value 3 stands for two classes"]),
        (("liver = [1, 2]", "liver = [1, 70000]"), ["70000 cannot be a label value"]),
        (('modality = "ct"', 'modalty = "ct"'), ["modalty", "did you mean 'modality'"]),
        (('modality = "ct"', 'modality = "CT"'), ["modality", "'ct'"]),
        (('"background", "liver"', '"liver"'), ["starts with 'background'"]),
        (
            ("[sources.lits.values]", "[sources.lits.layout]\naxis = 'xyz'\n[sources.lits.values]"),
            ["axis", "did you mean"],
        ),
        (
            (
                "[sources.lits.values]",
                "[sources.lits.layout]\nspacing_mm = [1, 0, 1]\n[sources.lits.values]",
            ),
            ["positive"],
        ),
        (("schema = 1", "schema = "), ["cannot be read", "dataset.toml"]),
        (("schema = 1\n", ""), ["schema"]),
        (('classes = ["background"', 'classes = ["background", "all"'), ["'all' cannot be the name"]),
    ],
)
def test_a_wrong_class_table_is_refused(tmp_path: Path, change: tuple[str, str], parts: list[str]):
    message = refusal(write(tmp_path, "a,x,,,,lits,train\n", toml=TOML.replace(*change)))
    for part in parts:
        assert part in message


def test_a_missing_class_table_is_refused(tmp_path: Path):
    (write(tmp_path, "a,x,,,,lits,train\n") / "dataset.toml").unlink()
    assert "class table is missing" in refusal(tmp_path)


def test_all_is_refused_where_the_data_set_cannot_show_every_class(tmp_path: Path):
    toml = TOML.replace("spleen = [3]\n", "")
    message = refusal(write(tmp_path, "a,x,l,all,,lits,train\n", toml=toml))
    assert "cannot show spleen" in message
    assert "expected  liver" in message


@pytest.mark.parametrize(
    "cases", [(), (paper_case(1), paper_case(1)), (paper_case(1, id=".x"),), (paper_case(1, data_set="x"),)]
)
def test_a_manifest_made_in_memory_is_checked_too(cases: tuple[Case, ...]):
    with pytest.raises(DataError):
        Manifest(SPACE, {"site": DataSet("site", VALUES, "ct")}, cases)


def test_a_manifest_can_be_sent_to_another_process():
    manifest = manifest_of(paper_case(1))
    assert pickle.loads(pickle.dumps(manifest)) == manifest


# labels


def test_convention_values_become_class_indices_through_the_table_of_the_data_set(tmp_path: Path):
    manifest = manifest_of(make_case(tmp_path, "a", 1, 2, 3, 7, 255, 0))
    labels = read_case_labels(manifest.cases[0], manifest)
    assert labels.data.dtype == np.uint8
    assert labels.data.ravel()[:7].tolist() == [1, 1, 2, 3, IGNORE, 0, 0]


def test_convention_a_structure_that_is_not_annotated_is_erased_to_zero(tmp_path: Path):
    manifest = manifest_of(make_case(tmp_path, "a", 1, 2, 3, 7, 255, annotated=["spleen"]))
    assert read_case_labels(manifest.cases[0], manifest).data.ravel()[:6].tolist() == [0, 0, 2, 0, IGNORE, 0]
    assert manifest.annotated(manifest.cases[0]).tolist() == [False, False, True, False]


def test_convention_a_case_without_annotation_is_ignore_everywhere_and_its_label_file_is_not_opened(
    tmp_path: Path,
):
    hidden = replace(make_case(tmp_path, "a", 1), annotated=frozenset())
    assert hidden.labels is not None
    hidden.labels.write_bytes(b"not a label map")
    manifest = manifest_of(hidden, make_case(tmp_path, "b"))
    for case in manifest.cases:
        labels = read_case_labels(case, manifest)
        assert labels.shape == SHAPE
        assert (labels.data == IGNORE).all()


def test_an_unknown_value_is_refused_with_its_number_of_voxels_and_a_remedy(tmp_path: Path):
    manifest = manifest_of(make_case(tmp_path, "a", 1, 16, 16, 9))
    with pytest.raises(DataError) as caught:
        read_case_labels(manifest.cases[0], manifest)
    message = str(caught.value)
    assert "case 'a': label map contains values 9, 16" in message
    assert "1 voxel of value 9 (0.83 %); 2 voxels of value 16 (1.7 %)" in message
    assert "a_labels.nii.gz" in message
    assert "ignore = [9]" in message


@pytest.mark.parametrize("value", [-2, 256, 3000])
def test_a_value_far_outside_the_table_is_refused(tmp_path: Path, value: int):
    case = make_case(tmp_path, "a", 1)
    labels = np.full(SHAPE, value, dtype=np.int16)
    write_nifti(tmp_path / "a_labels.nii.gz", labels)
    manifest = manifest_of(case)
    with pytest.raises(DataError, match=f"value {value}"):
        read_case_labels(case, manifest)


def test_negative_values_may_have_a_meaning(tmp_path: Path):
    case = make_case(tmp_path, "a", 1)
    labels = np.zeros(SHAPE, dtype=np.int16)
    labels[0, 0, :2] = -1, 5
    write_nifti(tmp_path / "a_labels.nii.gz", labels)
    data_set = DataSet("site", {-1: "ignore", 0: "background", 5: "liver"}, "ct")
    manifest = Manifest(
        LabelSpace(("background", "liver")),
        {"site": data_set},
        (replace(case, annotated=frozenset({"liver"})),),
    )
    assert read_case_labels(manifest.cases[0], manifest).data[0, 0, :3].tolist() == [IGNORE, 1, 0]


def test_the_image_of_a_case_is_read_through_the_layout_of_its_data_set(tmp_path: Path):
    manifest = manifest_of(make_case(tmp_path, "a", 1))
    assert read_case_image(manifest.cases[0], manifest).data.shape == (1, *SHAPE)


# several data sets


def single(name: str, data_set: str, structure: str, **fields: str) -> Manifest:
    space = LabelSpace(("background", structure))
    case = Case(
        name,
        (Path(f"/{data_set}/{name}"),),
        Path(f"/{data_set}/l"),
        frozenset({structure}),
        data_set=data_set,
        **fields,
    )
    return Manifest(space, {data_set: DataSet(data_set, {0: "background", 1: structure}, "ct")}, (case,))


def test_data_sets_are_joined_by_class_name_in_order_of_appearance():
    merged = merge([single("a", "lits", "liver"), single("b", "kits", "kidney"), single("c", "msd", "liver")])
    assert merged.label_space.names == ("background", "liver", "kidney")
    assert [merged.annotated(case).tolist() for case in merged.cases] == [
        [False, True, False],
        [False, False, True],
        [False, True, False],
    ]


def test_merged_values_still_mean_what_they_mean_in_each_data_set(tmp_path: Path):
    merged = merge([single("a", "lits", "liver"), single("b", "kits", "kidney")])
    labels = write_map(tmp_path / "l.nii.gz", 1, 0)
    for case, expected in zip(merged.cases, (1, 2), strict=True):
        assert read_case_labels(replace(case, labels=labels), merged).data.flat[0] == expected


def test_ids_that_occur_twice_are_prefixed_and_given_groups_are_kept():
    one, two = single("001", "lits", "liver"), single("001", "kits", "kidney", group="patient 7")
    merged = merge([one, two])
    assert [(case.id, case.group) for case in merged.cases] == [
        ("lits_001", "lits_001"),
        ("kits_001", "patient 7"),
    ]


def test_two_different_data_sets_of_one_name_are_refused():
    with pytest.raises(DataError, match="two different data sets"):
        merge([single("a", "site", "liver"), single("b", "site", "kidney")])


def test_a_class_of_the_label_space_may_not_be_called_ignore():
    with pytest.raises((DataError, ConfigError)):
        Manifest(LabelSpace(("background", "ignore")), {}, (paper_case(1),))


def test_a_folder_in_the_place_of_the_table_is_refused(tmp_path: Path):
    (tmp_path / "manifest.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path)


def test_all_wrong_rows_are_told_at_once(tmp_path: Path):
    rows = "a,a.nii,,,,lits,trian\nb,b.nii,,,,lits,train\nb,c.nii,,,,lits,train\nc,c.nii,c.nii,lver,,lits,train\n"
    message = refusal(write(tmp_path, rows))
    assert "3 rows of the table are wrong" in message
    for part in (
        "row 2, column 'split'",
        "row 4, column 'id'",
        "first in row 3",
        "row 5",
        "did you mean 'liver'",
    ):
        assert part in message


def test_a_table_with_many_wrong_rows_is_not_told_in_full(tmp_path: Path):
    message = refusal(write(tmp_path, "".join(f"c{i},c.nii,,,,lits,x\n" for i in range(50))))
    assert "50 rows" in message
    assert message.count("unknown split") == 20
    assert message.endswith("and 30 more\n  file      " + str(tmp_path / "manifest.csv"))
