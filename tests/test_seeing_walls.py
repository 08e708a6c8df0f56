"""Walls that see other components and the wall opposite: exact solutions, orders in space and time, who refuses."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import fastdiff as fd
from fastdiff.boundary import lower, value_formula
from fastdiff.kernels._edges import pad

CENTERINGS = ["nodes", "cells"]
FEEDBACK = {"x": (fd.Dirichlet("0.4*u_far"), fd.Neumann(0.0))}


def line(n, centering, **more):
    return fd.Grid(n + (centering == "nodes"), centering=centering, **more)


def rates(errors):
    return np.log2(np.array(errors[:-1]) / errors[1:])


@pytest.mark.parametrize("centering", CENTERINGS)
def test_what_leaves_at_the_far_end_comes_in_again(centering):
    """u(0) = a u(1) and u_x(1) = 0 have the mode cos(k (1 - x)) with cos k = a."""
    k, errors = np.arccos(0.4), []
    for n in (10, 20, 40):
        grid = line(n, centering)
        mode = np.cos(k * (1 - grid.points(0)))
        sol = fd.solve(fd.Heat(0.5), mode, grid, 0.4, boundary=FEEDBACK, method="rk4")
        errors.append(np.abs(sol.final - np.exp(-0.5 * k * k * 0.4) * mode).max())
    assert errors[-1] < 3e-4 and (np.abs(rates(errors) - 2) < 0.2).all(), errors


@pytest.mark.parametrize("centering", CENTERINGS)
def test_ends_that_exchange(centering):
    """du/dn = q (u_far - u) at both ends: sin(k (x - 1/2)) with k cot(k/2) = -2 q decays, and the sum stays."""
    q, errors = 1.5, []
    k = brentq(lambda k: k / np.tan(k / 2) + 2 * q, np.pi + 1e-9, 2 * np.pi - 1e-9)
    for n in (10, 20, 40):
        grid = line(n, centering)
        mode = 2 + np.sin(k * (grid.points(0) - 0.5))
        sol = fd.solve(fd.Heat(1.0), mode, grid, 0.05, boundary=fd.Neumann(f"{q}*(u_far - u)"), method="rk4")
        errors.append(np.abs(sol.final - 2 - np.exp(-k * k * 0.05) * (mode - 2)).max())
        assert abs((sol.final * grid.weights()[0]).sum() - 2) < 1e-12
    assert errors[-1] < 2e-3 and (np.abs(rates(errors) - 2) < 0.2).all(), errors


@pytest.mark.parametrize("centering", CENTERINGS)
def test_components_that_meet_at_a_wall(centering):
    """u and v are exchanged at x = 1: u + v has no flux there, u - v a Robin condition."""
    q, D, errors = 0.8, 0.7, []
    k = brentq(lambda k: k * np.tan(k) - 2 * q, 1e-9, np.pi / 2 - 1e-9)
    two = fd.ReactionDiffusion(D, {"u": "0", "v": "0"})
    walls = {"u": {"x": (None, fd.Neumann(f"{q}*(v - u)"))}, "v": {"x": (None, fd.Neumann(lambda u, v: 0.8 * (u - v)))}}
    for n in (10, 20, 40):
        grid = line(n, centering)
        x = grid.points(0)
        both, apart = np.cos(np.pi * x), np.cos(k * x)
        sol = fd.solve(two, np.stack([both + apart, both - apart]) / 2, grid, 0.2, boundary=walls, method="rk4")
        both, apart = both * np.exp(-D * np.pi**2 * 0.2), apart * np.exp(-D * k * k * 0.2)
        errors.append(np.abs(sol.final - np.stack([both + apart, both - apart]) / 2).max())
    assert errors[-1] < 3e-4 and (np.abs(rates(errors) - 2) < 0.2).all(), errors


def reduced(n=16):
    """u_t = u_xx with u_0 = u_n^2/2 + t/4 on nodes and no flux at the end, for an independent integrator."""
    dx = 1 / n

    def slope(t, v):
        u = np.concatenate([[v[-1] ** 2 / 2 + t / 4], v, v[-2:-1]])
        return (u[:-2] + u[2:] - 2 * v) / dx**2

    start = 1 + np.sin(np.linspace(0, 2, n + 1))
    return start, solve_ivp(slope, (0, 0.1), start[1:], rtol=1e-12, atol=1e-12, method="DOP853").y[:, -1]


@pytest.mark.parametrize(("method", "steps", "order"), [("euler", 80, 1), ("rk4", 60, 4), ("rkl2", 8, 2)])
def test_every_stage_looks_anew(method, steps, order):
    """The order in time is the method's own, which it is not if a stage takes the value of the step before."""
    start, exact = reduced()
    walls, grid, errors = {"x": (fd.Dirichlet("u_far**2/2 + t/4"), None)}, fd.Grid(17), []
    for count in (steps, 2 * steps, 4 * steps):
        sol = fd.solve(fd.Heat(1.0), start, grid, 0.1, boundary=walls, dt=0.1 / count, method=method)
        errors.append(np.abs(sol.final[1:] - exact).max())
        assert sol.final[0] == pytest.approx(sol.final[-1] ** 2 / 2 + 0.025, rel=1e-14)
    assert (rates(errors) > order - 0.25).all(), errors


