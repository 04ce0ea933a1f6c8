"""Segments that overlap, out as DICOM-SEG and in again, voxel by voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dicom_labels import labels_on, series

from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.formats import Layout, read_labels, segment_names, write_labels
from labelwise.types import Volume


def test_overlapping_segments_go_out_as_dicom_seg_and_come_in_again(tmp_path: Path, command):
    """Whole tumour, of shell and core, beside both; two series, one segmentation for each."""
    archive = tmp_path / "archive"
    for number in range(2):
        scan = series(archive / f"p{number}" / "ct", PatientID=f"P{number}")
        labels = labels_on(scan, number)
        labels.data[labels.data > 2] = 0
        write_labels(tmp_path / f"{number}.nii.gz", labels, names=("background", "shell", "core"))
        target = archive / f"p{number}" / "seg" / "a.seg.dcm"
        target.parent.mkdir()
        answer = command(
            "convert",
            tmp_path / f"{number}.nii.gz",
            "--like",
            scan,
            "-o",
            target,
            "--region",
            "whole tumour=shell,core",
        )
        assert answer.code == 0, answer.err
        assert segment_names(target) == ("shell", "core", "whole tumour")
        back = read_labels(target, Layout(segments=("whole tumour",)), scan)
        assert np.array_equal(back.data, labels.data > 0)
        back = read_labels(target, Layout(segments=("shell", "core")), scan)
        assert np.array_equal(back.data, labels.data)
    answer = command("import", archive, "-o", tmp_path / "data", "--overlap", "kept")
    assert answer.code == 0, answer.err
    manifest = read_manifest(tmp_path / "data")
    assert set(manifest.label_space.structures) == {"shell", "core"}
    assert manifest.label_space.classes_of("whole tumour") == {"shell", "core"}
    for number, case in enumerate(manifest.cases):
        truth = read_labels(tmp_path / f"{number}.nii.gz").data
        found = read_case_labels(case, manifest).data
        assert np.array_equal(found == manifest.label_space.index("core"), truth == 2)
        assert np.array_equal(found == manifest.label_space.index("shell"), truth == 1)


def test_regions_in_a_format_that_has_no_overlaps_are_refused(tmp_path: Path, command):
    labels = Volume(np.array([0, 1, 2], np.uint8).reshape(3, 1, 1), np.eye(4))
    write_labels(tmp_path / "a.nii.gz", labels, names=("background", "shell", "core"))
    for target in ("b.nii.gz", "b.seg.nrrd", "b.glb"):
        answer = command(
            "convert", tmp_path / "a.nii.gz", "-o", tmp_path / target, "--region", "whole=shell,core"
        )
        assert answer.code != 0
        assert "DICOM-SEG" in answer.err
        assert not (tmp_path / target).exists()
    answer = command(
        "convert", tmp_path / "a.nii.gz", "-o", tmp_path / "b.dcm", "--region", "whole=shell,kore"
    )
    assert "the region 'whole' holds the unknown class 'kore'" in answer.err
