"""Many clients at once, most of them broken: nothing crashes, memory stays, and each good request gets its bytes."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from served import PATIENCE, finished, running, zipped
from served import expected as expected
from served import model as model
from served import scans as scans

from labelwise.serve.limits import Limits

GOOD = {"scan.nii.gz": "scan.nii.gz", "scan.nrrd": "scan.nrrd", "series.zip": "series"}  # sent -> predicted
BROKEN = {  # name of the file, content -> status of the answer, or the state of the job
    "wrong type": ("letter.pdf", b"%PDF-1.7" * 100, 422),
    "noise": ("scan.nii.gz", b"\x1f\x8b noise" * 100, "failed"),
    "bomb": ("bomb.zip", zipped({"a": bytes(2**22)}), 413),
    "half an archive": ("half.zip", zipped({"a": b"abc"})[:-9], 422),
    "too large": ("scan.nii", bytes(2**20 + 1), 413),
}
MOST_GROWTH = 256 * 2**20  # bytes: a hundred times a request


class Clients:
    """What clients do to a server, one request each."""

    def __init__(self, client: httpx.Client, scans: Path, expected):
        self.client, self.scans = client, scans
        self.right = {
            name: {kind: expected(stored, kind) for kind in ("nifti", "nrrd")}
            for name, stored in GOOD.items()
        }

    def post(self, name: str, content: bytes) -> httpx.Response:
        """Send a file; again if the server has enough to do."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                answer = self.client.post("/jobs", files={"scan": (name, content)})
            except httpx.TransportError:  # refused while it was still being sent
                assert len(content) > 2**20, name
                return httpx.Response(413)
            if answer.status_code != 503:
                return answer
            time.sleep(0.05)
        raise AssertionError("the server is busy for ever")

    def good(self, name: str) -> str:
        facts = finished(self.client, self.post(name, (self.scans / name).read_bytes()))
        assert facts["state"] == "done", facts
        for kind, content in self.right[name].items():
            assert self.client.get(facts["formats"][kind]).content == content
        assert self.client.delete(f"/jobs/{facts['id']}").status_code == 204
        return "good, after a death" if facts["worker_deaths"] else "good"

    def broken(self, kind: str) -> str:
        name, content, outcome = BROKEN[kind]
        answer = self.post(name, content)
        if outcome != "failed":
            assert answer.status_code == outcome, (kind, answer.text)
            return kind
        facts = finished(self.client, answer)
        assert (facts["state"], facts["error"]["code"]) == ("failed", "unreadable"), facts
        self.client.delete(answer.headers["location"])
        return kind

    def aborted(self) -> str:
        """Half a request; then the client is gone."""
        address = (self.client.base_url.host, self.client.base_url.port)
        with socket.create_connection(address, timeout=PATIENCE) as raw:
            head = "POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n"
            raw.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
            part = b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a.nii"\r\n\r\n'
            raw.sendall(part + bytes(100_000))
        return "aborted"

    def cancelled(self) -> str:
        answer = self.post("scan.nii.gz", (self.scans / "scan.nii.gz").read_bytes())
        assert self.client.delete(answer.headers["location"]).status_code == 204
        return "cancelled"

    def one(self, number: int) -> str:
        """The request of a number: half of them are good."""
        if number % 2 == 0:
            return self.good(list(GOOD)[number // 2 % len(GOOD)])
        kinds = [*BROKEN, "aborted", "cancelled"]
        kind = kinds[number // 2 % len(kinds)]
        return self.broken(kind) if kind in BROKEN else getattr(self, kind)()


def workers() -> list[psutil.Process]:
    """The processes with models of all servers in this process."""
    return [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]


@pytest.mark.parametrize(("requests", "clients"), [(28, 4), pytest.param(200, 8, marks=pytest.mark.slow)])
def test_every_good_request_among_broken_ones_gets_the_bytes_of_predict(
    model, scans, expected, tmp_path, monkeypatch, requests, clients
):
    limits = Limits(upload_bytes=2**20, unpacked_bytes=2**21, waiting=clients, seconds=PATIENCE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other servers may run on this machine
    others = {each.pid for each in workers()}
    with running([model], tmp_path / "audit.jsonl", limits=limits) as client:
        (root,) = tmp_path.glob("labelwise-serve-*")
        crowd = Clients(client, scans, expected)
        crowd.good("scan.nii.gz")
        (worker,) = (each for each in workers() if each.pid not in others)
        memory = psutil.Process().memory_info().rss, worker.memory_info().rss
        with ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(crowd.one, number) for number in range(requests)]
            asked[requests // 3].result()
            worker.kill()
            outcomes = Counter(each.result() for each in asked)
        assert sum(count for kind, count in outcomes.items() if kind.startswith("good")) == requests // 2
        assert outcomes["aborted"] == outcomes["bomb"] == requests // 14
        (replaced,) = (each for each in workers() if each.pid not in others)
        assert replaced.pid != worker.pid
        assert psutil.Process().memory_info().rss - memory[0] < MOST_GROWTH
        assert replaced.memory_info().rss - memory[1] < MOST_GROWTH
        assert client.get("/health").status_code == 200
        end = time.monotonic() + PATIENCE
        while list(root.iterdir()) and time.monotonic() < end:  # what was cancelled last may still be running
            time.sleep(0.05)
        assert list(root.iterdir()) == []
    said = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert not [line for line in said if line.get("status") == 500 or line.get("code") == "defect"]
