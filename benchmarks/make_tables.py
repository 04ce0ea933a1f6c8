"""Write the tables of README.md and docs/results.md from benchmarks/results/*.json.

    python benchmarks/make_tables.py            # rewrite
    python benchmarks/make_tables.py --check    # exit 1 if a table is not what the results say

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; nothing else is touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import HEADINGS, commits, network_of, result, source, table, value, with_seeds, words

from labelwise.settings import OLDER_NAMES

ROOT = Path(__file__).parents[1]
METHOD_PAGES = ROOT / "docs" / "methods"
EXPLANATION = ROOT / "docs" / "explanation" / "what-makes-it-train.md"
SPEED = ROOT / "docs" / "performance.md"
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    SPEED,
    EXPLANATION,
    *sorted(METHOD_PAGES.glob("*.md")),
)
# Where the pages of the methods find their numbers: heading -> result file and how names of its rows end.
COLUMNS = {
    "ACDC, one structure": ("acdc_one_structure", ""),
    "synthetic CT, one organ": ("synthetic_one_organ", ""),
    "ACDC, 3 patients": ("acdc_few_labels", "_of_3"),
    "ACDC, 7 patients": ("acdc_few_labels", "_of_7"),
    "LA, 8 scans": ("la2018_half_resolution", ""),
    "synthetic CT, 2 scans": ("synthetic_few_labels", ""),
}
# The long trainings: heading -> result file and how names of its rows end.
LONG = {
    "ACDC, 3 patients": ("acdc_long", "_of_3"),
    "ACDC, 7 patients": ("acdc_long", "_of_7"),
    "ACDC, one structure": ("acdc_long", "_of_one"),
    "LA, 4 scans": ("la2018_long", "_of_4"),
    "LA, 8 scans": ("la2018_long", "_of_8"),
}
LONG_SIDES = {
    "a quarter of the patches on the side": ("acdc_long", "_of_3"),
    "none on the side": ("acdc_long", "_of_3_not_turned"),
}
# Every comparison of methods: heading -> result file and how names of its rows may end.
COMPARED: dict[str, tuple[str, tuple[str, ...]]] = {
    "ACDC, long": ("acdc_long", ("_of_3_not_turned", "_of_3", "_of_7", "_of_one")),
    "LA, long": ("la2018_long", ("_of_4", "_of_8")),
    "LA, 8 scans": ("la2018_half_resolution", ()),
    "ACDC, one structure": ("acdc_one_structure", ()),
    "ACDC, few patients": ("acdc_few_labels", ("_of_3", "_of_7")),
    "synthetic CT, one organ": ("synthetic_one_organ", ()),
    "synthetic CT, few scans": ("synthetic_few_labels", ()),
}
# See unlabelled scans, and learn nothing from them.
CONTROLS = ("unlabelled_in_batch_norm_only", "mean_teacher_without_consistency")
BASELINES = (
    *("supervised", "supervised_with_their_dice", "supervised_with_four_patches"),
    *CONTROLS,
    "unlabelled_in_batch_norm_only_apart",
    "full_supervision",
)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def sweep(name: str, variant: str, metrics: Sequence[str], unit: str) -> str:
    """The rows of a sweep: mean and spread over seeds."""
    loaded = result(name)
    rows = []
    for row, variants in loaded["rows"].items():
        cells = [value(variants[variant].get(metric), metric) for metric in metrics]
        seeds = next(iter(variants[variant].values()))["seeds"]
        minutes = [one["training_seconds"] / 60 for one in loaded["runs"] if one["name"] == row]
        rows.append([words(row), *cells, str(seeds), f"{sum(minutes) / len(minutes):.0f} min"])
    units = [HEADINGS[m] if m in ("dice", "jaccard") else f"{HEADINGS[m]} [{unit}]" for m in metrics]
    head = ["", *units, "seeds", "training"]
    return table(head, rows) + source(name, commits(loaded))


def few_labels(numbers: Sequence[int] = (3, 7)) -> str:
    """ACDC with few labelled patients: a column for each number of them."""
    loaded = result("acdc_few_labels")
    suffixes = tuple(f"_of_{number}" for number in numbers)
    names = dict.fromkeys(name for suffix in suffixes for name in _without(suffix, loaded["rows"]))
    rows = []
    for name in [*names, "full_supervision"]:
        found = [loaded["rows"].get(name + suffix, loaded["rows"].get(name)) for suffix in suffixes]
        cells = [
            with_seeds(row["scores"][metric] if row else None, metric)
            for row in found
            for metric in ("dice", "hd95")
        ]
        rows.append([words(name), *cells])
    heads = [f"{number} patients, {what}" for number in numbers for what in ("Dice [%]", "HD95 [voxels]")]
    return table(["mean ± spread (seeds)", *heads], rows) + source("acdc_few_labels", commits(loaded))


def long(columns: Mapping[str, tuple[str, str]] = LONG, *, full: bool = True) -> str:
    """Long trainings on one strong base: a column for each setting of labels, a row for each method."""
    found = {
        heading: (rows, suffix)
        for heading, (name, suffix) in columns.items()
        if _without(suffix, rows := result(name)["rows"])
    }
    names = dict.fromkeys(row for rows, suffix in found.values() for row in _without(suffix, rows))
    lines = []
    for name in [*names, *(["full_supervision"] if full else [])]:
        cells = [rows.get(name + suffix, rows.get(name)) for rows, suffix in found.values()]
        lines.append([words(name), *(with_seeds(cell and cell["scores"]["dice"]) for cell in cells)])
    sources = dict.fromkeys(name for name, _ in columns.values())
    return table(["Dice [%], mean ± spread (seeds)", *found], lines) + "".join(
        source(name, commits(result(name))) for name in sources
    )


def networks() -> str:
    """Network and norm of the model of each row."""
    rows = []
    for heading, (name, suffixes) in COMPARED.items():
        groups: dict[str, dict[str, None]] = {}
        for one in result(name)["runs"]:
            row = next(
                (one["name"].removesuffix(end) for end in suffixes if one["name"].endswith(end)), one["name"]
            )
            told = network_of(one["recipe"], json.dumps(one["changes"]))
            groups.setdefault(told, {})[words(row)] = None
        largest = max(groups, key=lambda told: len(groups[told]))
        for told, members in groups.items():
            others = "all other rows" if len(groups) > 1 else "all rows"
            rows.append([heading, told, others if told == largest else "; ".join(members)])
    return table(["", "network and norm", "rows"], rows)


def organs_by_size() -> str:
    """Dice of each organ of the synthetic cohort, the smallest organ first."""
    loaded = result("synthetic_few_labels")
    volumes = dict(sorted(loaded["protocol"]["organ_volumes_ml"].items(), key=lambda item: item[1]))
    rows = []
    for row, variants in loaded["rows"].items():
        cell = variants["scores"]["dice"]
        means = [value(cell["organs"][organ], "dice") for organ in volumes]
        hd95 = value(variants["scores"]["hd95"], "hd95")
        rows.append([words(row), *means, value(cell, "dice"), hd95, str(cell["seeds"])])
    heads = [f"{organ}, {volume:.0f} ml" for organ, volume in volumes.items()]
    return table(["Dice [%]", *heads, "mean over organs", "HD95 [mm]", "seeds"], rows) + source(
        "synthetic_few_labels", commits(loaded)
    )


def organs(name: str, variant: str, metric: str = "dice", unit: str = "") -> str:
    """Mean and spread over seeds for each organ, and over organs."""
    loaded = result(name)
    first = next(iter(loaded["rows"].values()))[variant][metric]["organs"]
    rows = []
    for row, variants in loaded["rows"].items():
        cell = variants[variant][metric]
        means = [value(cell["organs"][organ], metric) for organ in first]
        rows.append([words(row), *means, value(cell, metric), str(cell["seeds"])])
    heading = HEADINGS[metric] + (f" [{unit}]" if unit else "")
    return table([heading, *first, "mean over organs", "seeds"], rows)


def tries(name: str, *names: str, volume: str = "") -> str:
    """What was tried for some rows on validation patients, worst first; only settings in which tries differ.

    Tries that were scored on other numbers of held-out patients stand in other columns. `volume` names a structure
    whose volume, prediction minus reference, stands beside the Dice.
    """
    loaded = result(f"{name}_tuning")
    found = [one for one in loaded["tries"] if one["name"] in names and "curve" not in one]
    held_out = sorted({one.get("held_out", 0) for one in found})
    shared = set.intersection(*({*map(json.dumps, one["changes"].items())} for one in found))
    rows = []
    for one in sorted(found, key=lambda one: max(one["dice"].values())):
        own = [
            (key, value) for key, value in one["changes"].items() if json.dumps((key, value)) not in shared
        ]
        settings = [f"`{_setting(key)} = {json.dumps(value)}`" for key, value in own]
        several = len(one["dice"]) > 1
        scores = [
            f"{key.rpartition(', ')[2]} {100 * value:.1f}" if several or ", " in key else f"{100 * value:.1f}"
            for key, value in one["dice"].items()
        ]
        told = ", ".join(settings) or "none of these"
        told = f"{words(one['name'])}: {told}" if len(names) > 1 else told
        columns = [", ".join(scores) if one.get("held_out", 0) == number else "" for number in held_out]
        if volume:
            columns.append(", ".join(f"{each[volume]:+.0f}" for each in one["volume_difference"].values()))
        rows.append([told, str(one["seed"]), *columns])
    headings = [f"Dice [%], {number} patients" for number in held_out] if len(held_out) > 1 else ["Dice [%]"]
    if volume:
        headings.append(f"volume of the {volume}, prediction minus reference [voxels]")
    return table([" and ".join(names[:2]), "seed", *headings], rows) + source(
        f"{name}_tuning", loaded["metadata"]
    )


def _setting(dotted: str) -> str:
    """The last part of the name that a setting has now."""
    name = dotted.rpartition(".")[2]
    return OLDER_NAMES.get(name, name)


def curves(name: str, *names: str) -> str:
    """Dice of validation patients while rows of a sweep train: a line for each validation."""
    loaded = result(f"{name}_tuning")
    found = {one["name"]: dict(one["curve"]) for one in loaded["tries"] if "curve" in one}
    shown = [found[row] for row in names if row in found]
    steps = sorted(set().union(*shown))
    lines = [
        [str(step), *(f"{100 * curve[step]:.1f}" if step in curve else "–" for curve in shown)]
        for step in steps
    ]
    heads = [words(row) for row in names if row in found]
    return table(["Dice [%] after so many steps", *heads], lines) + source(
        f"{name}_tuning", loaded["metadata"]
    )


def versus() -> str:
    """nnU-Net and this package on the same cases for the same processor time."""
    loaded = result("versus_nnunet")
    lines = []
    for name, metrics in loaded["rows"].items():
        same = [one for one in loaded["runs"] if one["name"] == name]
        minutes = sum(one["processor_seconds"] for one in same) / len(same) / 60
        cells = [with_seeds(metrics["dice"]), value(metrics["hd95"], "hd95")]
        lines.append(
            [words(name).replace("nnunet", "nnU-Net"), *cells, str(_steps(same[0])), f"{minutes:.1f} min"]
        )
    head = ["mean (seeds)", "Dice [%]", "HD95 [voxels]", "steps", "processor time"]
    return table(head, lines) + source("versus_nnunet", commits(loaded))


def _steps(trained: Mapping[str, Any]) -> int:
    """Of nnU-Net as its epochs count them, of ours as planned."""
    if iterations := trained.get("iterations"):
        return int(iterations["epochs"] * iterations["iterations"])
    return int(sum(next(line["value"] for line in trained["plan"] if line["setting"] == "train.steps")))


def demo() -> str:
    """What the demo prints, over several seeds, and the same scans with all their labels."""
    loaded = result("demo")
    seeds = loaded["seeds"]
    rows = []
    for name, cells in loaded["rows"].items():
        dice = [value(cell, "dice") for column, cell in cells.items() if column != "hd95"]
        rows.append([name, *dice, value(cells["hd95"], "hd95")])
    organs = list(seeds[0]["rows"]["naive"]["dice"])
    header = [f"Dice [%], {seeds[0]['test_cases']} test scans", *organs, "HD95 [mm]"]
    several = "Mean and spread over" if len(seeds) > 1 else "One seed of"
    note = f"\n{several} {len(seeds)} seeds (scans, weights and batches)."
    if timed := [seed["seconds"] for seed in seeds if seed["seconds"] is not None]:
        note += f" From the making of the scans to the report: at most {max(timed) / 60:.1f} minutes."
    note += "\n"
    return table(header, rows) + note + source("demo", seeds[0]["metadata"])


def speed() -> str:
    """What the benchmarks of speed and memory say beside their goals; misses are shown as they are."""
    step = result("training_step")
    evaluation, window = result("evaluation_speed"), result("sliding_window")
    check = result("check_speed")
    rows = [
        [
            "V-Net step, bf16 and channels last against float32",
            f"{step['precision']['times_faster']} times faster",
            "3 times",
        ],
        *(
            [f"{name}, against the bare step", f"{percent} % more", "5 %"]
            for name, percent in step["loop_overhead"]["overhead_percent"].items()
        ),
        *(
            [
                f"evaluating a case of 14 organs, {name} prediction, against {oracle}",
                f"{row[f'times_faster_than_{key}']:.0f} times faster",
                f"{goal} times",
            ]
            for name, row in evaluation["rows"].items()
            for oracle, key, goal in (("MedPy", "medpy", 25), ("MONAI", "monai", 5))
        ),
        *(
            [
                f"sliding window, {row['classes']} classes, {'x'.join(map(str, row['size']))}, against MONAI",
                f"time x {row['time_ratio']:.2f}, memory x {row['memory_ratio']:.2f}",
                "x 1, x 0.25 at 60 classes",
            ]
            for row in window["rows"]
        ),
        [
            f"checking {check['cases']} cases of {'x'.join(map(str, check['shape']))}, against a bare read",
            f"time x {check['check_over_nibabel']['wall']:.2f}",
            f"x {check['target']}",
        ],
    ]
    return table(["", "measured", "goal"], rows) + source("training_step", step["metadata"])


def steps() -> str:
    """A step of every method relative to supervised."""
    loaded = result("step_time")
    rows = [
        [
            *(f"`{name}`", row["net"], f"{row['median_s']:.2f} s"),
            *(f"{row['relative']:.2f}", f"{row['peak_mib']} MiB"),
        ]
        for name, row in loaded["methods"]["methods"].items()
    ]
    head = ["", "network", "processor time of a step", "relative to `supervised`", "peak memory"]
    note = f"\nNetworks of {loaded['methods']['network']}.\n"
    return table(head, rows) + note + source("step_time", loaded["metadata"])


def added_steps() -> str:
    """What prototypes, contrast and distillation add to a step at LTUDA's published size."""
    loaded = result("step_time")
    added = loaded["added"]
    rows = [
        [
            f"`{name}` against `{row['without']}`",
            *(f"{row['seconds'][variant]['median_s']:.2f} s" for variant in ("with", "without")),
            f"{row['added_percent']} %",
            f"{added['goal_percent']} %",
        ]
        for name, row in added["methods"].items()
    ]
    head = ["", "a step", "without", "more", "goal: at most"]
    return table(head, rows) + f"\n{added['network']}.\n"


