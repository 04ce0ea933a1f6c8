"""Tensors and plain values in one safetensors file: named tensors, and a JSON header beside them. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labelwise.atomic import atomic_path
from labelwise.errors import CheckpointError


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
    header: dict[str, Any] = json.loads((file.metadata() or {}).get("labelwise", "{}"))
    return header


def _as_os_error(error: SafetensorError) -> Exception:
    """safetensors wraps the operating system's error; its number stands in the text."""
    text = str(error)
    if "os error" in text:
        number = int(text.rsplit("os error", 1)[1].strip(" ):\"'}"))
        return OSError(number, text)
    return error
