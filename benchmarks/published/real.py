"""What the published protocols share: CSV rows with seeds, the edit, the pictures, the figures.

They run on a real checkpoint, and nothing is downloaded. Pictures are in OUT/plain and OUT/EDIT,
and each carries how it was made. So a run that was cut off, or one with more rows, draws only what
is missing.

Prompts are read literally (parentheses do not emphasise) and end at the text encoder's 77th token,
as in the published pipelines. The noise of a row comes from its seed on the CPU. Those pipelines
sampled by PNDM, which ComfyUI does not have; the default here is 50 steps of DDIM.
"""

import argparse
import csv
import functools
import hashlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, PngImagePlugin

from testbed import pack

pack.load(cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()))
scapre = pack.module("unlearn.closed_form.solve")
saliency = pack.module("unlearn.pruning.collection")
masks = pack.module("unlearn.pruning.masks")
lockstep = pack.module("unlearn.host.batched_sampling")
patching = pack.module("unlearn.host.patching")
patch_files = pack.module("unlearn.files.patch_file")
files = pack.module("unlearn.concepts.lists")
text = pack.module("unlearn.concepts.notation")
UnlearnError = pack.module("unlearn.errors").UnlearnError

STATES = (
    Path(os.environ.get("UNLEARN_BASE", ".host/base")) / "temp" / "states"
)  # what text encoders said, kept between runs
PUBLISHED = Path(__file__).parents[1] / "results" / "published.json"
SEEDS = ("evaluation_seed", "sd_seed", "seed")  # what the published files call it
TOKENS = 77
MARK = "unlearn"  # the entry of a picture file that says how it was made


class Row(NamedTuple):
    number: int
    prompt: str
    seed: int
    group: str


class Loaded(NamedTuple):
    model: object
    clip: object
    vae: object
    stamp: str


def parser(doc, data, forget=""):
    """The arguments that all protocols have.

    data: what the folder must hold, in words; forget: what is erased if nothing is named.
    """
    p = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="an SD1.x, SD2.x or SDXL checkpoint with its text encoder and VAE",
    )
    p.add_argument("--data", required=True, type=Path, help=f"a folder with {data}")
    p.add_argument("--judge-weights", type=Path, help="file with the judge's weights")
    p.add_argument(
        "--limit",
        type=int,
        default=0,
        help="at most so many rows of every class, artist or file; 0 for all",
    )
    p.add_argument(
        "--edit",
        default="scapre",
        help="scapre, fia, patch:FILE (a saved patch), or none to look at the plain model alone",
    )
    p.add_argument(
        "--forget",
        default="",
        help=f"names with commas between them, or a concept list (.txt, .csv); {forget}",
    )
    p.add_argument("--keep", default="", help="names with commas between them")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the edit, as in --set variant=released-A",
    )
    p.add_argument(
        "--out",
        type=Path,
        help="where pictures, patches and results go (default: output/BENCHMARK)",
    )
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--cfg", type=float, default=7.5)
    p.add_argument(
        "--size", type=int, default=0, help="pixels; 0 for the size that the model was made for"
    )
    p.add_argument("--sampler", default="ddim")
    p.add_argument("--scheduler", default="ddim_uniform")
    p.add_argument("--batch", type=int, default=4, help="pictures drawn at once")
    p.add_argument("--json", action="store_true", help="end with one JSON object")
    return p


def told(body):
    """Runs a benchmark; what cannot be done ends in one sentence on stderr and exit code 1."""
    try:
        with torch.inference_mode():
            body()
    except UnlearnError as error:
        raise SystemExit(str(error)) from None


def log(line):
    print(line, file=sys.stderr, flush=True)


def need(module, package=None):
    """A module of an optional package; raises UnlearnError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnlearnError(
            f"The package '{package or module}' is not installed ({error}); install it with: "
            ".venv/bin/python -m pip install -r benchmarks/requirements.txt"
        ) from None


def weights_file(path, what, option="--judge-weights"):
    """The path of a judge's weights; raises UnlearnError when none is named or it is not there."""
    if path is None:
        raise UnlearnError(
            f"'{option}' is not given; name the file of {what} (nothing is downloaded here)."
        )
    if not path.is_file():
        raise UnlearnError(f"'{option}' names {path}, which is not there; name the file of {what}.")
    return path


