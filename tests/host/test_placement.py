"""The whole pack with the model on a second device: no operation mixes devices.

The device is `testbed/far_device.py`. Weights and activations of the model are there, text states
are on the CPU as ComfyUI gives them, and the pack's own tensors are where its code puts them.
"""

import functools

import pytest
import torch

from testbed import far_device, pack, tiny

pack.load()
far_device.register()
adapters = pack.module("unlearn.host.adapters")
aftermath = pack.module("unlearn.closed_form.aftermath")
bypass = pack.module("unlearn.host.bypass")
checkpoint = pack.module("unlearn.host.checkpoint")
collection = pack.module("unlearn.pruning.collection")
comparison = pack.module("unlearn.analysis.comparison")
fia = pack.module("kernels.fia")
forecast = pack.module("unlearn.analysis.forecast")
group_statistics = pack.module("unlearn.pruning.group_statistics")
learned = pack.module("unlearn.sculpting.learned_patch")
lora_file = pack.module("unlearn.files.lora_file")
masks = pack.module("unlearn.pruning.masks")
memory = pack.module("unlearn.host.memory")
merge = pack.module("unlearn.pruning.merge")
network = pack.module("unlearn.host.training_network")
notation = pack.module("unlearn.concepts.notation")
patch_file = pack.module("unlearn.files.patch_file")
patching = pack.module("unlearn.host.patching")
sculpting = pack.module("kernels.sculpting")
settings_of = pack.module("unlearn.sculpting.settings")
solving = pack.module("unlearn.closed_form.solve")
train = pack.module("unlearn.sculpting.train")
trainer = pack.module("unlearn.sculpting.trainer")
tuning = pack.module("unlearn.sculpting.tuning")
types = pack.module("unlearn.types")
variants = pack.module("unlearn.closed_form.variants")
weights = pack.module("unlearn.host.weights")
SIZE = 64
KEYS = "diffusion_model.middle_block.1.transformer_blocks.0."
SALIENCY = {"prompts": 2, "steps": 4, "window": 2, "size": SIZE, "cfg": 3.0}
TRAINING = {"size": SIZE, "steps": 3, "warmup": 2, "refresh": 1, "batch": 1, "held": 2}
TRAINING |= {"pictures": 2, "captions": 2, "sampling_steps": 2, "stop_at": 0.0}


@pytest.fixture(autouse=True)
def _the_device(monkeypatch, tmp_path):
    far_device.set_memory(monkeypatch)
    monkeypatch.setattr(tuning, "MEASURED_PREDICTIONS", 2)
    monkeypatch.setattr(forecast.tuning, "REFERENCE_WORDS", 4)
    monkeypatch.setattr(forecast.tuning, "SUSPECT_WORDS", 4)
    words = pack.module("unlearn.concepts.sentences").prior_words()[:60]
    monkeypatch.setattr(forecast.prior_words.sentences, "prior_words", lambda: words)
    monkeypatch.setattr(solving, "default_folder", lambda: tmp_path)
    monkeypatch.setattr(forecast, "default_folder", lambda: tmp_path)
    monkeypatch.setattr(trainer, "FUSED", (*trainer.FUSED, far_device.NAME))
    monkeypatch.setattr(network, "_sharing", _sharing)


def _sharing(tensor):
    """As in the pack; a tensor of the device has no storage of its own to share."""
    if tensor.device.type == far_device.NAME:
        return far_device.alias(tensor)
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.detach())


def far(kind="SD15"):
    made = tiny.sdxl() if kind == "SDXL" else tiny.model(kind)
    return far_device.patcher(made.model)


def near(kind="SD15"):
    return tiny.sdxl() if kind == "SDXL" else tiny.model(kind)


def clip(kind="SD15"):
    return tiny.sdxl_clip() if kind == "SDXL" else tiny.Clip()


@functools.cache
def concepts():
    return notation.parse("fox -> animal\nstyle: van gogh", "cat\ndog")


def load(model):
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    placed = {p.device.type for p in model.model.parameters()}
    assert placed == {model.load_device.type}
    return model


def same(one, other, tolerance=1e-5):
    """Whether two patches hold the same edits."""
    assert [key for key, _ in one.edits] == [key for key, _ in other.edits]
    for (_, a), (_, b) in zip(one.edits, other.edits, strict=True):
        w = torch.ones(a.shape)
        assert (a.change(w, 1.0) - b.change(w, 1.0)).norm() <= tolerance * a.change(w, 1.0).norm()
    return True


def solve(model, kind="SD15", prior=False, **settings):
    chosen = solving.SolveSettings.of(**settings, prior=prior, glance_size=SIZE)
    return solving.solve(model, clip(kind), concepts(), chosen)


def measure(model, score, forget="cat\nhouse", **more):
    return collection.collect(
        model, tiny.Clip(), notation.parse(forget), score=score, **{**SALIENCY, **more}
    )[0]


