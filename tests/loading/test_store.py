"""The store: what goes in comes out, patch by patch; what is damaged says so."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from labelwise.atomic import write_json
from labelwise.errors import DataError, ResourceError
from labelwise.loading import checked
from labelwise.loading import prepare as preparation
from labelwise.loading import store as cache
from labelwise.loading.prepare import prepare
from labelwise.loading.store import Store, annotated_table, label_points, label_slices, write_case
from labelwise.preprocess.pipeline import Undo
from labelwise.types import IGNORE, Volume
from stored_cohort import ANNOTATED, SPACE, label_map, make_store, scan

IDENTITY = tuple(tuple(row) for row in np.eye(4).tolist())
EVERYTHING = annotated_table(SPACE.annotated(SPACE.structures).numpy())
NUMBERS = {name: number for number, name in enumerate(ANNOTATED)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("cohort"))[1].store


@pytest.fixture
def store(original: Store, tmp_path: Path) -> Store:
    """A copy that a test may damage."""
    shutil.copytree(original.folder, tmp_path / "store")
    return Store(tmp_path / "store")


def read(store: Store, name: str, corner: tuple[int, int, int], size: tuple[int, int, int], table=EVERYTHING):
    image, labels = np.full((1, *size), np.nan, np.float32), np.full(size, 77, np.uint8)
    case = store.case(name)
    case.read_image(corner, image)
    case.read_labels(corner, labels, table)
    return image[0], labels


def forget_slices(folder: Path) -> None:
    """As a store was written before it noted which slices hold which structure."""
    facts = json.loads((folder / "case.json").read_text())
    del facts["slices"]
    write_json(folder / "case.json", facts)
    (folder / "checksum").write_bytes(f"{zlib.crc32((folder / 'case.json').read_bytes()):08x}\n".encode())


def test_a_patch_is_a_slice_of_the_scan(original):
    image, labels = read(original, "full_2", (3, 0, 5), (9, 18, 7))
    np.testing.assert_array_equal(image, scan(1)[3:12, :, 5:12])
    np.testing.assert_array_equal(labels, label_map(1)[3:12, :, 5:12])


def test_the_whole_scan_comes_back(original):
    case = original.case("full_1")
    assert (case.shape, case.spacing_mm, case.modalities) == (scan(0).shape, (1.0, 1.0, 1.0), 1)
    np.testing.assert_array_equal(case.image()[0], scan(0))
    np.testing.assert_array_equal(case.labels(EVERYTHING), label_map(0))
    assert case.undo.prepared_shape == case.shape


def test_convention_padding_is_0_in_the_image_and_ignore_in_the_labels(original):
    image, labels = read(original, "full_1", (-2, 10, -3), (24, 12, 20))
    inside = (slice(2, 22), slice(0, 8), slice(3, 17))
    np.testing.assert_array_equal(image[inside], scan(0)[:, 10:, :])
    np.testing.assert_array_equal(labels[inside], label_map(0)[:, 10:, :])
    beyond = np.ones(image.shape, bool)
    beyond[inside] = False
    assert (image[beyond] == 0).all()
    assert (labels[beyond] == IGNORE).all()


def test_a_patch_wholly_beyond_the_scan_is_padding(original):
    image, labels = read(original, "full_1", (40, 0, 0), (4, 4, 4))
    assert (image == 0).all()
    assert (labels == IGNORE).all()


def test_structures_that_are_not_annotated_are_erased(original):
    liver_only = annotated_table(np.array([False, True, False, False]))
    _, labels = read(original, "partial", (0, 0, 0), scan(2).shape, liver_only)
    np.testing.assert_array_equal(labels, np.where(label_map(2) == 1, 1, 0))


@pytest.mark.parametrize("noted", [True, False])
def test_every_set_of_classes_reads_what_its_table_says_of_each_voxel(store, noted):
    if not noted:
        forget_slices(store.case_folder(store.keys["full_1"]))
    stored = label_map(NUMBERS["full_1"])
    for known in itertools.product([False, True], repeat=3):
        for table in (annotated_table(np.array([False, *known])), np.arange(255, -1, -1, dtype=np.uint8)):
            np.testing.assert_array_equal(store.case("full_1").labels(table), table[stored])


@pytest.mark.parametrize("name", ["hidden", "bare"])
def test_an_unlabelled_case_is_ignore_everywhere(original, name):
    nothing = annotated_table(np.zeros(4, bool))
    for table in (nothing, EVERYTHING) if name == "bare" else (nothing,):
        assert (original.case(name).labels(table) == IGNORE).all()


def test_voxels_about_which_nothing_is_known_stay_so():
    table = annotated_table(np.array([False, True, False, False]))
    assert table[[0, 1, 2, 3, IGNORE]].tolist() == [0, 1, 0, 0, IGNORE]
    assert (annotated_table(np.zeros(4, bool)) == IGNORE).all()


@pytest.mark.parametrize(("largest", "kind"), [(2000.0, np.float16), (3071.0, np.float32)])
def test_precision_is_half_a_per_mille(tmp_path, largest, kind):
    image = np.random.default_rng(0).uniform(-largest, largest, (2, 9, 8, 7)).astype(np.float32)
    write_case(tmp_path / "case", Volume(image, np.eye(4)), None, undo_of(image.shape[1:]))
    stored = cache.StoredCase(tmp_path / "case")
    assert stored._image.dtype == kind
    assert stored.modalities == 2
    np.testing.assert_allclose(stored.image(), image, rtol=2**-11, atol=1e-7)
    if kind is np.float32:
        np.testing.assert_array_equal(stored.image(), image)


def test_points_lie_in_their_structure(original):
    for name in ("full_1", "hidden"):
        points = original.case(name).points
        assert sorted(points) == [1, 2, 3]
        for structure, voxels in points.items():
            assert voxels.dtype == np.int32
            assert (label_map(NUMBERS[name])[tuple(voxels.T)] == structure).all()
            assert len(np.unique(voxels, axis=0)) == len(voxels) == 4 * 9 * 7
    assert original.case("bare").points == {}


def test_points_are_few_and_the_same_every_time():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[5:], labels[0, 0, 0] = 2, IGNORE
    points = label_points(labels, seed=1, limit=20)
    assert list(points) == [2]
    assert points[2].shape == (20, 3)
    np.testing.assert_array_equal(points[2], label_points(labels, seed=1, limit=20)[2])
    assert (points[2] != label_points(labels, seed=2, limit=20)[2]).any()
    assert label_points(np.zeros((3, 3, 3), np.uint8), seed=1) == {}


def test_the_first_and_the_last_slice_of_each_structure_are_noted(original, store):
    for name in ("full_1", "hidden"):
        for structure, (first, last) in original.case(name).slices.items():
            held = np.flatnonzero((label_map(NUMBERS[name]) == structure).any(axis=(0, 1)))
            assert (first, last) == (held[0], held[-1])
    assert original.case("bare").slices == {}
    labels = np.zeros((4, 3, 6), np.uint8)
    labels[1, 2, 5], labels[0, 0, 2], labels[3, 1, 4], labels[2, 2, 0] = 1, 2, 2, IGNORE
    assert label_slices(labels) == {1: (5, 5), 2: (2, 4)}


def test_a_scan_that_was_prepared_before_slices_were_noted_says_what_to_do(store):
    forget_slices(store.case_folder(store.keys["full_1"]))
    with pytest.raises(DataError, match="which slices hold which structure") as caught:
        _ = store.case("full_1").slices
    assert "delete the store" in caught.value.do


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def scramble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40:-40] = bytes(len(content) - 80)
    file.write_bytes(content)


DAMAGES = {
    "image cut": ("image.b2nd", cut),
    "image scrambled": ("image.b2nd", scramble),
    "labels missing": ("labels.b2nd", Path.unlink),
    "points scrambled": ("points.safetensors", scramble),
    "facts missing": ("case.json", Path.unlink),
    "facts cut": ("case.json", cut),
    "facts of another version": ("case.json", lambda file: file.write_text('{"format": 99}')),
}


def use_everything(store: Store, name: str) -> None:
    read(store, name, (0, 0, 0), (8, 8, 8))
    assert store.case(name).points


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_case_is_named_with_the_way_out(store, damage):
    file, spoil = DAMAGES[damage]
    folder = store.case_folder(store.keys["full_1"])
    spoil(folder / file)
    with pytest.raises(DataError) as caught:
        use_everything(store, "full_1")
    assert caught.value.case == "full_1"
    assert caught.value.file == folder
    assert "labelwise prepare" in str(caught.value.do)
    use_everything(store, "full_2")


def test_a_case_that_was_not_prepared_is_refused(store):
    with pytest.raises(DataError, match="'nobody': the case is not in the store"):
        store.case("nobody")


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a store of prepared scans"):
        Store(tmp_path).case("full_1")
    with pytest.raises(DataError, match="not a store of prepared scans"):
        _ = Store(tmp_path).plan


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save", interrupted)
    image = np.zeros((1, 4, 4, 4), np.float32)
    with pytest.raises(KeyboardInterrupt):
        write_case(tmp_path / "store" / "case", Volume(image, np.eye(4)), None, undo_of((4, 4, 4)))
    assert list((tmp_path / "store").iterdir()) == []


def test_open_files_are_not_pickled(original):
    original.case("full_1")
    copy = pickle.loads(pickle.dumps(original))
    assert copy._open == {}
    np.testing.assert_array_equal(copy.case("full_1").image()[0], scan(0))


def test_only_so_many_cases_stay_open(original, monkeypatch):
    monkeypatch.setattr(cache, "MAX_OPEN_CASES", 2)
    store = Store(original.folder)
    first = store.case("full_1")
    store.case("full_2")
    assert store.case("full_1") is first
    store.case("partial")
    assert list(store._open) == ["full_1", "partial"]


def test_the_facts_of_a_case_are_plain_json(original):
    facts = json.loads((original.case("full_1").folder / "case.json").read_text())
    assert facts["format"] == cache.FORMAT
    assert set(facts["sizes"]) == {"image.b2nd", "labels.b2nd", "points.safetensors"}


def undo_of(shape: tuple[int, ...]) -> Undo:
    x, y, z = shape
    rows = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Undo((x, y, z), rows, (0, 0, 0), (x, y, z), (x, y, z))


def test_a_copy_in_another_process_keeps_the_index_it_was_made_with(store: Store):
    expected = dict(store.keys)
    others = dict.fromkeys(expected, "0" * 32)
    (store.folder / "index.json").write_text(json.dumps(others))  # another process prepared them otherwise
    assert pickle.loads(pickle.dumps(store)).keys == expected
    assert Store(store.folder).keys == others


@pytest.mark.parametrize(("scale", "offset"), [(1e-7, 0.0), (1.0, 1000.0)])
def test_images_that_float16_would_blur_are_kept_as_float32(tmp_path: Path, scale: float, offset: float):
    voxels = (np.random.default_rng(0).normal(size=(1, 8, 8, 8)) * scale + offset).astype(np.float32)
    undo = Undo((8, 8, 8), IDENTITY, (0, 0, 0), (8, 8, 8), (8, 8, 8))
    write_case(tmp_path / "case", Volume(voxels, np.eye(4)), None, undo)
    np.testing.assert_array_equal(cache.StoredCase(tmp_path / "case").image(), voxels)


@pytest.mark.parametrize("largest", [10, 3000])
def test_arrays_of_any_byte_order_that_are_mapped_and_read_only_are_stored(tmp_path: Path, largest: int):
    np.save(
        tmp_path / "image.npy", np.arange(-largest, largest, largest / 256).reshape(1, 8, 8, 8).astype(">f4")
    )
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    labels = (np.arange(512).reshape(8, 8, 8) % 3).astype(">u2")
    labels.setflags(write=False)
    undo = Undo((8, 8, 8), IDENTITY, (0, 0, 0), (8, 8, 8), (8, 8, 8))
    write_case(tmp_path / "case", Volume(image, np.eye(4)), Volume(labels, np.eye(4)), undo)
    stored = cache.StoredCase(tmp_path / "case")
    np.testing.assert_allclose(stored.image(), image, rtol=2**-11)
    np.testing.assert_array_equal(stored.labels(EVERYTHING), labels)


@pytest.mark.parametrize("file", ["image.b2nd", "labels.b2nd", "points.safetensors", "case.json"])
def test_a_full_disk_is_named_whatever_file_is_being_written(tmp_path: Path, monkeypatch, file: str):
    def refuse(path: Path, *arguments: object, **options: object) -> None:
        if path.name.endswith(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, refused_after(refuse, getattr(Path, name)))
    labels = Volume(np.ones((8, 8, 8), np.uint8), np.eye(4))
    image = Volume(np.ones((1, 8, 8, 8), np.float32), np.eye(4))
    with pytest.raises(ResourceError, match="the disk is full"):
        write_case(tmp_path / "case", image, labels, Undo((8,) * 3, IDENTITY, (0,) * 3, (8,) * 3, (8,) * 3))
    assert not list(tmp_path.iterdir())


def refused_after(refuse: Callable[..., None], write: Callable[..., int]) -> Callable[..., int]:
    def write_unless_refused(path: Path, *arguments: object, **options: object) -> int:
        refuse(path)
        return write(path, *arguments, **options)

    return write_unless_refused


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def read_all(store: Store) -> None:
    case = store.case("full_1")
    case.image()
    case.labels(EVERYTHING)
    assert case.points


@pytest.mark.parametrize("name", ["image.b2nd", "labels.b2nd", "points.safetensors", "case.json", "checksum"])
def test_no_flipped_bit_goes_unnoticed(store, name):
    """Bits all over each file, one in every part of it: whoever reads the case is told, with folder and remedy."""
    folder = store.case_folder(store.keys["full_1"])
    content = (folder / name).read_bytes()
    chance = np.random.default_rng(len(content))
    parts = np.linspace(0, 8 * len(content), 81).astype(int)
    bits = {int(chance.integers(a, b)) for a, b in itertools.pairwise(parts) if b > a}
    for bit in sorted(bits | {0, 8 * len(content) - 1}):
        (folder / name).write_bytes(flipped(content, bit))
        with pytest.raises(DataError) as caught:
            read_all(Store(store.folder))
        assert caught.value.case == "full_1", bit
        assert caught.value.file == folder
        assert "labelwise prepare" in str(caught.value.do)
    (folder / name).write_bytes(content)
    assert Store(store.folder).case("full_1").image().any()


@pytest.mark.parametrize("name", ["plan.json", "index.json"])
def test_no_flipped_bit_of_the_plan_or_the_index_goes_unnoticed(store, name):
    """A digit of a spacing or of a hash reads as well as before: only the checksum tells."""
    plan, keys = store.plan, dict(store.keys)
    file = store.folder / name
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        file.write_bytes(flipped(content, bit))
        with pytest.raises(DataError, match=name) as caught:
            _ = Store(store.folder).plan if name == "plan.json" else Store(store.folder).keys
        assert "labelwise prepare" in str(caught.value.do)
    file.write_bytes(content)
    assert (Store(store.folder).plan, Store(store.folder).keys) == (plan, keys)


def test_what_only_saves_time_is_forgotten_if_a_bit_of_it_is_wrong(tmp_path):
    file = tmp_path / "hashes.json"
    known = {"a": [1, 2, 3, "abcd"], "b": {"structures_mm": {2: 0.5, 10: 1.5}}}
    write_json(file, checked.sealed(known))
    content = file.read_bytes()
    assert preparation._read_memo(file) == json.loads(json.dumps(known))
    for bit in range(8 * len(content)):
        file.write_bytes(flipped(content, bit))
        assert preparation._read_memo(file) == {}


def test_a_plan_and_an_index_of_an_earlier_version_are_read(store):
    plan, keys = store.plan, dict(store.keys)
    for name, content in (("plan.json", plan.to_json()), ("index.json", keys)):
        write_json(store.folder / name, content)
    assert (Store(store.folder).plan, Store(store.folder).keys) == (plan, keys)


def test_only_what_is_read_is_checked_and_only_once(tmp_path, monkeypatch):
    """A patch costs the checks of its own chunks: a scan of many chunks is not read as a whole."""
    shape = (130, 70, 66)
    image = Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), np.eye(4))
    write_case(tmp_path / "case", image, None, undo_of(shape))
    case = cache.StoredCase(tmp_path / "case")
    counted: list[int] = []
    crc32 = checked.zlib.crc32
    case.read_image((0, 0, 0), np.empty((1, 8, 8, 8), np.float32))
    monkeypatch.setattr(checked.zlib, "crc32", lambda *args: (counted.append(1), crc32(*args))[1])
    case.read_image((4, 4, 4), np.empty((1, 8, 8, 8), np.float32))
    assert not counted
    case.read_image((60, 0, 0), np.empty((1, 8, 8, 8), np.float32))
    assert len(counted) == 1
    np.testing.assert_array_equal(case.image(), np.float16(image.data))
    assert len(counted) == 3 * 2 * 2 - 1


def test_a_scan_of_equal_voxels_has_checksums_too(tmp_path):
    """Its chunks have no bytes of their own."""
    shape = (70, 66, 5)
    write_case(tmp_path / "case", Volume(np.ones((2, *shape), np.float32), np.eye(4)), None, undo_of(shape))
    np.testing.assert_array_equal(cache.StoredCase(tmp_path / "case").image(), np.ones((2, *shape)))
    file = tmp_path / "case" / "image.b2nd"
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        file.write_bytes(flipped(content, bit))
        with pytest.raises(DataError, match="damaged"):
            cache.StoredCase(tmp_path / "case").image()


def test_a_case_without_checksums_is_prepared_again_under_its_name(tmp_path):
    """Of an earlier version: runs that were begun with it go on."""
    manifest, prepared = make_store(tmp_path)
    folder = prepared.store.case_folder(prepared.keys["full_1"])
    (folder / "checksum").unlink()
    again = prepare(manifest, prepared.store.folder)
    assert again.written == ("full_1",)
    assert again.keys == prepared.keys
    assert again.store.case("full_1").image().any()
