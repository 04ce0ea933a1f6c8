"""How far one has to walk in the house: files and functions of a verb, its imports, its reads, and lines of source.

python benchmarks/house.py                # measures, and writes the table of ARCHITECTURE.md
python benchmarks/house.py --table        # the table alone, from the results that are there

files, functions    of labelwise that run in `train`, `predict` and `evaluate`, on a tiny synthetic cohort
import seconds      of the processor, for the file of each verb in a new interpreter; the best of several
header reads        of one NIfTI file and of one file of a DICOM series of 20, while `predict` segments it
opened              how often a file of that series is opened meanwhile, on average
shared files        that the files of a method import from outside their folder, by method
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import nibabel
import numpy as np
import pydicom
from metadata import RESULTS, write_result
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import labelwise
from labelwise import load_config, run
from labelwise.methods import METHODS
from labelwise.synthetic import SyntheticConfig, make_cohort

SOURCE = Path(labelwise.__file__).parent
PAGE = Path(__file__).parents[1] / "ARCHITECTURE.md"
BEGIN, END = "<!-- benchmarks/house.py writes from here -->", "<!-- to here -->"
SETTINGS: Mapping[str, Any] = {
    "base": "fixed",
    "prepare.spacing_mm": [14.0, 14.0, 14.0],
    "net": {"name": "unet", "settings": {"width": 2}},
    "sampling.patch_size": [32, 32, 16],
    "sampling.labelled_cases": 1,
    "sampling.unlabelled_cases": 1,
    "train.steps": [4],
    "device.device": "cpu",
    "device.precision": "float32",
}
COHORT = SyntheticConfig(cases_per_site=1, unlabelled=1, validation=1, test=1, shape=(24, 24, 16))
SLICES = 20
SETTLED_SECONDS = 2.5  # files that changed a moment ago are read again
WALKED = ("train", "predict", "evaluate")
IMPORTED = (*WALKED, "check", "measure", "import_data", "convert", "compare", "methods")
READ = ("ltuda", "guidednet", "dkuxnet", "pl_seg", "arco", "mean_teacher")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="interpreters that are started for each verb")
    parser.add_argument(
        "--table", action="store_true", help="write the table from the results that are there"
    )
    options = parser.parse_args()
    os.environ["LABELWISE_WORKERS"] = "1"  # what runs in other processes is not seen
    if not options.table:
        with tempfile.TemporaryDirectory() as temporary:
            write_result("house", {**walk(Path(temporary)), **imports(options.repeats), **source()})
    write_table()


def walk(folder: Path) -> dict[str, Any]:
    """Train, segment and evaluate once; what ran, and what was read."""
    data, trained = folder / "data", folder / "run"
    make_cohort(data, COHORT)
    series = write_series(folder / "series")
    time.sleep(SETTLED_SECONDS)
    config = load_config(None, dict(SETTINGS), data=str(data), method={"name": "supervised"})
    hops = {"train": ran(lambda: run.train(config, trained))}
    hops["predict"] = ran(lambda: run.predict(trained, data, trained / "predictions", device="cpu"))
    hops["evaluate"] = ran(lambda: run.evaluate(trained, data, workers=1))
    scan = next((data / "images").glob("*test*"), None) or sorted((data / "images").iterdir())[-1]
    with counting() as of_scan:
        run.predict(trained, scan, folder / "again", device="cpu")
    with counting() as of_series:
        run.predict(trained, series, folder / "dicom", device="cpu")
    opened = [number for path, number in of_series.opened.items() if Path(path).parent == series]
    return {
        "hops": hops,
        "header_reads": {"nifti": of_scan.nifti, "dicom": round(of_series.dicom / SLICES, 2)},
        "opened": round(sum(opened) / SLICES, 2),
    }


def ran(work: Callable[[], object]) -> dict[str, int]:
    """How many files and functions of the package `work` enters, in all threads of this process."""
    entered: set[CodeType] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    inside = {(code.co_filename, code.co_firstlineno) for code in entered if is_ours(code)}
    return {"files": len({file for file, _ in inside}), "functions": len(inside)}


def is_ours(code: CodeType) -> bool:
    """A function of the package that has a name: no body of a file or of a class, no comprehension."""
    in_function = bool(code.co_flags & CO_OPTIMIZED)
    return code.co_filename.startswith(str(SOURCE)) and not code.co_name.startswith("<") and in_function


class Counted:
    """What was read."""

    def __init__(self) -> None:
        self.nifti = 0  # headers
        self.dicom = 0  # headers
        self.opened: Counter[str] = Counter()


_WATCHERS: list[Counted] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _WATCHERS:
        _WATCHERS[-1].opened[str(arguments[0])] += 1


@contextmanager
def counting() -> Iterator[Counted]:
    """Count the headers that nibabel and pydicom parse, and the files that are opened."""
    counted, check_fix, dcmread = Counted(), nibabel.Nifti1Header.check_fix, pydicom.dcmread

    def fixed(*given: Any, **named: Any) -> Any:
        counted.nifti += 1
        return check_fix(*given, **named)

    def read(*given: Any, **named: Any) -> Any:
        counted.dicom += bool(named.get("stop_before_pixels"))
        return dcmread(*given, **named)

    if not _WATCHERS:
        sys.addaudithook(_hear)  # for good: Python has no way to take one out
    nibabel.Nifti1Header.check_fix, pydicom.dcmread = fixed, read
    _WATCHERS.append(counted)
    try:
        yield counted
    finally:
        nibabel.Nifti1Header.check_fix, pydicom.dcmread = check_fix, dcmread
        _WATCHERS.append(Counted())


def write_series(folder: Path) -> Path:
    """A CT of a few voxels, one DICOM file for each slice."""
    folder.mkdir()
    study, series, frame, random = generate_uid(), generate_uid(), generate_uid(), np.random.default_rng(0)
    for number in range(SLICES):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.Modality, data.PatientID, data.SeriesNumber, data.InstanceNumber = "CT", "phantom", 1, number + 1
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [14, 14], 5
        data.Rows = data.Columns = 24
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.RescaleSlope, data.RescaleIntercept = 15, 1, 0
        data.PixelData = random.integers(-900, 200, (24, 24), np.int16).tobytes()
        data.save_as(folder / f"{number:03}", enforce_file_format=True)
    return folder


def imports(repeats: int) -> dict[str, Any]:
    """CPU seconds of the import of each verb, and of what evaluation cannot do without."""
    modules = {verb: f"labelwise.run.{verb}" for verb in IMPORTED}
    modules |= {"numpy, scipy and nibabel": "numpy, scipy.ndimage, scipy.spatial, nibabel"}
    modules |= {"torch": "torch"}
    return {"import_seconds": {name: import_seconds(module, repeats) for name, module in modules.items()}}


def import_seconds(modules: str, repeats: int) -> float:
    """The least of several, because other programs only ever make it longer."""
    code = f"import time; t = time.process_time(); import {modules}; print(time.process_time() - t)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, check=True, env=environment
            ).stdout
        )
        for _ in range(repeats)
    ]
    return round(min(times), 2)


def source() -> dict[str, Any]:
    """Lines of the package, and the files outside its own that each method imports."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py"))
    return {"lines": lines, "shared_files": {name: len(shared(home)) for name, home in METHODS.items()}}


