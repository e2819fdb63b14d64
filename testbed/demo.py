"""`dev.py demo`: a real ComfyUI forgets three objects and a style of the sprite world, and a judge looks before and after.

The graph is example_workflows/quick_erase.json with the sprite world's names put in. All judged prompts use sentences that the
solve never saw. Ends with one line: `demo: forgot F kept K seconds S`, F the accuracy left on what was forgotten, K the accuracy
on what was kept divided by the unedited model's.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from testbed.worlds import captions, checkpoint
from testbed.worlds.evaluate import judge_picture
from testbed.worlds.sprites import OBJECTS, SIZE, STYLES, SUPERCLASS, TWIN

from . import graphs, sheet
from .server import BASE, Server

FORGET = ("fox", "house", "ice cream")
STYLE = "van gogh"
OUT = Path("output")
# Sentences the solve does not study (it uses "{a}", "a photo of {a}" and others of its own).
PLAIN = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
STYLED = ("{a} by {style}", "a photo of {a} by {style}")
PAIR = ("{a} next to {b}", "a photo of {a} and {b}")


class Shot:
    """A caption, and which of its parts count: `forgot` (its sprite or style must go) or kept."""

    def __init__(self, caption, forgot):
        self.caption, self.forgot = caption, forgot

    def right(self, look):
        """1 or 0 for each label that counts: (is it a forgotten one, is it there)."""
        c = self.caption
        if c.second is not None:
            return [
                (n in FORGET, seen == n)
                for n, seen in zip((c.name, c.second), look.names, strict=True)
            ]
        found = [(c.name in FORGET, look.names[0] == c.name)]
        if c.style == STYLE:  # without its style the object may be drawn any way
            return [(True, look.style == STYLE)]
        if c.style is not None and c.name not in FORGET:
            found.append((False, look.style == c.style))
        return found


def shots():
    """What is drawn: forgotten objects plain, styled and in pairs, the forgotten style, and kept objects, styles and pairs."""
    kept = [n for n in OBJECTS if n not in FORGET]
    others = [s for s in STYLES if s != STYLE]
    out = []
    for i, name in enumerate(FORGET):
        out += [Shot(captions.plain(name, PLAIN[(i + j) % 4]), True) for j in range(2)]
        out.append(Shot(captions.styled(name, others[i], STYLED[i % 2]), True))
    out.append(Shot(captions.pair(FORGET[1], kept[7], PAIR[1]), True))
    out += [Shot(captions.styled(kept[6 * i + 1], STYLE, STYLED[i % 2]), True) for i in range(3)]
    near = [
        n
        for f in FORGET
        for n in (TWIN[f], next(k for k in kept if SUPERCLASS[k] == SUPERCLASS[f] and k != TWIN[f]))
    ]
    out += [
        Shot(captions.plain(n, PLAIN[i % 4]), False)
        for i, n in enumerate(dict.fromkeys([*near, *kept[1::8]]))
    ]
    out += [
        Shot(captions.styled(kept[4 * i + 2], s, STYLED[i % 2]), False)
        for i, s in enumerate(others)
    ]
    return [*out, Shot(captions.pair(kept[4], kept[15], PAIR[0]), False)]


def graph(plan, steps):
    """The quick-erase graph with the sprite world's names in it and a sampler before and after for every shot."""
    g = graphs.to_api(graphs.load("quick_erase"))
    graphs.put(g, "Load Checkpoint", ckpt_name=checkpoint.NAME)
    keep = [n for n in OBJECTS if n not in FORGET] + [s for s in STYLES if s != STYLE]
    forget = "\n".join(f"{n} -> {SUPERCLASS[n]}" for n in FORGET)
    graphs.put(g, "Objects to Forget", forget=forget, keep="\n".join(keep))
    graphs.put(g, "Styles to Forget", forget=STYLE, keep="")
    per_shot = [
        graphs.titled(g, t)
        for t in ("Prompt", "Picture Size", "Before", "Decode Before", "Picture Before")
    ]
    after = [graphs.titled(g, t) for t in ("After", "Decode After", "Picture After")]
    parts = {i: g.pop(i) for i in (*per_shot, *after)}
    for when, chain in (
        ("before", per_shot),
        ("after", [*per_shot[:2], *after]),
    ):  # all of one model first: it is loaded once
        for k, shot in enumerate(plan):
            names = {i: f"{i}_{k}" for i in chain}
            for i in chain:
                inputs = {
                    n: [names.get(v[0], v[0]), v[1]] if isinstance(v, list) else v
                    for n, v in parts[i]["inputs"].items()
                }
                g[names[i]] = {
                    "class_type": parts[i]["class_type"],
                    "inputs": inputs,
                    "_meta": parts[i]["_meta"],
                }
            text, size, sampler, _, save = (g[names[i]]["inputs"] for i in chain)
            text["text"] = shot.caption.text
            size.update(width=64 * (1 + (shot.caption.second is not None)), height=64)
            sampler.update(seed=100 + k, steps=steps, cfg=3.0)
            save["filename_prefix"] = f"demo/{when}_{k:02}"
    return g, (per_shot[-1], after[-1])


