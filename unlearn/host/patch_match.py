"""Whether a patch goes with a model: the same weights, a relative's, or a stranger's.

A patch carries samples of the original weights it was made for. A model whose samples differ a
little is a relative, such as a fine-tune or a merge, and patches usually work on it. A model whose
samples differ by what the patch itself adds has the patch in its weights already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import UnlearnError
from ..types import ENCODER_PREFIX, Edit, Fingerprint, UnlearnPatch
from ..wording import Findings
from . import tuning, weights
from .adapters import Delta, LowRank, Prune
from .model_types import Model

SAME, RELATIVE, STRANGER = "same", "relative", "stranger"


@dataclass(frozen=True)
class Match:
    """What was found out about a patch and a model.

    grade: SAME, RELATIVE or STRANGER. difference: of the original weights, relative; what the patch
    itself has put into them is not counted. baked: share of the patch that is in the model's
    original weights already; 0 for none.
    """

    grade: str
    difference: float
    baked: float = 0.0

    @property
    def warning(self) -> str:
        """What an artist should know before applying the patch, '' where all is well."""
        return " ".join(part for part in (self._baked_warning(), self._base_warning()) if part)

    def tell(self, told: Findings) -> None:
        """Adds to a report what an artist should know, in few words, and what to do."""
        if self.baked:
            told.warn("The model has this patch already.", self._baked_warning())
            told.advice.append("Try: take the patch out of 'patches' of Apply Unlearn Patch.")
        if self.grade == RELATIVE:
            told.warn("The patch was made for a similar model.", self._base_warning())
            told.advice.append("Next: look at pictures, or make it again with Refit Unlearn Patch.")
        elif self.grade == STRANGER:
            told.warn("The patch is for another model; expect damage.", self._base_warning())
            told.advice.append("Try: connect it to 'patch' of Refit Unlearn Patch.")

    def _baked_warning(self) -> str:
        if not self.baked:
            return ""
        share = min(self.baked, 1.0)
        return (
            f"The patch is in the model's own weights already (about {share:.0%} of it); "
            "leave it out, or use the model it was made for."
        )

    def _base_warning(self) -> str:
        if self.grade == SAME:
            return ""
        if self.grade == RELATIVE:
            return (
                f"The patch was made for a relative of this model (weights differ by "
                f"{self.difference:.0%}, as in a fine-tune or a merge); on our test models such "
                "patches forgot and kept as they should, but superclasses suffered from 20% on, so "
                "look at the pictures, and make it again with Refit Unlearn Patch if they are not "
                "right."
            )
        return (
            f"The patch was made for another base model (its weights differ by "
            f"{self.difference:.0%}); make it again with Refit Unlearn Patch, or expect damage."
        )

    def refuse_stranger(self) -> None:
        """Raises UnlearnError where the patch was made for a stranger."""
        if self.grade == STRANGER:
            raise UnlearnError(self._base_warning())


def check_keys(model: Model, patch: UnlearnPatch, called: str = "model") -> None:
    """Raises UnlearnError naming the weights that the MODEL lacks or has in another shape.

    called: the input that brings it.
    """
    keys = {key for key, _ in patch.edits} | patch.fingerprint.samples.keys()
    if any(key.startswith(ENCODER_PREFIX) for key in keys):
        raise UnlearnError(
            "The patch changes the text encoder too, which this node does not patch; connect it to "
            "Apply Unlearn Patch together with a CLIP, and here a patch for the model alone."
        )
    missing = sorted(key for key in keys if not weights.exists(model, key))
    if missing:
        raise UnlearnError(
            f"The input '{called}' lacks {len(missing)} of the weights the patch changes, such as "
            f"'{missing[0]}'; use a {called} of the kind the patch was made for, or make the patch "
            f"again{' with Refit Unlearn Patch' * (called == 'model')}."
        )
    for key, edit in patch.edits:
        shape = weights.shape(model, key)
        if shape != edit.shape:
            raise UnlearnError(
                f"The input '{called}' has weight '{key}' of shape {list(shape)} where the patch "
                f"expects {list(edit.shape)}; use the architecture the patch was made for."
            )


def match(model: Model, patch: UnlearnPatch) -> Match:
    """How one patch goes with a MODEL.

    Raises UnlearnError when weights are missing or have another shape.
    """
    return matches(model, [patch])[0]


def matches(
    model: Model, patches: Sequence[UnlearnPatch], called: str = "model"
) -> tuple[Match, ...]:
    """How each of several patches goes with a MODEL, whose weights are sampled once.

    called: the input that brings it. It may be the patcher of a CLIP.
    """
    for patch in patches:
        check_keys(model, patch, called)
    keys = dict.fromkeys(key for patch in patches for key in patch.fingerprint.samples)
    found = weights.fingerprint(model, keys)
    return tuple(_match(model, patch, found) for patch in patches)


def worst(found: Sequence[Match]) -> Match:
    """Of several matches the one whose base model is the least alike."""
    return max(found, key=lambda m: ((SAME, RELATIVE, STRANGER).index(m.grade), m.difference))


def check(model: Model, patch: UnlearnPatch) -> str:
    """A warning when the patch was made for another model than this MODEL, else ''.

    Raises UnlearnError when weights are missing or have another shape.
    """
    return match(model, patch).warning


def _match(model: Model, patch: UnlearnPatch, found: Fingerprint) -> Match:
    for key, sample in patch.fingerprint.samples.items():
        if sample.shape != found.samples[key].shape:
            raise UnlearnError(
                "The patch holds a fingerprint of weights of another size than the input 'model' "
                "has; make the patch again."
            )
    own, seen, size = _changes(patch, found)
    share = _pruned_share(model, patch) or _added_share(own, seen)
    difference = float((seen - share * own).norm()) / max(size, 1e-12)
    return Match(_grade(difference), difference, share)


def _grade(difference: float) -> str:
    if difference <= Fingerprint.TOLERANCE:
        return SAME
    return RELATIVE if difference <= tuning.RELATIVE else STRANGER


def _changes(patch: UnlearnPatch, found: Fingerprint) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(what the patch adds to its samples, what differs in those found, norm of its samples).

    The first two are float64 [n], over all weights of the patch's fingerprint.
    """
    edits: dict[str, list[Edit]] = {}
    for key, edit in patch.edits:
        edits.setdefault(key, []).append(edit)
    own, seen, size = [torch.zeros(0)], [torch.zeros(0)], 0.0
    for key, sample in patch.fingerprint.samples.items():
        own.append(_sampled_change(edits.get(key, ()), sample))
        seen.append(found.samples[key] - sample)
        size += float(sample.double().square().sum())
    return torch.cat(own).double(), torch.cat(seen).double(), size**0.5


