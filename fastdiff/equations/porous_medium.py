"""The porous medium equation."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations import _exact
from fastdiff.equations._base import AsGiven, parameter
from fastdiff.equations._exact import single
from fastdiff.equations.heat import Heat
from fastdiff.grid import Grid


@dataclass(frozen=True)
class PorousMedium(AsGiven):
    """Porous medium equation (Vazquez, The Porous Medium Equation, Oxford 2007, eq. 1.1).

        u_t = D Δ(u^m) = div(D m u^(m-1) grad u)

    u >= 0; m >= 1, at 1 the heat equation. Where u = 0 nothing moves until a front arrives. Numbers, or arrays with one
    number a sample. `highest` is the largest u that is expected, for the choice of the time step alone.
    """

    m: Any = 2.0
    D: Any = 1.0
    highest: float = 1.0

    names = ("u",)

    def __post_init__(self):
        parameter(self.m, "m", 1.0)
        parameter(self.D, "D", 0.0)
        self.system  # noqa: B018

    @cached_property
    def system(self) -> Heat:
        """The same equation as a heat equation with a diffusivity that depends on u."""
        return Heat("D*m*u**(m - 1)", parameters={"D": self.D, "m": self.m}, bounds=(0.0, float(self.highest)))

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the parameters speak of."""
        return self.system.batch(grid)

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """As of the heat equation with D(u), (batch or 1, 1, axes)."""
        return self.system.diffusivities(grid)

    def euler(self, grid: Grid, dt: float, batch: int, dtype) -> Any:
        """Forward Euler (kernels/nonlinear.py)."""
        return self.system.euler(grid, dt, batch, dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable step where u is `highest`."""
        return self.system.stable_dt(grid, stiffness)

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0

    def exact(self, x, t, total: float = 1.0):
        """Barenblatt's point source at 0, see `_exact.barenblatt`; x is one array, or a tuple with one an axis.

        At its start it is infinite: begin at some t > 0.
        """
        m, D = single(self.m, "m"), single(self.D, "D")
        if not (m > 1 and t > 0):
            raise ValueError(f"Barenblatt's solution is for m > 1 and t > 0, not m = {m:g} and t = {t:g}")
        return _exact.barenblatt(_exact.axes_of(x), t, m, D, total)
