"""The heat equation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations import _exact, _linear
from fastdiff.equations._base import AsGiven, axis_values, common_batch, diffusive_limit
from fastdiff.equations._coefficients import at_wall_of, in_space, is_formula, over_grid, samples_in, timed_source, uses
from fastdiff.equations._exact import single
from fastdiff.equations._laws import FieldLaw
from fastdiff.equations._rules import AXES, CURVED
from fastdiff.expressions import Expression
from fastdiff.grid import Grid
from fastdiff.kernels import heat, nonlinear, variable, wide


@dataclass(frozen=True)
class Heat(AsGiven):
    """Heat equation, R u_t = div(D grad u) + f, such as u_t = D (u_xx + u_yy + u_zz) (Fick's second law).

    diffusivity  D: a number; an array with one number a sample; an array over the grid, (*grid) or (samples, *grid);
                 an expression of place, such as "1 + 0.5*sin(x)", or a function; a tuple with one of these an axis; or
                 an expression in u, and place, such as "u**2*(1 + x)"; or a symmetric positive definite matrix,
                 ((Dxx, Dxy), (Dxy, Dyy)), whose entries may vary in space. Length² / time
    source       f: a number or array as the diffusivity, or an expression of place and time. Units of u / time
    capacity     R: an expression in u, and place, such as "1 + 2*(u + 1e-6)**(-0.1)"; default 1
    parameters   numbers, or arrays with one number a sample, that expressions in u name
    bounds       (low, high) between which u is expected, where D or R depends on it: for the choice of the time step
    order        of accuracy in space, 2, or 4 or 6 for constant coefficients: inside, on periodic axes, and at walls
                 whose value, derivative or flux does not change in time

    Where D varies in space, the flux between two cells takes the harmonic mean of theirs: it is right where D jumps.
    Where D depends on u it takes the arithmetic mean: a front may move into a place where D(u) = 0; of a D that depends
    on the place too, with the place of the face between them. What leaves a cell enters its neighbour. With a matrix,
    Neumann, Robin and Flux speak of the flux through the wall over D_nn.
    kernels/heat.py, variable.py, nonlinear.py; wide.py for order 4 and 6 and for matrices.
    """

    diffusivity: Any = 1.0
    source: Any = None
    capacity: Any = None
    parameters: Any = field(default_factory=dict)
    bounds: Any = (0.0, 1.0)
    order: int = 2

    names = ("u",)
    _mirrored = False
    _open: tuple = ()

    def __post_init__(self):
        if not self._in_space(None):
            axis_values(self.diffusivity, "diffusivity", self._axes(1))
        if not isinstance(self.parameters, Mapping):
            raise ValueError(f"parameters is a mapping from names to numbers, not {self.parameters!r}")
        if self.capacity is not None and not isinstance(self.capacity, str):
            raise ValueError(f"capacity is an expression in u, not {self.capacity!r}: divide the diffusivity instead")
        if self.order not in (2, 4, 6):
            raise ValueError(f"order is 2, 4 or 6, not {self.order!r}")
        self._laws  # noqa: B018  formulas in u are read here
        for part in (self._parts() if self._matrix is None else [e for row in self._matrix for e in row]):
            if isinstance(part, str) and not uses(part, "u"):
                Expression(part, (*AXES, *CURVED))
        if self.parameters and not any(self._laws):
            raise ValueError("parameters are those of expressions in u, and there is none")

    @cached_property
    def _laws(self) -> tuple:
        """The diffusivity and the capacity as functions of the field, or None."""
        D = FieldLaw(self.diffusivity, self.parameters, "the diffusivity") if uses(self.diffusivity, "u") else None
        R = None if self.capacity is None else FieldLaw(self.capacity, self.parameters, "the capacity")
        return D, R

    def _largest(self, grid: Grid) -> float:
        """The largest D/R, or 1/R where D does not depend on u, between the bounds."""
        try:
            low, high = map(float, self.bounds)
        except (TypeError, ValueError):
            low = high = np.nan
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ValueError(f"bounds are a pair (low, high) of finite numbers, not {self.bounds!r}")
        placed = any(law is not None and law.placed for law in self._laws)
        largest = -np.inf
        for u in np.linspace(low, high, 33)[:, None] if placed else [np.linspace(low, high, 513)]:
            D, R = (np.ones((1, 1)) if law is None else law.host(u, grid) for law in self._laws)
            for values, what, least in ((D, "diffusivity", 0.0), (R, "capacity", 0.0)):
                if np.nanmin(values) < least or (what == "capacity" and np.nanmin(values) == 0):
                    raise ValueError(f"the {what} falls to {np.nanmin(values):g} between the bounds {low:g} and "
                                     f"{high:g} of u")
            ratio = D / R if D.ndim == R.ndim else D.reshape(*D.shape[:2], -1) / R.reshape(*R.shape[:2], -1)
            largest = np.max(ratio, where=np.isfinite(ratio), initial=largest)
        if not np.isfinite(largest):
            raise ValueError(f"D(u) / R(u) is finite nowhere between the bounds {low:g} and {high:g} of u")
        return float(largest)

    def _axes(self, ndim: int) -> int:
        return len(self.diffusivity) if isinstance(self.diffusivity, tuple | list) else ndim

    def _parts(self) -> tuple:
        return tuple(self.diffusivity) if isinstance(self.diffusivity, tuple | list) else (self.diffusivity,)

    @cached_property
    def _matrix(self) -> tuple | None:
        """The rows of a matrix of diffusivities, or None."""
        D = self.diffusivity
        if isinstance(D, np.ndarray) and D.ndim == 2 and D.shape in ((2, 2), (3, 3)):
            D = D.tolist()
        rows = isinstance(D, tuple | list) and len(D) > 1 and all(isinstance(r, tuple | list) for r in D)
        if rows and any(len(r) != len(D) for r in D):
            raise ValueError("a matrix of diffusivities is square, not with rows of "
                             + ", ".join(str(len(r)) for r in D))
        return tuple(map(tuple, D)) if rows else None

    def _tensor(self, grid, batch):
        """The matrix over the grid, (1 or batch, *grid) for each entry; refuses what is not positive definite."""
        assert self._matrix is not None
        if len(self._matrix) != grid.ndim:
            raise ValueError(f"a matrix of {len(self._matrix)} rows does not fit a grid of {grid.ndim} axes")
        D = [[over_grid(entry, grid, "an entry of the diffusivity", batch) for entry in row] for row in self._matrix]
        whole = np.stack([np.stack(np.broadcast_arrays(*[e for r in D for e in r])[k * grid.ndim : (k + 1) * grid.ndim],
                                   -1) for k in range(grid.ndim)], -2)
        if not np.allclose(whole, np.swapaxes(whole, -1, -2), rtol=1e-12, atol=0):
            raise ValueError("a matrix of diffusivities must be symmetric")
        least = np.linalg.eigvalsh(whole)[..., 0]
        if (least <= 0).any():
            place = tuple(map(int, np.argwhere(least <= 0)[0][1:]))
            raise ValueError("a matrix of diffusivities must be positive definite: the smallest eigenvalue at "
                             f"{place} is {least.min():g}")
        return [[np.broadcast_to(e, (len(e), *grid.shape)) for e in row] for row in D]

    def _in_space(self, grid: Grid | None) -> bool:
        """Whether the diffusivity varies over a grid (a matrix counts); without one, whether it has the look of it."""
        if self._matrix is not None:
            return True
        if grid is None:
            return any(is_formula(part) or np.ndim(part) > (1 if len(self._parts()) == 1 else 0)
                       for part in self._parts())
        return any(in_space(part, grid) for part in self._parts())

    def constant(self, grid: Grid) -> bool:
        """Whether the equation has constant coefficients on a grid, and no source."""
        return grid.plain and self.source is None and not any(self._laws) and not self._in_space(grid)

    def even(self, grid: Grid) -> bool:
        """Whether all is plain diffusion on a plain grid, but for a source: what methods in modes ask for."""
        return grid.plain and self.order == 2 and not any(self._laws) and not self._in_space(grid)

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the coefficients speak of."""
        D = self._parts() if self._matrix is None else [e for row in self._matrix for e in row]
        parts = [*D, *([] if self.source is None else [self.source]), *self.parameters.values()]
        return common_batch(*(np.empty(samples_in(part, grid)) for part in parts))

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, 1, axes); NaN where it varies in space."""
        if self._in_space(grid):
            return np.full((1, 1, grid.ndim), np.nan)
        return axis_values(self.diffusivity, "diffusivity", grid.ndim)[:, None, :]

    def _over(self, grid, batch):
        """D along each axis, (1 or batch, *grid) each."""
        parts = self._parts()
        if len(parts) not in (1, grid.ndim):
            raise ValueError(f"diffusivity as a tuple has one entry for each of the {grid.ndim} axes of the grid, not "
                             f"{len(parts)}")
        fields = [over_grid(part, grid, "diffusivity", batch, 0.0) for part in parts]
        fields = [np.broadcast_to(f, (len(f), *grid.shape)) for f in fields]
        return fields * grid.ndim if len(fields) == 1 else fields

    @cached_property
    def _kept(self) -> dict:
        return {}

    @cached_property
    def _limits(self) -> dict:
        """The last weights and their limit of the step, by stiffness."""
        return {}

    def _weights(self, grid, batch):
        """Weights of all neighbours, per time; they are kept, for they serve steps of any length."""
        key = grid, batch, self._mirrored
        if key not in self._kept:
            pairs = [_linear.diffusion(grid, D, axis, self._mirrored, self._wall_values)
                     for axis, D in enumerate(self._over(grid, batch))]
            size = max(len(w) for pair in pairs for w in pair)
            if len(self._kept) > 1:
                self._kept.clear()
            self._kept[key] = [np.broadcast_to(w, (size, *grid.shape)) for pair in pairs for w in pair]
        return self._kept[key]

    @staticmethod
    def _shape_weights(grid):
        """Weights of all neighbours, per time, where D = 1."""
        return [w for axis in range(grid.ndim) for w in _linear.diffusion(grid, np.ones((1, *grid.shape)), axis)]

    def _wall_values(self, D, grid, axis, end):
        parts = self._parts()
        return at_wall_of(parts[axis if len(parts) > 1 else 0], D, grid, axis, end)

    def at_wall(self, grid: Grid, batch: int):
        """A function of component, axis and end that gives D on a wall, (1 or batch, *face); None if D is constant."""
        if not self._in_space(grid) or self._laws[0] is not None:
            return None
        if self._matrix is not None:
            tensor, rows = self._tensor(grid, batch), self._matrix
            return lambda c, axis, end: at_wall_of(rows[axis][axis], tensor[axis][axis], grid, axis, end)
        fields = self._over(grid, batch)
        return lambda c, axis, end: self._wall_values(fields[axis], grid, axis, end)

    def for_walls(self, faces) -> "Heat":
        """The equation for these walls: if all are held or closed, weights belong to faces (half of the memory)."""
        if self._laws[0] is not None:
            return self
        if self._matrix is not None:
            return self._with(_open=tuple((axis, end) for (_, axis, end), wall in faces.walls.items()
                                          if np.all(np.asarray(wall.side.alpha) == -1)))
        nodes = faces.grid.centering == "nodes" and faces.grid.lines is None
        if not nodes or not all(_held_or_closed(wall) for wall in faces.walls.values()):
            return self
        return self._with(_mirrored=True)

    def _with(self, **known) -> "Heat":
        """A copy that knows more about the walls."""
        other = type(self)(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        for name, value in {**known, "_kept": self._kept, "_limits": self._limits}.items():
            object.__setattr__(other, name, value)
        return other

    def linear(self, grid: Grid) -> bool:
        """Whether it is linear and couples nearest neighbours along the axes alone."""
        return not any(self._laws) and self._matrix is None and self.order == 2

    def line_weights(self, grid: Grid, batch: int):
        """Weights of the low and the high neighbour of each axis in turn, per time; None if there are no such."""
        wide = any(self._laws) or self._matrix is not None or self.order > 2
        return None if wide or (grid.plain and not self._in_space(grid)) else self._weights(grid, batch)

    def _wide(self, grid, batch) -> tuple[str, dict]:
        """The neighbourhood and weights, per time, of orders 4 and 6 and of matrices: kernels/wide.py."""
        letters = dict(enumerate({1: "2", 2: "02", 3: "012"}[grid.ndim]))
        if self._matrix is None:
            if not self.constant(grid) and (not grid.plain or self._in_space(grid)):
                raise ValueError(f"order {self.order} needs a constant diffusivity on a Cartesian grid with equal "
                                 "spacing")
            rate = self.diffusivities(grid)[:, 0] / np.square(grid.spacing)
            return (f"star{self.order // 2}", {letter * k + letters[axis]: w * rate[:, axis] for axis in letters
                                               for k, w in enumerate(_LAPLACIAN[self.order], 1) for letter in "mp"})
        if not grid.plain or grid.ndim == 1 or self.order != 2:
            raise ValueError("a matrix of diffusivities needs order 2 and a Cartesian grid of equal spacing with two "
                             "or three axes")
        tensor, found = self._tensor(grid, batch), {}
        for a in letters:
            pair = _linear.diffusion(grid, tensor[a][a], a, False, _wall_of(self._matrix[a][a]))
            for letter, w in zip("mp", pair):
                _add(found, letter + letters[a], w)
            for b in letters:
                if a != b:
                    for (k, o), w in _linear.mixed(grid, tensor[a][b], a, b, self._open).items():
                        at = {a: k, b: o}
                        _add(found, "".join("pm"[at[x] < 0] + letters[x] for x in sorted(at) if at[x]), w)
        return "box", found

    def _entry(self, grid: Grid, a: int, b: int) -> dict:
        """What 1 in row a and column b of a matrix of diffusivities that are numbers adds to the weights of `_wide`."""
        letters, one, found = {2: "02", 3: "012"}[grid.ndim], np.ones((1, *grid.shape)), {}
        if a == b:
            return dict(zip(("m" + letters[a], "p" + letters[a]), _linear.diffusion(grid, one, a)))
        for (k, o), w in _linear.mixed(grid, one, a, b, self._open).items():
            at = {a: k, b: o}
            _add(found, "".join("pm"[at[x] < 0] + letters[x] for x in sorted(at) if at[x]), w)
        return found

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler: kernels/heat.py where D is constant, kernels/variable.py where not."""
        D, R = self._laws
        if D is not None and grid.plain and not D.placed:
            rate = np.broadcast_to(dt / (2 * np.square(grid.spacing)), (batch, grid.ndim))
            rule = nonlinear.rule(rate, D.law(batch, dtype), dtype)
        elif D is not None:
            weights = ([np.full(batch, 1 / dx**2) for dx in grid.spacing for _ in "mp"] if grid.plain else
                       self._shape_weights(grid))
            weights = [w * (dt / 2) for w in weights]
            rule = nonlinear.placed(weights, [D.law(batch, dtype, grid, k) for k in range(grid.ndim)], dtype)
        elif self.order > 2 or self._matrix is not None:
            near, weights = self._wide(grid, batch)
            weights = {n: np.broadcast_to(w * dt, batch if w.ndim == 1 else w.shape) for n, w in weights.items()}
            rule = wide.rule(near, weights, grid.ndim, dtype)
        elif not grid.plain or self._in_space(grid):
            weights = self._weights(grid, batch)
            rule = variable.rule(weights if dt == 1 else [w * dt for w in weights], dtype)
        else:
            rate = self.diffusivities(grid)[:, 0] * dt / np.square(grid.spacing)
            rule = heat.rule(np.broadcast_to(rate, (batch, grid.ndim)), dtype)
        rule = fed(rule, self.source, grid, dt, batch, dtype)
        return rule if R is None else nonlinear.Stored(rule, R.law(batch, dtype, grid))

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable FTCS step: 1 / (2 sum of D/dx² over the axes), or Gershgorin's bound where D varies."""
        largest = self._largest(grid) if any(self._laws) else 1.0
        if self._laws[0] is not None and not grid.plain:
            return _linear.stable_step(grid, self._shape_weights(grid), None, stiffness) / largest
        if self._laws[0] is not None:
            return diffusive_limit(np.full((1, 1, grid.ndim), largest), grid, stiffness)
        if self._matrix is not None:
            _, weights = self._wide(grid, self.batch(grid))
            total = np.asarray(sum(np.abs(w) for w in weights.values()))
            worst = 1.0 if stiffness is None else max(stiffness)
            return float(1 / (total.max() * worst * largest))
        if self.order > 2 or (grid.plain and not self._in_space(grid)):
            return diffusive_limit(self.diffusivities(grid) * largest, grid, stiffness) * _LIMIT[self.order]
        weights, key = self._weights(grid, self.batch(grid)), None if stiffness is None else tuple(stiffness)
        known = self._limits.get(key)
        if known is None or known[0] is not weights:
            self._limits.clear()
            known = self._limits[key] = weights, _linear.stable_step(grid, weights, None, stiffness)
        return known[1] / largest

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0

    def exact(self, x, t, kind: str = "gaussian", *, width: float = 0.1, start: Any = 0.0, radius: float = 1.0,
              mode: int = 1):
        """A closed form for a number as diffusivity; x is an array, or a tuple with one an axis.

        "gaussian"  a bump of standard deviation `width` at `start` that spreads
        "cylinder"  the mode-th mode, a Bessel function of the distance x = r, in a cylinder whose wall is held at 0
        """
        places, D = _exact.axes_of(x), single(self.diffusivity, "diffusivity")
        if kind == "gaussian":
            return _exact.gaussian(places, t, D, [0.0] * len(places), width, np.broadcast_to(start, len(places)))
        if kind == "cylinder" and len(places) == 1:
            return _exact.cylinder_mode(places[0], t, D, radius, mode)
        raise ValueError(f"unknown kind {kind!r} on {len(places)} axes; known: 'gaussian', and 'cylinder' on one")


