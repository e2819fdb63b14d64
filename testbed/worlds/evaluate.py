"""Samples a world through ComfyUI's own loader, encoder and sampler, and asks the judge."""

import copy
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .judge import seen, style_names

FAST = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Look(NamedTuple):
    """What the judge saw in a picture: object (two in a pair, left first), artist, explicit."""

    names: tuple[str, ...]
    style: str | None
    explicit: bool
    wanted: tuple[str, ...]

    @property
    def correct(self):
        return self.names == self.wanted


@torch.inference_mode()
def judge_picture(judge, picture, caption):
    """Look at a picture [3, size, size] in [0, 1], or [3, size, 2 size] of a pair."""
    world = judge.world
    label, style, explicit = (
        o.argmax(1).tolist() for o in judge(torch.stack(picture.split(world.size, dim=-1)))
    )
    wanted = tuple(n for n in (caption.name, caption.second) if n)
    return Look(
        tuple(seen(world)[i] for i in label),
        style_names(world)[style[0]],
        bool(explicit[0]),
        wanted,
    )


class Studio:
    """A loaded checkpoint and its judge: `look(captions, model=edited)` draws and judges."""

    def __init__(self, checkpoint, judge, clip_skip=None):
        import comfy.sd

        from . import pieces

        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(
                str(checkpoint)
            )[:3]
        if self.clip is None:  # a text encoder that no small file can hold
            self.clip = pieces.clip()
        leave_out_empty_layers(self.clip)
        if clip_skip:
            self.clip = self.clip.clone()
            self.clip.clip_layer(-clip_skip)
        self.judge, self.states = judge, {}
        self.rows = 0  # of the states of a text, where those behind the last word are not kept
        # Text -> pooled vector, of a model that reads it as SDXL does.
        self.pooled = {} if self.model.model.adm_channels else None

    def reading(self, clip):
        """This studio with another CLIP, and with no states that were read before."""
        other = copy.copy(self)
        other.clip, other.states = clip, {}
        other.pooled = None if self.pooled is None else {}
        return other

    @torch.inference_mode()
    def encode(self, texts):
        """States [n, 77, d], or of Wan [n, 512, d]; each text is encoded once for the studio."""
        from testbed import pack

        new = [t for t in dict.fromkeys([*texts, ""]) if t not in self.states]
        if hasattr(self.model.model.diffusion_model, "input_blocks"):  # a UNet
            encode = pack.module("unlearn.host.text_encoding").encode
            self.states |= encode(self.clip, new, pooled=self.pooled)
        else:
            self.states |= {text: self.encode_one(text) for text in new}
        found = [self.states[t] for t in texts]
        return torch.stack([F.pad(s, (0, 0, 0, max(0, self.rows - len(s)))) for s in found])

    def encode_one(self, text):
        """States [n, d] of a text as ComfyUI gives them to a transformer.

        They are cut behind the last row that is not zero: Wan's have 512 rows of width 4096.
        """
        ((states, more),) = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        states = states[0].float().cpu()
        if self.pooled is not None:
            self.pooled[text] = more["pooled_output"][0].float().cpu()
        self.rows = len(states)
        used = states.any(1).nonzero()
        return states[: int(used[-1]) + 1].clone()

    @torch.inference_mode()
    def draw(
        self, captions, seed=0, model=None, steps=12, cfg=3.0, batch=24, negative="", perp=False
    ):
        """Pictures in [0, 1], one per caption: [3, size, size], or [3, size, 2 size] for a pair.

        Picture i has the seed `seed + i`. negative: the text in place of the empty one.
        perp: perpendicular negative guidance, as in `sample`.
        """
        unwanted = self.encode([negative])[0]
        form = self.model.model.latent_format
        frames = [1] * (form.latent_dimensions - 2)
        out = [None] * len(captions)
        for wide in (False, True):
            chosen = [i for i, c in enumerate(captions) if (c.second is not None) == wide]
            for start in range(0, len(chosen), batch):
                part = chosen[start : start + batch]
                states = self.encode([captions[i].text for i in part])
                size = self.judge.world.size
                shape = (form.latent_channels, *frames, size, size * (1 + wide))
                noise = torch.stack(
                    [
                        torch.randn(shape, generator=torch.Generator().manual_seed(seed + i))
                        for i in part
                    ]
                )
                # Takes half the time where the processor can; the judge sees no difference.
                with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
                    latents = sample(
                        model or self.model,
                        noise,
                        states,
                        unwanted,
                        steps,
                        cfg,
                        self.states[""] if perp else None,
                        self.extras([captions[i].text for i in part], negative),
                    )
                colours = form.process_in(latents)[:, :3].reshape(len(part), 3, *shape[-2:])
                for i, picture in zip(part, colours, strict=True):
                    out[i] = (picture / 2 + 0.5).clamp(0, 1)
        return out

    def extras(self, texts, negative):
        """What goes with the prompts and with the negative one beside their token states."""
        if self.pooled is None:
            return {}, {}
        rows = [
            torch.stack([self.pooled[t] for t in ts]) for ts in (texts, [negative] * len(texts))
        ]
        return tuple({"pooled_output": row} for row in rows)

    def look(self, captions, seed=0, model=None, **how):
        return [
            judge_picture(self.judge, p, c)
            for p, c in zip(self.draw(captions, seed, model, **how), captions, strict=True)
        ]


def leave_out_empty_layers(clip):
    """Takes layers out of a CLIP's text encoders that add nothing, as most of meaning.py's do.

    The last two stay, so that clip skip 1 and 2 read what they did. The states stay the same.
    """
    for name in ("clip_l", "clip_g"):
        part = getattr(clip.cond_stage_model, name, None)
        if part is not None:
            encoder = part.transformer.text_model.encoder
            layers = list(encoder.layers)
            used = [layer for layer in layers[:-2] if adds(layer)] + layers[-2:]
            encoder.layers = torch.nn.ModuleList(used)


def adds(layer):
    """Whether a layer of a text encoder changes what goes through it."""
    last = (layer.self_attn.out_proj, layer.mlp.fc2)
    return any(p.count_nonzero() for part in last for p in part.parameters())


def sample(model, noise, states, negative, steps, cfg, empty=None, extras=({}, {})):
    """Latents [n, c, (1,) h, w] by ComfyUI's DDIM, with a prompt for each picture.

    states: [n, 77, d]; negative: [77, d]; empty: [77, d] selects ComfyUI's Perp-Neg guider. That
    guider projects a whole batch onto one direction, so each picture is sampled by itself.
    extras: what conditionings have beside token states, of the prompts and of the negative one.
    """
    import comfy.sample

    if empty is not None:
        return torch.cat(
            [
                _perp(model, x, c, negative, steps, cfg, empty)
                for x, c in zip(noise.split(1), states.split(1), strict=True)
            ]
        )
    prompts = [[states, extras[0]]], [[negative.expand(len(states), -1, -1), extras[1]]]
    out = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "ddim",
        "ddim_uniform",
        *prompts,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )
    return out.float().cpu()


def _perp(model, noise, states, negative, steps, cfg, empty):
    import comfy.samplers
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds([[states, {}]], [[negative[None], {}]], [[empty[None], {}]])
    guider.set_cfg(cfg, 1.0)  # the node's own weight of what is unwanted
    sigmas = comfy.samplers.KSampler(
        model, steps, model.load_device, "ddim", "ddim_uniform", model_options=model.model_options
    ).sigmas
    ddim = comfy.samplers.sampler_object("ddim")
    return (
        guider.sample(noise, torch.zeros_like(noise), ddim, sigmas, disable_pbar=True, seed=0)
        .float()
        .cpu()
    )
