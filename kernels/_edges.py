"""Boundaries as data: one packed description for every side, component, sample, time level and cell of a face.

Sides are numbered 2*axis + (0 low, 1 high). A side of a bounded axis is, for each component, one of

* GHOST: the cell beyond the edge is alpha*u0 + beta*u1 + gamma*g, with u0, u1 the first and second cell inside;
* HOLD: the edge cell itself is g.

Dirichlet, Neumann and Robin conditions on cell-centred and node-centred grids are all of this form.

A side may *see* more of the field than its own cells: other components at that wall, and what lies at the wall opposite
(`Side.sees`). Such a march is not blocked in time: the far wall must be there at every level (`_wide.py`).
"""

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastdiff.kernels._jit import call_boundary, call_seeing, inner, keep_apart
from fastdiff.kernels._part import overload_part

BOUNDED, PERIODIC, ABSENT = 0, 1, 2
NONE, GHOST, HOLD = 0, 1, 2
HEAD, ITEMS = 8, 8  # numbers in `ints` before the first side, and for each side:
KIND, CALL, VALUE, PER_SAMPLE, PER_STEP, PER_CELL, COEF, COEF_PER_SAMPLE = range(8)
MOST_SEEN = 8  # values of other components and far walls that a side may see
SEEN = 1 + MOST_SEEN  # numbers for each side behind all others, if any side sees: its function's address, what it sees


class Edges(NamedTuple):
    """All boundaries of a march, packed into three 1-D arrays (cheap to hand to a kernel, on CPU and GPU).

    ints   axis kinds (3), which axis is x, y, z (3, -1 none), batch, components; then for each component and side 8
           numbers: kind, address of g(t, x, y, z, u) or 0, offset of g in `reals`, its strides per sample, per time
           step and per cell of the face, offset of (alpha, beta, gamma) in `reals`, its stride per sample; then, if
           any side sees more of the field, for each of them 9 numbers: the address of g(t, x, y, z, u, w0, ..., w7) or
           0, and what each w is: 2 * component, + 1 at the far wall; -1 none
    reals  0, weights of u0 and u1 in the value of u at a face; then all coefficients and values
    clock  float64: time of step 0, dt, origin (3), spacing (3), coordinate of each side's face (6); then, where time
           levels are not equally spaced, the time of each
    """

    ints: Any
    reals: Any
    clock: Any


def cast_like(array, x):
    """`x` in the dtype of `array`."""
    return array.dtype.type(x)


@overload_part(cast_like)
def _cast_like(array, x):
    kind = np.float32 if array.dtype == types.float32 else np.float64

    def cast(array, x):
        return kind(x)

    return cast


CLOCK = 14  # numbers in `clock` before the times of unequal levels


@inner
def time_of(e, step):
    """The time of a level."""
    return e.clock[CLOCK + step] if len(e.clock) > CLOCK else e.clock[0] + e.clock[1] * step


@inner
def face_place(e, side, i0, i1, i2):
    """x, y and z of a cell of a face."""
    keep_apart()
    x, y, z = 0.0, 0.0, 0.0
    for k in range(3):
        a = e.ints[3 + k]
        if a >= 0:
            i = i0 if a == 0 else (i1 if a == 1 else i2)
            where = e.clock[8 + side] if a == side >> 1 else e.clock[2 + a] + e.clock[5 + a] * i
            if k == 0:
                x = where
            elif k == 1:
                y = where
            else:
                z = where
    return x, y, z


@inner
def called_value(e, address, side, step, i0, i1, i2, u0, u1):
    """g from a compiled function of time, place and the field's value at the face."""
    keep_apart()
    x, y, z = face_place(e, side, i0, i1, i2)
    u = e.reals[1] * u0 + e.reals[2] * u1
    return cast_like(e.reals, call_boundary(address, time_of(e, step), x, y, z, u))


