"""What an edit did: the same prompts and seeds drawn by the model before and after, side by side and in numbers.

Change is told in units of the model itself: 0 is the same picture, 1 as far apart as its pictures of two different prompts from one
noise. Of change in latents and in pixels the verdict believes the larger before it says that nothing happened, and the smaller before it
says that something did.
"""

import itertools
import json
import time
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch

from ..concepts import sentences
from ..errors import UnlearnError
from ..host import batched_sampling, text_encoding, weights
from ..host.architectures import native_size, reads_text
from . import charts, forecast

DEFAULTS = {
    "seed": 7,
    "seeds": 2,
    "kept": 4,
    "steps": 20,
    "cfg": 7.0,
    "size": 0,
    "sampler": "ddim",
    "scheduler": "ddim_uniform",
}
TEMPLATES = {
    "object": ("a photo of a {concept}",),
    "style": ("a painting of a house in the style of {concept}",),
    "explicit": ("a photo of a {concept} person",),
}
MIN_SENTENCE_WORDS = 4  # words from which a line of the keep list is drawn as it stands
# Measured on the sprite world, see tests/host/test_erasure_report.py.
NOTHING = 0.1  # mean change of the forgotten below which the edit did nothing to speak of
DAMAGED = 0.6  # mean change of the kept from which the edit damaged everything
SUFFERS = 0.3  # mean change of the kept from which one should look
REDRAW = 1.0  # seconds between live previews


@dataclass
class Shot:
    """One prompt and seed, drawn twice: latents [c, h, w] float32, pictures [H, W, 3] float32 in [0, 1] and what is shown of them as PIL
    thumbnails, all (before, after), None where not drawn yet; `change` holds its figures by name."""

    name: str
    text: str
    seed: int
    forgotten: bool
    latents: list
    pictures: list
    shown: list
    change: dict


def build_comparisons(clip, concepts, templates=(), kept=4, seeds=(7,)):
    """The Shots of a ConceptSet: every concept in every template (its kind's own when there are none), then `kept` prompts of the keep
    list, filled up with everyday captions; each with every seed. Raises UnlearnError for text the encoder cannot read."""
    for line in templates:
        if "{concept}" not in line:
            raise UnlearnError(
                f"The line '{line}' of 'templates' has no {{concept}} in it; write {{concept}} where the concept goes."
            )
    fill = lambda template, name: (
        text_encoding.locate(clip, text_encoding.fix_article(template, name), name).text
    )
    texts = [
        (c.name, fill(t, c.name), True)
        for c in concepts.concepts
        for t in templates or TEMPLATES[c.kind]
    ]
    usual = (templates or TEMPLATES[concepts.concepts[0].kind])[0]
    for line in concepts.keep[:kept]:
        whole = len(line.split()) >= MIN_SENTENCE_WORDS
        texts.append(
            (
                line,
                text_encoding.locate(clip, "{concept}", line).text if whole else fill(usual, line),
                False,
            )
        )
    names = [n.casefold() for c in concepts.concepts for n in c.names]
    everyday = (s for s in sentences.prior_sentences() if not any(n in s.casefold() for n in names))
    texts += [
        ("everyday", s, False)
        for s in itertools.islice(everyday, max(0, kept - len(concepts.keep)))
    ]
    return [
        Shot(name, text, seed, gone, [None, None], [None, None], [None, None], {})
        for name, text, gone in texts
        for seed in seeds
    ]


