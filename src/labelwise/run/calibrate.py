"""`calibrate`: how far the certainty of a model may be believed, measured on annotated cases."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelwise.cohort.manifest import (
    Manifest,
    check_same_grid,
    read_case_image,
    read_case_labels,
    read_manifest,
)
from labelwise.cohort.parts import annotated_everywhere
from labelwise.cohort.review import class_of
from labelwise.console import ShowProgress, silent
from labelwise.errors import DataError, naming
from labelwise.infer.calibration import (
    HIGHEST,
    LOWEST,
    Calibration,
    check_class,
    fit_temperature,
    sample_voxels,
    write_calibration,
)
from labelwise.infer.doubt import Doubt
from labelwise.infer.habits import (
    FALSE_ALARMS,
    FEWEST_CHECKED,
    Features,
    Habits,
    Sighting,
    distance,
    habit_of,
    lower_threshold,
    sightings,
    upper_threshold,
)
from labelwise.infer.model import Model, load_model, model_folder
from labelwise.preprocess.pipeline import Prepared, apply
from labelwise.run.predict import check_channels
from labelwise.types import IGNORE, Array, Case

__all__ = ["CalibrationResult", "calibrate"]

VOXELS_PER_CASE = 200_000
MOST_SCANS = 50  # of the training that new scans are compared with, drawn evenly


_OFF = 1.01  # a search within bounds ends just before them


def _cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class CalibrationResult:
    """What was fitted and measured, and where it is kept."""

    folder: Path
    calibration: Calibration

    def to_text(self) -> str:
        """The temperature, and how expected and true Dice agree for each class."""
        found = self.calibration
        lines = [
            f"temperature {found.temperature:.3f}: loss per voxel {found.loss_before:.4f} -> {found.loss_after:.4f} "
            f"({_cases(found.cases)})"
        ]
        if not LOWEST * _OFF < found.temperature < HIGHEST / _OFF:
            lines.append(
                "the temperature lies at the end of what is looked at: the scores say next to nothing of what is "
                "right, or the cases are too few"
            )
        for name, check in found.classes.items():
            if check.mean_error is None or check.mean_absolute_error is None:
                lines.append(f"{name}: no case to compare")
                continue
            rank = "too few" if check.rank_correlation is None else f"{check.rank_correlation:.2f}"
            lines.append(
                f"{name}: expected - true Dice {100 * check.mean_error:+.1f} %, apart "
                f"{100 * check.mean_absolute_error:.1f} % in the mean, rank correlation {rank} ({_cases(check.cases)})"
            )
        return "\n".join([*lines, *self._of_flags(), f"kept in {self.folder}"])

    def _of_flags(self) -> list[str]:
        habits = self.calibration.habits
        if habits is None:
            return []
        if not habits.scans:
            return ["no training scan in the data: scans that are unlike them are not flagged"]
        if habits.unfamiliar_from is None:
            return [
                f"fewer than {FEWEST_CHECKED} cases: structures are flagged that are cut off, missing or doubled, but "
                "neither doubtful ones nor scans unlike those of the training"
            ]
        return [
            f"flags: scans farther than {habits.unfamiliar_from:.3f} from {len(habits.scans)} training scans, and "
            f"structures less sure than right ones; about {FALSE_ALARMS:.0%} false alarms each on these cases"
        ]

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        found = self.calibration
        return {"folder": str(self.folder), **asdict(found)}


def calibrate(
    model: Path | str,
    data: Path | str,
    *,
    split: str = "validation",
    device: str = "auto",
    progress: ShowProgress = silent,
) -> CalibrationResult:
    """Fit a temperature to the scores of a model, and measure how the Dice that they promise agrees with the true one.

    Writes calibration.json into the model folder, where `predict` finds it: the certainty in its records, and its maps,
    are then those of the calibrated scores, and what is unusual is flagged. Labels do not change. Scans are segmented
    twice: to fit, and to measure what was fitted. Both on the same cases, so the errors are those of cases that the
    temperature has seen. At most `MOST_SCANS` training scans are segmented too.

    Arguments
        model       model folder, or the folder of a run
        data        folder of the manifest; its training cases say what is usual
        split       annotated cases that the model has not learnt from

    Errors
        CheckpointError     not a model
        DataError           no annotated case, or none of a class that the model knows; a scan that cannot be read
    """
    folder = model_folder(model)
    loaded = replace(load_model(folder, device), calibration=None)
    manifest = read_manifest(data)
    cases = [case for case in manifest.split(split) if _known(case, manifest, loaded).any()]
    if not cases:
        raise DataError(
            f"no case of the split '{split}' annotates a class that the model knows",
            file=data,
            code="no-case",
            do="choose other cases by --split",
        )
    check_channels(cases, loaded.channels)
    samples = []
    for done, case in enumerate(cases, start=1):
        prepared, labels = _prepared(case, manifest, loaded)
        scores = loaded.scores_of(prepared)
        seed = zlib.crc32(case.id.encode())
        known = _known(case, manifest, loaded)
        samples.append(sample_voxels(scores, labels, known, limit=VOXELS_PER_CASE, seed=seed))
        progress("fit", done, len(cases))
    temperature, before, after = fit_temperature(samples)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    vectors = []
    for done, case in enumerate(cases, start=1):
        features = Features()
        with features.watch(loaded.predictor):
            _compare(case, manifest, loaded, temperature, pairs)
        vectors.append(features.vector())
        progress("measure", done, len(cases))
    habits = _habits(manifest, cases, loaded, pairs, vectors, progress)
    calibration = Calibration(
        loaded.id,
        temperature,
        len(cases),
        sum(sample.scores.shape[1] for sample in samples),
        before,
        after,
        {name: check_class(*_columns(pairs[name])) for name in loaded.label_space.structures},
        habits,
    )
    write_calibration(folder, calibration)
    return CalibrationResult(folder, calibration)


def _habits(
    manifest: Manifest,
    cases: Sequence[Case],
    model: Model,
    pairs: Mapping[str, Sequence[tuple[float, float]]],
    vectors: Sequence[Sequence[float]],
    progress: ShowProgress,
) -> Habits:
    """What is usual: structures of all annotated training cases and `cases`, and scans of the training."""
    training = manifest.split("train")
    chosen = training[:: -(-len(training) // MOST_SCANS) or 1]
    scans = []
    for done, case in enumerate(chosen, start=1):
        features = Features()
        with naming(case.id, case.images[0]), features.watch(model.predictor):
            intensity = model.intensity(manifest.data_set_of(case).intensity)
            model.scores_of(apply(read_case_image(case, manifest), model.plan, intensity=intensity))
        scans.append(features.vector())
        progress("training scans", done, len(chosen))
    seen: dict[str, list[Sighting | None]] = {name: [] for name in model.label_space.structures}
    annotated = [case for case in {case.id: case for case in (*training, *cases)}.values() if case.annotated]
    for done, case in enumerate(annotated, start=1):
        with naming(case.id, case.labels):
            labels = read_case_labels(case, manifest).data
        found = sightings(np.where(labels == IGNORE, 0, labels), manifest.label_space.names)
        for name, shown in seen.items():
            if (theirs := class_of(name, manifest.label_space)) in annotated_everywhere(case):
                shown.append(found.get(str(theirs)))
        progress("structures", done, len(annotated))
    far = [each for vector in vectors if (each := distance(vector, scans)) is not None]
    return Habits(
        {
            name: replace(habit_of(shown), doubtful_below=lower_threshold(pairs[name]))
            for name, shown in seen.items()
        },
        scans if any(scans) else [],
        upper_threshold(far),
        len(far),
    )


def _known(case: Case, manifest: Manifest, model: Model) -> Array:
    """(C,) bool: the classes of the model that a case annotates; the background only with all others."""
    annotated = {
        name
        for name in model.label_space.structures
        if class_of(name, manifest.label_space) in case.annotated
    }
    return model.label_space.annotated(annotated).numpy()


def _prepared(case: Case, manifest: Manifest, model: Model) -> tuple[Prepared, Array]:
    """A scan as the network sees it, and its labels there, as class indices of the model."""
    with naming(case.id, case.images[0]):
        image, labels = read_case_image(case, manifest), read_case_labels(case, manifest)
        check_same_grid(case, image, labels)
        intensity = model.intensity(manifest.data_set_of(case).intensity)
        prepared = apply(image, model.plan, intensity=intensity, labels=labels, missing=case.missing)
    assert prepared.labels is not None
    table = np.full(IGNORE + 1, 0, np.uint8)
    table[IGNORE] = IGNORE
    for name in model.label_space.structures:
        if (found := class_of(name, manifest.label_space)) is not None:
            table[manifest.label_space.index(found)] = model.label_space.index(name)
    return prepared, table[prepared.labels.data]


def _compare(
    case: Case,
    manifest: Manifest,
    model: Model,
    temperature: float,
    pairs: dict[str, list[tuple[float, float]]],
) -> None:
    """Expected and true Dice of each class that a case annotates, on the grid of the network."""
    prepared, labels = _prepared(case, manifest, model)
    scores = model.scores_of(prepared)
    doubt = Doubt(temperature)
    doubt.add(scores)
    said = scores.argmax(dim=0).cpu().numpy()
    said[labels == IGNORE] = 0
    count = model.label_space.num_classes
    reference = np.bincount(labels[labels != IGNORE], minlength=count)
    predicted = np.bincount(said.ravel(), minlength=count)
    both = np.bincount(said[said == labels], minlength=count)
    known = _known(case, manifest, model)
    for index, (name, certainty) in enumerate(zip(model.label_space.names, doubt.certainties(), strict=True)):
        if (
            index
            and known[index]
            and certainty.expected_dice is not None
            and reference[index] + predicted[index]
        ):
            true = 2 * both[index] / (reference[index] + predicted[index])
            pairs[name].append((certainty.expected_dice, float(true)))


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [expected for expected, _ in pairs], [true for _, true in pairs]
