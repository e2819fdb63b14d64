"""`dev.py bench saliency_memory`: memory and time of the score `paper` on a true shape.

The layers have the true sizes and random weights; what passes them is random too, at as many
positions as a picture of --size pixels has. The UNet itself does not run, so both figures are those
of the statistics alone. Memory is the peak above what there was before, beside what the node says
that it needs; seconds are of the processor. Last line with --json: one JSON object, with a row for
each number of concepts.
"""

import argparse
import ctypes
import gc
import json
import time

import torch

from testbed import pack
from testbed.shapes import on_meta

from ..world.fia import Peak

architectures = pack.module("unlearn.host.architectures")
group_statistics = pack.module("unlearn.pruning.group_statistics")
ranking = pack.module("unlearn.pruning.ranking")
settings_of = pack.module("unlearn.pruning.settings")
types = pack.module("unlearn.types")
SHRINKS = {320: 8, 640: 16, 1280: 32}  # pixels of a picture for one position, by channels


def layers_of(shape):
    """(key, c_out, c_in) of the second feed-forward layers of a true shape."""
    model = on_meta(shape)
    weights = model.model.state_dict()
    found = architectures.feed_forward(model)
    return [(layer.key, *weights[layer.key].shape) for layer in found]


class Passing:
    """Random activations of layers; each prompt has its own, as does each concept."""

    def __init__(self, size):
        self.size = size
        self.module = torch.nn.Module()
        self.module.bias = None

    def of(self, c_out, c_in, seed):
        """(input [1, n, c_in], output [1, n, c_out]) of a prompt."""
        n = max(4, (self.size // SHRINKS.get(c_out, 32)) ** 2)
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(1, n, c_in, generator=g)
        return x, torch.randn(1, n, c_out, generator=g)


def run(layers, concepts, given):
    """Measures and ranks so many concepts; returns the bytes that were set aside."""
    groups = [types.Group("object")]
    groups += [types.Group("object", f"concept {i}") for i in range(concepts)]
    settings = settings_of.SaliencySettings(window=given.window, prompts=given.prompts)
    statistics = group_statistics.PaperStatistics(None, layers, groups, settings)
    statistics.allocate(torch.device("cpu"))
    passing = Passing(given.size)
    for step in range(given.window):
        for g in range(len(groups)):
            moments = statistics.open(step, g)
            for prompt in range(given.prompts):
                for i, (_, c_out, c_in) in enumerate(layers):
                    x, y = passing.of(c_out, c_in, 1000 * g + 10 * step + prompt)
                    moments[i].add(statistics.activation(passing.module, x, y))
            statistics.close(step, g)
            del moments
    statistics.release_work()
    rankings = []  # they stay, as in a SaliencyMap
    for g in range(1, len(groups)):
        for i, room in enumerate(ranking.rooms(layers, settings.ceiling)):
            a = statistics.saliency(g, i, settings.scale)
            rankings.append(ranking.ranking(a, settings.ceiling, room))
    return getattr(getattr(statistics, "log", None), "nbytes", 0)


def measured(layers, concepts, given):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with Peak() as peak:
        start = time.process_time()
        aside = run(layers, concepts, given)
        seconds = time.process_time() - start
    return {
        "peak_mb": round(peak.top),
        "said_mb": round(group_statistics.MemoryNeed.of(layers).total / 2**20),
        "seconds": round(seconds, 1),
        "set_aside_mb": round(aside / 2**20),
    }


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--json", action="store_true", help="end with one JSON object")
    p.add_argument("--shape", default="SDXL", help="SD1.5, SD2.1 or SDXL")
    p.add_argument("--counts", default="1,4,16", help="of concepts")
    p.add_argument("--prompts", type=int, default=2)
    p.add_argument("--window", type=int, default=1, help="steps")
    p.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    given = p.parse_args()
    layers = layers_of(given.shape)
    weight = torch.randn(max(c_out * c_in for _, c_out, c_in in layers))

    def read(model, key, device=None):
        _, c_out, c_in = next(layer for layer in layers if layer[0] == key)
        return weight[: c_out * c_in].view(c_out, c_in)

    group_statistics.weights.read = read
    found = {}
    with torch.inference_mode():
        for count in map(int, given.counts.split(",")):
            found[str(count)] = row = measured(layers, count, given)
            print(
                f"{given.shape}, {count} concepts: {row['peak_mb']} MB of {row['said_mb']} said, "
                f"{row['seconds']} s, "
                f"{row['set_aside_mb']} MB set aside on disk",
                flush=True,
            )
    print(json.dumps(found) if given.json else "done")


if __name__ == "__main__":
    main()
