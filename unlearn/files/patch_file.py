"""Patches as safetensors files. Everything that a file declares is checked before it is used.

Metadata, all strings: `format`, `format_version`, `pack_version`, `method`, `concepts` (JSON list),
`provenance` (JSON, one object for each patch of the stack), `edits` (JSON, one object for each
edit, in order), `checksum`, and `picture` where there is one. A tensor that several edits share is
stored once, under the number of the first. `fingerprint.KEY` holds samples of the base model's
weight KEY.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..concepts.notation import short
from ..errors import UnlearnError
from ..host import weights
from ..host.adapters import Delta, LowRank, Prune, WeightEdit
from ..types import Fingerprint, UnlearnPatch
from ..version import VERSION
from . import safetensors_io, small_picture
from .safetensors_io import Header

FORMAT, FORMAT_VERSION = "unlearn-patch", "1"
FOLDER = "unlearn_patches"
FIELDS: dict[str, tuple[type[WeightEdit], tuple[str, ...]]] = {
    # How a file names the parts of an edit's `weights`, in order.
    "prune": (Prune, ("mask", "d_out", "d_in", "granularity")),
    "lowrank": (LowRank, ("up", "down")),
    "delta": (Delta, ("values", "indices", "d_out", "d_in")),
}
_KINDS: dict[type, str] = {edit: kind for kind, (edit, _) in FIELDS.items()}
_TENSORS = ("mask", "up", "down", "values", "indices")
_FLOATS = ("F32", "F16", "BF16", "F64")
_LARGEST = 2**31  # entries of a weight that int32 indices reach
_PICTURE = "picture"  # a JPEG in base64; a damaged one is left out and the patch is loaded
_SAMPLE = "fingerprint."  # begins the name of a tensor with samples of a weight


def save(path: Path, patch: UnlearnPatch) -> None:
    """Writes an UnlearnPatch to a .safetensors file, completely or not at all.

    Raises UnlearnError when it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    names: dict[tuple, str] = {}  # what identifies a tensor in memory -> its name in the file
    entries = []
    for i, (key, edit) in enumerate(patch.edits):
        kind = _KINDS[type(edit)]
        entry: dict[str, Any] = {"key": key, "kind": kind}
        for field, part in zip(FIELDS[kind][1], edit.weights, strict=True):
            entry[field] = part
            if isinstance(part, torch.Tensor):
                memory = (part.data_ptr(), part.dtype, tuple(part.shape), part.stride())
                entry[field] = names.setdefault(memory, f"{i}.{field}")
                tensors[entry[field]] = part
        entries.append(entry)
    for key, sample in patch.fingerprint.samples.items():
        tensors[_SAMPLE + key] = sample
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    concepts = [c for p in patch.provenance for c in p["concepts"]]
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pack_version": VERSION,
        "method": " + ".join(dict.fromkeys(p["method"] for p in patch.provenance)),
        "concepts": json.dumps(concepts),
        "provenance": json.dumps(patch.provenance, default=str),
        "edits": json.dumps(entries),
    }
    if patch.picture:
        metadata[_PICTURE] = patch.picture
    checksum = _checksum(tensors, metadata)
    safetensors_io.write(path, tensors, metadata | {"checksum": checksum}, is_ours)


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata is that of a patch file, of any version."""
    return metadata.get("format") == FORMAT


def _checksum(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Hex digest of the tensors, the edits and the provenance."""
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy().data)
    h.update(f"{metadata['edits']}\0{metadata['provenance']}".encode())
    return h.hexdigest()


def load(path: Path) -> tuple[UnlearnPatch, dict[str, str]]:
    """(UnlearnPatch, metadata) of a file.

    Raises UnlearnError when the file is damaged or is no patch of this pack.
    """
    try:
        with safetensors_io.opened(path) as (metadata, header, read):
            _check_format(path.name, metadata)
            entries = _validate_edits(json.loads(metadata["edits"]), header)
            provenance = _validate_provenance(json.loads(metadata["provenance"]))
            tensors = {name: read(name) for name in header}
        if _checksum(tensors, metadata) != metadata["checksum"]:
            raise ValueError("its checksum is another")
        shown = metadata.get(_PICTURE, "")
        if small_picture.decoded(shown) is None:
            shown = ""
        patch = UnlearnPatch(_edits(entries, tensors), _fingerprint(tensors), provenance, shown)
        return patch, metadata
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The file '{path.name}' is damaged ({safetensors_io.reason(error)}); get it again, or "
            "save it again with Save Unlearn Patch."
        ) from error


