"""Hostile and broken files, names and lists.

Each gives one clear sentence or a usable value, in bounded time and memory, within the folders. The
run is seeded: input number i of a kind is made from `Random(f"{kind} {i}")` alone, and a failure
names it. UNLEARN_FUZZ multiplies the counts (1 by default: 20,000 inputs).
"""

import contextlib
import io
import json
import ntpath
import os
import pickle
import struct
import tempfile
import time
import zipfile
from pathlib import Path, PureWindowsPath
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialise

from testbed import pack

patch_files = pack.module("unlearn.files.patch_file")
patch_reports = pack.module("unlearn.files.patch_report")
saliency_files = pack.module("unlearn.files.saliency_file")
collection = pack.module("unlearn.pruning.collection")
ranking = pack.module("unlearn.pruning.ranking").ranking
merge_saliency = pack.module("unlearn.pruning.merge").merge
masks = pack.module("unlearn.pruning.masks")
resuming = pack.module("unlearn.sculpting.saved_run")
states = pack.module("unlearn.files.text_cache")
files = pack.module("unlearn.files.safetensors_io")
folders = pack.module("unlearn.host.folders")
adapters = pack.module("unlearn.host.adapters")
sculpt = pack.module("kernels.sculpting")
Phase = pack.module("unlearn.sculpting.schedule").Phase
TrainingSettings = pack.module("unlearn.sculpting.settings").TrainingSettings
types = pack.module("unlearn.types")
lists = pack.module("unlearn.concepts.lists")
text = pack.module("unlearn.concepts.notation")
concepts_node = pack.module("nodes.unlearn_concepts")
UnlearnError = pack.module("unlearn.errors").UnlearnError
TIMES = float(os.environ.get("UNLEARN_FUZZ", "1"))
SECONDS = 2.0  # of the processor's time that one small input may take
GROWTH = 300 * 2**20  # bytes that all inputs of a kind may add to the peak of memory
K, F = (
    f"diffusion_model.input_blocks.1.1.transformer_blocks.0.{x}.weight"
    for x in ("attn2.to_k", "ff.net.2")
)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def box(tmp_path):
    """A folder in memory where there is one: the disk is not what is tested."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="unlearn-fuzz-") as folder:
        yield Path(folder)


class Watch:
    """Asserts the time of each input and the peak of memory over all of them, and counts them."""

    def __init__(self, kind, tally, seconds=SECONDS, growth=GROWTH):
        self.kind, self.tally, self.seconds, self.growth, self.n = kind, tally, seconds, growth, 0
        self.refused = 0

    @staticmethod
    def _peak():
        """Peak memory of this process since `__enter__` in bytes; None if the system gives none."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        except OSError:
            return None

    def __enter__(self):
        if os.path.exists("/proc/self/clear_refs"):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        self.before = self._peak()
        return self

    def __call__(self, what, call, *args):
        """The call's value, or None when it was refused with one clear sentence.

        Anything else fails the test, and the failure names the input.
        """
        start, self.n = time.thread_time(), self.n + 1
        try:
            found = call(*args)
        except UnlearnError as error:
            said, found = str(error), None
            self.refused += 1
            assert said.isprintable() and 10 < len(said) < 600 and said.endswith("."), (
                self.kind,
                what,
                said[:700],
            )
        except Exception as error:
            raise AssertionError(f"{self.kind} {what}: {type(error).__name__}: {error}") from error
        assert (spent := time.thread_time() - start) < self.seconds, (self.kind, what, spent)
        return found

    def __exit__(self, kind, *_):
        if kind is None:
            if self.before is not None:
                assert self._peak() - self.before < self.growth, (
                    self.kind,
                    self._peak() - self.before,
                )
            self.tally("inputs", self.n)


def numbered(kind, n):
    """(number, Random of that number alone) of each input."""
    for i in range(int(n * TIMES)):
        yield i, Random(f"{kind} {i}")


# --- safetensors files --------------------------------------------------------


