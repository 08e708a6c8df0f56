"""Coefficients as users give them: numbers, numbers of each sample, arrays over the grid, formulas of place."""

import ast
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np

from fastdiff.boundary import as_numbers
from fastdiff.equations._linear import wall_values
from fastdiff.grid import Grid


def is_formula(value) -> bool:
    """Whether this is an expression or a function."""
    return isinstance(value, str) or callable(value)


def uses(value, *names: str) -> bool:
    """Whether a formula depends on one of some names."""
    if isinstance(value, str):
        return bool(set(names) & {node.id for node in ast.walk(_parsed(value)) if isinstance(node, ast.Name)})
    return callable(value) and bool(set(names) & set(signature(value).parameters))


def _parsed(text):
    try:
        return ast.parse(text.replace("^", "**").strip() or "0", mode="eval")
    except (SyntaxError, ValueError):
        return ast.parse("0")  # refused where it is read as a formula


def in_space(value: Any, grid: Grid) -> bool:
    """Whether a coefficient varies over the grid (or may): a formula, or an array with the grid's axes."""
    if is_formula(value):
        return True
    shape = np.shape(value)
    return len(shape) == grid.ndim + 1 or (len(shape) == grid.ndim and shape == grid.shape)


def samples_in(value: Any, grid: Grid | None) -> int:
    """Samples that a coefficient speaks of; 1 if it is the same for all, or if that takes a grid to know."""
    if is_formula(value) or isinstance(value, tuple | list):
        return 1
    shape = np.shape(value)
    if len(shape) > 1:
        return shape[0] if grid is not None and len(shape) == grid.ndim + 1 else 1
    if grid is not None and shape == grid.shape:
        return 1
    return shape[0] if shape else 1


def over_grid(value: Any, grid: Grid, what: str, batch: int = 1, low: float = -np.inf) -> np.ndarray:
    """A coefficient as (1 or batch, *grid or ones) float64; refuses what does not fit, is not finite or below `low`."""
    if is_formula(value):
        numbers = _evaluated(value, grid, what)[None]
    else:
        numbers = shaped(as_numbers(value, what), grid, what, batch)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what} must be finite" + _where(~np.isfinite(numbers), value))
    if (numbers < low).any():
        raise ValueError(f"{what} must be at least {low:g}, but is {numbers.min():g}" + _where(numbers < low, value))
    return numbers


def _where(bad, value):
    place = tuple(map(int, np.argwhere(bad)[0][1:]))
    return f" at {place}" + (f" ({value!r})" if isinstance(value, str) else "")


def _evaluated(value: str | Callable, grid, what):
    from fastdiff.expressions import formula

    f = formula(value, grid.names)
    values = f.host(**{name: x for name, x in zip(grid.names, grid.coordinates()) if name in f.uses})
    return np.broadcast_to(np.asarray(values, np.float64), grid.shape)


def shaped(numbers, grid: Grid, what: str, batch: int):
    """A coefficient, NumPy array or torch tensor, as (b, *grid) or (b, ones), b = 1 or the batch."""
    shape = tuple(numbers.shape)
    if len(shape) <= 1 and shape == grid.shape == (batch,) and batch > 1:
        raise ValueError(f"{what} has {batch} numbers, which could be one a sample or one a point of the grid: give it "
                         f"the shape ({batch}, 1) or (1, {batch})")
    if shape == grid.shape:
        return numbers[None]
    if len(shape) == grid.ndim + 1 and all(n in (1, m) for n, m in zip(shape[1:], grid.shape)):
        whole = numbers
    elif len(shape) <= 1:
        whole = numbers.reshape(-1, *[1] * grid.ndim)
    else:
        raise ValueError(f"{what} has shape {shape}: expected a number, {grid.shape} over the grid, ({batch}, "
                         f"{', '.join(map(str, grid.shape))}) with the batch, or ({batch},) one a sample")
    if len(whole) not in (1, batch):
        raise ValueError(f"{what} is given for {len(whole)} samples, but there are {batch}")
    return whole


def at_wall_of(value: Any, numbers: np.ndarray, grid: Grid, axis: int, end: int) -> np.ndarray:
    """A coefficient, over the grid `numbers` (batch, *grid), on a wall, (batch or 1, *face).

    With cells an expression says it; numbers at their centres are continued to the wall.
    """
    if grid.centering == "nodes" or not is_formula(value):
        return wall_values(numbers, grid, axis, end)
    from fastdiff.expressions import formula

    f, places = formula(value, grid.names), {}
    for k, (name, x) in enumerate(zip(grid.names, grid.coordinates())):
        places[name] = x.take([0], k) * 0 + (grid.low, grid.high)[end][axis] if k == axis else x
    values = np.asarray(f.host(**{name: x for name, x in places.items() if name in f.uses}), np.float64)
    return np.broadcast_to(values, [1 if k == axis else n for k, n in enumerate(grid.shape)]).squeeze(axis)[None]


def timed_source(text: Any, grid: Grid, dt: float, dtype) -> Any:
    """The rule of a source that depends on time: an expression, evaluated at each step's own time."""
    from fastdiff.equations._rules import CURVED, places_of, rule_module
    from fastdiff.expressions import Expression
    from fastdiff.kernels._fields import Cells, Clock

    if not isinstance(text, str):
        raise ValueError("a source that depends on the time is an expression, such as \"sin(t)*exp(-x**2)\", not a "
                         "function")
    tree, new = Expression(text, ("t", *grid.names))._tree, CURVED

    class Rename(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(new.get(node.id, node.id), node.ctx)

    module, dtype = rule_module((ast.unparse(Rename().visit(tree)),), 0, (False,)), np.dtype(dtype)
    with np.errstate(all="ignore"):
        found = module.fields(dt, *places_of(grid))
    cells = [Cells(np.broadcast_to(np.asarray(f, np.float64), grid.shape), grid.ndim, dtype) for f in found]
    numbers = [dtype.type(h) for h in module.numbers(dt)]
    if not all(np.isfinite(c.values).all() for c in cells) or not np.isfinite(numbers).all():
        raise ValueError(f"the source {text!r} is not finite at some point of the grid")
    return module.Line(*numbers, *cells, Clock(), dtype.type(2), dtype.type(4))
