"""The emoji world's text encoders on paper: bases, norms, few bits, and the optimiser."""

import pytest
import torch

from testbed.train.muon import Muon, orthonormal
from testbed.worlds import meaning, rounding

EVERY = pytest.mark.parametrize("part", meaning.KINDS)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(quick):
    """State dict of a Narrow with large random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        narrow = meaning.Narrow(quick)
    return {name: w.detach() for name, w in narrow.state_dict().items()}


@EVERY
def test_the_basis_is_orthonormal_and_has_no_mean(part):
    wide = meaning.widening(meaning.KINDS[part])
    assert wide.shape == (meaning.KINDS[part].wide, meaning.COORDINATES)
    assert torch.allclose(wide.T @ wide, torch.eye(meaning.COORDINATES), atol=1e-5)
    assert wide.sum(0).abs().max() < 1e-4
    assert torch.equal(wide, meaning.widening(meaning.KINDS[part]))


@EVERY
def test_layer_norm_of_a_wide_stream_is_that_of_the_narrow_one(part):
    kind, stream = meaning.KINDS[part], 3 * rand(5, meaning.WIDTH)
    p, u = meaning.basis(kind)
    wide = stream @ p.T + (meaning.COMMON * meaning.WIDTH) ** 0.5 * u
    wanted = torch.nn.functional.layer_norm(wide, wide.shape[-1:])
    found = meaning.NarrowEncoder.__new__(meaning.NarrowEncoder)
    found.kind = kind
    coordinates = found.coordinates(stream, norm=True)
    assert torch.allclose(coordinates @ meaning.widening(kind).T, wanted, atol=1e-4)
    # What a layer of the narrow one reads is the word part of it, but for a constant.
    gain = (meaning.WIDTH / kind.wide) ** 0.5
    assert torch.allclose(gain * wanted @ p, meaning.normed(stream), atol=1e-4)


def test_the_projection_of_pooled_text_changes_no_state():
    kind = meaning.KINDS["g"]
    state = rand(3, meaning.COORDINATES) @ meaning.widening(kind).T
    assert torch.allclose(state @ meaning.text_projection(kind), state, atol=1e-4)
    assert not torch.allclose(
        rand(3, kind.wide) @ meaning.text_projection(kind), rand(3, kind.wide)
    )


def test_each_part_reads_back_from_its_own_file(tmp_path):
    table, path = rand(meaning.START, meaning.COMPONENTS), tmp_path / "text.safetensors"
    left, right = drawn(True), {k: 2 * w for k, w in drawn(False).items()}
    meaning.write("l", left, table, path)
    meaning.write("g", right, table, path)
    for part, wanted in (("l", left), ("g", right)):
        found, read = meaning.read(part, path)
        assert found.keys() == wanted.keys() and read.shape == table.shape
        for name, w in wanted.items():
            far = (found[name] - w).norm() / w.norm().clamp_min(1e-6)
            assert far < 0.01, (part, name, far)
    assert (read - table).norm() / table.norm() < 0.12
    assert path.stat().st_size < 8e6 and meaning.file_of("g", path).stat().st_size < 4e6


@pytest.mark.parametrize("shape", [(3, 128), (4, 100), (2, 7, 3, 3)])
def test_four_bits_hold_a_matrix_of_any_width(shape):
    w = rand(*shape)
    found = rounding.rounded(w)
    assert found.shape == w.shape and found.dtype == torch.float32
    assert 0 < (found - w).norm() / w.norm() < 0.12
    large = torch.cat([w, torch.zeros_like(w)])
    assert torch.equal(rounding.rounded(large)[: len(w)], found)  # a row has scales of its own
    assert not rounding.rounded(large)[len(w) :].any()


def test_eight_bits_hold_a_matrix():
    w = rand(6, 4, 3, 3)
    packed, scale = rounding.quantise(w)
    assert packed.dtype == torch.int8 and packed.shape == w.shape
    assert ((rounding.scaled(packed, scale) - w).flatten(1).abs().amax(1) < scale.float()).all()


@pytest.mark.parametrize("shape", [(30, 30), (20, 60), (60, 20)])
def test_an_orthonormal_step_has_even_singular_values(shape):
    g = rand(*shape) * torch.linspace(0.05, 3, shape[1])
    u, s, vt = torch.linalg.svd(orthonormal(g), full_matrices=False)
    assert s.quantile(0.1) > 0.6 and s.max() < 1.3  # five rounds leave the very smallest small
    turned = torch.linalg.svd(g, full_matrices=False)
    nearest = turned.U @ turned.Vh
    assert torch.nn.functional.cosine_similarity((u @ vt).flatten(), nearest.flatten(), 0) > 0.95


def fitted(steps, saved=None):
    """(module, optimiser, losses) of a linear map that learns another one."""
    x = rand(64, 8, seed=1)
    y = x @ rand(6, 8, seed=2).T + 0.5
    module = torch.nn.Linear(8, 6)
    with torch.no_grad():
        module.weight.copy_(rand(6, 8, seed=3))
        module.bias.zero_()
    muon = Muon(module, rate=0.5, small_rate=0.05)
    if saved:
        module.load_state_dict(saved[0])
        muon.load_state_dict(saved[1])
    losses = []
    for _ in range(steps):
        module.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        muon.step(1.0)
        losses.append(loss.item())
    return module, muon, losses


def test_muon_learns_and_goes_on_where_it_stopped():
    whole, _, losses = fitted(40)
    assert losses[-1] < 0.1 * losses[0]
    first, muon, _ = fitted(12)
    saved = {k: v.clone() for k, v in first.state_dict().items()}, muon.state_dict()
    rest = fitted(28, saved)[0]
    assert all(torch.equal(rest.state_dict()[k], w) for k, w in whole.state_dict().items())


def test_muon_moves_nothing_at_no_rate_and_every_matrix_as_far():
    module = torch.nn.Conv2d(4, 8, 3)
    muon = Muon(module, rate=0.1, small_rate=0.1, decay=0.0)
    before = module.weight.detach().clone()
    for size in (1.0, 100.0):  # the size of a gradient makes no difference
        module.weight.grad, module.bias.grad = size * rand(8, 4, 3, 3), torch.zeros(8)
        muon.moving[0].zero_()
        muon.step(0.0)
        assert torch.equal(module.weight, before)
        muon.step(1.0)
        moved = (module.weight.detach() - before).square().mean().sqrt()
        assert moved == pytest.approx(0.1 * 0.2, rel=0.2)
        module.weight.data.copy_(before)
