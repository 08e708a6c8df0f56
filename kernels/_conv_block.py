"""How the two-layer block runs: the hidden layer only ever exists for a strip of cells, in first-level cache.

Forward, for each row of hidden cells: the rows of the input around it (the boundary is in them), the hidden channels a
strip at a time, their activation, and K sums over the channels, S_k = sum over c of w2[c, k] h_c. The output at a cell
is the sum of S_k at its K neighbours: a row of hidden cells is added to the K/K2 rows of the output that it reaches.

Backward, for each strip: the same rows and hidden channels again, the rows of the output's gradient, the hidden
gradient, and sums over the strip for all weights, which stay in one block of memory for a whole chunk. Beyond an edge
that repeats its cell (neumann) the gradient is no row that is shifted: there are K copies of it then, put right at the
edges. Where the input's gradient is asked for, a task takes a whole sample and keeps K planes of it.

If the activation is a maximum, or none, it is taken in registers: forward, with few taps, the hidden channels are then
never stored at all (`through` of _tiles.py); backward once, as what the weights' gradients are made of (`halfway`).
"""

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastdiff.kernels._activation import activate_here, times_slope_here
from fastdiff.kernels._conv import (
    CHUNKS,
    NEUMANN,
    PERIODIC,
    SERIAL,
    add,
    block_for,
    copy,
    fill,
    gather,
    pack_row,
    place,
    share,
    sources,
    sums_for,
    times,
    total,
    vectors_of,
)
from fastdiff.kernels._jit import atomic_add, flush_denormals, inner, keep_apart, kernel, restore_denormals
from fastdiff.kernels._threads import scratch
from fastdiff.kernels._tiles import CHANNELS, FUSED, VECTOR_BYTES, add_rows, array_at, halfway, take_row, through

STRIP_BYTES = 1024  # of a row of a strip; twice that where few channels are kept
T3, T5, T7, T9 = ((0,) * n for n in (3, 5, 7, 9))


class Plan(NamedTuple):
    """What the compiled code must know. Places in scratch memory are counted in numbers."""

    batch: int
    code: int  # of the activation
    channels: int
    block: int  # channels at once
    padded: int  # channels, up to whole blocks
    taps: int
    tap_block: int  # taps at once, where they are results
    tap_padded: int
    n0: int
    n1: int
    n2: int
    k0: int
    k1: int
    k2: int
    h0: int
    h1: int
    h2: int
    mode0: int
    mode1: int
    mode2: int
    t0: int  # cells of a tile
    t1: int
    t2: int
    c0: int  # tiles along each axis
    c1: int
    c2: int
    strip: int  # cells of a strip
    s0: int  # planes, rows and row length of the sums, forward of one row
    s1: int
    pitch: int
    chunks: int
    m: int  # channels and taps of one product of the backward pass
    t: int
    simple: int  # whether the activation is a maximum with 0, or none
    fused: int  # whether the hidden channels stay in registers then
    direct: int  # whether the gradient's rows are only shifted
    together: int  # rows of a strip
    rows: int  # of the input under them
    lines: int  # from row to row of the input
    first: int  # places: weights of the first layer, of the second one, what sums start from, and the rest
    second: int
    start: int
    zeros: int
    last: int  # the output's bias
    ones: int
    turned: int  # weights for the way back
    records: int  # all weights of a channel, one after the other
    shifted: int  # rows of the input
    gradient: int  # rows, or copies, of the output's gradient
    plain: int  # the gradient itself
    hidden: int
    slopes: int
    spare: int
    acc: int
    sums: int
    memory: int


FIELDS = len(Plan._fields)


