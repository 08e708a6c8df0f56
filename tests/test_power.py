"""Many equal linear steps at once (kernels/power.py): the same numbers and gradients as one by one."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.kernels.power import SPAN, _tails, pays, power_of
from fastdiff.nn.functional.solver import _adjoint, _march

F64 = torch.float64
CELLS, NODES = fd.Grid((6, 5), centering="cells"), fd.Grid((6, 5))
FIELD = 0.5 + np.random.default_rng(0).random((6, 5))
WALLS = {"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 0.5, 0.2)), "y": (fd.Neumann(0.3), fd.Flux(0.2))}

# name: equation, grid, dt, walls, what is differentiated by
CASES = {
    "closed": (fd.Heat(FIELD), CELLS, 2e-3, None, {"diffusivity": FIELD}),
    "all walls": (fd.Heat(FIELD), CELLS, 1e-3, WALLS, {"diffusivity": FIELD, "x low": 1.0, "x high": 0.2,
                                                       "y low": np.full(6, 0.3)}),
    "initial values held": (fd.Heat(FIELD), NODES, 2e-3, fd.Dirichlet(), {"diffusivity": FIELD}),
    "nodes, mixed": (fd.Heat(FIELD), NODES, 2e-3, {"x": (fd.Neumann(0.1), fd.Dirichlet(0.4))}, {
        "diffusivity": FIELD, "x low": 0.1, "x high": 0.4}),
}


def made(name, steps=300, dtype=F64, **how):
    """(solver, start, tensors by name) of a case."""
    equation, grid, dt, walls, learned = CASES[name]
    solver = fd.nn.Solver(equation, grid, dt=dt, steps=steps, boundary=walls, **how)
    u = torch.tensor(0.2 + 0.5 * np.random.default_rng(1).random(grid.shape), dtype=dtype, requires_grad=True)
    return solver, u, {k: torch.tensor(v, dtype=F64, requires_grad=True) for k, v in learned.items()}


def layout_of(solver, u, given):
    """(layout, numbers) of a call."""
    layout, numbers = solver.problem.numbers({k: v.detach() for k, v in given.items()}, 1, u.detach())
    return layout, [n.detach() for n in numbers]


@pytest.mark.parametrize("name", CASES)
def test_equals_steps_one_by_one(name):
    solver, u, given = made(name)
    assert layout_of(solver, u, given)[0].at_once(300, 8)
    slow, _, _ = made(name, shortcut=False)
    assert not layout_of(slow, u, given)[0].at_once(300, 8)
    a, b = solver(u, parameters=given), slow(u, parameters=given)
    assert (a - b).abs().max() < 1e-13
    cot = torch.rand_like(a)
    for x, y in zip(*(torch.autograd.grad(r, [u, *given.values()], cot) for r in (a, b))):
        assert (x - y).abs().max() < 1e-12 * max(1.0, float(y.abs().max()))


def test_gradcheck():
    solver, u, given = made("all walls")
    assert torch.autograd.gradcheck(lambda v, *w: solver(v, parameters=dict(zip(given, w))), (u, *given.values()))


def test_float32_in_spans_is_as_exact_as_steps():
    """5000 steps, cut into two spans: noise in float32 against float64, no worse than what single steps lose."""
    rng = np.random.default_rng(2)
    grid, D = fd.Grid((40, 37), centering="cells"), 0.5 + rng.random((40, 37))
    u, cot = torch.tensor(rng.random((2, 40, 37)))
    found = {}
    for how in ((F64, False), (torch.float32, False), (torch.float32, True)):
        solver = fd.nn.Solver(fd.Heat(D), grid, dt=1e-4, steps=5000, shortcut=how[1])
        v, by = u.to(how[0]).requires_grad_(), torch.tensor(D, requires_grad=True)
        new = solver(v, diffusivity=by)
        found[how] = new, *torch.autograd.grad(new, (v, by), cot.to(how[0]))
    assert power_of(5000, 1.0, 4).stages < 1000 and len(power_of(5000, 1.0, 4).tails) == 2
    for exact, steps, once in zip(*found.values()):
        lost, less = ((a.double() - exact).abs().max() / exact.abs().max() for a in (steps, once))
        assert less < lost + 1e-6


def test_a_constant_field_keeps_every_bit_and_mass_is_kept():
    solver, u, _ = made("closed", dtype=torch.float32)
    flat = torch.full((6, 5), 0.3)
    assert torch.equal(solver(flat), flat)
    assert abs(float(solver(u.detach()).double().mean() - u.detach().double().mean())) < 1e-7


def test_result_does_not_depend_on_threads():
    rng = np.random.default_rng(3)
    grid, D = fd.Grid((67, 37), centering="cells"), 0.5 + rng.random((67, 37))
    u, found = torch.tensor(rng.random((67, 37)), dtype=torch.float32), []
    for threads in (1, 2, 3):
        solver = fd.nn.Solver(fd.Heat(D), grid, dt=3e-5, steps=300, threads=threads)
        v, by = u.clone().requires_grad_(), torch.tensor(D, requires_grad=True)
        new = solver(v, diffusivity=by)
        found.append((new, *torch.autograd.grad(new.square().sum(), (v, by))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize(("steps", "rho", "tolerance"), [(50, 0.1, 2e-16), (600, 0.9, 2e-16), (601, 1.0, 2e-16),
                                                         (1000, 1.0, 1e-11)])
def test_coefficients_are_those_of_the_power(steps, rho, tolerance):
    tails = _tails(steps, rho, tolerance)
    weights = np.append(tails[:-1] - tails[1:], tails[-1])
    z = np.linspace(-1, 1, 999)
    assert np.abs(np.polynomial.chebyshev.chebval(z, weights) - (1 - rho + rho * z) ** steps).max() < 60 * tolerance
    assert len(tails) < 1.2 * np.sqrt(2 * rho * steps * np.log(2 / tolerance)) + 8


def test_only_where_it_is_right_and_pays():
    assert not pays(100, 4) and pays(300, 4) and not pays(200, 8) and pays(10 * SPAN, 8)
    Heat, closed = fd.Heat, {}
    cases = [(Heat("1 + u", bounds=(0, 1)), closed), (Heat(1.0, source="sin(t)"), closed),
             (Heat(1.0), dict(boundary={"x": (fd.Dirichlet("sin(t)"), None)})),
             (Heat(1.0), dict(boundary={"x": (fd.Neumann("-u**4"), None)})), (Heat(1.0), dict(method="rk4")),
             (Heat(1.0), dict(boundary={"x": (fd.Robin(-1.0, 0.5, 0.2), None)})),  # it grows
             (fd.AdvectionDiffusion(1.0, velocity=(0.1, 0.2)), closed), (fd.FisherKPP(), closed)]
    for equation, how in cases:
        solver = fd.nn.Solver(equation, CELLS, dt=1e-4, steps=1000, **how)
        u = torch.rand(6, 5, dtype=F64)
        assert not layout_of(solver, u, {})[0].at_once(1000, 8), (equation, how)
    robin, u, _ = made("all walls")
    learned = {"x high.a": torch.tensor(1.0, dtype=F64)}
    assert not layout_of(robin, u, learned)[0].at_once(1000, 8)


def test_func_vmap_compile_and_opcheck():
    solver, u, given = made("closed")
    D, u = given["diffusivity"].detach(), u.detach()
    loss = lambda v, w: solver(v, diffusivity=w).square().sum()
    plain = torch.func.grad(loss, (0, 1))(u, D)
    many = torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))(torch.stack([u, 0.5 * u]), D)
    assert all(torch.allclose(m[0], p, rtol=1e-11, atol=1e-13) for m, p in zip(many, plain))
    fast, v = torch.compile(loss, fullgraph=True, backend="aot_eager"), u.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(fast(v, D), v)[0], plain[0], rtol=1e-12, atol=1e-14)
    layout, numbers = layout_of(solver, u, {"diffusivity": D})
    state = u[None, None]
    torch.library.opcheck(_march, (state, numbers, layout.key, 0.0, 300, True))
    _, kept = _march(state, numbers, layout.key, 0.0, 300, True)
    torch.library.opcheck(_adjoint, (state, state, kept, numbers, layout.key, 0.0, 300, [True] * len(numbers)))


def test_unstable_steps_are_refused():
    solver, u, _ = made("closed")
    with pytest.raises(ValueError, match=r"unstable.*fd\.nn\.Bounded"):
        solver(u, diffusivity=torch.full((6, 5), 50.0, dtype=F64))
