"""Erase in Text Encoder on a tiny real CLIP of two encoders, from the solve to files."""

import json

import pytest
import torch

from testbed import pack, tiny

nodes = {n.define_schema().node_id: n for n in pack.module("nodes").NODES}
solver = pack.module("unlearn.closed_form.text_encoder")
tuning = pack.module("unlearn.closed_form.tuning")
parts = pack.module("unlearn.files.encoder_parts")
patch_files = pack.module("unlearn.files.patch_file")
patch_reports = pack.module("unlearn.files.patch_report")
lora = pack.module("unlearn.files.lora_file")
identity = pack.module("unlearn.host.clip_identity")
clip_layers = pack.module("unlearn.host.clip_layers")
text_encoding = pack.module("unlearn.host.text_encoding")
adapters = pack.module("unlearn.host.adapters")
patching = pack.module("unlearn.host.patching")
checkpoints = pack.module("unlearn.host.checkpoint")
layers = pack.module("unlearn.host.architectures")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")
notation = pack.module("unlearn.concepts.notation")
UnlearnError = pack.module("unlearn.errors").UnlearnError
WIDTHS = (64, 128)
LIST = notation.parse("fox -> animal\nstyle: van gogh", "cat\ndog")
FOX, ANIMAL, CAT = "a photo of a fox", "a photo of a animal", "a photo of a cat"


def run(name, **given):
    """What a node gives out, as the host runs it."""
    node = nodes[name].PREPARE_CLASS_CLONE(None)
    return node.execute(**{**tiny.defaults(node.define_schema().inputs), **given}).result


@pytest.fixture(scope="module")
def clip():
    with torch.inference_mode():
        return tiny.sdxl_clip(widths=WIDTHS)


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny.sdxl(widths=WIDTHS)


@pytest.fixture(scope="module")
def plain(clip):
    """The CLIP's weights as they came, and what it made of three texts."""
    state = {key: w.clone() for key, w in clip.cond_stage_model.state_dict().items()}
    with torch.inference_mode():
        return state, text_encoding.encode(clip, [FOX, ANIMAL, CAT])


@pytest.fixture(scope="module")
def solved(clip, plain):
    """(patch, report) of the node."""
    with torch.inference_mode():
        return run("TextEncoderSolve", clip=clip, concepts=LIST)


@pytest.fixture(scope="module")
def patch(solved):
    return solved[0]


@pytest.fixture(scope="module")
def unet_patch(model):
    """A small edit of one key matrix."""
    key = layers.cross_attention(model)[0].key
    d_out, d_in = weights.shape(model, key)
    g = torch.Generator().manual_seed(1)
    edit = adapters.LowRank.of(
        torch.randn(d_out, 1, generator=g), torch.randn(1, d_in, generator=g)
    )
    said = {"method": "ScaPre anchored", "concepts": ["house"], "settings": {}}
    return types.UnlearnPatch(((key, edit),), weights.fingerprint(model, [key]), (said,))


def apply(model, *stack, clip=None, **how):
    patches = {f"patch{i}": one for i, one in enumerate(stack)}
    return run("ApplyUnlearnPatch", model=model, patches=patches, clip=clip, **how)


def is_as_it_came(clip, plain):
    """Whether a CLIP has its weights, to the last bit, and gives its states again."""
    state, states = plain
    again = text_encoding.encode(clip, [*states])
    same = all(torch.equal(again[text], states[text]) for text in states)
    now = clip.cond_stage_model.state_dict()
    return same and all(torch.equal(now[key], w) for key, w in state.items())


