"""A small model of random weights, scans in every format that is taken, and a server that runs beside the test."""

from __future__ import annotations

import io
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import SimpleITK
import torch

from conftest import SMALL_NETS, SPACE
from labelwise import run
from labelwise.formats import write_image
from labelwise.infer.model import save_model
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.methods import find_method
from labelwise.methods.base import NetFactory
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.run.serve import ready
from labelwise.serve.limits import Limits
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import write_series

AFFINE = np.diag((2.0, 2.0, 3.0, 1.0))
SHAPE = (20, 18, 16)
# Ranges of the training: the scans have other voxels than it had, which is a warning.
FAR = {"low": [9.0, 9.0, 9.0], "high": [9.0, 9.0, 9.0]}
EXTENT = {"low": [30.0, 30.0, 30.0], "high": [60.0, 60.0, 60.0]}
OVER = ("done", "failed", "cancelled")
PATIENCE = 600  # s; only to end a hang


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The folder of a model that nobody trained: its labels are noise, but always the same."""
    folder = tmp_path_factory.mktemp("models") / "structures"
    torch.manual_seed(0)
    info = {
        "name": "structures",
        "classes": SPACE.names,
        "intensities": ("ct",),
        "plan": Plan(intensity={"ct": IntensityRule("ct", (-200, 300), 50.0, 100.0)}).to_json(),
        "method": "supervised",
        "method_settings": {},
        "patch_size": (16, 16, 16),
        "inference": asdict(InferenceConfig(overlap=0.0, precision="float32")),
        "training": {"scans": {"spacing_mm": FAR, "extent_mm": EXTENT}},
    }
    nets = NetFactory("vnet", SMALL_NETS["vnet"], dims=3, in_channels=1, num_classes=SPACE.num_classes)
    kind = find_method("supervised")
    save_model(folder, info, kind(nets, kind.Config()), nets)
    return folder


def voxels(seed: int = 0) -> np.ndarray:
    """(I, J, K) int16 noise in Hounsfield units."""
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def scans(tmp_path_factory) -> Path:
    """scan.nii.gz, scan.nrrd, scan.mha, and series.zip of the DICOM files in the folder series."""
    folder = tmp_path_factory.mktemp("scans")
    write_image(folder / "scan.nii.gz", Volume(voxels()[None], AFFINE))
    image = SimpleITK.GetImageFromArray(voxels().T)
    image.SetSpacing((2.0, 2.0, 3.0))
    for ending in (".nrrd", ".mha"):
        SimpleITK.WriteImage(image, str(folder / f"scan{ending}"))
    files = write_series(folder / "series", voxels(), AFFINE)
    content = {f"../{number}/{file.name}": file.read_bytes() for number, file in enumerate(files)}
    (folder / "series.zip").write_bytes(zipped(content))
    return folder


@pytest.fixture(scope="session")
def expected(model, scans, tmp_path_factory) -> Callable[[str, str], bytes]:
    """The bytes that `predict` writes of a scan: ``expected("scan.nii.gz", "nifti")``."""
    folder = tmp_path_factory.mktemp("expected")

    def call(scan: str, label_format: str) -> bytes:
        output = folder / f"{scan}-{label_format}"
        result = run.predict(model, scans / scan, output, device="cpu", label_format=label_format)
        (file,) = result.written.values()
        return file.read_bytes()

    return call


@contextmanager
def running(models: list[Any], audit: Path, **options: Any) -> Iterator[httpx.Client]:
    """A server in a thread, and a client that speaks to it over a socket."""
    options = {"port": 0, "audit": audit, "device": "cpu"} | options
    with ready(models, **options) as (serving, server, door):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            with httpx.Client(base_url=serving.url, timeout=PATIENCE, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def audit(tmp_path_factory) -> Path:
    """The audit log of `server`."""
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="session")
def server(model, audit) -> Iterator[httpx.Client]:
    """A server of one model, for tests that leave it as it is."""
    limits = Limits(upload_bytes=2**20, unpacked_bytes=2**20, waiting=4, seconds=PATIENCE)
    with running([model], audit, limits=limits) as client:
        yield client


def send(client: httpx.Client, *files: Path | tuple[str, bytes], **fields: str) -> httpx.Response:
    """Ask for the labels of a scan."""
    parts = [file if isinstance(file, tuple) else (file.name, file.read_bytes()) for file in files]
    return client.post("/jobs", files=[("scan", part) for part in parts], data=fields)


def finished(client: httpx.Client, begun: httpx.Response) -> dict[str, Any]:
    """What is said of a job when it is over."""
    assert begun.status_code == 202, begun.text
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        facts: dict[str, Any] = client.get(begun.headers["location"]).json()
        if facts["state"] in OVER:
            return facts
        time.sleep(0.05)
    raise AssertionError("the job does not end")
