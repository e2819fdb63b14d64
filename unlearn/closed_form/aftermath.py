"""What a solve can say of its result before any picture is drawn.

The edited model is asked: with noise alone, under sentences that were not studied, how much of
what a concept does to the prediction is left? Keys and values alone do not tell, because a little
of a concept in each of many tokens is enough to draw it. Kept entries that an edit would weaken
are held by themselves, and words that mean nothing to the text encoder are named.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...kernels import forecast as kernel
from ..analysis import forecast as analysis
from ..analysis import tuning as noise
from ..analysis.forecast import WordImpact
from ..concepts.notation import format_concept
from ..concepts.pasted import quoted
from ..concepts.sentences import CHECKED
from ..host import batched_sampling, memory, predictions, text_encoding, weights
from ..host.architectures import native_size
from ..host.model_types import Clip, Model
from ..types import Concept, ConceptSet
from . import tuning
from .session import Solution, SolveSession
from .token_statistics import kept_states

UNASKABLE = (RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError)
NAMED = 10  # concepts that one line of the report names


class Remaining(NamedTuple):
    """What is left of a concept in the edited model's predictions: 1 all, 0 nothing."""

    name: str
    left: float


def remaining(
    before: Model, after: Model, clip: Clip, concepts: Sequence[Concept], size: int = 0
) -> list[Remaining]:
    """What is left of concepts in an edited MODEL, most first.

    Both models predict a picture from noise for a sentence with the concept and one without it.
    The share of the difference that is left is taken over all sentences and seeds at once, so that
    sentences in which the concept does little count little. size: side in pixels, 0 for a small
    one; shares tell more than pictures here.
    """
    size = size or max(analysis.SMALLEST_SIZE, native_size(before) // tuning.ASKED_PART)
    seeds = noise.NOISE_SEEDS[: tuning.ASKED_SEEDS]
    texts, bounds = [], [0]
    for concept in concepts:
        for sentence in CHECKED[concept.kind]:
            template = text_encoding.fix_article(sentence, concept.name)
            for name in (concept.name, concept.superclass):
                texts.append(text_encoding.prompt_of(template, name))
        bounds.append(len(texts) // 2)
    added = []
    encoded: batched_sampling.Encoded = {}
    for model in (before, after):
        x = predictions.from_noise(
            model, clip, texts, seeds, level=noise.NOISE_LEVEL, size=size, encoded=encoded
        )
        added.append((x[0::2] - x[1::2]).flatten(1))
    found = []
    for concept, a, b in zip(concepts, bounds[:-1], bounds[1:], strict=True):
        left = kernel.share_left(*(rows[a:b].reshape(1, -1) for rows in added))
        found.append(Remaining(concept.name, float(left)))
    return sorted(found, key=lambda one: -one.left)


def ask(before: Model, after: Model, clip: Clip, concepts: ConceptSet, settings: Any) -> list[str]:
    """What the report says of the concepts that the edited MODEL may still draw.

    settings: the SolveSettings. Of many concepts an even choice is looked at.
    """
    every, shared = _apart_from_kept(concepts)
    told = []
    if shared:
        told.append(
            f"{quoted(shared[:NAMED])} shares words with the keep list; compare pictures of it."
        )
    if not every:
        return told
    count = min(tuning.ASKED_CONCEPTS, len(every))
    chosen = torch.linspace(0, len(every) - 1, count).long().unique().tolist()
    try:
        found = remaining(before, after, clip, [every[i] for i in chosen], settings.glance_size)
    except (*UNASKABLE, memory.OutOfMemory) as error:
        # Some models draw only with a picture or a mask, which a solve does not have.
        told.append(
            "How much is left could not be found out on this model "
            f"({type(error).__name__}); compare pictures."
        )
        return told
    finally:
        weights.restore(before)
    back = [one for one in found if one.left > tuning.LEFT_WARNING]
    weak = weakened_by(settings)
    if not back and weak:
        told.append(
            f"WARNING: {weak}, and then concepts come back in some pictures of sentences that "
            f"were not studied; {remedy(settings, concepts)}."
        )
    elif not back:
        told.append(
            f"In sentences that were not studied, the edited model keeps at most "
            f"{max(found[0].left, 0):.0%} of a concept ('{found[0].name}')."
        )
    if not back:
        return told
    listed = ", ".join(f"'{one.name}' ({one.left:.0%} left)" for one in back[:NAMED])
    told.append(
        f"WARNING: not gone in sentences that were not studied: {listed}; "
        f"{remedy(settings, concepts)}."
    )
    return told


def _apart_from_kept(concepts: ConceptSet) -> tuple[list[Concept], list[str]]:
    """The concepts that share no word with the keep list, and the names of the others.

    Of a phrase with a kept word something must be left, so its share says nothing.
    """
    kept = {entry.casefold() for entry in concepts.keep}
    apart = [c for c in concepts.concepts if kept.isdisjoint(c.name.casefold().split())]
    alone = set(apart)
    shared = [c.name for c in concepts.concepts if c not in alone]
    return apart, shared


def notes(
    models: tuple[Model, Model],
    clip: Clip,
    concepts: ConceptSet,
    settings: Any,
    found: Sequence[str],
    impacts: Sequence[WordImpact],
) -> list[str]:
    """All notes of a report. models: before and after; found: those of the solve itself."""
    return [
        *understood(concepts),
        *found,
        *unknown_words(clip, concepts),
        *keep_remedy(impacts, settings),
        *ask(*models, clip, concepts, settings),
    ]


def weakened_by(settings: Any) -> str:
    """The setting with which concepts were seen to come back although predictions say little.

    A quarter of the pictures showed the fox or the house again, at a share left of 0.1 or less.
    """
    if settings.variant in tuning.NOT_PUSHED:
        return f"the variant '{settings.variant}' forgets less than 'anchored'"
    if settings.variant != "anchored":
        return ""
    if not settings.prior:
        return "'prior' is off"
    if settings.overshoot < type(settings.chosen)().overshoot / 2:
        return f"'overshoot' is {settings.overshoot:g}"
    return ""


def remedy(settings: Any, concepts: ConceptSet) -> str:
    """The one input to change first when a concept is not gone."""
    chosen = settings.chosen
    if settings.variant != "anchored":
        return "choose the variant 'anchored'"
    if not settings.prior:
        return "turn 'prior' on"
    if settings.templates:
        return "empty 'templates', or add more sentences there"
    if settings.tokens != "all":
        return "set 'tokens' to 'all'"
    defaults = type(chosen)()
    for name, verb in (("erase", "raise"), ("overshoot", "raise"), ("drift", "raise")):
        if getattr(chosen, name) < getattr(defaults, name):
            return f"{verb} '{name}' to {getattr(defaults, name):g}"
    for name in ("preserve", "anchor"):
        if getattr(chosen, name) > getattr(defaults, name):
            return f"lower '{name}' to {getattr(defaults, name):g}"
    if settings.hard_keep > 0:
        return "lower 'hard_keep'"
    without = [c.name for c in concepts.concepts if not c.superclass]
    if without:
        return f"name what to draw instead, as in '{without[0]} -> thing'"
    return "raise 'drift' to 0.2, or list fewer concepts at once"


def hold_listed(session: SolveSession, found: Solution) -> Solution:
    """The solution with the kept entries held by themselves that it would weaken.

    These are above all words of a forgotten phrase. Their states are kept as well, and the variant
    solves once more. Nothing happens where all entries keep `KEPT_LEAST` of their effect.
    """
    lost = _weakened(session, found)
    prompts = [prompt for prompt in session.group.plan.listed if prompt.name in lost]
    if not prompts:
        return found
    states = session.group.fetch(prompts)
    rows = torch.cat([kept_states(prompt, states[prompt.text]) for prompt in prompts])
    stats = found.stats.protecting(rows.double() / found.stats.scale, tuning.KEPT_PROTECTION)
    held = found.again(session.solve(stats), stats)
    now = {impact.name: impact.retention for impact in _listed(session, held)}
    shown = ", ".join(f"'{name}' ({lost[name]:.0%} left, now {now[name]:.0%})" for name in lost)
    return held.again(
        held.edit,
        held.stats,
        f"Solved once more to hold what is on the keep list and was weakened: {shown}.",
    )


def _listed(session: SolveSession, found: Solution) -> list[WordImpact]:
    multiplier = found.edit.right_multiplier
    if multiplier is None:
        return []
    impacts = session.impacts(found.stats, session.grams.after_shared_edit(multiplier))
    return [impact for impact in impacts if impact.on_keep_list]


def _weakened(session: SolveSession, found: Solution) -> dict[str, float]:
    """The kept entries that lose most of their effect, and the share that is left of it."""
    impacts = _listed(session, found)
    return {i.name: i.retention for i in impacts if i.retention < tuning.KEPT_LEAST}


def keep_remedy(impacts: Sequence[WordImpact], settings: Any) -> list[str]:
    """What to do for kept entries that an edit still weakens."""
    lost = [i.name for i in impacts if i.on_keep_list and i.retention < tuning.KEPT_WARNING]
    if not lost:
        return []
    if settings.variant != "anchored":
        what = "choose the variant 'anchored', which holds them"
    elif settings.hard_keep < tuning.HARD_KEEP:
        what = f"set 'hard_keep' to {tuning.HARD_KEEP}"
    else:
        what = "name the concept by words that the kept ones do not share"
    return [f"To hold {quoted(lost[:NAMED])} more firmly {what}."]


def unknown_words(clip: Clip, concepts: ConceptSet) -> list[str]:
    """A line on the names that the text encoder spells instead of knowing them."""
    spelled = [c.name for c in concepts.concepts if _is_spelled(clip, c.name)]
    if not spelled:
        return []
    return [
        f"The text encoder knows no word in {quoted(spelled[:NAMED])} and reads pieces of single "
        "letters or bytes, so little of a picture may hang on it; use the word that draws it."
    ]


def _is_spelled(clip: Clip, name: str) -> bool:
    """Whether a name is read in more tokens than a word of its length has."""
    if name.startswith("embedding:"):
        return False
    letters = [c for c in name if unicodedata.category(c)[0] in "LNS"]
    # What stands around every prompt, as a chat template does, is no part of the name.
    tokens, around = (
        len(next(iter(text_encoding.tokens_of(clip, text)), ())) for text in (name, "")
    )
    tokens -= around
    foreign = [c for c in letters if not unicodedata.name(c, "").startswith(("LATIN", "DIGIT"))]
    if len(foreign) == len(letters):
        return tokens > len(letters)
    long_enough = name.isalpha() and len(letters) >= tuning.SPELLED_LETTERS
    return long_enough and tokens >= tuning.SPELLED * len(letters)


def understood(concepts: ConceptSet) -> list[str]:
    """The list as it was understood, on one line, and how its lines were read."""
    lines = [format_concept(c).removeprefix("object: ") for c in concepts.concepts[:NAMED]]
    more = len(concepts.concepts) - NAMED
    listed = "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
    kept = len(concepts.keep)
    keeps = f" Keeps {kept} listed." if kept else ""
    return [f"Understood as: {listed}.{keeps}", *concepts.notes]