def batch_norm() -> str:
    """What unlabelled scans change although nothing is learnt from them, in each comparison."""
    control, alone = CONTROLS[0], "supervised_with_their_dice"
    compared = {
        "LA, 8 of 80 scans": ("la2018_half_resolution", "supervised", CONTROLS[1], ""),
        "ACDC, 7 of 70 patients": ("acdc_few_labels", alone, control, "_of_7"),
        "ACDC, 3 of 70 patients": ("acdc_few_labels", alone, control, "_of_3"),
        "synthetic CT, 2 of 20 scans of four scanners": ("synthetic_few_labels", alone, control, ""),
    }
    rows = []
    for heading, (name, labelled, mixed, suffix) in compared.items():
        found = result(name)["rows"]
        names = (labelled + suffix, mixed + suffix, f"{mixed}_apart{suffix}")
        rows.append([heading, *(with_seeds(found[row]["scores"]["dice"]) for row in names)])
    heads = ("labelled scans alone", "with unlabelled ones, together", "with unlabelled ones, apart")
    return table(["Dice [%], mean ± spread (seeds)", *heads], rows)


def apart() -> str:
    """Methods with labelled and unlabelled cases in one batch norm, or apart."""
    rows = []
    for heading, (name, suffix) in COLUMNS.items():
        found = result(name)["rows"]
        for row in _without(f"_apart{suffix}", found):
            if row not in CONTROLS:
                cells = [found[f"{row}{way}{suffix}"]["scores"]["dice"] for way in ("", "_apart")]
                rows.append([f"{heading}: {words(row)}", *map(with_seeds, cells)])
    return table(["Dice [%], mean ± spread (seeds)", "together", "apart"], rows)


