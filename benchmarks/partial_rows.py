"""The rows that the comparisons under partial labels have in common: every method that learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep import Row

CLASSIFIERS = ("linear", "labelled_prototype", "unlabelled_prototype")
WIDTH = 8  # of all networks

# For trainings a hundred times shorter than the published one, which has none of this. Chosen by the Dice of
# `ltuda_cda` on the held-out patients of ACDC (benchmarks/acdc.py --tune).
LTUDA = {"ema_decay": 0.99, "pseudo_ramp": 0.5, "structure_prior": 0.01, "dice_weight": 1.0}
# Its second stage too: banks move twice a step; 400 steps with a momentum of 0.999 leave half of their random start.
LTUDA_BANKS = {**LTUDA, "prototype_momentum": 0.9}


def longer(rows: Mapping[str, Row], names: Sequence[str], times: int, steps: int) -> dict[str, Row]:
    """Some of the rows with so many times the steps, under names that begin with "long"."""

    def more(row: Row) -> Row:
        given = row.changes.get("train.steps", [steps])
        return row.with_changes({"train.steps": [times * number for number in given]})

    return {f"long_{name}": more(rows[name]) for name in names}


def partial_rows(
    recipe: Path, manifest: str, *, steps: int, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Row]:
    """The methods on one manifest with the same number of optimiser steps and cases per step.

    Arguments
        settings    method -> its own settings where they differ from the paper's, chosen on validation patients
    """

    def row(method: str, net: str | None = None, classifiers: tuple[str, ...] = (), **extra: Any) -> Row:
        chosen = {
            f"method.settings.{key}": value for key, value in {**settings.get(method, {}), **extra}.items()
        }
        changes = {"method.name": method, "sampling.unlabelled_cases": 0, **chosen}
        if net:
            changes["net"] = {"name": net, "settings": {"width": WIDTH}}
        if method == "ltuda":
            changes["train.steps"] = [steps // 2, steps // 2]
        return Row(recipe, manifest, changes, classifiers)

    return {
        "marginal_exclusion": row("marginal_exclusion"),
        "leaf_dice": row("leaf_dice"),
        "target_adaptive": row("target_adaptive"),
        "target_adaptive_with_dice": row("target_adaptive", dice_weight=1.0),
        "pipo_fan": row("pipo_fan", net="pipofan"),
        "pipo_fan_with_dice": row("pipo_fan", net="pipofan", dice_weight=1.0),
        "dodnet": row("dodnet"),
        "conemos": row("conemos", net="film_unet"),
        "multi_talent": row("multi_talent"),
        "pl_seg": row("pl_seg"),
        "pl_seg_without_hardness": row("pl_seg", hardness=False),
        "pl_seg_without_contrast": row("pl_seg", contrast_weight=0.0),
        "pl_seg_without_distillation": row("pl_seg", distillation_weight=0.0),
        "ltuda_cda": row("ltuda_cda"),
        "ltuda": row("ltuda", classifiers=CLASSIFIERS),
    }
