"""The sources of the boxes: subgraphs that are shown as one node, blueprints in subgraphs/."""

from typing import NamedTuple

from .parts import NO_FILE, SAMPLER, solve_inputs


class Box(NamedTuple):
    """A subgraph that is shown as one node, a blueprint in subgraphs/.

    inputs: (name, type, [(node, input)]); outputs: (name, type, node, slot). about, words: what
    the frontend says of it, and finds it by. size: of the one node. shown: ids of the nodes whose
    pictures it shows.
    """

    nodes: dict
    inputs: tuple
    outputs: tuple
    about: str
    words: list
    size: tuple
    shown: tuple = ()


BLUEPRINT, DRAW = "Erase Concepts", "Draw Before and After"


def erase_concepts():
    """Solve, patch and report in one.

    ComfyUI runs first what is at most two nodes away from a node that shows something. The report
    is one. A switch keeps the solve three nodes away from it, so the plain pictures come first.
    Three more keep the edited model away from it, so that the edited pictures come before the
    report's.
    """
    solve = {k: v for k, v in solve_inputs("1").items() if k not in ("model", "clip")}
    report = {
        "concepts": ["1", 0],
        "after": ["8", 0],
        "seed": 0,
        "seeds": 1,
        "kept": 2,
        "steps": 20,
        "cfg": 7.0,
        "size": 0,
        "sampler": "ddim",
        "scheduler": "ddim_uniform",
        "templates": "",
    }
    nodes = {
        "1": (
            "UnlearnConcepts",
            "Concepts to Forget",
            (40, 60, 400, 330),
            {"forget": "", "keep": "", "kind": "object", **NO_FILE},
        ),
        "2": ("ScaPreSolve", "ScaPre Solve", (490, 60, 400, 700), solve),
        "3": (
            "ApplyUnlearnPatch",
            "Apply Unlearn Patch",
            (940, 60, 330, 210),
            {"patches.patch0": ["2", 0], "strength": 1.0, "mismatch": "warn", "quantised": "auto"},
        ),
        "4": (
            "ComfySwitchNode",
            "Plain Pictures First",
            (940, 330, 330, 100),
            {"switch": True, "on_true": ["3", 0]},
        ),
        "5": ("ErasureReport", "Erasure Report", (1320, 60, 400, 420), report),
    }
    for i, source in ((6, "4"), (7, "6"), (8, "7")):
        values = {"switch": True, "on_true": [source, 0]}
        place, title = (940, 150 * i - 420, 330, 100), f"Edited Pictures First, {i - 5} of 3"
        nodes[str(i)] = ("ComfySwitchNode", title, place, values)
    plain = [(i, "on_false") for i in (4, 6, 7, 8)]
    inputs = (
        ("model", "MODEL", [(2, "model"), (3, "model"), *plain, (5, "before")]),
        ("clip", "CLIP", [(2, "clip"), (5, "clip")]),
        ("forget", "STRING", [(1, "forget")]),
        ("keep", "STRING", [(1, "keep")]),
        ("kind", "COMBO", [(1, "kind")]),
        ("strength", "FLOAT", [(3, "strength")]),
        ("vae", "VAE", [(5, "vae")]),
    )
    outputs = (
        ("model", "MODEL", 4, 0),
        ("report_image", "IMAGE", 2, 1),
        ("report", "STRING", 2, 2),
        ("grid", "IMAGE", 5, 0),
        ("verdict", "STRING", 5, 2),
    )
    about = (
        "Makes a model forget: name what to forget and what to keep, one per line, and sample "
        "with the model that comes out. Draws before and after by itself, with a verdict."
    )
    words = ["erase", "forget", "unlearn", "remove", "concept", "censor", "nsfw", "style", "ban"]
    return _shifted(Box(nodes, inputs, outputs, about, words, (400, 780), (5,)), 200)


def draw_before_and_after():
    """Two samplers with one seed, and their pictures."""
    sample, again = ({**SAMPLER, "negative": ["5", 0]} for _ in range(2))
    nodes = {
        "1": ("KSampler", "Before", (400, 60, 300, 290), sample),
        "2": ("KSampler", "After", (400, 420, 300, 290), again),
        "3": ("VAEDecode", "Decode Before", (760, 60, 200, 60), {"samples": ["1", 0]}),
        "4": ("VAEDecode", "Decode After", (760, 420, 200, 60), {"samples": ["2", 0]}),
        "5": ("CLIPTextEncode", "Negative Prompt", (40, 60, 300, 110), {"text": ""}),
    }

    def both(name):
        return [(1, name), (2, name)]

    inputs = (
        ("model", "MODEL", [(1, "model")]),
        ("edited", "MODEL", [(2, "model")]),
        ("positive", "CONDITIONING", both("positive")),
        ("clip", "CLIP", [(5, "clip")]),
        ("latent", "LATENT", both("latent_image")),
        ("vae", "VAE", [(3, "vae"), (4, "vae")]),
        ("negative", "STRING", [(5, "text")]),
        ("seed", "INT", both("seed")),
        ("steps", "INT", both("steps")),
        ("cfg", "FLOAT", both("cfg")),
    )
    outputs = (("before", "IMAGE", 3, 0), ("after", "IMAGE", 4, 0))
    about = "Draws one prompt with two models, with the same seed."
    box = Box(nodes, inputs, outputs, about, ["compare", "before after"], (260, 345))
    return _shifted(box, 300)


def _shifted(box, by):
    """The box with other ids: the frontend renumbers inner nodes whose id an outer node has."""

    def moved(value):
        return [str(int(value[0]) + by), value[1]] if isinstance(value, list) else value

    nodes = {
        str(int(i) + by): (*node, {k: moved(v) for k, v in inputs.items()})
        for i, (*node, inputs) in box.nodes.items()
    }
    inputs = tuple((n, kind, [(i + by, k) for i, k in ends]) for n, kind, ends in box.inputs)
    outputs = tuple((n, kind, i + by, slot) for n, kind, i, slot in box.outputs)
    shown = tuple(i + by for i in box.shown)
    return box._replace(nodes=nodes, inputs=inputs, outputs=outputs, shown=shown)


OURS = ("UnlearnConcepts", "ScaPreSolve", "ApplyUnlearnPatch", "ErasureReport")  # in boxes
BOXES = {BLUEPRINT: erase_concepts, DRAW: draw_before_and_after}