def _added_share(own: torch.Tensor, seen: torch.Tensor) -> float:
    """Share of the patch's own change [n] that is in what differs [n], by least squares.

    It is 0 where what differs is not clearly of the patch's making.
    """
    if not own.any() or not seen.any():
        return 0.0
    share = float(own @ seen / (own @ own))
    alike = float(own @ seen / (own.norm() * seen.norm()))
    # Chance alone makes vectors of n entries alike by about 1 / sqrt(n).
    least = max(tuning.BAKED_ALIKE, tuning.BAKED_SIGMAS / len(own) ** 0.5)
    return share if share >= tuning.BAKED_SHARE and alike >= least else 0.0


def _sampled_change(edits: Sequence[Edit], sample: torch.Tensor) -> torch.Tensor:
    """What edits of one weight add to it at the fingerprint's places: float32 like `sample`."""
    value = sample.clone()
    for edit in edits:
        d_out, d_in = edit.shape
        value += _change_at(edit, weights.sample_places(d_out * d_in), value)
    return value - sample


def _change_at(edit: Edit, places: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The change of `edit` at strength 1 at int64 `places` of the flat weight.

    value: float32 [n], the weight there.
    """
    rows, columns = places // edit.shape[1], places % edit.shape[1]
    if isinstance(edit, LowRank):
        up, down = edit.weights
        return (up[rows].float() * down[:, columns].T.float()).sum(1)
    if isinstance(edit, Prune):
        pruned = edit.mask().expand(*edit.shape)[rows, columns]
        return torch.where(pruned, -value, torch.zeros_like(value))
    if isinstance(edit, Delta):
        values, indices, _, _ = edit.weights
        if indices is None:
            return values[places].float()
        at = torch.searchsorted(indices.long(), places).clamp_max(max(0, len(indices) - 1))
        hit = indices[at].long() == places if len(indices) else torch.zeros_like(places).bool()
        return torch.where(hit, values[at].float() if len(indices) else 0.0, 0.0)
    return torch.zeros_like(value)


def _pruned_share(model: Model, patch: UnlearnPatch) -> float:
    """1 where all that the patch prunes is zero in the model's original weights already, else 0.

    Of each weight some places are looked at. A patch that does more than prune is not judged here.
    """
    prunes = [(key, edit) for key, edit in patch.edits if isinstance(edit, Prune)]
    if not prunes or len(prunes) < len(patch.edits):
        return 0.0
    for key, edit in prunes:
        pruned = edit.mask().expand(*edit.shape).reshape(-1).nonzero().flatten()
        if not len(pruned):
            continue
        some = pruned[:: max(1, len(pruned) // tuning.PRUNED_PLACES)]
        zero = weights.originals_at(model, key, some) == 0
        if float(zero.float().mean()) < tuning.PRUNED_ZERO:
            return 0.0
    return 1.0
