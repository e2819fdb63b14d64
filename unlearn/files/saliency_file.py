"""Saliency maps as safetensors files, and the raw statistics of the score `paper` on the way to a merge."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from ...kernels import fia
from ..concepts.notation import short
from ..errors import UnlearnError
from ..host import folders, weights
from ..types import KINDS, ActivationStats, Concept, Fingerprint, Ranking, SaliencyMap
from ..version import VERSION
from . import safetensors_io

FORMAT = "unlearn-saliency-1"
FOLDER = "unlearn_saliency"
FIELDS = ("indices", "values", "rows", "columns")  # of a Ranking
MOST = 10**6  # of prompts or steps


def models_folder():
    """Where saliency files live: `unlearn_saliency` in ComfyUI's models folder, or where extra_model_paths says."""
    return folders.folders(FOLDER)[0]


def listed():
    """Names of the saliency files there are."""
    return [n for n in folders.listed(FOLDER) if ".raw/" not in n.replace(os.sep, "/")]


def save(path, found):
    """Writes a SaliencyMap to a .safetensors file, whole or not at all."""
    tensors, gathered = {}, {}
    for c, parts in enumerate(found.rankings):
        for i, r in enumerate(parts):
            for field in FIELDS:
                tensors[f"{c}.{i}.{field}"] = getattr(r, field)
    for key, sample in found.fingerprint.samples.items():
        tensors[f"fingerprint.{key}"] = sample
    for g, (name, part) in enumerate(found.gathered.items()):
        gathered[name] = {"prompts": part.prompts, "folders": part.folders}
        for field in ("mean", "m2"):
            if getattr(part, field) is not None:
                tensors[f"gathered.{g}.{field}"] = getattr(part, field)
    said = {
        "concepts": [asdict(c) for c in found.concepts],
        "layers": found.layers,
        "peaks": [[r.peak for r in parts] for parts in found.rankings],
        "ceiling": found.ceiling,
        "settings": found.settings,
        "gathered": gathered,
    }
    safetensors_io.write(
        path, tensors, {"format": FORMAT, "version": VERSION, "saliency": json.dumps(said)}
    )


def load(path):
    """The SaliencyMap of a file; raises UnlearnError in one sentence when it is damaged or not one of ours."""
    name = Path(path).name
    try:
        with safetensors_io.opened(path) as (metadata, header, read):
            if metadata.get("format") != FORMAT:
                raise UnlearnError(
                    f"The file '{name}' is not a saliency map of this version; save one with Save Concept Saliency."
                )
            said = json.loads(metadata["saliency"])
            _look(said, header)
            have = {k: read(k) for k in header}
        for key, t in have.items():
            if t.is_floating_point() and not torch.isfinite(t).all():
                raise ValueError(f"not a number in '{short(key)}'")
        layers = tuple((k, c_out, c_in) for k, c_out, c_in in said["layers"])
        concepts = tuple(Concept(**{**c, "aliases": tuple(c["aliases"])}) for c in said["concepts"])
        rankings = []
        for c, peaks in enumerate(said["peaks"]):
            parts = []
            for i, ((_, c_out, c_in), peak) in enumerate(zip(layers, peaks, strict=True)):
                r = Ranking(*(have[f"{c}.{i}.{field}"] for field in FIELDS), float(peak))
                if (
                    len(r.indices)
                    and not 0 <= int(r.indices.min()) <= int(r.indices.max()) < c_out * c_in
                ):
                    raise ValueError(f"ranking {c}.{i}")
                parts.append(r)
            rankings.append(tuple(parts))
        gathered = {
            group: ActivationStats(
                tuple(p["prompts"]),
                have.get(f"gathered.{g}.mean"),
                have.get(f"gathered.{g}.m2"),
                tuple(p["folders"]),
            )
            for g, (group, p) in enumerate(said["gathered"].items())
        }
        samples = {
            k.removeprefix("fingerprint."): v
            for k, v in have.items()
            if k.startswith("fingerprint.")
        }
        return SaliencyMap(
            concepts,
            layers,
            tuple(rankings),
            float(said["ceiling"]),
            Fingerprint(samples),
            said["settings"],
            gathered,
        )
    except UnlearnError:
        raise
    except safetensors_io.DAMAGE as error:
        raise UnlearnError(
            f"The file '{name}' is damaged ({safetensors_io.reason(error)}); save it again with Save Concept Saliency."
        ) from error