def csv_of(folder, name):
    """The file NAME.csv of a data folder, or its only .csv; otherwise raises UnlearnError."""
    if not folder.is_dir():
        raise UnlearnError(
            f"'--data' is {folder}, which is no folder; name the one that holds {name}.csv."
        )
    found = (
        [folder / f"{name}.csv"]
        if (folder / f"{name}.csv").is_file()
        else sorted(folder.glob("*.csv"))
    )
    if len(found) != 1:
        raise UnlearnError(
            f"'--data' {folder} holds {len(found)} .csv files and none named {name}.csv; put the "
            f"prompts there as {name}.csv."
        )
    return found[0]


def rows(path, groups=(), limit=0):
    """Rows of a prompt file, at most `limit` of each group.

    The group is the first of the columns `groups` that exists, else ''. Raises UnlearnError that
    names a missing column, or the row whose seed is not a number.
    """
    with open(path, encoding="utf-8-sig", newline="") as f:
        read = csv.DictReader(f)
        columns = [c.strip() for c in read.fieldnames or ()]
        read.fieldnames = columns
        said = list(read)
    seed = next((c for c in SEEDS if c in columns), None)
    group = next((c for c in groups if c in columns), None)
    missing = (
        "prompt"
        if "prompt" not in columns
        else SEEDS[0]
        if seed is None
        else groups[0]
        if groups and group is None
        else None
    )
    if missing or not said:
        what = f"no column '{missing}' (it has: {', '.join(columns)})" if missing else "no rows"
        raise UnlearnError(f"The prompts in {path.name} have {what}; use the benchmark's own file.")
    numbers = [row.get("case_number") or "" for row in said]
    own = all(n.isdigit() for n in numbers) and len(set(numbers)) == len(numbers)
    found, many = [], {}
    for i, row in enumerate(said):
        name = " ".join((row[group] or "").split()) if group else ""
        many[name] = many.get(name, 0) + 1
        if limit and many[name] > limit:
            continue
        try:
            found.append(
                Row(int(numbers[i]) if own else i, row["prompt"], int(float(row[seed])), name)
            )
        except (TypeError, ValueError, OverflowError):
            raise UnlearnError(
                f"Row {i + 1} of {path.name} has the seed {row[seed]!r}; write a whole number."
            ) from None
    return found


def load(path):
    """MODEL, CLIP and VAE of a checkpoint, by ComfyUI's own loader, and a stamp of its file."""
    import comfy.sd

    if not path.is_file():
        raise UnlearnError(
            f"'--checkpoint' names {path}, which is not there; name a checkpoint file."
        )
    try:
        found = comfy.sd.load_checkpoint_guess_config(str(path))[:3]
    except Exception as error:  # whatever a loader says of a file that is none
        raise UnlearnError(
            f"'--checkpoint' {path.name} is no checkpoint that ComfyUI reads "
            f"({type(error).__name__}); name another."
        ) from error
    if any(part is None for part in found):
        raise UnlearnError(
            f"'--checkpoint' {path.name} has no text encoder or no VAE in it; name a whole "
            "checkpoint."
        )
    return Loaded(*found, stamp(path))


def stamp(path):
    """A short digest of a large file: its size, and its first and last MB."""
    h, size = hashlib.blake2b(digest_size=8), path.stat().st_size
    with open(path, "rb") as f:
        h.update(f"{size}".encode() + f.read(2**20))
        f.seek(max(0, size - 2**20))
        h.update(f.read(2**20))
    return h.hexdigest()


def concepts(given, names=(), kind="object"):
    """The ConceptSet that a run erases: '--forget' where given, else `names`; '--keep' is added."""
    keep = "\n".join(n.strip() for n in given.keep.split(","))
    if given.forget.endswith((".txt", ".csv")):
        return text.with_keep_lines(files.read(Path(given.forget), kind), keep)
    return text.parse(
        "\n".join(n.strip() for n in given.forget.split(",")) if given.forget else "\n".join(names),
        keep,
        kind,
    )