@lru_cache(maxsize=256)
def plan_for(shape, kernel_size, channels, modes, code, dtype, backward=False, whole=False):
    """(Plan, offsets) for an input (B, n0, n1, n2); `whole`: a task takes a whole sample."""
    B, *n = shape
    width = VECTOR_BYTES // dtype.itemsize
    up = lambda count: ceil(count / width) * width
    half = [(k - 1) // 2 for k in kernel_size]
    taps = int(np.prod(kernel_size))
    simple = code in (0, 1)
    block, tap_block = CHANNELS if simple else block_for(channels), block_for(taps)
    padded, tap_padded = ceil(channels / block) * block, ceil(taps / tap_block) * tap_block
    strip = max(width, STRIP_BYTES * (1 + simple) // dtype.itemsize)
    tile = tuple(n) if whole else _tile(n, half, 4096 if backward else 16384)
    counts = [ceil(a / t) for a, t in zip(n, tile)]
    pitch = up(tile[2] + 2 * half[2]) + width
    m, t = sums_for(padded, kernel_size[2])
    wide = up(min(strip, tile[2])) if backward else strip
    together, lines = strip // wide, wide + up(2 * half[2])
    rows, sums = together + 2 * half[1], tile[:2] if backward else (1, 1)
    direct = all(mode != NEUMANN or h == 0 for mode, h in zip(modes, half))
    under, plane = kernel_size[0] * rows * lines, sums[0] * sums[1] * pitch
    sizes = dict(first=padded * taps, second=padded * tap_padded, start=padded, zeros=max(padded, tap_padded), last=1,
                 ones=strip, turned=padded * (taps + tap_padded), records=padded * (2 * taps + 1), shifted=under,
                 gradient=(under if direct else taps * strip) if backward else 0, plain=strip if backward else 0,
                 hidden=padded * strip, slopes=padded * strip if backward else 0, spare=tap_padded * width,
                 acc=(padded * (2 * taps + 1) + 1) * width, sums=tap_padded * plane if whole or not backward else 0)
    at, places = 0, {}
    for name, size in sizes.items():
        places[name] = at
        at += up(size)
    chunks = max(1, min(CHUNKS, B * int(np.prod(counts))))
    plan = Plan(B, code, channels, block, padded, taps, tap_block, tap_padded, *n, *kernel_size, *half, *modes, *tile,
                *counts, strip, *sums, pitch, chunks, m, t, int(simple), int(simple and taps in FUSED), int(direct),
                together, rows, lines, **places, memory=at)
    return plan, _offsets(plan)


def _offsets(p):
    """Where things are, from the first of their kind on: channels, what taps of the input read, and of the gradient."""
    a, b, c = np.ogrid[: p.k0, : p.k1, : p.k2]
    near = ((a * p.rows + b) * p.lines + c).reshape(-1)
    return np.concatenate([np.arange(p.padded) * p.strip, near, near[::-1] if p.direct else np.arange(p.taps) * p.strip]
                          ).astype(np.int64)


def _tile(n, half, room):
    """Cells of a tile: whole rows if they are not too long, and as many as `room` allows."""
    t2 = n[2] if n[2] <= 2048 else 2048
    t1 = min(n[1], max(1 + 2 * half[1], room // t2))
    return min(n[0], max(1 + 2 * half[0], room // (t2 * t1))), t1, t2


@inner
def pack_weights(p, w1, b1, w2, b2, space):
    """Put the weights into the order of use: a layer's by block of its results; the same for the way back."""
    zero = space.dtype.type(0)
    fill(space, 0, p.shifted, zero)
    fill(space, p.ones, p.strip, space.dtype.type(1))
    for c in range(p.channels):
        space[p.start + c] = b1[c]
        record = p.records + c * (2 * p.taps + 1)
        space[record] = b1[c]
        for k in range(p.taps):
            space[p.first + (c // p.block * p.taps + k) * p.block + c % p.block] = w1[c * p.taps + k]
            space[p.second + (k // p.tap_block * p.padded + c) * p.tap_block + k % p.tap_block] = w2[c * p.taps + k]
            space[p.turned + (c // p.block * p.taps + k) * p.block + c % p.block] = w2[c * p.taps + k]
            space[p.turned + p.padded * p.taps + (k // p.tap_block * p.padded + c) * p.tap_block
                  + k % p.tap_block] = w1[c * p.taps + k]
            space[record + 1 + k] = w1[c * p.taps + k]
            space[record + 1 + p.taps + k] = w2[c * p.taps + k]
    space[p.last] = b2[0]


@inner
def pack_rows(p, src, sample, z, y, rows, j, count, space, at):
    """The rows of a field that `rows` strips of hidden cells (z, y, j ... j + count), one above the other, reach."""
    width = VECTOR_BYTES // space.itemsize
    long = (vectors_of(space, count) + -(-2 * p.h2 // width)) * width
    for a in range(p.k0):
        zz = place(z + a - p.h0, p.n0, p.mode0)
        for b in range(rows + 2 * p.h1):
            yy = place(y + b - p.h1, p.n1, p.mode1)
            row = sample + (zz * p.n1 + yy) * p.n2 if zz >= 0 and yy >= 0 else -1
            pack_row(src, row, p.n2, p.mode2, j - p.h2, count + 2 * p.h2, space, at + (a * p.rows + b) * p.lines,
                     long)


@inner
def floor_of(p, space):
    """What the activation is a maximum with."""
    return space.dtype.type(0) if p.code == 1 else space.dtype.type(-np.inf)


@inner
def sum_in_registers(p, space, offsets, at, vectors):
    """`through` for a strip whose input rows are there."""
    keep_apart()
    plane, tap, floor = p.pitch, p.padded, floor_of(p, space)
    if p.taps == 3:
        through(space, at, plane, space, p.shifted, offsets, tap, T3, space, p.records, p.padded, floor, vectors)
    elif p.taps == 5:
        through(space, at, plane, space, p.shifted, offsets, tap, T5, space, p.records, p.padded, floor, vectors)
    elif p.taps == 7:
        through(space, at, plane, space, p.shifted, offsets, tap, T7, space, p.records, p.padded, floor, vectors)
    else:
        through(space, at, plane, space, p.shifted, offsets, tap, T9, space, p.records, p.padded, floor, vectors)


@inner
def hidden_layer(p, space, offsets, here, to, vectors):
    """The hidden channels of a strip, before the activation, from the input's rows at `here`."""
    for block in range(p.padded // p.block):
        times(p.block, space, to + block * p.block * p.strip, p.strip, space, here, offsets, p.padded, p.taps, space,
              p.first + block * p.taps * p.block, space, p.start + block * p.block, vectors)


# -- forward ---------------------------------------------------------------------------------------------------------


@inner
def sum_strip(p, x, sample, z, y, j, count, space, offsets, at):
    """S_k of the hidden cells (z, y, j ... j + count), to `at` in each of the K rows."""
    vectors = vectors_of(space, count)
    pack_rows(p, x, sample, z, y, 1, j, count, space, p.shifted)
    if p.fused:
        sum_in_registers(p, space, offsets, at, vectors)
        return
    hidden_layer(p, space, offsets, p.shifted, p.hidden, vectors)
    for c in range(p.padded):
        activate_here(p.code, space, p.hidden + c * p.strip, vectors * (VECTOR_BYTES // space.itemsize))
    for block in range(p.tap_padded // p.tap_block):
        times(p.tap_block, space, at + block * p.tap_block * p.pitch, p.pitch, space, p.hidden, offsets, 0, p.padded,
              space, p.second + block * p.padded * p.tap_block, space, p.zeros, vectors)


@inner
def sum_row(p, x, sample, z, y, low, count, space, offsets, at):
    """S_k of the cells low ... low + count of a row, which may lie beyond the grid."""
    a, b = max(low, 0), min(low + count, p.n2)
    for j in range(a, b, p.strip):
        sum_strip(p, x, sample, z, y, j, min(p.strip, b - j), space, offsets, at + j - low)
    plane = p.pitch
    for side in range(2):
        first, last = (low, min(0, low + count)) if side == 0 else (max(p.n2, low), low + count)
        for j in range(first, last):
            inside = place(j, p.n2, p.mode2)
            for k in range(p.taps):
                if inside < 0:
                    space[at + k * plane + j - low] = space.dtype.type(0)
                elif a <= inside and inside < b:
                    space[at + k * plane + j - low] = space[at + k * plane + inside - low]
        if p.mode2 == PERIODIC and p.c2 > 1 and first < last:
            one_by_one(p, x, sample, z, y, first, last, low, space, offsets, at)


@inner
def one_by_one(p, x, sample, z, y, first, last, low, space, offsets, at):
    """Cells beyond the grid whose like is in another tile; what the whole vector overwrites is put back."""
    plane, width = p.pitch, VECTOR_BYTES // space.itemsize
    for j in range(first, last):
        for k in range(p.tap_padded):
            copy(space, at + k * plane + j - low, space, p.spare + k * width, width)
        sum_strip(p, x, sample, z, y, place(j, p.n2, p.mode2), 1, space, offsets, at + j - low)
        for k in range(p.tap_padded):
            copy(space, p.spare + k * width + 1, space, at + k * plane + j - low + 1, width - 1)


@inner
def add_shifted(space, at, step, count, y, to, n, fresh, bias):
    """y[to + i] = bias, or what it was unless `fresh`, + sum over c < count of space[at + c*step + i]."""
    width = VECTOR_BYTES // space.itemsize
    add_rows(y, to, space, at, step, count, fresh, bias, n // width)
    for i in range(n // width * width, n):
        total = bias if fresh else y[to + i]
        for c in range(count):
            total += space[at + c * step + i]
        y[to + i] = total


@inner
def forward_tile(p, x, y, target, scale, b, a0, a1, a2, space, offsets):
    """One tile of the output; with a target, `y` receives scale * (output - target). Returns the sum of squares."""
    z_count, y_count, count = min(p.t0, p.n0 - a0), min(p.t1, p.n1 - a1), min(p.t2, p.n2 - a2)
    sample, bias = b * p.n0 * p.n1 * p.n2, space[p.last]
    for i in range(z_count + 2 * p.h0):
        z = place(a0 - p.h0 + i, p.n0, p.mode0)
        for j in range(y_count + 2 * p.h1):
            line = place(a1 - p.h1 + j, p.n1, p.mode1)
            inside = z >= 0 and line >= 0
            if inside:
                sum_row(p, x, sample, z, line, a2 - p.h2, count + 2 * p.h2, space, offsets, p.sums)
            for a in range(max(0, i - z_count + 1), min(p.k0, i + 1)):
                for c in range(max(0, j - y_count + 1), min(p.k1, j + 1)):
                    to, fresh = sample + ((a0 + i - a) * p.n1 + a1 + j - c) * p.n2 + a2, a == 0 and c == 0
                    if inside:
                        add_shifted(space, p.sums + (a * p.k1 + c) * p.k2 * p.pitch, p.pitch + 1, p.k2, y, to, count,
                                    fresh, bias)
                    elif fresh:
                        fill(y, to, count, bias)
    squares = space.dtype.type(0)
    if target.size > 0:
        for i in range(z_count):
            for j in range(y_count):
                for l in range(0, count, p.strip):
                    to = sample + ((a0 + i) * p.n1 + a1 + j) * p.n2 + a2 + l
                    squares += residual(space, p.hidden, target, to, y, scale, min(p.strip, count - l))
    return squares


@inner
def residual(space, at, target, to, y, scale, count):
    """y = scale * (y - target); returns the sum of the squares of the difference."""
    at, to, n = np.uint64(at), np.uint64(to), np.uint64(count)
    s, one = space.dtype.type(0), np.uint64(1)
    for i in range(n):
        d = y[to + i] - target[to + i]
        space[at + i] = d * d
        y[to + i] = scale * d
    while n > one:  # by halves: the error grows with the logarithm
        half = (n + one) >> one
        for i in range(n - half):
            space[at + i] += space[at + half + i]
        n = half
    return s + space[at]


@inner
def forward_tasks(p, x, w1, b1, w2, b2, y, target, scale, losses, offsets, space, counter):
    """Tiles until none is left."""
    pack_weights(p, w1, b1, w2, b2, space)
    tiles = p.c0 * p.c1 * p.c2
    while True:
        task = atomic_add(counter, 0, 1)
        if task >= p.batch * tiles:
            break
        tile = task % tiles
        squares = forward_tile(p, x, y, target, scale, task // tiles, tile // (p.c1 * p.c2) * p.t0,
                               tile // p.c2 % p.c1 * p.t1, tile % p.c2 * p.t2, space, offsets)
        if target.size > 0:
            losses[task] = squares


# -- backward --------------------------------------------------------------------------------------------------------


@inner
def gather_row(src, row, n, mode, shift, j, count, dst, at):
    """dst[at + i] += the sum of src[row + s] over the cells s whose neighbour s + shift stands for cell j + i."""
    low, high = max(j, shift), min(j + count, n + shift)
    add(src, row + low - shift, dst, at + low - j, high - low)
    if mode == PERIODIC:
        for i in range(j, min(shift, j + count)):
            dst[at + i - j] += src[row + (i - shift) % n]
        for i in range(max(n + shift, j), j + count):
            dst[at + i - j] += src[row + (i - shift) % n]
    elif mode == NEUMANN:
        if j == 0:
            for s in range(min(n, -shift)):
                dst[at] += src[row + s]
        if j + count == n:
            for s in range(max(0, n - shift), n):
                dst[at + count - 1] += src[row + s]


@inner
def shift_gradient(p, grad, sample, z, y, j, count, space, at, pitch, width):
    """The K copies of the output's gradient that the hidden cells (z, y, j ...) take part in, zeros beyond `count`."""
    k = 0
    for a in range(p.k0):
        z_low, z_high = sources(z, p.n0, a - p.h0, p.mode0)
        for b in range(p.k1):
            y_low, y_high = sources(y, p.n1, b - p.h1, p.mode1)
            for c in range(p.k2):
                fill(space, at + k * pitch, width, space.dtype.type(0))
                for zz in range(z_low, z_high + 1):
                    for yy in range(y_low, y_high + 1):
                        gather_row(grad, sample + (zz * p.n1 + yy) * p.n2, p.n2, p.mode2, c - p.h2, j, count, space,
                                   at + k * pitch)
                k += 1


@inner
def backward_strip(p, x, grad, sample, z, y, rows, j, count, space, offsets, wanted):
    """Add the share of `rows` strips, one above the other, to the sums of all weights."""
    width = VECTOR_BYTES // space.itemsize
    vectors = vectors_of(space, count)
    wide = vectors * width
    pack_rows(p, x, sample, z, y, rows, j, count, space, p.shifted)
    if p.direct:
        pack_rows(p, grad, sample, z, y, rows, j, count, space, p.gradient)
    for r in range(rows):
        if not p.direct:
            shift_gradient(p, grad, sample, z, y + r, j, count, space, p.gradient + r * wide, p.strip, wide)
        take_row(space, p.plain + r * wide, grad, sample + (z * p.n1 + y + r) * p.n2, j, j + count, vectors)
    gather(1, 1, space, p.acc // width + p.padded * (2 * p.taps + 1), space, p.plain, 0, space, p.ones, 0, 1, 0, 0,
           rows * vectors)
    step = p.m if p.simple and p.m % CHANNELS == 0 else p.padded  # few channels at once stay in first-level cache
    for c in range(0, p.padded, step):
        slopes = p.slopes + (c * p.strip if wanted or not p.simple else 0)
        for r in range(rows):
            two_rows(p, space, offsets, c, step, slopes, r, wide, count)
        add_products(p, space, offsets, c, step, slopes, rows, wide)


@inner
def two_rows(p, space, offsets, first, channels, slopes, r, wide, count):
    """Strip `r` of the hidden layer and of the gradient of its sums, for some channels; zeros beyond `count`."""
    here, there = p.shifted + r * p.lines, p.gradient + r * (p.lines if p.direct else wide)
    hidden, slopes, taps = p.hidden + r * wide, slopes + r * wide, p.padded + p.taps
    vectors = wide // (VECTOR_BYTES // space.itemsize)
    if p.simple:
        halfway(space, hidden, slopes, p.strip, here, there, offsets, p.padded, taps, p.taps, space,
                p.records + first * (2 * p.taps + 1), channels, floor_of(p, space), vectors)
    else:
        hidden_layer(p, space, offsets, here, hidden, vectors)
        for block in range(p.padded // p.block):
            times(p.block, space, slopes + block * p.block * p.strip, p.strip, space, there, offsets, taps, p.taps,
                  space, p.turned + block * p.taps * p.block, space, p.zeros, vectors)
        for c in range(p.padded):
            slopes_here(p.code, space, hidden + c * p.strip, slopes + c * p.strip, wide)
    if count < wide:
        for c in range(channels):
            fill(space, hidden + c * p.strip + count, wide - count, space.dtype.type(0))
            fill(space, slopes + c * p.strip + count, wide - count, space.dtype.type(0))


@inner
def add_products(p, space, offsets, first, channels, slopes, rows, wide):
    """Add the share of some channels of `rows` strips to the sums of their weights."""
    keep_apart()
    width = VECTOR_BYTES // space.itemsize
    acc, vectors = p.acc // width, wide // width
    turn, row = (-1, p.lines) if p.direct else (p.strip, wide)
    for c in range(0, channels, p.m):
        left, right = slopes + c * p.strip, p.hidden + c * p.strip
        for k in range(0, p.taps, p.t):
            into = acc + (first + c) * p.taps + k * p.m
            gather(p.m, p.t, space, into, space, left, p.strip, space, p.shifted + offsets[p.padded + k], 1, rows, wide,
                   p.lines, vectors)
            gather(p.m, p.t, space, into + p.padded * (p.taps + 1), space, right, p.strip, space,
                   p.gradient + offsets[p.padded + p.taps + k], turn, rows, wide, row, vectors)
        gather(p.m, 1, space, acc + p.padded * p.taps + first + c, space, left, p.strip, space, p.ones, 0, 1, 0, 0,
               rows * vectors)


@inner
def slopes_here(code, space, at, to, count):
    """Turn sums (`at`) into the hidden layer, and its gradient (`to`) into theirs."""
    if code == 2 or code == 3:  # those whose slope needs what went in
        times_slope_here(code, space, at, space, to, count)
        activate_here(code, space, at, count)
    else:
        activate_here(code, space, at, count)
        times_slope_here(code, space, at, space, to, count)


@inner
def keep_planes(p, space, offsets, z, y, j, rows, wide):
    """The K sums over the channels of w1[c, k] times the gradient, of strips that lie side by side."""
    width = VECTOR_BYTES // space.itemsize
    plane = p.s0 * p.s1 * p.pitch
    for r in range(rows):
        at = p.sums + (z * p.s1 + y + r) * p.pitch + j
        for block in range(p.tap_padded // p.tap_block):
            times(p.tap_block, space, at + block * p.tap_block * plane, plane, space, p.slopes + r * wide, offsets, 0,
                  p.padded, space, p.turned + p.padded * p.taps + block * p.padded * p.tap_block, space, p.zeros,
                  wide // width)


@inner
def input_gradient(p, out, sample, space):
    """The input's gradient of a sample from the K planes."""
    plane = p.s0 * p.s1 * p.pitch
    for z in range(p.n0):
        for y in range(p.n1):
            to = sample + (z * p.n1 + y) * p.n2
            fill(out, to, p.n2, out.dtype.type(0))
            for a in range(p.k0):
                z_low, z_high = sources(z, p.n0, a - p.h0, p.mode0)
                for b in range(p.k1):
                    y_low, y_high = sources(y, p.n1, b - p.h1, p.mode1)
                    for zz in range(z_low, z_high + 1):
                        for yy in range(y_low, y_high + 1):
                            for c in range(p.k2):
                                k = (a * p.k1 + b) * p.k2 + c
                                gather_row(space, p.sums + k * plane + (zz * p.s1 + yy) * p.pitch, p.n2, p.mode2,
                                           c - p.h2, 0, p.n2, out, to)


@inner
def backward_tile(p, x, grad, b, a0, a1, a2, space, offsets, wanted):
    """One tile: its share of the sums, and the K planes if the input's gradient is wanted."""
    z_count, y_count, count = min(p.t0, p.n0 - a0), min(p.t1, p.n1 - a1), min(p.t2, p.n2 - a2)
    sample, width = b * p.n0 * p.n1 * p.n2, VECTOR_BYTES // space.itemsize
    for z in range(a0, a0 + z_count):
        for l in range(0, count, p.strip):
            n = min(p.strip, count - l)
            wide = vectors_of(space, n) * width
            for y in range(a1, a1 + y_count, p.together):
                rows = min(p.together, a1 + y_count - y)
                backward_strip(p, x, grad, sample, z, y, rows, a2 + l, n, space, offsets, wanted)
                if wanted:
                    keep_planes(p, space, offsets, z, y, a2 + l, rows, wide)


@inner
def add_up(p, space, part, to):
    """The sums over the lanes, in the order of the parameters: w1, b1, w2, b2."""
    width = VECTOR_BYTES // space.itemsize
    acc = p.acc // width
    second = acc + p.padded * (p.taps + 1)
    for c in range(p.channels):
        for k in range(p.taps):
            into = c // p.m * p.m * p.taps + k // p.t * p.t * p.m + (c % p.m) * p.t + k % p.t
            part[to + c * p.taps + k] = total(space, acc + into, width)
            part[to + p.channels * (p.taps + 1) + c * p.taps + k] = total(space, second + into, width)
        part[to + p.channels * p.taps + c] = total(space, acc + p.padded * p.taps + c, width)
    part[to + p.channels * (2 * p.taps + 1)] = total(space, acc + p.padded * (2 * p.taps + 1), width)


@inner
def backward_tasks(p, x, w1, b1, w2, b2, grad, part, out, offsets, space, counter):
    """Chunks until none is left: gradients of parameters to part[chunk], the input's to `out` unless it is empty."""
    width = VECTOR_BYTES // space.itemsize
    pack_weights(p, w1, b1, w2, b2, space)
    tiles = p.c0 * p.c1 * p.c2
    items, parameters = p.batch * tiles, p.channels * (2 * p.taps + 1) + 1
    while True:
        chunk = atomic_add(counter, 0, 1)
        if chunk >= p.chunks:
            break
        fill(space, p.acc, (p.padded * (2 * p.taps + 1) + 1) * width, space.dtype.type(0))
        for item in range(chunk * items // p.chunks, (chunk + 1) * items // p.chunks):
            b, tile = item // tiles, item % tiles
            backward_tile(p, x, grad, b, tile // (p.c1 * p.c2) * p.t0, tile // p.c2 % p.c1 * p.t1, tile % p.c2 * p.t2,
                          space, offsets, out.size > 0)
            if out.size > 0:
                input_gradient(p, out, b * p.n0 * p.n1 * p.n2, space)
        add_up(p, space, part, chunk * parameters)


# -- calls -----------------------------------------------------------------------------------------------------------


@kernel()
def run_forward(p, x, w1, b1, w2, b2, y, target, scale, losses, offsets, space, counter):
    """See `forward_tasks`."""
    before = flush_denormals()
    forward_tasks(p, x, w1, b1, w2, b2, y, target, scale, losses, offsets, space, counter)
    restore_denormals(before)


@kernel()
def run_backward(p, x, w1, b1, w2, b2, grad, part, out, offsets, space, counter):
    """See `backward_tasks`."""
    before = flush_denormals()
    backward_tasks(p, x, w1, b1, w2, b2, grad, part, out, offsets, space, counter)
    restore_denormals(before)


@inner
def adam(p, part, state, hyper):
    """Adam on all parameters: state[0] are they, [1] and [2] the moments; hyper: see `Trainer`."""
    count = state.shape[1]
    rate, fresh1, beta2, fresh2, root, eps, decay = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4], hyper[5], hyper[6]
    for i in range(count):
        g = part[i]
        for chunk in range(1, p.chunks):
            g += part[chunk * count + i]
        g += decay * state[0, i]
        state[1, i] += fresh1 * (g - state[1, i])
        state[2, i] = beta2 * state[2, i] + fresh2 * (g * g)
        state[0, i] -= rate * state[1, i] / (np.sqrt(state[2, i]) / root + eps)


@kernel()
def run_adam(p, part, state, hyper):
    """See `adam`."""
    adam(p, part, state, hyper)


@kernel()
def run_step(p, q, x, target, state, grad, part, hyper, losses, offsets, back_offsets, space, counters):
    """A whole training step in this thread: layers, loss, gradients, Adam. Returns the sum of squares."""
    before = flush_denormals()
    c, k = p.channels, p.taps
    theta = state[0]
    w1, b1 = theta[: c * k], theta[c * k : c * (k + 1)]
    w2, b2 = theta[c * (k + 1) : c * (2 * k + 1)], theta[c * (2 * k + 1) :]
    forward_tasks(p, x, w1, b1, w2, b2, grad, target, hyper[7], losses, offsets, space, counters[0:1])
    backward_tasks(q, x, w1, b1, w2, b2, grad, part, grad[0:0], back_offsets, space, counters[1:2])
    adam(q, part, state, hyper)
    total = losses[0]
    for i in range(1, len(losses)):
        total += losses[i]
    restore_denormals(before)
    return total


_EMPTY = {np.dtype(t): np.zeros(0, t) for t in (np.float32, np.float64)}


def work_of(p: Plan) -> int:
    """Multiplications of a forward pass."""
    return 2 * p.batch * p.n0 * p.n1 * p.n2 * p.channels * p.taps


def forward(space, kernel_size, modes, code, x, w1, b1, w2, b2, y, threads=None):
    """y = conv2(activation(conv1(x) + b1)) + b2; `space`: (B, n0, n1, n2)."""
    p, offsets = plan_for(space, kernel_size, len(b1), modes, code, x.dtype)
    none = _EMPTY[x.dtype]
    lines = [a.reshape(-1) for a in (x, w1, b1, w2, b2, y)]
    one = x.dtype.type(1)
    share(lambda memory, counter: run_forward(p, *lines, none, one, none, offsets, memory, counter),
          p.batch * p.c0 * p.c1 * p.c2, work_of(p), p.memory, x.dtype, threads)
    return y


def backward(space, kernel_size, modes, code, x, w1, b1, w2, b2, grad, out=None, threads=None):
    """Gradients of (w1, b1, w2, b2), one after the other; the input's to `out` if it is given."""
    p, offsets = plan_for(space, kernel_size, len(b1), modes, code, x.dtype, True, out is not None)
    lines = [a.reshape(-1) for a in (x, w1, b1, w2, b2, grad)]
    part = np.empty((p.chunks, p.channels * (2 * p.taps + 1) + 1), x.dtype)
    given = _EMPTY[x.dtype] if out is None else out.reshape(-1)
    share(lambda memory, counter: run_backward(p, *lines, part.reshape(-1), given, offsets, memory, counter),
          p.chunks, 3 * work_of(p), p.memory, x.dtype, threads)
    return part.sum(0)


# -- small problems: all that surrounds the kernel counts ------------------------------------------------------------


@inner
def plan_of(numbers):
    """The plan from an array of its numbers: one argument is faster to take than fifty."""
    return Plan(*to_fixed_tuple(numbers, FIELDS))


@kernel()
def run_small_forward(numbers, x, w1, b1, w2, b2, y, offsets, space):
    """`run_forward` from addresses, in this thread."""
    before = flush_denormals()
    p = plan_of(numbers)
    n, m = p.batch * p.n0 * p.n1 * p.n2, p.channels * p.taps
    none, counter = space[0:0], np.zeros(1, np.int64)
    forward_tasks(p, array_at(x, n, space), array_at(w1, m, space), array_at(b1, p.channels, space),
                  array_at(w2, m, space), array_at(b2, 1, space), array_at(y, n, space), none, space.dtype.type(1),
                  none, offsets, space, counter)
    restore_denormals(before)


@kernel()
def run_small_backward(numbers, x, w1, b1, w2, b2, grad, d1, e1, d2, e2, out, offsets, space):
    """`run_backward` from addresses, in this thread; the input's gradient unless `out` is 0."""
    before = flush_denormals()
    p = plan_of(numbers)
    n, m, c = p.batch * p.n0 * p.n1 * p.n2, p.channels * p.taps, p.channels
    size = 2 * m + c + 1
    part, counter = np.empty(p.chunks * size, space.dtype), np.zeros(1, np.int64)
    backward_tasks(p, array_at(x, n, space), array_at(w1, m, space), array_at(b1, c, space), array_at(w2, m, space),
                   array_at(b2, 1, space), array_at(grad, n, space), part, array_at(out, n if out != 0 else 0, space),
                   offsets, space, counter)
    for chunk in range(1, p.chunks):
        add(part, chunk * size, part, 0, size)
    copy(part, 0, array_at(d1, m, space), 0, m)
    copy(part, m, array_at(e1, c, space), 0, c)
    copy(part, m + c, array_at(d2, m, space), 0, m)
    copy(part, 2 * m + c, array_at(e2, 1, space), 0, 1)
    restore_denormals(before)


class Small:
    """The block for one small geometry, called with addresses of contiguous memory."""

    def __init__(self, space, kernel_size, channels, modes, code, dtype):
        self.dtype = np.dtype(dtype)
        plans = [plan_for(space, kernel_size, channels, modes, code, self.dtype, *kind)
                 for kind in ((), (True, False), (True, True))]
        self.numbers = [np.array(p, np.int64) for p, _ in plans]
        self.offsets, self.memory = [offsets for _, offsets in plans], max(p.memory for p, _ in plans)

    def forward(self, *addresses):
        """Addresses of x, w1, b1, w2, b2 and y."""
        run_small_forward(self.numbers[0], *addresses, self.offsets[0], scratch(self.memory, self.dtype))

    def backward(self, *addresses):
        """Addresses of x, w1, b1, w2, b2, the gradient of y, of the gradients of w1, b1, w2, b2, and of x (or 0)."""
        which = 2 if addresses[-1] else 1
        run_small_backward(self.numbers[which], *addresses, self.offsets[which], scratch(self.memory, self.dtype))


@lru_cache(maxsize=256)
def small(space, kernel_size, channels, modes, code, dtype):
    """`Small` for a geometry, or None if it is worth several threads."""
    p, _ = plan_for(space, kernel_size, channels, modes, code, np.dtype(dtype))
    return Small(space, kernel_size, channels, modes, code, dtype) if 3 * work_of(p) < SERIAL and p.batch else None


class Trainer:
    """Training steps of the block: layers, mean square error, gradients and Adam, in one call.

    state (3, parameters): the parameters (w1, b1, w2, b2 one after the other) and Adam's two moments, changed in place.
    Adam: Kingma and Ba, arXiv:1412.6980, algorithm 1, with torch.optim.Adam's order of operations.
    """

    def __init__(self, space, kernel_size, channels, modes, code, dtype, threads=None):
        dtype = np.dtype(dtype)
        self.forward, self.offsets = plan_for(space, kernel_size, channels, modes, code, dtype)
        self.backward, self.back_offsets = plan_for(space, kernel_size, channels, modes, code, dtype, True)
        p = self.backward
        self.grad, self.threads = np.empty(int(np.prod(space)), dtype), threads
        self.part = np.empty(p.chunks * (channels * (2 * p.taps + 1) + 1), dtype)
        self.losses = np.zeros(self.forward.batch * self.forward.c0 * self.forward.c1 * self.forward.c2, dtype)
        self.memory = max(self.forward.memory, p.memory)
        self.tasks = max(len(self.losses), p.chunks)
        self.small = 4 * work_of(p) < SERIAL or threads == 1

    def step(self, x, target, state, count: int, rate, betas=(0.9, 0.999), eps=1e-8, decay=0.0) -> float:
        """Step number `count` (from 1 on): returns the mean square error before it."""
        dtype = self.grad.dtype
        first, second = betas
        hyper = np.array([rate / (1 - first**count), 1 - first, second, 1 - second, (1 - second**count) ** 0.5, eps,
                          decay, 2 / self.grad.size], dtype)
        x, target = x.reshape(-1), target.reshape(-1)
        if self.small:
            squares = run_step(self.forward, self.backward, x, target, state, self.grad, self.part, hyper, self.losses,
                               self.offsets, self.back_offsets, scratch(self.memory, dtype), np.zeros(2, np.int64))
        else:
            squares = self._shared(x, target, state, hyper)
        return float(squares) / self.grad.size

    def _shared(self, x, target, state, hyper):
        p, q = self.forward, self.backward
        c, k = p.channels, p.taps
        parts = np.split(state[0], [c * k, c * (k + 1), c * (2 * k + 1)])
        share(lambda memory, counter: run_forward(p, x, *parts, self.grad, target, hyper[7], self.losses, self.offsets,
                                                  memory, counter),
              len(self.losses), work_of(p), p.memory, hyper.dtype, self.threads)
        none = _EMPTY[hyper.dtype]
        share(lambda memory, counter: run_backward(q, x, *parts, self.grad, self.part, none, self.back_offsets, memory,
                                                   counter),
              q.chunks, 3 * work_of(q), q.memory, hyper.dtype, self.threads)
        run_adam(q, self.part, state, hyper)
        return self.losses.sum()


__all__ = ["Trainer", "backward", "forward", "plan_for"]
