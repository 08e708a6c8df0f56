"""The tridiagonal lines of any linear operator of nearest neighbours, found by trying it.

Every equation has a compiled rule of its right-hand side, M u + b. M is applied to stripes: fields that are 1 at each
third point along one axis and 0 elsewhere, so that each response shows one coefficient of every cell. What M does to
a constant, walls or linear decay, is shared out to the axes. Then M on a random field must be what the lines make
of it: if not, the equation is nonlinear or its stencil reaches further, and `NoLines` says so.
"""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.boundary import Faces
from fastdiff.equations._base import samples
from fastdiff.kernels._edges import GHOST, HOLD, Side, make_edges
from fastdiff.kernels._memory import empty
from fastdiff.kernels._run import march
from fastdiff.kernels._stages import slope
from fastdiff.steppers._base import looks_at_time

TIMES = (0.0137, 0.317, 0.7391, 12.34, 345.6)  # of all scales, at which coefficients must be as at 0


class NoLines(ValueError):
    """An operator that is not a sum of tridiagonal ones."""


class Line(NamedTuple):
    """One axis of an operator: u_t = lower u_{i-1} + diag u_i + upper u_{i+1} + ...

    Each is (batch or 1, components, n) where all lines along the axis are alike, else (batch or 1, components, *grid).
    """

    lower: Any
    diag: Any
    upper: Any
    shared: bool


def lines_of(equation, grid, faces: Faces, batch: int, threads=None) -> list[Line]:
    """The lines along each axis. Held cells count as unknowns: their own equations are for the caller to replace."""
    if faces.nonlinear:
        raise NoLines("a boundary value depends on u")
    weights = equation.line_weights(grid, batch) if hasattr(equation, "line_weights") else None
    if weights is not None:
        return [_weighted(grid, faces, weights, axis) for axis in range(grid.ndim)]
    probe = _Probe(equation, grid, faces, batch, threads)
    bands = [probe.bands(axis) for axis in range(grid.ndim)]
    shares = _shares(probe.constant, grid)
    lines = [(lo, share - lo - up, up) for (lo, up), share in zip(bands, shares)]
    probe.check(lines)
    probe.check_times()
    return [_joined(Line(*line, shared=False), axis, grid.ndim) for axis, line in enumerate(lines)]


def _weighted(grid, faces, weights, axis):
    """The line of an axis from the weights of the low and the high neighbour, (batch or 1, *grid)."""
    n, size = grid.shape[axis], max(len(w) for w in weights)
    low, diag, up = (empty((size, *grid.shape), np.float64) for _ in range(3))
    low[...], up[...] = weights[2 * axis : 2 * axis + 2]
    np.add(low, up, out=diag)
    np.negative(diag, out=diag)
    bands = [np.moveaxis(b, axis + 1, -1) for b in (low, diag, up)]
    if n == 1 and grid.periodic[axis]:
        low[...] = diag[...] = up[...] = 0.0
    elif n == 2 and grid.periodic[axis]:  # both neighbours are one cell
        up += low
        low[...] = 0.0
    elif not grid.periodic[axis]:
        for end in range(2):
            _close(bands, faces.walls[0, axis, end].side, end)
    return Line(*(b[:, None] for b in (low, diag, up)), shared=False)


def _close(bands, side, end):
    """Let the wall at one end of a line, alpha u_0 + beta u_1, take the place of the neighbour beyond it."""
    outer, inner, diag = bands[2 if end else 0], bands[0 if end else 2], bands[1]
    alpha, beta = (0.0, 0.0) if side.kind == HOLD else (side.alpha, side.beta)
    alpha, beta = (np.reshape(v, (-1, *[1] * (diag.ndim - 2))) for v in (alpha, beta))
    lone = diag.shape[-1] == 1
    diag[..., -end] += outer[..., -end] * (alpha + beta if lone else alpha)
    if not lone:
        inner[..., -end] += outer[..., -end] * beta
    outer[..., -end] = 0.0


