"""MONAI Label's own client finds models, infers and sends labels back; what comes back can be imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from served import AFFINE, SHAPE, running, voxels
from served import expected as expected
from served import model as model
from served import scans as scans

from conftest import SPACE
from labelwise import read_manifest, run
from labelwise.cohort.manifest import DataSet, Manifest, write_manifest
from labelwise.formats import value_names, write_image, write_labels
from labelwise.serve.limits import Limits
from labelwise.types import CORRECTED, Case, LabelSpace, Volume

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def corrections(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("corrections") / "folder"


@pytest.fixture(scope="module")
def server(model, corrections, tmp_path_factory):
    folder = tmp_path_factory.mktemp("monai")
    (folder / "token").write_text(TOKEN)
    limits = Limits(waiting=4)
    options = {"corrections": corrections, "token_file": folder / "token", "limits": limits}
    with running([model], folder / "audit.jsonl", **options) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        client.audit = folder / "audit.jsonl"
        yield client


# What the module of 3D Slicer does, with MONAI Label's client. In a process of its own: it leaves connections open.
SLICER = """
import json, sys
from monailabel.client import MONAILabelClient
address, folder, token, scan, labels = sys.argv[1:]
client, said = MONAILabelClient(address, folder), {}
assert client.auth_enabled()
client.update_auth(client.auth_token("anybody", token))
assert client.auth_valid_token()
said["info"] = client.info()
session = client.create_session(scan)["session_id"]
said["session"] = client.get_session(session)
for ending in (".nii.gz", ".nrrd"):
    file, params = client.infer("structures", "a", {"result_extension": ending}, session_id=session)
    said[ending] = [file, params["label_names"]]
    open(folder + "/" + "kept" + ending, "wb").write(open(file, "rb").read())
client.remove_session(session)
try:
    client.get_session(session)
except Exception as error:
    said["gone"] = error.status_code
