"""Batches: the same for any number of workers and after any restart; they know no more than their cases."""

from __future__ import annotations

import errno
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from labelwise.cohort.manifest import Manifest
from labelwise.errors import ConfigError, DataError, ResourceError
from labelwise.importers import la2018
from labelwise.loading import loader
from labelwise.loading.augment import AugmentConfig
from labelwise.loading.loader import StepDataset, batches
from labelwise.loading.prepare import prepare
from labelwise.loading.sampling import SamplingConfig
from labelwise.loading.store import Store, write_case
from labelwise.types import IGNORE, Array, Batch, LabelSpace, Volume, check_batch
from stored_cohort import ANNOTATED, SPACE, label_map, make_store, scan

SAMPLING = SamplingConfig(patch_size=(8, 8, 8))
PLAIN = AugmentConfig(preset="none")
NUMBERS = {name: number for number, name in enumerate(ANNOTATED)}


def structure_masks(labels: Array, annotated: Array, spacing_mm: Array) -> Array:
    """An extra target: one mask per structure."""
    assert annotated.shape == (len(labels), SPACE.num_classes)
    assert spacing_mm.shape == (len(labels), labels.ndim - 1)
    assert (spacing_mm > 0).all()
    return np.stack([labels == structure for structure in range(1, SPACE.num_classes)], axis=1).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Store]:
    manifest, prepared = make_store(tmp_path_factory.mktemp("cohort"))
    return manifest, prepared.store


def load(cohort: tuple[Manifest, Store], **changes: Any) -> Iterator[Batch]:
    manifest, store = cohort
    settings = {"cases": manifest.cases, "sampling": SAMPLING, "augmentation": PLAIN, "seed": 0, "total": 6}
    return batches(store, label_space=manifest.label_space, **{**settings, **changes})


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.case_ids, a.annotated_on_host) == (b.case_ids, b.annotated_on_host)
        for left, right in zip((*a[:3], *a.extra.values()), (*b[:3], *b.extra.values()), strict=True):
            assert torch.equal(left, right)


def test_worker_processes_give_the_same_batches(cohort):
    augmented = {"augmentation": AugmentConfig(preset="default"), "extra_targets": {"masks": structure_masks}}
    none, two = (list(load(cohort, workers=workers, **augmented)) for workers in (0, 2))
    assert_equal(none, two)
    assert len({batch.images.numpy().tobytes() for batch in none}) == 6


def test_processes_that_load_batches_keep_freed_memory_as_the_training_does(cohort, monkeypatch):
    manifest, store = cohort
    calls = []
    monkeypatch.setattr(loader, "keep_freed_memory", lambda: calls.append("kept"))
    dataset = StepDataset(store, manifest.cases, SPACE, SAMPLING, PLAIN, seed=0)
    loader._loader(dataset, range(2), 1, torch.device("cpu")).worker_init_fn(0)
    assert calls == ["kept"]


def test_augmenting_after_the_transfer_gives_the_same_as_in_the_worker(cohort):
    manifest, store = cohort
    config = AugmentConfig(preset="default")
    worker, bare = (
        StepDataset(store, manifest.cases, SPACE, SAMPLING, config, seed=0, augments=augments)
        for augments in (True, False)
    )
    for step in range(4):
        early, late = worker[step], bare.augment(bare[step], step)
        assert torch.equal(early.views.images, late.views.images)
        assert torch.equal(early.views.labels, late.views.labels)


def test_a_run_that_goes_on_from_a_step_sees_what_it_would_have_seen(cohort):
    augmented = {"augmentation": AugmentConfig(preset="default")}
    assert_equal(list(load(cohort, **augmented))[4:], list(load(cohort, start=4, **augmented)))
    assert list(load(cohort, start=6)) == []


def test_two_ranks_together_see_what_one_rank_would_see(cohort):
    halves = SamplingConfig(patch_size=(8, 8, 8), labelled_cases=1, unlabelled_cases=1)
    whole = list(load(cohort))
    ranks = [list(load(cohort, sampling=halves, rank=rank, world=2)) for rank in range(2)]
    for alone, first, second in zip(whole, *ranks, strict=True):
        assert alone.case_ids == (
            first.case_ids[0], second.case_ids[0], first.case_ids[1], second.case_ids[1],
        )  # fmt: skip
        together = torch.stack([first.images[0], second.images[0], first.images[1], second.images[1]])
        assert torch.equal(alone.images, together)


