"""Series come in by DICOM and their labels go out by DICOM: tried with pynetdicom, and with Orthanc where it is."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom import sop_class as classes

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import PERSON, write_series
from served import AFFINE, PATIENCE, running, voxels
from served import expected as expected
from served import model as model
from served import scans as scans

from labelwise import ConfigError
from labelwise.formats import Layout, read_labels, segment_names
from labelwise.run.serve import ready
from labelwise.serve.limits import Limits
from labelwise.serve.listener import DicomListener

QUIET = 0.3  # s


def free_port() -> int:
    """A port beneath those that systems give to whoever asks for any, so that it stays free until it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def peer(folder: Path, port: int = 0) -> Iterator[tuple[int, list[Path]]]:
    """A node that keeps what it gets; its port, and the files."""
    files: list[Path] = []

    def keep(event: evt.Event) -> int:
        files.append(folder / f"{len(files)}.dcm")
        files[-1].write_bytes(event.encoded_dataset())
        return 0

    entity = AE(ae_title="PEER")
    entity.add_supported_context(classes.SegmentationStorage)
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield server.socket.getsockname()[1], files
    finally:
        server.shutdown()


def store(port: int, files: list[Path], title: str = "LABELWISE") -> list[int]:
    """Send files to a node; the status of each."""
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(classes.CTImageStorage)
    found = entity.associate("127.0.0.1", port, ae_title=title)
    assert found.is_established
    try:
        return [int(found.send_c_store(pydicom.dcmread(file)).Status) for file in files]
    finally:
        found.release()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing comes"
        time.sleep(0.05)


def said(audit: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in audit.read_text().splitlines()]


