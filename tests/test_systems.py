"""Systems whose components diffuse unevenly, flow, or live on curved grids; diffusivities of u and place; functions."""

import numpy as np
import pytest
import sympy
from scipy.integrate import solve_ivp

import fastdiff as fd

CENTERINGS = ["nodes", "cells"]


def observed(errors):
    return np.log2(np.array(errors[:-1]) / errors[1:])


def text(expression, name="x"):
    return str(expression).replace("exp", "EXP").replace("x", name).replace("EXP", "exp")


# -- D(u, x) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("geometry", "centering"), [("cartesian", "nodes"), ("cartesian", "cells"), ("polar", "nodes"),
                                                     ("spherical", "cells")])
def test_a_diffusivity_of_u_and_place_against_a_manufactured_solution(geometry, centering):
    x, t = sympy.symbols("x t")
    u, m = sympy.exp(-t) * (2 + sympy.cos(2 * x + 0.3)), {"cartesian": 0, "polar": 1, "spherical": 2}[geometry]
    D, name = (1 + u**2) * (1 + sympy.sin(x) / 2), "x" if geometry == "cartesian" else "r"
    source = sympy.diff(u, t) - sympy.diff(x**m * D * sympy.diff(u, x), x) / x**m
    equation = fd.Heat(f"(1 + u**2)*(1 + sin({name})/2)", source=text(source, name), bounds=(0, 3.2))
    walls = {name: (fd.Neumann(text(-sympy.diff(u, x), name)), fd.Dirichlet(text(u, name)))}
    errors = []
    for n in (12, 24, 48):
        grid = fd.Grid(n + (centering == "nodes"), extent=((0.5, 1.5),), centering=centering, geometry=geometry)
        exact = [np.exp(-s) * (2 + np.cos(2 * grid.points(0) + 0.3)) for s in (0.0, 0.05)]
        sol = fd.solve(equation, exact[0], grid, 0.05, boundary=walls, method="rk4")
        errors.append(np.abs(sol.final - exact[1]).max())
    assert errors[-1] < 1e-3 and (np.abs(observed(errors) - 2) < 0.15).all(), errors


def test_a_diffusivity_of_u_and_place_on_a_plate(rng):
    """Fluxes written out by hand, a capacity of u and place, parameters of each sample; what leaves a cell enters."""
    grid, u0 = fd.Grid((9, 7), extent=(1.0, 0.8), centering="cells"), rng.random((2, 9, 7))
    equation = fd.Heat("a*u**2*(1 + x) + y", parameters={"a": np.array([1.0, 2.0])})
    u, dt, a = u0.copy(), 1e-4, np.array([1.0, 2.0])[:, None, None]
    (x, y), (fx, fy) = grid.coordinates(), (grid.faces(0)[1:-1, None], grid.faces(1)[None, 1:-1])
    for _ in range(10):
        D = lambda v, x, y: a * v**2 * (1 + x) + y
        east = (D(u[:, :-1], fx, y) + D(u[:, 1:], fx, y)) / 2 * np.diff(u, axis=1) / grid.spacing[0]
        north = (D(u[..., :-1], x, fy) + D(u[..., 1:], x, fy)) / 2 * np.diff(u, axis=2) / grid.spacing[1]
        u = u + dt * (np.diff(np.pad(east, ((0, 0), (1, 1), (0, 0))), axis=1) / grid.spacing[0]
                      + np.diff(np.pad(north, ((0, 0), (0, 0), (1, 1))), axis=2) / grid.spacing[1])
    got = fd.solve(equation, u0, grid, 10 * dt, dt=dt, method="euler").final
    np.testing.assert_allclose(got, u, rtol=0, atol=1e-14)
    assert np.abs(got.sum((1, 2)) - u0.sum((1, 2))).max() < 1e-12
    stored = fd.Heat("a*u**2*(1 + x) + y", parameters={"a": 2.0}, capacity="1 + x + u")
    one = fd.solve(stored, u0[1], grid, dt, dt=dt, method="euler").final - u0[1]
    plain = fd.solve(equation, u0, grid, dt, dt=dt, method="euler").final[1] - u0[1]
    np.testing.assert_allclose(one * (1 + x + u0[1]), plain, rtol=1e-9, atol=1e-15)


def test_the_porous_medium_in_polar_coordinates():
    """Barenblatt's front of two dimensions on one radial axis."""
    medium, errors = fd.PorousMedium(2.0), []
    for n in (40, 80):
        grid = fd.Grid(n, extent=6.0, geometry="polar", centering="cells")
        r = grid.points(0)
        exact = [medium.exact((r, 0 * r), t) for t in (1.0, 1.5)]
        sol = fd.solve(medium, exact[0], grid, 0.5, method="euler")
        errors.append(np.abs(sol.final - exact[1]).mean())
        assert abs((sol.final - exact[0]) @ grid.volumes(0)) < 1e-12
    assert errors[1] < 2e-3 and errors[0] / errors[1] > 1.7, errors


