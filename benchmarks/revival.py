"""Can a forgotten concept be brought back? Textual inversion against the edited sprite world, with and without robustness rounds.

For each forgotten object an attacker who has the edited model and pictures of the object learns a token embedding, 200 steps through the
text encoder, and draws held-out seeds in sentences of his own. revived: accuracy then. Beside it forgot and kept of the same edit.
Last line with --json: one JSON object.
"""

import argparse
import json
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

from world import encoder
from world.plant import load, noised
from world.sprites import LABELS, SUPERCLASS, draw
from world.train import sample, to_picture

from .scapre_world import ORDER, Bench, shots
from .world import studio

BATCH = 16
SENTENCES = ("a photo of a {}", "an image of a {}", "this is a {}", "{} on a wall")


class Text:
    """The sprite world's CLIP-L in plain functions, so that a gradient reaches a token's embedding."""

    def __init__(self, clip):
        self.w = {k: v.half().float() for k, v in encoder.state_dict().items()}
        self.clip = clip

    def tokens(self, text):
        return [t for t, _ in self.clip.tokenize(text)["l"][0]]

    def __call__(self, texts, token, embedding):
        """States [n, 77, d] of texts; every `token` in them is read as `embedding` [d]."""
        ids = torch.tensor([self.tokens(t) for t in texts])
        table = self.w["embeddings.token_embedding.weight"]
        x = torch.where((ids == token)[..., None], embedding, table[ids]) + self.w["embeddings.position_embedding.weight"]
        norm = lambda x, name: F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])
        linear = lambda x, name: F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])
        heads = lambda x: x.view(*x.shape[:2], 12, 64).transpose(1, 2)
        for i in range(encoder.LAYERS):
            at = f"encoder.layers.{i}"
            h = norm(x, f"{at}.layer_norm1")
            q, k, v = (heads(linear(h, f"{at}.self_attn.{n}_proj")) for n in "qkv")
            h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + linear(h, f"{at}.self_attn.out_proj")
            h = linear(norm(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
            x = x + linear(h * torch.sigmoid(1.702 * h), f"{at}.mlp.fc2")
        return norm(x, "final_layer_norm")


def edited(unet, patch):
    """Puts the edits of a patch into a UNet of ours, in place."""
    own = unet.state_dict()
    for key, edit in patch.edits:
        w = own[key.removeprefix("diffusion_model.")]
        w += edit.change(w, 1.0)


def revive(unet, text, name, steps, seed=0, rate=5e-3):
    """The token and embedding that textual inversion finds for pictures of an object."""
    token = text.tokens("sks")[1]
    embedding = text.w["embeddings.token_embedding.weight"][text.tokens(SUPERCLASS[name])[1]].clone().requires_grad_()
    rng, optimiser = np.random.default_rng(seed), torch.optim.Adam([embedding], rate)
    for step in range(steps):
        x, t, noise, weight = noised(np.stack([draw(name, rng) for _ in range(BATCH)]), rng)
        states = text([SENTENCES[step % 2].format("sks")], token, embedding).expand(BATCH, -1, -1)
        loss = ((unet(x, t, states) - noise).square() * weight).mean()
        optimiser.zero_grad(), loss.backward(), optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * (step + 1) / steps))
    return token, embedding.detach()


@torch.inference_mode()
def drawn(unet, judge, text, name, token, embedding, pictures, seed=9000):
    """Share of held-out pictures that show the object."""
    texts = [SENTENCES[i % len(SENTENCES)].format("sks") for i in range(pictures)]
    states, empty = text(texts, token, embedding), text([""], -1, embedding)[0]
    seen = judge(to_picture(sample(unet, states, empty, seed=seed)))[0].argmax(1)
    return float((seen == LABELS.index(name)).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--count", type=int, default=4, help="objects forgotten at once")
    parser.add_argument("--attacked", type=int, default=2, help="of them attacked, one by one")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--edits", default="none;rounds=0;rounds=2", help="settings of each edit; none: the unedited model")
    given = parser.parse_args()
    from world.checkpoint import SHIPPED

    bench = Bench(studio(), shots(plain=2))
    text, table = Text(bench.studio.clip), {}
    with torch.no_grad():  # ours must say what ComfyUI's encoder says
        ours, theirs = text(["a photo of a cat"], -1, torch.zeros(768))[0], bench.studio.encode(["a photo of a cat"])[0]
        assert torch.allclose(ours, theirs.float(), atol=2e-2), float((ours - theirs).abs().max())
    for edit in given.edits.split(";"):
        unet, row, start = load(SHIPPED), {}, time.time()
        if edit != "none":
            settings = {k: json.loads(v) for k, v in (part.split("=") for part in edit.split(","))}
            patch = bench.solve(given.count, **settings)[0]
            score = bench.score(patch, ORDER[: given.count])
            row |= {"forgot": round(score.forgot, 3), "kept": round(score.kept, 3)}
            edited(unet, patch)
        found = {}
        for name in ORDER[: given.attacked]:
            token, embedding = revive(unet, text, name, given.steps)
            found[name] = drawn(unet, bench.studio.judge, text, name, token, embedding, given.pictures)
        table[edit] = row | {"revived": round(float(np.mean(list(found.values()))), 3), "by_object": found}
        print(f"{edit}: {table[edit]} in {time.time() - start:.0f} s", flush=True)
    if given.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
