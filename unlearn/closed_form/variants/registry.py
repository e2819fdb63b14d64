"""The variants of ScaPre Solve, by name, and how their settings are declared."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ...errors import UnlearnError
from ..layer_edit import LayerEdit, SolveContext

FIRST = "anchored"  # the node's default

Function = TypeVar("Function", bound=Callable[..., LayerEdit])


@dataclass(frozen=True)
class Number:
    """How the node shows a real number."""

    default: float
    low: float
    high: float
    step: float
    tooltip: str
    advanced: bool


@dataclass(frozen=True)
class Integer:
    """How the node shows a whole number."""

    default: int
    low: int
    high: int
    tooltip: str
    advanced: bool


@dataclass(frozen=True)
class Switch:
    """How the node shows what is on or off."""

    default: bool
    tooltip: str
    advanced: bool


Input = Number | Integer | Switch


def number(
    default: float, low: float, high: float, step: float, tooltip: str, advanced: bool = True
) -> Any:
    """A field of a settings dataclass: a real number."""
    return _declared(Number(float(default), low, high, step, tooltip, advanced))


def integer(default: int, low: int, high: int, tooltip: str, advanced: bool = True) -> Any:
    """A field of a settings dataclass: a whole number."""
    return _declared(Integer(default, low, high, tooltip, advanced))


def switch(default: bool, tooltip: str, advanced: bool = True) -> Any:
    """A field of a settings dataclass: on or off."""
    return _declared(Switch(default, tooltip, advanced))


def _declared(shown: Input) -> Any:
    return field(default=shown.default, metadata={"input": shown})


@dataclass(frozen=True)
class Variant:
    """A way to solve. `solve(context, settings)` gives the LayerEdit."""

    name: str
    reference: str
    settings: type
    solve: Callable[[SolveContext, Any], LayerEdit]

    @property
    def description(self) -> str:
        """What the variant does: the first paragraph of its function's docstring."""
        return " ".join((self.solve.__doc__ or "").split("\n\n")[0].split())

    @property
    def inputs(self) -> dict[str, Input]:
        """Its settings by name, in the order of the node."""
        return {f.name: f.metadata["input"] for f in fields(self.settings)}

    @property
    def defaults(self) -> dict[str, float | int | bool]:
        """The default of each setting."""
        return {name: shown.default for name, shown in self.inputs.items()}


_VARIANTS: dict[str, Variant] = {}


def variant(name: str, reference: str, settings: type) -> Callable[[Function], Function]:
    """Declares a function `(context, settings) -> LayerEdit` to be a variant of ScaPre Solve.

    name: as the node shows it. reference: the paper, as "arXiv 2601.06162".
    settings: a frozen dataclass whose fields are made by `number`, `integer` and `switch`.
    Three of them have a meaning for the whole solve: `informax` (weigh the output rows),
    `overshoot` and `drift` (how far concepts are pushed past zero; the LayerEdit must have a
    `solution_operator`).
    """

    def declare(function: Function) -> Function:
        if name in _VARIANTS:
            raise ValueError(f"two variants are named '{name}'; give one of them another name")
        _VARIANTS[name] = Variant(name, reference, settings, function)
        return function

    return declare


def variants() -> dict[str, Variant]:
    """All variants by name, the default one first."""
    return dict(sorted(_VARIANTS.items(), key=lambda item: item[0] != FIRST))


def find(name: str) -> Variant:
    """The variant of that name; raises UnlearnError where there is none."""
    if name not in _VARIANTS:
        raise UnlearnError(f"There is no variant '{name}'; use one of {', '.join(variants())}.")
    return _VARIANTS[name]