def compare(
    before,
    after,
    clip,
    vae,
    concepts,
    templates=(),
    clip_vision=None,
    score_clip=None,
    node_id=None,
    **settings,
):
    """(grid IMAGE, chart IMAGE, report text, metrics dict) of two MODELs; settings as in DEFAULTS; neither model is changed.

    templates: own sentences with {concept}. clip_vision: for CLIP scores; score_clip: the text encoder that goes with it where `clip`
    does not. Cancelling raises within one step. Raises UnlearnError for two models that do not go together, or text that cannot be used.
    """
    settings = {**DEFAULTS, **settings}
    settings["size"] = settings["size"] or native_size(before)
    shape = batched_sampling.latent_shape(before, settings["size"])
    if shape != batched_sampling.latent_shape(after, settings["size"]):
        raise UnlearnError(
            "The inputs 'before' and 'after' are models of different kinds; connect the same model without and with the patch."
        )
    seeds = [(settings["seed"] + i) % 2**64 for i in range(settings["seeds"])]
    shots = build_comparisons(clip, concepts, templates, settings["kept"], seeds)
    live = _Live(shots, before, settings["steps"], node_id)
    positive, negative = batched_sampling.conditioning(
        clip, [s.text for s in shots], settings["size"]
    )
    for when, model in enumerate((before, after)):
        _draw(model, shots, when, positive, negative, shape, settings, live)
        _decode(vae, shots, when, live)
    touched = weight_changes(before, after)
    metrics = measure(shots, touched)
    metrics |= {
        "settings": settings,
        "clip": _clip_scores(shots, clip_vision, score_clip or clip)
        if clip_vision is not None
        else None,
    }
    hits, told = _forecast(before, after, clip, concepts, touched, lambda: live.step(0))
    metrics["forecast"] = [
        {"name": h.name, "survival": h.retention, "asked": h.on_keep_list} for h in hits
    ]
    code, words = verdict(metrics)
    metrics["verdict"] = {
        "code": code,
        "text": words,
        "nothing_below": NOTHING,
        "damaged_from": DAMAGED,
        "suffers_from": SUFFERS,
    }
    metrics["shots"] = [
        {
            "name": s.name,
            "prompt": s.text,
            "seed": s.seed,
            "forgotten": s.forgotten,
            **{k: _number(v) for k, v in s.change.items()},
        }
        for s in shots
    ]
    colour = {
        "worked": charts.GOOD,
        "partly": charts.WARN,
        "side_effects": charts.WARN,
        "changed": charts.NEUTRAL,
    }.get(code, charts.BAD)
    sheet = charts.to_image(charts.pairs_sheet("Erasure Report", words, colour, _sections(shots)))
    return (
        sheet,
        _chart(shots, touched, metrics, hits),
        _text(metrics, touched, words, told),
        metrics,
    )


class _Live:
    """Progress in picture steps, with the sheet of pairs as far as it is drawn as the preview."""

    def __init__(self, shots, model, steps, node_id):
        form = model.get_model_object("latent_format")
        factors = (
            form.latent_rgb_factors,
            form.latent_rgb_factors_bias,
            getattr(form, "latent_rgb_factors_reshape", None),
        )
        self.previewer = (
            latent_preview.Latent2RGBPreviewer(*factors)
            if form.latent_rgb_factors is not None
            else None
        )
        self.shots, self.done, self.last = shots, 0, 0.0
        self.bar = comfy.utils.ProgressBar(2 * len(shots) * steps, node_id=node_id)

    def step(self, n, chosen=(), when=0, x0=None):
        """Counts n picture steps on; shows latents x0 [n, c, h, w] in the places of the shots `chosen`. Raises when cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.done += n
        preview = None
        if time.monotonic() - self.last > REDRAW:
            if x0 is not None and self.previewer is not None:
                for i, x in zip(chosen, x0, strict=True):
                    self.shots[i].shown[when] = charts.thumbnail(
                        self.previewer.decode_latent_to_preview(torch.nan_to_num(x[None]))
                    )
            sheet = charts.pairs_sheet(
                "Erasure Report", "Drawing ...", charts.NEUTRAL, _sections(self.shots)
            )
            preview, self.last = ("JPEG", sheet, 1280), time.monotonic()
        self.bar.update_absolute(self.done, preview=preview)


def _draw(model, shots, when, positive, negative, shape, settings, live):
    """Samples all shots with one MODEL, in batches that shrink when memory runs out; the noise is that of KSampler with the shot's seed."""
    at, b = 0, batched_sampling.LARGEST_BATCH
    while at < len(shots):
        chosen = list(range(at, min(at + b, len(shots))))
        noise = torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(shots[i].seed))
                for i in chosen
            ]
        )
        rows = [
            [c[chosen], {k: v[chosen] if torch.is_tensor(v) else v for k, v in more.items()}]
            for c, more in positive
        ]
        seen = [0]

        def callback(step, x0, x, total, chosen=chosen, seen=seen):
            seen[0] += len(chosen)
            live.step(len(chosen), chosen, when, x0)

        latents, how = (
            None,
            (settings["steps"], settings["cfg"], settings["sampler"], settings["scheduler"]),
        )
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            latents = comfy.sample.sample(
                model,
                noise,
                *how,
                rows,
                negative,
                torch.zeros_like(noise),
                callback=callback,
                disable_pbar=True,
                seed=settings["seed"],
            )
        except Exception as error:
            comfy.model_management.raise_non_oom(error)
            if len(chosen) == 1:
                raise
        if latents is None:  # outside the handler, which would hold on to what filled the memory
            b, live.done = len(chosen) // 2, live.done - seen[0]
            comfy.model_management.soft_empty_cache()
            continue
        for i, latent in zip(chosen, latents.float().cpu(), strict=True):
            shots[i].latents[when] = latent
        live.step(len(chosen) * settings["steps"] - seen[0])  # samplers that call back less often
        at += len(chosen)


