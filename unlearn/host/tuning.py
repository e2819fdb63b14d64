"""Constants of the fast text encoder.

A date is the day of the commit that set the value. "Sprites" is the sprite world of
`testbed/worlds`.
"""

DENSE = (2, 4, 9)
"""Positions after the end token that are computed besides those that are read.

Measured on sprites: more of them added nothing (2026-11-25)."""

TREE = 320
"""Positions of all texts in a batch.

Each is compared with each other, so the cost grows with the square. Not measured (2026-11-25)."""

EXACT = 1e-3
"""Largest relative RMS error of the states up to the end token. Not measured (2026-11-25)."""

NEAR = 0.15
"""Largest relative RMS error of the states of the padding that is read.

Measured on sprites: the error was 0.09, and at 0.22 kept pictures changed more (2026-11-25)."""
