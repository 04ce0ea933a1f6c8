"""The only module that knows devices, ranks and precision: a thin layer over Lightning Fabric."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision import Precision as FullPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from labelwise.devices import choose_device, has_bf16, use_fast_layout
from labelwise.engine import follow_parent
from labelwise.errors import ConfigError, ResourceError, TrainingError

# Fabric announces its precision at every start; the run's settings say it already.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

# Buffers hold memories and batch statistics of a rank; sending rank 0's at every step would overwrite them.
KEEP_BUFFERS: dict[str, Any] = (
    {"forward_sync_buffers": False}  # its name in newer versions of torch
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)
Precision = Literal["auto", "float32", "bf16"]
FABRIC_NAMES = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DeviceConfig:
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    processes: Annotated[int, Field(ge=1)] = (
        1  # on each machine, one per GPU; torchrun sets its own, under SLURM say what --ntasks-per-node says
    )
    # auto: bf16 where a GPU has it, and on a CPU where a step is measured to be faster; losses are always float32
    precision: Precision = "auto"
    # compute the stages of the network again in the backward pass instead of keeping what they computed: less memory
    recompute: bool = False


@contextmanager
def _without_hint_at_srun() -> Iterator[None]:
    """Who trains without srun where it is installed, as on the login node of a cluster, means it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        yield


@_without_hint_at_srun()
def connect(config: DeviceConfig, *, idle_weights: bool = False) -> Fabric:
    """Fabric for these settings, launched. Under torchrun or SLURM the ranks come from there.

    With `idle_weights` ranks look in every step which weights have no gradient; else all of them must have one.

    Errors
        ConfigError     one numbered device for several processes
        ResourceError   no such device here, or fewer than processes
    """
    device = choose_device(config.device)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device.type))
    processes, machines = _processes_and_machines(config)
    numbered = device.index is not None and device.type != "cpu"  # all processes share cpu:0
    if numbered and processes * machines > 1:
        raise ConfigError(
            f"{processes * machines} processes cannot share the device",
            found=f"device.device = '{config.device}'",
            expected=f"'{device.type}', of which each process takes one",
        )
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type != "cpu" and processes > there:
        raise ResourceError(
            f"{processes} processes need a device each", found=f"{there} of '{device.type}' here",
            do="lower device.processes",
        )  # fmt: skip
    devices: Any = [device.index] if numbered else processes
    strategy = DDPStrategy(find_unused_parameters=idle_weights, **KEEP_BUFFERS)
    fabric = Fabric(
        accelerator={"mps": "mps", "cuda": "cuda"}.get(device.type, "cpu"),
        devices=devices,
        num_nodes=machines,
        strategy=strategy if processes * machines > 1 else "auto",
        precision=cast(Any, FABRIC_NAMES["bf16" if bf16 else "float32"]),
    )
    fabric.launch()
    if (
        fabric.global_rank
        and not torch.distributed.is_torchelastic_launched()
        and not SLURMEnvironment.detect()
    ):
        follow_parent(os.getppid())  # the first process started this one
    return fabric


def precision_of(fabric: Fabric) -> str:
    """float32 or bf16."""
    return next(
        name for name, theirs in FABRIC_NAMES.items() if theirs == fabric.strategy.precision.precision
    )


def use_precision(fabric: Fabric, precision: str) -> None:
    """Compute in float32 or bf16 from now on; processes are started before anything can be measured."""
    if precision != precision_of(fabric):
        bf16 = MixedPrecision("bf16-mixed", fabric.device.type)
        fabric.strategy.precision = fabric._precision = bf16 if precision == "bf16" else FullPrecision()


def _processes_and_machines(config: DeviceConfig) -> tuple[int, int]:
    """Processes on each machine, and the number of machines."""
    if torch.distributed.is_torchelastic_launched():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, world // local
    return config.processes, int(os.environ["SLURM_NNODES"]) if SLURMEnvironment.detect() else 1


def set_up(
    fabric: Fabric, method: nn.Module, optimizers: list[Optimizer]
) -> tuple[nn.Module, list[Optimizer]]:
    """Move a method to its device in the fastest memory layout and wrap it for precision and ranks."""
    use_fast_layout(method)
    wrapped, *wrapped_optimizers = fabric.setup(method, *optimizers)
    return cast(nn.Module, wrapped), cast("list[Optimizer]", wrapped_optimizers)


class Agreement:
    """Ranks tell each other at every step what each of them alone knows: a signal, a clock.

    Signals and clocks differ between ranks, which must do the same at the same step or wait for each other for ever.
    They speak over the CPU, so that nobody waits for a device: a few tenths of a millisecond.
    """

    def __init__(self, fabric: Fabric):
        self.group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def any(self, *here: bool) -> tuple[bool, ...]:
        """Whether each of some facts holds on any rank."""
        if self.group is None:
            return here
        votes = torch.tensor(here, dtype=torch.uint8)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX, group=self.group)
        return tuple(bool(vote) for vote in votes)


# How torch says that a weight which all ranks were to average had no gradient.
IDLE = "Expected to have finished reduction"

# How gloo and NCCL say that another process is gone: only the text tells it from a defect.
LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed"),
    *("Connection refused", "remote process exited", "communicator was aborted", "NCCL watchdog"),
)


@contextmanager
def lost_rank_explained(fabric: Fabric, checkpoint: Path) -> Iterator[None]:
    """Turn the errors of a rank that waits for one that has ended into one that says how to go on.

    Errors
        ResourceError   another rank is gone
        TrainingError   a weight had no gradient, and the card of the method does not say that there are such weights
    """
    try:
        yield
    except RuntimeError as error:
        if IDLE in str(error):
            raise TrainingError(
                "some weights had no gradient in a step, and the ranks waited for them",
                found="a method whose card does not say so",
                do="train by one process; or add idle_weights=True to the card of the method",
            ) from error
        if fabric.world_size == 1 or not any(sign in str(error) for sign in LOST):
            raise
        kept = checkpoint if checkpoint.exists() else None
        raise ResourceError(
            "another process of this training has ended, most often because memory ran out",
            found=f"noticed by process {fabric.global_rank + 1} of {fabric.world_size}",
            file=kept,
            do="repeat the command"
            + ("; it goes on from this checkpoint, also with another number of processes" if kept else ""),
            code="process-lost",
        ) from error


def mean_over_ranks(fabric: Fabric, value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; itself on one rank."""
    return cast(Tensor, fabric.all_reduce(value, reduce_op="mean")) if fabric.world_size > 1 else value
