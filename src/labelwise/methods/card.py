"""What a method says of itself, read from its file: who lists the methods waits for no torch."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

LearnsFrom = Literal["full", "partial", "none"]


@dataclass(frozen=True)
class Card:
    """What the command line, the documentation and the tests need to know about a method."""

    title: str
    paper: str  # address of the paper, or "" for a baseline without one
    idea: str  # one sentence
    learns_from: frozenset[LearnsFrom]  # completely, partly, not annotated cases
    dims: frozenset[int] = frozenset({2, 3})
    nets: frozenset[str] | None = None  # networks the method can use; None: any
    independent_maps: bool = (
        False  # each structure is asked for by itself, from a threshold on that the training chooses
    )
    deep_supervision: bool = False  # trains the heads at coarser scales of a network that has them
    accumulates: bool = True  # a step may take several batches: nothing of one waits for `after_step`
    idle_weights: bool = False  # some weights have no gradient in some steps: several ranks must look which


def read_card(place: str) -> Card:
    """The card of a class, ``"module:Class"``, as its file writes it down: ``card = Card(title="CPS", ...)``.

    Errors
        ValueError      it does not stand there in plain values: whoever needs it has to import the class
    """
    module, _, name = place.partition(":")
    spec = find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else "")
    for part in tree.body:
        if not isinstance(part, ast.ClassDef) or part.name != name:
            continue
        for line in part.body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "card":
                assert isinstance(line.value, ast.Call)
                return Card(**{str(each.arg): _value(each.value) for each in line.value.keywords})
    raise ValueError(f"no card of {place}")


def _value(written: ast.expr) -> Any:
    if isinstance(written, ast.Call) and ast.unparse(written.func) == "frozenset":
        return frozenset(ast.literal_eval(written.args[0]))
    return ast.literal_eval(written)
