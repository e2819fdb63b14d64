"""What the pack's own solve reads of a ConceptSet, for the peers' rows `same information`.

These are the six sentences in which it studies each name and the two in which it checks it, each
beside the same sentence with the superclass; the keep list in three sentences each; everyday
captions, common words and the empty text. What is kept has ours' weights. In a sentence the
concept's own tokens and the end token weigh one each, the words behind the concept and the padding
one together, and a concept's sentences weigh one together.

What ours makes of it is its own: it takes differences to the neutral sentence, averages them over
sentences, pushes past zero and holds single entries again. None of this is here.
"""

from typing import NamedTuple

import torch

from testbed import pack

from . import _shared

plans = pack.module("unlearn.closed_form.sentence_plan")
statistics = pack.module("unlearn.closed_form.token_statistics")
text_cache = pack.module("unlearn.files.text_cache")


class Information(NamedTuple):
    """Float64 states divided by their RMS entry.

    concept, target [n, d]: states of the sentences' tokens from the concept on, and what stands
    there with the superclass; weight [n]; own, end [n]: which are of the concept's own tokens or
    the end token; of [n]: whose concept's. count: how many concepts.
    keep_gram [d, d]: the moment of everything that is kept; kept [r, d]: these states.
    listed [k, d]: last and end tokens of the keep list, averaged over its sentences.
    null [77, d]: states of the empty text.
    """

    concept: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    own: torch.Tensor
    end: torch.Tensor
    of: torch.Tensor
    count: int
    keep_gram: torch.Tensor
    kept: torch.Tensor
    listed: torch.Tensor
    null: torch.Tensor

    def averages(self):
        """(concept, target), [2 count, d] each: each concept's own tokens and end tokens, as means
        over its sentences."""
        chosen = [(self.of == i) & at for i in range(self.count) for at in (self.own, self.end)]
        return tuple(
            torch.stack([rows[at].mean(0) for at in chosen]) for rows in (self.concept, self.target)
        )


class Reader:
    """Reads token states of Prompts as ours does, and keeps what it has read."""

    def __init__(self, clip):
        self.cache, self.known = text_cache.TextStateCache(clip, None), {}

    def get(self, wanted, progress=None):
        """Text -> states [77, d] of Prompts."""
        wanted = list(wanted)
        new = [prompt for prompt in wanted if prompt.text not in self.known]
        if new:
            self.known |= self.cache.get(new, progress)
        return {prompt.text: self.known[prompt.text] for prompt in wanted}


class Row(NamedTuple):
    """Two tokens that are compared: their positions, the weight, and what the first one is."""

    at: int
    other: int
    weight: float
    own: bool = False
    end: bool = False


def compared(prompt, neutral, length):
    """Rows of a sentence and its neutral one, of `length` positions; their weights sum to one."""
    spans, others = (_shared.layers.text_spans(p, length) for p in (prompt, neutral))
    shift = others.own.stop - spans.own.stop
    # Where nothing stands in the concept's place, the next token is compared.
    stand_in = max(others.own.stop - 1, others.own.start)
    rows = [Row(at, stand_in, 1.0, own=True) for at in spans.own]
    rows += [Row(at, at + shift, 1 / len(spans.after)) for at in spans.after]
    rows.append(Row(spans.end, spans.end + shift, 1.0, end=True))
    pads = [text_cache.samples_of(s.padding) for s in (spans, others)]
    shared = list(zip(*pads, strict=False))
    rows += [Row(at, other, 1 / len(shared)) for at, other in shared]
    total = sum(row.weight for row in rows)
    return [row._replace(weight=row.weight / total) for row in rows]


def sentences(plan):
    """(index of the concept, sentence, neutral sentence) of all that is studied and checked."""
    found = [(pair.concept, pair.prompt, pair.neutral) for pair in plan.pairs]
    # Here all of their tokens count, the padding too.
    return found + [
        (i, *(prompt._replace(padded=True) for prompt in pair)) for i, *pair in plan.checked
    ]


def kept_states(plan, states):
    """(states [r, d] of all that is kept but the words, [k, d] of the keep list's sentences)."""
    kept = [statistics.kept_states(p, states[p.text]) for p in plan.kept]
    listed = {}
    for prompt in plan.listed:
        own = states[prompt.text][[prompt.last, prompt.end]].double()
        listed.setdefault(prompt.name, []).append(own)
    means = [torch.stack(found).mean(0) for found in listed.values()]
    return torch.cat(kept).double(), torch.cat(means) if means else kept[0][:0].double()


def read(clip, concepts):
    """The Information of a ConceptSet."""
    plan, reader = plans.plan(clip, concepts), Reader(clip)
    found = statistics.measure(plan, reader.get)
    said = sentences(plan)
    reader.get([p for _, *both in said for p in both])
    states, length = reader.known, len(reader.known[plan.kept[0].text])
    rows = [(i, a.text, b.text, row) for i, a, b in said for row in compared(a, b, length)]
    of = torch.tensor([i for i, *_ in rows])
    counts = torch.tensor([i for i, *_ in said]).bincount().double()
    weight = torch.tensor([row.weight for *_, row in rows], dtype=torch.float64) / counts[of]
    kept, listed = kept_states(plan, states)
    return Information(
        torch.stack([states[a][row.at] for _, a, _, row in rows]).double() / found.scale,
        torch.stack([states[b][row.other] for _, _, b, row in rows]).double() / found.scale,
        weight,
        torch.tensor([row.own for *_, row in rows]),
        torch.tensor([row.end for *_, row in rows]),
        of,
        len(concepts.concepts),
        found.preserve_gram,
        torch.cat([kept / found.scale, found.word_states]),
        listed / found.scale,
        _shared.all_states(clip, [""]) / found.scale,
    )
