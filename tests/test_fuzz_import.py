"""Damaged data sets of every layout and format: a manifest, a list of problems, or a LabelwiseError; nothing else.

A round copies a small data set, damages one or two of its files, or the manifest made from it, and runs `import` and
`check`. Each round follows from its number, so a failure can be repeated: ``play(number, ...)``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from labelwise import run
from labelwise.errors import LabelwiseError
from labelwise.importers import IMPORTERS

SHAPE = (6, 5, 4)
ROUNDS, ALL_ROUNDS = 320, 2000
SECONDS = 10.0  # of this process, for the longest round; a common one takes 30 ms
CT = {"classes": {"liver": 1, "spleen": [2, 3]}, "modality": "ct"}


class Tree(NamedTuple):
    """A small data set: how it is made, and what the user says about it."""

    make: Callable[[Path], None]
    importer: str | None
    options: dict[str, Any] = {}  # noqa: RUF012 - a default that nobody changes


# data sets


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(50, 100, SHAPE).astype(np.int16)


def labels(*values: int) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found.ravel()[: len(values)] = values
    return found


def nifti(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag((-0.8, -0.8, 2.5, 1))), path)


def itk(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(voxels.T), str(path), useCompression=path.suffix == ".mha"
    )


def h5(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


def dicom(folder: Path, voxels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for place in range(voxels.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{place + 1}"
        found = Dataset()
        found.file_meta = meta
        found.SOPClassUID, found.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        found.Modality, found.SeriesInstanceUID, found.StudyInstanceUID = "CT", "1.2.4", "1.2.5"
        found.PatientName, found.PatientID = "Nobody^Secret", "SECRET"
        found.Rows, found.Columns, found.InstanceNumber = voxels.shape[1], voxels.shape[0], place + 1
        found.PixelSpacing, found.ImageOrientationPatient = [0.8, 0.8], [1, 0, 0, 0, 1, 0]
        found.ImagePositionPatient, found.SliceThickness = [0, 0, 2.5 * place], 2.5
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 1
        found.RescaleSlope, found.RescaleIntercept = 1, 0
        found.PixelData = voxels[..., place].T.tobytes()
        found.save_as(folder / f"{place:03d}.dcm", enforce_file_format=True)


def make_folders(suffix: str, write: Callable[[Path, np.ndarray], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number, name in enumerate("ab"):
            write(folder / "images" / f"{name}{suffix}", image(number))
            write(folder / "labels" / f"{name}{suffix}", labels(1, 2, 3))

    return make


def make_nnunet(folder: Path) -> None:
    for number, name in enumerate("abc"):
        nifti(folder / "imagesTr" / f"{name}_0000.nii.gz", image(number))
        nifti(folder / "labelsTr" / f"{name}.nii.gz", labels(1, 2))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "both": [1, 2], "spleen": 2},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))


def make_decathlon(folder: Path) -> None:
    make_folders(".nii.gz", nifti)(folder)
    entry = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "fold": 0}
    lists = {
        "training": [entry, {**entry, "image": ["images/b.nii.gz"], "fold": 1}],
        "test": ["./images/b.nii.gz"],
    }
    names = {
        "labels": {"0": "background", "1": "liver", "2": "spleen", "3": "spleen"},
        "modality": {"0": "CT"},
    }
    (folder / "task.json").write_text(json.dumps(names | lists | {"test": []}))


def make_table(folder: Path) -> None:
    make_folders(".nii", nifti)(folder)
    rows = [
        "id;image;label;patient;split;annotated",
        "x;images/a.nii;labels/a.nii;p;train;liver",
        "y;images/b.nii;;q;;",
    ]
    (folder / "cases.csv").write_text("\n".join(rows))


def make_dicom(folder: Path) -> None:
    dicom(folder / "series", image(0))
    nifti(folder / "labels.nii.gz", labels(1, 2))
    (folder / "cases.csv").write_text("id,image,label\nx,series,labels.nii.gz\n")


def make_bids(folder: Path) -> None:
    for number in range(2):
        nifti(folder / f"sub-0{number}" / "anat" / f"sub-0{number}_T1w.nii.gz", image(number))
        nifti(
            folder / "derivatives" / "x" / f"sub-0{number}" / "anat" / f"sub-0{number}_dseg.nii.gz",
            labels(1, 2),
        )
    (folder / "derivatives" / "x" / "dseg.tsv").write_text(
        "index\tname\n0\tbackground\n1\tliver\n2\tspleen\n"
    )


def make_bids_masks(folder: Path) -> None:
    nifti(folder / "sub-01" / "anat" / "sub-01_CT.nii.gz", image(1))
    for place, name in enumerate(("liver", "spleen")):
        file = folder / "derivatives" / "x" / "sub-01" / "anat" / f"sub-01_label-{name}_mask.nii.gz"
        nifti(file, labels(*[0] * place, 1))


def make_totalsegmentator(folder: Path) -> None:
    for number, case in enumerate(("s0000", "s0001")):
        nifti(folder / case / "ct.nii.gz", image(number))
        for place, name in enumerate(("liver", "kidney_left", "spleen")):
            nifti(folder / case / "segmentations" / f"{name}.nii.gz", labels(*[0] * place, 1))
    (folder / "meta.csv").write_text("image_id;age;split\ns0000;60;train\ns0001;50;val\n")


def make_la2018(folder: Path) -> None:
    for number, name in enumerate("ab"):
        h5(folder / "x" / name / "mri_norm2.h5", image=image(number).astype(np.float32), label=labels(1))
    (folder / "train.list").write_text("a\n")
    (folder / "test.list").write_text("b\n")


def make_acdc(folder: Path) -> None:
    for number in (1, 2):
        arrays = {
            "image": image(number).astype(np.float32).T,
            "label": labels(1, 2, 3).T,
            "scribble": labels(4).T,
        }
        h5(folder / f"patient00{number}_frame01.h5", **arrays)
    (folder / "train.list").write_text("patient001\n")
    (folder / "val.list").write_text("patient002\n")


def make_lits(folder: Path) -> None:
    for number in range(2):
        nifti(folder / f"volume-{number}.nii", image(number))
        nifti(folder / f"segmentation-{number}.nii", labels(1, 2))


def make_msd(folder: Path) -> None:
    for number in (2, 3):
        nifti(folder / "imagesTr" / f"spleen_{number}.nii.gz", image(number))
        nifti(folder / "labelsTr" / f"spleen_{number}.nii.gz", labels(1))
    listed = [
        {"image": f"./imagesTr/spleen_{n}.nii.gz", "label": f"./labelsTr/spleen_{n}.nii.gz"} for n in (2, 3)
    ]
    names = {"name": "Spleen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    (folder / "dataset.json").write_text(
        json.dumps({**names, "training": listed, "test": [], "numTraining": 2})
    )


def make_kits(folder: Path) -> None:
    for number in range(2):
        nifti(folder / "data" / f"case_0000{number}" / "imaging.nii.gz", image(number))
        nifti(folder / "data" / f"case_0000{number}" / "segmentation.nii.gz", labels(1, 2))


def make_nih(folder: Path) -> None:
    dicom(folder / "Pancreas-CT" / "PANCREAS_0001" / "study" / "series", image(0))
    nifti(folder / "labels" / "label0001.nii.gz", labels(1))


def make_pairs(pattern: str, label: str, *names: str) -> Callable[[Path], None]:
    """Images and labels of the challenges, which differ in their names only."""

    def make(folder: Path) -> None:
        for number, name in enumerate(names):
            nifti(folder / pattern.format(name), image(number))
            nifti(folder / label.format(name), labels(1, 2))

    return make


TREES: dict[str, Tree] = {
    "nifti": Tree(make_folders(".nii.gz", nifti), "folders", CT),
    "nrrd": Tree(make_folders(".nrrd", itk), "folders", CT),
    "mha": Tree(make_folders(".mha", itk), "folders", CT),
    "mhd": Tree(make_folders(".mhd", itk), "folders", CT),
    "nhdr": Tree(make_folders(".nhdr", itk), "folders", CT),
    "nnunet": Tree(make_nnunet, "nnunet", {"fold": 0}),
    "nnunet_regions": Tree(make_nnunet, "nnunet", {"regions": "differences"}),
    "decathlon": Tree(make_decathlon, "decathlon", {"fold": 1}),
    "csv": Tree(make_table, "csv", CT),
    "bids": Tree(make_bids, "bids"),
    "bids_masks": Tree(make_bids_masks, "bids"),
    "la2018": Tree(make_la2018, "la2018"),
    "acdc": Tree(make_acdc, "acdc", {"labels": "scribble"}),
    "totalsegmentator": Tree(make_totalsegmentator, "totalsegmentator"),
    "lits": Tree(make_lits, "lits"),
    "msd": Tree(make_msd, "msd"),
    "kits": Tree(make_kits, "kits"),
    "dicom": Tree(make_dicom, "csv", CT),
    "nih_pancreas": Tree(make_nih, "nih_pancreas"),
    "amos22": Tree(
        make_pairs("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz", "amos_0001", "amos_0507"), "amos22"
    ),
    "word": Tree(make_pairs("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz", "word_0002"), "word"),
    "btcv": Tree(make_pairs("img/img{}.nii.gz", "label/label{}.nii.gz", "0001", "0002"), "btcv"),
    "flare22": Tree(make_pairs("images/{}_0000.nii.gz", "labels/{}.nii.gz", "FLARE22_Tr_0001"), "flare22"),
    "abdomenct1k": Tree(make_pairs("images/{}_0000.nii.gz", "Mask/{}.nii.gz", "Case_00001"), "abdomenct1k"),
}


# damage

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


# a round


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def state(folder: Path) -> dict[str, str]:
    """Every file with a hash of its content: an import changes none."""
    return {str(file): hashlib.md5(file.read_bytes()).hexdigest() for file in files_of(folder)}


def choose(number: int) -> tuple[str, Rng]:
    return list(TREES)[number % len(TREES)], np.random.default_rng([2024, number])


def play(number: int, templates: dict[str, Path], place: Path) -> tuple[str, list[str]]:
    """What came out of a round, and what was wrong with it."""
    name, rng = choose(number)
    data, out = place / f"{number}" / "data", place / f"{number}" / "out"
    shutil.copytree(templates[name], data)
    done = []
    if rng.random() < 0.9:
        for _ in range(int(rng.integers(1, 3))):
            files = files_of(data)
            text = [file for file in files if file.suffix in TEXT]
            done.append(damage(pick(rng, text if text and rng.random() < 0.4 else files), rng))
    tree = TREES[name]
    importer = tree.importer if rng.random() < 0.8 else pick(rng, [None, *IMPORTERS])
    options = tree.options if importer == tree.importer else (CT if importer in ("folders", "csv") else {})
    wrong: list[str] = []
    start, before = time.process_time(), state(data)
    with_manifest = rng.random() < 0.25 or not done
    try:
        outcome = import_and_check(data, out, importer, options, rng if with_manifest else None, done, wrong)
    except Exception:  # noqa: BLE001 - that no other kind of error appears is what is tested
        outcome, last = "crash", traceback.format_exc().strip().splitlines()
        wrong.append("\n".join([*last[-7:-1], last[-1][:300]]))
    if time.process_time() - start > SECONDS:
        wrong.append("took too long")
    if state(data) != before:
        wrong.append("a file of the user was changed")
    shutil.rmtree(place / f"{number}")
    return outcome, [
        f"round {number}, {name} by {importer}, {'; '.join(done)}: {problem}" for problem in wrong
    ]


def import_and_check(
    data: Path,
    out: Path,
    importer: str | None,
    options: dict[str, Any],
    rng: Rng | None,
    done: list[str],
    wrong: list[str],
) -> str:
    try:
        run.import_data([data], out, importer=importer, **options)
    except LabelwiseError as error:
        if out.exists() and any(out.iterdir()):
            wrong.append("files were left in the output")
        if str(data) not in str(error):
            wrong.append(f"the message names no file: {str(error)!a}")
        return "not imported"
    if [file.name for file in sorted(out.iterdir())] != ["dataset.toml", "manifest.csv"]:
        wrong.append("the output holds other files than a manifest")
    if rng is not None:
        done.append(damage(out / pick(rng, ("dataset.toml", "manifest.csv")), rng))
    try:
        report = run.check(out, workers=1)
    except LabelwiseError as error:
        if str(out) not in str(error):
            wrong.append(f"the message names no file: {str(error)!a}")
        return "manifest refused"
    for problem in report.problems:
        if problem.severity == "error" and problem.case and not problem.file:
            wrong.append(f"a problem of a case names no file: {problem}")
        if "SECRET" in str(problem):
            wrong.append("a problem names the patient of a DICOM file")
    return "problems" if report.num_errors else "fine"


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sound data set of each layout."""
    place = tmp_path_factory.mktemp("templates")
    for name, tree in TREES.items():
        (place / name).mkdir()
        tree.make(place / name)
    return {name: place / name for name in TREES}


