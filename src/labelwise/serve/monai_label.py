"""The part of MONAI Label's REST API that its clients need to find models, infer, and send labels back.

    GET  /info/                                     models and their labels
    PUT  /session/, GET and DELETE /session/ID      a scan that is sent once
    PUT  /datastore/?image=ID, DELETE               the same under a name of the client's
    POST /infer/MODEL?image=ID or session_id=ID     labels, as a file and as JSON in one multipart answer
    PUT  /datastore/label?image=ID                  labels that a person has corrected
    GET  /auth/, POST /auth/token                   the token of the server is the password

Training, active learning and scoring are not served.

Source
    https://github.com/Project-MONAI/MONAILabel, release 0.8.5: routes, parameters and shapes of answers.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile

import labelwise
from labelwise.atomic import atomic_path
from labelwise.documents import parse_json
from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.formats import LABEL_FORMATS, suffix
from labelwise.serve.app import AllJobs, chosen, fitting, jobs_of, labels_file, read_form
from labelwise.serve.jobs import RESULT, SCAN, Job, Jobs
from labelwise.serve.scans import Scans
from labelwise.serve.uploads import LABELS, store_label, store_scan
from labelwise.serve.worker import Facts, raised

LABEL = "label"  # an uploaded label file, in the folder of its job; its ending follows
FINAL = ("", "final")  # tags of labels that a person has finished
_TICK_SECONDS = 0.05
_LONGEST_NAME = 200
_NAME = re.compile(rf"(?!\.)[^/\\:]{{1,{_LONGEST_NAME}}}")
_BY_ENDING = {".nrrd": "nrrd", ".seg.nrrd": "nrrd"}

router = APIRouter(tags=["MONAI Label"])


def with_monai_label(app: FastAPI, *, corrections: Path | None, token: str | None) -> FastAPI:
    """The application with these routes too."""
    app.state.corrections, app.state.token = corrections, token
    app.include_router(router)
    return app


def scans_of(request: Request) -> Scans:
    """The scans that the server keeps."""
    return jobs_of(request).scans


AllScans = Annotated[Scans, Depends(scans_of)]


@router.get("/info")
@router.get("/info/", include_in_schema=False)
def info(jobs: AllJobs, scans: AllScans) -> Facts:
    """What there is: the models with their labels, by name and number."""
    models = {name: _described(model) for name, model in jobs.models.items()}
    labels = dict.fromkeys(label for model in jobs.models.values() for label in model["classes"])
    return {
        "name": "labelwise",
        "description": "Models that were trained by labelwise",
        "version": labelwise.__version__,
        "labels": list(labels),
        "models": models,
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {"total": len(scans), "completed": 0},
    }


def _described(model: Facts) -> Facts:
    return {
        "type": "segmentation",
        "labels": {name: number for number, name in enumerate(model["classes"], start=1)},
        "dimension": model["dimensions"],
        "description": f"{model['method']}: {', '.join(model['classes'])}",
        "config": {},
    }


@router.get("/auth/")
def auth(request: Request) -> Facts:
    """Whether the server wants a token."""
    return {"enabled": request.app.state.token is not None}


@router.post("/auth/token")
async def auth_token(request: Request) -> JSONResponse:
    """The token for a password: the same. Whoever does not know it is told nothing."""
    token = request.app.state.token
    given = parse_qs((await request.body()).decode("utf-8", "replace")).get("password", [""])[0]
    if token is None or not hmac.compare_digest(given.encode(), token.encode()):
        return JSONResponse({"error": "Refused", "code": "unauthorised"}, 401)
    return JSONResponse({"access_token": token, "token_type": "Bearer"})


@router.get("/auth/token/valid")
def auth_valid() -> Facts:
    """Whoever reads this has the token."""
    return {"valid": True}


@router.put("/session/")
async def begin_session(request: Request, scans: AllScans) -> Facts:
    """Keep a scan; the answer names it."""
    name = secrets.token_urlsafe(16)
    await _keep(request, scans, name, "files")
    return {"session_id": name, "session_info": {"name": name}}


@router.get("/session/{name}")
def session(name: str, scans: AllScans) -> Facts:
    """Whether a scan is still there."""
    _require_kept(name, scans)
    return {"name": name}


@router.delete("/session/{name}")
def end_session(name: str, scans: AllScans) -> Facts:
    """Remove a scan."""
    _require_kept(name, scans)
    scans.forget(name)
    return {"name": name}


@router.get("/datastore")
@router.get("/datastore/", include_in_schema=False)
def datastore(scans: AllScans, output: str = "stats") -> Facts:
    """How many scans are kept. Which they are is told to nobody: their names may be those of patients."""
    return {"objects": {}} if output == "all" else {"total": len(scans), "completed": 0}


@router.put("/datastore/")
async def add_image(request: Request, image: str, scans: AllScans) -> Facts:
    """Keep a scan under the name that the client gives it."""
    require_name(image)
    await _keep(request, scans, image, "file")
    return {"image": image}


@router.delete("/datastore/")
def remove_image(id: str, scans: AllScans) -> Facts:
    """Remove a scan."""
    scans.forget(id)
    return {}


@router.post("/infer/{model}")
async def infer(
    request: Request,
    model: str,
    jobs: AllJobs,
    scans: AllScans,
    image: str = "",
    session_id: str = "",
    output: str = "all",
) -> Response:
    """Segment a scan that is kept, or comes along as `file`; the answer waits for the labels."""
    wanted = chosen(jobs.models, model)
    job = jobs.arrive()
    request.state.job = job.id
    try:
        async with asyncio.timeout(jobs.limits.seconds), read_form(request) as form:
            params = _params(form) or await _json(request)
            files = _files(form, "file")
            if files and not session_id:
                count = await run_in_threadpool(store_scan, files, job.folder / SCAN, jobs.limits)
            else:
                await run_in_threadpool(scans.lend, session_id or image, job.folder / SCAN)
                count = 0
        intensity = fitting(wanted, str(params.get("intensity", "")))
    except BaseException as error:
        jobs.discard(job)
        if isinstance(error, TimeoutError):
            raise ResourceError("the scan arrived too slowly", code="too-slow") from error
        raise
    jobs.submit(job, wanted, intensity=intensity, page=False, passed_over=count)
    try:
        await _ended(request, jobs, job)
        return _answer(jobs, job, params, output)
    except BaseException:
        await run_in_threadpool(jobs.discard, job)
        raise


@router.put("/datastore/label")
async def save_label(request: Request, image: str, jobs: AllJobs, tag: str = "") -> Facts:
    """Take the labels of a scan that a person has finished into the folder for corrections, as a file of its name."""
    folder: Path | None = request.app.state.corrections
    if folder is None:
        raise ConfigError("this server takes no labels back", do="start it with --corrections FOLDER")
    require_name(image)
    if tag not in FINAL:
        raise ConfigError("only finished labels are taken", found=f"tag {tag}", expected="tag final")
    job = jobs.arrive()
    request.state.job = job.id
    try:
        async with asyncio.timeout(jobs.limits.seconds), read_form(request) as form:
            names = _named(_params(form))
            if not (files := _files(form, "label")):
                raise DataError("the request holds no label file", expected="the part 'label'")
            label = await run_in_threadpool(store_label, *files[0], job.folder / LABEL)
        jobs.submit(job, {}, correction={"label": label.name, "names": names})
        await _ended(request, jobs, job)
        _require_done(job)
        taken = job.folder / RESULT / job.facts["correction"]
        await run_in_threadpool(put_into, folder, image, taken)
    finally:
        await run_in_threadpool(jobs.discard, job)
    return {"image": image, "label": image}


def put_into(folder: Path, name: str, file: Path) -> None:
    """Move a label file into the folder for corrections; an older one of the same scan is kept as a hidden file."""
    for ending in LABELS:
        if (old := folder / f"{name}{ending}").exists():
            old.rename(folder / f".{name}.{secrets.token_hex(4)}{ending}")
    with atomic_path(folder / f"{name}{suffix(file)}") as temporary:
        shutil.copyfile(file, temporary)


def require_name(name: str) -> None:
    """Refuse what cannot be the name of a file, and what would lead elsewhere.

    Errors
        ConfigError     what is expected
    """
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise ConfigError(
            "the name of the image cannot be that of a file",
            expected=f"at most {_LONGEST_NAME} signs without / \\ : and without a dot in front",
            do="rename it, to the id of its case",
        )


async def _keep(request: Request, scans: Scans, name: str, part: str) -> None:
    try:
        async with asyncio.timeout(request.app.state.jobs.limits.seconds), read_form(request) as form:
            await run_in_threadpool(scans.keep, name, _files(form, part))
    except TimeoutError as error:
        raise ResourceError("the scan arrived too slowly", code="too-slow") from error


def _require_kept(name: str, scans: Scans) -> None:
    if name not in scans:
        raise DataError("there is no such session, or it has expired", code="not-found")


def _files(form: FormData, part: str) -> list[tuple[str, Any]]:
    return [(each.filename or "", each.file) for each in form.getlist(part) if isinstance(each, UploadFile)]


def _params(form: FormData) -> dict[str, Any]:
    text = form.get("params")
    try:
        params = parse_json(text) if isinstance(text, str) and text else {}
    except ValueError as error:
        raise ConfigError("the field 'params' is no JSON") from error
    return params if isinstance(params, dict) else {}


async def _json(request: Request) -> dict[str, Any]:
    """The parameters of a client that sends no file: the body is what `params` is elsewhere."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return {}
    try:
        params = parse_json((await request.body()).decode())
    except ValueError as error:
        raise ConfigError("the body is no JSON") from error
    return params if isinstance(params, dict) else {}


