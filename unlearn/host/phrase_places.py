"""Where a phrase stands among the rows that a layer sees of a prompt, for any text encoder.

A phrase is found by aligning the tokens of a sentence with it and without it: what both have in
common at the beginning and at the end is not the phrase. Which row stands for which token is
measured, because chat templates are cut off at the front, some models pad in front, and others
behind.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from ..errors import UnlearnError, quoted
from . import embeddings
from .model_types import Clip
from .text_encoding import LETTERS, SHOWN, Prompt, comparable, escaped

SEPARATOR = "\0"  # stands in no text that an artist writes
LETTERS_ALONE = ("a", "q")  # by which a token that means no more than a space is found
DUMMY = "thing"  # stands where a sentence has nothing in the concept's place
LONG_PADDING = 8  # tokens; fewer in a row are taken for words
SAME = 1e-4  # relative difference of two rows up to which they are the same


class Stream(NamedTuple):
    """The tokens of a text in one encoder. last: the number of the last one before the padding."""

    tokens: tuple[Hashable, ...]
    last: int


def streams(clip: Clip, text: str) -> dict[str, Stream]:
    """The Stream of a text in every encoder of a CLIP.

    Raises UnlearnError for a text that an encoder reads in several pieces.
    """
    found = {}
    for name, chunks in clip.tokenize(escaped(text)).items():
        if len(chunks) > 1:
            raise UnlearnError(
                f"The prompt '{text[:SHOWN]}...' is longer than the text encoder '{name}' reads "
                "at once; shorten the concept or the template."
            )
        tokens = tuple(comparable(entry[0]) for entry in chunks[0])
        found[name] = Stream(tokens, _last(clip, name, tokens))
    return found


def _last(clip: Clip, name: str, tokens: tuple[Hashable, ...]) -> int:
    """The number of the last token before the padding, -1 where there is nothing else.

    Where the padding is long and more follows, that is the end of a template that is cut off.
    """
    tokenizer: Any = getattr(clip, "tokenizer", None)
    of_encoder = getattr(tokenizer, name, None) or getattr(tokenizer, f"clip_{name}", None)
    pad, end = (getattr(of_encoder, kind, None) for kind in ("pad_token", "end_token"))
    last = len(tokens) - 1
    while last >= 0 and tokens[last] == pad:
        last -= 1
    run = 0
    for number in range(last, -1, -1):
        run = run + 1 if tokens[number] == pad else 0
        if run == LONG_PADDING:
            while number >= 0 and tokens[number] == pad:
                number -= 1
            if number >= 0:  # otherwise the padding stands in front
                return number
    ends = pad is not None and pad == end
    return min(last + ends, len(tokens) - 1)


def check(clip: Clip, template: str, concept: str) -> None:
    """Raises UnlearnError where no encoder reads the concept, or a text is too long for one."""
    text = template.replace("{concept}", concept)
    embeddings.check(clip, text)
    other = streams(clip, template.replace("{concept}", ""))
    same = all(found.tokens == other[name].tokens for name, found in streams(clip, text).items())
    if concept and (same or not readable(concept)):
        refuse_unreadable(concept)


def readable(concept: str) -> bool:
    """Whether a concept has anything that a text encoder reads."""
    return any(unicodedata.category(letter)[0] in LETTERS for letter in concept)


def refuse_unreadable(concept: str) -> NoReturn:
    """Raises UnlearnError for a concept that no text encoder reads."""
    raise UnlearnError(
        f"The concept '{concept}' has no letters the text encoder reads; write it in "
        "other characters."
    )


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[int, int]:
    """How many tokens two texts have in common at the beginning, and then at the end."""
    shortest = min(len(a), len(b))
    first = 0
    while first < shortest and a[first] == b[first]:
        first += 1
    last = 0
    while last < shortest - first and a[-1 - last] == b[-1 - last]:
        last += 1
    return first, last


class Segment(NamedTuple):
    """The rows of a layer's input that stand for the tokens of one encoder.

    stream: the encoder's name. start, stop: its first row and one past its last one, None for the
    end. shift: the row of a token less its number, counted from `start`. in_front: whether the
    padding stands in front, so that rows are counted from the end. causal: whether a row
    depends on the tokens up to its own alone. begin: the first row that depends on the text; those
    before it are `constants`. pads: whether the rows of the padding depend on the text and are
    looked at; where they do not, one of them is in `constants` too.
    """

    stream: str
    start: int
    stop: int | None
    shift: int
    in_front: bool
    causal: bool
    begin: int
    pads: bool
    constants: torch.Tensor

    def rows(self, seen: torch.Tensor, tokens: int) -> torch.Tensor:
        """The rows [n, d] of this segment that depend on a text of so many tokens."""
        found = seen[self.start : self.stop]
        return (found[len(found) - tokens :] if self.in_front else found)[self.begin :]

    def row_of(self, token: int) -> int:
        """Where a token stands among `rows`."""
        return token + self.shift - self.begin


def first_difference(a: torch.Tensor, b: torch.Tensor) -> int:
    """The first row in which [n, d] and [m, d] differ, the length of the shorter where none."""
    n = min(len(a), len(b))
    off = (a[:n] - b[:n]).norm(dim=1) > SAME * a[:n].norm(dim=1).clamp_min(1e-30)
    return int(off.nonzero()[0]) if bool(off.any()) else n


def segments(
    clip: Clip,
    names: Sequence[str],
    texts: Sequence[str],
    seen: Sequence[torch.Tensor],
    masked: bool,
) -> list[Segment]:
    """The Segments of what a layer sees.

    names: of the encoders whose rows stand one after another, () for the only one. texts: three
    sentences; the first two begin alike and the third otherwise. seen: the rows [n, d] of each.
    masked: whether the model looks at no padding.
    Raises UnlearnError where rows and tokens do not go together.
    """
    read = [streams(clip, text) for text in texts]
    found = []
    chosen = [name for name in names if name in read[0]] or _only(read[0], names)
    start = 0
    for number, name in enumerate(chosen):
        of_text = [one[name] for one in read]
        is_last = number == len(chosen) - 1
        stop = None if is_last else start + len(of_text[0].tokens)
        rows = [one[start:stop] for one in seen]
        if len(rows[0]):
            found.append(_segment(name, start, stop, of_text, rows, masked))
        start = stop or start
    return found


def _only(read: dict[str, Stream], names: Sequence[str]) -> list[str]:
    if len(read) == 1:
        return list(read)
    raise UnlearnError(
        f"The input 'clip' reads text with {', '.join(sorted(read))}, and the model was made for "
        f"{' and '.join(names) or 'one text encoder'}; connect the text encoder of the model."
    )


def _segment(
    name: str,
    start: int,
    stop: int | None,
    of_text: Sequence[Stream],
    rows: Sequence[torch.Tensor],
    masked: bool,
) -> Segment:
    first, second, other = of_text
    token = common(first.tokens, second.tokens)[0]
    row = first_difference(rows[0], rows[1])
    causal = row > 0
    lengths = [len(found) for found in rows]
    counts = [len(one.tokens) for one in of_text]
    shift = row - token if causal else min(0, lengths[0] - counts[0])
    in_front = causal and shift > 0
    if in_front:
        rows = [found[len(found) - n :] for found, n in zip(rows, counts, strict=True)]
        shift = first_difference(rows[0], rows[1]) - token
    begin = max(0, common(first.tokens, other.tokens)[0] + shift) if causal else 0
    after = [one.last + 1 + shift for one in (first, second)]
    padding = [one[place:] for one, place in zip(rows, after, strict=False)]
    count = min(map(len, padding))
    same = count == 0 or first_difference(padding[0], padding[1]) == count
    constants = rows[0][:begin]
    if count and same and not masked:
        constants = torch.cat([constants, padding[0][-1:]])
    pads = bool(count) and not masked and not same
    return Segment(name, start, stop, shift, in_front, causal, begin, pads, constants)


class Places:
    """Finds phrases among the rows of one group of layers.

    A sentence has one Prompt for each segment. `locate` gives the first; `parts` the others.
    """

    def __init__(self, clip: Clip, found: Sequence[Segment]) -> None:
        self.clip, self.segments = clip, tuple(found)
        self._parts: dict[tuple[str, str], tuple[Prompt, ...]] = {}
        self._streams: dict[str, dict[str, Stream]] = {}
        self._spaces = {one.stream: self._space(one.stream) for one in found}

    def _space(self, name: str) -> Hashable | None:
        """The token of an encoder that says only that a word begins, None where there is none.

        T5 reads `fox` as such a token and `fox`. It stands before many words and means none.
        """
        empty = self._read("")[name].tokens
        pieces = []
        for letter in LETTERS_ALONE:
            tokens = self._read(letter)[name].tokens
            first, last = common(tokens, empty)
            pieces.append(tokens[first : len(tokens) - last])
        firsts = {piece[0] for piece in pieces if len(piece) == 2}
        return firsts.pop() if len(firsts) == 1 else None

    def _read(self, text: str) -> dict[str, Stream]:
        if text not in self._streams:
            self._streams[text] = streams(self.clip, text)
        return self._streams[text]

    def locate(self, template: str, concept: str) -> Prompt:
        """The Prompt of a template with `{concept}` filled in, in the first segment.

        Raises UnlearnError when the concept has no tokens or the text is too long.
        """
        if "{concept}" not in template:
            raise UnlearnError(
                f"The template {quoted(template)} has no {{concept}} in it; write {{concept}} "
                "where the concept goes."
            )
        text = template.replace("{concept}", concept)
        if (text, concept) not in self._parts:
            embeddings.check(self.clip, text)
            other = template.replace("{concept}", "" if concept else DUMMY)
            parts = [self._part(one, text, concept, other) for one in self.segments]
            self._parts[text, concept] = tuple(parts)
        return self._parts[text, concept][0]

    def rows(self, segment: Segment, text: str, seen: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(the rows [n, d] of a text in a segment, where its last token stands among them).

        The latter is -1 where none of them depends on the text.
        """
        stream = self._read(text)[segment.stream]
        return segment.rows(seen, len(stream.tokens)), segment.row_of(stream.last)

    def parts(self, prompt: Prompt) -> tuple[Prompt, ...]:
        """The Prompts of a located sentence, one for each segment; those after it have own texts.

        A text of another segment is told by `segment_of`.
        """
        found = self._parts[prompt.text, prompt.name]
        return tuple(
            part._replace(text=text_of(part.text, number)) for number, part in enumerate(found)
        )

    def _part(self, segment: Segment, text: str, concept: str, other: str) -> Prompt:
        """other: the sentence with nothing, or where it has nothing, a word in that place."""
        whole, without = self._read(text)[segment.stream], self._read(other)[segment.stream]
        tokens, others = whole.tokens[: whole.last + 1], without.tokens[: without.last + 1]
        first, last = common(tokens, others)
        stop = len(tokens) - last if concept else first
        if concept and (stop <= first or not readable(concept)):
            refuse_unreadable(concept)
        while first < stop - 1 and tokens[first] == self._spaces[segment.stream]:
            first += 1
        row = segment.row_of
        end = max(row(whole.last), 0)  # of an empty prompt nothing but constant rows may be left
        own = max(min(row(first), end), 0)
        return Prompt(
            text,
            concept,
            own,
            row(stop - 1) if concept else own - 1,
            end,
            segment.causal,
            tokens[first:stop],
        )


def text_of(text: str, number: int) -> str:
    """The name under which the rows of a text in a segment are kept."""
    return f"{text}{SEPARATOR}{number}" if number else text


def segment_of(text: str) -> tuple[str, int]:
    """(the text itself, the number of the segment) of a name that `text_of` gives."""
    inner, found, number = text.rpartition(SEPARATOR)
    return (inner, int(number)) if found else (text, 0)
