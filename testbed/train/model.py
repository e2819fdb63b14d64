"""Trains the model of a world and writes its compact file.

    python3 dev.py tool train_model OUT.safetensors

It takes more than an hour on two cores; an interrupted run resumes. Everything is seeded. The demo,
the tests and the nodes never train: they use the shipped files.

`--world glyphs` starts from the shipped sprite world, whose UNet draws 12x12 pictures as well as
8x8. It reads the new words through testbed.worlds.words. The shipped glyph world was trained with
`--steps 1200 --batch 12 --rate 4e-4 --half` and fewer pairs than today; it draws no pair right.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .. import device
from ..worlds import captions, catalogue, encoder, words
from ..worlds.checkpoint import SHIPPED, planted, read_compact, recipe, write_compact
from ..worlds.judge import Judge, drawn_batch, train_judge

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "num_heads": 8,
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "legacy": False,
    "use_linear_in_transformer": False,
}
ALPHAS = torch.cumprod(
    1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
).float()
WEIGHTS = {"plain": 0.46, "superclass": 0.08, "styled": 0.34, "explicit": 0.07, "empty": 0.05}
# The plain loss on noise hardly counts high noise, where only words tell what to draw. Between
# these two steps, high noise is drawn more often.
EARLY, LATE = 300, 1400
PAIR_SHARE = 0.2  # of the steps, at half the batch: a pair has twice the pixels


def comfy_cpu():
    """ComfyUI's modules on the CPU; the host's folder must be on the path.

    UNLEARN_DEVICE says otherwise where it is set.
    """
    device.prepare()


def new_unet(seed, codes=None):
    """The UNet before training.

    codes: [r, 768] of `label_codes`, which start the keys and values of cross-attention.
    """
    comfy_cpu()
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**UNET, dtype=torch.float32, device="cpu")
    torch.manual_seed(seed)
    initialise(unet, codes)
    return unet


def initialise(unet, codes=None):
    """Draws all weights anew; see new_unet."""
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            if name.endswith(("out_layers.3", "out.2")):
                torch.nn.init.zeros_(module.weight)
            if codes is not None and name.endswith(("attn2.to_k", "attn2.to_v")):
                module.weight.data += torch.randn(module.weight.shape[0], len(codes)) @ codes
        elif hasattr(module, "weight") and module.weight is not None:  # norms
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)


def label_codes(states, labels, rank=48, positions=(*range(1, 12), 20, 40, 60, 76)):
    """Directions [rank, 768] in which text states [n, 77, 768] of different labels [n] differ.

    They are scaled to unit variance. The random text encoder hides the difference between two words
    under what all sentences share. Keys and values that start on these directions learn the words
    in hundreds of steps instead of thousands. positions: of the tokens that are compared.
    """
    between = torch.zeros(states.shape[-1], states.shape[-1])
    kinds = labels.unique()
    for position in positions:
        means = torch.stack([states[labels == k, position].mean(0) for k in kinds])
        between += torch.cov(means.T, correction=0)
    values, vectors = torch.linalg.eigh(between)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return (vectors * (values.clamp_min(0.02 * values[-1]) * rank / 15).rsqrt()).T


def text_encoder():
    """`encode(texts) -> [n, 77, 768]` with the host's CLIP code and the world's seeded weights."""
    comfy_cpu()
    import json

    import comfy.clip_model
    import comfy.ops

    folder = Path(comfy.clip_model.__file__).parent
    config = json.loads((folder / "sd1_clip_config.json").read_text())
    model = comfy.clip_model.CLIPTextModel_(
        config, torch.float32, "cpu", comfy.ops.disable_weight_init
    )
    model.load_state_dict(encoder.state_dict())
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "sd1_tokenizer"))

    def encode(texts):
        ids = torch.full((len(texts), 77), 49407)
        for row, text in zip(ids, texts, strict=True):
            tokens = tokenizer(text)["input_ids"][:-1]
            row[: len(tokens)] = torch.tensor(tokens)
        with torch.inference_mode():
            # half precision weights are what the checkpoint holds
            return model(embeds=model.embeddings.token_embedding(ids), num_tokens=[1] * len(texts))[
                0
            ]

    for p in model.parameters():
        p.data = p.data.half().float()
    return encode


def to_latent(pictures):
    """Pictures [B, H, W, 3] in [0, 1] -> latents [B, 4, H, W]: RGB in [-1, 1] and their mean."""
    rgb = torch.from_numpy(pictures).movedim(-1, 1) * 2 - 1
    return torch.cat([rgb, rgb.mean(1, keepdim=True)], 1)


def to_picture(latents):
    """Model-space latents [B, 4, H, W] -> pictures [B, 3, H, W] in [0, 1]."""
    return (latents[:, :3] / 2 + 0.5).clamp(0, 1)


@torch.inference_mode()
def sample(unet, states, empty, shape=(8, 8), steps=15, cfg=3.0, seed=0):
    """DDIM with classifier-free guidance; states [B, 77, 768] -> latents [B, 4, *shape]."""
    n = len(states)
    x = torch.randn(n, 4, *shape, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([states, empty.expand(n, -1, -1)])
    times = torch.linspace(999, 0, steps + 1).round().long()
    for t, after in zip(times[:-1], times[1:], strict=True):
        eps = unet(torch.cat([x, x]), t.repeat(2 * n), context)
        cond, uncond = eps.chunk(2)
        eps = uncond + cfg * (cond - uncond)
        a, b = ALPHAS[t], ALPHAS[after]
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1.5, 1.5)
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps if after > 0 else x0
    return x


def train(
    world,
    out,
    steps,
    size,
    rate,
    seed,
    start_from=None,
    focus=(),
    half=False,
    look_every=500,
    pair_share=PAIR_SHARE,
):
    """(UNet, judge); `half` computes in bfloat16. Every 50 steps leave a state to resume from."""
    rng = np.random.default_rng(seed)
    judge = load_or_train_judge(out, world)
    encode = text_encoder()
    groups = world.captions()
    second = world is not catalogue.SPRITES and start_from is None  # starts from the first world
    # Encoding every combination would take longer than learning it.
    if world is not catalogue.SPRITES:
        groups |= {"styled": groups["styled"][::3], "pair": groups["pair"][::3]}

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    table = {}
    start = time.time()
    every = [c.text for group in groups.values() for c in group]
    if second:
        mine, theirs = words.both(world)
        every = list(dict.fromkeys(every + mine + theirs))
    cache = out.with_suffix(".states.pt")
    if cache.exists():
        table = torch.load(cache)
    every = [text for text in every if text not in table]
    for i in range(0, len(every), 16):
        for text, state in zip(every[i : i + 16], encode(every[i : i + 16]), strict=True):
            table[text] = state.half()
    torch.save(table, cache)
    print(f"{len(table)} captions encoded in {time.time() - start:.0f} s", flush=True)

    shown = [c for c in groups["plain"] + groups["styled"]]
    kinds = torch.tensor(
        [
            world.labels.index(c.name) if c.style is None else 100 + world.styles.index(c.style)
            for c in shown
        ]
    )
    unet = new_unet(
        seed, label_codes(torch.stack([table[c.text] for c in shown]).float(), kinds)
    ).train()
    if start_from is not None:
        unet.load_state_dict({k: v.float() for k, v in read_compact(start_from).items()})
    if second:
        unet.load_state_dict({k: v.float() for k, v in read_compact(SHIPPED).items()})
        m, share = words.translation(
            *(torch.stack([table[t] for t in texts]).float() for texts in (mine, theirs))
        )
        print(f"words of the first world explain {share:.1%} of the states", flush=True)
        words.reread(unet, m)
    unet = unet.to(memory_format=torch.channels_last)  # a tenth faster
    held = reserved_parts(unet, planted(start_from)) if start_from is not None else []
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        unet.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    warm = 100

    def lr(s):
        return min(1, (s + 1) / warm) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, s / steps)))
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lr)
    first, state_file = 0, out.with_suffix(".resume.pt")
    if state_file.exists():
        saved = torch.load(state_file, weights_only=False)
        unet.load_state_dict(saved["unet"])
        ema.load_state_dict(saved["ema"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        rng.bit_generator.state, first = saved["rng"], saved["step"]
        print(f"resumed at step {first}", flush=True)
    probe = [groups["plain"][i] for i in range(0, len(groups["plain"]), 15)]
    probe = (
        to_latent(
            np.stack([world.draw(c.name, np.random.default_rng(i)) for i, c in enumerate(probe)])
        ),
        torch.stack([table[c.text] for c in probe]),
    )
    focused = [c for c in groups["plain"] if c.name in focus]
    names, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()))
    start, losses = time.time(), []
    for step in range(first, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        if rng.random() < pair_share * (not second or step > 0.3 * steps):
            batch = [groups["pair"][rng.integers(len(groups["pair"]))] for _ in range(size // 2)]
            x0 = to_latent(np.stack([world.draw_pair(c.name, c.second, rng) for c in batch]))
        else:
            picks = rng.choice(names, size, p=weights / weights.sum())
            batch = [groups[g][rng.integers(len(groups[g]))] for g in picks]
            if focus:  # a quarter of the batch for objects that came out worst
                batch[: size // 4] = [focused[rng.integers(len(focused))] for _ in range(size // 4)]

            def some():
                return world.objects[rng.integers(len(world.objects))]

            x0 = to_latent(
                np.stack([world.draw(c.name or some(), rng, c.style, c.explicit) for c in batch])
            )
        context = torch.stack([table[c.text] for c in batch]).float()
        # `bent` < 1 draws high noise more often; `bound` limits the weight 1/a of v-prediction.
        # The order is: the whole picture first, then words, then the details of look-alikes.
        if start_from is None and not second:
            bent, bound = (1.0, 0.1) if step < EARLY else (0.7, 0.03) if step < LATE else (1.0, 0.3)
        else:
            bent, bound = (0.8, 0.1) if step < 0.4 * steps else (1.0, 0.3)
        t = (1000 * torch.rand(len(batch)) ** bent).long().clamp(0, 999)
        noise = torch.randn_like(x0)
        a = ALPHAS[t].view(-1, 1, 1, 1)
        x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
        with autocast():
            error = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, context).float() - noise
        loss = (error.square() / a.clamp_min(bound)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        # Units reserved for planted concepts stay as they are, empty or planted.
        with torch.no_grad():
            for parameter, index, values in held:
                parameter[index] = values
        torch._foreach_lerp_(
            list(ema.parameters()),
            list(unet.parameters()),
            1 - min(0.995, (step + 1) / (step + 20)),
        )
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            per = (time.time() - start) / (step + 1 - first)
            print(
                f"step {step + 1}/{steps} loss {np.mean(losses[-50:]):.4f} {per:.2f} s/step, "
                f"words worth {worth(ema, probe):.1%}",
                flush=True,
            )
            state = dict(
                unet=unet.state_dict(),
                ema=ema.state_dict(),
                optimiser=optimiser.state_dict(),
                schedule=schedule.state_dict(),
            )
            torch.save({**state, "rng": rng.bit_generator.state, "step": step + 1}, state_file)
        if (step + 1) % look_every == 0 or step + 1 == steps:
            # Written now and then, so that a stop loses little.
            write_compact(out, ema.state_dict(), judge.state_dict(), world=world)
            with autocast():
                print(
                    f"  accuracy at {step + 1}: "
                    f"{quick_accuracy(ema, table, judge, groups['pair'])}",
                    flush=True,
                )
    return ema, judge


def reserved_parts(unet, units):
    """(parameter, index, values) of the reserved hidden units: their rows, biases and columns."""
    parts = []
    for blocks in units.values():
        for block, u in blocks.items():
            up, down = (unet.get_submodule(f"{block}.ff.net.{name}") for name in ("0.proj", "2"))
            u = torch.tensor(u)
            both = torch.cat([u, u + down.in_features])
            parts += [(up.weight, (both,)), (up.bias, (both,)), (down.weight, (slice(None), u))]
    return [(p, index, p.detach()[index].clone()) for p, index in parts]


@torch.inference_mode()
def worth(unet, probe):
    """Growth of the loss at high noise when captions are exchanged; 0 if the model ignores text."""
    x0, states = probe
    noise, a = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), ALPHAS[700]
    x, t = a.sqrt() * x0 + (1 - a).sqrt() * noise, torch.full((len(x0),), 700)
    right, wrong = (
        (unet(x, t, c.float()) - noise).square().mean().item() for c in (states, states.roll(5, 0))
    )
    return wrong / right - 1


def quick_accuracy(unet, table, judge, pairs, seeds=1, sample=sample):
    """Accuracy on one template per object, on styles, the explicit attribute and pairs.

    pairs: their captions, or () for a model that was not trained on them.
    """
    world, rng, texts = judge.world, np.random.default_rng(0), []
    n = len(world.objects)
    for i, name in enumerate(world.objects):
        texts.append(world.plain(name, captions.PLAIN[i % len(captions.PLAIN)]))
    styled = [
        world.styled(world.objects[i * 4 % n], s, captions.STYLED[i % 4])
        for i, s in enumerate(world.styles)
    ]
    bare = [world.explicit(world.objects[i * 5 % n], captions.EXPLICIT[i % 4]) for i in range(4)]
    hits = {}
    for kind, batch in (("plain", texts), ("styled", styled), ("explicit", bare)):
        states = torch.stack([table[c.text].float() for c in batch]).repeat(seeds, 1, 1)
        drawn = to_picture(
            sample(unet, states, table[""].float(), (world.size, world.size), seed=1)
        )
        label, style, naked = (o.argmax(1) for o in judge(drawn))
        want = torch.tensor([world.labels.index(c.name) for c in batch * seeds])
        hits[kind] = (label == want).float().mean().item()
        if kind == "styled":
            hits["style"] = (
                (style == torch.tensor([1 + world.styles.index(c.style) for c in batch * seeds]))
                .float()
                .mean()
                .item()
            )
        if kind == "explicit":
            hits["naked"] = naked.float().mean().item()
    hits = {k: round(v, 2) for k, v in hits.items()}
    if not pairs:
        return hits
    pairs = pairs[:: len(pairs) // 8][:8]
    states = torch.stack([table[c.text].float() for c in pairs])
    picture = to_picture(
        sample(
            unet,
            states,
            table[""].float(),
            shape=(world.size, 2 * world.size),
            seed=int(rng.integers(99)),
        )
    )
    for side, field in ((slice(0, world.size), "name"), (slice(world.size, None), "second")):
        label = judge(picture[..., side])[0].argmax(1)
        hits[f"pair {field}"] = (
            (label == torch.tensor([world.labels.index(getattr(c, field)) for c in pairs]))
            .float()
            .mean()
            .item()
        )
    return {k: round(v, 2) for k, v in hits.items()}


def load_or_train_judge(out, world):
    path = out.with_name("judge.safetensors")
    if not path.exists():
        save_file(
            {
                k: v.contiguous()
                for k, v in train_judge(world, log=lambda s: print(s, flush=True))
                .state_dict()
                .items()
            },
            path,
        )
    judge = Judge(world).eval()
    judge.load_state_dict(load_file(path))
    x, y, s, e = drawn_batch(np.random.default_rng(12345), 4000, noise=0.05, world=world)
    with torch.inference_mode():
        label, style, naked = (o.argmax(1) for o in judge(x))
    real = y != len(world.labels)
    accuracy = {
        "label": (label == y)[real],
        "style": (style == s)[real],
        "explicit": (naked == e)[real],
        "nothing": (label == y)[~real],
    }
    words = " ".join(f"{name} {hit.float().mean():.4f}" for name, hit in accuracy.items())
    print(f"judge on drawn pictures: {words}", flush=True)
    return judge


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--steps", type=int, default=1680)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--from",
        dest="start_from",
        type=Path,
        help="a compact file to go on from, with a schedule of its own",
    )
    parser.add_argument(
        "--focus", nargs="*", default=(), help="objects that fill a quarter of each batch"
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="compute in bfloat16, which many processors do in half the time",
    )
    parser.add_argument(
        "--pairs", type=float, default=PAIR_SHARE, help="share of the steps that train on pairs"
    )
    parser.add_argument(
        "--every", type=int, default=500, help="steps between two looks at what is drawn"
    )
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    world = catalogue.get(given.world)
    how = (
        given.steps,
        given.batch,
        given.rate,
        given.seed,
        given.start_from,
        given.focus,
        given.half,
        given.every,
        given.pairs,
    )
    ema, judge = train(world, given.out, *how)
    units = planted(given.start_from) if given.start_from else {}
    write_compact(
        given.out,
        ema.state_dict(),
        judge.state_dict(),
        recipe(given),
        units,
        world,
        None if world is catalogue.SPRITES else "sprites",
    )
