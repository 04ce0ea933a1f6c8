"""Scores say what they are of, a page compares equals and says how they came about, and nobody's folders."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import tiny_config
from labelwise import read_manifest, run, write_manifest
from labelwise.formats import read_labels, write_labels
from labelwise.report.overlays import case_pictures, choose_slice
from labelwise.run.circumstances import without_folders
from labelwise.types import LabelSpace, Volume

pytestmark = pytest.mark.usefixtures("one_process")


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def finished(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "first")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("way", ["the run", "its model folder", "a copy of it", "renamed scans"])
def test_scores_say_the_split_and_whether_the_model_has_seen_the_patient(
    finished, tiny_cohort, tmp_path, split, way
):
    """Also where the predictions lie elsewhere, and where the scans have other names: their contents are known."""
    manifest = read_manifest(tiny_cohort)
    cases = [case for case in manifest.split(split) if case.annotated]
    model = finished / "model" if way == "its model folder" else finished
    if way == "a copy of it":
        model = shutil.copytree(finished / "model", tmp_path / "given away")
    if way == "renamed scans":
        for case in cases:
            (tmp_path / "scans").mkdir(exist_ok=True)
            shutil.copy(case.images[0], tmp_path / "scans" / f"copy_of_{case.id}.nii.gz")
        run.predict(model, tmp_path / "scans", tmp_path / "out", device="cpu")
        for file in (tmp_path / "out").glob("copy_of_*"):
            file.rename(file.with_name(file.name.removeprefix("copy_of_")))
    else:
        run.predict(model, tiny_cohort, tmp_path / "out", split=split, device="cpu")
    result = run.evaluate(tmp_path / "out", tiny_cohort, split=split, workers=1)
    rows = rows_of(result.file)
    seen = "" if split == "test" else split
    assert {(row["case"], row["split"], row["seen"]) for row in rows} == {(c.id, split, seen) for c in cases}
    comparison = run.compare([tmp_path / "out"])
    page = run.report([tmp_path / "out"], tmp_path / "page.html").read_text(encoding="utf-8")
    for told in (result.to_text(), comparison.to_text(), page):
        assert f"split {split}" in told
        assert ("its scores are no test" in told) == bool(seen)
    assert {row["split"] for row in csv.DictReader(comparison.to_csv().splitlines())} == {split}
    assert json.loads(comparison.to_json())["splits"] == {"out": [split]}


def test_what_a_run_started_from_counts_as_seen(finished, tiny_cohort, tmp_path):
    """The second run learns from what was the test, and its first weights come from all of the first run's scans."""
    manifest = read_manifest(tiny_cohort)
    swap = {"train": "test", "test": "train"}
    cases = [replace(case, split=swap.get(case.split, case.split)) for case in manifest.cases]
    write_manifest(manifest.replace_cases(cases), tmp_path / "data")
    config = tiny_config(tmp_path / "data", warm_start=str(finished), prepare__store=str(tmp_path / "store"))
    run.train(config, tmp_path / "second")
    record = json.loads((tmp_path / "second" / "patients.json").read_text())
    first = json.loads((finished / "patients.json").read_text())
    assert set(record["before"]) == {*first["train"], *first["validation"]}
    assert set(first["scans"]["train"]) <= set(record["scans"]["train"])


@pytest.mark.parametrize(
    "parts", [("seed0", "seed1"), ("seed0", "seed1", "seed7"), ("seed0_fold0", "seed1_fold0")]
)
def test_a_repetition_that_is_the_same_model_is_no_repetition(finished, tmp_path, parts):
    """A copy, or a second training with the same seed, which gives the same weights bit for bit."""
    runs = [shutil.copytree(finished, tmp_path / f"method_{part}") for part in parts]
    told = " ".join(run.compare(runs).cautions())
    named = " and ".join(re.sub(r"_?([a-z]+)(\d+)", r" \1 \2", part).strip() for part in parts)
    assert f"{named} of method are one and the same model" in told
    assert "same model" not in " ".join(run.compare(runs[:1]).cautions())


def test_every_run_is_shown_in_the_same_slices_of_a_patient():
    """Whatever a method gets wrong, and wherever: planes, slices and the part that is shown are the same."""
    chance = np.random.default_rng(3)
    space = LabelSpace(("background", "liver", "spleen"))
    for _ in range(4):
        shape = tuple(chance.integers(9, 14, 3).tolist())
        image = Volume(chance.normal(size=(1, *shape)).astype(np.float32), np.diag([1.5, 1.0, 3.0, 1.0]))
        reference = np.zeros(shape, np.uint8)
        reference[3:6, 3:6, 3:6] = 1
        predictions = {}
        for name in "abc":
            labels = reference.copy()
            place = [int(chance.integers(0, n - 2)) for n in shape]
            labels[tuple(slice(at, at + 2) for at in place)] = 2
            predictions[name] = labels
        dice = {name: {"liver": 1.0, "spleen": 0.0} for name in predictions}
        shown = case_pictures("one", image, reference, predictions, label_space=space, dice=dice)
        assert len({picture.picture.caption for picture in shown}) == 1
        assert len({_size(picture.picture.data) for picture in shown}) == 1
        wrong = sum((labels != reference).sum(axis=(0, 1)) for labels in predictions.values())
        assert wrong[choose_slice(reference, *predictions.values())] == wrong.max()


