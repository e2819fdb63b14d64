"""Saliency maps as safetensors files, and the raw statistics of the score `paper` on the way to a merge."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...kernels import fia
from ..errors import UnlearnError
from ..types import Concept, Fingerprint, Gathered, Ranking, SaliencyMap
from ..version import VERSION
from . import files
from .files import inside

FORMAT = "unlearn-saliency-1"
FOLDER = "unlearn_saliency"


def models_folder():
    """Where saliency files live: `unlearn_saliency` in ComfyUI's models folder, or where extra_model_paths says."""
    return files.folders(FOLDER)[0]


def listed():
    """Names of the saliency files there are."""
    return [n for n in files.listed(FOLDER) if ".raw/" not in n.replace(os.sep, "/")]


def save(path, found):
    """Writes a SaliencyMap to a .safetensors file, whole or not at all."""
    tensors, gathered = {}, {}
    for c, parts in enumerate(found.rankings):
        for i, r in enumerate(parts):
            for field in ("indices", "values", "rows", "columns"):
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
    files.write(path, tensors, {"format": FORMAT, "version": VERSION, "saliency": json.dumps(said)})


def load(path):
    """The SaliencyMap of a file; raises UnlearnError when it is damaged or not one of ours."""
    name = Path(path).name
    try:
        with safe_open(path, "pt") as f:
            metadata = f.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UnlearnError(f"The file '{name}' is not a saliency map of this version; save one with Save Concept Saliency.")
            said, have = json.loads(metadata["saliency"]), {k: f.get_tensor(k) for k in f.keys()}
        layers = tuple((str(k), int(a), int(b)) for k, a, b in said["layers"])
        concepts = tuple(Concept(**{**c, "aliases": tuple(c["aliases"])}) for c in said["concepts"])
        rankings = []
        for c, peaks in enumerate(said["peaks"]):
            parts = []
            for i, ((_, c_out, c_in), peak) in enumerate(zip(layers, peaks, strict=True)):
                r = Ranking(*(have[f"{c}.{i}.{field}"] for field in ("indices", "values", "rows", "columns")), float(peak))
                good = r.indices.dtype == torch.int32 and r.indices.shape == r.values.shape
                good = good and r.rows.shape == (c_out,) and r.columns.shape == (c_in,)
                if not good or (len(r.indices) and not 0 <= int(r.indices.min()) <= int(r.indices.max()) < c_out * c_in):
                    raise ValueError(f"ranking {c}.{i}")
                parts.append(r)
            rankings.append(tuple(parts))
        gathered = {
            group: Gathered(tuple(p["prompts"]), have.get(f"gathered.{g}.mean"), have.get(f"gathered.{g}.m2"), tuple(p["folders"]))
            for g, (group, p) in enumerate(said["gathered"].items())
        }
        samples = {k.removeprefix("fingerprint."): v for k, v in have.items() if k.startswith("fingerprint.")}
        if len(rankings) != len(concepts) or set(samples) != {k for k, *_ in layers}:
            raise ValueError("incomplete")
        return SaliencyMap(concepts, layers, tuple(rankings), float(said["ceiling"]), Fingerprint(samples), said["settings"], gathered)
    except UnlearnError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnlearnError(f"The file '{name}' is damaged ({type(error).__name__}); save it again with Save Concept Saliency.") from error


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
        save_file(tensors, self.path / _raw_name(step, name), {"n": str(moments[0].n)})


def _raw_name(step, name):
    return f"{step:03}_{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.safetensors"


def read_raw(folders, name, step, layer):
    """The Moments of one layer at one step, merged over raw folders (names under the models folder)."""
    whole = None
    for folder in folders:
        path = inside(models_folder(), folder) / _raw_name(step, name)
        if not path.exists():
            raise UnlearnError(f"The raw statistics '{folder}' of '{name}' are not in the models folder {FOLDER}; copy them there.")
        with safe_open(path, "pt") as f:
            m2 = f.get_tensor(f"m2.{layer}") if f"m2.{layer}" in f.keys() else None
            part = fia.Moments(f.get_tensor(f"mean.{layer}"), m2, int(f.metadata()["n"]))
        whole = part if whole is None else whole.merge(part)
    return whole
