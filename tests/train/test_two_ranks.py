"""Every method on two processes that talk over the loopback: their parameters and memories stay equal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from conftest import SMALL_NETS, net_of, tiny_config
from labelwise import load_config, load_model, read_manifest, run
from labelwise.cohort.manifest import Manifest, write_manifest
from labelwise.formats.tensors import load_header
from labelwise.methods import METHODS, find_method
from labelwise.train.record import read_log
from labelwise.types import LabelSpace

HANGS = 3600  # seconds; a rank that waits for the other waits for ever, and no machine is so slow
LONGER = {"train.steps": [6], "train.log_every": 1000}

DRIVER = """
import hashlib, importlib, json, signal, sys, warnings
from pathlib import Path
import torch
from labelwise import load_config, run
from labelwise.train import loop

training = importlib.import_module("labelwise.run.train")  # `run.train` is the function
warnings.simplefilter("ignore")
torch.set_num_threads(1)

def digest(method):
    # Memories too: a resumed run gives every rank those of rank 0. Statistics of batch norm belong to a rank.
    norms = [part for part in method.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    of_a_rank = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
    memories = [buffer for buffer in method.buffers() if id(buffer) not in of_a_rank]
    values = b"".join(value.detach().numpy().tobytes() for value in [*method.parameters(), *memories])
    return hashlib.sha256(values).hexdigest()

def train(recipe, output):
    # Stopped before its last step, and resumed: every rank gets the memories of rank 0.
    config = load_config(recipe)
    stop_on_the_second_rank(config, output, sum(config.train.steps) - 1)
    trained = []
    fit = training.fit

    def watched(stage, config, fabric, report):
        result = fit(stage, config, fabric, report)
        trained.append((fabric.global_rank, fabric.world_size, digest(stage.method)))
        return result

    training.fit = watched
    result = run.train(config, output)
    training.fit = fit
    return [*trained[-1], result.steps]

def stop_on_the_second_rank(config, output, after):
    # Only one of two processes gets the notice of the cluster, and the next line of the log may be far.
    optimise, steps = loop._Training._optimise, []

    def watched(training, *arguments):
        steps.append(1)
        if training.fabric.global_rank == 1 and len(steps) == after:
            signal.raise_signal(signal.SIGTERM)
        return optimise(training, *arguments)

    loop._Training._optimise = watched
    result = run.train(config, output)
    loop._Training._optimise = optimise
    return [result.interrupted, result.steps]

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    facts = {}
    for recipe in sorted(folder.glob("*.toml")):
        facts[recipe.stem] = train(recipe, folder / recipe.stem)
        (folder / f"rank{facts[recipe.stem][0]}.json").write_text(json.dumps(facts))
    longer = load_config(folder / "supervised.toml", json.loads(sys.argv[2]))
    facts["stopped"] = stop_on_the_second_rank(longer, folder / "stopped", 3)
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(facts))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
"""


def stages_of(method):
    kind, count = find_method(method), 1
    while (kind := kind.follows) is not None:
        count += 1
    return count


@pytest.fixture(scope="module")
def with_a_new_structure(tiny_cohort, tmp_path_factory):
    """The tiny cohort with another name for the pancreas: a structure that no model of it knows."""
    cohort = read_manifest(tiny_cohort)

    def renamed(names):
        return ["aorta" if name == "pancreas" else name for name in names]

    data_sets = {
        name: replace(
            one,
            values=dict(zip(one.values, renamed(one.values.values()), strict=True)),
            layout=replace(one.layout, file_names="ignored"),
        )
        for name, one in cohort.data_sets.items()
    }
    cases = tuple(replace(case, annotated=frozenset(renamed(case.annotated))) for case in cohort.cases)
    folder = tmp_path_factory.mktemp("new_structure")
    write_manifest(Manifest(LabelSpace(tuple(renamed(cohort.label_space.names))), data_sets, cases), folder)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_cohort, tiny_run, with_a_new_structure, tmp_path_factory):
    """The runs of all methods, trained by torchrun, and what each rank says of them."""
    folder = tmp_path_factory.mktemp("ranks")
    for method in METHODS:
        net = net_of(find_method(method))
        changes = {"net.name": net, "net.settings": SMALL_NETS[net], "train.steps": [2] * stages_of(method)}
        data = tiny_cohort
        if find_method(method).keeps_classes:
            data, changes = with_a_new_structure, {"warm_start": str(tiny_run), "train.steps": [2]}
        text = tiny_config(data, method, **changes).to_toml()
        (folder / f"{method}.toml").write_text(text, encoding="utf-8")
    (folder / "driver.py").write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, folder / "driver.py", folder, json.dumps(LONGER)],
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert ended.returncode == 0, ended.stderr
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_the_parameters_and_memories_of_all_ranks_are_equal_after_a_resume(trained, method):
    _, (first, second) = trained
    assert (first[method][0], second[method][0]) == (0, 1)
    assert first[method][1:] == second[method][1:]
    assert first[method][1] == first[method][3] == 2  # ranks, steps


def test_all_ranks_stop_at_the_step_at_which_one_of_them_is_told_to(trained):
    folder, ranks = trained
    assert [facts["stopped"] for facts in ranks] == [[True, 3]] * 2
    assert load_header(folder / "stopped" / "last.safetensors")["facts"]["step"] == 3


def test_a_run_of_two_processes_is_continued_by_one_with_a_warning(trained, caplog):
    config = load_config(trained[0] / "supervised.toml", LONGER)
    with caplog.at_level("WARNING", logger="labelwise"):
        assert run.train(config, shutil.copytree(trained[0] / "stopped", trained[0] / "continued")).steps == 6
    assert "begun by 2 processes and is continued by 1" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_the_run_folder_is_written_once_and_complete(trained, method):
    folder, count = trained[0] / method, stages_of(method)
    stages = [folder] if count == 1 else [folder / f"stage_{number + 1}" for number in range(count)]
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    expected = {folder / name for name in ("run.toml", "environment.json", "patients.json", "cost.json")}
    expected |= {folder / "warm_start.json"} if find_method(method).keeps_classes else set()
    expected |= {folder / "model" / name for name in ("model.json", "weights.safetensors", "card.md")}
    expected |= {
        stage / name for stage in stages for name in ("log.jsonl", "last.safetensors", "best.safetensors")
    }
    assert files == {file.relative_to(folder) for file in expected}
    for stage in stages:
        events = [(event["event"], event["step"]) for event in read_log(stage / "log.jsonl")]
        assert events == [("train", 1), ("train", 2), ("validation", 2)]
    assert load_model(folder).info.method == method


def test_a_process_that_is_lost_ends_the_training_with_a_sentence_and_the_checkpoint(tiny_cohort, tmp_path):
    steps = {"train.steps": [100_000], "train.checkpoint_minutes": 1e-6, "device.processes": 2}
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_config(tiny_cohort, **steps).to_toml(), encoding="utf-8")
    output = tmp_path / "run"
    training = subprocess.Popen(
        [sys.executable, "-m", "labelwise", "train", recipe, "-o", output, "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (output / "last.safetensors").exists():
        assert training.poll() is None, training.communicate()[1]
        time.sleep(0.1)
    others = psutil.Process(training.pid).children()
    (second,) = [each for each in others if "labelwise" in " ".join(each.cmdline())]
    second.kill()
    told = training.communicate(timeout=HANGS)[1]
    assert training.returncode == 1
    assert "another process of this training has ended" in told
    assert str(output / "last.safetensors") in told
    assert "Traceback" not in told
    assert load_header(output / "last.safetensors")["facts"]["step"] >= 1
