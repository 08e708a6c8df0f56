"""Adjoint of linear marches: the gradients of forward Euler's result, step by step backwards.

    forward    u' = u + sum over the neighbours j of  w_j (u_j - u) + decay u + source
    backward   l = l' + sum over j of  t_j l'_j - (sum of w_j - decay) l',    t_j the weight that neighbour j has for us

and the gradients by the numbers of a step, summed over all steps n with the states u^n of the forward march:

    by w_j     l' (u_j - u)          by the rate r of an axis     l' (u_- - 2 u + u_+)
    by a face between two cells i, j, where both have the same weight:  (l'_i - l'_j) (u_j - u_i)
    by decay   l' u                  by the source                l'

It is the exact transpose of the steps as they are computed: <v, J u> = <J^T v, u> to rounding. Boundaries are
transposed as they are applied (`_adjoint.py`), with the gradients by their numbers.

Three families of coefficients: `rates`, one number an axis (kernels/heat.py); `faces` and `cells`, numbers of every
face or cell (kernels/variable.py).

Shapes: u and cot (B, 1, *grid), start and gradient of the result; rate (B, ndim) or weights (2 ndim, B or 1, *grid).
Results: gradient by u; sums (B, terms, *grid), axes or neighbours in turn, then decay and source; the walls' sums.
Source: Griewank and Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, sections 3.2 and 12.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from fastdiff.kernels import heat, variable
from fastdiff.kernels._adjoint import TERMS, march_adjoint, pull_rows
from fastdiff.kernels._contract import Kernel
from fastdiff.kernels._edges import _SPACE, ABSENT, GHOST, HEAD, HOLD, ITEMS, PERIODIC, Side, hold, make_edges, pad
from fastdiff.kernels._fields import Cells, here, lowered, next0, next1, next2
from fastdiff.kernels._jit import inner
from fastdiff.kernels._march import sample_of
from fastdiff.kernels._run import march
from fastdiff.kernels._stages import sides_of, spread, staged

_LETTERS = {1: "2", 2: "02", 3: "012"}

# -- the reference -----------------------------------------------------------------------------------------------------


def unpad(padded, edges):
    """The transpose of `pad` by the field: what fell on ghosts goes to the cells they are made of (reference)."""
    ndim, inside = padded.ndim - 2, [slice(1, -1)] * (padded.ndim - 2)
    out = padded[(slice(None), slice(None), *inside)].copy()
    for axis in range(ndim):
        internal = _SPACE[ndim][axis]
        for c in range(padded.shape[1]):
            for end in range(2):
                where = inside.copy()
                where[axis] = -1 if end else 0
                fell = padded[(slice(None), c, *where)]
                n = out.shape[axis + 2]
                spot = lambda i, c=c, axis=axis: (slice(None), c, *[slice(None)] * axis, i)
                if edges.ints[internal] == PERIODIC:
                    out[spot(0 if end else n - 1)] += fell
                    continue
                k = HEAD + (c * 6 + 2 * internal + end) * ITEMS
                samples = edges.ints[k + 6] + edges.ints[k + 7] * np.arange(len(padded)).reshape(-1, *[1] * (ndim - 1))
                if edges.ints[k] == GHOST:
                    out[spot(n - 1 if end else 0)] += edges.reals[samples].astype(np.float64) * fell
                    out[spot(max(n - 2, 0) if end else min(1, n - 1))] += edges.reals[samples + 1] * fell
    return out


def release(l, edges, into):
    """The transpose of `hold` by the field, in place; what was held is added to `into` (B, C, axes, 2, face)."""
    ndim = l.ndim - 2
    for axis in range(ndim):
        for c in range(l.shape[1]):
            for end in range(2):
                if edges.ints[HEAD + (c * 6 + 2 * _SPACE[ndim][axis] + end) * ITEMS] == HOLD:
                    where = (slice(None), c, *[slice(None)] * axis, -end)
                    line = l[where].reshape(len(l), -1)
                    into[:, c, axis, end, : line.shape[1]] += line
                    l[where] = 0
    return l


def _around(p, l, ndim, periodic):
    """For each neighbour, low and high of each axis: u there, less u; and l there, 0 beyond walls."""
    inside = (slice(None), slice(None), *[slice(1, -1)] * ndim)
    lp = np.pad(l, [(0, 0), (0, 0)] + [(1, 1)] * ndim)
    for axis in range(ndim):
        if periodic[axis]:
            ends = [slice(None)] * lp.ndim, [slice(None)] * lp.ndim
            ends[0][axis + 2], ends[1][axis + 2] = 0, -1  # type: ignore[call-overload]
            lp[tuple(ends[0])] = np.take(lp, -2, axis + 2)
            lp[tuple(ends[1])] = np.take(lp, 1, axis + 2)
    shifts = [(1 if k % 2 == 0 else -1, 2 + k // 2) for k in range(2 * ndim)]
    return [np.roll(p, *s)[inside] - p[inside] for s in shifts], [np.roll(lp, *s)[inside] for s in shifts]


def reference(u, cot, weights, edges, steps, family, decay=None, source=None, out=None):
    """The same in plain NumPy, float64; every state is kept."""
    ndim, B = u.ndim - 2, len(u)
    w = np.asarray(weights, np.float64)
    w = w[:, None] if family != "rates" else np.repeat(w.T, 2, 0).reshape(2 * ndim, B, *[1] * (ndim + 1))
    inside = (slice(None), slice(None), *[slice(1, -1)] * ndim)
    periodic = [edges.ints[a] == PERIODIC for a in _SPACE[ndim]]
    states, v = [], hold(np.array(u, np.float64), edges, 0)
    for n in range(steps):
        states.append((v, pad(v, edges, n)))
        near, _ = _around(states[-1][1], v, ndim, periodic)
        change = sum(a * b for a, b in zip(w, near))
        change = change + (0 if decay is None else decay[:, None] * v) + (0 if source is None else source[:, None])
        v = hold(v + change, edges, n + 1)
    sums = np.zeros((B, _count(family, ndim) + (decay is not None) + (source is not None), *u.shape[2:]))
    walls = np.zeros((B, 1, ndim, 2, TERMS, _face(u.shape[2:])))
    l = release(np.array(cot, np.float64), edges, walls[..., 3, :])
    for n in reversed(range(steps)):
        v, p = states[n]
        near, beside = _around(p, l, ndim, periodic)
        _collect(sums, family, l, near, beside, v, decay, source)
        fell = np.zeros_like(p)
        for k in range(2 * ndim):
            step = [slice(1, -1)] * ndim
            step[k // 2] = slice(2, None) if k % 2 else slice(0, -2)
            fell[(slice(None), slice(None), *step)] += w[k] * l
            fell[inside] -= w[k] * l
        _at_walls(walls, fell, l, p, edges, n)
        l = release(l + unpad(fell, edges) + (0 if decay is None else decay[:, None] * l), edges, walls[..., 3, :])
    return _filled(out, (l, sums, walls))


def _collect(sums, family, l, near, beside, v, decay, source):
    """Add a step's gradients by the coefficients."""
    if family == "rates":
        terms = [l * (a + b) for a, b in zip(near[::2], near[1::2])]
    elif family == "faces":
        terms = [(l - other) * d for d, other in zip(near[::2], beside[::2])]
    else:
        terms = [l * d for d in near]
    terms += [*([] if decay is None else [l * v]), *([] if source is None else [l])]
    sums += np.concatenate(terms, 1)


