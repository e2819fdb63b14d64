"""Peak memory of `paper` saliency on SD1.5's true shape: it does not grow, and the node says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dev import RUN_MODULE

ROOT = Path(__file__).resolve().parents[2]
# Share of the said memory that the peak takes. The first run of a process took 638 to 718 MB of
# 727: the allocator does not give everything back.
LEAST, MOST = 0.75, 1.1


def measured(counts):
    """What the benchmark gives, in a process of its own so that no other test's memory counts."""
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", RUN_MODULE, "benchmarks.scale.saliency_memory", "--json"]
    command += ["--shape", "SD1.5", "--counts", counts, "--size", "64", "--prompts", "1"]
    env = {**os.environ, "PYTHONPATH": paths}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_paper_takes_the_same_for_any_number_of_concepts_and_what_is_said():
    found = measured("1,4")
    peaks = {count: row["peak_mb"] for count, row in found.items()}
    assert peaks["4"] <= 1.1 * peaks["1"], peaks
    for row in found.values():
        assert LEAST * row["said_mb"] <= row["peak_mb"] <= MOST * row["said_mb"], found
    # What more concepts take goes to disk, and is more than stays in memory (64 MB).
    assert found["4"]["set_aside_mb"] > 3 * found["1"]["set_aside_mb"] > 3 * 64
