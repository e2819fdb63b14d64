"""`dev.py demo`: a real ComfyUI forgets three objects and a style, and a judge looks at pictures.

The graph is that of the example workflow `erase_sdxl`, with a small world's names. The last line
of the output is `demo: forgot F kept K seconds S`. F is the accuracy left on what was forgotten.
K is the accuracy on what was kept, divided by the unedited model's.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from testbed.worlds import checkpoint
from testbed.worlds.evaluate import judge_picture

from . import graphs, judged, sheet
from .server import BASE, Server

TASK = judged.SHOWN
OUT = Path("output")
DRAWN = BASE / "output" / "demo"
# Node titles: what is copied for every caption, before and after; both use the first two.
BEFORE = ("Prompt", "Picture Size", "Before", "Decode Before", "Picture Before")
AFTER = ("Prompt", "Picture Size", "After", "Decode After", "Picture After")


def copied(parts, chain, k):
    """The nodes `chain` with the suffix `_k` on their ids and on the links between them."""
    names = {i: f"{i}_{k}" for i in chain}
    made = {}
    for i in chain:
        inputs = {}
        for name, value in parts[i]["inputs"].items():
            linked = isinstance(value, list)
            inputs[name] = [names.get(value[0], value[0]), value[1]] if linked else value
        made[names[i]] = {**parts[i], "inputs": inputs}
    return made


def graph(task, plan, steps):
    """The graph of a world with a sampler before and after for every shot.

    Also gives the ids of the two nodes that save pictures; that of shot k has the suffix `_k`.
    """
    g, side = graphs.to_api(graphs.load("erase_sdxl")), 8 * task.world.size
    graphs.put(g, "Load Checkpoint", ckpt_name=task.world.checkpoint)
    forget, keep = task.forget_lines(task.forget), task.keep_lines(task.gone)
    graphs.put(g, "Objects to Forget", forget=forget, keep=keep)
    graphs.put(g, "Styles to Forget", forget=task.style, keep="")
    chains = {
        "before": [graphs.titled(g, title) for title in BEFORE],
        "after": [graphs.titled(g, title) for title in AFTER],
    }
    parts = {i: g.pop(i) for i in dict.fromkeys([*chains["before"], *chains["after"]])}
    # All shots of one model first, so that each model is loaded once.
    for when, chain in chains.items():
        for k, shot in enumerate(plan):
            made = copied(parts, chain, k)
            text, size, sampler, _, save = (node["inputs"] for node in made.values())
            text["text"] = shot.caption.text
            size.update(width=side * (1 + (shot.caption.second is not None)), height=side)
            sampler.update(seed=100 + k, steps=steps, cfg=3.0)
            save["filename_prefix"] = f"demo/{when}_{k:02}"
            g |= made
    return g, (chains["before"][-1], chains["after"][-1])


def pixels(picture):
    """PIL picture of 8 n x 8 n pixels (a pair: 16 n wide) -> [3, n, n] ([3, n, 2 n]) in [0, 1]."""
    small = np.asarray(picture, np.float32)[4::8, 4::8] / 255
    return torch.from_numpy(small).movedim(-1, 0).contiguous()


def score(rights, gone):
    """Share of labels that the judge saw, among the forgotten (`gone`) or the kept ones."""
    return float(
        np.mean([there for shot in rights for forgotten, there in shot if forgotten == gone])
    )


def draw(task, plan, steps, say):
    """([pictures before, pictures after], the report in words), from a ComfyUI of its own."""
    g, saves = graph(task, plan, steps)
    say("starting ComfyUI")
    # Without this flag every picture would carry the whole graph.
    with Server("--disable-metadata") as server:
        names = ", ".join(task.gone)
        say(f"forgetting {names}, then drawing {len(plan)} prompts before and after")
        drawn_before = len(list(DRAWN.glob("*.png")))
        reached = 0

        def tick():
            nonlocal reached
            done = len(list(DRAWN.glob("*.png"))) - drawn_before
            if done // 10 > reached // 10:
                reached = done
                say(f"{done} of {2 * len(plan)} pictures")

        outputs = server.run(g, tick=tick)
        pictures = [
            [server.image(outputs[f"{save}_{k}"]["images"][0]) for k in range(len(plan))]
            for save in saves
        ]
        return pictures, outputs[graphs.titled(g, "Report in Words")]["text"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="sampling steps per picture")
    given = parser.parse_args()
    start = time.time()

    def say(line):
        print(f"[{time.time() - start:5.1f} s] {line}", file=sys.stderr, flush=True)

    say("writing the emoji world's checkpoint")
    TASK.world.expand(BASE / "models" / "checkpoints")
    judge, plan = checkpoint.load_judge(TASK.world.file), TASK.few_shots()
    pictures, words = draw(TASK, plan, given.steps, say)
    say("judging")
    rights = [
        [
            shot.labels(judge_picture(judge, pixels(picture), shot.caption))
            for shot, picture in zip(plan, part, strict=True)
        ]
        for part in pictures
    ]
    print(words)
    for label, gone in (("forgotten", True), ("kept", False)):
        before, after = (score(part, gone) for part in rights)
        print(f"accuracy on {label}: before {before:.2f}, after {after:.2f}")
    path = OUT / "demo.png"
    sheet.save([(s.caption.text, s.forgot) for s in plan], pictures, rights, path)
    print(f"picture: {path}")
    forgot = score(rights[1], True)
    kept = score(rights[1], False) / max(score(rights[0], False), 1e-9)
    print(f"demo: forgot {forgot:.2f} kept {kept:.2f} seconds {time.time() - start:.0f}")
    return 0 if forgot <= 0.10 and kept >= 0.90 else 1


if __name__ == "__main__":
    sys.exit(main())
