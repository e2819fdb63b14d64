"""ScaPre on a ComfyUI model.

Statistics of token states are taken once; one solve serves all layers that read them; then each
layer needs a matrix product. SDXL's pooled text vector has statistics and a solve of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import provenance
from ..analysis import forecast
from ..analysis.forecast import WeightGrams, WordImpact
from ..concepts.sentences import COMMON
from ..errors import UnlearnError, quoted
from ..files.text_cache import TextStateCache, default_folder
from ..host import architectures, patching, text_encoding, weights
from ..host.architectures import cross_attention, pooled_text
from ..host.model_types import Clip, Model
from ..host.progress import Progress
from ..types import ConceptSet, UnlearnPatch
from . import (
    aftermath,
    observed_groups,
    patch_edits,
    sentence_plan,
    session,
    token_statistics,
    tuning,
    variants,
)
from .informax_weights import ESTIMATORS, InformaxWeights
from .input_groups import InputGroup, input_groups
from .layer_edit import LayerEdit, SolveContext
from .layer_weights import LayerWeights
from .patch_edits import PatchEdits
from .report import ScaPreReport
from .sentence_plan import SentencePlan
from .session import Solution, SolveSession, protect

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
    forecast), in pictures of `glance_size` pixels (0: half the model's own size); strength, one of
    tuning.STRENGTHS.
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
    strength: str = "normal"

    def __post_init__(self) -> None:
        """Raises UnlearnError for a strength that does not exist."""
        if self.strength not in tuning.STRENGTHS:
            raise UnlearnError(
                f"The input 'strength' is {quoted(self.strength)}; choose one of "
                f"{', '.join(tuning.STRENGTHS)}."
            )

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
    progress = Progress(node_id=node_id)
    progress.begin("Writing the sentences to study")
    observed = observed_groups.states_of(model, clip)
    plan = sentence_plan.plan(
        clip,
        concepts,
        settings.templates,
        settings.prior,
        settings.expand,
        check=settings.overshoot > 0,
        locate_by=None if observed is None else observed.locate,
    )
    if observed is None:
        groups = _groups_of_states(model, clip, plan, settings, folder)
    else:
        groups = observed_groups.groups(model, observed, plan)
    layers = sum(len(group.layers.layers) for group in groups)
    progress.set_total(len(plan.texts) + 2 * layers)
    solves = [GroupSolve(clip, group, settings, concepts.keep, progress) for group in groups]
    found = _protected(model, clip, solves, settings, progress)
    sessions = [solve.session for solve in solves]
    progress.begin("Solving layer {at} of {of}", layers)
    parts = [
        patch_edits.build(solve.group.layers, one.edit, solve.session.grams, progress.step)
        for solve, one in zip(solves, found, strict=True)
    ]
    progress.begin("Looking at what is left of the concepts, and which other words change")
    edits = patch_edits.together(parts)
    patch = _patch(model, clip, concepts, settings, edits)
    impacts = session.impacts(
        sessions, [one.stats for one in found], [part.grams for part in parts], pictured=True
    )
    edited, _ = patching.apply(model, patch)
    of_solve = [
        *_notes_of_entry(model),
        *found[0].notes,
        *_notes_of_others(groups[1:], found[1:], parts[1:]),
        *_notes_of_clip(clip),
    ]
    notes = aftermath.notes((model, edited), clip, concepts, settings, found, impacts, of_solve)
    report = ScaPreReport.of(found[0].stats, edits, impacts, solves[0].row_weights, notes)
    return patch, report.picture(), report.text(patch)


def _groups_of_states(
    model: Model, clip: Clip, plan: SentencePlan, settings: SolveSettings, folder: Path | None
) -> list[InputGroup]:
    """The groups of a model whose layers read the text encoder's own states."""
    layers = cross_attention(model), pooled_text(model)
    # What is not to move at all must be exactly what the encoder says, in the padding too.
    exact, pooled = settings.hard_keep > 0, bool(layers[1])
    states = TextStateCache(clip, folder or default_folder(), exact_padding=exact, pooled=pooled)
    return input_groups(model, layers, plan, states)


def _patch(
    model: Model, clip: Clip, concepts: ConceptSet, settings: SolveSettings, edits: PatchEdits
) -> UnlearnPatch:
    """The edits with the fingerprint of the MODEL and their provenance."""
    record = provenance.record(
        f"{provenance.SCAPRE} {settings.variant}",
        settings.as_dict(),
        concepts,
        tuning.IN_PROVENANCE,
        patching.manifest(model),
    )
    keys = [key for key, _ in edits.edits]
    return UnlearnPatch(
        edits.edits,
        weights.fingerprint(model, keys),
        (record | text_encoding.clip_layer(clip),),
    )


