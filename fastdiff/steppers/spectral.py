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
from functools import cached_property
from math import pi
from typing import Any, NamedTuple

import numpy as np

from fastdiff.boundary import CONSTANT, Robin, conditions, lower, value_formula
from fastdiff.grid import Grid
from fastdiff.kernels._edges import HOLD

SYMBOLS = ("exact", "discrete", "euler")


def refuses(grid: Grid, boundary, names: tuple[str, ...] = ("u",)) -> str | None:
    """Why these walls have no sine or cosine modes, or None if they have."""
    if not grid.plain:
        return "the grid is curved or graded"
    for (c, axis, end), condition in conditions(boundary, grid, tuple(names)).items():
        place = f"{grid.names[axis]} {('low', 'high')[end]}"
        if isinstance(condition, Robin):
            return f"the Robin condition at {place} mixes value and derivative"
        value = condition._value()
        if isinstance(value, str) or callable(value):
            f, sees = value_formula(value, grid, tuple(names), c)
            if sees:
                return f"the boundary value {f.text!r} at {place} depends on other components or the wall opposite"
            if f.uses & {"t", "u"}:
                return f"the boundary value {f.text!r} at {place} depends on {', '.join(sorted(f.uses & {'t', 'u'}))}"
    return None


def propagate(u, grid: Grid, boundary, diffusivity, t: float, symbol: str = "exact", dt: float | None = None, *,
              names: tuple[str, ...] = ("u",), threads: int | None = None, rtol: float | None = None) -> np.ndarray:
    """The heat equation's solution a time `t` after the field `u` (batch, components, *grid).

    diffusivity  a number, one an axis, or (batch, axes) or (batch, components, axes)
    symbol       "exact", "discrete" or "euler" (which takes `dt`)
    rtol         see `Propagator`
    """
    return Propagator(u, grid, boundary, diffusivity, symbol, dt, names=names, threads=threads, rtol=rtol).at(t)


class Propagator:
    """A field taken apart into modes once, to be put together at any later time.

    rtol  allowed relative error in the Euclidean norm, from modes that have died out and are left out: they cost less;
          default: rounding
    """

    def __init__(self, u, grid: Grid, boundary, diffusivity, symbol: str = "exact", dt: float | None = None, *,
                 names: tuple[str, ...] = ("u",), threads: int | None = None, rtol: float | None = None):
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
        tolerance = np.finfo(np.float64).eps if rtol is None else rtol / 10
        self._parts = [_Part(u[:, c], grid, {side[1:]: wall for side, wall in faces.walls.items() if side[0] == c},
                             _shared(D[:, c]), threads, tolerance) for c in range(len(names))]

    def at(self, t: float, out=None) -> np.ndarray:
        """The field (batch, components, *grid) a time `t` later."""
        if not (np.isfinite(t) and t >= 0):
            raise ValueError(f"t must be finite and not before the start, not {t!r}")
        out = np.empty(self.shape, self.dtype) if out is None else out
        for c, part in enumerate(self._parts):
            part.at(t, self.symbol, self._steps(t), out[:, c])
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


