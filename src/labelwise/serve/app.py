"""The routes: which models there are, a scan to a job, a job to its labels."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import labelwise
from labelwise.errors import ConfigError, DataError, LabelwiseError, ResourceError, did_you_mean
from labelwise.formats import LABEL_FORMATS
from labelwise.serve.jobs import PAGE, RESULT, SCAN, Job, Jobs
from labelwise.serve.uploads import SCANS, store_scan
from labelwise.serve.worker import Facts, told

_MOST_FILES, _MOST_FIELDS, _LONGEST_FIELD = 64, 16, 65536
_STATUS = {
    "not-found": 404,
    "unknown-name": 404,
    "busy": 503,
    "too-large": 413,
    "not-done": 409,
    "no-form": 415,
}
_MEDIA = {"nifti": "application/gzip", "nrrd": "application/octet-stream", "dicom-seg": "application/dicom"}
_CANCELLED_BY_CLIENT = 499  # nobody reads it


router = APIRouter()


def make_app(jobs: Jobs, page: str) -> FastAPI:
    """The application without the gate around it, and the page for people. Nothing of it asks another server."""
    app = FastAPI(
        title="labelwise", version=labelwise.__version__, docs_url=None, redoc_url=None, summary=__doc__
    )
    app.state.jobs, app.state.page = jobs, page
    app.include_router(router)
    app.add_exception_handler(LabelwiseError, _explained)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _gone)
    return app


def jobs_of(request: Request) -> Jobs:
    """The jobs of the server that was asked."""
    jobs: Jobs = request.app.state.jobs
    return jobs


AllJobs = Annotated[Jobs, Depends(jobs_of)]


def job_of(request: Request, name: str, jobs: AllJobs) -> Job:
    """The job that a path names."""
    job = jobs.find(name)
    request.state.job = job.id
    return job


AJob = Annotated[Job, Depends(job_of)]


@router.get("/", include_in_schema=False)
def page_for_people(request: Request) -> HTMLResponse:
    """The page on which scans are dropped."""
    return HTMLResponse(request.app.state.page)


@router.get("/health")
def health() -> dict[str, str]:
    """Says that the server runs."""
    return {"status": "ok", "version": labelwise.__version__}


@router.get("/models")
def models(jobs: AllJobs) -> list[Facts]:
    """The models: name, id (a hash of all that decides their answers), classes, intensities, number of channels."""
    return list(jobs.models.values())


_FIELDS = ("scan", "model", "intensity", "page")
_SAID = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False, "": False}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["scan"],
                    "properties": {
                        "scan": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": f"A file for each channel ({', '.join(SCANS)}), or a .zip of DICOM",
                        },
                        "model": {"type": "string", "description": "Which model; not needed if there is one"},
                        "intensity": {"type": "string", "description": "Needed if the model knows several"},
                        "page": {"type": "boolean", "description": "Also draw a page with the viewer"},
                    },
                }
            }
        },
    }
}


@router.post("/jobs", status_code=202, openapi_extra=_FORM)
async def begin(request: Request, response: Response, jobs: AllJobs, model: str = "") -> Facts:
    """Take a scan; the answer says how its job is called. The model may also be named in the query."""
    require_form(request)
    job = jobs.arrive()
    request.state.job = job.id
    try:
        async with asyncio.timeout(jobs.limits.seconds), read_form(request) as form:
            refuse_unknown(form, _FIELDS)
            drawn = _said(form, "page")
            wanted = chosen(jobs.models, _text(form, "model") or model)
            intensity = fitting(wanted, _text(form, "intensity"))
            files = [each for each in form.getlist("scan") if isinstance(each, UploadFile)]
            named = [(each.filename or "", each.file) for each in files]
            passed_over = await run_in_threadpool(store_scan, named, job.folder / SCAN, jobs.limits)
    except BaseException as error:
        jobs.discard(job)
        if isinstance(error, TimeoutError):
            raise ResourceError("the scan arrived too slowly", code="too-slow") from error
        raise
    jobs.submit(job, wanted, intensity=intensity, page=drawn, passed_over=passed_over)
    response.headers["Location"] = f"/jobs/{job.id}"
    return job_facts(job, jobs)


@router.get("/jobs/{name}")
def state(job: AJob, jobs: AllJobs) -> Facts:
    """How far a job is, and at its end what became of it."""
    return job_facts(job, jobs)


@router.delete("/jobs/{name}", status_code=204)
def cancel(job: AJob, jobs: AllJobs) -> None:
    """Stop a job, or remove its result."""
    jobs.cancel(job)


@router.get("/jobs/{name}/labels/{label_format}", response_class=FileResponse)
def labels(job: AJob, label_format: str) -> FileResponse:
    """The labels as nifti, nrrd (3D Slicer) or, of a DICOM series, dicom-seg."""
    require_done(job)
    formats = job.facts["formats"]
    if label_format not in formats:
        raise ConfigError(
            f"there are no labels in the format '{label_format}'{did_you_mean(label_format, formats)}",
            expected=", ".join(formats),
            code="unknown-name",
        )
    return labels_file(job, label_format)


@router.get("/jobs/{name}/page", response_class=HTMLResponse)
def result_page(job: AJob) -> FileResponse:
    """The page of a result: pictures, volumes, the viewer. It stands by itself."""
    require_done(job)
    if not job.facts["page"]:
        raise DataError("no page of this result was asked for", code="not-found")
    return FileResponse(job.folder / RESULT / PAGE, media_type="text/html")


def refuse_unknown(form: FormData, known: Sequence[str]) -> None:
    """Errors: ConfigError if a form has a part that nobody reads."""
    if unknown := [name for name in form if name not in known]:
        raise ConfigError(
            f"unknown part '{unknown[0]}' of the form{did_you_mean(unknown[0], known)}",
            expected=", ".join(known),
            code="unknown-part",
        )


def require_form(request: Request) -> None:
    """Errors: ConfigError if a request is no form with parts, as bare bytes in its body are none."""
    if not (found := request.headers.get("content-type", "")).startswith("multipart/form-data"):
        raise ConfigError(
            "the request is no form",
            found=found or "no content type",
            expected="multipart/form-data with a file in the part 'scan'",
            do="send it as in: curl -F scan=@scan.nii.gz",
            code="no-form",
        )


def read_form(request: Request) -> AbstractAsyncContextManager[FormData]:
    """The parts of a request; files lie in temporary files that have no name."""
    return request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD)


def chosen(models: Mapping[str, Facts], name: str) -> Facts:
    """The model of a name; the only one if none is named.

    Errors
        ConfigError     there is none of this name, or none is named although there are several
    """
    if not name and len(models) == 1:
        return next(iter(models.values()))
    if name not in models:
        what = f"unknown model '{name}'{did_you_mean(name, models)}" if name else "no model is named"
        raise ConfigError(what, expected=", ".join(models), code="unknown-name")
    return models[name]


def fitting(model: Facts, intensity: str) -> str:
    """The rule for the intensities of a scan: the one that is asked for, or the only one of the model.

    Errors
        ConfigError     unknown, or not said although the model knows several
    """
    known = model["intensities"]
    if intensity not in known and (intensity or len(known) > 1):
        what = (
            f"the model knows no intensities '{intensity}'"
            if intensity
            else "the model knows several kinds of intensities"
        )
        raise ConfigError(what, expected=f"the field 'intensity': {', '.join(known)}", code="unknown-name")
    return intensity or str(known[0])


def labels_file(job: Job, label_format: str) -> FileResponse:
    """The labels of a job that is done, under a name that says nothing."""
    name = f"labels{LABEL_FORMATS[label_format]}"
    path = job.folder / RESULT / f"{SCAN}{LABEL_FORMATS[label_format]}"
    return FileResponse(path, media_type=_MEDIA[label_format], filename=name)


def require_done(job: Job) -> None:
    """Errors: ConfigError if there is no result yet, or none at all."""
    if job.state != "done":
        raise ConfigError("the job has no result", found=job.state, code="not-done")


def job_facts(job: Job, jobs: Jobs) -> Facts:
    """What a client is told of a job."""
    place = f"/jobs/{job.id}"
    facts: Facts = {
        "id": job.id,
        "state": job.state,
        "model": job.model["name"],
        "model_id": job.model["id"],
        "ahead": jobs.ahead(job),
        "done": job.done,
        "total": job.total,
        "worker_deaths": job.deaths,
    }
    if job.error is not None:
        facts["error"] = job.error
    if job.state == "done":
        facts |= {
            **job.facts,
            "formats": {name: f"{place}/labels/{name}" for name in job.facts["formats"]},
            "page": f"{place}/page" if job.facts["page"] else None,
        }
    return facts


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value if isinstance(value, str) else ""


def _said(form: FormData, name: str) -> bool:
    """Errors: ConfigError if a part is neither yes nor no."""
    value = _text(form, name)
    if value.lower() not in _SAID:
        raise ConfigError(f"'{value}' is no value of '{name}'", expected="true or false", code="unknown-name")
    return _SAID[value.lower()]


async def _explained(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LabelwiseError)
    by_kind = 400 if isinstance(error, ConfigError) else 422 if isinstance(error, DataError) else 503
    facts: dict[str, Any] = told(error, request.app.state.jobs.root)
    return JSONResponse({**facts, "message": str(error)}, _STATUS.get(error.code, by_kind))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = "not-found" if error.status_code == 404 else "refused"
    facts = {"error": "Refused", "code": code, "message": str(error.detail)}
    return JSONResponse(facts, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CANCELLED_BY_CLIENT)
