"""Ways in which the files of a data set are damaged, each as a random number decides."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np

from small_data_sets import nifti

ODD_ARRAYS = (
    nibabel.spatialimages.HeaderDataError,
    nibabel.filebasedimages.ImageFileError,
    np.exceptions.ComplexWarning,
)
Rng = np.random.Generator
EXTREMES = (b"\0" * 8, b"\xff" * 8, b"\x7f" * 8, b"\0\0\xc0\x7f" * 2, b"\0\0\x80\xff" * 2, b"\x80\0" * 4)
TEXT = (".json", ".csv", ".tsv", ".toml", ".list", ".mhd", ".nhdr", ".cfg")
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1,
        2,
        3.5,
        1e308,
        10**30,
        "",
        " ",
        "all",
        "ignore",
        "background",
        "\ud800",
        "a;b",
        "x" * 3000,
    ),
    *([], {}, [[[]]], [1, [2]], {"0": {"0": 0}}, "../..", "/", "\0", "nan", "liver\n", ["a", None], "images"),
)
AFFINES = (
    np.zeros((4, 4)),
    np.full((4, 4), np.nan),
    np.diag((1e-9, 1, 1, 1)),
    np.diag((1e9, 1, 1, 1)),
    np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    np.array([[0.7, 0.7, 0, 9e6], [-0.7, 0.7, 0, 0], [0, 0, 3, -1e7], [0, 0, 0, 1.0]]),
    np.array([[0, 0, -2, 5], [1, 0, 0, 5], [0, -1, 0.2, 5], [0, 0, 0, 1.0]]),
    np.diag((-1, -1, -1, 1.0)),
)
VOXELS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda v: v + np.float32(0.5),
    lambda v: np.where(v > 0, np.nan, v).astype(np.float32),
    lambda v: v.astype(np.float64) * 1e300,
    lambda v: v.astype(np.complex64),
    lambda v: -v.astype(np.int32),
    lambda v: v.astype(np.int32) * 100_000,
    lambda v: np.stack([v, v], axis=-1),
    lambda v: v[..., :1],
    lambda v: v[0],
    lambda v: np.zeros_like(v),
)


def pick(rng: Rng, things: Any) -> Any:
    return things[int(rng.integers(len(things)))]


def wounded(content: bytes, rng: Rng, reach: int) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(0, max(min(reach, len(damaged)), 1)))
        extreme = pick(rng, EXTREMES) if rng.random() < 0.5 else rng.bytes(1)
        damaged[place : place + len(extreme)] = extreme
    return bytes(damaged)


def wound(file: Path, rng: Rng) -> None:
    """Some bytes of the header; of a .gz in what it compresses."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(wounded(gzip.decompress(content), rng, 380), mtime=0))
    else:
        file.write_bytes(wounded(content, rng, 4000 if file.suffix in (".h5", ".dcm") else 380))


def cut(file: Path, rng: Rng) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.integers(len(content) + 1))])


def noise(file: Path, rng: Rng) -> None:
    file.write_bytes(rng.bytes(int(rng.integers(0, 600))))


def tail(file: Path, rng: Rng) -> None:
    file.write_bytes(file.read_bytes() + rng.bytes(200))


def exchange(file: Path, rng: Rng) -> None:
    """The content of another file of the data set."""
    others = sorted(path for path in file.parents[1].rglob("*") if path.is_file())
    file.write_bytes(pick(rng, others).read_bytes())


def vanish(file: Path, rng: Rng) -> None:
    file.unlink()


def become_folder(file: Path, rng: Rng) -> None:
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    if rng.random() < 0.5:
        (file / file.name).write_bytes(content)


def rename(file: Path, rng: Rng) -> None:
    names = ("ä b", "a;b", "a\nb", "-", "..x", "x" * 200, "CON", "%s", "a,b", "._x", "0", "\u202e", "a=b")
    file.rename(file.with_name(pick(rng, names) + "".join(file.suffixes[-2:])))