# -- systems ----------------------------------------------------------------------------------------------------------


def test_without_a_reaction_each_component_is_its_own_equation(rng):
    """An array for each sample, a formula, a flow, and a law of the component itself."""
    grid, u0 = fd.Grid((12, 15), extent=(1.0, 2.0)), rng.random((2, 4, 12, 15))
    field, flow, k = rng.uniform(0.5, 1.0, (2, 12, 15)), (1.0, "x - y"), {"k": np.array([1.0, 2.0])}
    four = fd.ReactionDiffusion({"a": field, "b": "1 + 0.5*sin(x*y)", "c": 0.3, "d": "k*d**2*(1 + x) + y"},
                                dict.fromkeys("abcd", "0"), k, velocity={"c": flow}, scheme="central")
    walls = {"a": {"x": (fd.Dirichlet(1.0), None)}, "b": {"y": (fd.Flux(0.5), fd.Robin(1, 2, 3))}, "c": None, "d": None}
    got = fd.solve(four, u0, grid, 0.02, boundary=walls, method="euler", dt=4e-4).final
    alone = [fd.Heat(field), fd.Heat("1 + 0.5*sin(x*y)"), fd.AdvectionDiffusion(0.3, flow, scheme="central"),
             fd.Heat("k*u**2*(1 + x) + y", parameters=k)]
    for c, (equation, name) in enumerate(zip(alone, "abcd")):
        one = fd.solve(equation, u0[:, c], grid, 0.02, boundary=walls[name], method="euler", dt=4e-4).final
        np.testing.assert_allclose(got[:, c], one, rtol=0, atol=1e-14)


@pytest.mark.parametrize("centering", CENTERINGS)
def test_a_reaction_in_a_cylinder(centering):
    """u and v on r and z, with diffusivities of place and a reaction that names r and z."""
    r, z, t = sympy.symbols("r z t")
    u, v = sympy.exp(-t) * (2 + sympy.cos(r) * sympy.sin(z)), 1 + t * r**2 / 4 + z / 3
    D = {"u": 1 + r / 4, "v": sympy.Integer(1) + z / 5}

    def needed(f, D, reaction):
        spread = sympy.diff(r * D * sympy.diff(f, r), r) / r + sympy.diff(D * sympy.diff(f, z), z)
        return sympy.expand(sympy.diff(f, t) - spread - reaction)

    terms = {"u": f"u*v + {needed(u, D['u'], u * v)}", "v": f"-u*v + {needed(v, D['v'], -u * v)}"}
    equation = fd.ReactionDiffusion({n: str(d) for n, d in D.items()}, terms, bounds=(0, 3))
    walls = {n: {"r": tuple(fd.Neumann(str(s * sympy.diff(f, r))) for s in (-1, 1)), "z": fd.Dirichlet(str(f))}
             for n, f in (("u", u), ("v", v))}
    values, errors = sympy.lambdify((r, z, t), [u, v]), []
    for n in (8, 16):
        grid = fd.Grid((n + (centering == "nodes"),) * 2, extent=((0.5, 1.5), (0.0, 1.0)), geometry="cylindrical",
                       centering=centering)
        exact = [np.stack(np.broadcast_arrays(*values(*grid.coordinates(), s))) for s in (0.0, 0.1)]
        sol = fd.solve(equation, exact[0], grid, 0.1, boundary=walls, method="rk4")
        errors.append(np.abs(sol.final - exact[1]).max())
    assert errors[-1] < 2e-3 and abs(observed(errors)[0] - 2) < 0.3, errors


def test_a_named_equation_on_a_disc_and_on_a_graded_line():
    """Fisher-KPP against solve_ivp on the same cells."""
    line = np.linspace(0, 1, 21) ** 1.5
    for grid in (fd.Grid(20, extent=2.0, geometry="polar", centering="cells"),
                 fd.Grid.graded(line, centering="cells")):
        power = 1 if grid.geometry == "polar" else 0
        x, faces, volume = grid.points(0), grid.faces(0), grid.volumes(0)
        start = np.exp(-8 * x**2)

        def slope(t, u, x=x, faces=faces, volume=volume, power=power):
            flux = faces[1:-1] ** power * np.diff(u) / np.diff(x)
            return 0.1 * np.diff(np.pad(flux, 1)) / volume + 2 * u * (1 - u)

        exact = solve_ivp(slope, (0, 1.0), start, rtol=1e-10, atol=1e-10, method="DOP853").y[:, -1]
        sol = fd.solve(fd.FisherKPP(D=0.1, r=2.0), start, grid, 1.0, method="rkl2", rtol=1e-7)
        assert np.abs(sol.final - exact).max() < 1e-6


