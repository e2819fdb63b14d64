"""Faults at every stage of every node: cancel, no memory, a full disk, a killed process.

A job runs once while its calls of ComfyUI are counted. Then it runs again and again with one of
these calls failing: the first ones, the last ones, and a spread between. After each fault the model
has the same bits and nothing is attached to it. At the end the job does what it did at first.
"""

import contextlib
import copy
import ctypes
import errno
import gc
import hashlib
import itertools
import os
import random
import signal
import time
import traceback
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from testbed import pack, tiny

adapters = pack.module("unlearn.host.adapters")
files = pack.module("unlearn.files.safetensors_io")
patch_files = pack.module("unlearn.files.patch_file")
patching = pack.module("unlearn.host.patching")
saved_run = pack.module("unlearn.sculpting.saved_run")
tuning = pack.module("unlearn.sculpting.tuning")
states = pack.module("unlearn.files.text_cache")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
nodes = {n.__name__: n for n in pack.module("nodes").NODES}
UnlearnError = pack.module("unlearn.errors").UnlearnError

CONCEPTS = text.parse("fox -> animal", "cat\nhouse")
LENGTH = dict(
    steps=3,
    stop_at=0.0,
    batch=2,
    held=2,
    learning_rate=1e-3,
    pictures=2,
    sampling_steps=2,
    captions=2,
)
SCULPT = dict(preset={"preset": "custom", **LENGTH}, warmup=1, refresh=2, cfg=3.0, size=64)


def run(name, /, **given):
    """A node's results as the host runs it, with what a new node has where nothing is given."""
    node = nodes[name]
    kept = {**tiny.defaults(node.define_schema().inputs), **given}
    return node.PREPARE_CLASS_CLONE(None).execute(**kept).result


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The model and all that nodes are given, made once; folders of the host's for files."""
    import folder_paths

    with torch.inference_mode(), pytest.MonkeyPatch.context() as m:
        base = tmp_path_factory.mktemp("base")
        m.setattr(folder_paths, "models_dir", str(base / "models"))
        m.setattr(folder_paths, "folder_names_and_paths", {})
        m.setattr(folder_paths, "filename_list_cache", {})
        m.setattr(folder_paths, "output_directory", str(base / "output"))
        m.setattr(tuning, "MEASURED_PREDICTIONS", 2)
        m.setattr(tuning, "SAVE_EVERY", 1)
        model, clip, vae = tiny.model(), tiny.Clip(), tiny.Vae()
        b = SimpleNamespace(model=model, clip=clip, vae=vae, base=base)
        keys = [
            k
            for k in model.model.state_dict()
            if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        ]
        b.patch = types.UnlearnPatch(
            tuple((k, low_rank(weights.read(model, k), i)) for i, k in enumerate(keys)),
            weights.fingerprint(model, keys),
            ({"method": "m", "concepts": ["fox"], "settings": {}},),
        )
        b.saliency = run("ConceptSaliency", model=model, clip=clip, concepts=CONCEPTS, **FIA)[0]
        run("SaveUnlearnPatch", patch=b.patch, name="kept")
        run("SaveConceptSaliency", saliency=b.saliency, name="kept")
        b.before = snapshot(model)
        yield b


FIA = dict(prompts=2, steps=4, window=2, cfg=3.0, size=64, ceiling=0.2)


def low_rank(w, seed):
    q = torch.linalg.qr(torch.randn(w.shape[1], 2, generator=torch.Generator().manual_seed(seed)))[
        0
    ].T.contiguous()
    return adapters.LowRank.of(-(w @ q.T), q)


def applied(b, **more):
    """The patched MODEL's weights, and what its loaded layers answer."""
    import comfy.model_management as mm

    model = run(
        "ApplyUnlearnPatch",
        model=b.model,
        patches={"patch0": b.patch},
        strength=1.0,
        mismatch="warn",
        **more,
    )[0]
    mm.load_models_gpu([model])
    x = torch.ones(1, 4, 8, 8)
    return model.model.apply_model(
        x, torch.ones(1), c_crossattn=torch.ones(1, 77, 768), transformer_options={}
    )


