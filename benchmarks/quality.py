"""Does a model know when it is wrong? Expected beside true Dice, and failures that are flagged; ACDC's test patients.

    python benchmarks/quality.py --work runs/acdc_long

Reads models that `benchmarks/acdc_long.py` has trained with three labelled patients. A copy of each is calibrated on
the last ten training patients, of whose labels it has seen none; then the test scans are segmented as they are and
changed in four ways, which were fixed before any score was known. Nothing is chosen on test scans.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from metadata import write_result
from scipy import ndimage
from scipy.stats import spearmanr

from labelwise import run
from labelwise.cohort.manifest import (
    Manifest,
    read_case_image,
    read_case_labels,
    read_manifest,
    write_manifest,
)
from labelwise.cohort.split import groups_of
from labelwise.infer.habits import FALSE_ALARMS, RIGHT_FROM
from labelwise.infer.model import Model, load_model
from labelwise.types import Array, Case, Volume

RUNS = ("supervised_of_3", "self_training_of_3")
CALIBRATION_PATIENTS = 10
NOISE, BLUR = 0.5, 3.0  # of the scan's standard deviation; voxels in the plane
AS_IT_IS = "as it is"

# Of (X, Y, Z); images and labels alike where it moves voxels.
Change = Callable[[Array, np.random.Generator], Array]


def noisy(image: Array, generator: np.random.Generator) -> Array:
    """White noise."""
    return np.asarray(image + generator.normal(0, NOISE * image.std(), image.shape).astype(image.dtype))


def blurred(image: Array, generator: np.random.Generator) -> Array:
    """Each slice smoothed."""
    return np.asarray(ndimage.gaussian_filter(image, (BLUR, BLUR, 0)))


def halved(values: Array, generator: np.random.Generator) -> Array:
    """One half of the field of view."""
    return values[: values.shape[0] // 2]


def turned(values: Array, generator: np.random.Generator) -> Array:
    """A quarter turn in the plane that the header does not tell of."""
    return np.asarray(np.rot90(values))


MOVING: Mapping[str, Change] = {"half of the field of view": halved, "a quarter turn": turned}
CHANGES: Mapping[str, Change] = {"noise": noisy, "blur": blurred, **MOVING}


def main() -> None:
    """Read the command line, ask every model, write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    complete, scarce = (read_manifest(options.work / name) for name in ("complete", "labelled_3"))
    runs = {}
    for name in RUNS:
        if (options.work / f"{name}_seed{options.seed}" / "model").is_dir():
            runs[name] = asked(options.work / f"{name}_seed{options.seed}" / "model", complete, scarce)
            print(name, runs[name]["groups"])
    protocol = {
        "data": "ACDC, h5 volumes: both phases of the 10 patients of val.list, as they are and changed",
        "changes": f"noise: {NOISE} of the scan's standard deviation; blur: {BLUR:g} voxels in the plane; half of the "
        "field of view; a quarter turn in the plane",
        "calibration": f"the last {CALIBRATION_PATIENTS} training patients; self_training has seen their scans without "
        "labels, supervised has not; the recipe's settings were chosen on these patients",
        "failure": f"a structure with a Dice below {RIGHT_FROM}; a structure that neither shows is left out",
        "expected": "expected Dice of the calibrated scores; 1 where the model is sure that a structure is absent",
        "flagged": "any flag on the structure or on the scan",
    }
    write_result("quality", {"seed": options.seed, "protocol": protocol, "runs": runs})


def asked(model: Path, complete: Manifest, scarce: Manifest) -> dict[str, Any]:
    """Calibrate a copy of a model, and ask it for every test scan."""
    with tempfile.TemporaryDirectory() as folder:
        data, copy = Path(folder) / "data", Path(folder) / "model"
        shutil.copytree(model, copy)
        write_manifest(for_calibration(complete, scarce), data)
        calibration = run.calibrate(copy, data, device="cpu").calibration
        loaded = load_model(copy, "cpu")
    assert calibration.habits is not None
    rows = [
        row
        for case in complete.split("test")
        for change in (AS_IT_IS, *CHANGES)
        for row in answers(loaded, case, complete, change)
    ]
    groups = {name: [row for row in rows if row["change"] == name] for name in (AS_IT_IS, *CHANGES)}
    return {
        "temperature": calibration.temperature,
        "unfamiliar_from": calibration.habits.unfamiliar_from,
        "doubtful_below": {
            name: habit.doubtful_below for name, habit in calibration.habits.structures.items()
        },
        "groups": {name: summary(group) for name, group in {**groups, "all": rows}.items()},
        "rows": rows,
    }


def for_calibration(complete: Manifest, scarce: Manifest) -> Manifest:
    """The training as the models saw it, but for the last patients, who are annotated and validate."""
    patients = list(groups_of(scarce.split("train")))[-CALIBRATION_PATIENTS:]
    kept = [case for case in scarce.split("train") if case.group not in patients]
    known = [replace(case, split="validation") for case in complete.split("train") if case.group in patients]
    return complete.replace_cases([*kept, *known])


def answers(model: Model, case: Case, manifest: Manifest, change: str) -> list[dict[str, Any]]:
    """What the model says of each structure of a scan, and how right it is."""
    image, labels = read_case_image(case, manifest), read_case_labels(case, manifest).data
    generator = np.random.default_rng(zlib.crc32(f"{case.id} {change}".encode()))
    (voxels,) = image.data
    if change != AS_IT_IS:
        voxels = CHANGES[change](voxels, generator)
        labels = MOVING[change](labels, generator) if change in MOVING else labels
    found = model.examine(Volume(np.ascontiguousarray(voxels)[None], image.affine))
    rows = []
    for name in model.label_space.structures:
        said = found.labels.data == model.label_space.index(name)
        true = labels == manifest.label_space.index(name)
        if said.any() or true.any():
            expected = found.certainty[name].expected_dice
            rows.append(
                {
                    "case": case.id,
                    "change": change,
                    "structure": name,
                    "dice": round(float(2 * (said & true).sum() / (said.sum() + true.sum())), 4),
                    "expected": 1.0 if expected is None else round(expected, 4),
                    "flags": sorted({flag.code for flag in found.flags if flag.structure in (name, "")}),
                }
            )
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the expected Dice ranks, and which failures and right results are flagged."""
    failed = [row for row in rows if row["dice"] < RIGHT_FROM]
    right = [row for row in rows if row["dice"] >= RIGHT_FROM]
    dice, expected = ([row[name] for row in rows] for name in ("dice", "expected"))
    varied = len(set(dice)) > 1 and len(set(expected)) > 1
    codes = sorted({code for row in rows for code in row["flags"]})
    least = np.quantile([row["expected"] for row in right], FALSE_ALARMS) if right else None
    return {
        "results": len(rows),
        "failures": len(failed),
        "rank_correlation": float(spearmanr(expected, dice).statistic) if varied else None,
        "flagged_failures": share([bool(row["flags"]) for row in failed]),
        "false_alarms": share([bool(row["flags"]) for row in right]),
        # Of the expected Dice alone, at the threshold that flags one in ten right results of this very group.
        "found_at_false_alarms": share([row["expected"] < least for row in failed])
        if least is not None
        else None,
        "by_flag": {
            code: {
                "failures": share([code in row["flags"] for row in failed]),
                "right": share([code in row["flags"] for row in right]),
            }
            for code in codes
        },
    }


def share(values: Sequence[bool]) -> float | None:
    """Part that is true; None of nothing."""
    return float(np.mean(values)) if values else None


if __name__ == "__main__":
    main()