def drawn_volumes() -> str:
    """How large structures are drawn in scans that were learnt from without labels."""
    loaded = result("drawn_volumes")
    kinds = {
        "size": "labelled patients, of the others",
        "drawn": "drawn, of the truth",
        "scored": "scored, of the truth",
    }
    lines = [
        [words(name), kinds[kind], *(f"{number:.2f}" for number in row[kind])]
        for name, row in loaded["rows"].items()
        for kind in kinds
        if kind in row
    ]
    return table(["", "volume as a part", *loaded["structures"]], lines) + source(
        "drawn_volumes", loaded["metadata"]
    )


def resolution_ceiling() -> str:
    """The Dice that a perfect network could reach with slices of another size."""
    loaded = result("resolution_ceiling")
    lines = [
        [f"{side}x{side}: {way}", *(f"{100 * row[way][name]:.1f}" for name in loaded["structures"])]
        for side, row in loaded["rows"].items()
        for way in row
    ]
    return table(["Dice [%] of the labels themselves", *loaded["structures"]], lines) + source(
        "resolution_ceiling", loaded["metadata"]
    )


def labelled_or_not() -> str:
    """Dice on the training scans of the synthetic cohort, with labels and without."""
    loaded = result("labelled_or_not")
    rows = [
        [words(row), *(f"{100 * cells[kind]:.1f}" for kind in ("labelled", "unlabelled"))]
        for row, cells in loaded["rows"].items()
    ]
    head = ["Dice [%], one seed", "2 labelled training scans", "18 unlabelled training scans"]
    return table(head, rows) + source("labelled_or_not", loaded["metadata"])