def saliency(b, **more):
    found = run("ConceptSaliency", model=b.model, clip=b.clip, concepts=CONCEPTS, **FIA, **more)[0]
    return [r.columns for row in found.rankings for r in row]


def solve(b, **more):
    return run(
        "ScaPreSolve",
        model=b.model,
        clip=b.clip,
        concepts=CONCEPTS,
        templates="a {concept}",
        prior=False,
        **more,
    )[0]


def report(b):
    both = dict(before=b.model, after=patching.apply(b.model, b.patch)[0], clip=b.clip, vae=b.vae)
    return run("ErasureReport", **both, concepts=CONCEPTS, seeds=1, kept=1, steps=2, size=64)[
        2
    ].split("\n")[0]


def train(b, **more):
    return run(
        "DynamicMaskTrainer", model=b.model, clip=b.clip, concepts=CONCEPTS, **SCULPT, **more
    )[0]


def resumed(b):
    """Training that goes on where the last fault left it, and is then gone from the disk."""
    patch = train(b, resume="run")
    assert not list((b.base / "models" / "unlearn_training").glob("*"))
    return patch


def merged(b):
    found = run("MergeConceptSaliency", saliency={"saliency0": b.saliency}, model=b.model)[0]
    return len(found.rankings)


def fused(b):
    return run("NeuronMaskFuse", saliency={"saliency0": b.saliency}, r2=0.05)[0]


def loaded_saliency(b):
    return len(run("LoadConceptSaliency", name="kept.safetensors")[0].rankings)


def saved_lora(b):
    said = run("SaveUnlearnLoRA", model=b.model, patch=b.patch, name="new")[1]
    return said.split(" MB. ", 1)[1]  # before it stands whether a file was replaced


def saved_checkpoint(b):
    run("SaveUnlearnedCheckpoint", model=patching.apply(b.model, b.patch)[0])


def forecast(b):
    inputs = {"model": b.model, "clip": b.clip, "patch": b.patch, "concepts": CONCEPTS}
    return run("CollateralForecast", size=64, **inputs)[1]


JOBS = {
    "ConceptSaliency": lambda b: saliency(b),
    "ConceptSaliency wanda": lambda b: saliency(b, score="wanda"),
    "MergeConceptSaliency": merged,
    "NeuronMaskFuse": fused,
    "ScaPreSolve": lambda b: solve(b),
    "ScaPreSolve paper": lambda b: solve(b, variant={"variant": "paper"}),
    "DynamicMaskTrainer": lambda b: train(b),
    "DynamicMaskTrainer resume": lambda b: resumed(b),
    "DynamicMaskTrainer keep": lambda b: train(b, on_cancel="keep"),
    "ApplyUnlearnPatch": applied,
    "ApplyUnlearnPatch bypass": lambda b: applied(b, quantised="bypass"),
    "SaveUnlearnPatch": lambda b: run("SaveUnlearnPatch", patch=b.patch, name="new")[0],
    "LoadUnlearnPatch": lambda b: run("LoadUnlearnPatch", name="kept.safetensors")[0],
    "UnlearnPatchInfo": lambda b: run("UnlearnPatchInfo", patch=b.patch, model=b.model)[0],
    "SaveConceptSaliency": lambda b: run("SaveConceptSaliency", saliency=b.saliency, name="new")[0],
    "LoadConceptSaliency": loaded_saliency,
    "SaveUnlearnLoRA": saved_lora,
    "SaveUnlearnedCheckpoint": saved_checkpoint,
    "ErasureReport": lambda b: report(b),
    "CollateralForecast": forecast,
}


