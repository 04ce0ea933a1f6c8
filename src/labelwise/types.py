"""The words that every room of the house speaks.

Legend for shapes, used by the whole package: B cases in a batch, C classes (0 is background), M modalities
(channels of an image), S spatial axes ((H, W) or (X, Y, Z)), N points, F features. Lengths are in mm,
intensities in HU or normalised, `step` counts optimiser steps.

What a label voxel says (checked where batches are made, by `check_batch`):

    c > 0     this voxel is structure c; occurs only where structure c is annotated in that case
    0         none of the case's annotated structures; background only if *all* structures are annotated
    IGNORE    nothing is known: unlabelled case, scribble gap, padding (which `Batch.valid` tells apart). But where
              `Batch.annotated` holds the background and not all structures, it is one of those that it does not hold:
              the voxel lies in a region that is annotated as one
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from labelwise.errors import ConfigError, DataError, did_you_mean

# Whoever checks or scores files speaks these words too, and waits for no torch.
if TYPE_CHECKING:
    from torch import Tensor

IGNORE = 255
# A case is annotated in parts only (every eighth slice, scribbles) if IGNORE is so much of it; less is a border that
# somebody left out.
SPARSE_FROM = 0.1
BACKGROUND = "background"
SPLITS = ("train", "validation", "test", "")
# What is known about a class of a case: drawn by the makers of the data set, said by a model, drawn anew by a person
# who was shown that, or looked at and found right. A class without a state is not known.
ANNOTATED: Final = "annotated"
PREDICTED: Final = "predicted"
CORRECTED: Final = "corrected"
VERIFIED: Final = "verified"
STATES = (ANNOTATED, PREDICTED, CORRECTED, VERIFIED)

Array = NDArray[Any]
# First and last voxel along an axis, counted from 0 in RAS+ order; None: the whole axis.
Range = tuple[int, int] | None
Box = tuple[Range, Range, Range]


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a project, in order; class 0 is the background, and the only one where nothing is annotated.

    Classes do not overlap. What overlaps is a region: a name for several classes together, which may lie in other
    regions. A case can be annotated for a region without telling its classes apart.

    Example
        >>> LabelSpace(("background", "liver", "spleen")).annotated(["spleen"])
        tensor([False, False,  True])
        >>> space = LabelSpace(("background", "tumour", "rest"), (("liver", ("rest", "tumour")),))
        >>> sorted(space.classes_of("liver"))
        ['rest', 'tumour']
    """

    names: tuple[str, ...]
    regions: tuple[
        tuple[str, tuple[str, ...]], ...
    ] = ()  # name, and the classes and regions that it consists of

    def __post_init__(self) -> None:
        names = tuple(self.names)
        object.__setattr__(self, "names", names)
        if names[:1] != (BACKGROUND,):
            raise ConfigError("a label space starts with 'background'", found=list(names))
        if len(set(names)) != len(names):
            raise ConfigError("a class name stands twice in the label space", found=list(names))
        if len(names) + len(self.regions) > IGNORE:
            raise ConfigError(
                f"a label space has at most {IGNORE} classes and regions",
                found=len(names) + len(self.regions),
            )
        for name in (*names, *self.region_names):
            if not name or name != name.strip() or any(sign in name for sign in ";,=\n\t"):
                raise ConfigError(
                    f"'{name}' cannot be a class name", expected="a word without ; , = or line breaks"
                )
        self._check_regions()

    def _check_regions(self) -> None:
        known = {*self.structures, *self.region_names}
        for name, members in self.regions:
            if name in self.names or self.region_names.count(name) > 1:
                raise ConfigError(f"the region '{name}' has the name of a class or of another region")
            if not members:
                raise ConfigError(f"the region '{name}' has no class", expected=", ".join(self.structures))
            for member in members:
                if member not in known:
                    raise ConfigError(
                        f"the region '{name}' holds the unknown class '{member}'{did_you_mean(member, known)}",
                        expected=", ".join(sorted(known - {name})),
                        code="unknown-name",
                    )
            self._refuse_circle((name,))

    def _refuse_circle(self, path: tuple[str, ...]) -> None:
        for member in dict(self.regions).get(path[-1], ()):
            if member in path:
                circle = " > ".join((*path[path.index(member) :], member))
                raise ConfigError(
                    f"regions go round in a circle: {circle}", do="take one of them out of another"
                )
            self._refuse_circle((*path, member))

    @property
    def structures(self) -> tuple[str, ...]:
        """All classes but the background."""
        return self.names[1:]

    @property
    def region_names(self) -> tuple[str, ...]:
        """The names of the regions, in order."""
        return tuple(name for name, _ in self.regions)

    @property
    def num_classes(self) -> int:
        """Number of classes C, background included."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Class index of a name; an unknown name is refused with the nearest known one."""
        if name not in self.names:
            raise ConfigError(
                f"unknown class '{name}'{did_you_mean(name, self.names)}",
                expected=", ".join(self.names),
                code="unknown-name",
            )
        return self.names.index(name)

    def classes_of(self, name: str) -> frozenset[str]:
        """The classes of a region; of a class, itself."""
        members = dict(self.regions).get(name)
        if members is None:
            return frozenset({self.names[self.index(name)]})
        return frozenset().union(*map(self.classes_of, members))

    def covers(self, names: Iterable[str], structure: str) -> bool:
        """Whether classes and regions make up a class or region: it is one of them, or they hold all of its classes."""
        classes = self.classes_of(structure)
        parts = map(self.classes_of, names)
        return classes == frozenset[str]().union(*(part for part in parts if part <= classes))

    def told_apart(self, structures: Iterable[str]) -> frozenset[str]:
        """Those of the names of annotated classes and regions that are classes."""
        return frozenset(structures).difference(self.region_names)

    def annotated_row(self, structures: Iterable[str]) -> NDArray[np.bool_]:
        """(C,) bool: which classes are annotated; the background only if every structure is.

        A region says nothing of its classes one by one.
        """
        row = np.zeros(self.num_classes, dtype=np.bool_)
        row[[self.index(structure) for structure in self.told_apart(structures)]] = True
        row[0] = bool(self.structures) and row[1:].all()
        return row

    def annotated(self, structures: Iterable[str]) -> Tensor:
        """The same row as a tensor, as a `Batch` holds one for each case."""
        return cast("Tensor", importlib.import_module("torch").from_numpy(self.annotated_row(structures)))


