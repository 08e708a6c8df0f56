"""Antiperiodic axes, u(x + L) = -u(x): solved on a periodic axis of twice the length, whose second half is -u."""

from dataclasses import dataclass, replace

import numpy as np

from fastdiff.grid import Grid


@dataclass(frozen=True)
class Antiperiodic:
    """u(x + L) = -u(x) along a periodic axis of the grid: `boundary={"x": fd.Antiperiodic()}`.

    The equation must change sign with u, as linear ones without sources do, and Allen-Cahn: this is checked at each
    frame. `fd.solve` and `fd.Stepper` take it, with every method. It costs twice the cells for each such axis.
    """


def split(boundary, grid):
    """The boundary without its antiperiodic axes, and these."""
    if isinstance(boundary, Antiperiodic):
        boundary = dict.fromkeys(grid.names, boundary)
    if not isinstance(boundary, dict) or not any(isinstance(v, Antiperiodic) for v in boundary.values()):
        return boundary, ()
    rest = {key: value for key, value in boundary.items() if not isinstance(value, Antiperiodic)}
    axes = []
    for key in (k for k in boundary if k not in rest):
        if key not in grid.names or not grid.periodic[grid.names.index(key)]:
            raise ValueError(f"Antiperiodic goes with a periodic axis, and {key!r} is none: pass periodic=True (or one "
                             f"bool for each axis) to fd.Grid")
        axes.append(grid.names.index(key))
    return rest or None, tuple(axes)


def doubled_grid(grid: Grid, axes) -> Grid:
    """Twice as long along the axes."""
    shape, extent = list(grid.shape), [tuple(pair) for pair in grid.extent]
    for axis in axes:
        low, high = extent[axis]
        shape[axis], extent[axis] = 2 * shape[axis], (low, 2 * high - low)
    return replace(grid, shape=tuple(shape), extent=tuple(extent))


def doubled(u, grid: Grid, axes):
    """A field and its negative image."""
    for axis in axes:
        at = u.ndim - grid.ndim + axis
        if isinstance(u, np.ndarray):
            u = np.concatenate([u, -u], at)
        else:
            import torch

            u = torch.cat([u, -u], at)
    return u


def halved(u, grid: Grid, axes):
    """The first half along the axes."""
    where = [slice(None)] * u.ndim
    for axis in axes:
        where[u.ndim - grid.ndim + axis] = slice(grid.shape[axis])
    return u[tuple(where)]


class Fold:
    """A grid with antiperiodic axes, and the plain periodic one, `whole`, on which it is solved."""

    def __init__(self, grid: Grid, axes, equation: str):
        self.grid, self.axes, self.equation = grid, axes, equation
        self.whole = doubled_grid(grid, axes)

    def check(self, samples, equation):
        """Refuse coefficients that are arrays over the grid; `samples` is that function of fastdiff.equations._base."""
        if samples(equation, self.grid) != samples(equation, self.whole):
            raise ValueError("a coefficient is an array over the grid, which antiperiodic axes cannot take: write it "
                             "as a formula that repeats along them")

    def opened(self, u):
        """A field of the user's, or a state, on the whole grid."""
        if np.shape(u)[-self.grid.ndim :] != self.grid.shape:
            raise ValueError(f"u0 has shape {tuple(np.shape(u))}; the grid has {self.grid.shape}")
        return doubled(u, self.grid, self.axes)

    def closed(self, u):
        """The part of a state on the whole grid that is the user's; refuses what is not antiperiodic."""
        half = halved(u, self.grid, self.axes)
        apart = float(abs(doubled(half, self.grid, self.axes) - u).max())
        eps = float(np.finfo(str(u.dtype).removeprefix("torch.")).eps)
        if apart > 1e4 * eps * max(float(abs(u).max()), 1e-300):
            raise ValueError(f"the solution is not antiperiodic (off by {apart:.2g}): {self.equation} does not change "
                             "sign with u, a coefficient does not repeat along the axis, or a boundary value does not "
                             "change sign")
        return np.ascontiguousarray(half) if isinstance(half, np.ndarray) else half.contiguous()


__all__ = ["Antiperiodic", "Fold"]