def settings(given):
    """'--set' as a dict; a value is JSON where it can be read as such, else text."""
    found = {}
    for part in given.set:
        name, equals, value = part.partition("=")
        if not equals:
            raise UnlearnError(
                f"'--set {part}' has no '='; write NAME=VALUE, as in --set erase=100."
            )
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def patch_for(loaded, wanted, given, out):
    """The UnlearnPatch that '--edit' asks for, or None for the unedited model.

    It is saved in `out`, and the next run reads it again.
    """
    how, more = given.edit, settings(given)
    if how == "none":
        return None
    if how.startswith("patch:"):
        path = Path(how.removeprefix("patch:"))
        if not path.is_file():
            raise UnlearnError(
                f"'--edit' names the patch {path}, which is not there; name a file made by Save "
                "Unlearn Patch."
            )
        return patch_files.load(path)[0]
    if how not in ("scapre", "fia"):
        raise UnlearnError(f"'--edit' is '{how}'; use scapre, fia, patch:FILE or none.")
    if wanted is None:
        raise UnlearnError(
            "'--forget' is empty, and this benchmark erases nothing of its own; name what to "
            "forget, or use --edit patch:FILE."
        )
    about = json.dumps(
        [how, more, text.format_set(wanted), loaded.stamp, pack.module("unlearn.version").VERSION],
        sort_keys=True,
    )
    path = out / f"{how}_{hashlib.blake2b(about.encode(), digest_size=6).hexdigest()}.safetensors"
    if path.is_file():
        log(f"the edit is in {path}")
        return patch_files.load(path)[0]
    start = time.time()
    if how == "scapre":
        chosen = scapre.SolveSettings.of(**more)
        patch, _, report = scapre.solve(loaded.model, loaded.clip, wanted, chosen, folder=STATES)
    else:
        known = {**saliency.DEFAULTS, **masks.DEFAULTS}
        if wrong := [k for k in more if k not in known]:
            raise UnlearnError(f"FIA has no setting '{wrong[0]}'; it has {', '.join(known)}.")

        def part(names):
            return {k: v for k, v in more.items() if k in names}

        found, report = saliency.collect(
            loaded.model, loaded.clip, wanted, **part(saliency.DEFAULTS)
        )
        patch, _, fused = masks.fuse([found], **part(masks.DEFAULTS))
        report += "\n" + fused
    log(f"{report}\nThe edit took {time.time() - start:.1f} s and is kept in {path}")
    patch_files.save(path, patch)
    return patch


def literal(prompt):
    """A prompt as the published pipelines read it: parentheses without ComfyUI's emphasis."""
    return prompt.replace("(", "\\(").replace(")", "\\)")


@functools.lru_cache(maxsize=256)
def encoded(clip, prompt):
    """(token states [1, 77, d], pooled [1, d] or None) of a prompt, cut at the 77th token.

    They are cached, because published files repeat their prompts.
    """
    ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(literal(prompt)))
    return states[:, :TOKENS], more.get("pooled_output")


def conditioning(clip, prompts, size):
    """(positive, negative) CONDITIONING of a batch of prompts, and of the empty prompt."""

    def batch(chosen):
        states, pooled = zip(*(encoded(clip, prompt) for prompt in chosen), strict=True)
        extra = {"width": size, "height": size}  # read by SDXL
        return [
            [
                torch.cat(states),
                extra if pooled[0] is None else {**extra, "pooled_output": torch.cat(pooled)},
            ]
        ]

    return batch(prompts), batch([""])


def draw(loaded, model, chosen, folder, given, patch=None):
    """Paths of the pictures of all rows, drawn by ComfyUI's own sampler.

    A picture that is in the folder and was made with the same settings stays.
    """
    import comfy.sample

    size = given.size or pack.module("unlearn.host.architectures").native_size(model)
    shape = lockstep.latent_shape(model, size)
    how = {
        "checkpoint": loaded.stamp,
        "patch": patch.digest if patch is not None else "",
        "size": size,
    }
    how |= {k: getattr(given, k) for k in ("steps", "cfg", "sampler", "scheduler")}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row.number:05}.png" for row in chosen]
    about = [json.dumps({"prompt": row.prompt, "seed": row.seed, **how}) for row in chosen]
    todo = [i for i, path in enumerate(paths) if made_as(path) != about[i]]
    log(f"{folder.name}: {len(todo)} pictures to draw, {len(paths) - len(todo)} are there")
    start = said = time.time()
    for at in range(0, len(todo), given.batch):
        part = todo[at : at + given.batch]
        noise = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(chosen[i].seed))
                for i in part
            ]
        )
        positive, negative = conditioning(loaded.clip, [chosen[i].prompt for i in part], size)
        latents = comfy.sample.sample(
            model,
            noise,
            given.steps,
            given.cfg,
            given.sampler,
            given.scheduler,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=chosen[part[0]].seed,
        )
        pictures = loaded.vae.decode(latents).float().cpu()
        for i, picture in zip(part, pictures.view(len(part), *pictures.shape[-3:]), strict=True):
            keep(paths[i], picture, about[i])
        if time.time() - said > 20:
            said, done = time.time(), at + len(part)
            log(
                f"{folder.name}: {done} of {len(todo)}, about "
                f"{(said - start) / done * (len(todo) - done) / 60:.0f} min left"
            )
    return paths


