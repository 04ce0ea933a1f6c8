"""Scans go in, the labels of `predict` come out; what is wrong is refused by name, and nothing of a patient stays."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil
import pydicom
import pytest

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from dicom_files import PERSON, write_series
from served import AFFINE, PATIENCE, finished, running, send, voxels, zipped
from served import audit as audit
from served import expected as expected
from served import model as model
from served import scans as scans
from served import server as server

from conftest import SPACE
from labelwise import ConfigError
from labelwise.infer.calibration import Calibration, write_calibration
from labelwise.infer.model import model_ids
from labelwise.run.serve import ready
from labelwise.serve.limits import Limits


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("label_format", ["nifti", "nrrd"])
def test_served_labels_are_the_bytes_that_predict_writes(server, scans, expected, name, label_format):
    facts = finished(server, send(server, scans / name))
    answer = server.get(facts["formats"][label_format])
    assert answer.content == expected(name, label_format)
    assert facts["classes"] == {str(n): structure for n, structure in enumerate(SPACE.names)}
    assert facts["done"] == facts["total"] > 0
    assert "spacing-unlike-training" in [each["code"] for each in facts["warnings"]]


def test_a_zipped_series_comes_back_as_dicom_seg_of_the_same_voxels(server, scans, expected):
    facts = finished(server, send(server, scans / "series.zip"))
    assert set(facts["formats"]) == {"nifti", "nrrd", "dicom-seg"}
    assert server.get(facts["formats"]["nifti"]).content == expected("series", "nifti")
    served = pydicom.dcmread(io.BytesIO(server.get(facts["formats"]["dicom-seg"]).content))
    written = pydicom.dcmread(io.BytesIO(expected("series", "dicom-seg")))
    np.testing.assert_array_equal(served.pixel_array, written.pixel_array)
    assert served.PatientID == written.PatientID == PERSON["PatientID"]


def test_what_an_archive_holds_beside_the_scan_is_said(server, scans, expected, tmp_path):
    files = [*(scans / "series").iterdir(), *write_series(tmp_path / "scout", voxels(1)[..., :5], AFFINE)]
    content = {str(number): file.read_bytes() for number, file in enumerate(files)} | {"notes.txt": b"hello"}
    facts = finished(server, send(server, ("both.zip", zipped(content))))
    assert server.get(facts["formats"]["nifti"]).content == expected("series", "nifti")
    said = [each["what"] for each in facts["warnings"] if each["code"] == "passed-over"]
    assert said == [
        "files of the archive that are no DICOM were passed over: 1",
        "of the 2 series of the archive that with most slices was segmented",
    ]


def test_a_page_of_the_result_is_drawn_on_request_and_stands_by_itself(server, scans):
    facts = finished(server, send(server, scans / "scan.nii.gz", page="true"))
    page = server.get(facts["page"])
    assert "viewer-root" in page.text
    assert "spacing" in page.text or "voxel size" in page.text
    without = finished(server, send(server, scans / "scan.nii.gz"))
    assert without["page"] is None
    assert server.get(f"/jobs/{without['id']}/page").status_code == 404


# what is refused


def told_to_be_large(shape=(30_000, 30_000, 30_000)):
    """A NIfTI header that promises terabytes."""
    header = bytearray(352)
    header[0:4] = (348).to_bytes(4, "little")
    header[40:56] = np.array([3, *shape, 1, 1, 1, 1], "<i2").tobytes()
    header[70:74] = np.array([4, 16], "<i2").tobytes()
    header[76:92] = np.array([1, 1, 1, 1], "<f4").tobytes()
    header[108:112] = np.array(352, "<f4").tobytes()
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header))


def linked():
    """An archive with a symbolic link to a file of the server."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("IM0001")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


