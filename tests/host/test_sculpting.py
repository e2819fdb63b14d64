"""DynamicMaskTrainer in a real ComfyUI on very small UNets of every kind.

What it changes, what it refuses, and how it stops.
"""

import functools
import gc
import hashlib
import math
import weakref
from types import SimpleNamespace

import pytest
import torch

from testbed import device, pack, shapes

training = pack.module("unlearn.sculpting.train")
architectures = pack.module("unlearn.host.architectures")
networks = pack.module("unlearn.host.training_network")
plans = pack.module("unlearn.sculpting.plan")
rounds = pack.module("unlearn.sculpting.trainer")
saved_run = pack.module("unlearn.sculpting.saved_run")
settings_of = pack.module("unlearn.sculpting.settings")
teachers = pack.module("unlearn.sculpting.teacher")
training_data = pack.module("unlearn.sculpting.training_data")
tuning = pack.module("unlearn.sculpting.tuning")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
memory = pack.module("unlearn.host.memory")
memory_need = pack.module("unlearn.sculpting.memory_need")
progress = pack.module("unlearn.host.progress")
text = pack.module("unlearn.concepts.notation")
nodes = pack.module("nodes")
UnlearnError = pack.module("unlearn.errors").UnlearnError

SMALL = dict(
    steps=4,
    warmup=2,
    refresh=2,
    pictures=2,
    captions=2,
    sampling_steps=2,
    cfg=3.0,
    size=64,
    batch=2,
    held=2,
    learning_rate=1e-3,
)
CONCEPTS = text.parse("fox -> animal", "cat\nhouse")
TWO = text.parse("fox -> animal\nsword -> tool", "cat")
UNET = {
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
}
UNET |= {**shapes.SHARED, "model_channels": 32, "transformer_depth_middle": 1}
KINDS = {
    "SD1.5": ("SD15", {**UNET, "context_dim": 768, "num_heads": 4}),
    "SD2 v": (
        "SD20",
        {**UNET, "context_dim": 1024, "num_head_channels": 16, "use_linear_in_transformer": True},
    ),
    "SDXL": (
        "SDXL",
        {**UNET, "context_dim": 2048, "num_head_channels": 16, "use_linear_in_transformer": True}
        | {"adm_in_channels": 2816, "num_classes": "sequential"},
    ),
}


@functools.cache
def tokenizer():
    import comfy.sd1_clip

    return comfy.sd1_clip.SD1Tokenizer()


class TextEncoder:
    """The real tokenizer and made-up states.

    Each token has a seeded vector; they are mixed along the sentence, as a causal encoder does.
    """

    def __init__(self, width):
        self.tokenizer = tokenizer()
        self.table = torch.randn(49408, 64, generator=torch.Generator().manual_seed(1))
        self.out = torch.randn(64, width, generator=torch.Generator().manual_seed(2)) / 8

    def tokenize(self, words, return_word_ids=False):
        return self.tokenizer.tokenize_with_weights(words, return_word_ids)

    def encode_from_tokens(self, tokens):
        x = self.table[torch.tensor([[t[0] for t in chunk] for chunk in tokens["l"]])]
        mixed = x + 0.5 * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return (mixed @ self.out).flatten(0, 1)[None]

    def encode_from_tokens_scheduled(self, tokens):
        states = self.encode_from_tokens(tokens)
        return [[states, {"pooled_output": states[:, 5, :1280].contiguous()}]]


def unet(kind="SD1.5", dtype=torch.float32, cast=None):
    """A MODEL of a very small UNet with random weights, made in inference mode as by the host."""
    import comfy.supported_models

    name, config = KINDS[kind]
    config = getattr(comfy.supported_models, name)(config)
    config.set_inference_dtype(dtype, cast)
    velocity = torch.cat(
        [torch.ones(500), -torch.ones(500)]
    )  # what the host tells a v-prediction SD2 by
    model = config.get_model({"output_blocks.11.1.transformer_blocks.0.norm1.bias": velocity}, "")
    g = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.weight.copy_(
                torch.randn(module.weight.shape, generator=g) / module.weight[0].numel() ** 0.5
            )
            if module.bias is not None:
                module.bias.zero_()
        elif getattr(module, "weight", None) is not None:
            module.weight.fill_(1)
            module.bias.zero_()
    return device.patcher(model)


@pytest.fixture(autouse=True)
def _few_measurements(monkeypatch):
    monkeypatch.setattr(tuning, "MEASURED_PREDICTIONS", 2)


@pytest.fixture(scope="module")
def small():
    pack.load()
    with torch.inference_mode():
        return unet(), TextEncoder(768)


def digest(model):
    h = hashlib.sha256()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def clean(model):
    """No hook, weight function or gradient is left on a MODEL; inference mode is on as before."""
    for module in model.model.modules():
        assert (
            not module._forward_hooks
            and not module._forward_pre_hooks
            and not getattr(module, "weight_function", [])
        )
    assert not any(p.requires_grad for p in model.model.parameters()) and not model.patches
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()


def train(small, concepts=CONCEPTS, earlier=None, images=None, vae=None, resume="", **more):
    settings = settings_of.TrainingSettings(**{**SMALL, **more})
    inputs = training.TrainingInputs(earlier, images, vae, None, resume)
    return training.train(*small, concepts, settings, inputs)


def network(model, clip, texts=("a fox", "an animal", ""), **more):
    keys = [layer.key for layer in networks.layers(model)]
    return networks.Network(
        model, keys, networks.conditioning(model, clip, texts, 64, (4, 8, 8)), **more
    )


def trainer_of(model, clip, concepts=CONCEPTS, checkpointing=False, **more):
    """A Trainer before its first round."""
    settings = settings_of.TrainingSettings(**{**SMALL, **more})
    plan = plans.build_plan(clip, concepts, captions=2)
    net = network(model, clip, plan.texts, checkpointing=checkpointing)
    data = training_data.TrainingData(net, plan, settings, (4, 8, 8))
    return rounds.Trainer(net, data, settings)


