"""Who checks, imports, scores or converts files does not wait for the libraries of the training."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = ("check", "compare", "convert", "evaluate", "import_data", "measure", "simulate")
OF_TRAINING = ("torch", "lightning_fabric", "monai")


def imported(statement: str, libraries: tuple[str, ...] = OF_TRAINING) -> set[str]:
    """Which of these libraries a fresh interpreter has imported after a statement."""
    program = f"import sys; {statement}; print(*[name for name in {libraries} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_light_verbs_import_nothing_of_the_training():
    statement = "import labelwise.cli.main; " + "; ".join(f"import labelwise.run.{verb}" for verb in LIGHT)
    assert imported(statement) == set()


def test_the_jobs_that_workers_are_sent_import_nothing_of_the_training():
    jobs = "import labelwise.run.evaluate, labelwise.quality.check_case, labelwise.quality.measure, labelwise.engine"
    assert imported(jobs) == set()


def test_the_words_and_the_files_need_no_torch():
    use = (
        "import numpy, labelwise; from labelwise import formats, metrics, LabelSpace, Volume, Case, Batch; "
        "space = LabelSpace(('background', 'liver')); space.annotated_row(['liver']); "
        "metrics.dice(numpy.ones(3, bool), numpy.ones(3, bool)); formats.read_image"
    )
    assert imported(use) == set()


def test_a_list_of_the_methods_waits_for_no_torch():
    assert imported("from labelwise import run; run.methods()") == set()


@pytest.mark.parametrize("verb", ["doctor", "predict"])
def test_no_verb_but_the_trainings_imports_fabric_or_monai(verb):
    assert imported(f"import labelwise.run.{verb}") <= {"torch"}


def test_a_training_imports_matplotlib_only_for_pictures():
    drawing = ("matplotlib", "numpy")
    assert imported("import labelwise.run.train", drawing) == {"numpy"}
    assert imported("from labelwise import report; report.case_picture", drawing) == set(drawing)


def test_a_sweep_can_be_the_first_thing_that_is_imported():
    """torch looks into every module while it is imported: one that is lazy would be imported in the middle of it."""
    assert "torch" in imported("import labelwise.run.sweep")
