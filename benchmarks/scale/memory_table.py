"""`dev.py bench memory_table`: what each node needs beyond the loaded model, from shapes alone.

It writes docs/results/memory.md. Nothing is loaded or run: layers are made without memory. What was
measured beside it stands in the tests that the page names.
"""

import argparse
import subprocess
import time
from pathlib import Path

import torch

from testbed import pack
from testbed.shapes import on_meta

architectures = pack.module("unlearn.host.architectures")
group_statistics = pack.module("unlearn.pruning.group_statistics")
networks = pack.module("unlearn.host.training_network")
memory_need = pack.module("unlearn.sculpting.memory_need")
settings_of = pack.module("unlearn.pruning.settings")
OUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "memory.md"
GB = 2**30
SHAPES = ("SD1.5", "SDXL", "12-billion DiT")
# Matrices [d, d] of float64 that a solve holds at its peak: 24 of them are what `bench scaling`
# measured at 100 concepts, 115 MB for SD1.5 (113 computed) and 805 MB for SDXL (805 computed).
SOLVE_MATRICES = 24
EDIT_COPIES = 3  # float32 copies of a layer while an edit is put into it: weight, change, sum


class StandIn:
    """A MODEL without memory, of which only shapes are asked."""

    def __init__(self, unet):
        self.model = torch.nn.Module()
        self.model.diffusion_model = unet
        self.patches = self.backup = self.hook_backup = {}
        self.load_device = torch.device("cuda")

    def get_attachment(self, name):
        return None


def dit():
    """A DiT of 12 billion weights: Flux, without memory."""
    from comfy.ldm.flux.model import Flux

    config = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096}
    config |= {"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19}
    config |= {"depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000}
    config |= {"qkv_bias": True, "guidance_embed": True, "patch_size": 2, "txt_ids_dims": []}
    import comfy.ops

    ops = comfy.ops.disable_weight_init
    return Flux(dtype=torch.float16, device="meta", operations=ops, **config)


def layers_of_dit(unet):
    """(text layers, second feed-forward layers) of the DiT as (key, d_out, d_in)."""
    weights = {k: v.shape for k, v in unet.state_dict().items() if v.ndim == 2}
    text = [(k, *shape) for k, shape in weights.items() if k == "txt_in.weight"]
    second = ("_mlp.2.weight", "linear2.weight")
    return text, [(k, *shape) for k, shape in weights.items() if k.endswith(second)]


def layers_of(shape):
    """(the UNet or DiT, its text layers, its second feed-forward layers)."""
    if shape == SHAPES[2]:
        unet = dit()
        return unet, *layers_of_dit(unet)
    model = on_meta(shape)
    weights = model.model.state_dict()
    groups = architectures.cross_attention(model), architectures.feed_forward(model)
    found = [[(x.key, *weights[x.key].shape) for x in group] for group in groups]
    return model.model.diffusion_model, *found


def entries(layers):
    return sum(d_out * d_in for _, d_out, d_in in layers)


def solve_bytes(text):
    """Main memory of ScaPre Solve: matrices of the text width, and the weights it edits in half."""
    width = text[0][2]
    return SOLVE_MATRICES * 8 * width**2 + 2 * entries(text)


def paper_bytes(forward):
    """Memory of Concept Saliency with the score `paper`, for any number of concepts."""
    return group_statistics.MemoryNeed.of(forward).total


def wanda_bytes(forward):
    """Main memory of the score `wanda` for each concept: a number for each input and step."""
    return 4 * settings_of.SaliencySettings().window * sum(d_in for *_, d_in in forward)


def masks_bytes(forward):
    """Main memory of a saliency for each concept: the ranked connections as int32."""
    return int(4 * settings_of.SaliencySettings().ceiling * entries(forward))


def edit_bytes(layers):
    """Memory while an edit is put into the largest layer."""
    return EDIT_COPIES * 4 * max(d_out * d_in for _, d_out, d_in in layers)


def training_bytes(unet, trainable, dtype):
    """Memory of Dynamic Mask Trainer for weights, without activations; None where it refuses."""
    try:
        architectures.refuse_transformer(StandIn(unet), "Dynamic Mask Trainer")
        return memory_need.weight_bytes(StandIn(unet), trainable, None, dtype)
    except pack.module("unlearn.errors").UnlearnError:
        return None


def rows():
    """(node, what, where, bytes by shape) of every row."""
    known = {shape: layers_of(shape) for shape in SHAPES}

    def row(node, what, where, bytes_of):
        return node, what, where, [bytes_of(*known[shape]) for shape in SHAPES]

    found = [
        row("ScaPre Solve", "all variants", "main", lambda u, text, f: solve_bytes(text)),
        row("Concept Saliency", "`paper`", "GPU or main", lambda u, t, f: paper_bytes(f)),
        row("Concept Saliency", "`wanda`, a concept", "main", lambda u, t, f: wanda_bytes(f)),
        row("Fuse Neuron Masks", "a concept", "main", lambda u, t, f: masks_bytes(f)),
        row("Apply Unlearn Patch", "while loading", "GPU", lambda u, t, f: edit_bytes([*t, *f])),
    ]
    for trainable in ("keys and values", "cross-attention", "all attention"):
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            what = f"{trainable}, {name}"
            found.append(
                row(
                    "Dynamic Mask Trainer",
                    what,
                    "GPU",
                    lambda u, t, f, w=trainable, d=dtype: training_bytes(u, w, d),
                )
            )
    return found


def shown(size):
    return "refused" if size is None else f"{size / GB:.2f} GB"


def table():
    """The lines of the table."""
    lines = [
        f"| node | for | memory | {' | '.join(SHAPES)} |",
        "|---|---|---|---|---|---|",
    ]
    for node, what, where, sizes in rows():
        lines.append(f"| {node} | {what} | {where} | {' | '.join(map(shown, sizes))} |")
    return lines


def page():
    """The whole page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=OUT.parent, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# What each node needs",
        "",
        "Memory beyond the loaded model, computed from the shapes. A concept takes no more where "
        "the row does not say so.",
        "",
        f"Command: `python3 dev.py bench memory_table`. Commit {commit}, "
        f"{time.strftime('%Y-%m-%d')}; it ran on top of that commit.",
        "",
        *table(),
        "",
        "- The DiT is Flux by its shapes. *refused*: the node does not take such a model.",
        "- Training needs activations too, which depend on the size of the pictures. The node "
        "tries one row and says what it found; `checkpointing` takes the least.",
        "- `paper` also sets aside on disk what stands out at each step; the report says how much.",
        "- Collateral Forecast needs what ScaPre Solve needs. Erasure Report draws as ComfyUI "
        "does.",
        "- Measured on true shapes, `paper` takes the same for 1, 4 and 16 concepts: 3.4 GB on "
        "SDXL, 0.7 GB on SD1.5 ([fia.md](fia.md)).",
        "- `tests/host/test_memory.py` compares the figures with what a second device holds, and "
        "`benchmarks/tests/test_saliency_memory.py` that of `paper` with its peak on SD1.5.",
    ]
    return "\n".join(lines) + "\n"


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=OUT)
    given = p.parse_args()
    given.out.write_text(page(), encoding="utf-8")
    print(f"results: {given.out}")


if __name__ == "__main__":
    main()