_LAPLACIAN = {4: (4 / 3, -1 / 12), 6: (3 / 2, -3 / 20, 1 / 90)}  # weights of 1, 2, 3 cells away
_LIMIT = {2: 1.0, 4: 3 / 4, 6: 45 / 68}  # 4 over the largest eigenvalue of the second difference


def _wall_of(part):
    return lambda values, grid, axis, end: at_wall_of(part, values, grid, axis, end)


def _add(found, name, w):
    found[name] = found[name] + w if name in found else w


def fed(rule, source, grid: Grid, dt: float, batch: int, dtype):
    """A rule with a source, if there is one."""
    if source is None:
        return rule
    if uses(source, "t"):
        return nonlinear.Both(rule, timed_source(source, grid, dt, dtype))
    numbers = over_grid(source, grid, "source", batch) * dt
    return variable.Fed(rule, variable.Cells(np.broadcast_to(numbers, (len(numbers), *grid.shape)), grid.ndim, dtype))


def _held_or_closed(wall) -> bool:
    from fastdiff.boundary import CONSTANT, INITIAL
    from fastdiff.kernels._edges import HOLD

    side = wall.side
    if side.kind == HOLD:
        return True
    closed = wall.how in (CONSTANT, INITIAL) and not np.any(side.value)
    return bool(closed and np.all(np.asarray(side.alpha) == 0) and np.all(np.asarray(side.beta) == 1))
