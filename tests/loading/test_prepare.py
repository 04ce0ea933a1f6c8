"""From files to the store: only what is missing is done, and what fails does not stop the rest."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from labelwise.cohort.manifest import Manifest, read_case_labels
from labelwise.errors import DataError
from labelwise.formats import Layout
from labelwise.loading import prepare as module
from labelwise.loading.prepare import Jobs, Prepared, content_key, hash_file, prepare, training_statistics
from labelwise.loading.store import Store, annotated_table
from labelwise.preprocess.pipeline import Plan
from labelwise.types import Case, LabelSpace
from stored_cohort import ANNOTATED, DATA_SETS, SPACE, UNCHANGED, label_map, make_manifest, make_store, scan


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path / "files")


def test_what_is_stored_equals_what_training_may_know_of_the_file(tmp_path):
    manifest, prepared = make_store(tmp_path)
    for case in manifest.cases:
        table = annotated_table(manifest.annotated(case).numpy())
        expected = read_case_labels(case, manifest).data
        np.testing.assert_array_equal(prepared.store.case(case.id).labels(table), expected)


def test_labels_are_stored_in_full_although_they_are_hidden(tmp_path):
    manifest, prepared = make_store(tmp_path)
    everything = annotated_table(np.ones(4, bool))
    np.testing.assert_array_equal(prepared.store.case("hidden").labels(everything), label_map(3))
    hidden = next(case for case in manifest.cases if case.id == "hidden")
    np.testing.assert_array_equal(read_case_labels(hidden, manifest, erase=False).data, label_map(3))


def test_a_second_preparation_reads_and_writes_nothing(tmp_path, monkeypatch):
    manifest, first = make_store(tmp_path)
    assert set(first.written) == set(ANNOTATED)
    for name in ("read_case_image", "read_case_labels", "hash_file"):
        monkeypatch.setattr(module, name, None)
    times = {path: path.stat().st_mtime_ns for path in first.store.folder.rglob("*")}
    second = prepare(manifest, first.store.folder, workers=1)
    assert second.written == ()
    assert second.keys == first.keys
    assert second.plan == UNCHANGED
    assert times == {path: path.stat().st_mtime_ns for path in first.store.folder.rglob("*")}


def test_one_store_serves_every_manifest_with_hidden_labels(tmp_path):
    manifest, first = make_store(tmp_path)
    simulated = manifest.replace_cases(
        replace(case, annotated=frozenset(), split="validation") for case in manifest.cases
    )
    assert prepare(simulated, first.store.folder, workers=1).written == ()


def test_a_changed_file_is_prepared_again_and_the_store_shows_the_new_one(tmp_path):
    manifest, first = make_store(tmp_path)
    file = manifest.cases[0].images[0]
    nib.save(nib.Nifti1Image(scan(0) + 1, np.eye(4)), file)
    os.utime(file, ns=(0, 0))
    second = prepare(manifest, first.store.folder, workers=1)
    assert second.written == ("full_1",)
    np.testing.assert_allclose(second.store.case("full_1").image()[0], scan(0) + 1, rtol=1e-3, atol=1e-3)


def test_a_damaged_case_is_prepared_again(tmp_path):
    manifest, first = make_store(tmp_path)
    (first.store.case_folder(first.keys["partial"]) / "image.b2nd").write_bytes(b"")
    second = prepare(manifest, first.store.folder, workers=1)
    assert second.written == ("partial",)
    np.testing.assert_array_equal(second.store.case("partial").image()[0], scan(2))


def test_cases_with_the_same_content_share_a_folder(tmp_path, manifest):
    twins = manifest.replace_cases([manifest.cases[0], replace(manifest.cases[0], id="twin")])
    prepared = prepare(twins, tmp_path / "store", UNCHANGED, workers=1)
    assert prepared.written == ("full_1", "twin")
    assert len(list((tmp_path / "store" / "cases").iterdir())) == 1
    assert prepared.store.case("twin").case_id == "twin"


def test_cases_without_a_split_take_no_part(tmp_path, manifest):
    first, *others = manifest.cases
    some = manifest.replace_cases([first, *(replace(case, split="") for case in others)])
    assert set(prepare(some, tmp_path / "store", UNCHANGED, workers=1).keys) == {"full_1"}


def test_a_case_that_fails_is_reported_and_the_others_are_kept(tmp_path, manifest):
    manifest.cases[1].images[0].write_bytes(b"not a scan")
    manifest.cases[2].images[0].unlink()
    with_nan = scan(3)
    with_nan[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(with_nan, np.eye(4)), manifest.cases[3].images[0])
    prepared = prepare(manifest, tmp_path / "store", UNCHANGED, workers=1)
    assert set(prepared.failures) == {"full_2", "partial", "hidden"}
    assert set(prepared.keys) == set(prepared.store.keys) == {"full_1", "bare"}
    for name, error in prepared.failures.items():
        assert error.case == name
    with pytest.raises(DataError, match="3 of 5 scans could not be prepared") as caught:
        prepared.require_all()
    assert all(f"case '{name}'" in str(caught.value) for name in prepared.failures)


def test_errors_of_the_preprocessing_name_the_case(tmp_path, manifest, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise DataError("the crop leaves nothing", found="0 voxels")

    monkeypatch.setattr(module.pipeline, "apply", fails)
    error = prepare(manifest, tmp_path / "store", UNCHANGED, workers=1).failures["full_1"]
    assert str(error).startswith("case 'full_1': the crop leaves nothing")
    assert "0 voxels" in str(error)
    assert error.file == manifest.cases[0].images[0]


def test_without_a_plan_it_is_made_from_the_training_scans_and_kept(tmp_path, manifest):
    store = Store(tmp_path / "store")
    plan = prepare(manifest, store.folder, workers=1).plan
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
    assert plan == store.plan
    assert prepare(manifest, store.folder, UNCHANGED, workers=1).plan == UNCHANGED == store.plan
    assert prepare(manifest, store.folder, workers=1).plan == UNCHANGED


def test_the_fingerprint_counts_unlabelled_scans_and_skips_unreadable_ones(manifest):
    assert len(training_statistics(manifest, Jobs(workers=1))) == 5
    manifest.cases[0].images[0].write_bytes(b"not a scan")
    shapes = [found.shape for found in training_statistics(manifest, Jobs(workers=1))]
    assert sorted(shapes) == sorted(scan(number).shape for number in range(1, 5))
    testing = manifest.replace_cases(replace(case, split="test") for case in manifest.cases)
    with pytest.raises(DataError, match="no case of the manifest is in the split 'train'"):
        training_statistics(testing)
    for case in manifest.cases:
        case.images[0].write_bytes(b"not a scan")
    with pytest.raises(DataError, match="none of the 5 training scans can be read"):
        training_statistics(manifest, Jobs(workers=1))


def test_progress_is_told(tmp_path, manifest):
    told: list[tuple[str, int, int]] = []
    prepare(manifest, tmp_path / "store", workers=1, progress=lambda *news: told.append(news))
    for what in ("hash", "fingerprint", "prepare"):
        assert [news for news in told if news[0] == what] == [(what, done, 5) for done in range(1, 6)]


def test_several_processes_make_the_same_store(tmp_path, manifest):
    one = prepare(manifest, tmp_path / "one", UNCHANGED, workers=1)
    two = prepare(manifest, tmp_path / "two", UNCHANGED, workers=2)
    assert one.keys == two.keys
    for name in one.keys:
        np.testing.assert_array_equal(one.store.case(name).image(), two.store.case(name).image())
        for structure, voxels in one.store.case(name).points.items():
            np.testing.assert_array_equal(voxels, two.store.case(name).points[structure])


def test_the_key_depends_on_everything_that_decides_about_voxels(manifest, tmp_path):
    case = manifest.cases[0]
    data_set = manifest.data_sets["site"]

    def key(case: Case = case, plan: Plan = UNCHANGED, **changes: object) -> str:
        return content_key(case, replace(manifest, **changes), plan)

    other_image, other_labels = manifest.cases[1].images, manifest.cases[1].labels
    keys = [
        key(),
        key(replace(case, images=other_image)),
        key(replace(case, labels=other_labels)),
        key(replace(case, labels=None, annotated=frozenset())),
        key(plan=replace(UNCHANGED, spacing_mm=(1.0, 1.0, 2.0))),
        key(data_sets={"site": replace(data_set, modality="ct", normalised=False)}),
        key(data_sets={"site": replace(data_set, modality="mr", normalised=False)}),
        key(data_sets={"site": replace(data_set, layout=Layout(axes="zyx"))}),
        key(data_sets={"site": replace(data_set, values={**data_set.values, 40: "liver"})}),
        key(label_space=LabelSpace(("background", "spleen", "liver", "pancreas"))),
    ]
    assert len(set(keys)) == len(keys)
    moved = tmp_path / "moved.nii.gz"
    moved.write_bytes(case.images[0].read_bytes())
    same = replace(case, id="x", images=(moved,), annotated=frozenset(), split="", group="g")
    assert key(same) == key()


def test_a_folder_is_hashed_by_the_names_and_contents_of_its_files(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / "series").mkdir(exist_ok=True)
        (tmp_path / "series" / name).write_bytes(content)
    before = hash_file(tmp_path / "series")
    assert before == hash_file(tmp_path / "series")
    (tmp_path / "series" / "b").rename(tmp_path / "series" / "c")
    assert hash_file(tmp_path / "series") != before


def test_the_structures_of_the_cohort_are_in_the_store(tmp_path):
    _, prepared = make_store(tmp_path)
    assert sorted(prepared.store.case("full_1").points) == list(range(1, SPACE.num_classes))


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_equal_headers_with_other_voxels_beside_them_are_other_scans(tmp_path, suffix):
    cases = []
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / f"image{suffix}"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan(0) + np.float32(number)), str(file))
        cases.append(Case(name, (file,), data_set="site", split="train"))
    assert cases[0].images[0].read_bytes() == cases[1].images[0].read_bytes()
    prepared = prepare(Manifest(SPACE, DATA_SETS, tuple(cases)), tmp_path / "store", UNCHANGED, workers=1)
    prepared.require_all()
    stored = [prepared.store.case(name).image() for name in "ab"]
    np.testing.assert_array_equal(stored[1], stored[0] + 1)
    (voxels,) = [file for file in (tmp_path / "a").iterdir() if file.suffix != suffix]
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert prepare(Manifest(SPACE, DATA_SETS, tuple(cases)), tmp_path / "store", workers=1).written == ("a",)


def test_an_empty_folder_in_the_place_of_a_scan_is_one_failed_case(manifest, tmp_path):
    (tmp_path / "nothing").mkdir()
    wrong = manifest.replace_cases(
        [manifest.cases[0], replace(manifest.cases[1], images=(tmp_path / "nothing",))]
    )
    prepared = prepare(wrong, tmp_path / "store", UNCHANGED, workers=1)
    assert set(prepared.keys) == {"full_1"}
    assert "no DICOM series in this folder" in str(prepared.failures["full_2"])


def test_what_another_process_has_prepared_meanwhile_is_left_alone(tmp_path, monkeypatch):
    manifest, first = make_store(tmp_path)
    monkeypatch.setattr(module, "write_case", None)
    case = manifest.cases[0]
    module.prepare_case((first.keys[case.id], case), manifest, UNCHANGED, first.store)


def test_two_processes_fill_one_store_together(manifest, tmp_path):
    def fill(cases: tuple[Case, ...]) -> Prepared:
        return prepare(manifest.replace_cases(cases), tmp_path / "store", UNCHANGED, workers=1)

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(fill, [manifest.cases, manifest.cases[::-1]]))
    for prepared in results:
        prepared.require_all()
        for number, case in enumerate(manifest.cases):
            np.testing.assert_array_equal(prepared.store.case(case.id).image()[0], scan(number))
    assert {path.name for path in (tmp_path / "store" / "cases").iterdir()} == set(results[0].keys.values())


def test_the_plan_of_the_process_that_began_the_store_first_counts(manifest, tmp_path, monkeypatch):
    earlier = Plan(spacing_mm=(2, 2, 2), intensity=UNCHANGED.intensity)

    def slow(*_: object) -> list[object]:
        Store(tmp_path / "store").set_plan(earlier)
        return training_statistics(manifest, Jobs(workers=1))

    monkeypatch.setattr(module, "training_statistics", slow)
    assert prepare(manifest, tmp_path / "store", workers=1).plan == earlier


@pytest.mark.parametrize("kind", ["in place", "replaced"])
def test_a_file_that_changed_at_equal_size_and_time_is_prepared_anew(tmp_path, kind):
    manifest, first = make_store(tmp_path)
    file = manifest.cases[0].images[0]
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[4] ^= 1  # when it was compressed
    if kind == "replaced":
        file.unlink()
    file.write_bytes(content)
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepare(manifest, first.store.folder, workers=1).written == (manifest.cases[0].id,)


def test_two_programs_that_begin_a_store_use_one_plan(tmp_path, monkeypatch):
    """Each has a manifest of its own; what the slower one would have planned counts for nobody."""
    manifest, _ = make_store(tmp_path / "files")
    few = manifest.replace_cases(case for case in manifest.cases if case.id != "full")
    begin, plans = Store.begin, []

    def slower(store, plan):
        if not plans:
            plans.append(plan)
            plans.append(prepare(few, tmp_path / "store", workers=1).plan)
        return begin(store, plan)

    monkeypatch.setattr(Store, "begin", slower)
    prepared = prepare(manifest, tmp_path / "store", workers=1)
    assert prepared.plan == plans[1] == Store(tmp_path / "store").plan
    assert prepare(manifest, tmp_path / "store", workers=1).keys == prepared.keys
