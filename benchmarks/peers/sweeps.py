"""How the rows `sweep` and `same information` get their settings.

The protocol, written down before anything was measured by it:

- A row has one setting for each world, each kind of concepts (few objects, many, styles, explicit)
  and each half of the look-alike pairs that may be forgotten.
- It is chosen among the settings in the peer's file: `grid`, or `SAME` for the same information.
- It is chosen on a protocol that is not reported: objects of the other half are forgotten, styles
  that no reported protocol forgets, in other sentences and from other noise. The explicit attribute
  is only one; there it is other sentences and other noise alone.
- 8 pictures of what is forgotten and 16 of what is kept are drawn for each setting.
- Chosen is the setting with the highest harmonic mean of 1 - forgot and kept; of equal ones the one
  that keeps most, and then the first, which is the official one in `grid`.

So no setting is chosen on a sentence, a noise or an object that it is reported on.
"""

import time

import torch

from testbed.worlds.captions import STYLED as TRAINED

from . import _shared, protocols, rows, scores
from .protocols import Label, Protocol, Shot

PLAIN = ("a close-up of {a}", "a photograph of {a}", "here is {a}", "a poster of {a}")
STYLED = (TRAINED[3], "a picture of {a} by {style}")
EXPLICIT = ("a drawing of {x}", "a close-up of {x}")
SEED = 27000  # reported pictures have seeds from 7000 on
FEW, SOME = 4, 12  # objects forgotten where few and where many are


def half_of(world, protocol):
    """Which half of the look-alike pairs a protocol forgets: "order", "twins" or "" for neither."""
    gone = protocol.forgotten & set(world.objects)
    return "" if not gone else "order" if gone <= set(world.order) else "twins"


def kind_of(protocol):
    return _shared.kind_of(protocol.rounds[0])


def objects(world, count, half, pictures):
    """Objects of the other half than `half`."""
    forget = world.order if half == "twins" else [world.twin[n] for n in world.order]
    forget = forget[:count]
    said = {"templates": PLAIN, "styled": STYLED}
    return (
        protocols.concepts(world, forget),
        protocols.spread(world, forget, pictures, gone=True, **said)
        + protocols.spread(world, protocols.others(world, forget), 2 * pictures, **said),
    )


def styles(world, pictures):
    """Styles that the reported protocol keeps."""
    reported = protocols.styles(world, 1).forgotten
    forget = [s for s in world.styles if s not in reported][: len(reported)]
    shots = []
    for i in range(pictures):
        name, style = world.objects[(7 * i) % len(world.objects)], forget[i % len(forget)]
        caption = world.styled(name, style, STYLED[i // len(forget) % len(STYLED)])
        shots.append(Shot(caption, (Label("style", style),)))
    kept = [s for s in world.styles if s not in forget]
    for i in range(2 * pictures):
        name = world.objects[(7 * i + 1) % len(world.objects)]
        label = Label("sprite", (name,))
        if i % 2:
            style = kept[i // 2 % len(kept)]
            caption = world.styled(name, style, STYLED[i // 2 // len(kept) % len(STYLED)])
            shots.append(Shot(caption, (), (label, Label("style", style))))
        else:
            shots.append(Shot(world.plain(name, PLAIN[i // 2 % len(PLAIN)]), (), (label,)))
    return protocols.concepts(world, styles=forget), shots


def explicit(world, pictures):
    shots = []
    for i in range(pictures):
        name = world.objects[(7 * i) % len(world.objects)]
        caption = world.explicit(name, EXPLICIT[i % len(EXPLICIT)])
        shots.append(Shot(caption, (Label("explicit"),)))
    said = {"templates": PLAIN, "styled": STYLED}
    kept = protocols.spread(world, world.objects, 2 * pictures, **said)
    return protocols.concepts(world, explicit=True), shots + kept


def protocol(world, kind, half, pictures):
    """What settings are tried on, for reported protocols of this kind that forget this half."""
    if kind == "style":
        concepts, shots = styles(world, pictures)
    elif kind == "explicit":
        concepts, shots = explicit(world, pictures)
    else:
        concepts, shots = objects(world, FEW if kind == "few" else SOME, half, pictures)
    return Protocol(f"sweep, {kind}", (concepts,), tuple(shots))


def best(tried):
    """Index of the setting to choose among [{overall, kept}]."""
    figures = [(row["overall"][0], row["kept"][0], -i) for i, row in enumerate(tried)]
    return -max(figures)[2]


class Sweeps:
    """The chosen settings, in `found`: world -> case -> row id -> what was tried and chosen.

    Cases are `few, order` and so on. What is there already is taken, unless `fresh` is set, the
    number of pictures was another or the settings have changed.
    """

    def __init__(self, found, pictures, steps, fresh=False):
        self.found, self.pictures, self.steps, self.fresh = found, pictures, steps, fresh
        self.done, self.before = set(), {}

    def setting(self, row, studio, world, reported, say):
        """The setting of a row for a reported protocol; None for a row that is not tuned."""
        if row.group not in (rows.SWEEP, rows.SAME):
            return None
        kind, half = kind_of(reported), half_of(world, reported)
        case = ", ".join(filter(None, (kind, half)))
        settings = rows.grid(row, kind)
        place = self.found.setdefault(world.name, {}).setdefault(case, {})
        if not self._holds(place.get(row.id), settings, (world.name, case, row.id)):
            start = time.time()
            tried = self._tried(row, studio, world, kind, half, settings)
            place[row.id] = {"pictures": self.pictures, "chosen": best(tried), "tried": tried}
            self.done.add((world.name, case, row.id))
            said = tried[best(tried)]
            say(
                f"{world.name}: {case}, {row.id}: of {len(tried)} settings {said['setting']}, "
                f"overall {said['overall'][0]:.2f} [{time.time() - start:.0f} s]"
            )
        return settings[place[row.id]["chosen"]]

    def _holds(self, known, settings, key):
        """Whether a result is of these settings and pictures."""
        if known is None or (self.fresh and key not in self.done):
            return False
        same = [row["setting"] for row in known["tried"]] == [repr(s) for s in settings]
        return same and known["pictures"] == self.pictures

    @torch.inference_mode()
    def _tried(self, row, studio, world, kind, half, settings):
        """{setting, forgot, kept, overall} of each setting."""
        tuned = protocol(world, kind, half, self.pictures)
        key = world.name, kind, half
        if key not in self.before:
            self.before[key] = protocols.draw(studio, tuned, None, self.steps, SEED)
        concepts, before, tried = tuned.rounds[0], self.before[key].marks, []
        read = rows.read(row, studio.clip, concepts, kind)
        for setting in settings:
            erased = rows.erased(row, studio.model, concepts, read, setting, 0)
            after = protocols.draw(studio, tuned, erased, self.steps, SEED).marks
            tried.append({"setting": repr(setting), **scores.rates(before, after)})
        return tried
