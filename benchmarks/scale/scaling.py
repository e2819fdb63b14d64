"""`dev.py bench scaling`: how time and memory grow.

- ScaPre: over concepts and over the width of text states, on the true shapes of SD1.5 and SDXL with
  random weights, without encoding;
- FIA over prompts, steps and concepts, and the trainer over density: on the sprite world, and once
  each on SD1.5's true shape.

Memory is the peak above what there was before, sampled every 5 ms (Linux). Each part adds its
results to scaling.json and draws scaling_PART.png; bars are shares of the longest in their chart.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import time
from pathlib import Path

import torch
from PIL import Image

from testbed import pack
from testbed.shapes import on_meta, random_model
from testbed.worlds import catalogue
from testbed.worlds.studio import studio

from ..world.dynamic_mask import LEARNING, settings_of, trainer_of
from ..world.dynamic_mask import concepts as kept_alike
from ..world.fia import Peak, saliency, text
from . import scapre as scapre_bench

ORDER = catalogue.SPRITES.order
report = pack.module("unlearn.analysis.charts")
layers = pack.module("unlearn.host.architectures")
RESULTS = Path(__file__).parents[1] / "results"
COUNTS, WIDTHS = "1,10,50,100,1000,10000", "320,640,768,1024,1280,2048"
BASE = {"prompts": 4, "window": 4, "concepts": 2}  # of FIA's sweeps, one varied at a time
SWEEPS = {"prompts": (1, 2, 4, 8, 16), "window": (1, 2, 4, 8, 16), "concepts": (1, 2, 4, 8, 16)}
DENSITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def measured(do):
    """(seconds, MB at the peak, result) of a call.

    Memory that earlier calls left to the allocator is given back before.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with Peak() as peak:
        start = time.perf_counter()
        found = do()
        seconds = time.perf_counter() - start
    return round(seconds, 4), round(peak.top, 1), found


def cross_widths(shape):
    """(rows of each cross-attention key matrix, width of text states) of a true shape."""
    model = on_meta(shape)
    have = model.model.state_dict()
    keys = [have[layer.key].shape for layer in layers.cross_attention(model) if layer.role == "key"]
    return [rows for rows, _ in keys], keys[0][1]


def scapre(shapes, counts, widths, log):
    found = {}
    for shape in shapes:
        rows, d = cross_widths(shape)
        found[shape] = {}
        for count in counts:
            given = scapre_bench.problem(count, rows, d)
            seconds, mb, _ = measured(
                lambda given=given: scapre_bench.timed(given, 100.0, 1, True)[0]
            )
            found[shape][str(count)] = {"seconds": seconds, "peak_mb": mb}
            log(f"ScaPre, {shape}, {count} concepts: {seconds:.2f} s, {mb:.0f} MB")
    found["100 concepts by width of text states, SD1.5's matrices"] = by_width = {}
    for d in widths:
        given = scapre_bench.problem(100, cross_widths("SD1.5")[0], d)
        seconds, mb, _ = measured(lambda given=given: scapre_bench.timed(given, 100.0, 1, True)[0])
        by_width[str(d)] = {"seconds": seconds, "peak_mb": mb}
        log(f"ScaPre, width {d}: {seconds:.2f} s, {mb:.0f} MB")
    return found


def fia(sweeps, shape, log):
    s, found = studio(), {}
    for score in ("paper", "wanda"):
        for what, values in sweeps.items():
            table = found[f"{score}, by {what}, sprite world"] = {}
            for value in values:
                how = {"steps": 20, "size": 64, "cfg": 3.0, "score": score, **BASE, what: value}
                wanted = text.parse("\n".join(names(how.pop("concepts"))))
                seconds, mb, (_, said) = measured(
                    lambda wanted=wanted, how=how: saliency.collect(s.model, s.clip, wanted, **how)
                )
                table[str(value)] = {
                    "seconds": seconds,
                    "peak_mb": mb,
                    "unet_calls": int(said.split(" UNet calls")[0].split()[-1]),
                }
                log(
                    f"FIA, {score}, {what} {value}: {seconds:.1f} s, {mb:.0f} MB, "
                    f"{table[str(value)]['unet_calls']} UNet calls"
                )
    if shape:
        model, table = random_model("SD1.5"), {}
        for score in ("paper", "wanda"):
            how = {"prompts": 2, "steps": 50, "window": 1, "cfg": 7.5, "size": 64, "score": score}
            seconds, mb, _ = measured(
                lambda how=how: saliency.collect(model, s.clip, text.parse("cat"), **how)
            )
            table[score] = {"seconds": seconds, "peak_mb": mb}
            log(
                f"FIA, {score}, SD1.5's shape at 64 pixels, 2 prompts and 1 step: {seconds:.1f} s, "
                f"{mb:.0f} MB"
            )
        found["by score, SD1.5's shape at 64 pixels, 2 prompts and 1 step"] = table
    return found


