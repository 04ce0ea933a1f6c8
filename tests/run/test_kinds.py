"""Kinds of faults over generated variants: what holds for one example of a kind holds for all that are drawn here."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from labelwise import load_model, run
from labelwise.atomic import write_new_json
from labelwise.errors import DataError, LabelwiseError
from labelwise.formats import (
    Layout,
    Tally,
    read_geometry,
    read_labels,
    segment_names,
    value_names,
    write_labels,
)
from labelwise.infer.scans import find_scans
from labelwise.preprocess.intensity import IntensityRule, normalise
from labelwise.types import Volume

sys.path.append(str(Path(__file__).parent))
from clinic import AFFINE, BOXES, SHAPE, WAYS, label_map, write_named, write_scan, write_segments

STRUCTURES = tuple(BOXES)
few = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # smaller examples would be looked for much longer than these tests take
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def fresh(tmp_path):
    """A new empty folder at each call: one test draws many variants."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return make


# evidence: what is listed, and what was drawn


@few
@given(
    drawn=st.sets(st.sampled_from(STRUCTURES), min_size=1),
    order=st.permutations(STRUCTURES),
    believed=st.booleans(),
)
def test_annotated_is_what_was_drawn_whatever_a_file_lists(fresh, drawn, order, believed):
    folder = fresh()
    write_scan(folder / "in" / "images" / "c0.nii.gz")
    (folder / "in" / "labels").mkdir()
    labels = label_map({name: number for number, name in enumerate(order, start=1) if name in drawn})
    listed = [(name, number, 0) for number, name in enumerate(order, start=1)]
    write_segments(folder / "in" / "labels" / "c0.seg.nrrd", [labels], listed)
    undrawn = {"undrawn": "absent"} if believed else {}
    manifest = run.import_data([folder / "in"], folder / "m", modality="ct", **undrawn)
    assert manifest.cases[0].annotated == (set(STRUCTURES) if believed else drawn)


# meaning: the same structures under any numbers, written in any way


numberings = st.lists(st.integers(1, 250), min_size=3, max_size=3, unique=True)


@few
@given(ours=numberings, theirs=numberings, our_way=st.sampled_from(WAYS), their_way=st.sampled_from(WAYS))
def test_an_exact_copy_under_other_numbers_has_a_dice_of_one(fresh, ours, theirs, our_way, their_way):
    folder = fresh()
    for name, numbers, way in (("p", ours, our_way), ("r", theirs, their_way)):
        table = dict(zip(STRUCTURES, numbers, strict=True))
        write_named(folder / name, "c0", way, table, {value: structure for structure, value in table.items()})
    result = run.evaluate(folder / "p", folder / "r", folder / "scores.csv", workers=1)
    dice = {score.class_name: score.value for score in result.scores if score.metric == "dice"}
    assert dice == dict.fromkeys(STRUCTURES, 1.0)


# losses: every voxel that a structure gives up is counted


boxes = st.tuples(*(st.tuples(st.integers(0, n - 2), st.integers(1, n)) for n in SHAPE))


@few
@given(places=st.lists(boxes, min_size=2, max_size=4), overlap=st.sampled_from(["later", "smaller"]))
def test_what_is_drawn_and_lost_adds_up_to_what_is_left(fresh, places, overlap):
    masks = []
    for place in places:
        mask = np.zeros(SHAPE, np.uint8)
        mask[tuple(slice(start, start + size) for start, size in place)] = 1
        masks.append(mask)
    names = [f"thing{number}" for number in range(len(masks))]
    file = write_segments(fresh() / "a.seg.nrrd", masks, [(name, 1, n) for n, name in enumerate(names)])
    tally = Tally()
    labels = read_labels(file, Layout(segments=segment_names(file), overlap=overlap), None, tally).data
    assert np.array_equal(labels > 0, np.any(masks, axis=0))
    for value, mask in enumerate(masks, start=1):
        assert tally.drawn[value] == mask.sum()
        assert tally.left(value) == (labels == value).sum()
        assert not (labels == value)[mask == 0].any()
    for (loser, winner), voxels in tally.lost.items():
        assert 0 < voxels <= (masks[loser - 1] & masks[winner - 1]).sum()
        assert loser < winner if overlap == "later" else masks[winner - 1].sum() <= masks[loser - 1].sum()


# folders: a scan is found and used, or named as passed over


names = st.from_regex(r"[a-z]{1,4}[0-9]{1,2}", fullmatch=True)


endings = st.sampled_from([".nii.gz", ".nii", ".nrrd", ".mha"])
layouts = st.sampled_from(
    [("images", "labels"), ("imagesTr", "labelsTr"), ("scans", "segmentations"), ("", "labels")]
)


@few
@given(
    cases=st.dictionaries(names, st.tuples(st.booleans(), endings), min_size=1, max_size=4),
    places=layouts,
    stray=st.booleans(),
)
def test_no_scan_and_no_label_of_a_folder_vanishes(fresh, caplog, cases, places, stray):
    caplog.set_level(logging.INFO, logger="labelwise")
    caplog.clear()
    folder = fresh()
    written = set()
    for case, (labelled, ending) in cases.items():
        plain = write_scan(folder / "tmp.nii.gz")
        target = folder / "in" / places[0] / f"{case}{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_as(plain, target)
        written.add(target)
        if labelled:
            write_labels(
                folder / "in" / places[1] / f"{case}.nii.gz", Volume(label_map({"liver": 1}), AFFINE)
            )
            written.add(folder / "in" / places[1] / f"{case}.nii.gz")
    if stray:
        write_labels(folder / "in" / places[1] / "stray.nii.gz", Volume(label_map({"liver": 1}), AFFINE))
        written.add(folder / "in" / places[1] / "stray.nii.gz")
    try:
        manifest = run.import_data([folder / "in"], folder / "m", classes={"liver": 1}, modality="ct")
    except DataError:  # said: nothing was assumed
        return
    used = {Path(file).resolve() for case in manifest.cases for file in (*case.images, case.labels) if file}
    for file in written:
        assert file.resolve() in used or file.name in caplog.text or file.name.split(".")[0] in caplog.text
    assert {case.id for case in manifest.cases if case.labels} == {
        name for name, (is_labelled, _) in cases.items() if is_labelled
    }
    assert {scan.id for scan in find_scans(folder / "in" / places[0], intensity="ct")} >= set(cases)


