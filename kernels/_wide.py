"""Rules that look further than a star of radius one: wide stars, and boxes with their diagonals.

A rule class says how far it looks with `near`; the `u` of its `change` then has more fields:

    near        u has                                        for
    "star"      c, m0, p0, m1, p1, m2, p2                     the blocked schedules of `_march.py`; here only where a
                                                              wall sees other components or the wall opposite
    "star2"     and mm0, pp0, ...: two cells away              4th order, upwind of 2nd and 3rd order
    "star3"     and mmm0, ppp0, ...: three cells away          6th order
    "box"       and m0m1, m0p1, p0m1, ...: the diagonals of    mixed derivatives
                each pair of axes
    "disc"      those of "star2" and "box"                    fourth derivatives on several axes

`march` and `march_cuda` send such rules here: one sweep over the grid per step, rows in slabs over threads, in two
padded copies. There is no blocking in time: a wide rule needs halos and rings that are `reach` times as large, and does
several times the arithmetic per cell, so there is less to gain; the blocked schedules stay as small as they are.

Beyond a wall stand `reach` ghosts. The first is that of the edges, g1 = alpha u0 + beta u1 + gamma g; the k-th
continues it by reflection, where u0, u1, ... are the cells inside:

    held (u0 on the wall)           2 u0 - u_k
    nodes, beta != 0                u_k + k (g1 - u1)
    cells, a wall of value: alpha = -1     g1 + u0 - u_{k-1}
    cells, else                     u_{k-1} + (2k - 1) (g1 - u0)

For constant values, derivatives or fluxes on a wall the solution of the heat equation is its own reflection, so orders
4 and 6 hold up to the wall; for values that change in time the wall is of second order. Where axes meet, the ghosts of
axis 2 are continued along axis 1, those along axis 0. A held side takes its earlier axis, as everywhere.

What a wall sees is looked up when the whole level is there. Where it is the wall opposite along axis 0, which another
slab holds, a sample is one slab.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastdiff.kernels._edges import (
    ABSENT,
    BOUNDED,
    COEF,
    COEF_PER_SAMPLE,
    HEAD,
    HOLD,
    ITEMS,
    PERIODIC,
    _face_values,
    edge_value,
    is_seeing,
    seeing_value,
    seen_at,
    views_of,
)
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
    wide_vectors,
)
from fastdiff.kernels._march import LANES, At, Star, cell, components_of, hold_rows, sample_of
from fastdiff.kernels._part import overload_part


def _star_fields(reach):
    names: dict[str, tuple[int, int, int]] = {"c": (0, 0, 0)}
    for k in range(1, reach + 1):
        for axis in range(3):
            for sign, letter in ((-1, "m"), (1, "p")):
                names[letter * k + str(axis)] = tuple(sign * k if a == axis else 0 for a in range(3))
    return names


def _box_fields():
    names = _star_fields(1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for sa, la in ((-1, "m"), (1, "p")):
            for sb, lb in ((-1, "m"), (1, "p")):
                names[f"{la}{a}{lb}{b}"] = tuple({a: sa, b: sb}.get(k, 0) for k in range(3))
    return names


FIELDS = {"star": _star_fields(1), "star2": _star_fields(2), "star3": _star_fields(3), "box": _box_fields(),
          "disc": {**_star_fields(2), **_box_fields()}}
REACH = {"star": 1, "star2": 2, "star3": 3, "box": 1, "disc": 2}
Star2 = NamedTuple("Star2", [(name, Any) for name in FIELDS["star2"]])
Star3 = NamedTuple("Star3", [(name, Any) for name in FIELDS["star3"]])
Box = NamedTuple("Box", [(name, Any) for name in FIELDS["box"]])
Disc = NamedTuple("Disc", [(name, Any) for name in FIELDS["disc"]])
NEAR = {"star": Star, "star2": Star2, "star3": Star3, "box": Box, "disc": Disc}


def near_of(rule) -> str:
    """How far a rule, or a rule inside of it, looks; `rule` may be Numba's type of one."""
    compiled = isinstance(rule, types.BaseNamedTuple)
    own = getattr(rule.instance_class if compiled else type(rule), "near", "star")
    inside = [near_of(f) for f in (rule.types if compiled else rule)
              if (isinstance(f, types.BaseNamedTuple) if compiled else hasattr(f, "_fields"))]
    found = {own, *inside} - {"star"}
    if len(found) > 1:
        raise ValueError(f"rules inside each other look differently far: {', '.join(sorted(found))}")
    return found.pop() if found else "star"