def names(n):
    """n concepts: objects of the sprite world, then common words."""
    return [
        *ORDER,
        *(w for w in pack.module("unlearn.concepts.sentences").prior_words() if w not in ORDER),
    ][:n]


def trained(model, clip, density, steps, size, **more):
    """({seconds of a step, peak MB}) of training one concept with this density."""
    short = {"pictures": 2, "captions": 2, "warmup": 2, "refresh": 2, "stop_at": 0.0}
    short |= {"steps": steps, "density": density, "size": size, "sampling_steps": 2, **more}
    settings = settings_of.TrainingSettings(**{**LEARNING, **short})
    times = []
    with torch.inference_mode(False), torch.enable_grad():
        trainer = trainer_of(model, clip, kept_alike(ORDER[:1]), settings)
        _, mb, _ = measured(lambda: trainer.run(lambda: times.append(time.perf_counter())))
    each = sorted(b - a for a, b in zip(times[2:], times[3:], strict=False))  # behind the warm-up
    return {"seconds": round(each[len(each) // 2], 4), "peak_mb": mb}


def trainer(densities, steps, shape, log):
    s, table = studio(), {}
    for density in densities:
        table[f"{density:g}"] = row = trained(s.model, s.clip, density, steps, 64)
        log(f"trainer, density {density:g}: {row['seconds']:.2f} s a step, {row['peak_mb']:.0f} MB")
    found = {"seconds of a step by density, sprite world": table}
    if shape:
        row = trained(random_model("SD1.5"), s.clip, 0.5, 6, 64, batch=1, held=2)
        found["seconds of a step, SD1.5's shape at 64 pixels, batch 1 and 2 held"] = {"0.5": row}
        log(
            f"trainer, SD1.5's shape, density 0.5: {row['seconds']:.2f} s a step, "
            f"{row['peak_mb']:.0f} MB"
        )
    return found


def chart(title, tables, path):
    """Draws the tables of one part, seconds and memory of each in bars."""
    charts = []
    for heading, table in tables.items():
        for what, unit, colour in (
            ("seconds", "s", report.NEUTRAL),
            ("peak_mb", "MB", report.GOOD),
        ):
            top = max(row[what] for row in table.values()) or 1
            rows = [
                (label, row[what] / top, f"{row[what]:,.3g} {unit}", colour)
                for label, row in table.items()
            ]
            charts.append(
                (f"{heading}: {'seconds' if unit == 's' else 'memory at the peak'}", rows)
            )
    picture = report.bar_charts(title, charts)[0]
    Image.fromarray((picture * 255).round().byte().numpy()).save(path, optimize=True)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--json", action="store_true", help="end with one JSON object")
    p.add_argument("--part", choices=["all", "scapre", "fia", "trainer"], default="all")
    p.add_argument(
        "--shapes", default="SD1.5,SDXL", help="of ScaPre's sweep over concepts; '' for none"
    )
    p.add_argument("--counts", default=COUNTS, help="of concepts, in ScaPre's sweep")
    p.add_argument("--widths", default=WIDTHS, help="of text states; '' for none")
    p.add_argument(
        "--most",
        type=int,
        default=16,
        help="largest number of prompts, steps and concepts in FIA's sweeps",
    )
    p.add_argument("--densities", default=",".join(f"{d:g}" for d in DENSITIES))
    p.add_argument("--steps", type=int, default=20, help="of training at each density")
    p.add_argument(
        "--small", action="store_true", help="leave out FIA and the trainer on SD1.5's true shape"
    )
    p.add_argument("--out", type=Path, default=RESULTS)
    given = p.parse_args()

    def log(line):
        return print(line, flush=True)

    def split(line, kind):
        return [kind(x) for x in line.split(",") if x]

    parts = {
        "scapre": lambda: scapre(
            split(given.shapes, str), split(given.counts, int), split(given.widths, int), log
        ),
        "fia": lambda: fia(
            {k: [v for v in values if v <= given.most] for k, values in SWEEPS.items()},
            not given.small,
            log,
        ),
        "trainer": lambda: trainer(
            split(given.densities, float), given.steps, not given.small, log
        ),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "scaling.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for name in parts if given.part == "all" else [given.part]:
        with torch.inference_mode():
            tables = {k: table for k, table in parts[name]().items() if table}
        result[name] = {"machine": machine, "tables": tables}
        chart(
            {"scapre": "ScaPre", "fia": "FIA", "trainer": "Dynamic Mask Trainer"}[name],
            tables,
            given.out / f"scaling_{name}.png",
        )
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result) if given.json else f"results: {file}")


if __name__ == "__main__":
    main()
