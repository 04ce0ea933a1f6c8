"""The same scan under two names: found by its voxels, kept together in one group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from labelwise.cohort.split import split_cases
from labelwise.quality.duplicates import find_duplicates, in_one_group
from tiny_cohort import make_case, manifest_of, paper_case, write_nifti


def test_equal_voxels_are_found_whatever_file_name_type_and_axis_order(tmp_path: Path):
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    first = make_case(tmp_path, "a", 1)
    write_nifti(first.images[0], voxels)
    turned = make_case(tmp_path, "b", 1)
    nib.save(nib.Nifti1Image(voxels[::-1].astype(np.float32), np.diag([-1, 1, 1, 1])), turned.images[0])
    other = make_case(tmp_path, "c", 1)
    manifest = manifest_of(first, replace(turned, data_set="elsewhere"), other)
    seen = []
    found, unread = find_duplicates(
        manifest, workers=1, progress=lambda task, done, total: seen.append((done, total))
    )
    assert [[case.id for case in cases] for cases in found] == [["a", "b"]]
    assert unread == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_images_that_cannot_be_read_are_equal_to_nothing(tmp_path: Path):
    cases = [make_case(tmp_path, name, 1) for name in "abc"]
    for case in cases[:2]:
        case.images[0].write_bytes(b"nothing")
    assert find_duplicates(manifest_of(*cases), workers=1) == ([], ["a", "b"])


def test_workers_find_the_same(tmp_path: Path):
    cases = [make_case(tmp_path, name, 1) for name in "abc"]
    (tmp_path / "c.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    found, _ = find_duplicates(manifest_of(*cases), workers=2)
    assert [[case.id for case in same] for same in found] == [["a", "c"]]


def test_whole_groups_are_united_and_no_split_cuts_them():
    cases = [paper_case(i, group=f"p{i // 2}") for i in range(12)]  # two scans of each of six patients
    manifest = manifest_of(*cases)
    united = in_one_group(manifest, [[cases[1], cases[4]], [cases[5], cases[8]], [cases[11], cases[10]]])
    groups = [case.group for case in united.cases]
    assert groups == ["p0", "p0", "p1", "p1", "p0", "p0", "p3", "p3", "p0", "p0", "p5", "p5"]
    for seed in range(8):
        after = split_cases(united, validation=1, test=1, seed=seed)
        assert len({case.split for case in after.cases if case.group == "p0"}) == 1
