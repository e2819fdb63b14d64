"""Options and fixtures of all tests.

`dev.py test` sets the host's folder; a bare pytest uses the unpacked one.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
FAST = ROOT / "tests" / "unit"
SLOW_MARKERS = {"gpu", "host", "slow", "server", "world", "browser"}
for folder in (str(ROOT), str(HOST)):  # the host comes first: `import nodes` must find its nodes.py
    if folder not in sys.path:
        sys.path.insert(0, folder)

from testbed import device, processes  # noqa: E402
from testbed.fixtures import (  # noqa: E402, F401
    checkpoint,
    inference_mode,
    loaded,
    states_on_disk,
)
from testbed.processes import pytest_xdist_make_scheduler  # noqa: E402, F401
from testbed.tally import (  # noqa: E402, F401
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    tally,
)

processes.share_cores()


@pytest.fixture(autouse=True)
def worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every report that any test makes keeps the rules of unlearn/wording.py."""
    wording = sys.modules.get("unlearn_pack.unlearn.wording")
    if wording is None:
        return
    compose = wording.compose

    def checked(verdict, warnings=(), advice=(), details=()):
        text = compose(verdict, warnings, advice, details)
        front = wording.front(text)
        assert 0 < wording.count(front) <= wording.MOST_WORDS, text
        assert not text.startswith((wording.WARNING, "Next: ", "Try: ")), text
        for warning in warnings:
            words = f"{warning.text} {warning.more}".split()
            assert all(word in text for word in words), f"{warning}\n{text}"
        assert bool(warnings) == (wording.WARNING in front), text
        return text

    monkeypatch.setattr(wording, "compose", checked)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="only the tests in tests/unit that run without ComfyUI, a server or a browser",
    )


def pytest_configure(config: pytest.Config) -> None:
    """With --fast, ComfyUI cannot be imported, so that a test that needs it fails here as in CI."""
    if not config.getoption("--fast"):
        return
    sys.path[:] = [p for p in sys.path if not p or Path(p).resolve() != HOST.resolve()]
    if config.args_source is not config.ArgsSource.ARGS:
        config.args[:] = [str(FAST)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device.skip_without_gpu(items)
    if not config.getoption("--fast"):
        return
    fast = [i for i in items if not SLOW_MARKERS & {m.name for m in i.iter_markers()}]
    config.hook.pytest_deselected(items=[i for i in items if i not in fast])
    items[:] = fast
