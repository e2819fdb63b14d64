"""What the layers that text enters through see of a prompt, observed in the loaded model.

ComfyUI's own sampling path makes the conditioning (masks, token numbers, layers of a language
model), loads the model and calls it on tiny latents. Hooks note what goes into the layers asked
for, and the call ends as soon as all of them were seen. Prompts of equal length go through
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ..errors import UnlearnError
from . import batched_sampling, memory, text_encoding
from .architectures import Architecture, Layer, kind
from .model_types import Clip, Model

BATCH = 16  # prompts that go through the model at once. Not measured
# Noise levels (0 to 1 of the schedule) and seeds of the two runs that must see the same.
RUNS = ((0.9, 1), (0.4, 2))
# Relative difference of what a layer sees in two runs, up to which it is the same.
SAME = 1e-3
PROBES = ("a photo of a fox in the snow", "a photo of a large house at night")


class Seen(NamedTuple):
    """What layers see of one prompt.

    rows: of each layer, by its key, float32 [n, d] on the CPU; of a pooled vector n is 1. masked:
    whether the model is told which rows are padding, and looks at none of them.
    """

    rows: dict[str, torch.Tensor]
    masked: bool


class _AllSeen(BaseException):
    """Ends a call of the model. No code between the layers and the caller takes it for an error."""


@dataclass
class _Hooks:
    """Notes what goes into layers during one call. stop: whether to end it when all were seen."""

    model: Any
    keys: Sequence[str]
    stop: bool
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> _Hooks:
        for key in self.keys:
            module = comfy.utils.get_attr(self.model, key.removesuffix(".weight"))
            self.handles.append(module.register_forward_pre_hook(self._note(key)))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, key: str) -> Any:
        def note(module: torch.nn.Module, given: tuple) -> None:
            if key not in self.seen:
                self.seen[key] = given[0].detach().float().cpu().clone()
            if self.stop and len(self.seen) == len(self.keys):
                raise _AllSeen

        return note


class _Observation:
    """One run of the model on prompts, inside ComfyUI's sampling."""

    def __init__(self, keys: Sequence[str], noise: torch.Tensor, stop: bool) -> None:
        self.keys, self.noise, self.stop = keys, noise, stop
        self.found: dict[int, Seen] = {}  # by the number of the prompt

    def run(self, guider: Any, sigmas: torch.Tensor, options: dict) -> None:
        """Observes every prompt of the positive conditioning."""
        model, conds = guider.inner_model, guider.conds["positive"]
        noise = self.noise.to(sigmas.device)
        x = model.model_sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
        for batch in _alike(conds):
            for part in (batch[i : i + BATCH] for i in range(0, len(batch), BATCH)):
                self._observe(model, conds, part, x, sigmas[:1], options)

    def _observe(
        self,
        model: Any,
        conds: Sequence[dict],
        numbers: Sequence[int],
        x: torch.Tensor,
        sigma: torch.Tensor,
        options: dict,
    ) -> None:
        """Observes some prompts together; one by one where their rows cannot be told apart."""
        memory.raise_if_cancelled()
        whole = self._call(model, [conds[n] for n in numbers], x, sigma, options)
        for number, rows in zip(numbers, whole, strict=True):
            if rows is None:
                (rows,) = self._call(model, [conds[number]], x, sigma, options)
            if rows is None:
                raise ValueError("the rows of a single prompt can always be told")
            self.found[number] = Seen(rows, _is_masked(conds[number], rows))

    def _call(
        self, model: Any, conds: Sequence[dict], x: torch.Tensor, sigma: torch.Tensor, options: dict
    ) -> list[dict[str, torch.Tensor] | None]:
        """For each prompt the rows that every layer sees, None where they cannot be told apart."""
        found: list[dict[str, torch.Tensor] | None] = [None] * len(conds)
        outer = options.get("model_function_wrapper")

        def call(apply: Any, args: dict) -> torch.Tensor:
            with _Hooks(model, self.keys, self.stop) as hooks:
                try:
                    if outer is None:
                        apply(args["input"], args["timestep"], **args["c"])
                    else:
                        outer(apply, args)
                except _AllSeen:
                    pass
            order = args["cond_or_uncond"]
            for place, number in enumerate(order):
                found[number] = _of_prompt(hooks.seen, place, len(order))
            return torch.zeros_like(args["input"])

        with_call = {**options, "model_function_wrapper": call}
        comfy.samplers.calc_cond_batch(model, [[c] for c in conds], x, sigma, with_call)
        return found


def _of_prompt(
    seen: dict[str, torch.Tensor], place: int, count: int
) -> dict[str, torch.Tensor] | None:
    """The rows [n, d] of the prompt at `place` of a batch, None where a layer sees no batch."""
    if count > 1 and any(len(rows) != count for rows in seen.values()):
        return None
    return {
        key: (rows[place] if count > 1 else rows).reshape(-1, rows.shape[-1])
        for key, rows in seen.items()
    }


def _is_masked(cond: dict, rows: dict[str, torch.Tensor]) -> bool:
    """Whether the model is given a mask over the rows of a prompt."""
    mask = cond["model_conds"].get("attention_mask")
    mask = None if mask is None else mask.cond
    return torch.is_tensor(mask) and any(mask.numel() == len(found) for found in rows.values())


