"""What travels on the wires: frozen values, never changed once made."""

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import torch

KINDS = ("object", "style", "explicit")


@dataclass(frozen=True)
class Concept:
    """One thing to forget. `superclass` is what it falls back to ('' for nothing); `weight` scales how hard it is pushed."""

    name: str
    kind: str = "object"
    superclass: str = ""
    aliases: tuple[str, ...] = ()
    weight: float = 1.0

    @property
    def names(self):
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class ConceptSet:
    """What to forget and what to keep."""

    concepts: tuple[Concept, ...]
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """Samples of the pristine weights a patch was made for, so that a wrong base model is noticed whatever its dtype.

    `samples` maps weight key -> float32 [64] at fixed places; two models agree when the relative difference is below `TOLERANCE`
    (fp8 storage rounds by about 0.03, an unrelated model differs by about 1.4).
    """

    samples: dict[str, torch.Tensor] = field(hash=False)
    TOLERANCE = 0.1

    def difference(self, other):
        """Relative difference of two fingerprints over the keys of this one; 0 for the same weights."""
        pairs = [(a, other.samples[k]) for k, a in self.samples.items()]
        return float(
            sum(((a - b).square().sum() for a, b in pairs)) ** 0.5
            / max(sum(a.square().sum() for a, _ in pairs) ** 0.5, 1e-12)
        )


@dataclass(frozen=True, eq=False)
class UnlearnPatch:
    """An ordered tuple of (weight key, edit); a value: equal and hashed by content, stacked by `+`.

    `provenance` is a tuple of dicts (method, settings, concepts, pack version), one per patch stacked.
    """

    edits: tuple[tuple[str, object], ...]
    fingerprint: Fingerprint
    provenance: tuple[dict, ...] = ()

    def __add__(self, other):
        samples = {**other.fingerprint.samples, **self.fingerprint.samples}
        return UnlearnPatch(
            self.edits + other.edits, Fingerprint(samples), self.provenance + other.provenance
        )

    @functools.cached_property
    def digest(self):
        """Hex digest of the edits' content."""
        h = hashlib.blake2b(digest_size=16)
        seen = {}
        for key, edit in self.edits:
            h.update(f"{key}\0{edit.name}\0".encode())
            for w in edit.weights:
                if isinstance(w, torch.Tensor):
                    if id(w) not in seen:  # shared factors are read once
                        seen[id(w)] = hashlib.blake2b(
                            w.contiguous().view(torch.uint8).numpy(), digest_size=16
                        ).digest()
                    h.update(f"{w.dtype}{tuple(w.shape)}".encode() + seen[id(w)])
                else:
                    h.update(f"{w!r}\0".encode())
        h.update(json.dumps(self.provenance, sort_keys=True, default=str).encode())
        return h.hexdigest()

    def __eq__(self, other):
        return isinstance(other, UnlearnPatch) and self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    @property
    def nbytes(self):
        """Bytes of all tensors, shared ones counted once."""
        tensors = {
            id(w): w for _, e in self.edits for w in e.weights if isinstance(w, torch.Tensor)
        }
        return sum(w.numel() * w.element_size() for w in tensors.values())


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
