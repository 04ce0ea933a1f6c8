"""Import only downstairs: the floors of ARCHITECTURE.md, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import labelwise

ROOT = Path(labelwise.__file__).parent
FLOORS = [
    {"types", "errors", "anatomy", "atomic", "engine", "settings", "console", "devices", "lock", "plugins"},
    {"formats", "losses", "nets"},
    {"preprocess", "components"},
    {"data", "methods", "evaluate"},
    {"train", "infer", "report"},
    {"config"},
    {"run"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def test_the_loop_knows_only_the_contract_of_methods():
    modules = {module for path in (ROOT / "train").glob("*.py") for _, module in imported_modules(path)}
    assert {module for module in modules if module.startswith("labelwise.methods")} <= {
        "labelwise.methods.base"
    }
    assert not any(module.startswith(("labelwise.data", "labelwise.infer")) for module in modules)


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
        assert "torch.load(" not in path.read_text(encoding="utf-8"), path
