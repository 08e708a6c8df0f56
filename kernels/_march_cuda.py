"""The CUDA schedule: march any rule many time steps with several time levels on chip.

The rules, boundaries and their order are those of the CPU schedule (`_march.py`); only the blocking differs.

* `resident`: a block of threads keeps a whole sample (or, of a long line, a piece with halos) in shared memory and
  runs all its levels there: one launch for any number of steps if the sample fits.
* `stream`: 2-D and 3-D grids that do not fit. A block covers a tile of the inner axes, one thread a column, and
  marches along axis 0. `depth` time levels are in flight; a thread keeps three planes of each in registers, and its
  neighbours' middle planes in shared memory. Level l works on plane r - 2l - 1 while plane r is being read, so all
  levels of one round are independent and one barrier a round is enough. Halos are recomputed.

Columns of threads and three planes in registers after Matsumura et al., "AN5D: automated stencil framework for
high-degree temporal blocking on GPUs", CGO 2020, section 4.

Everything called from a kernel is plain Python marked `register_jitable`, so that the simulator runs it too.
Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from fastdiff.kernels import _cuda
from fastdiff.kernels._edges import (
    ABSENT,
    BOUNDED,
    CALL,
    CLOCK,
    COEF,
    COEF_PER_SAMPLE,
    GHOST,
    HEAD,
    HOLD,
    ITEMS,
    KIND,
    PER_CELL,
    PER_SAMPLE,
    PER_STEP,
    PERIODIC,
    VALUE,
    is_seeing,
)
from fastdiff.kernels._fields import Cells, Field, lowered
from fastdiff.kernels._march import At, Star, cell, check_fields, components_of, sample_of
from fastdiff.kernels._wide import near_of

cuda = _cuda.toolkit()


class NoValues(NamedTuple):
    """No boundary is a function of the field: every g stands in the tables of `Edges`."""


# -- the rule and the boundary functions, by type --------------------------------------------------------------------


def update(p, near, at, new):
    """Apply the rule to `near[component, (c, m0, p0, m1, p1, m2, p2)]`; put the new values in `new[component]`."""
    count = components_of(type(p))
    stars = tuple(Star(*(near[c, k] for k in range(7))) for c in range(count))
    values = cell(p, stars if count > 1 else stars[0], at)
    for c in range(count):
        new[c] = values[c] if count > 1 else values


@overload(update)
def _update(p, near, at, new):
    count = components_of(p.instance_class)
    stars = ["Star(" + ", ".join(f"near[{c}, {k}]" for k in range(7)) + ")" for c in range(count)]
    lines = [
        "def update(p, near, at, new):",
        f"    values = cell(p, {stars[0] if count == 1 else '(' + ', '.join(stars) + ')'}, at)",
        *(f"    new[{c}] = values{'' if count == 1 else f'[{c}]'}" for c in range(count)),
    ]
    scope = {"cell": cell, "Star": Star}
    exec("\n".join(lines), scope)
    return scope["update"]


def value_at(p, c, side, t, x, y, z, u):
    """g of component `c` on a side from a boundary function: the `value` of the class of `p`."""
    return type(p).value(p, c, side, t, x, y, z, u)


@overload(value_at)
def _value_at(p, c, side, t, x, y, z, u):
    return p.instance_class.value


def called_value(e, values, c, side, step, i0, i1, i2, u0, u1):
    """g from a boundary function of time, place and the field's value at the face; evaluated in float64."""
    return e.reals[0] if isinstance(values, NoValues) else _called(e, values, c, side, step, i0, i1, i2, u0, u1)


@overload(called_value)
def _called_value(e, values, c, side, step, i0, i1, i2, u0, u1):
    if values.instance_class is NoValues:
        return lambda e, values, c, side, step, i0, i1, i2, u0, u1: e.reals[0]
    return _called


def _called(e, values, c, side, step, i0, i1, i2, u0, u1):
    x = place(e, e.ints[3], side, i0, i1, i2)
    y = place(e, e.ints[4], side, i0, i1, i2)
    z = place(e, e.ints[5], side, i0, i1, i2)
    u = e.clock.dtype.type(e.reals[1] * u0 + e.reals[2] * u1)
    return e.reals.dtype.type(value_at(values, c, side, time_of(e, step), x, y, z, u))


@register_jitable
def time_of(e, step):
    """The time of a level."""
    return e.clock[CLOCK + step] if len(e.clock) > CLOCK else e.clock[0] + e.clock[1] * step


@register_jitable
def place(e, a, side, i0, i1, i2):
    """Coordinate of a boundary cell along internal axis `a`; 0 where the grid has no such axis."""
    if a < 0:
        return e.clock.dtype.type(0)
    if a == side >> 1:
        return e.clock[8 + side]
    return e.clock[2 + a] + e.clock[5 + a] * (i0 if a == 0 else (i1 if a == 1 else i2))


