"""What the text-entry layers of a transformer see of prompts, read once and kept in memory.

Layers that share an input form a group. Kept of a prompt are the rows that depend on it, up to the
last token, and samples of the padding where the model looks at it, as of UNets (text_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..host import observed_text, phrase_places
from ..host.architectures import Layer, Transformer
from ..host.model_types import Clip
from ..host.phrase_places import Places, Segment
from ..host.progress import Progress
from ..host.text_encoding import Prompt
from .text_cache import pads

MAX_BYTES = 2 * 2**30  # of rows in memory. Not measured
AT_ONCE = 16  # prompts whose conditioning is in memory together. Not measured
# Two that begin alike, and one that begins otherwise.
PROBES = ("a photo of a fox in the snow", "a photo of a cat in the snow", "two houses")
CONSTANT = "\1constant"  # the name of the rows that are the same for every prompt
LONGEST_CONSTANT = 4.0  # longer constant rows are cut to so many times the length of the others


class Group(NamedTuple):
    """Layers that see the same. pooled: one vector of each prompt, not a row for each token."""

    name: str
    layers: tuple[Layer, ...]
    pooled: bool

    @property
    def leader(self) -> Layer:
        """The layer that is observed for all of them."""
        return self.layers[0]


class ObservedStates:
    """Reads prompts for all groups of a transformer's layers."""

    def __init__(self, family: Transformer, clip: Clip) -> None:
        """The model runs a few times, to see which rows stand for which tokens.

        Raises UnlearnError for a CLIP that does not go with the model, and where what the layers
        see hangs on the picture or the noise.
        """
        self.family, self.clip = family, clip
        text, pooled = family.cross_attention_layers(), family.pooled_text_layers()
        observed_text.check_fixed(family, clip, [*text, *pooled])
        self.groups = (*_grouped(text, False), *_grouped(pooled, True))
        self._rows: dict[str, dict[str, torch.Tensor]] = {}  # text -> group and segment -> rows
        self._bytes = 0
        seen = self._observe(PROBES)
        self._places: dict[str, Places] = {}
        known: dict[tuple, Places] = {}
        for group in self.groups:
            if group.pooled:
                continue
            rows = [one.rows[group.leader.key] for one in seen]
            streams = family.streams_of(group.name)
            found = phrase_places.segments(clip, streams, PROBES, rows, seen[0].masked)
            shape = tuple(one[:-1] for one in found)
            places = known.setdefault(shape, Places(clip, found))
            self._places[group.name] = places
            for number, one in enumerate(found):
                usual = places.rows(one, PROBES[0], rows[0])[0]
                self._keep(CONSTANT, f"{group.name} {number}", _shortened(one, usual))

    def places(self, group: Group) -> Places:
        """Where phrases stand in what a group sees."""
        return self._places[group.name]

    def constants(self, group: Group) -> list[Prompt]:
        """A Prompt for the rows of each segment that are the same for every prompt, if any."""
        found = []
        for number in range(len(self.places(group).segments)):
            rows = self._rows[CONSTANT][f"{group.name} {number}"]
            if len(rows):
                text = phrase_places.text_of(CONSTANT, number)
                found.append(Prompt(text, "", 0, -1, len(rows) - 1))
        return found

    def locate(self, template: str, concept: str) -> Prompt:
        """The Prompt of a template with a concept in it, as the first group sees it.

        Raises UnlearnError when the concept has no tokens or the text is too long.
        """
        every = [places.locate(template, concept) for places in self._places.values()]
        return every[0]

    def get(
        self, group: Group, wanted: Iterable[Prompt], progress: Progress | None = None
    ) -> dict[str, torch.Tensor]:
        """Text -> rows [n, d] of Prompts as a group sees them. A text may name a segment."""
        named = dict.fromkeys(prompt.text for prompt in wanted)
        texts = list(dict.fromkeys(phrase_places.segment_of(name)[0] for name in named))
        missing = [text for text in texts if text not in self._rows]
        for start in range(0, len(missing), AT_ONCE):
            self._read(missing[start : start + AT_ONCE], keep=set(texts))
            if progress is not None:
                progress.step(min(AT_ONCE, len(missing) - start))
        found = {}
        for name in named:
            text, number = phrase_places.segment_of(name)
            found[name] = self._rows[text][f"{group.name} {number}"]
        return found

    def _observe(self, texts: Sequence[str]) -> list[observed_text.Seen]:
        keys = [group.leader.key for group in self.groups]
        return observed_text.observe(self.family, self.clip, texts, keys)

    def _read(self, texts: Sequence[str], keep: set[str]) -> None:
        """Reads texts that are not in memory. What is in `keep` is not forgotten for them."""
        for text in list(self._rows):
            if self._bytes <= MAX_BYTES:
                break
            if text not in keep and text != CONSTANT:
                for rows in self._rows.pop(text).values():
                    self._bytes -= rows.nbytes
        for text, seen in zip(texts, self._observe(texts), strict=True):
            for group in self.groups:
                rows = seen.rows[group.leader.key]
                if group.leader.columns is not None:
                    rows = rows[:, slice(*group.leader.columns)]
                if group.pooled:
                    self._keep(text, f"{group.name} 0", rows[:1])
                    continue
                places = self._places[group.name]
                for number, segment in enumerate(places.segments):
                    found, end = places.rows(segment, text, rows)
                    samples = pads(end, len(found)) if segment.pads else ()
                    chosen = found[[*range(min(end + 1, len(found))), *samples]]
                    name = f"{group.name} {number}"
                    if not len(chosen):
                        chosen = self._rows[CONSTANT][name][:1]
                    self._keep(text, name, chosen)

    def _keep(self, text: str, name: str, rows: torch.Tensor) -> None:
        rows = rows.clone()
        self._rows.setdefault(text, {})[name] = rows
        self._bytes += rows.nbytes


def _grouped(layers: Sequence[Layer], pooled: bool) -> list[Group]:
    names = dict.fromkeys(layer.group for layer in layers)
    return [Group(name, tuple(x for x in layers if x.group == name), pooled) for name in names]


def _shortened(segment: Segment, others: torch.Tensor) -> torch.Tensor:
    """The constant rows of a segment, none far longer than the other rows [n, d].

    A language model's first token is often a hundred times as long as the rest. As it is, it would
    outweigh all that is kept.
    """
    usual = float(others.norm(dim=1).median())
    length = segment.constants.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return segment.constants * (LONGEST_CONSTANT * usual / length).clamp_max(1.0)
