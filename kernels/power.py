"""Many steps at once: a power of a linear step, summed in Chebyshev polynomials, and its gradient.

A step of forward Euler with coefficients and walls that do not change in time is an affine map A = 1 + L. Where L has
real eigenvalues in [-2 rho, 0], N steps are a polynomial of B = 1 + L/rho, whose eigenvalues are in [-1, 1]:

    A^N = (1 - rho + rho B)^N = sum over k of  c_k T_k(B),   c_k >= 0,  sum of c_k = 1

and c_k is below a tolerance from k ~ sqrt(2 rho N log(1/tolerance)) on: 1000 steps at the stability limit are 220
stages for 1e-11, 260 for 1e-16. It is the same polynomial of the step, not another integrator: no error in time is
added. By increments, which keep a constant field to the last bit, with C_k = c_k + c_{k+1} + ...:

    y_0 = u,  y_1 - y_0 = L y_0/rho,  y_{k+1} - y_k = (y_k - y_{k-1}) + 2 L y_k/rho
    A^N u = u + sum over k from 1 on of  C_k (y_k - y_{k-1})

What walls and sources add takes part as the component 1 of a larger field, for which T_k is 1: stages treat it as steps
do. The gradient runs the recurrence of the transpose (Clenshaw's), and *the stages themselves backwards*, y_{k-1} from
y_k and y_{k+1}: nothing but the last two is kept, whatever N. Fast modes do not die out in the stages, as they do in
steps, but cancel in the sums: errors are those of rounding what a span of `SPAN` steps begins with, times a power of
the number of stages. So fields are float64 where the result is to be as good as float32.

Shapes: as in adjoint.py, of which these kernels give the results; the reference marches step by step.
Source: Clenshaw, Math. Tables Aids Comput. 9 (1955) 118; Newman and Rivlin, "Approximation of monomials by lower degree
polynomials", Aequationes Math. 14 (1976) 451 for the number of terms.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastdiff.kernels import adjoint, variable
from fastdiff.kernels._adjoint import (
    LINE,
    PATIENCE,
    _Segments,
    _whole_samples,
    finish_planes,
    fold,
    images,
    mask_planes,
    pull,
    ready,
    restrict_grad,
)
from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import ABSENT, GHOST, HEAD, HOLD, ITEMS, PERIODIC, Side, make_edges
from fastdiff.kernels._fields import lowered
from fastdiff.kernels._jit import (
    FASTMATH,
    atomic_add,
    atomic_load,
    atomic_store,
    borrow,
    flush_denormals,
    give_way,
    inner,
    keep_apart,
    kernel,
    restore_denormals,
    restrict_dst,
    restrict_kept,
    wide_vectors,
)
from fastdiff.kernels._march import LANES, At, Star, change, ends_vary, holds_rows, sample_of
from fastdiff.kernels._part import overload_part
from fastdiff.kernels._threads import default_threads, together

SPAN = 4096  # steps that are taken at once
_TOLERANCE = {4: 1e-11, 8: 2e-16}  # what is left out, of 1, by the bytes of a number of the result
_NONE = 1e-16  # coefficients below may be rounding errors of their computation


# -- coefficients ------------------------------------------------------------------------------------------------------


class Power(NamedTuple):
    """How spans of steps are taken at once.

    scale  2/rho, by which the weights of a step are multiplied
    tails  for each span C_k, k = 0 ... stages
    """

    scale: float
    tails: tuple[np.ndarray, ...]

    @property
    def stages(self) -> int:
        """Of all spans."""
        return sum(len(t) - 1 for t in self.tails)


@lru_cache(maxsize=64)
def _tails(steps: int, rho: float, tolerance: float) -> np.ndarray:
    size = 64
    while size < 10 * np.sqrt(steps * max(rho, 1.0)) + 64:
        size *= 2
    half = np.pi / 2 * np.arange(size + 1) / size
    low, high = -2 * rho * np.sin(half) ** 2, 2 * (rho - 1) - 2 * rho * np.cos(half) ** 2
    sign = np.where(low >= -1, 1.0, (-1.0) ** (steps % 2))
    c = np.fft.irfft(sign * np.exp(steps * np.log1p(np.maximum(np.where(low >= -1, low, high), -1 + 1e-300))))
    c = 2 * c[: size + 1]
    c[[0, -1]] /= 2
    c[np.abs(c) < _NONE] = 0
    tails = np.cumsum(c[::-1])[::-1] / c.sum()
    stages = max(2, int(np.flatnonzero(np.abs(tails) > tolerance)[-1]))
    return tails[: stages + 1]


def power_of(steps: int, rho: float, itemsize: int) -> Power:
    """The stages for so many steps whose eigenvalues are from 1 - 2 rho to 1."""
    rho = float(max(rho, 1e-3) * (1 + 1e-4))  # weights are rounded
    spans = spans_of(steps)
    lengths = [steps * (k + 1) // spans - steps * k // spans for k in range(spans)]
    return Power(2 / rho, tuple(_tails(n, rho, _TOLERANCE[itemsize]) for n in lengths))


def pays(steps: int, itemsize: int) -> bool:
    """Whether so many steps are at least twice as many as their stages, whatever the step."""
    return steps >= 32 and 2 * power_of(steps, 1.0, itemsize).stages <= steps


def spans_of(steps: int) -> int:
    """Into how many spans a march is cut."""
    return -(-steps // SPAN)


# -- rows --------------------------------------------------------------------------------------------------------------


def stage_rows(p, dst, d, src, s, kept, h, along, rows, o0, o1, lo, hi, before, factor, tail, i0, i1, di0, di1,
               origin):
    """Rows of a stage: y_k at s in `src`, y_{k-1} at d in `dst`, which becomes y_{k+1}; the sum at h in `kept`."""
    raise NotImplementedError("compiled only")


def back_rows(p, q, dst, d, lam, l, src, s, kept, h, given, m, grad, g, stride, along, rows, o0, o1, lo, hi, weight, i0,
              i1, di0, di1, origin):
    """Rows of a stage's transpose: gradients by y_k at l in `lam`, by y_{k+1} at d in `dst`, which becomes the next.

    y_{k-1} is at s in `src`; y_k at h in `kept` becomes y_{k-2}; the result's gradient is at m in `given`.
    """
    raise NotImplementedError("compiled only")


def _star(array, at):
    near = ("", " - o0", " + o0", " - o1", " + o1", " - one", " + one")
    return f"Star({', '.join(f'{array}[({at}{n}) + x]' for n in near)})"


def _scope():
    return {"change": change, "pull": pull, "Star": Star, "At": At, "zero": np.uint64(0), "one": np.uint64(1),
            "keep_apart": keep_apart, "wide_vectors": wide_vectors, "restrict_dst": restrict_dst,
            "restrict_kept": restrict_kept, "restrict_grad": restrict_grad}


@overload_part(stage_rows, fastmath=FASTMATH, error_model="numpy")
def _stage_rows(p, dst, d, src, s, kept, h, along, rows, o0, o1, lo, hi, before, factor, tail, i0, i1, di0, di1,
                origin):
    lines = ["def of(p, dst, d, src, s, kept, h, along, rows, o0, o1, lo, hi, before, factor, tail, i0, i1, di0, di1,"
             " origin):",
             "    keep_apart()", "    wide_vectors()", "    restrict_dst()", "    restrict_kept()",
             "    none = i0 - i0",
             "    for row in range(rows):",
             "        for x in range(lo, hi):",
             f"            u = {_star('src', 's')}",
             "            add = before * (u.c - dst[d + x]) + factor * change(p, u, At(none, i0, i1, x + origin))",
             "            dst[d + x] = u.c + add",
             "            kept[h + x] += tail * add",
             "        d, s, h, i0, i1 = d + along, s + along, h + along, i0 + di0, i1 + di1"]
    scope = _scope()
    exec("\n".join(lines), scope)
    return scope["of"]


@overload_part(back_rows, fastmath=FASTMATH, error_model="numpy")
def _back_rows(p, q, dst, d, lam, l, src, s, kept, h, given, m, grad, g, stride, along, rows, o0, o1, lo, hi, weight,
               i0, i1, di0, di1, origin):
    grads = q.instance_class.grads
    lines = ["def of(p, q, dst, d, lam, l, src, s, kept, h, given, m, grad, g, stride, along, rows, o0, o1, lo, hi,"
             " weight, i0, i1, di0, di1, origin):",
             "    keep_apart()", "    wide_vectors()", "    restrict_dst()", "    restrict_kept()",
             "    restrict_grad()", "    none = i0 - i0", "    k0 = zero",
             *(f"    k{k} = k{k - 1} + stride" for k in range(1, grads)),
             "    for row in range(rows):",
             "        for x in range(lo, hi):",
             f"            u, v, at = {_star('src', 's')}, {_star('lam', 'l')}, At(none, i0, i1, x + origin)",
             "            new = pull(q, (u,), (v,), at)",
             "            dst[d + x] = (v.c + ((v.c - dst[d + x]) + new[0])) + weight * given[m + x]",
             "            kept[h + x] = u.c + ((u.c - kept[h + x]) + change(p, u, at))",
             *(f"            grad[g + k{k} + x] += new[{1 + k}]" for k in range(grads)),
             "        d, l, s, h, m, g = d + along, l + along, s + along, h + along, m + along, g + along",
             "        i0, i1 = i0 + di0, i1 + di1"]
    scope = _scope()
    exec("\n".join(lines), scope)
    return scope["of"]


# -- pieces of work: what one stage does to some planes ----------------------------------------------------------------


@inner
def stage_planes(p, y, old, new, total, s, z0, z1, before, factor, tail):
    """Planes z0:z1 of a stage from the field at `old`; the one before it at `new` is replaced."""
    keep_apart()
    lo, hi = np.uint64(LANES), np.uint64((LANES + s.n2 + LANES - 1) // LANES * LANES)
    o0, o1, none, flat = np.uint64(s.g0 * s.plane), np.uint64(s.g1 * s.pitch), z0 - z0, s.n1 == 1
    along, rows = (s.plane, z1 - z0) if flat else (s.pitch, s.n1)
    for z in range(z0, z0 + 1 if flat else z1):
        row = (z + s.g0) * s.plane + s.g1 * s.pitch
        stage_rows(p, y, np.uint64(new + row), y, np.uint64(old + row), total, np.uint64(row), np.uint64(along), rows,
                   o0, o1, lo, hi, before, factor, tail, z, none, none + flat, none + 1 - flat, np.uint64(0) - lo)


@inner
def back_planes(p, q, lam, l, d, y, here, far, cot, grad, sums, s, z0, z1, weight):
    """Planes z0:z1 of a stage's transpose, without what walls do."""
    keep_apart()
    lo, hi = np.uint64(LANES), np.uint64((LANES + s.n2 + LANES - 1) // LANES * LANES)
    o0, o1, none, flat = np.uint64(s.g0 * s.plane), np.uint64(s.g1 * s.pitch), z0 - z0, s.n1 == 1
    along, rows = (s.plane, z1 - z0) if flat else (s.pitch, s.n1)
    for z in range(z0, z0 + 1 if flat else z1):
        row = (z + s.g0) * s.plane + s.g1 * s.pitch
        back_rows(p, q, lam, np.uint64(d + row), lam, np.uint64(l + row), y, np.uint64(here + row), y,
                  np.uint64(far + row), cot, np.uint64(row), grad, np.uint64(sums + row), np.uint64(s.stride),
                  np.uint64(along), rows, o0, o1, lo, hi, weight, z, none, none + flat, none + 1 - flat,
                  np.uint64(0) - lo)


@inner
def scale_planes(buf, to, given, from_, s, z0, z1, factor):
    """Planes z0:z1 at `to` in `buf` are those at `from_` in `given` times a factor."""
    keep_apart()
    for z in range(z0, z1):
        for y in range(s.n1):
            row = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES
            for x in range(s.n2):
                buf[to + row + x] = factor * given[from_ + row + x]


@inner
def take_planes(b, s, z0, z1, array, at, buf, to):
    """Planes z0:z1 of sample b, which begin at `at` in an array without room around the grid."""
    keep_apart()
    for z in range(z0, z1):
        for y in range(s.n1):
            row, o = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES, ((b * s.n0 + z) * s.n1 + y) * s.n2
            for x in range(s.n2):
                buf[to + row + x] = array[at + o + x]


@inner
def give_planes(b, s, z0, z1, buf, from_, array, at):
    """The same the other way round."""
    keep_apart()
    for z in range(z0, z1):
        for y in range(s.n1):
            row, o = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES, ((b * s.n0 + z) * s.n1 + y) * s.n2
            for x in range(s.n2):
                array[at + o + x] = buf[from_ + row + x]


@inner
def forward_piece(p, e, b, t, s, z0, z1, size, start, result, more, table, y, total, ends, held, vary):
    """Piece t of a span for planes z0:z1: load, a stage each, store the result and, if there is room, the last two."""
    keep_apart()
    none, stages = z0 - z0, len(table) // 3 - 1
    now = (t & 1) * s.floor
    if t == 0:
        take_planes(b, s, z0, z1, start, none, y, none)
        finish_planes(e, b, none + 1, y, none, s, z0, z1, none, ends, held, vary)
        scale_planes(total, none, y, none, s, z0, z1, table[0])
        scale_planes(y, s.floor, y, none, s, z0, z1, table[0])
    elif t <= stages:
        stage_planes(p, y, s.floor - now, now, total, s, z0, z1, table[3 * t], table[3 * t + 1], table[3 * t + 2])
        finish_planes(e, b, none + 1, y, now, s, z0, z1, none, ends, held, vary)
    else:
        finish_planes(e, b, none + 1, total, none, s, z0, z1, none, ends, held, vary)
        give_planes(b, s, z0, z1, total, none, result, none)
        if len(more) > 0:  # t is one more than the last stage
            give_planes(b, s, z0, z1, y, s.floor - now, more, none)
            give_planes(b, s, z0, z1, y, now, more, size)


@inner
def backward_piece(p, q, e, b, t, s, z0, z1, size, more, given, result, table, y, lam, cot, grad, walls, want, bent,
                   ends, held, vary):
    """Piece t of a span's transpose: load, a stage each and, before the last, l halved; store."""
    keep_apart()
    none, stages = z0 - z0, len(table) - 3
    terms, half = grads_of(q), s.stride
    if t == 0:
        last = (stages & 1) * s.floor
        take_planes(b, s, z0, z1, more, none, y, last)
        take_planes(b, s, z0, z1, more, size, y, s.floor - last)
        take_planes(b, s, z0, z1, given, none, cot, none)
        finish_planes(e, b, none + 1, y, last, s, z0, z1, none, ends, held, vary)
        finish_planes(e, b, none + 1, y, s.floor - last, s, z0, z1, none, ends, held, vary)
        scale_planes(lam, none, cot, none, s, z0, z1, table[2 + stages])
        scale_planes(lam, half, cot, none, s, z0, z1, table[0] - table[0])
        mask_planes(e, b, none + 1, none + 1, lam, none, s, z0, z1, walls, want)
        images(e, none + 1, lam, none, s, z0, z1)
    elif t == stages:
        old = ((t - 1) & 1) * half
        scale_planes(lam, old, lam, old, s, z0, z1, table[1])
        images(e, none + 1, lam, old, s, z0, z1)
    elif t <= stages + 1:
        j = stages - t if t < stages else none
        new, here = ((stages - j) & 1) * half, (j & 1) * s.floor
        back_planes(p, q, lam, half - new, new, y, here, s.floor - here, cot, grad, b * terms * s.stride, s, z0, z1,
                    table[2 + j])
        fold(q, e, bent, b, none + 1, lam, half - new, new, y, here, s, z0, z1, none, walls, want)
        mask_planes(e, b, none + 1, none + 1, lam, new, s, z0, z1, walls, want)
        images(e, none + 1, lam, new, s, z0, z1)
        if j > 0:
            finish_planes(e, b, none + 1, y, s.floor - here, s, z0, z1, none, ends, held, vary)
    else:
        give_planes(b, s, z0, z1, lam, (stages & 1) * half, result, none)


def grads_of(q):
    """How many fields of numbers a back rule sums up."""
    return type(q).grads


@overload_part(grads_of)
def _grads_of(q):
    count = np.int64(q.instance_class.grads)
    return lambda q: count


# -- pieces over threads -----------------------------------------------------------------------------------------------


@inner
def claim(progress, e, me, K, workers, last, turns):
    """A chunk of planes that is ready for its next piece, now ours; -1: none is now, -2: all are done."""
    keep_apart()
    none, left = K - K, False
    reach = K if turns > PATIENCE else (K + workers - 1) // max(workers, none + 1)
    for j in range(K):
        k = (me * K // workers + j) % K
        t = atomic_load(progress, LINE * (1 + k))
        if t >= last:
            continue
        left = True
        if j < reach and ready(progress, e, k, K, t) and atomic_add(progress, LINE * (1 + K + k), 1) == 0:
            t = atomic_load(progress, LINE * (1 + k))  # another one may have been here
            if t < last and ready(progress, e, k, K, t):
                return k
            atomic_store(progress, LINE * (1 + K + k), 0)
    return none - 1 if left else none - 2


@inner
def release(progress, k, K):
    """A chunk has got on by one piece."""
    atomic_store(progress, LINE * (1 + k), atomic_load(progress, LINE * (1 + k)) + 1)
    atomic_store(progress, LINE * (1 + K + k), 0)


@kernel()
def run_forward(params, edges, space, b, B, size, source, result, kept, table, memory, room, counter, K, workers):
    """Worker: a span of sample b in K chunks of planes; or, without K, of all B samples, one a worker.

    A chunk goes on when its neighbours have come as far. `memory` holds two stages and the sum; `table` a 1, a half and
    nothing, then three numbers for each stage.
    """
    p, e, start, out, more = borrow(params), borrow(edges), borrow(source), borrow(result), borrow(kept)
    numbers, buf, ends, progress = borrow(table), borrow(memory), borrow(room), borrow(counter)
    float_state, s, none = flush_denormals(), space, b - b
    y, total = buf[: 2 * s.floor], buf[2 * s.floor :]
    held, vary, last = holds_rows(e, none + 1), ends_vary(e, none + 1), len(table) // 3 + 1
    me, turns = atomic_add(progress, 0, 1), none
    while K == 0 and me < B:
        one = sample_of(p, me)
        for t in range(last):
            forward_piece(one, e, me, t, s, none, s.n0, size, start, out, more, numbers, y, total, ends, held, vary)
        me = atomic_add(progress, 0, 1)
    while K > 0:
        k = claim(progress, e, me, K, workers, last, turns)
        if k < -1:
            break
        turns += 1
        if k >= 0:
            one, turns = sample_of(p, b), none
            forward_piece(one, e, b, atomic_load(progress, LINE * (1 + k)), s, k * s.n0 // K, (k + 1) * s.n0 // K, size,
                          start, out, more, numbers, y, total, ends, held, vary)
            release(progress, k, K)
        if turns > PATIENCE:
            give_way()
    restore_denormals(float_state)


@kernel()
def run_backward(params, backs, edges, slopes, space, b, B, size, kept, given, result, table, memory, grads, walls,
                 want, room, counter, K, workers):
    """Worker: the transpose of a span, shared out as in `run_forward`.

    `memory` holds two stages, two of l, and the gradient by the result; `table` a 1, a half, and c_k for each stage.
    """
    p, q, e, bent, more = borrow(params), borrow(backs), borrow(edges), borrow(slopes), borrow(kept)
    cot, out, numbers, buf = borrow(given), borrow(result), borrow(table), borrow(memory)
    grad, sums, ends, progress = borrow(grads), borrow(walls), borrow(room), borrow(counter)
    float_state, s, none = flush_denormals(), space, b - b
    y, lam, whole = buf[: 2 * s.floor], buf[2 * s.floor : 4 * s.floor], buf[4 * s.floor :]
    held, vary, last = holds_rows(e, none + 1), ends_vary(e, none + 1), len(table)
    me, turns = atomic_add(progress, 0, 1), none
    while K == 0 and me < B:
        one, other = sample_of(p, me), sample_of(q, me)
        for t in range(last):
            backward_piece(one, other, e, me, t, s, none, s.n0, size, more, cot, out, numbers, y, lam, whole, grad,
                           sums, want, bent, ends, held, vary)
        me = atomic_add(progress, 0, 1)
    while K > 0:
        k = claim(progress, e, me, K, workers, last, turns)
        if k < -1:
            break
        turns += 1
        if k >= 0:
            one, other, turns = sample_of(p, b), sample_of(q, b), none
            backward_piece(one, other, e, b, atomic_load(progress, LINE * (1 + k)), s, k * s.n0 // K,
                           (k + 1) * s.n0 // K, size, more, cot, out, numbers, y, lam, whole, grad, sums, want, bent,
                           ends, held, vary)
            release(progress, k, K)
        if turns > PATIENCE:
            give_way()
    restore_denormals(float_state)


# -- calls -------------------------------------------------------------------------------------------------------------


class _Spans(_Segments):
    """What the spans of a march share."""

    def __init__(self, rule, back, u, edges, walls, threads):
        threads = default_threads() if threads is None else threads
        super().__init__(rule, back, u, edges, None, 1, 0, walls, threads)
        self.whole = _whole_samples(self.shape, self.kinds, self.threads)
        self.chunks = 0 if self.whole else max(1, min(2 * self.threads, self.space.n0 // 8))

    def run(self, fields, call):
        """`call(b, memory, room, counter, K, workers)` in all threads, for all samples at once or one by one."""
        s, B, K, kind = self.space, self.shape[0], self.chunks, self.u.dtype
        for b in range(1 if self.whole else B):
            counter = np.zeros(LINE * (2 * K + 2), np.int64)
            shared = None if self.whole else np.zeros(fields * s.floor, kind)

            def work(b=b, counter=counter, shared=shared):
                memory = np.zeros(fields * s.floor, kind) if shared is None else shared
                call(b, memory, np.zeros(LANES, kind), counter, K, self.threads)

            together(work, min(self.threads, max(B, 1) if self.whole else K))

    def march(self, u, tails, out, kept):
        """One span from u."""
        T, table = len(tails), np.zeros(3 * len(tails), self.u.dtype)
        table[:2], table[3::3], table[4::3], table[5::3] = (1, 0.5), 1, 1, tails[1:T]
        table[3:5] = 0, 0.5  # the first stage: y_1 = y_0 + L y_0 / rho
        arrays = u.reshape(-1), out.reshape(-1), kept.reshape(-1), table
        self.run(3, lambda b, memory, *rest: run_forward(self.rule, self.edges, self.space, b, len(u), u.size, *arrays,
                                                         memory, *rest))

    def unmarch(self, kept, cot, tails, out):
        """One span backwards."""
        weights = np.append(tails[:-1] - tails[1:], tails[-1])
        table = np.concatenate([[1, 0.5], weights]).astype(self.u.dtype)
        arrays = kept.reshape(-1), cot.reshape(-1), out.reshape(-1), table
        self.run(5, lambda b, memory, *rest: run_backward(
            self.rule, self.back, self.edges, self.slopes, self.space, b, len(cot), cot.size, *arrays, memory,
            self.grads, self.walls, self.want, *rest))


class _NoBack(NamedTuple):
    """Stands for a back rule where none is needed."""

    none: Any = 0


_NoBack.components, _NoBack.grads = 1, 0  # pyright: ignore[reportAttributeAccessIssue]


def march_power(rule, u, edges, power: Power, *, keep=False, threads=None, out=None):
    """Many steps at once: (result, the last two stages of each span (2 spans or 0, *u.shape)).

    rule    a linear one, its weights, sources and all, multiplied by `power.scale`
    u       (B, 1, *grid)
    edges   the same at all times; ghosts are alpha u0 + beta u1 with beta 0 or 1 and alpha + beta <= 1
    """
    u = np.ascontiguousarray(u)
    run = _Spans(rule, _NoBack(), u, edges, False, threads)
    kept = np.empty((2 * len(power.tails) if keep else 0, *u.shape), u.dtype)
    out = np.empty_like(u) if out is None else out
    for k, tails in enumerate(power.tails):
        run.march(u, tails, out, kept[2 * k : 2 * k + 2])
        u = out
    return out, kept


def power_adjoint(rule, back, kept, cot, edges, power: Power, *, walls=True, threads=None):
    """The transpose of `march_power`, applied to `cot`: an `Adjoint`, with gradients by the numbers of `rule`."""
    cot = np.ascontiguousarray(cot)
    run = _Spans(rule, back, cot, edges, walls, threads)
    for k in reversed(range(len(power.tails))):
        found = np.empty_like(cot)
        run.unmarch(kept[2 * k : 2 * k + 2], cot, power.tails[k], found)
        cot = found
    return run.result(cot)


# -- the kernels -------------------------------------------------------------------------------------------------------


def _largest(weights, edges, family):
    """A bound of rho: half of Gershgorin's circles, walls included."""
    w = np.abs(np.asarray(weights, np.float64))
    w = 2 * w.T if family == adjoint.RATES else w
    worst = 1.0
    for side in range(6):
        k = HEAD + side * ITEMS
        if edges.ints[side >> 1] not in (ABSENT, PERIODIC) and edges.ints[k] == GHOST:
            samples = edges.ints[k + 6] + edges.ints[k + 7] * np.arange(max(1, int(edges.ints[6])))
            worst = max(worst, float(np.abs(1 - edges.reals[samples]).max() + np.abs(edges.reals[samples + 1]).max()))
    return worst * float(w.sum(0).max())


def cpu(u, cot, weights, edges, steps, family, source=None, out=None, threads=None):
    """The result of the march and its gradients, from the march's start and the gradient by its result."""
    power = power_of(steps, _largest(weights, edges, family), u.itemsize)
    scaled = None if source is None else source * u.dtype.type(power.scale)
    rule, back = adjoint._rules(u, weights * u.dtype.type(power.scale), edges, family, None, scaled)
    new, kept = march_power(rule, u, edges, power, keep=True, threads=threads)
    start, sums, walls = power_adjoint(rule, back, kept, cot, edges, power, threads=threads)
    sums = sums * u.dtype.type(power.scale)
    walls[..., 4, :] *= u.dtype.type(power.scale)
    return adjoint._filled(out, (new, start, sums, walls))


def reference(u, cot, weights, edges, steps, family, source=None, out=None):
    """Step by step in plain NumPy, float64."""
    new = variable.reference(u, _full(weights, u, family), edges, steps, None, source)
    made = adjoint.reference(u, cot, weights, edges, steps, family, None, source)
    return adjoint._filled(out, (new, *made))


def _full(weights, u, family):
    if family != adjoint.RATES:
        return weights
    ndim = u.ndim - 2
    return np.broadcast_to(np.repeat(weights.T, 2, 0).reshape(2 * ndim, len(u), *[1] * ndim),
                           (2 * ndim, len(u), *u.shape[2:]))


def _outputs(u, cot, weights, edges, steps, family, source=None):
    return (u, *adjoint._outputs(u, cot, weights, edges, steps, family, None, source))


def _sample(family, ndim, fed):
    """Two samples; the first of several axes periodic, walls of all kinds that do not change in time on the others."""

    def sample(shape, dtype, rng):
        walls = [Side(alpha=0.5, gamma=0.25, value=1.5), Side(HOLD, value=0.3),
                 Side(alpha=-1.0, gamma=2.0, value=rng.random()), Side(alpha=0.0, beta=float(family == adjoint.RATES))]
        sides = {(0, axis, end): walls[(2 * axis + end + ndim) % 4] for axis in range(ndim > 1, ndim) for end in (0, 1)}
        edges = make_edges(shape, [ndim > 1, *[False] * (ndim - 1)], dtype, sides, batch=2)
        if family == adjoint.RATES:
            weights = rng.uniform(0.02, 0.2 / ndim, (2, ndim))
        else:
            weights = rng.uniform(0.01, 0.2 / (2 * ndim), (2 * ndim, 1, *shape))
            for k in range(ndim):
                weights[2 * k + 1] = np.roll(weights[2 * k], -1, k + 1)
        source = {"source": (rng.random((1, *shape)) * 0.01).astype(dtype)} if fed else {}
        fields = {name: rng.random((2, 1, *shape)).astype(dtype) for name in ("u", "cot")}
        return dict(**fields, weights=weights.astype(dtype), edges=edges, steps=40, family=family, **source)

    return sample


@inner
def _stage_row(p, y, at, total, factor, step):
    """The hot loop of a stage and nothing else."""
    stage_rows(p, y, at, y, at, total, at, at, step, at, at, at, at, factor, factor, factor, step, step, step, step, at)


@inner
def _back_row(p, q, lam, at, y, cot, grad, weight, step):
    """The hot loop of its transpose and nothing else."""
    back_rows(p, q, lam, at, lam, at, y, at, y, at, cot, at, grad, at, at, at, step, at, at, at, at, weight, step, step,
              step, step, at)


def _machine_code(family, ndim, fed):
    def rows(dtype):
        import numba

        inputs = _sample(family, ndim, fed)((4,) * ndim, dtype, np.random.default_rng(0))
        made = [sample_of(lowered(r, (2, 2, 2), (4, 4, 4), 0), 0)
                for r in adjoint._rules(inputs["u"], inputs["weights"], inputs["edges"], family, None,
                                        inputs.get("source"))]
        number = types.float32 if dtype == np.float32 else types.float64
        values, (p, q) = types.Array(number, 1, "C"), map(numba.typeof, made)
        return [(_stage_row, (p, values, types.uint64, values, number, types.int64)),
                (_back_row, (p, q, values, types.uint64, values, values, values, number, types.int64))]

    return rows


def _kernel(family, ndim, fed=False):
    terms = adjoint._count(family, ndim) + fed
    return Kernel(name=f"power_{family}_{ndim}d", reference=reference, cpu=cpu, sample=_sample(family, ndim, fed),
                  outputs=_outputs, ndim=ndim, machine_code=_machine_code(family, ndim, fed), order=(2, 1),
                  bytes_per_cell=13 + 2 * terms, flops_per_cell=18 * ndim + 4 * terms, tolerance=16)


KERNELS = [_kernel(adjoint.FACES, 2), _kernel(adjoint.RATES, 3, True)]
