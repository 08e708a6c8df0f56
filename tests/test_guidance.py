"""Physics inside sampling: the residual and its gradient, fields from sparse observations, refined rollouts."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastdiff as fd
from fastdiff.nn import DDPM, EquationResidual, Guide, Refiner, StencilResidual

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


def test_observations_lead_to_their_posterior():
    """With the best denoiser of Gaussian data: mean and covariance of the fields that agree with what was seen."""
    model, C = field_model()
    z = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = torch.linalg.cholesky(C + 1e-10 * torch.eye(12)) @ z
    mask = torch.zeros(1, 12, dtype=torch.float64)
    mask[0, ::3] = 1
    seen = mask[0] == 1
    gain = C[:, seen] @ torch.linalg.inv(C[seen][:, seen] + 0.02**2 * torch.eye(4))
    mean, covariance = gain @ truth[seen], C - gain @ C[seen]  # of all fields that agree with what was seen
    guide = Guide(observed=truth[None], mask=mask, noise=0.02, iterations=4)
    for how in ({}, {"method": "ddim", "steps": 100, "eta": 1.0}, {"method": "dpm++", "steps": 50}):
        found = model.sample(256, seed=0, dtype=torch.float64, guide=guide, **how)[:, 0]
        assert (found.mean(0) - mean).abs().max() < 0.15, how
        if how.get("eta", 1.0):
            assert (torch.cov(found.T) - covariance).abs().max() < 0.12, how


def test_the_residual_draws_samples_to_solutions():
    """Samples of the line that should be harmonic on a periodic line: constant."""
    model, _ = field_model()
    grid = fd.Grid((12,), periodic=True, extent=12.0)
    residual = StencilResidual(grid)
    free = model.sample(32, seed=0, dtype=torch.float64)
    found = model.sample(32, seed=0, dtype=torch.float64, guide=Guide(residual=residual))
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
    with pytest.raises(ValueError, match="refinements are not negative"):
        Refiner(network, refinements=-1)


@pytest.mark.parametrize("refinements", [0, 3])
def test_refiner_learns_the_change(refinements):
    """u -> u + 0.1 (-5 u) in units of the change, 0.1: the network has to say -5 u, and then the noise."""
    def network(x, k, now):
        stage = (k * 3 / 1000).round().long()
        sigma = torch.from_numpy(model.sigmas)[stage].to(x)[:, None, None]
        return torch.where(stage[:, None, None] == 0, -5 * now, (x + 5 * now) / sigma)

    model = Refiner(network, refinements=refinements, change=0.1)
    u = torch.randn(4, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(model.rollout(u, 3)[-1], u / 8)
    assert model.loss(u, u / 2) < 1e-20
    assert model.loss(u, u / 3) > 1e-3
    with pytest.raises(ValueError, match="change is positive"):
        Refiner(network, change=0.0)


def test_equation_residual_is_the_time_derivative():
    """Of Gray-Scott in a model's scale, each sample with its own F: the formula; and its gradient."""
    grid = fd.Grid((6, 6), extent=(0.06, 0.06), periodic=True)
    low, half, F = torch.tensor([0.2, 0.1]), torch.tensor([0.4, 0.2]), torch.tensor([0.03, 0.05])
    residual = EquationResidual(fd.GrayScott(F=0.01, k=0.06), grid, low=low, half=half, F=F)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    u, v = (low[:, None, None] + half[:, None, None] * (x + 1)).unbind(1)
    lap = [sum(torch.roll(a, s, d) for s in (1, -1) for d in (1, 2)) - 4 * a for a in (u, v)]
    f, react = F.double()[:, None, None], u * v * v
    expected = torch.stack([2e-5 * lap[0] / 1e-4 - react + f * (1 - u),
                            1e-5 * lap[1] / 1e-4 + react - (f + 0.06) * v], 1)
    torch.testing.assert_close(residual(x), expected / half[:, None, None], rtol=1e-9, atol=1e-9)
    assert gradcheck(residual, (x,))
    heat = EquationResidual(fd.Heat(1.0), fd.Grid((5,), extent=5.0, periodic=True))
    torch.testing.assert_close(heat(x[:, :1, 0, :5])[0, 0, 2], (x[0, 0, 0, 1] + x[0, 0, 0, 3] - 2 * x[0, 0, 0, 2]))
