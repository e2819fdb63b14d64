"""What the reliability tests did, counted, and said in one line at the end of the run."""

from collections import Counter

import pytest

from . import processes

KINDS = ("cells", "faults", "inputs", "workflows", "host cannot")
_counts, _cannot = Counter(), set()


@pytest.fixture(scope="session")
def tally():
    """tally(kind, n=1, what=""): counts n of a kind.

    what: something that ComfyUI alone cannot do, listed once in the summary.
    """

    def count(kind, n=1, what=""):
        if kind not in KINDS:
            raise ValueError(f"tally counts {', '.join(KINDS)}, not {kind}")
        _counts[kind] += n
        if what:
            _cannot.add(what)

    return count


def pytest_sessionfinish(session):
    """A process of pytest-xdist hands its counts to the one that writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = [dict(_counts), sorted(_cannot)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    counts, cannot = getattr(node, "workeroutput", {}).get("tally", ({}, ()))
    _counts.update(counts)
    _cannot.update(cannot)


def pytest_terminal_summary(terminalreporter):
    reports = [r for found in terminalreporter.stats.values() for r in found]
    for line in processes.took(r for r in reports if isinstance(r, pytest.TestReport)):
        terminalreporter.write_line(line)
    if _counts:
        cannot = f" ({'; '.join(sorted(_cannot))})" if _cannot else ""
        lost = [
            r
            for kind in ("failed", "error")
            for r in terminalreporter.stats.get(kind, ())
            if "reliability" in r.nodeid
        ]
        end = f"LOST in {len(lost)} tests, see above" if lost else "nothing lost"
        terminalreporter.write_line(
            f"reliability: {_counts['cells']} cells of the matrix tried, {_counts['faults']} "
            "faults injected and survived, "
            f"{_counts['inputs']} inputs fuzzed, {_counts['workflows']} workflows queued, "
            f"{_counts['host cannot']} cells the host "
            f"cannot{cannot}; {end}"
        )
