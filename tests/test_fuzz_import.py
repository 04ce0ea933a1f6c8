"""Damaged data sets of every layout and format: a manifest, a list of problems, or a LabelwiseError; nothing else.

A round copies a small data set, damages one or two of its files, or the manifest made from it, and runs `import` and
`check`. Each round follows from its number, so a failure can be repeated: ``play(number, ...)``.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damaged_files import TEXT, Rng, damage, pick
from labelwise import run
from labelwise.errors import LabelwiseError
from labelwise.importers import IMPORTERS
from small_data_sets import CT, TREES

ROUNDS, ALL_ROUNDS = 320, 2000
SECONDS = 10.0  # of this process, for the longest round; a common one takes 30 ms


# a round


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def state(folder: Path) -> dict[str, str]:
    """Every file with a hash of its content: an import changes none."""
    return {str(file): hashlib.md5(file.read_bytes()).hexdigest() for file in files_of(folder)}


def choose(number: int) -> tuple[str, Rng]:
    return list(TREES)[number % len(TREES)], np.random.default_rng([2024, number])


def play(number: int, templates: dict[str, Path], place: Path) -> tuple[str, list[str]]:
    """What came out of a round, and what was wrong with it."""
    name, rng = choose(number)
    data, out = place / f"{number}" / "data", place / f"{number}" / "out"
    shutil.copytree(templates[name], data)
    done = []
    if rng.random() < 0.9:
        for _ in range(int(rng.integers(1, 3))):
            files = files_of(data)
            text = [file for file in files if file.suffix in TEXT]
            done.append(damage(pick(rng, text if text and rng.random() < 0.4 else files), rng))
    tree = TREES[name]
    importer = tree.importer if rng.random() < 0.8 else pick(rng, [None, *IMPORTERS])
    options = tree.options if importer == tree.importer else (CT if importer in ("folders", "csv") else {})
    wrong: list[str] = []
    start, before = time.process_time(), state(data)
    with_manifest = rng.random() < 0.25 or not done
    try:
        outcome = import_and_check(data, out, importer, options, rng if with_manifest else None, done, wrong)
    except Exception:  # noqa: BLE001 - that no other kind of error appears is what is tested
        outcome, last = "crash", traceback.format_exc().strip().splitlines()
        wrong.append("\n".join([*last[-7:-1], last[-1][:300]]))
    if time.process_time() - start > SECONDS:
        wrong.append("took too long")
    if state(data) != before:
        wrong.append("a file of the user was changed")
    shutil.rmtree(place / f"{number}")
    return outcome, [
        f"round {number}, {name} by {importer}, {'; '.join(done)}: {problem}" for problem in wrong
    ]


def import_and_check(
    data: Path,
    out: Path,
    importer: str | None,
    options: dict[str, Any],
    rng: Rng | None,
    done: list[str],
    wrong: list[str],
) -> str:
    try:
        run.import_data([data], out, importer=importer, **options)
    except LabelwiseError as error:
        if out.exists() and any(out.iterdir()):
            wrong.append("files were left in the output")
        if str(data) not in str(error):
            wrong.append(f"the message names no file: {str(error)!a}")
        return "not imported"
    if [file.name for file in sorted(out.iterdir())] != ["dataset.toml", "manifest.csv"]:
        wrong.append("the output holds other files than a manifest")
    if rng is not None:
        done.append(damage(out / pick(rng, ("dataset.toml", "manifest.csv")), rng))
    try:
        report = run.check(out, workers=1)
    except LabelwiseError as error:
        if str(out) not in str(error):
            wrong.append(f"the message names no file: {str(error)!a}")
        return "manifest refused"
    for problem in report.problems:
        if problem.severity == "error" and problem.case and not problem.file:
            wrong.append(f"a problem of a case names no file: {problem}")
        if "SECRET" in str(problem):
            wrong.append("a problem names the patient of a DICOM file")
    return "problems" if report.num_errors else "fine"


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sound data set of each layout."""
    place = tmp_path_factory.mktemp("templates")
    for name, tree in TREES.items():
        (place / name).mkdir()
        tree.make(place / name)
    return {name: place / name for name in TREES}


# tests


@pytest.mark.parametrize("name", TREES)
def test_the_sound_data_sets_are_imported_without_an_error(
    templates: dict[str, Path], tmp_path: Path, name: str
):
    tree = TREES[name]
    run.import_data([templates[name]], tmp_path / "out", importer=tree.importer, **tree.options)
    report = run.check(tmp_path / "out", workers=1)
    broken = [str(p) for p in report.problems if p.severity == "error" and p.case]
    assert broken == []


def play_all(rounds: range, templates: dict[str, Path], place: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number in rounds:
        outcome, problems = play(number, templates, place)
        outcomes[outcome] += 1
        wrong += problems
    assert not wrong, f"{len(wrong)} problems, {dict(outcomes)}\n" + "\n".join(wrong[:40])
    return outcomes


def test_damaged_data_sets_give_a_manifest_problems_or_an_error(templates: dict[str, Path], tmp_path: Path):
    outcomes = play_all(range(ROUNDS), templates, tmp_path)
    assert (
        min(outcomes[kind] for kind in ("not imported", "manifest refused", "problems", "fine"))
        > ROUNDS // 40
    )


@pytest.mark.slow
def test_many_damaged_data_sets_give_a_manifest_problems_or_an_error(
    templates: dict[str, Path], tmp_path: Path
):
    play_all(range(ROUNDS, ALL_ROUNDS + ROUNDS), templates, tmp_path)


def test_the_command_line_answers_damage_with_an_exit_code_and_no_traceback(
    templates: dict[str, Path], tmp_path: Path, command: Callable[..., Any]
):
    codes = Counter()
    for number in range(3 * len(TREES)):
        name, rng = choose(number)
        if name not in ("nifti", "nnunet", "csv", "decathlon", "bids", "la2018"):
            continue
        data, out = tmp_path / f"{number}" / "data", tmp_path / f"{number}" / "out"
        shutil.copytree(templates[name], data)
        damage(pick(rng, files_of(data)), rng)
        words = ("--classes", "liver=1,spleen=2", "--modality", "ct") if TREES[name].options is CT else ()
        answer = command("import", data, "-o", out, "--importer", TREES[name].importer, *words)
        assert answer.code == 0 or str(data) in answer.err
        if answer.code == 0:
            answer = command("check", out)
        codes[answer.code] += 1
        assert answer.code in (0, 2, 3)
        assert "Traceback" not in answer.out + answer.err
    assert len(codes) > 1


def test_a_process_of_its_own_ends_with_a_message_and_nothing_else(
    templates: dict[str, Path], tmp_path: Path
):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(templates["nnunet"], data)
    (data / "dataset.json").write_text("[" * 100_000)
    program = [sys.executable, "-c", "from labelwise.cli.main import main; main()"]
    words = [*program, "import", str(data), "-o", str(out), "--importer", "nnunet"]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert answer.returncode == 3
    assert "dataset.json" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not out.exists()
