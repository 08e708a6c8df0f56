"""Gradients through marches: the exact discrete adjoint, for equations, walls and integrators that claim it."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.equations import _linear
from fastdiff.kernels import adjoint, heat, variable
from fastdiff.kernels._adjoint import Checkpoints, _repeated, checkpoints, march_adjoint, march_kept
from fastdiff.kernels._edges import Side, make_edges
from fastdiff.kernels._run import march
from fastdiff.kernels._threads import scratch
from fastdiff.nn import _weights
from fastdiff.nn.functional.solver import PROBLEMS, _adjoint, _march

F64 = torch.float64
CELLS = fd.Grid((6, 5), centering="cells")
NODES = fd.Grid((6, 5))
RING = fd.Grid((6, 5), periodic=(True, False), centering="cells")
SQUARE = fd.Grid((6, 5), extent=2.0, periodic=True)
rng = np.random.default_rng(0)
FIELD = 0.5 + rng.random((6, 5))
MATRIX = np.array([[1.0, 0.3], [0.3, 0.6]])
LONG = fd.Grid((6, 5), extent=(6.0, 5.0), periodic=(False, True))
GS = fd.GrayScott(F=0.04, k=0.06, Du=0.02, Dv=0.01)
WALLS = {"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 0.5, 0.2)), "y": (fd.Neumann(0.3), fd.Flux(0.2))}
HELD = {"x": (fd.Neumann(0.1), fd.Dirichlet(0.4))}
TWO = {"u": {"x": (fd.Dirichlet(1.0), fd.Flux(0.01))}, "v": fd.Neumann(0.1)}
STRINGS = fd.ReactionDiffusion({"a": 0.01, "b": 0.0}, {"a": "a - a**3 - b + k*sin(x)", "b": "e*(a - tanh(b)) + 0.1*t"},
                               {"k": 0.3, "e": 0.2})

# name: equation, grid, dt, and what else there is: walls, method, batch, steps, parameters that are learned
CASES = {
    "D(x), no flux": (fd.Heat(FIELD), CELLS, 2e-3, {}, {"diffusivity": FIELD}),
    "D(x), all walls": (fd.Heat(FIELD), CELLS, 1e-3, dict(boundary=WALLS), {
        "diffusivity": FIELD, "x low": 1.0, "x high": 0.2, "x high.a": 1.0, "x high.b": 0.5, "y low": np.full(6, 0.3),
        "y high": 0.2}),
    "D(x), held nodes": (fd.Heat(FIELD), NODES, 2e-3, dict(boundary=fd.Dirichlet(0.5)), {"diffusivity": FIELD,
                                                                                        "x low": 0.5}),
    "D(x), initial values held": (fd.Heat(FIELD), NODES, 2e-3, dict(boundary=fd.Dirichlet()), {"diffusivity": FIELD}),
    "D(x), initial values on cells": (fd.Heat(FIELD), CELLS, 1e-3, dict(boundary=fd.Dirichlet()), {}),
    "D(x), nodes, mixed": (fd.Heat(FIELD), NODES, 2e-3, dict(boundary=HELD), {"diffusivity": FIELD, "x low": 0.1}),
    "D(x), periodic": (fd.Heat(FIELD), RING, 2e-3, {}, {"diffusivity": FIELD}),
    "D, flux": (fd.Heat(1.3), CELLS, 2e-3, dict(boundary={"x": fd.Flux(0.3)}), {"diffusivity": 1.3, "x low": 0.3}),
    "D of each sample": (fd.Heat(np.array([1.0, 1.2, 0.8])), NODES, 2e-3, dict(boundary=HELD, batch=3), {
        "diffusivity": np.array([1.0, 1.2, 0.8]), "x low": 0.1, "x high": np.array([0.4, 0.4, 0.4])}),
    "D(x) of each sample": (fd.Heat(np.stack([FIELD, FIELD[::-1]])), CELLS, 2e-3, dict(batch=2), {
        "diffusivity": np.stack([FIELD, FIELD[::-1]])}),
    "source": (fd.Heat(1.0, source=np.ones((6, 5))), CELLS, 2e-3, {}, {"diffusivity": 1.0, "source": np.ones((6, 5))}),
    "times and u in walls": (fd.Heat(1.0, source="sin(t)*x"), CELLS, 2e-3, dict(
        boundary={"x": (fd.Dirichlet("sin(40*t)*y"), fd.Neumann("-(u**4 - 1)"))}), {"diffusivity": 1.0}),
    "an axis each": (fd.Heat((1.0, 0.5)), CELLS, 2e-3, {}, {"diffusivity.x": 1.0, "diffusivity.y": 0.5}),
    "curved": (fd.Heat(FIELD), fd.Grid((6, 5), extent=((0.0, 1.0), (0.0, 3.14)), centering="cells",
                                       geometry="spherical"), 2e-4, {}, {"diffusivity": FIELD}),
    "Gray-Scott": (GS, SQUARE, 0.5, {}, {"F": 0.04, "k": 0.06, "Du": 0.02, "Dv": 0.01}),
    "Gray-Scott, walls": (GS, fd.Grid((6, 5), extent=2.0, centering="cells"), 0.5, dict(boundary=TWO, batch=2), {
        "F": np.array([0.04, 0.04]), "k": 0.06, "Du": 0.02, "u, x low": 1.0, "v, y high": 0.1}),
    "strings": (STRINGS, fd.Grid(9), 0.05, {}, {"k": 0.3, "e": 0.2, "diffusivity.a": 0.01}),
    "Fisher in three axes": (fd.FisherKPP(D=0.01, r=2.0), fd.Grid((3, 4, 3), centering="cells"), 0.05, {}, {
        "D": 0.01, "r": 2.0}),
    "flow, a field": (fd.AdvectionDiffusion(0.05, velocity=(FIELD - 0.7, 0.3 - FIELD)), CELLS, 0.02, {}, {
        "diffusivity": 0.05, "velocity.x": FIELD - 0.7, "velocity.y": 0.3 - FIELD}),
    "flow, central": (fd.AdvectionDiffusion(0.05, velocity=(0.3, -0.2), scheme="central"), RING, 0.02, {}, {
        "diffusivity": 0.05, "velocity.x": 0.3, "velocity.y": -0.2}),
    "flow, not learned": (fd.AdvectionDiffusion(0.05, velocity=(0.3, -0.2)), NODES, 0.02, {}, {}),
    "D(u)": (fd.Heat("a + b*u**2", parameters={"a": 0.5, "b": 1.0}, bounds=(0, 1.5)), CELLS, 1e-3, dict(
        boundary={"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 0.5, 0.2))}), {"a": 0.5, "b": 1.0, "x low": 1.0}),
    "R(u)": (fd.Heat(1.0, capacity="1 + k*u**2", parameters={"k": 0.5}, source=0.3), NODES, 2e-3, dict(
        boundary=HELD), {"diffusivity": 1.0, "k": 0.5, "source": 0.3}),
    "D(u), R(u), rk4": (fd.Heat("a + u", capacity="1 + a*exp(-u)", parameters={"a": 0.5}, bounds=(0, 1.5)), fd.Grid(9),
                        1e-3, dict(method="rk4", steps=2), {"a": 0.5}),
    "porous medium": (fd.PorousMedium(m=2.0, D=0.5), RING, 1e-3, dict(batch=2), {"m": np.array([2.0, 2.0]), "D": 0.5}),
    "sorption": (fd.DiffusionSorption(), fd.Grid(9), 5.0, dict(boundary={"x": (fd.Dirichlet(1.0), None)}), {
        "k": 3.5e-4, "diffusivity": 5e-4}),
    "Burgers": (fd.Burgers(nu=0.02), fd.Grid(12, centering="cells"), 5e-3, dict(
        boundary={"x": (fd.Dirichlet(0.9), None)}, batch=2), {"nu": 0.02, "x low": 0.9}),
    "Burgers, shocks": (fd.Burgers(nu=0.0001), fd.Grid(12, periodic=True), 5e-3, {}, {"nu": 0.0001}),
    "rk4, D(x)": (fd.Heat(FIELD), NODES, 2e-3, dict(boundary=HELD, method="rk4", steps=2), {"diffusivity": FIELD,
                                                                                          "x high": 0.4}),
    "rk4, Gray-Scott": (GS, SQUARE, 0.5, dict(method="rk4", steps=3), {"F": 0.04, "k": 0.06, "Du": 0.02}),
    "order 4, all walls": (fd.Heat(1.3, order=4), CELLS, 1e-3, dict(boundary=WALLS), {
        "diffusivity": 1.3, "x low": 1.0, "y low": np.full(6, 0.3)}),
    "order 6, nodes": (fd.Heat((1.0, 0.5), order=6), NODES, 1e-3, dict(boundary=HELD, batch=2), {
        "diffusivity.x": 1.0, "diffusivity.y": 0.5, "x low": 0.1, "x high": 0.4}),
    "a matrix": (fd.Heat(MATRIX), CELLS, 2e-3, dict(boundary={"x": (fd.Dirichlet(1.0), fd.Neumann(0.2))}), {
        "diffusivity": MATRIX, "x low": 1.0}),
    "a matrix field": (fd.Heat(((FIELD, 0.2), (0.2, FIELD))), RING, 1e-3, {}, {}),
    "upwind3, a field": (fd.AdvectionDiffusion(0.05, velocity=(FIELD - 0.7, 0.3 - FIELD), scheme="upwind3"), RING, 0.01,
                         {}, {"diffusivity": 0.05, "velocity.x": FIELD - 0.7, "velocity.y": 0.3 - FIELD}),
    "upwind2": (fd.AdvectionDiffusion(0.05, velocity=(0.3, -0.2), scheme="upwind2"), CELLS, 0.01, dict(
        boundary={"x": (fd.Dirichlet(1.0), None)}), {"diffusivity": 0.05, "x low": 1.0}),
    "Cahn-Hilliard": (fd.CahnHilliard(kappa=0.5, M=0.8), LONG, 1e-2, {}, {"kappa": 0.5, "M": 0.8}),
    "Swift-Hohenberg": (fd.SwiftHohenberg(r=0.2, g=0.5), LONG, 1e-2, dict(
        boundary={"x": (fd.Dirichlet(0.2), fd.Neumann("-u**3"))}), {"r": 0.2, "q": 1.0, "g": 0.5}),
    "rkl2": (fd.Heat(1.0, source=2.0), CELLS, 2e-2, dict(
        boundary={"x": (fd.Dirichlet("sin(9*t)"), fd.Robin(1.0, 0.5, 0.2))}, method="rkl2", steps=2), {
            "diffusivity": 1.0, "source": 2.0, "x high": 0.2}),
}


def made(name, steps=4):
    """(solver, start, tensors by name) of a case."""
    equation, grid, dt, how, learned = CASES[name]
    how = dict(how)
    batch, steps = how.pop("batch", None), how.pop("steps", steps)
    solver = fd.nn.Solver(equation, grid, dt=dt, steps=steps, **how)
    C = len(equation.names)
    shape = (*([batch] if batch else []), *([C] if C > 1 else []), *grid.shape)
    u = torch.tensor(0.2 + 0.5 * np.random.default_rng(1).random(shape), requires_grad=True)
    return solver, u, {k: torch.tensor(v, dtype=F64, requires_grad=True) for k, v in learned.items()}


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    """The march is that of fd.repeat, and its gradient that of finite differences, by all that goes in."""
    solver, u, given = made(name)
    equation, grid, dt, how, _ = CASES[name]
    how = {k: v for k, v in how.items() if k in ("boundary", "method")}
    expected = fd.repeat(fd.Stepper(equation, grid, dt=dt, **how), solver.steps)(u.detach().numpy())
    assert np.abs(solver(u, parameters=given).detach().numpy() - expected).max() < 1e-14
    assert torch.autograd.gradcheck(lambda v, *w: solver(v, parameters=dict(zip(given, w))), (u, *given.values()))


@pytest.mark.parametrize("name", ["sorption", "rk4, D(x)"])
def test_what_is_left_in_memory_does_not_matter(name):
    """A run that blew up leaves NaN in the memory of its thread; held cells look at ghosts that nobody fills."""
    solver, u, given = made(name)

    def gradients(value):
        scratch(1 << 20, np.float64)[:] = value
        return torch.autograd.grad(solver(u, parameters=given).square().sum(), (u, *given.values()))

    for want, got in zip(gradients(0.0), gradients(np.nan), strict=True):
        assert torch.equal(want, got)


# -- kernels -----------------------------------------------------------------------------------------------------------


def _walled(shape):
    sides = {(0, 0, 0): Side(alpha=0.5, beta=0.3, gamma=0.0), (0, len(shape) - 1, 1): Side(2, value=0.0)}
    return make_edges(shape, [False] * len(shape), np.float64, sides, batch=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_dot_product(threads):
    """<v, J u> = <J^T v, u> to rounding, over many steps and several segments, on rows shared out and not."""
    u, v = rng.standard_normal((2, 1, 1, 40, 23))
    edges, rate = _walled((40, 23)), np.full((1, 2), 0.2)
    rule, back = heat.rule(rate, np.float64), adjoint.back_rates(rate, np.float64)
    ju = march(rule, u, edges, 50)
    jv = march_adjoint(rule, back, np.zeros_like(u), v, edges, 50, walls=False, threads=threads).start
    assert abs(np.vdot(v, ju) - np.vdot(jv, u)) < 1e-13 * np.abs(v).sum()


@pytest.mark.parametrize("name", ["D(x), all walls", "D(x), nodes, mixed", "flow, a field", "rk4, D(x)", "rkl2"])
def test_by_the_start_alone_a_linear_march_is_transposed_by_a_march(name):
    """The fast way, a march with transposed weights, gives what the general one gives."""
    solver, u, given = made(name)
    cot = torch.rand_like(u)
    (fast,) = torch.autograd.grad(solver(u, parameters={k: v.detach() for k, v in given.items()}), u, cot)
    held = given or {"diffusivity": torch.tensor(0.05, dtype=F64, requires_grad=True)}
    slow = torch.autograd.grad(solver(u, parameters=held), (u, *held.values()), cot)[0]
    assert torch.allclose(fast, slow, rtol=1e-12, atol=1e-14)


def test_result_does_not_depend_on_threads_and_checkpoints():
    weights = rng.uniform(0.05, 0.2, (4, 1, 48, 37))
    edges = _walled((48, 37))
    rule, back = variable.rule(weights, np.float64), adjoint.back_cells(weights, edges, np.float64)
    u, cot = rng.standard_normal((2, 1, 1, 48, 37))
    plans = [None, Checkpoints(1, 3), Checkpoints(7, 0), Checkpoints(5, 2), Checkpoints(23, 0)]
    found = [march_adjoint(rule, back, u, cot, edges, 23, threads=threads, plan=plan)
             for threads in (1, 2, 3) for plan in plans]
    for other in found[1:]:
        for a, b in zip(found[0], other):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("blocks", "slots"), [(1, 0), (2, 0), (7, 1), (10, 3), (35, 3), (64, 5), (100, 2)])
def test_checkpointing_is_optimal(blocks, slots):
    """The blocks marched again are as few as Griewank and Walther's bound says."""
    marched = 0

    def reverse(n, s):
        nonlocal marched
        if n == 1:
            return
        if s == 0:
            marched += n * (n - 1) // 2
            return
        from fastdiff.kernels._adjoint import split

        m = split(n, s)
        marched += m
        reverse(n - m, s - 1)
        reverse(m, s)

    reverse(blocks, slots)
    best = {}

    def least(n, s):
        if n == 1:
            return 0
        if s == 0:
            return n * (n - 1) // 2
        if (n, s) not in best:
            best[n, s] = min(m + least(n - m, s - 1) + least(m, s) for m in range(1, n))
        return best[n, s]

    assert marched == least(blocks, slots) == _repeated(blocks, slots)


