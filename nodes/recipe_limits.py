"""Whether the settings of a recipe are ones that the method's own node would take."""

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from ..unlearn.errors import UnlearnError


def check_limits(inputs: Iterable[io.Input], values: Mapping[str, Any]) -> None:
    """Raises UnlearnError naming the first value that is out of the range of its input.

    inputs: of the node's schema, of which those of choices count too. values: by input id.
    """
    for entry in inputs:
        for option in getattr(entry, "options", None) or ():
            if isinstance(option, io.DynamicCombo.Option):
                check_limits(option.inputs, values)
        if entry.id not in values:
            continue
        value = values[entry.id]
        low, high = getattr(entry, "min", None), getattr(entry, "max", None)
        options = getattr(entry, "options", None) if isinstance(entry, io.Combo.Input) else None
        fault = ""
        if low is not None and high is not None and not low <= value <= high:
            fault = f"{low} to {high} is possible"
        elif options and value not in options:
            fault = f"one of {', '.join(map(str, options))} is possible"
        if fault:
            raise UnlearnError(
                f"The patch says '{value}' for its setting '{entry.id}', where {fault}; make a new "
                "patch with the eraser instead."
            )
