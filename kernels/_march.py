"""The CPU schedule: march any rule many time steps, blocked in time and space, over threads.

A *rule* is a `NamedTuple` class: its fields are the parameters, its static method `cell` the update of one cell.

    class Heat2D(NamedTuple):
        a0: Any                       # D dt / dx^2: an array with one value a sample
        ...
        @staticmethod
        def cell(p, u, at): ...       # the new value of the cell; a tuple if the rule has several `components`

`cell` is compiled into the schedule by the rule's *type*; the same method is the CUDA kernel's update.

Space is always three axes (n0, n1, n2), n2 contiguous: 1-D is (1, 1, n), 2-D is (n0, 1, n2). An axis is bounded,
periodic or absent. State arrays are (batch, components, n0, n1, n2).

Two schedules:

* `stream`: large 2-D and 3-D grids. The grid is cut into tiles; in a tile all time levels march down axis 0 together,
  as a wavefront, each level keeping four planes in a ring that stays in cache; halos are recomputed.
* `resident`: 1-D and small grids. A block lives in cache in two copies and runs all its levels there.

Boundaries are data (`Edges`, see `_edges.py`) and are applied at every level, at that level's own time. Tiles are
taken in order from one atomic counter; a tile starts when its neighbours have finished the sweep before. There is no
barrier, so a thread that is held up holds up only its neighbours, and a run is one call without the interpreter lock.

Rows inside a tile are computed a little wider than needed, to whole vectors; what lies beyond is never read.
No array is sliced in a loop: every slice would count references with a locked instruction.

Time blocking after Nguyen et al., "3.5-D blocking optimization for stencil computations", SC 2010.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from fastdiff.kernels._edges import (
    BOUNDED,
    GHOST,
    HOLD,
    PERIODIC,
    axis_kind,
    edge_value,
    ghost_value,
    side_kind,
    varies_along,
)
from fastdiff.kernels._jit import (
    FASTMATH, atomic_add, atomic_load, atomic_store, borrow, give_way,
    inline_here,
    inner,
    keep_apart,
    kernel,
    wide_vectors,
)

LANES = 16  # rows inside a tile start and end at multiples of this many cells
BUSY_TURNS = 100  # looks at a neighbour's progress before giving way to other threads


class Star(NamedTuple):
    """A cell and its six neighbours: `m0`, `p0` one cell down and up axis 0, and so on."""

    c: Any
    m0: Any
    p0: Any
    m1: Any
    p1: Any
    m2: Any
    p2: Any


class At(NamedTuple):
    """When and where a cell is: the time step since the start of the march, and its index along each axis."""

    step: Any
    i0: Any
    i1: Any
    i2: Any


# -- the rule, by type ---------------------------------------------------------------------------------------------


def cell(p, u, at):
    """New value(s) of one cell: the `cell` of the parameters' class."""
    return type(p).cell(p, u, at)


