"""Write the tables of README.md and docs/results.md from benchmarks/results/*.json and the methods' cards.

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

from labelwise import run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METHOD_PAGES = ROOT / "docs" / "methods"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", *sorted(METHOD_PAGES.glob("*.md")))
SHORT = (
    *("naive", "supervised", "mean_teacher", "multi_talent", "pl_seg", "ltuda_cda"),
    *("ltuda, linear", "ltuda, unlabelled_prototype", "full_supervision"),
)  # rows that the README shows
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADINGS = {"dice": "Dice [%]", "jaccard": "Jaccard [%]", "hd95": "HD95", "asd": "ASD", "assd": "ASSD"}


def result(name: str) -> dict[str, Any]:
    """One result file."""
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows)) + "\n"


def source(name: str, facts: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    return (
        f"\nFrom `benchmarks/results/{name}.json`: commit {facts['commit']}, {facts['date']}, {facts['cpu']}, "
        f"{facts['threads']} of {facts['cores']} cores, torch {facts['torch']}.\n"
    )


def value(cell: Mapping[str, Any] | None, metric: str) -> str:
    """Mean, and spread over seeds if there are several."""
    if not cell or cell["mean"] is None:
        return "–"
    scale, digits = (100, 1) if metric in ("dice", "jaccard") else (1, 2)
    spread = cell["sd_over_seeds"]
    return f"{scale * cell['mean']:.{digits}f}" + (
        f" ± {scale * spread:.{digits}f}" if spread is not None else ""
    )


def sweep(
    name: str, variant: str, metrics: Sequence[str], unit: str, only: Collection[str] | None = None
) -> str:
    """The rows of a sweep, or some of them: mean and spread over seeds."""
    loaded = result(name)
    rows = []
    for row, variants in loaded["rows"].items():
        if only is not None and row not in only:
            continue
        cells = [value(variants[variant].get(metric), metric) for metric in metrics]
        seeds = next(iter(variants[variant].values()))["seeds"]
        minutes = [one["training_seconds"] / 60 for one in loaded["runs"] if one["name"] == row]
        rows.append([row.replace("_", " "), *cells, str(seeds), f"{sum(minutes) / len(minutes):.0f} min"])
    units = [HEADINGS[m] if m in ("dice", "jaccard") else f"{HEADINGS[m]} [{unit}]" for m in metrics]
    head = ["", *units, "seeds", "training"]
    commits = dict.fromkeys(one["metadata"]["commit"] for one in loaded["runs"])
    return table(head, rows) + source(name, {**loaded["runs"][0]["metadata"], "commit": ", ".join(commits)})


def organs(name: str, variant: str, metric: str = "dice", unit: str = "") -> str:
    """Mean and spread over seeds for each organ, and over organs."""
    loaded = result(name)
    first = next(iter(loaded["rows"].values()))[variant][metric]["organs"]
    rows = []
    for row, variants in loaded["rows"].items():
        cell = variants[variant][metric]
        means = [value(cell["organs"][organ], metric) for organ in first]
        rows.append([row.replace("_", " "), *means, value(cell, metric), str(cell["seeds"])])
    heading = HEADINGS[metric] + (f" [{unit}]" if unit else "")
    return table([heading, *first, "mean over organs", "seeds"], rows)


def tries(name: str, row: str) -> str:
    """What was tried for a row on validation patients, worst first; only settings in which tries differ."""
    loaded = result(f"{name}_tuning")
    found = [one for one in loaded["tries"] if one["name"] == row]
    shared = set.intersection(*({*map(json.dumps, one["changes"].items())} for one in found))
    rows = []
    for one in sorted(found, key=lambda one: max(one["dice"].values())):
        own = [
            (key, value) for key, value in one["changes"].items() if json.dumps((key, value)) not in shared
        ]
        settings = [f"`{key.rpartition('.')[2]} = {json.dumps(value)}`" for key, value in own]
        scores = [f"{key.rpartition(', ')[2]} {100 * value:.1f}" for key, value in one["dice"].items()]
        rows.append([", ".join(settings) or "none of these", str(one["seed"]), ", ".join(scores)])
    return table([row, "seed", "Dice [%]"], rows) + source(f"{name}_tuning", loaded["metadata"])


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
    minutes = max(seed["seconds"] for seed in seeds) / 60
    note = (
        f"\nMean and spread over {len(seeds)} seeds (scans, weights and batches). From the making of the scans to the "
        f"report: at most {minutes:.1f} minutes.\n"
    )
    return table(header, rows) + note + source("demo", seeds[0]["metadata"])


def methods() -> str:
    """One row for each registered method."""
    rows = [
        [f"[`{m['name']}`](docs/methods/{m['name']}.md)", ", ".join(m["learns_from"]), m["dims"], m["idea"]]
        for m in run.methods()
    ]
    lines = [["method", "learns from cases", "", "idea"], ["---"] * 4, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def speed() -> str:
    """What the benchmarks of speed and memory say beside their goals; misses are shown as they are."""
    step, read = result("training_step"), result("read_speed")
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
                f"reading a patch of {'x'.join(map(str, row['patch']))}, against the whole LA h5 file",
                f"{row['times_faster_than_whole_h5']} times faster",
                "20 times",
            ]
            for row in read["patches"]
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
    """What is known of one method, beside the baseline and the ceiling; for its own page."""
    sweeps = {"ACDC, Dice [%]": "acdc_one_structure", "synthetic CT, Dice [%]": "synthetic_one_organ"}
    found = {heading: result(name)["rows"] for heading, name in sweeps.items()}
    names = dict.fromkeys(row for rows in found.values() for row in rows)
    own = [row for row in names if re.fullmatch(rf"{method}(_with.*|, .*)?", row)]
    shown = dict.fromkeys(["supervised", *own, *(row for row in names if row == f"mixed_{method}")])
    rows = []
    for row in [*shown, "full_supervision"]:
        cells = [table.get(row, {}).get("scores", {}).get("dice") for table in found.values()]
        rows.append(
            [row.replace("_", " "), *(f"{value(c, 'dice')} ({c['seeds']})" if c else "–" for c in cells)]
        )
    cost = result("step_time")["methods"]["methods"].get(method, {}).get("relative")
    note = f"\nA step costs {cost:.2f} times one of `supervised` (3D, V-Net of width 16).\n" if cost else ""
    return table(["mean ± spread (seeds)", *sweeps], rows) + note


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "methods": methods,
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
    "acdc_short": lambda: sweep("acdc_one_structure", "scores", ("dice", "hd95"), "voxels", only=SHORT),
    "tries_cda": lambda: tries("acdc_one_structure", "ltuda_cda"),
    "tries_ltuda": lambda: tries("acdc_one_structure", "ltuda"),
    "shortcut": shortcut,
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
    stale = [page for page in PAGES if filled(page) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        print("\n".join(f"{page.name}: a table is not what benchmarks/results says" for page in stale))
        raise SystemExit(bool(stale))
    for page in stale:
        page.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
