"""The transposed march: from the gradient by a march's result to those by its start, coefficients and boundary values.

A forward step is hold(u + change(pad(u))): ghosts are set, a rule adds to every cell, held cells get their values. Its
transpose, with l the gradient by the new field,

    l = 0 where the field is held;   l_old = l + (d change / d u)^T l;   what falls on ghosts goes to u0, u1 and g

gathers: a cell reads its neighbours' l, whose ghosts are 0, so rows are vectors and no two threads write one cell. A
*back rule* is what `_march.py` calls a rule, for the transpose; its class has the counts `components` and `grads`, and

    pull(p, u, l, at)   what a step adds to l, one number a component, then what it adds to each of `grads` fields of
                        numbers a cell: gradients by coefficients, which are summed up at the very end
    edge(p, u, l, at)   for each component what falls on the six neighbours, m0, p0, m1, p1, m2, p2, and l itself

with u and l tuples of stars. States between are computed again: a few are kept (`Checkpoints`), and from each of
them a *segment* is marched with every state kept, then marched back. Segments run on all threads: rows are shared out
in chunks, and a chunk goes on when its neighbours have come as far: some levels at once, in trapezoids and then the
triangles between them, so that rows stay in cache. What is summed up belongs to one cell, level after level, so results
do not depend on the number of threads, nor on chunks.

Checkpoints after Griewank and Walther, "Algorithm 799: revolve", ACM Trans. Math. Softw. 26 (2000) 19: with c of them,
the start among them, and every block of steps marched at most r times, C(c + r, c) blocks can be reversed.
"""

from math import comb, isqrt
from typing import Any, NamedTuple

import numpy as np
from numba.extending import intrinsic

from fastdiff.kernels._edges import (
    _SPACE,
    ABSENT,
    BOUNDED,
    COEF,
    COEF_PER_SAMPLE,
    GHOST,
    HEAD,
    HOLD,
    ITEMS,
    PERIODIC,
    called_value,
    edge_value,
)
from fastdiff.kernels._fields import Cells, lowered
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
    tell_apart,
    wide_vectors,
)
from fastdiff.kernels._march import (
    BY_ROW,
    LANES,
    At,
    Star,
    components_of,
    copy_row,
    ends_vary,
    ghost_ends,
    ghost_row,
    hold_ends,
    hold_rows,
    holds_rows,
    kept_of,
    many_ends,
    map_fields,
    sample_of,
    set_ends,
    update_rows,
)
from fastdiff.kernels._part import overload_part
from fastdiff.kernels._run import SECOND, march, space_of
from fastdiff.kernels._stages import CHAIN, MOST_COMPONENTS, spread
from fastdiff.kernels._threads import default_threads, scratch, together
from fastdiff.kernels._wide import near_of

TERMS = 5  # sums at each wall cell: by u0, by u1, by g, of the ghost itself, and by the wall's weight
LINE = 8  # numbers in a cache line
DEPTH = 8  # levels of a block at most
PATIENCE = 100  # looks at the own chunks before helping with others

# -- back rules, by type ----------------------------------------------------------------------------------------------

_OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy", "forceinline": True}


def pull(p, u, l, at) -> Any:
    """What one transposed step adds to l, and to the gradients, in one cell."""
    return type(p).pull(p, u, l, at)


@overload_part(pull, **_OPTIONS)
def _pull(p, u, l, at):
    return p.instance_class.pull


def edge(p, u, l, at) -> Any:
    """What falls on the neighbours of one cell, and its own l."""
    return type(p).edge(p, u, l, at)


@overload_part(edge, **_OPTIONS)
def _edge(p, u, l, at):
    return p.instance_class.edge


def back(p, u, l, at) -> Any:
    """The new l of one cell and what is added to its gradients: the `back` of the class, or l and what `pull` adds."""
    if hasattr(type(p), "back"):
        return type(p).back(p, u, l, at)
    new = pull(p, u, l, at)
    return (*(l[c].c + new[c] for c in range(p.components)), *new[p.components :])


@overload_part(back, **_OPTIONS)
def _back(p, u, l, at):
    rule = p.instance_class
    if hasattr(rule, "back"):
        return rule.back
    terms = [f"l[{c}].c + new[{c}]" for c in range(rule.components)]
    terms += [f"new[{rule.components + k}]" for k in range(rule.grads)]
    scope: dict[str, Any] = {"pull": pull}
    exec(f"def euler(p, u, l, at):\n    new = pull(p, u, l, at)\n    return ({', '.join(terms)},)", scope)
    return scope["euler"]


@intrinsic
def restrict_grad(typingctx):
    """As `restrict_dst`, for the argument `grad`."""
    from llvmlite import ir

    def codegen(context, builder, sig, args):
        fields = [a for a in builder.function.args if a.name.startswith("arg.grad.")]
        [a for a in fields if isinstance(a.type, ir.PointerType)][-1].add_attribute("noalias")
        return context.get_dummy_value()

    from numba import types

    return types.none(), codegen


def pull_rows(p, dst, d, lam, l, src, s, grad, g, stride, along, rows, o0, o1, lo, hi, step, i0, i1, di0, di1, origin):
    """Rows of a transposed step: from `lam` at offset l to `dst` at d, the state in `src` at s, sums in `grad` at g.

    Neighbours across rows are `o0` and `o1` away, components `stride`; columns lo:hi are computed. From row to row
    offsets grow by `along`, indices by `di0` and `di1`.
    """
    raise NotImplementedError("compiled only")


def ghosts_of(p, lam, l, src, s, stride, o0, o1, step, i0, i1, i2):
    """`edge` of the cell at offset l in `lam` and s in `src`."""
    raise NotImplementedError("compiled only")


def _star(array, at, place):
    near = ("", " - o0", " + o0", " - o1", " + o1", " - one", " + one")
    return f"Star({', '.join(f'{array}[({at} + {place}{n})]' for n in near)})"


def _stars(rule, x=" + x"):
    """Texts of the tuples of stars of the state and of l."""
    u = ", ".join(_star("src", f"s{x}", f"k{c}") for c in range(rule.components))
    l = ", ".join(_star("lam", f"l{x}", f"k{c}") for c in range(rule.components * _registers(rule)))
    return f"({u},)", f"({l},)"


