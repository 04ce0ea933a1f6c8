"""`load_model`: a trained model in memory, which says of a scan what `predict` says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from labelwise.formats import Layout
from labelwise.infer import model as saved
from labelwise.infer.image import Image
from labelwise.infer.model import Model
from labelwise.infer.scans import Scan
from labelwise.run.predict import problems_of

IN_MEMORY = "scan in memory"


def load_model(
    folder: Path | str | Sequence[Path | str],
    device: torch.device | str = "auto",
    *,
    classifier: str | None = None,
) -> Model:
    """Load a model folder, or the folder of a run that contains one; several of them as an ensemble.

    The model judges every scan by the rules of ``labelwise check`` and by the scans of its training, and warns with
    `labelwise.ScanWarning`, as ``labelwise predict`` does in its output.

    Arguments
        folder      of the model; of several, the mean of their scores decides (see `labelwise.infer.ensemble`)
        device      auto (a GPU if there is one), cpu, cuda, cuda:1 or mps
        classifier  another way to decide than the model was trained to use, where its method has several

    Errors
        CheckpointError     not a model, written by a newer version, or weights that do not fit
        ConfigError         the model has no such classifier; models that cannot answer together, with the difference
        ResourceError       no such device here
    """
    model = saved.load_model(folder, device, classifier=classifier)
    return replace(model, judge=partial(_judge, training=model.info.training))


def _judge(image: Image, intensity: str, layout: Layout, *, training: Mapping[str, Any]) -> list[str]:
    """What is wrong with a scan, and what to do. Of a scan in memory no header says where it lies: its owner does."""
    files = image.files or (Path(IN_MEMORY),)
    scan = Scan(IN_MEMORY, files, intensity, layout)
    return [
        f"{problem['what']}; {problem['do']}"
        for problem in problems_of(scan, image.volume, training, image.given)
        if image.files or problem["code"] != "suspect-geometry"
    ]
