"""Operators of equations, as a user calls them, against exact and manufactured solutions with the observed order."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fastdiff as fd

CENTERINGS = ["nodes", "cells"]


def order(errors):
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


def run(equation, u0, grid, t_end, boundary=None, share=0.2, **how):
    dt = share * equation.stable_dt(grid)
    return fd.solve(equation, u0, grid, t_end, boundary=boundary, method="euler", dt=dt, **how).final


# -- div(D(x) grad u) ------------------------------------------------------------------------------------------------

A = 2.0


def steady_rod(n, centering, kind):
    """The steady state of (D u')' = -s with D = 1 + x/2 and exact u = 2 + cos(A x + 1/2), relaxed to."""
    grid = fd.Grid(n, centering=centering)
    (x,) = grid.coordinates()
    slope = [A * np.sin(0.5), -A * np.sin(A + 0.5)]  # outward
    value = [2 + np.cos(0.5), 2 + np.cos(A + 0.5)]
    D = [1.0, 1.5]
    held = fd.Dirichlet(value[0])
    low, high = {
        "dirichlet": (held, fd.Dirichlet(value[1])),
        "neumann": (held, fd.Neumann(slope[1])),
        "flux": (held, fd.Flux(-D[1] * slope[1])),
        "flux in time": (held, fd.Flux(f"{-D[1] * slope[1]} + 0*t")),
        "robin": (fd.Robin(2.0, 1.0, 2 * value[0] + slope[0]), fd.Robin(1.0, 3.0, value[1] + 3 * slope[1])),
        "nonlinear": (held, fd.Neumann(f"{slope[1]} + {value[1]}**2 - u**2")),
    }[kind]
    phase = A * x + 0.5
    s = 0.5 * A * np.sin(phase) + (1 + 0.5 * x) * A * A * np.cos(phase)
    equation = fd.Heat("1 + x/2", source=s)
    u = fd.solve(equation, np.full(n, 2.0), grid, 12.0, boundary={"x": (low, high)}, method="euler").final
    return np.abs(u - (2 + np.cos(phase))).max()


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("kind", ["dirichlet", "neumann", "flux", "flux in time", "robin", "nonlinear"])
def test_every_wall_beside_a_variable_diffusivity_is_of_second_order(kind, centering):
    errors = [steady_rod(n, centering, kind) for n in (12, 24, 48)]
    assert order(errors)[-1] == pytest.approx(2, abs=0.25), errors


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("shape", [(24, 18), (10, 12, 8)], ids=str)
def test_fields_in_space_against_an_independent_semi_discretisation(shape, centering, rng):
    """The same fluxes written down face by face, integrated by solve_ivp."""
    periodic = [True, *[False] * (len(shape) - 1)]
    grid = fd.Grid(shape, extent=tuple(0.1 * n for n in shape), centering=centering, periodic=periodic)
    D, u0 = np.exp(rng.random((2, *shape))), rng.random((2, *shape))

    def rhs(D, u):
        new = np.zeros_like(u)
        for axis, (dx, wraps) in enumerate(zip(grid.spacing, grid.periodic)):
            a, b = np.moveaxis(D, axis, 0), np.moveaxis(u, axis, 0)
            a, b = (np.concatenate([f, f[:1]]) if wraps else f for f in (a, b))
            flux = 2 * a[1:] * a[:-1] / (a[1:] + a[:-1]) * np.diff(b, axis=0) / dx
            change = np.zeros_like(np.moveaxis(u, axis, 0))
            volume = np.full(len(change), dx)
            if centering == "nodes" and not wraps:
                volume[[0, -1]] /= 2
            for f in range(len(flux)):
                change[f] += flux[f]
                change[(f + 1) % len(change)] -= flux[f]
            new += np.moveaxis(change / volume.reshape(-1, *[1] * (u.ndim - 1)), 0, axis)
        return new

    got = run(fd.Heat(D), u0, grid, 0.01, share=0.02)
    for b in range(2):
        want = solve_ivp(lambda t, y, b=b: rhs(D[b], y.reshape(shape)).ravel(), (0, 0.01), u0[b].ravel(), rtol=1e-9,
                         atol=1e-9).y[:, -1].reshape(shape)
        assert np.abs(got[b] - want).max() < 2e-3  # of first order in time
        weights = np.prod(np.broadcast_arrays(*grid.weights()), axis=0)
        assert np.sum(weights * got[b]) == pytest.approx(np.sum(weights * u0[b]), rel=1e-12)
        assert u0[b].min() <= got[b].min() and got[b].max() <= u0[b].max()


def test_a_jump_in_the_diffusivity_keeps_the_flux_right():
    """Two layers, held ends: the steady state is two straight lines with equal flux, exact to rounding."""
    grid = fd.Grid(40, centering="cells")
    (x,) = grid.coordinates()
    D = np.where(x < 0.5, 1.0, 0.1)
    u = run(fd.Heat(D), np.zeros(40), grid, 60.0, {"x": (fd.Dirichlet(0.0), fd.Dirichlet(1.0))}, share=0.99)
    flux = 1 / (0.5 / 1.0 + 0.5 / 0.1)
    want = np.where(x < 0.5, flux * x, 1 - flux * (1 - x) / 0.1)
    assert np.abs(u - want).max() < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(30,), (14, 20), (8, 9, 10)], ids=str)
def test_a_constant_field_of_diffusivities_is_the_constant(shape, dtype, rng):
    grid, u0 = fd.Grid(shape, extent=2.0), rng.random((3, *shape)).astype(dtype)
    for walls in (None, fd.Dirichlet(), fd.Robin(1.0, 2.0, 0.5), fd.Neumann(0.3)):
        dt = 0.4 * fd.Heat(0.7).stable_dt(grid)
        a = fd.solve(fd.Heat(0.7), u0, grid, 20 * dt, boundary=walls, method="euler", dt=dt).final
        b = fd.solve(fd.Heat(np.full(shape, 0.7)), u0, grid, 20 * dt, boundary=walls, method="euler", dt=dt).final
        assert np.abs(a - b).max() < 300 * np.finfo(dtype).eps
        assert fd.Heat(np.full(shape, 0.7)).stable_dt(grid) == pytest.approx(fd.Heat(0.7).stable_dt(grid))


def test_the_limit_is_the_limit(rng):
    """Stable at Gershgorin's bound for a rough diffusivity; unstable a little beyond the true one."""
    grid = fd.Grid((24, 24), periodic=True)
    D = np.exp(2 * rng.random((24, 24)))
    heat, u0 = fd.Heat(D), rng.standard_normal((24, 24))
    limit = heat.stable_dt(grid)
    assert np.abs(fd.solve(heat, u0, grid, 500 * limit, method="euler", dt=limit).final).max() < np.abs(u0).max()
    with pytest.raises(fd.Unstable):
        fd.solve(heat, u0, grid, limit * 10, method="euler", dt=1.01 * limit)
    assert limit < fd.Heat(D.min()).stable_dt(grid) and limit >= fd.Heat(D.max()).stable_dt(grid)


def test_bad_coefficients():
    grid, square = fd.Grid(20), fd.Grid((6, 7))
    cases = [
        (fd.Heat(np.ones((3, 20))), np.zeros(20), grid, "parameters for 3 samples, but u0 has 1"),
        (fd.Heat(np.ones(20)), np.zeros((20, 20)), grid, r"one a sample or one a point.*\(20, 1\) or \(1, 20\)"),
        (fd.Heat(np.ones((5, 7))), np.zeros((6, 7)), square, r"one number a sample, not an array of shape \(5, 7\)"),
        (fd.Heat(np.ones((2, 5, 7))), np.zeros((2, 6, 7)), square, r"has shape \(2, 5, 7\): expected a number, \(6, 7\)"),
        (fd.Heat("1 - 2*x"), np.zeros(20), grid, "diffusivity must be at least 0, but is -1"),
        (fd.Heat("1/x"), np.zeros(20), grid, r"diffusivity must be finite at \(0,\)"),
        (fd.Heat("1 + q"), np.zeros(20), grid, "unknown name 'q'"),
        (fd.Heat("__import__('os')"), np.zeros(20), grid, "known"),
        (fd.Heat(("1", "2")), np.zeros(20), grid, "one entry for each of the 1 axes"),
        (fd.Heat(1.0, source=np.ones(19)), np.zeros(20), grid, "parameters for 19 samples"),
    ]
    for equation, u0, where, message in cases:
        with pytest.raises(ValueError, match=message):
            fd.solve(equation, u0, where, 0.1, method="euler")
    with pytest.raises(ValueError, match="spectral.*needs constant coefficients"):
        fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1, method="spectral")
    with pytest.raises(ValueError, match="depends on u"):
        fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1, method="euler", boundary=fd.Flux("u"))
    assert fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1).stats["method"] == "euler"