def _decode(vae, shots, when, live):
    for at in range(0, len(shots), batched_sampling.LARGEST_BATCH):
        part = shots[at : at + batched_sampling.LARGEST_BATCH]
        pictures = vae.decode(torch.stack([s.latents[when] for s in part])).float().cpu()
        for shot, picture in zip(part, pictures.view(len(part), *pictures.shape[-3:]), strict=True):
            shot.pictures[when], shot.shown[when] = picture, charts.thumbnail(picture)
        live.step(0)


def _forecast(before, after, clip, concepts, touched, step):
    """(forecast Hits, lines on them): what the change of keys and values does to words that nobody drew; nothing where they are alike."""
    if not any(reads_text(key) for key, *_ in touched["layers"]):
        return [], []
    try:
        hits = forecast.of_models(
            before,
            after,
            clip,
            [n for c in concepts.concepts for n in c.names],
            concepts.keep,
            step,
        )
    except UnlearnError as error:  # the pictures are drawn: they are shown in any case
        return [], [f"No forecast: {error}"]
    return hits, forecast.describe(hits) if hits else []


def weight_changes(before, after):
    """[(weight key, entries that differ, entries in all, relative change)] of the diffusion model's weights, those that differ first read
    as the samplers see them: in full precision with every patch on. Raises UnlearnError for models without a weight in common."""
    have = {
        k: v.numel()
        for k, v in before.model.state_dict().items()
        if k.startswith("diffusion_model.")
    }
    other = after.model.state_dict()
    common = [k for k in have if k in other]
    if not common:
        raise UnlearnError(
            "The inputs 'before' and 'after' have no weight in common; connect the same model without and with the patch."
        )
    if before.model is after.model:  # clones of one model differ by their patches alone
        beside = [weights.bypass_edits(m) for m in (before, after)]
        same = lambda k: (
            [id(p) for p in before.patches.get(k, [])] == [id(p) for p in after.patches.get(k, [])]
            and beside[0].get(k) is beside[1].get(k)
        )
        common = [k for k in common if not same(k)]
    found = []
    for key in common:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if weights.shape(before, key) == weights.shape(after, key):
            a, b = weights.read(before, key), weights.read(after, key)
            differ = int((a != b).sum())
            if differ:
                found.append(
                    (key, differ, a.numel(), float((b - a).norm() / a.norm().clamp_min(1e-12)))
                )
    return {"layers": found, "total": sum(have.values())}


