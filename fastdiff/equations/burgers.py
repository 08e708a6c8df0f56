"""Burgers' equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._base import common_batch, parameter
from fastdiff.equations._exact import single
from fastdiff.grid import Grid
from fastdiff.kernels import burgers


@dataclass(frozen=True)
class Burgers:
    """Viscous Burgers equation on one axis (Burgers, Adv. Appl. Mech. 1 (1948) 171).

        u_t + (u²/2)_x = nu u_xx

    nu      viscosity, length² / time; a number or an array with one number a sample. PDEBench's nu is pi times as large
    speed   the largest |u| that is expected, for the choice of the time step alone

    Second order where the grid resolves shocks (about |u| dx <= 2 nu), with the viscosity of an upwind scheme where it does
    not (kernels/burgers.py). The integral of u is conserved.
    """

    nu: Any = 0.01
    speed: float = 1.0

    names = ("u",)

    def __post_init__(self):
        parameter(self.nu, "nu", 0.0)
        if not (np.ndim(self.speed) == 0 and np.isfinite(self.speed) and self.speed >= 0):
            raise ValueError(f"speed is a number >= 0, not {self.speed!r}")

    def batch(self) -> int:
        """Samples that the viscosity speaks of."""
        return common_batch(parameter(self.nu, "nu"))

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """The viscosity of each sample, (batch or 1, 1, 1)."""
        if grid.ndim != 1:
            raise ValueError(f"fd.Burgers is for grids of one axis, not of {grid.ndim}")
        return parameter(self.nu, "nu").reshape(-1, 1, 1)

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler with central, energy-preserving fluxes (kernels/burgers.py)."""
        nu, (dx,) = self.diffusivities(grid)[:, 0, 0], grid.spacing
        rate = np.broadcast_to(nu * dt / dx**2, batch)
        return burgers.rule(np.full(batch, dt / dx), rate, dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """1 / (2 nu/dx² + 4/3 speed/dx), walls made stiffer; larger |u| than `speed` need shorter steps."""
        nu, (dx,) = self.diffusivities(grid), grid.spacing
        walls = 1.0 if stiffness is None else float(np.max(stiffness))
        fastest = (2 * walls * nu / dx**2).max() + 4 / 3 * self.speed / dx
        return float(1 / fastest) if fastest > 0 else np.inf

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0

    def exact(self, x, t, a: float = 2.0):
        """A wave that decays on a periodic axis of length 2, or between walls u = 0 at x = 0 and 1, by Cole and Hopf.

        u = 2 nu pi e sin(pi x) / (a + e cos(pi x)),  e = exp(-pi² nu t),  a > 1
        Wood, Comm. Numer. Methods Eng. 22 (2006) 797, eq. (10).
        """
        if not a > 1:
            raise ValueError(f"a must be larger than 1, not {a!r}")
        nu, x = single(self.nu, "nu"), np.pi * np.asarray(x, np.float64)
        e = np.exp(-np.pi**2 * nu * t)
        return 2 * nu * np.pi * e * np.sin(x) / (a + e * np.cos(x))
