"""From folders of scans to a report, by commands alone: what each prints, and what lies on the disk then."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY_SETTINGS
from labelwise import Volume, read_manifest
from labelwise.formats import read_geometry, write_image, write_labels
from labelwise.loading.store import Store
from labelwise.synthetic.generate import SyntheticConfig, make_scan

SETTINGS = [
    word for name, value in TINY_SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")
]
CLASSES = "liver=1,spleen=2"
# `labelwise.run.train` is the function; these are the files.
training = importlib.import_module("labelwise.run.train")
demonstration = importlib.import_module("labelwise.run.demo")


def write_scan(
    folder: Path, image: str, label: str | None = None, structures: int = 2, size: int = 12
) -> None:
    """A CT of a few voxels with boxes for structures."""
    random = np.random.default_rng(len(image))
    voxels = random.normal(40, 10, (1, size, size, size)).astype(np.float32)
    labels = np.zeros(voxels.shape[1:], np.uint8)
    for structure in range(1, structures + 1):
        labels[structure * 3 : structure * 3 + 2, 2:6, 2:6] = structure
    write_image(folder / image, Volume(voxels, np.diag([5.0, 5.0, 5.0, 1.0])))
    if label:
        write_labels(folder / label, Volume(labels, np.diag([5.0, 5.0, 5.0, 1.0])))


@pytest.fixture
def nnunet_folder(tmp_path):
    folder = tmp_path / "Dataset001"
    for case in ("a", "b", "c"):
        write_scan(folder, f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz")
    write_scan(folder, "imagesTr/d_0000.nii.gz")
    write_scan(folder, "imagesTs/e_0000.nii.gz", "labelsTs/e.nii.gz")
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    (folder / "dataset.json").write_text(json.dumps({**facts, "file_ending": ".nii.gz", "numTraining": 4}))
    return folder


@pytest.fixture
def plain_folder(tmp_path):
    folder = tmp_path / "clinic"
    for case in ("p1", "p2"):
        write_scan(folder, f"images/{case}.nii.gz", f"labels/{case}.nii.gz")
    return folder


def annotated(folder: Path) -> dict[str, set[str]]:
    return {case.id: set(case.annotated) for case in read_manifest(folder).cases}


# import


def test_a_data_set_of_nnunet_is_imported(command, nnunet_folder, tmp_path):
    answer = command("import", nnunet_folder, "-o", tmp_path / "data")
    assert answer.code == 0
    assert "4 train, 1 test; classes liver, spleen" in answer.out
    assert annotated(tmp_path / "data") == {
        **{case: {"liver", "spleen"} for case in "abce"},
        "d": set(),
    }


def test_plain_folders_are_imported_with_their_classes(command, plain_folder, tmp_path):
    answer = command(
        "import",
        plain_folder,
        "-o",
        tmp_path / "data",
        "--classes",
        CLASSES,
        "--modality",
        "ct",
        "--test",
        1,
        "--json",
    )
    assert answer.code == 0
    facts = json.loads(answer.out)
    assert facts["classes"] == ["background", "liver", "spleen"]
    assert facts["cases"] == {"train": 1, "validation": 0, "test": 1, "none": 0}


def test_two_data_sets_are_merged_and_each_annotates_its_own_structures(
    command, nnunet_folder, plain_folder, tmp_path
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert command("import", nnunet_folder, "-o", first).code == 0
    answer = command(
        "import", f"public={nnunet_folder}", f"clinic={nnunet_folder}", "-o", second,
        "--annotated", "public=liver", "--annotated", "clinic=liver,spleen",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = annotated(second)
    assert found["public_a"] == {"liver"}
    assert found["clinic_a"] == {"liver", "spleen"}
    assert found["public_d"] == found["clinic_d"] == set()


def test_a_number_of_patients_is_whole(command, plain_folder, tmp_path):
    options = ("--classes", CLASSES, "--modality", "ct", "--test", 1.5)
    answer = command("import", plain_folder, "-o", tmp_path / "data", *options)
    assert answer.code == 2
    assert "found     1.5" in answer.err


def test_annotated_for_a_data_set_that_is_not_there_is_refused(command, nnunet_folder, tmp_path):
    answer = command("import", f"public={nnunet_folder}", "-o", tmp_path / "x", "--annotated", "publik=liver")
    assert answer.code == 2
    assert "did you mean 'public'?" in answer.err
    assert not (tmp_path / "x").exists()


def test_an_import_of_folders_without_classes_says_what_is_missing(command, plain_folder, tmp_path):
    answer = command("import", plain_folder, "-o", tmp_path / "x")
    assert answer.code == 2
    assert "classes" in answer.err
    assert not (tmp_path / "x").exists()


# check, simulate, prepare


def test_check_prints_the_coverage_and_the_count_of_problems(command, tiny_cohort):
    answer = command("check", tiny_cohort)
    assert answer.code == 0
    assert "north" in answer.out
    assert "0 errors" in answer.out
    assert "check" not in answer.out  # progress goes to stderr
    assert "check  6/6" in answer.err


def test_check_as_json_is_one_document(command, tiny_cohort):
    answer = command("check", tiny_cohort, "--json")
    assert json.loads(answer.out)["errors"] == 0
    assert all(json.loads(line)["task"] == "check" for line in answer.err.splitlines())


def test_check_that_finds_an_error_ends_with_3(command, tiny_cohort, tmp_path):
    data = shutil.copytree(tiny_cohort, tmp_path / "data", ignore=shutil.ignore_patterns("store"))
    next(data.glob("labels/north*")).write_bytes(b"nothing")
    answer = command("check", data, "--quiet")
    assert answer.code == 3
    assert re.search(r"^error +north_000 ", answer.out, flags=re.MULTILINE)
    assert not answer.err


def test_simulate_hides_annotation(command, tiny_cohort, tmp_path):
    answer = command("simulate", tiny_cohort, "-o", tmp_path, "--mode", "keep_labelled", "--set", "n=1")
    assert answer.code == 0
    assert "1 of 3 training cases annotated, 2 masks" in answer.out
    assert annotated(tmp_path)["south_000"] == set()


@pytest.mark.parametrize("setting", ["manifest=1", "mode=x", "data=x", "n=many", "held_out=1", "nn=1"])
def test_simulate_refuses_settings_that_no_mode_has(command, tiny_cohort, tmp_path, setting):
    answer = command(
        "simulate", tiny_cohort, "-o", tmp_path / "x", "--mode", "keep_labelled", "--set", setting
    )
    assert answer.code == 2
    assert setting.split("=")[0] in answer.err
    assert not (tmp_path / "x").exists()


def test_another_manifest_is_never_replaced(command, plain_folder, tmp_path):
    """It may be corrected by hand, and it may be the one that a simulation begins with."""
    data = tmp_path / "data"
    imported = ("import", plain_folder, "-o", data, "--classes", CLASSES, "--modality", "ct")
    hidden = ("simulate", data, "--mode", "keep_labelled", "--set", "n=1")
    assert command(*imported).code == command(*imported).code == 0
    before = (data / "manifest.csv").read_bytes()
    answer = command(*hidden, "-o", data)
    assert answer.code == 2
    assert "the output folder holds another manifest" in answer.err
    assert str(data / "manifest.csv") in answer.err
    assert (data / "manifest.csv").read_bytes() == before

    assert command(*hidden, "-o", tmp_path / "scarce").code == 0
    for text in (before.replace(b"all", b"liver", 1), b"damaged"):
        (data / "manifest.csv").write_bytes(text)
        assert command(*imported).code == 2
        assert (data / "manifest.csv").read_bytes() == text


def test_prepare_does_only_what_is_missing(command, tiny_cohort):
    spacing = ("--set", "prepare.spacing_mm=[14.0, 14.0, 14.0]")
    answer = command("prepare", tiny_cohort, *spacing)
    assert answer.code == 0
    assert answer.out.rstrip().endswith("6 scans, 0 of them new")
    assert json.loads(command("prepare", tiny_cohort, *spacing, "--json").out)["written"] == 0


def test_prepare_takes_the_intensities_of_a_protocol(command, tiny_cohort, tmp_path):
    rule = "{scheme = 'ct', clip = [-325, 325], mean = 0, std = 325}"
    where = ("--set", "prepare.spacing_mm=[14.0, 14.0, 14.0]", "--set", f"prepare.store={tmp_path}")
    assert command("prepare", tiny_cohort, *where, "--set", f"prepare.intensity.ct={rule}").code == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    store = Store(folder)
    for case in read_manifest(tiny_cohort).cases:
        values = store.case(case.id).image()
        assert values.min() == -1  # air
        assert 0 < values.max() <= 1
    answer = command("prepare", tiny_cohort, *where, "--set", "prepare.intensity.mr.scheme=mr")
    assert answer.code == 2
    assert "no training scan has such intensities" in answer.err
    assert "prepare.intensity.mr" in answer.err


# train


def test_train_writes_a_run_folder(command, tiny_cohort, tmp_path):
    folder = tmp_path / "run"
    answer = command("train", "--data", tiny_cohort, "-o", folder, "--method", "naive", *SETTINGS)
    assert answer.code == 0, answer.err
    assert answer.out == f"{folder}: 4 steps, model in {folder}/model\n"
    assert "train naive  4/4" in answer.err
    assert {path.name for path in folder.iterdir()} == {
        *("run.toml", "environment.json", "patients.json", "cost.json", "log.jsonl"),
        *("last.safetensors", "best.safetensors", "model"),
    }


def test_train_says_that_cases_without_annotation_are_not_used(command, tiny_cohort, tmp_path):
    answer = command("train", "--data", tiny_cohort, "-o", tmp_path, "-q", "--json", *SETTINGS)
    assert answer.code == 0
    assert (
        answer.err == "info: 1 of 3 training cases are not annotated; supervised does not learn from them\n"
    )
    assert json.loads(answer.out)["steps"] == 4


def test_an_interrupted_train_ends_with_130_and_repeating_it_resumes(
    command, tiny_cohort, tmp_path, monkeypatch
):
    fit = training.fit

    def interrupted(stage, config, fabric, report):
        def stopping(task, done, total, message=""):
            report(task, done, total, message)
            if done == 2:
                signal.raise_signal(signal.SIGINT)

        return fit(stage, config, fabric, stopping)

    arguments = ("train", "--data", tiny_cohort, "-o", tmp_path, "--method", "mean_teacher", *SETTINGS)
    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", interrupted)
        answer = command(*arguments)
    assert answer.code == 130
    assert "2 steps, interrupted; repeat the command to continue" in answer.out
    assert not (tmp_path / "model").exists()
    answer = command(*arguments)
    assert answer.code == 0
    assert "4 steps, model in" in answer.out


def test_train_dry_run_prints_the_settings_and_writes_nothing(command, tmp_path):
    answer = command("train", "--set", "seed=5", "-o", tmp_path / "x", "--dry-run")
    assert answer.code == 0
    assert "seed = 5" in answer.out
    assert not (tmp_path / "x").exists()
    assert json.loads(command("train", "--dry-run", "--json").out)["net"]["name"] == "unet"


def test_train_with_overwrite_begins_anew_and_spares_what_no_run_has_written(
    command, tiny_cohort, tiny_run, tmp_path
):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    arguments = ("train", "--data", tiny_cohort, "-o", folder, *SETTINGS, "--set", "train.steps=2")
    assert command(*arguments).code == 1
    assert (folder / "scores.csv").exists()
    answer = command(*arguments, "--overwrite")
    assert answer.code == 0, answer.err
    assert not (folder / "scores.csv").exists()
    assert not (folder / "predictions").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert "steps = [2]" in (folder / "run.toml").read_text()


def test_overwrite_with_wrong_settings_leaves_the_old_run_alone(command, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    answer = command("train", "--data", tmp_path / "nowhere", "-o", folder, *SETTINGS, "--overwrite")
    assert answer.code == 3
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


# predict


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three scans of other sizes than those of the training, one of them smaller than a patch."""
    folder = tmp_path_factory.mktemp("scans")
    for name, shape in (("one", (20, 22, 16)), ("three", (24, 20, 18)), ("two", (8, 7, 5))):
        image, _ = make_scan(1)
        x, y, z = (
            slice((full - size) // 2, (full + size) // 2)
            for full, size in zip(image.shape, shape, strict=True)
        )
        write_image(folder / f"{name}.nii.gz", Volume(image.data[:, x, y, z], image.affine))
    return folder


def predicted(answer, folder: Path) -> list[str]:
    assert answer.code == 0, answer.err
    return sorted(path.name for path in folder.glob("*.nii.gz"))


def test_predict_a_file(command, tiny_run, scans, tmp_path):
    answer = command("predict", tiny_run, scans / "one.nii.gz", "-o", tmp_path, "-d", "cpu")
    assert predicted(answer, tmp_path) == ["one.nii.gz"]
    assert f"{tmp_path}: 1 scan segmented, 0 failed" in answer.out
    result, scan = read_geometry(tmp_path / "one.nii.gz"), read_geometry(scans / "one.nii.gz")
    assert result.matches(scan)


def test_predict_a_folder_and_repeat_it(command, tiny_run, scans, tmp_path):
    arguments = ("predict", tiny_run / "model", scans, "-o", tmp_path, "-d", "cpu", "--json")
    assert predicted(command(*arguments), tmp_path) == ["one.nii.gz", "three.nii.gz", "two.nii.gz"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.nii.gz")}
    (tmp_path / "two.nii.gz").unlink()
    answer = command(*arguments)
    assert set(json.loads(answer.out)["written"]) == {"one", "two", "three"}
    kept = {path for path in times if path.stat().st_mtime_ns == times[path]}
    assert {path.name for path in kept} == {"one.nii.gz", "three.nii.gz"}


def test_predict_a_list(command, tiny_run, scans, tmp_path):
    (tmp_path / "list.txt").write_text(f"# two of them\n{scans / 'one.nii.gz'}\n{scans / 'two.nii.gz'}\n")
    answer = command("predict", tiny_run, tmp_path / "list.txt", "-o", tmp_path / "out", "-d", "cpu")
    assert predicted(answer, tmp_path / "out") == ["one.nii.gz", "two.nii.gz"]


def test_predict_a_split_of_a_manifest_with_other_settings(command, tiny_run, tiny_cohort, tmp_path):
    answer = command(
        "predict", tiny_run, tiny_cohort, "-o", tmp_path, "--split", "validation", "-d", "cpu",
        "--set", "overlap=0.25", "--set", "postprocess.largest_component=true",
    )  # fmt: skip
    assert predicted(answer, tmp_path) == ["validation_000.nii.gz"]
    record = json.loads((tmp_path / "validation_000.json").read_text())["inference"]
    assert record["overlap"] == 0.25
    assert record["postprocess"]["largest_component"] is True


def test_one_scan_that_fails_does_not_stop_the_others(command, tiny_run, scans, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "scans")
    (folder / "three.nii.gz").write_bytes((folder / "three.nii.gz").read_bytes()[:500])
    answer = command("predict", tiny_run, folder, "-o", tmp_path / "out", "-d", "cpu")
    assert answer.code == 1
    assert "2 scans segmented, 1 failed" in answer.out
    assert "case 'three': " in answer.out
    assert "three.nii.gz" in answer.out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["one.nii.gz", "two.nii.gz"]
    assert "three" in (tmp_path / "out" / "failed.csv").read_text()
    shutil.copy(scans / "three.nii.gz", folder)
    assert command("predict", tiny_run, folder, "-o", tmp_path / "out", "-d", "cpu").code == 0
    assert not (tmp_path / "out" / "failed.csv").exists()


# evaluate, compare, report


def test_evaluate_against_a_manifest(command, tiny_run, tiny_cohort, tmp_path):
    scores = tmp_path / "scores.csv"
    answer = command("evaluate", tiny_run, tiny_cohort, "-o", scores, "--unit", "voxels")
    assert answer.code == 0
    assert "Mean Dice over 4 structures" in answer.out
    assert f"scores: {scores}" in answer.out
    assert scores.read_text().count("test_000") == scores.read_text().count("test_001") > 0


def test_evaluate_against_a_folder(command, tiny_run, tmp_path):
    predictions = tiny_run / "predictions"
    references = shutil.copytree(predictions, tmp_path / "references")
    (references / "._test_000.nii.gz").write_bytes(b"what macOS leaves")
    answer = command("evaluate", predictions, references, "-o", tmp_path / "s.csv", "--json")
    assert answer.code == 0, answer.err
    classes = json.loads(answer.out)["summary"]["classes"]
    assert {row["mean"] for row in classes if row["metric"] == "dice"} <= {1.0, None}


def test_compare_and_report(command, tiny_run, tmp_path):
    second = shutil.copytree(tiny_run, tmp_path / "second")
    answer = command("compare", tiny_run, second, "--metrics", "dice")
    assert answer.code == 0
    assert "Difference to first" in answer.out
    assert json.loads(command("compare", tiny_run, second, "--json").out)
    page = tmp_path / "page" / "report.html"
    answer = command("report", tiny_run, second, "-o", page, "--title", "Two & more")
    assert answer.code == 0
    assert "Two &amp; more" in page.read_text()
    assert "test_000" in page.read_text()


def test_report_of_a_run_that_was_evaluated_on_another_manifest(command, tiny_run, tiny_cohort, tmp_path):
    """Its scans are not in the manifest of the training: there is a page, without their pictures."""
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    for file in [*folder.glob("predictions/*"), folder / "scores.csv"]:
        if file.name == "scores.csv":
            file.write_text(file.read_text().replace("test_00", "elsewhere_00"))
        else:
            file.rename(file.with_name(file.name.replace("test_00", "elsewhere_00")))
    assert command("report", folder, "-o", tmp_path / "page.html").code == 0
    assert "elsewhere_000" not in (tmp_path / "page.html").read_text()


# methods, doctor, demo


def test_methods_lists_every_method(command):
    answer = command("methods")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == [
        "name",
        *(row["name"] for row in json.loads(command("methods", "--json").out)),
    ]


def test_doctor_names_the_device_and_the_speed(command):
    answer = command("doctor", "--json")
    assert answer.code == 0
    facts = json.loads(answer.out)
    measured = [name for name in facts if name.endswith(("_ms", "_gflops", "_per_s"))]
    assert len(measured) == 9
    assert all(facts[name] > 0 for name in measured)
    assert "of a step" in facts["limit"]
    assert facts["precision_auto"] in ("bf16", "float32", "measured when a training begins")
    assert facts["version torch"]


def test_the_demo_runs_through_and_repeating_it_trains_nothing(command, tmp_path, monkeypatch):
    few = partial(SyntheticConfig, cases_per_site=1, unlabelled=1, validation=1, test=1, shape=(32, 26, 20))
    monkeypatch.setattr(demonstration, "SyntheticConfig", few)
    monkeypatch.setattr(demonstration, "SETTINGS", TINY_SETTINGS)
    answer = command("demo", "-o", tmp_path, "--steps", 2)
    assert answer.code == 0, answer.err
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert "self_training" in answer.out
    before = (tmp_path / "naive" / "log.jsonl").read_bytes()
    answer = command("demo", "-o", tmp_path, "--steps", 2, "--json", "--quiet")
    assert answer.code == 0
    assert json.loads(answer.out)["report"].endswith("report.html")
    assert (tmp_path / "naive" / "log.jsonl").read_bytes() == before


def test_an_interrupted_demo_ends_with_130(command, tmp_path, monkeypatch):
    monkeypatch.setattr(demonstration, "_cohort", lambda folder, seed, progress: folder)
    stopped = training.TrainingResult(tmp_path, steps=1, interrupted=True, best_score=None)
    monkeypatch.setattr(demonstration, "train", lambda *arguments, **options: stopped)
    assert command("demo", "-o", tmp_path).code == 130
