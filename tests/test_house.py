"""The house rules: who imports whom, and which library lives where."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hpcHess"
ORDER = ["runtime", "parallel", "backend", "storage", "krylov", "pytorch", "networks", "curvature"]
ORDER += ["compressed", "tree", "skeleton", "hierarchical", "blockwise", "lowrank", "factored", "kronecker", "formats"]
HOMES = {
    "cupy": "backend",
    "petsc4py": "krylov",
    "slepc4py": "krylov",
    "h5py": "storage",
    "sklearn": "networks",
    "safetensors": "networks",
    "onnx": "networks",
    "torch": "pytorch",
    "tomllib": "runtime",
    "tomli": "runtime",
    "argparse": None,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """(dotted name, line) of everything a module imports, names of its own package made absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way_and_libraries_stay_home(path):
    here = room(path)
    for name, line in imported(path):
        top, *rest = name.split(".")
        where = f"{path}:{line} imports {name}"
        if top == "hpcHess" and here is not None and rest and rest[0] in ORDER:
            assert ORDER.index(rest[0]) <= ORDER.index(here), where
        if top == "hpcHess" and here is not None:
            assert rest and (rest[0] in ORDER or rest[0] == "_native"), f"{where}: only drivers import drivers"
        if top in HOMES and HOMES[top] is not None:
            assert here == HOMES[top], f"{where}: its only home is {HOMES[top]}/"
        if name.startswith("hpcHess._native"):
            assert here == "backend", where


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_stay_small_and_documented(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 420
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert path.stem != "utils"


def test_every_folder_is_in_the_order():
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(ORDER)
