"""Everything a training needs to go on, in one safetensors file: tensors by name, the rest as JSON in its header.

No pickle is written or read, and the file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from labelwise.errors import CheckpointError
from labelwise.formats.tensors import load_header, load_tensors, load_weights, save_tensors
from labelwise.settings import ADDED, OLDER_NAMES, OLDER_VALUES, flat
from labelwise.train.average import PREFIX, AveragedWeights

FORMAT = 1
LONGEST = 60  # letters of a value in a message


def save_checkpoint(
    path: Path,
    method: nn.Module,
    optimizers: list[Optimizer],
    facts: Mapping[str, Any],
    average: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write the state of a method and its optimisers, and plain `facts` (step, best score, settings).

    `average` are the tensors of an `AveragedWeights`, or nothing.
    """
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()} | dict(average)
    plain = []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for parameter, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{parameter}.{name}"] = value
                else:
                    scalars.setdefault(str(parameter), {})[name] = value
        plain.append({"param_groups": state["param_groups"], "state": scalars})
    header = {"format": FORMAT, "facts": dict(facts), "optimizers": plain}
    save_tensors(path, tensors, header)


def load_checkpoint(
    path: Path, method: nn.Module, optimizers: list[Optimizer], average: AveragedWeights | None = None
) -> dict[str, Any]:
    """Bring a method, its optimisers and its average into the saved state and return the facts saved with it.

    Errors
        CheckpointError     unreadable file, or weights of another network
    """
    tensors, header = load_tensors(path)
    weights = {name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")}
    load_weights(method, weights, path)
    if average is not None:
        average.load(tensors)
    for number, (optimizer, plain) in enumerate(zip(optimizers, header["optimizers"], strict=True)):
        state: dict[int, dict[str, Any]] = {int(key): dict(values) for key, values in plain["state"].items()}
        prefix = f"optimizer.{number}."
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                parameter, _, slot = name.removeprefix(prefix).partition(".")
                state.setdefault(int(parameter), {})[slot] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
    return dict(header["facts"])


def check_continues(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a checkpoint that other settings began; without a checkpoint nothing is wrong.

    A setting that the version of the checkpoint did not have, and that is off now, changes nothing.

    Errors
        CheckpointError     unreadable or foreign file, a newer format, or other settings: the message names those
    """
    if not path.exists():
        return
    header = load_header(path)
    if "format" not in header:
        raise CheckpointError(
            "this is no checkpoint of labelwise", file=path, do="choose another output folder"
        )
    if header["format"] > FORMAT:
        raise CheckpointError(
            "written by a newer version of labelwise", file=path, do="update labelwise", code="newer-version"
        )
    now = flat(settings)
    before = _by_the_names_of(now, flat(header["facts"]["settings"]))
    different = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key) and (key in before or _changes(key, now[key]))
    ]
    if different:
        raise CheckpointError(
            "this run was begun with other settings",
            file=path,
            found=_listed(before, different),
            expected=_listed(now, different),
            do="choose another output folder, or --overwrite to begin anew",
            code="settings-changed",
        )


def _changes(key: str, value: Any) -> bool:
    """Whether a setting that an older version did not have makes another training of it."""
    return bool(value) and ADDED.get(key.rpartition(".")[2]) != value


def _by_the_names_of(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older version, under the names and values that they have in this one."""
    named = {}
    for key, value in before.items():
        table, dot, name = key.rpartition(".")
        new = key if key in now else table + dot + OLDER_NAMES.get(name, name)
        renamed = OLDER_VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        named[new] = renamed if renamed == now.get(new) else value
    return named


def _listed(settings: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} = {shorten(str(settings.get(name)), LONGEST)}" for name in names)


def load_method(path: Path, method: nn.Module) -> None:
    """Bring only the weights and memories of a method into the saved state; averaged weights go first."""
    tensors, _ = load_tensors(path)
    weights = {name.removeprefix("method."): t for name, t in tensors.items() if name.startswith("method.")}
    weights |= {name.removeprefix(PREFIX): t for name, t in tensors.items() if name.startswith(PREFIX)}
    load_weights(method, weights, path)
