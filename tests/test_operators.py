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


@pytest.mark.parametrize("shape", [(30,), (14, 20), (8, 9, 10)], ids=str)
def test_a_constant_field_of_diffusivities_is_the_constant(shape, rng):
    grid, u0 = fd.Grid(shape, extent=2.0), rng.random((3, *shape))
    for walls in (None, fd.Dirichlet(), fd.Robin(1.0, 2.0, 0.5), fd.Neumann(0.3)):
        dt = 0.4 * fd.Heat(0.7).stable_dt(grid)
        a = fd.solve(fd.Heat(0.7), u0, grid, 20 * dt, boundary=walls, method="euler", dt=dt).final
        b = fd.solve(fd.Heat(np.full(shape, 0.7)), u0, grid, 20 * dt, boundary=walls, method="euler", dt=dt).final
        assert np.abs(a - b).max() < 300 * np.finfo(np.float64).eps
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
        (fd.Heat(np.ones((2, 5, 7))), np.zeros((2, 6, 7)), square, r"shape \(2, 5, 7\): expected a number, \(6, 7\)"),
        (fd.Heat("1 - 2*x"), np.zeros(20), grid, "diffusivity must be at least 0, but is -1"),
        (fd.Heat("1/x"), np.zeros(20), grid, r"diffusivity must be finite at \(0,\)"),
        (fd.Heat(("1", "2")), np.zeros(20), grid, "one entry for each of the 1 axes"),
        (fd.Heat(1.0, source=np.ones(19)), np.zeros(20), grid, "parameters for 19 samples"),
    ]
    for equation, u0, where, message in cases:
        with pytest.raises(ValueError, match=message):
            fd.solve(equation, u0, where, 0.1, method="euler")
    for text, message in (("1 + q", "unknown name 'q'"), ("__import__('os')", "known"), ("1 + t", "unknown name 't'")):
        with pytest.raises(ValueError, match=message):
            fd.Heat(text)
    with pytest.raises(ValueError, match="spectral.*needs constant coefficients"):
        fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1, method="spectral")
    with pytest.raises(ValueError, match="depends on u"):
        fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1, method="euler", boundary=fd.Flux("u"))
    assert fd.solve(fd.Heat("1+x"), np.zeros(20), grid, 0.1).stats["method"] != "spectral"


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
        fd.solve(fd.CahnHilliard(), np.zeros(9), grid, 1.0)


def test_solutions_on_such_grids_are_kept(tmp_path):
    grid = fd.Grid.graded(np.linspace(0, 1, 9) ** 2, geometry="polar")
    sol = fd.solve(fd.Heat("1+r"), np.ones(9), grid, 0.01)
    sol.save(tmp_path / "a.h5")
    assert fd.Solution.load(tmp_path / "a.h5").grid == grid
    sol.plot(path=tmp_path / "a.png")


# -- sources ---------------------------------------------------------------------------------------------------------


def test_a_source_in_time_is_taken_at_each_steps_own_time():
    """u_t = f(t) x: forward Euler is a sum over the steps, whatever chunks and frames the march is cut into."""
    grid, dt = fd.Grid(40), 1e-4
    (x,) = grid.coordinates()
    equation = fd.Heat(0.0, source="x*cos(40*t)")
    sol = fd.solve(equation, np.zeros(40, np.float32), grid, save_at=[0.05, 0.1], method="euler", dt=dt)
    for frame, steps in zip(sol.u, (500, 1000)):
        want = x * dt * np.cos(40 * dt * np.arange(steps)).sum()
        assert np.abs(frame - want).max() < 2000 * np.finfo(np.float32).eps
    step = fd.Stepper(equation, grid, dt=dt)
    assert np.abs(step(np.zeros(40, np.float32), t=0.3) - x * dt * np.cos(12.0)).max() < 1e-10


def test_a_source_of_each_sample_and_of_place():
    grid = fd.Grid((8, 9))
    f = np.array([1.0, 2.0, 3.0])
    sol = fd.solve(fd.Heat(0.5, source=f), np.zeros((3, 8, 9)), grid, 1.0, method="euler")
    assert np.abs(sol.final - f[:, None, None]).max() < 1e-12
    sol = fd.solve(fd.Heat(0.0, source="x + 10*y"), np.zeros((8, 9)), grid, 1.0, method="euler")
    x, y = grid.coordinates()
    assert np.abs(sol.final - (x + 10 * y)).max() < 1e-12


