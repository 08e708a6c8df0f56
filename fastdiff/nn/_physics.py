"""The residual of an equation, of its boundary and of its initial values, from the objects that `fd.solve` takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastdiff.boundary import Dirichlet, Flux, Robin, conditions
from fastdiff.expressions import Expression, formula
from fastdiff.grid import Grid

_TORCH = {"exp": torch.exp, "log": torch.log, "sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "sinh": torch.sinh,
          "cosh": torch.cosh, "tanh": torch.tanh, "sqrt": torch.sqrt, "Abs": torch.abs, "abs": torch.abs,
          "Heaviside": lambda v, *_: torch.heaviside(v, torch.full_like(v, 0.5)),
          "Max": lambda *v: _fold(torch.maximum, v), "Min": lambda *v: _fold(torch.minimum, v)}


def _fold(function, values):
    like = next(v for v in values if isinstance(v, torch.Tensor))
    first, *rest = (v if isinstance(v, torch.Tensor) else torch.full_like(like, float(v)) for v in values)
    for value in rest:
        first = function(first, value)
    return first


@dataclass(frozen=True)
class Physics:
    """An equation as residuals.

    names       components
    values      numbers that may be unknown: {name: value}
    residual    of (jet, places, values): (N, components); places are {"t": (N,), "x": (N,), ...}
    linear      of (values): the operator L of a single linear component, {"t": 1, "xx": -D, ...}, or None
    second      the second derivatives it needs
    diffusion   D of each component along the first axis, for what begins at odds with the walls
    """

    names: tuple[str, ...]
    values: dict[str, float]
    residual: Callable[..., Any]
    second: tuple[str, ...]
    linear: Callable[..., dict[str, Any]] | None = None
    diffusion: tuple[float, ...] = (1.0,)


def torch_function(expression, names):
    """A SymPy expression as a function of torch tensors and numbers, by name."""
    import sympy

    known = [sympy.Symbol(n, real=True) for n in names]
    return sympy.lambdify(known, expression, modules=[_TORCH, "math"])


def physics_of(equation, grid: Grid) -> Physics:
    """The residual of an equation on a grid's domain."""
    geometry = getattr(grid, "geometry", "cartesian")
    if geometry != "cartesian":
        raise ValueError(f"a PINN works in Cartesian coordinates: the grid is {geometry}")
    if hasattr(equation, "batch") and equation.batch() != 1:
        raise ValueError(f"a PINN solves one problem at a time, but the parameters are given for {equation.batch()} "
                         "samples")
    name = type(equation).__name__
    equation = getattr(equation, "system", equation)  # of a named equation: its reactions as strings
    if name == "Heat":
        return _heat(equation, grid)
    if name == "AdvectionDiffusion":
        return _formula_heat(equation, grid, equation.diffusivity, equation.source, None, equation.velocity)
    if name == "Burgers":
        return _burgers(equation, grid)
    if hasattr(equation, "reaction") and hasattr(equation, "diffusivities"):
        values = {k: _one(v) for k, v in equation.parameters.items()}
        return _reaction(tuple(equation.names), equation.diffusivities(grid)[0], equation.reaction, values, grid)
    raise TypeError(f"no residual is known for {name}: a PINN takes fd.Heat, fd.AdvectionDiffusion, "
                    "fd.ReactionDiffusion and the named ones, fd.Burgers; or write fd.nn.Residual(...)")


def _one(value):
    return float(np.asarray(value, np.float64).reshape(-1)[0])


def _second(D, grid):
    """One collapsed channel if all axes diffuse alike, else one an axis; and which."""
    if (D == D[:, :1]).all():
        return ("+".join(n + n for n in grid.names),)
    return tuple(n + n for n in grid.names)


def _spread(jet, D, second, c):
    """sum over axes of D u_ii of component c."""
    return sum(D[k] * jet[name][:, c] for k, name in enumerate(second))


