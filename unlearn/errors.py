"""What an artist reads when an input cannot be used."""

import math

LONGEST_QUOTE = 60  # letters of what came in that a message quotes


class UnlearnError(ValueError):
    """One sentence that names the input, says what is wrong with it and what to do.

    It may quote what came in, of which marks that cannot be printed are shown as escapes.
    ComfyUI shows the module and the qualified name of an error in front of its sentence. They would
    be the path of this file, so they are set to what an artist knows.
    """

    __module__ = "builtins"  # ComfyUI leaves this one out
    __qualname__ = "Unlearn"

    def __init__(self, sentence: str) -> None:
        super().__init__("".join(map(_shown, sentence)))


def _shown(letter: str) -> str:
    if letter.isprintable() or letter == "\n":
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def quoted(text: str) -> str:
    """A text in quotes for a message, its end left out where it is long."""
    return f"'{text}'" if len(text) <= LONGEST_QUOTE else f"'{text[:LONGEST_QUOTE]}...'"


def finite(**settings: float) -> None:
    """Raises UnlearnError naming the first setting that is NaN or infinite.

    ComfyUI's own minimum and maximum let NaN through.
    """
    for name, value in settings.items():
        if not math.isfinite(value):
            raise UnlearnError(f"The setting '{name}' is {value}; give it a finite number.")
