"""`serve`: models behind HTTP, on this machine unless asked otherwise."""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelwise.errors import ConfigError, ResourceError
from labelwise.infer.model import model_folder
from labelwise.plugins import import_extra
from labelwise.report.upload_page import upload_page
from labelwise.run.served import load_served
from labelwise.serve.audit import Audit, open_audit
from labelwise.serve.jobs import Jobs
from labelwise.serve.limits import Limits
from labelwise.serve.listener import DicomListener
from labelwise.serve.worker import Worker

__all__ = ["Serving", "serve"]

_SHORTEST_TOKEN = 16
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_MOST_CONNECTIONS = 64
_LAST_ANSWERS_SECONDS = 5


@dataclass(frozen=True)
class Serving:
    """A server that answers now."""

    url: str
    models: Sequence[dict[str, Any]]
    needs_token: bool
    dicom: str = ""  # where the DICOM node answers, and where it sends; "" if there is none

    def to_text(self) -> str:
        """A line for each model, and where they answer."""
        lines = [
            f"{model['name']} ({model['id']}): {', '.join(model['classes'])}, on {model['device']}"
            for model in self.models
        ]
        token = ", with the token" if self.needs_token else ""
        node = [f"DICOM: {self.dicom}"] if self.dicom else []
        return "\n".join([*lines, *node, f"answers at {self.url}{token}; Ctrl-C ends it"])

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        facts = {"url": self.url, "models": list(self.models), "needs_token": self.needs_token}
        return facts | ({"dicom": self.dicom} if self.dicom else {})


