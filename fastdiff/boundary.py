"""Boundary conditions, and how they become ghost cells and held cells.

With n the outward normal, dx the spacing, u0 and u1 the first two points inside:

    condition                       cells (wall half a cell out)                nodes (wall at u0)
    Dirichlet  u = g                ghost = 2 g - u0                            u0 = g is held
    Neumann    du/dn = g            ghost = u0 + dx g                           ghost = u1 + 2 dx g
    Flux       -D du/dn = q         as Neumann with g = -q/D                    as Neumann
    Robin      a u + b du/dn = g    ghost = (g + u0 (b/dx - a/2))/(b/dx + a/2)  ghost = u1 + 2 dx (g - a u0)/b

All are second order. Where a value depends on u, it is taken at the wall: u0 on nodes, 3/2 u0 - 1/2 u1 on cells.
At a corner a held value wins, and of two held values that of the earlier axis.

A value may also depend on the other components at that wall, by their names, and on what lies at the wall opposite, by
`u_far` and the like. It is looked up at every time level and stage. Such a run is not blocked in time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from fastdiff.grid import Grid
from fastdiff.kernels._edges import _SPACE, GHOST, HEAD, HOLD, ITEMS, VALUE, Edges, Side, make_edges
from fastdiff.kernels._stages import sides_of

# -- what users write ------------------------------------------------------------------------------------------------


class Condition:
    """A condition on one side of a grid.

    A value is a number, an array over the face (or (batch, *face), or one number a sample), an expression such as
    "sin(t)", or a Python function whose arguments are some of the same names: t, the places x, y, z (or r, theta), the
    components' names for their values at that wall, and `u_far`, `v_far`, ... for those at the wall opposite. Where no
    component is called u, u is the one that the condition is for. A Dirichlet value cannot depend on its own component
    at its own wall.

        fd.Dirichlet("0.9*u_far")                 what leaves at the other end comes in again
        {"v": fd.Neumann("0.2*(u - v)")}          u and v are exchanged at the wall
    """

    def _value(self) -> Any:
        raise NotImplementedError


def _check(value, what: str, formula: bool = True):
    """Refuse a value that can never be one; the rest needs the grid."""
    if isinstance(value, str) or callable(value):
        if not formula:
            raise ValueError(f"{what} is a number or one number a sample, not {value!r}; only g may be a formula")
        return
    numbers = as_numbers(value, what)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} must be finite" + (f", not {value!r}" if numbers.size == 1 else " everywhere"))


def as_numbers(value, what: str) -> np.ndarray:
    """Numbers, lists, NumPy arrays and torch tensors as float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"{what} is a number, an array, an expression or a function, not {value!r}")
    return numbers.astype(np.float64)


@dataclass(frozen=True)
class Dirichlet(Condition):
    """u = value on the wall; without a value, the initial one is held."""

    value: Any = None

    def __post_init__(self):
        if self.value is not None:
            _check(self.value, "a Dirichlet value")

    def _value(self):
        return self.value


@dataclass(frozen=True)
class Neumann(Condition):
    """du/dn = derivative, along the outward normal."""

    derivative: Any = 0.0

    def __post_init__(self):
        _check(self.derivative, "a Neumann derivative")

    def _value(self):
        return self.derivative


@dataclass(frozen=True)
class Robin(Condition):
    """a u + b du/dn = g; a and b are numbers, or one a sample."""

    a: Any
    b: Any
    g: Any = 0.0

    def __post_init__(self):
        _check(self.a, "a of a Robin condition", formula=False)
        _check(self.b, "b of a Robin condition", formula=False)
        _check(self.g, "g of a Robin condition")
        if not np.all(as_numbers(self.b, "b of a Robin condition")):
            raise ValueError("b of a Robin condition must not be 0: write Dirichlet(g/a) instead")

    def _value(self):
        return self.g


@dataclass(frozen=True)
class Flux(Condition):
    """-D du/dn = q: what leaves through the wall, per area and time."""

    q: Any = 0.0

    def __post_init__(self):
        _check(self.q, "a flux")

    def _value(self):
        return self.q


CONDITIONS = (Dirichlet, Neumann, Robin, Flux)
_EXAMPLE = "such as fd.Dirichlet(0.0) or fd.Neumann(0.0)"


