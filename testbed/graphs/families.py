"""The sources of the example workflows for other families than UNets.

Their loaders, files and settings are those of ComfyUI's own templates.
"""

from typing import NamedTuple

from .parts import (
    MODEL,
    OBJECTS,
    Drawing,
    Loaded,
    drawn_twice,
    patched,
    report_nodes,
    solve_inputs,
)

REPACKED = "https://huggingface.co/Comfy-Org/"
FILES = {  # name -> (folder of models/, address)
    "z_image_turbo_bf16.safetensors": (
        "diffusion_models",
        REPACKED + "z_image_turbo/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_3_4b.safetensors": (
        "text_encoders",
        REPACKED + "z_image_turbo/resolve/main/split_files/text_encoders/",
    ),
    "ae.safetensors": ("vae", REPACKED + "z_image_turbo/resolve/main/split_files/vae/"),
    "flux1-dev.safetensors": ("diffusion_models", REPACKED + "flux1-dev/resolve/main/"),
    "clip_l.safetensors": (
        "text_encoders",
        "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/",
    ),
    "t5xxl_fp16.safetensors": (
        "text_encoders",
        "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/",
    ),
    "qwen_image_fp8_e4m3fn.safetensors": (
        "diffusion_models",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": (
        "text_encoders",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/text_encoders/",
    ),
    "qwen_image_vae.safetensors": (
        "vae",
        REPACKED + "Qwen-Image_ComfyUI/resolve/main/split_files/vae/",
    ),
    "wan2.1_t2v_1.3B_fp16.safetensors": (
        "diffusion_models",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/diffusion_models/",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "text_encoders",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/",
    ),
    "wan_2.1_vae.safetensors": (
        "vae",
        REPACKED + "Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/",
    ),
    "anima-base-v1.0.safetensors": (
        "diffusion_models",
        "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files/diffusion_models/",
    ),
    "qwen_3_06b_base.safetensors": (
        "text_encoders",
        "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files/text_encoders/",
    ),
}


class Template(NamedTuple):
    """What ComfyUI's own template of a family has.

    files: of the model, the text encoders and the VAE. kind: what the loader of text encoders calls
    it. shift: (node, shift) before the sampler, if any. room: (node, inputs) of the empty latents.
    sampler: steps, cfg, sampler, scheduler. negative: a text, None where the prompt's conditioning
    is zeroed. fps: of a video, 0 for pictures.
    """

    files: tuple
    kind: str
    shift: tuple
    room: tuple
    sampler: tuple
    negative: str | None
    fps: float = 0


def _square(side, node="EmptySD3LatentImage"):
    return node, {"width": side, "height": side, "batch_size": 1}


Z_IMAGE = Template(
    ("z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors"),
    "lumina2",
    ("ModelSamplingAuraFlow", 3.0),
    _square(1024),
    (8, 1.0, "res_multistep", "simple"),
    None,
)
FLUX = Template(
    (
        "flux1-dev.safetensors",
        "clip_l.safetensors",
        "t5xxl_fp16.safetensors",
        "ae.safetensors",
    ),
    "flux",
    (),
    _square(1024),
    (20, 1.0, "euler", "simple"),
    None,
)
QWEN_IMAGE = Template(
    (
        "qwen_image_fp8_e4m3fn.safetensors",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors",
        "qwen_image_vae.safetensors",
    ),
    "qwen_image",
    ("ModelSamplingAuraFlow", 3.1),
    _square(1328),
    (20, 4.0, "euler", "simple"),
    "",
)
WAN = Template(
    (
        "wan2.1_t2v_1.3B_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        "wan_2.1_vae.safetensors",
    ),
    "wan",
    ("ModelSamplingSD3", 8.0),
    ("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 33, "batch_size": 1}),
    (30, 6.0, "uni_pc", "simple"),
    "blurry, static, worst quality, low quality",
    16.0,
)
ANIMA = Template(
    ("anima-base-v1.0.safetensors", "qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors"),
    "stable_diffusion",
    (),
    _square(1024, "EmptyLatentImage"),
    (30, 4.0, "euler", "simple"),
    "worst quality, low quality, score_1, score_2, score_3, blurry, jpeg artifacts, sepia",
)


def _loaders(template):
    """The loaders of a template's files, and the shift of its noise levels."""
    model, *encoders, vae = template.files
    given = {"clip_name": encoders[0]}
    if len(encoders) == 2:
        given = {f"clip_name{k}": name for k, name in enumerate(encoders, 1)}
    kind = "CLIPLoader" if len(encoders) == 1 else "DualCLIPLoader"
    inputs = {"unet_name": model, "weight_dtype": "default"}
    encoder = {**given, "type": template.kind, "device": "default"}
    nodes = {
        "1": ("UNETLoader", "Load Diffusion Model", (0, 295, 380, 90), inputs),
        "21": (kind, "Load CLIP", (0, 460, 380, 140), encoder),
        "22": ("VAELoader", "Load VAE", (0, 675, 380, 60), {"vae_name": vae}),
    }
    out = MODEL
    if template.shift:
        node, shift = template.shift
        inputs, out = {"model": MODEL, "shift": shift}, ["20", 0]
        nodes["20"] = (node, "Shift", (0, 460, 380, 60), inputs)
        nodes["21"] = (kind, "Load CLIP", (0, 567, 380, 140), encoder)
        nodes["22"] = ("VAELoader", "Load VAE", (0, 782, 380, 60), {"vae_name": vae})
    return Loaded(nodes, out, ["21", 0], ["22", 0])


def _of_family(template, prompt, note):
    """Quick erase with the loaders, files and settings of a template of ComfyUI's."""
    loaded, x = _loaders(template), 860
    solve = solve_inputs("2", model=loaded.model, clip=loaded.clip)
    steps, cfg, sampler, scheduler = template.sampler
    how = {
        "seed": 7,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": sampler,
        "scheduler": scheduler,
        "denoise": 1.0,
    }
    nodes = {
        **loaded.nodes,
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 920, 380, 266), OBJECTS),
        "4": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 560), solve),
        **patched(loaded, ["4"], prompt, template.room, x, template.negative),
        **drawn_twice(loaded, how, x + 380, template.fps),
        **report_nodes(["4", 1], ["4", 2], (420, 620, 400, 420), (860, 810, 340, 230)),
    }
    kind, title, (x, y, *size), inputs = nodes["8"]
    nodes["8"] = (kind, title, (x, y + 20, *size), inputs)  # below the wire to the first decoder
    return Drawing(nodes, note, (0, 0, 380, 250))


