"""Embedding files in lists and sentences: found, fitting, fresh, and with their own article."""

import pytest
import torch
from safetensors.torch import save_file

from testbed import pack, trial

embeddings = pack.module("unlearn.host.embeddings")
text_encoding = pack.module("unlearn.host.text_encoding")
cache = pack.module("unlearn.files.text_cache")
concepts_node = pack.module("nodes.unlearn_concepts")
UnlearnError = pack.module("unlearn.errors").UnlearnError


def word_rows(clip, word):
    """The rows [n, 768] that the text encoder has for a word."""
    (chunks,) = clip.tokenize(word, return_word_ids=True).values()
    ids = [token for token, _, word_id in chunks[0] if word_id > 0]
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    return table[ids].clone()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of embeddings that the sprite world's text encoder reads."""
    clip = trial.studio("sprites").clip
    monkeypatch.setattr(clip.tokenizer.clip_l, "embedding_directory", [str(tmp_path)])
    return tmp_path


@pytest.fixture
def clip(folder):
    return trial.studio("sprites").clip


def test_a_missing_embedding_is_refused_for_what_it_is(clip):
    for name in ("embedding:not_there", "embedding:not_there fox"):
        with pytest.raises(UnlearnError, match="no embedding 'not_there' in models/embeddings"):
            text_encoding.locate(clip, "a photo of a {concept}", name)
    with pytest.raises(UnlearnError, match="no embedding 'gone'"):
        text_encoding.locate(clip, "a {concept}, embedding:gone", "fox")
    with pytest.raises(UnlearnError, match="put a space before"):
        text_encoding.locate(clip, "a ({concept})", "embedding:not_there")


def test_an_embedding_of_another_model_is_refused(clip, folder):
    save_file({"emb_params": torch.ones(2, 1024)}, folder / "wide.safetensors")
    with pytest.raises(UnlearnError, match="'wide' has width 1024 .* reads 768"):
        text_encoding.locate(clip, "{concept}", "embedding:wide")


def test_a_file_for_one_of_two_encoders_is_refused(tmp_path):
    import comfy.sdxl_clip

    class Both:
        tokenizer = comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(tmp_path)])

        def tokenize(self, text, **rest):
            return self.tokenizer.tokenize_with_weights(text, **rest)

    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "sd15.safetensors")
    rows = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    save_file(rows, tmp_path / "sdxl.safetensors")
    with pytest.raises(UnlearnError, match="'sd15' has width 768 .* 768 and 1280.* in part"):
        text_encoding.locate(Both(), "{concept}", "embedding:sd15")
    assert text_encoding.locate(Both(), "a {concept}", "embedding:sdxl").end == 4


def test_the_article_is_not_chosen_from_the_letters_of_embedding(clip, folder):
    assert text_encoding.fix_article("a {concept}", "embedding:ox") == "a {concept}"
    assert text_encoding.fix_article("a {concept}", "ox") == "an {concept}"


def test_a_replaced_file_is_read_anew(clip, folder, tmp_path):
    prompts, read = [], []
    for word in ("fox", "house"):
        save_file({"emb_params": word_rows(clip, word)}, folder / "mine.safetensors")
        prompts.append(text_encoding.locate(clip, "a photo of a {concept}", "embedding:mine"))
        states = cache.TextStateCache(clip, tmp_path / "states").get(prompts[-1:])
        read.append(states[prompts[-1].text])
    plain = text_encoding.encode(clip, ["a photo of a fox", "a photo of a house"])
    kept = slice(0, prompts[0].end + 1)
    assert not torch.allclose(read[0][kept], read[1][kept], atol=1e-3)
    for found, expected in zip(read, plain.values(), strict=True):
        assert torch.allclose(found[kept], expected[kept], atol=1e-3)


def test_the_node_runs_again_when_the_file_was_replaced(folder, monkeypatch):
    monkeypatch.setattr(concepts_node.folder_paths, "get_folder_paths", lambda kind: [str(folder)])

    def stamp(forget, keep=""):
        return concepts_node.UnlearnConcepts.fingerprint_inputs(
            forget=forget, keep=keep, kind="object"
        )

    assert stamp("fox") == stamp("embedding:mine") == []
    (folder / "sub").mkdir()
    (folder / "sub" / "mine.pt").write_bytes(b"1")
    first = stamp("(embedding:sub/mine:1.2), fox")
    assert len(first) == 1 and first == stamp("fox", "embedding:mine") and stamp("fox") == []
    (folder / "sub" / "mine.pt").write_bytes(b"22")
    assert stamp("embedding:sub/mine") != first


def test_an_embedding_is_forgotten_as_artists_write_it(clip, folder):
    save_file({"emb_params": word_rows(clip, "fox")}, folder / "mine.safetensors")
    assert trial.seen("an image of a embedding:mine", n=4).get("fox", 0) >= 3
    patch, report = trial.solve("embedding:mine -> animal", "house\ntree")
    model = trial.apply(patch)[0]
    assert trial.seen("an image of a embedding:mine", model, n=8).get("fox", 0) == 0, report