@pytest.mark.parametrize("preset", ["none", "flip", "default"])
@pytest.mark.parametrize("patch_size", [(8, 8, 8), (8, 8, 1), (32, 8, 24), (32, 32, 1)])
def test_convention_batches_keep_the_promises_of_their_type(cohort, preset, patch_size):
    """Also in 2D and for patches larger than the scans."""
    sampling = SamplingConfig(patch_size=patch_size)
    for batch in load(cohort, sampling=sampling, augmentation=AugmentConfig(preset=preset), total=8):
        check_batch(batch)
        size = patch_size[: sampling.dims]
        assert (batch.images.shape, batch.images.dtype) == ((4, 1, *size), torch.float32)
        assert (batch.labels.shape, batch.labels.dtype) == ((4, *size), torch.int64)
        assert batch.images.isfinite().all()
        assert batch.annotated.tolist() == [list(row) for row in batch.annotated_on_host]
        for name, row in zip(batch.case_ids, batch.annotated, strict=True):
            assert torch.equal(row, SPACE.annotated(ANNOTATED[name]))


def test_a_patch_shows_the_scan_and_what_its_case_knows(cohort):
    """Every voxel of the scans is recognised by its 8 neighbours along z: image and labels lie on top."""
    for batch in load(cohort, total=20):
        for name, image, labels in zip(batch.case_ids, batch.images[:, 0], batch.labels, strict=True):
            where = find(scan(NUMBERS[name]), image.numpy())
            truth = label_map(NUMBERS[name])[where]
            known = [SPACE.index(structure) for structure in ANNOTATED[name]]
            expected = np.where(np.isin(truth, known), truth, 0) if known else np.full_like(truth, IGNORE)
            np.testing.assert_array_equal(labels.numpy(), expected)


def test_patches_of_a_training_can_be_kept_to_annotated_slices(cohort):
    _, store = cohort
    sampling = SamplingConfig(patch_size=(8, 8, 1), slices="annotated", foreground=0.0)
    seen = 0
    for batch in load(cohort, sampling=sampling, total=20):
        for image, name, known in zip(batch.images, batch.case_ids, batch.annotated[:, 1:], strict=True):
            ends = [
                store.case(name).slices[structure + 1] for structure in known.nonzero().flatten().tolist()
            ]
            if ends:
                _, _, z = find(store.case(name).image()[0], image[0].unsqueeze(-1).numpy())
                assert min(first for first, _ in ends) <= z.start <= max(last for _, last in ends)
                seen += 1
    assert seen > 20


def find(volume: np.ndarray, patch: np.ndarray) -> tuple[slice, ...]:
    windows = np.lib.stride_tricks.sliding_window_view(volume[..., :], patch.shape)
    (corner,) = np.argwhere((windows == patch).all(axis=(3, 4, 5)))
    return tuple(slice(begin, begin + size) for begin, size in zip(corner, patch.shape, strict=True))


