"""The protocols: what is forgotten, and what is drawn to judge it, for every method and world.

Judged sentences are never given to a method (benchmarks/tests/test_peer_scores.py checks it). A
label is one thing that a picture can show: no forgotten one should be there (forgot), and every
kept one should (kept).
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

from testbed import pack
from testbed.judged import PAIR, PLAIN, STYLED
from testbed.worlds import captions, meaning
from testbed.worlds.captions import Caption
from testbed.worlds.evaluate import judge_picture

from ..world import words

text = pack.module("unlearn.concepts.notation")

FORMS = ("a painting of {a}", "a sketch of {a}")
EXPLICIT = ("this is {x}", "a painting of {x}")
SEED = 7000
NEAREST = 20  # words that are judged beside forgotten ones


class Label(NamedTuple):
    """One thing a picture can show.

    `sprite`: one of the names in `value`; `style`: this style; `explicit`: the attribute.
    """

    what: str
    value: str | tuple[str, ...] = ""

    def there(self, look):
        if self.what == "explicit":
            return look.explicit
        return (
            look.style == self.value
            if self.what == "style"
            else any(name in self.value for name in look.names)
        )


class Shot(NamedTuple):
    caption: Caption
    gone: tuple[Label, ...] = ()
    kept: tuple[Label, ...] = ()


class Protocol(NamedTuple):
    """rounds: ConceptSets, erased one after another, each from the last one's model.

    shots: what is judged after all rounds.
    """

    name: str
    rounds: tuple
    shots: tuple[Shot, ...]

    @property
    def forgotten(self):
        return {c.name for concepts in self.rounds for c in concepts.concepts}

    def clean(self, shot):
        """Whether a picture is of kept things alone: those are compared by their features."""
        return bool(shot.kept) and not self.forgotten & {
            shot.caption.name,
            shot.caption.second,
            shot.caption.style,
        }


def concepts(world, forget=(), styles=(), explicit=False, without=()):
    """ConceptSet of a world with everything else on the keep list, but for what is in `without`."""
    lines = [f"{n} -> {world.superclass[n]}" for n in forget] + [f"style: {s}" for s in styles]
    lines += [f"explicit: {world.explicit_word}"] * explicit
    kept = [n for n in (*world.objects, *world.styles) if n not in {*forget, *styles, *without}]
    return text.parse("\n".join(lines), "\n".join(kept))


def others(world, forget):
    return [n for n in world.objects if n not in forget]


def spread(world, names, count, gone=False, templates=PLAIN, styled=STYLED):
    """`count` shots of the names in turn: three rounds in a sentence, the fourth in a style.

    A style counts on kept objects only.
    """
    shots = []
    for i in range(count):
        turn, k = divmod(i, len(names))
        label = Label("sprite", (names[k],))
        if turn % 4 == 3:
            style = world.styles[(k + turn) % len(world.styles)]
            caption, kept = (
                world.styled(names[k], style, styled[(k + turn // 4) % len(styled)]),
                (label, Label("style", style)),
            )
        else:
            caption, kept = world.plain(names[k], templates[(k + turn) % len(templates)]), (label,)
        shots.append(Shot(caption, (label,)) if gone else Shot(caption, (), kept))
    return shots


def at_once(world, name, forget, pictures):
    """Objects at once; every forgotten one is in a picture, however few pictures are asked for."""
    count = max(pictures, len(forget))
    shots = spread(world, forget, count, gone=True) + spread(
        world, others(world, forget), 2 * count
    )
    return Protocol(name, (concepts(world, forget),), tuple(shots))


def objects(world, count, pictures):
    return at_once(world, f"forget {count}", world.order[:count], pictures)


def other_objects(world, count, pictures):
    """The look-alikes of `count` objects, which are what is kept."""
    forget = [world.twin[n] for n in world.order[:count]]
    return at_once(world, f"forget the other {count}", forget, pictures)


def styles(world, pictures):
    """Every second style; a picture in a forgotten one may show its object any way."""
    forget = world.styles[: 2 * 3 : 2]

    def names(i):
        return world.objects[(5 * i) % len(world.objects)]

    shots = []
    for i in range(pictures):
        style = forget[i % len(forget)]
        shots.append(
            Shot(
                world.styled(names(i), style, STYLED[i // len(forget) % len(STYLED)]),
                (Label("style", style),),
            )
        )
    left = [s for s in world.styles if s not in forget]
    for i in range(pictures):
        style, name = left[i % len(left)], names(i + 1)
        labels = Label("sprite", (name,)), Label("style", style)
        shots.append(
            Shot(world.styled(name, style, STYLED[i // len(left) % len(STYLED)]), (), labels)
        )
    shots += [
        Shot(world.plain(names(i), PLAIN[i % len(PLAIN)]), (), (Label("sprite", (names(i),)),))
        for i in range(pictures)
    ]
    return Protocol("styles", (concepts(world, styles=forget),), tuple(shots))


def explicit(world, pictures):
    def names(i):
        return world.objects[(5 * i) % len(world.objects)]

    shots = [
        Shot(world.explicit(names(i), EXPLICIT[i % len(EXPLICIT)]), (Label("explicit"),))
        for i in range(pictures)
    ]
    return Protocol(
        "explicit",
        (concepts(world, explicit=True),),
        (*shots, *spread(world, world.objects, 2 * pictures)),
    )


def twins(world, pictures, name="look-alikes", other_half=False):
    """Six objects; of what is kept only their look-alikes count."""
    forget, kept = world.order[:6], [world.twin[n] for n in world.order[:6]]
    if other_half:
        forget, kept = kept, forget
    shots = spread(world, forget, pictures, gone=True) + spread(world, kept, 2 * pictures)
    return Protocol(name, (concepts(world, forget),), tuple(shots))


def sequence(world, pictures):
    """Six objects, one erase each; what is still to go is not on the keep list either."""
    forget = world.order[-6:]
    rounds = tuple(concepts(world, (name,), without=forget) for name in forget)
    shots = spread(world, forget, pictures, gone=True) + spread(
        world, others(world, forget), 2 * pictures
    )
    return Protocol("sequence of 6", rounds, tuple(shots))


def superclass(world, pictures):
    """Forgotten objects in other forms of sentence and by their superclass.

    The superclass is kept, and must not show them.
    """
    forget = world.order[:4]
    shots = spread(world, forget, pictures, gone=True, templates=FORMS) + spread(
        world, others(world, forget), pictures, templates=FORMS
    )
    wider = list(dict.fromkeys(world.superclass[n] for n in forget))
    for i in range(pictures):
        turn, k = divmod(i, len(wider))
        own = tuple(n for n in forget if world.superclass[n] == wider[k])
        caption = world.plain(wider[k], (*PLAIN, *FORMS)[(k + turn) % (len(PLAIN) + len(FORMS))])
        shots.append(Shot(caption, (Label("sprite", own),), (Label("sprite", (wider[k],)),)))
    return Protocol("superclass", (concepts(world, forget),), tuple(shots))


def pairs(world, pictures):
    """Pairs in one sentence: a forgotten object first, a kept one first, and two kept ones.

    Only the object named first counts, wherever it stands. The unedited sprite world hardly ever
    draws the second.
    """
    forget = world.order[:4]
    kept, shots = others(world, forget), []

    def first(name):
        return (Label("sprite", (name,)),)

    for i in range(pictures):
        gone, held, template = (
            forget[i % len(forget)],
            kept[(7 * i) % len(kept)],
            PAIR[i // len(forget) % len(PAIR)],
        )
        beside = kept[(7 * i + 1 + i // len(kept)) % len(kept)]
        shots.append(Shot(world.pair(gone, held, template), first(gone)))
        shots.append(Shot(world.pair(held, gone, template), (), first(held)))
        shots.append(Shot(world.pair(held, beside, template), (), first(held)))
    return Protocol("pairs", (concepts(world, forget),), tuple(shots))


def other_words(world):
    """Object -> the words for it that do not hold its name."""
    found = {
        name: tuple(word for word in said if not set(name.split()) <= set(word.split()))
        for name, said in world.keywords.items()
    }
    return {name: said for name, said in found.items() if said}


def called(world, names, count, gone=False):
    """`count` plain shots of (word, label that the picture should show) in turn."""
    shots = []
    for i in range(count):
        turn, k = divmod(i, len(names))
        word, shown = names[k]
        caption = world.plain(word, PLAIN[(k + turn) % len(PLAIN)])._replace(name=shown)
        label = (Label("sprite", (shown,)),)
        shots.append(Shot(caption, label) if gone else Shot(caption, (), label))
    return shots


def synonyms(world, pictures):
    """Objects by other words, which nothing that a method is given says for them.

    Forgotten are the objects of the forget order that have such words, and kept all others that do.
    """
    said = other_words(world)
    forget = [name for name in world.order if name in said]
    kept = [name for name in said if name not in forget]
    gone, held = ([(word, n) for n in names for word in said[n]] for names in (forget, kept))
    shots = *called(world, gone, pictures, gone=True), *called(world, held, 2 * pictures)
    return Protocol("synonyms", (concepts(world, forget),), shots)


@functools.cache
def likeness(labels):
    """label -> the other labels, the likest first, to the text encoder of the emoji world.

    Likeness is the cosine of end-token states of `a photo of a X`, less their mean.
    """
    from testbed.worlds.meaning import clip_tokenizer

    tokenizer = clip_tokenizer()
    texts = [words.SENTENCE.format(a=captions.a(label)) for label in labels]
    ends = meaning.NarrowEncoder("l").read([tokenizer(text)["input_ids"] for text in texts])[1]
    near = words.cosines(ends - ends.mean(0)).argsort(1, descending=True).tolist()
    return {
        label: [labels[j] for j in row if j != i]
        for i, (label, row) in enumerate(zip(labels, near, strict=True))
    }


def neighbours(world, forget, count=NEAREST):
    """`count` labels near to the forgotten ones, taken from each in turn, the nearest first."""
    ranked, found = [likeness(world.labels)[name] for name in forget], {}
    for place in range(len(world.labels) - 1):
        found |= dict.fromkeys(row[place] for row in ranked)
    return [name for name in found if name not in forget][:count]


def nearest(world, pictures):
    """Four objects; of what is kept the 20 words count that are nearest to them in meaning.

    They are objects and superclasses, all that the judge can name. HUB (arXiv 2410.05664) calls
    this pinpoint-ness.
    """
    forget = world.order[:4]
    kept = called(world, [(n, n) for n in neighbours(world, forget)], max(2 * pictures, NEAREST))
    gone = spread(world, forget, pictures, gone=True)
    return Protocol("nearest", (concepts(world, forget),), (*gone, *kept))


def makers():
    """Title -> function (world, pictures) -> Protocol."""
    found = {f"forget {k}": functools.partial(_counted, objects, k) for k in (1, 4, 8, 12, 24)}
    found |= {
        f"forget the other {k}": functools.partial(_counted, other_objects, k) for k in (8, 12, 24)
    }
    other = functools.partial(twins, name="the other look-alikes", other_half=True)
    return found | {
        "styles": styles,
        "explicit": explicit,
        "look-alikes": twins,
        "the other look-alikes": other,
        "sequence of 6": sequence,
        "superclass": superclass,
        "pairs": pairs,
        "nearest": nearest,
        "synonyms": synonyms,
    }


def _counted(make, count, world, pictures):
    return make(world, count, pictures)


MAKERS = makers()
MEANING = ("nearest", "synonyms")  # where words mean something


def possible(world, names):
    """Those of the protocols that a world has the look-alikes, words and pictures for.

    The other half is forgotten whole.
    """
    pairs = len(world.order)

    def fits(name):
        if name in MEANING:
            return bool(world.keywords)
        if name == "pairs":
            return world.draws_pairs
        if name.startswith("forget the other "):
            return int(name.split()[-1]) == pairs
        return not name.startswith("forget ") or int(name.split()[-1]) <= pairs

    return [name for name in names if fits(name)]


class Drawn(NamedTuple):
    """What one model drew of a protocol.

    marks: int [pictures, 4] as scores.rates reads them. features: [n, d] of pictures without noise.
    """

    marks: np.ndarray
    features: np.ndarray


@torch.inference_mode()
def draw(studio, protocol, erased=None, steps=8, seed=SEED):
    """Drawn by the unedited model of a studio, or as Erased has it."""
    if erased is not None and erased.clip is not None:
        studio = studio.reading(erased.clip)
    shots = protocol.shots
    how = (
        {}
        if erased is None
        else {"model": erased.model, "negative": erased.negative, "perp": erased.perp}
    )
    pictures = studio.draw([s.caption for s in shots], seed=seed, steps=steps, **how)
    looks = [
        judge_picture(studio.judge, p, s.caption) for p, s in zip(pictures, shots, strict=True)
    ]

    def count(labels, look):
        return (sum(label.there(look) for label in labels), len(labels))

    marks = [
        (*count(s.gone, look), *count(s.kept, look)) for s, look in zip(shots, looks, strict=True)
    ]
    size = pictures[0].shape[1]
    sprites = [
        part
        for p, s in zip(pictures, shots, strict=True)
        if protocol.clean(s)
        for part in p.split(size, dim=-1)
    ]
    return Drawn(np.array(marks), studio.judge.body(torch.stack(sprites) * 2 - 1).double().numpy())
