"""``import``, ``check``, ``measure``, ``split``, ``simulate``, ``prepare``: from folders of scans to prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

import labelwise
from labelwise import console, run
from labelwise.cli.options import (
    AsJson,
    Data,
    Engine,
    Output,
    Quiet,
    Workers,
    class_values,
    overrides,
    pairs,
    regions,
    settings_option,
    show,
    words,
)
from labelwise.errors import ConfigError

DATA_CHECK_FAILED = 3
# What people write after --set of `import`, though it is no option of an importer.
ANOTHER_OPTION = {
    "folders": "the arguments FOLDERS",
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "output", "importer", "annotated", "sides", "find_duplicates", "test_data_set", "validation", "test",
            "seed", "workers", "engine", "quiet", "others", "overlap", "undrawn", "file_names", "licence", "region",
        )
    },
    "progress": "--quiet",
}  # fmt: skip


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("import")(import_)
    app.command("review")(review)
    app.command("suggest")(suggest)
    app.command("check")(check)
    app.command("measure")(measure)
    app.command("split")(split)
    app.command("simulate")(simulate)
    app.command("prepare")(prepare)


def import_(
    context: typer.Context,
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDERS", help="A data set each: a folder, or name=folder.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(help="Manifest that takes back corrected label files; see `labelwise review`."),
    ] = None,
    verified: Annotated[
        str | None,
        typer.Option(help="With --into: classes that were looked at and are right: liver,spleen or all."),
    ] = None,
    importer: Annotated[
        str | None,
        typer.Option(
            help="lits, msd, kits, nih_pancreas, amos22, word, btcv, flare22, abdomenct1k, totalsegmentator, "
            "bids, nnunet, la2018, acdc, decathlon, csv, mixed, dicom, folders, or one of another package; "
            "default: found out."
        ),
    ] = None,
    annotated: Annotated[
        list[str] | None,
        typer.Option(help="Structures annotated: liver,spleen or DATA_SET=liver,spleen. Repeatable."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Values in label files: liver=1,tumour=2.")] = None,
    modality: Annotated[str | None, typer.Option(help="ct, mr or other.")] = None,
    normalised: Annotated[
        str | None,
        typer.Option(
            help="Data sets whose makers normalised the intensities, which then stay as they are: all, or names."
        ),
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder of the images, for plain folders.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Folder of the labels; for acdc: dense or scribble.")
    ] = None,
    group: Annotated[str | None, typer.Option(help=r"Regular expression of the patient: patient\d+.")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of splits_final.json that validates.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Option of the importers: tumour=class, of one data set: kits.tumour=class. Repeatable.",
        ),
    ] = None,
    sides: Annotated[
        list[str] | None,
        typer.Option(
            help="Where data sets disagree about left and right: join or split, or kidneys=join. Repeatable."
        ),
    ] = None,
    find_duplicates: Annotated[
        bool, typer.Option("--find-duplicates", help="Read all images; equal ones become one group.")
    ] = False,
    test_data_set: Annotated[
        str | None,
        typer.Option(help="The data set that tests, while all others train."),
    ] = None,
    validation: Annotated[float, typer.Option(help="Patients (or part below 1) set aside to validate.")] = 0,
    test: Annotated[float, typer.Option(help="Patients (or part below 1) set aside to test.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides which patients are set aside.")] = 0,
    others: Annotated[
        str | None,
        typer.Option(help="Label values that no class has: background or ignore; default: an error."),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(help="Which structure counts where two overlap: later, smaller, or kept (both)."),
    ] = None,
    undrawn: Annotated[
        str,
        typer.Option(help="Structures that a file lists but nobody drew: unknown (not annotated) or absent."),
    ] = "unknown",
    file_names: Annotated[
        str, typer.Option(help="Names that label files give to their values: believed or ignored.")
    ] = "believed",
    licence: Annotated[
        list[str] | None,
        typer.Option(
            help="Terms of the data: 'CC BY 4.0' or DATA_SET='CC BY 4.0'; default: as known. Repeatable."
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(help="A name for several classes together: 'whole tumour=edema,core'. Repeatable."),
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Describe folders of scans by a manifest. Or take corrected label files back into one. Scans are not copied."""
    if into is not None:
        _take_back(context, folders, into, classes=classes, verified=verified, quiet=quiet, as_json=as_json)
        return
    if output is None:
        raise ConfigError("no place for the manifest", do="name a folder: --output FOLDER")
    if verified is not None:
        raise ConfigError(
            "--verified belongs to corrected label files", do="name their manifest: --into DATA"
        )
    options = _options(
        settings, classes=class_values(classes) if classes else None, modality=modality, images=images, labels=labels,
        group=group, fold=fold,
    )  # fmt: skip
    found = pairs(folders, "FOLDERS") if _named(folders, "FOLDERS") else folders
    known: Any = None
    if annotated:
        known = (
            {k: words(v) for k, v in pairs(annotated, "--annotated").items()}
            if _named(annotated, "--annotated")
            else words(",".join(annotated))
        )
    reading: Any = {"others": others, "overlap": overlap, "undrawn": undrawn}
    reading["file_names"] = None if file_names == "believed" else file_names
    reading["normalised"] = normalised == "all" or words(normalised or "")
    terms: Any = None
    if licence:
        terms = pairs(licence, "--licence") if _named(licence, "--licence") else "; ".join(licence)
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        manifest = run.import_data(
            found, output, importer=importer, annotated=known, sides=_sides(sides), licence=terms, **reading,
            find_duplicates=find_duplicates, test_data_set=test_data_set, validation=_share(validation),
            test=_share(test), seed=seed, region=regions(region), workers=workers, engine=engine, progress=progress,
            **options,
        )  # fmt: skip
    splits = {name or "none": len(manifest.split(name)) for name in ("train", "validation", "test", "")}
    facts = {"manifest": str(output), "classes": list(manifest.label_space.names), "cases": splits}
    counts = ", ".join(f"{count} {name}" for name, count in splits.items() if count)
    named = ", ".join(manifest.label_space.structures) or "none, because nothing is labelled"
    if manifest.label_space.regions:
        facts["regions"] = dict(manifest.label_space.regions)
        named += "".join(f"; {name} = {', '.join(parts)}" for name, parts in manifest.label_space.regions)
    show(f"{output}/manifest.csv: {counts}; classes {named}", facts, as_json)