def test_splitting_takes_systems_apart():
    """Against solve_ivp; D of place for u, none for v, and a flow for w."""
    n, dx = 24, 1 / 24
    grid, x = fd.Grid(24, periodic=True), np.arange(24) / 24
    D = 0.02 * (1 + 0.5 * np.sin(2 * np.pi * x))
    equation = fd.ReactionDiffusion({"u": "0.02*(1 + 0.5*sin(2*pi*x))", "v": 0.0, "w": 0.01},
                                    {"u": "u*(1 - u) - v", "v": "u - v + w", "w": "-w*u"}, velocity={"w": 0.5})
    u0 = np.stack([0.5 + 0.4 * np.cos(2 * np.pi * x), 0.2 + 0 * x, np.exp(-50 * (x - 0.5) ** 2)])

    def slope(t, state):
        u, v, w = state.reshape(3, n)
        mean = 2 * D * np.roll(D, -1) / (D + np.roll(D, -1))
        flux = mean * (np.roll(u, -1) - u) / dx
        flow = 0.01 * (np.roll(w, -1) - w) / dx - 0.5 * w
        return np.concatenate([(flux - np.roll(flux, 1)) / dx + u * (1 - u) - v, u - v + w,
                               (flow - np.roll(flow, 1)) / dx - w * u])

    exact = solve_ivp(slope, (0, 0.5), u0.ravel(), rtol=1e-10, atol=1e-10, method="DOP853").y[:, -1].reshape(3, n)
    sol = fd.solve(equation, u0, grid, 0.5, method="strang", rtol=1e-5)
    assert np.abs(sol.final - exact).max() < 1e-4


@pytest.mark.parametrize(("make", "says"), [
    (lambda: fd.ReactionDiffusion({"u": "v", "v": 1.0}, {"u": "0", "v": "0"}), "depends on v: it may depend on u"),
    (lambda: fd.ReactionDiffusion(1.0, {"u": "0"}, velocity={"w": 1.0}), "unknown component 'w' in velocity"),
    (lambda: fd.ReactionDiffusion({"u": "u"}, {"u": "0"}, velocity=1.0), "needs velocity=None"),
    (lambda: fd.ReactionDiffusion(1.0, {"u": "r*u"}).euler(fd.Grid(5), 0.1, 1, "f8"), "depends on r, but the axes"),
    (lambda: fd.ReactionDiffusion(1.0, {"u": "x*u"}).euler(fd.Grid(5, geometry="polar"), 0.1, 1, "f8"),
     "depends on x, but the axes of this grid are r"),
    (lambda: fd.Heat("u*t"), "depends on u and on t"),
    (lambda: fd.Heat("u*y").stable_dt(fd.Grid(5, geometry="polar")), "depends on y"),
    (lambda: fd.Heat("u*(x - 0.5)").stable_dt(fd.Grid(5)), "falls to -0.0"),
    (lambda: fd.ReactionDiffusion("1 + q", {"u": "0"}).stable_dt(fd.Grid(5)), "unknown name 'q'"),
    (lambda: fd.solve(fd.ReactionDiffusion("1 + x", {"u": "-u"}), np.ones(9), fd.Grid(9), 0.1, method="etdrk4"),
     "does not apply"),
    (lambda: fd.solve(fd.AdvectionDiffusion(1.0, 2.0), np.ones(8), fd.Grid(8, periodic=True), 0.1, method="etdrk4"),
     "does not apply"),
])
def test_bad_systems(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# -- functions in formulas --------------------------------------------------------------------------------------------

FUNCTIONS = {"erf": "erf(2*u - 1)", "sigmoid": "sigmoid(8*u - 4)", "cbrt": "cbrt(u - 0.5)", "sqrt": "sqrt(u + 0.1)",
             "where": "where(u < 0.5, u**2, 1 - u)", "step": "sign(u - 0.3) + Heaviside(u - 0.6) + abs(u - 0.4)",
             "min": "min(u, 0.5, x) + max(u, 0.2)"}


def test_functions_in_reactions(rng):
    """All at once, as components: one compilation. The compiled rule, the host's values, and the derivatives."""
    names = tuple("abcdefg")
    texts = {n: t.replace("u", n).replace(f"m{n}", "mu") for n, t in zip(names, FUNCTIONS.values())}
    equation, grid = fd.ReactionDiffusion(0.0, texts), fd.Grid(40, centering="cells")
    u = rng.random((7, 40)).astype(np.float32)
    rates = equation.rates(u, grid)
    change = fd.Stepper(equation, grid, dt=0.5)(u) - u.astype(np.float64)
    np.testing.assert_allclose(change / 0.5, rates, rtol=0, atol=8 * np.finfo(np.float32).eps)
    J, h = equation.jacobian(u, grid), 1e-6
    for k, name in enumerate(names):
        moved = u.astype(np.float64)
        moved[k] += h
        slope = (equation.rates(moved, grid)[k] - rates[k]) / h
        good = np.abs(slope - J[k, k]) < 1e-3 * (1 + np.abs(J[k, k]))
        assert good.mean() > 0.9, name  # but where a step lies between u and u + h