class _Probe:
    def __init__(self, equation, grid, faces, batch, threads):
        self.grid, self.threads, self.names = grid, threads, equation.names
        alike = samples(equation, grid) == 1 and all(np.size(v) == 1 for w in faces.walls.values()
                                              for v in (w.side.alpha, w.side.beta))
        self.batch = 1 if alike else batch
        self.rule = slope(equation.euler(grid, 1.0, self.batch, np.float64))
        sides = {key: Side(GHOST, 0.0, 0.0, 0.0) if wall.side.kind == HOLD else
                 Side(GHOST, wall.side.alpha, wall.side.beta, 0.0) for key, wall in faces.walls.items()}
        self.edges = make_edges(grid.shape, grid.periodic, np.float64, sides, components=len(self.names),
                                batch=self.batch)
        self.zero = self._apply(np.zeros(()))
        self.constant = self(np.ones(()))

    def _apply(self, u, t=0.0):
        u = np.array(np.broadcast_to(u, (self.batch, len(self.names), *self.grid.shape)), order="C")
        edges = self.edges._replace(clock=np.concatenate([[t], self.edges.clock[1:]]))
        return march(self.rule, u, edges, 1, threads=self.threads)

    def __call__(self, u):
        return self._apply(u) - self.zero

    def bands(self, axis):
        """lower and upper of every cell along an axis; what has no neighbour is 0."""
        n, cyclic = self.grid.shape[axis], self.grid.periodic[axis]
        if n == 1:
            return np.zeros_like(self.zero), np.zeros_like(self.zero)
        form = [-1 if k == axis else 1 for k in range(self.grid.ndim)]
        i, whole = np.arange(n), n // 3 * 3
        color = np.where(i < whole, i % 3, i - whole + min(whole, 3))  # no two neighbours of a cell alike
        replies = np.stack([self((color == k).astype(float).reshape(form)) for k in range(color.max() + 1)])

        def of(k):
            places = np.broadcast_to(color[k % n].reshape(form), self.zero.shape)
            return np.take_along_axis(replies, places[None], 0)[0]

        low, up, before = of(i - 1), of(i + 1), (slice(None),) * (axis + 2)
        if not cyclic:
            low[(*before, 0)] = up[(*before, -1)] = 0.0
        elif n == 2:  # both neighbours are one cell
            low[...] = 0.0
        return low, up

    def _random(self):
        return np.random.default_rng(0).random((self.batch, len(self.names), *self.grid.shape))

    def check(self, lines):
        """Compare M on a random field with what the lines make of it."""
        u = self._random()
        want, got = self(u), sum(apply(line, u, axis) for axis, line in enumerate(lines))
        size = max(np.abs(want).max(), np.abs(self.zero).max(), 1e-300)
        if not np.abs(want - got).max() <= 1e-9 * size:
            raise NoLines("the equation is nonlinear, couples components, or its stencil reaches beyond the nearest "
                          "neighbours along the axes")

    def check_times(self):
        """M must be the same at all times; b may change."""
        if not looks_at_time(self.rule):
            return
        u, zero = self._random(), np.zeros(())
        want = self(u)
        for t in TIMES:
            with np.errstate(all="ignore"):
                b = self._apply(zero, t)
                off = np.abs(self._apply(u, t) - b - want).max()
            size = max(np.abs(want).max(), np.abs(b).max())
            if np.isfinite([off, size]).all() and off > 1e-9 * size:
                raise NoLines("a coefficient changes in time")


def apply(line, u, axis):
    """One axis of an operator on a field."""
    lo, di, up = line[:3]
    return lo * np.roll(u, 1, axis + 2) + di * u + up * np.roll(u, -1, axis + 2)


def _shares(constant, grid):
    """M on a constant, taken apart: what a wall does belongs to its axis; the rest is shared out equally."""
    shares, rest = [], constant.copy()
    for axis in range(grid.ndim):
        inside = constant
        for other in range(grid.ndim):
            if other != axis and not grid.periodic[other] and grid.shape[other] > 2:
                inside = np.take(inside, np.clip(np.arange(grid.shape[other]), 1, grid.shape[other] - 2), other + 2)
        share = np.zeros_like(constant)
        if not grid.periodic[axis]:
            for end in (0, -1):
                where = (slice(None),) * (axis + 2) + (end,)
                share[where] = inside[where]
        shares.append(share)
        rest -= share
    rest[np.abs(rest) <= 1e-12 * np.abs(constant).max()] = 0.0
    return [share + rest / grid.ndim for share in shares]


def _joined(line, axis, ndim):
    """One line for all, where they are alike to rounding."""
    others = tuple(k + 2 for k in range(ndim) if k != axis)
    bands = line[:3]
    size = max(np.abs(b).max() for b in bands)
    if all(np.ptp(b, axis=others).max() <= 1e-12 * size if others else True for b in bands):
        first = tuple(0 if k in others else slice(None) for k in range(ndim + 2))
        return Line(*(np.ascontiguousarray(b[first]) for b in bands), shared=True)
    return line


__all__ = ["Line", "NoLines", "apply", "lines_of"]
