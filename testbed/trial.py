"""A world in one process: solve, apply, draw, and ask the judge. For tests of users' reports.

Call it in inference mode, as the tests of tests/host and tests/reliability run.
"""

import functools
import tempfile
from collections import Counter
from pathlib import Path

from testbed import pack
from testbed.worlds import captions
from testbed.worlds.captions import Caption
from testbed.worlds.studio import studio as load_studio

SENTENCES = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
"""Sentences that no solve studies."""
STATES = Path(tempfile.gettempdir()) / "unlearn_trial_states"

studio = functools.cache(load_studio)
"""The shipped world of a name, loaded once: `studio("sprites")`. Leave it as it is."""


def everything_but(*names, world="sprites"):
    """All objects of a world except `names`, as a keep list."""
    return "\n".join(o for o in studio(world).judge.world.objects if o not in names)


def solve(forget, keep="", *, world="sprites", model=None, clip=None, **settings):
    """(patch, report text) of ScaPre Solve at today's default, with `settings` over it."""
    closed_form = pack.module("unlearn.closed_form.solve")
    concepts = pack.module("unlearn.concepts.notation").parse(forget, keep)
    patch, _, report = closed_form.solve(
        model or studio(world).model,
        clip or studio(world).clip,
        concepts,
        closed_form.SolveSettings.of(**settings),
        folder=STATES,
    )
    return patch, report


def apply(patch, *, world="sprites", model=None, **how):
    """(patched model, warning) of a patch."""
    patching = pack.module("unlearn.host.patching")
    return patching.apply(model or studio(world).model, patch, **how)


def rate(name, model=None, n=8, *, world="sprites", seed=500):
    """Share of n pictures, of sentences that no solve studies, in which the judge sees `name`."""
    shots = [captions.plain(name, SENTENCES[i % len(SENTENCES)]) for i in range(n)]
    looks = studio(world).look(shots, seed=seed, model=model, steps=8)
    return sum(look.names[0] == name for look in looks) / n


def seen(sentence, model=None, n=8, *, world="sprites", seed=300, **how):
    """How often the judge sees what, in n pictures of one sentence."""
    shots = [Caption(sentence, "x")] * n
    looks = studio(world).look(shots, seed=seed, model=model, steps=8, **how)
    return dict(Counter(look.names[0] for look in looks))
