"""``serve``: models behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labelwise import run
from labelwise.cli.options import AsJson, Device, seconds, show
from labelwise.errors import ConfigError
from labelwise.serve.limits import Limits
from labelwise.serve.listener import DicomListener

_DEFAULT = Limits()


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("serve")(serve)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders of models or of runs. NAME=FOLDER names one; of several with one NAME the mean decides.",
            show_default=False,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine with a token only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send.", show_default=False)
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="File of the audit log; default: stderr.", show_default=False)
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="Folder for labels that 3D Slicer sends back, for `labelwise import --into`.",
            show_default=False,
        ),
    ] = None,
    upload_mib: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = _DEFAULT.upload_bytes
    // 2**20,
    unpacked_mib: Annotated[
        int, typer.Option(min=1, help="Largest archive unpacked, and most voxels of a scan, in MiB.")
    ] = _DEFAULT.unpacked_bytes // 2**20,
    waiting: Annotated[int, typer.Option(min=1, help="Most scans that wait.")] = _DEFAULT.waiting,
    time_limit: Annotated[
        str, typer.Option(help="For sending a scan, and for segmenting it, such as 30m.")
    ] = "30m",
    keep: Annotated[str, typer.Option(help="How long results are kept, such as 1h.")] = "1h",
    dicom_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Also take series by DICOM (C-STORE) on this port.", show_default=False
        ),
    ] = None,
    dicom_to: Annotated[
        str | None,
        typer.Option(help="Where their labels go as DICOM-SEG: TITLE@HOST:PORT.", show_default=False),
    ] = None,
    dicom_wait: Annotated[
        str,
        typer.Option(
            help="Time without a new image after which a series is complete, when its sender has left."
        ),
    ] = "5s",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Answer over HTTP what `predict` would write. Scans in, labels out, on this machine unless asked otherwise."""
    limits = Limits(
        upload_bytes=upload_mib * 2**20, unpacked_bytes=unpacked_mib * 2**20, waiting=waiting,
        seconds=seconds(time_limit, "--time-limit"), keep_seconds=seconds(keep, "--keep"),
    )  # fmt: skip
    if (dicom_port is None) != (dicom_to is None):
        raise ConfigError(
            "--dicom-port and --dicom-to go together", do="name both: where it listens, and who gets labels"
        )
    dicom = None
    if dicom_port is not None and dicom_to is not None:
        dicom = DicomListener(dicom_port, dicom_to, seconds(dicom_wait, "--dicom-wait"))
    run.serve(
        models, host=host, port=port, token_file=token_file, audit=audit, corrections=corrections, device=device,
        limits=limits, dicom=dicom, listening=lambda serving: show(serving.to_text(), serving.facts(), as_json),
    )  # fmt: skip
