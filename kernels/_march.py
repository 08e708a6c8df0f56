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
    ABSENT,
    BOUNDED,
    CALL,
    COEF,
    COEF_PER_SAMPLE,
    GHOST,
    HEAD,
    HOLD,
    ITEMS,
    NONE,
    PER_CELL,
    PER_STEP,
    PERIODIC,
    edge_value,
)
from fastdiff.kernels._jit import (
    FASTMATH,
    atomic_add,
    atomic_load,
    atomic_store,
    borrow,
    give_way,
    inline_here,
    inner,
    keep_apart,
    kernel,
    wide_vectors,
)

CALLED = 3  # at the end of a row: a ghost whose g is a compiled function
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
#
# Indices handed to compiled functions are variables, never literals: Numba compiles a function anew for each literal.


@inner
def ghost_row(e, b, c, side, buf, l, zg, yg, z0, y0, z1, y1, lo, hi, step, i0, i1, origin, base, n2):
    """A row beyond a side of axis 0 or 1, from the first two rows inside."""
    keep_apart()
    k = HEAD + (c * 6 + side) * ITEMS
    varies = e.ints[k + CALL] != 0 or e.ints[k + PER_CELL] != 0
    g = edge_value(e, b, c, side, step, i0, i1, base - base, base, e.reals[0], e.reals[0])
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    alpha, beta, gamma = e.reals[at], e.reals[at + 1], e.reals[at + 2]
    for x in range(lo, hi):
        u0, u1 = buf[l, c, z0, y0, x], buf[l, c, z1, y1, x]
        if varies:
            i2 = (x + origin) % n2  # halos of a periodic axis
            g = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, u0, u1)
        buf[l, c, zg, yg, x] = gamma * g + beta * u1 + alpha * u0


@inner
def hold_rows(e, b, buf, l, z, y, lo, hi, shift, step, i0, i1, origin, n0, n1, n2):
    """Set a row if it lies on a held side of axis 1 or 0; axis 0 last, so that it wins at a corner."""
    keep_apart()
    for c in range(buf.shape[1]):
        for order in range(4):
            side = (order + 2) & 3
            k = HEAD + (c * 6 + side) * ITEMS
            i, n, base = (i1, n1, i0 * n2) if side > 1 else (i0, n0, i1 * n2)
            if e.ints[k] == HOLD and i == (n - 1) * (side & 1):
                for x in range(lo, hi):
                    i2 = (x + origin) % n2
                    buf[l, c, z, y, x + shift] = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, e.reals[0],
                                                            e.reals[0])


@inner
def set_ends(e, b, ends, step, i0, i1, n1, n2):
    """What happens at both ends of a row at one time level: ends[c, end] = kind, alpha, beta, gamma*g or held g."""
    keep_apart()
    for c in range(ends.shape[0]):
        for end in range(2):
            side = 4 + end
            k = HEAD + (c * 6 + side) * ITEMS
            ends[c, end, 0] = e.ints[k]
            if e.ints[k] == NONE:
                continue
            at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
            g = e.reals[0]
            if e.ints[k + CALL] == 0 or e.ints[k] == HOLD:
                g = edge_value(e, b, c, side, step, i0, i1, end * (n2 - 1), i0 * n1 + i1, g, g)
            ends[c, end, 1], ends[c, end, 2], ends[c, end, 3] = e.reals[at], e.reals[at + 1], e.reals[at + 2] * g
            if e.ints[k] == HOLD:
                ends[c, end, 3] = g
            elif e.ints[k + CALL] != 0:
                ends[c, end, 0] = CALLED


@inner
def ends_vary(e, components):
    """Whether anything at the ends of rows differs from level to level or from row to row."""
    keep_apart()
    for c in range(components):
        for end in range(2):
            k = HEAD + (c * 6 + 4 + end) * ITEMS
            if e.ints[k + CALL] != 0 or e.ints[k + PER_STEP] != 0 or e.ints[k + PER_CELL] != 0:
                return True
    return False


@inner
def holds_on(e, components, first, last):
    """Whether any of the sides first:last of any component is held."""
    keep_apart()
    for c in range(components):
        for side in range(first, last):
            if e.ints[HEAD + (c * 6 + side) * ITEMS] == HOLD:
                return True
    return False


