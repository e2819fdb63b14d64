"""Loads the pack in process, under a name of its own as ComfyUI does, and not as `nodes`.

Without ComfyUI on the path, modules that do not need it (kernels, concepts) still load.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from testbed import device

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "unlearn_pack"
_entry_has_run = False


def _package() -> ModuleType:
    """The package `unlearn_pack`, made without running the pack's `__init__.py`."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return sys.modules[PACKAGE]


def load(cpu: bool = True) -> ModuleType:
    """The pack, its entry point included, with ComfyUI on the device of testbed/device.py.

    That is the CPU unless UNLEARN_DEVICE says otherwise. `cpu=False` at the first call leaves the
    choice to ComfyUI then.
    """
    global _entry_has_run
    package = _package()
    if not _entry_has_run:
        device.prepare(cpu)
        package.__spec__.loader.exec_module(package)
        _entry_has_run = True
    return package


def module(name: str) -> ModuleType:
    """A module of the pack, as in `module("unlearn.closed_form.solve")`."""
    if importlib.util.find_spec("comfy") is None:
        _package()
    else:
        load()
    return importlib.import_module(f"{PACKAGE}.{name}")