@overload(cell, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _cell(p, u, at):
    return p.instance_class.cell


def sample_of(p, b):
    """The parameters of sample `b`: 1-D fields give a number, larger ones a view, numbers stay."""
    return type(p)(*(f[b] if isinstance(f, np.ndarray) else f for f in p))


@overload(sample_of)
def _sample_of(p, b):
    fields = ", ".join(f"p[{k}][b]" if isinstance(t, types.Array) else f"p[{k}]" for k, t in enumerate(p.types))
    scope = {"rule": p.instance_class}
    exec(f"def pick(p, b):\n    return rule({fields})", scope)
    return scope["pick"]


_STAR = "Star(src[ls, {0}, z, y, x], src[ls, {0}, zm, y, x], src[ls, {0}, zp, y, x], src[ls, {0}, z, ym, x], \
src[ls, {0}, z, yp, x], src[ls, {0}, z, y, x - one], src[ls, {0}, z, y, x + one])"


def update_row(p, dst, ld, zd, yd, shift, src, ls, zm, z, zp, ym, y, yp, lo, hi, step, i0, i1, origin):
    """Apply the rule to columns `lo:hi` of row (z, y) of `src[ls]`; put them at `lo + shift` of `dst[ld]`."""
    raise NotImplementedError("compiled only: its source is made for the rule's number of components")


@overload(update_row, inline="always")
def _update_row(p, dst, ld, zd, yd, shift, src, ls, zm, z, zp, ym, y, yp, lo, hi, step, i0, i1, origin):
    count = getattr(p.instance_class, "components", 1)
    stars = [_STAR.format(c) for c in range(count)]
    lines = [
        "def row(p, dst, ld, zd, yd, shift, src, ls, zm, z, zp, ym, y, yp, lo, hi, step, i0, i1, origin):",
        "    for x in range(lo, hi):",
        f"        new = cell(p, {stars[0] if count == 1 else '(' + ', '.join(stars) + ')'}, At(step, i0, i1, x + origin))",
        *(f"        dst[ld, {c}, zd, yd, x + shift] = new{'' if count == 1 else f'[{c}]'}" for c in range(count)),
    ]
    scope = {"cell": cell, "Star": Star, "At": At, "one": np.uint64(1)}
    exec("\n".join(lines), scope)
    return scope["row"]


# -- boundaries of a row -------------------------------------------------------------------------------------------


@inner
def ghost_row(e, b, c, side, buf, l, zg, yg, z0, y0, z1, y1, lo, hi, step, i0, i1, origin, base, n2):
    """A row beyond a side of axis 0 or 1, from the first two rows inside."""
    keep_apart()
    if varies_along(e, c, side):
        for x in range(lo, hi):
            i2 = (x + origin) % n2  # halos of a periodic axis
            u0, u1 = buf[l, c, z0, y0, x], buf[l, c, z1, y1, x]
            g = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, u0, u1)
            buf[l, c, zg, yg, x] = ghost_value(e, b, c, side, g, u0, u1)
    else:
        g = edge_value(e, b, c, side, step, i0, i1, 0, 0, e.reals[0], e.reals[0])
        for x in range(lo, hi):
            buf[l, c, zg, yg, x] = ghost_value(e, b, c, side, g, buf[l, c, z0, y0, x], buf[l, c, z1, y1, x])


@inner
def hold_row(e, b, c, side, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, base, n2):
    """Set a row that lies on a held side of axis 0 or 1."""
    keep_apart()
    if varies_along(e, c, side):
        for x in range(lo, hi):
            i2 = (x + origin) % n2  # halos of a periodic axis
            buf[l, c, z, y, x + shift] = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, e.reals[0], e.reals[0])
    else:
        g = edge_value(e, b, c, side, step, i0, i1, 0, 0, e.reals[0], e.reals[0])
        for x in range(lo, hi):
            buf[l, c, z, y, x + shift] = g


@inner
def hold_sides(e, b, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, n0, n1, n2):
    """Put the held values into a row just computed; axis 2 first, so that the lower axis wins at a corner."""
    keep_apart()
    zero = e.reals[0]
    for c in range(buf.shape[1]):
        if lo + origin == 0 and side_kind(e, c, 4) == HOLD:
            buf[l, c, z, y, lo + shift] = edge_value(e, b, c, 4, step, i0, i1, 0, i0 * n1 + i1, zero, zero)
        if hi + origin == n2 and side_kind(e, c, 5) == HOLD:
            buf[l, c, z, y, hi - 1 + shift] = edge_value(e, b, c, 5, step, i0, i1, n2 - 1, i0 * n1 + i1, zero, zero)
        if i1 == 0 and side_kind(e, c, 2) == HOLD:
            hold_row(e, b, c, 2, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, i0 * n2, n2)
        if i1 == n1 - 1 and side_kind(e, c, 3) == HOLD:
            hold_row(e, b, c, 3, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, i0 * n2, n2)
        if i0 == 0 and side_kind(e, c, 0) == HOLD:
            hold_row(e, b, c, 0, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, i1 * n2, n2)
        if i0 == n0 - 1 and side_kind(e, c, 1) == HOLD:
            hold_row(e, b, c, 1, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, i1 * n2, n2)


@inner
def ghost_columns(e, b, buf, l, z, y, lo, hi, step, i0, i1, n1, n2, at_low, at_high):
    """The cells beyond both ends of a row that reaches the domain's edge."""
    inline_here()
    inside = min(np.int64(1), n2 - 1)
    for c in range(buf.shape[1]):
        if at_low and side_kind(e, c, 4) == GHOST:
            u0, u1 = buf[l, c, z, y, lo], buf[l, c, z, y, lo + inside]
            g = edge_value(e, b, c, 4, step, i0, i1, 0, i0 * n1 + i1, u0, u1)
            buf[l, c, z, y, lo - 1] = ghost_value(e, b, c, 4, g, u0, u1)
        if at_high and side_kind(e, c, 5) == GHOST:
            u0, u1 = buf[l, c, z, y, hi - 1], buf[l, c, z, y, hi - 1 - inside]
            g = edge_value(e, b, c, 5, step, i0, i1, n2 - 1, i0 * n1 + i1, u0, u1)
            buf[l, c, z, y, hi] = ghost_value(e, b, c, 5, g, u0, u1)


