"""How much memory and time a training run needs, told before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import UnlearnError
from ..host import memory, progress
from ..host.model_types import Model
from ..host.training_network import BYTES_PER_TRAINED_WEIGHT, Network, layers, needed_bytes
from ..types import UnlearnPatch
from . import tuning
from .settings import TrainingSettings
from .trainer import Trainer

GB = 2**30
FEWEST = "keys and values"  # the smallest choice of 'trainable'


class RowCost(NamedTuple):
    """What one row of a training step takes: bytes that autograd keeps, and seconds.

    forward: seconds of a prediction alone.
    """

    kept_bytes: int
    seconds: float
    forward: float


def check_room(
    model: Model,
    settings: TrainingSettings,
    earlier: UnlearnPatch | None,
    dtype: torch.dtype,
    node_id: str | None = None,
) -> None:
    """Says what the copies of the weights need; raises UnlearnError when there is less free.

    The error offers what fits. dtype: of activations. Nothing must have been copied yet.
    """
    device = model.load_device
    needed, free = (
        weight_bytes(model, settings.trainable, earlier, dtype),
        memory.free_bytes(device),
    )
    progress.say(
        f"training needs {needed / GB:.1f} GB for the weights, {free / GB:.1f} GB are free", node_id
    )
    if needed > free:
        raise UnlearnError(
            f"The input 'model' needs {needed / GB:.1f} GB for copies of its weights to be trained "
            f"and {free / GB:.1f} GB are free on '{device}'; "
            f"{_offer(model, settings, earlier, dtype, free)}."
        )


def weight_bytes(
    model: Model, trainable: str, earlier: UnlearnPatch | None, dtype: torch.dtype
) -> int:
    """Bytes that training the matrices `trainable` takes for weights; nothing is read."""
    keys = [layer.key for layer in layers(model, trainable)]
    return needed_bytes(model, keys, earlier, dtype)


def _offer(
    model: Model,
    settings: TrainingSettings,
    earlier: UnlearnPatch | None,
    dtype: torch.dtype,
    free: int,
) -> str:
    """What to set so that the weights fit: the least change that is enough."""
    half = dtype if dtype.itemsize == 2 else torch.bfloat16
    least = 0
    for trainable, kind in ((settings.trainable, half), (FEWEST, dtype), (FEWEST, half)):
        least = weight_bytes(model, trainable, earlier, kind)
        changes = [f"'trainable' to '{FEWEST}'"] * (trainable != settings.trainable)
        changes += ["'precision' to bf16"] * (kind != dtype)
        if changes and least <= free:
            return f"set {' and '.join(changes)}, which needs {least / GB:.1f} GB, or free memory"
    return (
        f"even '{FEWEST}' with 'precision' at bf16 need {least / GB:.1f} GB, so free memory, or "
        "use ScaPre Solve, which needs no training"
    )


def drawing_seconds(settings: TrainingSettings, pictures: int, row: RowCost) -> float:
    """How long drawing so many training pictures takes at most; each is guided, so two rows."""
    return pictures * settings.sampling_steps * 2 * row.forward


def training_seconds(settings: TrainingSettings, rounds: int, row: RowCost) -> float:
    """How long so many rounds of training take at most."""
    s = settings
    searched = s.steps * s.resist * s.batch
    passes = s.steps * s.rows_per_step * tuning.TEACHER_TIME + s.warmup * s.batch + searched
    return rounds * passes * row.seconds


def limit_rows(trainer: Trainer, row: RowCost) -> int:
    """Bytes that training takes at most; limits the rows at once to what fits the device."""
    s, network = trainer.settings, trainer.network
    trained = sum(w.numel() for w in trainer.weights)
    frozen = [*network.reference.parameters(), *network.teacher_weights.values()]
    fixed = trained * BYTES_PER_TRAINED_WEIGHT + sum(w.nbytes for w in frozen)
    if not memory.is_cpu(network.device):
        # Gradients, moments and a temporary, in float32, come with the first step.
        room = memory.free_bytes(network.device) - trained * 4 * 4
        fitting = int(room // max(1, row.kept_bytes))
        trainer.batch_size.rows = max(1, min(trainer.batch_size.rows, fitting))
    rows = min(s.rows_per_step, trainer.batch_size.rows)
    return fixed + row.kept_bytes * rows


def try_row(network: Network, shape: Sequence[int], size: int) -> RowCost:
    """The cost of one row; when memory runs out, it is tried once more with emptied caches.

    shape: of a latent [c, h, w]. size: of a picture in pixels.
    Raises UnlearnError when even one row does not fit.
    """
    for _ in range(2):
        try:
            return _row_cost(network, shape)
        except Exception as error:
            if not memory.is_full(error):
                raise
        # This stands outside the handler, because the error holds on to what filled the memory.
        memory.give_back()
    raise UnlearnError(
        f"The input 'model' leaves no memory to train on one picture of {size} pixels; turn on "
        "'checkpointing', lower 'size', or set 'trainable' to 'keys and values'."
    )


def _row_cost(network: Network, shape: Sequence[int]) -> RowCost:
    own = {w.untyped_storage().data_ptr() for w in network.student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(1, *shape, device=network.device)
    sigma = network.levels([0.5])
    weights = list(network.trainable.values())
    seconds = forward = 0.0
    for _ in range(2):  # the first pass warms up
        start = time.time()
        with torch.autograd.graph.saved_tensors_hooks(keep, _unchanged):
            loss = network.predict(network.student, x, sigma, [0]).square().mean()
        float(loss.detach())  # waits for the device
        forward = time.time() - start
        float(torch.autograd.grad(loss, weights)[0].sum())
        seconds = time.time() - start
    return RowCost(sum(n for at, n in kept.items() if at not in own), seconds, forward)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