def conditions(boundary, grid: Grid, names: tuple[str, ...] = ("u",)) -> dict[tuple[int, int, int], Condition]:
    """The condition of each (component, axis, end) that has one; the others have no flux.

    `boundary` is None, one condition for all walls, {"x": condition or (low, high), "y": ...}, or one of these for
    each component, {"u": ..., "v": ...}.
    """
    if isinstance(boundary, Mapping) and any(key in names for key in boundary):
        stray = [key for key in boundary if key not in names]
        if stray:
            raise ValueError(f"a boundary is given by component or by axis, not both: move {stray[0]!r} into "
                             f"each of {_list(k for k in boundary if k in names)}")
        parts = {c: _by_side(boundary.get(name), grid, names) for c, name in enumerate(names)}
    else:
        same = _by_side(boundary, grid, names)
        parts = dict.fromkeys(range(len(names)), same)
    return {(c, *side): condition for c, part in parts.items() for side, condition in part.items()}


def _by_side(spec, grid, names) -> dict[tuple[int, int], Condition]:
    bounded = [axis for axis in range(grid.ndim) if not grid.periodic[axis]]
    if spec is None:
        return {}
    if isinstance(spec, Condition):
        if not bounded:
            raise ValueError("the grid is periodic along every axis and has no boundary: leave boundary out")
        return {(axis, end): spec for axis in bounded for end in (0, 1)}
    from fastdiff.antiperiodic import Antiperiodic

    if isinstance(spec, Antiperiodic):
        raise ValueError("fd.solve and fd.Stepper alone take Antiperiodic, for periodic axes")
    if not isinstance(spec, Mapping):
        raise ValueError(f'boundary is a condition {_EXAMPLE}, or {{"x": (low, high), ...}}, not {spec!r}')
    out = {}
    for name, pair in spec.items():
        if name not in grid.names:
            raise ValueError(f"unknown boundary {name!r}; known: axes {_list(grid.names)}, components {_list(names)}")
        axis = grid.names.index(name)
        for end, condition in enumerate(_pair(name, pair)):
            if condition is not None and grid.periodic[axis]:
                raise ValueError(f"axis {name} is periodic and has no boundary: leave it out, or make the grid bounded")
            if condition is not None:
                out[axis, end] = condition
    return out


def _pair(name, pair):
    if pair is None or isinstance(pair, Condition):
        return pair, pair
    if isinstance(pair, tuple | list) and len(pair) == 2 and all(p is None or isinstance(p, Condition) for p in pair):
        return tuple(pair)
    from fastdiff.antiperiodic import Antiperiodic

    if isinstance(pair, Antiperiodic):
        raise ValueError(f"axis {name} is Antiperiodic, which fd.solve and fd.Stepper alone can take")
    raise ValueError(f"the boundary of axis {name} is a condition {_EXAMPLE}, or a pair (low, high), not {pair!r}")


def _list(names):
    return ", ".join(repr(name) for name in names)


# -- lowering --------------------------------------------------------------------------------------------------------

CONSTANT, INITIAL, TABLE, CALL = "constant", "initial", "table", "call"


class Wall(NamedTuple):
    """One side of one component, ready to be packed."""

    label: str
    how: str  # CONSTANT, INITIAL, TABLE or CALL
    side: Side
    formula: Any = None
    scale: Any = None  # what a formula is multiplied by, (batch or 1, 1, face cells): 1/D of a flux where D varies
    sees: tuple = ()  # (component, whether at the wall opposite) for each w of the formula

    @property
    def of_field(self) -> bool:
        """Whether the value depends on the field."""
        return self.formula is not None and ("u" in self.formula.uses or bool(self.sees))


