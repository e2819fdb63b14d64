"""Collateral forecast of an edit of keys and values: which words nobody asked to forget lose what they say to the model.

Two looks. All words of the general prior are screened by their own token's state; the worst, and the keep list, are then studied in
sentences of their own, as concepts are, and judged by the share of what they add to keys and values that survives the edit. That
tells little of which objects a model really loses (README). What tells is a glance: what the unedited and the edited model predict of
nothing but noise, one call each, and whether a word still stands out from others in the same way.
"""

from typing import NamedTuple

import torch

from ...kernels import forecast as kernel
from ..concepts import sentences
from ..files.text_cache import TextStateCache, default_folder
from ..host import batched_sampling, patching, text_encoding, weights
from ..host.architectures import cross_attention, native_size
from ..host.progress import Progress
from . import charts, contrasts, prior_words

MAX_WEIGHT_ROWS = 640  # of each matrix, evenly spread, that moments are taken from; sums over hundreds of rows tell as much as over all
SUSPECTS = 16  # words of the prior that get a second look
STUDY_SENTENCE = sentences.KEPT[1]  # what they are studied in; each sentence more costs time
SHOWN = 12
GLANCES = (11, 12, 13, 14)  # seeds of the noise; more were measured to add nothing
LEVEL = 0.5  # of the noise schedule, where predictions told most: nearer to pure noise all words look more alike
REFERENCE_WORDS = (
    12  # words of the prior, evenly spread, that the words in question must stand out from
)
LISTED = 48  # entries of the keep list that are glanced at
TITLE = "Forecast: what words hit hardest keep of what they say"


class WordImpact(NamedTuple):
    """A word or a kept text, and the share of what it adds to keys and values that survives: 1 untouched, 0 gone."""

    name: str
    retention: float
    on_keep_list: bool  # it is on the keep list


