"""One scan and many scans from file to file, with a predictor that thresholds the intensity."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from torch import Tensor, nn

from labelwise.errors import CheckpointError, ConfigError, DataError, ResourceError
from labelwise.infer import cohort as module
from labelwise.infer import image as given
from labelwise.infer.calibration import Calibration
from labelwise.infer.cohort import predict_cohort
from labelwise.infer.model import Model, ModelInfo
from labelwise.infer.postprocess import PostprocessConfig
from labelwise.infer.scans import Scan, find_scans
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.preprocess.pipeline import IntensityRule, Plan
from labelwise.types import Array, LabelSpace, Volume

PLAN = Plan(intensity={"mr": IntensityRule(scheme="none")})
FLOAT32 = InferenceConfig(precision="float32")


class Threshold(nn.Module):
    """Bright is structure 1; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return torch.cat([-images, images], dim=1).sigmoid()


class Inverse(Threshold):
    """Dark is structure 1."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flip(1)


def thresholding(
    predictor: nn.Module | None = None,
    *,
    plan: Plan = PLAN,
    patch_size: tuple[int, int, int] = (8, 8, 8),
    config: InferenceConfig = FLOAT32,
) -> Model:
    """A model of one structure and one channel."""
    net = {"name": "vnet", "settings": {}, "dims": 3, "in_channels": 1, "num_classes": 2}
    space = LabelSpace(("background", "liver"))
    info = ModelInfo(
        "first", space.names, ("mr",), plan.to_json(), net, "supervised", {}, "softmax", patch_size, {}
    )
    return Model(info, space, plan, config, predictor or Threshold(), torch.device("cpu"), "model-1")


@pytest.fixture
def model() -> Model:
    return thresholding()


def write_scan(path: Path, shape: tuple[int, int, int], affine: Array | None = None, seed: int = 0) -> Array:
    """A random scan stored with flipped and permuted axes; returns what its labels should be, as stored."""
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    path.parent.mkdir(exist_ok=True)
    default = np.array([[0, 0, 3, 5], [-2, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]], float)
    nibabel.save(nibabel.Nifti1Image(image, default if affine is None else affine), path)
    return image > 0


def cohort(folder: Path) -> dict[str, Array]:
    """Three scans of different size; returns their labels as stored."""
    shapes = {"small": (9, 8, 7), "large": (16, 12, 20), "middle": (12, 10, 9)}
    return {name: write_scan(folder / f"{name}.nii.gz", shape) for name, shape in shapes.items()}


def failures(folder: Path) -> list[dict[str, str]]:
    with (folder / "failed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_labels_come_back_on_the_grid_of_the_scan() -> None:
    """At half the resolution flat layers, two voxels thick, survive; the predictor sees the prepared grid."""
    layers = np.array([1, -1, -1, 1, 1, -1], np.float32)[:, None, None]
    coarse = np.broadcast_to(layers, (6, 5, 4))
    image = Volume(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[None], np.diag([1.0, 1, 1, 1]))
    plan = Plan(spacing_mm=(2, 2, 2), intensity=PLAN.intensity)
    predictor = Threshold()
    labels = thresholding(predictor, plan=plan, patch_size=(6, 5, 4)).predict(image)
    assert predictor.shapes == [(1, 1, 6, 5, 4)]
    np.testing.assert_array_equal(labels.data, image.data[0] > 0)
    np.testing.assert_array_equal(labels.affine, image.affine)


def test_postprocessing_is_done_on_the_grid_of_the_scan() -> None:
    image = -np.ones((1, 8, 8, 8), np.float32)
    image[0, 1:4, 1:4, 1:4], image[0, 6, 6, 6] = 1, 1
    config = replace(FLOAT32, postprocess=PostprocessConfig(largest_component=True))
    labels = thresholding(config=config).predict(Volume(image, np.eye(4)))
    assert labels.data.sum() == 27


def test_a_read_only_image_is_predicted_without_complaint() -> None:
    image = np.ones((1, 8, 8, 8), np.float32)
    image.flags.writeable = False
    labels = thresholding().predict(Volume(image, np.eye(4)))
    assert labels.data.all()


def test_every_scan_gets_labels_on_its_own_grid_and_a_record(tmp_path: Path, model: Model) -> None:
    expected = cohort(tmp_path / "in")
    outcomes = predict_cohort(
        model, find_scans(tmp_path / "in", intensity="mr"), tmp_path / "out", versions={"torch": "2"}
    )
    assert [outcome.result for outcome in outcomes] == [
        tmp_path / "out" / f"{name}.nii.gz" for name in ("large", "middle", "small")
    ]
    for name, labels in expected.items():
        written, source = (nibabel.load(tmp_path / side / f"{name}.nii.gz") for side in ("out", "in"))
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), labels)
        np.testing.assert_allclose(written.affine, source.affine)
        assert written.get_data_dtype() == np.uint8
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert record["classes"] == {"0": "background", "1": "liver"}
    assert (record["model"], record["versions"], record["images"]) == (
        "model-1",
        {"torch": "2"},
        ["small.nii.gz"],
    )
    assert record["seconds"] > 0
    assert record["inference"]["blending"] == "gaussian"
    assert not (tmp_path / "out" / "failed.csv").exists()


def test_a_repetition_predicts_only_what_is_missing(tmp_path: Path, model: Model) -> None:
    cohort(tmp_path / "in")
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(model, scans, tmp_path / "out")
    (tmp_path / "out" / "middle.nii.gz").unlink()
    before = (tmp_path / "out" / "large.nii.gz").stat().st_mtime_ns
    again = replace(model, predictor=Threshold())
    outcomes = predict_cohort(again, scans, tmp_path / "out")
    assert {outcome.item.id for outcome in outcomes if outcome.result} == {"small", "large", "middle"}
    assert (tmp_path / "out" / "large.nii.gz").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "middle.nii.gz").exists()
    finished = replace(model, predictor=Threshold())
    predict_cohort(finished, scans, tmp_path / "out")
    assert finished.predictor.shapes == []
    predict_cohort(finished, scans, tmp_path / "out", overwrite=True)
    assert finished.predictor.shapes != []


def test_results_of_before_a_calibration_are_kept_and_named(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        module, "told_beside", lambda path, of=module.told_beside: read.append(path.name) or of(path)
    )

    def said(model: Model, **options: bool) -> str:
        caplog.clear()
        outcomes = predict_cohort(model, scans, tmp_path / "out", **options)
        assert not [outcome for outcome in outcomes if outcome.error]
        return caplog.text

    for name in ("a", "b"):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", (8, 8, 8))
    scans = find_scans(tmp_path / "in", intensity="mr")
    first, second = (Calibration("model-1", heat, 1, 9, 0.3, 0.2, {}) for heat in (1.5, 1.6))
    calibrated = replace(model, calibration=first)
    assert said(model) == said(model) == ""
    (tmp_path / "out" / "b.nii.gz").unlink()
    before = (tmp_path / "out" / "a.nii.gz").read_bytes()
    read.clear()
    warning = said(calibrated)  # b is predicted with the calibration, a is kept
    assert "was calibrated after these results were written" in warning
    assert "--overwrite" in warning
    assert warning.rstrip().endswith(": 1 (a)")
    assert read == ["a.nii.gz"]  # once
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == before
    assert said(model).rstrip().endswith(": 1 (b)")  # the calibration was removed
    assert said(calibrated, overwrite=True) == said(calibrated) == ""
    assert said(replace(model, calibration=second)).rstrip().endswith(": 2 (a, b)")
    assert said(replace(model, id="another"), overwrite=True) == ""


def test_results_of_another_model_are_neither_kept_nor_replaced_silently(
    tmp_path: Path, model: Model
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", (8, 8, 8))
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(model, scans, tmp_path / "out")
    before = (tmp_path / "out" / "a.nii.gz").read_bytes()
    (outcome,) = predict_cohort(replace(model, id="model-2"), scans, tmp_path / "out")
    assert isinstance(outcome.error, ConfigError)
    assert "model-1" in str(outcome.error)
    assert (tmp_path / "out" / "a.nii.gz").read_bytes() == before
    (tmp_path / "out" / "a.json").write_text("not JSON")
    (outcome,) = predict_cohort(model, scans, tmp_path / "out")
    assert "no record" in str(outcome.error)


def test_an_old_result_is_never_taken_for_the_one_that_a_killed_process_was_to_write(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the record and before the labels, while it replaced the result of another model."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    labels = write_scan(tmp_path / "in" / "a.nii.gz", (8, 8, 8))
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(replace(model, predictor=Inverse(), id="old"), scans, tmp_path / "out")
    monkeypatch.setattr(module, "write_labels", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_cohort(model, scans, tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    (outcome,) = predict_cohort(model, scans, tmp_path / "out")
    assert outcome.error is None
    written = np.asanyarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(written, labels)


def test_results_of_other_settings_are_not_kept_silently(tmp_path: Path, model: Model) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", (8, 8, 8))
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(model, scans, tmp_path / "out")
    faster = replace(model, config=replace(FLOAT32, batch_size=4))
    assert predict_cohort(faster, scans, tmp_path / "out")[0].error is None
    cleaner = replace(
        model, config=replace(FLOAT32, overlap=0.25, postprocess=PostprocessConfig(fill_holes=True))
    )
    (outcome,) = predict_cohort(cleaner, scans, tmp_path / "out")
    assert isinstance(outcome.error, ConfigError)
    assert "overlap 0.5" in str(outcome.error)
    assert "overlap 0.25" in str(outcome.error)


def test_another_scan_of_the_same_name_is_not_taken_for_finished(tmp_path: Path, model: Model) -> None:
    """Two hospitals both have a patient 001."""
    write_scan(tmp_path / "north" / "001.nii.gz", (8, 8, 8))
    write_scan(tmp_path / "south" / "001.nii.gz", (8, 8, 9))
    north, south = (find_scans(tmp_path / side, intensity="mr") for side in ("north", "south"))
    predict_cohort(model, north, tmp_path / "out")
    (outcome,) = predict_cohort(model, south, tmp_path / "out")
    assert "grid of this scan" in str(outcome.error)
    (tmp_path / "north" / "001.nii.gz").unlink()
    assert predict_cohort(model, north, tmp_path / "out")[0].error is None
    (tmp_path / "out" / "001.nii.gz").write_bytes(b"damaged")
    (outcome,) = predict_cohort(model, south, tmp_path / "out")
    assert "a damaged file" in str(outcome.error)


def test_a_failing_scan_costs_only_itself(tmp_path: Path, model: Model) -> None:
    cohort(tmp_path / "in")
    damaged = tmp_path / "in" / "large.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:400])
    (tmp_path / "in" / "gone.txt").write_text("nowhere.nii.gz")
    scans = [
        *find_scans(tmp_path / "in", intensity="mr"),
        *find_scans(tmp_path / "in" / "gone.txt", intensity="mr"),
    ]
    outcomes = predict_cohort(model, scans, tmp_path / "out")
    errors = {outcome.item.id: outcome.error for outcome in outcomes}
    assert [name for name, error in errors.items() if error is None] == ["middle", "small"]
    assert isinstance(errors["large"], DataError)
    rows = failures(tmp_path / "out")
    assert [row["case"] for row in rows] == ["large", "nowhere"]
    assert rows[0]["file"] == str(damaged)
    assert "no such file" in rows[1]["message"]
    write_scan(damaged, (8, 8, 8))
    predict_cohort(model, scans[:-1], tmp_path / "out")
    assert not (tmp_path / "out" / "failed.csv").exists()


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (MemoryError(), ResourceError),
        (CheckpointError("broken"), CheckpointError),
        (OSError(5, "I/O"), ResourceError),
    ],
)
def test_failures_of_the_network_are_outcomes_too(
    tmp_path: Path, model: Model, failure: Exception, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise failure

    write_scan(tmp_path / "in" / "a.nii.gz", (8, 8, 8))
    model.predictor.register_forward_pre_hook(fail)
    (outcome,) = predict_cohort(model, find_scans(tmp_path / "in", intensity="mr"), tmp_path / "out")
    assert isinstance(outcome.error, kind)
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_a_defect_of_the_program_is_not_swallowed(tmp_path: Path, model: Model) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    cohort(tmp_path / "in")
    model.predictor.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        predict_cohort(model, find_scans(tmp_path / "in", intensity="mr"), tmp_path / "out")


def test_progress_counts_scans(tmp_path: Path, model: Model) -> None:
    cohort(tmp_path / "in")
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(model, scans[:1], tmp_path / "out")
    calls: list[tuple[str, int, int]] = []
    predict_cohort(model, scans, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls == [("predict", 1, 3), ("predict", 2, 3), ("predict", 3, 3)]


def test_inputs_are_never_replaced(tmp_path: Path, model: Model) -> None:
    write_scan(tmp_path / "a.nii.gz", (8, 8, 8))
    before = (tmp_path / "a.nii.gz").read_bytes()
    with pytest.raises(ConfigError, match="replace an input"):
        predict_cohort(model, find_scans(tmp_path, intensity="mr"), tmp_path / "x" / "..", overwrite=True)
    assert (tmp_path / "a.nii.gz").read_bytes() == before


def test_scans_with_one_id_are_refused(tmp_path: Path, model: Model) -> None:
    scans = [Scan("a", (tmp_path / name,), "mr") for name in ("1.nii.gz", "2.nii.gz")]
    with pytest.raises(ConfigError, match="same id"):
        predict_cohort(model, scans, tmp_path / "out")


def test_an_output_folder_that_is_a_file_is_found_before_the_network_runs(
    tmp_path: Path, model: Model
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", (8, 8, 8))
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="is a file"):
        predict_cohort(model, find_scans(tmp_path / "in", intensity="mr"), tmp_path / "out")
    assert model.predictor.shapes == []


def test_at_most_one_scan_is_read_ahead(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original: Callable[..., Volume] = given.read_image

    def counting(paths: list[Path], layout: object) -> Volume:
        read.append(paths[0].name)
        return original(paths, layout)

    monkeypatch.setattr(given, "read_image", counting)
    for number in range(5):
        write_scan(tmp_path / "in" / f"{number}.nii.gz", (8, 8, 8))
    ahead: list[int] = []
    predict_cohort(
        model,
        find_scans(tmp_path / "in", intensity="mr"),
        tmp_path / "out",
        progress=lambda task, done, total: ahead.append(len(read) - done),
    )
    assert len(read) == 5
    assert max(ahead) <= 1


def test_no_scan_is_no_work(tmp_path: Path, model: Model) -> None:
    assert predict_cohort(model, [], tmp_path / "out") == []


@pytest.mark.parametrize("same_time", [True, False])
def test_a_result_of_a_scan_that_was_replaced_is_not_kept(
    tmp_path: Path, model: Model, same_time: bool
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", (9, 8, 7))
    scans = find_scans(tmp_path / "in", intensity="mr")
    predict_cohort(model, scans, tmp_path / "out")
    assert predict_cohort(model, scans, tmp_path / "out")[0].error is None
    before = (tmp_path / "in" / "a.nii.gz").stat()
    expected = write_scan(tmp_path / "in" / "a.nii.gz", (9, 8, 7), seed=1)
    if same_time:
        os.utime(tmp_path / "in" / "a.nii.gz", ns=(before.st_atime_ns, before.st_mtime_ns))
    (outcome,) = predict_cohort(model, scans, tmp_path / "out")
    assert "replaced" in str(outcome.error)
    assert "--overwrite" in str(outcome.error)
    predict_cohort(model, scans, tmp_path / "out", overwrite=True)
    found = np.asanyarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("depth", [None, 1, 3])
def test_labels_have_as_many_axes_as_their_scan(tmp_path: Path, suffix: str, depth: int | None) -> None:
    """An image of two axes gives labels of two axes, a volume of one slice a volume of one slice."""
    shape = (12, 10) if depth is None else (12, 10, depth)
    image = np.random.default_rng(depth).normal(size=shape).astype(np.float32)
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / f"a.{suffix}"
    if suffix.startswith("nii"):
        nibabel.save(nibabel.Nifti1Image(image, np.diag([2.0, 2, 3, 1])), file)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image.T), str(file))
    flat = thresholding(patch_size=(8, 8, 1))
    predict_cohort(flat, find_scans(tmp_path / "in", intensity="mr"), tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    assert written.shape == shape
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), image > 0)
