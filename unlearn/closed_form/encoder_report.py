"""What an edit of the text encoder says of itself, in words.

Both encoders, plain and edited, read sentences that were not studied. What is left of a concept is
what it still adds to the end token; kept prompts are compared state by state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .. import wording
from ..host import text_encoding
from ..host.model_types import Clip
from ..types import UnlearnPatch
from ..wording import Findings
from . import tuning
from .sentence_plan import SentencePlan
from .token_statistics import kept_states

if TYPE_CHECKING:
    from .text_encoder import EncoderEdit

NODE = "Erase in Text Encoder"
NAMES_SHOWN = 40


class Seen(NamedTuple):
    """left: name of a concept -> share left of what it adds to the end token, the most first.

    drift: how far the states of kept prompts move, relative, root mean square.
    """

    left: dict[str, float]
    drift: float


def look(clip: Clip, edited: Clip, plan: SentencePlan) -> Seen:
    """What the edited CLIP makes of sentences that were not studied."""
    texts = [p.text for pair in plan.checked for p in (pair.prompt, pair.neutral)]
    kept = [prompt.text for prompt in plan.measured]
    before = text_encoding.encode(clip, [*texts, *kept])
    after = text_encoding.encode(edited, [*(p.prompt.text for p in plan.checked), *kept])
    shares: dict[str, list[float]] = {}
    for index, prompt, neutral in plan.checked:
        to = before[neutral.text][neutral.end].double()
        added = before[prompt.text][prompt.end].double() - to
        still = after[prompt.text][prompt.end].double() - to
        share = float(still @ added / added.square().sum().clamp_min(1e-30))
        shares.setdefault(plan.names[index], []).append(max(0.0, share))
    left = {name: sum(found) / len(found) for name, found in shares.items()}
    moved = whole = 0.0
    for prompt in plan.measured:
        old, new = (kept_states(prompt, states[prompt.text]) for states in (before, after))
        moved += float((new - old).square().sum())
        whole += float(old.square().sum())
    ordered = sorted(left.items(), key=lambda pair: -pair[1])
    return Seen(dict(ordered), (moved / max(whole, 1e-30)) ** 0.5)


def text(patch: UnlearnPatch, found: Sequence[EncoderEdit], seen: Seen) -> str:
    """The report: the verdict, warnings, what to do, and all figures."""
    told = Findings()
    back = [name for name, left in seen.left.items() if left > tuning.ENCODER_LEFT]
    gone = [name for name in patch.provenance[0]["concepts"] if name not in back]
    parts = []
    if back:
        parts.append(wording.sentence(f"{wording.names(back)} may come back"))
        told.warn(
            f"{wording.names(back, quotes=True)} may come back.",
            "The edited text encoder still tells these from their neutral words: "
            + ", ".join(f"{name} {seen.left[name]:.0%}" for name in back[:NAMES_SHOWN])
            + "; stack the patch with one of ScaPre Solve.",
        )
        told.advice.append(
            "Try: add the patch of ScaPre Solve to 'patches' of Apply Unlearn Patch."
        )
    if gone:
        parts.append(wording.sentence(f"the text encoder no longer knows {wording.names(gone)}"))
    if seen.drift > tuning.ENCODER_DRIFT_WARNING:
        told.warn(
            "Other pictures may change.",
            f"The states of kept prompts move by {seen.drift:.1%}; list what you care about under "
            "'keep'.",
        )
        told.advice.append("Try: list what changed under 'keep' of Concepts to Forget.")
    ready = "Next: connect the patch and the clip to Apply Unlearn Patch."
    told.advice.insert(len(told.advice) if told.warnings else 0, ready)
    told.details += _details(patch, found, seen)
    return told.report(" ".join(parts))


def _details(patch: UnlearnPatch, found: Sequence[EncoderEdit], seen: Seen) -> list[str]:
    """All figures."""
    lines = []
    for one in found:
        rank = one.edit.weights[1].shape[0]
        lines.append(
            f"{one.encoder.called}, layer {one.encoder.layer + 1}: rank {rank}, the weight changes "
            f"by {one.change:.1%}; {one.left:.1%} of the wanted change is missing in the studied "
            f"sentences, and cutting the rank gave up {one.lost:.1e} of it."
        )
    if seen.left:
        shown = [f"{name} {left:.0%}" for name, left in [*seen.left.items()][:NAMES_SHOWN]]
        lines.append(f"Left in sentences that were not studied: {', '.join(shown)}.")
    lines += [
        f"The states of kept prompts move by {seen.drift:.1%}.",
        f"{patch.nbytes / 2**20:.2f} MB. Every model that reads this text encoder forgets with it; "
        "draw with the clip that comes out of Apply Unlearn Patch.",
    ]
    return lines
