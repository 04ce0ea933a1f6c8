"""``convert``: label files for the programs of clinics, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from labelwise import run
from labelwise.cli.options import AsJson, Binary, class_values, show


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to the command line."""
    app.command("convert")(convert)


def convert(
    labels: Annotated[
        Path,
        typer.Argument(
            help="A label file, a folder with a mask per organ, or a folder of label files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write, or a folder for it.", show_default=False)
    ],
    like: Annotated[
        Path | None,
        typer.Option(help="Scan that the labels belong to, or folder of scans; DICOM needs its series."),
    ] = None,
    label_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="nifti, nrrd, dicom-seg or rtstruct; default: by the name of the output."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Values in the label file: liver=1,tumour=2; default: as it says itself."),
    ] = None,
    overlap: Annotated[
        str, typer.Option(help="Which structure counts where two overlap: later or smaller.")
    ] = "later",
    binary: Binary = False,
    as_json: AsJson = False,
) -> None:
    """Write labels as NIfTI, as a segmentation of 3D Slicer, as DICOM-SEG or as RTSTRUCT."""
    named = class_values(classes) if classes else None
    result = run.convert(
        labels, output, like=like, label_format=label_format, classes=named, overlap=cast("Any", overlap),
        binary=binary,
    )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)
