"""Many prompts sampled together, one denoising step at a time, so that what is measured at a step is final before the next begins."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch

LARGEST_BATCH = 8


class _Together(comfy.samplers.Sampler):
    """A sampler for the host's guider that hands the loaded model to `body(guider, sigmas, model_options)`."""

    def __init__(self, body):
        self.body = body

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        self.body(model_wrap, sigmas, extra_args["model_options"])
        return noise


def latent_shape(model, size):
    """[channels, height, width] of the MODEL's latents for square pictures of `size` pixels."""
    form = model.get_model_object("latent_format")
    side = max(1, size // form.spacial_downscale_ratio)
    return [form.latent_channels, side, side]


def conditioning(clip, texts, size):
    """(positive, negative) CONDITIONING: all texts [n, 77, d] as one batch, and the empty prompt; each text is encoded once."""
    found = {}
    for text in dict.fromkeys([*texts, ""]):
        comfy.model_management.throw_exception_if_processing_interrupted()
        ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        found[text] = states, more.get("pooled_output")

    def batch(chosen):
        states = torch.cat([found[t][0] for t in chosen])
        extra = {"width": size, "height": size}
        if found[chosen[0]][1] is not None:
            extra["pooled_output"] = torch.cat([found[t][1] for t in chosen])
        return [[states, extra]]

    return batch(list(texts)), batch([""])


def _rows(cond, chosen, n):
    """The conditioning of some of a batch of `n` prompts: rows `chosen` of every tensor that has one row per prompt."""
    out = {}
    for name, value in cond["model_conds"].items():
        tensor = value.cond
        per_prompt = torch.is_tensor(tensor) and tensor.shape[:1] == (n,)
        out[name] = value._copy_with(tensor[chosen]) if per_prompt else value
    return {**cond, "model_conds": out}


def _joined(first, second, b):
    """`first`, conditioning of b prompts, and `second`, of one prompt repeated, as one batch of 2 b."""
    out = {}
    for name, value in first["model_conds"].items():
        other = second["model_conds"][name]
        if torch.is_tensor(value.cond):
            parts = (
                value.process_cond(batch_size=b, area=None),
                other.process_cond(batch_size=b, area=None),
            )
            value = value._copy_with(torch.cat([p.cond for p in parts]))
        out[name] = value
    return {**first, "model_conds": out}


def _fitting(model, shape, halves):
    """How many prompts fit in free memory at once."""
    free, b = comfy.model_management.get_free_memory(model.load_device), LARGEST_BATCH
    while b > 1 and model.model.memory_required([b * halves, *shape]) * 1.5 > free:
        b //= 2
    return b


def sample(model, clip, texts, seeds, groups, *, steps, window, cfg, size, watch):
    """Advances all prompts (`texts`, with the noise of `seeds`) through the first `window` of `steps` DDIM steps; returns the number of
    prompts times steps that went through the UNet.

    groups: lists of prompt numbers; at each step one group after the other is run, in batches that shrink when memory runs out.
    watch.begin(guider) once the model is loaded and watch.end() whatever happens; watch.batch(numbers, b) before each UNet call, whose
    batch holds the conditional halves of these prompts first and then, where cfg is not 1, the unconditional ones;
    watch.group(step, g) when group g is through step `step`. Cancelling raises within one UNet call.
    """
    shape, n, halves = latent_shape(model, size), len(texts), 1 if cfg == 1 else 2
    positive, negative = conditioning(clip, texts, size)
    latents = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "normal", steps
    )[: window + 1]
    state = {"b": _fitting(model, shape, halves), "calls": 0}

    def denoised(guider, x, sigma, chosen, options):
        cond = _rows(guider.conds["positive"][0], chosen, n)
        b, both = len(chosen), x
        watch.batch(chosen, b)
        if halves == 2:
            cond, both = _joined(cond, guider.conds["negative"][0], b), torch.cat([x, x])
        out = comfy.samplers.calc_cond_batch(
            guider.inner_model, [[cond]], both, sigma.expand(len(both)), options
        )[0]
        if halves == 1:
            return out
        return comfy.samplers.cfg_function(
            guider.inner_model,
            out[:b],
            out[b:],
            cfg,
            x,
            sigma.expand(b),
            options,
            [cond],
            guider.conds["negative"],
        )

    def body(guider, sigmas, options):
        x = latents.to(sigmas.device)
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], x, torch.zeros_like(x), True)
        try:
            watch.begin(guider)
            for step in range(len(sigmas) - 1):
                for g, group in enumerate(groups):
                    at = 0
                    while at < len(group):
                        comfy.model_management.throw_exception_if_processing_interrupted()
                        chosen = group[at : at + state["b"]]
                        try:
                            x0 = denoised(guider, x[chosen], sigmas[step], chosen, options)
                        except Exception as error:
                            comfy.model_management.raise_non_oom(error)
                            if len(chosen) == 1:
                                raise
                            state["b"] = len(chosen) // 2
                            x0 = None
                        if (
                            x0 is None
                        ):  # outside the handler, which would hold on to what filled the memory
                            comfy.model_management.soft_empty_cache()
                            continue
                        x[chosen] += (
                            (x[chosen] - x0) / sigmas[step] * (sigmas[step + 1] - sigmas[step])
                        )
                        at += len(chosen)
                        state["calls"] += len(chosen)
                    watch.group(step, g)
        finally:
            watch.end()

    room = torch.zeros(
        [state["b"], *shape]
    )  # the host makes room in memory for a batch of this shape
    comfy.sample.sample_custom(
        model, room, cfg, _Together(body), sigmas, positive, negative, room, disable_pbar=True
    )
    return state["calls"]


def predict_from_noise(model, clip, texts, seeds, *, level, size, step=lambda: None):
    """What a MODEL makes of noise alone under each text: predicted pictures x0, [texts, seeds, c * h * w] float32 on the CPU, one UNet call
    for each text and seed, at the noise level `level` (0..1 of the schedule). step: called after each batch."""
    shape, n = latent_shape(model, size), len(texts)
    positive, negative = conditioning(clip, texts, size)
    latents = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    sampling, found = model.get_model_object("model_sampling"), []
    schedule = torch.tensor([sampling.percent_to_sigma(1 - level), 0.0], dtype=torch.float32)

    def body(guider, sigmas, options):
        x, at = latents.to(sigmas.device), 0
        x = guider.inner_model.model_sampling.noise_scaling(
            sigmas[0], x, torch.zeros_like(x), False
        )
        rows = [(t, k) for t in range(n) for k in range(len(seeds))]
        while at < len(rows):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = rows[at : at + b]
            cond = _rows(guider.conds["positive"][0], [t for t, _ in part], n)
            noisy, sigma = x[[k for _, k in part]], sigmas[0].expand(len(part))
            found.append(
                comfy.samplers.calc_cond_batch(guider.inner_model, [[cond]], noisy, sigma, options)[
                    0
                ]
                .float()
                .cpu()
            )
            at += len(part)
            step()

    b = _fitting(model, shape, 1)
    room = torch.zeros([b, *shape])
    comfy.sample.sample_custom(
        model, room, 1.0, _Together(body), schedule, positive, negative, room, disable_pbar=True
    )
    return torch.cat(found).view(n, len(seeds), -1)