@pytest.mark.parametrize("method", ["rkl2", "auto"])
def test_the_error_is_followed(method):
    start, exact = reduced()
    sol = fd.solve(fd.Heat(1.0), start, fd.Grid(17), 0.1, boundary={"x": (fd.Dirichlet("u_far**2/2 + t/4"), None)},
                   rtol=1e-5, method=method)
    assert np.abs(sol.final[1:] - exact).max() < 1e-4
    assert sol.stats["method"] in ("rk23", "rkl2", "rk4", "euler")


@pytest.mark.parametrize("centering", CENTERINGS)
def test_a_plate_is_the_plain_double_loop(centering):
    """Feedback along x, where slabs cannot share the work, and from v along y; a batch; held values at corners."""
    rng, shape = np.random.default_rng(0), (13, 9)
    grid = fd.Grid(shape, extent=((0, 1.2), (0, 0.8)), centering=centering)
    two = fd.ReactionDiffusion({"u": 1.0, "v": 0.5}, {"u": "-u*v", "v": "u*v"})
    walls = {"u": {"x": (fd.Dirichlet("0.5*u_far + y"), None), "y": (fd.Dirichlet(0.3), fd.Neumann("v - u"))},
             "v": {"x": (None, fd.Neumann("0.1*u_far*v_far")), "y": None}}
    u = state = rng.random((2, 2, *shape))
    dx, dy = grid.spacing
    dt, (_, y) = 5e-4, grid.coordinates()
    cells = centering == "cells"

    def wall(f, axis, end):
        first, second = np.take(f, -end, axis), np.take(f, -2 if end else 1, axis)
        return 1.5 * first - 0.5 * second if cells else first

    def held(u):
        if not cells:
            u[:, 0, :, 0] = 0.3
            u[:, 0, 0] = 0.5 * u[:, 0, -1] + y
        return u

    def padded(f, axis, low, high):
        n, h = f.shape[axis], grid.spacing[axis - 1]
        near = lambda k: np.take(f, [k], axis)
        ghosts = [near(0), near(n - 1)] if cells else [near(1), near(n - 2)]
        for end, (kind, g) in enumerate((low, high)):
            g = np.expand_dims(np.broadcast_to(g, near(0).squeeze(axis).shape), axis)
            if kind == "value" and cells:
                ghosts[end] = 2 * g - near(-end)
            elif kind == "slope":
                ghosts[end] = ghosts[end] + (1 if cells else 2) * h * g
        return np.concatenate([ghosts[0], f, ghosts[1]], axis)

    u = held(u.copy())
    for _ in range(20):
        a, b = u[:, 0], u[:, 1]
        none = ("slope", 0.0)
        ax = padded(a, 1, ("value", 0.5 * wall(a, 1, 1) + y[0]), none)
        ay = padded(a, 2, ("value", 0.3), ("slope", wall(b, 2, 1) - wall(a, 2, 1)))
        bx, by = padded(b, 1, none, ("slope", 0.1 * wall(a, 1, 0) * wall(b, 1, 0))), padded(b, 2, none, none)
        spread = [(px[:, 2:] + px[:, :-2] - 2 * f) / dx**2 + (py[:, :, 2:] + py[:, :, :-2] - 2 * f) / dy**2
                  for f, px, py in ((a, ax, ay), (b, bx, by))]
        u = held(u + dt * np.stack([spread[0] - a * b, 0.5 * spread[1] + a * b], 1))
    sol = fd.solve(two, state, grid, 20 * dt, boundary=walls, dt=dt, method="euler")
    np.testing.assert_allclose(sol.final, u, rtol=0, atol=1e-13)
    step = fd.Stepper(two, grid, boundary=walls, dt=dt)
    np.testing.assert_array_equal(fd.repeat(step, 20)(state), sol.final)