def _registers(rule):
    return getattr(rule, "registers", 1)


def _scope():
    return {"back": back, "edge": edge, "Star": Star, "At": At, "zero": np.uint64(0), "one": np.uint64(1),
            "keep_apart": keep_apart, "wide_vectors": wide_vectors, "restrict_dst": restrict_dst,
            "restrict_grad": restrict_grad}


@overload_part(pull_rows, fastmath=FASTMATH, error_model="numpy")
def _pull_rows(p, dst, d, lam, l, src, s, grad, g, stride, along, rows, o0, o1, lo, hi, step, i0, i1, di0, di1, origin):
    rule = p.instance_class
    count, (u, ls) = rule.components * _registers(rule), _stars(rule)
    lines = ["def row(p, dst, d, lam, l, src, s, grad, g, stride, along, rows, o0, o1, lo, hi, step, i0, i1, di0, di1,"
             " origin):",
             "    keep_apart()", "    wide_vectors()", "    restrict_dst()", "    restrict_grad()", "    k0 = zero",
             *(f"    k{k} = k{k - 1} + stride" for k in range(1, max(count, rule.grads))),
             "    for row in range(rows):",
             "        for x in range(lo, hi):",
             f"            new = back(p, {u}, {ls}, At(step, i0, i1, x + origin))",
             *(f"            dst[d + k{c} + x] = new[{c}]" for c in range(count)),
             *(f"            grad[g + k{k} + x] += new[{count + k}]" for k in range(rule.grads)),
             "        d, l, s, g, i0, i1 = d + along, l + along, s + along, g + along, i0 + di0, i1 + di1"]
    scope = _scope()
    exec("\n".join(lines), scope)
    return scope["row"]


@overload_part(ghosts_of, fastmath=FASTMATH, error_model="numpy")
def _ghosts_of(p, lam, l, src, s, stride, o0, o1, step, i0, i1, i2):
    rule = p.instance_class
    u, ls = _stars(rule, "")
    lines = ["def of(p, lam, l, src, s, stride, o0, o1, step, i0, i1, i2):", "    k0 = zero",
             *(f"    k{k} = k{k - 1} + stride" for k in range(1, rule.components * _registers(rule))),
             f"    return edge(p, {u}, {ls}, At(step, i0, i1, i2))"]
    scope = _scope()
    exec("\n".join(lines), scope)
    return scope["of"]


# -- rules around rules: the stages of an integrator (kernels/_stages.py), transposed ----------------------------------

_CHAIN = """
s{c} = l[{s}].{n} + (l[{c}].{n} if last else p.zero)
k{c} = b * s{c} + (p.zero if last else a * l[{c}].{n})
"""
_LEGENDRE = """
k{c} = rate * l[{c}].{n} + (l[{m}].{n} + drag * l[{c}].{n} if first else p.zero)
"""
_NEAR = ("c", "m0", "p0", "m1", "p1", "m2", "p2")


def _slopes(kind, C):
    """Lines that make the stars of the gradient by a stage's slope, k."""
    place = {"z": 1, "s": 2} if kind == CHAIN else {"q": 1, "z": 2, "m": 3}
    lines = []
    for c in range(C):
        for n in _NEAR:
            text = (_CHAIN if kind == CHAIN else _LEGENDRE).strip()
            text = text.format(c=c, n=n, **{r: c + C * k for r, k in place.items()})
            lines += [line.replace(f"k{c} =", f"k{c}_{n} =") for line in text.splitlines()]
        lines.append(f"k{c} = Star({', '.join(f'k{c}_{n}' for n in _NEAR)})")
    return lines, f"({', '.join(f'k{c}' for c in range(C))},)"


def _staged_back(kind, C):
    """Lines of the new registers, from `new`, what the slope's transpose gives."""
    lines, registers = [], ("y", "z", "s") if kind == CHAIN else ("y", "q", "z", "m")
    for c in range(C):
        y = f"l[{c}].c"
        if kind == CHAIN:
            z, s = f"l[{c + C}].c", f"l[{c + 2 * C}].c"
            lines += [f"z{c} = {z} + {y}", f"s{c} = {s} + ({y} if last else p.zero)",
                      f"y{c} = new[{c}] + (z{c} if first else p.zero)", f"z{c} = p.zero if first else z{c}",
                      f"s{c} = p.zero if first else s{c}"]
        else:
            q, z, m = (f"l[{c + k * C}].c" for k in (1, 2, 3))
            lines += [f"q{c} = nu * {y}", f"z{c} = {z} + ({y} - (mu * {y} + nu * {y}))", f"m{c} = {m} + drag * {y}",
                      f"y{c} = new[{c}] + (mu * {y} + {q}) + (z{c} + q{c} if first else p.zero)",
                      *(f"{r}{c} = p.zero if first else {r}{c}" for r in "qzm")]
    return lines, [f"{r}{c}" for r in registers for c in range(C)]


def _tables(kind):
    return ("a", "b", "last") if kind == CHAIN else ("mu", "nu", "rate", "drag")


def _staged_class(kind, C, grads):
    tables, (slopes, ks), (lines, out) = _tables(kind), _slopes(kind, C), _staged_back(kind, C)
    reads = [f"stage = at.step % len(p.{tables[0]})", "first = stage == 0",
             *("last = p.last[stage] > p.zero" if t == "last" else f"{t} = p.{t}[stage]" for t in tables)]
    out = [*out, *(f"new[{C + k}]" for k in range(grads))]
    scope: dict[str, Any] = {"pull": pull, "edge": edge, "Star": Star}
    exec("\n    ".join(["def back(p, u, l, at):", *reads, *slopes, f"new = pull(p.rule, u, {ks}, at)", *lines,
                        f"return ({', '.join(out)},)"]), scope)
    exec("\n    ".join(["def edge_of(p, u, l, at):", *reads, *slopes, f"return edge(p.rule, u, {ks}, at)"]), scope)
    name = f"{kind}Back{C}_{grads}"
    base = NamedTuple(name, [(f, Any) for f in ("rule", *tables, "zero")])
    return type(name, (base,), {"components": C, "grads": grads, "registers": 3 if kind == CHAIN else 4,
                                "back": staticmethod(scope["back"]), "edge": staticmethod(scope["edge_of"]),
                                "__module__": __name__, "__slots__": (), "__doc__": f"{kind}, transposed."})


