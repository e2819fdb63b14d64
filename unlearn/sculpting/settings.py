"""The settings of a training run, their defaults and the presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ...kernels.sculpting import MEASURES
from ..errors import UnlearnError, quoted
from ..host.architectures.base import WIDEST
from . import tuning

VARIANTS = ("replay", "intended", "released")
IMPORTANCES = MEASURES  # how the weights of a matrix are ranked
ON_CANCEL = ("discard", "keep")
STRENGTHS = tuple(tuning.STRENGTHS)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that can be set on the node. The names are those of its inputs.

    density, turnover, warmup, refresh, align and distil have the paper's values. How the others
    were chosen is in docs/results and in `tuning.py`.
    """

    variant: str = "replay"  # one of VARIANTS
    steps: int = 400  # most training steps per concept
    stop_at: float = 0.6  # share of a concept that may be left when its round ends
    batch: int = 4  # rows of the concept in a step
    held: int = 8  # rows of what is retained in a step
    learning_rate: float = 2e-5
    pictures: int = 16  # drawn of each concept, and as many of its superclass
    sampling_steps: int = 20  # for these pictures
    kept_pictures: int = 1  # drawn of each line of the keep list
    captions: int = 16  # everyday captions that are retained
    cfg: float = 7.5  # guidance for these pictures
    size: int = 0  # side of the pictures in pixels; 0 for the model's own
    trainable: str = "cross-attention"  # which matrices are trained
    density: float = 0.5  # share of each matrix that is in the mask
    turnover: float = 0.2  # share of the mask that the first refresh exchanges
    warmup: int = 50  # steps before the first mask
    refresh: int = 100  # steps between two refreshes of the mask
    importance: str = "signed"  # one of IMPORTANCES
    align: float = 0.25  # lambda_a of SM-4
    distil: float = 0.25  # lambda_kd of SM-4
    hold: float = 5.0  # weight of following the teacher on what is retained
    precision: str = "auto"  # of activations
    checkpointing: bool = False  # compute activations twice instead of keeping them
    preview_every: int = 0  # steps between two previews; 0 for none
    resist: int = 0  # steps of searching for states that revive the concept, in each step
    low_rank: int = 0  # rank of the patch; 0 keeps every trained weight
    on_cancel: str = "discard"  # one of ON_CANCEL
    seed: int = 0

    def at(self, strength: str) -> TrainingSettings:
        """These settings, which are those of the strength 'normal', at another strength.

        Raises UnlearnError for a strength that does not exist.
        """
        if strength not in STRENGTHS:
            raise UnlearnError(
                f"The input 'strength' is {quoted(strength)}; choose one of {', '.join(STRENGTHS)}."
            )
        changed: dict[str, Any] = {}
        for name, factor in tuning.STRENGTHS[strength].items():
            value = getattr(self, name) * factor
            changed[name] = round(value) if isinstance(getattr(self, name), int) else value
        return replace(self, **changed)

    def against_search(self) -> TrainingSettings:
        """These settings, with a search in each step for what brings a concept back.

        Whole attention and feed-forward layers are trained, and more weight is on what is kept.
        """
        more: dict[str, Any] = {
            name: type(getattr(self, name))(getattr(self, name) * factor)
            for name, factor in tuning.AGAINST_SEARCH.items()
        }
        return replace(self, **more, resist=tuning.SEARCH_STEPS, trainable=WIDEST)

    @property
    def replays(self) -> bool:
        """Whether everything that is to stay is trained on too."""
        return self.variant == "replay"

    @property
    def distils(self) -> bool:
        """Whether the teacher's predictions are followed."""
        return self.variant != "released"

    @property
    def shows_superclass(self) -> bool:
        """Whether a step has rows of the superclass' pictures (SM-2, SM-3)."""
        return bool(self.align) or bool(self.distil and self.distils)

    @property
    def rows_per_step(self) -> int:
        """Most rows in one training step."""
        superclass = self.batch if self.align or self.distil else 0
        searched = 2 * self.batch if self.resist else 0
        return self.batch + searched + superclass + (self.held if self.replays else 0)


DEFAULTS: dict[str, Any] = asdict(TrainingSettings())
_LENGTH = (
    "steps",
    "stop_at",
    "batch",
    "held",
    "learning_rate",
    "pictures",
    "sampling_steps",
    "captions",
)
PRESETS: dict[str, dict[str, Any]] = {
    "balanced": {name: DEFAULTS[name] for name in _LENGTH},
    "quick": dict(zip(_LENGTH, (150, 0.7, 4, 8, 5e-5, 8, 20, 8), strict=True)),
    "thorough": dict(zip(_LENGTH, (1500, 0.5, 4, 12, 1e-5, 48, 30, 48), strict=True)),
}
