"""How the tests are shared out to two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import processes

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "benchmarks").rglob("test_*.py")])
MARKED = re.compile(r"^pytestmark = pytest\.mark\.(?:server|browser)$", re.M)
EXAMPLE = """
import os, pytest

@pytest.mark.parametrize("n", range(4))
def test_where(n, tally):
    tally("cells")
    with open("ran.txt", "a") as file:
        said = (__file__, os.environ["PYTEST_XDIST_WORKER"], os.environ["OMP_NUM_THREADS"])
        file.write(" ".join(said) + chr(10))
"""
CONFTEST = """
from testbed import processes
from testbed.processes import pytest_xdist_make_scheduler
from testbed.tally import *

processes.share_cores()
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_with_a_server_are_one_unit(path):
    name = path.relative_to(ROOT).as_posix()
    starts = MARKED.search(path.read_text(encoding="utf-8")) is not None
    assert processes.unit(f"{name}::test[a::b]") == ("servers" if starts else name)


def test_units_that_come_first_are_there():
    units = {processes.unit(path.relative_to(ROOT).as_posix()) for path in FILES}
    assert set(processes.LONG) <= units
    assert [processes.place(name) for name in ("new", *processes.LONG)] == [
        len(processes.LONG),
        *range(len(processes.LONG)),
    ]


def test_files_stay_whole_servers_together_and_counts_are_summed(tmp_path):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    names = ["tests/browser/test_a.py", "tests/server/test_b.py", "tests/unit/test_c.py"]
    for name in [*names, "tests/unit/test_d.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EXAMPLE)
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "OMP_"))}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "16 passed" in ran.stdout and "16 cells of the matrix" in ran.stdout
    assert "processes were busy: gw0 " in ran.stdout and "longest: " in ran.stdout
    lines = [line.split() for line in (tmp_path / "ran.txt").read_text().splitlines()]
    where = {name: {w for path, w, _ in lines if path.endswith(name)} for name in names}
    assert all(len(workers) == 1 for workers in where.values()) and len(lines) == 16
    assert where[names[0]] == where[names[1]] and {w for _, w, _ in lines} == {"gw0", "gw1"}
    assert {int(threads) for *_, threads in lines} == {max(1, (os.cpu_count() or 1) // 2)}