@inner
def hold_ends(ends, buf, l, z, y, lo, hi, at_low, at_high):
    """Set the held cells at the ends of a row."""
    inline_here()
    for c in range(buf.shape[1]):
        if at_low and ends[c, 0, 0] == HOLD:
            buf[l, c, z, y, lo] = ends[c, 0, 3]
        if at_high and ends[c, 1, 0] == HOLD:
            buf[l, c, z, y, hi - 1] = ends[c, 1, 3]


@inner
def ghost_ends(e, b, ends, buf, l, z, y, lo, hi, at_low, at_high, step, i0, i1, n1, n2):
    """Set the cells beyond the ends of a row that reaches the domain's edge."""
    inline_here()
    inside = min(np.int64(1), n2 - 1)
    for c in range(buf.shape[1]):
        for end in range(2):
            if (at_high if end else at_low) and ends[c, end, 0] >= GHOST and ends[c, end, 0] != HOLD:
                x, away = (hi - 1, 1) if end else (lo, -1)
                u0, u1 = buf[l, c, z, y, x], buf[l, c, z, y, x - away * inside]
                g = ends[c, end, 3]
                if ends[c, end, 0] == CALLED:
                    g = called_ghost(e, b, c, 4 + end, step, i0, i1, end * (n2 - 1), i0 * n1 + i1, u0, u1)
                buf[l, c, z, y, x + away] = g + ends[c, end, 2] * u1 + ends[c, end, 1] * u0


@inner
def called_ghost(e, b, c, side, step, i0, i1, i2, face, u0, u1):
    """gamma*g where g is a compiled function of the field."""
    keep_apart()
    k = HEAD + (c * 6 + side) * ITEMS
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    return e.reals[at + 2] * edge_value(e, b, c, side, step, i0, i1, i2, face, u0, u1)


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
def tile_resident(params, edges, b, src, dst, memory, k0, k1, levels, step):
    """March columns k0:k1 (all of axes 0 and 1) `levels` steps, from `src` to `dst`, in two buffers in cache."""
    keep_apart()
    wide_vectors()
    p, e, scratch = borrow(params), borrow(edges), borrow(memory)
    C, n0, n1, n2 = src.shape[1], src.shape[2], src.shape[3], src.shape[4]
    kind0, kind1, kind2 = e.ints[0], e.ints[1], e.ints[2]
    g0, g1 = np.int64(kind0 == BOUNDED), np.int64(kind1 == BOUNDED)
    whole = k1 - k0 == n2
    wrap = whole and kind2 == PERIODIC
    halo = np.int64(0) if whole else levels
    first, last = k0 - halo, k1 + halo
    if kind2 == BOUNDED:
        first, last = max(first, np.int64(0)), min(last, n2)
    at_low, at_high = kind2 == BOUNDED and first == 0, kind2 == BOUNDED and last == n2
    pitch = (last - first + 1 + LANES) // LANES * LANES + LANES
    size = 2 * C * (n0 + 2 * g0) * (n1 + 2 * g1) * pitch
    bufs = borrow(scratch[8 * C : 8 * C + size].reshape((2, C, n0 + 2 * g0, n1 + 2 * g1, pitch)))
    ends = borrow(scratch[: 8 * C].reshape((C, 2, 4)))
    left, right = np.int64(LANES), LANES + last - first
    hi = (right + LANES - 1) // LANES * LANES  # whole vectors; a ghost beyond is written after its row
    origin = first - LANES  # column of the grid = column of the buffer + origin
    held, vary = holds_on(e, C, np.int64(0), np.int64(4)), ends_vary(e, C)
    none = first - first
    set_ends(e, b, ends, step, none, none, n1, n2)
    q = sample_of(p, b)
    for level in range(levels + 1):
        a, d = 1 - (level & 1), level & 1
        now = step + level
        for z in range(n0):
            zm, zp = neighbours(z, n0, kind0, g0)
            for y in range(n1):
                ym, yp = neighbours(y, n1, kind1, g1)
                if level == 0:
                    load_row(src, b, z, y, first, last, bufs, d, z + g0, y + g1, left)
                else:
                    update_row(q, bufs, np.uint64(d), np.uint64(z + g0), np.uint64(y + g1), np.uint64(0), bufs,
                               np.uint64(a), np.uint64(zm), np.uint64(z + g0), np.uint64(zp), np.uint64(ym),
                               np.uint64(y + g1), np.uint64(yp), np.uint64(left), np.uint64(hi), now - 1, z, y,
                               np.uint64(origin))
                if vary:
                    set_ends(e, b, ends, now, z, y, n1, n2)
                hold_ends(ends, bufs, d, z + g0, y + g1, left, right, at_low, at_high)
                if held:
                    hold_rows(e, b, bufs, d, z + g0, y + g1, left, right, none, now, z, y, origin, n0, n1, n2)
                if wrap:
                    for c in range(C):
                        bufs[d, c, z + g0, y + g1, left - 1] = bufs[d, c, z + g0, y + g1, right - 1]
                        bufs[d, c, z + g0, y + g1, right] = bufs[d, c, z + g0, y + g1, left]
                else:
                    ghost_ends(e, b, ends, bufs, d, z + g0, y + g1, left, right, at_low, at_high, now, z, y, n1, n2)
        if g0 or g1:
            ghosts_resident(e, b, bufs, d, left, right, now, n0, n1, n2, g0, g1, origin)
    for z in range(n0):
        for y in range(n1):
            copy_row(bufs, levels & 1, z + g0, y + g1, k0 - origin, dst, b, z, y, k0, k1 - k0)


