"""Constants of the closed-form solves. Most were found by measuring on small worlds.

"Sprites" is the sprite world of `testbed/worlds`, "the second world" the glyph world. A date is
the day of the commit that set the value. Everything in `IN_PROVENANCE` affects the result of a
solve and is written into the patch.
"""

from dataclasses import dataclass

from ..analysis import tuning as analysis
from ..files.tuning import KEPT_PAD_SAMPLES, PAD_SAMPLES
from ..host.tuning import DENSE

NEUTRAL_WEIGHT = 1.0
"""Weight of the sentences with the neutral word, relative to everything kept. No unit.

Measured on superclasses of both worlds: without them superclasses were lost. At 0.3 more of what
is kept stays and fewer superclasses do (2026-11-26)."""

CONTRAST_WEIGHT = 1.0
"""Weight of what kept words that are like a forgotten one add to a sentence (lookalikes.py),
relative to everything kept. No unit.

Measured at keys and values, twelve objects forgotten: of what they add, look-alikes keep 0.57 at
0, 0.93 at 0.3, 0.96 at 1 and 0.97 at 3 with simulated crowded words, and 0.84, 0.95, 0.98 and
0.99 with the emoji world's (2026-11-29)."""

CONTRASTED = 24
"""Neutral words beside which kept words are read, at most. It bounds time.

With twelve objects of small worlds 12 and 48 give the same, for they have ten superclasses at most.
What is lost by the bound was not measured (2026-11-30)."""

LOOKALIKES = 64
"""Kept words that are held as look-alikes beside one neutral word, at most. It bounds time.

With 500 kept words and eight neutral words, looking at them takes 1.5 s (2026-11-29). Measured on
emoji at keys and values: with 32 in place of all 40 or 48 kept words, the word that keeps least
kept 0.006 less at most (2026-11-30)."""

MEASURED_WORDS = 24
"""Kept words that are read to tell how far an edit moves what is kept, at most. It bounds time.

Measured on emoji and simulated crowded words: with 12 or 48 the drift that is told differs by 0.005
at most (2026-11-30)."""

WORDS_WEIGHT = 0.1
"""Weight of the second moment of the prior's words, relative to everything else kept. No unit.

Measured on sprites: at 1 forgotten concepts came back (2026-11-21)."""

TARGET_RESIDUAL = -0.5
"""Share of what a concept adds to the end token that is to be left in sentences not studied.

Measured on sprites, six objects forgotten one by one: with -0.1 one came back, with -0.3 none
did (2026-11-22). With look-alikes held as well, seven objects each alone and `drift` 0.14: 0.010
of the pictures at -0.5 and 0.020 at -0.3 (2026-11-28)."""

PUSHED = {"object": 1.0, "style": 0.5, "explicit": 1.0}
"""By kind, the part of 'overshoot' by which a concept is pushed at most. No unit.

Measured on emoji, two of four styles forgotten: at 1 a quarter of the pictures showed the style
that they were asked for, and at 0.5 none did. The other forgotten style was drawn instead in four
of eight pictures of line art at 1, and in two at 0.5. On sprites 0.5 and 1 forget all of three
styles, and 0.3 leaves 0.06. A house alone came back in 0.19 of sixteen pictures at 0.5
(2026-11-29)."""


@dataclass(frozen=True)
class Strength:
    """What the input 'strength' changes, without units.

    left: added to TARGET_RESIDUAL, the share of a concept that is to be left. pushed, drift:
    factors on the settings 'overshoot' and 'drift', which bound how far concepts are pushed.
    """

    left: float = 0.0
    pushed: float = 1.0
    drift: float = 1.0


STRENGTHS = {
    "gentle": Strength(left=0.3, pushed=0.5, drift=0.6),
    "normal": Strength(),
    "strong": Strength(drift=1.4),
}
"""The choices of 'strength'.

Chosen on sprites and emoji among three kinds of 'strong' (docs/results/defaults.md, "Gentle and
strong"). Pushing further than 'normal' does turns one forgotten style into another, so 'strong'
allows more drift alone (2026-11-29)."""

FIRM_LEFT = 0.2
"""Of layers that do not read a CLIP's own states: the most of a concept that may be left in
studied sentences where 'erase' is lowered to keep within 'drift'. No unit.

Measured on the emoji world's model in Wan's format, with 'erase' at a thousandth: up to 0.14 was
left of one of four objects, pictures showed them as rarely as before, and look-alikes kept 1.00
instead of 0.72 (2026-11-29)."""

FIRM_ITERATIONS = 16
"""Halvings of the interval in which the factor on 'erase' is searched. They bring its logarithm
to 0.0015 % of the range. Not measured (2026-11-29)."""

LEAST_FIRM = 1e-6
"""The smallest factor on 'erase' that is tried. Not measured (2026-11-29)."""

