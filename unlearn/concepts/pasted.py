"""What people paste as a list, read as it is meant or refused in one sentence.

Lists come as prompts, tags, Markdown, JSON, tables and web pages. A line is taken apart into
names; what cannot be a part of a name is an error that shows how to write it. What was read
otherwise than it stands there is said in a note.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import UnlearnError
from ..types import KINDS, Concept
from . import marks
from .lines import (
    MAX_NAME_LENGTH,
    SHIELD,
    WEIGHT,
    Shield,
    as_part,
    check_line,
    clean,
    format_concept,
    parse_concept,
    short,
    split_lines,
    without_invisible,
)

NOTES_SHOWN = 6  # lines that were read otherwise than they stand there, in a report
SENTENCE_WORDS = 5  # a kept text with a part of so many words is a sentence, commas and all
EMBEDDING = "embedding:"  # how ComfyUI's prompts name an embedding file
_COMMA = "\ue000"  # stands for a comma that belongs to a name
_STYLE = ("artist", "artists", "painter", "styles", "art style")
_OBJECT = ("objects", "character", "characters", "subject", "subjects", "thing", "things")
KIND_OF = {
    **{kind: kind for kind in KINDS},
    **dict.fromkeys(_STYLE, "style"),
    **dict.fromkeys(_OBJECT, "object"),
    **dict.fromkeys(("nsfw",), "explicit"),
}
FORGET = frozenset("forget erase remove unlearn concept concepts name names tag tags".split())
KEEP = frozenset("keep kept preserve retain".split())
_LABEL = re.compile(r"([^:|>\x00]{1,40}?)\s*:(\s*)(.*)", re.DOTALL)
_EMBEDDING = re.compile(r"embedding\s*:\s*(?=\S)", re.IGNORECASE)
_PLAIN = r"[^\W\d_]\w*(?:[ -]\w+)*"
# A line that can be read in one way only; most lines of a long list are like it.
_SIMPLE = re.compile(
    rf"(?:(?:object|style|explicit): )?{_PLAIN}(?: -> {_PLAIN})?(?: \| {_PLAIN}(?:, {_PLAIN})*)?"
    r"(?: \* \d{1,3}(?:\.\d+)?)?"
)
_PLAIN_NAME = re.compile(_PLAIN)
_NOT_SIMPLE = re.compile(r"_|\b(?:AND|BREAK|and|or|none|nothing|null)\b")
_JOINING = re.compile(r"\s(?:and|or|und|et|y|&)\s|\w/\w", re.IGNORECASE)
_ET_CETERA = frozenset(("etc", "et cetera", "and so on", "usw"))
_NOTHING = frozenset(("none", "nothing", "null", "nil", "empty", "n/a"))
# What no name holds: a pattern, what it is, and how to write it.
_ODD = (
    (r"://", "holds a web address", "write the name alone"),
    (r"__", "holds '__', which names a wildcard file", "write the names themselves, one per line"),
    (r"[<>]", "holds '<' or '>'", "write an arrow as in 'fox -> animal'"),
    (r"[{}]", "holds braces, of which a prompt takes one at random", "write one name per line"),
    (r"[\[\]]", "holds square brackets", "write one name per line, without brackets"),
    (r"\|", "holds '|' within brackets", "write one name per line"),
    (r"\\", "holds a backslash", "leave it out"),
    (r"\*", "holds '*'", "put a weight at the end of the line, as in 'fox * 2'"),
    (r"=", "holds '='", "write 'fox -> animal' for what to draw instead"),
    (r"(?<![A-Za-z])#|#(?!\s|$)", "holds '#'", "put a space before and behind '#' for a remark"),
    (r"(?:^|\s)--", "holds '--'", "leave options out"),
    (r"::", "holds '::'", "write a weight as in 'fox * 2'"),
    (r"\s[-\u2010-\u2015~]+\s", "holds a dash", "write 'fox -> animal' for what to draw instead"),
    (r"\s[+/]\s", "holds '+' or '/' between names", "write one name per line"),
    (r"\t", "holds a tab between names", "write one name per line, or 'fox -> animal'"),
    (r"\s\d{1,3}[.)]\s", "holds a number between names", "write one name per line"),
    (r"^(?:[\"`]|'(?!\d))|[\"`]$|^[^']*\s'$", "holds a quote without its partner", "leave it out"),
    (r"[()]", "holds a bracket without its partner", "leave it out"),
)
_ODD_ANY = re.compile("|".join(pattern for pattern, _, _ in _ODD[:-1]))


@dataclass
class Reading:
    """What was read so far: the concepts, the keep list, and what to say of them."""

    concepts: list[Concept] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)
    read_as: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """At most a few lines on what was read otherwise than it stands there."""
        return (*_few(self.read_as), *_few(self.remarks))


def _few(lines: list[str]) -> Iterable[str]:
    more = len(lines) - NOTES_SHOWN
    return [*lines[:NOTES_SHOWN], *([f"... and {more} more lines alike."] if more > 0 else [])]


def read(forget: str, keep: str = "", kind: str = "object") -> Reading:
    """The Reading of a forget text and a keep text; concepts may repeat in it.

    Raises UnlearnError on a line that cannot be read.
    """
    found = Reading()
    for line in list_lines(forget, found):
        _forget_line(line, kind, found)
    for line in list_lines(keep, found):
        _keep_line(line, line, found)
    return found


def list_lines(text: str, found: Reading | None = None) -> list[str]:
    """The lines of a text that say something, without comments, HTML and running numbers."""
    plain = marks.plain_marks(without_invisible(text))
    without_html = marks.without_html(plain)
    if without_html != plain and found is not None:
        found.remarks.append("HTML was taken out of the list.")
    lines = [line for line in split_lines(without_html) if not line.startswith("#")]
    lines = [line for line in lines if not marks.is_rule(line)]
    unnumbered = marks.without_numbers(lines)
    if unnumbered != lines and found is not None:
        found.remarks.append("The numbers before the lines were left out.")
    return unnumbered


def name_of(text: str) -> str:
    """One name out of a cell or the left side of a line; its commas are its own.

    Raises UnlearnError where it is several names or none.
    """
    shield = Shield(marks.plain_marks(without_invisible(text)).strip(), single=True)
    part = marks.without_bullet(marks.without_tags(shield.line))
    line = _Line(text, "line", shield)
    names = line.names(part.replace(",", _COMMA))
    if len(names) != 1:
        raise UnlearnError(f"'{short(text)}' holds {len(names)} names; write one.")
    return names[0].replace(_COMMA, ",")


def _forget_line(given: str, kind: str, found: Reading) -> None:
    """Adds what a line of the forget text says."""
    if _SIMPLE.fullmatch(given) and not _NOT_SIMPLE.search(given):
        found.concepts.append(parse_concept(given, kind))
        return
    shield = Shield(given, single=True)
    line = _Line(given, "forget line", shield)
    rest = marks.without_bullet(marks.without_tags(marks.without_comment(shield.line)))
    label, rest = line.label(rest)
    if label in KEEP:
        _keep_line(given, shield.back(rest), found)
        return
    concepts = line.concepts(rest, KIND_OF.get(label, kind))
    found.concepts += concepts
    found.remarks += line.remarks
    if not _stands_so(given, kind, concepts):
        found.read_as.append(f"The line '{short(given)}' was read as {_listed(concepts, kind)}.")


def _is_plain(text: str) -> bool:
    """Whether a part is a name that nothing can be taken from."""
    return _PLAIN_NAME.fullmatch(text) is not None and not _NOT_SIMPLE.search(text)


def _stands_so(given: str, kind: str, concepts: list[Concept]) -> bool:
    """Whether a line reads just so without any guess."""
    try:
        return [parse_concept(given, kind)] == concepts
    except UnlearnError:
        return False


def _listed(concepts: list[Concept], kind: str) -> str:
    """Concepts in quotes, each as a line; `kind` is left out, as everybody expects it."""
    shown = [format_concept(c).removeprefix(f"{kind}: ") for c in concepts[:NOTES_SHOWN]]
    return quoted(shown) + ", ..." * (len(concepts) > NOTES_SHOWN)


def quoted(texts: Iterable[str]) -> str:
    """Texts in quotes with commas."""
    return ", ".join(f"'{short(text)}'" for text in texts)


def _keep_line(given: str, text: str, found: Reading) -> None:
    """Adds what a line of the keep text says; `given` is how it stands there."""
    if _SIMPLE.fullmatch(text) and not re.search(r"->|[:|*_]|\b(?:AND|BREAK)\b", text):
        found.keep.append(text)
        return
    shield = Shield(text, single=True)
    line = _Line(given, "keep line", shield)
    rest = marks.without_bullet(marks.without_tags(marks.without_comment(shield.line)))
    names = line.kept(rest)
    found.keep += names
    found.remarks += line.remarks
    if names != [clean(given)] and given == text and shield.quoted(shield.line) is None:
        shown = quoted(names[:NOTES_SHOWN])
        more = ", ..." * (len(names) > NOTES_SHOWN)
        found.read_as.append(f"The keep line '{short(given)}' was read as {shown}{more}.")


@dataclass
class _Line:
    """One line: `given` is how it stands there, `what` it is in messages."""

    given: str
    what: str
    shield: Shield
    remarks: list[str] = field(default_factory=list)

    def refused(self, problem: str, remedy: str) -> UnlearnError:
        """The error for this line."""
        return UnlearnError(f"The {self.what} '{short(self.given)}' {problem}; {remedy}.")

    def split(self, text: str, separators: str) -> list[str]:
        """The parts of a text between separators outside of brackets that are not empty."""
        try:
            parts = marks.split(text, separators)
        except ValueError as bracket:
            raise self.refused(
                f"has a '{bracket}' without its partner",
                "take it out, or put a name with brackets into double quotes",
            ) from None
        return [part.strip() for part in parts if part.strip()]

    def label(self, text: str) -> tuple[str, str]:
        """(label, rest) of 'label: rest'; ('', text) where a colon is a part of the name.

        Raises UnlearnError for a label that is no kind.
        """
        found = None if _EMBEDDING.match(text) else _LABEL.fullmatch(text)
        if found is None:
            return "", text
        label, space, rest = found[1].strip().strip("*_[ ").casefold(), found[2], found[3]
        if label in FORGET:
            if not rest.strip("*_ "):
                raise self.refused("names nothing", "take it out")
            return self.label(rest.strip())
        if label in KIND_OF or label in KEEP:
            if rest.strip():
                return label, rest.strip()
            raise self.refused(
                "names nothing", f"write '{label}: ' before each name, as in '{label}: fox'"
            )
        is_name = self._is_title(found[1], rest) or not space or " " in label
        if is_name or not rest or marks.undecorated(text) != text.strip():
            return "", text
        name = short(self.shield.back(rest))
        raise self.refused(
            f"begins with '{short(label)}:', which is no kind",
            f"write '{name}' alone, 'style: {name}', or '\"{short(clean(self.given))}\"' in "
            "quotes if the colon belongs to the name",
        )

    @staticmethod
    def _is_title(label: str, rest: str) -> bool:
        return not label[:1].islower() and not rest[:1].islower()

    def concepts(self, text: str, kind: str) -> list[Concept]:
        """The concepts of the line, less its label."""
        text = marks.with_arrow(text)
        segments = self.split(text, ";")
        if all(map(_is_plain, segments)) and segments:
            return [Concept(segment, kind) for segment in segments]
        barred = ["|" in segment for segment in segments]
        if any(barred) and not all(
            bar or "->" in segment for bar, segment in zip(barred, segments, strict=True)
        ):
            raise self.refused(
                "has ';' behind '|'", "write 'name | alias, alias', one concept per line"
            )
        return [c for segment in segments for c in self._segment(segment, kind)] or [
            self._concept("", kind, [])
        ]

    def _segment(self, text: str, kind: str) -> list[Concept]:
        """The concepts of what stands between semicolons: names, or one name with aliases."""
        parts = self.split(text, "|") if "|" in text else [text]
        if text.startswith("|") or not parts:
            parts = ["", *parts]
        if len(parts) > 1:
            return self._with_aliases(parts, kind)
        pieces = self.split(parts[0], ",")
        pieces[1:] = map(marks.without_conjunction, pieces[1:])
        arrows = sum("->" in piece for piece in pieces)
        if len(pieces) > 1 and 0 < arrows < len(pieces):
            shown = quoted(map(self.shield.back, pieces[:4]))
            raise self.refused(
                "has both ',' and '->'",
                f"write each concept with its own '->' on a line of its own: {shown}",
            )
        found: list[Concept] = []
        for piece in pieces:
            if _is_plain(piece):
                found.append(Concept(piece, kind))
                continue
            label, rest = self.label(marks.without_bullet(piece))
            if label in KEEP:
                raise self.refused("keeps and forgets", "put what is kept on a line of its own")
            found += self._concepts(rest, KIND_OF.get(label, kind), [])
        return found

    def _with_aliases(self, parts: list[str], kind: str) -> list[Concept]:
        """The concept of `name -> superclass | alias, alias`; the arrow may stand last."""
        head, aliases = parts[0], [a for part in parts[1:] for a in self.split(part, ",")]
        tail = ""
        if aliases:
            found = WEIGHT.search(aliases[-1])
            if found:
                tail, aliases[-1] = found[0], aliases[-1][: found.start()]
            last, arrow, superclass = aliases[-1].partition("->")
            if arrow:
                head, aliases[-1] = f"{head} -> {superclass}", last
        several = len(self.split(head, ",")) > 1
        if several or head.count("->") > 1 or any("->" in alias for alias in aliases):
            raise self.refused(
                "has several concepts and '|'",
                "write each on a line of its own, as in 'fox -> animal | vixen, vulpes'",
            )
        return self._concepts(head + tail, kind, aliases)

    def _concepts(self, text: str, kind: str, aliases: list[str]) -> list[Concept]:
        """The concepts of `name -> superclass * weight`: one, or those of a bracket."""
        inner = marks.unwrapped(text)
        if inner and "->" in inner[1] and not aliases and inner[0] != "{":
            return self._segment(inner[1], kind)
        name = text.partition("->")[0] if "->" in text else WEIGHT.sub("", text)
        names = self.names(name)
        if len(names) > 1 and aliases:
            raise self.refused(
                "has several names and '|'", "write each concept on a line of its own"
            )
        behind = text[len(name) :]
        return [self._concept(n, kind, aliases, behind) for n in names or [""]]

    def _concept(self, name: str, kind: str, aliases: list[str], behind: str = "") -> Concept:
        weight = 1.0
        found = WEIGHT.search(behind)
        if found:
            weight, behind = float(found[1]), behind[: found.start()]
        _, arrow, target = behind.partition("->")
        if "->" in target:
            raise self.refused("has two arrows", "name one thing to draw instead")
        superclass = self._one(target) if target.strip() else ""
        if superclass.casefold() in _NOTHING and self.shield.quoted(target) is None:
            raise self.refused(
                f"would draw the word '{superclass}' instead",
                f"write '{as_part(name)}' alone to have nothing in its place",
            )
        others = [other for alias in aliases for other in self.names(alias)]
        check_line(self.given, name, arrow, superclass, weight)
        return Concept(name, kind, superclass, tuple(others), weight)

    def _one(self, part: str) -> str:
        names = self.names(part)
        if len(names) == 1:
            return names[0]
        raise self.refused("has several names behind '->'", "name one thing to draw instead")

    def kept(self, text: str) -> list[str]:
        """The kept texts of the line: names between commas, or a sentence."""
        label, rest = self.label(text)
        if label in KEEP:
            return self.kept(rest)
        rest = marks.with_arrow(rest if label else text)
        if "->" in rest or WEIGHT.search(rest):
            raise self.refused(
                "has '->' or '* number', which are for the forget list", "write the name alone"
            )
        if not marks.unwrapped(rest):
            pieces = self.split(rest, ",;|")
            if any(len(piece.split()) >= SENTENCE_WORDS for piece in pieces):
                return [self._sentence(rest)]
        names = [
            name
            for piece in self.split(rest, ",;|")
            for name in self.names(marks.without_bullet(piece))
        ]
        if not names:
            raise self.refused("names nothing", "write what must stay as it is")
        return names

    def _sentence(self, text: str) -> str:
        """A whole sentence that is kept, with its commas and its period."""
        plain = marks.unescaped(marks.without_weights(text))
        for pattern, problem, remedy in _ODD[:5]:
            if re.search(pattern, plain):
                raise self.refused(problem, remedy)
        return clean(self.shield.back(plain))

    def names(self, part: str) -> list[str]:
        """The names in a part of the line: one, several in brackets, or none."""
        if _is_plain(part):
            return [part]
        if len(part) > 4 * MAX_NAME_LENGTH:  # too long for any name
            return [clean(self.shield.back(part))]
        part = part.strip().rstrip(",").strip()
        quoted = self.shield.quoted(part)
        if quoted is not None:
            return [quoted]
        inner = marks.unwrapped(part)
        if inner is None:
            part = marks.undecorated(part)
            inner = marks.unwrapped(part)
        if inner is not None:
            return self._in_brackets(*inner)
        pieces = marks.joined(part)
        if len(pieces) > 1:
            return [name for piece in pieces for name in self.names(piece)]
        return [self._name(pieces[0])] if pieces else []

    def _in_brackets(self, bracket: str, text: str) -> list[str]:
        """The names in a pair of brackets: emphasis, a list in code, or a prompt's choice."""
        if bracket == "[" and ("|" in text or ":" in text.replace(EMBEDDING, "")):
            raise self.refused(
                "changes a prompt while it is drawn", "write one name per line, without brackets"
            )
        if bracket == "{" and ("$$" in text or "::" in text or ":" in text):
            raise self.refused(_ODD[3][1], _ODD[3][2])
        if bracket != "(":
            parts = self.split(text, ",|")
        else:
            parts = self.split(marks.undecorated(text), ",")
        return [name for p in parts for name in self.names(marks.without_bullet(p))]

    def _name(self, part: str) -> str:
        """The part as a name; raises UnlearnError for what is no part of one."""
        quoted = self.shield.quoted(part)
        if quoted is not None:
            return quoted
        embedding = _EMBEDDING.match(part)
        if embedding:
            return EMBEDDING + clean(part[embedding.end() :])
        plain = marks.unescaped(part)
        self._check(part, plain)
        name = clean(self.shield.back(plain))
        if not any(c.isalnum() or not c.isascii() for c in name):
            raise self.refused("names no concept", "write a name in letters")
        if name.casefold().rstrip(".") in _ET_CETERA:
            raise self.refused(f"holds '{name}', which is no name", "leave it out")
        if "_" in name:
            self.remarks.append(
                f"'{short(name)}' is read with its underscore; '{short(name.replace('_', ' '))}' "
                "is another name to the text encoder, so list it too if prompts say it."
            )
        elif ":" in name or _JOINING.search(name):
            self.remarks.append(
                f"'{short(name)}' is read as one name; put several on lines of their own."
            )
        elif name.startswith("("):
            self.remarks.append(f"In '{short(name)}' brackets are read as a part of the name.")
        return name

    def _check(self, part: str, plain: str) -> None:
        """Raises UnlearnError where something stands in a name that no name holds."""
        without = plain.replace(SHIELD, "")
        if _ODD_ANY.search(without):
            for pattern, problem, remedy in _ODD:
                if re.search(pattern, without):
                    raise self.refused(
                        problem, f"{remedy}, or put the whole name into double quotes"
                    )
        if part.replace("\\(", "").count("(") != part.replace("\\)", "").count(")"):
            raise self.refused(_ODD[-1][1], _ODD[-1][2])