def measure(shots, touched):
    """Metrics of drawn Shots, and the `change` of each filled in: `latent` and `pixels` in units of the model, `absolute` the mean pixel
    difference as a share of white; NaN where the model after gives none."""
    broken = sum(not torch.isfinite(s.latents[1]).all() for s in shots)
    units = {}
    for field, distance in (("latents", _rms), ("pictures", _mean)):
        others = sorted(
            shots, key=lambda s: s.seed
        )  # stable: neighbours share a seed and differ in prompt
        apart = [
            distance(getattr(a, field)[0], getattr(b, field)[0])
            for a, b in itertools.pairwise(others)
            if a.seed == b.seed
        ]
        lone = (
            torch.stack([getattr(s, field)[0] for s in shots]).std() * 2**0.5
        )  # with one prompt only
        units[field] = max(sum(apart) / len(apart) if apart else float(lone), 1e-6)
    for s in shots:
        s.change["latent"] = _rms(*s.latents) / units["latents"]
        s.change["absolute"] = _mean(*s.pictures)
        s.change["pixels"] = s.change["absolute"] / units["pictures"]
    metrics = {
        "unit": {"latent_rms": units["latents"], "pixel_mean": units["pictures"]},
        "broken_pictures": broken,
    }
    for group, gone in (("forgotten", True), ("kept", False)):
        chosen = [s.change for s in shots if s.forgotten == gone]
        metrics[group] = (
            {
                f: _number(sum(c[f] for c in chosen) / len(chosen))
                for f in ("latent", "pixels", "absolute")
            }
            if chosen
            else None
        )
    metrics["concepts"] = [
        {
            "name": name,
            **{
                f: _number(sum(s.change[f] for s in part) / len(part))
                for f in ("latent", "pixels", "absolute")
            },
        }
        for name in dict.fromkeys(s.name for s in shots if s.forgotten)
        for part in [[s for s in shots if s.forgotten and s.name == name]]
    ]
    differ, total = sum(n for _, n, *_ in touched["layers"]), touched["total"]
    layers = [
        {"key": key, "differ": n, "of": size, "relative_change": change}
        for key, n, size, change in touched["layers"]
    ]
    return metrics | {
        "weights": {"touched": differ, "total": total, "share": differ / total, "layers": layers}
    }


def _rms(a, b):
    return float((a - b).square().mean().sqrt())


def _mean(a, b):
    return float((a - b).abs().mean())


def _number(x):
    """A number that JSON knows: None for NaN."""
    return x if not isinstance(x, float) or x == x else None


def verdict(metrics):
    """(code, sentence): did_nothing, damaged, side_effects, partly, worked, or changed where nothing kept was drawn to compare with."""
    w, gone, kept = metrics["weights"], metrics["forgotten"], metrics["kept"]
    if metrics["broken_pictures"]:
        return "damaged", (
            f"It damaged everything: {metrics['broken_pictures']} pictures hold no numbers at all (NaN). Lower the strength, or make the "
            "patch again."
        )
    most, least = max(gone["latent"], gone["pixels"]), min(gone["latent"], gone["pixels"])
    side = min(kept["latent"], kept["pixels"]) if kept else None
    if most == 0 and not w["touched"]:
        return "did_nothing", (
            "It silently did nothing: both models are the same. Connect the model from Apply Unlearn Patch to 'after', and look whether "
            "its strength is 0."
        )
    if side is not None and side >= DAMAGED:
        return "damaged", (
            f"It damaged everything: what should be kept changed by {side:.0%}, forgotten prompts by {least:.0%} (100% is a picture of "
            "something else). Lower the strength, or have the eraser preserve more."
        )
    if most < NOTHING:
        return "did_nothing", (
            f"It silently did nothing to speak of: {w['share']:.2%} of the weights differ, but pictures of what should be forgotten "
            f"changed by {most:.0%} only. Raise the strength, or have the eraser erase more."
        )
    weak = [c["name"] for c in metrics["concepts"] if max(c["latent"], c["pixels"]) < NOTHING]
    told = f"Forgotten prompts changed by {least:.0%}" + (
        f", kept ones by {side:.0%}." if side is not None else "."
    )
    if weak:
        return (
            "partly",
            f"{told} Hardly anything changed for {', '.join(weak[:5])}: erase more, or name it otherwise.",
        )
    if side is None:
        return "changed", f"{told} Nothing kept was drawn to compare with; raise 'kept'."
    if side >= SUFFERS:
        return (
            "side_effects",
            f"{told} Kept things suffer: lower the strength, or name them in the keep list.",
        )
    return (
        "worked",
        f"{told} Look at the pairs: the concept should be gone on the right, and kept things the same.",
    )