_MOST_GRADS = 16  # of a rule in stages
_STAGED: dict[tuple, Any] = {}


def __getattr__(name):
    """The classes of stages, made when they are asked for (Numba's cache looks them up by name)."""
    kind, found, rest = name.partition("Back")
    C, _, grads = rest.partition("_")
    if found and kind in ("Chain", "Legendre") and C.isdigit() and grads.isdigit():
        key = kind, int(C), int(grads)
        if key not in _STAGED:
            _STAGED[key] = _staged_class(*key)
        return _STAGED[key]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def staged_back(scheme, rule, dtype):
    """The back rule of one stage of a scheme (kernels/_stages.py) around a back rule."""
    if scheme.watched or rule.components > MOST_COMPONENTS:
        raise ValueError(f"stages with an error estimate, or of more than {MOST_COMPONENTS} components, are not "
                         "transposed")
    number = np.dtype(dtype).type
    tables = [np.array([scheme.tables[name]], number) for name in _tables(scheme.kind)]
    return __getattr__(f"{scheme.kind}Back{rule.components}_{rule.grads}")(rule, *tables, number(0))


# -- one segment -------------------------------------------------------------------------------------------------------


class Space(NamedTuple):
    """How an array with ghosts lies in memory; all whole numbers."""

    n0: Any  # the grid
    n1: Any
    n2: Any
    g0: Any  # ghosts along axes 0 and 1
    g1: Any
    pitch: Any  # from row to row
    plane: Any  # from plane to plane
    stride: Any  # from component to component
    floor: Any  # from state to state
    face: Any  # room for the sums of one side and term


def space_for(shape, kinds, components) -> Space:
    """The layout for a grid (n0, n1, n2)."""
    n0, n1, n2 = shape
    g0, g1 = int(kinds[0] != ABSENT), int(kinds[1] != ABSENT)
    pitch = (n2 + 1 + LANES) // LANES * LANES + LANES
    plane = (n1 + 2 * g1) * pitch
    stride = (n0 + 2 * g0) * plane + LANES
    return Space(n0, n1, n2, g0, g1, pitch, plane, stride, components * stride, max(n0 * n1, n0 * n2, n1 * n2))


@inner
def finish_planes(e, b, C, buf, base, s, z0, z1, level, ends, held, vary):
    """Held cells and ghosts of planes z0:z1 at a time level."""
    keep_apart()
    none, left, right, wrap = z0 - z0, z0 - z0 + LANES, LANES + s.n2, e.ints[2] == PERIODIC
    set_ends(e, b, C, ends, none, level, none, none, s.n1, s.n2)
    if vary != BY_ROW:
        for z in range(z0, z0 + 1 if s.n1 == 1 else z1):
            row = base + (z + s.g0) * s.plane + s.g1 * s.pitch
            along, rows = (s.plane, z1 - z0) if s.n1 == 1 else (s.pitch, s.n1)
            many_ends(ends, none, C, buf, row, s.stride, along, rows, left, right, not wrap, not wrap, wrap, True, s.n2)
    if held or vary == BY_ROW:
        for z in range(z0, z1):
            for y in range(s.n1):
                row = base + (z + s.g0) * s.plane + (y + s.g1) * s.pitch
                if vary == BY_ROW:
                    set_ends(e, b, C, ends, none, level, z, y, s.n1, s.n2)
                    hold_ends(ends, none, C, buf, row, s.stride, left, right, True, True)
                if held:
                    hold_rows(e, b, C, buf, row, s.stride, left, right, level, z, y, none - LANES, s.n0, s.n1, s.n2)
                if vary == BY_ROW:
                    ghost_ends(e, b, ends, none, C, buf, row, s.stride, left, right, True, True, level, z, y, s.n1,
                               s.n2)
    images(e, C, buf, base, s, z0, z1)
    if e.ints[1] == BOUNDED:
        ghost_lines(e, b, C, buf, base, s, z0, z1, level)
    if e.ints[0] == BOUNDED:
        ghost_planes(e, b, C, buf, base, s, z0, z1, level)


@inner
def ghost_lines(e, b, C, buf, base, s, z0, z1, level):
    """The ghosts of planes z0:z1 beyond axis 1."""
    keep_apart()
    none, deep = z0 - z0, min(z0 - z0 + 1, s.n1 - 1)
    for c in range(C):
        for end in range(2):
            if e.ints[HEAD + (c * 6 + 2 + end) * ITEMS] == GHOST:
                y, away = end * (s.n1 - 1), 2 * end - 1
                for z in range(z0, z1):
                    o = base + c * s.stride + (z + s.g0) * s.plane + (y + s.g1) * s.pitch
                    ghost_row(e, b, c, none + 2 + end, buf, o + away * s.pitch, o, o - away * deep * s.pitch,
                              none + LANES, LANES + s.n2, level, z, y, none - LANES, z * s.n2, s.n2)


@inner
def ghost_planes(e, b, C, buf, base, s, z0, z1, level):
    """The ghosts beyond axis 0, if planes z0:z1 hold one of the two that they are made of, the first and second."""
    keep_apart()
    none, deep = z0 - z0, min(z0 - z0 + 1, s.n0 - 1)
    for c in range(C):
        for end in range(2):
            z, away = end * (s.n0 - 1), 2 * end - 1
            if (z0 <= z < z1 or z0 <= z - away * deep < z1) and e.ints[HEAD + (c * 6 + end) * ITEMS] == GHOST:
                for y in range(s.n1):
                    o = base + c * s.stride + (z + s.g0) * s.plane + (y + s.g1) * s.pitch
                    ghost_row(e, b, c, none + end, buf, o + away * s.plane, o, o - away * deep * s.plane, none + LANES,
                              LANES + s.n2, level, z, y, none - LANES, y * s.n2, s.n2)