DETACHED = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: /etc/passwd\n\n"
REFUSED = {
    "no file": ([], 422, "the part 'scan'"),
    "another kind": ([("letter.pdf", b"%PDF-1.7")], 422, "no known kind"),
    "labels": ([("scan.seg.nrrd", b"NRRD0004\n")], 422, "seg.nrrd are not taken"),
    "a format with other files": ([("scan.mhd", b"ObjectType = Image\n")], 422, "are not taken"),
    "an archive without DICOM": ([("a.zip", zipped({"readme.txt": b"hello"}))], 422, "no DICOM"),
    "half an archive": ([("a.zip", zipped({"a": b"x" * 999})[:-30])], 422, "damaged"),
    "a bomb": ([("a.zip", zipped({"a": bytes(2**21)}))], 413, "unpacks to more"),
    "a link": ([("a.zip", linked())], 422, "holds a link"),
    "an empty archive": ([("a.zip", zipped({}))], 422, "damaged|no DICOM|no known kind"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_scan_is_refused_with_a_reason(server, kind):
    files, status, reason = REFUSED[kind]
    answer = send(server, *files) if files else server.post("/jobs", files={"model": (None, "structures")})
    assert answer.status_code == status, answer.text
    assert any(each in answer.json()["message"] for each in reason.split("|")), answer.text


FAILED = {
    "noise": ("scan.nii.gz", b"noise" * 100, "unreadable"),
    "a promise of terabytes": ("scan.nii.gz", told_to_be_large(), "unreadable|too-large"),
    "voxels in a file of the server": ("scan.nrrd", DETACHED, "unreadable"),
}


@pytest.mark.parametrize("kind", FAILED)
def test_a_broken_scan_is_a_job_that_failed_and_says_nothing_of_the_server(server, kind):
    name, content, code = FAILED[kind]
    facts = finished(server, send(server, (name, content)))
    assert facts["state"] == "failed"
    assert facts["error"]["code"] in code.split("|")
    assert tempfile.gettempdir() not in json.dumps(facts)
    assert server.get(f"/jobs/{facts['id']}/labels/nifti").status_code == 409


def test_a_request_that_is_too_large_is_refused_by_its_header_and_without_one_while_it_is_read(server):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="scan"; filename="scan.nii"\r\n\r\n'
        for _ in range(64):
            yield bytes(2**16)

    # The body is not sent: a server that has answered does not read it, and resets the connection.
    door = http.client.HTTPConnection(server.base_url.host, server.base_url.port, timeout=PATIENCE)
    door.putrequest("POST", "/jobs")
    door.putheader("Content-Type", "multipart/form-data; boundary=x")
    door.putheader("Content-Length", str(2**20 + 1))
    door.endheaders()
    assert door.getresponse().status == 413
    door.close()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        answer = server.post("/jobs", content=endless(), headers=kind)
        assert answer.status_code == 413
    except (httpx.WriteError, httpx.ReadError):  # the server closed the door while it was spoken to
        pass
    assert server.get("/health").status_code == 200


def test_a_request_that_is_no_form_is_refused(server):
    answer = server.post(
        "/jobs", content=b"hello", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "Refused")


BODIES = {
    "curl --data-binary": "application/x-www-form-urlencoded",
    "bare bytes": "application/octet-stream",
    "JSON": "application/json",
    "nothing said": "",
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("body", [b"&" * 5000, b"{}", b"\x1f\x8b" + bytes(999)])
def test_a_bare_body_is_told_how_to_send_a_form(server, kind, body):
    answer = server.post(
        "/jobs", content=body, headers={"Content-Type": BODIES[kind]} if BODIES[kind] else {}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "no-form")
    assert "curl -F scan=@" in answer.json()["message"]


@pytest.mark.parametrize("name", ["modle", "pages", "file", "Scan", "scan[]"])
def test_a_part_that_nobody_reads_is_refused_and_the_right_ones_are_named(server, scans, name):
    answer = send(server, scans / "scan.nii.gz", **{name: "structures"})
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown-part")
    assert "scan, model, intensity, page" in answer.json()["message"]


@pytest.mark.parametrize(("said", "status"), [("yes", 404), ("2", 404), ("false", 202), ("True", 202)])
def test_a_page_is_asked_for_by_yes_or_no(server, scans, said, status):
    answer = send(server, scans / "scan.nii.gz", page=said)
    assert answer.status_code == status, answer.text
    if status == 202:
        assert bool(finished(server, answer)["page"]) == (said == "True")


def test_a_model_that_is_calibrated_while_it_is_served_answers_with_it(model, scans, tmp_path):
    """And where a calibration of another model lies there by now, as it was."""
    folder = tmp_path / "structures"
    shutil.copytree(model, folder)
    known = Calibration(model_ids(folder)[0], 2.0, 1, 1, 1.0, 0.9, {})
    found = []
    with running([folder], tmp_path / "audit.jsonl") as client:
        for calibration in (None, known, replace(known, model="another", temperature=3.0)):
            if calibration is not None:
                write_calibration(folder, calibration)
            found.append(finished(client, send(client, scans / "scan.nii.gz")))
    before, after, last = (facts["certainty"] for facts in found)
    assert before != after == last
    assert len({facts["model_id"] for facts in found}) == 1


def test_unknown_models_jobs_and_formats_are_named(server, scans):
    assert (
        "unknown model 'structure'; did you mean 'structures'?"
        in send(server, scans / "scan.nii.gz", model="structure").text
    )
    assert server.get("/jobs/../../etc/passwd").status_code == 404
    assert server.get("/jobs/%2e%2e%2fpasswd").status_code == 404
    facts = finished(server, send(server, scans / "scan.nii.gz"))
    answer = server.get(f"/jobs/{facts['id']}/labels/dicom-seg")
    assert (answer.status_code, answer.json()["expected"]) == (404, "nifti, nrrd")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_may_not_use_a_server_of_this_machine(server, headers, status):
    answer = server.get("/models", headers=headers)
    assert answer.status_code == status
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert answer.headers["x-content-type-options"] == "nosniff"


# what stays


def test_a_result_can_be_removed_and_then_nothing_of_it_is_there(server, scans):
    facts = finished(server, send(server, scans / "scan.nii.gz"))
    folders = list(Path(tempfile.gettempdir()).glob(f"labelwise-serve-*/{facts['id']}"))
    assert [sorted(each.name for each in folder.iterdir()) for folder in folders] == [["result"]]
    assert server.delete(f"/jobs/{facts['id']}").status_code == 204
    assert server.get(f"/jobs/{facts['id']}").status_code == 404
    assert not folders[0].exists()


def test_the_audit_log_names_model_and_outcome_and_no_patient(server, audit, scans):
    content = (scans / "series.zip").read_bytes()
    facts = finished(server, send(server, ("Zweistein_Quirinella.zip", content)))
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    (job,) = [line for line in lines if line.get("job") == facts["id"] and line["event"] == "job"]
    assert (job["model"], job["model_id"], job["outcome"]) == ("structures", facts["model_id"], "done")
    assert job["seconds"] > 0
    asked = [line for line in lines if line.get("job") == facts["id"] and line["event"] == "request"]
    assert [(line["request"], line["status"]) for line in asked] == [("POST /jobs", 202)]
    said = audit.read_text()
    assert not [word for word in (*PERSON.values(), "Quirinella", "1.2.3", "series") if word in said]


# one server each, because it is made to suffer


@pytest.fixture(scope="module")
def suffering(model, tmp_path_factory):
    """A server with two models, a token, room for one scan that waits, and results that expire at once."""
    folder = tmp_path_factory.mktemp("suffering")
    (folder / "token").write_text("correct-horse-battery\n")
    limits = Limits(waiting=1, keep_seconds=3.0)
    with running(
        [f"a={model}", f"b={model}"], folder / "audit.jsonl", limits=limits, token_file=folder / "token"
    ) as client:
        client.headers["Authorization"] = "Bearer correct-horse-battery"
        yield client


@pytest.mark.parametrize(
    "given", ["", "Bearer wrong", "Bearer correct-horse-batter", "Basic correct-horse-battery"]
)
def test_without_the_token_nothing_is_told(suffering, given):
    for method, path in (
        ("GET", "/models"),
        ("POST", "/jobs"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
    ):
        answer = suffering.request(method, path, headers={"Authorization": given})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_of_two_models_one_must_be_named(suffering, scans):
    assert "expected  a, b" in send(suffering, scans / "scan.nii.gz").json()["message"]
    assert finished(suffering, send(suffering, scans / "scan.nii.gz", model="b"))["model"] == "b"


def test_a_worker_that_is_killed_is_replaced_and_the_job_says_so(suffering, scans, expected):
    stopped = suspended_worker()
    begun = send(suffering, scans / "scan.nii.gz", model="a")
    stopped.kill()
    facts = finished(suffering, begun)
    assert facts["state"] == "done"
    assert facts["worker_deaths"] <= 1  # it may have died before the job was handed over
    assert suffering.get(facts["formats"]["nifti"]).content == expected("scan.nii.gz", "nifti")


def test_scans_wait_in_line_are_refused_beyond_it_and_can_be_cancelled(suffering, scans):
    worker = suspended_worker()
    first = send(suffering, scans / "scan.nii.gz", model="a")
    while suffering.get(first.headers["location"]).json()["state"] == "waiting":
        pass
    second = send(suffering, scans / "scan.nii.gz", model="a")
    assert second.json()["ahead"] == 1
    third = send(suffering, scans / "scan.nii.gz", model="a")
    assert (third.status_code, third.json()["code"]) == (503, "busy")
    suffering.delete(second.headers["location"])
    assert suffering.get(second.headers["location"]).json()["state"] == "cancelled"
    suffering.delete(first.headers["location"])
    worker.resume()
    assert finished(suffering, first)["state"] == "cancelled"
    assert not list(Path(tempfile.gettempdir()).glob(f"labelwise-serve-*/{first.json()['id']}"))


def test_results_expire(suffering, scans):
    facts = finished(suffering, send(suffering, scans / "scan.nii.gz", model="a"))
    while suffering.get(f"/jobs/{facts['id']}").status_code != 404:
        pass
    assert not list(Path(tempfile.gettempdir()).glob(f"labelwise-serve-*/{facts['id']}"))


def suspended_worker():
    """The worker of the server that was started last, halted."""
    workers = [each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]
    workers[-1].suspend()
    return workers[-1]


# the command


def test_a_server_for_others_without_a_token_is_refused(model, command, tmp_path):
    answer = command("serve", model, "--host", "0.0.0.0", "--port", 0)
    assert answer.code == 2
    assert "other machines could reach this server" in answer.err
    (tmp_path / "short").write_text("secret")
    answer = command("serve", model, "--host", "0.0.0.0", "--port", 0, "--token-file", tmp_path / "short")
    assert (answer.code, "this is no token" in answer.err) == (2, True)


def test_models_need_names_of_their_own_that_fit_into_an_address(model):
    for models, what in (
        ([model, model], "two models have one name"),
        ([f"a b={model}"], "fits into no address"),
        ([f"a={model}", f"structures={model}", model], "two models have one name"),
    ):
        with pytest.raises(ConfigError, match=what), ready(models, port=0):
            pass


def test_what_is_no_model_is_refused_as_by_predict(tmp_path, command):
    answer = command("serve", tmp_path, "--port", 0)
    assert (answer.code, "this is not a model folder" in answer.err) == (1, True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_says_where_it_answers_and_leaves_nothing_when_it_is_ended(model, tmp_path, how):
    words = [sys.executable, "-m", "labelwise", "serve", str(model), "--port", "0", "--json", "-d", "cpu"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        said = json.loads("".join(lines))
        assert [each["name"] for each in said["models"]] == ["structures"]
        assert httpx.get(f"{said['url']}/health", trust_env=False).json()["status"] == "ok"
        assert list(tmp_path.glob("labelwise-serve-*"))
        process.send_signal(how)
        assert process.wait() == (0 if how == signal.SIGTERM else -how)
        noted = [json.loads(line)["request"] for line in process.stderr.read().splitlines()]
    # A killed server may have answered, and not have noted it yet.
    assert noted == ["GET /health"] or (how == signal.SIGKILL and noted == [])
    end = time.monotonic() + PATIENCE
    while (
        list(tmp_path.glob("labelwise-serve-*")) and time.monotonic() < end
    ):  # the worker tidies up after a kill
        time.sleep(0.05)
    assert not list(tmp_path.glob("labelwise-serve-*"))