def test_bad_sources():
    grid = fd.Grid(9)
    for source, message in [(lambda t: t, "is an expression"), ("u*t", "unknown name 'u'"), ("1/x + t", "not finite"),
                            (np.ones((2, 9)), "parameters for 2 samples")]:
        with pytest.raises(ValueError, match=message):
            fd.solve(fd.Heat(1.0, source=source), np.zeros(9), grid, 0.1, method="euler")


# -- advection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "wanted"), [("upwind1", 1), ("central", 2)])
@pytest.mark.parametrize("velocity", [0.7, -0.7])
def test_a_travelling_gaussian(scheme, wanted, velocity):
    D, s, t, errors = 0.01, 0.2, 0.5, []
    for n in (100, 200, 400):
        grid = fd.Grid(n, extent=(-2.0, 2.0), periodic=True)
        (x,) = grid.coordinates()

        def exact(t, x=x):
            width = s * s + 4 * D * t
            return s / np.sqrt(width) * np.exp(-((x - velocity * t) ** 2) / width)

        equation = fd.AdvectionDiffusion(D, velocity, scheme=scheme)
        got = fd.solve(equation, exact(0.0), grid, t, method="euler", dt=0.5 * (4 / n) ** 2).final
        errors.append(np.abs(got - exact(t)).max())
    assert order(errors)[-1] == pytest.approx(wanted, abs=0.25), errors


def manufactured(scheme, centering, n, walls):
    """u = exp(-t) (2 + sin(2x + y)), D = 1 + x/4, v = (1 + x/2, y - 1/4): the source by SymPy, as an expression."""
    import sympy

    t, x, y = sympy.symbols("t x y", real=True)
    u, D, v = sympy.exp(-t) * (2 + sympy.sin(2 * x + y)), 1 + x / 4, (1 + x / 2, y - sympy.Rational(1, 4))
    f = u.diff(t) - sum((D * u.diff(z) - w * u).diff(z) for z, w in zip((x, y), v))
    grid = fd.Grid((n, n + 3), centering=centering)

    def wall(z, at, sign):
        value = u.subs(z, at) if walls == "dirichlet" else sign * u.diff(z).subs(z, at)
        return (fd.Dirichlet if walls == "dirichlet" else fd.Neumann)(str(value))

    boundary = {name: (wall(z, 0, -1), wall(z, 1, 1)) for name, z in (("x", x), ("y", y))}
    equation = fd.AdvectionDiffusion(str(D), tuple(map(str, v)), scheme=scheme, source=str(f))
    exact = sympy.lambdify((t, x, y), u)
    places = grid.coordinates()
    got = run(equation, np.broadcast_to(exact(0.0, *places), grid.shape).copy(), grid, 0.1, boundary)
    return np.abs(got - exact(0.1, *places)).max()


@pytest.mark.parametrize("walls", ["dirichlet", "neumann"])
@pytest.mark.parametrize("centering", CENTERINGS)
def test_advection_in_a_variable_flow_against_a_manufactured_solution(centering, walls):
    errors = [manufactured("central", centering, n, walls) for n in (10, 20, 40)]
    assert order(errors)[-1] == pytest.approx(2, abs=0.3), errors
    errors = [manufactured("upwind1", centering, n, walls) for n in (10, 20, 40)]
    assert order(errors)[-1] > 0.7, errors


@pytest.mark.parametrize("scheme", ["upwind1", "central"])
def test_advection_conserves_and_upwind_keeps_the_range(scheme, rng):
    grid = fd.Grid((24, 20), periodic=True)
    u0 = rng.random((2, 24, 20))
    v = (rng.standard_normal((24, 20)), "sin(2*pi*x)")
    got = run(fd.AdvectionDiffusion(0.05, v, scheme=scheme), u0, grid, 0.05, share=0.95)
    assert got.sum() == pytest.approx(u0.sum(), rel=1e-12)
    if scheme == "upwind1":
        assert got.min() >= 0
    turning = ("sin(2*pi*y)", "cos(2*pi*x)")  # without divergence: the field's range is kept
    got = run(fd.AdvectionDiffusion(0.0, turning), u0, grid, 0.2, share=0.95)
    assert u0.min() <= got.min() and got.max() <= u0.max()


def test_velocities_of_each_sample():
    grid = fd.Grid(50, periodic=True)
    u0 = np.random.default_rng(0).random((3, 50))
    v = np.array([0.5, -1.0, 0.0])
    many = fd.solve(fd.AdvectionDiffusion(0.01, v), u0, grid, 0.1, method="euler", dt=1e-3).final
    for b in range(3):
        one = fd.solve(fd.AdvectionDiffusion(0.01, v[b]), u0[b], grid, 0.1, method="euler", dt=1e-3).final
        assert np.array_equal(one, many[b])


