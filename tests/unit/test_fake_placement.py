"""The kernels on true shapes under torch's FakeTensorMode, with everything on a `cuda` device.

No memory is taken and no GPU is needed; mixing devices fails. Kernels that look at numbers to go on
cannot run so: `tests/host/test_placement.py` runs them, and all of the pack, on a second device.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from testbed import pack

fia = pack.module("kernels.fia")
forecast = pack.module("kernels.forecast")
scapre = pack.module("kernels.scapre")
sculpting = pack.module("kernels.sculpting")
sylvester = pack.module("kernels.sylvester")
bures = pack.module("kernels.bures")
rece = pack.module("kernels.rece")
C_OUT, C_IN = 1280, 5120  # the largest second feed-forward layer of SDXL
D, D_OUT = 2048, 1280  # SDXL's text states, and a key matrix
N, R = 4096, 64


def rand(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


def saliency():
    g = fia.correlation(rand(N, C_IN), rand(N, C_OUT))
    moments = fia.RunningMoments(rand(C_OUT, C_IN), rand(C_OUT, C_IN))
    moments.add(g)
    bound = moments.merge(moments).bound()
    sums = fia.SaliencyAccumulator((C_OUT, C_IN), "cuda", 10)
    sums.add(fia.contrast(rand(C_OUT, C_IN), rand(C_OUT, C_IN), bound), 0.05)
    return sums.saliency(), fia.column_norms(rand(N, C_IN))


def solve():
    states = rand(9000, D)
    s, p = scapre.gram(states, rand(9000)), scapre.gram(rand(2000, D))
    t = scapre.cross_gram(states, states)
    trace = scapre.spectral_trace(rand(D, 100))
    lower = torch.linalg.cholesky(p + trace)
    return scapre.anchored_up(rand(D_OUT, D), t @ lower[:, :R], rand(R), 100.0, rand(D_OUT)), s


def forecasts():
    before, cross, after = forecast.moments(rand(D_OUT, D), rand(D_OUT, R), rand(R, D))
    shared = forecast.shared(before, rand(D, D))
    left = forecast.retention(rand(500, D), before, cross)
    moved = forecast.change(rand(500, D), before, cross, after)
    seen = forecast.agreement(rand(500, N), rand(500, N))
    return (*shared, left, moved, seen, forecast.share_left(rand(500, N), rand(500, N)))


def others():
    values, vectors = sylvester.spectrum(rand(D, D))
    w0 = rand(D_OUT, D)
    revived = rece.revive(rand(D, D), rand(D, D), rand(100, D), 0.1)
    return values, vectors, bures.geodesic(w0, w0, 0.1), revived


def training():
    weight, gradient, total = rand(D_OUT, D), rand(D_OUT, D), rand(D_OUT, D)
    sculpting.project_gradient(gradient, rand(D, R))
    sculpting.accumulate(total, gradient, "absolute")
    mask = sculpting.initial_mask(total, 0.5)
    loss, errors = sculpting.objective(rand(4, 4, 64, 64), rand(4, 4, 64, 64), rand(4))
    return weight, mask, loss, errors


@pytest.mark.parametrize("kernels", [saliency, solve, forecasts, others, training])
def test_kernels_stay_on_the_device(kernels):
    with FakeTensorMode():
        assert {result.device.type for result in kernels()} == {"cuda"}


@pytest.mark.parametrize(
    "fault",
    [
        lambda: fia.contrast(rand(C_OUT, C_IN), rand(C_OUT, C_IN), torch.zeros(C_OUT, C_IN)),
        lambda: scapre.cross_gram(rand(N, D), torch.zeros(N, D)),
        lambda: sculpting.accumulate(torch.zeros(D_OUT, D), rand(D_OUT, D)),
    ],
)
def test_mixing_devices_fails(fault):
    with FakeTensorMode(), pytest.raises(RuntimeError, match="found two different devices"):
        fault()
