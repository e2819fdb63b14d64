"""ScaPre on a ComfyUI model: statistics once, one solve for all layers, then a matrix product per layer."""

import torch

from ...kernels import rece
from ..concept_text import format_concept
from ..errors import UnlearnError
from ..types import UnlearnPatch
from ..version import VERSION
from . import forecast, prompts, statistics, variants, weights
from .adapters import LowRank
from .layers import cross_attention
from .progress import Progress
from .scapre_report import Found
from .states import States, default_folder

DEFAULTS = variants.DEFAULTS["anchored"]
EXTRAS = {"hard_keep": 0.0, "rounds": 0, "expand": False, "protect": 0.0}
ESTIMATORS = ("graded", "printed", "shuffled")
REVIVAL = 1e-2  # lambda of the search for reviving embeddings, in units of the mean squared key and value of one state entry
PROTECTION = 0.5  # weight of what auto-protect adds, beside everything else kept
PROTECTION_ROUNDS = 4


def solve(
    model,
    clip,
    concepts,
    templates=None,
    *,
    tokens="all",
    target="difference",
    prior=True,
    node_id=None,
    variant="anchored",
    estimator="graded",
    hard_keep=EXTRAS["hard_keep"],
    rounds=EXTRAS["rounds"],
    expand=EXTRAS["expand"],
    protect=EXTRAS["protect"],
    folder=None,
    **settings,
):
    """(UnlearnPatch, report IMAGE, report text) for a ConceptSet; settings as in variants.DEFAULTS. The model and clip are not changed.

    estimator: of the Informax weights, where they are on. Of `anchored` alone: hard_keep, the share of the keep list's energy that the
    edit does not touch at all; and of `anchored` and `uce`: rounds of search for what revives a concept; protect, the share that every
    common word must keep of what it says (0: only forecast). folder: where token states are kept, None for ComfyUI's own.
    Raises UnlearnError on a model without cross-attention, a CLIP of another width, NaN in weights, or text that cannot be used.
    """
    settings = _settings(variant, settings)
    layers = cross_attention(model)
    width = weights.shape(model, layers[0].key)[1]
    plan = statistics.plan(clip, concepts, templates, prior, expand)
    bar = Progress(len(plan.texts) + 2 * len(layers), node_id)
    states = States(clip, folder or default_folder())
    prompts.check_width(next(iter(states.fetch(plan.kept[:1]).values())).shape[-1], width)
    stats = statistics.measure(plan, states.fetch, tokens, target, bar)
    channels = variants.Channels(stats, estimator) if settings.get("informax") else None

    plain = forecast.Moments()
    for layer in layers:
        plain.plain(weights.read(model, layer.key))
        bar.step()
    study = Study(clip, plan, states.fetch, stats, plain, concepts.keep)
    make = lambda s: variants.change(variant, clip, plan, states.fetch, s, settings, channels, hard_keep)
    share = study.overshoot(make, settings["overshoot"], settings["drift"]) if settings.get("overshoot") and target == "difference" else 0.0
    change, stats, notes = study.refined(make, rounds, protect, share)

    edits, changes, after, lost = _edits(model, layers, change, plain, bar)
    patch = UnlearnPatch(
        tuple(edits),
        weights.fingerprint(model, [layer.key for layer in layers]),
        (
            {
                "method": f"ScaPre {variant}",
                "settings": {
                    **settings,
                    "tokens": tokens,
                    "target": target,
                    "prior": prior,
                    "templates": templates,
                    "estimator": estimator,
                    "hard_keep": hard_keep,
                    "rounds": rounds,
                    "expand": expand,
                    "protect": protect,
                },
                "concepts": [c.name for c in concepts.concepts],
                "lines": [format_concept(c) for c in concepts.concepts],
                "keep": list(concepts.keep),
                "version": VERSION,
            },
        ),
    )
    found = Found(stats, after, changes, study.look(after), channels, edits[0][1].weights[1].shape[0], lost, notes)
    return patch, found.picture(variant), found.text(patch)


def _settings(variant, given):
    if variant not in variants.DEFAULTS:
        raise UnlearnError(f"There is no variant '{variant}'; use one of {', '.join(variants.DEFAULTS)}.")
    known = variants.DEFAULTS[variant]
    if wrong := [k for k in given if k not in known]:
        raise UnlearnError(f"The variant '{variant}' has no setting '{wrong[0]}'; it has {', '.join(known)}.")
    return {**known, **given}


