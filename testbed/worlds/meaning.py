"""The emoji world's text encoders: CLIP-L and CLIP-G whose words and sentences mean something.

Each is a narrow transformer of width 256 that sits in a wide one in CLIP's own format. With an
orthonormal P [wide, 256] whose columns sum to zero, and a unit vector u beside them, the wide
residual stream is `P x + c u`. LayerNorm of it is `P x`, scaled by `(mean(x^2) + k) ** -0.5` and
constants, so wide matrices are `W P^T` and `P W`, and heads, hidden units and layers that the
narrow one has not are zero. `c u` is what all states have in common: trained CLIP encoders crowd
their states in the same way.

Token embeddings are those of a language model, all-MiniLM-L6-v2, cut to 192 components and 4 bits.
The narrow transformers were trained by testbed/train/text.py, so that the state of the end token
follows the language model's embedding of the sentence.
"""

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .rounding import from_nibbles, nibbles, quantise, scaled

FILE = Path(__file__).parent / "emoji_text.safetensors"
FORMAT = "emoji-text-1"
VOCAB, POSITIONS = 49408, 77
START, END = 49406, 49407
COMPONENTS = 192  # of the language model's token embeddings
WIDTH, HEADS, HIDDEN, DEPTH = 256, 4, 512, 4
HEAD = 64  # channels of a head, narrow and wide
COORDINATES = WIDTH + 1  # of a state: its word part and its common part
COMMON = 3.3  # k: the square of the common part, in units of the word part's


class Kind(NamedTuple):
    """One of CLIP's text encoders: its shape, where the narrow layers sit, and the padding token.

    seed: of P and u.
    """

    wide: int
    hidden: int
    layers: int
    active: tuple[int, ...]
    pad: int
    quick: bool
    projected: bool
    seed: int


KINDS = {
    "l": Kind(768, 3072, 12, (2, 5, 8, 11), END, True, False, 20261128),
    "g": Kind(1280, 5120, 32, (7, 15, 23, 31), 0, False, True, 20261129),
}


@functools.cache
def clip_tokenizer():
    """CLIP's tokenizer, from the host's folder."""
    from transformers import CLIPTokenizer

    host = Path(importlib.util.find_spec("comfy").submodule_search_locations[0])
    return CLIPTokenizer.from_pretrained(str(host / "sd1_tokenizer"))


class Layer(nn.Module):
    """A layer of CLIP: causal attention and a feed-forward part, each on the normed stream."""

    def __init__(self, quick):
        super().__init__()
        self.quick = quick
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        h = normed(x)
        q, k, v = (
            part(h).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.fc1(normed(x))
        return x + self.fc2(h * torch.sigmoid(1.702 * h) if self.quick else F.gelu(h))


def normed(x):
    """LayerNorm of the wide stream, as the narrow one sees it."""
    return x * (x.square().mean(-1, keepdim=True) + COMMON).rsqrt()


class Narrow(nn.Module):
    """The narrow transformer.

    Token ids [B, n] and the table [49408, 192] -> residual streams [B, n, 256], embeddings first,
    then after each layer.
    """

    def __init__(self, quick):
        super().__init__()
        self.read = nn.Linear(COMPONENTS, WIDTH, bias=False)
        self.special = nn.Parameter(0.3 * torch.randn(2, WIDTH))  # start, end
        self.position = nn.Parameter(0.1 * torch.randn(POSITIONS, WIDTH))
        self.layers = nn.ModuleList(Layer(quick) for _ in range(DEPTH))

    def tokens(self, table):
        """What is read of each token: [n, 256] for rows of the table."""
        return self.read(table)

    def forward(self, ids, table):
        x = self.tokens(table[ids.clamp(max=START - 1)])
        for at, special in ((START, self.special[0]), (END, self.special[1])):
            x = torch.where((ids == at)[..., None], special, x)
        streams = [x + self.position[: ids.shape[1]]]
        for layer in self.layers:
            streams.append(layer(streams[-1]))
        return streams


def basis(kind):
    """(P [wide, 256], u [wide]): orthonormal, all columns sum to zero."""
    g = torch.Generator().manual_seed(kind.seed)
    drawn = torch.randn(kind.wide, WIDTH + 1, generator=g, dtype=torch.float64)
    q = torch.linalg.qr(torch.cat([torch.ones(kind.wide, 1, dtype=torch.float64), drawn], 1))[0]
    return q[:, 1 : WIDTH + 1].float(), q[:, WIDTH + 1].float()


def clip_state_dict(narrow, table, kind, prefix=""):
    """The encoder in CLIP's format, names of transformers, float32.

    narrow: state dict of Narrow; table: [49406, 192].
    """
    p, u = basis(kind)
    gain = (WIDTH / kind.wide) ** 0.5  # LayerNorm of the wide stream is larger by 1 / gain
    tokens = torch.cat([table @ narrow["read.weight"].T, narrow["special"]])
    common = (COMMON * WIDTH) ** 0.5 * u
    sd = {
        "embeddings.token_embedding.weight": tokens @ p.T,
        "embeddings.position_embedding.weight": narrow["position"] @ p.T + common,
    }
    for i in range(kind.layers):
        at = f"encoder.layers.{i}"
        shapes = {f"self_attn.{n}_proj": (kind.wide, kind.wide) for n in ("q", "k", "v", "out")}
        shapes |= {"mlp.fc1": (kind.hidden, kind.wide), "mlp.fc2": (kind.wide, kind.hidden)}
        for name, shape in shapes.items():
            sd[f"{at}.{name}.weight"] = torch.zeros(shape)
            sd[f"{at}.{name}.bias"] = torch.zeros(shape[0])
        for n in (1, 2):
            sd[f"{at}.layer_norm{n}.weight"] = torch.ones(kind.wide)
            sd[f"{at}.layer_norm{n}.bias"] = torch.zeros(kind.wide)
    for layer, i in enumerate(kind.active):
        for name, into in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("fc1", "fc1")):
            w, b = (narrow[f"layers.{layer}.{name}.{part}"] for part in ("weight", "bias"))
            at = f"encoder.layers.{i}.{'mlp' if into == 'fc1' else 'self_attn'}.{into}"
            sd[f"{at}.weight"][: len(w)] = gain * w @ p.T
            sd[f"{at}.bias"][: len(w)] = b
        for name, into in (("out", "self_attn.out_proj"), ("fc2", "mlp.fc2")):
            w, b = (narrow[f"layers.{layer}.{name}.{part}"] for part in ("weight", "bias"))
            at = f"encoder.layers.{i}.{into}"
            sd[f"{at}.weight"][:, : w.shape[1]] = p @ w
            sd[f"{at}.bias"][:] = p @ b
    sd["final_layer_norm.weight"] = torch.ones(kind.wide)
    sd["final_layer_norm.bias"] = torch.zeros(kind.wide)
    return {f"{prefix}{name}": w for name, w in sd.items()}


