"""The variants of ScaPreSolve as the artist sees them: each one's own inputs."""

from comfy_api.latest import io

from ..unlearn.closed_form import variants
from ..unlearn.closed_form.variants.registry import Input, Integer, Switch

TOOLTIP = (
    "The way to solve. 'anchored' pushes the concepts out while it holds everything else at the "
    "original weights: start with it. The others are there to compare: the paper's system, the "
    "two editors its authors released, and plain UCE."
)


def variant_input() -> io.DynamicCombo.Input:
    """The combo of all variants, each with an input for each of its settings."""
    options = [
        io.DynamicCombo.Option(
            name, [_widget(setting, shown) for setting, shown in variant.inputs.items()]
        )
        for name, variant in variants.variants().items()
    ]
    return io.DynamicCombo.Input("variant", options=options, tooltip=TOOLTIP)


def _widget(name: str, shown: Input) -> io.Input:
    """The node's input for one setting of a variant."""
    if isinstance(shown, Switch):
        return io.Boolean.Input(
            name, default=shown.default, tooltip=shown.tooltip, advanced=shown.advanced
        )
    if isinstance(shown, Integer):
        return io.Int.Input(
            name,
            default=shown.default,
            min=shown.low,
            max=shown.high,
            tooltip=shown.tooltip,
            advanced=shown.advanced,
        )
    return io.Float.Input(
        name,
        default=shown.default,
        min=shown.low,
        max=shown.high,
        step=shown.step,
        tooltip=shown.tooltip,
        advanced=shown.advanced,
    )