AT_THE_ENTRY = (
    "Text enters here through one layer, where it is erased, and is then mixed with the picture. "
    "So compare pictures, and raise *drift* to 0.3 where something comes back. Real models of this "
    "family have not been measured."
)
EXACT = (
    "Text enters here through keys and values alone, so what is erased there is gone. Raise "
    "*drift* to 0.3 where something comes back. Real models of this family have not been measured."
)


def _note(title, files, exact, more=""):
    return (
        f"## {title}\n\n1. The loaders name the files of ComfyUI's own template: {files}.\n2. "
        "**Objects to Forget**: one per line, *name -> what to draw instead*; list look-alikes "
        "under keep.\n3. Press **Run**. Before and After share one seed.\n\n"
        f"{exact}{more}\n\nLoRAs go before **ScaPre Solve**. Speed-up LoRAs may follow it."
    )


def erase_z_image():
    """Forget objects in Z-Image Turbo."""
    note = _note("Erase in Z-Image", "Z-Image Turbo, or any Z-Image model", AT_THE_ENTRY)
    return _of_family(Z_IMAGE, "a photo of a church", note)


def erase_flux():
    """Forget objects in Flux.1."""
    note = _note("Erase in Flux.1", "Flux.1 dev, or a model made from it", AT_THE_ENTRY)
    return _of_family(FLUX, "a photo of a church", note)


def erase_qwen_image():
    """Forget objects in Qwen-Image."""
    note = _note("Erase in Qwen-Image", "Qwen-Image, or a newer one", AT_THE_ENTRY)
    return _of_family(QWEN_IMAGE, "a photo of a church", note)


def erase_wan():
    """Forget objects in Wan 2.1, before and after as videos."""
    more = " Wan 2.2 has two models of 14B: solve and patch **each** of them."
    note = _note("Erase in Wan", "Wan 2.1 with 1.3B", EXACT, more)
    return _of_family(WAN, "a church on a hill, clouds moving over it", note)


def erase_anima():
    """Forget objects in Anima."""
    note = _note("Erase in Anima", "Anima Base", EXACT)
    return _of_family(ANIMA, "1girl standing in front of a church", note)


# Workflows of families that no small world has. They are drawn, loaded and checked, but not run.
FAMILIES = {
    f.__name__: f for f in (erase_z_image, erase_flux, erase_qwen_image, erase_wan, erase_anima)
}
