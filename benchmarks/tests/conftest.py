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

from testbed import processes  # noqa: E402
from testbed.fixtures import checkpoint, inference_mode, loaded  # noqa: E402, F401
from testbed.processes import pytest_xdist_make_scheduler  # noqa: E402, F401

processes.share_cores()
