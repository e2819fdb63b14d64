"""What an artist could use instead, written from the published equations on ComfyUI models: one file each, all with the same face.

Every file has `NAME`, and `erase(model, clip, concepts, seed=0)` -> Erased for a ConceptSet; the model that comes in is not changed.
None of them is part of the pack: they are here to be measured beside it (`dev.py bench peers`).
"""

from typing import NamedTuple


class Erased(NamedTuple):
    """A MODEL that should not draw the concepts, and how it has to be sampled.

    nbytes: size of what must be kept to have the same model again; negative: the text in place of the empty negative prompt; perp: whether
    the sampler must use perpendicular negative guidance with it.
    """

    model: object
    nbytes: int
    negative: str = ""
    perp: bool = False