class Faces:
    """The boundaries of a run: `edges(start, dt, steps)` packs them for a march.

    stiffness  for each axis, a bound on how much the walls raise the largest eigenvalue, 4 D/dx^2, of the stencil
    nonlinear  whether a value depends on the field
    seeing     whether one depends on other components or on the wall opposite
    """

    def __init__(self, grid: Grid, walls: dict[tuple[int, int, int], Wall], components: int, batch: int, dtype):
        self.grid, self.walls, self.components, self.batch = grid, walls, components, batch
        self.dtype = np.dtype(dtype)
        self.stiffness = tuple(max([1.0, *(_stiffness(w.side) for (_, k, _), w in walls.items() if k == axis)])
                               for axis in range(grid.ndim))
        self.nonlinear = any(wall.of_field for wall in walls.values())
        self.seeing = any(wall.sees for wall in walls.values())
        self.needs_initial = any(wall.how == INITIAL for wall in walls.values())
        self.constant = all(wall.how in (CONSTANT, INITIAL) for wall in walls.values())
        self.tables = not grid.plain or any(wall.scale is not None for wall in walls.values())
        self._packed: dict[int, Edges] = {}
        self._template: tuple[Any, Edges] | None = None

    def edges(self, start: float = 0.0, dt: float = 1.0, steps: int = 1, *, initial=None, tables=False, times=None,
              registers: int = 1) -> Edges:
        """The boundaries of a march of `steps` steps from time `start`.

        initial    the field (batch, components, *grid) whose values Dirichlet() holds, if `lower` was given none
        tables     tabulate all that does not depend on u, as a GPU needs it; with `values()` for the rest
        times      of all levels, where they are not equally spaced (in place of start, dt and steps)
        registers  of an integrator that keeps stages in further components (kernels/_stages.py)
        """
        if self.constant and not self.needs_initial:
            if registers not in self._packed:
                self._packed[registers] = self._pack({}, 1, False, registers)
            packed = self._packed[registers]
            clock = [[start, dt], packed.clock[2:], [] if times is None else times]
            return packed._replace(clock=np.concatenate(clock))
        held, tables = self._held(initial), tables or self.tables
        clock = np.array([start, dt])
        if times is not None:
            clock = np.append(clock, times)
        else:
            times = start + dt * np.arange(steps + 1)
        key = (len(times), tables, registers)
        template = None if held else self._template
        if template is None or template[0] != key:
            template = key, self._pack(held, len(times), tables, registers)
            self._template = None if held else template
        return self._filled(template[1], times, tables, clock)

    def values(self):
        """What depends on u, as `march_cuda` takes it: with `edges(..., tables=True)`. None if nothing does."""
        sides = [((c, 2 * _SPACE[self.grid.ndim][axis] + end), wall.formula, bool(wall.sees))
                 for (c, axis, end), wall in self.walls.items() if wall.how == CALL and wall.of_field]
        return _value_class(tuple(sides))() if sides else None

    def _held(self, initial):
        held = {key: wall for key, wall in self.walls.items() if wall.how == INITIAL}
        if held and initial is None:
            raise ValueError("fd.Dirichlet() holds the initial values, which are not given: write fd.Dirichlet(value)")
        return {(c, axis, end): np.take(initial[:, c], -end, axis + 1).reshape(self.batch, 1, -1)
                for c, axis, end in held}

    def _pack(self, held, levels, tables, registers=1):
        grid, sides = self.grid, {}
        for key, wall in self.walls.items():
            side = wall.side
            if key in held:
                side = _with(side, value=held[key])
            elif _tabulated(wall, tables):
                cells = 1 if wall.how == TABLE else grid.size // grid.shape[key[1]]
                samples = 1 if wall.scale is None else len(wall.scale)
                side = _with(side, value=np.zeros((samples, levels, cells)))
            elif wall.how == CALL:
                side = _with(side, call=wall.formula.address(), sees=wall.sees)
            sides[key] = side
        sides = sides_of(sides, self.components, registers, [k for k in range(grid.ndim) if not grid.periodic[k]])
        return make_edges(grid.shape, grid.periodic, self.dtype, sides, components=self.components * registers,
                          batch=self.batch, origin=grid.origin, spacing=grid.mean_spacing,
                          walls=tuple(zip(grid.low, grid.high)),
                          face_weights=(1.5, -0.5) if grid.centering == "cells" else (1.0, 0.0))

    def _filled(self, edges, times, tables, clock):
        reals, clock = edges.reals.copy(), np.concatenate([clock[:2], edges.clock[2:], clock[2:]])
        for (c, axis, end), wall in self.walls.items():
            if _tabulated(wall, tables):
                values = _tabulate(wall, self.grid, axis, end, times)
                if wall.scale is not None:
                    values = values.reshape(1, len(times), -1) * wall.scale
                at = edges.ints[HEAD + (c * 6 + 2 * _SPACE[self.grid.ndim][axis] + end) * ITEMS + VALUE]
                reals[at : at + values.size] = values.ravel()
        return Edges(edges.ints, reals, clock)


def _tabulated(wall, tables):
    return wall.how == TABLE or (wall.how == CALL and tables and not wall.of_field)