# -- copies --------------------------------------------------------------------------------------------------------


@inner
def copy_row(src, ls, z, y, k, dst, ld, zd, yd, x, count):
    """Copy `count` cells of every component of one row."""
    for c in range(src.shape[1]):
        for j in range(np.uint64(count)):
            dst[ld, c, zd, yd, np.uint64(x) + j] = src[ls, c, z, y, np.uint64(k) + j]


@inner
def load_row(src, ls, z, y, first, last, dst, ld, zd, yd, x):
    """Copy columns first:last of a row; columns beyond the ends are those of the periodic image."""
    keep_apart()
    n2 = src.shape[4]
    k = first
    while k < last:
        start = k % n2
        count = min(n2 - start, last - k)
        copy_row(src, ls, z, y, start, dst, ld, zd, yd, x + k - first, count)
        k += count


# -- schedule: resident --------------------------------------------------------------------------------------------


@inner
def tile_resident(p, e, b, src, dst, scratch, k0, k1, levels, step):
    """March columns k0:k1 (all of axes 0 and 1) `levels` steps, from `src` to `dst`, in two buffers in cache."""
    keep_apart()
    wide_vectors()
    C, n0, n1, n2 = src.shape[1], src.shape[2], src.shape[3], src.shape[4]
    kind0, kind1, kind2 = axis_kind(e, 0), axis_kind(e, 1), axis_kind(e, 2)
    g0, g1 = np.int64(kind0 == BOUNDED), np.int64(kind1 == BOUNDED)
    whole = k1 - k0 == n2
    wrap = whole and kind2 == PERIODIC
    halo = np.int64(0) if whole else levels
    first, last = k0 - halo, k1 + halo
    if kind2 == BOUNDED:
        first, last = max(first, np.int64(0)), min(last, n2)
    at_low, at_high = kind2 == BOUNDED and first == 0, kind2 == BOUNDED and last == n2
    width = last - first
    pitch = (width + 1 + LANES) // LANES * LANES + LANES
    size = 2 * C * (n0 + 2 * g0) * (n1 + 2 * g1) * pitch
    bufs = borrow(scratch[:size].reshape((2, C, n0 + 2 * g0, n1 + 2 * g1, pitch)))
    origin = first - LANES  # column of the grid = column of the buffer + origin
    left, right = np.int64(LANES), LANES + width
    held = holds_any(e, C)
    for z in range(n0):
        for y in range(n1):
            load_row(src, b, z, y, first, last, bufs, 0, z + g0, y + g1, left)
            if held:
                hold_sides(e, b, bufs, 0, z + g0, y + g1, left, right, 0, step, z, y, origin, n0, n1, n2)
    q = sample_of(p, b)
    hi = (right + LANES - 1) // LANES * LANES  # whole vectors; a ghost beyond is written after its row
    for level in range(levels):
        a, d = level & 1, 1 - (level & 1)
        ghosts_resident(e, b, bufs, a, left, right, step + level, n0, n1, n2, g0, g1, origin, wrap, at_low, at_high)
        for z in range(n0):
            zm, zp = neighbours(z, n0, kind0, g0)
            for y in range(n1):
                ym, yp = neighbours(y, n1, kind1, g1)
                update_row(q, bufs, np.uint64(d), np.uint64(z + g0), np.uint64(y + g1), np.uint64(0), bufs,
                           np.uint64(a), np.uint64(zm), np.uint64(z + g0), np.uint64(zp), np.uint64(ym),
                           np.uint64(y + g1), np.uint64(yp), np.uint64(left), np.uint64(hi), step + level, z, y,
                           np.uint64(origin))
                if held:
                    hold_sides(e, b, bufs, d, z + g0, y + g1, left, right, 0, step + level + 1, z, y, origin, n0, n1,
                               n2)
    for z in range(n0):
        for y in range(n1):
            copy_row(bufs, levels & 1, z + g0, y + g1, k0 - origin, dst, b, z, y, k0, k1 - k0)