said["uploaded"] = client.upload_image(scan, "case_7")
said["inferred"] = client.infer("structures", "case_7", {})[1]["label_names"]
told = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
said["saved"] = client.save_label("case_7", labels, params=told)
said["datastore"] = client.datastore()
print(json.dumps(said))
"""


def drawn(*values: int) -> np.ndarray:
    """(I, J, K) a box for each value."""
    labels = np.zeros(SHAPE, np.uint8)
    for number, value in enumerate(values):
        labels[4 * number : 4 * number + 3, 2:8, 2:8] = value
    return labels


def save(path: Path, labels: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), path)
    return path


@pytest.mark.skipif(
    importlib.util.find_spec("cgi") is None or importlib.util.find_spec("monailabel") is None,
    reason="needs the package monailabel, and a Python that still has cgi, which its client imports",
)
def test_the_client_of_monai_label_finds_models_infers_and_sends_labels_back(
    server, scans, expected, corrections, tmp_path
):
    labels = save(tmp_path / "drawn.nii.gz", drawn(1, 2))  # the client writes results beside it
    words = [str(server.base_url), tmp_path, TOKEN, scans / "scan.nii.gz", labels]
    done = subprocess.run([sys.executable, "-c", SLICER, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    numbered = {structure: n for n, structure in enumerate(SPACE.structures, 1)}
    found = said["info"]["models"]["structures"]
    assert (found["type"], found["labels"], found["dimension"]) == ("segmentation", numbered, 3)
    for ending, label_format in ((".nii.gz", "nifti"), (".nrrd", "nrrd")):
        assert said[ending][1] == numbered
        assert (tmp_path / f"kept{ending}").read_bytes() == expected("scan.nii.gz", label_format)
    assert (said["gone"], said["uploaded"]) == (404, {"image": "case_7"})
    assert said["inferred"] == numbered
    assert said["saved"] == {"image": "case_7", "label": "case_7"}
    assert value_names(corrections / "case_7.nii.gz") == {1: "liver", 2: "spleen"}


# the same without the package, and what it does not try


def infer(server, scan, *, output="all", **fields):
    files = {"file": (scan.name, scan.read_bytes())}
    return server.post(f"/infer/structures?output={output}", files=files, data={"params": json.dumps(fields)})


def test_a_scan_that_comes_along_is_answered_in_one_multipart_answer(server, scans, expected):
    answer = infer(server, scans / "scan.nii.gz")
    kind, _, border = answer.headers["content-type"].partition("; boundary=")
    _, params, image, end = answer.content.split(f"--{border}".encode(), 3)
    assert (kind, end) == ("multipart/form-data", b"--\r\n")
    assert b'name="params"' in params
    assert b'filename="labels.nii.gz"' in image
    assert image.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") == expected("scan.nii.gz", "nifti")


def test_ohif_asks_for_a_plain_file_by_a_body_of_json(server, scans, expected):
    upload = {"file": ("series.zip", (scans / "series.zip").read_bytes())}
    assert server.put("/datastore/?image=1.2.840.1", files=upload).json() == {"image": "1.2.840.1"}
    answer = server.post("/infer/structures?image=1.2.840.1&output=image", json={"result_extension": ".nrrd"})
    assert answer.content == expected("series", "nrrd")
    answer = server.post("/infer/structures?image=1.2.840.1&output=dicom_seg", json={})
    assert answer.content[128:132] == b"DICM"


def test_errors_of_a_scan_come_as_errors_of_the_request(server, scans, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"noise")
    assert infer(server, tmp_path / "broken.nii.gz").status_code == 422
    assert infer(server, scans / "scan.nii.gz", output="dicom_seg").status_code == 404
    assert server.post("/infer/structures?image=nobody").status_code == 404
    assert server.post("/infer/structure?image=nobody").status_code == 404


def send_label(server, image, file, **params):
    files = {"label": (file.name, file.read_bytes())}
    return server.put(f"/datastore/label?image={image}", files=files, data={"params": json.dumps(params)})


@pytest.mark.parametrize(
    "image", ["../evil", "..%2f..%2fevil", "a/b", ".hidden", "C:evil", "a%00b", "", "x" * 201]
)
def test_names_that_lead_elsewhere_are_refused(server, corrections, tmp_path, image):
    label = save(tmp_path / "labels.nii.gz", drawn(1))
    assert send_label(server, image, label, label_info=[{"name": "liver", "idx": 1}]).status_code in (
        400,
        422,
    )
    assert not [each for each in corrections.parent.rglob("*evil*") if each != corrections]


def test_labels_that_name_nothing_or_have_no_grid_are_refused(server, corrections, tmp_path):
    before = sorted(corrections.glob("*")) if corrections.exists() else []
    label = save(tmp_path / "labels.nii.gz", drawn(1, 2))
    answer = send_label(server, "case_1", label, label_info=[{"name": "liver", "idx": 1}])
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown-label-value")
    (tmp_path / "label.bin").write_bytes(drawn(1).tobytes())
    assert send_label(server, "case_1", tmp_path / "label.bin").json()["code"] == "unknown-format"
    assert (sorted(corrections.glob("*")) if corrections.exists() else []) == before


def test_corrections_are_imported_and_of_two_the_later_counts(server, corrections, tmp_path):
    """The loop: a manifest, labels from the client, `import --into`."""
    data = tmp_path / "data"
    scan, labels = data / "images" / "one.nii.gz", data / "labels" / "one.nii.gz"
    write_image(scan, Volume(voxels(1)[None], AFFINE))
    write_labels(labels, Volume(drawn(1, 2), AFFINE))
    data_set = DataSet("here", {0: "background", 1: "liver", 2: "spleen"}, "ct")
    case = Case("one", (scan,), labels, frozenset({"liver", "spleen"}), data_set="here", split="train")
    write_manifest(Manifest(LabelSpace(("background", "liver", "spleen")), {"here": data_set}, (case,)), data)
    names = [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}]
    for values in ((2, 1), (1, 0)):
        file = save(tmp_path / "labels.nii.gz", drawn(*values))
        assert send_label(server, "one", file, label_info=names).status_code == 200
    result = run.correct(data, [corrections / "one.nii.gz"])
    assert set(result.states) == {"one"}
    case = {case.id: case for case in read_manifest(data).cases}["one"]
    assert case.states["spleen"] == CORRECTED
    assert len(list(corrections.glob(".one.*.nii.gz"))) == 1
    said = server.audit.read_text()
    assert "PUT /datastore/label" in said
    assert "one.nii" not in said


def test_a_server_without_a_folder_for_corrections_says_so(model, tmp_path):
    with running([model], tmp_path / "audit.jsonl") as client:
        label = save(tmp_path / "labels.nii.gz", drawn(1))
        assert "--corrections" in send_label(client, "a", label).json()["message"]
        assert client.get("/auth/").json() == {"enabled": False}