class WeightGrams:
    """before = sum W0^T W0, cross = sum W0^T W, after = sum W^T W [d, d] float64 over layers, from at most ROWS rows of each.

    Where W0 holds earlier patches of this pack, V being the weights without them: base_gram = sum V^T V, base_cross = sum V^T W; else None."""

    def __init__(self):
        self.before = self.cross = self.after = 0.0
        self.base_gram = self.base_cross = None

    @staticmethod
    def rows(w0):
        """Every k-th row of a layer's matrix."""
        return w0[:: -(-len(w0) // MAX_WEIGHT_ROWS)]

    def add_original(self, w0, unpatched=None):
        """Adds a layer to `before` alone; unpatched: the same without earlier patches of this pack, where there are any."""
        w0 = self.rows(w0).float()
        self.before = self.before + (w0.T @ w0).double()
        if unpatched is not None:
            v = self.rows(unpatched).float()
            self.base_gram = (0 if self.base_gram is None else self.base_gram) + (v.T @ v).double()
            self.base_cross = (0 if self.base_cross is None else self.base_cross) + (
                v.T @ w0
            ).double()

    def after_shared_edit(self, multiplier):
        """The moments of the same layers after W = W0 (I + M)."""
        out = WeightGrams()
        out.before = self.before
        out.cross, out.after = kernel.shared(self.before, multiplier)
        if self.base_gram is not None:
            out.base_gram, out.base_cross = (
                self.base_gram,
                self.base_cross + self.base_cross @ multiplier,
            )
        return out

    def after_edit(self, mixed, square):
        """The moments of the same layers after an edit D of them, mixed = sum W0^T D and square = sum D^T D."""
        out = WeightGrams()
        out.before, out.cross, out.after = (
            self.before,
            self.before + mixed,
            self.before + mixed + mixed.T + square,
        )
        return out

    def drift(self, keep):
        """How far the keys and values of states with second moment keep [d, d] move, relative, root mean square: from where they were
        before the first patch of this pack."""
        before, cross = (
            (self.before, self.cross)
            if self.base_gram is None
            else (self.base_gram, self.base_cross)
        )
        square = self.after - cross - cross.T + before
        return (
            float((square * keep).sum().clamp_min(0) / (before * keep).sum().clamp_min(1e-30))
            ** 0.5
        )

    def add_edited(self, w0, delta):
        """Adds a layer with its change [d_out, d]."""
        w0, w = self.rows(w0).float(), self.rows(w0 + delta).float()
        self.before = self.before + (w0.T @ w0).double()
        self.cross = self.cross + (w0.T @ w).double()
        self.after = self.after + (w.T @ w).double()


def study(clip, fetch, names):
    """name -> (contrast rows [n, d], weights [n]) of what each text adds to a sentence."""
    neutral = text_encoding.locate(clip, STUDY_SENTENCE, "")
    pairs = {
        name: (
            0,
            1.0,
            text_encoding.locate(clip, text_encoding.fix_article(STUDY_SENTENCE, name), name),
            neutral,
        )
        for name in names
    }
    read = fetch([neutral, *(said for _, _, said, _ in pairs.values())])
    out = {}
    for name, pair in pairs.items():
        x, _, w, *_ = contrasts.contrast([pair], read, "all", "difference", 1.0)
        out[name] = x, w
    return out


def survive(studied, moments):
    """name -> survival of what `study` gave."""
    return {
        n: float(kernel.retention(x[None], moments.before, moments.cross, w[None]))
        for n, (x, w) in studied.items()
    }


def screen(words, states, moments, n=SUSPECTS):
    """The n words whose own token states [len(words), d] lose most of their contrast to the mean word."""
    if not len(words):
        return []
    left = kernel.retention(states - states.mean(0), moments.before, moments.cross)
    return [words[i] for i in left.argsort()[:n].tolist()]


def look(clip, fetch, keep, words, states, moments, known=None):
    """Hits, worst first: the keep list's entries and the suspects among the words. `known`: name -> studied, filled in."""
    known = {} if known is None else known
    names = list(dict.fromkeys([*keep, *screen(words, states, moments)]))
    new = [n for n in names if n not in known]
    if new:
        known |= study(clip, fetch, new)
    left = survive({n: known[n] for n in names}, moments)
    return sorted((WordImpact(n, left[n], n in keep) for n in names), key=lambda hit: hit.retention)


def glanced(before, after, clip, hits, size=0, step=lambda: None):
    """The Hits as two MODELs see them, worst first: how far each name (of the keep list the first LISTED) still stands out as it did.

    size: side in pixels of the pictures the models are asked for, 0 for half of what they were made for."""
    size = size or max(64, native_size(before) // 2)
    listed = [h for h in hits if h.on_keep_list]
    hits = [h for h in hits if not h.on_keep_list] + listed[:LISTED]
    words = sentences.prior_words()
    beside = (
        [words[i] for i in torch.linspace(0, len(words) - 1, REFERENCE_WORDS).long().tolist()]
        if words
        else []
    )
    texts = [
        text_encoding.fix_article(STUDY_SENTENCE, n).replace("{concept}", n)
        for n in dict.fromkeys([*(h.name for h in hits), *beside])
    ]
    seen = [
        batched_sampling.predict_from_noise(
            m, clip, texts, GLANCES, level=LEVEL, size=size, step=step
        ).flatten(1)
        for m in (before, after)
    ]
    left = kernel.agreement(*seen).tolist()
    return sorted(
        (h._replace(retention=x) for h, x in zip(hits, left, strict=False)),
        key=lambda hit: hit.retention,
    )


def of_patch(
    model, clip, patch, forgotten=(), keep=(), node_id=None, strength=1.0, glance=False, size=0
):
    """Hits of any UnlearnPatch on a MODEL, made by whatever method: what its edits of keys and values at `strength` do to the words of
    the general prior and to the texts of `keep`. forgotten: names to leave out. glance: let both models look at them too, pictures of
    `size` pixels (0: half of their own). The model is not changed.

    Raises UnlearnError for a patch of another architecture or a CLIP of another width."""
    patching.check_keys(model, patch)
    edits = {}
    for key, edit in patch.edits:
        edits.setdefault(key, []).append(edit)

    def pairs():
        for layer in layers:
            w0 = weights.read(model, layer.key)
            yield (
                w0,
                sum(
                    (edit.change(w0, strength) for edit in edits.get(layer.key, ())),
                    torch.zeros_like(w0),
                ),
            )

    layers = cross_attention(model)
    bar = Progress(len(layers) + 1 + glance * _calls(keep), node_id)
    hits = _of_changes(clip, pairs(), forgotten, keep, bar.step)
    return (
        glanced(model, patching.apply(model, patch, strength)[0], clip, hits, size, bar.step)
        if glance
        else hits
    )


def _calls(keep):
    """At most so many batches are looked at by `glanced`."""
    return -(
        -2
        * len(GLANCES)
        * (SUSPECTS + REFERENCE_WORDS + min(LISTED, len(keep)))
        // batched_sampling.LARGEST_BATCH
    )


def of_models(before, after, clip, forgotten=(), keep=(), step=lambda: None):
    """Hits of what stands between two MODELs of one kind, as `of_patch`. step: called layer by layer.

    Raises UnlearnError for models without cross-attention or a CLIP of another width."""
    read = (
        (weights.read(before, layer.key), weights.read(after, layer.key))
        for layer in cross_attention(before)
    )
    return _of_changes(clip, ((w0, w - w0) for w0, w in read), forgotten, keep, step)


def _of_changes(clip, pairs, forgotten, keep, step):
    """Hits of (W0, its change) of every layer."""
    moments = WeightGrams()
    for w0, delta in pairs:
        moments.add_edited(w0, delta)
        step()
    fetch = TextStateCache(clip, default_folder()).get
    words, states = prior_words.read_words(clip, fetch, forgotten)
    text_encoding.check_width(states.shape[-1], w0.shape[1])
    hits = look(clip, fetch, tuple(keep), words, states, moments)
    step()
    return hits


def bars(hits, n=SHOWN):
    """Rows of a bar chart of the n words hit hardest, titled `TITLE`."""
    return [
        (
            h.name,
            h.retention,
            f"{max(h.retention, 0):.0%} left",
            charts.GOOD if h.retention > 0.9 else charts.BAD,
        )
        for h in hits[:n]
    ]


def describe(hits, bound=0.9):
    """A sentence or two on what the forecast found."""
    lost = [h for h in hits if not h.on_keep_list and h.retention < bound][:SHOWN]
    listed = [h for h in hits if h.on_keep_list and h.retention < bound][:SHOWN]
    named = lambda found: ", ".join(f"{h.name} {max(0.0, h.retention):.0%}" for h in found)
    lines = []
    if listed:
        lines.append(
            f"WARNING: of the keep list, these lose part of what they say: {named(listed)} left."
        )
    if lost:
        lines.append(
            f"Nobody asked to forget these, but the forecast sees them hit hardest: {named(lost)} left. List under 'keep' what matters."
        )
    return lines or [
        f"Forecast: of {len(hits)} kept texts and suspect words none loses more than {1 - bound:.0%} of what it says."
    ]
