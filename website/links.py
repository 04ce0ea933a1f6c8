"""Which page of the site shows which file of the repository, and the links between them.

Links are written for a reader of the repository. A page may link to the README, to a source file, a recipe, a result or
a folder; on the site each of them has a page, and links are turned to it. So one link is right in both places, and the
site needs no other host.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Public packages and modules, in the order of the reference: name -> file that lists the names.
PUBLIC = {
    "labelwise": "src/labelwise/__init__.pyi",
    "labelwise.run": "src/labelwise/run/__init__.pyi",
    "labelwise.losses": "src/labelwise/losses/__init__.pyi",
    "labelwise.components": "src/labelwise/components/__init__.pyi",
    "labelwise.nets": "src/labelwise/nets/__init__.pyi",
    "labelwise.formats": "src/labelwise/formats/__init__.py",
    "labelwise.metrics": "src/labelwise/metrics.py",
    "labelwise.synthetic": "src/labelwise/synthetic/__init__.pyi",
    "labelwise.testing": "src/labelwise/testing/__init__.py",
}
API = {ROOT / file: f"reference/api/{name}.md" for name, file in PUBLIC.items()}
PLACES = {
    ROOT / "README.md": "index.md",
    DOCS / "README.md": "contents.md",
    **{
        ROOT / f"{name}.md": f"project/{name.lower()}.md"
        for name in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")
    },
    **API,
}
SHOWN = {
    ".py": "python",
    ".pyi": "python",
    ".toml": "toml",
    ".sh": "sh",
}  # ending -> language; others are copied
NOT_SEARCHED = (
    "---\nsearch:\n  exclude: true\n---\n\n"  # who searches wants the pages that explain, and a small index
)
NOTEBOOK = ".ipynb"
HIDDEN = ("__pycache__", ".ipynb_checkpoints")
CODE = re.compile(r"(^( *)```.*?^\2```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\(|\b(?:src|srcset|href)=\")([^)\"\s#]+)")


# places: a path in the repository -> the path of its page


def place(path: Path) -> str:
    """The page, or copied file, that shows a file or folder of the repository."""
    if path in PLACES:
        return PLACES[path]
    if path.is_dir():
        index = path / "README.md"
        return place(index) if index.exists() else f"files/{path.relative_to(ROOT).as_posix()}/index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"files/{path.relative_to(ROOT).as_posix()}"
    return f"{name}.md" if path.suffix in (*SHOWN, NOTEBOOK) else name


def targets(text: str, folder: Path) -> Iterator[Path]:
    """The files and folders of the repository to which a text links."""
    for number, part in enumerate(CODE.split(text)):
        if number % 3 == 0:
            for match in LINK.finditer(part):
                if (path := _target(match[2], folder)) is not None:
                    yield path


def turned(text: str, folder: Path, here: str) -> str:
    """A text of `folder` with its links turned to the pages of the site, seen from the page `here`."""

    def turn(match: re.Match[str]) -> str:
        path = _target(match[2], folder)
        if path is None:
            return match[0]
        there = place(path)
        if match[1] != "](":  # MkDocs does not look at attributes
            there = re.sub(r"\.md$", ".html", there)
        return match[1] + os.path.relpath(there, Path(here).parent)

    parts = CODE.split(text)
    return "".join(
        LINK.sub(turn, part) if number % 3 == 0 else part
        for number, part in enumerate(parts)
        if number % 3 != 2
    )


def _target(link: str, folder: Path) -> Path | None:
    if re.match(r"[a-z]+:", link):
        return None
    path = Path(os.path.normpath(folder / link))
    return path if path.exists() and path.is_relative_to(ROOT) else None


def shown() -> list[Path]:
    """Every file and folder that the site shows: the pages of docs, those in PLACES, and all that they lead to."""
    found = [*sorted(DOCS.rglob("*.md")), *PLACES]
    for path in found:  # grows
        if path.suffix in (".md", NOTEBOOK) or path.is_dir():
            folder = path if path.is_dir() else path.parent
            found += [
                target for target in dict.fromkeys(targets(content(path), folder)) if target not in found
            ]
    return list(dict.fromkeys(found))


def is_page(path: Path) -> bool:
    """Whether a file or folder becomes a page; other files are copied as they are."""
    return path.is_dir() or path.suffix in (*SHOWN, NOTEBOOK, ".md")


def content(path: Path) -> str:
    """The Markdown of the page that shows a file or folder."""
    name = path.relative_to(ROOT).as_posix()
    if path in API:
        return _reference(next(public for public, file in PUBLIC.items() if ROOT / file == path), path)
    if path.is_dir():
        inside = sorted(
            item for item in path.rglob("*") if item.is_file() and not set(HIDDEN) & set(item.parts)
        )
        lines = [
            f"- [{item.relative_to(path).as_posix()}]({item.relative_to(path).as_posix()})" for item in inside
        ]
        return f"{NOT_SEARCHED}# {name}/\n\n" + "\n".join(lines) + "\n"
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == NOTEBOOK:
        return "\n\n".join(map(_cell, json.loads(text)["cells"])) + "\n"
    return f"{NOT_SEARCHED}# {name}\n\n````{SHOWN[path.suffix]}\n{text}````\n"


def _cell(cell: dict[str, Any]) -> str:
    """A cell of a notebook, which is stored without outputs."""
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def _reference(name: str, file: Path) -> str:
    """A page of the Python reference: what the module says of itself, then each public name."""
    about = f"::: {name}\n    options: {{members: false, show_root_heading: false}}\n"
    entries = "\n".join(f"::: {name}.{member}\n" for member in public_names(file))
    return f"# {name}\n\n{about}\n{entries}"


def public_names(file: Path) -> Iterator[str]:
    """The names that a stub or a module offers, without the packages among them."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    for node in module.body:
        if file.suffix == ".pyi" and isinstance(node, ast.ImportFrom) and node.module:
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield from ast.literal_eval(node.value)


def origin(uri: str) -> Path | None:
    """The file or folder of the repository that a page of the site shows; None for those made for the site alone."""
    for path, page in PLACES.items():
        if page == uri:
            return path
    if uri.startswith("files/"):
        name = uri.removeprefix("files/")
        options = [ROOT / name, ROOT / name.removesuffix("/index.md"), ROOT / name.removesuffix(".md")]
        return next((option for option in options if option.exists()), None)
    path = DOCS / uri
    return path if path.exists() else None


# navigation


def written_out(nav: Any) -> Any:
    """A navigation with its entries FOLDER/* replaced by the pages of the folder."""
    if isinstance(nav, dict):
        return {title: written_out(entries) for title, entries in nav.items()}
    if isinstance(nav, list):
        entries = [written_out(entry) for entry in nav]
        return [one for entry in entries for one in (entry if isinstance(entry, list) else [entry])]
    return pages_of(nav.removesuffix("/*")) if nav.endswith("/*") else nav


def pages_of(folder: str) -> list[str]:
    """The pages of a folder of docs, in the order in which they are linked."""
    if folder == "reference/api":
        return list(API.values())
    own = DOCS / folder / "README.md"
    index = own if own.exists() else DOCS / "README.md"
    found = [
        path for path in targets(index.read_text(encoding="utf-8"), index.parent) if path.suffix == ".md"
    ]
    inside = [path for path in dict.fromkeys([own, *found]) if path.parent == DOCS / folder and path.exists()]
    return [place(path) for path in inside]
