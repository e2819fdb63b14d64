"""Saliency maps as safetensors files."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch

from ...kernels import fia
from ..concepts.notation import short
from ..errors import UnlearnError
from ..host import folders, weights
from ..types import (
    KINDS,
    ActivationStats,
    Concept,
    Fingerprint,
    Group,
    Ranking,
    SaliencyMap,
)
from ..version import VERSION
from . import safetensors_io

FORMAT = "unlearn-saliency-1"
FOLDER = "unlearn_saliency"
RANKING_FIELDS = ("indices", "rows", "columns")
LARGEST_COUNT = 10**6  # of prompts or steps that a file may speak of

# Name of a tensor -> (dtype, shape), as in the header of a safetensors file.
Header: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
# The group of each entry under `gathered`, in order; None for an entry that is not used.
Groups: TypeAlias = list[Group | None]


def models_folder() -> Path:
    """The folder for new saliency files.

    It is `unlearn_saliency` in ComfyUI's models folder, or the folder that extra_model_paths names.
    """
    return folders.folders(FOLDER)[0]


def listed() -> list[str]:
    """Names of all saliency files, without raw statistics."""
    return [name for name in folders.listed(FOLDER) if ".raw/" not in name.replace(os.sep, "/")]


def save(path: Path, found: SaliencyMap) -> None:
    """Writes a SaliencyMap to a .safetensors file, whole or not at all.

    Raises UnlearnError when the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for c, parts in enumerate(found.rankings):
        for i, ranking in enumerate(parts):
            for field in RANKING_FIELDS:
                tensors[f"{c}.{i}.{field}"] = getattr(ranking, field)
            # Version 0.1.0 refuses a file without this tensor, although nothing ever used it.
            tensors[f"{c}.{i}.values"] = torch.zeros(len(ranking.indices), dtype=torch.float16)
    for key, sample in found.fingerprint.samples.items():
        tensors[f"fingerprint.{key}"] = sample
    gathered = {}
    for g, (group, part) in enumerate(found.gathered.items()):
        # The key alone told version 0.1.0 what a group is. It is right for all but a few names.
        gathered[group.key] = {
            "prompts": part.prompts,
            "folders": part.folders,
            "kind": group.kind,
            "concept": group.concept,
        }
        for field in ("mean", "m2"):
            if getattr(part, field) is not None:
                tensors[f"gathered.{g}.{field}"] = getattr(part, field)
    content = {
        "concepts": [asdict(c) for c in found.concepts],
        "layers": found.layers,
        "peaks": [[r.peak for r in parts] for parts in found.rankings],
        "ceiling": found.ceiling,
        "settings": found.settings,
        "gathered": gathered,
    }
    metadata = {"format": FORMAT, "version": VERSION, "saliency": json.dumps(content)}
    safetensors_io.write(path, tensors, metadata, is_ours)


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata is that of a saliency map, of any version."""
    return metadata.get("format") == FORMAT


def load(path: Path) -> SaliencyMap:
    """The SaliencyMap of a file.

    Raises UnlearnError when the file is damaged, or is no saliency map of ours.
    """
    name = Path(path).name
    try:
        with safetensors_io.opened(path) as (metadata, header, read):
            if metadata.get("format") != FORMAT:
                raise UnlearnError(
                    f"The file '{name}' is not a saliency map of this version; "
                    "save one with Save Concept Saliency."
                )
            content = json.loads(metadata["saliency"])
            groups = _validate(content, header)
            tensors = {key: read(key) for key in header if not key.endswith(".values")}
        return _assemble(content, groups, tensors)
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The file '{name}' is damaged ({safetensors_io.reason(error)}); "
            "save it again with Save Concept Saliency."
        ) from error


def _assemble(
    content: dict[str, Any], groups: Groups, tensors: dict[str, torch.Tensor]
) -> SaliencyMap:
    """The SaliencyMap of validated content; ValueError where a tensor's numbers are wrong."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"not a number in '{short(key)}'")
    layers = tuple((key, c_out, c_in) for key, c_out, c_in in content["layers"])
    rankings = []
    for c, peaks in enumerate(content["peaks"]):
        parts = []
        for i, ((_, c_out, c_in), peak) in enumerate(zip(layers, peaks, strict=True)):
            indices, rows, columns = (tensors[f"{c}.{i}.{field}"] for field in RANKING_FIELDS)
            if len(indices):
                lowest, highest = int(indices.min()), int(indices.max())
                if lowest < 0 or highest >= c_out * c_in:
                    raise ValueError(f"ranking {c}.{i}")
            parts.append(Ranking(indices, rows, columns, float(peak)))
        rankings.append(tuple(parts))
    gathered = {}
    for g, (group, entry) in enumerate(zip(groups, content["gathered"].values(), strict=True)):
        if group is None:
            continue
        gathered[group] = ActivationStats(
            tuple(entry["prompts"]),
            tensors.get(f"gathered.{g}.mean"),
            tensors.get(f"gathered.{g}.m2"),
            tuple(entry["folders"]),
        )
    start = "fingerprint."
    samples = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
    return SaliencyMap(
        tuple(Concept(**{**c, "aliases": tuple(c["aliases"])}) for c in content["concepts"]),
        layers,
        tuple(rankings),
        float(content["ceiling"]),
        Fingerprint(samples),
        content["settings"],
        gathered,
    )


