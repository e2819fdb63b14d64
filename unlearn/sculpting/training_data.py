"""What Sculpting Memory trains on: sentences about what goes and what stays, and latents that the model draws for them itself."""

import hashlib
import re
import threading
from collections import OrderedDict
from typing import NamedTuple

import comfy.utils
import torch

from ...kernels import sculpting as kernel
from ..concepts import sentences
from ..concepts.notation import parse_concept
from ..errors import UnlearnError
from ..host import text_encoding
from ..types import Concept

DRAWN = {
    "object": ("a photo of a {concept}",),
    "style": (
        "a house in the style of {concept}",
        "a portrait of a woman in the style of {concept}",
        "a beautiful {concept} artwork",
    ),
    "explicit": ("a photo of a {concept} person", "a {concept} woman", "a {concept} man on a bed"),
}
MORE = {  # sentences trained on beside those of the closed-form solves: with few, a concept goes in these alone
    "object": (
        "a close-up of a {concept}",
        "my {concept} in the morning light",
        "a small {concept} on the table",
        "an old {concept}, oil on canvas",
        "there is a {concept} in the room",
        "the best {concept} ever",
    ),
    "style": (
        "a city street by {concept}",
        "{concept}, oil on canvas",
        "a bowl of fruit in {concept} style",
        "a ship at sea, art by {concept}",
    ),
    "explicit": (
        "a close-up of a {concept} body",
        "{concept} people on a beach",
        "there is a {concept} person in the room",
    ),
}
SHARES = {
    "earlier": 0.3,
    "keep": 0.4,
    "prior": 0.2,
    "empty": 0.1,
}  # of the held rows, of what there is
OWN = 0.5  # of the held rows show what their text says; the others any picture, since what is followed is the whole prediction
CACHED_BYTES = 2**28

_lock = threading.Lock()
_cache = OrderedDict()  # what was drawn, by a digest of all that decides it, so that another run with other settings need not draw again


class ForgetTask(NamedTuple):
    """A concept to overwrite: (text with it, same text with its superclass) trained on, measured on, and drawn."""

    concept: Concept
    pairs: tuple[tuple[str, str], ...]
    checks: tuple[tuple[str, str], ...]
    drawn: tuple[tuple[str, str], ...]


class TrainingPlan(NamedTuple):
    """All that is said: lessons to come, lessons of an earlier patch, (text drawn, texts) to keep, everyday captions."""

    lessons: tuple[ForgetTask, ...]
    past: tuple[ForgetTask, ...]
    kept: tuple[tuple[str, tuple[str, ...]], ...]
    prior: tuple[str, ...]

    @property
    def texts(self):
        """Every text that must be encoded, once each; the names of the concepts are what superclass pictures are guided away from."""
        out = [""]
        for lesson in (*self.lessons, *self.past):
            out += [
                t
                for part in (lesson.pairs, lesson.checks, lesson.drawn)
                for pair in part
                for t in pair
            ] + [lesson.concept.name]
        return tuple(
            dict.fromkeys(
                [*out, *(t for text, texts in self.kept for t in (text, *texts)), *self.prior]
            )
        )


def _lesson(clip, concept, templates):
    def pairs(templates):
        out = []
        for name in concept.names:
            for sentence in (text_encoding.fix_article(t, name) for t in templates):
                said = text_encoding.locate(clip, sentence, name).text
                other = text_encoding.fix_article(
                    sentence.replace("an {concept}", "a {concept}"), concept.superclass
                )
                out.append((said, text_encoding.locate(clip, other, concept.superclass).text))
        return tuple(out)

    return ForgetTask(
        concept,
        pairs(templates or (*sentences.TEMPLATES[concept.kind], *MORE[concept.kind])),
        pairs(sentences.CHECKED[concept.kind]),
        pairs(DRAWN[concept.kind]),
    )