def snapshot(model):
    """What others share of a MODEL: the bits of its weights, and everything attached to it."""
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    h = hashlib.blake2b()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes())
    hung = [
        len(m._forward_hooks)
        + len(m._forward_pre_hooks)
        + len(m._backward_hooks)
        + len(getattr(m, "weight_function", ()))
        for m in model.model.modules()
    ]
    own = [(n, "forward" in vars(m), m.training) for n, m in model.model.named_modules()]
    held = [(p.requires_grad, p.grad is None, p.is_inference()) for p in model.model.parameters()]
    said = [
        model.patches,
        model.injections,
        model.wrappers,
        model.callbacks,
        model.attachments,
        model.object_patches,
        model.hook_patches,
    ]
    said += [
        model.weight_wrapper_patches,
        model.is_injected,
        model.skip_injection,
        model.force_cast_weights,
    ]
    return h.hexdigest(), hung, own, held, copy.deepcopy(said), repr(model.model_options)


def survived(b):
    """All that is shared is as it was, the modes of torch too, and no half file lies about."""
    assert (
        torch.is_inference_mode_enabled()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )
    assert snapshot(b.model) == b.before
    for path in b.base.rglob("*.*"):
        with safe_open(path, "pt") as f:  # whole, all of them, and none by another name
            assert path.suffix == ".safetensors" and f.keys()


class Fault:
    """Wraps ComfyUI's functions while a job runs: raises `error` at call `at`, or only counts."""

    def __init__(self, kind, at=0):
        import comfy.model_management as mm

        self.kind, self.at, self.n = kind, at, 0
        self.error = mm.InterruptProcessingException if kind == "cancel" else mm.OOM_EXCEPTION

    def __call__(self, real):
        def call(*args, **kwargs):
            self.n += 1
            if self.n == self.at:
                raise self.error("injected") if self.kind != "cancel" else self.error()
            return real(*args, **kwargs)

        return call

    @contextlib.contextmanager
    def standing(self):
        import comfy.lora
        import comfy.model_base
        import comfy.model_management as mm
        import comfy.utils
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        places = [
            (comfy.model_base.BaseModel, "apply_model"),
            (UNetModel, "forward"),
            (tiny.Clip, "encode_from_tokens"),
            (tiny.Vae, "decode"),
        ]
        if self.kind == "cancel":
            places += [
                (mm, "throw_exception_if_processing_interrupted"),
                (comfy.utils.ProgressBar, "update_absolute"),
            ]
        else:
            places += [
                (mm, "cast_to_device"),
                (comfy.lora, "calculate_weight"),
                (adapters.LowRank, "change"),
            ]
        with pytest.MonkeyPatch.context() as m:
            for owner, name in places:
                m.setattr(owner, name, self(getattr(owner, name)))
            yield self


def chosen(n, most):
    """Numbers of 1..n: the first three, the last two, and a spread."""
    return sorted(
        {1, 2, 3, n - 1, n, *(1 + round(i * (n - 1) / most) for i in range(most))}
        & set(range(1, n + 1))
    )


def alike(a, b):
    """The same, but for what smaller batches round otherwise."""
    if torch.is_tensor(a):
        return float((a - b).norm() / a.norm()) < 1e-3
    if isinstance(a, types.UnlearnPatch):

        def full(patch):
            return {k: e.change(torch.ones(e.shape), 1.0) for k, e in patch.edits}

        return a == b or all(
            alike(x, y) for x, y in zip(full(a).values(), full(b).values(), strict=True)
        )
    return len(a) == len(b) and all(map(alike, a, b)) if isinstance(a, list) else a == b


