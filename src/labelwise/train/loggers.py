"""Where a training is shown besides ``log.jsonl``: TensorBoard, MLflow, Trackio, and what other packages bring.

    [train]
    loggers = ["tensorboard", "mlflow"]

A logger is a function that gives one of Lightning Fabric's loggers. Other packages bring theirs through entry points:

    [project.entry-points."labelwise.loggers"]
    my_logger = "my_package.my_logger:my_logger"

    def my_logger(folder, *, step):
        return ...      # a lightning_fabric.loggers.logger.Logger

`folder` is that of the run, `step` the one that the training goes on from, counted through all stages. Logged are
``loss``, ``term/NAME``, ``rate`` and ``validation/dice``, and the settings once. A logger that has
``log_image(key, images, step)``, as that of Weights & Biases, is also given the pictures of validation cases, each an
array (H, W, 3) of bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from labelwise.atomic import write_json
from labelwise.documents import read_json
from labelwise.errors import ConfigError, LabelwiseError, did_you_mean
from labelwise.plugins import Parts, import_extra
from labelwise.settings import flat
from labelwise.types import Array

LOGGERS: dict[str, str] = {
    "tensorboard": "labelwise.train.loggers:tensorboard",
    "mlflow": "labelwise.train.loggers:mlflow",
    "trackio": "labelwise.train.loggers:trackio",
}
PARTS: Parts[Callable[..., Logger]] = Parts(
    "logger",
    "labelwise.loggers",
    LOGGERS,
    "a function of folder and step that gives a Fabric logger",
    callable,
)
_NEEDS = {"tensorboard": "loggers", "mlflow": "loggers", "trackio": "trackio"}  # package -> extra
TENSORBOARD, MLFLOW, TRACKIO = "tensorboard", "mlflow.json", "trackio.json"  # in the folder of a run
EXPERIMENT = "labelwise"
VALIDATION = "validation/dice"


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that would fail when the training begins.

    Errors
        ConfigError     no logger has this name, or one stands twice
        ResourceError   its package is not installed
    """
    known = PARTS.names()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"unknown logger '{name}'{did_you_mean(name, known)}",
                expected=", ".join(known),
                code="unknown-name",
            )
        PARTS.find(name)
        if name in _NEEDS:
            _package(name)
    if len(set(names)) < len(names):
        raise ConfigError("a logger stands twice", found=", ".join(names))


def tensorboard(folder: Path, *, step: int) -> Logger:
    """Event files in ``RUN/tensorboard``; what a break has made invalid is purged."""
    _package("tensorboard")
    return _TensorBoard(folder, name=TENSORBOARD, version="", purge_step=step + 1 if step else None)


def mlflow(folder: Path, *, step: int) -> Logger:
    """A run of MLflow, at the tracking server that MLflow is told of (``MLFLOW_TRACKING_URI``), else in ``mlflow.db``
    beside the folder of the run. It is named like that folder, and one that is resumed goes on."""
    package = _package("mlflow")
    told = package.tracking.is_tracking_uri_set()
    uri = package.get_tracking_uri() if told else f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"
    return _MLflow(package.MlflowClient(tracking_uri=uri), folder)


def trackio(folder: Path, *, step: int) -> Logger:
    """A run of Trackio, which answers the calls of Weights & Biases on this machine: where Trackio is told to keep it
    (``TRACKIO_DIR``), or at its server (``TRACKIO_SERVER_URL``). One that is resumed goes on."""
    return _Trackio(_package("trackio"), folder)


class _TensorBoard(TensorBoardLogger):
    """Fabric's logger, which can also be given pictures."""

    def log_image(self, key: str, images: Sequence[Array], step: int) -> None:
        for image in images:
            self.experiment.add_image(key, image, step, dataformats="HWC")


class _MLflow(Logger):
    """The few calls of MLflow that a training needs, as a Fabric logger."""

    def __init__(self, client: Any, folder: Path):
        self.client = client
        record = folder / MLFLOW
        self.run = str(read_json(record)["run"]) if record.exists() else self._begin(folder)
        write_json(record, {"run": self.run})
        # What was logged before a break comes again, and stands there once.
        self.logged = {
            key: max((metric.step for metric in client.get_metric_history(self.run, key)), default=-1)
            for key in ("loss", VALIDATION)
        }
        client.update_run(self.run, status="RUNNING")

    def _begin(self, folder: Path) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        return str(self.client.create_run(experiment, run_name=folder.absolute().name).info.run_id)

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str:
        return self.run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and any(step <= last for key, last in self.logged.items() if key in metrics):
            return
        for key, value in metrics.items():
            self.client.log_metric(self.run, key, value, step=step)

    def log_image(self, key: str, images: Sequence[Array], step: int) -> None:
        for image in images:
            self.client.log_image(self.run, image, artifact_file=f"{key}/step_{step:06d}.png")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        known = self.client.get_run(self.run).data.params
        for key, value in params.items():
            if key not in known:  # MLflow refuses to change what stands
                self.client.log_param(self.run, key, str(value)[:500])

    def finalize(self, status: str) -> None:
        ends = {"success": "FINISHED", "interrupted": "KILLED"}
        self.client.set_terminated(self.run, ends.get(status, "FAILED"))


class _Trackio(Logger):
    """The few calls of Trackio that a training needs, as a Fabric logger."""

    def __init__(self, package: Any, folder: Path):
        self.package, self.record = package, folder / TRACKIO
        kept = read_json(self.record) if self.record.exists() else {}
        # Trackio finds a run again by its name, and folders of other trainings may be called the same.
        self.label = str(kept.get("run") or f"{folder.absolute().name}-{uuid4().hex[:6]}")
        # What was logged before a break comes again, and stands there once.
        self.logged: dict[str, int] = dict(kept.get("logged", {}))
        self.run: Any = None

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str:
        return self.label

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.run = self.package.init(
            project=EXPERIMENT, name=self.label, config=dict(params), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        self._keep()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        named = [key for key in ("loss", VALIDATION) if key in metrics]
        if step is not None and any(step <= self.logged.get(key, -1) for key in named):
            return
        self.run.log(dict(metrics), step=step)
        if step is not None and named:
            self.logged |= dict.fromkeys(named, step)
            self._keep()

    def log_image(self, key: str, images: Sequence[Array], step: int) -> None:
        for image in images:
            self.run.log({key: self.package.Image(image)}, step=step)

    def finalize(self, status: str) -> None:
        self.package.finish()

    def _keep(self) -> None:
        write_json(self.record, {"run": self.label, "logged": self.logged})


def open_loggers(
    names: Sequence[str], folder: Path, *, step: int, settings: Mapping[str, Any]
) -> list[Logger]:
    """The loggers of a training that goes on from a step, with its settings.

    Errors
        ConfigError     one cannot begin: its package is broken, or its server does not answer
    """
    told = {name: _simple(value) for name, value in flat(settings).items()}
    loggers = []
    for name in names:
        begin = PARTS.find(name)
        try:
            with redirect_stdout(sys.stderr):  # what it says must not stand in a result
                logger = begin(folder, step=step)
                logger.log_hyperparams(told)
        except LabelwiseError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the logger '{name}' cannot begin: {type(error).__name__}: {error}",
                do=f"repair it, or leave '{name}' out of train.loggers",
            ) from error
        loggers.append(logger)
    return loggers


def _simple(value: Any) -> bool | int | float | str:
    """A value that every tracker can show: as it is, or as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _package(name: str) -> Any:
    extra = _NEEDS[name]
    return import_extra(name, extra, f"the logger '{name}' needs the extra '{extra}'")
