"""Activation functions: values and slopes, of whole rows, with vector code; relu, gelu, silu and tanh.

    relu(x) = max(x, 0)      gelu(x) = x/2 (1 + erf(x/sqrt 2))      silu(x) = x / (1 + exp(-x))      tanh(x)

gelu is the exact one (Hendrycks and Gimpel, arXiv:1606.08415, eq. 1), as torch's default. relu's slope at 0 is 0.

A slope is found from what a forward pass keeps (`KEEPS`): the value itself where that is enough, which saves memory,
and what went in otherwise.
"""

import math
from typing import Any

import numpy as np
from numba import types

from fastdiff.kernels._jit import FASTMATH, inner
from fastdiff.kernels._math import erf, exp, select, sigmoid, tanh
from fastdiff.kernels._part import overload_part

CODES = {None: 0, "relu": 1, "gelu": 2, "silu": 3, "tanh": 4}
KEEPS_INPUT = ("gelu", "silu")  # the others' slopes follow from their values
_OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy"}


def code_of(name) -> int:
    """The number of an activation; an unknown name lists the known ones."""
    if name not in CODES:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(map(str, CODES))}")
    return CODES[name]


def values(name, x) -> Any:
    """The activation of an array, in plain NumPy."""
    x = np.asarray(x)
    if name is None:
        return x
    return {"relu": lambda: np.maximum(x, 0), "gelu": lambda: x * (0.5 * (1 + erf(x * math.sqrt(0.5)))),
            "silu": lambda: x * sigmoid(x), "tanh": lambda: np.tanh(x)}[name]()


def slopes(name, x) -> Any:
    """The derivative at x of an array, in plain NumPy."""
    x = np.asarray(x)
    if name is None:
        return np.ones_like(x)
    if name == "gelu":
        return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    if name == "silu":
        return sigmoid(x) * (1 + x * (1 - sigmoid(x)))
    return (x > 0).astype(x.dtype) if name == "relu" else 1 - np.tanh(x) ** 2


def kept(name, x) -> Any:
    """What `slopes_kept` needs, from what goes into an activation."""
    return x if name in KEEPS_INPUT else values(name, x)


def slopes_kept(name, x) -> Any:
    """The derivative from what was kept."""
    return 1 - x * x if name == "tanh" else slopes(name, x)


# -- one number, compiled ----------------------------------------------------------------------------------------------


def relu(x) -> Any:
    """max(x, 0); NaN stays NaN."""
    return np.maximum(x, x - x)


@overload_part(relu, **_OPTIONS)
def _relu_compiled(x):
    zero = _typed(x)(0)
    return lambda x: select(x > zero, x, select(x <= zero, zero, x))  # NaN stays NaN


def _typed(x):
    return np.float32 if x == types.float32 else np.float64


def gelu(x) -> Any:
    """x/2 (1 + erf(x/sqrt 2))."""
    return values("gelu", x)


@overload_part(gelu, **_OPTIONS)
def _gelu_compiled(x):
    F = _typed(x)
    half, one, root = F(0.5), F(1), F(math.sqrt(0.5))
    return lambda x: x * (half * (one + erf(x * root)))


def silu(x) -> Any:
    """x / (1 + exp(-x))."""
    return x * sigmoid(x)


@overload_part(silu, **_OPTIONS)
def _silu_compiled(x):
    return lambda x: x * sigmoid(x)


def relu_slope(x) -> Any:
    """The derivative of relu at x."""
    return slopes("relu", x)


@overload_part(relu_slope, **_OPTIONS)
def _relu_slope_compiled(x):
    F = _typed(x)
    zero, one = F(0), F(1)
    return lambda x: select(x > zero, one, zero)


def gelu_slope(x) -> Any:
    """The derivative of gelu at x."""
    return slopes("gelu", x)


