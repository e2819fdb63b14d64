"""Training that was cut off: all a Trainer needs to go on, as one file in models/unlearn_training.

The keys in the file are those of the first version, so that old files load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..concepts.notation import short
from ..errors import UnlearnError
from ..files import safetensors_io
from ..host import folders
from .schedule import Phase
from .trainer import Trainer

KIND = "unlearn_training"
FORMAT = "unlearn-training-1"
# What the metadata says of a run between two steps, and the types that each value may have.
STATE = {
    "number": (int,),  # of the round
    "step": (int,),
    "pace": (float, int),  # the learning rate as a multiple of the setting
    "settling": (list, type(None)),  # first step and end of the cooldown
    "push": (bool,),  # whether the concept is still overwritten
    "history": (list,),  # losses of every step
    "churn": (list,),  # share of the mask exchanged at every refresh
    "left": (list,),
    "steps": (list,),
    "chunk": (int,),  # rows that go through the network at once
}
# Settings that may differ when training goes on.
FREE = ("preview_every", "on_cancel", "low_rank")
NEW = {"resist": 0, "kept_pictures": 1}  # at these values files of older versions lack them
MOMENTS = ("exp_avg", "exp_avg_sq")


def path(name: str) -> Path:
    """The file of a name; raises UnlearnError for a name that leads out of the folder."""
    return folders.new(KIND, name)


def identity(trainer: Trainer) -> str:
    """Hex digest of what decides a run: its model, its texts, and the settings that matter."""
    data, network = trainer.data, trainer.network
    h = hashlib.blake2b(data.model_digest.encode(), digest_size=16)
    settings = {k: v for k, v in asdict(trainer.settings).items() if k not in FREE}
    settings = {k: v for k, v in settings.items() if k not in NEW or v != NEW[k]}
    earlier = network.earlier.digest if network.earlier is not None else None
    described = [settings, data.plan, earlier, str(network.dtype)]
    h.update(json.dumps(described, default=str, sort_keys=True).encode())
    for name in sorted(data.own):  # they may be pictures that the artist brought
        h.update(data.own[name].numpy().tobytes())
    return h.hexdigest()


def save(file: Path, trainer: Trainer) -> None:
    """Writes the state of a Trainer between two steps, whole or not at all.

    Before the first round nothing is written.
    """
    if not trainer.started:
        return
    metadata = {"format": FORMAT, "trainer": json.dumps(_described(trainer))}
    # Copies, because shared or expanded tensors cannot be written.
    copies = {name: t.detach().cpu().clone() for name, t in _tensors(trainer).items()}
    safetensors_io.write(file, copies, metadata, lambda old: old.get("format") == FORMAT)


def _described(trainer: Trainer) -> dict[str, Any]:
    phase = trainer.phase
    return {
        "number": trainer.round,
        "step": trainer.step,
        "pace": phase.lr_scale,
        "settling": None if phase.cooldown is None else list(phase.cooldown),
        "push": phase.overwriting,
        "history": trainer.losses,
        "churn": trainer.mask_turnover,
        "left": trainer.left,
        "steps": trainer.steps,
        "chunk": trainer.batch_size.rows,
        "scaler": trainer.scaler.state_dict(),
        "identity": identity(trainer),
    }


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors = {"generator": trainer.generator_state}
    for i, weight in enumerate(trainer.weights):
        tensors[f"{i}.master"] = weight
        tensors[f"{i}.touched"] = trainer.touched[i]
        tensors[f"{i}.total"] = trainer.importance[i]
        for name, value in trainer.optimizer.state[weight].items():
            tensors[f"{i}.adam.{name}"] = value
        if trainer.masks:
            tensors[f"{i}.mask"] = trainer.masks[i]
    for key, value in trainer.network.teacher_weights.items():
        tensors[f"teacher.{key}"] = value
    if trainer.adversary is not None:
        states, texts = trainer.adversary.before_step
        tensors["adversary.states"], tensors["adversary.texts"] = states, torch.tensor(texts)
    return tensors


def load(file: Path, trainer: Trainer) -> bool:
    """Puts a Trainer where the file left off; returns False when there is no such file.

    Raises UnlearnError for a damaged file or one of another run. The Trainer may then be half set
    and must not run.
    """
    if not file.is_file():
        return False
    try:
        with safetensors_io.opened(file) as (metadata, header, read):
            if metadata.get("format") != FORMAT:
                raise ValueError("it is no training file of this version")
            described = json.loads(metadata["trainer"])
            if described.pop("identity") != identity(trainer):
                raise UnlearnError(
                    f"The training file '{file.name}' belongs to a run with another model, other "
                    "concepts or other settings; set them back, delete the file or choose another "
                    "name."
                )
            scaler = described.pop("scaler")
            _validate(described, trainer)
            _restore(trainer, described, scaler, {k: read(k) for k in header})
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The training file '{file.name}' cannot be read ({safetensors_io.reason(error)}); "
            "delete it or choose another name."
        ) from error
    return True


def _validate(described: Mapping[str, Any], trainer: Trainer) -> None:
    """Raises ValueError where the metadata is not what `save` writes."""
    if described.keys() != STATE.keys():
        raise ValueError("what it says of the run")
    if any(type(described[key]) not in types for key, types in STATE.items()):
        raise ValueError("what it says of the run")
    in_plan = 0 <= described["number"] <= len(trainer.data.plan.tasks)
    counts = described["step"] >= 0 and described["chunk"] >= 1
    if not in_plan or not counts or not 0 < described["pace"] < 100:
        raise ValueError("where the run was")
    cooldown = described["settling"]
    if cooldown is not None and [type(x) for x in cooldown] != [int, int]:
        raise ValueError("where the run cools down")
    numbers = [*described["churn"], *described["steps"]]
    for part in (*described["history"], *described["left"]):
        numbers += part.values()
    if any(type(x) not in (int, float) for x in numbers):
        raise ValueError("its history")


@torch.no_grad()
def _restore(
    trainer: Trainer,
    described: Mapping[str, Any],
    scaler: dict[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Puts everything of a file into the Trainer.

    Raises what torch and dict raise where a tensor is missing or of another shape.
    """
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"not a number in '{short(name)}'")
    trainer.open_round(described["number"])
    trainer.scaler.load_state_dict(scaler)
    cooldown = described["settling"]
    trainer.phase = Phase(
        described["pace"],
        None if cooldown is None else (cooldown[0], cooldown[1]),
        described["push"],
    )
    trainer.step = described["step"]
    trainer.losses = described["history"]
    trainer.mask_turnover = described["churn"]
    trainer.left = described["left"]
    trainer.steps = described["steps"]
    trainer.batch_size.rows = described["chunk"]
    _restore_weights(trainer, tensors)
    for key, value in trainer.network.teacher_weights.items():
        value.copy_(_fitting(tensors, f"teacher.{key}", value.shape))
    if trainer.adversary is not None:
        adversary = trainer.adversary
        adversary.states.copy_(_fitting(tensors, "adversary.states", adversary.states.shape))
        texts = _fitting(tensors, "adversary.texts", (len(adversary.texts),)).tolist()
        if any(not 0 <= text < len(trainer.network.texts) for text in texts):
            raise ValueError("the texts of the search")
        adversary.texts = texts
    trainer.generator.set_state(tensors["generator"])