@lru_cache(maxsize=64)
def _value_class(sides):
    """A class for `march_cuda`'s `values`: its `value` and `seen` choose the formula by component and side."""
    from fastdiff.expressions import ARGUMENTS, SEEN

    lines, scope = [], {f"formula_{k}": f.device for k, (_, f, _) in enumerate(sides)}
    for name, wanted, arguments in (("value", False, ARGUMENTS), ("seen", True, (*ARGUMENTS, *SEEN))):
        given = ", ".join(arguments)
        lines += [f"def {name}(p, c, side, {given}):"]
        lines += [f"    if c == {c} and side == {side}:\n        return formula_{k}({given})"
                  for k, ((c, side), _, sees) in enumerate(sides) if sees == wanted]
        lines += ["    return 0.0"]
    exec("\n".join(lines), scope)

    class Values(NamedTuple):
        """Boundary values that depend on u."""

        value, seen = staticmethod(scope["value"]), staticmethod(scope["seen"])

    return Values


def _with(side: Side, **changes) -> Side:
    return Side(**{**vars(side), **changes})


def _stiffness(side: Side) -> float:
    """Gershgorin's bound for the row beside a wall, relative to that inside."""
    if side.kind == HOLD:
        return 1.0
    return float(np.max(np.abs(2.0 - np.asarray(side.alpha)) + np.abs(1.0 + np.asarray(side.beta)))) / 4.0


def _places(grid, axis, end):
    """Coordinates of a face as x, y, z, shaped to broadcast over it."""
    others = [grid.points(k) for k in range(grid.ndim) if k != axis]
    mesh = iter(np.meshgrid(*others, indexing="ij", sparse=True))
    wall = np.float64((grid.low, grid.high)[end][axis])
    return {name: wall if k == axis else next(mesh) for k, name in zip(range(grid.ndim), "xyz")}


def _tabulate(wall, grid, axis, end, times=None):
    """A formula on a face, (time levels, cells of the face) without what it does not depend on."""
    face = [n for k, n in enumerate(grid.shape) if k != axis]
    places = _places(grid, axis, end)
    known = {name: value for name, value in places.items() if name in wall.formula.uses}
    if times is None:
        shape = face
    elif known:
        known["t"], shape = times.reshape(-1, *[1] * len(face)), [len(times), *face]
    else:
        known["t"], shape = times, [len(times)]
    values = np.broadcast_to(wall.formula.host(**known), shape)
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        when = "" if times is None else f" at t = {times[bad[0]]:g}"
        raise ValueError(f"the boundary value {wall.formula.text!r} at {wall.label} is {values[tuple(bad)]:g}{when}")
    return values


def lower(boundary, grid: Grid, names: tuple[str, ...] = ("u",), batch: int = 1, dtype: Any = np.float64, u0=None,
          diffusivity=None, at_wall=None) -> Faces:
    """Turn boundary conditions into ghost and held cells.

    boundary     as in `conditions`
    u0           the field (batch, components, *grid) whose values Dirichlet() holds
    diffusivity  broadcastable to (batch, components, axes); only Flux asks for it
    at_wall      where it varies in space: a function of component, axis and end that gives D on that wall,
                 (batch or 1, *face)
    """
    given = conditions(boundary, grid, tuple(names))
    for side in _sides(grid, len(names)):
        given.setdefault(side, _NO_FLUX)
    if not any(isinstance(c, Flux) for c in given.values()):
        diffusivity = at_wall = None
    elif at_wall is not None:
        diffusivity = None
    elif diffusivity is not None:
        diffusivity = np.shape(diffusivity), tuple(np.ravel(diffusivity).tolist())
    if not any(isinstance(c, Dirichlet) and c.value is None for c in given.values()):
        u0 = None
    args = grid, tuple(given.items()), tuple(names), int(batch), np.dtype(dtype)
    plain = u0 is None and at_wall is None and all(_is_plain(condition) for condition in given.values())
    return _lowered(*args, diffusivity) if plain else _lower(*args, diffusivity, u0, at_wall)


def _is_plain(condition):
    """Whether a condition holds numbers and expressions alone, which cannot change behind our back."""
    return all(value is None or isinstance(value, float | int | str) for value in vars(condition).values())


_NO_FLUX = Neumann(0.0)


@lru_cache(maxsize=64)
def _sides(grid, components):
    bounded = [axis for axis in range(grid.ndim) if not grid.periodic[axis]]
    return [(c, axis, end) for c in range(components) for axis in bounded for end in (0, 1)]


