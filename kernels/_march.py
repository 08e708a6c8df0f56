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

If a rule has one `FaceField`, what a cell reads on its low side along axis 2, the neighbour and the number of the face,
is handed on from the cell before, in registers: each is read once, for the same bits. Where loads take the time that
saves a fifth to a third of it.

The last `kept` components of a rule are read at the cell itself alone. The CPU schedules keep them once, in place of
once a level, and do nothing to them at the boundaries.

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
from fastdiff.kernels._fields import AtFaces, Cells, Clock, FaceField, Field, next2
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
    put_into,
    restore_denormals,
    restrict_dst,
    restrict_kept,
    take_from,
    wide_vectors,
)
from fastdiff.kernels._part import overload_part

STEADY, BY_LEVEL, BY_ROW = 0, 1, 2  # what `ends_vary` says
CALLED = 3  # at the end of a row: a ghost whose g is a compiled function
LANES = 16  # rows inside a tile start and end at multiples of this many cells
SLIDING = 2  # components of a rule whose resident blocks are one buffer, in which levels slide
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


@overload_part(change, fastmath=FASTMATH, error_model="numpy", forceinline=True)
def _change(p, u, at):
    return _method(p.instance_class, "change")


def cell(p, u, at):
    """New value(s) of one cell: the `cell` of the parameters' class, or what `change` makes of the old one."""
    rule = type(p)
    if hasattr(rule, "cell"):
        return rule.cell(p, u, at)
    new = change(p, u, at)
    return u.c + new if components_of(rule) == 1 else tuple(old.c + add for old, add in zip(u, new))


@overload_part(cell, fastmath=FASTMATH, error_model="numpy", forceinline=True)
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


def kept_by(rule) -> int:
    """How many of a rule class's components, the last ones, are read at the cell itself alone."""
    return getattr(rule, "kept", 0)


def kept_of(p):
    """`kept_by` the class of some parameters."""
    return kept_by(type(p))


@overload_part(kept_of)
def _kept_of(p):
    count = np.int64(kept_by(p.instance_class))
    return lambda p: count


def map_fields(rule, function):
    """The rule with a function applied to every field, those of rules inside included."""
    def apply(field):
        if isinstance(field, Clock | Field):
            return field
        return map_fields(field, function) if hasattr(field, "_fields") else function(field)

    return type(rule)(*map(apply, rule))


def check_fields(rule, u):
    """Refuse parameters that fit neither all samples of a state nor each of them."""
    def check(field):
        if isinstance(field, Cells):
            field.check(type(rule).__qualname__, u)
        elif hasattr(field, "shape") and field.shape and field.shape[0] not in (1, len(u)):
            raise ValueError(f"{type(rule).__qualname__} has parameters for {field.shape[0]} samples, but u has "
                             f"{len(u)}")

    map_fields(rule, check)


def sample_of(p, b):
    """The parameters of sample `b`: 1-D fields give a number, larger ones a view, numbers stay, rules are entered.

    An array of length 1 is for all samples.
    """
    if isinstance(p, Clock):
        return p
    if isinstance(p, Field):
        return p._replace(start=p.start + p.batch * np.uint64(b))

    def pick(field):
        if hasattr(field, "_fields"):
            return sample_of(field, b)
        return field[b if b < len(field) else 0] if isinstance(field, np.ndarray) else field

    return type(p)(*map(pick, p))


@overload_part(sample_of)
def _sample_of(p, b):
    if p.instance_class is Clock:
        return lambda p, b: p
    if p.instance_class is Field:
        return lambda p, b: Field(p.data, p.start + p.batch * np.uint64(b), p.batch, p.s0, p.s1)
    if p.instance_class is FaceField:
        return lambda p, b: FaceField(p.data, p.start + p.batch * np.uint64(b), p.batch, p.s0, p.s1)

    def pick(kind, place):
        if isinstance(kind, types.BaseNamedTuple):
            return f"sample_of({place}, b)"
        return f"{place}[b if b < len({place}) else 0]" if isinstance(kind, types.Array) else place

    fields = ", ".join(pick(t, f"p[{k}]") for k, t in enumerate(p.types))
    scope = {"rule": p.instance_class, "sample_of": sample_of}
    exec(f"def pick(p, b):\n    return rule({fields})", scope)
    return scope["pick"]


def settled(p, step):
    """The parameters of one time step: what a rule's `settle(p, step)` makes of them, or `p`.

    The schedules ask once a row. What depends on the step alone then is a number in the inner loop: a look into a table
    in there, with an index by a division, would keep the loop from being vectorised.
    """
    rule = type(p)
    return rule.settle(p, step) if hasattr(rule, "settle") else p


@overload_part(settled, fastmath=FASTMATH, error_model="numpy", forceinline=True)
def _settled(p, step):
    return getattr(p.instance_class, "settle", lambda p, step: p)


def ahead(p, at):
    """The number of a cell's high face, of the rule's one `FaceField`."""
    raise NotImplementedError("compiled only: its source is made for the rule's fields")


def _face_fields(kind) -> int:
    """How many fields of a rule's type are `FaceField`s, those of rules inside included."""
    if not isinstance(kind, types.BaseNamedTuple) or kind.instance_class is Clock:
        return 0
    if issubclass(kind.instance_class, Field):
        return int(kind.instance_class is FaceField)
    return sum(map(_face_fields, kind.types))


def hands_on(kind) -> bool:
    """Whether cells of a rule's type hand on what they have read."""
    return _face_fields(kind) == 1


@overload_part(ahead, cuda=False, fastmath=FASTMATH, error_model="numpy", forceinline=True)
def _ahead(p, at):
    if p.instance_class is FaceField:
        return lambda p, at: next2(p, at)
    k = next(k for k, part in enumerate(p.types) if _face_fields(part))
    scope = {"ahead": ahead}
    exec(f"def number(p, at):\n    return ahead(p[{k}], at)", scope)
    return scope["number"]


# -- rows ------------------------------------------------------------------------------------------------------------


