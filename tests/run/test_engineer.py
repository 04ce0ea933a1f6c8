"""The page for engineers, walked: nnU-Net and two partial data sets, joined, trained, scored and compared."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY_SETTINGS
from labelwise import read_manifest
from labelwise.cohort.manifest import read_case_labels
from labelwise.formats import write_image, write_labels
from labelwise.synthetic.generate import SyntheticConfig, make_scan
from labelwise.synthetic.phantom import LABEL_SPACE
from labelwise.types import IGNORE, Volume

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "engineer.md"
STRUCTURES = ("liver", "spleen")
SCAN = SyntheticConfig(shape=(24, 24, 16))


def write(image: Path, labels: Path, seed: int, structures: tuple[str, ...]) -> None:
    """A scan, and its labels numbered from 1."""
    scan, full = make_scan(seed, SCAN)
    kept = np.zeros_like(full.data)
    for number, structure in enumerate(structures, start=1):
        kept[full.data == LABEL_SPACE.index(structure)] = number
    write_image(image, scan)
    write_labels(labels, Volume(kept, full.affine))


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The three folders of the page, here."""
    monkeypatch.chdir(tmp_path)
    hospital = Path("Dataset042_Abdomen")
    for seed, (case, part) in enumerate((("a", "Tr"), ("b", "Tr"), ("c", "Ts"), ("d", "Ts"))):
        write(
            hospital / f"images{part}/{case}_0000.nii.gz",
            hospital / f"labels{part}/{case}.nii.gz",
            seed,
            STRUCTURES,
        )
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}}
    (hospital / "dataset.json").write_text(json.dumps({**facts, "file_ending": ".nii.gz", "numTraining": 2}))
    for seed, (folder, structure) in enumerate((("livers", "liver"), ("spleens", "spleen")), start=10):
        for number in range(2):
            file = f"{folder[0]}{number}.nii.gz"
            write(
                Path(folder, "images", file), Path(folder, "labels", file), seed + 10 * number, (structure,)
            )


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]


def test_the_page_for_engineers_does_what_it_says(folders, command):
    small = [
        word for name, value in TINY_SETTINGS.items() for word in ("--set", f"{name}={json.dumps(value)}")
    ]
    said = {}
    for verb, *words in commands():
        answer = command(verb, *words, *(small if verb == "train" else ()))
        assert answer.code == 0, (verb, answer.err)
        said[verb] = answer.out
    manifest = read_manifest(Path("union"))
    annotated = {case.id: set(case.annotated) for case in manifest.cases}
    by_data_set = {
        data_set: {frozenset(annotated[c.id]) for c in manifest.cases if c.data_set == data_set}
        for data_set in ("hospital", "livers", "spleens")
    }
    assert by_data_set == {
        "hospital": {frozenset(STRUCTURES)},
        "livers": {frozenset({"liver"})},
        "spleens": {frozenset({"spleen"})},
    }
    case = next(case for case in manifest.cases if case.data_set == "spleens")
    spleen = manifest.label_space.index("spleen")
    assert set(np.unique(read_case_labels(case, manifest).data)) <= {0, spleen, IGNORE}  # value 1 of its file
    assert [len(manifest.split(part)) for part in ("train", "validation", "test")] == [5, 1, 2]
    assert all(data_set in said["check"] for data_set in ("hospital", "livers", "spleens"))
    for run in ("supervised", "self_training"):
        rows = list(csv.DictReader(Path("runs", run, "scores.csv").read_text(encoding="utf-8").splitlines()))
        assert {row["case"] for row in rows} == {case.id for case in manifest.split("test")}
        assert {row["class"] for row in rows} == set(STRUCTURES)
        assert run in said["compare"]
        assert run in Path("report.html").read_text(encoding="utf-8")
    assert "liver" in said["compare"]
