"""What tests, benchmarks and tools use of the pack by name is there; no type checker sees it."""

import ast
from pathlib import Path

import pytest

from testbed import pack

pack.load()
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "testbed", "tests", "tools")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def modules(tree):
    """Name -> modules of the pack that are assigned to it by `pack.module("...")`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for to, call in pairs:
                if (
                    isinstance(to, ast.Name)
                    and isinstance(call, ast.Call)
                    and ast.unparse(call.func) == "pack.module"
                    and isinstance(call.args[0], ast.Constant)
                ):
                    found.setdefault(to.id, set()).add(call.args[0].value)
    return found


def missing(source):
    """Lines that read an attribute which no module of that name has."""
    tree = ast.parse(source)
    named = modules(tree)
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.value, ast.Name)
        and node.value.id in named
        and not any(hasattr(pack.module(name), node.attr) for name in named[node.value.id])
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_names_of_the_pack_are_there(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_not_there_is_found():
    source = 'a, b = pack.module("unlearn.types"), 3\nb.x\na.Concept\na.Konzept\n'
    assert missing(source) == ["line 4: a.Konzept"]
