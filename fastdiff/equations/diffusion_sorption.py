"""Diffusion with sorption."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations._base import AsGiven, parameter
from fastdiff.equations.heat import Heat
from fastdiff.grid import Grid


@dataclass(frozen=True)
class DiffusionSorption(AsGiven):
    """Diffusion slowed down by Freundlich sorption (PDEBench's "diff-sorp": Takamoto et al., NeurIPS 2022, eqs. 8-10).

        R(u) u_t = D Δu,   R(u) = 1 + (1 - phi)/phi rho k n (u + 1e-6)^(n - 1)

    u >= 0 the dissolved concentration; D effective diffusivity, length² / time; phi porosity; rho bulk density; k and n
    Freundlich's constant and exponent. Numbers, or arrays with one number a sample. The defaults are PDEBench's:
    1024 cells on [0, 1], u = 1 on the left.
    """

    D: Any = 5e-4
    phi: Any = 0.29
    rho: Any = 2880.0
    k: Any = 3.5e-4
    n: Any = 0.874

    names = ("u",)

    def __post_init__(self):
        for name in ("phi", "rho", "k", "n"):
            if (parameter(getattr(self, name), name) <= 0).any():
                raise ValueError(f"{name} must be positive")
        if (parameter(self.phi, "phi") > 1).any():
            raise ValueError("phi, a porosity, is at most 1")
        self.system  # noqa: B018

    @cached_property
    def system(self) -> Heat:
        """The same equation as a heat equation with a capacity."""
        given = {name: getattr(self, name) for name in ("phi", "rho", "k", "n")}
        return Heat(self.D, capacity="1 + (1 - phi)/phi*rho*k*n*(u + 1e-6)**(n - 1)", parameters=given,
                    bounds=(0.0, 1.0))

    def retardation(self, u) -> np.ndarray:
        """R(u), of one sample."""
        phi, rho, k, n = (np.asarray(getattr(self, name), np.float64) for name in ("phi", "rho", "k", "n"))
        return 1 + (1 - phi) / phi * rho * k * n * (np.asarray(u, np.float64) + 1e-6) ** (n - 1)

    def batch(self, grid: Grid | None = None) -> int:
        """Samples that the parameters speak of."""
        return self.system.batch(grid)

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, 1, axes)."""
        return self.system.diffusivities(grid)

    def euler(self, grid: Grid, dt: float, batch: int, dtype) -> Any:
        """Forward Euler (kernels/nonlinear.py)."""
        return self.system.euler(grid, dt, batch, dtype)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """The largest stable step, where R is least: u = 1."""
        return self.system.stable_dt(grid, stiffness)

    def reaction_rate(self) -> float:
        """There is no reaction: 0."""
        return 0.0
