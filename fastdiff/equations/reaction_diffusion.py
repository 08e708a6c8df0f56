"""Reaction–diffusion systems whose reactions are strings."""

import ast
import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fastdiff.equations._base import AsGiven, axis_values, common_batch, diffusive_limit, parameter
from fastdiff.equations._coefficients import is_formula, uses
from fastdiff.equations._rules import AXES, canonical, check_places, places_of, rule_module
from fastdiff.equations.advection import AdvectionDiffusion
from fastdiff.equations.heat import Heat
from fastdiff.expressions import CONSTANTS, FUNCTIONS
from fastdiff.grid import Grid
from fastdiff.kernels.system import Still, system

_STATES = 400  # at most so many representative states


@dataclass(frozen=True)
class ReactionDiffusion(AsGiven):
    """Reaction–diffusion with any number of components, u_t = div(D grad u - w u) + R(u, v, ..., x, y, z, t).

        fd.ReactionDiffusion(diffusivity={"u": 1.0, "v": 0.5}, parameters={"a": 0.1},
                             reaction={"u": "u - u**3 - v", "v": "a*(u - v)"})

    diffusivity  for each component what `fd.Heat` takes: a number, one a sample, a tuple with one an axis, an array
                 over the grid, a formula of place, or of the component itself, such as "1e-3*u**2"; one of them alone
                 serves all components. Length² / time
    reaction     for each component a formula in the components, the parameters, x, y, z (or r, theta), t; amount /
                 time. Formulas are read by a parser of their own, never run as Python: numbers, names, + - * / **, and
                 exp, log, sin, cos, tan, sinh, cosh, tanh, erf, sigmoid, sqrt, cbrt, abs, sign, min, max, step, and
                 where(u < 0.5, a, b). A power that is not whole needs a base >= 0
    parameters   a number, or an array with one number a sample, for each name
    bounds       for each component the (low, high) between which values are expected, or one pair for all. Used for
                 the choice of the time step alone
    velocity     what carries the components along, as for `fd.AdvectionDiffusion`; None, one for all components, or a
                 mapping from some of them. Length / time
    scheme       of the velocity, as for `fd.AdvectionDiffusion`

    On any grid: curved, graded. The reaction is compiled together with the diffusion, and stays compiled in the cache
    folder for later processes.

    Raises ValueError for formulas with unknown names or with code in them, for components that lack an entry, and for
    parameters that are not finite.
    """

    diffusivity: Any
    reaction: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    bounds: Any = (0.0, 1.0)
    velocity: Any = None
    scheme: str = "upwind1"

    def __post_init__(self):
        if not isinstance(self.reaction, Mapping) or not self.reaction:
            raise ValueError('reaction is a mapping from each component to its formula, such as {"u": "u*(1 - u)"}, '
                             f"not {self.reaction!r}")
        if not isinstance(self.parameters, Mapping):
            raise ValueError(f"parameters is a mapping from names to numbers, not {self.parameters!r}")
        _check_names(self.names, tuple(self.parameters))
        _check_components("diffusivity", self.diffusivity, self.names)
        _check_components("bounds", self.bounds, self.names)
        for name in self.velocity if isinstance(self.velocity, Mapping) else ():
            if name not in self.names:
                raise ValueError(f"unknown component {name!r} in velocity; known (from reaction): "
                                 f"{', '.join(self.names)}")
        for name in self.names:
            value = self._diffusivity(name)
            if not _varies(value):
                axis_values(value, f"diffusivity of {name}", len(value) if isinstance(value, tuple | list) else 1)
        self._transports  # noqa: B018  what is no number is checked here
        for low, high in self._bounds:
            if not (np.isfinite([low, high]).all() and low <= high):
                raise ValueError(f"bounds are pairs (low, high) of finite numbers, not ({low!r}, {high!r})")
        self.batch()
        self._sources  # noqa: B018  formulas are checked here, and compiled when first used

    # -- what is given ------------------------------------------------------------------------------------------------

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The components, in the order of `reaction`."""
        return tuple(self.reaction)

    def _diffusivity(self, name):
        return self.diffusivity[name] if isinstance(self.diffusivity, Mapping) else self.diffusivity

    def _velocity(self, name):
        return self.velocity.get(name) if isinstance(self.velocity, Mapping) else self.velocity

    @cached_property
    def _transports(self) -> tuple:
        """The equation of each component alone, without the reaction."""
        return tuple(map(self._transport, self.names, self._bounds))

    def _transport(self, name, bounds):
        D, v = self._diffusivity(name), self._velocity(name)
        other = [n for n in self.names if n != name and uses(D, n)]
        if other:
            raise ValueError(f"the diffusivity of {name}, {D!r}, depends on {other[0]}: it may depend on {name} and "
                             "the place alone")
        if not uses(D, name):
            return Heat(D) if v is None else AdvectionDiffusion(D, v, self.scheme)
        if v is not None or not isinstance(D, str):
            raise ValueError(f"the diffusivity of {name} depends on {name}: that is a formula, and needs velocity=None "
                             f"for {name}")
        named = {n: value for n, value in self.parameters.items() if uses(D, n)}
        return Heat(_named(D, {name: "u"}), parameters=named, bounds=bounds)

    def even(self, grid: Grid) -> bool:
        """Whether all components diffuse evenly on a plain grid: then diffusion is written into the reaction's rule."""
        return self.velocity is None and grid.plain and all(t.constant(grid) for t in self._transports)

    @cached_property
    def _bounds(self) -> list[tuple[float, float]]:
        pairs = [self.bounds[n] if isinstance(self.bounds, Mapping) else self.bounds for n in self.names]
        try:
            return [(float(low), float(high)) for low, high in pairs]
        except (TypeError, ValueError):
            raise ValueError(f"bounds are pairs (low, high) of numbers, not {self.bounds!r}") from None

    @cached_property
    def _values(self) -> list[np.ndarray]:
        return [parameter(value, f"parameter {name}") for name, value in self.parameters.items()]

    @cached_property
    def _sources(self) -> tuple[str, ...]:
        texts = []
        for name, text in self.reaction.items():
            if isinstance(text, int | float) and np.isfinite(text):
                text = repr(float(text))
            if not isinstance(text, str):
                raise ValueError(f"the reaction of {name} is a formula, such as \"{name}*(1 - {name})\", not {text!r}")
            texts.append(text)
        return canonical(texts, self.names, tuple(self.parameters))

    @cached_property
    def _module(self):
        """The compiled reaction, and which components it lets diffuse: none if they do not diffuse evenly."""
        rates = [self._diffusivity(name) for name in self.names]
        if self.velocity is not None or any(map(_varies, rates)):
            return self._reaction, (False,) * len(rates)
        spread = tuple(bool(np.any(axis_values(d, "diffusivity", len(d) if isinstance(d, tuple | list) else 1)))
                       for d in rates)
        return rule_module(self._sources, len(self.parameters), spread), spread

    @property
    def _reaction(self):
        return rule_module(self._sources, len(self.parameters), (False,) * len(self.names))

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the parameters speak of."""
        return common_batch(*self._values, *(np.empty(t.batch(grid)) for t in self._transports))

    # -- the protocol of equations ------------------------------------------------------------------------------------

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, components, axes); NaN where it varies."""
        if self.velocity is not None or any(_varies(self._diffusivity(n)) for n in self.names):
            rates = [t.diffusivities(grid)[:, 0] for t in self._transports]
        else:
            rates = [axis_values(self._diffusivity(n), f"diffusivity of {n}", grid.ndim) for n in self.names]
        return np.stack(np.broadcast_arrays(*rates), axis=1)

    def at_wall(self, grid: Grid, batch: int):
        """A function of component, axis and end that gives D on a wall, (1 or batch, *face); None if D is constant."""
        found = [t.at_wall(grid, batch) for t in self._transports]
        if not any(found):
            return None
        D = self.diffusivities(grid)

        def of(c, axis, end):
            if found[c] is not None:
                return found[c](0, axis, end)
            face = [n for k, n in enumerate(grid.shape) if k != axis]
            return np.broadcast_to(D[:, c, axis].reshape(-1, *[1] * len(face)), (len(D), *face))

        return of

    def for_walls(self, faces) -> "ReactionDiffusion":
        """The equation for these walls, see `Heat.for_walls`."""
        if self.even(faces.grid):
            return self
        other = type(self)(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        other.__dict__["_transports"] = tuple(
            t.for_walls(_Walls(faces.grid, {(0, *key[1:]): wall for key, wall in faces.walls.items() if key[0] == c}))
            if hasattr(t, "for_walls") else t for c, t in enumerate(self._transports))
        return other

    def euler(self, grid: Grid, dt: float, batch: int, dtype) -> Any:
        """FTCS with the reaction at the old level, compiled from the formulas."""
        module, spread = self._module
        dtype = np.dtype(dtype)
        if not self.even(grid):
            known = self._coefficients(self._reaction, self._values, grid, dt, batch, dtype)
            reaction = self._reaction.Line(*known, dtype.type(2), dtype.type(4))
            still = [self.velocity is None and not np.any(t.diffusivities(grid)) for t in self._transports]
            return system([Still() if rests else t.euler(grid, dt, batch, dtype)
                           for t, rests in zip(self._transports, still)], reaction)
        rate = np.broadcast_to(self.diffusivities(grid) * dt / np.square(grid.spacing),
                               (batch, len(self.names), grid.ndim))
        shape, axes = _shape_of(rate, spread)
        known = self._coefficients(module, self._values, grid, dt, batch, dtype)
        rates = [np.ascontiguousarray(r, dtype) for r in axes]
        return getattr(module, shape)(*rates, *known, dtype.type(2), dtype.type(4))

    def _coefficients(self, module, given, grid, dt, batch, dtype) -> list:
        """All that a compiled reaction is told besides rates, from the values of the parameters."""
        with np.errstate(all="ignore"):
            numbers = module.numbers(dt, *given)
        for value in numbers:
            if not np.isfinite(value).all():
                raise ValueError("a coefficient of the reaction is not finite with these parameters")
        known = [_number(value, varies, batch, dtype) for value, varies in zip(numbers, module.VARIES)]
        return known + self._fields(module, given, grid, dt, dtype)

    def _fields(self, module, given, grid, dt, dtype):
        """What depends on the place, and the clock of what depends on the time."""
        if not (module.FIELDS or module.TIME):
            return []
        from fastdiff.kernels._fields import Cells, Clock

        check_places(self.reaction.values(), (*self.names, *self.parameters), grid, "the reaction")
        places = places_of(grid)
        values = [v.reshape(-1, *[1] * grid.ndim) for v in given]
        with np.errstate(all="ignore"):
            found = module.fields(dt, *places, *values)
        cells = []
        for f in found:
            f = np.asarray(f, np.float64)
            samples = f.shape[0] if f.ndim > grid.ndim else 1
            f = np.broadcast_to(f, (samples, *grid.shape))
            if not np.isfinite(f).all():
                raise ValueError("the reaction is not finite at some point of the grid")
            cells.append(Cells(f, grid.ndim, dtype))
        return cells + ([Clock()] if module.TIME else [])

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """A largest step of forward Euler: 2 / (2/diffusive limit + decay rate of the reaction).

        The decay rate is that of the least stiff of the states between `bounds` (a few in each direction): a longer
        step is stable at none of them. It is no promise that a shorter one is stable: `reaction_rate` looks at the
        stiffest state, and the steps that `fd.solve` chooses heed both.
        """
        if self.even(grid):
            D = self.diffusivities(grid)
            limits = [diffusive_limit(D[:, [c]], grid, stiffness) for c in range(len(self.names))]
        else:
            limits = [t.stable_dt(grid, stiffness) for t in self._transports]
        decay = self._decays(grid).min()
        rate = 2.0 / min(limits) + max(decay, 0.0)
        return float(2.0 / rate) if rate > 0 else np.inf

    def reaction_rate(self, grid: Grid | None = None) -> float:
        """The largest eigenvalue, in size, of the reaction's Jacobian at states between `bounds`, 1 / time.

        Of reactions that depend on place or time, at three places along each axis (from 0 to 1 if no grid is given) and
        at t = 0, 0.5 and 1.
        """
        return float(np.abs(self._eigenvalues(grid)).max())

    def _decays(self, grid):
        """The fastest decay at each representative state."""
        return (-np.real(self._eigenvalues(grid))).max(-1)

    def _eigenvalues(self, grid) -> np.ndarray:
        """Eigenvalues of the Jacobian at representative states, places and samples; 0 alone if none is finite."""
        states, values = self._states(grid)
        x, y, z, t = states[len(self.names):]
        J = self._derivative(states[: len(self.names)], values, x, y, z, t)
        J = np.moveaxis(J, (0, 1), (-2, -1)).reshape(-1, len(self.names), len(self.names))
        J = J[np.isfinite(J).all((1, 2))]
        return np.linalg.eigvals(J) if len(J) else np.zeros((1, 1))

    def _states(self, grid):
        """Arrays (samples, states) of the components, x, y, z, t; and of the parameters (samples, 1)."""
        per = max(2, min(5, int(_STATES ** (1 / len(self.names)))))
        if 2 ** len(self.names) <= _STATES:
            points = np.array(list(product(*[np.linspace(*b, per) for b in self._bounds])))
        else:
            low, high = np.array(self._bounds).T
            points = low + (high - low) * np.random.default_rng(0).random((_STATES, len(low)))
        ends: list[Any] = [(0.0, 1.0)] * 3
        if grid is not None:
            ends = [e if isinstance(e, tuple) else (0.0, 0.0) for e in places_of(grid, zip(grid.low, grid.high))]
        places = np.array(list(product(*[np.linspace(e[0], e[1], 3) for e in ends], [0.0, 0.5, 1.0])))
        if not self._placed:
            places = places[:1]
        states = [np.repeat(points[:, k], len(places))[None] for k in range(len(self.names))]
        return states + [np.tile(places[:, k], len(points))[None] for k in range(4)], [v[:, None] for v in self._values]

    @cached_property
    def _placed(self) -> bool:
        """Whether the reaction depends on place or time."""
        module, _ = self._module
        return bool(module.FIELDS or module.TIME)

    # -- the reaction for arrays --------------------------------------------------------------------------------------

    def rates(self, u, grid: Grid | None = None, t: float = 0.0) -> np.ndarray:
        """The reaction of a field (components, ...) or, with per-sample parameters, (batch, components, ...); float64.

        With one component, its axis must be there too. `grid` is needed by reactions that depend on place.
        """
        components, values, places, axis = self._arguments(u, grid)
        with np.errstate(all="ignore"):
            found = self._module[0].reaction(*components, *values, *places, t)
        return np.stack([np.broadcast_to(r, components[0].shape) for r in found], axis)

    def jacobian(self, u, grid: Grid | None = None, t: float = 0.0) -> np.ndarray:
        """Derivatives of the reaction, (components, components, ...) or (batch, components, components, ...); float64.

        Entry [i, j] is the derivative of component i's reaction by component j. `u` as for `rates`.
        """
        components, values, (x, y, z), axis = self._arguments(u, grid)
        J = self._derivative(components, values, x, y, z, t)
        return np.moveaxis(J, 2, 0) if axis else J

    def linear(self, grid: Grid) -> bool:
        """Whether all diffuses evenly and the reaction is linear and couples no components.

        That is a diagonal Jacobian, the same at two states.
        """
        if not self.even(grid):
            return False
        C, many = len(self.names), self.batch()
        form = (C, *grid.shape) if many == 1 else (many, C, *grid.shape)
        J, other = (self.jacobian(np.broadcast_to(v, form), grid) for v in (0.37, 0.91))
        off = J * (1 - np.eye(C)).reshape(C, C, *[1] * grid.ndim)
        return bool(np.isfinite(J).all() and np.array_equal(J, other) and not off.any())

    def _derivative(self, components, values, x, y, z, t) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = self._module[0].derivative(*components, *values, x, y, z, t)
            shape = np.broadcast_shapes(*map(np.shape, (*components, *values, x, y, z, t)))
        C = len(self.names)
        return np.stack([np.broadcast_to(np.asarray(d, np.float64), shape) for d in found]).reshape(C, C, *shape)

    def _arguments(self, u, grid):
        u, C = np.asarray(u, np.float64), len(self.names)
        lead = 1 if u.ndim and u.shape[0] == C and self.batch() == 1 else 2
        lead = lead if grid is None else u.ndim - grid.ndim
        axis = lead - 1
        if axis not in (0, 1) or u.ndim <= axis or u.shape[axis] != C or (self.batch() > 1 and axis == 0):
            raise ValueError(f"a field has shape ({C}, ...) or (batch, {C}, ...) with components "
                             f"{', '.join(self.names)}, not {u.shape}")
        components = list(np.moveaxis(u, axis, 0))
        values = [v.reshape(-1, *[1] * (components[0].ndim - 1)) if len(v) > 1 else v[0] for v in self._values]
        if self._placed and grid is None:
            raise ValueError("this reaction depends on the place or the time: give grid")
        places = places_of(grid) if grid is not None else [0.0] * 3
        return components, values, places, axis


class _Walls(NamedTuple):
    """The walls of one component, as `Heat.for_walls` asks for them."""

    grid: Grid
    walls: dict


def _varies(value) -> bool:
    """Whether a diffusivity is no number, tuple of numbers or array with one number a sample."""
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(is_formula(part) or np.ndim(part) > (len(parts) == 1) for part in parts)


def _named(text: str, new: dict[str, str]) -> str:
    """A formula with other names."""

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(new.get(node.id, node.id), node.ctx)

    try:
        return ast.unparse(Rename().visit(ast.parse(text.replace("^", "**").strip(), mode="eval")))
    except (SyntaxError, ValueError):
        return text  # refused where it is read as a formula


def _check_names(names, parameters):
    taken = {*CONSTANTS, *FUNCTIONS, *AXES, "t"}
    for name in (*names, *parameters):
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"components and parameters have names that can stand in a formula, not {name!r}")
        if name in taken and not (name in CONSTANTS and name in parameters):
            raise ValueError(f"{name!r} means something else in a formula: give the component or parameter another "
                             "name")
    both = [name for name in names if name in parameters]
    if both:
        raise ValueError(f"{both[0]!r} is a component and a parameter: give one of them another name")


def _check_components(what, given, names):
    if not isinstance(given, Mapping):
        return
    stray, lacking = [k for k in given if k not in names], [n for n in names if n not in given]
    if stray:
        raise ValueError(f"unknown component {stray[0]!r} in {what}; known (from reaction): {', '.join(names)}")
    if lacking:
        raise ValueError(f"{what} has no entry for {', '.join(map(repr, lacking))}: every component needs one, be it 0")


def _shape_of(rate, spread):
    """The kind of rule for rates (B, components, axes), and the rates it takes."""
    parts, ndim = [c for c, wanted in enumerate(spread) if wanted], rate.shape[2]
    if ndim == 1:
        return "Line", [rate[:, c, 0] for c in parts]
    if ndim == 2 and (rate[..., 0] == rate[..., 1]).all():
        return "Square", [rate[:, c, 0] for c in parts]
    if ndim == 2:
        rate = np.stack([rate[..., 0], np.zeros_like(rate[..., 0]), rate[..., 1]], -1)
    return "Axes", [rate[:, c, k] for c in parts for k in range(3)]


def _number(value, varies, batch, dtype):
    """A coefficient as the compiled rule wants it: one number a sample if parameters may change it."""
    if not varies:
        return dtype.type(value)
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float64), batch), dtype)
