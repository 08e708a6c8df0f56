"""How a convolution with its boundary is run on the CPU: tiles in cache, shared out to threads.

Space is always three axes (n0, n1, n2), n2 contiguous: 1-D is (1, 1, n), 2-D is (1, n1, n2). A task takes one tile of
one sample and one group of channels: it copies the input's cells under the tile, with what the boundary says lies
beyond the grid, into this thread's scratch memory (second-level cache), and multiplies from there. No padded copy of
the input is ever in memory.

Depthwise convolutions have one output channel a group: there a block is several rows, with a banded table of weights.
"""

from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._activation import activate, times_slope
from fastdiff.kernels._jit import atomic_add, flush_denormals, inner, keep_apart, kernel, restore_denormals
from fastdiff.kernels._part import callable_part
from fastdiff.kernels._threads import default_threads, scratch, together
from fastdiff.kernels._tiles import BLOCKS, VECTOR_BYTES, correlate, fetch, lanes, multiply, take_row

PERIODIC, NEUMANN, DIRICHLET = 0, 1, 2
MODES = {"periodic": PERIODIC, "neumann": NEUMANN, "dirichlet": DIRICHLET}
SERIAL = 3_000_000  # fewer multiplications than this are not worth a second thread
FAR = 1 << 20  # bytes of input and output that do not stay in second-level cache
CHUNKS = 16  # partial sums of a weight's gradient: their number must not depend on the threads
B1, B2, B3, B4, B6, B8, B9 = ((0,) * n for n in (1, 2, 3, 4, 6, 8, 9))
T5, T7 = (0,) * 5, (0,) * 7


def modes_of(boundary, ndim: int) -> tuple[int, ...]:
    """Numbers of the boundaries of each axis, from one name or a name an axis; an unknown name lists the known."""
    names = (boundary,) * ndim if isinstance(boundary, str) else tuple(boundary)
    if len(names) != ndim:
        raise ValueError(f"boundary must be one name or one for each of the {ndim} axes, got {boundary!r}")
    for name in names:
        if name not in MODES:
            raise ValueError(f"unknown boundary {name!r}; known: {', '.join(MODES)}")
    return tuple(MODES[name] for name in names)


class Plan(NamedTuple):
    """What the compiled code must know."""

    batch: int
    groups: int
    cin: int  # channels of a group
    cout: int
    code: int  # of the activation
    block: int  # rows that one product makes at once
    band: int  # of these, how many are rows of the grid (depthwise) rather than channels
    taps: int
    n0: int  # cells of the input
    n1: int
    n2: int
    m0: int  # cells of the output
    m1: int
    m2: int
    o0: int  # the output's first cell needs the input from here on
    o1: int
    o2: int
    mode0: int
    mode1: int
    mode2: int
    t0: int  # cells of a tile
    t1: int
    t2: int
    c0: int  # tiles along each axis
    c1: int
    c2: int
    d0: int  # cells under a tile
    d1: int
    d2: int
    pitch: int  # from row to row of the copy
    wide: int  # from row to row of a result, whole vectors
    k0: int
    k1: int
    k2: int
    s0: int  # dilation
    s1: int
    s2: int
    run: int  # tiles that a task takes, one after the other
    ahead: int  # whether to fetch the next tile while one is worked on: it comes from far


def space_of(grid, fill=1) -> Any:
    """A grid's sizes along the three axes."""
    return (*[fill] * (3 - len(grid)), *grid)


