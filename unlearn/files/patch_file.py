"""Patches as safetensors files: every key, shape, dtype, size and checksum is looked at before anything of a file is used.

Metadata, all strings: `format`, `format_version`, `pack_version`, `method`, `concepts` (JSON list), `provenance` (JSON, one object per
patch of the stack), `edits` (JSON, one object per edit, in order), `checksum`. A tensor that several edits share is stored once, under
the number of the first; `fingerprint.KEY` holds samples of the base model's weight KEY.
"""

import hashlib
import json
import math

import torch

from ..concepts.notation import short
from ..errors import UnlearnError
from ..host import patching, weights
from ..host.adapters import Delta, LowRank, Prune
from ..types import Fingerprint, UnlearnPatch
from ..version import VERSION
from . import safetensors_io

FORMAT, FORMAT_VERSION = "unlearn-patch", "1"
FOLDER = "unlearn_patches"
FIELDS = {  # what the `weights` of an edit are called, in order
    "prune": (Prune, ("mask", "d_out", "d_in", "granularity")),
    "lowrank": (LowRank, ("up", "down")),
    "delta": (Delta, ("values", "indices", "d_out", "d_in")),
}
_KINDS = {edit: kind for kind, (edit, _) in FIELDS.items()}
_TENSORS = ("mask", "up", "down", "values", "indices")
_FLOATS = ("F32", "F16", "BF16", "F64")
_LARGEST = 2**31  # entries of a weight that int32 indices reach


def save(path, patch):
    """Writes an UnlearnPatch to a .safetensors file, whole or not at all; raises UnlearnError when the disk refuses."""
    tensors, names, entries = {}, {}, []
    for i, (key, edit) in enumerate(patch.edits):
        kind = _KINDS[type(edit)]
        entry = {"key": key, "kind": kind}
        for field, w in zip(FIELDS[kind][1], edit.weights, strict=True):
            if isinstance(w, torch.Tensor):
                shared = (w.data_ptr(), w.dtype, tuple(w.shape), w.stride())
                name = names.setdefault(shared, f"{i}.{field}")
                tensors[name], w = w, name
            entry[field] = w
        entries.append(entry)
    for key, sample in patch.fingerprint.samples.items():
        tensors[f"fingerprint.{key}"] = sample
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    provenance = json.dumps(patch.provenance, default=str)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pack_version": VERSION,
        "method": " + ".join(dict.fromkeys(p["method"] for p in patch.provenance)),
        "concepts": json.dumps([c for p in patch.provenance for c in p["concepts"]]),
        "provenance": provenance,
        "edits": json.dumps(entries),
    }
    safetensors_io.write(path, tensors, metadata | {"checksum": _checksum(tensors, metadata)})


def _checksum(tensors, metadata):
    """Hex digest of the tensors and of what is said about them."""
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        t = tensors[name]
        h.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        h.update(t.reshape(-1).view(torch.uint8).numpy())
    h.update(f"{metadata['edits']}\0{metadata['provenance']}".encode())
    return h.hexdigest()


def load(path):
    """(UnlearnPatch, metadata) of a file; raises UnlearnError in one sentence when it is damaged or not one of ours."""
    name = path.name
    try:
        with safetensors_io.opened(path) as (metadata, header, read):
            if metadata.get("format") != FORMAT:
                raise UnlearnError(
                    f"The file '{name}' is not an unlearn patch; save one with Save Unlearn Patch."
                )
            if metadata.get("format_version") != FORMAT_VERSION:
                raise UnlearnError(
                    f"The file '{name}' is of format {short(metadata.get('format_version', '?'))}; update ComfyUI-Unlearn to read it."
                )
            entries, provenance = (
                _entries(json.loads(metadata["edits"]), header),
                _provenance(json.loads(metadata["provenance"])),
            )
            tensors = {k: read(k) for k in header}
        if _checksum(tensors, metadata) != metadata["checksum"]:
            raise ValueError("its checksum is another")
        return UnlearnPatch(_edits(entries, tensors), _fingerprint(tensors), provenance), metadata
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The file '{name}' is damaged ({safetensors_io.reason(error)}); get it again, or save it again with Save Unlearn Patch."
        ) from error


def _entries(entries, header):
    """The declared edits, each against the dtypes and shapes of the file's header; ValueError at the first thing that is wrong."""
    used = {name for name in header if name.startswith("fingerprint.")}
    for name in used:
        dtype, shape = header[name]
        if (
            not safetensors_io.KEY.fullmatch(name.removeprefix("fingerprint."))
            or dtype != "F32"
            or len(shape) != 1
            or not 1 <= shape[0] <= weights.SAMPLES
        ):
            raise ValueError(f"fingerprint sample '{short(name)}'")
    if not entries:
        raise ValueError("it holds no edits")
    for i, entry in enumerate(entries):
        wanted = FIELDS[entry["kind"]][1]
        if set(entry) != {"key", "kind", *wanted} or not safetensors_io.KEY.fullmatch(entry["key"]):
            raise ValueError(f"edit {i}")
        tensors = {
            field: header[entry[field]]
            for field in wanted
            if field in _TENSORS and entry[field] is not None
        }
        used.update(entry[field] for field in tensors)
        sides = [entry[side] for side in ("d_out", "d_in") if side in wanted]
        if any(type(side) is not int or side < 1 for side in sides) or math.prod(sides) > _LARGEST:
            raise ValueError(f"shape of edit {i}")
        if not _fits(entry, tensors):
            raise ValueError(f"tensors of edit {i}")
    if used != set(header):
        raise ValueError("it holds tensors that no edit uses")
    return entries


