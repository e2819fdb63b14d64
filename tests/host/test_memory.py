"""What the memory table says, beside what a second device really holds; and what is left behind."""

import gc

import pytest
import torch

from testbed import far_device, pack, tiny

pack.load()
far_device.register()
collection = pack.module("unlearn.pruning.collection")
group_statistics = pack.module("unlearn.pruning.group_statistics")
memory = pack.module("unlearn.host.memory")
networks = pack.module("unlearn.host.training_network")
notation = pack.module("unlearn.concepts.notation")
ranking = pack.module("unlearn.pruning.ranking")
sampling = pack.module("unlearn.host.batched_sampling")
settings_of = pack.module("unlearn.sculpting.settings")
text_encoding = pack.module("unlearn.host.text_encoding")
train = pack.module("unlearn.sculpting.train")
trainer = pack.module("unlearn.sculpting.trainer")
training_tuning = pack.module("unlearn.sculpting.tuning")
types = pack.module("unlearn.types")
UnlearnError = pack.module("unlearn.errors").UnlearnError
NAMES = "cat fox house tree dog bird fish boat car hat cup star moon sun leaf rose".split()
SALIENCY = {"prompts": 2, "steps": 4, "window": 2, "size": 64, "cfg": 1.0}
TRAINING = {"size": 64, "steps": 2, "warmup": 1, "refresh": 1, "batch": 1, "held": 1}
TRAINING |= {"pictures": 2, "captions": 2, "sampling_steps": 2, "stop_at": 0.0}


@pytest.fixture(autouse=True)
def _the_device(monkeypatch):
    far_device.set_memory(monkeypatch)
    monkeypatch.setattr(training_tuning, "MEASURED_PREDICTIONS", 2)
    monkeypatch.setattr(networks, "_sharing", far_device.alias)


def loaded():
    import comfy.model_management as mm

    model = far_device.patcher(tiny.model().model)
    mm.load_models_gpu([model])
    return model


def measured(model, concepts, score="paper"):
    forget = notation.parse("\n".join(NAMES[:concepts]))
    return collection.collect(model, tiny.Clip(), forget, score=score, **SALIENCY)


def test_saliency_takes_the_same_for_any_number_of_concepts():
    with far_device.open() as seen:
        model, peaks = loaded(), []
        for concepts in (1, 4, 16):
            gc.collect()
            seen.peak = seen.live
            before = seen.live
            assert len(measured(model, concepts)[0].rankings) == concepts
            peaks.append(seen.peak - before)
    assert max(peaks) <= 1.1 * min(peaks), peaks


def test_the_statistics_of_paper_take_what_is_said(monkeypatch):
    shapes = {"a": (64, 256), "b": (32, 128)}
    monkeypatch.setattr(
        group_statistics.weights, "read", lambda m, key, device: torch.randn(shapes[key]).to(device)
    )
    groups = [types.Group("object"), types.Group("object", "cat")]
    settings = collection.SaliencySettings(window=1)
    layers = [(key, *shape) for key, shape in shapes.items()]
    need = group_statistics.MemoryNeed.of(layers)
    with far_device.open() as seen:
        statistics = group_statistics.PaperStatistics(None, layers, groups, settings)
        statistics.allocate(far_device.device())
        assert seen.live * group_statistics.tuning.MEMORY_RESERVE == pytest.approx(need.work, abs=1)
        seen.peak = before = seen.live
        for g in (0, 1):
            moments = statistics.open(0, g)
            for m, (_, *shape) in zip(moments, layers, strict=True):
                m.add(far_device.put(torch.rand(shape)))
            statistics.close(0, g)
        del moments, m
        assert seen.peak - before <= need.step
        gc.collect()
        assert seen.live == before
        statistics.release_work()
        gc.collect()
        seen.peak = before = seen.live
        ranking.ranking(statistics.saliency(1, 0, "layer_max"), settings.ceiling)
        assert seen.peak - before <= need.layer
        statistics.release()


def full(*args, **more):
    raise torch.OutOfMemoryError("CUDA out of memory")


def trained(model):
    concepts = notation.parse("fox -> animal", "cat")
    return train.train(model, tiny.Clip(), concepts, settings_of.TrainingSettings(**TRAINING))


RUNS = {
    "saliency, paper": lambda model: measured(model, 2),
    "saliency, wanda": lambda model: measured(model, 2, "wanda"),
    "forecast": lambda model: sampling.predict_from_noise(
        model, tiny.Clip(), ["a cat"], (1,), level=0.1, size=64
    ),
    "training": trained,
}


@pytest.mark.parametrize("run", RUNS)
def test_memory_is_as_it_was_after_a_run(run):
    with far_device.open() as seen:
        model = loaded()
        RUNS[run](model)
        loaded_alone = sum(p.nbytes for p in model.model.state_dict().values())
        gc.collect()
        assert seen.live <= 1.02 * loaded_alone + 2**16


@pytest.mark.parametrize("run", RUNS)
def test_memory_is_as_it_was_when_it_ran_out(monkeypatch, run):
    """Not even one row fits: the sentence says what to change, and nothing is kept."""
    with far_device.open() as seen:
        model = loaded()
        before = seen.live
        if run == "training":
            monkeypatch.setattr(trainer.Trainer, "_set_gradients", full)
        else:
            monkeypatch.setattr(sampling.comfy.samplers, "calc_cond_batch", full)
        with pytest.raises(UnlearnError, match="ran out on a single picture; ") as caught:
            RUNS[run](model)
        said = str(caught.value)
        assert said.count(". ") == 0 and ("'size'" in said)
        del caught
        gc.collect()
        assert seen.live <= before + 2**16


def test_prompts_are_read_in_smaller_batches_when_memory_runs_out(monkeypatch):
    clip, sizes = tiny.Clip(), []
    texts = [f"a photo of a {name}" for name in NAMES]
    whole = text_encoding.encode(clip, texts)
    real, room = clip.encode_from_tokens, 3

    def small(tokens):
        if len(tokens["l"]) > room:
            full()
        sizes.append(len(tokens["l"]))
        return real(tokens)

    monkeypatch.setattr(clip, "encode_from_tokens", small)
    found = text_encoding.encode(clip, texts)
    assert set(sizes) == {2} and all(torch.equal(found[t], whole[t]) for t in texts)
    room = 0
    with pytest.raises(UnlearnError, match="ran out on a single prompt; free memory"):
        text_encoding.encode(clip, texts)