OVERSHOOT_ITERATIONS = 8
"""Steps of the fixed-point search for the overshoot of each concept.

Measured at keys and values of four kinds of words: with four steps 0.01 more of a concept is left
at most, and sixteen change nothing (2026-11-30)."""

RESIDUAL_WARNING = 0.05
"""Share left in sentences not studied above which the report warns.

Also the target on a model with earlier patches. Measured on sprites: with so much left a fox was
still drawn (2026-11-22)."""

LEFT_UNSEEN = {"object": RESIDUAL_WARNING, "style": 0.25, "explicit": RESIDUAL_WARNING}
"""The same by kind of concept, for the warning alone.

Of styles, measured: with 0.21 left none was drawn on emoji, and with 0.26 one in 0.06 of the
pictures on sprites (2026-11-28)."""

DRIFT_WARNING = 0.24
"""Relative movement of kept prompts (root mean square) above which the report warns.

Measured on sprites in studied sentences: at 0.17 nearly all of what is kept was still drawn right,
at 0.19 a tenth was lost (2026-11-21). Sentences not studied, in which it is measured since, move by
1.4 times as much (keys and values of three kinds of words, 2026-11-28)."""

ENERGY = 1 - 5e-4
"""Share of the erased signal that the rank of an `anchored` patch carries.

Measured with fifty common words on the shape of SD1.5: rank 226, and 261 at 1 - 1e-4
(2026-11-22)."""

OBSERVED_ENERGY = 1 - 1e-6
"""The same for layers that do not read a CLIP's own states, as a share of what the edit does to the
concepts (scapre.rank_by_change). What concepts add to other words has a thousandth of the energy
of what they add to their own. Not measured (2026-11-28)."""

DENSE_ENERGY = 1 - 1e-5
"""Share of the squared change that the rank of a patch keeps when a variant gives dense changes.

Not measured (2026-11-21)."""

REVIVAL = 1e-2
"""Regularisation of the search for reviving embeddings, in units of the mean squared key and value
of one entry of a token state. Not measured (2026-11-21)."""

PROTECTION = 0.5
"""Weight of the words that auto-protect adds, relative to everything else kept.

Not measured (2026-11-21)."""

PROTECTION_ROUNDS = 4
"""Solves that auto-protect adds at most. Not measured (2026-11-21)."""

KEPT_LEAST = 0.5
"""Share of its effect below which an entry of the keep list is held by itself in a second solve.

Measured on sprites, `fox house` forgotten and `fox` kept: 0.31 was left, and no fox was drawn
(2026-11-28)."""

KEPT_PROTECTION = 2.0
"""Weight of the states of such entries, relative to everything else kept.

Measured on sprites, `fox house` forgotten and `fox` kept: at 2 fox is drawn in 0.75 of pictures
and the phrase in none; at 20 the same, with house 0.75 instead of 0.88 (2026-11-28)."""

KEPT_WARNING = 0.9
"""Share of its effect below which the report says how to hold an entry of the keep list more.

Not measured (2026-11-28)."""

HARD_KEEP = 0.99
"""The `hard_keep` that the report proposes for such entries.

Measured on sprites, `fox house` forgotten and `fox` kept: 0.75 of pictures (2026-11-28)."""

LEFT_WARNING = 0.3
"""Share of a concept left in the edited model's predictions above which the report warns.

Measured on sprites, eight pictures of each: 0.2 and less where no or a quarter of the pictures
showed the concept, 0.33 and more where half or more did (2026-11-28)."""

LEFT_GONE = 0.1
"""The same share up to which the report calls a concept gone; between the two it is mostly gone.

Measured on sprites and emoji, three objects each at eight strengths: 1 of 96 pictures showed a
concept of which 0.1 or less was left, none of 72 up to 0.2, and 6 of 64 up to 0.3 (2026-11-29)."""

NOT_PUSHED = ("paper", "uce")
"""Variants after which a fox was drawn again in a quarter or more of the pictures although little
of it was left in predictions. Measured on sprites (2026-11-28)."""

ASKED_PART = 8
"""Part of the side that the model was made for, in which it is asked. It bounds time.

64 pixels for SD1.x, as sprites are drawn; not measured on other sizes (2026-11-28)."""

ASKED_CONCEPTS = 6
"""Concepts that the edited model is asked for, at most. It bounds time. Not measured
(2026-11-28)."""

ASKED_SEEDS = 2
"""Noises from which the edited model is asked in each sentence. It bounds time.

Measured on sprites with eight objects forgotten: with two the shares differ by 0.02 at most from
those with four, with one by 0.07 (2026-11-29)."""

SPELLED = 0.75
"""Tokens for each letter of a name from which on it is called spelled.

Not measured (2026-11-28)."""

SPELLED_LETTERS = 4
"""Letters from which on this is said. Not measured (2026-11-28)."""

CHECKED_CONCEPTS = 500
"""Concepts that are looked at in sentences not studied, at most. Not measured (2026-11-22)."""