def _clip_scores(shots, clip_vision, clip):
    """CLIP scores (100 cos) in the `change` of each shot: `clip_image` of before against after, and of each against the prompt as
    `clip_before`, `clip_after` where the text encoder projects into the vision model's space; returns their means and why not, if not."""
    embedded = []
    for when in (0, 1):
        parts = []
        for at in range(0, len(shots), batched_sampling.LARGEST_BATCH):
            comfy.model_management.throw_exception_if_processing_interrupted()
            pictures = torch.stack(
                [
                    torch.nan_to_num(s.pictures[when])
                    for s in shots[at : at + batched_sampling.LARGEST_BATCH]
                ]
            )
            parts.append(
                clip_vision.encode_image(pictures, crop=True)["image_embeds"].float().cpu()
            )
        embedded.append(torch.nn.functional.normalize(torch.cat(parts), dim=1))
    for s, a, b in zip(shots, *embedded, strict=True):
        s.change["clip_image"] = 100 * float(a @ b)
    said, why = _text_embeddings(clip, [s.text for s in shots], embedded[0].shape[1])
    if said is not None:
        for s, t, a, b in zip(shots, said, *embedded, strict=True):
            s.change |= {"clip_before": 100 * float(a @ t), "clip_after": 100 * float(b @ t)}
    out = {"no_text_score_because": why}
    for group, gone in (("forgotten", True), ("kept", False)):
        chosen = [s.change for s in shots if s.forgotten == gone]
        fields = [
            f for f in ("clip_before", "clip_after", "clip_image") if chosen and f in chosen[0]
        ]
        out[group] = {f: sum(c[f] for c in chosen) / len(chosen) for f in fields}
    return out


def _text_embeddings(clip, texts, width):
    """(normalised [n, width], '') or (None, why the encoder gives none that compare with pictures)."""
    inner = clip.cond_stage_model
    projects = next(
        (
            e
            for name in ("clip_g", "clip_h", "clip_l")
            if (e := getattr(inner, name, None)) is not None
        ),
        None,
    )
    if not getattr(projects, "return_projected_pooled", False):
        return (
            None,
            "the text encoder has no projection to compare with pictures (SD1.x has none); connect 'score_clip'",
        )
    found = {
        t: clip.encode_from_tokens(clip.tokenize(t), return_pooled=True)[1]
        for t in dict.fromkeys(texts)
    }
    pooled = torch.cat([found[t] for t in texts]).float().cpu()
    if pooled.shape[1] != width:
        return (
            None,
            f"the text encoder's space has {pooled.shape[1]} dimensions, that of clip_vision {width}; connect the pair of one CLIP",
        )
    return torch.nn.functional.normalize(pooled, dim=1), ""


def _sections(shots):
    """Sections of the sheet, forgotten first; the judgement is of this pair alone."""
    out = []
    for heading, gone in (
        ("Forgotten: the right one should no longer show it", True),
        ("Kept: both should look the same", False),
    ):
        pairs = []
        for s in (s for s in shots if s.forgotten == gone):
            said, colour = "", charts.NEUTRAL
            if s.change:
                low, high = sorted((s.change["latent"], s.change["pixels"]))
                x = high if gone else low
                said = "broken" if x != x else f"changed {x:.0%}"
                bad, fair = (
                    (x < NOTHING, x < 3 * NOTHING) if gone else (not x < DAMAGED, not x < SUFFERS)
                )
                colour = charts.BAD if bad or x != x else charts.WARN if fair else charts.GOOD
                if "clip_after" in s.change:
                    said += f", CLIP {s.change['clip_before']:.0f} > {s.change['clip_after']:.0f}"
            pairs.append(charts.Pair(s.name, f"{s.text}, seed {s.seed}", *s.shown, said, colour))
        out.append((heading, pairs))
    return out


