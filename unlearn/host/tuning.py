"""Constants of the fast text encoder, and of how a patch is compared with a model.

A date is the day of the commit that set the value. "Sprites" is the sprite world of
`testbed/worlds`.
"""

DENSE = (2, 4, 9)
"""Positions after the end token that are computed besides those that are read.

Measured on sprites: more of them added nothing (2026-11-25)."""

TEXTS = 16
"""Texts that the text encoder reads in one call on the CPU. Not measured (2026-11-23)."""

TREE = 320
"""Positions of all texts in a call that reads a prefix tree on the CPU.

Each is compared with each other, so the cost grows with the square. Not measured (2026-11-25)."""

MOST_TEXTS = 64
"""Texts in one call on another device, at most. They have 4,928 positions, which is enough work for
a matrix product. Not measured (2026-11-29)."""

MOST_TREE = 1280
"""Positions in a call that reads a prefix tree on another device, at most.

Computed: attention between n positions of width d takes n / 6d of what the other products take,
which is a quarter in CLIP-L and a sixth in CLIP-G. Not measured (2026-11-29)."""

FREE_FOR_READING = 0.5
"""Share of free memory that a call may fill. No unit. Not measured (2026-11-29)."""

WIDTHS_IN_A_LAYER = 24
"""Numbers that a layer has at hand for each position, in widths of the encoder.

Computed: the state, its norm and three arrays of four widths in the activation are 14; the mask,
the embeddings and copies come on top. Not measured (2026-11-29)."""

EXACT = 1e-3
"""Largest relative RMS error of the states up to the end token. Not measured (2026-11-25)."""

NEAR = 0.15
"""Largest relative RMS error of the states of the padding that is read.

Measured on sprites: the error was 0.09, and at 0.22 kept pictures changed more (2026-11-25)."""

MOST_PREDICTED = 48
"""Predictions from noise in one call of a UNet, at most.

Measured on SD1.5's shape at 64 pixels, on one core: 48 predictions took 12.5 s in calls of 8, 8.6 s
in calls of 16, 7.3 s in calls of 24 and 6.3 s in one (2026-11-29)."""

PREDICTED_PLACES = 8 * 32 * 32
"""Places of latents in one such call, at most; a call of 8 predictions may have more. It bounds
memory. Not measured (2026-11-29)."""

RELATIVE = 0.8
"""Relative difference of the sampled original weights up to which a model counts as a relative.

Measured with a patch of the sprites on mixes with the other world's model: at 0.20 and 0.39 both
objects were forgotten, 0.97 and 0.91 of the kept ones drawn, and superclasses 0.69 and 0.56 (before
the patch 0.88 and 0.81); at 0.79 kept 0.78 (before 0.81), superclasses 0.31 (0.81). Weights that
have nothing in common differ by 1 or more (2026-11-28)."""

BAKED_SHARE = 0.25
"""Share of a patch found in a model's original weights from which the artist is told. No unit.

Measured on sprites with nine patches, each baked in and looked for: 0.84 to 1.00 for a patch whose
concepts are all in there, 0.22 to 0.66 for one that has one of several, at most 0.09 for others
and for relatives without a patch (2026-11-28)."""

BAKED_WHOLE = 0.75
"""Share from which all of a patch counts as in there. Measured as BAKED_SHARE (2026-11-28)."""

BAKED_ALIKE = 0.3
"""Least cosine between what differs in the samples and what the patch adds there. No unit.

Measured as BAKED_SHARE: 0.38 to 1.00, and 0.10 for patches that are not in there (2026-11-28)."""

BAKED_SIGMAS = 6.0
"""The same for patches with few samples, in units of what chance makes of it. Not measured
(2026-11-28)."""

PRUNED_PLACES = 256
"""Pruned places of each weight that are looked at for zeros. It bounds time. Not measured
(2026-11-28)."""

PRUNED_ZERO = 0.99
"""Share of them that must be zero for a mask to count as baked in. Not measured (2026-11-28)."""
