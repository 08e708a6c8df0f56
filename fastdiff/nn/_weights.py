"""`fastdiff/equations/_linear.py` in torch: weights of neighbours from diffusivities and velocities, differentiably.

The same formulas in float64, for coefficients that are learned; the geometry is that of the grid. tests/test_adjoint.py
holds both against each other.
"""

import numpy as np
import torch

from fastdiff.equations._linear import _crosswise, _measures, along
from fastdiff.grid import Grid


def _constant(line, like):
    return torch.as_tensor(np.ascontiguousarray(line), dtype=like.dtype, device=like.device)


def _ends(values, axis):
    """The first and the last along an axis of (batch, *grid), the axis kept."""
    return values.narrow(axis + 1, 0, 1), values.narrow(axis + 1, values.shape[axis + 1] - 1, 1)


def _sides(values, axis):
    n = values.shape[axis + 1]
    return values.narrow(axis + 1, 0, n - 1), values.narrow(axis + 1, 1, n - 1)


def wall_values(values, grid: Grid, axis: int, end: int):
    """Numbers (batch, *grid) at a wall, the axis kept with length 1: see `_linear.wall_values`."""
    first, n = _ends(values, axis)[end], grid.shape[axis]
    if grid.centering == "nodes" or n == 1:
        return first
    second, x, faces = values.narrow(axis + 1, n - 2 if end else 1, 1), grid.points(axis), grid.faces(axis)
    far = abs(x[-2 if end else 1] - x[-end])
    line = first + (first - second) * float(abs(x[-end] - faces[-end]) / far)
    halves = 0.5 * first, 2.0 * first
    return torch.minimum(torch.maximum(line, torch.minimum(*halves)), torch.maximum(*halves))


def _conductance(a, b, h_a, h_b):
    """1 / (h_a/D_a + h_b/D_b); 0 where one of them is 0, NaN where one is negative."""
    under = h_a * b + h_b * a
    flows = (a > 0) & (b > 0)
    value = torch.where(flows, a * b / torch.where(flows, under, torch.ones_like(under)), torch.zeros_like(under))
    return torch.where((a < 0) | (b < 0), torch.full_like(under, float("nan")), value)


def _faces(grid: Grid, D, axis: int):
    """Conductances of all inner faces, and of the periodic one (or None), times area."""
    ndim, area = grid.ndim, _measures(grid, axis)[0]
    _, _, low, high = (_constant(along(m, axis, ndim), D) for m in _measures(grid, axis))
    n = grid.shape[axis]
    a, b = _sides(D, axis)
    inner = _conductance(a, b, high.narrow(axis, 0, n - 1), low.narrow(axis, 1, n - 1))
    inner = inner * _constant(along(area[1:-1], axis, ndim), D)
    if not grid.periodic[axis]:
        return inner, None
    first, last = _ends(D, axis)
    return inner, _conductance(last, first, high.narrow(axis, n - 1, 1), low.narrow(axis, 0, 1)) * float(area[0])


def _volume(grid, axis, like):
    volume = along(_measures(grid, axis)[1], axis, grid.ndim) / _crosswise(grid, axis)
    return _constant(volume, like)


def diffusion(grid: Grid, D, axis: int, mirrored: bool = False):
    """Weights of the low and the high neighbour along an axis, per time, for D (batch, *grid)."""
    inner, round_trip = _faces(grid, D, axis)
    volume, dim = _volume(grid, axis, D), axis + 1
    if round_trip is not None:
        return torch.cat([round_trip, inner], dim) / volume, torch.cat([inner, round_trip], dim) / volume
    none = torch.zeros_like(_ends(D, axis)[0])
    below, above = torch.cat([none, inner], dim) / volume, torch.cat([inner, none], dim) / volume
    area, n = _measures(grid, axis)[0], grid.shape[axis]
    for end in (0, 1):
        outer, other = (below, above) if end == 0 else (above, below)
        h, at, rest = grid.wall_spacing(axis, end), n - 1 if end else 0, _ends(volume.unsqueeze(0), axis)[end]
        wall = wall_values(D, grid, axis, end) * float(area[-end]) / (h * rest)
        beside = other.narrow(dim, at, 1)
        if grid.centering == "cells":
            outer = _replaced(outer, dim, at, wall)
        elif mirrored:
            outer, other = _replaced(outer, dim, at, beside / 2), _replaced(other, dim, at, beside / 2)
        else:
            outer, other = _replaced(outer, dim, at, wall / 2), _replaced(other, dim, at, beside - wall / 2)
        below, above = (outer, other) if end == 0 else (other, outer)
    return below, above


