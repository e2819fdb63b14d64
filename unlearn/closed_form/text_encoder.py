"""A closed-form edit of the first layer of CLIP's text encoders (docs/methods/text_encoder.md).

A relative of Diff-QuickFix (arXiv 2310.13730), which edits the first self-attention's output
projection by least squares at a name's last token. Here it is the second feed-forward matrix W
[d, d_in] of the first working layer. There a token's own word still stands out in what the matrix
reads, and later layers read nothing but what the layer adds up to. With x what W sees of a sentence
with a concept, r what the layer then adds up to, and r* what it adds up to where the neutral word
stands in the concept's place, token for token, the change D of W minimises

    eta sum omega |D x - (r* - r)|^2 + tr D P D^T,   P = lambda I + beta K,

    D = eta sum omega (r* - r) x^T (P + eta sum omega x x^T)^-1,

with K the second moment of what W sees of all that is kept. Every UNet that reads the encoder
forgets with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...kernels import uce
from .. import provenance
from ..analysis import prior_words
from ..errors import UnlearnError
from ..files import encoder_parts, text_cache
from ..host import clip_layers, text_encoding, weights
from ..host.adapters import LowRank
from ..host.clip_layers import Encoder, Tokens
from ..host.model_types import Clip
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from ..types import ConceptSet, UnlearnPatch
from . import encoder_report, patch_edits, sentence_plan, tuning
from .sentence_plan import SentencePlan
from .token_statistics import kept_states


class Sentence(NamedTuple):
    """A sentence with a concept as tokens, and the same with neutral tokens in its place.

    concept: index in the ConceptSet; weight: share of its weight; first, last: the concept's
    tokens; end: the end token. Both sentences have the same length, so every other token stands
    where it stood.
    """

    concept: int
    weight: float
    tokens: Tokens
    neutral: Tokens
    first: int
    last: int
    end: int

    @property
    def rows(self) -> list[int]:
        """The places that the concept changes: its own, all later words, the end, some padding."""
        padding = text_cache.pads(self.end, len(self.tokens))
        return [*range(self.first, self.end + 1), *padding]


@dataclass(frozen=True)
class EncoderEdit:
    """The edit of one encoder. left: share of the wanted change that is missing where it was
    solved; change: of the weight, relative; lost: what cutting the rank gave up."""

    encoder: Encoder
    edit: LowRank
    left: float
    change: float
    lost: float


def solve(
    clip: Clip, concepts: ConceptSet, *, node_id: str | None = None
) -> tuple[UnlearnPatch, str]:
    """(patch, report text) for a ConceptSet. The CLIP is not changed.

    node_id: of the node that shows the progress. Raises UnlearnError for encoders other than
    CLIP-L and CLIP-G, and for text that cannot be used; ComfyUI's InterruptProcessingException
    after cancelling.
    """
    progress = Progress(node_id=node_id)
    progress.begin("Writing the sentences to study")
    encoders = clip_layers.encoders(clip)
    plan = sentence_plan.plan(clip, concepts)
    texts = 2 * len(plan.pairs) + len(plan.kept) + len(plan.packed)
    progress.set_total(len(encoders) * (texts + 1))
    found = [_edit(encoder, plan, progress) for encoder in encoders]
    patch = _patch(clip, concepts, found)
    progress.begin("Looking at what is left of the concepts")
    part = encoder_parts.of_encoder(patch)
    if part is None:
        raise ValueError("a patch of this method is for the text encoder")
    seen = encoder_report.look(clip, encoder_parts.apply(clip, part), plan)
    return patch, encoder_report.text(patch, found, seen)


def _patch(clip: Clip, concepts: ConceptSet, found: Sequence[EncoderEdit]) -> UnlearnPatch:
    """The edits with the fingerprint of the CLIP and their provenance."""
    record = provenance.record(
        provenance.TEXT_ENCODER,
        {"encoders": [one.encoder.called for one in found]},
        concepts,
        tuning.OF_ENCODER,
        encoder_parts.manifest(clip),
    )
    edits = tuple((one.encoder.key, one.edit) for one in found)
    prints = weights.fingerprint(clip.patcher, [key for key, _ in edits])
    return encoder_parts.as_part(UnlearnPatch(edits, prints, (record,)))


def sentences(encoder: Encoder, plan: SentencePlan) -> list[Sentence]:
    """The Sentences of an encoder that a plan studies.

    Raises UnlearnError for a concept that is the same as its neutral word.
    """
    found = []
    for index, weight, prompt, neutral in plan.pairs:
        tokens = encoder.tokens(prompt.text)
        count = prompt.last - prompt.first + 1
        words = stand_ins(_words(encoder, neutral.name), count, encoder.end)
        other = [*tokens[: prompt.first], *words, *tokens[prompt.last + 1 :]]
        if [*map(text_encoding.comparable, other)] == [*map(text_encoding.comparable, tokens)]:
            raise UnlearnError(
                f"'{plan.names[index]}' and what it should turn into are the same to the text "
                "encoder; write something wider behind '->'."
            )
        found.append(Sentence(index, weight, tokens, other, prompt.first, prompt.last, prompt.end))
    return found


def _words(encoder: Encoder, text: str) -> Tokens:
    """The tokens of a text without start, end and padding."""
    tokens = encoder.tokens(text)[1:]
    ends = [place for place, token in enumerate(tokens) if _is(token, encoder.end)]
    return tokens[: ends[0]] if ends else tokens


def _is(token: object, number: int) -> bool:
    return isinstance(token, int) and token == number


def stand_ins(words: Sequence, count: int, end: int) -> Tokens:
    """`count` tokens that stand in for a concept of so many: those of its neutral word.

    Of a longer one the last ones, which name the thing; of a shorter one the last again and again.
    Without a neutral word the end token, as in a sentence that ends there.
    """
    if not words:
        return [end] * count
    return [*words, *[words[-1]] * count][:count] if len(words) < count else [*words[-count:]]


def _edit(encoder: Encoder, plan: SentencePlan, progress: Progress) -> EncoderEdit:
    """The EncoderEdit of one encoder."""
    progress.begin(f"Reading sentences with {encoder.called}")
    studied = sentences(encoder, plan)
    x, y, omega, neutral = _wanted(encoder, studied, progress)
    held, scale = _held(encoder, plan, neutral, progress)
    progress.begin(f"Solving for {encoder.called}")
    change = solution(x / scale, y, omega, held) / scale
    missing = (y - x @ change.T).square().sum(1) @ omega
    wanted = y.square().sum(1) @ omega
    ups, down, lost = patch_edits.cut([change.T])
    edit = LowRank.of(down.T.contiguous(), ups[0].T.contiguous())
    progress.step()
    w0 = weights.read(encoder.clip.patcher, encoder.key)
    return EncoderEdit(
        encoder, edit, float(missing / wanted), float(change.norm() / w0.norm()), lost
    )


def solution(
    x: torch.Tensor, y: torch.Tensor, omega: torch.Tensor, held: torch.Tensor
) -> torch.Tensor:
    """The change D [d_out, d] float64 that gives inputs x [n, d] the outputs y [n, d_out] more.

    omega: [n] of each row; held: the second moment K [d, d] of the inputs that keep their outputs.
    It minimises the objective above with the constants of tuning.py.
    """
    weighted = x.double() * omega.double()[:, None]
    return uce.multiplier(
        weighted.T @ x.double(),
        y.double().T @ weighted,
        held,
        tuning.ENCODER_ANCHOR,
        tuning.ENCODER_ERASE,
        tuning.ENCODER_PRESERVE,
    )


def _wanted(
    encoder: Encoder, studied: Sequence[Sentence], progress: Progress
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs x [n, d], wanted changes y [n, d_out], weights [n], neutral sentences' inputs)."""
    x, y, omega, neutral = [], [], [], []
    for block in _blocks(studied):
        with_it = clip_layers.look(encoder, [one.tokens for one in block], progress)
        without = clip_layers.look(encoder, [one.neutral for one in block], progress)
        for place, one in enumerate(block):
            rows = one.rows
            x.append(with_it.into[place, rows])
            y.append(without.stream[place, rows] - with_it.stream[place, rows])
            share = torch.full((len(rows),), one.weight / len(rows), dtype=torch.float64)
            share[: one.last - one.first + 1] *= tuning.ENCODER_OWN
            omega.append(share)
            neutral.append(without.into[place, : one.end + 1])
            neutral.append(without.into[place, rows[one.end - one.first + 1 :]])
    return torch.cat(x).double(), torch.cat(y).double(), torch.cat(omega), torch.cat(neutral)