def _look(said, header):
    """What a file says of itself, against the dtypes and shapes of its header; ValueError at the first thing that is wrong."""
    _settings(said)
    width, wanted = 0, {}
    for key, c_out, c_in in said["layers"]:
        if (
            not safetensors_io.KEY.fullmatch(key)
            or type(c_out) is not int
            or type(c_in) is not int
            or min(c_out, c_in) < 1
            or c_out * c_in > 2**31
        ):
            raise ValueError("layers")
        width += c_in
        wanted[f"fingerprint.{key}"] = ("F32", (min(weights.SAMPLES, c_out * c_in),))
    if len(said["peaks"]) != len(said["concepts"]) or any(
        len(p) != len(said["layers"]) for p in said["peaks"]
    ):
        raise ValueError("rankings")
    for c in range(len(said["concepts"])):
        for i, (_, c_out, c_in) in enumerate(said["layers"]):
            (k,) = header[f"{c}.{i}.indices"][1]
            shapes = (("I32", (k,)), ("F16", (k,)), ("F32", (c_out,)), ("F32", (c_in,)))
            wanted |= {f"{c}.{i}.{field}": what for field, what in zip(FIELDS, shapes, strict=True)}
    groups = {c["name"] for c in said["concepts"]} | {f"base {c['kind']}" for c in said["concepts"]}
    if not groups <= said["gathered"].keys():
        raise ValueError("groups of prompts")
    for g, (name, part) in enumerate(said["gathered"].items()):
        if not all(
            isinstance(part[k], list) and all(isinstance(x, str) for x in part[k])
            for k in ("prompts", "folders")
        ):
            raise ValueError("prompts")
        if (
            said["settings"]["score"] == "wanda"
        ):  # the statistics of `paper` lie in files of their own
            kept = ("mean", "m2") if name.startswith("base ") else ("mean",)
            wanted |= {
                f"gathered.{g}.{field}": ("F32", (said["settings"]["window"], width))
                for field in kept
            }
    if wrong := next((k for k in {**wanted, **header} if header.get(k) != wanted.get(k)), None):
        raise ValueError(f"tensor '{short(wrong)}'")


def _settings(said):
    """The concepts, numbers and settings that other nodes rely on; ValueError where one is not what it must be."""
    for c in said["concepts"]:
        if (
            not c["name"]
            or not all(
                isinstance(x, str) for x in (c["name"], c["kind"], c["superclass"], *c["aliases"])
            )
            or c["kind"] not in KINDS
        ):
            raise ValueError("concepts")
        if not 0 < float(c["weight"]) <= 100:
            raise ValueError("weights of concepts")
    s = said["settings"]
    if s["score"] not in fia.SCORES or any(
        type(s[k]) is not int or not 1 <= s[k] <= MOST for k in ("prompts", "steps", "window")
    ):
        raise ValueError("settings")
    if not {"size", "halves", "scale"} <= s.keys():
        raise ValueError("settings")
    numbers = [
        said["ceiling"],
        s["r1"],
        s["cfg"],
        *(peak for peaks in said["peaks"] for peak in peaks),
    ]
    if (
        not all(type(x) in (int, float) and 0 <= x < float("inf") for x in numbers)
        or not 0 < said["ceiling"] <= 1
    ):
        raise ValueError("numbers")


class RawWriter:
    """Writes each group's moments at each step (score `paper`): `step_GROUP.safetensors` in a folder of its own, overwritten.

    Raises UnlearnError when the disk has no room for `nbytes`.
    """

    def __init__(self, path, layers, names, window):
        self.path, self.names = Path(path), names
        arrays = sum(1 + name.startswith("base ") for name in names)
        self.nbytes = 4 * window * arrays * sum(a * b for _, a, b in layers)
        self.path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path).free
        if free < self.nbytes * 1.02:
            raise UnlearnError(
                f"The raw statistics need {self.nbytes / 2**30:.1f} GB and the disk has {free / 2**30:.1f} GB; leave 'raw_statistics' "
                "empty, or use fewer concepts or steps."
            )

    def write(self, step, name, moments):
        tensors = {f"mean.{i}": m.mean.cpu() for i, m in enumerate(moments)}
        tensors |= {f"m2.{i}": m.m2.cpu() for i, m in enumerate(moments) if m.m2 is not None}
        safetensors_io.write(self.path / _raw_name(step, name), tensors, {"n": str(moments[0].n)})


def _raw_name(step, name):
    return f"{step:03}_{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.safetensors"


def read_raw(folders, name, step, layer):
    """The Moments of one layer at one step, merged over raw folders (names under the models folder)."""
    whole = None
    for folder in folders:
        path = folders.inside(models_folder(), folder) / _raw_name(step, name)
        if not path.exists():
            raise UnlearnError(
                f"The raw statistics '{folder}' of '{name}' are not in the models folder {FOLDER}; copy them there."
            )
        try:
            with safetensors_io.opened(path) as (metadata, header, read):
                mean, m2 = (
                    read(f"mean.{layer}"),
                    read(f"m2.{layer}") if f"m2.{layer}" in header else None,
                )
                part = fia.RunningMoments(mean, m2, int(metadata["n"]))
            if (
                part.n < 1
                or mean.dim() != 2
                or (m2 is not None and m2.shape != mean.shape)
                or not torch.isfinite(mean).all()
            ):
                raise ValueError("numbers")
        except UnlearnError:
            raise
        except safetensors_io.DAMAGE as error:
            raise UnlearnError(
                f"The raw statistics '{path.name}' in '{folder}' are damaged ({safetensors_io.reason(error)}); measure them again."
            ) from error
        whole = part if whole is None else whole.merge(part)
    return whole
