"""A world's UNet and text encoder as plain functions, for gradients of what goes into them."""

import torch
import torch.nn.functional as F

from testbed import pack
from testbed.train.model import comfy_cpu
from testbed.worlds.evaluate import FAST

weights = pack.module("unlearn.host.weights")
HEAD = 64
PLACE = "sks"  # one rare token of CLIP's, which stands where searched embeddings go


def quick():
    """Computes in bfloat16 where the processor is quicker with it, as the worlds are drawn."""
    return torch.autocast("cpu", torch.bfloat16, enabled=FAST)


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
    """The CLIP-L of a world, for gradients of token embeddings."""

    def __init__(self, clip):
        own = clip.cond_stage_model.clip_l.transformer.text_model
        at = "clip_l.transformer.text_model"
        with torch.inference_mode(False):  # with this CLIP's own patches, whichever is loaded
            self.w = {k: weights.read(clip.patcher, f"{at}.{k}") for k in own.state_dict()}
        self.table = self.w["embeddings.token_embedding.weight"]
        self.layers = len({k.split(".")[2] for k in self.w if k.startswith("encoder.layers.")})
        self.clip = clip
        self.place = self.tokens(PLACE)[1]

    def tokens(self, text):
        return [t for t, _ in self.clip.tokenize(text)["l"][0]]

    def embedding(self, word):
        """The embedding [d] of a word's first token."""
        return self.table[self.tokens(word)[1]].clone()

    def __call__(self, texts, embeddings=None):
        """States [n, 77, d] of texts. The PLACEs of a text are read as `embeddings` in turn.

        embeddings: [k, d], the same for all texts, or [n, k, d].
        """
        ids = torch.tensor([self.tokens(t) for t in texts])
        x = self.table[ids]
        if embeddings is not None:
            every = embeddings.expand(len(texts), *embeddings.shape[-2:])
            found = ids == self.place
            turn = (found.long().cumsum(1) - 1).clamp_min(0) % every.shape[1]
            said = every.gather(1, turn[..., None].expand(-1, -1, x.shape[-1]))
            x = torch.where(found[..., None], said, x)
        return self.encode(x + self.w["embeddings.position_embedding.weight"])

    def encode(self, x):
        """States [n, 77, d] of embeddings with their positions."""

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

        def linear(x, name):
            return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

        def heads(x):
            return x.view(*x.shape[:2], -1, HEAD).transpose(1, 2)

        for i in range(self.layers):
            at = f"encoder.layers.{i}"
            h = norm(x, f"{at}.layer_norm1")
            q, k, v = (heads(linear(h, f"{at}.self_attn.{n}_proj")) for n in "qkv")
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + linear(h, f"{at}.self_attn.out_proj")
            h = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
            x = x + linear(h * torch.sigmoid(1.702 * h), f"{at}.mlp.fc2")
        return norm(x, "final_layer_norm").float()
