"""Peak memory of `paper` saliency on SD1.5's true shape: it does not grow, and the node says it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dev import RUN_MODULE

ROOT = Path(__file__).resolve().parents[2]
# glibc's allocator keeps much of what was freed, and a different amount each time: SD1.5's peak was
# 610 to 718 MB, of 727 that are said. With this it gives each large block back at once. Then the
# peak was 548 MB in the first run of a process and 540 in every other, with one and four concepts.
STEADY = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes
GROWTH = 1.03  # the largest peak with four concepts, as a factor of that with one
LEAST, MOST = 0.75, 1.1  # bounds of the peak over what the node says, without STEADY


def measured(counts, **more):
    """What the benchmark gives, in a process of its own so that no other test's memory counts.

    more: environment variables of that process.
    """
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", RUN_MODULE, "benchmarks.scale.saliency_memory", "--json"]
    command += ["--shape", "SD1.5", "--counts", counts, "--size", "64", "--prompts", "1"]
    env = {**os.environ, "PYTHONPATH": paths, **more}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_more_concepts_take_disk_and_no_more_memory():
    found = measured("1,4", **STEADY)
    peaks = {count: row["peak_mb"] for count, row in found.items()}
    assert peaks["4"] <= GROWTH * peaks["1"], peaks
    # What more concepts take goes to disk, and is more than stays in memory (64 MB).
    assert found["4"]["set_aside_mb"] > 3 * found["1"]["set_aside_mb"] > 3 * 64


def test_the_node_says_how_much_memory_it_takes():
    found = measured("1,4")
    for row in found.values():
        assert LEAST * row["said_mb"] <= row["peak_mb"] <= MOST * row["said_mb"], found
