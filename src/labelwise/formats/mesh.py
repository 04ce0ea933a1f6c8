"""Surfaces of structures: STL, a file for each structure, and GLB, one file with names and colours.

The surface of a mask is where its Gaussian is a half, held between the voxels of both sides, so that nothing thin is
lost and nothing that is apart grows together; then it is moved along its normals until it encloses the volume of the
mask. It is closed, its triangles look outwards, and what touches the border of the grid is closed there.

Axes: a .stl holds LPS mm, which 3D Slicer takes a model for that says nothing else, and says so in its header. A .glb
holds meshes in RAS mm under a node that brings them into the frame of glTF: metres, head up, face to the reader.

Source: Lorensen & Cline, SIGGRAPH 1987, https://doi.org/10.1145/37401.37422; the variant of Lewiner et al., 2003.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from labelwise.atomic import atomic_path
from labelwise.errors import ConfigError, DataError
from labelwise.formats.concepts import Concept, concepts_of
from labelwise.formats.naming import file_name
from labelwise.plugins import import_extra
from labelwise.types import Array, Volume

MESH_FORMATS = {"stl": ".stl", "glb": ".glb"}
"""In which surfaces are written -> how the names of their files end."""

_SMOOTH = 1.0  # voxels, along each axis: stairs of thick slices go too
_BESIDE = 0.1  # how far from a half the field stays at the middle of every voxel
_PARTS = (1, 2, 3)  # into how many a voxel is cut, until the volume fits: thin structures need it
_NEAR = 0.02  # by how much of the volume of the mask the enclosed one may differ
_LARGE = 2_000_000  # voxels of a box that are not cut further
_MARGIN = 2  # voxels of nothing around a structure
_ROUNDS = 4  # of Newton for the volume; the second is mostly enough
_FARTHEST = 0.45  # voxels: walls with a voxel between them do not meet
_LPS = np.array((-1.0, -1.0, 1.0), np.float32)
_TO_GLTF = 0.001 * np.array(((-1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1000)), float)
_STL_HEADER = 80  # bytes


class Mesh(NamedTuple):
    """A closed surface.

    Shapes
        vertices    (N, 3)  float, mm in RAS
        faces       (F, 3)  three vertices each, counter-clockwise seen from outside
    """

    vertices: Array
    faces: Array


def surface_of(mask: Array, affine: NDArray[np.float64]) -> Mesh | None:
    """The smooth closed surface of a mask (X, Y, Z), in mm; None if it has no voxel.

    Errors
        ResourceError   the extra `mesh` is not installed
    """
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return None
    inside = mask[boxes[0]]
    corner = [side.start for side in boxes[0]]
    for parts in _PARTS:
        mesh = _surface(inside, parts)
        if abs(volume_of(mesh) / np.count_nonzero(inside) - 1) < _NEAR or inside.size * parts**3 > _LARGE:
            break
    vertices = (mesh.vertices + corner) @ affine[:3, :3].T + affine[:3, 3]
    mirrored = np.linalg.det(affine[:3, :3]) < 0
    return Mesh(vertices, np.ascontiguousarray(mesh.faces[:, ::-1] if mirrored else mesh.faces))


def _surface(inside: Array, parts: int) -> Mesh:
    """The surface in voxels, the middle of the first at 0, found on voxels that are cut into parts along each axis."""
    for axis in range(3):
        inside = inside.repeat(parts, axis)
    inside = np.pad(inside, _MARGIN)
    field = ndimage.gaussian_filter(inside.astype(np.float32), _SMOOTH, truncate=3)
    field = np.where(inside, np.maximum(field, 0.5 + _BESIDE), np.minimum(field, 0.5 - _BESIDE))
    vertices, faces, _, _ = _library("skimage.measure").marching_cubes(field, 0.5, allow_degenerate=True)
    if volume_of(Mesh(vertices, faces)) < 0:  # looks inwards
        faces = faces[:, ::-1]
    vertices = _inflated(vertices.astype(float), faces, float(np.count_nonzero(inside)))
    return Mesh((vertices - _MARGIN + 0.5) / parts - 0.5, faces)


def volume_of(mesh: Mesh) -> float:
    """What a closed surface encloses, in the units of its vertices; negative if its triangles look inwards."""
    first, second, third = (mesh.vertices[mesh.faces[:, corner]] - mesh.vertices[0] for corner in range(3))
    return float(np.einsum("fi,fi->", first, np.cross(second, third)) / 6)


def _inflated(vertices: Array, faces: Array, wanted: float) -> Array:
    """Vertices in voxels, moved along their normals by one distance until the volume is right, or a wall too near."""
    areas = _areas(vertices, faces)
    normals = areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), np.finfo(float).tiny)
    moved, distance = vertices, 0.0
    for _ in range(_ROUNDS):
        missing = wanted - volume_of(Mesh(moved, faces))
        growth = float(np.einsum("vi,vi->", _areas(moved, faces), normals))
        if growth <= 0:
            break
        distance = float(np.clip(distance + missing / growth, -_FARTHEST, _FARTHEST))
        moved = vertices + distance * normals
    return moved


def _areas(vertices: Array, faces: Array) -> Array:
    """(N, 3) a third of the areas of the triangles around each vertex, as a vector outwards."""
    corners = vertices[faces]
    each = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 6
    return np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(each[:, axis], 3), minlength=len(vertices))
            for axis in range(3)
        ],
        axis=1,
    )


def write_meshes(
    path: Path, labels: Volume, names: Sequence[str], mesh_format: str
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Write the surfaces of a label map; which structure lies in which file, and which have no voxel.

    Arguments
        path    a .glb file; of STL a folder, or a .stl file if there is one structure only
        labels  (X, Y, Z) integers, RAS+
        names   class names by label value

    Errors
        ConfigError     no class is named; `path` does not fit
        DataError       labels without a name; no structure has a voxel; meshes of another result in the folder
        ResourceError   the extra `mesh` is not installed; a file cannot be written
    """
    concepts = concepts_of(path, names, labels.data)
    found = {
        value: mesh
        for value in concepts
        if (mesh := surface_of(labels.data == value, labels.affine)) is not None
    }
    if not found:
        raise DataError(
            "there is no surface: no structure has a voxel",
            file=path,
            expected=", ".join(concept.name for concept in concepts.values()),
        )
    empty = tuple(concept.name for value, concept in concepts.items() if value not in found)
    if mesh_format == "glb":
        _write_glb(path, found, concepts)
        return {concepts[value].name: path for value in found}, empty
    files = _stl_files(path, {value: concepts[value].name for value in found})
    for value, file in files.items():
        _write_stl(file, found[value], concepts[value].name)
    return {concepts[value].name: file for value, file in files.items()}, empty


