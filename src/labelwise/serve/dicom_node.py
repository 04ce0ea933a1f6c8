"""A DICOM node: series come in by C-STORE, and their labels go to one other node as DICOM-SEG.

It listens on this machine only: DICOM knows no token. An image is kept as it was sent, under a name of our own; of its
header the node reads which series it belongs to, the rest is read by the worker. A series is complete when all who sent
of it have hung up, and nothing of it has come for a while. The title that is called tells which model is meant, if
there are several.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pydicom
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom import sop_class as classes

from labelwise.errors import ConfigError, LabelwiseError, ResourceError
from labelwise.formats import LABEL_FORMATS
from labelwise.serve.app import fitting
from labelwise.serve.audit import Audit
from labelwise.serve.jobs import RESULT, SCAN, Job, Jobs
from labelwise.serve.listener import DicomListener
from labelwise.serve.worker import Facts

LOOPBACK = "127.0.0.1"
LONGEST_TITLE = 16  # signs of the name of a node
# What is taken, and the intensities of it; what those of PET are only a model of one kind can say.
_TAKEN: Mapping[str, str] = {
    classes.CTImageStorage: "ct",
    classes.EnhancedCTImageStorage: "ct",
    classes.MRImageStorage: "mr",
    classes.EnhancedMRImageStorage: "mr",
    classes.PositronEmissionTomographyImageStorage: "",
}
_DONE: Final = 0x0000
_OUT_OF_RESOURCES: Final = 0xA700
_NOT_UNDERSTOOD: Final = 0xC000
_NO_SUCH_MODEL: Final = 0x0124  # not authorised
_TICK_SECONDS = 0.1
_TRIES, _FIRST_PAUSE_SECONDS = 5, 1.0  # to send a result; each pause is twice the one before
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it notes what others send


@dataclass
class _Series:
    """What has come of a series."""

    job: Job
    model: Facts
    intensity: str
    last: float  # when something came, or a sender left
    images: int = 0
    size: int = 0  # bytes
    senders: set[Any] = field(default_factory=set)  # associations that are open


class DicomNode:
    """Listens from the moment it is made. `close` ends it; what has not been sent by then is not sent.

    Errors
        ResourceError   the port is taken
    """

    def __init__(self, jobs: Jobs, listener: DicomListener, audit: Audit):
        self._jobs, self._listener, self._audit = jobs, listener, audit
        self._arriving: dict[str, _Series] = {}
        self._sent: list[Job] = []  # to the worker
        self._change = threading.Lock()
        self._closing = threading.Event()
        entity = AE(ae_title=listener.title)
        entity.add_supported_context(classes.Verification)
        for kind in _TAKEN:
            entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
        left = [(event, self._left) for event in (evt.EVT_RELEASED, evt.EVT_ABORTED, evt.EVT_CONN_CLOSE)]
        handlers = [(evt.EVT_C_STORE, self._store), *left]
        try:
            self._server = entity.start_server((LOOPBACK, listener.port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise ResourceError(
                f"the DICOM node cannot listen: {error}",
                found=f"port {listener.port}",
                do="choose another --dicom-port",
            ) from error
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="DICOM node")
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and send no more."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()

    def _store(self, event: Any) -> int:
        """Keep an image; the status that its sender gets."""
        content: bytes = event.encoded_dataset()
        series = _series_of(content)
        if not series:
            return _NOT_UNDERSTOOD
        kind = str(event.request.AffectedSOPClassUID)
        with self._change:
            try:
                found = self._arriving.get(series) or self._begun(
                    series, event.assoc.requestor.primitive.called_ae_title, kind
                )
            except ConfigError:
                return _NO_SUCH_MODEL
            except LabelwiseError:
                return _OUT_OF_RESOURCES
            if found.size + len(content) > self._jobs.limits.upload_bytes:
                return _OUT_OF_RESOURCES
            found.images, found.size, found.last = (
                found.images + 1,
                found.size + len(content),
                time.monotonic(),
            )
            found.senders.add(event.assoc)
            file = found.job.folder / SCAN / f"{found.images:06}.dcm"
            file.write_bytes(content)
        return _DONE

    def _left(self, event: Any) -> None:
        """A sender has hung up."""
        with self._change:
            for series in self._arriving.values():
                if event.assoc in series.senders:
                    series.senders.remove(event.assoc)
                    series.last = time.monotonic()

    def _begun(self, series: str, called: str, kind: str) -> _Series:
        """A series of which the first image has come.

        Errors
            ConfigError     no model has the title that was called
            ResourceError   as many scans as are allowed wait
        """
        models = {title_of(name): model for name, model in self._jobs.models.items()}
        model = next(iter(models.values())) if len(models) == 1 else models.get(called.strip().upper())
        if model is None:
            raise ConfigError("no model has this title", expected=", ".join(models), code="unknown-name")
        several = len(model["intensities"]) > 1
        intensity = fitting(model, _TAKEN[kind] if several else "")
        job = self._jobs.arrive()
        (job.folder / SCAN).mkdir(mode=0o700)
        self._arriving[series] = begun = _Series(job, model, intensity, time.monotonic())
        return begun

    def _run(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            self._submit_complete()
            over = [job for job in self._sent if job.is_over]
            self._sent = [job for job in self._sent if not job.is_over]
            for job in over:
                if job.state == "done":
                    self._deliver(job)

    def _submit_complete(self) -> None:
        """Hand over the series that are complete."""
        with self._change:
            now, quiet = time.monotonic(), self._listener.quiet_seconds
            complete = {
                uid: each
                for uid, each in self._arriving.items()
                if not each.senders and now - each.last >= quiet
            }
            for uid, series in complete.items():
                del self._arriving[uid]
                self._jobs.submit(
                    series.job,
                    series.model,
                    intensity=series.intensity,
                    page=False,
                    passed_over=0,
                    binary=True,
                )
                self._sent.append(series.job)
                self._audit.write(
                    "dicom received", job=series.job.id, model=series.model["name"], images=series.images
                )

    def _deliver(self, job: Job) -> None:
        """Send the labels of a job, and forget it; if nobody takes them they are kept as long as other results."""
        file = job.folder / RESULT / f"{SCAN}{LABEL_FORMATS['dicom-seg']}"
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _TRIES + 1):
            if taken := send(file, self._listener):
                break
            if attempt == _TRIES or self._closing.wait(pause):
                break
            pause *= 2
        self._audit.write("dicom sent" if taken else "dicom not taken", job=job.id, tries=attempt)
        if taken:
            self._jobs.discard(job)


def send(file: Path, listener: DicomListener) -> bool:
    """Send a DICOM-SEG to the other node by C-STORE; whether it was taken."""
    entity = AE(ae_title=listener.title)
    entity.add_requested_context(classes.SegmentationStorage)
    title, host, port = listener.peer
    found = entity.associate(host, port, ae_title=title)
    if not found.is_established:
        return False
    try:
        status = found.send_c_store(pydicom.dcmread(file))
        return "Status" in status and status.Status == _DONE
    except (ValueError, RuntimeError):  # segmentations are not taken there, or the other has hung up
        return False
    finally:
        found.release()


def title_of(model: str) -> str:
    """The title under which a model is called: its name in capitals, cut to what DICOM allows."""
    return model.upper()[:LONGEST_TITLE]


def _series_of(content: bytes) -> str:
    """The series of an image; empty if its header cannot be read or does not say."""
    try:
        header = pydicom.dcmread(
            BytesIO(content), stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]
        )
        return str(header.get("SeriesInstanceUID") or "")
    except Exception:  # noqa: BLE001 - a damaged header raises anything, and costs this image
        return ""
