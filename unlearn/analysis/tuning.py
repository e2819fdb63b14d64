"""Constants of the report and of the forecast.

A date is the day of the commit that set the value. "Sprites" is the sprite world of
`testbed/worlds`. Change of pictures is measured in units of the model itself: 0 is the same
picture, 1 is as far apart as its pictures of two different prompts that start from one noise.
"""

# --- the strip of strengths

SWEEP_NOTHING = 1 / 255
"""Mean change of a picture from one strength to the next up to which nothing changes.

Unit: brightness, 1 from black to white. Chosen: one step of an 8-bit picture. Not measured
(2026-11-29)."""

# --- the verdict on before and after

MIN_CHANGE = 0.1
"""Mean change of the forgotten prompts below which the edit did nothing to speak of.

Unit: the model's own, see above. Measured on sprites (2026-11-21)."""

CLEAR_CHANGE = 0.3
"""Change of one forgotten picture from which its frame is green. Unit: the model's own.

Not measured: three times `MIN_CHANGE` (2026-11-21)."""

SIDE_EFFECT_CHANGE = 0.3
"""Mean change of the kept prompts from which the verdict warns of side effects.

Unit: the model's own. Measured on sprites (2026-11-21)."""

DAMAGE_CHANGE = 0.6
"""Mean change of the kept prompts from which the edit damaged everything.

Unit: the model's own. Measured on sprites (2026-11-21)."""

MIN_SENTENCE_WORDS = 4
"""Words from which a line of the keep list is drawn as it stands, without a template.

Not measured (2026-11-21)."""

# --- the forecast

MAX_WEIGHT_ROWS = 640
"""Rows of each weight matrix, evenly spread, that the Gram matrices are summed over.

Sums over hundreds of rows gave the same forecast as sums over all (2026-11-21)."""

SUSPECT_WORDS = 16
"""Words of the general prior that are examined in sentences of their own.

Not measured (2026-11-21)."""

NOISE_SEEDS = (11, 12, 13, 14)
"""Seeds of the noise that both models make a prediction from.

Measured on sprites with `bench forecast`: more seeds added nothing (2026-11-25)."""

NOISE_LEVEL = 0.5
"""Place in the noise schedule of these predictions; 0 is the picture, 1 pure noise.

Measured on sprites with `bench forecast`: predictions told most at 0.5, and nearer to pure noise
all words look more alike (2026-11-25)."""

REFERENCE_WORDS = 12
"""Words of the general prior, evenly spread, that the words in question are compared with.

Not measured (2026-11-25)."""

MAX_KEEP_ENTRIES = 48
"""Entries of the keep list that predictions from noise are made for; it bounds their time.

Not measured (2026-11-25)."""

RETENTION_WARNING = 0.9
"""Share below which the report calls a word harmed. Not measured (2026-11-21)."""

WORDS_PER_PROMPT = 60
"""Words of the general prior that are encoded in one prompt, out of the 75 tokens it may have.

Not measured (2026-11-21)."""

IN_PROVENANCE = {
    "max_weight_rows": MAX_WEIGHT_ROWS,
    "words_per_prompt": WORDS_PER_PROMPT,
    "forecast_suspect_words": SUSPECT_WORDS,
    "forecast_noise_seeds": len(NOISE_SEEDS),
    "forecast_noise_level": NOISE_LEVEL,
    "forecast_reference_words": REFERENCE_WORDS,
    "forecast_max_keep_entries": MAX_KEEP_ENTRIES,
}
"""What affects a closed-form patch, by name; the forecast does so through auto-protect."""