def _held(
    encoder: Encoder, plan: SentencePlan, neutral: torch.Tensor, progress: Progress
) -> tuple[torch.Tensor, float]:
    """(second moment K [d, d] float64 of all inputs that are kept, their RMS entry).

    neutral: [n, d], inputs of the neutral sentences. K is of inputs divided by the RMS entry.
    """
    total, count = _moment(neutral[:0]), 0
    for block in _blocks(plan.kept):
        seen = clip_layers.look(encoder, [encoder.tokens(p.text) for p in block], progress)
        rows = torch.cat([kept_states(p, into) for p, into in zip(block, seen.into, strict=True)])
        total, count = total + _moment(rows), count + len(rows)
    held = total / count
    scale = float(held.trace() / len(held)) ** 0.5
    held = held + tuning.NEUTRAL_WEIGHT * _moment(neutral) / len(neutral)

    def fetch(
        wanted: Iterable[Prompt], progress: Progress | None = None
    ) -> dict[str, torch.Tensor]:
        wanted = list(wanted)
        into = clip_layers.look(encoder, [encoder.tokens(p.text) for p in wanted]).into
        return {prompt.text: rows for prompt, rows in zip(wanted, into, strict=True)}

    total, count = _moment(neutral[:0]), 0
    for packed in _blocks(plan.packed):
        words, states = prior_words.word_states(packed, plan.forgotten, fetch)
        progress.step(len(packed))
        if words:
            total, count = total + _moment(states), count + len(words)
    held = held + tuning.WORDS_WEIGHT * total / max(1, count)
    return held / scale**2, scale


def _moment(rows: torch.Tensor) -> torch.Tensor:
    """Sum of x x^T, [d, d] float64, of rows [n, d]; in half the time, as products of float32."""
    return (rows.float().T @ rows.float()).double()


def _blocks(items: Sequence) -> Iterator[Sequence]:
    """The items, some at a time, so that what a layer sees of them fits into memory."""
    for start in range(0, len(items), tuning.ENCODER_BLOCK):
        yield items[start : start + tuning.ENCODER_BLOCK]
