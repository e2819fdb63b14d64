"""Loads packs by ComfyUI's own loader, in a process of its own, which broken packs may harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

from testbed import device

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
START = """
import asyncio, json, logging, os, sys
import nodes
said = []

class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger().addHandler(Keep())

def load(folder):
    "(whether the host's loader took the pack, ids of the nodes it registered, the lines it logged)"
    known, said[:] = dict(nodes.NODE_CLASS_MAPPINGS), []
    done = asyncio.run(nodes.load_custom_node(folder, module_parent="custom_nodes"))
    new = sorted(k for k, v in nodes.NODE_CLASS_MAPPINGS.items() if known.get(k) is not v)
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(known)
    for name in [m for m in sys.modules if m.startswith(folder.replace(".", "_x_"))]:
        del sys.modules[name]
    return done, new, list(said)
"""


def run(script, *args, base=None, seconds=300):
    """What a script prints as JSON in its last line. It runs after START, in the host's folder.

    base: ComfyUI's base folder.
    """
    env = {**os.environ, "PYTHONPATH": str(HOST), "PYTHONDONTWRITEBYTECODE": "1"}
    flags = [*device.flags(), *(("--base-directory", str(base)) if base else ())]
    start = (
        f"import sys; args_of_test = sys.argv[1:]; sys.argv[1:] = {flags!r}\n"
        "import comfy.options; comfy.options.enable_args_parsing()\n"
    )
    command = [sys.executable, "-c", start + START + script, *map(str, args)]
    ran = subprocess.run(
        command,
        env=env,
        cwd=HOST,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])