@lru_cache(maxsize=64)
def _lowered(grid, given, names, batch, dtype, diffusivity):
    return _lower(grid, given, names, batch, dtype, diffusivity, None)


def _lower(grid, given, names, batch, dtype, diffusivity, u0, at_wall=None):
    if diffusivity is not None:
        diffusivity = np.reshape(diffusivity[1], diffusivity[0])
        try:
            diffusivity = np.broadcast_to(diffusivity, (batch, len(names), grid.ndim))
        except ValueError:
            raise ValueError(f"diffusivity of shape {diffusivity.shape} does not broadcast to "
                             f"(batch, components, axes) = {(batch, len(names), grid.ndim)}") from None
    walls = {}
    for (c, axis, end), condition in given:
        label = f"{grid.names[axis]} {('low', 'high')[end]}"
        label = label if len(names) == 1 else f"{names[c]}, {label}"
        D = None if diffusivity is None else diffusivity[:, c, axis]
        if isinstance(condition, Flux) and at_wall is not None:
            wall = _flux_wall(condition, grid, axis, end, batch, label, np.asarray(at_wall(c, axis, end)), names, c)
        else:
            wall = _wall(condition, grid, axis, end, batch, label, D, names, c)
        if wall.how == INITIAL and u0 is not None:
            value = np.take(u0[:, c], -end, axis + 1).reshape(batch, 1, -1).astype(dtype)
            wall = wall._replace(how=CONSTANT, side=_with(wall.side, value=value))
        walls[c, axis, end] = wall
    _check_chains(walls)
    return Faces(grid, walls, len(names), batch, dtype)


def _check_chains(walls):
    """Refuse held walls whose values wait for each other."""
    for (_, axis, end), wall in walls.items():
        for d, far in wall.sees if wall.side.kind == HOLD else ():
            other = walls[d, axis, end ^ far]
            if other.side.kind == HOLD and other.sees:
                raise ValueError(f"the Dirichlet values at {wall.label} and {other.label} depend on one another's "
                                 'wall: one of them must be of another kind, or the grid have centering="cells"')


def value_formula(value, grid: Grid, names: tuple[str, ...], c: int):
    """The formula of a boundary value of component `c` in t, x, y, z, u and w0, w1, ...; and what each w is.

    These are pairs: the component, and whether at the wall opposite.
    """
    from fastdiff.expressions import SEEN, formula

    places = dict(zip(grid.names, "xyz"))
    own = {names[c]: "u"} if "u" in names else {names[c]: "u", "u": "u"}
    others = {name: (d, False) for d, name in enumerate(names) if d != c}
    others |= {f"{name}_far": (d, True) for d, name in enumerate(names)}
    others |= {} if "u" in names else {"u_far": (c, True)}
    others = {name: what for name, what in others.items() if name not in ("t", *places, *own)}
    known = ("t", *grid.names, *own, *others)
    plain = formula(value, known)
    sees = [name for name in others if name in plain.uses]
    if len(sees) > len(SEEN):
        raise ValueError(f"a boundary value depends on at most {len(SEEN)} values of other components and walls, but "
                         f"{plain.text!r} on {len(sees)}")
    made = formula(value, known, {**places, **own, **dict(zip(sees, SEEN))})
    return made, tuple(others[name] for name in sees)


def _wall(condition, grid, axis, end, batch, label, D, names=("u",), c=0) -> Wall:
    kind, alpha, beta, gamma = _stencil(condition, grid.wall_spacing(axis, end), grid.centering, batch, label, D)
    value = condition._value()
    if value is None:
        return Wall(label, INITIAL, Side(kind, alpha, beta, gamma))
    if not (isinstance(value, str) or callable(value)):
        face = tuple(n for k, n in enumerate(grid.shape) if k != axis)
        return Wall(label, CONSTANT, Side(kind, alpha, beta, gamma, _face_array(value, face, batch, label)))
    f, sees = value_formula(value, grid, names, c)
    if "u" in f.uses and isinstance(condition, Dirichlet):
        raise ValueError(f"a Dirichlet value cannot depend on {names[c]}, as {f.text!r} at {label} does: use Neumann "
                         "or Robin")
    wall = Wall(label, CALL, Side(kind, alpha, beta, gamma), f, sees=sees)
    if wall.of_field or ("t" in f.uses and len(f.uses) > 1):
        return wall
    if "t" in f.uses:
        return wall._replace(how=TABLE)
    side = _with(wall.side, value=_tabulate(wall, grid, axis, end).reshape(1, 1, -1))
    return wall._replace(how=CONSTANT, side=side)


