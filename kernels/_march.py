"""The CPU schedule: march any rule many time steps, blocked in time and space, over threads.

A *rule* is a `NamedTuple` class: its fields are the parameters, its static method `change` the physics of one cell.

    class Heat2D(NamedTuple):
        a0: Any                       # D dt / dx^2: an array with one value a sample
        ...
        @staticmethod
        def change(p, u, at): ...     # dt u_t: what one Euler step adds; a tuple if the rule has several `components`

A rule may have a method `cell` instead, the new value itself; by default that is the old value plus `change`. Methods
are compiled into the schedule by the rule's *type*, and are the CUDA kernel's too. A field may be another rule, and
may hold a number of every cell (`_fields.py`).

Space is always three axes (n0, n1, n2), n2 contiguous: 1-D is (1, 1, n), 2-D is (n0, 1, n2). An axis is bounded,
periodic or absent. State arrays are (batch, components, n0, n1, n2), flattened.

Two schedules:

* `stream`: large 2-D and 3-D grids. The grid is cut into tiles; in a tile all time levels march down axis 0 together,
  as a wavefront, each level keeping four planes in a ring that stays in cache; halos are recomputed.
* `resident`: 1-D and small grids. A block lives in cache in two copies and runs all its levels there.

Boundaries are data (`Edges`, see `_edges.py`) and are applied at every level, at that level's own time. Tiles are
taken in order from one atomic counter; a tile starts when its neighbours have finished the sweep before. There is no
barrier, so a thread that is held up holds up only its neighbours, and a run is one call without the interpreter lock.

Rows inside a tile are computed a little wider than needed, to whole vectors; what lies beyond is never read.
Arrays are flat and rows are offsets into them: slices would count references with locked instructions, and strides
would fill the registers.

Time blocking after Nguyen et al., "3.5-D blocking optimization for stencil computations", SC 2010.
"""

