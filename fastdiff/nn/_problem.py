"""From an equation, a grid and walls to the numbers of a march, with parameters that may be torch tensors and learned.

`Problem` is the torch half: which parameters there are by name, and how they become a step's coefficients, in float64
and with torch's own operators, so that torch differentiates that part (it costs one pass over the grid, whatever the
number of steps). `Layout` is the NumPy half, where the kernels are called: from coefficients to rules, back rules and
walls. Operators of torch find a layout by its key, a digest of all it says, so compiled graphs may outlive a process.
"""

import hashlib
import itertools
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fastdiff.boundary import (
    CONSTANT,
    INITIAL,
    Faces,
    Flux,
    Neumann,
    Robin,
    _face_array,
    _wall,
    as_numbers,
    conditions,
    lower,
)
from fastdiff.equations import (
    SIR,
    AdvectionDiffusion,
    AllenCahn,
    Brusselator,
    Burgers,
    CahnHilliard,
    DiffusionSorption,
    FisherKPP,
    FitzHughNagumo,
    GrayScott,
    Heat,
    PorousMedium,
    ReactionDiffusion,
    Schnakenberg,
    SwiftHohenberg,
    _linear,
)
from fastdiff.equations._base import samples
from fastdiff.equations._coefficients import in_space, is_formula, over_grid, shaped, timed_source, uses
from fastdiff.equations._laws import compiled_law, host_law, slope
from fastdiff.equations._named import Named
from fastdiff.equations._rules import _plain
from fastdiff.equations._transposed import back_module
from fastdiff.equations.heat import _LAPLACIAN, _LIMIT
from fastdiff.expressions import Expression
from fastdiff.grid import Grid
from fastdiff.kernels import adjoint, burgers, fourth_order, heat, nonlinear, variable, wide
from fastdiff.kernels import rkl2 as _rkl2
from fastdiff.kernels._adjoint import staged_back
from fastdiff.kernels._adjoint_nonlinear import back_burgers, back_law, back_stored
from fastdiff.kernels._adjoint_wide import back_fourth, back_weighted
from fastdiff.kernels._edges import HOLD, Side
from fastdiff.kernels._fields import Cells
from fastdiff.kernels._stages import stage_times, staged
from fastdiff.kernels.power import pays
from fastdiff.nn import _weights
from fastdiff.steppers import METHODS
from fastdiff.steppers._base import Unstable

METHODS_KNOWN = ("euler", "rk4", "rkl2")
RATES, FACES, CELLS, REACTION, LAW, FLUX = "rates", "faces", "cells", "reaction", "law", "flux"
WIDE, WIDE_CELLS = "wide", "wide cells"  # coefficients of a wide rule, numbers or fields

_NAMED: dict[type, Any] = {  # diffusivity of each component, from the fields of a named equation
    AllenCahn: lambda p: [p["M"] * p["kappa"]],
    Brusselator: lambda p: [p["Du"], p["Dv"]],
    FisherKPP: lambda p: [p["D"]],
    FitzHughNagumo: lambda p: [p["Du"], p["Dv"]],
    GrayScott: lambda p: [p["Du"], p["Dv"]],
    Schnakenberg: lambda p: [p["Du"], p["Dv"]],
    SIR: lambda p: [p["D"]] * 3,
}
_FOURTH = (CahnHilliard, SwiftHohenberg)
_OTHERS = (Heat, PorousMedium, DiffusionSorption, AdvectionDiffusion, Burgers, ReactionDiffusion, *_FOURTH)
_SUPPORTED = ", ".join(f"fd.{cls.__name__}" for cls in (*_OTHERS, *_NAMED))


def _refuse(why):
    raise NotImplementedError(f"{why}; differentiable are {_SUPPORTED}")


def _check_equation(equation):
    if not isinstance(equation, (*_OTHERS, *_NAMED)):
        _refuse(f"fd.nn has no adjoint of {type(equation).__name__}")


def _is_wide(equation) -> bool:
    """Whether a step looks further than one cell along the axes (kernels/_wide.py)."""
    if isinstance(equation, Heat):
        return equation.order > 2 or equation._matrix is not None
    return isinstance(equation, _FOURTH) or getattr(equation, "scheme", "") in ("upwind2", "upwind3")


# -- digests -----------------------------------------------------------------------------------------------------------

_counter = itertools.count()
_tokens: dict[Any, str] = {}


def _describe(value) -> str:
    """A text that tells one value from another, the same in every process (functions have none)."""
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {_describe(v)}' for k, v in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_describe, value))})"
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        return f"{type(value).__module__}.{type(value).__qualname__}{_describe(parts)}"
    if callable(value):
        if value not in _tokens:
            import os

            _tokens[value] = f"function {next(_counter)} of {os.getpid()} {os.urandom(8).hex()}"
        return _tokens[value]
    return repr(value)


# -- walls -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LearnedWall:
    """What of one wall comes as tensors: its coefficients (alpha, beta, gamma), its value, or both."""

    side: tuple[int, int, int]
    coefficients: bool
    value: bool


def _slope_of(formula) -> Any:
    """dg/du of a formula, as a formula."""
    if not isinstance(formula, Expression):
        raise NotImplementedError(f"the boundary value {formula.text} is a Python function of u, whose derivative is "
                                  "not known: write it as an expression, such as \"-(u**4 - 1)\"")
    import sympy

    slope = _plain(sympy.diff(formula.sympy(), sympy.Symbol("u", real=True)))
    return Expression(str(slope), formula.known)


# -- the NumPy half ----------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, "Layout"] = {}


