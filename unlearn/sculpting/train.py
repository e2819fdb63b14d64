"""Sculpting Memory on a ComfyUI model: what to train on is planned and drawn, the rounds are run, and what moved becomes a patch.

Variants: `released` trains overwrite and alignment, as the authors' code computes; `intended` adds distillation under the superclass;
`replay` distils everything else too: what earlier rounds made forgotten, the keep list, everyday captions and the empty prompt.
"""

import time

import comfy.model_management
import torch

from ..analysis import charts
from ..concepts.notation import format_concept
from ..errors import UnlearnError
from ..host import patching, progress, weights
from ..host.adapters import Delta, LowRank
from ..host.architectures import native_size
from ..host.batched_sampling import latent_shape
from ..host.training_network import Network, conditioning, layers
from ..types import UnlearnPatch
from ..version import VERSION
from . import saved_run, training_data
from .trainer import Trainer

VARIANTS = ("replay", "intended", "released")
# balanced; density, turnover, warm-up, refresh, align and distil are the paper's; hold is what was measured, stop_at near it (README)
DEFAULTS = {
    "variant": "replay", "steps": 400, "stop_at": 0.6, "batch": 4, "held": 8, "learning_rate": 2e-5, "pictures": 16,
    "sampling_steps": 20, "captions": 16, "cfg": 7.5, "size": 0, "trainable": "cross-attention", "density": 0.5, "turnover": 0.2,
    "warmup": 50, "refresh": 100, "importance": "signed", "align": 0.25, "distil": 0.25, "hold": 5.0, "precision": "auto",
    "checkpointing": False, "preview_every": 0, "low_rank": 0, "on_cancel": "discard", "seed": 0,
}  # fmt: skip
_LENGTH = (
    "steps",
    "stop_at",
    "batch",
    "held",
    "learning_rate",
    "pictures",
    "sampling_steps",
    "captions",
)
PRESETS = {
    "balanced": {k: DEFAULTS[k] for k in _LENGTH},
    "quick": dict(zip(_LENGTH, (150, 0.7, 4, 8, 5e-5, 8, 20, 8), strict=True)),
    "thorough": dict(zip(_LENGTH, (1500, 0.5, 4, 12, 1e-5, 48, 30, 48), strict=True)),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(
    model,
    clip,
    concepts,
    earlier=None,
    images=None,
    vae=None,
    templates=None,
    resume="",
    *,
    after=None,
    node_id=None,
    **settings,
):
    """(UnlearnPatch, losses, report IMAGE, report text) for a ConceptSet; settings as in DEFAULTS. The model and clip are not changed.

    earlier: an UnlearnPatch training starts from; the result contains it, and in `replay` its concepts stay forgotten. images, vae: the
    artist's own pictures [n, h, w, 3] of the only concept. resume: name of a file that training is kept in, to go on after it was cut
    off, or ''. after: called with the UnlearnPatch so far at the end of every round. losses: term -> list of its value at each step,
    `loss` the total.
    Raises UnlearnError on a model that cannot be trained, text that cannot be used, or training that went astray.
    """
    settings = {**DEFAULTS, **settings}
    settings["size"] = settings["size"] or native_size(model)
    chosen, shape = layers(model, settings["trainable"]), latent_shape(model, settings["size"])
    if images is not None and (vae is None or len(concepts.concepts) > 1):
        fault = (
            "needs the input 'vae'; connect it"
            if vae is None
            else "goes with one concept; forget one at a time"
        )
        raise UnlearnError(
            f"The input 'images' {fault}, or leave 'images' unconnected and the model draws its own."
        )
    warning = patching.check(model, earlier) if earlier is not None else ""
    file = saved_run.path(resume) if resume.strip() else None
    plan = training_data.plan(
        clip, concepts, earlier, templates, settings["captions"], settings["seed"]
    )
    given = (
        None if images is None else training_data.own_pictures(vae, model, images, settings["size"])
    )
    bar, dtype, start = (
        progress.Progress(_total(plan, settings), node_id),
        precision(model, settings["precision"]),
        time.time(),
    )
    said = conditioning(model, clip, plan.texts, settings["size"], shape, bar)
    if not comfy.model_management.is_device_cpu(model.load_device):
        comfy.model_management.free_memory(
            1e30, model.load_device
        )  # from here on nothing but the training network is needed there
    with torch.inference_mode(False), torch.enable_grad():
        try:
            network = Network(
                model,
                [layer.key for layer in chosen],
                said,
                earlier,
                dtype,
                model.load_device,
                settings["checkpointing"],
            )
            material = training_data.TrainingData(network, plan, settings, shape, given, bar)
            trainer = Trainer(network, material, settings, bar, node_id)
            need, seconds = trainer.forecast()
            progress.say(
                f"training needs about {need / 2**30:.1f} GB and at most {seconds / 60:.0f} minutes",
                node_id,
            )
            made = lambda: _patch(network, chosen, concepts, settings, templates)
            cancelled = _run(
                trainer, file, settings, None if after is None else lambda: after(made()[0])
            )
            patch, changes, residual = made()
        finally:
            network = material = None  # a GPU has its memory back before anything else runs
            comfy.model_management.soft_empty_cache()
    words = _text(trainer, patch, changes, residual, cancelled, warning, time.time() - start)
    return patch, _losses(trainer.history), _picture(trainer, changes), words


def _total(plan, settings):
    replay = settings["variant"] == "replay"
    drawn = 2 * settings["pictures"] * len(
        plan.lessons + (plan.past if replay else ())
    ) + replay * len(plan.kept + plan.prior)
    return (
        len(plan.texts)
        + drawn * settings["sampling_steps"]
        + len(plan.lessons) * (settings["warmup"] + settings["steps"])
    )


def _run(trainer, file, settings, after):
    """Trains, from `file` on where there is one; True when it was cancelled and what was learned is to be kept."""
    if file is not None and saved_run.load(file, trainer):
        progress.say(
            f"going on in round {trainer.number + 1} at step {trainer.step}", trainer.node_id
        )

    def between():
        trainer.bar.step()
        if file is not None and trainer.step and trainer.step % saved_run.EVERY == 0:
            saved_run.save(file, trainer)
        trainer.preview()

    try:
        trainer.run(between, after)
    except comfy.model_management.InterruptProcessingException:
        if file is not None:
            saved_run.save(file, trainer)
        if settings["on_cancel"] != "keep" or not trainer.history:
            raise
        return True
    if file is not None:
        file.unlink(missing_ok=True)
    return False


def precision(model, wanted):
    """dtype of activations: as wanted, or bfloat16 where the device has it, else float16, and float32 on a CPU."""
    if wanted != "auto":
        return DTYPES[wanted]
    device = model.load_device
    if (
        comfy.model_management.is_device_cpu(device)
        or model.model.get_dtype_inference() == torch.float32
    ):
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16


@torch.no_grad()
def _patch(network, chosen, concepts, settings, templates):
    """(UnlearnPatch, [(label, relative change, share moved)] of each matrix, residual of a low-rank one)."""
    edits, changes, lost, all_of_it = [], [], 0.0, 1e-30
    for layer in chosen:
        start = network.start(layer.key)
        delta = network.masters[layer.key].detach() - start
        changes.append(
            (layer.label, float(delta.norm() / start.norm()), float((delta != 0).float().mean()))
        )
        if not delta.any():
            continue
        if settings["low_rank"]:
            u, sigma, v = torch.linalg.svd(delta, full_matrices=False)
            r = settings["low_rank"]
            lost += float(sigma[r:].square().sum())
            all_of_it += float(sigma.square().sum())
            edit = LowRank.of((u[:, :r] * sigma[:r]).half(), v[:r].half())
        else:
            edit = Delta.of(delta.half())
        edits.append((layer.key, edit))
    provenance = {
        "method": f"Sculpting Memory {settings['variant']}",
        "settings": {**settings, "templates": templates},
        "concepts": [c.name for c in concepts.concepts],
        "lines": [format_concept(c) for c in concepts.concepts],
        "keep": list(concepts.keep),
        "version": VERSION,
    }
    patch = UnlearnPatch(
        tuple(edits),
        weights.fingerprint(network.model, [layer.key for layer in chosen]),
        (provenance,),
    )
    return (
        (patch if network.earlier is None else network.earlier + patch),
        changes,
        (lost / all_of_it) ** 0.5,
    )


def _losses(history):
    """term -> its value at every step of all rounds, or that of the last step that had it; `loss` the total: a LOSS_MAP of ComfyUI's."""
    terms = dict.fromkeys(t for step in history for t in step)
    found = {"loss" if t == "total" else t: [] for t in terms}
    for step in history:
        for term, values in found.items():  # a term that rests is drawn as it was last
            values.append(
                step.get("total" if term == "loss" else term, values[-1] if values else 0.0)
            )
    if len(set(found["loss"])) == 1:  # the stock graph divides by the range
        found["loss"] = [*found["loss"], found["loss"][0] + 1e-6]
    return found


def _picture(trainer, changes):
    left = trainer.left[-1] if trainer.left else {}
    goal = trainer.settings["stop_at"]
    shown = [
        (n, x, f"{x:.0%} left", charts.GOOD if x <= 1.1 * goal else charts.BAD)
        for n, x in list(left.items())[:24]
    ]
    longest = max([*trainer.steps, 1])
    names = [lesson.concept.name for lesson in trainer.material.plan.lessons]
    steps = [
        (n, x / longest, f"{x} steps", charts.NEUTRAL)
        for n, x in list(zip(names, trainer.steps, strict=False))[:24]
    ]
    top = max([c for _, c, _ in changes] + [1e-9])
    layers = [(label, c / top, f"{c:.2%}", charts.NEUTRAL) for label, c, _ in changes[:40]]
    return charts.bar_charts(
        "Dynamic Mask Trainer",
        [
            ("What each concept still adds to the prediction", shown),
            ("Steps", steps),
            ("Change of each matrix", layers),
        ],
    )


def _text(trainer, patch, changes, residual, cancelled, warning, seconds):
    s, losses = trainer.settings, _losses(trainer.history)
    names = [lesson.concept.name for lesson in trainer.material.plan.lessons]
    n = sum(p.numel() for p in trainer.params)
    moved = (
        sum(share * p.numel() for (_, _, share), p in zip(changes, trainer.params, strict=True)) / n
    )
    lines = [
        f"{s['variant']}: {len(trainer.steps)} of {len(names)} concepts in {sum(trainer.steps)} steps and {seconds:.0f} s; "
        f"{moved:.0%} of {n / 1e6:.1f} M weights in {len(changes)} matrices moved, {patch.nbytes / 2**20:.2f} MB."
    ]
    for name, steps, after in zip(names, trainer.steps, trainer.left, strict=False):
        later = (
            f", {trainer.left[-1][name]:.0%} at the end" if after is not trainer.left[-1] else ""
        )
        lines.append(f"{name}: {steps} steps, {after[name]:.0%} left{later}")
    lines += [
        f"{name} (earlier): {x:.0%} left"
        for name, x in (trainer.left[-1] if trainer.left else {}).items()
        if name not in names
    ]
    ends = [f"{term} {v[0]:.2g} to {sum(v[-10:]) / len(v[-10:]):.2g}" for term, v in losses.items()]
    lines.append(f"Loss, first step to last ten: {', '.join(ends)}.")
    if trainer.churn:
        lines.append(
            f"Exchanged in the mask at each refresh: {', '.join(f'{c:.0%}' for c in trainer.churn[:12])}."
        )
    if s["low_rank"]:
        lines.append(f"Cut to rank {s['low_rank']}: {residual:.0%} of the change is lost.")
        if residual > 0.3:
            lines.append(
                "WARNING: so low a rank holds little of what was learned; raise 'low_rank', or set it to 0."
            )
    if warning:
        lines.append(f"WARNING: {warning}")
    if cancelled:
        lines.append("WARNING: cancelled; this is what was learned until then.")
    for name, steps, x in zip(
        names,
        trainer.steps,
        (after[n] for n, after in zip(names, trainer.left, strict=False)),
        strict=False,
    ):
        if x > s["stop_at"] and steps >= s["steps"]:
            lines.append(
                f"WARNING: '{name}' was not forgotten in {steps} steps; raise 'steps' or 'learning_rate'."
            )
    return "\n".join(
        [
            *lines,
            "Next: connect the patch to Apply Unlearn Patch and compare pictures with the same seed.",
        ]
    )
