"""ScaPre measured on the true shapes of SD1.5 and SDXL, and on a world with every variant.

| shape | matrices | rows | width |
|---|---|---|---|
| SD1.5 | 32 | 24,960 | 768 |
| SDXL | 140 | 166,400 | 2048 |

Weights are random and encoding is excluded. Our solve is timed against a row-by-row Cholesky
solution of the same objective in the same run. For the worlds see scapre_world.py. Last line with
--json: one JSON object.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time

import torch

from testbed import pack
from testbed.worlds import catalogue

kernel = pack.module("kernels.scapre")
SD15_WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6  # a key and a value matrix each
SDXL_WIDTHS = [640] * 10 + [1280] * 60
D = 768
# Erased states of a concept: own tokens, the word after, the end token, samples of the padding.
ROLES = 9


def problem(concepts, widths=SD15_WIDTHS, d=D, seed=0, kept=2000):
    """Random states like real ones: a large shared part, concepts that differ in few directions."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    shared, n = 3 * rand(1, d), concepts * ROLES
    c = shared + rand(n, d)
    omega = torch.full((n,), 1 / ROLES, dtype=torch.float64)
    keep = shared + rand(kept, d)
    scale = keep.square().sum(1).mean().sqrt()
    layers = [torch.randn(width, d, generator=g) / d**0.5 for width in widths for _ in "kv"]
    weights = [
        torch.rand(len(w), generator=g) * 0.9 + 0.1 for w in layers
    ]  # Informax weights, one per row
    return layers, weights, c / scale, (shared + rand(n, d)) / scale, omega, keep / scale


def moments(c, n, omega, keep, anchor=0.05, preserve=1.0):
    d = keep.shape[1]
    p = preserve * d * kernel.gram(keep) / len(keep) + anchor * torch.eye(d, dtype=torch.float64)
    s = d * kernel.gram(c, omega)
    return s, -s if n is None else d * kernel.cross_gram(n, c, omega), p


def ours(layers, weights, s, t, p, eta):
    """All layers as low-rank edits; the tolerance keeps the full rank, for an exact comparison."""
    mu, v = kernel.anchored_basis(s, p)
    down, tv = v.T.float(), t @ v
    return [
        kernel.anchored_up(w, tv, mu, eta, m) for w, m in zip(layers, weights, strict=True)
    ], down


def by_rows(layers, weights, s, t, p, eta, tick):
    """(P + eta m_i S) x = eta m_i T^T w0_i, one Cholesky factorisation per row, float64."""
    out = []
    for w, m in zip(layers, weights, strict=True):
        right = w.double() @ t
        rows = torch.empty_like(right)
        for i, gain in enumerate((eta * m.double()).tolist()):
            rows[i] = torch.cholesky_solve(
                (gain * right[i])[:, None], torch.linalg.cholesky(p + gain * s)
            )[:, 0]
        out.append(rows)
        tick(len(out))
    return out


def peak_mb():
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 1024
        / (1024 if sys.platform == "darwin" else 1)
    )


