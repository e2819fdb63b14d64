"""Progress, cancel and a line of text under the node."""

import sys

import comfy.model_management
import comfy.utils


class Progress:
    """A progress bar of `total` steps for the running node; each step may be where the artist cancels."""

    def __init__(self, total, node_id=None):
        self.bar = comfy.utils.ProgressBar(max(1, total), node_id=node_id)
        self.step(0)

    def step(self, n=1):
        """Advances by n; raises ComfyUI's InterruptProcessingException when the run was cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update(n)


def say(text, node_id):
    """Shows a text under the node, where a server and a page are there to show it."""
    running = sys.modules.get(
        "server"
    )  # never imported from here: it would pull in all of ComfyUI's nodes
    server = getattr(getattr(running, "PromptServer", None), "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
