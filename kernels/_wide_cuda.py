"""Wide rules on a GPU (`_wide.py` says what they are): padded copies, a launch for the ghosts of each axis, one for the
step; and one for held walls that see other components or the wall opposite.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from fastdiff.kernels import _cuda
from fastdiff.kernels._edges import ABSENT, HEAD, HOLD, ITEMS, PERIODIC, SEEN
from fastdiff.kernels._march import At, cell, components_of, sample_of
from fastdiff.kernels._march_cuda import (
    NoValues,
    axis_kind,
    edge_value,
    ghost_value,
    held_by,
    hold_cell,
    place,
    side_kind,
    time_of,
    to_device,
)
from fastdiff.kernels._wide import FIELDS, NEAR, REACH, near_of

cuda = _cuda.toolkit()
THREADS = 128


def update_near(p, src, b, z, y, x, at, new):
    """Apply the rule to the cell at (z, y, x) of the padded `src`; put the new values in `new[component]`."""
    near, count, place = near_of(p), components_of(type(p)), (int(z), int(y), int(x))

    def value(c, offset):  # what lies along an axis that is not there is never used
        return src[(b, c, *(min(max(i + d, 0), n - 1) for i, d, n in zip(place, offset, src.shape[2:])))]

    stars = tuple(NEAR[near](*(value(c, offset) for offset in FIELDS[near].values())) for c in range(count))
    values = cell(p, stars if count > 1 else stars[0], at)
    for c in range(count):
        new[c] = values[c] if count > 1 else values


@overload(update_near)
def _update_near(p, src, b, z, y, x, at, new):
    near, count = near_of(p), components_of(p.instance_class)

    def index(name, k):
        return name if k == 0 else f"{name} {'-' if k < 0 else '+'} np.uint64({abs(k)})"

    stars = []
    for c in range(count):
        places = [", ".join(map(index, "zyx", offset)) for offset in FIELDS[near].values()]
        stars.append("Near(" + ", ".join(f"src[b, np.uint64({c}), {place}]" for place in places) + ")")
    lines = ["def update(p, src, b, z, y, x, at, new):",
             f"    values = cell(p, {stars[0] if count == 1 else '(' + ', '.join(stars) + ')'}, at)",
             *(f"    new[{c}] = values{'' if count == 1 else f'[{c}]'}" for c in range(count))]
    scope = {"cell": cell, "Near": NEAR[near], "np": np}
    exec("\n".join(lines), scope)
    return scope["update"]


def seen_by(p, c, side, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7) -> Any:
    """g of a side that sees more of the field: the `seen` of the class of `p`."""
    return type(p).seen(p, c, side, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7)


@overload(seen_by)
def _seen_by(p, c, side, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7):
    if hasattr(p.instance_class, "seen"):
        return p.instance_class.seen
    return lambda p, c, side, t, x, y, z, u, w0, w1, w2, w3, w4, w5, w6, w7: t - t


@register_jitable
def seen_at(e, c, side):
    """Where in `ints` stands what a side sees; 0: nothing but its own cells."""
    at = HEAD + e.ints[7] * (6 * ITEMS) + (c * 6 + side) * SEEN
    return at if at < e.ints.shape[0] and e.ints[at] != 0 else 0


@register_jitable
def at_wall(e, buf, b, c, i0, i1, i2, w0, w1, w2):
    """u of a component at a wall from its first two cells, the second (w0, w1, w2) away."""
    return e.clock.dtype.type(e.reals[1] * buf[b, c, i0, i1, i2] + e.reals[2] * buf[b, c, i0 + w0, i1 + w1, i2 + w2])


@register_jitable
def seen(e, at, buf, b, i0, i1, i2, s0, s1, s2, far):
    """One of the values that a side sees; (s0, s1, s2) leads to the second cell inside, `far` times to the last."""
    what = e.ints[at]
    if what < 0:
        return e.clock.dtype.type(0)
    if what & 1:
        return at_wall(e, buf, b, what >> 1, i0 + far * s0, i1 + far * s1, i2 + far * s2, -s0, -s1, -s2)
    return at_wall(e, buf, b, what >> 1, i0, i1, i2, s0, s1, s2)


def seeing_value(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n):
    """g of a side that sees more, at a face cell at (i0, i1, i2) in `buf`, (f0, f1, f2) in the grid; n cells inward."""
    if not hasattr(type(values), "seen"):
        return e.reals[0]
    return _seeing(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n)


@overload(seeing_value)
def _seeing_value(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n):
    if not hasattr(values.instance_class, "seen"):  # without float64, in which functions of a wall are evaluated
        return lambda e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n: e.reals[0]
    return _seeing


def _seeing(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n):
    axis, at = side >> 1, seen_at(e, c, side)
    inward, far = (-1 if side & 1 else 1) * min(1, n - 1), n - 1
    s0, s1, s2 = inward if axis == 0 else 0, inward if axis == 1 else 0, inward if axis == 2 else 0
    x, y = place(e, e.ints[3], side, f0, f1, f2), place(e, e.ints[4], side, f0, f1, f2)
    z, u = place(e, e.ints[5], side, f0, f1, f2), at_wall(e, buf, b, c, i0, i1, i2, s0, s1, s2)
    return e.reals.dtype.type(seen_by(
        values, c, side, time_of(e, step), x, y, z, u, seen(e, at + 1, buf, b, i0, i1, i2, s0, s1, s2, far),
        seen(e, at + 2, buf, b, i0, i1, i2, s0, s1, s2, far), seen(e, at + 3, buf, b, i0, i1, i2, s0, s1, s2, far),
        seen(e, at + 4, buf, b, i0, i1, i2, s0, s1, s2, far), seen(e, at + 5, buf, b, i0, i1, i2, s0, s1, s2, far),
        seen(e, at + 6, buf, b, i0, i1, i2, s0, s1, s2, far), seen(e, at + 7, buf, b, i0, i1, i2, s0, s1, s2, far),
        seen(e, at + 8, buf, b, i0, i1, i2, s0, s1, s2, far)))


@register_jitable
def beyond(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n0, n1, n2, reach):
    """Fill the ghosts beyond a side at the face cell (i0, i1, i2) of the padded array; (f0, f1, f2) is its place."""
    axis = side >> 1
    n = n0 if axis == 0 else (n1 if axis == 1 else n2)
    w0, w1, w2 = 1 if axis == 0 else 0, 1 if axis == 1 else 0, 1 if axis == 2 else 0
    if side & 1:
        w0, w1, w2 = -w0, -w1, -w2
    periodic, held = axis_kind(e, axis) == PERIODIC, side_kind(e, c, side) == HOLD
    zero, one = e.reals[0], e.reals.dtype.type(1)
    u0, k = buf[b, c, i0, i1, i2], min(1, n - 1)
    u1 = buf[b, c, i0 + w0 * k, i1 + w1 * k, i2 + w2 * k]
    first, alpha, beta = zero, zero, zero
    if not periodic and not held:
        if seen_at(e, c, side):
            g = seeing_value(e, values, buf, b, c, side, step, i0, i1, i2, f0, f1, f2, n)
        else:
            g = edge_value(e, values, b, c, side, step, f0, f1, f2, n1, n2, u0, u1)
        first = ghost_value(e, b, c, side, g, u0, u1)
        beta = ghost_value(e, b, c, side, zero, zero, one)
        alpha = ghost_value(e, b, c, side, zero, one, zero)
    far = zero
    for j in range(1, reach + 1):
        far += one
        k, m = min(j, n - 1), min(j - 1, n - 1)
        here = buf[b, c, i0 + w0 * k, i1 + w1 * k, i2 + w2 * k]
        before = buf[b, c, i0 + w0 * m, i1 + w1 * m, i2 + w2 * m]
        if periodic:
            k = (n - j % n) % n
            ghost = buf[b, c, i0 + w0 * k, i1 + w1 * k, i2 + w2 * k]
        elif held:
            ghost = u0 + (u0 - here)
        elif beta != zero:
            ghost = here + far * (first - u1)
        elif alpha == -one:
            ghost = first + (u0 - before)
        else:
            ghost = before + (far + far - one) * (first - u0)
        buf[b, c, i0 - w0 * j, i1 - w1 * j, i2 - w2 * j] = ghost


def ghosts(e, values, buf, axis, step, reach, n0, n1, n2):
    """Kernel: the ghosts of one axis, a thread for each cell of its two faces; call it for axes 2, 1, 0 in turn."""
    h0 = 0 if axis_kind(e, 0) == ABSENT else reach
    h1 = 0 if axis_kind(e, 1) == ABSENT else reach
    h2 = 0 if axis_kind(e, 2) == ABSENT else reach
    m1, m2 = n1 + 2 * h1, n2 + 2 * h2
    rows = n0 if axis == 2 else (n0 if axis == 1 else m1)
    columns = n1 if axis == 2 else m2
    index = cuda.grid(1)
    total = buf.shape[0] * buf.shape[1] * 2 * rows * columns
    if index >= total:
        return
    column, index = index % columns, index // columns
    row, index = index % rows, index // rows
    end, index = index % 2, index // 2
    c, b = index % buf.shape[1], index // buf.shape[1]
    if axis == 2:
        i0, i1, i2 = row + h0, column + h1, h2 + end * (n2 - 1)
    elif axis == 1:
        i0, i1, i2 = row + h0, h1 + end * (n1 - 1), column
    else:
        i0, i1, i2 = h0 + end * (n0 - 1), row, column
    f0, f1, f2 = i0 - h0, min(max(i1 - h1, 0), n1 - 1), min(max(i2 - h2, 0), n2 - 1)
    beyond(e, values, buf, b, c, 2 * axis + end, step, i0, i1, i2, f0, f1, f2, n0, n1, n2, reach)


def advance(p, e, values, src, dst, step, move, h0, h1, h2, o0, o1, o2):
    """Kernel: one step from the padded `src` to `dst`, whose cells begin at (o0, o1, o2); `move` 0 only copies.

    The array that is not padded has the shape of the grid. Free names: count (components), number.
    """
    B, n0, n1, n2 = src.shape[0], src.shape[2] - 2 * h0, src.shape[3] - 2 * h1, src.shape[4] - 2 * h2
    index = cuda.grid(1)
    if index >= B * n0 * n1 * n2:
        return
    x, index = index % n2, index // n2
    y, index = index % n1, index // n1
    z, b = index % n0, index // n0
    new = cuda.local.array(count, number)
    if move:
        q = sample_of(p, b)
        update_near(q, src, np.uint64(b), np.uint64(z + h0), np.uint64(y + h1), np.uint64(x + h2), At(step, z, y, x),
                    new)
    else:
        for c in range(count):
            new[c] = src[b, c, z + h0, y + h1, x + h2]
    hold_cell(e, values, b, count, new, step + move, z, y, x, n0, n1, n2)
    for c in range(count):
        dst[b, c, z + o0, y + o1, x + o2] = new[c]


def holds(e, values, buf, step, h0, h1, h2, n0, n1, n2):
    """Kernel: the held cells whose values depend on other components or the wall opposite, a thread for each cell.

    After `advance`, which leaves 0 there: all that they see is in place.
    """
    index = cuda.grid(1)
    if index >= buf.shape[0] * buf.shape[1] * n0 * n1 * n2:
        return
    x, index = index % n2, index // n2
    y, index = index % n1, index // n1
    z, index = index % n0, index // n0
    c, b = index % buf.shape[1], index // buf.shape[1]
    side = held_by(e, c, z, y, x, n0, n1, n2)
    if side >= 0 and seen_at(e, c, side):
        n = n0 if side < 2 else (n1 if side < 4 else n2)
        buf[b, c, z + h0, y + h1, x + h2] = seeing_value(e, values, buf, b, c, side, step, z + h0, y + h1, x + h2, z,
                                                         y, x, n)


@lru_cache(maxsize=64)
def _kernels(count, dtype):
    numbers = {"float32": types.float32, "float64": types.float64}
    step = _cuda.specialised(advance, threads=THREADS, count=count, number=numbers[dtype])
    return step, _cuda.specialised(ghosts, threads=THREADS), _cuda.specialised(holds, threads=THREADS)


def march_wide_cuda(data, rule, here, final, steps, step, kinds, stream, seeing=False):
    """`march_cuda` for a wide rule; `data` is the rule, the edges and the boundary values on the device.

    `seeing`: some wall sees other components or the wall opposite.
    """
    B, C, n0, n1, n2 = here.shape
    reach, dtype = REACH[near_of(rule)], here.dtype.name
    h = [0 if kind == ABSENT else reach for kind in kinds]
    padded = (B, C, n0 + 2 * h[0], n1 + 2 * h[1], n2 + 2 * h[2])
    if _cuda.simulated():
        buffers = [np.zeros(padded, here.dtype) for _ in range(2)]
    else:
        buffers = [cuda.device_array(padded, here.dtype, stream=stream) for _ in range(2)]
    move, fill, hold = _kernels(C, dtype)
    threads = 32 if _cuda.simulated() else THREADS
    blocks = -(-B * n0 * n1 * n2 // threads)

    def put(source, target, level, moves, *room):
        move[blocks, threads, stream](*data, source, target, level, moves, *room)
        if seeing:
            hold[blocks * C, threads, stream](*data[1:], target, level + moves, *room[3:], n0, n1, n2)

    put(here, buffers[0], step, 0, 0, 0, 0, *h)
    for k in range(steps):
        for axis in (2, 1, 0):
            if kinds[axis] != ABSENT:
                cells = B * C * 2 * padded[2] * padded[3] * padded[4] // padded[2 + axis]
                fill[-(-cells // threads), threads, stream](*data[1:], buffers[0], axis, step + k, reach, n0, n1, n2)
        last = k == steps - 1
        put(buffers[0], final if last else buffers[1], step + k, 1, *h, *([0, 0, 0] if last else h))
        buffers.reverse()


def launches(rule, edges, dtype):
    """The CUDA kernels of a lowered rule: what the PTX gate compiles."""
    from fastdiff.kernels._contract import Launch

    state, name = np.zeros((1,) * 5, dtype), np.dtype(dtype).name
    move, fill, _ = _kernels(components_of(type(rule)), name)
    data = rule, edges, NoValues()
    return [Launch("step", move, (*data, state, state, 0, 1, *[0] * 6), (THREADS, 1)),
            Launch("ghosts", fill, (*data[1:], state, 0, 0, 1, 1, 1, 1), (THREADS, 1))]


__all__ = ["launches", "march_wide_cuda", "to_device"]
