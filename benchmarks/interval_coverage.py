"""How often the intervals of a comparison hold the truth, and how often its test finds a difference that is none.

    python benchmarks/interval_coverage.py

Scores are drawn from distributions whose mean is known, and given to `compare` as if they were measured. "normal":
the Dice of a patient is normal, and the scans of a patient scatter around it. "skewed": the same, but one patient in
ten fails, with a Dice below 0.1. A "too few" is no interval, so it neither holds nor misses the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from metadata import metadata, write_result

from labelwise.evaluate.scores import Score
from labelwise.report.compare import compare
from labelwise.report.statistics import FEWEST_PATIENTS
from labelwise.types import Array

GOOD, OF_PATIENT, OF_SCAN, OF_SEED = 0.85, 0.04, 0.03, 0.02
FAILED, FAILURES = 0.05, 0.1  # mean Dice of a failed patient, and how many fail


class Design(NamedTuple):
    """A test set."""

    patients: int
    scans: int  # of each patient
    seeds: int = 1


INTERVALS = [
    Design(8, 1),
    Design(10, 2),
    Design(20, 1),
    Design(30, 1),
    Design(30, 2),
    Design(60, 1),
    Design(30, 1, 3),
]
TESTS = [Design(8, 1), Design(10, 2), Design(20, 1), Design(60, 1)]
SEED_TESTS = [Design(20, 1, seeds) for seeds in (1, 2, 3, 5)]


def dice(design: Design, skewed: bool, of_seed: float, chance: np.random.Generator) -> Array:
    """(S, N) Dice of one method: patients differ, their scans differ less, trainings shift all of them."""
    patients = GOOD + chance.normal(0, OF_PATIENT, (design.patients, 1))
    scans = patients + chance.normal(0, OF_SCAN, (design.patients, design.scans))
    if skewed:
        failed = chance.random((design.patients, 1)) < FAILURES
        scans = np.where(failed, chance.uniform(0, 2 * FAILED, scans.shape), scans)
    return scans.reshape(1, -1) + chance.normal(0, of_seed, (design.seeds, 1))


def as_scores(values: Array, scans: int) -> list[list[Score]]:
    """One list of scores for each seed."""
    return [
        [
            Score(f"s{n}", "organ", "dice", float(value), "ok", group=f"p{n // scans}")
            for n, value in enumerate(row)
        ]
        for row in values
    ]


def coverage(design: Design, skewed: bool, repetitions: int) -> dict[str, Any]:
    """How often the interval of a mean holds the true mean."""
    truth = (1 - FAILURES) * GOOD + FAILURES * FAILED if skewed else GOOD
    told = held = 0
    for repetition in range(repetitions):
        chance = np.random.default_rng([repetition, *design, skewed])
        values = dice(design, skewed, OF_SEED if design.seeds > 1 else 0.0, chance)
        cell = compare({"a": as_scores(values, design.scans)}, resamples=1000).cells["a", "organ", "dice"]
        told += bool(np.isfinite(cell.low))
        held += bool(cell.low <= truth <= cell.high)
    share = {"coverage": held / told if told else None, "too_few": 1 - told / repetitions}
    return {**design._asdict(), "scores": "skewed" if skewed else "normal", **share}


def false_positives(design: Design, skewed: bool, repetitions: int, of_seed: float = 0.0) -> dict[str, Any]:
    """How often two methods that are alike get a p below 0.05.

    The two methods see the same patients: half of what makes a scan hard is common to both.
    """
    found = 0
    for repetition in range(repetitions):
        chance = np.random.default_rng([repetition, *design, skewed, 1])
        common = dice(design._replace(seeds=1), skewed, 0.0, chance)
        runs = {
            name: as_scores(
                (common + dice(design._replace(seeds=1), skewed, 0.0, chance)) / 2
                + chance.normal(0, of_seed, (design.seeds, 1)),
                design.scans,
            )
            for name in "ab"
        }
        found += compare(runs, resamples=50).differences["b", "organ", "dice"].p < 0.05
    return {
        **design._asdict(),
        "scores": "skewed" if skewed else "normal",
        "false_positives": found / repetitions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    kinds: list[tuple[str, list[Design], Callable[..., dict[str, Any]]]] = [
        ("interval_of_a_mean", INTERVALS, coverage),
        ("test_of_two_equal_models", TESTS, false_positives),
        ("test_of_two_equal_methods", SEED_TESTS, partial(false_positives, of_seed=OF_SEED)),
    ]
    results: dict[str, Any] = {}
    for name, designs, simulate in kinds:
        results[name] = []
        for design in designs:
            for skewed in (False, True):
                results[name].append(simulate(design, skewed, repetitions))
                print(name, results[name][-1], flush=True)
    protocol = {
        "repetitions": repetitions, "fewest_patients": FEWEST_PATIENTS, "mean": GOOD, "sd_of_patients": OF_PATIENT,
        "sd_of_scans": OF_SCAN, "sd_of_seeds": OF_SEED, "failed_patients": FAILURES, "mean_of_failed": FAILED,
    }  # fmt: skip
    write_result("interval_coverage", {"protocol": protocol, "metadata": metadata(), **results})


if __name__ == "__main__":
    main()
