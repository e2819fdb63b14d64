"""The marks that come along when a list is pasted: where they are split, and what falls away."""

import html
import re

OPEN, CLOSE = "([{", ")]}"
_FULL_WIDTH = str.maketrans(
    {
        **dict.fromkeys("\uff0c\u3001\ufe50\uff64", ","),
        **dict.fromkeys("\uff1b\ufe54", ";"),
        **dict.fromkeys("\uff1a\ufe55", ":"),
        **dict.fromkeys("\uff5c\uffe8", "|"),
        **dict.fromkeys("\uff08\ufe59", "("),
        **dict.fromkeys("\uff09\ufe5a", ")"),
        **dict.fromkeys("\uff3b\u3010", "["),
        **dict.fromkeys("\uff3d\u3011", "]"),
        **dict.fromkeys("\uff5b", "{"),
        **dict.fromkeys("\uff5d", "}"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\uff02\u300c\u300d\u300e\u300f", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\uff07", "'"),
        **dict.fromkeys("\uff0a", "*"),
        **dict.fromkeys("\uff03", "#"),
        **dict.fromkeys("\uff1e", ">"),
        "\u3000": " ",
    }
)
# Quoted parts, and an apostrophe within a word: the text encoder reads it as another letter.
_LITERAL = re.compile(
    r"((?:(?<=[,;|:({\[>\uff0c\u3001\uff1b\uff1a])|^)[ \t]*"
    r'"(?:[^"\\\n]|\\.)*"|(?<=\w)\u2019(?=\w))',
    re.MULTILINE,
)
_ARROW = re.compile(
    r"(?<![<=])(?:[-=~\u2010-\u2015\u2212]{1,3}>"
    r"|[\u2192\u21d2\u2794\u279c\u279d\u279e\u2799\u27a4\u27f6\u27f9\u27fc\u21a6"
    r"\u2b95\u21e8]\ufe0f?|\u27a1\ufe0f?)"
)
_BULLETS = re.compile(
    r"[-*+>\u2010-\u2015\u2212]\s+(?:\[[ xX]?\]\s*)?"
    r"|[\u2192\u21d2\u2794\u279c\u279d\u27a4\u2022\u00b7\u2023\u25aa\u25ab\u25b8\u25ba\u25b6\u25e6"
    r"\u25cf\u25cb\u25a0\u25a1\u25c6\u25c7\u2605\u2606\u2713\u2714\u2717\u2756\u2043\u2219\u30fb"
    r"\u2027\u203b]\s*"
    r"|\(?\d{1,4}[.)]\s+"
    r"|\(?\d{1,4}[.)](?=[^\W\d_])"
    r"|\(?[A-Za-z]\)\s+"
    r"|\d{1,4}(?:\s+[-\u2010-\u2015]|:)\s+"
    r"|\d\ufe0f?\u20e3\s*"
    r"|[-+\u2010-\u2015](?=[^\W\d_])"
)
_COMMENT = re.compile(r"\s(?:#|//)(?:\s.*)?$")
_TAG = re.compile(r"<\s*(?:lora|lyco|loha|lokr|hypernet)\s*:[^<>]*>", re.IGNORECASE)
_HTML_BREAK = re.compile(
    r"</?(?:br|li|p|div|ul|ol|tr|td|th|table|tbody|thead|h[1-6])\b[^<>]*>", re.IGNORECASE
)
_HTML_MARK = re.compile(
    r"</?(?:b|i|em|strong|span|u|s|a|code|font|mark|small|body|html)\b[^<>]*>|<!--[^<>]*-->",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-fA-F]{1,5}|[A-Za-z]{2,8});")
_EMPHASIS = re.compile(r"(\*{1,3}|`|_(?!_)|~~)([^*`~]*[^*`~\s])\1")
_MARKUP = re.compile(r"\s*<\s*(embedding:[^<>]*)>\s*", re.IGNORECASE)
_PROMPT_WEIGHT = re.compile(r"(?<!:)\s*:\s*[-+]?\d*\.?\d+\s*$")
_WEIGHTED = re.compile(r"\(([^()\[\]:]+):\s*\d*\.?\d+\)")
_PERIOD = re.compile(r"([^\W\d_]{3,})\.$")
_ELLIPSIS = re.compile(r"(?<=\w)(?:\.{2,}|[\u2026\u3002\uff0e]+)$")
_ABBREVIATED = frozenset("inc ltd corp bros jrs esq etc vol mrs dept intl".split())
_JOINED = re.compile(r"(?:^|\s+)(?:AND|BREAK)(?=\s|$)")
_BREAK = re.compile(r"(?:^|\s+)BREAK(?=\s|$)")
_NUMBER_BEFORE = re.compile(r"(?:^|[\s,;|])(?:\d{1,3}|[A-Za-z])$")  # as in '1) fox, 2) house'
_CONJUNCTION = re.compile(r"(?:and|or|&)\s+(?=\S)")
_NUMBERED_LINE = re.compile(r"(\d{1,4})\s+(?=\S)")


