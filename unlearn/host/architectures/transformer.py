"""What diffusion transformers have in common: a family says where its layers are, in patterns.

A family's file holds a subclass of `Transformer` with nothing but facts. What its layers read of a
prompt is observed in the loaded model (observed_text.py), so that projections, adapters and
refiners between the text encoder and the layer need no code here.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

from .. import weights
from ..text_encoding import Prompt
from .base import TRAINABLE, Architecture, Layer, Role, Spans

PREFIX = "diffusion_model."
POOLED = "pooled text"


class Matrix(NamedTuple):
    """Weights of one kind.

    pattern: of a weight's name without `diffusion_model.` and `.weight`, for re.fullmatch; its
    groups are the numbers of the blocks. role: as a Layer has it. label: in a report, with {} for
    each number. group: of layers that read the same, with {} for each number where every block
    reads something else. columns: how many of the input's first columns are text, 0 for all.
    """

    pattern: str
    role: Role
    label: str
    group: str = "text"
    columns: int = 0


class Transformer(Architecture):
    """A family of diffusion transformers.

    title: what artists call it. told_by: patterns of weights that it has, all of them; not_told_by:
    patterns of which it has none. text, pooled: the matrices through which token states and the
    pooled text vector enter. exact: whether text enters there alone and these layers give what
    attention reads, so that what is erased is gone; otherwise it is mixed with the picture behind
    them. streams: the text encoders, as the tokenizer names them, whose tokens the rows of a group
    stand for, one encoder after another; () for the only one. second: the second linear layers of
    feed-forward blocks; attention: the matrices to train, by the choices of TRAINABLE. size: side
    in pixels of the pictures it was made for. smallest: side of the smallest latents it runs on.
    """

    title: ClassVar[str]
    told_by: ClassVar[tuple[str, ...]]
    not_told_by: ClassVar[tuple[str, ...]] = ()
    text: ClassVar[tuple[Matrix, ...]]
    pooled: ClassVar[tuple[Matrix, ...]] = ()
    exact: ClassVar[bool]
    streams: ClassVar[tuple[str, ...]] = ()
    second: ClassVar[tuple[Matrix, ...]] = ()
    attention: ClassVar[tuple[Matrix, ...]] = ()
    size: ClassVar[int] = 1024
    smallest: ClassVar[int] = 8

    @classmethod
    def fits(cls, keys: tuple[str, ...]) -> bool:
        names = [_name(key) for key in keys]

        def has(pattern: str) -> bool:
            return any(re.fullmatch(pattern, name) for name in names)

        return all(map(has, cls.told_by)) and not any(map(has, cls.not_told_by))

    def kind_of_edit(self) -> str:
        """What a report says of how exact an edit is."""
        if self.exact:
            return f"In {self.title} text enters through these layers alone, so the edit is exact."
        return (
            f"In {self.title} text is mixed with the picture behind the layers that were edited, "
            "where it enters; compare pictures before you trust the figures."
        )

    def streams_of(self, group: str) -> tuple[str, ...]:
        """The text encoders whose tokens the rows of a group of layers stand for."""
        return self.streams

    def cross_attention_layers(self) -> list[Layer]:
        return self._found(self.text, "layers that text enters through")

    def pooled_text_layers(self) -> list[Layer]:
        return _layers(self.keys, self.pooled)

    def feed_forward_layers(self) -> list[Layer]:
        found = self._found(self.second, "feed-forward layers to prune")
        return [layer._replace(group=layer.label) for layer in found]

    def trainable_matrices(self, which: str) -> list[Layer]:
        reads_text = which == TRAINABLE[1]
        chosen = tuple(m for m in self.attention if m.role in ("key", "value", "key and value"))
        return self._found(chosen if reads_text else self.attention, "attention layers to train")

    def _found(self, matrices: tuple[Matrix, ...], lacking: str) -> list[Layer]:
        found = _layers(self.keys, matrices)
        return found or self.refuse(lacking)

    @classmethod
    def label(cls, key: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        every = (*cls.text, *cls.pooled, *cls.second, *cls.attention)
        found = _layers((key,), every)
        return found[0].label if found else key

    @classmethod
    def reads_text(cls, key: str) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bool(_layers((key,), cls.text))

    def native_size(self) -> int:
        return self.size

    def uses_pooled_text(self) -> bool:
        return bool(self.pooled_text_layers())

    def lora_names(self) -> dict[str, str]:
        """ComfyUI's LoRA loader knows the weights of every model under these names."""
        return {key: "lora_unet_" + _name(key).replace(".", "_") for key in self.keys}

    def spans(self, prompt: Prompt, length: int) -> Spans:
        return Spans(
            own=range(prompt.first, prompt.last + 1),
            after=range(prompt.last + 1, prompt.end),
            end=prompt.end,
            padding=range(prompt.end + 1, length),
        )

    def text_width(self) -> int:
        """Width of what the layers of the first group read."""
        return weights.shape(self.model, self.cross_attention_layers()[0].key)[1]


def _name(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(".weight")


def _layers(keys: tuple[str, ...], matrices: tuple[Matrix, ...]) -> list[Layer]:
    """The Layers of a model with these weights, by the order of their blocks."""
    found: list[tuple[tuple[int, ...], int, Layer]] = []
    for place, matrix in enumerate(matrices):
        pattern = re.compile(matrix.pattern)
        for key in keys:
            match = pattern.fullmatch(_name(key)) if key.endswith(".weight") else None
            if match is None:
                continue
            numbers = [group for group in match.groups() if group is not None]
            layer = Layer(
                key,
                matrix.label.format(*numbers),
                matrix.role,
                matrix.group.format(*numbers),
                columns=(0, matrix.columns) if matrix.columns else None,
            )
            order = tuple(int(number) for number in numbers if number.isdigit())
            found.append((order, place, layer))
    found.sort(key=lambda item: item[:2])
    return [layer for _, _, layer in found]


def key_and_value(path: str, key: str, value: str) -> tuple[Matrix, Matrix]:
    """The two matrices of cross-attention in every block, which read the text states.

    path: with (\\d+) for the block's number.
    """
    return (
        Matrix(rf"{path}\.{key}", "key", "block {} k"),
        Matrix(rf"{path}\.{value}", "value", "block {} v"),
    )


def attention(path: str, names: tuple[str, str, str, str], label: str) -> tuple[Matrix, ...]:
    """The matrices of queries, keys, values and outputs, by their names behind a path."""
    roles: tuple[Role, ...] = ("query", "key", "value", "output")
    short = ("q", "k", "v", "out")
    return tuple(
        Matrix(rf"{path}\.{name}", role, f"{label} {end}")
        for name, role, end in zip(names, roles, short, strict=True)
    )


def entry(pattern: str, label: str = "text entry", group: str = "text") -> Matrix:
    """The one matrix through which all text enters."""
    return Matrix(pattern, "entry", label, group)


def pooled(pattern: str, label: str = POOLED, group: str = POOLED, columns: int = 0) -> Matrix:
    """The matrix through which the pooled text vector enters, in its first `columns` columns."""
    return Matrix(pattern, "entry", label, group, columns)


def second(pattern: str, label: str = "block {} ff") -> Matrix:
    """The second linear layers of the feed-forward blocks."""
    return Matrix(pattern, "feed-forward", label)
