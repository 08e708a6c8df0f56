"""Initial conditions: frozen dataclasses called with a random generator and a grid, one sample at a time.

`initial(rng, grid)` returns a float64 array (components, *grid); with the mark `with_parameters`, it is called with the
parameters of the sample as well. What is drawn from `rng` depends on nothing else, so a sample is the same whoever
makes it, and in whatever company.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


def unit_coordinates(grid) -> list[np.ndarray]:
    """Positions of the points along each axis, the domain being the unit interval."""
    return [_unit(n, periodic, grid.centering) for n, periodic in zip(grid.shape, grid.periodic)]


def _unit(points, periodic, centering):
    if centering == "cells":
        return (np.arange(points) + 0.5) / points
    return np.arange(points) / (points if periodic else max(points - 1, 1))


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Random squares and discs of one state in a sea of another, with noise: the usual start of reaction–diffusion.

    `background` and `inside` give the value of every component; radii are fractions of the domain; the noise is
    uniform in ±`noise`, and it is laid on the seeds only, where it breaks their symmetry.
    """

    background: tuple[float, ...] = (1.0, 0.0)
    inside: tuple[float, ...] = (0.5, 0.25)
    count: tuple[int, int] = (4, 16)
    radius: tuple[float, float] = (0.03, 0.08)
    noise: float = 0.05

    def __call__(self, rng, grid) -> np.ndarray:
        mask = np.zeros(grid.shape, bool)
        for _ in range(rng.integers(self.count[0], self.count[1], endpoint=True)):
            mask |= self._one(rng, grid)
        outside, inside = (np.reshape(v, (-1, *[1] * len(grid.shape))) for v in (self.background, self.inside))
        noise = rng.uniform(-self.noise, self.noise, (len(self.background), *grid.shape))
        return np.where(mask, inside * (1 + noise), outside)

    def _one(self, rng, grid):
        axes = unit_coordinates(grid)
        square, radius = rng.random() < 0.5, rng.uniform(*self.radius)
        centre = rng.random(len(axes))
        offsets = np.ix_(*(_distance(x, c, p) for x, c, p in zip(axes, centre, grid.periodic)))
        if square:
            return np.logical_and.reduce(np.broadcast_arrays(*(d <= radius for d in offsets)))
        return sum(d * d for d in offsets) <= radius * radius


def _distance(x, centre, periodic):
    distance = np.abs(x - centre)
    return np.minimum(distance, 1 - distance) if periodic else distance


@dataclass(frozen=True, kw_only=True)
class FourierSeries:
    """Random series of the lowest `modes` waves along each axis, amplitudes uniform in ±1, scaled to a largest value.

    `basis` is "sine" (zero at the walls), "cosine" (no slope at the walls) or "fourier" (periodic). The amplitudes do
    not depend on the grid: the same seed gives the same function at every resolution.
    """

    modes: int = 5
    basis: str = "sine"
    amplitude: float = 1.0
    zero_mean: bool = False  # without the constant, which "cosine" and "fourier" have

    def __call__(self, rng, grid) -> np.ndarray:
        waves = [_waves(x, self.modes, self.basis) for x in unit_coordinates(grid)]
        coefficients = rng.uniform(-1, 1, [w.shape[1] for w, _ in waves])
        if self.zero_mean:
            coefficients[(0,) * grid.ndim] = 0.0
        return _series(coefficients, waves, self.amplitude)


@dataclass(frozen=True, kw_only=True)
class GaussianField:
    """Gaussian random field with the Matérn-like spectrum (1 + (length·k)²)^(−smoothness), k the wave number.

    Drawn as a truncated Karhunen–Loève series: `modes` waves along each axis, in the bases of `FourierSeries`, so the
    same seed gives the same function at every resolution.
    """

    length: float = 0.1
    smoothness: float = 2.0
    modes: int = 24
    basis: str = "sine"
    amplitude: float = 1.0

    def __call__(self, rng, grid) -> np.ndarray:
        waves = [_waves(x, self.modes, self.basis) for x in unit_coordinates(grid)]
        squared = sum(k * k for k in np.ix_(*(k for _, k in waves)))
        deviation = (1 + self.length**2 * squared) ** (-self.smoothness / 2)
        return _series(rng.standard_normal(deviation.shape) * deviation, waves, self.amplitude)


