"""The house has floors: a module imports from lower floors and from its own folder, and no circle is left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "winnow"
FLOORS = [
    ["version", "signals", "selection", "choice"],
    ["lm", "records"],
    ["gradients.factors"],
    ["gradients.layers", "optim"],
    ["gradients"],
    ["geometry"],
    ["products", "data"],
    ["models"],
    ["scorer", "evaluation"],
    ["parallel"],
    ["selectors", "gates"],
    [""],
    ["offline", "report", "tracking"],
    ["training", "callbacks"],
    ["run"],
    ["methods", "ledger", "train", "data.__main__"],
    ["score", "evaluate"],
]
"""From the ground up. A name with a dot is a folder in a folder; ``""`` is ``winnow`` itself, the public names."""


def room(module: str) -> str:
    parts = module.split(".")[1:]
    for depth in (2, 1):
        name = ".".join(parts[:depth])
        if any(name in floor for floor in FLOORS):
            return name
    raise AssertionError(f"{module} stands on no floor: put its folder into FLOORS")


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "winnow":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name if exists(name) else node.module for name in names]
            found += [(node.lineno, module) for module in dict.fromkeys(modules)]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "winnow"]
    return found


def exists(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def climbs(path: Path, module: str) -> list[str]:
    level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    own, complaints = room(module), []
    for line, target in imports(path):
        other = room(target)
        if other != own and level[other] >= level[own]:
            complaints.append(
                f"{path.relative_to(PACKAGE)}:{line} imports {target}: {own or 'winnow'} stands below {other}"
            )
    return complaints


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("winnow", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def test_no_import_goes_up() -> None:
    complaints = [text for module, path in modules().items() for text in climbs(path, module)]
    assert not complaints, "\n".join(complaints)


def test_an_import_that_goes_up_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lm").mkdir()
    path = tmp_path / "lm" / "wrong.py"
    path.write_text('"""A page."""\n\nfrom winnow.scorer import Scorer\n')
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert climbs(path, "winnow.lm.wrong") == ["lm/wrong.py:3 imports winnow.scorer: lm stands below scorer"]


def test_modules_import_one_another_in_no_circle() -> None:
    pages = modules()
    arrows = {module: {target for _, target in imports(path) if target in pages} for module, path in pages.items()}
    open_, done = [], set()

    def visit(module: str) -> None:
        assert module not in open_, "circle: " + " -> ".join([*open_[open_.index(module) :], module])
        if module in done:
            return
        open_.append(module)
        for target in sorted(arrows[module] - {module}):
            visit(target)
        done.add(open_.pop())

    for module in arrows:
        visit(module)


def test_the_root_holds_the_contract_and_the_commands_only() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    commands = {"methods", "ledger", "score", "train", "evaluate"}
    assert loose == {"signals", "selection", "optim", "tracking", "version"} | commands


def test_modules_functions_and_constructors_stay_small() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()]
    pages = sorted(length for length in lengths if length > 3)
    assert max(pages) <= 320 and pages[len(pages) // 2] <= 100
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                where = f"{path.relative_to(PACKAGE)}: {node.name}"
                assert (node.end_lineno or 0) - node.lineno < 70, where
                count = len(node.args.args) + len(node.args.kwonlyargs) - 1
                flat = path.name in ("scorer.py", "datamodule.py")  # their options are the configuration's page
                assert node.name != "__init__" or count <= 12 or flat, where
