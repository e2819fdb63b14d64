"""A patch as a LoRA: W + up @ down, exactly where the edit allows it, else the nearest of a given rank.

Whatever an edit does to a weight on a given model is a matrix D that is added to it. Pruned columns S give D = -W[:, S] @ onehot(S), of
rank |S|; scattered connections give D's own columns or rows against one-hot ones. The nearest D of rank r keeps its r largest singular
values (Eckart and Young 1936), found as eigenvectors of D D^T or D^T D, whichever is smaller.
"""

import json

import comfy.model_base
import comfy.utils
import torch

from ..errors import UnlearnError
from ..host import patching, weights
from ..host.adapters import LowRank
from ..host.progress import Progress
from ..version import VERSION

PRECISION = {"float16": torch.float16, "float32": torch.float32}


def export(model, patch, rank=None, dtype=torch.float32, node_id=None):
    """(tensors by name, metadata, report text) of the LoRA that changes this MODEL, LoRAs on it included, as the patch does at strength 1.

    rank: None for exact factors, else at most this many per weight. Per weight [d_out, d_in] it holds `lora_up` [d_out, r], `lora_down`
    [r, d_in] in `dtype` and `alpha` = r. The model is not changed. Raises UnlearnError on keys that do not match, on a model that has
    the patch already, and where `dtype` cannot hold the numbers.
    """
    warning = patching.check(model, patch)
    stacks = {}
    for key, edit in patch.edits:
        stacks.setdefault(key, []).append(edit)
        if any(
            e is edit
            for e in (
                *(p[1] for p in model.patches.get(key, [])),
                *(e for e, _ in weights.bypass_edits(model).get(key, ())),
            )
        ):
            raise UnlearnError(
                "The input 'model' has this patch on it already; connect the model that goes into Apply Unlearn Patch."
            )
    names = lora_names(model)
    bar, tensors, told = Progress(len(stacks), node_id), {}, []
    for key, edits in stacks.items():
        w = weights.read(model, key)
        up, down = factors(w, edits)
        change = up @ down
        exact = rank is None or up.shape[1] <= rank
        if not exact:
            up, down = nearest(change, rank)
        up, down = up.to(dtype), down.to(dtype)
        if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
            raise UnlearnError(
                "The setting 'precision' float16 cannot hold the numbers of this patch; choose float32."
            )
        lost = float((up.float() @ down.float() - change).square().sum())
        told.append(
            (key, up.shape[1], exact, lost, float(change.square().sum()), min(w.shape), w.numel())
        )
        name = names[key]
        tensors |= {
            f"{name}.lora_up.weight": up,
            f"{name}.lora_down.weight": down,
            f"{name}.alpha": torch.tensor(float(up.shape[1])),
        }
        bar.step()
    return tensors, _metadata(patch, told), _text(patch, told, tensors, rank, warning)


def factors(weight, edits):
    """(up [d_out, r], down [r, d_in]) float32 so that weight + up @ down is the weight [d_out, d_in] after the edits, first to last."""
    ups, downs, now = [], [], weight
    for edit in edits:
        change = edit.change(now, 1.0)
        up, down = (
            (w.float() for w in edit.weights) if isinstance(edit, LowRank) else _by_entries(change)
        )
        ups.append(up), downs.append(down)
        now = now + change
    up, down = torch.cat(ups, 1), torch.cat(downs)
    return (up, down) if up.shape[1] <= min(weight.shape) else _by_entries(now - weight)


def _by_entries(change):
    """A matrix as its nonzero columns times one-hot rows, or one-hot columns times its nonzero rows, whichever are fewer."""
    columns, rows = change.any(0).nonzero().flatten(), change.any(1).nonzero().flatten()
    if len(columns) <= len(rows):
        return change[:, columns], torch.eye(change.shape[1])[columns]
    return torch.eye(change.shape[0])[:, rows], change[rows]


def nearest(change, rank):
    """(up [d_out, rank], down [rank, d_in]) float32, the product nearest to `change`; factors of equal size, so that halves hold them."""
    d = change.double()
    tall = d.shape[0] > d.shape[1]
    values, vectors = torch.linalg.eigh(d.T @ d if tall else d @ d.T)
    v = vectors[:, -min(rank, len(values)) :].flip(1)
    size = (
        values[-v.shape[1] :].flip(0).clamp_min(1e-24).sqrt().sqrt()
    )  # roots of the singular values
    up, down = ((d @ v) / size, (v * size).T) if tall else (v * size, (v.T @ d) / size[:, None])
    return up.float(), down.float()


def lora_names(model):
    """Weight key -> the name that kohya's scripts and ComfyUI's LoraLoader know it by: diffusers' names for SD1.x and SD2.x, the original
    ones for SDXL and anything else."""
    original = {
        k: f"lora_unet_{k.removeprefix('diffusion_model.').removesuffix('.weight').replace('.', '_')}"
        for k in model.model.state_dict()
    }
    if isinstance(model.model, comfy.model_base.SDXL):
        return original
    theirs = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    known = {
        f"diffusion_model.{to}": f"lora_unet_{k.removesuffix('.weight').replace('.', '_')}"
        for k, to in theirs.items()
    }
    return original | {k: v for k, v in known.items() if k in original and k.endswith(".weight")}


def _metadata(patch, told):
    ranks = {r for _, r, *_ in told}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # as kohya's resize script says it
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": dim,
        "ss_network_alpha": dim,
        "unlearn": json.dumps(patch.provenance, default=str),
        "unlearn_version": VERSION,
    }


def _text(patch, told, tensors, rank, warning):
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    ranks = [r for _, r, *_ in told]
    exact = [e for _, _, e, *_ in told]
    lost = (sum(x[3] for x in told) / max(sum(x[4] for x in told), 1e-30)) ** 0.5
    of = size / (2 * sum(x[6] for x in told))
    lines = [
        f"A LoRA for {len(told)} weights, rank {min(ranks)}{f' to {max(ranks)}' if max(ranks) > min(ranks) else ''}, {size / 2**20:.1f} MB "
        f"({of:.0%} of these weights in half precision; the patch itself takes {patch.nbytes / 2**20:.2f} MB).",
        f"{sum(exact)} of {len(told)} weights are exact; {lost:.2%} of the change is lost, rounding included.",
    ]
    if not all(exact):
        worst = max((x for x in told if not x[2]), key=lambda x: x[3] / max(x[4], 1e-30))
        lines.append(
            f"Most is lost of {worst[0].removeprefix('diffusion_model.')}: {(worst[3] / max(worst[4], 1e-30)) ** 0.5:.0%}."
        )
    if lost > 0.2:
        better = "choose 'exact', or a higher rank" if rank else "choose precision float32"
        lines.append(
            f"WARNING: {lost:.0%} of the change is lost, and the LoRA may not forget; {better}."
        )
    if of > 0.5:
        lines.append(
            "WARNING: this is large for a LoRA; choose a rank, or share the patch file, which is small and exact."
        )
    if warning:
        lines.append(f"WARNING: {warning}")
    return "\n".join(
        [
            *lines,
            "Next: load it with a LoRA loader at strength 1 on the plain model, after the same other LoRAs.",
        ]
    )