def _waves(x, modes, basis):
    """Waves of a basis as columns, and their wave numbers."""
    if basis == "sine":
        k = np.pi * np.arange(1, modes + 1)
        return np.sin(np.outer(x, k)), k
    if basis == "cosine":
        k = np.pi * np.arange(modes)
        return np.cos(np.outer(x, k)), k
    if basis == "fourier":
        k = 2 * np.pi * np.arange(modes)
        angle = np.outer(x, k)
        return np.concatenate([np.cos(angle), np.sin(angle[:, 1:])], axis=1), np.concatenate([k, k[1:]])
    raise ValueError(f"unknown basis {basis!r}; known: sine, cosine, fourier")


def _series(coefficients, waves, amplitude):
    field = coefficients
    for wave, _ in waves:  # contract the leading axis, append the axis of points; einsum's own loops, whose sums
        field = np.einsum("nk,k...->...n", wave, field)  # do not depend on threads as a BLAS's may
    return amplitude * field[None] / np.abs(field).max()


@dataclass(frozen=True)
class OneOf:
    """One of several initial conditions, each as likely as the others."""

    choices: tuple
    with_parameters = True

    def __call__(self, rng, grid, parameters) -> np.ndarray:
        return start(self.choices[rng.integers(len(self.choices))], rng, grid, parameters)


