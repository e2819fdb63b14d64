"""ScaPre on a ComfyUI model.

Statistics of token states are taken once; one solve serves all layers; then each layer needs a
matrix product.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import provenance
from ..analysis import forecast
from ..analysis.forecast import WeightGrams, WordImpact
from ..errors import UnlearnError
from ..files.text_cache import TextStateCache, default_folder
from ..host import patching, text_encoding, weights
from ..host.architectures import cross_attention
from ..host.model_types import Clip, Model
from ..host.progress import Progress
from ..types import ConceptSet, UnlearnPatch
from . import aftermath, patch_edits, sentence_plan, token_statistics, tuning, variants
from .informax_weights import ESTIMATORS, InformaxWeights
from .layer_edit import LayerEdit, SolveContext
from .layer_weights import LayerWeights
from .report import ScaPreReport
from .session import Solution, SolveSession

__all__ = ["ESTIMATORS", "SolveSettings", "solve"]


@dataclass(frozen=True)
class SolveSettings:
    """What an artist can set, whatever the variant.

    variant: its name; options: its settings dataclass, None for its defaults.
    templates: own sentences to study the concepts in, None for the built-in ones.
    tokens: erase "all" words of a name, or the "last". prior: also keep everyday captions and
    words. expand: also study plurals and joined forms of the names. estimator: of the Informax
    weights, one of ESTIMATORS.
    Of variants with a `solution_operator` alone: hard_keep, the share of the keep list's energy
    that the edit does not touch, 0 to 1; rounds of search for what revives a concept; protect, how
    far every word must stand out as it did when the edited model looks at noise, 0 to 1 (0: only
    forecast), in pictures of `glance_size` pixels (0: half the model's own size).
    """

    variant: str = variants.FIRST
    options: Any = None
    templates: tuple[str, ...] | None = None
    tokens: str = "all"
    prior: bool = True
    estimator: str = "graded"
    hard_keep: float = 0.0
    rounds: int = 0
    expand: bool = False
    protect: float = 0.0
    glance_size: int = 0

    @classmethod
    def of(cls, variant: str = variants.FIRST, **given: Any) -> "SolveSettings":
        """Settings from one flat list of names, common ones and the variant's own.

        Raises UnlearnError for a variant or a setting that does not exist.
        """
        chosen = variants.find(variant)
        common = {f.name for f in fields(cls)} - {"variant", "options"}
        own = {name: value for name, value in given.items() if name not in common}
        unknown = [name for name in own if name not in chosen.inputs]
        if unknown:
            raise UnlearnError(
                f"The variant '{variant}' has no setting '{unknown[0]}'; it has "
                f"{', '.join(chosen.inputs)}."
            )
        shared = {name: value for name, value in given.items() if name in common}
        return cls(variant=variant, options=chosen.settings(**own), **shared)

    @property
    def chosen(self) -> Any:
        """The variant's settings, its defaults where none are given."""
        if self.options is not None:
            return self.options
        return variants.find(self.variant).settings()

    @property
    def overshoot(self) -> float:
        """How far past zero concepts are pushed at most; 0 for a variant without this setting."""
        return getattr(self.chosen, "overshoot", 0.0)

    @property
    def informax(self) -> bool:
        """Whether the variant weighs output rows."""
        return getattr(self.chosen, "informax", False)

    def as_dict(self) -> dict[str, Any]:
        """All settings as one flat dict, for the patch's provenance."""
        common = {f.name: getattr(self, f.name) for f in fields(self)}
        del common["variant"], common["options"]
        return {**asdict(self.chosen), **common}


def solve(
    model: Model,
    clip: Clip,
    concepts: ConceptSet,
    settings: SolveSettings | None = None,
    *,
    node_id: str | None = None,
    folder: Path | None = None,
) -> tuple[UnlearnPatch, torch.Tensor, str]:
    """(patch, report IMAGE, report text) for a ConceptSet. The model and clip are not changed.

    node_id: of the node that shows the progress. folder: where token states are kept, None for
    ComfyUI's own.
    Raises UnlearnError on a model without cross-attention, a CLIP of another width, NaN in
    weights, or text that cannot be used.
    """
    settings = settings or SolveSettings()
    variant = variants.find(settings.variant)
    layers = LayerWeights(model, cross_attention(model))
    plan = sentence_plan.plan(
        clip,
        concepts,
        settings.templates,
        settings.prior,
        settings.expand,
        check=settings.overshoot > 0,
    )
    progress = Progress(len(plan.texts) + 2 * len(layers.layers), node_id)
    # What is not to move at all must be exactly what the encoder says, in the padding too.
    states = TextStateCache(clip, folder or default_folder(), exact_padding=settings.hard_keep > 0)
    _check_width(states, plan, model, layers)
    stats = token_statistics.measure(plan, states.get, settings.tokens, progress)
    row_weights = InformaxWeights(stats, settings.estimator) if settings.informax else None
    grams = _grams(layers, progress)

    def run_variant(stats: token_statistics.Statistics) -> LayerEdit:
        context = SolveContext(stats, row_weights, settings.hard_keep, clip, plan, states.get)
        return variant.solve(context, settings.chosen)

    session = SolveSession(clip, plan, states.get, grams, concepts.keep, run_variant)
    look_again = _look_again(layers, clip, grams, settings.glance_size)
    found = _solution(session, stats, settings, look_again, progress)
    edits = patch_edits.build(layers, found.edit, grams, progress.step)
    patch = _patch(model, layers, edits, settings, concepts)
    impacts = session.impacts(found.stats, edits.grams)
    edited, _ = patching.apply(model, patch)
    models = model, edited
    notes = aftermath.notes(models, clip, concepts, settings, found.notes, impacts)
    report = ScaPreReport.of(found.stats, edits, impacts, row_weights, notes)
    return patch, report.picture(variant.name), report.text(patch)


def _patch(
    model: Model,
    layers: LayerWeights,
    edits: patch_edits.PatchEdits,
    settings: SolveSettings,
    concepts: ConceptSet,
) -> UnlearnPatch:
    """The edits with the fingerprint of the model and the record of how they were made."""
    record = provenance.record(
        f"{provenance.SCAPRE} {settings.variant}",
        settings.as_dict(),
        concepts,
        tuning.IN_PROVENANCE,
        patching.manifest(model),
    )
    keys = [layer.key for layer in layers.layers]
    return UnlearnPatch(edits.edits, weights.fingerprint(model, keys), (record,))


def _check_width(
    states: TextStateCache, plan: sentence_plan.SentencePlan, model: Model, layers: LayerWeights
) -> None:
    """Raises UnlearnError when the text encoder does not go with the model."""
    first = next(iter(states.get(plan.kept[:1]).values()))
    text_encoding.check_width(first.shape[-1], weights.shape(model, layers.layers[0].key)[1])


def _grams(layers: LayerWeights, progress: Progress) -> WeightGrams:
    """The Gram matrices of all layers before the edit."""
    grams = WeightGrams()
    earlier = layers.have_earlier_patches()
    for layer, w0 in layers:
        unpatched = layers.before_earlier_patches(layer) if earlier else None
        grams.add_original(w0, unpatched)
        progress.step()
    return grams


def _look_again(
    layers: LayerWeights, clip: Clip, grams: WeightGrams, size: int
) -> Callable[[LayerEdit, list[WordImpact]], list[WordImpact]]:
    """A function (edit, forecast) -> the same words as the model without and with the edit sees
    them."""

    def look_again(edit: LayerEdit, impacts: list[WordImpact]) -> list[WordImpact]:
        edits = patch_edits.build(layers, edit, grams).edits
        fingerprint = weights.fingerprint(layers.model, [key for key, _ in edits])
        edited, _ = patching.apply(layers.model, UnlearnPatch(edits, fingerprint))
        return forecast.impacts_on_predictions(layers.model, edited, clip, impacts, size)

    return look_again


def _solution(
    session: SolveSession,
    stats: token_statistics.Statistics,
    settings: SolveSettings,
    look_again: Callable[[LayerEdit, list[WordImpact]], list[WordImpact]],
    progress: Progress,
) -> Solution:
    """The variant's solution, pushed past zero, closed against revivals and protected."""
    found = Solution(session.solve(stats), stats)
    if found.edit.solution_operator is None:
        if settings.rounds or settings.protect:
            note = (
                "Robustness rounds and auto-protect are for the variant 'anchored'; they were "
                "left out."
            )
            return found.again(found.edit, stats, note)
        return found
    drift = getattr(settings.chosen, "drift", 1.0)
    found = session.overshoot(found, settings.overshoot, drift, progress)
    found = aftermath.hold_listed(session, found)
    found = session.close_revivals(found, settings.rounds)
    return session.protect(found, settings.protect, look_again)
