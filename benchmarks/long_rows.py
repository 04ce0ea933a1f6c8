"""The rows that the long comparisons have in common: labels alone, self-training, and others on the same base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep import Row

FEW = ("mean_teacher", "unimatch", "bcp", "cps", "guidednet", "ss_net")
TWO_STAGES = ("bcp", "ltuda")
THEIR_DICE = {"method.settings.squared_dice": True, "method.settings.dice_pooling": "batch"}
ONE_COMPONENT = {"postprocess.largest_component": True}
LABELLED_ONLY = {"sampling.unlabelled_cases": 0}


def row(recipe: Path, method: str, manifest: str, steps: int, **changes: Any) -> Row:
    """A row of the table; methods of two stages share the steps."""
    parts = [steps // 3, steps - steps // 3] if method in TWO_STAGES else [steps]
    return Row(recipe, manifest, {"method.name": method, "train.steps": parts, **changes})


def few_rows(
    recipe: Path,
    manifest: str,
    steps: int,
    *,
    labelled_only: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Row]:
    """Labels alone with the Dice of the others, self-training, and methods that learn from unlabelled cases."""
    given = settings or {}
    return {
        "supervised": row(recipe, "supervised", manifest, steps, **labelled_only, **THEIR_DICE),
        "self_training": row(recipe, "self_training", manifest, steps),
        # A second round as long as the first one.
        "noisy_student": row(recipe, "noisy_student", manifest, steps, **{"train.steps": [steps, steps]}),
        **{method: row(recipe, method, manifest, steps, **given.get(method, {})) for method in FEW},
    }
