import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from labelwise.errors import ConfigError, DataError
from labelwise.evaluate.scores import Score, read_scores, summarise, write_scores
from labelwise.report.compare import compare, worst_cases
from labelwise.report.comparison import MEAN
from labelwise.report.plots import size_plot

NAN = math.nan
STRUCTURES = ("liver", "spleen")


def scores(values, metric="dice", structures=STRUCTURES, unit="", status="ok", variant="default"):
    """values: (cases, structures)"""
    return [
        Score(
            f"case{n}",
            structure,
            metric,
            float(value),
            "both_empty" if np.isnan(value) else status,
            unit,
            variant,
        )
        for n, row in enumerate(values)
        for structure, value in zip(structures, row, strict=True)
    ]


def random_values(seed, shift=0.0, cases=12):
    return 0.7 + shift + 0.05 * np.random.default_rng(seed).normal(size=(cases, 2))


def test_means_go_over_cases_first_and_over_structures_second():
    """Spleen is defined in one case only, and still counts as much as the liver."""
    comparison = compare({"a": scores([[0.8, 0.4], [0.6, NAN]])})
    cells = comparison.cells
    assert cells["a", "liver", "dice"].mean == pytest.approx(0.7)
    assert cells["a", "spleen", "dice"].mean == pytest.approx(0.4)
    assert cells["a", MEAN, "dice"].mean == pytest.approx(0.55)
    assert (cells["a", "spleen", "dice"].n, cells["a", MEAN, "dice"].n) == (1, 2)


def test_means_agree_with_the_summary_of_the_evaluation():
    values = random_values(3)
    values[2, 1] = NAN
    found = scores(values)
    summary = summarise(found)
    cells = compare({"a": found}).cells
    for row in summary.classes:
        cell = cells["a", row.class_name, "dice"]
        assert (cell.mean, cell.sd, cell.n) == pytest.approx((row.mean, row.sd, row.n))
    assert cells["a", MEAN, "dice"].mean == pytest.approx(summary.overall[0].mean)


def test_the_spread_is_over_cases():
    comparison = compare({"a": scores([[0.8, 0.6], [0.6, 0.6]])})
    assert comparison.cells["a", "liver", "dice"].sd == pytest.approx(0.1 * math.sqrt(2))
    assert comparison.cells["a", MEAN, "dice"].sd == pytest.approx(0.05 * math.sqrt(2))


def test_several_seeds_do_not_count_as_more_cases():
    seeds = [scores([[0.8, 0.8], [0.6, 0.6]]), scores([[0.9, 0.9], [0.7, 0.7]])]
    cell = compare({"a": seeds}).cells["a", MEAN, "dice"]
    assert cell.n == 2
    assert cell.mean == pytest.approx(0.75)
    assert cell.seed_means == pytest.approx((0.7, 0.8))
    assert cell.seed_sd == pytest.approx(0.1 / math.sqrt(2))
    assert "seeds ± 7.1" in compare({"a": seeds}).to_text()


def test_undefined_values_are_counted_by_reason():
    comparison = compare({"a": scores([[0.8, NAN], [0.6, NAN]]), "b": scores([[0.8, 0.5]])})
    assert comparison.cells["a", "spleen", "dice"].excluded == {"both_empty": 2}
    assert comparison.cells["b", MEAN, "dice"].excluded == {"missing": 2}
    assert comparison.exclusions() == (
        "a, Dice: 2 of 4 values left out (2 both empty)",
        "b, Dice: 2 of 4 values left out (2 missing)",
    )


def test_a_paired_difference_uses_only_the_cases_of_both():
    comparison = compare({"a": scores([[0.5, 0.5], [0.1, 0.1]]), "b": scores([[0.6, 0.8]])})
    found = comparison.differences["b", MEAN, "dice"]
    assert found.mean == pytest.approx(0.2)
    assert found.n == 1
    assert math.isnan(found.low)  # one case has no interval


