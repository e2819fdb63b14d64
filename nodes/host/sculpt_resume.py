"""Training that was cut off: everything a Trainer needs to go on, as one safetensors file in models/unlearn_training."""

import hashlib
import json

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UnlearnError
from . import files

KIND = "unlearn_training"
FORMAT = "unlearn-training-1"
EVERY = 100  # steps between two savings
FREE = ("preview_every", "on_cancel", "low_rank")  # settings that may differ when training goes on


def path(name):
    """The file of a name; raises UnlearnError for one that leads out of the folder."""
    return files.new(KIND, name)


def identity(trainer):
    """Hex digest of what a run is made of: the weights it starts from, every text, and the settings that matter."""
    h = hashlib.blake2b(trainer.material.model.encode(), digest_size=16)
    settings = {k: v for k, v in trainer.settings.items() if k not in FREE}
    earlier = trainer.network.earlier.digest if trainer.network.earlier is not None else None
    h.update(json.dumps([settings, trainer.material.plan, earlier, str(trainer.network.dtype)], default=str, sort_keys=True).encode())
    for name in sorted(trainer.material.own):
        h.update(trainer.material.own[name].numpy().tobytes())  # pictures the artist brought count too
    return h.hexdigest()


def save(file, trainer):
    """Writes the state of a Trainer between two steps, whole or not at all; nothing before its first round."""
    if trainer.optimizer is None:
        return
    tensors = {"generator": trainer.mark}
    for i, p in enumerate(trainer.params):
        tensors[f"{i}.master"], tensors[f"{i}.touched"], tensors[f"{i}.total"] = p.detach(), trainer.touched[i], trainer.totals[i]
        tensors |= {f"{i}.adam.{name}": value for name, value in trainer.optimizer.state[p].items()}
        if trainer.masks is not None:
            tensors[f"{i}.mask"] = trainer.masks[i]
    tensors |= {f"teacher.{key}": value for key, value in trainer.network.teacher_weights.items()}
    said = {k: getattr(trainer, k) for k in ("number", "step", "pace", "settling", "push", "history", "churn", "left", "steps", "chunk")}
    said |= {"scaler": trainer.scaler.state_dict(), "identity": identity(trainer)}
    # a copy: a shared or expanded tensor cannot be written
    files.write(file, {k: v.cpu().clone() for k, v in tensors.items()}, {"format": FORMAT, "trainer": json.dumps(said)})


@torch.no_grad()
def load(file, trainer):
    """Puts a Trainer where the file left off; False when there is no such file. Raises UnlearnError for a file of another run."""
    if not file.is_file():
        return False
    try:
        with safe_open(file, "pt") as f:
            said = json.loads((f.metadata() or {})["trainer"])
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UnlearnError(f"The training file '{file.name}' cannot be read ({error}); delete it or choose another name.") from error
    if said.pop("identity") != identity(trainer):
        raise UnlearnError(
            f"The training file '{file.name}' belongs to a run with another model, other concepts or other settings; "
            "set them back, delete the file or choose another name."
        )
    trainer.open_round(said["number"])
    trainer.scaler.load_state_dict(said.pop("scaler"))
    for name, value in said.items():
        setattr(trainer, name, value)
    device = trainer.network.device
    for i, p in enumerate(trainer.params):
        p.copy_(tensors[f"{i}.master"])
        trainer.touched[i].copy_(tensors[f"{i}.touched"])
        trainer.totals[i].copy_(tensors[f"{i}.total"])
        prefix = f"{i}.adam."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        trainer.optimizer.state[p].update({k: v if k == "step" else v.to(device) for k, v in state.items()})
    if "0.mask" in tensors:
        trainer.masks = [tensors[f"{i}.mask"].to(device) for i in range(len(trainer.params))]
        trainer.optimizer.masks = dict(zip(trainer.params, trainer.masks, strict=True))
    for key, value in trainer.network.teacher_weights.items():
        value.copy_(tensors[f"teacher.{key}"])
    trainer.g.set_state(tensors["generator"])
    return True
