"""Surrogates and their training: the networks, the tutorial's station, and runs that go on to the bit."""

import math
from functools import cache

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff.nn import metrics
from fastdiff.nn.training import loss_of


def heat(samples, frames, *grid, rate=0.2, seed=0):
    """Trajectories of the heat equation by central differences, walls held at zero (ghost cells)."""
    u = torch.randn(samples, 1, *grid, generator=torch.Generator().manual_seed(seed))
    smooth = fd.nn.LearnableStencil(ndim=len(grid), boundary="dirichlet", start=rate)
    with torch.no_grad():
        for _ in range(8):
            u = smooth(u)
        return torch.stack([u, *fd.nn.rollout(smooth, u, frames - 1).unbind(1)], 1)


def tutorial_pair(dtype):
    """The tutorial's network of torch's layers and of ours, from one seed."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv1d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 1, 3, padding=1)).to(dtype)
    torch.manual_seed(0)
    return theirs, fd.nn.SurrogateCNN().to(dtype)


def tutorial_data(dtype):
    """The cold rod, heated at one end: 100 points, snapshots of a thousand steps."""
    u = torch.zeros(1, 1, 100, dtype=torch.float64)
    u[..., 0] = 1.0
    states = []
    for n in range(1000):
        u = torch.cat([u[..., :1], u[..., 1:-1] + 0.4 * (u[..., 2:] - 2 * u[..., 1:-1] + u[..., :-2]), u[..., -1:]], -1)
        if n % 30 == 0:
            states.append(u)
    states = torch.cat(states).to(dtype)
    return states[:-1], states[1:]


def losses(model, x, y, steps):
    """Adam on the mean square error, by torch."""
    optimizer, found = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


@cache
def torchs_losses(dtype):
    """A thousand steps of the tutorial with torch's own layers."""
    return losses(tutorial_pair(dtype)[0], *tutorial_data(dtype), 1000)


def fused(model, x, y, steps):
    trainer = fd.nn.FusedAdam(model, lr=1e-3)
    return torch.tensor([trainer.step(x, y) for _ in range(steps)], dtype=torch.float64)


@pytest.mark.parametrize("train", [losses, fused])
def test_the_tutorials_station_in_float64(train):
    """The loss curves agree to 1e-6 at every one of 1000 steps."""
    x, y = tutorial_data(torch.float64)
    expected, found = torchs_losses(torch.float64), train(tutorial_pair(torch.float64)[1], x, y, 1000)
    assert expected[-1] < 0.1 * expected[0]
    assert ((found - expected).abs() <= 1e-6 * expected).all()


@pytest.mark.parametrize("train", [losses, fused])
def test_the_tutorials_station_in_float32(train):
    """To 1e-5 for the first 200 steps, and to the same final loss: two right convolutions part later."""
    x, y = tutorial_data(torch.float32)
    expected, found = torchs_losses(torch.float32), train(tutorial_pair(torch.float32)[1], x, y, 1000)
    assert ((found - expected).abs() <= 1e-5 * expected)[:200].all()
    assert abs(found[-1] - expected[-1]) <= 0.02 * expected[-1]


def test_the_fused_step_shares_the_models_weights():
    _, model = tutorial_pair(torch.float32)
    x, y = tutorial_data(torch.float32)
    trainer = fd.nn.FusedAdam(model, lr=1e-2, weight_decay=0.1)
    other = fd.nn.SurrogateCNN()
    other.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        before = nn.functional.mse_loss(model(x), y)
        assert trainer.step(x, y) == pytest.approx(float(before.detach()), rel=1e-5)
        optimizer.zero_grad()
        nn.functional.mse_loss(other(x), y).backward()
        optimizer.step()
    for a, b in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    saved = trainer.state_dict()
    first = [trainer.step(x, y) for _ in range(3)]
    trainer.load_state_dict(saved)
    assert [trainer.step(x, y) for _ in range(3)] == first
    with pytest.raises(TypeError, match="one channel"):
        fd.nn.FusedAdam(fd.nn.SurrogateCNN(2, 2))
    with pytest.raises(ValueError, match="dtype"):
        trainer.step(x.double(), y)


