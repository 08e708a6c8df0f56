"""Reactions from strings and the named equations, against solve_ivp, closed forms and conservation laws."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import fastdiff as fd
from fastdiff.equations._rules import canonical, rule_module
from fastdiff.kernels._edges import make_edges
from fastdiff.kernels._march import At, Star
from fastdiff.kernels._reaction import jacobian, react
from fastdiff.kernels._run import march

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

GRAY_SCOTT = {"u": "F*(1 - u) - u*v**2", "v": "u*v**2 - (F + k)*v"}


def gray_scott(F: Any = 0.04, k: Any = 0.06):
    return fd.ReactionDiffusion({"u": 2e-5, "v": 1e-5}, GRAY_SCOTT, {"F": F, "k": k})


def method_of_lines(u0, D, dx, reaction, t_end):
    """The same semi-discrete problem on a periodic line by solve_ivp at 1e-10."""
    def slope(t, y):
        y = y.reshape(u0.shape)
        spread = (np.roll(y, 1, -1) + np.roll(y, -1, -1) - 2 * y) / dx**2
        return (np.reshape(D, (-1, 1)) * spread + np.stack(reaction(t, *y))).ravel()

    return solve_ivp(slope, (0, t_end), u0.ravel(), rtol=1e-10, atol=1e-10).y[:, -1].reshape(u0.shape)


def extrapolated(equation, u0, grid, t_end, dt):
    """Euler with dt and dt/2, extrapolated to second order, and how the errors relate to `want`."""
    runs = [fd.solve(equation, u0, grid, t_end, method="euler", dt=h).final for h in (dt, dt / 2)]
    return 2 * runs[1] - runs[0], runs


# -- reactions from strings ------------------------------------------------------------------------------------------


def test_gray_scott_from_strings_is_the_hand_written_rule(rng):
    shape, dtype = (40, 56), np.float32
    grid = fd.Grid(shape, periodic=True)
    u0 = (rng.random((3, 2, *shape)) * 0.5).astype(dtype)
    F, k = np.array([0.04, 0.03, 0.05]), np.array([0.06, 0.062, 0.061])
    ours = fd.solve(gray_scott(F, k), u0, grid, 60.0, method="euler", dt=1.0)
    hand = fd.solve(fd.GrayScott(F, k), u0, grid, 60.0, method="euler", dt=1.0)
    assert ours.final.dtype == dtype
    assert np.abs(ours.final - hand.final).max() <= 60 * 4 * np.finfo(dtype).eps


def test_a_user_can_write_any_system(rng):
    """Three components, parameters for each sample, place, time and functions, one that does not diffuse."""
    a, n = np.array([0.3, 0.7]), 24
    grid = fd.Grid(n, (-0.5, 1.0), periodic=True)
    system = fd.ReactionDiffusion(
        diffusivity={"u": 1e-3, "v": 0.0, "w": 2e-3}, parameters={"a": a},
        reaction={"u": "a*sin(3*t)*cos(x)*u - exp(-u)*v + x*(1 - x)", "v": "u/(1 + v**2) - tanh(v) + t*u",
                  "w": "sqrt(w)*abs(u) - max(w, 0.5) + step(v - 1)/4 - log(1 + w)*min(u, v)"})
    u0 = rng.random((2, 3, n)) + 0.2
    x = grid.points(0)
    new, (coarse, fine) = extrapolated(system, u0, grid, 0.25, 1e-3)
    for b in range(2):
        want = method_of_lines(u0[b], [1e-3, 0, 2e-3], grid.spacing[0], lambda t, u, v, w, b=b: (
            a[b] * np.sin(3 * t) * np.cos(x) * u - np.exp(-u) * v + x * (1 - x), u / (1 + v**2) - np.tanh(v) + t * u,
            np.sqrt(w) * np.abs(u) - np.maximum(w, 0.5) + np.heaviside(v - 1, 0.5) / 4
            - np.log(1 + w) * np.minimum(u, v)), 0.25)
        assert np.abs(new[b, :2] - want[:2]).max() < 1e-6  # w has jumps in its reaction
        assert np.abs(fine[b] - want).max() < 1e-3
        errors = [np.abs(run[b, :2] - want[:2]).max() for run in (coarse, fine)]
        assert errors[0] == pytest.approx(2 * errors[1], rel=0.05)


@pytest.mark.parametrize("shape", [(9, 12), (5, 6, 7)])
def test_place_and_unequal_spacing_on_planes_and_in_space(shape, rng):
    grid = fd.Grid(shape, tuple(range(1, len(shape) + 1)), periodic=True)
    places = grid.coordinates()
    system = fd.ReactionDiffusion({"u": 0.01}, {"u": "x - y - z - u"})  # on a plane z is 0
    u0, dt = rng.random(shape), 1e-3
    got = fd.solve(system, u0, grid, dt, method="euler", dt=dt).final
    spread = sum((np.roll(u0, 1, k) + np.roll(u0, -1, k) - 2 * u0) / grid.spacing[k] ** 2 for k in range(len(shape)))
    first, *rest = places
    want = u0 + dt * (0.01 * spread + (first - sum(rest) - u0))
    assert np.abs(got - want).max() < 1e-13


def test_rules_alike_do_not_run_each_others_code():
    """Numba names machine code after the names of types: each generated class needs a name of its own."""
    for formula, rate in (("tanh(u)", np.tanh(0.5)), ("exp(u)", np.exp(0.5))):
        got = fd.solve(rd({"u": formula}, 0.0), np.full(9, 0.5), fd.Grid(9), 0.125, method="euler", dt=0.125).final
        np.testing.assert_allclose(got, 0.5 + 0.125 * rate, rtol=1e-14)


SYSTEMS = {
    "polynomial": (["a*u - u*v**2 + 3", "u**5*v - (a + b)*v/7 + u*(1 - u)*(u - a)"], ("u", "v")),
    "rational": (["u/(a + u**2) - b/(1 + v)**3", "u**0.5*v - v**1.3/(2*u)"], ("u", "v")),
    "functions": (["exp(-a*u)*sin(v) + cos(b*u)*log(v)", "tanh(u*v) + sinh(u)/cosh(v) + tan(u/2)"], ("u", "v")),
    "kinks": (["max(u, v, a) - min(u, 1)*abs(v - 1)", "step(u - v)*v + a**u + u**v"], ("u", "v")),
}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_the_rule_in_plain_python_is_the_reaction(kind, rng):
    """`react`, `jacobian` and the host's functions agree with each other, and the Jacobian with differences."""
    texts, names = SYSTEMS[kind]
    system = fd.ReactionDiffusion(0.1, dict(zip(names, texts)), {"a": 0.7, "b": 0.3})
    dt, fields = 1e-2, rng.random((2, 50)) + 0.4
    rule = system.euler(fd.Grid(8), dt, 1, np.float64)
    one = type(rule)(*[f[0] if isinstance(f, np.ndarray) else f for f in rule])
    at = At(0, 0, 0, 0)
    rates, J = system.rates(fields), system.jacobian(fields)
    for k in range(50):
        stars = tuple(Star(*[fields[c, k]] * 7) for c in range(2))
        np.testing.assert_allclose(react(one, stars, at), dt * rates[:, k], rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(jacobian(one, stars, at), dt * J[..., k].ravel(), rtol=1e-12, atol=1e-15)
    for c in range(2):
        shift = np.zeros((2, 1))
        shift[c] = 1e-6
        differences = (system.rates(fields + shift) - system.rates(fields - shift)) / 2e-6
        np.testing.assert_allclose(J[:, c], differences, rtol=1e-6, atol=1e-7)


class Linear(NamedTuple):
    """The Jacobian of another rule with 2 components, applied to (1, 1)."""

    rule: Any
    components = 2

    @staticmethod
    def change(p, u, at):
        a, b, c, d = jacobian(p.rule, u, at)
        return a + b, c + d


def test_the_jacobian_compiles_too(rng):
    system, u = gray_scott(), rng.random((1, 2, 30))
    rule = system.euler(fd.Grid(30), 0.5, 1, np.float64)
    got = march(Linear(rule), u, make_edges((30,), [True], u.dtype, components=2), 1)
    np.testing.assert_allclose(got - u, 0.5 * system.jacobian(u).sum(2), rtol=1e-12, atol=1e-15)


def test_gray_scott_knows_its_reaction_too(rng):
    u = rng.random((2, 5))
    np.testing.assert_array_equal(fd.GrayScott().jacobian(u), gray_scott().jacobian(u))


def test_jacobian_with_samples_and_places():
    system = fd.ReactionDiffusion(0.0, {"u": "a*x*u**2"}, {"a": np.array([1.0, 2.0])})
    grid, u = fd.Grid(5), np.full((2, 1, 5), 3.0)
    J = system.jacobian(u, grid)
    assert J.shape == (2, 1, 1, 5)
    np.testing.assert_allclose(J[:, 0, 0], np.array([[6.0], [12.0]]) * grid.points(0))
    assert system.rates(u, grid).shape == (2, 1, 5)
    with pytest.raises(ValueError, match="give grid"):
        system.jacobian(u)


def test_names_do_not_matter_to_the_module():
    first = canonical(["a*u - v", "v*u"], ("u", "v"), ("a",))
    other = canonical(["rate*prey - fox", "fox*prey"], ("prey", "fox"), ("rate",))
    assert first == other
    assert rule_module(first, 1, (True, True)) is rule_module(other, 1, (True, True))


def test_integer_powers_become_products_and_no_literal_is_left():
    module = rule_module(canonical(["u**6 - 2.5*u**3*v + 1", "u**-2"], ("u", "v"), ()), 0, (True, True))
    body = Path(str(module.__file__)).read_text()
    body = body[body.index("def react"):body.index("def change")]
    assert "**" not in body and "power" not in body
    assert not any(token.replace(".", "").isdigit() for token in body.replace("(", " ").replace(")", " ").split())


def test_float32_code_is_packed_and_stays_float32():
    machine_code = pytest.importorskip("test_machine_code", exc_type=ImportError)
    reaction = {"u": "a*u*(1 - u) - exp(-v)/(1 + u**2) + max(u, v)",
                "v": "tanh(u)*v**3 - sqrt(u) + sin(v) + log(1 + u)*step(v)"}
    system = fd.ReactionDiffusion({"u": 0.1, "v": 0.2}, reaction, {"a": 0.5})
    rule = system.euler(fd.Grid((8, 8)), 1e-3, 1, "float32")
    one = type(rule)(*[f[0] if isinstance(f, np.ndarray) else f for f in rule])
    machine_code.check_float32(machine_code.row_code(one))


def test_the_benchmark_runs(capsys):
    from fastdiff.bench import equations

    assert equations.main(["--tiny", "Gray-Scott"]) == 0
    assert "Gray-Scott from strings, 32² periodic, float32" in capsys.readouterr().out


# -- the cache -------------------------------------------------------------------------------------------------------

FIRST = """
import sys, time
import numpy as np, fastdiff as fd
start = time.perf_counter()
system = fd.ReactionDiffusion({"u": 0.1}, {"u": "r*u*(1 - u) - exp(-u)"}, {"r": 1.0})
sol = fd.solve(system, np.ones(50, np.float32), fd.Grid(50), 1e-4, method="euler", dt=1e-5)
print(time.perf_counter() - start, "sympy" in sys.modules, float(sol.final[0]))
"""


def _fresh(folder):
    done = subprocess.run([sys.executable, "-c", FIRST], env={**os.environ, "FASTDIFF_CACHE_DIR": str(folder)},
                          capture_output=True, text=True, check=True)
    seconds, sympy, value = done.stdout.split()
    return float(seconds), sympy == "True", float(value)


def test_the_next_process_finds_it_compiled_and_a_lost_file_harms_nobody(tmp_path):
    cold, used, value = _fresh(tmp_path)
    assert used
    warm, used, again = _fresh(tmp_path)
    assert not used and again == value and warm < cold / 3
    (file,) = (tmp_path / "reactions").glob("*.py")
    file.unlink()
    other = FIRST.replace("r*u*(1 - u) - exp(-u)", "r*u")
    done = subprocess.run([sys.executable, "-c", other], env={**os.environ, "FASTDIFF_CACHE_DIR": str(tmp_path)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _fresh(tmp_path)[2] == value


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert _fresh(tmp_path)[1]


# -- named equations -------------------------------------------------------------------------------------------------

NAMED: dict[str, tuple[Any, Any, Any]] = {  # equation, its diffusivities, its reaction written again
    "FisherKPP": (fd.FisherKPP(0.02, 1.5), [0.02], lambda t, u: (1.5 * u * (1 - u),)),
    "AllenCahn": (fd.AllenCahn(0.01, 2.0), [0.02], lambda t, u: (2 * (u - u**3),)),
    "FitzHughNagumo": (fd.FitzHughNagumo(), [1e-3, 5e-3], lambda t, u, v: (u - u**3 - 5e-3 - v, u - v)),
    "GrayScott": (fd.GrayScott(), [2e-5, 1e-5],
                  lambda t, u, v: (0.04 * (1 - u) - u * v**2, u * v**2 - 0.1 * v)),
    "Brusselator": (fd.Brusselator(Du=0.02, Dv=0.01), [0.02, 0.01],
                    lambda t, u, v: (1 - 4 * u + u**2 * v, 3 * u - u**2 * v)),
    "Schnakenberg": (fd.Schnakenberg(Du=0.01, Dv=0.05), [0.01, 0.05],
                     lambda t, u, v: (0.1 - u + u**2 * v, 0.9 - u**2 * v)),
    "SIR": (fd.SIR(), [0.1, 0.1, 0.1], lambda t, s, i, r: (-0.3 * s * i, 0.3 * s * i - 0.1 * i, 0.1 * i)),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_equations_against_solve_ivp(name, rng):
    equation, D, reaction = NAMED[name]
    grid = fd.Grid(20, 4.0, periodic=True)
    u0 = rng.random((len(D), 20)) * 0.8 + 0.1
    want = method_of_lines(u0, D, grid.spacing[0], reaction, 0.5)
    start = u0 if len(D) > 1 else u0[0]
    new, (coarse, fine) = extrapolated(equation, start, grid, 0.5, 2e-3)
    errors = [np.abs(run - want.reshape(run.shape)).max() for run in (coarse, fine, new)]
    assert errors[0] == pytest.approx(2 * errors[1], rel=0.02)  # first order in time
    assert errors[2] < 4e-6
    assert equation.stable_dt(grid) > 2e-3 and equation.reaction_rate() > 0


def test_every_named_equation_is_looked_at():
    from fastdiff import equations

    elsewhere = {"Equation", "Heat", "AdvectionDiffusion", "ReactionDiffusion"}
    assert {*NAMED, *OTHERS} == set(equations.__all__) - elsewhere
    assert all(hasattr(fd, name) for name in NAMED)
    assert all("u_t" in getattr(equations, name).__doc__ or "s_t" in getattr(equations, name).__doc__
               for name in (*NAMED, *OTHERS))


def _shifted(u, k):
    return np.roll(u, -k)


def _burgers(u, dx, nu=0.3):
    flux = (u**2 + u * _shifted(u, 1) + _shifted(u, 1) ** 2) / 6 - nu * (_shifted(u, 1) - u) / dx
    return -(flux - _shifted(flux, -1)) / dx


def _sorption(u, dx):
    slowed = 1 + 0.71 / 0.29 * 2880 * 3.5e-4 * 0.874 * (u + 1e-6) ** (0.874 - 1)
    return 5e-2 * (_shifted(u, 1) - 2 * u + _shifted(u, -1)) / dx**2 / slowed


def _second(u, dx):
    return (_shifted(u, 1) - 2 * u + _shifted(u, -1)) / dx**2


OTHERS: dict[str, tuple[Any, Any, float]] = {  # equation, its slope on a periodic line, the step
    "Burgers": (fd.Burgers(0.3), _burgers, 2e-3),
    "DiffusionSorption": (fd.DiffusionSorption(D=5e-2), _sorption, 2e-2),
    "PorousMedium": (fd.PorousMedium(2.0, 0.5), lambda u, dx: 0.5 * _second(u**2, dx), 2e-3),
    "CahnHilliard": (fd.CahnHilliard(kappa=0.05, M=0.3), lambda u, dx: 0.3 * _second(
        u**3 - u - 0.05 * _second(u, dx), dx), 2e-3),
    "SwiftHohenberg": (fd.SwiftHohenberg(), lambda u, dx: -0.9 * u - 2 * _second(u, dx) - _second(_second(u, dx), dx)
                       + u**2 - u**3, 1e-4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_equations_with_other_operators_against_solve_ivp(name, rng):
    equation, slope, dt = OTHERS[name]
    grid = fd.Grid(20, 4.0, periodic=True)
    u0, (dx,) = rng.random(20) * 0.8 + 0.1, grid.spacing
    want = solve_ivp(lambda t, u: slope(u, dx), (0, 40 * dt), u0, rtol=1e-10, atol=1e-10).y[:, -1]
    new, (coarse, fine) = extrapolated(equation, u0, grid, 40 * dt, dt)
    errors = [np.abs(run - want).max() for run in (coarse, fine, new)]
    assert errors[0] == pytest.approx(2 * errors[1], rel=0.05)
    assert errors[2] < 1e-4 * np.abs(want - u0).max()
    assert equation.stable_dt(grid) > dt


@pytest.mark.parametrize(("shape", "walls"), [((13, 17), "cells"), ((5, 6, 7), "nodes")])
def test_phases_separate_and_nothing_is_lost(shape, walls, rng):
    grid, equation = fd.Grid(shape, tuple(0.3 * n for n in shape), centering=walls), fd.CahnHilliard(kappa=0.1)
    u0 = 0.1 * rng.standard_normal(shape)
    sol = fd.solve(equation, u0, grid, save_at=[0.0, 3.0], method="euler")
    weight = np.prod(np.broadcast_arrays(*grid.weights()), axis=0)
    before, after = ((weight * u).sum() for u in sol.u)
    assert after == pytest.approx(before, abs=1e-13 * weight.sum()) and np.abs(sol.final).max() > 0.7


def test_modes_grow_as_linear_theory_says_on_planes():
    """exp(sigma t) with the discrete eigenvalue of each mode, and that of the equation with order two."""
    for equation, sigma in ((fd.CahnHilliard(0.1), lambda L: L - 0.1 * L**2),
                            (fd.SwiftHohenberg(r=0.3), lambda L: 0.3 - (1 - L) ** 2)):
        errors = []
        for n in (16, 32):
            grid = fd.Grid((n, n), (2 * np.pi, 4 * np.pi), periodic=True)
            x, y = grid.coordinates()
            u0 = 1e-8 * np.cos(x) * np.sin(y)
            dt = 0.5 * equation.stable_dt(grid)
            steps = int(np.ceil(0.5 / dt))
            got = fd.solve(equation, u0, grid, steps * dt, method="euler", dt=dt).final
            L = sum((2 - 2 * np.cos(k * h)) / h**2 for k, h in zip((1, 1), grid.spacing))
            np.testing.assert_allclose(got, u0 * (1 + dt * sigma(L)) ** steps, atol=1e-6 * np.abs(got).max())
            errors.append(abs(sigma(L) - sigma(2.0)))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_fourth_order_limits_are_sharp():
    grid = fd.Grid((16, 16), 8.0, periodic=True)
    checkers = 1e-3 * (-1.0) ** np.add(*np.indices((16, 16)))
    for equation, mean in ((fd.CahnHilliard(), 1.0), (fd.SwiftHohenberg(), 0.0)):
        limit = equation.stable_dt(grid)
        step = fd.Stepper(equation, grid, dt=0.98 * limit)
        assert np.abs(fd.repeat(step, 200)(mean + checkers) - mean).max() < 1e-3
        with pytest.raises(fd.Unstable):
            fd.Stepper(equation, grid, dt=1.02 * limit)


def test_burgers_is_cole_and_hopfs_with_order_two():
    equation, errors = fd.Burgers(0.05, speed=0.4), []
    for n in (40, 80):
        grid = fd.Grid(n, (-1.0, 1.0), periodic=True)
        x = grid.points(0)
        sol = fd.solve(equation, equation.exact(x, 0.0), grid, 1.0, method="euler", dt=0.5 * grid.spacing[0] ** 2)
        errors.append(np.abs(sol.final - equation.exact(x, 1.0)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1) and errors[1] < 1e-3


def test_a_shock_has_the_right_speed_and_no_wiggles():
    """From 1 to 0, unresolved: it moves at speed 1/2, the field keeps its range and its integral grows by 1/2 t."""
    grid = fd.Grid(400, 4.0, centering="cells")
    x = grid.points(0)
    sol = fd.solve(fd.Burgers(1e-5), (x < 1).astype(float), grid, 2.0, method="euler")
    assert sol.final.min() > -1e-6 and sol.final.max() < 1 + 1e-6
    assert x[np.argmax(sol.final < 0.5)] == pytest.approx(2.0, abs=0.02)
    assert sol.final.sum() * grid.spacing[0] == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("equation", [fd.FisherKPP(0.5, 2.0), fd.AllenCahn(0.7, 1.3)], ids=lambda e: type(e).__name__)
def test_fronts_move_as_they_should_with_order_two(equation):
    errors = []
    for n in (100, 200):
        grid = fd.Grid(n, (-20.0, 30.0), centering="cells")
        x = grid.points(0)
        sol = fd.solve(equation, equation.exact(x, 0.0), grid, 2.0, method="euler", dt=0.16 * grid.spacing[0] ** 2)
        errors.append(np.abs(sol.final - equation.exact(x, 2.0)).max())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)
    assert errors[1] < 0.02


def convergence(equation, exact, grid_of, boundary=None, start=0.1, span=0.1, part=0.2, mean=False):
    """Order and error on two grids, the second twice as fine, with steps that shrink as dx²."""
    errors, dt = [], 0.0
    for n in (1, 2):
        grid = grid_of(n)
        places = grid.coordinates()
        u0 = np.broadcast_to(exact(places, start), grid.shape).copy()
        dt = part * equation.stable_dt(grid) if n == 1 else dt / 4
        sol = fd.solve(equation, u0, grid, span, boundary=boundary, method="euler", dt=dt)
        error = np.abs(sol.final - exact(places, start + span))
        errors.append(error.mean() if mean else error.max())
    return np.log2(errors[0] / errors[1]), errors[1]


def test_a_gaussian_travels_and_spreads():
    equation = fd.AdvectionDiffusion(0.02, 1.0, scheme="central")
    order, error = convergence(equation, lambda x, t: equation.exact(x, t, width=0.15, start=0.8),
                               lambda n: fd.Grid(100 * n, 3.0, centering="cells"), start=0.0, span=0.5, part=0.05)
    assert order == pytest.approx(2, abs=0.15) and error < 5e-3
    plate = fd.Heat(0.1)
    order, error = convergence(plate, lambda x, t: plate.exact(x, t, width=0.2, start=(1.5, 1.4)),
                               lambda n: fd.Grid((30 * n, 30 * n), 3.0, centering="cells"))
    assert order == pytest.approx(2, abs=0.15) and error < 5e-3


def test_ogata_and_banks_column():
    equation = fd.AdvectionDiffusion(0.05, 1.0, scheme="central")
    order, error = convergence(equation, lambda x, t: equation.exact(x, t, "ogata-banks"),
                               lambda n: fd.Grid(80 * n + 1, 4.0), {"x": (fd.Dirichlet(1.0), fd.Neumann(0.0))},
                               start=0.3, span=0.7, part=0.1)
    assert order == pytest.approx(2, abs=0.2) and error < 5e-3
    far = np.asarray(equation.exact(np.array([0.0, 500.0]), 1e-3, "ogata-banks"))
    assert np.abs(far - [1, 0]).max() < 0.1  # exp(v x/D) alone would overflow


def test_a_bessel_mode_in_a_cylinder():
    equation = fd.Heat(0.5)
    order, error = convergence(equation, lambda r, t: equation.exact(r, t, "cylinder", radius=2.0, mode=2),
                               lambda n: fd.Grid(24 * n, 2.0, centering="cells", geometry="cylindrical"),
                               {"r": (fd.Neumann(0.0), fd.Dirichlet(0.0))}, start=0.0, span=0.2)
    assert order == pytest.approx(2, abs=0.15) and error < 1e-2


def test_barenblatts_front():
    """The front's slope has a jump, so the mean error tells; what has spread is conserved."""
    equation, shape = fd.PorousMedium(m=2.0, D=0.5, highest=2.0), (80,)
    box = [(-4.0, 4.0)]
    order, error = convergence(equation, equation.exact,
                               lambda n: fd.Grid([n * m for m in shape], box, centering="cells"), start=0.5, span=1.0,
                               mean=True)
    assert order > 1 and error < 2e-3
    grid = fd.Grid(shape, box, centering="cells")
    u0 = np.broadcast_to(equation.exact(grid.coordinates(), 0.5), shape).copy()
    final = fd.solve(equation, u0, grid, 1.0, method="euler").final
    assert final.sum() == pytest.approx(u0.sum(), rel=1e-12) and final.min() >= 0


def test_standing_wall():
    equation, grid = fd.AllenCahn(kappa=0.01), fd.Grid(400, (-1.0, 1.0))
    u0 = equation.exact(grid.points(0), 0.0, moving=False)
    sol = fd.solve(equation, u0, grid, 1.0, method="euler")
    assert np.abs(sol.final - u0).max() < 1e-3


@pytest.mark.parametrize(("equation", "low", "high"), [(fd.FisherKPP(0.1), 0, 1), (fd.AllenCahn(0.1), -1, 1)],
                         ids=["fisher", "allen-cahn"])
def test_a_field_stays_between_its_steady_states(equation, low, high, rng):
    u0 = rng.uniform(low, high, 60)
    final = fd.solve(equation, u0, fd.Grid(60), 3.0, method="euler").final
    assert final.min() >= low and final.max() <= high and np.ptp(final) < high - low


def test_an_epidemic_keeps_its_people(rng):
    grid = fd.Grid((18, 22), 3.0, centering="cells")
    u0 = np.stack([np.full(grid.shape, 0.99), np.zeros(grid.shape), np.zeros(grid.shape)])
    u0[1, 3:5, 4:6] = 0.01 * rng.random((2, 2))
    sol = fd.solve(fd.SIR(beta=1.0), u0, grid, save_at=[0.0, 5.0, 20.0], method="euler")
    total = sol.u.sum((1, 2, 3))
    assert np.abs(total / total[0] - 1).max() < 1e-12
    assert sol.u[-1].min() >= 0 and sol.u[-1, 2].sum() > 50 * u0[1].sum()


def test_uniform_steady_states_do_not_move():
    for equation, state in ((fd.Brusselator(), (1.0, 3.0)), (fd.Schnakenberg(), (1.0, 0.9))):
        u0 = np.ones((2, 12)) * np.reshape(state, (2, 1))
        final = fd.solve(equation, u0, fd.Grid(12), 1e-3, method="euler", dt=1e-4).final
        assert np.abs(final - u0).max() < 1e-15


@pytest.mark.parametrize("equation", [gray_scott(), fd.FisherKPP(), fd.PorousMedium(), fd.DiffusionSorption(),
                                      fd.Heat("1 + u**2"), fd.CahnHilliard()], ids=lambda e: type(e).__name__)
def test_equations_can_be_sent_to_other_processes(equation):
    grid = fd.Grid(8)
    equation.stable_dt(grid)
    equation.euler(grid, 1e-6, 1, np.float64)  # keeps modules
    again = pickle.loads(pickle.dumps(equation))
    assert again == equation and again.stable_dt(grid) == equation.stable_dt(grid)


def test_pdebench_settings_are_the_defaults():
    equation = fd.FitzHughNagumo()
    u, v = 0.3, -0.2
    rates = equation.rates(np.array([[u], [v]]))[:, 0]
    np.testing.assert_allclose(rates, [u - u**3 - 5e-3 - v, u - v], rtol=1e-14)
    assert equation.diffusivities(fd.Grid((4, 4)))[0, :, 0].tolist() == [1e-3, 5e-3]


# -- steps -----------------------------------------------------------------------------------------------------------


def test_the_step_heeds_a_stiff_reaction():
    grid = fd.Grid(20, periodic=True)
    decay = fd.ReactionDiffusion({"u": 1e-6}, {"u": "-k*u"}, {"k": 500.0})
    assert decay.reaction_rate() == pytest.approx(500) and decay.stable_dt(grid) == pytest.approx(2 / 500, rel=0.02)
    final = fd.solve(decay, np.ones(20), grid, 0.1, method="euler").final
    assert np.abs(final).max() < 1e-8
    with pytest.raises(fd.Unstable, match="largest stable step is 0.00"):
        fd.solve(decay, np.ones(20), grid, 0.1, method="euler", dt=0.01)


def test_bounds_say_where_values_are_expected():
    stiff = fd.ReactionDiffusion(0.0, {"u": "1 - u**3"}, bounds=(0.0, 10.0))
    assert stiff.reaction_rate() == pytest.approx(300)
    final = fd.solve(stiff, np.full(5, 10.0), fd.Grid(5), 1.0, method="euler").final
    assert np.abs(final - 1).max() < 0.1


# -- what users get wrong --------------------------------------------------------------------------------------------


def rd(reaction, diffusivity: Any = 1.0, parameters: Any = None, **more):
    return fd.ReactionDiffusion(diffusivity, reaction, {} if parameters is None else parameters, **more)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: rd({"u": "a*u"}), "unknown name 'a' in 'a\\*u'; known: u, x, y, z, t"),
    (lambda: rd({"u": "w + u", "v": "0"}, parameters={"b": 1.0}), "unknown name 'w'.*known: u, v, b, x"),
    (lambda: rd({"u": "sinn(u)"}), "unknown function 'sinn'.*known: sin, cos"),
    (lambda: rd({"u": "sin(u, u)"}), "sin .* takes 1 argument, not 2"),
    (lambda: rd({"u": "max(u)"}), "max .* takes 2 to 8 arguments, not 1"),
    (lambda: rd({"u": "__import__('os').system('true')"}), "not allowed|unknown function"),
    (lambda: rd({"u": "u.real"}), "'u.real' is not allowed"),
    (lambda: rd({"u": "[u for u in (1,)]"}), "not allowed"),
    (lambda: rd({"u": "u if u > 0 else 0"}), "not allowed"),
    (lambda: rd({"u": "lambda: u"}), "not allowed"),
    (lambda: rd({"u": "u +"}), "is not an expression"),
    (lambda: rd({"u": ""}), "expression is empty"),
    (lambda: rd({"u": "1/0"}), "not a finite real number"),
    (lambda: rd({"u": "log(-1) + u"}), "not a finite real number"),
    (lambda: rd({"u": "1e999*u"}), "too large"),
    (lambda: rd({"u": lambda u: u}), "the reaction of u is a formula"),
    (lambda: rd("u*(1 - u)"), "reaction is a mapping"),
    (lambda: rd({}), "reaction is a mapping"),
    (lambda: rd({"u": "u"}, {"u": 1.0, "v": 1.0}), "unknown component 'v' in diffusivity; known .*: u"),
    (lambda: rd({"u": "u", "v": "v"}, {"u": 1.0}), "diffusivity has no entry for 'v'"),
    (lambda: rd({"u": "u"}, -1.0), "at least 0"),
    (lambda: rd({"u": "a*u"}, parameters={"a": np.nan}), "parameter a must be finite"),
    (lambda: rd({"u": "a*u"}, parameters={"a": [[1.0]]}), "parameter a is a number or one number a sample"),
    (lambda: rd({"u": "a*u + b"}, parameters={"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]}), "different numbers of samples"),
    (lambda: rd({"u": "a*u"}, parameters=[1.0]), "parameters is a mapping"),
    (lambda: rd({"t": "t"}), "'t' means something else"),
    (lambda: rd({"u": "u"}, parameters={"x": 1.0}), "'x' means something else"),
    (lambda: rd({"u": "u"}, parameters={"u": 1.0}), "a component and a parameter"),
    (lambda: rd({"u-v": "1"}), "names that can stand in a formula"),
    (lambda: rd({"u": "u"}, parameters={"lambda": 1.0}), "names that can stand in a formula"),
    (lambda: rd({"u": "u"}, bounds=(1.0, 0.0)), "bounds are pairs"),
    (lambda: rd({"u": "u"}, bounds=3.0), "bounds are pairs"),
    (lambda: rd({"u": "u"}, bounds={"v": (0, 1)}), "unknown component 'v' in bounds"),
    (lambda: fd.Burgers(nu=-1.0), "nu must be at least 0"),
    (lambda: fd.Burgers().stable_dt(fd.Grid((4, 4))), "for grids of one axis, not of 2"),
    (lambda: fd.DiffusionSorption(phi=1.5), "phi, a porosity, is at most 1"),
    (lambda: fd.DiffusionSorption(k=0.0), "k must be positive"),
    (lambda: fd.FisherKPP(D=-1.0), "diffusivity of u must be at least 0"),
    (lambda: fd.Schnakenberg(a="x"), "could not|number|not"),
    (lambda: fd.FisherKPP(D=np.array([1.0, 2.0])).exact(0.0, 0.0), "exact.* is for one sample: D has 2"),
    (lambda: fd.Heat("1 + x").exact(0.0, 0.0), "exact.* is for numbers: diffusivity is '1 \\+ x'"),
    (lambda: fd.Heat().exact(0.0, 0.0, "cone"), "unknown kind 'cone'"),
    (lambda: fd.PorousMedium().exact(0.0, 0.0), "t > 0"),
    (lambda: fd.PorousMedium(m=0.5), "m must be at least 1"),
])
def test_bad_input_is_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_coefficients_that_are_not_finite():
    with pytest.raises(ValueError, match="a coefficient of the reaction is not finite"):
        fd.solve(rd({"u": "log(a)*u"}, parameters={"a": 0.0}), np.ones(8), fd.Grid(8), 0.1)
    with pytest.raises(ValueError, match="not finite at some point of the grid"):
        fd.solve(rd({"u": "u/x"}), np.ones(8), fd.Grid(8), 0.1)


def test_what_is_no_equation():
    for equation in (fd.Heat, "heat", None):
        with pytest.raises(TypeError, match="equation is"):
            fd.solve(equation, np.ones(8), fd.Grid(8), 0.1)


def test_a_blow_up_says_when_where_and_which_sample():
    """u' = u² from u0 ends at t = 1/u0."""
    u0 = np.full((2, 16), 0.5)
    u0[1, 11] = 2.0
    words = r"u became .* at \(11,\) of sample 1 between t = 0\.5\d* and t = 0\.5"
    with pytest.raises(fd.Diverged, match=words) as error:
        fd.solve(rd({"u": "u**2"}, 0.0), u0, fd.Grid(16), 5.0, method="euler", dt=1e-3)
    between = [float(str(error.value).split(f"{word} t = ")[1].split(" ")[0]) for word in ("between", "and")]
    assert between[1] - between[0] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("method", ["rk23", "strang"])
def test_steps_that_follow_the_error_into_a_blow_up_say_so_too(method):
    u0 = np.full((2, 16), 0.5)
    u0[1, 11] = 2.0
    with pytest.raises(fd.Diverged, match=r"u (grows without bound|became).* of sample 1"):
        fd.solve(rd({"u": "u**2"}, 0.0), u0, fd.Grid(16), 5.0, method=method)


# -- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
def test_cuda_runs_the_same_rule(rng):
    from fastdiff.kernels._march_cuda import march_cuda

    reaction = {"u": "a*u*(1 - u) - exp(-u)*v + max(u, v)*x", "v": "tanh(u) - v/(1 + v**2) + sin(3*t)*step(u - v)"}
    system = fd.ReactionDiffusion({"u": 1e-3, "v": 0.0}, reaction, {"a": 0.5})
    grid = fd.Grid((5, 7), 1.0, periodic=True)
    u, dt = rng.random((1, 2, 5, 7)), 1e-2
    rule = system.euler(grid, dt, 1, u.dtype)
    edges = make_edges(grid.shape, [True, True], u.dtype, components=2, start=0.3, dt=dt)
    got, want = march_cuda(rule, u, edges, 3), u.copy()
    for n in range(3):
        spread = sum((np.roll(want, s, k) - want) / grid.spacing[k - 2] ** 2 for s in (1, -1) for k in (2, 3))
        rates = system.rates(want[0], grid, 0.3 + n * dt)[None]
        want = want + dt * (np.array([1e-3, 0.0]).reshape(1, 2, 1, 1) * spread + rates)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_in_the_simulator():
    if SIMULATED:
        pytest.skip("this is the simulator")
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "cuda", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"})
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]


PTX = """
import numpy as np, fastdiff as fd
from fastdiff.bench.ptx import measure
from fastdiff.kernels._edges import make_edges
system = fd.ReactionDiffusion({"u": 1e-3, "v": 1e-3}, {"u": "u - u**3 - exp(-v)", "v": "max(u, v)*sin(u) - v**0.3"})
grid = fd.Grid((64, 64), periodic=True)
rule = system.euler(grid, 1e-3, 1, "float32")
edges = make_edges(grid.shape, [True, True], "float32", components=2)
for found in measure("reaction", rule, edges, grid.shape, "float32"):
    assert found.spills == 0 and found.float64 == 0, found
print("compiled")
"""


def test_cuda_compiles_without_float64_or_spills():
    done = subprocess.run([sys.executable, "-c", PTX], capture_output=True, text=True)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
