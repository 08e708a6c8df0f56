"""Many tridiagonal systems at once: Thomas' algorithm with one line a vector lane, periodic by Sherman-Morrison.

    lower_i x_{i-1} + diag_i x_i + upper_i x_{i+1} = r_i,   i = 0 ... n-1

    forward   q_i = 1/(diag_i - lower_i c_{i-1}),  c_i = upper_i q_i,  d_i = (r_i - lower_i d_{i-1}) q_i
    backward  x_i = d_i - c_i x_{i+1}

lower_0 and upper_{n-1} are not used, or couple the ends of a cyclic line: then x = y - z (y_0 + v y_{n-1}) /
(1 + z_0 + v z_{n-1}) with T y = r, T z = (g, 0, ..., 0, upper_{n-1}), g = -diag_0, v = lower_0/g, and T the matrix
with diag_0 - g and diag_{n-1} - v upper_{n-1} and without the corners. No pivoting: the matrix must be diagonally
dominant, or symmetric and definite. 3 additions and multiplications a cell in each direction.

Lines run along one axis of an array, seen as (outer, n, inner). A block of `width` lines is eliminated in scratch
memory that stays in the second-level cache, so memory is read once and written once; lines along the contiguous axis
(inner = 1) are transposed on the way in and out. Coefficients: (n,) or (groups, n) shared by the lines of a group of
outer indices, factored once; or one of each for each cell.

Source: Press et al., Numerical Recipes, 3rd ed., Cambridge 2007, sections 2.4.1 and 2.7.2; Golub, Van Loan, Matrix
Computations, 4th ed., section 4.3.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._jit import (
    atomic_add,
    borrow,
    flush_denormals,
    inner,
    keep_apart,
    kernel,
    restore_denormals,
    wide_vectors,
)
from fastdiff.kernels._threads import default_threads, scratch, together

BLOCK_BYTES = 1 << 19  # of a block of lines in scratch memory: half of a second-level cache
LEAST, MOST = 16, 256  # lines of a block


class Factors(NamedTuple):
    """Systems made ready: shared ones are factored, those with their own coefficients are only laid out.

    shared  whether lines share coefficients; then a is lower*q, b is q, c is upper*q, each (groups, n), and z (groups,
            n) the solution for the corners. Otherwise a, b, c are lower, diag, upper as (outer, n, inner), with the
            contiguous axis swapped to the front of its plane if inner is 1
    v, w    of a cyclic line, (groups,): the weight of y_{n-1}, and 1/(1 + z_0 + v z_{n-1})
    """

    a: Any
    b: Any
    c: Any
    z: Any
    v: Any
    w: Any


def reference(lower, diag, upper, u, axis, cyclic, out=None):
    """Dense elimination of every line in NumPy, float64."""
    r = np.moveaxis(np.asarray(u, np.float64), axis, -1)
    a, b, c = (np.broadcast_to(np.asarray(t, np.float64) if np.ndim(t) == 1 else np.moveaxis(
        np.asarray(t, np.float64), axis, -1), r.shape) for t in (lower, diag, upper))
    n, k = r.shape[-1], np.arange(r.shape[-1])
    dense = np.zeros((*r.shape, n))
    dense[..., k, k] += b
    for i in range(n):
        if i > 0 or cyclic:
            dense[..., i, (i - 1) % n] += a[..., i]
        if i < n - 1 or cyclic:
            dense[..., i, (i + 1) % n] += c[..., i]
    x = np.moveaxis(np.linalg.solve(dense, r[..., None])[..., 0], -1, axis)
    if out is None:
        return x
    out[...] = x
    return out


# -- the hot loops ---------------------------------------------------------------------------------------------------


@inner
def into(src, dst, s, pitch, n, w, across):
    """Bring a block of `w` lines into scratch memory, line beside line; `across`: lines are contiguous."""
    keep_apart()
    wide_vectors()
    n, w, s, pitch = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch)
    tile, zero = np.uint64(8), np.uint64(0)
    if across:
        for i0 in range(zero, n, tile):
            for x in range(w):
                for i in range(i0, min(i0 + tile, n)):
                    dst[i * w + x] = src[s + x * pitch + i]
        return
    for i in range(n):
        for x in range(w):
            dst[i * w + x] = src[s + i * pitch + x]


@inner
def back(src, dst, s, pitch, n, w, across):
    """The way out of scratch memory."""
    keep_apart()
    wide_vectors()
    n, w, s, pitch = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch)
    tile, zero = np.uint64(8), np.uint64(0)
    if across:
        for i0 in range(zero, n, tile):
            for x in range(w):
                for i in range(i0, min(i0 + tile, n)):
                    dst[s + x * pitch + i] = src[i * w + x]
        return
    for i in range(n):
        for x in range(w):
            dst[s + i * pitch + x] = src[i * w + x]


@kernel()
def forward_from(d, src, s, pitch, a, b, f, n, w):
    """Forward elimination with shared factors, from memory into scratch."""
    wide_vectors()
    n, w, s, pitch, f, one = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch), np.uint64(f), np.uint64(1)
    for x in range(w):
        d[x] = src[s + x] * b[f]
    for i in range(one, n):
        q, l, row, at = b[f + i], a[f + i], i * w, s + i * pitch
        for x in range(w):
            d[row + x] = src[at + x] * q - l * d[row - w + x]


@kernel()
def forward_here(d, a, b, f, n, w):
    """Forward elimination with shared factors, inside scratch."""
    wide_vectors()
    n, w, f, one = np.uint64(n), np.uint64(w), np.uint64(f), np.uint64(1)
    for x in range(w):
        d[x] = d[x] * b[f]
    for i in range(one, n):
        q, l, row = b[f + i], a[f + i], i * w
        for x in range(w):
            d[row + x] = d[row + x] * q - l * d[row - w + x]


@kernel()
def backward_to(d, dst, s, pitch, c, f, n, w):
    """Back substitution with shared factors, from scratch into memory."""
    wide_vectors()
    n, w, s, pitch, f, one = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch), np.uint64(f), np.uint64(1)
    last = s + (n - one) * pitch
    for x in range(w):
        dst[last + x] = d[(n - one) * w + x]
    for k in range(one, n):
        i = n - one - k
        up, row, at = c[f + i], i * w, s + i * pitch
        for x in range(w):
            dst[at + x] = d[row + x] - up * dst[at + pitch + x]


@kernel()
def backward_here(d, c, f, n, w):
    """Back substitution with shared factors, inside scratch."""
    wide_vectors()
    n, w, f, one = np.uint64(n), np.uint64(w), np.uint64(f), np.uint64(1)
    for k in range(one, n):
        i = n - one - k
        up, row = c[f + i], i * w
        for x in range(w):
            d[row + x] = d[row + x] - up * d[row + w + x]


@kernel()
def eliminate(d, e, lower, diag, upper, s, pitch, n, w, base, scale, unit):
    """Lines with their own coefficients: forward and back inside scratch `d`; `e` keeps c. `unit` is 1, typed.

    The matrix is `base` + `scale` times what is given.
    """
    wide_vectors()
    n, w, s, pitch, one = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch), np.uint64(1)
    for x in range(w):
        q = unit / (base + scale * diag[s + x])
        e[x], d[x] = (scale * upper[s + x]) * q, d[x] * q
    for i in range(one, n):
        row, at = i * w, s + i * pitch
        for x in range(w):
            l = scale * lower[at + x]
            q = unit / ((base + scale * diag[at + x]) - l * e[row - w + x])
            e[row + x] = (scale * upper[at + x]) * q
            d[row + x] = (d[row + x] - l * d[row - w + x]) * q
    for k in range(one, n):
        row = (n - one - k) * w
        for x in range(w):
            d[row + x] = d[row + x] - e[row + x] * d[row + w + x]


@inner
def close_lines(d, e, z, v, u, s, pitch, g, shared, n, w):
    """What the corners of cyclic lines add: x = y - z (y_0 + v y_{n-1}) u."""
    keep_apart()
    wide_vectors()
    n, w, s, pitch, g, zero = np.uint64(n), np.uint64(w), np.uint64(s), np.uint64(pitch), np.uint64(g), np.uint64(0)
    last = (n - np.uint64(1)) * w
    for x in range(w):
        e[x] = (d[x] + v[g if shared else g + x] * d[last + x]) * u[g if shared else g + x]
    for i in range(n):
        for x in range(w):
            d[i * w + x] -= e[x] * z[s + i * pitch + (zero if shared else x)]


@kernel()
def run(factors, source, target, memory, counter, outer, n, inner, group, width, shared, cyclic, base, scale, unit):
    """Worker: take blocks of lines until none is left. `group`: outer indices that share coefficients."""
    f, src, dst, buf, progress = borrow(factors), borrow(source), borrow(target), borrow(memory), borrow(counter)
    across = inner == 1
    lines = group if across else inner  # among which a block is taken
    per, pitch = (lines + width - 1) // width, 1 if across else inner
    blocks = per * (outer // group if across else outer)
    d, e = buf[: n * width], buf[n * width :]
    state = flush_denormals()
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= blocks:
            break
        o, x0 = turn // per, turn % per * width
        w = min(width, lines - x0)
        g = o if across else o // group  # of the coefficients
        s = (o * group + x0) * n if across else o * n * inner + x0
        here = g * n if shared else (g * n * lines + x0)
        if across or cyclic or not shared:
            into(src, d, s, n if across else inner, n, w, across)
            if shared:
                forward_here(d, f.a, f.b, here, n, w)
                backward_here(d, f.c, here, n, w)
            else:
                eliminate(d, e, f.a, f.b, f.c, here, lines, n, w, base, scale, unit)
            if cyclic:
                close_lines(d, e, f.z, f.v, f.w, here, 1 if shared else lines, g if shared else g * lines + x0, shared,
                            n, w)
            back(d, dst, s, n if across else inner, n, w, across)
        else:
            forward_from(d, src, s, pitch, f.a, f.b, here, n, w)
            backward_to(d, dst, s, pitch, f.c, here, n, w)
    restore_denormals(state)


@kernel()
def add_scaled(target, source, scale, first, last):
    """target += scale * source, from one place to another."""
    u, x = borrow(target), borrow(source)
    wide_vectors()
    for i in range(np.uint64(first), np.uint64(last)):
        u[i] += scale * x[i]


# -- the host --------------------------------------------------------------------------------------------------------


class Systems:
    """Tridiagonal systems along one axis of arrays of one shape and dtype, made ready once and solved many times.

    lower, diag, upper  (n,), or (groups, n) with groups dividing the product of the axes before, or of the arrays'
                        shape. lower[0] and upper[-1] are ignored, or couple the ends if `cyclic`
    """

    def __init__(self, lower, diag, upper, shape, axis, dtype, *, cyclic=False, threads=None):
        self.shape, self.axis, self.dtype = tuple(shape), axis % len(shape), np.dtype(dtype)
        self.threads = default_threads() if threads is None else threads
        self.outer, self.n = int(np.prod(self.shape[: self.axis])), self.shape[self.axis]
        self.inner = int(np.prod(self.shape[self.axis + 1 :]))
        bands = [np.asarray(t, np.float64) for t in (lower, diag, upper)]
        self.shared = all(t.ndim < 3 and t.shape[-1] == self.n and t.shape != self.shape for t in bands)
        self.cyclic = cyclic and self.n > 2
        bands = [self._laid_out(t) for t in bands]
        self.group = self.outer // len(bands[0]) if self.shared or self.inner > 1 else self.outer
        self.factors = self._factored(*self._folded(*bands, cyclic))

    def _laid_out(self, band):
        """(groups, n), or (outer, n, inner); lines along the contiguous axis as (1, n, outer)."""
        if self.shared:
            band = np.atleast_2d(band)
            if band.shape[-1] != self.n or self.outer % len(band):
                raise ValueError(f"coefficients {band.shape} do not fit lines of {self.n} in {self.outer} rows")
            return band
        band = np.broadcast_to(band, self.shape).reshape(self.outer, self.n, self.inner)
        return band.transpose(2, 1, 0) if self.inner == 1 else band

    def _folded(self, lower, diag, upper, cyclic):
        """The bands without corners, and the weights v of y_{n-1} for cyclic lines."""
        groups = max(b.shape[0] for b in (lower, diag, upper))
        lower, diag, upper = (_copied(np.broadcast_to(b, (groups, *b.shape[1:]))) for b in (lower, diag, upper))
        v = np.zeros_like(diag[:, 0])
        if cyclic and self.n == 1:
            diag = diag + lower + upper
        elif cyclic and self.n == 2:  # both neighbours are the same cell
            lower[:, 1] += upper[:, 1]
            upper[:, 0] += lower[:, 0]
        elif cyclic:
            v = -lower[:, 0] / diag[:, 0]
            diag[:, -1] -= v * upper[:, -1]
            self._corner = -diag[:, 0].copy(), upper[:, -1].copy()
            diag[:, 0] *= 2
        lower[:, 0], upper[:, -1] = 0.0, 0.0
        return lower, diag, upper, v

    def _factored(self, lower, diag, upper, v):
        if not (self.shared or self.cyclic):
            return self._flat(lower, diag, upper, v[:1], v, v)
        c, q = np.empty_like(diag), np.empty_like(diag)
        q[:, 0] = 1 / diag[:, 0]
        c[:, 0] = upper[:, 0] * q[:, 0]
        for i in range(1, self.n):
            q[:, i] = 1 / (diag[:, i] - lower[:, i] * c[:, i - 1])
            c[:, i] = upper[:, i] * q[:, i]
        if not (np.isfinite(q).all()):
            raise ValueError("a system is singular, or needs pivoting, which is not done here")
        z, w = np.zeros((len(diag), 1)), np.zeros_like(v)
        if self.cyclic:
            z = np.zeros_like(diag)
            z[:, 0], z[:, -1] = self._corner
            z = _thomas(lower * q, q, c, z)
            w = 1 / (1 + z[:, 0] + v * z[:, -1])
        parts = (lower * q, q, c, z, v, w) if self.shared else (lower, diag, upper, z, v, w)
        return self._flat(*parts)

    def _flat(self, *parts):
        return Factors(*(np.ascontiguousarray(part, self.dtype).reshape(-1) for part in parts))

    def solve(self, r, out=None, scale=None):
        """x for the right-hand sides `r`; `out` may be `r`.

        scale  the matrix is 1 + `scale` times the given one: for lines with their own coefficients that are not cyclic,
               of which nothing is computed beforehand
        """
        if scale is not None and (self.shared or self.cyclic):
            raise ValueError("lines that are shared or cyclic are factored: make new systems for another scale")
        if r.shape != self.shape or r.dtype != self.dtype or not r.flags.c_contiguous:
            raise ValueError(f"expected a C-contiguous array of shape {self.shape} and dtype {self.dtype}")
        out = np.empty_like(r) if out is None else out
        lines = self.group if self.inner == 1 else self.inner
        row = self.n * self.dtype.itemsize * (1 if self.shared else 2)
        width = min(MOST, max(LEAST, BLOCK_BYTES // row // LEAST * LEAST), max(LEAST, -(-lines // LEAST) * LEAST))
        blocks = -(-lines // width) * (self.outer // self.group if self.inner == 1 else self.outer)
        if blocks < self.threads and lines > LEAST:  # enough blocks for every thread
            width = max(LEAST, -(-lines * blocks // self.threads // LEAST // max(blocks, 1)) * LEAST)
        progress, number = np.zeros(1, np.int64), self.dtype.type
        numbers = number(scale is not None), number(1 if scale is None else scale), number(1)

        def task():
            memory = scratch(2 * self.n * width, self.dtype)
            run(self.factors, r.reshape(-1), out.reshape(-1), memory, progress, self.outer, self.n, self.inner,
                self.group, width, self.shared, self.cyclic, *numbers)

        together(task, min(self.threads, max(blocks, -(-lines // width))))
        return out


def accumulate(u, x, scale, threads=None):
    """u += scale * x for contiguous arrays, on all threads."""
    count = max(1, min(default_threads() if threads is None else threads, u.size >> 15))
    parts, scale = [(k * u.size // count, (k + 1) * u.size // count) for k in range(count)], u.dtype.type(scale)

    def task():
        while True:
            try:
                first, last = parts.pop()
            except IndexError:
                return
            add_scaled(u.reshape(-1), x.reshape(-1), scale, first, last)

    together(task, count)


def _copied(band):
    """A C-contiguous copy. Of a transposed plane by strips of a cache line, which takes a quarter of NumPy's time."""
    copy = np.empty(band.shape, band.dtype)
    if band.ndim < 3 or band.strides[-1] <= band.strides[-2]:
        copy[...] = band
        return copy
    for k in range(0, band.shape[-1], 8):
        copy[..., k : k + 8] = band[..., k : k + 8]
    return copy