@dataclass(frozen=True)
class Proposal:
    """What a model says of some classes of a case, and no person has judged yet."""

    file: Path  # label map on the grid of the scan; its header names its values
    model: str  # id of the model
    structures: frozenset[str]


@dataclass(frozen=True)
class Part:
    """The part of a scan in which some classes are annotated; elsewhere nothing is known of them."""

    structures: frozenset[str]
    boxes: tuple[
        Box, ...
    ] = ()  # their union: slices, boxes; () says: only the voxels that are drawn (scribbles)


@dataclass(frozen=True)
class Case:
    """One row of the manifest: where a scan lies and what is annotated in it. Holds no pixels."""

    id: str
    images: tuple[Path, ...]  # one file per modality that was taken
    labels: Path | None = None
    annotated: frozenset[str] = (
        frozenset()
    )  # classes, and regions as one, delineated in this case, present or not
    group: str = ""  # patient or centre: splits never cut through it
    data_set: str = ""  # data set, key of Manifest.data_sets
    split: str = ""  # one of SPLITS; "" takes no part
    corrected: frozenset[str] = frozenset()  # of the annotated structures: those drawn anew by a reviewer
    verified: frozenset[str] = frozenset()  # of the annotated structures: those that a reviewer found right
    proposals: tuple[Proposal, ...] = ()  # of structures that are not annotated: a person's word counts more
    parts: tuple[Part, ...] = ()  # of the annotated structures: those annotated in a part of the scan only
    missing: tuple[int, ...] = ()  # modalities that were not taken, counted from 0: `images` leaves them out

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or self.id)
        for name in ("corrected", "verified"):  # who hides a structure hides its state
            object.__setattr__(self, name, getattr(self, name) & self.annotated)
        left = [replace(each, structures=each.structures - self.annotated) for each in self.proposals]
        object.__setattr__(self, "proposals", tuple(each for each in left if each.structures))
        known = [replace(each, structures=each.structures & self.annotated) for each in self.parts]
        object.__setattr__(self, "parts", tuple(each for each in known if each.structures))
        if not self.images:
            raise DataError("a case needs at least one image", case=self.id)
        if list(self.missing) != sorted(set(self.missing) & set(range(self.channels))):
            raise DataError(
                "these are no missing modalities",
                case=self.id,
                found=list(self.missing),
                expected=f"numbers from 0 to {self.channels - 1}, in order",
            )
        if self.annotated and self.labels is None:
            raise DataError(
                "classes are said to be annotated, but there is no label file",
                case=self.id,
                found=f"annotated = {', '.join(sorted(self.annotated))}",
                do="fill the column 'labels', or leave 'annotated' empty",
            )
        if self.split not in SPLITS:
            raise DataError(
                f"unknown split '{self.split}'{did_you_mean(self.split, SPLITS)}",
                case=self.id,
                expected="train, validation, test or empty",
                code="unknown-name",
            )
        if both := self.corrected & self.verified:
            raise _contradiction(self.id, both, f"{CORRECTED} and {VERIFIED}")
        for several, found in (
            (self.proposals, "predicted by two models"),
            (self.parts, "annotated in two parts"),
        ):
            seen: set[str] = set()
            for each in several:
                if both := each.structures & seen:
                    raise _contradiction(self.id, both, found)
                seen |= each.structures

    @property
    def channels(self) -> int:
        """Number of modalities, taken or missing."""
        return len(self.images) + len(self.missing)

    @property
    def states(self) -> dict[str, str]:
        """Structure -> one of STATES, of all structures about which something is known."""
        predicted = dict.fromkeys(
            (structure for each in self.proposals for structure in each.structures), PREDICTED
        )
        drawn = dict.fromkeys(self.annotated, ANNOTATED)
        judged = dict.fromkeys(self.corrected, CORRECTED) | dict.fromkeys(self.verified, VERIFIED)
        return predicted | drawn | judged


