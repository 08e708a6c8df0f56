"""The heat equation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations import _linear
from fastdiff.equations._base import axis_values, common_batch, diffusive_limit
from fastdiff.equations._coefficients import in_space, is_formula, over_grid, samples_in
from fastdiff.grid import Grid
from fastdiff.kernels import heat, variable


@dataclass(frozen=True)
class Heat:
    """Heat equation, u_t = div(D grad u) + f, such as D (u_xx + u_yy + u_zz) with constant D (Fick's second law).

    diffusivity  a number; an array with one number a sample; an array over the grid, (*grid) or (samples, *grid);
                 an expression of place, such as "1 + 0.5*sin(x)", or a function; or a tuple with one of these an axis.
                 Length² / time
    source       f: as the diffusivity, but no tuple. Units of u / time

    Where D varies, the flux between two cells takes the harmonic mean of theirs: it is right where D jumps, and what
    leaves a cell enters its neighbour. Second order in space (kernels/heat.py, kernels/variable.py).
    """

    diffusivity: Any = 1.0
    source: Any = None

    names = ("u",)
    _mirrored = False

    def __post_init__(self):
        if not self._in_space(None):
            axis_values(self.diffusivity, "diffusivity", self._axes(1))

    def _axes(self, ndim: int) -> int:
        return len(self.diffusivity) if isinstance(self.diffusivity, tuple | list) else ndim

    def _parts(self) -> tuple:
        return tuple(self.diffusivity) if isinstance(self.diffusivity, tuple | list) else (self.diffusivity,)

    def _in_space(self, grid: Grid | None) -> bool:
        """Whether the diffusivity varies over a grid; without one, whether it has the look of it."""
        if grid is None:
            return any(is_formula(part) or np.ndim(part) > (1 if len(self._parts()) == 1 else 0)
                       for part in self._parts())
        return any(in_space(part, grid) for part in self._parts())

    def constant(self, grid: Grid) -> bool:
        """Whether the equation has constant coefficients on a grid, and no source."""
        return grid.plain and self.source is None and not self._in_space(grid)

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the coefficients speak of."""
        source = [] if self.source is None else [self.source]
        return common_batch(*(np.empty(samples_in(part, grid)) for part in (*self._parts(), *source)))

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

    def _weights(self, grid, batch):
        """Weights of all neighbours, per time; they are kept, for they serve steps of any length."""
        key = grid, batch, self._mirrored
        if key not in self._kept:
            pairs = [_linear.diffusion(grid, D, axis, self._mirrored, self._wall_values)
                     for axis, D in enumerate(self._over(grid, batch))]
            size = max(len(w) for pair in pairs for w in pair)
            self._kept.clear()
            self._kept[key] = [np.broadcast_to(w, (size, *grid.shape)) for pair in pairs for w in pair]
        return self._kept[key]

    def _wall_values(self, D, grid, axis, end):
        """D on a wall: an expression says it, numbers at the centres of cells are continued to it."""
        part = self._parts()[axis if len(self._parts()) > 1 else 0]
        if grid.centering == "cells" and is_formula(part):
            from fastdiff.expressions import formula

            f, places = formula(part, grid.names), {}
            for k, (name, x) in enumerate(zip(grid.names, grid.coordinates())):
                places[name] = x.take([0], k) * 0 + (grid.low, grid.high)[end][axis] if k == axis else x
            values = np.asarray(f.host(**{name: x for name, x in places.items() if name in f.uses}), np.float64)
            return np.broadcast_to(values, [1 if k == axis else n for k, n in enumerate(grid.shape)]
                                   ).squeeze(axis)[None]
        return _linear.wall_values(D, grid, axis, end)

    def at_wall(self, grid: Grid, batch: int):
        """A function of component, axis and end that gives D on a wall, (1 or batch, *face); None if D is constant."""
        if not self._in_space(grid):
            return None
        fields = self._over(grid, batch)
        return lambda c, axis, end: self._wall_values(fields[axis], grid, axis, end)

    def for_walls(self, faces) -> "Heat":
        """The equation for these walls: if all are held or closed, weights belong to faces (half of the memory)."""
        nodes = faces.grid.centering == "nodes" and faces.grid.lines is None
        if not nodes or not all(_held_or_closed(wall) for wall in faces.walls.values()):
            return self
        mirrored = type(self)(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        object.__setattr__(mirrored, "_mirrored", True)
        return mirrored

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler: kernels/heat.py where D is constant, kernels/variable.py where not."""
        if not grid.plain or self._in_space(grid):
            weights = [w * dt for w in self._weights(grid, batch)]
            rule = variable.rule(weights, dtype)
        else:
            rate = self.diffusivities(grid)[:, 0] * dt / np.square(grid.spacing)
            rule = heat.rule(np.broadcast_to(rate, (batch, grid.ndim)), dtype)
        return rule if self.source is None else self._fed(rule, grid, dt, batch, dtype)

    def _fed(self, rule, grid, dt, batch, dtype):
        source = over_grid(self.source, grid, "source", batch) * dt
        return variable.Fed(rule, variable.Cells(np.broadcast_to(source, (len(source), *grid.shape)), grid.ndim, dtype))

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable FTCS step: 1 / (2 sum of D/dx² over the axes), or Gershgorin's bound where D varies."""
        if grid.plain and not self._in_space(grid):
            return diffusive_limit(self.diffusivities(grid), grid, stiffness)
        return _linear.stable_step(grid, self._weights(grid, self.batch(grid)), None, stiffness)

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0


def _held_or_closed(wall) -> bool:
    from fastdiff.boundary import CONSTANT, INITIAL
    from fastdiff.kernels._edges import HOLD

    side = wall.side
    if side.kind == HOLD:
        return True
    closed = wall.how in (CONSTANT, INITIAL) and not np.any(side.value)
    return closed and np.all(np.asarray(side.alpha) == 0) and np.all(np.asarray(side.beta) == 1)
