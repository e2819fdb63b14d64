"""The example workflows on a small world, and the picture that ComfyUI shows for each of them.

A picture is a sheet of what the workflow's own Save Image nodes saved. `dev.py tool
draw_example_pictures` draws them, on the emoji world; tests and `dev.py serve` use the same graphs.
"""

import re
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from testbed.worlds import captions

from . import graphs, judged
from .server import BASE

SIDE = 800
SECONDS = 1800  # that a workflow may take; the trainer is slow on a busy machine
INK, GONE, KEPT, PAPER = (28, 32, 38), (192, 66, 52), (46, 125, 90), (250, 250, 247)
SENTENCES = ("an image of {a}", "a drawing of {a}", "this is {a}")
SMALL = "on a small SD1.5-format model, same seeds"
# Pruning forgets a planted object, and nothing that the emoji model draws (docs/results/fia.md).
PRUNING = ("neuron_pruning", "all_three_stacked")


class Plan(NamedTuple):
    """An example workflow in a world.

    concepts: names by the title of the node that lists them. gone, kept: prompts that show
    forgotten concepts, and others. title: headline of the picture.
    """

    concepts: dict[str, tuple[str, ...]]
    gone: tuple[str, ...]
    kept: tuple[str, ...]
    title: str


def task_of(name, task=judged.SHOWN):
    """The Task that a workflow is shown on where the others are shown on this one."""
    return judged.SPRITES if name in PRUNING else task


def shown(task, name, k=0):
    """A prompt for an object or a style; k chooses the sentence, or the object in the style."""
    if name in task.world.styles:
        return captions.styled(task.others[k], name, "{a} by {style}").text
    return captions.plain(name, SENTENCES[k]).text


def erased(task, *names):
    """Prompts for what is forgotten, each in another sentence or with another object."""
    return tuple(shown(task, name, k) for k, name in enumerate(names))


def kept_prompts(task):
    """The look-alikes of the first two objects, and a style that stays."""
    alike = [task.world.twin[name] for name in task.forget[:2]]
    other = next(s for s in task.kept_styles if s not in task.pruned)
    return shown(task, alike[0]), shown(task, alike[1], 2), shown(task, other, 1)


def plans(task=judged.SHOWN):
    """Workflow -> its Plan in the world of a Task; those of PRUNING in that of task_of."""
    found = {**plans_without_pruning(task), **plans_with_pruning(task_of(PRUNING[0], task))}
    return {name: found[name] for name in graphs.SOURCES if name in found}


def plans_without_pruning(task):
    (first, second), style = task.forget[:2], task.style
    objects, kept = {"Objects to Forget": (first, second)}, kept_prompts(task)
    both = objects | {"Styles to Forget": (style,)}
    return {
        "quick_erase": Plan(
            {"Concepts to Forget": (first, second, style)},
            erased(task, first, second, style),
            kept,
            f"Quick erase: {first}, {second}, {style}\n{SMALL}",
        ),
        "erase_sdxl": Plan(
            both,
            erased(task, first, second, style),
            kept,
            f"Quick erase for SDXL\nhere the same {SMALL}",
        ),
        "one_after_another": Plan(
            objects,
            erased(task, first, second, first),
            kept,
            f"One after another: {first}, then {second}\n{SMALL}",
        ),
        "compare_variants": Plan(
            {"Objects to Forget": (first,), "Styles to Forget": (style,)},
            erased(task, first, style),
            kept[:1],
            f"Compare variants: {first}, {style}\n{SMALL}",
        ),
        "safe_for_children": Plan(
            {"What to Forget": (task.world.explicit_word,)},
            tuple(task.world.explicit(n, "an image of {x}").text for n in (first, second)),
            kept[:2],
            f"Safe for children: {task.world.explicit_word}\n{SMALL}",
        ),
        "export_and_reload": Plan(
            objects,
            erased(task, first, second),
            kept[:1],
            f"Export and reload: {first}, {second}\n{SMALL}",
        ),
    }


