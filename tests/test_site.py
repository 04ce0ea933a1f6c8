"""The documentation as a site: every page has its place, links lead somewhere, other hosts are asked for nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from labelwise.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def links():
    """The module that knows which page shows which file."""
    sys.path.insert(0, str(ROOT / "website"))
    yield importlib.import_module("links")
    sys.path.remove(str(ROOT / "website"))


class Loader(yaml.SafeLoader):
    """Reads the names of functions in mkdocs.yml as plain text."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def leaves(entry):
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [leaf for part in parts for leaf in leaves(part)]


def test_every_page_of_the_documentation_stands_in_the_navigation_once(links):
    nav = leaves(links.written_out(CONFIG["nav"]))
    assert sorted(set(nav)) == sorted(nav)
    pages = {links.place(page) for page in DOCS.rglob("*.md")}
    assert pages - set(nav) == set()
    assert set(nav) - pages - set(links.PLACES.values()) == {"reference/commands.md"}


def test_every_link_of_the_site_leads_to_a_page_or_a_copied_file(links):
    shown = links.shown()
    places = {links.place(path) for path in shown}
    copied = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.*")}
    broken = []
    for path in (path for path in shown if path.suffix in (".md", ".ipynb") or path.is_dir()):
        here = links.place(path)
        text = links.turned(links.content(path), path if path.is_dir() else path.parent, here)
        for link in found_links(links, text):
            there = os.path.normpath(Path(here).parent / re.sub(r"\.html$", ".md", link))
            if there not in places | copied:
                broken.append((here, link))
    assert broken == []
    assert len(places) > 150


def found_links(links, text):
    prose = "".join(part for number, part in enumerate(links.CODE.split(text)) if number % 3 == 0)
    return [match[2] for match in links.LINK.finditer(prose) if not re.match(r"[a-z]+:", match[2])]


def test_a_link_to_a_file_of_the_repository_is_turned_to_its_page(links):
    text = "[a](../../src/labelwise/types.py) `[b](types.py)` [c](naive.md#idea) [e](../../README.md) [d](mailto:a@b)"
    assert links.turned(text, DOCS / "methods", "methods/bcp.md") == (
        "[a](../files/src/labelwise/types.py.md) `[b](types.py)` [c](naive.md#idea) [e](../index.md) [d](mailto:a@b)"
    )


def test_a_notebook_is_a_page_of_its_cells(links):
    page = links.content(ROOT / "examples" / "quick_start.ipynb")
    assert page.startswith("# ")
    assert page.count("```python\n") == page.count("\n```\n")
    assert "model.predict(scan)" in page
    assert "../docs/how-to/predict-in-python.md" in page
    assert links.place(ROOT / "examples" / "quick_start.ipynb") == "files/examples/quick_start.ipynb.md"


def test_the_reference_of_python_has_every_public_name(links):
    frozen = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8").split()
    shown = {
        f"{name}.{member}".removeprefix("labelwise.")
        for name, file in links.PUBLIC.items()
        for member in links.public_names(ROOT / file)
    }
    packages = {name.removeprefix("labelwise.") for name in links.PUBLIC}
    assert set(frozen) - shown - packages == set()


def test_lists_and_tables_stand_apart_from_the_paragraph_above():
    """GitHub shows them either way; MkDocs would run them into the paragraph."""
    run_in = []
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        text = re.sub(
            r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        lines = text.splitlines()
        for above, line in pairwise(lines):
            starts = re.match(r"([-*] |\d+\. |\|)", line)
            if starts and above.strip() and not re.match(r"(\s*[-*] | *\d+\. |\||  +|#)", above):
                run_in.append(f"{page.relative_to(ROOT)}: {line}")
    assert run_in == []


# the gallery of methods


@pytest.fixture(scope="module")
def gallery(links):
    """The module that draws the figures, beside `links`."""
    return importlib.import_module("gallery")


def test_the_gallery_is_what_cards_and_figures_say(gallery):
    old = [
        path
        for path, new in gallery.written().items()
        if not path.exists() or path.read_text(encoding="utf-8") != new
    ]
    assert old == [], "python website/gallery.py"
    assert {path.stem for path in gallery.FOLDER.glob("*.svg")} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_figure_of_a_method_ends_in_the_terms_that_it_logs(gallery, name):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    logged = page.split("## What is logged")[1].split("\n## ")[0]
    terms = re.findall(
        r"`(\w+)`", " ".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", logged, flags=re.MULTILINE))
    )
    figure = gallery.FIGURES[name]
    stands_for = {term: [one for one in terms if fnmatch(one, term)] for term in figure.terms}
    assert all(stands_for.values()), stands_for
    assert sorted(one for found in stands_for.values() for one in found) == sorted(terms)
    assert len(terms) > 0


def test_every_part_of_a_figure_is_on_an_arrow(gallery):
    for name, figure in gallery.FIGURES.items():
        ends = {word for arrow in figure.arrows for word in arrow.split()[::2]}
        assert ends == {*figure.views, *figure.nets, *figure.terms}, name


# the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, where the extra `docs` is installed."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            pytest.skip("the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_without_a_broken_link_and_asks_no_other_host(site):
    attribute = r'<(?:script|img|iframe|source)\b[^>]*\bsrc(?:set)?="?(?:https?:)?//'
    loaded = rf'{attribute}|<link\b[^>]*href="?(?:https?:)?//|@import|url\("?https?:'
    pages = list(site.rglob("*.html"))
    assert len(pages) > 150
    assert [str(page) for page in pages if re.search(loaded, page.read_text(encoding="utf-8"))] == []
    gallery = (site / "methods" / "index.html").read_text(encoding="utf-8")
    assert gallery.count('<svg xmlns="http://www.w3.org/2000/svg" class="figure"') == len(METHODS)


def test_the_reference_of_python_shows_shapes_errors_and_parameters_as_such(site):
    page = (site / "reference" / "api" / "labelwise.losses.html").read_text(encoding="utf-8")
    assert "<strong>Shapes</strong>" in page
    model = (site / "reference" / "api" / "labelwise.html").read_text(encoding="utf-8")
    assert "Raises" in model
    assert "CheckpointError" in model
    assert not re.search(r"<p>(Errors|Arguments|Shapes)\n", page + model)
