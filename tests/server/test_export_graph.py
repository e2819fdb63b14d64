"""Over HTTP: patch file, LoRA and checkpoints give the pictures of the live graph; the report."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from testbed import graphs, pack
from testbed.server import BASE, Failed, Server
from testbed.worlds import checkpoint

pytestmark = pytest.mark.server
NAME = "test_export"
MODELS, OUTPUT = BASE / "models", BASE / "output"
FILES = [
    MODELS / folder / f"{NAME}.safetensors"
    for folder in ("unlearn_patches", "loras", "diffusion_models")
]
FILES += [MODELS / "checkpoints" / f"{NAME}_{how}.safetensors" for how in ("stock", "own")]
FILES += [MODELS / "unlearn_patches" / f"{NAME}_{n}.safetensors" for n in ("one", "two")]


@pytest.fixture(scope="module")
def server(checkpoint):
    with Server(log=BASE / "test-server-export.log", leaves=FILES) as running:
        yield running


def node(name, /, **inputs):
    return {"class_type": name, "inputs": inputs, "_meta": {"title": name}}


def sampled(g, name, model):
    """Adds a sampler on a model's socket to the graph; its pictures come out of the node `name`."""
    wires = {"positive": ["text", 0], "negative": ["nothing", 0], "latent_image": ["size", 0]}
    g[f"{name} sampler"] = node(
        "KSampler",
        model=model,
        seed=5,
        steps=4,
        cfg=3.0,
        sampler_name="ddim",
        scheduler="ddim_uniform",
        denoise=1.0,
        **wires,
    )
    g[f"{name} decode"] = node("VAEDecode", samples=[f"{name} sampler", 0], vae=["load", 2])
    g[name] = node("SaveImage", images=[f"{name} decode", 0], filename_prefix="test/export")
    return g


def test_a_file_deleted_since_is_saved_again(server):
    """Case 12: the node's output was cached, so it named a file that was not there any more."""
    adapters, types = pack.module("unlearn.host.adapters"), pack.module("unlearn.types")
    folder = MODELS / "unlearn_patches"
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    edit = adapters.LowRank.of(torch.ones(8, 2), torch.ones(2, 8))
    said = ({"method": "m", "concepts": ["fox"]},)
    patch = types.UnlearnPatch(((key, edit),), types.Fingerprint({key: torch.ones(8)}), said)
    pack.module("unlearn.files.patch_file").save(folder / f"{NAME}_one.safetensors", patch)
    graph = {
        "load": node("LoadUnlearnPatch", name=f"{NAME}_one.safetensors"),
        "save": node("SaveUnlearnPatch", patch=["load", 0], name=f"{NAME}_two"),
    }
    saved = folder / f"{NAME}_two.safetensors"
    server.run(graph)
    before = saved.stat().st_mtime_ns
    server.run(graph)
    assert saved.stat().st_mtime_ns == before  # not a second time for nothing
    saved.unlink()
    server.run(graph)
    assert saved.is_file()


def plain():
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name=checkpoint.NAME),
        "text": node("CLIPTextEncode", clip=["load", 1], text="a photo of a fox"),
        "nothing": node("CLIPTextEncode", clip=["load", 1], text=""),
        "size": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    }


def erasing():
    """A small ScaPre patch, quick to solve, applied and sampled as `live`."""
    solve = graphs.source("erase_sdxl")
    solve = solve[graphs.titled(solve, "ScaPre Solve")]["inputs"]
    g = plain() | {
        "concepts": node(
            "UnlearnConcepts", forget="fox -> animal", keep="cat\nhouse", kind="object"
        ),
        "solve": node(
            "ScaPreSolve",
            **solve
            | {
                "model": ["load", 0],
                "clip": ["load", 1],
                "concepts": ["concepts", 0],
                "prior": False,
            },
        ),
        "apply": node(
            "ApplyUnlearnPatch",
            model=["load", 0],
            strength=1.0,
            mismatch="error",
            **{"patches.patch0": ["solve", 0]},
        ),
    }
    return sampled(g, "live", ["apply", 0])


def queue(server, g):
    """Queues a graph as the page does, with the workflow beside it."""
    body = {
        "prompt": g,
        "client_id": server.client,
        "extra_data": {"extra_pnginfo": {"workflow": {"made by": "test"}}},
    }
    return server.finish(server.post("/prompt", body)["prompt_id"])


def pictures(server, outputs, name):
    return [np.asarray(server.image(i), np.int16) for i in outputs[name]["images"]]


def metadata(path):
    with safe_open(path, "pt") as f:
        return f.metadata()


def newest(stem):
    return max((OUTPUT / "test").glob(f"{stem}_*.safetensors"), key=os.path.getmtime)


@pytest.fixture(scope="module")
def exported(server):
    """The live pictures, and every file written by one run."""
    g = erasing()
    socket, whole = {"model": ["apply", 0]}, {"clip": ["load", 1], "vae": ["load", 2]}
    g["patch"] = node("SaveUnlearnPatch", patch=["solve", 0], name=NAME)
    g["lora"] = node(
        "SaveUnlearnLoRA",
        model=["load", 0],
        patch=["solve", 0],
        name=NAME,
        size="exact",
        precision="float32",
    )
    g["stock"] = node("CheckpointSave", filename_prefix="test/stock", **socket, **whole)
    g["unet"] = node("ModelSave", filename_prefix="test/unet", **socket)
    g["own"] = node("SaveUnlearnedCheckpoint", filename_prefix="test/own", **socket, **whole)
    outputs = queue(server, sampled(g, "plain", ["load", 0]))
    for stem, path in (("unet", FILES[2]), ("stock", FILES[3]), ("own", FILES[4])):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(newest(stem), path)
    return outputs


