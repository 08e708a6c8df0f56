"""The parts of a reaction–diffusion rule that integrators ask for by name, picked by the rule's type.

A rule may have, besides `change`, two static methods of the same arguments:

    react(p, u, at)      dt times the reaction alone, a tuple with one value a component
    jacobian(p, u, at)   dt times its derivatives, a tuple: d(reaction i) / d(component j) at place i * components + j

Both are local to a cell. Splitting methods use the first, implicit steps and adjoints the second.
"""

from typing import Any

from fastdiff.kernels._jit import FASTMATH
from fastdiff.kernels._march import _method
from fastdiff.kernels._part import overload_part

_OPTIONS = {"fastmath": FASTMATH, "error_model": "numpy", "forceinline": True}


def react(p, u, at) -> Any:
    """dt times the reaction of each component in one cell."""
    return type(p).react(p, u, at)


@overload_part(react, **_OPTIONS)
def _react(p, u, at):
    return _method(p.instance_class, "react")


def jacobian(p, u, at) -> Any:
    """dt times the derivatives of the reaction in one cell, row by row."""
    return type(p).jacobian(p, u, at)


@overload_part(jacobian, **_OPTIONS)
def _jacobian(p, u, at):
    return _method(p.instance_class, "jacobian")


__all__ = ["jacobian", "react"]