def circle(file: Path, rng: Rng) -> None:
    file.unlink()
    file.symlink_to(file.name)


def odd_affine(file: Path, rng: Rng) -> None:
    if file.name.endswith((".nii", ".nii.gz")):
        found = nibabel.load(file)
        header = found.header.copy()
        header.set_sform(pick(rng, AFFINES), code=2)
        header["xyzt_units"] = pick(rng, (2, 1, 3, 0, 255))
        voxels = np.asanyarray(found.dataobj).copy()
        nibabel.Nifti1Image(voxels, None, header).to_filename(file)
    else:
        wound(file, rng)


def odd_voxels(file: Path, rng: Rng) -> None:
    if file.name.endswith((".nii", ".nii.gz")):
        voxels = np.asanyarray(nibabel.load(file).dataobj)
        with np.errstate(all="ignore"):
            nifti(file, pick(rng, VOXELS)(voxels))
    elif file.suffix == ".h5":
        with h5py.File(file, "r+") as stored:
            key = pick(rng, sorted(stored))
            voxels = stored[key][()]
            del stored[key]
            if rng.random() < 0.8:
                with np.errstate(all="ignore"):
                    stored[key if rng.random() < 0.8 else "other"] = pick(rng, VOXELS)(voxels)
    else:
        wound(file, rng)


def odd_json(file: Path, rng: Rng) -> None:
    document = json.loads(file.read_text())
    place: Any = document
    while True:
        keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
        key = pick(rng, keys)
        deeper = isinstance(place[key], dict | list) and place[key]
        if not deeper or rng.random() < 0.3:
            break
        place = place[key]
    action = rng.random()
    if action < 0.6:
        place[key] = pick(rng, ODD)
    elif action < 0.8:
        del place[key]
    elif isinstance(place, dict):
        place[str(pick(rng, ODD))] = place.pop(key)
    else:
        place.append(place[key])
    file.write_text(json.dumps(document))


def odd_lines(file: Path, rng: Rng) -> None:
    """Cells and lines of a table, a list or a text header in other places."""
    lines = file.read_text().splitlines() or [""]
    number = int(rng.integers(len(lines)))
    action, line = int(rng.integers(7)), lines[number]
    cells = line.replace("\t", ";").replace(",", ";").replace("=", ";").split(";")
    if action == 0:
        lines[number] = line.replace(pick(rng, cells), ascii(pick(rng, ODD))[1:60])
    elif action == 1:
        lines.append(line)
    elif action == 2:
        del lines[number]
    elif action == 3:
        lines[number] = line.replace(pick(rng, cells), "", 1)
    elif action == 4:
        lines[number] = line + pick(rng, ('"', ",,,,x", "\0", "\x0b", "\u2028", "ÿ", "'", "\t;"))
    elif action == 5:
        lines[number] = line.replace(
            pick(rng, (",", ";", "\t", "=", '"', "[", "0", "1")), pick(rng, (",", ";", "|", ""))
        )
    else:
        rng.shuffle(lines)
    codec = pick(rng, ("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    file.write_bytes(pick(rng, ("\n", "\n", "\r\n", "\r")).join(lines).encode(codec, "replace"))


ANY = (wound, wound, cut, noise, tail, exchange, vanish, become_folder, rename, circle)


def damage(file: Path, rng: Rng) -> str:
    """Damage a file in one way; what was done, for the message."""
    if file.suffix in TEXT:
        ways: tuple[Callable[[Path, Rng], None], ...] = (*ANY, *(odd_lines,) * 8)
        ways += (odd_json,) * 14 if file.suffix == ".json" else ()
    else:
        ways = (*ANY, wound, wound, odd_affine, odd_affine, odd_voxels, odd_voxels, odd_voxels)
    way = pick(rng, ways)
    try:
        way(file, rng)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, *ODD_ARRAYS):
        noise(file, rng) if file.is_file() else None  # damaged before
        return f"noise in {file.name!a}"
    return f"{way.__name__} of {file.name!a}"
