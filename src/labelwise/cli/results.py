"""``predict``, ``evaluate``, ``compare``, ``report``: from a model and scans to label files, numbers and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from labelwise import console, run
from labelwise.atomic import write_text
from labelwise.cli.options import (
    AsJson,
    Binary,
    Data,
    Device,
    Engine,
    Labels,
    Overwrite,
    Quiet,
    Workers,
    class_values,
    is_model,
    overrides,
    settings_option,
    show,
    words,
)
from labelwise.errors import ConfigError, did_you_mean

Runs = Annotated[
    list[Path], typer.Argument(help="Folders of evaluated runs; NAME_seed0, NAME_seed1 count as one.")
]
Metrics = Annotated[str, typer.Option(help="Metrics to show, separated by commas.")]
FORMATS = ("text", "markdown", "latex", "csv", "json")  # Comparison.to_...


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("predict")(predict)
    app.command("calibrate")(calibrate)
    app.command("evaluate")(evaluate)
    app.command("compare")(compare)
    app.command("cost")(cost)
    app.command("agreement")(agreement)
    app.command("report")(report)
    app.command("show")(show_result)


def predict(
    model: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL... SCANS",
            help="Folder of a model or of a run, or several, whose mean decides; then a scan, a folder, a list (.txt, "
            ".csv) or a manifest.",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for label files.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Manifest that gets the results as proposals; see `labelwise review`.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a manifest: which cases; default: test, with --into train.")
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            "--intensity",
            "--modality",
            help="What the intensities are, if the model knows several kinds: ct, mr or normalised.",
        ),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Which classifier decides, if the model has several.")
    ] = None,
    label_format: Annotated[
        str, typer.Option("--format", help="nifti, nrrd; of DICOM series also dicom-seg, rtstruct.")
    ] = "nifti",
    binary: Binary = False,
    maps: Annotated[
        str | None, typer.Option(help="Further files: probabilities, entropy, or both with a comma between.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            "--devices",
            "-d",
            help="auto, cpu, cuda, cuda:1 or mps; all: a process on each GPU; or several with commas between.",
        ),
    ] = "auto",
    engine: Engine = "local",
    settings: Annotated[
        list[str] | None,
        settings_option("Setting of the sliding window or the clean-up as key=value, e.g. overlap=0.75."),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Segment scans; label files lie on the grid of their scan. Finished scans are skipped on repetition."""
    models, scans = (model, None) if into is not None else (model[:-1], model[-1])
    strange = [path for path in models[1:] if not is_model(path)]
    if into is not None and (strange or output or overwrite or binary or maps or label_format != "nifti"):
        raise ConfigError(
            "--into segments the cases of its manifest and keeps them beside it, as NIfTI",
            do="leave out SCANS, --output, --overwrite, --format, --binary and --maps; choose cases by --split",
        )
    shared: dict[str, Any] = {
        "intensity": intensity, "classifier": classifier, "device": device, "engine": engine,
        "settings": overrides(settings),
    }  # fmt: skip
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        if into is not None:
            result = run.propose(models, into, split=split or "train", progress=progress, **shared)
        elif scans is not None and models:
            result = run.predict(
                models, scans, output or _beside(models), split=split or "test", label_format=label_format,
                binary=binary, maps=words(maps) or (), overwrite=overwrite, progress=progress, **shared,
            )  # fmt: skip
        else:
            raise ConfigError(
                "no scans named", do="name a scan, a folder, a list or a manifest; or --into MANIFEST"
            )
    show(result.to_text(), result.facts(), as_json)
    if result.failed:
        raise typer.Exit(1)


def _beside(models: list[Path]) -> Path:
    if len(models) > 1:
        raise ConfigError("predictions of several models need a place", do="name a folder: --output FOLDER")
    return models[0] / "predictions"


