"""Trains the emoji world's models and writes their compact files.

    python3 dev.py tool train_emoji OUT.safetensors
    python3 dev.py tool train_emoji OUT.safetensors --format sdxl

About an hour and a half on two cores each; an interrupted run resumes. Everything is seeded.

Text is read in the coordinates of its narrow encoder (testbed/worlds/meaning.py): 257 numbers a
token, and not the 768 or 2048 that the checkpoint has. Keys and values are trained on these, and
widened when the checkpoint is made. Some residual blocks are left empty: the format asks for them,
and the pictures do not.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..worlds import catalogue, meaning
from ..worlds.checkpoint import few_bits, read_compact, recipe, write_compact
from ..worlds.rounding import on_grid, scales
from . import model
from .muon import Muon

WORLD = catalogue.EMOJI
SD15 = {
    **model.UNET,
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": meaning.COORDINATES,
}
SDXL = {  # told as Segmind-Vega by its depths
    **model.UNET,
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 5],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0] * 8,
    "transformer_depth_middle": -1,
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 2 * meaning.COORDINATES,
    "num_classes": "sequential",
    "adm_in_channels": meaning.COORDINATES,
}
EMPTY = {
    "sd15": ("input_blocks.1.0", "output_blocks.2.0"),
    "sdxl": (
        "input_blocks.1.0",
        "input_blocks.3.0",
        "input_blocks.5.0",
        "input_blocks.7.0",
        *(f"output_blocks.{i}.0" for i in (0, 1, 2, 3, 6)),
    ),
}
SHARES = {"plain": 0.27, "superclass": 0.06, "styled": 0.56, "explicit": 0.06, "empty": 0.05}
PAIRS_FROM = 0.25  # of the steps
PAIR_NOISE = (0.4, 0.05)  # exponent of the timesteps' distribution, bound of the weights
OTHER_SKIP = 0.2  # of SDXL's steps, at clip skip 1
SCALES_FOR = 20  # steps that a matrix's scales in 4 bits are used for


class Reader(nn.Module):
    """A UNet that takes text as the table holds it: for SDXL the last row is the pooled text."""

    def __init__(self, unet, pooled):
        super().__init__()
        self.unet, self.pooled = unet, pooled

    def forward(self, x, t, text):
        if not self.pooled:
            return self.unet(x, t, text)
        return self.unet(x, t, text[:, :-1], y=text[:, -1, : meaning.COORDINATES])


def new_unet(kind, seed, codes):
    """The UNet before training, without its empty blocks."""
    model.comfy_cpu()
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = copy.deepcopy(SD15 if kind == "sd15" else SDXL)  # its lists are emptied
    unet = UNetModel(**config, dtype=torch.float32, device="cpu")
    torch.manual_seed(seed)
    model.initialise(unet, codes)
    for name in EMPTY[kind]:
        leave_empty(unet.get_submodule(name))
    return unet


def leave_empty(block):
    """Takes everything out of a residual block but the way past it."""
    past = block.skip_connection
    block.in_layers = block.emb_layers = block.out_layers = None
    block.forward = lambda x, emb, *_, **__: past(x)


def texts_of(groups):
    return list(dict.fromkeys(caption.text for group in groups.values() for caption in group))


class Table:
    """Text -> what the UNet reads of it, [77, 257] or, with the pooled text, [78, 514].

    rows: at the format's usual clip skip, 1 for SD1.5 and 2 for SDXL. others: at the other one.
    """

    def __init__(self, kind, file):
        self.kind, self.rows, self.others = kind, {}, {}
        self.tokenizer = meaning.clip_tokenizer()
        parts = ("l",) if kind == "sd15" else ("l", "g")
        self.encoders = {part: meaning.NarrowEncoder(part, file) for part in parts}

    def add(self, texts):
        new = [text for text in dict.fromkeys(texts) if text not in self.rows]
        usual = -1 if self.kind == "sd15" else -2
        for i in range(0, len(new), 64):
            batch = new[i : i + 64]
            ids = [self.tokenizer(text, truncation=True)["input_ids"] for text in batch]
            self.rows |= zip(batch, self.read(ids, usual), strict=True)
            self.others |= zip(batch, self.read(ids, -3 - usual), strict=True)

    def read(self, ids, layer):
        norm = self.kind == "sd15"
        found = [encoder.read(ids, layer, norm) for encoder in self.encoders.values()]
        states = torch.cat([states for states, _ in found], -1)
        if self.kind == "sdxl":
            pooled = found[1][1][:, None]
            states = torch.cat([states, torch.cat([pooled, torch.zeros_like(pooled)], -1)], 1)
        return states.half()

    def of(self, batch, other=False):
        rows = self.others if other else self.rows
        return torch.stack([rows[caption.text] for caption in batch]).float()


def pick(rng, groups, size, pairs):
    """(captions, their pictures [B, 16, 16 or 32, 3])."""
    if pairs:
        batch = [groups["pair"][rng.integers(len(groups["pair"]))] for _ in range(size // 2)]
        return batch, np.stack([WORLD.draw_pair(c.name, c.second, rng) for c in batch])
    names = list(SHARES)
    kinds = rng.choice(names, size, p=list(SHARES.values()))
    batch = [groups[kind][rng.integers(len(groups[kind]))] for kind in kinds]
    objects = WORLD.objects
    return batch, np.stack(
        [
            WORLD.draw(c.name or objects[rng.integers(len(objects))], rng, c.style, c.explicit)
            for c in batch
        ]
    )


def noisy(x0, share, pairs=False):
    """(noised latents, noise, timesteps, weight of each error); share of the steps that are done.

    High noise comes more often at first, because there words decide what is drawn. So it does for
    pairs: there the side of each is decided.
    """
    bent, bound = (0.8, 0.1) if share < 0.4 else (1.0, 0.3)
    if pairs:
        bent, bound = PAIR_NOISE
    t = (1000 * torch.rand(len(x0)) ** bent).long().clamp(0, 999)
    noise = torch.randn_like(x0)
    a = model.ALPHAS[t].view(-1, 1, 1, 1)
    x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
    return a.sqrt() * x0 + (1 - a).sqrt() * noise, noise, t, 1 / a.clamp_min(bound)


class Training:
    """Network, average, optimiser and random numbers of a run; saved every 100 steps."""

    def __init__(self, given, table, groups):
        self.given, self.table, self.groups = given, table, groups
        self.rng = np.random.default_rng(given.seed)
        self.net = self.new_net().train()
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimiser = Muon(self.net, given.rate, given.small_rate)
        self.step, self.losses, self.start = 0, [], time.time()
        self.scales = {}  # of the matrices that are trained in 4 bits
        self.file = given.out.with_suffix(".resume.pt")
        if self.file.exists():
            self.resume()

    def labelled(self):
        """(captions with one label each, a number for what each of them shows)."""
        shown = self.groups["plain"] + self.groups["styled"]
        kinds = [
            WORLD.labels.index(c.name) + 100 * (1 + WORLD.styles.index(c.style))
            if c.style
            else WORLD.labels.index(c.name)
            for c in shown
        ]
        return shown, torch.tensor(kinds)

    def new_net(self):
        """The Reader that is trained, as it is before the first step."""
        given = self.given
        shown, kinds = self.labelled()
        states = self.table.of(shown)[:, :77]
        codes = model.label_codes(states, kinds, rank=min(96, states.shape[-1]))
        net = Reader(new_unet(given.format, given.seed, codes), given.format == "sdxl")
        if given.start_from:
            trained = read_compact(given.start_from, narrow=True)
            net.unet.load_state_dict({k: v.float() for k, v in trained.items()})
        return net.to(memory_format=torch.channels_last)

    def rate(self):
        """Warms up for 50 steps, holds, and falls to nothing over the last two thirds."""
        share = self.step / self.given.steps
        return min(1, (self.step + 1) / 50) * min(1, 1.5 * (1 - share) + 0.01)

    def resume(self):
        saved = torch.load(self.file, weights_only=False)
        self.net.load_state_dict(saved["net"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.rng.bit_generator.state, self.step = saved["rng"], saved["step"]
        self.scales = saved.get("scales", {})
        print(f"resumed at step {self.step}", flush=True)

    def save(self):
        part = self.file.with_suffix(".part")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "rng": self.rng.bit_generator.state,
                "step": self.step,
                "scales": self.scales,
            },
            part,
        )
        part.replace(self.file)

    def advance(self):
        """One step."""
        given, share = self.given, self.step / self.given.steps
        torch.manual_seed(given.seed * 1_000_003 + self.step)
        inputs = self.inputs(share)
        exact = self.round_weights() if share >= given.rounded_from else None
        loss = self.loss(*inputs)
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        if exact is not None:
            with torch.no_grad():
                for parameter, value in exact:
                    parameter.copy_(value)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step(self.rate())
        self.step += 1
        grown = min(0.995, self.step / (self.step + 20))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.net.parameters()), 1 - grown
        )
        self.losses.append(loss.item())

    def inputs(self, share):
        """What `loss` takes, drawn anew; share of the steps that are done."""
        given = self.given
        pairs = bool(self.rng.random() < given.pairs * (share >= PAIRS_FROM or given.pairs == 1))
        batch, pictures = pick(self.rng, self.groups, given.batch, pairs)
        drawn = noisy(model.to_latent(pictures), 1 if given.start_from else share, pairs)
        other = given.format == "sdxl" and self.rng.random() < OTHER_SKIP
        return *drawn, self.table.of(batch, other)

    def loss(self, x, noise, t, weight, text):
        with torch.autocast("cpu", torch.bfloat16):
            error = self.net(x, t, text).float() - noise
        return (error.square() * weight).mean()

    @torch.no_grad()
    def round_weights(self):
        """Puts the weights on the file's 4 bits for one step; gives back what they were."""
        exact = []
        for name, parameter in self.net.named_parameters():
            if parameter.ndim > 1 and self.few_bits(name, parameter):
                value = parameter.detach().clone()
                if name not in self.scales or self.step % SCALES_FOR == 0:
                    self.scales[name] = scales(value)
                parameter.copy_(on_grid(value, self.scales[name]))
                exact.append((parameter, value))
        return exact

    @staticmethod
    def few_bits(name, parameter):
        return few_bits(name, parameter)

    def worth(self, probe):
        """How much words matter, see model.worth; probe: (latents, text)."""
        return model.worth(self.average, probe)

    def accuracy(self, judge):
        """What the judge sees in a few pictures."""
        return model.quick_accuracy(self.average, self.table.rows, judge, self.groups["pair"])

    def write(self, judge):
        unet = self.average.unet.state_dict()
        write_compact(
            self.given.out,
            unet,
            judge.state_dict(),
            recipe(self.given),
            world=WORLD,
            text=self.given.format,
            empty=EMPTY.get(self.given.format, ()),
        )

    def run(self, judge):
        probe = [self.groups["plain"][i] for i in range(0, len(self.groups["plain"]), 15)]
        drawn = [WORLD.draw(c.name, np.random.default_rng(i)) for i, c in enumerate(probe)]
        probe = model.to_latent(np.stack(drawn)), self.table.of(probe)
        first = self.step
        while self.step < self.given.steps:
            self.advance()
            if self.step % 50 == 0:
                per = (time.time() - self.start) / (self.step - first)
                print(
                    f"step {self.step}/{self.given.steps} loss {np.mean(self.losses[-50:]):.4f} "
                    f"{per:.2f} s/step, words worth {self.worth(probe):.1%}",
                    flush=True,
                )
            if self.step % 100 == 0:
                self.save()
            if self.step % self.given.every == 0 or self.step == self.given.steps:
                self.write(judge)
                print(f"  accuracy at {self.step}: {self.accuracy(judge)}", flush=True)


def add_options(parser, every):
    """Adds what every training of this world is told; every: steps between two looks."""
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3, help="of matrices")
    parser.add_argument("--small-rate", type=float, default=6e-4, help="of biases and norms")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=every, help="steps between two looks")
    parser.add_argument("--from", dest="start_from", type=Path, help="a file to go on from")
    parser.add_argument(
        "--rounded-from",
        type=float,
        default=0.8,
        help="share of the steps after which weights are trained on the file's 4 bits",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=list(EMPTY), default="sd15")
    parser.add_argument("--text", type=Path, default=meaning.FILE, help="the text encoders' file")
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--pairs", type=float, default=0.2, help="share of the steps on pairs")
    add_options(parser, every=300)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    groups = WORLD.captions()
    table = Table(given.format, given.text)
    start = time.time()
    table.add(texts_of(groups))
    print(f"{len(table.rows)} captions read in {time.time() - start:.0f} s", flush=True)
    judge = model.load_or_train_judge(given.out, WORLD)
    Training(given, table, groups).run(judge)


if __name__ == "__main__":
    main()
