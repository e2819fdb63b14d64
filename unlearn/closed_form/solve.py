"""ScaPre on a ComfyUI model: statistics once, one solve for all layers, then a matrix product per layer."""

import torch

from ...kernels import rece
from ...kernels.forecast import retention
from ..analysis import forecast
from ..concepts.notation import format_concept
from ..errors import UnlearnError
from ..files.text_cache import TextStateCache, default_folder
from ..host import patching, text_encoding, weights
from ..host.adapters import LowRank
from ..host.architectures import cross_attention
from ..host.progress import Progress
from ..types import UnlearnPatch
from ..version import VERSION
from . import sentence_plan, token_statistics, variants
from .report import ScaPreReport

DEFAULTS = variants.DEFAULTS["anchored"]
COMMON_DEFAULTS = {"hard_keep": 0.0, "rounds": 0, "expand": False, "protect": 0.0}
ESTIMATORS = ("graded", "printed", "shuffled")
REVIVAL = 1e-2  # lambda of the search for reviving embeddings, in units of the mean squared key and value of one state entry
TARGET_RESIDUAL = -0.3  # of what a concept adds to the end token of two sentences not studied: each is pushed past zero until this is left (README)
OVERSHOOT_ITERATIONS = 8  # steps of the search for the shares by which concepts are pushed
RESIDUAL_WARNING = (
    0.05  # where so much is left in sentences that were not studied, a fox was still drawn
)
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
    hard_keep=COMMON_DEFAULTS["hard_keep"],
    rounds=COMMON_DEFAULTS["rounds"],
    expand=COMMON_DEFAULTS["expand"],
    protect=COMMON_DEFAULTS["protect"],
    folder=None,
    size=0,
    **settings,
):
    """(UnlearnPatch, report IMAGE, report text) for a ConceptSet; settings as in variants.DEFAULTS. The model and clip are not changed.

    estimator: of the Informax weights, where they are on. Of `anchored` alone: hard_keep, the share of the keep list's energy that the
    edit does not touch at all; rounds of search for what revives a concept; protect, how far every suspect word must stand out as it
    did when both models glance at it (0: only forecast), in pictures of `size` pixels (0: half the model's own). folder: where token
    states are kept, None for ComfyUI's own.
    Raises UnlearnError on a model without cross-attention, a CLIP of another width, NaN in weights, or text that cannot be used.
    """
    settings = _settings(variant, settings)
    layers = cross_attention(model)
    width = weights.shape(model, layers[0].key)[1]
    pushing = settings.get("overshoot", 0.0) > 0 and target == "difference"
    plan = sentence_plan.plan(clip, concepts, templates, prior, expand, check=pushing)
    bar = Progress(len(plan.texts) + 2 * len(layers), node_id)
    states = TextStateCache(
        clip, folder or default_folder(), exact_padding=hard_keep > 0
    )  # what is not to move at all must be what the encoder says
    text_encoding.check_width(next(iter(states.get(plan.kept[:1]).values())).shape[-1], width)
    stats = token_statistics.measure(plan, states.get, tokens, target, bar)
    channels = variants.Channels(stats, estimator) if settings.get("informax") else None

    plain = forecast.WeightGrams()
    earlier = any(
        weights.edited(model, layer.key) for layer in layers
    )  # a pruned feed-forward layer elsewhere does not count
    for layer in layers:
        plain.add_original(
            weights.read(model, layer.key),
            weights.read(model, layer.key, edited=False) if earlier else None,
        )
        bar.step()
    study = SolveSession(clip, plan, states.get, stats, plain, concepts.keep)
    make = lambda s: variants.solve_variant(
        variant, clip, plan, states.get, s, settings, channels, hard_keep
    )
    shares, told = (
        study.fit_overshoot(make, settings["overshoot"], settings["drift"], bar)
        if pushing
        else (None, [])
    )

    def glance(change, hits):
        """The hits of a change as the model without and with it sees them."""
        edits = tuple(_edits(model, layers, change, plain)[0])
        trial = UnlearnPatch(edits, weights.fingerprint(model, [key for key, _ in edits]))
        return forecast.glanced(model, patching.apply(model, trial)[0], clip, hits, size)

    change, stats, notes = study.solve_robustly(make, rounds, protect, shares, glance)
    notes = [*told, *notes]

    edits, changes, after, lost = _edits(model, layers, change, plain, bar.step)
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
    found = ScaPreReport(
        stats,
        after,
        changes,
        study.look(after),
        channels,
        edits[0][1].weights[1].shape[0],
        lost,
        notes,
    )
    return patch, found.picture(variant), found.text(patch)


