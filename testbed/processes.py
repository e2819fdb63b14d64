"""How pytest-xdist shares the tests out to processes; the conftest.py files import its hook.

A process gets whole files, because their fixtures are costly. Everything with a running ComfyUI
goes to one process: servers use the same folders of models and pictures. Long files come first.
"""

import os
from collections import Counter

import pytest

SERVERS = ("tests/server/", "tests/browser/", "tests/reliability/test_soak.py")
LONG = ("servers",)


def unit(nodeid):
    """What a test goes to a process together with: the name of its file, or "servers"."""
    file = nodeid.split("::")[0]
    return "servers" if file.startswith(SERVERS) else file


def place(name):
    """Long units come first, in the order of LONG; the others stay as they were."""
    return LONG.index(name) if name in LONG else len(LONG)


def share_cores():
    """In a process that pytest-xdist started, torch takes its share of the cores.

    Call it before torch is imported.
    """
    processes = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if processes:
        threads = max(1, (os.cpu_count() or 1) // int(processes))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def took(reports, most=8):
    """Lines that say how long each process was busy, and with what most. None for one process.

    A process that ends long before the other means that a long unit came last: name it in LONG.
    """
    processes, units = Counter(), Counter()
    for report in reports:
        worker = getattr(report, "worker_id", None)
        if worker:
            processes[worker] += report.duration
            units[unit(report.nodeid)] += report.duration
    if len(processes) < 2:
        return []
    said = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(processes.items()))
    longest = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in units.most_common(most))
    return [f"processes were busy: {said}", f"longest: {longest}"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        """Gives whole units to processes, by default those with many tests first."""

        def _split_scope(self, nodeid):
            return unit(nodeid)

        def _assign_work_unit(self, node):
            self.workqueue.move_to_end(min(self.workqueue, key=place), last=False)
            super()._assign_work_unit(node)

    return Units(config, log)
