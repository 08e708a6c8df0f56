"""Advection and diffusion."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations import _exact, _linear
from fastdiff.equations._base import AsGiven, common_batch
from fastdiff.equations._coefficients import at_wall_of, in_space, is_formula, over_grid, samples_in
from fastdiff.equations._exact import single
from fastdiff.equations.heat import fed
from fastdiff.grid import Grid
from fastdiff.kernels import variable, wide

SCHEMES = ("upwind1", "upwind2", "upwind3", "central")


@dataclass(frozen=True)
class AdvectionDiffusion(AsGiven):
    """Advection and diffusion in conservative form, u_t = div(D grad u - v u) + f.

    diffusivity  a number, one a sample, an array over the grid, or an expression of place, as for `fd.Heat`; a tuple
                 has one of these an axis. Length² / time
    velocity     v: with one axis one of these, with several axes a tuple of them. Length / time
    scheme       how a face between two cells takes u: "upwind1" from upstream (first order; keeps the field's range),
                 "central" the mean of both sides (second order), "upwind2" and "upwind3" from two cells upstream, and
                 one downstream (second and third order; equal spacing). All but the first need diffusion, or a method
                 of higher order than Euler's
    source       f, as for `fd.Heat`

    At a wall without gradient (the default) the flow takes along what is there.
    Source: LeVeque, Finite Volume Methods for Hyperbolic Problems, Cambridge 2002, section 4.4 (upwind); Hindmarsh,
    Gresho and Griffiths, Int. J. Numer. Methods Fluids 4 (1984) 853, eq. (30), for the limit of central differences.
    """

    diffusivity: Any = 1.0
    velocity: Any = 0.0
    scheme: str = "upwind1"
    source: Any = None

    names = ("u",)

    def __post_init__(self):
        if self.scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {self.scheme!r}; known: {', '.join(map(repr, SCHEMES))}")

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the coefficients speak of."""
        parts = [*_parts(self.diffusivity), *_parts(self.velocity), *([] if self.source is None else [self.source])]
        return common_batch(*(np.empty(samples_in(part, grid)) for part in parts))

    def _over(self, value, grid, what, batch, low=-np.inf, every=False):
        """A coefficient along each axis, (1 or batch, *grid or ones) each."""
        parts = _parts(value)
        if len(parts) != grid.ndim and (every or len(parts) != 1):
            raise ValueError(f"{what} has one entry for each of the {grid.ndim} axes of the grid, as a tuple, not "
                             f"{len(parts)}")
        fields = [over_grid(part, grid, what, batch, low) for part in parts]
        return fields * grid.ndim if len(fields) == 1 else fields

    def _velocities(self, grid, batch):
        if not isinstance(self.velocity, tuple | list) and not is_formula(self.velocity):
            if not np.any(np.asarray(self.velocity)):
                return [np.zeros((1, *[1] * grid.ndim))] * grid.ndim
        return self._over(self.velocity, grid, "velocity", batch, every=True)

    def _varies(self, grid) -> bool:
        return not grid.plain or any(in_space(p, grid) for p in (*_parts(self.diffusivity), *_parts(self.velocity)))

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, 1, axes); NaN where it varies in space."""
        if any(in_space(p, grid) for p in _parts(self.diffusivity)):
            return np.full((1, 1, grid.ndim), np.nan)
        D = self._over(self.diffusivity, grid, "diffusivity", self.batch(grid), 0.0)
        return np.stack(np.broadcast_arrays(*(d.reshape(-1) for d in D)), -1)[:, None]

    def at_wall(self, grid: Grid, batch: int):
        """A function of component, axis and end that gives D on a wall; None if D is constant."""
        if not any(in_space(p, grid) for p in _parts(self.diffusivity)):
            return None
        parts, fields = self._spread(grid, batch)
        return lambda c, axis, end: at_wall_of(parts[axis], fields[axis], grid, axis, end)

    def _spread(self, grid, batch):
        parts = _parts(self.diffusivity)
        fields = self._over(self.diffusivity, grid, "diffusivity", batch, 0.0)
        fields = [np.broadcast_to(f, (len(f), *grid.shape)) for f in fields]
        return parts * grid.ndim if len(parts) == 1 else parts, fields

    @cached_property
    def _kept(self) -> dict:
        return {}

    def _weights(self, grid: Grid, batch: int):
        """Weights of all neighbours (batch or 1, *grid), and -div v or None, per time."""
        if (grid, batch) not in self._kept:
            self._kept.clear()
            self._kept[grid, batch] = self._made(grid, batch)
        return self._kept[grid, batch]

    def _far(self, grid, batch):
        """Names and weights of all neighbours of upwind2 and upwind3, and -div v or None, per time: kernels/wide.py."""
        if not grid.plain:
            raise ValueError(f'scheme="{self.scheme}" needs a Cartesian grid with equal spacing: take "upwind1"')
        parts, D = self._spread(grid, batch)
        flow, weights, outflow = self._velocities(grid, batch), {}, 0.0
        for axis, letter in enumerate({1: "2", 2: "02", 3: "012"}[grid.ndim]):
            v = np.broadcast_to(flow[axis], (len(flow[axis]), *grid.shape))
            below, above = _linear.diffusion(grid, D[axis], axis, False,
                                             lambda f, g, a, end: at_wall_of(parts[a], f, g, a, end))
            carried, out = _linear.upwind(grid, v, axis, self.scheme)
            weights |= {"m" + letter: below + carried[-1], "p" + letter: above + carried[1], "mm" + letter: carried[-2],
                        "pp" + letter: carried[2]}
            outflow = outflow + out
        size = max(len(w) for w in [*weights.values(), outflow])
        weights = {n: np.broadcast_to(w, (size, *grid.shape)) for n, w in weights.items()}
        scale = max(float(np.abs(w).max()) for w in weights.values())
        return weights, -outflow if np.abs(outflow).max() > 1e-14 * scale else None

    def _made(self, grid, batch):
        if self.scheme in ("upwind2", "upwind3"):
            return self._far(grid, batch)
        if not grid.plain and grid.centering == "nodes":
            raise ValueError('advection on a graded or curved grid needs centering="cells"')
        parts, D = self._spread(grid, batch)
        flow = self._velocities(grid, batch)
        speeds = _parts(self.velocity) * (grid.ndim if len(_parts(self.velocity)) == 1 else 1)
        weights, outflow = [], 0.0
        for axis in range(grid.ndim):
            v = np.broadcast_to(flow[axis], (len(flow[axis]), *grid.shape))
            spread = _linear.diffusion(grid, D[axis], axis, False,
                                       lambda f, g, a, end: at_wall_of(parts[a], f, g, a, end))
            carried = _linear.advection(grid, v, axis, self.scheme,
                                        lambda f, g, a, end: at_wall_of(speeds[a], f, g, a, end))
            weights += [a + b for a, b in zip(spread, carried[:2])]
            outflow = outflow + carried[2]
        size = max(len(w) for w in [*weights, outflow])
        weights = [np.broadcast_to(w, (size, *grid.shape)) for w in weights]
        scale = max(float(np.abs(w).max()) for w in weights)
        return weights, -outflow if np.abs(outflow).max() > 1e-14 * scale else None

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler (kernels/variable.py)."""
        weights, decay = self._weights(grid, batch)
        middle = (slice(None), *[n // 2 for n in grid.shape])
        if isinstance(weights, dict):
            weights = {n: w * dt if self._varies(grid) else np.broadcast_to(w[middle] * dt, batch)
                       for n, w in weights.items()}
            rule = wide.rule("star2", weights, grid.ndim, dtype, None if decay is None else decay * dt)
            return fed(rule, self.source, grid, dt, batch, dtype)
        weights = [w * dt for w in weights]
        if self._varies(grid):
            rule = variable.rule(weights, dtype, None if decay is None else decay * dt)
        else:
            numbers = [np.ascontiguousarray(np.broadcast_to(w[middle], batch), dtype) for w in weights]
            rule = (variable.Variable1D, variable.Variable2D, variable.Variable3D)[grid.ndim - 1](*numbers)
        return fed(rule, self.source, grid, dt, batch, dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable step of forward Euler: Gershgorin's, and of central differences 2 / sum of v²/D too."""
        batch = self.batch(grid)
        weights, decay = self._weights(grid, batch)
        if isinstance(weights, dict):
            return self._far_limit(grid, batch, decay, stiffness)
        limit = _linear.stable_step(grid, weights, decay, stiffness)
        if self.scheme == "upwind1":
            return limit
        _, D = self._spread(grid, batch)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [np.where(v == 0, 0.0, v * v / d) for v, d in zip(self._velocities(grid, batch), D)]
            worst = float(np.max(sum(ratios)))
        if not np.isfinite(worst):
            raise ValueError('central differences without diffusion are unstable for any explicit step: take '
                             'scheme="upwind1"')
        spread = [_linear.diffusion(grid, D[axis], axis) for axis in range(grid.ndim)]
        limit = _linear.stable_step(grid, [w for pair in spread for w in pair], decay, stiffness)
        return min(limit, 2 / worst) if worst > 0 else limit

    def _far_limit(self, grid, batch, decay, stiffness):
        """Von Neumann's limit with the largest speeds and the smallest, and the largest, diffusivities."""
        walls = np.ones(grid.ndim) if stiffness is None else np.asarray(stiffness)
        _, D = self._spread(grid, batch)
        speed = [float(np.abs(v).max()) / dx for v, dx in zip(self._velocities(grid, batch), grid.spacing)]
        second, first, down = (-1 / 2, 3 / 2, 0.0) if self.scheme == "upwind2" else (-1 / 6, 5 / 6, 1 / 3)
        shrink, limit = 0.0 if decay is None else float(np.abs(decay).max()), np.inf
        for pick in (np.min, np.max):
            z: Any = 0.0
            for axis, n in enumerate(grid.shape):
                theta = np.concatenate([[0.0], np.geomspace(2 * np.pi / max(n, 3), np.pi, 24)])
                back = np.exp(-1j * theta)
                carried = -(second * back + first + down / back) * (1 - back)
                spread = float(pick(D[axis])) * walls[axis] / grid.spacing[axis] ** 2
                z = np.add.outer(z, speed[axis] * carried + spread * (2 * np.cos(theta) - 2))
            z = z[np.abs(z) > 0]
            limit = min([limit, *(-2 * z.real / np.abs(z) ** 2)])
        if limit <= 0:
            raise ValueError(f'scheme="{self.scheme}" is unstable for explicit Euler steps here: more diffusion, or '
                             'scheme="upwind1"')
        return float(2 / (2 / limit + shrink)) if np.isfinite(limit) else limit

    def linear(self, grid: Grid) -> bool:
        """Whether it is linear and couples nearest neighbours along the axes alone."""
        return self.scheme in ("upwind1", "central")

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0

    def exact(self, x, t, kind: str = "gaussian", *, width: float = 0.1, start: Any = 0.0):
        """A closed form for numbers as diffusivity and velocity; x is an array, or a tuple with one an axis.

        "gaussian"     a bump of standard deviation `width` that begins at `start`, travels and spreads
        "ogata-banks"  what enters an empty half line x >= 0 from u = 1 at x = 0 (one axis)
        """
        places = _exact.axes_of(x)
        D, v = single(self.diffusivity, "diffusivity"), [single(part, "velocity") for part in _parts(self.velocity)]
        if len(v) != len(places):
            raise ValueError(f"x has {len(places)} axes, but velocity {len(v)}")
        if kind == "gaussian":
            return _exact.gaussian(places, t, D, v, width, np.broadcast_to(start, len(places)))
        if kind == "ogata-banks" and len(places) == 1:
            return _exact.ogata_banks(places[0], t, D, v[0])
        raise ValueError(f"unknown kind {kind!r} on {len(places)} axes; known: 'gaussian', and 'ogata-banks' on one")


def _parts(value) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
