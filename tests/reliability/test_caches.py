"""What is kept between runs.

Several threads and several processes share one folder, and in some places nothing may be written.
Threads and processes are real. The token states of a text are a function of the text here, so that
a reader can tell whether what came back is what was put in.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import loading
import pytest
import torch

from testbed import pack

states = pack.module("unlearn.files.text_cache")
files = pack.module("unlearn.files.safetensors_io")
material = pack.module("unlearn.sculpting.training_data")
sentences = pack.module("unlearn.concepts.sentences")
concept_files = pack.module("unlearn.concepts.lists")
UnlearnError = pack.module("unlearn.errors").UnlearnError
WIDTH = 16


def encode(clip, texts, progress=None):
    """Stands in for a text encoder: states [77, WIDTH] that only the text decides."""
    return {
        t: torch.sin(torch.arange(77 * WIDTH).float() * (1 + sum(t.encode()) % 97)).view(77, WIDTH)
        for t in texts
    }


def prompts(n, first=0):
    return [
        states.text_encoding.Prompt(f"a photo of thing {i}", "thing", 4, 4, 3 + i % 9)
        for i in range(first, first + n)
    ]


def right(found):
    """Whether every state that anybody reads is what the encoder says."""
    for text, state in found.items():
        truth, end = encode(None, [text])[text], 3 + int(text.split()[-1]) % 9
        where = states.kept_positions(end, 77)
        if not torch.equal(state[where], truth[where]):
            return False
    return True


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setattr(states.text_encoding, "encode", encode)


def work(folder, number, seconds, limit, damage):
    """Reads and writes states for a while, as a solve does, each time with a store of its own.

    Returns (stores, prompts encoded), or what went wrong.
    """
    states.text_encoding.encode = encode
    until, rounds, encoded = time.time() + seconds, 0, 0
    with torch.inference_mode():
        while time.time() < until or rounds < 3:
            store = states.TextStateCache(None, folder, limit)
            wanted = prompts(12, first=(number * 5 + rounds * 7) % 60)
            if not right(store.get(wanted)) or not right(store.get(wanted)):
                return "other states than the encoder's"
            rounds, encoded = rounds + 1, encoded + store.encoded
            if damage and rounds % 5 == number:  # somebody else's disk error
                for file in list(Path(folder).rglob("*.safetensors"))[:1]:
                    with contextlib.suppress(OSError):
                        file.write_bytes(b"damaged" * rounds)
    return rounds, encoded


def one_of_many(queue, *args):
    torch.set_num_threads(1)
    try:
        queue.put(work(*args))
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.parametrize(
    "limit, damage",
    [(2**29, False), (40_000, False), (2**29, True)],
    ids=["room", "bounded", "damaged"],
)
def test_processes_share_a_folder(tmp_path, tally, limit, damage):
    """Three processes read, write, make room and damage files in one folder.

    Each always gets the encoder's own states.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    queue = context.Queue()
    many = [
        context.Process(target=one_of_many, args=(queue, tmp_path, i, 3.0, limit, damage))
        for i in range(3)
    ]
    for process in many:
        process.start()
    found = [queue.get(timeout=120) for _ in many]
    for process in many:
        process.join(30)
    assert all(isinstance(f, tuple) and f[0] >= 3 for f in found), found
    left = list(tmp_path.rglob("*.safetensors"))
    assert left and not list(tmp_path.rglob("*.part*")) and len({f.parent for f in left}) == 1
    if limit == 40_000:
        assert sum(f.stat().st_size for f in left) <= limit
    elif not damage:
        assert sum(f[1] for f in found) < 12 * sum(
            f[0] for f in found
        )  # most was read, not encoded
    tally("faults", sum(f[0] // 5 for f in found) if damage else 0)
    tally("cells")


def test_threads_share_a_folder(tmp_path, tally):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: work(tmp_path, i, 2.0, 2**29, False), range(4)))
    assert all(isinstance(f, tuple) for f in found), found
    assert not list(tmp_path.rglob("*.part*"))
    tally("cells")


def test_a_lock_that_somebody_holds_costs_seconds_and_nothing_else(tmp_path, monkeypatch, tally):
    monkeypatch.setattr(states, "WAIT", 0.3)
    with states.FileLock(tmp_path / "lock"):
        start, store = time.time(), states.TextStateCache(None, tmp_path)
        assert right(store.get(prompts(3))) and time.time() - start < 5
        assert not list(tmp_path.rglob("*.safetensors"))
    assert right(store.get(prompts(3))) and list(tmp_path.rglob("*.safetensors"))
    tally("faults")