def copy_as(source: Path, target: Path) -> None:
    """A scan in another format, by its name."""
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(target))


# remedies: what we write comes back, whatever the axes of the scan


@few
@given(
    axes=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3), seed=st.integers(0, 99),
    through=st.lists(st.sampled_from([".nii.gz", ".nii", ".seg.nrrd"]), min_size=1, max_size=4),
)  # fmt: skip
def test_labels_survive_any_way_through_the_formats_on_any_axes(fresh, axes, signs, seed, through):
    folder = fresh()
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * np.array((1.0, 1.5, 4.0)) * signs
    affine[:3, 3] = (-20, 30, 7)
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(3, 7, 3).tolist())
    nibabel.save(
        nibabel.Nifti1Image(random.integers(-900, 900, shape).astype(np.int16), affine),
        folder / "scan.nii.gz",
    )
    grid = read_geometry(folder / "scan.nii.gz")
    first = Volume(random.integers(0, 4, grid.shape).astype(np.uint8), grid.affine)
    first.data[:3, 0, 0] = (1, 2, 3)
    words = ("background", "liver", "left kidney", "a thing of ours")
    file = folder / "a.nii.gz"
    write_labels(file, first, like=folder / "scan.nii.gz", names=words)
    for number, ending in enumerate(through):
        file = run.convert(file, folder / f"b{number}{ending}", like=folder / "scan.nii.gz").file
    back = read_labels(file)
    assert np.array_equal(back.data, first.data)
    assert grid.matches(read_geometry(file))
    assert [name for value, name in sorted(value_names(file).items()) if value] == list(words[1:])


# rough conditions: channels keep what they say, and what cannot be normalised is refused


values = st.lists(st.integers(0, 10), min_size=2, max_size=6, unique=True)


@few
@given(values=values, scheme=st.sampled_from(["ct", "mr"]), seed=st.integers(0, 99))
def test_a_mask_beside_a_scan_keeps_its_values_under_every_rule(values, scheme, seed):
    random = np.random.default_rng(seed)
    mask = random.choice(values, (10, 11, 12)).astype(np.float32)
    scan = random.normal(40, 200, mask.shape).astype(np.float32)
    rule = IntensityRule(scheme, (-160.0, 240.0), 40.0, 80.0) if scheme == "ct" else IntensityRule(scheme)
    got = normalise(np.stack([scan, mask]), rule)
    assert np.array_equal(got[1], mask)
    assert got[0].std() > 0.5


@few
@given(
    exponent=st.integers(1, 38), share=st.integers(1, 8), sign=st.sampled_from([-1.0, 1.0]),
    scheme=st.sampled_from(["ct", "mr", "none"]),
)  # fmt: skip
def test_a_few_voxels_far_off_never_reach_the_network(exponent, share, sign, scheme):
    scan = np.random.default_rng(exponent).normal(0, 1, (1, 12, 12, 12)).astype(np.float32)
    scan[0, 0, 0, :share] = np.float32(sign * 10.0**exponent)
    rule = IntensityRule(scheme, (-3.0, 3.0), 0.0, 1.0) if scheme == "ct" else IntensityRule(scheme)
    if scheme == "none" and exponent > 6:
        with pytest.raises(DataError, match="not normalised"):
            normalise(scan, rule)
        return
    got = normalise(scan, rule)
    assert np.isfinite(np.square(got, dtype=np.float32).sum())
    if scheme != "none":
        assert np.abs(got).max() < 30


# several programs at a time


@few
@given(programs=st.integers(2, 8), rounds=st.integers(1, 4))
def test_of_programs_that_begin_one_file_at_a_time_one_is_told_that_it_did(fresh, programs, rounds):
    folder = fresh()
    with ThreadPoolExecutor(programs) as pool:
        for number in range(rounds):
            file = folder / f"plan{number}.json"
            begun = list(pool.map(lambda who, file=file: write_new_json(file, {"by": who}), range(programs)))
            assert sum(begun) == 1
            assert json.loads(file.read_text()) == {"by": begun.index(True)}
    assert len(list(folder.iterdir())) == rounds  # nothing temporary is left


# hostile files


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places_in(value: object, path: tuple = ()) -> list[tuple]:
    """The path of every entry of nested dictionaries and lists."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [place for key, inner in entries for place in ((*path, key), *places_in(inner, (*path, key)))]


@settings(few, max_examples=40)
@given(data=st.data())
def test_a_model_that_says_anything_anywhere_is_used_or_refused_and_never_a_crash(tiny_run, fresh, data):
    folder = fresh()
    shutil.copytree(tiny_run / "model", folder / "model")
    description = json.loads((folder / "model" / "model.json").read_text())
    place = data.draw(st.sampled_from(places_in(description)))
    holder = description
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = data.draw(anything)
    (folder / "model" / "model.json").write_text(json.dumps(description))
    with suppress(LabelwiseError):
        load_model(folder / "model", "cpu")
