"""What time integrators share: a `Method` is data, a `Run` is one problem made ready for it, one loop marches them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from math import ceil
from typing import Any

import numpy as np

from fastdiff import dispatch
from fastdiff.boundary import CALL, lower
from fastdiff.kernels import _run
from fastdiff.kernels._edges import HOLD
from fastdiff.kernels._fields import Clock
from fastdiff.kernels._march import kept_by
from fastdiff.kernels._stages import Scheme, spread, stage_times, staged
from fastdiff.kernels._threads import default_threads

SAFETY = 0.9  # of the stability limit, where the user gives no step
MANY = 1 << 18  # numbers whose norms are shared out to threads
PIECE = 1 << 13  # numbers of a dot product: of more than 10 000, OpenBLAS shares out each to threads of its own
CHUNK_UPDATES = 1 << 26  # cell updates of a sample between looks at the field and the keyboard
_compiled: set[Any] = set()


def kind_of(field):
    """The class of a rule, with those of the rules and arrays inside of it."""
    return (type(field), *map(kind_of, field)) if hasattr(field, "_fields") else (type(field), np.ndim(field))

LIMIT, EMBEDDED, DOUBLING = "limit", "embedded", "doubling"


@dataclass(frozen=True)
class Method:
    """A time integrator.

    name      as users write it
    order     in time
    run       class of its `Run`
    control   how the step is chosen where the user gives none: LIMIT, SAFETY times the stability limit; EMBEDDED, from
              an estimate of the error after each step; DOUBLING, by solving again with smaller steps
    reach     largest stable step in limits of forward Euler; infinite if every step is stable
    summary   one line
    gpu       whether it runs on a GPU, too
    """

    name: str
    order: int
    run: Callable[..., Any]
    control: str
    reach: float
    summary: str
    gpu: bool = True

    def check_device(self, u, device=None) -> None:
        """Refuse a field that is on a GPU, or asked to be there, if the method runs on the CPU alone."""
        check_device(self.name, self.gpu, u, device)


def check_device(name: str, gpu: bool, u, device=None) -> None:
    """Refuse a GPU for a method that has none."""
    asked = str(device).startswith("cuda") if device is not None else getattr(
        getattr(u, "device", None), "type", "cpu") == "cuda"
    if asked and not gpu:
        raise ValueError(f'method="{name}" runs on the CPU alone: '
                         + ('leave device="cuda" out' if device is not None else "pass u0.cpu()")
                         + ', or take "euler", "rk4", "rk23", "rkl2" or "crank_nicolson", which run on the GPU, too')


def reaction_rate(equation, grid) -> float:
    """How fast an equation's reaction may be on a grid, 1 / time."""
    known = signature(equation.reaction_rate).parameters
    return float(equation.reaction_rate(grid) if "grid" in known else equation.reaction_rate())


class Unstable(ValueError):
    """A step beyond the stability limit."""


def unstable(dt, limit, name="euler"):
    """The error of a step beyond the limit."""
    return Unstable(f"dt = {dt:g} is unstable for {name} on this grid; the largest stable step is {limit:g}")


class Run:
    """One problem ready to march: equation, grid and boundaries for a batch of samples of one dtype.

    limit       largest stable step; default_dt: the step where none is given, infinite where any will do
    registers   arrays kept for each component from step to step, the field first
    """

    registers = 1
    compile_seconds = 0.0

    def __init__(self, method: Method, equation, grid, boundary, batch, dtype, initial=None, threads=None):
        self.method, self.grid, self.batch, self.threads, self.dtype = method, grid, batch, threads, np.dtype(dtype)
        at_wall = equation.at_wall(grid, batch) if hasattr(equation, "at_wall") else None
        self.faces = lower(boundary, grid, equation.names, batch, dtype, initial, equation.diffusivities(grid), at_wall)
        self.equation = equation = equation.for_walls(self.faces) if hasattr(equation, "for_walls") else equation
        self.euler_limit = equation.stable_dt(grid, self.faces.stiffness)
        self.limit = self.euler_limit * method.reach if self.euler_limit < np.inf else np.inf
        self._rules: dict[Any, Any] = {}

    @property
    def default_dt(self) -> float:
        """SAFETY times the limit of a field that the reaction pulls down as fast as it can."""
        fastest = 2 / self.euler_limit + self.rate
        return SAFETY * self.method.reach * 2 / fastest if fastest > 0 else np.inf

    @cached_property
    def rate(self) -> float:
        """How fast the reaction may be, 1 / time."""
        return reaction_rate(self.equation, self.grid)

    def check(self, dt):
        """Refuse a step beyond the stability limit."""
        if dt > self.limit * (1 + 1e-9):
            raise unstable(dt, self.limit, self.method.name)

    def rule(self, dt):
        """The compiled rule of a step of forward Euler."""
        key = float(f"{dt:.13g}")  # steps that differ by rounding have one rule
        if key not in self._rules:
            self._rules = {key: self.equation.euler(self.grid, dt, self.batch, self.dtype)}
        return self._rules[key]

    def timed(self, dt) -> bool:
        """Whether a wall or the rule of a step of dt looks at the time."""
        walls = self.faces.walls.values()
        return any(w.formula is not None and "t" in w.formula.uses for w in walls) or looks_at_time(self.rule(dt))

    def stages(self, dt, watched=False) -> int:
        """How many times a step evaluates the right-hand side; `watched`: one that estimates its error."""
        return 1

    def restart(self):
        """What follows starts from a new field."""

    def compile(self, dt, data):
        """Have the kernels ready for steps of dt from a state like `data`: compile them, or load them from disk."""

    def load(self, u):
        """The state to march from: the field, with room for registers."""
        return u

    def newest(self, state):
        """The field of a state."""
        return state

    def advance(self, state, t, dt, steps, out=None, work=None, initial=None):
        """March a state by `steps` steps from time t; return a new one, or `out`."""
        raise NotImplementedError


