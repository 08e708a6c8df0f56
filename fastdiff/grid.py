"""Rectangular grids of one to three axes.

x is array axis 0, y axis 1, z axis 2. Three ways to place N cells on an axis from `low` to `high`, of length L:

    centering    bounded axis                               periodic axis
    "nodes"      both ends are points, dx = L/(N-1)         first point at low, dx = L/N
    "cells"      N cells of width dx = L/N, their centres   the same
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

CENTERINGS = ("nodes", "cells")
NAMES = ("x", "y", "z")


@dataclass(frozen=True)
class Grid:
    """A rectangular grid of one to three axes.

    shape      cells along each axis; a number makes one axis
    extent     for each axis its length (from 0) or a pair (low, high); one number serves all axes; default 1
    periodic   one bool for all axes, or one an axis
    centering  "nodes": both ends of a bounded axis are points; "cells": points are the centres of cells
    """

    shape: Any
    extent: Any = None
    periodic: Any = False
    centering: str = "nodes"

    def __post_init__(self):
        if self.centering not in CENTERINGS:
            raise ValueError(f"unknown centering {self.centering!r}; known: {', '.join(map(repr, CENTERINGS))}")
        shape = _shape(self.shape)
        periodic = _periodic(self.periodic, len(shape))
        for name, size, wraps in zip(NAMES, shape, periodic):
            if size < 2 and self.centering == "nodes" and not wraps:
                raise ValueError(f'axis {name} has one point, but "nodes" has one at both ends: use centering="cells"')
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "extent", _extent(self.extent, len(shape)))
        object.__setattr__(self, "periodic", periodic)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes: x, y, z as far as there are."""
        return NAMES[: self.ndim]

    @cached_property
    def low(self) -> tuple[float, ...]:
        """Lower end of each axis."""
        return tuple(low for low, _ in self.extent)

    @cached_property
    def high(self) -> tuple[float, ...]:
        """Upper end of each axis."""
        return tuple(high for _, high in self.extent)

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """Length of each axis."""
        return tuple(high - low for low, high in self.extent)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbouring points along each axis."""
        ends = [1 if self.centering == "nodes" and not wraps else 0 for wraps in self.periodic]
        return tuple(length / (size - end) for length, size, end in zip(self.lengths, self.shape, ends))

    @cached_property
    def origin(self) -> tuple[float, ...]:
        """Coordinates of the first point."""
        shift = 0.5 if self.centering == "cells" else 0.0
        return tuple(low + shift * dx for low, dx in zip(self.low, self.spacing))

    def points(self, axis: int) -> np.ndarray:
        """Coordinates along one axis, a 1-D array."""
        return self.origin[axis] + self.spacing[axis] * np.arange(self.shape[axis])

    def coordinates(self) -> tuple[np.ndarray, ...]:
        """One array an axis, shaped to broadcast: with `x, y = grid.coordinates()`, `np.sin(x) * y` is a field."""
        return tuple(np.meshgrid(*map(self.points, range(self.ndim)), indexing="ij", sparse=True))

    def weights(self) -> tuple[np.ndarray, ...]:
        """Quadrature weights of each axis (trapezoid on nodes, midpoint on cells), shaped to broadcast."""
        lines = []
        for size, dx, wraps in zip(self.shape, self.spacing, self.periodic):
            line = np.full(size, dx)
            if self.centering == "nodes" and not wraps:
                line[[0, -1]] = dx / 2
            lines.append(line)
        return tuple(np.meshgrid(*lines, indexing="ij", sparse=True))


def _shape(shape) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, Integral) else tuple(shape) if isinstance(shape, Iterable) else None
    if isinstance(shape, str) or sizes is None or not all(isinstance(n, Integral) for n in sizes):
        raise ValueError(f"the shape of a grid is one to three whole numbers, not {shape!r}")
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"a grid has one to three axes, not {len(sizes)}")
    if min(sizes) < 1:
        raise ValueError(f"every axis of a grid needs at least one cell; the shape is {sizes}")
    return tuple(int(n) for n in sizes)  # type: ignore[arg-type]


def _periodic(periodic, ndim: int) -> tuple[bool, ...]:
    flags = (periodic,) * ndim if isinstance(periodic, bool | np.bool_) else periodic
    if isinstance(flags, str) or not isinstance(flags, Iterable):
        raise ValueError(f"periodic is True, False or one of them an axis, not {periodic!r}")
    flags = tuple(flags)
    if len(flags) != ndim or not all(isinstance(p, bool | np.bool_) for p in flags):
        raise ValueError(f"periodic is True, False or {ndim} of them, one an axis, not {periodic!r}")
    return tuple(map(bool, flags))


def _extent(extent, ndim: int) -> tuple[tuple[float, float], ...]:
    if extent is None or isinstance(extent, Real):
        extent = (1.0 if extent is None else extent,) * ndim
    s = "s" * (ndim > 1)
    wanted = f"extent is {ndim} length{s} or (low, high) pair{s}, one an axis, not {extent!r}"
    if isinstance(extent, str) or not isinstance(extent, Iterable):
        raise ValueError(wanted)
    items = tuple(extent)
    if ndim == 1 and len(items) == 2 and all(isinstance(item, Real) for item in items):
        items = (items,)
    if len(items) != ndim:
        raise ValueError(wanted)
    pairs = []
    for name, item in zip(NAMES, items):
        pair = (0.0, item) if isinstance(item, Real) else item
        if isinstance(pair, str) or not isinstance(pair, Iterable):
            raise ValueError(wanted)
        pair = tuple(pair)
        if len(pair) != 2 or not all(isinstance(p, Real) for p in pair):
            raise ValueError(wanted)
        low, high = float(pair[0]), float(pair[1])
        if not (isfinite(low) and isfinite(high) and high > low):
            raise ValueError(f"axis {name} must run upwards between two finite numbers, not from {low:g} to {high:g}")
        pairs.append((low, high))
    return tuple(pairs)


__all__ = ["CENTERINGS", "NAMES", "Grid"]