def update_rows(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, kept, h, hcs, rows, lo, hi, step, i0, i1,
                di0, di1, origin):
    """Apply the rule to columns `lo:hi` of some rows of `src`, the first at offset `s`; put them at `d` in `dst`.

    `m0` ... `p1` are the offsets of the rows next to the first; `dcs` and `scs` the strides from component to
    component, `drs` and `srs` from row to row. What the rule keeps at the cell lies in `kept`, from `h` on, `hcs` from
    component to component and `srs` from row to row, and stays there. The first row has indices `i0` and `i1`, which
    grow by `di0` and `di1` from row to row; `origin` turns a column into an index of axis 2. In halos, indices go
    beyond the grid.
    """
    raise NotImplementedError("compiled only: its source is made for the rule's number of components")


def update_pair(p, dst, d0, d1, dcs, src, below, s0, s1, above, scs, kept, h0, h1, hcs, lo, hi, step, i0, i1, origin):
    """Apply the rule to columns `lo:hi` of two neighbouring rows, at `s0` and `s1`; put them at `d0` and `d1`.

    For 2-D grids: `below` and `above` are the rows around them along axis 0; `i0` and `i1` are their indices. What the
    rule keeps lies at `h0` and `h1` in `kept`.
    """
    raise NotImplementedError("compiled only: its source is made for the rule's number of components")


def march_line(p, e, b, C, buf, new, old, stride, lo, hi, right, levels, step, origin, low, high, wrap, vary, n2):
    """Many levels of a line that lies at `old` and then, in turns, at `new` and `old`; its ends are steady.

    Columns `lo:hi` are computed, whole vectors; the line ends at `right`; what its ends do stands first in `buf`. For
    few components: the loop is vectorised after a look at run time that the two lines do not overlap.
    """
    raise NotImplementedError("compiled only: its source is made for the rule's number of components")


_PAIR = "Star(src[{0} + {3} + x], src[{1} + {3} + x], src[{2} + {3} + x], src[{0} + {3} + x], src[{0} + {3} + x], \
src[{0} + {3} + x - one], src[{0} + {3} + x + one])"
_LINE = "Star(buf[{0} + x], buf[{0} + x], buf[{0} + x], buf[{0} + x], buf[{0} + x], buf[{0} + x - one], \
buf[{0} + x + one])"
_HANDED = "Star({4}, src[{1} + {3} + x], src[{2} + {3} + x], {4}, {4}, {5}, src[{0} + {3} + x + one])"
_HANDED_STAR = "Star({1}, src[m0 + {0} + x], src[p0 + {0} + x], src[m1 + {0} + x], src[p1 + {0} + x], {2}, \
src[s + {0} + x + one])"
_STAR = "Star(src[s + {0} + x], src[m0 + {0} + x], src[p0 + {0} + x], src[m1 + {0} + x], src[p1 + {0} + x], \
src[s + {0} + x - one], src[s + {0} + x + one])"


def _tuple(texts):
    """One text, or a tuple of several."""
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _places(near, kept):
    """Lines that make the offsets of components: k in the source, l in the target, g where they are kept."""
    return ["    k0 = l0 = g0 = zero", *(f"    k{c}, l{c} = k{c - 1} + scs, l{c - 1} + dcs" for c in range(1, near)),
            *(f"    g{c} = g{c - 1} + hcs" for c in range(1, kept))]


def _taken(row, first, kept):
    """Lines that read what is kept of a row, and the stars that stand for it."""
    lines = [f"v{first + c} = take{first + c}(kept, {row} + g{c} + x)" for c in range(kept)]
    return lines, [f"Star({', '.join([f'v{first + c}'] * 7)})" for c in range(kept)]


def _handing(row, place, tag, near):
    """Lines before a row, before a cell and after it: what the cell hands on to the next one, names ending in `tag`.

    And what stands for `at`.
    """
    first = [f"low{tag} = ahead(q, At(step, {place}, (lo - one) + origin))"]
    begin, end = [f"high{tag} = ahead(q, At(step, {place}, x + origin))"], [f"low{tag} = high{tag}"]
    for c in range(near):
        first.append(f"w{c}{tag} = src[{row} + k{c} + lo - one]")
        begin.append(f"c{c}{tag} = src[{row} + k{c} + x]")
        end.append(f"w{c}{tag} = c{c}{tag}")
    return first, begin, end, f"AtFaces(step, {place}, x + origin, low{tag}, high{tag})"


def _scope(stores):
    """What compiled sources name."""
    scope = {"cell": cell, "Star": Star, "At": At, "zero": np.uint64(0), "one": np.uint64(1), "settled": settled}
    scope |= {"keep_apart": keep_apart, "wide_vectors": wide_vectors, "inline_here": inline_here}
    scope |= {"restrict_dst": restrict_dst, "restrict_kept": restrict_kept, "ahead": ahead, "AtFaces": AtFaces}
    scope |= {f"put{k}": put_into(k, stores) for k in range(stores)}
    return scope | {f"take{k}": take_from(k, stores) for k in range(stores)}


@overload_part(update_rows, fastmath=FASTMATH, error_model="numpy")
def _update_rows(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, kept, h, hcs, rows, lo, hi, step, i0, i1, di0,
                 di1, origin):
    count, own = components_of(p.instance_class), kept_by(p.instance_class)
    near = count - own
    reads, stars = _taken("h", near, own)
    pick, handed = "" if count == 1 else "[{}]", hands_on(p)
    near_stars = [_HANDED_STAR.format(f"k{c}", f"c{c}", f"w{c}") if handed else _STAR.format(f"k{c}")
                  for c in range(near)]
    first, begin, end, at = _handing("s", "i0, i1", "", near) if handed else ([], [], [],
                                                                             "At(step, i0, i1, x + origin)")
    lines = [
        "def update(p, dst, d, dcs, drs, src, s, m0, p0, m1, p1, scs, srs, kept, h, hcs, rows, lo, hi, step, i0, i1,"
        " di0, di1, origin):",
        "    keep_apart()",
        "    wide_vectors()",
        "    restrict_dst()",
        "    restrict_kept()",
        *_places(near, own),
        "    q = settled(p, step)",
        "    for row in range(rows):",
        *(f"        {line}" for line in first),
        "        for x in range(lo, hi):",
        *(f"            {line}" for line in begin + reads),
        f"            new = cell(q, {_tuple(near_stars + stars)}, {at})",
        *(f"            put{c}(dst, d + l{c} + x, new{pick.format(c)})" for c in range(near)),
        *(f"            put{near + c}(kept, h + g{c} + x, new{pick.format(near + c)})" for c in range(own)),
        *(f"            {line}" for line in end),
        "        d, s, m0, p0, m1, p1, h = d + drs, s + srs, m0 + srs, p0 + srs, m1 + srs, p1 + srs, h + srs",
        "        i0, i1 = i0 + di0, i1 + di1",
    ]
    scope = _scope(count)
    exec("\n".join(lines), scope)
    return scope["update"]


