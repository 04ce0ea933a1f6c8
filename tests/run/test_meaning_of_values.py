"""One answer to what the integers of a label file mean, for import, check, measure, evaluate and convert."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from labelwise import run
from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.formats import value_names

sys.path.append(str(Path(__file__).parent))
from clinic import BOXES, SHAPE, WAYS, box, write_named, write_scan

STRUCTURES = tuple(BOXES)


def imported(folder: Path, cases: int, **options: object):
    for number in range(cases):
        write_scan(folder / "images" / f"c{number}.nii.gz", number)
    stated = {"classes": dict(zip(STRUCTURES, (1, 2, 3), strict=True)), "modality": "ct", **options}
    return run.import_data([folder], folder / "m", **stated)


@pytest.mark.parametrize("way", WAYS)
def test_every_numbering_of_named_structures_gives_the_same_classes(tmp_path, way):
    numberings = [(1, 2, 3), (2, 1, 3), (3, 1, 2), (7, 100, 4)]
    for number, values in enumerate(numberings):
        table = dict(zip(STRUCTURES, values, strict=True))
        spelt = {value: name.upper() for name, value in table.items()}
        write_named(tmp_path / "labels", f"c{number}", way, table, spelt)
    manifest = imported(tmp_path, len(numberings))
    for case in manifest.cases:
        labels = read_case_labels(case, manifest).data
        for index, structure in enumerate(STRUCTURES, start=1):
            assert np.array_equal(labels == index, box(structure)), (case.id, structure)
        assert case.annotated == set(STRUCTURES)
    measured = run.measure(tmp_path / "m")
    assert {(row.structure, row.voxels) for row in measured.rows} == {
        (name, int(box(name).sum())) for name in STRUCTURES
    }
    codes = {problem.code for problem in run.check(tmp_path / "m").problems}
    assert not codes & {"names-contradict", "unknown-label-value", "annotated-but-not-drawn"}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_file_does_not_name_is_not_annotated_in_it(tmp_path, way):
    write_named(tmp_path / "labels", "c0", way, {"liver": 2}, {2: "Liver"})
    write_named(tmp_path / "labels", "c1", way, {"liver": 1, "spleen": 2}, {1: "liver", 2: "spleen"})
    manifest = imported(tmp_path, 2)
    assert [sorted(case.annotated) for case in manifest.cases] == [["liver"], ["liver", "spleen"]]


@pytest.mark.parametrize("way", WAYS)
def test_names_that_are_no_classes_are_refused_with_both_words(tmp_path, way):
    write_named(tmp_path / "labels", "c0", way, {"liver": 1}, {1: "Tumour of the left lobe"})
    with pytest.raises(DataError, match="contradict") as caught:
        imported(tmp_path, 1)
    assert "Tumour of the left lobe" in str(caught.value)
    assert "value 1 is 'liver'" in str(caught.value)
    manifest = imported(tmp_path, 1, file_names="ignored")
    assert np.array_equal(read_case_labels(manifest.cases[0], manifest).data == 1, box("liver"))


def test_names_that_say_nothing_leave_the_numbers_to_the_table(tmp_path):
    for number, words in enumerate(("Segment_{}", "label {}", "{}", "ROI-{}")):
        names = {value: words.format(value) for value in (1, 2)}
        write_named(tmp_path / "labels", f"c{number}", "slicer", {"liver": 1, "spleen": 2}, names)
    manifest = imported(tmp_path, 4)
    for case in manifest.cases:
        labels = read_case_labels(case, manifest).data
        assert np.array_equal(labels == 1, box("liver"))
        assert np.array_equal(labels == 2, box("spleen"))


def test_header_and_record_that_contradict_each_other_are_refused(tmp_path):
    file = write_named(
        tmp_path / "labels", "c0", "nifti", {"liver": 1, "spleen": 2}, {1: "liver", 2: "spleen"}
    )
    write_named(tmp_path / "other", "c0", "record", {"liver": 1}, {1: "spleen"})
    (tmp_path / "other" / "c0.json").rename(tmp_path / "labels" / "c0.json")
    with pytest.raises(DataError, match=r"'liver' in its header, 'spleen' in c0\.json"):
        value_names(file)
    with pytest.raises(DataError, match="contradict each other"):
        imported(tmp_path, 1)


@pytest.mark.parametrize(("others", "expected"), [("background", 0), ("ignore", 255)])
@pytest.mark.parametrize("way", [*WAYS, "plain"])
def test_a_few_classes_of_a_large_map_are_one_option(tmp_path, way, others, expected):
    values = {"liver": 60, "spleen": 3, "aorta": 117}
    names = {value: name for name, value in values.items()}
    write_named(tmp_path / "labels", "c0", "record" if way == "plain" else way, values, names)
    if way == "plain":
        (tmp_path / "labels" / "c0.json").unlink()
    manifest = imported(tmp_path, 1, classes={"liver": 60}, others=others)
    labels = read_case_labels(manifest.cases[0], manifest).data
    assert np.array_equal(labels == 1, box("liver"))
    assert set(labels[box("spleen") | box("aorta")].tolist()) == {expected}
    assert labels[tuple(size - 1 for size in SHAPE)] == 0
    assert not [
        problem for problem in run.check(tmp_path / "m").problems if problem.code == "unknown-label-value"
    ]


def test_without_the_option_values_without_a_class_are_an_error(tmp_path):
    write_named(tmp_path / "labels", "c0", "slicer", {"liver": 60, "spleen": 3}, {60: "liver", 3: "spleen"})
    manifest = imported(tmp_path, 1, classes={"liver": 60})
    with pytest.raises(DataError, match="--others"):
        read_case_labels(manifest.cases[0], manifest)


def test_classes_that_contradict_the_names_are_not_written(tmp_path):
    file = write_named(tmp_path, "c0", "nifti", {"liver": 1, "spleen": 2}, {1: "liver", 2: "spleen"})
    with pytest.raises(ConfigError, match="value 1 is 'liver' by the file, 'spleen' by --classes"):
        run.convert(file, tmp_path / "a.seg.nrrd", classes={"spleen": 1, "liver": 2})
    assert not (tmp_path / "a.seg.nrrd").exists()


def test_a_repaired_copy_means_what_the_file_meant(tmp_path):
    write_named(tmp_path / "labels", "c0", "caret", {"liver": 2, "spleen": 1}, {2: "liver", 1: "spleen"})
    manifest = imported(tmp_path, 1)
    file = manifest.cases[0].labels
    assert file is not None
    image = nibabel.load(file)
    floating = nibabel.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)
    floating.header.extensions.extend(image.header.extensions)
    nibabel.save(floating, file)
    report = run.check(tmp_path / "m", fix=tmp_path / "fixed")
    assert {repair.code for repair in report.repairs} == {"float-labels"}
    fixed = read_manifest(tmp_path / "fixed")
    assert np.array_equal(read_case_labels(fixed.cases[0], fixed).data == 1, box("liver"))
