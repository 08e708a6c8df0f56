"""Initial conditions: frozen dataclasses called with a random generator and a grid, one sample at a time.

`initial(rng, grid)` returns a float64 array (components, *grid). What is drawn from `rng` depends on nothing but the
condition and the grid, so a sample is the same whoever makes it, and in whatever company.
"""

from dataclasses import dataclass

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

    def __call__(self, rng, grid) -> np.ndarray:
        waves = [_waves(x, self.modes, self.basis) for x in unit_coordinates(grid)]
        return _series(rng.uniform(-1, 1, [w.shape[1] for w, _ in waves]), waves, self.amplitude)


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

    def __call__(self, rng, grid) -> np.ndarray:
        return self.choices[rng.integers(len(self.choices))](rng, grid)


__all__ = ["FourierSeries", "GaussianField", "OneOf", "Seeds", "unit_coordinates"]