@overload_part(update_pair, fastmath=FASTMATH, error_model="numpy")
def _update_pair(p, dst, d0, d1, dcs, src, below, s0, s1, above, scs, kept, h0, h1, hcs, lo, hi, step, i0, i1, origin):
    count, own = components_of(p.instance_class), kept_by(p.instance_class)
    near, pick, handed = count - own, "" if count == 1 else "[{}]", hands_on(p)

    def row(k, low, high, stars):
        near_stars = [_HANDED.format(f"s{k}", low, high, f"k{c}", f"c{c}_{k}", f"w{c}_{k}") if handed else
                      _PAIR.format(f"s{k}", low, high, f"k{c}") for c in range(near)]
        return _tuple(near_stars + stars)

    (reads, stars), (more, others) = _taken("h0", near, own), _taken("h1", count + near, own)
    first, begin, end, places = [], [], [], [f"At(step, i{k}, none, x + origin)" for k in range(2)]
    if handed:
        for k in range(2):
            *parts, places[k] = _handing(f"s{k}", f"i{k}, none", f"_{k}", near)
            first, begin, end = first + parts[0], begin + parts[1], end + parts[2]
    lines = [
        "def update(p, dst, d0, d1, dcs, src, below, s0, s1, above, scs, kept, h0, h1, hcs, lo, hi, step, i0, i1,"
        " origin):",
        "    inline_here()",
        "    restrict_dst()",
        "    restrict_kept()",
        "    none = i0 - i0",
        *_places(near, own),
        "    q = settled(p, step)",
        *(f"    {line}" for line in first),
        "    for x in range(lo, hi):",
        *(f"        {line}" for line in begin + reads + more),
        f"        one_row = cell(q, {row(0, 'below', 's1', stars)}, {places[0]})",
        f"        next_row = cell(q, {row(1, 's0', 'above', others)}, {places[1]})",
        *(f"        put{c}(dst, d0 + l{c} + x, one_row{pick.format(c)})" for c in range(near)),
        *(f"        put{c + count}(dst, d1 + l{c} + x, next_row{pick.format(c)})" for c in range(near)),
        *(f"        put{near + c}(kept, h0 + g{c} + x, one_row{pick.format(near + c)})" for c in range(own)),
        *(f"        put{count + near + c}(kept, h1 + g{c} + x, next_row{pick.format(near + c)})" for c in range(own)),
        *(f"        {line}" for line in end),
    ]
    scope = _scope(2 * count)
    exec("\n".join(lines), scope)
    return scope["update"]


@overload_part(march_line, fastmath=FASTMATH, error_model="numpy")
def _march_line(p, e, b, C, buf, new, old, stride, lo, hi, right, levels, step, origin, low, high, wrap, vary, n2):
    count = components_of(p.instance_class)
    stars = [_LINE.format(f"k{c}") for c in range(count)]
    near = stars[0] if count == 1 else f"({', '.join(stars)})"
    lines = [
        "def run(p, e, b, C, buf, new, old, stride, lo, hi, right, levels, step, origin, low, high, wrap, vary, n2):",
        "    none = n2 - n2",
        "    keep_apart()",
        "    wide_vectors()",
        "    for level in range(levels):",
        *(f"        k{c}, l{c} = unsigned(old + {c} * stride), unsigned(new + {c} * stride)" for c in range(count)),
        "        q = settled(p, step + level)",
        "        for x in range(unsigned(lo), unsigned(hi)):",
        f"            fresh = cell(q, {near}, At(step + level, none, none, x + unsigned(origin)))",
        *(f"            buf[l{c} + x] = fresh{'' if count == 1 else f'[{c}]'}" for c in range(count)),
        "        if vary:",
        "            set_ends(e, b, C, buf, none, step + level + 1, none, none, none + 1, n2)",
        "        line_ends(buf, none, C, buf, new, stride, lo, right, low, high, wrap, True, n2)",
        "        new, old = old, new",
    ]
    scope = {"cell": cell, "Star": Star, "At": At, "unsigned": np.uint64, "one": np.uint64(1), "settled": settled}
    scope |= {"keep_apart": keep_apart, "wide_vectors": wide_vectors, "line_ends": line_ends, "set_ends": set_ends}
    exec("\n".join(lines), scope)
    return scope["run"]


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
def set_ends(e, b, C, ends, place, step, i0, i1, n1, n2):
    """What happens at both ends of a row at one time level: four numbers for each component and end, from `place` on.

    They are the kind, alpha, beta, and gamma*g or the held g.
    """
    keep_apart()
    for c in range(C):
        for end in range(2):
            side, o = 4 + end, place + 8 * c + 4 * end
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
    """How the ends of rows differ: not at all (0), from level to level (1), from row to row (2)."""
    keep_apart()
    found = e.ints[0] - e.ints[0]
    for c in range(C):
        for end in range(2):
            k = HEAD + (c * 6 + 4 + end) * ITEMS
            if e.ints[k + CALL] != 0 or e.ints[k + PER_CELL] != 0:
                return found - found + BY_ROW
            if e.ints[k + PER_STEP] != 0:
                found = found - found + BY_LEVEL
    return found


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
def hold_ends(ends, place, C, buf, row, stride, lo, hi, at_low, at_high):
    """Set the held cells at the ends of a row."""
    inline_here()
    for c in range(C):
        o = place + 8 * c
        if at_low and ends[o] == HOLD:
            buf[row + c * stride + lo] = ends[o + 3]
        if at_high and ends[o + 4] == HOLD:
            buf[row + c * stride + hi - 1] = ends[o + 7]