@inner
def holds_any(e, components):
    """Whether any side of any component is held."""
    keep_apart()
    for c in range(components):
        for side in range(6):
            if side_kind(e, c, side) == HOLD:
                return True
    return False


@inner
def neighbours(i, n, kind, ghosts):
    """Buffer indices of the neighbours of plane `i`: ghosts, periodic images, or itself on an absent axis."""
    if kind == BOUNDED:
        return i + ghosts - 1, i + ghosts + 1
    if kind == PERIODIC:
        return (n - 1 if i == 0 else i - 1), (0 if i == n - 1 else i + 1)
    return i, i


@inner
def ghosts_resident(e, b, buf, l, lo, hi, step, n0, n1, n2, g0, g1, origin, wrap, at_low, at_high):
    """All ghost cells of a resident block at one time level."""
    keep_apart()
    C = buf.shape[1]
    for z in range(n0):
        for y in range(n1):
            if wrap:
                for c in range(C):
                    buf[l, c, z + g0, y + g1, lo - 1] = buf[l, c, z + g0, y + g1, hi - 1]
                    buf[l, c, z + g0, y + g1, hi] = buf[l, c, z + g0, y + g1, lo]
            elif at_low or at_high:
                ghost_columns(e, b, buf, l, z + g0, y + g1, lo, hi, step, z, y, n1, n2, at_low, at_high)
    for c in range(C):
        if g1:
            inside = min(np.int64(1), n1 - 1)
            for z in range(n0):
                k = z + g0
                if side_kind(e, c, 2) == GHOST:
                    ghost_row(e, b, c, 2, buf, l, k, 0, k, 1, k, 1 + inside, lo, hi, step, z, 0, origin, z * n2, n2)
                if side_kind(e, c, 3) == GHOST:
                    ghost_row(e, b, c, 3, buf, l, k, n1 + 1, k, n1, k, n1 - inside, lo, hi, step, z, n1 - 1, origin,
                              z * n2, n2)
        if g0:
            inside = min(np.int64(1), n0 - 1)
            for y in range(n1):
                j = y + g1
                if side_kind(e, c, 0) == GHOST:
                    ghost_row(e, b, c, 0, buf, l, 0, j, 1, j, 1 + inside, j, lo, hi, step, 0, y, origin, y * n2, n2)
                if side_kind(e, c, 1) == GHOST:
                    ghost_row(e, b, c, 1, buf, l, n0 + 1, j, n0, j, n0 - inside, j, lo, hi, step, n0 - 1, y, origin,
                              y * n2, n2)


# -- schedule: stream ----------------------------------------------------------------------------------------------