def serve(
    models: Sequence[Path | str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | str | None = None,
    audit: Path | str | None = None,
    corrections: Path | str | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    dicom: DicomListener | None = None,
    listening: Callable[[Serving], None] = lambda serving: None,
) -> None:
    """Answer requests until the program is ended (Ctrl-C, SIGTERM). What is served is what `predict` writes.

    One process holds all models and the device, and segments one scan after the other. What a request has sent is
    removed when its job ends, the result when it is fetched no more (`limits`); all of it when the server ends.

    Arguments
        models      folders of models or of runs; ``NAME=FOLDER`` gives one another name, and of several with one NAME
                    the mean of their scores decides
        host, port  where it listens; 0 for any free port. Other machines are answered only with a token
        token_file  file with the token (16 signs or more) that clients send as ``Authorization: Bearer TOKEN``
        audit       file to which a line is appended for each request and each job; default: stderr
        corrections folder for label files that clients of MONAI Label send back; `labelwise import --into` takes it
        dicom       also take series by C-STORE, on this machine only, and send their labels to another node
        listening   is told when the server answers

    Errors
        ConfigError     two models of one name, a name that fits into no address, no token although others could ask,
                        models that DICOM cannot tell apart
        CheckpointError, ConfigError    those of `load_model`
        ResourceError   the port is taken, the extra `serve` is not installed, the token cannot be read
    """
    opened = ready(
        models,
        host=host,
        port=port,
        token_file=token_file,
        audit=audit,
        corrections=corrections,
        device=device,
        limits=limits,
        dicom=dicom,
    )
    with _ended_as_by_a_key(), opened as (serving, server, door):
        listening(serving)
        with suppress(KeyboardInterrupt):  # how a server ends
            server.run(sockets=[door])


@contextmanager
def ready(
    models: Sequence[Path | str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | str | None = None,
    audit: Path | str | None = None,
    corrections: Path | str | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    dicom: DicomListener | None = None,
) -> Iterator[tuple[Serving, Any, socket.socket]]:
    """A server of uvicorn whose models are loaded, and the socket to run it on. Arguments and errors of `serve`."""
    why = "serving needs the extra 'serve'"
    app, gate, monai_label = (
        import_extra(f"labelwise.serve.{name}", "serve", why) for name in ("app", "gate", "monai_label")
    )
    uvicorn = import_extra("uvicorn", "serve", why)
    limits = limits or Limits()
    folders = _named(models)
    node = None if dicom is None else _node(folders)
    token = None if token_file is None else _token(Path(token_file))
    if not _is_loopback(host) and token is None:
        raise ConfigError(
            "other machines could reach this server, and it has no token",
            found=f"--host {host}",
            do="name a file with a token: --token-file FILE; or leave out --host",
        )
    with (
        _listening_on(host, port) as door,
        open_audit(None if audit is None else Path(audit)) as log,
        tempfile.TemporaryDirectory(prefix="labelwise-serve-", ignore_cleanup_errors=True) as root,
    ):
        worker = Worker(partial(load_served, folders, device, limits.unpacked_bytes), Path(root))
        jobs = Jobs(Path(root), worker, worker.start(), limits, log)
        with_dicom = _taking_dicom(node, dicom, jobs, log) if dicom and node else nullcontext("")
        guarded = gate.Gate(
            monai_label.with_monai_label(
                app.make_app(jobs, upload_page()),
                corrections=None if corrections is None else Path(corrections).absolute(),
                token=token,
            ),
            hosts=gate.LOOPBACK if _is_loopback(host) else None,
            token=token,
            upload_bytes=limits.upload_bytes,
            audit=log,
        )
        config = uvicorn.Config(
            guarded,
            log_level="critical",  # its messages repeat what clients send
            access_log=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
        )
        try:
            with with_dicom as address:
                serving = Serving(_url(door, host), list(jobs.models.values()), token is not None, address)
                yield serving, uvicorn.Server(config), door
        finally:
            jobs.close()


def _named(models: Sequence[Path | str]) -> dict[str, list[Path]]:
    """The folders of each model, by its name."""
    named: dict[str, list[Path]] = {}
    said: set[str] = set()
    for given in models:
        name, equals, path = str(given).partition("=")
        if not equals or Path(given).exists():
            folder = model_folder(Path(given).resolve())
            name, path = folder.parent.name if folder.name == "model" else folder.name, str(given)
            if name in named:
                raise ConfigError(
                    "two models have one name", found=name, do="give them names: NAME=FOLDER for each"
                )
        elif name in named and name not in said:
            raise ConfigError("two models have one name", found=name, do="choose another name")
        else:
            said.add(name)
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' fits into no address",
                expected="letters, digits, and the signs . _ -",
                do="give the model a name: NAME=FOLDER",
            )
        named.setdefault(name, []).append(Path(path).absolute())
    if not named:
        raise ConfigError("no model named", do="name the folder of a model or of a run")
    return named


def _node(names: Collection[str]) -> Any:
    """The module of the DICOM node, if it can tell the models of these names apart."""
    node = import_extra(
        "labelwise.serve.dicom_node", "dicom-node", "a DICOM node needs the extra 'dicom-node'"
    )
    if len({node.title_of(name) for name in names}) < len(names):
        raise ConfigError(
            "two models have one title in DICOM",
            found=", ".join(names),
            expected=f"names that differ in their first {node.LONGEST_TITLE} signs, in more than capitals",
            do="give them other names: NAME=FOLDER",
        )
    return node


@contextmanager
def _taking_dicom(node: Any, dicom: DicomListener, jobs: Jobs, log: Audit) -> Iterator[str]:
    """A node that listens; what is said of it."""
    opened = node.DicomNode(jobs, dicom, log)
    try:
        titles = " or ".join(map(node.title_of, jobs.models)) if len(jobs.models) > 1 else dicom.title
        yield f"{titles} at {node.LOOPBACK}, port {opened.port}; labels go to {dicom.to}"
    finally:
        opened.close()


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ResourceError(f"the token cannot be read: {error}", file=file) from error
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "this is no token",
            file=file,
            expected=f"one line of {_SHORTEST_TOKEN} or more letters and digits that nobody can guess",
            do="make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _listening_on(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"cannot listen: {error}", found=f"{host}, port {port}", do="choose another --port or --host"
        ) from error
    with listening:
        yield listening


def _url(listening: socket.socket, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


@contextmanager
def _ended_as_by_a_key() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does: files of patients are removed."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
