"""Convolutions on the GPU: a thread for each number of a result, a block of threads for each weight's gradient.

Written to be right, with the boundary in the index arithmetic as on the CPU; not tuned. The two-layer block makes the
hidden cells it needs anew for each of its results, so that they are never in memory here either.

Geometry is an array of whole numbers (`SIZES`), so that there is one compiled kernel for all shapes.
Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from fastdiff.kernels import _cuda
from fastdiff.kernels._activation import gelu, gelu_slope, relu, relu_slope, silu, silu_slope, square_slope
from fastdiff.kernels._conv import place, sources
from fastdiff.kernels._math import tanh

cuda = _cuda.toolkit()

THREADS = 128
# places in the array of sizes
BATCH, GROUPS, CIN, COUT, CODE, N0, N1, N2, K0, K1, K2, S0, S1, S2, MODE0, MODE1, MODE2 = range(17)


@register_jitable
def activated(code, x):
    """The activation of one number."""
    if code == 1:
        return relu(x)
    if code == 2:
        return gelu(x)
    if code == 3:
        return silu(x)
    if code == 4:
        return tanh(x)
    return x


@register_jitable
def slope_at(code, x, one):
    """The derivative of the activation at x."""
    if code == 1:
        return relu_slope(x)
    if code == 2:
        return gelu_slope(x)
    if code == 3:
        return silu_slope(x)
    if code == 4:
        return square_slope(tanh(x))
    return one


@register_jitable
def neighbour(s, z, y, x, k):
    """The cell at tap k of a cell, as an index into a plane; -1: beyond the grid, zero."""
    a, b, c = k // (s[K1] * s[K2]), k // s[K2] % s[K1], k % s[K2]
    zz = place(z + (a - (s[K0] - 1) // 2) * s[S0], s[N0], s[MODE0])
    yy = place(y + (b - (s[K1] - 1) // 2) * s[S1], s[N1], s[MODE1])
    xx = place(x + (c - (s[K2] - 1) // 2) * s[S2], s[N2], s[MODE2])
    return (zz * s[N1] + yy) * s[N2] + xx if zz >= 0 and yy >= 0 and xx >= 0 else -1


@register_jitable
def received(s, grad, base, z, y, x, k, zero):
    """The sum of grad[base + r] over the cells r whose neighbour at tap k is, or stands for, cell (z, y, x)."""
    a, b, c = k // (s[K1] * s[K2]), k // s[K2] % s[K1], k % s[K2]
    z0, z1 = sources(z, s[N0], (a - (s[K0] - 1) // 2) * s[S0], s[MODE0])
    y0, y1 = sources(y, s[N1], (b - (s[K1] - 1) // 2) * s[S1], s[MODE1])
    x0, x1 = sources(x, s[N2], (c - (s[K2] - 1) // 2) * s[S2], s[MODE2])
    total = zero
    for zz in range(z0, z1 + 1):
        for yy in range(y0, y1 + 1):
            for xx in range(x0, x1 + 1):
                total += grad[base + (zz * s[N1] + yy) * s[N2] + xx]
    return total


def forward(s, u, w, bias, y, pre):
    """Kernel: convolution, bias, activation; `pre` may have no elements."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    channels = s[GROUPS] * s[COUT]
    for i in range(cuda.grid(1), s[BATCH] * channels * cells, cuda.gridsize(1)):
        cell, o = i % cells, i // cells % channels
        z, yy, x = cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2]
        first = (i // (cells * channels) * s[GROUPS] + o // s[COUT]) * s[CIN]
        total = bias[o]
        for k in range(taps):
            near = neighbour(s, z, yy, x, k)
            if near >= 0:
                for c in range(s[CIN]):
                    total += w[(o * s[CIN] + c) * taps + k] * u[(first + c) * cells + near]
        if pre.size > 0:
            pre[i] = total
        y[i] = activated(s[CODE], total)


def grad_input(s, grad, w, out):
    """Kernel: the gradient of the input from that of the sums."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    channels = s[GROUPS] * s[CIN]
    zero = w[0] - w[0]
    for i in range(cuda.grid(1), s[BATCH] * channels * cells, cuda.gridsize(1)):
        cell, c = i % cells, i // cells % channels
        z, y, x = cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2]
        g, total = c // s[CIN], zero
        for o in range(g * s[COUT], (g + 1) * s[COUT]):
            base = (i // (cells * channels) * s[GROUPS] * s[COUT] + o) * cells
            for k in range(taps):
                total += w[(o * s[CIN] + c % s[CIN]) * taps + k] * received(s, grad, base, z, y, x, k, zero)
        out[i] = total


@cuda.jit(device=True)
def summed(shared, value):
    """The sum of one number of each thread of the block, in a fixed order; known to thread 0."""
    me, half = cuda.threadIdx.x, cuda.blockDim.x // 2
    shared[me] = value
    cuda.syncthreads()
    while half > 0:
        if me < half:
            shared[me] += shared[me + half]
        cuda.syncthreads()
        half //= 2
    return shared[0]


def grad_weight(s, u, grad, weight, bias):
    """Kernel: a block for each weight, and one for each bias."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    each = s[CIN] * taps + 1
    o, rest = cuda.blockIdx.x // each, cuda.blockIdx.x % each
    c, k = rest // taps, rest % taps
    shared = cuda.shared.array(threads, number)
    total = number(0)
    for i in range(cuda.threadIdx.x, s[BATCH] * cells, cuda.blockDim.x):
        b, cell = i // cells, i % cells
        g = grad[(b * s[GROUPS] * s[COUT] + o) * cells + cell]
        if c == s[CIN]:
            total += g
        else:
            near = neighbour(s, cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2], k)
            if near >= 0:
                total += g * u[((b * s[GROUPS] + o // s[COUT]) * s[CIN] + c) * cells + near]
    total = summed(shared, total)
    if cuda.threadIdx.x == 0:
        if c == s[CIN]:
            bias[o] = total
        else:
            weight[o * s[CIN] * taps + rest] = total


@register_jitable
def hidden_sum(s, u, w1, b1, base, c, z, y, x):
    """A hidden cell before the activation."""
    taps, total = s[K0] * s[K1] * s[K2], b1[c]
    for k in range(taps):
        near = neighbour(s, z, y, x, k)
        if near >= 0:
            total += w1[c * taps + k] * u[base + near]
    return total


@register_jitable
def hidden_gradient(s, grad, w2, base, c, z, y, x, zero):
    """The gradient of a hidden cell after the activation."""
    taps, total = s[K0] * s[K1] * s[K2], zero
    for k in range(taps):
        total += w2[c * taps + k] * received(s, grad, base, z, y, x, k, zero)
    return total


def block_forward(s, u, w1, b1, w2, b2, out):
    """Kernel: both layers; s[COUT] is the number of hidden channels."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    for i in range(cuda.grid(1), s[BATCH] * cells, cuda.gridsize(1)):
        base, cell, total = i // cells * cells, i % cells, b2[0]
        for k in range(taps):
            near = neighbour(s, cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2], k)
            if near >= 0:
                z, y, x = near // (s[N1] * s[N2]), near // s[N2] % s[N1], near % s[N2]
                for c in range(s[COUT]):
                    total += w2[c * taps + k] * activated(s[CODE], hidden_sum(s, u, w1, b1, base, c, z, y, x))
        out[i] = total


def block_grad_input(s, u, w1, b1, w2, grad, out):
    """Kernel: the gradient of the block's input."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    zero = b1[0] - b1[0]
    one = zero + number(1)
    for i in range(cuda.grid(1), s[BATCH] * cells, cuda.gridsize(1)):
        base, cell, total = i // cells * cells, i % cells, zero
        z, y, x = cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2]
        for k in range(taps):
            a, b, c2 = k // (s[K1] * s[K2]), k // s[K2] % s[K1], k % s[K2]
            z0, z1 = sources(z, s[N0], a - (s[K0] - 1) // 2, s[MODE0])
            y0, y1 = sources(y, s[N1], b - (s[K1] - 1) // 2, s[MODE1])
            x0, x1 = sources(x, s[N2], c2 - (s[K2] - 1) // 2, s[MODE2])
            for zz in range(z0, z1 + 1):
                for yy in range(y0, y1 + 1):
                    for xx in range(x0, x1 + 1):
                        for c in range(s[COUT]):
                            slope = slope_at(s[CODE], hidden_sum(s, u, w1, b1, base, c, zz, yy, xx), one)
                            back = hidden_gradient(s, grad, w2, base, c, zz, yy, xx, zero)
                            total += w1[c * taps + k] * (slope * back)
        out[i] = total


def block_grad_weight(s, u, w1, b1, w2, grad, d1, e1, d2, e2):
    """Kernel: a block of threads for each tap of each hidden channel, and one more for its bias (and the output's)."""
    cells, taps = s[N0] * s[N1] * s[N2], s[K0] * s[K1] * s[K2]
    c, k = cuda.blockIdx.x // (taps + 1), cuda.blockIdx.x % (taps + 1)
    shared = cuda.shared.array(threads, number)
    first, second, zero, one = number(0), number(0), number(0), number(1)
    for i in range(cuda.threadIdx.x, s[BATCH] * cells, cuda.blockDim.x):
        base, cell = i // cells * cells, i % cells
        z, y, x = cell // (s[N1] * s[N2]), cell // s[N2] % s[N1], cell % s[N2]
        value = hidden_sum(s, u, w1, b1, base, c, z, y, x)
        back = slope_at(s[CODE], value, one) * hidden_gradient(s, grad, w2, base, c, z, y, x, zero)
        if k == taps:
            first += back
            second += grad[i]
        else:
            near = neighbour(s, z, y, x, k)
            if near >= 0:
                first += back * u[base + near]
            second += activated(s[CODE], value) * received(s, grad, base, z, y, x, k, zero)
    first = summed(shared, first)
    cuda.syncthreads()
    second = summed(shared, second)
    if cuda.threadIdx.x == 0:
        if k < taps:
            d1[c * taps + k], d2[c * taps + k] = first, second
        else:
            e1[c] = first
            if c == 0:
                e2[0] = second


# -- calls -------------------------------------------------------------------------------------------------------------

_KERNELS = {f.__name__: f for f in (forward, grad_input, grad_weight, block_forward, block_grad_input,
                                    block_grad_weight)}
_NUMBERS = {"float32": types.float32, "float64": types.float64}
_COUNTS = {"forward": 6, "grad_input": 4, "grad_weight": 5, "block_forward": 7, "block_grad_input": 7,
           "block_grad_weight": 10}  # arguments of each kernel


def threads_of_block() -> int:
    """Threads of a block: few in the simulator, which starts a thread of the system for each."""
    return 4 if _cuda.simulated() else THREADS


@lru_cache(maxsize=32)
def compiled(name, dtype):
    """A kernel for one dtype."""
    number = getattr(np, dtype) if _cuda.simulated() else _NUMBERS[dtype]
    return _cuda.specialised(_KERNELS[name], threads=threads_of_block(), number=number)


def sizes(shape, code=0) -> np.ndarray:
    """The array of sizes of a `Shape` of _conv.py."""
    cout, cin = shape.weight[:2]
    return np.array([shape.x[0], shape.groups, cin, cout // shape.groups, code, *shape.x[2:], *shape.weight[2:],
                     *shape.dilation, *shape.modes], np.int64)


def launch(name, numbers, inputs, outputs, *, blocks=None, stream=None):
    """Launch a kernel with (sizes, *inputs, *outputs), all flattened: NumPy arrays are copied there and back."""
    _cuda.require_device()
    queue, threads = _cuda.numba_stream(stream), threads_of_block()
    held = [_there(a, queue) for a in (*inputs, *outputs)]
    dtype = str(np.dtype(held[0].dtype))
    count = held[len(inputs)].size
    number = max(1, min(-(-count // threads), 2 if _cuda.simulated() else 1 << 16)) if blocks is None else blocks
    there = numbers if _cuda.simulated() else cuda.to_device(numbers, stream=queue)
    compiled(name, dtype)[number, threads, queue](there, *held)
    for given, device in zip(outputs, held[len(inputs):]):
        if isinstance(given, np.ndarray) and not _cuda.simulated():
            device.copy_to_host(given.reshape(-1), stream=queue)
            if queue:
                queue.synchronize()


def _there(array: Any, queue):
    if isinstance(array, np.ndarray):
        line = np.ascontiguousarray(array).reshape(-1)
        return line if _cuda.simulated() else cuda.to_device(line, stream=queue)
    return _cuda.wrap(array).reshape(-1)


def launches(dtype, names):
    """What the compiler's gate compiles."""
    from fastdiff.kernels._contract import Launch

    line, numbers = np.zeros(1, dtype), np.zeros(1, np.int64)
    return [Launch(name, compiled(name, np.dtype(dtype).name), (numbers, *[line] * (_COUNTS[name] - 1)), (THREADS, 1))
            for name in names]


__all__ = ["launch", "launches", "sizes"]
