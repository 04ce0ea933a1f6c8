"""Look at every case once and list every problem, so that they can be mended together.

    inspect     reads each case by itself, in parallel       check_case: check_scan, check_labels
    judge       compares them                                check_cohort

`labelwise.quality.repair` mends what can be mended without guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labelwise.cohort.coverage import CaseCoverage, case_coverage
from labelwise.cohort.manifest import Manifest
from labelwise.console import ShowProgress, silent
from labelwise.engine import Outcome, run_jobs
from labelwise.errors import DataError
from labelwise.quality.check_case import CaseFacts, image_digest, inspect_case
from labelwise.quality.check_cohort import judge_cohort, possible_twins, twins
from labelwise.quality.problem import Problem, from_error

__all__ = ["CaseFacts", "Findings", "Problem", "check", "inspect_case", "inspect_cohort"]


@dataclass(frozen=True)
class Findings:
    """What reading a whole cohort brought to light."""

    problems: tuple[Problem, ...]  # of single cases in manifest order, then of the cohort
    coverage: CaseCoverage
    twins: tuple[tuple[str, ...], ...] = ()  # ids of cases with the same image


def check(
    manifest: Manifest,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: ShowProgress = silent,
) -> list[Problem]:
    """Every problem of a cohort; the arguments are those of `inspect_cohort`."""
    return list(inspect_cohort(manifest, engine=engine, workers=workers, progress=progress).problems)


def inspect_cohort(
    manifest: Manifest,
    *,
    engine: str = "local",
    workers: int | None = None,
    progress: ShowProgress = silent,
) -> Findings:
    """Every problem of a cohort, and which annotated structures are present in which case.

    Parameters
        engine      where cases are read, see `labelwise.engine`
        workers     number of processes; None uses all CPUs
        progress    told after each case
    """
    # A manifest of one case each, so that a worker process receives no more than it needs.
    single = [manifest.replace_cases([case]) for case in manifest.cases]
    facts: dict[str, CaseFacts] = {}
    for done, outcome in enumerate(run_jobs(inspect_case, single, engine=engine, workers=workers), start=1):
        found = _facts(outcome)
        facts[found.case] = found
        progress("check", done, len(single))
    ordered = [facts[case.id] for case in manifest.cases]
    digests = _digests(manifest, ordered, engine, workers)
    problems = [problem for found in ordered for problem in found.problems]
    problems += judge_cohort(manifest, ordered, digests)
    same = tuple(tuple(case.id for case in cases) for cases in twins(manifest, digests))
    voxels = {found.case: found.voxels for found in ordered}
    return Findings(tuple(problems), case_coverage(manifest, voxels), same)


def _facts(outcome: Outcome[Manifest, CaseFacts]) -> CaseFacts:
    case = outcome.item.cases[0]
    return outcome.result or CaseFacts(
        case.id, (from_error(case, outcome.error or DataError("cannot be read", code="unreadable")),)
    )


def _digests(
    manifest: Manifest, facts: Sequence[CaseFacts], engine: str, workers: int | None
) -> dict[str, str]:
    """Hashes of all voxels, of the few images that look like another one: only they are read again."""
    suspects = [manifest.replace_cases([case]) for case in possible_twins(manifest, facts)]
    outcomes = run_jobs(image_digest, suspects, engine=engine, workers=workers)
    return dict(outcome.result for outcome in outcomes if outcome.result is not None)