def _alike(conds: Sequence[dict]) -> list[list[int]]:
    """The numbers of prompts whose conditioning has the same shapes, together."""
    groups: dict[tuple, list[int]] = {}
    for number, cond in enumerate(conds):
        shapes = []
        for name, value in sorted(cond["model_conds"].items()):
            inner = value.cond
            shapes.append((name, tuple(inner.shape) if torch.is_tensor(inner) else repr(inner)))
        groups.setdefault(tuple(shapes), []).append(number)
    return list(groups.values())


def latent_shape(family: Architecture, side: int = 0) -> list[int]:
    """[channels, (frames,) height, width] of latents of a side, at least the family's smallest."""
    form: Any = family.model.get_model_object("latent_format")
    side = max(side, getattr(family, "smallest", 8))
    frames = [1] if form.latent_dimensions == 3 else []
    return [form.latent_channels, *frames, side, side]


def observe(
    family: Architecture,
    clip: Clip,
    texts: Sequence[str],
    keys: Sequence[str],
    level: float = RUNS[0][0],
    seed: int = RUNS[0][1],
    stop: bool = True,
) -> list[Seen]:
    """What the layers `keys` of a family's MODEL see of each text, patches and LoRAs included.

    level, seed: of the noise. stop: whether the model's call ends when all layers were seen.
    Raises UnlearnError for a CLIP that does not go with the model.
    """
    if not texts:
        return []
    shape = latent_shape(family)
    run = _Observation(keys, batched_sampling.seeded_noise(shape, [seed]), stop)
    positive = []
    for text in texts:
        memory.raise_if_cancelled()
        tokens = clip.tokenize(text_encoding.escaped(text))
        positive += clip.encode_from_tokens_scheduled(tokens)
    try:
        schedule = from_level(family.model, level)
        inside_sampling(family.model, positive, shape, schedule, seed, run.run)
    except (RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        if memory.is_full(error):
            raise memory.OutOfMemory(
                "Memory ran out while the input 'model' read a prompt; free memory (Edit, Unload "
                "Models), or start ComfyUI with --novram."
            ) from error
        raise UnlearnError(
            f"The input 'model' ({kind(family.model)}) could not read a prompt of the input 'clip' "
            f"({type(error).__name__}: {error}); connect the text encoder that this model was "
            "made for."
        ) from error
    return [run.found[number] for number in range(len(texts))]


def from_level(model: Model, level: float) -> torch.Tensor:
    """Sigmas [2] of one step from the noise `level` (0..1 of the schedule) to none."""
    sampling: Any = model.get_model_object("model_sampling")
    return torch.tensor([float(sampling.percent_to_sigma(1 - level)), 0.0])


def inside_sampling(
    model: Model,
    positive: list,
    shape: Sequence[int],
    schedule: torch.Tensor,
    seed: int,
    body: Callable[[Any, torch.Tensor, dict], None],
) -> None:
    """Calls body(guider, sigmas, options) where ComfyUI samples with the sigmas `schedule`.

    The model is loaded then, and every entry of the CONDITIONING `positive` is made ready by
    itself. shape: of the latents.
    """
    room = torch.zeros([1, *shape])
    comfy.sample.sample_custom(
        model,
        room,
        1.0,
        batched_sampling.InsideGuider(body),
        schedule,
        positive,
        positive[:1],
        room,
        disable_pbar=True,
        seed=seed,
    )


def check_fixed(family: Architecture, clip: Clip, layers: Sequence[Layer]) -> None:
    """Raises UnlearnError unless layers see the same of a text whatever the picture and noise.

    And unless those of one group see the same, and something else of another text. The model runs
    twice, at two noise levels.
    """
    keys = [layer.key for layer in layers]
    first, second = (
        observe(family, clip, PROBES, keys, level, seed, stop=False) for level, seed in RUNS
    )
    leaders: dict[str, str] = {}
    for layer in layers:
        key = layer.key
        leader = leaders.setdefault(layer.group, key)
        fault = ""
        if any(key not in seen.rows for seen in (*first, *second)):
            fault = "is not called"
        elif not all(_same(a, b, layer, key, key) for a, b in zip(first, second, strict=True)):
            fault = "sees the picture or the noise level beside the text"
        elif not all(_same(a, a, layer, key, leader) for a in first):
            fault = "reads something else than the layers beside it"
        elif _same(first[0], first[1], layer, key, key):
            fault = "sees no text"
        if fault:
            path = key.removeprefix("diffusion_model.").removesuffix(".weight")
            raise UnlearnError(
                f"The input 'model' ({kind(family.model)}) cannot be edited, because its layer "
                f"'{path}' {fault}; use the model that it was made from."
            )


def _same(a: Seen, b: Seen, layer: Layer, key: str, other: str) -> bool:
    """Whether what a layer sees in one run is what a layer of its group sees in another."""
    columns = slice(None) if layer.columns is None else slice(*layer.columns)
    x, y = a.rows[key][:, columns], b.rows[other][:, columns]
    if x.shape != y.shape:
        return False
    return float((x - y).norm()) <= SAME * float(x.norm().clamp_min(1e-30))
