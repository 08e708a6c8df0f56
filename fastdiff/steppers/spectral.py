"""Spectral propagation of the heat equation: exact in time for constant coefficients on a box.

    u_t = D_x u_xx + D_y u_yy + D_z u_zz

Sines and cosines that fit the boundary diagonalise both the equation and its stencil, so each mode is multiplied by
one number, for any time. Along each axis, with M = N-1 the intervals between N nodes:

    low, high             cells, N points             nodes
    periodic              FFT                         FFT                        k = 2 pi j / L
    Neumann, Neumann      DCT-II                      DCT-I, N points            k = pi j / L,         j = 0, 1, ...
    Dirichlet, Dirichlet  DST-II                      DST-I, N-2 inner points    k = pi j / L,         j = 1, 2, ...
    Dirichlet, Neumann    DST-IV                      DST-III, M points          k = pi (j + 1/2) / L, j = 0, 1, ...
    Neumann, Dirichlet    DCT-IV                      DCT-III, M points          k = pi (j + 1/2) / L, j = 0, 1, ...

What a mode is multiplied by is the `symbol`:

    "exact"     exp(-t sum D k^2)                 the equation: spectral in space for smooth fields
    "discrete"  exp(-t sum D l)                   the stencil, exact in time; l = 4/dx^2 sin^2(k dx / 2)
    "euler"     (1 - dt sum D l)^(t/dt)           t/dt steps of FTCS, to rounding

Constant inhomogeneous walls act as a source b on the points beside them. With s the part that does not change,
L s = b on the modes where the stencil L is not singular, u(t) - s decays as above; the singular mode, the mean of a
box without Dirichlet walls, grows as t b. s solves the stencil's equation: it is exact in 1-D and wherever it is
linear along each axis, otherwise of second order in dx.

Source: Strang, The Discrete Cosine Transform, SIAM Review 41 (1999) 135-147, table of the eigenvectors; Strikwerda,
Finite Difference Schemes and Partial Differential Equations, 2nd ed., SIAM 2004, section 2.2, for the symbols.
"""

from collections.abc import Callable
from math import pi
from typing import Any, NamedTuple

import numpy as np

from fastdiff.boundary import CONSTANT, Robin, conditions, lower
from fastdiff.grid import Grid
from fastdiff.kernels._edges import HOLD

SYMBOLS = ("exact", "discrete", "euler")


def refuses(grid: Grid, boundary, names: tuple[str, ...] = ("u",)) -> str | None:
    """Why these walls have no sine or cosine modes, or None if they have."""
    for (_, axis, end), condition in conditions(boundary, grid, tuple(names)).items():
        place = f"{grid.names[axis]} {('low', 'high')[end]}"
        if isinstance(condition, Robin):
            return f"the Robin condition at {place} mixes value and derivative"
        value = condition._value()
        if isinstance(value, str) or callable(value):
            from fastdiff.expressions import formula

            f = formula(value, ("t", *grid.names, "u"))
            if f.uses & {"t", "u"}:
                return f"the boundary value {f.text!r} at {place} depends on {', '.join(sorted(f.uses & {'t', 'u'}))}"
    return None


def propagate(u, grid: Grid, boundary, diffusivity, t: float, symbol: str = "exact", dt: float | None = None, *,
              names: tuple[str, ...] = ("u",), threads: int | None = None) -> np.ndarray:
    """The heat equation's solution a time `t` after the field `u` (batch, components, *grid).

    diffusivity  a number, one an axis, or (batch, axes) or (batch, components, axes)
    symbol       "exact", "discrete" or "euler" (which takes `dt`)
    """
    return Propagator(u, grid, boundary, diffusivity, symbol, dt, names=names, threads=threads).at(t)


