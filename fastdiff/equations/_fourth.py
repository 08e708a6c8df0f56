"""What equations of fourth order share."""

import numpy as np

from fastdiff.equations._base import common_batch, parameter
from fastdiff.grid import Grid


class Fourth:
    """An equation of fourth order in one component, whose parameters are numbers or one number a sample."""

    names = ("u",)
    _positive: tuple[str, ...] = ()
    _fields: tuple[str, ...] = ()

    def __post_init__(self):
        for name in self._fields:
            value = parameter(getattr(self, name), name)
            if name in self._positive and (value <= 0).any():
                raise ValueError(f"{name} must be positive, but is {value.min():g}")
        self.batch()

    def _values(self) -> list[np.ndarray]:
        return [parameter(getattr(self, name), name) for name in self._fields]

    def batch(self) -> int:
        """Samples that the parameters speak of."""
        return common_batch(*self._values())

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """1, which turns a Flux into minus the derivative: there is no diffusivity. (1, 1, axes)."""
        return np.ones((1, 1, grid.ndim))

    def reaction_rate(self) -> float:
        """0: the stability limit knows of the reaction."""
        return 0.0


def largest_eigenvalue(grid: Grid, stiffness=None) -> float:
    """That of minus the discrete Laplacian, sum of 4/dx² over the axes; walls may make an axis stiffer."""
    walls = np.ones(grid.ndim) if stiffness is None else np.asarray(stiffness)
    return float((4 * walls / np.square(grid.spacing)).sum())
