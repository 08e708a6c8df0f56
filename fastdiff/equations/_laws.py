"""Coefficients that depend on the field: an expression such as "u**2" becomes one small module with a compiled law.

Written, cached and loaded as reactions are (`_rules.py`); what depends on parameters alone is computed beforehand.
"""

from collections.abc import Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from fastdiff.equations._base import parameter
from fastdiff.equations._rules import _host, _plain, _stamp, _symbols, _Writer, canonical, digest
from fastdiff.expressions import Expression, module_for

_HOLDS = ("Law", "numbers", "host", "VARIES")


class FieldLaw:
    """A formula in u and parameters: `law` is its compiled form, `host` its value for NumPy arrays."""

    def __init__(self, text: str, parameters: Mapping[str, Any], what: str):
        self.text, self.what = text, what
        formula = Expression(text, ("u", *parameters, "t", "x", "y", "z"))
        if formula.uses & {"t", "x", "y", "z"}:
            raise ValueError(f"{what} {text!r} depends on u and on {', '.join(sorted(formula.uses - {'u'}))}: it may "
                             "depend on u and parameters, or on place alone")
        self.values = [parameter(value, f"parameter {name}") for name, value in parameters.items()]
        self.source = canonical([text], ("u",), tuple(parameters))[0]
        self.module = _module(self.source, len(parameters))

    def law(self, batch: int, dtype) -> Any:
        """The compiled law, for `batch` samples."""
        return compiled_law(self.source, self.values, batch, dtype)

    def host(self, u) -> np.ndarray:
        """Its value at numbers u (n,), for every sample: (1 or samples, n)."""
        return host_law(self.source, self.values, u)


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
        (value,) = _module(source, len(values)).host(np.asarray(u)[None], *(v[:, None] for v in values))
    return np.broadcast_to(np.asarray(value, np.float64), np.broadcast_shapes(np.shape(value), (1, len(u))))


@lru_cache(maxsize=256)
def _module(source: str, parameters: int) -> ModuleType:
    key = f"{_stamp()} {source} {parameters} 2"
    return module_for("law", key, _HOLDS, lambda: _write(source, parameters, digest(key)))


def _write(source, parameters, tag) -> str:
    import sympy

    a, dt = _symbols("a", parameters), sympy.Symbol("dt", positive=True)
    value = sympy.sympify(Expression(source, ("u0", *map(str, a))).sympy())
    if value.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        raise ValueError(f"{source!r} is not a finite real number")
    writer = _Writer(a, dt)
    body, (text,) = writer.body([value], "x")
    numbers = list(writer.numbers.items())
    functions = ", ".join(sorted(writer.functions))
    lines = ['"""A law, written by fastdiff."""', "", "from typing import Any, NamedTuple", "", "import numpy", ""]
    lines += [f"from fastdiff.kernels._math import {functions}", ""] if functions else []
    lines += [f"VARIES = {tuple(bool(e.free_symbols) for e, _ in numbers)}", "", "", f"class Law_{tag}(NamedTuple):"]
    lines += [f"    {name}: Any" for _, name in numbers] + ["    none: Any", "", "    @staticmethod",
                                                           "    def value(p, u):", "        u0 = u"]
    lines += [*(f"        {line}" for line in body), f"        return {text or 'u0 - u0'}", "", "",
              f"Law = Law_{tag}"]
    lines += _host("numbers", ["dt", *map(str, a)], [e for e, _ in numbers])
    lines += _host("host", ["u0", *map(str, a)], [value])
    return "\n".join(lines) + "\n"