# -- rows ------------------------------------------------------------------------------------------------------------


def update_wide(p, dst, d, cs, src, rows, pitch, lo, hi, step, i0, i1, origin):
    """Apply the rule to columns `lo:hi` of the row at offset `rows[3]` of `src`; put them at `d` in `dst`.

    `rows[3 + k]` is the offset of the row k cells up axis 0; along axis 1 rows are `pitch` apart.
    """
    raise NotImplementedError("compiled only: its source is made for the rule")


@overload_part(update_wide, fastmath=FASTMATH, error_model="numpy")
def _update_wide(p, dst, d, cs, src, rows, pitch, lo, hi, step, i0, i1, origin):
    near, count = near_of(p), components_of(p.instance_class)

    def place(c, offset):
        along1 = f"{'-' if offset[1] < 0 else '+'} {' + '.join(['pitch'] * abs(offset[1]))}" if offset[1] else ""
        along1 = f"- ({along1[2:]})" if along1.startswith("-") else along1
        along2 = f"{'-' if offset[2] < 0 else '+'} n{abs(offset[2])}" if offset[2] else ""
        return f"src[((rows[{3 + offset[0]}] + k{c}) {along1} + x) {along2}]"

    stars = [f"Near({', '.join(place(c, offset) for offset in FIELDS[near].values())})" for c in range(count)]
    lines = [
        "def update(p, dst, d, cs, src, rows, pitch, lo, hi, step, i0, i1, origin):",
        "    keep_apart()",
        "    wide_vectors()",
        "    restrict_dst()",
        "    k0 = zero",
        *(f"    k{c} = k{c - 1} + cs" for c in range(1, count)),
        "    for x in range(lo, hi):",
        f"        new = cell(p, {stars[0] if count == 1 else '(' + ', '.join(stars) + ')'}, "
        "At(step, i0, i1, x + origin))",
        *(f"        dst[d + k{c} + x] = new{'' if count == 1 else f'[{c}]'}" for c in range(count)),
    ]
    scope = {"cell": cell, "Near": NEAR[near], "At": At, "zero": np.uint64(0),
             **{f"n{k}": np.uint64(k) for k in range(1, 4)}}
    scope |= {"keep_apart": keep_apart, "wide_vectors": wide_vectors, "restrict_dst": restrict_dst}
    exec("\n".join(lines), scope)
    return scope["update"]


@inner
def ghost_cells(e, b, c, side, buf, edge, step_in, k_first, count, along, reach, n, step, i0, i1, i2, d0, d1, d2, n1,
                n2, cs):
    """The ghosts beyond one side, for `count` cells of its face.

    The first cell of the face is at offset `edge` in `buf`, the next `along` further; inwards cells are `step_in`
    apart. (i0, i1, i2) is the place of the first cell and (d0, d1, d2) the way to the next; beyond the face it stays.
    """
    keep_apart()
    sees = seen_at(e, c, side)
    k = HEAD + (c * 6 + side) * ITEMS
    held = e.ints[k] == HOLD
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    alpha, beta, gamma = e.reals[at], e.reals[at + 1], e.reals[at + 2]
    limit1, limit2 = n1 - 1, n2 - 1
    for q in range(count):
        o, m = edge + q * along, k_first + q
        u0, u1 = buf[o], buf[o + step_in * min(np.int64(1), n - 1)]
        first = u0 - u0
        if not held:
            p1, p2 = min(max(i1 + m * d1, 0), limit1), min(max(i2 + m * d2, 0), limit2)
            p0 = i0 + m * d0
            face = p0 * n1 + p1 if side >= 4 else (p0 if side >= 2 else p1) * n2 + p2
            if sees:
                g = seeing_value(e, sees, c, side, step, p0, p1, p2, buf, o, cs, step_in, n)
            else:
                g = edge_value(e, b, c, side, step, p0, p1, p2, face, u0, u1)
            first = gamma * g + beta * u1 + alpha * u0
        for j in range(1, reach + 1):
            here, before = buf[o + step_in * min(j, n - 1)], buf[o + step_in * min(j - 1, n - 1)]
            if held:
                ghost = u0 + (u0 - here)
            elif beta != 0:
                ghost = here + j * (first - u1)
            elif alpha == -1:
                ghost = first + (u0 - before)
            else:
                ghost = before + (2 * j - 1) * (first - u0)
            buf[o - step_in * j] = ghost