def test_the_number_of_threads_does_not_matter(rng):
    grid = fd.Grid((70, 90))
    u0 = rng.random(grid.shape, np.float32)
    walls = {"x": (fd.Dirichlet("0.5*u_far"), None), "y": fd.Neumann("u_far - u")}
    one, three = (fd.solve(fd.Heat(1.0), u0, grid, 0.002, boundary=walls, method="euler", threads=k) for k in (1, 3))
    np.testing.assert_array_equal(one.final, three.final)


def test_names_of_curved_axes_and_of_components():
    """On a curved grid a value depends on r, and where a component is called S, u is nobody's name."""
    grid = fd.Grid((6, 8), extent=((1, 2), (0, 1)), geometry="cylindrical", centering="cells")
    hot = lower({"z": (fd.Neumann("r*t + u"), None)}, grid).edges(2.0, 0.1, 1)
    u = np.ones((1, 1, 6, 8))
    np.testing.assert_allclose(pad(u, hot, 0)[0, 0, 1:-1, 0], 1 + (2 * grid.points(0) + 1) / 8)
    assert value_formula("u*I_far + S_far", fd.Grid(4), ("S", "I"), 0)[1] == ((0, True), (1, True))
    made, sees = value_formula("u + v*u_far", fd.Grid(4), ("u", "v"), 1)  # of v: u is the other component
    assert made.uses == {"u", "w0", "w1"} and sees == ((0, False), (0, True))
    with pytest.raises(ValueError, match="unknown name 'q'"):
        value_formula("u + q", fd.Grid(4), ("u", "v"), 1)


@pytest.mark.parametrize(("boundary", "says"), [
    (fd.Dirichlet("0.5*u_far"), "depend on one another's wall"),
    (fd.Dirichlet("u + u_far"), "a Dirichlet value cannot depend on u"),
    (fd.Neumann("v_far"), "unknown name 'v_far'.*known: t, x, u, u_far"),
    (fd.Neumann(lambda w: w), "unknown argument 'w'"),
])
def test_bad_values(boundary, says):
    with pytest.raises(ValueError, match=says):
        fd.solve(fd.Heat(), np.ones(9), fd.Grid(9), 0.1, boundary=boundary, method="euler")


@pytest.mark.parametrize("method", ["crank_nicolson", "strang", "etdrk4", "spectral"])
def test_who_cannot_says_so(method):
    with pytest.raises(ValueError, match="depends on|u_far"):
        fd.solve(fd.Heat(), np.ones(9), fd.Grid(9), 0.1, boundary=FEEDBACK, method=method)


def test_torch_and_a_file(tmp_path):
    import torch

    u0 = torch.ones(2, 21)
    sol = fd.solve(fd.Heat(), u0, fd.Grid(21), save_at=[0.1, 0.2], boundary=FEEDBACK, method="rkl2",
                   save_to=tmp_path / "run.h5")
    assert sol.final.dtype == torch.float32
    np.testing.assert_allclose(sol.final[:, 0], 0.4 * sol.final[:, -1], rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize("centering", CENTERINGS)
def test_on_a_gpu(centering):
    from fastdiff.kernels._march_cuda import march_cuda
    from fastdiff.kernels._run import march
    from fastdiff.kernels.system import rule

    rng = np.random.default_rng(0)
    grid = fd.Grid((5, 4), centering=centering)
    walls = {"u": {"x": (fd.Dirichlet("0.5*u_far + t*y"), fd.Neumann("v - u"))}, "v": {"y": fd.Neumann("u*v_far")}}
    faces = lower(walls, grid, ("u", "v"))
    made = rule(rng.uniform(0.05, 0.1, (2, 4, 1, 5, 4)), np.array([0.1]), np.float64)
    u = rng.random((1, 2, 5, 4))
    out = march_cuda(made, u, faces.edges(0.5, 0.1, 3, tables=True), 3, values=faces.values())
    np.testing.assert_allclose(out, march(made, u, faces.edges(0.5, 0.1, 3), 3), rtol=1e-13)


@pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"), reason="this is the simulator")
def test_gpu_parts_pass_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-m", "cuda", __file__]
    run = subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr
