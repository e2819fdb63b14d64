"""`dev.py bench shard`: several workers measure the saliency of a long concept list.

Each measures a share, and the shares are merged exactly. With Ray (`pip install ray`) workers are
tasks, with a GPU each where there are any: on this machine, or with '--address auto' on a running
Ray cluster whose machines have this folder, its .venv and the checkpoint at the same paths. Without
Ray they are processes of this machine.

Every worker also measures the prompts without any concept, which are the same for all, so the work
grows by one group for each kind and shard. A share's file stays in OUT and is not measured again.
Every number of the result is what one machine would have measured ('--check' does that too and
compares). Put the file into models/unlearn_saliency and open it by Load Concept Saliency.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from safetensors import safe_open

from testbed import pack

from ..published.real import (
    UnlearnError,
    concepts,
    load,
    log,
    saliency,
    settings,
    stamp,
    text,
    told,
)

merge = pack.module("unlearn.pruning.merge").merge
saliency_files = pack.module("unlearn.files.saliency_file")
ConceptSet = pack.module("unlearn.types").ConceptSet


def shares(wanted, n):
    """The ConceptSet in n parts of nearly equal size, kind by kind.

    That is the order in which one machine measures, so that merging keeps it.
    """
    kinds = list(dict.fromkeys(c.kind for c in wanted.concepts))
    ordered = sorted(wanted.concepts, key=lambda c: kinds.index(c.kind))
    n = min(n, len(ordered))
    cuts = [len(ordered) * i // n for i in range(n + 1)]
    return [
        ConceptSet(tuple(ordered[a:b]), wanted.keep) for a, b in zip(cuts, cuts[1:], strict=False)
    ]


@functools.lru_cache(maxsize=1)
def loaded_once(checkpoint):
    """A worker measures many shares with one model."""
    with torch.inference_mode():
        return load(Path(checkpoint))


def measure(checkpoint, forget, keep, more, threads):
    """(bytes of one share's file, seconds): the work of one worker, in picklable values only."""
    torch.set_num_threads(threads)
    start, loaded = time.time(), loaded_once(checkpoint)
    with torch.inference_mode():
        found, _ = saliency.collect(loaded.model, loaded.clip, text.parse(forget, keep), **more)
    path = Path(f"{pack.ROOT}/.host/share{os.getpid()}.safetensors")
    try:
        saliency_files.save(path, found)
        return path.read_bytes(), time.time() - start
    finally:
        path.unlink(missing_ok=True)


def by_processes(jobs, workers, address=""):
    """Yields (number of the job, result of `measure`) as they come, from processes here."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(measure, *job): i for i, job in enumerate(jobs)}
        for done in as_completed(running):
            yield running[done], done.result()


def by_ray(jobs, workers, address=""):
    """Yields (number of the job, result of `measure`) as they come, by Ray.

    `workers` run at a time, with a GPU each where the cluster has any.
    """
    import ray

    names = ("UNLEARN_HOST", "UNLEARN_BASE", "OMP_NUM_THREADS")
    env = {k: os.environ[k] for k in names if k in os.environ} | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)
    }
    ray.init(
        address=address or None,
        num_cpus=None if address else workers,
        runtime_env={"env_vars": env},
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        gpus = ray.cluster_resources().get("GPU", 0)
        task = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(measure)
        waiting, running = list(enumerate(jobs)), {}
        while waiting or running:
            while waiting and len(running) < workers:
                i, job = waiting.pop(0)
                running[task.remote(*job)] = i
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)
    finally:
        ray.shutdown()


ENGINES = {"ray": by_ray, "processes": by_processes}


def chosen_engine(name):
    """'auto' is Ray where it is installed; raises UnlearnError when Ray is asked for and is not."""
    there = importlib.util.find_spec("ray") is not None
    if name == "ray" and not there:
        raise UnlearnError(
            "The package 'ray' is not installed; install it, or use --engine processes."
        )
    return ("ray" if there else "processes") if name == "auto" else name


def same(*paths):
    """Whether two files hold the same metadata, in any order, and the same tensors, bit for bit."""
    (said, have), (other, there) = (content(path) for path in paths)
    return (
        said == other
        and have.keys() == there.keys()
        and all(torch.equal(have[k], there[k]) for k in have)
    )


def content(path):
    """(metadata, tensors as bytes) of a file."""
    with safe_open(path, "pt") as f:
        return f.metadata(), {k: f.get_tensor(k).contiguous().view(torch.uint8) for k in f.keys()}


def body():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", required=True, type=Path)
    p.add_argument(
        "--concepts",
        required=True,
        type=Path,
        help="a concept list (.txt or .csv), as the node Concepts to Forget reads it",
    )
    p.add_argument("--workers", type=int, default=2)
    p.add_argument(
        "--shards",
        type=int,
        default=0,
        help="in how many parts; 0 for one a worker. More are safer to cut off, and slower",
    )
    p.add_argument("--engine", choices=["auto", *ENGINES], default="auto")
    p.add_argument("--address", default="", help="of a running Ray cluster, as in --address auto")
    p.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of each worker on a CPU; 0 for its share of this machine's",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of Concept Saliency, as in --set score=wanda",
    )
    p.add_argument("--out", type=Path, default=Path("output") / "shard")
    p.add_argument(
        "--check", action="store_true", help="measure on one machine too, and compare byte for byte"
    )
    p.add_argument("--json", action="store_true", help="end with one JSON object")
    given = p.parse_args()
    given.forget, given.keep = str(given.concepts), ""
    if not given.concepts.is_file():
        raise UnlearnError(
            f"'--concepts' names {given.concepts}, which is not there; name a concept list (.txt "
            "or .csv)."
        )
    if not given.checkpoint.is_file():
        raise UnlearnError(
            f"'--checkpoint' names {given.checkpoint}, which is not there; name a checkpoint file."
        )
    wanted, more, engine = concepts(given), settings(given), chosen_engine(given.engine)
    if wrong := [k for k in more if k not in saliency.DEFAULTS]:
        raise UnlearnError(
            f"Concept Saliency has no setting '{wrong[0]}'; it has {', '.join(saliency.DEFAULTS)}."
        )
    threads = given.threads or max(1, (os.cpu_count() or 1) // given.workers)

    def job(part):
        return (str(given.checkpoint.resolve()), *text.format_set(part), more, threads)

    parts = shares(wanted, given.shards or given.workers)
    given.out.mkdir(parents=True, exist_ok=True)
    about = [
        json.dumps([stamp(given.checkpoint), *job(part)[1:4]], sort_keys=True) for part in parts
    ]
    paths = [
        given.out / f"share_{hashlib.blake2b(a.encode(), digest_size=8).hexdigest()}.safetensors"
        for a in about
    ]
    todo = [i for i, path in enumerate(paths) if not path.is_file()]
    log(
        f"{len(wanted.concepts)} concepts in {len(parts)} shares, {len(parts) - len(todo)} are "
        f"there; {given.workers} workers by {engine}"
    )
    start = time.time()
    for i, (data, seconds) in (
        ENGINES[engine]([job(parts[i]) for i in todo], given.workers, given.address) if todo else ()
    ):
        part = paths[todo[i]].with_suffix(".part")
        part.write_bytes(data)
        os.replace(part, paths[todo[i]])
        log(
            f"share {todo[i] + 1}: {', '.join(c.name for c in parts[todo[i]].concepts[:5])} ... in "
            f"{seconds:.0f} s"
        )
    whole = merge([saliency_files.load(path) for path in paths])
    merged = given.out / "merged.safetensors"
    saliency_files.save(merged, whole)
    found = {
        "concepts": len(whole.concepts),
        "shares": len(parts),
        "workers": given.workers,
        "engine": engine,
        "measured": len(todo),
    }
    found |= {"threads": threads, "seconds": round(time.time() - start, 1), "file": str(merged)}
    if given.check:
        data, found["one_worker_seconds"] = measure(*job(wanted))
        (given.out / "one_machine.safetensors").write_bytes(data)
        found["equal"] = same(merged, given.out / "one_machine.safetensors")
    print(json.dumps(found) if given.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    if found.get("equal") is False:
        raise UnlearnError(
            "The merged file is not the one that one machine measures; keep both and report it."
        )


def main():
    told(body)


if __name__ == "__main__":
    from benchmarks.scale import shard

    shard.main()