@torch.inference_mode()
def test_a_concept_is_read_as_its_superclass_and_the_clip_stays(clip, plain, model, patch):
    _, report, edited = apply(model, patch, clip=clip)
    assert report.startswith("Patch applied. It forgets fox and van gogh.")
    found = text_encoding.encode(edited, [FOX, CAT])
    before = plain[1]

    def far(a, b):
        return float((a - b).norm())

    # Of 128 hidden numbers, which such an encoder has, few are free to tell a fox from all words.
    assert far(found[FOX], before[ANIMAL]) < 0.5 * far(before[FOX], before[ANIMAL])
    assert far(found[CAT], before[CAT]) < 0.5 * far(before[CAT], before[ANIMAL])
    assert is_as_it_came(clip, plain)
    assert identity.identity(edited, [FOX]) != identity.identity(clip, [FOX])


@torch.inference_mode()
def test_an_embedding_with_the_words_of_a_concept_is_read_as_its_superclass(clip, model, patch):
    """Vectors in the place of token numbers, as an embedding file brings them."""
    edited = apply(model, patch, clip=clip)[2]
    by_number = clip.tokenize(FOX)
    by_vector = {}
    for name, chunks in by_number.items():
        encoder = getattr(clip.cond_stage_model, f"clip_{name}")
        table = encoder.transformer.get_input_embeddings().weight
        tokens = list(chunks[0])
        place = 4  # start, a, photo, of, a, fox
        tokens[place + 1] = (table[tokens[place + 1][0]].clone(), 1.0)
        by_vector[name] = [tokens]
    found, expected = (edited.encode_from_tokens(t) for t in (by_vector, by_number))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, clip.encode_from_tokens(by_vector), atol=1e-3)


def test_the_report_says_what_comes_next(solved):
    said = solved[1]
    assert "fox" in said.splitlines()[0] and "CLIP-L, layer 1" in said and "CLIP-G" in said
    assert "'clip'" in said or "the clip" in said


@torch.inference_mode()
def test_the_edit_minimises_the_objective_on_what_the_layer_sees(clip, patch):
    """The patch of CLIP-L against the normal equations, in float64, of rows read by hand."""
    encoder = clip_layers.encoders(clip)[0]
    plan = pack.module("unlearn.closed_form.sentence_plan").plan(clip, LIST)
    studied = solver.sentences(encoder, plan)
    x, y, omega, neutral = solver._wanted(encoder, studied, quiet())
    held, scale = solver._held(encoder, plan, neutral, quiet())
    (_, edit), *_ = parts.of_encoder(patch).edits
    found = edit.change(torch.zeros(edit.shape), 1.0).double() * scale
    x = x / scale
    eye = torch.eye(len(held), dtype=torch.float64)
    penalty = tuning.ENCODER_ANCHOR * eye + tuning.ENCODER_PRESERVE * held

    def objective(change):
        misses = ((x @ change.T - y).square().sum(1) * omega).sum()
        return float(tuning.ENCODER_ERASE * misses + ((change @ penalty) * change).sum())

    inner = penalty + tuning.ENCODER_ERASE * (x.T * omega) @ x
    best = torch.linalg.solve(inner, tuning.ENCODER_ERASE * (x.T * omega) @ y).T
    assert float((found - best).norm() / best.norm()) < 1e-2
    assert objective(found) < 1.01 * objective(best)
    assert objective(found) < 0.2 * objective(torch.zeros_like(best))


def quiet():
    return pack.module("unlearn.host.progress").Progress()


def test_the_same_list_gives_the_same_patch(clip, patch):
    with torch.inference_mode():
        assert solver.solve(clip, LIST)[0] == patch


@pytest.mark.parametrize(
    "words, count, expected",
    [
        ([5], 1, [5]),
        ([5], 3, [5, 5, 5]),
        ([5, 6, 7], 2, [6, 7]),
        ([5, 6], 3, [5, 6, 6]),
        ([], 2, [9, 9]),
    ],
)
def test_a_neutral_word_takes_as_many_places_as_the_concept(words, count, expected):
    assert solver.stand_ins(words, count, end=9) == expected


