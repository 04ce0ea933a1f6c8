"""What people and other programs write: marks, depth, and cells that a spreadsheet would compute."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelwise import load_config, read_manifest
from labelwise.documents import cell, cells, decode, parse_json, parse_toml
from labelwise.errors import CheckpointError, ConfigError, DataError
from labelwise.evaluate.scores import Score, read_scores, write_scores
from labelwise.infer.model import load_model
from labelwise.infer.scans import find_scans
from labelwise.run.sweep_plan import read_plan

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}  # the codecs of Python write none


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_recipe_may_have_any_byte_order_mark(tmp_path, encoding):
    text = "seed = 3\n[train]\nsteps = [2]  # Schritte für die Übung\n"
    data = MARKS.get(encoding, b"") + text.encode(encoding)
    assert decode(data) == text
    (tmp_path / "recipe.toml").write_bytes(data)
    (tmp_path / "on_top.toml").write_bytes(data.replace(data, b'extends = "recipe.toml"'))
    for name in ("recipe.toml", "on_top.toml"):
        config = load_config(tmp_path / name)
        assert (config.seed, config.train.steps) == (3, (2,))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("marked", [True, False])
def test_lists_plans_and_manifests_are_read_in_any_encoding(tmp_path, encoding, marked):
    if encoding == "utf-32" and not marked:
        pytest.skip("nobody writes it so")

    def write(name: str, text: str) -> Path:
        data = text.encode(encoding)
        if marked and encoding in MARKS:
            data = MARKS[encoding] + data
        if not marked and encoding in ("utf-8-sig", "utf-16"):
            data = text.encode({"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}[encoding])
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    scans = find_scans(write("scans.txt", "a.nii.gz\nÜbung.nii.gz\n"), intensity="ct")
    assert [scan.id for scan in scans] == ["a", "Übung"]
    plan = write("plan.toml", 'data = "data"\nmethods = ["supervised"]\nseeds = [0]  # für alle\n')
    assert read_plan(plan).methods == ("supervised",)
    write("manifest.csv", "id,images,labels,annotated,group,data_set,split\nä,a.nii.gz,,,,site,train\n")
    write("dataset.toml", 'schema = 1\nclasses = ["background", "liver"]\n[sources.site]\nmodality = "ct"\n'
          "[sources.site.values]\nbackground = [0]\nliver = [1]\n")  # fmt: skip
    assert read_manifest(tmp_path).cases[0].id == "ä"


@pytest.mark.parametrize("data", [b"a\0b", b"\0\0\0", b"\0", b"ab\0\0", b"seed = 3\n\0"])
def test_what_holds_a_sign_that_no_text_has_is_refused(tmp_path, data):
    with pytest.raises(UnicodeDecodeError):
        decode(data)
    (tmp_path / "scans.txt").write_bytes(data)
    with pytest.raises(DataError, match="list of scans cannot be read"):
        find_scans(tmp_path / "scans.txt", intensity="ct")
    (tmp_path / "recipe.toml").write_bytes(data)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "recipe.toml")


@pytest.mark.parametrize("depth", [3_000, 100_000])
@pytest.mark.parametrize(
    ("parse", "text"), [(parse_json, "[{}]"), (parse_json, '{{"a": {}}}'), (parse_toml, "a = [{}]")]
)
def test_what_is_nested_too_deep_is_a_value_error(parse, text, depth):
    opening, closing = text.split("{}") if "{{" not in text else ('{"a": ', "}")
    opening = opening.removeprefix("a = ")
    deep = opening * depth + "1" + closing * depth
    with pytest.raises(ValueError, match="too deep"):
        parse("a = " + deep if parse is parse_toml else deep)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_deep_files_are_refused_as_what_they_are(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_model(tmp_path, "cpu")
    (tmp_path / "recipe.toml").write_text("a = " + text)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "recipe.toml")


@given(st.text(max_size=6) | st.from_regex(r"'{0,3}[=+@\t\r-][\x20-\x7e]{0,5}", fullmatch=True))
def test_every_cell_comes_back_and_none_is_a_formula(text):
    (written,) = cells([text])
    assert cell(written) == text
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r")) or _number(written)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-x", "@SUM(A1)", "'=1", "''=1", "plain", "'s Gravenhage"])
def test_scores_of_cases_with_hostile_names_come_back(tmp_path, name):
    scores = [Score(name, "liver", "dice", 0.5, "ok"), Score(name, "liver", "volume_difference", -3.5, "ok")]
    write_scores(tmp_path / "scores.csv", scores)
    assert read_scores(tmp_path / "scores.csv") == scores
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    assert not any(line.startswith(("=", "+", "-", "@")) for line in lines)
    assert ",-3.5," in lines[1], "numbers stay numbers"


def test_a_table_of_scores_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "scores.csv").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="UTF-8"):
        read_scores(tmp_path / "scores.csv")