def plain_marks(text: str) -> str:
    """The text with the plain form of full-width marks and curly quotes.

    What stands in plain quotes stays, and so does an apostrophe within a word, because the text
    encoder reads it as another letter.
    """
    if text.isascii():
        return text
    parts = _LITERAL.split(text)  # every other part is one that stays
    parts[::2] = [part.translate(_FULL_WIDTH) for part in parts[::2]]
    return "".join(parts)


def without_conjunction(part: str) -> str:
    """A later part of a list without the 'and' before it: 'fox, house, and cat'."""
    return _CONJUNCTION.sub("", part, count=1) if _CONJUNCTION.match(part) else part


def without_html(text: str) -> str:
    """The text with line breaks for HTML's blocks, and without its other tags and entities."""
    if "<" in text:
        text = _HTML_MARK.sub("", _HTML_BREAK.sub("\n", text))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def is_rule(line: str) -> bool:
    """Whether a line is nothing but a ruler, or brackets and commas of a list in code."""
    ruler = len(line) > 2 and not line.strip("-=*_~ ")
    return ruler or line.strip("[](){}, ") in ("", "BREAK")


def without_numbers(lines: list[str]) -> list[str]:
    """The lines without the numbers that count them: '1 fox', '2 house'."""
    found = [_NUMBERED_LINE.match(line) for line in lines]
    if len(lines) < 2 or found[0] is None:
        return lines
    first = int(found[0][1])
    for number, match in enumerate(found, first):
        if match is None or int(match[1]) != number:
            return lines
    return [line[match.end() :] for line, match in zip(lines, found, strict=True) if match]


def without_comment(line: str) -> str:
    """The line without a remark behind ' # ' or ' // '."""
    return _COMMENT.sub("", line) if "#" in line or "//" in line else line


def without_tags(line: str) -> str:
    """The line without tags that load a LoRA, and an embedding's name without its tag."""
    if "<" not in line:
        return line
    return _MARKUP.sub(r" \1 ", _TAG.sub(" ", line)).strip()


def without_bullet(line: str) -> str:
    """The line without the bullets and numbers before it."""
    for _ in range(3):
        found = _BULLETS.match(line)
        if not found or found.end() == len(line):
            break
        line = line[found.end() :]
    return line


def with_arrow(line: str) -> str:
    """The line with '->' for every other arrow."""
    return _ARROW.sub("->", line)


def split(line: str, separators: str) -> list[str]:
    """The parts of a line between separators that stand in no brackets.

    Raises ValueError with the bracket that has no partner.
    """
    parts, start, open_at = [], 0, []
    for at, letter in enumerate(line):
        if letter in OPEN and line[at - 1 : at] != "\\":
            open_at.append(letter)
        elif letter in CLOSE and line[at - 1 : at] != "\\":
            if open_at and OPEN.index(open_at[-1]) == CLOSE.index(letter):
                open_at.pop()
            elif open_at or letter != ")" or not _NUMBER_BEFORE.search(line[max(0, at - 4) : at]):
                raise ValueError(letter)
        elif letter in separators and not open_at:
            parts.append(line[start:at])
            start = at + 1
    if open_at:
        raise ValueError(open_at[-1])
    return [*parts, line[start:]]


def unwrapped(part: str) -> tuple[str, str] | None:
    """(bracket, what is in it) of a part that stands in one pair of brackets, or None."""
    if len(part) < 3 or part[0] not in OPEN or part[-1] != CLOSE[OPEN.index(part[0])]:
        return None
    if part[-2] == "\\":
        return None
    depth = 0
    for at, letter in enumerate(part):
        depth += (letter in OPEN) - (letter in CLOSE)
        if depth == 0:
            return (part[0], part[1:-1].strip()) if at == len(part) - 1 else None
    return None


def undecorated(part: str) -> str:
    """A part of a line without Markdown's emphasis, a prompt's weights and what ends a sentence."""
    part = part.strip().strip(",").strip()
    found = _EMPHASIS.fullmatch(part)
    if found:
        part = found[2].strip()
    part = without_weights(part)
    weight = _PROMPT_WEIGHT.search(part)
    if weight and not part[: weight.start()].isdigit():  # 16:9 is a name
        part = part[: weight.start()]
    part = _ELLIPSIS.sub("", part)
    period = _PERIOD.search(part)
    if period and part.count(".") <= 1 and period[1] not in _ABBREVIATED and period[1].islower():
        part = part[:-1]
    return part.strip()


def without_weights(text: str) -> str:
    """The text without a prompt's weights: 'red (fox:1.3)' is 'red fox'."""
    return _WEIGHTED.sub(r"\1", text) if "(" in text else text


def unescaped(part: str) -> str:
    """The part with '(' for '\\(', as brackets are written in prompts."""
    return re.sub(r"\\([()\[\]{}])", r"\1", part) if "\\" in part else part


def joined(part: str) -> list[str]:
    """The prompts that AND or BREAK joins; AND in a name that is all capitals is a word of it."""
    words = part.replace("AND", "").replace("BREAK", "")
    pattern = _JOINED if words.upper() != words else _BREAK
    return [piece.strip() for piece in pattern.split(part) if piece.strip()]