def teacher_of(trainer):
    """The first rows that a round's student follows."""
    pool = teachers.TeacherPool(
        trainer.network, trainer.data, trainer.settings, trainer.round, trainer.batch_size
    )
    pool.prepare(0)
    return pool


def merged(model, patch, key):
    """The weight a patch gives, in float32."""
    w = weights.read(model, key)
    for k, edit in patch.edits:
        w = w + edit.change(w, 1.0) if k == key else w
    return w


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_predicts_what_the_host_does(kind):
    import comfy.model_management
    import comfy.samplers

    model, clip = unet(kind), TextEncoder(KINDS[kind][1]["context_dim"])
    assert model.model.model_type.name == ("V_PREDICTION" if kind == "SD2 v" else "EPS")
    with torch.inference_mode(False), torch.enable_grad():
        x, sigma = (
            torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
            torch.tensor([0.3, 2.0, 9.0]),
        )
        net = network(model, clip)
        got = net.sampling.calculate_denoised(
            sigma, net.predict(net.student, x, sigma, [0, 1, 2]), x
        )
        assert got.requires_grad
    comfy.model_management.load_models_gpu([model])
    model.model.current_patcher = model
    for i, words in enumerate(net.texts):
        ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(words))
        cond = {
            "cross_attn": states,
            "model_conds": {},
            "pooled_output": more["pooled_output"],
            "width": 64,
            "height": 64,
            "uuid": i,
        }
        conds = comfy.samplers.encode_model_conds(
            model.model.extra_conds, [cond], x[:1], x.device, "positive"
        )
        want = comfy.samplers.calc_cond_batch(
            model.model, [conds], x[i : i + 1], sigma[i : i + 1], model.model_options
        )[0]
        assert torch.allclose(got[i : i + 1].detach(), want, atol=1e-4), words


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_what_denoises(kind):
    model, clip = unet(kind), TextEncoder(KINDS[kind][1]["context_dim"])
    with torch.inference_mode(False):
        net = network(model, clip)
        latents, noise = (
            torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
        )
        sigma = net.levels([0.1, 0.5, 0.9])
        assert torch.all(sigma[:-1] > sigma[1:])
        x = net.noised(latents, noise, sigma)
        answer = net.denoising_target(latents, x, sigma)
        assert torch.allclose(net.sampling.calculate_denoised(sigma, answer, x), latents, atol=1e-3)
        if kind != "SD2 v":
            assert torch.allclose(answer, noise, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", settings_of.VARIANTS)
def test_every_kind_of_unet_trains(kind, variant):
    model, clip = unet(kind), TextEncoder(KINDS[kind][1]["context_dim"])
    before = digest(model)
    patch, losses, picture, report = train((model, clip), TWO, variant=variant)
    assert digest(model) == before
    clean(model)
    assert (
        len(patch.edits) == len(networks.layers(model))
        and len(losses["loss"]) == 2 * SMALL["steps"]
    )
    assert set(losses) == {"loss", "overwrite", "align"} | (
        {"distil"} if variant != "released" else set()
    ) | ({"replay"} if variant == "replay" else set())
    assert (
        all(math.isfinite(v) for v in losses["loss"])
        and picture.shape[0] == 1
        and "Next:" in report
    )
    assert patching.apply(model, patch)[1] == ""


def test_only_weights_that_were_in_a_mask_move(small, monkeypatch):
    trainers, real = [], training.Trainer

    def make(*args):
        trainers.append(real(*args))
        return trainers[0]

    monkeypatch.setattr(training, "Trainer", make)
    patch, *_ = train(small, density=0.1, turnover=0.5)
    (trainer,) = trainers
    net = trainer.network
    for key, touched in zip(net.chosen, trainer.touched, strict=True):
        start, now = weights.read(small[0], key), net.trainable[key].detach()
        assert torch.equal(now[~touched], start[~touched])
        assert torch.all(now[touched] != start[touched])
        assert 0.1 <= touched.float().mean() < 0.25
        edit = dict(patch.edits)[key]
        assert edit.weights[1] is not None  # so little is stored sparsely
        assert torch.allclose(merged(small[0], patch, key), now, atol=2e-6)
    assert all(int(m.sum()) == max(1, int(0.1 * m.numel())) for m in trainer.masks)
    assert trainer.mask_turnover and all(0 < c <= 0.5 for c in trainer.mask_turnover)


def test_nothing_moves_during_the_warm_up(small, monkeypatch):
    seen, real = [], rounds.Trainer._warm_up

    def spy(self, *args):
        real(self, *args)
        seen.append(
            [
                torch.equal(p.detach(), weights.read(small[0], k))
                for k, p in self.network.trainable.items()
            ]
        )

    monkeypatch.setattr(rounds.Trainer, "_warm_up", spy)
    train(small, warmup=3)
    assert len(seen) == 3 and all(map(all, seen))


def test_the_same_seed_gives_the_same_patch(small):
    one, two, other = train(small)[0], train(small)[0], train(small, seed=1)[0]
    assert one == two and one != other


def test_latents_are_drawn_once(small, monkeypatch):
    train(small, seed=5)
    monkeypatch.setattr(networks.Network, "draw", lambda *a: pytest.fail("drew again"))
    train(small, seed=5, learning_rate=2e-3)


@pytest.mark.parametrize("at", [3, 40, 150, 250])
def test_cancel_changes_nothing_and_the_next_run_works(small, monkeypatch, at):
    import comfy.model_management as mm

    model, n, real = small[0], [0], networks.Network.predict
    before = digest(model)
    training_data._cache.clear()

    def stop(*args):
        n[0] += 1
        if n[0] == at // 10:
            mm.interrupt_current_processing()
        return real(*args)

    monkeypatch.setattr(networks.Network, "predict", stop)
    if at < 10:
        mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        train(small)
    assert digest(model) == before
    clean(model)
    monkeypatch.setattr(networks.Network, "predict", real)
    assert train(small)[0].edits


def interrupted(monkeypatch, number, step):
    """Makes training be cancelled in a step of a round; returns what undoes this."""
    import comfy.model_management as mm

    real = rounds.Trainer._backward

    def stop(self, *args):
        if (self.round, self.step) == (number, step):
            mm.interrupt_current_processing()
        return real(self, *args)

    monkeypatch.setattr(rounds.Trainer, "_backward", stop)
    return lambda: monkeypatch.setattr(rounds.Trainer, "_backward", real)


@pytest.mark.parametrize("resist", [0, 2])
@pytest.mark.parametrize("number,step", [(0, 1), (0, 4), (1, 0), (1, 5)])
def test_a_run_that_was_cut_off_goes_on_to_the_bit(
    small, monkeypatch, tmp_path, number, step, resist
):
    import comfy.model_management as mm

    monkeypatch.setattr(tuning, "MEASURE_EVERY", 1)  # so that the rate changes, too
    monkeypatch.setattr(saved_run, "path", lambda name: tmp_path / f"{name}.safetensors")
    whole = train(small, TWO, resist=resist)
    again = interrupted(monkeypatch, number, step)
    with pytest.raises(mm.InterruptProcessingException):
        train(small, TWO, resume="run", resist=resist)
    again()
    assert (tmp_path / "run.safetensors").is_file()
    with pytest.raises(UnlearnError, match="another model, other concepts or other settings"):
        train(small, TWO, resume="run", resist=resist, learning_rate=3e-3)
    resumed = train(small, TWO, resume="run", resist=resist)
    assert resumed[0] == whole[0] and resumed[1] == whole[1]
    assert not list(tmp_path.iterdir())


def searched(small, resist, concepts=CONCEPTS):
    """(Trainer after one step's search on a concept, latents, noise levels, their noise)."""
    trainer = trainer_of(*small, concepts, resist=resist)
    trainer.open_round(0)
    trainer.step = SMALL["warmup"]
    net, task = trainer.network, trainer.data.plan.tasks[0]
    latents, own, _ = trainer._random_pictures(task)
    sigma = teachers.spread_levels(net, len(latents), trainer.generator)
    x = net.noised(latents, teachers.noise_like(latents, trainer.generator), sigma)
    trainer.adversary.restart_some(0, own)
    return trainer, x, sigma, net.denoising_target(latents, x, sigma)


def test_the_search_finds_states_that_draw_the_concept_better(small):
    with torch.inference_mode(False), torch.enable_grad():
        trainer, x, sigma, noise = searched(small, resist=3)
        net, adversary = trainer.network, trainer.adversary
        weights_before = [w.detach().clone() for w in trainer.weights]
        start = adversary.states.clone()

        def loss():
            said = net.predict(net.student, x, sigma, adversary.texts, adversary.states)
            return float((said - noise).square().sum().detach())

        before = loss()
        assert before == pytest.approx(
            float((net.predict(net.student, x, sigma, adversary.texts) - noise).square().sum())
        )
        for _ in range(4):
            adversary.search(x, sigma, noise, trainer.batch_size)
        assert loss() < before
        assert torch.equal(adversary.states[:, 0], start[:, 0])  # every text begins alike
        assert not torch.equal(adversary.states[:, 1:], start[:, 1:])
        assert all(map(torch.equal, trainer.weights, weights_before))
        assert all(w.grad is None for w in trainer.weights)


def test_the_search_does_not_depend_on_how_many_slots_fit(small):
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for most in (10**9, 1):
            trainer, *given = searched(small, resist=2)
            trainer.adversary.search(*given, memory.BatchSize(most))
            found.append(trainer.adversary.states)
    # The sign of a gradient of nearly nothing may be rounding.
    assert float(torch.isclose(*found, rtol=1e-4, atol=1e-5).float().mean()) > 0.98


def test_slots_of_the_search_begin_again_in_turn(small, monkeypatch):
    monkeypatch.setattr(tuning, "SEARCHED_FOR", 4)
    with torch.inference_mode(False), torch.enable_grad():
        adversary = searched(small, resist=1)[0].adversary
        again = []
        monkeypatch.setattr(type(adversary), "restart", lambda self, slot, text: again.append(slot))
        for step in range(9):
            again.append("/")
            adversary.restart_some(step, [1, 1])
    assert again == ["/", 0, 1, "/", "/", 1, "/", "/", 0, "/", "/", 1, "/", "/", 0]


def test_what_was_found_is_overwritten_too_and_the_round_takes_all_its_steps(small):
    patch, losses, _, report = train(small, resist=2, stop_at=0.99)
    plain_patch, plain, *_ = train(small, stop_at=0.99)
    assert len(losses["loss"]) == SMALL["steps"] > 0
    assert {"resist", "lead away"} <= set(losses) and not {"resist", "lead away"} & set(plain)
    assert patch != plain_patch


def test_pictures_of_the_concept_are_led_away_at_little_noise_under_every_other_text(small):
    with torch.inference_mode(False), torch.enable_grad():
        trainer = searched(small, resist=1)[0]
        net, task = trainer.network, trainer.data.plan.tasks[0]
        # One picture, so that it is known which one is led away.
        trainer.data.own[task.concept.name] = latents = trainer.data.own[task.concept.name][:1]
        searched_rows, others = trainer._led_away(task, trainer.adversary)
        mean = trainer.data.other[task.concept.name].mean(0, keepdim=True)
        own_ids = {net.text_id[text] for text, _ in task.pairs}
        assert not own_ids & set(others.text_ids) and set(searched_rows.text_ids) <= own_ids
        assert others.states is None and torch.equal(searched_rows.states, trainer.adversary.states)
        middle = float(net.levels([1 - tuning.LED_AWAY_BELOW])[0])
        assert float(others.sigma.max()) <= middle < float(searched_rows.sigma.max())
        for rows in (searched_rows, others):
            (term,) = rows.terms
            assert term.weight == task.concept.weight / len(rows.x)
            away = net.sampling.calculate_denoised(rows.sigma, term.target, rows.x) - latents
            length, whole = (way.square().mean((1, 2, 3)).sqrt() for way in (away, mean - latents))
            most = torch.minimum(tuning.LED_AWAY_BY * rows.sigma, whole)
            assert torch.allclose(length, most, rtol=1e-2)
            along = torch.cosine_similarity(away.flatten(1), (mean - latents).flatten(1))
            assert float(along.min()) > 0.999


def test_concepts_forgotten_earlier_stay_led_away(small, monkeypatch):
    monkeypatch.setattr(tuning, "SEARCHED_FOR", 4)
    with torch.inference_mode(False), torch.enable_grad():
        trainer = searched(small, 1, TWO)[0]
        first, second = trainer.data.plan.tasks
        assert trainer._led_tasks(first, trainer.adversary) == [first] * SMALL["batch"]
        trainer.round = 1
        led = trainer._led_tasks(second, trainer.adversary)
        assert led == [second, first] * (SMALL["batch"] // 2)
        searched_rows, _ = trainer._led_away(second, trainer.adversary)
        own = [
            {trainer.network.text_id[text] for text, _ in task.pairs} for task in (second, first)
        ]
        for slot, text_id in enumerate(searched_rows.text_ids):
            assert text_id in own[slot % 2]


@pytest.mark.parametrize("resist", [0, 1])
def test_only_a_teacher_that_led_them_away_says_how_pictures_of_earlier_concepts_stay(
    small, resist
):
    trainer = trainer_of(*small, TWO, resist=resist)
    groups, data = trainer.data.retained_groups(1), trainer.data
    given = data.retained_rows(groups, 200, torch.Generator().manual_seed(0))
    first = data.plan.tasks[0]
    shown, beside = data.own[first.concept.name], data.other[first.concept.name]
    own = {data.network.text_id[text] for text, _ in first.pairs}
    seen = set()
    for latent, text_id, earlier in zip(*given, strict=True):
        if any(torch.equal(latent, picture) for picture in beside):
            continue  # of the superclass, which stays in any case
        pictured = any(torch.equal(latent, picture) for picture in shown)
        assert bool(earlier) == (text_id in own or bool(resist and pictured))
        seen.add((text_id in own, pictured))
    assert len(seen) == 4


def test_training_files_of_older_versions_are_still_of_the_same_run(small, monkeypatch):
    """They were marked without the settings that these versions did not have."""
    marked = []
    monkeypatch.setattr(saved_run.json, "dumps", lambda d, **_: marked.append(d[0]) or "")
    for more in ({}, {"resist": 1}, {"kept_pictures": 2}):
        saved_run.identity(trainer_of(*small, **more))
    assert [{"resist", "kept_pictures"} & {*found} for found in marked] == [
        set(),
        {"resist"},
        {"kept_pictures"},
    ]


def test_a_damaged_training_file_is_named(small, monkeypatch, tmp_path):
    monkeypatch.setattr(saved_run, "path", lambda name: tmp_path / f"{name}.safetensors")
    (tmp_path / "run.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UnlearnError, match="'run.safetensors' cannot be read"):
        train(small, resume="run")


def test_cancel_can_keep_what_was_learned(small, monkeypatch):
    again = interrupted(monkeypatch, 1, 4)
    patch, losses, _, report = train(small, TWO, on_cancel="keep")
    again()
    assert (
        patch.edits
        and len(losses["loss"]) == SMALL["steps"] + 2
        and "WARNING: Cancelled" in report
        and "1 of 2 concepts" in report
    )


def test_training_goes_on_from_an_earlier_patch(small):
    model = small[0]
    first = train(small)[0]
    patch, _, _, report = train(small, text.parse("sword -> tool"), first)
    assert patch.edits[: len(first.edits)] == first.edits and len(patch.provenance) == 2
    assert "fox (earlier)" in report
    key = patch.edits[0][0]
    assert not torch.equal(merged(model, patch, key), merged(model, first, key))
    # an edit of other weights than those trained is part of what training sees
    prune = pack.module("unlearn.host.adapters").Prune
    other = next(k for k in model.model.state_dict() if k.endswith("ff.net.2.weight"))
    shape = weights.shape(model, other)
    edit = prune.of(torch.arange(shape[1]) < shape[1] // 2, *shape, "column")
    pruned = type(first)(((other, edit),), weights.fingerprint(model, [other]), ())
    with torch.inference_mode(False):
        net = networks.Network(model, [key], networks.Conditioning((), {}), pruned)
        name = other.removeprefix("diffusion_model.").removesuffix(".weight")
        assert (
            net.student.get_submodule(name).weight[:, 0].abs().max() == 0
            and net.reference.get_submodule(name).weight[:, 0].any()
        )


def test_a_lora_on_the_model_is_trained_with(small):
    import comfy.weight_adapter

    model, clip = small
    key = networks.layers(model)[0].key
    d_out, d_in = weights.shape(model, key)
    g = torch.Generator().manual_seed(0)
    up, down = torch.randn(d_out, 2, generator=g) * 0.1, torch.randn(2, d_in, generator=g)
    with_lora = model.clone()
    with_lora.add_patches(
        {key: comfy.weight_adapter.LoRAAdapter(set(), (up, down, None, None, None, None))}
    )
    with torch.inference_mode(False):
        net = network(with_lora, clip)
        assert torch.allclose(
            net.trainable[key].detach(), weights.read(model, key) + up @ down, atol=1e-5
        )
    patch = train((with_lora, clip))[0]
    patched = patching.apply(with_lora, patch)[0]
    change = dict(patch.edits)[key].change(torch.zeros(d_out, d_in), 1.0)
    assert torch.allclose(
        weights.read(patched, key), weights.read(model, key) + up @ down + change, atol=1e-5
    )
    assert train(small)[0] != patch


@pytest.mark.parametrize(
    "dtype,cast",
    [(torch.float16, torch.float32), (torch.bfloat16, None), (torch.float8_e4m3fn, torch.float32)],
)
def test_models_of_any_float_type_train(small, dtype, cast):
    model = unet(dtype=dtype, cast=cast)
    before = digest(model)
    patch, losses, *_ = train((model, small[1]))
    assert digest(model) == before and patch.edits and all(map(math.isfinite, losses["loss"]))
    clean(model)


@pytest.mark.parametrize("wanted", ["bf16", "fp16"])
def test_half_precision_activations_learn_the_same(small, wanted):
    full, half = train(small)[0], train(small, precision=wanted)[0]
    a, b = (
        torch.cat([e.change(torch.zeros(e.shape), 1.0).flatten() for _, e in p.edits])
        for p in (full, half)
    )
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.7


def test_gradients_do_not_depend_on_how_the_batch_is_cut_or_recomputed(small):
    model, clip = small
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for chunk, checkpointing in ((10**9, False), (1, False), (3, False), (10**9, True)):
            trainer = trainer_of(model, clip, checkpointing=checkpointing)
            trainer.open_round(0)
            trainer.batch_size.rows = chunk
            trainer.step = SMALL["warmup"]
            task = trainer.data.plan.tasks[0]
            rows = trainer._step_rows(task, teacher_of(trainer), True)
            terms = trainer._backward(rounds.Batch(rows), task)
            found.append((torch.cat([w.grad.flatten() for w in trainer.weights]), terms))
    for grads, terms in found[1:]:
        assert torch.allclose(grads, found[0][0], rtol=1e-3, atol=1e-7)
        assert terms == pytest.approx(found[0][1], rel=1e-3, abs=1e-9)


def test_running_out_of_memory_makes_the_batch_smaller(small, monkeypatch):
    whole, real, sizes = train(small), networks.Network.predict, []

    def full(self, branch, x, *args):
        sizes.append(len(x))
        if len(x) > 4:
            raise torch.OutOfMemoryError("full")
        return real(self, branch, x, *args)

    monkeypatch.setattr(networks.Network, "predict", full)
    parts = train(small)
    assert max(sizes) > 4 and parts[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-2)


def test_drawing_starts_fewer_pictures_at_once_when_memory_runs_out(small, monkeypatch):
    with torch.inference_mode(False), torch.no_grad():
        net = network(*small)

        def draw():
            how = networks.DrawSettings((4, 8, 8), 2, 3.0)
            return net.draw(net.reference, [0, 1, 0], [2, 2, 2], [5, 6, 7], how)

        whole, real, sizes = draw(), networks.Network.predict, []

        def full(self, branch, x, *args):
            sizes.append(len(x))
            if len(x) > room:
                raise torch.OutOfMemoryError("full")
            return real(self, branch, x, *args)

        monkeypatch.setattr(networks.Network, "predict", full)
        room = 2
        torch.testing.assert_close(draw(), whole, rtol=1e-4, atol=1e-4)
        assert sizes == [
            6,
            2,
            2,
            2,
            2,
            2,
            2,
        ]  # two steps each of one picture, in both halves of guidance
        room = 1
        with pytest.raises(UnlearnError, match="ran out on a single picture"):
            draw()


def test_gradients_are_taken_in_parts_when_memory_runs_out(small, monkeypatch):
    whole, real, chunks = train(small), rounds.Trainer._set_gradients, []

    def full(self, batch, rows):
        chunks.append(rows)
        if chunks[-1] > room:
            raise torch.OutOfMemoryError("full")
        return real(self, batch, rows)

    monkeypatch.setattr(rounds.Trainer, "_set_gradients", full)
    room = 3
    parts = train(small)
    assert max(chunks) > 3 >= chunks[-1] and parts[1]["loss"] == pytest.approx(
        whole[1]["loss"], rel=1e-2
    )
    room = 0
    with pytest.raises(UnlearnError, match="single picture; turn on 'checkpointing'"):
        train(small)
    clean(small[0])


def test_infinite_gradients_end_training_unless_float16_scaled_them():
    done = []
    scaler = SimpleNamespace(
        is_enabled=lambda: scaled,
        unscale_=lambda o: done.append("unscale"),
        update=lambda: done.append("update"),
    )
    infinite = SimpleNamespace(grad=torch.tensor([math.inf]))
    trainer = SimpleNamespace(scaler=scaler, optimizer=None, weights=[infinite])
    scaled = True
    assert rounds.Trainer._gather_importance(trainer) is False and done == ["unscale", "update"]
    scaled = False
    with pytest.raises(UnlearnError, match="infinite gradients and nothing was changed"):
        rounds.Trainer._gather_importance(trainer)


def rates(monkeypatch):
    """A list that fills with (learning rate scale, learning rate) of every step."""
    seen, real = [], rounds.Trainer._move

    def move(self, step, phase):
        real(self, step, phase)
        rate = self.optimizer.param_groups[0]["lr"] / self.settings.learning_rate
        seen.append((phase.lr_scale, rate))

    monkeypatch.setattr(rounds.Trainer, "_move", move)
    monkeypatch.setattr(tuning, "RAMP_STEPS", 1)
    return seen


def measured(monkeypatch, values, every=2):
    """Makes the measurements of what is left give these values, one after another."""
    found = iter(values)
    monkeypatch.setattr(rounds.Trainer, "measure", lambda self, name: next(found))
    monkeypatch.setattr(tuning, "MEASURE_EVERY", every)


def test_a_round_cools_down_and_ends_when_the_concept_is_gone(small, monkeypatch):
    monkeypatch.setattr(tuning, "COOLDOWN_SHARE", 0.5)
    monkeypatch.setattr(tuning, "COOLDOWN_LEAST", 1)
    measured(monkeypatch, [0.7, 0.2] + [0.1] * 9)
    seen = rates(monkeypatch)
    _, losses, _, report = train(small, steps=20, stop_at=0.3)
    assert len(losses["loss"]) == 6
    assert "fox: 6 steps, 10% left" in report and "WARNING" not in report
    assert [rate for _, rate in seen] == pytest.approx([1, 1, 1, 1, 1, 0.5])


def test_what_is_gone_is_not_overwritten_further_while_the_rate_falls(small, monkeypatch):
    """At 0.2 of 0.3 it rests, at 0.29 it goes on. A term that rests is drawn as it was last."""
    monkeypatch.setattr(tuning, "COOLDOWN_SHARE", 2.0)
    monkeypatch.setattr(tuning, "COOLDOWN_LEAST", 1)
    monkeypatch.setattr(tuning, "COOLDOWN_AT", 1.0)
    measured(monkeypatch, [0.7, 0.2, 0.1, 0.29] + [0.1] * 9)
    seen, real = [], rounds.Trainer._step_rows

    def rows(self, *args):
        found = real(self, *args)
        seen.append("overwrite" in [term.name for part in found for term in part.terms])
        return found

    monkeypatch.setattr(rounds.Trainer, "_step_rows", rows)
    _, losses, _, _ = train(small, steps=20, stop_at=0.3)
    assert seen == [True] * 4 + [False] * 4 + [True] * 2 + [False] * 2
    overwrite = losses["overwrite"]
    assert overwrite[4:8] == [overwrite[3]] * 4 and overwrite[8] != overwrite[3]


@pytest.mark.parametrize(
    "left,scales", [(1.0, [1, 1.5, 2, 2, 2]), (0.5, [1, 1, 1, 1.5, 2]), (0.26, [1] * 5)]
)
def test_the_rate_rises_while_a_concept_fades_too_slowly(small, monkeypatch, left, scales):
    """To fade evenly to 0.25 in five steps it must be at 0.76, 0.57, 0.44 and 0.33 on the way."""
    monkeypatch.setattr(tuning, "LR_GROWTH", 1.5)
    monkeypatch.setattr(tuning, "LR_SCALE_LIMIT", 2.0)
    measured(monkeypatch, [left] * 9, every=1)
    seen = rates(monkeypatch)
    train(small, steps=5, stop_at=0.25)
    assert [scale for scale, _ in seen] == scales


def test_forgotten_concepts_follow_the_teacher_and_all_else_the_reference(small, monkeypatch):
    with torch.inference_mode(False):
        trainer = trainer_of(*small, TWO, held=8)
        net, plan = trainer.network, trainer.data.plan
        trainer.open_round(1)
        value = {id(net.teacher): 1.0, id(net.reference): 2.0}
        monkeypatch.setattr(
            networks.Network,
            "predict",
            lambda self, branch, x, sigma, ids: torch.full_like(x, value[id(branch)]),
        )
        pool = teacher_of(trainer)
    earlier = {net.text_id[text] for text, _ in plan.tasks[0].pairs}
    wanted = [1.0 if text_id in earlier else 2.0 for text_id in pool.retained.text_ids]
    found = [float(p[0, 0, 0]) for p in pool.retained.prediction]
    assert found == wanted and set(found) == {1.0, 2.0}
    assert (pool.superclass.prediction == 1).all()


def test_gradients_of_keys_and_values_are_projected_in_replay_only(small, monkeypatch):
    seen = []
    monkeypatch.setattr(
        rounds.kernel, "project_gradient", lambda g, a: seen.append((g.shape[1], len(a)))
    )
    train(small, variant="intended")
    assert not seen
    train(small)
    assert seen and set(seen) == {(768, 768)}


def test_what_is_left_starts_at_one(small):
    with torch.inference_mode(False):
        assert trainer_of(*small).measure("fox") == 1.0


def test_checks_are_on_sentences_that_are_not_trained_on(small):
    plan = plans.build_plan(small[1], TWO, captions=200)
    assert len(plan.tasks) == 2
    for task in plan.tasks:
        trained = {text for pair in task.pairs for text in pair}
        assert trained and not trained & {text for pair in task.checks for text in pair}
    assert not any("sword" in t or "fox" in t for t in plan.captions)
    assert len(plan.captions) > 50
    assert [k for k, _ in plan.kept] == [
        "a photo of a cat",
        "a photo of an animal",
        "a photo of a tool",
    ]


def test_training_that_goes_astray_stops(small):
    model = small[0]
    before = digest(model)
    with pytest.raises(
        UnlearnError, match="went astray at step .* lower 'learning_rate'|infinite gradients"
    ):
        train(small, learning_rate=1e4, steps=50)
    assert digest(model) == before
    clean(model)


def test_nan_in_the_text_encoder_or_weights_is_named(small):
    model = small[0].clone()
    key = networks.layers(model)[3].key
    bad = torch.zeros(weights.shape(model, key))
    bad[0, 0] = math.nan
    model.add_patches({key: ("diff", (bad,))})
    with pytest.raises(UnlearnError, match="NaN or infinite numbers in its weight"):
        train((model, small[1]))


def test_quantised_weights_are_refused(small, monkeypatch):
    monkeypatch.setattr(networks, "QuantizedTensor", torch.nn.Parameter)
    with pytest.raises(UnlearnError, match="quantised weights.*ScaPre Solve"):
        train(small)


def test_a_text_encoder_of_another_width_is_refused(small):
    with pytest.raises(UnlearnError, match="width 1024 .* width 768"):
        train((small[0], TextEncoder(1024)))


def test_compiled_models_are_refused(small):
    model = small[0].clone()
    model.model = SimpleNamespace(
        state_dict=small[0].model.state_dict,
        model_config=small[0].model.model_config,
        diffusion_model=SimpleNamespace(),
        **{},
    )
    with pytest.raises(UnlearnError, match="compiled"):
        compiled = SimpleNamespace(
            model=model.model, get_model_object=lambda n: None, load_device="cpu"
        )
        networks.Network(compiled, [], networks.Conditioning((), {}))


@pytest.mark.parametrize(
    "which,matrices",
    [
        ("cross-attention", 4),
        ("keys and values", 2),
        ("all attention", 8),
        ("attention and feed-forward", 9),
    ],
)
def test_trainable_matrices(small, which, matrices):
    found = networks.layers(small[0], which)
    blocks = len(networks.layers(small[0], "keys and values")) // 2
    parts = [architectures.part(layer.key) for layer in found]
    assert len(found) == matrices * blocks
    assert parts == sorted(parts, key=["input", "middle", "output"].index)
    if which != "cross-attention":
        assert len(train(small, trainable=which)[0].edits) == len(found)


def test_a_low_rank_patch_says_what_it_loses(small):
    exact, (patch, *_, report) = train(small)[0], train(small, low_rank=4)
    assert all(e.name == "unlearn_lowrank" and e.weights[0].shape[1] == 4 for _, e in patch.edits)
    a, b = (
        torch.cat([e.change(torch.zeros(e.shape), 1.0).flatten() for _, e in p.edits])
        for p in (exact, patch)
    )
    assert f"{float((a - b).norm() / a.norm()):.0%} of the change is lost" in report


def test_the_artists_own_pictures(small):
    encoded = []
    vae = SimpleNamespace(encode=lambda x: encoded.append(x) or torch.ones(len(x), 4, 8, 8))
    pictures = torch.rand(3, 100, 80, 3)
    assert train(small, CONCEPTS, None, pictures, vae)[0] != train(small)[0]
    assert encoded[0].shape == (3, 64, 64, 3)
    with pytest.raises(UnlearnError, match="'images' needs the input 'vae'"):
        train(small, CONCEPTS, None, pictures)
    with pytest.raises(UnlearnError, match="'images' goes with one concept"):
        train(small, TWO, None, pictures, vae)


def test_previews_are_pictures(small, monkeypatch):
    shown = []
    bar = pack.module("unlearn.host.progress").comfy.utils.ProgressBar
    real = bar.update_absolute
    monkeypatch.setattr(
        bar,
        "update_absolute",
        lambda self, v, total=None, preview=None: shown.append(preview) or real(self, v, total),
    )
    train(small, preview_every=2)
    (kind, picture, side) = next(s for s in shown if s)
    assert kind == "JPEG" and picture.size == (8, 8) and side > 0


def execute(small, **more):
    given = {k: v for k, v in settings_of.DEFAULTS.items() if k not in settings_of.PRESETS["quick"]}
    preset = {
        "preset": "custom",
        **{k: SMALL[k] for k in SMALL if k in settings_of.PRESETS["quick"]},
    }
    given |= {k: v for k, v in SMALL.items() if k not in preset}
    node = type(
        "Running", (nodes.DynamicMaskTrainer,), {"hidden": SimpleNamespace(unique_id=None)}
    )  # as the host makes one
    return node.execute(*small, CONCEPTS, preset=preset, **{**given, **more})


def test_the_stock_loss_graph_draws_the_losses(small):
    from comfy_extras.nodes_train import LossGraphNode

    patch, losses, picture, report = execute(small).args
    assert LossGraphNode.execute(losses, "loss").ui is not None
    assert patch.provenance[0]["method"] == "Sculpting Memory replay" and patch.provenance[0][
        "lines"
    ] == ["object: fox -> animal"]


def test_resist_search_trains_whole_attention_and_feed_forward_layers(small):
    patch, losses, *_ = execute(small, resist_search=True, trainable="keys and values").args
    changed = {part for key, _ in patch.edits for part in ("attn1", "attn2", ".ff.") if part in key}
    assert changed == {"attn1", "attn2", ".ff."}
    assert "lead away" in losses and patch.provenance[0]["settings"]["resist"] > 0
    assert "lead away" not in execute(small).args[1]


def test_what_has_no_text_cross_attention_is_named():
    with pytest.raises(
        UnlearnError, match=r"'model' \(Linear\) has no text cross-attention that this pack knows"
    ):
        networks.layers(SimpleNamespace(model=torch.nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "device, held, able, wanted",
    [
        ("cpu", torch.float16, True, torch.float32),
        ("cuda", torch.float32, True, torch.float32),
        ("cuda", torch.float16, True, torch.bfloat16),
        ("cuda", torch.float16, False, torch.float16),
    ],
)
def test_auto_takes_what_the_device_has(monkeypatch, device, held, able, wanted):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: able)
    model = SimpleNamespace(
        load_device=torch.device(device), model=SimpleNamespace(get_dtype_inference=lambda: held)
    )
    assert networks.activation_dtype(model, "auto") == wanted


@pytest.mark.parametrize("name", ["cfg", "density", "hold"])
def test_settings_must_be_finite(small, name):
    with pytest.raises(UnlearnError, match=f"'{name}' is nan"):
        execute(small, **{name: math.nan})


def test_presets_hold_all_that_custom_asks_for():
    custom = next(
        i for i in nodes.DynamicMaskTrainer.define_schema().inputs if i.id == "preset"
    ).options[-1]
    assert (
        {i.id for i in custom.inputs}
        == set(settings_of.PRESETS["quick"])
        == set(settings_of.PRESETS["thorough"])
    )


def watched_networks(monkeypatch):
    """Weak references to every Network that training makes, and to its trained weights."""
    seen, real = [], networks.Network.__init__

    def remember(self, *args, **more):
        real(self, *args, **more)
        seen.extend([weakref.ref(self), *(weakref.ref(p) for p in self.trainable.values())])

    monkeypatch.setattr(networks.Network, "__init__", remember)
    return seen


def in_use(references):
    return sum(r() is not None for r in references)


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"preview_every": 2}])
def test_the_network_is_gone_when_memory_is_given_back(small, monkeypatch, how):
    import comfy.model_management

    seen, held = watched_networks(monkeypatch), []
    monkeypatch.setattr(
        comfy.model_management, "soft_empty_cache", lambda *a: held.append(in_use(seen))
    )
    gc.disable()  # it must not take a search for cycles
    try:
        train(small, **how)
        assert len(seen) > 1 and held and held[-1] == 0 and not in_use(seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fault", ["astray", "cancelled", "out of memory"])
def test_the_network_is_gone_when_training_fails(small, monkeypatch, fault, checkpointing):
    """Even while the error is still at hand, with the frames that it went through."""
    seen, more = watched_networks(monkeypatch), {"checkpointing": checkpointing}
    if fault == "astray":
        more |= {"learning_rate": 1e4, "steps": 50}
    elif fault == "cancelled":
        interrupted(monkeypatch, 0, 3)
    else:
        monkeypatch.setattr(rounds.Trainer, "_set_gradients", out_of_memory)
    gc.disable()
    try:
        with pytest.raises((UnlearnError, memory.Cancelled, torch.OutOfMemoryError)) as caught:
            train(small, **more)
        assert len(seen) > 1 and not in_use(seen), caught.value
    finally:
        gc.enable()


def out_of_memory(*args, **more):
    raise torch.OutOfMemoryError("full")


def test_too_little_memory_is_refused_before_anything_is_copied(small, monkeypatch):
    told = []
    monkeypatch.setattr(progress, "say", lambda text, node_id: told.append(text))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(networks.weights, "read", lambda *a, **k: pytest.fail("copied a weight"))
    with pytest.raises(UnlearnError, match="even 'keys and values' .*bf16 need .* ScaPre Solve"):
        train(small)
    assert "GB" in told[-1]
    clean(small[0])


def test_what_fits_is_offered(small, monkeypatch):
    """The first change that is enough, with its own need; where every copy counts."""
    monkeypatch.setattr(networks, "_can_share", lambda *a: False)
    settings, whole = settings_of.TrainingSettings(), "cross-attention"
    offers = (
        ("set 'precision' to bf16, which", whole, torch.bfloat16),
        ("set 'trainable' to 'keys and values', which", "keys and values", torch.float32),
        ("set 'trainable' .* and 'precision' to bf16, which", "keys and values", torch.bfloat16),
    )
    needs = [memory_need.weight_bytes(small[0], which, None, kind) for _, which, kind in offers]
    for room in needs:
        said, need = next(
            (offer[0], need) for offer, need in zip(offers, needs, strict=True) if need <= room
        )
        monkeypatch.setattr(memory, "free_bytes", lambda device, room=room: room)
        with pytest.raises(UnlearnError, match=said) as caught:
            memory_need.check_room(small[0], settings, None, torch.float32)
        assert f"needs {need / memory_need.GB:.1f} GB, or free memory" in str(caught.value)
    enough = memory_need.weight_bytes(small[0], whole, None, torch.float32)
    monkeypatch.setattr(memory, "free_bytes", lambda device: enough)
    memory_need.check_room(small[0], settings, None, torch.float32)


def test_measuring_what_is_left_takes_fewer_rows_when_memory_runs_out(small, monkeypatch):
    whole, real, sizes = train(small), networks.Network.predict, []

    def full(self, branch, x, *args):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("full")
        return real(self, branch, x, *args)

    monkeypatch.setattr(networks.Network, "predict", full)
    parts = train(small)
    assert max(sizes) > 2 and parts[1]["loss"] == pytest.approx(whole[1]["loss"], rel=1e-2)


def test_the_probe_of_one_row_is_tried_again_with_emptied_caches(small, monkeypatch):
    real, tried = memory_need._row_cost, []

    def full_at_first(*network_and_shape):
        tried.append(network_and_shape)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("full")
        return real(*network_and_shape)

    monkeypatch.setattr(memory_need, "_row_cost", full_at_first)
    assert train(small)[0].edits and len(tried) == 2


def test_a_single_picture_that_does_not_fit_is_named(small, monkeypatch):
    monkeypatch.setattr(memory_need, "_row_cost", out_of_memory)
    with pytest.raises(UnlearnError, match="one picture of 64 pixels; turn on 'checkpointing'"):
        train(small)
    clean(small[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_that_is_told_is_what_the_copies_take(small, dtype):
    """Tensors of the model itself are shared in float32 and copied in bfloat16."""
    model, clip = small
    keys = [layer.key for layer in networks.layers(model)]
    with torch.inference_mode(False):
        net = network(model, clip, dtype=dtype)
        own = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
        found = {}
        for p in (
            *net.student.parameters(),
            *net.teacher.parameters(),
            *net.reference.parameters(),
        ):
            if p.untyped_storage().data_ptr() not in own:
                found[p.untyped_storage().data_ptr()] = p.untyped_storage().nbytes()
    trained = sum(p.numel() for p in net.trainable.values())
    told = networks.needed_bytes(model, keys, None, dtype)
    # Of the bytes per trained weight four are the weight itself, which exists already.
    assert told - trained * (networks.BYTES_PER_TRAINED_WEIGHT - 4) == sum(found.values())
