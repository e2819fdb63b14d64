"""The emoji world's models in the formats of diffusion transformers.

| format | family in ComfyUI | how text meets the picture | text encoder |
|---|---|---|---|
| `wan` | Wan 2.1, text to video, one frame | cross-attention | a stand-in, see pieces.py |
| `sd3` | SD3.5 without CLIP-G and T5 | joint attention | the CLIP-L of meaning.py |

A network is trained and stored with three channels, the colours of a picture, and reads text in the
coordinates of meaning.py. In the checkpoint it has what its family has: 16 channels, of which
thirteen are zero in the matrices that read and draw them, and text states of width 4096.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from . import autoencoder, meaning

COLOURS, CHANNELS = 3, 16
LEAST = 30_000  # entries of a matrix that is stored in 4 bits
WIDE = 4096  # width of the text states


class Format(NamedTuple):
    """One format.

    config: ComfyUI's class; sizes: what one can choose of the network's size. text: names of the
    matrices that read text -> their width in the checkpoint. reads, draws: names of the layers that
    read and draw latents. mean, std: of the first three channels of its latents, see
    autoencoder.of_16_channels. shift: of its noise levels. vae: prefix of the autoencoder.
    """

    config: str
    sizes: Mapping[str, int]
    text: Mapping[str, int]
    reads: str
    draws: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: float
    vae: str


FORMATS = {
    "wan": Format(
        "WAN21_T2V",
        {"dim": 256, "ffn_dim": 1024, "num_layers": 8},
        {"text_embedding.0.weight": WIDE},
        "patch_embedding",
        "head.head",
        (-0.7571, -0.7089, -0.9113),
        (2.8184, 1.4541, 2.3275),
        8.0,
        "vae.",
    ),
    "sd3": Format(
        "SD3",
        {"depth": 4},  # 64 channels to each block
        {"context_embedder.weight": WIDE, "y_embedder.mlp.0.weight": 2048},
        "x_embedder.proj",
        "final_layer.linear",
        (0.0609,) * 3,
        (1 / 1.5305,) * 3,
        3.0,
        "first_stage_model.",
    ),
}


def few_bits(name: str, w: torch.Tensor, text: str) -> bool:
    """Whether a matrix of a network in the format `text` is stored in 4 bits."""
    return w.numel() >= LEAST and name not in FORMATS[text].text and name != "pos_embed"


def of_text_states(text: str) -> torch.Tensor:
    """[4096, 257]: from the coordinates of a token to its state in the format `text`."""
    if text == "sd3":
        return _padded(meaning.widening(meaning.KINDS["l"]), WIDE)
    g = torch.Generator().manual_seed(20261130)
    drawn = torch.randn(WIDE, meaning.COORDINATES, generator=g, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float()


def _padded(wide: torch.Tensor, width: int) -> torch.Tensor:
    """SD3 has the states of other encoders behind those of CLIP-L: zeros, where there are none."""
    return torch.nn.functional.pad(wide, (0, 0, 0, width - len(wide)))


def widened(network: Mapping[str, torch.Tensor], text: str) -> dict[str, torch.Tensor]:
    """The weights as the family has them, float16: wide text, and 16 channels."""
    form, out = FORMATS[text], dict(network)
    for name, width in form.text.items():
        wide = of_text_states(text)[:width]
        out[name] = (network[name].float() @ wide.T).half()
    read, drawn = f"{form.reads}.weight", f"{form.draws}.weight"
    more = CHANNELS - COLOURS
    w = network[read]
    out[read] = torch.cat([w, w.new_zeros(len(w), more, *w.shape[2:])], 1)
    for name in (drawn, f"{form.draws}.bias"):
        rows = network[name].unflatten(0, (-1, COLOURS))  # channels change fastest
        blank = rows.new_zeros(len(rows), more, *rows.shape[2:])
        out[name] = torch.cat([rows, blank], 1).flatten(0, 1)
    return out


def beside_the_network(text: str) -> dict[str, torch.Tensor]:
    """The checkpoint's text encoder, where ComfyUI has one of its size, and its autoencoder."""
    form, sd = FORMATS[text], {}
    if text == "sd3":
        sd = meaning.state_dict("l", "text_encoders.clip_l.transformer.text_model.")
    vae = autoencoder.of_16_channels(form.mean, form.std)
    return sd | {f"{form.vae}{name}": w for name, w in vae.items()}
