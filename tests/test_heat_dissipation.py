"""Heat as a noise process: the blur against its formulas, and models that undo it; the variational autoencoder."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

import fastdiff as fd
from fastdiff.nn import Blur, BlurringDiffusion, DiffusionVAE, HeatDissipation, UNet
from fastdiff.nn.heat_dissipation import blur_scales, pixel_grid


def by_cosines(u, tau):
    """Rissanen et al. 2023, appendix: u = C^T exp(-Lambda tau) C u_0."""
    axes = tuple(range(2, u.ndim))
    rates = sum((np.pi * np.arange(n) / n).reshape([-1 if k == a else 1 for k in range(len(axes))]) ** 2
                for a, n in enumerate(u.shape[2:]))
    tau = np.broadcast_to(tau, len(u)).reshape(-1, *[1] * (u.ndim - 1))
    return idctn(dctn(u, axes=axes, norm="ortho") * np.exp(-rates * tau), axes=axes, norm="ortho")


@pytest.mark.parametrize("shape", [(17,), (8, 12), (5, 6, 7)])
@pytest.mark.parametrize("tau", [0.0, 0.125, 200.0, [0.0, 3.0, 50.0]])
def test_blur_equals_the_cosine_formula(shape, tau, rng):
    u = rng.standard_normal((3, 2, *shape))
    found = Blur(shape)(torch.from_numpy(u), tau).numpy()
    np.testing.assert_allclose(found, by_cosines(u, tau), rtol=0, atol=1e-13)
    single = Blur(shape)(torch.from_numpy(u.astype(np.float32)), tau).numpy()
    np.testing.assert_allclose(single, by_cosines(u, tau), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(17,), (8, 12), (4, 5, 6)])
def test_march_equals_the_symbol_of_ftcs(shape, rng):
    """n steps with r = dt: (1 - 4 r sum sin^2(pi k / 2N))^n."""
    u, n, r = rng.standard_normal((2, 1, *shape)), 40, 0.1
    found = Blur(shape, symbol="march", dt=r)(torch.from_numpy(u), n * r).numpy()
    axes = tuple(range(2, u.ndim))
    rates = sum(4 * np.sin(np.pi * np.arange(k) / (2 * k)).reshape([-1 if j == a else 1 for j in range(len(axes))]) ** 2
                for a, k in enumerate(shape))
    expected = idctn(dctn(u, axes=axes, norm="ortho") * (1 - r * rates) ** n, axes=axes, norm="ortho")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_each_sample_marches_to_its_own_time(rng):
    u = torch.from_numpy(rng.standard_normal((4, 2, 6, 5)))
    blur, tau = Blur((6, 5), symbol="march", dt=0.1), np.array([2.0, 0.0, 1.0, 2.0])
    each = torch.cat([blur(u[i:i + 1], tau[i]) for i in range(4)])
    torch.testing.assert_close(blur(u, tau), each, rtol=1e-12, atol=1e-13)
    assert torch.equal(blur(u, tau)[1], u[1])


@pytest.mark.parametrize(("grid", "boundary"), [
    (fd.Grid((9, 8), periodic=True), None),
    (fd.Grid((9, 8), periodic=(True, False)), fd.Dirichlet(0.0)),
    (fd.Grid((9, 8)), {"x": (fd.Dirichlet(0.0), fd.Neumann(0.0))}),
    (fd.Grid((9, 8), extent=(9.0, 8.0), centering="cells"), fd.Dirichlet(0.0)),
])
@pytest.mark.parametrize("symbol", ["exact", "discrete"])
def test_any_boundary_with_modes(grid, boundary, symbol, rng):
    from fastdiff.steppers.spectral import propagate

    u = rng.standard_normal((2, 3, 9, 8))
    found = Blur((9, 8), grid=grid, boundary=boundary, symbol=symbol)(torch.from_numpy(u), 0.02)
    expected = propagate(u.reshape(6, 1, 9, 8), grid, boundary, 1.0, 0.02, symbol).reshape(u.shape)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)


def test_any_equation_can_be_the_forward_process(rng):
    grid = fd.Grid((16, 16), periodic=True, extent=1.25 / 8)
    equation = fd.GrayScott(F=0.03, k=0.06)
    u = torch.from_numpy(rng.uniform(0.3, 0.6, (2, 2, 16, 16)))
    blur = Blur((16, 16), grid=grid, symbol="march", equation=equation, dt=0.5)
    expected = fd.solve(equation, u, grid, 10.0, dt=0.5, method="euler").final
    torch.testing.assert_close(blur(u, 10.0), expected)
    model = HeatDissipation(lambda x, k: 0 * x, (2, 16, 16), steps=5, forward_process=blur)
    assert torch.isfinite(model.loss(u.float()))


def test_scales_of_the_paper():
    s = blur_scales(100, 20.0)
    assert len(s) == 101 and s[0] == 0 and abs(s[1] - 0.5) < 1e-12 and abs(s[-1] - 20) < 1e-12
    np.testing.assert_allclose(np.diff(np.log(s[1:])), np.log(40) / 99)


def test_loss_of_the_paper(rng):
    """With a known network: |u_{k-1} - (u_k + noise + f)|^2."""
    u = torch.from_numpy(rng.standard_normal((64, 1, 8, 8)))
    model = HeatDissipation(lambda x, k: torch.zeros_like(x), (1, 8, 8), steps=4, most=3.0, noise=0.01, seed=2)
    found, source = float(model.loss(u)), type(model.noise)(2)
    source.next()
    k = source.generator().integers(1, 5, size=64)
    difference = by_cosines(u.numpy(), model.scales[k - 1] ** 2 / 2) - by_cosines(u.numpy(), model.scales[k] ** 2 / 2)
    assert abs(found - (np.mean(difference**2) + 1e-4)) < 3e-3 * found


def test_the_inverse_of_the_blur_brings_data_back(rng):
    """The network that knows the answer (one image) restores it from its blur."""
    u = torch.from_numpy(rng.standard_normal((1, 1, 8, 8)))
    blur = Blur((8, 8))

    def network(x, k):
        i = int(k[0])
        return blur(u, model.scales[i - 1] ** 2 / 2) - blur(u, model.scales[i] ** 2 / 2) + 0 * x

    model = HeatDissipation(network, (1, 8, 8), steps=10, most=4.0, noise=0.0, delta=0.0)
    torch.testing.assert_close(model.sample(model.at(u, 10)), u)
    path = model.sample(model.at(u, 10), trajectory=True)
    assert path.shape == (11, 1, 1, 8, 8)


def test_blurring_diffusion_samples_gaussian_data():
    """Independent modes of known variance and the best denoiser: the variance comes back."""
    variance = 1 / (1 + np.arange(4)[:, None] + np.arange(4)[None])
    model = BlurringDiffusion(lambda x, t: x, (1, 4, 4), steps=250, most=2.0)
    v = torch.from_numpy(variance)

    def network(z, t):
        alpha, sigma = (torch.from_numpy(a) for a in model.signal(float(t[0]) / 1000))
        modes = model.modes(z)
        data = modes * alpha * v / (alpha**2 * v + sigma**2)
        return model.modes((modes - alpha * data) / sigma, inverse=True)

    model.network = network
    x = model.modes(model.sample(4000, seed=0, dtype=torch.float64))
    np.testing.assert_allclose(x.var(0)[0].numpy(), variance, rtol=0.09, atol=0.004)
    assert abs(float(x.mean())) < 0.02


def test_models_train_and_resume():
    torch.manual_seed(0)
    u = torch.rand(8, 1, 8, 8) * 2 - 1
    for make in (lambda: HeatDissipation(small(), (1, 8, 8), steps=5),
                 lambda: BlurringDiffusion(small(), (1, 8, 8), steps=5), lambda: DiffusionVAE((1, 8, 8), latent=4)):
        torch.manual_seed(1)
        a = make()
        optimiser = torch.optim.Adam(a.parameters(), 1e-3)
        for _ in range(3):
            optimiser.zero_grad()
            a.loss(u).backward()
            optimiser.step()
        b = make()
        b.load_state_dict(a.state_dict())
        assert torch.equal(a.loss(u), b.loss(u))
        with pytest.raises(ValueError, match="another model"):
            b.load_state_dict(DiffusionVAE((1, 8, 8), latent=5).state_dict() | {
                k: v for k, v in a.state_dict().items() if "_extra_state" not in k})


def small():
    return UNet(2, 1, width=8, multipliers=(1,), blocks=1)


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="never|not negative"):
        Blur((4,))(torch.zeros(1, 1, 4), -1.0)
    with pytest.raises(ValueError, match="expected \\(batch, channels, 4\\)"):
        Blur((4,))(torch.zeros(1, 4), 1.0)
    with pytest.raises(ValueError, match='use symbol="march"'):
        Blur((4,), boundary=fd.Robin(1.0, 1.0))
    with pytest.raises(ValueError, match='must be 0; use symbol="march"'):
        Blur((4,), boundary=fd.Dirichlet(1.0))
    with pytest.raises(ValueError, match="levels lie between 0 and 100"):
        HeatDissipation(small(), (1, 4, 4)).at(torch.zeros(1, 1, 4, 4), 101)
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 4, 4\)"):
        HeatDissipation(small(), (1, 4, 4)).loss(torch.zeros(1, 1, 5, 4))
    with pytest.raises(ValueError, match="shape is \\(channels, \\*space\\)"):
        HeatDissipation(small(), (4,))
    assert pixel_grid((3, 4)).spacing == (1.0, 1.0)


# -- the variational autoencoder -------------------------------------------------------------------------------------


def test_divergence_is_that_of_torch():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(DiffusionVAE.divergence(mean, log_variance), expected)


def test_likelihoods_are_those_of_torch():
    x, found = torch.rand(4, 6), torch.randn(4, 6)
    bernoulli = DiffusionVAE((6,), likelihood="bernoulli")
    expected = -torch.distributions.Bernoulli(logits=found).log_prob((x > 0.5).float()).sum(1).mean()
    torch.testing.assert_close(bernoulli.reconstruction(found, (x > 0.5).float()), expected)
    gaussian = DiffusionVAE((6,)).eval()
    gaussian.variance.fill_(0.3)
    expected = -torch.distributions.Normal(found, 0.3**0.5).log_prob(x).sum(1).mean()
    torch.testing.assert_close(gaussian.reconstruction(found, x), expected)
    gaussian.train()
    best = -torch.distributions.Normal(found, ((found - x) ** 2).mean().sqrt()).log_prob(x).sum(1).mean()
    torch.testing.assert_close(gaussian.reconstruction(found, x), best)


def test_linear_autoencoder_finds_the_variance_of_its_data():
    """Gaussian data of rank one plus noise: the learnt noise is the data's (probabilistic PCA)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=g) * torch.tensor([1.0, -2.0, 0.5, 1.0])
    x = x + 0.2 * torch.randn(4000, 4, generator=g)
    torch.manual_seed(0)
    model = DiffusionVAE((4,), latent=1, encoder=torch.nn.Linear(4, 2), decoder=torch.nn.Linear(1, 4))
    optimiser = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(600):
        optimiser.zero_grad()
        model.loss(x).backward()
        optimiser.step()
    model.eval()
    assert abs(float(model.variance) - 0.04) < 0.012
    c = torch.cov(model.sample(20000, seed=1, noise=True).T)
    assert (c - torch.cov(x.T)).abs().max() < 0.35


def test_bernoulli_needs_data_within_bounds():
    with pytest.raises(ValueError, match=r"within \[0, 1\], got -1 to 2"):
        DiffusionVAE((2,), likelihood="bernoulli").loss(torch.tensor([[-1.0, 2.0]]))
    with pytest.raises(ValueError, match="unknown likelihood"):
        DiffusionVAE((2,), likelihood="poisson")
