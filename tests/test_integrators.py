"""Time integrators: observed orders in time, every boundary kind, the stability of RKL2, and what they refuse."""

import math
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.steppers import METHODS
from fastdiff.steppers.spectral import propagate

WALLS: dict[str, Any] = {
    "periodic": None,
    "dirichlet": {"x": (fd.Dirichlet(1.0), fd.Dirichlet(0.5))},
    "neumann": {"x": (fd.Neumann(0.3), fd.Neumann(-0.2))},
    "mixed": {"x": (fd.Dirichlet(1.0), fd.Neumann(0.3))},
}


def smooth(grid):
    """A field that fits all the walls above well enough to be smooth in time."""
    u = np.ones(grid.shape)
    for x in grid.coordinates():
        u = u + 0.3 * np.cos(2 * np.pi * x)
    return u


def errors_of(method, equation, grid, boundary, u0, want, t_end, counts):
    """Largest error at t_end for each number of steps."""
    errors = []
    for n in counts:
        walk = fd.repeat(fd.Stepper(equation, grid, dt=t_end / n, boundary=boundary, method=method), n)
        errors.append(np.abs(walk(u0) - want).max())
    return errors


@pytest.mark.parametrize("centering", ["nodes", "cells"])
@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize(("method", "order", "counts"), [("rk4", 4, (1, 2)), ("rk23", 3, (1, 2)), ("rkl2", 2, (16, 32)),
                                                       ("crank_nicolson", 2, (32, 64))])
def test_orders_in_time_against_the_stencil_solved_exactly(method, order, counts, walls, centering):
    grid, equation, t = fd.Grid((18, 16), centering=centering, periodic=walls == "periodic"), fd.Heat((0.7, 0.4)), 0.02
    u0 = smooth(grid)
    if centering == "nodes" and walls in ("dirichlet", "mixed"):
        u0[0] = 1.0
        if walls == "dirichlet":
            u0[-1] = 0.5
    want = propagate(u0[None, None], grid, WALLS[walls], (0.7, 0.4), t, "discrete")[0, 0]
    if METHODS[method].reach < math.inf:
        least = math.ceil(t / (0.6 * METHODS[method].reach * equation.stable_dt(grid)))
        counts = [c * least for c in counts]
    errors = errors_of(method, equation, grid, WALLS[walls], u0, want, t, counts)
    assert errors[1] < 1e-3
    assert math.log2(errors[0] / errors[1]) > order - 0.35
