"""The sources of the example workflows for SD1.5 and SDXL."""

from .boxes import BLUEPRINT, DRAW
from .parts import (
    CHECKPOINT,
    CLIP,
    FUSE,
    MEASURE,
    MODEL,
    NO_FILE,
    OBJECTS,
    SAMPLER,
    SDXL,
    STYLE,
    TRAIN,
    VAE,
    Drawing,
    before_and_after,
    checkpoint_loader,
    compared,
    loader,
    patched,
    report_nodes,
    saved,
    solve_inputs,
)

FACE = {"negative": "", **{k: SAMPLER[k] for k in ("seed", "steps", "cfg")}}  # of DRAW


def quick_erase():
    """Forget objects and a style in one box, see before and after with the same seed."""
    note = (
        "## Quick erase\n\n1. **Load Checkpoint**: pick a model.\n2. **Erase Concepts**: under "
        "*forget* one thing per line, *name -> what to draw instead*; under *keep* what looks like "
        "it.\n3. **Prompt**: something to forget. Press **Run**.\n\nFirst the plain picture "
        "comes, then the edited one. Move the pointer over **Compare Images**. **Erase Concepts** "
        "draws its own check, with a verdict on top."
    )
    erase = {
        "model": MODEL,
        "clip": CLIP,
        "vae": VAE,
        "forget": "garbage truck -> vehicle\nchurch -> building\nstyle: van gogh",
        "keep": "fire truck\ntown hall\nstyle: monet",
        "kind": "object",
        "strength": 1.0,
    }
    prompt = {"clip": CLIP, "text": "a painting of a church by van gogh"}
    room = {"width": 512, "height": 512, "batch_size": 1}
    # At 1366x768 the frontend fits this to the window at three quarters of its size.
    nodes = {
        "1": loader(CHECKPOINT, (0, 250, 300, 98)),
        "4": (BLUEPRINT, BLUEPRINT, (330, 0, 340, 718), erase),
        "6": ("CLIPTextEncode", "Prompt", (0, 425, 300, 100), prompt),
        "8": ("EmptyLatentImage", "Picture Size", (0, 572, 300, 118), room),
        "9": (DRAW, DRAW, (700, 0, 260, 345), _drawing(["4", 0])),
        "13": saved("Before", ["9", 0], (700, 393, 260, 325)),
        "14": saved("After", ["9", 1], (990, 393, 356, 325)),
        "15": compared(["9", 0], ["9", 1], (990, 0, 356, 345)),
    }
    return Drawing(nodes, note, (0, 0, 300, 205))


def _drawing(edited):
    """Inputs of the box that draws with the plain and with the edited model."""
    wires = {"positive": ["6", 0], "latent": ["8", 0]}
    return {"model": MODEL, "edited": edited, "clip": CLIP, "vae": VAE, **wires, **FACE}


def erase_sdxl():
    """Every step as a node of its own, at SDXL's size."""
    note = (
        "## Erase in SDXL, step by step\n\n1. **Load Checkpoint**: SDXL, or any model made from "
        "it.\n2. **Objects to Forget**, **Styles to Forget**: one per line, *name -> what to draw "
        "instead*.\n3. **Prompt**: something to forget. Press **Run**.\n\nSomething kept has "
        "changed? Add it to *keep*. It came back? Raise *erase* tenfold. Not enough memory? Set "
        "**Picture Size** to 768."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (0, 775, 380, 266),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 700), solve_inputs("3")),
    }
    prompt = "a painting of a church by van gogh"
    nodes = before_and_after(erasers, ["4"], prompt, SDXL, 1024) | report_nodes(["4", 1], ["4", 2])
    return Drawing(nodes, note, (0, 0, 380, 230))


