"""What the hardware offers: the device for a name, native bf16, and the memory layout that convolutions like."""

from __future__ import annotations

import torch
from torch import nn

from labelwise.errors import ResourceError


def choose_device(device: str) -> torch.device:
    """The device for a name (auto, cpu, cuda, cuda:1, mps); ``auto`` takes a GPU if there is one.

    Errors
        ResourceError   no such device here
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if not (number or "0").isdecimal() or int(number or 0) >= counts.get(kind, 0):
        raise ResourceError(
            f"device '{device}' is not available here",
            expected=", ".join(f"{name} ({count})" for name, count in counts.items() if count),
            do="choose --device auto",
        )
    return torch.device(device)


def has_bf16(device_type: str) -> bool:
    """Whether convolutions in bf16 are native here (an emulated bf16 is slower than float32)."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN itself says yes to every AVX-512, although without avx512_bf16 it emulates.
    return device_type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def use_fast_layout(module: nn.Module) -> None:
    """Store the weights of convolutions with the channels last, which their fast kernels read without a copy."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