def a_patch():
    down, sparse = (
        rand(3, 12, seed=1),
        torch.where(rand(8, 12, seed=2) > 1.0, rand(8, 12, seed=3), 0),
    )
    edits = (
        (K, adapters.LowRank.of(rand(8, 3), down)),
        (K, adapters.LowRank.of(rand(8, 3, seed=4).half(), down)),
        (F, adapters.Prune.of(rand(7, 9) > 0, 7, 9)),
        (F, adapters.Prune.of(rand(9) > 0, 7, 9, "column")),
        (K, adapters.Delta.of(sparse)),
    )
    said = {
        "method": "ScaPre",
        "settings": {"erase": 1.0},
        "concepts": ["cat"],
        "keep": ["dog"],
        "lines": ["object: cat -> animal"],
    }
    return types.UnlearnPatch(
        edits, types.Fingerprint({k: rand(64, seed=i) for i, k in enumerate((K, F))}), (said,)
    )


def a_saliency(names=("cat", "fox")):
    layers = ((F, 6, 8), (F.replace("blocks.0", "blocks.1"), 5, 4))

    def ranked(c):
        return tuple(ranking(rand(a, b, seed=c).abs(), 0.5) for _, a, b in layers)

    gathered = {
        n: types.ActivationStats(
            (f"1:{n.key}",), rand(2, 12).abs(), rand(2, 12).abs() if n.is_baseline else None
        )
        for n in (types.Group("object"), *(types.Group("object", n) for n in names))
    }
    settings = {
        **collection.DEFAULTS,
        "score": "wanda",
        "prompts": 1,
        "steps": 4,
        "window": 2,
        "size": 64,
    }
    samples = types.Fingerprint({k: rand(a * b, seed=i) for i, (k, a, b) in enumerate(layers)})
    concepts = tuple(types.Concept(n, "object", "animal", (f"{n}ty",)) for n in names)
    return types.SaliencyMap(
        concepts,
        layers,
        tuple(ranked(c) for c in range(len(names))),
        0.5,
        samples,
        settings,
        gathered,
    )


class Run:
    """Stands in for a Trainer between two steps: what saved_run reads and sets of one."""

    def __init__(self):
        self.weights = [torch.nn.Parameter(rand(4, 3, seed=i)) for i in range(2)]
        self.data = SimpleNamespace(model_digest="m", plan=Plan((1, 2)), own={})
        self.network = SimpleNamespace(
            earlier=None,
            dtype=torch.float32,
            device=torch.device("cpu"),
            teacher_weights={K: rand(4, 3)},
        )
        self.settings, self.scaler = TrainingSettings(), torch.amp.GradScaler("cpu", enabled=False)
        self.importance, self.touched = (
            [torch.zeros(4, 3, dtype=d) for _ in self.weights] for d in (torch.float32, torch.bool)
        )
        self.batch_size = SimpleNamespace(rows=10**9)
        self.adversary = None
        self.losses, self.mask_turnover, self.left, self.steps = (
            [{"loss": 0.5}],
            [0.1],
            [{"cat": 0.4}],
            [3],
        )
        self.open_round(1)
        self.step, self.phase = 2, Phase(1.0, (3, 9), True)
        for p in self.weights:
            p.grad = torch.ones(4, 3)
        self.masks = [torch.ones(4, 3, dtype=torch.bool) for _ in self.weights]
        self.optimizer.confine(dict(zip(self.weights, self.masks, strict=True)))
        self.optimizer.step()

    def open_round(self, number):
        self.round, self.masks, self.started = number, [], True
        self.optimizer = sculpt.MaskedAdam(self.weights, lr=1e-3)
        self.generator = torch.Generator().manual_seed(number)
        self.generator_state = self.generator.get_state()


class Plan(NamedTuple):
    tasks: tuple


LEAVES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "a" * 5000,
    "\x00",
    "\u202e",
    "\ud800",
)
LEAVES += (
    [],
    {},
    [[]],
    [None],
    {"x": 1},
    ["x"] * 50,
    "object",
    "0.up",
    "nan",
    "model_sampling.sigmas",
    "__class__",
    "first_stage_model.x.weight",
)
DTYPES = (
    "F32",
    "F16",
    "BF16",
    "F64",
    "I32",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "X",
    "",
    None,
    3,
    "C64",
    "U64",
)


