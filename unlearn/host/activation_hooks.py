"""Hooks on the layers of a loaded model, to see what passes through them."""

from collections.abc import Callable, Sequence

import comfy.utils
import torch

from .model_types import Model

# Called with the layer's number, its module, its input [batch, positions, c_in] and its output.
Measure = Callable[[int, torch.nn.Module, torch.Tensor, torch.Tensor], None]


class ActivationHooks:
    """Forward hooks on some linear layers of a MODEL. They stay until `remove` is called."""

    def __init__(self, model: Model, keys: Sequence[str], measure: Measure) -> None:
        """keys: the weight keys of the layers."""
        self._handles = []
        for number, key in enumerate(keys):
            module = comfy.utils.get_attr(model.model, key.removesuffix(".weight"))
            self._handles.append(module.register_forward_hook(_hook(number, measure)))

    def remove(self) -> None:
        """Takes all hooks off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _hook(number: int, measure: Measure) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        measure(number, module, args[0], output)

    return hook


def is_compiled(model: Model) -> bool:
    """Whether TorchCompileModel was applied to a MODEL, which hides what passes between layers."""
    return any("torch.compile" in by_key for by_key in model.wrappers.values())
