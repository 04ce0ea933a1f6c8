"""Which patches make up the batch of a step: a pure function of (seed, rank, step).

A batch holds `labelled_cases` patches of cases in which something is annotated, then `unlabelled_cases`
patches of cases in which something is not. A partly annotated case belongs to both streams, and so does one whose
label file leaves a good part of the scan open (scribbles, every eighth slice).

Each stream is an endless row of epochs, and each epoch is a permutation of the stream's cases that depends
on (seed, stream, epoch) alone. Step and rank say which positions of the row are meant, so nothing has to be
remembered: a run continues from its step number, any number of workers gives the same batches, and the ranks
of a step read disjoint positions and compose their batches alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labelwise.errors import ConfigError, DataError
from labelwise.loading.store import Corner
from labelwise.types import Array, Case, LabelSpace


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SamplingConfig:
    """What a batch of one rank consists of."""

    patch_size: tuple[int, int, int] = (96, 96, 96)  # voxels along x, y, z; z = 1 makes 2D slices
    labelled_cases: int = Field(default=2, ge=0)  # per batch; something is annotated
    unlabelled_cases: int = Field(default=2, ge=0)  # per batch; something is not annotated
    foreground: float = Field(
        default=0.5, ge=0, le=1
    )  # part of the labelled patches that is centred on a structure
    # where along z the patches of a scan lie: anywhere, or from the first to the last slice of the structures that are
    # annotated in it; a scan without one is seen in all its slices
    slices: Literal["all", "annotated"] = "all"

    def __post_init__(self) -> None:
        if min(self.patch_size) < 1:
            raise ConfigError("a patch needs at least one voxel along each axis", found=list(self.patch_size))
        if self.batch_size == 0:
            raise ConfigError("labelled_cases and unlabelled_cases cannot both be 0")

    @property
    def batch_size(self) -> int:
        """Patches per step and rank."""
        return self.labelled_cases + self.unlabelled_cases

    @property
    def dims(self) -> int:
        """2 if patches are slices, else 3."""
        return 2 if self.patch_size[2] == 1 else 3


class Draw(NamedTuple):
    """One patch of a batch, before it is known where in its scan it lies."""

    case: int  # index into the list of cases
    labelled: bool  # drawn from the stream of labelled cases
    randomness: np.random.Generator  # of this patch alone


class Sampler:
    """The two streams of a training set.

    `sparse` names the cases whose label file leaves a good part of the scan open: they belong to both streams.

    Errors
        DataError   a stream is asked for, but no case belongs to it
    """

    def __init__(
        self,
        cases: Sequence[Case],
        label_space: LabelSpace,
        config: SamplingConfig,
        seed: int,
        sparse: Collection[str] = (),
    ):
        structures = frozenset(label_space.structures)
        self.config = config
        self.seed = seed
        # By id: the order of the rows of a manifest decides nothing.
        numbered = sorted(enumerate(cases), key=lambda pair: pair[1].id)
        self.labelled = tuple(number for number, case in numbered if case.annotated)
        self.unlabelled = tuple(
            number for number, case in numbered if not structures <= case.annotated or case.id in sparse
        )
        if config.labelled_cases and not self.labelled:
            raise DataError(
                f"none of the {len(cases)} training cases is annotated",
                expected="at least one case with a label file and a filled column 'annotated'",
                do="annotate a case, or set sampling.labelled_cases = 0 for a method that needs no labels",
                code="nothing-annotated",
            )
        if config.unlabelled_cases and not self.unlabelled:
            raise DataError(
                f"all {len(cases)} training cases are completely annotated: nothing to learn without labels",
                do="choose the method `supervised` with sampling.unlabelled_cases = 0, add unlabelled scans, "
                "or hide labels by `labelwise simulate`",
            )

    def draws(self, step: int, rank: int = 0, world: int = 1) -> Iterator[Draw]:
        """The patches of one batch, labelled ones first."""
        streams = (self.labelled, self.config.labelled_cases), (self.unlabelled, self.config.unlabelled_cases)
        for stream, (members, count) in enumerate(streams):
            first = (step * world + rank) * count
            for position in range(first, first + count):
                epoch, place = divmod(position, len(members))
                order = _permutation(self.seed, stream, epoch, len(members))
                randomness = np.random.default_rng((self.seed, stream, position))
                yield Draw(members[order[place]], stream == 0, randomness)


def patch_corner(
    draw: Draw,
    shape: Corner,
    points: Mapping[int, Array],
    annotated: Array,
    config: SamplingConfig,
    slices: Mapping[int, tuple[int, int]] | None = None,
) -> Corner:
    """The voxel at which a patch begins. Negative along axes on which the patch is larger than the scan.

    With the probability `foreground` a labelled patch is centred, as far as the border of the scan allows, on
    a random voxel of a random structure that is annotated ((C,) bool) and present (has `points`). Otherwise, and
    always in the stream of unlabelled cases, every position inside the scan is equally likely; but a labelled
    patch of a scan that is annotated in parts only (has `points` of class 0) is centred on a labelled voxel.

    With `slices`, the first and the last one of each structure, no patch reaches beyond those of the annotated ones, as
    far as there are enough of them.
    """
    random = draw.randomness
    free = np.subtract(shape, config.patch_size)
    lowest, highest = np.zeros(3, np.int64), np.maximum(free, 0)
    if ends := [found for index, found in (slices or {}).items() if annotated[index]]:
        first, last = min(low for low, _ in ends), max(high for _, high in ends)
        between = sorted((first, last + 1 - config.patch_size[2]))
        lowest[2], highest[2] = np.clip(between, 0, highest[2])
    # Stored regions have numbers behind the classes.
    present = [index for index in sorted(points) if 0 < index < len(annotated) and annotated[index]]
    centre: Array | None = None
    if draw.labelled and present and random.random() < config.foreground:
        voxels = points[present[random.integers(len(present))]]
        centre = voxels[random.integers(len(voxels))]
    elif draw.labelled and 0 in points:
        centre = points[0][random.integers(len(points[0]))]
    if centre is not None:
        corner = np.clip(centre - np.floor_divide(config.patch_size, 2), lowest, highest)
    else:
        corner = random.integers(lowest, highest + 1)
    # A scan smaller than the patch lies in its middle, the odd voxel behind it.
    x, y, z = np.where(free < 0, -(-free // 2), corner)
    return int(x), int(y), int(z)


@lru_cache(maxsize=16)
def _permutation(seed: int, stream: int, epoch: int, length: int) -> tuple[int, ...]:
    order: Any = np.random.default_rng((seed, stream, epoch, length)).permutation(length)
    return tuple(order.tolist())
