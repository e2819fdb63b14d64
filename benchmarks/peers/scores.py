"""Figures of one edit with their bootstrap intervals, and which method is best or last.

A figure is (value, low, high): the estimate, and the middle 95 % of it over resampled pictures. The
unedited model draws every picture with the same prompt and seed, so that a resample takes the same
pictures of both.
"""

import threading
import time

import numpy as np
import psutil

RESAMPLES = 1000
LOWER = (
    "forgot",
    "frechet",
    "cpu_seconds",
    "memory",
    "bytes",
    "inversion",
    "rece",
)  # columns in which less is better
HIGHER = ("kept", "overall")


def harmonic(forgot, kept):
    """Harmonic mean of 1 - forgot and kept; kept counts as 1 at most."""
    gone, kept = 1 - np.asarray(forgot, float), np.minimum(kept, 1)
    return 2 * gone * kept / np.maximum(gone + kept, 1e-9)


def resampled(groups, n=RESAMPLES, seed=0):
    """Indices int [n, len(groups)] of pictures, drawn with replacement within each group."""
    groups, rng = np.asarray(groups), np.random.default_rng(seed)
    parts = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    return np.concatenate([p[rng.integers(len(p), size=(n, len(p)))] for p in parts], axis=1)


def figure(value, samples):
    """(value, low, high) of an estimate and of the same over resamples."""
    return (
        round(float(value), 4),
        *(round(float(x), 4) for x in np.percentile(samples, (2.5, 97.5))),
    )


def rates(before, after, n=RESAMPLES, seed=0):
    """{forgot, kept, overall} of an edit.

    before, after: int [pictures, 4] of the unedited and the edited model. The columns are: how many
    labels of forgotten things the picture shows, out of how many, and the same of kept things.
    forgot: the share of forgotten labels that still show. kept: the share of kept labels over the
    unedited model's. A resample draws from pictures of forgotten and of kept things apart, so that
    the number of each stays the same. Resamples in which the unedited model shows nothing that is
    kept are left out.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    index = resampled((after[:, 1] > 0) + 2 * (after[:, 3] > 0), n, seed)
    shows = before[index, 2].sum(1) > 0
    index = index[shows] if shows.any() else index

    def both(b, a):
        forgot = a[..., 0] / np.maximum(a[..., 1], 1)
        kept = (a[..., 2] / np.maximum(a[..., 3], 1)) / np.maximum(
            b[..., 2] / np.maximum(b[..., 3], 1), 1e-9
        )
        return forgot, kept, harmonic(forgot, kept)

    found = zip(
        both(before.sum(0), after.sum(0)),
        both(before[index].sum(1), after[index].sum(1)),
        strict=True,
    )
    return dict(zip(("forgot", "kept", "overall"), (figure(*x) for x in found), strict=True))


def share(hits, n=RESAMPLES, seed=0):
    """Figure of the share of pictures that are hits."""
    hits = np.asarray(hits, float)
    return figure(hits.mean(), hits[resampled(np.zeros(len(hits)), n, seed)].mean(1))


def frechet(a, b):
    """Frechet distance |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of features.

    Gaussians are fitted to [n, d] and [m, d]. With A, B the centred features divided by the root of
    their number less one, the trace of the root is the sum of the singular values of A B^T.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    centred = [(x - x.mean(0)) / max(len(x) - 1, 1) ** 0.5 for x in (a, b)]
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return max(
        0.0,
        float(((a.mean(0) - b.mean(0)) ** 2).sum() + sum((x**2).sum() for x in centred) - 2 * root),
    )


def distance(before, after, n=RESAMPLES, seed=0):
    """Figure of the Frechet distance of features [pictures, d], drawn in pairs.

    Resamples hold duplicates, which shifts all of them in the same way. So the interval is moved to
    where its mean is the estimate.
    """
    before, after = np.asarray(before), np.asarray(after)
    value = frechet(before, after)
    samples = np.array(
        [frechet(before[i], after[i]) for i in resampled(np.zeros(len(before)), n, seed)]
    )
    return figure(value, np.maximum(samples - samples.mean() + value, 0))


def _bounds(x):
    return tuple(x[1:]) if isinstance(x, list | tuple) else (x, x)


def measured(rows):
    """The rows of a protocol, method -> row, without the methods that failed."""
    return {name: row for name, row in rows.items() if "error" not in row}


def best_or_tied(table, ours="ours"):
    """Protocols of `table` (protocol -> method -> row) where our `overall` ties with the best.

    Two tie if the interval of ours reaches that of the best.
    """
    found = []
    for protocol, rows in table.items():
        rows = measured(rows)
        if ours in rows:
            best = max(rows.values(), key=lambda row: row["overall"][0])
            if (
                rows[ours] is best
                or _bounds(rows[ours]["overall"])[1] >= _bounds(best["overall"])[0]
            ):
                found.append(protocol)
    return found


def last(table, ours="ours"):
    """(protocol, column) where every other method is better than ours.

    Where a column has intervals, they must not touch.
    """
    found = []
    for protocol, rows in table.items():
        rows = measured(rows)
        mine = rows.pop(ours, {})
        for column in (*HIGHER, *LOWER):
            others = [_bounds(row[column]) for row in rows.values() if column in row]
            if column not in mine or not others:
                continue
            low, high = _bounds(mine[column])
            if all(high < other[0] if column in HIGHER else low > other[1] for other in others):
                found.append((protocol, column))
    return found


class Meter:
    """Seconds and peak resident memory, in MB above the start, of a `with` block."""

    def __enter__(self):
        _give_back()
        self.process, self.over = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        self.began, self.used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.seconds, self.cpu = time.perf_counter() - self.began, time.process_time() - self.used
        self.over.set()
        self.thread.join()
        self.peak = max(self.peak, self.process.memory_info().rss)
        self.memory = (self.peak - self.start) / 2**20

    def _watch(self):
        while not self.over.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)


def _give_back():
    """Gives freed memory back to the system, so that one method's memory hides no other's."""
    import ctypes
    import gc

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        pass