def semi_costs() -> str:
    """What GuidedNet's mixture adds to a step of CPS, and distance maps to those of SASSNet and DTC."""
    loaded = result("step_time")
    mixture, maps = loaded["mixture"], loaded["distance_maps"]
    rows = [
        [
            "mixture of `guidednet`, against a step of `cps`",
            f"{mixture['added_to_cps_percent']} %",
            f"{mixture['goal_percent']} %",
        ],
        *(
            [
                f"distance maps of `{name}`, against its step",
                f"{row['added_percent']} %",
                f"{maps['goal_percent']} %",
            ]
            for name, row in maps["methods"].items()
        ),
    ]
    return table(["", "more", "goal: at most"], rows)


def shortcut() -> str:
    """Whether networks that are asked for an organ listen to the question."""
    loaded = result("site_shortcut")
    rows = [
        [
            f"`{name}`",
            *(f"{100 * row[f'dice_with_the_organ_{what}']:.0f}" for what in ("asked_for", "of_the_site")),
        ]
        for name, row in loaded["rows"].items()
    ]
    head = ["", "Dice [%] with the organ asked for", "Dice [%] with the organ that the site annotates"]
    return table(head, rows) + source("site_shortcut", loaded["metadata"])


def numbers(method: str) -> str:
    """What is known of one method, beside the baselines and the ceiling; for its own page."""
    mine = re.compile(rf"{method}(_with.*|_apart|, .*)?")
    columns = {}
    for heading, (name, suffix) in COLUMNS.items():
        found = result(name)["rows"]
        full_names = {row: row + suffix for row in _without(suffix, found)}
        if "full_supervision" in found:  # it has no suffix: its number of labels is no column's
            full_names["full_supervision"] = "full_supervision"
        cells = {row: found[full]["scores"]["dice"] for row, full in full_names.items()}
        if any(mine.fullmatch(row) for row in cells):
            columns[heading] = cells
    names = dict.fromkeys(row for cells in columns.values() for row in cells)
    shown = [
        row
        for row in names
        if row in BASELINES or mine.fullmatch(row) or row in (f"mixed_{method}", f"supervised_for_{method}")
    ]
    shown.sort(key=lambda row: (row == "full_supervision", row not in BASELINES))
    rows = [[words(row), *(with_seeds(cells.get(row)) for cells in columns.values())] for row in shown]
    cost = result("step_time")["methods"]["methods"].get(method, {})
    note = ""
    if cost:
        times = f"{cost['relative']:.2f} times one of `supervised`"
        note = f"\nA step costs {times} (3D, {cost['net']} of width 16) and {cost['peak_mib']} MiB.\n"
    heading = "Dice [%], mean ± spread (seeds)"
    return (table([heading, *columns], rows) if columns else "") + note


