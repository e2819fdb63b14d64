"""The inputs of nodes that draw pictures to compare: how they are sampled."""

from typing import Protocol

import comfy.samplers
from comfy_api.latest import io


class Sampled(Protocol):
    """Settings with a default for each of these inputs. size: in pixels, 0 for the model's own."""

    @property
    def steps(self) -> int: ...
    @property
    def cfg(self) -> float: ...
    @property
    def size(self) -> int: ...
    @property
    def sampler(self) -> str: ...
    @property
    def scheduler(self) -> str: ...


def sampling_inputs(default: Sampled) -> list[io.Input]:
    """Inputs `steps`, `cfg`, `size`, `sampler` and `scheduler`, in this order."""
    return [
        io.Int.Input(
            "steps",
            default=default.steps,
            min=1,
            max=200,
            tooltip="Sampling steps per picture. Use what you draw with.",
        ),
        io.Float.Input(
            "cfg",
            default=default.cfg,
            min=0.0,
            max=100.0,
            step=0.5,
            tooltip="Guidance. Use what you draw with.",
        ),
        io.Int.Input(
            "size",
            default=default.size,
            min=0,
            max=2048,
            step=64,
            tooltip="Width and height in pixels. 0 takes what the model was made for. "
            "Smaller is faster, but models draw badly below half of it.",
        ),
        io.Combo.Input(
            "sampler",
            options=list(comfy.samplers.KSampler.SAMPLERS),
            default=default.sampler,
            tooltip="Use one without fresh noise in each step (no 'ancestral', no 'sde'), "
            "so that the pictures can be compared.",
            advanced=True,
        ),
        io.Combo.Input(
            "scheduler",
            options=list(comfy.samplers.KSampler.SCHEDULERS),
            default=default.scheduler,
            tooltip="How the sampling steps are spread. Use what you draw with.",
            advanced=True,
        ),
    ]
