"""Textual inversion on an edited model: learns a token's embedding from pictures of an object."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from testbed import pack
from testbed.train.model import comfy_cpu
from testbed.train.plant import noised

weights = pack.module("unlearn.host.weights")
BATCH, LAYERS, HEAD = 16, 12, 64
SENTENCES = ("a photo of a {}", "an image of a {}", "this is a {}", "{} on a wall")


def network(model):
    """The UNet of a MODEL with its patches in its weights, one that a gradient can pass."""
    comfy_cpu()
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.inference_mode(False):
        config = model.model.model_config.unet_config
        unet = UNetModel(**{**config, "dtype": torch.float32, "device": "cpu"})
        unet.load_state_dict(
            {k: weights.read(model, f"diffusion_model.{k}") for k in unet.state_dict()}
        )
        return unet.requires_grad_(False)


class Text:
    """The CLIP-L of a world as plain functions, for a gradient of a token's embedding."""

    def __init__(self, clip):
        own, at = (
            clip.cond_stage_model.clip_l.transformer.text_model,
            "clip_l.transformer.text_model",
        )
        with torch.inference_mode(False):  # with this CLIP's own patches, whichever is loaded
            self.w = {k: weights.read(clip.patcher, f"{at}.{k}") for k in own.state_dict()}
        self.clip = clip

    def tokens(self, text):
        return [t for t, _ in self.clip.tokenize(text)["l"][0]]

    def __call__(self, texts, token, embedding):
        """States [n, 77, d] of texts; every `token` in them is read as `embedding` [d]."""
        ids = torch.tensor([self.tokens(t) for t in texts])
        table = self.w["embeddings.token_embedding.weight"]
        x = (
            torch.where((ids == token)[..., None], embedding, table[ids])
            + self.w["embeddings.position_embedding.weight"]
        )

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

        def linear(x, name):
            return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

        def heads(x):
            return x.view(*x.shape[:2], -1, HEAD).transpose(1, 2)

        for i in range(LAYERS):
            at = f"encoder.layers.{i}"
            h = norm(x, f"{at}.layer_norm1")
            q, k, v = (heads(linear(h, f"{at}.self_attn.{n}_proj")) for n in "qkv")
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + linear(h, f"{at}.self_attn.out_proj")
            h = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
            x = x + linear(h * torch.sigmoid(1.702 * h), f"{at}.mlp.fc2")
        return norm(x, "final_layer_norm")


def revive(unet, text, draw, start, steps, seed=0, rate=5e-3):
    """(token, embedding) that textual inversion learns, starting from the word `start`.

    draw(rng) gives the pictures, [size, size, 3].
    """
    token = text.tokens("sks")[1]
    embedding = (
        text.w["embeddings.token_embedding.weight"][text.tokens(start)[1]].clone().requires_grad_()
    )
    rng, optimiser = np.random.default_rng(seed), torch.optim.Adam([embedding], rate)
    for step in range(steps):
        x, t, noise, weight = noised(np.stack([draw(rng) for _ in range(BATCH)]), rng)
        states = text([SENTENCES[step % 2].format("sks")], token, embedding).expand(BATCH, -1, -1)
        loss = ((unet(x, t, states) - noise).square() * weight).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (step + 1) / steps))
    return token, embedding.detach()