def _without(suffix: str, rows: Collection[str]) -> list[str]:
    """The names of the rows that end so, without the end."""
    return [row.removesuffix(suffix) for row in rows if row.endswith(suffix)]


def coverage() -> str:
    """How often the interval of a mean holds the true mean."""
    loaded = result("interval_coverage")
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for one in loaded["interval_of_a_mean"]:
        held = "too few" if one["coverage"] is None else f"{100 * one['coverage']:.1f} %"
        design = (str(one["patients"]), str(one["scans"]), str(one["seeds"]))
        rows.setdefault(design, {})[one["scores"]] = held
    head = ["patients", "scans of each", "seeds", "normal", "skewed"]
    body = [[*design, cells["normal"], cells["skewed"]] for design, cells in rows.items()]
    return table(head, body) + source("interval_coverage", loaded["metadata"])


def false_positives() -> str:
    """How often two equal models, or two equal methods, are told apart."""
    loaded = result("interval_coverage")
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for name in ("models", "methods"):
        for one in loaded[f"test_of_two_equal_{name}"]:
            design = (f"of {name}", str(one["patients"]), str(one["scans"]), str(one["seeds"]))
            rows.setdefault(design, {})[one["scores"]] = f"{100 * one['false_positives']:.1f} %"
    head = ["test", "patients", "scans of each", "seeds", "normal", "skewed"]
    body = [[*design, cells["normal"], cells["skewed"]] for design, cells in rows.items()]
    return table(head, body) + source("interval_coverage", loaded["metadata"])


