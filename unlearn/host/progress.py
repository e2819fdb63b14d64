"""What the artist sees while a node runs: progress, a line of text under the node, and the log."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator

import comfy.utils

from .. import wording
from ..errors import UnlearnError
from .memory import Cancelled, raise_if_cancelled
from .stages import Stage

# The pack's only logger. ComfyUI shows its lines on the console and in the log of a bug report.
log = logging.getLogger("unlearn")
BEGUN = "Starting ..."
CANCELLED = "Cancelled. Nothing was changed."
SAID = "unlearn_said"  # attribute of a Cancelled: what the node says instead of CANCELLED


class Progress:
    """A progress bar of `total` steps for the running node, with words under the node.

    Each step can be cancelled. The words say which stage of the work is on; see stages.py.
    """

    def __init__(self, total: int = 1, node_id: str | None = None) -> None:
        self.bar = comfy.utils.ProgressBar(max(1, total), node_id=node_id)
        self.stage = Stage(functools.partial(status, node_id=node_id))
        self.step(0)

    def begin(
        self, what: str, total: int = 0, each: int = 1, then: str = "", guess: float = 0.0
    ) -> None:
        """Another stage of the work begins, as in Stage.begin."""
        raise_if_cancelled()
        self.stage.begin(what, total, each, then, guess)

    def step(self, n: int = 1) -> None:
        """Advances by n; raises ComfyUI's InterruptProcessingException after cancelling."""
        raise_if_cancelled()
        self.bar.update(n)
        self.stage.step(n)

    def skip(self, n: int = 1) -> None:
        """Advances by n steps that took no time."""
        raise_if_cancelled()
        self.bar.update(n)
        self.stage.skip(n)

    def set_total(self, total: int) -> None:
        """The bar has so many steps, which was not known when it began."""
        self.bar.total = max(1, total)


def say(text: str, node_id: str | None) -> None:
    """Logs a text and shows what stands in front of its details under the node, in four lines.

    Lines that begin with WARNING are logged as warnings.
    """
    for line in filter(None, text.splitlines()):
        level = logging.WARNING if line.startswith(wording.WARNING) else logging.INFO
        log.log(level, "node %s: %s", node_id, line)
    _show(wording.face(text), node_id)


def status(text: str, node_id: str | None) -> None:
    """Shows under the node how far it is. Such texts come often, so they are logged for debugging.

    The next text replaces it.
    """
    log.debug("node %s: %s", node_id, text)
    _show(text, node_id)


@contextlib.contextmanager
def told(node_id: str | None) -> Iterator[None]:
    """Around a node's work: replaces the text of its last run, and says under it what stopped it.

    The frontend takes no empty text, so the node begins with a word.
    """
    status(BEGUN, node_id)
    try:
        yield
    except Cancelled as cancelled:
        status(getattr(cancelled, SAID, CANCELLED), node_id)
        raise
    except Exception as error:
        status(_what_stopped(error), node_id)
        raise


def cancelled_saying(error: Cancelled, text: str) -> None:
    """Lets a node that was cancelled say this, where something was kept."""
    setattr(error, SAID, text)


def _what_stopped(error: Exception) -> str:
    if isinstance(error, UnlearnError):
        return str(error)
    said = str(error).strip().split("\n")[0]
    return f"Stopped by an error ({type(error).__name__}): {said or 'it says no more'}"


def _show(text: str, node_id: str | None) -> None:
    # The server is never imported from here, because that would load all of ComfyUI's nodes.
    running = sys.modules.get("server")
    server = getattr(getattr(running, "PromptServer", None), "instance", None)
    if server is None or node_id is None:
        return
    # A node in a subgraph has an id such as '12:3'. web/unlearn.js shows its text on the box of
    # node 12. A text for '12' itself would make the classic renderer add a text box per text.
    server.send_progress_text(text, node_id)
