"""Shapes of states: what users hold, and the (batch, components, *grid) that kernels want."""

from typing import Any, NamedTuple

import numpy as np

from fastdiff.dispatch import adopt
from fastdiff.grid import Grid


class State(NamedTuple):
    """A user's field as (batch, components, *grid), and how it was given."""

    data: Any
    backend: str
    back: Any
    shape: tuple[int, ...]  # as given
    batched: bool

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.data.shape[0]


def read(u, grid: Grid, names: tuple[str, ...], parameters: int = 1, device=None) -> State:
    """Check a field against a grid and the components of an equation.

    One component: (*grid), (batch, *grid) or (batch, 1, *grid); several: (C, *grid) or (batch, C, *grid).
    `parameters` is the number of samples that the equation's parameters speak of (1: all alike).
    """
    array = adopt(u, device)
    shape, C = tuple(array.data.shape), len(names)
    lead = _lead(shape, grid, C)
    batched = lead is not None and len(lead) > (1 if C > 1 else 0)
    full = None if lead is None else ((lead[0] if batched else 1), C, *grid.shape)
    if full is None:
        plain = (*([C] if C > 1 else []), *grid.shape)
        raise ValueError(f"u0 has shape {shape}; expected {plain} or (batch, {', '.join(map(str, plain))})"
                         + (f", with components {', '.join(names)}" if C > 1 else ""))
    if parameters > 1 and full[0] != parameters:
        raise ValueError(f"the equation has parameters for {parameters} samples, but u0 has {full[0]}: give u0 a batch "
                         f"axis of {parameters}")
    if full[0] == 0:
        raise ValueError("u0 has a batch of 0 samples: nothing to solve")
    data = array.data.reshape(full)
    bad = first_not_finite(data)
    if bad is not None:
        raise ValueError(f"u0 is {float(data[bad])} at {tuple(map(int, bad[2:]))}"
                         + (f" of component {names[bad[1]]}" if C > 1 else "")
                         + (f" of sample {bad[0]}" if batched else "") + ": every value must be finite")
    return State(data, array.backend, array.back, shape, batched)


def _lead(shape, grid, C):
    """The axes of a field before those of the grid, or None if it does not fit."""
    n = len(shape) - grid.ndim
    if n < 0 or shape[n:] != grid.shape:
        return None
    lead = shape[:n]
    if C > 1:
        return lead if n in (1, 2) and lead[-1] == C else None
    return lead if n < 2 or (n == 2 and lead[1] == 1) else None


def first_not_finite(u):
    """Index of the first NaN or infinity of a field, or None. One pass over the data if there is none."""
    if not isinstance(u, np.ndarray):
        import torch

        if bool(torch.isfinite(u).all()):
            return None
        return tuple(torch.nonzero(~torch.isfinite(u))[0].tolist())
    with np.errstate(over="ignore", invalid="ignore"):
        total = u.sum()
    if np.isfinite(total) or np.isfinite(u).all():  # the sum of finite numbers may overflow
        return None
    return tuple(np.argwhere(~np.isfinite(u))[0].tolist())


def first_bad(advance, u, steps: int, newest=lambda v: v):
    """After which of `steps` steps from `u` a field is not finite first, by bisection: (that field, its step).

    `advance(v, done, steps)` marches on from the state v after `done` steps; `newest` takes the field out of a state.
    """
    done = 0
    while steps > 1:
        half = steps // 2
        v = advance(u, done, half)
        if first_not_finite(newest(v)) is None:
            u, done, steps = v, done + half, steps - half
        else:
            steps = half
    return newest(advance(u, done, 1)), done + 1
