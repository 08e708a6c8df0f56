"""Physics-informed networks: the problems of fd.solve, what is built in, training, and what is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastdiff as fd  # noqa: E402
from fastdiff.nn._fields import corner, symbols  # noqa: E402
from fastdiff.nn._fit import Balance, causal_weights  # noqa: E402
from fastdiff.nn.pinn import PINN, NotFinite  # noqa: E402

WALLS = {"x": fd.Dirichlet(0.0)}
TUTORIAL = {"x": (fd.Dirichlet("sin(t)"), fd.Dirichlet("exp(-t)"))}


def rod(**more):
    return PINN(fd.Heat(1.0), fd.Grid(41), "sin(pi*x)", 0.5, WALLS, **{"width": 8, "depth": 2, "points": 300} | more)


def exact_rod(t, x):
    return np.exp(-np.pi**2 * t) * np.sin(np.pi * x)


def distance(pinn, exact, t_end=0.5):
    t, x = np.meshgrid(np.linspace(0, t_end, 21), pinn.grid.points(0), indexing="ij")
    return np.linalg.norm(pinn(t, x) - exact(t, x)) / np.linalg.norm(exact(t, x))


def test_gauss_newton_solves_the_rod_and_says_how_well():
    pinn = rod()
    report = pinn.train_for(steps=80)
    assert distance(pinn, exact_rod) < 2e-3 and report.error < 5e-3
    assert report.training == pinn.seconds > 0 and report.solver > 0 and "fd.solve took" in str(report)


@pytest.mark.parametrize(("optimiser", "steps"), [("lbfgs", 25), ("adam", 300)])
def test_first_order_methods_lower_the_loss(optimiser, steps):
    pinn = rod()
    before = float(pinn.loss().detach())
    assert pinn.train_for(optimiser, steps=steps, lr=5e-3, compare=False) is None
    assert pinn.history[-1][1] < (1e-3 if optimiser == "lbfgs" else 0.1) * before


@pytest.mark.parametrize("boundary", [WALLS, {"x": (fd.Neumann(0.5), fd.Robin(1.0, 2.0, 0.3))}])
def test_fused_loss_equals_the_residual_of_jets(boundary):
    pinn = PINN(fd.Heat(0.3), fd.Grid(21), "sin(pi*x)", 0.5, boundary, width=6, depth=2, points=100)
    term = pinn.terms[0]
    plain = pinn._residual_of(term, pinn._raw(term)).square().mean()
    assert torch.allclose(pinn._term_loss(term), plain, rtol=1e-11)


def test_jacobian_is_that_of_the_residuals():
    pinn = PINN(fd.FisherKPP(0.1, 2.0), fd.Grid(21), "0.5 + 0.2*cos(pi*x)", 0.5, {"x": (fd.Flux(0.1), None)}, width=4,
                depth=2, points=20, unknown={"r": 1.5}, data=([0.1, 0.2], [0.3, 0.7], [0.5, 0.4]))
    flat = pinn._flat()
    r, J = pinn._linearise(flat)
    for k in (0, 7, len(flat) - 1):
        step = np.zeros(len(flat))
        step[k] = 1e-6
        numeric = (pinn._linearise(flat + step)[0] - pinn._linearise(flat - step)[0]) / 2e-6
        assert np.allclose(J[k], numeric, rtol=1e-5, atol=1e-7)
    assert pinn._squares(flat) == pytest.approx(r @ r, rel=1e-12)
    assert float(pinn.loss().detach()) == pytest.approx(r @ r, rel=1e-9)


def test_walls_and_initial_values_are_built_in():
    pinn = PINN(fd.Heat(1.0), fd.Grid(21), "sin(pi*x)", 1.0, TUTORIAL, width=6, depth=1, points=50)
    t = np.linspace(0.01, 1, 9)
    assert np.allclose(pinn(t, 0.0), np.sin(t), atol=1e-12) and np.allclose(pinn(t, 1.0), np.exp(-t), atol=1e-12)
    x = np.linspace(0, 0.95, 9)
    assert np.allclose(pinn(0.0, x), np.sin(np.pi * x), atol=1e-9)
    assert [t.name for t in pinn.terms] == ["equation"] and pinn.corners == [True, True]


def test_corner_functions_solve_the_heat_equation():
    import sympy

    known = symbols()
    f = corner(known["x"], 2.0, -3.0, 0.7)
    residual = sympy.diff(f, known["t"]) - 0.7 * sympy.diff(f, known["x"], 2)
    assert all(abs(float(residual.subs({known["t"]: t, known["x"]: x}))) < 1e-10 for t in (0.1, 1) for x in (0.2, 0.9))
    assert float(f.subs(known["x"], 0).subs(known["t"], 0.5)) == pytest.approx(2.0 - 1.5)


def test_tutorial_corner():
    pinn = PINN(fd.Heat(1.0), fd.Grid(41), "sin(pi*x)", 1.0, TUTORIAL, width=8, depth=2, points=400)
    assert pinn.train_for(steps=60).error < 2e-3


def test_formulas_and_arrays_of_initial_values_agree():
    grid = fd.Grid(41)
    from_array = PINN(fd.Heat(1.0), grid, np.sin(np.pi * grid.points(0)), 0.5, WALLS, width=6, depth=1, points=50)
    from_text = PINN(fd.Heat(1.0), grid, "sin(pi*x)", 0.5, WALLS, width=6, depth=1, points=50)
    a, b = (p.jet(np.array([[0.1, 0.33], [0.4, 0.8]]), "tx", "xx").data for p in (from_array, from_text))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("equation", "u0", "shape"), [
    (fd.Heat((0.1, 0.2)), "cos(pi*x)*cos(pi*y)", (13, 13)),
    (fd.GrayScott(), ["1 - 0.5*exp(-20*(x-0.5)^2)", "0.25*exp(-20*(x-0.5)^2)"], (33,)),
    (fd.ReactionDiffusion({"u": 0.1}, {"u": "a*u*(1-u) + x*sin(t)"}, {"a": 1.5}), "0.1 + 0.5*x", (33,)),
    (fd.AllenCahn(0.01, 1.0), "0.5*cos(2*pi*x)", (33,)),
    *([(fd.Burgers(0.1), "sin(pi*x)", (33,))] if hasattr(fd, "Burgers") else []),
    (fd.Heat("0.1 + 0.1*x", source="sin(pi*x)"), "x*0", (33,)),
    (fd.AdvectionDiffusion(0.1, 0.5, scheme="central"), "exp(-20*(x-0.4)^2)", (201,)),
    (fd.Heat("0.1 + 0.1*u"), "0.5 + 0.3*cos(pi*x)", (33,)),
], ids=lambda v: type(v).__name__ if hasattr(v, "euler") else "")
def test_solves_what_the_solver_solves(equation, u0, shape):
    centering = "cells" if len(shape) == 2 else "nodes"
    grid = fd.Grid(shape, periodic=isinstance(equation, fd.AllenCahn), centering=centering)
    boundary = WALLS if type(equation).__name__ == "Burgers" else None
    pinn = PINN(equation, grid, u0, 0.3, boundary, width=8, depth=2, points=300)
    report = pinn.train_for(steps=40)
    assert report.error < 1e-2, report


def test_periodic_axes_are_periodic():
    pinn = PINN(fd.Heat(0.1), fd.Grid(32, 2.0, periodic=True), "sin(pi*x)", 0.5, width=6, depth=1, points=50)
    assert np.allclose(pinn(0.2, np.array([0.3, 1.1])), pinn(0.2, np.array([2.3, 3.1])), atol=1e-10)


def test_finds_a_diffusivity_from_noisy_points():
    rng = np.random.default_rng(0)
    t, x = rng.uniform(0.02, 0.5, 100), rng.uniform(0.05, 0.95, 100)
    u = np.exp(-np.pi**2 * 0.4 * t) * np.sin(np.pi * x) + 0.01 * rng.standard_normal(100)
    pinn = rod(unknown={"diffusivity": 1.0}, data=(t, x, u))
    report = pinn.train_for(steps=40)
    assert report.unknown["diffusivity"] == pytest.approx(0.4, rel=0.03)


def test_refinement_puts_points_where_the_residual_is_large():
    pinn = rod()
    with torch.no_grad():
        pinn.net.theta.mul_(3)
    before = pinn.terms[0].points
    size = lambda: float(pinn._residual_of(pinn.terms[0], pinn._raw(pinn.terms[0])).abs().mean().detach())
    plain = size()
    pinn.refine()
    assert pinn.terms[0].points.shape == before.shape and size() > 1.1 * plain


def test_curriculum_causal_weights_and_balance():
    pinn = PINN(fd.FisherKPP(0.05, 1.0), fd.Grid(33), "exp(-20*x^2)", 1.0, constraints="soft", width=8, depth=2,
                points=200, causal=1.0)
    pinn.train_for("adam", steps=200, lr=1e-2, curriculum=2, balance=True, refine=90, compare=False)
    assert pinn.window == 1.0 and pinn.balance is not None and len(set(pinn.balance.weights.values())) > 1
    assert pinn.terms[0].weights is not None and np.isfinite(pinn.history[-1][1])
    assert causal_weights(np.array([1.0, 2.0, 3.0]), 0.5) == pytest.approx(np.exp([0, -0.5, -1.5]))
    balance = Balance(["a", "b"], momentum=0.0)
    balance.update({"a": 1.0, "b": 3.0})
    assert balance.weights["a"] == pytest.approx(4.0) and balance.weights["b"] == pytest.approx(4 / 3)


def test_same_seed_same_numbers_and_checkpoints(tmp_path):
    a, b = rod(), rod()
    a.train_for(steps=5, compare=False, checkpoint=tmp_path / "rod.pt")
    b.train_for(steps=5, compare=False)
    assert torch.equal(a.net.theta, b.net.theta)
    c = rod().load(tmp_path / "rod.pt")
    assert torch.equal(a.net.theta, c.net.theta) and len(c.history) == 5
    with pytest.raises(ValueError, match="not of this network"):
        rod(width=9).load(tmp_path / "rod.pt")


def test_picture_and_solution(tmp_path):
    pinn = rod()
    pinn.train_for(steps=3, compare=False)
    pinn.plot(tmp_path / "rod.png")
    assert (tmp_path / "rod.png").stat().st_size > 5000
    assert pinn.solution([0.1, 0.5]).u.shape == (2, 41)


def test_command_line(tmp_path):
    from typer.testing import CliRunner

    from fastdiff.cli import app

    picture = tmp_path / "rod.png"
    run = CliRunner().invoke(app, ["train", "pinn", "rod", "--seconds", "0.5", "--out", str(picture)])
    assert run.exit_code == 0 and picture.stat().st_size > 5000, run.output
    assert CliRunner().invoke(app, ["train", "pinn", "bridge"]).exit_code == 1


def test_losses_that_are_not_finite_stop_and_say_where():
    pinn = PINN(fd.nn.Residual(lambda u_t, u_xx, x: u_t - u_xx + 1 / (x - x)), fd.Grid(21), "sin(pi*x)", 0.5, WALLS,
                width=4, depth=1, points=20)
    for optimiser in ("gauss_newton", "adam"):
        with pytest.raises(NotFinite, match=r"'equation' is .* at t = .*, x = "):
            pinn.train_for(optimiser, steps=2)


def test_what_does_not_fit_is_refused():
    grid = fd.Grid(21)
    with pytest.raises(ValueError, match="relu has no second derivative"):
        rod(activation="relu")
    with pytest.raises(ValueError, match="each of the 1 axes"):
        PINN(fd.Heat((1.0, 2.0)), grid, "x")
    with pytest.raises(ValueError, match=r"shape \(21\)"):
        PINN(fd.Heat(1.0), grid, np.zeros(22))
    with pytest.raises(ValueError, match="Cartesian"):
        PINN(fd.Heat(1.0), fd.Grid(21, (0.5, 1.0), geometry="polar"), "x")
    with pytest.raises(ValueError, match="unknown name 'y'"):
        PINN(fd.Heat(1.0), grid, "x*y")
    with pytest.raises(ValueError, match="it has diffusivity"):
        rod(unknown={"speed": 1.0}, data=([0.1], [0.1], [0.0]))
    with pytest.raises(ValueError, match="give data="):
        rod(unknown={"diffusivity": 1.0})
    with pytest.raises(ValueError, match="outside of the domain"):
        rod(data=([0.1], [3.0], [0.0]))
    with pytest.raises(ValueError, match="one problem at a time"):
        PINN(fd.Heat(np.array([1.0, 2.0])), grid, "x")
    with pytest.raises(ValueError, match="needs float64"):
        rod(dtype=torch.float32).train_for(steps=1)
    with pytest.raises(ValueError, match="use lbfgs or adam"):
        rod(width=90).train_for(steps=1)
    with pytest.raises(ValueError, match='use "auto" or "soft"'):
        PINN(fd.Heat(1.0), grid, "x", 1.0, {"x": fd.Neumann(1.0)}, constraints="hard")
    with pytest.raises(ValueError, match="unknown argument 'u_q'"):
        PINN(fd.nn.Residual(lambda u_q: u_q), grid, "x")
    with pytest.raises(TypeError, match="no residual is known"):
        PINN(object(), grid, "x")
    with pytest.raises(ValueError, match="unknown optimiser 'soap'"):
        rod().train_for("soap")
