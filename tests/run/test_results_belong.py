"""Results belong to what made them, and scans to their folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK

from conftest import tiny_config
from labelwise import DataError, run
from labelwise.cohort.manifest import read_case_image, read_manifest, write_manifest
from labelwise.formats import Layout, read_image, read_labels, write_image
from labelwise.loading.sampling import Sampler, SamplingConfig
from labelwise.types import Case, LabelSpace, Volume

pytestmark = pytest.mark.usefixtures("one_process")
STRUCTURES = LabelSpace(("background", "liver", "spleen"))


@pytest.mark.parametrize("other", ["validation", "test"])
def test_a_patient_in_several_splits_is_not_trained_with(tiny_cohort, tmp_path, other):
    manifest = read_manifest(tiny_cohort)
    patient = manifest.split("train")[0].group
    cases = [replace(case, group=patient) if case.split == other else case for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), tmp_path / "m")
    with pytest.raises(DataError, match=f"patient '{patient}' is in train and {other}"):
        run.train(tiny_config(tmp_path / "m"), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_scan_that_was_replaced_on_its_grid_is_not_taken_for_the_old_one(tiny_cohort, tiny_run, tmp_path):
    manifest = read_manifest(tiny_cohort)
    scan = read_case_image(manifest.split("test")[0], manifest)
    write_image(tmp_path / "in" / "a.nii.gz", scan)
    assert not run.predict(tiny_run, tmp_path / "in", tmp_path / "out").failed
    assert not run.predict(tiny_run, tmp_path / "in", tmp_path / "out").failed
    write_image(tmp_path / "in" / "a.nii.gz", Volume(scan.data[:, ::-1].copy(), scan.affine))
    assert "was replaced" in run.predict(tiny_run, tmp_path / "in", tmp_path / "out").failed["a"]
    assert not run.predict(tiny_run, tmp_path / "in", tmp_path / "out", overwrite=True).failed


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_decides_nothing(seed):
    known = [("liver", "spleen"), ("liver",), ()]
    cases = [
        Case(f"c{number}", (Path("x"),), labels=Path("y"), annotated=frozenset(known[number % 3]))
        for number in range(7)
    ]
    turned = [cases[place] for place in np.random.default_rng(seed).permutation(7)]
    config = SamplingConfig(labelled_cases=2, unlabelled_cases=2)
    for step in range(4):
        drawn = [
            [each[draw.case].id for draw in Sampler(each, STRUCTURES, config, seed).draws(step)]
            for each in (cases, turned)
        ]
        assert drawn[0] == drawn[1]


# voxels outside of the folder


def raw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.arange(120, dtype=np.uint8).tofile(path)
    return path


NHDR = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 5 6\nencoding: raw\ndata file: {}\n"
MHD = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_UCHAR\nElementDataFile = {}\n"


@pytest.mark.parametrize(("ending", "header"), [("nhdr", NHDR), ("nrrd", NHDR + "\n"), ("mhd", MHD)])
@pytest.mark.parametrize("place", ["../secret.raw", "sub/../../secret.raw", "{absolute}"])
def test_headers_that_name_files_elsewhere_are_refused(tmp_path, ending, header, place):
    raw(tmp_path / "secret.raw")
    file = tmp_path / "in" / f"a.{ending}"
    file.parent.mkdir()
    file.write_text(header.format(place.format(absolute=tmp_path / "secret.raw")))
    for read in (lambda: read_image([file]), lambda: read_labels(file)):
        with pytest.raises(DataError, match="outside of its folder"):
            read()


@pytest.mark.parametrize(("ending", "header"), [("nhdr", NHDR), ("mhd", MHD)])
def test_headers_that_name_files_beside_them_are_read(tmp_path, ending, header):
    raw(tmp_path / "in" / "parts" / "voxels.raw")
    file = tmp_path / "in" / f"a.{ending}"
    file.write_text(header.format("parts/voxels.raw"))
    assert np.array_equal(np.sort(read_labels(file).data.ravel()), np.arange(120))


def test_an_attached_nrrd_is_read(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(tmp_path / "a.nrrd"))
    assert read_labels(tmp_path / "a.nrrd").data.all()


def external(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (4, 5, 6), "u1", external=[(name, 0, 120)])


def linked(path: Path, name: str) -> None:
    with h5py.File(path, "w") as file:
        file["image"] = h5py.ExternalLink(name, "image")


def virtual(path: Path, name: str) -> None:
    layout = h5py.VirtualLayout((4, 5, 6), "u1")
    layout[:] = h5py.VirtualSource(name, "image", (4, 5, 6))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("image", layout)


@pytest.mark.parametrize("write", [external, linked, virtual])
@pytest.mark.parametrize("place", ["../secret", "{absolute}"])
def test_hdf5_files_that_keep_their_voxels_elsewhere_are_refused(tmp_path, write, place):
    secret = tmp_path / "secret"
    if write is external:
        raw(secret)
    else:
        with h5py.File(secret, "w") as file:
            file["image"] = np.ones((4, 5, 6), "u1")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.h5", place.format(absolute=secret))
    with pytest.raises(DataError, match="outside of its folder"):
        read_image([tmp_path / "in" / "a.h5"], Layout())


def test_an_hdf5_file_with_its_own_voxels_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.ones((4, 5, 6), "u1")
    assert read_image([tmp_path / "a.h5"], Layout()).data.all()
