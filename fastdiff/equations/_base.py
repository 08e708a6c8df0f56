"""What every equation offers to the integrators, and how its parameters are read."""

from collections.abc import Mapping
from functools import lru_cache
from inspect import signature
from typing import Any, Protocol

import numpy as np

from fastdiff.boundary import as_numbers
from fastdiff.grid import Grid


class Equation(Protocol):
    """An equation: component names, diffusivities, and the rule of one explicit Euler step."""

    names: tuple[str, ...]

    def batch(self) -> int:
        """Samples that the parameters speak of: 1, or the length of those given per sample."""
        ...

    def diffusivities(self, grid: Grid) -> np.ndarray:
        """D of each sample, component and axis, (batch or 1, components, axes)."""
        ...

    def euler(self, grid: Grid, dt: float, batch: int, dtype) -> Any:
        """The compiled rule of one step of forward Euler."""
        ...

    def stable_dt(self, grid: Grid, stiffness: tuple[float, ...] | None = None) -> float:
        """The largest stable step of forward Euler."""
        ...

    def reaction_rate(self) -> float:
        """A bound on how fast the reaction pulls a component down, 1 / time; 0 without one."""
        ...


_PROTOCOL = ("names", "batch", "diffusivities", "euler", "stable_dt", "reaction_rate")


def check_equation(equation) -> None:
    """Refuse what does not keep the protocol of equations."""
    if isinstance(equation, type):
        raise TypeError(f"equation is {equation.__name__} itself: give it parameters, as in {equation.__name__}()")
    lacking = [name for name in _PROTOCOL if not hasattr(equation, name)]
    if lacking:
        from fastdiff import equations

        known = ", ".join(f"fd.{name}" for name in equations.__all__ if name != "Equation")
        raise TypeError(f"equation is one of {known}, or an object that has {', '.join(_PROTOCOL)}; "
                        f"{type(equation).__name__} has no {', '.join(lacking)}")


def samples(equation, grid: Grid) -> int:
    """Samples that an equation's parameters speak of on a grid, which may tell a field from one number a sample."""
    if "grid" in signature(equation.batch).parameters:
        return equation.batch(grid)
    return equation.batch()


def parameter(value, what: str, low: float = -np.inf) -> np.ndarray:
    """A parameter as (1,) or (batch,) float64; refuses what is not finite or below `low`."""
    numbers = as_numbers(value, what)
    if numbers.ndim > 1:
        raise ValueError(f"{what} is a number or one number a sample, not an array of shape {numbers.shape}")
    return _checked(np.atleast_1d(numbers), what, low)


def _checked(numbers, what, low):
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} must be finite")
    if (numbers < low).any():
        raise ValueError(f"{what} must be at least {low:g}, but is {numbers.min():g}")
    return numbers


def axis_values(value, what: str, ndim: int) -> np.ndarray:
    """Remembered `_axis_values` of numbers and tuples."""
    if isinstance(value, float | int | tuple):
        try:
            return _remembered(value, what, ndim)
        except TypeError:  # a tuple of arrays
            pass
    return _axis_values(value, what, ndim)


@lru_cache(maxsize=256)
def _remembered(value, what, ndim):
    numbers = _axis_values(value, what, ndim)
    numbers.flags.writeable = False
    return numbers


def _axis_values(value, what: str, ndim: int) -> np.ndarray:
    """A diffusivity as (1 or batch, axes): a number, a tuple with one number an axis, or an array of one a sample."""
    if isinstance(value, Mapping) or isinstance(value, str):
        raise ValueError(f"{what} is a number, a tuple with one an axis, or an array with one a sample, not {value!r}")
    if isinstance(value, tuple | list):
        numbers = as_numbers(value, what)
        if numbers.shape != (ndim,):
            raise ValueError(f"{what} as a tuple has one number for each of the {ndim} axes of the grid, not "
                             f"{len(value)}; for one number a sample give an array")
        return _checked(numbers.reshape(1, ndim), what, 0.0)
    return np.repeat(parameter(value, what, 0.0)[:, None], ndim, axis=1)


def common_batch(*parameters: np.ndarray) -> int:
    """The number of samples that parameters of length 1 or `batch` speak of."""
    sizes = sorted({len(p) for p in parameters} - {1})
    if len(sizes) > 1:
        raise ValueError(f"parameters are given for different numbers of samples: {', '.join(map(str, sizes))}")
    return sizes[0] if sizes else 1


def diffusive_limit(diffusivity: np.ndarray, grid: Grid, stiffness=None) -> float:
    """Largest stable step of FTCS, 1 / (2 sum of D/dx^2 over the axes); walls may make an axis stiffer."""
    walls = np.ones(grid.ndim) if stiffness is None else np.asarray(stiffness)
    rate = (diffusivity / np.square(grid.spacing) * walls).sum(-1).max()
    return float(0.5 / rate) if rate > 0 else np.inf
