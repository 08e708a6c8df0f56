"""The CUDA schedules against NumPy, in Numba's simulator (a second process) or on a GPU where there is one."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastdiff.kernels._edges import GHOST, HOLD, Side, hold, make_edges, pad
from fastdiff.kernels._march import At, Star

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


# -- rules and references --------------------------------------------------------------------------------------------


class Heat(NamedTuple):
    """A rate for each axis; on an absent axis a cell is its own neighbour, so that any rate does."""

    r0: Any
    r1: Any
    r2: Any

    @staticmethod
    def cell(p, u, at):
        return u.c + (p.r0 * ((u.m0 - u.c) + (u.p0 - u.c)) + p.r1 * ((u.m1 - u.c) + (u.p1 - u.c))
                      + p.r2 * ((u.m2 - u.c) + (u.p2 - u.c)))


class Placed(NamedTuple):
    """Heat with a source that depends on when and where a cell is."""

    rate: Any
    unit: Any

    @staticmethod
    def cell(p, u, at):
        source = p.unit * (at.step + 3 * at.i0 + 5 * at.i1 + 7 * at.i2)
        return u.c + p.rate * (((u.m0 - u.c) + (u.p0 - u.c)) + ((u.m2 - u.c) + (u.p2 - u.c))) + source


class Pair(NamedTuple):
    """Two components that feed each other."""

    ru: Any
    rv: Any
    k: Any
    components = 2

    @staticmethod
    def cell(p, u, at):
        u, v = u
        swap = p.k * u.c * v.c * v.c
        wide = ((u.m0 - u.c) + (u.p0 - u.c)) + ((u.m2 - u.c) + (u.p2 - u.c))
        tall = ((v.m0 - v.c) + (v.p0 - v.c)) + ((v.m1 - v.c) + (v.p1 - v.c)) + ((v.m2 - v.c) + (v.p2 - v.c))
        return u.c + (p.ru * wide - swap), v.c + (p.rv * tall + swap)


class Wall(NamedTuple):
    """A boundary value that depends on everything it may; a held one not on the field."""

    scale: float

    @staticmethod
    def value(p, c, side, t, x, y, z, u):
        if side == 5:
            return p.scale * (t - x)
        return p.scale * (t + x - y * z + u * u)


def reference(rule, u, edges, steps, step):
    """The march of a rule in NumPy, float64: its own `cell` on whole arrays, with `pad` and `hold` of _edges.py."""
    v = hold(u.astype(np.float64), edges, step)
    axes = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}[u.ndim - 2]
    index = np.indices(u.shape[2:])
    place = [index[axes.index(a)] if a in axes else 0 for a in range(3)]
    p = type(rule)(*(np.asarray(f, np.float64).reshape(-1, *[1] * (u.ndim - 2)) for f in rule))
    for n in range(step, step + steps):
        full = pad(v, edges, n)
        stars = [_star(full[:, c], axes) for c in range(u.shape[1])]
        new = rule.cell(p, stars[0] if len(stars) == 1 else stars, At(n, *place))
        v = hold(np.stack(new if len(stars) > 1 else [new], 1), edges, n + 1)
    return v


def _star(full, axes):
    def shifted(axis, by):
        where = [slice(1, -1)] * (full.ndim - 1)
        if axis in axes:
            k = axes.index(axis)
            where[k] = slice(1 + by, full.shape[k + 1] - 1 + by)
        return full[(slice(None), *where)]

    return Star(shifted(0, 0), *(shifted(a, by) for a in range(3) for by in (-1, 1)))


def rule_for(kind, batch, dtype, rng):
    """A rule with its own parameters for every sample."""
    fields = [rng.uniform(0.03, 0.12, batch).astype(dtype) for _ in kind._fields]
    if kind is Placed:
        fields[1] = dtype(1e-3)
    return kind(*fields)


def mixed_sides(shape, steps, batch, components, rng):
    """Held and ghost sides, constant, per sample, per step and per cell of the face, different for each component."""
    sides = {}
    for c in range(components):
        for k in range(len(shape)):
            face = int(np.prod(shape)) // shape[k]
            table = rng.random((batch, steps + 1, face))
            sides[c, k, 0] = [Side(HOLD, value=table), Side(GHOST, -1.0, 0.0, 2.0, value=table)][(c + k) % 2]
            coefficients = rng.uniform(0.1, 0.4, (3, batch))
            sides[c, k, 1] = [Side(GHOST, *coefficients, value=table[:1, :, :1]),
                              Side(HOLD, value=table[:, :1]),
                              Side(GHOST, 0.0, 1.0, 0.3, value=table[:1, :1])][(c + k) % 3]
    return sides


# -- cases -----------------------------------------------------------------------------------------------------------

B, P = False, True  # bounded, periodic
CASES = {
    "2-D tiles": (Heat, (13, 17), (B, B), ("stream", 4, (16, 1), (2, 1, 3)), 6),
    "2-D one tile": (Heat, (7, 11), (B, B), ("stream", 4, (12, 1), (1, 1, 1)), 5),
    "2-D periodic tiles": (Heat, (11, 13), (P, P), ("stream", 2, (8, 1), (2, 1, 4)), 3),
    "2-D periodic one tile": (Placed, (9, 7), (P, P), ("stream", 4, (8, 1), (1, 1, 1)), 5),
    "2-D periodic rows": (Heat, (9, 7), (P, B), ("stream", 4, (8, 1), (3, 1, 1)), 4),
    "2-D periodic columns": (Heat, (5, 14), (B, P), ("stream", 4, (16, 1), (1, 1, 2)), 4),
    "2-D placed": (Placed, (10, 13), (B, B), ("stream", 4, (16, 1), (2, 1, 2)), 5),
    "2-D pair": (Pair, (7, 9), (B, B), ("stream", 4, (16, 1), (1, 1, 2)), 5),
    "2-D pair periodic": (Pair, (7, 9), (P, P), ("stream", 2, (10, 1), (2, 1, 2)), 3),
    "2-D one row": (Heat, (1, 9), (B, B), ("stream", 4, (12, 1), (1, 1, 1)), 5),
    "2-D one column": (Heat, (9, 1), (B, B), ("stream", 4, (4, 1), (2, 1, 1)), 5),
    "2-D one cell": (Heat, (1, 1), (B, B), ("stream", 4, (2, 1), (1, 1, 1)), 5),
    "2-D periodic one row": (Heat, (1, 5), (P, B), ("stream", 4, (8, 1), (1, 1, 1)), 5),
    "2-D periodic one column": (Heat, (5, 1), (B, P), ("stream", 4, (4, 1), (1, 1, 1)), 5),
    "2-D two rows periodic": (Placed, (2, 5), (P, P), ("stream", 4, (8, 1), (1, 1, 1)), 5),
    "3-D tiles": (Heat, (4, 6, 7), (B, B, B), ("stream", 2, (8, 8), (1, 2, 2)), 3),
    "3-D one tile": (Heat, (5, 3, 4), (B, B, B), ("stream", 2, (4, 4), (2, 1, 1)), 3),
    "3-D periodic tiles": (Heat, (3, 5, 6), (P, P, P), ("stream", 2, (8, 8), (1, 2, 2)), 2),
    "3-D periodic one tile": (Heat, (3, 3, 4), (P, P, P), ("stream", 3, (4, 3), (1, 1, 1)), 4),
    "3-D one cell middle": (Heat, (4, 1, 5), (B, B, B), ("stream", 2, (6, 2), (1, 1, 1)), 3),
    "3-D one cell periodic": (Heat, (3, 1, 4), (B, P, B), ("stream", 2, (4, 1), (1, 1, 1)), 3),
    "3-D pair": (Pair, (3, 4, 5), (B, P, B), ("stream", 2, (5, 4), (1, 1, 1)), 3),
    "rod": (Heat, (23,), (B,), ("resident", 9, (8, 1), (1, 1, 1), 4), 9),
    "rod tiles": (Heat, (41,), (B,), ("resident", 4, (8, 1), (1, 1, 3), 4), 10),
    "ring": (Heat, (23,), (P,), ("resident", 9, (8, 1), (1, 1, 1), 4), 9),
    "ring tiles": (Placed, (41,), (P,), ("resident", 4, (8, 1), (1, 1, 3), 4), 10),
    "rod pair": (Pair, (19,), (B,), ("resident", 4, (8, 1), (1, 1, 2), 4), 6),
    "rod one cell": (Heat, (1,), (B,), ("resident", 5, (2, 1), (1, 1, 1), 2), 5),
    "rod two cells": (Heat, (2,), (B,), ("resident", 5, (4, 1), (1, 1, 1), 2), 5),
    "plate": (Placed, (6, 7), (B, B), ("resident", 5, (16, 1), (1, 1, 1), 6), 5),
    "plate warps": (Heat, (6, 7), (B, B), ("resident", 3, (64, 1), (1, 1, 1), 2), 3),
    "plate periodic": (Pair, (6, 7), (P, B), ("resident", 5, (16, 1), (1, 1, 1), 6), 5),
    "plate one row": (Heat, (1, 9), (B, B), ("resident", 5, (16, 1), (1, 1, 1), 3), 5),
    "box": (Heat, (3, 4, 5), (B, B, B), ("resident", 4, (32, 1), (1, 1, 1), 8), 4),
    "box periodic": (Pair, (3, 4, 5), (P, B, P), ("resident", 4, (32, 1), (1, 1, 1), 8), 4),
}


def compare(result, expected, steps):
    """Equal to a few eps of the dtype for each step."""
    assert np.isfinite(result).all()
    error = abs(result - expected).max() / abs(expected).max()
    assert error <= 4 * (steps + 1) * np.finfo(result.dtype).eps, error


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_march_equals_reference(case, rng):
    """Plain sides in float32; held, ghost, per-step and per-cell sides in float64, from a step that is not 0."""
    from fastdiff.kernels._march_cuda import CudaPlan, march_cuda

    kind, shape, periodic, plan, steps = CASES[case]
    plan, count = CudaPlan(*plan), getattr(kind, "components", 1)
    for dtype, batch, step in ((np.float32, 1, 0), (np.float64, 2, 3)):
        sides = mixed_sides(shape, step + steps, batch, count, rng) if step else {}
        sides = {key: side for key, side in sides.items() if not periodic[key[1]]}
        if not step and case.startswith(("3-D", "2-D pair")):
            continue  # the slow ones once
        edges = make_edges(shape, periodic, dtype, sides, components=count, batch=batch)
        rule, u = rule_for(kind, batch, dtype, rng), rng.random((batch, count, *shape)).astype(dtype)
        before, out = u.copy(), np.full_like(u, np.nan)
        assert march_cuda(rule, u, edges, steps, step=step, out=out, plan=plan) is out
        compare(out, reference(rule, u, edges, steps, step), steps)
        assert (u == before).all()


@pytest.mark.cuda
@pytest.mark.parametrize("shape, plan", [
    ((5, 6), ("stream", 4, (8, 1), (1, 1, 1))),
    ((4, 3, 3), ("stream", 2, (4, 4), (1, 1, 1))),
    ((4, 5), ("resident", 4, (16, 1), (1, 1, 1), 4)),
    ((17,), ("resident", 2, (8, 1), (1, 1, 2), 3)),
], ids=str)
def test_boundary_as_a_function_of_the_field(shape, plan, rng):
    from fastdiff.kernels._march_cuda import CudaPlan, march_cuda

    values, ndim = Wall(0.1), len(shape)
    c_function = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * 5)
    ghost, held = (c_function(lambda *place, side=side: Wall.value(values, 0, side, *place)) for side in (0, 5))
    address = ctypes.cast(ghost, ctypes.c_void_p).value
    sides = {(0, k, 0): Side(GHOST, 0.5, 0.1, 0.4, call=address) for k in range(ndim)}
    sides[0, ndim - 1, 1] = Side(HOLD, call=ctypes.cast(held, ctypes.c_void_p).value)
    edges = make_edges(shape, [False] * ndim, np.float64, sides, start=0.5, dt=0.25, origin=[0.1, 0.2, 0.3][:ndim],
                       spacing=[0.2, 0.3, 0.4][:ndim], walls=[(0.0, 1.0), (-1.0, 2.0), (0.5, 3.0)][:ndim],
                       face_weights=(1.5, -0.5), batch=2)
    rule, u = rule_for(Heat, 2, np.float64, rng), rng.random((2, 1, *shape))
    result = march_cuda(rule, u, edges, 5, step=2, values=values, plan=CudaPlan(*plan))
    compare(result, reference(rule, u, edges, 5, 2), 5)
    with pytest.raises(ValueError, match="as `values`"):
        march_cuda(rule, u, edges, 5)


@pytest.mark.cuda
def test_device_arrays_stay_on_the_device(rng):
    from numba import cuda

    from fastdiff.kernels._march_cuda import march_cuda, to_device

    edges = make_edges((6, 7), (B, B), np.float64)
    rule, u = rule_for(Heat, 1, np.float64, rng), rng.random((1, 1, 6, 7))
    there = cuda.to_device(u)
    result = march_cuda(to_device(rule), there, to_device(edges), 9)
    assert not isinstance(result, np.ndarray)
    compare(result.copy_to_host(), reference(rule, u, edges, 9, 0), 9)
    out, work = cuda.device_array_like(there), cuda.device_array_like(there)
    assert march_cuda(rule, there, edges, 9, out=out, work=work) is out
    assert (out.copy_to_host() == result.copy_to_host()).all() and (there.copy_to_host() == u).all()
    assert (march_cuda(rule, u, edges, 0) == u).all()


@pytest.mark.cuda
def test_bad_input_is_refused(rng):
    from fastdiff.kernels._march_cuda import march_cuda

    edges = make_edges((6, 7), (B, B), np.float64)
    rule, u = rule_for(Heat, 1, np.float64, rng), rng.random((1, 1, 6, 7))
    with pytest.raises(ValueError, match="another array of shape"):
        march_cuda(rule, u, edges, 3, out=u)
    with pytest.raises(ValueError, match="another array of shape"):
        march_cuda(rule, u, edges, 3, out=np.empty((1, 1, 7, 6)))
    with pytest.raises(TypeError, match="float32 or float64"):
        march_cuda(rule, u.astype(np.int64), edges, 3)
    with pytest.raises(ValueError, match="1 component"):
        march_cuda(rule, np.concatenate([u, u], 1), edges, 3)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        march_cuda(rule, u[0, 0], edges, 3)
    with pytest.raises(TypeError, match="float32.*float64"):
        march_cuda(rule, u.astype(np.float32), edges, 3)


RACE = """
def shift(x, y):
    i, n = cuda.threadIdx.x, cuda.blockDim.x
    shared = cuda.shared.array(8, float64)
    shared[i] = 0
    cuda.syncthreads()
    shared[i] = x[i]
    cuda.syncthreads()
    y[i] = shared[(i + BY) % n]
