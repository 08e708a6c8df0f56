"""Diffusion models: schedules, samplers against diffusers step by step, data whose best denoiser is known."""

import numpy as np
import pytest
import torch

import fastdiff as fd  # noqa: F401
from fastdiff.nn import DDPM, EMA, UNet, schedules
from fastdiff.nn import functional as F
from fastdiff.nn.ddpm import NoiseSource
from fastdiff.nn.samplers import METHODS, meaning
from fastdiff.nn.schedules import Schedule, betas, karras_sigmas, make_schedule, min_snr_weight

# -- schedules -------------------------------------------------------------------------------------------------------

TABLES = {  # beta_0, beta_499, beta_999, alpha_bar_0, alpha_bar_499, alpha_bar_999 in float64
    ("linear",): (1e-4, 0.01004004004, 0.02, 0.9999, 0.07858724288, 4.035829765e-05),
    ("scaled_linear", 1e-4, 0.02): (1e-4, 0.005722151148, 0.02, 0.9999, 0.3331877674, 7.334124596e-04),
    ("scaled_linear",): (8.5e-4, 0.004803792981, 0.012, 0.99915, 0.2776696505, 4.660098513e-03),
    ("cosine",): (4.128422482e-5, 0.00314588623, 0.999, 0.9999587158, 0.4938435904, 2.428766907e-09),
    ("sigmoid_beta",): (1.492051961e-4, 0.010020121, 0.01995079592, 0.9998507948, 0.3019310397, 3.968182978e-05),
}


@pytest.mark.parametrize("key", TABLES, ids=lambda k: "-".join(map(str, k)))
def test_schedules_have_the_published_numbers(key):
    ends = dict(zip(("start", "end"), key[1:]))
    b, table = betas(key[0], 1000, **ends), make_schedule(key[0], 1000, **ends).alpha_bar
    assert table is not None
    at = [0, 499, 999]
    rtol = 1e-6 if key[0] == "sigmoid_beta" else 2e-9  # that one is known from float32 betas only
    np.testing.assert_allclose([*b[at], *table[at]], TABLES[key], rtol=rtol)


def test_schedules_equal_their_definitions():
    """Written again, one number at a time, from the papers."""
    from math import cos, exp, pi

    def sigmoid(x):
        return 1 / (1 + exp(-x))

    def cumulated(signal):
        product, found = 1.0, []
        for t in range(1000):
            product *= 1 - min(1 - signal((t + 1) / 1000) / signal(t / 1000), 0.999)
            found.append(product)
        return found

    expected = {
        "cosine": cumulated(lambda t: cos((t + 0.008) / 1.008 * pi / 2) ** 2),
        "sigmoid": cumulated(lambda t: (sigmoid(3) - sigmoid(6 * t - 3)) / (sigmoid(3) - sigmoid(-3))),
    }
    def from_betas(beta):
        product, found = 1.0, []
        for t in range(1000):
            product *= 1 - beta(t / 999)
            found.append(product)
        return found

    expected |= {
        "linear": from_betas(lambda t: 1e-4 + t * (0.02 - 1e-4)),
        "scaled_linear": from_betas(lambda t: (0.00085**0.5 + t * (0.012**0.5 - 0.00085**0.5)) ** 2),
        "sigmoid_beta": from_betas(lambda t: sigmoid(12 * t - 6) * (0.02 - 1e-4) + 1e-4),
    }
    for name, table in expected.items():
        np.testing.assert_allclose(make_schedule(name).alpha_bar, table, rtol=1e-12, atol=1e-24)
    level = make_schedule("vp").at([0.0, 0.3, 1.0])
    np.testing.assert_allclose(level.alpha**2, [exp(-9.95 * t * t - 0.1 * t) for t in (0.0, 0.3, 1.0)], rtol=1e-12)
    assert abs(make_schedule("continuous").at(0.25).alpha - cos(pi / 8)) < 1e-12