@inner
def ghost_ends(e, b, ends, place, C, buf, row, stride, lo, hi, at_low, at_high, step, i0, i1, n1, n2):
    """Set the cells beyond the ends of a row that reaches the domain's edge."""
    inline_here()
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        for end in range(2):
            o = place + 8 * c + 4 * end
            if (at_high if end else at_low) and ends[o] != NONE and ends[o] != HOLD:
                x, away = (hi - 1, 1) if end else (lo, -1)
                x += row + c * stride
                u0, u1, g = buf[x], buf[x - away * inside], ends[o + 3]
                if ends[o] == CALLED:
                    g = called_ghost(e, b, c, 4 + end, step, i0, i1, end * (n2 - 1), i0 * n1 + i1, u0, u1)
                buf[x + away] = g + ends[o + 2] * u1 + ends[o + 1] * u0


@inner
def steady_ends(ends, place, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2):
    """Set held cells and ghosts at the ends of rows for which `set_ends` has said the same.

    Ghosts beside a held row may be set before the row is: only the held row itself would read them.
    """
    inline_here()
    if rows > 1:
        many_ends(ends, place, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2)
        return
    line_ends(ends, place, C, buf, row, stride, lo, hi, at_low, at_high, wrap, ghosts, n2)


@inner
def line_ends(ends, place, C, buf, row, stride, lo, hi, at_low, at_high, wrap, ghosts, n2):
    """`steady_ends` for one row."""
    inline_here()
    hold_ends(ends, place, C, buf, row, stride, lo, hi, at_low, at_high)
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        a, z, o = row + c * stride + lo, row + c * stride + hi - 1, place + 8 * c
        if wrap:
            buf[a - 1], buf[z + 1] = buf[z], buf[a]
        elif ghosts:
            if at_low and ends[o] == GHOST:
                buf[a - 1] = ends[o + 3] + ends[o + 2] * buf[a + inside] + ends[o + 1] * buf[a]
            if at_high and ends[o + 4] == GHOST:
                buf[z + 1] = ends[o + 7] + ends[o + 6] * buf[z - inside] + ends[o + 5] * buf[z]


@inner
def many_ends(ends, place, C, buf, row, stride, along, rows, lo, hi, at_low, at_high, wrap, ghosts, n2):
    """`steady_ends` for many rows, `along` apart."""
    keep_apart()
    inside = min(np.int64(1), n2 - 1)
    for c in range(C):
        for turn in range(4):  # first the held cells of both ends, then the ghosts, which may read them
            end, o = turn & 1, place + 8 * c + 4 * (turn & 1)
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


class Block(NamedTuple):
    """One block of the `resident` schedule: columns of all of axes 0 and 1, in flat memory; all whole numbers."""

    b: Any  # sample
    near: Any  # components that lie there twice, by turns, and those that are kept in place
    own: Any
    n0: Any  # the grid
    n1: Any
    n2: Any
    g0: Any  # ghosts along an axis
    g1: Any
    first: Any  # columns of the grid in the block, halos included
    last: Any
    at_low: Any  # whether the block ends where a bounded grid does
    at_high: Any
    wrap: Any  # whole periodic rows
    slides: Any  # levels slide in one buffer
    held: Any  # some side of axis 0 or 1 is held
    vary: Any  # as `ends_vary` says
    start: Any  # in the memory: first the numbers of the ends; then a level, from here on; what is kept; rows' columns
    keep: Any
    right: Any
    pitch: Any  # from row to row
    plane: Any  # from plane to plane
    stride: Any  # from component to component
    shift: Any  # from level to level and back


@inner
def block_of(e, b, shape, own, k0, k1, levels):
    """How a block lies in the memory."""
    C, n0, n1, n2 = shape
    near, bounded, whole = C - own, e.ints[2] == BOUNDED, k1 - k0 == n2
    g0, g1 = np.int64(e.ints[0] != ABSENT), np.int64(e.ints[1] != ABSENT)
    first, last = (k0, k1) if whole else (k0 - levels, k1 + levels)
    if bounded:
        first, last = max(first, np.int64(0)), min(last, n2)
    pitch = (last - first + 1 + LANES) // LANES * LANES + LANES
    plane = (n1 + 2 * g1) * pitch
    slides = e.ints[0] != ABSENT and e.ints[1] == ABSENT and near == SLIDING
    stride = (n0 + 2 * g0 + 3 * np.int64(slides)) * plane
    shift = 3 * plane if slides else near * stride
    start = (8 * near + LANES - 1) // LANES * LANES
    keep = start + near * stride + (0 if slides else shift)
    at_low, at_high, wrap = bounded and first == 0, bounded and last == n2, whole and e.ints[2] == PERIODIC
    held, vary = holds_rows(e, near), ends_vary(e, near)
    return Block(b, near, own, n0, n1, n2, g0, g1, first, last, at_low, at_high, wrap, slides, held, vary, start, keep,
                 LANES + last - first, pitch, plane, stride, shift)


