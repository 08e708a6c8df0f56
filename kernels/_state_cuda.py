"""What is done to whole states on the GPU besides marching them: held cells set, another state added, registers.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache

import numpy as np

from fastdiff.kernels import _cuda
from fastdiff.kernels._march_cuda import NoValues, as_space, edge_value, held_by, to_device

cuda = _cuda.toolkit()
THREADS = 128


def held(e, values, u, step):
    """Kernel: the held cells of a state at a time level, a thread for each cell."""
    n0, n1, n2 = u.shape[2], u.shape[3], u.shape[4]
    index = cuda.grid(1)
    if index < u.shape[0] * u.shape[1] * n0 * n1 * n2:
        x, index = index % n2, index // n2
        y, index = index % n1, index // n1
        z, index = index % n0, index // n0
        c, b = index % u.shape[1], index // u.shape[1]
        side = held_by(e, c, z, y, x, n0, n1, n2)
        if side >= 0:
            zero = e.reals[0]
            g = edge_value(e, values, b, c, side, step, z, y, x, n1, n2, zero, zero)
            u[np.uint64(b), np.uint64(c), np.uint64(z), np.uint64(y), np.uint64(x)] = g


def added(u, x, scale):
    """Kernel: u += scale x."""
    index = cuda.grid(1)
    if index < u.shape[0]:
        u[np.uint64(index)] += scale * x[np.uint64(index)]


def resized(src, dst):
    """Kernel: the components of `dst` are those of `src`, and 0 behind them; both (B, components, cells)."""
    index = cuda.grid(1)
    if index < dst.shape[0] * dst.shape[1] * dst.shape[2]:
        k, index = index % dst.shape[2], index // dst.shape[2]
        c, b = index % dst.shape[1], index // dst.shape[1]
        value = src[np.uint64(b), np.uint64(min(c, src.shape[1] - 1)), np.uint64(k)]
        dst[np.uint64(b), np.uint64(c), np.uint64(k)] = value if c < src.shape[1] else dst.dtype.type(0)


@lru_cache(maxsize=4)
def _kernels():
    return tuple(_cuda.specialised(f, threads=THREADS) for f in (held, added, resized))


def _launch(kernel, cells, queue, *arguments):
    threads = 32 if _cuda.simulated() else THREADS
    if cells:
        kernel[-(-cells // threads), threads, queue](*arguments)


def hold_cuda(u, edges, step=0, stream=None):
    """Set the held cells of a device array (B, C, *grid) to their values at a time level, in place; return it."""
    queue, space = _cuda.numba_stream(stream), as_space(_cuda.wrap(u))
    data = to_device(edges, queue), NoValues()
    _launch(_kernels()[0], int(np.prod(space.shape)), queue, *data, space, step)
    return u


def accumulate_cuda(u, x, scale, stream=None):
    """u += scale * x for device arrays; returns u."""
    queue, target, source = _cuda.numba_stream(stream), _cuda.wrap(u.reshape(-1)), _cuda.wrap(x.reshape(-1))
    _launch(_kernels()[1], target.size, queue, target, source, target.dtype.type(scale))
    return u


def copy_cuda(source, target=None, stream=None):
    """A copy of a device array, in `target` or a new one."""
    target = _cuda.empty_like(source) if target is None else target
    _cuda.wrap(target).copy_to_device(_cuda.wrap(source), stream=_cuda.numba_stream(stream))
    return target


def resize_cuda(u, components, stream=None):
    """A copy of a device array (B, C, *grid) with other components: the first of them, or with zeros behind."""
    new = _cuda.empty_like(u, (u.shape[0], components, *u.shape[2:]))
    source, target = (_cuda.wrap(a.reshape(a.shape[0], a.shape[1], -1)) for a in (u, new))
    _launch(_kernels()[2], int(np.prod(target.shape)), _cuda.numba_stream(stream), source, target)
    return new


def launches(dtype):
    """What the PTX gate compiles."""
    from fastdiff.kernels._contract import Launch
    from fastdiff.kernels._edges import make_edges

    state, line, scale = np.zeros((1,) * 5, dtype), np.zeros(1, dtype), np.dtype(dtype).type(1)
    set_, add, resize = _kernels()
    lines = np.zeros((1,) * 3, dtype)
    yield Launch("held", set_, (make_edges((4,), [False], dtype), NoValues(), state, 0), (THREADS, 1))
    yield Launch("added", add, (line, line, scale), (THREADS, 1))
    yield Launch("resized", resize, (lines, lines), (THREADS, 1))


__all__ = ["accumulate_cuda", "copy_cuda", "hold_cuda", "launches", "resize_cuda"]