def _restore_weights(trainer: Trainer, tensors: Mapping[str, torch.Tensor]) -> None:
    masked = "0.mask" in tensors
    masks = []
    for i, weight in enumerate(trainer.weights):
        shape = weight.shape
        weight.copy_(_fitting(tensors, f"{i}.master", shape))
        trainer.touched[i].copy_(_fitting(tensors, f"{i}.touched", shape))
        trainer.importance[i].copy_(_fitting(tensors, f"{i}.total", shape))
        names = {key.split(".")[2] for key in tensors if key.startswith(f"{i}.adam.")}
        if names:  # none before the first step
            if names != {"step", *MOMENTS}:
                raise ValueError("the optimiser's moments")
            state = {name: _fitting(tensors, f"{i}.adam.{name}", shape) for name in MOMENTS}
            state["step"] = _fitting(tensors, f"{i}.adam.step", torch.Size(()))
            trainer.optimizer.restore(weight, state)
        if masked:
            mask = _fitting(tensors, f"{i}.mask", shape)
            masks.append(mask.bool().to(trainer.network.device))
    trainer.masks = masks
    trainer.optimizer.masks = dict(zip(trainer.weights, masks, strict=False))


def _fitting(
    tensors: Mapping[str, torch.Tensor], name: str, shape: torch.Size | tuple[int, ...]
) -> torch.Tensor:
    """A tensor of that shape; ValueError for another."""
    if tensors[name].shape != shape:
        raise ValueError(f"tensor '{short(name)}'")
    return tensors[name]
