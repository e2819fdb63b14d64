"""A world as a judge of ScaPre's variants: what is forgotten, drawn, and seen.

Objects come in look-alike pairs; a forget set takes one of a pair and keeps the other. Sentences
and styles that judge are ones that no solve was given. forgot: accuracy left on forgotten objects.
kept: accuracy on all other objects and styles over the unedited model's. overall: harmonic mean of
1 - forgot and kept.
"""

import time
from typing import NamedTuple

import numpy as np
import torch

from testbed import pack
from testbed.judged import PLAIN, STYLED
from testbed.worlds import captions, catalogue

scapre = pack.module("unlearn.closed_form.solve")
patching = pack.module("unlearn.host.patching")
text = pack.module("unlearn.concepts.notation")

SPRITES = catalogue.SPRITES


class Shot(NamedTuple):
    caption: captions.Caption
    seed: int


def concepts(count, keep=True, order=None, world=SPRITES):
    """ConceptSet that forgets the first `count` of `order`; keep: all others on the keep list.

    order: the world's own, which has one of each look-alike pair, if None.
    """
    forget = (order or world.order)[:count]
    kept = [n for n in world.objects if n not in forget] + list(world.styles)
    return text.parse(
        "\n".join(f"{n} -> {world.superclass[n]}" for n in forget),
        "\n".join(kept) if keep else "",
    )


def shots(plain=3, styled=1, only=None, seed=500, world=SPRITES):
    """Every object `plain` times in a sentence and `styled` times in a style.

    They are the same for every edit, so that the unedited model draws once.
    """
    out, styles = [], world.styles
    for i, name in enumerate(world.objects):
        if only is not None and name not in only:
            continue
        out += [captions.plain(name, PLAIN[(i + j) % len(PLAIN)]) for j in range(plain)]
        out += [
            captions.styled(name, styles[(i + j) % len(styles)], STYLED[(i + j) % len(STYLED)])
            for j in range(styled)
        ]
    return [Shot(c, seed + k) for k, c in enumerate(out)]


class Score(NamedTuple):
    forgot: float
    kept: float
    objects: dict  # name -> accuracy

    @property
    def overall(self):
        gone = 1 - self.forgot
        return 2 * gone * self.kept / max(gone + self.kept, 1e-9)


class Bench:
    """The unedited model, what it draws of the shots, and the scores of edits."""

    def __init__(self, studio, plan, steps=12, log=print):
        self.studio, self.plan, self.steps, self.log = studio, plan, steps, log
        self.world = studio.judge.world
        self.before = self.look(None)

    def look(self, model):
        return self.studio.look(
            [s.caption for s in self.plan], seed=self.plan[0].seed, model=model, steps=self.steps
        )

    def objects(self, looks):
        """name -> accuracy of the object in all its shots."""
        seen = {}
        for shot, look in zip(self.plan, looks, strict=True):
            seen.setdefault(shot.caption.name, []).append(look.correct)
        return {name: float(np.mean(right)) for name, right in seen.items()}

    def rates(self, looks, forget):
        """(accuracy on forgotten objects, on kept objects and the styles of their pictures)."""
        gone = [
            look.correct
            for shot, look in zip(self.plan, looks, strict=True)
            if shot.caption.name in forget
        ]
        kept = [
            look.correct
            for shot, look in zip(self.plan, looks, strict=True)
            if shot.caption.name not in forget
        ]
        kept += [
            look.style == shot.caption.style
            for shot, look in zip(self.plan, looks, strict=True)
            if shot.caption.style and shot.caption.name not in forget
        ]
        return float(np.mean(gone)) if gone else 0.0, float(np.mean(kept)) if kept else 0.0

    def score(self, patch, forget):
        looks = self.look(patching.apply(self.studio.model, patch)[0])
        gone, kept = self.rates(looks, forget)
        return Score(
            gone, kept / max(self.rates(self.before, forget)[1], 1e-9), self.objects(looks)
        )

    def solve(self, count, keep=True, order=None, **settings):
        """(patch, report, seconds) of a forget set, states kept between calls."""
        start = time.time()
        with torch.inference_mode():
            patch, _, words = scapre.solve(
                self.studio.model,
                self.studio.clip,
                concepts(count, keep, order, self.world),
                scapre.SolveSettings.of(**settings),
                folder=CACHE,
            )
        return patch, words, time.time() - start

    def run(self, name, count, keep=True, order=None, **settings):
        """Score of one edit, said as a line."""
        patch, words, seconds = self.solve(count, keep, order, **settings)
        score = self.score(patch, (order or self.world.order)[:count])
        self.log(
            f"{name:28} {count:2} forgotten, {'keep list' if keep else 'no list  '}: forgot "
            f"{score.forgot:.2f} kept {score.kept:.2f} "
            f"overall {score.overall:.2f}, solved in {seconds:.1f} s"
        )
        return score


CACHE = ".host/base/temp/states"
