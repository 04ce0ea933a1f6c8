"""`evaluate --metrics`: further metrics stand in the table, are compared, and need what they are made from."""

from __future__ import annotations

import math
import sys
from importlib.metadata import EntryPoint

import pytest

from labelwise import run
from labelwise.errors import ConfigError, DataError, LabelwiseError
from labelwise.evaluate.scores import Score, read_scores
from labelwise.report.compare import compare


@pytest.mark.usefixtures("one_process")
def test_metrics_on_request_are_scored_and_compared(command, tiny_run, tiny_cohort, tmp_path):
    out = tmp_path / "again"
    assert not run.predict(
        tiny_run, tiny_cohort, out / "predictions", device="cpu", maps=("probabilities",)
    ).failed
    asked = "lesions,boundary_iou,calibration_error"
    answer = command("evaluate", out, tiny_cohort, "--metrics", asked)
    assert answer.code == 0, answer.err
    assert all(title in answer.out for title in ("Lesion F1", "Boundary IoU [%]", "HD95 [mm]"))
    scores = {(s.case, s.class_name, s.metric): s for s in read_scores(out / "scores.csv")}
    errors = [
        s.value for s in scores.values() if s.metric == "calibration_error" and s.status != "not_annotated"
    ]
    assert errors
    assert all(0 <= value <= 1 for value in errors)
    assert all(
        ("test_000", structure, "lesion_f1") in scores
        for structure in ("liver", "spleen", "pancreas", "kidneys")
    )
    table = command("compare", out, "--metrics", "lesion_f1,boundary_iou,calibration_error").out
    assert "Boundary IoU [%]" in table
    assert "Volume, prediction minus reference [ml]" in table


def test_a_calibration_error_without_maps_and_unknown_metrics_are_refused(tiny_run, tiny_cohort, tmp_path):
    with pytest.raises(DataError, match="with --maps probabilities"):
        run.evaluate(tiny_run, tiny_cohort, tmp_path / "s.csv", metrics=["calibration_error"], workers=1)
    with pytest.raises(ConfigError, match=r"unknown metric 'lesion'.*did you mean 'lesions'"):
        run.evaluate(tiny_run, tiny_cohort, tmp_path / "s.csv", metrics=["lesion"], workers=1)
    with pytest.raises(ConfigError, match="la_official has its metrics"):
        run.evaluate(tiny_run, tiny_cohort, tmp_path / "s.csv", metrics=["lesions"], variant="la_official")
    assert not (tmp_path / "s.csv").exists()


def test_the_bias_of_volumes_has_its_limits_of_agreement():
    scores = [
        Score(f"c{n}", "liver", metric, value, "ok", unit)
        for n, difference in enumerate((1.0, 2.0, 3.0))
        for metric, value, unit in (("dice", 0.9, ""), ("volume_difference", difference, "ml"))
    ]
    found = compare({"a": scores}, ["dice"])
    assert found.volumes["a", "liver"].bias == 2
    assert found.volumes["a", "liver"].high == pytest.approx(2 + 1.96)
    assert "+2.00  [+0.04, +3.96]" in found.to_text()
    without = compare({"a": [s for s in scores if s.metric == "dice"]}, ["dice"])
    assert without.volume_table() is None
    assert math.isfinite(without.cells["a", "liver", "dice"].mean)


FAILING = {
    "raises": ("1 / 0", "fails: ZeroDivisionError"),
    "gives text": ("return 'good'", "fails: ValueError"),
    "gives nothing": ("return None", "fails: TypeError"),
    "gives an array": ("return prediction", "fails: "),
    "ends the program": ("raise RuntimeError('no licence')", "no licence"),
    "gives a name of ours": ("return {'dice': 1.0}", "'dice', which is the name of one of ours"),
}


@pytest.mark.parametrize("fault", FAILING)
def test_a_metric_of_another_package_that_fails_is_named_and_nothing_is_written(
    tiny_run, tiny_cohort, tmp_path, monkeypatch, fault
):
    code, told = FAILING[fault]
    source = f"def theirs(prediction, reference, *, spacing):\n    {code}\n"
    (tmp_path / "their_metric.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_metric", raising=False)
    point = EntryPoint("theirs", "their_metric:theirs", "labelwise.metrics")
    monkeypatch.setattr(
        "labelwise.plugins.entry_points", lambda group: [point] * (group == "labelwise.metrics")
    )
    with pytest.raises(LabelwiseError) as caught:
        run.evaluate(tiny_run, tiny_cohort, tmp_path / "s.csv", metrics=["theirs"], workers=1)
    assert "'theirs'" in str(caught.value)
    assert told in str(caught.value)
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("verb", ["evaluate", "compare"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(command, tiny_cohort, tmp_path, verb):
    arguments = (
        ["evaluate", tmp_path / "no", tiny_cohort] if verb == "evaluate" else ["compare", tmp_path / "no"]
    )
    answer = command(*arguments)
    assert answer.code == 3
    assert "there is no such" in answer.err
