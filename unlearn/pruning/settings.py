"""What can be set when saliency is measured and when masks are made.

The sources of the defaults stand in tuning.py.
"""

from dataclasses import asdict, dataclass
from typing import Any

GRANULARITIES = {"connection": "connection", "neuron": "column", "row": "row"}  # -> of the edit
PARTS = ("all", "input", "middle", "output", "input + middle", "middle + output")


@dataclass(frozen=True)
class SaliencySettings:
    """How saliency is measured.

    score: `paper` or `wanda` (kernels/fia.py). prompts: how many for each concept, and as many for
    the baseline. steps: of a whole picture, of which the first `window` are run. cfg: guidance
    scale. seed: of the first prompt's noise. size: side of the pictures in pixels, 0 for the
    model's own. halves: measure the `conditional` half of guidance or `both`. r1: share of
    connections that count as high at a step. scale: `layer_max` or `none` (equation 3). ceiling:
    share of each layer's connections that is kept. first: number of the first prompt.
    """

    score: str = "paper"
    prompts: int = 5
    steps: int = 50
    window: int = 10
    cfg: float = 7.5
    seed: int = 1244
    size: int = 0
    halves: str = "conditional"
    r1: float = 0.05
    scale: str = "layer_max"
    ceiling: float = 0.06
    first: int = 0


@dataclass(frozen=True)
class MaskSettings:
    """How masks are made.

    r2: share of each layer's connections that a concept may choose. alpha: a choice of at least
    this share of the concepts stays. granularity: a key of GRANULARITIES. parts: one of PARTS.
    from_depth, to_depth: first and last layer that is pruned, as a share of all layers.
    """

    r2: float = 0.01
    alpha: float = 0.6
    granularity: str = "connection"
    parts: str = "all"
    from_depth: float = 0.0
    to_depth: float = 1.0


SALIENCY_DEFAULTS: dict[str, Any] = asdict(SaliencySettings())
MASK_DEFAULTS: dict[str, Any] = asdict(MaskSettings())
