"""Antiperiodic axes, u(x + L) = -u(x): solved on a periodic axis of twice the length, whose second half is -u."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdiff.grid import Grid


@dataclass(frozen=True)
class Antiperiodic:
    """u(x + L) = -u(x) along a periodic axis of the grid: `boundary={"x": fd.Antiperiodic()}`.

    The equation must change sign with u, as linear ones without sources do, and Allen-Cahn: this is checked when the
    run is over. Only `fd.solve` takes it. It costs twice the cells for each such axis.
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


def solve(run, equation, u0, grid, axes, boundary, options: dict[str, Any]):
    """`run` on the doubled grid, and the half of what it finds."""
    if options.get("save_to") is not None:
        raise ValueError("save_to does not go with antiperiodic axes: leave it out, and save the Solution")
    if np.shape(u0)[-grid.ndim :] != grid.shape:
        raise ValueError(f"u0 has shape {tuple(np.shape(u0))}; the grid has {grid.shape}")
    options = {**options, "callback": _halving(options.get("callback"), grid, axes)}
    found = run(equation, doubled(u0, grid, axes), doubled_grid(grid, axes), boundary=boundary, **options)
    final = halved(found.final, grid, axes)
    apart = float(abs(doubled(final, grid, axes) - found.final).max())
    eps = float(np.finfo(str(final.dtype).removeprefix("torch.")).eps)
    if apart > 1e4 * eps * max(float(abs(found.final).max()), 1e-300):
        raise ValueError(f"the solution is not antiperiodic (off by {apart:.2g}): {type(equation).__name__} does not "
                         f"change sign with u, or a boundary value does not")
    found.u, found.final, found.grid = _own(halved(found.u, grid, axes)), _own(final), grid
    return found


def _own(u):
    return np.ascontiguousarray(u) if isinstance(u, np.ndarray) else u.contiguous()


def _halving(callback, grid, axes):
    if callback is None or not callable(callback):
        return callback
    return lambda t, u, state: callback(t, halved(u, grid, axes), state)


__all__ = ["Antiperiodic"]
