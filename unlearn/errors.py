"""What an artist reads when an input cannot be used."""

import math


class UnlearnError(ValueError):
    """One sentence that names the input, says what is wrong with it and what to do."""


def finite(**settings: float) -> None:
    """Raises UnlearnError naming the first setting that is NaN or infinite.

    ComfyUI's own minimum and maximum let NaN through.
    """
    for name, value in settings.items():
        if not math.isfinite(value):
            raise UnlearnError(f"The setting '{name}' is {value}; give it a finite number.")
