"""Physics inside sampling: the residual and its gradient, fields from sparse observations, refined rollouts."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastdiff as fd
from fastdiff.nn import DDPM, Guide, Refiner, StencilResidual

GRIDS = [fd.Grid((6, 5), extent=(6.0, 5.0), centering="cells"), fd.Grid((6, 5), periodic=True),
         fd.Grid((7,), centering="cells")]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("boundary", [None, fd.Dirichlet(1.5)], ids=["no flux", "held"])
def test_residual_passes_gradcheck(grid, boundary):
    if all(grid.periodic):
        boundary = None
    residual = StencilResidual(grid, diffusivity=0.7, boundary=boundary)
    u = torch.randn(2, 1, *grid.shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(residual, (u,))
    assert gradgradcheck(lambda u: residual(u) ** 2, (u,))


def test_residual_is_the_stencil():
    grid = fd.Grid((8, 8), periodic=True, extent=(8.0, 8.0))
    u = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    plain = sum(torch.roll(u, s, a) for s in (1, -1) for a in (2, 3)) - 4 * u
    torch.testing.assert_close(StencilResidual(grid)(u), plain, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="cells only"):
        StencilResidual(fd.Grid((8, 8)))


def field_model(n=12):
    """Smooth periodic Gaussian lines and the best denoiser of them."""
    k = np.fft.fftfreq(n) * n
    power = np.exp(-0.5 * k**2)
    S = np.real(np.fft.ifft(power)) * 4
    C = torch.from_numpy(np.array([[S[(i - j) % n] for j in range(n)] for i in range(n)]))
    model = DDPM(None, (1, n), schedule="linear", steps=200, clip=None, data_range=None)

    def network(x, t):
        level = model.schedule.at(float(t[0]))
        gain = level.alpha * C @ torch.linalg.inv(level.alpha**2 * C + level.sigma**2 * torch.eye(n))
        return (x - level.alpha * x @ gain.T.to(x)) / level.sigma

    model.network = network
    return model, C


def test_sparse_observations_restore_a_field():
    """With the best denoiser, guided samples are near the truth where nothing was seen, others are not."""
    model, C = field_model()
    z = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.linalg.cholesky(C + 1e-10 * torch.eye(12)) @ z
    mask = torch.zeros(1, 12, dtype=torch.float64)
    mask[0, ::3] = 1
    guide = Guide(observed=truth[None], mask=mask, observation_weight=0.25)
    free = model.sample(64, seed=0, dtype=torch.float64)
    found = model.sample(64, seed=0, dtype=torch.float64, guide=guide)
    error, before = ((a - truth).abs()[:, 0][:, mask[0] == 0].mean() for a in (found, free))
    assert error < 0.4 * before


def test_the_residual_draws_samples_to_solutions():
    """Samples of the line that should be harmonic on a periodic line: constant."""
    model, _ = field_model()
    grid = fd.Grid((12,), periodic=True, extent=12.0)
    residual = StencilResidual(grid)
    free = model.sample(32, seed=0, dtype=torch.float64)
    found = model.sample(32, seed=0, dtype=torch.float64, guide=Guide(residual=residual, residual_weight=0.03))
    assert residual(found).square().mean() < 0.2 * residual(free).square().mean()
    with pytest.raises(ValueError, match="both"):
        Guide(observed=1.0)


def test_refiner_steps_and_rolls_out():
    """With the networks that know the answer u -> u/2, every stage gives it."""
    def network(x, k, now):
        stage = (k * 3 / 1000).round().long()
        sigma = torch.from_numpy(model.sigmas)[stage].to(x)[:, None, None]
        return torch.where(stage[:, None, None] == 0, now / 2, (x - now / 2) / sigma)

    model = Refiner(network, refinements=3)
    u = torch.randn(4, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(model.rollout(u, 3)[-1], u / 8)
    assert model.loss(u, u / 2) < 1e-20
    assert model.loss(u, u / 3) > 1e-3
    with pytest.raises(ValueError, match="same shape"):
        model.loss(u, u[:1])
    with pytest.raises(ValueError, match="at least one refinement"):
        Refiner(network, refinements=0)
