"""Samples the sprite world through ComfyUI's own sampler and asks the judge."""

import torch

from .judge import STYLE_NAMES
from .sprites import LABELS

SEEN = (*LABELS, "nothing")
SCALE = 0.18215  # ComfyUI's SD1.5 latent scale: latents outside the model are divided by it


def generate(model, states, seeds, shape=(8, 8), steps=15, cfg=3.0, batch=24):
    """Pictures [n, 3, *shape] in [0, 1]: one per row of states [n, 77, d] and seed [n], DDIM with the empty prompt `states[""]`."""
    import comfy.sample

    states, empty = states
    out = []
    for i in range(0, len(states), batch):
        part = states[i : i + batch]
        noise = torch.stack([torch.randn(4, *shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds[i : i + batch]])
        positive, negative = [[part, {}]], [[empty.expand(len(part), -1, -1), {}]]
        latent = torch.zeros_like(noise)
        samples = comfy.sample.sample(
            model, noise, steps, cfg, "ddim", "ddim_uniform", positive, negative, latent, disable_pbar=True, seed=0
        )
        out.append((samples.float().cpu()[:, :3] * SCALE / 2 + 0.5).clamp(0, 1))
    return torch.cat(out)


@torch.inference_mode()
def verdicts(judge, pictures):
    """(label, style, explicit) indices [n] of single pictures [n, 3, 8, 8]."""
    return tuple(o.argmax(1) for o in judge(pictures))


def hits(judge, pictures, captions):
    """Per caption, whether the judge sees its sprite (in its half, for a pair: (left, right))."""
    seen = []
    for caption, picture in zip(captions, pictures):
        if caption.second is None:
            seen.append((SEEN[_label(judge, picture)] == caption.name,))
        else:
            left, right = picture.split(picture.shape[-1] // 2, dim=-1)
            seen.append((SEEN[_label(judge, left)] == caption.name, SEEN[_label(judge, right)] == caption.second))
    return seen


def _label(judge, picture):
    return int(verdicts(judge, picture[None])[0])


def style_of(judge, pictures):
    """The artist seen in each single picture, or None."""
    return [STYLE_NAMES[int(i)] for i in verdicts(judge, pictures)[1]]