CHECKED_TWICE = 24
"""Up to so many concepts are looked at in two sentences not studied, more in one.

Measured on sprites with twelve objects: one sentence gave the same pictures (2026-11-25)."""

SAMPLED = 48
"""Concepts whose token states Informax weights are estimated from. Not measured (2026-11-21)."""

MAX_SEPARATE_ROWS = 4096
"""Rows of concepts that are kept one by one; more are summed up. It bounds memory.

Not measured (2026-11-21)."""

BLOCK = 32
"""Concepts whose states are in memory at a time (of kept prompts four times as many).

It bounds memory and changes no result. Not measured (2026-11-21)."""

NOISE = 0.01
"""Standard deviation of the noise on token states in the released editors.

Taken from their code (2026-11-21)."""

POINTS = 5
"""Noisy samples of each class that a mask of the released editors is found from.

Taken from their code (2026-11-21)."""

CACHE_SHARE = 0.5
"""Share of the free memory that the model's layers may take during a solve.

It changes no result. Not measured (2026-11-28)."""

SOLVED_PATCHES = 8
"""Patches that are kept in memory, so that an earlier list need not be solved again, at most.

It changes no result. Not measured (2026-11-29)."""

SOLVED_BYTES = 2**28
"""Bytes that these may take. It changes no result. Not measured (2026-11-29)."""

ENCODER_ERASE = 100.0
"""How hard the edit of the text encoder makes its rows right, relative to all that is kept (eta).

The value of 'erase' of the variant anchored; no other was tried (2026-11-29)."""

ENCODER_ANCHOR = 0.05
"""How strongly every direction is held there (lambda), in units of the mean squared input.

The value of 'anchor' of the variant anchored; no other was tried (2026-11-29)."""

ENCODER_PRESERVE = 1.0
"""How strongly everything that is kept is held there (beta). No other was tried (2026-11-29)."""

ENCODER_OWN = 4.0
"""Weight of a concept's own tokens, relative to those after it, in a sentence. No unit.

No other was tried (2026-11-29)."""

ENCODER_BLOCK = 16
"""Sentences whose layer inputs are in memory at a time. It bounds memory; not measured
(2026-11-29)."""

ENCODER_LEFT = 0.3
"""Share of a concept left at the end token above which the report warns. Not measured
(2026-11-29)."""

ENCODER_DRIFT_WARNING = 0.25
"""Relative movement of kept prompts' states above which the report warns.

Not measured: eight objects of sprites and glyphs moved them by 0.11 (2026-11-29)."""

OF_ENCODER: dict[str, float | int | str] = {
    **analysis.IN_PROVENANCE,
    "neutral_weight": NEUTRAL_WEIGHT,
    "words_weight": WORDS_WEIGHT,
    "dense_energy": DENSE_ENERGY,
    "erase": ENCODER_ERASE,
    "anchor": ENCODER_ANCHOR,
    "preserve": ENCODER_PRESERVE,
    "own": ENCODER_OWN,
    "pad_samples": PAD_SAMPLES,
    "kept_pad_samples": KEPT_PAD_SAMPLES,
}
"""What affects the edit of the text encoder, as it stands in its provenance."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the Informax weights that the report shows."""

IN_PROVENANCE: dict[str, float | int | str] = {
    **analysis.IN_PROVENANCE,
    "neutral_weight": NEUTRAL_WEIGHT,
    "contrast_weight": CONTRAST_WEIGHT,
    "contrasted": CONTRASTED,
    "lookalikes": LOOKALIKES,
    "measured_words": MEASURED_WORDS,
    "words_weight": WORDS_WEIGHT,
    "target_residual": TARGET_RESIDUAL,
    "firm_left": FIRM_LEFT,
    "firm_iterations": FIRM_ITERATIONS,
    "least_firm": LEAST_FIRM,
    "pushed": ", ".join(f"{kind} {part}" for kind, part in PUSHED.items()),
    "strengths": "; ".join(
        f"{name} {how.left:g} {how.pushed:g} {how.drift:g}" for name, how in STRENGTHS.items()
    ),
    "overshoot_iterations": OVERSHOOT_ITERATIONS,
    "residual_warning": RESIDUAL_WARNING,
    "energy": ENERGY,
    "observed_energy": OBSERVED_ENERGY,
    "dense_energy": DENSE_ENERGY,
    "revival": REVIVAL,
    "protection": PROTECTION,
    "protection_rounds": PROTECTION_ROUNDS,
    "kept_least": KEPT_LEAST,
    "kept_protection": KEPT_PROTECTION,
    "checked_concepts": CHECKED_CONCEPTS,
    "checked_twice": CHECKED_TWICE,
    "sampled": SAMPLED,
    "max_separate_rows": MAX_SEPARATE_ROWS,
    "noise": NOISE,
    "points": POINTS,
    "pad_samples": PAD_SAMPLES,
    "kept_pad_samples": KEPT_PAD_SAMPLES,
    "dense_positions": ", ".join(map(str, DENSE)),
}