# -- boundaries ------------------------------------------------------------------------------------------------------


@register_jitable
def wrapped(i, n):
    """`i` modulo `n`, for i no further than 64 n below zero: one short unsigned division."""
    return np.int64(np.uint32(i + 64 * n) % np.uint32(n))


@register_jitable
def axis_kind(e, axis):
    """BOUNDED, PERIODIC or ABSENT."""
    return e.ints[axis]


@register_jitable
def side_kind(e, c, side):
    """NONE, GHOST or HOLD, for component `c`."""
    return e.ints[HEAD + (c * 6 + side) * ITEMS + KIND]


@register_jitable
def ghost_value(e, b, c, side, g, u0, u1):
    """The cell beyond the edge: alpha*u0 + beta*u1 + gamma*g."""
    k = HEAD + (c * 6 + side) * ITEMS
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    return e.reals[at + 2] * g + e.reals[at + 1] * u1 + e.reals[at] * u0


@register_jitable
def edge_value(e, values, b, c, side, step, i0, i1, i2, n1, n2, u0, u1):
    """g of one boundary cell at one time level."""
    k = HEAD + (c * 6 + side) * ITEMS
    if e.ints[k + CALL] != 0:
        return called_value(e, values, c, side, step, i0, i1, i2, u0, u1)
    face = i0 * n1 + i1 if side >= 4 else (i0 if side >= 2 else i1) * n2 + i2
    at = e.ints[k + VALUE] + e.ints[k + PER_SAMPLE] * b + e.ints[k + PER_STEP] * step + e.ints[k + PER_CELL] * face
    return e.reals[at]


@register_jitable
def held_by(e, c, i0, i1, i2, n0, n1, n2):
    """The side that holds a cell, or -1; the lowest axis wins at a corner."""
    if i0 == n0 - 1 and side_kind(e, c, 1) == HOLD:
        return 1
    if i0 == 0 and side_kind(e, c, 0) == HOLD:
        return 0
    if i1 == n1 - 1 and side_kind(e, c, 3) == HOLD:
        return 3
    if i1 == 0 and side_kind(e, c, 2) == HOLD:
        return 2
    if i2 == n2 - 1 and side_kind(e, c, 5) == HOLD:
        return 5
    if i2 == 0 and side_kind(e, c, 4) == HOLD:
        return 4
    return -1


@register_jitable
def hold_cell(e, values, b, count, new, step, i0, i1, i2, n0, n1, n2):
    """Replace the components of a new value that a side holds."""
    for c in range(count):
        side = held_by(e, c, i0, i1, i2, n0, n1, n2)
        if side >= 0:
            zero = e.reals[0]
            new[c] = edge_value(e, values, b, c, side, step, i0, i1, i2, n1, n2, zero, zero)


@register_jitable
def with_ghosts(e, values, b, c, near, step, i0, i1, i2, n0, n1, n2):
    """The six neighbours of a cell at the edge of the domain, with ghosts where they lie beyond it."""
    u0, m0, p0, m1, p1, m2, p2 = near
    for side in range(6):
        i = i0 if side < 2 else (i1 if side < 4 else i2)
        n = n0 if side < 2 else (n1 if side < 4 else n2)
        if i == (n - 1 if side & 1 else 0) and side_kind(e, c, side) == GHOST:
            if side & 1:
                u1 = m0 if side == 1 else (m1 if side == 3 else m2)
            else:
                u1 = p0 if side == 0 else (p1 if side == 2 else p2)
            u1 = u1 if n > 1 else u0
            g = edge_value(e, values, b, c, side, step, i0, i1, i2, n1, n2, u0, u1)
            g = ghost_value(e, b, c, side, g, u0, u1)
            if side < 2:
                m0, p0 = (m0, g) if side & 1 else (g, p0)
            elif side < 4:
                m1, p1 = (m1, g) if side & 1 else (g, p1)
            else:
                m2, p2 = (m2, g) if side & 1 else (g, p2)
    return m0, p0, m1, p1, m2, p2


@register_jitable
def ghosts(e, values, b, count, near, step, i0, i1, i2, n0, n1, n2):
    """Put the ghosts among the neighbours of a cell at the edge of the domain."""
    for c in range(count):
        star = near[c, 0], near[c, 1], near[c, 2], near[c, 3], near[c, 4], near[c, 5], near[c, 6]
        star = with_ghosts(e, values, b, c, star, step, i0, i1, i2, n0, n1, n2)
        near[c, 1], near[c, 2], near[c, 3], near[c, 4], near[c, 5], near[c, 6] = star


# -- schedule: stream --------------------------------------------------------------------------------------------------


