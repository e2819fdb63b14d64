"""Files of tests on the second device of `testbed/far_device.py`, each in a process of its own.

torch makes its queues of gradients at the first backward pass, so the device must be known before,
and a process that has such queues cannot be forked, which other tests do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = ("test_memory.py", "test_placement.py")  # which conftest.py leaves out


@pytest.mark.parametrize("name", FILES)
def test_on_a_second_device(name):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
