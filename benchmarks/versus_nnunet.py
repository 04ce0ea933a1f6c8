"""nnU-Net v2 and this package on the same cases, the same cores and for the same processor time, scored alike.

    python benchmarks/versus_nnunet.py --source ACDC_FOLDER --work runs/versus_nnunet --minutes 40

It makes a virtual environment with nnU-Net in the folder `--work`, writes every set of labels in nnU-Net's layout
(`labelwise export`), trains, predicts and scores. It can be stopped and repeated: what is finished is skipped, and a
training that was stopped goes on. Use --only to share the rows between cores, and --collect to write the result.

nnU-Net is used as published, by its own commands, with one change: its trainer has so many epochs and iterations as
fit into the processor time, by the time of its first iterations; what it takes in the end, ours gets. An epoch of
nnU-Net is a unit of its schedule and of its log; 250 iterations of it would be longer than the whole budget on a
processor. The validation after the training, which trains nothing, is left out. Preprocessing does not count, neither
here nor there. nnU-Net plans batches that fill the memory of a graphics card of 8 GB, which on a processor leaves a
few dozen iterations in an hour; --memory is its own option to plan for less, which gives it smaller batches and more
iterations. The memory planned for stands in the result.

    complete        every structure of every training patient
    one_structure   each patient is annotated for one of three structures; for nnU-Net the others are (a) background, or
                    (b) ignored
    labelled_3, labelled_7      the first patients in the published order; nnU-Net does not learn from the others
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from metadata import RESULTS, metadata
from nnunet_peer import NNUNET, call, environment
from sweep import MEAN, spread, summarise_scores

from labelwise import run
from labelwise.atomic import write_json, write_text
from labelwise.cohort.manifest import MANIFEST_NAME, read_manifest

TRAINER = "nnUNetTrainerForTime"
TRIAL, WARM_UP = 10, 4  # iterations of a trial; the first ones fill the queue of batches
VALIDATION = 1 / 3  # of an iteration: an epoch validates one batch, which has no backward pass
MOST_EPOCHS, LEAST_ITERATIONS = 100, 10  # of nnU-Net; iterations of an epoch

# Lies among nnU-Net's own trainers, where it finds them by name.
TRAINER_CODE = f'''"""nnU-Net's trainer for some epochs and iterations; written by benchmarks/versus_nnunet.py."""

import glob
import json
import os
import time