def made_as(path):
    """What a picture file says of how it was made; None where there is none, or a damaged one."""
    try:
        with Image.open(path) as picture:
            return picture.text.get(MARK)
    except (OSError, AttributeError, SyntaxError):
        return None


def keep(path, picture, about):
    """Writes a picture [H, W, 3] in [0, 1] whole or not at all."""
    info, part = PngImagePlugin.PngInfo(), path.with_suffix(f".part{os.getpid()}")
    info.add_text(MARK, about)
    Image.fromarray((torch.nan_to_num(picture).clamp(0, 1) * 255).round().byte().numpy()).save(
        part, "PNG", pnginfo=info
    )
    os.replace(part, path)


def out_folder(given, name):
    out = given.out or Path("output") / name
    out.mkdir(parents=True, exist_ok=True)
    return out


def pictures(loaded, chosen, wanted, given, out, name=""):
    """(paths before, paths after or None, patch or None) of the rows' pictures."""
    patch = patch_for(loaded, wanted, given, out)
    before = draw(loaded, loaded.model, chosen, out / name / "plain", given)
    if patch is None:
        return before, None, None
    edited, warning = patching.apply(loaded.model, patch)
    if warning:
        log(f"WARNING: {warning}")
    folder = (
        Path(given.edit.removeprefix("patch:")).stem
        if given.edit.startswith("patch:")
        else given.edit
    )
    return before, draw(loaded, edited, chosen, out / name / f"edit_{folder}", given, patch), patch


def published(name):
    """The tables of one benchmark as published: list of {source, known, rows, columns}."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))[name]["tables"]


def beside(ours, name):
    """Prints the results, row -> (before, after), and each published table with such a row."""
    own = {k.casefold(): v for k, v in ours.items()}
    tables = [t for t in published(name) if any(r.casefold() in own for r in t["rows"])]
    for table in tables or [{"source": "", "rows": list(ours), "columns": {}}]:
        lines = dict.fromkeys([*ours, *(r for r in table["rows"] if r.casefold() not in own)])
        place = {r.casefold(): i for i, r in enumerate(table["rows"])}
        print(
            f"\nour measurement | as published: {table['source']}"
            if table["source"]
            else "\nour measurement"
        )
        print(
            f"{'':22}{'before':>9}{'after':>9} |"
            + "".join(f"{c[:11]:>12}" for c in table["columns"])
        )
        for line in lines:
            mine = "".join(f"{number(x):>9}" for x in own.get(line.casefold(), (None, None)))
            theirs = [
                column[place[line.casefold()]] if line.casefold() in place else None
                for column in table["columns"].values()
            ]
            print(f"{line[:21]:22}{mine} |" + "".join(f"{number(x):>12}" for x in theirs))


def number(x):
    return "-" if x is None else f"{x:.2f}" if isinstance(x, float) else f"{x}"


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def finish(name, given, loaded, patches, found, out, count):
    """Writes results, settings and published tables; prints one JSON object where asked for."""
    result = {
        "benchmark": name,
        "checkpoint": {"file": given.checkpoint.name, "stamp": loaded.stamp},
        "edit": given.edit,
        "provenance": [p for patch in patches if patch is not None for p in patch.provenance],
        "sampling": {
            k: getattr(given, k) for k in ("steps", "cfg", "size", "sampler", "scheduler")
        },
        "rows": count,
        "limit": given.limit,
        "measured": found,
        "as_published": published(name),
    }
    edit = (
        Path(given.edit.removeprefix("patch:")).stem
        if given.edit.startswith("patch:")
        else given.edit
    )
    path = out / f"results_{edit}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    log(f"results: {path}")
    if given.json:
        print(json.dumps(result, default=str))
