"""What every function and line of the pack keeps to: type annotations, length, width."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = ("unlearn", "kernels", "nodes")
TYPED = ("unlearn", "kernels")
MOST_LINES = 60
WIDTH = 100
NOT_OURS = {".git", ".host", ".venv", ".ruff_cache", ".pytest_cache", "node_modules"}


def files_in(folders: tuple[str, ...]) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def functions(tree: ast.Module) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(Dotted name, definition) of the functions of a module and the methods of its classes."""
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append((prefix + node.name, node))
            elif isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.If, ast.Try, ast.With)):
                visit(node.body, prefix)

    visit(tree.body, "")
    return found


def is_public(name: str) -> bool:
    """Special methods such as `__init__` and `__call__` are public too."""
    special = name.split(".")[-1].startswith("__")
    parts = name.split(".")[:-1] if special else name.split(".")
    return not any(part.startswith("_") for part in parts)


def missing_annotations(source: str) -> list[str]:
    """One line for each public function with an argument or a result that has no type."""
    missing = []
    for name, function in functions(ast.parse(source)):
        if not is_public(name):
            continue
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
        if "." in name and not static:
            arguments = arguments[1:]  # self or cls
        bare = [a.arg for a in arguments if a is not None and a.annotation is None]
        if function.returns is None:
            bare.append("its result")
        if bare:
            missing.append(f"line {function.lineno}: {name} has no type for {', '.join(bare)}")
    return missing


def long_functions(source: str) -> list[str]:
    """One line for each function of more than MOST_LINES lines, a node's schema excepted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        lines = node.end_lineno - node.lineno + 1
        if lines > MOST_LINES and node.name != "define_schema":
            found.append(f"line {node.lineno}: {node.name} has {lines} lines")
    return found


def tracked_sources() -> list[Path]:
    """Every Python file that git tracks, or in a copy without git every one that is ours."""
    command = ["git", "ls-files", "-z", "--", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*.py") if not NOT_OURS & set(p.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


@pytest.mark.parametrize("path", files_in(TYPED), ids=lambda p: str(p.relative_to(ROOT)))
def test_public_functions_are_typed(path):
    missing = missing_annotations(path.read_text(encoding="utf-8"))
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("path", files_in(PACK), ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path):
    long = long_functions(path.read_text(encoding="utf-8"))
    assert not long, "\n".join(long)


def test_there_are_files_to_look_at():
    assert len(files_in(PACK)) > 50
    assert all(files_in((folder,)) for folder in PACK)


def test_lines_are_short():
    paths = tracked_sources()
    assert ROOT / "dev.py" in paths
    wide = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > WIDTH:
                wide.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} characters")
    assert not wide, "\n".join(wide)


def test_a_missing_type_is_seen():
    source = """
def bare(x: int, y): ...
def no_result(x: int): ...
def whole(x: int, *, y: str = "") -> None: ...
def _private(x): ...
class Thing:
    def __init__(self, x): ...
    def method(self) -> int: ...
    @staticmethod
    def static(x) -> int: ...
class _Private:
    def method(self): ...
"""
    names = [line.split()[2] for line in missing_annotations(source)]
    assert names == ["bare", "no_result", "Thing.__init__", "Thing.static"]


def test_a_long_function_is_seen():
    body = "    x = 1\n" * MOST_LINES
    assert long_functions(f"def f():\n{body}") == ["line 1: f has 61 lines"]
    assert long_functions(f"def define_schema():\n{body}") == []
    assert long_functions(f"def f():\n{body[:-1].removesuffix('    x = 1')}") == []