@inner  # no contraction: the same bits wherever it is called
def edge_value(e, b, c, side, step, i0, i1, i2, face, u0, u1):
    """g of one boundary cell at one time level."""
    keep_apart()
    k = HEAD + (c * 6 + side) * ITEMS
    if e.ints[k + CALL] != 0:
        return called_value(e, e.ints[k + CALL], side, step, i0, i1, i2, u0, u1)
    at = e.ints[k + VALUE] + e.ints[k + PER_SAMPLE] * b
    return e.reals[at + e.ints[k + PER_STEP] * step + e.ints[k + PER_CELL] * face]


@inner
def seen_at(e, c, side):
    """Where in `ints` stands what a side sees; 0: nothing but its own cells."""
    at = HEAD + e.ints[7] * 6 * ITEMS + (c * 6 + side) * SEEN
    return at if at < len(e.ints) and e.ints[at] != 0 else at - at


@inner
def seen(e, at, c, buf, first, cs, inward, n):
    """One of the values that a side sees; `first` is the first cell inside of component `c`, of n cells `inward`."""
    what, second = e.ints[at], inward * min(np.int64(1), n - 1)
    if what < 0:
        return 0.0
    o = first + ((what >> 1) - c) * cs
    if what & 1:
        o, second = o + inward * (n - 1), -second
    return np.float64(e.reals[1] * buf[o] + e.reals[2] * buf[o + second])


@inner
def seeing_value(e, at, c, side, step, i0, i1, i2, buf, first, cs, inward, n):
    """g of a side that sees more of the field, at a cell whose place in `buf` is `first`; `at` as `seen_at` has it."""
    keep_apart()
    x, y, z = face_place(e, side, i0, i1, i2)
    u = e.reals[1] * buf[first] + e.reals[2] * buf[first + inward * min(np.int64(1), n - 1)]
    return cast_like(e.reals, call_seeing(
        e.ints[at], time_of(e, step), x, y, z, u, seen(e, at + 1, c, buf, first, cs, inward, n),
        seen(e, at + 2, c, buf, first, cs, inward, n), seen(e, at + 3, c, buf, first, cs, inward, n),
        seen(e, at + 4, c, buf, first, cs, inward, n), seen(e, at + 5, c, buf, first, cs, inward, n),
        seen(e, at + 6, c, buf, first, cs, inward, n), seen(e, at + 7, c, buf, first, cs, inward, n),
        seen(e, at + 8, c, buf, first, cs, inward, n)))


# -- building, and the reference in NumPy ----------------------------------------------------------------------------

_SPACE = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}  # internal axes of a grid's axes
_C_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * 5)
_SEEING = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * (5 + MOST_SEEN))


@dataclass(frozen=True)
class Side:
    """One side of one component: GHOST with alpha, beta, gamma (numbers, or one a sample), or HOLD.

    `value` is g, broadcastable to (batch, time levels, cells of the face); `call` the address of a C function
    `double g(t, x, y, z, u)` that replaces it. With `sees`, pairs (component, whether at the far wall), it is a
    `double g(t, x, y, z, u, w0, ..., w7)` that takes their values too; those that are missing are 0. A held side may
    not see a held side that sees.
    """

    kind: int = GHOST
    alpha: Any = 1.0
    beta: Any = 0.0
    gamma: Any = 0.0
    value: Any = 0.0
    call: int = 0
    sees: tuple = ()


NO_FLUX = Side()  # of a cell-centred grid; on nodes it is alpha = 0, beta = 1