def _thomas(a, q, c, r):
    """Factored systems in NumPy: (groups, n) or (groups, n, lines)."""
    d = r * q
    for i in range(1, d.shape[1]):
        d[:, i] -= a[:, i] * d[:, i - 1]
    for i in range(d.shape[1] - 2, -1, -1):
        d[:, i] -= c[:, i] * d[:, i + 1]
    return d


def cpu(lower, diag, upper, u, axis, cyclic, out=None, threads=None):
    """Solve along `axis` on the CPU."""
    return Systems(lower, diag, upper, u.shape, axis, u.dtype, cyclic=cyclic, threads=threads).solve(u, out)


def cuda(lower, diag, upper, u, axis, cyclic, out=None, stream=None):
    """Solve along `axis` on the GPU."""
    from fastdiff.kernels._tridiagonal_cuda import SystemsCuda

    return SystemsCuda(lower, diag, upper, u.shape, axis, u.dtype, cyclic=cyclic).solve(u, out, stream=stream)


def _ptx(each, cyclic):
    def launches(dtype):
        from fastdiff.kernels._tridiagonal_cuda import launches

        return list(launches(dtype, each, cyclic))

    return launches


def _sample(axis, each, cyclic):
    def sample(shape, dtype, rng):
        form = shape if each else (shape[axis],)
        lower, upper = -rng.random(form), -rng.random(form)
        return dict(lower=lower, diag=1.2 - lower - upper, upper=upper, u=rng.random(shape).astype(dtype), axis=axis,
                    cyclic=cyclic)

    return sample


