"""Voxels as they are stored: which module reads a file, and what the layout of its data set corrects.

A path is a file, or a folder: of a DICOM series (an image), or of one mask for each structure (labels).
"""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from labelwise.errors import DataError
from labelwise.formats import masks, nifti
from labelwise.formats.geometry import Geometry
from labelwise.formats.layout import Layout
from labelwise.formats.once import once_per_file
from labelwise.formats.segments import Tally
from labelwise.types import Array

NIFTI = (".nii.gz", ".nii")
SEGMENTATION = ".seg.nrrd"  # of 3D Slicer: always labels
ITK = (SEGMENTATION, ".nrrd", ".nhdr", ".mha", ".mhd")
H5 = (".h5", ".hdf5")
SUFFIXES: tuple[str, ...] = (*NIFTI, *ITK, *H5)
"""File name endings that can be read; the longest comes first where one ends like another."""

UNREAD = (".zip", ".tar", ".tgz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".img", ".mnc", ".mgz", ".mgh", ".npy", ".npz",
          ".mat", ".tif", ".tiff")  # fmt: skip
"""Endings of archives, and of images that other programs write: scans may be in them, but they are not read."""
NOT_READ = "archives and images of formats that are not read are passed over (unpack or convert them)"

DICOM_LABELS = ("SEG", "RTSTRUCT")  # modalities
_LONGEST_POINTER = 1024  # bytes
_DICOM_PREAMBLE = 128  # bytes before the letters DICM
# Without a preamble a file begins with an element of group 2, or with one of the first of group 8 (the character set,
# the image type, the SOP class, or the length of the group): its type in letters, or a short length.
_DICOM_ELEMENT = re.compile(
    rb"\x02\0[\0-\x03]\0(?:UL|OB|UI)|\x08\0[\0\x01\x05\x08\x16]\0(?:UL|CS|UI|[\x02-\x40]\0\0\0)"
)
_SUPERIOR_POSTERIOR_LEFT = ((0, 0, -1), (0, -1, 0), (-1, 0, 0))  # directions of the axes z, y, x of KiTS19


def suffix(path: Path | str) -> str:
    """The known suffix of a file name in lower case, or an empty string."""
    name = Path(path).name.lower()
    return next((known for known in SUFFIXES if name.endswith(known)), "")


def tells_sides(*files: Path) -> bool:
    """Whether files say where the patient's left is; arrays without a header (h5) do not."""
    return not {suffix(file) for file in files} & {".h5", ".hdf5"}


def is_unread(file: Path) -> bool:
    """Whether a file may hold scans in a form that is not read: an archive, or an image of another format."""
    return not suffix(file) and file.name.lower().endswith(UNREAD) and not file.name.startswith(".")


def stem(path: Path | str) -> str:
    """The file name without its known suffix: ``scans/liver_001.nii.gz`` -> ``liver_001``."""
    name = Path(path).name
    return name[: len(name) - len(suffix(path))]


@once_per_file
def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes, whatever its name; the preamble may be missing."""
    try:
        with path.open("rb") as file:
            return begins_as_dicom(file)
    except OSError:
        return False


def begins_as_dicom(file: BinaryIO) -> bool:
    """Whether the first bytes of an open file are those of DICOM; leaves it at its beginning."""
    begin = file.read(_DICOM_PREAMBLE + 4)
    file.seek(0)
    return begin[_DICOM_PREAMBLE:] == b"DICM" or _DICOM_ELEMENT.match(begin) is not None


def files_of(path: Path) -> list[Path]:
    """All files that make up a scan or its labels.

    The file itself; with those in which a .nhdr or .mhd keeps its voxels; the other slices of a DICOM series; the
    files of a folder.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if suffix(path) in ITK:
        return [path, *itk().data_files(path)]
    if suffix(path) or not is_dicom(path):
        return [path]
    dicom = _module("dicom.image")
    return [path] if dicom.modality(path) in DICOM_LABELS else list(dicom.files_of(path))


