"""The public surface is small, and adding to it is a visible decision."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

import labelwise

HERE = Path(__file__).parent
# run_onnx.py runs where this package is not installed.
EXAMPLES = sorted(set((HERE.parent / "examples").glob("*.py")) - {HERE.parent / "examples" / "run_onnx.py"})
# The package itself, and those of its modules that are public; all others may change without notice.
MODULES = ("components", "formats", "losses", "metrics", "nets", "run", "synthetic", "testing")


def names_of(module: str) -> list[str]:
    return sorted(importlib.import_module(f"labelwise.{module}").__all__)


def public() -> list[str]:
    return [*labelwise.__all__, *(f"{module}.{name}" for module in MODULES for name in names_of(module))]


def test_public_names():
    assert public() == (HERE / "public_names.txt").read_text().split()


@pytest.mark.parametrize("module", ["", *MODULES])
def test_every_public_name_can_be_imported_and_is_documented(module):
    home = importlib.import_module(f"labelwise.{module}".rstrip("."))
    for name in home.__all__:
        part = getattr(home, name)
        assert part is not None
        if callable(part) and not hasattr(part, "__origin__"):
            written = part.__doc__ and not part.__doc__.startswith(f"{name}(")  # as dataclasses do
            assert written, f"{module}.{name} has no docstring"


def test_a_verb_is_its_function_although_its_file_has_the_same_name():
    for name in labelwise.run.__all__:
        importlib.import_module(f"labelwise.run.{name}")
        assert callable(getattr(labelwise.run, name)), name
        assert not isinstance(getattr(labelwise.run, name), type(sys))


def imported(file: Path) -> set[str]:
    """What a script imports from this package, as in the list of public names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("labelwise.")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labelwise":
            prefix = str(node.module).removeprefix("labelwise").lstrip(".")
            found |= {f"{prefix}.{alias.name}".lstrip(".") for alias in node.names}
    return found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_import_public_names_only(example):
    assert imported(example)
    assert imported(example) - set(public()) == set()


def test_the_package_says_its_version_and_that_it_is_typed():
    assert labelwise.__version__.count(".") == 2
    assert (Path(labelwise.__file__).parent / "py.typed").exists()
    citation = (HERE.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {labelwise.__version__}\n" in citation
