"""How every report is worded.

    Fox gone. Cat, church safe.
    WARNING: 'line art' may come back.
    Try: raise 'drift' of ScaPre Solve to 0.2.

    Details:
    all figures

First a verdict of about five words. Then warnings, two at most; where there are more, the second
says how many. Then one piece of advice, which names one input of one node, as in `'drift' of ScaPre
Solve`. All else stands behind `Details:`, so that an artist reads at most `MOST_WORDS` words and
none that only the field uses. Nothing is dropped: what does not fit in front is moved behind.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

WARNING = "WARNING: "  # begins a line that the artist should read
DETAILS = "Details:"  # the line that ends what is in front
MOST_WORDS = 60  # in front of the details
WARNINGS_SHOWN = 2
NAMES_SHOWN = 3
NAME_WORDS, NAME_LENGTH = 4, 28  # of a name in front; a longer one is cut
VERDICT_WORDS, ADVICE_WORDS = 18, 18  # more of them is moved behind
LINES_ON_A_NODE = 4

# What an artist need not know. It may stand behind `Details:`, and in front only as the name of an
# input or of a concept, in quotes.
FORBIDDEN_WORDS = (
    "rank",
    "low-rank",
    "residuals?",
    "informax",
    "eigen\\w*",
    "spectral\\w*",
    "sigmas?",
    "latents?",
    "quantiles?",
    "pushed past zero",
    "keys and values",
    "cross-attention",
    "attention",
    "gram",
    "layers?",
    "weights?",
    "edits?",
    "matri(?:x|ces)",
    "tensors?",
    "vectors?",
    "embeddings?",
    "tokens?",
    "token states?",
    "gradients?",
    "loss(?:es)?",
    "drift",
    "overshoot",
    "superclass(?:es)?",
    "saliency map",
    "unet",
    "nan",
    "fp\\d+",
    "bf16",
    "float\\d+",
    "int8",
    "quanti[sz]ed",
    "bypass",
    "metadata",
    "provenance",
    "fingerprint",
    "alpha",
    "lambda",
    "beta",
    "eta",
)
FORBIDDEN_SYMBOLS = "=<>~^|{}[]\\*#$@"
_WORDS = re.compile(rf"(?<![\w-])(?:{'|'.join(FORBIDDEN_WORDS)})(?![\w-])", re.IGNORECASE)
_SCIENTIFIC = re.compile(r"\d(?:\.\d+)?e[+-]?\d+", re.IGNORECASE)
_MORE = re.compile(r" \(\d+ more in the details\.\)$")
_QUOTED = re.compile(r"(?<!\w)'[^'\n]*'(?!\w)")


class Warn(NamedTuple):
    """A warning: one short sentence, and what more there is to say, for the details."""

    text: str
    more: str = ""


@dataclass
class Findings:
    """What a report gathers: warnings and advice, the most important first, and figures."""

    warnings: list[Warn] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def warn(self, text: str, more: str = "") -> None:
        """Adds a warning."""
        self.warnings.append(Warn(text, more))

    def add(self, other: "Findings") -> None:
        """Adds all that another one gathered."""
        self.warnings += other.warnings
        self.advice += other.advice
        self.details += other.details

    def report(self, verdict: str) -> str:
        """The report in words, under a verdict."""
        return compose(verdict, self.warnings, self.advice, self.details)


class Parts(NamedTuple):
    """A report taken apart: its verdict, warnings, advice, and the lines of its details."""

    verdict: str
    warnings: tuple[str, ...]
    advice: tuple[str, ...]
    details: tuple[str, ...]


def compose(
    verdict: str,
    warnings: Sequence[Warn] = (),
    advice: Sequence[str] = (),
    details: Sequence[str] = (),
) -> str:
    """A report. advice: sentences that begin with 'Next: ' or 'Try: ', the best one first."""
    said = _cut(verdict, VERDICT_WORDS)
    told = list(dict.fromkeys(warnings))
    best = [sentence for sentence in advice[:1] if count(sentence) <= ADVICE_WORDS]
    shown: list[Warn] = []
    lines: list[str] = []
    hints = best
    for many, hints in ((WARNINGS_SHOWN, best), (1, best), (1, [])):
        shown = told[:many]
        lines = _warning_lines(shown, len(told) - len(shown))
        if count("\n".join([said, *lines, *hints])) <= MOST_WORDS:
            break
    else:
        lines = [_cut(lines[0], MOST_WORDS - count(said))]
        shown = []  # the details have it whole
    behind = [verdict] if said != verdict else []
    behind += [
        f"{WARNING}{warn.text}" + f" {warn.more}" * bool(warn.more) for warn in told[len(shown) :]
    ]
    behind += [warn.more for warn in shown if warn.more]
    behind += [sentence for sentence in advice if sentence not in hints]
    behind += [line for block in details for line in block.splitlines() if line.strip()]
    behind = list(dict.fromkeys(behind))
    return "\n".join([said, *lines, *hints, *(["", DETAILS, *behind] if behind else [])])


def _warning_lines(shown: Sequence[Warn], more: int) -> list[str]:
    """The lines of the warnings in front; the last one says how many more there are."""
    lines = [WARNING + warn.text for warn in shown]
    if more:
        lines[-1] += f" ({more} more in the details.)"
    return lines


def count(text: str) -> int:
    """How many words a text has."""
    return len(text.split())


def _cut(text: str, words: int) -> str:
    """A text on one line with at most so many words."""
    found = text.split()
    if len(found) <= words:
        return " ".join(found)
    return " ".join(found[:words]) + "..."


def read(text: str) -> Parts:
    """A report taken apart again; warnings and advice of the details are among them."""
    first, *rest = text.splitlines()
    rest = [line for line in rest if line.strip() and line != DETAILS]
    warnings = tuple(
        _MORE.sub("", line.removeprefix(WARNING)) for line in rest if line.startswith(WARNING)
    )
    advice = tuple(line for line in rest if line.startswith(("Next: ", "Try: ")))
    other = [line for line in rest if not line.startswith(WARNING) and line not in advice]
    return Parts(first, warnings, advice, tuple(other))


def front(text: str) -> str:
    """What stands in front of the details of a report."""
    return text.partition(f"\n{DETAILS}")[0].strip()


def headline(text: str) -> str:
    """The verdict and the warnings in front, without advice, as they stand on a picture."""
    lines = front(text).splitlines()
    return "\n".join([lines[0], *(line for line in lines[1:] if line.startswith(WARNING))])


def face(text: str) -> str:
    """The lines that stand on a node: of those in front four, the verdict and warnings first."""
    lines = [line for line in front(text).splitlines() if line.strip()]
    if len(lines) > LINES_ON_A_NODE:
        warnings = [line for line in lines[1:] if line.startswith(WARNING)]
        others = [line for line in lines[1:] if not line.startswith(WARNING)]
        lines = [lines[0], *warnings, *others][:LINES_ON_A_NODE]
    return "\n".join(lines)


def forbidden(text: str) -> list[str]:
    """What in the front of a report an artist need not know; names in quotes may be anything."""
    plain = _QUOTED.sub("", front(text))
    found = [match.group() for match in (*_WORDS.finditer(plain), *_SCIENTIFIC.finditer(plain))]
    return found + [c for c in plain if c in FORBIDDEN_SYMBOLS]


def name(text: str) -> str:
    """A name as it stands in front: of a long one the beginning."""
    shown = " ".join(text.split()[:NAME_WORDS])[:NAME_LENGTH].strip()
    return shown if shown == " ".join(text.split()) else f"{shown}..."


def names(texts: Iterable[str], quotes: bool = False, joined: str = " and ") -> str:
    """'fox', 'fox and cat', 'fox, cat and 3 others'."""
    found = [f"'{name(text)}'" if quotes else name(text) for text in dict.fromkeys(texts)]
    if len(found) <= NAMES_SHOWN:
        return joined.join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else "".join(found)
    return f"{', '.join(found[: NAMES_SHOWN - 1])} and {len(found) - NAMES_SHOWN + 1} others"


def sentence(text: str) -> str:
    """A text as a sentence: with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
