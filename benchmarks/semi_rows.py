"""The rows that the comparisons with few labelled cases have in common: every semi-supervised method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep import Row

# The published ones, in the order of their papers. Two numbers of steps: a method of two stages shares the budget.
SEMI = (
    *("mean_teacher", "ua_mt", "sassnet", "dtc", "mc_net", "mc_net_plus", "urpc", "cps", "ss_net"),
    *("ucmt", "caml", "bcp", "unimatch", "arco", "guidednet"),
)
TWO_STAGES = ("bcp", "arco")


def with_batch(row: Row, cases: int) -> Row:
    """Batches of so many labelled and unlabelled cases; of labelled ones where the row uses no others."""
    incomplete = row.changes.get("sampling.unlabelled_cases", cases)
    return row.with_changes({"sampling.labelled_cases": cases, "sampling.unlabelled_cases": incomplete})


def apart(row: Row) -> Row:
    """Labelled and unlabelled cases pass batch norm apart."""
    return row.with_changes({"net.batch_norm_cases": row.changes["sampling.labelled_cases"]})


def semi_rows(
    recipe: Path,
    manifest: str,
    *,
    steps: int,
    methods: Sequence[str] = SEMI,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Row]:
    """`supervised`, two controls, and the methods, on one manifest, with equal numbers of optimiser steps.

    The first control is `supervised` with the Dice of the other methods. The second is a mean teacher without
    consistency: its batches hold unlabelled scans, so the statistics of its batch norm are theirs too, but nothing else
    is learnt from them.

    Arguments
        settings    method -> its own settings where they differ from the paper's, chosen on validation patients
    """
    given = settings or {}

    def row(method: str, **changes: Any) -> Row:
        own = {f"method.settings.{key}": value for key, value in given.get(method, {}).items()}
        if method in TWO_STAGES:
            changes["train.steps"] = [steps // 2, steps - steps // 2]
        return Row(recipe, manifest, {"method.name": method, **own, **changes})

    control = {"method.settings.consistency_weight": 0.0}
    labelled_only = {"sampling.unlabelled_cases": 0}
    their_dice = {"method.settings.squared_dice": True, "method.settings.dice_pooling": "batch"}
    return {
        "supervised": row("supervised", **labelled_only),
        "supervised_with_their_dice": row("supervised", **labelled_only, **their_dice),
        "unlabelled_in_batch_norm_only": row("mean_teacher", **control),
        **{method: row(method) for method in methods},
    }
