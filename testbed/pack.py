"""Loads the pack and ComfyUI's CPU host in process, the way ComfyUI itself names it: never as a top-level `nodes`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "unlearn_pack"


def load(cpu=True):
    """The pack as package `unlearn_pack`, with the host on the CPU; `cpu` False at the first call leaves the device to the host."""
    from comfy.cli_args import args

    if PACKAGE not in sys.modules:
        args.cpu = args.cpu or cpu
        spec = importlib.util.spec_from_file_location(
            PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[PACKAGE]


def module(name):
    """A module of the pack, as in `module("unlearn.closed_form.solve")`."""
    load()
    return importlib.import_module(f"{PACKAGE}.{name}")