def plans_with_pruning(task):
    first, style, kept = task.forget[0], task.style, kept_prompts(task)
    pruned, again = task.pruned[0], task.pruned[-1]
    return {
        "neuron_pruning": Plan(
            {"Objects to Forget": task.pruned},
            erased(task, pruned, again, pruned),
            (shown(task, first), *kept[1:]),
            f"Neuron pruning: {', '.join(task.pruned)}\n{SMALL}",
        ),
        "all_three_stacked": Plan(
            {
                "Style to Forget": (style,),
                "Object to Prune": (pruned,),
                "Object to Train Away": (first,),
            },
            erased(task, style, pruned, first),
            (kept[2], kept[1], kept[0]),
            f"All three methods, stacked\n{SMALL}",
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


def small(name, task=judged.SHOWN, muted=False, quick=False):
    """A workflow in API format, with a world's checkpoint, concepts and sizes.

    quick: with as few steps as possible, for tests.
    """
    concepts, task = plans(task)[name].concepts, task_of(name, task)
    graph = graphs.to_api(graphs.load(name), muted)
    gone, side = [c for names in concepts.values() for c in names], 8 * task.world.size
    for title, names in concepts.items():
        inputs = graph[graphs.titled(graph, title)]["inputs"]
        names = [n for n in names if n not in preset_words(inputs["preset"])]
        forget = task.forget_lines(names, inputs["kind"])
        graphs.put(graph, title, forget=forget, keep=task.keep_lines(gone))
    train = {f"preset.{k}": v for k, v in (QUICK if quick else TRAINING).items()}
    puts = {
        "CheckpointLoaderSimple": {"ckpt_name": task.world.checkpoint},
        "EmptyLatentImage": {"width": side, "height": side},
        "KSampler": {"steps": 2 if quick else 12, "cfg": 3.0, "seed": 5},
        "ScaPreSolve": {"prior": not quick},
        "ErasureReport": {"steps": 2 if quick else 12, "cfg": 3.0, "size": side}
        | ({"kept": 1} if quick else {}),
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
        given = puts.get(node["class_type"], {}).items()
        linked = [k for k, v in node["inputs"].items() if isinstance(v, list)]
        node["inputs"].update({k: v for k, v in given if k not in linked})
        if node["class_type"] in ("ConceptSaliency", "DynamicMaskTrainer"):
            node["inputs"].update(cfg=3.0, size=side)
    return graph


def preset_words(name):
    """Names and aliases of a preset list; none of 'none'."""
    path = graphs.FOLDER.parent / "nodes" / "data" / "presets" / f"{name}.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line.partition(":")[2] for line in text.splitlines() if not line.startswith("#")]
    return {word.strip() for line in lines for word in re.split(r"->|[|,]", line)}


def label(title):
    """'Picture Before' -> 'before', 'Picture: from LoRA' -> 'from LoRA'."""
    name = title.removeprefix("Picture").strip(": ")
    return name[0].lower() + name[1:]


def runs(server, name, prompts, task=judged.SHOWN, quick=False):
    """What is saved for each prompt: [(label, picture), ...] in the order of the workflow's nodes.

    Nodes that are muted in the workflow run in a second round.
    """
    graph, whole = small(name, task, False, quick), small(name, task, True, quick)
    if len(whole) > len(graph):
        server.run(graph)
        graph = {i: n for i, n in whole.items() if n["class_type"] != "SaveUnlearnedCheckpoint"}
    saves = {i: n["_meta"]["title"] for i, n in graph.items() if n["class_type"] == "SaveImage"}
    found = []
    for text in prompts:
        outputs = server.run(graphs.say(graph, text), SECONDS)
        found.append(
            [
                (label(saves[i]), server.image(outputs[i]["images"][0]))
                for i in sorted(saves, key=int)
            ]
        )
    return found


# Headlines of workflows for families that no small world has. Their pictures are another's.
SHOWN_BY = "quick_erase"
FAMILY_TITLES = {
    "erase_z_image": "Erase in Z-Image",
    "erase_flux": "Erase in Flux.1",
    "erase_qwen_image": "Erase in Qwen-Image",
    "erase_wan": "Erase in Wan, as videos",
    "erase_anima": "Erase in Anima",
}
HEADLINES = 84  # pixels of a sheet above its pictures


def retitled(name):
    """The picture of a workflow in FAMILY_TITLES: what `SHOWN_BY` draws, under another headline."""
    with Image.open(graphs.path(SHOWN_BY).with_suffix(".jpg")) as drawn:
        out = drawn.convert("RGB")
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, 0, SIDE, HEADLINES), PAPER)
    _headlines(draw, f"{FAMILY_TITLES[name]}\nhere the same {SMALL}")
    return out


def _headlines(draw, title):
    for k, line in enumerate(title.split("\n")):
        draw.text((24, 12 + 38 * k), line, INK, ImageFont.load_default((34, 22)[k]))


def sheet(title, text, pictures):
    """A square picture: a headline, and two large pictures of one prompt, before and after.

    pictures: [(label, picture), ...]; the first and the second one are shown.
    """
    out = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default
    _headlines(draw, title)
    side, top = 384, 190  # three times the small pictures' own size
    for j, ((label, picture), colour) in enumerate(zip(pictures[:2], (KEPT, GONE), strict=True)):
        x = 12 + j * (side + 8)
        out.paste(picture.resize((side, side), Image.NEAREST), (x, top))
        draw.text((x + 6, top + side + 8), label, colour, font(40))
    draw.text((24, top + side + 90), text, INK, font(34))
    draw.text((24, top + side + 136), "the same seed", INK, font(24))
    return out
