"""`dev.py serve`: ComfyUI with this pack and the sprite world's checkpoint, until Ctrl+C."""

import argparse
import os
import subprocess
import sys

from world import checkpoint

from .server import BASE, HOST, command, free_port


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=None, help="default: a free one")
    given, more = parser.parse_known_args()
    checkpoint.expand(BASE / "models" / "checkpoints")
    port = given.port or free_port()
    print(f"ComfyUI with Unlearn: http://127.0.0.1:{port}  (Ctrl+C stops it)", flush=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    try:
        return subprocess.call(command(port, *more), cwd=HOST, env=env)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
