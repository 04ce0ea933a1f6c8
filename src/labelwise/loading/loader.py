"""From a store to batches, ready for a method.

    step --sampling--> cases and corners --cache--> patches, extra targets --augment--> Batch

An item of the loader is the whole batch of one step, so a worker process (or none) makes it from nothing but
the number of the step. For the CPU the worker augments it too; for a GPU it is augmented after the transfer.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from labelwise.devices import keep_freed_memory
from labelwise.errors import ConfigError, DataError, LabelwiseError, ResourceError
from labelwise.loading.augment import AugmentConfig, Views, augment
from labelwise.loading.known import KnownLabels, Meaning, meaning_of, without_codes
from labelwise.loading.sampling import Draw, Sampler, SamplingConfig, patch_corner
from labelwise.loading.store import Corner, Store, StoredCase
from labelwise.types import Array, Batch, Case, LabelSpace, check_batch

# labels (B, *S) uint8, annotated (B, C) bool and spacing in mm (B, dims) -> targets (B, K, *S)
TargetFunction = Callable[[Array, Array, Array], Array]

CHECKED_BATCHES = 3  # at the start of a run: on a GPU a check has to wait for the batch
PREFETCHED_BATCHES = 2  # per worker
_AUGMENTATION = 2  # the streams of the sampler are 0 and 1


def batches(
    store: Store,
    cases: Sequence[Case],
    label_space: LabelSpace,
    sampling: SamplingConfig,
    augmentation: AugmentConfig,
    *,
    seed: int,
    total: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    extra_targets: Mapping[str, TargetFunction] | None = None,
    weak_view: bool = False,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches of the steps `start` to `total` - 1, for one rank of `world`.

    The batch of a step depends on (seed, rank, world, step) and the settings only: not on `start`, and not on
    the number of workers. On another kind of device the noise of the augmentation differs.

    Errors
        DataError       a case is not in the store or damaged; a stream of the sampling has no case; cases
                        differ in their number of modalities
        ConfigError     the augmentation does not fit the patch size
    """
    device = torch.device(device)
    dataset = StepDataset(
        store,
        cases,
        label_space,
        sampling,
        augmentation,
        seed=seed,
        rank=rank,
        world=world,
        extra_targets=extra_targets,
        weak_view=weak_view,
        augments=device.type == "cpu",
    )
    return _iterate(dataset, range(start, total), workers, device)


def _iterate(dataset: StepDataset, steps: range, workers: int, device: torch.device) -> Iterator[Batch]:
    for step, item in zip(steps, _answers(dataset, steps, workers, device), strict=True):
        if isinstance(item, LabelwiseError):
            raise item
        reading = item if dataset.augments else dataset.augment(_travelled(item, device), step)
        on_host = tuple(tuple(row) for row in reading.annotated.tolist())
        images, labels, targets, weak, valid, _ = reading.views
        annotated = reading.annotated.to(device, non_blocking=True)
        if reading.meaning is not None:
            labels, annotated = reading.meaning.decode(labels)
        sparse = tuple(case in dataset.sparse for case in reading.case_ids)
        batch = Batch(
            images, labels.long(), annotated, reading.case_ids, targets, on_host, weak, sparse, valid
        )
        if step < steps.start + CHECKED_BATCHES:
            check_batch(batch)
        yield batch


def _loader(
    dataset: StepDataset, steps: range, workers: int, device: torch.device
) -> DataLoader[Reading | LabelwiseError]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        collate_fn=_unchanged,  # a batch is whole already, and torch would turn its tuples into lists
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        pin_memory=device.type == "cuda",
        # Spawned, not forked: threads do not survive a fork.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_begin_worker,
        generator=Generator(),  # so that torch's global one is left alone
    )