class Propagator:
    """A field taken apart into modes once, to be put together at any later time."""

    def __init__(self, u, grid: Grid, boundary, diffusivity, symbol: str = "exact", dt: float | None = None, *,
                 names: tuple[str, ...] = ("u",), threads: int | None = None):
        if symbol not in SYMBOLS:
            raise ValueError(f"unknown symbol {symbol!r}; known: {', '.join(map(repr, SYMBOLS))}")
        if (symbol == "euler") != (dt is not None) or (dt is not None and not dt > 0):
            raise ValueError('symbol="euler" takes a positive dt, and the others none')
        u = np.asarray(u)
        if u.ndim != grid.ndim + 2 or u.shape[2:] != grid.shape or u.shape[1] != len(names):
            wanted = ", ".join(map(str, (len(names), *grid.shape)))
            raise ValueError(f"u has shape {u.shape}: expected (batch, {wanted})")
        reason = refuses(grid, boundary, names)
        if reason is not None:
            raise ValueError(f'the spectral method does not apply: {reason}; use method="euler"')
        D = _diffusivity(diffusivity, (*u.shape[:2], grid.ndim))
        faces = lower(boundary, grid, names, len(u), np.float64, u, D)
        self.shape, self.dtype, self.symbol, self.dt = u.shape, u.dtype, symbol, dt
        self._parts = [_Part(u[:, c], grid, {side[1:]: wall for side, wall in faces.walls.items() if side[0] == c},
                             _shared(D[:, c]), threads) for c in range(len(names))]

    def at(self, t: float, out=None) -> np.ndarray:
        """The field (batch, components, *grid) a time `t` later."""
        if not (np.isfinite(t) and t >= 0):
            raise ValueError(f"t must be finite and not before the start, not {t!r}")
        out = np.empty(self.shape, self.dtype) if out is None else out
        for c, part in enumerate(self._parts):
            out[:, c] = part.at(t, self.symbol, self._steps(t))
        return out

    def _steps(self, t):
        if self.dt is None:
            return 0, 0.0
        steps = round(t / self.dt)
        if abs(steps * self.dt - t) > 1e-9 * max(t, self.dt):
            raise ValueError(f"t = {t:g} is not a whole number of steps of {self.dt:g}")
        return steps, self.dt


def _diffusivity(D, shape):
    D = np.asarray(D, np.float64)
    D = D[:, None] if D.ndim == 2 else D
    try:
        D = np.broadcast_to(D, shape)
    except ValueError:
        raise ValueError(f"diffusivity of shape {D.shape} does not broadcast to (batch, components, axes) = {shape}"
                         ) from None
    if not (np.isfinite(D).all() and (D >= 0).all()):
        raise ValueError("diffusivity must be finite and not negative")
    return D


def _shared(D):
    """(1, axes) if all samples have the same diffusivity."""
    return D[:1] if (D == D[:1]).all() else D


# -- axes ------------------------------------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """How one axis is transformed: its free points, the transform and its inverse, and the wave numbers."""

    free: slice
    forward: Callable[..., Any] | None  # None: periodic
    backward: Callable[..., Any] | None
    k: np.ndarray


def _axis(grid: Grid, axis: int, low: bool, high: bool) -> _Axis:
    """`low`, `high`: whether the wall is Dirichlet."""
    from scipy import fft

    n, L, nodes = grid.shape[axis], grid.lengths[axis], grid.centering == "nodes"
    if grid.periodic[axis]:
        return _Axis(slice(None), None, None, 2 * pi / L * np.fft.fftfreq(n, 1 / n))
    free = slice(int(low and nodes), n - int(high and nodes))
    size = free.stop - free.start
    sine = low
    if nodes:
        kind = 3 if low != high else 1
    else:
        kind = 4 if low != high else 2
    shift = 0.5 if low != high else 1.0 if low else 0.0
    k = pi / L * (np.arange(size) + shift)
    forward, backward = (fft.dst, fft.idst) if sine else (fft.dct, fft.idct)
    return _Axis(free, lambda a, **how: forward(a, kind, **how), lambda a, **how: backward(a, kind, **how), k)


def _along(line, axis, ndim):
    """A line (..., n) of numbers, with axes of length 1 for the other axes of the grid."""
    return line.reshape(*line.shape[:-1], *[-1 if k == axis else 1 for k in range(ndim)])


