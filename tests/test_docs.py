"""The documentation is true: links lead somewhere, commands and settings exist, nothing is left out."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from labelwise import load_config
from labelwise.cli.main import app
from labelwise.cli.options import overrides
from labelwise.cohort.data_set import read_class_table
from labelwise.cohort.hide import MODES
from labelwise.config import RunConfig
from labelwise.infer.model import ModelInfo
from labelwise.loading.augment import PRESETS, AugmentConfig
from labelwise.methods import METHODS
from labelwise.nets.factory import NETS, find_net
from labelwise.run.sweep import read_plan
from labelwise.settings import build_settings

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "examples", "recipes", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))])
RECIPES = sorted([*(ROOT / "recipes").rglob("*.toml")])
VERBS = typer.main.get_command(app).commands


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL)
    return [
        Block(
            page, text.count("\n", 0, match.start()) + 1, match[2], re.sub(rf"(?m)^{match[1]}", "", match[3])
        )
        for match in fences
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


# links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page) == []


def test_every_page_is_reached_from_the_index():
    indices = [ROOT / "docs" / folder / "README.md" for folder in ("", "decisions", "data", "methods")]
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page != indices[0]}
    linked = {
        (index.parent / target).resolve()
        for index in indices
        for target in re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    }
    assert {str(page.relative_to(ROOT)) for page in pages if page.resolve() not in linked} == set()


# commands


def commands(block: Block) -> list[list[str]]:
    """What follows the word labelwise in each line of a shell block."""
    if block.language in ("python", "toml", "json", "yaml"):
        return []
    found = []
    for line in re.sub(r"\\\n", " ", block.text).splitlines():
        if not re.search(r"\blabelwise \w", line.split("#")[0]):
            continue
        words = shlex.split(re.sub(r"\$\w+", "0", line), comments=True)  # a variable of the shell
        if "labelwise" in words:
            words = words[words.index("labelwise") + 1 :]
            ends = [place for place, word in enumerate(words) if word in ("|", "&&", ";", ">", "&")]
            found.append(words[: ends[0]] if ends else words)
    return found


# Its commands name parts of a package that is not installed here; test_external_package.py walks them with it.
OF_ANOTHER_PACKAGE = "own-package.md"
COMMANDS = [
    (str(block), words)
    for block in BLOCKS
    if block.page.name != OF_ANOTHER_PACKAGE
    for words in commands(block)
]


@pytest.mark.parametrize(
    ("place", "words"), COMMANDS, ids=[f"{place} {words[0]}" for place, words in COMMANDS]
)
def test_every_command_in_a_block_would_be_understood(place, words):
    verb, arguments = words[0], words[1:]
    assert verb in VERBS, f"{place}: there is no verb '{verb}'"
    given = VERBS[verb].make_context(verb, arguments).params
    check_settings(verb, given)


GUIDES = ("make-labels-scarce.md", "choose-a-method.md", "resume-and-predict.md")


@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_run_one_after_the_other(
    guide, command, tiny_cohort, tiny_run, tmp_path, monkeypatch
):
    """All but `train`, which the README and the command line test; with fewer patients than the guide has."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_cohort, "my_data")
    for name in ("supervised", "mean_teacher"):
        shutil.copytree(tiny_run, Path("runs") / name)
    scan = Path("my_data") / "images" / "test_000.nii.gz"
    Path("new_scans").mkdir()
    for copy in (Path("scan.nii.gz"), Path("new_scans") / scan.name):
        shutil.copy(scan, copy)
    fewer = {"n=8": "n=1", "10": "1"}
    page = ROOT / "docs" / "how-to" / guide
    written = [words for block in blocks(page) for words in commands(block) if words[0] != "train"]
    assert len(written) > 3
    for words in written:
        device = ("--device", "cpu") if words[0] == "predict" and "--device" not in words else ()
        answer = command(*(fewer.get(word, word) for word in words), *device)
        assert answer.code == 0, (words, answer.err)


def check_settings(verb: str, given: dict[str, Any]) -> None:
    changes = overrides(given.get("settings"))
    if verb == "simulate":
        build_settings(MODES[given["mode"]], changes, "simulate")
    elif verb == "predict":
        load_config(
            None, {f"inference.{key.removeprefix('inference.')}": value for key, value in changes.items()}
        )
    elif verb in ("train", "prepare"):
        recipe = given.get("recipe")
        ours = recipe is not None and recipe.parts[0] in ("recipes", "examples")
        named = {"method": {"name": given["method"]}} if given.get("method") else {}
        load_config(ROOT / recipe if ours else None, changes, data="data", **named)


