"""Fixtures of the tests of benchmarks.

`dev.py test` sets the host's folder; a bare pytest uses the unpacked one.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
for folder in (str(ROOT), str(HOST)):  # the host comes first: `import nodes` must find its nodes.py
    if folder not in sys.path:
        sys.path.insert(0, folder)

from testbed.fixtures import checkpoint, inference_mode, loaded  # noqa: E402, F401