@inner
def neighbours(i, n, kind, ghosts):
    """Buffer indices of the neighbours of plane `i`: ghosts, periodic images, or itself on an absent axis."""
    inline_here()
    if kind == BOUNDED:
        return i + ghosts - 1, i + ghosts + 1
    if kind == PERIODIC:
        return (n - 1 if i == 0 else i - 1), (0 if i == n - 1 else i + 1)
    return i, i


@inner
def ghosts_resident(e, b, buf, l, lo, hi, step, n0, n1, n2, g0, g1, origin):
    """The ghost rows of axes 1 and 0 of a resident block at one time level."""
    keep_apart()
    for order in range(4):
        side = (order + 2) & 3
        along1 = side > 1
        if (g1 if along1 else g0) == 0:
            continue
        n = n1 if along1 else n0
        edge = 1 + (side & 1) * (n - 1)  # buffer index of the first cell inside, and the steps outward and inward
        out, deep = (1 if side & 1 else -1), min(np.int64(1), n - 1)
        for c in range(buf.shape[1]):
            if e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                for k in range(n0 if along1 else n1):
                    if along1:
                        z = k + g0
                        ghost_row(e, b, c, side, buf, l, z, edge + out, z, edge, z, edge - out * deep, lo, hi, step, k,
                                  edge - 1, origin, k * n2, n2)
                    else:
                        y = k + g1
                        ghost_row(e, b, c, side, buf, l, edge + out, y, edge, y, edge - out * deep, y, lo, hi, step,
                                  edge - 1, k, origin, k * n2, n2)


# -- schedule: stream ----------------------------------------------------------------------------------------------