SHORT = {"MergeConceptSaliency", "NeuronMaskFuse", "UnlearnPatchInfo"} | {
    n for n in nodes if n.startswith(("Save", "Load"))
}
SLOW = {"ScaPreSolve", "ScaPreSolve paper", "CollateralForecast"}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("kind", ["cancel", "no memory"])
def test_every_stage_may_fail(bench, kind, job, tally):
    whole = JOBS[job](bench)  # once before, for some things are made once
    with Fault(kind).standing() as counted:
        JOBS[job](bench)
    survived(bench)
    assert counted.n > 10 or job in SHORT, "a long job that nobody can stop"
    for at in sorted({1, 2, counted.n // 2, counted.n}) if job in SLOW else chosen(counted.n, 8):
        with Fault(kind, at).standing() as fault:
            try:
                found = JOBS[job](bench)
            except fault.error:
                found = None
        if fault.n < at:  # it went on from where the last fault left it, and was done sooner
            assert "resume" in job and alike(whole, found)
            continue
        # A cancelled run with 'keep' gives what was learned so far. A run without memory takes a
        # smaller batch, and gives the same.
        if found is not None:
            assert job.endswith("keep") if kind == "cancel" else alike(whole, found), at
        found = None
        survived(bench)
        tally("faults")
    assert alike(whole, JOBS[job](bench))
    survived(bench)


FULL = OSError(errno.ENOSPC, "No space left on device")
WRITES = (
    "SaveUnlearnPatch",
    "SaveConceptSaliency",
    "SaveUnlearnLoRA",
    "SaveUnlearnedCheckpoint",
    "DynamicMaskTrainer resume",
)


@contextlib.contextmanager
def disk_full(at, share=0.5):
    """The disk fills up while file number `at` is written, at a share of its bytes.

    With share 1 it fills up when the file is to get its name.
    """
    import safetensors.torch

    written, real, replace = [0], safetensors.torch.save_file, os.replace

    def write(tensors, path, metadata=None):
        real(tensors, path, metadata)
        written[0] += 1
        if written[0] == at and share < 1:
            os.truncate(path, int(os.path.getsize(path) * share))
            raise FULL

    def rename(source, target):
        if written[0] == at:
            raise FULL
        replace(source, target)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(safetensors.torch, "save_file", write)  # as the host calls it
        for user in (files, states):
            if hasattr(user, "save_file"):
                m.setattr(user, "save_file", write)
        m.setattr(os, "replace", rename)
        yield written


@pytest.mark.parametrize("job", WRITES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_disk_fills_up(bench, job, share, tally):
    if job == "SaveUnlearnedCheckpoint" and share == 1.0:
        pytest.skip("the host writes whole checkpoints under their own name")
    JOBS[job](bench)  # an old file of the name
    held = {p: p.read_bytes() for p in bench.base.rglob("*.*")}
    assert held
    for at in (1, 3) if "resume" in job else (1,):
        with disk_full(at, share) as written:
            with pytest.raises(
                UnlearnError, match="cannot be written .*No space left.*; free disk space"
            ):
                JOBS[job](bench)
        assert written[0] == at
        kept = {
            p: p.read_bytes() for p in bench.base.rglob("*.*") if "unlearn_training" not in p.parts
        }
        assert kept == held
        survived(bench)
        tally("faults")
    JOBS[job](bench)
    survived(bench)


def test_a_full_disk_does_not_stop_a_solve(bench, tmp_path, tally):
    """Token states are kept on disk for the next time only."""
    prompts = pack.module("unlearn.host.text_encoding")
    wanted = [
        prompts.locate(bench.clip, "a photo of a {concept}", word)
        for word in ("fox", "cat", "house")
    ]
    for share in (0.0, 0.5, 1.0):
        with disk_full(1, share):
            found = states.TextStateCache(bench.clip, tmp_path).get(wanted)
        assert len(found) == 3 and not list(tmp_path.rglob("*.*"))
        tally("faults")
    once = states.TextStateCache(bench.clip, tmp_path).get(wanted)
    again = states.TextStateCache(bench.clip, tmp_path)
    assert (
        len(list(tmp_path.rglob("*.safetensors"))) == 1
        and again.get(wanted).keys() == once.keys()
        and not again.encoded
    )


def in_a_process_killed_after(seconds, work):
    """Runs work() in a copy of this process until it is killed; True when it was done before.

    What work() raises is printed, and fails the test.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(ended) or os.WEXITSTATUS(ended) == 0, "see what the copy printed"
    return os.WIFEXITED(ended)


def a_copy_can_train():
    """Whether gradients work in a copy of this process.

    They do not once autograd has started threads for a second device, as test_far_device does.
    """
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(RuntimeError):
            with torch.inference_mode(False), torch.enable_grad():
                torch.ones(1, requires_grad=True).sum().backward()
            code = 0
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def one_thread():
    """One thread, as in the processes it starts: with more, sums are rounded differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied")


def big_patch(method):
    """4 MB."""
    delta = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(ord(method)))
    edits = (("diffusion_model.x.weight", adapters.Delta.of(delta)),)
    return types.UnlearnPatch(
        edits, types.Fingerprint({}), ({"method": method, "concepts": [], "settings": {}},)
    )


@needs_fork
def test_killed_while_saving(tmp_path, tally):
    """At whatever moment a process dies, the name holds a whole patch: the old or the new one."""
    wide = [big_patch(method) for method in "ab"]
    folder, r = tmp_path / patch_files.FOLDER, random.Random(0)
    path = folder / "kept.safetensors"
    patch_files.save(path, wide[0])

    def work():
        for patch in itertools.cycle(reversed(wide)):
            patch_files.save(path, patch)

    seen = set()
    for _ in range(25):
        in_a_process_killed_after(r.uniform(0.01, 0.08), work)
        found, _ = patch_files.load(path)
        assert found in wide
        seen.add(found)
        assert (
            sum(p.name.endswith(".safetensors") for p in folder.iterdir()) == 1
        )  # halves have other endings: no list shows them
        tally("faults")
    assert len(seen) == 2
    for p in folder.iterdir():
        os.utime(p, (0, 0))  # an hour later
    patch_files.save(path, wide[0])
    assert [p.name for p in folder.iterdir()] == ["kept.safetensors"]


class Cut(BaseException):
    """Stands for the end of the process."""


def cut():
    raise Cut


@needs_fork
def test_killed_while_training(bench, tally, one_thread):
    """Training with `resume` goes on from the last whole step on disk, and ends with equal bits."""
    whole, r = train(bench), random.Random(1)
    start = time.perf_counter()
    train(bench)
    seconds = time.perf_counter() - start
    folder = bench.base / "models" / "unlearn_training"

    def saved():
        return folder.is_dir() and any(p.suffix == ".safetensors" for p in folder.iterdir())

    def work():
        train(bench, resume="run")

    for share in (0.5, 0.7, 0.9, 0.6, 0.8) if a_copy_can_train() else ():
        in_a_process_killed_after(seconds * share * r.uniform(0.8, 1.2), work)
        tally("faults")
    if not saved():  # no copy was killed, or the clock missed every step on a busy machine
        with pytest.MonkeyPatch.context() as m, contextlib.suppress(Cut):
            save = saved_run.save
            m.setattr(saved_run, "save", lambda *given: (save(*given), cut())[1])
            work()
        tally("faults")
    assert saved()
    assert train(bench, resume="run") == whole
    for p in folder.iterdir():
        assert not p.name.endswith(".safetensors")
        os.utime(p, (0, 0))  # an hour later
    files.sweep(folder)
    survived(bench)


def resident():
    """Bytes of memory in use, without what the allocator keeps for the next request."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize(
    "job, n",
    [
        ("ScaPreSolve", 10),
        ("ConceptSaliency", 10),
        ("DynamicMaskTrainer", 5),
        ("ApplyUnlearnPatch bypass", 20),
    ],
)
def test_memory_returns_to_its_level(bench, job, n):
    """Many runs, every second one cancelled, leave less than 20 MB or 1 % of memory behind."""
    with Fault("cancel").standing() as counted:
        JOBS[job](bench)

    def runs(n):
        for i in range(n):
            JOBS[job](bench)
            if i % 2:
                with (
                    Fault("cancel", counted.n // 2).standing() as fault,
                    contextlib.suppress(fault.error),
                ):
                    JOBS[job](bench)
        gc.collect()
        return resident()

    before = runs(2)
    assert runs(n) - before < max(20 * 2**20, before // 100)
    survived(bench)
