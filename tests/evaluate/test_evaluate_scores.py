"""The score table on disk and its summary."""

from __future__ import annotations

import json
import math

import pytest

from labelwise.errors import DataError
from labelwise.evaluate.cases import METRICS, Score, read_scores, summarise, write_scores
from labelwise.evaluate.scores import BOUNDS

NAN = math.nan
SCORES = [
    Score("a, first visit", "liver", "dice", 0.1 + 0.2, "ok"),
    Score("b", "liver", "hd95", NAN, "prediction_empty", "mm"),
    Score("b", "left atrium", "hd95", 3.25, "ok", "voxels", "la_official", "p1", "test", "train"),
]
HEADER = "case,class,metric,value,unit,variant,status,group,split,seen\n"
OLD_HEADER = "case,class,metric,value,unit,variant,status\n"  # before cases named their patient


def same(left: Score, right: Score) -> bool:
    return repr(left) == repr(right)


def test_scores_survive_the_file_bit_for_bit(tmp_path):
    write_scores(tmp_path / "scores.csv", SCORES)
    found = read_scores(tmp_path / "scores.csv")
    assert len(found) == len(SCORES)
    assert all(map(same, found, SCORES))


def test_the_table_is_plain_text_with_one_row_per_score(tmp_path):
    write_scores(tmp_path / "scores.csv", SCORES[1:])
    assert (tmp_path / "scores.csv").read_text() == (
        HEADER
        + "b,liver,hd95,nan,mm,default,prediction_empty,,,\n"
        + "b,left atrium,hd95,3.25,voxels,la_official,ok,p1,test,train\n"
    )


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    """Byte order mark, Windows line ends, another order of columns, one column more."""
    text = "\ufeffrun,status,case,class,metric,value,unit,variant\r\nr1,ok,a,liver,dice,0.5,,default\r\n"
    (tmp_path / "scores.csv").write_bytes(text.encode())
    assert read_scores(tmp_path / "scores.csv") == [Score("a", "liver", "dice", 0.5, "ok")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column case, class, metric"),
        ("case,class,metric,value,unit,status\n", "no column variant"),
        (
            OLD_HEADER + "a,liver,dice,0.5,,default,ok\na,liver,hd95,3 mm,mm,default,ok\n",
            "row 3, column 'value'",
        ),
        (OLD_HEADER + "a,liver,dice,inf,,default,ok\n", "the value is infinite"),
        (OLD_HEADER + "a,liver,dice,0.5,,default,both_emty\n", "did you mean 'both_empty'"),
        (OLD_HEADER + "a,liver,dice,0.5,,default\n", "too few or too many cells"),
        (OLD_HEADER + "a,liver,dice,0.5,,default,ok,7\n", "too few or too many cells"),
        (OLD_HEADER + "a,,dice,0.5,,default,ok\n", "row 2, column 'class'"),
        (OLD_HEADER + 'a,"liver"s,dice,0.5,,default,ok\n', "cannot be read"),
    ],
)
def test_a_broken_table_is_refused_with_its_place(tmp_path, text, message):
    file = tmp_path / "scores.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_scores(file)
    assert "scores.csv" in str(caught.value)


def test_a_table_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such score table"):
        read_scores(tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_bytes(HEADER.encode() + b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_scores(tmp_path / "scores.csv")


def test_a_failed_write_leaves_the_old_table(tmp_path):
    write_scores(tmp_path / "scores.csv", SCORES)
    before = (tmp_path / "scores.csv").read_bytes()
    with pytest.raises(AttributeError):
        write_scores(tmp_path / "scores.csv", [*SCORES, None])
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_convention_mean_over_cases_first_then_over_classes():
    """Liver (1.0 + 0.5 + 0.0) / 3 = 0.5 and spleen 0.8 give 0.65; all values together would give 0.575."""
    scores = [
        Score("a", "liver", "dice", 1.0, "ok"),
        Score("b", "liver", "dice", 0.5, "ok"),
        Score("c", "liver", "dice", 0.0, "prediction_empty"),
        Score("d", "liver", "dice", NAN, "both_empty"),
        Score("a", "spleen", "dice", 0.8, "ok"),
        Score("b", "spleen", "dice", NAN, "not_annotated"),
    ]
    summary = summarise(scores)
    liver, spleen = summary.classes
    assert (liver.mean, liver.sd, liver.n, liver.failures) == (pytest.approx(0.5), pytest.approx(0.5), 3, 1)
    assert liver.excluded == {"both_empty": 1}
    assert (spleen.mean, spleen.n, spleen.failures) == (0.8, 1, 0)
    assert math.isnan(spleen.sd)
    assert spleen.excluded == {"not_annotated": 1}
    (overall,) = summary.overall
    assert (overall.metric, overall.mean, overall.num_classes) == ("dice", pytest.approx(0.65), 2)


def test_a_class_without_any_value_is_left_out_of_the_overall_mean():
    summary = summarise(
        [Score("a", "liver", "hd95", 4.0, "ok", "mm"), Score("a", "spleen", "hd95", NAN, "both_empty", "mm")]
    )
    assert math.isnan(summary.classes[1].mean)
    assert (summary.overall[0].mean, summary.overall[0].num_classes) == (4.0, 1)
    assert math.isnan(summarise([SCORES[1]]).overall[0].mean)


def test_millimetres_and_voxels_are_never_averaged():
    summary = summarise(
        [Score("a", "liver", "hd95", 4.0, "ok", "mm"), Score("a", "liver", "hd95", 9.0, "ok", "voxels")]
    )
    assert [row.mean for row in summary.classes] == [4.0, 9.0]
    assert [(row.mean, row.unit) for row in summary.overall] == [(4.0, "mm"), (9.0, "voxels")]


def test_structures_with_different_tolerances_share_an_overall_mean():
    summary = summarise(
        [Score("a", "liver", "nsd", 0.5, "ok", "at 5 mm"), Score("a", "spleen", "nsd", 0.7, "ok", "at 2 mm")]
    )
    assert [(row.mean, row.num_classes) for row in summary.overall] == [(pytest.approx(0.6), 2)]


def test_one_case_scored_twice_is_refused():
    with pytest.raises(DataError, match="case 'b': two values of hd95 for class 'liver'"):
        summarise([SCORES[1], SCORES[1]])


def test_the_summary_is_plain_json():
    table = json.loads(json.dumps(summarise(SCORES).to_json(), allow_nan=False))
    assert table["classes"][1]["mean"] is None
    assert table["classes"][1]["excluded"] == {"prediction_empty": 1}
    assert [row["metric"] for row in table["overall"]] == ["dice", "hd95", "hd95"]


@pytest.mark.parametrize("metric", sorted(BOUNDS))
@pytest.mark.parametrize("value", ["-0.001", "-1e9", "1.001", "87.4"])
def test_a_value_that_a_metric_cannot_have_is_refused(tmp_path, metric, value):
    """Percentages in the place of shares, and what somebody wrote by hand."""
    file = tmp_path / "scores.csv"
    file.write_text(OLD_HEADER + f"a,liver,{metric},{value},,default,ok\n")
    if BOUNDS[metric][1] == 1 or float(value) < 0:
        with pytest.raises(DataError, match=f"there is no {metric} of this value") as caught:
            read_scores(file)
        assert "row 2, column 'value'" in str(caught.value)
    else:
        assert read_scores(file)[0].value == float(value)


def test_every_known_metric_of_a_table_has_its_bounds():
    free = {"volume_difference"}
    assert set(METRICS) - free <= set(BOUNDS)
