"""The Gray–Scott model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdiff.equations._base import axis_values, common_batch, diffusive_limit, parameter
from fastdiff.equations._named import Named
from fastdiff.equations.reaction_diffusion import ReactionDiffusion
from fastdiff.grid import Grid
from fastdiff.kernels import gray_scott


@dataclass(frozen=True)
class GrayScott(Named):
    """Gray–Scott reaction–diffusion (Pearson, Science 261 (1993) 189, eq. 1).

        u_t = D_u Δu - u v² + F (1 - u)
        v_t = D_v Δv + u v² - (F + k) v

    F feed rate and k removal rate, 1 / time; Du and Dv diffusivities, length² / time. Each is a number or an array
    with one number a sample; Du and Dv may be tuples with one number an axis. Defaults are Pearson's diffusivities
    (on a domain of 2.5 x 2.5) and one of his spot-forming points.
    """

    F: Any = 0.04
    k: Any = 0.06
    Du: Any = 2e-5
    Dv: Any = 1e-5

    names = ("u", "v")

    def __post_init__(self):
        for value, what in ((self.Du, "Du"), (self.Dv, "Dv")):
            axis_values(value, what, len(value) if isinstance(value, tuple | list) else 1)
        self.batch()

    def _make(self):
        return ReactionDiffusion({"u": self.Du, "v": self.Dv}, {"u": "F*(1 - u) - u*v**2", "v": "u*v**2 - (F + k)*v"},
                                 {"F": self.F, "k": self.k})

    def batch(self) -> int:
        """Samples that the parameters speak of."""
        given = [d for d in (self.Du, self.Dv) if not isinstance(d, tuple | list)]
        spread = [parameter(d, "a diffusivity") for d in given]
        return common_batch(parameter(self.F, "F", 0.0), parameter(self.k, "k", 0.0), *spread)

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, 2, axes)."""
        u, v = axis_values(self.Du, "Du", grid.ndim), axis_values(self.Dv, "Dv", grid.ndim)
        return np.stack(np.broadcast_arrays(u, v), axis=1)

    def euler(self, grid: Grid, dt: float, batch: int, dtype):
        """FTCS with the reaction at the old level (kernels/gray_scott.py; on curved and graded grids system.py)."""
        if not grid.plain:
            return self.system.euler(grid, dt, batch, dtype)
        rate = self.diffusivities(grid) * dt / np.square(grid.spacing)
        F, k = parameter(self.F, "F"), parameter(self.k, "k")
        return gray_scott.rule(np.broadcast_to(rate, (batch, 2, grid.ndim)), F * dt, (F + k) * dt, dt, dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """Largest step stable about (u, v) = (1, 0): 2 / (2/diffusive limit + decay rate), decaying with F and F + k.

        A necessary condition: the reaction is nonlinear, and where v is large u decays faster, with v² + F.
        """
        if not grid.plain:
            return self.system.stable_dt(grid, stiffness)
        F, k = parameter(self.F, "F").max(), parameter(self.k, "k").max()
        D = self.diffusivities(grid)
        limits = [diffusive_limit(D[:, [c]], grid, stiffness) for c in range(2)]
        rates = [2.0 / limit + decay for limit, decay in zip(limits, (F, F + k))]
        return float(2.0 / max(rates)) if max(rates) > 0 else np.inf

    def reaction_rate(self, grid: Grid | None = None) -> float:
        """The fastest decay by reaction, v² + F with v <= 1."""
        return float(1.0 + parameter(self.F, "F").max())
