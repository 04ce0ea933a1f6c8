"""The plan: a value and a reason for every setting that a recipe leaves open.

Nothing here reads a file or measures: the same facts give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

from labelwise.anatomy import find, is_pair, named_side
from labelwise.methods import METHODS, find_method, stages_of
from labelwise.nets.factory import NetFactory
from labelwise.plan.facts import Facts, Hardware, Triple
from labelwise.plan.memory import training_bytes
from labelwise.plan.topology import Topology, find_patch, find_topology

# What a plan can decide, and in which order.
PLANNED = (
    "method.name",
    "method.settings",
    "sampling.patch_size",
    "prepare.spacing_mm",
    "net.name",
    "net.settings",
    "sampling.labelled_cases",
    "sampling.unlabelled_cases",
    "augment.preset",
    "augment.mirror_axes",
    "augment.on_side",
    "augment.drop_channels",
    "train.steps",
    "train.optimizer.name",
    "train.optimizer.rate",
    "train.optimizer.weight_decay",
    "train.schedule.name",
    "train.schedule.warmup_steps",
    "train.clip_gradient",
    "train.average",
    "inference.postprocess",
    "workers",
)

# Measured with 3 patients of ACDC: 48.9 Dice instead of 41.2 (rows "their dice" of benchmarks/acdc_few_labels.py).
LABELS_ALONE = {"squared_dice": True, "dice_pooling": "batch"}
FLAT_SLICES = 16  # fewer along z, and a 3D network has little to halve there
FLAT_RATIO = 3  # voxels so much longer along z than in the plane are those of a stack of slices
NET = "residual_unet"
CPU_VOXELS = {2: 192 * 192, 3: 64 * 64 * 48}  # of a patch: a step of a second or two on a core
CPU_WIDTH, GPU_WIDTH = {2: 16, 3: 8}, {2: 32, 3: 32}
CPU_BLOCKS, GPU_BLOCKS = (
    (1, 2, 2, 2),
    (1, 3, 4, 6),
)  # by scale, fine to coarse; nnU-Net's residual encoder on a GPU
CPU_SLICES = 12 * 128 * 128  # pixels of a 2D batch
GPU_MEMORY, MOST_GPU_MEMORY = 0.8, 40 * 2**30  # part that is used, and how much is ever worth using
GPU_SLICES = 32
LEAST_COVERED = 1 / 4  # of the typical scan by a patch; nnU-Net's threshold for a lower resolution
DROPPED = 0.2  # chance of a channel to be left out where some cases lack one
LEAST_STRUCTURE = 6  # voxels along an axis that the smallest structure keeps when scans are made coarser
TURNED = 0.05  # of the scans: fewer are exceptions
STEPS = {"cpu": {2: 3000, 3: 1500}, "gpu": {2: 10000, 3: 20000}}


@dataclass(frozen=True)
class Line:
    """One decision."""

    setting: str
    value: Any
    why: str


@dataclass
class Plan:
    """The decisions of a plan, in the order in which they follow from each other."""

    lines: list[Line] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """Setting -> value."""
        return {line.setting: line.value for line in self.lines}

    def to_text(self) -> str:
        """One line for each decision: setting, value, reason."""
        rows = [(line.setting, _shown(line.value), line.why) for line in self.lines]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        return "\n".join(
            f"{setting:<{widths[0]}}  {value:<{widths[1]}}  {why}" for setting, value, why in rows
        )

    def facts(self) -> list[dict[str, Any]]:
        """The same as plain values."""
        return [
            {"setting": line.setting, "value": _plain(line.value), "why": line.why} for line in self.lines
        ]


def make_plan(
    facts: Facts, hardware: Hardware, current: Mapping[str, Any], open_settings: Collection[str]
) -> Plan:
    """Decide the settings that are open.

    Arguments
        facts           of the training scans; at the spacing of the recipe, or at that of the fingerprint
        current         setting -> value of the recipe, for all of `PLANNED`; those of open settings are ignored
        open_settings   the part of `PLANNED` that is to be decided

    Errors
        ConfigError     unknown method
    """
    return _Planner(facts, hardware, dict(current), frozenset(open_settings)).plan()


class _Planner:
    def __init__(
        self, facts: Facts, hardware: Hardware, current: dict[str, Any], open_settings: frozenset[str]
    ):
        self.facts, self.hardware = facts, hardware
        self.values, self.open = current, open_settings
        self.result = Plan()
        self.on_cpu = hardware.kind == "cpu"

    def plan(self) -> Plan:
        for decide in (
            self._method, self._patch, self._batch, self._augmentation, self._training, self._prediction,
            self._workers,
        ):  # fmt: skip
            decide()
        order = {setting: number for number, setting in enumerate(PLANNED)}
        self.result.lines.sort(key=lambda line: order[line.setting])
        return self.result

    def _set(self, setting: str, value: Any, why: str) -> None:
        """Decide a setting, unless the recipe did."""
        if setting in self.open:
            self.values[setting] = value
            self.result.lines.append(Line(setting, value, why))

    # what is learnt

    def _method(self) -> None:
        facts = self.facts
        if facts.unlabelled and "self_training" in METHODS:
            self._set(
                "method.name",
                "self_training",
                f"{facts.unlabelled} of {facts.cases} training cases are not completely annotated",
            )
        else:
            why = (
                "every training case is completely annotated"
                if not facts.unlabelled
                else "it learns from all that is annotated"
            )
            self._set("method.name", "supervised", why)
        self.kind = find_method(self.values["method.name"])
        settings = LABELS_ALONE if self.values["method.name"] in ("supervised", "naive") else {}
        self._set(
            "method.settings",
            settings,
            "the Dice of self_training: with few labels several points better"
            if settings
            else "the defaults of this method",
        )

    @property
    def _uses_unlabelled(self) -> bool:
        return "none" in self.kind.card.learns_from and self.facts.unlabelled > 0

    # what is seen

    def _dims(self) -> tuple[int, str]:
        """2 or 3, and why."""
        if "sampling.patch_size" not in self.open:
            return (2 if self.values["sampling.patch_size"][2] == 1 else 3), "as the recipe says"
        (x, y, z), (dx, dy, dz) = self.facts.shape, self.facts.spacing_mm
        if self.kind.card.dims == {3}:
            return 3, f"3D: {self.values['method.name']} works in 3D only"
        if self.kind.card.dims == {2}:
            return 2, f"2D: {self.values['method.name']} works in 2D only"
        if z < FLAT_SLICES and min(x, y) > 3 * z:
            return 2, f"2D: a typical scan has {z} slices of {x} x {y}"
        if dz > FLAT_RATIO * max(dx, dy) and z < 2 * FLAT_SLICES:
            return 2, f"2D: {z} slices, each {dz / max(dx, dy):.0f} times as thick as a pixel is wide"
        return 3, "3D"

    def _patch(self) -> None:
        dims, why = self._dims()
        self.dims = dims
        if "sampling.patch_size" not in self.open:
            patch = tuple(self.values["sampling.patch_size"])
            self._spacing(patch)
            self._network(find_topology(patch[:dims], self.facts.spacing_mm[:dims], exact=True))
            return
        limit, reason = self._most_voxels()
        self._spacing_for(limit)
        shape, spacing = self.facts.shape[:dims], self.facts.spacing_mm[:dims]
        if not self._lies_one_way:  # a square can be turned
            shape = (max(shape),) * dims
        topology = self._network(find_patch(shape, spacing, limit))
        patch = topology.patch if dims == 3 else (*topology.patch, 1)
        covered = min(1.0, prod(topology.patch) / prod(shape))
        self._set(
            "sampling.patch_size",
            patch,
            f"{why}; {100 * covered:.0f} % of a typical {'scan' if dims == 3 else 'slice'} "
            f"({' x '.join(map(str, shape))}); {reason}",
        )

    def _most_voxels(self) -> tuple[int, str]:
        if self.on_cpu:
            return CPU_VOXELS[self.dims], f"at most {CPU_VOXELS[self.dims]:,} voxels: a processor computes"
        memory = min(GPU_MEMORY * self.hardware.memory_bytes, MOST_GPU_MEMORY)
        cases = GPU_SLICES if self.dims == 2 else 2 * (1 + self._uses_unlabelled)
        probe = (64,) * self.dims
        topology = find_topology(probe, (1.0,) * self.dims)
        nets = self._factory(*self._chosen_net(topology))
        fixed = training_bytes(nets, probe, 0, element_bytes=2)
        each = (training_bytes(nets, probe, cases, element_bytes=2) - fixed) / prod(probe)
        limit = max(int((memory - fixed) / each), prod(probe) // 8)
        return limit, f"{cases} of them fill {memory / 2**30:.0f} GiB of the GPU"

    def _spacing(self, patch: tuple[int, ...]) -> None:
        self._set("prepare.spacing_mm", None, f"{self._shown()}: the median of the training scans")

    def _spacing_for(self, most_voxels: int) -> None:
        """Coarser voxels where a patch would be a keyhole; never so coarse that a structure is lost."""
        if "prepare.spacing_mm" not in self.open:
            return
        shape = self.facts.shape[: self.dims]
        covered = most_voxels / prod(shape)
        if not self.on_cpu or covered >= LEAST_COVERED:
            self._spacing(shape)
            return
        coarser = self._coarser(most_voxels)
        before = self._shown()
        self.facts = self.facts.at_spacing(coarser)
        self._set(
            "prepare.spacing_mm",
            coarser,
            f"{before} in the scans; coarser, because a patch would show {100 * covered:.0f} % of a scan",
        )

    def _coarser(self, most_voxels: int) -> Triple:
        smallest = [
            min((size[axis] for size in self.facts.structures_mm.values()), default=float("inf"))
            for axis in range(3)
        ]
        spacing, facts = list(self.facts.spacing_mm), self.facts
        axes = range(self.dims)
        while most_voxels / prod(facts.shape[: self.dims]) < LEAST_COVERED:
            coarsest = max(spacing[axis] for axis in axes)
            fine = [axis for axis in axes if spacing[axis] * 1.05 < coarsest] or list(axes)
            allowed = [axis for axis in fine if smallest[axis] / (spacing[axis] * 1.05) >= LEAST_STRUCTURE]
            if not allowed:
                break
            for axis in allowed:
                spacing[axis] = round(spacing[axis] * 1.05, 4)
            x, y, z = spacing
            facts = self.facts.at_spacing((x, y, z))
        x, y, z = spacing
        return x, y, z

    def _shown(self) -> str:
        return " x ".join(f"{size:.3g}" for size in self.facts.spacing_mm) + " mm"

    # the network

    def _chosen_net(self, topology: Topology) -> tuple[str, dict[str, Any]]:
        name = self.values["net.name"]
        if "net.name" in self.open:
            allowed = self.kind.card.nets
            name = NET if allowed is None or NET in allowed else min(allowed)
        if "net.settings" not in self.open:
            return name, self.values["net.settings"]
        settings = NET_SETTINGS[name](topology, self.dims, self.on_cpu) if name in NET_SETTINGS else {}
        deep = name == "residual_unet" and self.kind.card.deep_supervision
        return name, {**settings, "deep_supervision": True} if deep else settings

    def _network(self, topology: Topology) -> Topology:
        """Name and settings of the network; the patch as that network can take it."""
        name, settings = self._chosen_net(topology)
        why = (
            "its scales follow the patch and the spacing"
            if name in NET_SETTINGS
            else f"{self.values['method.name']} needs it"
        )
        self._set("net.name", name, why)
        divisors = self._factory(name, settings).strides
        patch = tuple(
            ceil(length / divisor) * divisor for length, divisor in zip(topology.patch, divisors, strict=True)
        )
        if patch == divisors:  # else a single voxel would be left on the coarsest scale
            patch = tuple(2 * length for length in patch)
        told = _told(topology, self.on_cpu) if name in NET_SETTINGS else "the defaults of this network"
        self._set("net.settings", settings, told)
        return Topology(patch, topology.strides, topology.kernels)

    def _factory(self, name: str, settings: Mapping[str, Any]) -> NetFactory:
        return NetFactory(
            name, settings, dims=self.dims, in_channels=self.facts.channels,
            num_classes=len(self.facts.structures) + 1,
        )  # fmt: skip

    # the batch

    def _batch(self) -> None:
        patch = self.values["sampling.patch_size"]
        if self.dims == 3:
            labelled, why = 2, "two patches, as nnU-Net: a larger patch is worth more than a larger batch"
        elif self.on_cpu:
            labelled = min(12, max(2, round(CPU_SLICES / prod(patch))))
            why = "as many pixels as 12 slices of 128 x 128"
        else:
            labelled, why = GPU_SLICES, "slices are small for a GPU"
        shared = labelled if self.dims == 3 else max(1, labelled // 2)
        if self._uses_unlabelled:
            self._set("sampling.labelled_cases", shared, why)
            self._set("sampling.unlabelled_cases", shared, "as many as labelled ones")
        else:
            self._set("sampling.labelled_cases", labelled, why)
            self._set(
                "sampling.unlabelled_cases",
                0,
                "every case is completely annotated"
                if not self.facts.unlabelled
                else f"{self.values['method.name']} learns from what is annotated only",
            )

    # augmentation

    def _augmentation(self) -> None:
        self._set(
            "augment.preset",
            "default",
            "changes of nnU-Net's strength; stronger ones were no better, and slower to learn from",
        )
        # Measured with 3 patients of ACDC: docs/explanation/what-makes-it-train.md.
        self._set("augment.mirror_axes", (), "no patient is mirrored; with few labels it cost several points")
        obstacle = self._lies_one_way
        self._set(
            "augment.on_side",
            0.0 if obstacle else round(self.facts.turned, 2),
            obstacle or f"{100 * self.facts.turned:.0f} % of the scans, labelled or not, lie on their side",
        )

        lacking = self.facts.lacking
        self._set(
            "augment.drop_channels",
            DROPPED if lacking else 0.0,
            f"{lacking} of {self.facts.cases} cases lack a channel: the model learns to do without any"
            if lacking
            else "no case lacks a channel",
        )

    @property
    def _lies_one_way(self) -> str:
        """Why slices are not turned on their side; empty if they are."""
        sided = [name for name in self.facts.structures if named_side(name)]
        fixed = "sampling.patch_size" not in self.open
        if self.dims == 3:
            return "in 3D, scans are brought to one orientation"
        if self.facts.turned < TURNED:
            return "the slices of nearly all scans lie alike"
        if sided:
            return f"'{sided[0]}' is named by its side"
        if fixed and len(set(self.values["sampling.patch_size"][:2])) > 1:
            return "a patch that is no square cannot be turned"
        return ""

    # the training

    def _training(self) -> None:
        where = "cpu" if self.on_cpu else "gpu"
        each, why = STEPS[where][self.dims], f"for a {where.upper()}"
        if self._uses_unlabelled and self.facts.cases > 2 * self.facts.labelled:
            # Measured with 3 patients of ACDC: docs/explanation/what-makes-it-train.md.
            each, why = each * 3 // 2, f"{why}, half as many again to learn from scans without labels"
        stages = 1 if self.values.get("start_from") else len(stages_of(self.kind))
        self._set(
            "train.steps",
            (each,) * stages,
            f"no time budget (--budget 40m) is set: {each} {why}",
        )
        steps = self.values["train.steps"][0]
        self._set("train.optimizer.name", "adamw", "gets far in few steps")
        adam = self.values["train.optimizer.name"] in ("adam", "adamw")
        width = 2e-3 if self.on_cpu else 1e-3
        self._set(
            "train.optimizer.rate",
            width if adam else 0.01,
            f"for {'narrow' if self.on_cpu else 'wide'} networks and {self.values['train.optimizer.name']}",
        )
        self._set("train.optimizer.weight_decay", 1e-4 if adam else 3e-5, "small: augmentation regularises")
        self._set("train.schedule.name", "poly", "down to 0 at the last step: no later step is wasted")
        self._set(
            "train.schedule.warmup_steps", min(200, steps // 20), "a twentieth of the steps, at most 200"
        )
        self._set("train.clip_gradient", 12.0, "single bad patches must not throw the weights away")

        self._set(
            "train.average",
            0.01,
            "the averaged weights of the last hundredths are steadier than the last ones",
        )

    def _prediction(self) -> None:
        # Of a structure one more component is a slip of the network; of a lesion it is one more lesion.
        found = self.facts.components
        single = [name for name, count in found.items() if count == 1 and (kind := find(name)) and kind.code]
        pairs = [name for name, count in found.items() if count == 2 and is_pair(name)]
        kept = [f"{noun} in every annotated scan: {', '.join(names)}" for noun, names in (
            ("one component", single), ("two components", pairs),
        ) if names]  # fmt: skip
        self._set(
            "inference.postprocess",
            {
                "largest_component": bool(kept),
                "classes": self._indices([*single, *pairs]),
                "pairs": self._indices(pairs),
            },
            f"{'; '.join(kept)}; smaller ones are dropped"
            if kept
            else "no structure is seen in three annotated scans or more, and one component in all of them",
        )

    def _indices(self, names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(self.facts.structures.index(name) + 1 for name in names))

    def _workers(self) -> None:
        if self.on_cpu:
            self._set("workers", 0, "the processor computes; batches take little of it")
        else:
            count = max(1, min(8, self.hardware.cpus - 1))
            self._set("workers", count, f"{self.hardware.cpus} CPUs prepare batches while the GPU computes")


def _told(topology: Topology, on_cpu: bool) -> str:
    scales = len(topology.strides)
    return f"{scales} scales, strides {_by_axis(topology)}; width for a {'processor' if on_cpu else 'GPU'}"


def _by_axis(topology: Topology) -> str:
    return " ".join("x".join(map(str, stride)) for stride in topology.strides)


def _dynunet(topology: Topology, dims: int, on_cpu: bool) -> dict[str, Any]:
    width = (CPU_WIDTH if on_cpu else GPU_WIDTH)[dims]
    return {"width": width, "depth": min(8, max(3, topology.isotropic_depth))}


def _residual_unet(topology: Topology, dims: int, on_cpu: bool) -> dict[str, Any]:
    levels = len(topology.strides)
    return {
        "width": (CPU_WIDTH if on_cpu else GPU_WIDTH)[dims],
        "blocks": tuple((CPU_BLOCKS if on_cpu else GPU_BLOCKS)[min(level, 3)] for level in range(levels)),
        "strides": topology.strides,
        "kernels": topology.kernels,
    }


# How the planned scales are said to each network that has such settings.
NET_SETTINGS: Mapping[str, Callable[[Topology, int, bool], dict[str, Any]]] = {
    "residual_unet": _residual_unet,
    "dynunet": _dynunet,
}


def _plain(value: Any) -> Any:
    """As JSON has it: lists for tuples, at any depth."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):  # strides and kernels are told in the reason
        parts = [f"{key} {part}" for key, part in value.items() if not isinstance(part, tuple)]
        return ", ".join(parts)
    return "automatic" if value is None else str(_plain(value))