@inner
def tile_stream(params, edges, b, src, dst, memory, i0, i1, j0, j1, k0, k1, levels, step):
    """March one tile `levels` steps, from `src` to `dst`, all levels together as a wavefront along axis 0."""
    keep_apart()
    wide_vectors()
    p, e, scratch = borrow(params), borrow(edges), borrow(memory)
    C, n0, n1, n2 = src.shape[1], src.shape[2], src.shape[3], src.shape[4]
    bound0, bound1, bound2 = e.ints[0] == BOUNDED, e.ints[1] == BOUNDED, e.ints[2] == BOUNDED
    flat = e.ints[1] == ABSENT
    h1 = np.int64(0) if flat else levels + 1  # halo and ghost along axis 1
    rows, pitch = j1 - j0 + 2 * h1, (k1 - k0 + 2 * levels + LANES) // LANES * LANES + 2 * LANES
    size = levels * C * 4 * rows * pitch
    ring = borrow(scratch[8 * C : 8 * C + size].reshape((levels, C, 4, rows, pitch)))
    ends = borrow(scratch[: 8 * C].reshape((C, 2, 4)))
    oy, ox = h1 - j0, LANES + levels - k0  # buffer index = grid index + offset
    held = holds_on(e, C, np.int64(0), np.int64(4))
    vary = (k0 - levels <= 0 or k1 + levels >= n2) and ends_vary(e, C)
    none = i0 - i0
    set_ends(e, b, ends, step, none, none, n1, n2)
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
            at_low, at_high = bound2 and ka == 0, bound2 and kb == n2
            zd, zm, zp = i & 3, (i - 1) & 3, (i + 1) & 3
            now, iw = step + level, i % n0
            if level > 0 and bound0 and (i == 0 or i == n0 - 1):
                ghost_planes(e, b, ring, level - 1, i, ja, jb, oy, ka + ox, kb + ox, now - 1, n0, n1, n2, -ox)
            for j in range(ja, jb):
                y, jw = j + oy, j % n1
                ym, yp = (y, y) if flat else (y - 1, y + 1)
                if level == levels:
                    update_row(q, dst, np.uint64(b), np.uint64(i), np.uint64(j), np.uint64(-ox), ring,
                               np.uint64(level - 1), np.uint64(zm), np.uint64(zd), np.uint64(zp), np.uint64(ym),
                               np.uint64(y), np.uint64(yp), np.uint64(ka + ox), np.uint64(kb + ox), now - 1, iw, jw,
                               np.uint64(-ox))
                elif level > 0:
                    lo, hi = (ka + ox) // LANES * LANES, (kb + ox + LANES - 1) // LANES * LANES
                    update_row(q, ring, np.uint64(level), np.uint64(zd), np.uint64(y), np.uint64(0), ring,
                               np.uint64(level - 1), np.uint64(zm), np.uint64(zd), np.uint64(zp), np.uint64(ym),
                               np.uint64(y), np.uint64(yp), np.uint64(lo), np.uint64(hi), now - 1, iw, jw,
                               np.uint64(-ox))
                else:
                    load_row(src, b, iw, jw, ka, kb, ring, level, zd, y, ka + ox)
                if vary:
                    set_ends(e, b, ends, now, iw, jw, n1, n2)
                if level == levels:
                    hold_ends(ends, dst, b, i, j, ka, kb, at_low, at_high)
                    if held:
                        hold_rows(e, b, dst, b, i, j, ka + ox, kb + ox, -ox, now, iw, jw, -ox, n0, n1, n2)
                else:
                    hold_ends(ends, ring, level, zd, y, ka + ox, kb + ox, at_low, at_high)
                    if held:
                        hold_rows(e, b, ring, level, zd, y, ka + ox, kb + ox, none, now, iw, jw, -ox, n0, n1, n2)
                    ghost_ends(e, b, ends, ring, level, zd, y, ka + ox, kb + ox, at_low, at_high, now, iw, jw, n1, n2)
            if level < levels and bound1 and (ja == 0 or jb == n1):
                ghost_rows(e, b, ring, level, zd, ja, jb, oy, ka + ox, kb + ox, now, iw, n1, n2, -ox)


@inner
def ghost_planes(e, b, ring, l, i, ja, jb, oy, lo, hi, step, n0, n1, n2, origin):
    """The planes beyond axis 0, in the ring slots next to the edge plane `i`."""
    keep_apart()
    deep = min(np.int64(1), n0 - 1)
    for c in range(ring.shape[1]):
        for side in range(2):
            out = 1 if side else -1
            if i == side * (n0 - 1) and e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                for j in range(ja, jb):
                    y, k = j + oy, j % n1
                    ghost_row(e, b, c, side, ring, l, (i + out) & 3, y, i & 3, y, (i - out * deep) & 3, y, lo, hi, step,
                              i, k, origin, k * n2, n2)


@inner
def ghost_rows(e, b, ring, l, z, ja, jb, oy, lo, hi, step, i, n1, n2, origin):
    """The rows beyond axis 1 of one plane of the ring."""
    keep_apart()
    deep = min(np.int64(1), n1 - 1)
    for c in range(ring.shape[1]):
        for side in range(2, 4):
            out, j = (1, n1 - 1) if side & 1 else (-1, 0)
            if ja <= j < jb and e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                y = j + oy
                ghost_row(e, b, c, side, ring, l, z, y + out, z, y, z, y - out * deep, lo, hi, step, i, j, origin, i * n2,
                          n2)


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
                if e.ints[0] == PERIODIC:
                    s0 %= c0
                if e.ints[1] == PERIODIC:
                    s1 %= c1
                if e.ints[2] == PERIODIC:
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
