"""Errors tell programs what they are by a word that does not change."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

import labelwise
from labelwise import errors
from labelwise.errors import ConfigError, DataError, LabelwiseError, naming

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"
KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LabelwiseError)
]


def codes_in_source() -> set[str]:
    """Every word that stands for `code` where an error is made."""
    names, found = {kind.__name__ for kind in KINDS}, set()
    for path in Path(labelwise.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                for keyword in node.keywords:
                    if keyword.arg == "code":
                        parts = ast.walk(keyword.value)
                        found |= {str(part.value) for part in parts if isinstance(part, ast.Constant)}
    return found


def test_the_page_lists_every_code_and_no_other():
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(listed) > 20
    assert codes_in_source() == listed


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_without_a_code_has_that_of_its_kind(kind):
    assert kind("wrong").code == kind.code
    if kind is not LabelwiseError:
        text = PAGE.read_text(encoding="utf-8")
        assert re.search(rf"\| `{kind.__name__}` \|.*\| {kind.exit_code} \| `{kind.code}` \|", text)


def test_what_names_the_case_of_an_error_keeps_all_else():
    with pytest.raises(DataError) as caught, naming("case_1", "a.nii"):
        raise DataError("the file is broken", found=1, expected=2, do="mend it", code="unreadable")
    error = caught.value
    assert (error.case, error.file, error.found, error.expected, error.do) == (
        "case_1",
        "a.nii",
        1,
        2,
        "mend it",
    )
    assert error.code == "unreadable"
    assert error.but(file="b.nii").file == "b.nii"
    assert str(error.but(case=None)).startswith("the file is broken")


def test_errors_keep_their_code_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError("wrong", code="unknown-name")))
    assert (type(error), error.code, error.what) == (ConfigError, "unknown-name", "wrong")
