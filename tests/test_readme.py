"""What the README shows is true: its commands run, its tables are what the result files say."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from labelwise.cli.main import main
from labelwise.cohort.manifest import read_case_labels, read_manifest
from labelwise.formats import read_image, write_image, write_labels
from labelwise.synthetic.generate import SyntheticConfig, make_cohort
from labelwise.types import Volume

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
# What makes the README's trainings small enough for a test.
SMALL = (
    "--base fixed --set train.steps=3 --set net.settings.width=4 --set sampling.patch_size=[32,32,16] "
    "--set sampling.labelled_cases=1 --set sampling.unlabelled_cases=1 --set device.device=cpu"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folders that the README speaks of, in the layout of nnU-Net: my_scans, new_scans, site_a, site_b."""
    folder = tmp_path_factory.mktemp("readme")
    config = SyntheticConfig(
        cases_per_site=2, unlabelled=1, validation=0, test=2, shape=(32, 28, 20), full=True
    )
    manifest = make_cohort(folder / "cohort", config)
    write_dataset(folder / "my_scans", manifest, manifest.label_space.structures)
    write_dataset(folder / "site_a", manifest, ("liver",))
    write_dataset(folder / "site_b", manifest, ("spleen",))
    for case in manifest.split("test"):
        write_image(folder / "new_scans" / f"{case.id}_0000.nii.gz", read_image(case.images))
    return folder


def write_dataset(folder, manifest, structures):
    """The cohort as an nnU-Net data set that annotates some structures, numbered from 1."""
    for case in manifest.cases:
        end = "Ts" if case.split == "test" else "Tr"
        write_image(folder / f"images{end}" / f"{case.id}_0000.nii.gz", read_image(case.images))
        if case.data_set != "unlabelled":
            full = read_case_labels(case, manifest)
            kept = np.zeros_like(full.data)
            for number, structure in enumerate(structures, start=1):
                kept[full.data == manifest.label_space.index(structure)] = number
            write_labels(folder / f"labels{end}" / f"{case.id}.nii.gz", Volume(kept, full.affine))
    labels = {"background": 0, **{structure: number for number, structure in enumerate(structures, start=1)}}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 9, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def commands():
    return [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_every_command_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":  # what it runs is tested elsewhere: here, that it would run it
            plan = subprocess.run(
                ["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=True
            )
            assert {"demo": "labelwise demo", "test": "pytest"}[words[1]] in plan.stdout
            continue
        assert words.pop(0) == "labelwise", command
        words += shlex.split(SMALL) if words[0] == "train" else []
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code in (0, None), (command, capsys.readouterr().err)
    assert (folder / "report.html").exists()
    assert len(list((folder / "segmentations").glob("*.nii.gz"))) == len(
        list((folder / "new_scans").iterdir())
    )
    union = read_manifest(folder / "union")
    assert {structure for case in union.cases for structure in case.annotated} == {"liver", "spleen"}


def test_the_tables_are_what_the_result_files_say():
    check = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "make_tables.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_the_first_screen_says_what_it_is_and_shows_a_result():
    first = README.splitlines()[:34]
    assert any("make demo" in line for line in first)
    assert any("make test" in line for line in first)
    assert any("docs/assets/first.png" in line for line in first)
    assert any(line.startswith("| supervised") for line in first)
