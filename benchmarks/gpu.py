"""`dev.py bench gpu`: everything that only a GPU can tell, in one run of less than eight minutes.

    UNLEARN_DEVICE=cuda python3 dev.py bench gpu

It runs the tests marked `gpu` in every memory mode of ComfyUI, and measures solve, reading of text,
saliency, training, patch application, peak memory, and whether pictures of the demo's world are
what they are on the CPU. It writes docs/results/gpu.json and gpu.md. Each part is a process of its
own with a time limit, so a part that fails leaves the others their time. With UNLEARN_DEVICE=cpu it
is a dry run at tiny sizes, which writes into the folder --out alone.

A machine without a network needs a folder `wheels` beside dev.py with ComfyUI's archive and all
packages but torch. --wheels prints the commands that fill it where there is a network.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dev import RUN_MODULE
from testbed import device, pack

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results"
MODES = ("", "--lowvram", "--novram", "--highvram", "--disable-dynamic-vram")
LIMIT = 470  # seconds of the whole run
PART_LIMIT = {"tests": 240, "pictures": 120}  # seconds of a part, 80 for the others
MODE_LIMIT = 75  # seconds of the tests in one memory mode
DRY_LIMIT = 1500  # seconds of a part in a dry run, which may share its machine
PARTS = ("solve", "reading", "saliency", "training", "applying", "pictures", "tests")
# What ComfyUI's modules and the tests import; torch comes with the machine.
WHEELS = (
    "comfy-kitchen comfy-aimdo torchsde trampoline einops transformers tokenizers sentencepiece "
    "safetensors huggingface_hub regex aiohttp yarl multidict propcache frozenlist aiosignal attrs "
    "aiohappyeyeballs idna pyyaml Pillow scipy tqdm psutil alembic Mako SQLAlchemy filelock av "
    "requests urllib3 certifi charset-normalizer simpleeval blake3 kornia kornia_rs spandrel "
    "pydantic pydantic_core pydantic-settings annotated-types typing-inspection python-dotenv "
    "numpy packaging pytest pluggy iniconfig Pygments pytest-xdist execnet hypothesis "
    "sortedcontainers"
).split()


def tiny():
    """Whether this is a dry run."""
    return not device.on_gpu()


def limit_of(name):
    """Seconds that a part may take."""
    return DRY_LIMIT if tiny() else PART_LIMIT.get(name, 80)


def synchronised():
    if device.name() == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def peak():
    """A dict that gets `peak_mb`: device memory at the peak above what there was before."""
    found = {}
    gc.collect()
    if device.name() != "cuda":
        yield found
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield found
    found["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)


def timed(do, times=3):
    """Median seconds of a call."""
    seconds = []
    for _ in range(times):
        synchronised()
        start = time.perf_counter()
        do()
        synchronised()
        seconds.append(time.perf_counter() - start)
    return round(sorted(seconds)[times // 2], 4)


def half_model(shape):
    """A MODEL of a true shape in fp16; in a dry run a tiny one."""
    from testbed import shapes
    from testbed import tiny as made

    pack.load()
    if tiny():
        return made.model()
    return shapes.random_model(shape, dtype=torch.float16)


def text_encoder():
    from testbed import tiny as made

    return made.Clip()


def solve():
    """100 concepts on the true shapes, on the CPU as the pack does it and on the device."""
    from .scale import scapre as bench

    widths = {"SD1.5": (bench.SD15_WIDTHS, 768), "SDXL": (bench.SDXL_WIDTHS, 2048)}
    if tiny():
        widths = {"tiny": ([32], 64)}
    found = {}
    for shape, (rows, width) in widths.items():
        given = bench.problem(100 if not tiny() else 4, rows, width)
        found[shape] = row = {"cpu_seconds": timed(lambda g=given: bench.timed(g, 100.0, 1, True))}
        if device.name() not in ("cuda", "xpu"):
            continue  # MPS has no float64
        layers, weights, *rest = given
        there = [
            [x.to(device.name()) for x in layers],
            [x.to(device.name()) for x in weights],
            *(x.to(device.name()) for x in rest),
        ]
        with peak() as taken:
            row["device_seconds"] = timed(lambda g=there: on_device(g))
        row |= taken
    return found


def on_device(given):
    """As `scapre.timed`, with the identity of the moments made where the states are."""
    from .scale import scapre as bench

    layers, weights, c, _, omega, keep = given
    with torch.device(c.device):
        bench.ours(layers, weights, *bench.moments(c, None, omega, keep), 100.0)


def reading():
    """Reading captions with a text encoder of CLIP ViT-L's size: in full and as a prefix tree."""
    from testbed.worlds.studio import studio

    clip, captions = studio().clip, pack.module("unlearn.concepts.sentences").prior_sentences()
    encoding = pack.module("unlearn.host.text_encoding")
    fast = pack.module("unlearn.host.fast_text_encoder")
    kept = pack.module("unlearn.files.text_cache").kept_positions
    prompts = [encoding.whole(clip, text) for text in captions[: 3 if tiny() else 160]]
    texts = [prompt.text for prompt in prompts]
    sizes = pack.module("unlearn.host.reading_batch")
    tree, chosen = fast.unchecked(clip, kept), sizes.fitting
    encoding.encode(clip, texts[:2])  # loads the encoder
    usual, most = chosen(clip), len(texts)
    found = {"texts": most, "chosen": {"texts": usual.texts, "positions": usual.positions}}
    times = 1 if tiny() else 3

    def measure(name, batch, read):
        sizes.fitting = lambda clip: batch
        row = found[name] = {}
        with peak() as taken:
            row["seconds"] = timed(read, times)
        row |= taken

    try:
        for count in (2,) if tiny() else (16, 64, 160):
            batch = sizes.ReadingBatch(count, most)
            measure(f"in full, {count} at once", batch, lambda: encoding.encode(clip, texts))
        for positions in (64,) if tiny() else (320, 1280, 5120):
            batch = sizes.ReadingBatch(most, positions)
            name = f"as a tree, {positions} positions at once"
            measure(name, batch, lambda: tree.encode(prompts))
        measure("as a tree, as chosen", usual, lambda: tree.encode(prompts))
    finally:
        sizes.fitting = chosen
    return found


