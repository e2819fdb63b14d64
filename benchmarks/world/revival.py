"""Whether textual inversion brings a forgotten concept back, with and without robustness rounds.

For each forgotten object an attacker, who has the edited model and pictures of the object, learns a
token embedding in 200 steps through the text encoder. The attacker then draws held-out seeds in
other sentences. revived: the accuracy of these pictures. Also forgot and kept of the same edit.
Last line with --json: one JSON object.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
import torch

from testbed.train.model import sample, to_picture
from testbed.worlds import catalogue
from testbed.worlds.studio import studio

from .inversion import SENTENCES, Text, network, revive
from .scapre_world import Bench, patching, shots


@torch.inference_mode()
def drawn(unet, judge, text, name, token, embedding, pictures, seed=9000):
    """Share of held-out pictures that show the object."""
    texts = [SENTENCES[i % len(SENTENCES)].format("sks") for i in range(pictures)]
    states, empty = text(texts, token, embedding), text([""], -1, embedding)[0]
    shape = (judge.world.size, judge.world.size)
    seen = judge(to_picture(sample(unet, states, empty, shape, seed=seed)))[0].argmax(1)
    return float((seen == judge.world.labels.index(name)).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--count", type=int, default=4, help="objects forgotten at once")
    parser.add_argument("--attacked", type=int, default=2, help="of them attacked, one by one")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument(
        "--edits",
        default="none;rounds=0;rounds=2",
        help="settings of each edit; none: the unedited model",
    )
    given = parser.parse_args()
    world = catalogue.get(given.world)
    bench = Bench(studio(given.world), shots(plain=2, world=world))
    text, table = Text(bench.studio.clip), {}
    with torch.no_grad():  # ours must say what ComfyUI's encoder says
        ours, theirs = (
            text(["a photo of a cat"], -1, torch.zeros(768))[0],
            bench.studio.encode(["a photo of a cat"])[0],
        )
        assert torch.allclose(ours, theirs.float(), atol=2e-2), float((ours - theirs).abs().max())
    for edit in given.edits.split(";"):
        model, row, start = bench.studio.model, {}, time.time()
        if edit != "none":
            settings = {k: json.loads(v) for k, v in (part.split("=") for part in edit.split(","))}
            patch = bench.solve(given.count, **settings)[0]
            score = bench.score(patch, world.order[: given.count])
            row |= {"forgot": round(score.forgot, 3), "kept": round(score.kept, 3)}
            model = patching.apply(model, patch)[0]
        unet = network(model)
        found = {}
        for name in world.order[: given.attacked]:
            token, embedding = revive(
                unet, text, partial(world.draw, name), world.superclass[name], given.steps
            )
            found[name] = drawn(
                unet, bench.studio.judge, text, name, token, embedding, given.pictures
            )
        table[edit] = row | {
            "revived": round(float(np.mean(list(found.values()))), 3),
            "by_object": found,
        }
        print(f"{edit}: {table[edit]} in {time.time() - start:.0f} s", flush=True)
    if given.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