def _heat(equation, grid):
    formulas = [equation.diffusivity, getattr(equation, "source", None), getattr(equation, "capacity", None)]
    if any(v is not None and not _is_number(v) for v in formulas) or formulas[1] is not None:
        return _formula_heat(equation, grid, *formulas)
    D = equation.diffusivities(grid)[0]
    second = _second(D, grid)
    isotropic = len(second) == 1
    values = {"diffusivity": float(D[0, 0])} if isotropic else {f"D{n}": float(D[0, k])
                                                                for k, n in enumerate(grid.names)}

    def numbers(values):
        return [values["diffusivity"]] if isotropic else [values[f"D{n}"] for n in grid.names]

    def residual(jet, places, values):
        return (jet.t[:, 0] - _spread(jet, numbers(values), second, 0))[:, None]

    def linear(values):
        rates = numbers(values) * (grid.ndim if isotropic else 1)
        return {"t": 1.0, **{n + n: -rates[k] for k, n in enumerate(grid.names)}}

    return Physics(("u",), values, residual, second, linear, (float(D[0, 0]),))


def _is_number(value):
    if isinstance(value, tuple | list):
        return all(map(_is_number, value))
    return not isinstance(value, str) and not callable(value) and np.size(value) == 1


def _formula_heat(equation, grid, D, source, capacity, velocity=0.0):
    """R(u) u_t = div(D(u, x) grad u - v u) + f(x, t), from formulas: D u_ii + D_i u_i + D_u u_i^2 along each axis."""
    import sympy

    parameters = {k: _one(v) for k, v in (getattr(equation, "parameters", None) or {}).items()}
    known = ("u", *parameters, "t", *grid.names)

    def read(value, what):
        if value is None or _is_number(value):
            return sympy.Float(0.0 if value is None else _one(value))
        if not isinstance(value, str):
            raise ValueError(f"a PINN takes {what} as a number or a formula, not {type(value).__name__}")
        return Expression(value, known).sympy()

    axes = D if isinstance(D, tuple | list) else [D] * grid.ndim
    made = [read(v, "the diffusivity") for v in axes]
    symbol = lambda name: sympy.Symbol(name, real=True)
    parts = [[torch_function(e, known) for e in (d, sympy.diff(d, symbol(n)), sympy.diff(d, symbol("u")))]
             for d, n in zip(made, grid.names)]
    flow = [read(v, "the velocity") for v in (velocity if isinstance(velocity, tuple | list) else [velocity])]
    flow = flow + flow[:1] * (grid.ndim - len(flow))
    carried = [[torch_function(e, known) for e in (v, sympy.diff(v, symbol(n)))] for v, n in zip(flow, grid.names)]
    f = torch_function(read(source, "the source"), known)
    R = torch_function(sympy.Float(1.0) if capacity is None else read(capacity, "the capacity"), known)

    def residual(jet, places, values):
        given = [jet.value[:, 0], *(values[p] for p in parameters), places["t"], *(places[n] for n in grid.names)]
        r = R(*given) * jet.t[:, 0] - f(*given)
        for n, (d, along, by_u), (v, spread) in zip(grid.names, parts, carried):
            slope = jet[n][:, 0]
            r = r + v(*given) * slope + spread(*given) * jet.value[:, 0]
            r = r - d(*given) * jet[n + n][:, 0] - along(*given) * slope - by_u(*given) * slope**2
        return r[:, None]

    size = sum(abs(float(m.subs(dict.fromkeys(m.free_symbols, 0.5)))) for m in made[:1])
    return Physics(("u",), parameters, residual, tuple(n + n for n in grid.names), None, (size or 1.0,))


def _reaction(names, D, reaction, parameters, grid):
    second = _second(D, grid)
    letters = ("t", *grid.names)
    known = (*names, *parameters, *letters)
    terms = [torch_function(Expression(_text(reaction[n]), known).sympy(), known) for n in names]
    isotropic = len(second) == 1
    rates = {("diffusivity" if len(names) == 1 and isotropic else
              f"D_{n}" if isotropic else f"D_{n}_{axis}"): float(D[c, k])
             for c, n in enumerate(names) for k, axis in enumerate(grid.names[: 1 if isotropic else None])}
    keys = list(rates)
    per = len(keys) // len(names)

    def residual(jet, places, values):
        u = [jet.value[:, c] for c in range(len(names))]
        given = [*u, *(values[p] for p in parameters), *(places[k] for k in letters)]
        return torch.stack([jet.t[:, c] - _spread(jet, [values[k] for k in keys[c * per : (c + 1) * per]], second, c)
                            - terms[c](*given) for c in range(len(names))], 1)

    return Physics(names, {**rates, **parameters}, residual, second, None, tuple(float(d[0]) for d in D))


def _text(value):
    return value if isinstance(value, str) else repr(float(value))