def test_memory_is_as_asked():
    state, step = 1000, 1200
    for memory in (1200, 2300, 5000, 20_000, 10**6):
        plan = checkpoints(1000, state, step, memory)
        assert plan.count * state + plan.length * step <= memory
    default = checkpoints(10_000, 4 << 20, 4 << 20)
    assert default.count + default.length < 220  # of 10 000 steps
    with pytest.raises(ValueError, match="less than one step takes"):
        checkpoints(10, state, step, 100)


def test_kept_states_are_those_of_the_march():
    u, edges = rng.random((1, 1, 30, 7)), make_edges((30, 7), [True, False], np.float64)
    rule, plan = heat.rule(np.full((1, 2), 0.2), np.float64), Checkpoints(4, 2)
    new, kept = march_kept(rule, u, edges, 20, plan)
    assert len(kept) == len(plan.positions(20)) == 2
    for at, state in zip(plan.positions(20), kept):
        assert np.array_equal(state, march(rule, u, edges, at))
    assert np.array_equal(new, march(rule, u, edges, 20))


@pytest.mark.parametrize("grid", [CELLS, NODES, RING, fd.Grid((6, 5), centering="cells", geometry="cylindrical"),
                                  fd.Grid.graded(np.linspace(0, 1, 6) ** 1.5, np.linspace(0, 1, 5))], ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
def test_weights_are_those_of_the_equations(grid, mirrored):
    D = torch.tensor(FIELD[None])
    for axis in range(2):
        plain = _linear.diffusion(grid, D.numpy(), axis, mirrored)
        for a, b in zip(_weights.diffusion(grid, D, axis, mirrored), plain):
            assert np.allclose(a.numpy(), b, rtol=1e-14, atol=0)
        if grid.plain or grid.centering == "cells":
            for scheme in ("upwind1", "central"):
                v = D - 0.9
                for a, b in zip(_weights.advection(grid, v, axis, scheme),
                                _linear.advection(grid, v.numpy(), axis, scheme)):
                    assert np.allclose(a.numpy(), b, rtol=1e-13, atol=1e-14)


# -- torch -------------------------------------------------------------------------------------------------------------


def test_against_torch_autograd_through_slices():
    from fastdiff.bench.adjoint import same

    same(32)


def test_benchmark_runs(tmp_path):
    from fastdiff.bench.adjoint import main

    assert main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "256" not in (tmp_path / "adjoint.md").read_text() and (tmp_path / "adjoint.json").exists()


def test_func_grad_and_vmap():
    solver, u, given = made("D(x), all walls")
    names, values = list(given), [v.detach() for v in given.values()]
    u = u.detach()

    def loss(v, *w):
        return solver(v, parameters=dict(zip(names, w))).square().sum()

    plain = torch.autograd.grad(loss(u.requires_grad_(), *(w.requires_grad_() for w in values)), [u, *values])
    found = torch.func.grad(loss, tuple(range(len(values) + 1)))(u.detach(), *(w.detach() for w in values))
    for a, b in zip(plain, found):
        assert torch.equal(a, b)
    many = torch.stack([u.detach(), 0.5 * u.detach(), 0.1 + u.detach()])
    values = [w.detach() for w in values]
    each = [torch.func.grad(loss, (0, 1))(v, *values) for v in many]
    mapped = torch.vmap(torch.func.grad(loss, (0, 1)), (0, *[None] * len(values)))(many, *values)
    for k, parts in enumerate(zip(*mapped)):
        for a, b in zip(parts, each[k]):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    fields = torch.stack([values[0], 1.1 * values[0]])
    mapped = torch.vmap(torch.func.grad(loss, (0, 1)), (None, 0, *[None] * (len(values) - 1)))(u.detach(), fields,
                                                                                              *values[1:])
    for k, D in enumerate(fields):
        for a, b in zip((m[k] for m in mapped), torch.func.grad(loss, (0, 1))(u.detach(), D, *values[1:])):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_jacobian_rows_by_vmap_over_cotangents():
    solver, u, given = made("D, flux")
    out, pull = torch.func.vjp(lambda v, D: solver(v, diffusivity=D), u.detach(), given["diffusivity"].detach())
    cots = torch.stack([torch.ones_like(out), torch.randn_like(out)])
    mapped = torch.vmap(pull)(cots)
    for k, cot in enumerate(cots):
        for a, b in zip((m[k] for m in mapped), pull(cot)):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_compile_fullgraph():
    torch._dynamo.reset()
    solver, u, given = made("D(x), no flux")
    loss = lambda v, D: (solver(v, diffusivity=D) ** 2).sum()
    D = given["diffusivity"]
    plain = torch.autograd.grad(loss(u, D), (u, D))
    fast = torch.compile(loss, fullgraph=True)
    for a, b in zip(plain, torch.autograd.grad(fast(u, D), (u, D))):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_operators_pass_opcheck():
    solver, u, given = made("D(x), no flux")
    layout, numbers = solver.problem.numbers({k: v.detach() for k, v in given.items()}, 1, u.detach())
    state, numbers = u.detach()[None, None], [n.detach() for n in numbers]
    torch.library.opcheck(_march, (state, numbers, layout.key, 0.0, 6, True))
    _, kept = _march(state, numbers, layout.key, 0.0, 6, True)
    torch.library.opcheck(_adjoint, (state, state, kept, numbers, layout.key, 0.0, 6, [True] * len(numbers)))


def test_twice_and_forward_mode_are_refused():
    solver, u, _ = made("D(x), no flux")
    (first,) = torch.autograd.grad(solver(u).square().sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiates once"):
        torch.autograd.grad(first.sum(), u)
    with pytest.raises((NotImplementedError, RuntimeError), match="jvp|forward"):
        torch.func.jvp(solver, (u.detach(),), (u.detach(),))


def test_precision_and_device():
    solver, u, _ = made("D(x), no flux")
    assert solver(u.detach().float()).dtype == torch.float32
    with pytest.raises(TypeError, match=r"\.float\(\)"):
        solver(u.detach().half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert solver(u.detach().bfloat16()).dtype == torch.float32
    with pytest.raises(NotImplementedError, match="runs on the CPU and on CUDA GPUs, not on meta"):
        solver(torch.empty(6, 5, device="meta"))
    with pytest.raises(TypeError, match="torch tensors"):
        solver(u.detach().numpy())


def test_strided_tensors_and_in_place_changes():
    solver, u, _ = made("D(x), no flux")
    wide = torch.rand(6, 10, dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(solver(wide[:, ::2]).square().sum(), wide)
    (h,) = torch.autograd.grad(solver(wide[:, ::2].contiguous()).square().sum(), wide)
    assert torch.equal(g, h)
    v = u.detach().clone().requires_grad_()
    w = v * 1
    out = solver(w).sum()
    w.detach()[0, 0] = 3.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_wide_steps_beyond_the_limit_are_refused_and_matrices_checked():
    limit = fd.Heat(1.0, order=4).stable_dt(CELLS)
    solver = fd.nn.Solver(fd.Heat(1.0, order=4), CELLS, dt=0.9 * limit)
    u = torch.rand(6, 5, dtype=F64)
    solver(u, diffusivity=torch.tensor(1.1))
    with pytest.raises(ValueError, match=r"unstable.*fd\.nn\.Bounded"):
        solver(u, diffusivity=torch.tensor(1.2))
    solver = fd.nn.Solver(fd.CahnHilliard(), LONG, dt=0.9 * fd.CahnHilliard().stable_dt(LONG))
    with pytest.raises(ValueError, match="unstable"):
        solver(u, kappa=torch.tensor(1.5))
    with pytest.raises(ValueError, match=r"expected a matrix \(2, 2\)"):
        fd.nn.Solver(fd.Heat(MATRIX), CELLS)(u, diffusivity=torch.tensor(1.0))


def test_unstable_and_senseless_parameters_are_refused():
    solver, u, _ = made("D(x), no flux")
    with pytest.raises(ValueError, match=r"unstable.*fd\.nn\.Bounded"):
        solver(u, diffusivity=torch.full((6, 5), 50.0, dtype=F64))
    with pytest.raises(ValueError, match="negative"):
        solver(u, diffusivity=torch.full((6, 5), -1.0, dtype=F64))
    with pytest.raises(ValueError, match="NaN"):
        solver(u, diffusivity=torch.full((6, 5), float("nan"), dtype=F64))
    with pytest.raises(ValueError, match="unknown parameter 'D'"):
        solver(u, D=1.0)
    with pytest.raises(ValueError, match="expected a number"):
        solver(u, diffusivity=torch.ones(4, 4))
    with pytest.raises(ValueError, match="give u a batch axis of 3"):
        made("Gray-Scott")[0](torch.ones(2, 6, 5), F=torch.tensor([0.04, 0.03, 0.02]))
    with pytest.raises(ValueError, match=r"u has shape"):
        solver(torch.ones(3, 3))
    gray, v, _ = made("Gray-Scott")
    with pytest.raises(fd.Diverged if hasattr(fd, "Diverged") else FloatingPointError, match="NaN or infinite"):
        gray(v.detach() * 1e200, steps=10)


def _problem_of(name):
    """(equation, grid, boundary, dt) of every public equation, each with what is needed to be one."""
    line, ring = fd.Grid(8, extent=8.0), fd.Grid(8, extent=8.0, periodic=True)
    return {
        "AdvectionDiffusion": (fd.AdvectionDiffusion(0.5, velocity=0.1), line),
        "ReactionDiffusion": (fd.ReactionDiffusion({"u": 0.5}, {"u": "-k*u"}, {"k": 0.1}), line),
        "Heat": (fd.Heat(0.5), line), "Burgers": (fd.Burgers(nu=0.1), ring), "PorousMedium": (fd.PorousMedium(), line),
    }.get(name) or (getattr(fd, name)(), line)


EQUATIONS = [name for name in fd.__all__ if hasattr(getattr(fd, name), "euler")]


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("method", ["euler", "rk4", "rkl2", "rk23", "crank_nicolson", "spectral", "etdrk4", "strang"])
def test_every_equation_and_method_is_differentiable_or_says_so(name, method):
    """Made, which is as far as a problem without an adjoint gets, or refused with what there is instead."""
    equation, grid = _problem_of(name)
    wide = name in ("CahnHilliard", "SwiftHohenberg")
    if method in ("euler", "rk4", "rkl2") and not (wide and method != "euler"):
        solver = fd.nn.Solver(equation, grid, dt=1e-4, method=method)
        assert solver.known
    else:
        with pytest.raises(NotImplementedError, match="'euler', 'rk4', 'rkl2'|take \"euler\""):
            fd.nn.Solver(equation, grid, dt=1e-4, method=method)


def test_methods_without_adjoint_are_refused():
    with pytest.raises(NotImplementedError, match='order.*take "euler"'):
        fd.nn.Solver(fd.Heat(1.0, order=4), fd.Grid(20), dt=1e-4, method="rk4")
    with pytest.raises(NotImplementedError, match="Python function of u"):
        fd.nn.Solver(fd.Heat(1.0), fd.Grid(20), dt=1e-4, boundary=fd.Neumann(lambda u: -u))
    with pytest.raises(NotImplementedError, match="the wall opposite"):
        fd.nn.Solver(fd.Heat(1.0), fd.Grid(20), dt=1e-4, boundary={"x": (fd.Dirichlet("0.9*u_far"), fd.Neumann(0.0))})
    with pytest.raises(NotImplementedError, match="on u and on the place"):
        fd.nn.Solver(fd.Heat("1 + x*u**2"), fd.Grid(20), dt=1e-4)
    with pytest.raises(NotImplementedError, match=r"reactions with D\(x\)"):
        fd.nn.Solver(fd.ReactionDiffusion(diffusivity={"u": "1 + x"}, reaction={"u": "-u"}), fd.Grid(20), dt=1e-4)


def test_functional_takes_tensors_in_the_equation():
    D, g = torch.tensor(FIELD, requires_grad=True), torch.tensor(0.4, dtype=F64, requires_grad=True)
    u = torch.tensor(FIELD, requires_grad=True)
    before = len(PROBLEMS)
    for _ in range(2):
        out = fd.nn.functional.march(fd.Heat(D), u, NODES, dt=2e-3, steps=4, boundary={"x": fd.Dirichlet(g)})
        found = torch.autograd.grad(out.square().sum(), (u, D, g))
        D = (D.detach() * 1.01).requires_grad_()
    assert len(PROBLEMS) == before + 1
    solver = fd.nn.Solver(fd.Heat(FIELD), NODES, dt=2e-3, steps=4, boundary={"x": fd.Dirichlet(0.4)})
    held = {"diffusivity": (D / 1.01).detach().requires_grad_(), "x low": g.detach().requires_grad_(),
            "x high": g.detach().requires_grad_()}
    out = solver(u, parameters=held)
    other = torch.autograd.grad(out.square().sum(), (u, *held.values()))
    assert torch.allclose(found[0], other[0], rtol=1e-9)
    assert torch.allclose(found[2], other[2] + other[3], rtol=1e-9)


def test_solver_learns_and_is_saved():
    solver = fd.nn.Solver(fd.Heat(1.0), CELLS, dt=1e-3, steps=5, learn=("diffusivity", "x low"), dtype=F64)
    assert {n: tuple(p.shape) for n, p in solver.named_parameters()} == {"learned.diffusivity": (), "learned.x_low": ()}
    solver(torch.ones(6, 5, dtype=F64)).sum().backward()
    assert solver.value("x low").grad is not None
    other = fd.nn.Solver(fd.Heat(2.0), CELLS, dt=1e-3, steps=5, learn=("diffusivity", "x low"), dtype=F64)
    other.load_state_dict(solver.state_dict())
    assert other.value("diffusivity") == 1.0
    bounded = fd.nn.Solver(fd.Heat(1.0), CELLS, dt=1e-3, learn={"diffusivity": fd.nn.Bounded(1.0, 0.1, 5.0)})
    assert [n for n, _ in bounded.named_parameters()] == ["modules_of.diffusivity.raw"]
    assert "Heat" in repr(bounded) and "diffusivity" in bounded.known


def test_rollout_and_batches():
    solver, u, _ = made("Gray-Scott")
    frames = solver.rollout(u, 3)
    assert frames.shape == (3, 2, 6, 5)
    assert torch.equal(frames[2], solver(u, steps=3 * solver.steps))
    batch = torch.stack([u, u * 0.9])
    assert torch.equal(solver.rollout(batch, 2)[1], solver.rollout(batch[1], 2))


def test_solver_in_the_loop():
    """The gradient reaches a network through the solver, and the solver's parameter through the network."""
    torch.manual_seed(0)
    solver = fd.nn.Solver(fd.Heat(1.0), fd.Grid(32, centering="cells"), dt=1e-4, steps=10, learn=("diffusivity",))
    model = fd.nn.Hybrid(solver, fd.nn.SurrogateCNN(boundary="neumann"), mode="bypass")
    u = torch.rand(2, 1, 32)
    fd.nn.rollout(model, u, 2)[:, -1].square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0
               for p in model.parameters())