def test_the_limit_of_central_differences():
    grid = fd.Grid(64, periodic=True)
    equation = fd.AdvectionDiffusion(0.002, 1.0, scheme="central")
    limit = equation.stable_dt(grid)
    assert limit == pytest.approx(0.004)
    u0 = np.random.default_rng(0).standard_normal(64)
    assert np.linalg.norm(run(equation, u0, grid, 500 * limit, share=1.0)) <= np.linalg.norm(u0)


def test_bad_advection():
    grid = fd.Grid((8, 9))
    for equation, message in [
        (lambda: fd.AdvectionDiffusion(scheme="weno"), "unknown scheme 'weno'; known: 'upwind1'"),
        (lambda: fd.AdvectionDiffusion(1.0, 2.0).stable_dt(grid), "velocity has one entry for each of the 2 axes"),
        (lambda: fd.AdvectionDiffusion(0.0, (1.0, 0.0), scheme="central").stable_dt(grid), "unstable for any explicit"),
        (lambda: fd.AdvectionDiffusion(-1.0, (1.0, 0.0)).stable_dt(grid), "diffusivity must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            equation()


# -- D(u), R(u) ------------------------------------------------------------------------------------------------------


def test_barenblatt_in_one_and_two_dimensions():
    """The porous medium equation u_t = div(m u^(m-1) grad u), m = 2: a front with a sharp edge.

    U = t^-a (C - k r²/t^(2b))+, b = 1/(d(m-1) + 2), a = d b, k = (m-1) b / (2m) (Vazquez 2007, eq. 1.8).
    """
    for d, sizes in ((1, (50, 100, 200)), (2, (32, 64))):
        b = 1 / (d + 2)
        a, k, errors = d * b, b / 4, []

        def exact(t, r2, a=a, b=b, k=k):
            return t**-a * np.maximum(0.15 - k * r2 / t ** (2 * b), 0)

        for n in sizes:
            grid = fd.Grid((n,) * d, extent=[(-2.0, 2.0)] * d, centering="cells")
            r2 = sum(x * x for x in grid.coordinates())
            equation = fd.Heat("2*u", bounds=(0.0, 0.2))
            u0 = np.broadcast_to(exact(1.0, r2), grid.shape).copy()
            got = run(equation, u0, grid, 1.0, share=0.9)
            cell = grid.spacing[0] ** d
            errors.append(np.abs(got - exact(2.0, r2)).sum() * cell)
            assert got.sum() * cell == pytest.approx(u0.sum() * cell, rel=1e-12) and got.min() >= 0
        assert order(errors)[-1] > 1.3, errors


@pytest.mark.parametrize("centering", CENTERINGS)
def test_nonlinear_diffusion_with_a_capacity_against_a_manufactured_solution(centering):
    """R(u) u_t = (D(u) u_x)_x + f with D = 1/2 + exp(-u), R = 1 + u², Neumann and Dirichlet in time."""
    import sympy

    t, x = sympy.symbols("t x", real=True)
    u = (1 + sympy.cos(2 * x + t) / 2) / 2
    f = (1 + u**2) * u.diff(t) - ((sympy.Rational(1, 2) + sympy.exp(-u)) * u.diff(x)).diff(x)
    exact, errors = sympy.lambdify((t, x), u), []
    walls = {"x": (fd.Neumann(str(-u.diff(x).subs(x, 0))), fd.Dirichlet(str(u.subs(x, 1))))}
    for n in (10, 20, 40):
        grid = fd.Grid(n, centering=centering)
        (places,) = grid.coordinates()
        equation = fd.Heat("0.5 + exp(-u)", source=str(f), capacity="1 + u**2")
        got = run(equation, exact(0.0, places), grid, 0.2, walls)
        errors.append(np.abs(got - exact(0.2, places)).max())
    assert order(errors)[-1] == pytest.approx(2, abs=0.3), errors


def test_diffusion_with_sorption_against_solve_ivp():
    """PDEBench's diffusion–sorption: R(u) u_t = D u_xx with a Freundlich R."""
    n, D = 32, 5e-4
    grid = fd.Grid(n, centering="cells")

    def R(u):
        return 1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * (u + 1e-6) ** (0.874 - 1)

    def rhs(t, u):
        full = np.concatenate([[2.0 - u[0]], u, [u[-1]]])
        return D * np.diff(full, 2) / grid.spacing[0] ** 2 / R(u)

    u0 = np.full(n, 0.1)
    want = solve_ivp(rhs, (0, 50.0), u0, rtol=1e-9, atol=1e-9).y[:, -1]
    equation = fd.Heat(D, capacity="1 + (1 - phi)/phi*rho*k*nf*(u + 1e-6)**(nf - 1)",
                       parameters={"phi": 0.29, "rho": 2880.0, "k": 3.5e-4, "nf": 0.874})
    walls = {"x": (fd.Dirichlet(1.0), None)}
    errors = [np.abs(fd.solve(equation, u0, grid, 50.0, boundary=walls, method="euler", dt=dt).final - want).max()
              for dt in (0.5, 0.25)]
    assert errors[1] < 1e-3 and errors[0] / errors[1] == pytest.approx(2, abs=0.2)


def test_laws_with_parameters_of_each_sample(rng):
    grid, u0 = fd.Grid((9, 12)), rng.random((2, 9, 12))
    many = fd.Heat("a*u**2 + b", parameters={"a": np.array([1.0, 2.0]), "b": 0.1}, bounds=(0, 1))
    got = fd.solve(many, u0, grid, 1e-3, method="euler", dt=1e-4).final
    for k, a in enumerate((1.0, 2.0)):
        one = fd.Heat(f"{a}*u**2 + 0.1")
        assert np.abs(fd.solve(one, u0[k], grid, 1e-3, method="euler", dt=1e-4).final - got[k]).max() < 1e-15


def test_bad_laws():
    grid = fd.Grid(9)
    for make, message in [
        (lambda: fd.Heat("u*t"), "depends on u and on t"),
        (lambda: fd.Heat("u + q"), "unknown name 'q'"),
        (lambda: fd.Heat("u - 1").stable_dt(grid), "falls to -1 between the bounds 0 and 1"),
        (lambda: fd.Heat("1/u + u", bounds=(3, 1)).stable_dt(grid), "bounds are a pair"),
        (lambda: fd.Heat(1.0, capacity=2.0), "capacity is an expression in u"),
        (lambda: fd.Heat(1.0, parameters={"a": 1.0}), "there is none"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


# -- wide operators: orders 4 and 6, upwind 2 and 3, matrices --------------------------------------------------------


@pytest.mark.parametrize("wanted", [4, 6])
@pytest.mark.parametrize("wall", ["periodic", "dirichlet", "neumann", "robin in value and slope"])
@pytest.mark.parametrize("centering", CENTERINGS)
def test_high_orders_hold_up_to_steady_walls(wanted, wall, centering):
    """Modes of the continuous problem; what the step adds divided by dt against -k² D mode: no error in time."""
    errors = []
    for n in (12, 24):
        grid = fd.Grid(n, periodic=wall == "periodic", centering=centering)
        (x,) = grid.coordinates()
        k, shift = 2 * np.pi, 0.3
        walls = {"periodic": None, "dirichlet": fd.Dirichlet(0.4), "neumann": fd.Neumann(0.0),
                 "robin in value and slope": None}[wall]
        mode = {"periodic": np.sin(k * x + shift), "dirichlet": 0.4 + np.sin(k * x)}.get(wall, np.cos(k * x))
        equation = fd.Heat(0.7, order=wanted)
        dt = 1e-3 * equation.stable_dt(grid)
        new = fd.Stepper(equation, grid, dt=dt, boundary=walls)(mode)
        rate = (new - mode) / dt
        want = -0.7 * k * k * (mode - (0.4 if wall == "dirichlet" else 0.0))
        inside = slice(1, -1) if wall == "dirichlet" and centering == "nodes" else slice(None)
        errors.append(np.abs(rate - want)[inside].max())
    assert order(errors)[-1] == pytest.approx(wanted, abs=0.4), errors


@pytest.mark.parametrize("shape", [(14, 12), (8, 9, 10)], ids=str)
@pytest.mark.parametrize("wanted", [4, 6])
def test_the_limits_of_high_orders_are_sharp(shape, wanted, rng):
    grid = fd.Grid(tuple(n // 2 * 2 for n in shape), periodic=True, extent=1.3)
    equation = fd.Heat(tuple(rng.uniform(0.5, 1, len(shape))), order=wanted)
    limit = equation.stable_dt(grid)
    u0 = rng.standard_normal(grid.shape)
    assert np.linalg.norm(run(equation, u0, grid, 200 * limit, share=1.0)) <= np.linalg.norm(u0)
    from fastdiff.kernels._edges import make_edges
    from fastdiff.kernels._run import march

    if all(n % 2 == 0 for n in grid.shape):
        rule = equation.euler(grid, 1.05 * limit, 1, np.float64)
        worst = np.prod(np.broadcast_arrays(*((-1.0) ** np.arange(n).reshape([-1 if k == a else 1 for k in range(
            grid.ndim)]) for a, n in enumerate(grid.shape))), axis=0)
        after = march(rule, worst[None, None], make_edges(grid.shape, grid.periodic, "f8"), 50)
        assert np.abs(after).max() > 5


@pytest.mark.parametrize(("scheme", "wanted"), [("upwind2", 2), ("upwind3", 3)])
@pytest.mark.parametrize("velocity", [1.0, -1.0])
def test_upwind_of_higher_order(scheme, wanted, velocity):
    """What the step adds divided by dt, against D u_xx - v u_x."""
    errors = []
    for n in (40, 80):
        grid = fd.Grid(n, periodic=True)
        (x,) = grid.coordinates()
        k = 2 * np.pi
        equation = fd.AdvectionDiffusion(1e-4 / n**2, velocity, scheme=scheme)
        u = np.sin(k * x)
        dt = 1e-4 * equation.stable_dt(grid)
        rate = (fd.Stepper(equation, grid, dt=dt)(u) - u) / dt
        errors.append(np.abs(rate + velocity * k * np.cos(k * x)).max())
    assert order(errors)[-1] == pytest.approx(wanted, abs=0.3), errors


@pytest.mark.parametrize("scheme", ["upwind2", "upwind3"])
def test_upwind_of_higher_order_in_a_variable_flow(scheme, rng):
    """Second order for a manufactured solution between Dirichlet walls; conserving on a periodic grid; stable."""
    errors = [manufactured(scheme, "nodes", n, "dirichlet") for n in (10, 20, 40)]
    assert order(errors)[-1] > 1.6, errors
    grid, u0 = fd.Grid((20, 18), periodic=True), rng.random((20, 18))
    equation = fd.AdvectionDiffusion(0.02, (rng.standard_normal((20, 18)), "cos(2*pi*x)"), scheme=scheme)
    got = run(equation, u0, grid, 0.3, share=1.0)
    assert got.sum() == pytest.approx(u0.sum(), rel=1e-12) and np.abs(got).max() < 10


def turned(angle, large, small):
    c, s = np.cos(angle), np.sin(angle)
    return ((large * c * c + small * s * s, (large - small) * c * s),
            ((large - small) * c * s, large * s * s + small * c * c))


def test_a_turned_gaussian():
    """An anisotropic Gaussian in the plane: covariance S + 2 D t."""
    D, t, errors = np.array(turned(0.5, 1.0, 0.1)), 0.01, []
    for n in (32, 64):
        grid = fd.Grid((n, n), extent=[(-1.0, 1.0)] * 2, periodic=True)
        x, y = grid.coordinates()

        def exact(t, x=x, y=y):
            C = np.linalg.inv(0.03 * np.eye(2) + 2 * D * t)
            return np.sqrt(np.linalg.det(C)) * np.exp(-(C[0, 0] * x * x + 2 * C[0, 1] * x * y + C[1, 1] * y * y) / 2)

        got = run(fd.Heat(D.tolist()), exact(0.0), grid, t, share=0.3)
        errors.append(np.abs(got - exact(t)).max())
    assert order(errors)[-1] == pytest.approx(2, abs=0.25), errors


@pytest.mark.parametrize("walls", ["closed", "dirichlet", "neumann"])
@pytest.mark.parametrize("centering", CENTERINGS)
def test_matrices_in_a_box_against_a_manufactured_solution(centering, walls):
    """D varies in space and has mixed entries everywhere; `closed`: no flux through any wall, so u is conserved."""
    import sympy

    t, x, y = sympy.symbols("t x y", real=True)
    D = sympy.Matrix([[1 + x / 2, sympy.Rational(1, 3) + y / 4], [sympy.Rational(1, 3) + y / 4, 1 - y / 4]])
    if walls == "closed":  # all first derivatives vanish on the walls
        u = sympy.exp(-t) * (2 + (x * (1 - x) * y * (1 - y)) ** 2 * 40 * (1 + x))
    else:
        u = sympy.exp(-t) * (2 + sympy.sin(2 * x + y))
    flux = D * sympy.Matrix([u.diff(x), u.diff(y)])
    f = u.diff(t) - flux[0].diff(x) - flux[1].diff(y)

    def wall(z, at, sign):
        row = 0 if z == x else 1
        normal = sign * flux[row].subs(z, at) / D[row, row].subs(z, at)
        kinds = {"closed": lambda: None, "dirichlet": lambda: fd.Dirichlet(str(u.subs(z, at))),
                 "neumann": lambda: fd.Neumann(str(normal))}
        return kinds[walls]()

    boundary, errors = {n: (wall(z, 0, -1), wall(z, 1, 1)) for n, z in (("x", x), ("y", y))}, []
    exact = sympy.lambdify((t, x, y), u)
    for n in (10, 20, 40):
        grid = fd.Grid((n, n + 2), centering=centering)
        places = grid.coordinates()
        equation = fd.Heat([[str(entry) for entry in D.row(k)] for k in range(2)], source=str(f))
        got = run(equation, np.broadcast_to(exact(0.0, *places), grid.shape).copy(), grid, 0.05, boundary, share=0.4)
        errors.append(np.sqrt(np.square(got - exact(0.05, *places)).mean()))  # at corners the order is 3/2
    assert order(errors)[-1] == pytest.approx(2, abs=0.25), errors


@pytest.mark.parametrize("centering", CENTERINGS)
def test_matrices_conserve_between_closed_walls(centering, rng):
    grid = fd.Grid((9, 12), centering=centering)
    u0 = rng.random((9, 12))
    got = run(fd.Heat([["1+x", "y/3"], ["y/3", 1.0]]), u0, grid, 0.1, share=0.9)
    weights = np.prod(np.broadcast_arrays(*grid.weights()), axis=0)
    assert np.sum(weights * got) == pytest.approx(np.sum(weights * u0), rel=1e-12)
    assert np.abs(got - got.mean()).max() < np.abs(u0 - u0.mean()).max()


def test_a_matrix_in_three_dimensions(rng):
    """A diagonal matrix is the tuple; a turned one decays its modes as exp(-k.D k t)."""
    grid, u0 = fd.Grid((8, 9, 10), periodic=True), rng.random((8, 9, 10))
    a = run(fd.Heat([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]), u0, grid, 1e-3)
    b = fd.solve(fd.Heat((1.0, 2.0, 3.0)), u0, grid, 1e-3, method="euler",
                 dt=0.2 * fd.Heat([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]).stable_dt(grid)).final
    assert np.abs(a - b).max() < 1e-12
    Q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    D, errors = Q @ np.diag([1.0, 0.5, 0.2]) @ Q.T, []
    D = (D + D.T) / 2
    for n in (12, 24):
        grid = fd.Grid((n,) * 3, periodic=True)
        x, y, z = grid.coordinates()
        k = 2 * np.pi * np.array([1, -1, 1])
        mode = np.cos(k[0] * x + k[1] * y + k[2] * z)
        errors.append(np.abs(run(fd.Heat(D.tolist()), mode, grid, 2e-3) - mode * np.exp(-k @ D @ k * 2e-3)).max())
    assert order(errors)[-1] == pytest.approx(2, abs=0.3), errors


def test_bad_wide_operators():
    square, line = fd.Grid((8, 8)), fd.Grid(8)
    for make, message in [
        (lambda: fd.Heat(1.0, order=3), "order is 2, 4 or 6, not 3"),
        (lambda: fd.Heat("1+x", order=4).euler(line, 1e-3, 1, "f8"), "order 4 needs a constant diffusivity"),
        (lambda: fd.Heat([[1.0, 2.0], [2.0, 1.0]]).stable_dt(square), "positive definite.*eigenvalue.* is -1"),
        (lambda: fd.Heat([["1", "0.9+x"], ["0.9+x", "1"]]).stable_dt(square), r"positive definite.* at \(1, 0\)"),
        (lambda: fd.Heat([[1.0, 0.2], [0.1, 1.0]]).stable_dt(square), "must be symmetric"),
        (lambda: fd.Heat([[1.0, 0.2], [0.2]]), "square"),
        (lambda: fd.Heat(np.eye(3)).stable_dt(square), "3 rows does not fit a grid of 2 axes"),
        (lambda: fd.AdvectionDiffusion(1.0, 1.0, "upwind3").stable_dt(fd.Grid.graded([0, 1, 3.0])), "equal spacing"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
