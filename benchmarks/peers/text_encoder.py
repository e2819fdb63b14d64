"""The pack's edit of the text encoder alone, as Erase in Text Encoder makes it. No UNet is edited.

It is given every round's concepts on the CLIP that the round before left.
"""

import torch

from testbed import pack

from . import Erased

NAME = "text encoder (ours)"
solver = pack.module("unlearn.closed_form.text_encoder")
parts = pack.module("unlearn.files.encoder_parts")


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    patch, _ = solver.solve(clip, concepts)
    edited = parts.apply(clip, parts.of_encoder(patch))
    return Erased(model, patch.nbytes, clip=edited)
