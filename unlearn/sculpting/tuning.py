"""Constants of Sculpting Memory that were found by trying, not taken from the paper.

"Sprite world" below means `bench dynamic_mask`: the 64-pixel sprite model on two CPU cores, two to
four objects forgotten one after another, each with a look-alike kept. The date is that of the
commit in which the constant got its present value. "Not measured" means that no trial of other
values is on record.
"""

from __future__ import annotations

# --- How a round is steered -----------------------------------------------------------------------

# Training steps between two measurements of how much of the concept is left.
# Sprite world, 2026-11-22: changed from 10 together with MEASURED_PREDICTIONS; not measured alone.
MEASURE_EVERY = 5

# Predictions in one measurement, on sentences that are not trained on.
# Sprite world, 2026-11-22: changed from 12 together with MEASURE_EVERY; not measured alone.
MEASURED_PREDICTIONS = 8

# Factor on the learning rate after a measurement, while a concept fades too slowly.
# 2026-11-22: the square root of the former 1.3, because measurements became twice as frequent.
LR_GROWTH = 1.14

# Largest learning rate, as a multiple of the setting.
# Sprite world, 2026-11-21: a limit of 30 kept 0.79 after one object and 0.38 after two.
LR_SCALE_LIMIT = 2.0

# Length of the cooldown, in which the rate falls to zero, as a share of the steps before it.
# Sprite world, four objects, 2026-11-21: a cooldown half as long kept 0.87.
COOLDOWN_SHARE = 1.0

# Least length of the cooldown in steps. Not measured; 2026-11-21.
COOLDOWN_LEAST = 20

# Share of all steps after which the cooldown begins in any case. Not measured; 2026-11-21.
COOLDOWN_AT = 0.75

# During the cooldown a concept is overwritten only while more than this share of `stop_at` is left.
# Sprite world, four objects, 2026-11-22: overwriting to the end kept 0.89; the share itself was
# not measured.
OVERWRITE_ABOVE = 0.9

# Steps in which the learning rate rises at the beginning of a round, because Adam's first steps all
# have full length. Not measured; 2026-11-21.
RAMP_STEPS = 10

# --- What is searched for while a concept is overwritten ------------------------------------------

# Length of a step of the search, as a share of the root mean square of the states. Not measured;
# 2026-11-29.
SEARCH_STEP = 0.05

# Training steps after which a search begins again.
# Sprite world, fox, 2026-11-29: 80 was tried with other changes only (tries 21 and 22).
SEARCHED_FOR = 20

# Steps of the search in each training step. Other numbers were not compared; 2026-11-29.
SEARCH_STEPS = 3

# Factors on settings while it is searched.
# Sprite world, fox, 2026-11-29: see "Tries" in docs/results/revival.md.
AGAINST_SEARCH: dict[str, float] = {"hold": 10.0, "held": 2.0, "steps": 3.0, "kept_pictures": 4.0}

# How far a picture of the concept is led away at most, as a multiple of the noise in it.
# Sprite world, fox, 2026-11-29: see "Tries" in docs/results/revival.md.
LED_AWAY_BY = 1.8

# Share of the schedule, that of the least noise, at which it is led away under all other texts too.
# Sprite world, fox, 2026-11-29: with 0.3, 200 steps of inversion brought back 0.94, with 0.5 0.75.
LED_AWAY_BELOW = 0.5

# A total loss from which training is given up. Predictions have a variance of about one, so a loss
# far above one means that the network is broken. Not measured; 2026-11-21.
EXPLODED_LOSS = 100.0

# --- What the student follows ---------------------------------------------------------------------

# Training steps for which the teacher's predictions are made at once. Not measured; 2026-11-21.
TEACHER_STEPS = 25

# How often each of these predictions is used. Not measured; 2026-11-21.
TEACHER_USES = 2

# Share of the retained rows by kind: concepts forgotten earlier, the keep list, everyday captions,
# the empty prompt. Kinds that are absent leave their share to the others.
# Not measured; 2026-11-21.
RETAINED_SHARES = {"earlier": 0.3, "keep": 0.4, "prior": 0.2, "empty": 0.1}

# Share of the retained rows that show what their text says. All others show any picture, because
# the whole prediction is to stay as it is.
# Sprite world, two objects, 2026-11-21: tried only together with the projected gradients, the
# retained rows' target and the cooldown.
MATCHING_PICTURES = 0.5

# kappa of SM-12: the smaller, the more the projection takes out.
# Sprite world, one object, 2026-11-22: a projection nearly seven times as strong moved the
# predictions for kept objects by 0.032 instead of 0.025 (root mean square).
RETAIN_KAPPA = 2.0

# Directions that SM-12 shortens by less than this share are left as they are. Not measured;
# 2026-11-22, chosen for speed.
RETAIN_TOLERANCE = 0.05

# Factors on settings, by the choices of 'strength'.
# Sprite world, fox, 2026-11-29: `gentle` forgets it and keeps 0.985. With `stop_at` raised by a
# quarter as well, the fox was still drawn every time. `strong` is chosen by hand and not measured.
STRENGTHS: dict[str, dict[str, float]] = {
    "gentle": {"learning_rate": 0.7, "hold": 2.0},
    "normal": {},
    "strong": {"learning_rate": 1.4, "stop_at": 0.6, "steps": 1.5},
}

# --- What does not change a result ----------------------------------------------------------------

# DDIM steps of a preview picture. Not measured; 2026-11-21.
PREVIEW_STEPS = 10

# Training steps between two savings of the training file. Not measured; 2026-11-21.
SAVE_EVERY = 100

# Bytes of drawn latents that are kept in memory for the next run. Not measured; 2026-11-21.
CACHED_LATENT_BYTES = 2**28

# Share of the change that a low-rank patch may lose before the report warns. Not measured.
LOW_RANK_WARNING = 0.3

# The forecast of the time multiplies the time of one row's passes by this factor, for the teacher's
# predictions and the target of the overwritten rows. Not measured; 2026-11-21.
TEACHER_TIME = 1.4


# All constants above that affect a result, for the provenance of a patch.
IN_PROVENANCE: dict[str, float | int | str] = {
    "measure_every": MEASURE_EVERY,
    "measured_predictions": MEASURED_PREDICTIONS,
    "lr_growth": LR_GROWTH,
    "lr_scale_limit": LR_SCALE_LIMIT,
    "cooldown_share": COOLDOWN_SHARE,
    "cooldown_least": COOLDOWN_LEAST,
    "cooldown_at": COOLDOWN_AT,
    "overwrite_above": OVERWRITE_ABOVE,
    "ramp_steps": RAMP_STEPS,
    "search_step": SEARCH_STEP,
    "searched_for": SEARCHED_FOR,
    "led_away_by": LED_AWAY_BY,
    "led_away_below": LED_AWAY_BELOW,
    "exploded_loss": EXPLODED_LOSS,
    "teacher_steps": TEACHER_STEPS,
    "teacher_uses": TEACHER_USES,
    "matching_pictures": MATCHING_PICTURES,
    "retain_kappa": RETAIN_KAPPA,
    "retain_tolerance": RETAIN_TOLERANCE,
    **{f"retained_shares_{kind}": share for kind, share in RETAINED_SHARES.items()},
}