def _answers(
    dataset: StepDataset, steps: range, workers: int, device: torch.device
) -> Iterator[Reading | LabelwiseError]:
    """What the workers send; a worker that ended, or could not send or be started, is told as what it is."""
    try:
        with warnings.catch_warnings():
            # The user says how many; torch advises no more than CPUs, but workers also wait for disks.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            items = iter(_loader(dataset, steps, workers, device))
        yield from items
    except (RuntimeError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "shared memory" in str(error):
            raise _too_little_shared(error) from error
        if "DataLoader worker" not in str(error):
            raise
        raise ResourceError(
            "a process that loads batches has ended, most often because memory ran out",
            found=str(error).partition("\n")[0],
            do="lower the setting workers (0 loads in the training process); nothing is lost: repeat the command",
            code="out-of-memory",
        ) from error


def _begin_worker(_number: int) -> None:
    keep_freed_memory()  # a spawned process has not what `train` set for its own


def _unchanged(item: Any) -> Any:
    return item


class Reading(NamedTuple):
    """The patches of one step: what travels between processes and to the GPU."""

    views: Views
    annotated: Tensor  # (B, C) bool; stays on the CPU
    spacing_mm: Tensor  # (B, 3); stays on the CPU
    case_ids: tuple[str, ...]
    taken: Tensor  # (B, M) bool: the channels that are not missing; stays on the CPU
    meaning: Meaning | None = None  # of the numbers in `views.labels`, if some are codes; stays on the CPU


class StepDataset(Dataset[Reading | LabelwiseError]):
    """Number of a step -> its patches. Picklable, so that worker processes can have it."""

    def __init__(
        self,
        store: Store,
        cases: Sequence[Case],
        label_space: LabelSpace,
        sampling: SamplingConfig,
        augmentation: AugmentConfig,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        extra_targets: Mapping[str, TargetFunction] | None = None,
        weak_view: bool = False,
        augments: bool = True,
    ):
        augmentation.check(sampling.patch_size)
        self.store = store
        self.cases = tuple(cases)
        self.known = [KnownLabels(case, label_space, store) for case in self.cases]
        in_parts = {
            case.id for case, known in zip(self.cases, self.known, strict=True) if case.parts or known.regions
        }
        self.sparse = frozenset(
            case.id
            for case in self.cases
            if case.annotated and (case.id in in_parts or store.case(case.id).is_sparse)
        )
        self.sampler = Sampler(self.cases, label_space, sampling, seed, self.sparse)
        self.sampling = sampling
        self.augmentation = augmentation
        self.seed, self.rank, self.world = seed, rank, world
        self.extra_targets = dict(extra_targets or {})
        self.weak_view = weak_view
        self.other_side = augmentation.swapped_classes(label_space)
        if self.other_side is not None and self.extra_targets:
            raise ConfigError(
                "labels of left and right cannot be swapped for a method whose targets are made before",
                found=f"augment.sides = 'swap' with the target {', '.join(self.extra_targets)}",
                do="take 0 out of augment.mirror_axes, or choose another method",
            )
        self.augments = augments
        rows = [known.annotated for known in self.known]
        self.annotated = np.stack(rows) if rows else np.zeros((0, label_space.num_classes), bool)
        self.points = {  # of cases that are annotated in parts, or for regions; of the others as they are stored
            number: self.known[number].points(store.case(case.id))
            for number, case in enumerate(self.cases)
            if case.id in in_parts
        }

    def __getitem__(self, step: int) -> Reading | LabelwiseError:
        """The patches of a step. Errors for the user are returned: torch would wrap them in its traceback."""
        try:
            reading = self.read(step)
            if self.augments:
                reading = self.augment(reading, step)
        except LabelwiseError as error:
            return error
        except MemoryError as error:
            return ResourceError(
                f"memory ran out while a batch was loaded: {error}",
                do="lower sampling.patch_size, sampling.labelled_cases and sampling.unlabelled_cases, or workers",
                code="out-of-memory",
            )
        return _shared(reading) if get_worker_info() else reading

    def read(self, step: int) -> Reading:
        """The patches of a step as they lie in the store, with the margin that the augmentation asks for."""
        draws = list(self.sampler.draws(step, self.rank, self.world))
        stored = [self.store.case(self.cases[draw.case].id) for draw in draws]
        size = self.augmentation.read_size(self.sampling.patch_size)
        images = np.empty((len(draws), stored[0].modalities, *size), np.float32)
        labels = np.empty((len(draws), *size), np.uint8)
        valid = np.zeros((len(draws), *size), np.bool_)
        for row, (draw, case) in enumerate(zip(draws, stored, strict=True)):
            _check_modalities(case, images.shape[1])
            corner = self._corner(draw, case, size)
            case.read_image(corner, images[row])
            self.known[draw.case].read(case, corner, labels[row])
            valid[row][_of_the_scan(corner, case.shape, size)] = True
        if self.sampling.dims == 2:
            images, labels, valid = images[..., 0], labels[..., 0], valid[..., 0]
        annotated = self.annotated[[draw.case for draw in draws]]
        spacing_mm = np.array([case.spacing_mm for case in stored])
        plain = without_codes(labels, annotated.shape[1])
        targets = {
            name: function(plain, annotated, spacing_mm[:, : self.sampling.dims])
            for name, function in self.extra_targets.items()
        }
        return Reading(
            Views(
                torch.from_numpy(images),
                torch.from_numpy(labels),
                {name: torch.as_tensor(values, dtype=torch.float32) for name, values in targets.items()},
                valid=torch.from_numpy(valid),
            ),
            torch.from_numpy(annotated),
            torch.from_numpy(spacing_mm).float(),
            tuple(case.case_id for case in stored),
            torch.tensor([[c not in case.missing for c in range(case.modalities)] for case in stored]),
            meaning_of([self.known[draw.case] for draw in draws]),
        )

    def augment(self, reading: Reading, step: int) -> Reading:
        """The patches of a step, changed at random and without the margin; on the device they lie on."""
        key = np.random.SeedSequence((self.seed, _AUGMENTATION, self.rank, step)).generate_state(2)
        generator = Generator().manual_seed(int(key[0]) << 31 | int(key[1]) >> 1)
        views = augment(
            reading.views,
            self.augmentation,
            generator,
            patch_size=self.sampling.patch_size,
            spacing_mm=reading.spacing_mm,
            weak_view=self.weak_view,
            other_side=self.other_side,
            taken=reading.taken,
        )
        annotated, meaning = reading.annotated, reading.meaning
        if views.swapped:  # the left kidney is annotated in what was annotated for the right one
            rows, other = list(views.swapped), list(self.other_side or ())
            annotated = annotated.clone()
            annotated[rows] = annotated[rows][:, other]
            meaning = meaning and meaning.swap(rows, other)
        return reading._replace(views=views, annotated=annotated, meaning=meaning)

    def _corner(self, draw: Draw, case: StoredCase, size: Corner) -> Corner:
        """Where reading begins: the corner of the patch, and the margin before it."""
        patch_size = self.sampling.patch_size
        annotated = self.annotated[draw.case]
        slices = self.known[draw.case].slices(case) if self.sampling.slices == "annotated" else None
        points = self.points.get(draw.case, case.points)
        corner = patch_corner(draw, case.shape, points, annotated, self.sampling, slices)
        x, y, z = (c - (n - m) // 2 for c, n, m in zip(corner, size, patch_size, strict=True))
        return x, y, z


def _of_the_scan(corner: Corner, shape: Corner, size: Corner) -> tuple[slice, ...]:
    """The part of a patch of `size` at `corner` that lies in a scan of `shape`."""
    return tuple(
        slice(min(max(-low, 0), length), max(min(end - low, length), 0))
        for low, end, length in zip(corner, shape, size, strict=True)
    )


def _shared(reading: Reading) -> Reading | ResourceError:
    """What a worker sends, in memory that it shares with the training process.

    Shared here and not while it is sent: there torch prints the error and sends nothing, and the training would wait
    for ever. Containers have a small /dev/shm by default.
    """
    views = reading.views
    others = (reading.annotated, reading.spacing_mm, reading.taken, *(reading.meaning or ()))
    parts = (*views, *views.targets.values(), *others)
    try:
        for tensor in (part for part in parts if isinstance(part, Tensor)):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        return _too_little_shared(error)
    return reading


def _too_little_shared(error: Exception) -> ResourceError:
    return ResourceError(
        "the memory that processes share is too small for the batches of the workers",
        found=str(error).partition("\n")[0],
        do="make it larger (docker: --shm-size=8g), or set workers = 0, which needs none",
        code="out-of-memory",
    )


def _check_modalities(case: StoredCase, expected: int) -> None:
    if case.modalities != expected:
        raise DataError(
            "the cases of a training set must have the same modalities",
            case=case.case_id,
            found=f"{case.modalities} image(s)",
            expected=f"{expected}, as in the other cases",
        )


def _travelled(reading: Reading, device: torch.device) -> Reading:
    images, labels, targets, _, valid, _ = reading.views
    views = Views(
        images.to(device, non_blocking=True),
        labels.to(device, non_blocking=True),
        {name: values.to(device, non_blocking=True) for name, values in targets.items()},
        valid=None if valid is None else valid.to(device, non_blocking=True),
    )
    return reading._replace(views=views)