def _burgers(equation, grid):
    D = equation.diffusivities(grid)[0]
    if grid.ndim != 1 or len(D) != 1:
        raise ValueError(f"a PINN solves Burgers' equation in one dimension, not on {grid.ndim} axes")

    def residual(jet, places, values):
        return jet.t + jet.value * jet.x - values["nu"] * jet.xx

    return Physics(tuple(equation.names), {"nu": float(D[0, 0])}, residual, ("xx",), None, (float(D[0, 0]),))


@dataclass(frozen=True)
class Residual:
    """An equation of your own, in place of one of fastdiff's, for `fd.nn.PINN`.

        fd.nn.Residual(lambda u, u_t, u_x, u_xx: u_t + u*u_x - 0.01*u_xx)

    function    its arguments say what it needs: u, u_t, u_xx, ..., t, x, y, z, and names of `parameters`
    parameters  numbers by name, which may be unknown
    reference   an equation that `fd.solve` takes, to compare with; optional
    """

    function: Callable[..., Any]
    parameters: Any = None
    reference: Any = None
    diffusion: float = 1.0

    names = ("u",)

    def physics(self, grid: Grid) -> Physics:
        """The residual on a grid's domain."""
        import inspect

        wanted = list(inspect.signature(self.function).parameters)
        values = {k: float(v) for k, v in (self.parameters or {}).items()}
        letters = ("t", *grid.names)
        for name in wanted:
            if name not in ("u", *letters, *values) and not (name.startswith("u_") and set(name[2:]) <= set(letters)):
                raise ValueError(f"unknown argument {name!r} of a residual; known: u, u_t, u_x, u_xx, ..., "
                                 f"{', '.join((*letters, *values))}")
        second = tuple(n[2:] for n in wanted if len(n) == 4)

        def residual(jet, places, values):
            given = {"u": jet.value, **{k: v[:, None] for k, v in places.items()}, **values}
            found = {n: given[n] if n in given else jet[n[2:]] for n in wanted}
            return self.function(**{n: v[:, None] if v is not None and getattr(v, "ndim", 0) == 1 else v
                                    for n, v in found.items()})

        return Physics(("u",), values, residual, second, None, (self.diffusion,))


# -- boundaries --------------------------------------------------------------------------------------------------------


def value_of(given, points: np.ndarray, grid: Grid, axis: int) -> np.ndarray:
    """The value g of a condition at points (N, 1 + axes) of a wall: a number, an array over the face, a formula."""
    if isinstance(given, str) or callable(given):
        made = formula(given)
        places = dict(zip(("t", *grid.names), points.T))
        if "u" in made.uses:
            raise ValueError(f"the boundary value {made.text!r} depends on u: a PINN takes values of t and place")
        return np.broadcast_to(np.asarray(made.host(**{k: places.get(k, 0.0) for k in made.uses}), float), len(points))
    values = np.asarray(given, np.float64)
    if values.size == 1:
        return np.full(len(points), float(values.reshape(-1)[0]))
    from scipy.interpolate import RegularGridInterpolator

    others = [k for k in range(grid.ndim) if k != axis]
    table = values.reshape([grid.shape[k] for k in others])
    outside: Any = None  # carried on beyond the last points
    look = RegularGridInterpolator([grid.points(k) for k in others], table, bounds_error=False, fill_value=outside)
    return look(points[:, [1 + k for k in others]])


def walls(boundary, grid: Grid, names) -> dict[tuple[int, int, int], Any]:
    """The condition of every bounded side (component, axis, end); no flux where none is given."""
    from fastdiff.boundary import Neumann

    given = conditions(boundary, grid, names)
    return {(c, axis, end): given.get((c, axis, end), Neumann(0.0)) for c in range(len(names))
            for axis in range(grid.ndim) if not grid.periodic[axis] for end in (0, 1)}


def wall_residual(condition, jet, letter: str, end: int, g, c: int, D: Any):
    """What a wall's condition lacks to be met, (N,)."""
    u = jet.value[:, c]
    if isinstance(condition, Dirichlet):
        return u - g
    slope = jet[letter][:, c] if end else -jet[letter][:, c]
    if isinstance(condition, Flux):
        return -D * slope - g
    if isinstance(condition, Robin):
        return _one(condition.a) * u + _one(condition.b) * slope - g
    return slope - g


__all__ = ["Physics", "Residual", "physics_of", "torch_function", "value_of", "wall_residual", "walls"]