def shared(home: str) -> set[str]:
    """Modules of the package that the file of a method, or the files of its folder, import from elsewhere."""
    path = SOURCE.joinpath(*home.partition(":")[0].split(".")[1:]).with_suffix(".py")
    own = path.parent if path.name in ("method.py", "pretraining.py", "cda.py", "network.py") else path
    found = set()
    for file in own.glob("*.py") if own.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("labelwise."):
                found.add(str(node.module))
    prefix = ".".join(("labelwise", *own.relative_to(SOURCE).with_suffix("").parts))
    return {name for name in found if name != prefix and not name.startswith(f"{prefix}.")}


def rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What the table says of one result, by its first column."""
    hops, seconds = result["hops"], result["import_seconds"]
    told = {f"`{verb}`: files / functions": "{files} / {functions}".format(**hops[verb]) for verb in WALKED}
    told |= {f"import of `{name.removesuffix('_data')}`, CPU seconds": str(seconds[name]) for name in seconds}
    told["header reads in `predict`: NIfTI"] = str(result["header_reads"]["nifti"])
    told["header reads in `predict`: each file of a DICOM series"] = f"{result['header_reads']['dicom']:g}"
    told["each file of that series is opened"] = f"{result['opened']:g} times"
    told |= {f"files that `{name}` shares with others": str(result["shared_files"][name]) for name in READ}
    told["lines of source"] = f"{result['lines']:,}"
    return told


def write_table() -> None:
    """The table of ARCHITECTURE.md, from the results of now and of before."""
    before, now = (
        rows(json.loads((RESULTS / f"{name}.json").read_text())) for name in ("house_before", "house")
    )
    lines = [f"| {what} | {before.get(what, '')} | {value} |" for what, value in now.items()]
    table = "\n".join(["| | before | now |", "|---|---|---|", *lines])
    page = PAGE.read_text(encoding="utf-8")
    written = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table}\n\n{END}", page, flags=re.DOTALL)
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
