"""Trains the emoji world's models in the formats of diffusion transformers.

    python3 dev.py tool train_transformer OUT.safetensors --format wan
    python3 dev.py tool train_transformer OUT.safetensors --format sd3

An interrupted run resumes; everything is seeded. The networks are ComfyUI's own classes, small
(testbed/worlds/transformers.py). Pictures, captions, optimiser and averaging are those of the emoji
world's UNet; the loss is that of flow matching: the network says the noise less the picture.

Wan reads 512 rows of text, nearly all of them padding with one key and one value. Here it reads
that row once, and attention counts it as often as it stands there, which is the same.
"""

import argparse
import contextlib
import math
import time
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from ..worlds import meaning, pieces, transformers
from ..worlds.checkpoint import few_bits, load_judge, read_compact
from . import emoji, model

WORLD = emoji.WORLD
STEPS = {"wan": 2800, "sd3": 3400}  # three quarters of an hour on one idle core
# Shifts of the noise levels. High noise comes more often at first: there words decide the picture.
EARLY_SHARE, EARLY_SHIFT, LATE_SHIFT = 0.4, 5.0, 3.0
TOLD_BY = 12  # first tokens of a caption, by which words are told before the first step
GUIDANCE, LOOKS = 3.0, 12  # strength and steps of the pictures that are judged on the way
SIDE = 16  # of SD3's table of positions, in patches


def new_net(kind, sizes=None):
    """ComfyUI's network of the format `kind` for 3 channels and narrow text, not initialised.

    sizes: in place of the format's own.
    """
    model.comfy_cpu()
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules import mmdit
    from comfy.ldm.wan.model import WanModel

    sizes = dict(sizes or transformers.FORMATS[kind].sizes)
    colours, narrow = transformers.COLOURS, meaning.COORDINATES
    made = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    if kind == "wan":
        heads = sizes["dim"] // 128  # as ComfyUI's detection has it
        channels = {"in_dim": colours, "out_dim": colours, "text_dim": narrow}
        return WanModel(num_heads=heads, **channels, **sizes, **made)
    width = 64 * sizes["depth"]
    net = mmdit.OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=colours,
        adm_in_channels=narrow,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": narrow, "out_features": width},
        },
        pos_embed_max_size=SIDE,
        num_patches=SIDE**2,
        qk_norm="rms",
        **sizes,
        **made,
    )
    table = mmdit.get_2d_sincos_pos_embed(width, SIDE)
    net.pos_embed.copy_(torch.from_numpy(table)[None])
    return net


LAST = {  # ends of the names of layers that end a branch
    "wan": ("attn.o", "ffn.2"),
    "sd3": ("attn.proj", "mlp.fc2"),
}
MODULATION = {"wan": "time_projection.1", "sd3": "adaLN_modulation.1"}
GATES = (2, 5)  # of the six parts of a modulation


@torch.no_grad()
def initialise(net, kind, codes):
    """Draws all weights: branches begin small, and the time changes nothing yet.

    codes: [r, 257] of model.label_codes, from which text is read at first.
    """
    form = transformers.FORMATS[kind]
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            nn.init.zeros_(module.bias)
            if name.endswith(LAST[kind]):
                module.weight *= 0.1
            if name.endswith(MODULATION[kind]) or name == form.draws:
                module.weight.zero_()
        elif getattr(module, "weight", None) is not None:  # norms
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    for name in form.text:
        w = net.get_parameter(name)
        if name != "y_embedder.mlp.0.weight":  # pooled text says the words without help
            w += torch.randn(len(w), len(codes)) @ codes / 4
    if kind == "wan":
        net.head.modulation.zero_()
        for block in net.blocks:
            block.modulation.zero_()
            block.modulation[:, GATES] = 1
        return
    for name, module in net.named_modules():
        if name.endswith(MODULATION[kind]) and len(module.bias) == 6 * net.hidden_size:
            module.bias.view(6, -1)[list(GATES)] = 1