def _size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


@pytest.fixture(scope="module")
def page_of_seeds(
    finished: Path, tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A report of two runs, one of them with three seeds that differ in more than their seed."""
    folder = tmp_path_factory.mktemp("seeds")
    other = shutil.copytree(finished, folder / "other")
    for seed in range(3):
        copy = shutil.copytree(finished, folder / f"method_seed{seed}")
        text = (copy / "run.toml").read_text()
        text = re.sub(r"(?m)^seed = .*$", f"seed = {seed}", text)
        text = re.sub(r"(?m)^rate = .*$", f"rate = 0.0{seed + 1}", text, count=1)
        (copy / "run.toml").write_text(text)
        lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
        for line in lines:
            if line["event"] == "train":
                line["terms"] = {"supervised": line["loss"], "consistency": 0.1 + seed}
                line["loss"] += 0.1 + seed
        (copy / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (copy / "cost.json").write_text(json.dumps({"training_hours": 2.0 + seed, "ram_gib": 1.5}))
        expected = {"training_hours": 0.5, "ram_gib": 1.0, "gpu_gib": None, "disk_gib": 0.25}
        came = expected | {"training_hours": 2.0 + seed, "ram_gib": 1.5}
        (copy / "plan.json").write_text(json.dumps({"forecast": expected, "truth": came}))
        if seed == 0:  # the picture shows this seed, and so must the numbers under it
            file = copy / "predictions" / "test_000.nii.gz"
            labels = read_labels(file)
            write_labels(file, Volume(np.zeros_like(labels.data), labels.affine))
            run.evaluate(copy, tiny_cohort, workers=1)
    seeds = [folder / f"method_seed{seed}" for seed in range(3)]
    page = run.report([other, *seeds], folder / "page.html").read_text(encoding="utf-8")
    return page, folder


def test_settings_and_curves_of_every_seed_are_shown(page_of_seeds):
    page, _ = page_of_seeds
    assert "<dt>seed</dt><dd>0; 1; 2</dd>" in page
    assert re.search(r"<dt>train\.optimizer\.rate</dt><dd>0\.01; 0\.02; 0\.03</dd>", page)
    assert "Loss of every seed" in page
    for seed in range(3):
        assert re.search(rf"<figcaption>Loss and its terms, seed {seed}", page)


def test_the_dice_under_a_picture_is_that_of_the_picture(page_of_seeds):
    page, folder = page_of_seeds
    figures = re.findall(r"<figure><img.*?</figure>", page, flags=re.DOTALL)
    shown = [figure for figure in figures if "<strong>test_000</strong> method, seed 0" in figure]
    assert shown
    first = {row["class"]: float(row["value"]) for row in rows_of(folder / "method_seed0" / "scores.csv")
             if (row["case"], row["metric"]) == ("test_000", "dice")}  # fmt: skip
    for structure, value in first.items():
        assert f"{structure} {100 * value:.1f}" in shown[0]


def test_environment_commit_date_and_cost_stand_in_the_page(page_of_seeds, finished):
    page, _ = page_of_seeds
    environment = json.loads((finished / "environment.json").read_text())
    for told in (environment["date"], environment["cpu"], f"torch {environment['versions']['torch']}"):
        assert told in page
    assert environment["commit"] is None or environment["commit"] in page
    assert "<dt>training</dt><dd>2.0 h; 3.0 h; 4.0 h</dd>" in page
    assert re.search(r"<dt>prediction</dt><dd>[0-9.]+ s a scan on cpu", page)
    cost = json.loads((finished / "cost.json").read_text())
    assert cost["training_hours"] > 0
    assert cost["ram_gib"] > 0


def test_what_was_expected_of_a_training_stands_beside_what_it_took(page_of_seeds):
    """The mean over the seeds; nothing is told of a run that nobody forecast, nor of a GPU that was not there."""
    page, _ = page_of_seeds
    table = re.search(r"<caption>Forecast and truth.*?</table>", page, flags=re.DOTALL)[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", table).replace("&nbsp;", " "))
    assert (
        "run training memory disk method 3.0 h forecast 30.0 min 1.50 GiB forecast 1.00 GiB 0.25 GiB" in text
    )
    assert "other" not in text


def test_no_folder_of_anybody_stands_in_a_page(page_of_seeds, finished):
    page, folder = page_of_seeds
    assert str(folder) not in page
    data = re.search(r"(?m)^data = (.*)$", (finished / "run.toml").read_text())
    assert data
    assert data.group(1).strip("'\"") not in page
    text = re.sub(r"base64,[^\"]*|<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"[\"'> (](/[a-z]+){2,}|[A-Z]:\\\\", text)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/doctor/patients/liver", "liver"),
        ("C:\\Users\\doctor\\liver", "liver"),
        ("\\\\server\\share\\liver", "liver"),
        ("~/liver", "liver"),
        ("relative/liver", "relative/liver"),
        ("supervised", "supervised"),
        (["/a/b", 3, {"x": "/c/d"}], ["b", 3, {"x": "d"}]),
        (None, None),
        (0.5, 0.5),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(value, told):
    assert without_folders(value) == told