def test_karras_noise_levels():
    published = [80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.585348,
                 0.296442, 0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002]
    np.testing.assert_allclose(karras_sigmas(18), published, rtol=1e-5)
    np.testing.assert_allclose(Schedule("karras").path(18).sigma, [*karras_sigmas(18), 0], rtol=1e-12)


def test_zero_terminal_schedules_end_without_signal():
    s = make_schedule("linear", 100, rescale=True)
    assert s.alpha_bar is not None and s.alpha_bar[-1] == 0
    np.testing.assert_allclose(s.alpha_bar[0], 1 - 1e-4, rtol=1e-14)
    with pytest.raises(ValueError, match='zero signal at t = 99.*prediction="v"'):
        DDPM(zero, (1,), schedule=s)
    x = DDPM(zero, (1,), schedule=s, prediction="v").sample(2, method="ddim", steps=5)
    assert torch.isfinite(x).all()
    with pytest.raises(ValueError, match="divides by the signal"):
        DDPM(zero, (1,), schedule=s, prediction="v").sample(2, method="euler", spacing="trailing", steps=5)


def zero(x, t, condition=None):
    return torch.zeros_like(x)


def test_min_snr_weights():
    level = make_schedule("linear").at([10, 500, 990])
    snr = level.alpha**2 / level.sigma**2
    np.testing.assert_allclose(min_snr_weight(level, "epsilon"), np.minimum(snr, 5) / snr)
    np.testing.assert_allclose(min_snr_weight(level, "sample"), np.minimum(snr, 5))
    np.testing.assert_allclose(min_snr_weight(level, "v"), np.minimum(snr, 5) / (snr + 1))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "edm"])
def test_predictions_mean_what_they_say(prediction, rng):
    """From the target the network should give, data and noise come back."""
    s = make_schedule("karras" if prediction == "edm" else "cosine")
    level = s.at(0.4 if prediction == "edm" else 300)
    m, x0, e = meaning(prediction, level), rng.standard_normal(5), rng.standard_normal(5)
    x, f = level.alpha * x0 + level.sigma * e, m.p * x0 + m.q * e
    np.testing.assert_allclose(m.data_state * x + m.data_model * f, x0, rtol=1e-10)
    np.testing.assert_allclose(m.noise_state * x + m.noise_model * f, e, rtol=1e-9)


# -- diffusers, step by step -------------------------------------------------------------------------------------------


def dummy(x, t, condition=None):
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return x * t / (t + 1)


def sample_dummy():
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2).contiguous()


def float64_table(scheduler, alpha_bar):
    scheduler.alphas_cumprod = torch.from_numpy(alpha_bar)
    return scheduler


def their_path(scheduler, x, prediction_scale=lambda i, x: x, noise=None):
    """States of a diffusers scheduler in float64 on the outputs of `dummy`."""
    states = [x]
    for t in scheduler.timesteps:
        m = dummy(scheduler.scale_model_input(x, t), torch.as_tensor(float(t)).double())
        kwargs = {} if noise is None else {"generator": noise}
        x = scheduler.step(m, t, x, **kwargs).prev_sample
        states.append(x)
    return torch.stack(states)


def ours(table, prediction, clip, **how):
    model = DDPM(dummy, (3, 8, 8), schedule=table, prediction=prediction, clip=clip)
    start = sample_dummy().double() if "start" not in how else how.pop("start")
    return model.sample(start=start, trajectory=True, **how)


PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_follows_diffusers(prediction, schedule):
    diffusers = pytest.importorskip("diffusers")
    table = make_schedule(schedule).alpha_bar
    theirs = float64_table(diffusers.DDPMScheduler(prediction_type=PREDICTIONS[prediction]), table)
    theirs.set_timesteps(50)
    g = torch.Generator().manual_seed(0)
    expected = their_path(theirs, sample_dummy().double(), noise=torch.Generator().manual_seed(0))
    found = ours(table, prediction, 1.0, steps=50,
                 noise=lambda i: torch.randn(4, 3, 8, 8, generator=g, dtype=torch.float64))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_follows_diffusers(prediction, eta, spacing):
    diffusers = pytest.importorskip("diffusers")
    table = make_schedule("linear").alpha_bar
    theirs = diffusers.DDIMScheduler(beta_schedule="linear", prediction_type=PREDICTIONS[prediction],
                                     timestep_spacing=spacing)
    float64_table(theirs, table).final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(20)
    g, x = torch.Generator().manual_seed(1), sample_dummy().double()
    expected = [x]
    other = torch.Generator().manual_seed(1)
    for t in theirs.timesteps:
        m = dummy(expected[-1], torch.as_tensor(float(t)).double())
        z = torch.randn(4, 3, 8, 8, generator=other, dtype=torch.float64) if eta and int(t) >= 50 else None
        kwargs = {"variance_noise": z} if z is not None else {"generator": other}
        expected.append(theirs.step(m, t, expected[-1], eta=eta, **kwargs).prev_sample)
    expected = torch.stack(expected)
    found = ours(table, prediction, 1.0, steps=20, method="ddim", eta=eta, spacing=spacing,
                 noise=lambda i: torch.randn(4, 3, 8, 8, generator=g, dtype=torch.float64))
    limit = 1e-5 * expected.abs().max()
    assert (found[:-1] - expected[:-1]).abs().max() <= limit
    if not eta:
        assert (found[-1] - expected[-1]).abs().max() <= limit