# -- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("geometry", ["polar", "cylindrical", "spherical"])
def test_radial_modes_decay_as_they_should(geometry, centering):
    """J0(k r) exp(-k² t) in a disc, sin(k r)/r exp(-k² t) in a ball, zero at r = 1: second order, regular at r = 0."""
    from scipy.special import j0, jn_zeros

    k = np.pi if geometry == "spherical" else jn_zeros(0, 1)[0]
    errors = []
    for n in (16, 32, 64):
        grid = fd.Grid(n, geometry=geometry, centering=centering)
        (r,) = grid.coordinates()
        mode = np.sinc(k * r / np.pi) if geometry == "spherical" else j0(k * r)
        got = run(fd.Heat(1.0), mode, grid, 0.05, {"r": (None, fd.Dirichlet(0.0))}, share=0.1)
        errors.append(np.abs(got - mode * np.exp(-k * k * 0.05)).max())
    assert order(errors)[-1] == pytest.approx(2, abs=0.2), errors


def test_a_polar_mode_with_an_angle():
    """J1(k r) cos(theta) exp(-k² t)."""
    from scipy.special import j1, jn_zeros

    k, errors = jn_zeros(1, 1)[0], []
    for n in (12, 24):
        grid = fd.Grid((n, 2 * n), extent=(1.0, 2 * np.pi), periodic=(False, True), geometry="polar", centering="cells")
        r, theta = grid.coordinates()
        mode = j1(k * r) * np.cos(theta)
        got = run(fd.Heat(1.0), mode, grid, 0.03, {"r": (None, fd.Dirichlet(0.0))}, share=0.9)
        errors.append(np.abs(got - mode * np.exp(-k * k * 0.03)).max())
    assert order(errors)[-1] > 1.7, errors