@inner
def wrap_cells(buf, low, step_in, count, along, reach, n):
    """Periodic images of `count` lines of n cells, the first cells at offset `low`, on both ends."""
    keep_apart()
    for j in range(1, reach + 1):
        back = (n - j % n) % n
        for q in range(count):
            o = low + q * along
            buf[o - step_in * j] = buf[o + step_in * back]
            buf[o + step_in * (n + j - 1)] = buf[o + step_in * ((j - 1) % n)]


@inner
def dress(e, b, C, buf, base, cs, plane, pitch, h0, h1, i0, i1, reach, step, n0, n1, n2, ghosts):
    """Impose held values on planes i0:i1 and put the ghosts around them; those beyond axis 0 with the edge planes."""
    keep_apart()
    for i in range(i0, i1):
        for j in range(n1):
            row = base + (i + h0) * plane + (j + h1) * pitch + LANES
            for c in range(C):
                for end in range(2):
                    k = HEAD + (c * 6 + 4 + end) * ITEMS
                    if e.ints[2] == BOUNDED and e.ints[k] == HOLD:
                        z = end * (n2 - 1)
                        buf[row + c * cs + z] = edge_value(e, b, c, 4 + end, step, i, j, z, i * n1 + j, e.reals[0],
                                                           e.reals[0])
            hold_rows(e, b, C, buf, row, cs, i0 - i0, n2, step, i, j, i0 - i0, n0, n1, n2)
    if len(e.ints) > HEAD + e.ints[7] * 6 * ITEMS:
        hold_seeing(e, C, buf, base + h0 * plane + h1 * pitch + LANES, cs, plane, pitch, i0, i1, step, n0, n1, n2)
    if not ghosts:
        return
    one, none = np.int64(1), i0 - i0
    for c in range(C):
        corner = base + c * cs + LANES  # of plane -h0, row -h1, column 0
        for i in range(i0, i1):
            rows = corner + (i + h0) * plane + h1 * pitch
            if e.ints[2] == PERIODIC:
                wrap_cells(buf, rows, one, n1, pitch, reach, n2)
            elif e.ints[2] == BOUNDED:
                ghost_cells(e, b, c, 4, buf, rows, one, none, n1, pitch, reach, n2, step, i, none, none, none, one,
                            none, n1, n2, cs)
                ghost_cells(e, b, c, 5, buf, rows + n2 - 1, -one, none, n1, pitch, reach, n2, step, i, none, n2 - 1,
                            none, one, none, n1, n2, cs)
            wide = n2 + 2 * reach if e.ints[2] != ABSENT else n2
            start = -reach if e.ints[2] != ABSENT else none
            if e.ints[1] == PERIODIC:
                wrap_cells(buf, rows + start, pitch, wide, one, reach, n1)
            elif e.ints[1] == BOUNDED:
                ghost_cells(e, b, c, 2, buf, rows + start, pitch, start, wide, one, reach, n1, step, i, none, none,
                            none, none, one, n1, n2, cs)
                ghost_cells(e, b, c, 3, buf, rows + start + (n1 - 1) * pitch, -pitch, start, wide, one, reach, n1, step,
                            i, n1 - 1, none, none, none, one, n1, n2, cs)
        if e.ints[0] == BOUNDED:
            for j in range(-h1, n1 + h1):
                row = corner + h0 * plane + (j + h1) * pitch
                wide = n2 + 2 * reach if e.ints[2] != ABSENT else n2
                start = -reach if e.ints[2] != ABSENT else none
                if i0 == 0:
                    ghost_cells(e, b, c, 0, buf, row + start, plane, start, wide, one, reach, n0, step, none, j, none,
                                none, none, one, n1, n2, cs)
                if i1 == n0:
                    ghost_cells(e, b, c, 1, buf, row + start + (n0 - 1) * plane, -plane, start, wide, one, reach, n0,
                                step, n0 - 1, j, none, none, none, one, n1, n2, cs)


@inner
def holder(e, c, i0, i1, i2, n0, n1, n2):
    """The side that holds a cell, -1: none; of several that of the earliest axis."""
    k = HEAD + c * 6 * ITEMS
    for side in range(6):
        i, n = (i0, n0) if side < 2 else ((i1, n1) if side < 4 else (i2, n2))
        if e.ints[side >> 1] == BOUNDED and i == (n - 1) * (side & 1) and e.ints[k + side * ITEMS] == HOLD:
            return side
    return -1


