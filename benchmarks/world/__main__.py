"""How well a shipped world draws: objects, superclasses, styles, the explicit attribute, pairs.

It samples through ComfyUI's own loader, text encoder and sampler, and a CNN that was never trained
on the model's pictures judges. `--world glyphs` takes the second world. `--text` measures the text
encoder instead: how alike words are to it. Last line with --json: one JSON object.
"""

import argparse
import json

import numpy as np
import torch

from testbed.worlds import captions, catalogue
from testbed.worlds.judge import drawn_batch
from testbed.worlds.studio import studio

from . import words


def drawn(judge, n=4000):
    """Accuracy of the judge on drawn pictures: label, style, explicit."""
    x, *truth = drawn_batch(np.random.default_rng(4711), n, noise=0.05, world=judge.world)
    real = truth[0] != len(judge.world.labels)
    with torch.inference_mode():
        return [
            float((o.argmax(1) == t)[real].float().mean())
            for o, t in zip(judge(x), truth, strict=True)
        ]


def groups(world, seeds):
    """name -> captions; every object and style in several templates, `seeds` pictures each."""
    objects = world.objects

    def plain(name):
        return [world.plain(name, captions.PLAIN[i % len(captions.PLAIN)]) for i in range(seeds)]

    out = {name: plain(name) for name in (*objects, *world.superclasses)}
    for k, style in enumerate(world.styles):
        out[style] = [
            world.styled(
                objects[(5 * i + k) % len(objects)],
                style,
                captions.STYLED[i % len(captions.STYLED)],
            )
            for i in range(seeds)
        ]
    out[world.explicit_word] = [
        world.explicit(objects[3 * i % len(objects)], captions.EXPLICIT[i % len(captions.EXPLICIT)])
        for i in range(seeds)
    ]
    out["pairs"] = [
        world.pair(objects[i], objects[(7 * i + 5) % len(objects)], captions.PAIR[i % 3])
        for i in range(seeds)
    ]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--text", action="store_true", help="measure the text encoder")
    given = parser.parse_args()
    world = catalogue.get(given.world)
    s = studio(given.world)
    if given.text:
        lines, table = words.report(s)
        print("\n".join([*lines, json.dumps(table)] if given.json else lines))
        return
    label, style, explicit = drawn(s.judge)
    print(
        f"judge on drawn pictures: label {label:.4f}, style {style:.4f}, explicit {explicit:.4f}",
        flush=True,
    )
    table = {}
    for name, batch_of in groups(world, given.seeds).items():
        seen = s.look(batch_of, seed=1000)
        if name in world.styles:
            table[name] = float(np.mean([x.style == name for x in seen]))
        elif name == world.explicit_word:
            table[name] = float(np.mean([x.explicit for x in seen]))
        else:
            table[name] = float(np.mean([x.correct for x in seen]))
        print(f"{name:12} {table[name]:.3f}", flush=True)
    result = {
        "judge": min(label, style, explicit),
        "objects": float(np.mean([table[n] for n in world.objects])),
        "worst_object": min(table[n] for n in world.objects),
        "styles": float(np.mean([table[n] for n in world.styles])),
        "worst_style": min(table[n] for n in world.styles),
        "table": table,
    }
    print(
        json.dumps(result)
        if given.json
        else f"objects {result['objects']:.3f} styles {result['styles']:.3f}"
    )


if __name__ == "__main__":
    main()