@pytest.mark.parametrize("geometry", ["cylindrical", "spherical"])
def test_axisymmetric_fields_in_two_dimensions(geometry):
    """J0(k r) cos(pi z) in a cylinder; j1(k r) cos(theta) in a ball with closed walls."""
    from scipy.optimize import brentq
    from scipy.special import j0, jn_zeros, spherical_jn

    errors = []
    for n in (12, 24):
        if geometry == "cylindrical":
            k = jn_zeros(0, 1)[0]
            grid, rate = fd.Grid((n, n), geometry=geometry, centering="cells"), k**2 + np.pi**2
            r, z = grid.coordinates()
            mode, walls = j0(k * r) * np.cos(np.pi * z), {"r": (None, fd.Dirichlet(0.0))}
        else:
            k = brentq(lambda x: spherical_jn(1, x, derivative=True), 1.5, 3.0)
            grid, rate = fd.Grid((n, n), extent=(1.0, np.pi), geometry=geometry, centering="cells"), k**2
            r, theta = grid.coordinates()
            mode, walls = spherical_jn(1, k * r) * np.cos(theta), None
        got = run(fd.Heat(1.0), mode, grid, 0.05, walls, share=0.9)
        errors.append(np.abs(got - mode * np.exp(-rate * 0.05)).max() / np.abs(mode).max())
    assert order(errors)[-1] > 1.7, errors