def test_the_reference_of_the_command_line_is_complete():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    parts = re.split(rf"`labelwise ({'|'.join(VERBS)})\b", page)
    described = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(described) == set(VERBS)
    for verb, command in VERBS.items():
        for option in (option for parameter in command.params for option in parameter.opts):
            if option.startswith("--") and option != "--help":
                assert f"`{option}" in described[verb], f"{verb} {option}"


# recipes and tables


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(recipe):
    assert isinstance(load_config(recipe, data="data"), RunConfig)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_on_top_of_a_recipe_would_be_understood(recipe):
    text = "\n".join(
        line.removeprefix("#").strip()
        for line in recipe.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    for words in commands(Block(recipe, 1, "sh", text)):
        test_every_command_in_a_block_would_be_understood(str(recipe), words)


TABLES = [block for block in BLOCKS if block.language == "toml"]


@pytest.mark.parametrize("block", TABLES, ids=str)
def test_every_toml_block_is_a_recipe_a_plan_or_a_class_table(block, tmp_path):
    content = tomllib.loads(block.text)
    file = tmp_path / "block.toml"
    file.write_text(block.text, encoding="utf-8")
    if "schema" in content:
        read_class_table(file)
    elif "methods" in content:
        (tmp_path / "recipe.toml").write_text("")
        for changes in read_plan(file).settings_by_row.values():
            load_config(None, changes, data="data")
    elif "project" not in content:  # an excerpt of somebody's pyproject.toml
        load_config(file, data="data")


def keys(table: dict[str, Any], path: str = "") -> set[str]:
    nested = [keys(value, f"{path}{key}.") for key, value in table.items() if isinstance(value, dict)]
    return {path + key for key, value in table.items() if not isinstance(value, dict)}.union(*nested)


def test_the_reference_of_the_recipe_names_every_setting_with_its_default():
    page = ROOT / "docs" / "reference" / "recipe.md"
    text = max((block.text for block in blocks(page)), key=len)
    shown = tomllib.loads(text)
    resolved = tomllib.loads(load_config(None).to_toml())
    missing = keys(resolved) - keys(shown) - {"data"}
    assert {key for key in missing if not key.startswith("augment.")} == set()
    assert load_config(None, {key: at(shown, key) for key in keys(shown)}) == load_config(None)
    uncommented = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = )", "", text))
    named = keys(uncommented)
    assert {
        key for key in all_settings(RunConfig) if not any(f"{name}.".startswith(f"{key}.") for name in named)
    } == set()


def at(table: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        table = table[part]
    return table


def all_settings(kind: type, path: str = "") -> set[str]:
    """Dotted names of all settings, also of those without a default, except what has a table of its own."""
    names = set()
    for field in fields(kind):
        value = field.default
        if path + field.name in ("augment", "net", "method"):
            continue
        if hasattr(value, "__dataclass_fields__"):
            names |= all_settings(type(value), f"{path}{field.name}.")
        else:
            names.add(path + field.name)
    return names


def test_the_reference_explains_every_network_and_every_augmentation():
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    named = [*NETS, *(field.name for name in NETS for field in fields(find_net(name).Settings))]
    named += [*PRESETS, *(field.name for field in fields(AugmentConfig) if field.name != "preset")]
    assert [name for name in named if f"`{name}`" not in page] == []


def test_the_reference_explains_every_field_of_a_model():
    page = (ROOT / "docs" / "reference" / "model-folder.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(ModelInfo) if f"`{field.name}`" not in page] == []


def test_the_glossary_explains_each_word_once_and_names_words_that_are_there():
    page = (ROOT / "docs" / "reference" / "glossary.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    words = [word for row in rows for word in row[0].split(", ")]
    assert sorted(set(words)) == sorted(words)
    assert len(words) > 40
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[-1])]
    known = {"[sources.NAME.values]", "labelwise plan", "corrections/", "proposals/"}  # made of parts
    parts = [name.removeprefix("--").split(".")[-1].replace("-", "_") for name in named if name not in known]
    assert [part for part in parts if part not in source and part not in ("toml", "csv")] == []


def test_every_method_and_every_mode_is_listed():
    gallery = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"]({name}.md)" not in gallery] == []
    modes = (ROOT / "docs" / "how-to" / "make-labels-scarce.md").read_text(encoding="utf-8")
    settings = [field.name for mode in MODES.values() for field in fields(mode)]
    assert [name for name in (*MODES, *settings) if f"`{name}`" not in modes] == []
