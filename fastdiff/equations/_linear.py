"""From diffusivity, velocity and geometry to the weights of kernels/variable.py.

A cell i exchanges w_ij (u_j - u_i) with its neighbours. Along an axis, with A the measure of a face, V that of a cell,
x the points and f the faces:

    diffusion   w = A_f / ((f - x_i)/D_i + (x_j - f)/D_j) / V_i        the harmonic mean, weighted by distance
    advection   the flux v u through a face takes u from upwind, or the mean of both sides:
                w = A_f max(v in, 0) / V_i, or A_f (v in) / (2 V_i);   and -(div v) u_i

At a wall the schedule puts a ghost beyond the edge (fastdiff/boundary.py). Its weight is that of the wall: with cells
A D_w / (h V), with nodes A D_w / (2 h V) and V that of a half cell, so that a Neumann condition brings in exactly
A D_w du/dn; what is missing for the flux between the first two nodes goes to the inner neighbour. Where all walls are
held or closed (`mirrored`) both sides of the first node get the same weight instead, and a weight belongs to a face.
"""

import numpy as np

from fastdiff.grid import Grid


def along(line, axis: int, ndim: int) -> np.ndarray:
    """A line of numbers, shaped to broadcast over a grid."""
    return np.asarray(line).reshape([-1 if k == axis else 1 for k in range(ndim)])


def _measures(grid: Grid, axis: int):
    """Along an axis: measure of the N + 1 faces, of the N cells, and distances from points to their low and high face.

    On a plain axis they are exactly equal everywhere, so that weights of both sides of a face are equal to the bit.
    """
    n, name, faces, points = grid.shape[axis], grid.names[axis], grid.faces(axis), grid.points(axis)
    if grid.plain:
        dx = grid.spacing[axis]
        volume, low, high = np.full(n, dx), np.full(n, dx / 2), np.full(n, dx / 2)
        if grid.centering == "nodes" and not grid.periodic[axis]:
            volume[[0, -1]], low[0], high[-1] = dx / 2, 0.0, 0.0
    else:
        volume, low, high = grid.volumes(axis), points - faces[:-1], faces[1:] - points
    area = np.ones(n + 1)
    if name == "r":
        area = faces**2 if grid.geometry == "spherical" else faces
    elif name == "theta" and grid.geometry == "spherical":
        area = np.abs(np.sin(faces))
        area[np.abs(area) < 1e-15] = 0.0
    return area, volume, low, high


def _crosswise(grid: Grid, axis: int) -> np.ndarray:
    """What the place on the other axis makes of an axis' weights: 1 / r^2 or so for an angle, as an average."""
    if grid.names[axis] != "theta":
        return np.ones([1] * grid.ndim)
    faces = grid.faces(0)
    area = np.diff(faces**2) / 2 if grid.geometry == "spherical" else np.diff(faces)
    return along(area / (grid.points(0) * grid.volumes(0)), 0, grid.ndim)


def _sides(values, axis):
    """All but the last and all but the first along an axis of (batch, *grid)."""
    n = values.shape[axis + 1]
    return values.take(range(n - 1), axis + 1), values.take(range(1, n), axis + 1)


def wall_values(values, grid: Grid, axis: int, end: int) -> np.ndarray:
    """Numbers (batch, *grid) at a wall, (batch, *face): on nodes the edge's, on cells a line through the first two.

    The line stays within a factor of two, for numbers that jump or change sign there.
    """
    first = values.take(-end, axis + 1)
    n = grid.shape[axis]
    if grid.centering == "nodes" or n == 1:
        return first
    second, x, faces = values.take(-2 if end else 1, axis + 1), grid.points(axis), grid.faces(axis)
    far = abs(x[-2 if end else 1] - x[-end])
    line = first + (first - second) * (abs(x[-end] - faces[-end]) / far)
    small, large = np.sort([0.5 * first, 2.0 * first], axis=0)
    return np.clip(line, small, large)