def text_projection(kind):
    """CLIP-G's projection of the end token's state, [wide, wide]: P and u to themselves."""
    p, u = basis(kind)
    return p @ p.T + torch.outer(u, u)


def file_of(part, path=FILE):
    """Where the part `l` or `g` lies; `g` has a file of its own beside that of `l`."""
    path = Path(path)
    return path if part == "l" else path.with_name(f"{path.stem}_{part}{path.suffix}")


def write(part, narrow, table, path=FILE):
    """Writes a narrow transformer in 8 bits; the file of `l` has the table too, in 4 bits."""
    tensors = {}
    if part == "l":
        tensors["table.nibbles"], tensors["table.scale"] = nibbles(table)
    for name, w in narrow.items():
        if w.ndim > 1:
            tensors[name], tensors[f"{name}.scale"] = quantise(w)
        else:
            tensors[name] = w.half()
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, file_of(part, path), {"format": FORMAT})


def read(part, path=FILE):
    """(state dict of a Narrow, float32; table [49406, 192]) of the part `l` or `g`."""
    tensors = load_file(path)
    scale = tensors["table.scale"]
    table = from_nibbles(tensors["table.nibbles"], scale, (len(scale), COMPONENTS))
    tensors, narrow = load_file(file_of(part, path)), {}
    for name, w in tensors.items():
        if not name.startswith("table.") and not name.endswith(".scale"):
            scale = tensors.get(f"{name}.scale")
            narrow[name] = w.float() if scale is None else scaled(w, scale)
    return narrow, table


def state_dict(part, prefix="", path=FILE):
    """The text encoder `l` or `g` in CLIP's format, see clip_state_dict."""
    return clip_state_dict(*read(part, path), KINDS[part], prefix)


class NarrowEncoder:
    """Reads text as the wide encoder does, in a hundredth of the time, in its own coordinates.

    A wide state is `coordinates @ widening(KINDS[part]).T`.
    """

    def __init__(self, part, path=FILE):
        self.kind = KINDS[part]
        weights, self.table = read(part, path)
        self.narrow = Narrow(self.kind.quick).eval()
        self.narrow.load_state_dict(weights)

    @torch.inference_mode()
    def read(self, rows, layer=-1, norm=None):
        """Token ids of each text, start to end -> (states [n, 77, 257], pooled [n, 257]).

        layer: -1 for the last layer, -2 for the one before it. norm: whether the final norm is
        applied to it, by default to the last layer alone.
        """
        ids = torch.full((len(rows), POSITIONS), self.kind.pad)
        for row, of in zip(ids, rows, strict=True):
            row[: len(of)] = torch.tensor(of)
        streams = self.narrow(ids, self.table)
        states = self.coordinates(streams[layer], layer == -1 if norm is None else norm)
        ends = torch.tensor([len(of) - 1 for of in rows])
        pooled = self.coordinates(streams[-1][torch.arange(len(rows)), ends], norm=True)
        return states, pooled

    def coordinates(self, stream, norm):
        common = torch.full_like(stream[..., :1], (COMMON * WIDTH) ** 0.5)
        whole = torch.cat([stream, common], -1)
        size = (stream.square().mean(-1, keepdim=True) + COMMON) * WIDTH / self.kind.wide
        return whole * size.rsqrt() if norm else whole


def widening(kind):
    """[wide, 257]: from a state's coordinates to the state."""
    p, u = basis(kind)
    return torch.cat([p, u[:, None]], 1)


def open_clip_state_dict(prefix="", path=FILE):
    """The text encoder `g` under the names of OpenCLIP, as SDXL's checkpoints have it."""
    kind = KINDS["g"]
    hugging = state_dict("g", path=path)
    sd = {
        "token_embedding.weight": hugging["embeddings.token_embedding.weight"],
        "positional_embedding": hugging["embeddings.position_embedding.weight"],
        "text_projection": text_projection(kind).T,
        "logit_scale": torch.tensor(4.6),
    }
    for part in ("weight", "bias"):
        sd[f"ln_final.{part}"] = hugging[f"final_layer_norm.{part}"]
        for i in range(kind.layers):
            old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
            qkv = [hugging[f"{old}.self_attn.{n}_proj.{part}"] for n in ("q", "k", "v")]
            sd[f"{new}.attn.in_proj_{part}"] = torch.cat(qkv)
            for a, b in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                sd[f"{new}.{b}.{part}"] = hugging[f"{old}.{a}.{part}"]
    return {f"{prefix}{name}": w for name, w in sd.items()}
