"""The variants of ScaPre Solve: every file here is one paper's way to solve.

A new variant is one new file with a function under `@variant`; see registry.py. Its defaults, its
inputs on the node, the tooltips and the table in the help page come from there.
"""

import importlib
import pkgutil

from .registry import FIRST, Variant, find, variants

__all__ = ["FIRST", "Variant", "discover", "find", "variants"]


def discover() -> None:
    """Imports every file of this folder, in the order of their names."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f".{module.name}", __name__)


discover()