def _at_walls(walls, fell, l, p, edges, n):
    """Add a step's gradients by the numbers of the ghosts."""
    from fastdiff.kernels._edges import _face_values

    ndim = l.ndim - 2
    u = p[(slice(None), slice(None), *[slice(1, -1)] * ndim)]
    for axis in range(ndim):
        internal = _SPACE[ndim][axis]
        for end in range(2):
            if edges.ints[internal] == PERIODIC or edges.ints[HEAD + (2 * internal + end) * ITEMS] != GHOST:
                continue
            where = [slice(1, -1)] * ndim
            where[axis] = -1 if end else 0
            m = u.shape[axis + 2]
            deep = max(m - 2, 0) if end else min(1, m - 1)
            first, second = u[:, 0].take(-end, axis + 1), u[:, 0].take(deep, axis + 1)
            cot, ghost = fell[(slice(None), 0, *where)], p[(slice(None), 0, *where)]
            g = np.broadcast_to(_face_values(u, edges, 0, axis, end, n), first.shape)
            terms = [cot * first, cot * second, cot * g, cot, l[:, 0].take(-end, axis + 1) * (ghost - first)]
            for k, term in enumerate(terms):
                walls[:, 0, axis, end, k, : term[0].size] += term.reshape(len(u), -1)


def _face(grid):
    space = {1: (1, 1, *grid), 2: (grid[0], 1, grid[-1]), 3: grid}[len(grid)]
    return max(space[0] * space[1], space[0] * space[2], space[1] * space[2])


