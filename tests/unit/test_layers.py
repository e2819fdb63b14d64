"""The direction of imports between the folders of the repository, read from the source."""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST_MODULES = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfy_types",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "node_helpers",
    "nodes",
    "protocol",
    "server",
    "utils",
}
METHODS = ("unlearn.closed_form", "unlearn.pruning", "unlearn.sculpting")
# Each layer may import the layers below it. A layer is a package or a module, and all within it.
BASE = {"unlearn.types", "unlearn.errors", "unlearn.version", "unlearn.wording"}
HOST = BASE | {"unlearn.host", "kernels"}
SERVICES = HOST | {"unlearn.files", "unlearn.concepts", "unlearn.provenance"}
ANALYSIS = SERVICES | {"unlearn.analysis"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    **dict.fromkeys(BASE, BASE),
    "unlearn.provenance": BASE | {"unlearn.concepts"},
    "unlearn.host": HOST,
    "unlearn.files": SERVICES,
    "unlearn.concepts": SERVICES,
    "unlearn.analysis": ANALYSIS,
    **{method: ANALYSIS | {method} for method in METHODS},
    "nodes": ANALYSIS | {*METHODS, "nodes"},
    "testbed": {"testbed"},
    "tools": {"testbed", "tools"},
    "tests": {"testbed", "tests", "tools", "kernels"},
    "benchmarks": {"testbed", "benchmarks", "kernels"},
}
OURS = ("kernels", "unlearn", "nodes", "testbed", "tools", "tests", "benchmarks")
MAY_IMPORT_THE_HOST = ("unlearn.host", "nodes", "testbed", "tools", "tests", "benchmarks")
KERNEL_PACKAGES = {"torch"}


class Import(NamedTuple):
    """One import in a file: the module it names, and whether it was relative."""

    line: int
    target: str
    relative: bool


def module_of(path: Path) -> str:
    """The dotted name of a file from the root of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_in(source: str, module: str, is_package: bool) -> list[Import]:
    """Every import of a file, inside functions too, with relative ones made absolute.

    `from package import name` gives `package.name`: the name may be a module.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, name.name, False) for name in node.names]
        if not isinstance(node, ast.ImportFrom):
            continue
        base = []
        if node.level:
            base = package[: len(package) - node.level + 1]
        if node.module:
            base = [*base, node.module]
        for name in node.names:
            found.append(Import(node.lineno, ".".join([*base, name.name]), bool(node.level)))
    return found


def is_in(module: str, layer: str) -> bool:
    return module == layer or module.startswith(f"{layer}.")


def layer_of(module: str) -> str | None:
    """The longest layer that holds the module, or None for a file outside all layers."""
    holding = [layer for layer in MAY_IMPORT if is_in(module, layer)]
    return max(holding, key=len, default=None)


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the imports of one file do that its layer must not."""
    layer = layer_of(module)
    if layer is None:
        return [] if module == "unlearn" else [f"{module} is in no layer; add it to MAY_IMPORT"]
    in_the_pack = module.split(".")[0] in ("kernels", "unlearn", "nodes")
    broken = []
    for line, target, relative in imports_in(source, module, is_package):
        top = target.split(".")[0]
        where = f"{module}, line {line}: imports {target}"
        ours = relative or (top in OURS and not (in_the_pack and top == "nodes"))
        if in_the_pack and not relative and top in OURS:
            broken.append(f"{where}, which is not a relative import")
        elif ours and not any(is_in(target, allowed) for allowed in MAY_IMPORT[layer]):
            broken.append(f"{where}, which {layer} must not")
        elif not ours and top in HOST_MODULES:
            if not any(is_in(module, allowed) for allowed in MAY_IMPORT_THE_HOST):
                broken.append(f"{where}, which belongs to ComfyUI")
        elif not ours and layer == "kernels":
            if top not in KERNEL_PACKAGES | set(sys.stdlib_module_names):
                broken.append(f"{where}; a kernel needs torch alone")
    return broken


def source_files() -> list[Path]:
    return sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def test_every_import_follows_the_layers():
    paths = source_files()
    assert len(paths) > 100
    broken = []
    for path in paths:
        source = path.read_text(encoding="utf-8")
        broken += broken_rules(source, module_of(path), path.name == "__init__.py")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "module, source",
    [
        ("unlearn.pruning.masks", "from ..sculpting import train"),
        ("unlearn.pruning.masks", "from ...nodes import export"),
        ("unlearn.analysis.forecast", "from ..closed_form.solve import solve"),
        ("unlearn.host.weights", "from ..files import patch_file"),
        ("unlearn.types", "from .host import weights"),
        ("unlearn.files.patch_file", "from ..analysis import charts"),
        ("unlearn.files.patch_file", "import folder_paths"),
        ("unlearn.closed_form.solve", "def f():\n    import comfy.utils"),
        ("unlearn.closed_form.solve", "from unlearn.host import weights"),
        ("unlearn.closed_form.solve", "import nodes"),
        ("kernels.fia", "from ..unlearn import types"),
        ("kernels.fia", "import numpy"),
        ("tests.host.test_fia", "from benchmarks.peers import uce"),
        ("benchmarks.peers.uce", "from tests.conftest import loaded"),
        ("testbed.pack", "from tests import conftest"),
        ("unlearn.new_module", "import math"),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert len(broken_rules(source, module)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("unlearn.pruning.masks", "from ..host import weights\nfrom ...kernels import fia"),
        ("unlearn.pruning.masks", "from . import prompts\nfrom ..types import UnlearnPatch"),
        ("unlearn.host.weights", "import comfy.utils\nfrom comfy import sd"),
        ("unlearn.analysis.forecast", "from ..concepts import sentences"),
        ("nodes.export", "import folder_paths\nfrom ..unlearn.files import safetensors_io"),
        ("kernels.fia", "import math\n\nimport torch\nfrom . import scapre"),
        ("tests.host.test_fia", "import comfy.sd\nfrom testbed import pack"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    assert broken_rules(source, module) == []


def test_relative_imports_are_resolved():
    found = imports_in("from ...kernels import fia", "unlearn.pruning.masks", False)
    assert found == [Import(1, "kernels.fia", True)]
    assert imports_in("from . import train", "unlearn.sculpting", True)[0].target == (
        "unlearn.sculpting.train"
    )
