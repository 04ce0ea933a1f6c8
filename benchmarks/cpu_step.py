"""What a training step of the planned networks spends its time on, and what was tried to shorten it, on a CPU.

    python benchmarks/cpu_step.py

The networks that a plan chooses for a processor, on patches as it chooses them; variants take turns. Processor seconds
of one thread, so that other work on the machine does not count. Memory is what autograd keeps between both passes.

1. The operations of a step, by torch.profiler.
2. Stages that are computed twice (`device.recompute`): how much memory that spares, and what it costs.
3. Weights of 2D convolutions with the channels last, which `use_fast_layout` leaves out beside instance norm.
4. Optimisers in one call (fused), which the loop asks for on a GPU only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from metadata import write_result
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from training_step import SPACE, a_batch, taking_turns

from labelwise.devices import SafeConvolutions, has_bf16, keep_freed_memory, use_fast_layout
from labelwise.losses.partial import supervised
from labelwise.methods.base import NetFactory
from labelwise.nets.recompute import recompute_stages
from labelwise.train.schedule import OptimizerConfig, build_optimizers

KINDS = {2: (16, 12, (128, 128)), 3: (8, 2, (64, 64, 48))}  # width, cases, patch
ROUNDS, LISTED = 3, 8


def a_network(dims: int) -> nn.Module:
    """As a plan chooses it, in the layout of a training."""
    settings = {"width": KINDS[dims][0], "blocks": (1, 2, 2, 2)}
    nets = NetFactory("residual_unet", settings, dims=dims, in_channels=1, num_classes=SPACE.num_classes)
    network = nets.network()
    use_fast_layout(network)
    return network


class Step:
    """A forward and backward pass."""

    def __init__(self, network: nn.Module, dims: int):
        self.network = network
        _, cases, patch = KINDS[dims]
        self.batch = a_batch(cases, patch)

    def loss(self) -> Tensor:
        """The forward pass."""
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu")):
            return supervised(self.network(self.batch.images), self.batch.labels, self.batch.annotated)

    def __call__(self) -> None:
        with SafeConvolutions():
            torch.autograd.backward(self.loss())
        self.network.zero_grad(set_to_none=True)

    def kept_mib(self) -> int:
        """What the forward pass keeps for the backward pass."""
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with SafeConvolutions(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            graph = self.loss()
        del graph
        return round(sum(found.values()) / 2**20)


def operations(step: Step) -> dict[str, float]:
    """Percent of the time of a step in the operations that take most, without those that they call."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(100 * event.self_cpu_time_total / whole, 1) for event in events[:LISTED]}


def variants(dims: int) -> dict[str, Any]:
    """Parts 1 to 3 for one network."""
    plain, twice = Step(a_network(dims), dims), Step(a_network(dims), dims)
    recompute_stages(twice.network)
    steps = {"as it is": plain, "stages computed twice": twice}
    if dims == 2:
        last = a_network(dims).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps["channels last"] = Step(last, dims)
    times = taking_turns(steps, rounds=ROUNDS)
    base = times["as it is"]["median_s"]
    return {
        "operations_percent": operations(plain),
        "seconds": times,
        "times_as_long": {name: round(row["median_s"] / base, 2) for name, row in times.items()},
        "kept_mib": {name: step.kept_mib() for name, step in steps.items()},
    }


def optimisers(dims: int) -> dict[str, Any]:
    """Part 4."""
    work: dict[str, Callable[[], object]] = {}
    for name in ("sgd", "adamw"):
        for fused in (False, True):
            weights = list(a_network(dims).parameters())
            (optimizer,) = build_optimizers([{"params": weights}], OptimizerConfig(name=name), fused=fused)
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            work[f"{name}, one call" if fused else name] = optimizer.step
    return taking_turns(work, rounds=10)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = {
        f"residual_unet, width {width}, {cases} patches of {'x'.join(map(str, patch))}": {
            **variants(dims),
            "optimisers": optimisers(dims),
        }
        for dims, (width, cases, patch) in KINDS.items()
    }
    told = {"unit": "processor seconds of one thread", "bf16": has_bf16("cpu"), "networks": rows}
    print(write_result("cpu_step", told))


if __name__ == "__main__":
    main()