def _fits(entry, tensors):
    """Whether an edit's tensors, as field -> (dtype, shape), are what its kind and declared size ask for."""
    if entry["kind"] == "prune":
        d_out, d_in = entry["d_out"], entry["d_in"]
        bits = {"connection": d_out * d_in, "row": d_out, "column": d_in}[entry["granularity"]]
        return tensors["mask"] == ("U8", (-(-bits // 8),))
    if entry["kind"] == "lowrank":
        (up, (d_out, r)), (down, (r2, d_in)) = tensors["up"], tensors["down"]
        return up in _FLOATS and down in _FLOATS and r == r2 and 1 <= d_out * d_in <= _LARGEST
    (dtype, (n,)), total = tensors["values"], entry["d_out"] * entry["d_in"]
    indexed = (
        n == total
        if "indices" not in tensors
        else n <= total and tensors["indices"] == ("I32", (n,))
    )
    return dtype in _FLOATS and indexed


def _provenance(found):
    """What is said of each patch in the stack, with at least a method and concepts: other nodes read it as their own."""
    for p in found:
        lists = [p["concepts"], p.get("lines") or [], p.get("keep") or []]
        if (
            not isinstance(p["method"], str)
            or not isinstance(p.get("settings") or {}, dict)
            or not all(
                isinstance(part, list) and all(isinstance(line, str) for line in part)
                for part in lists
            )
        ):
            raise ValueError("what it says of itself")
    return tuple(found)


def _edits(entries, tensors):
    """The edits themselves; ValueError for numbers that are not finite and indices that do not ascend within the weight."""
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"not a number in '{short(name)}'")
    edits, ends = (
        [],
        {},
    )  # ends: one past the last index of each tensor of indices, looked at once however many edits share it
    for i, entry in enumerate(entries):
        edit, fields = FIELDS[entry["kind"]]
        if entry["kind"] == "delta" and (at := entry["indices"]) is not None:
            if at not in ends:
                ends[at] = _end(tensors[at])
            if ends[at] > entry["d_out"] * entry["d_in"]:
                raise ValueError(f"indices of edit {i}")
        parts = (
            tensors[entry[f]] if f in _TENSORS and entry[f] is not None else entry[f]
            for f in fields
        )
        edits.append((entry["key"], edit(set(), tuple(parts))))
    return tuple(edits)


def _end(at):
    """One past the last of ascending indices int32 [n]; ValueError where they do not ascend from zero or more."""
    if len(at) and (int(at[0]) < 0 or not bool((at[1:] > at[:-1]).all())):
        raise ValueError("indices that do not ascend")
    return int(at[-1]) + 1 if len(at) else 0


def _fingerprint(tensors):
    return Fingerprint(
        {
            k.removeprefix("fingerprint."): t
            for k, t in tensors.items()
            if k.startswith("fingerprint.")
        }
    )


def describe(patch, model=None):
    """What a patch is, in words: per patch of the stack its method, concepts, keep list, settings; the edits; whether it is for a MODEL."""
    lines = []
    for p in patch.provenance:
        lines.append(f"{p['method']}, ComfyUI-Unlearn {p.get('version', '?')}")
        lines.append(
            f"  forgets: {', '.join(p.get('lines') or p['concepts']) or 'nothing on record'}"
        )
        if p.get("keep"):
            lines.append(f"  keeps: {', '.join(p['keep'])}")
        settings = {
            k: v
            for k, v in (p.get("settings") or {}).items()
            if not isinstance(v, dict) and v not in (None, "", [], {})
        }
        lines.append(f"  settings: {', '.join(f'{k} {v}' for k, v in settings.items())}")
    lines += [
        f"{len([1 for _, e in patch.edits if type(e) is edit])} x {what}"
        for edit, what in _contents(patch.edits)
    ]
    lines.append(
        f"{len(patch.edits)} edits of {len({k for k, _ in patch.edits})} weights, {patch.nbytes / 2**20:.2f} MB"
    )
    if model is None:
        lines.append(
            "Next: Apply Unlearn Patch. Connect a model here to see whether the patch was made for it."
        )
    else:
        warning = patching.check(model, patch)
        lines.append(
            f"WARNING: {warning}"
            if warning
            else "It was made for this very model. Next: Apply Unlearn Patch."
        )
    return "\n".join(lines)


def _contents(edits):
    """(kind of edit, what it amounts to) for each kind there is."""
    found = []
    if pruned := [e for _, e in edits if isinstance(e, Prune)]:
        cut, of = (
            sum(x) for x in zip(*((_pruned(e), math.prod(e.shape)) for e in pruned), strict=True)
        )
        found.append((Prune, f"pruning: {cut:,} of {of:,} connections ({cut / of:.2%})"))
    if low := [e.weights[0].shape[1] for _, e in edits if isinstance(e, LowRank)]:
        found.append(
            (
                LowRank,
                f"low-rank change: rank {min(low)}"
                + (f" to {max(low)}" if max(low) > min(low) else ""),
            )
        )
    if deltas := [e.weights for _, e in edits if isinstance(e, Delta)]:
        found.append(
            (
                Delta,
                f"change by value: {sum(len(w[0]) for w in deltas):,} of {sum(w[2] * w[3] for w in deltas):,} connections",
            )
        )
    return found


def _pruned(edit):
    """How many connections a Prune edit cuts."""
    mask = edit.mask()
    return int(mask.sum()) * (math.prod(edit.shape) // mask.numel())
