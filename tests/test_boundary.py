"""Boundary conditions: forms, ghost formulas, values in time and place, observed orders, bad input."""

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fastdiff.boundary import Dirichlet, Flux, Neumann, Robin, conditions, lower
from fastdiff.grid import Grid
from fastdiff.kernels._edges import hold, pad
from fastdiff.kernels.heat import reference

CENTERINGS = ["nodes", "cells"]


def march(u, grid, boundary, D, t_end, r=0.2, start=0.0, **how):
    """FTCS in plain NumPy to `t_end` with D dt/dx^2 about `r`."""
    steps = math.ceil((t_end - start) * D / (r * min(grid.spacing) ** 2))
    dt = (t_end - start) / steps
    state = np.ascontiguousarray(u, np.float64).reshape(-1, 1, *grid.shape)
    faces = lower(boundary, grid, batch=len(state), u0=state, diffusivity=D)
    rate = np.tile([D * dt / dx**2 for dx in grid.spacing], (len(state), 1))
    return reference(state, rate, faces.edges(start, dt, steps, **how), steps).reshape(np.shape(u))


# -- forms -----------------------------------------------------------------------------------------------------------


def test_forms_of_the_boundary_argument():
    grid, D, N = Grid((4, 5)), Dirichlet(1.0), Neumann(2.0)
    assert conditions(None, grid) == {}
    assert conditions(D, grid) == {(0, a, e): D for a in (0, 1) for e in (0, 1)}
    assert conditions({"x": (D, N), "y": D}, grid) == {(0, 0, 0): D, (0, 0, 1): N, (0, 1, 0): D, (0, 1, 1): D}
    assert conditions({"x": (None, N), "y": None}, grid) == {(0, 0, 1): N}
    assert conditions({"x": [D, N]}, grid, ("u", "v")) == {(c, 0, e): (D, N)[e] for c in (0, 1) for e in (0, 1)}
    assert conditions({"v": {"x": (D, None)}, "u": N}, grid, ("u", "v")) == {
        **{(0, a, e): N for a in (0, 1) for e in (0, 1)}, (1, 0, 0): D}
    assert conditions({"u": D}, Grid(4)) == {(0, 0, 0): D, (0, 0, 1): D}


def test_one_condition_skips_periodic_axes():
    assert set(conditions(Neumann(1.0), Grid((4, 5), periodic=(True, False)))) == {(0, 1, 0), (0, 1, 1)}


@pytest.mark.parametrize(("boundary", "says"), [
    ({"w": Dirichlet(0)}, "unknown boundary 'w'; known: axes 'x', 'y', components 'u', 'v'"),
    ({"z": Dirichlet(0)}, "unknown boundary 'z'"),
    ({"u": Dirichlet(0), "x": Dirichlet(0)}, "by component or by axis, not both"),
    ({"u": {"u": Dirichlet(0)}}, "unknown boundary 'u'"),
    ({"x": 0.0}, "the boundary of axis x is a condition"),
    ({"x": (Dirichlet(0), 1.0)}, "the boundary of axis x is a condition"),
    ({"x": (Dirichlet(0),) * 3}, "the boundary of axis x is a condition"),
    (0.0, "boundary is a condition"),
    ("periodic", "boundary is a condition"),
    ({"y": Dirichlet(0)}, "axis y is periodic and has no boundary"),
    ({"y": (None, Dirichlet(0))}, "axis y is periodic and has no boundary"),
])
def test_bad_boundaries(boundary, says):
    grid = Grid((4, 5), periodic=(False, "periodic" in says))
    with pytest.raises(ValueError, match=says) as error:
        lower(boundary, grid, ("u", "v"))
    assert "\n" not in str(error.value)