@pytest.mark.parametrize(("method", "name", "prediction"), [
    *(("euler", "EulerDiscreteScheduler", p) for p in PREDICTIONS),
    *(("heun", "HeunDiscreteScheduler", p) for p in ("epsilon", "v")),  # theirs does not know "sample"
])
def test_euler_and_heun_follow_diffusers(method, name, prediction):
    """Theirs holds x / alpha."""
    diffusers = pytest.importorskip("diffusers")
    table = make_schedule("scaled_linear").alpha_bar
    assert table is not None
    theirs = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                      prediction_type=PREDICTIONS[prediction], timestep_spacing="trailing")
    theirs.alphas_cumprod = torch.from_numpy(table)
    theirs.set_timesteps(20)
    sigma = np.sqrt(1 / table[np.asarray(Schedule("t", table).path(20, "trailing").t[:-1], int)] - 1)
    x = sample_dummy().double()
    found = ours(table, prediction, None, steps=20, method=method, spacing="trailing", start=x)
    path = Schedule("t", table).path(20, "trailing")
    if method == "euler":
        theirs.sigmas = torch.from_numpy(np.append(sigma, 0.0))
        expected = their_path(theirs, x / path.alpha[0])
        alpha = torch.from_numpy(path.alpha)
    else:
        twice = np.append(np.concatenate([sigma[:1], np.repeat(sigma[1:], 2)]), 0.0)
        theirs.sigmas = torch.from_numpy(twice)
        expected = their_path(theirs, x / path.alpha[0])
        steps = DDPM(dummy, (1,), schedule=table, prediction=prediction).plan(20, "heun", "trailing")
        alpha = torch.tensor([path.alpha[0], *(s.to.alpha for s in steps)], dtype=torch.float64)
    expected = expected * alpha.reshape(-1, 1, 1, 1, 1)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm_solver_follows_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    table = make_schedule("linear").alpha_bar
    assert table is not None
    theirs = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", prediction_type=PREDICTIONS[prediction])
    theirs.set_timesteps(20)
    t = np.asarray(theirs.timesteps)
    theirs.sigmas = torch.from_numpy(np.append(np.sqrt(1 / table[t] - 1), 0.0))
    expected = their_path(theirs, sample_dummy().double())
    model = DDPM(dummy, (3, 8, 8), schedule=table, prediction=prediction, clip=None)
    path = schedules.Level(*(np.append(np.array(a), b) for a, b in zip(model.schedule.at(t), (-1.0, 1.0, 0.0))))
    from fastdiff.nn.samplers import plan

    model.plan = lambda *a, **k: plan("dpm++", path, prediction)  # their times, which are not those of our spacings
    found = model.sample(start=sample_dummy().double(), trajectory=True, method="dpm++", steps=20)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_edm_euler_has_the_sum_that_diffusers_asserts():
    """EDMEulerScheduler, 10 steps on the dummy model: |sum| 34.1855, mean 0.044."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler()
    theirs.set_timesteps(10)
    x = sample_dummy() * theirs.init_noise_sigma
    model = DDPM(dummy, (3, 8, 8), schedule="karras", clip=None, data_range=None)
    model.schedule = Schedule("karras")
    for i, t in enumerate(theirs.timesteps):
        m = dummy(theirs.scale_model_input(x, t), torch.as_tensor(float(t)))
        step = model.plan(10, "euler")[i]
        np.testing.assert_allclose(step.level.sigma, float(theirs.sigmas[i]), rtol=1e-5)
        assert abs(np.log(step.level.sigma) / 4 - float(t)) < 1e-5
        mine = F.reverse_step(x, m, step.coefficients)
        x = theirs.step(m, t, x).prev_sample
        assert (mine - x).abs().max() <= 1e-5 * x.abs().max()
    assert abs(x.abs().sum() - 34.1855) < 1e-2


@pytest.mark.parametrize(("method", "total"), [("ddpm", 258.9606), ("ddim", 172.0067)])
def test_sums_that_diffusers_asserts(method, total):
    g = torch.Generator().manual_seed(0)
    model = DDPM(dummy, (3, 8, 8), schedule="linear", clip=1.0)
    x = model.sample(start=sample_dummy(), method=method, steps=10 if method == "ddim" else 1000,
                     noise=lambda i: torch.randn(4, 3, 8, 8, generator=g))
    assert abs(x.abs().sum() - total) < 1e-2


# -- Gaussian data: the best denoiser is known -----------------------------------------------------------------------

MEAN, COVARIANCE = np.array([0.5, -1.0]), np.array([[1.0, 0.6], [0.6, 0.5]])


def best(model):
    """E[x_0 | x_t] for normal data, as the network's output."""
    S, mean = torch.tensor(COVARIANCE, dtype=torch.float32), torch.tensor(MEAN, dtype=torch.float32)

    def network(x, t):
        if model.schedule.name == "karras":
            level = schedules.Level(0.0, 1.0, float(torch.exp(4 * t[0])))
        else:
            level = model.schedule.at(float(t[0]) / (1 if model.schedule.steps else 1000))
        m = meaning(model.prediction, schedules.Level(*map(float, level)))
        x = x / m.scale
        gain = level.alpha * S @ torch.linalg.inv(level.alpha**2 * S + level.sigma**2 * torch.eye(2))
        data = mean + (x - level.alpha * mean) @ gain.T.to(x.dtype)
        return (data - m.data_state * x) / m.data_model

    return network


@pytest.mark.parametrize(("method", "schedule", "prediction", "steps"), [
    ("ddpm", "linear", "epsilon", 400), ("ddpm", "cosine", "v", 400), ("ddim", "linear", "sample", 200),
    ("euler", "linear", "epsilon", 200), ("heun", "linear", "v", 40), ("dpm++", "linear", "epsilon", 60),
    ("heun", "karras", "edm", 30), ("dpm++", "karras", "edm", 40), ("ddpm", "continuous", "v", 400),
    ("ddim", "vp", "epsilon", 300),
])
def test_gaussian_data_is_sampled_with_its_mean_and_covariance(method, schedule, prediction, steps):
    model = DDPM(zero, (2,), schedule=schedule, prediction=prediction, clip=None, data_range=None)
    model.network = best(model)
    n = 10000
    x = model.sample(n, method=method, steps=steps, seed=1).double().numpy()
    assert np.abs(x.mean(0) - MEAN).max() < 0.03
    assert np.abs(np.cov(x.T) - COVARIANCE).max() < 0.04


# -- training, and whatever a user does ------------------------------------------------------------------------------


def small(ndim, **more):
    return UNet(ndim, 2, width=8, multipliers=(1, 2), blocks=1, **more)


