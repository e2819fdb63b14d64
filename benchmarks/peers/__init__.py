"""Other methods of erasing, written from the published equations for ComfyUI models.

Every file has a `NAME` and a function `erase(model, clip, concepts, seed=0, size=64)` that
takes a ConceptSet and gives an Erased; size is the side in pixels of pictures that it draws. The
model that comes in is not changed. That is the method as its paper has it.

A closed form has more, so that it can be measured at other settings and with what ours reads:
- `Setting`, a tuple of its constants; `OFFICIAL`, kind of concepts -> Setting; `grid(kind)`, those
  that a sweep tries; `SAME`, those that it tries with what ours reads;
- `read(clip, concepts, kind)`, what the official code reads, and `edits(model, read, setting,
  seed)`;
- `same_edits(model, information, setting, seed)`, its solve of what ours reads (_information.py).

A method that trains has `texts(concepts)`, all that it is trained on, `official_steps(concepts)`,
and an argument `steps` of `erase`. Both are for each concept, or are shared by all of them where
the official code has it so.

No part of the pack uses them; `dev.py bench peers` measures them and the pack alike.
"""

from typing import NamedTuple


class Erased(NamedTuple):
    """A MODEL that should not draw the concepts, and how it has to be sampled.

    nbytes: size of what must be stored to have this model again.
    negative: the text to use in place of the empty negative prompt.
    perp: whether the sampler must use perpendicular negative guidance with it.
    clip: the CLIP that must read the prompts, None for the one that was given.
    """

    model: object
    nbytes: int
    negative: str = ""
    perp: bool = False
    clip: object = None
