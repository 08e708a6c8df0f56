"""Tridiagonal systems on the GPU: a thread a line; `tridiagonal.py` says which systems, and how they are factored.

Three kernels after one another, so that all of them read and write whole lines of memory: forward elimination,
back substitution, and for cyclic lines what their corners add. A thread loads `ahead` cells of its line, then
eliminates them: the loads do not wait for one another. Lines beside one another in memory need no more. Contiguous
lines come through a square tile of shared memory, one column wider than square, so that the threads of a warp load
along the lines and then read each its own without bank conflicts.

Systems are factored on the host, in float64, and sent to the GPU once; lines with their own coefficients are eliminated
there, and keep c in memory between the two passes.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import types

from fastdiff.kernels import _cuda
from fastdiff.kernels.tridiagonal import Factors, Systems

cuda = _cuda.toolkit()
THREADS, TILE, AHEAD = 64, 32, 8


def forward(a, b, c, kept, src, dst, lines, n, inner, group, base, scale, unit):
    """Kernel: d of every line to `dst`, and c to `kept` for lines with their own coefficients.

    Free names: each (lines have their own coefficients), tiled (they are contiguous), threads, piece (cells of a tile,
    or `ahead`), ahead, pitch (of the tile), number.
    """
    me, first = cuda.threadIdx.x, cuda.blockIdx.x * threads
    line = min(first + me, lines - 1)
    start, far = line // inner * (n * inner) + line % inner, inner
    f = line // inner // group * n  # the first of the line's coefficients
    if each:
        f = line if tiled else start
    step = (lines if tiled else inner) if each else 1
    tile = cuda.shared.array((threads if tiled else 1, pitch), number)
    r, low = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
    mid, up = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
    d = unit - unit
    over = d
    for i0 in range(0, n, piece):
        if tiled:
            cuda.syncthreads()
            for k in range(threads):
                if first + k < lines and i0 + me < n:
                    tile[k, me] = src[np.uint64((first + k) * n + i0 + me)]
            cuda.syncthreads()
        for k0 in range(0, piece, ahead):
            for k in range(ahead):
                i = min(i0 + k0 + k, n - 1)
                r[k] = tile[me, k0 + k] if tiled else src[np.uint64(start + i * far)]
                low[k], mid[k] = a[np.uint64(f + i * step)], b[np.uint64(f + i * step)]
                if each:
                    up[k] = c[np.uint64(f + i * step)]
            for k in range(ahead):
                if each:
                    lower = scale * low[k]
                    q = unit / ((base + scale * mid[k]) - lower * over)
                    over = (scale * up[k]) * q
                    d = (r[k] - lower * d) * q
                else:
                    d = r[k] * mid[k] - low[k] * d
                i = i0 + k0 + k
                if tiled:
                    tile[me, k0 + k] = d
                if i < n and first + me < lines:
                    if each:
                        kept[np.uint64(f + i * step)] = over
                    if not tiled:
                        dst[np.uint64(start + i * far)] = d
        if tiled:
            cuda.syncthreads()
            for k in range(threads):
                if first + k < lines and i0 + me < n:
                    dst[np.uint64((first + k) * n + i0 + me)] = tile[k, me]


def backward(c, dst, lines, n, inner, group, unit):
    """Kernel: from d to x, in place; `c` are the factors, or what `forward` has kept. Free names as there."""
    me, first = cuda.threadIdx.x, cuda.blockIdx.x * threads
    line = min(first + me, lines - 1)
    start, far = line // inner * (n * inner) + line % inner, inner
    f = line // inner // group * n
    if each:
        f = line if tiled else start
    step = (lines if tiled else inner) if each else 1
    tile = cuda.shared.array((threads if tiled else 1, pitch), number)
    r, up = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
    x = unit - unit
    for back in range(0, n, piece):
        i0 = (n - 1 - back) // piece * piece  # pieces as `forward` cuts them, the last one first
        if tiled:
            cuda.syncthreads()
            for k in range(threads):
                if first + k < lines and i0 + me < n:
                    tile[k, me] = dst[np.uint64((first + k) * n + i0 + me)]
            cuda.syncthreads()
        for k1 in range(0, piece, ahead):
            k0 = piece - ahead - k1
            for k in range(ahead):
                i = min(i0 + k0 + k, n - 1)
                r[k] = tile[me, k0 + k] if tiled else dst[np.uint64(start + i * far)]
                up[k] = c[np.uint64(f + i * step)]
            for j in range(ahead):
                i = i0 + k0 + (ahead - 1 - j)
                if i < n:
                    x = r[ahead - 1 - j] - up[ahead - 1 - j] * x
                    if tiled:
                        tile[me, k0 + (ahead - 1 - j)] = x
                    elif first + me < lines:
                        dst[np.uint64(start + i * far)] = x
        if tiled:
            cuda.syncthreads()
            for k in range(threads):
                if first + k < lines and i0 + me < n:
                    dst[np.uint64((first + k) * n + i0 + me)] = tile[k, me]


def close(z, v, w, ends, dst, lines, n, inner, group):
    """Kernel: x = y - z (y_0 + v y_{n-1}) w, a thread a cell; `ends` has y_0 and y_{n-1} of every line."""
    cell = cuda.grid(1)
    if cell < lines * n:
        line, i = cell // (n * inner) * inner + cell % inner, cell // inner % n
        g = line if each else line // inner // group
        at = line // inner // group * n + i
        if each:
            at = i * lines + line if tiled else cell
        weight = (ends[np.uint64(line)] + v[np.uint64(g)] * ends[np.uint64(lines + line)]) * w[np.uint64(g)]
        dst[np.uint64(cell)] -= weight * z[np.uint64(at)]


def pick_ends(src, ends, lines, n, inner):
    """Kernel: the first and the last number of every line."""
    line = cuda.grid(1)
    if line < lines:
        start = line // inner * (n * inner) + line % inner
        ends[np.uint64(line)] = src[np.uint64(start)]
        ends[np.uint64(lines + line)] = src[np.uint64(start + (n - 1) * inner)]


@lru_cache(maxsize=32)
def kernels(each: bool, tiled: bool, dtype: str) -> tuple[Any, ...]:
    """Forward, backward, close and pick_ends for systems of one kind."""
    how: dict[str, Any] = dict(each=each, tiled=tiled, number=getattr(types, dtype))
    lines = dict(how, threads=TILE if tiled else THREADS, piece=TILE if tiled else AHEAD, ahead=AHEAD,
                 pitch=TILE + 1 if tiled else 1)
    return (_cuda.specialised(forward, **lines), _cuda.specialised(backward, **lines),
            _cuda.specialised(close, threads=128, **how), _cuda.specialised(pick_ends, threads=128))


class SystemsCuda(Systems):
    """`Systems` that live on the GPU; made once, on the host, and solved there many times."""

    def __init__(self, lower, diag, upper, shape, axis, dtype, *, cyclic=False, threads=None):
        super().__init__(lower, diag, upper, shape, axis, dtype, cyclic=cyclic, threads=1)
        self._there: Any = None

    def solve(self, r, out=None, scale=None, stream=None):
        """x for the right-hand sides `r`, as `Systems.solve`.

        A device array stays where it is, and its work is queued on `stream`; a NumPy array goes to the GPU and back.
        """
        _cuda.require_device()
        if scale is not None and (self.shared or self.cyclic):
            raise ValueError("lines that are shared or cyclic are factored: make new systems for another scale")
        if tuple(r.shape) != self.shape or str(r.dtype).removeprefix("torch.") != self.dtype.name:
            raise ValueError(f"expected an array of shape {self.shape} and dtype {self.dtype}, got {tuple(r.shape)} "
                             f"in {r.dtype}")
        queue = _cuda.numba_stream(stream)
        if isinstance(r, np.ndarray):
            there = cuda.to_device(np.ascontiguousarray(r), stream=queue)
            self.solve(there, there, scale, stream)
            found = there.copy_to_host(stream=queue)
            if queue:
                queue.synchronize()
            return found if out is None else _copied(out, found)
        out = _cuda.empty_like(r) if out is None else out
        self._launch(r, out, 1 if scale is None else scale, scale is not None, queue)
        return out

    def _launch(self, r, out, scale, plain, queue):
        if self._there is None:
            self._there = Factors(*(cuda.to_device(part, stream=queue) for part in self.factors))
        f, number, lines = self._there, self.dtype.type, self.outer * self.inner
        each, tiled = not self.shared, self.inner == 1 and self.n > 1
        eliminate, substitute, correct, pick = kernels(each, tiled, self.dtype.name)
        kept = _flat(_cuda.empty_like(r)) if each else f.c
        source, target, shape = _flat(r), _flat(out), (lines, self.n, self.inner, self.group)
        threads = TILE if tiled else THREADS
        blocks = -(-lines // threads)
        if not lines:
            return
        eliminate[blocks, threads, queue](f.a, f.b, f.c, kept, source, target, *shape, number(plain), number(scale),
                                          number(1))
        substitute[blocks, threads, queue](kept, target, *shape, number(1))
        if self.cyclic:
            ends = cuda.device_array(2 * lines, self.dtype)
            threads = 32 if _cuda.simulated() else 128
            pick[-(-lines // threads), threads, queue](target, ends, *shape[:3])
            correct[-(-lines * self.n // threads), threads, queue](f.z, f.v, f.w, ends, target, *shape)


def _flat(array):
    return _cuda.wrap(array.reshape(-1))


def _copied(out, found):
    out[...] = found
    return out


def launches(dtype, each, cyclic):
    """What the PTX gate compiles."""
    from fastdiff.kernels._contract import Launch

    x, one = np.zeros(1, dtype), np.dtype(dtype).type(1)
    for tiled in (False, True):
        eliminate, substitute, correct, pick = kernels(each, tiled, np.dtype(dtype).name)
        kind, block = "contiguous" if tiled else "side by side", (TILE if tiled else THREADS, 1)
        if cyclic:
            yield Launch(f"close, {kind}", correct, (x, x, x, x, x, 1, 1, 1, 1), (128, 1))
            yield Launch("ends", pick, (x, x, 1, 1, 1), (128, 1))
        else:
            yield Launch(f"forward, {kind}", eliminate, (x, x, x, x, x, x, 1, 1, 1, 1, one, one, one), block)
            yield Launch(f"backward, {kind}", substitute, (x, x, 1, 1, 1, 1, one), block)
    if not (each or cyclic):  # what an implicit step needs besides
        from fastdiff.kernels import _state_cuda

        yield from _state_cuda.launches(dtype)


__all__ = ["SystemsCuda", "launches"]
