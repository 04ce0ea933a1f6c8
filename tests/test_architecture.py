"""Import only downstairs: the floors of ARCHITECTURE.md, read from the source."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import labelwise
from labelwise import run

ROOT = Path(labelwise.__file__).parent
FLOORS = [
    {
        "types",
        "errors",
        "anatomy",
        "atomic",
        "engine",
        "settings",
        "console",
        "devices",
        "lock",
        "plugins",
        "documents",
    },
    {"formats", "losses", "nets"},
    {"preprocess", "components"},
    {"cohort", "methods", "evaluate"},
    {
        "importers",
        "quality",
        "loading",
        "synthetic",
        "plan",
        "train",
        "infer",
        "report",
        "serve",
        "testing",
        "metrics",
    },
    {"config", "data"},
    {"run"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_modules(path: Path, *, for_types: bool = True) -> list[tuple[int, str]]:
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:  # what only the type checker reads is not imported
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [
                (node.lineno, name if node.module == "labelwise" else str(node.module)) for name in names
            ]
    return found


def upstairs(path: Path) -> list[str]:
    here = room_of(path)
    wrong = []
    for line, module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "labelwise" or len(parts) < 2 or parts[1] == here:
            continue
        if here not in FLOOR or parts[1] not in FLOOR:
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}: a room without a floor")
        elif FLOOR[parts[1]] > FLOOR[here] or (FLOOR[parts[1]] == FLOOR[here] and FLOOR[here] > 0):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module} ({here} is not above {parts[1]})")
    return wrong


def test_nobody_imports_upstairs_or_next_door():
    files = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]
    assert len(files) > 40
    assert [problem for path in files for problem in upstairs(path)] == []


def test_what_lies_with_a_paper_serves_that_paper_alone():
    methods = ROOT / "methods"
    wrong = []
    for path in methods.rglob("*.py"):
        own = path.relative_to(methods).parts[0].removesuffix(".py")
        for line, module in imported_modules(path):
            parts = module.split(".")
            if parts[:2] == ["labelwise", "methods"] and parts[2] not in ("base", "card", own):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


def test_the_loop_knows_only_the_contract_of_methods():
    modules = {module for path in (ROOT / "train").glob("*.py") for _, module in imported_modules(path)}
    assert {module for module in modules if module.startswith("labelwise.methods")} <= {
        "labelwise.methods.base"
    }
    others = {f"labelwise.{room}" for room in FLOORS[4] if room != "train"}
    assert not {".".join(module.split(".")[:2]) for module in modules} & others


def reached_from(module: str) -> set[str]:
    """All files of the package that are read when a module is imported."""
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        for _, imported in imported_modules(path, for_types=False):
            parts = imported.split(".")
            if parts[0] == "labelwise":
                waiting += [".".join(parts[:end]) for end in range(2, len(parts) + 1)]
    return seen


def test_training_and_prediction_know_no_public_data_set():
    for verb in ("train", "predict", "evaluate"):
        rooms = {name.split(".")[1] for name in reached_from(f"labelwise.run.{verb}")}
        assert "cohort" in rooms
        # `predict` asks of a scan what `check` asks; the others read what was prepared or written.
        unknown = {"importers", "synthetic"} if verb == "predict" else {"importers", "quality", "synthetic"}
        assert not rooms & unknown, verb


def test_each_verb_is_a_file_of_its_name():
    for verb in run.__all__:
        assert (ROOT / "run" / f"{verb}.py").is_file()
    assert importlib.import_module("labelwise.run.train").__name__ == "labelwise.run.train"
    assert callable(run.train)  # also once its file is imported


def test_no_import_hides_in_a_function():
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in ROOT.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert hidden == []


def test_files_stay_small_enough_to_read():
    long = {
        path.name: lines
        for path in ROOT.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert long == {}


def test_pickle_is_not_used():
    for path in ROOT.rglob("*.py"):
        modules = {module.split(".")[0] for _, module in imported_modules(path)}
        assert not modules & {"pickle", "dill", "joblib", "cloudpickle"}, path
        loads = re.findall(r"torch\.load\(([^)]*)\)", path.read_text(encoding="utf-8"))
        assert all("weights_only=True" in load for load in loads), path  # which runs no code of the file