def stream(p, e, values, src, dst, tiles0, tiles1, tiles2, levels, step):
    """Kernel: march one tile, all levels together along axis 0.

    Free names, constants of a variant: count (components), depth (levels in flight), flat (axis 1 is absent),
    wide, high (threads along axes 2 and 1), threads (their product), number (type of the state).

    Rows that are not wanted are computed too where that is cheaper than to decide; nothing reads them. All in one
    function: with the places of a block worked out in another, heat in 3-D spills registers.
    """
    n0, n1, n2 = src.shape[2], src.shape[3], src.shape[4]
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    tile = cuda.blockIdx.x
    t2, tile = tile % tiles2, tile // tiles2
    t1, tile = tile % tiles1, tile // tiles1
    t0, b = tile % tiles0, tile // tiles0
    lo0, hi0 = t0 * n0 // tiles0, (t0 + 1) * n0 // tiles0
    lo1, hi1 = t1 * n1 // tiles1, (t1 + 1) * n1 // tiles1
    lo2, hi2 = t2 * n2 // tiles2, (t2 + 1) * n2 // tiles2
    h1 = levels if tiles1 > 1 else 0
    h2 = levels if tiles2 > 1 else 0
    bound0, bound1, bound2 = axis_kind(e, 0) == BOUNDED, axis_kind(e, 1) == BOUNDED, axis_kind(e, 2) == BOUNDED
    y, x = lo1 - h1 + ty, lo2 - h2 + tx
    own = lo1 <= y and y < hi1 and lo2 <= x and x < hi2
    here = y < hi1 + h1 and x < hi2 + h2
    here = here and not (bound1 and (y < 0 or y >= n1)) and not (bound2 and (x < 0 or x >= n2))
    me = ty * wide + tx
    before2 = me + thread_before(tx, n2, tiles2 == 1 and not bound2, 1)
    after2 = me + thread_after(tx, min(wide, hi2 - lo2 + 2 * h2) - 1, n2, tiles2 == 1 and not bound2, 1)
    before1 = me + thread_before(ty, n1, tiles1 == 1 and not bound1, wide)
    after1 = me + thread_after(ty, min(high, hi1 - lo1 + 2 * h1) - 1, n1, tiles1 == 1 and not bound1, wide)
    y, x = wrapped(y, n1), wrapped(x, n2)
    side = here and (bound2 and (x == 0 or x == n2 - 1) or bound1 and (y == 0 or y == n1 - 1))
    column = Column(b, y, x, n0, n1, n2, bound0, here, side, levels - 1 if own else -1, levels, step)

    planes = cuda.shared.array(0, number)
    old = cuda.local.array((depth, count), number)
    mid = cuda.local.array((depth, count), number)
    fresh = cuda.local.array((depth, count), number)
    ahead = cuda.local.array(count, number)
    near = cuda.local.array((count, 7), number)
    new = cuda.local.array(count, number)
    zero = number(0)
    for c in range(count):
        ahead[c], new[c] = zero, zero
        for level in range(depth):
            old[level, c], mid[level, c], fresh[level, c] = zero, zero, zero
    q = sample_of(p, b)
    first, last = lo0 - levels, hi0 + levels
    if bound0:
        first, last = max(first, 0), min(last, n0)
    if here:
        for c in range(count):
            ahead[c] = src[np.uint64(b), np.uint64(c), np.uint64(wrapped(first, n0)), np.uint64(y), np.uint64(x)]

    for r in range(first, hi0 + 2 * levels - 1):
        begun, done, beyond = np.int32(r - lo0 + levels - 2), np.int32(r - hi0 - levels), np.int32(r - n0)
        if here and r < last and (side or r == 0 or beyond == -1):
            hold_cell(e, values, b, count, ahead, step, wrapped(r, n0), y, x, n0, n1, n2)
        for c in range(count):
            old[0, c], mid[0, c], fresh[0, c] = mid[0, c], fresh[0, c], ahead[c]
        if here and r + 1 < last:
            z = r + 1 if bound0 else wrapped(r + 1, n0)
            for c in range(count):
                ahead[c] = src[np.uint64(b), np.uint64(c), np.uint64(z), np.uint64(y), np.uint64(x)]
        base = (r & 1) * (depth * count * threads)
        at, at1, at2 = np.uint64(base + me), np.uint64(base + before1), np.uint64(base + before2)
        to1, to2 = np.uint64(base + after1), np.uint64(base + after2)
        for level in range(depth):
            for c in range(count):
                planes[at + np.uint64((level * count + c) * threads)] = mid[level, c]
        cuda.syncthreads()
        for back in range(depth):
            level = depth - 1 - back
            if begun >= 3 * level and done < level:
                for c in range(count):
                    row = np.uint64((level * count + c) * threads)
                    near[c, 0], near[c, 1], near[c, 2] = mid[level, c], old[level, c], fresh[level, c]
                    near[c, 3] = mid[level, c] if flat else planes[at1 + row]
                    near[c, 4] = mid[level, c] if flat else planes[to1 + row]
                    near[c, 5], near[c, 6] = planes[at2 + row], planes[to2 + row]
                advance(q, e, values, dst, count, near, new, column, level, r, beyond)
            if level + 1 < depth:
                for c in range(count):
                    old[level + 1, c], mid[level + 1, c] = mid[level + 1, c], fresh[level + 1, c]
                    fresh[level + 1, c] = new[c]