@torch.inference_mode()
def test_only_the_concept_is_exchanged_in_a_sentence(clip):
    encoder = clip_layers.encoders(clip)[0]
    plan = pack.module("unlearn.closed_form.sentence_plan").plan(clip, LIST)
    for one in solver.sentences(encoder, plan):
        places = [i for i, (a, b) in enumerate(zip(one.tokens, one.neutral, strict=True)) if a != b]
        assert len(one.tokens) == len(one.neutral) == 77
        assert set(places) <= set(range(one.first, one.last + 1)) and places


@torch.inference_mode()
def test_a_file_holds_both_parts_of_a_stack(patch, unet_patch, tmp_path, model, clip, plain):
    both = unet_patch + patch
    patch_files.save(tmp_path / "both.safetensors", both)
    loaded, _ = patch_files.load(tmp_path / "both.safetensors")
    assert loaded == both and parts.of_model(loaded).provenance == unet_patch.provenance
    assert parts.of_encoder(loaded).provenance == patch.provenance
    patched, report, edited = apply(model, loaded, clip=clip)
    alone = apply(model, patch, clip=clip)[2]
    found = [text_encoding.encode(one, [FOX])[FOX] for one in (edited, alone)]
    assert torch.equal(*found) and "In the text encoder" in report
    key = unet_patch.edits[0][0]
    only = apply(model, unet_patch)[0]
    assert torch.equal(weights.read(patched, key), weights.read(only, key))
    assert [p["method"] for p in patching.manifest(patched)] == ["ScaPre anchored"]
    assert [p["method"] for p in parts.manifest(edited)] == ["Text Encoder"]
    assert is_as_it_came(clip, plain)


@torch.inference_mode()
def test_strength_and_stacking_count(model, clip, patch, plain):
    key = parts.clip_key(patch.edits[0][0])
    whole = patch.edits[0][1].change(torch.zeros(patch.edits[0][1].shape), 1.0)
    w0 = plain[0][key]
    for stack, share in (((patch,), 0.5), ((patch, patch), 1.0)):
        _, report, edited = apply(model, *stack, clip=clip, strength=0.5)
        change = weights.read(edited.patcher, key) - w0
        torch.testing.assert_close(change, share * whole, atol=1e-5, rtol=1e-4)
    _, report, edited = apply(model, patch, patch, clip=clip, repeated="once")
    assert "Left out" in report and len(parts.manifest(edited)) == 1
    again = apply(model, patch, clip=edited, repeated="once")[1]
    assert "Nothing was applied." in again
    assert "WARNING" in apply(model, patch, patch, clip=clip)[1]


def test_without_a_clip_it_says_so(model, patch, unet_patch):
    with pytest.raises(UnlearnError, match="no CLIP is connected"):
        apply(model, patch)
    patched, report, edited = apply(model, unet_patch, patch)
    assert edited is None and "WARNING: The text encoder is not patched." in report
    assert len(patching.manifest(patched)) == 1


def test_a_patch_for_the_model_alone_leaves_the_clip_as_it_came(model, clip, unet_patch):
    assert apply(model, unet_patch, clip=clip)[2] is clip
    assert apply(model, clip=clip)[2] is clip


def test_another_clip_is_told(model, clip, patch):
    with torch.inference_mode():
        narrow, stranger = tiny.sdxl_clip(widths=(96, 128)), tiny.sdxl_clip(1, widths=WIDTHS)
        with pytest.raises(UnlearnError, match="The input 'clip' has weight"):
            apply(model, patch, clip=narrow)
        assert "for another model" in apply(model, patch, clip=stranger)[1]
        with pytest.raises(UnlearnError, match="another base model"):
            apply(model, patch, clip=stranger, mismatch="error")
        with pytest.raises(UnlearnError, match="no weights of its own"):
            apply(model, patch, clip=tiny.Clip())