def calibrate(
    model: Annotated[Path, typer.Argument(help="Model folder, or the folder of a run.", show_default=False)],
    data: Data,
    split: Annotated[
        str, typer.Option(help="Annotated cases that the model has not learnt from.")
    ] = "validation",
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how far a model's certainty may be believed. And mend it by a temperature."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.calibrate(model, data, split=split, device=device, progress=progress)
    show(result.to_text(), result.facts(), as_json)


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of label files, or of a run.", show_default=False)
    ],
    reference: Annotated[
        Path, typer.Argument(help="A manifest, or a folder of label files.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file; default scores.csv of the run.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of a manifest: which cases.")] = "test",
    unit: Annotated[str, typer.Option(help="mm or voxels, for distances.")] = "mm",
    variant: Annotated[
        str, typer.Option(help="default, or la_official for the rules of the LA codes.")
    ] = "default",
    classes: Annotated[
        str | None, typer.Option(help="Values in label files that do not name them: liver=1,spleen=2.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Further metrics: lesions, boundary_iou, slice_hd, calibration_error, or of other packages."
        ),
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score predictions per case and class: only what is annotated counts."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.evaluate(
            predictions, reference, output, split=split, unit=unit, variant=variant,
            classes=class_values(classes) if classes else None, metrics=words(metrics) or (), workers=workers,
            engine=engine, progress=progress,
        )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)


def compare(
    runs: Runs,
    metrics: Metrics = "dice,hd95",
    reference: Annotated[
        str | None, typer.Option(help="Run that the others are compared with; default the first.")
    ] = None,
    as_format: Annotated[
        str, typer.Option("--format", help="text, markdown, latex (booktabs), csv or json.")
    ] = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tables of runs: means, intervals, paired differences, ranks."""
    if as_format not in FORMATS:
        raise ConfigError(
            f"unknown format '{as_format}'{did_you_mean(as_format, FORMATS)}", expected=", ".join(FORMATS)
        )
    comparison = run.compare(runs, metrics=_metrics(metrics), reference=reference)
    text: str = getattr(comparison, f"to_{as_format}")()
    if output is not None:
        write_text(output, text)
        text = f"comparison: {output}"
    show(text, json.loads(comparison.to_json()), as_json)


def cost(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of sweeps with budgets, or of evaluated runs.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for cost.csv, cost.txt and cost.png.")
    ] = None,
    dice: Annotated[str, typer.Option(help="Dice values that are wanted, separated by commas.")] = "0.8,0.9",
    by: Annotated[
        str, typer.Option(help="What is counted: masks of the structure, or scans with any mask.")
    ] = "masks",
    as_json: AsJson = False,
) -> None:
    """Dice against the number of masks or scans drawn, and how many more are needed."""
    try:
        wanted = [float(word) for word in words(dice) or ()]
    except ValueError as error:
        raise ConfigError("--dice is a list of numbers", found=dice, expected="such as 0.8,0.9") from error
    result = run.cost(runs, output, dice=wanted, by=cast(Any, by))
    show(result.to_text(), result.facts(), as_json)


def agreement(
    runs: Runs,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for agreement.csv and agreement.txt.")
    ] = None,
    cases: Annotated[int, typer.Option(help="How many of the cases that disagree most are listed.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Ask whether data sets draw the same structures. Tables of data sets, from runs that left one of them out."""
    result = run.agreement(runs, output, cases=cases)
    show(result.to_text(), result.facts(), as_json)


def report(
    runs: Runs,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    metrics: Metrics = "dice,hd95",
    reference: Annotated[
        str | None, typer.Option(help="Run that the others are compared with; default the first.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of the worst cases; half as many of the best.")] = 6,
    viewer_cases: Annotated[
        int, typer.Option(help="Cases in the viewer, the worst first; 0 for no viewer.")
    ] = 4,
    budgets: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a sweep with budgets: what its labels are worth stands in the page. Repeatable."
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Headline of the page.")] = "Comparison of runs",
    as_json: AsJson = False,
) -> None:
    """One HTML page that compares runs and stands by itself. Tables, plots, worst and best cases, a viewer, curves."""
    run.report(
        runs, output, metrics=_metrics(metrics), reference=reference, title=title, pictures=pictures,
        viewer_cases=viewer_cases, budgets=budgets or (),
    )  # fmt: skip
    show(f"report: {output}", {"report": str(output)}, as_json)


def _metrics(text: str) -> list[str]:
    if not (names := words(text)):
        raise ConfigError("--metrics names no metric", expected="names separated by commas, e.g. dice,hd95")
    return names


def show_result(
    labels: Labels,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .png or .html file, or a folder for several.", show_default=False
        ),
    ],
    image: Annotated[
        Path | None, typer.Option(help="Scan that the labels belong to, or folder of scans.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Values in label files that do not name them: liver=1,spleen=2.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pictures or a page of results without a reference. Planes, the structures in space, volumes."""
    result = run.show(labels, output, image=image, classes=class_values(classes) if classes else None)
    show(result.to_text(), result.facts(), as_json)