def _take_back(
    context: typer.Context,
    files: list[str],
    into: Path,
    *,
    classes: str | None,
    verified: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """``import FILES --into DATA``."""
    fitting = {"folders", "into", "verified", "classes", "quiet", "as_json"}
    said_by = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, where in said_by.items() if where is not None and where.name != "DEFAULT"}
    if strange := sorted(given - fitting):
        raise ConfigError(
            f"--{strange[0].replace('_', '-')} does not go with --into",
            expected="--classes, --verified, --quiet and --json",
        )
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.correct(
            into, files, classes=class_values(classes) if classes else None, verified=words(verified) or (),
            progress=progress,
        )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)


def _options(settings: list[str] | None, **named: Any) -> dict[str, Any]:
    """Options of the importers: those with a name of their own, and those of --set, which are stronger."""
    given = overrides(settings)
    for key in given:
        if key in ANOTHER_OPTION:
            raise ConfigError(f"{key} is no option of an importer", do=f"use {ANOTHER_OPTION[key]}")
    return named | given


def _sides(texts: list[str] | None) -> Any:
    """``["join"]`` -> "join", ``["kidneys=join"]`` -> {"kidneys": "join"}."""
    if not texts:
        return None
    if _named(texts, "--sides"):
        return pairs(texts, "--sides")
    if len(texts) > 1:
        raise ConfigError("--sides is one choice, or one for each class", found=" ".join(texts))
    return texts[0]


def _named(texts: list[str], option: str) -> bool:
    """Whether the texts have the form name=content: each of them, or none."""
    with_name = ["=" in text for text in texts]
    if any(with_name) and not all(with_name):
        raise ConfigError(
            f"{option} has a name in some places only",
            found=" ".join(texts),
            expected="name=... everywhere, or nowhere",
        )
    return all(with_name)


