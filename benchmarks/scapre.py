"""ScaPre on the true SD1.5 shape: our solve beside a row-by-row Cholesky solution of the same objective, in the same run.

32 matrices, 24,960 rows, 768-wide states, 50 concepts, random weights, encoding excluded. Last line with --json: one JSON object.
"""

import argparse
import json
import resource
import sys
import time

import torch

import pack

kernel = pack.module("kernels.scapre")
SD15_WIDTHS = [320] * 5 + [640] * 5 + [1280] * 6  # a key and a value matrix each
D = 768


def problem(concepts, seed=0, tokens=12, sentences=6, kept=2000):
    """Random states with what real ones have: a large shared part, and concepts that differ from it in few directions."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    shared, n = 3 * rand(1, D), concepts * tokens * sentences
    c = shared + rand(n, D)
    omega = torch.full((n,), 1 / (tokens * sentences), dtype=torch.float64)
    keep = shared + rand(kept, D)
    scale = keep.square().sum(1).mean().sqrt()
    layers = [torch.randn(width, D, generator=g) / D**0.5 for width in SD15_WIDTHS for _ in "kv"]
    weights = [torch.rand(len(w), generator=g) * 0.9 + 0.1 for w in layers]  # Informax weights, one per row
    return layers, weights, c / scale, (shared + rand(n, D)) / scale, omega, keep / scale


def moments(c, n, omega, keep, anchor=0.05, preserve=1.0):
    p = preserve * D * kernel.gram(keep) / len(keep) + anchor * torch.eye(D, dtype=torch.float64)
    return D * kernel.gram(c, omega), D * kernel.cross_gram(n, c, omega), p


def ours(layers, weights, s, t, p, eta):
    """All layers as low-rank edits; tolerance keeps the full rank so that the comparison is exact."""
    mu, v = kernel.anchored_basis(s, p)
    down, tv = v.T.float(), t @ v
    return [kernel.anchored_up(w, tv, mu, eta, m) for w, m in zip(layers, weights, strict=True)], down


def by_rows(layers, weights, s, t, p, eta, tick):
    """(P + eta m_i S) x = eta m_i T^T w0_i, one Cholesky factorisation per row, float64."""
    out = []
    for w, m in zip(layers, weights, strict=True):
        right = w.double() @ t
        rows = torch.empty_like(right)
        for i, gain in enumerate((eta * m.double()).tolist()):
            rows[i] = torch.cholesky_solve((gain * right[i])[:, None], torch.linalg.cholesky(p + gain * s))[:, 0]
        out.append(rows)
        tick(len(out))
    return out


def speed(concepts=50, eta=100.0, log=print):
    layers, weights, c, n, omega, keep = problem(concepts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        s, t, p = moments(c, n, omega, keep)
        ups, down = ours(layers, weights, s, t, p, eta)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    log(f"ours: {min(seconds):.2f} s for {sum(map(len, layers))} rows in {len(layers)} matrices, {concepts} concepts")
    start = time.perf_counter()
    rows = by_rows(layers, weights, s, t, p, eta, lambda k: log(f"row by row: {k}/{len(layers)} matrices"))
    reference = time.perf_counter() - start
    error = max(float((up.double() @ down.double() - r).norm() / r.norm()) for up, r in zip(ups, rows, strict=True))
    return {
        "seconds": round(sorted(seconds)[1], 3),
        "reference_seconds": round(reference, 2),
        "ratio": round(reference / sorted(seconds)[1], 1),
        "max_relative_error": error,
        "peak_mb": round(peak / 1024 / (1024 if sys.platform == "darwin" else 1), 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--concepts", type=int, default=50)
    given = parser.parse_args()
    result = speed(given.concepts, log=lambda line: print(line, flush=True))
    print(json.dumps(result) if given.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