def is_flat(path: Path) -> bool:
    """Whether a file holds an image of two axes: other programs want labels with as many."""
    if suffix(path) in NIFTI:
        return nifti.is_flat(path)
    return suffix(path) in ITK and bool(itk().is_flat(path))


def hash_file(path: Path) -> str:
    """SHA-256 of a file; of the names and contents of all its files, if a scan consists of several.

    Those are a header with the files that hold its voxels (.mhd, .nhdr), and a folder (a DICOM series).
    """
    files = files_of(path)
    if files == [path]:
        return _digest(path)
    parts = [
        f"{file.relative_to(path).as_posix() if path.is_dir() else file.name} {_digest(file)}"
        for file in files
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def geometry(path: Path, layout: Layout) -> Geometry:
    """The grid of an image with its axes as stored, from headers only."""
    kind = _kind(path)
    if kind in H5:
        stored: Geometry = _module("h5").read_geometry(path, layout)
        return stored
    if kind in NIFTI:
        return corrected(nifti.read_geometry(path, channels=layout.channels), layout)
    reader = itk() if kind in ITK else _module("dicom.image")
    found: Geometry = reader.read_geometry(path)
    return found


def image(path: Path, layout: Layout) -> tuple[Array, Geometry]:
    """Voxels (M, I, J, K) of an image and its grid; M > 1 only where the layout says so."""
    if layout.channels and suffix(path) in NIFTI:
        voxels, grid = nifti.read(path, channels=True)
        return np.moveaxis(voxels, 3, 0), corrected(grid, layout)
    voxels, grid = _voxels(path, layout, layout.image_key)
    return voxels[None], grid


def labels(
    path: Path, layout: Layout, like: Path | None, tally: Tally | None = None
) -> tuple[Array, Geometry]:
    """Voxels (I, J, K) of a label map and its grid.

    Arguments
        like    the image of the case: needed where the layout takes the grid from it, and by labels that are
                not stored voxel by voxel
        tally   gets what was read of labels that are known by names
    """
    if not layout.segments and _kind(path) in ITK and itk().has_layers(path):
        layout = replace(layout, segments=itk().segment_names(path))
    if layout.segments:
        voxels, grid = _named_segments(path, layout, like, tally)
        if tally is not None and layout.overlap == "kept":
            tally.count(voxels)
        return voxels, grid
    voxels, grid = _voxels(path, layout, layout.label_key)
    if tally is not None and voxels.dtype.kind == "u" and _kind(path) in ITK and itk().value_names(path):
        tally.count(voxels)
    if layout.label_grid == "own" or like is None:
        return voxels, grid
    return _on_image(path, voxels, grid, layout, geometry(like, layout))


def names(path: Path) -> tuple[str, ...]:
    """The names of labels that are known by names; empty for files that know them by values."""
    if path.is_dir():
        return tuple(masks.names(path))
    kind = _kind(path)
    if kind in ITK:
        found: tuple[str, ...] = itk().segment_names(path)
        return found
    if kind in NIFTI or kind in H5:
        return ()
    found = _dicom_labels(path).names(path)
    return found


def value_names(path: Path) -> dict[int, str]:
    """Label value -> name, as a file says that knows its labels by values; empty if it says nothing.

    The segments of a .seg.nrrd with several layers are counted from 1, as `labels` does.
    """
    if path.is_dir() or not path.is_file():
        return {}
    if suffix(path) in NIFTI:
        return nifti.read_names(path)
    if suffix(path) not in ITK:
        return {}
    if itk().has_layers(path):
        return dict(enumerate(itk().segment_names(path), start=1))
    found: dict[int, str] = itk().value_names(path)
    return found


def corrected(grid: Geometry, layout: Layout) -> Geometry:
    """The grid with the axes z, y, x that a diagonal header calls x, y, z, if the layout says so."""
    if not layout.slices_first:
        return grid
    affine = grid.affine.copy()
    affine[:3, :3] = np.transpose(_SUPERIOR_POSTERIOR_LEFT) * grid.spacing_mm
    return Geometry(grid.shape, affine)


def itk() -> ModuleType:
    """The reader of NRRD and MetaImage: SimpleITK takes half a second to import, only for those who need it."""
    return _module("nrrd")


def _voxels(path: Path, layout: Layout, key: str) -> tuple[Array, Geometry]:
    kind = _kind(path)
    found: tuple[Array, Geometry]
    if kind in H5:
        found = _module("h5").read(path, layout, key)
        return found
    if kind in NIFTI:
        voxels, grid = nifti.read(path)
        return voxels, corrected(grid, layout)
    found = (itk() if kind in ITK else _module("dicom.image")).read(path)
    return found


def _named_segments(
    path: Path, layout: Layout, like: Path | None, tally: Tally | None
) -> tuple[Array, Geometry]:
    options: dict[str, Any] = {"overlap": layout.overlap, "tally": tally}
    if path.is_dir():
        return masks.read(path, layout.segments, **options)
    if _kind(path) in ITK:
        found: tuple[Array, Geometry] = itk().read_segments(path, layout.segments, **options)
        return found
    if like is None:
        raise DataError("these labels need the image that they were drawn on", file=path)
    grid = geometry(like, layout)
    return _dicom_labels(path).read(path, layout.segments, grid, **options), grid


def _dicom_labels(path: Path) -> ModuleType:
    return _module("dicom.rtstruct" if _module("dicom.image").modality(path) == "RTSTRUCT" else "dicom.seg")


def _on_image(
    path: Path, voxels: Array, own: Geometry, layout: Layout, grid: Geometry
) -> tuple[Array, Geometry]:
    if own.shape != grid.shape:
        raise DataError(
            "image and labels differ in shape",
            file=path,
            found=" x ".join(map(str, own.shape)),
            expected=" x ".join(map(str, grid.shape)),
            code="shapes-differ",
        )
    return np.flip(voxels, tuple("xyz".index(axis) for axis in layout.label_flip)), grid


def _kind(path: Path) -> str:
    """The suffix that decides, or "dicom"."""
    if path.is_dir():
        return "dicom"
    kind = suffix(path)
    if not path.is_file():
        raise _missing(path)
    if pointer := _pointer(path):
        raise pointer
    if kind:
        return kind
    if is_dicom(path):
        return "dicom"
    raise DataError(
        "unknown file format",
        file=path,
        expected=f"{' '.join(SUFFIXES)}, or DICOM",
        do="convert the scan to NIfTI",
        code="unknown-format",
    )


def _missing(path: Path) -> DataError:
    """No such file; or a link to a file that was not fetched."""
    if not path.is_symlink():
        return DataError("there is no such file", file=path, do="correct its path", code="not-found")
    target = path.readlink()
    annex = "annex" in target.parts
    return DataError(
        "the file was not fetched: it is a link of git-annex" if annex else "the link leads to no file",
        file=path,
        found=target,
        do=f"fetch it: git annex get {path.name} (datalad get)"
        if annex
        else "correct the link, or its target",
        code="not-fetched" if annex else "not-found",
    )


def _pointer(path: Path) -> DataError | None:
    """What a versioning program leaves in the place of a file that was not fetched: a few lines of text."""
    if path.stat().st_size > _LONGEST_POINTER:
        return None
    text = path.read_bytes()
    if text.startswith(b"version https://git-lfs"):
        program, command = "Git LFS", f"git lfs pull --include {path.name}"
    elif b"/annex/objects/" in text:
        program, command = "git-annex", f"git annex get {path.name} (datalad get)"
    else:
        return None
    return DataError(
        f"the file was not fetched: it is a pointer of {program}",
        file=path,
        do=f"fetch it: {command}",
        code="not-fetched",
    )


def _module(name: str) -> ModuleType:
    """A format whose library takes long to import, or is an extra."""
    return importlib.import_module(f"labelwise.formats.{name}")
