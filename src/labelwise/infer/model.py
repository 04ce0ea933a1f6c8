"""The model folder: what `predict` needs, and nothing else.

    model.json              label space, preparation, network or method, patch size, versions, training facts
    weights.safetensors     the predictor's tensors

No pickle, no absolute path, no patient data. A predictor that is a plain network with a softmax loads without
the code of the method that trained it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from pydantic import dataclasses as pydantic_dataclasses
from torch import nn

from labelwise.atomic import atomic_path, write_json
from labelwise.devices import use_fast_layout
from labelwise.errors import CheckpointError, ConfigError, did_you_mean
from labelwise.formats.tensors import load_tensors, load_weights, save_tensors
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.methods import find_method
from labelwise.methods.base import Method, NetFactory, Softmax
from labelwise.preprocess.pipeline import Plan
from labelwise.settings import build_settings
from labelwise.types import LabelSpace

FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelInfo:
    """The contents of model.json."""

    name: str
    classes: tuple[str, ...]  # names in order, background first
    modalities: tuple[str, ...]  # intensity rules that the plan knows: ct, mr, normalised
    plan: dict[str, Any]  # preprocess.Plan as JSON
    net: dict[str, Any]  # NetFactory.description()
    method: str
    method_settings: dict[str, Any]
    predictor: Literal[
        "softmax", "method"
    ]  # softmax: weights of the network; method: state of the method's predictor
    patch_size: tuple[int, int, int]  # voxels of the prepared scan; the last is 1 for a 2D model
    inference: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)  # steps, seed, cases, scores, versions, date
    format: int = FORMAT


@dataclass(frozen=True)
class Model:
    """A loaded model: the predictor and what it must be fed with."""

    info: ModelInfo
    label_space: LabelSpace
    plan: Plan
    config: InferenceConfig
    predictor: nn.Module  # (B, M, *S) -> scores (B, C, *S)


def save_model(folder: Path, info: Mapping[str, Any], method: Method, nets: NetFactory) -> ModelInfo:
    """Write a model folder for a trained method, whole or not at all.

    `info` holds the fields of `ModelInfo` except ``predictor``, ``net`` and ``format``.
    """
    predictor = method.predictor()
    plain = isinstance(predictor, Softmax) and _same_network(predictor.network, nets.network())
    kind: Literal["softmax", "method"] = "softmax" if plain else "method"
    kept = predictor.network if isinstance(predictor, Softmax) and plain else predictor
    complete = build_settings(ModelInfo, {**info, "predictor": kind, "net": nets.description()}, DESCRIPTION)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS, kept.state_dict(), {"format": FORMAT})
        write_json(temporary / DESCRIPTION, {**vars(complete)})
    return complete


def load_model(
    folder: Path | str, device: torch.device | str = "cpu", *, classifier: str | None = None
) -> Model:
    """Load a model folder, or the folder of a run that contains one.

    `classifier` chooses another way to decide than the model was trained to use, where its method has several.

    Errors
        CheckpointError     not a model, written by a newer version, or weights that do not fit
        ConfigError         the model has no such classifier
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists() and (folder / "model" / DESCRIPTION).exists():
        folder = folder / "model"
    with _naming(folder / DESCRIPTION):
        info = _read_description(folder / DESCRIPTION)
    if classifier is not None:
        info = _with_classifier(info, classifier, folder)
    with _naming(folder / DESCRIPTION):
        config = build_settings(InferenceConfig, info.inference, "inference")
        label_space, plan = LabelSpace(info.classes), Plan.from_json(info.plan)
        predictor = _load_predictor(info, folder / WEIGHTS)
    use_fast_layout(predictor)
    predictor.eval().requires_grad_(False).to(device)
    return Model(info, label_space, plan, config, predictor)


def _with_classifier(info: ModelInfo, classifier: str, folder: Path) -> ModelInfo:
    known = find_method(info.method).classifiers
    if classifier not in known:
        raise ConfigError(
            f"the model has no classifier '{classifier}'{did_you_mean(classifier, known)}",
            file=folder,
            found=f"a model of the method '{info.method}'",
            expected=", ".join(known) or "no choice: this method has one way to decide only",
        )
    return replace(info, method_settings={**info.method_settings, "classifier": classifier})


def _load_predictor(info: ModelInfo, file: Path) -> nn.Module:
    nets = NetFactory.from_description(info.net)
    weights, _ = load_tensors(file)
    if info.predictor == "softmax":
        network = nets.network()
        load_weights(network, weights, file)
        return Softmax(network)
    kind = find_method(info.method)
    method = kind(nets, build_settings(kind.Config, info.method_settings, f"settings of {info.method}"))
    predictor = method.predictor()
    load_weights(predictor, weights, file)
    return predictor


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What is wrong in a model is not the user's setting: the error names the file."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        if isinstance(error, CheckpointError) and error.file is not None:
            raise
        raise CheckpointError(
            f"the description of the model is wrong: {error.what}",
            file=file,
            found=error.found,
            expected=error.expected,
            do="restore a copy of the model folder, or train it again",
        ) from error


def _same_network(network: nn.Module, plain: nn.Module) -> bool:
    """Whether both compute the same from the same weights: layers without weights count too, as they print."""

    def shapes(module: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in module.state_dict().items()}

    return repr(network) == repr(plain) and shapes(network) == shapes(plain)


def _read_description(file: Path) -> ModelInfo:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "this is not a model folder",
            file=file.parent,
            found=str(error),
            expected=f"a folder with {DESCRIPTION} and {WEIGHTS}, or a run that finished its training",
        ) from error
    version = values.get("format") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError("written by a newer version of labelwise", file=file, do="update labelwise")
    info: ModelInfo = build_settings(ModelInfo, values, str(file))
    return info