def _edits(model, layers, change, plain, bar):
    """(edits by key, relative change of each layer, Moments after, share of the change lost in cutting the rank)."""
    changes, ups, deltas, mixed, square = [], [], [], 0.0, 0.0
    for layer in layers:
        w0 = weights.read(model, layer.key)
        if change.delta is None:
            ups.append(change.up(w0).half())
            delta = ups[-1].float() @ change.down
            few = plain.rows(ups[-1]).float()
            mixed, square = mixed + (plain.rows(w0).T @ few).double(), square + (few.T @ few).double()
        else:
            delta = change.delta(w0).float()
            deltas.append(delta)
            few = plain.rows(delta)
            mixed, square = mixed + (plain.rows(w0).T @ few).double(), square + (few.T @ few).double()
        if not torch.isfinite(delta).all():
            raise UnlearnError("The solve gave numbers that are not finite; raise 'anchor', lower 'erase', or list less under 'keep'.")
        changes.append((layer.label, float(delta.norm() / w0.norm())))
        bar.step()
    down, lost = change.down, change.lost
    if change.delta is None:
        wide = down.double()
        mixed, square = mixed @ wide, wide.T @ square @ wide
    else:
        ups, down, lost = variants.cut(deltas)
        ups = [up.half() for up in ups]
    edits = [(layer.key, LowRank.of(up, down)) for layer, up in zip(layers, ups, strict=True)]
    return edits, changes, plain.changed(mixed, square), lost


class Study:
    """What the rounds of one solve share: the statistics, the layers' moments before it, and what the forecast has studied so far."""

    def __init__(self, clip, plan, fetch, stats, plain, keep):
        self.clip, self.plan, self.fetch, self.stats, self.plain, self.keep = clip, plan, fetch, stats, plain, tuple(keep)
        self.known = {}

    def look(self, moments):
        """The forecast's Hits, worst first."""
        return forecast.look(self.clip, self.fetch, self.keep, self.stats.words, self.stats.word_states, moments, self.known)

    def overshoot(self, make, most, drift):
        """How far past zero to push what is erased, 0 to `most`, so that what is kept moves by `drift` at most (relative RMS).

        A sentence not studied holds more of a concept than the studied ones have in common, so an edit that ends at zero leaves some of
        it. The edit and the drift grow by the same factor. Measured on the sprite world: one concept needs a share of 1; with
        eight, whose edits help each other, a quarter is enough, and at 0.6 an eighth of what is on no list breaks.
        """
        plain = self.plain.shared(make(self.stats).multiplier).drift(self.stats.keep)
        return min(most, max(0.0, drift / max(plain, 1e-30) - 1))

    def refined(self, make, rounds, protect, overshoot=0.0):
        """(Change, Statistics it was made from, notes): solved, searched for revivals and solved again, then the same for collateral."""
        stats = self.stats.overshot(overshoot)
        notes = [f"Concepts are pushed {overshoot:.0%} past zero, for sentences not studied."] if overshoot else []
        change = make(stats)
        if change.multiplier is None:
            if rounds or protect:
                notes.append("Robustness rounds and auto-protect are for the variants 'anchored' and 'uce'; they were left out.")
            return change, stats, notes
        lam = REVIVAL * float(self.plain.before.diagonal().mean())
        for k in range(rounds):
            after = self.plain.shared(change.multiplier)
            back = rece.revived(self.plain.before, after.after, after.cross.T, stats.rows, lam)
            notes.append(f"Round {k + 1}: the best embedding found brings back {float(back.mean()):.0%} of a forgotten concept on average.")
            again = rece.revive(after.after, after.cross.T, self.stats.rows, lam)
            again = again * (self.stats.rows.norm(dim=1) / again.norm(dim=1).clamp_min(1e-30))[:, None]
            stats = stats.erasing(again, self.stats.rows_weight)
            change = make(stats)
        protected = {}
        for _ in range(PROTECTION_ROUNDS if protect else 0):
            hits = self.look(self.plain.shared(change.multiplier))
            new = [h.name for h in hits if h.survival < protect and h.name not in protected]
            if not new:
                break
            protected |= dict.fromkeys(new)
            rows = torch.cat([self.known[n][0] for n in protected]) / self.stats.scale
            change = make(stats := stats.protecting(rows, PROTECTION))
        if protected:
            notes.append(f"Auto-protect holds {len(protected)} more: {', '.join([*protected][:20])}{' ...' * (len(protected) > 20)}.")
        return change, stats, notes