def attend(q, k, v, heads, mask=None, transformer_options=None, **_):
    """Attention for training, in place of ComfyUI's: [B, n, heads * d] or [B, n, heads, d] each.

    The option `text_bias` [B, 1, 1, n] is added where the picture reads text. So few tokens are
    read in a third of the time by plain products of matrices.
    """
    q, k, v = (x.to(v.dtype).reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    if k.shape[2] != q.shape[2] and transformer_options:
        mask = transformer_options.get("text_bias")
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


@contextlib.contextmanager
def training_mode():
    """While it lasts, ComfyUI's networks have gradients, and attention is fast on a CPU."""
    import comfy.model_management
    from comfy.ldm.modules.diffusionmodules import mmdit
    from comfy.ldm.wan import model as wan

    with (
        mock.patch.object(comfy.model_management, "in_training", True),
        mock.patch.object(wan, "optimized_attention", attend),
        mock.patch.object(mmdit, "optimized_attention", attend),
    ):
        yield


class Reader(nn.Module):
    """The network, as it is called here: it reads text as a table holds it."""

    def __init__(self, net, kind):
        super().__init__()
        self.unet, self.kind = net, kind  # the name that the other trainings have for it

    def forward(self, x, level, text):
        """Latents [B, 3, h, w] at noise levels [B] in [0, 1] -> noise less picture, alike."""
        with training_mode():
            if self.kind == "sd3":
                return self.unet(x, 1000 * level, text[:, :-1], text[:, -1])
            bias = text[:, None, None, :, -1].log()
            options = {"text_bias": bias}
            read = text[..., :-1]
            return self.unet(x[:, :, None], 1000 * level, read, transformer_options=options)[
                :, :, 0
            ]


def batches(texts, size=64):
    """Different texts, so many at a time."""
    texts = list(dict.fromkeys(texts))
    return (texts[i : i + size] for i in range(0, len(texts), size))


class WanTable(emoji.Table):
    """Text -> [rows, 258]: the padding's row, then one for each piece, of coordinates.

    The last column says how often the row stands in what Wan reads.
    """

    MOST = 40  # pieces of a caption

    def __init__(self, file):
        self.rows, self.reader = {}, pieces.PieceReader(file)

    def add(self, texts):
        for batch in batches(texts):
            for text, states in zip(batch, self.reader.of_texts(batch), strict=True):
                row = torch.zeros(self.MOST + 1, meaning.COORDINATES + 1)
                row[0, -1] = pieces.LENGTH - len(states)
                row[1 : len(states) + 1, :-1] = states
                row[1 : len(states) + 1, -1] = 1
                self.rows[text] = row.half()

    def of(self, batch, other=False):
        return self.trimmed(super().of(batch))

    @staticmethod
    def trimmed(rows):
        """Without what is empty in all texts of a batch."""
        return rows[:, : int(rows[..., -1].any(0).nonzero()[-1]) + 1]


class SD3Table(emoji.Table):
    """Text -> [78, 257]: CLIP-L's states before the last layer, and its pooled state."""

    def __init__(self, file):
        super().__init__("sd15", file)

    def add(self, texts):
        for batch in batches(texts):
            ids = [self.tokenizer(text, truncation=True)["input_ids"] for text in batch]
            states, pooled = self.encoders["l"].read(ids, -2, norm=False)
            read = torch.cat([states, pooled[:, None]], 1).half()
            self.rows |= zip(batch, read, strict=True)


TABLES = {"wan": WanTable, "sd3": SD3Table}


def shifted(u, shift):
    """Noise levels in [0, 1], as ComfyUI's models of flow matching shift them."""
    return shift * u / (1 + (shift - 1) * u)


@torch.inference_mode()
def sample(net, states, empty, shape, seed=0):
    """Euler's steps with guidance: texts as the table has them -> latents [B, 3, *shape]."""
    n, shift = len(states), transformers.FORMATS[net.kind].shift
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, transformers.COLOURS, *shape, generator=g)
    text = torch.cat([states, empty.expand(n, -1, -1)])
    if net.kind == "wan":
        text = WanTable.trimmed(text)
    levels = shifted(torch.linspace(1, 0, LOOKS + 1), shift)
    for level, after in zip(levels[:-1], levels[1:], strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            said = net(torch.cat([x, x]), level.repeat(2 * n), text).float()
        cond, uncond = said.chunk(2)
        x = x + (after - level) * (uncond + GUIDANCE * (cond - uncond))
    return x


class Training(emoji.Training):
    """As that of the emoji world's UNets, with another network and loss.

    sizes: of the network, in place of the format's own.
    """

    sizes = None

    def new_net(self):
        given = self.given
        shown, kinds = self.labelled()
        states = self.table.of(shown)[..., : meaning.COORDINATES]
        positions = range(1, min(TOLD_BY, states.shape[1]))
        codes = model.label_codes(states, kinds, 96, positions)
        net = new_net(given.format, self.sizes)
        torch.manual_seed(given.seed)
        initialise(net, given.format, codes)
        if given.start_from:
            trained = read_compact(given.start_from, narrow=True)
            net.load_state_dict({k: v.float() for k, v in trained.items()})
        return Reader(net, given.format)

    def inputs(self, share):
        batch, pictures = emoji.pick(self.rng, self.groups, self.given.batch, False)
        x0 = model.to_latent(pictures)[:, : transformers.COLOURS]
        early = share < EARLY_SHARE and not self.given.start_from
        shift = EARLY_SHIFT if early else LATE_SHIFT
        level, noise = shifted(torch.rand(len(x0)), shift), torch.randn_like(x0)
        a = level.view(-1, 1, 1, 1)
        return (1 - a) * x0 + a * noise, noise - x0, level, self.table.of(batch)

    def loss(self, x, wanted, level, text):
        with torch.autocast("cpu", torch.bfloat16):
            said = self.net(x, level, text)
        return (said.float() - wanted).square().mean()

    def few_bits(self, name, parameter):
        return few_bits(name.removeprefix("unet."), parameter, self.given.format)

    @torch.inference_mode()
    def worth(self, probe):
        """Growth of the loss at high noise when captions are exchanged."""
        x0, text = probe
        x0 = x0[:, : transformers.COLOURS]
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        level = torch.full((len(x0),), 0.85)
        x = 0.15 * x0 + 0.85 * noise
        right, wrong = (
            self.average(x, level, said).sub(noise - x0).square().mean().item()
            for said in (text, text.roll(5, 0))
        )
        return wrong / right - 1

    def accuracy(self, judge):
        return model.quick_accuracy(self.average, self.table.rows, judge, (), sample=sample)


def options():
    """What the command is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=list(transformers.FORMATS), default="wan")
    parser.add_argument("--text", type=Path, default=meaning.FILE, help="the text encoder's file")
    parser.add_argument("--steps", type=int, help="2800 for wan and 3400 for sd3 by default")
    emoji.add_options(parser, every=500)
    given = parser.parse_args()
    given.steps = given.steps or STEPS[given.format]
    return given


def main():
    given = options()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    groups = WORLD.captions()
    del groups["pair"]
    table, start = TABLES[given.format](given.text), time.time()
    table.add(emoji.texts_of(groups))
    print(f"{len(table.rows)} captions read in {time.time() - start:.0f} s", flush=True)
    Training(given, table, groups).run(load_judge(WORLD.file))


if __name__ == "__main__":
    main()
