"""What the artist sees while a node runs: progress, a line of text under the node, and the log."""

from __future__ import annotations

import logging
import sys

import comfy.utils

from .. import wording
from .memory import raise_if_cancelled

# The pack's only logger. ComfyUI shows its lines on the console and in the log of a bug report.
log = logging.getLogger("unlearn")


class Progress:
    """A progress bar of `total` steps for the running node. Each step can be cancelled."""

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.bar = comfy.utils.ProgressBar(max(1, total), node_id=node_id)
        self.step(0)

    def step(self, n: int = 1) -> None:
        """Advances by n; raises ComfyUI's InterruptProcessingException after cancelling."""
        raise_if_cancelled()
        self.bar.update(n)


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


def _show(text: str, node_id: str | None) -> None:
    # The server is never imported from here, because that would load all of ComfyUI's nodes.
    running = sys.modules.get("server")
    server = getattr(getattr(running, "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
