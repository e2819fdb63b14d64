"""ComfyUI's own text encoders of large models, with made-up states in place of the network's.

Tokenizers, chat templates, padding, masks, chosen layers and what else a text encoder says are all
ComfyUI's code. Only the network inside is another: a table of token vectors, mixed along the
sentence as the real one mixes them, forwards only or in both directions.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

RANK = 64  # coordinates of a token's vector
MIXED = 0.5  # share of the other tokens in a state
FEW = 8  # tokens whose sum is as long as their mean would be
BOTH_WAYS = ("T5", "BertModel")  # networks whose tokens see what comes after them


@functools.cache
def _table(vocabulary: int) -> torch.Tensor:
    """A vector [RANK] of each token."""
    g = torch.Generator().manual_seed(vocabulary)
    return torch.randn(vocabulary, RANK, generator=g)


@functools.cache
def _spread(width: int) -> torch.Tensor:
    """[RANK, width]: from a token's vector to states of this width."""
    return torch.randn(RANK, width, generator=torch.Generator().manual_seed(width)) / RANK**0.5


class Embeddings:
    """What a network's embedding layer answers, without its weights."""

    def __init__(self, vocabulary: int, width: int) -> None:
        self.vocabulary, self.width = vocabulary, width
        self.weight = torch.zeros(1)  # ComfyUI asks on which device it lies

    def __call__(self, tokens: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return _table(self.vocabulary)[tokens % self.vocabulary] @ _spread(self.width)


class StandIn(torch.nn.Module):
    """In the place of a text encoder's network. It has one parameter, so that it can be loaded."""

    def __init__(self, kind: type, config: Any, dtype: Any, operations: Any) -> None:
        super().__init__()
        shell = kind(config, dtype, torch.device("meta"), operations)
        vocabulary, width = shell.get_input_embeddings().weight.shape
        self.num_layers: int = shell.num_layers
        self.both_ways = kind.__name__ in BOTH_WAYS
        self.pools = hasattr(shell, "text_projection")  # of the networks, CLIP's alone
        self.embeddings = Embeddings(vocabulary, width)
        self.unused = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def get_input_embeddings(self) -> Embeddings:
        return self.embeddings

    def _others(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """For each token what it takes from those that it sees, as far as they are not masked.

        It is no sum of them, as little as in a real network: otherwise what a word adds to others
        would be made of the words themselves.
        """
        seen = torch.ones(x.shape[:2]) if mask is None else mask.to(x)
        taken = x * seen[..., None] / FEW
        total = taken.sum(1, keepdim=True).expand_as(x) if self.both_ways else taken.cumsum(1)
        return torch.sin(2 * total)

    def forward(
        self,
        input_ids: None,
        attention_mask: torch.Tensor | None = None,
        embeds: torch.Tensor | None = None,
        num_tokens: list[int] | None = None,
        intermediate_output: Any = None,
        **_: Any,
    ) -> tuple:
        """(last states, those of chosen layers, and of CLIP the pooled vectors [b, d])."""
        assert embeds is not None
        others = self._others(embeds, attention_mask)

        def after(layer: int) -> torch.Tensor:
            return embeds + (0.5 + layer / self.num_layers) * MIXED * others

        last, chosen = after(self.num_layers), None
        if isinstance(intermediate_output, list):
            chosen = torch.stack([after(layer) for layer in intermediate_output], 1)
        elif intermediate_output == "all":
            chosen = torch.stack([after(layer) for layer in range(self.num_layers + 1)], 1)
        elif intermediate_output is not None:
            chosen = after(intermediate_output % self.num_layers)
        if not self.pools or num_tokens is None:
            return last, chosen
        ends = last[range(len(last)), [n - 1 for n in num_tokens]]
        return last, chosen, ends, ends


@contextmanager
def stand_ins(network: type[StandIn] = StandIn) -> Iterator[None]:
    """While it lasts, ComfyUI's text encoders are made with stand-ins for their networks."""
    import comfy.sd1_clip

    made = comfy.sd1_clip.SDClipModel.__init__

    def make(self: Any, *args: Any, **given: Any) -> None:
        kind = given.get("model_class", comfy.sd1_clip.comfy.clip_model.CLIPTextModel)

        def build(config: Any, dtype: Any, device: Any, operations: Any) -> StandIn:
            return network(kind, config, dtype, operations)

        made(self, *args, **{**given, "model_class": build})

    with mock.patch.object(comfy.sd1_clip.SDClipModel, "__init__", make):
        yield


@functools.cache
def sentence_pieces() -> torch.Tensor:
    """The one sentencepiece file on disk, for tokenizers whose own comes with their weights.

    In it the end token has the number 1 as in T5's, and the start token 2 as in Gemma's.
    """
    found = (_folder("t5_pile_tokenizer") / "tokenizer.model").read_bytes()
    pieces, at = [], 0
    for _ in range(3):  # each is a byte that says what it is, a byte with its length, and itself
        stop = at + 2 + found[at + 1]
        pieces.append(found[at:stop])
        at = stop
    unknown, start, end = pieces
    assert b"<s>" in start and b"</s>" in end
    return torch.frombuffer(bytearray(unknown + end + start + found[at:]), dtype=torch.uint8)


class _MistralTokenizer:
    """Qwen's tokenizer in the form of Mistral's, whose vocabulary comes with its weights.

    With the version of transformers that is installed here, ComfyUI cannot read that vocabulary.
    """

    START = 1

    def __init__(self) -> None:
        from transformers import Qwen2Tokenizer

        self.inner = Qwen2Tokenizer.from_pretrained(_folder("qwen25_tokenizer"))

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> "_MistralTokenizer":
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.START, *self.inner(text)["input_ids"]]}

    def get_vocab(self) -> dict[str, int]:
        return self.inner.get_vocab()


def _folder(name: str) -> Path:
    import comfy.text_encoders

    (folder,) = comfy.text_encoders.__path__
    return Path(folder, name)


@contextmanager
def _readable_tokenizers() -> Iterator[None]:
    import comfy.text_encoders.flux as flux

    with (
        mock.patch.object(flux, "load_mistral_tokenizer", return_value={}),
        mock.patch.object(flux, "MistralTokenizerClass", _MistralTokenizer),
    ):
        yield


def build(target: Any, network: type[StandIn] = StandIn) -> Any:
    """A CLIP of ComfyUI's for a ClipTarget, with stand-ins of this class for its networks."""
    import comfy.sd

    pieces = sentence_pieces()
    data = {"spiece_model": pieces, "mt5xl.spiece_model": pieces}
    with stand_ins(network), _readable_tokenizers():
        return comfy.sd.CLIP(
            target, tokenizer_data=data, parameters=1, model_options={"dtype": torch.float32}
        )
