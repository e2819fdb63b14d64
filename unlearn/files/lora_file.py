"""A patch as a LoRA: W + up @ down, exactly where the edit allows it, else the nearest of a rank.

Whatever an edit does to a weight of a given model is a matrix D that is added to it. Pruned columns
S give D = -W[:, S] @ onehot(S), of rank |S|. Scattered connections give D's own columns or rows
times one-hot ones. The nearest D of rank r keeps its r largest singular values (Eckart and Young
1936), found as eigenvectors of D D^T or D^T D, whichever is smaller.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ..errors import UnlearnError
from ..host import architectures, patch_match, weights
from ..host.adapters import LowRank
from ..host.model_types import Model
from ..host.progress import Progress
from ..types import Edit, UnlearnPatch
from ..version import VERSION
from ..wording import Findings
from . import encoder_parts

PRECISION = {"float16": torch.float16, "float32": torch.float32}
OF_EXPORT = "of Save Unlearn Patch as LoRA"
LOST_WARNING = 0.2  # share of the change that is lost, above which the report warns. Not measured
# Share of the weights' own size in half precision, above which the report warns. Not measured.
LARGE_WARNING = 0.5
TINY = 1e-30  # keeps a share of nothing from being divided by zero
SMALLEST_EIGENVALUE = 1e-24  # of D D^T in float64, below which rounding errors are left


class _Written(NamedTuple):
    """What was written for one weight: its rank, and the squared norms of change and loss."""

    key: str
    rank: int
    exact: bool
    lost: float
    changed: float
    entries: int


def export(
    model: Model,
    patch: UnlearnPatch,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    node_id: str | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, str], str]:
    """(tensors by name, metadata, report) of a LoRA that does what the patch does at strength 1.

    It is for this MODEL with its LoRAs. `rank` is None for exact factors, else the largest rank of
    a weight. For each weight [d_out, d_in] there are `lora_up` [d_out, r], `lora_down` [r, d_in] in
    `dtype`, and `alpha` = r. The model is not changed.

    What is for the text encoder gets the keys that LoRA loaders know for CLIP. It is of low rank,
    so no CLIP is needed.

    Raises UnlearnError on keys that do not match, on a model that has the patch already, and where
    `dtype` cannot hold the numbers.
    """
    of_model, of_encoder = encoder_parts.of_model(patch), encoder_parts.of_encoder(patch)
    match = patch_match.Match(patch_match.SAME, 0.0)
    if of_model is not None:
        match = patch_match.match(model, of_model)
        _refuse_patched(model, of_model)
    if not patch.edits:
        raise UnlearnError(
            "The input 'patch' changes nothing, so there is no LoRA to save; connect the patch of "
            "an eraser such as ScaPre Solve."
        )
    stacks = _stacks(of_model)
    names = architectures.of(model).lora_names() if stacks else {}
    encoder_stacks = _stacks(of_encoder)
    names |= encoder_names(encoder_stacks)
    stacks |= encoder_stacks
    bar = Progress(len(stacks), node_id)
    tensors: dict[str, torch.Tensor] = {}
    written = []
    for key, edits in stacks.items():
        weight = _no_weight(edits) if key in encoder_stacks else weights.read(model, key)
        up, down, result = _of_weight(key, weight, edits, rank, dtype)
        written.append(result)
        name = names[key]
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.alpha"] = torch.tensor(float(result.rank))
        bar.step()
    return tensors, _metadata(patch, written), _report(patch, written, tensors, rank, match)


def _stacks(patch: UnlearnPatch | None) -> dict[str, list[Edit]]:
    """The edits of each weight, first to last."""
    stacks: dict[str, list[Edit]] = {}
    for key, edit in () if patch is None else patch.edits:
        stacks.setdefault(key, []).append(edit)
    return stacks


def _no_weight(edits: Sequence[Edit]) -> torch.Tensor:
    """Zeros in the place of a weight that is not there, for edits that do not read it.

    Raises UnlearnError for others.
    """
    if not all(isinstance(edit, LowRank) for edit in edits):
        raise UnlearnError(
            "The input 'patch' changes the text encoder by other than low-rank edits, which cannot "
            "be a LoRA without its CLIP; save it with Save Unlearn Patch."
        )
    return torch.zeros(edits[0].shape)


def encoder_names(keys: Iterable[str]) -> dict[str, str]:
    """Key of a CLIP's weight -> its name in a LoRA, as kohya's scripts write it and loaders read.

    One encoder is `lora_te`; of two CLIP-L is `lora_te1` and CLIP-G `lora_te2`.
    """
    keys = list(keys)
    both = len({key.partition(".")[0] for key in keys}) > 1
    numbers = {"clip_l": "1", "clip_g": "2"} if both else {}
    found = {}
    for key in keys:
        encoder, _, rest = key.partition(".transformer.")
        path = rest.removesuffix(".weight").replace(".", "_")
        found[key] = f"lora_te{numbers.get(encoder, '')}_{path}"
    return found


def _refuse_patched(model: Model, patch: UnlearnPatch) -> None:
    """Raises UnlearnError when an edit of the patch is on the MODEL already."""
    applied = set()
    for key, _ in patch.edits:
        applied |= {id(p[1]) for p in model.patches.get(key, [])}
        applied |= {id(edit) for edit, _ in weights.bypass_edits(model).get(key, ())}
    if any(id(edit) in applied for _, edit in patch.edits):
        raise UnlearnError(
            "The input 'model' has this patch on it already; connect the model that goes into "
            "Apply Unlearn Patch."
        )


def _of_weight(
    key: str,
    weight: torch.Tensor,
    edits: Sequence[Edit],
    rank: int | None,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, _Written]:
    """(up, down) of one weight [d_out, d_in] in `dtype`, and what they are."""
    up, down = factors(weight, edits)
    change = up @ down
    exact = rank is None or up.shape[1] <= rank
    if rank is not None and not exact:
        up, down = nearest(change, rank)
    up, down = up.to(dtype), down.to(dtype)
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise UnlearnError(
            "The setting 'precision' float16 cannot hold the numbers of this patch; choose float32."
        )
    lost = float((up.float() @ down.float() - change).square().sum())
    changed = float(change.square().sum())
    return up, down, _Written(key, up.shape[1], exact, lost, changed, weight.numel())


def factors(weight: torch.Tensor, edits: Sequence[Edit]) -> tuple[torch.Tensor, torch.Tensor]:
    """(up [d_out, r], down [r, d_in]) float32 of a weight [d_out, d_in] and its edits.

    weight + up @ down is the weight after the edits, first to last.
    """
    ups, downs, now = [], [], weight
    for edit in edits:
        change = edit.change(now, 1.0)
        if isinstance(edit, LowRank):
            up, down = (factor.float() for factor in edit.weights)
        else:
            up, down = _by_entries(change)
        ups.append(up)
        downs.append(down)
        now = now + change
    up, down = torch.cat(ups, 1), torch.cat(downs)
    return (up, down) if up.shape[1] <= min(weight.shape) else _by_entries(now - weight)


def _by_entries(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as its nonzero columns times one-hot rows, or the like for rows.

    Whichever are fewer.
    """
    columns = change.any(0).nonzero().flatten()
    rows = change.any(1).nonzero().flatten()
    if len(columns) <= len(rows):
        return change[:, columns], torch.eye(change.shape[1])[columns]
    return torch.eye(change.shape[0])[:, rows], change[rows]


