"""Known functions of time and place, with the derivatives that a network's output is joined with.

A field gives its channels (C, N, components) at points (N, 1 + axes), whose columns are t, x, y, z.
"""

from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from fastdiff.expressions import Expression
from fastdiff.grid import Grid

_SPACE = "xyz"
LETTERS = "txyz"


def _special():
    from scipy.special import erf, erfc

    return {"erf": erf, "erfc": erfc}


class Symbolic:
    """A SymPy expression of t, x, y, z."""

    def __init__(self, expression):
        self.expression = expression

    def __call__(self, points: np.ndarray, channels) -> np.ndarray:
        """Its channels at points, (C, N, 1)."""
        with np.errstate(all="ignore"):
            rows = [np.broadcast_to(f(*points.T, *[0.0] * (4 - points.shape[1])), len(points))
                    for f in _compiled(self.expression, channels.all)]
        return np.stack(rows).astype(np.float64)[..., None]


def symbols() -> dict[str, Any]:
    """The real symbols t, x, y, z."""
    import sympy

    return {name: sympy.Symbol(name, real=True) for name in LETTERS}


@lru_cache(maxsize=256)
def _compiled(expression, names):
    import sympy

    known = symbols()

    def derivative(name):
        parts = name.split("+") if name else [""]
        return sum((sympy.diff(expression, *[known[letter] for letter in part]) if part else expression)
                   for part in parts)

    return [sympy.lambdify(list(known.values()), derivative(name), [_special(), "numpy"]) for name in names]


class Spline:
    """A field (components, *grid), constant in time, as a product of quintic splines (cubic on few points)."""

    def __init__(self, values: np.ndarray, grid: Grid):
        from scipy.interpolate import make_interp_spline

        self.grid, self.values = grid, values
        table, self.knots, self.degrees = np.moveaxis(values, 0, -1), [], []
        for k in range(grid.ndim):
            x = grid.points(k)
            degree = 5 if len(x) >= 8 else min(3, len(x) - 1)
            if grid.periodic[k]:
                x = np.append(x, x[0] + grid.lengths[k])
                table = np.concatenate([table, np.take(table, [0], k)], k)
            made = make_interp_spline(x, table, degree, axis=k, bc_type="periodic" if grid.periodic[k] else None)
            table = np.moveaxis(made.c, 0, k)
            self.knots.append(made.t)
            self.degrees.append(degree)
        self.table = table

    def __call__(self, points, channels) -> np.ndarray:
        """Channels at points (N, 1 + axes): (C, N, components)."""
        return np.stack([sum(self._derivative(points, part) for part in (name.split("+") if name else [""]))
                         for name in channels.all])

    @cached_property
    def _spline(self):
        from scipy.interpolate import NdBSpline

        return NdBSpline(tuple(self.knots), np.ascontiguousarray(self.table), tuple(self.degrees))

    def _derivative(self, points, letters):
        if "t" in letters:
            return np.zeros((len(points), self.table.shape[-1]))
        x = points[:, 1:].copy()
        for k, periodic in enumerate(self.grid.periodic):
            if periodic:
                first = self.grid.points(k)[0]
                x[:, k] = first + np.mod(x[:, k] - first, self.grid.lengths[k])
        return self._spline(x, nu=tuple(letters.count(n) for n in self.grid.names))


class Sum:
    """Several fields added."""

    def __init__(self, *fields):
        self.fields = fields

    def __call__(self, points, channels):
        """The sum of their channels."""
        total = self.fields[0](points, channels)
        for field in self.fields[1:]:
            total = total + field(points, channels)
        return total


class Side:
    """Fields of single components side by side."""

    def __init__(self, fields):
        self.fields = fields

    def __call__(self, points, channels):
        """Their channels, (C, N, components)."""
        return np.concatenate([f(points, channels) for f in self.fields], -1)


def initial_field(u0: Any, grid: Grid, names):
    """u0 as a field: a formula in x, y, z, a list of these (one a component), or an array as `fd.solve` takes it."""
    if isinstance(u0, str) or (isinstance(u0, dict | list | tuple) and all(isinstance(v, str) for v in _listed(u0))):
        texts = [u0] if isinstance(u0, str) else [u0[n] for n in names] if isinstance(u0, dict) else list(u0)
        if len(texts) != len(names):
            raise ValueError(f"u0 has {len(texts)} formulas, but the components are {', '.join(names)}")
        return Side([Symbolic(Expression(text, grid.names).sympy()) for text in texts])
    given: Any = u0
    values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, np.float64)
    if values.shape == grid.shape and len(names) == 1:
        values = values[None]
    if values.shape != (len(names), *grid.shape):
        wanted = f"{len(names)}, *{grid.shape}" if len(names) > 1 else ", ".join(map(str, grid.shape))
        raise ValueError(f"u0 is a formula such as \"sin(pi*x)\" or an array of shape ({wanted}), not of shape "
                         f"{values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("u0 must be finite everywhere")
    return Spline(values, grid)


def _listed(value):
    return value.values() if isinstance(value, dict) else value


def corner(distance, jump, slope, D):
    """What a wall does that begins at odds with the initial values: a SymPy expression of t.

    The wall's value minus the initial one is `jump` at t = 0 and has the `slope` beyond what the equation gives; at a
    `distance` from it, with eta = distance/(2 sqrt(D t)), on a half line:

        jump erfc(eta) + slope t ((1 + 2 eta^2) erfc(eta) - 2 eta exp(-eta^2)/sqrt(pi))

    Both solve the heat equation exactly. Source: Carslaw and Jaeger, Conduction of Heat in Solids, 2nd ed., section
    2.5, eqs. (1) and (5).
    """
    import sympy

    t = symbols()["t"]
    eta = distance / (2 * sympy.sqrt(D * t))
    second = (1 + 2 * eta**2) * sympy.erfc(eta) - 2 * eta * sympy.exp(-(eta**2)) / sympy.sqrt(sympy.pi)
    return jump * sympy.erfc(eta) + slope * t * second


def smoothed(distance, slope, D):
    """What diffusion adds to an initial kink slope |distance|: 2 slope sqrt(D t) ierfc(distance/(2 sqrt(D t))).

    ierfc(eta) = exp(-eta^2)/sqrt(pi) - eta erfc(eta). Source: Carslaw and Jaeger, as above, section 2.5, eq. (7).
    """
    import sympy

    t = symbols()["t"]
    eta = distance / (2 * sympy.sqrt(D * t))
    return 2 * slope * sympy.sqrt(D * t) * (sympy.exp(-(eta**2)) / sympy.sqrt(sympy.pi) - eta * sympy.erfc(eta))


__all__ = ["LETTERS", "Side", "Spline", "Sum", "Symbolic", "corner", "initial_field", "smoothed", "symbols"]
