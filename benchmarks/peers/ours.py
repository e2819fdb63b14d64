"""The pack's default: ScaPre Solve (`anchored`) as the node sets it, its report included."""

import torch

from testbed import pack

from . import Erased

NAME = "ours (ScaPre)"
scapre = pack.module("unlearn.closed_form.solve")
patching = pack.module("unlearn.host.patching")


@torch.inference_mode()
def erase(model, clip, concepts, seed=0, size=64):
    patch, _, _ = scapre.solve(
        model, clip, concepts
    )  # outside a server no text state is kept on disk
    return Erased(patching.apply(model, patch)[0], patch.nbytes)