def _settings(variant, given):
    if variant not in variants.DEFAULTS:
        raise UnlearnError(
            f"There is no variant '{variant}'; use one of {', '.join(variants.DEFAULTS)}."
        )
    known = variants.DEFAULTS[variant]
    if wrong := [k for k in given if k not in known]:
        raise UnlearnError(
            f"The variant '{variant}' has no setting '{wrong[0]}'; it has {', '.join(known)}."
        )
    return {**known, **given}


def _edits(model, layers, change, plain, step=lambda: None):
    """(edits by key, relative change of each layer, Moments after, share of the change lost in cutting the rank); step: called layer by
    layer."""
    changes, ups, deltas, mixed, square = [], [], [], 0.0, 0.0
    for layer in layers:
        w0 = weights.read(model, layer.key)
        if change.delta is None:
            ups.append(change.up(w0).half())
            delta = ups[-1].float() @ change.down
            few = plain.rows(ups[-1]).float()
            mixed, square = (
                mixed + (plain.rows(w0).T @ few).double(),
                square + (few.T @ few).double(),
            )
        else:
            delta = change.delta(w0).float()
            deltas.append(delta)
            few = plain.rows(delta)
            mixed, square = (
                mixed + (plain.rows(w0).T @ few).double(),
                square + (few.T @ few).double(),
            )
        if not torch.isfinite(delta).all():
            raise UnlearnError(
                "The solve gave numbers that are not finite; raise 'anchor', lower 'erase', or list less under 'keep'."
            )
        changes.append((layer.label, float(delta.norm() / w0.norm())))
        step()
    down, lost = change.down, change.lost
    if change.delta is None:
        wide = down.double()
        mixed, square = mixed @ wide, wide.T @ square @ wide
    else:
        ups, down, lost = variants.cut(deltas)
        ups = [up.half() for up in ups]
    edits = [(layer.key, LowRank.of(up, down)) for layer, up in zip(layers, ups, strict=True)]
    return edits, changes, plain.after_edit(mixed, square), lost


