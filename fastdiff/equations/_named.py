"""What the named reaction–diffusion equations share: each is a `ReactionDiffusion` with names of its own."""

from functools import cached_property
from typing import Any

import numpy as np

from fastdiff.equations._base import AsGiven
from fastdiff.equations.reaction_diffusion import ReactionDiffusion
from fastdiff.grid import Grid


class Named(AsGiven):
    """An equation that a ReactionDiffusion, made by `_make`, solves for it."""

    names: tuple[str, ...]

    def _make(self) -> ReactionDiffusion:
        raise NotImplementedError

    def __post_init__(self):
        self.system  # noqa: B018  parameters are checked here

    @cached_property
    def system(self) -> ReactionDiffusion:
        """The same equation with its reactions as strings."""
        return self._make()

    def batch(self) -> int:
        """Samples that the parameters speak of."""
        return self.system.batch()

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, components, axes)."""
        return self.system.diffusivities(grid)

    def euler(self, grid: Grid, dt: float, batch: int, dtype) -> Any:
        """FTCS with the reaction at the old level."""
        return self.system.euler(grid, dt, batch, dtype)

    def even(self, grid: Grid) -> bool:
        """Whether all components diffuse evenly on a plain grid."""
        return self.system.even(grid)

    def at_wall(self, grid: Grid, batch: int):
        """D on walls, None: it is constant."""
        return self.system.at_wall(grid, batch)

    def stable_dt(self, grid: Grid, stiffness=None) -> float:
        """A largest step of forward Euler, see `ReactionDiffusion.stable_dt`."""
        return self.system.stable_dt(grid, stiffness)

    def reaction_rate(self, grid: Grid | None = None) -> float:
        """The largest eigenvalue, in size, of the reaction's Jacobian at usual states, 1 / time."""
        return self.system.reaction_rate(grid)

    def rates(self, u, grid: Grid | None = None, t: float = 0.0) -> np.ndarray:
        """The reaction of a field, see `ReactionDiffusion.rates`."""
        return self.system.rates(u, grid, t)

    def jacobian(self, u, grid: Grid | None = None, t: float = 0.0) -> np.ndarray:
        """Derivatives of the reaction, see `ReactionDiffusion.jacobian`."""
        return self.system.jacobian(u, grid, t)

    def linear(self, grid: Grid) -> bool:
        """Whether the reaction is linear and couples no components."""
        return self.system.linear(grid)
