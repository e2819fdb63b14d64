"""What the closed-form solves are made from: Gram matrices of token states to change and of token states to keep.

What generalises (measured, see README): not a prompt's states themselves but their difference to the same sentence with a neutral
word in the concept's place, averaged over several sentences; it holds what the concept adds, and little of the sentence around it.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ...kernels import scapre
from . import prompts

TEMPLATES = {
    "object": (
        "{concept}",
        "a {concept}",
        "a photo of a {concept}",
        "the {concept} in the garden",
        "a man with a {concept} at night",
        "beautiful {concept}, sharp focus, detailed",
    ),
    "style": (
        "{concept}",
        "art in the style of {concept}",
        "a house in the style of {concept}",
        "a portrait of a woman in the style of {concept}",
        "{concept} style landscape",
        "a beautiful {concept} artwork",
    ),
    "explicit": (
        "{concept}",
        "a photo of a {concept} person",
        "a {concept} woman",
        "a {concept} man on a bed",
        "a picture of {concept} people",
        "portrait, {concept}, sharp focus, detailed",
    ),
}
KEPT = ("{concept}", "a photo of a {concept}", "the {concept} in the garden")  # more sentences were measured to add nothing
_PRIOR = Path(__file__).parents[1] / "data" / "prior.txt"
PAD_SAMPLES = 6


@dataclass(frozen=True)
class Statistics:
    """float64 moments over token states of width d, all divided by the RMS entry of the kept states.

    erase, move [d, d]: S = sum omega x x^T and T = sum omega (y - x) x^T of rows x whose output should become that of y; each
    concept's omega sum to its weight. keep [d, d]: mean of k k^T over kept states. concepts [d, m]: one mean row per concept.
    positive, negative [n, d] float32: states of the concepts and of what stands in for them. names: the m concepts.
    """

    erase: torch.Tensor
    move: torch.Tensor
    keep: torch.Tensor
    concepts: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    names: tuple[str, ...]


@cache
def prior_sentences():
    """Everyday captions that stand for all that nobody thought of keeping."""
    lines = (line.strip() for line in _PRIOR.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _mentions(text, names):
    return any(re.search(rf"(?<!\w){re.escape(n)}s?(?!\w)", text, re.IGNORECASE) for n in names)


def _rows(concept, neutral, c, n, tokens):
    """Rows (role, c state, n state, weight) of one sentence pair: `concept` and `neutral` are Prompts, c and n their states [77, d].

    Roles: each of the concept's own tokens, counted from the last; the words behind it together; the end token; samples of the
    padding, together as heavy as one token. Causal attention leaves what stands before the concept as it was.
    """
    length, shift = len(c), neutral.last - concept.last
    stand_in = max(neutral.last, neutral.first)  # with nothing in the concept's place: what comes next
    first = concept.first if tokens == "all" else concept.last
    rows = [(("own", p - concept.last), p, stand_in, 1.0) for p in range(first, concept.last + 1)]
    rows += [("word", p, p + shift, 1.0 / (concept.end - concept.last - 1)) for p in range(concept.last + 1, concept.end)]
    rows.append(("end", concept.end, concept.end + shift, 1.0))
    pads = torch.linspace(concept.end + 1, length - 1, PAD_SAMPLES).long().unique().tolist() if concept.end + 1 < length else []
    rows += [(("pad", j), p, p + shift, 1.0 / len(pads)) for j, p in enumerate(pads)]
    return [(role, c[p], n[min(q, length - 1)], weight) for role, p, q, weight in rows]


@dataclass(frozen=True)
class Plan:
    """Which sentences a ConceptSet is studied in, as pairs of (concept index, share of its weight, Prompt, neutral Prompt), and
    which prompts are kept."""

    pairs: tuple[tuple[int, float, prompts.Prompt, prompts.Prompt], ...]
    kept: tuple[prompts.Prompt, ...]
    names: tuple[str, ...]

    @property
    def texts(self):
        """Every text that must be encoded, once each."""
        return tuple(dict.fromkeys([t.text for _, _, *pair in self.pairs for t in pair] + [t.text for t in self.kept]))


def plan(clip, concept_set, templates=None, prior=True):
    """The Plan for a ConceptSet. templates: own sentences with {concept}, or None for those of each concept's kind; prior: also
    keep everyday captions. Raises UnlearnError for a concept that has no tokens or a text over 75 tokens."""
    pairs = []
    for i, concept in enumerate(concept_set.concepts):
        sentences = templates or TEMPLATES[concept.kind]
        share = concept.weight / (len(concept.names) * len(sentences))
        for name in concept.names:
            for template in (prompts.grammar(t, name) for t in sentences):
                pairs.append((i, share, prompts.locate(clip, template, name), prompts.locate(clip, template, concept.superclass)))
    names = [n for concept in concept_set.concepts for n in concept.names]
    kept = [prompts.grammar(t, k).replace("{concept}", k) for k in concept_set.keep for t in templates or KEPT]
    kept += [s for s in prior_sentences() if not _mentions(s, names)] if prior else []
    kept = [prompts.locate(clip, "{concept}", text) for text in dict.fromkeys(["", *kept])]
    return Plan(tuple(pairs), (*kept, *(neutral for *_, neutral in pairs)), tuple(c.name for c in concept_set.concepts))


def measure(plan, states, tokens="all", target="difference", overshoot=0.0):
    """Statistics of a Plan from `states`, text -> [length, d].

    tokens: 'all' or only the 'last' of the concept's own; target: 'difference' (erase what the concept adds to a sentence, averaged
    over the sentences) or 'state' (map the concept's states to the neutral ones, sentence by sentence). overshoot: erase to minus
    this share, y = -overshoot x, since in a sentence not studied the average reaches only part of what the concept adds.
    """
    found = []  # (concept index, what is averaged over sentences, c state, n state, weight)
    for i, share, a, b in plan.pairs:
        rows = _rows(a, b, states[a.text], states[b.text], tokens)
        total = sum(w for *_, w in rows)
        found += [(i, (i, a.name, role), c, n, share * w / total) for role, c, n, w in rows]
    owner, group, x, y, weights = zip(*found, strict=True)
    kept = _kept_states(plan.kept, states).double()
    scale = kept.square().mean().sqrt()
    kept, x, y = kept / scale, torch.stack(x).double() / scale, torch.stack(y).double() / scale
    owner, weights = torch.tensor(owner), torch.tensor(weights, dtype=torch.float64)
    positive, negative = x.float(), y.float()
    if target == "difference":
        x, weights, owner = _averaged(x - y, weights, owner, group)
        y = -overshoot * x
    mean = torch.zeros(x.shape[1], len(plan.names), dtype=torch.float64)
    for i in range(len(plan.names)):
        mine = owner == i
        mean[:, i] = (x[mine] * weights[mine, None]).sum(0) / weights[mine].sum()
    return Statistics(
        erase=scapre.gram(x, weights),
        move=scapre.cross_gram(y, x, weights),
        keep=scapre.gram(kept) / len(kept),
        concepts=mean,
        positive=positive,
        negative=negative,
        names=plan.names,
    )


def _averaged(rows, weights, owner, group):
    """Weighted means of the rows of each group, with the groups' weights and owners: what the sentences have in common."""
    ids = {g: j for j, g in enumerate(dict.fromkeys(group))}
    index = torch.tensor([ids[g] for g in group])
    total = torch.zeros(len(ids), dtype=torch.float64).index_add(0, index, weights)
    sums = torch.zeros(len(ids), rows.shape[1], dtype=torch.float64).index_add(0, index, rows * weights[:, None])
    first = torch.tensor([group.index(g) for g in ids])
    return sums / total[:, None], total, owner[first]


def _kept_states(kept, states):
    """All states to keep [n, d]: the start token, every word and end token of the prompts, and samples of the padding."""
    rows = []
    for prompt in dict.fromkeys(kept):
        state = states[prompt.text]
        pads = torch.linspace(prompt.end + 1, len(state) - 1, 3).long().unique() if prompt.end + 1 < len(state) else []
        rows += [state[: prompt.end + 1], state[pads]]
    return torch.cat(rows)