import torch

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def processor_seconds():
    """Of this process and of those that it started."""
    total = time.process_time()
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(stat) as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class {TRAINER}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["FOR_TIME_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["FOR_TIME_ITERATIONS"])
        self.num_val_iterations_per_epoch = 1
        self.save_every = 5
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.seconds = []

    def train_step(self, batch):
        result = super().train_step(batch)
        self.seconds.append(processor_seconds())  # at the end of each iteration, with the process that makes batches
        return result

    def on_train_end(self):
        super().on_train_end()
        with open(os.environ["FOR_TIME_RECORD"], "w") as file:
            json.dump(self.seconds, file)

    def perform_actual_validation(self, save_probabilities=False):
        pass
'''

# Sets of labels: folder of the manifest, and how `simulate` makes it of the complete one.
LABELS: Mapping[str, tuple[str, Mapping[str, Any]] | None] = {
    "complete": None,
    "one_structure": ("one_structure_per_case", {"seed": 0}),
    "labelled_3": ("keep_labelled", {"n": 3}),
    "labelled_7": ("keep_labelled", {"n": 7}),
}


@dataclass(frozen=True)
class Row:
    """Who learns from which labels."""

    labels: str
    learner: str  # nnunet, or a method of this package
    unknown: str = "ignore"  # of nnU-Net: what is not annotated

    @property
    def name(self) -> str:
        """Of the row and of its folders."""
        asked = "_background" if self.unknown == "background" else ""
        return f"{self.labels}_{self.learner}{asked}"


ROWS = (
    Row("complete", "nnunet"),
    Row("complete", "supervised"),
    Row("one_structure", "nnunet", "background"),
    Row("one_structure", "nnunet", "ignore"),
    Row("one_structure", "supervised"),
    Row("one_structure", "self_training"),
    *(
        Row(labels, learner)
        for labels in ("labelled_3", "labelled_7")
        for learner in ("nnunet", "supervised", "self_training")
    ),
)


@dataclass(frozen=True)
class Trained:
    """What a training took."""

    processor_seconds: float
    wall_seconds: float
    facts: Mapping[str, Any]


def main() -> None:
    """Read the command line, run what is not finished yet, and write the result file."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    # Everything that is started from here has these cores and no others.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rows = [row for row in ROWS if row.name in options.only]
    if not options.collect:
        _make_manifests(options.source, options.work)
        for seed in options.seeds:
            for row in rows:
                _perform(row, seed, options)
    _collect(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of ACDC with train.list and val.list"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument(
        "--minutes", type=float, default=40.0, help="processor time of each training, per core"
    )
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument(
        "--memory", type=float, default=8.0, help="GB of a graphics card that nnU-Net plans its batches for"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, help="rows of the table")
    parser.add_argument("--collect", action="store_true", help="only write the result of finished rows")
    parser.add_argument("--output", type=Path, default=RESULTS / "versus_nnunet.json", help="result file")
    return parser.parse_args()


def _make_manifests(source: Path, work: Path) -> None:
    complete = work / "complete"
    if not (complete / MANIFEST_NAME).exists():
        run.import_data([source], complete, split="ssl4mis")
    for name, scarce in LABELS.items():
        if scarce is not None and not (work / name / MANIFEST_NAME).exists():
            mode, settings = scarce
            run.simulate(complete, work / name, mode, **settings)


def _perform(row: Row, seed: int, options: argparse.Namespace) -> None:
    folder = options.work / "runs" / f"{row.name}_seed{seed}"
    if (folder / "result.json").exists():
        return
    print(f"{row.name}, seed {seed}", flush=True)
    data = options.work / row.labels
    learn = _nnunet if row.learner == "nnunet" else _ours
    trained = learn(row, seed, data, folder, options)
    scores = run.evaluate(
        folder / "predictions", data, folder / "scores.csv", split="test", unit="voxels", workers=1
    ).scores
    table = summarise_scores(scores)
    facts = {
        "name": row.name,
        "labels": row.labels,
        "learner": row.learner,
        "seed": seed,
        "minutes": options.minutes,
        "processor_seconds": round(trained.processor_seconds, 1),
        "wall_seconds": round(trained.wall_seconds, 1),
        **trained.facts,
        "scores": {"scores": table},
        "metadata": metadata(),
    }
    write_json(folder / "result.json", facts)
    print(f"  Dice {table['dice'][MEAN]}, {trained.processor_seconds:.0f} s of processor time", flush=True)


# this package


def _ours(row: Row, seed: int, data: Path, folder: Path, options: argparse.Namespace) -> Trained:
    """Everything planned but the method."""
    training = folder / "training"
    program = [sys.executable, "-c", "from labelwise.cli.main import main; main()"]
    method = ["--method", row.learner, "--device", "cpu"]
    # The scans are prepared and the plan is made before the time begins.
    planned = _json([*program, "train", "--data", str(data), *method, "--dry-run", "--json", "-q"])
    spacing = planned["prepare"]["spacing_mm"]
    asked = ["--set", f"prepare.spacing_mm={json.dumps(spacing)}"] if spacing else []
    call([*program, "prepare", str(data), *asked, "-q"])
    seconds = _processor_seconds_of_nnunet(row, seed, options) or 60 * options.minutes * options.threads
    trained = _timed(
        folder / "time.json",
        [
            *(*program, "train", "--data", str(data), *method, "--seed", str(seed), "-o", str(training)),
            *("-q", "--budget", f"{seconds / options.threads:.0f}s"),
        ],
    )
    call(
        [*program, "predict", str(training), str(data), "-o", str(folder / "predictions"), "-q", "-d", "cpu"]
    )
    plan = json.loads((training / "plan.json").read_text(encoding="utf-8"))
    return Trained(*trained, {"plan": plan["plan"], "version": version("labelwise")})


def _processor_seconds_of_nnunet(row: Row, seed: int, options: argparse.Namespace) -> float | None:
    """What its trainings with the same labels took, which come first: the time that ours get too."""
    twins = [one.name for one in ROWS if one.learner == "nnunet" and one.labels == row.labels]
    files = [options.work / "runs" / f"{name}_seed{seed}" / "result.json" for name in twins]
    found = [json.loads(file.read_text())["processor_seconds"] for file in files if file.exists()]
    return mean(found) if found else None


# nnU-Net


def _nnunet(row: Row, seed: int, data: Path, folder: Path, options: argparse.Namespace) -> Trained:
    """Its own commands: plan and preprocess, train, predict."""
    program = _environment(options.work / "venv")
    number = 1 + [one.name for one in ROWS if one.learner == "nnunet"].index(row.name)
    raw = options.work / "nnUNet_raw"
    variables = {
        **os.environ,
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(options.work / "nnUNet_preprocessed"),
        "nnUNet_results": str(folder / "nnUNet_results"),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "f",
    }
    done = options.work / "nnUNet_preprocessed" / f"{row.name}.done"
    if not done.exists():
        run.export(
            data, raw, number=number, name=row.labels, unknown=_unknown(row), overwrite=True, workers=1
        )
        call(
            [
                *(program / "nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", 1, "-npfp", 1),
                *("--verify_dataset_integrity", "-gpu_memory_target", options.memory),
            ],
            variables,
        )
        write_text(done, "")
    iterations = _iterations(program, number, variables, folder, options.minutes * options.threads)
    train = [program / "nnUNetv2_train", number, "2d", "all", "-tr", TRAINER, "-device", "cpu"]
    trained = _timed(
        folder / "time.json", [*train, "--c"], _for_time(variables, iterations, folder / "seconds.json")
    )
    target = folder / "predictions"
    dataset = next(raw.glob(f"Dataset{number:03d}_*"))
    call(
        [
            *(
                program / "nnUNetv2_predict",
                "-i",
                dataset / "imagesTs",
                "-o",
                target,
                "-d",
                number,
                "-c",
                "2d",
            ),
            *("-f", "all", "-tr", TRAINER, "-device", "cpu", "-npp", 1, "-nps", 1),
        ],
        _for_time(variables, iterations, folder / "unused.json"),
    )
    plans = json.loads((options.work / "nnUNet_preprocessed" / dataset.name / "nnUNetPlans.json").read_text())
    chosen = {name: plans["configurations"]["2d"][name] for name in ("patch_size", "batch_size", "spacing")}
    facts = {"iterations": iterations, "memory_gb": options.memory, "plan": chosen, "version": NNUNET}
    return Trained(*trained, facts)


def _unknown(row: Row) -> Any:
    return row.unknown


def _environment(folder: Path) -> Path:
    """Its programs, and beside its trainers the one for some time."""
    programs = environment(folder)
    place = _output([programs / "python", "-c", "import nnunetv2; print(nnunetv2.__path__[0])"])
    write_text(Path(place) / "training" / "nnUNetTrainer" / f"{TRAINER}.py", TRAINER_CODE)
    return programs


def _iterations(
    program: Path, number: int, variables: Mapping[str, str], folder: Path, minutes: float
) -> dict[str, int]:
    """Epochs, and iterations of each, that fit into the processor time; measured once."""
    record = folder / "iterations.json"
    if not record.exists():
        trial = {"epochs": 1, "iterations": TRIAL}
        seconds = folder / "trial.json"
        folder.mkdir(parents=True, exist_ok=True)
        elsewhere = {**variables, "nnUNet_results": str(folder / "trial")}
        call(
            [program / "nnUNetv2_train", number, "2d", "all", "-tr", TRAINER, "-device", "cpu"],
            _for_time(elsewhere, trial, seconds),
        )
        ends = json.loads(seconds.read_text())
        each = (ends[-1] - ends[WARM_UP - 1]) / (TRIAL - WARM_UP)
        total = max(1, int(60 * minutes / (each * (1 + VALIDATION / LEAST_ITERATIONS))))
        epochs = min(MOST_EPOCHS, max(1, total // LEAST_ITERATIONS))
        write_json(record, {"epochs": epochs, "iterations": max(1, total // epochs)})
    found: dict[str, int] = json.loads(record.read_text())
    return found


def _for_time(variables: Mapping[str, str], iterations: Mapping[str, int], record: Path) -> dict[str, str]:
    return {
        **variables,
        "FOR_TIME_EPOCHS": str(iterations["epochs"]),
        "FOR_TIME_ITERATIONS": str(iterations["iterations"]),
        "FOR_TIME_RECORD": str(record),
    }


# programs


def _timed(
    memory: Path, words: Sequence[object], variables: Mapping[str, str] | None = None
) -> tuple[float, float]:
    """Processor and wall seconds of a program with all its processes; of all its parts, if it was stopped between."""
    before = json.loads(memory.read_text()) if memory.exists() else {"processor": 0.0, "wall": 0.0}
    used, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    try:
        call(words, variables)
    finally:
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        total = {
            "processor": before["processor"] + processor,
            "wall": before["wall"] + time.monotonic() - start,
        }
        write_json(memory, total)
    return total["processor"], total["wall"]


def _output(words: Sequence[object]) -> str:
    return subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, text=True
    ).stdout.strip()


def _json(words: Sequence[object]) -> Any:
    return json.loads(_output(words))


def _collect(options: argparse.Namespace) -> None:
    """Write the result file from the rows that are finished, with mean and spread over seeds."""
    files = sorted((options.work / "runs").glob("*/result.json"))
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    table: dict[str, Any] = {}
    for row in ROWS:
        same = [one["scores"]["scores"] for one in runs if one["name"] == row.name]
        if same:
            table[row.name] = {
                metric: spread([scores[metric][MEAN] for scores in same]) for metric in same[0]
            }
    protocol = {
        "data": "ACDC, h5 volumes; 70 training patients of train.list, tested on the 10 patients of val.list",
        "organs": list(read_manifest(options.work / "complete").label_space.structures),
        "time": f"about {options.minutes:g} minutes of {options.threads} core(s) for nnU-Net, and for ours as much as "
        "nnU-Net took with the same labels; preprocessing not counted",
        "nnunet": f"{NNUNET}, configuration 2d planned for {options.memory:g} GB, all training cases (fold 'all'), "
        "last checkpoint",
        "ours": "everything planned (`train --budget`), last iteration",
        "scores": "per volume in 3D, distances in voxels; nothing selected on test patients",
    }
    write_json(
        options.output,
        {"name": "versus_nnunet", "metadata": metadata(), "protocol": protocol, "rows": table, "runs": runs},
    )
    for name, metrics in table.items():
        print(f"{name:<36} Dice {metrics['dice']['mean']}")


if __name__ == "__main__":
    main()