def _count(family, ndim):
    return 2 * ndim if family == "cells" else ndim


def _filled(out, made):
    if out is None:
        return tuple(made)
    for place, part in zip(out, made, strict=True):
        place[...] = part
    return out


# -- back rules --------------------------------------------------------------------------------------------------------

RATES, FACES, CELLS = "rates", "faces", "cells"


def _class(family, ndim, weights, decay, source):
    """The back rule of a family on `ndim` axes; which gradients it sums up is part of it."""
    letters = _LETTERS[ndim]
    near = [f"{s}{a}" for a in letters for s in "mp"]
    if family == RATES:
        fields = [f"r{a}" for a in letters] + ["two"]
        new = [f"p.r{a} * ((l.m{a} + l.p{a}) - p.two * l.c)" for a in letters]
        sums = [f"l.c * ((u.m{a} + u.p{a}) - p.two * u.c)" for a in letters]
        fall = {f"{s}{a}": f"p.r{a} * l.c" for a in letters for s in "mp"}
    elif family == FACES:
        fields = [f"a{a}" for a in letters]
        new = [f"(here(p.a{a}, at) * (l.m{a} - l.c) + next{a}(p.a{a}, at) * (l.p{a} - l.c))" for a in letters]
        sums = [f"(l.c - l.m{a}) * (u.m{a} - u.c)" for a in letters]
        fall = {f"{s}{a}": f"{'here' if s == 'm' else f'next{a}'}(p.a{a}, at) * l.c" for a in letters for s in "mp"}
    else:
        fields = [f"w{k}" for k in near] + [f"t{k}" for k in near] + ["rest"]
        new = [f"here(p.t{k}, at) * (l.{k} - l.c)" for k in near] + ["here(p.rest, at) * l.c"]
        sums = [f"l.c * (u.{k} - u.c)" for k in near]
        fall = {k: f"here(p.w{k}, at) * l.c" for k in near}
    if decay and family != CELLS:
        fields.append("decay")
        new.append("here(p.decay, at) * l.c")
    sums = (sums if weights else []) + (["l.c * u.c"] if decay == 2 else []) + (["l.c"] if source else [])
    falls = [fall.get(k, "l.c - l.c") for k in ("m0", "p0", "m1", "p1", "m2", "p2")]
    scope: dict[str, Any] = {"here": here, "next0": next0, "next1": next1, "next2": next2}
    for method, results in (("pull", [" + ".join(new), *sums]), ("edge", [*falls, "l.c"])):
        lines = [f"def {method}(p, u, l, at):", "u, l = u[0], l[0]", f"return ({', '.join(results)},)"]
        exec("\n    ".join(lines), scope)
    name = f"{family.capitalize()}Back{ndim}D_{weights:d}{decay}{source:d}"
    base = NamedTuple(name, [(f, Any) for f in fields])
    return type(name, (base,), {"components": 1, "grads": len(sums), "pull": staticmethod(scope["pull"]),
                                "edge": staticmethod(scope["edge"]), "__module__": __name__, "__slots__": (),
                                "__doc__": f"Transposed step with {family} on {ndim} axes."})


_CLASSES: dict[tuple, Any] = {}


def _class_of(family, ndim, weights, decay, source):
    """The class, made once; decay 0: there is none, 1: there is one, 2: with its gradient."""
    key = family, ndim, bool(weights), int(decay), bool(source)
    if key not in _CLASSES:
        _CLASSES[key] = _class(*key)
        globals()[_CLASSES[key].__qualname__] = _CLASSES[key]
    return _CLASSES[key]