def make_edges(shape, periodic, dtype, sides=None, *, components=1, batch=1, start=0.0, dt=1.0, origin=None,
               spacing=None, walls=None, face_weights=(1.0, 0.0)) -> Edges:
    """Pack the boundaries of a grid.

    shape      of the grid, without batch and components; periodic: one bool an axis
    sides      {(component, axis, end): Side}, end 0 or 1; sides not named have no flux
    start, dt  time of step 0 and step; origin, spacing (per axis) and walls (axis, end): coordinates, used by `call`
    face_weights  weights of the first two cells in the value of u at a face, used by `call`
    """
    axes, sides = _SPACE[len(shape)], dict(sides or {})
    dtype = np.dtype(dtype)
    ints = np.zeros(HEAD + components * 6 * ITEMS, np.int64)
    ints[:3], ints[3:6], ints[6:8] = ABSENT, -1, (batch, components)
    views = np.zeros((components, 6, SEEN), np.int64)
    clock = np.zeros(CLOCK)
    clock[:2] = start, dt
    reals: list[np.ndarray] = [np.array([0.0, *face_weights], dtype)]
    for k, a in enumerate(axes):
        ints[a], ints[3 + k] = (PERIODIC if periodic[k] else BOUNDED), a
        clock[2 + a] = origin[k] if origin is not None else 0.0
        clock[5 + a] = spacing[k] if spacing is not None else 1.0
        for end in range(2):
            clock[8 + 2 * a + end] = walls[k][end] if walls is not None else 0.0
            for c in range(components):
                side = sides.pop((c, k, end), NO_FLUX)
                if not periodic[k]:
                    face = int(np.prod(shape, dtype=np.int64)) // shape[k]
                    _pack_side(ints, reals, c, 2 * a + end, side, batch, face, dtype)
                    if side.sees:
                        views[c, 2 * a + end, 1:] = -1
                        views[c, 2 * a + end, : 1 + len(side.sees)] = side.call, *(2 * d + f for d, f in side.sees)
    if sides:
        raise ValueError(f"no such side: {sorted(sides)} (component, axis, end)")
    return Edges(np.concatenate([ints, views.ravel()]) if views.any() else ints, np.concatenate(reals), clock)


def is_seeing(edges) -> bool:
    """Whether any side sees more of the field than its own cells."""
    return len(edges.ints) > HEAD + int(edges.ints[7]) * 6 * ITEMS


def views_of(edges, components=None) -> np.ndarray:
    """What the sides see, (components, 6 sides, SEEN) as `Edges.ints` has it; all 0 where none sees."""
    C = int(edges.ints[7]) if components is None else components
    views = edges.ints[HEAD + C * 6 * ITEMS :]
    return np.asarray(views).reshape(C, 6, SEEN) if len(views) else np.zeros((C, 6, SEEN), np.int64)


def _pack_side(ints, reals, c, number, side, batch, face, dtype):
    coef = np.stack(np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype)) for v in
                                          (side.alpha, side.beta, side.gamma))), -1)
    value = np.asarray(side.value, dtype)
    value = value.reshape((1,) * (3 - value.ndim) + value.shape)
    for size, wanted, what in ((coef.shape[0], batch, "coefficients"), (value.shape[0], batch, "values"),
                               (value.shape[2], face, "values along the face")):
        if size not in (1, wanted):
            raise ValueError(f"a boundary has {size} {what}, expected 1 or {wanted}")
    at = sum(r.size for r in reals)
    reals += [value.ravel(), coef.ravel()]
    _, levels, cells = value.shape
    k = HEAD + (c * 6 + number) * ITEMS
    ints[k : k + ITEMS] = (
        side.kind, 0 if side.sees else side.call, at,
        levels * cells if value.shape[0] > 1 else 0, cells if levels > 1 else 0, 1 if cells > 1 else 0,
        at + value.size, 3 if coef.shape[0] > 1 else 0,
    )


def _face_values(u, edges, c, axis, end, step):
    """g on one side of every sample, shaped like the face (reference)."""
    internal = _SPACE[u.ndim - 2][axis]
    k = HEAD + (c * 6 + 2 * internal + end) * ITEMS
    _, call, at, per_sample, per_step, per_cell, _, _ = edges.ints[k : k + ITEMS]
    face = np.delete(u.shape[2:], axis)
    view = views_of(edges)[c, 2 * internal + end]
    if not (call or view[0]):
        cells = np.arange(int(np.prod(face, dtype=np.int64))).reshape(face)
        samples = np.arange(u.shape[0]).reshape(-1, *[1] * len(face))
        return edges.reals[at + per_sample * samples + per_step * step + per_cell * cells].astype(np.float64)
    function = _SEEING(int(view[0])) if view[0] else _C_FUNCTION(int(call))
    fields = [_at_wall(u, edges, c, axis, end)]
    if view[0]:
        fields += [_at_wall(u, edges, w >> 1, axis, end ^ (w & 1)) if w >= 0 else 0 * fields[0] for w in view[1:]]
    places = []
    for j, a in enumerate(_SPACE[u.ndim - 2]):
        if j == axis:
            places.append(np.broadcast_to(edges.clock[8 + 2 * internal + end], face))
        else:
            line = edges.clock[2 + a] + edges.clock[5 + a] * np.arange(u.shape[j + 2])
            others = [i for i in range(u.ndim - 2) if i != axis]
            places.append(np.broadcast_to(line.reshape([-1 if i == j else 1 for i in others]), face))
    places += [np.zeros(face)] * (3 - len(places))
    t = edges.clock[CLOCK + step] if len(edges.clock) > CLOCK else edges.clock[0] + edges.clock[1] * step
    cells = list(zip(*(q.ravel() for q in places)))
    return np.array([[function(t, *p, *v) for p, v in zip(cells, zip(*(f[b].ravel() for f in fields)))]
                     for b in range(len(u))]).reshape(u.shape[0], *face)


