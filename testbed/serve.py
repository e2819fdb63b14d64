"""`dev.py serve`: ComfyUI with this pack and a small world, opened on the quick-erase workflow.

It is the world of the demo; the sprite world's checkpoint lies beside it. It runs until Ctrl+C.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

from . import example_pictures, graphs, judged
from .server import BASE, HOST, command, free_port

ROOT = graphs.FOLDER.parent
# A base directory of its own: there the pack lists example workflows that are set for the world.
SERVED = BASE.parent / "served"
PACK = SERVED / "custom_nodes" / "ComfyUI-Unlearn"
PARTS = ("nodes", "unlearn", "kernels", "web", "locales", "subgraphs")
COPIES = ("__init__.py", "pyproject.toml")
SHARED = ("models", "input", "output", "user", "temp")
FLAGS = ("--base-directory", str(SERVED))
# The frontend opens no address with a space in it, and lists no file that begins with a dot.
OPENED = ".quick_erase"


def prepare():
    """Puts checkpoints, the pack and the examples where the server finds them."""
    shutil.rmtree(BASE / "custom_nodes" / "unlearn_examples", ignore_errors=True)  # of older ones
    for task in (judged.SHOWN, judged.SPRITES):
        task.world.expand(BASE / "models" / "checkpoints")
    for name in SHARED:
        (BASE / name).mkdir(parents=True, exist_ok=True)
        link(BASE / name, SERVED / name)
    for name in PARTS:
        link(ROOT / name, PACK / name)
    for name in COPIES:
        shutil.copyfile(ROOT / name, PACK / name)
    examples(PACK / "example_workflows")


def link(folder, place):
    """Makes `place` lead to a folder."""
    if place.exists() and place.samefile(folder):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(place):
        place.unlink()  # removes a link only, never a real folder
    try:
        place.symlink_to(folder.resolve(), target_is_directory=True)
    except FileExistsError:  # a start at the same moment has made it
        pass
    except OSError:
        if os.name != "nt":
            raise
        # Windows lets everybody make a junction, but not a symbolic link.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(folder)], check=True)


def examples(folder):
    """Writes the example workflows with the world's names, sizes and settings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, plan in example_pictures.plans().items():
        graph = graphs.say(example_pictures.small(name, muted=True), plan.gone[0])
        made = json.dumps(graphs.filled(graphs.load(name), graph))
        source = graphs.path(name)
        (folder / source.name).write_text(made, encoding="utf-8")
        picture = source.with_suffix(".jpg")
        (folder / picture.name).write_bytes(picture.read_bytes())
        if name == "quick_erase":
            (folder / f"{OPENED}.json").write_text(made, encoding="utf-8")


def address(url):
    """Where a server opens on the first of the examples."""
    return f"{url}/?template={OPENED}&source={PACK.name}"


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

    process = subprocess.Popen(command(port, *FLAGS, *more), cwd=HOST, env=env)
    threading.Thread(target=when_ready, args=(url, process, say), daemon=True).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main())
