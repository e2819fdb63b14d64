"""The sheet of the Erasure Report: all pairs side by side, each with a judgement of its own."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image

from . import charts, tuning
from .picture_pairs import PicturePair

Thumbnails = list[list[Image.Image | None]]
"""For each pair its two thumbnails, before and after, None while there is none."""

FORGOTTEN_HEADING = "Forgotten: the right one should no longer show it"
KEPT_HEADING = "Kept: both should look the same"


def draw_sheet(
    verdict: str,
    colour: charts.Colour,
    pairs: Sequence[PicturePair],
    thumbnails: Thumbnails,
    changes: Sequence[Mapping[str, float]] = (),
    of_model: str = "",
) -> Image.Image:
    """The sheet of all pairs. changes: the figures of each pair, none while it is drawn.

    of_model: the name of the model's file, '' where it is not known.
    """
    forgotten, kept = [], []
    for number, pair in enumerate(pairs):
        words, frame = "", charts.NEUTRAL
        if changes:
            words, frame = judge(changes[number], pair.forgotten)
        caption = f"{pair.prompt}, seed {pair.seed}"
        before, after = thumbnails[number]
        card = charts.PairCard(pair.name, caption, before, after, words, frame)
        (forgotten if pair.forgotten else kept).append(card)
    sections = [(FORGOTTEN_HEADING, forgotten), (KEPT_HEADING, kept)]
    title = f"Erasure Report of {of_model}" if of_model else "Erasure Report"
    return charts.pairs_sheet(title, verdict, colour, sections)


def judge(change: Mapping[str, float], forgotten: bool) -> tuple[str, charts.Colour]:
    """The words and the colour for one pair, of this pair alone.

    Of the change in latents and in pixels the larger counts for a forgotten pair and the smaller
    for a kept one.
    """
    low, high = sorted((change["latent"], change["pixels"]))
    if not (math.isfinite(low) and math.isfinite(high)):
        return "broken", charts.BAD
    if forgotten:
        value = high
        bad, doubtful = value < tuning.MIN_CHANGE, value < tuning.CLEAR_CHANGE
    else:
        value = low
        bad, doubtful = value >= tuning.DAMAGE_CHANGE, value >= tuning.SIDE_EFFECT_CHANGE
    words = f"changed {value:.0%}"
    if "clip_after" in change:
        words += f", CLIP {change['clip_before']:.0f} > {change['clip_after']:.0f}"
    if bad:
        return words, charts.BAD
    return words, charts.WARN if doubtful else charts.GOOD
