"""Constants of the cached text states.

A date is the day of the commit that set the value. "Sprites" is the sprite world of
`testbed/worlds`.
"""

PAD_SAMPLES = 6
"""Samples of the padding after a concept that are read.

Measured on sprites: with four, a forgotten house was still drawn in the demo (2026-11-25)."""

KEPT_PAD_SAMPLES = 3
"""Of these, the samples that are held after a kept sentence. Not measured (2026-11-25)."""

STEP_LOG_IN_MEMORY = 2**26
"""Bytes of what the score `paper` sets aside at each step that stay in memory; the rest goes to a
temporary file. Not measured (2026-11-28)."""
