"""The states of classes in manifest.csv: what is written is read, and contradictions are refused by their cell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labelwise.cohort.manifest import DataSet, Manifest, read_manifest, write_manifest
from labelwise.errors import DataError
from labelwise.types import Case, LabelSpace, Proposal

SPACE = LabelSpace(("background", "liver", "spleen", "kidneys"))
DATA_SET = DataSet("north", {0: "background", 1: "liver", 2: "spleen", 3: "kidneys"}, "ct")


def manifest(folder: Path) -> Manifest:
    proposal = Proposal(folder / "proposals/ab/a.nii.gz", "ab", frozenset({"kidneys"}))
    case = Case(
        "a", (folder / "a.nii.gz",), folder / "a_labels.nii.gz", frozenset({"liver", "spleen"}), data_set="north",
        verified=frozenset({"liver"}), proposals=(proposal,),
    )  # fmt: skip
    return Manifest(SPACE, {"north": DATA_SET}, (case, Case("b", (folder / "b.nii.gz",), data_set="north")))


def test_states_and_proposals_are_written_and_read(tmp_path):
    written = manifest(tmp_path)
    write_manifest(written, tmp_path)
    assert read_manifest(tmp_path) == written
    assert (
        "liver=verified;kidneys=predicted:ab,ab=proposals/ab/a.nii.gz"
        in (tmp_path / "manifest.csv").read_text()
    )
    assert written.cases[0].states == {"liver": "verified", "spleen": "annotated", "kidneys": "predicted"}


def test_a_manifest_without_reviews_has_no_further_columns(tmp_path):
    plain = manifest(tmp_path)
    write_manifest(plain.replace_cases(plain.cases[1:]), tmp_path)
    assert (tmp_path / "manifest.csv").read_text().splitlines()[
        0
    ] == "id,images,labels,annotated,group,data_set,split"


def test_who_hides_an_annotation_hides_its_state_and_who_annotates_needs_no_proposal(tmp_path):
    case = manifest(tmp_path).cases[0]
    assert replace(case, annotated=frozenset({"spleen"})).states == {
        "spleen": "annotated",
        "kidneys": "predicted",
    }
    assert replace(case, annotated=frozenset({"kidneys"})).proposals == ()


@pytest.mark.parametrize(
    ("states", "proposals", "message"),
    [
        ("spleen=predicted:ab", "ab=p.nii.gz", "'spleen' is predicted, but stands in the column 'annotated'"),
        ("kidneys=corrected", "", "'kidneys' is corrected, but stands not in the column 'annotated'"),
        ("liver=corrected;liver=verified", "", "'liver' has two states"),
        ("livr=corrected", "", "unknown class 'livr'; did you mean 'liver'"),
        ("liver=corected", "", "unknown state 'corected'; did you mean 'corrected'"),
        ("kidneys=predicted", "", "a predicted class names its model"),
        ("kidneys=predicted:ab", "", "the label map of model 'ab' is not named"),
        ("", "ab=p.nii.gz", "no class is predicted by model 'ab'"),
        ("kidneys=predicted:ab", "p.nii.gz", "the cell cannot be understood"),
    ],
)
def test_contradictory_states_are_refused_by_their_cell(tmp_path, states, proposals, message):
    write_manifest(manifest(tmp_path), tmp_path)
    row = f"a,a.nii.gz,a_labels.nii.gz,liver;spleen,,north,,{states},{proposals}"
    head = "id,images,labels,annotated,group,data_set,split,states,proposals"
    (tmp_path / "manifest.csv").write_text(f"{head}\n{row}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(tmp_path)
    assert "row 2, column" in str(caught.value)
