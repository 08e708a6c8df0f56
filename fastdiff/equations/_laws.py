"""Coefficients that depend on the field: an expression such as "u**2" becomes one small module with a compiled law.

Written, cached and loaded as reactions are (`_rules.py`); what depends on parameters alone is computed beforehand, and
what depends on the place too, as numbers of every face (of a diffusivity) or cell (of a capacity).
"""

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from fastdiff.equations._base import parameter
from fastdiff.equations._rules import (
    AXES,
    CURVED,
    _host,
    _plain,
    _stamp,
    _symbols,
    _Writer,
    canonical,
    check_places,
    digest,
    places_of,
)
from fastdiff.expressions import Expression, module_for
from fastdiff.grid import Grid
from fastdiff.kernels._fields import Cells

_HOLDS = ("Law", "numbers", "fields", "host", "VARIES", "FIELDS")


class FieldLaw:
    """A formula in u, the place and parameters: `law` is its compiled form, `host` its value for NumPy arrays.

    placed   whether it depends on the place
    """

    def __init__(self, text: str, parameters: Mapping[str, Any], what: str):
        self.text, self.what, self.names = text, what, ("u", *parameters)
        curved = [name for name in CURVED if name not in parameters]
        formula = Expression(text, (*self.names, "t", *AXES, *curved))
        if "t" in formula.uses:
            raise ValueError(f"{what} {text!r} depends on u and on t: it may depend on u, the place and parameters")
        self.values = [parameter(value, f"parameter {name}") for name, value in parameters.items()]
        self.source = canonical([text], ("u",), tuple(parameters))[0]
        self.module = _module(self.source, len(parameters))
        self.placed = bool(formula.uses & {*AXES, *curved})

    def law(self, batch: int, dtype, grid: Grid | None = None, axis: int | None = None) -> Any:
        """The compiled law, for `batch` samples; of a placed one for the faces of an axis of a grid, or its cells."""
        dtype = np.dtype(dtype)
        numbers = self.module.numbers(1.0, *self.values)
        if not all(np.isfinite(n).all() for n in numbers):
            raise ValueError(f"{self.what} {self.text!r} has a coefficient that is not finite")
        return self.module.Law(*(np.ascontiguousarray(np.broadcast_to(n, batch), dtype) if varies else dtype.type(n)
                                 for n, varies in zip(numbers, self.module.VARIES)),
                               *self._fields(grid, axis, dtype), dtype.type(0))

    def _fields(self, grid, axis, dtype):
        if not self.module.FIELDS:
            return []
        assert grid is not None
        check_places([self.text], self.names, grid, self.what)
        lines = [grid.faces(k) if k == axis else grid.points(k) for k in range(grid.ndim)]
        places = places_of(grid, np.meshgrid(*lines, indexing="ij", sparse=True))
        with np.errstate(all="ignore"):
            found = self.module.fields(1.0, *places, *(v.reshape(-1, *[1] * grid.ndim) for v in self.values))
        cells = []
        for f in found:
            f = np.asarray(f, np.float64)
            f = np.array(np.broadcast_to(f, (f.shape[0] if f.ndim > grid.ndim else 1, *map(len, lines))))
            if axis is not None:
                _beyond(f, grid, axis)
            if not np.isfinite(f).all():
                raise ValueError(f"{self.what} {self.text!r} is not finite at some point of the grid")
            cells.append(Cells(f, grid.ndim, dtype))
        return cells

    def host(self, u, grid: Grid | None = None) -> np.ndarray:
        """Its value at numbers u (n,), for every sample: (1 or samples, n), or (1 or samples, n, cells) if placed."""
        u, more = np.asarray(u, np.float64), (1,) if self.placed else ()
        places = [0.0] * 3
        if self.placed and grid is not None:
            check_places([self.text], self.names, grid, self.what)
            places = [np.broadcast_to(x, grid.shape).reshape(1, 1, -1) for x in places_of(grid)]
        with np.errstate(all="ignore"):
            (value,) = self.module.host(u.reshape(1, -1, *more), *(v.reshape(-1, 1, *more) for v in self.values),
                                        *places)
        return np.broadcast_to(np.asarray(value, np.float64), np.broadcast_shapes(np.shape(value), (1, len(u), *more)))


