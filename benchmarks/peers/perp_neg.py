"""Perp-Neg (arXiv 2304.04968): the names as negative prompt, used only perpendicular to the prompt.

    eps = eps_0 + w ( d_+ - w_n ( d_- - <d_-, d_+> / |d_+|^2 d_+ ) ),   d = eps(text) - eps_0

It edits nothing: the sampler has to use this guidance (ComfyUI's PerpNegGuider).
"""

from . import Erased, negative_prompt

NAME = "Perp-Neg"


def erase(model, clip, concepts, seed=0, size=64):
    return Erased(model, 0, negative=negative_prompt.names(concepts), perp=True)