@pytest.mark.parametrize("space", [(10,), (7, 9), (4, 5, 6)])
@pytest.mark.parametrize("method", METHODS)
def test_samplers_work_in_every_dimension(space, method):
    model = DDPM(small(len(space), attention=(1,)), (2, *space), steps=10, seed=3)
    x = model.sample(2, steps=4, method=method)
    assert x.shape == (2, 2, *space) and torch.isfinite(x).all()


@pytest.mark.parametrize("how", [
    dict(schedule="linear"), dict(schedule="cosine", prediction="v", min_snr=5.0), dict(schedule="karras"),
    dict(schedule="continuous", prediction="sample"), dict(schedule="vp", min_snr=5.0)])
def test_training_lowers_the_loss(how):
    """On data of one point every target can be known."""
    torch.manual_seed(0)
    x = torch.tensor([0.5, -0.5]).expand(256, 2).contiguous()
    net = nn_line()
    model = DDPM(net, (2,), seed=1, **how)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)

    def mean_loss():  # always over the same noise and levels
        model.noise = NoiseSource(9)
        return np.mean([float(model.loss(x)) for _ in range(20)])

    before = mean_loss()
    model.noise = NoiseSource(1)
    for _ in range(150):
        optimiser.zero_grad()
        model.loss(x).backward()
        optimiser.step()
    assert mean_loss() < 0.5 * before