def test_every_way_back_gives_the_live_pictures(server, exported):
    g = plain()
    g["patch"] = node("LoadUnlearnPatch", name=f"{NAME}.safetensors")
    g["apply"] = node(
        "ApplyUnlearnPatch",
        model=["load", 0],
        strength=1.0,
        mismatch="error",
        **{"patches.patch0": ["patch", 0]},
    )
    g["lora"] = node(
        "LoraLoaderModelOnly",
        model=["load", 0],
        lora_name=f"{NAME}.safetensors",
        strength_model=1.0,
    )
    g["unet"] = node("UNETLoader", unet_name=f"{NAME}.safetensors", weight_dtype="default")
    for how in ("stock", "own"):
        g[how] = node("CheckpointLoaderSimple", ckpt_name=f"{NAME}_{how}.safetensors")
    for name, source in (
        ("from patch", "apply"),
        ("from lora", "lora"),
        ("from unet", "unet"),
        ("from stock", "stock"),
        ("from own", "own"),
    ):
        sampled(g, name, [source, 0])
    outputs = queue(server, g)
    live, before = pictures(server, exported, "live"), pictures(server, exported, "plain")
    assert max(np.abs(a - b).max() for a, b in zip(live, before, strict=True)) > 60
    for name in ("from patch", "from lora", "from unet", "from stock", "from own"):
        again = pictures(server, outputs, name)
        assert (
            len(again) == 2
            and max(np.abs(a - b).max() for a, b in zip(live, again, strict=True)) <= 2
        ), name


def test_the_files_say_what_was_unlearned(exported):
    for path, where in ((FILES[4], "saved"), (FILES[3], "apply"), (FILES[2], "apply")):
        said = metadata(path)
        (entry,) = json.loads(said["unlearn"])[where]
        assert (
            entry["concepts"] == ["fox"]
            and entry["method"].startswith("ScaPre")
            and entry["strength"] == 1.0
        )
        assert json.loads(said["workflow"]) == {"made by": "test"} and json.loads(said["prompt"])
    assert json.loads(metadata(FILES[0])["concepts"]) == ["fox"]
    assert json.loads(metadata(FILES[1])["unlearn"])[0]["keep"] == ["cat", "house"]


def test_a_replaced_patch_file_is_loaded_again_and_a_damaged_one_refused(server, exported):
    g = plain()
    g["patch"] = node("LoadUnlearnPatch", name=f"{NAME}.safetensors")
    g["info"] = node("UnlearnPatchInfo", patch=["patch", 0], model=["load", 0])
    assert "for this very model" in server.run(g)["info"]["text"][0]
    with server.messages() as seen:
        server.run(g)
    assert not [
        m for m in seen if m["type"] == "executing" and m["data"].get("node") == "patch"
    ]  # cached
    whole = FILES[0].read_bytes()
    try:
        FILES[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Failed, match="is damaged") as error:
            server.run(g)
        assert len(str(error.value).strip().splitlines()) == 1
    finally:
        FILES[0].write_bytes(whole)
    assert "forgets: object: fox -> animal" in server.run(g)["info"]["text"][0]
    g["patch"]["inputs"]["name"] = "../../checkpoints/sprite_world.safetensors"
    with pytest.raises(Failed, match="not in list|not_in_list"):
        server.run(g)


def test_the_report_over_http(server):
    g = erasing()
    del g["live"]
    rest = {
        "clip": ["load", 1],
        "vae": ["load", 2],
        "concepts": ["concepts", 0],
        "seed": 1,
        "seeds": 1,
        "kept": 2,
        "steps": 4,
        "cfg": 3.0,
    }
    rest |= {"size": 64, "sampler": "ddim", "scheduler": "ddim_uniform"}
    for name, after in (("report", ["apply", 0]), ("same", ["load", 0])):
        g[name] = node("ErasureReport", before=["load", 0], after=after, **rest)
        for out, k in (("words", 2), ("metrics", 3)):
            g[f"{name} {out}"] = node("PreviewAny", source=[name, k])
    with server.messages() as seen:
        outputs = server.run(g)
    said = {k: v["text"][0] for k, v in outputs.items() if k.endswith(("words", "metrics"))}
    assert "Forgotten prompts" in said["report words"]
    assert said["same words"].startswith("Nothing changed.")
    found = json.loads(said["report metrics"])
    assert (
        found["forgotten"]["pixels"] > 0.1
        and len(found["shots"]) == 3
        and found["weights"]["touched"] > 0
    )
    assert server.image(outputs["report"]["images"][0]).width > 800
    steps = [
        m["data"] for m in seen if m["type"] == "progress" and m["data"].get("node") == "report"
    ]
    assert steps[-1]["value"] == steps[-1]["max"] == 2 * 3 * 4


def test_cancel_while_the_report_draws(server):
    g = erasing()
    rest = {
        "clip": ["load", 1],
        "vae": ["load", 2],
        "concepts": ["concepts", 0],
        "seed": 1,
        "seeds": 16,
        "kept": 4,
        "steps": 100,
        "cfg": 3.0,
    }
    rest |= {"size": 64, "sampler": "ddim", "scheduler": "ddim_uniform"}
    g = {k: v for k, v in g.items() if not k.startswith("live")}
    g["report"] = node("ErasureReport", before=["load", 0], after=["apply", 0], **rest)
    with server.messages() as seen:

        def drawing():
            return any(m["type"] == "progress" and m["data"].get("node") == "report" for m in seen)

        with pytest.raises(Failed, match="(?i)interrupt|Processing"):
            server.cancel(server.queue(g), when=drawing)
    assert server.run(sampled(plain(), "after", ["load", 0]))["after"]["images"]
