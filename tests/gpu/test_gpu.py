"""The pack on a real GPU, with ComfyUI's own memory management.

`UNLEARN_DEVICE=cuda python3 dev.py test tests/gpu` runs them; with UNLEARN_FLAGS they run in
another memory mode, as `dev.py bench gpu` does one after the other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testbed import device, pack, storages

pytestmark = pytest.mark.gpu
SIZE = 64
REFERENCE = """
import json, sys
import torch
import test_gpu
with torch.inference_mode():
    print("found", json.dumps(test_gpu.figures()))
"""


@pytest.fixture(scope="module")
def modules():
    pack.load()
    import comfy.model_management as mm

    return mm


def module(name):
    return pack.module(f"unlearn.{name}")


def tiny():
    from testbed import tiny as made

    pack.load()
    return made.model(), made.Clip()


def concepts():
    return module("concepts.notation").parse("fox -> animal\nstyle: van gogh", "cat\ndog")


def solved(model, clip, **settings):
    solve = module("closed_form.solve")
    chosen = solve.SolveSettings.of(prior=False, glance_size=SIZE, **settings)
    return solve.solve(model, clip, concepts(), chosen)[0]


def figures():
    """What must be the same on every device: edits, saliency, masks, and what training moved."""
    model, clip = tiny()
    _, edit = solved(model, clip).edits[0]
    found = {"solve": float(edit.change(torch.ones(edit.shape), 1.0).norm())}
    collection, masks = module("pruning.collection"), module("pruning.masks")
    settings = dict(prompts=2, steps=4, window=2, size=SIZE, cfg=3.0)
    for score in ("paper", "wanda"):
        saliency = collection.collect(model, clip, concepts(), score=score, **settings)[0]
        found[score] = [float(r.columns.norm()) for r in saliency.rankings[0]]
        found[f"{score} pruned"] = len(masks.fuse([saliency], r2=0.05)[0].edits)
    train, settings_of = module("sculpting.train"), module("sculpting.settings")
    short = dict(size=SIZE, steps=3, warmup=2, refresh=1, batch=1, held=2, pictures=2, captions=2)
    short |= dict(sampling_steps=2, stop_at=0.0, precision="fp32")
    made = train.train(model, clip, concepts(), settings_of.TrainingSettings(**short))
    found["losses"] = [float(x) for x in made.losses["loss"]]
    return found


def test_comfyui_runs_on_the_device(modules):
    assert modules.get_torch_device().type == device.name()


def test_the_patcher_is_the_one_that_users_get(modules):
    import comfy.model_patcher
    from comfy.cli_args import enables_dynamic_vram

    dynamic = enables_dynamic_vram() and modules.is_nvidia() and not modules.is_wsl()
    expected = "ModelPatcherDynamic" if dynamic else "ModelPatcher"
    assert comfy.model_patcher.CoreModelPatcher.__name__ == expected
    assert type(tiny()[0]).__name__ == expected


def test_every_method_agrees_with_the_cpu(modules):
    with torch.inference_mode():
        here = figures()
    there = reference()
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert value == pytest.approx(there[name], rel=0.03), name


def reference():
    """The figures of the CPU, which a run of several memory modes makes once."""
    kept = os.environ.get("UNLEARN_REFERENCE")
    if kept and os.path.exists(kept):
        with open(kept, encoding="utf-8") as file:
            return json.load(file)
    env = {k: v for k, v in os.environ.items() if k != "UNLEARN_FLAGS"} | {"UNLEARN_DEVICE": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", REFERENCE], env=env, capture_output=True, text=True, timeout=300
    )
    line = [x for x in ran.stdout.splitlines() if x.startswith("found ")]
    assert line, ran.stderr[-2000:]
    found = json.loads(line[-1].removeprefix("found "))
    if kept:
        with open(kept, "w", encoding="utf-8") as file:
            json.dump(found, file)
    return found


def test_a_solve_and_a_training_leave_the_device_as_it_was(modules):
    modules.unload_all_models()
    modules.soft_empty_cache()
    with torch.inference_mode():
        model, clip = tiny()
        solved(model, clip)  # loads what stays for good, such as the libraries' workspaces
        modules.unload_all_models()
        before = modules.get_free_memory(modules.get_torch_device())
        for _ in range(3):
            solved(model, clip)
        modules.unload_all_models()
        modules.soft_empty_cache()
        assert before - modules.get_free_memory(modules.get_torch_device()) < 64 * 2**20


@pytest.mark.parametrize("storage", ["fp16", "bf16", "fp8 storage", "fp8", "int8"])
@pytest.mark.parametrize("kind", ["prune", "lowrank", "delta"])
def test_an_edit_does_what_it_says(modules, storage, kind):
    """The layer answers as its weight with the edit, and as before when the plain model is back."""
    adapters, weights = module("host.adapters"), module("host.weights")
    patching, types = module("host.patching"), module("types")
    key = storages.KEYS[0]
    g = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        model = storages.model(storage)
        w = weights.read(model, key)
        edit = {
            "prune": lambda: adapters.Prune.of(torch.rand(w.shape, generator=g) > 0.8, *w.shape),
            "lowrank": lambda: adapters.LowRank.of(
                torch.randn(len(w), 2, generator=g) * 0.02, torch.randn(2, w.shape[1], generator=g)
            ),
            "delta": lambda: adapters.Delta.of(torch.randn(w.shape, generator=g) * 0.01),
        }[kind]()
        patch = types.UnlearnPatch(((key, edit),), weights.fingerprint(model, [key]))
        patched = patching.apply(model, patch)[0]

        def answers(of):
            modules.load_models_gpu([of])
            layer = of.model.get_submodule(key.removesuffix(".weight"))
            dtype = of.model.manual_cast_dtype or of.model.get_dtype()
            unit = torch.eye(layer.in_features, dtype=dtype, device=of.load_device)
            return layer(unit).float().T.cpu()

        plain = answers(model)
        expected = w + edit.change(w, 1.0)
        error = (answers(patched) - expected).norm() / expected.norm()
        assert error < 0.06
        again = answers(model)
        assert (again - plain).norm() <= 1e-3 * plain.norm()