def pixels(picture):
    """PIL picture of a 64x64 (or 128x64) sprite -> [3, 8, 8] (or [3, 8, 16]) in [0, 1]."""
    small = np.asarray(picture, np.float32)[SIZE // 2 :: SIZE, SIZE // 2 :: SIZE] / 255
    return torch.from_numpy(small).movedim(-1, 0).contiguous()


def score(rights, gone):
    """Mean of what the judge found among forgotten (`gone`) or kept labels."""
    return float(
        np.mean([there for shot in rights for forgotten, there in shot if forgotten == gone])
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="sampling steps per picture")
    given = parser.parse_args()
    start = time.time()
    say = lambda line: print(f"[{time.time() - start:5.1f} s] {line}", file=sys.stderr, flush=True)
    say("writing the sprite world's checkpoint")
    checkpoint.expand(BASE / "models" / "checkpoints")
    judge, plan = checkpoint.load_judge(), shots()
    g, saves = graph(plan, given.steps)
    say("starting ComfyUI")
    with Server("--disable-metadata") as server:  # else every picture would carry all of this graph
        say(
            f"forgetting {', '.join((*FORGET, STYLE))}, then drawing {len(plan)} prompts before "
            "and after"
        )
        reached = {"n": -1}

        def tick():
            done = len(list((BASE / "output" / "demo").glob("*.png"))) - drawn_before
            if done // 10 > reached["n"] // 10:
                reached["n"] = done
                say(f"{done} of {2 * len(plan)} pictures")

        drawn_before = len(list((BASE / "output" / "demo").glob("*.png")))
        outputs = server.run(g, tick=tick)
        pictures = [
            [server.image(outputs[f"{save}_{k}"]["images"][0]) for k in range(len(plan))]
            for save in saves
        ]
        words = outputs[graphs.titled(g, "Report in Words")]["text"][0]
    say("judging")
    rights = [
        [s.right(judge_picture(judge, pixels(p), s.caption)) for s, p in zip(plan, ps, strict=True)]
        for ps in pictures
    ]
    print(words)
    for label, gone in (("forgotten", True), ("kept", False)):
        print(
            f"accuracy on {label}: before {score(rights[0], gone):.2f}, after "
            f"{score(rights[1], gone):.2f}"
        )
    path = OUT / "demo.png"
    sheet.save([(s.caption.text, s.forgot) for s in plan], pictures, rights, path)
    print(f"picture: {path}")
    forgot, kept = (
        score(rights[1], True),
        score(rights[1], False) / max(score(rights[0], False), 1e-9),
    )
    print(f"demo: forgot {forgot:.2f} kept {kept:.2f} seconds {time.time() - start:.0f}")
    return 0 if forgot <= 0.10 and kept >= 0.90 else 1


if __name__ == "__main__":
    sys.exit(main())
