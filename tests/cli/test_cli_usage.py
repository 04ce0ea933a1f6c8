"""Exit codes, streams and the cost of asking for help."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shlex
import subprocess
import sys

import pytest

from conftest import TINY_SETTINGS, clock_of
from labelwise import run
from labelwise.cli import main as command_line
from labelwise.cli.options import overrides, pairs, show, words
from labelwise.console import Bars, Lines, duration, watch
from labelwise.errors import ConfigError, LabelwiseError, TrainingError

VERBS = (
    "agreement", "calibrate", "check", "compare", "convert", "cost", "demo", "doctor", "evaluate", "export", "import",
    "measure", "methods", "plan", "predict", "prepare", "recipes", "report", "review", "serve", "show", "simulate",
    "split", "suggest", "sweep", "train",
)  # fmt: skip
HEAVY = ("torch", "monai", "numpy", "nibabel", "scipy", "pydantic", "matplotlib", "fastapi")


def test_help_imports_nothing_heavy():
    code = f"import sys, labelwise.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_help_lists_every_verb(command):
    answer = command("--help")
    assert answer.code == 0
    for verb in VERBS:
        assert f"  {verb} " in answer.out
    assert not answer.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(command, verb):
    answer = command(verb, "--help")
    assert answer.code == 0
    assert "--json" in answer.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",),
        ("train", "--dta", "x"),
        ("train", "--seed", "one"),
        ("check",),
        ("check", "x", "--workers", "0"),
        ("simulate", "x", "-o", "y"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_message_on_stderr(command, arguments):
    answer = command(*arguments)
    assert answer.code == 2
    assert not answer.out
    assert "Error" in answer.err


@pytest.mark.parametrize(
    ("arguments", "words_of_message"),
    [
        (("train",), ["no data named", "--data FOLDER"]),
        (("train", "--data", "x", "--method", "mean_techer"), ["did you mean 'mean_teacher'?"]),
        (("train", "--data", "x", "--set", "seed"), ["--set has the form name=value"]),
        (("train", "--data", "x", "--set", "sed=1"), ["unknown setting 'sed'", "did you mean 'seed'?"]),
        (("train", "missing.toml"), ["the recipe does not exist", "missing.toml"]),
        (("check", "x", "--engine", "spark"), ["unknown engine 'spark'"]),
        (("import", ".", "-o", "y", "--importer", "nifti"), ["unknown importer 'nifti'"]),
        (
            ("import", ".", "-o", "y", "--importer", "folders", "--classes", "liver=one"),
            ["an integer", "one"],
        ),
        (
            ("import", ".", "-o", "y", "--importer", "folders", "--classes", "liver"),
            ["--classes has the form"],
        ),
        (("import", ".", "-o", "y", "--importer", "nnunet", "--classes", "a=1"), ["has no option 'classes'"]),
        (("import", "a=.", "b", "-o", "y"), ["FOLDERS has a name in some places only", "a=. b"]),
        (
            ("import", ".", "-o", "y", "--annotated", "a=liver", "--annotated", "spleen"),
            ["--annotated has a name in some places only"],
        ),
        (("compare", "x", "--metrics", " ,"), ["--metrics names no metric", "dice,hd95"]),
        (("evaluate", "x", "y", "--unit", "inch"), ["unknown unit 'inch'", "mm or voxels"]),
        (("evaluate", "x", "y", "--variant", "la"), ["unknown variant 'la'"]),
    ],
)
def test_a_wrong_setting_ends_with_2_and_says_what_is_expected(
    command, tiny_cohort, tmp_path, monkeypatch, arguments, words_of_message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.nii.gz").touch()
    answer = command(
        *(tiny_cohort if word == "x" and arguments[0] == "check" else word for word in arguments)
    )
    assert answer.code == 2
    assert not answer.out
    assert answer.err.startswith("ConfigError: ")
    for expected in words_of_message:
        assert expected in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_compare_without_a_known_metric_is_refused(command, tiny_run):
    answer = command("compare", tiny_run, "--metrics", "dize")
    assert answer.code == 2
    assert "dize" in answer.err


def test_bad_data_ends_with_3(command, tmp_path):
    answer = command("train", "--data", tmp_path)
    assert answer.code == 3
    assert answer.err.startswith("DataError: there is no such table")
    assert str(tmp_path / "manifest.csv") in answer.err


def test_an_error_is_json_too_if_asked_for(command, tmp_path):
    answer = command("check", tmp_path, "--json")
    assert answer.code == 3
    facts = json.loads(answer.out)
    assert facts["error"] == "DataError"
    assert str(tmp_path) in facts["message"]
    assert answer.err.startswith("DataError")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (TrainingError("the loss is not finite"), 1, "TrainingError: the loss is not finite"),
        (
            OSError(errno.EIO, "Input/output error", "scan.nii"),
            1,
            "ResourceError: OSError: Input/output error",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_a_command(command, monkeypatch, error, code, text):
    def fail():
        raise error

    monkeypatch.setattr("labelwise.run.methods", fail)
    answer = command("methods")
    assert answer.code == code
    assert text in answer.err
    assert "Traceback" not in answer.err


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr("labelwise.run.methods", fail)
    with pytest.raises(ZeroDivisionError):
        command_line.main(["methods"])


def test_notes_of_the_work_go_to_stderr_only_while_a_command_runs(command, monkeypatch):
    logger = logging.getLogger("labelwise")

    def speak():
        logger.warning("two cases have no label")
        logging.getLogger("labelwise.formats.nifti").warning("qfac repaired")
        return []

    monkeypatch.setattr("labelwise.run.methods", speak)
    before = (list(logger.handlers), logger.level)
    answer = command("methods")
    assert answer.err == "warning: two cases have no label\n"
    assert (list(logger.handlers), logger.level) == before


# streams


def in_its_own_process(*words):
    """A command whose streams a test may break."""
    code = "from labelwise.cli.main import main; main()"
    return {"args": [sys.executable, "-c", code, *words], "env": {**os.environ, "PYTHONUNBUFFERED": ""}}


def test_a_refusal_that_nobody_reads_keeps_its_code():
    """As in ``labelwise import a=. b -o c --json | true``."""
    for streams in ({"stdout"}, {"stdout", "stderr"}):
        reader, writer = os.pipe()
        os.close(reader)
        pipes = {"stderr": subprocess.PIPE, **dict.fromkeys(streams, writer)}
        ended = subprocess.run(
            **in_its_own_process("import", "a=.", "b", "-o", "c", "--json"), **pipes, text=True, check=False
        )
        os.close(writer)
        assert ended.returncode == 2
        assert "Traceback" not in (ended.stderr or "")


@pytest.mark.skipif(os.name == "nt", reason="closes file descriptors as a POSIX shell does")
def test_closed_streams_are_no_error():
    """As in ``labelwise import a=. b -o c >&- 2>&-``: the code says what the message would."""
    words = shlex.join(in_its_own_process("import", "a=.", "b", "-o", "c")["args"])
    ended = subprocess.run(f"{words} >&- 2>&-", shell=True, check=False)
    assert ended.returncode == 2


def test_signs_that_the_terminal_does_not_know_are_printed_as_escapes(command, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("labelwise.run.methods", lambda: [])
    monkeypatch.setattr("labelwise.cli.about.show", lambda *arguments: show("größe 扫", {}, False))
    command("methods")
    assert stream.buffer.getvalue().decode("cp1252").splitlines() == [r"größe \u626b"]


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK"])
def test_only_the_first_process_of_a_training_prints(command, monkeypatch, rank):
    dry = ("train", "--dry-run", "--json")
    monkeypatch.setenv(rank, "0")
    assert json.loads(command(*dry).out)
    monkeypatch.setenv(rank, "1")
    assert command(*dry).out == ""
    assert "unknown setting 'sed'" in command(*dry, "--set", "sed=1").err
    assert command("compare", "--help").out


# parts


def test_a_value_of_set_is_toml_or_text():
    texts = ["a=1", "b=[1, 2]", "c=text", "d=true", 'e="1"', "f=", "g=a=b", "h={x=1}"]
    assert overrides(texts) == {
        "a": 1, "b": [1, 2], "c": "text", "d": True, "e": "1", "f": "", "g": "a=b", "h": {"x": 1},
    }  # fmt: skip
    assert overrides(None) == {}
    assert overrides(["a=1", "a=2"]) == {"a": 2}


def test_pairs_and_words():
    assert pairs(["a = 1"], "--x") == {"a": "1"}
    assert words("liver, spleen,") == ["liver", "spleen"]
    assert words(None) is None
    with pytest.raises(ConfigError, match="--x has the form"):
        pairs(["=1"], "--x")
    with pytest.raises(ConfigError, match="--x names 'a' twice"):
        pairs(["a=1", "a=2"], "--x")


def test_every_error_has_the_documented_code():
    codes = {kind.__name__: kind.exit_code for kind in LabelwiseError.__subclasses__()}
    assert codes == {
        "ConfigError": 2, "DataError": 3, "TrainingError": 1, "CheckpointError": 1, "ResourceError": 1,
    }  # fmt: skip


def test_the_functions_behind_the_verbs_are_those_of_labelwise_run():
    behind_options = {"correct", "export_model", "propose"}  # import --into, export MODEL and predict --into
    assert {verb.replace("import", "import_data") for verb in VERBS} == set(run.__all__) - behind_options
    with pytest.raises(AttributeError, match="trian"):
        run.trian  # noqa: B018


# progress


def test_a_terminal_sees_bars_and_everything_else_sees_lines(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(watch(), Bars)
    assert isinstance(watch(as_json=True), Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(watch(), Lines)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CI", "true")
    assert isinstance(watch(), Lines)


def test_bars_count_and_end(capsys):
    with Bars() as progress:
        for done in range(4):
            progress("train", done, 3, f"loss {done}")
        progress("predict", 0, 2)
    err = capsys.readouterr().err
    assert "train" in err
    assert "3/3" in err
    assert "predict" in err


def test_lines_are_rare_and_the_last_is_never_left_out(capsys, monkeypatch):
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr("labelwise.console.time", clock_of(now))
    with Lines(every_seconds=60) as progress:
        for done in range(1, 11):
            progress("train", done, 10, "loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train  1/10  loss 1")
    assert lines[-1].startswith("train  10/10")
    assert 2 < len(lines) < 10
    assert "left" in lines[1]


def test_quiet_shows_nothing(capsys):
    with watch(quiet=True) as progress:
        progress("train", 1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_settings_of_the_tiny_run_are_valid():
    assert (
        overrides([f"{name}={json.dumps(value)}" for name, value in TINY_SETTINGS.items()]) == TINY_SETTINGS
    )