def diffusion(grid: Grid, D, axis: int, mirrored: bool = False, at_wall=wall_values):
    """Weights of the low and the high neighbour along an axis, per time, for D (batch, *grid)."""
    ndim, n, wraps = grid.ndim, grid.shape[axis], grid.periodic[axis]
    area, volume, low, high = (along(m, axis, ndim) for m in _measures(grid, axis))
    volume = volume / _crosswise(grid, axis)
    a, b = _sides(D, axis)
    h_a, h_b = np.delete(high, -1, axis), np.delete(low, 0, axis)
    inner = _conductance(a, b, h_a, h_b) * np.delete(area, [0, -1], axis)
    if wraps:
        ends = _conductance(D.take([-1], axis + 1), D.take([0], axis + 1), high.take([-1], axis), low.take([0], axis))
        ends = [ends * area.take([0], axis)] * 2
        below, above = np.concatenate([ends[0], inner], axis + 1), np.concatenate([inner, ends[1]], axis + 1)
        return below / volume, above / volume
    walls = [np.zeros_like(D.take([0], axis + 1))] * 2
    below, above = np.concatenate([walls[0], inner], axis + 1), np.concatenate([inner, walls[1]], axis + 1)
    below, above = below / volume, above / volume
    first, last = [slice(None)] * D.ndim, [slice(None)] * D.ndim
    first[axis + 1], last[axis + 1] = 0, n - 1  # type: ignore[call-overload]
    for end, where, outer, other in ((0, tuple(first), below, above), (1, tuple(last), above, below)):
        h = grid.wall_spacing(axis, end)
        if grid.centering == "cells":
            rest = np.broadcast_to(volume, D.shape[1:])[where[1:]]
            outer[where] = at_wall(D, grid, axis, end) * area.ravel()[-end] / (h * rest)
        elif mirrored:
            outer[where] = other[where] = other[where] / 2
        else:
            rest = np.broadcast_to(volume, D.shape[1:])[where[1:]]
            outer[where] = at_wall(D, grid, axis, end) * area.ravel()[-end] / (2 * h * rest)
            other[where] -= outer[where]
    return below, above


def advection(grid: Grid, v, axis: int, scheme: str, at_wall=wall_values):
    """Weights of the low and the high neighbour along an axis, and div v, per time, for v (batch, *grid)."""
    ndim = grid.ndim
    area, volume, _, _ = (along(m, axis, ndim) for m in _measures(grid, axis))
    a, b = _sides(v, axis)
    inner = (a + b) / 2
    if grid.periodic[axis]:
        ends = [(v.take([-1], axis + 1) + v.take([0], axis + 1)) / 2] * 2
    elif grid.centering == "cells":
        ends = [np.expand_dims(at_wall(v, grid, axis, end), axis + 1) for end in (0, 1)]
    else:  # half a cell beyond the edge, where a ghost stands on the other side
        ends = [2 * v.take([-end], axis + 1) - inner.take([-end], axis + 1) for end in (0, 1)]
        volume = np.full_like(volume, grid.spacing[axis])
    flow = np.concatenate([ends[0], inner, ends[1]], axis + 1) * area
    low, high = _sides(flow, axis)
    if scheme == "upwind1":
        below, above = np.maximum(low, 0), np.maximum(-high, 0)
    else:
        below, above = low / 2, -high / 2
    return below / volume, above / volume, (high - low) / volume


def _conductance(a, b, h_a, h_b):
    """1 / (h_a/D_a + h_b/D_b); 0 where one of them is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a * b > 0, a * b / (h_a * b + h_b * a), 0.0)


def stable_step(grid: Grid, weights, decay=None, stiffness=None, mirrored: bool = False) -> float:
    """Largest stable step of forward Euler: 2 over Gershgorin's bound, which for positive weights is sum of w <= 1.

    stiffness  of each axis: how much its walls raise the bound (`fastdiff.boundary.Faces`)
    """
    total = 0.0
    for axis in range(grid.ndim):
        below, above = weights[2 * axis], weights[2 * axis + 1]
        part = np.abs(below) + np.abs(above)
        if not grid.periodic[axis] and stiffness is not None and stiffness[axis] > 1:
            for end in (0, 1):
                where: list = [slice(None)] * part.ndim
                where[axis + 1] = -end
                outer = (below, above)[end][tuple(where)]
                part[tuple(where)] = np.maximum(part[tuple(where)], 2 * np.abs(outer)) * stiffness[axis]
        total = total + part
    bound = 2 * np.max(total if decay is None else total + np.abs(decay) / 2)
    return float(2 / bound) if bound > 0 else np.inf