class _Part:
    """One component."""

    def __init__(self, u, grid, walls, D, threads):
        from fastdiff.kernels._threads import default_threads

        self.grid, self.walls, self.D = grid, walls, D
        self.workers = default_threads() if threads is None else threads
        held = {side for side, wall in walls.items() if _is_dirichlet(wall)}
        self.axes = [_axis(grid, a, (a, 0) in held, (a, 1) in held) for a in range(grid.ndim)]
        self.free = (slice(None), *(axis.free for axis in self.axes))
        self.size = u[self.free].shape[1:]
        self.frame = self._held(u)
        self.empty = 0 in self.size
        if self.empty:
            return
        self.wraps = [a + 1 for a in range(grid.ndim) if grid.periodic[a]]
        self.modes: Any = self._forward(u[self.free].astype(np.float64))
        source = self._source(len(u))
        self.lasting = None if source is None else self._particular(self._forward(source))

    def at(self, t, symbol, euler):
        u = self.frame.copy()
        if not self.empty:
            decay = self._decay(t, symbol, *euler)
            if self.lasting is None:
                modes = self.modes * decay
            else:
                steady, growth = self.lasting
                modes = (self.modes - steady) * decay + steady + t * growth
            u[self.free] = self._backward(modes)
        return u

    def _held(self, u):
        """The field with its held points in place; where two walls meet, the earlier axis wins."""
        u = u.astype(np.float64)
        for (axis, end), wall in sorted(self.walls.items(), reverse=True):
            if wall.side.kind == HOLD:
                where = [slice(None)] * u.ndim
                where[axis + 1] = -end
                u[tuple(where)] = self._value(wall, axis)
        return u

    def _value(self, wall, axis):
        """g over a face, with the batch (or 1) in front."""
        assert wall.how == CONSTANT
        face = [n for k, n in enumerate(self.grid.shape) if k != axis]
        value = np.asarray(wall.side.value, np.float64)
        return value.reshape(len(value), *face) if value.shape[-1] > 1 else value.reshape(len(value), *[1] * len(face))

    def _source(self, batch):
        """What the walls add to u_t at the points beside them, or None."""
        source = None
        for (axis, end), wall in self.walls.items():
            value = self._value(wall, axis)
            if not value.any():
                continue
            source = np.zeros((batch, *self.size)) if source is None else source
            weight = self._mirrored(axis, end) if wall.side.kind == HOLD else wall.side.gamma
            rate = np.broadcast_to(weight * self.D[:, axis] / self.grid.spacing[axis] ** 2, batch)
            others = tuple(self.axes[k].free if value.shape[1:][j] > 1 else slice(None)
                           for j, k in enumerate(k for k in range(self.grid.ndim) if k != axis))
            where = [slice(None)] * source.ndim
            where[axis + 1] = -end
            source[tuple(where)] += rate.reshape(-1, *[1] * (self.grid.ndim - 1)) * value[(slice(None), *others)]
        return source

    def _mirrored(self, axis, end):
        """How often a held point is a neighbour of the one beside it: on two nodes, the other wall mirrors it."""
        other = self.walls[axis, 1 - end].side
        return 2.0 if self.grid.shape[axis] == 2 and other.kind != HOLD else 1.0

    def _particular(self, source):
        """Modes of the steady part, and of the growth where there is none."""
        rates = self._sum(self._eigenvalues())
        singular = rates == 0
        return np.where(singular, 0.0, source / np.where(singular, 1.0, rates)), np.where(singular, source, 0.0)

    def _sum(self, lines):
        """Sum over the axes of D times a line along each."""
        return sum(_along(self.D[:, a, None] * line, a, self.grid.ndim) for a, line in enumerate(lines))

    def _shown(self):
        """The axes as the transform has them: the last periodic one keeps half of its wave numbers."""
        last = self.wraps[-1] - 1 if self.wraps else None
        return [axis._replace(k=axis.k[: len(axis.k) // 2 + 1]) if a == last else axis
                for a, axis in enumerate(self.axes)]

    def _eigenvalues(self):
        """-u_aa of the stencil for each mode, along each axis."""
        return [4 / dx**2 * np.sin(axis.k * dx / 2) ** 2 for axis, dx in zip(self._shown(), self.grid.spacing)]

    def _decay(self, t, symbol, steps, dt):
        if symbol == "euler":
            return (1.0 - dt * self._sum(self._eigenvalues())) ** steps
        lines = [axis.k**2 for axis in self._shown()] if symbol == "exact" else self._eigenvalues()
        decay: Any = 1.0
        for a, line in enumerate(lines):
            decay = decay * _along(np.exp(-t * self.D[:, a, None] * line), a, self.grid.ndim)
        return decay

    def _forward(self, u):
        from scipy import fft

        for a, axis in enumerate(self.axes):
            if axis.forward is not None:
                u = axis.forward(u, axis=a + 1, workers=self.workers)
        return fft.rfftn(u, axes=self.wraps, workers=self.workers) if self.wraps else u

    def _backward(self, modes):
        from scipy import fft

        if self.wraps:
            modes = fft.irfftn(modes, [self.size[a - 1] for a in self.wraps], axes=self.wraps, workers=self.workers)
        for a, axis in enumerate(self.axes):
            if axis.backward is not None:
                modes = axis.backward(modes, axis=a + 1, workers=self.workers)
        return modes


def _is_dirichlet(wall):
    return wall.side.kind == HOLD or np.all(np.asarray(wall.side.alpha) == -1.0)


__all__ = ["SYMBOLS", "Propagator", "propagate", "refuses"]
