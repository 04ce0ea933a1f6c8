"""`compare`: from evaluated runs to a table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.cases import Score, read_scores
from labelwise.report.compare import compare as compare_scores
from labelwise.report.comparison import Comparison
from labelwise.run.pairing import SCORES
from labelwise.run.patients import patients_of
from labelwise.run.provenance import check_scores

__all__ = ["compare"]

SEED = re.compile(r"_seed\d+$")


def compare(
    runs: Sequence[Path | str],
    *,
    metrics: Sequence[str] = ("dice", "hd95"),
    reference: str | None = None,
) -> Comparison:
    """Compare evaluated runs; ``NAME_seed0``, ``NAME_seed1`` ... are repetitions of one.

    `reference` is the run of the paired differences, by default the first. A run whose training or validation cases
    hold a patient of the scores is marked.

    Errors
        ConfigError     no run named, or runs scored by different rules
        DataError       a run without scores.csv, or with scores of earlier predictions or of another model; runs on
                        other cases or classes
    """
    named = runs_by_name(runs)
    scores = _read(named, {*metrics, "reference_volume"})
    if not set(metrics) <= {score.metric for lists in scores.values() for one in lists for score in one}:
        scores = _read(named, None)  # so that the refusal names what there is
    seen = {name: set[str]().union(*map(patients_of, folders)) for name, folders in named.items()}
    return compare_scores(scores, tuple(metrics), reference=reference, seen=seen)


def runs_by_name(runs: Sequence[Path | str]) -> dict[str, list[Path]]:
    if not runs:
        raise ConfigError("no run named", do="name at least one folder of a run")
    named: dict[str, list[Path]] = {}
    folders = [Path(run).resolve() for run in runs]
    if twice := [
        folder.name for folder in folders if [other.name for other in folders].count(folder.name) > 1
    ]:
        raise ConfigError(
            f"two runs are called '{twice[0]}'",
            do="rename one of the folders, or name each run once; seeds of one run end in _seed0, _seed1, ...",
        )
    for run in map(Path, runs):
        named.setdefault(SEED.sub("", run.resolve().name), []).append(run)
    return named


def _read(
    named: Mapping[str, Sequence[Path]], metrics: Collection[str] | None
) -> dict[str, list[list[Score]]]:
    return {name: [scores_of(folder, metrics) for folder in folders] for name, folders in named.items()}


def scores_of(folder: Path, metrics: Collection[str] | None = None) -> list[Score]:
    file = folder / SCORES
    if not file.exists():
        raise DataError(
            "the run has no scores", file=file, do="run `labelwise predict` and `labelwise evaluate` first"
        )
    scores = read_scores(file, metrics)
    check_scores(folder, sorted({score.case for score in scores}))
    return scores
