"""Every name that benchmarks, testbed and tools take from the pack exists there.

Most benchmarks run too long for a test, so a renamed function would break them unnoticed.
"""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

from testbed import pack

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("benchmarks", "testbed", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if "tests" not in path.parts or path.name.startswith("test_")
)


SHARED = ROOT / "benchmarks" / "peers" / "_shared.py"


def module_call(node: ast.expr) -> str | None:
    """The name in an expression `pack.module("name")`, or `_shared.alias` of a peer."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "_shared":
        return shared().get(node.attr)
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "pack.module":
        return None
    (name,) = node.args
    return name.value if isinstance(name, ast.Constant) else None


def aliases(tree: ast.Module) -> dict[str, str]:
    """Variable -> module of the pack, from `a = pack.module("m")` and `a, b = ..., ...`."""
    found = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        (target,) = node.targets if len(node.targets) == 1 else (None,)
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        for variable, value in pairs:
            name = module_call(value)
            if name and isinstance(variable, ast.Name):
                found[variable.id] = name
    return found


@cache
def shared() -> dict[str, str]:
    """The aliases in what the peers share."""
    return aliases(ast.parse(SHARED.read_text(encoding="utf-8")))


def references(source: str) -> list[tuple[int, str, str]]:
    """(line, module, attribute) of every attribute that is taken from a module of the pack."""
    tree = ast.parse(source)
    known = aliases(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        name = module_call(node.value)
        if isinstance(node.value, ast.Name):
            name = known.get(node.value.id)
        if name:
            found.append((node.lineno, name, node.attr))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_of_the_pack_exist(path):
    missing = [
        f"line {line}: {name} has no {attribute}"
        for line, name, attribute in references(path.read_text(encoding="utf-8"))
        if not hasattr(pack.module(name), attribute)
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_it_can_be_imported(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] in ("__main__", "conftest"):
        pytest.skip("runs when it is imported")
    importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))


def test_references_are_found():
    source = """
a = pack.module("kernels.fia")
b, c = pack.module("unlearn.types"), 3
a.score(b.Concept, c.real, pack.module("unlearn.errors").UnlearnError)
"""
    assert sorted(references(source)) == [
        (4, "kernels.fia", "score"),
        (4, "unlearn.errors", "UnlearnError"),
        (4, "unlearn.types", "Concept"),
    ]
    source = """
prompts, scapre = _shared.prompts, _shared.scapre
prompts.locate(scapre.gram, _shared.types.Concept, _shared.pairs)
"""
    assert sorted(references(source)) == [
        (3, "kernels.scapre", "gram"),
        (3, "unlearn.host.text_encoding", "locate"),
        (3, "unlearn.types", "Concept"),
    ]