def consistency_share() -> str:
    """What part of the gradient DKUXNet's contrast has, by temperature."""
    loaded = result("consistency_share")
    forms = loaded["rows"][0]["share"]
    rows = [[form, *(f"{100 * row['share'][form]:.1f}" for row in loaded["rows"])] for form in forms]
    head = [f"{row['classes']} classes, {row['network']} network [%]" for row in loaded["rows"]]
    return table(["form, temperature", *head], rows) + source("consistency_share", loaded["metadata"])


def cold_start() -> str:
    """From the start of a process to the label file, and what imports cost."""
    loaded = result("cold_start")
    rows = [
        [f"`{name}`", *(f"{row[clock][form]:.2f}" for clock in row for form in ("least", "median"))]
        for name, row in loaded["rows"].items()
    ]
    head = ["", "processor s, least", "median", "elapsed s, least", "median"]
    return table(head, rows) + source("cold_start", loaded["metadata"])


def reading() -> str:
    """A training patch from the store, from nnU-Net's files and from h5."""
    loaded = result("read_speed")
    names = {
        "store": "store",
        "limit": "unpacking alone (limit)",
        "nnunet": "nnU-Net",
        "h5_patch": "patch of h5",
    }
    names["whole_h5"] = "whole h5"
    rows = []
    for row in loaded["patches"]:
        times = [row["ways"][way]["processor"] for way in names]
        told = [f"{each['median']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in times]
        faster = row["store_times_faster_than"]
        rows.append(["x".join(map(str, row["patch"])), *told, f"{faster['nnunet']}", f"{faster['whole_h5']}"])
    goals = loaded["goals"]
    head = ["patch", *(f"{name} [ms]" for name in names.values())]
    head += [
        f"times faster than nnU-Net (goal {goals['nnunet']})",
        f"than whole h5 (goal {goals['whole_h5']})",
    ]
    note = f"\nProcessor time, median and quartiles of {loaded['num_reads']} places; {loaded['peer']}.\n"
    return table(head, rows) + note + source("read_speed", loaded["metadata"])


def added_class() -> str:
    """A structure that is added to a trained model: every structure before and after."""
    loaded = result("add_a_class")
    names = list(loaded["rows"]["at_once"]["scores"]["dice"]["organs"])
    rows = []
    for row, variants in loaded["rows"].items():
        cell = variants["scores"]["dice"]
        found = [value(cell["organs"].get(name), "dice") for name in names]
        rows.append([words(row), *found, str(cell["seeds"])])
    return table(["Dice [%]", *names, "seeds"], rows) + source("add_a_class", commits(loaded))


def quality() -> str:
    """Whether a model knows when it is wrong: expected beside true Dice, and what is flagged."""
    loaded = result("quality")
    kinds = ("doubtful", "doubled", "unfamiliar")

    def percent(share: float | None) -> str:
        return "–" if share is None else f"{100 * share:.0f}"

    rows = []
    for name, run in loaded["runs"].items():
        for change, found in run["groups"].items():
            by_kind = [found["by_flag"].get(kind, {"failures": 0, "right": 0}) for kind in kinds]
            rows.append(
                [
                    f"{words(name)}, {change}",
                    f"{found['failures']} of {found['results']}",
                    f"{found['rank_correlation']:.2f}",
                    *(
                        percent(found[key])
                        for key in ("flagged_failures", "false_alarms", "found_at_false_alarms")
                    ),
                    *(f"{percent(each['failures'])} / {percent(each['right'])}" for each in by_kind),
                ]
            )
    head = ["", "failures", "rank correlation", "failures flagged [%]", "right ones flagged [%]"]
    head += [
        "found by expected Dice at 10 % false alarms [%]",
        *(f"{kind}: failures / right [%]" for kind in kinds),
    ]
    return table(head, rows) + source("quality", loaded["metadata"])


def mutation() -> str:
    """How many of the faults that were put into the methods the tests find, and which not."""
    loaded = result("mutation")
    told = (
        f"{loaded['tried']} of {loaded['planned']} planned faults were tried, and {loaded['found']} found: "
        f"**{100 * loaded['share']:.1f} %**."
    )
    rows = [
        [f"`{each['file']}`", f"`{each['text']}`", each["what"], each["reason"] or "not found"]
        for each in loaded["survivors"]
    ]
    return (
        told
        + "\n\n"
        + table(["not found in", "line", "fault", "why"], rows)
        + source("mutation", loaded["metadata"])
    )


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "la2018": lambda: sweep("la2018_half_resolution", "scores", ("dice", "jaccard", "hd95", "asd"), "mm"),
    "la2018_official": lambda: sweep(
        "la2018_half_resolution", "scores_la_official", ("dice", "jaccard", "hd95", "asd"), "voxels"
    ),
    "acdc": lambda: sweep("acdc_one_structure", "scores", ("dice", "jaccard", "hd95", "assd"), "voxels"),
    "acdc_organs": lambda: organs("acdc_one_structure", "scores"),
    "acdc_distances": lambda: organs("acdc_one_structure", "scores", "hd95", "voxels"),
    "synthetic": lambda: sweep("synthetic_one_organ", "scores", ("dice", "jaccard", "hd95", "assd"), "mm"),
    "synthetic_organs": lambda: organs("synthetic_one_organ", "scores"),
    "synthetic_distances": lambda: organs("synthetic_one_organ", "scores", "hd95", "mm"),
    "tries_cda": lambda: tries("acdc_one_structure", "ltuda_cda"),
    "tries_cps": lambda: tries("synthetic_few_labels", "cps"),
    "tries_their_dice": lambda: tries("acdc_few_labels", "supervised_of_3"),
    "tries_cps_apart": lambda: tries("synthetic_few_labels", "cps_apart"),
    "tries_supervised": lambda: tries("synthetic_few_labels", "supervised"),
    "tries_long_supervised": lambda: tries("acdc_long", "supervised_of_3", "supervised_of_one"),
    "tries_long_self_training": lambda: tries("acdc_long", "self_training_of_3", "self_training_of_one"),
    "tries_long_of_7": lambda: tries(
        "acdc_long",
        *(f"{method}_of_7{which}" for which in ("", "_alike") for method in ("self_training", "supervised")),
        volume="myocardium",
    ),
    "tries_ltuda": lambda: tries("acdc_one_structure", "ltuda"),
    "long": long,
    "versus": versus,
    "long_curves": lambda: curves(
        "acdc_long",
        "full_supervision",
        *(f"{method}_of_{number}" for number in (3, 7) for method in ("supervised", "self_training")),
    ),
    "long_sides": lambda: long(LONG_SIDES, full=False),
    "networks": networks,
    "few_labels": few_labels,
    "organs_by_size": organs_by_size,
    "batch_norm": batch_norm,
    "apart": apart,
    "labelled_or_not": labelled_or_not,
    "drawn_volumes": drawn_volumes,
    "resolution_ceiling": resolution_ceiling,
    "semi_costs": semi_costs,
    "shortcut": shortcut,
    "consistency_share": consistency_share,
    "quality": quality,
    "added_class": added_class,
    "cold_start": cold_start,
    "reading": reading,
    "coverage": coverage,
    "false_positives": false_positives,
    "mutation": mutation,
    "speed": speed,
    "steps": steps,
    "added_steps": added_steps,
}


def filled(page: Path) -> str:
    """The text of a page with its tables made anew."""
    text = page.read_text(encoding="utf-8")
    return BLOCK.sub(lambda match: match[1] + "\n" + made(match[2]) + "\n" + match[3], text)


def made(name: str) -> str:
    """The table of this name; ``numbers_METHOD`` for the page of a method."""
    return numbers(name.removeprefix("numbers_")) if name.startswith("numbers_") else TABLES[name]()


def main() -> None:
    pages = {page: filled(page) for page in PAGES}
    stale = {page: text for page, text in pages.items() if text != page.read_text(encoding="utf-8")}
    if "--check" in sys.argv:
        print("\n".join(f"{page.name}: a table is not what benchmarks/results says" for page in stale))
        raise SystemExit(bool(stale))
    for page, text in stale.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
