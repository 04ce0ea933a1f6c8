"""``convert`` and ``export``: label files for the programs of clinics, cohorts and models for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from labelwise import console, run
from labelwise.cli.options import (
    AsJson,
    Binary,
    Engine,
    Labels,
    Overwrite,
    Quiet,
    Workers,
    class_values,
    is_model,
    regions,
    show,
)
from labelwise.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("convert")(convert)
    app.command("export")(export)


def convert(
    labels: Labels,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write, or a folder for it; of STL a folder with a file per structure.",
            show_default=False,
        ),
    ],
    like: Annotated[
        Path | None,
        typer.Option(help="Scan that the labels belong to, or folder of scans; DICOM needs its series."),
    ] = None,
    label_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="nifti, nrrd, dicom-seg, rtstruct, stl or glb; default: by the name of the output.",
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
    region: Annotated[
        list[str] | None,
        typer.Option(help="A further segment of DICOM-SEG: 'whole tumour=edema,core'. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write labels in another format, or as meshes. NIfTI, 3D Slicer, DICOM-SEG, RTSTRUCT; STL and GLB."""
    named = class_values(classes) if classes else None
    result = run.convert(
        labels, output, like=like, label_format=label_format, classes=named, overlap=cast("Any", overlap),
        binary=binary, region=regions(region),
    )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)


def export(
    data: Annotated[
        Path,
        typer.Argument(help="Manifest, or its folder; or a model, or the run of one.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder for data sets: nnUNet_raw of nnU-Net; of a model NAME.onnx, NAME.pt2 or a folder (MONAI).",
            show_default=False,
        ),
    ],
    number: Annotated[int, typer.Option("--id", help="Number of the data set, 1 to 999.")] = 1,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set; default: that of the folder of the manifest.")
    ] = None,
    unknown: Annotated[
        str,
        typer.Option(help="What 0 becomes where a structure is not annotated: ignore or background."),
    ] = "ignore",
    overwrite: Overwrite = False,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a cohort for nnU-Net, or a model for others: ONNX, torch.export, MONAI. Not annotated is ignored there."""
    if is_model(data):
        if (number, name, unknown) != (1, None, "ignore"):
            raise ConfigError("--id, --name and --unknown are about data sets", found=f"the model {data}")
        model = run.export_model(data, output, overwrite=overwrite)
        show(model.to_text(), model.facts(), as_json)
        return
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        written = run.export(
            data, output, number=number, name=name, unknown=cast(Any, unknown), overwrite=overwrite,
            workers=workers, engine=engine, progress=progress,
        )  # fmt: skip
    show(written.to_text(), written.facts(), as_json)
