"""Faults put into the methods one at a time: which of them do the tests of that method find?

    python benchmarks/mutation.py                                      # ten faults in each of the four systems
    python benchmarks/mutation.py --only guidednet --per-file 50
    python benchmarks/mutation.py --all --work runs/mutation.jsonl     # every file of every method

A fault changes one place of a method's file: a number is halved, plus and minus are exchanged, times and divided, a
comparison is turned, `not` is left out. The tests of the method run against it until the first that fails: that of its
whole objective, then those of its files. A process is forked for each fault from one that has imported torch already.
Without a failure the fault survived; it is listed with its line, and with the reason that REASONS gives. Drawn with a
fixed seed for each file. With `--work` a repeated call goes on where the last one stopped: a verdict holds as long as
the function that it was put into stands as it was (known by its hash), and counts among those of its file; how many no
longer hold is said.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from metadata import write_result

from labelwise.methods import METHODS as METHOD_PLACES
from labelwise.nets.factory import NETS

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "src" / "labelwise" / "methods"
TESTS = ROOT / "tests" / "methods"
PUBLISHED = TESTS / "test_published.py"
SYSTEMS = ("ltuda", "pl_seg", "guidednet", "dkuxnet")
NEVER_RUN = {"base", "__init__"}
# What every test needs and no fault is put into: imported once, before the processes part.
SHARED = ("labelwise.cli.main", "labelwise.run.train", "labelwise.synthetic.generate", "labelwise.testing")
LONGEST_S = 300  # of the processor, for the tests of one fault; a fault that makes them hang is found
FOUND, SURVIVED, HUNG = 1, 0, 124

# Why a fault that survives is none, or does not matter: by file and line of source.
REASONS: dict[tuple[str, str], str] = {
    (
        "ss_net/virtual_adversary.py",
        "lengths: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp_min(1e-30)",
    ): "keeps a length of 0 from the denominator; any tiny number does",
    (
        "dodnet/network.py",
        "SMALLEST_VARIANCE = 1e-12  # added to the variance of a filter",
    ): "keeps a variance of 0 from the denominator; any tiny number does",
    (
        "dkuxnet/decoder.py",
        "nn.init.trunc_normal_(self.centres, std=1.0)",
    ): "width of the random start of the centres, which the training moves",
    (
        "pipo_fan/method.py",
        "return maps[-1].sum() * 0",
    ): "0 times the sum of a map: any of them will do",
}

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Fault:
    """One changed place."""

    file: str  # within methods/
    line: int
    what: str
    text: str  # the line as it was
    alike: int  # its number among those of the file that change a line of this text in this way
    function: str  # hash of the function (outside of one: of the statement) that it is put into

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Which fault this is, wherever its line has moved to."""
        return self.file, self.what, self.text, self.alike


class _Place(ast.NodeTransformer):
    """Counts the places that can be changed, and changes one of them."""

    def __init__(self, wanted: int = -1):
        self.wanted = wanted
        self.seen: list[tuple[str, int]] = []  # what each place would become, and its line

    def _is_wanted(self, node: ast.AST, what: str) -> bool:
        self.seen.append((what, getattr(node, "lineno", 0)))
        return len(self.seen) == self.wanted + 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [self.visit(part) for part in node.body]  # neither annotations nor defaults
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        number = isinstance(node.value, float) and node.value != 0
        if number and self._is_wanted(node, f"{node.value!r} halved"):
            return ast.copy_location(ast.Constant(float(node.value) / 2), node)  # type: ignore[arg-type]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        swap = SWAPS.get(type(node.op))
        types = isinstance(node.op, ast.BitOr) and isinstance(node.right, ast.Constant | ast.Name)
        if swap and not types and self._is_wanted(node, f"{type(node.op).__name__} to {swap.__name__}"):
            node.op = swap()  # type: ignore[assignment]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        swap = SWAPS.get(type(node.ops[0]))
        if swap and self._is_wanted(node, f"{type(node.ops[0]).__name__} to {swap.__name__}"):
            node.ops[0] = swap()  # type: ignore[call-overload]
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not | ast.Invert | ast.USub) and self._is_wanted(node, "left out"):
            return node.operand
        return node


def places(source: str) -> list[tuple[str, int]]:
    """The places of a file that can be changed: what each would become, and its line."""
    counter = _Place()
    counter.visit(ast.parse(source))
    return counter.seen