def _machine_code(dtype):
    from numba import types

    kind = types.float32 if np.dtype(dtype) == np.float32 else types.float64
    row, i = types.Array(kind, 1, "C"), types.int64
    return [(forward_from, (row, row, i, i, row, row, i, i, i)), (backward_to, (row, row, i, i, row, i, i, i)),
            (forward_here, (row, row, row, i, i, i)), (backward_here, (row, row, i, i, i)),
            (eliminate, (row, row, row, row, row, i, i, i, i, kind, kind, kind)), (add_scaled, (row, row, kind, i, i))]


_SHAPES = {(1, 1, 1): "one equation", (1, 2, 3): "two equations", (2, 3, 1): "contiguous lines of three",
           (3, 7, 5): "nothing is a whole vector", (2, 33, 70): "more lines than a narrow block, odd lengths",
           (70, 6, 1): "many contiguous lines"}


def _kernel(name, each, cyclic):
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, sample=_sample(1, each, cyclic),
                  shapes=_SHAPES, large=(1, 1024, 4096), machine_code=_machine_code, ptx=_ptx(each, cyclic),
                  bytes_per_cell=5 if each else 2, flops_per_cell=8 if each else 5, tolerance=8)


KERNELS = [
    _kernel("tridiagonal", False, False),
    _kernel("tridiagonal_cyclic", False, True),
    _kernel("tridiagonal_each", True, False),
    _kernel("tridiagonal_each_cyclic", True, True),
]
