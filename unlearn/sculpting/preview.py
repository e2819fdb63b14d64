"""A picture of the concept being forgotten, shown while it is trained."""

from __future__ import annotations

from ..host import previews
from ..host.training_network import DrawSettings
from . import tuning
from .trainer import Trainer


def show_preview(trainer: Trainer) -> None:
    """Draws and shows a preview on every `preview_every`-th step after the warm-up."""
    s = trainer.settings
    step = trainer.step - s.warmup
    if trainer.bar is None or not s.preview_every or step <= 0 or step % s.preview_every:
        return
    network, task = trainer.network, trainer.data.plan.tasks[trainer.round]
    sentence, _ = task.drawn[0]
    how = DrawSettings(tuple(trainer.data.shape), tuning.PREVIEW_STEPS, s.cfg)
    latent = network.draw(
        network.student, [network.text_id[sentence]], [network.text_id[""]], [s.seed], how
    )
    previewer = previews.latent_previewer(network.model)
    if previewer is not None:
        bar = trainer.bar.bar
        shown = previewer.decode_latent_to_preview_image("JPEG", latent)
        bar.update_absolute(bar.current, preview=shown)