def images(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def listener(port: int, to: int) -> DicomListener:
    return DicomListener(port, f"PEER@127.0.0.1:{to}", QUIET)


def test_a_series_that_is_sent_comes_back_as_the_dicom_seg_of_predict(model, scans, expected, tmp_path):
    port, audit = free_port(), tmp_path / "audit.jsonl"
    with (
        peer(tmp_path) as (to, files),
        running([model], audit, dicom=listener(port, to)),
    ):
        sent = images(scans / "series")
        assert store(port, sent) == [0] * len(sent)
        wait_for(lambda: files)
        wait_for(lambda: [line for line in said(audit) if line["event"] == "dicom sent"])
    (file,) = files
    data = pydicom.dcmread(file)
    assert data.SegmentationType == "BINARY"
    assert data.PatientID == PERSON["PatientID"]
    (tmp_path / "predicted.seg.dcm").write_bytes(expected("series", "dicom-seg"))
    names = segment_names(tmp_path / "predicted.seg.dcm")
    assert segment_names(file) == names
    layout = Layout(segments=names)
    predicted = read_labels(tmp_path / "predicted.seg.dcm", layout, scans / "series")
    assert np.array_equal(read_labels(file, layout, scans / "series").data, predicted.data)
    received, job, delivered = said(audit)
    assert received["images"] == len(sent)
    assert job["outcome"] == "done"
    assert delivered["tries"] == 1
    text = audit.read_text()
    assert not [word for word in (*map(str, PERSON.values()), str(data.SeriesInstanceUID)) if word in text]


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_result_waits_for_a_node_that_is_not_there_yet(model, scans, tmp_path):
    port, to, audit = free_port(), free_port(), tmp_path / "audit.jsonl"
    with running([model], audit, dicom=listener(port, to)):
        store(port, images(scans / "series"))
        wait_for(lambda: [line for line in said(audit) if line["event"] == "job"])
        with peer(tmp_path, to) as (_, files):
            wait_for(lambda: files)


def test_several_models_are_called_by_their_titles(model, scans, tmp_path):
    port, audit = free_port(), tmp_path / "audit.jsonl"
    with (
        peer(tmp_path) as (to, files),
        running(
            [f"first={model}", f"other={model}"],
            audit,
            dicom=listener(port, to),
        ),
    ):
        sent = images(scans / "series")
        assert set(store(port, sent[:1])) == {0x0124}, "nobody is called LABELWISE"
        assert set(store(port, sent, "OTHER")) == {0}
        wait_for(lambda: files)
    assert [line["model"] for line in said(audit) if line["event"] == "job"] == ["other"]


def test_a_scan_that_cannot_be_segmented_costs_only_itself(model, scans, tmp_path):
    """A slice is missing; the next series is answered."""
    port, audit = free_port(), tmp_path / "audit.jsonl"
    with (
        peer(tmp_path) as (to, files),
        running([model], audit, dicom=listener(port, to)),
    ):
        gap = sorted(write_series(tmp_path / "gap", voxels(1), AFFINE, SeriesInstanceUID="1.2.9"))
        store(port, gap[:3] + gap[6:])
        store(port, images(scans / "series"))
        wait_for(lambda: files)
        wait_for(lambda: len([line for line in said(audit) if line["event"] == "job"]) == 2)
    outcomes = sorted(str(line["outcome"]) for line in said(audit) if line["event"] == "job")
    assert outcomes == ["done", "failed"]
    assert len(files) == 1


def test_a_series_that_is_larger_than_allowed_is_refused(model, scans, tmp_path):
    port = free_port()
    limits = Limits(upload_bytes=1500)
    with running(
        [model], tmp_path / "a", limits=limits, dicom=DicomListener(port, "PEER@127.0.0.1:1", PATIENCE)
    ):
        sent = images(scans / "series")
        assert sent[0].stat().st_size > 750
        assert 0xA700 in store(port, sent[:3])


@pytest.mark.parametrize(
    "to", ["PEER", "PEER@host", "@host:1", "PEER@host:70000", "A-TITLE-TOO-LONG-FOR-DICOM@host:1"]
)
def test_what_is_no_node_is_refused(to):
    with pytest.raises(ConfigError, match="this is no DICOM node"):
        DicomListener(0, to)


def test_models_whose_titles_are_alike_are_refused(model):
    names = [f"a-model-of-the-heart-{number}={model}" for number in range(2)]
    with (
        pytest.raises(ConfigError, match="two models have one title in DICOM"),
        ready(names, dicom=DicomListener(0, "A@b:1")),
    ):
        pass


def test_one_without_the_other_is_refused(command, model):
    answer = command("serve", model, "--dicom-port", 0)
    assert answer.code != 0
    assert "--dicom-port and --dicom-to go together" in answer.err


@pytest.mark.skipif(
    shutil.which("Orthanc") is None, reason="Orthanc is not installed (apt-get install orthanc)"
)
def test_orthanc_sends_a_series_and_gets_its_segmentation(model, scans, tmp_path):
    """The archive of a clinic: it sends, this node answers, and the labels lie beside the series in its study."""
    node, dicom, http = free_port(), free_port(), free_port()
    settings = {
        "StorageDirectory": str(tmp_path / "storage"), "IndexDirectory": str(tmp_path / "storage"), "Plugins": [],
        "DicomAet": "ORTHANC", "DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False,
        "DicomModalities": {"labelwise": ["LABELWISE", "127.0.0.1", node]}, "DicomCheckCalledAet": True,
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))

    def ask(path: str, body: bytes | None = None) -> object:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}{path}", body, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or "null")

    def is_up() -> bool:
        try:
            return bool(ask("/system"))
        except OSError:
            return False

    program = subprocess.Popen(
        ["Orthanc", tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(is_up)
        for file in (scans / "series").iterdir():
            ask("/instances", file.read_bytes())
        (series,) = ask("/series")
        with running(
            [model],
            tmp_path / "audit.jsonl",
            dicom=DicomListener(node, f"ORTHANC@127.0.0.1:{dicom}", QUIET),
        ):
            ask("/modalities/labelwise/store", series.encode())
            wait_for(lambda: len(ask("/series")) == 2)
        kinds = {ask(f"/series/{each}")["MainDicomTags"]["Modality"] for each in ask("/series")}
        assert kinds == {"CT", "SEG"}
        assert len(ask("/studies")) == 1
    finally:
        program.terminate()
        program.wait()
