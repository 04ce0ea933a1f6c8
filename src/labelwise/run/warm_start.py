"""Weights that a training begins with: of an earlier run or model, or of a public encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labelwise.config import RunConfig
from labelwise.errors import CheckpointError, ConfigError
from labelwise.formats.tensors import read_weights
from labelwise.infer.model import DESCRIPTION, ModelInfo, load_model, model_info
from labelwise.methods import find_method
from labelwise.methods.base import Method
from labelwise.nets.parts import SegmentationNet
from labelwise.nets.transfer import PublicEncoder, Transfer, from_nnssl, is_nnssl, take_over
from labelwise.types import LabelSpace

DO = "name the folder of a finished run or of a model, or the file of an encoder of nnssl (.pth or .safetensors)"
# Networks whose every layer depends on which structure is asked for, by its number.
BY_CLASS_NUMBER = frozenset({"film_unet"})


@dataclass(frozen=True)
class Source:
    """Trained weights, and what is known of them."""

    path: Path
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] = ()  # of the model, background first; none for an encoder
    info: ModelInfo | None = None  # of a model of this package
    encoder: PublicEncoder | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a plan takes over from it, so that its weights fit: setting -> value."""
        if self.encoder is not None:
            return {"net.name": "residual_unet", "net.settings": self.encoder.settings}
        assert self.info is not None
        x, y, z = self.info.patch_size
        spacing = self.info.plan.get("spacing_mm")
        return {
            "net.name": self.info.net["name"],
            "net.settings": dict(self.info.net["settings"]),
            "sampling.patch_size": (x, y, z),
            **({"prepare.spacing_mm": tuple(spacing)} if spacing else {}),
        }

    def put_into(self, method: nn.Module, label_space: LabelSpace) -> Transfer:
        """Give its weights to the networks of a method.

        Errors
            CheckpointError     no tensor fits; a network that knows its classes by number, for other classes
        """
        other = self.info is not None and self.classes != label_space.names
        if other and self.info is not None and self.info.net["name"] in BY_CLASS_NUMBER:
            raise CheckpointError(
                f"the layers of a {self.info.net['name']} belong to the numbers of its classes",
                file=self.path,
                found=", ".join(self.classes),
                expected=", ".join(label_space.names),
            )
        transfer = take_over(method, self.weights, classes=label_space.names, known_classes=self.classes)
        if self.encoder is not None:
            transfer.unused = sorted([*transfer.unused, *self.encoder.without_effect])
        # A head alone would read other features than those that it was trained on.
        if not any("encoder" in name.split(".") for name in transfer.taken):
            raise CheckpointError(
                "no tensor fits into the encoders of this training",
                file=self.path,
                found=next(iter(transfer.left.values()), "a method without networks"),
                do="train the same network: leave [net] out, or copy it from run.toml of that run",
            )
        return transfer


def find_source(path: Path | str) -> Source:
    """Read the weights that a path means.

    Errors
        CheckpointError     nothing is there, or it is neither a model nor an encoder that is known
    """
    path = Path(path)
    if path.is_dir():
        return _of_model(path)
    if not path.exists():
        raise CheckpointError("there is nothing to start from", file=path, do=DO)
    return _of_file(path)


def kept_model(config: RunConfig) -> ModelInfo | None:
    """The model whose classes and preparation a training keeps, if its method does that.

    Errors
        ConfigError         no model is named
        CheckpointError     what is named is none
    """
    name = config.method.name
    if not find_method(name).keeps_classes:
        return None
    if config.warm_start is None:
        raise ConfigError(
            f"{name} begins with a trained model, and none is named",
            do="name the folder of a finished run or of a model: --from FOLDER",
        )
    folder = Path(config.warm_start)
    if not folder.is_dir():
        raise CheckpointError(
            f"{name} begins with a trained model, and this is none", file=folder, do="name its folder"
        )
    _require_model(folder)
    return model_info(folder)


def licences_of(start: Path | str | None) -> dict[str, str]:
    """Data set -> licence of what trained weights have learnt from; "" if not stated, as for every encoder."""
    if start is None:
        return {}
    folder = Path(start)
    if not folder.is_dir():
        return {folder.name: ""}
    _require_model(folder)
    training = model_info(folder).training
    return dict(training.get("licences") or dict.fromkeys(training.get("data_sets", {}), ""))


def _require_model(folder: Path) -> None:
    if not any((place / DESCRIPTION).exists() for place in (folder, folder / "model")):
        unfinished = (folder / "run.toml").exists()
        raise CheckpointError(
            "the run is not finished, so it has no model" if unfinished else "this is no run and no model",
            file=folder,
            do="finish it by repeating its command" if unfinished else DO,
        )


def _of_model(folder: Path) -> Source:
    _require_model(folder)
    model = load_model(folder)
    networks = [part for part in model.predictor.modules() if isinstance(part, SegmentationNet)]
    # A predictor that is no whole network, but parts of one, is searched by the names of the parts.
    weights = (networks[0] if networks else model.predictor).state_dict()
    return Source(folder, weights, model.info.classes, model.info)


def _of_file(file: Path) -> Source:
    weights, facts = read_weights(file)
    told = next((facts[key] for key in facts if key.endswith("adaptation_plan")), None)
    plan: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    places = {
        "encoder": str(plan.get("key_to_encoder", "encoder.stages")),
        "stem": str(plan.get("key_to_stem", "encoder.stem")),
    }
    if not is_nnssl(weights, encoder=places["encoder"]):
        raise CheckpointError(
            "this is no residual encoder in the layout of nnssl",
            file=file,
            found=f"tensors such as {', '.join(list(weights)[:3]) or 'none'}",
            expected=f"{places['encoder']}.0.blocks.0.conv1.conv.weight",
            do=DO,
        )
    encoder = from_nnssl(weights, **places)
    return Source(file, encoder.weights, encoder=encoder)


def check_alone(warm_start: str | None, start_from: str | None) -> None:
    """Raise a ConfigError if a training would begin with two things."""
    if warm_start is not None and start_from is not None:
        raise ConfigError(
            "start_from already brings the weights of the stage before",
            found=f"warm_start = {warm_start}",
            do="leave one of them out",
        )


def begin(method: Method, path: Path | str, label_space: LabelSpace) -> Transfer:
    """Start a method from what a path means; random numbers of the process are left as they were.

    Errors
        CheckpointError     nothing fits, or too little for this method
    """
    with torch.random.fork_rng(devices=[]):
        transfer = find_source(path).put_into(method, label_space)
    known = label_space.annotated(transfer.classes)
    known[0] = True
    method.begin_with(transfer, known)
    return transfer
