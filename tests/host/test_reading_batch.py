"""How much text is read at once: constants on the CPU, elsewhere what free memory holds."""

import gc

import pytest
import torch

from testbed import far_device, pack, tiny

pack.load()
far_device.register()
cache = pack.module("unlearn.files.text_cache")
encoding = pack.module("unlearn.host.text_encoding")
fast = pack.module("unlearn.host.fast_text_encoder")
reading = pack.module("unlearn.host.reading_batch")
tuning = pack.module("unlearn.host.tuning")
TEXTS = [f"a photo of a {name} in the {place}" for name in ("cat", "fox") for place in "abcdefghij"]


class Elsewhere:
    """A patcher on the second device, which takes no memory there."""

    def __init__(self, patcher):
        self.load_device = far_device.device()
        self.object_patches = patcher.object_patches


@pytest.fixture
def elsewhere(monkeypatch):
    """A CLIP of two encoders whose patcher is on the second device; what was loaded there."""
    clip, loaded = tiny.sdxl_clip(), []
    clip.patcher = Elsewhere(clip.patcher)
    monkeypatch.setattr(reading.comfy.model_management, "load_models_gpu", loaded.extend)
    return clip, loaded


def fitting(monkeypatch, clip, free):
    far_device.set_memory(monkeypatch, far=free)
    return reading.fitting(clip)


@pytest.mark.parametrize("free", [None, 0, 2**20, 2**40])
def test_on_the_cpu_the_batch_is_always_the_same(monkeypatch, free):
    for clip in (tiny.sdxl_clip(), tiny.Clip()):  # the second has no patcher
        far_device.set_memory(monkeypatch, far=free, main=free)
        assert reading.fitting(clip) == reading.USUAL == (16, 320)


def test_the_need_is_that_of_the_widest_encoder():
    need, width, layers = reading.need_of(tiny.sdxl_clip()), max(tiny.SDXL_WIDTHS), 3
    assert need.position == 4 * width * (tuning.WIDTHS_IN_A_LAYER + layers)
    assert need.pair == 4 * 2 * width // 64
    assert need.of(3, 77) == 3 * 77 * (need.position + 77 * need.pair)


def test_the_need_is_that_of_the_dtype_of_computation(elsewhere):
    clip, _ = elsewhere
    whole = reading.need_of(clip)
    clip.patcher.object_patches = {"manual_cast_dtype": torch.float16}
    assert reading.need_of(clip) == (whole.position / 2, whole.pair / 2)


def test_with_much_free_memory_the_batch_is_the_largest(monkeypatch, elsewhere):
    clip, loaded = elsewhere
    most = (tuning.MOST_TEXTS, tuning.MOST_TREE)
    assert fitting(monkeypatch, clip, 2**40) == most > reading.USUAL
    assert loaded == [clip.patcher]  # before it was asked what is free


@pytest.mark.parametrize("texts", [1, 2, 5, 30])
def test_the_batch_takes_no_more_than_its_share(monkeypatch, elsewhere, texts):
    clip, need = elsewhere[0], reading.need_of(elsewhere[0])
    free = int(need.of(texts, 77) / tuning.FREE_FOR_READING) + 2
    batch = fitting(monkeypatch, clip, free)
    assert batch.texts == texts
    assert need.of(1, batch.positions) <= need.of(texts, 77)
    assert batch.positions in (77, 80, 160, 320, 640, 1280)
    twice = need.of(1, 2 * batch.positions) > need.of(texts, 77)
    assert twice or batch.positions == tuning.MOST_TREE


def test_with_hardly_any_free_memory_one_text_is_read_at_a_time(monkeypatch, elsewhere):
    assert fitting(monkeypatch, elsewhere[0], 1000) == (1, 77)


@pytest.mark.parametrize("free", [None, 0, -1])
def test_where_free_memory_is_not_known_the_batch_is_the_usual(monkeypatch, elsewhere, free):
    assert fitting(monkeypatch, elsewhere[0], free) == reading.USUAL


def test_where_the_encoder_is_of_another_build_the_batch_is_the_usual(monkeypatch, elsewhere):
    clip, loaded = elsewhere
    clip.cond_stage_model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert fitting(monkeypatch, clip, 2**40) == reading.USUAL and not loaded
    del clip.cond_stage_model
    assert fitting(monkeypatch, clip, 2**40) == reading.USUAL


def counted(clip, monkeypatch):
    """A list that grows by how many texts each call of a CLIP reads."""
    sizes, real = [], clip.encode_from_tokens

    def count(tokens, **more):
        sizes.append(len(tokens["l"]))
        return real(tokens, **more)

    monkeypatch.setattr(clip, "encode_from_tokens", count)
    return sizes


@pytest.mark.parametrize("batch", [(3, 1280), (64, 1280), (16, 320), (64, 77)])
def test_both_readers_read_as_much_as_fits_and_the_same(monkeypatch, batch):
    clip = tiny.sdxl_clip()
    prompts = [encoding.whole(clip, text) for text in TEXTS]
    tree = fast.unchecked(clip, cache.kept_positions)
    whole, cut = encoding.encode(clip, TEXTS), tree.encode(prompts)
    monkeypatch.setattr(reading, "fitting", lambda clip: reading.ReadingBatch(*batch))
    in_full, as_tree = counted(clip, monkeypatch), counted(tree.clip, monkeypatch)
    again, cut_again = encoding.encode(clip, TEXTS), tree.encode(prompts)
    assert max(in_full) == min(batch[0], len(TEXTS)) and sum(in_full) == len(TEXTS)
    assert max(as_tree) <= batch[0] and sum(as_tree) == len(TEXTS)
    assert max(as_tree) < 5 if batch[1] == 77 else max(as_tree) == min(batch[0], as_tree[0])
    for text in TEXTS:
        assert torch.allclose(again[text], whole[text], rtol=1e-4, atol=1e-5)
        assert torch.allclose(cut_again[text], cut[text], rtol=1e-4, atol=1e-5)


def test_on_a_second_device_the_states_are_the_same_and_take_no_more_than_said(monkeypatch):
    prompts = [encoding.whole(tiny.sdxl_clip(), text) for text in TEXTS]
    clip = tiny.sdxl_clip()
    whole = encoding.encode(clip, TEXTS)
    cut = fast.unchecked(clip, cache.kept_positions).encode(prompts)
    far_device.set_memory(monkeypatch)
    with far_device.open() as seen:
        clip = tiny.sdxl_clip()
        clip.patcher = far_device.patcher(clip.cond_stage_model)
        assert reading.fitting(clip) == (tuning.MOST_TEXTS, tuning.MOST_TREE)
        tree = fast.unchecked(clip, cache.kept_positions)
        encoding.encode(clip, TEXTS[:1])  # by then all weights are there
        need, peaks = reading.need_of(clip), []
        for read, known in (
            (lambda: encoding.encode(clip, TEXTS), whole),
            (lambda: tree.encode(prompts), cut),
        ):
            gc.collect()
            seen.peak = before = seen.live
            found = read()
            peaks.append(seen.peak - before)
            for text in TEXTS:
                assert torch.allclose(found[text], known[text], rtol=1e-4, atol=1e-5)
    assert peaks[1] < peaks[0], peaks
    assert 0.2 * need.of(len(TEXTS), 77) < peaks[0] <= need.of(len(TEXTS), 77), peaks