@pytest.mark.parametrize("geometry", ["polar", "cylindrical", "spherical"])
@pytest.mark.parametrize("centering", CENTERINGS)
def test_curved_and_graded_grids_conserve(geometry, centering, rng):
    grid = fd.Grid.graded(np.linspace(0, 1, 21) ** 1.5, geometry=geometry, centering=centering)
    u0 = rng.random(grid.shape)
    got = run(fd.Heat("1 + r"), u0, grid, 0.01, share=0.9)
    volume = grid.volumes(0)
    assert np.sum(volume * got) == pytest.approx(np.sum(volume * u0), rel=1e-12)
    assert np.sum(volume) == pytest.approx(1 / 3 if geometry == "spherical" else 1 / 2)


@pytest.mark.parametrize("centering", CENTERINGS)
@pytest.mark.parametrize("kind", ["dirichlet", "neumann", "robin"])
def test_a_graded_rod_is_of_second_order(kind, centering):
    k, errors = 2.0, []
    value = [f"exp(-{k * k}*t)*cos({0.5 + k * end})" for end in (0, 1)]
    slope = [f"{sign * k}*exp(-{k * k}*t)*sin({0.5 + k * end})" for end, sign in ((0, 1), (1, -1))]
    walls = {"dirichlet": tuple(map(fd.Dirichlet, value)), "neumann": tuple(map(fd.Neumann, slope)),
             "robin": tuple(fd.Robin(2.0, 3.0, f"2*({v}) + 3*({s})") for v, s in zip(value, slope))}[kind]
    for n in (16, 32, 64):
        s = np.linspace(0, 1, n + 1)
        grid = fd.Grid.graded(s + 0.1 * np.sin(2 * np.pi * s), centering=centering)
        (x,) = grid.coordinates()
        got = run(fd.Heat(), np.cos(k * x + 0.5), grid, 0.1, {"x": walls}, share=0.1)
        errors.append(np.abs(got - np.exp(-k * k * 0.1) * np.cos(k * x + 0.5)).max())
    assert order(errors)[-1] == pytest.approx(2, abs=0.3), errors


def test_bad_geometries():
    for message, make in [
        ("unknown geometry 'torus'; known: 'cartesian', 'polar'", lambda: fd.Grid(9, geometry="torus")),
        ("one or two, not 3", lambda: fd.Grid((3, 3, 3), geometry="polar")),
        ("starts at 0 or above, not at -1", lambda: fd.Grid(9, extent=(-1.0, 1.0), geometry="polar")),
        ('needs centering="cells"', lambda: fd.Grid((9, 9), geometry="polar")),
        ("between 0 and pi", lambda: fd.Grid((9, 9), (1.0, 4.0), geometry="spherical", centering="cells")),
        ("must be finite and ascend", lambda: fd.Grid.graded([0.0, 2.0, 1.0])),
        ("array of at least two places", lambda: fd.Grid.graded(3.0)),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    grid = fd.Grid.graded(np.linspace(0, 1, 9) ** 2)
    with pytest.raises(ValueError, match="needs a Cartesian grid with equal spacing, not a graded grid"):
        fd.solve(fd.GrayScott(), np.zeros((2, 9)), grid, 1.0)


def test_solutions_on_such_grids_are_kept(tmp_path):
    grid = fd.Grid.graded(np.linspace(0, 1, 9) ** 2, geometry="polar")
    sol = fd.solve(fd.Heat("1+r"), np.ones(9), grid, 0.01)
    sol.save(tmp_path / "a.h5")
    assert fd.Solution.load(tmp_path / "a.h5").grid == grid
    sol.plot(path=tmp_path / "a.png")