def _check_format(name: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise UnlearnError(
            f"The file '{name}' is not an unlearn patch; save one with Save Unlearn Patch."
        )
    version = metadata.get("format_version", "?")
    if version != FORMAT_VERSION:
        raise UnlearnError(
            f"The file '{name}' is of format {short(version)}; update ComfyUI-Unlearn to read it."
        )


def _validate_edits(entries: list[dict], header: Header) -> list[dict]:
    """The declared edits, each checked against dtypes and shapes in the file's header.

    Raises ValueError, or another error of DAMAGE, at the first thing that is wrong.
    """
    used = {name for name in header if name.startswith(_SAMPLE)}
    for name in used:
        _validate_sample(name, header)
    if not entries:
        raise ValueError("it holds no edits")
    for i, entry in enumerate(entries):
        expected = FIELDS[entry["kind"]][1]
        key = safetensors_io.KEY.fullmatch(entry["key"])
        if set(entry) != {"key", "kind", *expected} or not key:
            raise ValueError(f"edit {i}")
        fields = [f for f in expected if f in _TENSORS and entry[f] is not None]
        tensors = {field: header[entry[field]] for field in fields}
        used.update(entry[field] for field in fields)
        sides = [entry[side] for side in ("d_out", "d_in") if side in expected]
        if any(type(side) is not int or side < 1 for side in sides) or math.prod(sides) > _LARGEST:
            raise ValueError(f"shape of edit {i}")
        if not _fits(entry, tensors):
            raise ValueError(f"tensors of edit {i}")
    if used != set(header):
        raise ValueError("it holds tensors that no edit uses")
    return entries


def _validate_sample(name: str, header: Header) -> None:
    """Raises ValueError unless a tensor can be samples of a weight."""
    dtype, shape = header[name]
    key = safetensors_io.KEY.fullmatch(name.removeprefix(_SAMPLE))
    right_size = len(shape) == 1 and 1 <= shape[0] <= weights.SAMPLES
    if not key or dtype != "F32" or not right_size:
        raise ValueError(f"fingerprint sample '{short(name)}'")


def _fits(entry: Mapping[str, Any], tensors: Mapping[str, tuple[str, Any]]) -> bool:
    """Whether an edit's tensors are what its kind and declared size ask for.

    tensors: field -> (dtype, shape).
    """
    if entry["kind"] == "prune":
        d_out, d_in = entry["d_out"], entry["d_in"]
        bits = {"connection": d_out * d_in, "row": d_out, "column": d_in}[entry["granularity"]]
        return tensors["mask"] == ("U8", (-(-bits // 8),))
    if entry["kind"] == "lowrank":
        (up, (d_out, rank)), (down, (down_rank, d_in)) = tensors["up"], tensors["down"]
        floats = up in _FLOATS and down in _FLOATS
        return floats and rank == down_rank and 1 <= d_out * d_in <= _LARGEST
    (dtype, (n,)), total = tensors["values"], entry["d_out"] * entry["d_in"]
    if "indices" not in tensors:
        return dtype in _FLOATS and n == total
    return dtype in _FLOATS and n <= total and tensors["indices"] == ("I32", (n,))


def _validate_provenance(provenance: list[dict]) -> tuple[dict, ...]:
    """The provenance of each patch of the stack; other nodes read it as the pack's own.

    Each has at least a method and concepts. Raises ValueError, or another error of DAMAGE.
    """
    for p in provenance:
        lists = [p["concepts"], p.get("lines") or [], p.get("keep") or []]
        texts = all(isinstance(part, list) for part in lists)
        texts = texts and all(isinstance(line, str) for part in lists for line in part)
        settings = isinstance(p.get("settings") or {}, dict)
        if not isinstance(p["method"], str) or not settings or not texts:
            raise ValueError("its provenance")
    return tuple(provenance)


def _edits(
    entries: list[dict], tensors: Mapping[str, torch.Tensor]
) -> tuple[tuple[str, WeightEdit], ...]:
    """The edits themselves.

    Raises ValueError for numbers that are not finite, and for indices that do not ascend within
    the weight.
    """
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"not a number in '{short(name)}'")
    edits = []
    ends: dict[str, int] = {}  # name of indices -> one past the last; they may be shared
    for i, entry in enumerate(entries):
        edit, fields = FIELDS[entry["kind"]]
        name = entry["indices"] if entry["kind"] == "delta" else None
        if name is not None:
            if name not in ends:
                ends[name] = _end(tensors[name])
            if ends[name] > entry["d_out"] * entry["d_in"]:
                raise ValueError(f"indices of edit {i}")
        parts = []
        for field in fields:
            is_tensor = field in _TENSORS and entry[field] is not None
            parts.append(tensors[entry[field]] if is_tensor else entry[field])
        edits.append((entry["key"], edit(set(), tuple(parts))))
    return tuple(edits)


def _end(indices: torch.Tensor) -> int:
    """One past the last of int32 indices [n]; ValueError unless they ascend from zero or more."""
    if len(indices) == 0:
        return 0
    if int(indices[0]) < 0 or not bool((indices[1:] > indices[:-1]).all()):
        raise ValueError("indices that do not ascend")
    return int(indices[-1]) + 1


def _fingerprint(tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
    names = [name for name in tensors if name.startswith(_SAMPLE)]
    return Fingerprint({name.removeprefix(_SAMPLE): tensors[name] for name in names})
