"""Time integrators: observed orders in time, every boundary kind, the stability of RKL2, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.kernels import rkl2
from fastdiff.steppers import METHODS
from fastdiff.steppers.auto import has_lines
from fastdiff.steppers.spectral import propagate

WALLS: dict[str, Any] = {
    "periodic": None,
    "dirichlet": {"x": (fd.Dirichlet(1.0), fd.Dirichlet(0.5))},
    "neumann": {"x": (fd.Neumann(0.3), fd.Neumann(-0.2))},
    "mixed": {"x": (fd.Dirichlet(1.0), fd.Neumann(0.3))},
}


def smooth(grid):
    """A field that fits all the walls above well enough to be smooth in time."""
    u = np.ones(grid.shape)
    for x in grid.coordinates():
        u = u + 0.3 * np.cos(2 * np.pi * x)
    return u


def errors_of(method, equation, grid, boundary, u0, want, t_end, counts):
    """Largest error at t_end for each number of steps."""
    errors = []
    for n in counts:
        walk = fd.repeat(fd.Stepper(equation, grid, dt=t_end / n, boundary=boundary, method=method), n)
        errors.append(np.abs(walk(u0) - want).max())
    return errors


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize(("method", "order", "counts"), [("rk4", 4, (1, 2)), ("rk23", 3, (1, 2)), ("rkl2", 2, (16, 32)),
                                                       ("crank_nicolson", 2, (32, 64))])
def test_orders_in_time_against_the_stencil_solved_exactly(method, order, counts, walls, centering):
    grid, equation, t = fd.Grid((18, 16), centering=centering, periodic=walls == "periodic"), fd.Heat((0.7, 0.4)), 0.02
    u0 = smooth(grid)
    if centering == "nodes" and walls in ("dirichlet", "mixed"):
        u0[0] = 1.0
        if walls == "dirichlet":
            u0[-1] = 0.5
    want = propagate(u0[None, None], grid, WALLS[walls], (0.7, 0.4), t, "discrete")[0, 0]
    if METHODS[method].reach < math.inf:
        least = math.ceil(t / (0.6 * METHODS[method].reach * equation.stable_dt(grid)))
        counts = [c * least for c in counts]
    errors = errors_of(method, equation, grid, WALLS[walls], u0, want, t, counts)
    assert errors[1] < 1e-3
    assert math.log2(errors[0] / errors[1]) > order - 0.35


@pytest.mark.parametrize("method", ["crank_nicolson", "strang", "rkl2"])
def test_a_source_that_changes_in_time_keeps_the_order(method):
    """Against SciPy, on a stencil of its own."""
    from scipy.integrate import solve_ivp

    grid, t_end = fd.Grid(17), 0.1
    x, dx = grid.points(0), grid.spacing[0]

    def slope(t, u):
        beyond = np.concatenate([[u[1]], u, [u[-2]]])
        return (beyond[2:] - 2 * u + beyond[:-2]) / dx**2 + np.sin(9 * t) * np.cos(3 * x)

    u0 = 2 + np.cos(2 * x)
    want = solve_ivp(slope, (0, t_end), u0, "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    equation = fd.Heat(1.0, source="sin(9*t)*cos(3*x)")
    errors = [np.abs(fd.solve(equation, u0, grid, t_end, method=method, dt=t_end / n).final - want).max()
              for n in (32, 64)]
    assert errors[1] < 1e-4 and math.log2(errors[0] / errors[1]) > 1.8


def test_lines_must_be_the_same_at_all_times():
    grid = fd.Grid(17)
    u0, growing = np.cos(grid.points(0)), fd.ReactionDiffusion(1.0, {"u": "-5*sin(29*t)*u"})
    with pytest.raises(ValueError, match="does not apply: a coefficient changes in time; use"):
        fd.solve(growing, u0, grid, 0.1, method="crank_nicolson", dt=0.01)
    fed = fd.ReactionDiffusion(1.0, {"u": "exp(t**3) - u"})  # what overflows later does not matter
    assert fd.solve(fed, u0, grid, 0.1, method="crank_nicolson", dt=0.01).stats["steps"] == 10


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("method", ["rk4", "rkl2", "crank_nicolson"])
def test_walls_that_move_in_time(method, centering):
    """Held, flux and Robin values that change, against very small steps of rk4."""
    grid, equation, t = fd.Grid((14, 12), centering=centering), fd.Heat(1.0), 0.05
    boundary = {"x": (fd.Dirichlet("1 + sin(20*t)*y"), fd.Neumann("cos(9*t)")), "y": (fd.Robin(1.0, 0.5, "t"), None)}
    u0 = np.ones(grid.shape)
    small = fd.solve(equation, u0, grid, t, boundary=boundary, method="rk4", dt=2e-5).final
    least = math.ceil(t / (0.5 * equation.stable_dt(grid)))
    counts = (least, 2 * least)
    errors = errors_of(method, equation, grid, boundary, u0, small, t, counts)
    assert errors[1] < 1e-3 and math.log2(errors[0] / errors[1]) > 1.7


@pytest.mark.parametrize("stages", [3, 5, 7, 9, 15, 21])
def test_rkl2_is_stable_at_its_bound_and_not_beyond(stages):
    """The fastest mode of a periodic line, for which 2 / (spectral radius) is dx^2 / (2 D) exactly."""
    grid = fd.Grid(16, periodic=True)
    u0 = (-1.0) ** np.arange(16)
    limit = fd.Heat().stable_dt(grid)

    def growth(share):
        from fastdiff.kernels import heat
        from fastdiff.kernels._edges import make_edges
        from fastdiff.kernels._run import march
        from fastdiff.kernels._stages import spread, staged

        rate = np.array([[rkl2.reach(stages) * limit * share / grid.spacing[0] ** 2]])
        scheme = rkl2.scheme(stages)
        edges = make_edges((16,), [True], np.float64, components=4)
        out = march(staged(scheme, heat.rule(rate, np.float64), np.float64), spread(u0[None, None], 4), edges, stages)
        return np.abs(out[0, 0]).max()

    b = (stages**2 + stages - 2) / (2 * stages * (stages + 1))
    assert growth(1.0) == pytest.approx(abs(1 - 2 * b), abs=1e-10)
    if stages >= 7:
        assert growth(1.05) > 1.5
    with pytest.raises(ValueError, match="odd number of stages"):
        rkl2.scheme(4)


@pytest.fixture(scope="module")
def spots():
    """Gray-Scott on a small periodic square from a smooth start, and its solution by very small steps."""
    grid, equation = fd.Grid((16, 16), extent=0.4, periodic=True), fd.GrayScott()
    x, y = grid.coordinates()
    bump = np.exp(3 * (np.cos(2 * np.pi * x / 0.4) + np.cos(2 * np.pi * y / 0.4) - 2))
    u0 = np.stack([1 - 0.5 * bump, 0.25 * bump])
    return grid, equation, u0, fd.solve(equation, u0, grid, 20.0, method="rk4", dt=0.05).final


@pytest.mark.parametrize("method", ["rkl2", "strang"])
def test_reactions_of_second_order(spots, method):
    grid, equation, u0, want = spots
    errors = errors_of(method, equation, grid, None, u0, want, 20.0, (10, 20))
    assert errors[1] < 1e-3 and math.log2(errors[0] / errors[1]) > 1.8


def test_etdrk4_is_of_fourth_order(spots):
    grid, equation, u0, _ = spots
    want = fd.repeat(fd.Stepper(equation, grid, dt=0.125, method="etdrk4"), 160)(u0)
    errors = errors_of("etdrk4", equation, grid, None, u0, want, 20.0, (10, 20))
    assert errors[1] < 1e-6 and math.log2(errors[0] / errors[1]) > 3.6


@pytest.mark.parametrize("method", ["rk23", "rkl2", "strang", "etdrk4"])
def test_rtol_is_kept(spots, method):
    grid, equation, u0, want = spots
    sol = fd.solve(equation, u0, grid, save_at=[5.0, 20.0], method=method, rtol=1e-4)
    error = np.linalg.norm(sol.final - want) / np.linalg.norm(want)
    assert sol.stats["error_estimate"] <= 1e-4 and error < (1e-2 if method == "etdrk4" else 2e-4)  # no stencil there


@pytest.mark.parametrize("method", ["rk23", "rkl2", "strang"])
def test_a_few_large_steps_do_not_agree_on_the_wrong_end(method):
    """A reaction left alone for long ends without a pattern, however the time is cut into a few steps."""
    n = 32
    grid, equation = fd.Grid((n, n), extent=float(n), periodic=True), fd.GrayScott(0.04, 0.06, 0.16, 0.08)
    v = np.zeros((n, n))
    v[10:22, 10:22] = 0.5
    u0 = np.stack([1 - v, 0.5 * v])
    want = fd.solve(equation, u0, grid, 500.0, method="rk4").final
    assert want[1].max() > 0.1
    sol = fd.solve(equation, u0, grid, 500.0, method=method, rtol=1e-2)
    assert np.linalg.norm(sol.final - want) < 2e-2 * np.linalg.norm(want)
    assert sol.stats["error_estimate"] <= 1e-2 and sol.stats["evaluations"] > sol.stats["steps"]


def test_auto_chooses_and_says_why():
    grid = fd.Grid((33, 33))
    x, y = grid.coordinates()
    u0 = np.sin(np.pi * x) * np.sin(np.pi * y)
    equation = fd.Heat("1 + 0.5*sin(6*x)")
    sol = fd.solve(equation, u0, grid, 0.1, boundary=fd.Dirichlet(0.0), rtol=1e-4)
    want = fd.solve(equation, u0, grid, 0.1, boundary=fd.Dirichlet(0.0), method="rk4", dt=5e-5)
    assert np.linalg.norm(sol.final - want.final) < 3e-4 * np.linalg.norm(want.final)
    assert sol.stats["method"] in ("crank_nicolson", "rkl2") and "least work" in sol.stats["why"]


def test_auto_knows_linear_equations():
    """Crank-Nicolson needs no diffusion alone, but a linear equation that couples no components."""
    grid = fd.Grid((64, 64))
    decays = fd.ReactionDiffusion({"u": 0.1, "v": 0.2}, {"u": "-2*u + 1", "v": "x*v"})
    meets = fd.ReactionDiffusion({"u": 0.1, "v": 0.2}, {"u": "-2*v", "v": "u"})
    moves = fd.AdvectionDiffusion(velocity=(1.0, 0.5), diffusivity=0.1)
    far = fd.AdvectionDiffusion(velocity=(1.0, 0.5), diffusivity=0.1, scheme="upwind3")
    linear, others = (decays, moves, fd.Heat("1 + x")), (meets, far, fd.Heat("1 + u"), fd.FisherKPP())
    assert all(has_lines(e, grid) for e in linear) and not any(has_lines(e, grid) for e in others)
    x, _ = grid.coordinates()
    u0 = np.exp(-20 * (x - 0.3) ** 2) + np.zeros(grid.shape)
    sol = fd.solve(moves, u0, grid, 0.5, rtol=1e-3)
    want = fd.solve(moves, u0, grid, 0.5, method="rk4").final
    assert sol.stats["method"] == "crank_nicolson"
    assert np.linalg.norm(sol.final - want) < 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("centering", ["nodes", "cells"])
def test_lines_of_weights_are_those_that_trying_finds(centering, monkeypatch):
    """D(x) tells its lines; the slow way, by fields on stripes, must find the same, walls of every kind included."""
    from fastdiff.boundary import lower
    from fastdiff.steppers import _lines

    grid = fd.Grid((7, 6), centering=centering)
    equation = fd.Heat("1 + x + 0.5*y")
    boundary = {"x": (fd.Dirichlet(1.0), fd.Neumann(0.5)), "y": (fd.Robin(1.0, 0.5, 2.0), None)}
    faces = lower(boundary, grid, ("u",), 1, np.float64, None, equation.diffusivities(grid), equation.at_wall(grid, 1))
    equation = equation.for_walls(faces)
    known = _lines.lines_of(equation, grid, faces, 1)
    monkeypatch.setattr(type(equation), "line_weights", lambda *a: None)
    tried = _lines.lines_of(equation, grid, faces, 1)
    u = np.random.default_rng(0).random((1, 1, *grid.shape))
    one, other = (sum(_lines.apply(line, u, axis) for axis, line in enumerate(lines)) for lines in (known, tried))
    free = (slice(None), slice(None), slice(1, None))  # held cells are not asked for their rows
    assert np.abs(one - other)[free].max() < 1e-11 * np.abs(other).max()


def test_extrapolation_needs_few_steps():
    """What is extrapolated from Crank-Nicolson is of fourth order: rtol = 1e-7 in far fewer steps than second asks."""
    grid = fd.Grid((33, 33))
    x, y = grid.coordinates()
    u0 = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
    how: dict[str, Any] = dict(boundary=fd.Dirichlet(0.0), save_at=[0.01, 0.02])
    sol = fd.solve(fd.Heat("1 + 0.5*sin(6*x)"), u0, grid, method="crank_nicolson", rtol=1e-7, **how)
    want = fd.solve(fd.Heat("1 + 0.5*sin(6*x)"), u0, grid, method="rk4", dt=2e-5, **how)
    error = np.linalg.norm(sol.u - want.u) / np.linalg.norm(want.u)
    assert sol.stats["error_estimate"] <= 1e-7 and error < 1e-7 and sol.stats["steps"] < 250


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("walls", ["periodic", "DD", "NN", "DN", "ND"])
def test_few_modes_are_the_full_transform(walls, centering):
    """Late enough only few modes are alive; the small matrices must agree with the transforms to rounding."""
    from fastdiff.steppers import spectral

    grid = fd.Grid((96, 80), extent=(1.0, 2.0), centering=centering, periodic=walls == "periodic")
    kinds = {"D": fd.Dirichlet(0.0), "N": fd.Neumann(0.0)}
    boundary = None if walls == "periodic" else dict.fromkeys("xy", (kinds[walls[0]], kinds[walls[1]]))
    u = np.random.default_rng(0).random((3, 1, *grid.shape))
    modes = spectral.Propagator(u, grid, boundary, 1.0)
    out = np.empty_like(u)
    part = modes._parts[0]
    assert part._from_few(0.2, "exact", out[:, 0])
    slow = part._backward(part.modes * part._decay(0.2, "exact", 0, 0.0))
    assert np.abs(out[:, 0][part.free] - slow).max() < 1e-13 * np.abs(slow).max()
    assert not part._from_few(1e-4, "exact", out[:, 0])


def test_methods_say_where_they_do_not_apply():
    grid, u0 = fd.Grid((12, 12)), np.ones((12, 12))
    with pytest.raises(ValueError, match='"crank_nicolson" does not apply: .*use method="rkl2"'):
        fd.solve(fd.GrayScott(), np.ones((2, 12, 12)), grid, 1.0, method="crank_nicolson")
    with pytest.raises(ValueError, match='"etdrk4" does not apply: the Robin condition'):
        fd.solve(fd.Heat(), u0, grid, 1.0, method="etdrk4", boundary=fd.Robin(1.0, 1.0))
    with pytest.raises(ValueError, match="a boundary value depends on u"):
        fd.solve(fd.Heat(), u0, grid, 1.0, method="crank_nicolson", boundary=fd.Neumann("-u"))
    with pytest.raises(ValueError, match="unstable for rk4 on this grid; the largest stable step"):
        fd.solve(fd.Heat(), u0, grid, 1.0, method="rk4", dt=0.1)


@pytest.mark.parametrize("method", ["auto", "rk23", "rkl2"])
def test_what_is_switched_on_and_off_is_followed(method):
    """A heater: the mean rises by its power times its time, wherever steps begin and end."""
    grid = fd.Grid(32, centering="cells")
    u0 = np.sin(np.pi * grid.points(0))
    for source, rise in (("step(t - 0.05)", 0.05), ("3*step(t - 0.0333)*step(0.0777 - t)", 3 * 0.0444)):
        found = fd.solve(fd.Heat(0.1, source=source), u0, grid, 0.1, method=method)
        assert abs(found.final.mean() - u0.mean() - rise) < 1e-4 * found.final.mean(), source


@pytest.mark.parametrize("method", ["rk23", "rkl2"])
def test_a_wall_that_jumps_is_followed(method):
    grid, u0 = fd.Grid(33), np.zeros(33)
    late = fd.solve(fd.Heat(0.1), u0, grid, 0.1, method=method, boundary={"x": (fd.Dirichlet("step(t - 0.05)"), None)})
    soon = fd.solve(fd.Heat(0.1), u0, grid, 0.05, method=method, boundary={"x": (fd.Dirichlet(1.0), None)})
    assert np.linalg.norm(late.final - soon.final) < 2e-4 * np.linalg.norm(soon.final)


@pytest.mark.parametrize(("reaction", "words"), [("u**3", "grows without bound"), ("exp(u)", "grows without bound"),
                                                 ("-1/u", "changes faster and faster")])
def test_fields_that_become_singular_say_where(reaction, words):
    u0 = np.full((2, 16), 0.5 if reaction != "-1/u" else 9.0)
    u0[1, 11] = 3.0
    with pytest.raises(fd.Diverged, match=rf"u {words}.* at \(11,\) of sample 1|u became .* at \(11,\) of sample 1"):
        fd.solve(fd.ReactionDiffusion(0.0, {"u": reaction}), u0, fd.Grid(16), 5.0, method="rk23")


def test_a_formula_that_holds_the_field_at_its_jump_says_what_to_do():
    """Below 1/2 it drives up, above it drives down: there is no smooth solution to follow."""
    switch = fd.ReactionDiffusion(0.0, {"u": "where(u < 0.5, 1, -1)"})
    with pytest.raises(ValueError, match="rk23 does not meet rtol.*try a larger rtol, or fixed steps by dt"):
        fd.solve(switch, np.full(8, 0.4), fd.Grid(8), 1.0, method="rk23")
