"""What a solve can say of its result before any picture is drawn.

The edited model is asked: with noise alone, under sentences that were not studied, how much of
what a concept does to the prediction is left? Keys and values alone do not tell, because a little
of a concept in each of many tokens is enough to draw it. Kept entries that an edit would weaken
are held by themselves, and words that mean nothing to the text encoder are named.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ...kernels import forecast as kernel
from .. import wording
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
from ..wording import Findings
from . import tuning
from .session import Solution, SolveSession
from .token_statistics import kept_states

UNASKABLE = (RuntimeError, TypeError, KeyError, AttributeError, NotImplementedError)
NAMED = 10  # concepts that one line of the report names
OF_SOLVE, OF_LIST = "of ScaPre Solve", "of Concepts to Forget"


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
    once = list(dict.fromkeys(texts))  # concepts often share a neutral sentence
    rows = torch.tensor([once.index(text) for text in texts])
    for model in (before, after):
        x = predictions.from_noise(
            model, clip, once, seeds, level=noise.NOISE_LEVEL, size=size, encoded=encoded
        )[rows]
        added.append((x[0::2] - x[1::2]).flatten(1))
    found = []
    for concept, a, b in zip(concepts, bounds[:-1], bounds[1:], strict=True):
        left = kernel.share_left(*(part[a:b].reshape(1, -1) for part in added))
        found.append(Remaining(concept.name, float(left)))
    return sorted(found, key=lambda one: -one.left)


@dataclass(frozen=True)
class Asked:
    """What an edited model was asked.

    found: what is left of concepts, most first. weak: the setting with which concepts come back all
    the same, or ''. doubtful: names of concepts that may come back and were not asked for.
    """

    found: tuple[Remaining, ...] = ()
    weak: str = ""
    doubtful: tuple[str, ...] = ()

    def back(self) -> list[str]:
        """The names of concepts that were asked for and are not gone."""
        return [one.name for one in self.found if one.left > tuning.LEFT_WARNING]


def ask(
    models: tuple[Model, Model],
    clip: Clip,
    concepts: ConceptSet,
    settings: Any,
    may_come_back: Sequence[str] = (),
) -> tuple[Asked, Findings]:
    """What the edited model may still draw, and what the report says of it.

    models: before and after. settings: the SolveSettings. may_come_back: names of which much is
    left in keys and values; they are doubted where the model is not asked for them. Of many
    concepts an even choice is looked at.
    """
    told = Findings()
    every, shared = _apart_from_kept(concepts)
    if shared:
        told.details.append(
            f"{quoted(shared[:NAMED])} shares words with the keep list; compare pictures of it."
        )
    found: list[Remaining] = []
    try:
        if every:
            count = min(tuning.ASKED_CONCEPTS, len(every))
            chosen = torch.linspace(0, len(every) - 1, count).long().unique().tolist()
            asked_for = [every[i] for i in chosen]
            found = remaining(*models, clip, asked_for, settings.glance_size)
    except (*UNASKABLE, memory.OutOfMemory) as error:
        # Some models draw only with a picture or a mask, which a solve does not have.
        told.details.append(
            "How much is left could not be found out on this model "
            f"({type(error).__name__}); compare pictures."
        )
    finally:
        weights.restore(models[0])
    seen = {one.name for one in found}
    doubtful = tuple(name for name in may_come_back if name not in {*seen, *shared})
    asked = Asked(tuple(found), weakened_by(settings) if found else "", doubtful)
    _tell_what_is_left(asked, told, remedy(settings, concepts))
    return asked, told


def _tell_what_is_left(asked: Asked, told: Findings, proposed: str) -> None:
    """Adds what was found to a report. proposed: what to do where a concept may come back."""
    back = asked.back()
    if asked.found:
        most = asked.found[0]
        told.details.append(
            "What decides: in sentences that were not studied, the edited model keeps at most "
            f"{max(most.left, 0):.0%} of a concept ('{most.name}') when it predicts pictures from "
            f"noise. Up to {tuning.LEFT_GONE:.0%} is called gone, and more than "
            f"{tuning.LEFT_WARNING:.0%} may come back."
        )
    if back:
        listed = ", ".join(
            f"'{one.name}' ({one.left:.0%} left)" for one in asked.found[: len(back)][:NAMED]
        )
        told.warn(
            f"{wording.names(back, quotes=True)} still there in new sentences.",
            f"Not gone in sentences that were not studied: {listed}.",
        )
    elif asked.weak:
        every = wording.names((one.name for one in asked.found), quotes=True)
        told.warn(
            f"{every} may show in some pictures.",
            wording.sentence(
                f"{asked.weak}, and then concepts come back in some pictures of sentences that "
                "were not studied"
            ),
        )
    if asked.doubtful:
        told.warn(
            f"{wording.names(asked.doubtful, quotes=True)} may show in new sentences.",
            "Keys and values of sentences that were not studied keep more than usual of it, and "
            "the edited model was not asked.",
        )
    if told.warnings:
        told.advice.append(f"Try: {proposed}.")
        told.details.append("Fewer concepts at once are easier to forget.")


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
    found: Sequence[Solution],
    impacts: Sequence[WordImpact],
    of_solve: Sequence[str],
) -> tuple[Asked, Findings]:
    """What the edited model was asked, and all that a report says besides the figures.

    models: before and after; found: the solutions of all groups; of_solve: notes on the solve.
    """
    told = Findings(details=[*understood(concepts), *of_solve])
    unseen = dict.fromkeys(name for one in found for name in one.may_come_back)
    asked, left = ask(models, clip, concepts, settings, tuple(unseen))
    told.add(left)
    told.add(unknown_words(clip, concepts))
    told.add(keep_remedy(impacts, settings))
    return asked, told


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
    pushed = settings.overshoot * tuning.STRENGTHS[settings.strength].pushed
    if pushed < type(settings.chosen)().overshoot / 2:
        return f"'overshoot' is {settings.overshoot:g}"
    return ""


def remedy(settings: Any, concepts: ConceptSet) -> str:
    """The one input to change first when a concept is not gone."""
    chosen = settings.chosen
    if settings.variant != "anchored":
        return f"set 'variant' {OF_SOLVE} to 'anchored'"
    if settings.strength == "gentle":
        return f"set 'strength' {OF_SOLVE} to 'normal'"
    if not settings.prior:
        return f"turn on 'prior' {OF_SOLVE}"
    if settings.templates:
        return f"empty 'templates' {OF_SOLVE}"
    if settings.tokens != "all":
        return f"set 'tokens' {OF_SOLVE} to 'all'"
    defaults = type(chosen)()
    for setting in ("erase", "overshoot", "drift"):
        if getattr(chosen, setting) < getattr(defaults, setting):
            return f"raise '{setting}' {OF_SOLVE} to {getattr(defaults, setting):g}"
    for setting in ("preserve", "anchor"):
        if getattr(chosen, setting) > getattr(defaults, setting):
            return f"lower '{setting}' {OF_SOLVE} to {getattr(defaults, setting):g}"
    if settings.hard_keep > 0:
        return f"lower 'hard_keep' {OF_SOLVE}"
    without = [c.name for c in concepts.concepts if not c.superclass]
    if without:
        example = f"'{wording.name(without[0])} -> thing'"
        return f"say in 'forget' {OF_LIST} what to draw instead: {example}"
    if settings.strength != "strong":
        return f"set 'strength' {OF_SOLVE} to 'strong'"
    return f"raise 'drift' {OF_SOLVE} to 0.2"


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


def keep_remedy(impacts: Sequence[WordImpact], settings: Any) -> Findings:
    """What to do for kept entries that an edit still weakens."""
    lost = [i.name for i in impacts if i.on_keep_list and i.retention < tuning.KEPT_WARNING]
    if not lost:
        return Findings()
    if settings.variant != "anchored":
        what, to_do = (
            "choose the variant 'anchored', which holds them",
            f"set 'variant' {OF_SOLVE} to 'anchored'",
        )
    elif settings.hard_keep < tuning.HARD_KEEP:
        what, to_do = (
            f"set 'hard_keep' to {tuning.HARD_KEEP}",
            f"set 'hard_keep' {OF_SOLVE} to {tuning.HARD_KEEP}",
        )
    else:
        what, to_do = (
            "name the concept by words that the kept ones do not share",
            f"use words in 'forget' {OF_LIST} that the kept ones do not share",
        )
    said = f"To hold {quoted(lost[:NAMED])} more firmly {what}."
    return Findings(advice=[f"Try: {to_do}."], details=[said])


def unknown_words(clip: Clip, concepts: ConceptSet) -> Findings:
    """A warning of the names that the text encoder spells instead of knowing them."""
    told = Findings()
    spelled = [c.name for c in concepts.concepts if _is_spelled(clip, c.name)]
    if spelled:
        told.warn(
            f"The model knows no word in {wording.names(spelled, quotes=True)}.",
            f"The text encoder knows no word in {quoted(spelled[:NAMED])} and reads pieces of "
            "single letters or bytes, so little of a picture may hang on it; use the word that "
            "draws it.",
        )
        told.advice.append(f"Try: write another word for it in 'forget' {OF_LIST}.")
    return told


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
