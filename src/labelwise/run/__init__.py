"""Where the rooms meet: one public function for each verb of the command line, imported when first used.

The function of a verb lies in the file of the same name, and `import_data` is the verb ``import``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelwise.run.check import check as check
    from labelwise.run.compare import compare as compare
    from labelwise.run.convert import convert as convert
    from labelwise.run.demo import demo as demo
    from labelwise.run.doctor import doctor as doctor
    from labelwise.run.evaluate import evaluate as evaluate
    from labelwise.run.import_data import import_data as import_data
    from labelwise.run.measure import measure as measure
    from labelwise.run.methods import methods as methods
    from labelwise.run.predict import predict as predict
    from labelwise.run.prepare import prepare as prepare
    from labelwise.run.report import report as report
    from labelwise.run.simulate import simulate as simulate
    from labelwise.run.train import train as train

__all__ = [
    "check",
    "compare",
    "convert",
    "demo",
    "doctor",
    "evaluate",
    "import_data",
    "measure",
    "methods",
    "predict",
    "prepare",
    "report",
    "simulate",
    "train",
]


class _Verbs(ModuleType):
    """Python makes a file that is imported an attribute of its package; here that name is the function in it."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Verbs


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'labelwise.run' has no attribute '{name}'")
    return getattr(importlib.import_module(f"labelwise.run.{name}"), name)