def timed(given, eta, times=3, difference=False):
    """(median seconds from states to edits of all layers, the result of `ours`, the moments).

    difference: rows have the target zero, as what a concept adds in ScaPreSolve, so that T = -S.
    """
    layers, weights, c, n, omega, keep = given
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        m = moments(c, None if difference else n, omega, keep)
        found = ours(layers, weights, *m, eta)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[times // 2], found, m


def speed(concepts=50, eta=100.0, log=print):
    given = problem(concepts)
    layers, weights = given[:2]
    before = peak_mb()
    seconds, (ups, down), m = timed(given, eta)
    peak = peak_mb() - before
    log(
        f"ours: {seconds:.2f} s for {sum(map(len, layers))} rows in {len(layers)} matrices, "
        f"{concepts} concepts"
    )
    start = time.perf_counter()
    rows = by_rows(
        layers, weights, *m, eta, lambda k: log(f"row by row: {k}/{len(layers)} matrices")
    )
    reference = time.perf_counter() - start
    error = max(
        float((up.double() @ down.double() - r).norm() / r.norm())
        for up, r in zip(ups, rows, strict=True)
    )
    return {
        "seconds": round(seconds, 3),
        "reference_seconds": round(reference, 2),
        "ratio": round(reference / seconds, 1),
        "max_relative_error": error,
        "peak_mb": round(peak, 1),
    }


def scale(log=print, counts=(1, 10, 50, 100, 1000, 10000), eta=100.0):
    """Seconds by number of concepts on the SD1.5 shape, and with 100 on the SDXL shape.

    For SDXL also the memory above the weights.
    """
    given = problem(100, SDXL_WIDTHS, 2048)
    before = peak_mb()  # the highest so far: this comes first
    seconds, table = timed(given, eta, 1, True)[0], {}
    peak = peak_mb() - before
    log(f"SDXL shape, 100 concepts: {seconds:.1f} s, {peak:.0f} MB above the weights")
    del given
    for count in counts:
        table[count] = timed(problem(count), eta, 5, True)[0]
        log(f"SD1.5 shape, {count} concepts: {table[count]:.2f} s")
    return {
        "seconds_by_concepts": {str(k): round(v, 2) for k, v in table.items()},
        "ratio_1000_to_50": round(table[1000] / table[50], 2)
        if 1000 in table and 50 in table
        else None,
        "sdxl_100_seconds": round(seconds, 1),
        "sdxl_100_peak_mb": round(peak, 1),
    }


def whole(log=print, counts=(50, 1000), times=3):
    """Seconds of the whole node by number of concepts, on the SD1.5 shape, where all is on disk.

    Reading is not counted, so the text encoder is cut to its first layer, to be quick before. Both
    the clock and the processor, the median of some turns.
    """
    from testbed.shapes import random_model
    from testbed.worlds.studio import studio

    from .end_to_end import listed, scapre

    model, clip = random_model("SD1.5"), studio().clip
    layers = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
    found = {count: listed(count, 50) for count in counts}
    taken = {count: [] for count in counts}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        rest = layers[1:]
        del layers[1:]
        try:
            for turn in range(times + 1):  # the first one reads
                for count, concepts in found.items():
                    clock, used = time.perf_counter(), time.process_time()
                    scapre.solve(model, clip, concepts, folder=folder)
                    if turn:
                        now = time.perf_counter() - clock, time.process_time() - used
                        taken[count].append(now)
        finally:
            layers.extend(rest)
    table = {}
    for count, rows in taken.items():
        clock, used = (sorted(part)[times // 2] for part in zip(*rows, strict=True))
        table[str(count)] = {"seconds": round(clock, 2), "processor": round(used, 2)}
        log(f"whole node, {count} concepts: {clock:.1f} s, {used:.1f} s of the processor")
    few, many = table[str(counts[0])], table[str(counts[-1])]
    return {
        "whole_by_concepts": table,
        "whole_ratio": round(many["processor"] / few["processor"], 2),
    }


def size(concepts=50, log=print):
    """Bytes of a patch, and what applying it adds to loading a checkpoint.

    The patch erases 50 common words on a random UNet of SD1.5's true shape, read by the sprite
    world's text encoder. Loading includes the text encoder and a very small VAE. Both are the
    median of five, from memory (the file was read before) and from disk. Also the patch's size on
    SDXL's shape at the same rank.
    """
    import comfy.model_management
    import comfy.sd
    from safetensors.torch import save_file

    from testbed.shapes import random_model
    from testbed.worlds.checkpoint import checkpoint_state_dict
    from testbed.worlds.studio import studio

    from ..world.scapre_world import CACHE, patching, scapre, text

    words = pack.module("unlearn.concepts.sentences").prior_words()[200 : 200 + concepts]
    model, clip = random_model("SD1.5"), studio().clip
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        patch = scapre.solve(
            model, clip, text.parse("\n".join(f"{w} -> thing" for w in words)), folder=CACHE
        )[0]
        seconds, file, unet = (
            time.perf_counter() - start,
            f"{folder}/checkpoint.safetensors",
            "diffusion_model.",
        )
        save_file(
            checkpoint_state_dict(
                {
                    k.removeprefix(unet): v
                    for k, v in model.model.state_dict().items()
                    if k.startswith(unet)
                }
            ),
            file,
        )
        del model
        with open(file, "rb") as written:
            os.fsync(written.fileno())
        took = {(how, where): [] for where in ("memory", "disk") for how in ("plain", "patched")}
        for (how, where), times in [x for x in took.items() for _ in range(5)]:
            comfy.model_management.unload_all_models()
            with open(file, "rb") as read:
                if where == "disk" and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(read.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            loaded = comfy.sd.load_checkpoint_guess_config(file)[0]
            loaded = patching.apply(loaded, patch)[0] if how == "patched" else loaded
            comfy.model_management.load_models_gpu([loaded])
            times.append(time.perf_counter() - start)
            del loaded
    took = {key: sorted(times)[2] for key, times in took.items()}
    rank = patch.edits[0][1].weights[1].shape[0]
    found = {
        "size_concepts": concepts,
        "rank": rank,
        "sd15_mb": round(patch.nbytes / 2**20, 2),
        "sdxl_mb_at_that_rank": round(
            (sum(2 * w for w in SDXL_WIDTHS) * rank * 2 + rank * 2048 * 4) / 2**20, 1
        ),
        "solve_with_encoding_seconds": round(seconds, 1),
        "load_seconds": {where: round(took["plain", where], 2) for where in ("memory", "disk")},
        "load_patched_over_plain": {
            where: round(took["patched", where] / took["plain", where], 3)
            for where in ("memory", "disk")
        },
    }
    log(str(found))
    return found


def bench_of(name, pictures, log):
    """The Bench of a world by its name."""
    from testbed.worlds.studio import studio

    from ..world.scapre_world import Bench, shots

    s = studio(name)
    return Bench(s, shots(plain=pictures, world=s.judge.world), log=log)


def world(name, counts, names, pictures, log=print):
    """Every variant at every count with a keep list, and the default without one."""
    bench = bench_of(name, pictures, log)
    log(
        f"unedited model: {bench.rates(bench.before, ())[1]:.3f} of {len(bench.plan)} pictures "
        "right"
    )
    table = {n: {str(c): bench.run(n, c, variant=n) for c in counts} for n in names}
    without = {str(c): bench.run("anchored", c, keep=False) for c in counts}
    at = str(8 if 8 in counts else counts[-1])

    def say(s):
        return {
            "forgot": round(s.forgot, 3),
            "kept": round(s.kept, 3),
            "overall": round(s.overall, 3),
        }

    return {
        "forgot": round(table["anchored"][at].forgot, 3) if "anchored" in table else None,
        "kept": round(table["anchored"][at].kept, 3) if "anchored" in table else None,
        "kept_without_list": round(without[at].kept, 3),
        "forgot_without_list": round(without[at].forgot, 3),
        "variants": {n: {c: say(s) for c, s in row.items()} for n, row in table.items()},
        "without_list": {c: say(s) for c, s in without.items()},
    }


def informax(name, count, pictures, log=print):
    """Whether Informax weights change anything.

    Compares none, graded ones, those as printed, and the graded ones in random order.
    """
    from ..world.scapre_world import scapre

    bench, table = bench_of(name, pictures, log), {}
    for how in ("off", *scapre.ESTIMATORS):
        score = bench.run(
            f"informax {how}",
            count,
            informax=how != "off",
            estimator=how if how != "off" else "graded",
        )
        table[how] = {"forgot": round(score.forgot, 3), "kept": round(score.kept, 3)}
    return {"informax": table}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--concepts", type=int, default=50, help="of the comparison with the row-by-row solution"
    )
    parser.add_argument(
        "--part",
        choices=["all", "speed", "scale", "whole", "size", "world", "informax"],
        default="all",
    )
    parser.add_argument(
        "--counts", default="1,4,8,12", help="how many objects of the world are forgotten"
    )
    parser.add_argument("--world", choices=catalogue.WORLDS, default="sprites")
    parser.add_argument("--variants", default="anchored,paper,released-A,released-B,uce")
    parser.add_argument(
        "--pictures", type=int, default=3, help="of every object in plain sentences"
    )
    given = parser.parse_args()

    def log(line):
        return print(line, flush=True)

    result = {}
    if given.part in ("all", "speed"):
        result |= speed(given.concepts, log=log)
    if given.part in ("all", "scale"):
        result |= scale(log)
    if given.part in ("all", "whole"):
        result |= whole(log)
    if given.part in ("all", "size"):
        result |= size(log=log)
    if given.part in ("all", "world"):
        result |= world(
            given.world,
            [int(c) for c in given.counts.split(",")],
            given.variants.split(","),
            given.pictures,
            log,
        )
    if given.part in ("all", "informax"):
        result |= informax(
            given.world, max(int(c) for c in given.counts.split(",")), given.pictures, log
        )
    print(json.dumps(result) if given.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