class Explicit(Run):
    """Forward Euler, and what is built on it: all steps of a call in one march."""

    def scheme(self, dt, watched=False) -> Scheme | None:
        """The stages of a step; None: one, of forward Euler."""
        return None

    def stages(self, dt, watched=False):
        scheme = self.scheme(dt, watched)
        return scheme.stages if scheme else 1

    def load(self, u):
        return u if self.registers == 1 else spread(u, self.registers)

    def newest(self, state):
        return state[:, : len(self.equation.names)]

    def estimate(self, state):
        """The error that the last step made, as it estimates it."""
        at = self.scheme(1.0, True).error_register * len(self.equation.names)  # type: ignore[union-attr]
        found = state[:, at : at + len(self.equation.names)]
        for (c, axis, end), wall in self.faces.walls.items():
            if wall.side.kind == HOLD:  # no step is an error there
                found[(slice(None), c, *[slice(None)] * axis, -end)] = 0.0
        return found

    def compile(self, dt, data):
        if not isinstance(data, np.ndarray):
            return
        for wall in self.faces.walls.values():
            if wall.how == CALL:
                wall.formula.address()
        rule = self.staged_rule(dt, self.method.control == EMBEDDED)
        if self.faces.seeing:  # another schedule: by a step that nobody sees
            key = kind_of(rule), data.dtype, self.grid.ndim
            if key not in _compiled:
                _compiled.add(key)
                self.advance(data, 0.0, dt, 1, initial=data, watched=self.method.control == EMBEDDED)
            return
        schedule = _run.schedule_of(data.shape, data.itemsize, self.threads, kept_by(type(rule)))
        key = kind_of(rule), data.dtype, schedule
        if key not in _compiled:
            _compiled.add(key)
            _run.prepare(rule, data.dtype, data.shape[1], self.grid.ndim, schedule)

    def staged_rule(self, dt, watched=False):
        """The rule that the march runs."""
        scheme = self.scheme(dt, watched)
        return self.rule(dt) if scheme is None else staged(scheme, self.rule(dt), self.dtype)

    def advance(self, state, t, dt, steps, out=None, work=None, initial=None, watched=False):
        how: dict[str, Any] = {"threads": self.threads}
        if not isinstance(state, np.ndarray):
            how = {"values": self.faces.values()}  # the GPU cannot call the CPU's functions
        scheme, tables = self.scheme(dt, watched), "values" in how
        if scheme is None:
            edges = self.faces.edges(t, dt, steps, initial=initial, tables=tables)
            return dispatch.march(self.rule(dt), state, edges, steps, out=out, work=work, **how)
        edges = self.faces.edges(t, dt, steps, initial=initial, tables=tables, registers=self.registers,
                                 times=stage_times(scheme, t, dt, steps))
        return dispatch.march(self.staged_rule(dt, watched), state, edges, steps * scheme.stages, out=out, work=work,
                              **how)


def looks_at_time(rule) -> bool:
    """Whether a rule, or one inside of it, has a clock."""
    return isinstance(rule, Clock) or (isinstance(rule, tuple) and any(map(looks_at_time, rule)))


def steps_between(start: float, end: float, dt: float) -> int:
    """The number of equal steps, each at most dt, from start to end."""
    return max(1, ceil((end - start) / dt * (1 - 1e-12)))


def chunks(steps: int, cells: int):
    """Cut a march over a grid of `cells` into chunks, the same ones whatever the machine and the batch."""
    size = max(16, CHUNK_UPDATES // max(cells, 1) // 16 * 16)
    for done in range(0, steps, size):
        yield min(size, steps - done)


def norms(u):
    """Euclidean norm of each component of each sample, (batch, components), float64."""
    if isinstance(u, np.ndarray):
        found = np.empty(u.shape[:2])

        def square(k):
            line = u[k].ravel()
            pieces = (line[n : n + PIECE] for n in range(0, line.size, PIECE))
            with np.errstate(over="ignore", invalid="ignore"):
                found[k] = sum(float(np.dot(piece, piece)) for piece in pieces)

        dispatch.for_each(square, np.ndindex(*found.shape), default_threads() if u.size >= MANY else 1)
        return np.sqrt(found)
    return u.double().square().sum(tuple(range(2, u.ndim))).sqrt().cpu().numpy()


def relative(error, u) -> float:
    """The largest relative error of a sample in the Euclidean norm; components far smaller than others count less."""
    errors, sizes = norms(error), norms(u)
    with np.errstate(invalid="ignore"):
        largest = np.max(errors / np.maximum(sizes, np.maximum(1e-3 * sizes.max(1, keepdims=True), 1e-300)))
    return float(largest) if np.isfinite(largest) else np.inf


__all__ = ["CHUNK_UPDATES", "DOUBLING", "EMBEDDED", "LIMIT", "SAFETY", "Explicit", "Method", "Run", "Unstable",
           "chunks", "kind_of", "looks_at_time", "norms", "relative", "steps_between", "unstable"]
