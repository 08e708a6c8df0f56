"""The spectral propagator against explicit steps for every pair of walls, exact solutions, and bad input."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fastdiff.boundary import Dirichlet, Flux, Neumann, Robin, lower
from fastdiff.grid import Grid
from fastdiff.kernels.heat import reference
from fastdiff.steppers.spectral import Propagator, propagate, refuses

CENTERINGS = ["nodes", "cells"]
WALLS = ["periodic", "DD", "DN", "ND", "NN"]


def wall(kind, value: Any = 0.0):
    return Dirichlet(value) if kind == "D" else Neumann(value)


def euler(u, grid, boundary, D, dt, steps):
    """FTCS in plain NumPy."""
    rate = np.broadcast_to(D, (len(u), grid.ndim)) * dt / np.square(grid.spacing)
    full = np.broadcast_to(np.reshape(D, (-1, 1, np.shape(D)[-1] if np.ndim(D) else 1)), (len(u), 1, grid.ndim))
    edges = lower(boundary, grid, batch=len(u), u0=u, diffusivity=full).edges(0.0, dt, steps)
    return reference(u, rate, edges, steps)


def relative(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize("n", [2, 3, 8, 13])
@pytest.mark.parametrize("values", [(0.0, 0.0), (0.7, -1.3)])
def test_one_dimension_equals_explicit_steps(centering, walls, n, values):
    grid = Grid(n, extent=1.7, centering=centering, periodic=walls == "periodic")
    boundary = None if walls == "periodic" else {"x": (wall(walls[0], values[0]), wall(walls[1], values[1]))}
    u = np.random.default_rng(n).random((2, 1, n))
    D = np.array([[0.3], [0.9]])
    dt = 0.45 * grid.spacing[0] ** 2
    out = propagate(u, grid, boundary, D, 60 * dt, "euler", dt)
    assert relative(out, euler(u, grid, boundary, D, dt, 60)) < 2e-14


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("walls", list(itertools.product(WALLS, repeat=2)), ids="-".join)
def test_two_dimensions_equal_explicit_steps(centering, walls):
    rng = np.random.default_rng(7)
    grid = Grid((6, 5), extent=(1.0, 2.0), centering=centering, periodic=tuple(w == "periodic" for w in walls))
    boundary = {name: (wall(w[0], rng.random(grid.shape[1 - a])), wall(w[1], rng.random()))
                for a, (name, w) in enumerate(zip("xy", walls)) if w != "periodic"}
    u, D, dt = rng.random((2, 1, 6, 5)), np.array([[0.3, 0.2], [0.5, 0.6]]), 0.01
    out = propagate(u, grid, boundary, D, 40 * dt, "euler", dt)
    assert relative(out, euler(u, grid, boundary, D, dt, 40)) < 2e-14


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("walls", [("periodic",) * 3, ("DN", "periodic", "NN"), ("DD", "ND", "periodic"), ("NN",) * 3,
                                   ("DD", "DN", "NN"), ("periodic", "periodic", "DD")], ids="-".join)
def test_three_dimensions_equal_explicit_steps(centering, walls):
    rng = np.random.default_rng(5)
    grid = Grid((5, 4, 6), extent=(1.0, 1.5, 2.0), centering=centering, periodic=tuple(w == "periodic" for w in walls))
    boundary = {name: (wall(w[0], rng.random((1, *np.delete(grid.shape, a)))), wall(w[1], rng.random()))
                for a, (name, w) in enumerate(zip("xyz", walls)) if w != "periodic"}
    u, D, dt = rng.random((1, 1, 5, 4, 6)), np.array([[0.3, 0.2, 0.4]]), 0.02
    out = propagate(u, grid, boundary, D, 25 * dt, "euler", dt)
    assert relative(out, euler(u, grid, boundary, D, dt, 25)) < 2e-14


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("sizes", [1, 2])
def test_narrow_axes(centering, sizes):
    for walls in WALLS:
        if centering == "nodes" and sizes == 1 and walls != "periodic":
            continue
        grid = Grid((7, sizes), centering=centering, periodic=(False, walls == "periodic"))
        boundary: dict[str, Any] = {"x": (Dirichlet(0.3), None)}
        if walls != "periodic":
            boundary["y"] = (wall(walls[0], 0.1), wall(walls[1], 0.2))
        u, dt = np.random.default_rng(0).random((1, 1, *grid.shape)), 2e-3
        out = propagate(u, grid, boundary, 1.0, 30 * dt, "euler", dt)
        assert relative(out, euler(u, grid, boundary, np.ones(2), dt, 30)) < 2e-14


@pytest.mark.parametrize("centering", CENTERINGS)
def test_flux_dirichlet_as_is_and_a_value_over_the_face(centering):
    grid = Grid((6, 7), centering=centering)
    u, dt = np.random.default_rng(2).random((3, 1, 6, 7)), 1e-3
    D = np.array([[1.0], [2.0], [0.5]]) * [1.0, 2.0]
    boundary = {"x": (Flux(np.array([1.0, -2.0, 0.5])), Dirichlet()), "y": (None, Neumann("x**2"))}
    out = propagate(u, grid, boundary, D, 50 * dt, "euler", dt)
    assert relative(out, euler(u, grid, boundary, D, dt, 50)) < 2e-14


def test_components_may_have_their_own_walls():
    grid, u = Grid((6, 5)), np.random.default_rng(1).random((2, 2, 6, 5))
    boundary = {"u": {"x": Dirichlet(1.0)}, "v": {"y": (Neumann(1.0), None)}}
    out = propagate(u, grid, boundary, np.array([[[1.0], [2.0]]]), 0.1, names=("u", "v"))
    for c, (name, D) in enumerate([("u", 1.0), ("v", 2.0)]):
        np.testing.assert_allclose(out[:, c], propagate(u[:, c:][:, :1], grid, boundary[name], D, 0.1)[:, 0])


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("walls", WALLS)
def test_discrete_symbol_is_the_limit_of_small_steps(centering, walls):
    grid = Grid(9, centering=centering, periodic=walls == "periodic")
    boundary = None if walls == "periodic" else {"x": (wall(walls[0], 1.0), wall(walls[1], 0.5))}
    u = np.random.default_rng(0).random((1, 1, 9))
    exact = propagate(u, grid, boundary, 1.0, 0.05, "discrete")
    errors = [np.abs(propagate(u, grid, boundary, 1.0, 0.05, "euler", 0.05 / n) - exact).max() for n in (2000, 4000)]
    assert errors[1] < 1e-4 and 1.9 < errors[0] / errors[1] < 2.1


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize(("ndim", "n"), [(1, 12), (2, 12), (3, 9)])
@pytest.mark.parametrize("mode", ["DD", "NN", "DN", "ND", "periodic"])
def test_exact_symbol_solves_sine_modes_to_rounding(centering, ndim, n, mode):
    L = 1.3
    grid = Grid((n,) * ndim, extent=L, centering=centering, periodic=mode == "periodic")
    k = {"DD": 2 * math.pi / L, "NN": 3 * math.pi / L, "periodic": 4 * math.pi / L}.get(mode, 1.5 * math.pi / L)
    shape = np.sin if mode[0] == "D" else np.cos
    u = np.array(math.prod(shape(k * x) for x in grid.coordinates()))[None, None]
    boundary = None if mode == "periodic" else {name: (wall(mode[0]), wall(mode[1])) for name in grid.names}
    out = propagate(u, grid, boundary, 0.7, 0.04)
    np.testing.assert_allclose(out, u * math.exp(-0.7 * ndim * k * k * 0.04), atol=1e-14)


@pytest.mark.parametrize("n", [2, 8, 9])
def test_highest_periodic_mode(n):
    """At even n the highest mode alternates in sign, and has one phase alone."""
    grid = Grid(n, extent=1.0, periodic=True)
    k = 2 * math.pi * (n // 2)
    u = np.cos(k * grid.points(0))[None, None]
    np.testing.assert_allclose(propagate(u, grid, None, 1.0, 1e-3), u * math.exp(-k * k * 1e-3), atol=1e-14)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_steady_and_growing_states_in_one_dimension(centering):
    """Dirichlet 0 and 1 tend to x; fluxes that do not balance grow as a parabola (py-pde's tests of the same)."""
    grid = Grid(16, centering=centering)
    x, u = grid.points(0), np.random.default_rng(0).random((1, 1, 16))
    out = propagate(u, grid, {"x": (Dirichlet(0), Dirichlet(1))}, 1.0, 5.0)
    np.testing.assert_allclose(out[0, 0], x, atol=1e-13)
    out = propagate(u, grid, {"x": (Dirichlet(0), Neumann(3))}, 1.0, 20.0)
    np.testing.assert_allclose(out[0, 0], 3 * x, atol=1e-13)
    start = (x**2)[None, None]
    out = propagate(start, grid, {"x": (None, Neumann(2.0))}, 0.5, 0.8)  # u = x^2 + 2 D t
    np.testing.assert_allclose(out[0, 0], x**2 + 0.8, atol=1e-13)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_steady_state_in_two_dimensions_has_order_two(centering):
    """Laplace's equation with sine walls: (cosh(pi - y) sin x + cosh(pi - x) sin y) / cosh(pi) on [0, 2 pi]^2."""
    def error(n):
        grid = Grid((n + (centering == "nodes"),) * 2, extent=2 * math.pi, centering=centering)
        x, y = grid.coordinates()
        walls = {"x": Dirichlet("sin(y)"), "y": Dirichlet("sin(x)")}
        out = propagate(np.zeros((1, 1, *grid.shape)), grid, walls, 1.0, 200)
        exact = (np.cosh(math.pi - y) * np.sin(x) + np.cosh(math.pi - x) * np.sin(y)) / np.cosh(math.pi)
        return np.abs(out[0, 0] - exact).max()

    errors = [error(n) for n in (32, 64, 128)]
    assert errors[-1] < 5e-4 and all(abs(math.log2(a / b) - 2) < 0.2 for a, b in itertools.pairwise(errors)), errors


def test_a_propagator_gives_any_time_and_keeps_dtype():
    grid, u = Grid((8, 8)), np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    p = Propagator(u, grid, {"x": Dirichlet()}, 1.0)
    assert p.at(0.1).dtype == np.float32
    np.testing.assert_allclose(p.at(0.0), u, atol=1e-6)
    later = Propagator(p.at(0.01).astype(np.float64), grid, {"x": Dirichlet(u[:, 0, 0].mean())}, 1.0)
    assert later.at(0.0).dtype == np.float64
    whole = propagate(u.astype(float), grid, None, 1.0, 0.3)
    half = propagate(u.astype(float), grid, None, 1.0, 0.15)
    np.testing.assert_allclose(propagate(half, grid, None, 1.0, 0.15), whole, atol=1e-14)


@pytest.mark.parametrize(("boundary", "why"), [
    ({"x": (None, Robin(1, 1))}, "Robin condition at x high"),
    ({"x": Dirichlet("sin(t)")}, "'sin\\(t\\)' at x low depends on t"),
    ({"x": Neumann(lambda u: u)}, "depends on u"),
])
def test_walls_without_modes_are_refused(boundary, why):
    grid = Grid(8)
    assert refuses(grid, None) is None and refuses(grid, Dirichlet(1.0)) is None
    assert refuses(grid, {"x": Dirichlet("x + 1")}) is None
    with pytest.raises(ValueError, match=why) as error:
        propagate(np.zeros((1, 1, 8)), grid, boundary, 1.0, 1.0)
    assert "\n" not in str(error.value) and 'method="euler"' in str(error.value)


@pytest.mark.parametrize(("change", "says"), [
    (dict(symbol="fast"), "unknown symbol 'fast'; known: 'exact'"),
    (dict(symbol="euler"), "takes a positive dt"),
    (dict(dt=0.1), "takes a positive dt"),
    (dict(symbol="euler", dt=0.3), "not a whole number of steps"),
    (dict(t=-1.0), "not before the start"),
    (dict(t=math.nan), "not before the start"),
    (dict(diffusivity=-1.0), "not negative"),
    (dict(diffusivity=np.ones(3)), "does not broadcast"),
    (dict(u=np.zeros((1, 8))), "expected \\(batch, 1, 8\\)"),
    (dict(u=np.zeros((1, 2, 8))), "expected \\(batch, 1, 8\\)"),
])
def test_bad_input(change, says):
    call = dict(u=np.zeros((1, 1, 8)), grid=Grid(8), boundary=None, diffusivity=1.0, t=1.0)
    with pytest.raises(ValueError, match=says) as error:
        propagate(**{**call, **change})
    assert "\n" not in str(error.value)
