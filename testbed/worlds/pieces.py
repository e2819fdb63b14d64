"""The text encoder of a world in Wan's format: a stand-in for UMT5-XXL.

ComfyUI takes the size of UMT5-XXL for granted, 5.7 billion weights, so no file of it can be small.
ComfyUI's own tokenizer, padding and mask read the text here. The network behind them is the narrow
CLIP-L of meaning.py: each piece of the sentence has the state of the CLIP token that holds the
piece's last letter, and the end token has the state of CLIP's.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from testbed.families import text_encoders

from . import meaning, transformers

PAD, END = 0, 1
LENGTH = 512  # rows that Wan reads of a text; the padding's are zero
SPACE = "\u2581"  # in place of a space in a piece


class PieceReader:
    """Token ids of Wan's tokenizer -> states in the coordinates of meaning.py."""

    def __init__(self, file: Path = meaning.FILE) -> None:
        import sentencepiece

        model = bytes(text_encoders.sentence_pieces().tolist())
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model, add_eos=True)
        self.encoder = meaning.NarrowEncoder("l", file)
        self.tokenizer = meaning.clip_tokenizer()

    def read(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """States [n, 257] of each text, given by its ids, up to its end token and that one's."""
        clip, places = [], []
        for ids in texts:
            words = list(itertools.takewhile(lambda i: i not in (PAD, END), ids))
            pieces = [self.pieces.id_to_piece(i) for i in words]
            text = "".join(pieces).replace(SPACE, " ").strip()
            most = {"truncation": True, "max_length": meaning.POSITIONS}
            clip.append(self.tokenizer(text, **most)["input_ids"])
            tokens = self.tokenizer.convert_ids_to_tokens(clip[-1][1:-1])
            ends = _ends(token.removesuffix("</w>") for token in tokens)
            mine = _ends(piece.replace(SPACE, "") for piece in pieces)[1:]
            at = torch.searchsorted(torch.tensor(ends), torch.tensor(mine)).clamp(max=len(tokens))
            places.append(torch.cat([at, torch.tensor([len(tokens) + 1])]))
        states = self.encoder.read(clip)[0]
        return [one[at] for one, at in zip(states, places, strict=True)]

    def of_texts(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """The same of texts."""
        return self.read([self.pieces.encode(text) for text in texts])


def _ends(parts: Any) -> list[int]:
    """0, and how many letters there are up to the end of each part."""
    return list(itertools.accumulate(map(len, parts), initial=0))


class _Ids:
    """In the place of embeddings: a token's vector has its id in front and zeros behind it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.weight = torch.zeros(1)  # ComfyUI asks on which device it lies

    def __call__(self, tokens: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.nn.functional.pad(tokens[..., None].float(), (0, self.width - 1))


class PieceEncoder(text_encoders.StandIn):
    """The network of UMT5 with the states of a PieceReader, widened to 4096."""

    def __init__(self, kind: type, config: Any, dtype: Any, operations: Any) -> None:
        super().__init__(kind, config, dtype, operations)
        self.embeddings = _Ids(transformers.WIDE)
        self.reader, self.wide = PieceReader(), transformers.of_text_states("wan")

    def forward(
        self,
        input_ids: None,
        attention_mask: torch.Tensor | None = None,
        embeds: torch.Tensor | None = None,
        num_tokens: list[int] | None = None,
        intermediate_output: Any = None,
        **_: Any,
    ) -> tuple:
        """(states [b, n, 4096], None); what stands after the end token is zero."""
        assert embeds is not None
        out = torch.zeros_like(embeds)
        texts = self.reader.read(embeds[..., 0].long().tolist())
        for row, states in zip(out, texts, strict=True):
            row[: len(states)] = (states @ self.wide.T)[: len(row)]
        return out, None


def clip() -> Any:
    """The CLIP that goes with a world in Wan's format."""
    import comfy.supported_models_base as base
    import comfy.text_encoders.wan as wan

    with torch.inference_mode():
        return text_encoders.build(base.ClipTarget(wan.WanT5Tokenizer, wan.te()), PieceEncoder)