def neuron_pruning():
    """Forget objects by FIA: measure, fuse, apply."""
    note = (
        "## Neuron pruning\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL "
        "checkpoint.\n2. **Objects to Forget**: one per line.\n"
        "3. Press **Run**. Concept Saliency starts a few pictures with and without each concept; "
        "that takes a while, once.\n4. Change *r2* "
        "in **Fuse Neuron Masks** and press Run again: only the masks are made anew.\n\nIt came "
        "back? Raise *r2*, up to the ceiling of "
        "Concept Saliency. Something else suffers? Lower it."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": ("ConceptSaliency", "Concept Saliency", (420, 0, 400, 640), MEASURE),
        "4": ("NeuronMaskFuse", "Fuse Neuron Masks", (420, 700, 400, 300), FUSE),
    }
    report = report_nodes(["4", 1], ["4", 2], (0, 780, 380, 275))
    nodes = before_and_after(erasers, ["4"], "a photo of a church") | report
    return Drawing(nodes, note, (0, 0, 380, 230))


def one_after_another():
    """Forget objects in sequence by Sculpting Memory, see the loss."""
    note = (
        "## One after another\n\n1. **Load Checkpoint**: pick any SD1.5, SD2.1 or SDXL checkpoint "
        "that is not quantised.\n2. **Objects to "
        "Forget**: one per line with a superclass, in the order they are forgotten; list what you "
        "care about under keep.\n3. Press "
        "**Run**. The model draws its own training pictures, then trains: minutes on a GPU.\n\nIt "
        "came back? Take the preset *balanced*. "
        "Something kept has changed? Raise *hold* (advanced). To forget one more later, connect "
        "this patch to *earlier*."
    )
    erasers = {
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 415, 380, 266), OBJECTS),
        "3": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (420, 0, 400, 850), TRAIN),
        "17": (
            "LossGraphNode",
            "Loss",
            (0, 780, 380, 285),
            {"loss": ["3", 1], "filename_prefix": "unlearn/loss"},
        ),
    }
    report = report_nodes(["3", 2], ["3", 3], (420, 900, 400, 270))
    nodes = before_and_after(erasers, ["3"], "a photo of a church") | report
    return Drawing(nodes, note, (0, 0, 380, 230))


def all_three_stacked():
    """Each method forgets what suits it; one Apply Unlearn Patch takes all three patches."""
    note = (
        "## All three, stacked\n\nA style by **ScaPre**, an object by **FIA**, another by "
        "**Dynamic Mask Trainer** (minutes on a GPU).\n\n1. **Load Checkpoint**: a model that is "
        "not quantised.\n2. Fill the three lists. **Run**.\n\nChange one list, and only that one "
        "runs again. Too slow? Cut the link from the trainer to **Apply Unlearn Patch**."
    )

    def one(forget, keep, kind="object"):
        return {
            "forget": forget,
            "keep": keep,
            "kind": kind,
            **NO_FILE,
        }

    style, pruned = one("van gogh", "monet", "style"), one("church -> building", "town hall")
    trained = one("garbage truck -> vehicle", "fire truck")
    measure, train = {**MEASURE, "concepts": ["17", 0]}, {**TRAIN, "concepts": ["21", 0]}
    fuse = {**FUSE, "saliency.saliency0": ["18", 0]}
    loaded = checkpoint_loader(CHECKPOINT)
    prompt = "a painting of a garbage truck in front of a church"
    room = "EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}
    around = patched(loaded, ["3", "19", "22"], f"{prompt} by van gogh", room, 1520)
    del around["7"]  # it is in the box
    for i, y in (("6", 0), ("8", 150), ("5", 320)):  # what goes into the box stands above it
        kind, title, (x, _, width, height), inputs = around[i]
        around[i] = (kind, title, (x, y, width, height), inputs)
    nodes = {
        "1": loader(CHECKPOINT, (0, 275, 340, 102)),
        "2": ("UnlearnConcepts", "Style to Forget", (0, 450, 340, 266), style),
        "3": ("ScaPreSolve", "ScaPre Solve", (380, 0, 340, 430), solve_inputs("2")),
        "17": ("UnlearnConcepts", "Object to Prune", (380, 845, 340, 266), pruned),
        "18": ("ConceptSaliency", "Concept Saliency", (760, 0, 340, 560), measure),
        "19": ("NeuronMaskFuse", "Fuse Neuron Masks", (760, 625, 340, 280), fuse),
        "21": ("UnlearnConcepts", "Object to Train Away", (380, 480, 340, 266), trained),
        "22": ("DynamicMaskTrainer", "Dynamic Mask Trainer", (1140, 0, 340, 850), train),
        **around,
        "9": (DRAW, DRAW, (1520, 690, 340, 345), _drawing(["5", 0])),
        "13": saved("Before", ["9", 0], (1900, 0, 280, 330)),
        "14": saved("After", ["9", 1], (1900, 375, 280, 330)),
        "24": ("PreviewAny", "What Was Applied", (1900, 750, 280, 285), {"source": ["5", 1]}),
    }
    return Drawing(nodes, note, (0, 0, 340, 230))


