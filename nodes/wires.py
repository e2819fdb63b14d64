"""What comes in is looked at before a node runs: nothing on a wire, the wrong thing, a bad number.

ComfyUI checks the types of wires and the limits of widgets, but not what a wire brings: a loader
gives nothing where the file has no text encoder, and a linked number may be any number.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io

from ..unlearn.errors import UnlearnError, quoted
from ..unlearn.host import progress
from ..unlearn.types import ConceptSet, SaliencyMap, UnlearnPatch
from .sockets import Concepts, Patch, Saliency

LARGEST_SHOWN = 10**30
# Lists of files. What is not in them may still be there, and the nodes say so themselves.
_LISTS_OF_FILES = ("name", "file", "preset")
# What tells a MODEL and a CLIP, of ComfyUI and of other packs.
_MODEL_HAS = ("model", "clone", "add_patches", "get_model_object")
_CLIP_HAS = ("tokenize", "encode_from_tokens_scheduled")


class _Wire(NamedTuple):
    """A type of wire: whether a value is of it, what it is called, and where it comes from."""

    fits: Callable[[Any], bool]
    called: str
    source: str


def _has(*names: str) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return all(hasattr(value, name) for name in names)

    return fits


def _is_model(value: Any) -> bool:
    return _has(*_MODEL_HAS)(value) and hasattr(value.model, "diffusion_model")


def _is_vae(value: Any) -> bool:
    """Whether a value is a VAE. A CLIP and a text encode and decode as well, but no pictures."""
    if hasattr(value, "tokenize") or isinstance(value, str | bytes):
        return False
    return hasattr(value, "encode") or hasattr(value, "decode")


def _is_conditioning(value: Any) -> bool:
    """Whether a value is a CONDITIONING: a list of [token states, options], not empty."""
    if not isinstance(value, list) or not value:
        return False
    pairs = all(isinstance(part, list | tuple) and len(part) == 2 for part in value)
    return pairs and all(isinstance(part[0], torch.Tensor) for part in value)


def _is_picture(value: Any) -> bool:
    """Whether a value is an IMAGE batch [n, h, w, 3 or more] of finite numbers."""
    if not isinstance(value, torch.Tensor) or value.ndim != 4 or not value.is_floating_point():
        return False
    return min(value.shape) > 0 and value.shape[3] >= 3 and bool(torch.isfinite(value).all())


_WIRES = {
    io.Model.io_type: _Wire(_is_model, "a diffusion model", "the model of a checkpoint loader"),
    io.Clip.io_type: _Wire(
        _has(*_CLIP_HAS), "a text encoder", "the clip of a checkpoint loader, or Load CLIP"
    ),
    io.Conditioning.io_type: _Wire(
        _is_conditioning, "a prompt that a text encoder has read", "CLIP Text Encode"
    ),
    io.Vae.io_type: _Wire(_is_vae, "a VAE", "the vae of a checkpoint loader, or Load VAE"),
    io.ClipVision.io_type: _Wire(_has("encode_image"), "a CLIP vision model", "Load CLIP Vision"),
    io.Image.io_type: _Wire(
        _is_picture, "a batch of colour pictures without NaN", "Load Image or another picture"
    ),
    Concepts.io_type: _Wire(
        lambda value: isinstance(value, ConceptSet), "a list of concepts", "Concepts to Forget"
    ),
    Saliency.io_type: _Wire(
        lambda value: isinstance(value, SaliencyMap),
        "a saliency map",
        "Concept Saliency or Load Concept Saliency",
    ),
    Patch.io_type: _Wire(
        lambda value: isinstance(value, UnlearnPatch),
        "an unlearn patch",
        "an eraser such as ScaPre Solve, or Load Unlearn Patch",
    ),
}


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which now looks at its inputs before it runs, and says under it what stopped it.

    `execute` then raises UnlearnError, naming the input, for a wire that brings nothing or the
    wrong thing, and for a number, a text or a choice that its schema does not allow.
    """
    plain: Any = node.execute.__func__  # pyright: ignore[reportFunctionMemberAccess]
    names = plain.__code__.co_varnames[: plain.__code__.co_argcount]

    @functools.wraps(plain)
    def execute(cls: type[io.ComfyNode], *args: Any, **given: Any) -> io.NodeOutput:
        values = {**dict(zip(names[1:], args, strict=False)), **given}
        with progress.told(getattr(cls.hidden, "unique_id", None)):
            for item in cls.define_schema().inputs:
                _check(item, values)
            return plain(cls, *args, **given)

    node.execute = classmethod(execute)  # pyright: ignore[reportAttributeAccessIssue]
    return node