class GroupSolve:
    """The solve of one group of layers: the variant's solution, pushed past zero and closed
    against revivals.

    Raises UnlearnError when the text encoder does not go with the model.
    """

    def __init__(
        self,
        clip: Clip,
        group: InputGroup,
        settings: SolveSettings,
        keep: Sequence[str],
        progress: Progress,
    ) -> None:
        self.group = group
        group.check_width()
        variant = variants.find(settings.variant)
        # The texts are read once, for the first group.
        reading = None if group.pooled else progress
        if reading is not None:
            texts = len(group.plan.texts)
            progress.begin(_reading(group.plan, settings), texts)
        stats = token_statistics.measure(
            group.plan, group.fetch, settings.tokens, reading, group.layers.input_width
        )
        self.row_weights = InformaxWeights(stats, settings.estimator) if settings.informax else None
        grams = _grams(group.layers, progress)

        def run_variant(stats: token_statistics.Statistics, firmness: float) -> LayerEdit:
            context = SolveContext(
                stats,
                self.row_weights,
                settings.hard_keep,
                clip,
                group.plan,
                group.fetch,
                group.pooled,
                group.located is None,
            )
            chosen = settings.chosen
            if firmness != 1:  # only of a variant with this setting
                chosen = replace(chosen, erase=firmness * chosen.erase)
            return variant.solve(context, chosen)

        progress.begin("Solving for all layers together")
        self.session = SolveSession(clip, group, grams, keep, run_variant)
        self.found = _solution(self.session, stats, settings, reading)


def _reading(plan: SentencePlan, settings: SolveSettings) -> str:
    """What is read, which takes longest: in words."""
    if not settings.prior:
        return f"Reading {len(plan.texts):,} sentences, once per text encoder"
    words = sum(len(places) for _, places in plan.packed)
    return f"Reading {words:,} everyday words, once per text encoder"


def _grams(layers: LayerWeights, progress: Progress) -> WeightGrams:
    """The Gram matrices of all layers before the edit."""
    grams = WeightGrams()
    progress.begin("Reading layer {at} of {of}", len(layers.layers))
    earlier = layers.have_earlier_patches()
    for layer, w0 in layers:
        unpatched = layers.before_earlier_patches(layer) if earlier else None
        grams.add_original(w0, unpatched)
        progress.step()
    return grams


def _protected(
    model: Model,
    clip: Clip,
    solves: Sequence[GroupSolve],
    settings: SolveSettings,
    progress: Progress,
) -> list[Solution]:
    """The solutions of all groups, with words protected where the settings ask for it."""
    found = [solve.found for solve in solves]
    if any(one.edit.solution_operator is None for one in found):
        return found
    if settings.protect:
        progress.begin("Looking at how the edited model sees everyday words")
    look_again = _look_again(model, clip, solves, settings.glance_size)
    return protect([solve.session for solve in solves], found, settings.protect, look_again)


def _look_again(
    model: Model, clip: Clip, solves: Sequence[GroupSolve], size: int
) -> Callable[[list[LayerEdit], list[WordImpact]], list[WordImpact]]:
    """A function (edits of all groups, forecast) -> the same words as the model without and with
    the edits sees them."""

    def look_again(edits: list[LayerEdit], impacts: list[WordImpact]) -> list[WordImpact]:
        parts = [
            patch_edits.build(solve.group.layers, edit, solve.session.grams)
            for solve, edit in zip(solves, edits, strict=True)
        ]
        made = patch_edits.together(parts).edits
        fingerprint = weights.fingerprint(model, [key for key, _ in made])
        edited, _ = patching.apply(model, UnlearnPatch(made, fingerprint))
        return forecast.impacts_on_predictions(model, edited, clip, impacts, size)

    return look_again


def _solution(
    session: SolveSession,
    stats: token_statistics.Statistics,
    settings: SolveSettings,
    progress: Progress | None,
) -> Solution:
    """The variant's solution, pushed past zero and closed against revivals."""
    found = Solution(session.solve(stats), stats)
    if found.edit.solution_operator is None:
        if settings.rounds or settings.protect or settings.strength != "normal":
            note = (
                "Strength, robustness rounds and auto-protect are for the variant 'anchored'; they "
                "were left out."
            )
            return found if session.group.pooled else found.again(found.edit, stats, note)
        return found
    drift = getattr(settings.chosen, "drift", 1.0)
    # Where the drift is told from common words that nothing holds, it says nothing of what is kept.
    if settings.prior or len(session.keep) >= len(COMMON):
        how = tuning.STRENGTHS[settings.strength]
        found = session.within_drift(found, how.drift * drift)
    found = session.overshoot(found, settings.overshoot, drift, progress, settings.strength)
    if not session.group.pooled:
        found = aftermath.hold_listed(session, found)
    return session.close_revivals(found, settings.rounds)


def _notes_of_entry(model: Model) -> list[str]:
    """What the report says of how exact an edit of this family of models is."""
    family = architectures.of(model)
    return [family.kind_of_edit()] if isinstance(family, architectures.Transformer) else []


def _notes_of_others(
    groups: Sequence[InputGroup], found: Sequence[Solution], parts: Sequence[PatchEdits]
) -> list[str]:
    """What the report says of other groups of layers than the first, as of the pooled text."""
    notes = []
    for group, one, part in zip(groups, found, parts, strict=True):
        name = "pooled text" if group.pooled else group.name
        left, drift = part.retention(one.stats.concepts), part.grams.drift(one.stats.drift_gram)
        most, worst = max(zip(left.tolist(), one.stats.names, strict=True))
        notes.append(
            f"What the concepts add to the {name} is cut to {float(left.mean()):.0%} on "
            f"average (most left: {worst}, {most:.0%}); of kept prompts it moves by {drift:.1%}."
        )
        notes += [f"{name.capitalize()}: {note}" for note in one.notes]
    return notes


def _notes_of_clip(clip: Clip) -> list[str]:
    """What the report says of a CLIP that is read at another layer than the usual one."""
    return [
        f"The text encoder was read at the layer {layer} that CLIP Set Last Layer names."
        for layer in text_encoding.clip_layer(clip).values()
    ]
