"""The example workflows on the sprite world, and the picture that ComfyUI shows for each of them.

A picture is a sheet of what the workflow's own Save Image nodes saved. `dev.py tool
draw_example_pictures` draws them; tests and `dev.py serve` use the same graphs.
"""

from PIL import Image, ImageDraw, ImageFont

from testbed.worlds import checkpoint
from testbed.worlds.sprites import OBJECTS, STYLES, SUPERCLASS

from . import graphs
from .server import BASE

SIDE = 800
INK, GONE, KEPT, PAPER = (28, 32, 38), (192, 66, 52), (46, 125, 90), (250, 250, 247)
SMALL = "on a small SD1.5-format model, same seeds"
# Per workflow: the sprite world's concepts by node title, the prompts with forgotten concepts,
# the prompts with kept ones, and the headline.
BOTH = {"Objects to Forget": ("fox", "house"), "Styles to Forget": ("van gogh",)}
ERASED = (
    ("an image of a fox", "a drawing of a house", "a fish by van gogh"),
    ("an image of a cat", "this is a church", "an apple by warhol"),
)
PLANS = {
    "quick_erase": (BOTH, *ERASED, f"Quick erase: fox, house, van gogh\n{SMALL}"),
    "erase_sdxl": (BOTH, *ERASED, f"Quick erase for SDXL\nhere the same {SMALL}"),
    "neuron_pruning": (
        {"Objects to Forget": ("boat", "anchor")},
        ("an image of a boat", "a drawing of an anchor", "a drawing of a boat"),
        ("an image of a fox", "this is a church", "an apple by warhol"),
        f"Neuron pruning: boat, anchor\n{SMALL}",
    ),
    "one_after_another": (
        {"Objects to Forget": ("fox", "house")},
        ("an image of a fox", "a drawing of a house", "this is a fox"),
        ("an image of a cat", "this is a church", "an apple by warhol"),
        f"One after another: fox, then house\n{SMALL}",
    ),
    "all_three_stacked": (
        {
            "Style to Forget": ("van gogh",),
            "Object to Prune": ("boat",),
            "Object to Train Away": ("fox",),
        },
        ("a fish by van gogh", "an image of a boat", "a drawing of a fox"),
        ("an apple by warhol", "this is a church", "an image of a cat"),
        f"All three methods, stacked\n{SMALL}",
    ),
    "compare_variants": (
        {"Objects to Forget": ("fox",), "Styles to Forget": ("van gogh",)},
        ("a drawing of a fox", "a fish by van gogh"),
        ("an image of a cat",),
        f"Compare variants: fox, van gogh\n{SMALL}",
    ),
    "export_and_reload": (
        {"Objects to Forget": ("fox", "house")},
        ("an image of a fox", "a drawing of a house"),
        ("an image of a cat",),
        f"Export and reload: fox, house\n{SMALL}",
    ),
}
TRAINING = {
    "steps": 140,
    "stop_at": 0.7,
    "batch": 4,
    "held": 8,
    "learning_rate": 3e-4,
    "pictures": 8,
    "sampling_steps": 8,
    "captions": 8,
}
SAVED = [
    BASE / "models" / folder / f"my_{name}.safetensors"
    for folder, name in (("unlearn_patches", "patch"), ("loras", "unlearn_lora"))
]
QUICK = TRAINING | {
    "steps": 1,
    "batch": 1,
    "held": 1,
    "pictures": 1,
    "sampling_steps": 1,
    "captions": 1,
}


def small(name, muted=False, quick=False):
    """A workflow in API format, with the sprite world's checkpoint, concepts and sizes.

    quick: with as few steps as possible, for tests.
    """
    graph, concepts = graphs.to_api(graphs.load(name), muted), PLANS[name][0]
    gone = [c for names in concepts.values() for c in names]
    kept = "\n".join(c for c in (*OBJECTS, *STYLES) if c not in gone)
    for title, names in concepts.items():
        graphs.put(
            graph,
            title,
            forget="\n".join(f"{c} -> {SUPERCLASS[c]}" if c in SUPERCLASS else c for c in names),
            keep=kept,
        )
    train = {f"preset.{k}": v for k, v in (QUICK if quick else TRAINING).items()}
    puts = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint.NAME},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 2 if quick else 12, "cfg": 3.0, "seed": 5},
        "ScaPreSolve": {"prior": not quick},
        "ConceptSaliency": {"prompts": 1, "steps": 2, "window": 1}
        if quick
        else {"prompts": 8, "steps": 15, "window": 10},
        "DynamicMaskTrainer": {
            "preset": "custom",
            **train,
            "warmup": 1 if quick else 10,
            "refresh": 25,
            "hold": 5.0,
        },
    }
    for node in graph.values():
        node["inputs"].update(puts.get(node["class_type"], {}))
        if node["class_type"] in ("ConceptSaliency", "DynamicMaskTrainer"):
            node["inputs"].update(cfg=3.0, size=64)
    return graph


def label(title):
    """'Picture Before' -> 'before', 'Picture: from LoRA' -> 'from LoRA'."""
    name = title.removeprefix("Picture").strip(": ")
    return name[0].lower() + name[1:]


def runs(server, name, prompts, quick=False):
    """What is saved for each prompt: [(label, picture), ...] in the order of the workflow's nodes.

    Nodes that are muted in the workflow run in a second round.
    """
    graph, whole = small(name, False, quick), small(name, True, quick)
    if len(whole) > len(graph):
        server.run(graph)
        graph = {i: n for i, n in whole.items() if n["class_type"] != "SaveUnlearnedCheckpoint"}
    saves = {i: n["_meta"]["title"] for i, n in graph.items() if n["class_type"] == "SaveImage"}
    found = []
    for text in prompts:
        outputs = server.run(graphs.put(graph, "Prompt", text=text))
        found.append(
            [
                (label(saves[i]), server.image(outputs[i]["images"][0]))
                for i in sorted(saves, key=int)
            ]
        )
    return found


def sheet(title, forgotten, kept):
    """A square picture of two lists of (prompt, [(label, picture), ...]).

    Pairs of pictures stand in two columns; more pictures stand in one line for each prompt.
    """
    out = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default
    for k, line in enumerate(title.split("\n")):
        draw.text((24, 16 + 34 * k), line, INK, font((30, 22)[k]))
    pairs = len(forgotten[0][1]) == 2
    side = 176 if pairs else 172
    for column, (word, colour, shots) in enumerate(
        (("forgotten", GONE, forgotten), ("kept", KEPT, kept))
    ):
        for k, (text, pictures) in enumerate(shots):
            row = k if pairs else k + column * len(forgotten)
            x, y = (24 + 388 * column * pairs, 92 + 234 * row)
            draw.text((x, y), text, colour, font(22))
            draw.text((x + 8 + draw.textlength(text, font(22)), y + 6), word, colour, font(15))
            for j, (label, picture) in enumerate(pictures):
                at = (x + j * (side + (4 if pairs else 20)), y + 32)
                out.paste(picture.resize((side, side), Image.NEAREST), at)
                draw.text((at[0], at[1] + side + 2), label, INK, font(16))
    return out
