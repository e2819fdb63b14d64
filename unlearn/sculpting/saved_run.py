"""Training that was cut off: everything a Trainer needs to go on, as one safetensors file in models/unlearn_training."""

import hashlib
import json

import torch

from ..concepts.notation import short
from ..errors import UnlearnError
from ..files import safetensors_io
from ..host import folders

KIND = "unlearn_training"
FORMAT = "unlearn-training-1"
EVERY = 100  # steps between two savings
STATE = {  # what a Trainer says between two steps, and what it may be
    "number": (int,), "step": (int,), "pace": (float, int), "settling": (list, type(None)), "push": (bool,), "history": (list,),
    "churn": (list,), "left": (list,), "steps": (list,), "chunk": (int,),
}  # fmt: skip
FREE = ("preview_every", "on_cancel", "low_rank")  # settings that may differ when training goes on


def path(name):
    """The file of a name; raises UnlearnError for one that leads out of the folder."""
    return folders.new(KIND, name)


def identity(trainer):
    """Hex digest of what a run is made of: the weights it starts from, every text, and the settings that matter."""
    h = hashlib.blake2b(trainer.material.model.encode(), digest_size=16)
    settings = {k: v for k, v in trainer.settings.items() if k not in FREE}
    earlier = trainer.network.earlier.digest if trainer.network.earlier is not None else None
    h.update(
        json.dumps(
            [settings, trainer.material.plan, earlier, str(trainer.network.dtype)],
            default=str,
            sort_keys=True,
        ).encode()
    )
    for name in sorted(trainer.material.own):
        h.update(
            trainer.material.own[name].numpy().tobytes()
        )  # pictures the artist brought count too
    return h.hexdigest()


def save(file, trainer):
    """Writes the state of a Trainer between two steps, whole or not at all; nothing before its first round."""
    if trainer.optimizer is None:
        return
    tensors = {"generator": trainer.mark}
    for i, p in enumerate(trainer.params):
        tensors[f"{i}.master"], tensors[f"{i}.touched"], tensors[f"{i}.total"] = (
            p.detach(),
            trainer.touched[i],
            trainer.totals[i],
        )
        tensors |= {f"{i}.adam.{name}": value for name, value in trainer.optimizer.state[p].items()}
        if trainer.masks is not None:
            tensors[f"{i}.mask"] = trainer.masks[i]
    tensors |= {f"teacher.{key}": value for key, value in trainer.network.teacher_weights.items()}
    said = {k: getattr(trainer, k) for k in STATE}
    said |= {"scaler": trainer.scaler.state_dict(), "identity": identity(trainer)}
    # a copy: a shared or expanded tensor cannot be written
    safetensors_io.write(
        file,
        {k: v.cpu().clone() for k, v in tensors.items()},
        {"format": FORMAT, "trainer": json.dumps(said)},
    )


def load(file, trainer):
    """Puts a Trainer where the file left off; False when there is no such file. Raises UnlearnError for a damaged file, or one of another
    run; the Trainer may then be half set, and must not run."""
    if not file.is_file():
        return False
    try:
        with safetensors_io.opened(file) as (metadata, header, read):
            if metadata.get("format") != FORMAT:
                raise ValueError("it is no training file of this version")
            said = json.loads(metadata["trainer"])
            if said.pop("identity") != identity(trainer):
                raise UnlearnError(
                    f"The training file '{file.name}' belongs to a run with another model, other concepts or other settings; "
                    "set them back, delete the file or choose another name."
                )
            scaler = said.pop("scaler")
            _look(said, trainer)
            _restore(trainer, said, scaler, {k: read(k) for k in header})
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The training file '{file.name}' cannot be read ({safetensors_io.reason(error)}); delete it or choose another name."
        ) from error
    return True


def _look(said, trainer):
    """ValueError where what a file says is not what `save` writes."""
    if said.keys() != STATE.keys() or any(type(said[k]) not in kinds for k, kinds in STATE.items()):
        raise ValueError("what it says of the run")
    if (
        not 0 <= said["number"] <= len(trainer.material.plan.lessons)
        or said["step"] < 0
        or said["chunk"] < 1
        or not 0 < said["pace"] < 100
    ):
        raise ValueError("where the run was")
    if said["settling"] is not None and [type(x) for x in said["settling"]] != [int, int]:
        raise ValueError("where the run settles")
    for part in (*said["history"], *said["left"]):
        if any(type(x) not in (int, float) for x in part.values()):
            raise ValueError("its history")
    if any(type(x) not in (int, float) for x in (*said["churn"], *said["steps"])):
        raise ValueError("its history")


@torch.no_grad()
def _restore(trainer, said, scaler, tensors):
    """Everything of the file put into the Trainer; raises what torch and dict raise where a tensor is missing or of another shape."""
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"not a number in '{short(name)}'")
    trainer.open_round(said["number"])
    trainer.scaler.load_state_dict(scaler)
    for name, value in said.items():
        setattr(trainer, name, value)
    device = trainer.network.device
    fit = lambda name, shape: tensors[name] if tensors[name].shape == shape else _misfit(name)
    for i, p in enumerate(trainer.params):
        p.copy_(fit(f"{i}.master", p.shape))
        trainer.touched[i].copy_(fit(f"{i}.touched", p.shape))
        trainer.totals[i].copy_(fit(f"{i}.total", p.shape))
        if moments := {
            k.split(".")[2] for k in tensors if k.startswith(f"{i}.adam.")
        }:  # none before the first step
            if moments != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError("the optimiser's moments")
            state = {"step": fit(f"{i}.adam.step", torch.Size(()))}
            state |= {
                k: fit(f"{i}.adam.{k}", p.shape).to(device) for k in ("exp_avg", "exp_avg_sq")
            }
            trainer.optimizer.state[p].update(state)
    if "0.mask" in tensors:
        trainer.masks = [
            fit(f"{i}.mask", p.shape).bool().to(device) for i, p in enumerate(trainer.params)
        ]
        trainer.optimizer.masks = dict(zip(trainer.params, trainer.masks, strict=True))
    for key, value in trainer.network.teacher_weights.items():
        value.copy_(fit(f"teacher.{key}", value.shape))
    trainer.g.set_state(tensors["generator"])


def _misfit(name):
    raise ValueError(f"tensor '{short(name)}'")