def _flux_wall(condition, grid, axis, end, batch, label, D, names, c) -> Wall:
    """A flux where D varies, (batch or 1, *face): at each cell of the face the Neumann condition du/dn = -q/D."""
    if not np.all(D > 0):
        raise ValueError(f"the flux at {label} needs a positive diffusivity on that wall")
    face = [n for k, n in enumerate(grid.shape) if k != axis]
    scale = -1.0 / np.broadcast_to(D, (len(D), *face)).reshape(len(D), 1, -1)
    wall = _wall(Neumann(condition.q), grid, axis, end, batch, label, None, names, c)
    if wall.formula is None or wall.how == CONSTANT:
        return wall._replace(side=_with(wall.side, value=np.asarray(wall.side.value) * scale))
    if wall.of_field:
        raise ValueError(f"the flux at {label} depends on u (or other walls), which needs a diffusivity that does "
                         "not vary in space: write it as Neumann")
    return wall._replace(how=CALL, scale=scale)


def _stencil(condition, dx, centering, batch, label, D):
    """kind, alpha, beta, gamma of a condition; the table at the head of this file."""
    cells = centering == "cells"
    if isinstance(condition, Dirichlet):
        return (GHOST, -1.0, 0.0, 2.0) if cells else (HOLD, 0.0, 0.0, 0.0)
    if isinstance(condition, Robin):
        a = _per_sample(condition.a, batch, f"a of the Robin condition at {label}")
        b = _per_sample(condition.b, batch, f"b of the Robin condition at {label}")
        if not cells:
            return GHOST, -2 * dx * a / b, 1.0, 2 * dx / b
        whole = b / dx + a / 2
        if not np.all(whole):
            raise ValueError(f"a/2 + b/dx of the Robin condition at {label} is 0: refine the grid")
        return GHOST, (b / dx - a / 2) / whole, 0.0, 1 / whole
    alpha, beta, gamma = (1.0, 0.0, dx) if cells else (0.0, 1.0, 2 * dx)
    if isinstance(condition, Flux):
        if D is None or not np.all(D > 0):
            raise ValueError(f"the flux at {label} needs a positive diffusivity that is constant in space")
        gamma = -gamma / D
    return GHOST, alpha, beta, gamma


def _per_sample(value, batch, what):
    numbers = as_numbers(value, what)
    if numbers.ndim > 1 or numbers.size not in (1, batch):
        raise ValueError(f"{what} has shape {numbers.shape}: expected a number, or {batch} of them, one a sample")
    return numbers.reshape(-1) if numbers.size > 1 else float(numbers.reshape(()))


def _face_array(value, face, batch, label):
    """A value as (batch or 1, 1, face cells or 1)."""
    if isinstance(value, Real):
        return np.float64(value).reshape(1, 1, 1)
    numbers = as_numbers(value, "a boundary value")
    if face and numbers.ndim == 1 and len(face) == 1 and numbers.shape == face == (batch,) and batch > 1:
        raise ValueError(f"the {batch} values at {label} could be one a sample or one a point of the face: "
                         f"give them the shape ({batch}, 1) or (1, {batch})")
    if numbers.size == 1:
        whole = numbers.reshape((1,) * (len(face) + 1))
    elif numbers.shape == (batch,) and numbers.shape != face:
        whole = numbers.reshape(-1, *[1] * len(face))
    else:
        whole = numbers[None] if numbers.ndim == len(face) else numbers
    if whole.ndim != len(face) + 1 or any(n not in (1, m) for n, m in zip(whole.shape, (batch, *face))):
        over = f"{face} over the face, {(batch, *face)} with the batch" if face else "a number"
        raise ValueError(f"the value at {label} has shape {numbers.shape}: expected {over}, or ({batch},) one a sample")
    if whole[0].size > 1:
        whole = np.broadcast_to(whole, (whole.shape[0], *face))
    return whole.reshape(whole.shape[0], 1, -1)


__all__ = ["CONDITIONS", "Condition", "Dirichlet", "Faces", "Flux", "Neumann", "Robin", "conditions", "lower",
           "value_formula"]
