"""What the hardware offers: the device for a name, native bf16, the memory layout that convolutions like."""

from __future__ import annotations

import ctypes
import errno
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labelwise.engine import available_cpus
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
    kind, colon, number = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    number = number if colon else "0"
    if not number.isdecimal() or int(number) >= counts.get(kind, 0):
        raise ResourceError(
            f"device '{device}' is not available here",
            expected=", ".join(f"{name} ({count})" for name, count in counts.items() if count),
            do="choose --device auto",
            code="device-unavailable",
        )
    return torch.device(kind, int(number)) if colon else torch.device(kind)


def choose_devices(devices: str) -> tuple[str, ...]:
    """The devices of a list (cuda:0,cuda:1), or of ``all``: every GPU. One may be named twice, for two processes.

    Errors
        ResourceError   no such device here, or no GPU
    """
    if devices == "all":
        found = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if not found:
            raise ResourceError(
                "there is no GPU here",
                found="--device all",
                do="choose --device auto",
                code="device-unavailable",
            )
        return found
    names = tuple(name.strip() for name in devices.split(","))
    for name in names:
        choose_device(name)
    return names


def has_bf16(device_type: str) -> bool:
    """Whether convolutions in bf16 are native here (an emulated bf16 is slower than float32)."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # oneDNN itself says yes to every AVX-512, although without avx512_bf16 it emulates.
    return device_type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def use_allowed_cpus() -> None:
    """Compute on no more threads than this process has CPUs.

    torch counts those of its affinity; where a container allows it less time than that, threads wait for each other.
    """
    if torch.get_num_threads() > available_cpus():
        torch.set_num_threads(available_cpus())


def use_fast_layout(module: nn.Module) -> None:
    """Store the weights of convolutions with the channels last, which their fast kernels read without a copy.

    Not in 2D networks with instance norm, which turns every feature map back: there it costs a quarter of a step.
    """
    turned_back = any(isinstance(part, nn.InstanceNorm2d) for part in module.modules())
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and not turned_back:
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


# Of mallopt in the GNU C library: parameter and value.
KEEP_MEMORY = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 * 2**20)}


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, from now on; whether the C library can.

    The GNU C library gives large blocks back to the system at once, so every large tensor of every training step
    costs its page faults anew: up to a quarter of a step on a CPU. See docs/decisions/0008-kept-memory.md.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(*setting) == 1 for setting in KEEP_MEMORY.values())


# How torch and its libraries say on a CPU that memory ran out: only the text tells it from a defect.
OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "out of memory", "bad_alloc", "bad allocation", "Cannot allocate memory"),
    *("ALLOC_FAILED", "Unable to allocate", "could not create a memory"),
)


@contextmanager
def memory_explained(what: str, *, do: str) -> Iterator[None]:
    """Turn the memory errors of torch, NumPy and the system into a ResourceError that says what to do.

    Errors
        ResourceError   memory ran out within the context
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        known = known or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        if not known and not (
            isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
        ):
            raise
        raise ResourceError(
            what, found=str(error).partition("\n")[0] or None, do=do, code="out-of-memory"
        ) from error


CONVOLUTIONS_3D = (torch.conv3d, torch.conv_transpose3d)  # the same objects as in torch.nn.functional


class SafeConvolutions(TorchFunctionMode):
    """Within this context a 3D convolution whose kernel is longer than the image is computed in float32 on a CPU.

    Under bf16 oneDNN takes the gradient of such weights from memory that nobody wrote: it is wrong, NaN, or the
    process ends with a corrupt heap. Seen with torch 2.13 (oneDNN 3.12) on avx512_bf16 for kernels of 3, 5 and 7,
    transposed or not; results of the forward pass, 2D and float32 are right. Images so small lie on the coarsest
    scales only, where float32 costs little.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in CONVOLUTIONS_3D or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        images, kernel = (
            args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight"))
        )
        if images.device.type != "cpu" or all(
            length >= width for length, width in zip(images.shape[-3:], kernel.shape[-3:], strict=True)
        ):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return function(*map(_float32, args), **{name: _float32(value) for name, value in kwargs.items()})


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