def _replaced(values, dim, at, new):
    """Values with one slice along an axis replaced."""
    n, new = values.shape[dim], new.expand(*values.shape[:dim], 1, *values.shape[dim + 1 :])
    return torch.cat([values.narrow(dim, 0, at), new, values.narrow(dim, at + 1, n - at - 1)], dim)


def shared(below, above, grid: Grid, axis: int):
    """Weights of the n + 1 faces of an axis, where those of both sides are one by construction."""
    last = _ends(below, axis)[0] if grid.periodic[axis] else _ends(above, axis)[1]
    return torch.cat([below, last.detach() if grid.periodic[axis] else last], axis + 1)


def is_shared(grid: Grid, mirrored: bool) -> bool:
    """Whether diffusion has the same weight on both sides of every face, by construction."""
    return grid.plain and (grid.centering == "cells" or mirrored or all(grid.periodic))


def advection(grid: Grid, v, axis: int, scheme: str):
    """Weights of the low and the high neighbour along an axis, and div v, per time, for v (batch, *grid)."""
    ndim, dim, n = grid.ndim, axis + 1, grid.shape[axis]
    area, volume = (_constant(along(m, axis, ndim), v) for m in _measures(grid, axis)[:2])
    a, b = _sides(v, axis)
    inner, (first, last) = (a + b) / 2, _ends(v, axis)
    if grid.periodic[axis]:
        ends = [(last + first) / 2] * 2
    elif grid.centering == "cells":
        ends = [wall_values(v, grid, axis, end) for end in (0, 1)]
    else:
        ends = [2 * first - inner.narrow(dim, 0, 1), 2 * last - inner.narrow(dim, n - 2, 1)]
        volume = torch.full_like(volume, grid.spacing[axis])
    flow = torch.cat([ends[0], inner, ends[1]], dim) * area
    low, high = _sides(flow, axis)
    if scheme == "upwind1":
        below, above = low.clamp(min=0), (-high).clamp(min=0)
    else:
        below, above = low / 2, -high / 2
    return below / volume, above / volume, (high - low) / volume


def upwind(grid: Grid, v, axis: int, scheme: str):
    """Weights {cells away: (batch, *grid)} of upwind schemes of order 2 and 3 along an axis, and div v, per time."""
    dim, (a, b), (first, last) = axis + 1, _sides(v, axis), _ends(v, axis)
    n, inner = v.shape[dim], (a + b) / 2
    if grid.periodic[axis]:
        ends = [(last + first) / 2] * 2
    else:
        ends = [2 * first - inner.narrow(dim, 0, 1), 2 * last - inner.narrow(dim, n - 2, 1)]
    low, high = _sides(torch.cat([ends[0], inner, ends[1]], dim) / grid.spacing[axis], axis)
    second, one, down = (-1 / 2, 3 / 2, 0.0) if scheme == "upwind2" else (-1 / 6, 5 / 6, 1 / 3)
    weights = {k: torch.zeros_like(v) for k in (-2, -1, 1, 2)}
    for flow, sign, shift in ((low, 1, -1), (high, -1, 0)):  # of the face between cells shift and shift + 1
        with_it, against = sign * flow.clamp(min=0), sign * flow.clamp(max=0)
        for where, part in ((shift - 1, second * with_it), (shift, one * with_it), (shift + 1, down * with_it),
                            (shift + 2, second * against), (shift + 1, one * against), (shift, down * against)):
            if where:
                weights[where] = weights[where] + part
    return weights, high - low


__all__ = ["advection", "diffusion", "is_shared", "shared", "upwind", "wall_values"]