def test_other_encoders_are_refused(clip):
    """Made-up states, and a CLIP-L beside another encoder, as SD3 and Flux have it."""
    both = torch.nn.Module()
    both.clip_l = clip.cond_stage_model.clip_l
    both.t5xxl = torch.nn.Module()
    both.t5xxl.transformer = torch.nn.Module()
    mixed = clip.clone()
    mixed.cond_stage_model = both
    for other in (tiny.Clip(), mixed):
        with pytest.raises(UnlearnError, match="no CLIP-L or CLIP-G alone"):
            run("TextEncoderSolve", clip=other, concepts=LIST)


def test_an_empty_encoder_is_refused_and_an_empty_layer_passed_over():
    """The emoji world's CLIP has layers of zeros between those that work."""
    with torch.inference_mode():
        clip = tiny.sdxl_clip(widths=WIDTHS)
        layers_of = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
        for number in range(3):
            layers_of[number].mlp.fc2.weight.zero_()
            if number < 2:
                assert clip_layers.encoders(clip)[0].layer == number + 1
        with pytest.raises(UnlearnError, match="CLIP-L whose layers are all empty"):
            clip_layers.encoders(clip)


def test_nodes_that_patch_a_model_alone_refuse_it_in_one_sentence(model, clip, patch):
    with pytest.raises(UnlearnError, match="changes the text encoder too"):
        run("CollateralForecast", model=model, clip=clip, patch=patch)
    said = patch_reports.describe(patch, model)
    assert "2 of the edits are for the text encoder" in said


def test_cancelling_leaves_no_hook_and_no_change(clip, plain, monkeypatch):
    import comfy.model_management as mm

    calls = []

    def at_the_fifth():
        calls.append(1)
        if len(calls) == 5:
            raise mm.InterruptProcessingException

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", at_the_fifth)
    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        solver.solve(clip, LIST)
    monkeypatch.undo()
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in clip.cond_stage_model.modules()
    ]
    assert not any(hooks)
    with torch.inference_mode():
        assert is_as_it_came(clip, plain)


@torch.inference_mode()
def test_a_checkpoint_holds_the_edited_encoder(model, clip, patch, tmp_path, monkeypatch):
    """What the host's writer is given has the edited weights, and the file names the patch."""
    import folder_paths
    from comfy_extras import nodes_model_merging

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    given = {}
    monkeypatch.setattr(
        nodes_model_merging, "save_checkpoint", lambda model, **more: given.update(more)
    )
    patched, _, edited = apply(model, patch, clip=clip)
    checkpoints.save(patched, edited, None, "x")
    assert [p["method"] for p in given["extra_pnginfo"]["unlearn"]["saved"]] == ["Text Encoder"]
    given["clip"].load_model()
    key = parts.clip_key(patch.edits[0][0])
    written = given["clip"].get_sd()[key].float()
    torch.testing.assert_close(written, weights.read(edited.patcher, key), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(written, weights.read(clip.patcher, key), atol=1e-3)
    clip.load_model()
    with pytest.raises(UnlearnError, match="no unlearn patch on it"):
        checkpoints.save(model, clip, None, "x")


@torch.inference_mode()
def test_a_lora_acts_on_the_clip_as_the_patch_does(model, clip, patch, unet_patch, plain):
    import comfy.sd

    tensors, _, _ = lora.export(model, unet_patch + patch)
    assert {name.split("_text_")[0] for name in tensors if "_te" in name} == {
        "lora_te1",
        "lora_te2",
    }
    with_lora, its_clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
    edited = apply(model, patch, clip=clip)[2]
    for key, _ in parts.of_encoder(patch).edits:
        a, b = (weights.read(one.patcher, key) for one in (its_clip, edited))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert len(with_lora.patches) == 1 and is_as_it_came(clip, plain)


def test_the_recipe_makes_it_again(model, clip, patch):
    with torch.inference_mode():
        again = run("RefitUnlearnPatch", patch=patch, model=model, clip=clip)[0]
    assert again == patch


def test_provenance_is_json(patch):
    record = json.loads(json.dumps(patch.provenance[0]))
    assert record["concepts"] == ["fox", "van gogh"] and record["tuning"]["erase"] > 0