def saliency():
    """Measuring a concept in fp16 at 512 pixels, beside plain sampling of the same prompts."""
    from .world.fia import Nothing, lockstep, saliency_prompts
    from .world.fia import saliency as collection

    model, clip, size = half_model("SD1.5"), text_encoder(), 64 if tiny() else 512
    prompts, window = (2, 1) if tiny() else (5, 4)
    concepts = pack.module("unlearn.concepts.notation").parse("cat")
    groups = saliency_prompts.build_groups(clip, concepts.concepts, prompts)
    texts = [text for *_, part in groups for text in part]
    plan = lockstep.SamplingPlan(
        texts,
        [1244 + i % prompts for i in range(len(texts))],
        [list(range(i, i + prompts)) for i in range(0, len(texts), prompts)],
        steps=50,
        window=window,
        cfg=7.5,
        size=size,
    )
    lockstep.sample(model, clip, plan, Nothing())  # loads the model
    found = {"plain_seconds": timed(lambda: lockstep.sample(model, clip, plan, Nothing()))}
    for score in ("paper", "wanda"):
        how = dict(prompts=prompts, steps=50, window=window, cfg=7.5, size=size, score=score)
        with peak() as taken:
            seconds = timed(lambda h=how: collection.collect(model, clip, concepts, **h), 1)
        over = round(seconds / found["plain_seconds"], 2)
        found[score] = {"seconds": seconds, "over_plain": over, **taken}
    return found


