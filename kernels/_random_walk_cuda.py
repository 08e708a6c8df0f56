"""The random walk on the GPU: one thread a walker, its state in registers.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from fastdiff.kernels import _cuda
from fastdiff.kernels._math import exp
from fastdiff.kernels._philox import normal_pair, philox, split, uniform
from fastdiff.kernels.random_walk import ABSORB, AGAIN, CHOICE, FREE, HOUR, MEET, MOVE, PLACE, beside, faded, hour

cuda = _cuda.toolkit()
THREADS = 128
_NUMBERS = {"float32": types.float32, "float64": types.float64}


def walk(x, spread, drift, walls, kinds, steps, first, step, k0, k1, positions, fate, one):
    """All steps of a walker; `ndim` and `number` are constants of the compiled kernel, loops over axes unrolled."""
    i = cuda.grid(1)
    if i >= positions.shape[0]:
        return
    here = cuda.local.array(ndim, number)  # noqa: F821
    end = cuda.local.array(ndim, number)  # noqa: F821
    next_ = cuda.local.array(ndim, number)  # noqa: F821
    push = cuda.local.array(ndim, number)  # noqa: F821
    near = cuda.local.array(ndim, number)  # noqa: F821
    past = cuda.local.array(ndim, number)  # noqa: F821
    zero, two = one - one, one + one
    weight, gain, side, part = one, zero, -1, zero
    walker = np.uint64(first) + np.uint64(i)
    n, m = walker & np.uint64(0xFFFFFFFF), walker >> np.uint64(32)
    row = i if drift.shape[0] > 1 else 0
    for a in range(ndim):  # noqa: F821
        here[a] = x[i, a]
    s = 0
    while s < steps and side < 0:
        now = np.uint64(step) + np.uint64(s)
        move, u = normals(n, m, now, MOVE, k0, k1, one), philox(n, m, now, np.uint64(MEET), k0, k1)
        met = False
        for a in range(ndim):  # noqa: F821
            end[a] = here[a] + (drift[row, a] + spread[a] * move[a])
            next_[a], push[a], near[a], past[a] = end[a], zero, zero, zero
            if kinds[a, 0] != FREE:
                low, high = walls[a, 0, 0], walls[a, 1, 0]
                top, p, b, pushed = beside(here[a], end[a], low, high, spread[a], u[a], one)
                next_[a] = high - (b + pushed) if top else low + (b + pushed)
                if kinds[a, 1 if top else 0] != ABSORB:
                    push[a] = -pushed if top else pushed
                elif pushed > zero:
                    met, near[a], past[a] = True, (-p if top else p), abs(b)
        if met:
            move, u = normals(n, m, now, HOUR, k0, k1, one), philox(n, m, now, np.uint64(CHOICE), k0, k1)
            part = two
            for a in range(ndim):  # noqa: F821
                if near[a] != zero:
                    t = hour(abs(near[a]), past[a], spread[a], move[a], uniform(u[a], one))
                    if t < part:
                        part, side = t, 2 * a + (1 if near[a] < zero else 0)
            move, u = normals(n, m, now, PLACE, k0, k1, one), philox(n, m, now, np.uint64(AGAIN), k0, k1)
            for a in range(ndim):  # noqa: F821
                there = here[a] + part * (end[a] - here[a]) + spread[a] * math.sqrt(part * (one - part)) * move[a]
                push[a], low, high = zero, walls[a, 0, 0], walls[a, 1, 0]
                if side >> 1 == a:
                    there = high if side & 1 else low
                elif kinds[a, 0] != FREE:
                    top, p, b, pushed = beside(here[a], there, low, high, spread[a] * math.sqrt(part), u[a], one)
                    if kinds[a, 1 if top else 0] == ABSORB:
                        there = min(max(there, low), high)
                    else:
                        there = high - (b + pushed) if top else low + (b + pushed)
                        push[a] = -pushed if top else pushed
                next_[a] = there
        for a in range(ndim):  # noqa: F821
            here[a] = next_[a]
            k, q = walls[a, 1 if push[a] < zero else 0, 1], walls[a, 1 if push[a] < zero else 0, 2]
            left = exp(-k * abs(push[a]))
            gain += weight * q * abs(push[a]) * faded(k * abs(push[a]), left, one)
            weight *= left
        s += 1
    for a in range(ndim):  # noqa: F821
        positions[i, a] = here[a]
    fate[i, 0], fate[i, 1], fate[i, 2] = weight, gain, side
    fate[i, 3] = number(s - 1) + part if side >= 0 else number(steps)  # noqa: F821


@register_jitable
def normals(n, m, now, kind, k0, k1, one):
    """A draw as four normal numbers."""
    w = philox(n, m, now, np.uint64(kind), k0, k1)
    a, b = normal_pair(w[0], w[1], one)
    c, d = normal_pair(w[2], w[3], one)
    return a, b, c, d


@lru_cache(maxsize=16)
def walk_kernel(ndim, dtype) -> Any:
    """The kernel for a number of axes and a dtype."""
    return _cuda.specialised(walk, threads=THREADS, ndim=ndim, number=_NUMBERS[dtype])


def launch(x, spread, drift, walls, kinds, steps, seed, first, step, out, stream):
    """Walk on the GPU; host arrays are sent there, and the results brought back if `x` is one."""
    _cuda.require_device()
    host = isinstance(x, np.ndarray)
    dtype = str(x.dtype).removeprefix("torch.")
    given = [cuda.to_device(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else _cuda.wrap(a)
             for a in (x, spread, drift, walls, kinds)]
    results = (np.empty(x.shape, dtype), np.empty((len(x), 4), dtype)) if out is None else out
    there = [cuda.to_device(r) if isinstance(r, np.ndarray) else _cuda.wrap(r) for r in results]
    if len(x):
        walk_kernel(x.shape[1], dtype)[-(-len(x) // THREADS), THREADS, _cuda.numba_stream(stream)](
            *given, steps, first, step, *split(seed), *there, np.dtype(dtype).type(1))
    if host:
        for r, device in zip(results, there):
            device.copy_to_host(r)
    return results if out is None else out


def launches(dtype):
    """What the PTX gate compiles: label, kernel, arguments, block."""
    word, two = np.uint64(1), np.zeros((1, 1), dtype)
    for ndim in (1, 2, 3):
        arguments = (two, np.zeros(1, dtype), two, np.zeros((1, 1, 1), dtype), np.zeros((1, 1), np.int64), 1, 0, 0,
                     word, word, two, two, dtype.type(1))
        yield f"{ndim} axes", walk_kernel(ndim, str(dtype)), arguments, (THREADS, 1)
