"""The values that travel between nodes. They are frozen: nothing changes them once made."""

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

KINDS = ("object", "style", "explicit")
ENCODER_PREFIX = "diffusion_model.unlearn_text_encoder."
"""Begins the keys of a text encoder's weights in a patch.

No diffusion model has a module of that name. Versions that know nothing of text encoders accept it
as a key in a file, and refuse to apply it because their model lacks the weight.
"""


@dataclass(frozen=True)
class Concept:
    """One thing to forget.

    `superclass` is what it falls back to, '' for nothing. `weight` scales how strongly it is
    forgotten.
    """

    name: str
    kind: str = "object"
    superclass: str = ""
    aliases: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class ConceptSet:
    """What to forget and what to keep; `notes` say what of the artist's list was read how."""

    concepts: tuple[Concept, ...]
    keep: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Fingerprint:
    """Samples of the original weights a patch was made for, so that a wrong base model is noticed.

    `samples` maps weight key -> float32 [64], taken at fixed places. Two models agree when their
    relative difference is below `TOLERANCE`, whatever the dtypes they are stored in: storing in
    fp8 differs by about 0.03, an unrelated model by about 1.4.
    """

    samples: dict[str, torch.Tensor] = field(hash=False)
    TOLERANCE = 0.1

    def difference(self, other: "Fingerprint") -> float:
        """Relative difference over the keys of this fingerprint; 0 for the same weights."""
        difference, size = 0.0, 0.0
        for key, sample in self.samples.items():
            difference += float((sample - other.samples[key]).square().sum())
            size += float(sample.square().sum())
        return difference**0.5 / max(size**0.5, 1e-12)


class Edit(Protocol):
    """A change of one weight matrix [d_out, d_in]; `host/adapters.py` has the three kinds."""

    name: str
    weights: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the weight it is for."""
        ...

    def change(self, weight: torch.Tensor, strength: float) -> torch.Tensor:
        """What is added to the weight [d_out, d_in]: float32 [d_out, d_in]."""
        ...


@dataclass(frozen=True, eq=False)
class UnlearnPatch:
    """An ordered tuple of (weight key, edit). It is compared by content, and `+` stacks patches.

    `provenance` has one dict for each patch stacked: method, settings, concepts, pack version.
    `picture` is a small one of before and after (files/small_picture.py), '' without. It does not
    count in comparisons, and a stack has none.
    """

    edits: tuple[tuple[str, Edit], ...]
    fingerprint: Fingerprint
    provenance: tuple[dict, ...] = ()
    picture: str = ""

    def __add__(self, other: "UnlearnPatch") -> "UnlearnPatch":
        samples = {**other.fingerprint.samples, **self.fingerprint.samples}
        return UnlearnPatch(
            self.edits + other.edits, Fingerprint(samples), self.provenance + other.provenance
        )

    @functools.cached_property
    def digest(self) -> str:
        """Hex digest of the edits' content."""
        h = hashlib.blake2b(digest_size=16)
        seen: dict[int, bytes] = {}  # a factor that edits share is read once
        for key, edit in self.edits:
            h.update(f"{key}\0{edit.name}\0".encode())
            for part in edit.weights:
                if not isinstance(part, torch.Tensor):
                    h.update(f"{part!r}\0".encode())
                    continue
                if id(part) not in seen:
                    content = part.contiguous().view(torch.uint8).numpy().data
                    seen[id(part)] = hashlib.blake2b(content, digest_size=16).digest()
                h.update(f"{part.dtype}{tuple(part.shape)}".encode() + seen[id(part)])
        h.update(json.dumps(self.provenance, sort_keys=True, default=str).encode())
        return h.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnlearnPatch) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors. A tensor that edits share is counted once."""
        tensors: dict[int, torch.Tensor] = {}
        for _, edit in self.edits:
            for part in edit.weights:
                if isinstance(part, torch.Tensor):
                    tensors[id(part)] = part
        return sum(t.numel() * t.element_size() for t in tensors.values())


@dataclass(frozen=True)
class Group:
    """A group of prompts that are measured together (FIA).

    It is either a concept of a kind or, where `concept` is None, the baseline of that kind: the
    same prompts without any concept.
    """

    kind: str
    concept: str | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether these are the prompts without a concept."""
        return self.concept is None

    @property
    def key(self) -> str:
        """The group's name in files, different for every group: `base KIND` or the concept's name.

        A concept whose name reads like a baseline's key gets a bar in front. No name begins with
        one, because in the artist's list a bar ends the name.
        """
        if self.concept is None:
            return f"base {self.kind}"
        taken = {f"base {kind}" for kind in KINDS}
        return f"| {self.concept}" if self.concept in taken else self.concept

    @property
    def title(self) -> str:
        """The group in a message."""
        return f"{self.kind} without a concept" if self.concept is None else self.concept


@dataclass(frozen=True, eq=False)
class Ranking:
    """The strongest connections of one layer [c_out, c_in] for one concept (FIA, equation 3).

    indices: int32 [k] into the flattened weight, largest saliency A first. rows: float32 [c_out]
    and columns: float32 [c_in], sums of all of A. peak: the largest A.
    """

    indices: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    peak: float


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """Statistics of one group of prompts, kept so that they can be merged with others.

    prompts: `seed:text` of each. mean, m2: float32 [steps, sum of c_in], for the score `wanda`:
    mean and sum of squared deviations over the prompts, all layers side by side; m2 is kept for
    baselines only. Both are None for the score `paper`. folders: names of the folders that hold
    the statistics of the score `paper`, where they were asked for.
    """

    prompts: tuple[str, ...]
    mean: torch.Tensor | None = None
    m2: torch.Tensor | None = None
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """How much each weight connection matters to each concept (FIA).

    layers: (weight key, c_out, c_in) of each layer. rankings[concept][layer]: the layer's top share
    `ceiling`. gathered: the statistics of every group of prompts. settings: how it was measured.
    """

    concepts: tuple[Concept, ...]
    layers: tuple[tuple[str, int, int], ...]
    rankings: tuple[tuple[Ranking, ...], ...]
    ceiling: float
    fingerprint: Fingerprint
    settings: dict[str, Any]
    gathered: dict[Group, ActivationStats]

    def same_model(self, other: "SaliencyMap") -> bool:
        """Whether both were measured on the same weights."""
        if other.layers != self.layers:
            return False
        return self.fingerprint.difference(other.fingerprint) <= self.fingerprint.TOLERANCE