def test_a_process_killed_while_it_writes_leaves_what_the_next_sweeps(tmp_path, tally):
    store = states.TextStateCache(None, tmp_path)
    store.get(prompts(2))
    (whole,) = tmp_path.rglob("*.safetensors")
    old, new = (whole.with_name(f"{whole.name}.part{n}-1") for n in (1, 2))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))  # nobody has written to it for years; the other may be somebody's
    store.get(prompts(2, first=9))
    assert (
        not old.exists()
        and new.exists()
        and right(states.TextStateCache(None, tmp_path).get(prompts(2)))
    )
    files.write(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    tally("faults")


def test_threads_write_one_file(tmp_path, tally):
    """Many writers of one name: at every moment the file is whole and one of theirs."""
    path, stop, seen = tmp_path / "x.safetensors", threading.Event(), set()
    files.write(path, {"a": torch.full((1000,), 0.0)}, {"n": "0"})

    def write(n):
        for _ in range(40):
            files.write(path, {"a": torch.full((1000,), float(n))}, {"n": str(n)})

    def read():
        while not stop.is_set():
            with files.opened(path) as (metadata, _, get):
                a = get("a")
                assert (a == float(metadata["n"])).all()
                seen.add(metadata["n"])

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        list(pool.map(write, range(1, 5)))
        stop.set()
        reader.result()
    assert len(seen) > 1 and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    tally("cells")


def test_threads_share_what_was_drawn(monkeypatch, tally):
    """Latents that the trainer keeps are right, also while others make room for theirs."""
    monkeypatch.setattr(material, "_cache", OrderedDict())
    monkeypatch.setattr(
        material.tuning, "CACHED_LATENT_BYTES", 4 * 4 * 3 * 64 + 1
    )  # room for three

    def drawn(reference, texts, against, seeds, *rest):
        return torch.full((len(texts), 4, 4, 4), float(texts[0]))

    def draw(reference, texts, *rest):
        time.sleep(0.001)
        return drawn(reference, texts, *rest)

    rows = {str(i): i for i in range(9)} | {"": 99}
    network = SimpleNamespace(
        dtype=torch.float32,
        text_id=rows,
        reference=None,
        draw=draw,
        conditions_digest=" ".join,
    )
    settings = SimpleNamespace(seed=1, sampling_steps=2, cfg=3.0)
    made = material.TrainingData.__new__(material.TrainingData)
    made.network, made.settings, made.shape = network, settings, [4, 4, 4]
    made.model_digest = "m"

    def ask(i):
        for k in range(60):
            n = (i * 7 + k * (i + 1)) % 9
            if not (made._drawn([str(n)], [""], None) == float(n)).all():
                return n
        return None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [None] * 8
    assert sum(t.nbytes for t in material._cache.values()) <= material.tuning.CACHED_LATENT_BYTES
    tally("cells")


def test_what_is_read_once_is_never_changed_by_who_reads():
    """Cached values are tuples: a thread that has one cannot change another's."""
    assert isinstance(sentences.prior_sentences(), tuple) and isinstance(
        sentences._data_lines("prior.txt"), tuple
    )
    with ThreadPoolExecutor(4) as pool:
        assert len({hash(x) for x in pool.map(lambda _: sentences.prior_words(), range(8))}) == 1


# --- where nothing may be written ---


@contextlib.contextmanager
def read_only(folder):
    """The folder and all in it without the right to write, for a user who is not root."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    entries = [folder, *folder.rglob("*")]
    for path in entries:
        path.chmod(0o555 if path.is_dir() else 0o444)
    opened = []
    if root:
        for parent in folder.parents:  # pytest's own folders are for their owner only
            if not parent.stat().st_mode & 0o001:
                opened.append((parent, parent.stat().st_mode))
                parent.chmod(parent.stat().st_mode | 0o011)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for parent, mode in opened:
            parent.chmod(mode)
        for path in entries:
            path.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_a_read_only_folder_is_no_reason_to_stop(tmp_path, tally):
    folder = tmp_path / "user"
    states.TextStateCache(None, folder).get(prompts(3))
    empty = tmp_path / "empty"
    empty.mkdir()
    before = sorted(folder.rglob("*"))
    (damaged,) = folder.rglob("*.safetensors")
    with read_only(empty), contextlib.suppress(FileExistsError):
        with pytest.raises(OSError):
            (empty / "x").write_bytes(b"")  # so this test can fail
        store = states.TextStateCache(None, empty)
        assert right(store.get(prompts(3))) and store.encoded == 3 and not list(empty.iterdir())
        with pytest.raises(UnlearnError, match="cannot be written"):
            files.write(empty / "sub" / "x.safetensors", {"a": torch.zeros(1)}, {})
    with read_only(folder):
        store = states.TextStateCache(None, folder)
        assert (
            right(store.get([*prompts(3), *prompts(2, first=20)])) and store.encoded == 2
        )  # what lies there is read
    damaged.write_bytes(b"damaged")
    with read_only(folder):
        assert right(
            states.TextStateCache(None, folder).get(prompts(3))
        )  # and what is damaged there is encoded, each time
    assert sorted(folder.rglob("*")) == before
    tally("faults", 3)


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path, tally):
    (tmp_path / "file").write_text("in the way")
    store = states.TextStateCache(None, tmp_path / "file" / "states")
    assert right(store.get(prompts(3))) and store.encoded == 3
    with pytest.raises(UnlearnError, match="cannot be written"):
        files.write(tmp_path / "file" / "x.safetensors", {"a": torch.zeros(1)}, {})
    tally("faults")


def test_a_full_disk_keeps_nothing_and_goes_on(tmp_path, monkeypatch, tally):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    store = states.TextStateCache(None, tmp_path)
    assert right(store.get(prompts(3))) and not [
        p for p in tmp_path.rglob("*") if ".safetensors" in p.name
    ]
    tally("faults")


# --- where the pack may lie ---

SCRIPT = """
import importlib

def used(folder):
    found = load(folder)
    # the names the host gives are gone again; load once more to use one
    done = asyncio.run(nodes.load_custom_node(folder, module_parent="custom_nodes"))
    pack = folder.replace(".", "_x_")
    lists = importlib.import_module(pack + ".unlearn.concepts.lists")
    cached = importlib.import_module(pack + ".unlearn.concepts.sentences")
    presets = [len(lists.read_preset(n).concepts) for n in lists.presets()[1:]]
    web = nodes.EXTENSION_WEB_DIRS[os.path.basename(folder)]
    nodes.NODE_CLASS_MAPPINGS.clear()
    nodes.NODE_CLASS_MAPPINGS.update(known)
    return [*found, presets, len(cached.prior_sentences()), os.path.isdir(web)]

known = dict(nodes.NODE_CLASS_MAPPINGS)
print(json.dumps([used(folder) for folder in args_of_test]))
"""
FOLDERS = [
    "Unlearn with spaces (1)",
    "\u00dcnlearn-\u5fd8\u308c\u308b",
    "comfyui.unlearn v1.0",
    "100% & 'un'learn#",
]


def shipped(target):
    """A copy of what the registry would ship, read-only."""
    listed = [
        line.strip("/\n")
        for line in (loading.ROOT / ".comfyignore").read_text().splitlines()
        if line.startswith("/")
    ]
    skip = {*listed, ".git", ".venv", ".host", "shared"}

    def away(folder, names):
        return [
            n
            for n in names
            if n == "__pycache__"
            or (Path(folder) == loading.ROOT and n in skip)
            or n.startswith(".")
        ]

    shutil.copytree(loading.ROOT, target, ignore=away)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return target


def test_a_folder_of_any_name_loads_and_nothing_is_written_into_it(tmp_path, tally):
    """One process loads a copy of the pack from each folder, as each would be loaded alone."""
    folders = [shipped(tmp_path / "custom_nodes" / name) for name in FOLDERS]
    before = [sorted(str(p) for p in folder.rglob("*")) for folder in folders]
    try:
        found = loading.run(SCRIPT, *folders)
    finally:
        after = [sorted(str(p) for p in folder.rglob("*")) for folder in folders]
        for folder in folders:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755)
    ours = sorted(n.__name__ for n in pack.module("nodes").NODES)
    for name, (done, nodes, said, presets, prior, web) in zip(FOLDERS, found, strict=True):
        assert done and nodes == ours, (name, said)
        assert len(presets) >= 4 and min(presets) >= 8 and prior > 100 and web, name
    assert after == before
    tally("cells", len(FOLDERS))


def test_names_of_our_own_files_fit_every_system():
    """Windows takes the names of all files and folders of the pack, shipped or written.

    No two of them differ by case alone.
    """
    from test_fuzz import refused_by_windows

    made = [
        json.loads(json.dumps(n))
        for n in (
            "__unlearn",
            "states",
            "lock",
            "unlearn_patches",
            "unlearn_saliency",
            "unlearn_training",
        )
    ]
    made += [
        pack.module("unlearn.files.raw_statistics").raw_name(
            3, pack.module("unlearn.types").Group("object", name)
        )
        for name in ("cat", "CON", "a/b: c?", "\u732b")
    ]
    ours = [
        p
        for folder in ("nodes", "unlearn", "kernels")
        for p in (loading.ROOT / folder).rglob("*")
        if "__pycache__" not in p.parts
    ]
    ours += [
        *(loading.ROOT / "web").rglob("*"),
        *(loading.ROOT / "locales").rglob("*"),
        *(loading.ROOT / "example_workflows").iterdir(),
    ]
    assert not [n for n in [*made, *(p.name for p in ours)] if refused_by_windows(n)]
    folded = [str(p).casefold() for p in ours]
    assert (
        len(set(folded)) == len(folded)
        and max(len(str(p.relative_to(loading.ROOT))) for p in ours) < 120
    )
    assert concept_files.presets() == sorted(
        concept_files.presets(), key=lambda n: (n != "none", n)
    )