def plan(clip, concept_set, earlier=None, templates=None, captions=16, seed=0):
    """The Plan for a ConceptSet, with the concepts and keep list that an earlier UnlearnPatch remembers; captions: how many everyday ones.

    Raises UnlearnError for a template without {concept}, a concept without tokens or a text over 75 tokens.
    """
    records = earlier.provenance if earlier is not None else ()
    new = {n.casefold() for c in concept_set.concepts for n in c.names}
    past = {
        c.name: c
        for record in records
        for c in map(parse_concept, record.get("lines", ()))
        if c.name.casefold() not in new
    }
    gone = new | {n.casefold() for c in past.values() for n in c.names}
    keep = dict.fromkeys(
        [*concept_set.keep, *(k for record in records for k in record.get("keep", ()))]
    )
    # a superclass stays as it is, also while the concepts of others are overwritten
    keep |= dict.fromkeys(
        c.superclass for c in (*concept_set.concepts, *past.values()) if c.superclass
    )
    spoken = re.compile("|".join(rf"(?<!\w){re.escape(n)}s?(?!\w)" for n in gone), re.IGNORECASE)
    captioned = [t for t in sentences.prior_sentences() if not spoken.search(t)]
    order = torch.randperm(len(captioned), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = []
    for k in keep:
        if k.casefold() not in gone:
            texts = [
                text_encoding.fix_article(t, k).replace("{concept}", k) for t in sentences.KEPT
            ]
            for t in texts:
                text_encoding.locate(clip, "{concept}", t)
            kept.append((texts[1], tuple(texts)))
    lessons, before = (
        tuple(_lesson(clip, c, templates) for c in part)
        for part in (concept_set.concepts, past.values())
    )
    return TrainingPlan(lessons, before, tuple(kept), tuple(captioned[i] for i in order[:captions]))


class TrainingData:
    """A Plan with its latents, all [n, c, h, w] float32 on the CPU: concept -> its own (`own`) and its superclass' (`other`), and
    `kept`, `prior`, one each."""

    def __init__(self, network, plan, settings, shape, given=None, bar=None):
        """given: latents of pictures the artist brought for the only concept, or None."""
        self.network, self.plan, self.shape, self.settings = network, plan, list(shape), settings
        self.model = _digest(network)
        n, replay = settings["pictures"], settings["variant"] == "replay"
        self.own, self.other = {}, {}
        for lesson in (*plan.lessons, *(plan.past if replay else ())):
            name, several = (
                lesson.concept.name,
                lambda texts: [texts[i % len(texts)] for i in range(n)],
            )
            said, instead = (several(part) for part in zip(*lesson.drawn, strict=True))
            self.own[name] = (
                given
                if given is not None and lesson in plan.lessons
                else self._drawn(said, [""] * n, bar)
            )
            self.other[name] = self._drawn(instead, [name] * n, bar)
        self.kept = (
            self._drawn([text for text, _ in plan.kept], [""] * len(plan.kept), bar)
            if replay
            else None
        )
        self.prior = self._drawn(list(plan.prior), [""] * len(plan.prior), bar) if replay else None

    def _drawn(self, texts, against, bar):
        """Latents of texts guided away from `against`, from the cache or from the network's reference."""
        s, first = self.settings, self.settings["seed"]
        if not texts:
            return torch.zeros(0, *self.shape)
        wish = repr(
            (
                self.model,
                texts,
                against,
                first,
                self.shape,
                s["sampling_steps"],
                s["cfg"],
                self.network.dtype,
            )
        )
        key = hashlib.blake2b(wish.encode(), digest_size=16).digest()
        with _lock:
            found = _cache.get(key)
        if found is not None:
            if bar is not None:
                bar.step(len(texts) * s["sampling_steps"])
        else:
            row = self.network.row
            seeds = [(first + i) % 2**63 for i in range(len(texts))]
            where = ([row[t] for t in texts], [row[t] for t in against])
            found = self.network.draw(
                self.network.reference,
                *where,
                seeds,
                self.shape,
                s["sampling_steps"],
                s["cfg"],
                bar,
            )
            if not torch.isfinite(found).all():
                raise UnlearnError(
                    "The input 'model' draws NaN, so it cannot be trained; load an undamaged checkpoint or set 'precision' to fp32."
                )
        with _lock:
            _cache[key] = found
            _cache.move_to_end(key)
            while sum(t.nbytes for t in _cache.values()) > CACHED_BYTES and len(_cache) > 1:
                _cache.popitem(last=False)
        return found

    def held(self, number):
        """Groups (share, texts, latents, kind) of what is to stay in round `number`: `earlier` as the teacher has it, all else as the model
        that came in has it, so that what a round damages the next ones mend."""
        kinds = {"earlier": [], "keep": [], "prior": [], "empty": []}
        for lesson in (*self.plan.past, *self.plan.lessons[:number]):
            name = lesson.concept.name
            kinds["earlier"].append(
                ([t for t, _ in lesson.pairs], torch.cat([self.own[name], self.other[name]]))
            )
        kinds["keep"] = [
            (list(texts), self.kept[i : i + 1]) for i, (_, texts) in enumerate(self.plan.kept)
        ]
        kinds["prior"] = [([text], self.prior[i : i + 1]) for i, text in enumerate(self.plan.prior)]
        everything = torch.cat([self.kept, self.prior, *self.other.values()])
        kinds["empty"] = [([""], everything)]
        total = sum(SHARES[k] for k, groups in kinds.items() if groups)
        return [
            (SHARES[k] / total / len(groups), *group, k)
            for k, groups in kinds.items()
            for group in groups
        ]

    def held_states(self):
        """Text states [n, d] of everything that is to stay, earlier concepts apart, on the CPU."""
        texts = ["", *(t for _, texts in self.plan.kept for t in texts), *self.plan.prior]
        return self.network.conds["c_crossattn"][[self.network.row[t] for t in texts]].flatten(0, 1)

    def held_rows(self, groups, n, g):
        """n draws (latents [n, c, h, w], text rows, bool [n]: whether it is `earlier`) from groups by their shares, evenly spread."""
        share = torch.tensor([s for s, *_ in groups], dtype=torch.float64).cumsum(0)
        at = (torch.arange(n) + torch.rand(n, generator=g)) / n * share[-1]
        which = torch.searchsorted(share, at.double()).clamp_max(len(groups) - 1)
        latents, rows, earlier, everything = (
            [],
            [],
            [],
            torch.cat([pictures for _, _, pictures, _ in groups]),
        )
        for i in which[torch.randperm(n, generator=g)].tolist():
            _, texts, pictures, kind = groups[i]
            pictures = pictures if torch.rand((), generator=g) < OWN else everything
            latents.append(pictures[pick(len(pictures), 1, g)[0]])
            rows.append(self.network.row[texts[pick(len(texts), 1, g)[0]]])
            earlier.append(kind == "earlier")
        return torch.stack(latents), rows, torch.tensor(earlier)

    def checks(self, lesson, n):
        """Held-out measurements of a lesson: (x, sigma, rows with the concept, rows with its superclass), noise levels evenly spread."""
        g = torch.Generator().manual_seed((self.settings["seed"] + 7919) % 2**63)
        name, row = lesson.concept.name, self.network.row
        pictures = torch.cat([self.own[name], self.other[name]])
        latents = pictures[
            torch.randperm(len(pictures), generator=g)[torch.arange(n) % len(pictures)]
        ]
        sigma = self.network.levels((torch.arange(n) + 0.5) / n)
        x = self.network.noised(
            latents.to(self.network.device),
            torch.randn(latents.shape, generator=g).to(self.network.device),
            sigma,
        )
        pairs = [lesson.checks[i % len(lesson.checks)] for i in range(n)]
        return x, sigma, [row[a] for a, _ in pairs], [row[b] for _, b in pairs]

    @torch.no_grad()
    def left(self, branch, checks, size):
        """Root mean squared distance between a branch's predictions with the concept and with its superclass, `size` rows at a time."""
        x, sigma, own, other = checks
        x, sigma, rows = torch.cat([x, x]), torch.cat([sigma, sigma]), own + other
        parts = [
            self.network.predict(branch, x[i : i + size], sigma[i : i + size], rows[i : i + size])
            for i in range(0, len(x), size)
        ]
        p = torch.cat(parts)
        return float(kernel.squared_error(p[: len(own)], p[len(own) :]).mean().sqrt())


def pick(n, k, g):
    """k random numbers below n."""
    return torch.randint(n, (k,), generator=g).tolist()


def _digest(network):
    """What the latents a network draws depend on: samples of all its reference's weights, LoRAs included."""
    h = hashlib.blake2b(digest_size=16)
    for name, p in network.reference.named_parameters():
        flat = p.detach().flatten()
        h.update(
            name.encode()
            + flat[:: max(1, flat.numel() // 64)].float().cpu().contiguous().numpy().tobytes()
        )
    return h.hexdigest()


def own_pictures(vae, model, images, size):
    """Latents in the model's scale of the artist's IMAGE batch [n, h, w, 3], cropped to squares of `size` pixels."""
    square = comfy.utils.common_upscale(
        images[:, :, :, :3].movedim(-1, 1), size, size, "lanczos", "center"
    ).movedim(1, -1)
    with torch.inference_mode():
        return model.model.process_latent_in(vae.encode(square)).float().cpu().clone()