@inner
def hold_seeing(e, C, buf, base, cs, plane, pitch, i0, i1, step, n0, n1, n2):
    """The held cells of planes i0:i1 whose values depend on other components or on the wall opposite."""
    keep_apart()
    for c in range(C):
        for side in range(6):
            sees = seen_at(e, c, side)
            if sees == 0 or e.ints[HEAD + (c * 6 + side) * ITEMS] != HOLD:
                continue
            a, z = side >> 1, side & 1
            n, along = (n0, plane) if a == 0 else ((n1, pitch) if a == 1 else (n2, np.int64(1)))
            inward = -along if z else along
            for i in range(max(i0, z * (n0 - 1)), min(i1, n0 if z else 1)) if a == 0 else range(i0, i1):
                for j in range(z * (n1 - 1), n1 if z else 1) if a == 1 else range(n1):
                    for k in range(z * (n2 - 1), n2 if z else 1) if a == 2 else range(n2):
                        if holder(e, c, i, j, k, n0, n1, n2) == side:
                            o = base + c * cs + i * plane + j * pitch + k
                            buf[o] = seeing_value(e, sees, c, side, step, i, j, k, buf, o, cs, inward, n)


@inner
def wait_for_slabs(progress, e, b, t, count, sweep):
    """Wait until a slab and its neighbours have finished `sweep` sweeps."""
    keep_apart()
    for d in range(-1, 2):
        s = t + d
        if e.ints[0] == PERIODIC:
            s %= count
        if 0 <= s < count:
            turns = 0
            while atomic_load(progress, 1 + b * count + s) < sweep:
                turns += 1
                if turns > 100:
                    give_way()


@kernel()
def run_wide(params, edges, shape, source, target, memory, counter, count, reach, steps, step):
    """Worker: take slabs of axis 0, `count` a sample, until none is left; sweep 0 copies, the others are steps."""
    p, e, src, dst = borrow(params), borrow(edges), borrow(source), borrow(target)
    buf, progress = borrow(memory), borrow(counter)
    B, C, n0, n1, n2 = shape
    h0 = reach if e.ints[0] == BOUNDED else reach - reach
    h1 = reach if e.ints[1] != ABSENT else reach - reach
    pitch = (LANES + n2 + reach + LANES - 1) // LANES * LANES
    side = pitch if e.ints[1] != ABSENT else pitch - pitch
    plane = (n1 + 2 * h1) * pitch
    cs = (n0 + 2 * h0) * plane
    whole, grid = B * C * cs, n0 * n1 * n2
    float_state = flush_denormals()
    while True:
        turn = atomic_add(progress, 0, 1)
        if turn >= (steps + 1) * B * count:
            break
        sweep, tile = turn // (B * count), turn % (B * count)
        b, t = tile // count, tile % count
        i0, i1 = t * n0 // count, (t + 1) * n0 // count
        base, old = (sweep & 1) * whole + b * C * cs, (1 - (sweep & 1)) * whole + b * C * cs
        if sweep > 0:
            wait_for_slabs(progress, e, b, t, count, sweep)
        q = sample_of(p, b)
        for i in range(i0, i1):
            for j in range(n1):
                at = (j + h1) * pitch + LANES
                row = base + (i + h0) * plane + at
                if sweep == 0:
                    for c in range(C):
                        for x in range(n2):
                            buf[row + c * cs + x] = src[(b * C + c) * grid + (i * n1 + j) * n2 + x]
                else:
                    r = old + at
                    if e.ints[0] == PERIODIC:
                        rows = (r + (i - 3) % n0 * plane, r + (i - 2) % n0 * plane, r + (i - 1) % n0 * plane,
                                r + i * plane, r + (i + 1) % n0 * plane, r + (i + 2) % n0 * plane,
                                r + (i + 3) % n0 * plane)
                    else:
                        up = plane if e.ints[0] == BOUNDED else plane - plane
                        r += (i + h0) * plane
                        rows = (r - 3 * up, r - 2 * up, r - up, r, r + up, r + 2 * up, r + 3 * up)
                    offsets = (np.uint64(rows[0]), np.uint64(rows[1]), np.uint64(rows[2]), np.uint64(rows[3]),
                               np.uint64(rows[4]), np.uint64(rows[5]), np.uint64(rows[6]))
                    update_wide(q, buf, np.uint64(row), np.uint64(cs), buf, offsets, np.uint64(side), np.uint64(0),
                                np.uint64(n2), step + sweep - 1, i, j, np.uint64(0))
        dress(e, b, C, buf, base, cs, plane, pitch, h0, h1, i0, i1, reach, step + sweep, n0, n1, n2, sweep < steps)
        if sweep == steps:
            for i in range(i0, i1):
                for j in range(n1):
                    row = base + (i + h0) * plane + (j + h1) * pitch + LANES
                    for c in range(C):
                        for x in range(n2):
                            dst[(b * C + c) * grid + (i * n1 + j) * n2 + x] = buf[row + c * cs + x]
        atomic_store(progress, 1 + tile, sweep + 1)
    restore_denormals(float_state)