@dataclass(frozen=True)
class Layout:
    """How the tensors of a march follow each other, and what is the same at every call.

    Tensors: `rates` (b, components, axes) or (b, 2 axes) weights, `faces`, one (b, *grid and one more) an axis, or
    `cells` (b, 2 axes, *grid); then decay and source (b, *grid), the reaction's parameters (b,); then for each learned
    wall its coefficients (b, 3) and value (b, cells of the face or 1). b is 1 or the batch.
    """

    problem: "Problem"
    kind: str
    decay: bool
    source: bool
    walls: tuple[_LearnedWall, ...]
    key: str = field(default="", compare=False)

    # -- order of the tensors ------------------------------------------------------------------------------------------

    @cached_property
    def leading(self) -> int:
        """Tensors of the operator in space."""
        return self.problem.grid.ndim if self.kind == FACES else 1

    @cached_property
    def slots(self) -> list[tuple]:
        """What each tensor is."""
        made: list[tuple] = [("space", k) for k in range(self.leading)]
        made += [("decay",)] * self.decay + [("source",)] * self.source
        made += [("parameter", k) for k in range(len(self.problem.named))]
        for k, wall in enumerate(self.walls):
            made += [("coefficients", k)] * wall.coefficients + [("value", k)] * wall.value
        return made

    def _of(self, numbers, *slot) -> Any:
        return numbers[self.slots.index(slot)] if slot in self.slots else None

    # -- the march -----------------------------------------------------------------------------------------------------

    def check(self, numbers, stiffness) -> float:
        """Refuse coefficients that are not finite, negative diffusivities, and steps beyond the stability limit.

        Returns the step in units of that limit of forward Euler.
        """
        problem, grid = self.problem, self.problem.grid
        for slot, value in zip(self.slots, numbers):
            if not np.isfinite(value).all():
                raise ValueError(f"a coefficient ({slot[0]}) is not finite: a parameter is NaN, infinite, or a "
                                 "diffusivity is negative; keep learned ones in range with fd.nn.Bounded")
        space = numbers[: self.leading]
        if self.kind in (RATES, REACTION, FLUX):
            if min(s.min() for s in space) < 0:
                raise ValueError("a diffusivity is negative: keep a learned one positive with fd.nn.Bounded, or learn "
                                 "its logarithm")
            walls = np.asarray(stiffness)
            largest = 2 * float((space[0].astype(np.float64) * walls).sum(-1).max())
            if self.kind == FLUX:
                largest += 4 / 3 * problem.equation.speed * problem.dt / grid.spacing[0]
        elif self.kind == LAW:
            largest = 4 * float((space[0].astype(np.float64) * np.asarray(stiffness)).sum(-1).max())
        elif self.kind == "numbers":
            largest = float(np.abs(space[0].astype(np.float64)).sum(-1).max())
        elif self.kind in (WIDE, WIDE_CELLS):
            largest = self._widest(space[0].astype(np.float64), np.asarray(stiffness))
        else:
            decay = self._of(numbers, "decay")
            largest = 1 / _linear.stable_step(grid, self._neighbours(space), decay, stiffness)
        largest *= self._steepest(numbers)
        if largest > problem.reach * (1 + 1e-5):
            raise Unstable(f"dt = {problem.dt:g} is unstable for {problem.method} with the coefficients that it got; "
                           f"the largest stable step is {problem.dt * problem.reach / largest:.4g}. Take a smaller dt, "
                           "or keep learned coefficients in range, for example with fd.nn.Bounded")
        return largest

    def _widest(self, space, walls) -> float:
        """`check` for wide rules; where only experience tells, 0: a field that blows up is noticed in the end."""
        problem, ndim = self.problem, self.problem.grid.ndim
        if isinstance(problem.equation, Heat) and problem.equation.order > 2:
            per_axis = space[:, : 2 * ndim : 2] / _LAPLACIAN[problem.equation.order][0]
            if per_axis.min() < 0:
                raise ValueError("a diffusivity is negative: keep a learned one positive with fd.nn.Bounded")
            return float((2 * per_axis * walls).sum(-1).max()) / _LIMIT[problem.equation.order]
        if isinstance(problem.equation, _FOURTH):
            local = isinstance(problem.equation, SwiftHohenberg)
            soft, stiff = 4 * space[:, :ndim] * walls, 16 * space[:, ndim : ndim + ndim * (ndim + 1) // 2]
            total = soft.sum(1) * (1 if local else 2) + stiff.sum(1) * max(walls) ** 2
            return float((total - (space[:, -3] if local else 0)).max()) / 2
        return 0.0

    def at_once(self, steps: int, itemsize: int) -> bool:
        """Whether so many steps are marched as one polynomial of a step (kernels/power.py)."""
        return self._is_power and pays(steps, itemsize)

    @cached_property
    def _is_power(self) -> bool:
        """Whether steps are diffusion, and the same at all times, with real eigenvalues."""
        problem = self.problem
        fits = self.kind in (RATES, FACES, CELLS) and isinstance(problem.equation, Heat) and problem.scheme is None
        still = problem.timed is None and not any(problem.laws) and not self.decay
        return fits and still and problem.shortcut and problem.real and not any(
            w.coefficients and not isinstance(problem.conditions.get(w.side), Flux) for w in self.walls)

    def scaled(self, numbers, scale):
        """The tensors of a step `scale` times as long."""
        return [value * value.dtype.type(scale) if slot[0] in ("space", "decay", "source") else value
                for slot, value in zip(self.slots, numbers)]

    def _steepest(self, numbers) -> float:
        """The largest D(u) / R(u) between the bounds of u; 1 where neither depends on u."""
        D, R = self.problem.laws
        if D is None and R is None:
            return 1.0
        low, high = map(float, self.problem.equation.bounds)
        u, values = np.linspace(low, high, 513), self._values(numbers)
        top = np.ones((1, 1)) if D is None else host_law(D, values, u)
        ratio = top / (1.0 if R is None else host_law(R, values, u))
        if not np.nanmin(top) >= 0:
            raise ValueError("the diffusivity is negative, or no number, between the bounds of u")
        return float(ratio[np.isfinite(ratio)].max())

    def _neighbours(self, space):
        """Weights (b, *grid) of the low and the high neighbour of each axis."""
        if self.kind == CELLS:
            return list(np.moveaxis(space[0], 1, 0))
        n = self.problem.grid.shape
        return [w.take(range(end, n[k] + end), k + 1) for k, w in enumerate(space) for end in (0, 1)]

    def faces(self, numbers, batch, dtype) -> Faces:
        """The walls, with what was learned in place."""
        problem = self.problem
        at_wall = problem.equation.at_wall(problem.grid, batch) if hasattr(problem.equation, "at_wall") else None
        made = lower(problem.boundary, problem.grid, problem.equation.names, batch, dtype, None,
                     problem.equation.diffusivities(problem.grid), at_wall)
        if not self.walls:
            return made
        walls = dict(made.walls)
        for k, learned in enumerate(self.walls):
            wall = walls[learned.side]
            side = dict(vars(wall.side))
            if learned.coefficients:
                side |= dict(zip(("alpha", "beta", "gamma"), self._of(numbers, "coefficients", k).T))
            if learned.value:
                side["value"] = self._of(numbers, "value", k)[:, None]
                wall = wall._replace(how=CONSTANT, formula=None, scale=None)
            walls[learned.side] = wall._replace(side=Side(**side))
        return Faces(problem.grid, walls, len(problem.equation.names), batch, dtype)

    def edges(self, numbers, u, start, steps, faces=None, tables=False):
        """All boundaries of a march; `tables`: as a GPU needs them."""
        problem = self.problem
        faces = self.faces(numbers, len(u), u.dtype) if faces is None else faces
        scheme = problem.scheme
        initial = u if faces.needs_initial else None
        if scheme is None:
            return faces.edges(start, problem.dt, steps, initial=initial, tables=tables)
        return faces.edges(start, problem.dt, steps, initial=initial, tables=tables, registers=scheme.registers,
                           times=stage_times(scheme, start, problem.dt, steps))

    def rule(self, numbers, batch, dtype):
        """The forward rule."""
        rule, R = self._plain_rule(numbers, batch, dtype), self.problem.laws[1]
        if R is not None:
            rule = nonlinear.Stored(rule, compiled_law(R, self._values(numbers), batch, dtype))
        return rule if self.problem.scheme is None else staged(self.problem.scheme, rule, dtype)

    def _plain_rule(self, numbers, batch, dtype):
        """A step's rule without a capacity."""
        problem, grid = self.problem, self.problem.grid
        ndim, space = grid.ndim, numbers[: self.leading]
        if self.kind == RATES:
            rule = heat.rule(np.broadcast_to(space[0][:, 0], (batch, ndim)), dtype)
        elif self.kind == LAW:
            D = compiled_law(str(problem.laws[0]), self._values(numbers), batch, dtype)
            rule = nonlinear.rule(np.broadcast_to(space[0][:, 0], (batch, ndim)), D, dtype)
        elif self.kind == FLUX:
            rate = np.broadcast_to(space[0][:, 0, 0], batch)
            rule = burgers.rule(np.full(batch, problem.dt / grid.spacing[0]), rate, dtype)
        elif self.kind in (WIDE, WIDE_CELLS):
            rule = self._wide_rule(self._columns(space[0], batch, dtype), dtype)
        elif self.kind == "numbers":
            classes = (variable.Variable1D, variable.Variable2D, variable.Variable3D)
            rule = classes[ndim - 1](*_each(space[0], batch, dtype))
        elif self.kind == FACES:
            rule = (variable.Faces1D, variable.Faces2D, variable.Faces3D)[ndim - 1](
                *(Cells(w, ndim, dtype) for w in space))
        elif self.kind == CELLS:
            rule = (variable.Variable1D, variable.Variable2D, variable.Variable3D)[ndim - 1](
                *(Cells(w, ndim, dtype) for w in self._neighbours(space)))
        else:
            rule = self._reaction(numbers, batch, dtype)
        if self.decay:
            rule = variable.Decaying(rule, Cells(self._of(numbers, "decay"), ndim, dtype))
        if self.source:
            rule = variable.Fed(rule, Cells(self._of(numbers, "source"), ndim, dtype))
        if problem.timed is not None:
            rule = nonlinear.Both(rule, timed_source(problem.timed, grid, problem.dt, dtype))
        return rule

    def _columns(self, space, batch, dtype):
        """The numbers of a wide rule (b, count) or (b, count, *grid), one by one, as rules take them."""
        if space.ndim == 2:
            return _each(space, batch, dtype)
        return [Cells(np.ascontiguousarray(w), self.problem.grid.ndim, dtype) for w in np.moveaxis(space, 1, 0)]

    def _wide_rule(self, columns, dtype):
        problem, ndim = self.problem, self.problem.grid.ndim
        if not isinstance(problem.equation, _FOURTH):
            return wide.RULES[problem.near, ndim](*columns)
        count = ndim * (ndim + 1) // 2
        local = np.stack(columns[ndim + count :], 1) if len(columns) > ndim + count else None
        return fourth_order.rule(np.stack(columns[:ndim], 1), np.stack(columns[ndim : ndim + count], 1), dtype, local)

    def _wide_back(self, numbers, batch, dtype, want):
        problem, decay = self.problem, self._of(numbers, "decay")
        columns, sums = self._columns(numbers[0], batch, dtype), want[("space", 0)]
        if isinstance(problem.equation, _FOURTH):
            local = isinstance(problem.equation, SwiftHohenberg)
            return back_fourth(columns, local, problem.grid.ndim, dtype, sums=sums)
        return back_weighted(problem.near, columns, None if decay is None else Cells(decay, problem.grid.ndim, dtype),
                             sums=sums, by_decay=want.get(("decay",), False), source=want.get(("source",), False))

    def _values(self, numbers):
        """The reaction's parameters in float64."""
        return [v.astype(np.float64) for slot, v in zip(self.slots, numbers) if slot[0] == "parameter"]

    def _reaction(self, numbers, batch, dtype):
        from fastdiff.equations._rules import rule_module
        from fastdiff.equations.reaction_diffusion import _shape_of

        problem, number = self.problem, np.dtype(dtype).type
        module = rule_module(problem.system._sources, len(problem.system.parameters), problem.spread)
        rate = np.broadcast_to(numbers[0], (batch, *numbers[0].shape[1:]))
        shape, axes = _shape_of(rate, problem.spread)
        known = problem.system._coefficients(module, self._values(numbers), problem.grid, problem.dt, batch,
                                             np.dtype(dtype))
        return getattr(module, shape)(*(np.ascontiguousarray(r, dtype) for r in axes), *known, number(2), number(4))

    def back(self, numbers, edges, batch, dtype, wanted):
        """The back rule, with the sums that are wanted."""
        problem, ndim, space = self.problem, self.problem.grid.ndim, numbers[: self.leading]
        want = dict(zip(self.slots, wanted))
        by_space, by_source = any(wanted[: self.leading]), want.get(("source",), False)
        decay, by_decay = self._of(numbers, "decay"), want.get(("decay",), False)
        if self.kind == RATES:
            back = adjoint.back_rates(np.broadcast_to(space[0][:, 0], (batch, ndim)), dtype, weights=by_space,
                                      source=by_source)
        elif self.kind == "numbers":
            back = adjoint.back_numbers(_each(space[0], batch, dtype), dtype, sums=by_space, source=by_source)
        elif self.kind == FACES:
            back = adjoint.back_faces(space, dtype, decay, sums=by_space, by_decay=by_decay, source=by_source)
        elif self.kind == CELLS:
            back = adjoint.back_cells(self._neighbours(space), edges, dtype, decay, sums=by_space, by_decay=by_decay,
                                      source=by_source)
        elif self.kind in (WIDE, WIDE_CELLS):
            back = self._wide_back(numbers, batch, dtype, want)
        elif self.kind == FLUX:
            back = back_burgers(self._plain_rule(numbers, batch, dtype), by_space)
        elif self.kind == LAW:
            rates = _each(space[0][:, 0], batch, dtype)
            back = back_law(rates, *self._slopes(problem.laws[0], numbers, batch, dtype, want))
        else:
            back = self._reaction_back(numbers, batch, dtype, by_space, want)
        if problem.laws[1] is not None:
            back = back_stored(back, self._plain_rule(numbers, batch, dtype),
                               *self._slopes(problem.laws[1], numbers, batch, dtype, want))
        return back if problem.scheme is None else staged_back(problem.scheme, back, dtype)

    def _parameters_wanted(self, want):
        return tuple(k for k in range(len(self.problem.named)) if want.get(("parameter", k), False))

    def _slopes(self, law, numbers, batch, dtype, want):
        """A law, its derivative by u, and those by the parameters that are wanted."""
        values, known = self._values(numbers), self._parameters_wanted(want)
        texts = [law, slope(law, len(values)), *(slope(law, len(values), f"a{k}") for k in known)]
        value, by_u, *by = (compiled_law(text, values, batch, dtype) for text in texts)
        return value, by_u, by

    def _reaction_back(self, numbers, batch, dtype, by_space, want):
        problem, dtype, ndim = self.problem, np.dtype(dtype), self.problem.grid.ndim
        module = back_module(problem.system._sources, len(problem.system.parameters), problem.spread, ndim, by_space,
                             self._parameters_wanted(want))
        rate = np.broadcast_to(numbers[0], (batch, *numbers[0].shape[1:]))
        rates = [np.ascontiguousarray(rate[:, c, a], dtype) for c, there in enumerate(problem.spread) if there
                 for a in range(ndim)]
        known = problem.system._coefficients(module, self._values(numbers), problem.grid, problem.dt, batch, dtype)
        return module.Back(*rates, *known, dtype.type(2))

    def slopes(self, faces):
        """Addresses of dg/du of boundary values that depend on u."""
        from fastdiff.kernels._edges import _SPACE

        found = np.zeros(6 * len(self.problem.equation.names), np.int64)
        for (c, axis, end), wall in faces.walls.items():
            if wall.formula is not None and "u" in wall.formula.uses:
                found[6 * c + 2 * _SPACE[self.problem.grid.ndim][axis] + end] = _slope_of(wall.formula).address()
        return found

    # -- gradients -----------------------------------------------------------------------------------------------------

    def gradients(self, found, numbers, wanted, u, faces, edges):
        """From a kernel's sums to the gradients by the start and each tensor; None for those not wanted."""
        start = self._held(found, faces)
        sums, at = found.grads, 0
        made: list = []
        want = dict(zip(self.slots, wanted))
        ndim = self.problem.grid.ndim
        if any(wanted[: self.leading]):
            made, at = self._by_space(found, sums, ndim)
        else:
            made = [None] * self.leading
        known = self._parameters_wanted(want)
        for slot, number in zip(self.slots[self.leading :], numbers[self.leading :]):
            if not want[slot]:
                made.append(None)
            elif slot[0] in ("decay", "source"):
                made.append(sums[:, at])
                at += 1
            elif slot[0] == "parameter":
                turns = max(1, sum(law is not None for law in self.problem.laws))  # D's parameters, then R's
                places = [at + known.index(slot[1]) + turn * len(known) for turn in range(turns)]
                made.append(sum(_total(sums[:, place], 1) for place in places))
            else:
                made.append(self._by_wall(slot, found.walls, number, faces))
        return start, [None if g is None else _shaped_like(g, n) for g, n in zip(made, numbers)]

    def _by_space(self, found, sums, ndim):
        B = len(sums)
        if self.kind in (RATES, FLUX):
            return [_total(sums[:, :ndim], 2)[:, None]], ndim
        if self.kind == "numbers":
            return [_total(sums[:, : 2 * ndim], 2)], 2 * ndim
        if self.kind in (WIDE, WIDE_CELLS):
            count = self.problem.wide_count
            return [_total(sums[:, :count], 2) if self.kind == WIDE else sums[:, :count]], count
        if self.kind == REACTION:
            spread = self.problem.spread
            by_rate = np.zeros((B, len(spread), ndim))
            count = sum(spread) * ndim
            by_rate[:, np.array(spread, bool)] = _total(sums[:, :count], 2).reshape(B, -1, ndim)
            return [by_rate], count
        if self.kind == CELLS:
            return [sums[:, : 2 * ndim]], 2 * ndim
        made = []
        for axis in range(ndim):
            face = [n for k, n in enumerate(self.problem.grid.shape) if k != axis]
            last = found.walls[:, 0, axis, 1, 4, : int(np.prod(face, dtype=np.int64))].reshape(B, *face)
            last = 0 * last if self.problem.grid.periodic[axis] else last
            made.append(np.concatenate([sums[:, axis], np.expand_dims(last, axis + 1)], axis + 1))
        return made, ndim

    def _by_wall(self, slot, walls, number, faces):
        c, axis, end = self.walls[slot[1]].side
        sums = walls[:, c, axis, end]
        if slot[0] == "coefficients":
            return sums[:, :3].astype(np.float64).sum(-1)
        side = faces.walls[c, axis, end].side
        sums = sums[:, 3] * (1.0 if side.kind == HOLD else np.reshape(side.gamma, (-1, 1)))
        cells = self.problem.grid.size // self.problem.grid.shape[axis]
        return sums[:, :cells] if number.shape[1] > 1 else sums[:, :cells].astype(np.float64).sum(1, keepdims=True)

    def _held(self, found, faces):
        """The gradient by the start, with that of the values that Dirichlet() holds."""
        start, grid = found.start, self.problem.grid
        for (c, axis, end), wall in faces.walls.items():
            if wall.how == INITIAL:
                face = [n for k, n in enumerate(grid.shape) if k != axis]
                sums = found.walls[:, c, axis, end, 3, : int(np.prod(face, dtype=np.int64))].reshape(len(start), *face)
                gamma = 1.0 if wall.side.kind == HOLD else np.reshape(wall.side.gamma, (-1, *[1] * len(face)))
                where = (slice(None), c, *[slice(None)] * axis, -end)
                start[where] += (gamma * sums).astype(start.dtype)
        return start

    def weights(self, numbers):
        """Weights (2 axes, b, *grid) and decay of a linear step, as in kernels/variable.py."""
        ndim, space, grid = self.problem.grid.ndim, numbers[: self.leading], self.problem.grid.shape
        if self.kind in (FACES, CELLS):
            return np.stack(self._neighbours(space)), self._of(numbers, "decay")
        made = np.repeat(space[0][:, 0], 2, 1) if self.kind == RATES else space[0]
        return np.broadcast_to(made.T.reshape(2 * ndim, len(made), *[1] * ndim), (2 * ndim, len(made), *grid)), None

    def needs_walls(self, faces, wanted) -> bool:
        """Whether the walls' sums are wanted: those by the walls' weights are 0 where a ghost is the cell itself."""
        learned = any(w for slot, w in zip(self.slots, wanted) if slot[0] in ("coefficients", "value"))
        faces_too = self.kind == FACES and any(wanted[: self.leading]) and not _are_closed(faces)
        return learned or faces_too or faces.needs_initial


def _is_real(side) -> bool:
    """Whether a wall leaves the eigenvalues of diffusion real, and none above those of a closed one."""
    alpha, beta = np.asarray(side.alpha), np.asarray(side.beta)
    return side.kind == HOLD or bool(np.isin(beta, (0, 1)).all() and (alpha + beta <= 1).all())


def _are_closed(faces) -> bool:
    """Whether nothing gets through any high wall: its ghost is the cell itself, at all times."""
    return all(wall.how == CONSTANT and (side.kind == HOLD or np.all(np.asarray(side.alpha) == 1)
                                         and not np.any(side.beta) and not np.any(np.multiply(side.gamma, side.value)))
               for (_, _, end), wall in faces.walls.items() if end == 1 for side in [wall.side])


def _each(numbers, batch, dtype):
    return [np.ascontiguousarray(np.broadcast_to(w, batch), dtype) for w in numbers.T]


def _total(sums, first):
    """Sums over the grid, in float64."""
    return sums.astype(np.float64).sum(tuple(range(first, sums.ndim)))


def _shaped_like(gradient, number):
    """A gradient with one entry a sample, summed up if the number serves all samples."""
    if len(number) == 1 and len(gradient) > 1:
        gradient = gradient.astype(np.float64).sum(0, keepdims=True)
    return np.ascontiguousarray(gradient.reshape(number.shape), number.dtype)


# -- the torch half ----------------------------------------------------------------------------------------------------


def _digest(*parts) -> str:
    return hashlib.sha256(_describe(list(parts)).encode()).hexdigest()


def _without_tensors(value):
    """An equation with NumPy arrays in place of tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {k: _without_tensors(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_without_tensors, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{f.name: _without_tensors(getattr(value, f.name)) for f in fields(value)})
    return value


def parameters_of(equation, grid, boundary) -> dict[str, Any]:
    """Every parameter of a problem that may be a tensor, by name, with its value."""
    found: dict[str, Any] = {}
    equation = equation.system if isinstance(equation, PorousMedium | DiffusionSorption) else equation
    by_law = uses(equation.diffusivity, "u") if isinstance(equation, Heat) else False
    matrix = equation._matrix if isinstance(equation, Heat) else None
    if isinstance(equation, ReactionDiffusion):
        given = equation.diffusivity
        found = {f"diffusivity.{n}": v for n, v in given.items()} if isinstance(given, dict) else {"diffusivity": given}
        found |= equation.parameters
    elif isinstance(equation, Named):
        found = {name: getattr(equation, name) for name in _fields_of(equation)}
    elif isinstance(equation, _FOURTH):
        found = {name: getattr(equation, name) for name in equation._fields}
    elif matrix is not None:
        even = all(not is_formula(e) and np.size(e) == 1 for row in matrix for e in row)
        found = {"diffusivity": np.array(matrix, np.float64)} if even else {}
        found |= {} if equation.source is None or uses(equation.source, "t") else {"source": equation.source}
    else:
        for name in ("diffusivity", "velocity", "source", "nu"):
            value = getattr(equation, name, None)
            if isinstance(value, tuple | list):
                found |= {f"{name}.{axis}": v for axis, v in zip(grid.names, value)}
            elif value is not None and not uses(value, "u", "t") and not (name == "source" and by_law):
                found[name] = value
        found |= getattr(equation, "parameters", {})
    given = conditions(boundary, grid, equation.names)
    for label, side in labels_of(equation, grid).items():
        condition = given.get(side, Neumann(0.0))
        found[label] = condition._value()
        if isinstance(condition, Robin):
            found |= {f"{label}.a": condition.a, f"{label}.b": condition.b}
    return found


def labels_of(equation, grid) -> dict[str, tuple[int, int, int]]:
    """Every wall by its name: "x low", or with several components "u, x low"."""
    names, found = equation.names, {}
    for c, name in enumerate(names):
        for axis in range(grid.ndim):
            for end in range(2):
                if not grid.periodic[axis]:
                    label = f"{grid.names[axis]} {('low', 'high')[end]}"
                    found[label if len(names) == 1 else f"{name}, {label}"] = (c, axis, end)
    return found


class Problem:
    """An equation on a grid with its walls, method and step; `names` are the parameters that may come as tensors."""

    def __init__(self, equation, grid, *, dt=None, boundary=None, method="euler", memory=None, threads=None,
                 shortcut=True, digest=None):
        _check_equation(equation)
        equation = equation.system if isinstance(equation, PorousMedium | DiffusionSorption) else equation
        if not isinstance(grid, Grid):
            raise TypeError(f"grid is an fd.Grid, not {type(grid).__name__}")
        if isinstance(equation, Named | ReactionDiffusion) and not equation.even(grid):
            _refuse("fd.nn has no adjoint of reactions with D(x), with a velocity or on curved or graded grids")
        if isinstance(equation, Heat) and any(law is not None and law.placed for law in equation._laws):
            _refuse("fd.nn has no adjoint of a diffusivity or capacity that depends on u and on the place")
        if _is_wide(equation) and method != "euler":
            _refuse(f"fd.nn has no adjoint of method {method!r} for stencils wider than one cell (orders 4 and 6, "
                    'upwind2 and upwind3, a matrix as diffusivity, equations of fourth order): take "euler"')
        if method not in METHODS_KNOWN:
            raise NotImplementedError(f"fd.nn has no adjoint of method {method!r}; differentiable are "
                                      f"{', '.join(map(repr, METHODS_KNOWN))}")
        if memory is not None and not (isinstance(memory, int | np.integer) and memory > 0):
            raise ValueError(f"memory is a whole number of bytes, not {memory!r}")
        run = METHODS[method].run(METHODS[method], equation, grid, boundary, samples(equation, grid), np.float64,
                                  threads=threads)
        self.dt = float(run.default_dt if dt is None else dt)
        if not (np.isfinite(self.dt) and self.dt > 0):
            raise ValueError("nothing limits the step: give dt" if dt is None else f"dt must be positive, not {dt!r}")
        run.check(self.dt)
        self.equation, self.grid, self.boundary, self.method = run.equation, grid, boundary, method
        self.memory, self.threads, self.shortcut = memory, threads, bool(shortcut)
        self.scheme = run.scheme(self.dt) if hasattr(run, "scheme") else None
        stages = 1 if self.scheme is None else self.scheme.stages
        self.reach = _rkl2.reach(stages) if method == "rkl2" else METHODS[method].reach
        self.conditions = conditions(boundary, grid, equation.names)
        self._walls()
        source = getattr(equation, "source", None)
        self.timed = source if source is not None and uses(source, "t") else None
        if isinstance(equation, Named | ReactionDiffusion):
            self.system = equation.system if isinstance(equation, Named) else equation
            self.spread = self.system._module[1]
        self.digest = digest or _digest(equation, grid, dt, boundary, method, memory, threads, self.shortcut)
        D, R = equation._laws if isinstance(equation, Heat) else (None, None)
        self.laws = D and D.source, R and R.source
        named = getattr(self, "system", equation)
        self.named = tuple(getattr(named, "parameters", ()))
        self.wide = _is_wide(equation)
        self.linear = not (hasattr(self, "system") or self._bent or any(self.laws) or isinstance(equation, Burgers)
                           or self.wide)
        self._layouts: dict = {}
        self._static: dict = {}

    @classmethod
    def for_tensors(cls, known: dict[str, "Problem"], equation, grid, *, dt, method, **how):
        """(problem, tensors by name) for an equation and walls that may hold tensors: one problem whatever they say.

        Where the step or the stages depend on them, the problem does.
        """
        _check_equation(equation)
        plain = _without_tensors(equation)
        depends = plain if dt is None or method == "rkl2" else equation
        digest = _digest(depends, grid, dt, how["boundary"], method, how["memory"], how["threads"], how["shortcut"])
        if digest not in known:
            known[digest] = cls(plain, grid, dt=dt, method=method, digest=digest, **how)
        given = parameters_of(equation, grid, how["boundary"])
        return known[digest], {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}

    def _walls(self):
        """Every wall by its name; formulas of u are differentiated here, so that none is refused later."""
        faces = lower(self.boundary, self.grid, self.equation.names, samples(self.equation, self.grid), np.float64,
                      None, self.equation.diffusivities(self.grid),
                      self.equation.at_wall(self.grid, samples(self.equation, self.grid))
                      if hasattr(self.equation, "at_wall") else None)
        if faces.seeing:
            _refuse("fd.nn has no adjoint of walls that depend on other components or on the wall opposite")
        self.labels = labels_of(self.equation, self.grid)
        bent = [wall.formula for wall in faces.walls.values() if wall.formula is not None and "u" in wall.formula.uses]
        for formula in bent:
            _slope_of(formula)
        self._bent = bool(bent) or faces.needs_initial
        self.real = faces.constant and all(_is_real(wall.side) for wall in faces.walls.values())

    # -- parameters by name ------------------------------------------------------------------------------------------

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Every parameter that may be given as a tensor, with what the equation and the boundary say."""
        return parameters_of(self.equation, self.grid, self.boundary)

    def start(self, name: str) -> np.ndarray:
        """What the equation or the boundary says of a parameter, as numbers; formulas of place over the grid."""
        value = self.defaults[name]
        if is_formula(value) and name in self.labels:
            raise ValueError(f"the value at {name} is a formula: learn={{{name!r}: tensor}} gives it a start")
        if is_formula(value):
            return over_grid(value, self.grid, name)[0]
        if value is None:
            raise ValueError(f"{name} has no value to start from: learn={{{name!r}: tensor}} gives it one")
        return as_numbers(value, name)

    def check_names(self, names):
        """Refuse unknown parameters."""
        for name in names:
            if name not in self.defaults:
                raise ValueError(f"unknown parameter {name!r} of this problem; known: "
                                 f"{', '.join(map(repr, self.defaults))}")

    # -- from parameters to tensors ----------------------------------------------------------------------------------

    def numbers(self, given: dict[str, torch.Tensor], batch: int, like: torch.Tensor):
        """(layout, tensors of the march in the dtype of `like`), for the parameters that are given as tensors.

        They are on the CPU, wherever the parameters and `like` are: rules are made ready there.
        """
        given = {name: value.to("cpu", torch.float64) for name, value in given.items()}
        kind, space, decay = self._space(given, batch)
        source = self._source(given, batch)
        parameters = [self._number(given, name) for name in self.named]
        walls, wall_numbers = self._learned_walls(given, batch)
        numbers = [*space, *([] if decay is None else [decay]), *([] if source is None else [source]), *parameters,
                   *wall_numbers]
        layout = self._layout(kind, decay is not None, source is not None, tuple(walls))
        sizes = sorted({len(n) for n in numbers} - {1, batch})
        if sizes:
            raise ValueError(f"parameters are given for {sizes[0]} samples, but there {'is' if batch == 1 else 'are'} "
                             f"{batch}: give u a batch axis of {sizes[0]}")
        return layout, [n.to(like.dtype).contiguous() for n in numbers]

    def _layout(self, *spec) -> Layout:
        if spec not in self._layouts:
            key = hashlib.sha256(f"{self.digest} {spec}".encode()).hexdigest()
            self._layouts[spec] = LAYOUTS.setdefault(key, Layout(self, *spec, key=key))
        return self._layouts[spec]

    def _kept(self, name, make):
        """What does not depend on tensors, computed once: a float64 tensor of a NumPy array."""
        if name not in self._static:
            self._static[name] = np.array(make(), np.float64)
        return torch.as_tensor(self._static[name])

    def _space(self, given, batch):
        if hasattr(self, "system"):
            return REACTION, [self._rates(given)], None
        if self.wide:
            return self._far(given, batch)
        if isinstance(self.equation, Heat):
            return self._heat(given, batch)
        if isinstance(self.equation, Burgers):
            rate = self._number(given, "nu") * self.dt / self.grid.spacing[0] ** 2
            return FLUX, [rate.reshape(-1, 1, 1)], None
        return self._carried(given, batch)

    def _fields(self, given, name, batch, what):
        """A coefficient along each axis as tensors (b, *grid) or (b, ones), and whether it varies in space."""
        grid, value = self.grid, getattr(self.equation, name)
        parts = list(value) if isinstance(value, tuple | list) else [value]
        names = [f"{name}.{axis}" for axis in grid.names] if isinstance(value, tuple | list) else [name]
        made, varies = [], not grid.plain
        for part, key in zip(parts, names):
            if key in given:
                tensor = shaped(given[key], grid, key, batch)
                varies = varies or given[key].ndim > 1 or tensor[0].numel() > 1
            else:
                tensor = self._kept(key, lambda p=part: over_grid(p, grid, what, samples(self.equation, grid)))
                varies = varies or in_space(part, grid)
            made.append(tensor)
        return made * grid.ndim if len(made) == 1 else made, varies

    def _learns(self, given, name) -> bool:
        return any(key.partition(".")[0] == name for key in given)

    def _heat(self, given, batch):
        grid, ndim = self.grid, self.grid.ndim
        if self.laws[0] is not None:
            return LAW, [torch.tensor([[[self.dt / (2 * dx**2) for dx in grid.spacing]]], dtype=torch.float64)], None
        D, varies = self._fields(given, "diffusivity", batch, "diffusivity")
        if not varies:
            square = torch.tensor([self.dt / dx**2 for dx in grid.spacing], dtype=torch.float64)
            columns = torch.broadcast_tensors(*(d.reshape(-1) for d in D))
            return RATES, [(torch.stack(columns, -1) * square)[:, None]], None
        mirrored = getattr(self.equation, "_mirrored", False)
        if not self._learns(given, "diffusivity"):
            made = self.equation._weights(grid, samples(self.equation, grid))
            weights, tied = self._kept("weights", lambda: np.stack(made, 1)) * self.dt, self._same_faces(made)
            pairs = [(weights[:, 2 * k], weights[:, 2 * k + 1]) for k in range(ndim)]
        else:
            pairs = [_weights.diffusion(grid, d.expand(len(d), *grid.shape) * self.dt, k, mirrored)
                     for k, d in enumerate(D)]
            tied = _weights.is_shared(grid, mirrored)
        if tied:
            return FACES, [_weights.shared(*pair, grid, k) for k, pair in enumerate(pairs)], None
        return CELLS, [_stacked([w for pair in pairs for w in pair])], None

    def _same_faces(self, weights) -> bool:
        """Whether weights that are not learned belong to faces."""
        if "tied" not in self._static:
            self._static["tied"] = np.array(variable.shared_faces(weights) is not None)
        return bool(self._static["tied"])

    def _carried(self, given, batch):
        grid, equation = self.grid, self.equation
        D, varies = self._fields(given, "diffusivity", batch, "diffusivity")
        still = not isinstance(equation.velocity, tuple | list) and grid.ndim > 1
        if still and (is_formula(equation.velocity) or np.any(np.asarray(equation.velocity)) or "velocity" in given):
            raise ValueError(f"velocity has one entry for each of the {grid.ndim} axes of the grid, as a tuple")
        v, moves = self._fields(given, "velocity", batch, "velocity")
        if not (self._learns(given, "velocity") or self._learns(given, "diffusivity")):
            return self._static_carried(varies or moves)
        pairs, outflow = [], 0.0
        for k in range(grid.ndim):
            spread = _weights.diffusion(grid, D[k].expand(len(D[k]), *grid.shape) * self.dt, k)
            flow = _weights.advection(grid, v[k].expand(len(v[k]), *grid.shape) * self.dt, k, equation.scheme)
            pairs += [spread[0] + flow[0], spread[1] + flow[1]]
            outflow = outflow + flow[2]
        decay = -outflow if moves else None
        return CELLS, [_stacked(pairs)], decay

    def _static_carried(self, varies):
        grid, equation = self.grid, self.equation
        weights, decay = equation._weights(grid, samples(equation, grid))
        stacked = self._kept("weights", lambda: np.stack(weights, 1)) * self.dt
        if varies:
            return CELLS, [stacked], None if decay is None else self._kept("decay", lambda: decay) * self.dt
        middle = (slice(None), slice(None), *[n // 2 for n in grid.shape])
        return "numbers", [stacked[middle]], None

    # -- wide rules ----------------------------------------------------------------------------------------------------

    @cached_property
    def near(self) -> str:
        """How far a wide rule with weights looks."""
        order = getattr(self.equation, "order", 4)
        return "box" if getattr(self.equation, "_matrix", None) is not None else f"star{order // 2}"

    @cached_property
    def wide_count(self) -> int:
        """How many coefficients a wide rule has."""
        ndim = self.grid.ndim
        if isinstance(self.equation, _FOURTH):
            return ndim + ndim * (ndim + 1) // 2 + 3 * isinstance(self.equation, SwiftHohenberg)
        return len(wide.names_of(self.near, ndim))

    def _far(self, given, batch):
        """Coefficients of a wide rule, in the order of its fields."""
        if isinstance(self.equation, _FOURTH):
            return WIDE, [self._fourth(given)], None
        if isinstance(self.equation, AdvectionDiffusion):
            return self._far_carried(given, batch)
        if self.equation._matrix is not None:
            return WIDE_CELLS, [self._matrix(given)], None
        D, _ = self._fields(given, "diffusivity", batch, "diffusivity")
        names, letters, made = wide.names_of(self.near, self.grid.ndim), {1: "2", 2: "02", 3: "012"}[self.grid.ndim], []
        for name in names:
            axis = letters.index(name[-1])
            weight = _LAPLACIAN[self.equation.order][len(name) - 2]
            made.append(D[axis].reshape(-1) * (weight * self.dt / self.grid.spacing[axis] ** 2))
        return WIDE, [_stacked(made)], None

    def _fourth(self, given):
        """As `fourth_order.coefficients` has them, and the local part; (b, count)."""
        values = [self._number(given, name) for name in self.equation._fields]
        r = [1 / dx**2 for dx in self.grid.spacing]
        pairs = [r[a] * r[a] for a in range(len(r))]
        pairs += [2 * r[a] * r[b] for a in range(len(r)) for b in range(a + 1, len(r))]
        if isinstance(self.equation, CahnHilliard):
            kappa, M = values
            made = [M * v for v in r] + [M * kappa * v for v in pairs]
        else:
            (rise, q, g), one = values, torch.ones(1, dtype=torch.float64)
            made = [-2 * q**2 * v for v in r] + [one * v for v in pairs] + [rise - q**4, g, one]
        return _stacked([v * self.dt for v in made])

    def _named_weights(self, found):
        """Weights by name as (b, count, *grid), those that are missing 0."""
        zero, names = np.zeros((1, *self.grid.shape)), wide.names_of(self.near, self.grid.ndim)
        return np.stack(np.broadcast_arrays(*(found.get(name, zero) for name in names)), 1)

    def _matrix(self, given):
        """Weights of a matrix of diffusivities: a sum over its entries, times what each of them does."""
        if "diffusivity" not in given:
            return self._kept("weights", lambda: self._named_weights(
                self.equation._wide(self.grid, samples(self.equation, self.grid))[1])) * self.dt
        n, D = self.grid.ndim, given["diffusivity"]
        if tuple(D.shape) != (n, n):
            raise ValueError(f"diffusivity: expected a matrix ({n}, {n}), not of shape {tuple(D.shape)}")
        if any(isinstance(c, Flux) for c in self.conditions.values()):
            _refuse("fd.nn has no adjoint of fd.Flux with a matrix that is learned")
        parts = self._kept("entries", lambda: np.stack([self._named_weights(self.equation._entry(self.grid, a, b))[0]
                                                        for a in range(n) for b in range(n)]))
        return torch.tensordot(D.reshape(-1) * self.dt, parts, 1)[None]

    def _far_carried(self, given, batch):
        """upwind2 and upwind3."""
        grid, equation, letters = self.grid, self.equation, {1: "2", 2: "02", 3: "012"}[self.grid.ndim]
        if not (self._learns(given, "velocity") or self._learns(given, "diffusivity")):
            weights, decay = equation._weights(grid, samples(equation, grid))
            space = self._kept("weights", lambda: self._named_weights(weights)) * self.dt
            return WIDE_CELLS, [space], None if decay is None else self._kept("decay", lambda: decay) * self.dt
        D, _ = self._fields(given, "diffusivity", batch, "diffusivity")
        v, moves = self._fields(given, "velocity", batch, "velocity")
        found, outflow = {}, 0.0
        for k, letter in enumerate(letters):
            spread = _weights.diffusion(grid, D[k].expand(len(D[k]), *grid.shape) * self.dt, k)
            flow, out = _weights.upwind(grid, v[k].expand(len(v[k]), *grid.shape) * self.dt, k, equation.scheme)
            found |= {"m" + letter: spread[0] + flow[-1], "p" + letter: spread[1] + flow[1], "mm" + letter: flow[-2],
                      "pp" + letter: flow[2]}
            outflow = outflow + out
        names = wide.names_of(self.near, grid.ndim)
        return WIDE_CELLS, [_stacked([found[name] for name in names])], -outflow if moves else None

    def _source(self, given, batch):
        value = getattr(self.equation, "source", None)
        if value is None or self.timed is not None:
            return None
        grid = self.grid
        if "source" in given:
            tensor = shaped(given["source"], grid, "source", batch)
        else:
            tensor = self._kept("source", lambda: over_grid(value, grid, "source", samples(self.equation, grid)))
        return tensor.expand(len(tensor), *grid.shape) * self.dt

    def _rates(self, given):
        """D dt / dx^2, (b, components, axes)."""
        grid, equation = self.grid, self.equation
        if isinstance(equation, Named):
            known = {name: self._number(given, name) for name in _fields_of(equation)}
            parts = _NAMED[type(equation)](known)
        else:
            shared = not isinstance(equation.diffusivity, dict)
            parts = [self._number(given, "diffusivity" if shared else f"diffusivity.{n}") for n in equation.names]
        parts = [p if p.ndim > 1 else p.reshape(-1, 1).expand(-1, grid.ndim) for p in parts]
        square = torch.tensor([self.dt / dx**2 for dx in grid.spacing], dtype=torch.float64)
        return torch.stack(torch.broadcast_tensors(*parts), 1) * square

    def _number(self, given, name):
        """A parameter as (b,); a tuple with one number an axis as (1, axes)."""
        if name in given:
            if given[name].ndim > 1:
                raise ValueError(f"{name} is a number or one number a sample, not of shape {tuple(given[name].shape)}")
            return given[name].reshape(-1)
        value = self.defaults[name]
        numbers = self._kept(name, lambda: _numbers(value))
        return numbers.reshape(1, -1) if isinstance(value, tuple | list) else numbers.reshape(-1)

    # -- walls -------------------------------------------------------------------------------------------------------

    def _learned_walls(self, given, batch):
        walls, numbers = [], []
        by_diffusivity = not isinstance(self.equation, _FOURTH) and any(
            name.startswith(("diffusivity", "D")) or name in ("M", "kappa", "nu") for name in given)
        for label, side in self.labels.items():
            condition = self.conditions.get(side, Neumann(0.0))
            value, robin = label in given, f"{label}.a" in given or f"{label}.b" in given
            flux = isinstance(condition, Flux) and by_diffusivity
            if not (value or robin or flux):
                continue
            if flux:
                made = self._flux(given, side, condition, label, batch)
            else:
                made = self._robin(given, condition, label, side) if robin else None, (
                    self._value(given[label], side, label, batch) if value else None)
            walls.append(_LearnedWall(side, made[0] is not None, made[1] is not None))
            numbers += [n for n in made if n is not None]
        return walls, numbers

    def _value(self, tensor, side, label, batch):
        """A wall's value as (b, cells of the face or 1)."""
        face = tuple(n for k, n in enumerate(self.grid.shape) if k != side[1])
        if tensor.ndim == 0 or (tensor.ndim == 1 and tensor.shape != face):
            if tensor.ndim and tensor.shape[0] not in (1, batch):
                raise ValueError(f"the value at {label} has shape {tuple(tensor.shape)}: expected a number, {face} "
                                 f"over the face, or ({batch},) one a sample")
            return tensor.reshape(-1, 1)
        whole = tensor.unsqueeze(0) if tensor.shape == face else tensor
        if tuple(whole.shape[1:]) != face or whole.shape[0] not in (1, batch):
            raise ValueError(f"the value at {label} has shape {tuple(tensor.shape)}: expected a number, {face} over "
                             f"the face, {(batch, *face)} with the batch, or ({batch},) one a sample")
        return whole.reshape(whole.shape[0], -1)

    def _robin(self, given, condition, label, side):
        dx = self.grid.wall_spacing(side[1], side[2])
        a = given[f"{label}.a"] if f"{label}.a" in given else self._kept(f"{label}.a", lambda: _numbers(condition.a))
        b = given[f"{label}.b"] if f"{label}.b" in given else self._kept(f"{label}.b", lambda: _numbers(condition.b))
        a, b = torch.broadcast_tensors(a.reshape(-1), b.reshape(-1))
        if self.grid.centering == "nodes":
            return torch.stack([-2 * dx * a / b, torch.ones_like(a), 2 * dx / b], -1)
        whole = b / dx + a / 2
        return torch.stack([(b / dx - a / 2) / whole, torch.zeros_like(a), 1 / whole], -1)

    def _flux(self, given, side, condition, label, batch):
        """A flux as the Neumann condition du/dn = -q/D with a learned D: coefficients and values."""
        (c, axis, end), dx = side, self.grid.wall_spacing(side[1], side[2])
        cells = self.grid.centering == "cells"
        coefficients = torch.tensor([[1.0, 0.0, dx] if cells else [0.0, 1.0, 2 * dx]], dtype=torch.float64)
        q = given.get(label)
        q = self._given_flux(condition, side, label) if q is None else self._value(q, side, label, batch)
        if isinstance(self.equation, Burgers):
            return coefficients, -q / self._number(given, "nu").reshape(-1, 1)
        if hasattr(self, "system"):
            D = (self._rates(given)[:, c, axis] / (self.dt / self.grid.spacing[axis] ** 2)).reshape(-1, 1)
            return coefficients, -q / D
        fields, varies = self._fields(given, "diffusivity", batch, "diffusivity")
        D = fields[axis]
        if not varies:
            return coefficients, -q / D.reshape(-1, 1)
        D = D.expand(len(D), *self.grid.shape)
        return coefficients, -q / _weights.wall_values(D, self.grid, axis, end).reshape(len(D), -1)

    def _given_flux(self, condition, side, label):
        if not is_formula(condition.q):
            face = tuple(n for k, n in enumerate(self.grid.shape) if k != side[1])
            batch = samples(self.equation, self.grid)
            return self._kept(label, lambda: _face_array(condition.q, face, batch, label)[:, 0])
        if uses(condition.q, "t", "u"):
            raise NotImplementedError(f"the flux at {label} is a formula of t or u, and the diffusivity is learned: "
                                      "give the flux as numbers, or write it as Neumann")
        wall = _wall(Neumann(condition.q), self.grid, side[1], side[2], 1, label, None)
        return self._kept(label, lambda: np.reshape(wall.side.value, (1, -1)))


def _numbers(value):
    return as_numbers(value, "a parameter")


def _fields_of(equation) -> list[str]:
    """The fields of a named equation that are numbers of its formulas."""
    return [f.name for f in fields(equation) if f.name not in ("bounds", "speed")]


def _stacked(parts):
    """(b, parts, *grid)."""
    return torch.stack(torch.broadcast_tensors(*parts), 1)


__all__ = ["LAYOUTS", "Layout", "METHODS_KNOWN", "Problem"]