def trained(model, inputs=train.NO_INPUTS, **more):
    settings = settings_of.TrainingSettings(**{**TRAINING, **more})
    return train.train(model, tiny.Clip(), notation.parse("fox -> animal", "cat"), settings, inputs)


# --- every method, from start to end --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SD15", "SDXL"])
@pytest.mark.parametrize("name", variants.variants())
def test_closed_form(kind, name):
    """Statistics, session, overshoot, edits, forecast and what is asked of the edited model."""
    expected = solve(near(kind), kind, variant=name)[0]
    with far_device.open():
        patch, picture, _ = solve(far(kind), kind, variant=name)
    assert same(patch, expected) and picture.device.type == "cpu"


def test_closed_form_with_everything_on(monkeypatch):
    settings = {"hard_keep": 0.5, "rounds": 1, "protect": 0.9, "informax": True, "spectral": 1.0}
    monkeypatch.setattr(solving.session.tuning, "PROTECTION_ROUNDS", 1)
    expected = solve(near(), **settings)[0]
    with far_device.open():
        assert same(solve(far(), **settings)[0], expected, 1e-3)


def test_closed_form_with_the_general_prior():
    with far_device.open():
        assert solve(far(), prior=True)[0].edits


def test_a_second_solve_counts_from_before_the_first():
    with far_device.open():
        model = far()
        patched = patching.apply(model, solve(model)[0])[0]
        assert solve(patched)[0].edits


def edit_of(kind, w):
    g = torch.Generator().manual_seed(3)
    if kind == "prune":
        return adapters.Prune.of(torch.rand(w.shape, generator=g) > 0.8, *w.shape)
    if kind == "lowrank":
        up, down = (torch.randn(n, 2, generator=g) for n in w.shape)
        return adapters.LowRank.of(up, down.T)
    dense = torch.randn(w.shape, generator=g)
    if kind == "sparse delta":
        dense = torch.where(torch.rand(w.shape, generator=g) > 0.9, dense, 0)
    return adapters.Delta.of(dense)


@pytest.mark.parametrize("quantised", ["auto", "bypass"])
@pytest.mark.parametrize("kind", ["prune", "lowrank", "delta", "sparse delta"])
def test_every_edit_on_a_loaded_model(kind, quantised):
    keys = [f"{KEYS}attn2.to_k.weight", f"{KEYS}ff.net.2.weight"]

    def answers(model):
        edits = tuple((key, edit_of(kind, weights.read(model, key))) for key in keys)
        patch = types.UnlearnPatch(edits, weights.fingerprint(model, keys))
        patched = load(patching.apply(model, patch, 0.5, quantised=quantised)[0])
        found = []
        for key in keys:
            layer = patched.model.get_submodule(key.removesuffix(".weight"))
            unit = torch.eye(layer.in_features).to(patched.load_device)
            found += [layer(unit).cpu(), weights.read(patched, key, device=patched.load_device)]
        weights.restore(model)
        return torch.cat([x.cpu().flatten() for x in found])

    expected = answers(near())
    with far_device.open():
        assert torch.allclose(answers(far()), expected, atol=1e-5)