class Modes:
    """The transforms of a box: from a field (batch, *free points) to its modes and back."""

    def __init__(self, grid, held, threads):
        from fastdiff.kernels._threads import default_threads

        self.grid, self.workers = grid, default_threads() if threads is None else threads
        self.axes = [_axis(grid, a, (a, 0) in held, (a, 1) in held) for a in range(grid.ndim)]
        self.held = held
        self.free = (slice(None), *(axis.free for axis in self.axes))
        self.size = tuple(len(range(n)[axis.free]) for n, axis in zip(grid.shape, self.axes))
        self.wraps = [a + 1 for a in range(grid.ndim) if grid.periodic[a]]

    def shown(self):
        """The axes as the transform has them: the last periodic one keeps half of its wave numbers."""
        last = self.wraps[-1] - 1 if self.wraps else None
        return [axis._replace(k=axis.k[: len(axis.k) // 2 + 1]) if a == last else axis
                for a, axis in enumerate(self.axes)]

    def eigenvalues(self, symbol):
        """-u_aa for each mode along each axis: k^2, or the stencil's."""
        if symbol == "exact":
            return [axis.k**2 for axis in self.shown()]
        return [4 / dx**2 * np.sin(axis.k * dx / 2) ** 2 for axis, dx in zip(self.shown(), self.grid.spacing)]

    def forward(self, u) -> Any:
        """Modes of a field."""
        from scipy import fft

        for a, axis in enumerate(self.axes):
            if axis.forward is not None:
                u = axis.forward(u, axis=a + 1, workers=self.workers)
        return fft.rfftn(u, axes=self.wraps, workers=self.workers) if self.wraps else u

    def backward(self, modes) -> Any:
        """The field of modes."""
        from scipy import fft

        if self.wraps:
            modes = fft.irfftn(modes, [self.size[a - 1] for a in self.wraps], axes=self.wraps, workers=self.workers)
        for a, axis in enumerate(self.axes):
            if axis.backward is not None:
                modes = axis.backward(modes, axis=a + 1, workers=self.workers)
        return modes

    def lowest(self, a, limit, symbol):
        """The modes of an axis with eigenvalues up to `limit`: these, the matrix to the field, and the one from it."""
        axis, n = self.axes[a], self.size[a]
        dx, k = self.grid.spacing[a], np.abs(axis.k)
        values = k**2 if symbol == "exact" else 4 / dx**2 * np.sin(k * dx / 2) ** 2
        keep = np.flatnonzero(values <= limit)
        if axis.forward is None:  # cosine and sine for each pair +-k
            sine, place = axis.k[keep] < 0, np.arange(n) * dx
            lines = np.empty((len(keep), n))
            lines[~sine] = np.cos(np.outer(axis.k[keep][~sine], place))
            lines[sine] = np.sin(np.outer(axis.k[keep][sine], place))
            back = lines.T
        else:
            units = np.zeros((len(keep), n))
            units[np.arange(len(keep)), keep] = 1.0
            back = axis.backward(units, axis=1).T  # type: ignore[misc]
        weights = np.ones(n)
        if self.grid.centering == "nodes" and not self.grid.periodic[a]:
            for end in (0, -1):
                if (a, -end) not in self.held:
                    weights[end] = 0.5
        weighted = back * weights[:, None]
        there = (weighted / np.einsum("ij,ij->j", weighted, back)).T
        points = self.grid.shape[a]  # with zeros for held points: the field is taken as it is, without a copy
        whole = [np.zeros((points, len(keep))), np.zeros((len(keep), points))]
        whole[0][axis.free], whole[1][:, axis.free] = back, there
        return values[keep], *whole


LOW = 0.2  # share of the modes along an axis up to which matrices are cheaper than transforms
SLACK = 1e-4  # share of the tolerance, in terms of the slowest mode's decay, below which a mode is left out


class _Part:
    """One component."""

    def __init__(self, u, grid, walls, D, threads, tolerance):
        self.grid, self.walls, self.D, self.u, self.tolerance = grid, walls, D, u, tolerance
        held = {side for side, wall in walls.items() if _is_dirichlet(wall)}
        self.transforms = transforms = Modes(grid, held, threads)
        self.axes, self.free, self.size, self.wraps = (transforms.axes, transforms.free, transforms.size,
                                                       transforms.wraps)
        self.empty = 0 in self.size
        self.plain = not any(self._value(wall, axis).any() for (axis, _), wall in walls.items())
        source = None if self.empty or self.plain else self._source(len(u))
        self.lasting = None if source is None else self._particular(self._forward(source))

    @cached_property
    def frame(self):
        """The field with its held points."""
        return self._held(self.u)

    @cached_property
    def modes(self) -> Any:
        """All modes of the field at the start."""
        return self._forward(self.u[self.free].astype(np.float64))

    def at(self, t, symbol, euler, out):
        if self.plain and not self.empty and symbol != "euler" and self._from_few(t, symbol, out):
            return
        u = self.frame.copy()
        if not self.empty:
            decay = self._decay(t, symbol, *euler)
            if self.lasting is None:
                modes = self.modes * decay
            else:
                steady, growth = self.lasting
                modes = (self.modes - steady) * decay + steady + t * growth
            u[self.free] = self._backward(modes)
        out[...] = u

    def _from_few(self, t, symbol, out) -> bool:
        """The field from its slowest modes alone, by small matrices, if the others are negligible; else False.

        What is left out has at most the norm of the start, times the decay of the slowest mode, SLACK and the
        tolerance; that must be less than the tolerance times the norm of the result, sample by sample.
        """
        few = self._few(t, symbol)
        if few is None:
            return False
        ndim = self.grid.ndim
        modes: Any = self.u.astype(np.float64, copy=False)
        start = _lengths(modes)
        for a, (_, _, there) in enumerate(few):
            modes = _times(there, modes, a, ndim)
        for a, (values, _, _) in enumerate(few):
            modes = modes * _along(np.exp(-t * self.D[:, a, None] * values), a, ndim)
        for a, (_, back, _) in reversed(list(enumerate(few))):
            modes = _times(back, modes, a, ndim, out if a == 0 else None)
        slowest = sum(float(self.D[:, a].min() * values[0]) for a, (values, _, _) in enumerate(few))
        return bool((start * np.exp(-t * slowest) * SLACK <= _lengths(modes)).all())

    def _few(self, t, symbol):
        """`Modes.lowest` of each axis for this time, or None if too many modes are alive."""
        slow = [axis.k.min() ** 2 if self.grid.periodic[a] is False else 0.0 for a, axis in enumerate(self.axes)]
        few, known = [], {}  # axes that are alike have the same modes
        for a, axis in enumerate(self.axes):
            D = float(self.D[:, a].min())
            if D * t <= 0 or len(axis.k) < 8:
                return None
            limit = slow[a] - np.log(SLACK * self.tolerance) / (D * t)
            if np.sqrt(limit) > LOW * np.pi / self.grid.spacing[a]:
                return None
            key = (self.grid.shape[a], self.grid.spacing[a], self.grid.periodic[a],
                   *((a, end) in self.transforms.held for end in (0, 1)), limit)
            if key not in known:
                known[key] = self.transforms.lowest(a, limit, symbol)
            few.append(known[key])
        return few

    def _forward(self, u) -> Any:
        return self.transforms.forward(u)

    def _backward(self, modes) -> Any:
        return self.transforms.backward(modes)

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

    def _eigenvalues(self):
        """-u_aa of the stencil for each mode, along each axis."""
        return self.transforms.eigenvalues("discrete")

    def _decay(self, t, symbol, steps, dt):
        if symbol == "euler":
            return (1.0 - dt * self._sum(self._eigenvalues())) ** steps
        lines = self.transforms.eigenvalues(symbol)
        decay: Any = 1.0
        for a, line in enumerate(lines):
            decay = decay * _along(np.exp(-t * self.D[:, a, None] * line), a, self.grid.ndim)
        return decay


def _lengths(u):
    """Euclidean norm of each sample."""
    return np.sqrt(np.einsum("bi,bi->b", *[u.reshape(len(u), -1)] * 2))


def _times(matrix, u, axis, ndim, out=None):
    """A matrix times one axis of (batch, *axes)."""
    if axis == ndim - 1 and axis:
        return u @ matrix.T
    rows = u.reshape(-1, u.shape[axis + 1], int(np.prod(u.shape[axis + 2 :])))
    shape = *u.shape[: axis + 1], len(matrix), *u.shape[axis + 2 :]
    if out is not None and out.flags.c_contiguous and out.dtype == np.float64:
        return np.matmul(matrix, rows, out=out.reshape(len(rows), len(matrix), -1)).reshape(shape)
    product = np.matmul(matrix, rows).reshape(shape)
    if out is not None:
        out[...] = product
    return product


def _is_dirichlet(wall):
    return wall.side.kind == HOLD or np.all(np.asarray(wall.side.alpha) == -1.0)


__all__ = ["SYMBOLS", "Modes", "Propagator", "propagate", "refuses"]
