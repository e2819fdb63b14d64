"""The variant released-B gives the kernel what the release gives it."""

from types import SimpleNamespace

import pytest
import torch

from testbed import pack

released = pack.module("unlearn.closed_form.variants.released")
kernel = pack.module("kernels.released")
ETA, LAMBDA = 2.0, 0.5


@pytest.mark.parametrize("power", [0.0, 2.0, 8.0])
def test_released_b_has_an_exponent_of_one_in_its_spectral_term(monkeypatch, power):
    """(C-4) row by row, from its equation: p is of the mask alone, p_sigma is 1."""
    monkeypatch.setattr(released.tuning, "NOISE", 0.0)
    g = torch.Generator().manual_seed(3)
    w0, names = torch.randn(6, 4, generator=g), torch.randn(2, 4, generator=g).double()
    blocks = [torch.randn(3, 4, generator=g).double() for _ in names]
    stand_ins = [torch.randn(3, 4, generator=g).double() for _ in names]
    empty = torch.randn(4, generator=g).double()
    context = SimpleNamespace(
        name_states=lambda: SimpleNamespace(names=names),
        name_blocks=lambda: SimpleNamespace(names=blocks, replacements=stand_ins, empty=empty),
    )
    settings = released.ReleasedBSettings(erase=ETA, power=power, steps=0, samples=4)
    got = released.released_b(context, settings).delta(w0)

    w = w0.double()
    masks = torch.stack(
        [kernel.mask((w @ name).expand(5, -1), (w @ empty).expand(5, -1), power) for name in names]
    )
    mu = float(kernel.entropy(torch.cat([(w @ name).expand(4, -1) for name in names])).mean())
    c = names.T
    u, sigma, _ = torch.linalg.svd(c, full_matrices=False)
    spectral = u @ torch.diag(mu * (1 - torch.sigmoid(sigma - sigma.median()))) @ u.T
    pi = c @ torch.linalg.inv(c.T @ c + 1e-8 * torch.eye(2).double()) @ c.T
    blocks_gram = ETA * sum(o.T @ o for o in blocks)
    for i in range(6):
        a = ETA * float(masks[:, i].max())
        left = (LAMBDA + mu) * torch.eye(4).double() + spectral + c @ c.T + blocks_gram + a * pi
        written = ETA * sum(
            masks[k, i] * (w[i] @ stand_ins[k].T) @ blocks[k] for k in range(len(names))
        )
        want = torch.linalg.solve(left, (LAMBDA + mu) * w[i] + written) - w[i]
        assert torch.allclose(got[i], want, atol=1e-6)