@pytest.mark.parametrize("halves", ["conditional", "both"])
@pytest.mark.parametrize("score", fia.SCORES)
def test_saliency_and_masks(score, halves):
    expected = measure(near(), score, halves=halves)
    with far_device.open():
        found = measure(far(), score, halves=halves)
        for granularity in ("connection", "neuron", "row"):
            patch = masks.fuse([found], granularity=granularity, r2=0.05)[0]
            assert same(patch, masks.fuse([expected], granularity=granularity, r2=0.05)[0])
    for one, other in zip(found.rankings, expected.rankings, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.indices.device.type == "cpu" and torch.equal(a.indices, b.indices)


@pytest.mark.parametrize("room", [2**34, 2**20])
def test_paper_statistics_where_there_is_room(monkeypatch, room):
    """With little room on the device they lie in main memory."""
    far_device.set_memory(monkeypatch, far=room)
    monkeypatch.setattr(memory, "free_bytes", lambda d: room if d.type != "cpu" else 2**34)
    expected = measure(near(), "paper")
    with far_device.open():
        found = measure(far(), "paper")
    # Batches are smaller with less room, which rounds a little differently.
    a, b = (set(m.rankings[0][0].indices.tolist()) for m in (found, expected))
    assert len(a & b) > 0.99 * len(a)


def test_saliency_of_parts_is_merged(tmp_path):
    with far_device.open():
        model = far()
        parts = [
            measure(model, "wanda", "cat", prompts=1, first=first, steps=2, window=1)
            for first in (0, 1)
        ]
        assert merge.merge(parts, model).rankings


@pytest.mark.parametrize("variant", settings_of.VARIANTS)
def test_training_with_mask_refreshes(variant):
    expected = trained(near(), variant=variant)
    with far_device.open():
        found = trained(far(), variant=variant)
    assert len(found.patch.edits) == len(expected.patch.edits) > 0
    assert found.patch.edits[0][1].weights[0].device.type == "cpu"


def test_training_from_an_earlier_patch_at_low_rank_with_checkpointing():
    with far_device.open():
        model = far()
        inputs = train.TrainingInputs(earlier=solve(model)[0])
        assert trained(model, inputs, low_rank=2, checkpointing=True).patch.edits


def cut_off_and_resumed(monkeypatch, file):
    """What a training on the device gives that was cancelled behind its first mask."""
    monkeypatch.setattr(tuning, "SAVE_EVERY", 1)
    monkeypatch.setattr(train.saved_run, "path", lambda name: file)
    inputs, real = train.TrainingInputs(resume="run"), train._before_step

    def before_step(made, kept_in):
        real(made, kept_in)
        if made.step == TRAINING["warmup"] + 2:
            raise memory.Cancelled

    with far_device.open():
        with monkeypatch.context() as m:
            m.setattr(train, "_before_step", before_step)
            with pytest.raises(memory.Cancelled):
                trained(far(), inputs)
        assert file.exists()
        return trained(far(), inputs)


def test_training_that_was_cut_off_goes_on(monkeypatch, tmp_path):
    with far_device.open():
        whole = trained(far())
    found = cut_off_and_resumed(monkeypatch, tmp_path / "run.safetensors")
    assert same(found.patch, whole.patch)


def test_a_step_reads_its_losses_once_from_the_device(monkeypatch):
    """Whatever the number of terms: each reading waits until the device has done all before it."""
    real, waits = trainer.Trainer._set_gradients, []
    with far_device.open() as seen:

        def counted(self, batch, rows):
            before = seen.waits
            losses = real(self, batch, rows)
            waits.append((len(losses), seen.waits - before))
            return losses

        monkeypatch.setattr(trainer.Trainer, "_set_gradients", counted)
        trained(far())
    assert max(terms for terms, _ in waits) >= 4
    assert {n for _, n in waits} == {waits[0][1]} and waits[0][1] <= 2, (waits, seen.by_line)


@pytest.mark.parametrize("predict", [False, True])
def test_forecast_of_a_patch(predict):
    with far_device.open():
        model = far()
        patch = solve(model)[0]
        settings = forecast.ForecastSettings(predict=predict, size=SIZE)
        assert forecast.of_patch(model, tiny.Clip(), patch, ["fox"], ["cat"], settings)


def test_report_of_before_and_after():
    with far_device.open():
        model = far()
        after = patching.apply(model, solve(model)[0])[0]
        inputs = comparison.ReportInputs(model, after, tiny.Clip(), tiny.Vae(), None, None)
        settings = comparison.ReportSettings(seeds=1, kept=1, steps=2, size=SIZE)
        report = comparison.compare(inputs, concepts(), settings)
    assert report.grid.device.type == "cpu" and report.text


@pytest.mark.parametrize("rank", [None, 2])
def test_exports(tmp_path, rank):
    with far_device.open():
        model = far()
        patch = solve(model)[0]
        patch_file.save(tmp_path / "p.safetensors", patch)
        assert same(patch_file.load(tmp_path / "p.safetensors")[0], patch)
        tensors, _, _ = lora_file.export(model, patch, rank, torch.float16)
        assert {t.device.type for t in tensors.values()} == {"cpu"}


def test_a_checkpoint_is_saved(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    with far_device.open():
        model = far()
        patched = patching.apply(model, solve(model)[0])[0]
        name, count = checkpoint.save(patched, None, None, "unlearned", None, None)
    assert count == 1 and (tmp_path / name).stat().st_size > 2**20


# --- faults that must be found --------------------------------------------------------------------


def test_an_index_on_the_cpu_is_found(monkeypatch):
    """CUDA lets it index, and waits for its copy; it fails in `index_add` and `gather`."""
    real = group_statistics.PaperStatistics.saliency

    def saliency(self, g, layer, scale):
        a = real(self, g, layer, scale)
        return a[torch.arange(len(a))]

    monkeypatch.setattr(group_statistics.PaperStatistics, "saliency", saliency)
    with far_device.open(), pytest.raises(far_device.Misplaced, match="index"):
        measure(far(), "paper")


def test_a_scalar_moment_on_the_cpu_is_found(monkeypatch, tmp_path):
    def restore(self, parameter, state):
        moved = {name: value.to(parameter.device) for name, value in state.items()}
        self.state[parameter].update(moved | {"step": state["step"].cpu()})

    monkeypatch.setattr(sculpting.MaskedAdam, "restore", restore)
    with pytest.raises(far_device.Misplaced, match="_fused_adam_"):
        cut_off_and_resumed(monkeypatch, tmp_path / "run.safetensors")


def test_a_mask_left_on_the_cpu_is_found(monkeypatch):
    real = sculpting.refresh

    def refresh(mask, total, tau):
        found, n = real(mask, total, tau)
        return found.cpu(), n

    monkeypatch.setattr(sculpting, "refresh", refresh)
    with far_device.open(), pytest.raises(far_device.Misplaced):
        trained(far())
