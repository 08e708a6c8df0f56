"""The Cahn–Hilliard equation."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._fourth import Fourth, largest_eigenvalue
from fastdiff.grid import Grid
from fastdiff.kernels import fourth_order


@dataclass(frozen=True)
class CahnHilliard(Fourth):
    """Cahn–Hilliard equation (Cahn, Hilliard, J. Chem. Phys. 28 (1958) 258; Cahn, Acta Metall. 9 (1961) 795, eq. 10).

        u_t = M Δ(u³ - u - kappa Δu)

    u from -1 to 1, the difference of two concentrations; M mobility, length² / time; kappa the square of the width of
    interfaces, length². Numbers, or arrays with one number a sample. The integral of u is conserved: with the walls of
    the default neither u nor the chemical potential u³ - u - kappa Δu has a gradient there. Explicit steps are short,
    about dx⁴ / (8 ndim² M kappa).
    """

    kappa: Any = 1.0
    M: Any = 1.0

    _fields = ("kappa", "M")
    _positive = ("kappa", "M")

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """Forward Euler (kernels/fourth_order.py)."""
        kappa, M = (np.broadcast_to(v, batch) for v in self._values())
        return fourth_order.rule(*fourth_order.coefficients(M * dt, M * kappa * dt, grid.spacing), dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable step about u = 1 or -1: 2 / (M lambda (2 + kappa lambda)), lambda = sum of 4/dx²."""
        (kappa, M), most = self._values(), largest_eigenvalue(grid, stiffness)
        return float((2 / (M * most * (2 + kappa * most))).min())