class SolveSession:
    """What the rounds of one solve share: the statistics, the layers' moments before it, and what the forecast has studied so far."""

    def __init__(self, clip, plan, fetch, stats, plain, keep):
        self.clip, self.plan, self.fetch, self.stats, self.plain, self.keep = (
            clip,
            plan,
            fetch,
            stats,
            plain,
            tuple(keep),
        )
        self.known = {}

    def look(self, moments):
        """The forecast's Hits, worst first."""
        return forecast.look(
            self.clip,
            self.fetch,
            self.keep,
            self.stats.words,
            self.stats.word_states,
            moments,
            self.known,
        )

    def fit_overshoot(self, make, most, drift, bar=None):
        """(shares [m] float64, notes): how far past zero to push what each concept adds to the end token, 0 to `most`, until LEFT
        of that is left in sentences that were not studied, while what is kept moves by `drift` at most (relative RMS). On a
        model with earlier patches of this pack on it, until COMES_BACK is left, and drift and what is left count from
        before them: edits made one by one move more than one for all.

        Such a sentence holds more of a concept than the studied ones have in common, so an edit that ends at zero leaves some of it: of one
        concept alone less than of a style or a name in two words, of many, whose edits help each other, hardly any. The part of the end
        token's difference that the edit leaves in keys and values falls linearly as the share rises. Pushing the concept's own tokens and
        the padding too was measured to take its superclass along, and to forget no more (README).
        """
        owner, contrasts = token_statistics.in_new_sentences(self.plan, self.fetch, bar)
        response, names = make(self.stats).solution_operator, self.stats.names
        earlier = self.plain.base_gram is not None
        seen, index = owner.unique(
            return_inverse=True
        )  # with very many concepts only some are looked at
        count = torch.bincount(index)

        def left(m):
            """Of each concept in `seen`, the mean over its sentences."""
            before, cross = (
                (self.plain.base_gram, self.plain.base_cross)
                if earlier
                else (self.plain.before, self.plain.before)
            )
            found = retention(contrasts, before, cross + cross @ m)
            return torch.zeros(len(seen), dtype=torch.float64).index_add(0, index, found) / count

        def multiplier(shares):
            everyone = torch.full(
                (len(names),), float(shares.mean()), dtype=torch.float64
            ).index_copy(0, seen, shares)
            return self.stats.overshot(everyone).target_shift @ response, everyone

        shares = torch.zeros(len(seen), dtype=torch.float64)
        plain, _ = multiplier(shares)
        for _ in range(OVERSHOOT_ITERATIONS):
            shares = (
                shares
                + left(multiplier(shares)[0])
                - (RESIDUAL_WARNING if earlier else TARGET_RESIDUAL)
            ).clamp(0, most)
        whole, everyone = multiplier(shares)
        moved = lambda part: self.plain.after_shared_edit(plain + part * (whole - plain)).drift(
            self.stats.preserve_gram
        )
        part, limit = 1.0, ""
        if moved(1.0) > drift:
            zero, half, one = (moved(x) ** 2 for x in (0.0, 0.5, 1.0))  # a parabola in the part
            square = max(2 * (one - 2 * half + zero), 1e-30)
            linear, limit = one - zero - square, ", as far as 'drift' allows"
            part = (
                max(
                    0.0,
                    (-linear + max(0.0, linear**2 - 4 * square * (zero - drift**2)) ** 0.5)
                    / (2 * square),
                )
                if zero < drift**2
                else 0.0
            )
        notes, found = [], left(plain + part * (whole - plain)).tolist()
        if earlier:
            spent = self.plain.after_shared_edit(torch.zeros_like(plain)).drift(
                self.stats.preserve_gram
            )
            notes.append(
                f"Earlier patches on this model have moved kept prompts by {spent:.1%}; that counts against 'drift'."
            )
        if float(part * shares.max()) >= 0.005:
            least, top = (f"{part * float(x):.0%}" for x in (shares.min(), shares.max()))
            notes.append(
                f"Concepts are pushed {f'{least} to ' * (least != top)}{top} past zero, for sentences not studied{limit}."
            )
        back = sorted(
            (
                (x, names[i])
                for x, i in zip(found, seen.tolist(), strict=True)
                if x > RESIDUAL_WARNING
            ),
            reverse=True,
        )
        if back:
            some = ", ".join(f"{n} ({x:.0%} left)" for x, n in back[:10])
            notes.append(
                f"In sentences that were not studied may come back: {some}; raise 'overshoot' or 'drift', or lower 'preserve'."
            )
        return part * everyone, notes

    def solve_robustly(self, make, rounds, protect, shares=None, glance=lambda change, hits: hits):
        """(Change, Statistics it was made from, notes): solved, searched for revivals and solved again, then the same for collateral.

        glance: (Change, Hits) -> the Hits as the model sees them."""
        stats = self.stats if shares is None else self.stats.overshot(shares)
        notes, change = [], make(stats)
        if change.solution_operator is None:
            if rounds or protect:
                notes.append(
                    "Robustness rounds and auto-protect are for the variant 'anchored'; they were left out."
                )
            return change, stats, notes
        lam = REVIVAL * float(self.plain.before.diagonal().mean())
        for k in range(rounds):
            after = self.plain.after_shared_edit(change.right_multiplier)
            back = rece.revived(self.plain.before, after.after, after.cross.T, stats.rows, lam)
            notes.append(
                f"Round {k + 1}: the best embedding found brings back {float(back.mean()):.0%} of a forgotten concept on average."
            )
            again = rece.revive(after.after, after.cross.T, self.stats.rows, lam)
            again = (
                again * (self.stats.rows.norm(dim=1) / again.norm(dim=1).clamp_min(1e-30))[:, None]
            )
            stats = stats.erasing(again, self.stats.rows_weight)
            change = make(stats)
        protected = {}
        for _ in range(PROTECTION_ROUNDS if protect else 0):
            hits = glance(change, self.look(self.plain.after_shared_edit(change.right_multiplier)))
            new = [h.name for h in hits if h.retention < protect and h.name not in protected]
            if not new:
                break
            protected |= dict.fromkeys(new)
            rows = torch.cat([self.known[n][0] for n in protected]) / self.stats.scale
            change = make(stats := stats.protecting(rows, PROTECTION))
        if protected:
            notes.append(
                f"Auto-protect holds {len(protected)} more: {', '.join([*protected][:20])}{' ...' * (len(protected) > 20)}."
            )
        return change, stats, notes
