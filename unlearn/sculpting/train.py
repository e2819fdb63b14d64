"""Sculpting Memory on a ComfyUI model: plan, draw, train, and give out what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import UnlearnError
from ..host import architectures, memory, patch_match, progress, text_encoding
from ..host.architectures import Layer, native_size
from ..host.batched_sampling import latent_shape
from ..host.model_types import Clip, Model, Vae
from ..host.stages import in_words
from ..host.training_network import (
    Conditioning,
    Network,
    activation_dtype,
    conditioning,
    layers,
)
from ..host.vae_encoding import encode_squares
from ..types import ConceptSet, UnlearnPatch
from ..wording import Findings, Warn
from . import memory_need, preview, report, saved_run, tuning
from .learned_patch import Origin, learned_patch
from .plan import TrainingPlan, build_plan
from .settings import TrainingSettings
from .trainer import Trainer
from .training_data import TrainingData

AfterRound = Callable[[UnlearnPatch], None]


@dataclass(frozen=True)
class TrainingInputs:
    """What is optional on the node.

    earlier: a patch that training starts from; the result contains it, and in `replay` its concepts
    stay forgotten. images [n, h, w, 3] and vae: the artist's own pictures of the only concept.
    templates: own sentences with {concept}, or None. resume: the name of a file that the training
    is kept in, so that it can go on after it was cut off, or ''. node_id: where progress is shown.
    """

    earlier: UnlearnPatch | None = None
    images: torch.Tensor | None = None
    vae: Vae | None = None
    templates: tuple[str, ...] | None = None
    resume: str = ""
    node_id: str | None = None


NO_INPUTS = TrainingInputs()


class TrainingOutputs(NamedTuple):
    """What the node gives out: patch, LOSS_MAP, IMAGE and text."""

    patch: UnlearnPatch
    losses: dict[str, list[float]]
    picture: torch.Tensor
    report: str


class _Prepared(NamedTuple):
    """What is known before anything is copied to the device."""

    chosen: list[Layer]
    latent_shape: list[int]
    plan: TrainingPlan
    own_pictures: torch.Tensor | None
    conditioned: Conditioning
    dtype: torch.dtype
    file: Path | None
    bar: progress.Progress


class _Learned(NamedTuple):
    outcome: report.Outcome
    result: report.TrainingResult
    cancelled: bool


def train(
    model: Model,
    clip: Clip,
    concepts: ConceptSet,
    settings: TrainingSettings,
    inputs: TrainingInputs = NO_INPUTS,
    after_round: AfterRound | None = None,
) -> TrainingOutputs:
    """Forgets the concepts one after another. The model and the clip are not changed.

    after_round: called with the patch so far at the end of every round.
    Raises UnlearnError for a model that cannot be trained, text that cannot be used, too little
    memory, or training that went astray.
    """
    architectures.refuse_transformer(model, "Dynamic Mask Trainer")
    start = time.time()
    settings = replace(settings, size=settings.size or native_size(model))
    images = 0 if inputs.images is None else len(inputs.images)
    layer = text_encoding.clip_layer(clip)
    origin = Origin(concepts, settings, inputs.templates, images, layer)
    prepared, notes = _prepare(model, clip, origin, inputs)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            learned = _learn(model, origin, inputs, prepared, after_round)
    except BaseException as error:
        # The error holds on to the functions it came through, and these hold the network.
        memory.forget_frames(error)
        raise
    finally:
        memory.give_back()
    if learned.cancelled:
        notes.append(Warn("Cancelled before the end.", "This is what was learned until then."))
    outcome, result = learned.outcome, learned.result
    return TrainingOutputs(
        outcome.patch,
        report.loss_map(result.losses),
        report.picture(result, outcome.changes),
        report.text(result, outcome, time.time() - start, notes),
    )


def _prepare(
    model: Model, clip: Clip, origin: Origin, inputs: TrainingInputs
) -> tuple[_Prepared, list[Warn]]:
    """Checks the inputs and encodes all texts; returns that and warnings for the report."""
    s = origin.settings
    chosen = layers(model, s.trainable)
    shape = latent_shape(model, s.size)
    _check_images(origin.concepts, inputs)
    told = Findings()
    if inputs.earlier is not None:
        patch_match.match(model, inputs.earlier).tell(told)
    file = saved_run.path(inputs.resume) if inputs.resume.strip() else None
    plan = build_plan(clip, origin.concepts, inputs.earlier, origin.templates, s.captions, s.seed)
    own_pictures = None
    if inputs.images is not None and inputs.vae is not None:
        own_pictures = encode_squares(inputs.vae, model, inputs.images, s.size)
    pictures = _pictures(plan, s, own_pictures is not None)
    steps = len(plan.texts) + pictures * s.sampling_steps + _training_steps(plan, s)
    bar = progress.Progress(steps, inputs.node_id)
    bar.begin("Reading sentence {at} of {of}", len(plan.texts), then="then drawing and training")
    dtype = activation_dtype(model, s.precision)
    conditioned = conditioning(model, clip, plan.texts, s.size, shape, bar)
    prepared = _Prepared(chosen, shape, plan, own_pictures, conditioned, dtype, file, bar)
    return prepared, told.warnings


def _check_images(concepts: ConceptSet, inputs: TrainingInputs) -> None:
    if inputs.images is None:
        return
    fault = ""
    if inputs.vae is None:
        fault = "needs the input 'vae'; connect it"
    elif len(concepts.concepts) > 1:
        fault = "goes with one concept; forget one at a time"
    if fault:
        raise UnlearnError(
            f"The input 'images' {fault}, or leave 'images' unconnected and the model draws its "
            "own."
        )


def _training_steps(plan: TrainingPlan, settings: TrainingSettings) -> int:
    return len(plan.tasks) * (settings.warmup + settings.steps)


def _pictures(plan: TrainingPlan, settings: TrainingSettings, own: bool) -> int:
    """How many pictures are drawn. own: the artist brought those of the concept."""
    tasks, pictures = len(plan.tasks), 0
    if settings.replays:
        tasks += len(plan.earlier_tasks)
        pictures += settings.kept_pictures * len(plan.kept) + len(plan.captions)
    pictures += 2 * settings.pictures * tasks
    return pictures - own * settings.pictures * len(plan.tasks)


def _learn(
    model: Model,
    origin: Origin,
    inputs: TrainingInputs,
    prepared: _Prepared,
    after_round: AfterRound | None,
) -> _Learned:
    """Draws, trains, and takes out what was learned. The network ends with this function."""
    s, keys = origin.settings, [layer.key for layer in prepared.chosen]
    memory.unload_models(model.load_device)  # from here on only the training needs the device
    memory_need.check_room(model, s, inputs.earlier, prepared.dtype, inputs.node_id)
    network = Network(
        model, keys, prepared.conditioned, inputs.earlier, prepared.dtype, s.checkpointing
    )
    row = memory_need.try_row(network, prepared.latent_shape, s.size)
    seconds = _begin_drawing(prepared, s, row)
    data = TrainingData(
        network, prepared.plan, s, prepared.latent_shape, prepared.own_pictures, prepared.bar
    )
    trainer = Trainer(network, data, s, prepared.bar, inputs.node_id)
    most_bytes = memory_need.limit_rows(trainer, row)
    progress.say(
        f"training needs about {most_bytes / memory_need.GB:.1f} GB and at most "
        f"{seconds / 60:.0f} minutes",
        inputs.node_id,
    )
    prepared.bar.begin(
        "Training step {at} of {of}", _training_steps(prepared.plan, s), guess=seconds
    )
    # No inner functions here: an error would hold on to the network through them (forget_frames).
    hand_over = partial(_hand_over, network, prepared.chosen, origin, after_round)
    cancelled = _run(trainer, prepared.file, hand_over)
    outcome = learned_patch(network, prepared.chosen, origin)
    return _Learned(outcome, trainer.result(), cancelled)


def _begin_drawing(
    prepared: _Prepared, settings: TrainingSettings, row: memory_need.RowCost
) -> float:
    """Says how long everything will take, before the first picture; seconds that training takes."""
    s, plan, each = settings, prepared.plan, settings.sampling_steps
    pictures = _pictures(plan, s, prepared.own_pictures is not None)
    seconds = memory_need.training_seconds(s, len(plan.tasks), row)
    prepared.bar.begin(
        "Drawing training picture {at} of {of}",
        pictures * each,
        each,
        f"then training for at most {in_words(seconds)}",
        memory_need.drawing_seconds(s, pictures, row),
    )
    return seconds


def _hand_over(
    network: Network, chosen: list[Layer], origin: Origin, after_round: AfterRound | None
) -> None:
    if after_round is not None:
        after_round(learned_patch(network, chosen, origin).patch)


def _run(trainer: Trainer, file: Path | None, after_round: Callable[[], None]) -> bool:
    """Trains, from the file on where there is one.

    Returns True when it was cancelled and what was learned is to be kept.
    """
    if file is not None and saved_run.load(file, trainer):
        progress.say(
            f"going on in round {trainer.round + 1} at step {trainer.step}", trainer.node_id
        )
        if trainer.bar is not None:
            rounds = trainer.round * (trainer.settings.warmup + trainer.settings.steps)
            trainer.bar.skip(rounds + trainer.step)
    try:
        trainer.run(partial(_before_step, trainer, file), after_round)
    except memory.Cancelled as cancelled:
        if file is not None:
            saved_run.save(file, trainer)
            progress.cancelled_saying(
                cancelled, "Cancelled. What was trained is kept; run again to go on from there."
            )
        if trainer.settings.on_cancel != "keep" or not trainer.losses:
            raise
        return True
    if file is not None:
        file.unlink(missing_ok=True)
    return False


def _before_step(trainer: Trainer, file: Path | None) -> None:
    """Progress, saving and preview; raises Cancelled when the artist has cancelled."""
    if trainer.bar is not None:
        trainer.bar.step()
    if file is not None and trainer.step and trainer.step % tuning.SAVE_EVERY == 0:
        saved_run.save(file, trainer)
    preview.show_preview(trainer)