def test_the_fused_step_on_a_large_batch_is_threaded_and_the_same():
    x, y = (torch.randn(64, 1, 40, 50, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    found = []
    for threads in (1, 2, 3):
        torch.manual_seed(0)
        model = fd.nn.SurrogateCNN(ndim=2, boundary="neumann")
        trainer = fd.nn.FusedAdam(model, threads=threads)
        found.append([trainer.step(x, y) for _ in range(3)] + [p.detach().clone() for p in model.parameters()])
    assert found[0][0] == pytest.approx(float(nn.functional.mse_loss(fd.nn.SurrogateCNN(ndim=2)(x) * 0, y)), rel=1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][3:], other[3:]))
        assert other[:3] == pytest.approx(found[0][:3], rel=1e-6)


def test_networks_keep_the_grid_and_learn():
    u = torch.randn(2, 2, 16, 24)
    models = fd.nn.DilatedResNet(2, 2, 6, 1), fd.nn.SurrogateUNet(2, 2, 4, 2), fd.nn.SurrogateCNN(2, 2, 5, ndim=2)
    for model in models:
        y = model(u)
        y.square().mean().backward()
        assert y.shape == u.shape and all(p.grad is not None and p.grad.any() for p in model.parameters())
        with pytest.raises(ValueError, match=r"\(batch, 2, \*grid\)"):
            model(u[:, :1])
    with pytest.raises(ValueError, match="multiple of 4"):
        fd.nn.SurrogateUNet(2, 2, 4, 2)(u[..., :22])
    line = torch.randn(1, 1, 32)
    assert fd.nn.SurrogateUNet(ndim=1, levels=2)(line).shape == line.shape
    residual = fd.nn.SurrogateCNN(residual=True)
    plain = fd.nn.SurrogateCNN()
    plain.load_state_dict(residual.state_dict())
    torch.testing.assert_close(residual(line), line + plain(line))


def test_shifts_of_a_periodic_field_shift_the_answer():
    """What zero padding breaks: a network with periodic boundaries knows no place."""
    u = torch.randn(1, 1, 16, 16)
    for model in (fd.nn.DilatedResNet(1, 1, 4, 1), fd.nn.SurrogateCNN(ndim=2, boundary="periodic")):
        torch.testing.assert_close(model(u).roll((3, 5), (2, 3)), model(u.roll((3, 5), (2, 3))), atol=1e-5, rtol=1e-4)


def test_hybrid_modes_and_the_solver_in_the_loop():
    step = fd.nn.LearnableStencil(ndim=1, start=0.25)
    network = fd.nn.SurrogateCNN(boundary="periodic")
    u = torch.randn(2, 1, 20)
    v = step(u)
    expected = {"parallel": v + network(u), "sequential": network(v), "bypass": v + network(v)}
    for mode, value in expected.items():
        torch.testing.assert_close(fd.nn.Hybrid(step, network, mode)(u), value)
        for detach in (False, True):
            step.zero_grad()
            hybrid = fd.nn.Hybrid(step, network, mode, detach)
            loss = sum(frame.square().mean() for frame in fd.nn.rollout(hybrid, u, 3).unbind(1))
            loss.backward()
            assert (step.weight.grad is None or not step.weight.grad.any()) == detach
    with pytest.raises(ValueError, match="parallel, sequential, bypass"):
        fd.nn.Hybrid(step, network, "serial")
    with pytest.raises(ValueError, match="shape of its argument"):
        fd.nn.Hybrid(lambda u: u[..., 1:], network)(u)


def test_a_stencil_is_learned_from_data():
    """The five-point Laplacian times 0.2 comes back from fields alone."""
    u = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))  # rough: every wave number is in it
    with torch.no_grad():
        data = torch.stack([u, fd.nn.LearnableStencil(boundary="dirichlet", start=0.2)(u)], 1)
    model = fd.nn.LearnableStencil(boundary="dirichlet", start=0.05)
    fd.nn.fit(model, data, validation=None, epochs=100, batch_size=4, lr=0.02)
    truth = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]) * 0.2
    torch.testing.assert_close(model.stencil()[0, 0].detach(), truth, atol=2e-3, rtol=0)
    assert abs(float(model.stencil().sum().detach())) < 1e-6
    flat = torch.full((1, 1, 8, 8), 3.0)
    periodic = fd.nn.LearnableStencil()
    torch.testing.assert_close(periodic(flat), flat)