def _share(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def review(
    data: Data,
    output: Output,
    split: Annotated[str | None, typer.Option(help="Only these cases; default: all.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Table of `labelwise evaluate`: its cases, the worst first.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="So many cases only.")] = None,
    label_format: Annotated[
        str | None, typer.Option("--format", help="A further file for each case: dicom-seg or rtstruct.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A work list of proposals, the most doubtful first. With files for 3D Slicer and ITK-SNAP."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        result = run.review(
            data, output, split=split, scores=scores, top=top, label_format=label_format, progress=progress
        )
    show(result.to_text(), result.facts(), as_json)
    if result.failed:
        raise typer.Exit(1)


def suggest(
    data: Data,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Masks to suggest.")] = 10,
    by: Annotated[
        str, typer.Option(help="Who is chosen among equal cases: random, or doubt (lowest expected Dice).")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    split: Annotated[str, typer.Option(help="Whose cases are annotated.")] = "train",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table to write (.csv).", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which structure of which scan to annotate next, so that no class falls behind."""
    result = run.suggest(data, number=number, by=cast(Any, by), seed=seed, split=split, output=output)
    show(result.to_text(), result.facts(), as_json)


def check(
    data: Data,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for check.json and the coverage matrix.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Folder for repaired copies and a manifest that refers to them.")
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List every problem of a cohort at once, with remedies. Prints which data set annotates what, too."""
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        report = run.check(data, output, fix=fix, workers=workers, engine=engine, progress=progress)
    show(report.to_text(), report.facts(), as_json)
    if report.num_errors:
        raise typer.Exit(DATA_CHECK_FAILED)


def measure(
    data: Annotated[Path, typer.Argument(help="A manifest, or a folder of label files.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for measures.csv and measures.json.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Of a folder: values in its label files: liver=1,spleen=2.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Of a folder: where the scans of the same names lie.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a manifest: only these cases; default: all.")] = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Volume, intensities and place of every annotated structure. From label maps that exist."""
    values = class_values(classes) if classes else None
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        measured = run.measure(
            data, output, classes=values, images=images, split=split, workers=workers, engine=engine,
            progress=progress,
        )  # fmt: skip
    show(measured.to_text(), measured.facts(), as_json)
    if measured.failures:
        raise typer.Exit(DATA_CHECK_FAILED)


def split(
    data: Data,
    output: Output,
    folds: Annotated[
        int | None, typer.Option(help="Folds of a cross-validation: each annotated patient tests once.")
    ] = None,
    by_data_set: Annotated[
        bool, typer.Option("--by-data-set", help="One fold for each data set: it tests, the others train.")
    ] = False,
    validation: Annotated[
        float | None,
        typer.Option(help="Patients (or part below 1) that validate; of each fold, with --folds."),
    ] = None,
    test: Annotated[float, typer.Option(help="Patients (or part below 1) that test; without --folds.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides the draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw who trains, validates and tests; or the folds of a cross-validation. Scans are not copied."""
    result = run.split(
        data, output, folds=folds, by_data_set=by_data_set, test=_share(test), seed=seed,
        validation=None if validation is None else _share(validation),
    )  # fmt: skip
    show(result.to_text(), result.facts(), as_json)


def simulate(
    data: Data,
    output: Output,
    mode: Annotated[
        str,
        typer.Option(
            help="keep_labelled, one_structure_per_case, structures_per_case, equal_cost, by_data_set, ltuda_toy or "
            "ltuda_union."
        ),
    ],
    settings: Annotated[
        list[str] | None, settings_option("Setting of the mode as key=value, e.g. n=8 or seed=1.")
    ] = None,
    hold_out: Annotated[int, typer.Option(help="Last training patients of the list become validation.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make labels scarce: --mode keep_labelled --set n=8. Label files are never rewritten."""
    chosen = overrides(settings)
    if "held_out" in chosen:
        raise ConfigError("held_out is no setting of a mode", do="use --hold-out")
    manifest = run.simulate(data, output, mode, held_out=hold_out, **chosen)
    train = manifest.split("train")
    annotated = sum(bool(case.annotated) for case in train)
    masks = {
        structure: sum(structure in case.annotated for case in train)
        for structure in manifest.label_space.structures
    }
    total = sum(masks.values())
    splits = {name: len(manifest.split(name)) for name in ("validation", "test")}
    facts = {"manifest": str(output), "train": len(train), **splits, "annotated": annotated}
    facts |= {"structure_masks": total, "structure_masks_by_class": masks}
    text = (
        f"{output}/manifest.csv: {annotated} of {len(train)} training cases annotated, {total} masks; "
        f"{splits['validation']} validation and {splits['test']} test cases\n"
        f"masks: {', '.join(f'{structure} {count}' for structure, count in masks.items())}"
    )
    show(text, facts, as_json)


def prepare(
    data: Data,
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose [prepare] settings are used.")] = None,
    settings: Annotated[
        list[str] | None,
        settings_option("Setting of the preparation as key=value, e.g. prepare.spacing_mm=[1,1,2]."),
    ] = None,
    workers: Workers = None,
    engine: Engine = "local",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Resample and normalise every scan once into a store that all runs share. Repeat it to continue."""
    chosen = labelwise.load_config(recipe, overrides(settings), data=str(data))
    with console.watch(quiet=quiet, as_json=as_json) as progress:
        prepared = run.prepare(chosen, workers=workers, engine=engine, progress=progress)
    prepared.require_all()
    facts = {
        "store": str(prepared.store.folder),
        "cases": len(prepared.keys),
        "written": len(prepared.written),
    }
    show(
        f"{prepared.store.folder}: {len(prepared.keys)} scans, {len(prepared.written)} of them new",
        facts,
        as_json,
    )
