"""How well the shipped sprite world draws: accuracy of every object, superclass, style, the explicit attribute, and pairs.

Through ComfyUI's own loader, text encoder and sampler, judged by the CNN that never met the model. Last line with --json: one JSON object.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch

import pack
from world import captions, checkpoint
from world.evaluate import Studio
from world.judge import NOTHING, drawn_batch
from world.sprites import OBJECTS, STYLES, SUPERCLASSES

BASE = Path(os.environ.get("UNLEARN_BASE", ".host/base"))


def studio():
    """The shipped world, loaded by the stock loader's function."""
    pack.load()
    return Studio(checkpoint.expand(BASE / "models" / "checkpoints"), checkpoint.load_judge())


def drawn(judge, n=4000):
    """Accuracy of the judge on drawn sprites: label, style, explicit."""
    x, *truth = drawn_batch(np.random.default_rng(4711), n, noise=0.05)
    real = truth[0] != NOTHING
    with torch.inference_mode():
        return [float((o.argmax(1) == t)[real].float().mean()) for o, t in zip(judge(x), truth, strict=True)]


def groups(seeds):
    """name -> captions; every object and style in several templates, `seeds` pictures each."""
    plain = lambda name: [captions.plain(name, captions.PLAIN[i % len(captions.PLAIN)]) for i in range(seeds)]
    out = {name: plain(name) for name in (*OBJECTS, *SUPERCLASSES)}
    for k, style in enumerate(STYLES):
        out[style] = [
            captions.styled(OBJECTS[(5 * i + k) % len(OBJECTS)], style, captions.STYLED[i % len(captions.STYLED)]) for i in range(seeds)
        ]
    out[captions.EXPLICIT_WORD] = [
        captions.explicit(OBJECTS[3 * i % len(OBJECTS)], captions.EXPLICIT[i % len(captions.EXPLICIT)]) for i in range(seeds)
    ]
    out["pairs"] = [captions.pair(OBJECTS[i], OBJECTS[(7 * i + 5) % len(OBJECTS)], captions.PAIR[i % 3]) for i in range(seeds)]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--seeds", type=int, default=16)
    given = parser.parse_args()
    s = studio()
    label, style, explicit = drawn(s.judge)
    print(f"judge on drawn sprites: label {label:.4f}, style {style:.4f}, explicit {explicit:.4f}", flush=True)
    table = {}
    for name, batch_of in groups(given.seeds).items():
        seen = s.look(batch_of, seed=1000)
        if name in STYLES:
            table[name] = float(np.mean([x.style == name for x in seen]))
        elif name == captions.EXPLICIT_WORD:
            table[name] = float(np.mean([x.explicit for x in seen]))
        else:
            table[name] = float(np.mean([x.correct for x in seen]))
        print(f"{name:12} {table[name]:.3f}", flush=True)
    result = {
        "judge": min(label, style, explicit),
        "objects": float(np.mean([table[n] for n in OBJECTS])),
        "worst_object": min(table[n] for n in OBJECTS),
        "styles": float(np.mean([table[n] for n in STYLES])),
        "worst_style": min(table[n] for n in STYLES),
        "table": table,
    }
    print(json.dumps(result) if given.json else f"objects {result['objects']:.3f} styles {result['styles']:.3f}")


if __name__ == "__main__":
    main()
