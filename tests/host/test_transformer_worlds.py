"""The emoji world's formats of diffusion transformers, on tiny models that two steps trained.

The trained models are another matter: see docs/testbed.md.
"""

import pytest
import torch

from testbed import trial
from testbed.train import tiny_transformer, transformer
from testbed.worlds import catalogue, checkpoint, meaning, pieces, transformers

KIND_OF_EDIT = {"wan": "exact", "sd3": "entry"}


@pytest.fixture(scope="module", params=transformers.FORMATS)
def trained(request, tmp_path_factory):
    """(format, Training after two steps, path of its compact file)."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.inference_mode(False):
        run = tiny_transformer.training(request.param, folder)
        run.advance()
        run.save()
        run.advance()
        run.write(checkpoint.load_judge(catalogue.EMOJI.file))
    return request.param, run, folder / "tiny.safetensors"


@pytest.fixture(scope="module")
def studio(trained):
    """The Studio of a tiny model, loaded by the stock loader's function."""
    kind, _, path = trained
    return tiny_transformer.studio(kind, path)


def test_a_resumed_training_gives_the_same_weights(trained):
    kind, run, path = trained
    with torch.inference_mode(False):
        again = tiny_transformer.training(kind, path.parent)
        assert again.step == 1
        again.advance()
    for name in ("net", "average"):
        first, second = (getattr(one, name).state_dict() for one in (run, again))
        assert all(torch.equal(w, second[key]) for key, w in first.items())
    assert again.losses[-1] == run.losses[-1] != run.losses[0]


def test_training_in_four_bits_resumes_with_the_same_scales(trained, tmp_path):
    kind = trained[0]
    with torch.inference_mode(False):
        run = tiny_transformer.training(kind, tmp_path, rounded_from=0.0)
        run.advance()
        run.save()
        again = tiny_transformer.training(kind, tmp_path, rounded_from=0.0)
        for one in (run, again):
            one.advance()
    assert run.scales and run.losses[-1] == again.losses[-1]


def test_comfyui_tells_the_family(trained):
    import comfy.model_detection

    kind, _, path = trained
    read = checkpoint.read_compact(path)
    state = checkpoint.checkpoint_state_dict(read, checkpoint.text_parts(path), kind)
    config = comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")
    assert type(config).__name__ == transformers.FORMATS[kind].config


def test_a_full_size_model_fits_its_file():
    for kind, form in transformers.FORMATS.items():
        net = transformer.new_net(kind)
        bits = sum(
            w.numel() * (4.25 if checkpoint.few_bits(name, w, kind) else 8)
            for name, w in net.state_dict().items()
        )
        assert 8e6 < sum(w.numel() for w in net.parameters()) and bits / 8 < 7e6, form


def test_the_stock_loaders_model_is_the_trained_one(trained, studio):
    """Text of full width and length and 16 channels give what training computes without them."""
    kind, run, path = trained
    net = transformer.new_net(kind, tiny_transformer.SIZES[kind])
    read = checkpoint.read_compact(path, narrow=True)
    net.load_state_dict({key: w.float() for key, w in read.items()})
    texts = [caption.text for caption in tiny_transformer.groups()["plain"][:2]]
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    level = torch.tensor([0.9, 0.4])
    rows = run.table.of(tiny_transformer.groups()["plain"][:2])
    expected = transformer.Reader(net, kind)(x[:, :3], level, rows)
    states = studio.encode(texts)
    seen, pooled = x[:, :, None], {}
    if kind == "sd3":
        seen, pooled = x, {"y": torch.stack([studio.pooled[text] for text in texts])}
    whole = studio.model.model.diffusion_model(seen, 1000 * level, states, **pooled)
    whole = whole.reshape(x.shape)
    assert not whole[:, 3:].any()
    assert float((whole[:, :3] - expected).norm() / expected.norm()) < 0.01


def test_words_change_the_picture_and_the_vae_shows_it(trained, studio):
    fox, cat = (catalogue.EMOJI.plain(name, "a photo of {a}") for name in ("fox", "cat"))
    first, second, again = studio.draw([fox, cat], steps=3) + studio.draw([fox], steps=3)
    assert first.shape == (3, 16, 16) and torch.equal(first, again)
    assert not torch.equal(first, second)
    form = studio.model.model.latent_format
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    latents = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    latents[:, :3] = 2 * picture - 1
    if trained[0] == "wan":
        latents = latents[:, :, None]
    shown = studio.vae.decode(form.process_out(latents)).reshape(1, 128, 128, 3)
    assert (shown[:, 4::8, 4::8].movedim(-1, 1) - picture).abs().max() < 0.02
    back = studio.vae.encode(shown)
    back = form.process_in(back if trained[0] == "sd3" else back[:, :, None])
    assert (back.flatten(2)[:, :3] - latents.flatten(2)[:, :3]).abs().max() < 0.05


def test_scapre_solves_it_and_says_how_exact_the_edit_is(trained, studio):
    kind = trained[0]
    few = {"templates": ("{concept}", "a photo of a {concept}"), "prior": False, "expand": False}
    patch, report = trial.solve("fox", "cat", model=studio.model, clip=studio.clip, **few)
    assert (
        len(patch.edits) == {"wan": 2 * tiny_transformer.SIZES["wan"]["num_layers"], "sd3": 2}[kind]
    )
    assert KIND_OF_EDIT[kind] in report
    edited, warning = trial.apply(patch, model=studio.model)
    fox = [catalogue.EMOJI.plain("fox", "a drawing of {a}")]
    before, after = (studio.draw(fox, model=m, steps=3)[0] for m in (studio.model, edited))
    assert not warning and torch.isfinite(after).all() and not torch.equal(before, after)


def test_a_piece_has_the_state_of_the_token_that_holds_it():
    reader = pieces.PieceReader()
    (states,) = reader.of_texts(["a photo of a fox"])
    ids = meaning.clip_tokenizer()("a photo of a fox")["input_ids"]
    wanted = reader.encoder.read([ids])[0][0]
    names = [reader.pieces.id_to_piece(i) for i in reader.pieces.encode("a photo of a fox")]
    assert names[-3:] == ["\u2581fo", "x", "</s>"] and len(states) == len(names)
    assert torch.equal(states[-3], states[-2])  # both are in the token "fox"
    assert torch.equal(states[-2:], wanted[5:7])


def test_every_trained_format_is_a_world():
    for kind, world in zip(transformers.FORMATS, catalogue.TRANSFORMERS, strict=True):
        assert world.name == f"emoji_{kind}"
        assert (world.name in catalogue.MODELS) == world.file.exists()