@overload_part(gelu_slope, **_OPTIONS)
def _gelu_slope_compiled(x):
    F = _typed(x)
    half, one, root, scale = F(0.5), F(1), F(math.sqrt(0.5)), F(1 / math.sqrt(2 * math.pi))
    return lambda x: half * (one + erf(x * root)) + x * (exp(-half * (x * x)) * scale)


def silu_slope(x) -> Any:
    """The derivative of silu at x."""
    return slopes("silu", x)


@overload_part(silu_slope, **_OPTIONS)
def _silu_slope_compiled(x):
    one = _typed(x)(1)

    def impl(x):
        s = sigmoid(x)
        return s * (one + x * (one - s))

    return impl


def square_slope(x) -> Any:
    """The derivative of tanh where its value is x."""
    return 1 - x * x


@overload_part(square_slope, **_OPTIONS)
def _square_slope_compiled(x):
    one = _typed(x)(1)
    return lambda x: one - x * x


# -- rows, compiled ----------------------------------------------------------------------------------------------------


@inner
def activate(code, src, s, dst, d, count):
    """dst[d + i] = the activation of src[s + i], for i < count."""
    s, d, n = np.uint64(s), np.uint64(d), np.uint64(count)
    if code == 0:
        for i in range(n):
            dst[d + i] = src[s + i]
    elif code == 1:
        for i in range(n):
            dst[d + i] = relu(src[s + i])
    elif code == 2:
        for i in range(n):
            dst[d + i] = gelu(src[s + i])
    elif code == 3:
        for i in range(n):
            dst[d + i] = silu(src[s + i])
    else:
        for i in range(n):
            dst[d + i] = tanh(src[s + i])


@inner
def activate_here(code, a, at, count):
    """a[at + i] = its activation. `activate` in place would not vectorise: it looks as if rows overlapped."""
    at, n = np.uint64(at), np.uint64(count)
    if code == 0:
        return
    if code == 1:
        for i in range(n):
            a[at + i] = relu(a[at + i])
    elif code == 2:
        for i in range(n):
            a[at + i] = gelu(a[at + i])
    elif code == 3:
        for i in range(n):
            a[at + i] = silu(a[at + i])
    else:
        for i in range(n):
            a[at + i] = tanh(a[at + i])


@inner
def times_slope(code, saved, s, grad, g, dst, d, count):
    """dst[d + i] = grad[g + i] * the slope found from saved[s + i], for i < count."""
    s, g, d, n = np.uint64(s), np.uint64(g), np.uint64(d), np.uint64(count)
    if code == 0:
        for i in range(n):
            dst[d + i] = grad[g + i]
    elif code == 1:
        for i in range(n):
            dst[d + i] = grad[g + i] * relu_slope(saved[s + i])
    elif code == 2:
        for i in range(n):
            dst[d + i] = grad[g + i] * gelu_slope(saved[s + i])
    elif code == 3:
        for i in range(n):
            dst[d + i] = grad[g + i] * silu_slope(saved[s + i])
    else:
        for i in range(n):
            dst[d + i] = grad[g + i] * square_slope(saved[s + i])


@inner
def times_slope_here(code, saved, s, grad, g, count):
    """grad[g + i] *= the slope found from saved[s + i], for i < count."""
    s, g, n = np.uint64(s), np.uint64(g), np.uint64(count)
    if code == 0:
        return
    if code == 1:
        for i in range(n):
            grad[g + i] *= relu_slope(saved[s + i])
    elif code == 2:
        for i in range(n):
            grad[g + i] *= gelu_slope(saved[s + i])
    elif code == 3:
        for i in range(n):
            grad[g + i] *= silu_slope(saved[s + i])
    else:
        for i in range(n):
            grad[g + i] *= square_slope(saved[s + i])


__all__ = ["CODES", "KEEPS_INPUT", "activate", "activate_here", "code_of", "gelu", "gelu_slope", "kept", "relu",
           "relu_slope", "silu", "silu_slope", "slopes", "slopes_kept", "square_slope", "times_slope",
           "times_slope_here", "values"]