@inner
def tile_stream(p, e, b, src, dst, scratch, i0, i1, j0, j1, k0, k1, levels, step):
    """March one tile `levels` steps, from `src` to `dst`, all levels together as a wavefront along axis 0."""
    keep_apart()
    wide_vectors()
    C, n0, n1, n2 = src.shape[1], src.shape[2], src.shape[3], src.shape[4]
    bound0, bound1, bound2 = axis_kind(e, 0) == BOUNDED, axis_kind(e, 1) == BOUNDED, axis_kind(e, 2) == BOUNDED
    flat = axis_kind(e, 1) != BOUNDED and axis_kind(e, 1) != PERIODIC
    h1 = np.int64(0) if flat else levels + 1  # halo and ghost along axis 1
    rows, pitch = j1 - j0 + 2 * h1, (k1 - k0 + 2 * levels + LANES) // LANES * LANES + 2 * LANES
    ring = borrow(scratch[: levels * C * 4 * rows * pitch].reshape((levels, C, 4, rows, pitch)))
    oy, ox = h1 - j0, LANES + levels - k0  # buffer index = grid index + offset
    held = holds_any(e, C)
    q = sample_of(p, b)
    for r in range(max(i0 - levels, 0) if bound0 else i0 - levels, i1 + levels):
        for level in range(levels + 1):
            i = r - level
            reach = levels - level
            if i < i0 - reach or (bound0 and i < 0):
                break
            if i >= i1 + reach or (bound0 and i >= n0):
                continue
            ja, jb, ka, kb = j0, j1, k0 - reach, k1 + reach
            if not flat:
                ja, jb = j0 - reach, j1 + reach
            if bound1:
                ja, jb = max(ja, np.int64(0)), min(jb, n1)
            if bound2:
                ka, kb = max(ka, np.int64(0)), min(kb, n2)
            zd = i & 3
            if level == 0:
                for j in range(ja, jb):
                    load_row(src, b, i % n0, j % n1, ka, kb, ring, 0, zd, j + oy, ka + ox)
            else:
                zm, zp = (i - 1) & 3, (i + 1) & 3
                if bound0 and (i == 0 or i == n0 - 1):
                    ghost_planes(e, b, ring, level - 1, i, ja, jb, oy, ka + ox, kb + ox, step + level - 1, n0, n1, n2,
                                 -ox)
                for j in range(ja, jb):
                    y = np.uint64(j + oy)
                    ym, yp = (y, y) if flat else (np.uint64(j + oy - 1), np.uint64(j + oy + 1))
                    if level == levels:
                        update_row(q, dst, np.uint64(b), np.uint64(i), np.uint64(j), np.uint64(-ox), ring,
                                   np.uint64(level - 1), np.uint64(zm), np.uint64(zd), np.uint64(zp), ym, y, yp,
                                   np.uint64(ka + ox), np.uint64(kb + ox), step + level - 1, i, j, np.uint64(-ox))
                    else:
                        lo, hi = (ka + ox) // LANES * LANES, (kb + ox + LANES - 1) // LANES * LANES
                        update_row(q, ring, np.uint64(level), np.uint64(zd), y, np.uint64(0), ring,
                                   np.uint64(level - 1), np.uint64(zm), np.uint64(zd), np.uint64(zp), ym, y, yp,
                                   np.uint64(lo), np.uint64(hi), step + level - 1, i % n0, j % n1, np.uint64(-ox))
            if held:
                for j in range(ja, jb):
                    if level == levels:
                        hold_sides(e, b, dst, b, i, j, ka + ox, kb + ox, -ox, step + level, i, j, -ox, n0, n1, n2)
                    else:
                        hold_sides(e, b, ring, level, zd, j + oy, ka + ox, kb + ox, 0, step + level, i % n0, j % n1, -ox,
                                   n0, n1, n2)
            if level < levels:
                if bound2 and (ka == 0 or kb == n2):
                    for j in range(ja, jb):
                        ghost_columns(e, b, ring, level, zd, j + oy, ka + ox, kb + ox, step + level, i % n0, j % n1, n1,
                                      n2, ka == 0, kb == n2)
                if bound1 and (ja == 0 or jb == n1):
                    ghost_rows(e, b, ring, level, zd, ja, jb, oy, ka + ox, kb + ox, step + level, i % n0, n1, n2, -ox)


@inner
def ghost_planes(e, b, ring, l, i, ja, jb, oy, lo, hi, step, n0, n1, n2, origin):
    """The planes beyond axis 0, in the ring slots next to the edge plane `i`."""
    keep_apart()
    inside = min(np.int64(1), n0 - 1)
    for c in range(ring.shape[1]):
        for j in range(ja, jb):
            y, k = j + oy, j % n1
            if i == 0 and side_kind(e, c, 0) == GHOST:
                ghost_row(e, b, c, 0, ring, l, 3, y, 0, y, inside, y, lo, hi, step, i, k, origin, k * n2, n2)
            if i == n0 - 1 and side_kind(e, c, 1) == GHOST:
                ghost_row(e, b, c, 1, ring, l, n0 & 3, y, i & 3, y, (i - inside) & 3, y, lo, hi, step, i, k, origin,
                          k * n2, n2)


@inner
def ghost_rows(e, b, ring, l, z, ja, jb, oy, lo, hi, step, i, n1, n2, origin):
    """The rows beyond axis 1 of one plane of the ring."""
    keep_apart()
    inside = min(np.int64(1), n1 - 1)
    for c in range(ring.shape[1]):
        if ja == 0 and side_kind(e, c, 2) == GHOST:
            ghost_row(e, b, c, 2, ring, l, z, oy - 1, z, oy, z, oy + inside, lo, hi, step, i, 0, origin, i * n2, n2)
        if jb == n1 and side_kind(e, c, 3) == GHOST:
            y = n1 - 1 + oy
            ghost_row(e, b, c, 3, ring, l, z, y + 1, z, y, z, y - inside, lo, hi, step, i, n1 - 1, origin, i * n2, n2)