from inspect import signature
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
from fastdiff.kernels._fields import Field
from fastdiff.kernels._jit import (
    FASTMATH,
    atomic_add,
    atomic_load,
    atomic_store,
    borrow,
    flush_denormals,
    give_way,
    inline_here,
    inner,
    keep_apart,
    kernel,
    restore_denormals,
    restrict_dst,
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


def change(p, u, at):
    """What one Euler step adds to the value(s) of a cell: the `change` of the parameters' class."""
    return type(p).change(p, u, at)


@overload(change, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _change(p, u, at):
    return _method(p.instance_class, "change")


def cell(p, u, at):
    """New value(s) of one cell: the `cell` of the parameters' class, or what `change` makes of the old one."""
    rule = type(p)
    if hasattr(rule, "cell"):
        return rule.cell(p, u, at)
    new = change(p, u, at)
    return u.c + new if components_of(rule) == 1 else tuple(old.c + add for old, add in zip(u, new))


@overload(cell, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _cell(p, u, at):
    rule = p.instance_class
    if hasattr(rule, "cell"):
        return _method(rule, "cell")
    count, scope = components_of(rule), {"change": change}
    sums = ", ".join(f"u[{c}].c + new[{c}]" for c in range(count))
    exec("def euler(p, u, at):\n    new = change(p, u, at)\n    return " + ("u.c + new" if count == 1 else sums), scope)
    return scope["euler"]


def _method(rule, name):
    method = getattr(rule, name)
    if list(signature(method).parameters) != ["p", "u", "at"]:
        raise TypeError(f"the arguments of {rule.__name__}.{name} must be called p, u and at")
    return method


def components_of(rule) -> int:
    """How many components a rule class updates."""
    return getattr(rule, "components", 1)


def map_fields(rule, function):
    """The rule with a function applied to every field, those of rules inside included."""
    return type(rule)(*(map_fields(f, function) if hasattr(f, "_fields") else function(f) for f in rule))


def sample_of(p, b):
    """The parameters of sample `b`: 1-D fields give a number, larger ones a view, numbers stay, rules are entered."""
    if isinstance(p, Field):
        return p._replace(start=p.start + p.batch * np.uint64(b))
    return type(p)(*(sample_of(f, b) if hasattr(f, "_fields") else f[b] if isinstance(f, np.ndarray) else f for f in p))


@overload(sample_of)
def _sample_of(p, b):
    if p.instance_class is Field:
        return lambda p, b: Field(p.data, p.start + p.batch * np.uint64(b), p.batch, p.s0, p.s1)

    def pick(kind, place):
        if isinstance(kind, types.BaseNamedTuple):
            return f"sample_of({place}, b)"
        return f"{place}[b]" if isinstance(kind, types.Array) else place

    fields = ", ".join(pick(t, f"p[{k}]") for k, t in enumerate(p.types))
    scope = {"rule": p.instance_class, "sample_of": sample_of}
    exec(f"def pick(p, b):\n    return rule({fields})", scope)
    return scope["pick"]


def update_rows(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, rows, lo, hi, step, i0, i1, di0, di1, origin):
    """Apply the rule to columns `lo:hi` of some rows of `src`, the first at offset `s`; put them at `d` in `dst`.

    `m0` ... `p1` are the offsets of the rows next to the first; `dcs` and `scs` the strides from component to
    component, `drs` and `srs` from row to row. The first row has indices `i0` and `i1`, which grow by `di0` and `di1`
    from row to row; `origin` turns a column into an index of axis 2. In halos, indices go beyond the grid.
    """
    raise NotImplementedError("compiled only: its source is made for the rule's number of components")


_STAR = "Star(src[s + {0} + x], src[m0 + {0} + x], src[p0 + {0} + x], src[m1 + {0} + x], src[p1 + {0} + x], \
src[s + {0} + x - one], src[s + {0} + x + one])"


@overload(update_rows, jit_options={"fastmath": FASTMATH, "error_model": "numpy"})
def _update_rows(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, rows, lo, hi, step, i0, i1, di0, di1, origin):
    count = components_of(p.instance_class)
    stars = [_STAR.format(f"k{c}") for c in range(count)]
    near = stars[0] if count == 1 else f"({', '.join(stars)})"
    lines = [
        "def update(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, rows, lo, hi, step, i0, i1, di0, di1,"
        " origin):",
        "    keep_apart()",
        "    wide_vectors()",
        "    restrict_dst()",
        "    k0 = l0 = zero",
        *(f"    k{c}, l{c} = k{c - 1} + scs, l{c - 1} + dcs" for c in range(1, count)),
        "    for row in range(rows):",
        "        for x in range(lo, hi):",
        f"            new = cell(p, {near}, At(step, i0, i1, x + origin))",
        *(f"            dst[d + l{c} + x] = new{'' if count == 1 else f'[{c}]'}" for c in range(count)),
        "        d, s, m0, p0, m1, p1 = d + drs, s + srs, m0 + srs, p0 + srs, m1 + srs, p1 + srs",
        "        i0, i1 = i0 + di0, i1 + di1",
    ]
    scope = {"cell": cell, "Star": Star, "At": At, "zero": np.uint64(0), "one": np.uint64(1)}
    scope |= {"keep_apart": keep_apart, "wide_vectors": wide_vectors, "restrict_dst": restrict_dst}
    exec("\n".join(lines), scope)
    return scope["update"]


# -- boundaries of a row -------------------------------------------------------------------------------------------
#
# Indices handed to compiled functions are variables, never literals: Numba compiles a function anew for each literal.


@inner
def ghost_row(e, b, c, side, buf, out, first, second, lo, hi, step, i0, i1, origin, base, n2):
    """A row beyond a side of axis 0 or 1, from the first two rows inside (offsets `out`, `first`, `second`)."""
    keep_apart()
    k = HEAD + (c * 6 + side) * ITEMS
    varies = e.ints[k + CALL] != 0 or e.ints[k + PER_CELL] != 0
    g = edge_value(e, b, c, side, step, i0, i1, base - base, base, e.reals[0], e.reals[0])
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    alpha, beta, gamma = e.reals[at], e.reals[at + 1], e.reals[at + 2]
    for x in range(lo, hi):
        u0, u1 = buf[first + x], buf[second + x]
        if varies:
            i2 = (x + origin) % n2  # halos of a periodic axis
            g = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, u0, u1)
        buf[out + x] = gamma * g + beta * u1 + alpha * u0


@inner
def hold_rows(e, b, C, buf, row, stride, lo, hi, step, i0, i1, origin, n0, n1, n2):
    """Set a row if it lies on a held side of axis 1 or 0; axis 0 last, so that it wins at a corner."""
    keep_apart()
    for c in range(C):
        for order in range(4):
            side = (order + 2) & 3
            i, n, base = (i1, n1, i0 * n2) if side > 1 else (i0, n0, i1 * n2)
            k = HEAD + (c * 6 + side) * ITEMS
            if e.ints[k] == HOLD and i == (n - 1) * (side & 1):
                varies = e.ints[k + CALL] != 0 or e.ints[k + PER_CELL] != 0
                g = edge_value(e, b, c, side, step, i0, i1, i - i, base, e.reals[0], e.reals[0])
                for x in range(lo, hi):
                    if varies:
                        i2 = (x + origin) % n2
                        g = edge_value(e, b, c, side, step, i0, i1, i2, base + i2, e.reals[0], e.reals[0])
                    buf[row + c * stride + x] = g


@inner
def set_ends(e, b, C, ends, step, i0, i1, n1, n2):
    """What happens at both ends of a row at one time level: four numbers for each component and end.

    They are the kind, alpha, beta, and gamma*g or the held g.
    """
    keep_apart()
    for c in range(C):
        for end in range(2):
            side, o = 4 + end, 8 * c + 4 * end
            k = HEAD + (c * 6 + side) * ITEMS
            ends[o] = e.ints[k]
            if e.ints[k] == NONE:
                continue
            at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
            g = e.reals[0]
            if e.ints[k + CALL] == 0 or e.ints[k] == HOLD:
                g = edge_value(e, b, c, side, step, i0, i1, end * (n2 - 1), i0 * n1 + i1, g, g)
            ends[o + 1], ends[o + 2], ends[o + 3] = e.reals[at], e.reals[at + 1], e.reals[at + 2] * g
            if e.ints[k] == HOLD:
                ends[o + 3] = g
            elif e.ints[k + CALL] != 0:
                ends[o] = CALLED


@inner
def ends_vary(e, C):
    """Whether anything at the ends of rows differs from level to level or from row to row."""
    keep_apart()
    for c in range(C):
        for end in range(2):
            k = HEAD + (c * 6 + 4 + end) * ITEMS
            if e.ints[k + CALL] != 0 or e.ints[k + PER_STEP] != 0 or e.ints[k + PER_CELL] != 0:
                return True
    return False


@inner
def holds_rows(e, C):
    """Whether any side of axis 0 or 1 is held, for any component."""
    keep_apart()
    for c in range(C):
        for side in range(4):
            if e.ints[HEAD + (c * 6 + side) * ITEMS] == HOLD:
                return True
    return False


@inner
def hold_ends(ends, C, buf, row, stride, lo, hi, at_low, at_high):
    """Set the held cells at the ends of a row."""
    inline_here()
    for c in range(C):
        if at_low and ends[8 * c] == HOLD:
            buf[row + c * stride + lo] = ends[8 * c + 3]
        if at_high and ends[8 * c + 4] == HOLD:
            buf[row + c * stride + hi - 1] = ends[8 * c + 7]


@inner
def ghost_ends(e, b, ends, C, buf, row, stride, lo, hi, at_low, at_high, step, i0, i1, n1, n2):
    """Set the cells beyond the ends of a row that reaches the domain's edge."""
    inline_here()
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        for end in range(2):
            o = 8 * c + 4 * end
            if (at_high if end else at_low) and ends[o] != NONE and ends[o] != HOLD:
                x, away = (hi - 1, 1) if end else (lo, -1)
                x += row + c * stride
                u0, u1, g = buf[x], buf[x - away * inside], ends[o + 3]
                if ends[o] == CALLED:
                    g = called_ghost(e, b, c, 4 + end, step, i0, i1, end * (n2 - 1), i0 * n1 + i1, u0, u1)
                buf[x + away] = g + ends[o + 2] * u1 + ends[o + 1] * u0


@inner
def steady_ends(ends, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2):
    """Set held cells and ghosts at the ends of rows for which `set_ends` has said the same.

    Ghosts beside a held row may be set before the row is: only the held row itself would read them.
    """
    inline_here()
    if rows > 1:
        many_ends(ends, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2)
        return
    hold_ends(ends, C, buf, row, stride, lo, hi, at_low, at_high)
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        a, z, o = row + c * stride + lo, row + c * stride + hi - 1, 8 * c
        if wrap:
            buf[a - 1], buf[z + 1] = buf[z], buf[a]
        elif ghosts:
            if at_low and ends[o] == GHOST:
                buf[a - 1] = ends[o + 3] + ends[o + 2] * buf[a + inside] + ends[o + 1] * buf[a]
            if at_high and ends[o + 4] == GHOST:
                buf[z + 1] = ends[o + 7] + ends[o + 6] * buf[z - inside] + ends[o + 5] * buf[z]


@inner
def many_ends(ends, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2):
    """`steady_ends` for many rows, `along` apart."""
    keep_apart()
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        for turn in range(4):  # first the held cells of both ends, then the ghosts, which may read them
            end, o = turn & 1, 8 * c + 4 * (turn & 1)
            kind, alpha, beta, g = ends[o], ends[o + 1], ends[o + 2], ends[o + 3]
            x, away = (hi - 1, 1) if end else (lo, -1)
            x += row + c * stride
            deep, far = x - away * inside, x - away * (hi - lo - 1)
            here = at_high if end else at_low
            if wrap and turn > 1:
                for k in range(rows):
                    buf[x + k * along + away] = buf[far + k * along]
            elif here and kind == HOLD and turn < 2:
                for k in range(rows):
                    buf[x + k * along] = g
            elif here and kind == GHOST and turn > 1 and ghosts:
                for k in range(rows):
                    buf[x + k * along + away] = g + beta * buf[deep + k * along] + alpha * buf[x + k * along]


@inner
def called_ghost(e, b, c, side, step, i0, i1, i2, face, u0, u1):
    """gamma*g where g is a compiled function of the field."""
    keep_apart()
    k = HEAD + (c * 6 + side) * ITEMS
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    return e.reals[at + 2] * edge_value(e, b, c, side, step, i0, i1, i2, face, u0, u1)


@inner
def wrapped(i, n):
    """`i` modulo `n`; a division only in the halo of a periodic axis."""
    inline_here()
    return i if 0 <= i < n else i % n


@inner
def copy_row(C, src, s, scs, dst, d, dcs, count):
    """Copy `count` cells of every component of one row, from offset `s` to offset `d`."""
    inline_here()
    for c in range(np.uint64(C)):
        for x in range(np.uint64(count)):
            dst[np.uint64(d) + c * np.uint64(dcs) + x] = src[np.uint64(s) + c * np.uint64(scs) + x]


@inner
def load_row(C, src, s, scs, first, last, n2, dst, d, dcs):
    """Copy columns first:last of a row; columns beyond the ends are those of the periodic image."""
    keep_apart()
    wide_vectors()
    restrict_dst()
    k = first
    while k < last:
        start = wrapped(k, n2)
        count = min(n2 - start, last - k)
        copy_row(C, src, s + start, scs, dst, d + k - first, dcs, count)
        k += count


# -- schedule: resident --------------------------------------------------------------------------------------------


@inner
def tile_resident(params, edges, b, shape, source, target, memory, k0, k1, levels, step):
    """March columns k0:k1 (all of axes 0 and 1) `levels` steps, in two buffers in cache."""
    keep_apart()
    wide_vectors()
    p, e, src, dst, buf = borrow(params), borrow(edges), borrow(source), borrow(target), borrow(memory)
    C, n0, n1, n2 = shape
    kind0, kind1, kind2 = e.ints[0], e.ints[1], e.ints[2]
    g0, g1 = np.int64(kind0 != ABSENT), np.int64(kind1 != ABSENT)
    whole = k1 - k0 == n2
    wrap = whole and kind2 == PERIODIC
    first, last = (k0, k1) if whole else (k0 - levels, k1 + levels)
    if kind2 == BOUNDED:
        first, last = max(first, np.int64(0)), min(last, n2)
    at_low, at_high = kind2 == BOUNDED and first == 0, kind2 == BOUNDED and last == n2
    pitch = (last - first + 1 + LANES) // LANES * LANES + LANES
    plane = (n1 + 2 * g1) * pitch
    stride = (n0 + 2 * g0) * plane  # from component to component
    ends, start = buf, (8 * C + LANES - 1) // LANES * LANES  # the ends' numbers stand first
    left, right = np.int64(LANES), LANES + last - first
    hi = (right + LANES - 1) // LANES * LANES  # whole vectors; a ghost beyond is written after its row
    origin = first - LANES  # column of the grid = column of the buffer + origin
    calls, rows, along = (n0, n1, pitch) if kind1 != ABSENT else (np.int64(1), n0, plane)
    held, vary = holds_rows(e, C), ends_vary(e, C)
    set_ends(e, b, C, ends, step, k0 - k0, k0 - k0, n1, n2)
    q = sample_of(p, b)
    for level in range(levels + 1):
        now = step + level
        new, old = start + (level & 1) * C * stride, start + (1 - (level & 1)) * C * stride
        if level > 0:
            for z in range(calls):
                at = (z + g0) * plane + g1 * pitch
                o = old + at
                update_rows(q, buf, np.uint64(new + at), np.uint64(stride), np.uint64(along), buf, np.uint64(o),
                            np.uint64(o - g0 * plane), np.uint64(o + g0 * plane), np.uint64(o - g1 * pitch),
                            np.uint64(o + g1 * pitch), np.uint64(stride), np.uint64(along), rows, np.uint64(left),
                            np.uint64(hi), now - 1, z, z - z, 1 - g1, g1, np.uint64(origin))
        if level == 0:
            for z in range(n0):
                for y in range(n1):
                    load_row(C, src, ((b * C * n0 + z) * n1 + y) * n2, n0 * n1 * n2, first, last, n2, buf,
                             new + (z + g0) * plane + (y + g1) * pitch + left, stride)
        if not vary:
            for z in range(calls):
                steady_ends(ends, C, buf, new + (z + g0) * plane + g1 * pitch, stride, along, rows, left, right, at_low,
                            at_high, wrap, True, n2)
        for z in range(n0 if vary or held else 0):
            for y in range(n1):
                at = new + (z + g0) * plane + (y + g1) * pitch
                if vary:
                    set_ends(e, b, C, ends, now, z, y, n1, n2)
                    hold_ends(ends, C, buf, at, stride, left, right, at_low, at_high)
                if held and (z == 0 or z == n0 - 1 or (kind1 == BOUNDED and (y == 0 or y == n1 - 1))):
                    hold_rows(e, b, C, buf, at, stride, left, right, now, z, y, origin, n0, n1, n2)
                if vary:
                    ghost_ends(e, b, ends, C, buf, at, stride, left, right, at_low, at_high, now, z, y, n1, n2)
        if g0 or g1:
            ghosts_resident(e, b, C, buf, new, stride, plane, pitch, left, right, now, n0, n1, n2, g0, g1, origin)
    final = start + (levels & 1) * C * stride
    for z in range(n0):
        for y in range(n1):
            copy_row(C, buf, final + (z + g0) * plane + (y + g1) * pitch + k0 - origin, stride, dst,
                     ((b * C * n0 + z) * n1 + y) * n2 + k0, n0 * n1 * n2, k1 - k0)


@inner
def ghosts_resident(e, b, C, buf, new, stride, plane, pitch, lo, hi, step, n0, n1, n2, g0, g1, origin):
    """The ghost rows of axes 1 and 0 of a resident block at one time level."""
    keep_apart()
    for order in range(4):
        side = (order + 2) & 3
        along1 = side > 1
        if (g1 if along1 else g0) == 0:
            continue
        n, across, along = (n1, pitch, plane) if along1 else (n0, plane, pitch)
        wrap = e.ints[1 if along1 else 0] == PERIODIC
        edge, out, deep = 1 + (side & 1) * (n - 1), 2 * (side & 1) - 1, min(np.int64(1), n - 1)
        for c in range(C):
            for k in range(n0 if along1 else n1):
                o = new + c * stride + (k + (g0 if along1 else g1)) * along + edge * across
                if wrap:
                    for x in range(lo, hi):
                        buf[o + out * across + x] = buf[o - out * (n - 1) * across + x]
                elif e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                    i0, i1 = (k, edge - 1) if along1 else (edge - 1, k)
                    ghost_row(e, b, c, side, buf, o + out * across, o, o - out * deep * across, lo, hi, step, i0, i1,
                              origin, k * n2, n2)


# -- schedule: stream ----------------------------------------------------------------------------------------------


@inner
def tile_stream(params, edges, b, shape, source, target, memory, i0, i1, j0, j1, k0, k1, levels, step):
    """March one tile `levels` steps, all levels together as a wavefront along axis 0."""
    keep_apart()
    wide_vectors()
    p, e, src, dst, buf = borrow(params), borrow(edges), borrow(source), borrow(target), borrow(memory)
    C, n0, n1, n2 = shape
    bound0, bound1, bound2 = e.ints[0] == BOUNDED, e.ints[1] == BOUNDED, e.ints[2] == BOUNDED
    flat = e.ints[1] == ABSENT
    h1 = np.int64(0) if flat else levels + 1  # halo and ghost along axis 1
    whole = k1 - k0 == n2
    wrap = whole and e.ints[2] == PERIODIC
    h2 = np.int64(0) if whole else levels
    pitch = (k1 - k0 + 2 * h2 + LANES) // LANES * LANES + 2 * LANES
    plane = (j1 - j0 + 2 * h1) * pitch
    floor = C * 4 * plane  # from level to level; each component has a ring of four planes
    ends, start = buf, (8 * C + LANES - 1) // LANES * LANES
    oy, ox = h1 - j0, LANES + h2 - k0  # buffer index = grid index + offset
    grid = n0 * n1 * n2
    held = holds_rows(e, C)
    vary = bound2 and (k0 - levels <= 0 or k1 + levels >= n2) and ends_vary(e, C)
    set_ends(e, b, C, ends, step, i0 - i0, i0 - i0, n1, n2)
    q = sample_of(p, b)
    for r in range(max(i0 - levels, 0) if bound0 else i0 - levels, i1 + levels):
        for level in range(levels + 1):
            i = r - level
            reach = levels - level
            if i < i0 - reach or (bound0 and i < 0):
                break
            if i >= i1 + reach or (bound0 and i >= n0):
                continue
            ja, jb, ka, kb = j0, j1, k0, k1
            if not whole:
                ka, kb = k0 - reach, k1 + reach
            if not flat:
                ja, jb = j0 - reach, j1 + reach
            if bound1:
                ja, jb = max(ja, np.int64(0)), min(jb, n1)
            if bound2:
                ka, kb = max(ka, np.int64(0)), min(kb, n2)
            at_low, at_high = bound2 and ka == 0, bound2 and kb == n2
            now, iw = step + level, wrapped(i, n0)
            new, old = start + level * floor, start + (level - 1) * floor
            if level > 0 and bound0 and (i == 0 or i == n0 - 1):
                ghost_planes(e, b, C, buf, old, plane, pitch, i, ja, jb, oy, ka + ox, kb + ox, now - 1, n0, n1, n2, -ox)
            lo, hi = ka + ox, kb + ox
            wide_lo, wide_hi = lo, hi  # whole vectors inside the ring, the exact range into the grid
            if level < levels:
                wide_lo, wide_hi = lo // LANES * LANES, (hi + LANES - 1) // LANES * LANES
            line = (ja + oy) * pitch
            row, out, stride, along = new + (i & 3) * plane + line, buf, 4 * plane, pitch
            if level > 0:
                if level == levels:
                    row, out, stride, along = b * C * grid + (i * n1 + ja) * n2 - ox, dst, grid, n2
                ring = old + line
                o, below, above = ring + (i & 3) * plane, ring + ((i - 1) & 3) * plane, ring + ((i + 1) & 3) * plane
                side = np.int64(0) if flat else pitch
                update_rows(q, out, np.uint64(row), np.uint64(stride), np.uint64(along), buf, np.uint64(o),
                            np.uint64(below), np.uint64(above), np.uint64(o - side), np.uint64(o + side),
                            np.uint64(4 * plane), np.uint64(pitch), jb - ja, np.uint64(wide_lo), np.uint64(wide_hi),
                            now - 1, iw, ja, i - i, 1 + (i - i), np.uint64(-ox))
            if level == 0:
                for j in range(ja, jb):
                    load_row(C, src, b * C * grid + (iw * n1 + wrapped(j, n1)) * n2, grid, ka, kb, n2, buf,
                             row + (j - ja) * along + lo, stride)
            if (at_low or at_high or wrap) and not vary:
                steady_ends(ends, C, out, row, stride, along, jb - ja, lo, hi, at_low, at_high, wrap and level < levels,
                            level < levels, n2)
            edge0 = held and (i == 0 or i == n0 - 1)
            if vary or edge0 or (held and bound1 and (ja == 0 or jb == n1)):
                for j in range(ja, jb):
                    jw = wrapped(j, n1)
                    at = row + (j - ja) * along
                    if vary:
                        set_ends(e, b, C, ends, now, iw, jw, n1, n2)
                        hold_ends(ends, C, out, at, stride, lo, hi, at_low, at_high)
                    if edge0 or (held and bound1 and (j == 0 or j == n1 - 1)):
                        hold_rows(e, b, C, out, at, stride, lo, hi, now, iw, jw, -ox, n0, n1, n2)
                    if vary and level < levels:
                        ghost_ends(e, b, ends, C, buf, at, stride, lo, hi, at_low, at_high, now, iw, jw, n1, n2)
            if level < levels and bound1 and (ja == 0 or jb == n1):
                ghost_rows(e, b, C, buf, new + (i & 3) * plane, plane, pitch, ja, jb, oy, lo, hi, now, iw, n1, n2, -ox)


@inner
def ghost_planes(e, b, C, buf, old, plane, pitch, i, ja, jb, oy, lo, hi, step, n0, n1, n2, origin):
    """The planes beyond axis 0, in the ring slots next to the edge plane `i`."""
    keep_apart()
    deep = min(np.int64(1), n0 - 1)
    for c in range(C):
        for side in range(2):
            if i == side * (n0 - 1) and e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                out = 2 * side - 1
                for j in range(ja, jb):
                    o, k = old + c * 4 * plane + (j + oy) * pitch, j % n1
                    ghost_row(e, b, c, side, buf, o + ((i + out) & 3) * plane, o + (i & 3) * plane,
                              o + ((i - out * deep) & 3) * plane, lo, hi, step, i, k, origin, k * n2, n2)


@inner
def ghost_rows(e, b, C, buf, new, plane, pitch, ja, jb, oy, lo, hi, step, i, n1, n2, origin):
    """The rows beyond axis 1 of one plane of the ring."""
    keep_apart()
    deep = min(np.int64(1), n1 - 1)
    for c in range(C):
        for side in range(2, 4):
            out, j = 2 * (side & 1) - 1, (side & 1) * (n1 - 1)
            if ja <= j < jb and e.ints[HEAD + (c * 6 + side) * ITEMS] == GHOST:
                o = new + c * 4 * plane + (j + oy) * pitch
                ghost_row(e, b, c, side, buf, o + out * pitch, o, o - out * deep * pitch, lo, hi, step, i, j, origin,
                          i * n2, n2)


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
def run_resident(params, edges, shape, source, first, second, memory, counter, count, depth, steps, step):
    """Worker: take blocks, `count` along axis 2, until none is left.

    The sweep before the first reads `source`; then they go to `first`, to `second`, to `first`, ...
    """
    p, e, u, here, there = borrow(params), borrow(edges), borrow(source), borrow(first), borrow(second)
    scratch, progress = borrow(memory), borrow(counter)
    B, C, n0, n1, n2 = shape
    size = (C, n0, n1, n2)
    float_state = flush_denormals()
    sweeps = (steps + depth - 1) // depth
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= sweeps * B * count:
            break
        sweep, tile = turn // (B * count), turn % (B * count)
        b, t = tile // count, tile % count
        if sweep > 0:
            wait_for_neighbours(progress, e, b, 0, 0, t, 1, 1, count, sweep)
        k0, k1 = t * n2 // count, (t + 1) * n2 // count
        levels = min(depth, steps - sweep * depth)
        if sweep == 0:
            tile_resident(p, e, b, size, u, here, scratch, k0, k1, levels, step)
        elif sweep & 1:
            tile_resident(p, e, b, size, here, there, scratch, k0, k1, levels, step + sweep * depth)
        else:
            tile_resident(p, e, b, size, there, here, scratch, k0, k1, levels, step + sweep * depth)
        atomic_store(progress, 1 + tile, sweep + 1)
    restore_denormals(float_state)


@kernel()
def run_stream(params, edges, shape, source, first, second, memory, counter, c0, c1, c2, depth, steps, step):
    """Worker: take tiles, c0 x c1 x c2 a sample, until none is left; arrays as in `run_resident`."""
    p, e, u, here, there = borrow(params), borrow(edges), borrow(source), borrow(first), borrow(second)
    scratch, progress = borrow(memory), borrow(counter)
    B, C, n0, n1, n2 = shape
    size = (C, n0, n1, n2)
    float_state = flush_denormals()
    tiles = B * c0 * c1 * c2
    sweeps = (steps + depth - 1) // depth
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= sweeps * tiles:
            break
        sweep, tile = turn // tiles, turn % tiles
        b, t0, t1, t2 = tile // (c0 * c1 * c2), tile // (c1 * c2) % c0, tile // c2 % c1, tile % c2
        if sweep > 0:
            wait_for_neighbours(progress, e, b, t0, t1, t2, c0, c1, c2, sweep)
        i0, i1 = t0 * n0 // c0, (t0 + 1) * n0 // c0
        j0, j1 = t1 * n1 // c1, (t1 + 1) * n1 // c1
        k0, k1 = t2 * n2 // c2, (t2 + 1) * n2 // c2
        levels = min(depth, steps - sweep * depth)
        if sweep == 0:
            tile_stream(p, e, b, size, u, here, scratch, i0, i1, j0, j1, k0, k1, levels, step)
        elif sweep & 1:
            tile_stream(p, e, b, size, here, there, scratch, i0, i1, j0, j1, k0, k1, levels, step + sweep * depth)
        else:
            tile_stream(p, e, b, size, there, here, scratch, i0, i1, j0, j1, k0, k1, levels, step + sweep * depth)
        atomic_store(progress, 1 + tile, sweep + 1)
    restore_denormals(float_state)
