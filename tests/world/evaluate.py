"""Samples the sprite world through ComfyUI's own loader, encoder and sampler, and asks the judge."""

from typing import NamedTuple

import torch

from .judge import STYLE_NAMES
from .sprites import LABELS, SIZE

SCALE = 0.18215  # ComfyUI's SD1.5 latent scale: latents outside the model are divided by it
SEEN = (*LABELS, "nothing")


class Look(NamedTuple):
    """What the judge saw in one picture: the sprite (or the two, left and right), artist and explicit attribute."""

    names: tuple[str, ...]
    style: str | None
    explicit: bool
    wanted: tuple[str, ...]

    @property
    def correct(self):
        return self.names == self.wanted


@torch.inference_mode()
def judge_picture(judge, picture, caption):
    """Look at a picture [3, 8, 8] in [0, 1], or [3, 8, 16] of a pair."""
    label, style, explicit = (o.argmax(1).tolist() for o in judge(torch.stack(picture.split(SIZE, dim=-1))))
    wanted = tuple(n for n in (caption.name, caption.second) if n)
    return Look(tuple(SEEN[i] for i in label), STYLE_NAMES[style[0]], bool(explicit[0]), wanted)


class Studio:
    """A loaded checkpoint and the judge: `look(captions, model=patched)` draws them and says what is in the pictures."""

    def __init__(self, checkpoint, judge):
        import comfy.sd

        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        self.judge, self.states = judge, {}

    @torch.inference_mode()
    def encode(self, texts):
        """States [n, 77, d], each text encoded once in the life of the studio."""
        import pack

        new = [t for t in dict.fromkeys([*texts, ""]) if t not in self.states]
        self.states |= pack.module("nodes.host.prompts").encode(self.clip, new)
        return torch.stack([self.states[t] for t in texts])

    @torch.inference_mode()
    def draw(self, captions, seed=0, model=None, steps=12, cfg=3.0, batch=24):
        """Pictures, one per caption, [3, 8, 8] or for pairs [3, 8, 16], in [0, 1]; picture i has the seed `seed + i`."""
        out = [None] * len(captions)
        for wide in (False, True):
            chosen = [i for i, c in enumerate(captions) if (c.second is not None) == wide]
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                states = self.encode([captions[i].text for i in part])
                shape = (4, SIZE, SIZE * (1 + wide))
                noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in part])
                latents = sample(model or self.model, noise, states, self.states[""], steps, cfg)
                for i, latent in zip(part, latents, strict=True):
                    out[i] = (latent[:3] * SCALE / 2 + 0.5).clamp(0, 1)
        return out

    def look(self, captions, seed=0, model=None, **how):
        return [judge_picture(self.judge, p, c) for p, c in zip(self.draw(captions, seed, model, **how), captions, strict=True)]


def sample(model, noise, states, empty, steps, cfg):
    """Latents [n, 4, h, w]: ComfyUI's DDIM with a prompt of its own per picture, states [n, 77, d] and `empty` [77, d]."""
    import comfy.sample

    positive, negative = [[states, {}]], [[empty.expand(len(states), -1, -1), {}]]
    out = comfy.sample.sample(
        model, noise, steps, cfg, "ddim", "ddim_uniform", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=0
    )
    return out.float().cpu()
