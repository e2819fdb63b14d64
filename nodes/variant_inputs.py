"""The variants of ScaPreSolve as the artist sees them: each one's own inputs."""

from comfy_api.latest import io

from ..unlearn.closed_form.variants import DEFAULTS


def _float(variant, name, tooltip, low, high, step, advanced=False):
    return io.Float.Input(
        name,
        default=DEFAULTS[variant][name],
        min=low,
        max=high,
        step=step,
        tooltip=tooltip,
        advanced=advanced,
    )


def _int(variant, name, tooltip, low, high):
    return io.Int.Input(
        name,
        default=int(DEFAULTS[variant][name]),
        min=low,
        max=high,
        tooltip=tooltip,
        advanced=True,
    )


def _switch(variant, name, tooltip):
    return io.Boolean.Input(name, default=DEFAULTS[variant][name], tooltip=tooltip, advanced=True)


PRESERVE = "How strongly everything that is kept is held in place (beta). Raise it when kept things change."
INFORMAX = "Weigh each output channel by how much it tells the concepts apart (Informax decoupler)."


def anchored():
    return [
        _float(
            "anchored",
            "erase",
            "How hard the concepts are pushed out (eta). Too low: they come back; too high costs little "
            "while 'preserve' holds. Try the default, then ten times more.",
            0.0,
            1e6,
            1.0,
        ),
        _float("anchored", "preserve", PRESERVE, 0.0, 1e6, 0.1),
        _float(
            "anchored",
            "anchor",
            "How strongly every direction is held at the original weights (lambda). Raise it when prompts unlike those in "
            "the lists change.",
            1e-6,
            1e3,
            0.01,
            True,
        ),
        _float(
            "anchored",
            "spectral",
            "Spectral trace regularisation: keeps many concepts from fighting over weak shared directions. "
            "Try 1 when forgetting dozens at once.",
            0.0,
            1e3,
            0.1,
            True,
        ),
        _switch("anchored", "informax", INFORMAX),
        _float(
            "anchored",
            "overshoot",
            "How far past zero the concepts are pushed at most, for new sentences hold more of a concept "
            "than the studied ones have in common. Raise it when a single concept comes back.",
            0.0,
            3.0,
            0.05,
            True,
        ),
        _float(
            "anchored",
            "drift",
            "Pushes past zero only as long as what is kept moves by no more than this share. Lower it when kept things change, "
            "raise it when concepts come back.",
            0.0,
            1.0,
            0.01,
            True,
        ),
    ]


def paper():
    return [
        _float(
            "paper",
            "erase",
            "How heavily the concepts count (the paper has no such number: 1). Raise it when they come back.",
            0.0,
            1e6,
            1.0,
        ),
        _float("paper", "preserve", f"{PRESERVE} The paper has none: 0.", 0.0, 1e6, 0.1),
        _float(
            "paper",
            "anchor",
            "The paper's lambda. Raise it when unlisted things change.",
            1e-6,
            1e3,
            0.01,
            True,
        ),
        _float(
            "paper",
            "step",
            "How far the result is moved back to the original weights along the Bures geodesic. 0 leaves it as solved, 1 undoes it.",
            0.0,
            1.0,
            0.05,
            True,
        ),
        _switch(
            "paper", "informax", f"{INFORMAX} In the paper's system it holds such channels back."
        ),
        _switch(
            "paper",
            "as_printed",
            "Solve equation 9 to the letter, without an anchor at the original weights or a keep list. It ruins the model: for study only.",
        ),
    ]


def released_a():
    which = "released-A"
    return [
        _float(which, "erase", "The released erase_scale (eta). Try 1, then 3.", 0.0, 1e4, 0.5),
        _float(
            which,
            "power",
            "Exponent p of the channel mask; the released mask is nearly constant, so it acts as a strength.",
            0.0,
            50,
            1,
            True,
        ),
        _float(
            which,
            "floor",
            "Least part of the edit that a channel takes (a_min). 1 applies all of it everywhere.",
            0.0,
            1.0,
            0.05,
            True,
        ),
        _int(
            which,
            "samples",
            "Noisy samples per concept for the entropy of the channels. More is slower and steadier.",
            1,
            200,
        ),
        _switch(
            which,
            "svd",
            "Also take out what the concepts have in common (the released --svd flag). Try it for one group of look-alikes.",
        ),
    ]


def released_b():
    which = "released-B"
    return [
        _float(which, "erase", "The released erase_scale (eta). Try 2, then 3.", 0.0, 1e4, 0.5),
        _float(
            which,
            "power",
            "Exponent p of the channel mask; the released mask is nearly constant, so it acts as a strength.",
            0.0,
            50,
            1,
            True,
        ),
        _int(
            which,
            "steps",
            "Steps that pull each row's direction and length back to the original (bures_iters). Try 1.",
            0,
            20,
        ),
        _int(
            which,
            "samples",
            "Noisy samples per concept for the entropy of the channels. More is slower and steadier.",
            1,
            200,
        ),
        _switch(
            which,
            "spectral",
            "Adaptive spectral regularisation of the released code (ASED). On in its large runs.",
        ),
    ]


def uce():
    return [
        _float("uce", "erase", "How heavily the forgotten names count. Try 1.", 0.0, 1e6, 0.5),
        _float(
            "uce", "preserve", "How heavily the names on the keep list count. Try 1.", 0.0, 1e6, 0.5
        ),
        _float(
            "uce",
            "anchor",
            "How strongly every direction is held at the original weights (lambda). The released code has 0.5.",
            1e-6,
            1e3,
            0.1,
            True,
        ),
    ]


OPTIONS = {
    "anchored": anchored,
    "paper": paper,
    "released-A": released_a,
    "released-B": released_b,
    "uce": uce,
}


def variant_input():
    return io.DynamicCombo.Input(
        "variant",
        options=[io.DynamicCombo.Option(name, inputs()) for name, inputs in OPTIONS.items()],
        tooltip="The way to solve. 'anchored' pushes the concepts out while it holds everything else at the original weights: start "
        "with it. The others are there to compare: the paper's system, the two editors its authors released, and plain UCE.",
    )