def block_for(count: int) -> int:
    """The block that leaves the fewest rows unused; the largest of those."""
    return max(BLOCKS, key=lambda m: (-(-(-count // m) * m), m))


def tile_for(out, channels: int, itemsize: int) -> tuple[int, int, int]:
    """Cells of a tile: rows as long as can be, and as many as fit into cache."""
    room = max(256, min(8192, (64 << 10) // (itemsize * channels)))
    t2 = min(out[2], room, 2048)
    t1 = min(out[1], max(1, room // t2))
    return min(out[0], max(1, room // (t2 * t1))), t1, t2


@lru_cache(maxsize=512)
def plan_for(shape, weight, groups, dilation, modes, code, dtype, extend=(0, 0, 0)) -> tuple:
    """(Plan, offsets) of a convolution of (B, C, n0, n1, n2) with (Cout, C/groups, k0, k1, k2).

    `extend`: the output has so many cells more on both sides of each axis.
    """
    B, _, *n = shape
    cout, cin, *k = weight
    cout //= groups
    half = [s * (c - 1) // 2 for s, c in zip(dilation, k)]
    out = [a + 2 * e for a, e in zip(n, extend)]
    depthwise = cin == cout == 1 and k[1] > 1
    block = 4 if depthwise else block_for(cout)
    band = block if depthwise else 1
    tile = tile_for(out, max(cin, cout), dtype.itemsize)
    width = lanes(dtype)
    wide = ceil(tile[2] / width) * width
    pitch = wide + ceil(2 * half[2] / width) * width
    d = (tile[0] + 2 * half[0], ceil(tile[1] / band) * band + 2 * half[1], pitch)
    spread = (k[0], 1), (band + 2 * half[1], 1) if depthwise else (k[1], dilation[1]), (k[2], dilation[2])
    (a0, _), (a1, s1), (a2, s2) = spread
    c, i, j, l = np.ogrid[:cin, :a0, :a1, :a2]
    offsets = (((c * d[0] + i * dilation[0]) * d[1] + j * s1) * pitch + l * s2).reshape(-1).astype(np.int64)
    counts = [ceil(a / t) for a, t in zip(out, tile)]
    origin = [-e - h for e, h in zip(extend, half)]
    tiles, size = B * groups * int(np.prod(counts)), B * groups * (cin + cout) * int(np.prod(n)) * dtype.itemsize
    return Plan(B, groups, cin, cout, code, block, band, len(offsets), *n, *out, *origin, *modes, *tile, *counts, *d,
                pitch, wide, *k, *dilation, max(1, min(8, tiles // 32)), int(size > FAR)), offsets


def pack_weights(weight, plan: Plan) -> np.ndarray:
    """Weights (Cout, Cin, k0, k1, k2) in the order of use: (group, block, tap, row of the block), zeros beyond."""
    p = plan
    if p.band > 1:
        return _banded(weight, p)
    blocks = -(-p.cout // p.block)
    packed = np.zeros((p.groups, blocks * p.block, p.taps), weight.dtype)
    packed[:, : p.cout] = weight.reshape(p.groups, p.cout, p.taps)
    return np.ascontiguousarray(packed.reshape(p.groups, blocks, p.block, p.taps).swapaxes(2, 3)).reshape(-1)


def _banded(weight, p: Plan) -> np.ndarray:
    rows, weight = p.band + (p.k1 - 1) * p.s1, weight.reshape(p.groups, p.k0, p.k1, p.k2)
    packed = np.zeros((p.groups, p.k0, rows, p.k2, p.band), weight.dtype)
    for row in range(p.band):
        for k in range(p.k1):
            packed[:, :, row + k * p.s1, :, row] = weight[:, :, k]
    return packed.reshape(-1)


def pack_bias(bias, plan: Plan, dtype) -> np.ndarray:
    """What the sums start from: (group, block, row of the block)."""
    p = plan
    if p.band > 1:
        return np.zeros(p.groups * p.band, dtype) if bias is None else np.repeat(bias, p.band)
    full = np.zeros((p.groups, -(-p.cout // p.block) * p.block), dtype)
    if bias is not None:
        full[:, : p.cout] = bias.reshape(p.groups, p.cout)
    return full.reshape(-1)


# -- rows and boundaries -----------------------------------------------------------------------------------------------


@callable_part()
def place(i, n, mode):
    """The cell that stands for cell `i` of an axis of `n` cells; -1: none, its value is zero."""
    if 0 <= i and i < n:
        return i
    if mode == PERIODIC:
        return i % n
    if mode == NEUMANN:
        return 0 if i < 0 else n - 1
    return -1


@inner
def copy(src, s, dst, d, count):
    """dst[d + i] = src[s + i]."""
    s, d = np.uint64(s), np.uint64(d)
    for i in range(np.uint64(max(count, 0))):
        dst[d + i] = src[s + i]


@inner
def add(src, s, dst, d, count):
    """dst[d + i] += src[s + i]."""
    s, d = np.uint64(s), np.uint64(d)
    for i in range(np.uint64(max(count, 0))):
        dst[d + i] += src[s + i]


@inner
def fill(dst, d, count, value):
    """dst[d + i] = value."""
    d = np.uint64(d)
    for i in range(np.uint64(max(count, 0))):
        dst[d + i] = value


@inner
def pack_row(src, row, n, mode, low, count, dst, d, width):
    """Cells low .. low + count of a row, as the boundary continues it, then zeros up to `width`. row < 0: all zeros."""
    vectors = width // (VECTOR_BYTES // dst.itemsize)
    take_row(dst, d, src, row, low, min(n, low + count) if row >= 0 else 0, vectors)
    if row < 0:
        return
    for i in range(min(-low, count)):
        j = place(low + i, n, mode)
        dst[d + i] = src[row + j] if j >= 0 else dst.dtype.type(0)
    for i in range(max(n - low, 0), count):
        j = place(low + i, n, mode)
        dst[d + i] = src[row + j] if j >= 0 else dst.dtype.type(0)


@inner
def pack_tile(p, src, first, channels, lo0, lo1, lo2, dst, at, rows0, rows1, count, width):
    """The cells under a tile: `channels` planes from channel `first` on, rows0 x rows1 rows of `count` cells each."""
    for c in range(channels):
        base = (first + c) * p.n0 * p.n1 * p.n2
        for i in range(rows0):
            z = place(lo0 + i, p.n0, p.mode0)
            for j in range(rows1):
                y = place(lo1 + j, p.n1, p.mode1)
                row = base + (z * p.n1 + y) * p.n2 if z >= 0 and y >= 0 else -1
                pack_row(src, row, p.n2, p.mode2, lo2, count, dst, at + ((c * p.d0 + i) * p.d1 + j) * width, width)


# -- products by size of the block -------------------------------------------------------------------------------------


@inner
def times(m, dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, vectors):
    """`multiply` for a block whose size is known at run time."""
    keep_apart()
    if m == 1:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B1, vectors)
    elif m == 2:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B2, vectors)
    elif m == 3:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B3, vectors)
    elif m == 4:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B4, vectors)
    elif m == 6:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B6, vectors)
    elif m == 8:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B8, vectors)
    else:
        multiply(dst, at, pitch, src, here, offsets, tap, taps, w, first_w, start, first, B9, vectors)


@inner
def gather(m, t, acc, into, left, here, lp, right, there, rp, rows, lrow, rrow, vectors):
    """`correlate` for m in (1, 2, 3, 4, 8) and t in (1, 3, 5, 7): those of `sums_for`."""
    keep_apart()
    if t == 1:
        if m == 8:
            correlate(acc, into, left, here, lp, B8, right, there, rp, B1, rows, lrow, rrow, vectors)
        elif m == 4:
            correlate(acc, into, left, here, lp, B4, right, there, rp, B1, rows, lrow, rrow, vectors)
        elif m == 3:
            correlate(acc, into, left, here, lp, B3, right, there, rp, B1, rows, lrow, rrow, vectors)
        else:
            correlate(acc, into, left, here, lp, B1, right, there, rp, B1, rows, lrow, rrow, vectors)
    elif t == 3:
        if m == 8:
            correlate(acc, into, left, here, lp, B8, right, there, rp, B3, rows, lrow, rrow, vectors)
        elif m == 4:
            correlate(acc, into, left, here, lp, B4, right, there, rp, B3, rows, lrow, rrow, vectors)
        elif m == 3:
            correlate(acc, into, left, here, lp, B3, right, there, rp, B3, rows, lrow, rrow, vectors)
        else:
            correlate(acc, into, left, here, lp, B1, right, there, rp, B3, rows, lrow, rrow, vectors)
    elif t == 5:
        if m == 4:
            correlate(acc, into, left, here, lp, B4, right, there, rp, T5, rows, lrow, rrow, vectors)
        elif m == 3:
            correlate(acc, into, left, here, lp, B3, right, there, rp, T5, rows, lrow, rrow, vectors)
        else:
            correlate(acc, into, left, here, lp, B1, right, there, rp, T5, rows, lrow, rrow, vectors)
    elif m == 3:
        correlate(acc, into, left, here, lp, B3, right, there, rp, T7, rows, lrow, rrow, vectors)
    else:
        correlate(acc, into, left, here, lp, B1, right, there, rp, T7, rows, lrow, rrow, vectors)


def sums_for(channels: int, taps: int) -> tuple[int, int]:
    """Channels and taps that `gather` takes at once: taps must be whole blocks, channels may leave a rest."""
    t = next(t for t in (3, 5, 7, 1) if taps % t == 0)
    return next(m for m in {1: (8, 4, 3, 1), 3: (8, 4, 3, 1), 5: (4, 3, 1), 7: (3, 1)}[t]
                if m == 1 or channels % m == 0), t


@inner
def total(acc, k, width):
    """The sum over the lanes of vector `k`."""
    at, half = np.uint64(k * width), np.uint64(width)
    while half > np.uint64(1):
        half = half >> np.uint64(1)
        for i in range(half):
            acc[at + i] += acc[at + half + i]
    return acc[at]


@kernel()
def multiply_loop(dst, src, offsets, w, start, vectors):
    """The hot loop of a forward pass alone, for those who look at machine code."""
    times(8, dst, 0, len(src), src, 0, offsets, 0, len(offsets), w, 0, start, 0, vectors)


@kernel()
def correlate_loop(acc, left, right, vectors):
    """The hot loop of a weight's gradient alone, for those who look at machine code."""
    gather(8, 3, acc, 0, left, 0, len(right), right, 0, 1, 1, 0, 0, vectors)


@inner
def vectors_of(array, count):
    """Vectors that hold `count` numbers of an array's type."""
    width = VECTOR_BYTES // array.itemsize
    return -(-count // width)


# -- the passes --------------------------------------------------------------------------------------------------------


@inner
def tile_at(p, item):
    """Sample, group, first cells and sizes of tile number `item`."""
    tiles = p.c0 * p.c1 * p.c2
    bg, tile = item // tiles, item % tiles
    a0, a1, a2 = tile // (p.c1 * p.c2) * p.t0, tile // p.c2 % p.c1 * p.t1, tile % p.c2 * p.t2
    return bg, a0, a1, a2, min(p.t0, p.m0 - a0), min(p.t1, p.m1 - a1), min(p.t2, p.m2 - a2)


@inner
def fetch_under(p, x, item, part, parts):
    """Fetch part number `part` of `parts` of the input's cells under tile number `item`."""
    bg, a0, a1, a2, z_count, y_count, count = tile_at(p, item)
    planes, lines = p.d0 - p.t0 + z_count, p.d1 - p.t1 + y_count
    rows = p.cin * planes * lines
    for r in range(rows * part // parts, rows * (part + 1) // parts):
        z, y = place(a0 + p.o0 + r // lines % planes, p.n0, p.mode0), place(a1 + p.o1 + r % lines, p.n1, p.mode1)
        if z >= 0 and y >= 0:
            low = min(max(a2 + p.o2, 0), p.n2)
            row = ((bg * p.cin + r // (lines * planes)) * p.n0 + z) * p.n1 + y
            fetch(x, row * p.n2 + low, min(count + p.pitch - p.wide, p.n2 - low), ())


@kernel()
def run_forward(p, x, w, start, y, pre, offsets, space, counter):
    """Convolve tiles until none is left. Boundary, bias and activation included; `pre` may be empty."""
    before = flush_denormals()
    items = p.batch * p.groups * p.c0 * p.c1 * p.c2
    strip = p.cin * p.d0 * p.d1 * p.pitch
    while True:
        task = atomic_add(counter, 0, 1)
        if task * p.run >= items:
            break
        last = min(items, (task + 1) * p.run) - 1
        for item in range(task * p.run, last + 1):
            bg, a0, a1, a2, z_count, y_count, count = tile_at(p, item)
            rows = p.d1 - -(-p.t1 // p.band) * p.band + -(-y_count // p.band) * p.band
            pack_tile(p, x, bg * p.cin, p.cin, a0 + p.o0, a1 + p.o1, a2 + p.o2, space, 0, p.d0 - p.t0 + z_count, rows,
                      count + p.pitch - p.wide, p.pitch)
            for z in range(z_count):
                for row in range(0, y_count, p.band):
                    if p.ahead and item < last:
                        fetch_under(p, x, item + 1, z * y_count + row, z_count * y_count)
                    here = (z * p.d1 + row) * p.pitch
                    convolve_rows(p, w, start, y, pre, offsets, space, bg // p.groups, bg % p.groups, a0 + z, a1 + row,
                                  a2, y_count - row, count, here, strip)
    restore_denormals(before)


@inner
def convolve_rows(p, w, start, y, pre, offsets, space, b, g, z, row, x, rows_left, count, here, strip):
    """All channels of one row (or `band` rows) of a tile."""
    blocks = 1 if p.band > 1 else -(-p.cout // p.block)
    for k in range(blocks):
        block = g * blocks + k
        if p.ahead and p.band == 1:
            for m in range(min(p.block, p.cout - k * p.block)):
                to = ((((b * p.groups + g) * p.cout + k * p.block + m) * p.m0 + z) * p.m1 + row) * p.m2 + x
                fetch(y, to, count, (0,))
        times(p.block, space, strip, p.wide, space, here, offsets, 0, p.taps, w, block * p.taps * p.block, start,
              block * p.block, vectors_of(space, count))
        rows = min(p.block, rows_left if p.band > 1 else p.cout - k * p.block)
        for m in range(rows):
            channel, line = (0, row + m) if p.band > 1 else (k * p.block + m, row)
            to = ((((b * p.groups + g) * p.cout + channel) * p.m0 + z) * p.m1 + line) * p.m2 + x
            if pre.size > 0:
                copy(space, strip + m * p.wide, pre, to, count)
            activate(p.code, space, strip + m * p.wide, y, to, count)


@kernel()
def run_weights(p, x, grad, part, chunks, m, t, space, counter):
    """Gradients of weights and bias: part[chunk, group, channel, input channel and tap; and the bias, last].

    A task sums over the tiles of one chunk, for one group, each sum a whole vector. `m`, `t`: channels and taps of one
    product.
    """
    before = flush_denormals()
    tiles, width = p.c0 * p.c1 * p.c2, VECTOR_BYTES // space.itemsize
    sums = p.cout * (p.cin * p.k0 * p.k1 * p.k2 + 1)
    x_at = sums * width
    g_at = x_at + p.cin * p.d0 * p.d1 * p.pitch
    ones = g_at + p.cout * p.t0 * p.t1 * p.wide
    while True:
        task = atomic_add(counter, 0, 1)
        if task >= chunks * p.groups:
            break
        chunk, g = task // p.groups, task % p.groups
        fill(space, 0, sums * width, space.dtype.type(0))
        fill(space, ones, p.wide, space.dtype.type(1))
        for item in range(chunk * p.batch * tiles // chunks, (chunk + 1) * p.batch * tiles // chunks):
            number = (item // tiles * p.groups + g) * tiles + item % tiles
            bg, a0, a1, a2, z_count, y_count, count = tile_at(p, number)
            pack_tile(p, x, bg * p.cin, p.cin, a0 + p.o0, a1 + p.o1, a2 + p.o2, space, x_at, p.d0 - p.t0 + z_count,
                      p.d1 - p.t1 + y_count, count + p.pitch - p.wide, p.pitch)
            pack_gradient(p, grad, bg * p.cout, a0, a1, a2, z_count, y_count, count, space, g_at)
            more = p.ahead and item + 1 < (chunk + 1) * p.batch * tiles // chunks
            coming = ((item + 1) // tiles * p.groups + g) * tiles + (item + 1) % tiles if more else -1
            add_weights(p, x, grad, coming, space, x_at, g_at, ones, m, t, z_count, y_count, vectors_of(space, count))
        add_up(p, space, part, task * sums, m, t, width)
    restore_denormals(before)


@inner
def pack_gradient(p, grad, first, a0, a1, a2, z_count, y_count, count, space, at):
    """The cells of a tile of the output's gradient, zeros up to whole vectors."""
    for c in range(p.cout):
        for z in range(z_count):
            for y in range(y_count):
                row = (((first + c) * p.m0 + a0 + z) * p.m1 + a1 + y) * p.m2 + a2
                take_row(space, at + ((c * p.t0 + z) * p.t1 + y) * p.wide, grad, row, 0, count,
                         vectors_of(space, p.wide))


@inner
def fetch_gradient(p, grad, item, part, parts):
    """Fetch part number `part` of `parts` of the gradient's cells in tile number `item`."""
    bg, a0, a1, a2, z_count, y_count, count = tile_at(p, item)
    rows = p.cout * z_count * y_count
    for r in range(rows * part // parts, rows * (part + 1) // parts):
        z, y = a0 + r // y_count % z_count, a1 + r % y_count
        fetch(grad, (((bg * p.cout + r // (y_count * z_count)) * p.m0 + z) * p.m1 + y) * p.m2 + a2, count, ())


@inner
def add_weights(p, x, grad, coming, space, x_at, g_at, ones, m, t, z_count, y_count, vectors):
    """Add one tile's share to the sums of one group: blocks of m channels and t taps, then the biases.

    Meanwhile tile number `coming`, if it is not negative, is fetched.
    """
    x_plane, g_plane, taps = p.d0 * p.d1 * p.pitch, p.t0 * p.t1 * p.wide, p.cin * p.k0 * p.k1 * p.k2
    for channel in range(0, p.cout, m):
        for outer in range(taps // t):
            if coming >= 0:
                step, steps = channel // m * (taps // t) + outer, -(-p.cout // m) * (taps // t)
                fetch_under(p, x, coming, step, steps)
                fetch_gradient(p, grad, coming, step, steps)
            part, rest = outer % (p.k2 // t) * t, outer // (p.k2 // t)
            k1, k0, c = rest % p.k1, rest // p.k1 % p.k0, rest // (p.k1 * p.k0)
            for z in range(z_count):
                there = x_at + c * x_plane + ((z + k0 * p.s0) * p.d1 + k1 * p.s1) * p.pitch + part * p.s2
                gather(m, t, space, channel * taps + outer * t * m, space,
                       g_at + channel * g_plane + z * p.t1 * p.wide, g_plane, space, there, p.s2, y_count, p.wide,
                       p.pitch, vectors)
        for z in range(z_count):
            gather(m, 1, space, p.cout * taps + channel, space, g_at + channel * g_plane + z * p.t1 * p.wide, g_plane,
                   space, ones, 0, y_count, p.wide, 0, vectors)


@inner
def add_up(p, space, part, to, m, t, width):
    """The sums over the lanes, in the order of the weights."""
    taps = p.cin * p.k0 * p.k1 * p.k2
    for c in range(p.cout):
        for k in range(taps):
            into = c // m * m * taps + k // t * t * m + c % m * t + k % t
            part[to + c * (taps + 1) + k] = total(space, into, width)
        part[to + (c + 1) * (taps + 1) - 1] = total(space, p.cout * taps + c, width)


@callable_part()
def sources(i, n, shift, mode):
    """First and last of the cells r whose neighbour r + shift is, or stands for, cell i; none if last < first."""
    if mode == PERIODIC:
        r = (i - shift) % n
        return r, r
    low, high = i - shift, i - shift
    if mode == NEUMANN:
        low, high = (0 if i == 0 else low), (n - 1 if i == n - 1 else high)
    return max(low, 0), min(high, n - 1)


@kernel()
def run_fold(p, wide, grad, counter):
    """Add what lies beyond the grid to the cells that stand for it: the transpose of continuing a field."""
    while True:
        task = atomic_add(counter, 0, 1)
        if task >= p.batch * p.groups * p.cin * p.n0:
            break
        c, z = task // p.n0, task % p.n0
        for y in range(p.n1):
            to = (task * p.n1 + y) * p.n2
            fill(grad, to, p.n2, grad.dtype.type(0))
            for i in range(0 if z == 0 else z - p.o0, (p.m0 if z == p.n0 - 1 else z - p.o0 + 1)):
                for j in range(0 if y == 0 else y - p.o1, (p.m1 if y == p.n1 - 1 else y - p.o1 + 1)):
                    row = ((c * p.m0 + i) * p.m1 + j) * p.m2
                    add(wide, row - p.o2, grad, to, p.n2)
                    for k in range(-p.o2):
                        grad[to] += wide[row + k]
                    for k in range(p.n2 - p.o2, p.m2):
                        grad[to + p.n2 - 1] += wide[row + k]


@kernel()
def run_slope(code, saved, grad, out, size, counter):
    """out = grad times the slope of the activation, a piece at a time."""
    before = flush_denormals()
    while True:
        start = atomic_add(counter, 0, 1) * PIECE
        if start >= size:
            break
        times_slope(code, saved, start, grad, start, out, start, min(PIECE, size - start))
    restore_denormals(before)


PIECE = 1 << 14


# -- calls -------------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """A convolution's geometry: hashable, so that its plans are made once."""

    x: tuple[int, ...]  # (B, Cin, n0, n1, n2)
    weight: tuple[int, ...]  # (Cout, Cin / groups, k0, k1, k2)
    groups: int
    dilation: tuple[int, ...]
    modes: tuple[int, ...]
    ndim: int


@lru_cache(maxsize=512)
def shape_of(x, weight, groups, dilation, boundary) -> Shape:
    """The geometry from the shapes that a caller has; refuses what does not fit together."""
    ndim = len(x) - 2
    if ndim not in (1, 2, 3) or len(weight) != len(x):
        raise ValueError(f"expected an input (batch, channels, *grid) and weights (channels out, channels in / groups, "
                         f"*kernel) on 1 to 3 axes, got shapes {x} and {weight}")
    if any(k % 2 == 0 for k in weight[2:]):
        raise ValueError(f"kernel sizes must be odd, so that the output has the input's grid; got {weight[2:]}")
    if groups < 1 or x[1] % groups or weight[0] % groups or weight[1] != x[1] // groups:
        raise ValueError(f"an input of {x[1]} channels in {groups} groups does not fit weights of shape {weight}")
    steps = (dilation,) * ndim if isinstance(dilation, int) else tuple(dilation)
    if len(steps) != ndim or min(steps) < 1:
        raise ValueError(f"dilation must be a whole number from 1 on, or one for each of the {ndim} axes: {dilation!r}")
    return Shape((*x[:2], *space_of(x[2:])), (*weight[:2], *space_of(weight[2:])), groups, space_of(steps),
                 space_of(modes_of(boundary, ndim), DIRICHLET), ndim)


def share(run, tasks: int, work: int, memory: int, dtype, threads: int | None) -> None:
    """Run `run(space, counter)` on several threads until the tasks are done; each has scratch memory of its own."""
    counter = np.zeros(1, np.int64)
    threads = default_threads() if threads is None else threads
    together(lambda: run(scratch(memory, dtype), counter), 1 if work < SERIAL else min(threads, tasks))


def _work(p: Plan) -> int:
    return p.batch * p.groups * p.m0 * p.m1 * p.m2 * p.cout * p.cin * p.k0 * p.k1 * p.k2


_EMPTY = {np.dtype(t): np.zeros(0, t) for t in (np.float32, np.float64)}


def forward(shape: Shape, x, weight, bias, code, y, pre=None, threads=None, extend=(0, 0, 0)):
    """y = activation(conv(x) + bias); also the sums before the activation if `pre` is given."""
    dtype = x.dtype
    p, offsets = plan_for(shape.x, weight.shape[:2] + shape.weight[2:], shape.groups, shape.dilation, shape.modes, code,
                          dtype, extend)
    w, start = pack_weights(weight, p), pack_bias(bias, p, dtype)
    lines = x.reshape(-1), y.reshape(-1), _EMPTY[dtype] if pre is None else pre.reshape(-1)
    memory = p.cin * p.d0 * p.d1 * p.pitch + p.block * p.wide
    share(lambda space, counter: run_forward(p, lines[0], w, start, lines[1], lines[2], offsets, space, counter),
          -(-p.batch * p.groups * p.c0 * p.c1 * p.c2 // p.run), _work(p), memory, dtype, threads)
    return y


def grad_input(shape: Shape, grad, weight, out, threads=None):
    """The gradient with respect to the input, from that of the sums: a convolution with the weights turned round."""
    G, (cout, cin) = shape.groups, shape.weight[:2]
    turned = weight.reshape(G, cout // G, cin, *shape.weight[2:])[..., ::-1, ::-1, ::-1].swapaxes(1, 2)
    turned = np.ascontiguousarray(turned).reshape(G * cin, cout // G, *shape.weight[2:])
    half = [s * (k - 1) // 2 for s, k in zip(shape.dilation, shape.weight[2:])]
    extend = tuple(h if mode == NEUMANN else 0 for h, mode in zip(half, shape.modes))
    modes = tuple(DIRICHLET if mode == NEUMANN else mode for mode in shape.modes)
    back = shape._replace(x=(shape.x[0], cout, *shape.x[2:]), weight=turned.shape, modes=modes)
    if not any(extend):
        return forward(back, grad, turned, None, 0, out, threads=threads)
    wide = np.empty((*shape.x[:2], *(n + 2 * e for n, e in zip(shape.x[2:], extend))), grad.dtype)
    forward(back, grad, turned, None, 0, wide, threads=threads, extend=extend)
    p, _ = plan_for(shape.x, (shape.x[1], 1, 1, 1, 1), shape.x[1], (1, 1, 1), shape.modes, 0, grad.dtype, extend)
    share(lambda _, counter: run_fold(p, wide.reshape(-1), out.reshape(-1), counter),
          p.batch * p.groups * p.n0, wide.size, 1, grad.dtype, threads)
    return out


def grad_weight(shape: Shape, x, grad, weight_out, bias_out=None, threads=None):
    """Gradients with respect to weights and bias, from that of the sums."""
    dtype = x.dtype
    p, _ = plan_for(shape.x, shape.weight, shape.groups, shape.dilation, shape.modes, 0, dtype)
    if p.band > 1:  # rows of a band are no channels
        p = p._replace(block=1, band=1)
    m, t = sums_for(p.cout, p.k2)
    chunks = max(1, min(CHUNKS, p.batch * p.c0 * p.c1 * p.c2))
    taps = p.cin * p.k0 * p.k1 * p.k2
    part = np.empty((chunks, p.groups * p.cout, taps + 1), dtype)
    memory = p.cout * (taps + 1) * lanes(dtype) + p.cin * p.d0 * p.d1 * p.pitch + p.cout * p.t0 * p.t1 * p.wide + p.wide
    flat, slope = x.reshape(-1), grad.reshape(-1)
    share(lambda space, counter: run_weights(p, flat, slope, part.reshape(-1), chunks, m, t, space, counter),
          chunks * p.groups, _work(p), memory, dtype, threads)
    result = part.sum(0)
    weight_out[...] = result[:, :-1].reshape(weight_out.shape)
    if bias_out is not None:
        bias_out[...] = result[:, -1]
    return weight_out, bias_out


def times_slopes(code, saved, grad, out, threads=None):
    """out = grad times the slope of the activation."""
    lines = saved.reshape(-1), grad.reshape(-1), out.reshape(-1)
    share(lambda _, counter: run_slope(code, *lines, grad.size, counter), -(-grad.size // PIECE), 8 * grad.size, 1,
          grad.dtype, threads)
    return out


__all__ = ["MODES", "Shape", "forward", "grad_input", "grad_weight", "modes_of", "shape_of", "times_slopes"]