@inner
def images(e, C, buf, base, s, z0, z1):
    """The periodic images of planes z0:z1."""
    keep_apart()
    left, right = LANES, LANES + s.n2
    for c in range(C):
        for z in range(z0, z1):
            plane = base + c * s.stride + (z + s.g0) * s.plane
            if e.ints[2] == PERIODIC:
                for y in range(s.n1):
                    row = plane + (y + s.g1) * s.pitch
                    buf[row + left - 1], buf[row + right] = buf[row + right - 1], buf[row + left]
            if e.ints[1] == PERIODIC:
                for x in range(left, right):
                    buf[plane + x] = buf[plane + s.n1 * s.pitch + x]
                    buf[plane + (s.n1 + 1) * s.pitch + x] = buf[plane + s.pitch + x]
            if e.ints[0] == PERIODIC and (z == 0 or z == s.n0 - 1):
                for end in range(2):
                    if z == end * (s.n0 - 1):
                        to = base + c * s.stride + (1 - end) * (s.n0 + 1) * s.plane
                        for y in range(s.n1):
                            o = (y + s.g1) * s.pitch
                            for x in range(left, right):
                                buf[to + o + x] = buf[plane + o + x]


@inner
def mask_planes(e, b, C, users, buf, base, s, z0, z1, walls, want):
    """Held cells of l: it goes to the held value's sum, and is 0 from there on. Ghosts are 0."""
    keep_apart()
    for c in range(C):
        if e.ints[2] == BOUNDED:
            for z in range(z0, z1):
                for y in range(s.n1):
                    buf[base + c * s.stride + (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES + s.n2] = 0
        for side in range(6):
            if e.ints[side >> 1] != BOUNDED or e.ints[HEAD + (c * 6 + side) * ITEMS] != HOLD:
                continue
            a0, a1, b0, b1, c0, c1 = face_of(side, s, z0, z1)
            sums = (((b * users + c) * 6 + side) * TERMS + 3) * s.face
            for z in range(a0, a1):
                for y in range(b0, b1):
                    row = base + c * s.stride + (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES
                    for x in range(c0, c1):
                        if want and c < users:
                            walls[sums + face_place(side, s, z, y, x)] += buf[row + x]
                        buf[row + x] = 0


@inner
def face_of(side, s, z0, z1):
    """The cells beside a side that lie in planes z0:z1, as ranges along the three axes."""
    a0, a1, b0, b1, c0, c1 = z0, z1, z0 - z0, s.n1, z0 - z0, s.n2
    if side == 0:
        a1 = min(z1, z0 - z0 + 1)
    elif side == 1:
        a0 = max(z0, s.n0 - 1)
    elif side == 2:
        b1 = b0 + 1
    elif side == 3:
        b0 = s.n1 - 1
    elif side == 4:
        c1 = c0 + 1
    else:
        c0 = s.n2 - 1
    return a0, a1, b0, b1, c0, c1


@inner
def face_place(side, s, z, y, x):
    """The number of a cell of a face."""
    return y * s.n2 + x if side < 2 else (z * s.n2 + x if side < 4 else z * s.n1 + y)


@inner
def fold(q, e, slopes, b, C, lam, old, new, src, state, s, z0, z1, step, walls, want):
    """What falls on ghosts, as far as it goes to planes z0:z1: to the first and second cell inside, and to sums."""
    none, deep = z0 - z0, min(z0 - z0 + 1, s.n0 - 1)
    for c in range(C):
        for side in range(6):
            if e.ints[side >> 1] != BOUNDED or e.ints[HEAD + (c * 6 + side) * ITEMS] != GHOST:
                continue
            if side > 1:
                fold_side(q, e, slopes, b, C, c, side, lam, old, new, src, state, s, z0, z1, step, walls, want, True,
                          True)
                continue
            first = (s.n0 - 1) * side
            second = s.n0 - 1 - deep if side else none + deep
            own, inside = z0 <= first < z1, z0 <= second < z1
            if own or inside:
                fold_side(q, e, slopes, b, C, c, side, lam, old, new, src, state, s, first, first + 1, step, walls,
                          want, own, inside)


@inner
def fold_side(q, e, slopes, b, C, c, side, lam, old, new, src, state, s, z0, z1, step, walls, want, own_too,
              inside_too):
    """`fold` for planes z0:z1 of one side: what goes to the cells themselves, and to those further inside."""
    keep_apart()
    o0, o1, stride = np.uint64(s.g0 * s.plane), np.uint64(s.g1 * s.pitch), np.uint64(s.stride)
    k = HEAD + (c * 6 + side) * ITEMS
    at = e.ints[k + COEF] + e.ints[k + COEF_PER_SAMPLE] * b
    alpha, beta, gamma = e.reals[at], e.reals[at + 1], e.reals[at + 2]
    apart = s.plane if side < 2 else (s.pitch if side < 4 else s.pitch - s.pitch + 1)
    n = s.n0 if side < 2 else (s.n1 if side < 4 else s.n2)
    out = apart * (2 * (side & 1) - 1)
    inside = -out * min(side - side + 1, n - 1)
    a0, a1, b0, b1, c0, c1 = face_of(side, s, z0, z1)
    sums = ((b * C + c) * 6 + side) * TERMS * s.face
    bends = slopes[c * 6 + side]
    for z in range(a0, a1):
        for y in range(b0, b1):
            row = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES
            for x in range(c0, c1):
                found = ghosts_of(q, lam, np.uint64(old + row + x), src, np.uint64(state + row + x), stride, o0, o1,
                                  step, z, y, x)
                cot = found[c * 7 + side]
                own = row + c * s.stride + x
                to0, to1 = alpha * cot, beta * cot
                u0, u1 = src[state + own], src[state + own + inside]
                if bends != 0:
                    bent = gamma * cot * called_value(e, bends, side, step, z, y, x, u0, u1)
                    to0, to1 = to0 + e.reals[1] * bent, to1 + e.reals[2] * bent
                if own_too:
                    lam[new + own] += to0
                if inside_too:
                    lam[new + own + inside] += to1
                if want and own_too:
                    place = face_place(side, s, z, y, x)
                    g = edge_value(e, b, c, side, step, z, y, x, place, u0, u1)
                    o = sums + place
                    walls[o] += cot * u0
                    walls[o + s.face] += cot * u1
                    walls[o + 2 * s.face] += cot * g
                    walls[o + 3 * s.face] += cot
                    walls[o + 4 * s.face] += found[c * 7 + 6] * (src[state + own + out] - u0)


@inner
def carry_rows(buf, s, old, new, rows, along):
    """Copy rows of what a rule keeps at the cell: it is changed where it lies."""
    for r in range(rows):
        here, there = np.uint64(old + r * along), np.uint64(new + r * along)
        for x in range(np.uint64(LANES), np.uint64(LANES + s.n2)):
            buf[there + x] = buf[here + x]


@inner
def forward_planes(p, buf, s, z0, z1, old, new, step):
    """Planes z0:z1 of one forward step, from the state at `old` to that at `new`, without what walls do."""
    keep_apart()
    lo, hi = np.uint64(LANES), np.uint64((LANES + s.n2 + LANES - 1) // LANES * LANES)
    o0, o1, stride, none = s.g0 * s.plane, s.g1 * s.pitch, np.uint64(s.stride), z0 - z0
    flat = s.n1 == 1
    along, rows = (s.plane, z1 - z0) if flat else (s.pitch, s.n1)
    near = s.floor // s.stride - kept_of(p)
    for z in range(z0, z0 + 1 if flat else z1):
        row = (z + s.g0) * s.plane + s.g1 * s.pitch
        o = old + row
        for c in range(near, s.floor // s.stride):
            carry_rows(buf, s, old + c * s.stride + row, new + c * s.stride + row, rows, along)
        update_rows(p, buf, np.uint64(new + row), stride, np.uint64(along), buf, np.uint64(o), np.uint64(o - o0),
                    np.uint64(o + o0), np.uint64(o - o1), np.uint64(o + o1), stride, np.uint64(along), buf,
                    np.uint64(new + near * s.stride + row), stride, rows, lo, hi, step, z, none, none + flat,
                    none + 1 - flat, np.uint64(0) - lo)


@inner
def backward_planes(q, lam, old, new, src, state, grad, sums, s, z0, z1, step):
    """Planes z0:z1 of one transposed step, without what walls do."""
    keep_apart()
    lo, hi = np.uint64(LANES), np.uint64((LANES + s.n2 + LANES - 1) // LANES * LANES)
    o0, o1, stride, none = np.uint64(s.g0 * s.plane), np.uint64(s.g1 * s.pitch), np.uint64(s.stride), z0 - z0
    flat = s.n1 == 1
    along, rows = (s.plane, z1 - z0) if flat else (s.pitch, s.n1)
    for z in range(z0, z0 + 1 if flat else z1):
        row = (z + s.g0) * s.plane + s.g1 * s.pitch
        pull_rows(q, lam, np.uint64(new + row), lam, np.uint64(old + row), src, np.uint64(state + row), grad,
                  np.uint64(sums + row), stride, np.uint64(along), rows, o0, o1, lo, hi, step, z, none, none + flat,
                  none + 1 - flat, np.uint64(0) - lo)


@inner
def load_planes(e, b, counts, step, s, z0, z1, start, from_, given, states, lam, walls, ends, held, vary, fresh):
    """Planes z0:z1 of the state at a segment's beginning; `fresh`: those of l too, at the very end."""
    keep_apart()
    users, C, L, _, want = counts
    none, apart = s.n0 - s.n0, s.n0 * s.n1 * s.n2
    for z in range(z0, z1):
        for y in range(s.n1):
            row, o = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES, b * users * apart + (z * s.n1 + y) * s.n2
            copy_row(users, start, from_ + o, apart, states, row, s.stride, s.n2)
            if fresh:
                copy_row(users, given, o, apart, lam, row, s.stride, s.n2)
                for c in range(users, L):
                    for x in range(s.n2):
                        lam[c * s.stride + row + x] = 0
    finish_planes(e, b, C, states, none, s, z0, z1, step, ends, held, vary)
    if fresh:
        mask_planes(e, b, L, users, lam, none, s, z0, z1, walls, want)
        images(e, L, lam, none, s, z0, z1)


@inner
def store_planes(b, users, s, z0, z1, lam, final, result):
    """Planes z0:z1 of l at the very beginning."""
    keep_apart()
    apart = s.n0 * s.n1 * s.n2
    for z in range(z0, z1):
        for y in range(s.n1):
            row, o = (z + s.g0) * s.plane + (y + s.g1) * s.pitch + LANES, b * users * apart + (z * s.n1 + y) * s.n2
            copy_row(users, lam, final + row, s.stride, result, o, apart, s.n2)


@inner
def ready(progress, e, k, K, t):
    """Whether the chunks beside chunk k have done the first t pieces of work."""
    for d in (-1, 1):
        j = k + d
        if e.ints[0] == PERIODIC:
            j %= K
        if 0 <= j < K and atomic_load(progress, LINE * (1 + j)) < t:
            return False
    return True


@inner
def items_of(S, depth):
    """Pieces of work of a segment of S levels: loading; then, twice for each block of levels, forward and back."""
    return 1 + 2 * ((S - 1 + depth - 1) // depth) + 2 * ((S + depth - 1) // depth)


@kernel()
def run_segments(params, backs, edges, slopes, space, b, B, counts, lengths, depth, source, more, given, result, memory,
                 lams, grads, walls, room, counter, K, workers):
    """Worker: segments of sample b, shared out in K chunks of planes; or, without K, of all B samples, one a worker.

    A segment is loaded, marched forward in blocks of `depth` levels, then back. In a block a chunk first takes the
    planes that its neighbours do not reach, fewer at each level; then, when the next chunk has done so too, those
    between them. So a chunk's planes stay in cache for a block. `lengths` are the segments' levels in the order of
    time, and after them the number of the first level.
    """
    e, start, rest, cot, out = borrow(edges), borrow(source), borrow(more), borrow(given), borrow(result)
    states, lam, grad, sums, progress, ends, bent = (borrow(memory), borrow(lams), borrow(grads), borrow(walls),
                                                     borrow(counter), borrow(room), borrow(slopes))
    p, q = borrow(params), borrow(backs)
    float_state = flush_denormals()
    users, C, L, terms, want = counts
    s, half, none = space, L * space.stride, b - b
    M, held, vary = len(lengths) - 1, holds_rows(e, C), ends_vary(e, C)
    wraps = e.ints[0] == PERIODIC and s.n0 > 1
    last, total = none + 1, none  # the last piece of work is to store l
    for m in range(M):
        last, total = last + items_of(lengths[m], depth), total + lengths[m]
    me, turns, k, turn = atomic_add(progress, 0, 1), none, none, none
    if K == 0:
        b = me
    while b < B:
        left, chosen, t = K == 0, none - 1, turn
        reach = K if turns > PATIENCE else (K + workers - 1) // max(workers, none + 1)
        for j in range(K):
            k = (me * K // workers + j) % K
            t = atomic_load(progress, LINE * (1 + k))
            if t >= last:
                continue
            left = True
            if j < reach and ready(progress, e, k, K, t) and atomic_add(progress, LINE * (1 + K + k), 1) == 0:
                t = atomic_load(progress, LINE * (1 + k))  # another one may have been here
                if t < last and ready(progress, e, k, K, t):
                    chosen = k
                    break
                atomic_store(progress, LINE * (1 + K + k), 0)
        if not left:
            break
        turns += 1
        if K == 0 or chosen >= 0:
            one, other = sample_of(p, b), sample_of(q, b)
            z0, z1 = (none, s.n0) if K == 0 else (chosen * s.n0 // K, (chosen + 1) * s.n0 // K)
            below, above = wraps or z0 > 0, wraps or z1 < s.n0
            m, item, step, done = M - 1, t, lengths[M], none  # which segment, which of its items
            while item >= items_of(lengths[m], depth) and t < last - 1:
                item, done, m = item - items_of(lengths[m], depth), done + lengths[m], m - 1
            for i in range(m):
                step += lengths[i]
            S = lengths[m]
            ahead = (S - 1 + depth - 1) // depth
            if t == last - 1:
                store_planes(b, users, s, z0, z1, lam, (total & 1) * half, out)
            elif item == 0:
                size = B * users * s.n0 * s.n1 * s.n2
                if m == 0:
                    load_planes(e, b, counts, step, s, z0, z1, start, none, cot, states, lam, sums, ends, held, vary,
                                m == M - 1)
                else:
                    load_planes(e, b, counts, step, s, z0, z1, rest, (m - 1) * size, cot, states, lam, sums, ends,
                                held, vary, m == M - 1)
            else:
                forth = item <= 2 * ahead
                block, second = (item - 1) // 2, (item - 1) & 1
                block = block if forth else block - ahead
                levels = min(depth, (S - 1 if forth else S) - block * depth)
                for v in range(levels if above or second == 0 else none):
                    n = block * depth + v
                    low, high = z0 + (v + 1 if below else none), z1 - (v + 1 if above else none)
                    if second:  # the triangle between this chunk and the next
                        low, high = z1 - v - 1, z1 + v + 1
                    for part in range(2):  # what lies beyond the last plane is there at the first
                        i0, i1 = (low, min(high, s.n0)) if part == 0 else (none, high - s.n0)
                        if i0 >= i1:
                            continue
                        if forth:
                            forward_planes(one, states, s, i0, i1, n * s.floor, (n + 1) * s.floor, step + n)
                            finish_planes(e, b, C, states, (n + 1) * s.floor, s, i0, i1, step + n + 1, ends, held, vary)
                        else:
                            old, state = ((done + n) & 1) * half, (S - 1 - n) * s.floor
                            backward_planes(other, lam, old, half - old, states, state, grad, b * terms * s.stride, s,
                                            i0, i1, step + S - 1 - n)
                            fold(other, e, bent, b, users, lam, old, half - old, states, state, s, i0, i1,
                                 step + S - 1 - n, sums, want)
                            mask_planes(e, b, L, users, lam, half - old, s, i0, i1, sums, want)
                            images(e, L, lam, half - old, s, i0, i1)
            turns, turn = none, turn + 1
        if chosen >= 0:
            atomic_store(progress, LINE * (1 + chosen), t + 1)
            atomic_store(progress, LINE * (1 + K + chosen), 0)
        elif K == 0 and turn == last:
            b, turn = atomic_add(progress, 0, 1), none
        if turns > PATIENCE:
            give_way()
    restore_denormals(float_state)


# -- all of it ---------------------------------------------------------------------------------------------------------


class Checkpoints(NamedTuple):
    """Where states are kept: `length` steps are reversed at once, `count` states are kept besides the first."""

    length: int
    count: int

    def positions(self, steps: int) -> list[int]:
        """Steps after which the forward march keeps its state."""
        blocks, at, slots, found = -(-steps // self.length), 0, self.count, []
        while slots and blocks - at > 1:
            at += split(blocks - at, slots)
            found.append(at * self.length)
            slots -= 1
        return found


def _repetitions(blocks: int, slots: int) -> int:
    """How often a block is marched again at most: the least r with C(slots + 1 + r, r) >= blocks."""
    r = 1
    while comb(slots + 1 + r, r) < blocks:
        r += 1
    return r


def split(blocks: int, slots: int) -> int:
    """How many of the blocks lie before the next checkpoint, so that the fewest are marched again (revolve)."""
    r = _repetitions(blocks, slots)
    before = comb(slots + r - 1, slots + 1)  # what the part before can reverse with two repetitions less
    return max(1, min(blocks - 1, max(before, blocks - comb(slots + r, slots))))


def checkpoints(steps: int, bytes_state: int, bytes_step: int, memory: int | None = None) -> Checkpoints:
    """What to keep within `memory` bytes; by default as little, ~ sqrt(steps), as lets steps be computed twice only.

    bytes_state  of a state that is kept; bytes_step of a step in a segment
    """
    even = min(max(steps, 1), max(1, isqrt(max(1, steps * bytes_state // max(bytes_step, 1)))))
    if memory is None:
        length = min(max(steps, 1), max(even, SECOND // 2 // max(bytes_step, 1)))  # at least what stays in cache
        return Checkpoints(length, -(-steps // length) - 1)
    if memory < bytes_step:
        raise ValueError(f"memory = {memory:,} bytes is less than one step takes: give at least {bytes_step:,}")
    best = None
    for length in sorted({1, 2, 3, 4, even, *(max(1, steps // k) for k in range(1, 65))}):
        blocks = -(-steps // length)
        count = min((memory - length * bytes_step) // max(bytes_state, 1), blocks - 1)
        if count >= 0 and (best is None or _repeated(blocks, count) * length < best[0]):
            best = _repeated(blocks, count) * length, Checkpoints(length, int(count))
    assert best is not None
    return best[1]


def plan_for(shape, itemsize, steps, *, components=None, stages=1, threads=None, memory=None) -> Checkpoints:
    """`checkpoints` for a state (B, C, *grid) and a rule of so many components; by default whatever the threads."""
    B, C, *grid = space_of(shape)
    level = space_for(grid, _kinds(shape), components or C).floor * itemsize
    if memory is None:
        at_once = min(B, 8)
    else:
        threads = default_threads() if threads is None else threads
        at_once = min(threads, B) if _whole_samples((B, C, *grid), _kinds(shape), threads) else 1
    return checkpoints(steps, int(np.prod(shape, dtype=np.int64)) * itemsize, level * stages * at_once, memory)


def _kinds(shape):
    """The kinds of axes as far as memory is concerned."""
    return {3: (ABSENT, ABSENT, BOUNDED), 4: (BOUNDED, ABSENT, BOUNDED), 5: (BOUNDED,) * 3}[len(shape)]


def _whole_samples(shape, kinds, threads) -> bool:
    """Whether a thread takes whole samples, or all threads share the planes of one."""
    return shape[0] >= threads or shape[2] < 8 or kinds[0] == ABSENT


def _repeated(blocks: int, slots: int) -> int:
    """Blocks that are marched to get from checkpoint to checkpoint, all in all."""
    r = _repetitions(blocks, slots)
    return r * blocks - comb(slots + 1 + r, slots + 2)


class Adjoint(NamedTuple):
    """Gradients by the start (B, C, *grid), the coefficients (B, grads, *grid) and the walls' sums.

    walls  (B, C, axes, 2, TERMS, cells of the largest face): sums over the steps, of what falls on the ghost, times u0,
           u1, g and 1, and l (ghost - u0); of held cells, l
    """

    start: np.ndarray
    grads: np.ndarray
    walls: np.ndarray


def march_kept(rule, u, edges, steps, plan: Checkpoints, *, stages=1, step=0, threads=None, positions=None):
    """March like `_run.march`, and keep the states that `plan` asks for: (result, states (n, *u.shape))."""
    positions = plan.positions(steps) if positions is None else positions
    kept, at = np.empty((len(positions), *u.shape), u.dtype), 0
    for place, position in zip(kept, positions):
        u, at = _advance(rule, u, edges, position - at, stages, step + at * stages, threads, place), position
    return _advance(rule, u, edges, steps - at, stages, step + at * stages, threads), kept


def _advance(rule, u, edges, steps, stages, step, threads, out=None):
    """March a field some steps; registers of an integrator live in between."""
    out = np.empty_like(u) if out is None else out
    C, registers = u.shape[1], components_of(type(rule)) // u.shape[1]
    if steps == 0:
        out[...] = u
    elif registers == 1:
        march(rule, u, edges, steps * stages, step=step, threads=threads, out=out)
    else:
        out[...] = march(rule, spread(u, registers), edges, steps * stages, step=step, threads=threads)[:, :C]
    return out


class _Segments:
    """Everything that segments share."""

    def __init__(self, rule, back, u, edges, slopes, stages, step, want, threads):
        for made in (rule, back):
            tell_apart(made)
        self.u, self.edges, self.stages, self.first, self.threads = u, edges, stages, step, threads
        self.shape = space_of(u.shape)
        self.kinds = tuple(edges.ints[:3].tolist())
        self.components = components_of(type(rule))
        self.levels = back.components * _registers(type(back))
        self.space = space_for(self.shape[2:], self.kinds, self.components)
        self.forward = rule
        self.rule, self.back = (_lowered(r, self.kinds, self.shape, edges) for r in (rule, back))
        users = back.components
        self.counts, self.want = (users, self.components, self.levels, type(back).grads, int(want)), bool(want)
        self.grads = np.zeros(len(u) * max(type(back).grads, 1) * self.space.stride, u.dtype)
        self.walls = np.zeros(len(u) * users * 6 * TERMS * self.space.face if want else 1, u.dtype)
        self.slopes = np.zeros(users * 6, np.int64) if slopes is None else np.asarray(slopes, np.int64)

    def reverse(self, start, more, at, lengths, cot):
        """March from the state after `at` steps and those in `more`, by as many steps as `lengths` say, and back.

        Held cells look at ghosts that nobody fills, and use nothing of them; but 0 times what is no number is none:
        the states begin as a number that occurs.
        """
        s, B, out = self.space, len(start), np.empty_like(start)
        levels = np.array([*(n * self.stages for n in lengths), self.first + at * self.stages], np.int64)
        depth = max(1, min(DEPTH, s.n0 // 4))
        room = (8 * self.components + LANES - 1) // LANES * LANES
        small, many, kind = 2 * self.levels * s.stride, int(levels[:-1].max()) * s.floor, self.u.dtype
        arrays = start.reshape(-1), more.reshape(-1), cot.reshape(-1), out.reshape(-1)
        fixed = self.rule, self.back, self.edges, self.slopes, s
        if _whole_samples(self.shape, self.kinds, self.threads):
            counter, size = np.zeros(1, np.int64), room + small + many

            def own():
                memory = scratch(size, kind) if size * kind.itemsize <= 8 * SECOND else np.zeros(size, kind)
                memory[room : room + small] = 0  # ghosts of l stay 0
                memory[room + small :] = start.flat[0]
                run_segments(*fixed, 0, B, self.counts, levels, depth, *arrays, memory[room + small :],
                             memory[room : room + small], self.grads, self.walls, memory, counter, 0, 0)

            together(own, min(self.threads, B))
            return out
        K, states = max(1, min(2 * self.threads, s.n0 // (2 * depth))), self._states(many, start.flat[0])
        for b in range(B):
            counter, lam = np.zeros(LINE * (2 * K + 2), np.int64), np.zeros(small, kind)

            def shared(b=b, counter=counter, lam=lam):
                run_segments(*fixed, b, B, self.counts, levels, depth, *arrays, states, lam, self.grads, self.walls,
                             np.zeros(room, kind), counter, K, self.threads)

            together(shared, min(self.threads, K))
        return out

    def advance(self, state, at, steps):
        """The state so many steps later."""
        first = self.first + at * self.stages
        return _advance(self.forward, state, self.edges, steps, self.stages, first, self.threads)

    def _states(self, size, value):
        memory = getattr(self, "_memory", None)
        if memory is None or memory.size < size:
            memory = self._memory = np.full(size, value, self.u.dtype)
        return memory

    def result(self, cot) -> Adjoint:
        """All gradients, in the shapes of users."""
        users, _, _, grads, _ = self.counts
        s, B = self.space, len(self.u)
        inside = self.grads[: B * grads * s.stride].reshape(B, grads, s.stride)[..., : s.stride - LANES]
        inside = inside.reshape(B, grads, s.n0 + 2 * s.g0, s.n1 + 2 * s.g1, s.pitch)
        inside = inside[:, :, s.g0 : s.g0 + s.n0, s.g1 : s.g1 + s.n1, LANES : LANES + s.n2]
        walls = np.zeros((B, users, 6, TERMS, s.face), self.u.dtype)
        walls = self.walls.reshape(walls.shape) if self.want else walls
        axes = [2 * a + end for a in _SPACE[self.u.ndim - 2] for end in (0, 1)]
        walls = walls[:, :, axes].reshape(B, users, self.u.ndim - 2, 2, TERMS, s.face)
        return Adjoint(cot, np.ascontiguousarray(inside).reshape(B, grads, *self.u.shape[2:]), walls)


def _lowered(rule, kinds, shape, edges):
    """A rule with numbers for every sample, as compiled code wants it."""

    def for_all(field):
        if isinstance(field, np.ndarray) and len(field) == 1 and shape[0] > 1:
            return np.repeat(field, shape[0], 0)
        return field

    def check(field):
        if isinstance(field, Cells) and len(field.values) not in (1, shape[0]):
            raise ValueError(f"a coefficient is given for {len(field.values)} samples, but there are {shape[0]}")
        return for_all(field)

    return lowered(map_fields(rule, check), kinds, shape[2:], 1, edges.clock)


def march_adjoint(rule, back, u, cot, edges, steps, *, kept=None, plan: Checkpoints | None = None, stages=1, step=0,
                  slopes=None, walls=True, threads=None) -> Adjoint:
    """The transpose of `steps` steps (each of `stages` stages) of `rule` from u (B, C, *grid), applied to `cot`.

    back     the back rule that belongs to `rule`
    kept     the states that `march_kept` has kept for `plan`; they are computed if not given
    slopes   for each component and side the address of dg/du, a C function as `call` of `Side`, or 0
    walls    whether the sums of the walls are wanted
    """
    threads = default_threads() if threads is None else threads
    u, cot = np.ascontiguousarray(u), np.ascontiguousarray(cot, u.dtype)
    run = _segments(rule, back, u, edges, slopes, stages, step, walls, threads)
    if steps == 0:
        return run.result(cot.copy())
    if plan is None:
        plan = plan_for(u.shape, u.itemsize, steps, components=components_of(type(rule)), stages=stages)
    positions = plan.positions(steps)
    if kept is None:
        kept = march_kept(rule, u, edges, positions[-1] if positions else 0, plan, stages=stages, step=step,
                          threads=threads, positions=positions)[1]
    return run.result(_from_checkpoints(run, plan, u, kept, positions, steps, cot))


def _from_checkpoints(run, plan, start, kept, positions, steps, cot):
    """Reverse `steps` steps from `start`, whose states at `positions` are `kept`."""
    if len(positions) == -(-steps // plan.length) - 1:  # all that is needed is there
        return run.reverse(start, kept, 0, np.diff([0, *positions, steps]).tolist(), cot)
    known, end, slots = [(0, start), *zip(positions, kept, strict=True)], steps, 0
    while known:
        at, state = known.pop()
        cot = _reverse(run, plan, state, at, end - at, slots, cot)
        end, slots = at, slots + 1
    return cot


def _segments(rule, back, u, edges, slopes, stages, step, walls, threads) -> Any:
    """What segments share, for rules that look one cell far and for those that look further."""
    if near_of(rule) == "star":
        return _Segments(rule, back, u, edges, slopes, stages, step, walls, threads)
    from fastdiff.kernels._adjoint_wide import WideSegments

    if stages != 1:
        raise ValueError("rules that look further than one cell are transposed for forward Euler alone")
    return WideSegments(rule, back, u, edges, slopes, step, walls, threads)


def _reverse(run, plan, state, at, steps, slots, cot):
    """Reverse `steps` steps from the state after `at` steps with `slots` more checkpoints."""
    none = state[:0]
    if steps <= plan.length:
        return run.reverse(state, none, at, [steps], cot)
    blocks = -(-steps // plan.length)
    if slots == 0:
        for k in reversed(range(blocks)):
            here = run.advance(state, at, k * plan.length) if k else state
            cot = run.reverse(here, none, at + k * plan.length, [min(plan.length, steps - k * plan.length)], cot)
        return cot
    ahead = split(blocks, slots) * plan.length
    cot = _reverse(run, plan, run.advance(state, at, ahead), at + ahead, steps - ahead, slots - 1, cot)
    return _reverse(run, plan, state, at, ahead, slots, cot)


__all__ = ["Adjoint", "Checkpoints", "checkpoints", "march_adjoint", "march_kept", "plan_for", "pull_rows",
           "staged_back"]