@inner
def tile_resident(params, edges, b, shape, source, target, memory, k0, k1, levels, step):
    """March columns k0:k1 (all of axes 0 and 1) `levels` steps, in cache.

    In two buffers in turns. Two components in 2-D go in one, where a level lies three rows below or above the one
    before: a pair of new rows takes the place of two that are no longer needed, so that half as much goes through the
    cache. With one component that gains nothing (measured).
    """
    keep_apart()
    wide_vectors()
    p, e, src, dst, buf = borrow(params), borrow(edges), borrow(source), borrow(target), borrow(memory)
    t, none = block_of(e, b, shape, kept_of(p), k0, k1, levels), k0 - k0
    set_ends(e, b, t.near, buf, none, step, none, none, t.n1, t.n2)
    q, new, old = sample_of(p, b), t.start, t.start + t.shift
    for z in range(t.n0):
        for y in range(t.n1):
            place, at = ((b * (t.near + t.own) * t.n0 + z) * t.n1 + y) * t.n2, (z + t.g0) * t.plane
            at += (y + t.g1) * t.pitch + LANES
            load_row(t.near, src, place, t.n0 * t.n1 * t.n2, t.first, t.last, t.n2, buf, new + at, t.stride)
            load_row(t.own, src, place + t.near * t.n0 * t.n1 * t.n2, t.n0 * t.n1 * t.n2, t.first, t.last, t.n2, buf,
                     t.keep + at, (t.n0 + 2 * t.g0) * t.plane)
    finish_level(e, t, buf, new, step)
    if t.g0 == 0 and t.g1 == 0 and t.vary != BY_ROW and t.near <= 2 and t.own == 0:
        right = (t.right + LANES - 1) // LANES * LANES  # whole vectors; a ghost beyond is written after its row
        march_line(q, e, b, t.near, buf, old, new, t.stride, np.int64(LANES), right, t.right, levels, step,
                   t.first - LANES, t.at_low, t.at_high, t.wrap, t.vary, t.n2)
    else:
        for level in range(levels):
            new, old = old, new
            block_level(q, t, buf, new, old, step + level)
            if t.vary == BY_LEVEL:
                set_ends(e, b, t.near, buf, none, step + level + 1, none, none, t.n1, t.n2)
            finish_level(e, t, buf, new, step + level + 1)
    store_block(t, buf, dst, t.start + (levels & 1) * t.shift, k0, k1)


@inner
def block_level(q, t, buf, new, old, step):
    """One level of all rows, from those at `old` to those at `new`."""
    keep_apart()
    hi, none, origin = (t.right + LANES - 1) // LANES * LANES, t.n0 - t.n0, t.first - LANES
    if t.slides:
        slide(q, t, buf, new + t.plane, old + t.plane, hi, step)
        return
    calls, rows, along = (t.n0, t.n1, t.pitch) if t.g1 else (none + 1, t.n0, t.plane)
    for z in range(calls):
        at = (z + t.g0) * t.plane + t.g1 * t.pitch
        o = old + at
        update_rows(q, buf, np.uint64(new + at), np.uint64(t.stride), np.uint64(along), buf, np.uint64(o),
                    np.uint64(o - t.g0 * t.plane), np.uint64(o + t.g0 * t.plane), np.uint64(o - t.g1 * t.pitch),
                    np.uint64(o + t.g1 * t.pitch), np.uint64(t.stride), np.uint64(along), buf, np.uint64(t.keep + at),
                    np.uint64((t.n0 + 2 * t.g0) * t.plane), rows, np.uint64(none + LANES), np.uint64(hi), step, z,
                    none, 1 - t.g1, t.g1, np.uint64(origin))


@inner
def finish_level(e, t, buf, new, now):
    """Ends, held rows and ghosts of a level that has just been written or loaded."""
    keep_apart()
    left, none, origin = np.int64(LANES), t.n0 - t.n0, t.first - LANES
    calls, rows, along = (t.n0, t.n1, t.pitch) if t.g1 else (none + 1, t.n0, t.plane)
    if t.vary != BY_ROW:
        for z in range(calls):
            steady_ends(buf, none, t.near, buf, new + (z + t.g0) * t.plane + t.g1 * t.pitch, t.stride, along, rows,
                        left, t.right, t.at_low, t.at_high, t.wrap, True, t.n2)
    if t.vary == BY_ROW or t.held:
        every = t.vary == BY_ROW or e.ints[1] == BOUNDED  # else only the first and the last row may be held
        for z in range(none, t.n0, none + 1 if every else max(t.n0 - 1, none + 1)):
            for y in range(t.n1):
                finish_row(e, t, buf, new + (z + t.g0) * t.plane + (y + t.g1) * t.pitch, z, y, now)
    if t.g0 or t.g1:
        ghosts_resident(e, t.b, t.near, buf, new, t.stride, t.plane, t.pitch, left, t.right, now, t.n0, t.n1, t.n2,
                        t.g0, t.g1, origin)


@inner
def finish_row(e, t, buf, at, z, y, now):
    """Ends that differ from row to row, and held rows."""
    inline_here()
    none, left, origin = z - z, np.int64(LANES), t.first - LANES
    if t.vary == BY_ROW:
        set_ends(e, t.b, t.near, buf, none, now, z, y, t.n1, t.n2)
        hold_ends(buf, none, t.near, buf, at, t.stride, left, t.right, t.at_low, t.at_high)
    if t.held and (z == 0 or z == t.n0 - 1 or (e.ints[1] == BOUNDED and (y == 0 or y == t.n1 - 1))):
        hold_rows(e, t.b, t.near, buf, at, t.stride, left, t.right, now, z, y, origin, t.n0, t.n1, t.n2)
    if t.vary == BY_ROW:
        ghost_ends(e, t.b, buf, none, t.near, buf, at, t.stride, left, t.right, t.at_low, t.at_high, now, z, y, t.n1,
                   t.n2)


@inner
def store_block(t, buf, dst, final, k0, k1):
    """Columns k0:k1 of a block into the grid."""
    keep_apart()
    grid, at = t.n0 * t.n1 * t.n2, LANES + k0 - t.first
    for z in range(t.n0):
        for y in range(t.n1):
            row, place = (z + t.g0) * t.plane + (y + t.g1) * t.pitch + at, (z * t.n1 + y) * t.n2 + k0
            place += t.b * (t.near + t.own) * grid
            copy_row(t.near, buf, final + row, t.stride, dst, place, grid, k1 - k0)
            copy_row(t.own, buf, t.keep + row, (t.n0 + 2 * t.g0) * t.plane, dst, place + t.near * grid, grid, k1 - k0)