def test_no_boundary_on_a_periodic_grid():
    with pytest.raises(ValueError, match="periodic along every axis"):
        lower(Dirichlet(0), Grid(4, periodic=True))


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Dirichlet(math.nan), "must be finite"),
    (lambda: Neumann([0.0, math.inf]), "finite everywhere"),
    (lambda: Neumann(1j), "number, an array, an expression or a function"),
    (lambda: Neumann([[1], [1, 2]]), "number, an array"),
    (lambda: Robin(1.0, 0.0, 1.0), "b of a Robin condition must not be 0"),
    (lambda: Robin("t", 1.0, 1.0), "only g may be a formula"),
    (lambda: Robin(None, 1.0), "number, an array"),
    (lambda: lower(Dirichlet("sin(y)"), Grid(4)), "unknown name 'y'.*known: t, x, u"),
    (lambda: lower(Dirichlet("u**2"), Grid(4)), "a Dirichlet value cannot depend on u"),
    (lambda: lower(Dirichlet("log(x)"), Grid(4)), "the boundary value 'log\\(x\\)' at x low is -inf"),
    (lambda: lower(Dirichlet("log(t)"), Grid(4)).edges(0.0, 0.1, 3), "at x low is -inf at t = 0"),
    (lambda: lower(Dirichlet("1/(t - x)"), Grid(4)).edges(0.0, 0.5, 3, tables=True), "is -?inf at t = 0"),
    (lambda: lower(lambda q: q, Grid(4)), "boundary is a condition"),
    (lambda: lower(Neumann(lambda q: q), Grid(4)), "unknown argument 'q'"),
    (lambda: lower(Dirichlet(), Grid(4)).edges(), "holds the initial values"),
    (lambda: lower(Flux(1.0), Grid(4)), "needs a positive diffusivity"),
    (lambda: lower(Flux(1.0), Grid(4), diffusivity=0.0), "needs a positive diffusivity"),
    (lambda: lower(Flux(1.0), Grid(4), diffusivity=np.ones(4)), "does not broadcast"),
    (lambda: lower(Robin(-8.0, 1.0), Grid(4, centering="cells")), "refine the grid"),
    (lambda: lower(Robin(np.ones(3), 1.0), Grid(4), batch=2), "expected a number, or 2 of them"),
    (lambda: lower(Dirichlet(np.ones(3)), Grid(4), batch=2), "expected a number, or \\(2,\\) one a sample"),
    (lambda: lower(Dirichlet(np.ones(3)), Grid((4, 5))), "shape \\(3,\\): expected \\(5,\\) over the face, \\(1, 5\\)"),
    (lambda: lower({"x": Dirichlet(np.ones(5))}, Grid((4, 5)), batch=5), "\\(5, 1\\) or \\(1, 5\\)"),
])
def test_bad_values(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


# -- ghosts and values -----------------------------------------------------------------------------------------------


def ghosts(condition, grid, u, **how):
    faces = lower({"x": condition}, grid, batch=len(u), u0=u, **how)
    p = pad(u, faces.edges(), 0)[:, 0]
    return p[:, 0, 1:-1], p[:, -1, 1:-1]


def test_ghosts_are_those_of_the_table():
    rng = np.random.default_rng(1)
    u = rng.random((2, 1, 4, 3))
    first, second, last = u[:, 0, 0], u[:, 0, 1], u[:, 0, -1]
    g, q, D = rng.random(3), 0.7, np.array([0.5, 2.0]).reshape(2, 1, 1)
    cells, nodes = Grid((4, 3), extent=2.0, centering="cells"), Grid((4, 3), extent=2.0)
    dx = cells.spacing[0]
    np.testing.assert_allclose(ghosts(Dirichlet(g), cells, u)[0], 2 * g - first)
    np.testing.assert_allclose(ghosts(Neumann(g), cells, u)[1], last + dx * g)
    np.testing.assert_allclose(ghosts(Flux(q), cells, u, diffusivity=D)[1], last - dx * q / D[:, 0])
    low, _ = ghosts(Robin(1.5, np.array([2.0, 3.0]), g), cells, u)
    b = np.array([[2.0], [3.0]])
    np.testing.assert_allclose(1.5 * (low + first) / 2 + b * (low - first) / dx, np.tile(g, (2, 1)))
    dx = nodes.spacing[0]
    np.testing.assert_allclose(ghosts(Neumann(g), nodes, u)[0], second + 2 * dx * g)
    np.testing.assert_allclose(ghosts(Flux(q), nodes, u, diffusivity=D)[0], second - 2 * dx * q / D[:, 0])
    np.testing.assert_allclose(ghosts(Robin(1.5, 2.0, g), nodes, u)[0], second + 2 * dx * (g - 1.5 * first) / 2)


def test_values_per_face_and_sample():
    grid, u = Grid((3, 4, 2)), np.zeros((2, 1, 3, 4, 2))

    def held(value):
        return hold(u.copy(), lower({"x": (Dirichlet(value), None)}, grid, batch=2, u0=u).edges(), 0)[:, 0, 0]

    face, sample = np.arange(8.0).reshape(4, 2), np.array([1.0, 2.0])
    np.testing.assert_array_equal(held(face), [face, face])
    np.testing.assert_array_equal(held(face[:, :1]), np.broadcast_to(face[:, :1], (2, 4, 2)))
    np.testing.assert_array_equal(held([face, -face]), [face, -face])
    np.testing.assert_array_equal(held(sample), np.broadcast_to(sample[:, None, None], (2, 4, 2)))
    np.testing.assert_array_equal(held(sample.reshape(2, 1, 1)), np.broadcast_to(sample[:, None, None], (2, 4, 2)))
    y, z = grid.points(1)[:, None], grid.points(2)
    np.testing.assert_allclose(held("x + 2*y + z**2"), np.broadcast_to(2 * y + z**2, (2, 4, 2)))
    np.testing.assert_array_equal(held(lambda y, z: 1.0 if y > z else 2.0), [np.where(y > z, 1, 2)] * 2)


def test_values_of_components():
    grid, u = Grid((3, 3)), np.zeros((1, 2, 3, 3))
    out = hold(u, lower({"u": {"x": Dirichlet(1.0)}, "v": {"y": (Dirichlet(2.0), None)}}, grid, ("u", "v")).edges(), 0)
    np.testing.assert_array_equal(out[0, 0], [[1, 1, 1], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(out[0, 1], [[2, 0, 0]] * 3)


def test_values_in_time_come_from_a_table():
    faces = lower({"x": (Dirichlet("sin(t)"), Neumann(lambda t: 1.0 if t > 1.2 else 0.0))}, Grid(4))
    e, again = faces.edges(1.0, 0.25, 4), faces.edges(3.0, 0.5, 4)
    u = np.zeros((1, 1, 4))
    for step in range(5):
        assert hold(u.copy(), e, step)[0, 0, 0] == np.sin(1.0 + 0.25 * step)
        assert hold(u.copy(), again, step)[0, 0, 0] == np.sin(3.0 + 0.5 * step)
        assert pad(u, e, step)[0, 0, -1] == (2 / 3 if 1.0 + 0.25 * step > 1.2 else 0.0)
    assert not faces.nonlinear and not faces.constant


@pytest.mark.parametrize("centering", CENTERINGS)
def test_values_in_time_and_place_are_called_or_tabulated(centering):
    grid = Grid((3, 4, 5), extent=((1.0, 2.0), 1.0, (-1.0, 2.0)), centering=centering)
    faces = lower({"y": Neumann("t*x - z*cos(t + y)"), "x": Dirichlet(lambda t, z: t * z)}, grid)
    u = np.random.default_rng(0).random((1, 1, *grid.shape))
    called, tables = faces.edges(0.5, 0.25, 2), faces.edges(0.5, 0.25, 2, tables=True)
    x, z = grid.points(0)[:, None], grid.points(2)
    c, dx = (1, grid.spacing[1]) if centering == "cells" else (2, 2 * grid.spacing[1])
    for step in range(3):
        t = 0.5 + 0.25 * step
        ghost = u[0, 0, :, -c] + dx * (t * x - z * np.cos(t + 1.0))
        np.testing.assert_allclose(pad(u, called, step)[0, 0, 1:-1, -1, 1:-1], ghost)
        np.testing.assert_allclose(pad(u, called, step), pad(u, tables, step), rtol=1e-14)
        np.testing.assert_array_equal(hold(u.copy(), called, step), hold(u.copy(), tables, step))


@pytest.mark.parametrize(("centering", "wall"), [("nodes", 3.0), ("cells", 1.5 * 3 - 0.5 * 2)])
def test_a_nonlinear_value_sees_u_at_the_wall(centering, wall):
    grid, u = Grid(3, centering=centering), np.array([[[1.0, 2.0, 3.0]]])
    for value in ("u**2", lambda u: u * u):
        faces = lower({"x": (None, Neumann(value))}, grid)
        ghost = pad(u, faces.edges(), 0)[0, 0, -1]
        dx = grid.spacing[0]
        assert math.isclose(ghost, 3 + dx * wall**2 if centering == "cells" else 2 + 2 * dx * wall**2)
        assert faces.nonlinear


@pytest.mark.cuda
@pytest.mark.parametrize("centering", CENTERINGS)
def test_nonlinear_values_on_a_gpu(centering):
    from fastdiff.kernels._march_cuda import march_cuda
    from fastdiff.kernels.heat import rule

    grid = Grid((5, 6), centering=centering)
    top = Robin(1.0, 1.0, lambda u, x: x * u)
    faces = lower({"x": (Neumann("y - u**2"), Dirichlet("t*y")), "y": (None, top)}, grid)
    u, rate = np.random.default_rng(0).random((1, 1, 5, 6)), np.full((1, 2), 0.1)
    out = march_cuda(rule(rate, u.dtype), u, faces.edges(0.5, 0.1, 3, tables=True), 3, values=faces.values())
    np.testing.assert_allclose(out, reference(u, rate, faces.edges(0.5, 0.1, 3), 3), rtol=1e-14)
    assert lower(Neumann("t*x"), grid).values() is None
    assert type(lower(Neumann("u"), Grid(5)).values()) is type(lower(Neumann("u"), Grid(9)).values())


@pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0"), reason="this is the simulator")
def test_gpu_parts_pass_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-m", "cuda", __file__]
    run = subprocess.run(command, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr


@pytest.mark.parametrize("centering", CENTERINGS)
def test_dirichlet_without_value_holds_the_initial_one(centering):
    grid = Grid((6, 5), centering=centering)
    u = np.random.default_rng(3).random((2, 6, 5))
    out = march(u, grid, {"x": Dirichlet()}, 1.0, 0.05)
    fixed = np.stack([march(v, grid, {"x": (Dirichlet(v[0]), Dirichlet(v[-1]))}, 1.0, 0.05) for v in u])
    np.testing.assert_array_equal(out, fixed)
    faces = lower({"x": Dirichlet()}, grid, batch=2)
    known = lower({"x": Dirichlet()}, grid, batch=2, u0=u[:, None])
    late = pad(u[:, None], faces.edges(initial=u[:, None]), 0)
    np.testing.assert_array_equal(late, pad(u[:, None], known.edges(), 0))


def test_constant_boundaries_are_packed_once():
    boundary, grid = {"x": (Dirichlet(1.0), Robin(1, 2, 3))}, Grid(8)
    faces = lower(boundary, grid)
    assert lower(dict(boundary), Grid(8)) is faces
    one, other = faces.edges(0.0, 0.1, 5), faces.edges(1.0, 0.2, 7)  # but for the clock, which a source may read
    assert one.ints is other.ints and one.reals is other.reals and tuple(other.clock[:2]) == (1.0, 0.2)
    assert lower(boundary, grid, dtype=np.float32) is not faces


def test_an_array_changed_in_place_is_seen():
    value = np.zeros(5)
    boundary = {"x": Dirichlet(value)}
    lower(boundary, Grid((4, 5)))
    value[:] = 7
    assert hold(np.zeros((1, 1, 4, 5)), lower(boundary, Grid((4, 5))).edges(), 0)[0, 0, 0, 0] == 7


# -- orders and conservation -----------------------------------------------------------------------------------------


def order(error, sizes):
    errors = [error(n) for n in sizes]
    return np.log2(errors[:-1] / np.array(errors[1:])) / np.log2(np.array(sizes[1:]) / sizes[:-1]), errors


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("kind", ["dirichlet", "neumann", "flux", "robin", "nonlinear", "function"])
def test_observed_order_two(centering, kind):
    """u = exp(-D k^2 t) cos(k x + 0.4) + 2 under each condition; the walls' values follow from it."""
    D, k = 0.3, 2.0
    u, slope = f"(exp(-{D * k * k}*t)*cos({k}*x + 0.4) + 2)", f"(-{k}*exp(-{D * k * k}*t)*sin({k}*x + 0.4))"

    def wall(sign):
        match kind:
            case "dirichlet":
                return Dirichlet(u)
            case "neumann":
                return Neumann(f"{sign}*{slope}")
            case "flux":
                return Flux(f"{-sign * D}*{slope}")
            case "robin":
                return Robin(1.5, 0.7, f"1.5*{u} + 0.7*{sign}*{slope}")
            case "nonlinear":  # du/dn = -u^4/8 + what the solution leaves over
                return Neumann(f"-u**4/8 + {u}**4/8 + {sign}*{slope}")

        def value(t, x, u):
            decay = math.exp(-D * k * k * t)
            wanted = decay * math.cos(k * x + 0.4) + 2
            return (wanted**4 - u**4) / 8 - sign * k * decay * math.sin(k * x + 0.4)

        return Neumann(value)

    def error(n):
        grid = Grid(n + (centering == "nodes"), extent=1.2, centering=centering)
        exact = lambda t: np.exp(-D * k * k * t) * np.cos(k * grid.points(0) + 0.4) + 2
        return np.abs(march(exact(0.0), grid, {"x": (wall(-1), wall(1))}, D, 0.4) - exact(0.4)).max()

    rates, errors = order(error, [8, 16, 32])
    assert errors[-1] < 2e-3 and np.all(np.abs(rates - 2) < 0.2), (rates, errors)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_order_two_in_two_dimensions_with_values_along_the_walls(centering):
    D = 0.5
    u = "exp(-t)*sin(x)*cos(y)"

    def error(n):
        grid = Grid((n + (centering == "nodes"),) * 2, extent=((0.2, 1.2), (0.3, 1.3)), centering=centering)
        x, y = grid.coordinates()
        out = march(np.sin(x) * np.cos(y), grid, {
            "x": (Dirichlet(u), Neumann("exp(-t)*cos(x)*cos(y)")),
            "y": (Robin(1.0, 2.0, "exp(-t)*sin(x)*(cos(y) + 2*sin(y))"), Dirichlet(u))}, D, 0.3)
        return np.abs(out - math.exp(-0.3) * np.sin(x) * np.cos(y)).max()

    rates, errors = order(error, [8, 16, 32])
    assert errors[-1] < 2e-3 and np.all(np.abs(rates - 2) < 0.2), (rates, errors)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("shape", [(17,), (9, 12), (5, 6, 7)])
def test_solve_equals_the_reference_under_every_kind_of_wall(centering, shape):
    import fastdiff as fd

    grid, D, dt = Grid(shape, centering=centering), 0.5, 2e-4
    u = np.random.default_rng(0).random((2, *shape))
    last = grid.names[-1]
    boundary: dict[str, Any] = {last: (Dirichlet(f"sin(t) + {last}"), Neumann("-u**4"))}
    if len(shape) > 1:
        boundary["x"] = (Robin(np.array([1.0, 2.0]), 2.0, f"t*{last}"), Neumann(lambda t: math.cos(t)))
    if len(shape) > 2:
        boundary["y"] = (Flux(np.linspace(0, 1, shape[0])[:, None]), Dirichlet())
    s = fd.solve(fd.Heat(D), u, grid, 0.02, boundary=boundary, method="euler", dt=dt)
    faces = lower(boundary, grid, batch=2, u0=u[:, None], diffusivity=D)
    rate = np.tile([D * dt / dx**2 for dx in grid.spacing], (2, 1))
    exact = reference(u[:, None], rate, faces.edges(0.0, dt, 100), 100)[:, 0]
    np.testing.assert_allclose(s.final, exact, rtol=1e-13, atol=1e-14)


def series(x, t, L, D, terms=4000):
    """u_t = D u_xx, u(0,t) = sin t, u(L,t) = exp(-t), u(x,0) = x/L, by eigenfunctions."""
    n = np.arange(1, terms + 1)[:, None]
    rate = D * (n * math.pi / L) ** 2
    a, b = 2 / (n * math.pi), -2 * (-1.0) ** n / (n * math.pi)
    sine = -a * (rate * math.cos(t) + math.sin(t) - rate * np.exp(-rate * t)) / (rate**2 + 1)
    decay = b * (math.exp(-t) - np.exp(-rate * t)) / (rate - 1)
    lifted = math.sin(t) * (1 - x / L) + math.exp(-t) * x / L
    return lifted + ((sine + decay) * np.sin(n * math.pi * x / L)).sum(0)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("as_function", [False, True])
def test_moving_ends_against_their_series(centering, as_function):
    L, D, t = 1.5, 0.8, 0.9
    ends = (Dirichlet(lambda t: math.sin(t)), Dirichlet(lambda t: np.exp(-t))) if as_function else (
        Dirichlet("sin(t)"), Dirichlet("exp(-t)"))

    def error(n):
        grid = Grid(n + (centering == "nodes"), extent=L, centering=centering)
        x = grid.points(0)
        return np.abs(march(x / L, grid, {"x": ends}, D, t) - series(x, t, L, D)).max()

    rates, errors = order(error, [8, 16, 32])
    assert errors[-1] < 4e-4 and np.all(np.abs(rates - 2) < 0.2), (rates, errors)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_flux_takes_out_what_it_says(centering):
    grid = Grid((7, 6), extent=(2.0, 3.0), centering=centering)
    u = np.random.default_rng(0).random(grid.shape)
    wx, wy = grid.weights()
    out = march(u, grid, {"x": (Flux(0.25), Flux(-1.0)), "y": (None, Flux(0.5))}, 0.7, 0.3)
    lost = 0.3 * (0.25 * 3.0 - 1.0 * 3.0 + 0.5 * 2.0)
    assert math.isclose((out * wx * wy).sum(), (u * wx * wy).sum() - lost, rel_tol=1e-12)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("condition", [Robin(20.0, 0.5), Robin(0.1, 2.0), Dirichlet(0), Neumann(0)])
def test_stiffness_bounds_the_largest_eigenvalue(centering, condition):
    grid = Grid(9, centering=centering)
    faces = lower(condition, grid)
    basis = np.eye(9)[:, None]
    p = pad(basis, lower(condition, grid, batch=9).edges(), 0)[:, 0]
    matrix = p[:, 2:] + p[:, :-2] - 2 * p[:, 1:-1]
    largest = np.abs(np.linalg.eigvals(matrix)).max()
    assert largest <= 4 * faces.stiffness[0] * (1 + 1e-12)
    assert faces.stiffness[0] <= max(1.0, largest / 4 * 1.2)
