"""The Swift–Hohenberg equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._fourth import Fourth, largest_eigenvalue
from fastdiff.grid import Grid
from fastdiff.kernels import fourth_order


@dataclass(frozen=True)
class SwiftHohenberg(Fourth):
    """Swift–Hohenberg equation (Swift and Hohenberg, Phys. Rev. A 15 (1977) 319; with g: Cross and Hohenberg, 1993).

        u_t = r u - (q² + Δ)² u + g u² - u³

    r how far the uniform state is from its onset of instability, q the wave number of the pattern, g what turns stripes
    into hexagons. Numbers, or arrays with one number a sample; lengths are in units of 1/q and times such that the
    factor of Δ² is 1. Explicit steps are short, about dx⁴ / (8 ndim²).
    """

    r: Any = 0.1
    q: Any = 1.0
    g: Any = 1.0

    _fields = ("r", "q", "g")

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler (kernels/fourth_order.py)."""
        r, q, g = (np.broadcast_to(v, batch) for v in self._values())
        parts = fourth_order.coefficients(-2 * q**2 * dt, np.full(batch, dt), grid.spacing)
        return fourth_order.rule(*parts, dtype, np.stack([(r - q**4) * dt, g * dt, np.full(batch, dt)], 1))

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable step about u = 0: 2 / ((lambda - q²)² - r), lambda = sum of 4/dx²."""
        (r, q, _), most = self._values(), largest_eigenvalue(grid, stiffness)
        fastest = (np.maximum((most - q**2) ** 2, q**4) - r).max()
        return float(2 / fastest) if fastest > 0 else np.inf

    def reaction_rate(self) -> float:
        """How fast cubic damping pulls the largest usual values down, 3 u² - 2 g u at u = g + sqrt(1 + max(r, 0))."""
        r, _, g = self._values()
        u = np.abs(g) + np.sqrt(1 + np.maximum(r, 0))
        return float((3 * u**2 - 2 * g * u).max())