def _at_wall(u, edges, c, axis, end):
    """u of a component at a wall, (batch, *face), from the first two cells (reference)."""
    n = u.shape[axis + 2]
    first = np.take(u[:, c], -end, axis + 1)
    return edges.reals[1] * first + edges.reals[2] * np.take(u[:, c], min(1, n - 1) if not end else max(-2, -n),
                                                             axis + 1)


def pad(u, edges, step):
    """`u` (B, C, *grid) with one more cell at both ends of every axis: ghosts, or periodic images (reference)."""
    out = np.pad(u, [(0, 0), (0, 0)] + [(1, 1)] * (u.ndim - 2), mode="wrap")
    inner_cells = [slice(1, -1)] * (u.ndim - 2)
    for axis in range(u.ndim - 2):
        internal = _SPACE[u.ndim - 2][axis]
        if edges.ints[internal] == PERIODIC:
            continue
        for c in range(u.shape[1]):
            for end in range(2):
                k = HEAD + (c * 6 + 2 * internal + end) * ITEMS
                where = inner_cells.copy()
                where[axis] = -1 if end else 0
                samples = edges.ints[k + 6] + edges.ints[k + 7] * np.arange(u.shape[0]).reshape(-1, *[1] * (u.ndim - 3))
                alpha, beta, gamma = (edges.reals[samples + j].astype(np.float64) for j in range(3))
                n = u.shape[axis + 2]
                u0 = np.take(u[:, c], n - 1 if end else 0, axis + 1)
                u1 = np.take(u[:, c], max(n - 2, 0) if end else min(1, n - 1), axis + 1)
                held = edges.ints[k] == HOLD
                g = 0.0 if held else _face_values(u, edges, c, axis, end, step)
                out[(slice(None), c, *where)] = u0 if held else alpha * u0 + beta * u1 + gamma * g
    return out


def hold(u, edges, step):
    """Set the held cells of `u` to their values at a time step, in place; return `u` (reference)."""
    views = views_of(edges)[..., 0]
    for seeing in (False, True) if views.any() else (False,):
        for axis in reversed(range(u.ndim - 2)):
            internal = _SPACE[u.ndim - 2][axis]
            for c in range(u.shape[1]):
                for end in range(2):
                    side = 2 * internal + end
                    if edges.ints[HEAD + (c * 6 + side) * ITEMS] == HOLD and (views[c, side] or not seeing):
                        where = [slice(None)] * (u.ndim - 2)
                        where[axis] = -end
                        place = (slice(None), c, *where)
                        late = bool(views[c, side]) > seeing  # 0 until all others are held
                        values = 0.0 if late else _face_values(u, edges, c, axis, end, step)
                        u[place] = np.where(_taken(u, edges, c, axis), u[place], values) if seeing else values
    return u


def _taken(u, edges, c, axis):
    """The cells of a face that an earlier axis holds, (*face)."""
    face = np.zeros([n for k, n in enumerate(u.shape[2:]) if k != axis], bool)
    for k in range(axis):
        for end in range(2):
            if edges.ints[HEAD + (c * 6 + 2 * _SPACE[u.ndim - 2][k] + end) * ITEMS] == HOLD:
                face[(slice(None),) * k + (-end,)] = True
    return face
