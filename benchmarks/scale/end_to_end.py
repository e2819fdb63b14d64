"""`dev.py bench end_to_end`: seconds from names to an edited model, for every closed-form method.

Text encoding is included. The UNet has SD1.5's true shape and random weights, the text encoder is
of CLIP ViT-L's size (the sprite world's). There are --concepts names with their targets, and as
many kept ones; none is a word of the world. Ours is timed with nothing on disk, with the general
prior on disk, as for another list, and once more for the same list, as after a setting was changed.
Ours includes what its report says of the result. `encoding` is the time spent in the text encoder
on what is studied, `texts` how many it encoded. `processor` is the processor's time, which tells
more than the clock where something else runs.
"""

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from testbed import pack
from testbed.shapes import random_model
from testbed.worlds.studio import studio

from ..peers.scores import Meter
from .scaling import names

prompts = pack.module("unlearn.host.text_encoding")
scapre = pack.module("unlearn.closed_form.solve")
text = pack.module("unlearn.concepts.notation")
PEERS = ("uce", "rece", "mace_cfr", "speed", "oce")
WIDER = (
    "animal",
    "vehicle",
    "food",
    "tool",
    "building",
    "plant",
    "person",
    "furniture",
    "toy",
    "clothing",
)
RESULTS = Path(__file__).parents[1] / "results" / "end_to_end.json"


def listed(count, kept=None):
    """ConceptSet of `count` names, each with one of WIDER in its place, and as many kept ones.

    kept: how many are kept, where it is another number.
    """
    kept = count if kept is None else kept
    # Behind the world's own objects.
    found = [n for n in names(count + kept + 64) if n not in WIDER][24:]
    forget, keep = found[:count], found[count : count + kept]
    return text.parse(
        "\n".join(f"{n} -> {WIDER[i % len(WIDER)]}" for i, n in enumerate(forget)), "\n".join(keep)
    )


class Encoding:
    """Counts what the text encoder is given, and how long it takes, while it is entered."""

    def __enter__(self):
        self.seconds, self.texts, self.plain = 0.0, 0, prompts.encode_first

        def encode(*given):
            start = time.perf_counter()
            found = self.plain(*given)
            self.seconds, self.texts = (
                self.seconds + time.perf_counter() - start,
                self.texts + len(found),
            )
            return found

        prompts.encode_first = encode
        return self

    def __exit__(self, *_):
        prompts.encode_first = self.plain


def timed(do):
    with Encoding() as encoding, Meter() as meter:
        do()
    row = {"seconds": meter.seconds, "processor": meter.cpu, "encoding": encoding.seconds}
    row["peak_mb"] = meter.memory
    return {k: round(v, 2) for k, v in row.items()} | {"texts": encoding.texts}


@torch.inference_mode()
def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--json", action="store_true", help="end with one JSON object")
    p.add_argument("--concepts", type=int, default=50)
    p.add_argument("--peers", default=",".join(PEERS), help="by comma; '' for none")
    p.add_argument("--out", type=Path, default=RESULTS)
    given = p.parse_args()
    clip, model, concepts = studio().clip, random_model("SD1.5"), listed(given.concepts)
    rows = {}

    def measure(name, do):
        rows[name] = row = timed(do)
        print(
            f"{name}: {row['seconds']:.1f} s, {row['encoding']:.1f} of it for {row['texts']} "
            f"texts; {row['processor']:.1f} s of the processor; {row['peak_mb']:.0f} MB",
            flush=True,
        )

    scapre.solve(model, clip, listed(1))  # loads everything
    with tempfile.TemporaryDirectory() as folder:
        # As in ComfyUI, a solve keeps what it reads, so that no sentence is read twice.
        measure("ours, nothing on disk", lambda: scapre.solve(model, clip, concepts, folder=folder))
    with tempfile.TemporaryDirectory() as folder:
        scapre.solve(model, clip, text.parse("zebra -> horse"), folder=folder)
        measure("ours, prior on disk", lambda: scapre.solve(model, clip, concepts, folder=folder))
        measure("ours, same list again", lambda: scapre.solve(model, clip, concepts, folder=folder))
    for name in filter(None, given.peers.split(",")):
        measure(
            name,
            lambda name=name: importlib.import_module(f"benchmarks.peers.{name}").erase(
                model, clip, concepts
            ),
        )
    result = {
        "concepts": given.concepts,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    result["methods"] = rows
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if given.json else f"results: {given.out}")


if __name__ == "__main__":
    main()