def __getattr__(name):
    """Classes that Numba's cache looks for by name."""
    family, found, rest = name.partition("Back")
    if found and family.lower() in (RATES, FACES, CELLS) and len(rest) == 6 and rest[:1] in "123":
        return _class_of(family.lower(), int(rest[0]), rest[3] == "1", int(rest[4]), rest[5] == "1")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def back_rates(rate, dtype, *, weights=True, source=False):
    """The back rule of kernels/heat.py for rates (B, ndim)."""
    rate = np.ascontiguousarray(np.asarray(rate, dtype).T)
    return _class_of(RATES, len(rate), weights, 0, source)(*rate, np.dtype(dtype).type(2))


def back_faces(faces, dtype, decay=None, *, sums=True, by_decay=False, source=False):
    """The back rule of kernels/variable.py for weights of faces, an axis each: (B or 1, *grid and one more there)."""
    cells = lambda w: Cells(w, len(faces), dtype)
    made = _class_of(FACES, len(faces), sums, 0 if decay is None else 1 + bool(by_decay), source)
    return made(*map(cells, faces), *([] if decay is None else [cells(decay)]))


def back_cells(weights, edges, dtype, decay=None, *, sums=True, by_decay=False, source=False):
    """The back rule of kernels/variable.py for weights (2 ndim, B or 1, *grid)."""
    ndim, periodic = len(weights) // 2, [edges.ints[a] == PERIODIC for a in _SPACE[len(weights) // 2]]
    cells, kind = lambda w: Cells(w, ndim, dtype), 0 if decay is None else 1 + bool(by_decay)
    across, rest = [], 0.0 if decay is None else np.asarray(decay, np.float64)
    for k in range(2 * ndim):
        axis, other = k // 2, np.asarray(weights[k ^ 1], np.float64)
        moved = np.roll(other, -1 if k & 1 else 1, axis + 1)
        if not periodic[axis]:
            where: list = [slice(None)] * moved.ndim
            where[axis + 1] = -1 if k & 1 else 0
            moved[tuple(where)] = 0
        across.append(moved)
        rest = rest + moved - np.asarray(weights[k], np.float64)
    made = _class_of(CELLS, ndim, sums, kind, source)
    return made(*map(cells, weights), *map(cells, across), cells(rest))