def _validate(content: dict[str, Any], header: Header) -> Groups:
    """The groups of prompts of a file, after its content was compared with its header.

    Raises ValueError, or another error of safetensors_io.DAMAGE, at the first thing that is wrong.
    """
    _validate_concepts(content)
    _validate_settings(content)
    for key, c_out, c_in in content["layers"]:
        if not safetensors_io.KEY.fullmatch(key) or type(c_out) is not int or type(c_in) is not int:
            raise ValueError("layers")
        if min(c_out, c_in) < 1 or c_out * c_in > 2**31:
            raise ValueError("layers")
    concepts, layers = content["concepts"], content["layers"]
    if len(content["peaks"]) != len(concepts):
        raise ValueError("rankings")
    if any(len(peaks) != len(layers) for peaks in content["peaks"]):
        raise ValueError("rankings")
    groups = _groups(content)
    expected = _expected_tensors(content, groups, header)
    for key in {**expected, **header}:
        if header.get(key) != expected.get(key):
            raise ValueError(f"tensor '{short(key)}'")
    return groups


def _groups(content: dict[str, Any]) -> Groups:
    """The group of each entry under `gathered`, in order."""
    kinds = {c["name"]: c["kind"] for c in content["concepts"]}
    groups: Groups = []
    for key, entry in content["gathered"].items():
        for field in ("prompts", "folders"):
            texts = entry[field]
            if not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
                raise ValueError("prompts")
        groups.append(_group(key, entry, kinds))
    used = [group for group in groups if group is not None]
    needed = {Group(kind, name) for name, kind in kinds.items()}
    needed |= {Group(kind) for kind in kinds.values()}
    if len(set(used)) < len(used) or not needed <= set(used):
        raise ValueError("groups of prompts")
    return groups


def _group(key: str, entry: dict[str, Any], kinds: dict[str, str]) -> Group | None:
    """The group of one entry; kinds: concept name -> kind.

    Files of version 0.1.0 tell a group by its key alone. That version dropped every concept whose
    name begins with `base `, but kept its statistics, which are of no use: None.
    """
    if "kind" in entry:
        kind, concept = entry["kind"], entry["concept"]
        if kind not in KINDS or not (concept is None or isinstance(concept, str)):
            raise ValueError("groups of prompts")
        return Group(kind, concept)
    if key in kinds:
        return Group(kinds[key], key)
    if not key.startswith("base "):
        raise ValueError("groups of prompts")
    kind = key.removeprefix("base ")
    return Group(kind) if kind in KINDS else None


def _expected_tensors(
    content: dict[str, Any], groups: Groups, header: Header
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor that a file with this content must hold."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    width = 0
    for i, (key, c_out, c_in) in enumerate(content["layers"]):
        width += c_in
        expected[f"fingerprint.{key}"] = ("F32", (min(weights.SAMPLES, c_out * c_in),))
        for c in range(len(content["concepts"])):
            name = f"{c}.{i}"
            (k,) = header[f"{name}.indices"][1]
            expected[f"{name}.indices"] = ("I32", (k,))
            expected[f"{name}.rows"] = ("F32", (c_out,))
            expected[f"{name}.columns"] = ("F32", (c_in,))
            if f"{name}.values" in header:
                expected[f"{name}.values"] = ("F16", (k,))
    if content["settings"]["score"] == "wanda":
        shape = (content["settings"]["window"], width)
        for g, group in enumerate(groups):
            expected[f"gathered.{g}.mean"] = ("F32", shape)
            if group is None or group.is_baseline:
                expected[f"gathered.{g}.m2"] = ("F32", shape)
    return expected


def _validate_concepts(content: dict[str, Any]) -> None:
    for c in content["concepts"]:
        texts = (c["name"], c["kind"], c["superclass"], *c["aliases"])
        if not all(isinstance(x, str) for x in texts) or not c["name"] or c["kind"] not in KINDS:
            raise ValueError("concepts")
        if not 0 < float(c["weight"]) <= 100:
            raise ValueError("weights of concepts")


def _validate_settings(content: dict[str, Any]) -> None:
    """ValueError where a setting or number that other nodes rely on is not what it must be."""
    settings = content["settings"]
    if settings["score"] not in fia.SCORES or not {"size", "halves", "scale"} <= settings.keys():
        raise ValueError("settings")
    for name in ("prompts", "steps", "window"):
        if type(settings[name]) is not int or not 1 <= settings[name] <= LARGEST_COUNT:
            raise ValueError("settings")
    numbers = [content["ceiling"], settings["r1"], settings["cfg"]]
    for peaks in content["peaks"]:
        numbers += peaks
    for number in numbers:
        if type(number) not in (int, float) or not 0 <= number < float("inf"):
            raise ValueError("numbers")
    if not 0 < content["ceiling"] <= 1:
        raise ValueError("numbers")