# tests


@pytest.mark.parametrize("name", TREES)
def test_the_sound_data_sets_are_imported_without_an_error(
    templates: dict[str, Path], tmp_path: Path, name: str
):
    tree = TREES[name]
    run.import_data([templates[name]], tmp_path / "out", importer=tree.importer, **tree.options)
    report = run.check(tmp_path / "out", workers=1)
    broken = [str(p) for p in report.problems if p.severity == "error" and p.case]
    assert broken == []


def play_all(rounds: range, templates: dict[str, Path], place: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number in rounds:
        outcome, problems = play(number, templates, place)
        outcomes[outcome] += 1
        wrong += problems
    assert not wrong, f"{len(wrong)} problems, {dict(outcomes)}\n" + "\n".join(wrong[:40])
    return outcomes


def test_damaged_data_sets_give_a_manifest_problems_or_an_error(templates: dict[str, Path], tmp_path: Path):
    outcomes = play_all(range(ROUNDS), templates, tmp_path)
    assert (
        min(outcomes[kind] for kind in ("not imported", "manifest refused", "problems", "fine"))
        > ROUNDS // 40
    )


@pytest.mark.slow
def test_many_damaged_data_sets_give_a_manifest_problems_or_an_error(
    templates: dict[str, Path], tmp_path: Path
):
    play_all(range(ROUNDS, ALL_ROUNDS + ROUNDS), templates, tmp_path)


def test_the_command_line_answers_damage_with_an_exit_code_and_no_traceback(
    templates: dict[str, Path], tmp_path: Path, command: Callable[..., Any]
):
    codes = Counter()
    for number in range(3 * len(TREES)):
        name, rng = choose(number)
        if name not in ("nifti", "nnunet", "csv", "decathlon", "bids", "la2018"):
            continue
        data, out = tmp_path / f"{number}" / "data", tmp_path / f"{number}" / "out"
        shutil.copytree(templates[name], data)
        damage(pick(rng, files_of(data)), rng)
        words = ("--classes", "liver=1,spleen=2", "--modality", "ct") if TREES[name].options is CT else ()
        answer = command("import", data, "-o", out, "--importer", TREES[name].importer, *words)
        assert answer.code == 0 or str(data) in answer.err
        if answer.code == 0:
            answer = command("check", out)
        codes[answer.code] += 1
        assert answer.code in (0, 2, 3)
        assert "Traceback" not in answer.out + answer.err
    assert len(codes) > 1


def test_a_process_of_its_own_ends_with_a_message_and_nothing_else(
    templates: dict[str, Path], tmp_path: Path
):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(templates["nnunet"], data)
    (data / "dataset.json").write_text("[" * 100_000)
    program = [sys.executable, "-c", "from labelwise.cli.main import main; main()"]
    words = [*program, "import", str(data), "-o", str(out), "--importer", "nnunet"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert answer.returncode == 3
    assert "dataset.json" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not out.exists()