def test_a_bounded_number_stays_inside():
    d = fd.nn.Bounded(0.1, 0.0, 0.25)
    optimizer = torch.optim.SGD(d.parameters(), lr=1e3)
    assert float(d()) == pytest.approx(0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (-d()).backward()
        optimizer.step()
    assert 0.24 < float(d()) <= 0.25
    with pytest.raises(ValueError, match="between 0.0 and 0.25"):
        fd.nn.Bounded(0.3, 0.0, 0.25)


# -- training ----------------------------------------------------------------------------------------------------------

QUICK = dict(epochs=4, batch_size=8, lr=1e-2, validation=0.25)


def fresh():
    torch.manual_seed(5)
    return fd.nn.SurrogateCNN(boundary="dirichlet")


def test_training_makes_it_better():
    data, model = heat(16, 6, 40), fresh()
    history = fd.nn.fit(model, data, **{**QUICK, "epochs": 30})
    assert history.validation[history.best] < 0.2 * history.validation[0] and history.stopped == "epochs"
    prediction, truth = fd.nn.predict(model, data[-4:], 3)
    assert prediction.shape == truth.shape == (4, 3, 1, 40)
    assert metrics.report(prediction, truth, 1)["nrmse"] < 0.2


@pytest.mark.parametrize("how", [{}, {"steps": 2, "pushforward": 1, "noise": 0.01, "clip": 1.0}, {"schedule": None}])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, how):
    data, whole = heat(12, 6, 24), fresh()
    straight = fd.nn.fit(whole, data, **QUICK, **how)

    def stop(epoch, history):
        if epoch == 1:
            raise KeyboardInterrupt

    parted, file = fresh(), tmp_path / "run.pt"
    first = fd.nn.fit(parted, data, **QUICK, **how, checkpoint=file, on_epoch=stop)
    assert first.stopped == "interrupted" and len(first.loss) == 2
    torch.manual_seed(99)
    parted = fd.nn.SurrogateCNN(boundary="dirichlet")
    second = fd.nn.fit(parted, data, **QUICK, **how, checkpoint=file)
    assert second.loss == straight.loss and second.validation == straight.validation
    for a, b in zip(whole.parameters(), parted.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another run: seed"):
        fd.nn.fit(parted, data, **QUICK, **how, seed=1, checkpoint=file)


def test_early_stop_keeps_the_best_weights():
    data = heat(8, 4, 24)
    model = fresh()
    history = fd.nn.fit(model, data, **{**QUICK, "epochs": 50, "lr": 0.5}, patience=2, schedule=None)
    assert history.stopped == "patience" and len(history.loss) == history.best + 3


def test_the_losses_are_what_they_say():
    data, model = heat(2, 5, 12), fresh()
    from fastdiff.nn.training import Plan, Windows

    window, truth = Windows(data, 1, 3).batch(torch.arange(4))
    one = nn.functional.mse_loss(model(window), truth[:, 0])
    torch.testing.assert_close(loss_of(model, window, truth, Plan()), one)
    two = one + nn.functional.mse_loss(model(model(window)), truth[:, 1])
    torch.testing.assert_close(loss_of(model, window, truth, Plan(steps=2)), two / 2)
    pushed = nn.functional.mse_loss(model(model(window).detach()), truth[:, 1])
    torch.testing.assert_close(loss_of(model, window, truth, Plan(pushforward=1)), pushed)
    windows = Windows(data, 2, 1)
    assert windows.batch(torch.tensor([0, 4]))[0].shape == (2, 2, 12) and len(windows) == 6
    assert torch.equal(windows.batch(torch.tensor([4]))[0][0, 1], data[1, 2, 0])


def test_bad_training_input_says_what_is_wrong():
    data = heat(4, 4, 12)
    broken = data.clone()
    broken[1, 2, 0, 3] = math.nan
    cases = [
        (lambda: fd.nn.fit(fresh(), broken), ValueError, "NaN"),
        (lambda: fd.nn.fit(fresh(), data, steps=4), ValueError, "window"),
        (lambda: fd.nn.fit(fresh(), data, epoch=3), TypeError, "no option 'epoch'"),
        (lambda: fd.nn.fit(fresh(), data, epochs=0), ValueError, "epochs"),
        (lambda: fd.nn.fit(fresh(), data, schedule="warm"), ValueError, "cosine"),
        (lambda: fd.nn.fit(fresh(), data[:, 0]), ValueError, "samples, frames"),
        (lambda: fd.nn.fit(fresh(), data, validation=1.5), ValueError, "share"),
        (lambda: fd.nn.fit(fresh(), 1e4 * data, lr=1e18, epochs=20, schedule=None), ValueError, "the loss became"),
        (lambda: fd.nn.predict(fresh(), data, 9), ValueError, "steps must be"),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()


def test_metrics_against_their_formulas():
    truth, error = torch.randn(3, 2, 8, 10, dtype=torch.float64), torch.randn(3, 2, 8, 10, dtype=torch.float64)
    prediction = truth + error
    expected = torch.linalg.vector_norm(error, dim=(-2, -1)) / torch.linalg.vector_norm(truth, dim=(-2, -1))
    torch.testing.assert_close(metrics.nrmse(prediction, truth, 2), expected)
    mean = truth.mean((-2, -1), keepdim=True).expand_as(truth)
    torch.testing.assert_close(metrics.vrmse(mean, truth, 2), torch.ones(3, 2, dtype=torch.float64), atol=1e-5, rtol=0)
    bands = metrics.spectral_error(prediction, truth, 2)
    torch.testing.assert_close(bands.square().sum(-1), error.square().mean((-2, -1)))  # Parseval
    wave = torch.cos(2 * math.pi * 5 * torch.arange(32, dtype=torch.float64) / 32)[None, None]
    torch.testing.assert_close(metrics.spectral_error(wave, 0 * wave, 1)[0, 0],
                               torch.tensor([0, 0.5**0.5, 0], dtype=torch.float64))
    inside = truth.clone()
    inside[..., 1:-1, 1:-1] += 1
    assert not metrics.boundary_error(inside, truth, 2).any()
    assert metrics.boundary_error(truth + 2, truth, 2).mean() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="shapes"):
        metrics.nrmse(truth[..., 1:], truth, 2)


def test_train_on_the_command_line(tmp_path):
    from fastdiff.cli import app

    path = tmp_path / "heat.h5"
    fd.data.generate("heat", path, samples=6, shape=(32,), frames=5)
    command = ["train", "cnn", "--data", str(path), "--epochs", "2", "--batch", "8"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "one step nRMSE" in run.output and "rollout  4 steps" in run.output
    model = fd.nn.SurrogateCNN()
    model.load_state_dict(torch.load(tmp_path / "heat.pt"))
    # heat.png is the data set's own picture
    assert (tmp_path / "heat_rollout.png").stat().st_size > 1000 and not (tmp_path / "heat.checkpoint").exists()
    run = CliRunner().invoke(app, [*command, "--network", "transformer"])
    assert run.exit_code == 1 and "known: cnn, dilated, unet" in run.output


def test_surrogate_and_solver_at_equal_time(tmp_path):
    data = heat(4, 5, 20, 20)
    solver = fd.nn.LearnableStencil(boundary="dirichlet", start=0.2)
    exact = lambda u: fd.nn.rollout(solver, u, 4)[:, -1]
    found = fd.nn.at_equal_time(fd.nn.SurrogateCNN(ndim=2), data, {"solver": exact}, rounds=2)
    assert [c.name for c in found] == ["surrogate", "solver"] and found[1].nrmse < 1e-6 < found[0].nrmse
    assert all(c.seconds > 0 for c in found)
    assert fd.nn.plot_rollout(solver, data, tmp_path / "a.png").stat().st_size > 1000
    assert fd.nn.plot_rollout(fresh(), heat(1, 5, 20), tmp_path / "b.png").stat().st_size > 1000
