"""The transposed march on the GPU: what `_adjoint.py` says, a launch for each transposed step, a thread for each cell.

A cell gathers: its own l and its neighbours', 0 beyond walls, and the state around it, ghosts included, go through the
back rule. Then each wall in turn, a thread for each of its cells, passes on what fell on its ghosts to the first and
the second cell inside, and adds to its sums. Last, l is set to 0 where the field is held. No two threads of a launch
write to one place, and what is summed up belongs to one cell: results are the same, bit by bit, from run to run.

States between come from the forward schedule, a step at a time, from the same checkpoints as on the CPU.

Importing this file imports numba.cuda; import it inside the function that needs it.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from fastdiff.kernels import _cuda
from fastdiff.kernels._adjoint import TERMS, Adjoint, Checkpoints, _from_checkpoints, _registers, back, edge, plan_for
from fastdiff.kernels._edges import (
    _SPACE,
    BOUNDED,
    CALL,
    COEF,
    COEF_PER_SAMPLE,
    GHOST,
    HEAD,
    HOLD,
    ITEMS,
    KIND,
    PERIODIC,
    is_seeing,
)
from fastdiff.kernels._march import At, Star, components_of, sample_of
from fastdiff.kernels._march_cuda import (
    NoValues,
    _lowered,
    as_space,
    axis_kind,
    edge_value,
    ghosts,
    march_cuda,
    side_kind,
    to_device,
)
from fastdiff.kernels._run import space_of
from fastdiff.kernels._state_cuda import copy_cuda, hold_cuda, resize_cuda
from fastdiff.kernels._wide import near_of

cuda = _cuda.toolkit()
THREADS = 128


# -- back rules, by type ----------------------------------------------------------------------------------------------


def _stars(near):
    return tuple(Star(*(near[c, k] for k in range(7))) for c in range(near.shape[0]))


def pull_cell(q, us, ls, at, new):
    """The back rule on the stars of the state, us[component, place], and of l; its results go to `new`."""
    for k, value in enumerate(back(q, _stars(us), _stars(ls), at)):
        new[k] = value


def edge_cell(q, us, ls, at, new):
    """What falls on the neighbours of a cell, and its own l, to `new`: seven numbers a component."""
    for k, value in enumerate(edge(q, _stars(us), _stars(ls), at)):
        new[k] = value


def _compiled(name, function, rule, results):
    def stars(array, count):
        return "".join(f"Star({', '.join(f'{array}[{c}, {k}]' for k in range(7))}), " for c in range(count))

    users = rule.components
    lines = [f"def {name}(q, us, ls, at, new):",
             f"    values = {name}_of(q, ({stars('us', users)}), ({stars('ls', users * _registers(rule))}), at)",
             *(f"    new[{k}] = values[{k}]" for k in range(results))]
    scope = {f"{name}_of": function, "Star": Star}
    exec("\n".join(lines), scope)
    return scope[name]


@overload(pull_cell)
def _pull_cell(q, us, ls, at, new):
    rule = q.instance_class
    return _compiled("pull_cell", back, rule, rule.components * _registers(rule) + rule.grads)


@overload(edge_cell)
def _edge_cell(q, us, ls, at, new):
    rule = q.instance_class
    return _compiled("edge_cell", edge, rule, 7 * rule.components)


# -- kernels -----------------------------------------------------------------------------------------------------------


@register_jitable
def beside(e, axis, i, n, by):
    """The index of a neighbour along an axis, -1 beyond a wall; the cell itself where the axis is absent."""
    kind, j = axis_kind(e, axis), i + by
    if kind == PERIODIC:
        return j + n if j < 0 else (j - n if j >= n else j)
    if kind != BOUNDED:
        return i
    return -1 if j >= n else j


@register_jitable
def gather(e, src, b, count, near, z, y, x, inside):
    """The stars of a cell; beyond walls its own value, or with `inside` 0."""
    n0, n1, n2 = src.shape[2], src.shape[3], src.shape[4]
    for c in range(count):
        own = src[b, c, z, y, x]
        near[c, 0] = own
        other = own - own if inside else own
        for k in range(6):
            axis, by = k >> 1, 2 * (k & 1) - 1
            i = beside(e, axis, z if axis == 0 else (y if axis == 1 else x), n0 if axis == 0 else (
                n1 if axis == 1 else n2), by)
            value = other
            if i >= 0:
                value = src[b, c, i if axis == 0 else z, i if axis == 1 else y, i if axis == 2 else x]
            near[c, 1 + k] = value


def pull_step(q, e, values, src, old, new, sums, step):
    """Kernel: l of a step before from that after it, but for what walls do; a thread for each cell.

    Free names: users (components), levels (components with an integrator's registers), grads, number.
    """
    n0, n1, n2 = src.shape[2], src.shape[3], src.shape[4]
    index = cuda.grid(1)
    if index >= src.shape[0] * n0 * n1 * n2:
        return
    x, index = index % n2, index // n2
    y, index = index % n1, index // n1
    z, b = index % n0, index // n0
    us, ls = cuda.local.array((users, 7), number), cuda.local.array((levels, 7), number)
    found = cuda.local.array(levels + grads, number)
    gather(e, src, b, users, us, z, y, x, False)
    ghosts(e, values, b, users, us, step, z, y, x, n0, n1, n2)
    gather(e, old, b, levels, ls, z, y, x, True)
    pull_cell(sample_of(q, b), us, ls, At(step, z, y, x), found)
    for c in range(levels):
        new[b, c, z, y, x] = found[c]
    for k in range(grads):
        sums[b, k, z, y, x] += found[levels + k]


def fold_side(q, e, values, src, old, new, walls, step, side, want):
    """Kernel: what fell on the ghosts of one side, to the two cells that they are made of; a thread for each of them.

    Free names as in `pull_step`.
    """
    n0, n1, n2 = src.shape[2], src.shape[3], src.shape[4]
    axis, index = side >> 1, cuda.grid(1)
    n = n0 if axis == 0 else (n1 if axis == 1 else n2)
    cells = n0 * n1 * n2 // n
    if index >= src.shape[0] * cells:
        return
    place, b = index % cells, index // cells
    width = n1 if axis == 2 else n2
    low, high, end = place % width, place // width, (n - 1) * (side & 1)
    z = end if axis == 0 else high
    y = end if axis == 1 else (high if axis == 0 else low)
    x = end if axis == 2 else low
    inward = (1 - 2 * (side & 1)) if n > 1 else 0
    us, ls = cuda.local.array((users, 7), number), cuda.local.array((levels, 7), number)
    fell = cuda.local.array(7 * users, number)
    gather(e, src, b, users, us, z, y, x, False)
    ghosts(e, values, b, users, us, step, z, y, x, n0, n1, n2)
    gather(e, old, b, levels, ls, z, y, x, True)
    edge_cell(sample_of(q, b), us, ls, At(step, z, y, x), fell)
    for c in range(users):
        if side_kind(e, c, side) == GHOST:
            first = HEAD + (c * 6 + side) * ITEMS
            at = e.ints[first + COEF] + e.ints[first + COEF_PER_SAMPLE] * b
            u0 = us[c, 0]
            cot, ghost = u0, u0
            for k in range(six):  # written out: an index that is not known would put the arrays into memory
                if k == side:
                    cot, ghost = fell[7 * c + k], us[c, 1 + k]
            z1 = z + inward if axis == 0 else z
            y1 = y + inward if axis == 1 else y
            x1 = x + inward if axis == 2 else x
            new[b, c, z, y, x] += e.reals[at] * cot
            new[b, c, z1, y1, x1] += e.reals[at + 1] * cot
            if want:
                u1 = src[b, c, z1, y1, x1]
                g = edge_value(e, values, b, c, side, step, z, y, x, n1, n2, u0, u1)
                walls[b, c, side, 0, place] += cot * u0
                walls[b, c, side, 1, place] += cot * u1
                walls[b, c, side, 2, place] += cot * g
                walls[b, c, side, 3, place] += cot
                walls[b, c, side, 4, place] += fell[7 * c + 6] * (ghost - u0)


def release(e, l, walls, users, want):
    """Kernel: l of held cells goes to the held value's sum and is 0 from there on; a thread for each cell."""
    n0, n1, n2 = l.shape[2], l.shape[3], l.shape[4]
    index = cuda.grid(1)
    if index >= l.shape[0] * l.shape[1] * n0 * n1 * n2:
        return
    x, index = index % n2, index // n2
    y, index = index % n1, index // n1
    z, index = index % n0, index // n0
    c, b = index % l.shape[1], index // l.shape[1]
    for side in range(6):
        axis = side >> 1
        i = z if axis == 0 else (y if axis == 1 else x)
        n = n0 if axis == 0 else (n1 if axis == 1 else n2)
        if axis_kind(e, axis) == BOUNDED and side_kind(e, c, side) == HOLD and i == (n - 1) * (side & 1):
            if want and c < users:
                place = z * n1 + y if axis == 2 else (z if axis == 1 else y) * n2 + x
                walls[b, c, side, 3, place] += l[b, c, z, y, x]
            l[b, c, z, y, x] = l[b, c, z, y, x] - l[b, c, z, y, x]


@lru_cache(maxsize=64)
def kernels(users, levels, grads, dtype) -> tuple[Any, ...]:
    """`pull_step`, `fold_side` and `release`."""
    how: dict[str, Any] = dict(threads=THREADS, users=users, levels=levels, grads=grads, number=getattr(types, dtype),
                               six=6)
    return (_cuda.specialised(pull_step, **how), _cuda.specialised(fold_side, **how),
            _cuda.specialised(release, threads=THREADS))


# -- the host ----------------------------------------------------------------------------------------------------------


def refuse(rule, edges):
    """Raise NotImplementedError for what has an adjoint on the CPU alone."""
    count = components_of(type(rule))
    called = edges.ints[HEAD + CALL : HEAD + 6 * count * ITEMS : ITEMS].any()
    if called or is_seeing(edges):
        raise NotImplementedError("a boundary value that depends on the field has an adjoint on the CPU alone")
    if near_of(rule) != "star":
        raise NotImplementedError("orders 4 and 6, matrices of diffusivities, upwind2 and upwind3, and equations of "
                                  "fourth order have an adjoint on the CPU alone: move the field there, u.cpu()")


def _zeros(like, shape):
    if hasattr(like, "new_zeros"):
        return like.new_zeros(shape)
    return cuda.to_device(np.zeros(shape, like.dtype))


class _Segments:
    """Everything that segments share, on the device; its methods are those of the CPU's, for `_reverse`."""

    def __init__(self, rule, back_rule, u, edges, stages, first, want, stream):
        refuse(rule, edges)
        self.u, self.edges, self.stages, self.first, self.stream = u, edges, stages, first, stream
        self.want, self.components = bool(want), components_of(type(rule))
        self.queue = _cuda.numba_stream(stream)
        self.shape, self.dtype = space_of(tuple(u.shape)), str(u.dtype).removeprefix("torch.")
        users = back_rule.components
        self.levels, self.grads = users * _registers(type(back_rule)), type(back_rule).grads
        self.rule = self._there(rule)
        self.data = self._there(back_rule), to_device(edges, self.queue), NoValues()
        B, _, n0, n1, n2 = self.shape
        self.face = max(n0 * n1, n0 * n2, n1 * n2)
        self.sums = _zeros(u, (B, max(self.grads, 1), *u.shape[2:]))
        self.walls = _zeros(u, (B, users, 6, TERMS, self.face) if want else (1, 1, 1, 1, 1))
        self.steps = kernels(users, self.levels, self.grads, self.dtype)
        kinds = edges.ints[HEAD + KIND : HEAD + 6 * users * ITEMS : ITEMS].reshape(users, 6)
        bounded = [s for s in range(6) if edges.ints[s >> 1] == BOUNDED]
        self.open = [s for s in bounded if (kinds[:, s] == GHOST).any()]
        self.held = any((kinds[:, s] == HOLD).any() for s in bounded)
        self.spare: list[Any] = []

    def _there(self, rule):
        """A rule with its numbers on the device."""
        return to_device(_lowered(rule, self.u, self.edges, self.queue), self.queue)

    def _run(self, kernel, cells, *arguments):
        threads = 32 if _cuda.simulated() else THREADS
        if cells:
            kernel[-(-cells // threads), threads, self.queue](*arguments)

    def free(self, l):
        """Let go of held cells of l, in place."""
        if self.held:
            space = as_space(_cuda.wrap(l))
            self._run(self.steps[2], int(np.prod(space.shape)), self.data[1], space, _cuda.wrap(self.walls),
                      self.walls.shape[1], self.want)
        return l

    def advance(self, state, at, steps):
        """The state so many steps later."""
        return _advance(self.rule, state, self.edges, steps, self.stages, self.first + at * self.stages, self.stream)

    def reverse(self, start, more, at, lengths, cot):
        """March from the state after `at` steps and those in `more`, by as many steps as `lengths` say, and back."""
        l = self._room(cot, self.levels)
        for m in reversed(range(len(lengths))):
            first, count = self.first + (at + sum(lengths[:m])) * self.stages, lengths[m] * self.stages
            states = [self._room(start if m == 0 else more[m - 1], self.components)]
            for k in range(count - 1):
                spare = self.spare.pop() if self.spare else None
                states.append(march_cuda(self.rule, states[-1], self.edges, 1, step=first + k, out=spare,
                                         stream=self.stream))
            for k in reversed(range(count)):
                l = self._back(states[k], l, first + k)
            self.spare += states[1:]
        return self._room(l, self.shape[1])

    def _room(self, array, components):
        """An array with so many components: those of an integrator's registers are 0 between steps."""
        return array if array.shape[1] == components else resize_cuda(array, components, self.stream)

    def _back(self, state, l, step):
        """One transposed step; `l` is used up."""
        new = self.spare.pop() if self.spare else _cuda.empty_like(l)
        src, old, to = (as_space(_cuda.wrap(a)) for a in (state, l, new))
        cells = self.shape[0] * int(np.prod(self.shape[2:]))
        self._run(self.steps[0], cells, *self.data, src, old, to, as_space(_cuda.wrap(self.sums)), step)
        for side in self.open:
            self._run(self.steps[1], cells // self.shape[2 + (side >> 1)], *self.data, src, old, to,
                      _cuda.wrap(self.walls), step, side, self.want)
        self.spare.append(l)
        return self.free(new)

    def result(self, cot) -> Adjoint:
        """All gradients as device arrays, the walls' sums of all six internal sides."""
        return Adjoint(cot, self.sums, self.walls)


def _advance(rule, u, edges, steps, stages, step, stream):
    """March a field some steps; registers of an integrator live in between."""
    C, components = u.shape[1], components_of(type(rule))
    if components == C or steps == 0:
        return march_cuda(rule, u, edges, steps * stages, step=step, stream=stream)
    new = march_cuda(rule, resize_cuda(u, components, stream), edges, steps * stages, step=step, stream=stream)
    return resize_cuda(new, C, stream)


def march_kept_cuda(rule, u, edges, steps, plan: Checkpoints, *, stages=1, step=0, stream=None, positions=None):
    """March like `march_cuda`, and keep the states that `plan` asks for: (result, list of states)."""
    positions = plan.positions(steps) if positions is None else positions
    kept, at = [], 0
    for position in positions:
        u, at = _advance(rule, u, edges, position - at, stages, step + at * stages, stream), position
        kept.append(u)
    return _advance(rule, u, edges, steps - at, stages, step + at * stages, stream), kept


def march_adjoint_cuda(rule, back_rule, u, cot, edges, steps, *, kept=None, plan: Checkpoints | None = None, stages=1,
                       step=0, walls=True, stream=None) -> Adjoint:
    """The transpose of `steps` steps of `rule` from u (B, C, *grid), applied to `cot`; device arrays.

    As `march_adjoint` on the CPU; `kept` is the list of states that `march_kept_cuda` kept for `plan`.
    """
    _cuda.require_device()
    run = _Segments(rule, back_rule, u, edges, stages, step, walls, stream)
    cot = run.free(copy_cuda(cot, stream=stream))
    if steps == 0:
        return run.result(cot)
    if plan is None:
        plan = plan_for(tuple(u.shape), np.dtype(run.dtype).itemsize, steps, components=run.components, stages=stages)
    start = hold_cuda(copy_cuda(u, stream=stream), edges, step, stream)
    positions = plan.positions(steps)
    if kept is None:
        kept = march_kept_cuda(run.rule, start, edges, positions[-1] if positions else 0, plan, stages=stages,
                               step=step, stream=stream, positions=positions)[1]
    return run.result(_from_checkpoints(run, plan, start, kept, positions, steps, cot))


def to_host(found: Adjoint, ndim: int, grads: int) -> Adjoint:
    """Gradients as NumPy arrays in the shapes of the CPU's."""
    start, sums, walls = (_cuda.wrap(a).copy_to_host() for a in found)
    axes = [2 * a + end for a in _SPACE[ndim] for end in (0, 1)]
    if walls.shape[2] == 6:
        walls = walls[:, :, axes].reshape(*walls.shape[:2], ndim, 2, TERMS, -1)
    else:
        grid = space_of(start.shape)[2:]
        face = max(grid[0] * grid[1], grid[0] * grid[2], grid[1] * grid[2])
        walls = np.zeros((*start.shape[:2], ndim, 2, TERMS, face), start.dtype)
    return Adjoint(start, np.ascontiguousarray(sums[:, :grads]), walls)


def launches(rule, edges, dtype):
    """What the PTX gate compiles for a lowered back rule."""
    from fastdiff.kernels._contract import Launch

    users, levels, grads = rule.components, rule.components * _registers(type(rule)), type(rule).grads
    state, name = np.zeros((1,) * 5, dtype), np.dtype(dtype).name
    pull, fold, free = kernels(users, levels, grads, name)
    data = rule, edges, NoValues()
    return [Launch("pull", pull, (*data, state, state, state, state, 0), (THREADS, 1)),
            Launch("fold", fold, (*data, state, state, state, state, 0, 0, True), (THREADS, 1)),
            Launch("release", free, (edges, state, state, 1, True), (THREADS, 1))]


__all__ = ["launches", "march_adjoint_cuda", "march_kept_cuda", "refuse", "to_host"]