def test_a_scan_smaller_than_the_patch_is_padded_on_both_sides(cohort):
    large = SamplingConfig(patch_size=(32, 32, 32))
    for batch in load(cohort, sampling=large):
        for name, image, labels in zip(batch.case_ids, batch.images[:, 0], batch.labels, strict=True):
            shape = scan(NUMBERS[name]).shape
            inside = tuple(slice((32 - n) // 2, (32 - n) // 2 + n) for n in shape)
            np.testing.assert_array_equal(image[inside].numpy(), scan(NUMBERS[name]))
            beyond = torch.ones_like(labels, dtype=torch.bool)
            beyond[inside] = False
            assert (labels[beyond] == IGNORE).all()
            assert (image[beyond] == 0).all()


def test_a_margin_does_not_move_the_patches(cohort):
    still = AugmentConfig(preset="none", margin=0.25)
    assert_equal(list(load(cohort)), list(load(cohort, augmentation=still)))


@pytest.mark.real_data
def test_the_la_scans_arrive_as_their_files_say(real_data, tmp_path):
    manifest = la2018.scan(real_data / "la2018")
    few = manifest.replace_cases(
        replace(case, annotated=case.annotated if number < 2 else frozenset())
        for number, case in enumerate(manifest.cases[:4])
    )
    prepared = prepare(few, tmp_path / "store", workers=1)
    prepared.require_all()
    sampling = SamplingConfig(patch_size=(112, 112, 80), foreground=0.0)
    (batch,) = load((few, prepared.store), sampling=sampling, total=1)
    assert batch.unlabelled.tolist() == [False, False, True, True]
    for name, image, labels in zip(batch.case_ids, batch.images[:, 0], batch.labels, strict=True):
        with h5py.File(next((real_data / "la2018").rglob(f"{name}/mri_norm2.h5"))) as file:
            whole, truth = file["image"][:], file["label"][:]
        corner = image[:4, :4, :4].half().numpy()
        where = find(whole[:-108, :-108, :-76].astype(np.float16), corner)
        box = tuple(slice(s.start, s.start + size) for s, size in zip(where, (112, 112, 80), strict=True))
        np.testing.assert_allclose(image.numpy(), whole[box], rtol=2**-10)
        assert (labels.numpy() == (truth[box] if name in few_labelled(few) else IGNORE)).all()


def few_labelled(manifest: Manifest) -> set[str]:
    return {case.id for case in manifest.cases if case.annotated}


@pytest.mark.parametrize("every", [2, 8])
def test_cases_annotated_in_every_nth_slice_are_drawn_as_incomplete_ones_too(cohort, tmp_path, every):
    manifest, original = cohort
    shutil.copytree(original.folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    full = next(case for case in manifest.cases if set(SPACE.structures) <= case.annotated)
    stored = store.case(full.id)
    labels = stored.labels(np.arange(256, dtype=np.uint8))
    labels[:, :, np.arange(labels.shape[2]) % every > 0] = IGNORE
    image = Volume(stored.image(), np.eye(4))
    write_case(stored.folder, image, Volume(labels, np.eye(4)), stored.undo)
    found = list(load((manifest, Store(store.folder)), cases=[full]))
    assert all(batch.sparse == (True,) * 4 for batch in found)
    assert all(batch.unlabelled.all() and batch.unlabelled_rows == [0, 1, 2, 3] for batch in found)
    assert all((batch.labels[:2] != IGNORE).flatten(1).any(dim=1).all() for batch in found)


@pytest.mark.parametrize("patch_size", [(8, 8, 8), (8, 8, 1)])
def test_extra_targets_follow_the_labels(cohort, patch_size):
    settings = {"augmentation": AugmentConfig(preset="flip"), "extra_targets": {"masks": structure_masks}}
    for batch in load(cohort, sampling=SamplingConfig(patch_size=patch_size), **settings):
        labels = batch.labels.numpy()
        expected = structure_masks(labels, batch.annotated.numpy(), np.ones((len(labels), labels.ndim - 1)))
        np.testing.assert_array_equal(batch.extra["masks"].numpy(), expected)


def test_the_global_random_numbers_are_left_alone(cohort):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(load(cohort, augmentation=AugmentConfig(preset="default")))
    assert torch.equal(before, torch.get_rng_state())


def test_impossible_wishes_are_refused_before_the_first_batch(cohort):
    with pytest.raises(ConfigError, match="90 degrees"):
        load(cohort, sampling=SamplingConfig(patch_size=(8, 4, 8)), augmentation=AugmentConfig(preset="la"))
    with pytest.raises(DataError, match="completely annotated"):
        load(cohort, cases=cohort[0].cases[:2])
    with pytest.raises(DataError, match="none of the 0 training cases is annotated"):
        load(cohort, cases=())


def test_an_error_in_a_worker_process_arrives_without_a_traceback_in_its_text(cohort, tmp_path):
    manifest, original = cohort
    shutil.copytree(original.folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    dataset = StepDataset(store, manifest.cases, SPACE, SAMPLING, PLAIN, seed=0)
    (store.case_folder(store.keys["partial"]) / "image.b2nd").unlink()
    answers = [pickle.loads(pickle.dumps(dataset[step])) for step in range(5)]  # what a worker sends
    error = next(answer for answer in answers if isinstance(answer, DataError))
    assert error.case == "partial"
    assert str(error).startswith("case 'partial': the prepared scan is damaged")
    with pytest.raises(DataError, match="case 'partial'"):
        list(load((manifest, store)))


def test_cases_with_different_modalities_do_not_fit_into_a_batch(cohort, tmp_path):
    manifest, original = cohort
    shutil.copytree(original.folder, tmp_path / "store")
    store = Store(tmp_path / "store")
    write_two_modalities(store.case_folder(store.keys["bare"]), original.case("bare").undo)
    with pytest.raises(DataError, match="same modalities") as caught:
        list(load((manifest, store), total=10))
    assert caught.value.case == "bare"


def write_two_modalities(folder: Path, undo: Any) -> None:
    image = np.zeros((2, *undo.shape), np.float32)
    write_case(folder, Volume(image, np.eye(4)), None, undo)


def test_a_batch_that_says_too_much_is_stopped(cohort, monkeypatch):
    monkeypatch.setattr(StepDataset, "read", _believing_everything(StepDataset.read))
    with pytest.raises(DataError, match="not annotated"):
        list(islice(load(cohort), 3))


def _believing_everything(read: Any) -> Any:
    def with_all_labels(dataset: StepDataset, step: int) -> Any:
        reading = read(dataset, step)
        reading.views.labels.fill_(3)
        return reading

    return with_all_labels


def test_a_mirrored_case_is_annotated_for_the_other_side(tmp_path):
    """Of the right kidney alone, mirrored, nothing is known but the left one."""
    space = LabelSpace(("background", "left kidney", "right kidney", "liver"))
    manifest, prepared = make_store(tmp_path)
    cases = [replace(case, annotated=frozenset({"right kidney"})) for case in manifest.cases if case.labels]
    mirrored = AugmentConfig(preset="none", mirror_axes=(0,), mirror_once=True, sides="swap")
    only = SamplingConfig(patch_size=(8, 8, 8), labelled_cases=2, unlabelled_cases=0, foreground=1.0)
    kinds = {"cases": cases, "label_space": space, "sampling": only, "seed": 0, "total": 3}
    plain, swapped = (list(batches(prepared.store, augmentation=kind, **kinds)) for kind in (PLAIN, mirrored))
    for before, after in zip(plain, swapped, strict=True):
        assert before.annotated_on_host == ((False, False, True, False),) * 2
        assert after.annotated_on_host == ((False, True, False, False),) * 2
        assert after.annotated.tolist() == [list(row) for row in after.annotated_on_host]
        expected = before.labels.flip(1)
        expected[expected == 2] = 1
        assert torch.equal(after.labels, expected)


def test_sides_are_not_swapped_beside_targets_that_were_made_before(cohort):
    manifest, store = cohort
    space = LabelSpace(("background", "liver", "left kidney", "right kidney"))
    cases = [replace(case, annotated=case.annotated & {"liver"}) for case in manifest.cases]
    swap = AugmentConfig(preset="none", mirror_axes=(0,), sides="swap")
    with pytest.raises(ConfigError, match="whose targets are made before"):
        batches(
            store, cases, space, SAMPLING, swap, seed=0, total=1, extra_targets={"masks": structure_masks}
        )


def test_padding_is_told_from_voxels_without_a_label(cohort):
    """A patch of 32 x 8 x 8 around scans of 20 to 24 x 18 x 14 to 22: also in cases without any label."""
    sampling = replace(SAMPLING, patch_size=(32, 8, 8))
    lengths = {name: scan(number).shape[0] for name, number in NUMBERS.items()}
    seen = set()
    for batch in load(cohort, sampling=sampling, total=8):
        assert batch.valid is not None
        assert batch.inside is batch.valid
        assert (batch.images[:, 0][~batch.valid] == 0).all()
        assert (batch.labels[~batch.valid] == IGNORE).all()
        for case, valid in zip(batch.case_ids, batch.valid, strict=True):
            assert valid.any(dim=2).any(dim=1).sum() == lengths[case]
            assert valid.sum() == lengths[case] * 64
        seen.update(batch.case_ids)
    assert {"bare", "hidden"} & seen


def test_a_label_in_padding_is_refused(cohort):
    (batch,) = islice(load(cohort), 1)
    assert batch.valid is not None
    nowhere = torch.zeros_like(batch.valid)
    with pytest.raises(DataError, match="nothing is known beyond the scan"):
        check_batch(batch._replace(valid=nowhere))


@pytest.mark.parametrize("when", ["when the workers start", "when a batch arrives"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unable to open shared memory object")],
)
def test_too_little_shared_memory_is_told_wherever_it_shows(cohort, monkeypatch, when, error):
    def items():
        raise error
        yield

    def start(*_):
        if when == "when the workers start":
            raise error
        return items()

    monkeypatch.setattr("labelwise.loading.loader._loader", start)
    with pytest.raises(ResourceError, match="memory that processes share is too small"):
        next(load(cohort, workers=2))


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Killed.",
        "DataLoader worker (pid 7) is killed by signal: Bus error.",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
    ],
)
def test_a_worker_process_that_was_killed_is_told_with_a_remedy(cohort, monkeypatch, said):
    def items(*_):
        raise RuntimeError(said)
        yield

    monkeypatch.setattr("labelwise.loading.loader._loader", items)
    with pytest.raises(ResourceError, match="lower the setting workers") as caught:
        next(load(cohort, workers=2))
    assert "repeat the command" in str(caught.value)


def test_an_error_of_the_program_stays_one(cohort, monkeypatch):
    def items(*_):
        raise RuntimeError("shapes do not fit")
        yield

    monkeypatch.setattr("labelwise.loading.loader._loader", items)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        next(load(cohort, workers=2))
