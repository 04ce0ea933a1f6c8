"""What scores were made from: results of one model, one kind of prediction and the label files that lie there now."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwise.atomic import write_json
from labelwise.documents import read_json
from labelwise.errors import DataError, LabelwiseError
from labelwise.formats import LABEL_FORMATS, case_of, hash_file
from labelwise.infer.record import deciding, read_record, told_beside
from labelwise.run.pairing import PREDICTIONS, SCORES

_AGAIN = "repeat `labelwise predict` with --overwrite, then `labelwise evaluate`"


def check_predictions(files: Mapping[str, Path]) -> str | None:
    """The model of some label files (by case), as their records say; None if no record names one.

    Errors
        DataError   labels of two models, or of two kinds of prediction, or of another model than that of their run
    """
    kinds: dict[str, tuple[str, Any]] = {}
    for case, file in files.items():
        record = told_beside(file)
        if "model" in record:
            kinds[case] = (str(record["model"]), deciding(record.get("inference")))
    if not kinds:
        return None
    first, *others = kinds.items()
    for case, kind in others:
        if kind != first[1]:
            what = "models" if kind[0] != first[1][0] else "kinds of prediction"
            raise DataError(
                f"the label files are of two {what}",
                case=case,
                file=files[case],
                found=_shown(*kind),
                expected=f"{_shown(*first[1])}, as of case '{first[0]}'",
                do=_AGAIN,
            )
    _check_model(files[first[0]].parent, first[1][0])
    return first[1][0]


def record_scores(scores: Path, files: Mapping[str, Path], split: str, model: str | None) -> None:
    """Write beside a table of scores (``scores.json``) which label files it is about."""
    labels = {case: hash_file(file) for case, file in files.items()}
    write_json(scores.with_suffix(".json"), {"split": split, "model": model, "labels": labels})


def scored_model(run: Path) -> str:
    """The model whose results the scores of a run are of; empty if nobody noted it."""
    return str(read_record((run / SCORES).with_suffix(".json")).get("model") or "")


def check_scores(run: Path, cases: Sequence[str]) -> None:
    """Refuse scores of a run that are not of the predictions and the model that lie there now.

    Predictions that were removed are no contradiction, and neither are scores that nobody wrote a record for.

    Errors
        DataError   a label file or the model changed since the evaluation
    """
    file = (run / SCORES).with_suffix(".json")
    if not file.exists():
        return
    try:
        record = read_json(file)
        labels: dict[str, str] = dict(record["labels"])
        model = record["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the record of the scores is damaged",
            file=file,
            found=f"{type(error).__name__}: {error}",
            do="run `labelwise evaluate` again",
        ) from error
    if model is not None:
        _check_model(run / PREDICTIONS, str(model))
    there = _label_files(run / PREDICTIONS)
    stale = [
        case for case in cases if case in labels and case in there and hash_file(there[case]) != labels[case]
    ]
    if stale:
        raise DataError(
            "the scores are of earlier predictions",
            case=stale[0],
            file=run / SCORES,
            found=f"{len(stale)} of {len(labels)} label files changed since",
            do="run `labelwise evaluate` again",
        )


def _label_files(folder: Path) -> dict[str, Path]:
    """Label files by case; none of a case that has several."""
    found: dict[str, list[Path]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.name.startswith(".") and any(file.name.endswith(end) for end in LABEL_FORMATS.values()):
            found.setdefault(case_of(file), []).append(file)
    return {case: files[0] for case, files in found.items() if len(files) == 1}


def _check_model(folder: Path, model: str) -> None:
    """Refuse predictions in the folder of a run whose model is another one by now."""
    if folder.name != PREDICTIONS:
        return
    try:
        # Imports torch, which only the scores of a run need. Not a lazy module: torch looks into all modules while
        # it is imported, and would import that one in the middle.
        models = importlib.import_module("labelwise.infer.model")
        now: tuple[str, ...] = models.model_ids(folder.parent)
    except (LabelwiseError, OSError):  # no model, or one that only its plug-in knows
        return
    if now and model not in now:
        raise DataError(
            "the predictions are not of the model that this run has now",
            file=folder,
            found=f"model '{model}'",
            expected=f"model '{now[0]}'",
            do=_AGAIN,
        )


def _shown(model: str, settings: Mapping[str, Any]) -> str:
    return f"model '{model}', " + ", ".join(f"{name} {value}" for name, value in settings.items())