class nn_line(torch.nn.Module):
    """A small network of numbers and a time."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(34, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64),
                                          torch.nn.SiLU(), torch.nn.Linear(64, 2))

    def forward(self, x, t, condition=None):
        return self.layers(torch.cat([x, F.time_embedding(t, 32)], 1))


def test_noise_is_used_once_and_resumes(tmp_path):
    """A model saved and loaded goes on with the noise that the first would have used."""
    x = torch.randn(4, 2).clamp(-1, 1)
    torch.manual_seed(0)
    a, b = DDPM(nn_line(), (2,), seed=5), DDPM(nn_line(), (2,), seed=6)
    first = a.loss(x)
    torch.save(a.state_dict(), tmp_path / "state.pt")
    b.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False))
    second = a.loss(x)
    assert torch.equal(second, b.loss(x)) and not torch.equal(first, second)


def test_the_same_seed_gives_the_same_samples_in_any_company():
    model = DDPM(nn_line(), (2,), steps=20)
    x = model.sample(5, seed=3)
    assert torch.equal(x, model.sample(5, seed=3)) and not torch.equal(x, model.sample(5, seed=4))
    torch.testing.assert_close(x[:2], model.sample(2, seed=3))
    assert not torch.equal(model.sample(2), model.sample(2))


def test_guidance_extrapolates_from_the_condition():
    seen = []

    def network(x, t, c):
        seen.append(c.clone())
        return torch.ones_like(x) * c[:, None]

    model = DDPM(network, (3,), schedule="linear", null=0.0, clip=None, drop=0.5)
    c = torch.tensor([1.0, 2.0])
    step = model.plan(10, "ddim", guidance=3.0)[0]
    x = model.sample(2, steps=10, method="ddim", condition=c, guidance=3.0, seed=0, trajectory=True)
    m = (c + 3 * (c - 0))[:, None].expand(2, 3)
    torch.testing.assert_close(x[1], F.reverse_step(x[0], m.contiguous(), step.coefficients))
    seen.clear()
    model.loss(torch.zeros(200, 3), torch.ones(200))
    assert 50 < int((seen[0] == 0).sum()) < 150
    with pytest.raises(ValueError, match="null"):
        DDPM(network, (3,)).sample(condition=c, guidance=1.0)


def test_inpainting_keeps_what_is_known():
    """Two numbers that go together: with one known, the other is its conditional mean."""
    model = DDPM(zero, (2,), schedule="linear", steps=200, clip=None, data_range=None)
    model.network = best(model)
    known, mask = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    x = model.sample(4000, known=known, mask=mask, resample=8, steps=50, seed=0)
    assert torch.equal(x[:, 0], torch.ones(4000))
    expected = MEAN[1] + COVARIANCE[0, 1] / COVARIANCE[0, 0] * (1 - MEAN[0])
    assert abs(x[:, 1].mean() - expected) < 0.08
    with pytest.raises(ValueError, match="both"):
        model.sample(2, known=known)


def test_averaged_weights():
    net = torch.nn.Linear(1, 1)
    ema, seen = EMA(net, 0.5), [net.weight.item()]
    for n in range(1, 12):
        with torch.no_grad():
            net.weight.add_(1.0)
        ema.update()
        keep = min(0.5, (1 + n) / (10 + n))
        seen.append(keep * seen[-1] + (1 - keep) * net.weight.item())
    last = net.weight.item()
    with ema.applied():
        assert abs(net.weight.item() - seen[-1]) < 1e-5
    assert net.weight.item() == last


def test_networks_of_others_fit():
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
                                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
                                norm_num_groups=4)
    model = DDPM(lambda x, t: net(x, t).sample, (1, 8, 8))
    model.loss(torch.rand(2, 1, 8, 8)).backward()
    assert model.sample(1, steps=2, method="ddim").shape == (1, 1, 8, 8)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_says_what_to_do(tmp_path):
    x = torch.zeros(2, 3).uniform_(-1, 1)
    model = DDPM(zero, (3,), steps=10)
    for t in (10, -1, torch.tensor([0, 11])):
        with pytest.raises(ValueError, match="timesteps must lie between 0 and 9"):
            model.loss(x, t=t)
    with pytest.raises(ValueError, match=r"data has shape \(2, 4\); expected \(batch, 3\)"):
        model.loss(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="this U-Net takes \\(batch, 2, x, y\\)"):
        small(2)(torch.zeros(1, 2, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="unknown schedule 'lin'; known: linear"):
        DDPM(zero, (3,), schedule="lin")
    with pytest.raises(ValueError, match="unknown sampler 'plms'; known"):
        model.sample(1, method="plms")
    with pytest.raises(ValueError, match="between 1 and 10 steps"):
        model.sample(1, steps=11)
    with pytest.raises(ValueError, match="unknown prediction"):
        DDPM(zero, (3,), prediction="x")
    with pytest.raises(ValueError, match="go together"):
        DDPM(zero, (3,), schedule="karras", prediction="v")
    with pytest.raises(ValueError, match="eta"):
        model.sample(1, eta=1.0)
    with pytest.raises(ValueError, match="never rise"):
        DDPM(zero, (3,), schedule=[0.1, 0.9])
    with pytest.raises(ValueError, match="another model.*prediction: 'v' there, 'epsilon' here"):
        model.load_state_dict(DDPM(zero, (3,), steps=10, prediction="v").state_dict())


def test_data_out_of_range_is_told_once():
    model = DDPM(zero, (3,))
    with pytest.warns(UserWarning, match=r"data lies between 0 and 255.*scale it, x = -1 \+ 2 \* \(x - 0\) / 255"):
        model.loss(torch.tensor([[0.0, 255.0, 3.0]]))
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.loss(torch.tensor([[0.0, 255.0, 3.0]]))
        DDPM(zero, (3,), data_range=None).loss(torch.tensor([[0.0, 255.0, 3.0]]))


@pytest.mark.parametrize(("x", "kind"), [(np.zeros((3, 1, 8, 8)), "ndarray"),
                                         (torch.zeros(3, 1, 8, 8, dtype=torch.int64), "torch.int64"),
                                         (torch.zeros(3, 1, 8, 8, dtype=torch.float16), "torch.float16")],
                         ids=["numpy", "int", "half"])
def test_data_of_other_kinds_says_what_to_do(x, kind):
    ddpm = DDPM(torch.nn.Identity(), (1, 8, 8))
    with pytest.raises(TypeError, match=rf"data is a torch tensor of float32 or float64, not {kind}: pass torch"):
        ddpm.loss(x)
