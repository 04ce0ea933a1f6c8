"""Scans that lack a modality: learnt with, predicted where the model has seen it, refused where it has not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import tiny_config
from labelwise import run
from labelwise.cohort.manifest import Manifest, read_manifest, write_manifest
from labelwise.errors import ConfigError, DataError
from labelwise.infer.model import load_model
from labelwise.infer.scans import find_scans
from labelwise.loading.augment import AugmentConfig, Views, augment
from labelwise.loading.loader import batches
from labelwise.loading.prepare import prepare
from labelwise.loading.sampling import SamplingConfig
from labelwise.preprocess.pipeline import IntensityRule, Plan, apply
from labelwise.types import Case, Volume

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture(scope="module")
def two_channels(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort with two channels; the first case, and the first test case, lack the second one."""
    folder = Path(shutil.copytree(tiny_cohort, tmp_path_factory.mktemp("two") / "data"))
    shutil.rmtree(folder / "store", ignore_errors=True)
    manifest = read_manifest(folder)
    lacking = {manifest.split("train")[0].id, manifest.split("test")[0].id}

    def with_channels(case: Case) -> Case:
        if case.id in lacking:
            return replace(case, missing=(1,))
        second = case.images[0].with_name(f"second_{case.images[0].name}")
        shutil.copy(case.images[0], second)
        return replace(case, images=(case.images[0], second))

    write_manifest(manifest.replace_cases(map(with_channels, manifest.cases)), folder)
    return folder


@pytest.fixture(scope="module")
def trained(two_channels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "lacking"
    run.train(tiny_config(two_channels), out)
    return out


def lacking_case(folder: Path, split: str) -> tuple[Manifest, Case]:
    manifest = read_manifest(folder)
    return manifest, next(case for case in manifest.split(split) if case.missing)


def test_a_dash_stands_for_an_image_that_was_not_taken(two_channels, tmp_path):
    manifest, case = lacking_case(two_channels, "train")
    assert (case.missing, case.channels, len(case.images)) == ((1,), 2, 1)
    assert (
        f"{case.images[0].relative_to(two_channels).as_posix()};-,"
        in (two_channels / "manifest.csv").read_text()
    )
    assert read_manifest(write_manifest(manifest, tmp_path / "again")) == manifest
    first = manifest.replace_cases([replace(case, missing=(0,))])
    assert read_manifest(write_manifest(first, tmp_path / "first")).cases[0].missing == (0,)


@pytest.mark.parametrize("missing", [(2,), (-1,), (0, 0)])
def test_a_channel_that_cannot_be_missing_is_refused(missing):
    with pytest.raises(DataError, match="these are no missing modalities"):
        Case("a", (Path("/a.nii"),), missing=missing)


def test_missing_channels_are_the_mean_in_their_place():
    image = Volume(np.stack([np.full((3, 3, 3), value, np.float32) for value in (1, 2)]), np.eye(4))
    plan = Plan(intensity={"normalised": IntensityRule("none")})
    for missing, values in (((0,), [0, 1, 2]), ((1,), [1, 0, 2]), ((0, 3), [0, 1, 2, 0])):
        found = apply(image, plan, intensity="normalised", missing=missing).image.data
        assert found[:, 0, 0, 0].tolist() == values
    with pytest.raises(DataError, match="do not fit the scan"):
        apply(image, plan, intensity="normalised", missing=(3,))


def test_what_is_missing_stays_0_in_every_view(two_channels, tmp_path):
    manifest, case = lacking_case(two_channels, "train")
    only = manifest.replace_cases([case])
    store = prepare(only, tmp_path / "store", workers=1).store
    strong = AugmentConfig(preset="strong")
    sampling = SamplingConfig(patch_size=(8, 8, 8), labelled_cases=2, unlabelled_cases=0)
    for batch in batches(
        store, only.cases, only.label_space, sampling, strong, seed=0, total=4, weak_view=True
    ):
        for images in (batch.images, batch.weak_images):
            assert (images[:, 1] == 0).all()
            assert (images[:, 0] != 0).any()


def test_channels_are_dropped_by_chance_and_one_that_is_there_always_stays():
    generator = torch.Generator().manual_seed(0)
    taken = torch.ones(4000, 3, dtype=torch.bool)
    taken[:1000, 1] = False
    config = AugmentConfig(preset="none", drop_channels=0.5)
    views = Views(torch.ones(4000, 3, 1, 1, 1), torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), {})
    found = augment(
        views, config, generator, patch_size=(1, 1, 1), spacing_mm=torch.ones(4000, 3), taken=taken
    ).images.flatten(1)
    assert not found[:1000, 1].any()
    assert found.any(dim=1).all()
    # Half of the channels go, but that all go (1/8) leaves one: 1/2 + 1/24 of each stay. The bound is 5 deviations.
    assert found[1000:].mean(dim=0) == pytest.approx(np.full(3, 13 / 24), abs=5 * 0.5 / 3000**0.5)


def test_a_model_predicts_without_a_channel_that_it_saw_missing_and_says_so(trained, two_channels, tmp_path):
    model = load_model(trained, "cpu")
    assert model.info.may_lack == (1,)
    manifest, case = lacking_case(two_channels, "test")
    result = run.predict(trained, two_channels, tmp_path / "out", device="cpu")
    assert not result.failed
    record = json.loads((tmp_path / "out" / f"{case.id}.json").read_text())
    assert record["missing_channels"] == [2]
    intensity = manifest.data_set_of(case).intensity
    mine = model.predict([case.images[0], None], intensity=intensity)
    listed = tmp_path / "scans.txt"
    listed.write_text(f"{case.images[0]};-\n")
    (scan,) = find_scans(listed, intensity=intensity, channels=2)
    assert scan.given == (case.images[0], None)
    assert np.array_equal(mine.data, model.predict(scan.given, intensity=intensity).data)


def test_a_channel_that_no_scan_of_the_training_lacked_is_refused(trained, two_channels, tmp_path):
    model = load_model(trained, "cpu")
    _, case = lacking_case(two_channels, "test")
    with pytest.raises(DataError, match="never seen a scan without channel 1") as error:
        model.predict([None, case.images[0]])
    assert "of these may be missing: 2" in str(error.value)
    listed = tmp_path / "scans.txt"
    listed.write_text(f"-;{case.images[0]}\n")
    assert "never seen a scan without channel 1" in str(
        run.predict(trained, listed, tmp_path / "out", device="cpu").failed
    )
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_the_only_channel_cannot_be_dropped(tiny_cohort, tmp_path):
    with pytest.raises(ConfigError, match="the only channel of a scan cannot be left out"):
        run.train(tiny_config(tiny_cohort, **{"augment.drop_channels": 0.3}), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_nnunet_is_not_given_cases_that_lack_a_channel(two_channels, tmp_path):
    with pytest.raises(DataError, match="every case of nnU-Net has all channels"):
        run.export(two_channels, tmp_path / "nnunet")
    assert not (tmp_path / "nnunet").exists()


def test_an_image_that_every_training_case_lacks_is_refused(two_channels: Path, tmp_path: Path):
    manifest = read_manifest(two_channels)
    without = [
        replace(case, images=case.images[:1], missing=(1,)) if case.split == "train" else case
        for case in manifest.cases
    ]
    write_manifest(manifest.replace_cases(without), tmp_path / "data")
    with pytest.raises(DataError, match="no training case has image 2 of 2"):
        run.train(tiny_config(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