# files


def _write_glb(path: Path, meshes: Mapping[int, Mesh], concepts: Mapping[int, Concept]) -> None:
    trimesh = _library("trimesh")
    scene = trimesh.Scene()
    scene.graph.update(frame_from="world", frame_to="RAS mm", matrix=_TO_GLTF)
    for value, mesh in meshes.items():
        name = concepts[value].name
        material = trimesh.visual.material.PBRMaterial(name=name, metallicFactor=0.0, roughnessFactor=0.6)
        visual = trimesh.visual.TextureVisuals(material=material)
        body = trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False)
        scene.add_geometry(body, node_name=name, geom_name=name, parent_node_name="RAS mm")
    linear = {concept.name: [*map(_linear, concept.colour), 1.0] for concept in concepts.values()}

    def paint(tree: dict[str, Any]) -> None:
        for material in tree["materials"]:
            material["pbrMetallicRoughness"]["baseColorFactor"] = linear[material["name"]]

    data = scene.export(file_type="glb", include_normals=True, tree_postprocessor=paint)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _linear(part: int) -> float:
    """A part of an sRGB colour, 0..255, as glTF wants it: linear in light, 0..1 (IEC 61966-2-1)."""
    share = part / 255
    return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)


def _write_stl(path: Path, mesh: Mesh, name: str) -> None:
    trimesh = _library("trimesh")
    faces = mesh.faces  # from RAS to LPS is half a turn: no mirror, so the triangles still look outwards
    data = trimesh.Trimesh(mesh.vertices * _LPS, faces, process=False).export(file_type="stl")
    plain = re.sub(r"[^ -~]|=", "?", name)[:40]
    header = f"labelwise: {plain}, mm, SPACE=LPS".encode().ljust(_STL_HEADER)
    with atomic_path(path) as temporary:
        temporary.write_bytes(header + data[_STL_HEADER:])


def _stl_files(path: Path, names: Mapping[int, str]) -> dict[int, Path]:
    """Label value -> its file."""
    if path.suffix.lower() == MESH_FORMATS["stl"]:
        if len(names) > 1:
            raise ConfigError(
                "a .stl file holds one structure",
                file=path,
                found=", ".join(names.values()),
                do="name a folder, and add --format stl; or a .glb file, which holds all of them",
            )
        return dict.fromkeys(names, path)
    files = {value: path / f"{file_name(name)}{MESH_FORMATS['stl']}" for value, name in names.items()}
    if len({file.name.lower() for file in files.values()}) < len(files):
        raise ConfigError("two structures would be one file", file=path, found=", ".join(names.values()))
    if others := sorted({file.name for file in path.glob("*.stl")} - {file.name for file in files.values()}):
        raise DataError(
            "the folder holds meshes of something else",
            file=path,
            found=", ".join(others[:5]),
            expected=", ".join(sorted(file.name for file in files.values())[:5]),
            do="name another folder: a mesh of another result beside these would be taken for one of them",
        )
    return files


def _library(name: str) -> Any:
    return import_extra(name, "mesh", "meshes need packages that are not installed")
