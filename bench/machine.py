"""What this machine can do at most, measured in the same process and with the same threads as the kernels.

* `triad`: bytes per second of a = b + s*c on arrays far larger than the caches, counting three numbers an element
  (a cache line that is written is read first as well: that is not counted, here or for the kernels).
* `in_cache`: cell updates per second of a kernel's own compiled rule, over rows that stay in the first-level cache.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from statistics import median
from time import perf_counter

import numpy as np
from numba import njit

from fastdiff.kernels._fields import Cells, FaceField, Field
from fastdiff.kernels._jit import FASTMATH, FLAGS, borrow
from fastdiff.kernels._march import components_of, map_fields, sample_of, update_rows

ROW_BYTES = 2048  # of one row: five rows and the result, of two components, fit in 32 KB
TRIAD_BYTES = 1 << 28  # of one array


@njit(fastmath=FASTMATH, **FLAGS)
def _triad(a, b, c, s, first, last):
    for i in range(first, last):
        a[i] = b[i] + s * c[i]


def _timed_together(task, threads):
    """Seconds that `task(k)` takes on all threads at once, k = 0, 1, ..."""
    start = perf_counter()
    list(_pool(threads).map(task, range(threads)))
    return perf_counter() - start


@lru_cache(maxsize=1)
def _pool(threads):
    return ThreadPoolExecutor(threads)


def triad(threads: int, dtype="float64", size_bytes: int = TRIAD_BYTES, rounds: int = 5) -> float:
    """Bytes per second of the STREAM triad (McCalpin 1995): the memory roof, at the median of its rounds."""
    n = size_bytes // np.dtype(dtype).itemsize
    a, b, c = (np.full(n, v, dtype) for v in (0, 1, 2))
    s = a.dtype.type(3)

    def part(k):
        _triad(a, b, c, s, k * n // threads, (k + 1) * n // threads)

    seconds = [_timed_together(part, threads) for _ in range(rounds + 1)][1:]
    return 3 * a.nbytes / median(seconds)


@njit(**FLAGS)
def _rows(p, out, buf, own, s, m0, p0, m1, p1, stride, out_stride, lo, hi, repeats):
    q, dst, src, kept = sample_of(p, 0), borrow(out), borrow(buf), borrow(own)
    none, step = lo - lo, 0
    update_rows(q, dst, none, out_stride, none, src, s, m0, p0, m1, p1, stride, none, kept, none, out_stride, repeats,
                lo, hi, step, step, step, step, step, none)


def _one_row(field):
    """Numbers of every cell: the first of them, as one row that stays in cache like those of the state."""
    none = np.uint64(0)
    if not isinstance(field, Cells):
        return field
    kind = FaceField if field.handed else Field
    return kind(np.resize(field.values[0], 2 * ROW_BYTES), none, none, none, none)


def row_runner(rule, dtype, ndim):
    """A function that updates `repeats` rows which stay in cache, and the number of cells of a row."""
    dtype = np.dtype(dtype)
    rule = map_fields(rule, _one_row)
    components = components_of(type(rule))
    cells = ROW_BYTES // dtype.itemsize
    pitch = cells + 64 // dtype.itemsize * 3  # no two rows at the same place of a page
    buf = np.random.default_rng(0).uniform(0.4, 0.6, components * 5 * pitch).astype(dtype)
    out, kept = np.zeros(components * pitch, dtype), np.zeros(components * pitch, dtype)
    u = np.uint64
    middle = u(2 * pitch)
    m1, p1 = (u(pitch), u(3 * pitch)) if ndim == 3 else (middle, middle)
    m0, p0 = (u(0), u(4 * pitch)) if ndim > 1 else (middle, middle)
    lo = 64 // dtype.itemsize

    def run(repeats):
        _rows(rule, out, buf, kept, middle, m0, p0, m1, p1, u(5 * pitch), u(pitch), u(lo), u(lo + cells), repeats)

    return run, cells


def in_cache(rule, dtype, ndim, threads: int, seconds: float = 0.1, rounds: int = 5) -> float:
    """Cell updates per second of a rule over rows in the first-level cache, on all threads at once."""
    runners = [row_runner(rule, dtype, ndim) for _ in range(threads)]
    cells = runners[0][1]
    repeats, spent = 1000, 0.0
    runners[0][0](1)  # compile
    while spent < seconds / 4:
        start = perf_counter()
        runners[0][0](repeats)
        spent = perf_counter() - start
        repeats *= 4 if spent < seconds / 4 else 1
    repeats = max(1, int(repeats * seconds / spent))
    times = [_timed_together(lambda k: runners[k][0](repeats), threads) for _ in range(rounds)]
    return threads * repeats * cells / median(times)