def changed(source: str, place: int) -> ast.Module:
    """The tree with one place changed."""
    tree = _Place(place).visit(ast.parse(source))
    return ast.fix_missing_locations(tree)  # type: ignore[no-any-return]


class _Faulty(MetaPathFinder, Loader):
    """Imports one module from a changed tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module):
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), vars(module))


def tests_of(path: Path) -> list[str]:
    """What tests a file: the whole objectives of its methods, the test named by its method, and all that ask for it.

    A test asks for a file that it imports, or for a network of the file by its name. Those of its numbers come first.
    """
    relative = path.relative_to(METHODS)
    module = "labelwise.methods." + ".".join(relative.with_suffix("").parts)
    asked = [f"{module} ", *(f'"{name}"' for name, place in NETS.items() if place.startswith(f"{module}:"))]
    own = TESTS / f"test_{relative.parts[0].removesuffix('.py')}.py"
    files = {own} if own.exists() else set()
    if path.stem in {"mean_teacher", "ua_mt"}:
        files.add(TESTS / "test_mean_teachers.py")
    for file in TESTS.glob("test_*.py"):
        if "objectives" not in file.name and any(each in file.read_text(encoding="utf-8") for each in asked):
            files.add(file)
    return [*_published_of(path), *_objectives_of(path), *(str(file) for file in sorted(files))]


def _published_of(path: Path) -> list[str]:
    """The tests of defaults and presets of the methods and networks that this file may hold."""
    relative = path.relative_to(METHODS).with_suffix("")
    methods = [
        name
        for name, place in METHOD_PLACES.items()
        if re.match(rf"labelwise.methods.{relative.parts[0]}\b", place)
    ]
    module = "labelwise.methods." + ".".join(relative.parts)
    nets = [name for name, place in NETS.items() if place.startswith(f"{module}:")]
    tests = {
        "test_the_default_of_each_setting_is_that_of_its_page": methods,
        "test_presets_are_what_was_published_for_the_data_set": methods,
        "test_the_default_of_each_setting_of_a_network_is_that_of_the_reference": nets,
    }
    return [f"{PUBLISHED}::{test}[{name}]" for test, names in tests.items() for name in names]


def _objectives_of(path: Path) -> list[str]:
    """The tests of whole objectives that build a method of this file or of its folder."""
    module = "labelwise.methods." + path.relative_to(METHODS).parts[0].removesuffix(".py")
    names = [
        f'"{name}"' for name, place in METHOD_PLACES.items() if place.startswith((f"{module}.", f"{module}:"))
    ]
    found = []
    for file in sorted(TESTS.glob("test_objectives*.py")):
        source = file.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
                lines = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
                if any(name in lines for name in names):
                    found.append(f"{file}::{node.name}")
    return found


def run_tests(tests: Sequence[str], fault: _Faulty | None = None) -> int:
    """Run tests in a process of its own, against a fault if there is one: FOUND, SURVIVED or HUNG."""
    child = os.fork()
    if child == 0:
        if fault is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST_S, LONGEST_S))
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            if fault is not None:
                for name in [name for name in sys.modules if name.startswith("labelwise.methods.")]:
                    if name != "labelwise.methods.base":
                        del sys.modules[name]
                sys.meta_path.insert(0, fault)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(ROOT)]
            os._exit(int(pytest.main([*options, *tests])))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"no test ran: {' '.join(tests)}")
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return HUNG
    return FOUND if code else SURVIVED


def files_of(systems: Sequence[str]) -> Iterator[Path]:
    """The files of some methods, or of all."""
    for path in sorted(METHODS.rglob("*.py")):
        owner = path.relative_to(METHODS).parts[0].removesuffix(".py")
        if path.stem not in NEVER_RUN and (not systems or owner in systems) and tests_of(path):
            yield path


def faults_of(path: Path) -> list[Fault]:
    """Every fault of a file, in the order of its places."""
    source, found, alike = path.read_text(encoding="utf-8"), [], Counter[tuple[str, str]]()
    lines, functions = source.splitlines(), _functions(source)
    for what, line in places(source):
        text = lines[line - 1].strip()
        found.append(
            Fault(str(path.relative_to(METHODS)), line, what, text, alike[what, text], functions[line])
        )
        alike[what, text] += 1
    return found


def _functions(source: str) -> dict[int, str]:
    """Of each line the hash of its function, or of its statement: of the tree, so that comments do not count."""
    hashes: dict[int, str] = {}

    def walk(nodes: Sequence[ast.stmt]) -> None:
        for node in nodes:
            text = hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]
            hashes.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), text))
            if isinstance(node, ast.ClassDef):
                walk(node.body)

    walk(ast.parse(source).body)
    return hashes


def verdicts_of(work: Path) -> dict[tuple[str, str, str, int], tuple[str, int]]:
    """What calls before found: the hash of the function and the verdict, by fault."""
    lines = work.read_text(encoding="utf-8").splitlines() if work.exists() else []
    return {
        tuple(entry["key"]): (entry.get("function", ""), entry["verdict"]) for entry in map(json.loads, lines)
    }


def plan_faults(
    paths: Iterable[Path], per_file: int, known: Collection[tuple[str, str, str, int]]
) -> list[tuple[Path, int]]:
    """Some places of each file, those with a verdict first, in random order: a run cut short has seen some of all."""
    planned = []
    for path in paths:
        faults = faults_of(path)
        numbers = random.Random(str(path.relative_to(METHODS))).sample(range(len(faults)), len(faults))
        numbers.sort(key=lambda place, faults=faults: faults[place].key not in known)  # type: ignore[misc]
        planned += [(path, place) for place in numbers[:per_file]]
    random.Random(0).shuffle(planned)
    return planned


def try_faults(
    planned: Sequence[tuple[Path, int]],
    known: dict[tuple[str, str, str, int], int],
    work: Path,
    minutes: float,
) -> list[dict[str, Any]]:
    """The verdict on each fault; new ones become lines of `work`.

    A fault that was found stays found while its function stands; one that survived is tried again.
    """
    faults = {path: faults_of(path) for path in {path for path, _ in planned}}
    verdicts, until = [], time.monotonic() + 60 * minutes
    for path, place in planned:
        fault = faults[path][place]
        if known.get(fault.key, SURVIVED) == SURVIVED and time.monotonic() < until:
            tree = changed(path.read_text(encoding="utf-8"), place)
            module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            known[fault.key] = run_tests(tests_of(path), _Faulty(module, path, tree))
            entry = {"key": fault.key, "function": fault.function, "verdict": known[fault.key]}
            with work.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            word = {FOUND: "found", SURVIVED: "SURVIVED", HUNG: "found (hung)"}[known[fault.key]]
            print(f"{word:9} {fault.file}:{fault.line} {fault.what}: {fault.text}", flush=True)
        if fault.key in known:
            verdicts.append({**asdict(fault), "verdict": known[fault.key]})
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=SYSTEMS, help="methods whose files are changed")
    parser.add_argument("--all", action="store_true", help="every method")
    parser.add_argument("--per-file", type=int, default=10, help="faults in each file")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no more faults are begun")
    parser.add_argument(
        "--work", type=Path, default=Path("mutation.jsonl"), help="verdicts; a repeat goes on"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in SHARED:
        importlib.import_module(name)
    paths = list(files_of(() if arguments.all else arguments.only))
    before = verdicts_of(arguments.work)
    functions = {fault.key: fault.function for path in files_of(()) for fault in faults_of(path)}
    known = {key: verdict for key, (function, verdict) in before.items() if functions.get(key) == function}
    if len(known) < len(before):
        print(f"{len(before) - len(known)} of {len(before)} verdicts are of code that has changed: not used")
    planned = plan_faults(paths, arguments.per_file, known)
    verdicts = try_faults(planned, known, arguments.work, arguments.minutes)
    tests = sorted({test for each in verdicts for test in tests_of(METHODS / each["file"])})
    if run_tests(tests) != SURVIVED:  # tests that fail without a fault find every fault
        raise SystemExit("the tests fail without a fault")
    survivors = []
    for each in (each for each in verdicts if each["verdict"] == SURVIVED):
        reason = REASONS.get((each["file"], each["text"]), "")
        survivors.append({part: each[part] for part in ("file", "line", "what", "text")} | {"reason": reason})
    payload = {
        "methods": "all" if arguments.all else list(arguments.only),
        "planned": len(planned),
        "tried": len(verdicts),
        "found": len(verdicts) - len(survivors),
        "share": round(1 - len(survivors) / max(len(verdicts), 1), 3),
        "survivors": sorted(survivors, key=lambda fault: (fault["file"], fault["line"])),
    }
    print(write_result("mutation", payload))


if __name__ == "__main__":
    main()