@dataclass(frozen=True)
class Components:
    """An initial condition for each component, drawn one after the other."""

    parts: tuple
    with_parameters = True

    def __call__(self, rng, grid, parameters) -> np.ndarray:
        return np.concatenate([start(part, rng, grid, parameters) for part in self.parts])


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One value everywhere, uniform between `low` and `high`."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, rng, grid) -> np.ndarray:
        return np.full((1, *grid.shape), rng.uniform(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class WhiteNoise:
    """Independent normal numbers in every cell, of every component: rough, and another field on another grid."""

    mean: float = 0.0
    deviation: float = 1.0
    components: int = 1

    def __call__(self, rng, grid) -> np.ndarray:
        return rng.normal(self.mean, self.deviation, (self.components, *grid.shape))


@dataclass(frozen=True, kw_only=True)
class DiffusedNoise:
    """White noise after some heat has spread: exp(-(length k)² / 2) of its spectrum is left.

    `length` is a fraction of the domain; scaled to a largest value of `amplitude`. The domain is taken as periodic or
    as insulated, as the grid is. Source: APEBench (Koehler et al., 2024), initial conditions "diffused".
    """

    length: float = 0.02
    zero_mean: bool = True
    amplitude: float = 1.0

    def __call__(self, rng, grid) -> np.ndarray:
        from scipy.fft import dctn, fftn, idctn, ifftn

        field, squared = rng.standard_normal(grid.shape), np.zeros(grid.shape)
        periodic = [a for a, wraps in enumerate(grid.periodic) if wraps]
        walled = [a for a, wraps in enumerate(grid.periodic) if not wraps]
        for axis, n in enumerate(grid.shape):
            k = 2 * np.pi * np.fft.fftfreq(n, 1 / n) if grid.periodic[axis] else np.pi * np.arange(n)
            squared += k.reshape(-1, *[1] * (grid.ndim - 1 - axis)) ** 2
        modes = dctn(field, axes=walled) if walled else field
        modes = (fftn(modes, axes=periodic) if periodic else modes) * np.exp(-0.5 * self.length**2 * squared)
        modes = ifftn(modes, axes=periodic).real if periodic else modes
        field = idctn(modes, axes=walled) if walled else modes
        field = field - field.mean() if self.zero_mean else field
        return self.amplitude * field[None] / np.abs(field).max()


@dataclass(frozen=True, kw_only=True)
class Blobs:
    """A sum of Gaussian blobs, amplitude · exp(-r² / (2 radius²)), at random places.

    Radii are fractions of the domain, between two numbers, as amplitudes and the count are.
    """

    count: tuple[int, int] = (1, 5)
    radius: tuple[float, float] = (0.03, 0.1)
    amplitude: tuple[float, float] = (0.5, 1.0)

    def __call__(self, rng, grid) -> np.ndarray:
        n, axes = int(rng.integers(self.count[0], self.count[1], endpoint=True)), unit_coordinates(grid)
        centres, radii = rng.random((n, grid.ndim)), rng.uniform(*self.radius, n)
        amplitudes = rng.uniform(*self.amplitude, n)
        bumps = [np.exp(-0.5 * (_distance(x[:, None], centres[:, a], p) / radii) ** 2)
                 for a, (x, p) in enumerate(zip(axes, grid.periodic))]
        return sum_of_products([bumps[0] * amplitudes, *bumps[1:]])[None]


def sum_of_products(columns: list[np.ndarray]) -> np.ndarray:
    """Σ_m of the outer products of the m-th columns of matrices (points of an axis, terms)."""
    letters = "xyz"[: len(columns)]
    terms = ",".join(f"{letter}m" for letter in letters)
    return np.einsum(f"{terms}->{letters}", *columns)


@dataclass(frozen=True, kw_only=True)
class Discontinuities:
    """A field of constant pieces: boxes at random places, later ones on top, with sharp edges."""

    count: tuple[int, int] = (1, 5)
    low: float = -1.0
    high: float = 1.0

    def __call__(self, rng, grid) -> np.ndarray:
        field, axes = np.full(grid.shape, rng.uniform(self.low, self.high)), unit_coordinates(grid)
        for _ in range(rng.integers(self.count[0], self.count[1], endpoint=True)):
            corners = np.sort(rng.random((grid.ndim, 2)), axis=1)
            inside = np.ix_(*((x >= a) & (x < b) for x, (a, b) in zip(axes, corners)))
            mask = inside[0]
            for part in inside[1:]:
                mask = mask & part
            field[mask] = rng.uniform(self.low, self.high)
        return field[None]


@dataclass(frozen=True)
class Clamped:
    """Another initial condition, shifted and scaled to run from `low` to `high` exactly, each component by itself."""

    inner: Any
    low: float = 0.0
    high: float = 1.0
    with_parameters = True

    def __call__(self, rng, grid, parameters) -> np.ndarray:
        return self.low + (self.high - self.low) * _unit_range(start(self.inner, rng, grid, parameters))


def _unit_range(field):
    axes = tuple(range(1, field.ndim))
    low, high = field.min(axes, keepdims=True), field.max(axes, keepdims=True)
    return (field - low) / np.where(high > low, high - low, 1.0)


@dataclass(frozen=True, kw_only=True)
class SineWaves:
    """Some of the lowest sine waves in 1-D, with a window or rectified now and then: PDEBench's `init_multi`.

    Σ over `chosen` waves of A sin(2π n x + φ), n from 1 to `modes`, A in [0, 1); with the chance `absolute` the modulus
    with a random sign; with the chance `window` only a part of the domain, with smooth edges of width `edge`;
    `normalized` to [0, 1]. Source: Takamoto et al., PDEBench, NeurIPS 2022, appendix D.1, eq. (8).

    Deviation: every choice has random numbers of its own; the original draws the waves and the amplitudes from one
    key, and phases, moduli and signs from another, so these are correlated.
    """

    modes: int = 8
    chosen: int = 2
    absolute: float = 0.1
    window: float = 0.1
    edge: float = 0.005
    normalized: bool = False

    def __call__(self, rng, grid) -> np.ndarray:
        if grid.ndim != 1:
            raise ValueError(f"SineWaves are for one axis, not {grid.ndim}")
        return self.at(rng, unit_coordinates(grid)[0])[None]

    def at(self, rng, x) -> np.ndarray:
        """The function at any places of the unit interval; normalised over these."""
        waves, amplitudes = rng.integers(1, self.modes, self.chosen, endpoint=True), rng.random(self.chosen)
        phases, chances, sign = rng.uniform(0, 2 * np.pi, self.chosen), rng.random(2), rng.choice([-1.0, 1.0])
        low, high = rng.uniform(0.1, 0.45), rng.uniform(0.55, 0.9)
        field = np.zeros(np.shape(x))
        for n, a, p in zip(waves, amplitudes, phases):
            field += a * np.sin(2 * np.pi * n * x + p)
        if chances[0] < self.absolute:
            field = sign * np.abs(field)
        if chances[1] < self.window:
            field = field * 0.5 * (np.tanh((x - low) / self.edge) - np.tanh((x - high) / self.edge))
        return _unit_range(field[None])[0] if self.normalized else field


@dataclass(frozen=True, kw_only=True)
class Travelling:
    """The exact solution of advection on a periodic line, u(x, t) = u0(x - speed t); for the method "exact".

    `profile` has a method `at(rng, x)`; `speed` is the name of the parameter.
    """

    profile: Any = SineWaves()
    speed: str = "velocity"

    def __call__(self, rng, grid, parameters, times) -> np.ndarray:
        if grid.ndim != 1 or not grid.periodic[0]:
            raise ValueError("Travelling is for one periodic axis")
        x = unit_coordinates(grid)[0] - parameters[self.speed] * np.asarray(times)[:, None] / grid.lengths[0]
        return self.profile.at(rng, x % 1.0)[:, None]


@dataclass(frozen=True, kw_only=True)
class GrayScottBlobs:
    """The "gaussians" of The Well's Gray–Scott data: sums of m blobs a exp(-s r²), one for v, one taken from 1 for u.

    m from 10 to 100, a in [1, 3], s in [150, 300] on the periodic square [-1, 1]²; u and v drawn one after the other,
    then each shifted and scaled to [0, 1]. Each blob is repeated in the neighbouring squares. Source: danfortunato/
    spectral-gray-scott, gen_gs.m and random_gaussians.m.
    """

    count: tuple[int, int] = (10, 100)
    amplitude: tuple[float, float] = (1.0, 3.0)
    sharpness: tuple[float, float] = (150.0, 300.0)

    def __call__(self, rng, grid) -> np.ndarray:
        u, v = self._sum(rng, grid), self._sum(rng, grid)
        return _unit_range(np.stack([1 - u, v]))

    def _sum(self, rng, grid):
        m = int(rng.integers(self.count[0], self.count[1], endpoint=True))
        amplitudes, sharp = rng.uniform(*self.amplitude, m), rng.uniform(*self.sharpness, m)
        centres = rng.uniform(-1, 1, (m, grid.ndim))
        columns = [sum(np.exp(-sharp * (2 * x[:, None] - 1 - centres[:, a] + shift) ** 2) for shift in (-2, 0, 2))
                   for a, x in enumerate(unit_coordinates(grid))]
        return sum_of_products([columns[0] * amplitudes, *columns[1:]])


@dataclass(frozen=True, kw_only=True)
class GrayScottFourier:
    """The "fourier" start of The Well's Gray–Scott data: a smooth random field about a steady state.

    w + d/2 times the trigonometric interpolant of `points`² uniform numbers in ±1/2, for u and v. w = (1, 0) and d = 1;
    where k < (√F - 2F)/2, which F and k of the sample decide, w is the third steady state and d = 0.9 min(w, 1 - w).
    Source: danfortunato/spectral-gray-scott, init_fourier.m.
    """

    points: int = 32
    with_parameters = True

    def __call__(self, rng, grid, parameters) -> np.ndarray:
        noise = np.stack([_interpolated(rng.random((self.points,) * grid.ndim) - 0.5, grid.shape) for _ in range(2)])
        state, distance = self._about(parameters["F"], parameters["k"])
        shape = (2, *[1] * grid.ndim)
        return np.reshape(state, shape) + 0.5 * np.reshape(distance, shape) * noise

    @staticmethod
    def _about(F, k):
        if not k < (np.sqrt(F) - 2 * F) / 2:
            return np.array([1.0, 0.0]), np.ones(2)
        A = np.sqrt(F) / (F + k)
        root = np.sqrt(A * A - 4)
        state = np.array([(A - root) / (2 * A), np.sqrt(F) * (A + root) / 2])
        return state, 0.9 * np.minimum(state, 1 - state)


def _interpolated(coarse, shape):
    """The trigonometric interpolant of values on a coarse periodic grid, on a finer one."""
    for axis, n in enumerate(shape):
        m = coarse.shape[axis]
        modes, fine = np.fft.rfft(coarse, axis=axis), list(coarse.shape)
        fine[axis] = n // 2 + 1
        padded = np.zeros(fine, complex)
        few = min(m // 2 + 1, n // 2 + 1)
        take = (slice(None),) * axis + (slice(0, few),)
        padded[take] = modes[take]
        if m % 2 == 0 and few == m // 2 + 1 and n > m:  # the highest wave of the coarse grid is half of each sign
            padded[(slice(None),) * axis + (few - 1,)] *= 0.5
        coarse = np.fft.irfft(padded, n, axis=axis) * (n / m)
    return coarse


def start(condition, rng, grid, parameters) -> np.ndarray:
    """Draw an initial field; a condition with the mark `with_parameters` is given those of the sample too."""
    return condition(rng, grid, parameters) if getattr(condition, "with_parameters", False) else condition(rng, grid)


def batch(condition, grid, seed: int, indices, parameters=None) -> np.ndarray:
    """Initial fields (len(indices), components, *grid) of some samples, each from `SeedSequence(seed, index)`."""
    return np.stack([start(condition, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(i),))), grid,
                           parameters or {}) for i in indices])


__all__ = ["Blobs", "Clamped", "Components", "Constant", "DiffusedNoise", "Discontinuities", "FourierSeries",
           "GaussianField", "GrayScottBlobs", "GrayScottFourier", "OneOf", "Seeds", "SineWaves", "Travelling",
           "WhiteNoise", "batch", "start", "unit_coordinates"]
