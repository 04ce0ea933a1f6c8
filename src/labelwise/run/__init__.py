"""Where the rooms meet: one public function for each verb of the command line, imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelwise.run.about import doctor as doctor
    from labelwise.run.about import methods as methods
    from labelwise.run.checking import check as check
    from labelwise.run.cohort import import_data as import_data
    from labelwise.run.cohort import simulate as simulate
    from labelwise.run.converting import convert as convert
    from labelwise.run.demonstration import demo as demo
    from labelwise.run.inference import evaluate as evaluate
    from labelwise.run.inference import predict as predict
    from labelwise.run.measuring import measure as measure
    from labelwise.run.preparing import prepare as prepare
    from labelwise.run.reporting import compare as compare
    from labelwise.run.reporting import report as report
    from labelwise.run.training import train as train

_HOME = {
    "check": "checking",
    "compare": "reporting",
    "convert": "converting",
    "demo": "demonstration",
    "doctor": "about",
    "evaluate": "inference",
    "import_data": "cohort",
    "measure": "measuring",
    "methods": "about",
    "predict": "inference",
    "prepare": "preparing",
    "report": "reporting",
    "simulate": "cohort",
    "train": "training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labelwise.run' has no attribute '{name}'")
    return getattr(importlib.import_module(f"labelwise.run.{_HOME[name]}"), name)