def test_the_interval_of_a_constant_difference_is_that_difference():
    values = random_values(0, cases=30)
    found = compare({"a": scores(values), "b": scores(values + 0.05)}).differences["b", "liver", "dice"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    assert found.p < 1e-6


def test_the_interval_holds_the_true_difference_about_95_times_in_100():
    held = 0
    for seed in range(100):
        pair = {
            "a": scores(random_values(2 * seed, cases=40)),
            "b": scores(random_values(2 * seed + 1, 0.1, 40)),
        }
        found = compare(pair, resamples=400, seed=seed).differences["b", MEAN, "dice"]
        held += found.low <= 0.1 <= found.high
    assert 88 <= held <= 99


def test_swapping_the_reference_turns_the_sign():
    runs = {"a": scores(random_values(0, cases=30)), "b": scores(random_values(1, 0.02, cases=30))}
    one = compare(runs).differences["b", MEAN, "dice"]
    other = compare(runs, reference="b").differences["a", MEAN, "dice"]
    assert (one.mean, one.low, one.p) == pytest.approx((-other.mean, -other.high, other.p))


def test_the_same_seed_gives_the_same_page():
    runs = {"a": scores(random_values(0, cases=30)), "b": scores(random_values(1, cases=30))}
    assert compare(runs).to_json() == compare(runs).to_json()
    assert compare(runs).to_json() != compare(runs, seed=1).to_json()


def test_holm_counts_the_runs_for_the_mean_and_runs_times_structures_for_the_structures():
    runs = {name: scores(random_values(n, 0.01 * n)) for n, name in enumerate("abc")}
    found = compare(runs).differences
    mean_p = sorted(found[run, MEAN, "dice"].p for run in "bc")
    assert min(found[run, MEAN, "dice"].p_holm for run in "bc") == pytest.approx(min(1, 2 * mean_p[0]))
    structure_p = min(found[run, structure, "dice"].p for run in "bc" for structure in STRUCTURES)
    structure_holm = min(found[run, structure, "dice"].p_holm for run in "bc" for structure in STRUCTURES)
    assert structure_holm == pytest.approx(min(1, 4 * structure_p))


def test_best_is_high_for_dice_and_low_for_a_distance():
    a = scores([[0.8, 0.8]]) + scores([[5.0, 5.0]], "hd95", unit="mm")
    b = scores([[0.7, 0.7]]) + scores([[3.0, 3.0]], "hd95", unit="mm")
    best = compare({"a": a, "b": b}).best
    assert ("a", MEAN, "dice") in best
    assert ("b", MEAN, "hd95") in best
    assert ("b", MEAN, "dice") not in best


def test_runs_that_print_the_same_number_share_the_mark():
    runs = {"a": scores([[0.80001, 0.8]]), "b": scores([[0.8, 0.8]]), "c": scores([[0.7, 0.7]])}
    comparison = compare(runs)
    assert {key for key in comparison.best if key[1] == MEAN} == {("a", MEAN, "dice"), ("b", MEAN, "dice")}
    assert comparison.answer() == "a and b share the best mean Dice over 2 structures: 80.0 %."


@pytest.mark.parametrize("value", [0.0, 0.8])
def test_nothing_is_best_where_all_runs_print_the_same_number(value):
    """A structure that no run finds has no winner."""
    runs = {"a": scores([[value, 0.5]]), "b": scores([[value, 0.6]])}
    assert {key[:2] for key in compare(runs).best} == {("b", "spleen"), ("b", MEAN)}
    tied = compare({name: scores([[value, value]]) for name in "ab"})
    assert not tied.best
    assert tied.answer().startswith(
        "No run is called best in mean Dice over 2 structures, for all runs have the same"
    )


def test_what_has_no_spread_is_printed_without_one():
    """One case, or none at all."""
    text = compare({"a": scores([[0.8, NAN]])}).to_text()
    assert "80.0" in text
    assert "±  " not in text
    assert "± –" not in text


def test_nothing_is_best_where_the_runs_lack_different_values():
    """Leaving out the hard case must not win."""
    a = scores([[10.0, 5.0], [NAN, 5.0]], "hd95", unit="mm")
    b = scores([[11.0, 6.0], [40.0, 6.0]], "hd95", unit="mm")
    comparison = compare({"a": a, "b": b})
    assert comparison.best == {("a", "spleen", "hd95")}
    assert "No run is called best" in comparison.answer()
    assert "n 1" in comparison.to_text()


def test_a_difference_without_direction_has_no_best():
    runs = {"a": scores([[1.0, 2.0]], "volume_difference"), "b": scores([[0.0, 1.0]], "volume_difference")}
    assert not compare(runs).best


def test_a_single_structure_has_no_mean_over_structures():
    comparison = compare(
        {"a": scores([[0.8]], structures=("atrium",)), "b": scores([[0.9]], structures=("atrium",))}
    )
    assert comparison.rows == ("atrium",)
    assert comparison.class_tables() == ()
    assert "b has the best Dice: 90.0 %" in comparison.answer()


def test_a_single_run_is_told_without_comparison():
    comparison = compare({"a": scores([[0.8, 0.6]])})
    assert comparison.difference_table() is None
    assert comparison.answer() == "Mean Dice over 2 structures: a 70.0 % (1 case)."
    assert "A best value" not in comparison.to_text()


def test_a_small_difference_is_called_possible_chance():
    runs = {"a": scores(random_values(0)), "b": scores(random_values(1, 0.002))}
    assert compare(runs).answer().endswith("This may be chance.")


def test_a_clear_difference_of_single_trainings_may_still_be_the_luck_of_a_seed():
    runs = {"a": scores(random_values(0, cases=20)), "b": scores(random_values(0, 0.1, cases=20))}
    assert "Another seed may turn it" in compare(runs).answer()
    trainings = {
        name: [scores(random_values(0, 0.001 * n + shift, cases=20)) for n in range(3)]
        for name, shift in (("a", 0.0), ("b", 0.1))
    }
    assert "Another seed" not in compare(trainings).answer()
    assert "may be chance" not in compare(trainings).answer()


def test_convention_dice_is_printed_in_percent_and_distances_with_their_unit():
    text = compare({"a": scores([[0.8714, 0.8714]]) + scores([[4.5, 4.5]], "hd95", unit="voxels")}).to_text()
    assert "Dice [%]" in text
    assert "87.1" in text
    assert "HD95 [voxels]" in text
    assert "4.50" in text


def test_text_columns_are_aligned_and_the_best_is_starred():
    text = compare(
        {"short": scores(random_values(0)), "a_longer_name": scores(random_values(1, 0.2))}
    ).to_text()
    table = text.split("\n\n")[4].splitlines()
    assert len({line.index("±") for line in table[2:]}) == 1
    assert "* ±" in table[3]


def test_markdown_has_equal_columns_and_escapes_names():
    text = compare({"a|b": scores(random_values(0)), "c_d": scores(random_values(1, 0.2))}).to_markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "a\\|b" in text
    assert any("**" in row and "c\\_d" in row for row in rows)
    counts = {row.replace("\\|", "").count("|") for row in rows[:4]}
    assert len(counts) == 1


def test_csv_has_one_line_for_each_run_row_and_metric_in_plain_numbers():
    comparison = compare({"a": scores([[0.8, NAN], [0.6, NAN]]), "b": scores([[0.9, 0.5], [0.7, 0.7]])})
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert len(rows) == 2 * 3
    first = rows[0]
    assert (first["run"], first["class"], first["metric"]) == ("a", "liver", "dice")
    assert float(first["mean"]) == pytest.approx(0.7)
    assert rows[1]["mean"] == ""
    assert rows[1]["excluded"] == "both_empty=2"
    assert float(rows[3]["difference"]) == pytest.approx(0.1)


def test_json_is_strict_and_keeps_undefined_values_as_null():
    content = json.loads(compare({"a": scores([[0.8, NAN]])}).to_json())
    assert content["values"][1]["mean"] is None
    assert content["variant"] == "default"


def test_scores_read_from_disk_compare_alike(tmp_path):
    found = scores(random_values(0))
    write_scores(tmp_path / "scores.csv", found)
    assert compare({"a": read_scores(tmp_path / "scores.csv")}).to_json() == compare({"a": found}).to_json()


def test_the_usual_metrics_are_shown_unless_others_are_asked_for():
    found = scores([[0.8, 0.8]]) + scores([[1.0, 1.0]], "volume_difference") + scores([[2.0, 2.0]], "hd95")
    assert [m.name for m in compare({"a": found}).measures] == ["dice", "hd95"]
    asked = compare({"a": found}, metrics=("volume_difference", "dice"))
    assert [m.name for m in asked.measures] == ["volume_difference", "dice"]


def test_an_unknown_metric_of_a_plugin_is_printed_under_its_own_name():
    comparison = compare({"a": scores([[0.8, 0.8]], "length_of_tail")})
    assert "length_of_tail" in comparison.to_text()
    assert not comparison.best


def test_one_tolerance_joins_the_title_and_several_join_the_definition():
    one = compare({"a": scores([[0.9, 0.9]], "nsd", unit="at 2 mm")})
    assert one.measures[0].heading == "NSD at 2 mm [%]"
    two = [replace(score, unit=f"at {len(score.class_name)} mm") for score in scores([[0.9, 0.9]], "nsd")]
    measure = compare({"a": two}).measures[0]
    assert measure.heading == "NSD [%]"
    assert measure.definition.endswith("liver at 5 mm, spleen at 6 mm")


def test_variants_are_never_mixed():
    both = scores([[0.8, 0.8]]) + scores([[0.0, 0.8]], variant="la_official")
    with pytest.raises(ConfigError, match="several variants"):
        compare({"a": both})
    official = compare({"a": both}, variant="la_official")
    assert official.cells["a", "liver", "dice"].mean == 0
    assert "empty prediction scores 0" in official.description()
    with pytest.raises(ConfigError, match="did you mean 'la_official'"):
        compare({"a": both}, variant="la_offical")


def test_units_are_never_mixed():
    with pytest.raises(DataError, match="two units"):
        compare(
            {"a": scores([[1.0, 1.0]], "hd95", unit="mm"), "b": scores([[1.0, 1.0]], "hd95", unit="voxels")}
        )


def test_values_given_twice_are_refused():
    with pytest.raises(DataError, match=r"case 'case0'.*two values of dice"):
        compare({"a": scores([[0.8, 0.8]]) * 2})


def test_wrong_names_are_refused_with_the_nearest_right_one():
    runs = {"supervised": scores([[0.8, 0.8]])}
    with pytest.raises(ConfigError, match="did you mean 'supervised'"):
        compare(runs, reference="supervise")
    with pytest.raises(ConfigError, match="did you mean 'dice'"):
        compare(runs, metrics=["dices"])
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare({})
    with pytest.raises(ConfigError, match="at least one metric"):
        compare(runs, metrics=[])
    with pytest.raises(DataError, match="has no scores"):
        compare({"empty": []})


def test_the_worst_cases_come_first():
    found = scores([[0.9, 0.9], [0.1, 0.9], [NAN, NAN], [0.2, NAN]])
    assert worst_cases(compare({"a": found})) == ("case3", "case1", "case0")
    better = scores([[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])
    assert worst_cases(compare({"a": found, "b": better})) == ("case3", "case1", "case0", "case2")
    distances = scores([[1.0, 1.0], [9.0, 9.0]], "hd95", unit="mm")
    assert worst_cases(compare({"a": distances})) == ("case1", "case0")


def of_patients(values, patients):
    """Scores of `values` in which case n belongs to the patient `patients[n]`."""
    return [
        replace(score, group=f"p{patients[int(score.case.removeprefix('case'))]}") for score in scores(values)
    ]


def test_fewer_than_30_patients_have_no_interval_and_the_page_says_so():
    """Sixty scans of 29 patients are 29 samples."""
    values = random_values(0, cases=60)
    few = compare({"a": of_patients(values, np.arange(60) % 29)})
    assert math.isnan(few.cells["a", MEAN, "dice"].low)
    assert few.cells["a", MEAN, "dice"].patients == 29
    assert any("29 patients are too few for an interval" in line for line in few.cautions())
    enough = compare({"a": of_patients(values, np.arange(60) % 30)})
    assert enough.cells["a", MEAN, "dice"].low < enough.cells["a", MEAN, "dice"].mean
    assert not enough.cautions()


def test_a_mean_over_structures_is_as_uncertain_as_its_rarest_structure():
    values = random_values(0, cases=40)
    values[10:, 1] = NAN
    cells = compare({"a": scores(values)}).cells
    assert math.isfinite(cells["a", "liver", "dice"].low)
    assert math.isnan(cells["a", "spleen", "dice"].low)
    assert (cells["a", MEAN, "dice"].patients, cells["a", MEAN, "dice"].n) == (10, 40)
    assert math.isnan(cells["a", MEAN, "dice"].low)


def test_scans_that_repeat_a_patient_neither_narrow_the_interval_nor_sharpen_the_test():
    """Every scan twice: the same patients, the same knowledge."""
    one, other = random_values(0, cases=30), random_values(1, 0.02, cases=30)
    twice = np.repeat(np.arange(30), 2)
    single = compare({"a": scores(one), "b": scores(other)}).differences["b", MEAN, "dice"]
    double = compare(
        {"a": of_patients(one[twice], twice), "b": of_patients(other[twice], twice)}
    ).differences["b", MEAN, "dice"]
    assert (double.n, double.patients) == (60, 30)
    assert (double.mean, double.low, double.high, double.p) == pytest.approx(
        (single.mean, single.low, single.high, single.p)
    )


def test_seeds_that_scatter_widen_the_interval_and_raise_p():
    base, better = random_values(0, cases=30), random_values(0, 0.03, cases=30)
    calm = {"a": [scores(base), scores(base)], "b": [scores(better), scores(better)]}
    wild = {"a": [scores(base), scores(base)], "b": [scores(better - 0.05), scores(better + 0.05)]}
    steady, moved = (compare(runs).differences["b", MEAN, "dice"] for runs in (calm, wild))
    assert (moved.mean, steady.mean) == pytest.approx((0.03, 0.03))
    assert steady.p < 0.001
    assert moved.p > 0.5
    assert moved.high - moved.low > 10 * (steady.high - steady.low)


def test_ranks_say_how_often_each_run_is_first():
    runs = {
        "worst": scores(random_values(0, -0.2, 30)),
        "best": scores(random_values(0, 0.2, 30)),
        "same": scores(random_values(0, 0.2, 30)),
    }
    ranks = compare(runs).ranks["dice"]
    assert [(one.run, one.rank, one.first) for one in ranks] == [
        ("best", 1.5, 1.0),
        ("same", 1.5, 1.0),
        ("worst", 3.0, 0.0),
    ]
    distances = {
        "far": scores(random_values(0, 5, 30), "hd95", unit="mm"),
        "near": scores(random_values(0, cases=30), "hd95", unit="mm"),
    }
    assert [one.run for one in compare(distances).ranks["hd95"]] == ["near", "far"]


def test_of_few_patients_the_place_is_told_and_not_how_firm_it_is():
    runs = {name: scores(random_values(0, shift)[:5]) for name, shift in (("a", 0.0), ("b", 0.2))}
    comparison = compare(runs)
    assert [(one.run, one.rank, one.low, one.first) for one in comparison.ranks["dice"]] == [
        ("b", 1, None, None),
        ("a", 2, None, None),
    ]
    assert "first in" not in comparison.to_text()
    assert json.loads(comparison.to_json())["ranks"]["dice"][0]["first"] is None


def test_no_rank_where_the_runs_have_values_of_different_cases():
    a = scores([[10.0, 5.0], [NAN, 5.0]], "hd95", unit="mm")
    assert not compare({"a": a, "b": scores([[11.0, 6.0], [40.0, 6.0]], "hd95", unit="mm")}).ranks


def test_scores_are_split_by_the_size_of_the_structure():
    """Six livers of 1 to 6 ml, Dice 0.1 per ml: thirds of 1-2, 3-4, 5-6 ml."""
    dice = scores([[0.1 * n] for n in (4, 1, 6, 2, 5, 3)], structures=("liver",))
    sizes = scores(
        [[float(n)] for n in (4, 1, 6, 2, 5, 3)], "reference_volume", structures=("liver",), unit="ml"
    )
    found = compare({"a": dice + sizes}).sizes.strata
    assert [(one.name, one.low, one.high, one.cases) for one in found] == [
        ("small", 1, 2, 2),
        ("middle", 3, 4, 2),
        ("large", 5, 6, 2),
    ]
    assert [one.runs["a"].mean for one in found] == pytest.approx([0.15, 0.35, 0.55])
    assert "liver, small (1 to 2 ml)" in compare({"a": dice + sizes}).to_text()
    assert compare({"a": dice}).sizes is None
    voxels = [replace(one, value=1000 * one.value, unit="voxels") for one in sizes]
    counted = compare({"a": dice + voxels})
    assert "liver, middle (3,000 to 4,000 voxels)" in counted.to_text(), "voxels were called millilitres"
    assert "small, 1000 to 2000 voxels" in counted.to_csv()
    assert b"volume of the reference [voxels]" in size_plot(counted).data


def test_each_size_says_how_many_cases_it_has_and_how_sure_its_mean_is():
    """90 livers of 1 to 90 ml: thirds of 30 patients have intervals; a distance that is missing is counted."""
    sizes = scores([[float(n + 1)] for n in range(90)], "reference_volume", structures=("liver",), unit="ml")
    near = [[NAN if n == 0 else 2.0 + n % 5] for n in range(90)]
    runs = {
        "a": scores(near, "hd95", structures=("liver",), unit="mm") + sizes,
        "b": scores([[3.0]] * 90, "hd95", structures=("liver",), unit="mm") + sizes,
    }
    comparison = compare(runs)
    small, middle, _ = comparison.sizes.strata
    assert (small.runs["a"].n, small.cases) == (29, 30)
    assert math.isnan(small.runs["a"].low), "29 patients got an interval"
    assert middle.runs["a"].low < middle.runs["a"].mean < middle.runs["a"].high
    assert middle.runs["b"][2:4] == (3.0, 3.0)
    text = comparison.to_text()
    assert "n 29" in text
    rows = [row for row in csv.DictReader(io.StringIO(comparison.to_csv())) if row["size"]]
    assert len(rows) == 3 * 2
    assert (rows[0]["size"], rows[0]["n"], rows[0]["low"]) == ("small, 1 to 30 ml", "29", "")
    assert float(rows[2]["low"]) == middle.runs["a"].low
    assert json.loads(comparison.to_json())["sizes"][2]["mean"] == pytest.approx(middle.runs["a"].mean)


def test_differences_are_told_for_each_structure_with_the_p_of_their_family():
    base, better = random_values(3, cases=40), random_values(4, 0.1, cases=40)
    better[:, 1] = base[:, 1]
    comparison = compare({"a": scores(base), "b": scores(better)})
    (table,) = comparison.class_difference_tables()
    assert table.title == "Dice minus a [points]"
    liver, spleen = ({row[0].text: row[1] for row in table.rows}[name] for name in STRUCTURES)
    assert "p < 0.001" in liver.detail
    assert spleen.text == "0.0"
    assert "p = 1.000" in spleen.detail
    assert table.to_text() in comparison.to_text()
    many = compare({f"run{n}": scores(random_values(n)) for n in range(5)})
    assert many.class_difference_tables()[0].header == ("run", *STRUCTURES)
    assert not compare({"a": scores(base)}).class_difference_tables()


def test_a_mean_over_cases_of_one_structure_has_its_interval_in_the_table():
    (table,) = compare({"a": scores(random_values(3, cases=40))}).class_tables()
    assert "[" in table.rows[0][1].detail
    assert "95 % interval of the mean over patients" in table.legend


def test_a_scan_without_prediction_counts_as_not_found():
    whole = scores([[0.8, 0.8], [0.7, NAN], [0.0, 0.6]])
    whole[4] = replace(whole[4], status="prediction_empty")
    part = scores([[0.8, 0.8]])
    table = compare({"whole": whole, "part": part}).presence_table()
    told = {row[0].text: [(one.text, one.detail) for one in row[1:]] for row in table.rows}
    assert told == {
        "reference": [("3 of 3", ""), ("2 of 3", "")],
        "whole": [("2 of 3", "1 missed"), ("2 of 2", "")],
        "part": [("1 of 3", "2 without prediction"), ("1 of 2", "1 without prediction")],
    }


def test_a_structure_that_vanishes_where_nobody_annotated_it_is_told_beside_the_reference():
    """Of two runs one predicts the spleen in scans that do not annotate it, as in those that do; the other never."""

    def of(volumes):
        found = [
            Score(f"case{n}", "spleen", "dice", NAN if n > 1 else 0.8, "not_annotated" if n > 1 else "ok")
            for n in range(4)
        ]
        told = [
            replace(one, metric="prediction_volume", value=v, unit="ml")
            for one, v in zip(found, volumes, strict=True)
        ]
        return found + told

    comparison = compare(
        {"finds": of([9.0, 8.0, 7.0, 9.0]), "loses": of([9.0, 8.0, 0.0, 0.0])}, ("dice", "prediction_volume")
    )
    told = {row[0].text: (row[1].text, row[1].detail) for row in comparison.presence_table().rows}
    assert told == {
        "reference": ("2 of 2", ""),
        "finds": ("2 of 2", "in 2 of 2 not annotated"),
        "loses": ("2 of 2", "in 0 of 2 not annotated"),
    }
    cell = comparison.cells["finds", "spleen", "prediction_volume"]
    assert (cell.mean, cell.n) == (8.5, 2), "a scan without a reference counts in no mean"
    found = json.loads(comparison.to_json())["structures_found"]
    assert (found[1]["run"], found[1]["unknown"], found[1]["predicted"]) == ("loses", 2, 0)


def test_runs_on_other_cases_classes_or_references_are_refused_with_the_difference():
    one = scores([[0.8, 0.8], [0.7, 0.7]])
    other = [replace(score, case=score.case.replace("case1", "scan1")) for score in one]
    with pytest.raises(DataError, match=r"(?s)other cases.*only in b: scan1; only in a: case1"):
        compare({"a": one, "b": other})
    with pytest.raises(DataError, match=r"(?s)other classes.*only in b: kidney; only in a: spleen"):
        compare({"a": one, "b": scores([[0.8, 0.8], [0.7, 0.7]], structures=("liver", "kidney"))})
    with pytest.raises(DataError, match="belongs to two patients"):
        compare({"a": one, "b": [replace(score, group="p1") for score in one]})
    volumes = [scores([[1.0, size], [1.0, 1.0]], "reference_volume", unit="ml") for size in (1.0, 2.0)]
    with pytest.raises(DataError, match=r"(?s)different references.*spleen: 1 and 2 ml"):
        compare({"a": one + volumes[0], "b": one + volumes[1]})


def test_a_run_that_saw_a_test_patient_is_marked_in_every_table():
    runs = {"clean": scores(random_values(0)), "leaked": scores(random_values(1))}
    comparison = compare(runs, seen={"leaked": {"case3", "elsewhere"}, "clean": {"elsewhere"}})
    assert comparison.seen == {"leaked": ("case3",)}
    assert any(line.startswith("leaked has seen 1 of the 12 patients") for line in comparison.cautions())
    for table in comparison.tables():
        names = [*table.header, *(row[0].text for row in table.rows)]
        assert not any(name == "leaked" for name in names)
    rows = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    assert {row["saw_test_patients"] for row in rows if row["run"] == "leaked"} == {"1"}
    assert "leaked (has seen test patients)" in comparison.answer()
    against = compare(runs, seen=comparison.seen, reference="leaked")
    assert "Difference to leaked (has seen test patients)" in against.to_markdown()
    assert "% leaked has seen 1 of the 12 patients" in comparison.to_latex()


def test_a_class_that_no_case_annotates_is_shown_as_such():
    found = [
        replace(score, status="not_annotated") if score.class_name == "spleen" else score
        for score in scores([[0.8, NAN], [0.7, NAN]])
    ]
    comparison = compare({"a": found})
    assert "not annotated in any case" in comparison.to_text()
    assert any("Annotated in no case, so without a score: spleen." in line for line in comparison.cautions())


def test_latex_tables_escape_names_and_use_booktabs():
    text = compare({"a_b & c": scores(random_values(0)), "d": scores(random_values(1, 0.2))}).to_latex()
    assert r"a\_b \& c" in text
    assert r"Dice [\%]" in text
    assert r"\textbf{" in text
    assert (
        text.count(r"\toprule")
        == text.count(r"\bottomrule")
        == len(compare({"a": scores(random_values(0)), "b": scores(random_values(1, 0.2))}).tables())
    )
    assert "±" not in text
    assert "−" not in text