def _beyond(f, grid, axis):
    """Numbers of faces half a cell outside: with nodes those inside are continued, around an axis they repeat."""
    f = np.moveaxis(f, axis + 1, 0)
    if grid.periodic[axis]:
        f[0] = f[-1]
    elif grid.centering == "nodes":
        f[0], f[-1] = 2 * f[0] - f[1], 2 * f[-1] - f[-2]


@lru_cache(maxsize=256)
def slope(source: str, parameters: int, by: str = "u0") -> str:
    """The derivative of a law in canonical names by u0 or a parameter, as a formula."""
    import sympy

    value = sympy.sympify(Expression(source, ("u0", *map(str, _symbols("a", parameters)))).sympy())
    return str(_plain(sympy.diff(value, sympy.Symbol(by, real=True))))


def compiled_law(source: str, values, batch: int, dtype) -> Any:
    """The compiled law of a formula in canonical names, for parameters of (1,) or (batch,) numbers each."""
    module, dtype = _module(source, len(values)), np.dtype(dtype)
    numbers = module.numbers(1.0, *values)
    if not all(np.isfinite(n).all() for n in numbers):
        raise ValueError(f"the law {source!r} has a coefficient that is not finite")
    return module.Law(*(np.ascontiguousarray(np.broadcast_to(n, batch), dtype) if varies else dtype.type(n)
                        for n, varies in zip(numbers, module.VARIES)), dtype.type(0))


def host_law(source: str, values, u) -> np.ndarray:
    """A law's values at numbers u (n,), for every sample: (1 or samples, n)."""
    with np.errstate(all="ignore"):
        (value,) = _module(source, len(values)).host(np.asarray(u)[None], *(v[:, None] for v in values),
                                                    0.0, 0.0, 0.0)
    return np.broadcast_to(np.asarray(value, np.float64), np.broadcast_shapes(np.shape(value), (1, len(u))))


@lru_cache(maxsize=256)
def _module(source: str, parameters: int) -> ModuleType:
    key = f"{_stamp()} {source} {parameters} 3"
    return module_for("law", key, _HOLDS, lambda: _write(source, parameters, digest(key)))


def _write(source, parameters, tag) -> str:
    import sympy

    a, dt = _symbols("a", parameters), sympy.Symbol("dt", positive=True)
    value = sympy.sympify(Expression(source, ("u0", *map(str, a), *AXES)).sympy())
    if value.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        raise ValueError(f"{source!r} is not a finite real number")
    writer = _Writer(a, dt)
    body, (text,) = writer.body([value], "x")
    numbers, fields = list(writer.numbers.items()), list(writer.fields.items())
    functions, names = ", ".join(sorted(writer.functions)), [name for _, name in numbers] + [n for _, n in fields]
    lines = ['"""A law, written by fastdiff."""', "", "from typing import Any, NamedTuple", "", "import numpy", ""]
    lines += [f"from fastdiff.kernels._math import {functions}", ""] if functions else []
    lines += ["from fastdiff.kernels._fields import here, next0, next1, next2", ""] if fields else []
    lines += ["import scipy.special", ""] if value.has(sympy.erf) else []
    lines += [f"VARIES = {tuple(bool(e.free_symbols) for e, _ in numbers)}", f"FIELDS = {len(fields)}", "", "",
              f"class Law_{tag}(NamedTuple):", *(f"    {name}: Any" for name in names), "    none: Any"]
    shapes = (("value", ""),) if not fields else (("inside", "here"), ("below", "here"), ("above0", "next0"),
                                                  ("above1", "next1"), ("above2", "next2"))
    for name, read in shapes:
        lines += ["", "    @staticmethod", f"    def {name}(p, u{', at' if read else ''}):", "        u0 = u"]
        own = [*(f"        {line}" for line in body), f"        return {text or 'u0 - u0'}"]
        lines += [line.replace("here(", f"{read}(") for line in own]
    lines += ["", "", f"Law = Law_{tag}"]
    lines += _host("numbers", ["dt", *map(str, a)], [e for e, _ in numbers])
    lines += _host("fields", ["dt", *AXES, *map(str, a)], [e for e, _ in fields])
    lines += _host("host", ["u0", *map(str, a), *AXES], [value])
    return "\n".join(lines) + "\n"
