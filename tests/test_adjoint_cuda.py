"""The transposed march on the GPU against the CPU's: kernels, and the operators of fd.nn.Solver.

In Numba's simulator tensors on the CPU play those of the GPU.
"""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.kernels._edges import HOLD, Side, make_edges
from fastdiff.kernels.adjoint import _rules, reference

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


@pytest.mark.cuda
@pytest.mark.parametrize("plan", [(11, 0), (4, 2), (1, 2), (3, 0)])
def test_checkpoints_change_nothing(rng, plan):
    """All states kept, all that are needed, some, or none: the gradients are those of the reference."""
    from numba import cuda

    from fastdiff.kernels._adjoint import Checkpoints
    from fastdiff.kernels._adjoint_cuda import march_adjoint_cuda, march_kept_cuda, to_host

    steps, sides = 11, {(0, 0, 0): Side(HOLD, value=rng.random((1, 12, 1))), (0, 0, 1): Side(alpha=0.5, beta=0.2)}
    edges = make_edges((9,), [False], np.float64, sides, batch=2)
    u, cot = rng.random((2, 2, 1, 9))
    weights, source = rng.uniform(0.1, 0.3, (2, 1, 9)), rng.random((1, 9))
    rule, back = _rules(u, weights, edges, "cells", None, source)
    want = reference(u, cot, weights, edges, steps, "cells", None, source)
    plan = Checkpoints(*plan)
    there = [cuda.to_device(a) for a in (u, cot)]
    _, kept = march_kept_cuda(rule, there[0], edges, steps, plan)
    assert len(kept) == plan.count
    for states in (None, kept):
        found = to_host(march_adjoint_cuda(rule, back, *there, edges, steps, plan=plan, kept=states), 1, back.grads)
        for a, b in zip(found, want):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(there[0].copy_to_host(), u)


CASES = {  # equation, shape, periodic, boundary, names of what is differentiated by
    "D": (fd.Heat(0.7), (7,), False, {"x": (fd.Dirichlet("sin(t)"), fd.Robin(1.0, 2.0, 0.5))}, ["diffusivity"]),
    "D(x)": (fd.Heat("1 + 0.3*x*y"), (5, 4), (False, True), {"x": (fd.Dirichlet(), fd.Neumann(0.3))}, ["diffusivity"]),
    "walls": (fd.Heat("1 + x"), (6,), False, {"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 2.0, 0.5))},
              ["x low", "x high", "x high.a"]),
    "carried": (fd.AdvectionDiffusion(velocity=(0.5, -0.2), diffusivity=0.3), (4, 5), True, None,
                ["velocity.x", "diffusivity"]),
    "D(u)": (fd.Heat("0.5 + u**2"), (6,), False, {"x": (fd.Neumann(0.1), fd.Dirichlet(0.2))}, []),
    "reaction": (fd.GrayScott(), (4, 4), True, None, ["F", "k"]),
    "rk4": (fd.Heat("1 + x"), (6,), False, {"x": (fd.Dirichlet("sin(t)"), fd.Robin(1.0, 2.0, 0.5))}, ["diffusivity"]),
    "rkl2": (fd.GrayScott(), (3, 4), True, None, ["F", "Dv"]),
    "rk4, start alone": (fd.Heat(0.5), (6,), False, {"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 2.0, 0.5))}, []),
    "start alone": (fd.Heat("1 + x"), (6,), False, {"x": (fd.Dirichlet(1.0), fd.Robin(1.0, 2.0, 0.5))}, []),
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_slope(name):
    """<gradient, direction> against a central difference of the march itself, through the parameters' own formulas."""
    from fastdiff.nn._problem import Problem
    from fastdiff.nn.functional import solver

    equation, shape, periodic, boundary, learned = CASES[name]
    grid, steps, h = fd.Grid(shape, periodic=periodic, extent=(1.0,) * len(shape)), 5, 1e-6
    how: dict[str, Any] = dict(boundary=boundary, method=name.partition(",")[0] if name.startswith("rk") else "euler")
    dt = Problem(equation, grid, boundary=boundary).dt * (3 if how["method"] == "rkl2" else 0.9)
    problem = Problem(equation, grid, dt=dt, **how)
    make = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, dtype=torch.float64, generator=make)
    u, along, cot = draw(3, 2, len(equation.names), *shape)
    given = {n: torch.as_tensor(np.array(problem.start(n))).double() for n in learned}
    change = {n: draw(*v.shape) * v.abs().max() for n, v in given.items()}

    def numbers(s):
        layout, made = problem.numbers({n: (v + s * change[n]).requires_grad_() for n, v in given.items()}, 2, u)
        return layout.key, made, [n.requires_grad for n in made]

    def march(s):
        key, made, _ = numbers(s)
        return solver._march_cuda(u + s * along, [n.detach() for n in made], key, 0.1, steps, True)

    (low, _), (_, kept), (high, _) = march(-h), march(0.0), march(h)
    key, made, wanted = numbers(0.0)
    args = cot, u, kept, [n.detach() for n in made], key, 0.1, steps, wanted
    found = solver._adjoint_cuda(*args)
    assert [g.shape for g in found] == [g.shape for g in solver._adjoint_fake(*args)]
    slope = (found[0] * along).sum()
    for g, a, b, want in zip(found[1:], numbers(-h)[1], numbers(h)[1], wanted):
        slope = slope + ((g * (b - a)).sum() / (2 * h) if want else 0.0)
    want = (cot * (high - low)).sum() / (2 * h)
    slope = slope.detach()
    assert float(abs(slope - want)) <= 1e-7 * float(abs(want) + (cot * along).abs().sum())
    assert any(wanted) == bool(learned)


@pytest.mark.cuda
def test_what_has_no_adjoint_on_the_gpu_says_so():
    from fastdiff.nn._problem import Problem
    from fastdiff.nn.functional import solver

    def march(boundary):
        problem = Problem(fd.Heat(1.0), fd.Grid(6), boundary=boundary)
        layout, numbers = problem.numbers({}, 1, torch.ones(1, dtype=torch.float64))
        solver._march_cuda(torch.ones(1, 1, 6, dtype=torch.float64), numbers, layout.key, 0.0, 3, True)

    with pytest.raises(NotImplementedError, match="depends on the field has an adjoint on the CPU alone"):
        march(fd.Neumann("-u**2"))


@pytest.mark.long
@pytest.mark.skipif(SIMULATED, reason="this is the simulator")
def test_all_of_it_in_the_simulator():
    """The variable is read when Numba is imported: the simulator needs a process of its own."""
    pytest.importorskip("numba_cuda", reason="the simulator comes with numba-cuda")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-x", "-p", "no:cacheprovider", "-m", "cuda", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed" in run.stdout and "skipped" not in run.stdout, run.stdout