def _label(key):
    return (
        key.removeprefix("diffusion_model.")
        .removesuffix(".weight")
        .replace("_blocks", "")
        .replace("transformer.", "")
    )


def _chart(shots, touched, metrics, hits=()):
    rows, sections = [], []
    for name, gone in dict.fromkeys((s.name, s.forgotten) for s in shots):
        part = [s.change["pixels"] for s in shots if (s.name, s.forgotten) == (name, gone)]
        x = sum(part) / len(part)
        good, broken = x >= NOTHING if gone else x < SUFFERS, x != x
        rows.append(
            (
                name if gone else f"kept: {name}",
                1 if broken else x,
                "broken" if broken else f"{x:.0%}",
                charts.GOOD if good else charts.BAD,
            )
        )
    sections.append(("Change of pictures (100%: as far apart as two different prompts)", rows[:48]))
    if clip := metrics["clip"]:
        scores = [(g, f, v) for g in ("forgotten", "kept") for f, v in clip[g].items()]
        named = {
            "clip_before": "to the prompt, before",
            "clip_after": "to the prompt, after",
            "clip_image": "before to after",
        }
        sections.append(
            (
                "CLIP score",
                [(f"{g}: {named[f]}", v / 100, f"{v:.1f}", charts.NEUTRAL) for g, f, v in scores],
            )
        )
    if hits:
        sections.append((forecast.TITLE, forecast.bars(hits)))
    layers = [(_label(key), change) for key, _, _, change in touched["layers"]]
    top = max([c for _, c in layers] + [1e-9])
    shown = [(label, c / top, f"{c:.2%}", charts.NEUTRAL) for label, c in layers[:40]]
    more = f", the first 40 of {len(layers)}" if len(layers) > 40 else ""
    sections.append(
        (
            f"Relative change of each layer's weights{more}",
            shown or [("no weight differs", 0, "0%", charts.BAD)],
        )
    )
    return charts.bar_charts("Erasure Report", sections)


def _text(metrics, touched, words, forecast_lines=()):
    w, lines = metrics["weights"], [words]
    for group in ("forgotten", "kept"):
        if m := metrics[group]:
            told = [
                f"{x:.1%}" if x is not None else "no number"
                for x in (m["pixels"], m["latent"], m["absolute"])
            ]
            lines.append(
                f"{group.capitalize()} prompts: pixels {told[0]}, latents {told[1]}, mean pixel difference {told[2]} of white."
            )
    if clip := metrics["clip"]:
        for group in ("forgotten", "kept"):
            c = clip[group]
            if "clip_after" in c:
                lines.append(
                    f"CLIP score of {group} prompts: {c['clip_before']:.1f} before, {c['clip_after']:.1f} after."
                )
            if "clip_image" in c:
                lines.append(
                    f"CLIP similarity of before and after, {group}: {c['clip_image']:.1f} of 100."
                )
        if clip["no_text_score_because"]:
            lines.append(f"No CLIP score against the words: {clip['no_text_score_because']}.")
    lines.append(
        f"{w['touched']:,} of {w['total']:,} weights differ ({w['share']:.2%}), in {len(touched['layers'])} layers."
    )
    if most := max(touched["layers"], key=lambda x: x[3], default=None):
        lines.append(f"Changed most: {_label(most[0])} by {most[3]:.1%}.")
    lines += forecast_lines
    lines.append(
        "A changed picture is not proof that a concept is gone: look at the pairs, and try prompts and seeds of your own."
    )
    return "\n".join(lines)


def as_json(metrics):
    """Metrics as JSON text."""
    return json.dumps(metrics, indent=1, allow_nan=False)