@inner
def slide(q, t, buf, new, old, hi, step):
    """One level of all rows, from those at `old` to those at `new`, three rows away; rows go in pairs.

    Towards the rows' first or last, so that none is overwritten before it has been read.
    """
    keep_apart()
    wide_vectors()
    back, none, n0, plane, origin, lo = new > old, t.n0 - t.n0, t.n0, t.plane, t.first - LANES, np.uint64(LANES)
    keep, kstride = t.keep + plane, np.uint64((n0 + 2) * plane)
    for turn in range(n0 // 2):
        i = n0 - 2 - 2 * turn if back else 2 * turn
        o, d, k = old + i * plane, new + i * plane, keep + i * plane
        update_pair(q, buf, np.uint64(d), np.uint64(d + plane), np.uint64(t.stride), buf, np.uint64(o - plane),
                    np.uint64(o), np.uint64(o + plane), np.uint64(o + 2 * plane), np.uint64(t.stride), buf,
                    np.uint64(k), np.uint64(k + plane), kstride, lo, np.uint64(hi), step, i, i + 1, np.uint64(origin))
    if n0 & 1:
        i = none if back else n0 - 1
        o, d = old + i * plane, new + i * plane
        update_rows(q, buf, np.uint64(d), np.uint64(t.stride), np.uint64(plane), buf, np.uint64(o),
                    np.uint64(o - plane), np.uint64(o + plane), np.uint64(o), np.uint64(o), np.uint64(t.stride),
                    np.uint64(plane), buf, np.uint64(keep + i * plane), kstride, none + 1, lo, np.uint64(hi), step, i,
                    none, none, none, np.uint64(origin))


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


class Tile(NamedTuple):
    """One tile of the `stream` schedule; all whole numbers. Arrays are flat: strides are in elements."""

    b: Any  # sample
    C: Any  # components, those with a ring for every level
    own: Any  # those that are kept in place
    n0: Any  # the grid
    n1: Any
    n2: Any
    i0: Any  # the tile, i0:i1 along axis 0 and so on
    i1: Any
    j0: Any
    j1: Any
    k0: Any
    k1: Any
    levels: Any
    step: Any  # of the tile's first level
    bound0: Any  # whether an axis is bounded
    bound1: Any
    bound2: Any
    flat: Any  # axis 1 is absent
    whole: Any  # the tile has whole rows
    wrap: Any  # whole periodic rows
    held: Any  # some side of axis 0 or 1 is held
    vary: Any  # as `ends_vary` says
    start: Any  # in the memory: first the ends of every level, then, from here on, the rings
    pitch: Any  # from row to row
    plane: Any  # from plane to plane
    stack: Any  # from component to component: a ring of four planes
    floor: Any  # from level to level
    keep: Any  # where what is kept lies
    turn: Any  # planes of it, less one
    oy: Any  # index in the memory = index in the grid + offset
    ox: Any


@inner
def tile_of(e, b, shape, own, i0, i1, j0, j1, k0, k1, levels, step):
    """How a tile lies in the memory."""
    C, n0, n1, n2 = shape
    C -= own
    bound2, flat, whole = e.ints[2] == BOUNDED, e.ints[1] == ABSENT, k1 - k0 == n2
    h1 = np.int64(0) if flat else levels + 1  # halo and ghost along axis 1
    h2 = np.int64(0) if whole else levels
    pitch = (k1 - k0 + 2 * h2 + LANES) // LANES * LANES + 2 * LANES
    plane = (j1 - j0 + 2 * h1) * pitch
    near, start = bound2 and (k0 - levels <= 0 or k1 + levels >= n2), room_for_ends(C, levels)
    vary = ends_vary(e, C) if near else np.int64(STEADY)
    wrap = np.int64(whole and e.ints[2] == PERIODIC)
    return Tile(b, C, own, n0, n1, n2, i0, i1, j0, j1, k0, k1, levels, step, np.int64(e.ints[0] == BOUNDED),
                np.int64(e.ints[1] == BOUNDED), np.int64(bound2), np.int64(flat), np.int64(whole), wrap,
                np.int64(holds_rows(e, C)), vary, start, pitch, plane, 4 * plane, C * 4 * plane,
                start + levels * C * 4 * plane, turns(levels) - 1, h1 - j0, LANES + h2 - k0)


@inner
def turns(levels):
    """Planes of what is kept at the cells that are on their way through the levels: a power of 2."""
    count = levels - levels + 4
    while count < levels + 2:
        count *= 2
    return count


@inner
def room_for_ends(C, levels):
    """Elements that the ends of all levels take, up to a whole vector."""
    return (8 * C * (levels + 1) + LANES - 1) // LANES * LANES


@inner
def tile_stream(params, edges, b, shape, source, target, memory, i0, i1, j0, j1, k0, k1, levels, step):
    """March one tile `levels` steps, all levels together as a wavefront along axis 0."""
    keep_apart()
    p, e, src, dst, buf = borrow(params), borrow(edges), borrow(source), borrow(target), borrow(memory)
    t = tile_of(e, b, shape, kept_of(p), i0, i1, j0, j1, k0, k1, levels, step)
    none = b - b
    for level in range(levels + 1):
        set_ends(e, b, t.C, buf, 8 * t.C * level, step + level, none, none, t.n1, t.n2)
    q = sample_of(p, b)
    pace = 1 + t.flat  # rows of the plane go in pairs: two rows share what they read
    for r in range(max(i0 - levels, none) if t.bound0 else i0 - levels, i1 + levels, pace):
        first, last = plain_levels(t, r)
        level = none
        if plain_pair(t, r, levels):
            load_pair(t, src, buf, r)
            level += 1
        while level <= levels:
            i = r - level
            if first <= level <= last:
                wave(q, t, buf, r, level, last)
                level = last
            elif level == levels and plain_pair(t, i, none):
                last_pair(q, t, buf, dst, i)
            else:
                for k in range(i, i + pace):
                    stream_plane(q, e, t, src, dst, buf, k, level)
            level += 1


@inner
def plain_levels(t, r):
    """The levels inside the ring whose pair of rows, at this place of the wavefront, has nothing special."""
    none = r - r
    if t.flat == 0 or t.vary == BY_ROW or r + 1 >= t.i1 + t.levels:
        return none + 1, none
    if t.bound0:
        return max(none + 1, r + 3 - t.n0), min(t.levels - 1, (r - t.i0 + t.levels) // 2, r - 1)
    return none + 1, min(t.levels - 1, (r - t.i0 + t.levels) // 2)


@inner
def plain_pair(t, i, reach):
    """Whether rows `i` and `i + 1` are of the tile or `reach` beyond, none of them the first or last of the grid."""
    inside = i >= t.i0 - reach and i + 1 < t.i1 + reach
    return t.flat and t.vary != BY_ROW and inside and (t.bound0 == 0 or (i > 0 and i + 2 < t.n0))


@inner
def columns(t, level):
    """The first column that a level needs, and the one after the last."""
    inline_here()
    reach = np.int64(0) if t.whole else t.levels - level
    if t.bound2:
        return max(t.k0 - reach, np.int64(0)), min(t.k1 + reach, t.n2)
    return t.k0 - reach, t.k1 + reach


@inner
def load_pair(t, src, buf, i):
    """Rows `i` and `i + 1` of the first level, neither the first nor the last of a bounded grid."""
    keep_apart()
    wide_vectors()
    ka, kb = columns(t, i - i)
    grid, lo, hi = t.n0 * t.n2, ka + t.ox, kb + t.ox
    for k in range(i, i + 2):
        row, place = t.start + slot(t, k), t.b * (t.C + t.own) * grid + wrapped(k, t.n0) * t.n2
        if ka >= 0 and kb <= t.n2:
            copy_row(t.C, src, place + ka, grid, buf, row + lo, t.stack, kb - ka)
            copy_row(t.own, src, place + t.C * grid + ka, grid, buf, cabin(t, k) + lo, deck(t), kb - ka)
        else:
            load_row(t.C, src, place, grid, ka, kb, t.n2, buf, row + lo, t.stack)
            load_row(t.own, src, place + t.C * grid, grid, ka, kb, t.n2, buf, cabin(t, k) + lo, deck(t))
        at_low, at_high = t.bound2 and ka == 0, t.bound2 and kb == t.n2
        if at_low or at_high or t.wrap:
            line_ends(buf, i - i, t.C, buf, row, t.stack, lo, hi, at_low, at_high, t.wrap, True, t.n2)


@inner
def slot(t, i):
    """Where row or plane `i` lies in a ring."""
    inline_here()
    return (i & 3) * t.plane


@inner
def cabin(t, i):
    """Where what is kept of row or plane `i` lies."""
    inline_here()
    return t.keep + (i & t.turn) * t.plane


@inner
def deck(t):
    """From component to component of what is kept."""
    inline_here()
    return (t.turn + 1) * t.plane


@inner
def wave(q, t, buf, r, first, last):
    """Levels `first` to `last` of the wavefront at `r`, a pair of rows each, none of them special."""
    keep_apart()
    wide_vectors()
    for level in range(first, last + 1):
        i = r - level
        ka, kb = columns(t, level)
        lo, hi = ka + t.ox, kb + t.ox
        new = t.start + level * t.floor
        old = new - t.floor
        a, b = new + slot(t, i), new + slot(t, i + 1)
        update_pair(q, buf, np.uint64(a), np.uint64(b), np.uint64(t.stack), buf,
                    np.uint64(old + slot(t, i - 1)), np.uint64(old + slot(t, i)),
                    np.uint64(old + slot(t, i + 1)), np.uint64(old + slot(t, i + 2)), np.uint64(t.stack), buf,
                    np.uint64(cabin(t, i)), np.uint64(cabin(t, i + 1)), np.uint64(deck(t)),
                    np.uint64(lo // LANES * LANES),
                    np.uint64((hi + LANES - 1) // LANES * LANES), t.step + level - 1, wrapped(i, t.n0),
                    wrapped(i + 1, t.n0), np.uint64(-t.ox))
        at_low, at_high = t.bound2 and ka == 0, t.bound2 and kb == t.n2
        if at_low or at_high or t.wrap:
            pair_ends(buf, 8 * t.C * level, t.C, a, b, t.stack, lo, hi, at_low, at_high, t.wrap, t.n2)


@inner
def pair_ends(buf, place, C, a, b, stack, lo, hi, at_low, at_high, wrap, n2):
    """`line_ends` of two rows inside the ring. Apart, since its addresses would fill the registers of the loop."""
    keep_apart()
    line_ends(buf, place, C, buf, a, stack, lo, hi, at_low, at_high, wrap, True, n2)
    line_ends(buf, place, C, buf, b, stack, lo, hi, at_low, at_high, wrap, True, n2)


@inner
def last_pair(q, t, buf, dst, i):
    """Rows `i` and `i + 1` of the last level, into the grid."""
    keep_apart()
    wide_vectors()
    old, grid = t.start + (t.levels - 1) * t.floor, t.n0 * t.n1 * t.n2
    a = t.b * (t.C + t.own) * grid + i * t.n2 - t.ox
    update_pair(q, dst, np.uint64(a), np.uint64(a + t.n2), np.uint64(grid), buf,
                np.uint64(old + slot(t, i - 1)), np.uint64(old + slot(t, i)),
                np.uint64(old + slot(t, i + 1)), np.uint64(old + slot(t, i + 2)), np.uint64(t.stack), buf,
                np.uint64(cabin(t, i)), np.uint64(cabin(t, i + 1)), np.uint64(deck(t)), np.uint64(t.k0 + t.ox),
                np.uint64(t.k1 + t.ox), t.step + t.levels - 1, i, i + 1, np.uint64(-t.ox))
    for k in range(i, i + 2):
        copy_row(t.own, buf, cabin(t, k) + t.k0 + t.ox, deck(t), dst, a + (k - i) * t.n2 + t.C * grid + t.k0 + t.ox,
                 grid, t.k1 - t.k0)
    at_low, at_high, place = t.bound2 and t.k0 == 0, t.bound2 and t.k1 == t.n2, 8 * t.C * t.levels
    if at_low or at_high:
        hold_ends(buf, place, t.C, dst, a, grid, t.k0 + t.ox, t.k1 + t.ox, at_low, at_high)
        hold_ends(buf, place, t.C, dst, a + t.n2, grid, t.k0 + t.ox, t.k1 + t.ox, at_low, at_high)


@inner
def stream_plane(q, e, t, src, dst, buf, i, level):
    """One plane (or row) of one level, if the tile needs it: loaded or computed, then its ends, walls and ghosts."""
    keep_apart()
    wide_vectors()
    reach = t.levels - level
    if i < t.i0 - reach or i >= t.i1 + reach or (t.bound0 and (i < 0 or i >= t.n0)):
        return
    ja, jb = t.j0, t.j1
    if not t.flat:
        ja, jb = t.j0 - reach, t.j1 + reach
    if t.bound1:
        ja, jb = max(ja, np.int64(0)), min(jb, t.n1)
    ka, kb = columns(t, level)
    lo, hi, now, iw = ka + t.ox, kb + t.ox, t.step + level, wrapped(i, t.n0)
    new, grid = t.start + level * t.floor, t.n0 * t.n1 * t.n2
    line = (ja + t.oy) * t.pitch
    row, out, stride, along = new + slot(t, i) + line, buf, t.stack, t.pitch
    if level > 0 and t.bound0 and (i == 0 or i == t.n0 - 1):
        ghost_planes(e, t.b, t.C, buf, new - t.floor, t.plane, t.pitch, i, ja, jb, t.oy, lo, hi, now - 1, t.n0, t.n1,
                     t.n2, -t.ox)
    if level == 0:
        load_plane(t, src, buf, i, row, ja, jb, ka, kb)
    else:
        wide_lo, wide_hi = lo // LANES * LANES, (hi + LANES - 1) // LANES * LANES  # whole vectors inside the ring
        if level == t.levels:
            row, out, stride, along = grid * t.b * (t.C + t.own) + (i * t.n1 + ja) * t.n2 - t.ox, dst, grid, t.n2
            wide_lo, wide_hi = lo, hi  # the exact range into the grid
        update_plane(q, t, out, buf, new - t.floor + line, i, row, stride, along, jb - ja, wide_lo, wide_hi, now - 1,
                     iw, ja, line)
        if level == t.levels:
            for j in range(jb - ja):
                copy_row(t.own, buf, cabin(t, i) + line + j * t.pitch + lo, deck(t), dst,
                         row + j * along + t.C * grid + lo, grid, hi - lo)
    finish_plane(e, t, out, buf, i, level, row, stride, along, ja, jb, ka, kb)


@inner
def load_plane(t, src, buf, i, row, ja, jb, ka, kb):
    """Rows ja:jb of plane `i` of the first level; `row` is where its first row goes."""
    keep_apart()
    grid, lo = t.n0 * t.n1 * t.n2, ka + t.ox
    for j in range(ja, jb):
        place = t.b * (t.C + t.own) * grid + (wrapped(i, t.n0) * t.n1 + wrapped(j, t.n1)) * t.n2
        load_row(t.C, src, place, grid, ka, kb, t.n2, buf, row + (j - ja) * t.pitch + lo, t.stack)
        load_row(t.own, src, place + t.C * grid, grid, ka, kb, t.n2, buf, cabin(t, i) + (j + t.oy) * t.pitch + lo,
                 deck(t))


@inner
def update_plane(q, t, out, buf, ring, i, row, stride, along, rows, lo, hi, step, iw, ja, line):
    """The rule on some rows of a plane; `ring` is where they start in the first plane of the level before."""
    inline_here()
    o, below, above = ring + slot(t, i), ring + slot(t, i - 1), ring + slot(t, i + 1)
    side = np.int64(0) if t.flat else t.pitch
    update_rows(q, out, np.uint64(row), np.uint64(stride), np.uint64(along), buf, np.uint64(o), np.uint64(below),
                np.uint64(above), np.uint64(o - side), np.uint64(o + side), np.uint64(t.stack), np.uint64(t.pitch), buf,
                np.uint64(cabin(t, i) + line), np.uint64(deck(t)), rows, np.uint64(lo), np.uint64(hi), step, iw, ja,
                i - i, 1 + (i - i), np.uint64(-t.ox))


@inner
def finish_plane(e, t, out, buf, i, level, row, stride, along, ja, jb, ka, kb):
    """Ends, held rows and ghosts of a plane that has just been written."""
    keep_apart()
    lo, hi, now, iw, inside = ka + t.ox, kb + t.ox, t.step + level, wrapped(i, t.n0), level < t.levels
    at_low, at_high, place = t.bound2 and ka == 0, t.bound2 and kb == t.n2, 8 * t.C * level
    if (at_low or at_high or t.wrap) and t.vary != BY_ROW:
        steady_ends(buf, place, t.C, out, row, stride, along, jb - ja, lo, hi, at_low, at_high, t.wrap and inside,
                    inside, t.n2)
    edge0 = t.held and (i == 0 or i == t.n0 - 1)
    if t.vary == BY_ROW or edge0 or (t.held and t.bound1 and (ja == 0 or jb == t.n1)):
        for j in range(ja, jb):
            jw, at = wrapped(j, t.n1), row + (j - ja) * along
            if t.vary == BY_ROW:
                set_ends(e, t.b, t.C, buf, place, now, iw, jw, t.n1, t.n2)
                hold_ends(buf, place, t.C, out, at, stride, lo, hi, at_low, at_high)
            if edge0 or (t.held and t.bound1 and (j == 0 or j == t.n1 - 1)):
                hold_rows(e, t.b, t.C, out, at, stride, lo, hi, now, iw, jw, -t.ox, t.n0, t.n1, t.n2)
            if t.vary == BY_ROW and inside:
                ghost_ends(e, t.b, buf, place, t.C, buf, at, stride, lo, hi, at_low, at_high, now, iw, jw, t.n1, t.n2)
    if inside and t.bound1 and (ja == 0 or jb == t.n1):
        ghost_rows(e, t.b, t.C, buf, t.start + level * t.floor + slot(t, i), t.plane, t.pitch, ja, jb, t.oy, lo,
                   hi, now, iw, t.n1, t.n2, -t.ox)


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
