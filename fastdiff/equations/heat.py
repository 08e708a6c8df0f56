"""The heat equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._base import axis_values, diffusive_limit
from fastdiff.grid import Grid
from fastdiff.kernels import heat


@dataclass(frozen=True)
class Heat:
    """Heat equation, u_t = D_x u_xx + D_y u_yy + D_z u_zz (Fick's second law, with constant D).

    diffusivity  a number; a tuple with one number an axis; or an array with one number a sample. Length² / time.
    """

    diffusivity: Any = 1.0

    names = ("u",)

    def __post_init__(self):
        value = self.diffusivity
        axis_values(value, "diffusivity", len(value) if isinstance(value, tuple | list) else 1)

    def batch(self) -> int:
        """Samples that the diffusivity speaks of."""
        return len(axis_values(self.diffusivity, "diffusivity", self._axes(1)))

    def _axes(self, ndim: int) -> int:
        return len(self.diffusivity) if isinstance(self.diffusivity, tuple | list) else ndim

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, 1, axes)."""
        return axis_values(self.diffusivity, "diffusivity", grid.ndim)[:, None, :]

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """FTCS (kernels/heat.py) with r = D dt / dx²."""
        rate = self.diffusivities(grid)[:, 0] * dt / np.square(grid.spacing)
        return heat.rule(np.broadcast_to(rate, (batch, grid.ndim)), dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable FTCS step: 1 / (2 sum of D/dx² over the axes)."""
        return diffusive_limit(self.diffusivities(grid), grid, stiffness)

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0
