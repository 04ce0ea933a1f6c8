"""labelwise trains medical image segmentation when only some cases, or only some organs, are annotated.

The words of the package (`LabelSpace`, `Case`, `Volume`, `Batch`) and the parts that a new method needs are
here; the work is done by the functions of `labelwise.run`, one for each verb of the command line:

    from labelwise import load_config, run
    run.train(load_config("recipe.toml", data="my_data"), "runs/first")

Everything is imported when it is first used: importing torch costs a second, and ``labelwise --help`` needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelwise import run as run
    from labelwise.cohort.manifest import Manifest as Manifest
    from labelwise.cohort.manifest import merge as merge
    from labelwise.cohort.manifest import read_manifest as read_manifest
    from labelwise.cohort.manifest import write_manifest as write_manifest
    from labelwise.config import RunConfig as RunConfig
    from labelwise.config import load_config as load_config
    from labelwise.errors import CheckpointError as CheckpointError
    from labelwise.errors import ConfigError as ConfigError
    from labelwise.errors import DataError as DataError
    from labelwise.errors import LabelwiseError as LabelwiseError
    from labelwise.errors import ResourceError as ResourceError
    from labelwise.errors import TrainingError as TrainingError
    from labelwise.infer.model import Model as Model
    from labelwise.infer.model import load_model as load_model
    from labelwise.methods.base import Card as Card
    from labelwise.methods.base import Method as Method
    from labelwise.methods.base import NetFactory as NetFactory
    from labelwise.methods.base import Sigmoid as Sigmoid
    from labelwise.methods.base import Softmax as Softmax
    from labelwise.types import IGNORE as IGNORE
    from labelwise.types import Batch as Batch
    from labelwise.types import Case as Case
    from labelwise.types import LabelSpace as LabelSpace
    from labelwise.types import Progress as Progress
    from labelwise.types import Volume as Volume

_HOME = {
    "IGNORE": "types",
    "Batch": "types",
    "Card": "methods.base",
    "Case": "types",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "LabelSpace": "types",
    "LabelwiseError": "errors",
    "Manifest": "cohort.manifest",
    "Method": "methods.base",
    "Model": "infer.model",
    "NetFactory": "methods.base",
    "Progress": "types",
    "ResourceError": "errors",
    "RunConfig": "config",
    "Sigmoid": "methods.base",
    "Softmax": "methods.base",
    "TrainingError": "errors",
    "Volume": "types",
    "load_config": "config",
    "load_model": "infer.model",
    "merge": "cohort.manifest",
    "read_manifest": "cohort.manifest",
    "run": "",
    "write_manifest": "cohort.manifest",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labelwise' has no attribute '{name}'")
    if name == "run":
        return importlib.import_module("labelwise.run")
    return getattr(importlib.import_module(f"labelwise.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