def march_wide(rule, u, edges, steps, step, out, threads, space):
    """`march` for a wide rule; `space` is the shape (B, C, n0, n1, n2)."""
    from fastdiff.kernels._threads import together

    reach = REACH[near_of(rule)]
    B, C, n0, n1, n2 = space
    kinds = tuple(edges.ints[:3].tolist())
    rule = lowered(rule, kinds, space[2:], 0, edges.clock)
    rows = n1 + (2 * reach if kinds[1] != ABSENT else 0)
    planes = n0 + (2 * reach if kinds[0] == BOUNDED else 0)
    pitch = (LANES + n2 + reach + LANES - 1) // LANES * LANES
    memory = np.zeros(2 * B * C * planes * rows * pitch + LANES, u.dtype)
    count = max(1, min(n0 // max(reach + 1, 4), -(-4 * threads // B)))
    if is_seeing(edges) and (views_of(edges)[:, :2, 1:] & 1 & (views_of(edges)[:, :2, 1:] >= 0)).any():
        count = 1
    progress = np.zeros(1 + B * count, np.int64)

    def task():
        run_wide(rule, edges, space, u.reshape(-1), out.reshape(-1), memory, progress, count, reach, steps, step)

    together(task, min(threads, B * count))
    return out


# -- the reference ---------------------------------------------------------------------------------------------------


def pad_wide(u, edges, step, reach):
    """`u` (B, C, *grid) with `reach` more cells at both ends of every axis: ghosts, or periodic images (reference)."""
    ndim, out = u.ndim - 2, u
    for axis in reversed(range(ndim)):
        n, a = u.shape[axis + 2], {1: (2,), 2: (0, 2), 3: (0, 1, 2)}[ndim][axis]
        take = lambda k, axis=axis, out=out: np.take(out, k, axis + 2)
        if edges.ints[a] == PERIODIC:
            out = np.take(out, np.arange(-reach, n + reach) % n, axis + 2)
            continue
        layers = {k: take(k) for k in range(n)}
        for end in (0, 1):
            inside = lambda k, end=end, n=n, take=take: take(n - 1 - min(k, n - 1) if end else min(k, n - 1))
            for j in range(1, reach + 1):
                ghost = np.stack([_ghost(u, edges, c, axis, a, end, step, j, inside) for c in range(u.shape[1])], 1)
                layers[n - 1 + j if end else -j] = ghost
        out = np.stack([layers[k] for k in sorted(layers)], axis + 2)
    return out


def _ghost(u, edges, c, axis, a, end, step, j, inside):
    k = HEAD + (c * 6 + 2 * a + end) * ITEMS
    u0, u1, near, before = (inside(m)[:, c] for m in (0, 1, j, j - 1))
    if edges.ints[k] == HOLD:
        return 2 * u0 - near
    g = _face_values(u, edges, c, axis, end, step)
    extra = [(n - m) // 2 for n, m in zip(u0.shape[1:], g.shape[1:])]
    g = np.pad(g, [(0, 0), *((m, m) for m in extra)], mode="edge")
    samples = edges.ints[k + 6] + edges.ints[k + 7] * np.arange(len(u)).reshape(-1, *[1] * (u0.ndim - 1))
    alpha, beta, gamma = (edges.reals[samples + m].astype(np.float64) for m in range(3))
    first = alpha * u0 + beta * u1 + gamma * g
    return np.where(beta != 0, near + j * (first - u1),
                    np.where(alpha == -1, first + u0 - before, before + (2 * j - 1) * (first - u0)))


def wide_row(rule, dtype):
    """The hot loop of a lowered rule alone, and the signature to compile it for, for the machine-code gate."""
    from numba import njit, typeof

    from fastdiff.kernels._jit import FLAGS

    @njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **FLAGS)
    def row(p, dst, src, at, step):
        update_wide(p, dst, at, at, src, (at, at, at, at, at, at, at), at, at, at, step, step, step, at)

    numbers = types.Array(types.float32 if np.dtype(dtype) == np.float32 else types.float64, 1, "C")
    return row, (typeof(sample_of(rule, 0)), numbers, numbers, types.uint64, types.int64)
