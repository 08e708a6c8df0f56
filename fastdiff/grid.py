"""Rectangular grids of one to three axes.

x is array axis 0, y axis 1, z axis 2. Three ways to place N cells on an axis from `low` to `high`, of length L:

    centering    bounded axis                               periodic axis
    "nodes"      both ends are points, dx = L/(N-1)         first point at low, dx = L/N
    "cells"      N cells of width dx = L/N, their centres   the same

`Grid.graded` spaces the points of an axis at will. With symmetry the axes may be those of curved coordinates:

    geometry        axes                    for fields that do not depend on
    "polar"         r, or r and theta       (theta,) a plane
    "cylindrical"   r, or r and z           theta
    "spherical"     r, or r and theta       (theta and) phi; theta from 0 at one pole to pi at the other
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, pi
from numbers import Integral, Real
from typing import Any

import numpy as np

CENTERINGS = ("nodes", "cells")
NAMES = ("x", "y", "z")
GEOMETRIES = {"cartesian": NAMES, "polar": ("r", "theta"), "cylindrical": ("r", "z"), "spherical": ("r", "theta")}


@dataclass(frozen=True)
class Grid:
    """A rectangular grid of one to three axes.

    shape      cells along each axis; a number makes one axis
    extent     for each axis its length (from 0) or a pair (low, high); one number serves all axes; default 1
    periodic   one bool for all axes, or one an axis
    centering  "nodes": both ends of a bounded axis are points; "cells": points are the centres of cells
    geometry   "cartesian", "polar", "cylindrical" or "spherical": what the axes are (see the head of grid.py)
    lines      the places of `Grid.graded`, which makes them
    """

    shape: Any
    extent: Any = None
    periodic: Any = False
    centering: str = "nodes"
    geometry: str = "cartesian"
    lines: Any = None

    @classmethod
    def graded(cls, *lines, centering: str = "nodes", geometry: str = "cartesian") -> "Grid":
        """A bounded grid whose points are not equally far apart, such as `Grid.graded(x, y)`.

        Each axis is an ascending array: with "nodes" its points, with "cells" the N + 1 ends of its N cells, whose
        points are their centres. Second order needs spacings that vary smoothly.
        """
        if not 1 <= len(lines) <= 3:
            raise ValueError(f"a grid has one to three axes, not {len(lines)}")
        checked = tuple(_line(name, line) for name, line in zip(NAMES, lines))
        cells = 1 if centering == "cells" else 0
        return cls(tuple(len(line) - cells for line in checked), tuple((line[0], line[-1]) for line in checked), False,
                   centering, geometry, checked)

    def __post_init__(self):
        if self.centering not in CENTERINGS:
            raise ValueError(f"unknown centering {self.centering!r}; known: {', '.join(map(repr, CENTERINGS))}")
        if self.geometry not in GEOMETRIES:
            raise ValueError(f"unknown geometry {self.geometry!r}; known: {', '.join(map(repr, GEOMETRIES))}")
        shape = _shape(self.shape)
        periodic = _periodic(self.periodic, len(shape))
        for name, size, wraps in zip(NAMES, shape, periodic):
            if size < 2 and self.centering == "nodes" and not wraps:
                raise ValueError(f'axis {name} has one point, but "nodes" has one at both ends: use centering="cells"')
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "extent", _extent(self.extent, len(shape)))
        object.__setattr__(self, "periodic", periodic)
        if self.lines is not None:
            object.__setattr__(self, "lines", tuple(map(tuple, self.lines)))
        if self.geometry != "cartesian":
            self._check_geometry()

    def _check_geometry(self):
        axes = GEOMETRIES[self.geometry]
        if self.ndim > 2:
            raise ValueError(f"a {self.geometry} grid has the axes {' and '.join(axes)}: one or two, not {self.ndim}")
        low, high = self.extent[0]
        if low < 0 or self.periodic[0]:
            raise ValueError(f"r of a {self.geometry} grid is not periodic and starts at 0 or above, not at {low:g}")
        angle = self.ndim == 2 and self.geometry != "cylindrical"
        if angle and low == 0 and self.centering == "nodes":
            raise ValueError('a grid of r and theta with a point at r = 0 needs centering="cells"')
        if angle and self.geometry == "spherical" and not 0 <= self.low[1] < self.high[1] <= pi + 1e-12:
            raise ValueError(f"theta of a spherical grid lies between 0 and pi, not between {self.low[1]:g} and "
                             f"{self.high[1]:g}")

    @property
    def plain(self) -> bool:
        """Whether the grid is Cartesian with equal spacing along each axis."""
        return self.geometry == "cartesian" and self.lines is None

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
        """Names of the axes: x, y, z as far as there are, or those of the geometry."""
        return GEOMETRIES[self.geometry][: self.ndim]

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
        if not self.plain:
            what = f"{self.geometry} grid" if self.lines is None else "graded grid"
            raise ValueError(f"this needs a Cartesian grid with equal spacing, not a {what}; fd.Heat, "
                             "fd.AdvectionDiffusion and fd.ReactionDiffusion solve on both")
        return self.mean_spacing

    @cached_property
    def mean_spacing(self) -> tuple[float, ...]:
        """Length of each axis over its number of intervals."""
        ends = [1 if self.centering == "nodes" and not wraps else 0 for wraps in self.periodic]
        return tuple(length / (size - end) for length, size, end in zip(self.lengths, self.shape, ends))

    @cached_property
    def origin(self) -> tuple[float, ...]:
        """Coordinates of the first point."""
        shift = 0.5 if self.centering == "cells" else 0.0
        return tuple(low + shift * dx for low, dx in zip(self.low, self.mean_spacing))

    def points(self, axis: int) -> np.ndarray:
        """Coordinates along one axis, a 1-D array."""
        if self.lines is not None:
            line = np.array(self.lines[axis])
            return line if self.centering == "nodes" else (line[1:] + line[:-1]) / 2
        return self.origin[axis] + self.mean_spacing[axis] * np.arange(self.shape[axis])

    def faces(self, axis: int) -> np.ndarray:
        """Coordinates of the N + 1 faces between the cells of an axis and at its ends; between nodes halfway."""
        n, dx, low = self.shape[axis], self.mean_spacing[axis], self.low[axis]
        if self.lines is not None and self.centering == "cells":
            return np.array(self.lines[axis])
        if self.lines is not None or (self.centering == "nodes" and not self.periodic[axis]):
            x = self.points(axis)
            return np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
        return low + dx * (np.arange(n + 1) - (0.5 if self.centering == "nodes" else 0.0))

    def wall_spacing(self, axis: int, end: int) -> float:
        """Distance from the first to the second point at a wall; of cells the width of the first."""
        if self.lines is None:
            return self.mean_spacing[axis]
        line = self.lines[axis]
        return float(line[-1] - line[-2] if end else line[1] - line[0])

    def coordinates(self) -> tuple[np.ndarray, ...]:
        """One array an axis, shaped to broadcast: with `x, y = grid.coordinates()`, `np.sin(x) * y` is a field."""
        return tuple(np.meshgrid(*map(self.points, range(self.ndim)), indexing="ij", sparse=True))

    def weights(self) -> tuple[np.ndarray, ...]:
        """Quadrature weights of each axis (trapezoid on nodes, midpoint on cells), shaped to broadcast."""
        lines = []
        for axis, (size, wraps) in enumerate(zip(self.shape, self.periodic)):
            if not self.plain:
                lines.append(self.volumes(axis))
                continue
            line = np.full(size, self.spacing[axis])
            if self.centering == "nodes" and not wraps:
                line[[0, -1]] = self.spacing[axis] / 2
            lines.append(line)
        return tuple(np.meshgrid(*lines, indexing="ij", sparse=True))

    def volumes(self, axis: int) -> np.ndarray:
        """What an axis contributes to the volumes of cells: their widths, or for r and theta the curved measure."""
        faces = self.faces(axis)
        name = self.names[axis]
        if name == "r":
            power = 3 if self.geometry == "spherical" else 2
            faces = faces**power / power
        elif name == "theta" and self.geometry == "spherical":
            faces = -np.cos(faces)
        return np.diff(faces)


def _line(name, line) -> tuple[float, ...]:
    places = np.asarray(line)
    if places.ndim != 1 or len(places) < 2 or places.dtype.kind not in "iuf":
        raise ValueError(f"axis {name} of a graded grid is an array of at least two places, not {line!r}")
    if not np.isfinite(places).all() or (np.diff(places) <= 0).any():
        raise ValueError(f"the places of axis {name} must be finite and ascend")
    return tuple(map(float, places))


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


__all__ = ["CENTERINGS", "GEOMETRIES", "NAMES", "Grid"]
