"""Surfaces: closed, looking outwards, of the right volume, at the right place, and readable by other programs."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from labelwise import anatomy, run
from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.formats import read_labels, write_labels
from labelwise.formats.mesh import surface_of, volume_of
from labelwise.types import Volume

trimesh = pytest.importorskip("trimesh", reason="needs the extra mesh")
pytest.importorskip("skimage", reason="needs the extra mesh")
NAMES = ("background", "liver", "left kidney", "right kidney", "spleen")


def oblique(mirrored: bool = False) -> np.ndarray:
    affine = np.eye(4)
    scale = np.diag((-0.9 if mirrored else 0.9, 1.1, 3.0))
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix() @ scale
    affine[:3, 3] = (-80, 40, 900)
    return affine


AFFINES = {"upright": np.diag((0.9, 1.1, 3.0, 1.0)), "oblique": oblique(), "mirrored": oblique(mirrored=True)}


def ball(shape=(30, 28, 16), centre=(14, 13, 8), radius=(11, 9, 5)) -> np.ndarray:
    places = np.indices(shape)
    return sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radius, strict=True)) < 1


def label_map() -> np.ndarray:
    """(X, Y, Z) a liver at the right and front, two kidneys; no spleen."""
    labels = np.zeros((40, 36, 20), np.uint8)
    labels[ball((40, 36, 20), (28, 22, 10), (9, 8, 7))] = 1
    labels[ball((40, 36, 20), (8, 6, 6), (4, 4, 5))] = 2
    labels[ball((40, 36, 20), (30, 6, 6), (4, 4, 5))] = 3
    return labels


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def voxel_of(affine: np.ndarray) -> float:
    return abs(float(np.linalg.det(affine[:3, :3])))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=[*AFFINES])
def test_a_surface_lies_where_the_affine_puts_the_voxels(affine):
    mask = ball()
    mesh = as_trimesh(surface_of(mask, affine))
    middle = affine @ np.append(np.argwhere(mask).mean(axis=0), 1)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(mask.sum() * voxel_of(affine), rel=0.02)  # positive: looks outwards
    assert np.abs(mesh.center_mass - middle[:3]).max() < 0.05
    # half a voxel around the ellipsoid that was drawn, in voxels
    back = (np.linalg.inv(affine) @ np.c_[mesh.vertices, np.ones(len(mesh.vertices))].T)[:3].T
    away = np.linalg.norm((back - (14, 13, 8)) / (11, 9, 5), axis=1)
    assert np.abs(away - 1).max() * 5 < 0.75


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.98), axes=st.permutations((5, 6, 9)))
def test_any_mask_gets_a_closed_surface_of_its_volume_that_looks_outwards(seed, share, axes):
    mask = np.random.default_rng(seed).random(axes) < share
    mask[tuple(n // 2 for n in axes)] = True
    mesh = as_trimesh(surface_of(mask, AFFINES["oblique"]))
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(mask.sum() * voxel_of(AFFINES["oblique"]), rel=0.03)


@pytest.mark.parametrize(
    "part",
    [np.s_[3, 3, 3], np.s_[:, 3, 3], np.s_[:, :, 3], np.s_[:, :, :]],
    ids=["voxel", "line", "sheet", "all"],
)
def test_what_is_thin_or_touches_the_border_is_closed_and_keeps_its_volume(part):
    mask = np.zeros((7, 8, 9), bool)
    mask[part] = True
    mesh = as_trimesh(surface_of(mask, np.eye(4)))
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(mask.sum(), rel=0.03)
    assert len(mesh.split(only_watertight=False)) == 1


def test_a_surface_has_the_area_of_the_body_and_not_that_of_the_stairs_of_its_voxels():
    mask = ball()
    a, b, c = (radius**1.6075 for radius in (11, 9, 5))
    area = 4 * np.pi * ((a * b + a * c + b * c) / 3) ** (1 / 1.6075)  # of the ellipsoid, within 1 % (Thomsen)
    stairs = sum(int(np.count_nonzero(np.diff(np.pad(mask, 1).astype(int), axis=axis))) for axis in range(3))
    assert stairs > 1.35 * area
    assert as_trimesh(surface_of(mask, np.eye(4))).area == pytest.approx(area, rel=0.05)


def test_nothing_has_no_surface():
    assert surface_of(np.zeros((4, 4, 4), bool), np.eye(4)) is None


# files


def write(folder, labels=None, affine=None, names=NAMES):
    file = folder / "case.nii.gz"
    write_labels(
        file,
        Volume(label_map() if labels is None else labels, AFFINES["oblique"] if affine is None else affine),
        names=names,
    )
    return file


def test_stl_is_lps_mm_and_its_header_says_so(tmp_path):
    source = write(tmp_path)
    result = run.convert(source, tmp_path / "meshes", label_format="stl")
    assert result.empty == ("spleen",)
    assert {name: file.name for name, file in result.files.items()} == {n: f"{n}.stl" for n in NAMES[1:4]}
    volume = read_labels(source)
    for value in (1, 2, 3):
        file = result.files[NAMES[value]]
        assert file.read_bytes()[:80].decode().split(", ") == [
            f"labelwise: {NAMES[value]}", "mm", "SPACE=LPS".ljust(80 - len(f"labelwise: {NAMES[value]}, mm, ")),
        ]  # fmt: skip
        mesh = trimesh.load(file)
        middle = (volume.affine @ np.append(np.argwhere(volume.data == value).mean(axis=0), 1))[:3]
        assert np.abs(mesh.center_mass * (-1, -1, 1) - middle).max() < 0.1
        assert mesh.volume == pytest.approx((volume.data == value).sum() * voxel_of(volume.affine), rel=0.02)


def tree_of(file):
    """The JSON of a .glb."""
    data = file.read_bytes()
    length, kind = struct.unpack("<I4s", data[12:20])
    assert (data[:4], kind) == (b"glTF", b"JSON")
    return json.loads(data[20 : 20 + length])


def test_glb_names_and_paints_the_structures_and_stands_the_patient_upright(tmp_path):
    source = write(tmp_path, affine=AFFINES["upright"])
    result = run.convert(source, tmp_path / "case.glb")
    assert set(result.files.values()) == {tmp_path / "case.glb"}
    tree = tree_of(tmp_path / "case.glb")
    assert {node["name"] for node in tree["nodes"]} >= {"RAS mm", *NAMES[1:4]}
    colours = {m["name"]: m["pbrMetallicRoughness"]["baseColorFactor"] for m in tree["materials"]}
    for name, colour in colours.items():
        told = np.array(anatomy.find(name).colour) / 255
        assert np.array(colour[:3]) == pytest.approx(
            np.where(told <= 0.04045, told / 12.92, ((told + 0.055) / 1.055) ** 2.4)
        )
    scene = trimesh.load(tmp_path / "case.glb")
    places = {}
    for node in scene.graph.nodes_geometry:
        matrix, geometry = scene.graph[node]
        mesh = scene.geometry[geometry].copy()
        value = NAMES.index(node)
        middle = AFFINES["upright"] @ np.append(np.argwhere(label_map() == value).mean(axis=0), 1)
        assert np.abs(mesh.center_mass - middle[:3]).max() < 0.1  # the mesh itself is RAS mm
        mesh.apply_transform(matrix)
        assert mesh.volume > 0
        places[node] = mesh.center_mass
    x, y, z = places["liver"] - places["left kidney"]  # labels lie at the patient's left = larger x of RAS
    assert np.array([-x, z, y]) == pytest.approx(np.array([20 * 0.9, 16 * 1.1, 4 * 3.0]) / 1000, abs=2e-4)


def test_each_case_of_a_folder_gets_its_meshes(tmp_path, command):
    for case in ("a", "b"):
        write_labels(tmp_path / "p" / f"{case}.nii.gz", Volume(label_map(), AFFINES["upright"]), names=NAMES)
    answer = command("convert", tmp_path / "p", "-o", tmp_path / "stl", "--format", "stl")
    assert answer.code == 0
    assert answer.out.count("without a voxel, so without a mesh: spleen") == 2
    assert sorted(str(file.relative_to(tmp_path)) for file in (tmp_path / "stl").rglob("*.stl")) == sorted(
        f"stl/{case}/{name}.stl" for case in ("a", "b") for name in NAMES[1:4]
    )
    assert command("convert", tmp_path / "p", "-o", tmp_path / "glb", "--format", "glb").code == 0
    assert sorted(file.name for file in (tmp_path / "glb").iterdir()) == ["a.glb", "b.glb"]


def test_one_structure_may_be_one_stl_file(tmp_path):
    source = write(tmp_path, (label_map() == 1).astype(np.uint8))
    assert run.convert(source, tmp_path / "l.stl").files == {"liver": tmp_path / "l.stl"}


def test_what_makes_no_mesh_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    source = write(tmp_path)
    with pytest.raises(ConfigError, match=r"a \.stl file holds one structure"):
        run.convert(source, tmp_path / "all.stl")
    with pytest.raises(ConfigError, match="does not fit the format"):
        run.convert(source, tmp_path / "a.glb", label_format="stl")
    with pytest.raises(ConfigError, match="does not fit the format"):
        run.convert(source, tmp_path / "a.glb", label_format="nifti")
    with pytest.raises(ConfigError, match="does not fit the format"):
        run.convert(source, tmp_path / "a.nii.gz", label_format="glb")
    with pytest.raises(ConfigError, match="BINARY and regions are of DICOM-SEG"):
        run.convert(source, tmp_path / "a.glb", binary=True)
    write_labels(tmp_path / "empty.nii.gz", Volume(np.zeros((5, 6, 7), np.uint8), np.eye(4)), names=NAMES)
    with pytest.raises(DataError, match="no structure has a voxel"):
        run.convert(tmp_path / "empty.nii.gz", tmp_path / "a.glb")
    write_labels(tmp_path / "plain.nii.gz", Volume(label_map(), np.eye(4)))
    with pytest.raises(DataError, match="no name"):
        run.convert(tmp_path / "plain.nii.gz", tmp_path / "a.glb", classes={"liver": 1, "spleen": 2})
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(ResourceError, match=r"pip install 'labelwise\[mesh\]'"):
        run.convert(source, tmp_path / "a.glb")
    assert {file.name for file in tmp_path.iterdir()} == {"case.nii.gz", "empty.nii.gz", "plain.nii.gz"}


def test_meshes_of_another_result_are_not_mixed_in(tmp_path):
    source = write(tmp_path)
    run.convert(source, tmp_path / "m", label_format="stl")
    run.convert(source, tmp_path / "m", label_format="stl")  # the same again
    write(tmp_path, np.where(label_map() == 3, 0, label_map()).astype(np.uint8))
    with pytest.raises(DataError, match=r"right kidney\.stl"):
        run.convert(source, tmp_path / "m", label_format="stl")


def test_the_volume_of_a_box_is_that_of_a_box():
    box = trimesh.creation.box((2, 3, 4))
    mesh = surface_of(np.ones((2, 3, 4), bool), np.eye(4))
    assert volume_of(type(mesh)(box.vertices + 100, box.faces)) == pytest.approx(24)
