"""Classes that are annotated in a part of a scan: the column `parts`, and the voxels of which something is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labelwise.cohort.data_set import DataSet
from labelwise.cohort.join import join
from labelwise.cohort.manifest import Manifest, read_case_labels, read_manifest, write_manifest
from labelwise.cohort.parts import by_part, part_text
from labelwise.errors import DataError
from labelwise.formats import write_labels
from labelwise.quality.check import check
from labelwise.quality.measure import measure_case
from labelwise.types import IGNORE, Case, LabelSpace, Part, Volume
from stored_cohort import DATA_SETS, SPACE, label_map, make_case

LIVER, SPLEEN, PANCREAS = (frozenset([structure]) for structure in SPACE.structures)
SLICES = ((None, None, (3, 5)), (None, None, (8, 8)))
BOX = (((4, 9), None, (2, 6)),)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    case = make_case(tmp_path / "files", "full_1", 0)
    return Manifest(SPACE, DATA_SETS, (replace(case, parts=(Part(LIVER, SLICES), Part(SPLEEN, BOX))),))


def write(manifest: Manifest, folder: Path, cell: str) -> Path:
    """The manifest with another cell in the column `parts`."""
    file = write_manifest(manifest, folder)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], f"{lines[1].rpartition(',')[0]},{cell}"]) + "\n")
    return file


def test_parts_are_written_and_read_as_people_write_them(manifest, tmp_path):
    file = write_manifest(manifest, tmp_path / "data")
    assert file.read_text().splitlines()[1].endswith(",liver=slices 3-5 8;spleen=box 4-9 * 2-6")
    assert read_manifest(file) == manifest
    everything = read_manifest(write(manifest, tmp_path / "all", "all=slices 2")).cases[0].parts
    assert everything == (Part(frozenset(SPACE.structures), ((None, None, (2, 2)),)),)
    assert read_manifest(write(manifest, tmp_path / "drawn", "liver=drawn")).cases[0].parts == (Part(LIVER),)


def test_a_manifest_without_parts_has_no_such_column(manifest, tmp_path):
    bare = manifest.replace_cases([replace(manifest.cases[0], parts=())])
    assert write_manifest(bare, tmp_path / "data").read_text().splitlines()[0].endswith(",split")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("lung=slices 1-2", "unknown class 'lung'"),
        ("liver=slice 1-2", "the part 'slice 1-2' cannot be understood"),
        ("liver=slices", "the part 'slices' cannot be understood"),
        ("liver=slices 9-4", "'9-4' is no range of voxels"),
        ("liver=slices 4-", "'4-' is no range of voxels"),
        ("liver=box 1-2 3-4", "the part 'box 1-2 3-4' cannot be understood"),
        ("liver=drawn;liver=slices 1", "'liver' has two parts"),
        ("all=drawn;spleen=slices 1", "'spleen' has two parts"),
    ],
)
def test_what_cannot_be_understood_is_refused_by_its_cell(manifest, tmp_path, cell, message):
    with pytest.raises(DataError, match=message) as error:
        read_manifest(write(manifest, tmp_path / "data", cell))
    assert "row 2, column 'parts'" in str(error.value)


def test_a_class_that_is_not_annotated_has_no_part(manifest, tmp_path):
    partly = manifest.replace_cases([replace(manifest.cases[0], annotated=LIVER)])
    assert partly.cases[0].parts == (Part(LIVER, SLICES),)  # who hides a class hides its part
    with pytest.raises(DataError, match="'spleen' is not annotated in this case"):
        read_manifest(write(partly, tmp_path / "data", "spleen=drawn"))


def test_one_class_cannot_be_annotated_in_two_parts(manifest):
    with pytest.raises(DataError, match="a class has two states: liver"):
        replace(manifest.cases[0], parts=(Part(LIVER, SLICES), Part(LIVER | SPLEEN, BOX)))


def test_a_voxel_is_background_only_where_all_classes_are_known(manifest):
    labels = read_case_labels(manifest.cases[0], manifest).data
    truth = label_map(0)
    in_slices, in_box = np.zeros(truth.shape, bool), np.zeros(truth.shape, bool)
    in_slices[:, :, [3, 4, 5, 8]] = True
    in_box[4:10, :, 2:7] = True
    assert (labels[in_slices & in_box] == truth[in_slices & in_box]).all()
    assert (labels[(truth == 3)] == 3).all()  # the pancreas is annotated all over the scan
    assert (labels[(truth == 1) & ~in_slices] == IGNORE).all()
    assert (labels[(truth == 2) & in_box] == 2).all()
    assert (labels[(truth == 0) & ~(in_slices & in_box)] == IGNORE).all()


def test_of_scribbles_only_what_is_drawn_is_known(manifest):
    case = replace(manifest.cases[0], parts=(Part(frozenset(SPACE.structures)),))
    labels, truth = read_case_labels(case, manifest).data, label_map(0)
    assert np.array_equal(labels, np.where(truth == 0, IGNORE, truth))


def test_a_part_beyond_the_scan_is_refused(manifest):
    case = replace(manifest.cases[0], parts=(Part(LIVER, ((None, None, (3, 14)),)),))
    with pytest.raises(DataError, match="liver is said to be annotated beyond the scan") as error:
        read_case_labels(case, manifest)
    assert "slices 3-14; the scan has 14 voxels along z" in str(error.value)
    assert "part-beyond-scan" in {each.code for each in check(manifest.replace_cases([case]))}


def test_check_tells_what_is_drawn_beyond_a_part_and_of_what_nothing_is_in_it(manifest):
    told = {each.code: each.what for each in check(manifest) if "part" in each.code}
    assert list(told) == ["drawn-beyond-part"]
    truth = label_map(0)
    beyond = (truth == 2).sum() - (truth[4:10, :, 2:7] == 2).sum()
    assert told["drawn-beyond-part"].startswith("'spleen' is annotated in a part of the scan: box 4-9 * 2-6")
    assert f"{beyond} voxels of it are drawn elsewhere" in told["drawn-beyond-part"]
    case = manifest.cases[0]
    write_labels(case.labels, Volume(np.where(truth == 1, 0, truth * np.uint8(10)), np.eye(4)))
    told = {each.code: each.what for each in check(manifest) if "part" in each.code}
    assert told["nothing-in-part"].startswith(
        "'liver' is annotated in a part of the scan: slices 3-5 8; nothing"
    )


def test_a_class_is_measured_in_its_part_and_that_is_said(manifest):
    rows = {row.structure: row for row in measure_case(manifest, with_image=False)}
    truth = label_map(0)
    assert rows["liver"].voxels == (truth[:, :, [3, 4, 5, 8]] == 1).sum()
    assert rows["spleen"].voxels == (truth[4:10, :, 2:7] == 2).sum()
    assert rows["pancreas"].voxels == (truth == 3).sum()
    assert [rows[structure].part for structure in SPACE.structures] == ["slices 3-5 8", "box 4-9 * 2-6", ""]


def test_classes_are_told_apart_by_where_they_are_annotated(manifest):
    assert by_part(manifest.cases[0]) == [
        (PANCREAS, None),
        (LIVER, Part(LIVER, SLICES)),
        (SPLEEN, Part(SPLEEN, BOX)),
    ]
    assert [part_text(part) for part in manifest.cases[0].parts] == ["slices 3-5 8", "box 4-9 * 2-6"]


def test_left_and_right_make_a_whole_only_where_both_are_known():
    sides = frozenset({"kidney_left", "kidney_right"})
    space = LabelSpace(("background", *sorted(sides)))
    data_set = DataSet("north", {0: "background", 1: "kidney_left", 2: "kidney_right"}, "ct")
    box = (((0, 1), None, None),)

    def parts_after(*parts: Part) -> tuple[frozenset[str], tuple[Part, ...]]:
        case = Case("a", (Path("/a.nii"),), Path("/l.nii"), sides, data_set="north", parts=parts)
        after = join([Manifest(space, {"north": data_set}, (case,))], {"kidneys": "join"}).cases[0]
        return after.annotated, after.parts

    whole = frozenset({"kidneys"})
    assert parts_after(Part(sides, box)) == (whole, (Part(whole, box),))
    assert parts_after() == (whole, ())
    assert parts_after(Part(frozenset({"kidney_left"}), box)) == (frozenset(), ())
