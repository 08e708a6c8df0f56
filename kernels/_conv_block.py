"""How the two-layer block runs: the hidden layer only ever exists for a strip of cells, in first-level cache.

Forward, for each strip: the K shifted copies of the input (the boundary is in them), the hidden channels, their
activation, and K sums over the channels, S_k = sum over c of w2[c, k] h_c. The output at a cell is the sum of S_k at
its K neighbours, so what has to be kept for a tile of the grid is K planes of S.

Backward, for each strip: the same copies and hidden channels again, K copies of the output's gradient shifted the other
way, the hidden gradient, and sums over the strip for all weights, which stay in one block of memory for a whole chunk.
Where the input's gradient is asked for, a task takes a whole sample and keeps K planes of it.
"""

from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastdiff.kernels._activation import activate, times_slope
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
from fastdiff.kernels._jit import atomic_add, flush_denormals, inner, kernel, restore_denormals
from fastdiff.kernels._threads import scratch
from fastdiff.kernels._tiles import VECTOR_BYTES, array_at

STRIP_BYTES = 1024  # of a row of a strip
SUMS_BYTES = 1 << 18  # of the sums of a tile: they should stay in second-level cache


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
    s0: int  # planes, rows and row length of the sums
    s1: int
    pitch: int
    chunks: int
    m: int  # channels and taps of one product of the backward pass
    t: int
    first: int  # places: weights of the first layer, of the second one, what sums start from, and the rest
    second: int
    start: int
    zeros: int
    last: int  # the output's bias
    ones: int
    turned: int  # weights for the way back
    shifted: int
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
    block, tap_block = block_for(channels), block_for(taps)
    padded, tap_padded = ceil(channels / block) * block, ceil(taps / tap_block) * tap_block
    strip = max(width, STRIP_BYTES // dtype.itemsize)
    tile = tuple(n) if whole else _tile(n, half, tap_padded, dtype.itemsize, backward)
    counts = [ceil(a / t) for a, t in zip(n, tile)]
    pitch = up(tile[2] + 2 * half[2]) + width
    m, t = sums_for(padded, taps)
    rows = (tile[0], tile[1]) if backward else (tile[0] + 2 * half[0], tile[1] + 2 * half[1])
    plane = rows[0] * rows[1] * pitch
    sizes = dict(first=padded * taps, second=padded * tap_padded, start=padded, zeros=max(padded, tap_padded), last=1,
                 ones=max(taps, strip), turned=padded * (taps + tap_padded), shifted=(2 * taps + 1) * strip,
                 hidden=padded * strip, slopes=padded * strip if backward else 0, spare=tap_padded * width,
                 acc=(padded * (2 * taps + 1) + 1) * width, sums=tap_padded * plane if whole or not backward else 0)
    at, places = 0, {}
    for name, size in sizes.items():
        places[name] = at
        at += up(size)
    plan = Plan(B, code, channels, block, padded, taps, tap_block, tap_padded, *n, *kernel_size, *half, *modes, *tile,
                *counts, strip, *rows, pitch, max(1, min(CHUNKS, B * int(np.prod(counts)))), m, t, **places, memory=at)
    i, j, l = np.ogrid[: kernel_size[0], : kernel_size[1], : kernel_size[2]]
    spread = np.arange(taps) * plane + ((i * rows[1] + j) * pitch + l).reshape(-1)
    offsets = np.concatenate([np.arange(max(taps, padded)) * strip, spread]).astype(np.int64)
    return plan, offsets


def _tile(n, half, planes, itemsize, backward):
    """Cells of a tile: whole rows if they are not too long, and as many as the sums have room for."""
    room = 4096 if backward else max(256, SUMS_BYTES // (itemsize * planes))
    t2 = n[2] if n[2] <= 2048 else 2048
    t1 = min(n[1], max(1 + 2 * half[1], room // t2))
    return min(n[0], max(1 + 2 * half[0], room // (t2 * t1))), t1, t2


@inner
def pack_weights(p, w1, b1, w2, b2, space):
    """Put the weights into the order of use: a layer's by block of its results; the same for the way back."""
    zero = space.dtype.type(0)
    fill(space, 0, p.shifted, zero)
    fill(space, p.ones, max(p.taps, p.strip), space.dtype.type(1))
    for c in range(p.channels):
        space[p.start + c] = b1[c]
        for k in range(p.taps):
            space[p.first + (c // p.block * p.taps + k) * p.block + c % p.block] = w1[c * p.taps + k]
            space[p.second + (k // p.tap_block * p.padded + c) * p.tap_block + k % p.tap_block] = w2[c * p.taps + k]
            space[p.turned + (c // p.block * p.taps + k) * p.block + c % p.block] = w2[c * p.taps + k]
            space[p.turned + p.padded * p.taps + (k // p.tap_block * p.padded + c) * p.tap_block
                  + k % p.tap_block] = w1[c * p.taps + k]
    space[p.last] = b2[0]


@inner
def shift_input(p, x, sample, z, y, j, count, space, at, pitch, width):
    """The K shifted copies of a strip of the input, around hidden cells (z, y, j ... j + count)."""
    k = 0
    for a in range(p.k0):
        zz = place(z + a - p.h0, p.n0, p.mode0)
        for b in range(p.k1):
            yy = place(y + b - p.h1, p.n1, p.mode1)
            row = sample + (zz * p.n1 + yy) * p.n2 if zz >= 0 and yy >= 0 else -1
            for c in range(p.k2):
                pack_row(x, row, p.n2, p.mode2, j + c - p.h2, count, space, at + k * pitch, width)
                k += 1


@inner
def hidden_layer(p, space, offsets, vectors):
    """The hidden channels of a strip, before the activation."""
    for block in range(p.padded // p.block):
        times(p.block, space, p.hidden + block * p.block * p.strip, p.strip, space, p.shifted, offsets, 0, p.taps,
              space, p.first + block * p.taps * p.block, space, p.start + block * p.block, vectors)


# -- forward ---------------------------------------------------------------------------------------------------------


@inner
def sum_strip(p, x, sample, z, y, j, count, space, offsets, at):
    """S_k of the hidden cells (z, y, j ... j + count), to `at` in each of the K planes."""
    width = VECTOR_BYTES // space.itemsize
    vectors = vectors_of(space, count)
    shift_input(p, x, sample, z, y, j, count, space, p.shifted, p.strip, vectors * width)
    hidden_layer(p, space, offsets, vectors)
    for c in range(p.padded):
        activate(p.code, space, p.hidden + c * p.strip, space, p.hidden + c * p.strip, vectors * width)
    plane = p.s0 * p.s1 * p.pitch
    for block in range(p.tap_padded // p.tap_block):
        times(p.tap_block, space, at + block * p.tap_block * plane, plane, space, p.hidden, offsets, 0, p.padded, space,
              p.second + block * p.padded * p.tap_block, space, p.zeros, vectors)


@inner
def sum_row(p, x, sample, z, y, low, count, space, offsets, at):
    """S_k of the cells low ... low + count of a row, which may lie beyond the grid."""
    a, b = max(low, 0), min(low + count, p.n2)
    for j in range(a, b, p.strip):
        sum_strip(p, x, sample, z, y, j, min(p.strip, b - j), space, offsets, at + j - low)
    plane = p.s0 * p.s1 * p.pitch
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
    plane, width = p.s0 * p.s1 * p.pitch, VECTOR_BYTES // space.itemsize
    for j in range(first, last):
        for k in range(p.tap_padded):
            copy(space, at + k * plane + j - low, space, p.spare + k * width, width)
        sum_strip(p, x, sample, z, y, place(j, p.n2, p.mode2), 1, space, offsets, at + j - low)
        for k in range(p.tap_padded):
            copy(space, p.spare + k * width + 1, space, at + k * plane + j - low + 1, width - 1)


@inner
def forward_tile(p, x, y, target, scale, b, a0, a1, a2, space, offsets):
    """One tile of the output; with a target, `y` receives scale * (output - target). Returns the sum of squares."""
    z_count, y_count, count = min(p.t0, p.n0 - a0), min(p.t1, p.n1 - a1), min(p.t2, p.n2 - a2)
    plane, sample = p.s0 * p.s1 * p.pitch, b * p.n0 * p.n1 * p.n2
    for i in range(z_count + 2 * p.h0):
        z = place(a0 - p.h0 + i, p.n0, p.mode0)
        for j in range(y_count + 2 * p.h1):
            line = place(a1 - p.h1 + j, p.n1, p.mode1)
            at = p.sums + (i * p.s1 + j) * p.pitch
            if z >= 0 and line >= 0:
                sum_row(p, x, sample, z, line, a2 - p.h2, count + 2 * p.h2, space, offsets, at)
            else:
                for k in range(p.taps):
                    fill(space, at + k * plane, p.pitch, space.dtype.type(0))
    squares = space.dtype.type(0)
    for i in range(z_count):
        for j in range(y_count):
            for l in range(0, count, p.strip):
                n = min(p.strip, count - l)
                here = p.sums + (i * p.s1 + j) * p.pitch + l
                times(1, space, p.hidden, p.strip, space, here, offsets, max(p.taps, p.padded), p.taps, space, p.ones,
                      space, p.last, vectors_of(space, n))
                to = sample + ((a0 + i) * p.n1 + a1 + j) * p.n2 + a2 + l
                if target.size == 0:
                    copy(space, p.hidden, y, to, n)
                else:
                    squares += residual(space, p.hidden, target, to, y, scale, n)
    return squares


@inner
def residual(space, at, target, to, y, scale, count):
    """y = scale * (space - target); returns the sum of the squares of the difference."""
    at, to, n = np.uint64(at), np.uint64(to), np.uint64(count)
    s, one = space.dtype.type(0), np.uint64(1)
    for i in range(n):
        d = space[at + i] - target[to + i]
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
def backward_strip(p, x, grad, sample, z, y, rows, j, count, space, offsets):
    """Add the share of `rows` strips, side by side in scratch memory, to the sums of all weights."""
    width = VECTOR_BYTES // space.itemsize
    wide = vectors_of(space, count) * width
    gradient = p.shifted + p.taps * p.strip
    plain = gradient + p.taps * p.strip
    for r in range(rows):
        shift_input(p, x, sample, z, y + r, j, count, space, p.shifted + r * wide, p.strip, wide)
        shift_gradient(p, grad, sample, z, y + r, j, count, space, gradient + r * wide, p.strip, wide)
        copy(grad, sample + (z * p.n1 + y + r) * p.n2 + j, space, plain + r * wide, count)
        fill(space, plain + r * wide + count, wide - count, space.dtype.type(0))
    vectors, acc = rows * wide // width, p.acc // width
    hidden_layer(p, space, offsets, vectors)
    for block in range(p.padded // p.block):
        times(p.block, space, p.slopes + block * p.block * p.strip, p.strip, space, gradient, offsets, 0, p.taps, space,
              p.turned + block * p.taps * p.block, space, p.zeros, vectors)
    for c in range(p.padded):
        at, to = p.hidden + c * p.strip, p.slopes + c * p.strip
        back(p.code, space, at, to, vectors * width)
    for c in range(0, p.padded, p.m):
        for k in range(0, p.taps, p.t):
            into = c * p.taps + k * p.m
            gather(p.m, p.t, space, acc + into, space, p.slopes + c * p.strip, p.strip, space, p.shifted + k * p.strip,
                   p.strip, 1, 0, 0, vectors)
            gather(p.m, p.t, space, acc + p.padded * (p.taps + 1) + into, space, p.hidden + c * p.strip, p.strip, space,
                   gradient + k * p.strip, p.strip, 1, 0, 0, vectors)
        gather(p.m, 1, space, acc + p.padded * p.taps + c, space, p.slopes + c * p.strip, p.strip, space, p.ones, 0, 1,
               0, 0, vectors)
    gather(1, 1, space, acc + p.padded * (2 * p.taps + 1), space, plain, 0, space, p.ones, 0, 1, 0, 0, vectors)


@inner
def back(code, space, at, to, count):
    """Turn sums (`at`) into the hidden layer, and its gradient (`to`) into theirs."""
    if code == 2 or code == 3:  # those whose slope needs what went in
        times_slope(code, space, at, space, to, space, to, count)
        activate(code, space, at, space, at, count)
    else:
        activate(code, space, at, space, at, count)
        times_slope(code, space, at, space, to, space, to, count)


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
            together = max(1, p.strip // wide)
            for y in range(a1, a1 + y_count, together):
                rows = min(together, a1 + y_count - y)
                backward_strip(p, x, grad, sample, z, y, rows, a2 + l, n, space, offsets)
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
