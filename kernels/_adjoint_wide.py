"""The transposed march of rules that look further than a star of radius one (`_wide.py`).

A back rule of those has the class attributes `near`, `grads` and `falls`, names of neighbours, and

    fall(p, u, l, at)   what a step's change of the cell, whose gradient is l, adds to the gradient by the cell itself
                        and by each of `falls`; then what it adds to each of `grads` fields of numbers a cell

States of a segment are all there. A step back scatters: every cell gives to its neighbours, ghosts included; then what
fell on ghosts is handed to the cells that they are made of, the axes in reverse order. A sample is the work of one
thread. Segments and checkpoints are those of `_adjoint.py`.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.kernels._adjoint import TERMS, Adjoint
from fastdiff.kernels._edges import (
    ABSENT,
    BOUNDED,
    COEF,
    COEF_PER_SAMPLE,
    HEAD,
    HOLD,
    ITEMS,
    PERIODIC,
    called_value,
    edge_value,
)
from fastdiff.kernels._fields import here, lowered
from fastdiff.kernels._jit import (
    FASTMATH,
    atomic_add,
    borrow,
    flush_denormals,
    inner,
    keep_apart,
    kernel,
    restore_denormals,
)
from fastdiff.kernels._march import LANES, At, sample_of
from fastdiff.kernels._part import overload_part
from fastdiff.kernels._run import march, space_of
from fastdiff.kernels._threads import together
from fastdiff.kernels._wide import FIELDS, NEAR, REACH, dress

_AXES = {1: (2,), 2: (0, 2), 3: (0, 1, 2)}

# -- back rules --------------------------------------------------------------------------------------------------------


def _type(name, near, fields, names, lines, center, falls, sums):
    scope: dict[str, Any] = {"here": here}
    results = ", ".join([center, *falls, *sums])
    exec("\n    ".join(["def fall(p, u, l, at):", *lines, f"return ({results},)"]), scope)
    base = NamedTuple(name, [(f, Any) for f in fields])
    return type(name, (base,), {"near": near, "components": 1, "grads": len(sums), "falls": tuple(names),
                                "fall": staticmethod(scope["fall"]), "__module__": __name__, "__slots__": (),
                                "__doc__": "A wide rule, transposed."})


def _weighted(near, ndim, sums, decay, source):
    """Weights of neighbours (kernels/wide.py); decay 0: none, 1: there is one, 2: with its gradient."""
    names = [name for name, offset in FIELDS[near].items()
             if name != "c" and all(o == 0 or a in _AXES[ndim] for a, o in enumerate(offset))]
    lines = [f"w{k} = here(p.{name}, at) * l" for k, name in enumerate(names)]
    center = " - ".join(["here(p.decay, at) * l" if decay else "l - l", *(f"w{k}" for k in range(len(names)))])
    grads = [f"l * (u.{name} - u.c)" for name in names] if sums else []
    grads += (["l * u.c"] if decay == 2 else []) + (["l"] if source else [])
    fields = names + (["decay"] if decay else [])
    title = f"WeightedBack_{near}_{ndim}_{sums:d}{decay}{source:d}"
    return _type(title, near, fields, names, lines, center, [f"w{k}" for k in range(len(names))], grads)


def _fourth(local, ndim, sums):
    """Cahn-Hilliard and, with a local part, Swift-Hohenberg (kernels/fourth_order.py)."""
    axes = _AXES[ndim]
    pairs = [(a, b) for k, a in enumerate(axes) for b in axes[k + 1 :]]
    names, falls, lines, center, grads = [], [], ["c, two, four = u.c, p.two, p.four"], [], []
    three, six = "(p.two + p.one)", "(p.four + p.two)"
    slope = (lambda v: "p.one") if local else (lambda v: f"({three} * {v} * {v} - p.one)")
    for a in axes:
        stiff = " + ".join([f"four * p.k{a}{a}", *(f"two * p.k{x}{y}" for x, y in pairs if a in (x, y))])
        lines.append(f"s{a} = {stiff}")
        for s in "mp":
            names += [f"{s}{a}", f"{s}{s}{a}"]
            falls += [f"l * (p.i{a} * {slope(f'u.{s}{a}')} + s{a})", f"-(l * p.k{a}{a})"]
        center += [f"two * p.i{a} * {slope('c')}", f"{six} * p.k{a}{a}"]
        value = (lambda v: v) if local else (lambda v: f"{v} * ({v} * {v} - p.one)")
        grads.append(f"l * ({value(f'u.m{a}')} + {value(f'u.p{a}')} - two * ({value('c')}))")
    for a in axes:
        grads.append(f"-(l * ((u.mm{a} + u.pp{a} - two * c) - four * (u.m{a} + u.p{a} - two * c)))")
    for a, b in pairs:
        corners = [f"{x}{a}{y}{b}" for x in "mp" for y in "mp"]
        names, falls = names + corners, falls + [f"-(l * p.k{a}{b})"] * 4
        center.append(f"four * p.k{a}{b}")
        near = f"two * (u.m{a} + u.p{a} - two * c) + two * (u.m{b} + u.p{b} - two * c)"
        grads.append(f"-(l * ((({' + '.join('u.' + n for n in corners)}) - four * c) - ({near})))")
    middle = " - ".join(["l - l", *(f"l * ({term})" for term in center)])
    if local:
        middle += f" + l * (p.linear + c * (two * p.square - {three} * p.cube * c))"
        grads += ["l * c", "l * (c * c)", "-(l * (c * c * c))"]
    fields = [f"i{a}" for a in axes] + [f"k{a}{a}" for a in axes] + [f"k{a}{b}" for a, b in pairs]
    fields += (["linear", "square", "cube"] if local else []) + ["one", "two", "four"]
    near, grads = "star2" if ndim == 1 else "disc", grads if sums else []
    return _type(f"FourthBack_{local:d}_{ndim}_{sums:d}", near, fields, names, lines, middle, falls, grads)


_MADE: dict[str, Any] = {}


def __getattr__(name):
    """Classes, made when they are asked for: Numba's cache looks for them by name."""
    kind, *rest = name.split("_")
    if name not in _MADE and kind == "WeightedBack" and len(rest) == 3:
        _MADE[name] = _weighted(rest[0], int(rest[1]), rest[2][0] == "1", int(rest[2][1]), rest[2][2] == "1")
    elif name not in _MADE and kind == "FourthBack" and len(rest) == 3:
        _MADE[name] = _fourth(rest[0] == "1", int(rest[1]), rest[2] == "1")
    if name in _MADE:
        return _MADE[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def back_weighted(near, columns, decay=None, *, sums=True, by_decay=False, source=False) -> Any:
    """The back rule of `wide.rule`: its fields, and that of the decay, in order."""
    ndim = {len(_names(near, n)): n for n in (1, 2, 3) if near != "box" or n > 1}[len(columns)]
    kind = 0 if decay is None else 1 + bool(by_decay)
    return __getattr__(f"WeightedBack_{near}_{ndim}_{sums:d}{kind}{source:d}")(
        *columns, *([] if decay is None else [decay]))


def _names(near, ndim):
    return [name for name, offset in FIELDS[near].items()
            if name != "c" and all(o == 0 or a in _AXES[ndim] for a, o in enumerate(offset))]


def back_fourth(columns, local: bool, ndim: int, dtype, *, sums=True) -> Any:
    """The back rule of `fourth_order.rule`: inside, cross and local coefficients in order, (B,) each."""
    numbers = map(np.dtype(dtype).type, (1, 2, 4))
    return __getattr__(f"FourthBack_{local:d}_{ndim}_{sums:d}")(*columns, *numbers)


# -- one step back -----------------------------------------------------------------------------------------------------


def scatter_row(q, buf, g, rows, side, l, m, grad, k, apart, n2, step, i0, i1):
    """What a row of cells gives: to their neighbours in `g`, and to the sums in `grad`.

    `rows[3 + k]` is where the row k cells up axis 0 lies in `buf` and `g`; those along axis 1 are `side` apart.
    """
    raise NotImplementedError("compiled only")


@overload_part(scatter_row, fastmath=FASTMATH, error_model="numpy")
def _scatter_row(q, buf, g, rows, side, l, m, grad, k, apart, n2, step, i0, i1):
    rule = q.instance_class

    def place(offset):
        along1 = "".join([" - side" if offset[1] < 0 else " + side"] * abs(offset[1]))
        along2 = f" {'-' if offset[2] < 0 else '+'} {abs(offset[2])}" if offset[2] else ""
        return f"rows[{3 + offset[0]}] + x{along1}{along2}"

    fields = FIELDS[rule.near]
    lines = ["def scatter(q, buf, g, rows, side, l, m, grad, k, apart, n2, step, i0, i1):", "    keep_apart()",
             "    for x in range(n2):",
             f"        u = Near({', '.join(f'buf[{place(o)}]' for o in fields.values())})",
             "        new = fall(q, u, l[m + x], At(step, i0, i1, x))",
             f"        g[{place(fields['c'])}] += new[0]",
             *(f"        g[{place(fields[name])}] += new[{1 + j}]" for j, name in enumerate(rule.falls)),
             *(f"        grad[k + {j} * apart + x] += new[{1 + len(rule.falls) + j}]" for j in range(rule.grads))]
    scope = {"Near": NEAR[rule.near], "At": At, "fall": fall, "keep_apart": keep_apart}
    exec("\n".join(lines), scope)
    return scope["scatter"]


def fall(p, u, l, at) -> Any:
    """What the change of a cell gives to others."""
    raise NotImplementedError("compiled only")


@overload_part(fall, fastmath=FASTMATH, error_model="numpy", forceinline=True)
def _fall(p, u, l, at):
    return p.instance_class.fall


@inner
def free(e, b, l, n0, n1, n2, walls, face, want):
    """Held cells of l: it goes to the held value's sum, and is 0 from there on; the earliest axis takes it."""
    keep_apart()
    for side in range(6):
        if e.ints[side >> 1] != BOUNDED or e.ints[HEAD + side * ITEMS] != HOLD:
            continue
        sums, high = ((b * 6 + side) * 5 + 3) * face, side & 1
        for i in range(high * (n0 - 1) if side < 2 else 0, 1 if side == 0 else n0):
            for j in range(high * (n1 - 1) if side >> 1 == 1 else 0, 1 if side == 2 else n1):
                for x in range(high * (n2 - 1) if side > 3 else 0, 1 if side == 4 else n2):
                    at = (i * n1 + j) * n2 + x
                    if want:
                        place = j * n2 + x if side < 2 else (i * n2 + x if side < 4 else i * n1 + j)
                        walls[sums + place] += l[at]
                    l[at] = 0


@inner
def unwrap(g, low, step_in, count, along, reach, n):
    """The transpose of `_wide.wrap_cells`."""
    keep_apart()
    for j in range(1, reach + 1):
        back = (n - j % n) % n
        for q in range(count):
            o = low + q * along
            g[o + step_in * back] += g[o - step_in * j]
            g[o + step_in * ((j - 1) % n)] += g[o + step_in * (n + j - 1)]
            g[o - step_in * j] = 0
            g[o + step_in * (n + j - 1)] = 0


@inner
def unghost(e, b, bends, side, buf, g, edge, step_in, k_first, count, along, reach, n, step, i0, i1, i2, d0, d1, d2, n1,
            n2, walls, face, want):
    """The transpose of `_wide.ghost_cells`: what fell on the ghosts beyond one side."""
    keep_apart()
    k = HEAD + side * ITEMS
    held, at = e.ints[k] == HOLD, e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    alpha, beta, gamma = e.reals[at], e.reals[at + 1], e.reals[at + 2]
    sums = (b * 6 + side) * 5 * face
    for q in range(count):
        o, m = edge + q * along, k_first + q
        second = o + step_in * min(np.int64(1), n - 1)
        first = g[o] - g[o]
        for j in range(1, reach + 1):
            there, before = o + step_in * min(j, n - 1), o + step_in * min(j - 1, n - 1)
            fell = g[o - step_in * j]
            g[o - step_in * j] = 0
            if held:
                g[o] += fell + fell
                g[there] -= fell
            elif beta != 0:
                g[there] += fell
                first += j * fell
                g[second] -= j * fell
            elif alpha == -1:
                g[o] += fell
                g[before] -= fell
                first += fell
            else:
                g[before] += fell
                first += (2 * j - 1) * fell
                g[o] -= (2 * j - 1) * fell
        if held:
            continue
        p0, p1, p2 = i0 + m * d0, min(max(i1 + m * d1, 0), n1 - 1), min(max(i2 + m * d2, 0), n2 - 1)
        place = p0 * n1 + p1 if side >= 4 else (p0 if side >= 2 else p1) * n2 + p2
        u0, u1 = buf[o], buf[second]
        if want:
            value = edge_value(e, b, 0, side, step, p0, p1, p2, place, u0, u1)
            walls[sums + place] += first * u0
            walls[sums + face + place] += first * u1
            walls[sums + 2 * face + place] += first * value
            walls[sums + 3 * face + place] += first
        to0, to1 = alpha * first, beta * first
        if bends[side] != 0:
            bent = gamma * first * called_value(e, bends[side], side, step, p0, p1, p2, u0, u1)
            to0, to1 = to0 + e.reals[1] * bent, to1 + e.reals[2] * bent
        g[o] += to0
        g[second] += to1


@inner
def undress(e, b, bends, buf, g, plane, pitch, h0, h1, reach, step, n0, n1, n2, walls, face, want):
    """The transpose of the ghosts that `_wide.dress` makes of a whole sample."""
    keep_apart()
    one, none = np.int64(1), n0 - n0
    wide = n2 + 2 * reach if e.ints[2] != ABSENT else n2
    start = -reach if e.ints[2] != ABSENT else none
    if e.ints[0] == BOUNDED:
        for j in range(-h1, n1 + h1):
            row = LANES + h0 * plane + (j + h1) * pitch + start
            unghost(e, b, bends, 0, buf, g, row, plane, start, wide, one, reach, n0, step, none, j, none, none, none,
                    one, n1, n2, walls, face, want)
            unghost(e, b, bends, 1, buf, g, row + (n0 - 1) * plane, -plane, start, wide, one, reach, n0, step, n0 - 1,
                    j, none, none, none, one, n1, n2, walls, face, want)
    for i in range(n0):
        rows = LANES + (i + h0) * plane + h1 * pitch
        if e.ints[1] == PERIODIC:
            unwrap(g, rows + start, pitch, wide, one, reach, n1)
        elif e.ints[1] == BOUNDED:
            unghost(e, b, bends, 2, buf, g, rows + start, pitch, start, wide, one, reach, n1, step, i, none, none, none,
                    none, one, n1, n2, walls, face, want)
            unghost(e, b, bends, 3, buf, g, rows + start + (n1 - 1) * pitch, -pitch, start, wide, one, reach, n1, step,
                    i, n1 - 1, none, none, none, one, n1, n2, walls, face, want)
        if e.ints[2] == PERIODIC:
            unwrap(g, rows, one, n1, pitch, reach, n2)
        elif e.ints[2] == BOUNDED:
            unghost(e, b, bends, 4, buf, g, rows, one, none, n1, pitch, reach, n2, step, i, none, none, none, one, none,
                    n1, n2, walls, face, want)
            unghost(e, b, bends, 5, buf, g, rows + n2 - 1, -one, none, n1, pitch, reach, n2, step, i, none, n2 - 1,
                    none, one, none, n1, n2, walls, face, want)


@kernel()
def run_wide_back(backs, edges, slopes, shape, states, cot, grads, walls, want, face, memory, counter, reach, S, step):
    """Worker: take samples until none is left; each goes S steps back from `cot`, whose states are in `states`."""
    q, e, bends, src, lam = borrow(backs), borrow(edges), borrow(slopes), borrow(states), borrow(cot)
    grad, sums, room, progress = borrow(grads), borrow(walls), borrow(memory), borrow(counter)
    B, terms, n0, n1, n2 = shape
    h0 = reach if e.ints[0] == BOUNDED else reach - reach
    h1 = reach if e.ints[1] != ABSENT else reach - reach
    pitch = (LANES + n2 + reach + LANES - 1) // LANES * LANES
    side = pitch if e.ints[1] != ABSENT else pitch - pitch
    plane = (n1 + 2 * h1) * pitch
    cs, grid = (n0 + 2 * h0) * plane, n0 * n1 * n2
    buf, g = room[:cs + LANES], room[cs + LANES :]
    float_state = flush_denormals()
    b = atomic_add(progress, 0, 1)
    while b < B:
        one, l = sample_of(q, b), lam[b * grid : (b + 1) * grid]
        free(e, b, l, n0, n1, n2, sums, face, want)
        for n in range(S - 1, -1, -1):
            for i in range(n0):
                for j in range(n1):
                    row, at = (i + h0) * plane + (j + h1) * pitch + LANES, (n * B + b) * grid + (i * n1 + j) * n2
                    for x in range(n2):
                        buf[row + x] = src[at + x]
            dress(e, b, 1, buf, 0, cs, plane, pitch, h0, h1, 0, n0, reach, step + n, n0, n1, n2, True)
            g[:] = 0
            for i in range(n0):
                for j in range(n1):
                    r = (j + h1) * pitch + LANES
                    if e.ints[0] == PERIODIC:
                        rows = (r + (i - 3) % n0 * plane, r + (i - 2) % n0 * plane, r + (i - 1) % n0 * plane,
                                r + i * plane, r + (i + 1) % n0 * plane, r + (i + 2) % n0 * plane,
                                r + (i + 3) % n0 * plane)
                    else:
                        up = plane if e.ints[0] == BOUNDED else plane - plane
                        r += (i + h0) * plane
                        rows = (r - 3 * up, r - 2 * up, r - up, r, r + up, r + 2 * up, r + 3 * up)
                    at = (i * n1 + j) * n2
                    scatter_row(one, buf, g, rows, side, l, at, grad, b * terms * grid + at, grid, n2, step + n, i, j)
            undress(e, b, bends, buf, g, plane, pitch, h0, h1, reach, step + n, n0, n1, n2, sums, face, want)
            for i in range(n0):
                for j in range(n1):
                    row, at = (i + h0) * plane + (j + h1) * pitch + LANES, (i * n1 + j) * n2
                    for x in range(n2):
                        l[at + x] += g[row + x]
            free(e, b, l, n0, n1, n2, sums, face, want)
        b = atomic_add(progress, 0, 1)
    restore_denormals(float_state)


class WideSegments:
    """What the segments of a march share: like `_adjoint._Segments`, for wide rules."""

    def __init__(self, rule, back, u, edges, slopes, step, want, threads):
        self.forward, self.edges, self.first, self.threads, self.want = rule, edges, step, threads, bool(want)
        self.shape = space_of(u.shape)
        self.grid = u.shape[2:]
        B, _, n0, n1, n2 = self.shape
        self.face = max(n0 * n1, n0 * n2, n1 * n2)
        self.back = lowered(back, tuple(edges.ints[:3].tolist()), self.shape[2:], 0, edges.clock)
        self.terms = type(back).grads
        self.grads = np.zeros((B, max(self.terms, 1), *self.grid), u.dtype)
        self.walls = np.zeros((B, 1, 6, TERMS, self.face), u.dtype)
        self.slopes = np.zeros(6, np.int64) if slopes is None else np.asarray(slopes, np.int64)

    def advance(self, state, at, steps):
        """The state so many steps later."""
        return march(self.forward, state, self.edges, steps, step=self.first + at, threads=self.threads)

    def reverse(self, start, more, at, lengths, cot):
        """Back from the state after `at` steps and those in `more`, by as many steps as `lengths` say."""
        begins, cot = [at, *(at + np.cumsum(lengths)[:-1])], cot.copy()
        for state, begin, steps in reversed(list(zip([start, *more], begins, lengths, strict=True))):
            states = np.empty((steps, *start.shape), start.dtype)
            for n, now in enumerate(states):
                march(self.forward, states[n - 1] if n else state, self.edges, min(n, 1), out=now,
                      step=self.first + int(begin) + max(n - 1, 0), threads=self.threads)
            self._back(states, cot, self.first + int(begin))
        return cot

    def _back(self, states, cot, step):
        reach, (B, _, n0, n1, n2) = REACH[type(self.back).near], self.shape
        kinds = self.edges.ints[:3]
        rows = n1 + (2 * reach if kinds[1] != ABSENT else 0)
        planes = n0 + (2 * reach if kinds[0] == BOUNDED else 0)
        size = 2 * (planes * rows * ((LANES + n2 + reach + LANES - 1) // LANES * LANES) + LANES)
        counter, shape = np.zeros(1, np.int64), (B, self.grads.shape[1], n0, n1, n2)
        arrays = states.reshape(-1), cot.reshape(-1), self.grads.reshape(-1), self.walls.reshape(-1)

        def task():
            run_wide_back(self.back, self.edges, self.slopes, shape, *arrays, self.want, self.face,
                          np.zeros(size, cot.dtype), counter, reach, len(states), step)

        together(task, min(self.threads, B))

    def result(self, cot):
        """All gradients, in the shapes of users."""
        ndim = len(self.grid)
        axes = [2 * a + end for a in _AXES[ndim] for end in (0, 1)]
        walls = self.walls[:, :, axes].reshape(len(cot), 1, ndim, 2, TERMS, self.face)
        return Adjoint(cot, self.grads[:, : self.terms], walls)


__all__ = ["WideSegments", "back_fourth", "back_weighted"]