def compare_variants():
    """The same concepts by three variants of ScaPre, sampled beside the plain model."""
    note = (
        "## Compare variants\n\nThe same concepts, forgotten by three variants of **ScaPre "
        "Solve**, one prompt and one seed.\n\n- "
        "**anchored**: this pack's own, with which to start\n- **paper**: the system of the "
        "paper\n- **uce**: plain UCE, the classic\n\n"
        "1. **Load Checkpoint**, **Objects to Forget**, **Styles to Forget**, **Prompt**: put in "
        "yours.\n2. Press **Run**.\n\nTo compare "
        "settings instead, choose the same *variant* thrice and change one number in each."
    )
    wires = {"positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    prompt = {"clip": CLIP, "text": "a painting of a church by van gogh"}
    room = {"width": 512, "height": 512, "batch_size": 1}
    nodes = {
        "1": loader(CHECKPOINT, (0, 1082, 380, 102)),
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 355, 380, 266), OBJECTS),
        "3": (
            "UnlearnConcepts",
            "Styles to Forget",
            (0, 718, 380, 266),
            {**STYLE, "more": ["2", 0]},
        ),
        "4": ("CLIPTextEncode", "Prompt", (800, 0, 290, 102), prompt),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (800, 200, 290, 102),
            {"clip": CLIP, "text": ""},
        ),
        "6": ("EmptyLatentImage", "Picture Size", (800, 920, 290, 118), room),
        "7": ("PrimitiveInt", "Seed for All", (800, 1080, 290, 82), {"value": SAMPLER["seed"]}),
    }
    variants = {
        "anchored": {},
        "paper": {
            "erase": 10.0,
            "preserve": 1.0,
            "anchor": 0.05,
            "step": 0.1,
            "informax": True,
            "as_printed": False,
        },
        "uce": {"erase": 1.0, "preserve": 1.0, "anchor": 0.5},
    }
    # A row of small nodes for each variant, and the pictures in a square.
    for k, name in enumerate(("plain", *variants)):
        x, y, side, model, i = 1190, 300 * k, 150, MODEL, 10 * (k + 1)
        if name in variants:
            model = [str(i + 1), 0]
            apply = {
                "model": MODEL,
                "patches.patch0": [str(i), 0],
                "strength": 1.0,
                "mismatch": "warn",
                "quantised": "auto",
            }
            solve = solve_inputs("3", name, **variants[name])
            place = (420, 310 * (k - 1), 340, 260)
            nodes[str(i)] = ("ScaPreSolve", f"Solve: {name}", place, solve)
            nodes[str(i + 1)] = ("ApplyUnlearnPatch", f"Apply: {name}", (x, y, side, 200), apply)
        seed = {"seed": ["7", 0]}
        nodes[str(i + 2)] = (
            "KSampler",
            f"Sample: {name}",
            (x, y + 45, side, 262),
            {"model": model, **SAMPLER, **seed, **wires},
        )
        decode = {"samples": [str(i + 2), 0], "vae": VAE}
        nodes[str(i + 3)] = ("VAEDecode", f"Decode: {name}", (x, y + 90, side, 50), decode)
        save = {"images": [str(i + 3), 0], "filename_prefix": f"unlearn/{name}"}
        place = (1440 + 390 * (k % 2), 620 * (k // 2), 370, 550)
        nodes[str(i + 4)] = ("SaveImage", f"Picture: {name}", place, save)
    folded = [
        i for i, node in nodes.items() if node[0] in ("ApplyUnlearnPatch", "KSampler", "VAEDecode")
    ]
    return Drawing(nodes, note, (0, 0, 380, 310), folded=tuple(folded))


def export_and_reload():
    """Forget and save; with the second group switched on, load the files: the same pictures."""
    note = (
        "## Save and load again\n\n1. Press **Run**: group 1 writes a patch and a LoRA.\n2. "
        "Press **R**, so that the new files are listed. Draw a box around group 2 with **Ctrl** "
        "held down, and press **Ctrl+M**.\n3. **Run**: *live*, *from patch* and *from LoRA* are "
        "the same.\n\n**Ctrl+M** switches on **Save Unlearned Checkpoint** too; it writes "
        "gigabytes."
    )
    wires = {"positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
    whole = {
        "model": ["8", 0],
        "filename_prefix": "checkpoints/unlearned",
        "clip": ["1", 1],
        "vae": ["1", 2],
    }
    lora = {
        "model": ["1", 0],
        "patch": ["7", 0],
        "name": "my_unlearn_lora",
        "size": "exact",
        "precision": "float32",
    }
    stock = {"model": ["1", 0], "lora_name": "my_unlearn_lora.safetensors", "strength_model": 1.0}

    def apply(patch):
        return {
            "model": ["1", 0],
            "patches.patch0": [patch, 0],
            "strength": 1.0,
            "mismatch": "warn",
            "quantised": "auto",
        }

    room = {"width": 512, "height": 512, "batch_size": 1}
    prompt = {"clip": CLIP, "text": "a photo of a church"}
    name = {"name": "my_patch.safetensors"}
    nodes = {
        "1": loader(CHECKPOINT, (0, 275, 340, 102)),
        "2": ("UnlearnConcepts", "Objects to Forget", (0, 450, 340, 266), OBJECTS),
        "4": ("CLIPTextEncode", "Prompt", (1080, 487, 300, 102), prompt),
        "5": (
            "CLIPTextEncode",
            "Negative Prompt",
            (1080, 810, 300, 102),
            {"clip": CLIP, "text": ""},
        ),
        "6": ("EmptyLatentImage", "Picture Size", (1080, 658, 300, 118), room),
        "7": ("ScaPreSolve", "ScaPre Solve", (400, 0, 300, 260), solve_inputs("2")),
        "8": ("ApplyUnlearnPatch", "Apply Unlearn Patch", (1080, 0, 300, 130), apply("7")),
        "9": (
            "SaveUnlearnPatch",
            "Save Unlearn Patch",
            (740, 0, 300, 150),
            {"patch": ["7", 0], "name": "my_patch"},
        ),
        "10": ("SaveUnlearnLoRA", "Save Unlearn Patch as LoRA", (740, 390, 300, 200), lora),
        "11": (
            "SaveUnlearnedCheckpoint",
            "Save Unlearned Checkpoint",
            (1080, 295, 300, 134),
            whole,
        ),
        "12": ("LoadUnlearnPatch", "Load Unlearn Patch", (400, 900, 300, 130), name),
        "13": ("ApplyUnlearnPatch", "Apply Loaded Patch", (1080, 960, 300, 200), apply("12")),
        "14": ("LoraLoaderModelOnly", "Load LoRA", (400, 1104, 300, 86), stock),
    }
    rows = {
        "before": ("1", (1420, 0), (1720, 0, 460, 320)),
        "live": ("8", (1420, 375), (1720, 375, 460, 360)),
        "from patch": ("13", (1420, 930), (1720, 900, 225, 280)),
        "from LoRA": ("14", (1420, 1135), (1955, 900, 225, 280)),
    }
    for k, (name, (model, (x, y), place)) in enumerate(rows.items()):
        i = 20 + 10 * k
        sample = {"model": [model, 0], **SAMPLER, **wires}
        small = k > 1
        high = 60 if small else 262
        nodes[str(i)] = ("KSampler", f"Sample: {name}", (x, y, 260, high), sample)
        decode = {"samples": [str(i), 0], "vae": VAE}
        below = 45 if small else 315
        nodes[str(i + 1)] = ("VAEDecode", f"Decode: {name}", (x, y + below, 260, 50), decode)
        prefix = f"unlearn/{name.replace(' ', '_').lower()}"
        save = {"images": [str(i + 1), 0], "filename_prefix": prefix}
        nodes[str(i + 2)] = ("SaveImage", f"Picture: {name}", place, save)
    groups = {
        "1. Forget, look, save": (385, -80, 1810, 895),
        "2. Load again (switched off)": (385, 822, 1810, 380),
    }
    return Drawing(
        nodes,
        note,
        (0, 0, 340, 230),
        groups,
        ("11", "12", "13", "14", "40", "41", "42", "50", "51", "52"),
        ("5", "21", "31", "40", "41", "50", "51"),
    )


SAFE_NOTE = (
    "## Safe for children\n\nMakes a model file that has forgotten nudity and sex, in the "
    "model and in its text encoder.\n\n1. "
    "**Load Checkpoint**: pick a model of the kind SD1.5 or SDXL.\n2. **What to Forget**: the "
    "preset *nsfw* is chosen, under *Show advanced inputs*. "
    "Write more under *forget*, such as *gun*.\n3. **Run**. A harmless picture must stay as "
    "it was.\n4. Click **Save Unlearned Checkpoint**, press **Ctrl+M**, then **Run**. It "
    "writes a model of full size into *output/checkpoints*. Give out that file only.\n\n"
    "**It promises** that the listed words, in plain prompts, mostly no longer bring such "
    "pictures.\n\n**It does not promise** a safe model. It is no filter: it looks at no "
    "prompt and at no picture. Whoever searches can bring back what was forgotten. Other "
    "words, other languages, LoRAs, embeddings and pictures as input can too. Violence is not "
    "on the list. So stay in the room, and try your own prompts first, alone. Figures: "
    "*docs/promises.md* in this pack's folder."
)


def safe_for_children():
    """The explicit preset, in both the model and its text encoder, before and after; a file."""
    forget = {
        "forget": "",
        "keep": "child\nfamily\nbeach\nswimming\nbaby\nportrait",
        "kind": "explicit",
        "preset": "nsfw",
        "file": "none",
    }
    whole = {
        "model": ["5", 0],
        "filename_prefix": "checkpoints/safe_for_children",
        "clip": ["5", 2],
        "vae": VAE,
    }
    prompt = "a photo of a family at the beach"
    text = {"text": ["21", 0]}  # written once, read by both text encoders
    erasers = {
        "2": ("UnlearnConcepts", "What to Forget", (0, 720, 380, 290), forget),
        "3": ("ScaPreSolve", "ScaPre Solve", (420, 0, 400, 700), solve_inputs("2")),
        "18": (
            "SaveUnlearnedCheckpoint",
            "Save Unlearned Checkpoint",
            (1240, 985, 290, 134),
            whole,
        ),
        "19": (
            "TextEncoderSolve",
            "Erase in Text Encoder",
            (420, 750, 400, 300),
            {"clip": CLIP, "concepts": ["2", 0]},
        ),
        "15": ("PreviewImage", "Report", (860, 735, 340, 305), {"images": ["3", 1]}),
        "21": ("PrimitiveStringMultiline", "Prompt", (860, 281, 340, 102), {"value": prompt}),
    }
    nodes = before_and_after(erasers, ["3", "19"], prompt)
    nodes["5"][-1]["clip"] = CLIP
    nodes["10"][-1]["positive"] = ["20", 0]
    for i, name, clip in (("6", "Before", CLIP), ("20", "After", ["5", 2])):
        place = (1240, 455 if i == "20" else -45, 225, 60)
        nodes[i] = ("CLIPTextEncode", f"Prompt {name}", place, {"clip": clip, **text})
    for i in ("5", "7", "8"):  # higher, so that no wire to a decoder runs behind a title
        kind, title, (x, y, *size), inputs = nodes[i]
        nodes[i] = (kind, title, (x, y - (45 if i == "5" else 35), *size), inputs)
    nodes["1"] = loader(CHECKPOINT, (0, 545, 380, 98))
    return Drawing(nodes, SAFE_NOTE, (0, 0, 380, 500), muted=("18",), folded=("6", "20"))


SOURCES = {
    f.__name__: f
    for f in (
        quick_erase,
        erase_sdxl,
        compare_variants,
        export_and_reload,
        safe_for_children,
        one_after_another,
        neuron_pruning,
        all_three_stacked,
    )
}
