"""The random walk on the GPU: one thread a walker, its state in registers.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import types

from fastdiff.kernels import _cuda
from fastdiff.kernels._math import exp
from fastdiff.kernels._philox import normal_pair, philox, split, uniform
from fastdiff.kernels.random_walk import ABSORB, CHOICE, FREE, HOUR, MEET, MOVE, PLACE, beside, faded, hour

cuda = _cuda.toolkit()
THREADS = 128
_NUMBERS = {"float32": types.float32, "float64": types.float64}


def walk(x, spread, drift, walls, kinds, steps, first, step, k0, k1, positions, fate, one):
    """All steps of a walker; `ndim` and `number` are constants of the compiled kernel, loops over axes unrolled."""
    i = cuda.grid(1)
    if i >= positions.shape[0]:
        return
    here = cuda.local.array(ndim, number)  # noqa: F821
    start = cuda.local.array(ndim, number)  # noqa: F821
    move = cuda.local.array(4, number)  # noqa: F821
    near = cuda.local.array(ndim, number)  # noqa: F821
    past = cuda.local.array(ndim, number)  # noqa: F821
    upper = cuda.local.array(ndim, number)  # noqa: F821
    zero, two = one - one, one + one
    weight, gain, side, when = one, zero, -1, zero
    walker = np.uint64(first) + np.uint64(i)
    low_word, high_word = walker & np.uint64(0xFFFFFFFF), walker >> np.uint64(32)
    row = i if drift.shape[0] > 1 else 0
    for a in range(ndim):  # noqa: F821
        here[a] = x[i, a]
    s = 0
    while s < steps and side < 0:
        now = np.uint64(step) + np.uint64(s)
        w = philox(low_word, high_word, now, np.uint64(MOVE), k0, k1)
        u = philox(low_word, high_word, now, np.uint64(MEET), k0, k1)
        move[0], move[1] = normal_pair(w[0], w[1], one)
        move[2], move[3] = normal_pair(w[2], w[3], one)
        met = False
        for a in range(ndim):  # noqa: F821
            start[a] = here[a]
            end = here[a] + (drift[row, a] + spread[a] * move[a])
            near[a], past[a], upper[a] = zero, zero, zero
            if kinds[a, 0] == FREE:
                here[a] = end
            else:
                low, high = walls[a, 0, 0], walls[a, 1, 0]
                top, p, b, push = beside(here[a], end, low, high, spread[a], u[a], one)
                here[a] = high - (b + push) if top else low + (b + push)
                face = 1 if top else 0
                if kinds[a, face] == ABSORB:
                    if push > zero:
                        met, near[a], past[a], upper[a] = True, p, abs(b), number(face)  # noqa: F821
                else:
                    k = walls[a, face, 1]
                    left = exp(-k * push)
                    gain += weight * walls[a, face, 2] * push * faded(k * push, left, one)
                    weight *= left
        if met:
            h = philox(low_word, high_word, now, np.uint64(HOUR), k0, k1)
            c = philox(low_word, high_word, now, np.uint64(CHOICE), k0, k1)
            move[0], move[1] = normal_pair(h[0], h[1], one)
            move[2], move[3] = normal_pair(h[2], h[3], one)
            when = two
            for a in range(ndim):  # noqa: F821
                if near[a] > zero:
                    t = hour(near[a], past[a], spread[a], move[a], uniform(c[a], one))
                    if t < when:
                        when = t
                        side = 2 * a + int(upper[a])
            h = philox(low_word, high_word, now, np.uint64(PLACE), k0, k1)
            move[0], move[1] = normal_pair(h[0], h[1], one)
            move[2], move[3] = normal_pair(h[2], h[3], one)
            for a in range(ndim):  # noqa: F821
                there = start[a] + when * (here[a] - start[a])
                there += spread[a] * math.sqrt(when * (one - when)) * move[a]
                if kinds[a, 0] != FREE:
                    there = min(max(there, walls[a, 0, 0]), walls[a, 1, 0])
                if side >> 1 == a:
                    there = walls[a, 1, 0] if side & 1 else walls[a, 0, 0]
                here[a] = there
        s += 1
    for a in range(ndim):  # noqa: F821
        positions[i, a] = here[a]
    fate[i, 0], fate[i, 1], fate[i, 2] = weight, gain, side
    fate[i, 3] = number(s - 1) + when if side >= 0 else number(steps)  # noqa: F821


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
