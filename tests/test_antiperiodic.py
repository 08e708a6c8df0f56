"""Antiperiodic axes: exact solutions, several axes, and what is refused."""

import numpy as np
import pytest

import fastdiff as fd

RING = {"x": fd.Antiperiodic()}


@pytest.mark.parametrize("method", ["euler", "spectral", "auto"])
def test_half_a_wave_fits(method):
    """sin(pi x / L) is a mode of an antiperiodic axis of length L; its decay is that of half a wave."""
    grid = fd.Grid(80, extent=2.0, periodic=True)
    wave = np.sin(np.pi * grid.points(0) / 2) + 0.3 * np.cos(3 * np.pi * grid.points(0) / 2)
    sol = fd.solve(fd.Heat(0.2), wave, grid, save_at=[0.0, 0.5, 1.0], boundary=RING, method=method)
    rate = 0.2 * np.pi**2 / 4
    for t, u in zip(sol.t, sol.u):
        exact = (np.exp(-rate * t) * np.sin(np.pi * grid.points(0) / 2)
                 + 0.3 * np.exp(-9 * rate * t) * np.cos(3 * np.pi * grid.points(0) / 2))
        assert np.abs(u - exact).max() < 5e-3
    assert sol.u.shape == (3, 80) and sol.grid == grid and (sol.u[-1] == sol.final).all()


def test_it_is_the_plain_double_loop():
    """FTCS with ghosts that are the negative image of the other end."""
    rng, grid = np.random.default_rng(0), fd.Grid((12, 9), extent=(1.2, 0.9), periodic=(True, False), centering="cells")
    u = u0 = rng.standard_normal((12, 9))
    dt = 0.2 * 0.1**2
    for _ in range(30):
        p = np.pad(u, 1, mode="edge")
        p[0, 1:-1], p[-1, 1:-1] = -u[-1], -u[0]
        u = u + 0.2 * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * u)
    found = fd.solve(fd.Heat(1.0), u0, grid, t_end=30 * dt, dt=dt, method="euler", boundary=RING)
    assert np.abs(found.final - u).max() < 1e-13


def test_both_axes_a_batch_and_a_callback():
    grid, seen = fd.Grid((16, 20), periodic=True), []
    u0 = np.random.default_rng(1).standard_normal((3, 16, 20))
    sol = fd.solve(fd.Heat(0.1), u0, grid, t_end=0.02, boundary=fd.Antiperiodic(), method="euler", look_every=0.01,
                   callback=lambda t, u, state: seen.append(u.shape))
    assert sol.final.shape == (3, 16, 20) and seen == [(3, 16, 20)] * 2
    assert np.abs(sol.final).max() < np.abs(u0).max()


def test_what_is_refused(tmp_path):
    grid = fd.Grid(16, periodic=True)
    with pytest.raises(ValueError, match="goes with a periodic axis"):
        fd.solve(fd.Heat(), np.ones(16), fd.Grid(16), t_end=0.1, boundary=RING)
    with pytest.raises(ValueError, match="does not change sign"):
        fd.solve(fd.FisherKPP(), 0.5 * np.sin(np.pi * grid.points(0)), grid, t_end=0.5, boundary=RING, method="euler")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="does not change sign"):
        fd.solve(fd.FisherKPP(), 0.5 * np.sin(np.pi * grid.points(0)), grid, t_end=0.5, boundary=RING, method="rkl2",
                 save_to=tmp_path / "a.h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="a coefficient is an array over the grid"):
        fd.solve(fd.Heat(np.linspace(1, 2, 16)), np.ones(16), grid, t_end=0.1, boundary=RING)
    with pytest.raises(ValueError, match="does not repeat along the axis"):
        fd.solve(fd.Heat("1 + x"), np.sin(np.pi * grid.points(0)), grid, t_end=0.1, boundary=RING, method="euler")
    with pytest.raises(ValueError, match="does not change sign"):
        fd.Stepper(fd.FisherKPP(), grid, dt=1e-3, boundary=RING)(np.ones(16))
    for other in (lambda: fd.monte_carlo(fd.Heat(), np.ones(16), grid, points=[0.5], t=0.1, boundary=RING),
                  lambda: fd.Cloud(fd.Heat(), np.ones(4), grid, boundary=RING)):
        with pytest.raises(ValueError, match="fd.solve and fd.Stepper"):
            other()


@pytest.mark.parametrize("method", ["rkl2", "crank_nicolson", "etdrk4", "spectral"])
def test_every_kind_of_method_takes_it_and_streams(method, tmp_path):
    grid = fd.Grid(32, extent=2.0, periodic=True)
    wave = np.sin(np.pi * grid.points(0) / 2)
    sol = fd.solve(fd.Heat(0.2), np.stack([wave, 2 * wave]), grid, save_at=[0.1, 0.2], boundary=RING, method=method,
                   save_to=tmp_path / "run.h5")
    decay = np.exp(-0.2 * np.pi**2 / 4 * sol.t)
    assert np.abs(sol.u[:] - np.array([1, 2])[:, None, None] * decay[:, None] * wave).max() < 5e-3
    again = fd.Solution.load(tmp_path / "run.h5")
    assert again.u.shape == (2, 2, 32) and (np.asarray(again.u)[:, -1] == sol.final).all() and again.grid == grid


@pytest.mark.parametrize("method", ["euler", "rkl2", "crank_nicolson", "etdrk4"])
def test_a_stepper_takes_it(method):
    grid = fd.Grid(32, extent=2.0, periodic=True)
    wave = np.sin(np.pi * grid.points(0) / 2)
    step = fd.Stepper(fd.Heat(0.2), grid, dt=5e-3, boundary=RING, method=method)
    frames = fd.rollout(step, 4, every=10)(wave)
    exact = np.exp(-0.2 * np.pi**2 / 4 * 0.05 * np.arange(1, 5))[:, None] * wave
    assert frames.shape == (4, 32) and np.abs(frames - exact).max() < 2e-3
    np.testing.assert_allclose(fd.repeat(step, 40)(wave), frames[-1], rtol=0, atol=1e-13)
    assert step(wave).shape == (32,)
