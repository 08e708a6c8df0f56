"""Crank-Nicolson with its states on the GPU: the same numbers as on the CPU, in Numba's simulator or on a GPU."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.steppers import METHODS

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
D, N = fd.Dirichlet, fd.Neumann


def field(x, y, z=0.0):
    return 1.0 + 0.3 * np.sin(2 * x) * np.cos(y + z)


CASES = {  # equation, shape, periodic axes, boundary
    "rod": (fd.Heat(0.7), (9,), False, {"x": (D("sin(t)"), fd.Robin(1.0, 2.0, "cos(t)"))}),
    "ring": (fd.Heat(0.7), (8,), True, None),
    "square": (fd.Heat((0.7, 0.3)), (6, 5), False, {"x": (D("t*y"), N(0.2)), "y": D(0.5)}),
    "D(x)": (fd.Heat(field), (5, 6), (False, True), {"x": (D(1.0), fd.Robin(1.0, 0.5, 2.0))}),
    "cylinder, D(x)": (fd.Heat(field), (4, 3, 5), (True, False, False), {"y": (D("t"), N(0.0))}),
    "cube": (fd.Heat(0.4), (4, 5, 3), False, {"x": (D("t+z"), D(0.0)), "z": (N("sin(t)"), D(1.0))}),
}


def run_of(name, dtype, batch):
    equation, shape, periodic, boundary = CASES[name]
    grid = fd.Grid(shape, periodic=periodic, extent=(1.0,) * len(shape))
    method = METHODS["crank_nicolson"]
    u = np.random.default_rng(0).random((batch, 1, *shape)).astype(dtype)
    return method.run(method, equation, grid, boundary, batch, np.dtype(dtype), u), u


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "dtype"), [*((name, "float64") for name in CASES), ("square", "float32")])
def test_steps_on_the_gpu_are_those_on_the_cpu(name, dtype):
    from numba import cuda

    run, u = run_of(name, dtype, 2)
    run.restart()
    want = run.advance(u, 0.1, 0.05, 4)
    run.restart()
    there = cuda.to_device(u)
    got = run.advance(there, 0.1, 0.05, 4)
    assert not isinstance(got, np.ndarray)
    assert (there.copy_to_host() == u).all()
    error = np.abs(got.copy_to_host() - want).max()
    assert error <= 64 * np.finfo(dtype).eps * np.abs(want).max()


@pytest.mark.cuda
@pytest.mark.skipif(not SIMULATED, reason="tensors on the CPU play those of a GPU")
def test_a_whole_solution_with_tensors(monkeypatch):
    """`fd.solve` on tensors of a GPU, with fixed steps and with steps that meet rtol by extrapolation."""
    import torch

    from fastdiff import dispatch, state

    grid, u0 = fd.Grid((5, 4)), np.random.default_rng(0).random((5, 4))
    walls = {"x": (D("sin(t)"), N(0.1))}
    adopted = dispatch.Array(torch.from_numpy(u0.copy()), "cuda", lambda a: a.numpy())
    monkeypatch.setattr(state, "adopt", lambda array, device: adopted if device == "cuda" else dispatch.adopt(array))
    for how in (dict(dt=0.05), dict(rtol=0.05, save_at=[0.1, 0.2])):
        what: dict = dict(boundary=walls, method="crank_nicolson", **how)
        want, got = (fd.solve(fd.Heat(0.3), u0, grid, 0.2, device=device, **what) for device in ("cpu", "cuda"))
        assert got.stats["steps"] == want.stats["steps"] and got.u.shape == want.u.shape
        np.testing.assert_allclose(got.u, want.u, rtol=1e-12)


@pytest.mark.cuda
def test_systems_refuse_what_does_not_fit(rng):
    from fastdiff.kernels._tridiagonal_cuda import SystemsCuda

    systems = SystemsCuda(-np.ones(5), 3 * np.ones(5), -np.ones(5), (2, 5), 1, np.float64)
    with pytest.raises(ValueError, match=r"shape \(2, 5\) and dtype float64"):
        systems.solve(rng.random((2, 6)))
    with pytest.raises(ValueError, match="make new systems"):
        systems.solve(rng.random((2, 5)), scale=0.5)
    r, out = rng.random((2, 5)), np.empty((2, 5))
    assert systems.solve(r, out) is out
    np.testing.assert_allclose(3 * out - np.pad(out, 1)[1:-1, :-2] - np.pad(out, 1)[1:-1, 2:], r, atol=1e-14)


@pytest.mark.cuda
def test_held_cells_are_set_in_place(rng):
    from numba import cuda

    from fastdiff.kernels._edges import HOLD, Side, hold, make_edges
    from fastdiff.kernels._state_cuda import accumulate_cuda, copy_cuda, hold_cuda

    sides = {(0, 0, 0): Side(HOLD, value=2.0), (0, 1, 1): Side(HOLD, value=rng.random((2, 1, 3)))}
    edges = make_edges((3, 4), (False, False), np.float64, sides, batch=2)
    u, x = rng.random((2, 1, 3, 4)), rng.random((2, 1, 3, 4))
    there = copy_cuda(cuda.to_device(u))
    assert hold_cuda(there, edges) is there
    np.testing.assert_array_equal(there.copy_to_host(), hold(u.copy(), edges, 0))
    accumulate_cuda(there, cuda.to_device(x), 0.25)
    np.testing.assert_array_equal(there.copy_to_host(), hold(u.copy(), edges, 0) + 0.25 * x)


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
