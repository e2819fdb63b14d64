"""What the demo and benchmarks forget in a world, and the captions they judge it on.

No solve is given these sentences: it uses "{a}", "a photo of {a}" and others of its own.
"""

from typing import NamedTuple

from testbed import pack
from testbed.worlds import captions, catalogue
from testbed.worlds.captions import Caption
from testbed.worlds.catalogue import World
from testbed.worlds.evaluate import Look

PLAIN = ("an image of {a}", "a drawing of {a}", "this is {a}", "{a} on a wall")
STYLED = ("{a} by {style}", "a photo of {a} by {style}")
PAIR = ("{a} next to {b}", "a photo of {a} and {b}")


class Shot(NamedTuple):
    """A caption, and the names that are forgotten."""

    caption: Caption
    gone: tuple[str, ...]

    @property
    def forgot(self) -> bool:
        """Whether it shows anything that is forgotten."""
        return bool({self.caption.name, self.caption.second, self.caption.style} & {*self.gone})

    def labels(self, look: Look) -> list[tuple[bool, bool]]:
        """(is the label a forgotten one, did the judge see it) for each label that counts."""
        c = self.caption
        if c.second is not None:
            return [
                (name in self.gone, seen == name)
                for name, seen in zip((c.name, c.second), look.names, strict=True)
            ]
        if c.style in self.gone:  # without its style, the object may be drawn in any way
            return [(True, look.style == c.style)]
        found = [(c.name in self.gone, look.names[0] == c.name)]
        if c.style is not None and c.name not in self.gone:
            found.append((False, look.style == c.style))
        return found


class Task(NamedTuple):
    """What is forgotten in a world.

    forget, style: three objects and a style. pruned: objects that a pruning method forgets, if the
    world has any. others: kept objects that are unlike the forgotten ones, to draw beside them.
    """

    world: World
    forget: tuple[str, ...]
    style: str
    pruned: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def gone(self) -> tuple[str, ...]:
        return (*self.forget, self.style)

    @property
    def kept_styles(self) -> tuple[str, ...]:
        return tuple(s for s in self.world.styles if s != self.style)

    def forget_lines(self, names, kind="object") -> str:
        """A forget list of these names, for a node with this kind."""
        known, named = self.world.superclass, "" if kind == "style" else "style: "
        lines = {n: f"{n} -> {known[n]}" for n in names if n in known}
        lines |= {n: f"{named}{n}" for n in names if n in self.world.styles}
        return "\n".join(lines.get(n, n) for n in names)

    def keep_lines(self, gone) -> str:
        """A keep list of everything in the world but `gone`."""
        return "\n".join(n for n in (*self.world.objects, *self.world.styles) if n not in gone)

    def concepts(self, keep=True):
        """The ConceptSet. With `keep`, everything else is on the keep list."""
        notation = pack.module("unlearn.concepts.notation")
        kept = self.keep_lines(self.gone) if keep else ""
        return notation.parse(self.forget_lines(self.gone), kept)

    def few_shots(self) -> list[Shot]:
        """What the demo draws, forgotten labels first, in rows of four; a pair counts twice.

        Forgotten objects: plain, styled, in a pair. The forgotten style, also on look-alikes.
        Kept: look-alikes, relatives, and what is unlike; other styles; pairs.
        """
        world, others = self.world, self.others
        twins = [world.twin[name] for name in self.forget]
        out, relatives = [], []
        for i, name in enumerate(self.forget):
            out += [captions.plain(name, PLAIN[(i + j) % 4]) for j in range(2)]
            out.append(captions.styled(name, self.kept_styles[i], STYLED[0]))
            out.append(captions.styled(twins[i], self.style, STYLED[0]))
            relatives.append(
                next(
                    n
                    for n in world.objects
                    if world.superclass[n] == world.superclass[name] and n not in (name, twins[i])
                )
            )
        out += [captions.styled(others[i], self.style, STYLED[i]) for i in range(2)]
        out.append(captions.pair(self.forget[1], others[2], PAIR[1]))
        near = [*twins, others[3], *relatives, others[4]]
        out += [captions.plain(name, PLAIN[i % 4]) for i, name in enumerate(near)]
        for i in range(4):
            style = self.kept_styles[i % len(self.kept_styles)]
            out.append(captions.styled(others[i], style, STYLED[i % 2]))
        out += [captions.pair(others[5], others[6], PAIR[0])]
        out += [captions.pair(twins[0], others[7], PAIR[1])]
        return [Shot(caption, self.gone) for caption in out]

    def many_shots(self, rounds: int) -> list[Shot]:
        """Every object plain `rounds` times, some styled and in pairs.

        Forgotten objects come twice as often, and the forgotten style on kept objects.
        """
        objects, styles, out = self.world.objects, self.kept_styles, []
        for i, name in enumerate(objects):
            gone = name in self.forget
            for j in range(2 * rounds if gone else rounds):
                out.append(captions.plain(name, PLAIN[(i + j) % len(PLAIN)]))
            if i % 2 == 0 or gone:
                out.append(captions.styled(name, styles[i % len(styles)], STYLED[i % 2]))
            if i % 3 == 0 or gone:
                second = objects[(7 * i + 5) % len(objects)]
                out.append(captions.pair(name, second, PAIR[i % 2]))
        kept = [n for n in objects if n not in self.forget]
        for i in range(3 * rounds):
            out.append(captions.styled(kept[3 * i % len(kept)], self.style, STYLED[i % 2]))
        return [Shot(caption, self.gone) for caption in out]


SPRITES = Task(
    world=catalogue.SPRITES,
    forget=("fox", "house", "ice cream"),
    style="van gogh",
    pruned=("boat", "anchor"),  # planted
    others=("fish", "apple", "truck", "tulip", "sword", "rocket", "key", "rose"),
)
EMOJI = Task(
    world=catalogue.EMOJI,
    forget=("fox", "house", "pizza"),
    style="line art",
    pruned=(),
    others=("robot", "guitar", "taxi", "trophy", "atom", "princess", "basketball", "donut"),
)
SHOWN = EMOJI
"""The task of the demo, `dev.py serve` and the documentation's pictures."""