def _named(params: dict[str, Any]) -> dict[str, str]:
    """Value -> name of the labels in a file, as Slicer tells them: ``label_info`` is a list of name and idx."""
    listed = params.get("label_info")
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    named = [(str(each.get("idx", "")), str(each.get("name", ""))) for each in entries]
    return {value: name for value, name in named if value.isdecimal() and name}


async def _ended(request: Request, jobs: Jobs, job: Job) -> None:
    """Wait for the end of a job; if the client does not wait any longer, it is cancelled."""
    while not job.is_over:
        if await request.is_disconnected():
            jobs.cancel(job)
        await asyncio.sleep(_TICK_SECONDS)


def _require_done(job: Job) -> None:
    if job.state != "done":
        raise raised(job.error) if job.error else ResourceError("the job was cancelled")


def _answer(jobs: Jobs, job: Job, params: dict[str, Any], output: str) -> Response:
    """The labels as the client wants them; nothing of the job is left when it has them."""
    _require_done(job)
    after = BackgroundTask(jobs.discard, job)
    told = {
        "label_names": {name: number for number, name in enumerate(job.model["classes"], start=1)},
        "model_id": job.model["id"],
        "warnings": job.facts["warnings"],
    }
    if output == "json":
        return JSONResponse(told, background=after)
    wanted = (
        "dicom-seg" if output == "dicom_seg" else _BY_ENDING.get(str(params.get("result_extension")), "nifti")
    )
    if wanted not in job.facts["formats"]:
        raise ConfigError("there is no DICOM-SEG of a scan that is no DICOM series", code="not-found")
    if output in ("image", "dicom_seg"):
        answer = labels_file(job, wanted)
        answer.background = after
        return answer
    return _multipart(told, job.folder / RESULT / f"{SCAN}{LABEL_FORMATS[wanted]}", after)


def _multipart(told: Facts, labels: Path, after: BackgroundTask) -> Response:
    border = secrets.token_hex(16)
    ending = suffix(labels)
    head = (
        f'--{border}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(told)}\r\n"
        f'--{border}\r\nContent-Disposition: form-data; name="image"; filename="labels{ending}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    )
    content = head.encode() + labels.read_bytes() + f"\r\n--{border}--\r\n".encode()
    return Response(content, media_type=f"multipart/form-data; boundary={border}", background=after)
