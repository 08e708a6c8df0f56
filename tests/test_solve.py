"""fd.solve and steppers, as a user calls them, against exact solutions and the plainest possible code."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.kernels._edges import make_edges
from fastdiff.kernels._run import march
from fastdiff.steppers.spectral import propagate


@pytest.fixture
def rod():
    """The tutorial's rod: length 10, 100 points, D = 0.1, 1000 steps of 0.001, hot at one end."""
    u0 = np.zeros(100)
    u0[0] = 1.0
    return fd.Heat(diffusivity=0.1), fd.Grid(100, extent=10.0), u0


def test_the_rod_is_the_plain_double_loop(rod):
    heat, grid, u0 = rod
    sol = fd.solve(heat, u0, grid, t_end=1.0, boundary=fd.Dirichlet(), method="euler", dt=0.001)
    u, dx = u0.copy(), 10.0 / 99
    for _ in range(1000):
        old = u.copy()
        for i in range(1, 99):
            u[i] = old[i] + 0.1 * 0.001 * (old[i + 1] - 2 * old[i] + old[i - 1]) / dx**2
    assert np.abs(sol.final - u).max() < 1e-14
    assert sol.stats["steps"] == 1000 and sol.stats["dt"] == 0.001 and sol.stats["method"] == "euler"
    assert sol.u.shape == (1, 100) and sol.t.tolist() == [1.0] and u0[1] == 0.0


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("wall", ["periodic", "dirichlet", "neumann"])
@pytest.mark.parametrize("shape", [(40,), (24, 30), (12, 10, 14)], ids=str)
def test_ftcs_is_the_discrete_spectral_propagator(shape, wall, centering):
    """n FTCS steps = (1 - 4 r sum sin^2)^n, to rounding."""
    grid = fd.Grid(shape, extent=2.0, periodic=wall == "periodic", centering=centering)
    boundary = {"periodic": None, "dirichlet": fd.Dirichlet(0.0), "neumann": fd.Neumann(0.0)}[wall]
    D = (0.7, 0.4, 0.9)[: len(shape)]
    u0, dt = np.random.default_rng(0).random(shape), 0.9 * fd.Heat(D).stable_dt(grid)
    if wall == "dirichlet" and centering == "nodes":
        for axis in range(len(shape)):
            u0[(slice(None),) * axis + ([0, -1],)] = 0.0
    got = fd.solve(fd.Heat(D), u0, grid, 37 * dt, boundary=boundary, method="euler", dt=dt)
    assert got.stats["steps"] == 37
    want = propagate(u0[None, None], grid, boundary, D, 37 * dt, symbol="euler", dt=dt)[0, 0]
    assert np.abs(got.final - want).max() < 1e-13


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_sine_modes_converge_with_order_two(ndim):
    errors = []
    for n in (9, 17, 33):
        grid = fd.Grid((n,) * ndim)
        mode = np.ones(())
        for x in grid.coordinates():
            mode = mode * np.sin(np.pi * x)
        t = 0.05 / ndim
        dt = 0.2 * fd.Heat().stable_dt(grid)
        got = fd.solve(fd.Heat(), np.broadcast_to(mode, grid.shape).copy(), grid, t, boundary=fd.Dirichlet(0.0),
                       method="euler", dt=dt)
        errors.append(np.abs(got.final - mode * np.exp(-ndim * np.pi**2 * t)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


def error_of(n, centering, boundary, exact, t_end=0.1):
    grid = fd.Grid(n, centering=centering)
    (x,) = grid.coordinates()
    dt = 0.1 * fd.Heat().stable_dt(grid)
    sol = fd.solve(fd.Heat(), exact(x, 0.0), grid, t_end, boundary=boundary, method="euler", dt=dt)
    return np.abs(sol.final - exact(x, t_end)).max()


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("kind", ["dirichlet", "neumann", "robin", "nonlinear", "mixed"])
def test_boundaries_in_time_converge_with_order_two(kind, centering):
    """u = exp(-k² t) cos(k x + 1/2) solves the heat equation; each wall is told what it does there."""
    k = 2.0

    def exact(x, t):
        return np.exp(-k * k * t) * np.cos(k * x + 0.5)

    value = [f"exp(-{k * k}*t)*cos({0.5 + k * end})" for end in (0, 1)]
    slope = [f"{sign * k}*exp(-{k * k}*t)*sin({0.5 + k * end})" for end, sign in ((0, 1), (1, -1))]
    walls = {
        "dirichlet": tuple(map(fd.Dirichlet, value)),
        "neumann": tuple(map(fd.Neumann, slope)),
        "robin": tuple(fd.Robin(2.0, 3.0, f"2*({v}) + 3*({s})") for v, s in zip(value, slope)),
        "nonlinear": tuple(fd.Neumann(f"({s}) + ({v})**2 - u**2") for v, s in zip(value, slope)),
        "mixed": (fd.Dirichlet(lambda t: np.exp(-k * k * t) * np.cos(0.5)), fd.Neumann(slope[1])),
    }[kind]
    errors = [error_of(n, centering, {"x": walls}, exact) for n in (16, 32, 64)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2)


def test_the_tutorials_walls_against_their_series():
    """u_t = u_xx, u(0,t) = sin t, u(1,t) = exp(-t), u(x,0) = sin(pi x): away from the corner that contradicts itself.

    u = (1-x) sin t + x exp(-t) + sum_n a_n(t) sin(n pi x), with a_n' = -(n pi)² a_n - b_n(t) and b_n the sine
    coefficients of (1-x) cos t - x exp(-t).
    """
    t_end, n = 0.5, np.arange(1, 4001)
    w = (n * np.pi) ** 2
    sign = (-1.0) ** (n + 1)
    start = np.where(n == 1, 1.0, 0.0) - 2 / (n * np.pi) * sign  # u0 - x
    cos_part = (w * np.cos(t_end) + np.sin(t_end) - w * np.exp(-w * t_end)) / (w**2 + 1)
    exp_part = (np.exp(-t_end) - np.exp(-w * t_end)) / (w - 1)
    a = start * np.exp(-w * t_end) - 2 / (n * np.pi) * cos_part + 2 / (n * np.pi) * sign * exp_part
    errors = []
    for points in (41, 81):
        grid = fd.Grid(points)
        (x,) = grid.coordinates()
        exact = (1 - x) * np.sin(t_end) + x * np.exp(-t_end) + np.sin(np.pi * np.outer(x, n)) @ a
        sol = fd.solve(fd.Heat(), np.sin(np.pi * x), grid, t_end, boundary={"x": (fd.Dirichlet("sin(t)"),
                                                                                 fd.Dirichlet("exp(-t)"))},
                       method="euler", dt=0.25 * grid.spacing[0] ** 2)
        errors.append(np.abs(sol.final - exact).max())
    assert errors[1] < 3e-5
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


def test_walls_of_a_box_in_time_and_place():
    """u = exp(-2 t) sin(x + 1) cos(y), all four walls given as expressions of t and place, in 2-D, order two."""
    errors = []
    for n in (12, 24):
        grid = fd.Grid((n + 1, n * 3 // 2 + 1))
        x, y = grid.coordinates()

        def exact(t, x=x, y=y):
            return np.exp(-2 * t) * np.sin(x + 1) * np.cos(y)

        boundary = {"x": (fd.Dirichlet("exp(-2*t)*sin(1)*cos(y)"), fd.Neumann("exp(-2*t)*cos(2)*cos(y)")),
                    "y": (fd.Neumann(0.0), fd.Robin(1.0, 2.0, "exp(-2*t)*sin(x+1)*(cos(1) - 2*sin(1))"))}
        sol = fd.solve(fd.Heat(), exact(0.0), grid, 0.2, boundary=boundary, method="euler",
                       dt=0.2 * fd.Heat().stable_dt(grid))
        errors.append(np.abs(sol.final - exact(0.2)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


def test_save_at_times_between_steps(rod):
    heat, grid, u0 = rod
    times = [0.0, 0.0123, 0.3, 0.70001]
    sol = fd.solve(heat, u0, grid, save_at=times, boundary=fd.Dirichlet(), method="euler", dt=0.01)
    assert sol.t.tolist() == times and sol.u.shape == (4, 100)
    assert np.array_equal(sol.u[0], u0) and sol.stats["steps"] == 2 + 29 + 41
    rest = fd.solve(heat, sol.u[1], grid, 0.3 - 0.0123, boundary=fd.Dirichlet(), method="euler", dt=0.01)
    assert np.abs(sol.u[2] - rest.final).max() < 1e-15


def test_held_walls_are_imposed_from_the_start():
    grid = fd.Grid(5)
    sol = fd.solve(fd.Heat(), np.zeros(5), grid, save_at=[0.0, 0.01], boundary={"x": (fd.Dirichlet(3.0), None)},
                   method="euler")
    assert sol.u[0].tolist() == [3, 0, 0, 0, 0] and sol.u[1][0] == 3.0


def test_of_two_held_walls_the_earlier_axis_has_the_corner():
    sol = fd.solve(fd.Heat(), np.zeros((4, 5)), fd.Grid((4, 5)), 0.01, method="euler",
                   boundary={"x": fd.Dirichlet(1.0), "y": fd.Dirichlet(2.0)})
    assert sol.final[0, 0] == 1.0 and sol.final[-1, -1] == 1.0 and sol.final[1, 0] == 2.0


def test_batches_with_their_own_parameters():
    grid = fd.Grid((20, 24), periodic=True)
    u0 = np.random.default_rng(0).random((3, 20, 24))
    D = np.array([0.1, 0.2, 0.3])
    sol = fd.solve(fd.Heat(D), u0, grid, save_at=[1e-3, 2e-3], method="euler", dt=1e-3)
    assert sol.u.shape == (3, 2, 20, 24) and sol.final.shape == u0.shape and sol.u[1].flags.c_contiguous
    for b in range(3):
        one = fd.solve(fd.Heat(D[b]), u0[b], grid, save_at=[1e-3, 2e-3], method="euler", dt=1e-3)
        assert np.array_equal(one.u, sol.u[b])
    kept = fd.solve(fd.Heat(D), u0[:, None], grid, 1e-3, method="euler", dt=1e-3)
    assert kept.final.shape == (3, 1, 20, 24) and kept.u.shape == (3, 1, 1, 20, 24)


def test_gray_scott_steady_states_and_components():
    grid = fd.Grid((16, 16), extent=2.5, periodic=True)
    F, k = 0.04, 0.055
    root = np.sqrt(1 - 4 * (F + k) ** 2 / F)
    u, v = (1 + root) / 2, F * (1 - root) / (2 * (F + k))  # u v = F + k; the larger u
    for state in ((1.0, 0.0), ((1 - root) / 2, F * (1 + root) / (2 * (F + k)))):
        assert state[0] * state[1] == pytest.approx(0 if state[1] == 0 else F + k)
        u0 = np.empty((2, 16, 16))
        u0[0], u0[1] = state
        sol = fd.solve(fd.GrayScott(F, k), u0, grid, 50.0)
        assert np.abs(sol.final - u0).max() < 1e-12
    assert sol.u.shape == (1, 2, 16, 16) and sol.names == ("u", "v") and u * v == pytest.approx(F + k)


def test_gray_scott_against_solve_ivp():
    from scipy.integrate import solve_ivp

    n, F, k, Du, Dv = 12, 0.04, 0.06, 2e-5, 1e-5
    grid = fd.Grid((n, n), extent=0.2, periodic=True)
    rng = np.random.default_rng(1)
    u0 = np.stack([1 - 0.5 * rng.random((n, n)), 0.25 * rng.random((n, n))])
    h2 = grid.spacing[0] ** 2

    def rhs(t, y):
        u, v = y.reshape(2, n, n)
        lap = [sum(np.roll(w, s, a) for s in (1, -1) for a in (0, 1)) - 4 * w for w in (u, v)]
        r = u * v * v
        return np.stack([Du * lap[0] / h2 - r + F * (1 - u), Dv * lap[1] / h2 + r - (F + k) * v]).ravel()

    exact = solve_ivp(rhs, (0, 20), u0.ravel(), rtol=1e-10, atol=1e-10).y[:, -1].reshape(2, n, n)
    errors = [np.abs(fd.solve(fd.GrayScott(F, k, Du, Dv), u0, grid, 20.0, method="euler", dt=dt).final - exact).max()
              for dt in (0.02, 0.01)]
    assert errors[1] < 5e-4 and errors[0] / errors[1] == pytest.approx(2, abs=0.05)  # first order in time


def test_auto_takes_the_spectral_way_where_it_can(rod):
    heat, grid, u0 = rod
    (x,) = grid.coordinates()
    sol = fd.solve(heat, np.sin(np.pi * x / 10), grid, 3.0, boundary=fd.Dirichlet(0.0))
    assert sol.stats["method"] == "spectral" and "exact" in sol.stats["why"]
    assert np.abs(sol.final - np.sin(np.pi * x / 10) * np.exp(-0.1 * (np.pi / 10) ** 2 * 3.0)).max() < 1e-13
    assert fd.solve(heat, u0, grid, 0.1, boundary=fd.Robin(1.0, 1.0)).stats["method"] != "spectral"


def test_auto_keeps_a_rough_field_in_its_range(rod):
    heat, grid, u0 = rod
    sol = fd.solve(heat, u0, grid, save_at=[0.05, 0.5], boundary={"x": (fd.Dirichlet(1.0), fd.Dirichlet(0.0))})
    assert sol.stats["method"] == "spectral" and "rough" in sol.stats["why"]
    assert sol.u.min() >= -1e-12 and sol.u.max() <= 1 + 1e-12
    euler = fd.solve(heat, u0, grid, 0.5, boundary=fd.Dirichlet(), method="euler", dt=1e-4)
    assert np.abs(sol.final - euler.final).max() < 1e-4


def test_the_end_is_solved_for_even_if_it_is_not_kept(rod):
    heat, grid, u0 = rod
    sol = fd.solve(heat, u0, grid, 1.0, save_at=[0.0, 0.5], boundary=fd.Dirichlet(), method="euler", dt=0.001)
    assert sol.t.tolist() == [0.0, 0.5] and sol.u.shape == (2, 100)
    end = fd.solve(heat, u0, grid, 1.0, boundary=fd.Dirichlet(), method="euler", dt=0.001)
    assert np.abs(sol.final - end.final).max() < 1e-14
    assert np.shares_memory(end.final, end.u)  # one frame alone is not copied
    two = fd.solve(heat, u0, grid, save_at=[0.5, 1.0], boundary=fd.Dirichlet(), method="euler", dt=0.001)
    two.final[:] = 7.0
    assert two.u[-1, 0] == 1.0  # the end is a copy


def test_gray_scott_is_stable_below_its_limit_and_not_above():
    grid = fd.Grid((16, 16), extent=0.32, periodic=True)
    u0 = np.stack([1 + 1e-3 * np.random.default_rng(0).standard_normal((16, 16)), np.zeros((16, 16))])
    limit = fd.GrayScott().stable_dt(grid)
    below = fd.solve(fd.GrayScott(), u0, grid, 300 * 0.98 * limit, method="euler", dt=0.98 * limit)
    assert np.abs(below.final[0] - 1).max() < 1e-2
    rule = fd.GrayScott().euler(grid, 1.05 * limit, 1, np.float64)
    above = march(rule, u0[None], make_edges(grid.shape, grid.periodic, np.float64, components=2), 300)
    assert np.abs(above[0, 0] - 1).max() > 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_in_torch_out(rod, dtype):
    torch = pytest.importorskip("torch")
    heat, grid, u0 = rod
    u0 = u0.astype(dtype)
    want = fd.solve(heat, u0, grid, 1.0, boundary=fd.Dirichlet(), method="euler", dt=0.001)
    got = fd.solve(heat, torch.from_numpy(u0), grid, 1.0, boundary=fd.Dirichlet(), method="euler", dt=0.001)
    assert isinstance(got.final, torch.Tensor) and str(got.final.dtype) == f"torch.{dtype}"
    assert np.array_equal(got.final.numpy(), want.final) and want.final.dtype == dtype


def test_strided_fields_are_taken():
    grid, u0 = fd.Grid((8, 9)), np.random.default_rng(0).random((9, 8)).T
    assert not u0.flags.c_contiguous
    a, b = (fd.solve(fd.Heat(), u, grid, 1e-3, method="euler") for u in (u0, u0.copy()))
    assert np.array_equal(a.final, b.final)


# -- steppers --------------------------------------------------------------------------------------------------------


def test_stepper_repeat_and_rollout_agree(rod):
    heat, grid, u0 = rod
    step = fd.Stepper(heat, grid, boundary={"x": (fd.Dirichlet("sin(t)"), fd.Neumann(0.0))}, dt=0.01)
    u = u0
    for n in range(12):
        u = step(u, t=n * 0.01)
    assert np.abs(fd.repeat(step, 12)(u0) - u).max() < 1e-15
    assert np.abs(fd.repeat(step, 6)(fd.repeat(step, 6)(u0), t0=0.06) - u).max() < 1e-15
    frames = fd.rollout(step, 4, every=3, include_start=True)(u0)
    assert frames.shape == (5, 100) and np.array_equal(frames[0], u0) and np.abs(frames[-1] - u).max() < 1e-15


def test_stepper_takes_walls_of_each_sample(rod):
    heat, grid, _ = rod
    walls = {"x": (fd.Dirichlet(np.array([1.0, 2.0, 3.0])), None)}
    out = fd.Stepper(heat, grid, dt=0.01, boundary=walls)(np.zeros((3, 100)))
    assert out[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_stepper_keeps_shape_batch_and_components():
    grid = fd.Grid((10, 11), periodic=True)
    step = fd.Stepper(fd.GrayScott(F=np.array([0.03, 0.04])), grid, dt=0.5)
    u = np.random.default_rng(0).random((2, 2, 10, 11)).astype(np.float32)
    assert step(u).shape == u.shape and step(u).dtype == np.float32
    assert fd.rollout(step, 3)(u).shape == (3, *u.shape)
    with pytest.raises(ValueError, match="parameters for 2 samples"):
        step(u[0])


# -- bad input -------------------------------------------------------------------------------------------------------


def bad(message, error: type[Exception] = ValueError, **changes):
    rod = dict(equation=fd.Heat(0.1), u0=np.zeros(100), grid=fd.Grid(100, extent=10.0), t_end=1.0)
    call: dict[str, Any] = rod | changes
    with pytest.raises(error, match=message) as caught:
        fd.solve(**call)
    assert "\n" not in str(caught.value)


def test_bad_fields():
    bad(r"shape \(99,\); expected \(100,\) or \(batch, 100\)", u0=np.zeros(99))
    bad("dtype int64; expected float32 or float64", TypeError, u0=np.zeros(100, int))
    bad("dtype float16", TypeError, u0=np.zeros(100, np.float16))
    bad(r"NumPy array or a torch tensor, not list: pass np.asarray\(u0, float\)", TypeError, u0=[0.0] * 100)
    torch = pytest.importorskip("torch")
    bad(r"dtype int64; expected float32 or float64: convert it, e.g. u0.double\(\)", TypeError, u0=torch.arange(100))
    bad("requires grad.*fd.nn.Solver", u0=torch.zeros(100, requires_grad=True))
    spoiled = np.zeros((3, 100))
    spoiled[2, 7] = np.nan
    bad(r"nan at \(7,\) of sample 2: every value must be finite", u0=spoiled)
    bad(r"shape \(100,\); expected \(2, 100\) or \(batch, 2, 100\), with components u, v", equation=fd.GrayScott())


def test_bad_steps_and_methods():
    bad("save_at is a list of ascending times, not 'late'", save_at="late")
    bad("rtol must lie between 0 and 1, not '1e-4'", rtol="1e-4")
    bad("dt = 0.1 is unstable for euler on this grid; the largest stable step is 0.0510", method="euler", dt=0.1)
    bad("unknown method 'eular'; known: auto, euler, rk4, rk23, rkl2, crank_nicolson, strang, etdrk4", method="eular")
    bad('add method="euler"', dt=0.01)
    bad("dt must be positive", method="euler", dt=-1.0)
    bad("controlled by dt", method="euler", rtol=1e-3)
    bad("exact in time", method="spectral", rtol=1e-3)
    bad("rtol must lie between", rtol=2.0)
    bad("t_end must be positive", t_end=0.0)
    bad("t_end must be positive, not '1'", t_end="1")
    bad("threads must be a whole number of at least 1, got 0", threads=0)
    bad("batch of 0 samples", u0=np.zeros((0, 100)))
    bad("NumPy array or a torch tensor, not MaskedArray", TypeError, u0=np.ma.zeros(100))
    bad("give t_end, or save_at", t_end=None)
    bad("ascending times", save_at=[0.5, 0.2])
    bad("beyond t_end", save_at=[0.5, 2.0])
    bad("Robin condition at x low", method="spectral", boundary=fd.Robin(1.0, 1.0))
    bad("more than diffusion", method="spectral", equation=fd.GrayScott(), u0=np.zeros((2, 100)))
    bad("no method meets rtol = 1e-15 with float64", rtol=1e-15)
    bad("pass float64", rtol=1e-7, u0=np.zeros(100, np.float32))
    bad("not both", rtol=1e-3, dt=0.01, method="rkl2")
    with pytest.raises(ValueError, match="largest stable step"):
        fd.Stepper(fd.Heat(0.1), fd.Grid(100, extent=10.0), dt=1.0)
    with pytest.raises(ValueError, match="unknown method 'rk9' of a stepper; known: euler, rk4"):
        fd.Stepper(fd.Heat(0.1), fd.Grid(100), dt=1e-6, method="rk9")


def test_bad_equations_and_boundaries():
    for D in (-1.0, np.array([1.0, -2.0])):
        with pytest.raises(ValueError, match="diffusivity must be at least 0"):
            fd.Heat(D)
    bad("parameters for 3 samples, but u0 has 1", equation=fd.Heat(np.ones((3, 100))))
    bad("matrix of 3 rows does not fit a grid of 1 axes", equation=fd.Heat(np.ones((3, 3))), method="euler")
    with pytest.raises(ValueError, match="different numbers of samples: 2, 3"):
        fd.GrayScott(F=np.array([0.1, 0.2]), k=np.array([0.1, 0.2, 0.3]))
    bad("one number for each of the 1 axes", equation=fd.Heat((0.1, 0.2)))
    bad("str has no names", TypeError, equation="heat")
    bad("grid is an fd.Grid", TypeError, grid=(100,))
    bad("periodic", grid=fd.Grid(100, periodic=True), boundary=fd.Dirichlet(0.0))
    bad("unknown boundary 'q'; known", boundary={"q": fd.Dirichlet(0.0)})
    bad("parameters for 2 samples, but u0 has 1", equation=fd.Heat(np.array([0.1, 0.2])))
    bad("unknown device 'tpu'", device="tpu")
    bad("unknown device 'cuda:x'", device="cuda:x")
    bad("unknown device 'cpu:0'", device="cpu:0")


def test_an_explicit_device_never_falls_back():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bad("torch finds no GPU", RuntimeError, device="cuda")
    bad('device="cuda:1" was asked for, but torch finds no GPU', RuntimeError, device="cuda:1")


def test_a_gpu_by_its_number(monkeypatch):
    """Of two GPUs the asked one takes the field, and kernels are launched there."""
    torch = pytest.importorskip("torch")
    from contextlib import contextmanager
    from types import SimpleNamespace

    from fastdiff import dispatch
    from fastdiff.kernels import _cuda

    sent, entered = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.Tensor, "to", lambda t, name: sent.append(name) or t)
    assert dispatch.adopt(np.ones(3), "cuda:1").backend == "cuda" and sent == ["cuda:1"]
    with pytest.raises(RuntimeError, match=r'"cuda:2" was asked for, but torch finds 2 GPU\(s\), numbered from 0'):
        dispatch.adopt(np.ones(3), "cuda:2")

    class Gpus:
        @contextmanager
        def __getitem__(self, k):
            entered.append(k)
            yield

    monkeypatch.setattr(_cuda, "toolkit", lambda: SimpleNamespace(gpus=Gpus()))
    monkeypatch.setattr(_cuda, "simulated", lambda: False)
    with _cuda.on(SimpleNamespace(device=torch.device("cuda:1"))), _cuda.on(np.ones(3)), _cuda.on(torch.ones(3)):
        assert entered == [1]


@pytest.mark.parametrize("method", ["strang", "etdrk4", "spectral"])
def test_methods_of_the_cpu_alone_say_so(method):
    with pytest.raises(ValueError, match=f'method="{method}" runs on the CPU alone: leave device="cuda" out'):
        fd.solve(fd.Heat(), np.ones(9), fd.Grid(9), 0.1, method=method, device="cuda")


def test_a_field_that_blows_up_stops_the_run_and_says_where():
    grid = fd.Grid(50)
    with pytest.raises(fd.Diverged, match=r"u became .* between t = .* and t = .*smaller dt"):
        fd.solve(fd.Heat(), np.ones(50), grid, 5.0, boundary={"x": (fd.Neumann("100*u**3"), None)}, method="euler")
    u0 = np.ones((3, 2, 32, 32), np.float32)
    u0[1, 1] = 1e6
    with pytest.raises(fd.Diverged, match="of sample 1"):
        fd.solve(fd.GrayScott(), u0, fd.Grid((32, 32), extent=2.5, periodic=True), 100.0, method="euler", dt=1.0)


def test_progress_is_shown(capsys, rod):
    heat, grid, u0 = rod
    fd.solve(heat, u0, grid, 1.0, method="euler", dt=0.001, progress=True)
    assert "1000/1000 steps" in capsys.readouterr().err


def test_progress_of_steps_that_follow_the_error_is_shown_in_time(capsys, rod):
    heat, grid, u0 = rod
    solution = fd.solve(heat, u0, grid, 1.0, method="rk23", progress=True)
    assert f"t = 1 of 1, {solution.stats['steps']} steps" in " ".join(capsys.readouterr().err.split())


def test_a_keyboard_interrupt_gets_through():
    code = ("import fastdiff as fd, numpy as np, threading, _thread, time\n"
            "threading.Timer(2.0, _thread.interrupt_main).start()\n"
            "u = np.zeros((512, 512), np.float32)\n"
            "try:\n    fd.solve(fd.Heat(), u, fd.Grid((512, 512)), 50.0, method='euler', boundary=fd.Robin(1.0, 1.0))\n"
            "except KeyboardInterrupt:\n    print('interrupted')\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ)
    assert "interrupted" in done.stdout, done.stderr