# -- tiles over threads --------------------------------------------------------------------------------------------


@inner
def wait_for(progress, index, sweep):
    """Wait until a tile has finished `sweep` sweeps."""
    turns = 0
    while atomic_load(progress, index) < sweep:
        turns += 1
        if turns > BUSY_TURNS:
            give_way()


@inner
def wait_for_neighbours(progress, e, b, t0, t1, t2, c0, c1, c2, sweep):
    """Wait until this tile and all tiles that touch it have finished `sweep` sweeps."""
    keep_apart()
    for d0 in range(-1, 2):
        for d1 in range(-1, 2):
            for d2 in range(-1, 2):
                s0, s1, s2 = t0 + d0, t1 + d1, t2 + d2
                if axis_kind(e, 0) == PERIODIC:
                    s0 %= c0
                if axis_kind(e, 1) == PERIODIC:
                    s1 %= c1
                if axis_kind(e, 2) == PERIODIC:
                    s2 %= c2
                if 0 <= s0 < c0 and 0 <= s1 < c1 and 0 <= s2 < c2:
                    wait_for(progress, 1 + ((b * c0 + s0) * c1 + s1) * c2 + s2, sweep)


@kernel()
def run_resident(params, edges, source, first, second, memory, counter, count, depth, steps, step):
    """Worker: take blocks, `count` along axis 2, until none is left.

    The sweep before the first reads `source`; then they go to `first`, to `second`, to `first`, ...
    """
    p, e, u, here, there = borrow(params), borrow(edges), borrow(source), borrow(first), borrow(second)
    scratch, progress = borrow(memory), borrow(counter)
    B, n2 = here.shape[0], here.shape[4]
    sweeps = (steps + depth - 1) // depth
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= sweeps * B * count:
            return
        sweep, tile = turn // (B * count), turn % (B * count)
        b, t = tile // count, tile % count
        if sweep > 0:
            wait_for_neighbours(progress, e, b, 0, 0, t, 1, 1, count, sweep)
        k0, k1 = t * n2 // count, (t + 1) * n2 // count
        levels = min(depth, steps - sweep * depth)
        if sweep == 0:
            tile_resident(p, e, b, u, here, scratch, k0, k1, levels, step)
        elif sweep & 1:
            tile_resident(p, e, b, here, there, scratch, k0, k1, levels, step + sweep * depth)
        else:
            tile_resident(p, e, b, there, here, scratch, k0, k1, levels, step + sweep * depth)
        atomic_store(progress, 1 + tile, sweep + 1)


@kernel()
def run_stream(params, edges, source, first, second, memory, counter, c0, c1, c2, depth, steps, step):
    """Worker: take tiles, c0 x c1 x c2 a sample, until none is left; arrays as in `run_resident`."""
    p, e, u, here, there = borrow(params), borrow(edges), borrow(source), borrow(first), borrow(second)
    scratch, progress = borrow(memory), borrow(counter)
    B, n0, n1, n2 = here.shape[0], here.shape[2], here.shape[3], here.shape[4]
    tiles = B * c0 * c1 * c2
    sweeps = (steps + depth - 1) // depth
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= sweeps * tiles:
            return
        sweep, tile = turn // tiles, turn % tiles
        b, t0, t1, t2 = tile // (c0 * c1 * c2), tile // (c1 * c2) % c0, tile // c2 % c1, tile % c2
        if sweep > 0:
            wait_for_neighbours(progress, e, b, t0, t1, t2, c0, c1, c2, sweep)
        i0, i1 = t0 * n0 // c0, (t0 + 1) * n0 // c0
        j0, j1 = t1 * n1 // c1, (t1 + 1) * n1 // c1
        k0, k1 = t2 * n2 // c2, (t2 + 1) * n2 // c2
        levels = min(depth, steps - sweep * depth)
        if sweep == 0:
            tile_stream(p, e, b, u, here, scratch, i0, i1, j0, j1, k0, k1, levels, step)
        elif sweep & 1:
            tile_stream(p, e, b, here, there, scratch, i0, i1, j0, j1, k0, k1, levels, step + sweep * depth)
        else:
            tile_stream(p, e, b, there, here, scratch, i0, i1, j0, j1, k0, k1, levels, step + sweep * depth)
        atomic_store(progress, 1 + tile, sweep + 1)