def _contradiction(case: str, structures: Iterable[str], states: str) -> DataError:
    return DataError(
        f"a class has two states: {', '.join(sorted(structures))}",
        case=case,
        found=states,
        do="keep one of them",
    )


@dataclass(frozen=True)
class Volume:
    """Pixels with their place in the world.

    `data` is (M, X, Y, Z) for images and (X, Y, Z) for label maps, axes in RAS+ order
    (index grows to the patient's right, front, top). `affine` is the 4x4 matrix from voxel
    index to mm in the same frame.
    """

    data: Array
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z."""
        x, y, z = self.data.shape[-3:]
        return int(x), int(y), int(z)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along X, Y, Z in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        return f"Volume(shape={self.data.shape}, spacing={spacing} mm, dtype={self.data.dtype})"


_NOTHING: Mapping[str, Tensor] = {}


class Batch(NamedTuple):
    """What a method sees. A NamedTuple because Lightning Fabric moves and casts those without copying."""

    images: Tensor  # (B, M, *S) float, normalised
    labels: Tensor  # (B, *S) int64: class index, 0, or IGNORE
    # (B, C) bool; (B, C, *S) where a case of the batch annotates some classes in a part of its scan only
    annotated: Tensor
    case_ids: tuple[str, ...] = ()
    extra: Mapping[str, Tensor] = _NOTHING  # targets a method asked the loader for
    # What each case annotates anywhere, as plain values: a step can choose rows by it without waiting for the GPU.
    annotated_on_host: tuple[tuple[bool, ...], ...] = ()
    # (B, M, *S): the same patches before their intensities were changed, for methods that ask for a weak view.
    weak_images: Tensor | None = None
    # Cases whose label file leaves voxels open (IGNORE) in a good part of the scan, also on the host; () says none.
    sparse: tuple[bool, ...] = ()
    # (B, *S) bool: voxels of the scan. The others are padding: zeros that the scanner never saw. None: no padding.
    valid: Tensor | None = None

    @property
    def inside(self) -> Tensor:
        """(B, *S) bool: `valid`, also where there is no padding. Only there may a term ask for an answer."""
        if self.valid is not None:
            return self.valid
        every: Tensor = self.labels == self.labels
        return every

    @property
    def complete(self) -> Tensor:
        """(B,) bool: cases in which every structure is annotated, all over the scan."""
        every_structure = self.annotated[:, 1:].flatten(1).all(dim=1)
        if not any(self.sparse):
            return every_structure
        sparse = every_structure.new_tensor(self.sparse, device="cpu")
        sparse = sparse.pin_memory() if every_structure.is_cuda else sparse
        return every_structure & ~sparse.to(every_structure.device, non_blocking=True)

    @property
    def unlabelled(self) -> Tensor:
        """(B,) bool: cases in which some structure, or every one, is not annotated, or only in parts of the scan."""
        return ~self.complete

    @property
    def annotated_rows(self) -> Sequence[Sequence[bool]]:
        """`annotated` as plain values: what a step may choose cases and structures by."""
        return self.annotated_on_host or self.annotated.tolist()

    @property
    def unlabelled_rows(self) -> list[int]:
        """Row numbers of the unlabelled cases, known without a look at the device."""
        sparse = self.sparse or (False,) * len(self.annotated_rows)
        rows = enumerate(zip(self.annotated_rows, sparse, strict=True))
        return [number for number, (row, in_parts) in rows if in_parts or not all(row[1:])]


class Progress(NamedTuple):
    """Where the training stands: `step` of `total`, counted from 0. A NamedTuple for the reason of Batch.

    `part` counts the optimiser steps of one batch, for methods that take several.
    """

    step: int
    total: int
    part: int = 0

    @property
    def fraction(self) -> float:
        """Part of the training that is over, in [0, 1)."""
        return self.step / max(self.total, 1)

    def ramp(self, over: float, *, after: float = 0.0) -> float:
        """exp(-5 (1 - t)^2), where t rises from 0 to 1: the weight of a term that shall come slowly.

        Arguments
            over    part of the training in which it rises; 0: it is 1 from the first step on
            after   part of the training before which it is 0

        Source
            Laine & Aila, ICLR 2017; G(t; T) of the LA benchmark.

        Example
            >>> [round(Progress(step, 40).ramp(1.0), 4) for step in (0, 20, 40, 100)]
            [0.0067, 0.2865, 1.0, 1.0]
        """
        since, length = self.step - after * self.total, over * self.total
        if since < 0:
            return 0.0
        return math.exp(-5 * (1 - min(since, length) / length) ** 2) if length else 1.0


def check_batch(batch: Batch) -> None:
    """Raise a DataError if a batch says more than its cases know (see the top of this module)."""
    num_classes = batch.annotated.shape[1]
    for row, case_labels in enumerate(batch.labels):
        case = batch.case_ids[row] if batch.case_ids else str(row)
        annotated = case_labels.new_tensor(batch.annotated_rows[row]).bool()
        if bool(annotated[0]) != bool(annotated[1:].all()):
            raise DataError("annotated[0] must be True exactly if all structures are annotated", case=case)
        counts = case_labels.flatten().bincount(minlength=IGNORE + 1)
        if len(counts) > IGNORE + 1 or bool(counts[num_classes:IGNORE].any()):
            raise DataError(
                "a label is outside the label space", case=case, expected=f"0..{num_classes - 1} or {IGNORE}"
            )
        if bool(counts[1:num_classes][~annotated[1:]].any()):
            raise DataError("a label names a structure that is not annotated in this case", case=case)
        if batch.valid is not None and bool((case_labels[~batch.valid[row]] != IGNORE).any()):
            raise DataError(f"padding must be {IGNORE}: nothing is known beyond the scan", case=case)
        if not bool(annotated.any()) and bool(counts[:IGNORE].any()):
            raise DataError(f"an unlabelled case must be {IGNORE} (nothing known) everywhere", case=case)