class Column(NamedTuple):
    """What does not change while a thread marches along axis 0."""

    b: Any  # sample
    y: Any  # place along axes 1 and 2
    x: Any
    n0: Any  # cells along each axis
    n1: Any
    n2: Any
    bound0: Any  # whether axis 0 is bounded
    here: Any  # whether the thread has a column of the domain
    side: Any  # whether the column lies at an edge
    final: Any  # the level to store, -1: none
    levels: Any  # time levels of this launch
    step: Any  # time step of the first


@register_jitable
def advance(q, e, values, dst, count, near, new, col, level, r, beyond):
    """One cell from a level to the next: boundaries, the rule, and the result to memory if it is the last level."""
    b, y, x, n0, n1, n2 = col.b, col.y, col.x, col.n0, col.n1, col.n2
    i, step = r - 2 * level - 1, col.step + level
    edge = col.side or r == 2 * level + 1 or beyond == 2 * level
    if edge:
        edge = col.here and level < col.levels and (not col.bound0 or 0 <= i and i < n0)
    if edge:
        ghosts(e, values, b, count, near, step, wrapped(i, n0), y, x, n0, n1, n2)
    update(q, near, At(step, wrapped(i, n0), y, x), new)
    if edge:
        hold_cell(e, values, b, count, new, step + 1, wrapped(i, n0), y, x, n0, n1, n2)
    if level == col.final:
        for c in range(count):
            dst[np.uint64(b), np.uint64(c), np.uint64(i), np.uint64(y), np.uint64(x)] = new[c]


@register_jitable
def thread_before(i, n, wraps, stride):
    """Distance to the thread of the previous column; `wraps`: the block covers a whole periodic axis."""
    if i > 0:
        return -stride
    return (n - 1) * stride if wraps else 0


@register_jitable
def thread_after(i, last, n, wraps, stride):
    """Distance to the thread of the next column; `wraps`: the block covers a whole periodic axis."""
    if i < last:
        return stride
    return (1 - n) * stride if wraps and i == last else 0


# -- schedule: resident ------------------------------------------------------------------------------------------------