"""


@pytest.mark.cuda
@pytest.mark.skipif(not SIMULATED, reason="on a GPU a race may go well")
@pytest.mark.parametrize("by", [-1, 1])
def test_the_simulator_sees_a_missing_barrier(by, rng):
    """Whichever neighbour is read: no order of the threads hides it for long."""
    from numba import cuda, float64

    def shifted(source):
        scope = {"cuda": cuda, "float64": float64}
        exec(source.replace("BY", str(by)), scope)
        y = np.full(8, np.nan)
        cuda.jit(scope["shift"])[1, 8](x, y)
        return y

    x = rng.random(8)
    barriers = RACE.split("    cuda.syncthreads()\n")
    assert (shifted(RACE) == np.roll(x, -by)).all()
    assert (shifted(barriers[0] + "    cuda.syncthreads()\n" + "".join(barriers[1:])) != np.roll(x, -by)).any()


# -- without CUDA ------------------------------------------------------------------------------------------------------


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


@pytest.mark.skipif(SIMULATED, reason="plans are smaller in the simulator")
def test_plans_fit_a_block():
    """Every plan covers its grid, and stays within 1024 threads and 48 KB of shared memory."""
    pytest.importorskip("numba_cuda")
    from fastdiff.kernels._march_cuda import plan_cuda, shared_bytes

    sizes = (1, 2, 31, 64, 100, 257, 1000)
    spaces = [(1, 1, 1, n) for n in (*sizes, 3070, 12286, 12287, 10**6)]
    spaces += [(2, n0, 1, n2) for n0 in sizes for n2 in sizes]
    spaces += [(3, n0, n1, n2) for n0 in sizes for n1 in sizes for n2 in sizes]
    for ndim, *space in spaces:
        for count in (1, 2):
            for itemsize in (4, 8):
                shape = (3, count, *space)
                plan = plan_cuda(shape, ndim, itemsize, 1000)
                assert shared_bytes(plan, shape, ndim, itemsize) <= 48 << 10, (shape, plan)
                assert plan.block[0] * plan.block[1] <= 1024 and min(plan.tiles) >= 1
                _assert_covers(plan, shape, ndim, itemsize)


def _assert_covers(plan, shape, ndim, itemsize):
    from fastdiff.kernels._march_cuda import shared_bytes

    if plan.schedule == "resident":
        assert plan.cells * plan.block[0] * shape[1] * itemsize >= shared_bytes(plan, shape, ndim, itemsize)
        return
    for n, threads, tiles in zip((shape[4], shape[3]), plan.block, (plan.tiles[2], plan.tiles[1])):
        halo = 2 * plan.depth if tiles > 1 else 0
        assert -(-n // tiles) + halo <= threads, (shape, plan)


def test_kernels_load_without_cuda():
    code = "import sys, fastdiff.kernels as k; k.discover(); assert 'numba.cuda' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_no_gpu_is_an_error_not_a_fallback(rng):
    numba_cuda = pytest.importorskip("numba_cuda")
    from numba import cuda

    if SIMULATED or cuda.is_available():
        pytest.skip(f"there is a GPU, or the simulator of {numba_cuda.__name__}")
    from fastdiff.kernels._march_cuda import march_cuda

    with pytest.raises(RuntimeError, match="no CUDA device"):
        march_cuda(rule_for(Heat, 1, np.float64, rng), np.zeros((1, 1, 5)), make_edges((5,), (B,), np.float64), 1)
