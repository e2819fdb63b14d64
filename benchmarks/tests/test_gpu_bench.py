"""The dry run of `dev.py bench gpu` at tiny sizes: every part runs and both files are written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_dry_run_passes(tmp_path):
    paths = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "UNLEARN_DEVICE": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, "-c", gpu.RUN_MODULE, "benchmarks.gpu", "--out", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["device"] == "cpu" and found["machine"]["dry_run"]
    assert not [name for name in gpu.PARTS if "error" in found[name]]
    assert found["pictures"]["seen_alike_on_the_cpu"] == found["pictures"]["pictures"] == 4
    skipped = found["tests"]["default"]
    assert skipped["skipped"] > 10 and "failed" not in skipped and "passed" not in skipped
    page = (tmp_path / "gpu.md").read_text()
    assert "dry run" in page and all(f"## {name.capitalize()}" in page for name in gpu.PARTS)


def test_a_part_that_fails_is_an_error_and_no_more(monkeypatch):
    assert "error" in gpu.part_in_process("none-such")
    assert "stopped after" in gpu.part_in_process("solve", limit=0.1)["error"]


def test_the_wheels_are_those_of_this_machine():
    wanted = gpu.wanted()
    assert len(wanted) > 30 and all(line.count("==") == 1 for line in wanted)
    assert not [line for line in wanted if line.startswith(("torch==", "nvidia", "ruff"))]
