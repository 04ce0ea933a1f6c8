"""Tensors and plain values in one safetensors file: named tensors, and a JSON header beside them. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labelwise.atomic import atomic_path
from labelwise.documents import parse_json
from labelwise.errors import CheckpointError

# What torch raises for a file that needs more than tensors and plain values.
_Refused: type[Exception] = torch.serialization.pickle.UnpicklingError  # type: ignore[attr-defined]


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict whose names and shapes must fit exactly; says which do not."""
    own = module.state_dict()
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if wrong:
        raise CheckpointError(
            "the weights belong to another network or method",
            file=path,
            found=f"{len(wrong)} tensors that do not fit, first '{wrong[0]}'",
            do="use the settings that the file was made with (run.toml beside it), or another output folder",
        )
    module.load_state_dict(weights)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """A safetensors file with a JSON header, written atomically."""
    # safetensors refuses shared memory and keeps no memory layout: store plain contiguous copies on the host.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(plain, temporary, metadata={"labelwise": json.dumps(header)})
            temporary.chmod(mode)  # safetensors lets nobody but the owner read
        except SafetensorError as error:
            raise _as_os_error(error) from error


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON header of a file written by `save_tensors`."""
    with _opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, _header(file)  # noqa: SIM118 - not a dict


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file of another program, .safetensors or torch's own format, and what else stands beside them.

    Of torch's format only tensors and plain values are read: files that need more could run code, and are refused.
    Weights may lie under ``network_weights`` or ``state_dict``, and names may begin with ``module.`` or ``_orig_mod.``.

    Errors
        CheckpointError     unreadable, without tensors, or with objects that are no plain values
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, _Refused) as error:
        raise CheckpointError(
            "the weights cannot be read",
            file=path,
            found=str(error).partition("\n")[0],
            expected="tensors and plain values only, which cannot run code",
            do="save its state dict by safetensors.torch.save_file, and name that file",
        ) from error
    facts = content if isinstance(content, Mapping) else {}
    inner = next((facts[key] for key in ("network_weights", "state_dict") if key in facts), facts)
    inner = inner if isinstance(inner, Mapping) else {}
    weights = {_plain_name(str(key)): value for key, value in inner.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(
            "the file holds no tensors", file=path, found=", ".join(map(str, facts)) or None
        )
    return weights, {str(key): value for key, value in facts.items() if not isinstance(value, Tensor)}


def _plain_name(name: str) -> str:
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of such a file, which are not read."""
    with _opened(path, "cpu") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict


def load_header(path: Path) -> dict[str, Any]:
    """Only the JSON header of such a file."""
    with _opened(path, "cpu") as file:
        return _header(file)


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            "cannot be read",
            file=path,
            found=str(error),
            do="delete it and train again, or restore a copy",
            code="unreadable",
        ) from error


def _header(file: Any) -> dict[str, Any]:
    header: dict[str, Any] = parse_json((file.metadata() or {}).get("labelwise", "{}"))
    return header


def _as_os_error(error: SafetensorError) -> Exception:
    """safetensors wraps the operating system's error; its number stands in the text."""
    text = str(error)
    if "os error" in text:
        number = int(text.rsplit("os error", 1)[1].strip(" ):\"'}"))
        return OSError(number, text)
    return error