def _check(item: Any, values: Mapping[str, Any]) -> None:
    """Raises UnlearnError unless an input's value, if given, is one that its schema allows."""
    wire = _WIRES.get(item.io_type)
    if item.id not in values:
        if wire is not None and not item.optional:
            raise _nothing(item.id, wire)
        return
    value = values[item.id]
    if isinstance(item, io.Autogrow.Input):
        _check_several(item, value)
    elif isinstance(item, io.DynamicCombo.Input):
        _check_choice_with_settings(item, value)
    elif wire is not None:
        _check_wire(item.id, wire, value, item.optional)
    else:
        _check_widget(item, value)


def _nothing(name: str, wire: _Wire) -> UnlearnError:
    return UnlearnError(
        f"The input '{name}' brings nothing, as a loader does whose file lacks it; "
        f"connect {wire.source}."
    )


def _check_wire(name: str, wire: _Wire, value: Any, optional: bool = False) -> None:
    if value is None:
        if optional:
            return
        raise _nothing(name, wire)
    if not wire.fits(value):
        raise UnlearnError(
            f"The input '{name}' brings {_kind(value)}, which is not {wire.called}; "
            f"connect {wire.source}."
        )
    if isinstance(value, ConceptSet) and not optional and not value.concepts:
        raise UnlearnError(
            f"The input '{name}' brings a list without any concept to forget; write one in "
            "Concepts to Forget."
        )


def _kind(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"something of the type {type(value).__name__}"


def _check_several(item: Any, value: Any) -> None:
    """Raises UnlearnError unless a growing input's value maps its sockets to what they take.

    Sockets without anything are allowed: what feeds them may be bypassed.
    """
    wire = _WIRES[item.template.input.io_type]
    if not isinstance(value, Mapping):
        raise _nothing(item.id, wire)
    for name, brought in value.items():
        _check_wire(str(name), wire, brought, optional=True)


def _check_choice_with_settings(item: Any, value: Any) -> None:
    """Raises UnlearnError unless a choice and the settings that belong to it are allowed."""
    keys = [option.key for option in item.options]
    chosen = value.get(item.id) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or chosen not in keys:
        raise _not_among(item.id, chosen, keys)
    for setting in item.options[keys.index(chosen)].inputs:
        _check(setting, value)


def _check_widget(item: Any, value: Any) -> None:
    kind, name = item.io_type, item.id
    if kind in (io.Int.io_type, io.Float.io_type):
        _check_number(item, value)
    elif kind == io.String.io_type and not isinstance(value, str):
        raise UnlearnError(f"The input '{name}' is {_kind(value)}; give it a text.")
    elif kind == io.Combo.io_type and name in _LISTS_OF_FILES:
        if not isinstance(value, str | None):
            raise UnlearnError(f"The input '{name}' is {_kind(value)}; choose a name in the list.")
    elif kind == io.Combo.io_type and value not in item.options:
        raise _not_among(name, value, item.options)


def _not_among(name: str, value: Any, options: Sequence[str]) -> UnlearnError:
    return UnlearnError(
        f"The input '{name}' is {quoted(str(value))}; choose one of {', '.join(options)}."
    )


def _check_number(item: Any, value: Any) -> None:
    whole = item.io_type == io.Int.io_type
    number = isinstance(value, int | float)
    # NaN is not within any limits.
    if number and item.min <= value <= item.max and not (whole and value != int(value)):
        return
    shown = _kind(value)
    if number:
        large = isinstance(value, int) and abs(value) > LARGEST_SHOWN
        shown = "out of all bounds" if large else str(value)
    raise UnlearnError(
        f"The input '{item.id}' is {shown}; give it a {'whole ' * whole}number from {item.min} to "
        f"{item.max}."
    )
