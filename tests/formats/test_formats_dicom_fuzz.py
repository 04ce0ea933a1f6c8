"""Damaged DICOM files: whatever is wrong with them, the answer is a volume or an error that names the file, at once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import save, write_enhanced, write_series
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from labelwise.errors import DataError
from labelwise.formats.dicom import image as dicom

NUM_FILES = 100  # for each of five kinds
SYNTAXES = {"jpeg2000": JPEG2000Lossless, "jpegls": JPEGLSLossless, "rle": RLELossless}
EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\xff\xff\0\0", b"\x7f" * 4, b"NaN ", b"1e99", b"-1\\2", b"\\\\\\\\")


def whole_series(folder: Path, kind: str) -> list[Path]:
    shape = (33, 34, 3) if kind in ("jpeg2000", "jpegls") else (12, 10, 3)
    voxels = np.random.default_rng(0).integers(-500, 500, shape).astype(np.int16)
    if kind == "enhanced":
        return [write_enhanced(folder / "scan", voxels, np.diag((-1.0, -1.0, 2.0, 1.0)))]
    files = write_series(folder, voxels, np.diag((-1.0, -1.0, 2.0, 1.0)), PixelPaddingValue=-2000)
    for file in files if kind != "plain" else ():
        data = pydicom.dcmread(file)
        data.compress(SYNTAXES[kind], generate_instance_uid=False)
        save(file, data)
    return files


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Between one and four wounds anywhere behind the preamble; every fifth file is also cut."""
    wounded = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(128, len(wounded) - 4))
        if rng.random() < 0.5:
            wounded[place] = int(rng.integers(256))
        else:
            extreme = EXTREMES[rng.integers(len(EXTREMES))]
            wounded[place : place + len(extreme)] = extreme
    if rng.random() < 0.2:
        del wounded[int(rng.integers(len(wounded))) :]
    return bytes(wounded)


@pytest.mark.parametrize("kind", ["plain", "enhanced", *SYNTAXES])
def test_damaged_files_give_a_volume_or_a_data_error(tmp_path, kind, capfd):
    rng, folder = np.random.default_rng(31), tmp_path / "series"
    file = whole_series(folder, kind)[0]
    content = file.read_bytes()
    outcomes, messages, slowest = {"read": 0, "refused": 0}, set(), 0.0
    for _ in range(NUM_FILES):
        file.write_bytes(damaged(content, rng))
        start = time.process_time()  # other programs do not add to it
        for path in (folder, file):
            try:
                voxels, grid = dicom.read(path)
                assert voxels.shape == grid.shape
                outcomes["read"] += 1
            except DataError as error:
                outcomes["refused"] += 1
                messages.add(str(error))
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 5
    assert min(outcomes.values()) > 10, "the fuzz does not reach both outcomes"
    assert all(str(tmp_path) in message for message in messages)
    assert "Zweistein" not in "".join([*messages, *capfd.readouterr()])
