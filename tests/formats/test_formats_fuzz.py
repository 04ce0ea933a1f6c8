"""Damaged NIfTI files: whatever is wrong with them, the answer is a volume or a DataError, at once."""

from __future__ import annotations

import gzip
import time
import tracemalloc

import nibabel
import numpy as np
import pytest

from labelwise.errors import DataError
from labelwise.formats import read_geometry, read_image, read_labels

NUM_FILES = 240
EXTREMES = (
    b"\x00" * 8,
    b"\xff" * 8,
    b"\x7f" * 8,
    b"\x00\x00\xc0\x7f" * 2,
    b"\x00\x00\x80\xff" * 2,
    b"\x80\x00" * 4,
)


def whole_file(kind) -> bytes:
    header = kind.header_class()
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"a short comment"))
    image = kind(np.arange(210, dtype=np.int16).reshape(5, 6, 7), np.diag((-1.0, 2, 3, 1)), header)
    image.set_qform(image.affine, code=1)
    return bytes(image.to_bytes())


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Between one and four wounds in the header; every fifth file is also cut."""
    wounded = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, 380))
        if rng.random() < 0.5:
            wounded[place] = int(rng.integers(256))
        else:
            extreme = EXTREMES[rng.integers(len(EXTREMES))]
            wounded[place : place + len(extreme)] = extreme
    if rng.random() < 0.2:
        del wounded[int(rng.integers(len(wounded))) :]
    return bytes(wounded)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damaged_files_give_a_volume_or_a_data_error(tmp_path, kind, name):
    rng, content, path = np.random.default_rng(20), whole_file(kind), tmp_path / name
    outcomes, names_the_file = {"read": 0, "refused": 0}, True
    tracemalloc.start()
    for _ in range(NUM_FILES // 4):
        bytes_now = damaged(content, rng)
        if name.endswith(".gz"):
            bytes_now = gzip.compress(bytes_now, mtime=0)
            if rng.random() < 0.2:
                bytes_now = bytes_now[: int(rng.integers(len(bytes_now)))]
        path.write_bytes(bytes_now)
        start = time.process_time()  # other programs do not add to it
        for read in (lambda path: read_image([path]), read_labels, read_geometry):
            try:
                read(path)
                outcomes["read"] += 1
            except DataError as error:
                outcomes["refused"] += 1
                names_the_file &= name in str(error)
        assert time.process_time() - start < 5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert names_the_file
    assert peak < 50e6
    assert min(outcomes.values()) > 10, "the fuzz does not reach both outcomes"