def training():
    """A step of training on SD1.5's shape, beside the passes of the same rows alone."""
    from .scale import scaling
    from .world.dynamic_mask import trainer_of

    model, clip = half_model("SD1.5"), text_encoder()
    short = {"batch": 1, "held": 2} if tiny() else {"batch": 2, "held": 4}
    short |= {"pictures": 2, "captions": 2, "warmup": 2, "refresh": 3, "stop_at": 0.0, "steps": 8}
    short |= {"size": 64 if tiny() else 512, "sampling_steps": 2}
    settings = scaling.settings_of.TrainingSettings(**{**scaling.LEARNING, **short})
    times = []
    with peak() as taken, torch.inference_mode(False), torch.enable_grad():
        trainer = trainer_of(model, clip, scaling.kept_alike(scaling.ORDER[:1]), settings)

        def before_step():
            synchronised()
            times.append(time.perf_counter())

        trainer.run(before_step)
        passes = timed(lambda: rows_alone(trainer))
    each = sorted(b - a for a, b in zip(times[2:], times[3:], strict=False))  # behind the warm-up
    step = round(each[len(each) // 2], 4)
    return {
        "step_seconds": step,
        "passes_seconds": passes,
        "over": round(step / passes, 2),
        **taken,
    }


def rows_alone(trainer):
    """One forward and backward pass of as many rows as a step of training has."""
    network, n = trainer.network, trainer.settings.rows_per_step
    x = torch.zeros(n, *trainer.data.shape, device=network.device)
    prediction = network.predict(network.student, x, network.levels([0.5] * n), [0] * n)
    torch.autograd.grad(prediction.square().mean(), trainer.weights)


def applying():
    """Loading a model with a patch of rank 64 on all keys and values, and without it."""
    import comfy.model_management as mm

    adapters, patching = pack.module("unlearn.host.adapters"), pack.module("unlearn.host.patching")
    types, weights = pack.module("unlearn.types"), pack.module("unlearn.host.weights")
    layers = pack.module("unlearn.host.architectures").cross_attention
    found = {}
    for shape in ("SD1.5",) if tiny() else ("SD1.5", "SDXL"):
        model = half_model(shape)
        edits = []
        for layer in layers(model):
            d_out, d_in = weights.shape(model, layer.key)
            edit = adapters.LowRank.of(torch.zeros(d_out, 64), torch.zeros(64, d_in))
            edits.append((layer.key, edit))
        fingerprint = weights.fingerprint(model, [key for key, _ in edits])
        patched = patching.apply(model, types.UnlearnPatch(tuple(edits), fingerprint))[0]

        def load(which):
            mm.unload_all_models()
            mm.load_models_gpu([which])

        load(model)
        row = {"plain_seconds": timed(lambda m=model: load(m))}
        with peak() as taken:
            row["patched_seconds"] = timed(lambda p=patched: load(p))
        found[shape] = row | taken
        del model, patched
    return found


def pictures():
    """What the judge sees in pictures of the demo's world before and after, here and on the CPU."""
    here = seen()
    env = {k: v for k, v in os.environ.items() if k != "UNLEARN_FLAGS"} | {"UNLEARN_DEVICE": "cpu"}
    there = part_in_process("seen", env, limit_of("pictures"))
    pairs = list(zip(here["names"], there.get("names", []), strict=False))
    same = sum(a == b for a, b in pairs)
    return {"pictures": len(here["names"]), "seen_alike_on_the_cpu": same}


def seen():
    """Names that the judge gives to pictures before and after three objects are forgotten."""
    from testbed import trial

    world = "sprites"
    studio = trial.studio(world)
    objects = list(studio.judge.world.objects)
    gone, kept = objects[:3], objects[3 : 4 if tiny() else 9]
    lines = "\n".join(f"{name} -> thing" for name in gone)
    patch = trial.solve(lines, "\n".join(objects[3:]), world=world, prior=not tiny())[0]
    model = trial.apply(patch, world=world)[0]
    names = []
    for name in [*gone, *kept][: 2 if tiny() else None]:
        for which in (studio.model, model):
            shots = [trial.captions.plain(name, trial.SENTENCES[0])] * (1 if tiny() else 4)
            looks = studio.look(shots, seed=500, model=which, steps=8)
            names += [look.names[0] for look in looks]
    return {"names": names}


def tests():
    """The tests marked `gpu`, in every memory mode; the first mode alone in a dry run."""
    found = {}
    reference = Path(tempfile.mkdtemp()) / "cpu.json"  # what the CPU gives, made by the first mode
    for flags in MODES[:1] if tiny() else MODES:
        start = time.perf_counter()
        paths = os.pathsep.join(p for p in sys.path if p)
        env = {**os.environ, "UNLEARN_FLAGS": flags, "PYTHONPATH": paths}
        env["UNLEARN_REFERENCE"] = str(reference)
        command = [sys.executable, "-c", RUN_MODULE, "pytest", "-q", "-m", "gpu", "tests/gpu"]
        limit = DRY_LIMIT if tiny() else MODE_LIMIT
        try:
            ran = subprocess.run(
                command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            found[flags or "default"] = {"failures": [f"stopped after {limit} s"]}
            continue
        counts = dict(
            (word, int(n))
            for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", ran.stdout)
        )
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.M)
        seconds = round(time.perf_counter() - start, 1)
        found[flags or "default"] = {**counts, "failures": failed, "seconds": seconds}
    return found


def part_in_process(name, env=None, limit=100):
    """What a part gives, run in a process of its own; {"error": ...} where it fails."""
    command = [sys.executable, "-c", RUN_MODULE, "benchmarks.gpu", "--part", name]
    env = {**(env or os.environ), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {limit} s"}
    lines = [x for x in ran.stdout.splitlines() if x.startswith("part ")]
    if ran.returncode or not lines:
        return {"error": (ran.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(lines[-1].removeprefix("part "))


def machine():
    """What ran: the device, and versions."""
    import comfyui_version

    name = platform.processor() or platform.machine()
    if device.name() == "cuda":
        name = torch.cuda.get_device_name()
    commit = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": device.name(),
        "name": name,
        "torch": torch.__version__,
        "comfyui": comfyui_version.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "dry_run": tiny(),
    }


def table(result):
    """The figures as a page."""
    about = result["machine"]
    lines = [
        "# On a GPU",
        "",
        f"Command: `UNLEARN_DEVICE={about['device']} python3 dev.py bench gpu`. Commit "
        f"{about['commit']}, {about['date']}, on {about['name']} with torch {about['torch']} and "
        f"ComfyUI {about['comfyui']}, in {result['seconds']} s.",
    ]
    if about["dry_run"]:
        lines.append("\nThis was a dry run at tiny sizes: its figures say nothing.")
    for name in PARTS:
        doc = (globals()[name].__doc__ or "").strip()
        lines += ["", f"## {name.capitalize()}", "", doc, "", "| what | figure |", "|---|---|"]
        lines += [f"| {what} | {figure} |" for what, figure in flat(result[name])]
    return "\n".join(lines) + "\n"


def flat(value, name=""):
    """(name, figure) of all entries of nested dicts."""
    if not isinstance(value, dict):
        yield name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value
        return
    for key, part in value.items():
        yield from flat(part, f"{name}: {key}" if name else str(key))


def commands():
    """What fills the folder `wheels` for Python 3.12 on Linux."""
    from dev import HOST_PACKAGE, HOST_VERSION

    tags = " ".join(f"--platform manylinux_2_{n}_x86_64" for n in (34, 31, 28, 27, 24, 17, 5))
    pip = f"python3 -m pip download --no-deps -d wheels --python-version 3.12 {tags}"
    return [
        *(f"{pip} --only-binary=:all: {line}" for line in wanted()),
        "python3 -m pip download --no-deps --ignore-requires-python -d wheels "
        f"--no-binary={HOST_PACKAGE} {HOST_PACKAGE}=={HOST_VERSION}",
    ]


def wanted():
    """Lines `name==version` of the packages that must lie in `wheels`."""
    found = []
    for name in WHEELS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name}=={importlib.metadata.version(name)}")
    return found


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--part", choices=(*PARTS, "seen"), help="run one part and print its figures")
    p.add_argument("--out", type=Path, default=None, help="folder of gpu.json and gpu.md")
    p.add_argument("--wheels", action="store_true", help="print what fills the folder wheels")
    given = p.parse_args()
    if given.wheels:
        print("\n".join(commands()))
        return 0
    if given.part:
        pack.load()
        with torch.inference_mode(given.part != "tests"):
            print("part", json.dumps(globals()[given.part]()), flush=True)
        return 0
    if device.absent():
        raise SystemExit(device.absent())
    start = time.perf_counter()
    out = given.out or (Path(tempfile.mkdtemp()) if tiny() else OUT)
    result = {"machine": machine()}
    for name in PARTS:
        left = DRY_LIMIT if tiny() else LIMIT - (time.perf_counter() - start)
        limit = min(limit_of(name), left)
        result[name] = part_in_process(name, limit=limit) if left > 5 else {"error": "no time left"}
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    result["seconds"] = round(time.perf_counter() - start)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(table(result), encoding="utf-8")
    print(f"results: {out / 'gpu.json'} and {out / 'gpu.md'}, {result['seconds']} s")
    errors = [name for name in PARTS if "error" in result[name]]
    modes = [mode for mode in result["tests"].values() if isinstance(mode, dict)]
    failures = [test for mode in modes for test in mode["failures"]]
    for line in (*errors, *failures):
        print(f"failed: {line}")
    return 1 if errors or failures else 0


if __name__ == "__main__":
    sys.exit(main())
