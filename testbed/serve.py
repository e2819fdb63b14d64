"""`dev.py serve`: ComfyUI with this pack and a small world, opened on the quick-erase workflow.

It is the world of the demo; the sprite world's checkpoint lies beside it. It runs until Ctrl+C.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

from . import example_pictures, graphs, judged
from .server import BASE, HOST, command, free_port

# A node pack without nodes. The template browser lists its workflows, which are ready to run.
EXAMPLES = "unlearn_examples"
PACKS = ("--whitelist-custom-nodes", "ComfyUI-Unlearn", EXAMPLES)


def prepare():
    """Puts checkpoints and examples where the server finds them."""
    for task in (judged.SHOWN, judged.SPRITES):
        task.world.expand(BASE / "models" / "checkpoints")
    examples()


def examples():
    """Writes the example workflows with the world's names, sizes and settings."""
    folder = BASE / "custom_nodes" / EXAMPLES / "example_workflows"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    for name, plan in example_pictures.plans().items():
        graph = graphs.put(example_pictures.small(name, muted=True), "Prompt", text=plan.gone[0])
        made = graphs.filled(graphs.load(name), graph)
        (folder / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
        (folder / f"{name}.jpg").write_bytes((graphs.FOLDER / f"{name}.jpg").read_bytes())


def address(url, name="quick_erase"):
    """Where a server opens on one of the examples."""
    return f"{url}/?template={name}&source={EXAMPLES}"


def when_ready(url, process, say, seconds=180):
    """Calls `say` once the server answers."""
    until = time.time() + seconds
    while time.time() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/system_stats", timeout=5).close()
            return say()
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=None, help="default: a free one")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    given, more = parser.parse_known_args()
    prepare()
    port = given.port or free_port()
    url = f"http://127.0.0.1:{port}"
    first = address(url)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def say():
        print(
            f"\nComfyUI with Unlearn: {first}\nPress Run there; Ctrl+C here stops it.\n", flush=True
        )
        if not given.no_browser:
            webbrowser.open(first)

    process = subprocess.Popen(command(port, *PACKS, *more), cwd=HOST, env=env)
    threading.Thread(target=when_ready, args=(url, process, say), daemon=True).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main())