@register_jitable
def fill_ghosts(e, values, b, count, s, size, plane, pitch, start, width, low, high, step, n0, n1, n2, first, me,
                threads):
    """Fill all ghost cells of a block at one time level, periodic images included; a warp takes a side at a time."""
    lanes = min(threads, 32)
    for side in range(me // lanes, 6, threads // lanes):
        kind, end = axis_kind(e, side >> 1), side & 1
        if kind == ABSENT or (side == 4 and not low) or (side == 5 and not high):
            continue
        n = n0 if side < 2 else (n1 if side < 4 else width)
        inward = plane if side < 2 else (pitch if side < 4 else 1)
        inward = -inward if end == 1 else inward
        for k in range(me % lanes, n0 * n1 * width // n, lanes):
            i0, i1, i2 = face_cell(k, side, n0, n1, width)
            for c in range(count):
                at = c * size + start + i0 * plane + i1 * pitch + i2
                if kind == PERIODIC:
                    s[at - inward] = s[at + (n - 1) * inward]
                elif side_kind(e, c, side) == GHOST:
                    u0 = s[at]
                    u1 = s[at + inward] if n > 1 else u0
                    g = edge_value(e, values, b, c, side, step, i0, i1, i2 + first, n1, n2, u0, u1)
                    s[at - inward] = ghost_value(e, b, c, side, g, u0, u1)


@register_jitable
def hold_edges(e, values, b, count, s, size, plane, pitch, start, width, step, n0, n1, n2, first, me, threads):
    """Set all held cells of a block at one time level; a warp takes a side at a time."""
    lanes, zero = min(threads, 32), e.reals[0]
    for side in range(me // lanes, 6, threads // lanes):
        if axis_kind(e, side >> 1) != BOUNDED:
            continue
        n = n0 if side < 2 else (n1 if side < 4 else width)
        for k in range(me % lanes, n0 * n1 * width // n, lanes):
            i0, i1, i2 = face_cell(k, side, n0, n1, width)
            for c in range(count):
                if held_by(e, c, i0, i1, i2 + first, n0, n1, n2) == side:
                    g = edge_value(e, values, b, c, side, step, i0, i1, i2 + first, n1, n2, zero, zero)
                    s[c * size + start + i0 * plane + i1 * pitch + i2] = g


@register_jitable
def face_cell(k, side, n0, n1, width):
    """The place in a block of the k-th cell of a face."""
    if side < 4:
        high, low = (0, k) if k < width else (k // width, k % width)
        return ((n0 - 1) * (side & 1), high, low) if side < 2 else (high, (n1 - 1) * (side & 1), low)
    high, low = (k, 0) if n1 == 1 else (k // n1, k % n1)
    return high, low, (width - 1) * (side & 1)


@register_jitable
def holds_any(e, count):
    """Whether any side of any component is held."""
    for c in range(count):
        for side in range(6):
            if side_kind(e, c, side) == HOLD:
                return True
    return False


@register_jitable
def piece_of(e, block, n2, tiles, levels):
    """Sample, own cells, cells with halos of a block's piece of a line, and whether it has the ends of the domain."""
    tile, b = block % tiles, block // tiles
    lo, hi = tile * n2 // tiles, (tile + 1) * n2 // tiles
    bound2 = axis_kind(e, 2) == BOUNDED
    halo = levels if tiles > 1 else 0
    first, last = lo - halo, hi + halo
    if bound2:
        first, last = max(first, 0), min(last, n2)
    low = first == 0 if bound2 else tiles == 1
    high = last == n2 if bound2 else tiles == 1
    return b, lo, hi, first, last, low, high


def resident(p, e, values, src, dst, tiles, levels, step):
    """Kernel: march one sample, or a piece of a line, in shared memory. Free names: count, cells, threads, number."""
    n0, n1, n2 = src.shape[2], src.shape[3], src.shape[4]
    me = cuda.threadIdx.x
    b, lo, hi, first, last, low, high = piece_of(e, cuda.blockIdx.x, n2, tiles, levels)
    width = last - first
    g0, g1 = 0 if axis_kind(e, 0) == ABSENT else 1, 0 if axis_kind(e, 1) == ABSENT else 1
    pitch = width + 2
    plane = pitch * (n1 + 2 * g1)
    size = plane * (n0 + 2 * g0)
    step0, step1 = g0 * plane, g1 * pitch
    start = step0 + step1 + 1
    stop = start + (n0 - 1) * plane + (n1 - 1) * pitch + width
    s = cuda.shared.array(0, number)
    near = cuda.local.array((count, 7), number)
    new = cuda.local.array(count, number)
    kept = cuda.local.array((cells, count), number)

    for k in range(me, size, threads):
        z, y, x = k // plane - g0, k % plane // pitch - g1, k % pitch - 1
        inside = 0 <= z and z < n0 and 0 <= y and y < n1 and 0 <= x and x < width
        for c in range(count):
            s[c * size + k] = src[b, c, z, y, (first + x) % n2] if inside else number(0)
    held = holds_any(e, count)
    cuda.syncthreads()
    if held:
        hold_edges(e, values, b, count, s, size, plane, pitch, start, width, step, n0, n1, n2, first, me,
                   threads)
        cuda.syncthreads()
    q = sample_of(p, b)
    mine, left = np.uint64(start + me), stop - start - me
    m0, p0, m1, p1 = mine - np.uint64(step0), mine + np.uint64(step0), mine - np.uint64(step1), mine + np.uint64(step1)
    for level in range(step, step + levels):
        fill_ghosts(e, values, b, count, s, size, plane, pitch, start, width, low, high, level, n0, n1, n2, first, me,
                    threads)
        cuda.syncthreads()
        for j in range(cells):
            if left > j * threads:
                for c in range(count):
                    at = np.uint64(c * size) + np.uint64(j * threads)
                    near[c, 0], near[c, 1], near[c, 2] = s[at + mine], s[at + m0], s[at + p0]
                    near[c, 3], near[c, 4] = s[at + m1], s[at + p1]
                    near[c, 5], near[c, 6] = s[at + mine - np.uint64(1)], s[at + mine + np.uint64(1)]
                k = start + me + j * threads
                z = min(max(k // plane - g0, 0), n0 - 1)
                y = min(max(k % plane // pitch - g1, 0), n1 - 1)
                x = (min(max(k % pitch - 1, 0), width - 1) + first) % n2
                update(q, near, At(level, z, y, x), new)
                for c in range(count):
                    kept[j, c] = new[c]
        cuda.syncthreads()
        for j in range(cells):
            if left > j * threads:
                for c in range(count):
                    s[np.uint64(c * size) + np.uint64(j * threads) + mine] = kept[j, c]
        cuda.syncthreads()
        if held:
            hold_edges(e, values, b, count, s, size, plane, pitch, start, width, level + 1, n0, n1, n2, first, me,
                       threads)
            cuda.syncthreads()
    for k in range(start + me, stop, threads):
        z, y, x = k // plane - g0, k % plane // pitch - g1, k % pitch - 1 + first
        if 0 <= y and y < n1 and lo <= x and x < hi:
            for c in range(count):
                dst[b, c, z, y, x] = s[c * size + k]


@lru_cache(maxsize=256)
def stream_kernel(count, depth, flat, block, dtype, nonlinear=False):
    """The kernel of the `stream` schedule for `count` components; `flat`: axis 1 is absent."""
    wide, high = block
    return _cuda.specialised(stream, threads=wide * high, blocks=stream_blocks(count, block, dtype, nonlinear),
                             count=count, depth=depth, flat=flat, wide=wide, high=high, number=_NUMBERS[dtype])


@lru_cache(maxsize=256)
def resident_kernel(count, cells, block, dtype, fields=False):
    """The kernel of the `resident` schedule for `count` components, with `cells` cells for each thread."""
    blocks = 1 if fields or count * np.dtype(dtype).itemsize > 8 else max(1, 512 // block[0])
    return _cuda.specialised(resident, threads=block[0], blocks=blocks, count=count, cells=cells,
                             number=_NUMBERS[dtype])


_NUMBERS = {"float32": types.float32, "float64": types.float64}


def stream_blocks(count, block, dtype, nonlinear=False):
    """Blocks of the `stream` schedule on a multiprocessor: as many as leave enough registers for no spill."""
    threads = 1024 if block[1] > 1 else 768
    if count > 1 or nonlinear or (block[1] > 1 and dtype == "float64"):
        threads = 512
    if count * np.dtype(dtype).itemsize >= HEAVY:
        threads = 256
    return max(1, threads // (block[0] * block[1]))


MANY_FIELDS = 6  # numbers of a cell that a rule reads, beyond which a thread needs more than 128 registers
HEAVY = 24  # bytes of all components of a cell, from which on a thread needs more than 128 registers


# -- plan --------------------------------------------------------------------------------------------------------------


class CudaPlan(NamedTuple):
    """How a march is cut up for a GPU."""

    schedule: str  # "resident" or "stream"
    depth: int  # time levels a launch
    block: tuple[int, int]  # threads along axes 2 and 1
    tiles: tuple[int, int, int]  # tiles per sample along each axis
    cells: int = 1  # resident: cells a thread updates at each level


def plan_cuda(shape, ndim, itemsize, steps, multiprocessors=_cuda.MULTIPROCESSORS, fields=0) -> CudaPlan:
    """The plan for a state of shape (B, C, n0, n1, n2) of a grid with `ndim` axes, whose rule reads `fields` Cells."""
    _, C, _, _, n2 = shape
    if _cuda.simulated():
        return _plan_simulator(shape, ndim, steps)
    padded = _padded_rows(shape, ndim) * (n2 + 2)
    if padded * C * itemsize <= (_cuda.SHARED_BYTES if fields <= MANY_FIELDS else _cuda.SHARED_BYTES // 2):
        heavy = C * itemsize > (4 if fields else 8) or fields > MANY_FIELDS
        threads = 128 if padded <= 512 else 256 if padded <= 2048 or heavy else 512
        cells = min(k for k in (1, 2, 4, 6, 8, 12, 16, 24) if k * threads >= padded)
        return CudaPlan("resident", max(steps, 1), (threads, 1), (1, 1, 1), cells)
    if ndim == 1:
        return _plan_line(C * itemsize * (2 if fields else 1), n2, steps)
    return _plan_stream(shape, itemsize, ndim == 2, multiprocessors, fields)


def _plan_simulator(shape, ndim, steps):
    """Few threads: the simulator starts a thread of the system for each."""
    n0, n1, n2 = shape[2:]
    if ndim == 1:
        return CudaPlan("resident", steps, (16, 1), (1, 1, 1), ceil(n2 / 16) + 1)
    depth, (wide, high) = (4, (16, 1)) if ndim == 2 else (2, (8, 8))
    wide, high = min(wide, max(n2, 2 * depth + 4)), min(high, n1)
    tiles1, tiles2 = _stream_tiles(n1, high, depth), _stream_tiles(n2, wide, depth)
    return CudaPlan("stream", depth, (wide, high), (1 if n0 < 12 else 2, tiles1, tiles2))


def _padded_rows(shape, ndim):
    n0, n1 = shape[2:4]
    return {1: 1, 2: n0 + 2, 3: (n0 + 2) * (n1 + 2)}[ndim]


def _plan_line(cell_bytes, n, steps):
    threads, cells = 256, max(2, 48 // cell_bytes)
    width = threads * cells - 2
    depth = max(1, min(steps, width // 20))
    return CudaPlan("resident", depth, (threads, 1), (1, 1, ceil(n / (width - 2 * depth))), cells)


def _stream_tiles(n, threads, depth):
    """Tiles along an axis: one if the block covers it, else with room for halos."""
    return 1 if n <= threads else ceil(n / (threads - 2 * depth))


def stream_depth(count, itemsize, flat):
    """Time levels in flight: as many as fit into registers, and in 3-D as pay for their halos."""
    if flat:
        return max(4, 32 // (count * itemsize))
    return 3 if count * itemsize == 4 else 2 if count * itemsize < HEAVY else 1


def stream_block(count, itemsize, flat, fields=False):
    """Threads along axes 2 and 1 of a block of the `stream` schedule."""
    cell = 2 * stream_depth(count, itemsize, flat) * count * itemsize  # bytes of shared memory for each thread
    if flat:
        return min(256 if count * itemsize < HEAVY else 128, _cuda.SHARED_BYTES // cell // 32 * 32), 1
    high = {4: 24 if fields else 32, 8: 24}.get(count * itemsize, 16 if count * itemsize < HEAVY else 8)
    return 32, min(high, _cuda.SHARED_BYTES // (32 * cell))


def _plan_stream(shape, itemsize, flat, multiprocessors, fields=False):
    B, C, n0, n1, n2 = shape
    depth = stream_depth(C, itemsize, flat)
    wide, high = stream_block(C, itemsize, flat, fields)
    if flat:
        widest = min(512, _cuda.SHARED_BYTES // (2 * depth * C * itemsize) // 64 * 64)
        tiles2 = 1 if n2 <= widest else ceil(n2 / (wide - 2 * depth))
        wide = ceil((ceil(n2 / tiles2) + (2 * depth if tiles2 > 1 else 0)) / 64) * 64
    tiles1, tiles2 = _stream_tiles(n1, high, depth), _stream_tiles(n2, wide, depth)
    places = multiprocessors * stream_blocks(C, (wide, high), f"float{8 * itemsize}", fields)
    tiles0 = max(1, min(places // (B * tiles1 * tiles2), n0 // (4 * depth)))
    return CudaPlan("stream", depth, (wide, high), (tiles0, tiles1, tiles2))


# -- entry -------------------------------------------------------------------------------------------------------------


def count_fields(rule) -> int:
    """How many numbers of every cell a rule, or one inside of it, reads."""
    return sum(1 if isinstance(f, Field | Cells) else count_fields(f) if hasattr(f, "_fields") else 0 for f in rule)


def to_device(data, stream=0):
    """A rule, `Edges` or boundary values with its arrays on the device; what is there already is only wrapped."""
    if _cuda.simulated():
        return data  # the simulator wants NumPy arrays inside tuples
    return type(data)(*(_field_to_device(f, stream) for f in data))


def _field_to_device(field, stream):
    if hasattr(field, "_fields"):
        return to_device(field, stream)
    if isinstance(field, np.ndarray):
        return cuda.to_device(np.ascontiguousarray(field), stream=stream)
    return _cuda.wrap(field) if _cuda.on_device(field) else field


def as_space(u):
    """View a state (B, C, *grid) as (B, C, n0, n1, n2)."""
    grid = tuple(u.shape[2:])
    space = {1: (1, 1, *grid), 2: (grid[0], 1, grid[-1]), 3: grid}[len(grid)]
    return u.reshape(*u.shape[:2], *space)


def march_cuda(rule, u, edges, steps, *, step=0, out=None, work=None, values=None, stream=None, plan=None):
    """Apply `steps` time steps of a rule to `u` (B, C, *grid), C-contiguous, on the GPU; never on the CPU.

    As `march` on the CPU: `edges` describes the boundaries, `step` is the index of the first time level in its tables,
    `u` is left as it is and the result is written to `out`, `work` is a third array like `u`.
    A NumPy array is copied to the device and the result back. With a device array (a torch tensor, anything that has
    `__cuda_array_interface__`) all work is queued on `stream` (a Numba stream or a raw handle) and nothing waits.
    `rule` and `edges` may hold device arrays; `to_device` makes them so, which saves copies when they serve again.
    `values` replaces the C functions of the CPU, for sides of `edges` whose `call` is not 0: a NamedTuple whose class
    has a static method `value(p, c, side, t, x, y, z, u)`, with `p` the tuple itself, `c` the component and
    `side` = 2 * axis + end, axes numbered as in `Edges`; for sides that see more of the field a static method
    `seen(p, c, side, t, x, y, z, u, w0, ..., w7)`.
    """
    _cuda.require_device()
    _check(rule, u, edges, out, work, values)
    if isinstance(u, np.ndarray):
        return _march_host(rule, u, edges, steps, step, out, values, stream, plan)
    out = _cuda.empty_like(u) if out is None else out
    queue = _cuda.numba_stream(stream)
    here, final = (as_space(_cuda.wrap(a)) for a in (u, out))
    if steps < 1:
        final.copy_to_device(here, stream=queue)
        return out
    ndim = len(u.shape) - 2
    fields = count_fields(rule)
    plan = plan or plan_cuda(here.shape, ndim, here.dtype.itemsize, steps, _cuda.multiprocessors(), fields)
    sweeps = -(-steps // plan.depth)
    if sweeps > 1 and work is None:
        work = _cuda.empty_like(u)
    spare = final if sweeps == 1 else as_space(_cuda.wrap(work))
    rule = _lowered(rule, u, edges, queue)
    data = to_device(rule, queue), to_device(edges, queue), to_device(NoValues() if values is None else values, queue)
    seeing = edges.ints.shape[0] > HEAD + 6 * ITEMS * here.shape[1]
    if near_of(rule) != "star" or seeing:
        from fastdiff.kernels._wide_cuda import march_wide_cuda

        kinds = edges.ints if isinstance(edges.ints, np.ndarray) else _cuda.wrap(edges.ints).copy_to_host()
        march_wide_cuda(data, rule, here, final, steps, step, kinds[:3].tolist(), queue, seeing)
        return out
    _launch(data, (here, final, spare), plan, ndim, steps, step, queue)
    return out


def _lowered(rule, u, edges, queue):
    """The rule with its numbers of every cell in the GPU's memory, and its clock set."""
    check_fields(rule, u)
    clock = edges.clock if isinstance(edges.clock, np.ndarray) else _cuda.wrap(edges.clock).copy_to_host()

    def device(data):
        return data if _cuda.simulated() else _field_to_device(data, queue)

    device.place = _cuda.current()  # numbers are kept for each GPU
    return lowered(rule, (ABSENT,) * 3, as_space(u).shape[2:], 0, clock, device)


def _march_host(rule, u, edges, steps, step, out, values, stream, plan):
    queue = _cuda.numba_stream(stream)
    result = march_cuda(rule, cuda.to_device(np.ascontiguousarray(u), stream=queue), edges, steps, step=step,
                        values=values, stream=stream, plan=plan)
    out = np.empty_like(u) if out is None else out
    back = result.copy_to_host(stream=queue)
    if queue:
        queue.synchronize()
    np.copyto(out, back)
    return out


def _check(rule, u, edges, out, work, values):
    dtype = str(u.dtype).removeprefix("torch.")
    if dtype not in ("float32", "float64"):
        raise TypeError(f"the GPU marches float32 or float64, got {dtype}")
    if not 3 <= len(u.shape) <= 5:
        raise ValueError(f"expected a state (batch, components, *grid) of 1 to 3 axes, got shape {tuple(u.shape)}")
    count = components_of(type(rule))
    if u.shape[1] != count:
        raise ValueError(f"{type(rule).__name__} has {count} component(s), the state {u.shape[1]}")
    if edges.reals.dtype != dtype:
        raise TypeError(f"the state is {dtype}, its boundaries are {edges.reals.dtype}")
    for name, other in (("out", out), ("work", work)):
        if other is not None and (tuple(other.shape) != tuple(u.shape) or other is u):
            raise ValueError(f"{name} must be another array of shape {tuple(u.shape)}")
    if isinstance(edges.ints, np.ndarray):
        called = edges.ints[HEAD + CALL : HEAD + 6 * count * ITEMS : ITEMS].any() or is_seeing(edges)
    else:
        called = False
    if values is None and called:
        raise ValueError("a boundary is a function of the field: a GPU needs it as `values`, not as an address")


def _launch(data, arrays, plan, ndim, steps, step, stream):
    here, final, spare = arrays
    B, C = here.shape[:2]
    dtype = here.dtype.name
    sweeps = -(-steps // plan.depth)
    blocks = B * plan.tiles[0] * plan.tiles[1] * plan.tiles[2]
    if plan.schedule == "resident":
        kernel, tiles = resident_kernel(C, plan.cells, plan.block, dtype, count_fields(data[0]) > 0), plan.tiles[2:]
    else:
        nonlinear = not isinstance(data[2], NoValues) or count_fields(data[0]) > 0  # both want registers
        kernel, tiles = stream_kernel(C, plan.depth, ndim == 2, plan.block, dtype, nonlinear), plan.tiles
    ready = kernel[blocks, plan.block, stream, shared_bytes(plan, here.shape, ndim, here.dtype.itemsize)]
    for sweep in range(sweeps):
        there = final if (sweeps - sweep) & 1 else spare
        levels = min(plan.depth, steps - sweep * plan.depth)
        ready(*data, here, there, *tiles, levels, step + sweep * plan.depth)
        here = there


def shared_bytes(plan, shape, ndim, itemsize):
    """Dynamic shared memory of a block."""
    C, n2 = shape[1], shape[4]
    if plan.schedule == "stream":
        return 2 * plan.depth * C * plan.block[0] * plan.block[1] * itemsize
    width = n2 if plan.tiles[2] == 1 else ceil(n2 / plan.tiles[2]) + 2 * plan.depth
    return C * _padded_rows(shape, ndim) * (width + 2) * itemsize