def back_numbers(weights, dtype, *, sums=True, source=False):
    """The back rule of kernels/variable.py for weights that are one number a sample, (2 ndim, B)."""
    w = [np.ascontiguousarray(v, dtype) for v in weights]
    made = _class_of(CELLS, len(w) // 2, sums, 0, source)
    return made(*w, *(w[k ^ 1] for k in range(len(w))), np.dtype(dtype).type(0))


# -- the kernels -------------------------------------------------------------------------------------------------------


def _rules(u, weights, edges, family, decay, source):
    dtype, fed = u.dtype, source is not None
    if family == RATES:
        rule, back = heat.rule(weights, dtype), back_rates(weights, dtype, source=fed)
        return (variable.Fed(rule, Cells(source, u.ndim - 2, dtype)) if fed else rule), back
    if family == FACES:
        back = back_faces(variable.shared_faces(weights), dtype, decay, by_decay=True, source=fed)
    else:
        back = back_cells(weights, edges, dtype, decay, by_decay=True, source=fed)
    return variable.rule(weights, dtype, decay, source), back


def cpu(u, cot, weights, edges, steps, family, decay=None, source=None, out=None, **how):
    """The transposed march; `how` as in `march_adjoint`."""
    rule, back = _rules(u, weights, edges, family, decay, source)
    found = march_adjoint(rule, back, u, cot, edges, steps, **how)
    return found if out is None else _filled(out, found)


def cuda(u, cot, weights, edges, steps, family, decay=None, source=None, out=None, stream=None, **how):
    """The transposed march on the GPU, from and to NumPy arrays; `how` as in `march_adjoint_cuda`."""
    from fastdiff.kernels import _cuda
    from fastdiff.kernels._adjoint_cuda import march_adjoint_cuda, to_host

    _cuda.require_device()
    rule, back = _rules(u, weights, edges, family, decay, source)
    there = [_cuda.toolkit().to_device(np.ascontiguousarray(a)) for a in (u, cot)]
    found = march_adjoint_cuda(rule, back, *there, edges, steps, stream=stream, **how)
    found = to_host(found, u.ndim - 2, type(back).grads)
    return found if out is None else _filled(out, found)


def _ptx(family, ndim, more):
    def launches(dtype):
        from fastdiff.kernels._adjoint_cuda import launches as made

        inputs = _sample(family, ndim, more)((4,) * ndim, dtype, np.random.default_rng(0))
        _, back = _rules(inputs["u"], inputs["weights"], inputs["edges"], family, inputs.get("decay"),
                         inputs.get("source"))
        return made(lowered(back, (ABSENT,) * 3, (4, 4, 4), 0), inputs["edges"], dtype)

    return launches


def transposed(weights, edges, dtype, decay=None):
    """(rule, sides) of the transpose by the start: weights and decay as in kernels/variable.py, with the walls in them.

    What falls on a ghost goes to the first two cells inside, and that is linear: alpha w is decay of the first cell,
    beta w a weight of the second. So the transpose is a march like any other, blocked in time, and keeps no state.
    Ghosts are 0 in it, and held cells are held at 0. Not for walls whose g depends on u.
    """
    ndim, samples = len(weights) // 2, int(edges.ints[6])
    w = np.asarray(weights, np.float64)
    w = np.repeat(w, samples, 1) if w.shape[1] < samples and _varies(edges, ndim) else w
    moved = np.stack([np.roll(w[k ^ 1], -1 if k & 1 else 1, k // 2 + 1) for k in range(2 * ndim)])
    rest, sides = np.zeros(w.shape[1:]) if decay is None else np.asarray(decay, np.float64) + np.zeros(w.shape[1:]), {}
    for k in range(2 * ndim):
        axis, end, n = k // 2, k & 1, w.shape[k // 2 + 2]
        spot = lambda i, axis=axis: (slice(None), *[slice(None)] * axis, i)
        first, second = spot(n - 1 if end else 0), spot(max(n - 2, 0) if end else min(1, n - 1))
        at = HEAD + (2 * _SPACE[ndim][axis] + end) * ITEMS
        if edges.ints[_SPACE[ndim][axis]] == PERIODIC:
            continue
        moved[k][first] = 0  # beyond the wall nobody has a weight for us
        if edges.ints[at] == HOLD:
            sides[0, axis, end] = Side(HOLD, value=0.0)
            continue
        sides[0, axis, end] = Side(alpha=0.0)
        places = edges.ints[at + 6] + edges.ints[at + 7] * np.arange(w.shape[1]).reshape(-1, *[1] * (ndim - 1))
        alpha, beta = (edges.reals[places + j].astype(np.float64) for j in range(2))
        rest[first] += alpha * w[k][first]
        if n == 1:
            rest[first] += beta * w[k][first]
        elif np.any(beta):
            moved[k][second] += beta * w[k][first]
    rest += moved.sum(0) - w.sum(0)
    return variable.rule(moved, dtype, rest if rest.any() else None), sides


def _varies(edges, ndim):
    """Whether any wall has coefficients of its own for each sample."""
    return any(edges.ints[HEAD + (2 * _SPACE[ndim][k // 2] + k % 2) * ITEMS + 7] for k in range(2 * ndim))


def _transposed_march(weights, cot, edges, decay, scheme):
    """The rule and the walls of `march_transposed`."""
    dtype, ndim = np.dtype(str(cot.dtype).removeprefix("torch.")), len(cot.shape) - 2
    rule, sides = transposed(weights, edges, dtype, decay)
    registers = 1 if scheme is None else scheme.registers
    periodic = [edges.ints[a] == PERIODIC for a in _SPACE[ndim]]
    if scheme is not None:
        sides = sides_of(sides, 1, registers, [k for k in range(ndim) if not periodic[k]])
        rule = staged(scheme, rule, dtype)
    return rule, make_edges(tuple(cot.shape[2:]), periodic, dtype, sides, components=registers, batch=cot.shape[0])


def march_transposed(weights, cot, edges, steps, decay=None, scheme=None, threads=None, out=None):
    """The gradient by the start (B, 1, *grid) of a linear march, from that by its result; `scheme` of an integrator."""
    rule, walls = _transposed_march(weights, cot, edges, decay, scheme)
    if scheme is None:
        return march(rule, cot, walls, steps, threads=threads, out=out)
    new = march(rule, spread(cot, scheme.registers), walls, steps * scheme.stages, threads=threads)
    return np.ascontiguousarray(new[:, :1])


def march_transposed_cuda(weights, cot, edges, steps, decay=None, scheme=None, stream=None):
    """The same for a device array, on the GPU."""
    from fastdiff.kernels._march_cuda import march_cuda
    from fastdiff.kernels._state_cuda import resize_cuda

    rule, walls = _transposed_march(weights, cot, edges, decay, scheme)
    if scheme is None:
        return march_cuda(rule, cot, walls, steps, stream=stream)
    wide = resize_cuda(cot, scheme.registers, stream)
    return resize_cuda(march_cuda(rule, wide, walls, steps * scheme.stages, stream=stream), 1, stream)


def _outputs(u, cot, weights, edges, steps, family, decay=None, source=None):
    ndim = u.ndim - 2
    terms = _count(family, ndim) + (decay is not None) + (source is not None)
    walls = np.empty((len(u), 1, ndim, 2, TERMS, _face(u.shape[2:])), u.dtype)
    return u, np.empty((len(u), terms, *u.shape[2:]), u.dtype), walls


def _sample(family, ndim, more=()):
    """Two samples; the first of several axes periodic, walls of all kinds on the others."""

    def sample(shape, dtype, rng):
        walls = [Side(alpha=0.5, beta=0.2, gamma=0.25, value=1.5), Side(HOLD, value=0.3), Side(alpha=0.0, beta=1.0),
                 Side(alpha=-1.0, gamma=2.0, value=rng.random((1, 7, 1)))]
        sides = {(0, axis, end): walls[(2 * axis + end + ndim) % 4] for axis in range(ndim > 1, ndim) for end in (0, 1)}
        edges = make_edges(shape, [ndim > 1, *[False] * (ndim - 1)], dtype, sides, batch=2)
        if family == RATES:
            weights = rng.uniform(0.05, 0.2, (2, ndim))
        else:
            weights = rng.uniform(0.02, 0.98 / (2 * ndim), (2 * ndim, 1, *shape))
            for k in range(ndim if family == FACES else 0):
                weights[2 * k + 1] = np.roll(weights[2 * k], -1, k + 1)
        extra = {name: (rng.random((1, *shape)) * 0.1 * sign).astype(dtype) for name, sign in more}
        fields = {name: rng.random((2, 1, *shape)).astype(dtype) for name in ("u", "cot")}
        return dict(**fields, weights=weights.astype(dtype), edges=edges, steps=6, family=family, **extra)

    return sample


@inner
def _row(p, dst, lam, src, grad, at, step, other):
    """The hot loop and nothing else."""
    pull_rows(p, dst, at, lam, at, src, at, grad, at, at, at, step, at, at, at, at, step, step, step, step, step, other)


def _machine_code(family, ndim, more):
    def rows(dtype):
        inputs = _sample(family, ndim, more)((4,) * ndim, dtype, np.random.default_rng(0))
        _, back = _rules(inputs["u"], inputs["weights"], inputs["edges"], family, inputs.get("decay"),
                         inputs.get("source"))
        import numba

        made = sample_of(lowered(back, (2, 2, 2), (4, 4, 4), 0), 0)
        values = types.Array(types.float32 if dtype == np.float32 else types.float64, 1, "C")
        return [(_row, (numba.typeof(made), values, values, values, values, types.uint64, types.int64, types.uint64))]

    return rows


def _kernel(family, ndim, more=()):
    terms = _count(family, ndim) + len(more)
    name = f"adjoint_{family}_{ndim}d" + "".join(f"_{n}" for n, _ in more)
    return Kernel(name=name, reference=reference, cpu=cpu, cuda=cuda, ptx=_ptx(family, ndim, more),
                  sample=_sample(family, ndim, more), outputs=_outputs, ndim=ndim,
                  machine_code=_machine_code(family, ndim, more), order=(2, 1),
                  bytes_per_cell=5 + 2 * terms + (0 if family == RATES else ndim), flops_per_cell=12 * ndim + 4 * terms,
                  tolerance=16)


KERNELS = [
    *(_kernel(RATES, ndim) for ndim in (1, 2, 3)),
    *(_kernel(FACES, ndim) for ndim in (2, 3)),
    *(_kernel(CELLS, ndim) for ndim in (1, 3)),
    _kernel(CELLS, 2, (("decay", -1), ("source", 1))),
]