def nearest(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(up [d_out, rank], down [rank, d_in]) float32, whose product is nearest to `change`.

    Both factors have the same size, so that float16 can hold them.
    """
    d = change.double()
    tall = d.shape[0] > d.shape[1]
    values, vectors = torch.linalg.eigh(d.T @ d if tall else d @ d.T)
    v = vectors[:, -min(rank, len(values)) :].flip(1)
    # Square roots of the singular values.
    size = values[-v.shape[1] :].flip(0).clamp_min(SMALLEST_EIGENVALUE).sqrt().sqrt()
    up, down = ((d @ v) / size, (v * size).T) if tall else (v * size, (v.T @ d) / size[:, None])
    return up.float(), down.float()


def _metadata(patch: UnlearnPatch, written: Sequence[_Written]) -> dict[str, str]:
    ranks = {w.rank for w in written}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # the word of kohya's resize script
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": dim,
        "ss_network_alpha": dim,
        "unlearn": json.dumps(patch.provenance, default=str),
        "unlearn_version": VERSION,
    }


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata is that of a LoRA which this pack exported."""
    return "unlearn" in metadata and "ss_network_module" in metadata


def _share(part: float, whole: float) -> float:
    """The share of a change that a loss is, both given as squared norms."""
    return math.sqrt(part / max(whole, TINY))


def _report(
    patch: UnlearnPatch,
    written: Sequence[_Written],
    tensors: dict[str, torch.Tensor],
    rank: int | None,
    match: patch_match.Match,
) -> str:
    told = Findings()
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    ranks = [w.rank for w in written]
    lost = _share(sum(w.lost for w in written), sum(w.changed for w in written))
    of_weights = size / (2 * sum(w.entries for w in written))
    most = f" to {max(ranks)}" if max(ranks) > min(ranks) else ""
    exact = sum(w.exact for w in written)
    told.details += [
        f"A LoRA for {len(written)} weights, rank {min(ranks)}{most}, {size / 2**20:.1f} MB "
        f"({of_weights:.0%} of these weights in half precision; "
        f"the patch itself takes {patch.nbytes / 2**20:.2f} MB).",
        f"{exact} of {len(written)} weights are exact; {lost:.2%} of the change is lost, rounding "
        "included.",
    ]
    inexact = [w for w in written if not w.exact]
    if inexact:
        worst = max(inexact, key=lambda w: _share(w.lost, w.changed))
        name = worst.key.removeprefix("diffusion_model.")
        told.details.append(f"Most is lost of {name}: {_share(worst.lost, worst.changed):.0%}.")
    verdict = "The LoRA is exact."
    if exact < len(written):
        verdict = f"The LoRA keeps {1 - lost:.0%} of the change."
    if lost > LOST_WARNING:
        verdict = "The LoRA may not forget."
        better = "choose 'exact', or a higher rank" if rank else "choose precision float32"
        told.warn(
            f"The LoRA lost {lost:.0%} of the change.",
            f"{lost:.0%} of the change is lost, and the LoRA may not forget; {better}.",
        )
        setting = "'size' {} to 'exact'" if rank else "'precision' {} to 'float32'"
        told.advice.append(f"Try: set {setting.format(OF_EXPORT)}.")
    if of_weights > LARGE_WARNING:
        told.warn(
            "The file is large for a LoRA.",
            "This is large for a LoRA; choose a rank, or share the patch file, which is small and "
            "exact.",
        )
        told.advice.append(f"Try: set 'size' {OF_EXPORT} to 'rank'.")
    match.tell(told)
    told.advice.append("Next: use it in a LoRA loader, on the model without the patch.")
    told.details.append(
        "Load it at strength 1 on the model without the patch, after the same other LoRAs."
    )
    return told.report(verdict)