def twisted(rng, value, depth=0):
    """The value with one part of it, chosen at random, replaced, left out, doubled or renamed."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.25:
            return {(str(rng.choice(LEAVES)) if k == key else k): v for k, v in value.items()}
        if how < 0.3:
            return {**value, str(rng.choice(LEAVES)): rng.choice(LEAVES)}
        return {**value, key: twisted(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i, how = rng.randrange(len(value)), rng.random()
        if how < 0.15:
            return value[:i] + value[i + 1 :]
        if how < 0.25:
            return value[:i] + [value[i]] * rng.choice((2, 3, 200)) + value[i + 1 :]
        return value[:i] + [twisted(rng, value[i], depth + 1)] + value[i + 1 :]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.4:
        return value + rng.choice((-1, 1, 8, 10**6, -value, 0.5))
    return rng.choice(LEAVES)


def split(raw):
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def joined(header, data):
    said = json.dumps(header).encode()
    return struct.pack("<Q", len(said)) + said + data


def knows_the_format(rng, raw):
    """A file made by somebody who knows the format.

    Header, offsets, shapes, the JSON within and numbers change, and all lengths still add up.
    """
    header, data = split(raw)
    names, how = [k for k in header if k != "__metadata__"], rng.random()
    if how < 0.45:  # the JSON within the metadata
        said = header["__metadata__"]
        field = rng.choice([k for k, v in said.items() if v[:1] in "[{"])
        try:
            said[field] = json.dumps(twisted(rng, json.loads(said[field])))
        except ValueError:
            said[field] = "[" * rng.choice((10, 10**4, 10**5))
        return joined(header, data)
    if how < 0.5:
        header["__metadata__"] = twisted(rng, header["__metadata__"])
        return joined(header, data)
    name = rng.choice(names)
    if how < 0.7:  # what is said of a tensor
        entry, what = (
            header[name],
            rng.choice(("dtype", "shape", "data_offsets", "swap", "overlap")),
        )
        if what == "dtype":
            entry["dtype"] = rng.choice(DTYPES)
        elif what == "swap":
            other = rng.choice(names)
            header[name], header[other] = header[other], entry
        elif what == "overlap":
            entry["data_offsets"] = list(header[rng.choice(names)]["data_offsets"])
        else:
            entry[what] = twisted(rng, entry[what])
        return joined(header, data)
    if how < 0.75:
        return joined(
            {
                **{k: v for k, v in header.items() if k != name},
                str(rng.choice(LEAVES)): header[name],
            },
            data,
        )
    tensors = {
        k: v.clone() for k, v in parse(raw).items()
    }  # other tensors, written as they should be
    t = tensors[name]
    if how < 0.85 and t.is_floating_point() and t.numel():
        t.view(-1)[rng.randrange(t.numel())] = rng.choice(
            (float("nan"), float("inf"), -float("inf"), 6e4)
        )
    elif how < 0.9 and t.numel():
        t.view(-1)[rng.randrange(t.numel())] = (
            rng.choice((0, 1, 7))
            if t.dtype in (torch.bool, torch.uint8)
            else rng.choice((-1, 0, 9, 10**4))
        )
    elif how < 0.95:
        tensors[name] = rng.choice(
            (
                t.reshape(1, *t.shape),
                t.flatten()[:-1],
                torch.zeros(0),
                torch.zeros(()),
                t.to(torch.float64),
                t.int(),
            )
        )
    else:
        tensors[rng.choice((name, "more", "fingerprint.x", f"fingerprint.{K}", "0.down"))] = (
            torch.zeros(rng.choice((0, 1, 64, 4096)))
        )
        if rng.random() < 0.5:
            del tensors[name]
    return serialise({k: v.contiguous() for k, v in tensors.items()}, header["__metadata__"])


def knows_nothing(rng, raw, others):
    """Bytes cut, flipped, moved, filled in; lengths that lie; other formats under our name."""
    how, raw = rng.randrange(10), bytearray(raw)
    at = rng.randrange(len(raw))
    if how == 0:
        del raw[at:]
    elif how == 1:
        for _ in range(rng.randint(1, 40)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif how == 2:
        raw[at : at + rng.randint(1, 200)] = rng.randbytes(rng.randint(0, 200))
    elif how == 3:
        raw[:8] = struct.pack(
            "<Q",
            rng.choice(
                (
                    0,
                    1,
                    len(raw),
                    len(raw) - 8,
                    10**8,
                    10**8 + 1,
                    2**31,
                    2**40,
                    2**63,
                    2**64 - 1,
                    rng.randrange(4000),
                )
            ),
        )
    elif how == 4:
        other = rng.choice(others)
        raw = raw[:at] + other[rng.randrange(len(other)) :]
    elif how == 5:
        raw = bytearray(rng.randbytes(rng.randint(0, 3000)))
    elif how == 6:
        raw[at:at] = bytes(rng.randint(1, 5000))
    elif how == 7:
        raw = bytearray(
            rng.choice(
                (
                    pickle.dumps({"a": b"x" * 99}),
                    _zipped(),
                    b"PK\x03\x04" + raw,
                    b"#!/bin/sh\nid\n",
                    b"GGUF" + raw,
                    b"<html>",
                )
            )
        )
    elif how == 8:
        said = rng.choice(
            (
                b"[" * 5000,
                b'{"a":' * 3000,
                b"{" + b" " * 5000,
                b'{"__metadata__":{"format":"unlearn-patch"}}',
                b"null",
                b"\xff" * 99,
            )
        )
        raw = bytearray(struct.pack("<Q", len(said)) + said)
    else:
        raw[8 : 8 + rng.randint(1, 60)] = b""
    return bytes(raw)


def _zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps([1, 2, 3]))
    return out.getvalue()


def checksummed(raw):
    """The file with its right checksum, if it can be read: anybody can compute the checksum."""
    try:
        header, data = split(raw)
        header["__metadata__"]["checksum"] = patch_files._checksum(
            parse(raw), header["__metadata__"]
        )
        return joined(header, data)
    except Exception:
        return raw


@pytest.fixture
def wholes(box):
    """One whole file of each kind, as bytes."""
    patch_files.save(box / "p.safetensors", a_patch())
    saliency_files.save(box / "s.safetensors", a_saliency())
    resuming.save(box / "r.safetensors", Run())
    return {k: (box / f"{k}.safetensors").read_bytes() for k in "psr"}


def mutants(kind, n, raw, wholes):
    for i, rng in numbered(kind, n):
        yield (
            i,
            rng,
            knows_the_format(rng, raw)
            if rng.random() < 0.6
            else knows_nothing(rng, raw, list(wholes.values())),
        )


def outside_of(box):
    """What lies beside the files under test, to see that nothing is added."""
    return sorted(p.name for p in box.parent.iterdir() if p.name.startswith(box.name[:8])) + sorted(
        p.name for p in box.iterdir()
    )


def test_patch_files(box, wholes, tally):
    path, before = box / "p.safetensors", outside_of(box)
    with Watch("patch", tally) as watch:
        for i, rng, raw in mutants("patch", 6000, wholes["p"], wholes):
            path.write_bytes(checksummed(raw) if rng.random() < 0.8 else raw)
            if (found := watch(i, patch_files.load, path)) is not None:
                assert (
                    patch_reports.describe(found[0])
                    and found[0].digest
                    and all(min(e.shape) > 0 for _, e in found[0].edits)
                ), i
                # Only keys of the diffusion model are ever named.
                assert all(files.KEY.fullmatch(k) for k, _ in found[0].edits), i
    assert 0.5 * watch.n < watch.refused < watch.n and outside_of(box) == before


def test_saliency_files(box, wholes, tally):
    path, plain, used = box / "s.safetensors", a_saliency(), 0
    with Watch("saliency", tally) as watch:
        for i, _, raw in mutants("saliency", 5500, wholes["s"], wholes):
            path.write_bytes(raw)
            found = watch(i, saliency_files.load, path)
            # What uses the map next works, or says in one sentence what is wrong.
            if found is not None and used < 150:
                used += 1
                for use, *args in (
                    (masks.fuse, [found]),
                    (merge_saliency, [found, plain]),
                    (merge_saliency, [plain, found]),
                ):
                    try:
                        use(*args)
                    except UnlearnError:
                        pass
                    except Exception as error:
                        raise AssertionError(
                            f"saliency {i} was read, and then {error!r}"
                        ) from error
    assert 0.4 * watch.n < watch.refused < watch.n


def test_training_files(box, wholes, tally):
    path, run = box / "r.safetensors", Run()
    with Watch("training", tally) as watch:
        for i, _, raw in mutants("training", 2500, wholes["r"], wholes):
            path.write_bytes(raw)
            if watch(i, resuming.load, path, run):
                assert run.network.device.type == "cpu" and all(
                    torch.isfinite(p).all() for p in run.weights
                ), i
            # Nothing else of a trainer is set from a file.
            assert set(vars(run)) == set(vars(Run())), i
    assert 0.4 * watch.n < watch.refused < watch.n


@pytest.fixture
def words(monkeypatch):
    """A text encoder of width 8 in place of CLIP; states of a text are a function of it."""

    def encode(clip, texts, progress=None):
        return {
            t: torch.sin(torch.arange(77 * 8).float() * (1 + sum(t.encode()) % 97)).view(77, 8)
            for t in texts
        }

    monkeypatch.setattr(states.text_encoding, "encode", encode)
    return encode


def test_files_of_token_states(box, words, wholes, tally):
    prompts = [states.text_encoding.Prompt(t, "", 1, 2, 5) for t in ("a cat", "a dog", "a fox")]
    states.TextStateCache(None, box / "st").get(prompts)
    (file,) = (box / "st").rglob("*.safetensors")
    whole, truth = file.read_bytes(), words(None, [p.text for p in prompts])
    where = states.kept_positions(5, 77)
    with Watch("states", tally) as watch:
        for i, rng in numbered("states", 2000):
            raw = (
                knows_the_format(rng, whole)
                if rng.random() < 0.6
                else knows_nothing(rng, whole, list(wholes.values()))
            )
            file.write_bytes(raw)
            found = watch(i, lambda: states.TextStateCache(None, box / "st").get(prompts))
            # A cache never refuses: what is damaged is encoded again.
            assert found is not None and found.keys() == truth.keys(), i
            assert all(s.shape[1] == 8 and torch.isfinite(s).all() for s in found.values()), i
        file.write_bytes(whole)
        found = states.TextStateCache(None, box / "st").get(prompts)
        assert all(torch.equal(found[t][where], truth[t][where]) for t in truth)


def test_large_and_odd_files(box, tally, monkeypatch):
    """Declared sizes, sparse files, much metadata, deep JSON, no files: refused before reading."""
    loads = (patch_files.load, saliency_files.load, lambda p: resuming.load(p, Run()))
    path = box / "x.safetensors"

    def sparse(head, size):
        def make():
            with open(path, "wb") as f:
                f.write(head)
                f.truncate(size)

        return make

    def tensor(n):
        return {"a": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}

    said = {"format": "unlearn-patch", "format_version": "1", "edits": "[]", "provenance": "[]"}
    whole = a_patch()
    many = json.dumps([{"method": "m", "concepts": ["x" * 100]}] * 100_000)
    deep = joined({"__metadata__": {**said, "edits": "[" * 5_000_000}}, b"")
    cases = {
        "header of a terabyte": sparse(struct.pack("<Q", 2**40), 4096),
        "header as long as a sparse file": sparse(struct.pack("<Q", 99_000_000), 2**40),
        "tensor of a terabyte in a sparse file": sparse(
            joined(tensor(2**38), b""), 8 + len(json.dumps(tensor(2**38))) + 2**40
        ),
        "tensor of a terabyte, no data": lambda: path.write_bytes(joined(tensor(2**38), b"")),
        "shape that overflows": lambda: path.write_bytes(
            joined({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 0]}}, b"")
        ),
        "10 MB of metadata": lambda: path.write_bytes(
            joined({"__metadata__": {**said, "provenance": many}}, b"")
        ),
        "deep JSON": lambda: path.write_bytes(deep),
        "200,000 tensors of nothing": lambda: path.write_bytes(
            joined(
                {
                    f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(200_000)
                },
                b"",
            )
        ),
        "a folder": path.mkdir,
    }
    if hasattr(os, "mkfifo"):
        cases["a pipe that nobody writes"] = lambda: os.mkfifo(path)
        cases["a device without end"] = lambda: path.symlink_to("/dev/zero")
        cases["a link to itself"] = lambda: path.symlink_to(path)
    with Watch("large", tally, seconds=10, growth=2**30) as watch:
        for name, make in cases.items():
            make()
            for load in loads:
                assert not watch(name, load, path), name
            path.rmdir() if path.is_dir() else path.unlink()
        # The same file is read when memory is free, and refused in one sentence when it is not.
        patch_files.save(path, whole)
        monkeypatch.setattr(
            files.memory.comfy.model_management, "get_free_memory", lambda device: 1000
        )
        with pytest.raises(UnlearnError, match="memory are free"):
            patch_files.load(path)
        monkeypatch.undo()
        assert watch("whole", patch_files.load, path)[0] == whole


def test_a_loaded_file_is_a_copy(box):
    """Writing over a file in place changes nothing that was loaded from it."""
    path = box / "p.safetensors"
    patch_files.save(path, a_patch())
    found, raw = patch_files.load(path)[0], path.read_bytes()
    held = [w.clone() for _, e in found.edits for w in e.weights if isinstance(w, torch.Tensor)]
    with open(path, "r+b") as f:
        f.seek(8 + struct.unpack("<Q", raw[:8])[0])
        f.write(b"\x01" * 64)
        f.truncate(len(raw) // 2)
    now = [w for _, e in found.edits for w in e.weights if isinstance(w, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))


def test_many_edits_that_share_a_tensor_take_their_time_once(box, tally):
    """A small file must not ask for endless work: 20,000 edits on one list of a million indices."""
    n = 10**6
    entry = {
        "key": K,
        "kind": "delta",
        "values": "0.values",
        "indices": "0.indices",
        "d_out": n,
        "d_in": 2,
    }
    tensors = {
        "0.values": torch.ones(n),
        "0.indices": torch.arange(n, dtype=torch.int32),
        f"fingerprint.{K}": torch.ones(64),
    }
    said = {
        "format": "unlearn-patch",
        "format_version": "1",
        "edits": json.dumps([entry] * 20_000),
        "provenance": "[]",
    }
    (box / "x.safetensors").write_bytes(
        serialise(tensors, said | {"checksum": patch_files._checksum(tensors, said)})
    )
    with Watch("shared", tally) as watch:
        assert len(watch("shared", patch_files.load, box / "x.safetensors")[0].edits) == 20_000


# --- names of files -----------------------------------------------------------

TRICKS = [
    "../x",
    "..",
    "/etc/passwd",
    "a/../../x",
    "C:\\x",
    "C:x",
    "\\\\host\\share\\x",
    "\\\\?\\C:\\x",
    "x\0y",
    "CON",
    "nul",
    "aux.txt",
    "COM1",
]
TRICKS += [
    "lpt9.a",
    "sub/PRN",
    "x.",
    "x ",
    "sub./x",
    "a /b",
    "x:stream",
    "x::$DATA",
    "~/x",
    "a\nb",
    "a" * 300,
    "a/" * 2000 + "b",
    "*",
    "?",
    "\ud800",
]
TRICKS += [
    "",
    " ",
    ".",
    "/",
    "\\",
    ".safetensors",
    "..\\x",
    "a\\..\\..\\x",
    "%2e%2e/x",
    "file:///etc/passwd",
    "\u202etxt.x",
    "\u2215etc",
    "CONIN$",
]
PIECES = [
    "..",
    "/",
    "\\",
    ".",
    " ",
    ":",
    "\0",
    "C:",
    "CON",
    "nul",
    "a",
    "b1",
    "\u00e9",
    "\u4e2d",
    "\U0001f98a",
    "\u202e",
    "~",
    "*",
    "<",
    "|",
    '"',
    "x" * 120,
]
PIECES += [
    ".safetensors",
    "$",
    "%00",
    "\n",
    "\ud800",
    "\u00b9",
    "COM",
    "-",
    "'",
    ";",
    "&&",
    "link/",
    "[output]",
    ".txt",
]


def refused_by_windows(part):
    reserved = (
        ntpath.isreserved(part)
        if hasattr(ntpath, "isreserved")
        else PureWindowsPath(part).is_reserved()
    )
    return (
        reserved or part.endswith((".", " ")) or any(c in '<>:"|?*\\' or ord(c) < 32 for c in part)
    )


def test_names_of_files(box, tally, monkeypatch):
    """A name gives a path in its folder that is valid on every system, or one sentence of error."""
    import folder_paths

    models, inputs, secret = box / "models", box / "input", box / "secret.safetensors"
    for name, value in {
        "models_dir": str(models),
        "folder_names_and_paths": {},
        "filename_list_cache": {},
    }.items():
        monkeypatch.setattr(folder_paths, name, value)
    for name in ("input", "output", "temp"):
        monkeypatch.setattr(
            folder_paths, f"get_{name}_directory", lambda name=name: str(box / name)
        )
        (box / name).mkdir()
    secret.write_bytes(b"x")
    (box / "secret.txt").write_text("fox")
    root = models / patch_files.FOLDER
    root.mkdir(parents=True)
    for folder in (root, inputs):
        (folder / "link").symlink_to(box)
        (folder / "direct.safetensors").symlink_to(secret)
        (folder / "direct.txt").symlink_to(box / "secret.txt")
    before, wrote = sorted(p.name for p in box.iterdir()), 0
    ours = {"format": patch_files.FORMAT}
    with Watch("name", tally) as watch:
        random = [
            ("".join(rng.choice(PIECES) for _ in range(rng.randint(1, 7))), rng)
            for _, rng in numbered("name", 1300)
        ]
        for name, rng in [
            *(
                (t, Random(t.encode("utf-8", "replace")))
                for t in (*TRICKS, "link/secret.safetensors", "direct.safetensors")
            )
        ] + random:
            new = watch(name, folders.new, patch_files.FOLDER, name)
            if new is not None:
                parts = new.relative_to(root).parts
                assert parts and not any(refused_by_windows(p) for p in parts), name
                if wrote < 60 and rng.random() < 0.5:
                    wrote += 1
                    with contextlib.suppress(UnlearnError):  # what is not ours stays
                        files.write(new, {"a": torch.zeros(1)}, ours, patch_files.is_ours)
                        assert new.is_file() and root in new.parents, name
            found = watch(name, folders.find, patch_files.FOLDER, name)
            assert found is None or (found.is_file() and root in found.parents), name
            listed = watch(name, concepts_node.file_path, name)
            assert listed is None or inputs in listed.parents, name
            assert watch(name, lists.read_preset, name) is None
            assert folders.stamp(patch_files.FOLDER, name) == "" or found is not None
            concepts_node.UnlearnConcepts.fingerprint_inputs(file=name)
    # Links that the user made are followed: new files may come into the folder they point to.
    assert wrote > 10 and set(before) <= {p.name for p in box.iterdir()}
    assert secret.read_bytes() == b"x" and not list(box.parent.glob("*.safetensors"))
    for link in ("link/secret.safetensors", "direct.safetensors"):
        assert folders.find(patch_files.FOLDER, link).read_bytes() == b"x"


# --- lists of concepts --------------------------------------------------------

PARTS = [
    "cat",
    "dog ",
    "garbage truck",
    "->",
    "|",
    ",",
    "*",
    " * 2",
    " * 1",
    "* 1e9",
    "#",
    ":",
    "object:",
    "keep:",
    "Keep :",
    "style: ",
    '"',
    ";",
    "\t",
]
PARTS += [
    "name",
    "weight",
    "kind",
    "aliases",
    "superclass",
    "\n",
    "\r\n",
    "\n",
    "\x0b",
    "\x00",
    "\x1b[31m",
    "\x07",
    "\u202e",
    "\u200b",
    "\ufeff",
]
PARTS += [
    "\u0643\u0644\u0628",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u732b",
    "\u0e41\u0e21\u0e27",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u00e9",
    "e\u0301",
]
PARTS += [
    "\u0130",
    "\u00df",
    "\ufb01",
    "\U000e0041",
    "\u2028",
    "\x85",
    "\xa0",
    "'",
    "0",
    "-1",
    ".5",
    "nan",
    "(",
    "[",
    "{concept}",
    "\\",
    "%s",
    "a" * 450,
]


def test_lists_of_concepts(box, tally):
    """Any text is a list that survives a round trip, or one sentence says what is wrong."""
    kept = 0
    with Watch("list", tally) as watch:
        for i, rng in numbered("list", 4000):
            said = "".join(rng.choice(PARTS) for _ in range(rng.randint(1, 25)))
            if rng.random() < 0.4:
                path = box / rng.choice(("a.txt", "a.csv"))
                raw = (rng.choice(("name,kind\n", "name;aliases;weight\n", "")) + said).encode(
                    "utf-8", "surrogatepass"
                )
                path.write_bytes(raw[: rng.randint(1, len(raw))] if rng.random() < 0.2 else raw)
                found = watch(i, lists.read, path)
            else:
                found = watch(
                    i,
                    text.parse,
                    said,
                    "".join(rng.choice(PARTS) for _ in range(rng.randint(0, 4))),
                )
            if found is not None and found.concepts:  # a table may hold nothing but what to keep
                kept += 1
                again = text.parse(*text.format_set(found))
                assert again == found, (i, found)
    assert kept > 0.05 * watch.n


def test_large_lists(box, tally):
    scripts = [
        "\u732b",
        "\u0643\u0644\u0628",
        "\u05d7\u05ea\u05d5\u05dc",
        "\U0001f98a",
        "\u043a\u043e\u0442",
        "\u0e41\u0e21\u0e27",
        "caf\u00e9",
    ]
    many = "\n".join(f"{scripts[i % 7]} {i} -> thing | alias {i}" for i in range(100_000))
    texts = [
        many,
        "x" * 2**20,
        " *" * 2**19,
        "a|" * 2**19,
        "->" * 2**19,
        "a,b," * 2**18,
        "a * " + "1" * 2**20,
        '"' * 2**20,
        "\u202e" * 2**20,
    ]
    texts += [
        "a\n" * 2**19,
        "#" * 2**20,
        " " * 2**20 + "a",
        "\x00" * 2**20,
        "name\n" + "a" * 2**20,
        "name," * 2**18 + "\nfox",
        "a | " + ", ".join("b" * 30_000),
    ]
    with Watch("large list", tally, seconds=15, growth=2**30) as watch:
        found = watch("100,000 lines", text.parse, many)
        assert len(found.concepts) == 100_000 and text.parse(*text.format_set(found)) == found
        for i, said in enumerate(texts[1:]):
            watch(i, text.parse, said)
            for name in ("a.txt", "a.csv"):
                (box / name).write_text(said, encoding="utf-8")
                watch((i, name), lists.read, box / name)
        (box / "a.txt").write_bytes(b"a\n" * (lists.MAX_FILE_BYTES // 2 + 1))
        assert watch("too large", lists.read, box / "a.txt") is None
        if os.path.exists("/dev/zero"):
            assert watch("a device", lists.read, Path("/dev/zero")) is None


def test_marks_that_show_nowhere_are_no_part_of_a_name():
    plain = text.parse("garbage truck -> vehicle | dustcart", "fire truck")
    pasted = text.parse(
        "\ufeffgar\u00adbage\u200b truck \u202a-> vehicle\u202c | dust\u2060cart",
        "fire\u200e truck\ufeff",
    )
    assert pasted == plain
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # joined by marks that do count
    assert text.parse(family).concepts[0].name == family
